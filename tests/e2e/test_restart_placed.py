# SPDX-License-Identifier: Apache-2.0
"""Models over devices come back by themselves after the death of the daemon."""
import os
import time

import pytest
from conftest import HeldDaemon, RawClient, RawError, slowness, wait_until
from placed import MIB, Lease, account, attach, load, make_blocks
from sharded import Sharded
from store import StoredDaemon
from test_ctl import ctl
from test_restart import READER, memfd

CARDS = ("sim.count=2", "sim.memory=64M", "gpu.budget=100%", "memory.ram=256M",
         "memory.reserve=0")
ALLOCATION = "sim:0,16M;sim:1,9M;cpu,*"
OF_ONE = ["placement", "source", "table"]


@pytest.fixture
def cards(start_daemon):
    return start_daemon(*CARDS, kind=HeldDaemon)


@pytest.fixture
def stored(start_daemon):
    return start_daemon(*CARDS, kind=StoredDaemon)


def show(daemon, name):
    with daemon.raw() as raw:
        return raw.call("show", {"model": name})


def parked(daemon):
    """Kinds of what is parked, but for the daemon's own."""
    with daemon.raw() as raw:
        store = raw.call("store")
        assert store["descriptors"] == len(store["parked"]), store
        return sorted(line["kind"] for line in store["parked"]
                      if line["kind"] not in ("ledger", "socket"))


def wait_until_back(daemon, name):
    wait_until(lambda: show(daemon, name)["model"]["state"] == "resident", 10 * slowness(),
               f"{name} back")
    return show(daemon, name)


def place(daemon, path, allocation=ALLOCATION, **params):
    """Load and let go; where its blocks lay."""
    with daemon.raw() as raw:
        lease = load(raw, path, allocation, **params)
        where = [lease.device_of(block) for block in range(len(lease.places))]
        lease.close()
    return where


def check(daemon, path, expected, where=None, generation=None):
    """All its bytes, where they lie now."""
    with daemon.raw() as raw:
        lease = attach(raw, path)
        assert lease.tensors() == expected
        assert where is None or where == \
            [lease.device_of(block) for block in range(len(lease.places))]
        assert generation is None or lease.result["generation"] == generation
        lease.close()


def states(daemon):
    return {model["name"]: model["state"] for model in daemon.models()}


@pytest.mark.fault("S01")
def test_a_placed_model_comes_back_by_itself(cards, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [4 * MIB] * 10)
    where = place(cards, path, policy={"pin": True, "keep": True, "priority": 7})
    assert set(where) == {"cpu", "sim:0", "sim:1"}
    before = show(cards, path.name)
    assert "notice" not in before and parked(cards) == OF_ONE
    with cards.raw() as raw:
        used = {name: account(raw, name)["used"] for name in ("cpu", "sim:0", "sim:1")}
    cards.kill_daemon()
    after = wait_until_back(cards, path.name)["model"]
    assert after["id"] == before["model"]["id"] and after["generation"] == 2
    assert after["allocation"] == ALLOCATION and after["where"] == before["model"]["where"]
    assert after["pinned"] and after["keep"] and after["priority"] == 7
    check(cards, path, expected, where)
    with cards.raw() as raw:
        assert {name: account(raw, name)["used"] for name in used} == used
        # The same words mean the same still: nothing is moved, nothing is read.
        lease = load(raw, path, ALLOCATION)
        assert (lease.result["source"], lease.result["generation"]) == ("ram", 2)
        lease.close()
        assert all(check["ok"] for check in raw.call("verify")["checks"])
    assert parked(cards) == OF_ONE
    cards.unload_all()
    wait_until(lambda: parked(cards) == [], what="an empty store")


def test_a_head_on_a_card_beside_ram_comes_back(cards, tmp_path):
    """"cpu,*" says more than RAM where another device computes."""
    path = tmp_path / "headed.safetensors"
    make_blocks(path, [MIB] * 4)
    assert ctl(cards, "load", path, "--to", "cpu,*", "--compute", "sim:0").returncode == 0
    before = ctl(cards, "show", path.name, "--tensors").stdout.split("TENSOR")[1]
    assert "sim:0" in before
    cards.kill_daemon()
    wait_until_back(cards, path.name)
    assert ctl(cards, "show", path.name, "--tensors").stdout.split("TENSOR")[1] == before


def test_two_deaths_in_a_row_and_one_while_it_comes_back(cards, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [4 * MIB] * 10)
    where = place(cards, path)
    cards.kill_daemon()
    cards.kill_daemon()
    wait_until_back(cards, path.name)
    check(cards, path, expected, where)
    cards.die_at("got-filled:2")
    cards.kill_daemon()
    wait_until(lambda: not cards.point.exists(), 10 * slowness(), "another death")
    wait_until_back(cards, path.name)
    check(cards, path, expected, where)
    assert parked(cards) == OF_ONE


def test_a_model_of_several_files_comes_back(cards, distorch, tmp_path):
    sharded = Sharded(tmp_path / "m", n=3, bytes=2 * MIB)
    with distorch.connect(str(cards.socket)) as d:
        with d.open(sharded.index, allocation="sim:0,50%;sim:1,25%;cpu,25%") as weights:
            assert {name: bytes(weights[name].buffer) for name in weights.keys()} == \
                sharded.tensors
        assert parked(cards) == ["index", "placement", "source", "source", "source", "table"]
        before = d.show(sharded.index).model
    cards.kill_daemon()
    wait_until_back(cards, before.name)
    with distorch.connect(str(cards.socket)) as d:
        after = d.show(sharded.index)
        assert after.model.where == before.where and after.model.name == before.name
        assert [shard.name for shard in after.shards] == sharded.names
        with d.open(sharded.index) as weights:
            assert {name: bytes(weights[name].buffer) for name in weights.keys()} == \
                sharded.tensors
    cards.unload_all()
    wait_until(lambda: parked(cards) == [], what="an empty store")


def test_names_of_a_client_that_counts_otherwise_are_kept(cards, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [4 * MIB] * 4)
    with cards.raw() as raw:
        uuids = [one["uuid"] for one in raw.call("devices")["devices"][1:]]

    def otherwise():
        client = RawClient(cards.socket, hello=False)
        client.call("hello", {"protocol": [1, 1], "client": "torch/1", "devices": uuids[::-1]})
        return client

    with otherwise() as raw:
        lease = load(raw, path, "sim:0,9M;cpu,*")  # the second card, as it is called here
        where = [lease.device_of(block) for block in range(len(lease.places))]
        lease.close()
    assert "sim:1" in where and "sim:0" not in where
    cards.kill_daemon()
    after = wait_until_back(cards, path.name)["model"]
    assert {one["device"] for one in after["where"]} == {"cpu", "sim:1"}
    check(cards, path, expected)
    with otherwise() as raw:
        lease = load(raw, path, "sim:0,9M;cpu,*")
        assert lease.result["source"] == "ram"
        lease.close()


# ---- what does not come back ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unloaded", "moved to RAM", "of one device"])
def test_what_does_not_lie_there_any_more_does_not_come_back_there(cards, tmp_path, how):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 6)
    place(cards, path, "sim:0,3M;sim:1,2M;cpu,*")
    with cards.raw() as raw:
        if how == "moved to RAM":
            raw.call("place", {"model": path.name, "allocation": "cpu"})
        else:
            select = {"models": [path.name]} if how == "unloaded" else {"device": "sim:0"}
            raw.call("unload", {"select": select})
    if how == "moved to RAM":
        wait_until(lambda: parked(cards) == ["image", "source", "table"], what="the image parked")
    else:
        wait_until(lambda: parked(cards) == [], what="an empty store")
    cards.kill_daemon()
    if how == "moved to RAM":
        assert states(cards) == {path.name: "resident"}
        assert [one["device"] for one in show(cards, path.name)["model"]["where"]] == ["cpu"]
        assert show(cards, path.name)["loaded_from"] == "store"
        check(cards, path, expected)
    else:
        assert states(cards) == {}


@pytest.mark.parametrize("room", ["room in RAM", "no room"])
def test_what_has_left_the_devices_unused_comes_back_where_it_was(start_daemon, tmp_path, room):
    ram = "256M" if room == "room in RAM" else "4M"
    cards = start_daemon(*CARDS[:3], f"memory.ram={ram}", "memory.reserve=0", "gpu.linger=1s",
                         kind=HeldDaemon)
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 6)
    place(cards, path, "sim:0,5M;cpu,*")
    with cards.raw() as raw:
        wait_until(lambda: account(raw, "sim:0")["used"] == 0, 10 * slowness(), "the blocks gone")
    wanted = ["image", "source", "table"] if room == "room in RAM" else []
    wait_until(lambda: parked(cards) == wanted, what="what is parked then")
    cards.kill_daemon()
    if room == "room in RAM":
        assert states(cards) == {path.name: "resident"}
        check(cards, path, expected, ["cpu"] * 7)
    else:
        assert states(cards) == {}


@pytest.mark.fault("S03")
@pytest.mark.parametrize("how", ["rewritten", "replaced", "deleted", "touched"])
def test_a_file_that_is_another_by_then_is_not_taken_for_the_old(stored, tmp_path, how):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 6)
    where = place(stored, path, "sim:0,3M;cpu,*")
    stored.die()
    if how == "rewritten":
        make_blocks(path, [MIB] * 6, seed=50)
        os.utime(path, (1, 1))
    elif how == "replaced":
        other = tmp_path / "other"
        make_blocks(other, [MIB] * 6, seed=50)
        os.rename(other, path)
    elif how == "deleted":
        path.unlink()
    else:
        os.chmod(path, 0o600)
    stored.start()
    if how == "rewritten":
        assert states(stored) == {} and stored.log().count("its file has changed") == 1
        wait_until(lambda: not any(name.startswith("plc.") for name, _fd in stored.kept),
                   5 * slowness(), "its record to go")  # the test's own thread hears of it
        return
    wait_until_back(stored, path.name)
    with stored.raw() as raw:  # by name: what was loaded, and under another number
        result, fds = raw.call_fds("attach", {"model": path.name, "map": True})
        lease = Lease(raw, result, fds)
        assert lease.tensors() == expected and result["generation"] == 2
        assert [lease.device_of(block) for block in range(len(lease.places))] == where
        lease.close()


def test_who_used_it_before_finds_the_truth(cards, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 6)
    raw = cards.raw()
    lease = load(raw, path, "sim:0,3M;cpu,*")
    assert lease.tensors() == expected
    cards.kill_daemon()
    wait_until_back(cards, path.name)
    assert lease.tensors() == expected, "what is mapped stays"
    with cards.raw() as again:
        with pytest.raises(RawError, match="not-resident"):
            again.call("attach", {"lease": lease.number, "epoch": raw.server["epoch"]},
                       [lease.images[0]])
        assert again.call("show", {"model": path.name})["model"]["leases"] == 0
    lease.close(detach=False)
    with cards.raw() as again:
        again.call("unmapped", {"lease": lease.number, "epoch": raw.server["epoch"]})
    raw.close()
    check(cards, path, expected)


# ---- devices that are not there ------------------------------------------------------------------


def test_it_waits_for_a_device_that_is_not_there(stored, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 8)
    where = place(stored, path, "sim:0,3M;sim:1,2M;cpu,*", policy={"pin": True})
    stored.die()
    stored.settings[0] = "sim.count=1"
    stored.start()
    time.sleep(0.3)
    seen = show(stored, path.name)
    assert seen["model"]["state"] == "registered" and seen["model"]["pinned"]
    assert seen["model"]["allocation"] == "sim:0,3M;sim:1,2M;cpu,*"
    assert "it comes back with sim:1 (SIM-" in seen["notice"]
    assert states(stored) == {path.name: "registered"}
    assert "now: it comes back with sim:1 (SIM-" in ctl(stored, "why", path.name).stdout
    stored.die()  # what waits is kept
    stored.settings[0] = "sim.count=2"
    stored.start()
    wait_until_back(stored, path.name)
    check(stored, path, expected, where)
    assert show(stored, path.name)["model"]["pinned"]


def test_a_plain_load_does_not_wait_for_the_device(stored, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 8)
    place(stored, path, "sim:0,3M;sim:1,2M;cpu,*")
    stored.die()
    stored.settings[0] = "sim.count=1"
    stored.start()
    with stored.raw() as raw:
        lease = load(raw, path)
        assert lease.tensors() == expected and lease.layout is None
        lease.close()
    assert parked(stored) == ["image", "source", "table"]
    stored.die()
    stored.settings[0] = "sim.count=2"
    stored.start()
    assert [one["device"] for one in show(stored, path.name)["model"]["where"]] == ["cpu"]


def test_what_waits_can_be_unloaded(stored, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 8)
    place(stored, path, "sim:0,3M;sim:1,2M;cpu,*", policy={"keep": True})
    stored.die()
    stored.settings[0] = "sim.count=1"
    stored.start()
    assert len(parked(stored)) == 3
    with stored.raw() as raw:
        raw.call("unload", {"select": {"models": [path.name]}})
    assert parked(stored) == []
    stored.die()
    stored.settings[0] = "sim.count=2"
    stored.start()
    assert states(stored) == {}


def test_a_worker_that_dies_meanwhile_is_waited_for(stored, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 8)
    where = place(stored, path, "sim:0,3M;sim:1,2M;cpu,*")
    stored.die()
    stored.start()
    wait_until_back(stored, path.name)
    with stored.raw() as raw:
        pid = account(raw, "sim:1")["pid"]
        os.kill(pid, 9)  # another may be there before anybody has looked
        wait_until(lambda: account(raw, "sim:1").get("pid") != pid, 10 * slowness(), "it is lost")
    stored.die()  # torn, and known to be
    stored.start()
    wait_until_back(stored, path.name)
    check(stored, path, expected, where)


# ---- a store that is full, or hands back rubbish -------------------------------------------------


@pytest.mark.fault("S04")
def test_a_full_store_is_said(start_daemon, tmp_path):
    daemon = start_daemon(*CARDS, kind=StoredDaemon, environment={"FDSTORE": "6"})
    for number in range(2):
        make_blocks(tmp_path / f"m{number}.safetensors", [MIB] * 3, seed=10 * number)
        place(daemon, tmp_path / f"m{number}.safetensors", "sim:0,2M;cpu,*")
    notices = [show(daemon, f"m{number}.safetensors").get("notice", "") for number in range(2)]
    assert ["store for descriptors is full" in notice for notice in notices] == [False, True]
    daemon.die()
    daemon.start()
    wait_until_back(daemon, "m0.safetensors")
    assert list(states(daemon)) == ["m0.safetensors"]


@pytest.mark.fault("S01")
def test_it_comes_back_over_and_over(stored, tmp_path):
    """Each life fills another generation, of the same open file."""
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 4)
    place(stored, path, "sim:0,2M;cpu,*")
    for _life in range(3):
        stored.die()
        stored.start()
        assert path.name in states(stored), stored.log()
        wait_until_back(stored, path.name)
        check(stored, path, expected)
        assert parked(stored) == OF_ONE


def bend(daemon, how):
    kept = daemon.kept
    by_kind = {}
    for entry in kept:
        by_kind.setdefault(entry[0].split(".")[0], []).append(entry)
    name, fd = by_kind["plc"][0]
    record = os.pread(fd, 1 << 16, 0)

    def put(kind, fd):
        index = kept.index(by_kind[kind][0])
        kept[index] = (kept[index][0], fd)

    if how.startswith("missing "):
        kept.remove(by_kind[how.split()[1]][0])
    elif how == "unsealed":
        put("plc", memfd(record, seal=False))
    elif how == "flipped":
        put("plc", memfd(record[:100] + bytes([record[100] ^ 1]) + record[101:]))
    elif how == "short":
        put("plc", memfd(record[:-8]))
    elif how == "long":
        put("plc", memfd(record + bytes(8)))
    elif how == "empty":
        put("plc", memfd(b""))
    elif how == "random":
        put("plc", memfd(os.urandom(len(record))))
    elif how == "future":
        put("plc", memfd(record[:8] + b"\x09" + record[9:]))
    elif how == "a pipe":
        put("plc", os.pipe()[0])
    elif how == "another's":
        put("plc", os.dup(by_kind["plc"][1][1]))
    elif how == "another source":
        put("src", os.open("/etc/passwd", os.O_RDONLY))


@pytest.mark.fault("S03", "S13")
@pytest.mark.parametrize("how", [
    "missing plc", "missing hdr", "missing src", "unsealed", "flipped", "short", "long", "empty",
    "random", "future", "a pipe", "another's", "another source"])
def test_a_store_that_hands_back_rubbish_costs_only_that(stored, tmp_path, how):
    expected = {}
    for number in range(2):
        path = tmp_path / f"m{number}.safetensors"
        expected[path.name] = make_blocks(path, [MIB] * 4, seed=10 * number)
        place(stored, path, "sim:0,2M;sim:1,1M;cpu,*")
    stored.die()
    bend(stored, how)
    stored.start()
    names = list(states(stored))
    assert len(names) == 1, stored.log()
    if how != "missing hdr":  # without its table it is not even looked at
        assert stored.log().count("is given up") == 1
    wait_until_back(stored, names[0])
    check(stored, tmp_path / names[0], expected[names[0]])

    def is_parked():  # the test's own thread hears of it
        kinds = [name.split(".")[0] for name, _fd in stored.kept]
        return [kinds.count(kind) for kind in ("hdr", "plc", "src")] == [1, 1, 1]

    wait_until(is_parked, 5 * slowness(), "one of each")


# ---- deaths on the way ---------------------------------------------------------------------------


@pytest.mark.fault("S02")
@pytest.mark.parametrize("point", ["filled", "stored", "parked", "published", "do-publish",
                                   "do-record-placed", "unstored"])
def test_a_kill_at_any_moment_leaves_it_whole_or_absent(cards, tmp_path, point):
    kept, moved = tmp_path / "kept.safetensors", tmp_path / "moved.safetensors"
    expected = {path.name: make_blocks(path, [MIB] * 4, seed=seed)
                for path, seed in ((kept, 1), (moved, 20))}
    place(cards, kept, "sim:0,2M;cpu,*")
    if point in ("do-record-placed", "unstored"):
        place(cards, moved, "sim:0,2M;cpu,*")
    pid = cards.daemon_pid()
    cards.die_at(point)
    with pytest.raises((ConnectionError, OSError)), cards.raw() as raw:
        if point in ("do-record-placed", "unstored"):
            raw.call("unload", {"select": {"models": [moved.name]}})
            time.sleep(0.5)
            raw.call("ping")
        else:
            load(raw, moved, "sim:1,2M;cpu,*").close()
            raw.call("ping")
    cards.wait_for_another(pid)
    assert not cards.point.exists(), "the point was never reached"
    wait_until(lambda: set(states(cards).values()) == {"resident"}, 10 * slowness(), "all whole")
    assert kept.name in states(cards)
    check(cards, kept, expected[kept.name])
    place(cards, moved, "sim:1,2M;cpu,*")
    check(cards, moved, expected[moved.name])


@pytest.mark.fault("S02")
@pytest.mark.parametrize("to", ["sim:1,3M;cpu,*", "cpu"])
def test_a_kill_in_the_midst_of_a_move_leaves_one_of_both(cards, tmp_path, to):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 4)
    place(cards, path, "sim:0,2M;cpu,*")
    pid = cards.daemon_pid()
    cards.die_at("stored")
    with pytest.raises((ConnectionError, OSError)), cards.raw() as raw:
        raw.call("place", {"model": path.name, "allocation": to})
    cards.wait_for_another(pid)
    model = wait_until_back(cards, path.name)["model"]
    check(cards, path, expected)
    assert model.get("allocation", "cpu") == to, "what was parked last"
    assert parked(cards) == (["image", "source", "table"] if to == "cpu" else OF_ONE)
    cards.unload_all()
    wait_until(lambda: parked(cards) == [], what="an empty store")


@pytest.mark.fault("S01")
def test_who_reads_from_ram_meanwhile_keeps_it_and_the_blocks_come_back(cards, tmp_path, child):
    """The older generation that he leases survives as images, the newer one as how it lay."""
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 6)
    reader = child(READER, cards.socket, path)
    with cards.raw() as raw:
        raw.call("place", {"model": path.name, "allocation": "sim:0,2M;cpu,*"})
    assert parked(cards) == sorted(OF_ONE + ["image", "table"]), "the file once, for both"
    cards.kill_daemon()
    wait_until(lambda: show(cards, path.name)["model"]["state"] == "resident"
               and "allocation" in show(cards, path.name)["model"], 10 * slowness(), "its blocks")
    assert reader.ask("look") == "same"
    check(cards, path, expected)
    with cards.raw() as raw:
        assert account(raw, "sim:0")["used"] >= MIB
    cards.kill_daemon()
    wait_until(lambda: "allocation" in show(cards, path.name)["model"], 10 * slowness())
    assert reader.ask("look") == "same" and reader.ask("close") == "same"
    wait_until_back(cards, path.name)
    check(cards, path, expected)



def held_in_ram(daemon):
    with daemon.raw() as raw:
        return account(raw, "cpu")["held"]


@pytest.mark.fault("S01")
def test_what_a_client_maps_of_a_placed_model_is_held_over_deaths(cards, tmp_path, child):
    """Its image has what lies in RAM only and is not parked: the kernel alone keeps it."""
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [4 * MIB] * 10)
    place(cards, path)
    reader = child(READER, cards.socket, path)
    with cards.raw() as raw:
        mapped = account(raw, "cpu")["used"]
    assert mapped >= 4 * MIB and held_in_ram(cards) == 0
    for _ in range(2):
        cards.kill_daemon()
        wait_until_back(cards, path.name)
        assert held_in_ram(cards) == mapped, "once, beside the image that was made anew"
        check(cards, path, expected)
    assert "older on ram" in ctl(cards, "ps").stdout
    assert reader.ask("close") == "same"
    wait_until(lambda: held_in_ram(cards) == 0, what="its bytes free")
    with cards.raw() as raw:
        assert account(raw, "cpu")["used"] == mapped


def test_what_generations_share_is_held_once_over_a_death(cards, tmp_path, child):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 10)
    place(cards, path, "sim:0,8M;cpu,*")
    readers = [child(READER, cards.socket, path)]
    with cards.raw() as raw:
        mapped = account(raw, "cpu")["used"]
        raw.call("place", {"model": path.name, "allocation": "sim:1,8M;cpu,*"})
        assert account(raw, "cpu")["used"] == mapped, "the move made no image anew"
    readers.append(child(READER, cards.socket, path))
    assert show(cards, path.name)["model"]["generation"] == 2
    cards.kill_daemon()
    wait_until_back(cards, path.name)
    assert held_in_ram(cards) == mapped
    for reader, left in zip(readers, (mapped, 0)):
        reader.end()
        wait_until(lambda left=left: held_in_ram(cards) == left, what=f"{left} held")


def test_what_was_held_already_is_held_over_a_death(cards, tmp_path):
    """The blocks' older place was dropped while a client without connection maps it."""
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 10)
    raw = cards.raw()
    lease = load(raw, path, "sim:0,8M;cpu,*")
    epoch = cards.status()["epoch"]
    raw.close()
    with cards.raw() as other:
        wait_until(lambda: other.call("clients")["clients"], what="the ghost")
        other.call("place", {"model": path.name, "allocation": "sim:0,16M;cpu,*"})
        held = wait_until(lambda: held_in_ram(cards), what="the older image held")
    cards.kill_daemon()
    wait_until_back(cards, path.name)
    assert held_in_ram(cards) == held
    lease.close(detach=False)
    with cards.raw() as other:
        other.call("unmapped", {"lease": lease.number, "epoch": epoch})
    assert held_in_ram(cards) == 0


@pytest.mark.parametrize("before", [None, "cpu", "sim:0"])
def test_what_lies_in_ram_alone_survives_there_whatever_its_string_names(cards, tmp_path, before):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [4 * MIB] * 4, head=0)
    if before is not None:
        place(cards, path, before)
    where = place(cards, path, "sim:0,0;cpu,*")
    assert set(where) == {"cpu"}
    assert parked(cards) == ["image", "source", "table"]
    cards.kill_daemon()
    wait_until_back(cards, path.name)
    assert "loaded m.safetensors" not in cards.log().rpartition("ready: ")[2], "from the file"
    check(cards, path, expected, where)


@pytest.mark.parametrize("backing", ["auto", "file", "image"])
def test_what_a_load_brings_back_to_ram_survives_there(cards, tmp_path, backing):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 4)
    place(cards, path, "sim:0,2M;cpu,*")
    with cards.raw() as raw:
        lease = load(raw, path, "cpu", backing=backing)
        assert lease.layout is None
        lease.close()
    lay = show(cards, path.name)["backing"]
    assert parked(cards) == (["image"] if lay == "image" else []) + ["source", "table"]
    cards.kill_daemon()
    assert states(cards) == {path.name: "resident"}, cards.log()
    assert show(cards, path.name)["backing"] == lay
    check(cards, path, expected, ["cpu"] * 5)


def test_who_maps_something_of_before_a_restart_is_told_of_as_he_is(cards, distorch, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 4)
    begun = time.monotonic()
    with distorch.connect(str(cards.socket), label="holder") as d, d.open(path, to="sim:0"):
        cards.kill_daemon()
        wait_until_back(cards, path.name)
        own = wait_until(lambda: [client for client in d.clients() if client.label], what="both")
        assert sorted(client.connected for client in own) == [False, True], own
        assert {(client.label, client.pid) for client in own} == {("holder", os.getpid())}
        assert all(client.age_ms <= 1000 * (time.monotonic() - begun) for client in own), own
        shown = ctl(cards, "clients").stdout
        assert shown.count("holder") == 2 and "no connection, still maps" in shown, shown


def test_where_there_is_less_room_than_before_it_says_so_and_ram_serves(stored, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [4 * MIB] * 10)
    place(stored, path, policy={"keep": True})
    stored.die()
    stored.settings[1] = "sim.memory=8M"
    stored.start()
    wait_until(lambda: show(stored, path.name)["model"]["state"] == "failed", 10 * slowness(),
               "the end of the try")
    assert "sim:0" in show(stored, path.name)["notice"]
    assert len(parked(stored)) == 3, "another life may have the room"
    stored.die()
    stored.settings[1] = "sim.memory=64M"
    stored.start()
    wait_until_back(stored, path.name)
    check(stored, path, expected)
