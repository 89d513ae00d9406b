# SPDX-License-Identifier: Apache-2.0
"""Which models a ComfyUI held that is gone without having let go of them.

Each process writes the ids of what it takes and leaves into a file that goes with it. The file of
one that is gone was left by a crash, or by whoever killed it or ended it by a signal that Python
does not heed, as service managers do.
"""
import atexit
import collections
import contextlib
import os
import tempfile
import threading
import zlib

from . import living
from .session import Unavailable, session


def _ending():
    """Of the names of the files of those that use the same daemon: another one knows nothing of
    their models."""
    socket = os.fsencode(os.path.realpath(session.socket_path()))
    return f"-{zlib.crc32(socket):08x}.held"


class _Held:
    """What this process has."""

    def __init__(self):
        self._path = self._lock_fd = self._fd = None
        self._opening = threading.Lock()

    def _open(self):
        """The file; once more where somebody has tidied it away, with what it said."""
        with self._opening:
            if self._fd is not None and os.path.exists(self._path):
                return
            said = b"" if self._fd is None else os.pread(self._fd, os.fstat(self._fd).st_size, 0)
            ending = _ending()

            def make(folder):
                fd, path = tempfile.mkstemp(suffix=ending, dir=folder)
                os.close(fd)
                return path

            path, lock_fd = living.claim(make)
            fd = os.open(path, os.O_RDWR | os.O_APPEND)
            os.write(fd, said)
            old = self._fd, self._lock_fd
            self._path, self._lock_fd, self._fd = path, lock_fd, fd
            atexit.register(_remove, path)
            for one in old:
                if one is not None:
                    os.close(one)

    def note(self, model, is_taken):
        """Finalizers say what is left, wherever they run: that is one write and no lock."""
        with contextlib.suppress(OSError, Unavailable):  # then nobody is told, and that is all
            if is_taken:
                self._open()
                forget({model})  # somebody wants it again
            if self._fd is not None:
                os.write(self._fd, f"{'+' if is_taken else '-'}{model}\n".encode())


def _remove(path):
    with contextlib.suppress(OSError):
        os.unlink(path)


def _held_by(path):
    count = collections.Counter()
    for line in path.read_text(encoding="ascii", errors="replace").split():
        count[line[1:]] += 1 if line[0] == "+" else -1
    return {model for model, n in count.items() if n > 0}


def left_behind():
    """The ids of what processes held that are gone."""
    found = set()
    with contextlib.suppress(OSError, Unavailable):
        for path in living.of_the_dead("*" + _ending()):
            found |= _held_by(path)
    return found


def forget(ids):
    """Tell no more of these."""
    with contextlib.suppress(OSError, Unavailable):
        for path in living.of_the_dead("*" + _ending()):
            left = _held_by(path) - ids
            if left:
                path.write_text("".join(f"+{model}\n" for model in sorted(left)), encoding="ascii")
            else:
                _remove(path)


session.on_change.append(_Held().note)
