# SPDX-License-Identifier: Apache-2.0
"""The node ids that ComfyUI-MultiGPU had for WanVideoWrapper. Loaders of those have a device to
choose and return its name, which is connected to the nodes that use what they loaded.

Each runs the pack's own node, with the device in the place of its module's own: that is where those
nodes look, and it was the old pack's way too.
"""
import contextlib
import copy
import sys

from . import legacy_ids as old
from . import probe

DEVICE = "MULTIGPUDEVICE"  # of what is connected
SWAP = "swap_device"
TILES = "enable_vae_tiling tile_x tile_y tile_stride_x tile_stride_y"
ENCODE = "t5 load_device force_offload model_to_offload use_disk_cache"

#: name: (required, optional; in the order in which a saved workflow has its values, the input that
#: is the device). What a release of the pack has besides comes after them.
LOADERS = {
    "WanVideoModelLoader": (
        "model base_precision quantization load_device compute_device",
        "attention_mode compile_args block_swap_args lora vram_management_args extra_model "
        "vace_model fantasytalking_model multitalk_model fantasyportrait_model rms_norm_function",
        "compute_device"),
    "WanVideoVAELoader": ("model_name", "load_device precision compile_args", "load_device"),
    "WanVideoTinyVAELoader": ("model_name", "load_device precision parallel", "load_device"),
    "LoadWanVideoT5TextEncoder": ("model_name precision", "device quantization", "device"),
    "LoadWanVideoClipTextEncoder": ("model_name precision", "device", "device"),
}
#: the same, that choose a device and return none
ALONE = {
    "WanVideoTextEncodeCached": (
        "model_name precision positive_prompt negative_prompt quantization use_disk_cache "
        "load_device", "extender_args", "load_device"),
    "WanVideoControlnetLoader": ("model base_precision quantization load_device device", "",
                                 "device"),
    "WanVideoUni3C_ControlnetLoader": (
        "model base_precision quantization load_device device attention_mode", "compile_args",
        "device"),
    "FantasyTalkingModelLoader": ("model base_precision device", "", "device"),
    "Wav2VecModelLoader": ("model base_precision load_device device", "", "device"),
    "DownloadAndLoadWav2VecModel": ("model base_precision load_device device", "", "device"),
}
#: the same, that are told the device by a loader
USERS = {
    "WanVideoSampler": (
        "model compute_device image_embeds steps cfg shift seed force_offload scheduler "
        "riflex_freq_index",
        "text_embeds samples denoise_strength feta_args context_options cache_args flowedit_args "
        "batched_cfg slg_args rope_function loop_args experimental_args sigmas unianimate_poses "
        "fantasytalking_embeds uni3c_embeds multitalk_embeds freeinit_args start_step end_step "
        "add_noise_to_samples", "compute_device"),
    "WanVideoTextEncode": ("positive_prompt negative_prompt", ENCODE, "load_device"),
    "WanVideoTextEncodeSingle": ("prompt", ENCODE, "load_device"),
    "WanVideoImageToVideoEncode": (
        "width height num_frames noise_aug_strength start_latent_strength end_latent_strength "
        "force_offload",
        "vae load_device clip_embeds start_image end_image control_embeds fun_or_fl2v_model "
        "temporal_mask extra_latents tiled_vae add_cond_latents", "load_device"),
    "WanVideoEncode": (f"vae load_device image {TILES}",
                       "noise_aug_strength latent_strength mask", "load_device"),
    "WanVideoDecode": (f"vae load_device samples {TILES}", "normalization", "load_device"),
    "WanVideoVACEEncode": (
        "vae load_device width height num_frames strength vace_start_percent vace_end_percent",
        "input_frames ref_images input_masks prev_vace_embeds tiled_vae", "load_device"),
    "WanVideoClipVisionEncode": (
        "clip_vision load_device image_1 strength_1 strength_2 crop combine_embeds force_offload",
        "image_2 negative_image tiles ratio", "load_device"),
}
#: ours: theirs, which it is another name of
ALIASES = {"vace_model": "extra_model"}
#: What theirs chooses by two words, and the old ones by the device
CHOOSES = {"LoadWanVideoT5TextEncoder", "LoadWanVideoClipTextEncoder"}
WORDS = "load_device", "offload_device", "main_device"


@contextlib.contextmanager
def _told(stock, device):
    """The module of a node has this device for its own."""
    module, torch = sys.modules.get(stock.__module__), sys.modules.get("torch")
    if device not in ("cpu", *old._torch_devices()) or not hasattr(module, "device") or not torch:
        yield
        return
    before, module.device = module.device, torch.device(device)
    try:
        yield
    finally:
        module.device = before


class OfWan(old.Theirs):
    """Before a node of WanVideoWrapper."""

    REQUIRED, OPTIONAL, NAME = None, (), None  # None: those that theirs has
    KIND = None  # what the device's input is: a list to choose from, or what is connected
    MORE = ()  # types of results that theirs has not

    @classmethod
    def VALIDATE_INPUTS(cls, device=None, compute_device=None, load_device=None, swap_device=None):
        return True  # named, so that ComfyUI does not look for another machine's in its lists

    @classmethod
    def as_ours(cls, name, value):
        more = {"RETURN_TYPES": cls.MORE, "RETURN_NAMES": tuple("device" for _ in cls.MORE),
                "OUTPUT_IS_LIST": tuple(False for _ in cls.MORE),
                "OUTPUT_TOOLTIPS": tuple("" for _ in cls.MORE)}.get(name)
        return value if more is None else (*value, *more)

    @classmethod
    def widgets(cls):
        return {cls.NAME: cls.KIND()}

    @classmethod
    def _theirs(cls):
        """(their node, {name: its inputs})"""
        stock = probe.stock_node(cls.STOCK)
        groups = copy.deepcopy(stock.INPUT_TYPES()) if stock is not None else {}
        return stock, groups

    @classmethod
    def INPUT_TYPES(cls):
        _stock, groups = cls._theirs()
        every = {**groups.get("required", {}), **groups.get("optional", {})}
        if cls.STOCK in CHOOSES:
            every.pop(WORDS[0], None)
        every.update({ours: every[theirs] for ours, theirs in ALIASES.items() if theirs in every})
        every.update(cls.widgets())
        found = {"required": {}, "optional": {}}
        required = groups.get("required", ()) if cls.REQUIRED is None else cls.REQUIRED
        for group, names in (("required", required), ("optional", cls.OPTIONAL)):
            found[group] = {name: every[name] for name in names if name in every}
        for name, spec in every.items():
            if name not in found["required"] and name not in ALIASES:
                found["optional"].setdefault(name, spec)
        if "hidden" in groups:
            found["hidden"] = groups["hidden"]
        return found

    def run_theirs(self, **inputs):
        stock, groups = self._theirs()
        if stock is None:
            raise RuntimeError(f"the pack that has {self.STOCK} was not loaded")
        own = self.widgets()
        widgets = {name: inputs.pop(name) for name in list(inputs) if name in own}
        device = "" if self.NAME == SWAP else widgets.get(self.NAME) or ""
        for ours, theirs in ALIASES.items():
            other = inputs.pop(ours, None)
            if other is not None and inputs.get(theirs) is None:
                inputs[theirs] = other
        if self.STOCK in CHOOSES and device:
            inputs[WORDS[0]] = WORDS[1] if device == "cpu" else WORDS[2]
        for name, spec in groups.get("required", {}).items():  # which the saved one had not
            if name not in inputs and len(spec) > 1 and "default" in spec[1]:
                inputs[name] = spec[1]["default"]
        with old._computing_on(device), _told(stock, device):
            found = getattr(stock(), stock.FUNCTION)(**inputs)
        lines = [f"loaded by {self.STOCK} itself"]
        try:
            old._check_devices(widgets)
            if widgets.get(SWAP, "cpu") != "cpu":
                raise old.NotPlaced(f"blocks are swapped to where {self.STOCK} does it by itself")
        except old.NotPlaced as failure:
            lines.append(f"not placed: {failure}")
        return old.said(found, lines, [device] * len(self.MORE))


def _chosen():
    return old._device()


def _swapped():
    return old._device("cpu")


def _connected():
    return (DEVICE, {"tooltip": "Where it computes: what the loader returns."})


def _all():
    found = {}
    for table, kind, more in ((LOADERS, _chosen, (DEVICE,)), (ALONE, _chosen, ()),
                              (USERS, _connected, ())):
        for name, (required, optional, device) in table.items():
            found[name + "MultiGPU"] = (old._class(
                name + "MultiGPU", OfWan, STOCK=name, REQUIRED=tuple(required.split()),
                OPTIONAL=tuple(optional.split()), NAME=device, KIND=staticmethod(kind), MORE=more),
                f"{name} (MultiGPU)")
    name = "WanVideoBlockSwap"
    found[name + "MultiGPU"] = (old._class(name + "MultiGPU", OfWan, STOCK=name, NAME=SWAP,
                                           KIND=staticmethod(_swapped)), f"{name} (MultiGPU)")
    return found


IDS = _all()
