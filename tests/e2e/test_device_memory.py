# SPDX-License-Identifier: Apache-2.0
"""The memory of devices to the granule: what fits, what is one over, what others take between a
look and a load; nothing of what failed stays. And many who want two cards in opposite order."""
import os
import time

import pytest
from conftest import RawError, close_all, need_hooks, opened, slowness, wait_until
from placed import MIB, account, load, make_blocks
from test_ctl import ctl
from test_devices import environment
from test_wire_hostile import in_a_process

GRANULE = 2 * MIB
SLOW = 20 * slowness()
SETTINGS = ("sim.count=2", "sim.memory=32M", "memory.ram=256M", "memory.reserve=0")


@pytest.fixture
def cards(start_daemon):
    return start_daemon(*SETTINGS, environment=environment(look=50))


@pytest.fixture
def raw(cards):
    with cards.raw(timeout=SLOW) as client:
        yield client


def refused(raw, path, allocation, **params):
    """The error of a load that is not to be; nothing is left of it."""
    before = {one["name"]: one["used"] for one in raw.call("devices")["devices"]}
    with opened(path) as fd, pytest.raises(RawError) as failure:
        raw.call("load", {"allocation": allocation, **params}, [fd])
    wait_until(lambda: before == {one["name"]: one["used"]
                                  for one in raw.call("devices")["devices"]},
               SLOW, "nothing left of it")
    assert not any(model["state"] in ("loading", "partial")
                   for model in raw.call("list")["models"])
    return failure.value.error


def unload_all(raw):
    raw.call("unload", {"select": {"all": True}})
    wait_until(lambda: not any(one["used"] for one in raw.call("devices")["devices"]), SLOW)


@pytest.mark.fault("M02")
def test_a_full_device_is_full_and_one_byte_over_is_over(raw, tmp_path):
    whole, over = tmp_path / "whole.safetensors", tmp_path / "over.safetensors"
    expected = make_blocks(whole, [GRANULE - MIB] * 15, head=GRANULE)  # a granule each
    make_blocks(over, [GRANULE - MIB] * 15, head=GRANULE + 1, seed=40)
    error = refused(raw, over, "sim:0")
    assert error["code"] == "no-memory" and "sim:0" in error["message"], error
    assert "34.0M" in error["message"] and "32.0M" in error["message"], error
    lease = load(raw, whole, "sim:0")
    assert lease.tensors() == expected
    card = account(raw, "sim:0")
    assert card["used"] == card["budget"] == 16 * GRANULE and card["free"] == 0
    tiny = tmp_path / "tiny.safetensors"
    make_blocks(tiny, [1], head=0, seed=80)
    error = refused(raw, tiny, "sim:0")
    assert error["code"] == "no-memory" and "sim:0" in error["message"], error
    assert lease.tensors() == expected
    lease.close()
    load(raw, tiny, "sim:0").close()  # what is idle goes for it, by whole blocks
    assert account(raw, "sim:0")["used"] <= 16 * GRANULE
    unload_all(raw)


@pytest.mark.fault("M02")
def test_small_blocks_take_a_granule_each(raw, tmp_path):
    fits, not_ = tmp_path / "fits.safetensors", tmp_path / "not.safetensors"
    expected = make_blocks(fits, [3000] * 16, head=0)
    make_blocks(not_, [3000] * 17, head=0, seed=60)
    lease = load(raw, fits, "sim:1")
    assert lease.tensors() == expected and account(raw, "sim:1")["used"] == 32 * MIB
    lease.close()
    unload_all(raw)
    error = refused(raw, not_, "sim:1")
    assert error["code"] == "no-memory" and "sim:1" in error["message"], error
    assert "34.0M" in error["message"], error
    lease = load(raw, not_, "sim:1,94%;cpu,*")  # 50 KB of 51 KB: sixteen of seventeen
    assert account(raw, "sim:1")["used"] <= 32 * MIB
    lease.close()
    unload_all(raw)


def test_a_budget_lower_than_the_memory_is_the_limit(start_daemon, tmp_path):
    daemon = start_daemon(*SETTINGS, "gpu.budget.sim:0=10M")
    path, over = tmp_path / "m.safetensors", tmp_path / "over.safetensors"
    expected = make_blocks(path, [GRANULE - MIB] * 5, head=0)
    make_blocks(over, [GRANULE - MIB] * 6, head=0, seed=30)
    with daemon.raw(timeout=SLOW) as raw:
        assert account(raw, "sim:0")["budget"] == 10 * MIB
        error = refused(raw, over, "sim:0")
        assert error["code"] == "no-memory" and "12.0M" in error["message"], error
        assert "10.0M" in error["message"], error
        lease = load(raw, path, "sim:0")
        assert lease.tensors() == expected and account(raw, "sim:0")["used"] == 10 * MIB
        lease.close()
        # It is lowered below what is there, and raised again.
        raw.call("budget", {"device": "sim:0", "bytes": 4 * MIB})
        wait_until(lambda: account(raw, "sim:0")["used"] <= 4 * MIB, SLOW, "what is over to go")
        raw.call("budget", {"device": "sim:0", "bytes": 12 * MIB})
        lease = load(raw, over, "sim:0")
        assert account(raw, "sim:0")["used"] == 12 * MIB
        lease.close()
        unload_all(raw)


@pytest.mark.fault("G02 G03")
@pytest.mark.parametrize("call", ["alloc", "fill", "seal"])
@pytest.mark.parametrize("nth", [1, 2, 5])
def test_a_card_that_has_less_than_it_said_leaves_nothing_half_loaded(
        cards, raw, tmp_path, call, nth):
    need_hooks()
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 8, head=0)
    cards.tell(f"worker sim:0 {call}:{nth}:no-memory")
    error = refused(raw, path, "sim:0,75%;sim:1,25%")
    assert error["code"] == "no-memory" and path.name in error["message"], error
    cards.tell("worker sim:0 clear")
    lease = load(raw, path, "sim:0,75%;sim:1,25%")
    assert lease.tensors() == expected
    # A move that fails half way leaves it where it was, and those who use it alone.
    cards.tell("worker sim:1 copy:1:unsupported:ever")  # card to card: else it is not filled
    cards.tell(f"worker sim:1 {call}:{nth}:no-memory:ever")
    with pytest.raises(RawError) as failure:
        raw.call("place", {"model": path.name, "allocation": "sim:1"})
    assert failure.value.code == "no-memory", failure.value.error
    cards.tell("worker sim:1 clear")
    assert lease.tensors() == expected
    again = load(raw, path)
    assert again.layout["places"] == lease.layout["places"] and again.tensors() == expected
    again.close()
    lease.close()
    unload_all(raw)


@pytest.mark.fault("G02 G03")
@pytest.mark.parametrize("call", ["alloc", "fill"])
def test_a_card_that_has_less_than_it_said_is_asked_once_more_without_what_is_idle(
        cards, raw, tmp_path, call):
    need_hooks()
    path, idle, leased = (tmp_path / f"{name}.safetensors" for name in ("m", "idle", "leased"))
    expected = make_blocks(path, [MIB] * 4, head=0)
    make_blocks(idle, [MIB] * 8, head=0, seed=50)
    theirs = make_blocks(leased, [MIB] * 4, head=0, seed=90)
    load(raw, idle, "sim:0").close()
    held = load(raw, leased, "sim:0")
    cards.tell(f"worker sim:0 {call}:1:no-memory")
    lease = load(raw, path, "sim:0")
    assert lease.tensors() == expected and set(lease.bytes_on()) == {"sim:0"}
    assert held.tensors() == theirs and set(held.bytes_on()) == {"sim:0"}
    why = raw.call("events.history")["records"]
    assert any(record["type"] == "evicted" and path.name in record.get("why", "") for record in why)
    lease.close()
    raw.call("unload", {"select": {"names": [path.name, idle.name]}})
    wait_until(lambda: account(raw, "sim:0")["used"] == 4 * GRANULE, SLOW, "what is leased alone")
    # Once: where that does not help it is refused, and nothing half loaded stays.
    load(raw, idle, "sim:0").close()
    cards.tell(f"worker sim:0 {call}:1:no-memory:ever")
    with opened(path) as fd, pytest.raises(RawError) as failure:
        raw.call("load", {"allocation": "sim:0"}, [fd])
    assert failure.value.code == "no-memory"
    cards.tell("worker sim:0 clear")
    wait_until(lambda: account(raw, "sim:0")["used"] == 8 * GRANULE, SLOW, "half of what is idle")
    assert held.tensors() == theirs
    held.close()
    unload_all(raw)


@pytest.mark.fault("G03")
def test_what_others_take_between_a_plan_and_a_load_is_not_there_for_it(cards, raw, tmp_path):
    need_hooks()
    path, idle = tmp_path / "m.safetensors", tmp_path / "idle.safetensors"
    expected = make_blocks(path, [MIB] * 10, head=0)
    make_blocks(idle, [MIB] * 4, head=0, seed=50)
    load(raw, idle, "sim:0").close()
    raw.load(path)
    planned = raw.call("plan", {"model": path.name, "allocation": "sim:0"})
    assert next(one for one in planned["devices"] if one["device"] == "sim:0")["bytes"] == 10 * MIB
    cards.tell(f"worker sim:0 foreign:{24 * MIB}")
    wait_until(lambda: account(raw, "sim:0")["budget"] == 8 * MIB, SLOW, "the look at it")
    with pytest.raises(RawError) as failure:
        raw.call("place", {"model": path.name, "allocation": "sim:0"})
    error = failure.value.error
    assert error["code"] == "no-memory" and "sim:0" in error["message"], error
    lease = load(raw, path)
    assert lease.tensors() == expected and set(lease.bytes_on()) == {"cpu"}
    lease.close()
    cards.tell("worker sim:0 foreign:0")
    wait_until(lambda: account(raw, "sim:0")["budget"] == 32 * MIB, SLOW, "the look at it")
    raw.call("place", {"model": path.name, "allocation": "sim:0"})
    unload_all(raw)


def test_what_nobody_uses_makes_way_when_others_take_the_device(cards, raw, tmp_path):
    """It moves to RAM at once, five minutes early; what is leased stays."""
    need_hooks()
    idle, used = tmp_path / "idle.safetensors", tmp_path / "used.safetensors"
    expected = make_blocks(idle, [MIB] * 4, head=0)
    theirs = make_blocks(used, [MIB] * 4, head=0, seed=50)
    load(raw, idle, "sim:0").close()
    held = load(raw, used, "sim:0")
    raw.call("subscribe", {"events": ["pressure", "evicted"]})
    cards.tell(f"worker sim:0 foreign:{10 * MIB}")
    wait_until(lambda: account(raw, "sim:0")["foreign"] == 10 * MIB, SLOW, "the look at it")
    assert account(raw, "sim:0")["used"] == 8 * GRANULE  # there is enough of it
    cards.tell(f"worker sim:0 foreign:{15 * MIB}")
    wait_until(lambda: account(raw, "sim:0")["used"] == 4 * GRANULE, SLOW, "what is idle")
    event = dict(raw.events)["pressure"]
    assert (event["device"], event["free"], event["wanted"]) == ("sim:0", MIB, MIB)
    lease = load(raw, idle)
    assert lease.tensors() == expected and set(lease.bytes_on()) == {"cpu"}
    assert held.tensors() == theirs and set(held.bytes_on()) == {"sim:0"}
    whys = {r["type"]: r.get("why") for r in raw.call("events.history")["records"]}
    assert whys["placed"] == "memory was short, from sim:0 to ram", whys
    lease.close()
    held.close()
    cards.tell("worker sim:0 foreign:0")
    unload_all(raw)


def test_room_that_is_reserved_is_not_counted_again_when_its_program_takes_it(cards, raw, tmp_path):
    need_hooks()
    idle = tmp_path / "idle.safetensors"
    make_blocks(idle, [MIB] * 8, head=0)
    load(raw, idle, "sim:0").close()
    token = raw.call("reserve", {"device": "sim:0", "bytes": 14 * MIB})["token"]
    for foreign, budget in ((5, 32), (14, 32), (3, 32), (14, 32), (20, 26)):
        cards.tell(f"worker sim:0 foreign:{foreign * MIB}")
        wait_until(lambda: account(raw, "sim:0")["foreign"] == foreign * MIB, SLOW, "the look at it")
        card = account(raw, "sim:0")
        assert (card["budget"], card["reserved"]) == (budget * MIB, 14 * MIB), foreign
        if foreign <= 14:
            assert card["used"] == 16 * MIB
    whys = [one["why"] for one in raw.call("events.history")["records"]
            if one["type"] in ("evicted", "placed")]
    assert whys and all(why.startswith("memory was short") for why in whys), whys
    raw.call("release", {"token": token})
    wait_until(lambda: account(raw, "sim:0")["budget"] == 12 * MIB, SLOW, "what is left")
    cards.tell("worker sim:0 foreign:0")
    wait_until(lambda: account(raw, "sim:0")["budget"] == 32 * MIB, SLOW, "the look at it")
    unload_all(raw)


def test_a_load_is_planned_with_the_memory_of_now(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "memory.ram=64M", "memory.backing=image")
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    make_blocks(first, [MIB] * 4)
    make_blocks(second, [MIB] * 4)
    assert ctl(daemon, "config", "set", "memory.reserve", "100T").returncode == 0
    assert ctl(daemon, "load", first).returncode == 6
    assert ctl(daemon, "config", "set", "memory.reserve", "0").returncode == 0
    done = ctl(daemon, "load", second, "--to", "sim:0,50%;cpu,*")
    assert done.returncode == 0, done.stderr


# ---- who wants both cards --------------------------------------------------------------------

ROUNDS = 1000  # of each of three


def take_both(daemon, path, allocation):
    """Load, look, let go, again and again; the longest wait of one, in ms."""
    longest = 0
    with daemon.raw(timeout=SLOW) as raw, opened(path) as fd:
        for number in range(ROUNDS):
            began = time.monotonic()
            while True:
                try:
                    result, fds = raw.call_fds("load", {"allocation": allocation, "attach": True,
                                                        "map": True}, [fd])
                    break
                except RawError as failure:  # the other has it: as told, try again
                    assert failure.code == "no-memory" and failure.error["retryable"], \
                        failure.error
                    assert time.monotonic() - began < SLOW, "nobody starves"
                    time.sleep(0.001)
            longest = max(longest, time.monotonic() - began)
            close_all(fds)
            raw.call("detach", {"lease": result["lease"]})
    return f"all {longest * 1000:.0f}"


def in_processes(works):
    """What each of the works says, all at once."""
    says = []
    for work in works:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            os.write(writing, in_a_process(work).encode())
            os._exit(0)
        os.close(writing)
        says.append((pid, reading))
    found = []
    for pid, reading in says:
        with os.fdopen(reading) as answer:
            found.append(answer.read())
        os.waitpid(pid, 0)
    return found


@pytest.mark.seconds(300)
def test_those_who_want_both_cards_in_opposite_order_all_get_them(cards, raw, tmp_path):
    """Each takes more than half of each card, so that one waits for the other."""
    works = []
    for number, allocation in enumerate(["sim:0,50%;sim:1,50%", "sim:1,50%;sim:0,50%",
                                         "sim:0,50%;sim:1,50%"]):
        path = tmp_path / f"m{number}.safetensors"
        make_blocks(path, [4096] * 18, head=0, seed=1 + 40 * number)  # 18 MiB of each card
        works.append(lambda path=path, allocation=allocation: take_both(cards, path, allocation))
    said = in_processes(works)
    assert all(text.startswith("all ") for text in said), said
    assert all(int(text.split()[1]) < 5000 * slowness() for text in said), said
    assert raw.call("status")["evictions"] > ROUNDS / 10, "they are in each other's way"
    unload_all(raw)
