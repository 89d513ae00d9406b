# SPDX-License-Identifier: Apache-2.0
"""Client processes that die, stop, fork, exec, hold on or speak another version (C, P23)."""

import array
import fcntl
import os
import signal
import socket
import termios
import time

import pytest
from conftest import (HeldDaemon, RawClient, RawError, close_all, list_fds, make_sparse_model, pattern,
                      slowness, wait_until)

OPEN = """
import sys, distorch
d = distorch.connect(sys.argv[1], label="victim")
w = d.open(sys.argv[2])
"""
READY = "print('READY'); sys.stdin.readline()\n"


def bytes_in_use(daemon):
    """(leases, held bytes) over all models and devices."""
    status = daemon.status()
    return sum(m["leases"] for m in daemon.models()), sum(d["held"] for d in status["devices"])


def lease_ends(daemon):
    wait_until(lambda: bytes_in_use(daemon) == (0, 0), what="the lease's end")


@pytest.mark.fault("C01:idle", "C01:reading", "C01:pin")
@pytest.mark.parametrize("doing", ["idle", "reading", "pinned"])
def test_a_killed_client_gives_its_lease_back(daemon, make_model, child, doing):
    extra = {
        "idle": READY,
        "reading": "print('READY')\nwhile True: sum(w['t.0'].buffer[::4096])\n",
        "pinned": "d.pin(w.id)\n" + READY,
    }[doing]
    path = make_model(size=8 << 20)
    victim = child(OPEN + extra, daemon.socket, path)
    assert bytes_in_use(daemon)[0] == 1
    victim.signal(signal.SIGKILL)
    lease_ends(daemon)
    model = daemon.models()[0]
    assert model["state"] == "resident"
    assert model["pinned"] is (doing == "pinned")


@pytest.mark.parametrize("restart", [False, True])
def test_what_outlives_its_connection_is_let_go_of_at_its_end(start_daemon, distorch, make_model,
                                                             restart):
    daemon = start_daemon(kind=HeldDaemon)
    path = make_model(size=8 << 20)
    with distorch.connect(str(daemon.socket)) as d:
        with d.open(path, backing="image") as weights:
            view = weights["t.0"].buffer
    wait_until(lambda: bytes_in_use(daemon)[0] == 0, what="the connection's end")
    if restart:
        daemon.kill_daemon()
    with daemon.raw() as raw:
        held, = raw.call("unload", {"select": {"all": True}})["held"]
    assert held["holders"][0]["pid"] == os.getpid()
    wait_until(lambda: bytes_in_use(daemon)[1] >= 8 << 20, what="the bytes to be counted as held")
    assert len(bytes(view)) > 0
    del view
    lease_ends(daemon)  # and not with this process


@pytest.mark.fault("C01:between")
def test_a_client_killed_between_the_answer_and_its_descriptors_leaves_nothing(
        daemon, make_model, child):
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path)
    victim = child("""
import array, os, socket, sys
sys.path.insert(0, sys.argv[3])
from conftest import RawClient
raw = RawClient(sys.argv[1])
fd = os.open(sys.argv[2], os.O_RDONLY)
raw.request("attach", {"map": True}, [fd])
print('READY'); sys.stdin.readline()
""", daemon.socket, path, os.path.dirname(__file__))
    wait_until(lambda: bytes_in_use(daemon)[0] == 1, what="the lease")
    victim.signal(signal.SIGKILL)
    lease_ends(daemon)


LOADING = """
import sys, distorch
def begun(progress):
    if progress.bytes > 0:
        print('READY', flush=True)
        begun.said = True
d = distorch.connect(sys.argv[1])
d.load(sys.argv[2], progress=lambda p: getattr(begun, 'said', False) or begun(p))
"""


@pytest.mark.fault("C01:waiting")
def test_a_load_goes_on_for_others_when_its_client_is_killed(daemon, tmp_path, child):
    path = make_sparse_model(tmp_path / "slow.safetensors", 256 << 20)
    daemon.tell("fault pread:2:delay=200:ever")
    victim = child(LOADING, daemon.socket, path)
    with daemon.raw(timeout=50) as raw, open(path, "rb") as file:
        number = raw.request("load", {}, [file.fileno()])
        victim.signal(signal.SIGKILL)
        wait_until(lambda: len(raw.call("clients")["clients"]) == 1, what="its end")
        assert number not in raw.answers
        daemon.tell("clear")
        error, result, _ = raw.wait(number)
    assert error is None and result["model"]["state"] == "resident"
    assert daemon.status()["misses"] == 1


@pytest.mark.fault("C01")
def test_a_load_that_nobody_waits_for_is_cancelled(daemon, tmp_path, child):
    path = make_sparse_model(tmp_path / "slow.safetensors", 256 << 20)
    daemon.tell("fault pread:2:delay=200:ever")
    victim = child(LOADING, daemon.socket, path)
    victim.signal(signal.SIGKILL)
    wait_until(lambda: daemon.status()["loading"] == 0, what="the load's end")
    daemon.tell("clear")
    assert all(not model["where"] for model in daemon.models(everything=True))
    wait_until(lambda: daemon.status()["devices"][0]["used"] == 0, 30, what="the room")


def own_kib(daemon):
    with open(f"/proc/{daemon.pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.mark.fault("C02")
def test_a_stopped_client_is_sent_away_disturbs_nobody_and_keeps_its_memory(
        start_daemon, make_model, child):
    drain_ms = 700 * slowness()
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0",
                          environment={"DISTORCHD_TEST_DRAIN_MS": str(drain_ms)})
    path = make_model(seed=6)
    victim = child(OPEN + "d.subscribe()\nprint('READY')\nsys.stdin.readline()\n"
                   "print(bytes(w['t.0'].buffer[:64]).hex())\n"
                   "sys.stdin.readline()\ntry:\n    d.list()\n"
                   "except distorch.Error as error:\n    print(error.code, end=' ')\n"
                   "print(d.server().client > 0, w['t.0'].buffer[63])\n",
                   daemon.socket, path)
    victim.signal(signal.SIGSTOP)
    with daemon.raw() as raw, daemon.raw() as listener:
        listener.call("subscribe", {"events": ["record"]})
        before = own_kib(daemon)
        n_heard = 0
        end = time.monotonic() + 20 * slowness()
        # Events until its socket is full, its own queue grows, and its time is over.
        while f"took nothing for {drain_ms} ms" not in daemon.log():
            assert time.monotonic() < end, "it was never sent away"
            for keep in (True, False) * 20:
                raw.call("set", {"model": path.name, "policy": {"keep": keep}})
            listener.call("ping")  # gets them all meanwhile
            n_heard += len(listener.events)
            assert all(name == "record" for name, _params in listener.events), "an overflow"
            listener.events.clear()
        assert n_heard > 500, "fewer than fill a socket"
        if slowness() == 1:
            assert own_kib(daemon) - before < 4096, "more than one queue's worth"
        wait_until(lambda: [c["connected"] for c in raw.call("clients")["clients"]
                            if c["pid"] == victim.pid] == [False], 10.0, "its connection's end")
        # What it maps stays: held and counted, and whole when it goes on.
        assert raw.call("status")["devices"][0]["used"] >= path.stat().st_size
        report = raw.call("unload", {"select": {"models": [path.name]}})
        assert [outcome["holders"][0]["pid"] for outcome in report["held"]] == [victim.pid]
    victim.signal(signal.SIGCONT)
    assert victim.ask() == pattern(6, 64).hex()
    # It learns of it, and is served again by a new connection.
    said = victim.ask().removeprefix("no-connection ")  # unless it noticed by itself
    assert said == f"True {pattern(6, 64)[63]}"


@pytest.mark.fault("C03")
def test_a_forked_child_opens_a_connection_of_its_own(connect, make_model):
    d = connect()
    weights = d.open(make_model(seed=7))
    mine = d.server().client
    ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            theirs = d.server().client
            same = bytes(weights["t.0"].buffer[:64]) == pattern(7, 64)
            os.write(ends[1], f"{theirs} {same} {len(d.list())}".encode())
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    theirs, same, n_models = os.read(ends[0], 100).decode().split()
    os.close(ends[0])
    os.close(ends[1])
    assert int(theirs) != mine and same == "True" and n_models == "1"
    assert d.server().client == mine
    assert d.list()[0].leases == 1  # the child's end took nothing from the parent
    weights.close()


@pytest.mark.fault("C04")
def test_exec_without_close_releases_everything(daemon, make_model, child):
    path = make_model()
    victim = child(OPEN + "import os\nprint('READY')\nsys.stdin.readline()\n"
                   "os.execv('/bin/sleep', ['sleep', '60'])\n", daemon.socket, path)
    assert bytes_in_use(daemon)[0] == 1
    victim.process.stdin.write("go\n")
    victim.process.stdin.flush()
    wait_until(lambda: open(f"/proc/{victim.pid}/comm").read() == "sleep\n", what="exec")
    links = list_fds(victim.pid)
    assert not any("memfd" in link or "socket" in link for link in links)
    wait_until(lambda: bytes_in_use(daemon)[0] == 0, what="the lease's end")


@pytest.mark.fault("C05")
def test_bytes_stay_held_until_the_process_says_so_or_is_gone(daemon, make_model, child):
    path = make_model(size=4 << 20)
    victim = child(OPEN + "d.close()\n" + READY, daemon.socket, path)  # still mapped
    with daemon.raw() as raw:
        wait_until(lambda: all(not c["connected"] for c in raw.call("clients")["clients"]
                               if c["pid"] == victim.pid), what="the connection's end")
        held = [c for c in raw.call("clients")["clients"] if c["pid"] == victim.pid]
        assert len(held) == 1 and held[0]["held_bytes"] >= 4 << 20
        assert held[0]["comm"]
        report = raw.call("unload", {"select": {"models": ["model.safetensors"]}})
        assert [o["holders"][0]["pid"] for o in report["held"]] == [victim.pid]
        assert raw.call("status")["devices"][0]["used"] >= 4 << 20
    victim.signal(signal.SIGKILL)
    wait_until(lambda: daemon.status()["devices"][0]["used"] == 0, what="the release")


@pytest.mark.fault("C05")
def test_mapping_twice_is_two_leases_and_detach_ends_one(raw, make_model):
    path = make_model()
    raw.load(path)
    first, fds = raw.attach(path)
    second, more = raw.attach(path)
    assert first["lease"] != second["lease"]
    for fd in fds + more:
        os.close(fd)
    assert raw.call("list")["models"][0]["leases"] == 2
    raw.call("detach", {"lease": first["lease"]})
    assert raw.call("list")["models"][0]["leases"] == 1
    with pytest.raises(RawError) as caught:
        raw.call("detach", {"lease": first["lease"]})
    assert caught.value.code == "not-found"
    raw.call("detach", {"lease": second["lease"]})


@pytest.mark.fault("C06")
def test_two_thousand_short_lived_clients_leave_nothing(daemon):
    before = daemon.status()
    for _ in range(2000):
        daemon.raw().close()
    wait_until(lambda: daemon.status()["open_fds"] <= before["open_fds"], what="the descriptors")
    assert daemon.status()["clients"] == before["clients"]


@pytest.mark.fault("C08")
def test_a_cancelled_request_is_answered_once(daemon, raw, tmp_path):
    path = make_sparse_model(tmp_path / "slow.safetensors", 256 << 20)
    with open(path, "rb") as file:
        number = raw.request("load", {"attach": True, "map": True}, [file.fileno()])
    cancel = raw.request("cancel", {"id": number})
    error, result, fds = raw.wait(number)
    assert raw.wait(cancel)[0] is None
    for fd in fds:
        os.close(fd)
    assert (error is None) != (result is None)
    if error is not None:
        assert error["code"] == "cancelled" and not fds
    raw.call("ping")  # and nothing else came: RawClient refuses a second answer


@pytest.mark.fault("C10")
def test_versions_are_negotiated(daemon):
    with daemon.raw(hello=False) as newer:
        result = newer.call("hello", {"protocol": [1, 99], "client": "newer/9"})
        assert result["protocol"] == 1
        newer.call("ping")
        with pytest.raises(RawError) as caught:
            newer.call("status", {"of_version_9": True})
        assert caught.value.code == "unknown-field"
        with pytest.raises(RawError) as caught:
            newer.call("method_of_version_9")
        assert caught.value.code == "unknown-method"
        newer.call("ping")
    with daemon.raw(hello=False) as too_new:
        with pytest.raises(RawError) as caught:
            too_new.call("hello", {"protocol": [2, 3], "client": "newer/9"})
        assert caught.value.code == "version"
        assert too_new.is_closed()


@pytest.mark.fault("P23")
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_a_passed_socket_is_judged_by_who_connected(daemon, make_model):
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path, policy={"keep": True})
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                model = raw.call("list")["models"][0]
                theirs.send(f"{model['keep']} {model.get('name')}".encode())
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ours.recv(100).decode() == "True model.safetensors"
        ours.close()
        theirs.close()
        raw.next_id += 10
        mine = [c for c in raw.call("clients")["clients"] if c["pid"] == os.getpid()]
        assert mine and all(c["uid"] == 0 for c in mine)


def test_the_raw_client_meets_a_refusal_as_an_error(daemon):
    with RawClient(daemon.socket) as raw:
        with pytest.raises(RawError) as caught:
            raw.call("show", {"model": "no-such-model"})
        assert caught.value.code == "not-found"
        assert caught.value.error["message"]


def lease_of(raw, path):
    """A lease of the model, which maps nothing."""
    result, fds = raw.attach(path)
    close_all(fds)
    return result["lease"]


def expect_nothing_held(raw, path):
    raw.call("unload", {"select": {"models": [path.name]}})
    wait_until(lambda: all(client["held_bytes"] == 0 for client in raw.call("clients")["clients"]),
               what="nothing held")


@pytest.mark.fault("C05")
def test_a_detach_is_heard_though_events_were_left_unread(daemon, make_model):
    """Who closes with something unread resets the connection; what he said last counts."""
    path = make_model()
    for _ in range(50):
        raw = daemon.raw()
        raw.call("subscribe")
        raw.load(path)
        lease = lease_of(raw, path)
        with daemon.raw() as other:
            other.load(path, policy={"pin": True})
            other.call("set", {"model": path.name, "policy": {"pin": False}})  # events for raw
        raw.request("detach", {"lease": lease})
        raw.close()  # the answers and the events are unread
        with daemon.raw() as other:
            expect_nothing_held(other, path)


@pytest.mark.fault("C05")
def test_a_detach_is_heard_though_answers_go_nowhere(daemon, make_model):
    """Who closes while more waits to be read than the daemon takes in a turn: the answers to the
    first of it cannot be sent; what was said last counts."""
    path = make_model()
    with daemon.raw() as other:
        other.load(path)
        raw = daemon.raw()
        lease = lease_of(raw, path)
        os.kill(daemon.pid, signal.SIGSTOP)
        for _ in range(40):
            raw.request("ping")
        raw.request("detach", {"lease": lease})
        raw.close()
        os.kill(daemon.pid, signal.SIGCONT)
        expect_nothing_held(other, path)


@pytest.mark.fault("C05", "P16")
def test_a_detach_is_heard_though_nothing_was_read_for_a_while(daemon, make_model):
    """Who takes no answers is not read from; when he is gone, what he said last is."""
    path = make_model()
    with daemon.raw() as other:
        other.load(path)
        raw = daemon.raw()
        lease = lease_of(raw, path)
        n_unread = array.array("i", [0])
        while n_unread[0] == 0:
            raw.request("metrics")
            for _ in range(3):
                other.call("ping")  # turns of the loop: what is read at all is read by then
            fcntl.ioctl(raw.sock, termios.TIOCOUTQ, n_unread)
        raw.request("detach", {"lease": lease})
        raw.close()
        expect_nothing_held(other, path)
