# SPDX-License-Identifier: Apache-2.0
"""ControlNet and CLIP Vision, placed: as by ComfyUI's own loaders, bit for bit, from where the
inputs of ours say; and again after ComfyUI has unloaded them."""
import re
import time

import models
import pytest
from graphs import node, sample
from test_placed import (HALF, cards, free, placing, shared_cards,  # noqa: F401
                         shared_server)

STRINGS = (HALF, "sim:1", "sim:1,30%;sim:0,30%;cpu,40%", "cpu,*")


def on(string):
    return {name for name in ("sim:0", "sim:1", "cpu") if name in string}


def look_at(graph, what, after):
    graph["look"] = node("TestLookInside", what=what, trigger=after)
    return graph


def check(outputs, loader, string):
    """What the node says is where the parameters lie; of how many another type was made."""
    (said,), (look,) = outputs[loader]["distorch"], outputs["look"]["look"]
    assert said["tier"] == "placed", said
    assert set(said["places"]) == set(look["devices"]) == on(string), (said, look)
    assert sum(said["places"].values()) >= sum(look["devices"].values()) > 30, (said, look)
    converted = re.search(r"(\d+) converted", said["lines"][0])
    assert look["own"] == (int(converted[1]) if converted else 0), (said, look)
    assert look["patcher"].startswith("Distorch"), look
    return look


def again(server, graph, loader="load"):
    """Once ComfyUI has unloaded it, which still has it in its cache."""
    server.post("/free", {"unload_models": True})
    time.sleep(0.6)
    found = server.run(graph)
    assert loader in found.cached, found.cached
    return found


# ---- ControlNet ----

def controlled(kind, file, seed=5, **more):
    """A sampler under a ControlNet of a file; `kind` of loader."""
    graph = sample("sd15", own=False, seed=seed)
    if "Diff" in kind:
        more["model"] = ["load", 0]
    graph["control"] = node(kind, control_net_name=file, **more)
    graph["image"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0x336699)
    graph["apply"] = node("ControlNetApplyAdvanced", positive=["conditioning", 0],
                          negative=["conditioning", 0], control_net=["control", 0],
                          image=["image", 0], strength=1.0, start_percent=0.0, end_percent=1.0)
    graph["sample"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
    return graph


@pytest.fixture
def controlnet(base):
    path = base / "models/controlnet/tiny.safetensors"
    models.write(path, models.tensors_of(models.controlnet_recipe(), seed=9))
    yield path.name
    path.unlink()


def test_a_controlnet_lies_where_it_is_told(placing, cards, controlnet):  # noqa: F811
    plain = placing.latent(placing.run(sample("sd15", own=False)))
    stock = [placing.latent(placing.run(controlled("ControlNetLoader", controlnet, seed)))
             for seed in (5, 6)]
    assert stock[0] != plain, "it has an effect"
    for string in STRINGS:
        free(placing)
        graph = look_at(controlled("DistorchControlNetLoader", controlnet,
                                   expert_mode_allocations=string), ["control", 0], ["sample", 0])
        outputs = placing.run(graph)
        look = check(outputs, "control", string)
        assert look["own"] == 0 and placing.latent(outputs) == stock[0], string
        graph["sample"]["inputs"]["seed"] = 6
        outputs = again(placing, graph, "control")
        assert placing.latent(outputs) == stock[1], string
        assert outputs["look"]["look"] == [look], "and lies as before"
    with cards.raw() as raw:
        assert all(one["ok"] for one in raw.call("verify")["checks"])


def test_a_controlnet_that_is_a_difference_to_a_model(placing, cards, base):  # noqa: F811
    file = base / "models/controlnet/tiny_diff.safetensors"
    tensors = {f"control_model.{name}": value for name, value in
               models.tensors_of(models.controlnet_recipe(), seed=9).items()}
    tensors["difference"] = models.tensors_of({"difference": ["F32", 1]})["difference"]
    models.write(file, tensors)
    stock = placing.latent(placing.run(controlled("DiffControlNetLoader", file.name)))
    assert stock != placing.latent(placing.run(controlled("ControlNetLoader", file.name)))
    n_changed = sum(name.split(".")[1] in ("time_embed", "input_blocks") for name in tensors
                    if "." in name)
    for kind in ("DistorchDiffControlNetLoader", "DiffControlNetLoaderDisTorch2MultiGPU"):
        for string in (HALF, "sim:1"):
            free(placing)
            outputs = placing.run(look_at(controlled(kind, file.name,
                                                     expert_mode_allocations=string),
                                          ["control", 0], ["sample", 0]))
            assert placing.latent(outputs) == stock, (kind, string)
            (said,), (look,) = outputs["control"]["distorch"], outputs["look"]["look"]
            assert said["tier"] == "placed", said
            assert look["own"] == n_changed and sum(look["devices"].values()) > 20, (said, look)
            assert f"{n_changed} converted by ComfyUI" in said["lines"][0], said
    with cards.raw() as raw:
        assert all(one["ok"] for one in raw.call("verify")["checks"]), "nobody wrote into it"
    file.unlink()


def test_what_core_moves_by_itself_says_so(placing, base):  # noqa: F811
    file = base / "models/controlnet/tiny_lora.safetensors"
    models.write(file, models.tensors_of({"lora_controlnet": ["F16", 1],
                                          "input_hint_block.0.weight": ["F16", 16, 3, 3, 3]}))
    graph = {"control": node("DistorchControlNetLoader", control_net_name=file.name,
                             compute_device="sim:1")}
    (said,) = placing.run(look_at(graph, ["control", 0], ["control", 0]))["control"]["distorch"]
    assert said["tier"] == "path", said
    assert said["lines"][1] == "not placed: ComfyUI moves models of this kind by itself, as a " \
        "whole", said
    file.unlink()


# ---- CLIP Vision ----

def seen(kind, file, color=0x336699, **more):
    return {"vision": node(kind, clip_name=file, **more),
            "image": node("EmptyImage", width=80, height=64, batch_size=1, color=color),
            "encode": node("CLIPVisionEncode", clip_vision=["vision", 0], image=["image", 0],
                           crop="center"),
            "row": node("TestAsLatent", encoded=["encode", 0]),
            "save": node("SaveLatent", samples=["row", 0], filename_prefix="seen")}


def as_open_clip(tensors):
    """The same weights by the names that they have outside of transformers, q, k and v in one."""
    import numpy

    found, stem = {}, "vision_model."
    names = {"embeddings.class_embedding": "class_embedding",
             "embeddings.patch_embedding.weight": "conv1.weight",
             "embeddings.position_embedding.weight": "positional_embedding"}
    for name, value in tensors.items():
        name = name.removeprefix(stem)
        at, layer, part = re.match(r"(encoder\.layers\.(\d+)\.)?(.*)", name).groups()
        if at is None:
            name = names.get(name, name.replace("post_layernorm", "ln_post")
                             .replace("pre_layrnorm", "ln_pre"))
            if name == "visual_projection.weight":
                name, value = "proj", numpy.ascontiguousarray(value.T)
        elif "q_proj" in part:
            value = numpy.concatenate([tensors[f"{stem}{at}{part.replace('q_', f'{one}_')}"]
                                       for one in "qkv"])
            name = f"transformer.resblocks.{layer}.attn.in_proj_{part.rpartition('.')[2]}"
        elif "k_proj" in part or "v_proj" in part:
            continue
        else:
            for theirs, ours in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"),
                                 ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                                 ("mlp.fc2", "mlp.c_proj")):
                part = part.replace(theirs, ours)
            name = f"transformer.resblocks.{layer}.{part}"
        found[f"visual.{name}"] = value
    return found


@pytest.mark.parametrize("names", ["transformers", "open_clip"])
def test_an_image_encoder_lies_where_it_is_told(placing, cards, base, names):  # noqa: F811
    file = base / f"models/clip_vision/tiny_{names}.safetensors"
    tensors = models.tensors_of(models.vision_recipe())
    models.write(file, as_open_clip(tensors) if names == "open_clip" else tensors)
    stock = [placing.latent(placing.run(seen("CLIPVisionLoader", file.name, color)))
             for color in (0x336699, 0xff0001)]
    assert stock[0] != stock[1]
    for string in STRINGS:
        free(placing)
        graph = look_at(seen("DistorchCLIPVisionLoader", file.name,
                             expert_mode_allocations=string), ["vision", 0], ["row", 0])
        outputs = placing.run(graph)
        look = check(outputs, "vision", string)
        assert look["own"] <= 5, (look, "of which core makes F32")
        assert placing.latent(outputs) == stock[0], string
        graph["image"]["inputs"]["color"] = 0xff0001
        outputs = again(placing, graph, "vision")
        assert placing.latent(outputs) == stock[1], string
        assert outputs["look"]["look"] == [look], "and lies as before"
    with cards.raw() as raw:
        assert all(one["ok"] for one in raw.call("verify")["checks"])
    file.unlink()
