# SPDX-License-Identifier: Apache-2.0
"""Filesystems of the tests' own, in a mount namespace of this process: nobody else sees them, and
with the process they are gone."""
import contextlib
import ctypes
import os
import shutil
import subprocess

import pytest

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 1 << 17, 16384, 1 << 18, 2

# name -> (program that makes it, its options, bytes, options of the mount)
ON_DISK = {
    "ext4": ("mkfs.ext4", ["-q"], 64 << 20, ""),
    "ext4 whole seconds": ("mkfs.ext4", ["-q", "-I", "128"], 64 << 20, ""),
    "ext4 folding": ("mkfs.ext4", ["-q", "-O", "casefold"], 64 << 20, ""),
    "ext2": ("mkfs.ext2", ["-q", "-I", "128"], 64 << 20, ""),
    "btrfs": ("mkfs.btrfs", ["-q"], 128 << 20, ""),
    "btrfs compressed": ("mkfs.btrfs", ["-q"], 128 << 20, "compress-force=zstd"),
    "xfs": ("mkfs.xfs", ["-q"], 320 << 20, ""),
    "vfat": ("mkfs.vfat", [], 64 << 20, ""),
}
IN_MEMORY = {"tmpfs": ("tmpfs", "size=64m"), "tmpfs huge": ("tmpfs", "size=64m,huge=always"),
             "ramfs": ("ramfs", "")}
ALL = [*ON_DISK, *IN_MEMORY, "overlay"]


def _must(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


class Mounts:
    """What one test mounts; end() takes it away."""

    is_private = False

    def __init__(self, folder):
        self.folder = folder
        self.points = []
        if os.geteuid() != 0:
            pytest.skip("needs root to mount")
        if not Mounts.is_private:
            try:
                _must(LIBC.unshare(CLONE_NEWNS), "unshare")
                _must(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
            except OSError as error:
                pytest.skip(f"no mounts of our own here: {error}")
            Mounts.is_private = True

    def point(self, name):
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def mount(self, source, point, kind, options="", flags=0):
        _must(LIBC.mount(os.fsencode(source), os.fsencode(point), kind.encode(),
                         ctypes.c_ulong(flags), options.encode() or None), f"mount {kind}")
        self.points.append(point)
        return point

    def tmpfs(self, name="tmpfs", options="size=64m"):
        return self.mount("tmpfs", self.point(name), "tmpfs", options)

    def make(self, name):
        """A folder on a filesystem of that name; skips where it cannot be had."""
        where = name.replace(" ", "-")
        try:
            if name in IN_MEMORY:
                kind, options = IN_MEMORY[name]
                return self.mount(kind, self.point(where), kind, options)
            if name == "overlay":
                lower, upper, work = (self.point(f"{where}-{part}")
                                      for part in ("lower", "upper", "work"))
                return self.mount("overlay", self.point(where), "overlay",
                                  f"lowerdir={lower},upperdir={upper},workdir={work}")
        except OSError as error:
            pytest.skip(f"no {name} here: {error}")
        return self._make_on_disk(name, where)

    def disk_of(self, name):
        """The file that stands for the disk of a filesystem that was made."""
        return self.folder / f"{name.replace(' ', '-')}.img"

    def _make_on_disk(self, name, where):
        program, options, size, mount_options = ON_DISK[name]
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        image, point = self.disk_of(name), self.point(where)
        with open(image, "wb") as file:
            file.truncate(size)
        done = subprocess.run([program, *options, image], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"{name} cannot be made here: {done.stderr.strip()}")
        done = subprocess.run(["mount", "-o", ",".join(filter(None, ["loop", mount_options])),
                               image, point], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"{name} cannot be mounted here: {done.stderr.strip()}")
        self.points.append(point)
        return point

    def end(self):
        for point in reversed(self.points):
            with contextlib.suppress(OSError):
                _must(LIBC.umount2(os.fsencode(point), MNT_DETACH), "umount")
        self.points = []


@pytest.fixture
def mounts(tmp_path):
    """Mounts in folders of the test's own. To be asked for before a daemon: it ends after it."""
    mine = Mounts(tmp_path)
    yield mine
    mine.end()
