# SPDX-License-Identifier: Apache-2.0
"""Quantised weights, placed and by their path: as ComfyUI computes with them, and unloaded between
prompts as it cannot by itself."""
import os
import re
import subprocess

import pytest
from conftest import COMFYUI, HERE, Server, comfyui_python
from graphs import KINDS, sample
from test_placed import (HALF, cards, free, loaded, placing, shared_cards,  # noqa: F401
                         shared_server)
from test_placed_kinds import again

KIND_NAMES = ("fp8_e4m3fn", "fp8_e5m2", "scaled_once", "quantised_float8_e4m3fn",
              "quantised_nvfp4", "quantised_mxfp8", "quantised_int8_tensorwise")


@pytest.fixture(scope="module")
def files(base):
    folder = base / "models/diffusion_models"
    done = subprocess.run([comfyui_python(), "-B", str(HERE / "quantise.py"),
                           str(folder / KINDS["sd3_2"][0]), str(folder)], text=True,
                          capture_output=True, cwd=COMFYUI, env={**os.environ, "PYTHONPATH":
                          os.environ.get("PYTHONPATH", ""), "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def by_path(base, shared_cards):  # noqa: F811
    server = Server(base, shared_cards.socket, environment={"DISTORCH_TIER": "path"}).start()
    yield server
    server.stop()


@pytest.fixture(params=KIND_NAMES)
def kind(request, files, monkeypatch):
    if not (files / f"{request.param}.safetensors").exists():
        pytest.skip("this ComfyUI has no such weights")
    monkeypatch.setitem(KINDS, request.param, (f"{request.param}.safetensors",
                                               *KINDS["sd3_2"][1:]))
    return request.param


def test_placed_quantised_weights_compute_as_core_s_own(placing, kind):  # noqa: F811
    stock = placing.latent(placing.run(sample(kind, own=False)))
    after_free = placing.latent(placing.run(sample(kind, own=False, seed=7)))
    with_lora = placing.latent(placing.run(sample(kind, own=False, lora=0.7)))
    for string in (HALF, "sim:1"):
        free(placing)
        outputs = placing.run(sample(kind, look=True, expert_mode_allocations=string))
        said, (look,) = loaded(outputs), outputs["look"]["look"]
        converted = re.search(r"(\d+) converted", said["lines"][0])  # as 0.3.64 does with biases
        assert said["tier"] == "placed" and look["mapped"] > look["own"], (said, look)
        assert look["own"] == (int(converted[1]) if converted else 0), (said, look)
        assert placing.latent(outputs) == stock
        assert set(said["places"]) == set(look["devices"]) == (
            {"sim:0", "cpu"} if string == HALF else {"sim:1"}), (said, look)
        patched = placing.latent(placing.run(sample(kind, lora=0.7,
                                                    expert_mode_allocations=string)))
        if string == "sim:1" or kind.startswith("fp8"):
            assert patched == with_lora
        else:  # what is cast at use is patched then, and by later ComfyUIs not quantised again
            assert patched != stock
        outputs = placing.run(sample(kind, seed=6, look=True, expert_mode_allocations=string))
        assert outputs["look"]["look"][0]["devices"] == look["devices"], "in place again"
        outputs = again(placing, sample(kind, seed=7, look=True, expert_mode_allocations=string))
        assert placing.latent(outputs) == after_free
        assert outputs["look"]["look"][0]["devices"] == look["devices"]


def unloaded_between(server, kind, tier):
    stock = [server.latent(server.run(sample(kind, own=False, seed=seed))) for seed in (5, 6)]
    outputs = server.run(sample(kind))
    assert loaded(outputs)["tier"] == tier, loaded(outputs)
    assert server.latent(outputs) == stock[0]
    assert server.latent(again(server, sample(kind, seed=6))) == stock[1]


def test_they_are_unloaded_between_prompts_by_the_best_tier(placing, kind):  # noqa: F811
    unloaded_between(placing, kind, "assign" if kind.startswith("fp8") else "path")


def test_they_are_unloaded_between_prompts_by_the_path_too(by_path, kind):
    unloaded_between(by_path, kind, "path")
