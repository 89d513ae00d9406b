# SPDX-License-Identifier: Apache-2.0
"""Who may have what lies on a device: processes of one user share its blocks, another user has the
sealed copy in RAM or none, and only an administrator may move what another placed."""
import os
import re
import socket

import msgpack
import pytest
from conftest import RawError, close_all, slowness, wait_until
from placed import MIB, account, attach, load, make_blocks
from test_ctl import ctl
from test_wire_hostile import needs_root

ALICE, BOB = 3001, 3002
pytestmark = needs_root
SLOW = 60 * slowness()


class Person:
    """Processes of one user, each with a connection: does one thing at a time and says how."""

    def __init__(self, daemon, uid):
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(SLOW)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.sock.close()
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                self.live(daemon, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def live(self, daemon, sock):
        self.raw = daemon.raw(timeout=SLOW)
        self.lease = None
        while order := sock.recv(65536):
            deed, arguments, params = msgpack.unpackb(order)
            try:
                answer = getattr(self, "do_" + deed)(*arguments, **params)
            except RawError as failure:
                answer = {"error": failure.error}
            except BaseException as failure:  # whatever it is, the test shows it
                answer = {"wrong": repr(failure)}
            sock.send(msgpack.packb(answer))

    def told(self, lease):
        """What a lease's bytes come to, and where each comes from."""
        self.lease = lease
        try:
            found = lease.tensors()
        except RawError as failure:
            return {"error": failure.error}
        return {"tensors": {name: hash_of(data) for name, data in found.items()},
                "on": lease.bytes_on(), "generation": lease.result.get("generation"),
                "inodes": sorted(os.fstat(fd).st_ino for _d, _n, fd in lease.segments.values())}

    def do_load(self, path, allocation=None, **params):
        return self.told(load(self.raw, path, allocation, **params))

    def do_attach(self, path):
        return self.told(attach(self.raw, path))

    def do_look(self):
        return self.told(self.lease)

    def do_close(self):
        self.lease.close()
        self.lease = None

    def do_map_of(self, lease):
        """Blocks of a lease by its number, whosever it is."""
        _result, fds = self.raw.call_fds("map", {"lease": lease, "blocks": [0, 1000]})
        close_all(fds)
        return len(fds)

    def do_lease(self):
        return self.lease.number

    def do_call(self, method, params):
        return self.raw.call(method, params)

    def do(self, deed, *arguments, **params):
        self.sock.send(msgpack.packb([deed, [str(one) if isinstance(one, os.PathLike) else one
                                             for one in arguments], params]))
        answer = msgpack.unpackb(self.sock.recv(65536))
        assert not isinstance(answer, dict) or "wrong" not in answer, answer
        return answer

    def refused(self, deed, *arguments, **params):
        answer = self.do(deed, *arguments, **params)
        assert isinstance(answer, dict) and "error" in answer, answer
        return answer["error"]

    def end(self):
        self.sock.send(b"")
        os.waitpid(self.pid, 0)
        self.sock.close()


def hash_of(data):
    return [len(data), sum(data[::61]), data[:8].hex()]


@pytest.fixture
def daemon(start_daemon):
    daemon = start_daemon("sim.count=2", "sim.memory=64M", "gpu.budget=100%", "memory.ram=256M",
                          "memory.reserve=0")
    os.chmod(daemon.folder, 0o755)
    os.chmod(daemon.socket, 0o666)
    return daemon


@pytest.fixture
def person(daemon):
    """person(uid) -> a Person in a process of its own"""
    people = []

    def start(uid):
        people.append(Person(daemon, uid))
        return people[-1]

    yield start
    for one in people:
        one.end()


@pytest.fixture
def make(daemon):
    """make(name, sizes, mode) -> (path, {name: hash}) of a file that everybody may read, or less."""
    folder = daemon.folder / "models"
    folder.mkdir()
    os.chmod(folder, 0o755)

    def one(name, sizes, mode=0o644, **options):
        path = folder / f"{name}.safetensors"
        expected = make_blocks(path, sizes, **options)
        os.chown(path, ALICE, ALICE)
        os.chmod(path, mode)
        return path, {key: hash_of(data) for key, data in expected.items()}
    return one


def used(raw, name):
    return account(raw, name)["used"]


def test_processes_of_one_user_share_one_copy_on_a_card(daemon, person, make, raw):
    path, expected = make("m", [2 * MIB] * 4)
    first, second = person(ALICE), person(ALICE)
    mine = first.do("load", path, "sim:0,60%;sim:1,40%")
    before = used(raw, "sim:0"), used(raw, "sim:1")
    theirs = second.do("attach", path)
    same = second.do("load", path, "sim:0,60%;sim:1,40%")
    assert mine["tensors"] == theirs["tensors"] == same["tensors"] == expected
    assert mine["inodes"] == theirs["inodes"] == same["inodes"] and len(mine["inodes"]) == 5
    assert (used(raw, "sim:0"), used(raw, "sim:1")) == before
    first.do("close")
    assert second.do("look")["tensors"] == expected, "it does not go with who brought it"


@pytest.mark.parametrize("allocation", ["sim:0", "sim:0,50%;cpu,50%"])
def test_another_user_has_no_block_of_a_card_but_a_sealed_copy_in_ram(
        daemon, person, make, raw, allocation):
    path, expected = make("m", [2 * MIB] * 4)
    alice, bob = person(ALICE), person(BOB)
    placed = alice.do("load", path, allocation)
    before = used(raw, "sim:0"), used(raw, "sim:1")
    his = bob.do("load", path)
    assert his["tensors"] == expected and set(his["on"]) == {"cpu"} and his["inodes"] == []
    assert (used(raw, "sim:0"), used(raw, "sim:1")) == before, "nothing on a card for him"
    assert alice.do("look") == placed and placed["tensors"] == expected
    attached = bob.do("attach", path)
    assert attached["tensors"] == expected and set(attached["on"]) == {"cpu"}
    # And hers still lies where she placed it.
    again = alice.do("attach", path)
    assert again["tensors"] == expected and again["on"] == placed["on"], again["on"]


def test_another_user_is_served_from_ram_though_the_card_is_full(daemon, person, make, raw):
    path, expected = make("m", [2 * MIB] * 4)
    alice, bob = person(ALICE), person(BOB)
    alice.do("load", path, "sim:0,60%;cpu,40%")
    bob.do("load", path)
    for one in alice, bob:
        one.do("close")
        one.do("call", "ping", {})
    token = raw.call("reserve", {"device": "sim:0", "bytes": 60 * MIB})["token"]
    listed = [one for one in raw.call("list")["models"] if one["name"].startswith("m.")]
    assert listed[0]["state"] == "partial", listed
    row = next(line for line in ctl(daemon, "ps").stdout.splitlines() if line.startswith("m."))
    assert "file" not in row and re.search(r" ram( 100%)? ", row), "all of it is in memory"
    for deed in "load", "attach":
        theirs = bob.do(deed, path)
        assert theirs.get("tensors") == expected and theirs["on"].keys() == {"cpu"}, theirs
        bob.do("close")
    assert alice.refused("load", path)["code"] == "no-memory"
    raw.call("release", {"token": token})
    assert alice.do("load", path)["tensors"] == expected


def test_who_uses_it_from_ram_keeps_nothing_on_another_users_card(daemon, person, make, raw):
    """He maps no block: neither do they stay for him, nor are they held by him, nor is he asked."""
    path, expected = make("m", [2 * MIB] * 8)
    alice, bob = person(ALICE), person(BOB)
    alice.do("load", path, "sim:0,60%;cpu,40%")
    bob.do("load", path)
    holders = {one["pid"]: one["held_bytes"]
               for one in raw.call("show", {"model": path.name})["clients"]}
    assert 16 * MIB < holders[bob.pid] < 17 * MIB, "his image"
    assert used(raw, "sim:0") > 8 * MIB
    alice.do("close")
    token = raw.call("reserve", {"device": "sim:0", "bytes": 60 * MIB})["token"]
    assert account(raw, "sim:0")["held"] == 0 and used(raw, "sim:0") < 4 * MIB
    assert bob.do("look")["tensors"] == expected
    raw.call("release", {"token": token})
    assert alice.do("load", path)["tensors"] == expected
    raw.call("unload", {"select": {"models": [path.name]}})
    alice.do("close")
    wait_until(lambda: used(raw, "sim:0") == 0, what="the card empty")
    assert bob.do("look")["tensors"] == expected


def test_what_a_client_says_of_itself_is_for_its_own_user(daemon, person, make):
    """For another one it has the name that the kernel has."""
    path, _expected = make("open", [MIB])
    with daemon.raw(timeout=SLOW, hello=False) as raw:
        raw.call("hello", {"protocol": [1, 1], "client": "raw/1", "label": "secret project"})
        lease = load(raw, path)
        bob, root = person(BOB), person(0)
        bob.do("load", path)
        for who, is_told in ((bob, False), (root, True)):
            listed = who.do("call", "list", {})["models"][0]["users"]
            shown = who.do("call", "show", {"model": path.name})["clients"]
            kept = who.do("call", "unload", {"select": {"models": [path.name]}})
            holders = [one["holders"][0] for one in kept["held"] if "holders" in one]
            for several in (listed, shown, holders):
                assert any("secret" in one["comm"] for one in several) == is_told, several
        lease.close()


def test_the_number_of_a_lease_opens_no_door(person, make):
    path, _ = make("m", [2 * MIB] * 2)
    alice, bob, other = person(ALICE), person(BOB), person(ALICE)
    alice.do("load", path, "sim:0")
    number = alice.do("lease")
    bob.do("load", path)
    for one in (bob, other):
        assert one.refused("map_of", number)["code"] == "not-found"
    own = bob.do("lease")
    assert own != number
    answer = bob.do("map_of", own)
    assert answer == 0 or answer["error"]["code"] == "not-allowed"


def test_a_file_that_he_may_not_open_he_does_not_have_from_ram_either(person, make):
    path, _ = make("m", [2 * MIB] * 2, mode=0o600)
    alice, bob = person(ALICE), person(BOB)
    alice.do("load", path, "sim:0,50%;cpu,50%")
    answer = bob.refused("call", "attach", {"model": path.name, "map": True})
    assert answer["code"] in ("not-found", "not-allowed"), answer
    answer = bob.refused("call", "place", {"model": path.name, "allocation": "cpu"})
    assert answer["code"] in ("not-found", "not-allowed"), answer


def test_who_placed_a_model_is_the_one_who_may_move_it_and_an_administrator(
        daemon, person, make, raw):
    path, expected = make("m", [2 * MIB] * 4)
    alice, bob = person(ALICE), person(BOB)
    placed = alice.do("load", path, "sim:0")
    order = {"model": path.name, "allocation": "sim:1"}
    assert bob.refused("call", "place", order)["code"] == "not-found", "he has not opened it"
    answer = bob.refused("attach", path)
    assert answer["code"] == "not-resident" and "load it first" in answer["hint"], answer
    assert bob.do("load", path)["tensors"] == expected
    for allocation in ("sim:1", "sim:0,50%;cpu,50%"):
        answer = bob.refused("call", "place", {"model": path.name, "allocation": allocation})
        assert answer["code"] == "not-allowed" and path.name in answer["message"], answer
        answer = bob.refused("load", path, allocation)
        assert answer["code"] == "not-allowed" and answer["hint"], answer
        planned = bob.refused("call", "plan", {"model": path.name, "allocation": allocation})
        assert planned["message"] == answer["message"] and planned["code"] == "not-allowed"
    for verb in "place", "plan":
        answer = bob.refused("call", verb, {"model": path.name, "allocation": "cpu"})
        assert answer["code"] == "not-allowed", answer
    assert alice.do("look") == placed and alice.do("attach", path)["on"] == placed["on"]
    raw.call("place", {"model": path.name, "allocation": "sim:1"})  # the administrator
    moved = alice.do("attach", path)
    assert moved["tensors"] == expected and set(moved["on"]) == {"sim:1"}, "and it is hers still"
    alice.do("call", "place", {"model": path.name, "allocation": "cpu"})
    assert set(alice.do("attach", path)["on"]) == {"cpu"}
    # What lies in RAM alone is anybody's to place.
    bob.do("call", "place", {"model": path.name, "allocation": "sim:0"})
    his = bob.do("attach", path)
    assert his["tensors"] == expected and set(his["on"]) == {"sim:0"}
    answer = alice.refused("call", "place", {"model": path.name, "allocation": "sim:1"})
    assert answer["code"] == "not-allowed"


def test_cards_are_for_all_and_what_is_idle_goes_whosever_it_is(person, make):
    hers, expected = make("hers", [8 * MIB] * 6)
    his, theirs = make("his", [8 * MIB] * 3, seed=70)
    alice, bob = person(ALICE), person(BOB)
    alice.do("load", hers, "sim:0")
    answer = bob.refused("load", his, "sim:0")
    assert answer["code"] == "no-memory" and "sim:0" in answer["message"], answer
    alice.do("close")
    assert bob.do("load", his, "sim:0")["tensors"] == theirs
    bob.do("close")
    back = alice.do("load", hers)
    assert back["tensors"] == expected and set(back["on"]) == {"sim:0"}
