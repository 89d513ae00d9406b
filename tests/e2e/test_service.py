# SPDX-License-Identifier: Apache-2.0
"""The units for systemd, what the daemon says to a service manager, and life under the unit's
restrictions. No service manager is run: what stands in for it is in store.py and sandbox.py."""
import contextlib
import grp
import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import metrics
import pytest
import sandbox
from conftest import (BUILD, ROOT, RawClient, list_fds, make_safetensors, need_hooks,
                      slowness, wait_until)
from store import StoredDaemon

SYSTEM, USER = "lib/systemd/system", "lib/systemd/user"
HIGHEST_EXPOSURE = 0.8


# ---- the files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """What 'cmake --install' makes, in a folder with a space and a % in its name."""
    folder = tmp_path_factory.mktemp("installed") / "a 100% new place"
    done = subprocess.run(["cmake", "--install", BUILD, "--prefix", folder],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def analyze(tmp_path):
    """Run systemd-analyze; skipped where there is none."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")

    def run(*words):
        environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(tmp_path),
                       "HOME": str(tmp_path), "SYSTEMD_COLORS": "0", "LANG": "C.UTF-8"}
        done = subprocess.run(["systemd-analyze", *map(str, words)], env=environment,
                              capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


def value_of(unit, wanted):
    return [value for _section, key, value in sandbox.read_unit(unit) if key == wanted][-1]


@pytest.mark.fault("S15")
@pytest.mark.parametrize("folder", [SYSTEM, USER])
def test_the_units_are_good_as_installed(prefix, analyze, folder):
    words = ["--user"] if folder == USER else []
    units = [prefix / folder / "distorchd.service", prefix / folder / "distorchd.socket"]
    code, said = analyze("verify", "--man=no", *words, *units)
    assert code == 0 and "distorchd" not in said, said


@pytest.mark.fault("S15")
def test_the_system_unit_is_as_little_exposed_as_promised(prefix, analyze):
    code, said = analyze("security", "--offline=true", prefix / SYSTEM / "distorchd.service")
    exposure = float(re.search(r"Overall exposure level for [^:]*: ([0-9.]+)", said).group(1))
    print(f"exposure {exposure}")
    assert code == 0 and exposure <= HIGHEST_EXPOSURE, said


@pytest.mark.fault("S15")
@pytest.mark.parametrize("folder", [SYSTEM, USER])
def test_what_a_unit_starts_is_installed(prefix, folder):
    for unit in (prefix / folder).iterdir():
        text = unit.read_text()
        assert "@DISTORCH" not in text
        for command in re.findall(r'^Exec\w+="?([^"\n]*?)"?(?: --.*)?$', text, re.M):
            path = pathlib.Path(command.replace("%%", "%"))
            assert path.parent == prefix / "bin" and os.access(path, os.X_OK), command


@pytest.mark.fault("S12")
@pytest.mark.parametrize("folder", [SYSTEM, USER])
def test_no_number_of_failures_costs_the_store(prefix, folder):
    unit = prefix / folder / "distorchd.service"
    assert value_of(unit, "StartLimitIntervalSec") == "0" and value_of(unit, "Restart") == "always"
    assert value_of(unit, "Environment") == \
        "FDSTORE_DEFAULT=" + value_of(unit, "FileDescriptorStoreMax"), "what systemd says wins"


def test_stopping_the_daemon_leaves_the_socket_of_the_other_unit(prefix):
    """systemd would remove the folder, and with it a socket that still listens."""
    unit = prefix / SYSTEM / "distorchd.service"
    socket_path = value_of(prefix / SYSTEM / "distorchd.socket", "ListenSequentialPacket")
    assert socket_path == f"/run/{value_of(unit, 'RuntimeDirectory')}/distorchd.sock"
    assert value_of(unit, "RuntimeDirectoryPreserve") == "yes"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user: needs root")
def test_the_user_and_the_folders_are_made(prefix, tmp_path):
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed")
    for name in ("etc", "run", "var/lib"):
        (tmp_path / name).mkdir(parents=True)
    for tool, folder in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
        words = ["--create"] if tool == "systemd-tmpfiles" else []
        done = subprocess.run([tool, f"--root={tmp_path}", *words,
                               str(prefix / "lib" / folder / "distorchd.conf")],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    fields = (tmp_path / "etc" / "passwd").read_text().split("\n")[0].split(":")
    assert fields[0] == "distorchd" and fields[6].endswith("nologin"), fields
    made = os.stat(tmp_path / "run" / "distorchd")
    assert (made.st_uid, made.st_mode & 0o777) == (int(fields[2]), 0o755)
    assert os.stat(tmp_path / "var" / "lib" / "distorchd").st_mode & 0o777 == 0o700


# ---- what is said to the manager ---------------------------------------------------------


class WatchedDaemon(StoredDaemon):
    """Tries the socket in the moment in which READY=1 comes; notes when each line came."""

    keeps_socket = True

    def __init__(self, *arguments, **options):
        self.connected_at_ready = None
        self.times = []  # (line, monotonic seconds)
        super().__init__(*arguments, **options)

    def _take(self, text, control):
        super()._take(text, control)
        lines = text.decode().split("\n")
        self.times += [(line, time.monotonic()) for line in lines]
        if "READY=1" in lines:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                self.connected_at_ready = probe.connect_ex(str(self.socket)) == 0

    def when(self, line):
        return [at for said, at in self.times if said == line]


def test_ready_is_said_when_the_socket_accepts_and_stopping_when_it_ends(start_daemon):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=WatchedDaemon)
    wait_until(lambda: daemon.connected_at_ready is not None, what="READY=1")
    assert daemon.connected_at_ready
    daemon.stop()
    daemon.drain()
    assert daemon.when("READY=1") < daemon.when("STOPPING=1"), daemon.said
    assert len(daemon.when("READY=1")) == len(daemon.when("STOPPING=1")) == 1
    daemon.is_checked = False  # it has ended


@pytest.mark.fault("S09")
def test_the_watchdog_is_fed_at_half_its_time_and_not_by_a_blocked_loop(start_daemon):
    begun = time.monotonic()
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=WatchedDaemon,
                          environment={"WATCHDOG_USEC": "400000"})
    wait_until(lambda: len(daemon.when("WATCHDOG=1")) >= 3, 10 * slowness(), "three signs of life")
    assert daemon.when("WATCHDOG=1")[2] - begun >= 0.6, "each after 200 ms, not before"
    need_hooks()
    daemon.tell("fault accept:1:delay=2000")
    with daemon.raw(timeout=30.0) as raw:  # answered when the loop is free again
        assert raw.call("ping") == {}
    n_signs = len(daemon.when("WATCHDOG=1"))
    wait_until(lambda: len(daemon.when("WATCHDOG=1")) > n_signs, 10 * slowness(), "signs of life")
    signs = daemon.when("WATCHDOG=1")
    assert max(b - a for a, b in zip(signs, signs[1:])) > 1.5, "it spoke for a loop that hung"


def test_a_watchdog_of_another_process_is_not_fed(start_daemon):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=WatchedDaemon,
                          environment={"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"})
    time.sleep(0.5)
    assert daemon.when("WATCHDOG=1") == []


# ---- a socket of the manager's -----------------------------------------------------------


def listen(path, mode=0o600):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    os.chmod(path, mode)
    listener.listen(16)
    return listener


class ActivatedDaemon(StoredDaemon):
    """Gets its listening socket from the test, under the name that systemd gives it."""

    def start(self):
        if not self.kept:
            self.kept.append(("distorchd.socket", listen(self.socket).detach()))
        return super().start()


def test_who_connected_before_the_start_is_served(start_daemon, make_model):
    daemon = ActivatedDaemon(["memory.ram=1G", "memory.reserve=0"])
    daemon.kept.append(("distorchd.socket", listen(daemon.socket).detach()))
    early = RawClient(daemon.socket, hello=False)
    number = early.request("hello", {"protocol": [1, 1], "client": "early/1"})
    try:
        daemon.start()
        error, server, _fds = early.wait(number)
        assert error is None and server["server"].startswith("distorchd/")
        early.load(make_model())
        early.close()
        daemon.stop()
    finally:
        daemon.remove()


def test_a_handed_over_socket_outlives_the_daemon(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=ActivatedDaemon)
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path)
        assert raw.call("status")["survives_restart"]
    assert "sock" not in [name for name, _fd in daemon.kept], "the manager has it already"
    inode = os.stat(daemon.socket).st_ino
    daemon.stop()
    daemon.drain()
    assert os.stat(daemon.socket).st_ino == inode, "it is not the daemon's to remove"
    waiting = RawClient(daemon.socket, hello=False)  # a connect between two lives
    number = waiting.request("hello", {"protocol": [1, 1], "client": "waiting/1"})
    daemon.start()
    assert waiting.wait(number)[0] is None
    waiting.close()
    assert [model["name"] for model in daemon.models()] == [path.name]


def test_a_socket_of_the_wrong_kind_is_left_alone(start_daemon):
    with tempfile.TemporaryDirectory() as folder:
        wrong = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wrong.bind(f"{folder}/stream")
        wrong.listen(1)
        daemon = StoredDaemon(["memory.ram=1G", "memory.reserve=0"])
        daemon.kept.append(("distorchd.socket", wrong.detach()))
        try:
            daemon.start()
            assert daemon.models() == []
            daemon.stop()
        finally:
            daemon.remove()


def test_the_units_socket_wins_over_one_parked_by_an_earlier_life(start_daemon):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    daemon.die()
    wait_until(lambda: "sock" in [name for name, _fd in daemon.kept], what="the socket's keeping")
    daemon.socket.unlink()
    daemon.kept.insert(0, ("distorchd.socket", listen(daemon.socket).detach()))
    daemon.start()
    wait_until(lambda: "sock" not in [name for name, _fd in daemon.kept], what="the old one's end")
    assert "distorchd.socket" in [name for name, _fd in daemon.kept]


# ---- under the unit's restrictions -------------------------------------------------------

SERVICE_UID, CLIENT_UID = 64998, 64999

CLIENT = f"""
import ctypes, hashlib, os, sys
sys.path.insert(0, sys.argv[1])
from conftest import RawClient, opened
os.setgroups([{SERVICE_UID}])
os.setresgid({CLIENT_UID}, {CLIENT_UID}, {CLIENT_UID})
os.setresuid({CLIENT_UID}, {CLIENT_UID}, {CLIENT_UID})
ctypes.CDLL(None).prctl(4, 1)  # readable in /proc as any program that its user started
ctypes.CDLL(None).prctl(15, b"test-client")
raw = RawClient(sys.argv[2])
with opened(sys.argv[3]) as fd:
    result, fds = raw.call_fds("load", {{"attach": True, "map": True}}, [fd])
print("READY", flush=True)
for line in sys.stdin:
    size = os.fstat(fds[-1]).st_size
    print(hashlib.sha256(os.pread(fds[-1], size, 0)).hexdigest(), flush=True)
"""


class ConfinedDaemon(ActivatedDaemon):
    """As the system unit runs it: another user, no rights, its own view of the machine."""

    refuses = ""
    uid = SERVICE_UID

    def notify_address(self):
        os.chmod(self.folder, 0o755)
        return str(self.folder / "notify").encode()

    def command(self):
        own = self.folder / "distorchd"
        if not own.exists():
            shutil.copy(BUILD / "bin" / "distorchd", own)
            os.chmod(self.folder / "notify", 0o777)
            os.chown(self.folder, self.uid, self.uid)
        return [sys.executable, str(ROOT / "tests" / "e2e" / "sandbox.py"),
                str(ROOT / "systemd" / "distorchd.service.in"), str(self.folder),
                str(self.uid), str(own), "--system", *super().command()[1:]]

    def start(self):
        self.environment.update({"LD_PRELOAD": "", "SANDBOX_REFUSES": self.refuses})
        if not self.kept:
            self.kept.append(("distorchd.socket", listen(self.socket, 0o660).detach()))
            os.chown(self.socket, SERVICE_UID, SERVICE_UID)
        return super().start()


@pytest.fixture
def confined(start_daemon):
    """confined(calls to refuse besides) -> a daemon under the restrictions of the unit."""
    if os.geteuid() != 0:
        pytest.skip("namespaces and another user need root")
    if slowness() > 1:
        pytest.skip("a sanitizer does what the unit forbids")
    if shutil.which("systemd-analyze") is None or not _has_seccomp():
        pytest.skip("systemd-analyze or libseccomp is not installed")
    if subprocess.run(["unshare", "-mn", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine makes no namespaces")

    def start(refuses="", kind=ConfinedDaemon, settings=()):
        kind = type("Confined", (kind,), {"refuses": refuses})
        return start_daemon("memory.ram=1G", "memory.reserve=0", *settings, kind=kind)

    return start


def _has_seccomp():
    with contextlib.suppress(OSError):
        return bool(sandbox.Filter(sandbox.ALLOW))
    return False


def test_every_restriction_of_the_unit_is_reproduced_or_named():
    unit = ROOT / "systemd" / "distorchd.service.in"
    settings = {key: value for section, key, value in sandbox.read_unit(unit)
                if section == "Service"}
    for key, value in sandbox.DONE.items():
        assert settings[key] == value, key
    for key in ("PrivateUsers", "ProcSubset", "ProtectProc"):
        assert key not in settings, f"{key} takes away who a client is, or the memory pressure"


def scrape(path):
    """What a scraper fetches there, as the daemon that the unit confines serves it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        with sock.makefile("rb") as file:
            return metrics.read(file.read().partition(b"\r\n\r\n")[2].decode())


def test_the_sandbox_itself_confines(confined, tmp_path):
    confined().is_checked = False  # only for the skips
    folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-"))
    os.chmod(folder, 0o777)
    probe = """
touch /usr/x 2>/dev/null && echo wrote; touch ./here && echo own
ls /root /home/* >/dev/null 2>&1 && echo home; test -e /dev/sda -o -e /dev/vda && echo disk
unshare -U true 2>/dev/null && echo namespace; nice -n 1 true && echo nice
python3 -c 'import socket; socket.socket(socket.AF_INET)' 2>/dev/null && echo inet
python3 -c 'import mmap; mmap.mmap(-1, 4096, prot=7)' 2>/dev/null && echo wx
head -c 4 /proc/pressure/memory >/dev/null && echo pressure; cat /proc/1/comm >/dev/null && echo peers
grep -c '^CapBnd:.*[^0]$' /proc/self/status
"""
    unit = ROOT / "systemd" / "distorchd.service.in"
    done = subprocess.run([sys.executable, sandbox.__file__, unit, folder, str(SERVICE_UID),
                           "/bin/sh", "-c", f"cd {folder}; {probe}"], capture_output=True,
                          text=True, env={"PATH": "/usr/bin:/bin"})
    shutil.rmtree(folder)
    wanted = ["own", "nice", "pressure", "peers", "0"]
    if not os.path.exists("/proc/pressure/memory"):
        wanted.remove("pressure")
    assert done.stdout.split() == wanted, done.stdout + done.stderr


@pytest.mark.fault("S01")
def test_the_confined_daemon_serves_knows_its_clients_and_survives(confined, tmp_path, child):
    daemon = confined()
    path = daemon.folder / "model.safetensors"
    make_safetensors(path, {"t": ("U8", [3 << 20])})
    os.chown(path, CLIENT_UID, CLIENT_UID)
    os.chmod(path, 0o600)  # the daemon may not open it, and need not
    client = child(CLIENT, ROOT / "tests" / "e2e", daemon.socket, path)
    first = client.ask("look")

    def holders():
        with daemon.raw() as raw:
            return [(one["uid"], one["pid"], one["comm"])
                    for one in raw.call("show", {"model": path.name})["clients"]]

    assert holders() == [(CLIENT_UID, client.pid, "test-client")]
    with open(f"/proc/{daemon.pid}/status") as status:
        lines = dict(line.split(":\t", 1) for line in status.read().splitlines())
    assert lines["CapBnd"].strip("0") == "" and lines["NoNewPrivs"] == "1"
    assert lines["Seccomp"] == "2" and lines["Uid"].split() == [str(SERVICE_UID)] * 4
    assert scrape(daemon.folder / "metrics.sock")["distorchd_leases"][{}] == 1
    if os.path.exists("/proc/pressure/memory"):
        assert any(link.endswith("/proc/pressure/memory") for link in list_fds(daemon.pid)), \
            "it is told of memory pressure"
    daemon.die()
    daemon.start()
    # By pid and start time, both read in /proc; it asserts nothing, so it is held for it.
    assert holders() == [(CLIENT_UID, client.pid, "test-client")]
    assert client.ask("look") == first
    with daemon.raw() as raw:
        assert raw.call("status")["survives_restart"] and raw.call("verify")["checks"][0]["ok"]
    client.end()
    daemon.unload_all()
    wait_until(lambda: daemon.status()["devices"][0]["used"] == 0, what="the bytes of who is gone")


def test_it_makes_its_own_socket_where_it_may_give_nothing_away(confined):
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid)

    class Alone(ConfinedDaemon):
        uid = group.gr_gid

        def start(self):
            self.environment["LD_PRELOAD"] = ""
            return StoredDaemon.start(self)

    daemon = confined(kind=Alone, settings=[f"access.group={group.gr_name}"])
    made = os.stat(daemon.socket)
    assert (made.st_gid, made.st_mode & 0o777) == (group.gr_gid, 0o660)
    wait_until(lambda: "sock" in [name for name, _fd in daemon.kept], what="the socket's keeping")


@pytest.mark.fault("S14")
@pytest.mark.parametrize("call", ["setpriority ioprio_set", "madvise", "pidfd_open", "prlimit64",
                                  "fadvise64", "sched_yield", "mlock",
                                  "landlock_create_ruleset"])
def test_a_call_that_the_machine_refuses_is_done_without(confined, make_model, call):
    daemon = confined(call)
    path = make_model(size=3 << 20)
    with daemon.raw() as raw:
        raw.load(path)
        assert raw.call("verify")["checks"][0]["ok"]
    daemon.die()
    daemon.start()
    assert [model["name"] for model in daemon.models()] == [path.name]
