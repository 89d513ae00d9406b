# SPDX-License-Identifier: Apache-2.0
"""Text encoders that are as small as tests want them, where DISTORCH_TEST_ENCODERS is set: core has
no tiny ones. Their sizes are in encoders.json; and a look at what one has made of words."""
import hashlib
import json
import os
import pathlib

import comfy.sd1_clip
import comfy.text_encoders.hunyuan_video


class Encoded:
    """The bytes of a conditioning, and how much of its encoder is the daemon's memory."""

    RETURN_TYPES = ()
    FUNCTION = "look"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "conditioning": ("CONDITIONING",)}}

    def look(self, clip, conditioning):
        from . import device_of, mappings

        maps, devices, n_own = mappings(), {}, 0
        for one in clip.cond_stage_model.parameters():
            device = device_of(next((what for begin, end, what in maps
                                     if begin <= one.data_ptr() < end), ""))
            n_own += device is None
            devices[device or "own"] = devices.get(device or "own", 0) + 1
        (tensor, more), = conditioning
        digest = hashlib.sha256(b"".join(
            one.float().contiguous().numpy().tobytes()
            for one in (tensor, more.get("pooled_output")) if one is not None)).hexdigest()
        return {"ui": {"encoded": [{"digest": digest, "own": n_own, "devices": devices,
                                    "shape": list(tensor.shape),
                                    "is_finite": bool(tensor.isfinite().all())}]}}


if os.environ.get("DISTORCH_TEST_ENCODERS"):
    SIZES = json.loads(pathlib.Path(__file__).with_name("encoders.json").read_text())
    inner = comfy.sd1_clip.SDClipModel.__init__

    def init(model, *args, model_options={}, **kwargs):
        sizes = {name: {**model_options.get(name, {}), **size} for name, size in SIZES.items()}
        inner(model, *args, model_options={**model_options, **sizes}, **kwargs)

    comfy.sd1_clip.SDClipModel.__init__ = init

    class Letters:
        """A token for each letter: not every ComfyUI has the files of Llama's tokenizer."""

        def __init__(self, **_options):
            pass

        def tokenize_with_weights(self, text, _return_word_ids=False, **_options):
            return [[(128000, 1.0), *((ord(letter), 1.0) for letter in text)]]

    comfy.text_encoders.hunyuan_video.LLAMA3Tokenizer = Letters

NODE_CLASS_MAPPINGS = {"TestEncoded": Encoded}
