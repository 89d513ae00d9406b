# SPDX-License-Identifier: Apache-2.0
"""What docs/containers.md says: clients in other mount, pid and user namespaces, and the daemon in
one, with the socket and the models mounted into them."""
import grp
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
from conftest import (BUILD, Daemon, HeldDaemon, RawError, close_all, list_fds, make_safetensors,
                      opened, slowness, wait_until)
from container import (HOST_GID, HOST_UID, Container, Place, as_user, need_containers)
from test_memory import own_memory_cgroup

MIB = 1 << 20
SOCKET = "/run/distorchd/distorchd.sock"
MODEL = "/models/model.safetensors"

# Attaches to the model and hashes the tensor's bytes whenever it is asked to.
READER = f"""
import hashlib, sys, distorch
with distorch.connect("{SOCKET}") as d, d.open("{MODEL}") as weights:
    data = weights["t"].buffer
    print("READY", flush=True)
    for line in sys.stdin:
        print(hashlib.sha256(bytes(data)).hexdigest(), flush=True)
"""
PYTHON = "/usr/bin/python3"


@pytest.fixture
def place():
    need_containers()
    place = Place()
    make_safetensors(place.models / "model.safetensors", {"t": ("U8", [6 * MIB])})
    (place.models / "model.safetensors").chmod(0o644)
    yield place
    place.remove()


def wanted(place):
    data = (place.models / "model.safetensors").read_bytes()[-6 * MIB:]
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def container(place):
    """container(mounts, program, ...) -> a Container with the models; ended at the end."""
    containers = []

    def start(mounts, program=(PYTHON, "-c", READER), **options):
        containers.append(Container(place, {"/models:ro": place.models, **mounts}, program,
                                    **options))
        return containers[-1]

    yield start
    for one in containers:
        one.end()


def reachable(kind):
    """A daemon on this side, for the users of a group, in a folder that they can reach."""

    class Reachable(kind):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.folder.chmod(0o755)
            (self.folder / "run").mkdir()
            self.socket = self.folder / "run" / "distorchd.sock"

        def command(self):
            return [*super().command(), "--system"]

    return Reachable


@pytest.fixture
def outside(start_daemon):
    """outside(kind, settings…) -> a daemon on this side, for the members of a group."""
    def start(kind=Daemon, *settings):
        return start_daemon("memory.ram=1G", "memory.reserve=0", *settings,
                            f"access.group={grp.getgrgid(HOST_GID).gr_name}",
                            kind=reachable(kind))

    return start


def holders(daemon):
    with daemon.raw() as raw:
        return [(one["uid"], one["pid"], one["comm"])
                for one in raw.call("show", {"model": "model.safetensors"})["clients"]]


def mapped(daemon):
    with daemon.raw() as raw:
        return raw.call("show", {"model": "model.safetensors"})["model"].get("leases", 0)


# ---- clients in containers, the daemon outside -------------------------------------------


@pytest.mark.parametrize("backing", ["image", "file"])
@pytest.mark.parametrize("rootless", [True, False], ids=["rootless", "rootful"])
def test_a_client_in_a_container_reads_the_one_copy_and_dies_like_any_other(
        outside, container, place, rootless, backing):
    daemon = outside(Daemon, f"memory.backing={backing}")
    with daemon.raw() as raw:
        raw.load(place.models / "model.safetensors")
    read = daemon.status()["bytes_read"]
    client = container({"/run/distorchd:ro": daemon.socket.parent}, rootless=rootless)
    assert client.ask() == wanted(place)
    assert daemon.status()["bytes_read"] == read, "by another path in another mount: the same file"
    uid = HOST_UID if rootless else 0
    assert holders(daemon) == [(uid, client.first(), "python3")], "by its names on this side"
    client.end()
    wait_until(lambda: holders(daemon) == [], what="the lease of a container that is gone")


def test_the_root_of_a_rootless_container_is_its_user_and_no_admin(outside, container):
    daemon = outside()
    ctl = ("/opt/bin/distorchctl", "--socket", SOCKET)
    mounts = {"/run/distorchd:ro": daemon.socket.parent}
    for rootless, words in ((True, ("ping",)), (True, ("budget", "ram", "512M")),
                            (False, ("budget", "ram", "512M"))):
        ended = container(mounts, (*ctl, *words), rootless=rootless, ready=False)
        said, _ = ended.process.communicate(timeout=60)
        is_refused = rootless and words[0] == "budget"
        assert ended.process.returncode == (5 if is_refused else 0), said
    assert daemon.status()["devices"][0]["budget"] == 512 * MIB, "root without a map is root"


def test_two_containers_share_what_one_of_them_loaded(outside, container, place):
    daemon = outside()
    mounts = {"/run/distorchd:ro": daemon.socket.parent}
    first = container(mounts)
    second = container(mounts, rootless=False)
    assert first.ask() == second.ask() == wanted(place)
    assert len(daemon.models()) == 1 and mapped(daemon) == 2


def test_a_copy_in_a_container_of_its_own_is_another_model(outside, container, place):
    """As in the layers of an image: same bytes, another file."""
    daemon = outside()
    own = place.folder / "own"
    shutil.copytree(place.models, own)
    first = container({"/run/distorchd:ro": daemon.socket.parent})
    second = container({"/run/distorchd:ro": daemon.socket.parent, "/models:ro": own})
    assert first.ask() == second.ask() and len(daemon.models()) == 2


@pytest.mark.fault("S01")
def test_a_daemon_that_dies_outside_is_come_back_to_from_inside(outside, container, place):
    daemon = outside(HeldDaemon)
    client = container({SOCKET: daemon.socket})  # the socket alone: its file is the holder's
    pid = client.first()
    daemon.kill_daemon()
    wait_until(lambda: holders(daemon) == [(HOST_UID, pid, "python3")], 10 * slowness(),
               "the lease, asserted again")
    assert client.ask() == wanted(place)
    with daemon.raw() as raw:
        shown = raw.call("show", {"model": "model.safetensors"})
        assert shown["loaded_from"] == "store"


def test_a_socket_made_anew_is_found_in_a_mounted_folder_and_not_as_a_mounted_file(
        outside, container, place):
    daemon = outside()
    ping = ("/bin/sh", "-c", f"echo READY; read line; /opt/bin/distorchctl --socket {SOCKET} ping"
            " >/dev/null 2>&1; echo $?")
    by_folder = container({"/run/distorchd:ro": daemon.socket.parent}, ping)
    by_file = container({SOCKET: daemon.socket}, ping)
    daemon.stop()
    daemon.start()
    assert (by_folder.ask(), by_file.ask()) == ("0", "3")


# ---- the daemon in a container -----------------------------------------------------------


class Inside:
    """distorchd-hold as pid 1 of a rootless container, its socket in a folder of this side."""

    def __init__(self, container, place, *settings, uid=HOST_UID, mode="--user", **options):
        self.uid = uid
        self.run = place.folder / "run"
        self.run.mkdir()
        os.chown(self.run, uid, HOST_GID)
        self.socket = self.run / "distorchd.sock"
        settings = ("memory.ram=512M", "memory.reserve=0", "memory.backing=image", *settings)
        words = [word for setting in settings for word in ("--set", setting)]
        self.container = container(
            {"/run/distorchd": self.run},
            ("/opt/bin/distorchd-hold", "--", "/opt/bin/distorchd", "--socket", SOCKET,
             "--state-dir", "/tmp", mode, *words), ready=False, **options)
        self.ready()

    def ready(self):
        wait_until(lambda: self.ctl("ping").returncode in (0, 5) or self.container.first() == 0,
                   20 * slowness(), "its daemon")
        assert self.container.first() != 0, self.container.process.stdout.read()

    def ctl(self, *words, uid=None, gid=HOST_GID):
        """As a user on this side; else the one to whom the container belongs."""
        return subprocess.run(
            as_user([BUILD / "bin" / "distorchctl", "--socket", self.socket, *words],
                    self.uid if uid is None else uid, gid),
            capture_output=True, text=True, timeout=60)

    def daemon_pid(self):
        first = self.container.first()
        path = pathlib.Path(f"/proc/{first}/task/{first}/children")
        return int((path.read_text().split() or [0])[0])


@pytest.fixture
def inside(container, place):
    """inside(settings…) -> the daemon in a container; ended as "docker stop" does it."""
    daemons = []

    def start(*settings, **options):
        daemons.append(Inside(container, place, *settings, **options))
        return daemons[-1]

    yield start
    for daemon in daemons:
        os.kill(daemon.container.first(), signal.SIGTERM)
        begun = time.monotonic()
        assert daemon.container.process.wait(20) == 0
        assert time.monotonic() - begun < 3 * slowness(), "as pid 1 it heeds SIGTERM"
        assert not daemon.socket.exists()


class Reader:
    """The user's own program on this side, in no container."""

    def __init__(self, place, socket):
        code = READER.replace(SOCKET, str(socket)).replace("/models", str(place.models))
        self.process = subprocess.Popen(
            as_user([PYTHON, "-u", "-c", code]), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
            env={"PYTHONPATH": str(place.programs / "python"), "PYTHONDONTWRITEBYTECODE": "1",
                 "DISTORCH_LIBRARY": str(place.programs / "lib" / "libdistorch.so.1")})
        line = self.process.stdout.readline()
        assert line == "READY\n", line + self.process.stdout.read()

    def ask(self):
        self.process.stdin.write("look\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.kill()
        self.process.communicate()


def test_a_daemon_in_a_container_serves_whom_it_cannot_see_and_misses_their_death(
        inside, place):
    inside = inside()
    client = Reader(place, inside.socket)
    try:
        assert client.ask() == wanted(place)
        said = inside.ctl("show", "model.safetensors").stdout
        assert "used by    PID 0 (libdistorch" in said, said
        pid = inside.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: inside.daemon_pid() not in (0, pid), 20 * slowness())
        wait_until(lambda: "PID 0" in inside.ctl("show", "model.safetensors").stdout,
                   20 * slowness(), "the lease, asserted again")
        assert client.ask() == wanted(place)
        said = inside.ctl("show", "model.safetensors").stdout
        assert "from store" in said, said
    finally:
        client.end()
    wait_until(lambda: "used by" not in inside.ctl("show", "model.safetensors").stdout,
               what="the lease of a process that is gone, by its pidfd")


NOBODY = 65534  # and every user and group that the container's map leaves out
STRANGER = HOST_UID - 2


@pytest.mark.fault("P21")
def test_who_is_not_in_the_map_of_the_container_has_no_rights_of_nobody(inside):
    daemon = inside("access.group=nogroup", mode="--system", inside=NOBODY)
    os.chmod(daemon.socket, 0o666)  # whatever let a stranger through to it
    for words in (("budget", "ram", "1G"), ("status",)):
        refused = daemon.ctl(*words, uid=STRANGER, gid=STRANGER)
        assert refused.returncode == 5 and "group" in refused.stderr, refused
    assert daemon.ctl("status", uid=0, gid=0).returncode == 5, "nor root, which it is not there"
    assert daemon.ctl("status").returncode == 5, "its own user looks the same: not as nobody, then"


@pytest.fixture
def limited():
    """A memory cgroup with room for 256 MiB."""
    group = own_memory_cgroup()
    folder = pathlib.Path(f"/sys/fs/cgroup/memory{group}")
    if group is None or not os.access(folder, os.W_OK):
        pytest.skip("no memory cgroup of the first generation that can be written here")
    cgroup = folder / f"distorch-container-{os.getpid()}"
    cgroup.mkdir()
    (cgroup / "memory.limit_in_bytes").write_text(str(256 * MIB))
    yield cgroup
    wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), what="an empty group")
    cgroup.rmdir()


def test_a_daemon_in_a_container_keeps_to_the_limit_of_the_container(limited, inside):
    daemon = inside("memory.ram=auto", uid=0, rootless=False, cgroup=limited)
    status = json.loads(daemon.ctl("status", "--json").stdout)
    assert status["devices"][0]["total"] == 256 * MIB, "not the machine's"
