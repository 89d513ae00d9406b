# SPDX-License-Identifier: Apache-2.0
"""Nodes for tests: conditioning without a text encoder, a look at a model, a hostile node."""
import os
import pathlib
import time

import comfy.model_management
import torch

from . import encoders, inside, narrow, patches, third_party  # noqa: F401


class ZeroConditioning:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"default": 768, "max": 99999}),
                             "pooled": ("INT", {"default": 768, "max": 99999})}}

    def make(self, width, pooled):
        return ([[torch.zeros(1, 77, width), {"pooled_output": torch.zeros(1, pooled)}]],)


def mappings():
    """[(begin, end, what)] of this process."""
    found = []
    with open("/proc/self/maps", encoding="utf-8") as lines:
        for line in lines:
            fields = line.split(maxsplit=5)
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((begin, end, fields[5].strip() if len(fields) > 5 else ""))
    return found


def device_of(mapping):
    """Where the daemon has what is mapped, or None where it is not the daemon's."""
    if "/memfd:sim:" in mapping:
        return mapping.split("/memfd:")[1].split("/")[0]
    return "cpu" if "memfd:distorch" in mapping else None


class Look:
    """How many parameters and buffers lie in what the daemon gave; how much memory of this process
    is its own."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "look"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}, "optional": {"trigger": ("LATENT",)}}

    @classmethod
    def IS_CHANGED(cls, **_inputs):
        return float("nan")

    def look(self, model, trigger=None):
        inner = model.model.diffusion_model
        parameters, saved = dict(inner.named_parameters()), inner.state_dict()
        buffers = [one for name, one in inner.named_buffers() if name in saved]
        places, devices = {"mapped": 0, "own": 0}, {}
        maps = mappings()

        def device(tensor):
            return device_of(next((what for begin, end, what in maps
                                   if begin <= tensor.data_ptr() < end), ""))

        for one in (*parameters.values(), *buffers):
            places["mapped" if device(one) else "own"] += 1
        tensors = saved.values()
        if any(tensor.is_meta for tensor in tensors):  # ComfyUI-GGUF tells of sizes there
            tensors = parameters.values()
        for tensor in tensors:
            if device(tensor):
                devices[device(tensor)] = devices.get(device(tensor), 0) + 1
        total = {"Pss": 0, "Anonymous": 0, "Private_Dirty": 0}
        inside = False
        with open("/proc/self/smaps", encoding="utf-8") as lines:
            for line in lines:
                word = line.split(maxsplit=1)[0]
                if not word.endswith(":"):
                    inside = device_of(line) is not None
                elif inside and word[:-1] in total:
                    total[word[:-1]] += int(line.split()[1]) * 1024
        return {"ui": {"look": [{"pid": os.getpid(), **places, **total, "devices": devices,
                                 "dtypes": sorted({str(one.dtype) for one in parameters.values()}),
                                 "patcher": type(model).__name__,
                                 "loaded_size": model.loaded_size(),
                                 "model_size": model.model_size()}]},
                "result": (model,)}


class Hostile:
    """Writes into a model's parameters as no node should."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "harm"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def harm(self, model):
        with torch.inference_mode(False), torch.no_grad():
            for parameter in model.model.diffusion_model.parameters():
                parameter.data.mul_(0)
        return (model,)


class OutOfMemory:
    """A model that runs out of memory for the first so many steps."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "starve"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "times": ("INT", {"default": 1})}}

    def starve(self, model, times):
        left = [times]

        def step(apply, options):
            left[0] -= 1
            if left[0] >= 0:
                raise comfy.model_management.OOM_EXCEPTION("pretended: out of memory")
            return apply(options["input"], options["timestep"], **options["c"])

        found = model.clone()
        found.set_model_unet_function_wrapper(step)
        return (found,)


class Pause:
    """A model that waits when it is called for the third time: there is a file `gate`.waits then,
    and it goes on once there is `gate`."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "pause"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "gate": ("STRING",)}}

    def pause(self, model, gate):
        n_calls = 0

        def step(apply, options):
            nonlocal n_calls
            n_calls += 1
            if n_calls == 3:
                pathlib.Path(f"{gate}.waits").touch()
                end = time.monotonic() + 60
                while not os.path.exists(gate):
                    if time.monotonic() > end:
                        raise RuntimeError(f"nobody opened {gate}")
                    time.sleep(0.01)
            return apply(options["input"], options["timestep"], **options["c"])

        found = model.clone()
        found.set_model_unet_function_wrapper(step)
        return (found,)


class Hungry:
    """A model of which core reckons that it needs more memory than there is."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "feed"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def feed(self, model):
        model.model.memory_usage_factor = 1e9
        return (model,)


class PartiallyUnload:
    """What core does when it wants some of a card back."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "unload"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}, "optional": {"trigger": ("LATENT",)}}

    def unload(self, model, trigger=None):
        before = model.loaded_size()
        freed = model.partially_unload(model.offload_device, 1 << 40)
        return {"ui": {"freed": [{"said": freed, "before": before, "after": model.loaded_size()}]},
                "result": (model,)}


class Slow:
    """Works for so many seconds."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "work"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seconds": ("FLOAT", {"default": 1.0}),
                             "value": ("INT", {"default": 0})}}

    @classmethod
    def IS_CHANGED(cls, **_inputs):
        return float("nan")

    def work(self, seconds, value):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.05)
        return (value,)


class Choose:
    """One of two models; the other need not be there."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "choose"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"first": ("BOOLEAN", {"default": True}),
                             "one": ("MODEL", {"lazy": True}), "two": ("MODEL", {"lazy": True})}}

    def check_lazy_status(self, first, one=None, two=None):
        return ["one" if first else "two"]

    def choose(self, first, one=None, two=None):
        return (one if first else two,)


class Crash:
    """Ends the process as the kernel would."""

    RETURN_TYPES = ()
    FUNCTION = "crash"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def crash(self, model):
        os.kill(os.getpid(), 9)


NODE_CLASS_MAPPINGS = {"TestZeroConditioning": ZeroConditioning, "TestLook": Look,
                       "TestHostile": Hostile, "TestCrash": Crash,
                       "TestOutOfMemory": OutOfMemory, "TestPause": Pause, "TestHungry": Hungry,
                       "TestPartiallyUnload": PartiallyUnload, "TestSlow": Slow,
                       "TestChoose": Choose,
                       **encoders.NODE_CLASS_MAPPINGS, **inside.NODE_CLASS_MAPPINGS,
                       **patches.NODE_CLASS_MAPPINGS,
                       **third_party.NODE_CLASS_MAPPINGS}
