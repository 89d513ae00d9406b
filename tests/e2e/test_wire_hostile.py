# SPDX-License-Identifier: Apache-2.0
"""Hostile and clumsy peers on the real socket (P and D cases). After each, another client is
served as if nothing had been, and the fixture counts the daemon's descriptors."""

import contextlib
import fcntl
import mmap
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time

import msgpack
import pytest
from conftest import (FD_GUARD, PACKET_BYTES, RawError, close_all, list_fds, make_safetensors,
                      opened, slowness, wait_until)

PING = msgpack.packb([0, 7, "ping", {}])


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")


def in_a_process(work, uid=None):
    """What work() returns (a text), done in a process of its own, which then ends."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            text = work()
        except BaseException as failure:  # whatever it is, the parent shows it
            text = repr(failure)
        os.write(writing, str(text).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


def as_nobody(daemon, work):
    os.chmod(daemon.folder, 0o755)
    os.chmod(daemon.socket, 0o666)
    return in_a_process(work, 65534)


def serves(daemon):
    with daemon.raw() as raw:
        assert raw.call("ping") == {}


def goodbye(raw):
    """The code of the goodbye that comes (other packets before it are dropped), then the end."""
    code = None
    while True:
        packet, fds = raw.recv_bytes()
        close_all(fds)
        if not packet:
            return code
        assert code is None, "a packet came after the goodbye"
        message = msgpack.unpackb(packet)
        if message[0] == 2 and message[1] == "goodbye":
            code = message[2]["code"]


@pytest.mark.fault("P01")
def test_who_says_nothing_is_sent_away(start_daemon):
    daemon = start_daemon(environment={"DISTORCHD_TEST_HELLO_MS": str(1000 * slowness())})
    with daemon.raw(hello=False) as mute, daemon.raw() as polite:
        assert goodbye(mute) == "timeout"
        assert polite.call("ping") == {}


@pytest.mark.fault("P02")
def test_an_empty_packet_is_the_end(daemon):
    with daemon.raw() as raw, daemon.raw() as other:
        raw.send_bytes(b"")
        assert raw.is_closed()
        assert other.call("ping") == {}


@pytest.mark.fault("P03")
@pytest.mark.parametrize("size", [1, PACKET_BYTES + 1, 200_000])
def test_packets_of_a_wrong_size_end_their_connection(daemon, size):
    with daemon.raw() as raw:
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        raw.send_bytes(b"\x94" + b"\x00" * (size - 1))
        assert goodbye(raw) == "bad-frame"
    serves(daemon)


@pytest.mark.fault("P03")
def test_a_packet_of_64_kib_is_judged_by_its_content(daemon):
    with daemon.raw() as raw:
        raw.send([0, 1, "show", {"model": "x" * 65000}])
        error = raw.wait(1)[0]
        assert error["code"] == "bad-argument" and error["detail"]["field"] == "model"
        assert raw.call("ping") == {}


@pytest.mark.fault("P04")
def test_no_prefix_of_a_packet_is_waited_on(daemon):
    packet = msgpack.packb([0, 1, "list", {"all": True}])
    for size in range(1, len(packet)):
        with daemon.raw() as raw:
            raw.send_bytes(packet[:size])
            assert goodbye(raw) == "bad-frame", size
    serves(daemon)


@pytest.mark.fault("P05")
def test_a_burst_of_1000_requests_is_answered_in_order(daemon):
    with daemon.raw() as raw, daemon.raw() as other:
        def send():
            for number in range(1, 1001):
                raw.send([0, number, "ping", {}])

        sender = threading.Thread(target=send)
        sender.start()
        answers = []
        while len(answers) < 1000:
            message, _ = raw.recv()
            answers.append(message[1])
            if len(answers) == 500:
                assert other.call("ping") == {}
        sender.join()
        assert answers == list(range(1, 1001))


@pytest.mark.fault("P11")
@pytest.mark.parametrize("rest", [b"\x00", b"\xc0", PING, b"\xc1"])
def test_bytes_after_the_message_end_the_connection(daemon, rest):
    with daemon.raw() as raw:
        raw.send_bytes(PING + rest)
        assert goodbye(raw) == "bad-frame"
    serves(daemon)


@pytest.mark.fault("P13")
@pytest.mark.parametrize("limit, told", [
    ("limits.connections=8", "there are 8 connections, as many as there may be"),
    ("limits.connections-per-user=8", f"uid {os.getuid()} has 8 connections, as many as one user"),
])
def test_one_connection_too_many_is_told_and_both_recover(start_daemon, limit, told):
    daemon = start_daemon(limit)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.raw()) for _ in range(8)]
        with pytest.raises(RawError) as caught:
            stack.enter_context(daemon.raw())
        assert caught.value.code == "too-many"
        name = limit.partition("=")[0]
        assert caught.value.error["message"].startswith(told)
        assert caught.value.error["message"].endswith(f"({name})")
        assert caught.value.error["hint"].endswith(f"have an administrator raise {name}")
        assert clients[0].call("ping") == {}
        clients[0].close()
        wait_until(lambda: _can_connect(daemon), what="a free place")


def _can_connect(daemon):
    try:
        serves(daemon)
        return True
    except (RawError, OSError):
        return False


@pytest.mark.fault("P13:one-uid")
def test_the_65th_connection_of_one_user_is_one_too_many(daemon):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(daemon.raw()) for _ in range(64)]
        with pytest.raises(RawError) as caught:
            stack.enter_context(daemon.raw())
        assert caught.value.code == "too-many"
        assert all(client.call("ping") == {} for client in clients)
        clients[0].close()
        wait_until(lambda: _can_connect(daemon), what="a free place")


# Connects 64 times as a user of its own, says so, and stays.
CROWD = """
import os, sys
uid = int(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from conftest import RawClient
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
clients = [RawClient(sys.argv[1]) for _ in range(64)]
print("READY", flush=True)
for line in sys.stdin:
    print(sum(client.call("ping") == {} for client in clients), flush=True)
"""


@needs_root
@pytest.mark.fault("P13:all")
def test_the_1025th_connection_of_all_users_is_one_too_many(daemon, child):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096:
        pytest.skip("the limit on descriptors is lower than 1,024 connections need")
    os.chmod(daemon.folder, 0o755)
    os.chmod(daemon.socket, 0o666)
    here = os.path.dirname(__file__)
    crowd = [child(CROWD, daemon.socket, 20000 + number, here) for number in range(16)]

    def connect():
        try:
            serves(daemon)
            return "served"
        except RawError as error:
            return error.code

    assert as_nobody(daemon, connect) == "too-many"
    assert connect() == "too-many", "whoever it is"
    assert [one.ask() for one in crowd] == ["64"] * 16
    crowd[0].end()
    wait_until(lambda: as_nobody(daemon, connect) == "served", what="a free place")


@pytest.mark.fault("P14")
def test_those_who_never_say_hello_take_no_place_from_others(start_daemon):
    daemon = start_daemon("limits.connections=8",  # all of them come within that time
                          environment={"DISTORCHD_TEST_HELLO_MS": str(4000 * slowness())})
    with contextlib.ExitStack() as stack:
        mute = [stack.enter_context(daemon.raw(hello=False)) for _ in range(7)]
        serves(daemon)
        extra = [stack.enter_context(daemon.raw(hello=False)) for _ in range(4)]
        assert "too-many" in [goodbye(one) for one in extra]
        assert all(one.is_closed() for one in mute)
        serves(daemon)


@pytest.mark.fault("P15")
@pytest.mark.parametrize("error", ["EMFILE", "ENFILE"])
def test_without_descriptors_a_connection_is_shed_and_the_next_served(daemon, error):
    daemon.tell(f"fault accept:1:{error}:once")
    with daemon.raw(hello=False) as unlucky:
        assert unlucky.is_closed()
    assert daemon.tell("hits accept") == "1"
    daemon.tell("clear")
    serves(daemon)
    assert "no descriptor for a connection" in daemon.log()


def own_kib(daemon):
    with open(f"/proc/{daemon.pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def fill(raw, message, limit=10_000):
    """Send the message, each time by another id, until it goes no more: there was no room for a
    while, or the daemon closed. How often it went."""
    raw.sock.setblocking(False)
    n_sent = 0
    while n_sent < limit and select.select([], [raw.sock], [], 0.25)[1]:
        try:
            raw.send([0, 1000 + n_sent, *message])
            n_sent += 1
        except BlockingIOError:
            continue  # writable by a part of what a packet needs
        except OSError:
            break
    raw.sock.settimeout(10.0 * slowness())
    return n_sent


@pytest.mark.fault("P16")
def test_who_never_reads_is_not_read_from_and_sent_away(start_daemon):
    daemon = start_daemon(environment={"DISTORCHD_TEST_DRAIN_MS": str(500 * slowness())})
    with daemon.raw() as other:
        def be_deaf():
            """The code of the goodbye, None where it came too late to be sent."""
            n_before = daemon.log().count("took nothing for")
            with daemon.raw() as deaf:
                assert fill(deaf, ["config", {}]) < 10_000, "it reads more than it may answer"
                assert other.call("ping") == {}
                peak = own_kib(daemon)
                wait_until(lambda: daemon.log().count("took nothing for") > n_before,
                           10.0 * slowness(), "the end of patience")
                return goodbye(deaf), peak

        be_deaf()  # what is allocated once
        before = own_kib(daemon)
        seen = [be_deaf() for _ in range(3)]
        assert {code for code, _peak in seen} - {None} == {"timeout"}
        wait_until(lambda: len(other.call("clients")["clients"]) == 1, what="their end")
        if slowness() == 1:  # a sanitizer keeps what was freed for a while
            assert max(peak for _code, peak in seen) - before < 2048, "1 MiB is the limit"
            wait_until(lambda: own_kib(daemon) - before < 256, 5.0, "the memory's return")


def n_answered(raw, method):
    """How many of these requests of all clients were answered, well or not."""
    lines = raw.call("metrics")["text"].splitlines()
    return sum(int(line.split()[-1]) for line in lines
               if line.startswith(f'distorchd_requests_total{{verb="{method}",'))


def long_plan(raw, folder):
    """What asks for a plan of 5 MB; the model is loaded."""
    path = folder / "long.safetensors"
    make_safetensors(path, {f"{i:0>2400}": ("U8", [1]) for i in range(2000)})
    raw.load(path)
    return "plan", {"model": path.name, "allocation": "cpu"}


def test_long_answers_that_nobody_takes_are_few(daemon, tmp_path):
    limit = 64 << 20
    with contextlib.ExitStack() as stack, daemon.raw() as other:
        asked = long_plan(other, tmp_path)
        waiting = []
        for n_asked in range(1, 17):
            deaf = stack.enter_context(daemon.raw())
            waiting.append((deaf, deaf.request(*asked)))
            wait_until(lambda n=n_asked: n_answered(other, "plan") == n, what="the plan")
        with pytest.raises(RawError) as caught:
            other.call(*asked)
        assert caught.value.code == "too-many" and f"{limit} may wait" in str(caught.value)
        sizes = []
        for deaf, number in waiting:
            error, result, fds = deaf.wait(number)
            close_all(fds)
            assert error is None or error["code"] == "too-many" and error["retryable"], error
            sizes.append(0 if error else result["spill"])
        assert limit // 2 < sum(sizes) <= limit, sizes
        assert len(other.call(*asked)["blocks"]) == 2000, "what was taken counts no longer"


def test_long_answers_that_wait_keep_no_descriptors(daemon, tmp_path):
    with daemon.raw() as deaf, daemon.raw() as other:
        asked = long_plan(other, tmp_path)
        before = other.call("status")["open_fds"]
        numbers = [deaf.request(*asked) for _ in range(31)]
        wait_until(lambda: n_answered(other, "plan") > 1, what="plans")
        wait_until(lambda: other.call("status")["open_fds"] == before, what="those of plans")
        assert other.call("ping") == {}
        for error, _result, fds in map(deaf.wait, numbers):
            close_all(fds)
            assert error is None or error["code"] == "too-many"
        number = deaf.request("ping")
        assert deaf.wait(number)[0] is None


def test_who_takes_long_answers_gets_them_all(daemon, tmp_path):
    with daemon.raw() as raw, daemon.raw() as other:
        asked = long_plan(raw, tmp_path)
        for _ in range(20):
            number = raw.request(*asked)
            assert len(other.call(*asked)["blocks"]) == 2000
            error, result, fds = raw.wait(number)
            close_all(fds)
            assert error is None and result["spill"] > 4_000_000


def test_a_long_answer_for_which_there_is_no_memfd_is_an_error(daemon, tmp_path):
    with daemon.raw() as raw:
        asked = long_plan(raw, tmp_path)
        daemon.tell("fault memfd_create:1:ENOMEM:once")
        with pytest.raises(RawError) as caught:
            raw.call(*asked)
        assert caught.value.code == "no-memory"
        assert len(raw.call(*asked)["blocks"]) == 2000


@pytest.mark.fault("P16", "P17")
def test_no_more_than_32_requests_of_one_are_taken_in(daemon, make_model):
    path = make_model(size=8 << 20)
    daemon.tell("fault ftruncate:1:delay=60000:ever")  # of the load's image
    with daemon.raw(timeout=30.0) as raw, daemon.raw() as other, opened(path) as fd:
        loads = [raw.request("load", {}, [fd]) for _ in range(32)]  # they wait for each other
        wait_until(lambda: other.call("status")["loading"] == 1, what="the load's beginning")
        n_sent = fill(raw, ["ping", {}])
        assert 0 < n_sent < 10_000, "the 33rd is not read, and then there is no more room"
        assert not select.select([raw.sock], [], [], 0)[0] or raw.recv()[0][0] == 2
        assert other.call("ping") == {}
        daemon.tell("clear")
        for number in loads:
            assert raw.wait(number)[0] is None
        for number in range(1000, 1000 + n_sent):  # nothing of it was lost
            assert raw.wait(number)[0] is None


def read_a_little(raw):
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, fds = raw.recv_bytes()
            close_all(fds)
            assert packet and msgpack.unpackb(packet)[1] != "goodbye", packet


@pytest.mark.fault("P17")
def test_requests_of_one_who_leaves_are_forgotten(daemon, make_model):
    quick = make_model("quick.safetensors")
    slow = make_model("slow.safetensors", size=8 << 20, seed=2)
    with daemon.raw() as raw:
        raw.load(quick)
    requests = [("load", {}, True), ("list", {"all": True}, False), ("attach", {}, True),
                ("clients", {}, False), ("show", {"model": quick.name}, False)]

    def pipeline():
        """10,000 requests, as fast as they go; the last answers are never read."""
        raw = daemon.raw()
        with opened(quick) as fd, opened(slow) as slow_fd:
            daemon.tell("fault pread:1:delay=2000:ever")
            raw.request("load", {}, [slow_fd])
            raw.sock.setblocking(False)
            n_sent = 0
            while n_sent < 10_000:
                method, params, has_fd = requests[n_sent % len(requests)]
                try:
                    raw.request(method, params, [fd] if has_fd else [])
                    n_sent += 1
                except BlockingIOError:
                    select.select([raw.sock], [raw.sock], [], 1.0)
                    read_a_little(raw)
        return "left"

    assert in_a_process(pipeline) == "left"
    daemon.tell("fault pread:1:delay=1:ever")
    with daemon.raw() as raw:
        wait_until(lambda: len(raw.call("clients")["clients"]) == 1, 30.0 * slowness(),
                   "the client's end")
        assert all(model["leases"] == 0 for model in raw.call("list")["models"])
        assert raw.call("status")["loading"] == 0
        daemon.tell("clear")
        assert raw.load(quick)["source"] == "ram"


@pytest.mark.fault("P18")
def test_who_only_stops_sending_gets_its_answers(daemon):
    with daemon.raw() as raw:
        for number in range(1, 21):
            raw.send([0, 100 + number, "status", {}])
        raw.sock.shutdown(socket.SHUT_WR)
        for number in range(1, 21):
            assert raw.wait(100 + number)[0] is None
        assert raw.is_closed()
    for _ in range(50):
        with daemon.raw() as raw:
            raw.send([0, 100, "status", {}])
    serves(daemon)


@pytest.mark.fault("P19")
def test_an_answer_that_cannot_be_made_is_a_prepared_error(daemon):
    with daemon.raw() as raw:
        codes = set()
        for nth in range(1, 30):
            daemon.tell(f"fault malloc:{nth}:ENOMEM:once")
            try:
                raw.call("status")
                codes.add(None)
            except RawError as error:
                codes.add(error.code)
            except ConnectionError:
                break  # the one prepared packet of this connection is used up
        daemon.tell("clear")
        assert "no-memory" in codes
    serves(daemon)


@needs_root
@pytest.mark.fault("P21")
def test_who_is_not_in_the_group_is_refused_by_mode_and_by_credentials(start_daemon):
    daemon = start_daemon("access.group=daemon")

    def connect():
        with daemon.raw(hello=False) as raw:
            return goodbye(raw)

    os.chmod(daemon.folder, 0o755)
    mode = os.stat(daemon.socket).st_mode & 0o777
    assert mode & 0o007 == 0, oct(mode)
    assert as_nobody(daemon, connect) == "not-allowed"


@needs_root
@pytest.mark.fault("P22")
def test_a_plain_user_may_not_administer(daemon, make_model):
    path = make_model()
    os.chmod(path.parent.parent.parent, 0o755)
    with daemon.raw() as raw:
        raw.load(path)

    def verify():
        with daemon.raw() as raw:
            try:
                return raw.call("verify", {"models": ["model.safetensors"]})
            except RawError as error:
                return error.code

    assert as_nobody(daemon, verify) == "not-allowed"
    assert "uid 65534" in daemon.log() and "verify" in daemon.log()


@needs_root
@pytest.mark.fault("F30")
def test_another_users_model_is_not_found_by_id_or_name(daemon, make_model):
    path = make_model("secret.safetensors")
    with daemon.raw() as raw:
        raw.load(path)
        model = raw.call("list")["models"][0]["id"]

    def probe():
        codes = []
        with daemon.raw() as raw:
            for method, params in (
                    ("show", {"model": model}), ("show", {"model": model[:6]}),
                    ("show", {"model": "secret.safetensors"}),
                    ("attach", {"model": model, "map": True}),
                    ("set", {"model": model, "policy": {"pin": True}}),
                    ("unload", {"select": {"models": [model]}})):
                try:
                    raw.call(method, params)
                    codes.append("let through")
                except RawError as error:
                    codes.append(error.code)
        return codes

    assert as_nobody(daemon, probe) == str(["not-found"] * 6)
    assert [m["state"] for m in daemon.models()] == ["resident"]


@pytest.mark.fault("P24")
@pytest.mark.parametrize("spoken, code", [([2, 3], "version"), ([0, 0], "version"),
                                          (None, "bad-argument"), ([3, 1], None)])
def test_a_version_that_is_not_shared_is_refused_with_both_ranges(daemon, spoken, code):
    with daemon.raw(hello=False) as raw:
        params = {"client": "raw/1"} | ({} if spoken is None else {"protocol": spoken})
        with pytest.raises(RawError) as caught:
            raw.call("hello", params)
        assert code is None or caught.value.code == code
        if code == "version":
            text = caught.value.error["message"]
            assert f"{spoken[0]}" in text and f"{spoken[1]}" in text and "1" in text
            detail = caught.value.error["detail"]
            assert (detail["min"], detail["max"]) == (1, 1)
            assert raw.is_closed()
    with daemon.raw(hello=False) as newer:
        assert newer.call("hello", {"protocol": [1, 9], "client": "newer/9"})["protocol"] == 1


@pytest.mark.fault("P25")
def test_ids_and_cancels_are_defined(daemon, make_model):
    with daemon.raw() as raw:
        for _ in range(2):  # an id that was answered may come again
            raw.send([0, 500, "ping", {}])
            assert raw.wait(500)[0] is None
        answers = [raw.call("cancel", {"id": 424242}) for _ in range(2)]
        assert answers[0] == answers[1]
    daemon.tell("fault pread:1:delay=50:ever")
    with daemon.raw() as raw, opened(make_model(size=8 << 20)) as fd:
        raw.send([0, 900, "load", {"fds": 1}], [fd])
        raw.send([0, 900, "ping", {}])
        assert goodbye(raw) == "bad-frame"
    daemon.tell("clear")
    serves(daemon)


@pytest.mark.fault("D04")
def test_descriptors_where_none_or_another_number_is_due(daemon, make_model):
    with daemon.raw() as raw, opened(make_model()) as fd:
        for method, fds in (("ping", [fd]), ("load", []), ("load", [fd] * 3)):
            with pytest.raises(RawError) as caught:
                raw.call(method, {}, fds)
            assert caught.value.code in ("bad-fd", "bad-argument"), method
        assert raw.call("ping") == {}
        for announced, sent in ((2, 1), (1, 0), (0, 1), (1, 2)):
            with daemon.raw() as liar:
                params = {"fds": announced} if announced else {}
                liar.send([0, 9, "load", params], [fd] * sent)
                assert goodbye(liar) == "bad-frame", (announced, sent)
    serves(daemon)


DEAF = """
import os, sys, time
sys.path.insert(0, sys.argv[3])
from conftest import RawClient
raw = RawClient(sys.argv[1])
fd = os.open(sys.argv[2], os.O_RDONLY)
for _ in range(20):
    raw.request("attach", {"map": True}, [fd])
print("READY")
sys.stdin.readline()
"""


@pytest.mark.fault("D06")
def test_who_never_takes_its_descriptors_harms_nobody(start_daemon, make_model, child):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0",
                          environment={"DISTORCHD_TEST_DRAIN_MS": "700"})
    path = make_model()
    with daemon.raw() as other:
        other.load(path)
        before = other.call("status")["open_fds"]
        deaf = child(DEAF, daemon.socket, path, os.path.dirname(__file__))
        for _ in range(10):
            result, fds = other.attach(path)
            close_all(fds)
            other.call("unmapped", {"lease": result["lease"]})
            other.call("detach", {"lease": result["lease"]})
        wait_until(lambda: "took nothing for 700 ms" in daemon.log(), what="the goodbye")
        deaf.end()  # it may have mapped what it was sent; its end proves that it has not
        wait_until(lambda: len(other.call("clients")["clients"]) == 1, what="its end")
        wait_until(lambda: other.call("status")["open_fds"] <= before, what="its descriptors")


def load_and_attach(daemon, path):
    with daemon.raw() as raw:
        raw.load(path)
        raw.attach(path)


@pytest.mark.fault("D09")
@pytest.mark.skipif(not FD_GUARD.exists(), reason="sanitizers have a guard of their own")
def test_no_error_path_closes_twice(daemon, make_model):
    """The guard is in every daemon of these tests; here are error paths it is made for."""
    with open(f"/proc/{daemon.pid}/maps") as maps:
        assert "libfd_guard" in maps.read()
    path = make_model()
    for call in ("recvmsg", "sendmsg", "accept", "memfd_create", "ftruncate", "mmap", "fcntl",
                 "fstat", "statx", "pread", "malloc", "pthread_create"):
        for nth in range(1, 12):
            daemon.tell(f"fault {call}:{nth}:EIO:once")
            in_a_process(lambda: load_and_attach(daemon, path))
            daemon.tell("clear")
            daemon.unload_all()
    serves(daemon)


@pytest.mark.fault("D12")
def test_an_image_that_is_passed_on_is_still_sealed(daemon, make_model):
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path)
        result, fds = raw.attach(path)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        socket.send_fds(ours, [b"x"], [fds[-1]])
        close_all(fds)
        _, passed, _, _ = socket.recv_fds(theirs, 1, 1)
        seals = fcntl.fcntl(passed[0], 1034)  # F_GET_SEALS
        assert seals & 0x17 == 0x17, hex(seals)  # seal, shrink, grow, future write
        for change in (lambda: os.ftruncate(passed[0], 0), lambda: os.write(passed[0], b"x"),
                       lambda: mmap.mmap(passed[0], 4096, mmap.MAP_SHARED)):
            with pytest.raises(OSError):
                change()
        close_all(passed)
        ours.close()
        theirs.close()
        raw.call("unmapped", {"lease": result["lease"]})
        raw.call("detach", {"lease": result["lease"]})


@pytest.mark.fault("D14")
def test_nothing_of_the_daemon_or_the_library_is_inherited(daemon, make_model, connect):
    path = make_model()
    with connect().open(str(path)) as weights:
        assert weights["t.0"].nbytes
        for entry in os.listdir(f"/proc/{daemon.pid}/fdinfo"):
            if int(entry) <= 2:
                continue
            with contextlib.suppress(FileNotFoundError), \
                    open(f"/proc/{daemon.pid}/fdinfo/{entry}") as lines:
                flags = next(int(line.split()[1], 8) for line in lines if "flags" in line)
                assert flags & os.O_CLOEXEC, (entry, list_fds(daemon.pid))
        # posix_spawn without close_fds: what is not close-on-exec would be seen.
        seen = subprocess.run(
            [sys.executable, "-c", "import os; print(*[os.readlink(f'/proc/self/fd/{n}') "
             "for n in os.listdir('/proc/self/fd') if int(n) > 2 and "
             "os.path.islink(f'/proc/self/fd/{n}')])"],
            close_fds=False, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
        assert "memfd:" not in seen and str(path) not in seen, seen
