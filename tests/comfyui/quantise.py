# SPDX-License-Identifier: Apache-2.0
"""Writes quantised files of a tiny model, with ComfyUI's own Python and its own quantisers:
quantise.py SOURCE.safetensors FOLDER. What this release has no layers for is left out. With a third
word it is of a text encoder, as they were once."""
import json
import os
import struct
import sys

sys.path.insert(0, os.environ["COMFYUI_DIR"])
sys.argv, (_me, source, folder, *is_encoder) = [sys.argv[0], "--cpu"], sys.argv

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

WORDS = {torch.float32: "F32", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3",
         torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0", torch.uint8: "U8",
         torch.int8: "I8"}


def is_wide(name, tensor):
    """A weight that the quantised kinds are for: of a block's layers."""
    return name.endswith(".weight") and tensor.ndim == 2 and "block" in name and \
        min(tensor.shape) >= 32


def write(name, tensors):
    """What is large first, at multiples of 64: else the last bit of a product may differ."""
    header, parts, offset = {}, [], 0
    for key, value in sorted(tensors.items(), key=lambda one: one[1].nbytes % 64 != 0):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[key] = {"dtype": WORDS[value.dtype], "shape": list(value.shape),
                       "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    with open(os.path.join(folder, f"{name}.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


def plain(tensors, kind):
    return {name: tensor.to(kind) if is_wide(name, tensor) else tensor
            for name, tensor in tensors.items()}


def scaled_as_once(tensors, prefix, mark=2):
    """As files had it before ComfyUI knew of kinds for each layer; `mark`: elements of the tensor
    that tells so. Of a text encoder it has none."""
    found = {}
    for name, tensor in tensors.items():
        if is_wide(name, tensor):
            scale = tensor.abs().amax() / 448
            found[name] = (tensor / scale).to(torch.float8_e4m3fn)
            found[name.removesuffix("weight") + "scale_weight"] = scale.reshape(())
        else:
            found[name] = tensor
    found[f"{prefix}scaled_fp8"] = torch.zeros(mark, dtype=torch.float8_e4m3fn)
    return found


def quantised(tensors, kind):
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    layout, found = QUANT_ALGOS[kind]["comfy_tensor_layout"], {}
    for name, tensor in tensors.items():
        if is_wide(name, tensor):
            scale = {"scale": "recalculate"} if kind != "mxfp8" else {}
            made = QuantizedTensor.from_float(tensor.float(), layout, **scale)
            found.update(made.state_dict(name))
            found[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(
                list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
        else:
            found[name] = tensor
    return found


def main():
    tensors = load_file(source)
    if is_encoder:
        write("tiny_scaled_once", scaled_as_once(tensors, "", mark=0))
        return
    prefix = "model.diffusion_model." if any(name.startswith("model.diffusion_model.")
                                             for name in tensors) else ""
    write("fp8_e4m3fn", plain(tensors, torch.float8_e4m3fn))
    write("fp8_e5m2", plain(tensors, torch.float8_e5m2))
    write("scaled_once", scaled_as_once(tensors, prefix))
    try:
        from comfy.quant_ops import QUANT_ALGOS
    except ImportError:  # an older ComfyUI
        return
    for kind in ("float8_e4m3fn", "nvfp4", "mxfp8", "int8_tensorwise"):
        if kind in QUANT_ALGOS:
            write(f"quantised_{kind}", quantised(tensors, kind))


main()
