# SPDX-License-Identifier: Apache-2.0
"""Blocks over devices as the command line and Python say it: words, answers, refusals."""
import os
import pathlib
import re
import signal
import subprocess
import time

import distorch
import pytest
from conftest import BUILD, HeldDaemon, make_safetensors, run_python, slowness, wait_until
from screen import Terminal
from test_ctl import CTL, ctl, ctl_json
from test_top import environment_of, top_on


@pytest.fixture
def layers(tmp_path):
    """A model of eight blocks."""
    path = tmp_path / "layers.safetensors"
    make_safetensors(path, {f"layers.{i}.w": ("F32", [64, 64]) for i in range(8)})
    return path


def test_an_allocation_of_ram_alone_is_an_image(daemon, layers, connect):
    loaded = ctl_json(daemon, "load", layers, "--to", "ram", "--granularity", "tensor")["models"][0]
    assert [place["device"] for place in loaded["where"]] == ["cpu"]
    moved = ctl_json(daemon, "place", "layers", "cpu,*", "--strategy", "contiguous")
    assert moved["moved_bytes"] == 0 and moved["evicted"] == [] and moved["id"] == loaded["id"]
    said = ctl(daemon, "move", "layers", "ram")
    assert said.returncode == 0 and "lies in ram now" in said.stdout
    assert ctl(daemon, "-q", "place", "layers", "ram").stdout == ""
    with connect() as d:
        found = d.place("layers", "cpu")
        assert isinstance(found, distorch.Moved) and found.moved_bytes == 0
        with d.open(layers, to="ram") as w:
            assert w["layers.3.w"].device == "cpu" and w["layers.3.w"].uuid is None
            blocks = w.blocks()
            assert len(blocks) == 8 and {block.device for block in blocks} == {"cpu"}
            assert blocks[w["layers.3.w"].block].name == "layers.3"
            assert sum(block.bytes for block in blocks) == 8 * 64 * 64 * 4
        table = d.table("layers")
        assert table["layers.3.w"].device is None and table.blocks()[0].device is None
        with pytest.raises(ValueError, match="describe"):
            table.on_recall(print)


@pytest.mark.parametrize("verb", ["load", "place"])
def test_a_wrong_string_is_refused_with_item_and_column(daemon, layers, verb):
    assert ctl(daemon, "load", layers).returncode == 0

    def say(*words):
        place = [] if words[0] is None else [words[0]] if verb == "place" else ["--to", words[0]]
        return ctl(daemon, verb, layers, *place, *words[1:])

    done = say("cpu,1mb;cuda:7,*")
    assert done.returncode == 2 and "cuda:7" in done.stderr and "column" in done.stderr
    assert say("cpu,much").returncode == 2
    assert say("cpu", "--strategy", "wild").returncode == 2
    assert say("cpu", "--virtual-vram", "0").returncode == 2
    for nothing in ("", " ; "):
        done = say(nothing)
        assert done.returncode == 2 and "does not say where" in done.stderr
    assert say("cpu", "--virtual-vram", "many").returncode == 2
    assert say("cpu", "--donors", ",".join(["cpu"] * 17)).returncode == 2
    donors = say(None, "--virtual-vram", "1", "--compute", "cpu", "--donors", " RTX 4090 ;cpu")
    assert donors.returncode == 2 and '"RTX 4090"' in donors.stderr, "a name may have blanks"
    assert ctl(daemon, "place", layers).returncode == 2
    assert ctl(daemon, "place", "nosuch", "ram").returncode == 4


def test_plan_without_devices_is_for_the_daemons(daemon, layers):
    plan = ctl_json(daemon, "plan", layers, "ram")
    assert [device["name"] for device in plan["devices"]] == ["cpu"]
    assert plan["devices"][0]["bytes"] == 8 * 64 * 64 * 4 and len(plan["blocks"]) == 8
    done = ctl(daemon, "plan", layers, "cuda:0,1gb;cpu,*")
    assert done.returncode == 2 and "cuda:0" in done.stderr
    assert ctl(daemon, "plan", "nosuch", "ram").returncode in (4, 7)
    assert ctl(daemon, "plan", layers).returncode == 2
    assert ctl(None, "plan", layers, "ram").returncode == 3


def test_python_judges_the_words_of_a_placement(daemon, layers, connect):
    with connect() as d:
        d.load(layers, to="cpu", strategy="contiguous", granularity="block", compute="cpu")
        for wrong in ({"to": "cpu", "allocation": "cpu"}, {"nosuch": 1}):
            with pytest.raises(TypeError):
                d.load(layers, **wrong)
        with pytest.raises(TypeError):
            d.place("layers", "cpu", nosuch=1)
        with pytest.raises(ValueError):
            d.place("layers", "cpu", virtual_vram=-1)
        for call, name in (
                (lambda: d.place("layers"), "allocation"), (lambda: d.plan("layers"), "allocation"),
                (lambda: d.place("layers", ""), "allocation"),
                (lambda: d.place("layers", " ; "), "allocation"),
                (lambda: d.place("layers", virtual_vram=0), "allocation"),
                (lambda: d.plan(blocks=[("a", 1)]), "allocation"),
                (lambda: d.load(layers, to=""), "to"), (lambda: d.open(layers, to=" ;"), "to"),
                (lambda: d.load(layers, allocation=""), "allocation")):
            with pytest.raises(distorch.Error, match=f"{name} does not say where") as failure:
                call()
            assert failure.value.code == "bad-argument"
        with pytest.raises(distorch.Error) as failure:
            d.place("layers", "cpu", donors=["cpu"] * 17)
        assert failure.value.code == "too-many"
        with pytest.raises(distorch.Error) as failure:
            d.place("layers", "cuda:7,1gb;cpu,*")
        assert failure.value.code == "bad-argument" and "cuda:7" in str(failure.value)


# ---- over simulated cards --------------------------------------------------------------


MIB = 1 << 20


CARDS = ("sim.count=2", "sim.memory=64M", "gpu.budget=100%", "memory.ram=256M",
         "memory.reserve=0")


@pytest.fixture
def cards(start_daemon):
    """A daemon with two simulated cards of 64 MiB."""
    return start_daemon(*CARDS)


@pytest.fixture
def twelve(tmp_path):
    """A model of twelve blocks of 4 MiB, and what is in them."""
    path = tmp_path / "twelve.safetensors"
    return path, make_safetensors(path, {f"layers.{i}.w": ("F32", [1024, 1024])
                                         for i in range(12)})


def to(daemon):
    return distorch.connect(str(daemon.socket))


def wait_for_zero(daemon):
    wait_until(lambda: not any(device["used"] for device in daemon.status()["devices"]), 20)


def where(weights):
    return [tensor.device for tensor in weights.values()]


def test_a_program_counts_devices_in_its_own_order(cards, twelve):
    """As torch does, whose first card is the fastest, or the only one that it is let see."""
    path, expected = twelve
    with to(cards) as d:
        uuids = [device.uuid for device in d.devices() if device.name != "cpu"]
    for seen, first in ((uuids[::-1], "sim:1"), (uuids[1:], "sim:1"), (uuids, "sim:0"),
                        ((), "sim:0")):
        with distorch.connect(str(cards.socket), devices=seen) as d:
            for _ in range(2):
                with d.open(path, to="sim:0,16mb;cpu,*") as w:
                    assert where(w) == [first] * 4 + ["cpu"] * 8
                    said = " ".join(d.plan(path.name, "sim:0,16mb;cpu,*").warnings)
                    assert ("sim:0 of this program is sim:1" in said) == (first == "sim:1"), said
                    assert {name: bytes(tensor.buffer) for name, tensor in w.items()} == expected
                wait_until(lambda: not d.list()[0].leases, 20)
                d.unload(path.name)
                cards.process.kill()
                cards.process.wait()
                cards.start()  # it says its order to the next one too
            if len(seen) == 1:
                with pytest.raises(distorch.Error, match='no device "sim:1"'):
                    d.open(path, to="sim:1")
    with pytest.raises(distorch.Error) as refused:
        distorch.connect(str(cards.socket), devices=uuids[:1] * 65)
    assert refused.value.code == "too-many" and "65 entries" in str(refused.value)
    with pytest.raises(TypeError, match=r"devices\[1\]"):
        distorch.connect(str(cards.socket), devices=[uuids[0], 1])


def test_each_tensor_is_read_where_it_lies(cards, twelve):
    path, expected = twelve
    with to(cards) as d:
        with d.open(path, to="sim:0,16mb;sim:1,9mb;cpu,*") as w:
            assert where(w) == ["sim:0"] * 4 + ["sim:1"] * 2 + ["cpu"] * 6
            assert {name: bytes(tensor.buffer) for name, tensor in w.items()} == expected
            assert w["layers.0.w"].uuid.startswith("SIM-") and w["layers.11.w"].uuid is None
            assert w["layers.0.w"].uuid != w["layers.4.w"].uuid
            assert [block.device for block in w.blocks()] == where(w)
            array = w["layers.4.w"].numpy()
            array[:] = 1.0  # private, as what lies in an image
            with d.attach("twelve") as again:
                assert bytes(again["layers.4.w"].buffer) == expected["layers.4.w"]
            model = d.show("twelve").model
            assert model.allocation == "sim:0,16mb;sim:1,9mb;cpu,*"
            assert "sim:0 33% + sim:1 17% + ram 50%" in ctl(cards, "ps").stdout
            told = {device.name: device for device in d.devices()}
            assert told["sim:0"].used == 16 * MIB and told["sim:1"].used == 8 * MIB
            pid = os.fork()
            if pid == 0:  # what is mapped stays readable in a child
                os._exit(0 if bytes(w["layers.5.w"].buffer) == expected["layers.5.w"] else 1)
            assert os.waitpid(pid, 0)[1] == 0
        del array
        assert d.unload(all=True).total_bytes > 0
        wait_for_zero(cards)


def test_shares_are_of_tensors_and_not_of_what_devices_round_up(cards, layers):
    """As the plan has them: a block of 16 KiB takes 2 MiB of a card."""
    share = ctl_json(cards, "plan", layers, "sim:0,50%;cpu,50%")["devices"][0]["share"]
    assert share == 0.5
    done = ctl(cards, "load", layers, "--to", "sim:0,50%;cpu,50%")
    assert done.returncode == 0 and "sim:0 50% + ram 50%" in done.stdout
    for verb in (("ps",), ("show", "layers"), ("why", "layers")):
        assert "sim:0 50% + ram 50%" in ctl(cards, *verb).stdout, verb
    host, card = ctl_json(cards, "show", "layers")["where"]
    assert card["bytes"] == 4 * 2 * MIB and card["tensor_bytes"] == 4 * 64 * 64 * 4
    assert host["tensor_bytes"] == card["tensor_bytes"] and host["bytes"] % 4096 == 0
    assert ctl(cards, "place", "layers", "sim:0,50%;sim:1,25%;cpu,25%").returncode == 0
    assert "sim:0 50% + sim:1 25% + ram 25%" in ctl(cards, "ps").stdout
    said = ctl(cards, "why", "layers").stdout
    assert "sim:0 50% + ram 50%" in said and "sim:0 50% + sim:1 25% + ram 25%" in said


def test_show_says_where_each_tensor_lies(cards, twelve):
    path, _expected = twelve

    def listed():
        lines = ctl(cards, "show", "twelve", "--tensors").stdout.splitlines()
        return [line.split()[-1] for line in lines if line.startswith("layers.")]

    assert ctl(cards, "load", path, "--to", "sim:0,16mb;sim:1,9mb;cpu,*").returncode == 0
    assert listed() == ["sim:0"] * 4 + ["sim:1"] * 2 + ["ram"] * 6
    shown = ctl_json(cards, "show", "twelve", "--tensors")
    assert shown["places"] == ["sim:0"] * 4 + ["sim:1"] * 2 + ["cpu"] * 6
    assert [one["block"] for one in shown["tensor_table"]] == list(range(12))
    assert "in pages of" in ctl(cards, "show", "twelve").stdout
    with to(cards) as d:
        assert d.show("twelve").places == shown["places"]
        with d.reserve("sim:0", 56 * MIB):
            assert listed() == ["sim:0"] * 2 + ["file"] * 2 + ["sim:1"] * 2 + ["ram"] * 6
    assert ctl(cards, "place", "twelve", "sim:0").returncode == 0
    shown = ctl(cards, "show", "twelve").stdout
    assert "in pages of" not in shown, "there is no image of more than the header"
    assert "images" not in ctl(cards, "doctor").stdout
    assert ctl(cards, "place", "twelve", "ram").returncode == 0
    assert listed() == ["ram"] * 12 and ctl_json(cards, "show", "twelve")["places"] == []


def test_a_load_and_a_move_warn_as_their_plan_does(cards, twelve):
    path, _expected = twelve
    words = "cpu,5mb*;sim:0,16mb"
    planned = ctl_json(cards, "plan", path, words)["warnings"]
    assert planned == ["the rest on ram is 32.0M, more than the 5.0M at its *"]
    done = ctl(cards, "load", path, "--to", words)
    assert done.returncode == 0 and f"warning: {planned[0]}" in done.stderr
    assert ctl(cards, "-q", "place", "twelve", "cpu").stderr == ""
    assert ctl_json(cards, "place", "twelve", words)["warnings"] == planned
    with to(cards) as d:
        assert d.place("twelve", "sim:0,100%").warnings == []
        assert d.place("twelve", words).warnings == planned
        d.unload("twelve")
        assert d.load(path, to=words).warnings == planned


def test_a_move_under_way_is_seen(start_daemon, layers):
    daemon = start_daemon(*CARDS, "sim.link=16K")
    assert ctl(daemon, "load", layers).returncode == 0
    with daemon.raw() as raw:
        raw.request("place", {"model": "layers", "allocation": "sim:0"})
        wait_until(lambda: ctl_json(daemon, "ps")["models"][0]["moving"], what="the move")
        assert "ram, moving " in ctl(daemon, "ps").stdout
    wait_until(lambda: not ctl_json(daemon, "ps")["models"][0]["moving"], 60, "its end")
    with distorch.connect(str(daemon.socket)) as d:
        assert d.list()[0].moving is False
        d.unload(all=True)


def test_what_ram_takes_beside_a_device_that_computes_is_as_planned(cards, tmp_path):
    path = tmp_path / "headed.safetensors"
    make_safetensors(path, {"head": ("F32", [1024, 256]),
                            **{f"layers.{i}.w": ("F32", [1024, 256]) for i in range(3)}})
    for words, places in ((("cpu,*", "--compute", "sim:0"), ["sim:0", "cpu", "cpu", "cpu"]),
                          (("cpu", "--compute", "sim:0"), ["cpu"] * 4),
                          (("cpu,100%", "--compute", "sim:0"), ["sim:0", "cpu", "cpu", "cpu"])):
        planned = ctl_json(cards, "plan", path, *words)["blocks"]
        assert [block["device"] for block in planned] == places, words
        assert ctl(cards, "load", path, "--to", *words).returncode == 0
        assert (ctl_json(cards, "show", path.name)["places"] or ["cpu"] * 4) == places, words
    for words in (("cpu", "--donors", "ram"), ("cpu,*", "--compute", "cuda:7")):
        assert ctl(cards, "place", path.name, *words).returncode == 2, words


def test_a_move_leaves_who_has_the_model_as_he_is(cards, twelve):
    path, expected = twelve
    with to(cards) as d, d.open(path, to="sim:0,50%;cpu,50%") as before:
        assert set(where(before)) == {"sim:0", "cpu"}
        moved = d.place("twelve", "sim:1")
        assert 48 * MIB <= moved.moved_bytes < 49 * MIB and moved.generation > before.generation
        with d.attach("twelve") as after:
            assert where(after) == ["sim:1"] * 12
            for weights in (before, after):
                assert {n: bytes(t.buffer) for n, t in weights.items()} == expected
        before.close()
        said = ctl(cards, "place", "twelve", "sim:1,25%;sim:0,75%")
        assert said.returncode == 0 and "lies in sim:0 75% + sim:1 25% now" in said.stdout
        d.place("twelve", "ram")
        assert "ram" in ctl(cards, "ps").stdout and "sim" not in ctl(cards, "ps").stdout
    with to(cards) as d:
        d.unload(all=True)
    wait_for_zero(cards)


def test_what_stays_behind_after_a_move_is_said_with_who_holds_it(cards, twelve):
    path, _expected = twelve
    with to(cards) as d, d.open(path, to="sim:0"):
        comm = pathlib.Path("/proc/self/comm").read_text().strip()
        said = ctl(cards, "place", "twelve", "sim:1").stdout
        assert "lies in sim:1 now" in said
        assert f"48.0M stay on sim:0 until {comm} (PID {os.getpid()}) lets go." in said
        assert f"older      48.0M stay on sim:0 until {comm}" in ctl(cards, "show", "twelve").stdout
        ps = ctl(cards, "ps").stdout
        assert "sim:1, older on sim:0 " in ps
        assert [place.device for place in d.show("twelve").model.older] == ["sim:0"]
        held = ctl(cards, "unload", "--device", "sim:0").stdout
        assert held.startswith("held") and f"PID {os.getpid()}" in held
    with to(cards) as d:
        d.unload(all=True)
    wait_for_zero(cards)


def test_of_a_partial_model_the_rest_is_said_to_be_in_its_file(cards, twelve, tmp_path):
    path, _expected = twelve
    other = tmp_path / "other.safetensors"
    make_safetensors(other, {f"layers.{i}.w": ("F32", [1024, 1024]) for i in range(8)})
    assert ctl(cards, "load", path, "--to", "sim:0").returncode == 0
    with to(cards) as d, d.open(other, to="sim:0"):
        row = next(line for line in ctl(cards, "ps").stdout.splitlines() if "twelve" in line)
        assert re.search(r"sim:0 \d+% \+ file \d+%", row), row
        assert sum(map(int, re.findall(r"(\d+)%", row))) in (99, 100, 101)
    with to(cards) as d:
        d.unload(all=True)
    wait_for_zero(cards)


def test_a_file_that_was_not_written_has_no_newer_content(cards, tmp_path):
    path = tmp_path / "eight.safetensors"
    make_safetensors(path, {f"layers.{i}.w": ("F32", [1024, 1024]) for i in range(8)})
    assert ctl(cards, "load", path, "--to", "sim:0,16M;cpu,*").returncode == 0
    path.chmod(0o600)
    assert ctl(cards, "place", "eight", "sim:0,8M;cpu,*").returncode == 0
    why = ctl(cards, "why", "eight").stdout
    assert "newer content" not in why and "what was there before a move" in why, why


def test_a_tensor_without_bytes_lies_nowhere_worth_a_word(cards, tmp_path):
    path = tmp_path / "zero.safetensors"
    make_safetensors(path, {"z": ("F32", [0, 4]), "layers.0.w": ("F32", [512, 512])})
    assert ctl(cards, "load", path, "--to", "sim:0,0;cpu,*").returncode == 0
    for room in "1M", "64M":  # it is evicted for the second
        shown = ctl(cards, "make-room", room, "--device", "sim:0", "--", CTL, "ps").stdout
        assert "1.0M  ram  " in shown, shown


def test_a_refused_load_leaves_nothing_in_the_listing_and_why_tells_of_it(cards, tmp_path):
    large = tmp_path / "large.safetensors"
    make_safetensors(large, {f"layers.{i}.w": ("F32", [1024, 1024]) for i in range(17)})
    assert ctl(cards, "load", large, "--to", "sim:0").returncode == 6
    assert "large" not in ctl(cards, "ps").stdout
    assert "large" in ctl(cards, "ps", "--all").stdout
    assert "refused" in ctl(cards, "why", "large").stdout
    shown = ctl(cards, "show", "large").stdout
    assert "its tensors are known once it is loaded" in shown and "0 tensors" not in shown
    assert "notice     item 1" in shown or "notice     not enough" in shown, shown


def test_what_does_not_fit_a_card_is_refused_with_numbers(cards, twelve, tmp_path):
    path, _expected = twelve
    assert ctl(cards, "load", path, "--to", "sim:0").returncode == 0
    large = tmp_path / "large.safetensors"
    make_safetensors(large, {f"layers.{i}.w": ("F32", [1024, 1024]) for i in range(17)})
    done = ctl(cards, "load", large, "--to", "sim:0")
    assert done.returncode == 6 and "sim:0" in done.stderr and "68" in done.stderr, done.stderr
    assert ctl(cards, "plan", large, "sim:0").returncode == 6
    report = ctl_json(cards, "unload", "--device", "sim:0")
    assert [model["name"] for model in report["unloaded"]] == ["twelve.safetensors"]
    wait_for_zero(cards)


def test_a_hint_can_be_followed(cards, twelve, tmp_path):
    """No budget is to be raised that is all of the card, and nothing tried again for ever."""
    path, _expected = twelve
    assert ctl(cards, "load", path, "--to", "sim:0", "--pin").returncode == 0
    other = tmp_path / "other.safetensors"
    make_safetensors(other, {f"layers.{i}.w": ("F32", [1024, 1024]) for i in range(10)}, seed=3)
    error = ctl_json(cards, "load", other, "--to", "sim:0", status=6)["error"]
    assert error["hint"].startswith("unpin or close something") and "budget" not in error["hint"]
    assert error["retryable"] is True
    assert ctl(cards, "budget", "sim:0", "60M").returncode == 0
    error = ctl_json(cards, "load", other, "--to", "sim:0", status=6)["error"]
    assert error["hint"].endswith(", or raise the budget")
    assert ctl(cards, "budget", "sim:0", "100%").returncode == 0
    for device in "sim:0", "ram":
        words = "make-room", "1T", "--device", device
        error = ctl_json(cards, *words, status=6)["error"]
        assert error["retryable"] is False and error["hint"].endswith(" in all: ask for less")
    large = tmp_path / "large.safetensors"
    make_safetensors(large, {f"layers.{i}.w": ("F32", [1024, 1024]) for i in range(17)})
    for verb in ("plan", large, "sim:0"), ("load", large, "--to", "sim:0"):
        assert ctl_json(cards, *verb, status=6)["error"]["retryable"] is False
    assert ctl(cards, "drain", "--device", "sim:1").returncode == 0
    error = ctl_json(cards, "plan", other, "sim:1", status=1)["error"]
    assert error["hint"] == "an administrator ends it: distorchctl drain --off --device sim:1"


def test_a_recall_is_answered_by_a_callback(cards, twelve):
    path, _expected = twelve
    heard = []
    with to(cards) as d, to(cards) as other:
        w = d.open(path, to="sim:0")

        def let_go(event):
            heard.append((event.type, event.lease == lease))
            w.close()

        lease = distorch._library.library().weights_lease(w._lease.pointer)
        with pytest.raises(TypeError, match="callback must be callable or None, not int"):
            w.on_recall(5)
        w.on_recall(let_go)
        with other.reserve("sim:0", 60 * MIB, recall=20) as room:
            assert heard == [("recall", True)] and room.bytes == 60 * MIB
        assert d.next_event(timeout=0) is None, "it was heard once"


def test_a_recall_is_answered_by_a_move_away(cards, twelve):
    path, _expected = twelve
    with to(cards) as d, to(cards) as other:
        w = d.open(path, to="sim:0")

        def move_away(_event):
            d.place("twelve", "cpu")
            w.close()

        w.on_recall(move_away)
        with other.reserve("sim:0", 60 * MIB, recall=20) as room:
            assert room.bytes == 60 * MIB
        assert ctl_json(cards, "ps")["models"][0]["state"] == "resident", "in RAM"


def test_what_is_pinned_meanwhile_is_not_to_be_asked_for_again(cards, twelve):
    path, _expected = twelve
    with to(cards) as d, to(cards) as other, d.open(path, to="sim:0") as w:
        w.on_recall(lambda _event: d.pin("twelve"))
        with pytest.raises(distorch.Error) as refused:
            other.reserve("sim:0", 60 * MIB, recall=20)
        assert refused.value.code == "no-memory" and "--recall" not in refused.value.hint
        assert refused.value.hint.startswith("unpin"), refused.value.hint
        d.unpin("twelve")


def test_a_recall_that_nobody_answers_names_the_holder(cards, twelve):
    path, _expected = twelve
    with to(cards) as d, d.open(path, to="sim:0") as w:
        done = ctl(cards, "make-room", "60M", "--device", "sim:0", "--recall", "200ms", "--",
                   "true")
        assert done.returncode == 1 and str(os.getpid()) in done.stderr
        assert d.next_event(timeout=5).type == "recall", "without a callback it is an event"
        w.on_recall(lambda event: 1 / 0)
        w.on_recall(None)
        report = d.unload("twelve", recall=0.2)
        assert [outcome.name for outcome in report.held] == ["twelve.safetensors"]
    wait_for_zero(cards)


def test_a_recall_is_told_to_who_has_its_lease_now(start_daemon, twelve, layers):
    """A lease that ended with the daemon keeps its number, and the next one gets the same."""
    held = start_daemon(*CARDS, kind=HeldDaemon)
    heard = []
    with to(held) as d:
        lost = d.open(twelve[0], to="sim:0")
        lost.on_recall(lambda event: heard.append("lost"))
        held.kill_daemon()

        def again():
            try:
                return d.open(layers, to="sim:1")
            except distorch.Error as failure:
                assert failure.retryable, failure

        w = wait_until(again, what="an open by the new daemon")
        w.on_recall(lambda event: (heard.append("new"), w.close()))
        with to(held) as other:
            assert [one.name for one in other.unload("layers", recall=20).unloaded] == \
                ["layers.safetensors"]
        assert heard == ["new"]
        lost.close()


INTERRUPTED = """
import sys, distorch
calls = {
    "place": lambda d: d.place("twelve", "sim:0"),
    "reserve": lambda d: d.reserve("sim:0", 60 << 20, recall=30),
    "unload": lambda d: d.unload("twelve", recall=30),
    "verify": lambda d: sys.stdin.readline() and d.verify(),
}
with distorch.connect(sys.argv[1]) as d:
    print("READY")
    try:
        calls[sys.argv[2]](d)
    except KeyboardInterrupt:
        print("interrupted")
    sys.stdin.readline()
    d.ping()
    print("usable")
    sys.stdin.readline()
"""


def interrupt(victim):
    victim.signal(signal.SIGINT)
    begun = time.monotonic()
    assert victim.process.stdout.readline() == "interrupted\n"
    assert time.monotonic() - begun < 15, "it is raised before what it waits for has come"


def test_ctrl_c_cancels_a_move(start_daemon, child, twelve):
    slow = start_daemon(*CARDS, "sim.link=2M")
    with to(slow) as d:
        d.load(twelve[0])
        victim = child(INTERRUPTED, slow.socket, "place")
        wait_until(lambda: d.devices()[1].used, what="a move on its way")
        interrupt(victim)
        assert victim.ask() == "usable"
        assert [place.device for place in d.show("twelve").model.where] == ["cpu"]
        wait_until(lambda: not d.devices()[1].used, 20 * slowness(), "the end of its room")


def test_a_move_tells_how_far_it_is_and_what_that_raises_cancels_it(start_daemon, twelve):
    slow = start_daemon(*CARDS, "sim.link=16M")
    with to(slow) as d:
        d.load(twelve[0])
        seen = []
        d.place("twelve", "sim:0,50%;cpu,*", progress=seen.append)
        assert all(isinstance(one, distorch.Progress) for one in seen)
        assert seen.pop().phase == "done" and len(seen) > 2
        assert [one.bytes for one in seen] == sorted(one.bytes for one in seen)
        total = max(one.total for one in seen)
        assert total == sum(place.tensor_bytes for place in d.show("twelve").model.where)

        def stop(progress):
            raise KeyError(progress.phase)

        with pytest.raises(KeyError):
            d.place("twelve", "sim:1", progress=stop)
        assert {place.device for place in d.show("twelve").model.where} == {"sim:0", "cpu"}
        d.place("twelve", "cpu,*", progress=None)


def test_the_command_line_shows_a_bar_and_ctrl_c_says_what_was_cancelled(start_daemon, twelve):
    slow = start_daemon(*CARDS, "sim.link=2M")
    with to(slow) as d:
        d.load(twelve[0])
        with Terminal([CTL, "place", twelve[0], "sim:0"],
                      environment_of(slow, NO_COLOR="1")) as terminal:
            lines = terminal.wait_for(lambda lines: any("M/s" in line for line in lines))
            bar = next(line for line in lines if "M/s" in line)
            whole = d.show("twelve").model.where[0].tensor_bytes
            assert bar.startswith("Moving twelve.safetensors "), bar
            assert f"/{whole / (1 << 20):.1f}M" in bar, bar
            terminal.press("\x03")
            terminal.wait_for("error: the move of twelve.safetensors was cancelled")
            assert terminal.process.wait(20) == 130
        assert [place.device for place in d.show("twelve").model.where] == ["cpu"]


@pytest.mark.parametrize("verb", ["reserve", "unload"])
def test_ctrl_c_ends_the_wait_for_those_who_are_asked(cards, child, twelve, verb):
    heard = []
    with to(cards) as d, d.open(twelve[0], to="sim:0") as w:
        w.on_recall(heard.append)
        victim = child(INTERRUPTED, cards.socket, verb)
        wait_until(lambda: heard, what="the recall")
        interrupt(victim)
        w.close()
        if verb == "reserve":
            wait_until(lambda: d.events(types="evicted"), what="the room")
            wait_until(lambda: not d.devices()[1].reserved, what="its end")
        assert victim.ask() == "usable"


def test_ctrl_c_ends_the_wait_for_a_verification(cards, child, twelve):
    with to(cards) as d:
        d.load(twelve[0])
        victim = child(INTERRUPTED, cards.socket, "verify")
        cards.process.send_signal(signal.SIGSTOP)
        try:
            victim.process.stdin.write("go\n")
            victim.process.stdin.flush()
            time.sleep(0.5)  # most likely it waits now
            interrupt(victim)
        finally:
            cards.process.send_signal(signal.SIGCONT)
        assert victim.ask() == "usable"


OFTEN_INTERRUPTED = """
import random, signal, time
from distorch.client import _interruptibly

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
for _ in range(1500):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.random() * 0.0006 + 1e-6)
        _interruptibly(lambda: time.sleep(0.002))
        time.sleep(10)
    except KeyboardInterrupt:
        pass
print("always an interrupt")
"""


def test_ctrl_c_at_any_moment_of_a_wait_is_ctrl_c():
    """Waiting by a condition it was, one time in a thousand, a RuntimeError of a lock."""
    assert run_python(OFTEN_INTERRUPTED) == "always an interrupt\n"


def test_the_live_view_has_each_card(cards, twelve):
    path, _expected = twelve
    assert ctl(cards, "load", path, "--to", "sim:0,50%;cpu,50%").returncode == 0
    with top_on(cards) as top:
        lines = top.wait_for("twelve")
        assert [line.split()[0] for line in lines[1:4]] == ["ram", "sim:0", "sim:1"]
        assert "█" in lines[2] and "█" not in lines[3]
        assert any("sim:0 50%" in line for line in lines)
        top.press("q")
        assert top.wait() == 0


def test_a_plan_is_what_a_load_and_a_move_do(cards, twelve):
    path, _expected = twelve
    string, other = "sim:0,20%;sim:1,30%;cpu,50%", "sim:1,8mb;sim:0,16mb;cpu,*"
    plan = ctl_json(cards, "plan", path, string)  # of a file that the daemon does not have
    with to(cards) as d, d.open(path, to=string) as w:
        assert [block["device"] for block in plan["blocks"]] == \
            [block.device for block in w.blocks()]
        planned = d.plan("twelve", other)
        assert isinstance(planned, distorch.Plan)
        assert {share.device: share.bytes for share in planned.devices if share.bytes} == \
            {"sim:1": 8 * MIB, "sim:0": 16 * MIB, "cpu": 24 * MIB}
        assert [block.device for block in w.blocks()] == \
            [block["device"] for block in plan["blocks"]], "a plan changes nothing"
        told = ctl_json(cards, "plan", "twelve", other)
        assert [block["device"] for block in told["blocks"]] == \
            [block.device for block in planned.blocks]
        assert told["bytes_moved_per_pass"] == planned.moved_per_pass
        assert planned.compute == "sim:1" and planned.floor_ns > 0
        assert told["floor_ms"] == pytest.approx(planned.floor_ns / 1e6)
        shown = ctl(cards, "plan", "twelve", other, "-o", "wide")
        assert shown.returncode == 0 and "Simulated device" in shown.stdout
        assert "layers.11" in shown.stdout and "48.0M in 12 blocks" in shown.stdout
        rows = [line.split()[0] for line in shown.stdout.splitlines()[3:6]]
        assert rows == ["sim:0", "sim:1", "ram"], "cards before ram, as where nobody is asked"
        assert [device["name"] for device in told["devices"]] == ["sim:0", "sim:1", "cpu"]
        assert "computes on sim:1" in shown.stdout, "the first one named, whatever their order"
        d.place("twelve", other)
        with d.attach("twelve") as after:
            assert [block.device for block in after.blocks()] == \
                [block.device for block in planned.blocks]


def test_how_long_a_pass_takes_is_told_where_the_links_are_known(cards, twelve):
    path, _expected = twelve
    with to(cards) as d:
        link = {device.name: device.link for device in d.devices()}["sim:0"]
        assert link > 0
        plan = ctl_json(cards, "plan", path, "sim:0,25%;cpu,75%")
        assert plan["bytes_moved_per_pass"] == 36 * MIB
        assert plan["floor_ms"] == pytest.approx(36 * MIB * 1000 / link, rel=1e-3)
        least = ctl(cards, "plan", path, "sim:0,25%;cpu,75%").stdout.split("takes at least ")[1]
        assert least == f"{plan['floor_ms'] - 0.005:.2f}ms.\n", "and not 2ms, or 0ms"
        assert ctl_json(cards, "plan", path, "cpu")["floor_ms"] is None, "nothing is copied"
        with d.open(path):
            assert ctl_json(cards, "plan", "twelve", "sim:0,25%;cpu,75%")["floor_ms"] == plan["floor_ms"]
            still = d.plan("twelve", "cpu")
            assert still.floor_ns is None and still.compute == "cpu"


EXAMPLE = BUILD / "examples" / "example_placed"


@pytest.mark.skipif(not EXAMPLE.exists(), reason="this build has no examples")
def test_the_example_tells_where_each_block_lies(cards, twelve):
    path, _expected = twelve

    def run(*words):
        return subprocess.run([EXAMPLE, *words], text=True, capture_output=True,
                              env={**os.environ, "DISTORCH_SOCKET": str(cards.socket)})

    done = run(path, "sim:0,50%;cpu,50%")
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == \
        ["sim:0"] * 6 + ["cpu"] * 6
    done = run(path, "cuda:9")
    assert done.returncode == 2 and "cuda:9" in done.stderr


def test_one_card_is_drained_and_emptied(cards, twelve):
    path, _expected = twelve
    assert ctl(cards, "load", path, "--to", "sim:0,50%;cpu,50%").returncode == 0
    assert ctl(cards, "drain", "--device", "sim:0").returncode == 0
    told = {device["name"]: device["draining"] for device in ctl_json(cards, "devices")["devices"]}
    assert told == {"cpu": False, "sim:0": True, "sim:1": False}
    assert "draining" in ctl(cards, "devices", "sim:0").stdout
    done = ctl(cards, "place", "twelve", "sim:0")
    assert done.returncode == 1 and "draining" in done.stderr, done.stderr
    assert ctl(cards, "place", "twelve", "sim:1").returncode == 0
    assert ctl(cards, "unload", "--device", "sim:0").returncode == 0

    def card():
        return ctl_json(cards, "devices", "sim:0")["devices"][0]

    wait_until(lambda: card()["used"] == 0 and not card().get("pid"), 20, "its worker's end")
    assert card()["state"] == "unavailable"
    assert "drained" in ctl(cards, "devices", "sim:0").stdout
    done = ctl(cards, "place", "twelve", "sim:0")
    assert done.returncode == 1 and "sim:0 (Simulated device) is draining" in done.stderr, done.stderr
    assert ctl(cards, "drain", "--device", "sim:0", "--off").returncode == 0
    wait_until(lambda: card()["state"] == "ok", 20, "another worker")
    assert ctl(cards, "place", "twelve", "sim:0").returncode == 0
