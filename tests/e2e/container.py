# SPDX-License-Identifier: Apache-2.0
"""A container of the tests' own: namespaces for mounts, pids, network, hostname and IPC, and, as
rootless ones have it, for users too; a root folder with the machine's programs and the folders
that are mounted into it; its program is pid 1. With limits as Docker and Podman set them."""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

import pytest
from conftest import BUILD, ROOT, _die_with_parent, wait_until

HOST_UID = 64999  # whom a rootless container belongs to; its own root is this one
HOST_GID = 100  # "users", which every Debian has

# $1: an empty folder; pairs of a place in the container (with ":ro", read-only) and what is mounted
# there; --; the program.
ENTER = """
set -e
root=$1; shift
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir usr etc proc dev tmp old
chmod 1777 tmp
for name in bin sbin lib lib64; do
	if [ -L /$name ]; then cp -P /$name .
	elif [ -d /$name ]; then mkdir $name; mount --rbind /$name $name; fi
done
mount --rbind /usr usr
mount --rbind /etc etc
mount -t proc proc proc
for name in null zero urandom; do touch dev/$name; mount --bind /dev/$name dev/$name; done
if [ "$CGROUP" ]; then
	mkdir -p sys/fs/cgroup/memory; mount -t cgroup -o memory cgroup sys/fs/cgroup/memory
fi
while [ "$1" != -- ]; do
	place=.${1%:ro}
	if [ -d "$2" ]; then mkdir -p "$place"; else mkdir -p "${place%/*}"; touch "$place"; fi
	mount --bind "$2" "$place"
	[ "$place" = ".$1" ] || mount -o remount,bind,ro "$place"
	shift 2
done
shift
pivot_root . old
umount -l old
cd /
exec env -i PATH=/opt/bin:/usr/bin:/bin HOME=/tmp PYTHONPATH=/opt/python PYTHONUNBUFFERED=1 \\
	DISTORCH_LIBRARY=/opt/lib/libdistorch.so.1 "$@"
"""
SPACES = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child"]


def need_containers():
    """Skip where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("the namespaces of several users need root")
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("there is no python3 of the system's")
    for words in (SPACES, as_user([*SPACES, *user_space()])):
        if subprocess.run([*words, "true"], capture_output=True).returncode != 0:
            pytest.skip("this machine makes no such namespaces")


def as_user(words, uid=HOST_UID, gid=HOST_GID):
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *words]


def user_space(inside=0):
    return ["--user", f"--map-user={inside}", f"--map-group={inside}", "--keep-caps"]


class Place:
    """A folder that every user can read: what containers mount."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-containers-"))
        self.folder.chmod(0o755)
        self.programs = self.folder / "opt"
        (self.programs / "bin").mkdir(parents=True)
        (self.programs / "lib").mkdir()
        for name in ("distorchd", "distorchd-hold", "distorchctl"):
            shutil.copy(BUILD / "bin" / name, self.programs / "bin")
        shutil.copy(os.environ["DISTORCH_LIBRARY"], self.programs / "lib" / "libdistorch.so.1")
        shutil.copytree(ROOT / "client" / "python", self.programs / "python",
                        ignore=shutil.ignore_patterns("__pycache__"))
        self.models = self.folder / "models"
        self.models.mkdir()

    def remove(self):
        shutil.rmtree(self.folder)


class Container:
    """Started with pipes; its program must say READY, if 'ready' is not false. Of a rootless one
    'inside' is the id that its user and group have in there."""

    def __init__(self, place, mounts, program, rootless=True, ready=True, cgroup=None, inside=0):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-container-"))
        self.folder.chmod(0o755)
        pairs = [str(word) for pair in {"/opt:ro": place.programs, **mounts}.items() for word in pair]
        spaces = [*SPACES, *user_space(inside)] if rootless else [*SPACES, "--cgroup"]
        words = [*spaces, "bash", "-c", ENTER, "container", str(self.folder), *pairs, "--",
                 *map(str, program)]

        def enter():
            _die_with_parent()
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text(str(os.getpid()))

        self.process = subprocess.Popen(
            as_user(words) if rootless else words, stdin=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "CGROUP": "1" if cgroup is not None else ""}, preexec_fn=enter)
        if ready:
            line = self.process.stdout.readline()
            assert line == "READY\n", f"it said {line + self.process.stdout.read()!r}"

    def first(self):
        """The pid, here, of the container's pid 1; 0: it has ended."""
        path = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = wait_until(lambda: "0" if self.process.poll() is not None else path.read_text(),
                           what="the container's pid 1")
        return int(found.split()[0])

    def ask(self, line="look"):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self):
        """SIGKILL, as a container runtime does it in the end. Returns the rest of what it said."""
        pid = self.first()
        if pid != 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            said, _ = self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        return said
