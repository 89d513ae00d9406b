# SPDX-License-Identifier: Apache-2.0
"""Plans over blocks that a client says, of a model that is nowhere: `plan` with blocks."""
import os

import distorch
import msgpack
import pytest
from conftest import PACKET_BYTES, RawError, make_safetensors, slowness, wait_until
from placed import MIB, load, make_blocks
from test_place import cards, raw  # noqa: F401

LARGEST = 2**63 - 1  # of a number in a packet
MOST = 512  # blocks of a request
#: a checkpoint's tensors as they lie in a file, each a block of its own
CHECKPOINT = {
    "model.diffusion_model.out.weight": 3 * MIB + 5,
    **{f"model.diffusion_model.input_blocks.{i}.w": (i + 1) * MIB + i for i in range(5)},
    "model.diffusion_model.input_blocks.10.w": 0,
    "conditioner.embedders.0.w": 6 * MIB,
    "text_encoders.t5.encoder.block.0.w": 2 * MIB,
    "text_encoders.t5.encoder.block.1.w": 2 * MIB + 1,
    "text_encoders.t5.embed.0.w": 999,
    "text_encoders.t5.shared.weight": MIB,
    "first_stage_model.decoder.up.0.w": 4 * MIB,
    "first_stage_model.decoder.up.1.w": 4 * MIB - 1,
    "vae.conv_in.w": 257,
    "other.7.w": MIB,
    "img_in.weight": 77,
}
STRINGS = (
    "cpu", "sim:0", "auto", "sim:0,8mb;cpu,*", "sim:1,5mb;sim:0,9mb;cpu,*", "sim:0,25%;cpu,75%",
    "sim:0,40%;cpu,*", "sim:0,0.1;cpu,0.5", "sim:0,1mb;cpu,2mb*", "cpu,*;sim:0,12mb",
    "unet=sim:0|clip=cpu|vae=sim:1", "unet=sim:0,6mb;cpu,*|clip=sim:1,50%;cpu,50%|vae=sim:0",
    "vae=sim:1", "clip=auto|unet=sim:1,4mb;cpu,*", "unet=auto|vae=cpu,1mb;sim:1,*",
    # and what is refused
    "", "sim:9,1g", "sim:0,2,5gb", "sim:0,1", "cpu,*;sim:0,*", "tea=sim:0", "unet=sim:0|unet=cpu",
    "sim:0,0.00001;cpu,0.00001", "sim:0,*;sim:0,5mb", "sim:0,-1mb", "sim:0,10%;cpu,5mb",
)


def blocks_of(sizes):
    return [{"name": name, "bytes": size} for name, size in sizes.items()]


def ask(raw, **params):
    """The plan, or the error that refuses it."""
    try:
        return raw.call("plan", {"allocation": "cpu", **params})
    except RawError as refused:
        return {"error": refused.error}


def refuse(raw, code, *words, **params):
    error = ask(raw, **params).get("error")
    assert error and error["code"] == code, (params, error)
    for word in words:
        assert word in str(error), (word, error)


def test_blocks_are_planned_as_a_file_of_them_is(raw, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    make_safetensors(path, {name: ("U8", [size]) for name, size in CHECKPOINT.items()})
    said = blocks_of(CHECKPOINT)
    options = ({}, {"strategy": "spread"}, {"compute": "sim:1"})
    planned = [ask(raw, allocation=string, blocks=said, **more)
               for string in STRINGS for more in options]
    virtual = [{"allocation": "", "virtual_vram": 9 * MIB, "compute": "sim:0", **more}
               for more in ({}, {"donors": ["sim:1", "cpu"]}, {"strategy": "contiguous"})]
    planned += [ask(raw, blocks=said, **more) for more in virtual]
    load(raw, path).close()
    there = [ask(raw, allocation=string, model=path.name, **more)
             for string in STRINGS for more in options]
    there += [ask(raw, model=path.name, **more) for more in virtual]
    n_refused = sum("error" in plan for plan in there)
    assert n_refused > 20 and len(there) - n_refused > 30
    for mine, wanted in zip(planned, there):
        if "error" in wanted:
            assert mine == wanted
            continue
        assert [block["name"] for block in mine["blocks"]] == list(CHECKPOINT)
        assert {block.pop("tensors") for block in mine["blocks"]} == {0}
        for block in (*mine["blocks"], *wanted["blocks"]):
            block.pop("name")  # a block of a file is not called as its tensor
        for block in wanted["blocks"]:
            assert block.pop("tensors") == 1
        assert mine == wanted


def test_who_computes_says_what_a_pass_copies_from_ram(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 2)
    load(raw, path).close()
    said = [{"name": "layers.0", "bytes": MIB}]
    for allocation in "cpu", "ram,*":
        for what in {"blocks": said}, {"model": path.name}:
            plan = ask(raw, allocation=allocation, compute="sim:0", **what)
            assert plan["compute"] == "sim:0" and plan["moved_per_pass"] >= MIB, plan
            assert ask(raw, allocation=allocation, **what)["moved_per_pass"] == 0
            refused = ask(raw, allocation=allocation, compute="sim:9", **what)
            assert 'compute: there is no device "sim:9"' in refused["error"]["message"], refused


def test_the_blocks_that_a_plan_names_can_be_planned_again(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB + 1, 2 * MIB, 3 * MIB - 7, MIB])
    load(raw, path).close()
    for string in ("sim:0,4mb;cpu,*", "sim:1,60%;sim:0,40%", "auto"):
        first = ask(raw, model=path.name, allocation=string)
        again = ask(raw, allocation=string, blocks=[
            {key: block[key] for key in ("name", "bytes")} for block in first["blocks"]])
        assert [(block["name"], block["device"]) for block in again["blocks"]] == \
            [(block["name"], block["device"]) for block in first["blocks"]]
        assert again["moved_per_pass"] == first["moved_per_pass"]
    parts = [{"name": name, "bytes": MIB} for name in ("layers.7", "layers.7#2", "layers.7#3")]
    plan = ask(raw, allocation="sim:0,2mb;cpu,*", compute="sim:1", blocks=parts)
    assert [block["device"] for block in plan["blocks"]] == ["sim:0", "sim:0", "cpu"], "no head"


def test_room_is_counted_as_for_a_model_that_is_not_there(raw, tmp_path):
    path = tmp_path / "m.safetensors"
    sizes = [8 * MIB] * 5
    make_blocks(path, sizes, head=0)
    lease = load(raw, path, "sim:0")
    said = [{"name": f"blocks.{i}", "bytes": size} for i, size in enumerate(sizes)]
    assert "error" not in ask(raw, model=path.name, allocation="sim:0"), "it lies there already"
    error = ask(raw, allocation="sim:0", blocks=said)["error"]
    assert error["code"] == "no-memory" and "14.0M can be had" in error["message"]
    assert "error" not in ask(raw, allocation="sim:1", blocks=said)
    lease.close()
    assert "error" not in ask(raw, allocation="sim:0", blocks=said), "what nobody uses makes room"
    empty = [{"name": "blocks.0", "bytes": 0}]
    plan = ask(raw, allocation="sim:1", blocks=empty)
    assert {share["device"]: share["free_after"] for share in plan["devices"]}["sim:1"] == 62 * MIB
    assert plan["moved_per_pass"] == 0 and plan["blocks"][0]["device"] == "sim:1"


def test_nothing_is_loaded_listed_or_told(cards, raw):
    def seen():
        status = raw.call("status")
        return (raw.call("list", {"all": True}), raw.call("events.history"), status["models"],
                status["hits"], status["misses"], status["refusals"], status["bytes_read"],
                raw.call("devices"), os.listdir(cards.state) if cards.state.exists() else [])

    with cards.raw() as listener:
        listener.call("subscribe")
        before = seen()
        for string in STRINGS:
            ask(raw, allocation=string, blocks=blocks_of(CHECKPOINT))
        assert seen() == before and before[:2] == ({"models": []}, {"records": []})
        listener.call("ping")
        assert listener.events == []


# ---- what is refused ----------------------------------------------------------------------------


def test_a_plan_is_of_a_model_or_of_blocks(raw, make_model):
    one = [{"name": "a.0", "bytes": 1}]
    raw.load(make_model())
    for params in ({}, {"model": "model", "blocks": one}, {"model": "nothing", "blocks": []}):
        refuse(raw, "bad-argument", "name a model or say its blocks, one of the two", **params)
    refuse(raw, "bad-argument", "say at least one block", blocks=[])
    refuse(raw, "bad-argument", "'field': 'granularity'", "each tensor as a block", blocks=one,
           granularity="tensor")
    refuse(raw, "bad-argument", "granularity is block or tensor", blocks=one, granularity="layer")
    for allocation in ("cpu", "", "sim:0"):
        refuse(raw, "bad-argument", "granularity", blocks=one, allocation=allocation,
               granularity="tensor")
    assert ask(raw, blocks=one, granularity="block")["blocks"][0]["device"] == "cpu"
    refuse(raw, "bad-argument", "strategy", blocks=one, allocation="sim:0", strategy="best")
    refuse(raw, "bad-argument", "compute", blocks=one, compute="sim:0", allocation="")


@pytest.mark.parametrize(("blocks", "code", "words"), [
    ({"a.0": 1}, "bad-argument", ["blocks", "a list"]),
    ("a.0", "bad-argument", ["blocks", "a list"]),
    (["a.0"], "bad-argument", ["blocks", "a map"]),
    ([{"name": "a.0"}], "bad-argument", ["blocks.bytes", "missing"]),
    ([{"bytes": 1}], "bad-argument", ["blocks.name", "missing"]),
    ([{"name": "a.0", "bytes": 1, "tensors": 1}], "unknown-field", ["blocks.tensors"]),
    ([{"name": "a.0", "bytes": -1}], "bad-argument", ["blocks.bytes", "not negative"]),
    ([{"name": "a.0", "bytes": 1.5}], "bad-argument", ["blocks.bytes"]),
    ([{"name": "a.0", "bytes": "1"}], "bad-argument", ["blocks.bytes"]),
    ([{"name": "a.0", "bytes": 2**63}], "bad-argument", ["blocks.bytes", str(2**63)]),
    ([{"name": "a.0", "bytes": 2**64 - 1}], "bad-argument", ["blocks.bytes"]),
    ([{"name": 7, "bytes": 1}], "bad-argument", ["blocks.name", "a string"]),
    ([{"name": "n" * 4201, "bytes": 1}], "bad-argument", ["blocks.name", "4201", "4200"]),
    ([{"name": "a.0", "bytes": 1}] * (MOST + 1), "bad-argument", ["blocks", "513", "512"]),
    ([{"name": "a.0", "bytes": LARGEST}], "bad-argument", ["2^62"]),
    ([{"name": "a.0", "bytes": LARGEST}] * 2, "bad-argument", ["2^62"]),
    ([{"name": "a.0", "bytes": LARGEST}] * 3, "bad-argument", ["2^62"]),
    ([{"name": "a.0", "bytes": LARGEST}] * MOST, "bad-argument", ["2^62"]),
    ([{"name": "a.0", "bytes": 2**61}] * 3, "bad-argument", ["2^62"]),
    ([{"name": "a.0", "bytes": 2**61}], "no-memory", ["cpu"]),
])
def test_a_list_that_is_none_is_refused_by_name(raw, blocks, code, words):
    for allocation in ("cpu", "sim:0,5mb;cpu,*"):
        refuse(raw, code, *words, blocks=blocks, allocation=allocation)
    assert raw.call("ping") == {}, "one request failed, and nothing more"


@pytest.mark.parametrize("name", [b"\xff", b"a\0b", b"\xed\xa0\x80", b"\xc0\x80"])
def test_a_name_that_is_no_text_ends_the_connection(cards, name):
    with cards.raw() as raw:
        packet = msgpack.packb([0, 9, "plan", {"allocation": "cpu", "blocks": [
            {"name": "MARK" + "x" * (len(name) - 1), "bytes": 1}]}])
        raw.send_bytes(packet.replace(b"MARK" + b"x" * (len(name) - 1), name + b"abc"))
        message, _fds = raw.recv()
        assert message[2]["code"] == "bad-frame" and raw.is_closed()


# ---- what is not --------------------------------------------------------------------------------


def test_names_come_back_as_they_were_said(raw):
    names = ["", ".", "(head)", "(head)", "a.0\x1b[31m\n\t", "\u202e.1", "模型.7.🙂", "a..7", "7",
             "#2", "a.7#", "%s%n.3", "unet=cpu|vae", "n" * 4200, "vae." + "9" * 4000, "CPU", "\x7f.\x01"]
    said = [{"name": name, "bytes": i} for i, name in enumerate(names)]
    for string in ("cpu", "auto", "sim:0,50%;sim:1,50%", "vae=sim:1"):
        plan = ask(raw, allocation=string, blocks=said)
        assert [(block["name"], block["bytes"]) for block in plan["blocks"]] == \
            [(name, i) for i, name in enumerate(names)]


def test_the_largest_packet_is_planned(raw):
    """512 blocks, and not a byte more in the packet."""
    def params(names):
        return {"allocation": "sim:0,3%;sim:1,2%;cpu,95%", "compute": "sim:0",
                "granularity": "block", "strategy": "spread",
                "blocks": [{"name": name, "bytes": 256 * (MOST - i)}
                           for i, name in enumerate(names)]}

    def size(names):
        return len(msgpack.packb([0, raw.next_id, "plan", params(names)]))

    names = [f"conditioner.{'embex' * 17}.x{i:04}.{i}" for i in range(MOST)]
    names[-1] += "y" * 300  # so long that its own size takes no byte more
    names[-1] += "y" * (PACKET_BYTES - size(names))
    assert size(names) == PACKET_BYTES
    plan = raw.call("plan", params(names))
    assert [block["name"] for block in plan["blocks"]] == names
    assert sum(share["blocks"] for share in plan["devices"]) == MOST
    assert sum(share["bytes"] for share in plan["devices"]) == 128 * MOST * (MOST + 1)


def test_many_at_once_and_those_who_leave_are_borne(cards, raw):
    said = blocks_of({f"text_encoders.{'embe' * 20}.{i}": 1000 for i in range(MOST)})
    with cards.raw(timeout=60.0) as many:
        numbers = [many.request("plan", {"allocation": "auto", "blocks": said})
                   for _ in range(32)]
        plans = [many.wait(number) for number in numbers]
        assert all(error is None for error, _result, _fds in plans)
        for _error, _result, fds in plans:
            for fd in fds:
                os.close(fd)
    for _ in range(8):
        with cards.raw() as leaver:
            for _ in range(4):
                leaver.request("plan", {"allocation": "auto", "blocks": said})
    wait_until(lambda: len(raw.call("clients")["clients"]) == 1, 10 * slowness(), "they are gone")
    assert raw.call("ping") == {}


# ---- in Python, over the library ----------------------------------------------------------------


def test_python_plans_over_blocks(cards, raw):
    with distorch.connect(str(cards.socket)) as d:
        string = "unet=sim:0,6mb;cpu,*|clip=cpu|vae=sim:1"
        plan = d.plan(allocation=string, blocks=CHECKPOINT.items())
        told = ask(raw, allocation=string, blocks=blocks_of(CHECKPOINT))
        assert isinstance(plan, distorch.Plan)
        assert [(b.name, b.bytes, b.tensors, b.device) for b in plan.blocks] == \
            [(b["name"], b["bytes"], 0, b["device"]) for b in told["blocks"]]
        assert [(s.device, s.bytes, s.blocks, s.free_after) for s in plan.devices] == \
            [(s["device"], s["bytes"], s["blocks"], s["free_after"]) for s in told["devices"]]
        assert plan.warnings == told["warnings"] and plan.compute == told["compute"]
        assert plan.moved_per_pass == told["moved_per_pass"]
        assert plan.floor_ns == told.get("floor_ns")
        spread = d.plan(blocks=[(f"layers.{i}", MIB) for i in range(8)], virtual_vram=4 * MIB,
                        compute="sim:0", donors=["cpu"])
        assert [b.device for b in spread.blocks].count("cpu") == 4 and spread.compute == "sim:0"
        largest = d.plan(allocation="cpu", blocks=[("n" * 99, 1)] * MOST)
        assert len(largest.blocks) == MOST
        assert d.list(all=True) == [] and d.events() == []


@pytest.mark.parametrize(("arguments", "failure", "words"), [
    ({}, TypeError, "a model or blocks"),
    ({"model": "m", "blocks": [("a.0", 1)]}, TypeError, "a model or blocks"),
    ({"blocks": 7}, TypeError, r"list of \(name, bytes\)"),
    ({"blocks": ["a.0"]}, TypeError, r"list of \(name, bytes\)"),
    ({"blocks": [("a.0", 1, 2)]}, TypeError, r"list of \(name, bytes\)"),
    ({"blocks": [("a.0", "1")]}, TypeError, r"blocks\[0\].bytes"),
    ({"blocks": [(7, 1)]}, TypeError, r"blocks.name\[0\]"),
    ({"blocks": [("a.0", 1), ("b.0", -1)]}, ValueError, r"blocks\[1\].bytes"),
    ({"blocks": [("a.0", 2**64)]}, ValueError, r"blocks\[0\].bytes"),
    ({"blocks": [("a\0", 1)]}, ValueError, "NUL"),
    ({"blocks": [("a.0", 1)], "nosuch": 1}, TypeError, "nosuch"),
    ({"blocks": []}, "bad-argument", "at least one block"),
    ({"blocks": [("a.0", 2**63)]}, "bad-argument", "over the largest"),
    ({"blocks": [("a.0", LARGEST)] * 3}, "bad-argument", "more than 2.62 bytes"),
    ({"blocks": [("a.0", 1)] * (MOST + 1)}, "too-many", "513"),
    ({"blocks": [("n" * 200, 1)] * MOST}, "too-large", "packet"),
    ({"blocks": [("a.0", 1)], "allocation": None}, "bad-argument", "allocation"),
    ({"blocks": [("a.0", 1)], "allocation": "sim:9"}, "bad-argument", "sim:9"),
    ({"blocks": [("a.0", 1)], "granularity": "tensor"}, "bad-argument", "each tensor as a block"),
    ({"blocks": [("a.0", 2**40)], "allocation": "sim:0"}, "no-memory", "sim:0"),
])
def test_python_refuses_what_is_no_list_of_blocks(cards, arguments, failure, words):
    with distorch.connect(str(cards.socket)) as d:
        if isinstance(failure, str):
            with pytest.raises(distorch.Error, match=words) as refused:
                d.plan(**{"allocation": "cpu", **arguments})
            assert refused.value.code == failure
        else:
            with pytest.raises(failure, match=words):
                d.plan(**{"allocation": "cpu", **arguments})
        odd = d.plan(allocation="cpu", blocks=[(os.fsdecode(b"\xff.0"), 1)])
        assert odd.blocks[0].name == "?.0", "and the connection goes on"
