# SPDX-License-Identifier: Apache-2.0
"""limits.ram-per-user: one user may have all memory, until somebody else wants some of it."""
import json
import os
import socket
import time

import pytest
from conftest import RawError, close_all, let_others_in, opened, slowness, wait_until
from test_ctl import ctl_json
from test_wire_hostile import needs_root

MIB = 1 << 20
ALICE, BOB, CAROL = 3001, 3002, 3003
pytestmark = needs_root


class Person:
    """Somebody with a connection, in a process of his own: says one load or reserve at a time."""

    def __init__(self, daemon, uid):
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(60 * slowness())
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.sock.close()
                self.live(daemon, uid, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def live(self, daemon, uid, sock):
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        raw = daemon.raw(timeout=60.0 * slowness())
        while order := sock.recv(65536):
            path, params = json.loads(order)
            try:
                if path == "reserve":
                    answer = raw.call(path, params)
                    sock.send(json.dumps(answer).encode())
                    continue
                with opened(path) as fd:
                    result, fds = raw.call_fds("load", {"backing": "image", **params}, [fd])
                close_all(fds)
                answer = {"evicted": [one.get("name") for one in result.get("evicted", [])]}
            except RawError as failure:
                answer = failure.error
            sock.send(json.dumps(answer).encode())

    def begin(self, path, **params):
        self.sock.send(json.dumps([str(path), params]).encode())

    def answer(self):
        return json.loads(self.sock.recv(65536))

    def load(self, path, **params):
        self.begin(path, **params)
        return self.answer()

    def reserve(self, mib):
        return self.load("reserve", device="cpu", bytes=mib * MIB)

    def end(self):
        self.sock.send(b"")  # a close would not do: later ones have inherited this end
        os.waitpid(self.pid, 0)
        self.sock.close()


@pytest.fixture
def people(request, start_daemon):
    """people(settings…) -> (daemon, {uid: Person}) of 64 MiB for all."""
    started = []

    def start(*settings):
        daemon = start_daemon("memory.ram=64M", "memory.reserve=0", *settings)
        os.chmod(daemon.folder, 0o755)
        os.chmod(daemon.socket, 0o666)
        found = {uid: Person(daemon, uid) for uid in (ALICE, BOB, CAROL)}
        started.extend(found.values())
        return daemon, found

    yield start
    for person in started:
        person.end()


@pytest.fixture
def model(make_model):
    """model(number, MiB) -> a file that everybody may read."""

    def make(number, size=12):
        path = make_model(f"m{number}.safetensors", size=size * MIB - 65536, seed=number)
        let_others_in(path)
        os.chmod(path, 0o644)
        return path

    return make


def held(daemon):
    """Names of the models whose bytes are there."""
    return sorted(one["name"][:-12] for one in daemon.models() if one["where"])


def policy(**said):
    return {"policy": said}


def test_within_the_share_the_longest_idle_goes_as_ever(people, model):
    daemon, who = people()
    assert who[BOB].load(model(1))["evicted"] == []  # the longest idle, of the lowest priority
    for number in (2, 3, 4, 5):
        assert who[ALICE].load(model(number), **policy(priority=100))["evicted"] == []
    assert held(daemon) == ["m1", "m2", "m3", "m4", "m5"]
    who[CAROL].load(model(6))
    assert held(daemon) == ["m2", "m3", "m4", "m5", "m6"], "48 of 64 are within the share"


@pytest.mark.fault("M04")
def test_one_who_fills_the_memory_makes_room_for_others(people, model):
    daemon, who = people("limits.ram-per-user=50%")
    assert who[BOB].load(model(1))["evicted"] == []
    for number in (2, 3, 4, 5):
        assert who[ALICE].load(model(number), **policy(priority=100))["evicted"] == []
    for number, left in ((6, 3), (7, 2)):
        who[CAROL].load(model(number))
        owners = [one["uid"] for one in ctl_json(daemon, "ps")["models"] if one["where"]]
        assert owners.count(ALICE) == left and owners.count(BOB) == 1


@pytest.mark.fault("M04")
def test_alone_one_may_have_all_and_what_is_pinned_stays(people, model):
    daemon, who = people()
    for number in (1, 2, 3, 4, 5):
        assert who[ALICE].load(model(number), **policy(pin=True))["evicted"] == []
    error = who[BOB].load(model(6))
    assert error["code"] == "no-memory" and error["detail"]["uids"] == [ALICE]
    share = f"uid {ALICE} has 59.7M, more than its share of 51.2M (limits.ram-per-user)"
    assert share in error["message"], error["message"]
    assert held(daemon) == ["m1", "m2", "m3", "m4", "m5"]
    with daemon.raw() as raw:
        refused = [one for one in raw.call("events.history")["records"] if one["type"] == "refused"]
    assert share in refused[-1]["why"]


def contest(daemon, who, model):
    """Alice has 48 of 64 pinned. 12 come free when Carol's load is over, and Alice and Bob, who came
    after her, wait for them and would use them. The three answers."""
    for number in (1, 2, 3, 4):
        assert who[ALICE].load(model(number), **policy(pin=True))["evicted"] == []
    daemon.tell("fault memfd_create:1:delay=60000:once")
    who[CAROL].begin(model(5), attach=False)
    wait_until(lambda: daemon.tell("hits memfd_create") == "1", what="her image, long in coming")
    for number, uid in ((6, ALICE), (7, BOB)):
        daemon.tell("fault pread:1:delay=1:ever")  # so that reads are counted
        who[uid].begin(model(number), attach=True)
        wait_until(lambda: int(daemon.tell("hits pread")) > 2, what="reads of its header")
        time.sleep(0.5)  # until that has been read
    daemon.tell("clear")
    return [who[uid].answer() for uid in (CAROL, ALICE, BOB)]


@pytest.mark.fault("M04")
def test_a_load_above_the_share_waits_behind_those_of_others(people, model):
    daemon, who = people()
    carol, alice, bob = contest(daemon, who, model)
    # Whose names others have a model under is not for everybody.
    assert "code" not in carol and bob["evicted"] == [None], "he came last and was let in first"
    assert alice["code"] == "no-memory" and alice["detail"]["uids"] == [ALICE]
    assert held(daemon) == ["m1", "m2", "m3", "m4", "m7"]


def test_without_a_share_the_older_goes_first(people, model):
    daemon, who = people("limits.ram-per-user=100%")
    carol, alice, bob = contest(daemon, who, model)
    assert "code" not in carol and alice["evicted"] == [None]
    assert bob["code"] == "no-memory" and "share" not in bob["message"]
    assert held(daemon) == ["m1", "m2", "m3", "m4", "m6"]


@pytest.mark.fault("M04")
def test_reservations_of_one_user_stay_within_the_share(people, model):
    daemon, who = people("limits.ram-per-user=50%")
    error = who[ALICE].reserve(60)
    assert error["code"] == "no-memory" and not error["retryable"]
    assert "token" in who[ALICE].reserve(20)
    error = who[ALICE].reserve(20)
    assert error["code"] == "no-memory" and error["retryable"]
    assert error["message"] == (f"one user may reserve 32.0M of ram (limits.ram-per-user): "
                                f"uid {ALICE} has 20.0M reserved and asks for 20.0M more")
    assert error["detail"]["free"] == 12 * MIB
    assert who[BOB].load(model(1))["evicted"] == []
    assert "token" in who[BOB].reserve(10), "his is another share"
    with daemon.raw() as root:  # whose word it is how much there is for all
        assert root.call("release", {"token": root.call(
            "reserve", {"device": "cpu", "bytes": 33 * MIB})["token"]}) == {}


@pytest.mark.fault("M04")
def test_what_one_has_reserved_counts_in_his_share(people, model):
    daemon, who = people("limits.ram-per-user=50%")
    assert who[BOB].load(model(1))["evicted"] == []  # the longest idle, and of the lowest priority
    assert who[ALICE].load(model(2), **policy(priority=100))["evicted"] == []
    assert "token" in who[ALICE].reserve(24)
    who[CAROL].load(model(3, size=20))
    assert held(daemon) == ["m1", "m3"]
