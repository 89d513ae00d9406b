# SPDX-License-Identifier: Apache-2.0
"""Into it and out again, in the page of a real ComfyUI, and how its loaders were served."""
from conftest import daemon_with
from graphs import KINDS, node, sample
from page import (SERVED, by_number, needs_browser, open_page, ours_of, prompt,  # noqa: F401
                  queue, run, saved, server, server_alone, show, unet)
from test_workflows import models

daemon = daemon_with()


@needs_browser
def test_a_workflow_is_swapped_run_and_swapped_back(server, daemon, open_page):
    page = open_page(server)
    graph = {**sample("sd3_2", own=False),
             "vae": node("VAELoader", vae_name="tiny_vae.safetensors")}
    show(page, graph)
    page.do("""
const loader = app.graph.nodes.find((one) => one.type === "UNETLoader");
Object.assign(loader, { title: "Mine", color: "#223322", bgcolor: "#335533", pos: [33, 44] });
app.graph.createReroute([300, 200], app.graph.links.get(loader.outputs[0].links[0]));
const primitive = LiteGraph.createNode("PrimitiveNode");
app.graph.add(primitive);
primitive.connect(0, loader, loader.inputs.findIndex((one) => one.name === "weight_dtype"));""")
    before, stock = saved(page), prompt(page)
    run(page, "distorch.serve")
    after, ours = unet(saved(page)), prompt(page)
    old = unet(before)
    assert after["type"] == "DistorchDiffusionModelLoader"
    for name in ("id", "pos", "color", "bgcolor", "title"):
        assert after[name] == old[name], name
    assert after["widgets_values"][:len(old["widgets_values"])] == old["widgets_values"]
    assert saved(page)["links"] == before["links"]
    for key, one in stock.items():
        assert {**ours[key]["inputs"], **one["inputs"]} == ours[key]["inputs"], key
    run(page, "distorch.serve")
    assert prompt(page) == ours, "once is enough"
    assert queue(page) == "served by distorchd, no copy"
    assert KINDS["sd3_2"][0] in models(daemon)
    run(page, "distorch.stock")
    now = saved(page)
    for name in ("links", "groups"):
        assert now[name] == before[name]
    for one, was in zip(now["nodes"], before["nodes"]):  # the seed is another after each run
        assert one == was or one["type"] == "KSampler", one["type"]
    assert {one["class_type"] for one in prompt(page).values()} == \
        {one["class_type"] for one in stock.values()}
    page.do("await app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    assert unet(saved(page))["type"] == "DistorchDiffusionModelLoader", "one step of undo"
    assert ours_of(page) == []


@needs_browser
def test_one_loader_is_swapped_by_its_menu(server, open_page):
    page = open_page(server)
    show(page, {**sample("sd15", own=False), "unet": node(
        "UNETLoader", unet_name=KINDS["sd3_1"][0], weight_dtype="default")})
    choose = """
const loader = app.graph.nodes.find((one) => one.type === args[0]);
const items = app.canvas.getNodeMenuOptions(loader).filter((one) => one?.content === args[1]);
if (items.length !== 1) throw new Error(`${items.length} items`);
items[0].callback();
return app.graph.nodes.map((one) => one.type);"""
    types = page.do(choose, "CheckpointLoaderSimple", "Serve from distorchd")
    assert "DistorchCheckpointLoader" in types and "UNETLoader" in types
    types = page.do(choose, "DistorchCheckpointLoader", "Back to the stock loader")
    assert "CheckpointLoaderSimple" in types and "DistorchCheckpointLoader" not in types


@needs_browser
def test_each_kind_of_loader_goes_there_and_back(server, open_page):
    page = open_page(server)
    pairs = page.do("return Object.fromEntries([..."
                    "(await import('/extensions/distorch/swap.js')).TO_OURS]"
                    ".filter(([stock]) => !stock.endsWith('GGUF')))")  # which is not here
    assert len(pairs) == 10
    page.do("""
app.graph.clear();
for (const type of args[0]) {
  const made = LiteGraph.createNode(type);
  made.pos = [400 * (app.graph.nodes.length % 3), 200 * Math.floor(app.graph.nodes.length / 3)];
  app.graph.add(made);
}""", list(pairs))
    before = saved(page)
    assert [one["type"] for one in before["nodes"]] == list(pairs)
    run(page, "distorch.serve")
    assert [one["type"] for one in saved(page)["nodes"]] == list(pairs.values())
    page.do("""
const number = LiteGraph.createNode("PrimitiveInt");
app.graph.add(number);
const [ours] = app.graph.nodes.filter((one) => one.type === "DistorchVAELoader");
number.connect(0, ours, ours.inputs.findIndex((one) => one.name === "priority"));
if (app.graph.links.size !== 1) throw new Error("no link to what only ours have");""")
    run(page, "distorch.stock")
    page.do("app.graph.remove(app.graph.nodes.find((one) => one.type === 'PrimitiveInt'))")
    after = saved(page)
    assert after["nodes"] == before["nodes"] and after["links"] == []


TOAST = """
return [...document.querySelectorAll('.p-toast-message')].map((one) => one.innerText)
  .find((one) => one.includes(args[0])) ?? null;"""


@needs_browser
def test_nodes_that_manage_are_taken_out_on_the_way_back(server, open_page):
    """Or they were red without this pack."""
    page = open_page(server)
    stock = {**sample("sd3_2", own=False), "path": node("DistorchResidentFile", file="x",
                                                        kind="diffusion_models")}
    graph = {**stock, "load": sample("sd3_2")["load"],
             "pin": node("DistorchPin", model="m", pin=True, after=["load", 0]),
             "status": node("DistorchStatus", after=["pin", 0]),
             "room": node("DistorchMakeRoom", device="cpu", gigabytes=1.0, minutes=1),
             "unload": node("DistorchUnload", names="", device="", idle_minutes=0, not_kept=True,
                            after=["sample", 0])}
    graph["sample"] = {**graph["sample"], "inputs": {**graph["sample"]["inputs"],
                                                     "model": ["status", 0]}}
    graph["save"] = node("SaveLatent", samples=["unload", 0], filename_prefix="sd3_2")
    graph["show"] = node("PreviewAny", source=["unload", 1])
    show(page, graph)
    before = saved(page)
    run(page, "distorch.stock")
    text = page.wait(TOAST, "again")
    for words in ("1 loader", "4 nodes that manage taken out", "1 other node of distorch without"):
        assert words in text, text
    found, numbers = prompt(page), by_number(graph)
    assert not any(one["class_type"].startswith("Distorch") and
                   one["class_type"] != "DistorchResidentFile" for one in found.values())
    kinds = {one["class_type"]: key for key, one in found.items()}
    sampler, save = found[kinds["KSampler"]], found[kinds["SaveLatent"]]
    assert sampler["inputs"]["model"] == [kinds["UNETLoader"], 0]
    assert save["inputs"]["samples"] == [kinds["KSampler"], 0]
    assert sampler["inputs"]["positive"] == numbers[kinds["KSampler"]]["inputs"]["positive"]
    page.do("await app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    again = saved(page)
    assert [(one["id"], one["type"]) for one in again["nodes"]] == \
        [(one["id"], one["type"]) for one in before["nodes"]], "one step of undo"
    assert again["links"] == before["links"]
    assert ours_of(page) == []


@needs_browser
def test_a_node_that_manages_at_the_edge_of_a_subgraph_is_taken_out(server, open_page):
    page = open_page(server)
    graph = sample("sd3_1", own=False)
    graph["pin"] = node("DistorchPin", model="m", pin=True, after=["load", 0])
    graph["unload"] = node("DistorchUnload", names="", device="", idle_minutes=0, not_kept=True,
                           after=["sample", 0])
    graph["sample"]["inputs"]["model"] = ["pin", 0]
    graph["save"]["inputs"]["samples"] = ["unload", 0]
    show(page, graph)
    page.do("""
const inner = app.graph.nodes.filter((one) => ["DistorchPin", "KSampler", "DistorchUnload"]
  .includes(one.type));
app.graph.convertToSubgraph(new Set(inner));""")
    run(page, "distorch.stock")
    assert "2 nodes that manage taken out" in page.wait(TOAST, "taken out")
    found = prompt(page)
    kinds = {one["class_type"]: key for key, one in found.items()}
    assert found[kinds["KSampler"]]["inputs"]["model"] == [kinds["UNETLoader"], 0]
    assert found[kinds["SaveLatent"]]["inputs"]["samples"] == [kinds["KSampler"], 0]


@needs_browser
def test_loaders_inside_a_subgraph_are_swapped(server, open_page):
    page = open_page(server)
    show(page, sample("sd3_1", own=False))
    page.do("""
const loader = app.graph.nodes.find((one) => one.type === "UNETLoader");
const { subgraph } = app.graph.convertToSubgraph(new Set([loader]));
const inner = subgraph.nodes[0];
subgraph.addInput("unet_name", "COMBO")
  .connect(inner.inputs.find((one) => one.name === "unet_name"), inner);""")
    stock = prompt(page)
    run(page, "distorch.serve")
    ours = prompt(page)
    (key,) = [key for key, one in ours.items()
              if one["class_type"] == "DistorchDiffusionModelLoader"]
    assert stock[key]["inputs"].items() <= ours[key]["inputs"].items()
    assert queue(page) == "served by distorchd, no copy"
    run(page, "distorch.stock")
    again = prompt(page)
    assert again[key] == stock[key] and again.keys() == stock.keys()


@needs_browser
def test_without_a_daemon_the_page_says_why_once(server_alone, open_page):
    page = open_page(server_alone)
    show(page, {**sample("sd3_1"), "other": node("DistorchVAELoader",
                                                 vae_name="tiny_vae.safetensors"),
                "decode": node("VAEDecode", samples=["sample", 0], vae=["other", 0]),
                "image": node("PreviewImage", images=["decode", 0])})
    page.do("""
window.said = [];
const { toast } = app.extensionManager, { add } = toast;
toast.add = function (one) { window.said.push(one.detail); return add.call(this, one); };
await app.queuePrompt(0, 1);""")
    for kind in ("DistorchDiffusionModelLoader", "DistorchVAELoader"):
        assert page.wait(SERVED, kind).startswith("loaded by ComfyUI itself: ")
    toasts = page.do("return window.said.filter((one) => one?.includes('nobody.sock'))")
    assert len(toasts) == 1, toasts
