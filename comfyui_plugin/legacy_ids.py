# SPDX-License-Identifier: Apache-2.0
"""The node ids of ComfyUI-MultiGPU and DisTorch 2, so that workflows saved with them open and run.

Each has the widgets that it had, in their order, with their names and defaults, and hands them on
to a loader of ours. A device that is not there fails no prompt: the node says so. Registered only
where the old pack is not, and never over an id that somebody else has.
"""
import contextlib
import copy
import re
import sys

from . import cards, nodes, probe, unload
from .session import session

CATEGORY = nodes.CATEGORY + "/MultiGPU"
WAN_PACK = "comfyuiwanvideowrapper"
OLD_PACK = "comfyuimultigpu"  # its folder's name, letters and digits alone
DEVICE = re.compile(r"(cpu|(?:cuda|xpu|npu|mlu|mps|directml|sim)(?::\d+)?)")


# ---- devices ----

def _torch_devices():
    """Those of ComfyUI, the one that it computes on first."""
    management = probe.module("comfy.model_management")
    found = []
    for name in ("get_torch_device", "get_all_torch_devices"):
        with contextlib.suppress(Exception):
            one = getattr(management, name)()
            found += one if isinstance(one, list) else [one]
    return [cards.name(device) for device in found]


def _devices():
    """What the widgets offer: as the old pack had it, cpu first."""
    return list(dict.fromkeys(["cpu", *_torch_devices(), *session.devices()]))


def _missing(*texts):
    """The first device, of names and allocation strings, that is not here."""
    here = _devices()
    for text in texts:
        for item in re.split("[;|]", text.lower()):
            name = item.split("=")[-1].split(",")[0].strip()
            if DEVICE.fullmatch(name) and name not in here:
                return name
    return None


def _check_devices(widgets):
    missing = _missing(*(value for value in widgets.values() if isinstance(value, str)))
    if missing is not None:
        raise NotPlaced(f"no {missing} here")


def _chosen(device):
    """The widget of ours for a device that was chosen: it need not be said where ComfyUI computes
    there anyway."""
    return nodes.placement.AUTO if device in _torch_devices()[:1] else device


# ---- widgets ----

def _device(default=None):
    here = _devices()
    return (here, {"default": default or here[min(1, len(here) - 1)], "tooltip":
                   "Where it computes. One that is not here is left to ComfyUI."})


def _virtual_vram(default=4.0, most=128.0):
    return ("FLOAT", {"default": default, "min": 0.0, "max": most, "step": 0.1, "tooltip":
                      "So many GiB of the model live on the donor instead."})


def _text(tooltip="Where its blocks lie, such as cuda:0,6gb;cpu,*. It wins over virtual_vram_gb."):
    return ("STRING", {"default": "", "multiline": False, "tooltip": tooltip})


def _switch(default, tooltip):
    return ("BOOLEAN", {"default": default, "tooltip": tooltip})


EJECT = "What is not in use goes off the cards before this model is loaded."


class NotPlaced(Exception):
    """What the widgets ask for cannot be had: why, for the node."""


class Old:
    """Before a loader of ours. `widgets()` are the old ones besides the stock node's, `given()` says
    what they are as ours."""

    CATEGORY = CATEGORY
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls):
        more = cls.widgets()
        required = more.pop("required", {})
        return {"required": {**cls.own_inputs(), **required}, "optional": more}

    @classmethod
    def VALIDATE_INPUTS(cls, device=None, offload_device=None, compute_device=None,
                        donor_device=None, unet_device=None, clip_device=None, vae_device=None,
                        unet_compute_device=None, unet_donor_device=None,
                        clip_compute_device=None, clip_donor_device=None):
        return True  # named, so that ComfyUI does not look for another machine's in its lists

    @classmethod
    def widgets(cls):
        raise NotImplementedError

    def given(self, **widgets):
        raise NotImplementedError

    def load(self, eject_models=False, **inputs):
        own = self.own_inputs()
        stock = {name: value for name, value in inputs.items() if name in own}
        widgets = {name: value for name, value in inputs.items() if name not in own}
        if eject_models:
            unload.clear_cards()
        reason, given = None, {}
        try:
            _check_devices(widgets)
            given = self.given(**widgets)
        except NotPlaced as failure:
            reason = f"not placed: {failure}"
        found = super().load(**stock, **given)
        if reason is not None:
            found["ui"]["distorch"][0]["lines"].insert(1, reason)
        return found


class OnDevice(Old):
    """A loader (MultiGPU): the whole model on a device."""

    @classmethod
    def widgets(cls):
        return {"device": _device()}

    def given(self, device="cpu"):
        return {"compute_device": _chosen(device)}


class Distributed(Old):
    """A loader (DisTorch2)."""

    COMPUTE, EJECTS = "compute_device", True

    @classmethod
    def widgets(cls):
        return {cls.COMPUTE: _device(), "virtual_vram_gb": _virtual_vram(),
                "donor_device": _device("cpu"), "expert_mode_allocations": _text(),
                "eject_models": _switch(cls.EJECTS, EJECT)}

    def given(self, virtual_vram_gb=4.0, donor_device="cpu", expert_mode_allocations="",
              **compute):
        device = compute.get(self.COMPUTE, "cpu")
        if expert_mode_allocations.strip():
            return {"compute_device": device, "expert_mode_allocations": expert_mode_allocations}
        if virtual_vram_gb <= 0:
            return {"compute_device": _chosen(device)}
        if donor_device == device:
            raise NotPlaced(f"{device} is both compute device and donor")
        return {"compute_device": device, "virtual_vram_gb": virtual_vram_gb,
                "donor_device": donor_device}


class DistributedClip(Distributed):
    COMPUTE, EJECTS = "device", False


class Clip:
    """A text encoder on the CPU computes there, as by the stock node's own widget."""

    _is_on_cpu = False

    def load(self, **inputs):
        self._is_on_cpu = inputs.get("device") == "cpu"
        return super().load(**inputs)

    def given(self, **widgets):
        found = super().given(**widgets)
        return {} if self._is_on_cpu and len(found) == 1 else found

    def job(self, **inputs):
        return super().job(**inputs, **({"device": "cpu"} if self._is_on_cpu else {}))


class FirstDistributed(Distributed):
    """A loader (DisTorch), of the first DisTorch."""

    @classmethod
    def widgets(cls):
        return {"device": _device(), "virtual_vram_gb": _virtual_vram(4.0, 24.0),
                "use_other_vram": _switch(False, "The other cards take it first, then RAM."),
                "expert_mode_allocations": _text()}

    def given(self, device="cpu", virtual_vram_gb=4.0, use_other_vram=False,
              expert_mode_allocations=""):
        others = sorted({*_devices()} - {"cpu", device}, key=lambda one: (len(one), one))
        donors = (*others, "cpu") if use_other_vram and others else "cpu"
        return super().given(virtual_vram_gb, donors, expert_mode_allocations,
                             compute_device=device)


class OfGguf:
    """Where a release of ComfyUI-GGUF has what ours does not know, its own node loads."""

    def load(self, **inputs):
        try:
            return super().load(**inputs)
        except probe.interruptions():
            raise
        except Exception as failure:
            reason = f"{type(failure).__name__}: {failure}"
        stock = probe.stock_node(self.THEIRS)
        if stock is None:
            raise RuntimeError("ComfyUI-GGUF is not installed")
        own = self.own_inputs()
        result = getattr(stock(), stock.FUNCTION)(**{name: value for name, value in inputs.items()
                                                     if name in own})
        lines = [f"loaded by {self.THEIRS} itself", f"not placed: {reason}"]
        return {"ui": {"distorch": [{"tier": "stock", "lines": lines}]}, "result": result}


# ---- loaders with more of their own ----

class WholeCheckpoint(OnDevice):
    def given(self, device="cpu"):
        word = _chosen(device)
        return {"compute_device": word, "clip_device": word, "vae_device": word}


class AdvancedCheckpoint(Old):
    @classmethod
    def widgets(cls):
        return {"required": {"unet_device": _device(), "clip_device": _device(),
                             "vae_device": _device()}}

    def given(self, unet_device="cpu", clip_device="cpu", vae_device="cpu"):
        return {"compute_device": _chosen(unet_device), "clip_device": _chosen(clip_device),
                "vae_device": _chosen(vae_device)}


class AdvancedDistributedCheckpoint(Distributed):
    @classmethod
    def widgets(cls):
        return {"required": {"unet_compute_device": _device(),
                             "unet_virtual_vram_gb": _virtual_vram(),
                             "unet_donor_device": _device("cpu"),
                             "clip_compute_device": _device("cpu"),
                             "clip_virtual_vram_gb": _virtual_vram(2.0),
                             "clip_donor_device": _device("cpu"), "vae_device": _device()},
                "unet_expert_mode_allocations": _text(), "clip_expert_mode_allocations": _text(),
                "high_precision_loras": _switch(True, "Without effect: they are as ComfyUI's."),
                "eject_models": _switch(True, EJECT)}

    def given(self, unet_compute_device="cpu", unet_virtual_vram_gb=4.0, unet_donor_device="cpu",
              clip_compute_device="cpu", clip_virtual_vram_gb=2.0, clip_donor_device="cpu",
              vae_device="cpu", unet_expert_mode_allocations="", clip_expert_mode_allocations="",
              high_precision_loras=True):
        found = super().given(unet_virtual_vram_gb, unet_donor_device,
                              unet_expert_mode_allocations, compute_device=unet_compute_device)
        clip = clip_expert_mode_allocations.strip()
        if not clip and clip_virtual_vram_gb > 0 and clip_donor_device != clip_compute_device:
            clip = nodes.placement.Wish(clip_compute_device, clip_virtual_vram_gb,
                                        (clip_donor_device,)).words()
        return {**found, "clip_allocations": clip, "vae_device": _chosen(vae_device),
                "clip_device": clip_compute_device if clip else _chosen(clip_compute_device)}


class LowPrecisionLoader(nodes.DiffusionModelLoader):
    CATEGORY = CATEGORY
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": nodes._stock_inputs("UNETLoader", ("unet_name",))}


class DeviceSelector:
    CATEGORY = CATEGORY
    DEPRECATED = True
    DESCRIPTION = "The name of a device, for nodes that take one."
    FUNCTION = "select"
    RETURN_TYPES = ("MULTIGPUDEVICE",)
    RETURN_NAMES = ("device",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"device": _device()}}

    @classmethod
    def VALIDATE_INPUTS(cls, device=None):
        return True

    def select(self, device):
        return (device,)


# ---- what other packs load ----

class _AsTheirs(type):
    """What the class has not, the node that it stands before has: its pack may be loaded later."""

    def __getattr__(cls, name):
        if name in ("RETURN_TYPES", "RETURN_NAMES", "OUTPUT_NODE", "OUTPUT_IS_LIST",
                    "INPUT_IS_LIST", "OUTPUT_TOOLTIPS", "DESCRIPTION"):
            stock = probe.stock_node(cls.STOCK)
            if stock is not None and hasattr(stock, name):
                return cls.as_ours(name, getattr(stock, name))
            if name == "RETURN_TYPES":
                return ()
        raise AttributeError(name)


class Theirs(metaclass=_AsTheirs):
    """Before a loader of another pack, which loads by itself."""

    CATEGORY = CATEGORY
    DEPRECATED = True
    FUNCTION = "run_theirs"
    STOCK = None
    VALIDATE_INPUTS = Old.VALIDATE_INPUTS

    def __getattr__(self, name):
        return getattr(type(self), name)

    @classmethod
    def as_ours(cls, _name, value):
        """What the node says of itself, as this one says it."""
        return value

    @classmethod
    def widgets(cls):
        return {"device": _device()}

    @classmethod
    def INPUT_TYPES(cls):
        stock = probe.stock_node(cls.STOCK)
        found = copy.deepcopy(stock.INPUT_TYPES()) if stock is not None else {"required": {}}
        found["optional"] = {**found.get("optional", {}), **cls.widgets()}
        return found

    def run_theirs(self, **inputs):
        stock = probe.stock_node(self.STOCK)
        if stock is None:
            raise RuntimeError(f"the pack that has {self.STOCK} was not loaded")
        own = self.widgets()
        widgets = {name: inputs.pop(name) for name in list(inputs) if name in own}
        device = widgets.get("device") or widgets.get("compute_device") or "cpu"
        if "device" in stock.INPUT_TYPES().get("optional", {}):
            inputs["device"] = "cpu" if device == "cpu" else "default"
        with _computing_on(device):
            found = getattr(stock(), stock.FUNCTION)(**inputs)
        lines = [f"loaded by {self.STOCK} itself"]
        try:
            _check_devices(widgets)
            if widgets.get("virtual_vram_gb") or widgets.get("expert_mode_allocations"):
                raise NotPlaced(f"what {self.STOCK} loads is not the daemon's")
        except NotPlaced as failure:
            lines.append(f"not placed: {failure}")
        return said(found, lines)


def said(found, lines, more=()):
    """What a node of another pack returned and shows, with our lines and `more` results."""
    shown, result = ((found.get("ui", {}), found.get("result", ())) if isinstance(found, dict)
                     else ({}, found))
    return {"ui": {**shown, "distorch": [{"tier": "stock", "lines": lines}]},
            "result": (*result, *more)}


@contextlib.contextmanager
def _computing_on(device):
    """Core loads for torch's current card."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda:") or device not in _torch_devices():
        yield
        return
    with torch.cuda.device(device):
        yield


class TheirsWithOffload(Theirs):
    @classmethod
    def widgets(cls):
        return {"device": _device(), "offload_device": _device("cpu")}


class TheirsDistributed(Theirs):
    widgets = Distributed.widgets


class TheirsDistributedClip(Theirs):
    widgets = DistributedClip.widgets


class TheirsFirstDistributed(Theirs):
    widgets = FirstDistributed.widgets


# ---- the ids ----

def _class(name, *bases, **members):
    return type(name, bases, members)


def _both(name, loader, title, on_device=OnDevice, distributed=Distributed):
    return {f"{name}MultiGPU": (_class(f"{name}MultiGPU", on_device, loader),
                                f"{title} (MultiGPU)"),
            f"{name}DisTorch2MultiGPU": (_class(f"{name}DisTorch2MultiGPU", distributed, loader),
                                         f"{title} (DisTorch2)")}


class ClipOnDevice(Clip, OnDevice):
    pass


class ClipDistributed(Clip, DistributedClip):
    pass


def _clip(name, loader):
    return _both(name, loader, name, ClipOnDevice, ClipDistributed)


def _theirs(*names, suffixes=(("MultiGPU", Theirs),)):
    return {name + suffix: (_class(name + suffix, kind, STOCK=name), f"{name} ({suffix})")
            for name in names for suffix, kind in suffixes}


def _gguf(name, loader, distributed=Distributed):
    return {name + suffix: (_class(name + suffix, OfGguf, kind, loader, THEIRS=name),
                            f"{name} ({suffix})")
            for suffix, kind in (("MultiGPU", OnDevice), ("DisTorch2MultiGPU", distributed),
                                 ("DisTorchMultiGPU", FirstDistributed))}


_GGUF = (("MultiGPU", Theirs), ("DisTorch2MultiGPU", TheirsDistributed),
         ("DisTorchMultiGPU", TheirsFirstDistributed))
_GGUF_CLIP = (_GGUF[0], ("DisTorch2MultiGPU", TheirsDistributedClip), _GGUF[2])

#: Of ComfyUI's own loaders.
IDS = {
    **_both("UNETLoader", nodes.DiffusionModelLoader, "Load Diffusion Model"),
    **_both("VAELoader", nodes.VaeLoader, "Load VAE"),
    **_clip("CLIPLoader", nodes.ClipLoader),
    **_clip("DualCLIPLoader", nodes.DualClipLoader),
    **_clip("TripleCLIPLoader", nodes.TripleClipLoader),
    **_clip("QuadrupleCLIPLoader", nodes.QuadrupleClipLoader),
    **_both("CLIPVisionLoader", nodes.ClipVisionLoader, "Load CLIP Vision",
            distributed=DistributedClip),
    **_both("CheckpointLoaderSimple", nodes.CheckpointLoader, "Load Checkpoint",
            on_device=WholeCheckpoint),
    **_both("ControlNetLoader", nodes.ControlNetLoader, "Load ControlNet Model"),
    **_both("DiffControlNetLoader", nodes.DiffControlNetLoader, "Load ControlNet Model (diff)"),
    **_theirs("DiffusersLoader", suffixes=_GGUF[:2]),
    "CheckpointLoaderAdvancedMultiGPU": (
        _class("CheckpointLoaderAdvancedMultiGPU", AdvancedCheckpoint, nodes.CheckpointLoader),
        "Checkpoint Loader Advanced (MultiGPU)"),
    "CheckpointLoaderAdvancedDisTorch2MultiGPU": (
        _class("CheckpointLoaderAdvancedDisTorch2MultiGPU", AdvancedDistributedCheckpoint,
               nodes.CheckpointLoader), "Checkpoint Loader Advanced (DisTorch2)"),
    "DeviceSelectorMultiGPU": (DeviceSelector, "Device Selector (MultiGPU)"),
    "UNetLoaderLP": (LowPrecisionLoader, "UNet Loader (LP)"),
}

#: Of other packs, by the letters and digits of their folder's name.
IDS_OF = {
    "comfyuigguf": {
        **_gguf("UnetLoaderGGUF", nodes.GgufDiffusionModelLoader),
        **_gguf("CLIPLoaderGGUF", nodes.GgufClipLoader, DistributedClip),
        **_gguf("DualCLIPLoaderGGUF", nodes.GgufDualClipLoader, DistributedClip),
        **_theirs("UnetLoaderGGUFAdvanced", suffixes=_GGUF),
        **_theirs("TripleCLIPLoaderGGUF", "QuadrupleCLIPLoaderGGUF", suffixes=_GGUF_CLIP)},
    "comfyuiflorence2": _theirs("Florence2ModelLoader", "DownloadAndLoadFlorence2Model",
                                suffixes=(("MultiGPU", TheirsWithOffload),)),
    "comfyuiltxvideo": _theirs("LTXVLoader"),
    "comfyuibitsandbytesnf4": _theirs("CheckpointLoaderNF4"),
    "xfluxcomfyui": _theirs("LoadFluxControlNet"),
    "comfyuimmaudio": _theirs("MMAudioModelLoader", "MMAudioFeatureUtilsLoader",
                              "MMAudioSampler"),
    "pulidcomfyui": _theirs("PulidModelLoader", "PulidInsightFaceLoader", "PulidEvaClipLoader"),
}


def ids():
    """{id: (class, title)} of the old pack that are to be registered here."""
    packs = probe.packs()
    if OLD_PACK in packs:
        return {}
    taken = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    found = dict(IDS)
    for pack, more in IDS_OF.items():
        if pack in packs:
            found |= more
    if WAN_PACK in packs:  # read only then: the start of ComfyUI waits for it
        from . import legacy_wan

        found |= legacy_wan.IDS
    return {name: one for name, one in found.items() if name not in taken}
