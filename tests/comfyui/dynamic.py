# SPDX-License-Identifier: Apache-2.0
"""Run by ComfyUI's Python, not as a test: what loaders make where core pages weights by itself, as
far as that goes without a card (core cannot unload there, so models are let go; what is not paged
computes). Prints one line of JSON.

Usage: dynamic.py path PACK FOLDER FILE, or dynamic.py placed PACK FOLDER LOADS, with ComfyUI as the
current folder; FOLDER has ComfyUI's folders of models, LOADS is JSON: [[loader, inputs], …]."""
import gc
import importlib.util
import json
import os
import sys

HOW, PACK, FOLDER, WHAT = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, os.getcwd())
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "pack"))

import comfy_aimdo.control  # noqa: E402

comfy_aimdo.control.init()

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.memory_management  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402

comfy.memory_management.aimdo_enabled = True


class OnCpu(comfy.model_patcher.ModelPatcherDynamic):
    def __new__(cls, *_arguments, **_options):
        return object.__new__(cls)


comfy.model_patcher.CoreModelPatcher = OnCpu

import folder_paths  # noqa: E402
import narrow  # noqa: E402, F401
import nodes  # noqa: E402
import torch  # noqa: E402

for kind in os.listdir(FOLDER):
    folder_paths.add_model_folder_path(kind, os.path.join(FOLDER, kind), is_default=True)
spec = importlib.util.spec_from_file_location(
    "distorch_pack", os.path.join(PACK, "__init__.py"), submodule_search_locations=[PACK])
pack = importlib.util.module_from_spec(spec)
sys.modules["distorch_pack"] = pack
spec.loader.exec_module(pack)


def device_of(tensor):
    """The daemon's name of where the bytes lie, or None."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        for line in lines:
            if "/memfd:" not in line:
                continue
            begin, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            if begin <= tensor.data_ptr() < end:
                return line.split("/memfd:")[1].split("/")[0] if "/memfd:sim:" in line else "cpu"
    return None


def leases(file):
    models = pack.nodes.session.call(lambda connection: connection.list())
    return {one.name: one.leases for one in models}.get(file, 0)


def by_path():
    def count_mapped(patcher):
        values = list(patcher.model.diffusion_model.state_dict().values())
        return [sum(device_of(one) is not None for one in values), len(values)]

    shown = pack.nodes.DiffusionModelLoader().load(unet_name=WHAT, weight_dtype="default")
    patcher = shown["result"][0]
    said = {"tier": shown["ui"]["distorch"][0]["tier"], "is_dynamic": patcher.is_dynamic(),
            "mapped": [count_mapped(patcher)], "leases": [leases(WHAT)]}
    comfy.model_management.load_models_gpu([patcher])
    said["mapped"].append(count_mapped(patcher))
    stock = comfy.sd.load_diffusion_model(os.path.join(FOLDER, "diffusion_models", WHAT))
    ours, theirs = (one.model.diffusion_model.state_dict() for one in (patcher, stock))
    said["is_equal"] = ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in theirs)
    comfy.model_management.current_loaded_models.clear()
    del patcher, shown, ours
    gc.collect()
    said["leases"].append(leases(WHAT))
    return said


def module_of(found):
    for name in ("cond_stage_model", "first_stage_model", "control_model"):
        if getattr(found, name, None) is not None:
            return getattr(found, name)
    return getattr(found.model, "diffusion_model", found.model)


def patcher_of(found):
    return next((getattr(found, name) for name in ("control_model_wrapped", "patcher")
                 if hasattr(found, name)), found)


def output_of(found):
    """What it computes, where that is a line to ask for; of others their weights as they compute."""
    random = torch.Generator().manual_seed(1)
    if hasattr(found, "encode_image"):
        return [found.encode_image(torch.rand(1, 64, 80, 3, generator=random))["image_embeds"]]
    if hasattr(found, "first_stage_model"):
        return [found.decode(torch.rand(1, 4, 8, 8, generator=random))]
    if hasattr(found, "tokenize"):
        return [found.encode_from_tokens(found.tokenize("a cat"))]
    comfy.model_management.load_models_gpu([patcher_of(found)])
    return list(module_of(found).state_dict().values())


def is_same(ours, theirs):
    return all(torch.equal(one.to(other.dtype), other) for one, other in zip(ours, theirs))


def placed(kind, inputs):
    comfy.model_patcher.CoreModelPatcher = OnCpu
    shown = getattr(pack.nodes, kind)().load(**inputs)
    (node,) = shown["ui"]["distorch"]
    said = {"lines": node["lines"], "tier": node["tier"], "parts": []}
    ours = [one for one in shown["result"] if one is not None]
    if node["tier"] == "placed":  # what core pages cannot compute here
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcher
        files = {name: value for name, value in inputs.items() if name.endswith("_name")}
        stock = getattr(pack.nodes, kind)().job(**files)
        theirs = [one for one in stock.by_path(stock.paths) if one is not None]
    for i, found in enumerate(ours):
        places = [device_of(one) or "own" for one in module_of(found).parameters()]
        devices = {name: places.count(name) for name in places}
        part = {"is_dynamic": patcher_of(found).is_dynamic(), "devices": devices}
        if node["tier"] == "placed":
            part["is_equal"] = is_same(output_of(found), output_of(theirs[i]))
        said["parts"].append(part)
    comfy.model_management.current_loaded_models.clear()
    del shown, ours, found
    gc.collect()
    (file,) = (value for name, value in inputs.items() if name.endswith("_name"))
    said["leases"] = leases(file)
    return said


with torch.inference_mode():
    print(json.dumps(by_path() if HOW == "path" else [placed(*one) for one in json.loads(WHAT)]))
