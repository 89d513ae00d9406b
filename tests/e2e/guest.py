# SPDX-License-Identifier: Apache-2.0
"""A Debian of the tests' own: a folder made by debootstrap, and in it a first process with
namespaces of its own (mounts, pids, network, cgroup) that sees nothing of the machine. The
machine's root is never touched."""
import contextlib
import os
import pathlib
import platform
import shutil
import subprocess

import pytest
from conftest import slowness, wait_until

# $1: the root folder; the rest becomes the first process there. The kernel's settings cannot be
# written, and what is not of the namespaces (modules, the clock) is out of reach.
ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -o bind,ro proc/sys proc/sys
for place in run dev sys; do mount -t tmpfs -o mode=755 tmpfs $place; done
mount -t tmpfs tmpfs tmp
mkdir -p dev/pts dev/shm sys/fs/cgroup run/old
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
for node in null:3 zero:5 full:7 random:8 urandom:9; do
	mknod -m 666 dev/${node%:*} c 1 ${node#*:}
done
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t cgroup2 cgroup2 sys/fs/cgroup
pivot_root . run/old
umount -l run/old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \\
	setpriv --bounding-set=-sys_module,-sys_rawio,-sys_time,-sys_boot,-audit_control,-syslog \\
	"$@"
"""
SYSTEMD = ("/lib/systemd/systemd", "--unit=multi-user.target", "--show-status=0")


def own_cgroup():
    """The folder of this process's cgroup (version 2); None: there is none."""
    mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
    places = [line.split()[1] for line in mounts if line.split()[2] == "cgroup2"]
    groups = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    names = [line[3:] for line in groups if line.startswith("0::")]
    return pathlib.Path(places[0] + names[0]) if places and names else None


def remove_cgroup(cgroup):
    for folder, _names, _files in os.walk(cgroup, topdown=False):
        wait_until(lambda: _is_removed(folder), 10, what=f"an empty {folder}")


def _is_removed(folder):
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return not os.path.exists(folder)


def need_guest():
    """Skip where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("debootstrap and namespaces need root")
    if slowness() > 1:
        pytest.skip("what is installed is no sanitizer's build")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    if platform.freedesktop_os_release().get("ID") != "debian":
        pytest.skip("knows the archive of Debian only")
    if own_cgroup() is None or not os.access(own_cgroup(), os.W_OK):
        pytest.skip("no cgroup of its own for a guest here")


def debootstrap(folder, packages):
    """Make a minimal Debian, of the machine's own release, with these packages besides."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    done = subprocess.run(  # it mounts /proc in there: that must not stay when it is cut off
        ["unshare", "--mount", "--propagation", "private", "debootstrap", "--variant=minbase",
         "--include=" + ",".join(packages), suite, folder],
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if "Failed getting release file" in done.stdout + done.stderr:
        pytest.skip("Debian's archive does not answer here")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


class Guest:
    """The first process in a root folder, and what is run beside it."""

    def __init__(self, root, *first):
        self.root = pathlib.Path(root)
        self.cgroup = own_cgroup() / f"distorch-guest-{os.getpid()}"
        self.cgroup.mkdir()
        self.log_path = self.root.parent / "guest.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "--cgroup", "--pid", "--uts",
                 "--ipc", "--net", "--fork", "--kill-child", "bash", "-c", ENTER, "guest",
                 str(root), *first],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: (self.cgroup / "cgroup.procs").write_text(str(os.getpid())))
        self.first = wait_until(self._first_pid, 30, "a first process: " + self.log())
        wait_until(lambda: self.run("test", "!", "-e", "/run/old", code=None).returncode == 0,
                   30, "a root of its own: " + self.log())

    def _first_pid(self):
        assert self.process.poll() is None, self.log()
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return int((pathlib.Path(path).read_text().split() or [0])[0])

    def log(self):
        return self.log_path.read_text(errors="replace")[-3000:]

    def command(self, *words):
        return ["nsenter", "--all", "--target", str(self.first), "env", "-i", "HOME=/root",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
                "DEBIAN_FRONTEND=noninteractive", *map(str, words)]

    def run(self, *words, code=0, seconds=120):
        done = subprocess.run(self.command(*words), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=seconds)
        assert code in (None, done.returncode), f"{words}: {done.returncode}\n{done.stdout}"
        return done

    def says(self, *words):
        return self.run(*words).stdout.strip()

    def start(self, *words):
        """A process to talk to."""
        return subprocess.Popen(self.command(*words), stdin=subprocess.PIPE, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def remove(self):
        """End everything in it; the folder stays."""
        with contextlib.suppress(OSError, AssertionError):
            first = self._first_pid()
            if first != 0:  # 0 would be our own group
                os.kill(first, 9)  # and all others with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait(10)
        remove_cgroup(self.cgroup)
