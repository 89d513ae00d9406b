# SPDX-License-Identifier: Apache-2.0
"""The calls by which loaders of other packs read their files, as they make them."""
import hashlib
import os

import comfy.model_management
import comfy.utils
import folder_paths
import safetensors
import torch
from comfy.utils import load_torch_file  # as most of them have it: bound when they are imported

FILE = "tiny_sd3_2.safetensors"


def _wan_video():
    path = folder_paths.get_full_path_or_raise("diffusion_models", FILE)
    return load_torch_file(path, device=torch.device("cpu"), safe_load=True)


def _hunyuan_video():
    path = folder_paths.get_full_path_or_raise("diffusion_models", FILE)
    return load_torch_file(path, device=comfy.model_management.unet_offload_device(),
                           safe_load=True)


def _mmaudio():
    path = folder_paths.get_full_path_or_raise("mmaudio", FILE)
    return load_torch_file(path, device=comfy.model_management.unet_offload_device())


def _florence2():
    return load_torch_file(os.path.join(folder_paths.models_dir, "LLM", "Florence-2-base",
                                        "model.safetensors"))


def _pulid():
    path = folder_paths.get_full_path("pulid", FILE)
    return comfy.utils.load_torch_file(path, safe_load=True)


def _outside():
    return load_torch_file(os.path.join(folder_paths.get_output_directory(), FILE))


def _with_metadata():
    path = folder_paths.get_full_path_or_raise("diffusion_models", FILE)
    tensors, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    assert metadata is None or isinstance(metadata, dict)
    return tensors


KINDS = {"WanVideoWrapper": _wan_video, "HunyuanVideoWrapper": _hunyuan_video,
         "MMAudio": _mmaudio, "Florence2": _florence2, "PuLID": _pulid, "outside": _outside,
         "metadata": _with_metadata}


class ThirdParty:
    """Reads a file as one of them; says what came, and how much of it is the daemon's memory."""

    RETURN_TYPES = ("TENSORS",)
    FUNCTION = "read"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (list(KINDS),), "keep": ("BOOLEAN", {"default": False})}}

    def read(self, kind, keep):
        for name in ("pulid", "mmaudio"):  # as they do when they are imported
            folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        return _told(KINDS[kind](), keep)


class SafeOpen:
    """As the loader of LTXVideo reads a file, past ComfyUI."""

    RETURN_TYPES = ("TENSORS",)
    FUNCTION = "read"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING",)}, "optional": {"keep": ("BOOLEAN",)}}

    def read(self, path, keep=False):
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
        return _told(found, keep)


def _told(found, keep):
    from . import mappings

    maps = [(begin, end) for begin, end, what in mappings() if "memfd:distorch" in what]
    n_mapped = sum(any(begin <= one.data_ptr() < end for begin, end in maps)
                   for one in found.values())
    digest = hashlib.sha256(b"".join(one.contiguous().numpy().tobytes()
                                     for one in found.values())).hexdigest()
    kept = [one.reshape(-1)[1:] for one in found.values()] if keep else []  # views of them
    return {"ui": {"read": [{"n": len(found), "mapped": n_mapped, "digest": digest}]},
            "result": (kept,)}


NODE_CLASS_MAPPINGS = {"TestThirdParty": ThirdParty, "TestSafeOpen": SafeOpen}
