# SPDX-License-Identifier: Apache-2.0
"""Descriptors whose close() does not come back: of a FUSE file whose server is silent, of a
socket that lingers. Whoever sends them may wait; the daemon and everybody else do not."""

import contextlib
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time

import msgpack
import pytest
from conftest import RawError, opened, slowness, wait_until
from fuse import FuseFile
from test_wire_hostile import as_nobody, goodbye

# Says hello on the socket argv[1], sends a packet so often with so many descriptors of a file, says
# so and stays: its own close() would wait as well, and its end does.
SENDER = r"""
import os, socket, sys, time
path, model, n_fds, n_packets = *sys.argv[1:3], *map(int, sys.argv[3:5])
hello, packet = (bytes.fromhex(sys.stdin.readline()) for _ in range(2))
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(path)
connection.send(hello)
connection.recv(65536)
fd = os.open(model, os.O_RDONLY)
for _ in range(n_packets):
    socket.send_fds(connection, [packet], [fd] * n_fds)
print("SENT", flush=True)
time.sleep(100)
"""
HELLO = [0, 1, "hello", {"protocol": [1, 1], "client": "sender/1"}]


@pytest.fixture
def send():
    """send(daemon, file, message, n_fds, n_packets) -> the process, which lives on."""
    senders = []

    def start(daemon, file, message, n_fds=1, n_packets=1):
        packet = message if isinstance(message, bytes) else msgpack.packb(message)
        sender = subprocess.Popen(
            [sys.executable, "-c", SENDER, str(daemon.socket), str(file), str(n_fds),
             str(n_packets)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        senders.append(sender)
        sender.stdin.write(f"{msgpack.packb(HELLO).hex()}\n{packet.hex()}\n")
        sender.stdin.close()
        assert sender.stdout.readline() == "SENT\n"
        return sender

    yield start
    for sender in senders:
        sender.kill()
        sender.wait(10)
        sender.stdout.close()


@pytest.fixture
def silent_file(send):  # ends before the senders, which it holds
    """A file whose server lets no close() end until end()."""
    file = FuseFile("noflush")
    if not file.why_not:
        yield file
    file.end()
    if file.why_not:
        pytest.skip(f"no FUSE here: {file.why_not}")


def is_in_close(daemon):
    """Does a thread of the daemon wait for the server of a FUSE file?"""
    for task in pathlib.Path(f"/proc/{daemon.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "wchan").read_text() == "request_wait_answer":
                return True
    return False


def count_closers(daemon):
    """Threads that close; one is always there, others that are idle go after a moment."""
    n_closers = 0
    for task in pathlib.Path(f"/proc/{daemon.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            n_closers += (task / "comm").read_text() == "distorch-close\n"
    return n_closers


def serves_at_once(daemon, make_model):
    begun = time.monotonic()
    with daemon.raw(timeout=5.0 * slowness()) as raw:
        assert raw.call("ping") == {}
        raw.load(make_model())
    assert time.monotonic() - begun < 3 * slowness()


CASES = {
    "refused": [0, 2, "load", {"nosuch": 1, "fds": 1}],
    "not announced": [0, 2, "load", {}],
    "no message": b"\xc1",
    "too large": b"\x94" + b"\x00" * 70000,
    "empty": b"",
    "no model": [0, 2, "load", {"fds": 1}],
    "attach": [0, 2, "attach", {"fds": 1}],
    "ping": [0, 2, "ping", {"fds": 1}],
    "too many": [0, 2, "load", {"fds": 40}],
}


@pytest.mark.fault("F33:close")
@pytest.mark.parametrize("case", CASES)
def test_a_close_that_never_ends_holds_nobody_up(daemon, make_model, silent_file, send, case):
    send(daemon, silent_file.path, CASES[case], n_fds=40 if case == "too many" else 1)
    wait_until(lambda: is_in_close(daemon), 5.0 * slowness(), "a close that waits")
    serves_at_once(daemon, make_model)


@pytest.mark.fault("F33")
def test_closes_that_never_end_take_few_threads(daemon, make_model, silent_file, send):
    send(daemon, silent_file.path, [0, 2, "load", {"fds": 32}], n_fds=32, n_packets=8)
    wait_until(lambda: count_closers(daemon) >= 8, 5.0 * slowness(), "closes that wait")
    serves_at_once(daemon, make_model)
    wait_until(lambda: count_closers(daemon) <= 9, 5.0 * slowness(), "few threads")
    silent_file.end()
    wait_until(lambda: count_closers(daemon) <= 1, 5.0 * slowness(), "no threads that wait")


def refusal(raw, fds):
    """The code by which 32 descriptors are refused; None: the connection was closed."""
    try:
        raw.call("load", {}, fds)
    except RawError as error:
        return error.code
    except ConnectionError:
        return None


@pytest.mark.fault("F33")
def test_whoever_sends_what_cannot_be_closed_is_refused_more(daemon, make_model):
    model = make_model()
    os.chmod(model, 0o644)
    with opened("/dev/null") as fd, opened(model) as readable, daemon.raw() as raw:
        daemon.tell("fault close:1:delay=60000:ever")
        codes = [refusal(raw, [fd] * 32) for _ in range(127)]
        assert codes == ["bad-fd"] * 64 + ["too-many"] * 63
        assert raw.call("ping") == {}  # it is only descriptors that are refused
        if os.getuid() == 0:
            assert as_nobody(daemon, lambda: load_by(daemon, readable)) == "loaded"
        assert refusal(raw, [fd] * 32) == "too-many"
        assert goodbye(raw) == "too-many"
        with daemon.raw(hello=False) as late:
            assert goodbye(late) == "too-many"
    daemon.tell("clear")
    wait_until(lambda: can_connect(daemon), 10.0 * slowness(), "a connection")


def load_by(daemon, fd):
    with daemon.raw() as raw:
        raw.call("load", {}, [fd])
    return "loaded"


def can_connect(daemon):
    try:
        with daemon.raw() as raw:
            return raw.call("ping") == {}
    except (ConnectionError, RawError):
        return False


# ---- sockets that linger -------------------------------------------------------------------


@pytest.fixture
def lingering():
    """lingering() -> a TCP socket with unsent bytes whose close() waits until the test ends."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    try:
        listener.bind(("127.0.0.1", 0))
    except OSError as error:
        pytest.skip(f"no TCP here: {error}")
    listener.listen(1)
    sender = socket.create_connection(listener.getsockname())
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(bytes(65536))
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    taken = [False]

    def take():
        taken[0] = True
        return sender.detach()

    yield take
    listener.close()  # unread: the other side is reset and waits no longer
    if not taken[0]:
        sender.close()


def send_and_forget(daemon, raw, packets, fd):
    """Send packets, the last with the only descriptor that is left then: the close here does
    not wait, the daemon's would."""
    daemon.process.send_signal(signal.SIGSTOP)
    for packet in packets[:-1]:
        raw.send_bytes(packet)
    raw.send_bytes(packets[-1], [fd])
    os.close(fd)
    daemon.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_socket_that_lingers_holds_nobody_up(daemon, make_model, lingering, is_announced):
    params = {"fds": 1} if is_announced else {}
    with daemon.raw() as raw:
        send_and_forget(daemon, raw, [msgpack.packb([0, 9, "load", params])], lingering())
        serves_at_once(daemon, make_model)


def test_a_socket_that_lingers_in_what_was_never_read_holds_nobody_up(daemon, make_model,
                                                                      lingering):
    with daemon.raw() as raw:
        # An empty packet reads as the end: the rest stays in the socket.
        send_and_forget(daemon, raw, [b"", msgpack.packb([0, 9, "load", {"fds": 1}])],
                        lingering())
        assert raw.is_closed()
    serves_at_once(daemon, make_model)


def test_a_connection_that_is_shed_with_a_socket_that_lingers_holds_nobody_up(daemon, make_model,
                                                                              lingering):
    daemon.tell("fault accept:1:EMFILE:once")
    daemon.process.send_signal(signal.SIGSTOP)
    with daemon.raw(hello=False) as early:
        send_and_forget(daemon, early, [b"x"], lingering())
        serves_at_once(daemon, make_model)


@pytest.mark.fault("F33")
def test_the_daemon_ends_what_it_can_while_a_close_waits(start_daemon, silent_file, send):
    daemon = start_daemon(check=False)
    send(daemon, silent_file.path, CASES["refused"])
    wait_until(lambda: is_in_close(daemon), 5.0 * slowness(), "a close that waits")
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "ended" in daemon.log(), 5.0 * slowness(), "the end")
    assert not daemon.socket.exists()
    silent_file.end()  # the kernel lets no process go whose thread waits here
    assert daemon.process.wait(10) == 0


# ---- no descriptor at all ------------------------------------------------------------------


def cpu_seconds(daemon):
    fields = pathlib.Path(f"/proc/{daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.fault("P15")
def test_without_even_the_spare_descriptor_the_daemon_does_not_spin(daemon):
    daemon.tell("fault accept:1:EMFILE:ever;open:1:ENFILE:ever")
    with daemon.raw(hello=False) as shed, daemon.raw(hello=False) as waiting:
        assert shed.is_closed()  # it took the spare descriptor
        before = cpu_seconds(daemon)
        time.sleep(1)
        assert cpu_seconds(daemon) - before < 0.2 * slowness()
        daemon.tell("clear")
        waiting.send([0, 1, "hello", {"protocol": [1, 1], "client": "raw/1"}])
        assert waiting.wait(1)[0] is None  # taken when there are descriptors again
    daemon.tell("fault accept:1:EMFILE:once")
    with daemon.raw(hello=False) as shed:
        assert shed.is_closed()  # there is a spare one again
    assert can_connect(daemon)
