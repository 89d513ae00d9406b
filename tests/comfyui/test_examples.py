# SPDX-License-Identifier: Apache-2.0
"""The workflows that the pack brings: the page opens each as a template, and it runs on the tiny
models in the place of its own."""
import json
import os
import pathlib

import models as tiny_models
import pytest
from conftest import Server, daemon_with
from examples import CHECKPOINT, EXAMPLES, FOLDER, GGUF, GGUF_PACK, UNET
from graphs import KINDS, node
from page import needs_browser, open_page, prompt, server  # noqa: F401
from test_workflows import models

daemon = daemon_with("sim.count=2", "sim.memory=256M")
TINY = {UNET: KINDS["sd3_2"][0], CHECKPOINT: KINDS["sd15"][0],
        "dreamshaper_8.safetensors": "second.safetensors",
        "cuda:0,8gb;cuda:1,6gb;cpu,*": "sim:0,10%;sim:1,45%;cpu,*", "cuda:0": "sim:0",
        "cuda:1": "sim:1"}


def tiny(graph, words):
    """On the tiny models: they have no text encoders, and that of SD 3 no VAE."""
    is_large = any(one["class_type"] == "EmptySD3LatentImage" for one in graph.values())
    found = {}
    for key, one in graph.items():
        kind = one["class_type"]
        inputs = {name: words.get(value, value) if isinstance(value, str) else value
                  for name, value in one["inputs"].items()}
        if kind == "CLIPTextEncode":
            width, pooled = (64, 32) if is_large else (768, 768)
            one = node("TestZeroConditioning", width=width, pooled=pooled)
        elif is_large and ("CLIPLoader" in kind or kind in ("DistorchVAELoader", "SaveImage")):
            continue
        elif is_large and kind == "VAEDecode":
            one = node("SaveLatent", samples=inputs["samples"], filename_prefix="example")
        else:
            sizes = {"width": 64, "height": 64, "steps": 2}
            one = {**one, "inputs": {**inputs, **{name: value for name, value in sizes.items()
                                                  if name in inputs}}}
        found[key] = one
    for one in found.values():  # what came after an image comes after the latent was sampled
        after = one["inputs"].get("after")
        if after is not None and found[after[0]]["class_type"] == "SaveLatent":
            one["inputs"]["after"] = found[after[0]]["inputs"]["samples"]
    return found


def said_by(outputs, graph, kind):
    (key,) = [key for key, one in graph.items() if one["class_type"] == kind]
    return outputs[key]["distorch"][0]["lines"]


@pytest.fixture
def open_example(server, open_page):
    """The prompt of a workflow, by the page that has opened it as one of its templates."""
    page = open_page(server)

    def opened(name):
        page.do("""
const answer = await fetch(`/api/workflow_templates/distorch/${encodeURIComponent(args[0])}.json`);
if (!answer.ok) throw new Error(answer.status);
await app.loadGraphData(await answer.json(), true, true, args[0]);""", name)
        missing = page.do("return app.graph.nodes.map((one) => one.type)"
                          ".filter((type) => !(type in LiteGraph.registered_node_types))")
        assert missing == [], missing
        (text,) = page.do("return app.graph.nodes.filter((one) => one.type === 'MarkdownNote')"
                          ".map((one) => one.widgets[0].value)")
        assert text == EXAMPLES[name][0]
        return prompt(page)

    return opened


def test_each_is_as_it_is_made_and_has_a_picture():
    """Widgets that loaders were given since would be missing: make them anew."""
    assert {path.stem for path in FOLDER.glob("*.json")} == set(EXAMPLES)
    of_one = {value for one in EXAMPLES["one model over two cards and RAM"][1].values()
              for value in one["inputs"].values() if isinstance(value, str) and "gb" in value}
    for name, (text, graph) in EXAMPLES.items():
        asked = {value for one in graph.values() for value in one["inputs"].values()
                 if isinstance(value, str)}
        saved = json.loads((FOLDER / f"{name}.json").read_text())
        types = sorted(one["type"] for one in saved["nodes"])
        assert types == sorted([one["class_type"] for one in graph.values()] + ["MarkdownNote"])
        assert text in {value for one in saved["nodes"] if one["type"] == "MarkdownNote"
                        for value in one["widgets_values"]}
        values = {value for one in saved["nodes"] for value in one.get("widgets_values") or ()
                  if isinstance(value, str)}
        assert asked <= values and not values & of_one - asked, name
        assert 0 < (FOLDER / f"{name}.jpg").stat().st_size < 150_000


@needs_browser
def test_they_are_templates_of_the_page(server):
    assert set(server.get("/workflow_templates")["distorch"]) == set(EXAMPLES)


@needs_browser
def test_one_model_over_two_cards_and_ram(server, daemon, open_example):
    graph = tiny(open_example("one model over two cards and RAM"), TINY)
    lines = said_by(server.run(graph), graph, "DistorchDiffusionModelLoader")
    assert not any(line.startswith("not placed") for line in lines), lines
    where = {place["device"] for place in models(daemon)[TINY[UNET]]["where"]
             if place["bytes"] > 0}
    assert {"sim:0", "sim:1"} <= where, where


@needs_browser
def test_a_checkpoints_parts_apart(server, daemon, open_example):
    graph = tiny(open_example("checkpoint with UNet, CLIP and VAE apart"), TINY)
    outputs = server.run(graph)
    lines = said_by(outputs, graph, "DistorchCheckpointLoader")
    assert not any(line.startswith("not placed") for line in lines), (lines, graph)
    where = {place["device"] for place in models(daemon)[TINY[CHECKPOINT]]["where"]
             if place["bytes"] > 0}
    assert {"sim:0", "sim:1"} <= where, where
    assert any("images" in one for one in outputs.values())


@needs_browser
def test_two_processes_on_one_model(server, base, daemon, open_example):
    graph = tiny(open_example("two ComfyUI processes on one model"), TINY)
    server.run(graph)
    other = Server(base, daemon.socket).start()
    try:
        outputs = other.run(graph)
        assert said_by(outputs, graph, "DistorchDiffusionModelLoader")[0].startswith("served")
        (status,) = [one["text"][0] for one in outputs.values() if "text" in one]
        assert TINY[UNET] in status and "in use" in status
        assert models(daemon)[TINY[UNET]]["leases"] == 2
    finally:
        other.stop()


@needs_browser
def test_keeping_one_of_two(server, base, daemon, open_example):
    path = base / "models/checkpoints" / "second.safetensors"
    tiny_models.write(path, tiny_models.tensors_of("tiny_sd15", seed=9))
    graph = tiny(open_example("keep and unload selectively between two models"), TINY)
    outputs = server.run(graph)
    (report,) = [one["text"][0] for one in outputs.values() if "text" in one]
    assert f"kept: {TINY[CHECKPOINT]}" in report, report
    assert f"held: {path.name}" in report, report  # until ComfyUI lets go of it
    assert models(daemon)[path.name]["leases"] > 0

    server.free(lambda: path.name not in models(daemon))
    assert models(daemon)[TINY[CHECKPOINT]]["keep"]


@needs_browser
def test_an_old_workflow(server, open_example):
    old = open_example("an old DisTorch 2 workflow")
    here = tiny(old, {**TINY, "cuda:0": "sim:0"})
    loader = "UNETLoaderDisTorch2MultiGPU"
    lines = said_by(server.run(here), here, loader)
    assert not any(line.startswith("not placed") for line in lines), lines
    elsewhere = tiny(old, {UNET: TINY[UNET]})
    lines = said_by(server.run(elsewhere), elsewhere, loader)
    assert any("no cuda:0 here" in line for line in lines), lines


@needs_browser
@pytest.mark.skipif("COMFYUI_GGUF_DIR" not in os.environ, reason="COMFYUI_GGUF_DIR is not set")
def test_gguf_by_the_pack_itself(base, daemon, open_page):
    from test_gguf import write

    file = base / "models/diffusion_models/tiny_of_example.gguf"
    write(file, "Q4_0")
    pack = base / "custom_nodes" / "ComfyUI-GGUF"
    pack.symlink_to(pathlib.Path(os.environ["COMFYUI_GGUF_DIR"]).resolve())
    one = Server(base, daemon.socket, ("ComfyUI-GGUF",))
    try:
        one.start()
        page = open_page(one)
        page.do("await app.loadGraphData(args[0])", json.loads((FOLDER / "GGUF.json").read_text()))
        graph = tiny(prompt(page), {**TINY, GGUF: file.name})
        outputs = one.run(graph)
        loader = "DistorchGGUFDiffusionModelLoader"
        lines = said_by(outputs, graph, loader)
        assert lines[0].startswith("served by distorchd"), lines
        assert not any(line.startswith("not placed") for line in lines), lines
        assert models(daemon)[file.name]["leases"] == 1
        stock = {**graph, "stock": node("UnetLoaderGGUF", unet_name=file.name)}
        ours = next(key for key, part in graph.items() if part["class_type"] == loader)
        for part in stock.values():
            part["inputs"] = {name: ["stock", 0] if value == [ours, 0] else value
                              for name, value in part["inputs"].items()}
        saved = next(key for key, part in graph.items() if part["class_type"] == "SaveLatent")
        assert one.latent(one.run(stock), saved) == one.latent(outputs, saved)
    finally:
        one.stop()
        pack.unlink()
        file.unlink()


@needs_browser
def test_gguf_is_known_where_its_pack_is(base, daemon, open_page):
    """By a stand-in of ComfyUI-GGUF, which alone reads the format: the workflow opens and its loader
    asks that pack; without a file that it reads, ComfyUI refuses the prompt for its name alone."""
    pack = base / "custom_nodes" / "ComfyUI-GGUF"
    pack.mkdir()
    (pack / "__init__.py").write_text(GGUF_PACK)
    one = Server(base, daemon.socket, ("ComfyUI-GGUF",))
    try:
        one.start()
        page = open_page(one)
        page.do("await app.loadGraphData(args[0])", json.loads((FOLDER / "GGUF.json").read_text()))
        (loader,) = [part for part in prompt(page).values()
                     if part["class_type"] == "DistorchGGUFDiffusionModelLoader"]
        assert loader["inputs"]["unet_name"] == GGUF
        inputs = one.get("/object_info/DistorchGGUFDiffusionModelLoader")
        assert "unet_name" in inputs["DistorchGGUFDiffusionModelLoader"]["input"]["required"]
    finally:
        one.stop()
        (pack / "__init__.py").unlink()
        pack.rmdir()
