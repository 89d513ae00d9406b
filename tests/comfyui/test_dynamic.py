# SPDX-License-Identifier: Apache-2.0
"""Where core pages weights by itself (dynamic VRAM): by their path they are the daemon's memory,
and what is placed is not paged."""
import json
import os
import pathlib
import subprocess

import models
import pytest
from conftest import COMFYUI, ROOT, comfyui_python
from graphs import KINDS
from test_placed import HALF, shared_cards  # noqa: F401
from test_quantised import KIND_NAMES, files  # noqa: F401

pytestmark = pytest.mark.skipif(
    COMFYUI is not None and "class ModelPatcherDynamic" not in (
        pathlib.Path(COMFYUI) / "comfy" / "model_patcher.py").read_text(),
    reason="this ComfyUI does not page weights by itself")


def run(daemon, base, how, what):
    done = subprocess.run(
        [comfyui_python(), "-B", str(pathlib.Path(__file__).with_name("dynamic.py")), how,
         str(ROOT / "comfyui_plugin"), str(base / "models"), what],
        cwd=COMFYUI, env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket),
                          "XDG_RUNTIME_DIR": str(base)},
        text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr[-3000:]


def test_by_their_path_they_are_the_daemons_memory(daemon, base):
    said, log = run(daemon, base, "path", KINDS["sd3_2"][0])
    n_tensors = len(models.RECIPES["tiny_sd3_2"])
    assert said == {"tier": "path", "is_dynamic": True, "mapped": [[n_tensors, n_tensors]] * 2,
                    "leases": [1, 0], "is_equal": True}, (said, log)


def wide_vae():
    return {name.removeprefix("first_stage_model."): array.astype("float32")
            for name, array in models.tensors_of("tiny_sd15").items()
            if name.startswith("first_stage_model.")}


def test_what_is_placed_is_not_paged(shared_cards, base):  # noqa: F811
    folder = base / "models"
    made = [models.write(folder / "vae/wide_vae.safetensors", wide_vae()),
            models.write(folder / "controlnet/tiny.safetensors",
                         models.tensors_of(models.controlnet_recipe())),
            models.write(folder / "clip_vision/tiny.safetensors",
                         models.tensors_of(models.vision_recipe())),
            models.write(folder / "text_encoders/clip_l.safetensors",
                         models.tensors_of(models.clip_l_recipe()))]
    where = {"expert_mode_allocations": HALF}
    loads = [("DiffusionModelLoader", {"unet_name": KINDS["sd3_2"][0], **where}),
             ("CheckpointLoader", {"ckpt_name": KINDS["sd15"][0], "vae_device": "sim:1", **where}),
             ("VaeLoader", {"vae_name": "wide_vae.safetensors", **where}),
             ("ControlNetLoader", {"control_net_name": "tiny.safetensors", **where}),
             ("ClipVisionLoader", {"clip_name": "tiny.safetensors", **where}),
             ("ClipLoader", {"clip_name": "clip_l.safetensors", "type": "stable_diffusion",
                             **where}),
             ("VaeLoader", {"vae_name": "tiny_vae.safetensors", **where})]
    found, log = run(shared_cards, base, "placed", json.dumps(loads))
    for path in made:
        path.unlink()
    *found, converted = found
    for (loader, _inputs), said in zip(loads, found):
        assert said["tier"] == "placed" and said["leases"] == 0, (loader, said, log)
        for part in said["parts"]:
            assert not part["is_dynamic"] and part["is_equal"], (loader, said)
        first = said["parts"][0]["devices"]
        assert first["sim:0"] > 0 and first["cpu"] > 0, (loader, said)
        assert first.get("own", 0) <= 5, (loader, said)
    assert "converted" in found[1]["lines"][0], "its VAE is F16, and computes in F32"
    # core makes F32 of all of it: not placed, so it is paged as without us
    assert converted["tier"] == "path" and converted["parts"][0]["is_dynamic"], converted
    assert converted["lines"][1] == "not placed: ComfyUI converts its weights", converted


def test_quantised_weights_are_placed_too(shared_cards, base, files):  # noqa: F811
    names = [name for name in KIND_NAMES if (files / f"{name}.safetensors").exists()
             and "mxfp8" not in name]  # ComfyUI's own reader does not know its scales' type there
    assert len(names) > 3
    found, log = run(shared_cards, base, "placed", json.dumps(
        [("DiffusionModelLoader", {"unet_name": f"{name}.safetensors",
                                   "expert_mode_allocations": HALF}) for name in names]))
    for name, said in zip(names, found):
        assert said["tier"] == "placed" and said["leases"] == 0, (name, said, log)
        (part,) = said["parts"]
        assert not part["is_dynamic"] and part["is_equal"], (name, said)
        assert part["devices"]["sim:0"] > 0 and part["devices"]["cpu"] > 0, (name, said)
