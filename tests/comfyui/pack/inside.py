# SPDX-License-Identifier: Apache-2.0
"""Nodes that look into what loaders return, and keep what it makes as a latent."""
import torch


class Anything(str):
    """The type that matches each."""

    def __ne__(self, other):
        return False


def module_of(what):
    for name in ("cond_stage_model", "first_stage_model", "control_model"):
        if getattr(what, name, None) is not None:
            return getattr(what, name)
    model = getattr(what, "model", torch.nn.Module())  # a control LoRA has none before it samples
    return getattr(model, "diffusion_model", model)


def patcher_of(what):
    return next((getattr(what, name) for name in ("control_model_wrapped", "patcher")
                 if hasattr(what, name)), what)


class LookInside:
    """How many parameters lie where in what the daemon gave."""

    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "look"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"what": (Anything("*"),)},
                "optional": {"trigger": (Anything("*"),)}}

    @classmethod
    def IS_CHANGED(cls, **_inputs):
        return float("nan")

    def look(self, what, trigger=None):
        from . import device_of, mappings

        devices, own, maps = {}, 0, mappings()
        for parameter in module_of(what).parameters():
            address = parameter.data_ptr()
            device = device_of(next((name for begin, end, name in maps
                                     if begin <= address < end), ""))
            if device is None:
                own += 1
            else:
                devices[device] = devices.get(device, 0) + 1
        return {"ui": {"look": [{"devices": devices, "own": own,
                                 "patcher": type(patcher_of(what)).__name__}]},
                "result": (what,)}


class AsLatent:
    """What an encoder has made, as one row of numbers."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"encoded": (Anything("*"),)}}

    def make(self, encoded):
        if isinstance(encoded, list):
            found = [encoded[0][0]]
        else:
            found = [encoded[name] for name in ("last_hidden_state", "penultimate_hidden_states",
                                                "image_embeds")]
        row = torch.cat([one.float().flatten() for one in found])
        return ({"samples": row.reshape(1, 1, 1, -1)},)


class DeepClone:
    """As core makes one of a model for another card."""

    RETURN_TYPES = (Anything("*"),)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"what": (Anything("*"),)}}

    def make(self, what):
        if not hasattr(what, "patcher"):
            return (what.deepclone_multigpu(what.load_device),)
        found = what.clone() if hasattr(what, "clone") else what
        found.patcher = what.patcher.deepclone_multigpu(what.patcher.load_device)
        for name in ("cond_stage_model", "first_stage_model"):
            if hasattr(found, name):
                setattr(found, name, found.patcher.model)
        return (found,)


NODE_CLASS_MAPPINGS = {"TestLookInside": LookInside, "TestAsLatent": AsLatent,
                       "TestDeepClone": DeepClone}
