# SPDX-License-Identifier: Apache-2.0
"""The units in the hands of a real systemd: a user's manager in a folder, a cgroup and a mount
namespace of its own, with the machine's root read-only below it and no units but ours. Skipped
where the machine does not allow that."""
import contextlib
import grp
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile

import pytest
from conftest import BUILD, RawClient, close_all, list_fds, slowness, wait_until
from guest import own_cgroup, remove_cgroup

SYSTEMD = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
                if os.path.exists(path)), None)

# In its cgroup: sees no /run of the machine's, can write nothing but its folder and /tmp, has the
# nodes that cover what a service may not see, becomes systemd.
ENTER = """
set -e
mount --bind /tmp /tmp
mount --bind "$1" "$1"
mount -o remount,bind,ro /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/systemd/inaccessible/dir
mknod /run/systemd/inaccessible/chr c 0 0; mknod /run/systemd/inaccessible/blk b 0 0
touch /run/systemd/inaccessible/reg; mkfifo /run/systemd/inaccessible/fifo
chmod 0 /run/systemd/inaccessible/*
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec "$2" --user --unit=default.target
"""
# All that a manager wants to find; ours come beside them.
UNITS = {
    "default.target": "[Unit]\nDescription=nothing\n",
    "basic.target": "[Unit]\nDescription=nothing\n",
    "sockets.target": "[Unit]\nDescription=nothing\n",
    "shutdown.target": "[Unit]\nDescription=the end\nDefaultDependencies=no\n",
    "exit.target": "[Unit]\nDescription=the end\nDefaultDependencies=no\n"
                   "Requires=systemd-exit.service\nAfter=systemd-exit.service\n",
    "systemd-exit.service": "[Unit]\nDescription=the end\nDefaultDependencies=no\n"
                            "Requires=shutdown.target\nAfter=shutdown.target\n[Service]\n"
                            "Type=oneshot\nExecStart=/bin/true\n",
}


class Manager:
    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-systemd-"))
        self.socket = self.folder / "run" / "distorchd" / "distorchd.sock"
        self.units = self.folder / "units"
        self.cgroup = own_cgroup() / self.folder.name
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder / "home"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"), "SYSTEMD_LOG_TARGET": "console",
            "SYSTEMD_UNIT_PATH": str(self.units), "SYSTEMD_COLORS": "0",
            "SYSTEMD_GENERATOR_PATH": str(self.folder / "none"), "SYSTEMD_PAGER": "cat",
            "DISTORCHD_MEMORY_BACKING": "image"}  # as conftest.py says
        self.folder.chmod(0o755)  # services of other users come by
        for name in ("run", "home", "units", "none"):
            (self.folder / name).mkdir(mode=0o755)
        subprocess.run(["cmake", "--install", BUILD, "--prefix", self.folder / "usr"],
                       check=True, capture_output=True)
        for name, text in UNITS.items():
            (self.units / name).write_text(text)
        self.use("user")
        self.process = None

    def use(self, kind):
        """Take over the units for the system, or those for users."""
        for unit in (self.folder / "usr" / "lib" / "systemd" / kind).iterdir():
            shutil.copy(unit, self.units)

    def start(self):
        self.cgroup.mkdir()
        log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--cgroup", "--propagation", "private", "bash", "-c", ENTER,
             "enter", str(self.folder), SYSTEMD],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
            preexec_fn=lambda: (self.cgroup / "cgroup.procs").write_text(str(os.getpid())))
        log.close()
        private = self.folder / "run" / "systemd" / "private"
        wait_until(lambda: private.exists() or self.process.poll() is not None, 10 * slowness())
        if private.exists():
            wait_until(lambda: self.run("show-environment").returncode == 0, 10 * slowness(),
                       "it to answer")
        return private.exists()

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def run(self, *words):
        return subprocess.run(["nsenter", "--mount", f"--target={self.process.pid}", "systemctl",
                               "--user", *words], env=self.environment, capture_output=True,
                              text=True, timeout=60)

    def ctl(self, *words, code=0):
        done = self.run(*words)
        assert done.returncode == code, done.stdout + done.stderr + self.log()
        return done.stdout.strip()

    def get(self, name, unit="distorchd.service"):
        return self.ctl("show", unit, f"--property={name}", "--value")

    def settle(self, *lines, section="Service"):
        """A drop-in of these lines; none: it goes."""
        folder = self.units / f"distorchd.{section.lower()}.d"
        shutil.rmtree(folder, ignore_errors=True)
        if lines:
            folder.mkdir()
            (folder / "test.conf").write_text("\n".join([f"[{section}]", *lines]) + "\n")
        self.ctl("daemon-reload")

    def pid(self):
        return int(self.get("MainPID"))

    def raw(self):
        return RawClient(self.socket, timeout=30.0)

    def remove(self):
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGRTMIN + 24)  # exit, in order
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            with contextlib.suppress(OSError):
                (self.cgroup / "cgroup.kill").write_text("1")  # of a test that failed
            self.process.wait(10)
        remove_cgroup(self.cgroup)
        shutil.rmtree(self.folder)


@pytest.fixture
def manager():
    if os.geteuid() != 0 or SYSTEMD is None or shutil.which("systemctl") is None:
        pytest.skip("needs root and an installed systemd")
    if slowness() > 1:
        pytest.skip("a sanitizer does what the unit forbids")
    if own_cgroup() is None or not os.access(own_cgroup(), os.W_OK):
        pytest.skip("no cgroup of its own for a systemd here")
    manager = Manager()
    try:
        if not manager.start():
            pytest.skip("no systemd starts in a folder here: " + manager.log().strip()[-200:])
        yield manager
    finally:
        manager.remove()


@pytest.fixture
def own(manager):
    """With the units of a user, and their socket."""
    manager.ctl("start", "distorchd.socket")
    return manager


def load(manager, path):
    with manager.raw() as raw:
        raw.load(path)


def source_of(manager, path):
    with manager.raw() as raw:
        return raw.call("show", {"model": path.name})["loaded_from"]


@pytest.mark.fault("S01")
def test_a_connect_starts_it_a_kill_costs_nothing_and_a_stop_gives_all_back(own, make_model):
    path = make_model(size=3 << 20)
    assert own.get("ActiveState") == "inactive"
    load(own, path)
    assert own.get("ActiveState") == "active" and own.get("StatusText") == "serving"
    assert own.get("NFileDescriptorStore") == "4", "the ledger, a table, an image, a source"
    with own.raw() as raw:
        assert raw.call("status")["survives_restart"]
        assert str(raw.call("store")["max_descriptors"]) == own.get("FileDescriptorStoreMax")
    os.kill(own.pid(), signal.SIGKILL)
    assert source_of(own, path) == "store" and own.get("NRestarts") == "1"
    own.ctl("restart", "distorchd.service")
    assert source_of(own, path) == "store"
    assert own.get("NFileDescriptorStore") == "4"

    inode = os.stat(own.socket).st_ino
    own.ctl("stop", "distorchd.service")
    assert own.get("NFileDescriptorStore") == "0", "this is how memory is given back"
    assert os.stat(own.socket).st_ino == inode, "and the socket waits for the next client"
    with own.raw() as raw:
        assert raw.call("list")["models"] == []
    own.ctl("stop", "distorchd.socket", "distorchd.service")
    assert not own.socket.exists()


@pytest.mark.fault("S01")
@pytest.mark.parametrize("how", ["pinned", "placed"])
def test_a_model_that_lies_anew_survives_one_kill_after_the_other(own, make_model, how):
    """systemd keeps no open file twice, whatever the names."""
    path = make_model(size=3 << 20)
    own.settle("Environment=DISTORCHD_MEMORY_BACKING=auto DISTORCHD_SIM_COUNT=1 "
               "DISTORCHD_SIM_MEMORY=64M DISTORCHD_GPU_BUDGET=100%")
    load(own, path)
    with own.raw() as raw:
        if how == "pinned":
            raw.call("set", {"model": path.name, "policy": {"pin": True}})
        else:
            raw.call("place", {"model": path.name, "allocation": "sim:0,2M;cpu,*"})

    def lies():
        with own.raw() as raw:
            models = raw.call("list")["models"]
        return models and models[0]["state"] == "resident" and models[0]["generation"]

    wait_until(lambda: lies() == 2, 10, "another generation")
    for life in range(3):
        os.kill(own.pid(), signal.SIGKILL)
        wait_until(lies, 10, "it back: " + own.log())
        assert lies() == (2 if how == "pinned" else 3 + life)
        with own.raw() as raw:  # the socket is its unit's
            assert int(own.get("NFileDescriptorStore")) == raw.call("store")["descriptors"] - 1


@pytest.mark.fault("S09")
def test_a_daemon_that_hangs_is_replaced_with_all_models(own, make_model):
    path = make_model(size=3 << 20)
    own.settle("WatchdogSec=3")
    load(own, path)
    os.kill(own.pid(), signal.SIGSTOP)
    assert source_of(own, path) == "store", own.log()
    assert own.get("NRestarts") == "1"


def config_fault(manager):
    with manager.raw() as raw:
        return raw.call("status").get("config_fault")


@pytest.mark.fault("S12")
def test_a_wrong_configuration_costs_no_model(own, make_model):
    path = make_model(size=3 << 20)
    load(own, path)
    said = own.folder / "run" / "said"
    own.settle("Environment=DISTORCHD_MEMORY_RAM=nonsense", f"StandardError=append:{said}")
    os.kill(own.pid(), signal.SIGKILL)
    assert source_of(own, path) == "store" and own.get("NRestarts") == "1"
    assert "DISTORCHD_MEMORY_RAM" in config_fault(own) and "IS BROKEN" in said.read_text()
    own.settle()
    own.ctl("restart", "distorchd.service")
    assert source_of(own, path) == "store" and config_fault(own) is None


@pytest.mark.fault("S12")
def test_what_nobody_can_understand_costs_time_and_no_model(own, make_model):
    """An option that there is not: it is tried on and on."""
    path = make_model(size=3 << 20)
    load(own, path)
    program = own.folder / "usr" / "bin" / "distorchd"
    own.settle("ExecStart=", f"ExecStart={program} --user --nonsense")
    os.kill(own.pid(), signal.SIGKILL)
    # Any limit on starts would have failed the unit by then, and dropped its store.
    wait_until(lambda: int(own.get("NRestarts")) > 8, 30, "one start after the other")
    assert own.get("NFileDescriptorStore") == "4"
    own.settle()
    assert source_of(own, path) == "store"


@pytest.mark.fault("S12")
def test_a_wrong_configuration_and_nothing_to_lose_fails_the_unit(own, make_model):
    file = own.folder / "home" / ".config" / "distorchd" / "distorchd.conf"
    file.parent.mkdir(parents=True)
    file.write_text("[memory]\nrma = 1G\n")
    said = own.folder / "run" / "said"
    own.settle(f"StandardError=append:{said}")
    own.ctl("start", "distorchd.service", code=1)
    wait_until(lambda: own.get("ActiveState") == "failed", 10, "an end of the trying")
    assert own.get("NRestarts") == "0" and own.get("ExecMainStatus") == "2"
    assert said.read_text().count(f"{file}:2") == 1
    # Each client would start it again. systemd gives its socket up, and they are refused.
    with contextlib.suppress(OSError, EOFError), own.raw() as raw:
        raw.call("ping")
    wait_until(lambda: own.get("ActiveState", "distorchd.socket") == "failed", 10,
               "an end of the trying for clients")
    file.write_text("[memory]\nram = 1G\n")
    own.ctl("start", "distorchd.service")
    load(own, make_model(size=3 << 20))
    assert own.get("ActiveState", "distorchd.socket") == "active"


def test_a_reload_that_is_refused_is_told_and_changes_nothing(own):
    file = own.folder / "home" / ".config" / "distorchd" / "distorchd.conf"
    file.parent.mkdir(parents=True)
    own.ctl("start", "distorchd.service")
    pid = own.pid()
    for content, code in (("[memory]\nram = 64M\n", 0), ("[memory]\nrma = 1G\n", 1)):
        file.write_text(content)
        own.ctl("reload", "distorchd.service", code=code)
        with own.raw() as raw:
            assert raw.call("status")["devices"][0]["budget"] == 64 << 20
    assert own.pid() == pid and own.get("ActiveState") == "active"


def test_the_systems_unit_works_with_all_that_it_forbids(manager, make_model):
    program = manager.folder / "usr" / "bin" / "distorchd"
    user = pwd.getpwnam("nobody")
    group = grp.getgrgid(user.pw_gid).gr_name
    manager.use("system")
    for name in ("", "notify"):  # those of the system's manager are open to every user
        (manager.folder / "run" / "systemd" / name).chmod(0o777)
    # Another user and other places, and its folder shown below the private /tmp; no more.
    manager.settle(f"User={user.pw_name}", f"Group={group}", "ExecStart=",
                   f"ExecStart={program} --system --socket {manager.socket}",
                   f"BindPaths={manager.folder}")
    manager.settle("ListenSequentialPacket=", f"ListenSequentialPacket={manager.socket}",
                   f"SocketUser={user.pw_name}", f"SocketGroup={group}", section="Socket")
    manager.ctl("start", "distorchd.socket")
    path = make_model(size=3 << 20)
    path.chmod(0o600)
    load(manager, path)
    assert manager.get("ActiveState") == "active"
    text = pathlib.Path(f"/proc/{manager.pid()}/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines())
    assert status["Uid"].split() == [str(user.pw_uid)] * 4 and status["NoNewPrivs"] == "1"
    assert status["CapBnd"].strip("0") == "" and int(status["Seccomp_filters"]) > 5
    assert not os.path.exists(f"/proc/{manager.pid()}/root{path}"), "it cannot see the file"
    if os.path.exists("/proc/pressure/memory"):
        assert any(link.endswith("/proc/pressure/memory") for link in list_fds(manager.pid()))
    for end in ("kill", "restart"):
        with manager.raw() as raw:
            _result, fds = raw.attach(path)
            if end == "kill":
                os.kill(manager.pid(), signal.SIGKILL)
            else:
                manager.ctl("restart", "distorchd.service")
            assert source_of(manager, path) == "store"
            with manager.raw() as after:  # by the start time in /proc: it is still there
                model = after.call("show", {"model": path.name})
                assert [one["pid"] for one in model["clients"]] == [os.getpid()]
            close_all(fds)
    manager.ctl("stop", "distorchd.service")
    assert manager.get("NFileDescriptorStore") == "0" and manager.socket.exists()
