# SPDX-License-Identifier: Apache-2.0
"""Workflows saved with ComfyUI-MultiGPU and DisTorch 2, on a real ComfyUI without that pack."""
import json
import shutil
import urllib.request

import pytest
from conftest import Outputs, daemon_with
from graphs import KINDS, node, sample
from test_page import needs_browser, open_page  # noqa: F401
from test_workflows import models

DEVICE, VIRTUAL, DONOR, EXPERT = "device", "virtual_vram_gb", "donor_device", "expert_mode_allocations"
D2 = ["compute_device", VIRTUAL, DONOR, EXPERT, "eject_models"]
D2_CLIP = [DEVICE, *D2[1:]]
ALL_OF_IT = ["MODEL", "CLIP", "VAE"]
CLIPS = {"CLIPLoader": ["clip_name", "type"],
         "DualCLIPLoader": ["clip_name1", "clip_name2", "type"],
         "TripleCLIPLoader": [f"clip_name{i}" for i in (1, 2, 3)],
         "QuadrupleCLIPLoader": [f"clip_name{i}" for i in (1, 2, 3, 4)]}
#: stock node: (its required inputs, what it returns)
STOCK = {"UNETLoader": (["unet_name", "weight_dtype"], ["MODEL"]),
         "VAELoader": (["vae_name"], ["VAE"]),
         **{name: (inputs, ["CLIP"]) for name, inputs in CLIPS.items()},
         "CLIPVisionLoader": (["clip_name"], ["CLIP_VISION"]),
         "CheckpointLoaderSimple": (["ckpt_name"], ALL_OF_IT),
         "ControlNetLoader": (["control_net_name"], ["CONTROL_NET"]),
         "DiffControlNetLoader": (["model", "control_net_name"], ["CONTROL_NET"]),
         "DiffusersLoader": (["model_path"], ALL_OF_IT)}
OF_CLIP_KIND = {*CLIPS, "CLIPVisionLoader"}
#: id: (required, optional, returned)
TABLE = {
    **{f"{name}MultiGPU": (required, [DEVICE], returned)
       for name, (required, returned) in STOCK.items()},
    **{f"{name}DisTorch2MultiGPU": (required, D2_CLIP if name in OF_CLIP_KIND else D2, returned)
       for name, (required, returned) in STOCK.items()},
    "CheckpointLoaderAdvancedMultiGPU": (
        ["ckpt_name", "unet_device", "clip_device", "vae_device"], [], ALL_OF_IT),
    "CheckpointLoaderAdvancedDisTorch2MultiGPU": (
        ["ckpt_name", "unet_compute_device", "unet_virtual_vram_gb", "unet_donor_device",
         "clip_compute_device", "clip_virtual_vram_gb", "clip_donor_device", "vae_device"],
        ["unet_expert_mode_allocations", "clip_expert_mode_allocations", "high_precision_loras",
         "eject_models"], ALL_OF_IT),
    "DeviceSelectorMultiGPU": ([DEVICE], [], ["MULTIGPUDEVICE"]),
    "UNetLoaderLP": (["unet_name"], [], ["MODEL"]),
}
DEFAULTS = {VIRTUAL: 4.0, DONOR: "cpu", EXPERT: "", "unet_virtual_vram_gb": 4.0,
            "unet_donor_device": "cpu", "clip_compute_device": "cpu", "clip_virtual_vram_gb": 2.0,
            "clip_donor_device": "cpu", "high_precision_loras": True,
            "unet_expert_mode_allocations": "", "clip_expert_mode_allocations": ""}
CUDA = {"compute_device": "cuda:0", VIRTUAL: 4.0, DONOR: "cpu", EXPERT: "", "eject_models": True}


def lines(outputs, of="load"):
    return outputs[of]["distorch"][0]["lines"]


def old(kind, class_type, **widgets):
    """A workflow over a tiny model with this loader."""
    graph = sample(kind)
    name = "ckpt_name" if kind == "sd15" else "unet_name"
    graph["load"] = node(class_type, **{name: KINDS[kind][0]}, **widgets)
    return graph


daemon = daemon_with()


@pytest.fixture(scope="module")
def server(base, daemon):
    from conftest import Server

    one = Server(base, daemon.socket)
    yield one.start()
    one.stop()


def test_each_old_id_has_the_inputs_and_outputs_that_it_had(server):
    assert len(TABLE) == 26
    for name, (required, optional, returned) in TABLE.items():
        info = server.get(f"/object_info/{name}")[name]
        assert info["input_order"]["required"] == required, name
        assert info["input_order"].get("optional", []) == optional, name
        assert info["output"] == returned and info["deprecated"], name
        every = {**info["input"]["required"], **info["input"].get("optional", {})}
        for widget, default in DEFAULTS.items():
            if widget in every:
                assert every[widget][1]["default"] == default, (name, widget)
        for widget in every:
            if widget in (DEVICE, "compute_device") or widget.startswith(("unet_d", "vae_d")):
                assert every[widget][0][0] == "cpu", "the list begins so"
        if "eject_models" in every:
            is_off = name.removesuffix("DisTorch2MultiGPU") in OF_CLIP_KIND
            assert every["eject_models"][1]["default"] is not is_off, name


def test_what_is_saved_for_cards_runs_where_there_is_none(server, daemon):
    stock = {kind: server.latent(server.run(sample(kind, own=False))) for kind in ("sd3_2", "sd15")}
    for kind, class_type, widgets, reason in (
            ("sd3_2", "UNETLoaderMultiGPU", {"weight_dtype": "default", DEVICE: "cuda:0"}, "cuda:0"),
            ("sd3_2", "UNETLoaderDisTorch2MultiGPU", {"weight_dtype": "default", **CUDA}, "cuda:0"),
            ("sd3_2", "UNETLoaderDisTorch2MultiGPU",
             {"weight_dtype": "default", **CUDA, "compute_device": "cpu",
              EXPERT: "cuda:1,2.5gb;cpu,*"}, "cuda:1"),
            ("sd15", "CheckpointLoaderSimpleMultiGPU", {DEVICE: "cuda:1"}, "cuda:1"),
            ("sd15", "CheckpointLoaderSimpleDisTorch2MultiGPU", CUDA, "cuda:0"),
            ("sd15", "CheckpointLoaderAdvancedMultiGPU",
             {"unet_device": "cpu", "clip_device": "cuda:1", "vae_device": "cpu"}, "cuda:1"),
            ("sd15", "CheckpointLoaderAdvancedDisTorch2MultiGPU",
             {"unet_compute_device": "cuda:0", "unet_virtual_vram_gb": 4.0,
              "unet_donor_device": "cpu", "clip_compute_device": "cpu",
              "clip_virtual_vram_gb": 2.0, "clip_donor_device": "cpu", "vae_device": "cuda:0",
              "unet_expert_mode_allocations": "", "clip_expert_mode_allocations": "",
              "high_precision_loras": True, "eject_models": True}, "cuda:0")):
        outputs = server.run(old(kind, class_type, **widgets))
        assert server.latent(outputs) == stock[kind], class_type
        assert lines(outputs)[:2] == [lines(outputs)[0], f"not placed: no {reason} here"], outputs
        assert outputs["load"]["distorch"][0]["tier"] == "assign", outputs
    assert {KINDS["sd3_2"][0], KINDS["sd15"][0]} <= set(models(daemon)), "all came from the daemon"


def test_what_is_saved_on_a_machine_like_this_one_is_served_as_our_own(server):
    stock = server.latent(server.run(sample("sd3_2", own=False, seed=8)))
    for class_type, widgets in (("UNETLoaderMultiGPU", {"weight_dtype": "default", DEVICE: "cpu"}),
                                ("UNETLoaderMultiGPU", {"weight_dtype": "default"}),
                                ("UNetLoaderLP", {})):
        outputs = server.run({**old("sd3_2", class_type, **widgets),
                              "sample": sample("sd3_2", seed=8)["sample"]})
        assert server.latent(outputs) == stock
        assert not any("not placed" in line for line in lines(outputs)), lines(outputs)
    outputs = server.run(old("sd3_2", "UNETLoaderDisTorch2MultiGPU", weight_dtype="default",
                             **{**CUDA, "compute_device": "cpu"}))
    assert lines(outputs)[1] == "not placed: cpu is both compute device and donor"


def test_a_string_that_nobody_understands_fails_no_prompt(server):
    outputs = server.run(old("sd3_2", "UNETLoaderDisTorch2MultiGPU", weight_dtype="default",
                             **{**CUDA, "compute_device": "cpu", EXPERT: "cpu,lots"}))
    assert any(line.startswith("not placed: ") for line in lines(outputs)), lines(outputs)


def test_an_old_vae_loader_and_the_device_selector(server):
    def image(loader_node):
        graph = sample("sd15", own=False)
        graph["vae"] = loader_node
        graph["decode"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
        graph["save"] = node("SaveImage", images=["decode", 0], filename_prefix="vae")
        outputs = server.run(graph)
        (saved,) = outputs["save"]["images"]
        png = (server.base / "output" / saved["filename"]).read_bytes()
        return [part for part in png.split(b"IDAT")[1:]], outputs

    stock, _ = image(node("VAELoader", vae_name="tiny_vae.safetensors"))
    for class_type, widgets in (("VAELoaderMultiGPU", {DEVICE: "cuda:0"}),
                                ("VAELoaderDisTorch2MultiGPU", CUDA)):
        ours, outputs = image(node(class_type, vae_name="tiny_vae.safetensors", **widgets))
        assert ours == stock and lines(outputs, "vae")[1] == "not placed: no cuda:0 here"
    graph = {"device": node("DeviceSelectorMultiGPU", device="cuda:3"),
             "show": node("PreviewAny", source=["device", 0])}
    assert server.run(graph)["show"]["text"] == ["cuda:3"]


def test_the_old_pack_itself_goes_first(start_server, daemon, base):
    folder = base / "custom_nodes" / "ComfyUI-MultiGPU"
    folder.mkdir()
    try:
        server = start_server(daemon)
        info = server.get("/object_info")
        assert not set(TABLE) & set(info) and "DistorchVAELoader" in info
    finally:
        folder.rmdir()


GGUF = '''
import folder_paths

folder_paths.folder_names_and_paths["unet_gguf"] = (
    folder_paths.get_folder_paths("diffusion_models"), {".gguf", ".safetensors"})


class UnetLoaderGGUF:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = "bootleg"
    TITLE = "Unet Loader (GGUF)"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"unet_name": (["a.gguf", "tiny_sd3_2.safetensors"],)}}

    def load_unet(self, unet_name):
        import nodes
        return nodes.UNETLoader().load_unet(unet_name, "default")


def clip(*names):
    class Clip:
        RETURN_TYPES = ("CLIP",)
        FUNCTION = "load"
        CATEGORY = "bootleg"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {**{name: (["c.gguf"],) for name in names}, "type": (["sd3"],)}}

        def load(self, **_inputs):
            raise RuntimeError("a stand-in")

    return Clip


NODE_CLASS_MAPPINGS = {"UnetLoaderGGUF": UnetLoaderGGUF, "CLIPLoaderGGUF": clip("clip_name"),
                       "DualCLIPLoaderGGUF": clip("clip_name1", "clip_name2")}
'''


def test_loaders_of_other_packs_load_by_themselves(start_server, daemon, base):
    """A stand-in of ComfyUI-GGUF: what counts is whose node is called with what."""
    folder = base / "custom_nodes" / "ComfyUI-GGUF"
    folder.mkdir()
    (folder / "__init__.py").write_text(GGUF)
    try:
        server = start_server(daemon, "ComfyUI-GGUF")  # one more of the white list
    finally:
        shutil.rmtree(folder)
    stock = server.latent(server.run(sample("sd3_2", own=False)))
    info = server.get("/object_info")
    for name, by in (("UnetLoaderGGUF", "UnetLoaderGGUF"), ("UnetLoaderGGUFAdvanced", None)):
        for suffix, optional in (("MultiGPU", [DEVICE]), ("DisTorch2MultiGPU", D2),
                                 ("DisTorchMultiGPU",
                                  [DEVICE, VIRTUAL, "use_other_vram", EXPERT])):
            one = info[name + suffix]
            assert one["deprecated"] and one["input_order"]["optional"] == optional
            if by is None:  # this stand-in has none
                assert one["output"] == [] and one["input_order"]["required"] == []
                continue
            assert one["output"] == ["MODEL"] and one["input_order"]["required"] == ["unet_name"]
            widgets = {"compute_device" if suffix.startswith("DisTorch2") else DEVICE: "cuda:0"}
            outputs = server.run(old("sd3_2", name + suffix, **widgets))
            assert server.latent(outputs) == stock
            assert lines(outputs)[0] == "loaded by UnetLoaderGGUF itself", lines(outputs)
            assert lines(outputs)[1].startswith("not placed: "), lines(outputs)
    assert "CLIPLoaderGGUFMultiGPU" in info, "as the old pack has it: by the folder"
    assert "WanVideoModelLoaderMultiGPU" not in info and "LTXVLoaderMultiGPU" not in info


TILES = "enable_vae_tiling tile_x tile_y tile_stride_x tile_stride_y"
ENCODE = "t5 load_device force_offload model_to_offload use_disk_cache"
#: of WanVideoWrapper, as the old pack had them: required, optional, what is the device, returned
WAN = {
    "WanVideoModelLoader": (
        "model base_precision quantization load_device compute_device",
        "attention_mode compile_args block_swap_args lora vram_management_args extra_model "
        "vace_model fantasytalking_model multitalk_model fantasyportrait_model rms_norm_function",
        "compute_device", ["WANVIDEOMODEL", "MULTIGPUDEVICE"]),
    "WanVideoSampler": (
        "model compute_device image_embeds steps cfg shift seed force_offload scheduler "
        "riflex_freq_index",
        "text_embeds samples denoise_strength feta_args context_options cache_args flowedit_args "
        "batched_cfg slg_args rope_function loop_args experimental_args sigmas unianimate_poses "
        "fantasytalking_embeds uni3c_embeds multitalk_embeds freeinit_args start_step end_step "
        "add_noise_to_samples", "compute_device", ["LATENT", "LATENT"]),
    "WanVideoBlockSwap": ("blocks_to_swap", "swap_device", "swap_device", ["BLOCKSWAPARGS"]),
    "WanVideoVAELoader": ("model_name", "load_device precision compile_args", "load_device",
                          ["WANVAE", "MULTIGPUDEVICE"]),
    "WanVideoTinyVAELoader": ("model_name", "load_device precision parallel", "load_device",
                              ["WANVAE", "MULTIGPUDEVICE"]),
    "LoadWanVideoT5TextEncoder": ("model_name precision", "device quantization", "device",
                                  ["WANTEXTENCODER", "MULTIGPUDEVICE"]),
    "LoadWanVideoClipTextEncoder": ("model_name precision", "device", "device",
                                    ["CLIP_VISION", "MULTIGPUDEVICE"]),
    "WanVideoTextEncode": ("positive_prompt negative_prompt", ENCODE, "load_device",
                           ["WANVIDEOTEXTEMBEDS"]),
    "WanVideoTextEncodeSingle": ("prompt", ENCODE, "load_device", ["WANVIDEOTEXTEMBEDS"]),
    "WanVideoTextEncodeCached": (
        "model_name precision positive_prompt negative_prompt quantization use_disk_cache "
        "load_device", "extender_args", "load_device",
        ["WANVIDEOTEXTEMBEDS", "WANVIDEOTEXTEMBEDS", "STRING"]),
    "WanVideoImageToVideoEncode": (
        "width height num_frames noise_aug_strength start_latent_strength end_latent_strength "
        "force_offload",
        "vae load_device clip_embeds start_image end_image control_embeds fun_or_fl2v_model "
        "temporal_mask extra_latents tiled_vae add_cond_latents", "load_device",
        ["WANVIDIMAGE_EMBEDS"]),
    "WanVideoEncode": (f"vae load_device image {TILES}",
                       "noise_aug_strength latent_strength mask", "load_device", ["LATENT"]),
    "WanVideoDecode": (f"vae load_device samples {TILES}", "normalization", "load_device",
                       ["IMAGE"]),
    "WanVideoVACEEncode": (
        "vae load_device width height num_frames strength vace_start_percent vace_end_percent",
        "input_frames ref_images input_masks prev_vace_embeds tiled_vae", "load_device",
        ["WANVIDIMAGE_EMBEDS"]),
    "WanVideoClipVisionEncode": (
        "clip_vision load_device image_1 strength_1 strength_2 crop combine_embeds force_offload",
        "image_2 negative_image tiles ratio", "load_device", ["WANVIDIMAGE_CLIPEMBEDS"]),
    "WanVideoControlnetLoader": ("model base_precision quantization load_device device", "",
                                 "device", ["WANVIDEOCONTROLNET"]),
    "WanVideoUni3C_ControlnetLoader": (
        "model base_precision quantization load_device device attention_mode", "compile_args",
        "device", ["WANVIDEOCONTROLNET"]),
    "FantasyTalkingModelLoader": ("model base_precision device", "", "device",
                                  ["FANTASYTALKINGMODEL"]),
    "Wav2VecModelLoader": ("model base_precision load_device device", "", "device",
                           ["WAV2VECMODEL"]),
    "DownloadAndLoadWav2VecModel": ("model base_precision load_device device", "", "device",
                                    ["WAV2VECMODEL"]),
}
#: A stand-in: each node returns what it was called with, and its module's device meanwhile.
WAN_PACK = """
import json

device = "its own"


def node(name, required, optional, own, returned):
    def spec(one):
        if one == "load_device":
            return (["main_device", "offload_device"], {"default": "main_device"})
        if one == "model" and name == "WanVideoSampler":
            return ("WANVIDEOMODEL",)
        return ("STRING", {"default": one})

    def inputs(cls):
        # later releases have them in another order, and one more
        names = [one for one in reversed(required.split()) if one != own]
        if name in ("LoadWanVideoT5TextEncoder", "LoadWanVideoClipTextEncoder"):
            names.append("load_device")
        more = [one for one in reversed(optional.split()) if one not in (own, "vace_model")]
        return {"required": {one: spec(one) for one in [*names, "newest"]},
                "optional": {one: spec(one) for one in more}}

    def run(self, **inputs):
        return tuple({"node": name, "device": str(device), **inputs} for _ in self.RETURN_TYPES)

    types = tuple(one for one in returned if one != "MULTIGPUDEVICE")
    return type(name, (), {"INPUT_TYPES": classmethod(inputs), "FUNCTION": "run", "run": run,
                           "RETURN_TYPES": types, "RETURN_NAMES": types, "CATEGORY": "Wan",
                           "__module__": __name__})


NODE_CLASS_MAPPINGS = {name: node(name, *one) for name, one in json.loads(%r).items()}
"""


@pytest.fixture(scope="module")
def others(base, daemon):
    """A server with stand-ins of ComfyUI-GGUF and WanVideoWrapper, in folders as people name them."""
    from conftest import Server

    texts = {"ComfyUI_GGUF": GGUF, "ComfyUI-WanVideoWrapper": WAN_PACK % json.dumps(WAN)}
    for name, text in texts.items():
        (base / "custom_nodes" / name).mkdir()
        (base / "custom_nodes" / name / "__init__.py").write_text(text)
    one = Server(base, daemon.socket, tuple(texts))
    try:
        one.start()
        yield one
    finally:
        one.stop()
        for name in texts:
            shutil.rmtree(base / "custom_nodes" / name)


def test_nodes_of_wanvideowrapper_have_the_inputs_and_outputs_that_they_had(others):
    info = others.get("/object_info")
    for name, (required, optional, own, returned) in WAN.items():
        one = info[name + "MultiGPU"]
        more = ["newest"] if name != "WanVideoBlockSwap" else []
        order = one["input_order"]
        if not more:  # that one has all of theirs
            required += " newest"
        assert order["required"] == required.split(), name
        assert order["optional"] == optional.split() + more, name
        assert one["output"] == returned and one["deprecated"], name
        assert len(one["output_name"]) == len(one["output_is_list"]) == len(returned), name
        device = {**one["input"]["required"], **one["input"]["optional"]}[own]
        is_told = name.endswith(("Encode", "EncodeSingle", "Decode", "Sampler"))
        assert device[0] == "MULTIGPUDEVICE" if is_told else device[0][0] == "cpu", name


def test_nodes_of_wanvideowrapper_run_theirs_on_the_device_that_was_chosen(others):
    def run(device):
        graph = {"load": node("WanVideoModelLoaderMultiGPU", model="m", base_precision="b",
                              quantization="q", load_device="offload_device",
                              compute_device=device, attention_mode="a"),
                 "t5": node("LoadWanVideoT5TextEncoderMultiGPU", model_name="t", precision="p",
                            device=device),
                 "swap": node("WanVideoBlockSwapMultiGPU", blocks_to_swap="3", newest="n",
                              swap_device=device),
                 "sample": node("WanVideoSamplerMultiGPU", model=["load", 0],
                                compute_device=["load", 1], text_embeds="e",
                                **{name: name for name in ("image_embeds", "steps", "cfg", "shift",
                                                           "seed", "force_offload", "scheduler",
                                                           "riflex_freq_index")})}
        for name in ("t5", "swap", "sample"):
            graph["show-" + name] = node("PreviewAny", source=[name, 0])
        outputs = others.run(graph)
        return outputs, {name: json.loads(outputs["show-" + name]["text"][0])
                         for name in ("t5", "swap", "sample")}

    outputs, found = run("cpu")
    assert found["t5"] == {"node": "LoadWanVideoT5TextEncoder", "device": "cpu", "model_name": "t",
                           "precision": "p", "load_device": "offload_device", "newest": "newest"}
    sample = found["sample"]
    assert sample["device"] == "cpu" and sample["newest"] == "newest" and sample["cfg"] == "cfg"
    assert sample["model"]["load_device"] == "offload_device" and sample["text_embeds"] == "e"
    assert sample["model"]["device"] == "cpu" and "compute_device" not in sample
    assert lines(outputs, "sample") == ["loaded by WanVideoSampler itself"]
    assert found["swap"] == {"node": "WanVideoBlockSwap", "device": "its own",
                             "blocks_to_swap": "3", "newest": "n"}
    outputs, found = run("cuda:1")
    assert found["t5"]["load_device"] == "main_device" and found["t5"]["device"] == "its own"
    assert lines(outputs)[1] == "not placed: no cuda:1 here"
    assert found["sample"]["device"] == "its own", "and it is that again"


def test_each_node_of_ours_has_a_page_in_comfyuis_help(others):
    info = others.get("/object_info")
    ours = {name: one for name, one in info.items() if one["category"] == "distorch"}
    assert len(ours) == 18 and {"DistorchGGUFCLIPLoader", "DistorchResidentFile"} <= set(ours)
    for name, one in ours.items():
        url = f"http://127.0.0.1:{others.port}/extensions/distorch/docs/{name}.md"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        assert one["display_name"] in text.splitlines()[0] and one["description"], name
        for group in ("required", "optional"):
            for each, spec in one["input"].get(group, {}).items():
                assert f"| `{each}` |" in text, (name, each)
                if group == "optional" or "Loader" not in name:  # the others are ComfyUI's own
                    assert spec[1].get("tooltip") or each == "device", (name, each)


@needs_browser
def test_nodes_before_other_packs_own_become_those(others, open_page):  # noqa: F811
    """So that nobody is left with red nodes once this pack is gone too."""
    page = open_page(others)
    page.do("""
app.graph.clear();
const make = (type) => { const one = LiteGraph.createNode(type); app.graph.add(one); return one; };
for (const type of ["DistorchGGUFDiffusionModelLoader", "DistorchGGUFCLIPLoader",
                    "DistorchGGUFDualCLIPLoader", "UnetLoaderGGUFAdvancedMultiGPU",
                    ...["UnetLoaderGGUF", "CLIPLoaderGGUF", "DualCLIPLoaderGGUF"].flatMap((one) =>
                      ["MultiGPU", "DisTorch2MultiGPU", "DisTorchMultiGPU"].map((end) => one + end))])
  make(type);
const [selector, loader, sampler] = ["DeviceSelectorMultiGPU", "WanVideoModelLoaderMultiGPU",
                                     "WanVideoSamplerMultiGPU"].map(make);
const vae = make("WanVideoDecodeMultiGPU");
const slot = (node, name) => node.inputs.findIndex((one) => one.name === name);
loader.connect(0, sampler, slot(sampler, "model"));
loader.connect(1, sampler, slot(sampler, "compute_device"));
selector.connect(0, vae, slot(vae, "load_device"));
await app.extensionManager.command.execute("distorch.stock");""")
    types = page.do("return app.graph.nodes.map((node) => node.type)")
    assert sorted(types) == sorted([
        *["UnetLoaderGGUF", "CLIPLoaderGGUF", "DualCLIPLoaderGGUF"] * 4, "WanVideoModelLoader",
        "WanVideoSampler", "WanVideoDecode", "UnetLoaderGGUFAdvancedMultiGPU"]), types
    links = page.do("return [...app.graph.links.values()].map((one) => one.type)")
    assert links == ["WANVIDEOMODEL"]
    text = page.wait("return [...document.querySelectorAll('.p-toast-message')]"
                     ".map((one) => one.innerText).find((one) => one.includes('again')) ?? null")
    assert "15 loaders" in text and "1 node that manages taken out" in text
    assert "1 could not be swapped" in text, "this stand-in has none of it"


def test_old_loaders_place_as_they_promised(start_server, start_daemon):
    """What the strings of DisTorch 2 mean, at last: over simulated devices."""
    daemon = start_daemon("sim.count=2", "sim.memory=256M")
    server = start_server(daemon)

    def used(device):
        with daemon.raw() as raw:
            return next(one["used"] for one in raw.call("devices")["devices"]
                        if one["name"] == device)

    def run(kind, class_type, **widgets):
        outputs = server.run(old(kind, class_type, **widgets))
        assert server.latent(outputs) == stock[kind], class_type
        (said,) = outputs["load"]["distorch"]
        assert said["tier"] == "placed", said
        return said["places"]

    stock = {kind: server.latent(server.run(sample(kind, own=False))) for kind in ("sd3_2", "sd15")}
    dtype = {"weight_dtype": "default"}
    assert set(run("sd3_2", "UNETLoaderMultiGPU", **dtype, device="sim:1")) == {"sim:1"}
    assert used("sim:1") > 0 and used("sim:0") == 0
    found = run("sd3_2", "UNETLoaderDisTorch2MultiGPU", **dtype, compute_device="sim:0",
                virtual_vram_gb=0.1, donor_device="sim:1", expert_mode_allocations="",
                eject_models=True)
    assert "sim:1" in found, found
    found = run("sd3_2", "UNETLoaderDisTorch2MultiGPU", **dtype, compute_device="sim:0",
                virtual_vram_gb=4.0, donor_device="cpu", eject_models=False,
                expert_mode_allocations="sim:0,10%;sim:1,45%;cpu,45%")
    assert set(found) == {"sim:0", "sim:1", "cpu"}, found
    found = run("sd15", "CheckpointLoaderAdvancedMultiGPU", unet_device="sim:0", clip_device="cpu",
                vae_device="sim:1")
    assert set(found) == {"sim:0"}, found  # core makes F32 of its VAE
    where = {one["device"] for one in models(daemon)[KINDS["sd15"][0]]["where"] if one["bytes"]}
    assert {"sim:0", "sim:1"} <= where, where
    found = run("sd15", "CheckpointLoaderSimpleDisTorch2MultiGPU", compute_device="sim:1",
                virtual_vram_gb=0.0, donor_device="cpu", eject_models=True,
                expert_mode_allocations="sim:1,20mb;cpu,*")
    assert {"sim:1", "cpu"} == set(found), found


# ---- the page ----

def saved_workflow():
    """As the page saved it with the old pack: values by their order, links by number."""
    def one(number, kind, values, inputs=(), outputs=()):
        return {"id": number, "type": kind, "pos": [100 * number, 100], "size": [300, 200],
                "flags": {}, "order": number, "mode": 0, "widgets_values": values,
                "properties": {"Node name for S&R": kind},
                "inputs": [{"name": name, "type": type_, "link": link}
                           for name, type_, link in inputs],
                "outputs": [{"name": name, "type": type_, "links": links}
                            for name, type_, links in outputs]}

    nodes = [
        one(1, "CheckpointLoaderSimpleDisTorch2MultiGPU",
            [KINDS["sd15"][0], "cuda:0", 4, "cpu", "", True],
            outputs=[("MODEL", "MODEL", [1]), ("CLIP", "CLIP", None), ("VAE", "VAE", None)]),
        one(2, "TestZeroConditioning", [768, 768],
            outputs=[("CONDITIONING", "CONDITIONING", [2, 3])]),
        one(3, "EmptyLatentImage", [64, 64, 1], outputs=[("LATENT", "LATENT", [4])]),
        one(4, "KSampler", [5, "fixed", 2, 2.0, "euler", "normal", 1.0],
            [("model", "MODEL", 1), ("positive", "CONDITIONING", 2),
             ("negative", "CONDITIONING", 3), ("latent_image", "LATENT", 4)],
            [("LATENT", "LATENT", [5])]),
        one(5, "SaveLatent", ["old"], [("samples", "LATENT", 5)]),
    ]
    links = [[1, 1, 0, 4, 0, "MODEL"], [2, 2, 0, 4, 1, "CONDITIONING"],
             [3, 2, 0, 4, 2, "CONDITIONING"], [4, 3, 0, 4, 3, "LATENT"], [5, 4, 0, 5, 0, "LATENT"]]
    return {"last_node_id": 5, "last_link_id": 5, "nodes": nodes, "links": links, "groups": [],
            "config": {}, "extra": {}, "version": 0.4}


@needs_browser
def test_an_old_workflow_opens_in_the_page_and_runs(server, open_page):  # noqa: F811
    page = open_page(server)
    page.do("await app.loadGraphData(args[0])", saved_workflow())
    found = page.do("const { output } = await app.graphToPrompt(); return output")
    assert found["1"]["class_type"] == "CheckpointLoaderSimpleDisTorch2MultiGPU"
    assert found["1"]["inputs"] == {"ckpt_name": KINDS["sd15"][0], **CUDA}
    assert not page.do("return app.graph.nodes.filter((node) => node.has_errors).map((n) => n.type)")
    page.do("await app.queuePrompt(0, 1)")
    end = Outputs(page.wait("""
const history = await (await fetch('/history')).json();
return Object.values(history).find((one) => one.outputs?.['5'] && one.outputs['1'])"""))
    assert end["1"]["distorch"][0]["lines"][1] == "not placed: no cuda:0 here"
    stock = server.latent(server.run(sample("sd15", own=False)))
    assert server.latent(end, "5") == stock


@needs_browser
def test_old_loaders_become_comfyuis_own(server, open_page):  # noqa: F811
    """So that nobody is left with red nodes once this pack is gone too."""
    page = open_page(server)
    page.do("await app.loadGraphData(args[0])", saved_workflow())
    page.do("""
const node = LiteGraph.createNode("CLIPLoaderDisTorch2MultiGPU");
app.graph.add(node);
node.widgets.find((one) => one.name === "device").value = "cuda:0";
await app.extensionManager.command.execute("distorch.stock")""")
    types = page.do("return app.graph.nodes.map((node) => node.type)")
    assert "CheckpointLoaderSimple" in types and "CLIPLoader" in types, types
    assert not any("MultiGPU" in one for one in types), types
    assert page.do("return app.graph.nodes.find((node) => node.type === 'CLIPLoader')"
                   ".widgets.find((one) => one.name === 'device').value") == "default"
    found = page.do("const { output } = await app.graphToPrompt(); return output")
    assert found["1"] == {**found["1"], "class_type": "CheckpointLoaderSimple",
                          "inputs": {"ckpt_name": KINDS["sd15"][0]}}
    assert found["4"]["inputs"]["model"] == ["1", 0]
