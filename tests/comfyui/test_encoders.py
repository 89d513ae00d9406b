# SPDX-License-Identifier: Apache-2.0
"""Loaders of more than one text encoder, on a real ComfyUI whose encoders are tiny: by every tier
they make of words what its own loaders make of them."""
import os
import re
import subprocess

import models
import pytest
from conftest import COMFYUI, END_TO_END, HERE, Server, comfyui_python
from graphs import node
from test_placed import HALF, shared_cards  # noqa: F401

FILES = ("clip_l", "clip_g", "t5xxl", "llama")
#: kind: (its node, its files, what else it is told)
KINDS = {"sd3": ("DualCLIPLoader", ("clip_l", "clip_g"), {"type": "sd3"}),
         "sd3 with T5": ("DualCLIPLoader", ("clip_l", "t5xxl"), {"type": "sd3"}),
         "flux": ("DualCLIPLoader", ("t5xxl", "clip_l"), {"type": "flux"}),
         "sdxl": ("DualCLIPLoader", ("clip_g", "clip_l"), {"type": "sdxl"}),
         "three": ("TripleCLIPLoader", ("clip_l", "clip_g", "t5xxl"), {}),
         "four": ("QuadrupleCLIPLoader", FILES, {})}


@pytest.fixture(scope="module")
def files(base):
    folder = base / "models/text_encoders"
    for seed, (name, recipe) in enumerate(models.encoder_recipes().items()):
        models.write(folder / f"tiny_{name}.safetensors", models.tensors_of(recipe, seed))
    done = subprocess.run([comfyui_python(), "-B", str(HERE / "quantise.py"),
                           str(folder / "tiny_t5xxl.safetensors"), str(folder), "encoder"],
                          text=True, capture_output=True, cwd=COMFYUI, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    yield folder
    for path in folder.iterdir():
        path.unlink()


def server_with(**environment):
    @pytest.fixture(scope="module")
    def server(base, shared_cards, files):  # noqa: F811
        one = Server(base, shared_cards.socket,
                     environment={"DISTORCH_TEST_ENCODERS": "tiny", **environment}).start()
        yield one
        one.stop()

    return server


server, by_path = server_with(), server_with(DISTORCH_TIER="path")


def encoded(kind, own, **widgets):
    stock, names, more = KINDS[kind]
    inputs = {f"clip_name{i}": f"tiny_{name}.safetensors" for i, name in enumerate(names, 1)}
    return {"clip": node(f"Distorch{stock}" if own else stock, **inputs, **more, **widgets),
            "words": node("CLIPTextEncode", clip=["clip", 0], text="a cat"),
            "look": node("TestEncoded", clip=["clip", 0], conditioning=["words", 0])}


def look(server, graph):
    """What its loader said, if it is ours, and what came of it."""
    outputs = server.run(graph)
    (found,) = outputs["look"]["encoded"]
    assert found["is_finite"] and "clip" not in outputs.cached, (found, outputs.cached)
    return outputs.get("clip", {}).get("distorch", [None])[0], found


@pytest.fixture(autouse=True)
def nothing_is_loaded(server, by_path, shared_cards):  # noqa: F811
    yield lambda: let_go(shared_cards, server, by_path)
    let_go(shared_cards, server, by_path)


def let_go(daemon, *servers):
    """Nobody uses anything, and nothing is placed any more."""
    def pids():
        """Of who uses any."""
        with daemon.raw() as raw:
            return {user["pid"] for model in raw.call("list")["models"] for user in model["users"]}

    def is_gone():
        with daemon.raw() as raw:
            raw.call("unload", {"select": {"all": True}})
            return raw.call("list")["models"] == []

    for one in servers:
        one.free(lambda pid=one.process.pid: pid not in pids())
    END_TO_END.wait_until(is_gone, 30, "the encoders to go")


@pytest.mark.parametrize("kind", KINDS)
def test_several_encoders_make_of_words_what_stock_makes(server, by_path, nothing_is_loaded, kind):
    _said, stock = look(server, encoded(kind, False))
    said, found = look(server, encoded(kind, True))
    assert said["tier"] == "assign" and found["digest"] == stock["digest"], (said, found)
    n_all = sum(found["devices"].values())
    assert found["own"] <= 4 * len(KINDS[kind][1]) < n_all / 4, found  # what no file has
    (n_said,) = re.findall(r"\((\d+) of \d+ in place\)", said["lines"][0])
    assert int(n_said) == n_all - found["own"], (said, found)
    assert sum(stock["devices"].values()) == n_all == stock["own"], "stock's are its own"
    for string in (HALF, "sim:1"):
        said, found = look(server, encoded(kind, True, expert_mode_allocations=string))
        assert said["tier"] == "placed" and found["digest"] == stock["digest"], (said, found)
        assert set(found["devices"]) - {"own"} == set(said["places"]) == (
            {"sim:0", "cpu"} if string == HALF else {"sim:1"}), (said, found)
        assert sum(said["places"].values()) == n_all - found["own"], (said, found)
    nothing_is_loaded()
    said, found = look(by_path, encoded(kind, True))
    assert said["tier"] == "path" and found["digest"] == stock["digest"], (said, found)


def test_an_encoder_that_was_quantised_as_once(server, files, monkeypatch):
    """Core makes of its names those that it knows now, before it builds the encoder."""
    names = ("clip_l", "scaled_once")
    monkeypatch.setitem(KINDS, "scaled", ("DualCLIPLoader", names, {"type": "sd3"}))
    assert (files / "tiny_scaled_once.safetensors").exists()
    plain = look(server, encoded("sd3 with T5", False))[1]
    _said, stock = look(server, encoded("scaled", False))
    assert stock["digest"] != plain["digest"] and stock["shape"] == plain["shape"]
    said, found = look(server, encoded("scaled", True))
    assert said["tier"] == "path" and found["digest"] == stock["digest"], (said, found)
    for string in (HALF, "sim:1"):
        said, found = look(server, encoded("scaled", True, expert_mode_allocations=string))
        assert said["tier"] == "placed" and found["digest"] == stock["digest"], (said, found)
