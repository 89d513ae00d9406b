# SPDX-License-Identifier: Apache-2.0
"""Tiny models that ComfyUI takes for real ones: tiny_models.json has each tensor's type and shape."""
import json
import math
import pathlib
import struct

import numpy

RECIPES = json.loads((pathlib.Path(__file__).parent / "tiny_models.json").read_text())
#: numpy has no BF16: its bits stand for it
TYPES = {"F16": numpy.float16, "F32": numpy.float32, "BF16": numpy.uint16}
#: What has to be so, or an image is nothing: of the tiny autoencoder.
CONSTANTS = {"first_stage_model.vae_scale": 0.18215, "first_stage_model.vae_shift": 0.0}


def bf16(array):
    """The bits of the nearest BF16."""
    bits = array.astype(numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def write(path, tensors):
    """A safetensors file of {name: array}; the data begins at a multiple of 64."""
    header, offset = {}, 0
    words = {numpy.dtype(kind): word for word, kind in TYPES.items()}
    for name, array in tensors.items():
        header[name] = {"dtype": words[array.dtype], "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(array.tobytes())
    return path


def sd3_recipe(depth):
    """A transformer of Stable Diffusion 3's kind of so many blocks, which are as wide as there are
    many: about 0.14 million parameters times the cube. Made of tiny_sd3_2, which has each kind of
    tensor; what does not grow with the width is 64 or 256 there."""
    fixed = {"pos_embed": 1, "t_embedder.mlp.0.weight": 1}  # an axis of 256
    found = {}
    for full, (word, *shape) in RECIPES["tiny_sd3_2"].items():
        name = full.removeprefix("model.diffusion_model.")
        shape = [size * depth // 2 if size % 128 == 0 and fixed.get(name) != axis else size
                 for axis, size in enumerate(shape)]
        first, last = "joint_blocks.0.", "joint_blocks.1."
        if name.startswith(first):
            for block in range(depth - 1):
                found[full.replace(first, f"joint_blocks.{block}.")] = [word, *shape]
        else:
            found[full.replace(last, f"joint_blocks.{depth - 1}.")] = [word, *shape]
    return found


def _transformer(stem, width, inner, n_layers, norms):
    """Layers of CLIP's kind, and norms outside of them."""
    found = {}

    def pair(name, *shape):
        found[f"{stem}.{name}.weight"] = ["F16", *shape]
        found[f"{stem}.{name}.bias"] = ["F16", shape[0]]

    for layer in range(n_layers):
        at = f"encoder.layers.{layer}"
        for part in ("q", "k", "v", "out"):
            pair(f"{at}.self_attn.{part}_proj", width, width)
        for part in ("layer_norm1", "layer_norm2"):
            pair(f"{at}.{part}", width)
        pair(f"{at}.mlp.fc1", inner, width)
        pair(f"{at}.mlp.fc2", width, inner)
    for name in norms:
        pair(name, width)
    return found


def clip_recipe(width=768, inner=3072, n_layers=12):
    """A text encoder of CLIP's kind; as it is, that of Stable Diffusion 1, which core knows in one
    size only: 123 million parameters."""
    stem = "text_model"
    return {f"{stem}.embeddings.token_embedding.weight": ["F16", 49408, width],
            f"{stem}.embeddings.position_embedding.weight": ["F16", 77, width],
            **_transformer(stem, width, inner, n_layers, ("final_layer_norm",))}


def controlnet_recipe():
    """For tiny_sd15: what the model has before its middle, one block there, and what is added of
    each."""
    prefix, block = "model.diffusion_model.", "input_blocks.1.0."
    inside = {name.removeprefix(prefix): shape for name, shape in RECIPES["tiny_sd15"].items()}
    found = {name: shape for name, shape in inside.items()
             if name.startswith(("time_embed.", "input_blocks."))}
    found |= {name.replace(block, "middle_block.0."): shape for name, shape in inside.items()
              if name.startswith(block)}
    widths = (3, 16, 16, 32, 32, 96, 96, 256, 320)
    convolutions = {f"input_hint_block.{2 * i}": (n_out, n_in, 3)
                    for i, (n_in, n_out) in enumerate(zip(widths, widths[1:]))}
    convolutions |= {name: (320, 320, 1) for name in ("zero_convs.0.0", "zero_convs.1.0",
                                                      "middle_block_out.0")}
    for name, (n_out, n_in, size) in convolutions.items():
        found[f"{name}.weight"] = ["F16", n_out, n_in, size, size]
        found[f"{name}.bias"] = ["F16", n_out]
    return found


def vision_recipe(width=64, wide=128, n_layers=24, n_patches=17, projected=32):
    """Of CLIP ViT-L's kind, as narrow as the tests' pack has core make it."""
    stem = "vision_model"
    return {f"{stem}.embeddings.class_embedding": ["F16", width],
            f"{stem}.embeddings.patch_embedding.weight": ["F16", width, 3, 14, 14],
            f"{stem}.embeddings.position_embedding.weight": ["F16", n_patches, width],
            **_transformer(stem, width, wide, n_layers, ("pre_layrnorm", "post_layernorm")),
            "visual_projection.weight": ["F16", projected, width]}


def clip_l_recipe():
    return clip_recipe()


def encoder_recipes():
    """Of four text encoders, {name: recipe}, of the sizes of pack/encoders.json. Core tells some by
    a tensor of a layer that these have not: it is there too, and nothing takes it."""
    sizes = json.loads((pathlib.Path(__file__).parent / "pack/encoders.json").read_text())
    found = {}
    for name in ("clip_l", "clip_g"):
        one = sizes[f"{name}_model_config"]
        found[name] = clip_recipe(one["hidden_size"], one["intermediate_size"],
                                  one["num_hidden_layers"])
        width = one["hidden_size"]
        found[name]["text_projection.weight"] = ["F16", width, width]
    found["clip_g"]["text_model.encoder.layers.30.mlp.fc1.weight"] = ["F16", 8, 8]
    one = sizes["t5xxl_model_config"]
    width, inner = one["d_model"], one["d_kv"] * one["num_heads"]
    t5 = found["t5xxl"] = {"shared.weight": ["F16", one["vocab_size"], width],
                           "encoder.final_layer_norm.weight": ["F16", width]}
    for block in range(one["num_layers"]):
        first, second = (f"encoder.block.{block}.layer.{part}" for part in (0, 1))
        for part in "qkv":
            t5[f"{first}.SelfAttention.{part}.weight"] = ["F16", inner, width]
        t5[f"{first}.SelfAttention.o.weight"] = ["F16", width, inner]
        for part in ("wi_0", "wi_1"):
            t5[f"{second}.DenseReluDense.{part}.weight"] = ["F16", one["d_ff"], width]
        t5[f"{second}.DenseReluDense.wo.weight"] = ["F16", width, one["d_ff"]]
        for at in (first, second):
            t5[f"{at}.layer_norm.weight"] = ["F16", width]
    t5["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = [
        "F16", 32, one["num_heads"]]
    t5["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = ["F16", 10240, width]
    one = sizes["llama_model_config"]
    width, inner, head = one["hidden_size"], one["intermediate_size"], 128
    llama = found["llama"] = {"model.embed_tokens.weight": ["F16", 128256, width],
                              "model.norm.weight": ["F16", width]}
    for layer in range(one["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for part, n_heads in (("q", one["num_attention_heads"]),
                              ("k", one["num_key_value_heads"]),
                              ("v", one["num_key_value_heads"])):
            llama[f"{at}.self_attn.{part}_proj.weight"] = ["F16", n_heads * head, width]
        llama[f"{at}.self_attn.o_proj.weight"] = ["F16", width,
                                                  one["num_attention_heads"] * head]
        for part in ("gate", "up"):
            llama[f"{at}.mlp.{part}_proj.weight"] = ["F16", inner, width]
        llama[f"{at}.mlp.down_proj.weight"] = ["F16", width, inner]
        for part in ("input_layernorm", "post_attention_layernorm"):
            llama[f"{at}.{part}.weight"] = ["F16", width]
    return found


def lora_for_clip_l(seed=11, rank=4):
    """Of the feed-forward layers of each block."""
    rng = numpy.random.default_rng(seed)
    found = {}
    for layer in range(12):
        for part, n_out, n_in in (("fc1", 3072, 768), ("fc2", 768, 3072)):
            stem = f"lora_te_text_model_encoder_layers_{layer}_mlp_{part}"
            for side, shape in (("lora_up", (n_out, rank)), ("lora_down", (rank, n_in))):
                found[f"{stem}.{side}.weight"] = (
                    rng.standard_normal(shape, dtype=numpy.float32) * 0.1)
    return found


def tensors_of(recipe, seed=7):
    """Of one of RECIPES by its name, or of one that is given."""
    rng = numpy.random.default_rng(seed)
    found = {}
    for name, (word, *shape) in (RECIPES.get(recipe) if isinstance(recipe, str) else recipe).items():
        values = rng.standard_normal(math.prod(shape), dtype=numpy.float32) * 0.02
        if name in CONSTANTS:
            values[:] = CONSTANTS[name]
        values = bf16(values) if word == "BF16" else values.astype(TYPES[word])
        found[name] = values.reshape(shape)
    return found


def lora_for(recipe, seed=11, rank=4):
    """A LoRA of every two-dimensional weight of the diffusion model that is large enough."""
    rng = numpy.random.default_rng(seed)
    found = {}
    for name, (_word, *shape) in RECIPES[recipe].items():
        if not name.endswith(".weight") or len(shape) != 2 or min(shape) < rank:
            continue
        stem = "diffusion_model." + name.removeprefix("model.diffusion_model.")[: -len(".weight")]
        for side, of in (("lora_up", (shape[0], rank)), ("lora_down", (rank, shape[1]))):
            found[f"{stem}.{side}.weight"] = (
                rng.standard_normal(of, dtype=numpy.float32) * 0.1)
    return found
