# SPDX-License-Identifier: Apache-2.0
"""What this user's ComfyUI processes leave in the runtime folder, and which of them still live.

Each holds a lock on what is its own: a lock that is free is of a process that is gone. Numbers of
processes do not tell, for two containers that share the folder have the same ones.
"""
import contextlib
import os
import pathlib
import stat
import tempfile

NAME = "distorch-comfyui"


def runtime_folder():
    """Of this user's ComfyUI processes; it is gone after a reboot."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.access(base, os.W_OK):  # a login's that is over, or another user's
        base = tempfile.gettempdir()
    folder = pathlib.Path(base) / f"{NAME}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise OSError(f"{folder} is not a folder of this user")
    return folder


def _lock(fd, waits=False):
    import fcntl  # which Windows has not, as it has no daemon

    fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))


@contextlib.contextmanager
def _alone():
    """The runtime folder, while nobody else looks through it or puts something there."""
    folder = runtime_folder()
    fd = os.open(folder, os.O_RDONLY)
    try:
        _lock(fd, waits=True)
        yield folder
    finally:
        os.close(fd)


def claim(make):
    """(what `make` of the runtime folder makes there, a descriptor that holds it as long as this
    process lives)"""
    with _alone() as folder:
        path = make(folder)
        fd = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: nobody removes it then
            _lock(fd)
        return path, fd


def of_the_dead(pattern):
    """What processes that are gone have left there; nobody else looks at it meanwhile."""
    with _alone() as folder:
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    _lock(fd)
                    yield path
                finally:
                    os.close(fd)
