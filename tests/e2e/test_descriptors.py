# SPDX-License-Identifier: Apache-2.0
"""Descriptors that clients send and get, through the real socket (D cases): whatever they are and
however many, the daemon takes what it may read and closes the rest."""

import array
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import select
import socket
import struct

import msgpack
import pytest
from conftest import LIBC, RawError, close_all, list_fds, opened, slowness, wait_until
from placed import attach, load, make_blocks
from test_wire_hostile import as_nobody, goodbye, serves

MIB = 1 << 20
F_ADD_SEALS = 1033
FALLOC_FL_PUNCH_HOLE = 2 | 1  # and keep the size


def rights(*groups):
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", group)) for group in groups]


def packet(number, method, n_fds):
    return msgpack.packb([0, number, method, {"fds": n_fds}])


def is_back(daemon, before):
    wait_until(lambda: daemon.fds_at_rest() <= before, 10.0 * slowness(), "the descriptors' end")


@pytest.mark.fault("D01")
@pytest.mark.parametrize("method", ["load", "ping"])
@pytest.mark.parametrize("number", [33, 64, 253])
def test_more_than_32_descriptors_end_their_connection(daemon, method, number):
    with opened("/dev/null") as fd, daemon.raw() as raw:
        raw.send_bytes(packet(9, method, number), [fd] * number)
        assert goodbye(raw) == "bad-frame"
        with daemon.raw() as another, pytest.raises(OSError) as caught:
            another.send_bytes(packet(9, method, 254), [fd] * 254)
        assert caught.value.errno == errno.EINVAL, "the kernel's own limit"
    serves(daemon)


@pytest.mark.fault("D02")
def test_a_hundred_thousand_descriptors_leave_none(daemon):
    with opened("/dev/null") as fd, daemon.raw() as other:
        before = other.call("status")["open_fds"]

        def await_the_closer(at_most):
            """Who sends faster than they can be closed is sent away; that is not what is tried."""
            wait_until(lambda: other.call("status")["open_fds"] <= before + at_most,
                       10.0 * slowness(), "the end of those that came")

        with daemon.raw() as raw:
            for _ in range(50_000 // 32):  # refused, and the connection goes on
                with pytest.raises(RawError) as caught:
                    raw.call("load", {}, [fd] * 32)
                assert caught.value.code in ("bad-fd", "too-many")
                if caught.value.code == "too-many":
                    await_the_closer(64)
        for _ in range(50_000 // 253 + 1):  # refused with the connection
            await_the_closer(64)
            with daemon.raw() as raw:
                raw.send_bytes(packet(9, "load", 253), [fd] * 253)
                assert goodbye(raw) == "bad-frame"
        await_the_closer(0)


@pytest.mark.fault("D03")
def test_descriptors_in_several_headers_count_together(daemon, make_model):
    credentials = (socket.SOL_SOCKET, 2, struct.pack("iII", os.getpid(), os.getuid(), os.getgid()))
    odd = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"")]
    with opened(make_model()) as fd, daemon.raw() as raw:
        odd[0] = (*odd[0][:2], struct.pack("i", fd) + b"xyz")  # a length that is no multiple
        for control, number, code in (
                (rights([fd], [fd]), 2, "bad-fd"),  # the second is not O_DIRECT: both were seen
                (rights([fd] * 2, [fd] * 2), 4, "bad-fd"),
                ([credentials, *rights([fd])], 1, "ok"), ([*rights([fd]), credentials], 1, "ok"),
                (odd, 1, "ok")):
            raw.next_id += 1
            raw.sock.sendmsg([packet(raw.next_id - 1, "load", number)], control)
            error = raw.wait(raw.next_id - 1)[0]
            assert (error or {"code": "ok"})["code"] == code, error
        raw.sock.sendmsg([packet(99, "load", 1)], rights([fd], [fd]))
        assert goodbye(raw) == "bad-frame", "one more than was announced"


@pytest.mark.fault("D05")
def test_descriptors_cut_by_the_daemons_own_limit_end_their_connection(daemon):
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    with opened("/dev/null") as fd, daemon.raw() as other:
        n_fds = other.call("status")["open_fds"]
        for _ in range(2):
            # What came is closed beside the loop: a number that gets free would be room for more.
            wait_until(lambda: other.call("status")["open_fds"] <= n_fds, what="all of it closed")
            with daemon.raw() as raw:
                is_open = {int(link.split("->")[0]) for link in list_fds(daemon.pid)}
                free = [number for number in range(1000) if number not in is_open]
                # Room for 4 of the 8: the kernel delivers those and says that it cut.
                resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (free[4], before[1]))
                raw.send_bytes(packet(9, "load", 8), [fd] * 8)
                assert goodbye(raw) == "bad-frame"
                resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
        assert other.call("ping") == {}
    assert daemon.log().count("bad packet from pid") == 1, "logged once, not each time"


@pytest.fixture
def card(start_daemon, tmp_path):
    """A daemon with a model of 30 blocks on its only card."""
    daemon = start_daemon("sim.count=1", "sim.memory=128M", "gpu.budget=100%", "memory.ram=64M",
                          "memory.reserve=0")
    make_blocks(tmp_path / "m.safetensors", [4096] * 30)
    return daemon


def limit_fds(daemon, number):
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (number, 4096))


def is_ok(raw):
    device, = (one for one in raw.call("devices")["devices"] if one["name"] == "sim:0")
    return device["state"] == "ok"


def test_want_of_a_descriptor_for_a_block_costs_no_card(card, tmp_path):
    with card.raw(timeout=60.0) as raw:
        lease = load(raw, tmp_path / "m.safetensors", "sim:0")
        limit_fds(card, max(int(fd) for fd in os.listdir(f"/proc/{card.pid}/fd")) + 8)
        with pytest.raises(RawError) as refused:
            raw.call_fds("map", {"lease": lease.number, "blocks": [0, 30]})
        limit_fds(card, 4096)
        assert refused.value.code == "too-many" and "descriptor" in str(refused.value)
        assert is_ok(raw)
        _result, fds = raw.call_fds("map", {"lease": lease.number, "blocks": [0, 30]})
        assert len(fds) == 30
        close_all(fds)
        lease.close()


@pytest.mark.parametrize(("method", "limit"), [("map", 800), ("attach", 800), ("show", 240)])
def test_answers_that_nobody_reads_keep_no_more_descriptors_than_their_share(card, tmp_path,
                                                                             method, limit):
    path = tmp_path / "m.safetensors"
    limit_fds(card, limit)
    with card.raw(timeout=60.0) as raw:
        load(raw, path, "sim:0").close()
        before = raw.call("status")["open_fds"]
        floods = [card.raw(timeout=60.0) for _ in range(8)]
        leases = [attach(flood, path) for flood in floods]
        params = {"map": {"blocks": [0, 30]}, "attach": {"model": path.name},
                  "show": {"model": path.name, "table": True}}[method]
        numbers = [[flood.request(method, params | ({"lease": lease.number} if method == "map"
                                                    else {}))
                    for _ in range(25)] for flood, lease in zip(floods, leases, strict=True)]
        opened_most = 0
        for _ in range(20):
            opened_most = max(opened_most, raw.call("status")["open_fds"] - before)
        assert opened_most <= len(floods) * 2 + limit // 2 + 8, "connections, and the share"
        assert is_ok(raw)
        for flood, asked in zip(floods, numbers, strict=True):
            for number in asked:
                error, _result, fds = flood.wait(number)
                assert error is None or (error["code"] == "too-many" and error["retryable"])
                close_all(fds)
        _result, fds = floods[0].call_fds("map", {"lease": leases[0].number, "blocks": [0, 30]})
        assert len(fds) == 30, "who has read all has his share again"
        close_all(fds)
        for flood, lease in zip(floods, leases, strict=True):
            lease.close()
            flood.close()


def test_files_that_wait_to_be_loaded_take_no_more_than_their_share(card, tmp_path):
    limit_fds(card, 160)
    card.tell("fault pread:1:delay=60000:ever")
    paths = [tmp_path / f"{i}.safetensors" for i in range(90)]
    for path in paths:
        make_blocks(path, [4096])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(card.raw(timeout=60.0)) for _ in range(3)]
        numbers = []
        for i, path in enumerate(paths):
            with opened(path) as fd:
                numbers.append((clients[i % 3], clients[i % 3].request("load", {}, [fd])))
        for client in clients:
            client.call("ping")
        refused = [client.answers[number][0] for client, number in numbers
                   if number in client.answers]
        assert len(refused) == 10 and {error["code"] for error in refused} == {"too-many"}
        assert "take 80 descriptors already, of 80" in refused[0]["message"]
        waiting = [(client, number) for client, number in numbers if number not in client.answers]
        limit_fds(card, 4096)
        card.tell("clear")
        for client, number in waiting:
            assert client.wait(number)[0] is None


def made(kind, folder):
    """(descriptors of that kind, what their refusal says)"""
    if kind == "directory":
        return [os.open(folder, os.O_RDONLY)], "a directory"
    if kind == "fifo":
        os.mkfifo(folder / "fifo")
        ends = [os.open(folder / "fifo", os.O_RDWR)]
        os.write(ends[0], b"unread")
        return ends, "a pipe"
    if kind == "pipe":
        ends = os.pipe()
        os.write(ends[1], b"unread")
        return list(ends), "a pipe"
    if kind == "socket":
        one, other = socket.socketpair()
        other.send(b"unread")
        return [one.detach(), other.detach()], "a socket"
    if kind == "device":
        return [os.open("/dev/zero", os.O_RDONLY)], "a character device"
    if kind == "terminal":
        return list(os.openpty()), "a character device"
    if kind == "epoll":
        with select.epoll() as epoll:
            return [os.dup(epoll.fileno())], "kernel object"
    if kind == "eventfd":
        return [os.eventfd(1)], "kernel object"
    if kind == "path":
        return [os.open(folder, os.O_PATH)], "O_PATH"
    if kind == "write-only":
        return [os.open(folder / "file", os.O_WRONLY | os.O_CREAT)], "for writing only"
    if kind == "memfd":
        fd = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
        os.write(fd, bytes(4096))
        return [fd], "without seals"
    if kind == "proc":
        return [os.open("/proc/self/status", os.O_RDONLY)], "made up by the kernel"
    return [os.open("/sys/kernel/uevent_seqnum", os.O_RDONLY)], "made up by the kernel"


@pytest.mark.fault("D07", "D08")
@pytest.mark.parametrize("kind", ["directory", "fifo", "pipe", "socket", "device", "terminal",
                                  "epoll", "eventfd", "path", "write-only", "memfd", "proc",
                                  "sys"])
def test_what_is_no_readable_file_is_refused_by_its_kind_and_never_read(daemon, tmp_path, kind):
    fds, words = made(kind, tmp_path)
    try:
        with daemon.raw() as raw:
            with pytest.raises(RawError) as caught:
                raw.call("load", {}, fds[:1])
            assert caught.value.code == "bad-fd" and words in caught.value.error["message"]
            if kind in ("fifo", "pipe"):
                os.set_blocking(fds[0], False)
                assert os.read(fds[0], 100) == b"unread"
            if kind == "socket":
                assert os.read(fds[0], 100) == b"unread"
            assert raw.call("ping") == {}
    finally:
        close_all(fds)


@pytest.mark.fault("D10", "F34")
def test_the_descriptor_is_the_right_whatever_the_path_and_the_mode(daemon, make_model):
    path = make_model("deep/down/model.safetensors")
    with opened(path) as fd:
        os.chmod(path, 0)
        os.chmod(path.parent, 0)

        def load():
            with daemon.raw() as raw:
                return raw.call("load", {}, [fd])["model"]["state"]

        try:
            if os.getuid() == 0:  # not even root's rights are the daemon's to lend
                assert as_nobody(daemon, load) == "resident"
            else:
                assert load() == "resident"
        finally:
            os.chmod(path.parent, 0o700)


@pytest.mark.fault("D11")
def test_sockets_within_sockets_are_closed_on_sight(daemon):
    before = daemon.fds_at_rest()
    depth = 0
    inner, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    while depth < 200:
        outer, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            socket.send_fds(end, [b"x"], [inner.fileno()])
        except OSError as error:
            assert error.errno == errno.ETOOMANYREFS
            close_all([outer.detach(), end.detach()])
            break
        inner.close()
        end.close()
        inner = outer
        depth += 1
    assert depth > 0
    with daemon.raw() as raw:
        codes = set()
        try:
            with pytest.raises(RawError) as caught:
                raw.call("load", {}, [inner.fileno()])
            codes.add(caught.value.code)
        except OSError as error:
            assert error.errno == errno.ETOOMANYREFS  # too deep for one socket more
    inner.close()
    other.close()
    assert codes <= {"bad-fd"}
    is_back(daemon, before)


def punch(fd):
    if LIBC.fallocate(fd, FALLOC_FL_PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(4096)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


@pytest.mark.fault("D13", "M05")
def test_whoever_was_given_an_image_can_change_nothing_of_it(daemon, make_model):
    path = make_model(size=1 * MIB)
    with daemon.raw() as raw, opened(path) as file:
        result, fds = raw.call_fds("load", {"attach": True, "map": True}, [file])
        image = fds[1]
        before = os.pread(image, 2 * MIB, 0)
        attempts = {
            "cut": lambda: os.ftruncate(image, 0), "grow": lambda: os.ftruncate(image, 4 * MIB),
            "write": lambda: os.pwrite(image, b"x", 0),
            "allocate": lambda: os.posix_fallocate(image, 0, 4 * MIB),
            "punch a hole": lambda: punch(image), "map": lambda: mmap.mmap(
                image, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            "seal": lambda: fcntl.fcntl(image, F_ADD_SEALS, 8)}
        for what, attempt in attempts.items():
            with pytest.raises(OSError) as caught:
                attempt()
            refusals = (errno.EPERM, errno.EBADF, errno.EINVAL, errno.EACCES)
            assert caught.value.errno in refusals, what
        try:
            again = os.open(f"/proc/self/fd/{image}", os.O_RDWR)
        except PermissionError:
            assert os.getuid() != 0
        else:  # root may open it; the seals hold for root too
            for attempt in (lambda: os.pwrite(again, b"x", 0), lambda: os.ftruncate(again, 0),
                            lambda: punch(again), lambda: mmap.mmap(again, 4096)):
                with pytest.raises(OSError):
                    attempt()
            os.close(again)
        assert os.pread(image, 2 * MIB, 0) == before == path.read_bytes()
        if os.getuid() == 0:
            assert raw.call("verify")["checks"][0]["ok"]
        close_all(fds)
        raw.call("unmapped", {"lease": result["lease"]})
        raw.call("detach", {"lease": result["lease"]})
