# SPDX-License-Identifier: Apache-2.0
"""GGUF, by the loaders of ComfyUI-GGUF: $COMFYUI_GGUF_DIR is that pack's folder."""
import os
import pathlib
import re

import gguf
import models
import pytest
from conftest import Server
from gguf.quants import quantize
from graphs import node, sample
from test_placed import HALF, cards, free, loaded, placing, shared_cards  # noqa: F401
from test_placed_kinds import again, look_at

THEIRS = os.environ.get("COMFYUI_GGUF_DIR")
KINDS = ("Q8_0", "Q4_0", "Q5_1", "F16", "F32")
pytestmark = pytest.mark.skipif(THEIRS is None, reason="COMFYUI_GGUF_DIR is not set")


def write(path, kind, tensors=None, architecture="sd3"):
    """A tiny model with its blocks' layers of this kind."""
    kind = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, architecture)
    for name, array in (tensors or models.tensors_of("tiny_sd3_2")).items():
        name = name.removeprefix("model.diffusion_model.")
        wide = name.endswith(".weight") and array.ndim == 2 and array.shape[1] >= 32 and (
            "blocks." in name or ".blk." in name or "token_embd" in name)
        if wide and kind not in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32):
            writer.add_tensor(name, quantize(array.astype("float32"), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array.astype("float16") if wide and kind ==
                              gguf.GGMLQuantizationType.F16 else array.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def t5_recipe(width=64, wide=128, inner=64, n_heads=4, n_layers=2):
    """By the names of llama.cpp; as narrow as the tests' pack has core make it."""
    found = {"token_embd.weight": ["F16", 32128, width], "enc.output_norm.weight": ["F32", width],
             "enc.blk.0.attn_rel_b.weight": ["F32", 32, n_heads]}
    for layer in range(n_layers):
        at = f"enc.blk.{layer}"
        found |= {f"{at}.attn_{one}.weight": ["F16", inner, width] for one in "qkv"}
        found |= {f"{at}.attn_o.weight": ["F16", width, inner],
                  f"{at}.ffn_up.weight": ["F16", wide, width],
                  f"{at}.ffn_gate.weight": ["F16", wide, width],
                  f"{at}.ffn_down.weight": ["F16", width, wide],
                  f"{at}.attn_norm.weight": ["F32", width], f"{at}.ffn_norm.weight": ["F32", width]}
    return found


@pytest.fixture(scope="module")
def shared_server(base, shared_cards):  # noqa: F811
    link = base / "custom_nodes" / "ComfyUI-GGUF"
    link.symlink_to(pathlib.Path(THEIRS).resolve())
    for kind in KINDS:
        write(base / f"models/diffusion_models/tiny_{kind}.gguf", kind)
        write(base / f"models/text_encoders/tiny_t5_{kind}.gguf", kind,
              models.tensors_of(t5_recipe()), "t5encoder")
    server = Server(base, shared_cards.socket, ("ComfyUI-GGUF",)).start()
    yield server
    server.stop()
    link.unlink()


def graph_of(kind, own, **more):
    """`more` are of our loader, but for `lora`, `seed` and `look`."""
    graph = sample("sd3_2", own=False, **{name: more.pop(name) for name in
                                          ("lora", "seed", "look") if name in more})
    name = "DistorchGGUFDiffusionModelLoader" if own else "UnetLoaderGGUF"
    graph["load"] = node(name, unet_name=f"tiny_{kind}.gguf", **more)
    return graph


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_computes_as_by_its_own_loaders(placing, kind):  # noqa: F811
    def latent(own, **more):
        return placing.latent(placing.run(graph_of(kind, own, **more)))

    stock, with_lora = latent(False), latent(False, lora=0.7)
    after_free = latent(False, seed=7)
    outputs = placing.run(graph_of(kind, True))
    assert loaded(outputs)["tier"] == "path" and placing.latent(outputs) == stock
    assert latent(True, lora=0.7) == with_lora
    assert placing.latent(again(placing, graph_of(kind, True, seed=7))) == after_free
    for string in (HALF, "sim:1"):
        free(placing)
        outputs = placing.run(graph_of(kind, True, look=True, expert_mode_allocations=string))
        said, (look,) = loaded(outputs), outputs["look"]["look"]
        assert said["tier"] == "placed" and placing.latent(outputs) == stock, said
        # what is none of their layers is copied by ComfyUI
        assert set(look["devices"]) == set(said["places"]), (said, look)
        assert look["mapped"] > 10 * look["own"] and look["patcher"].startswith("Distorch"), look
        assert latent(True, lora=0.7, expert_mode_allocations=string) == with_lora
        outputs = again(placing, graph_of(kind, True, seed=7, look=True,
                                          expert_mode_allocations=string))
        assert placing.latent(outputs) == after_free
        assert outputs["look"]["look"][0]["devices"] == look["devices"]


def encoded(kind, own, text="a cat", **more):
    return {"clip": node("DistorchGGUFCLIPLoader" if own else "CLIPLoaderGGUF",
                         clip_name=f"tiny_t5_{kind}.gguf", type="stable_audio", **more),
            "encode": node("CLIPTextEncode", clip=["clip", 0], text=text),
            "row": node("TestAsLatent", encoded=["encode", 0]),
            "save": node("SaveLatent", samples=["row", 0], filename_prefix="t5")}


@pytest.mark.parametrize("kind", ("Q8_0", "Q4_0", "F16"))
def test_a_text_encoder_whose_tensors_have_other_names(placing, cards, kind):  # noqa: F811
    stock = [placing.latent(placing.run(encoded(kind, False, text))) for text in ("a cat", "dogs")]
    assert stock[0] != stock[1]
    outputs = placing.run(encoded(kind, True))
    assert outputs["clip"]["distorch"][0]["tier"] == "path", outputs
    assert placing.latent(outputs) == stock[0]
    for string in (HALF, "sim:1"):
        free(placing)
        graph = look_at(encoded(kind, True, expert_mode_allocations=string), ["clip", 0],
                        ["row", 0])
        outputs = placing.run(graph)
        (said,), (look,) = outputs["clip"]["distorch"], outputs["look"]["look"]
        assert said["tier"] == "placed" and placing.latent(outputs) == stock[0], said
        assert set(look["devices"]) == set(said["places"]) == (
            {"sim:0", "cpu"} if string == HALF else {"sim:1"}), (said, look)
        converted = re.search(r"(\d+) converted", said["lines"][0])
        # five norms and the table of distances, F32 in the file, and a scale that it has not
        assert look["own"] == (int(converted[1]) if converted else 0) <= 7, (said, look)
        assert sum(look["devices"].values()) >= 15, look
        graph["encode"]["inputs"]["text"] = "dogs"
        outputs = again(placing, graph, "clip")
        assert placing.latent(outputs) == stock[1]
        assert outputs["look"]["look"] == [look], "and lies as before"
    with cards.raw() as raw:
        assert all(one["ok"] for one in raw.call("verify")["checks"])


def test_the_nodes_offer_its_files(placing):  # noqa: F811
    ours = "DistorchGGUFDiffusionModelLoader"
    names = placing.get(f"/object_info/{ours}")[ours]["input"]["required"]["unet_name"][0]
    assert "tiny_Q8_0.gguf" in names
    assert "DistorchGGUFDualCLIPLoader" in placing.get("/object_info")
