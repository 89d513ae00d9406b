# SPDX-License-Identifier: Apache-2.0
"""Somebody between ComfyUI and the daemon, who may be slow or speak another version."""
import array
import contextlib
import os
import pathlib
import shutil
import socket
import struct
import tempfile
import threading
import time

import msgpack

PACKET_BYTES = 65536
N_FDS = 64


class Between:
    """Listens at `socket` and passes packets with their descriptors on to a daemon's. `delay`:
    seconds before each answer; `versions`: what the client is made to say that it speaks."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.delay, self.versions = 0, None
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="between-"))
        self.socket = self.folder / "s.sock"
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(self.socket))
        self._listening.listen()
        self._pairs = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                server.connect(str(self.daemon.socket))
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            for source, sink, change in ((client, server, self._asked),
                                         (server, client, self._answered)):
                threading.Thread(target=self._pass, args=(source, sink, change),
                                 daemon=True).start()

    def _asked(self, packet):
        if self.versions is not None:
            message = msgpack.unpackb(packet)
            if message[0] == 0 and message[2] == "hello":
                message[3]["protocol"] = self.versions
                return msgpack.packb(message)
        return packet

    def _answered(self, packet):
        time.sleep(self.delay)
        return packet

    @staticmethod
    def _pass(source, sink, change):
        room = socket.CMSG_SPACE(N_FDS * struct.calcsize("i"))
        with contextlib.suppress(OSError):
            while True:
                packet, control, _flags, _ = source.recvmsg(PACKET_BYTES, room)
                if not packet:
                    break
                fds = array.array("i")
                for _level, _kind, part in control:
                    fds.frombytes(part[:len(part) - len(part) % fds.itemsize])
                try:
                    socket.send_fds(sink, [change(packet)], list(fds))
                finally:
                    for fd in fds:
                        os.close(fd)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """End all connections; new ones are taken."""
        while self._pairs:
            for one in self._pairs.pop():
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._listening.close()
        self.cut()
        shutil.rmtree(self.folder, ignore_errors=True)
