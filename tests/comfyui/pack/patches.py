# SPDX-License-Identifier: Apache-2.0
"""Nodes that have core patch a model in its rarer ways; and a core that is broken on purpose."""
import os

import comfy.model_management
import comfy.ops


class OfModel:
    """From a model to another one."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}


class Inplace(OfModel):
    """Patches are written into the weights themselves, as a second model of a prompt may want."""

    def make(self, model):
        model = model.clone()
        model.weight_inplace_update = True
        return (model,)


class ForcePatch(OfModel):
    """Loads with patches forced onto the weights, and lets go of some of them again."""

    def make(self, model):
        comfy.model_management.load_models_gpu([model], force_patch_weights=True)
        model.partially_unload(model.offload_device, 1 << 16)
        model.partially_load(model.load_device, 1 << 40, force_patch_weights=True)
        return (model,)


class CloneOfClones(OfModel):
    def make(self, model):
        for _ in range(3):
            model = model.clone()
        return (model,)


if os.environ.get("DISTORCH_TEST_BREAK") == "layers":  # as a release of ComfyUI might
    inner = comfy.ops.manual_cast.Linear.forward
    comfy.ops.manual_cast.Linear.forward = lambda layer, *args, **kwargs: (
        inner(layer, *args, **kwargs) * 1.0001)

NODE_CLASS_MAPPINGS = {"TestInplace": Inplace, "TestForcePatch": ForcePatch,
                       "TestCloneOfClones": CloneOfClones}
