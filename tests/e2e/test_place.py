# SPDX-License-Identifier: Apache-2.0
"""Blocks of models over simulated cards and RAM: loads, moves, evictions, by the wire."""
import contextlib
import json
import os
import pathlib
import random
import signal
import time

import pytest
from conftest import (RawClient, RawError, make_safetensors, opened, pattern, slowness,
                      wait_until)
from placed import MIB, account, attach, load, make_blocks
from sharded import Sharded
from test_plan import plan as plan_here
from test_ctl import ctl, ctl_json

KIB = 1 << 10


@pytest.fixture
def cards(start_daemon):
    """A daemon with two simulated cards of 64 MiB."""
    return start_daemon("sim.count=2", "sim.memory=64M", "gpu.budget=100%", "memory.ram=256M",
                        "memory.reserve=0")


@pytest.fixture
def raw(cards):
    with cards.raw(timeout=60.0) as client:
        yield client


def used(raw):
    return {one["name"]: one["used"] for one in raw.call("devices")["devices"]}


def wait_for_zero(raw):
    wait_until(lambda: not any(used(raw).values()), 10 * slowness(), "accounts of zero")


def unload_all(raw):
    raw.call("unload", {"select": {"all": True}})
    wait_for_zero(raw)


# ---- a load over devices ---------------------------------------------------------------------


def test_blocks_lie_where_the_string_says(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [4 * MIB] * 10)
    lease = load(raw, path, "sim:0,16M;sim:1,9M;cpu,*")
    assert lease.tensors() == expected
    names = [lease.table.blocks[i][0] for i in range(len(lease.places))]
    where = dict(zip(names, (lease.device_of(i) for i in range(len(names)))))
    assert [where[f"blocks.{i}"] for i in range(10)] == \
        ["sim:0"] * 3 + ["sim:1"] * 2 + ["cpu"] * 5  # the head is sim:0's first
    assert where["(head)"] == "sim:0"
    sums = lease.bytes_on()
    assert sums == {"sim:0": 12 * MIB + 4096, "sim:1": 8 * MIB, "cpu": 20 * MIB}
    for name, size in sums.items():
        assert account(raw, name)["used"] >= size
    model = lease.result["model"]
    assert model["allocation"] == "sim:0,16M;sim:1,9M;cpu,*" and model["state"] == "resident"
    assert {place["device"] for place in model["where"]} == {"sim:0", "sim:1", "cpu"}
    lease.close()
    unload_all(raw)


def test_a_second_load_of_the_same_placement_reads_nothing(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 4)
    first = load(raw, path, "sim:0,50%;cpu,50%")
    second = load(raw, path, " SIM:0, 50% ; cpu,50% ;")  # means the same
    assert second.result["source"] == "ram"
    assert second.result["generation"] == first.result["generation"]
    third = load(raw, path)  # as it lies
    assert third.layout["places"] == first.layout["places"]
    assert second.tensors() == third.tensors() == expected
    for lease in (first, second, third):
        lease.close()


@pytest.mark.parametrize("backing", ["auto", "file", "image"])
@pytest.mark.parametrize("n_files", [1, 3])
def test_a_load_back_to_ram_serves_from_what_it_likes(cards, raw, distorch, tmp_path, backing,
                                                      n_files):
    sharded = Sharded(tmp_path / "m", n=n_files, bytes=MIB)
    with distorch.connect(str(cards.socket)) as d:
        for allocation in ("sim:0,50%;cpu,50%", "cpu", "sim:1", "cpu"):
            more = {"backing": backing} if allocation == "cpu" else {}
            with d.open(sharded.index, allocation=allocation, **more) as weights:
                assert {name: bytes(weights[name].buffer) for name in weights.keys()} == \
                    sharded.tensors
    unload_all(raw)


def test_two_processes_share_the_blocks(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 4)
    mine = load(raw, path, "sim:1")
    before = used(raw)
    with cards.raw() as other:
        theirs = attach(other, path)
        assert theirs.tensors() == mine.tensors() == expected
        assert used(raw) == before
        theirs.close()
    mine.close()


def test_who_maps_a_block_cannot_change_it(raw, tmp_path):
    import mmap

    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB])
    lease = load(raw, path, "sim:0")
    lease.map_blocks()
    for _device, size, fd in lease.segments.values():
        with pytest.raises(PermissionError):
            mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(OSError):
            os.ftruncate(fd, 0)
    lease.close()


def test_a_model_of_one_block_a_tensor(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [64 * KIB] * 30)
    lease = load(raw, path, "sim:0,30%;sim:1,30%;cpu,*", granularity="tensor")
    assert len(lease.places) == len(expected)
    assert lease.tensors() == expected
    lease.close()
    unload_all(raw)


@pytest.mark.parametrize("allocation, code, part", [
    ("sim:7,1g", "bad-argument", "sim:7"),
    ("sim:0,1g;sim:0,2g", "bad-argument", "item 2"),
    ("sim:0,1", "bad-argument", "unit"),
    ("sim:0,-1g", "bad-argument", "item 1"),
    ("sim:0,60M;sim:1,1M;", None, None),
    ("sim:0;x" * 300, "bad-argument", "1024"),
])
def test_a_string_that_is_wrong_is_told_and_changes_nothing(raw, tmp_path, allocation, code, part):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 3)
    if code is None:
        load(raw, path, allocation).close()
        return
    with opened(path) as fd, pytest.raises(RawError) as refused:
        raw.call("load", {"allocation": allocation}, [fd])
    assert refused.value.code == code and part in refused.value.error["message"]
    wait_for_zero(raw)
    assert raw.call("list")["models"] == []


@pytest.mark.parametrize("params, part", [
    ({"allocation": "sim:1,typo"}, 'item 1 (column 1) "sim:1,typo"'),
    ({"allocation": "sim:7,1m;cpu,*"}, 'there is no device "sim:7"'),
    ({"allocation": "sim:0,1m;sim:0,*"}, "item 2"),
    ({"allocation": "unot=sim:0|vae=cpu"}, "unet, clip or vae"),
    ({"allocation": "cpu", "compute": "sim:9"}, "compute: there is no device"),
    ({"virtual_vram": MIB, "donors": ["sim:9"]}, "donor 1: there is no device"),
    ({"allocation": "sim:0,4m\ncpu,*"}, "\\x0acpu"),
])
def test_a_wrong_string_is_refused_when_it_arrives_and_is_no_failed_load(
        cards, raw, tmp_path, params, part):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 3)
    for asked in ("new", "there"):
        with opened(path) as fd:
            with pytest.raises(RawError) as refused:
                raw.call("load", {**params, "no_wait": True}, [fd])
            assert refused.value.code == "bad-argument" and part in refused.value.error["message"]
            assert refused.value.error["detail"]["field"] == "allocation"
            if asked == "new":
                model = raw.call("load", {}, [fd])["model"]["id"]
    with pytest.raises(RawError) as refused:
        raw.call("place", {"model": model, "allocation": "", **params})
    assert refused.value.code == "bad-argument" and part in refused.value.error["message"]
    told = ctl(cards, "place", path, *(["--virtual-vram", "1m", "--donors", "sim:9"]
                                       if "donors" in params else [params["allocation"]]),
               *(["--compute", params["compute"]] if "compute" in params else []))
    assert told.returncode == 2 and part in told.stderr, "escaped once, if at all"
    assert "load.failed" not in ctl(cards, "why", model, "--json").stdout
    failed = [line for line in raw.call("metrics")["text"].splitlines()
              if line.startswith('distorchd_loads_total{result="failed"')]
    assert failed and all(line.endswith(" 0") for line in failed)


def test_more_blocks_than_can_be_placed_are_refused_for_good(cards, raw, tmp_path):
    path = tmp_path / "many.safetensors"
    header = json.dumps({f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
                         for i in range(32769)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(32769))
    with opened(path) as fd, pytest.raises(RawError) as refused:
        raw.call("load", {"allocation": "sim:0", "granularity": "tensor"}, [fd])
    assert refused.value.code == "too-large" and not refused.value.error["retryable"]
    assert "32769 blocks, and at most 32768" in refused.value.error["message"]
    planned = ctl(cards, "plan", path, "sim:0", "--granularity", "tensor")
    assert planned.returncode == 1 and "at most 32768 can be placed" in planned.stderr
    load(raw, path, "sim:0").close()  # by blocks
    unload_all(raw)


def test_what_lies_there_in_other_blocks_makes_no_room_for_a_plan(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 6)
    for allocation, status in (("sim:0", 6), ("sim:1", 0)):
        load(raw, path, "sim:0", granularity="block").close()
        words = path, allocation, "--granularity", "tensor"
        planned = ctl(cards, "plan", *words)
        assert planned.returncode == status, planned
        assert ctl(cards, "load", path, "--to", *words[1:]).returncode == status
        unload_all(raw)


def test_auto_finds_room_beside_what_lies_there_in_other_blocks(cards, raw, tmp_path):
    """It took that for room, and was refused."""
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 10)
    load(raw, path, "sim:0", granularity="block").close()
    words = path, "auto", "--granularity", "tensor"
    planned = ctl_json(cards, "plan", *words)
    placed = ctl_json(cards, "load", path, "--to", *words[1:])["models"][0]
    assert {device["name"]: device["bytes"] for device in planned["devices"] if device["blocks"]} == \
        {place["device"]: place["tensor_bytes"] for place in placed["where"] if place["tensor_bytes"]}
    unload_all(raw)


def test_what_does_not_fit_is_refused_with_numbers(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [8 * MIB] * 9)
    with opened(path) as fd, pytest.raises(RawError) as refused:
        raw.call("load", {"allocation": "sim:0"}, [fd])
    error = refused.value.error
    assert error["code"] == "no-memory" and "sim:0" in error["message"], error
    wait_for_zero(raw)
    load(raw, path, "sim:0,40M;sim:1,40M;cpu,*").close()
    unload_all(raw)


def test_fractions_without_room_are_short_of_memory_and_not_wrong(raw, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    make_blocks(first, [10 * MIB] * 5)
    make_blocks(second, [3 * MIB] * 7, seed=50)
    lease = load(raw, first, "sim:0")
    errors = {}
    for allocation in "sim:0,0.9", "sim:0,24M", "sim:0,0.2":
        with opened(second) as fd, pytest.raises(RawError) as refused:
            raw.call("load", {"allocation": allocation}, [fd])
        errors[allocation] = refused.value.error
    fraction, size, small = errors.values()
    assert fraction["code"] == size["code"] == "no-memory" and fraction["retryable"], fraction
    assert fraction["detail"] == size["detail"] and fraction["hint"] == size["hint"]
    assert small["code"] == "bad-argument" and "none of the fractions" in small["message"]
    lease.close()
    load(raw, second, "sim:0,0.9").close()
    unload_all(raw)


def test_what_a_move_left_behind_in_use_is_counted_as_that(cards, raw, tmp_path):
    """The model's own copies are no room for its next place while somebody reads the older ones."""
    path = tmp_path / "m.safetensors"
    make_blocks(path, [9 * MIB] * 5)
    lease = load(raw, path, "sim:0")
    used = account(raw, "sim:0")["used"]
    raw.call("place", {"model": path.name, "allocation": "sim:1"})
    refused = ctl(cards, "plan", path.name, "sim:0")
    assert refused.returncode == 6
    assert f"{used >> 20}.0M in use or pinned); in use: " in refused.stderr, refused.stderr
    lease.close()
    assert ctl(cards, "plan", path.name, "sim:0").returncode == 0
    moved = ctl_json(cards, "place", path.name, "--virtual-vram", "20M", "--compute", "sim:0")
    assert len(moved["where"]) == 2
    assert ctl_json(cards, "show", path.name)["allocation"] is None
    unload_all(raw)


def test_who_has_the_room_is_named_to_who_gets_none(cards, raw, tmp_path):
    path, other = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    make_blocks(path, [9 * MIB] * 5)
    make_blocks(other, [9 * MIB] * 5, seed=9)
    lease = load(raw, path, "sim:0")
    card = account(raw, "sim:0")
    words = "load", "--to", "sim:0", str(other)
    told = ctl(cards, *words)
    assert told.returncode == 6, told.stderr
    assert f"{card['used'] >> 20}.0M in use or pinned" in told.stderr
    assert f"in use: {pathlib.Path('/proc/self/comm').read_text().strip()}/{os.getpid()}" \
        in told.stderr
    assert "unpin or close something" in told.stderr
    detail = ctl_json(cards, *words, status=6)["error"]["detail"]
    assert detail["device"] == "sim:0" and detail["need"] > 45 * MIB
    assert detail["free"] == 64 * MIB - card["used"] and detail["budget"] == 64 * MIB
    assert [one["pid"] for one in detail["holders"]] == [os.getpid()]
    load(raw, other, "cpu").close()
    with pytest.raises(RawError) as refused:
        raw.call("plan", {"model": other.name, "allocation": "sim:0"})
    detail = refused.value.error["detail"]
    assert detail["in_use"] == card["used"] and detail["pinned"] == 0
    assert [one["pid"] for one in detail["holders"]] == [os.getpid()]
    planned = ctl(cards, "plan", "--granularity", "tensor", str(other), "sim:0")
    assert planned.returncode == 6 and f"{card['used'] >> 20}.0M in use or pinned" in planned.stderr
    refused = ctl(cards, "make-room", "50M", "--device", "sim:0", "--", "true")
    assert refused.returncode == 6 and "--recall 5s" in refused.stderr, refused.stderr
    assert ctl(cards, "pin", path.name).returncode == 0
    lease.close()
    assert "pinned by uid" in ctl(cards, *words).stderr
    assert ctl(cards, "unpin", path.name).returncode == 0
    unload_all(raw)
    token = raw.call("reserve", {"device": "sim:0", "bytes": 50 * MIB})["token"]
    told = ctl(cards, *words)
    assert "0 in use or pinned, 50.0M reserved); reserved by " in told.stderr and "make-room ends" in told.stderr
    raw.call("release", {"token": token})
    unload_all(raw)


def test_a_head_that_does_not_fit_is_told_with_what_auto_can_do(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 2, head=40 * MIB)
    token = raw.call("reserve", {"device": "sim:0", "bytes": 50 * MIB})["token"]
    for words in (("load", "--to", "auto", str(path)), ("plan", str(path), "auto")):
        told = ctl(cards, *words)
        assert told.returncode == 6 and "with its head, which stays where it computes" in told.stderr
        assert "--compute DEVICE" in told.stderr and "cpu,*" not in told.stderr, told.stderr
    assert ctl(cards, "load", "--to", "auto", "--compute", "sim:1", str(path)).returncode == 0
    raw.call("release", {"token": token})
    unload_all(raw)


def test_options_without_an_allocation_are_refused(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB])
    for option in ({"compute": "sim:0"}, {"donors": ["cpu"]}, {"strategy": "spread"},
                   {"granularity": "tensor"}, {"granularity": "block"}):
        with opened(path) as fd, pytest.raises(RawError) as refused:
            raw.call("load", option, [fd])
        error = refused.value.error
        assert error["code"] == "bad-argument" and [*option][0] in error["message"], error
    load(raw, path, "cpu", strategy="spread", granularity="tensor").close()  # all blocks there
    with opened(path) as fd, pytest.raises(RawError) as refused:
        raw.call("load", {"allocation": "sim:0", "backing": "file"}, [fd])
    assert refused.value.code == "bad-argument" and "backing" in str(refused.value.error)


# ---- moves -----------------------------------------------------------------------------------


def test_a_move_copies_what_moves_and_no_more(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 8, head=0)
    load(raw, path, "sim:0,50%;cpu,50%").close()
    moved = raw.call("place", {"model": path.name, "allocation": "sim:0,75%;cpu,25%"})
    # Two blocks to the card; the host's image becomes one of the other two.
    assert moved["moved"] <= 4 * MIB + 4 * MIB + 64 * KIB
    lease = attach(raw, path)
    assert lease.bytes_on() == {"sim:0": 12 * MIB, "cpu": 4 * MIB}
    assert lease.tensors() == expected
    wait_until(lambda: account(raw, "cpu")["used"] < 5 * MIB, 10 * slowness(), "the old image")
    lease.close()
    unload_all(raw)


def test_what_is_there_already_counts_once(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [8 * MIB] * 10, head=0)
    load(raw, path, "sim:0,48M;cpu,*").close()
    with pytest.raises(RawError) as refused:
        raw.call("place", {"model": path.name, "allocation": "sim:0"})
    assert refused.value.code == "no-memory"
    assert "64.0M can be had" in refused.value.error["message"], "and not the 48M once more"
    lease = load(raw, path, "auto", compute="sim:0", strategy="contiguous")
    assert lease.tensors() == expected and lease.bytes_on()["sim:0"] <= 64 * MIB
    lease.close()
    unload_all(raw)


def test_from_card_to_card_to_ram_and_back(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 6)
    load(raw, path, "sim:0").close()
    for allocation, where in (("sim:1", "sim:1"), ("cpu", "cpu"), ("sim:0", "sim:0"),
                              ("sim:1,50%;sim:0,50%", None), ("cpu,*", "cpu")):
        raw.call("place", {"model": path.name, "allocation": allocation})
        lease = attach(raw, path)
        assert lease.tensors() == expected, allocation
        assert where is None or set(lease.bytes_on()) == {where}
        lease.close()
    wait_until(lambda: used(raw)["sim:0"] == used(raw)["sim:1"] == 0, 10 * slowness())
    unload_all(raw)


def test_who_leases_it_keeps_what_he_maps_while_it_moves(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    old = load(raw, path, "sim:0")
    raw.call("place", {"model": path.name, "allocation": "sim:1"})
    new = attach(raw, path)
    assert set(new.bytes_on()) == {"sim:1"} and set(old.bytes_on()) == {"sim:0"}
    assert old.tensors() == new.tensors() == expected
    assert account(raw, "sim:0")["used"] >= 8 * MIB
    old.close()
    wait_until(lambda: account(raw, "sim:0")["used"] == 0, 10 * slowness(), "the old blocks' end")
    assert new.tensors() == expected
    new.close()


def model_of(raw, path):
    return next(one for one in raw.call("list")["models"] if one["name"] == path.name)


def places(of):
    return {place["device"]: place["bytes"] for place in of}


@pytest.mark.parametrize("allocation", ["cpu", "sim:1"])
def test_who_leases_it_is_given_his_blocks_after_it_moved(cards, raw, tmp_path, allocation):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 6)
    lease = load(raw, path, "sim:0")
    with cards.raw() as other:
        other.call("place", {"model": lease.result["model"]["id"], "allocation": allocation})
    assert lease.tensors() == expected  # not asked for before
    lease.close()
    unload_all(raw)


def test_where_tells_of_the_current_generation_and_apart_of_what_older_ones_hold(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)
    old = load(raw, path, "sim:0")
    before = places(model_of(raw, path)["where"])
    assert set(before) == {"sim:0"} and "older" not in model_of(raw, path)
    model = raw.call("place", {"model": path.name, "allocation": "sim:1"})["model"]
    for told in (model, model_of(raw, path)):
        assert places(told["where"]) == {"sim:1": before["sim:0"]}
        assert places(told["older"]) == before
    old.close()
    wait_until(lambda: "older" not in model_of(raw, path), 10 * slowness(), "the old blocks' end")
    assert set(places(model_of(raw, path)["where"])) == {"sim:1"}
    unload_all(raw)


def test_an_unload_of_a_device_names_who_holds_what_lay_there_before_a_move(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)
    old = load(raw, path, "sim:0")
    raw.call("place", {"model": path.name, "allocation": "sim:1"})
    report = raw.call("unload", {"select": {"device": "sim:0"}})
    assert report["unloaded"] == report["kept"] == [] and report["total_bytes"] == 0
    held, = report["held"]
    assert held["bytes"] >= 8 * MIB and f"in use by PID {os.getpid()}" in held["reason"], held
    assert [one["pid"] for one in held["holders"]] == [os.getpid()]
    assert model_of(raw, path)["state"] == "resident", "it lies elsewhere, and stays there"
    old.close()
    wait_until(lambda: account(raw, "sim:0")["used"] == 0, 10 * slowness(), "the old blocks' end")
    lease = attach(raw, path)
    assert set(lease.bytes_on()) == {"sim:1"}
    lease.close()
    unload_all(raw)


def test_history_says_where_a_model_lies_and_lay_and_no_device_that_is_not_so(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)
    load(raw, path, "sim:0,50%;cpu,50%").close()
    raw.call("place", {"model": path.name, "allocation": "sim:1"})
    unload_all(raw)
    load(raw, path, "sim:0").close()
    unload_all(raw)
    told = [(one["type"], one.get("device"), one.get("why"))
            for one in raw.call("events.history", {"model": path.name})["records"]]
    begun, done, placed, left, also, gone, again, last, end = told
    assert begun == again == ("load.begun", None, None)
    assert done[:2] == ("load.done", None) and done[2].startswith("into sim:0 "), done
    assert placed == ("placed", "sim:1", f"as asked, from {done[2][len('into '):]} to sim:1")
    assert {left, also} == {("unloaded", device, "what was there before a move")
                            for device in ("cpu", "sim:0")}
    assert gone == ("unloaded", "sim:1", "as asked")
    assert last == ("load.done", "sim:0", "into sim:0")
    assert end == ("unloaded", "sim:0", "as asked")


def test_history_says_for_whom_room_was_reserved_and_what_came_back_after_it(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [8 * MIB] * 6)
    load(raw, path, "sim:0").close()
    with cards.raw(timeout=60.0) as program:
        program.call("reserve", {"device": "sim:0", "bytes": 40 * MIB})
    wait_until(lambda: model_of(raw, path)["state"] == "resident", 10 * slowness(), "the model")
    records = raw.call("events.history", {"model": path.name})["records"]
    evicted = next(one for one in records if one["type"] == "evicted")
    assert f"(PID {os.getpid()})" in evicted["for_whom"] and evicted["device"] == "sim:0"
    assert evicted["why"] == f"its room is reserved for {evicted['for_whom']}"
    assert records[-1]["type"] == "load.done"
    assert records[-1]["why"] == "back after make-room, into sim:0"
    unload_all(raw)


def test_what_an_unload_says_is_freed_is_free(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 14)
    for allocation in ("cpu", "sim:0,50%;cpu,50%", "sim:0") * 3:
        load(raw, path, allocation).close()
        charged = sum(used(raw).values())
        report = raw.call("unload", {"select": {"models": [path.name]}})
        after = raw.call("devices")["devices"]
        assert report["total_bytes"] == charged >= 28 * MIB
        assert not any(one["used"] or one.get("dropping") for one in after), after


def test_what_has_but_its_header_in_ram_does_not_lie_there(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)
    load(raw, path, "sim:0").close()
    assert set(places(model_of(raw, path)["where"])) == {"sim:0"}
    assert raw.call("list", {"device": "ram"})["models"] == []
    assert account(raw, "cpu")["models"] == 0 and account(raw, "sim:0")["models"] == 1
    report = raw.call("unload", {"select": {"device": "ram"}})
    assert [report[key] for key in ("unloaded", "held", "kept")] == [[], [], []]
    raw.call("place", {"model": path.name, "allocation": "sim:0,50%;cpu,50%"})
    assert [one["name"] for one in raw.call("list", {"device": "ram"})["models"]] == [path.name]
    assert account(raw, "cpu")["models"] == 1
    unload_all(raw)


def test_what_a_model_has_there_itself_is_not_called_free(cards, raw, tmp_path):
    """A refusal says what devices says: nothing is free there, and none of others can go."""
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 8, head=0)
    load(raw, path, "sim:0").close()
    raw.call("budget", {"device": "sim:0", "bytes": 18 * MIB})  # three blocks, rounded up
    wait_until(lambda: account(raw, "sim:0")["used"] <= 18 * MIB)
    told = account(raw, "sim:0")
    with opened(path) as fd, pytest.raises(RawError) as refused:
        raw.call("load", {"allocation": "sim:0"}, [fd])
    error = refused.value.error
    assert "where 18.0M can be had (0 free, 18.0M its own, 0 evictable, " in error["message"]
    assert error["detail"]["free"] == told["free"] == error["detail"]["evictable"] == 0
    assert told["evictable"] == 18 * MIB
    unload_all(raw)


def test_a_move_that_does_not_fit_leaves_it_as_it_was(raw, tmp_path):
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    expected = make_blocks(path, [8 * MIB] * 4)
    make_blocks(other, [8 * MIB] * 5, seed=50)
    mine = load(raw, path, "sim:0")
    taken = load(raw, other, "sim:1")  # and it is in use
    with pytest.raises(RawError) as refused:
        raw.call("place", {"model": path.name, "allocation": "sim:1"})
    assert refused.value.code == "no-memory" and "sim:1" in refused.value.error["message"]
    assert mine.tensors() == expected
    again = attach(raw, path)
    assert again.layout["places"] == mine.layout["places"]
    for lease in (mine, taken, again):
        lease.close()


# ---- eviction --------------------------------------------------------------------------------


@pytest.fixture
def slow_card(start_daemon):
    """24 MiB take a second and a half."""
    return start_daemon("sim.count=1", "sim.memory=64M", "sim.link=16M", "gpu.budget=100%",
                        "memory.ram=64M", "memory.reserve=0")


@pytest.mark.parametrize("allocation", ["sim:0", "sim:0,0.9"])
def test_a_load_waits_for_one_under_way_that_may_go_then(slow_card, tmp_path, allocation):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    make_blocks(first, [2 * MIB] * 12)
    expected = make_blocks(second, [2 * MIB] * 12, seed=50)
    with slow_card.raw(timeout=60.0 * slowness()) as raw, slow_card.raw() as other:
        with opened(first) as fd:
            number = raw.request("load", {"allocation": "sim:0"}, [fd])
        wait_until(lambda: account(other, "sim:0").get("used", 0) > 0, 10 * slowness(), "its begin")
        lease = load(other, second, allocation)  # there is no room for both
        assert lease.tensors() == expected
        assert raw.wait(number)[0] is None
        lease.close()
        unload_all(other)


def test_who_waits_is_told_for_what(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "sim.link=1M", "gpu.budget=100%",
                          "memory.ram=64M", "memory.reserve=0")
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for seed, path in enumerate(paths):
        make_blocks(path, [2 * MIB] * 12, seed=seed + 1)
    with contextlib.ExitStack() as stack:

        def begin(path):
            raw = stack.enter_context(daemon.raw(timeout=20 * slowness()))
            with opened(path) as fd:
                raw.request("load", {"allocation": "sim:0"}, [fd])
            return raw

        def told(raw):
            name, params = raw.recv()[0][1:]
            assert name == "load.progress" and params["bytes"] == 0, params
            assert (params["total"] > 0) == (params["phase"] == "room"), params
            return params["phase"]

        first = begin(paths[0])  # it takes a minute or half of one
        assert told(first) == "header"
        with daemon.raw() as other:
            wait_until(lambda: account(other, "sim:0").get("used", 0) > 0, 10 * slowness(), "room")
        second = begin(paths[1])
        assert [told(second), told(second)] == ["header", "room"]
        assert told(begin(paths[1])) == "room", "who joins is told at once"
        third = begin(paths[2])
        assert told(third) == "queued", "two of a user's run"
        assert told(begin(paths[2])) == "queued"


def test_a_load_waits_for_what_a_cancelled_one_lets_go_of(slow_card, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 12)
    with slow_card.raw(timeout=60.0 * slowness()) as raw, slow_card.raw() as other:
        with opened(path) as fd:
            number = raw.request("load", {"allocation": "sim:0"}, [fd])
        wait_until(lambda: account(other, "sim:0").get("used", 0) > 0, 10 * slowness(), "its begin")
        raw.call("cancel", {"id": number})
        lease = load(other, path, "sim:0")  # there is no room beside what is let go of
        assert lease.tensors() == expected
        assert raw.wait(number)[0]["code"] == "cancelled"
        lease.close()
        unload_all(other)


def test_a_move_that_begins_again_says_what_was_moved_in_the_end(slow_card, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 6)
    with slow_card.raw(timeout=60.0 * slowness()) as raw, slow_card.raw() as other:
        load(raw, path, "cpu", backing="image").close()
        number = raw.request("place", {"model": path.name, "allocation": "sim:0,17M;cpu,*"})
        wait_until(lambda: account(other, "sim:0").get("used", 0) > 0, 10 * slowness(), "its begin")
        os.utime(path)
        with opened(path) as fd:  # of another content, so that it is all read again
            other.call("load", {}, [fd])
        error, result = raw.wait(number)[:2]
        assert error is None, error
        assert result["moved"] == os.path.getsize(path)
        unload_all(other)


def test_blocks_are_evicted_one_by_one_and_only_they_are_read_again(raw, tmp_path):
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    expected = make_blocks(path, [8 * MIB] * 6)
    theirs = make_blocks(other, [8 * MIB] * 3, seed=50)
    load(raw, path, "sim:0").close()
    lease = load(raw, other, "sim:0")
    assert lease.tensors() == theirs
    model = next(one for one in raw.call("list")["models"] if one["name"] == path.name)
    assert model["state"] == "partial"
    left = sum(place["bytes"] for place in model["where"] if place["device"] == "sim:0")
    assert 24 * MIB <= left < 48 * MIB, "the head and the first blocks stay"
    history = raw.call("events.history", {"model": path.name})["records"]
    assert any(one["type"] == "evicted" and one["device"] == "sim:0" and
               other.name in one["why"] for one in history), history
    lease.close()
    for named in {}, {"models": [path.name]}:
        check, = (one for one in raw.call("verify", named)["checks"] if one["name"] == path.name)
        assert check["ok"] and 24 * MIB <= check["bytes"] <= left, (check, left)
        assert check["text"] == "the rest of it is not in memory"
    raw.call("unload", {"select": {"models": [other.name]}})
    lease = load(raw, path)
    assert lease.tensors() == expected and set(lease.bytes_on()) == {"sim:0"}
    lease.close()
    unload_all(raw)


# ---- the whole of it: what is carried out is what was planned ----------------------------------


GRANULE = 2 * MIB  # of a simulated card
PAGE = 4 * KIB


def random_file(chance, path, seed):
    """A model's tensors by their names; every third is a checkpoint of three parts."""
    sizes = [chance.choice([chance.randrange(1, 5000), chance.randrange(1, MIB),
                            chance.randrange(1, 3 * MIB)])
             for _ in range(chance.randrange(1, 24))]
    if chance.randrange(3) > 0:
        return make_blocks(path, sizes, head=chance.choice([0, 1, 5000, 200000]), seed=seed), False
    stems = ["model.diffusion_model.input_blocks", "cond_stage_model.layers",
             "first_stage_model.decoder.up"]
    names = [f"{chance.choice(stems)}.{i}.weight" for i in range(len(sizes))]
    tensors = {name: ("U8", [size], pattern(seed + i, size))
               for i, (name, size) in enumerate(zip(names, sizes))}
    for i, stem in enumerate(stems):  # each has a head, so that each part is there
        tensors[f"{stem.rsplit('.', 1)[0]}.out.weight"] = ("U8", [999], pattern(seed - i, 999))
    return make_safetensors(path, tensors, seed=seed), True


def random_items(chance, cards, total):
    """A string of one part."""
    chosen = chance.sample(cards, chance.randrange(1, len(cards) + 1))
    share = chance.randrange(1, 100)
    return chance.choice([
        ";".join(f"{card},{chance.randrange(1, 24)}M" for card in chosen) + ";cpu,*",
        ";".join(f"{card},{chance.randrange(1, 9)}M" for card in chosen),  # the rest to the host
        ";".join(f"{device},{chance.randrange(1, 100)}%" for device in [*chosen, "cpu"]),
        ";".join(f"{device},{chance.randrange(1, 100)}%" for device in ["cpu", *chosen]),
        f"{chosen[0]},{share}%;cpu,*",
        ";".join(f"{card},0.{chance.randrange(10, 60)}" for card in chosen) + ";cpu,*",
        ";".join(f"{card},0.{chance.randrange(10, 99)}" for card in chosen),
        f"cpu,{chance.randrange(1, 1 + total // KIB)}k;{chosen[0]},*",
        f"{chosen[0]},{chance.randrange(1, 9)}M;{chosen[-1]},{chance.randrange(1, 9)}M*"
        if len(chosen) > 1 else chosen[0],
        chosen[0], "auto",
    ])


def random_request(chance, cards, total, has_parts):
    """What a load is told of where its blocks go, and what `plan` is told for the same."""
    kind = chance.randrange(10)
    if kind == 0:
        return {"allocation": "cpu"}, ["cpu"]
    if kind == 1:
        words = {"virtual_vram": chance.randrange(1, total + 2), "compute": chance.choice(cards)}
        arguments = ["--virtual-vram", f"{words['virtual_vram']}b", "--compute", words["compute"]]
        donors = [device for device in [*cards, "cpu"] if device != words["compute"]]
        if chance.randrange(2):
            words["donors"] = chance.sample(donors, chance.randrange(1, len(donors) + 1))
            arguments += ["--donors", ",".join(words["donors"])]
    else:
        text = random_items(chance, cards, total)
        if has_parts and chance.randrange(3):
            parts = chance.sample(["unet", "clip", "vae"], chance.randrange(1, 4))
            text = "|".join(f"{part}={chance.choice(['cpu', random_items(chance, cards, total)])}"
                            for part in parts)
        words, arguments = {"allocation": text}, [text]
        if text == "auto" and chance.randrange(2):
            words["compute"] = chance.choice(cards)
            arguments += ["--compute", words["compute"]]
    for option, choices in (("strategy", [None, "spread", "contiguous"]),
                            ("granularity", [None, None, "tensor"])):
        choice = chance.choice(choices)
        if choice is not None:
            words[option] = choice
            arguments += [f"--{option}", choice]
    return words, arguments


def charged(lease, path):
    """What each device gives for the lease's model: a card whole granules a block, the host the
    pages of its image that hold the header or a tensor that is there."""
    sums = {}
    ends = {}
    with open(path, "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    pages = set(range(-(-header // PAGE)))
    for (_name, _shard, block, offset, size), at in zip(lease.table.tensors,
                                                        lease.table.segment_offsets()):
        ends[block] = max(ends.get(block, 1), at + size)
        if lease.device_of(block) == "cpu":
            pages.update(range(offset // PAGE, -(-(offset + size) // PAGE)))
    for block, end in ends.items():
        device = lease.device_of(block)
        if device != "cpu":
            sums[device] = sums.get(device, 0) + -(-end // GRANULE) * GRANULE
    return {**sums, "cpu": len(pages) * PAGE}


def refused_alike(raw, path, words, code):
    with opened(path) as fd, pytest.raises(RawError) as refused:
        raw.call("load", words, [fd])
    assert refused.value.code == code, (words, refused.value.error)


def check_carried_out(raw, path, words, wanted, expected):
    lease = load(raw, path, **words)
    got = [lease.device_of(i) for i in range(len(lease.places))]
    assert got == [block["device"] for block in wanted["blocks"]], words
    assert lease.tensors() == expected, words
    sums = lease.bytes_on()
    for device in wanted["devices"]:
        assert sums.get(device["name"], 0) == device["bytes"], (words, device)
    assert {name: size for name, size in used(raw).items() if size > 0} == \
        charged(lease, path), words
    lease.close()


@pytest.mark.seconds(900)
@pytest.mark.parametrize("seed", range(8))
def test_what_is_carried_out_is_what_was_planned(start_daemon, tmp_path, seed):
    """Random files, strings and sets of cards: byte for byte, to the byte of each account, and
    what `plan` refuses a load does too."""
    chance = random.Random(seed)
    memory = chance.randrange(16, 97)
    cards = [f"sim:{i}" for i in range(1 + seed % 4)]
    daemon = start_daemon(f"sim.count={len(cards)}", f"sim.memory={memory}M", "gpu.budget=100%",
                          "memory.ram=256M", "memory.reserve=0")
    devices = ",".join([*(f"{card}={memory}M" for card in cards), "cpu=256M"])
    n_wanted = 25 if slowness() == 1 else 6  # a sanitizer takes its time
    n_done = number = 0
    with daemon.raw(timeout=60.0) as raw:
        while n_done < n_wanted:
            number += 1
            path = tmp_path / f"m{number}.safetensors"
            expected, has_parts = random_file(chance, path, number)
            words, arguments = random_request(chance, cards, sum(map(len, expected.values())),
                                              has_parts)
            done = plan_here(path, *arguments, "--devices", devices, "--json")
            if done.returncode != 0:
                assert done.returncode in (2, 6), (words, done.stderr)
                refused_alike(raw, path, words, "bad-argument" if done.returncode == 2
                              else "no-memory")
            else:
                check_carried_out(raw, path, words, json.loads(done.stdout), expected)
                n_done += 1
            raw.call("unload", {"select": {"all": True}})
            path.unlink()
            wait_for_zero(raw)
    assert n_done > number // 3, "many of them can be done"


@pytest.mark.seconds(600)
@pytest.mark.parametrize("seed", range(3))
def test_a_file_that_nobody_has_loaded_is_planned_as_it_would_be_loaded(start_daemon, tmp_path, seed):
    """Beside models that may be evicted, and such as may not; with links between cards or not."""
    chance = random.Random(100 + seed)
    cards = [f"sim:{i}" for i in range(2 + seed % 2)]
    daemon = start_daemon(f"sim.count={len(cards)}", "sim.memory=32M", "gpu.budget=100%",
                          f"sim.peers={'no' if seed == 1 else 'yes'}", "memory.ram=64M",
                          "memory.reserve=0")
    n_refused = n_done = 0
    with daemon.raw(timeout=60.0) as raw:
        for number in range(24 if slowness() == 1 else 6):
            path, there = (tmp_path / f"{what}{number}.safetensors" for what in ("m", "there"))
            make_blocks(there, [chance.randrange(1, 5) * MIB for _ in range(6)], seed=number)
            load(raw, there, chance.choice([*cards, "cpu", "sim:1,50%;cpu,*"]),
                 policy={"pin": chance.random() < 0.5}).close()
            expected, has_parts = random_file(chance, path, number)
            words, arguments = random_request(chance, cards, sum(map(len, expected.values())),
                                              has_parts)
            done = ctl(daemon, "plan", path, *arguments, "--json")
            if done.returncode != 0:
                assert done.returncode in (2, 6), (words, done.stderr)
                refused_alike(raw, path, words, "bad-argument" if done.returncode == 2
                              else "no-memory")
                n_refused += done.returncode == 6
            else:
                lease = load(raw, path, **words)
                got = [lease.device_of(i) for i in range(len(lease.places))]
                assert got == [one["device"] for one in json.loads(done.stdout)["blocks"]], words
                lease.close()
                n_done += 1
            raw.call("set", {"model": there.name, "policy": {"pin": False}})
            raw.call("unload", {"select": {"all": True}})
            wait_for_zero(raw)
    assert n_done > 0 and n_refused > 0 or slowness() > 1


# ---- a card that dies -------------------------------------------------------------------------


def worker_pids(daemon):
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0")
            parent = int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == daemon.pid and b"worker" in words[0]:
            found[next((word.decode() for word in words if word.startswith(b"sim:")), "")] = \
                int(pid)
    return found


@pytest.mark.fault("G04")
def test_a_card_that_dies_takes_its_copies_only_and_they_come_back(cards, raw, tmp_path):
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    expected = make_blocks(path, [2 * MIB] * 6)
    theirs = make_blocks(other, [2 * MIB] * 4, seed=50)
    raw.call("subscribe", {"events": ["lost", "device"]})
    mine = load(raw, path, "sim:0,50%;cpu,50%")
    untouched = load(raw, other, "sim:1,50%;cpu,50%")
    before = mine.tensors()
    os.kill(worker_pids(cards)["sim:0"], signal.SIGKILL)
    wait_until(lambda: account(raw, "sim:0")["state"] != "ok" or
               any(name == "device" for name, _ in raw.events), 10 * slowness(), "the loss")
    assert untouched.tensors() == theirs
    assert mine.tensors() == before == expected  # what he maps is his

    def is_back():
        raw.call("ping")
        model = next(one for one in raw.call("list")["models"] if one["name"] == path.name)
        return account(raw, "sim:0")["state"] == "ok" and model["state"] == "resident"

    wait_until(is_back, 30 * slowness(), "the card and the blocks")
    assert any(name == "lost" and event["lease"] == mine.number for name, event in raw.events)
    assert not any(name == "lost" and event["lease"] == untouched.number
                   for name, event in raw.events)
    again = attach(raw, path)
    assert again.tensors() == expected and again.layout["places"] == mine.layout["places"]
    for lease in (mine, untouched, again):
        lease.close()
    unload_all(raw)


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_move_that_does_not_end_well_is_told_as_a_move(slow_card, tmp_path, end):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 24)
    with slow_card.raw(timeout=60.0 * slowness()) as raw, slow_card.raw() as other:
        load(raw, path, "cpu", backing="image").close()
        number = raw.request("place", {"model": path.name, "allocation": "sim:0"})
        while not raw.events or raw.events[-1][1]["bytes"] < 4 * MIB:
            raw.events.append(raw.recv()[0][1:])
        if end == "failed":
            os.kill(worker_pids(slow_card)["sim:0"], signal.SIGKILL)
        else:
            raw.call("cancel", {"id": number})
        assert raw.wait(number)[0]["code"] == {"failed": "device-lost"}.get(end, end)
        wait_until(lambda: account(other, "sim:0")["state"] == "ok" and
                   not account(other, "sim:0")["used"], 30 * slowness(), "the card")
        told = other.call("events.history", {})["records"]
        assert [one["type"] for one in told] == ["load.begun", "load.done", f"place.{end}"], told
        metrics = other.call("metrics")["text"].splitlines()
        for line in (f'distorchd_loads_total{{result="{end}",source="disk"}} 0',
                     'distorchd_evictions_total{reason="fault"} 0'):
            assert line in metrics
        unload_all(other)


# ---- plan, reserve, recall ---------------------------------------------------------------------


def test_who_asks_for_blocks_of_a_lost_device_is_told_so(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    raw.call("subscribe", {"events": ["lost"]})
    lease = load(raw, path, "sim:0")
    os.kill(worker_pids(cards)["sim:0"], signal.SIGKILL)
    wait_until(lambda: raw.call("ping") is not None and any(name == "lost" for name, _ in raw.events),
               10 * slowness(), "the loss")
    with pytest.raises(RawError) as failure:
        lease.tensors()
    assert failure.value.code == "device-lost", failure.value.error
    wait_until(lambda: raw.call("list")["models"][0]["state"] == "resident" and
               account(raw, "sim:0")["state"] == "ok", 30 * slowness(), "another generation")
    with pytest.raises(RawError) as failure:
        lease.tensors()
    assert failure.value.code == "device-lost", failure.value.error
    lease.close()
    unload_all(raw)


def test_a_plan_of_what_is_there_says_what_place_does(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 6)
    load(raw, path).close()
    for allocation in ("sim:0,50%;cpu,50%", "sim:1", "auto", "sim:0,5M;sim:1,3M;cpu,*"):
        wait_until(lambda: not any(device.get("dropping") for device in
                                   raw.call("devices")["devices"]), 20, "all that went being gone")
        before = used(raw)
        planned = raw.call("plan", {"model": path.name, "allocation": allocation})
        assert used(raw) == before, "it changes nothing"
        raw.call("place", {"model": path.name, "allocation": allocation})
        lease = attach(raw, path)
        assert [block["device"] for block in planned["blocks"]] == \
            [lease.device_of(i) for i in range(len(lease.places))]
        assert {share["device"]: share["bytes"] for share in planned["devices"]
                if share["bytes"]} == lease.bytes_on()
        lease.close()
    with pytest.raises(RawError) as refused:
        raw.call("plan", {"model": path.name, "allocation": "sim:9,1g"})
    assert refused.value.code == "bad-argument" and "sim:9" in str(refused.value.error)
    with pytest.raises(RawError) as refused:
        raw.call("plan", {"model": "nothing", "allocation": "sim:0"})
    assert refused.value.code == "not-found"
    unload_all(raw)


def test_a_plan_of_a_move_counts_what_is_there_until_it_is_done(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 12)
    lease = load(raw, path, "sim:0,40M;sim:1,*")
    before = {(one["device"], one["bytes"]) for one in lease.result["model"]["where"]}
    for verb in "plan", "place":
        with pytest.raises(RawError) as refused:
            raw.call(verb, {"model": lease.result["model"]["id"], "allocation": "sim:1,40M;sim:0,*"})
        assert refused.value.code == "no-memory", refused.value.error
        assert "until the move is done" in refused.value.error["hint"], refused.value.error
    model, = raw.call("list")["models"]
    assert {(one["device"], one["bytes"]) for one in model["where"]} == before
    lease.close()
    unload_all(raw)


def test_a_plan_says_what_has_to_go_for_it_and_what_is_free_then(cards, raw, tmp_path):
    old, path = tmp_path / "old.safetensors", tmp_path / "m.safetensors"
    make_blocks(old, [12 * MIB] * 4, head=0)
    make_blocks(path, [6 * MIB] * 3, head=0)
    load(raw, old, "sim:0").close()
    load(raw, path).close()
    planned = raw.call("plan", {"model": path.name, "allocation": "sim:0"})
    assert any("at least 2.0M of models that nobody uses are evicted from sim:0" in warning
               for warning in planned["warnings"]), planned["warnings"]
    after = {share["device"]: share["free_after"] for share in planned["devices"]}["sim:0"]
    raw.call("place", {"model": path.name, "allocation": "sim:0"})
    assert account(raw, "sim:0")["free"] == after == 10 * MIB, "a block of 12M goes for 2M"
    done = raw.call("plan", {"model": path.name, "allocation": "sim:0"})
    assert not any("evicted" in warning for warning in done["warnings"])
    unload_all(raw)


def test_room_is_made_and_what_was_there_comes_back(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [8 * MIB] * 6)
    load(raw, path, "sim:0").close()
    with cards.raw(timeout=60.0) as program:
        assert program.call("reserve", {"device": "sim:0", "bytes": 40 * MIB})["token"]
        card = account(raw, "sim:0")
        assert card["reserved"] == 40 * MIB and card["used"] <= 64 * MIB
        model = next(one for one in raw.call("list")["models"] if one["name"] == path.name)
        assert model["state"] == "partial"
    # Its connection is gone, as after kill -9 of the program.
    wait_until(lambda: account(raw, "sim:0")["reserved"] == 0, 10 * slowness())
    wait_until(lambda: next(one for one in raw.call("list")["models"]
                            if one["name"] == path.name)["state"] == "resident",
               10 * slowness(), "the model")
    lease = attach(raw, path)
    assert lease.tensors() == expected
    lease.close()
    unload_all(raw)


def test_reservations_end_by_release_and_by_time(raw):
    token = raw.call("reserve", {"device": "sim:1", "bytes": MIB})["token"]
    assert account(raw, "sim:1")["reserved"] == MIB
    raw.call("release", {"token": token})
    assert account(raw, "sim:1")["reserved"] == 0
    with pytest.raises(RawError) as refused:
        raw.call("release", {"token": token})
    assert refused.value.code == "not-found"
    raw.call("reserve", {"device": "sim:1", "bytes": MIB, "ttl_ms": 200})
    wait_until(lambda: account(raw, "sim:1")["reserved"] == 0, 10 * slowness(), "its time")
    for params, code in (({"device": "sim:1", "bytes": 0}, "bad-argument"),
                         ({"device": "sim:7", "bytes": MIB}, "not-found"),
                         ({"device": "sim:1", "bytes": 1 << 40}, "no-memory")):
        with pytest.raises(RawError) as refused:
            raw.call("reserve", params)
        assert refused.value.code == code, refused.value.error
    assert refused.value.error["hint"].endswith("ask for less"), refused.value.error


def test_a_reservation_names_its_own_device_when_others_are_lost_too(cards, raw):
    for name in "sim:0", "sim:1":
        raw.call("drain", {"device": name, "on": True})
    wait_until(lambda: all(one["state"] != "ok" for one in raw.call("devices")["devices"][1:]),
               10 * slowness(), "both being let go of")
    with pytest.raises(RawError) as refused:
        raw.call("reserve", {"device": "sim:1", "bytes": MIB})
    assert refused.value.code == "device-lost"
    assert refused.value.error["message"].startswith("sim:1 (Simulated device), which was to have the reservation")
    for name in "sim:0", "sim:1":
        raw.call("drain", {"device": name, "on": False})
    wait_until(lambda: all(one["state"] == "ok" for one in raw.call("devices")["devices"]),
               30 * slowness(), "both being back")


def test_who_answers_a_recall_makes_room(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [8 * MIB] * 6)
    lease = load(raw, path, "sim:0")
    with cards.raw(timeout=60.0) as other:
        number = other.request("reserve", {"device": "sim:0", "bytes": 40 * MIB,
                                           "recall_ms": 60000})
        wait_until(lambda: raw.call("ping") is not None and
                   any(name == "recall" for name, _ in raw.events), 10 * slowness(), "the recall")
        event = next(event for name, event in raw.events if name == "recall")
        assert event["lease"] == lease.number and event["deadline_ms"] == 60000
        assert "sim:0" in event["reason"]
        lease.close()
        error, result, _fds = other.wait(number)
        assert error is None and result["token"]


def test_who_does_not_answer_a_recall_is_named(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [8 * MIB] * 6)
    lease = load(raw, path, "sim:0")
    lease.map_blocks()
    with cards.raw(timeout=60.0) as other:
        with pytest.raises(RawError) as refused:
            other.call("reserve", {"device": "sim:0", "bytes": 40 * MIB, "recall_ms": 300})
        error = refused.value.error
        assert error["code"] == "busy" and error["retryable"]
        assert os.getpid() in {holder["pid"] for holder in error["detail"]["holders"]}, error
    log = cards.log()
    assert f"(PID {os.getpid()}) to let go of m.safetensors: room on sim:0 (Simulated device) is asked for" in log
    assert "refused room for " in log and "those who were asked to let go of sim:0 (Simulated device) did not" in log
    assert lease.tensors() == expected
    assert account(raw, "sim:0")["used"] >= 48 * MIB
    lease.close()
    unload_all(raw)


def test_an_unload_may_ask_for_leases(cards, raw, tmp_path):
    path, other_path = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    make_blocks(path, [MIB])
    make_blocks(other_path, [MIB], seed=9)
    both = [load(raw, path), load(raw, other_path)]
    with cards.raw(timeout=20.0) as other:  # nothing else wakes a daemon that forgot an answer
        number = other.request("unload", {"select": {"all": True}, "mode": "recall",
                                          "recall_ms": 3600000})
        wait_until(lambda: raw.call("ping") is not None and
                   len([1 for name, _ in raw.events if name == "recall"]) == 2,
                   10 * slowness(), "both recalls")
        for lease in both:
            lease.close()
        error, result, _fds = other.wait(number)
        assert error is None and result["held"] == []
        assert {one["name"] for one in result["unloaded"]} == {path.name, other_path.name}
        load(raw, path).close()
        deaf = load(raw, other_path)
        result = other.call("unload", {"select": {"all": True}, "mode": "recall",
                                       "recall_ms": 300})
        assert [one["name"] for one in result["unloaded"]] == [path.name]
        assert [one["name"] for one in result["held"]] == [other_path.name]
        with pytest.raises(RawError) as refused:
            other.call("unload", {"select": {"all": True}, "mode": "force"})
        assert refused.value.code == "unsupported"
        with pytest.raises(RawError) as refused:
            other.call("unload", {"select": {"all": True}, "recall_ms": 5})
        assert refused.value.code == "bad-argument"
    deaf.close()


def test_an_unload_that_waits_for_leases_can_be_cancelled(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB])
    deaf = load(raw, path)
    with cards.raw(timeout=60.0) as other:
        number = other.request("unload", {"select": {"all": True}, "mode": "recall",
                                          "recall_ms": 3600000})
        assert other.call("cancel", {"id": number})["found"]
        error, result, _fds = other.wait(number)
        assert error is None, "it was done: only the wait is over"
        assert [one["name"] for one in result["held"]] == [path.name]
        assert not other.call("cancel", {"id": number})["found"], "it is answered"
    assert deaf.tensors() == expected
    deaf.close()
    wait_until(lambda: not raw.call("status")["devices"][0]["used"], 10 * slowness(), "it goes")


def test_a_lease_that_ends_with_its_bytes_mapped_is_not_told_as_freed(cards, raw, tmp_path):
    """Its connection is gone, its process is not."""
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 2)
    holder = cards.raw(timeout=60.0)
    lease = load(holder, path)
    number = raw.request("unload", {"select": {"all": True}, "mode": "recall",
                                    "recall_ms": 3600000})
    wait_until(lambda: holder.call("ping") is not None and
               any(name == "recall" for name, _ in holder.events), 10 * slowness(), "the recall")
    holder.close()
    error, result, _fds = raw.wait(number)
    assert error is None
    assert result["unloaded"] == [] and result["total_bytes"] == 0
    (held,) = result["held"]
    assert held["name"] == path.name and "still mapped by PID" in held["reason"], held
    assert {one["pid"] for one in held["holders"]} == {os.getpid()}, held
    assert lease.tensors() == expected
    lease.close(detach=False)
    raw.call("unmapped", {"lease": lease.number, "epoch": cards.status()["epoch"]})


def test_of_a_lease_that_ends_what_others_map_is_told_apart(cards, raw, tmp_path):
    """Half of it is what a process without a connection maps of the place before."""
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    gone = cards.raw(timeout=60.0)
    before = load(gone, path, "sim:0")
    before.map_blocks()
    raw.call("place", {"model": path.name, "allocation": "sim:0,50%;sim:1,50%"})
    gone.close()
    wait_until(lambda: account(raw, "sim:0")["held"] > 0, 10 * slowness(), "what was there before")
    with cards.raw(timeout=60.0) as holder:
        lease = attach(holder, path)
        number = raw.request("unload", {"select": {"all": True}, "mode": "recall",
                                        "recall_ms": 3600000})
        wait_until(lambda: holder.call("ping") is not None and
                   any(name == "recall" for name, _ in holder.events), 10 * slowness(), "a recall")
        lease.close()
        error, result, _fds = raw.wait(number)
    assert error is None
    (unloaded,), (held,) = result["unloaded"], result["held"]
    on = {name: account(raw, name) for name in ("sim:0", "sim:1")}
    assert unloaded["bytes"] == result["total_bytes"] == 2 * 2 * MIB, result
    assert 0 <= held["bytes"] - on["sim:0"]["held"] < 64 << 10, "beside it, the host's header"
    assert on["sim:1"]["used"] == 0
    before.close(detach=False)
    raw.call("unmapped", {"lease": before.number, "epoch": cards.status()["epoch"]})
    wait_until(lambda: account(raw, "sim:0")["used"] == 0, 10 * slowness(), "what was mapped")


def test_verify_compares_blocks_with_their_file(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    load(raw, path, "sim:0,50%;cpu,50%").close()
    checks = raw.call("verify")["checks"]
    assert [check["ok"] for check in checks] == [True], checks
    unload_all(raw)


def test_blocks_that_nobody_uses_drop_to_ram(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "memory.ram=256M", "memory.reserve=0",
                          "gpu.linger=1s")
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    with daemon.raw(timeout=60.0) as raw:
        lease = load(raw, path, "sim:0")
        raw.call("ping")
        lease.close()
        wait_until(lambda: account(raw, "sim:0")["used"] == 0, 30 * slowness(), "the card's end")
        lease = attach(raw, path)
        assert lease.layout is None and lease.tensors() == expected
        history = raw.call("events.history", {"model": path.name})["records"]
        placed = [one for one in history if one["type"] == "placed"]
        assert [(one["why"], one["device"]) for one in placed] == [
            ("unused on its devices for gpu.linger, from sim:0 to ram", "cpu")]
        lease.close()
        unload_all(raw)


def test_what_lies_on_a_card_in_part_drops_to_ram_too(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "memory.ram=256M", "memory.reserve=0",
                          f"gpu.linger={2 * slowness()}s")
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 16, head=0)
    with daemon.raw(timeout=60.0) as raw:
        load(raw, path, "sim:0").close()
        token = raw.call("reserve", {"device": "sim:0", "bytes": 50 * MIB})["token"]
        assert 0 < account(raw, "sim:0")["used"] < 32 * MIB
        wait_until(lambda: account(raw, "sim:0")["used"] == 0, 30 * slowness(), "the card's end")
        lease = attach(raw, path)
        assert lease.layout is None and lease.tensors() == expected
        lease.close()
        raw.call("release", {"token": token})
        assert account(raw, "sim:0")["used"] == 0, "its time there is over"
        unload_all(raw)


def test_what_comes_back_after_its_time_on_a_card_comes_to_ram(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "memory.ram=256M", "memory.reserve=0",
                          f"gpu.linger={2 * slowness()}s")
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 4, head=0)
    with daemon.raw(timeout=60.0) as raw:
        load(raw, path, "sim:0").close()
        token = raw.call("reserve", {"device": "sim:0", "bytes": 64 * MIB})["token"]
        time.sleep(2.2 * slowness())
        raw.call("release", {"token": token})
        wait_until(lambda: raw.call("list")["models"][0]["state"] == "resident", 30 * slowness())
        lease = attach(raw, path)
        assert lease.layout is None and lease.tensors() == expected
        records = raw.call("events.history", {"model": path.name})["records"]
        assert not any(one["type"] == "placed" for one in records), "in one go"
        lease.close()
        unload_all(raw)


def test_what_only_an_older_lease_keeps_is_all_that_stays(start_daemon, tmp_path):
    """Where the model lies now nobody uses it: that can be evicted, unloaded, and lingers."""
    daemon = start_daemon("sim.count=2", "sim.memory=32M", "memory.ram=64M", "memory.reserve=0",
                          "gpu.linger=1h")
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    expected = make_blocks(path, [MIB] * 8, head=0)
    make_blocks(other, [MIB] * 12, head=0, seed=70)
    with daemon.raw(timeout=60.0) as raw:
        held = load(raw, path, "sim:0")
        raw.call("place", {"model": path.name, "allocation": "sim:1"})
        room = raw.call("reserve", {"device": "sim:1", "bytes": 24 * MIB})
        assert account(raw, "sim:1")["used"] == 8 * MIB and held.tensors() == expected
        raw.call("release", {"token": room["token"]})
        wait_until(lambda: raw.call("list")["models"][0]["state"] == "resident", 30 * slowness())
        assert account(raw, "sim:1")["used"] == 16 * MIB
        load(raw, other, "sim:1").close()
        assert account(raw, "sim:1")["used"] == 32 * MIB
        raw.call("unload", {"select": {"models": [other.name]}})
        raw.call("place", {"model": path.name, "allocation": "cpu"})
        assert account(raw, "cpu")["used"] >= 8 * MIB and account(raw, "sim:0")["used"] == 16 * MIB
        for words in (), ("--device", "sim:0"):
            assert "ram, older on sim:0 " in ctl(daemon, "ps", *words).stdout
        begun = time.monotonic()
        done = raw.call("unload", {"select": {"models": [path.name]}})
        assert time.monotonic() - begun < 9, "who leases the rest is not waited for"
        assert [one["bytes"] >> 20 for one in done["unloaded"]] == [8]
        assert [one["bytes"] >> 20 for one in done["held"]] == [16], "of the older one alone"
        raw.load(path)
        raw.call("place", {"model": path.name, "allocation": "sim:1"})
        with daemon.raw(timeout=60.0) as other:
            newer = load(other, path)
            number = raw.request("reserve", {"device": "sim:1", "bytes": 24 * MIB,
                                             "recall_ms": 60000})
            wait_until(lambda: other.call("ping") is not None and
                       any(name == "recall" for name, _ in other.events), 30 * slowness())
            assert not any(name == "recall" for name, _ in raw.events), "he is not in the way"
            newer.close()
            error, result, _fds = raw.wait(number)
            assert error is None, error
            raw.call("release", {"token": result["token"]})
            newer = load(other, path)
            raw.call("unload", {"select": {"models": [path.name]}})
            newer.close()
            wait_until(lambda: account(raw, "sim:1")["used"] == 0, 30 * slowness(), "its own end")
        wait_until(lambda: account(raw, "cpu")["used"] < MIB, 30 * slowness())
        assert held.tensors() == expected
        held.close()
        wait_until(lambda: account(raw, "sim:0")["used"] == 0, 30 * slowness())
        unload_all(raw)


def test_a_client_counts_devices_in_its_own_order(cards, raw, tmp_path):
    """torch puts the fastest card first; the daemon goes by bus. UUIDs settle it."""
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 4)
    uuids = [account(raw, "sim:1")["uuid"], account(raw, "sim:0")["uuid"]]
    client = RawClient(cards.socket, hello=False, timeout=60.0)
    client.call("hello", {"protocol": [1, 1], "client": "torch/1", "devices": uuids})
    lease = load(client, path, "sim:0,2M;cpu,*")
    assert set(lease.bytes_on()) == {"sim:1", "cpu"}, "its sim:0 is the daemon's sim:1"
    assert lease.layout["uuids"][ord(lease.places[0]) - ord("A")] == uuids[0]
    assert lease.tensors() == expected
    mine = load(raw, path, "sim:0,2M;cpu,*")  # the same words, another card
    assert set(mine.bytes_on()) == {"sim:0", "cpu"}
    other = tmp_path / "other.safetensors"
    make_blocks(other, [MIB] * 4)
    load(raw, other, "sim:1").close()
    for asked, name in (client, "sim:0"), (raw, "sim:1"), (client, uuids[0].lower()):
        found = asked.call("list", {"device": name})["models"]
        assert {one["name"] for one in found} >= {other.name}, name
    client.call("drain", {"device": "sim:0", "on": True})
    assert [account(raw, name).get("draining") for name in ("sim:0", "sim:1")] == [None, True]
    client.call("drain", {"device": "sim:0", "on": False})
    done = client.call("unload", {"select": {"device": "sim:0"}})
    assert [one["name"] for one in done["unloaded"]] == [other.name], "of the card that it means"
    client.call("reserve", {"device": "sim:0", "bytes": MIB})
    assert account(raw, "sim:1")["reserved"] == MIB
    lease.close()
    client.close()
    client = RawClient(cards.socket, hello=False, timeout=60.0)
    client.call("hello", {"protocol": [1, 1], "client": "torch/1", "devices": uuids[:1]})
    for name in ("sim:1", uuids[1]):
        with opened(path) as fd, pytest.raises(RawError) as refused:
            client.call("load", {"allocation": name}, [fd])
        assert refused.value.code == "bad-argument", "a card that it does not see"
        assert f'there is no device "{name}"' in str(refused.value)
        assert "ram, sim:0" in str(refused.value), "those that it sees"
    for words in ({"allocation": "sim:0,2M;cpu,*"}, {"allocation": "auto"}):
        lease = load(client, path, words.pop("allocation"))
        assert "sim:0" not in lease.bytes_on(), "the daemon's, which it does not see"
        assert "sim:1" in lease.bytes_on(), "the one that it sees"
        lease.close()
    client.close()
    client = RawClient(cards.socket, hello=False, timeout=60.0)
    client.call("hello", {"protocol": [1, 1], "client": "torch/1", "devices": ["GPU-1", "GPU-2"]})
    lease = load(client, path, "sim:1,2M;cpu,*")
    assert set(lease.bytes_on()) == {"sim:1", "cpu"}, "of this sort it has said nothing"
    lease.close()
    client.close()
    mine.close()
    unload_all(raw)


def test_blanks_within_a_number_or_a_name_are_not_passed_over(cards, raw, tmp_path):
    """What was said before does not make another text mean the same."""
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    lease = load(raw, path, "sim:0,20M;cpu,*")
    for allocation in ("sim:0,2 0M;cpu,*", "s im:0,20M;cpu,*", "sim:0,20M;c pu,*"):
        with opened(path) as fd, pytest.raises(RawError) as refused:
            raw.call("load", {"allocation": allocation}, [fd])
        assert refused.value.code == "bad-argument", allocation
    again = load(raw, path, " SIM:0 , 20M ;; cpu , * ; ")
    assert again.result["source"] == "ram", "the same, with blanks beside its marks"
    again.close()
    lease.close()
    unload_all(raw)


def test_an_allocation_that_waits_is_not_forgotten(cards, raw, tmp_path):
    """However many others are said meanwhile."""
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    load(raw, path, "cpu").close()
    workers = worker_pids(cards).values()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # the first move does not end
    requests = [raw.request("place", {"model": "m.safetensors", "allocation": text})
                for text in ("sim:0,1M;cpu,*", "sim:0,3M;cpu,*")]
    with RawClient(cards.socket, timeout=60.0) as other:
        for number in range(3000):
            with pytest.raises(RawError):
                other.call("place", {"model": "nothing", "allocation": f"cpu,{number + 9}k*"})
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    for request in requests:
        assert raw.wait(request)[0] is None
    lease = load(raw, path, None)
    assert 2 * MIB < lease.bytes_on().get("sim:0", 0) <= 3 * MIB, "as the second move said"
    lease.close()
    unload_all(raw)


def test_allocations_that_are_of_no_use_any_more_are_forgotten(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 2)
    load(raw, path, "sim:0,1M;cpu,*").close()
    before = cards.status()["rss_bytes"]
    for number in range(8000):  # each one another
        with pytest.raises(RawError) as refused:
            raw.call("place", {"model": "nothing", "allocation": f"cpu,{number + 2}k*"})
        assert refused.value.code == "not-found"
    if slowness() == 1:  # a sanitizer keeps what was freed for a while
        assert cards.status()["rss_bytes"] - before < 16 * MIB
    lease = load(raw, path, "sim:0,1M;cpu,*")  # this one was of use
    assert lease.result["source"] == "ram"
    lease.close()
    unload_all(raw)


def test_what_moves_by_itself_was_not_used_by_that(start_daemon, tmp_path):
    """Its ttl runs from the last use, wherever it has gone meanwhile."""
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "gpu.budget=100%", "memory.ram=256M",
                          "memory.reserve=0", "gpu.linger=1s")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 2)
    with daemon.raw(timeout=60.0) as raw:
        load(raw, path, "sim:0", policy={"ttl_ms": 600000}).close()
        wait_until(lambda: [one["device"] for one in raw.call("list")["models"][0]["where"]]
                   == ["cpu"], 20 * slowness(), "it lies in RAM")
        assert raw.call("list")["models"][0]["last_used_ms"] >= 1000
        unload_all(raw)


def test_what_a_lowered_budget_left_goes_once_nobody_uses_it(cards, raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    lease = load(raw, path, "sim:0", policy={"pin": True})
    raw.call("budget", {"device": "sim:0", "bytes": 3 * MIB})
    assert used(raw)["sim:0"] > 3 * MIB, "it is in use and pinned"
    lease.close()
    assert used(raw)["sim:0"] > 3 * MIB, "it is pinned"
    raw.call("set", {"model": str(path), "policy": {"pin": False}})
    wait_until(lambda: used(raw)["sim:0"] <= 3 * MIB, 10 * slowness(), "what fits is left")
    assert used(raw)["sim:0"] > 0
    unload_all(raw)


@pytest.mark.parametrize("is_used", [False, True])
def test_what_comes_back_after_room_waits_for_what_was_loaded_meanwhile(cards, raw, tmp_path, is_used):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    expected = make_blocks(first, [4 * MIB] * 6)
    make_blocks(second, [4 * MIB] * 5, seed=9)
    load(raw, first, "sim:0").close()
    with cards.raw(timeout=60.0) as program:
        program.call("reserve", {"device": "sim:0", "bytes": 30 * MIB})
        other = load(raw, second, "sim:0")
        if not is_used:
            other.close()
    time.sleep(0.5 * slowness())  # it is tried at once, and has no room
    states = {one["name"]: one["state"] for one in raw.call("list", {"all": True})["models"]}
    assert states == {first.name: "partial", second.name: "resident"}, states
    if is_used:
        other.close()
    raw.call("unload", {"select": {"models": [second.name]}})
    wait_until(lambda: raw.call("show", {"model": first.name})["model"]["state"] == "resident",
               20 * slowness(), "the first one's return")
    why = [(one["type"], one.get("why")) for one in
           raw.call("events.history", {"model": first.name})["records"]]
    assert [one for one in why if one[1] and "back after" in one[1]] == [
        ("load.begun", "back after make-room"), ("load.done", "back after make-room, into sim:0")], why
    lease = attach(raw, first)
    assert lease.tensors() == expected
    lease.close()
    unload_all(raw)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_two_reservations_displaced_comes_back_with_the_last_of_them(cards, raw, tmp_path,
                                                                         order):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)
    load(raw, path, "sim:0,4M;sim:1,*").close()
    before = used(raw)
    tokens = [raw.call("reserve", {"device": name, "bytes": 62 * MIB})["token"]
              for name in ("sim:0", "sim:1")]
    raw.call("release", {"token": tokens[order[0]]})
    wait_until(lambda: raw.call("list")["models"][0]["state"] != "loading", 10 * slowness(),
               "there is no room for it yet")
    raw.call("release", {"token": tokens[order[1]]})
    wait_until(lambda: raw.call("list")["models"][0]["state"] == "resident", 10 * slowness(),
               "it is back")
    assert used(raw) == before, "and lies as it lay"
    unload_all(raw)


def test_a_recall_that_could_not_make_the_room_is_not_waited_for(cards, raw, tmp_path):
    path, other = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    make_blocks(path, [2 * MIB] * 4)
    make_blocks(other, [2 * MIB])
    load(raw, path, "sim:0", policy={"pin": True}).close()
    with cards.raw(timeout=20.0) as asking:
        with pytest.raises(RawError) as refused:
            asking.call("reserve", {"device": "sim:0", "bytes": 62 * MIB, "recall_ms": 60000})
        assert refused.value.code == "no-memory"
    load(raw, other, "sim:0").close()  # nobody waits before it
    raw.call("unload", {"select": {"models": [str(other)]}})
    raw.call("set", {"model": str(path), "policy": {"pin": False}})
    unload_all(raw)


def test_a_file_that_has_changed_finds_no_room_where_its_old_blocks_are_in_use(start_daemon, tmp_path):
    """It took them for its own, and was refused by what it had planned itself."""
    daemon = start_daemon("memory.ram=256M", "memory.reserve=0", "sim.count=1", "sim.memory=64M",
                          "gpu.budget=100%")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB - 4096] * 12)
    with daemon.raw() as raw:
        old = load(raw, path, "sim:0")
        make_blocks(path, [4 * MIB - 4096] * 12, seed=2)
        done = ctl(daemon, "load", path, "--to", "auto", "--compute", "sim:0")
        assert done.returncode == 0, done.stderr
        assert account(raw, "sim:0")["used"] + account(raw, "sim:0")["held"] <= 64 * MIB
        new = attach(raw, path)
        assert new.tensors() != old.tensors()
        new.close()
        old.close()


def small_cards(start_daemon, *settings):
    return start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1", "sim.memory=64M",
                        "gpu.budget=100%", *settings)


@pytest.mark.parametrize("allocation", ["sim:0,4M;cpu,*", "ram"])
def test_a_plan_knows_that_an_image_is_made_anew_beside_the_old(start_daemon, tmp_path, allocation):
    daemon = small_cards(start_daemon)
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB - 4096] * 12)
    assert ctl(daemon, "load", "--to", "sim:0,24M;cpu,*", path).returncode == 0
    refused = ctl(daemon, "place", path.name, allocation)
    assert refused.returncode == 6
    for model in path.name, path:
        planned = ctl(daemon, "plan", model, allocation)
        assert planned.returncode == 6, planned.stdout
        assert planned.stderr.split("budget")[1].split(";")[0] == refused.stderr.split("budget")[1].split(";")[0]
    # what stays as it is needs nothing, and what leaves RAM less
    for fits in "sim:0,24M;cpu,*", "sim:0,36M;cpu,*":
        assert ctl(daemon, "plan", path.name, fits).returncode == 0
        assert ctl(daemon, "place", path.name, fits).returncode == 0


def test_bytes_that_generations_have_in_common_are_told_once(start_daemon, distorch, tmp_path):
    daemon = small_cards(start_daemon)
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB - 4096] * 4)
    with distorch.connect(str(daemon.socket)) as d, daemon.raw() as raw:
        held = [d.open(path, to=to) for to in ("sim:0,12M;cpu,*", "sim:0,8M;cpu,*", "sim:0,4M;cpu,*")]
        assert all(w[next(iter(w))].buffer for w in held)
        big = tmp_path / "big.safetensors"
        make_blocks(big, [4 * MIB - 4096] * 15)
        detail = ctl_json(daemon, "load", "--to", "sim:0", big, status=6)["error"]["detail"]
        assert sum(one["held_bytes"] for one in detail["holders"]) == detail["in_use"]
        users = daemon.models(everything=True)[0]["users"]
        assert sum(user["held_bytes"] for user in users) == raw.call("clients")["clients"][0]["held_bytes"]
        for w in held:
            w.close()


def test_after_a_plan_no_more_is_free_than_the_budget_has(start_daemon, tmp_path):
    daemon = small_cards(start_daemon)
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB - 4096] * 10)
    assert ctl(daemon, "load", "--pin", "--to", "sim:0,40M;cpu,*", path).returncode == 0
    assert ctl(daemon, "budget", "sim:0", "16M").returncode == 0
    plan = ctl_json(daemon, "plan", path.name, "sim:0,8M;cpu,*")
    planned = next(one["free_after"] for one in plan["devices"] if one["name"] == "sim:0")
    assert ctl(daemon, "place", path.name, "sim:0,8M;cpu,*").returncode == 0
    with daemon.raw() as raw:
        wait_until(lambda: account(raw, "sim:0")["free"] == planned, what="as it was planned")


def test_what_goes_once_loads_have_ended_is_in_use_no_more(start_daemon, tmp_path):
    daemon = small_cards(start_daemon, "sim.link=8M")
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    make_blocks(first, [4 * MIB - 4096] * 12)
    make_blocks(second, [4 * MIB - 4096] * 8, seed=2)
    assert ctl(daemon, "load", "--no-wait", "--to", "sim:0", first).returncode == 0
    with daemon.raw() as raw:
        wait_until(lambda: account(raw, "sim:0")["loading"] > 0, what="the load")
    plan = ctl_json(daemon, "plan", second, "sim:0")
    assert not any("are in use then" in warning for warning in plan["warnings"]), plan["warnings"]


def test_a_move_of_nothing_comes_from_nowhere(start_daemon, distorch, tmp_path):
    """It was told to come from where older copies lay, which a lease kept."""
    daemon = small_cards(start_daemon)
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB - 4096] * 4, head=0)
    with distorch.connect(str(daemon.socket)) as d, d.open(path, to="sim:0") as w:
        assert w[next(iter(w))].buffer
        for to in "ram", "sim:0,0;cpu,*":
            assert ctl(daemon, "place", path.name, to).returncode == 0
        placed = [line for line in ctl(daemon, "why", path.name).stdout.splitlines() if "placed" in line]
        assert len(placed) == 2 and "from sim:0 to ram" in placed[0], placed
        assert "from" not in placed[1] and "to ram" in placed[1], placed
