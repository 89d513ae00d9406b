# SPDX-License-Identifier: Apache-2.0
"""A filesystem of one file "m", spoken to the kernel by hand, whose server is slow, silent or
broken where a test wants it. What FUSE holds cannot be killed, so each server is a process that
aborts its own connection when it ends, whatever becomes of the test."""
import contextlib
import pathlib
import subprocess
import sys
import tempfile

# argv: the mount point, the file to show, and how:
#   noflush   lets no close() end                deaf   answers no read
#   silent    answers no read of the second half eio    fails the reads of the second half
#   drip      one byte a read, ten a second      eintr  every other read is interrupted, the
#   noopen    answers no open                           others are short
#   nostat    answers nobody who asks for the file's size and times, once it was opened
# Reads of the first 64 KiB are answered at once but by a deaf one.
# "answer" on its standard input: reads are answered from now on, and those that wait; "count":
# says how many wait. At its end, or at any other line, it aborts its connection.
SERVER = r"""
import ctypes, os, struct, sys, threading
mount, shown, how = sys.argv[1:4]
content = open(shown, "rb").read() if shown else b"x" * 4096
libc = ctypes.CDLL(None, use_errno=True)
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"fuse", mount.encode(), b"fuse", 0, options) != 0:
    print(os.strerror(ctypes.get_errno()), flush=True)
    sys.exit(1)
waiting = []
lock = threading.Lock()  # of these two
is_answering = how not in ("silent", "deaf", "noopen", "nostat")
n_reads = 0

def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100644, len(content))
    return struct.pack("<6Q10I", node, size, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

def reply_to(unique, body=b"", error=0):
    try:
        os.write(fuse, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
    except OSError:
        pass  # it was interrupted and is no longer waited for

def put_off(unique, body):
    with lock:
        if not is_answering:  # still
            waiting.append((unique, body))
            return
    reply_to(unique, body)

def read(unique, offset, size):
    global n_reads
    bytes_ = content[offset:offset + size]
    n_reads += 1
    if offset < 65536 and how != "deaf" or how == "noflush":
        reply_to(unique, bytes_)
    elif not is_answering and (how == "deaf" or offset >= len(content) // 2):
        put_off(unique, bytes_)
    elif how == "drip":
        threading.Timer(0.1, reply_to, (unique, bytes_[:1])).start()
    elif how == "eio" and offset >= len(content) // 2:
        reply_to(unique, error=-5)
    elif how == "eintr" and n_reads % 2:
        reply_to(unique, error=-4)
    elif how == "eintr":
        reply_to(unique, bytes_[:4093])
    else:
        reply_to(unique, bytes_)

def serve():
    while True:
        try:
            request = os.read(fuse, 1 << 20)
        except OSError:
            return
        _, code, unique, node = struct.unpack("<IIQQ", request[:24])
        if code == 26:  # INIT
            reply_to(unique, struct.pack("<IIIIHHIIHHI", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0)
                     + b"\0" * 28)
        elif code == 1:  # LOOKUP
            valid = 0 if how == "nostat" else 60  # seconds that the kernel need not ask again
            reply_to(unique, struct.pack("<QQQQII", 2, 0, 60, valid, 0, 0) + attributes(2))
        elif code == 3 and how == "nostat" and node != 1 and not is_answering:
            put_off(unique, struct.pack("<QII", 60, 0, 0) + attributes(node))
        elif code == 3:  # GETATTR
            reply_to(unique, struct.pack("<QII", 60, 0, 0) + attributes(node))
        elif code == 14 and how == "noopen" and not is_answering:
            put_off(unique, struct.pack("<QII", 1, 1, 0))
        elif code == 14:  # OPEN: reads come as they are asked for, from no cache
            reply_to(unique, struct.pack("<QII", 1, 1, 0))
        elif code == 27:  # OPENDIR
            reply_to(unique, struct.pack("<QII", 1, 0, 0))
        elif code == 15:  # READ
            read(unique, *struct.unpack("<QI", request[48:60]))
        elif code == 17:  # STATFS
            reply_to(unique, struct.pack("<5Q4I6I", 9, 9, 9, 9, 9, 4096, 255, 4096, 0, *[0] * 6))
        elif code == 25 and how == "noflush" or code in (2, 42, 36):
            pass  # FLUSH, which a close() asks for; FORGET, BATCH_FORGET, INTERRUPT want no answer
        else:
            reply_to(unique, error=0 if code in (25, 18) else -38)  # FLUSH, RELEASE; ENOSYS

threading.Thread(target=serve, daemon=True).start()
number = os.minor(os.stat(mount).st_dev)
print("READY", flush=True)
while (line := sys.stdin.readline()) in ("answer\n", "count\n"):
    if line == "count\n":
        print(len(waiting), flush=True)
        continue
    with lock:
        is_answering = True
    for one in waiting:
        reply_to(*one)
    print("ANSWERED", flush=True)
abort = f"/sys/fs/fuse/connections/{number}/abort"
if os.path.exists(abort):
    with open(abort, "w") as file:
        file.write("1")
libc.umount2(mount.encode(), 2)  # MNT_DETACH; the end of this process aborts as well
"""


class FuseFile:
    """The file at 'path', which shows what 'shown' holds (else 4096 bytes of x)."""

    def __init__(self, how, shown=""):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-fuse-"))
        self.path = self.folder / "m"
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.folder), str(shown), how],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        said = self.server.stdout.readline().strip()
        self.why_not = "" if said == "READY" else said or "its server did not start"

    def tell(self, line):
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()

    def answer(self):
        assert self.tell("answer") == "ANSWERED\n"

    def count_waiting(self):
        """Reads that have not been answered."""
        return int(self.tell("count"))

    def end(self):
        if self.server.returncode is None:
            with contextlib.suppress(OSError):
                self.server.stdin.close()  # this process's death does the same
            self.server.wait(20)
            self.server.stdout.close()
            self.folder.rmdir()
