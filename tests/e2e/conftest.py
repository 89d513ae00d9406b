# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the end-to-end tests: a private real daemon a test, raw packets, model files.

The daemon is $DISTORCH_BUILD/bin/distorchd (default: build/ of the tree), started in its own
process group and folder. After each test it must be the same process, have its descriptors
back at the baseline once everything is unloaded, and end within 2 s of SIGTERM. Its log is
attached to a failed test. `@pytest.mark.daemon("memory.ram=64M", ...)` adds settings,
`@pytest.mark.fault("P01")` names the case of the fault list that a test covers.
"""

import array
import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import msgpack
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DISTORCH_BUILD", ROOT / "build")).resolve()
os.environ.setdefault("LSAN_OPTIONS", "print_suppressions=0:suppressions="
                      + str(ROOT / "tests" / "support" / "lsan.supp"))
FD_GUARD = BUILD / "tests" / "libfd_guard.so"  # the daemon aborts when it closes twice
PACKET_BYTES = 65536
TEST_SECONDS = 60
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1

sys.path.insert(0, str(ROOT / "client" / "python"))
os.environ.setdefault("DISTORCH_LIBRARY", str(BUILD / "lib" / "libdistorch.so.1"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if hasattr(config, "workerinput"):  # one of several at once: "…/popen-gw1" makes long paths
        base = pathlib.Path(config.option.basetemp)
        config.option.basetemp = str(base.with_name(config.workerinput["workerid"][2:]))
    config.addinivalue_line("markers", "fault(*ids): cases of the fault list that the test covers")
    config.addinivalue_line("markers", "daemon(*settings): section.key=value for the daemon")
    config.addinivalue_line("markers", "packages: makes packages and a Debian to install them in")
    config.addinivalue_line("markers", "seconds(n): longest time the test may take")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    for daemon in getattr(item, "daemons", []):
        if report.failed:
            report.sections.append((f"daemon log ({report.when})", daemon.log()))


@pytest.fixture(autouse=True)
def alarm(request):
    """No test hangs: an exception in the main thread after its time."""
    mark = request.node.get_closest_marker("seconds")
    seconds = (mark.args[0] if mark else TEST_SECONDS) * slowness()

    def ring(_signal, _frame):
        raise TimeoutError(f"the test took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def wait_until(condition, seconds=None, what="the condition"):
    """Poll until condition() is true and return its value; AssertionError after 'seconds'."""
    seconds = 10.0 * slowness() if seconds is None else seconds
    end = time.monotonic() + seconds
    pause = 0.0005
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come true within {seconds} s"
        time.sleep(pause)
        pause = min(2 * pause, 0.01)


# ---- raw packets -----------------------------------------------------------------------


class RawError(Exception):
    """A failed response; .error is its map."""

    def __init__(self, error):
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.error = error
        self.code = error.get("code")


class RawClient:
    """A client made of nothing but a socket and PyPI msgpack, for well-formed and hostile
    packets alike."""

    def __init__(self, path, hello=True, timeout=None):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(10.0 * slowness() if timeout is None else timeout)
        self.sock.connect(str(path))
        self.next_id = 1
        self.events = []  # (name, params) that came while waiting for a response
        self.answers = {}  # id -> (error, result, fds) that came while waiting for another
        self.server = self.call("hello", {"protocol": [1, 1], "client": "raw/1"}) if hello else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for _error, _result, fds in self.answers.values():
            close_all(fds)
        self.answers = {}
        self.sock.close()

    def send_bytes(self, packet, fds=()):
        control = []
        if fds:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        return self.sock.sendmsg([packet], control)

    def send(self, message, fds=()):
        return self.send_bytes(msgpack.packb(message), fds)

    def request(self, method, params=None, fds=(), announce=True):
        """Send a request without waiting; returns its id."""
        params = dict(params or {})
        if fds and announce:
            params["fds"] = len(fds)
        number = self.next_id
        self.next_id += 1
        self.send([0, number, method, params], fds)
        return number

    def recv_bytes(self):
        """One packet and its descriptors; (b"", []) when the peer has closed."""
        room = socket.CMSG_SPACE(64 * struct.calcsize("i"))
        try:
            packet, control, flags, _ = self.sock.recvmsg(
                PACKET_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # said once; what was sent before can still be read
            packet, control, flags, _ = self.sock.recvmsg(
                PACKET_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), "the packet was cut"
        return packet, list(fds)

    def recv(self):
        """One message and its descriptors; (None, []) when the peer has closed."""
        packet, fds = self.recv_bytes()
        if not packet:
            return None, []
        message = msgpack.unpackb(packet, strict_map_key=True)
        body = message[-1] if isinstance(message[-1], dict) else {}
        assert body.get("fds", 0) == len(fds), f"announced {body.get('fds')}, sent {len(fds)}"
        return message, fds

    def wait(self, number):
        """The (error, result, fds) of a request; events meanwhile go to self.events."""
        while number not in self.answers:
            message, fds = self.recv()
            if message is None:
                raise ConnectionError("the daemon closed the connection")
            if message[0] == 1:
                assert message[1] not in self.answers, "one request was answered twice"
                self.answers[message[1]] = (message[2], message[3], fds)
            else:
                self.events.append((message[1], message[2]))
        return self.answers.pop(number)

    def call_fds(self, method, params=None, fds=()):
        error, result, got = self.wait(self.request(method, params, fds))
        if error is not None:
            close_all(got)
            raise RawError(error)
        if isinstance(result, dict) and "spill" in result:
            spilled = os.pread(got[0], result["spill"], 0)
            os.close(got.pop(0))
            result = msgpack.unpackb(spilled)
        return result, got

    def call(self, method, params=None, fds=()):
        result, got = self.call_fds(method, params, fds)
        close_all(got)
        return result

    def load(self, path, **params):
        with opened(path) as fd:
            return self.call("load", params, [fd])

    def attach(self, path, **params):
        """(result, [table fd, image fds…]); the caller closes them."""
        with opened(path) as fd:
            return self.call_fds("attach", {"map": True, **params}, [fd])

    def is_closed(self, seconds=None):
        """Has the daemon closed this connection (after any last packets)?"""
        self.sock.settimeout(10.0 * slowness() if seconds is None else seconds)
        try:
            while True:
                packet, fds = self.recv_bytes()
                close_all(fds)
                if not packet:
                    return True
        except (TimeoutError, socket.timeout):
            return False
        except OSError:
            return True


@contextlib.contextmanager
def opened(path, flags=os.O_RDONLY):
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def close_all(fds):
    for fd in fds:
        os.close(fd)


# ---- the daemon ------------------------------------------------------------------------


def need_hooks():
    """Skip where the daemon is the one that people get."""
    if BUILD.name == "shipped":
        pytest.skip("needs the hooks of a testing build")


def _die_with_parent():
    """In a child: it does not outlive the test, and ignores no signal, as one of a job in the
    background would."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Daemon:
    """One private distorchd in a process group and a folder of its own."""

    keeps_socket = False  # whoever restarts it keeps the listening socket, and so its name

    def __init__(self, settings=(), arguments=(), environment=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-"))
        self.socket = self.folder / "s.sock"
        self.state = self.folder / "state"
        self.log_path = self.folder / "log"
        self.settings = list(settings)
        self.arguments = list(arguments)
        self.environment = dict(environment or {})
        self.has_faults = "DISTORCHD_FAULT" in self.environment
        self.process = None
        self.baseline_fds = None

    @property
    def pid(self):
        return self.process.pid

    def hooked_pid(self):
        return self.pid

    def command(self):
        command = [str(BUILD / "bin" / "distorchd"), "--socket", str(self.socket),
                   "--state-dir", str(self.state)]
        # A file that a test has just written is warm: it would serve as it is.
        if not any(setting.startswith("memory.backing=") for setting in self.settings):
            command += ["--set", "memory.backing=image"]
        # Not the cards of this machine, and no process that looks for them.
        if not any(setting.startswith("gpu.devices=") for setting in self.settings):
            command += ["--set", "gpu.devices=none"]
        for setting in self.settings:
            command += ["--set", setting]
        return command + self.arguments

    def start(self):
        environment = {key: value for key, value in os.environ.items()
                       if not key.startswith(("DISTORCHD_", "NOTIFY_", "LISTEN_"))}
        environment["DISTORCHD_TEST_FILE"] = str(self.folder / "order")
        if FD_GUARD.exists():
            environment["LD_PRELOAD"] = str(FD_GUARD)
        environment.update(self.environment)
        with open(self.log_path, "ab") as log:
            self.process = self.spawn(self.command(), environment, log)
        self._wait_for_socket()
        with self.raw() as raw:
            self.baseline_fds = raw.call("status")["open_fds"]
        return self

    def spawn(self, command, environment, log):
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True, env=environment,
                                preexec_fn=_die_with_parent)

    def _wait_for_socket(self, seconds=10.0):
        end = time.monotonic() + seconds * slowness()
        while True:
            assert self.process.poll() is None, f"distorchd ended at start:\n{self.log()}"
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                try:
                    probe.connect(str(self.socket))
                    return
                except OSError:
                    assert time.monotonic() < end, f"no socket after {seconds} s:\n{self.log()}"
            time.sleep(0.01)

    def raw(self, **options):
        return RawClient(self.socket, **options)

    def status(self):
        with self.raw() as raw:
            return raw.call("status")

    def models(self, everything=False):
        with self.raw() as raw:
            return raw.call("list", {"all": True} if everything else {})["models"]

    def log(self):
        try:
            return self.log_path.read_text(errors="replace")[-20000:]
        except OSError:
            return ""

    def tell(self, line, wait=True):
        """Have a test hook carried out (daemon/testing.h); returns its answer, if it waits."""
        need_hooks()
        self.has_faults = line != "clear" and (self.has_faults or line.startswith("fault"))
        order = self.folder / "order"
        (self.folder / "order.new").write_text(line + "\n")
        os.rename(self.folder / "order.new", order)
        pid = self.hooked_pid()
        if pid == 0:  # between two lives; to 0 it would go to all of our own group
            raise ProcessLookupError(f"no daemon for the hook {line!r}")
        os.kill(pid, signal.SIGUSR2)
        if not wait:
            return None
        wait_until(lambda: not order.exists(), 10.0 * slowness(), f"the hook {line!r}")
        answer = (self.folder / "order.done").read_text().strip()
        assert answer != "refused", f"the daemon refused the hook {line!r}"
        return answer

    def log_events(self):
        """The JSON lines of a daemon started with log.format=json."""
        lines = []
        for line in self.log().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def is_alive(self):
        return self.process is not None and self.process.poll() is None

    def unload_all(self):
        """Free everything; wishes of tests do not outlive them."""
        self.unload_all_but(None)

    def unload_all_but(self, name):
        with self.raw() as raw:
            for model in raw.call("list", {"all": True})["models"]:
                with contextlib.suppress(RawError):
                    if model.get("name", "") != name:
                        raw.call("unload", {"select": {"models": [model["id"]]}})

    def fds_at_rest(self):
        """Open descriptors, less the few buffers that are kept for copies from devices."""
        with self.raw() as raw:
            n_fds = raw.call("status")["open_fds"]
            n_devices = len(raw.call("devices")["devices"]) - 1
        if n_devices > 0:
            kept = sum("distorch-staging" in link for link in list_fds(self.hooked_pid()))
            n_fds -= min(kept, 2 * n_devices)  # more of them are at work, or lost
        return n_fds

    def check(self):
        """The invariants after every case."""
        assert self.is_alive(), f"distorchd died with {self.process.returncode}:\n{self.log()}"
        if self.has_faults:
            self.tell("clear")
        seen = None

        def is_back():
            nonlocal seen
            self.unload_all()  # also what was still on its way in
            seen = self.fds_at_rest()
            return seen <= self.baseline_fds

        try:
            wait_until(is_back, 5.0 * slowness())
        except AssertionError:
            links = list_fds(self.hooked_pid())
            raise AssertionError(f"{seen} descriptors, {self.baseline_fds} at start: {links}")
        wait_until(lambda: all(device["held"] == device["used"] == 0
                               for device in self.status()["devices"]),
                   5.0 * slowness(), "an account without charges")

    def stop(self, seconds=2.0):
        """SIGTERM; the daemon must end with status 0 within 'seconds', its group be empty."""
        if self.process is None:
            return
        if self.is_alive():
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
            try:
                status = self.process.wait(seconds * slowness())
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"distorchd did not end within {seconds} s:\n{self.log()}")
            assert status == 0, f"distorchd ended with {status}:\n{self.log()}"
        assert not group_exists(self.pid), "a process of the daemon is left"
        assert self.keeps_socket or not self.socket.exists(), "the socket file is left"

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def remove(self):
        if self.is_alive():
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class HeldDaemon(Daemon):
    """A private distorchd under distorchd-hold, which starts it again with what it parked."""

    def command(self):
        return [str(BUILD / "bin" / "distorchd-hold"), "--", *super().command()]

    def start(self):
        self.point = self.folder / "point"
        self.environment["DISTORCHD_TEST_POINT"] = str(self.point)
        return super().start()

    def daemon_pid(self):
        """The pid of the running daemon, 0 between two lives."""
        children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def kill_daemon(self):
        """SIGKILL the daemon and wait until another one answers."""
        pid = wait_until(self.daemon_pid, what="a daemon to kill")
        os.kill(pid, signal.SIGKILL)
        self.wait_for_another(pid)

    def wait_for_another(self, pid):
        wait_until(lambda: self.daemon_pid() not in (0, pid), 10 * slowness(),
                   f"a daemon after {pid}")
        wait_until(self._answers, 10 * slowness(), "an answer of the new daemon")

    def _answers(self):
        with contextlib.suppress(OSError, EOFError, AssertionError, RawError):
            return self.status()

    def die_at(self, point):
        """Kill the daemon when it next comes to the named point (daemon/testing.h)."""
        need_hooks()
        new = self.folder / "point.new"
        new.write_text(point)
        new.rename(self.point)

    def hooked_pid(self):
        return self.daemon_pid()


def slowness():
    """How much longer than on a plain build things may take (sanitizers)."""
    return int(os.environ.get("DISTORCH_TEST_SLOWNESS", "1"))


def list_fds(pid):
    links = []
    for entry in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        with contextlib.suppress(OSError):
            links.append(f"{entry}->{os.readlink(f'/proc/{pid}/fd/{entry}')}")
    return links


def group_exists(group):
    """Has the process group a member that runs? One that waits for its parent, or for init, has
    ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, its_group = path.read_text().rsplit(")", 1)[1].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


@pytest.fixture
def start_daemon(request):
    """start_daemon("memory.ram=64M", ...) -> Daemon; each is checked and stopped at the end."""
    daemons = request.node.daemons = []

    def start(*settings, arguments=(), environment=None, check=True, kind=Daemon):
        daemon = kind(settings, arguments, environment)
        daemon.is_checked = check
        daemons.append(daemon)
        return daemon.start()

    yield start
    failures = []
    for daemon in daemons:
        try:
            if daemon.is_checked:
                daemon.check()
                daemon.stop()
        except (AssertionError, OSError, RawError) as failure:
            failures.append(str(failure))
        finally:
            daemon.remove()
    assert not failures, "\n".join(failures)


@pytest.fixture
def held(request, start_daemon):
    """A daemon that outlives kill -9, with the settings of the test's mark."""
    mark = request.node.get_closest_marker("daemon")
    settings = ["memory.ram=1G", "memory.reserve=0"]
    return start_daemon(*settings, *(mark.args if mark else ()), kind=HeldDaemon)


@pytest.fixture
def daemon(request, start_daemon):
    """The usual private daemon: 1 GiB of budget, and the settings of the test's mark."""
    mark = request.node.get_closest_marker("daemon")
    settings = ["memory.ram=1G", "memory.reserve=0"]
    return start_daemon(*settings, *(mark.args if mark else ()))


@pytest.fixture
def raw(daemon):
    with daemon.raw() as client:
        yield client


# ---- model files -----------------------------------------------------------------------

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}


def pattern(seed, size):
    """'size' bytes that depend on the seed and repeat at no power of two."""
    unit = bytes((seed * 131 + i * 7 + (i >> 8)) & 0xFF for i in range(4093))
    return (unit * (size // len(unit) + 1))[:size]


def tensor_bytes(dtype, shape):
    bits = DTYPE_BITS[dtype]
    for dimension in shape:
        bits *= dimension
    assert bits % 8 == 0, "sub-byte tensors must fill whole bytes"
    return bits // 8


def make_safetensors(path, tensors, seed=1, metadata=None, pad=64):
    """Write a file of {name: (dtype, shape)} or {name: (dtype, shape, bytes)}; returns
    {name: bytes}. The header is padded so that data is aligned to 'pad'."""
    header, parts, offset = {}, {}, 0
    if metadata is not None:
        header["__metadata__"] = metadata
    for index, (name, spec) in enumerate(tensors.items()):
        dtype, shape = spec[0], list(spec[1])
        data = spec[2] if len(spec) > 2 else pattern(seed + index, tensor_bytes(dtype, shape))
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [offset, offset + len(data)]}
        parts[name] = data
        offset += len(data)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % pad)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for data in parts.values():
            file.write(data)
    return parts


def make_sparse_model(path, size):
    """A model of one tensor of 'size' zero bytes that takes no room on the disk."""
    header = json.dumps({"zeros": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    text = header.encode() + b" " * (-(8 + len(header)) % 64)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        file.truncate(8 + len(text) + size)
    return path


@pytest.fixture
def make_model(tmp_path):
    """make_model("name.safetensors", size=1 << 20, n=4, seed=1) -> path of a model of n equal
    F32 tensors t.0 … and 'size' bytes of data in all."""

    def make(name="model.safetensors", size=1 << 20, n=4, seed=1):
        each = size // n // 4
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_safetensors(path, {f"t.{i}": ("F32", [each]) for i in range(n)}, seed=seed)
        return path

    return make


@pytest.fixture
def distorch():
    import distorch as module

    return module


@pytest.fixture
def connect(daemon, distorch):
    """connect() -> a connection of the Python binding to this test's daemon."""
    connections = []

    def open_one(**options):
        connection = distorch.connect(str(daemon.socket), **options)
        connections.append(connection)
        return connection

    yield open_one
    for connection in connections:
        connection.close()


def let_others_in(path):
    """Every user may come by what leads to it."""
    for folder in list(path.parents)[:-2]:
        if folder.stat().st_mode & 0o005 != 0o005:
            os.chmod(folder, 0o755)


class Child:
    """A Python process with the binding; it says READY and is then the test's to treat."""

    def __init__(self, code, *arguments, environment=None):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "client" / "python"),
                       **(environment or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, *map(str, arguments)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=_die_with_parent)
        line = self.process.stdout.readline()
        assert line == "READY\n", f"the child said {line!r} instead of READY"

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        os.kill(self.pid, number)

    def ask(self, line="go"):
        """Send a line, return the one that comes back."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def child():
    """child(code, arguments...) -> a Child, killed at the end."""
    children = []

    def start(code, *arguments, **options):
        children.append(Child(code, *arguments, **options))
        return children[-1]

    yield start
    for one in children:
        one.end()


def run_python(code, *arguments, **options):
    """Run code in a fresh interpreter that can import distorch; returns its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client" / "python")}
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment,
                          capture_output=True, text=True, timeout=TEST_SECONDS, **options)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
