# SPDX-License-Identifier: Apache-2.0
"""Core takes a model for an image encoder or a T5 by a few names, and has their sizes in tables of
its own, of which the smallest is 200 MB: here the same kinds are as narrow as the tests' files."""
import json
import os
import tempfile

import comfy.clip_vision
import comfy.text_encoders.t5

VISION = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
          "projection_dim": 32, "image_size": 56}
T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2,
      "is_gated_act": True}


class ClipVisionModel(comfy.clip_vision.ClipVisionModel):
    def __init__(self, json_config, *args, **kwargs):
        with open(json_config, encoding="utf-8") as file:
            config = {**json.load(file), **VISION}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(config, file)
            file.flush()
            super().__init__(os.fspath(file.name), *args, **kwargs)


class NarrowT5(comfy.text_encoders.t5.T5):
    def __init__(self, config_dict, *args, **kwargs):
        super().__init__({**config_dict, **T5}, *args, **kwargs)


comfy.clip_vision.ClipVisionModel = ClipVisionModel
if not os.environ.get("DISTORCH_TEST_ENCODERS"):  # which has a size for it
    comfy.text_encoders.t5.T5 = NarrowT5
