# SPDX-License-Identifier: Apache-2.0
"""The units in the hands of a real systemd: a user's manager in a folder, a cgroup and a mount
namespace of its own, with the machine's root read-only below it and no units but ours. Skipped
where the machine does not allow that."""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

import pytest
from conftest import BUILD, RawClient, slowness, wait_until

SYSTEMD = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
                if os.path.exists(path)), None)

# In its cgroup: sees no /run of the machine's, can write nothing but its folder, becomes systemd.
ENTER = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
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


def own_cgroup():
    """The folder of this process's cgroup (version 2); None: there is none."""
    mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
    places = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    groups = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    names = [line[3:] for line in groups if line.startswith("0::")]
    return pathlib.Path(places[0] + names[0]) if places and names else None


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
            "SYSTEMD_GENERATOR_PATH": str(self.folder / "none"), "SYSTEMD_PAGER": "cat"}
        for name in ("run", "home", "units", "none"):
            (self.folder / name).mkdir(mode=0o700)
        subprocess.run(["cmake", "--install", BUILD, "--prefix", self.folder / "usr"],
                       check=True, capture_output=True)
        for name, text in UNITS.items():
            (self.units / name).write_text(text)
        for unit in (self.folder / "usr" / "lib" / "systemd" / "user").iterdir():
            shutil.copy(unit, self.units)
        self.process = None

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
        return private.exists()

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def ctl(self, *words, code=0):
        done = subprocess.run(["nsenter", "--mount", f"--target={self.process.pid}", "systemctl",
                               "--user", *words], env=self.environment, capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr + self.log()
        return done.stdout.strip()

    def get(self, name, unit="distorchd.service"):
        return self.ctl("show", unit, f"--property={name}", "--value")

    def settle(self, *lines):
        """A drop-in of these lines of [Service]; none: it goes."""
        folder = self.units / "distorchd.service.d"
        shutil.rmtree(folder, ignore_errors=True)
        if lines:
            folder.mkdir()
            (folder / "test.conf").write_text("\n".join(["[Service]", *lines]) + "\n")
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
        for folder, _names, _files in os.walk(self.cgroup, topdown=False):
            wait_until(lambda: _is_removed(folder), what=f"an empty {folder}")
        shutil.rmtree(self.folder)


def _is_removed(folder):
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not os.path.exists(folder)


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
        manager.ctl("start", "distorchd.socket")
        yield manager
    finally:
        manager.remove()


def load(manager, path):
    with manager.raw() as raw:
        raw.load(path)


def source_of(manager, path):
    with manager.raw() as raw:
        return raw.call("show", {"model": path.name})["loaded_from"]


@pytest.mark.fault("S01")
def test_a_connect_starts_it_a_kill_costs_nothing_and_a_stop_gives_all_back(manager, make_model):
    path = make_model(size=3 << 20)
    assert manager.get("ActiveState") == "inactive"
    load(manager, path)
    assert manager.get("ActiveState") == "active" and manager.get("StatusText") == "serving"
    assert manager.get("NFileDescriptorStore") == "4", "the ledger, a table, an image, a source"
    with manager.raw() as raw:
        assert raw.call("status")["survives_restart"]
    os.kill(manager.pid(), signal.SIGKILL)
    assert source_of(manager, path) == "store" and manager.get("NRestarts") == "1"
    manager.ctl("restart", "distorchd.service")
    assert source_of(manager, path) == "store"
    assert manager.get("NFileDescriptorStore") == "4"

    inode = os.stat(manager.socket).st_ino
    manager.ctl("stop", "distorchd.service")
    assert manager.get("NFileDescriptorStore") == "0", "this is how memory is given back"
    assert os.stat(manager.socket).st_ino == inode, "and the socket waits for the next client"
    with manager.raw() as raw:
        assert raw.call("list")["models"] == []
    manager.ctl("stop", "distorchd.socket", "distorchd.service")
    assert not manager.socket.exists()


@pytest.mark.fault("S09")
def test_a_daemon_that_hangs_is_replaced_with_all_models(manager, make_model):
    path = make_model(size=3 << 20)
    manager.settle("WatchdogSec=1")
    load(manager, path)
    os.kill(manager.pid(), signal.SIGSTOP)
    assert source_of(manager, path) == "store", manager.log()
    assert manager.get("NRestarts") == "1"


@pytest.mark.fault("S12")
def test_a_wrong_configuration_costs_time_and_no_model(manager, make_model):
    path = make_model(size=3 << 20)
    load(manager, path)
    manager.settle("Environment=DISTORCHD_MEMORY_RAM=nonsense")
    os.kill(manager.pid(), signal.SIGKILL)
    # Any limit on starts would have failed the unit by then, and dropped its store.
    wait_until(lambda: int(manager.get("NRestarts")) > 8, 30, "one start after the other")
    assert manager.get("NFileDescriptorStore") == "4"
    manager.settle()
    assert source_of(manager, path) == "store"


def test_a_reload_that_is_refused_is_told_and_changes_nothing(manager):
    file = manager.folder / "home" / ".config" / "distorchd" / "distorchd.conf"
    file.parent.mkdir(parents=True)
    manager.ctl("start", "distorchd.service")
    pid = manager.pid()
    for content, code in (("[memory]\nram = 64M\n", 0), ("[memory]\nrma = 1G\n", 1)):
        file.write_text(content)
        manager.ctl("reload", "distorchd.service", code=code)
        with manager.raw() as raw:
            assert raw.call("status")["devices"][0]["budget"] == 64 << 20
    assert manager.pid() == pid and manager.get("ActiveState") == "active"
