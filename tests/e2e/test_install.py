# SPDX-License-Identifier: Apache-2.0
"""scripts/install from a fresh copy of the source, as people run it: into a home of the test's
own, with an environment of next to nothing, without git and without systemd."""
import hashlib
import os
import pathlib
import pty
import shutil
import subprocess
import time

import pytest
from conftest import ROOT, RawClient, close_all, make_safetensors, opened, slowness, wait_until

MIB = 1 << 20
HIDDEN = ("git", "systemctl", "sudo")
COMPILERS = ("cc", "gcc", "clang", "c89", "c99", "x86_64-linux-gnu-gcc")

pytestmark = [pytest.mark.seconds(900),
              pytest.mark.skipif(slowness() > 1, reason="it builds a release of its own")]


def listing(*folders):
    """Everything below, without what the build leaves in the source."""
    return sorted(str(path) for folder in folders for path in pathlib.Path(folder).rglob("*"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what git would give, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("clone") / "a new place"
    names = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT,
                           capture_output=True, check=True).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, names)):
        if (ROOT / name).is_file() and not name.startswith("tests/fuzz/corpus"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def make_path(folder, hidden):
    """A folder of links to every program of the machine but the hidden ones."""
    folder.mkdir()
    for place in ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"):
        for program in os.scandir(place) if os.path.isdir(place) else ():
            name = program.name
            if not any(name == one or name.startswith(one + "-") for one in hidden) and \
                    not (folder / name).is_symlink():
                (folder / name).symlink_to(program.path)
    return folder


class Place:
    """A user's home and runtime folder, and the installer run there."""

    def __init__(self, source, folder):
        self.source = source
        self.home = folder / "home"
        self.runtime = folder / "run"
        self.prefix = self.home / ".local"
        self.socket = self.runtime / "distorchd" / "distorchd.sock"
        self.home.mkdir()
        self.runtime.mkdir()
        self.path = make_path(folder / "bin", HIDDEN)
        self.without = {}

    def environment(self):
        return {"HOME": str(self.home), "PATH": str(self.path),
                "XDG_RUNTIME_DIR": str(self.runtime), **self.without}

    def run(self, *words, code=0, **options):
        done = subprocess.run([str(self.source / "scripts" / "install"), *map(str, words)],
                              env=self.environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=600, **options)
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        return said

    def ctl(self, *words):
        done = subprocess.run([str(self.prefix / "bin" / "distorchctl"), *map(str, words)],
                              env=self.environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pid(self):
        return int(pathlib.Path(f"{self.socket}.lock").read_text())

    def processes(self):
        """Those that run a program of this place."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "exe").startswith(str(self.home.parent)):
                    found.append(int(entry.name))
            except OSError:
                pass  # gone, or the kernel's
        return found

    def check_nothing_left(self):
        assert listing(self.home, self.runtime) == []
        assert self.processes() == []


@pytest.fixture
def place(source, tmp_path):
    place = Place(source, tmp_path)
    yield place
    for pid in place.processes():  # of a test that failed
        os.kill(pid, 9)


def image_of(socket, path):
    """SHA-256 of the image that the daemon hands out for the file."""
    with RawClient(socket) as raw:
        _result, fds = raw.attach(path)
        digest = hashlib.sha256(os.pread(fds[-1], path.stat().st_size, 0)).hexdigest()
        close_all(fds)
    return digest


@pytest.mark.fault("U12")
def test_from_a_fresh_copy_to_a_loaded_model_and_back(place, tmp_path):
    model = tmp_path / "a model.safetensors"
    make_safetensors(model, {f"t.{i}": ("U8", [16 * MIB]) for i in range(4)})
    place.prefix = place.home / "pre fix"
    words = ["--user", "-y", "--prefix", place.prefix]
    begun = time.monotonic()
    said = place.run(*words)
    place.ctl("load", model)
    print(f"install to first load: {time.monotonic() - begun:.1f} s")
    assert "all good" in said or "finding" in said, said
    assert "Next:  distorchctl load" in said and "Stop:  distorchctl shutdown" in said
    assert image_of(place.socket, model) == hashlib.sha256(model.read_bytes()).hexdigest()

    installed, pid = listing(place.prefix), place.pid()
    place.run(*words)
    assert listing(place.prefix) == installed and place.pid() == pid, "nothing new: nothing done"
    assert "resident" in place.ctl("ps", "--json")

    program = place.prefix / "bin" / "distorchd-hold"
    older = program.read_bytes() + b"x"  # as if an older version lay there
    program.unlink()
    program.write_bytes(older)
    os.utime(program, (1, 1))
    (place.prefix / "bin" / "old-program").touch()
    with open(place.prefix / "share" / "distorchd" / "installed", "a") as file:
        file.write(f"file {place.prefix}/bin/old-program\n")
    place.run(*words)
    assert place.pid() != pid, "an upgrade starts the new daemon"
    assert '"store"' in place.ctl("show", "--json", model.name), "which took over the models"
    assert listing(place.prefix) == installed, "what only the old version had is gone"

    (place.prefix / "bin" / "mine").write_text("not of distorchd")
    said = place.run("--uninstall", "-y", "--prefix", place.prefix)
    assert (place.prefix / "bin" / "mine").read_text() == "not of distorchd"
    shutil.rmtree(place.prefix)
    place.check_nothing_left()


def test_where_a_card_is_it_is_built_for_cards(place, tmp_path):
    card = tmp_path / "pci" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    place.without = {"DISTORCH_PCI": str(card.parent)}
    assert "PyPI" in place.run("--dry-run")
    place.without["PIP_INDEX_URL"] = "http://127.0.0.1:9/"
    said = place.run("-y")
    if "left out" in said:  # unless the machine has the headers itself
        assert "CUDA Toolkit" in said and "built without CUDA" in place.ctl("doctor")
    place.without["PIP_INDEX_URL"] = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
    said = place.run("-y")
    if "left out" in said:
        pytest.skip("no headers of CUDA can be had here")
    assert "built without CUDA" not in place.ctl("doctor")
    place.run("--uninstall", "-y")
    place.check_nothing_left()


@pytest.mark.fault("U12")
def test_without_a_runtime_folder_it_says_where_the_socket_is(place):
    place.without = {"XDG_RUNTIME_DIR": ""}
    said = place.run("-y")
    place.socket = place.home / ".local" / "state" / "distorchd" / "socket"
    assert f"export DISTORCH_SOCKET={place.socket}" in said
    assert '"pid"' in place.ctl("--socket", place.socket, "status", "--json") or place.pid()
    place.run("--uninstall", "-y")
    place.check_nothing_left()


def test_a_dry_run_changes_nothing(place):
    before = listing(place.source)
    said = place.run("--dry-run")
    assert "Nothing was changed" in said and str(place.prefix) in said
    assert "Nothing was changed" in place.run("--system", "--dry-run")
    assert listing(place.source) == before
    place.check_nothing_left()


def read_terminal(master):
    """All that is said on it, until nobody has its other end: one read need not bring it all."""
    said = b""
    try:
        while piece := os.read(master, 65536):
            said += piece
    except OSError:  # EIO: that was all
        pass
    os.close(master)
    return said.decode()


def test_it_asks_and_takes_no_for_an_answer(place):
    said = place.run("--prefix", place.prefix, code=1)
    assert "nobody is there to ask" in said and "-y" in said
    master, slave = pty.openpty()
    process = subprocess.Popen([str(place.source / "scripts" / "install")], stdin=slave,
                               stdout=slave, stderr=slave, env=place.environment())
    os.write(master, b"n\n")
    os.close(slave)
    said = read_terminal(master)
    assert process.wait(60) == 1
    assert "Proceed? [Y/n]" in said and "nothing was changed" in said
    place.check_nothing_left()


@pytest.mark.fault("U12")
def test_without_a_compiler_there_is_one_clear_message(place, tmp_path):
    place.path = make_path(tmp_path / "bin2", (*HIDDEN, *COMPILERS))
    said = place.run("-y", code=1)
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "C compiler" in errors[0] and "hint:" in said, said
    place.check_nothing_left()


@pytest.mark.fault("U12")
def test_an_installation_that_failed_can_be_removed(place):
    blocked = place.prefix / "share" / "man" / "man8"
    blocked.parent.mkdir(parents=True)
    blocked.touch()  # a file where a folder has to be
    before = listing(place.home)
    said = place.run("-y", code=1)
    assert "error: the files could not be" in said and "install.log" in said
    assert place.processes() == []
    place.run("--uninstall", "-y")
    assert listing(place.home) == before


def test_what_cannot_be_meant_is_refused(place):
    assert "nothing was installed" in place.run("--uninstall", "-y", code=1)
    assert "knows no --sytem" in place.run("--sytem", code=1)
    assert "needs a folder" in place.run("--prefix", code=1)
    assert "quote" in place.run("-y", "--prefix", place.home / 'a"b', code=1)
    place.without = {"XDG_RUNTIME_DIR": str(place.home / ("x" * 100))}
    assert "at most 106" in place.run("-y", code=1)
    place.without = {"HOME": "/nonexistent"}
    assert "HOME names no folder" in place.run("-y", code=1)
    place.check_nothing_left()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user's folder")
def test_root_does_not_install_into_the_home_of_another(place):
    os.chown(place.home, 65534, 65534)
    said = place.run("-y", code=1)
    assert "belongs to another user" in said and "--system" in said
    place.check_nothing_left()


def test_another_daemon_on_the_socket_is_named_and_left_alone(place, start_daemon):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0")
    place.socket.parent.mkdir()
    place.socket.symlink_to(daemon.socket)
    pathlib.Path(f"{place.socket}.lock").symlink_to(f"{daemon.socket}.lock")
    said = place.run("-y", code=1)
    assert f"another daemon runs on that socket already (pid {daemon.pid})" in said
    assert daemon.is_alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(os.path.isdir("/run/systemd/system"),
                    reason="systemd is running: it is not for a test to change it")
def test_the_service_is_laid_out_where_no_systemd_runs(place):
    place.prefix = place.home / "usr"
    said = place.run("--system", "-y", "--prefix", place.prefix)
    assert "--system, as root" in said
    for name in ("lib/systemd/system/distorchd.service", "lib/sysusers.d/distorchd.conf"):
        assert (place.prefix / name).exists()
    assert place.processes() == []
    place.run("--system", "--uninstall", "-y", "--prefix", place.prefix)
    place.check_nothing_left()


# Stands in for a user's systemd: notes what it is asked, and runs what the unit says.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$HOME/asked"
unit=$HOME/.local/share/systemd/user/distorchd.service
command=$(sed -n 's/^ExecStart=//p' "$unit" 2>/dev/null | sed 's/%%/%/g')
case "$*" in
"--user is-system-running") echo degraded; exit 1 ;;
"--user restart distorchd.service")
	eval "setsid distorchd-hold -- $command" </dev/null >/dev/null 2>&1 & ;;
"--user disable --now "*) distorchctl shutdown >/dev/null ;;
esac
"""


def test_where_a_users_systemd_answers_it_runs_the_unit(place):
    place.prefix = place.home / "100% mine"
    fake = place.path / "systemctl"
    fake.write_text(SYSTEMCTL)
    fake.chmod(0o755)
    place.without = {"PATH": f"{place.prefix}/bin:{place.path}"}
    said = place.run("-y", "--prefix", place.prefix)
    assert "distorchd.service of systemctl --user" in said and "enable-linger" in said
    asked = (place.home / "asked").read_text().splitlines()
    assert asked[-3:] == ["--user daemon-reload",
                          "--user enable distorchd.socket distorchd.service",
                          "--user restart distorchd.service"]
    assert place.ctl("ping")
    place.run("--uninstall", "-y", "--prefix", place.prefix)
    asked = (place.home / "asked").read_text().splitlines()
    assert asked[-2:] == ["--user disable --now distorchd.service distorchd.socket",
                          "--user daemon-reload"]
    wait_until(lambda: place.processes() == [], what="the end of the daemon")
    (place.home / "asked").unlink()
    place.check_nothing_left()
