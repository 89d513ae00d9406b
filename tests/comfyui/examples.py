# SPDX-License-Identifier: Apache-2.0
"""The workflows that the pack brings as templates. Run, it makes them anew, with their pictures, by
the page of a real ComfyUI:

    COMFYUI_DIR=… DISTORCH_BUILD=build/test DISTORCH_LIBRARY=build/test/lib/libdistorch.so.1 \\
        build/venv/bin/python tests/comfyui/examples.py
"""
import base64
import json
import os
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
FOLDER = HERE.parents[1] / "comfyui_plugin" / "example_workflows"

UNET, CHECKPOINT, GGUF = "sd3.5_large.safetensors", "v1-5-pruned-emaonly.safetensors", \
    "sd3.5_large-Q4_K_S.gguf"
CLIPS = [("text_encoders", f"{name}.safetensors") for name in ("clip_l", "clip_g", "t5xxl_fp16")]
#: What the pictures show as there: empty files
FILES = [("diffusion_models", UNET), ("diffusion_models", GGUF), ("checkpoints", CHECKPOINT),
         ("checkpoints", "dreamshaper_8.safetensors"), ("vae", "sd3.5_vae.safetensors"), *CLIPS]
PROMPT = "a lighthouse on a cliff at dusk, oil painting"
#: A stand-in of ComfyUI-GGUF, so that the page knows our node for it
GGUF_PACK = '''
import folder_paths
folder_paths.folder_names_and_paths["unet_gguf"] = (
    folder_paths.get_folder_paths("diffusion_models"), {".gguf"})


class UnetLoaderGGUF:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"unet_name": (folder_paths.get_filename_list("unet_gguf"),)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = "bootleg"


NODE_CLASS_MAPPINGS = {"UnetLoaderGGUF": UnetLoaderGGUF}
'''


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def _image(model, clip, vae, latent, name, **sampler):
    """From a model to an image."""
    return {
        "positive": node("CLIPTextEncode", clip=clip, text=PROMPT),
        "negative": node("CLIPTextEncode", clip=clip, text=""),
        "latent": latent,
        "sample": node("KSampler", model=model, positive=["positive", 0], negative=["negative", 0],
                       latent_image=["latent", 0], seed=5, steps=20, cfg=4.5, sampler_name="euler",
                       scheduler="simple", denoise=1.0, **sampler),
        "decode": node("VAEDecode", samples=["sample", 0], vae=vae),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=name)}


def _large(load):
    """Stable Diffusion 3.5 with this loader of its diffusion model."""
    return {"load": load,
            "clip": node("DistorchTripleCLIPLoader", **{f"clip_name{i + 1}": name for i, (_kind, name)
                                                        in enumerate(CLIPS)}),
            "vae": node("DistorchVAELoader", vae_name="sd3.5_vae.safetensors"),
            **_image(["load", 0], ["clip", 0], ["vae", 0],
                     node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1), "large")}


def _two_models():
    found = {}
    for name, file, keep in (("first", CHECKPOINT, True),
                             ("second", "dreamshaper_8.safetensors", False)):
        part = {"load": node("DistorchCheckpointLoader", ckpt_name=file, keep_loaded=keep),
                **_image(["load", 0], ["load", 1], ["load", 2],
                         node("EmptyLatentImage", width=512, height=512, batch_size=1), name)}
        for key, one in part.items():
            found[f"{name}-{key}"] = {**one, "inputs": {
                what: [f"{name}-{value[0]}", value[1]] if isinstance(value, list) else value
                for what, value in one["inputs"].items()}}
    found["unload"] = node("DistorchUnload", names="", device="", idle_minutes=0, not_kept=True,
                           after=["second-decode", 0])
    return found


#: file name: (what it shows, in a paragraph, the workflow)
EXAMPLES = {
    "one model over two cards and RAM": (
        "A diffusion model that no card here can hold alone. `expert_mode_allocations` says where its "
        "blocks lie: 8 GiB on the first card, 6 GiB on the second, the rest in RAM. It computes on "
        "the first; what lies elsewhere comes over while the blocks before it compute. Write the "
        "devices and sizes of your machine; the badge on the loader says where the model is, or why "
        "it could not be placed so.",
        _large(node("DistorchDiffusionModelLoader", unet_name=UNET, weight_dtype="default",
                    compute_device="cuda:0", expert_mode_allocations="cuda:0,8gb;cuda:1,6gb;cpu,*"))),
    "checkpoint with UNet, CLIP and VAE apart": (
        "One checkpoint whose parts lie on different devices: the diffusion model on the first card, "
        "the text encoder in RAM, the VAE on the second card. The file is in distorchd's memory once.",
        {"load": node("DistorchCheckpointLoader", ckpt_name=CHECKPOINT, compute_device="cuda:0",
                      clip_device="cpu", vae_device="cuda:1"),
         **_image(["load", 0], ["load", 1], ["load", 2],
                  node("EmptyLatentImage", width=512, height=512, batch_size=1), "apart")}),
    "two ComfyUI processes on one model": (
        "Run this, then start a second ComfyUI on another port and run it there too: the second has "
        "the model at once, and both use the same bytes in memory. *Status* shows what is held and "
        "that it is in use; the sidebar tab shows by which processes. After a restart of ComfyUI it "
        "is the same.",
        {**_large(node("DistorchDiffusionModelLoader", unet_name=UNET, weight_dtype="default")),
         "status": node("DistorchStatus", after=["decode", 0])}),
    "keep and unload selectively between two models": (
        "Two checkpoints in turn. The first has `keep_loaded`: *Unload*, *Unload Models* and *Free "
        "Memory* leave it where it is. *Unload* at the end frees what nobody uses or keeps, and says "
        "what it freed, kept, and found in use; by patterns of names, device or time without use if "
        "you like.", _two_models()),
    "GGUF": (
        "A quantised GGUF file from distorchd's memory. It needs the pack ComfyUI-GGUF, which reads "
        "the format; the bytes are in memory once for all processes, and there again after a restart.",
        _large(node("DistorchGGUFDiffusionModelLoader", unet_name=GGUF))),
    "an old DisTorch 2 workflow": (
        "A workflow as ComfyUI-MultiGPU saved it, with its *UNETLoader (DisTorch2)*. Where that pack "
        "is not installed, its node ids are served by this one, with the same widgets and values. A "
        "device that is not in this machine fails nothing: the node says `not placed`.",
        _large(node("UNETLoaderDisTorch2MultiGPU", unet_name=UNET, weight_dtype="default",
                    compute_device="cuda:0", virtual_vram_gb=4.0, donor_device="cpu",
                    expert_mode_allocations="", eject_models=True))),
}

MAKE = """
app.graph.clear();
await app.loadApiJson(args[0], args[1]);
for (const [id, { inputs }] of Object.entries(args[0])) {
  const kept = app.graph.getNodeById(Number(id));
  const { required, optional } = kept.constructor.nodeData.input;
  for (const widget of kept.widgets ?? []) {
    const spec = { ...required, ...optional }[widget.name];
    if (spec?.[1]?.default !== undefined && !(widget.name in inputs)) widget.value = spec[1].default;
  }
}
app.graph.arrange?.(60);
const nodes = app.graph.nodes;
for (const one of nodes) {
  const [width, height] = one.computeSize();
  one.size = [Math.max(width, 300), height];
  if (one.type === "CLIPTextEncode") one.size = [320, 110];
  if (one.type === "SaveImage") one.size = [300, 270];
}
app.graph.arrange?.(60);
const left = Math.min(...nodes.map((one) => one.pos[0]));
const top = Math.min(...nodes.map((one) => one.pos[1]));
const note = LiteGraph.createNode("MarkdownNote");
app.graph.add(note);
note.title = args[1];
note.size = [760, 130];
note.pos = [left, top - 200];
note.widgets[0].value = args[2];
app.canvas.fitViewToSelectionAnimated?.();
await new Promise((done) => setTimeout(done, 500));
await app.extensionManager.command.execute("Comfy.Canvas.FitView");
await new Promise((done) => setTimeout(done, 1500));
const graph = app.graph.serialize();
delete graph.id;
return graph;"""


def text_of(saved):
    """One line a node, so that a change can be read."""
    parts = []
    for key, value in saved.items():
        lines = ",\n".join("  " + json.dumps(one) for one in value) if isinstance(value, list) else ""
        parts.append(f"{json.dumps(key)}: " + (f"[\n{lines}\n]" if lines else json.dumps(value)))
    return "{" + ",\n".join(parts) + "}\n"


def jpeg(page, quality=70):
    found = page._ask("POST", page._at("/goog/cdp/execute"), {
        "cmd": "Page.captureScreenshot", "params": {"format": "jpeg", "quality": quality}})
    return base64.b64decode(found["data"])


def make():
    import browser
    from conftest import END_TO_END, Server, make_base
    from page import by_number, keep_picture

    folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-examples-"))
    base = make_base(folder / "base")
    for kind, name in FILES:
        (base / "models" / kind / name).write_bytes(b"")
    pack = base / "custom_nodes" / "ComfyUI-GGUF"
    pack.mkdir()
    (pack / "__init__.py").write_text(GGUF_PACK)
    daemon = END_TO_END.Daemon(("memory.ram=1G",)).start()
    server = Server(base, daemon.socket, ("ComfyUI-GGUF",))
    page = None
    try:
        server.start()
        server.post("/api/settings/Comfy.TutorialCompleted", True)
        for setting, value in (("Comfy.Minimap.Visible", False), ("LiteGraph.Canvas.MinFontSizeForLOD", 0),
                               ("Comfy.Graph.CanvasInfo", False)):
            server.post(f"/api/settings/{setting}", value)
        page = browser.Page(folder)
        page.resize(1900, 1250)
        for name, (text, graph) in EXAMPLES.items():
            page.go("about:blank")  # a page keeps values of widgets by the number of their node
            page.go(f"http://127.0.0.1:{server.port}/")
            page.wait("return Boolean(window.LiteGraph?.registered_node_types?.DistorchVAELoader"
                      " && window.app?.canvas?.graph?.nodes.length > 0)")
            saved = page.do(MAKE, by_number(graph), name, text)
            (FOLDER / f"{name}.json").write_text(text_of(saved))
            (FOLDER / f"{name}.jpg").write_bytes(jpeg(page))
            keep_picture(page, name)
    finally:
        if page is not None:
            page.close()
        server.stop()
        daemon.process.terminate()
        daemon.process.wait(20)
        shutil.rmtree(daemon.folder, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    assert "COMFYUI_DIR" in os.environ, "COMFYUI_DIR says where ComfyUI is"
    make()
