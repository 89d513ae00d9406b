# SPDX-License-Identifier: Apache-2.0
"""A descriptor store of the tests' own: the receiving end of sd_notify(3), as systemd has it.
What a daemon parked is kept between its lives, to be given back as it was, or bent."""
import array
import contextlib
import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from conftest import Daemon, _die_with_parent

# In the new process: the descriptors to 3, 4, … and its own pid into the environment.
LAUNCHER = """
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
for fd in fds:
    os.set_inheritable(fd, False)
fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(fds)) for fd in fds]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def is_same(one, other):
    """An open file twice: as systemd sees it where its kernel does not compare them (kcmp), where it
    sees fewer."""
    stats = os.fstat(one), os.fstat(other)
    return os.path.samestat(*stats) and \
        fcntl.fcntl(one, fcntl.F_GETFL) == fcntl.fcntl(other, fcntl.F_GETFL)


def kcmp_errno():
    """Why the kernel does not compare open files; 0: it does."""
    number = {"x86_64": 312, "aarch64": 272}.get(platform.machine(), -1)  # -1: ENOSYS
    library = ctypes.CDLL(None, use_errno=True)
    me = os.getpid()
    return ctypes.get_errno() if library.syscall(number, me, me, 0, 0, 0) < 0 else 0


def source_in(kept, table, number=0):
    """The entry of 'kept' that is the number-th file of a table."""
    rows = os.pread(table, 1 << 20, 0)
    found = []
    for entry in kept:
        status = os.fstat(entry[1])
        at = rows.find(struct.pack("<QQ", status.st_dev, status.st_ino))
        if entry[0].startswith("src.") and at >= 0:
            found.append((at, entry))
    found.sort()
    return found[number][1] if number < len(found) else None


class StoredDaemon(Daemon):
    """A private distorchd whose service manager is this test."""

    keeps_socket = True

    def __init__(self, settings=(), arguments=(), environment=None):
        super().__init__(settings, arguments, environment)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.notify_address())
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.kept = []  # (name, fd)
        self.said = []  # lines without descriptors
        self.limit = 1000
        self.given = None  # overrides what the next life gets
        self.is_deaf = False  # reads nothing
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def notify_address(self):
        return b"\0distorch-test-" + os.urandom(8).hex().encode()

    def _listen(self):
        while self.notify.fileno() >= 0:
            if self.is_deaf or not select.select([self.notify], [], [], 0.05)[0]:
                time.sleep(0.005)
                continue
            with contextlib.suppress(OSError):
                self.drain()

    def start(self):
        address = self.notify.getsockname()
        address = address.decode() if isinstance(address, bytes) else address
        self.environment.setdefault("NOTIFY_SOCKET", address.replace("\0", "@"))
        self.environment.setdefault("FDSTORE", str(self.limit))
        return super().start()

    def spawn(self, command, environment, log):
        """Hand 'kept', or 'given', over as LISTEN_FDS, as systemd would."""
        given = self.kept if self.given is None else self.given
        if not given:
            return super().spawn(command, environment, log)
        environment = {**environment, "LISTEN_FDS": str(len(given)),
                       "LISTEN_FDNAMES": ":".join(name for name, _fd in given)}
        fds = [fd for _name, fd in given]
        launcher = [sys.executable, "-c", LAUNCHER, ",".join(map(str, fds))]
        return subprocess.Popen([*launcher, *command], stdin=subprocess.DEVNULL, stdout=log,
                                stderr=log, start_new_session=True, env=environment,
                                pass_fds=fds, preexec_fn=_die_with_parent)

    def drain(self):
        """Take in everything that was said."""
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        with self._lock, contextlib.suppress(BlockingIOError):
            while True:
                self._take(*self.notify.recvmsg(4096, socket.CMSG_SPACE(4 * 32), flags)[:2])

    def _take(self, text, control):
        fds = array.array("i")
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[:len(data) - len(data) % struct.calcsize("i")])
        lines = text.decode().split("\n")
        fields = dict(line.split("=", 1) for line in lines)
        name = fields.get("FDNAME", "stored")
        if fields.get("FDSTOREREMOVE") == "1":
            for entry in [entry for entry in self.kept if entry[0] == name]:
                self.kept.remove(entry)
                os.close(entry[1])
        for fd in fds:
            if fields.get("FDSTORE") == "1" and len(self.kept) < self.limit and \
                    not any(is_same(fd, other) for _name, other in self.kept):
                self.kept.append((name, fd))
            else:
                os.close(fd)  # a barrier, or the store says nothing: it is full, or has it
        if not fds:
            self.said += lines

    def die(self):
        """SIGKILL the daemon; what it said before stays."""
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)
        self.drain()

    def remove(self):
        super().remove()
        for _name, fd in self.kept:
            os.close(fd)
        self.kept = []
        self.is_deaf = True
        self.notify.close()
        self._thread.join(5)
