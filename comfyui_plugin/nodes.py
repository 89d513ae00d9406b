# SPDX-License-Identifier: Apache-2.0
"""The nodes. Loaders take what ComfyUI's own take, in the same order, and a few things more."""
import os
import weakref

from . import loaders, placement, probe, unload
from .session import Path, session

CATEGORY = "distorch"

KEEP = ("BOOLEAN", {"default": False, "tooltip":
        "Let the model stay in distorchd's memory when others are unloaded."})
PRIORITY = ("INT", {"default": 0, "min": -100, "max": 100, "tooltip":
            "Where memory runs short, models of lower priority go first."})
ANY = "any"
STRING = ('such as "cuda:0,6gb;cpu,*" (6 GiB there, the rest in RAM), "cuda:0,50%;cuda:1,50%", '
          '"cuda:1" or "auto". It wins over the other inputs; docs/allocation-strings.md has all')
EJECT = ("BOOLEAN", {"default": False, "tooltip":
         "Before this model is loaded, have distorchd unload what nobody uses, keeps or pinned."})


def _device(what, names):
    return ([placement.AUTO, *names], {"default": placement.AUTO, "tooltip":
            f"Where {what} computes and, unless more is said below, lies as a whole. auto: ComfyUI "
            "chooses, and all of it is in RAM."})


def _placement_inputs(what="the model"):
    names = session.devices()
    return {"compute_device": _device(what, names),
            "virtual_vram_gb": ("FLOAT", {
                "default": 0.0, "min": 0.0, "max": float(placement.MAX_VIRTUAL_VRAM_GB),
                "step": 0.1, "tooltip":
                f"So many GiB of {what} live off the compute device, on the donor; 0: not said."}),
            "donor_device": (list(names), {"default": "cpu", "tooltip":
                             "Where what is off the compute device lives; cpu is RAM."}),
            "expert_mode_allocations": ("STRING", {"default": "", "tooltip":
                                        f"Where the blocks of {what} lie, {STRING}."})}


def _folder(name, kind):
    return probe.module("folder_paths").get_full_path_or_raise(kind, name)


def _files(kind):
    return probe.module("folder_paths").get_filename_list(kind)


def _embeddings():
    return probe.module("folder_paths").get_folder_paths("embeddings")


def _stock_inputs(name, names, group="required"):
    """The inputs `names` of ComfyUI's own node, as they are in this release. What a later one has
    besides is left to its default."""
    stock = probe.stock_node(name)
    found = stock.INPUT_TYPES().get(group, {}) if stock is not None else {}
    return {name: found[name] for name in names if name in found}


def _said(loaded):
    """What a loader node returns and shows."""
    said = {"tier": loaded.tier, "lines": loaded.text()}
    if loaded.places:
        said["places"] = loaded.places
    if loaded.warm:
        said["warm"] = loaded.warm
    return {"ui": {"distorch": [said]}, "result": loaded.objects}


def _placed(make, **values):
    """What the widgets ask for; what is linked to something else is not known before it runs."""
    return make(**{name: value for name, value in values.items() if value is not None})


class Loader:
    """What all loaders have in common."""

    CATEGORY = CATEGORY
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": cls.own_inputs(),
                "optional": {"keep_loaded": KEEP, "priority": PRIORITY, **cls.placement_inputs(),
                             "eject_models": EJECT}}

    @classmethod
    def own_inputs(cls):
        raise NotImplementedError

    @classmethod
    def placement_inputs(cls):
        return _placement_inputs()

    @classmethod
    def VALIDATE_INPUTS(cls, compute_device=None, virtual_vram_gb=None, donor_device=None,
                        expert_mode_allocations=None):
        # named, so that ComfyUI asks the planner instead of its lists: those are of this machine
        # and of a daemon that is there, and a saved workflow may be of another
        return placement.check(_placed(placement.of, compute_device=compute_device,
                                       virtual_vram_gb=virtual_vram_gb, donor_device=donor_device,
                                       expert_mode_allocations=expert_mode_allocations)) or True

    def load(self, keep_loaded=False, priority=0, compute_device=None, virtual_vram_gb=None,
             donor_device=None, expert_mode_allocations=None, eject_models=False, **inputs):
        wanted = _placed(placement.of, compute_device=compute_device,
                         virtual_vram_gb=virtual_vram_gb, donor_device=donor_device,
                         expert_mode_allocations=expert_mode_allocations)
        return _said(loaders.load(self.job(**inputs), wanted=wanted, eject=eject_models,
                                  keep=keep_loaded, priority=priority))

    def job(self, **inputs):
        raise NotImplementedError

    def files(self, **inputs):
        """What it would read."""
        return self.job(**{name: value for name, value in inputs.items()
                           if probe.takes(self.job, name)}).paths


def _layers(layers):
    """For core's model_options: the layers, where they are not its own."""
    return {} if layers is None else {"custom_operations": layers}


# ---- diffusion models, checkpoints ----

def _dtype_options(weight_dtype):
    import torch

    words = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e4m3fn_fast": torch.float8_e4m3fn,
             "fp8_e5m2": torch.float8_e5m2}
    options = {"dtype": words[weight_dtype]} if weight_dtype in words else {}
    if weight_dtype == "fp8_e4m3fn_fast":
        options["fp8_optimizations"] = True
    return options


class DiffusionModelLoader(Loader):
    DESCRIPTION = ("Load Diffusion Model, from distorchd: other ComfyUI processes, and this one "
                   "after a restart, have it at once.")
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def own_inputs(cls):
        return _stock_inputs("UNETLoader", ("unet_name", "weight_dtype"))

    def job(self, unet_name, weight_dtype="default"):
        sd = probe.module("comfy.sd")
        options = _dtype_options(weight_dtype)

        def by_path(paths):
            return (sd.load_diffusion_model(paths[0], model_options=dict(options)),)

        def by_tensors(files, layers, _encoder_layers):
            tensors, metadata = files[0]
            make = sd.load_diffusion_model_state_dict
            found = make(tensors, model_options={**options, **_layers(layers)},
                         **probe.those_taken(make, metadata=metadata, disable_dynamic=True))
            if found is None:
                raise RuntimeError("its kind is not detected")
            return (found,)

        return loaders.Job([_folder(unet_name, "diffusion_models")], by_path, by_tensors,
                           converts=bool(options))


class CheckpointLoader(Loader):
    DESCRIPTION = ("Load Checkpoint, from distorchd: other ComfyUI processes, and this one after a "
                   "restart, have it at once.")
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def own_inputs(cls):
        return _stock_inputs("CheckpointLoaderSimple", ("ckpt_name",))

    @classmethod
    def placement_inputs(cls):
        names = session.devices()
        found = _placement_inputs("the diffusion model")
        for part, what in (("clip", "the text encoder"), ("vae", "the VAE")):
            found[f"{part}_device"] = _device(what, names)
            found[f"{part}_allocations"] = ("STRING", {"default": "", "tooltip":
                                            f"Where the blocks of {what} lie, {STRING}."})
        return found

    @classmethod
    def VALIDATE_INPUTS(cls, compute_device=None, virtual_vram_gb=None, donor_device=None,
                        expert_mode_allocations=None, clip_device=None, clip_allocations=None,
                        vae_device=None, vae_allocations=None):
        wanted = _placed(placement.of_checkpoint, compute_device=compute_device,
                         virtual_vram_gb=virtual_vram_gb, donor_device=donor_device,
                         expert_mode_allocations=expert_mode_allocations, clip_device=clip_device,
                         clip_allocations=clip_allocations, vae_device=vae_device,
                         vae_allocations=vae_allocations)
        return placement.check(wanted, tuple(placement.PARTS)) or True

    def load(self, ckpt_name, keep_loaded=False, priority=0, eject_models=False, **widgets):
        return _said(loaders.load(self.job(ckpt_name),
                                  wanted=_placed(placement.of_checkpoint, **widgets),
                                  eject=eject_models, keep=keep_loaded, priority=priority))

    def job(self, ckpt_name):
        sd = probe.module("comfy.sd")

        def by_path(paths):
            return sd.load_checkpoint_guess_config(
                paths[0], output_vae=True, output_clip=True,
                embedding_directory=_embeddings())[:3]

        def by_tensors(files, layers, encoder_layers):
            tensors, metadata = files[0]
            make = sd.load_state_dict_guess_config
            found = make(tensors, output_vae=True, output_clip=True,
                         embedding_directory=_embeddings(), model_options=_layers(layers),
                         te_model_options=_layers(encoder_layers),
                         **probe.those_taken(make, metadata=metadata, disable_dynamic=True))
            if found is None:
                raise RuntimeError("its kind is not detected")
            return found[:3]

        return loaders.Job([_folder(ckpt_name, "checkpoints")], by_path, by_tensors)


# ---- text encoders ----

class ClipLoader(Loader):
    """Of one file; below, of more."""

    DESCRIPTION = "Load CLIP, from distorchd: several ComfyUI processes share one copy."
    RETURN_TYPES = ("CLIP",)
    FILES = ("clip_name",)
    STOCK = "CLIPLoader"

    @classmethod
    def own_inputs(cls):
        if cls.STOCK is not None:
            return _stock_inputs(cls.STOCK, (*cls.FILES, "type"))
        return {name: (_files("text_encoders"), {"tooltip": "One of the text encoders."})
                for name in cls.FILES}

    @classmethod
    def INPUT_TYPES(cls):
        found = super().INPUT_TYPES()
        if cls.STOCK is not None:
            device = _stock_inputs(cls.STOCK, ("device",), "optional")
            found["optional"] = {**device, **found["optional"]}
        return found

    def job(self, type=None, device="default", **names):
        import torch

        sd = probe.module("comfy.sd")
        more = {}
        if type is not None:
            more["clip_type"] = getattr(sd.CLIPType, type.upper(), sd.CLIPType.STABLE_DIFFUSION)
        options = {}
        if device == "cpu":
            options["load_device"] = options["offload_device"] = torch.device("cpu")

        def by_path(paths):
            return (sd.load_clip(ckpt_paths=paths, embedding_directory=_embeddings(),
                                 model_options=dict(options), **more),)

        def by_tensors(files, _layer, encoder_layers):
            utils, make = probe.module("comfy.utils"), sd.load_text_encoder_state_dicts
            if encoder_layers is None and hasattr(utils, "convert_old_quants"):
                files = [utils.convert_old_quants(tensors, model_prefix="", metadata=metadata)
                         for tensors, metadata in files]
            return (make([tensors for tensors, _ in files], embedding_directory=_embeddings(),
                         model_options={**_layers(encoder_layers), **options}, **more,
                         **probe.those_taken(make, disable_dynamic=True)),)

        return loaders.Job([_folder(names[name], "text_encoders") for name in self.FILES],
                           by_path, by_tensors)


class DualClipLoader(ClipLoader):
    FILES = ("clip_name1", "clip_name2")
    STOCK = "DualCLIPLoader"


class TripleClipLoader(ClipLoader):
    FILES = ("clip_name1", "clip_name2", "clip_name3")
    STOCK = None


class QuadrupleClipLoader(ClipLoader):
    FILES = ("clip_name1", "clip_name2", "clip_name3", "clip_name4")
    STOCK = None


# ---- GGUF, by the loaders of ComfyUI-GGUF ----

def _gguf(name):
    """Its node, and the module that has it."""
    node = probe.stock_node(name)
    if node is None:
        raise RuntimeError("ComfyUI-GGUF is not installed")
    return node(), probe.module(node.__module__)


class GgufDiffusionModelLoader(Loader):
    DESCRIPTION = "Unet Loader (GGUF), from distorchd. It needs ComfyUI-GGUF."
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def own_inputs(cls):
        return _stock_inputs("UnetLoaderGGUF", ("unet_name",))

    def job(self, unet_name):
        _node, theirs = _gguf("UnetLoaderGGUF")
        make = probe.module("comfy.sd").load_diffusion_model_state_dict

        def by_path(paths):
            found = make(theirs.gguf_sd_loader(paths[0]),
                         model_options={"custom_operations": theirs.GGMLOps()})
            if found is None:
                raise RuntimeError(f"{unet_name}: its kind is not detected")
            return (theirs.GGUFModelPatcher.clone(found),)

        return loaders.Job([_folder(unet_name, "unet_gguf")], by_path, maps_files=True)


class GgufClipLoader(Loader):
    DESCRIPTION = "CLIPLoader (GGUF), from distorchd. It needs ComfyUI-GGUF."
    RETURN_TYPES = ("CLIP",)
    FILES = ("clip_name",)
    STOCK = "CLIPLoaderGGUF"

    @classmethod
    def own_inputs(cls):
        return _stock_inputs(cls.STOCK, (*cls.FILES, "type"))

    def job(self, type="sd3", **names):
        node, _theirs = _gguf(self.STOCK)
        sd = probe.module("comfy.sd")
        kind = getattr(sd.CLIPType, type.upper(), sd.CLIPType.STABLE_DIFFUSION)

        def by_path(paths):
            return (node.load_patcher(paths, kind, node.load_data(paths)),)

        files = [names[name] for name in self.FILES]
        return loaders.Job([_folder(name, "clip_gguf" if name.endswith(".gguf") else
                                    "text_encoders") for name in files], by_path,
                           maps_files=all(name.endswith(".gguf") for name in files))


class GgufDualClipLoader(GgufClipLoader):
    FILES = ("clip_name1", "clip_name2")
    STOCK = "DualCLIPLoaderGGUF"


# ---- what core converts ----

class VaeLoader(Loader):
    DESCRIPTION = "Load VAE, read from distorchd's memory instead of the disk."
    RETURN_TYPES = ("VAE",)

    @classmethod
    def own_inputs(cls):
        return _stock_inputs("VAELoader", ("vae_name",))

    def load(self, vae_name, **inputs):
        if vae_name not in _files("vae"):  # of several files, of none, or of another folder
            stock = probe.stock_node("VAELoader")
            found = getattr(stock(), stock.FUNCTION)(vae_name)
            return _said(loaders.Loaded(found, loaders.STOCK,
                                        [f"{vae_name} is not one file of a VAE"]))
        return super().load(vae_name=vae_name, **inputs)

    def job(self, vae_name):
        sd = probe.module("comfy.sd")

        def make(tensors, metadata):
            vae = sd.VAE(sd=tensors, **probe.those_taken(sd.VAE.__init__, metadata=metadata))
            vae.throw_exception_if_invalid()
            return vae

        def by_path(paths):
            tensors, metadata = loaders.read(paths[0])
            vae = make(tensors, metadata)
            if hasattr(vae.patcher, "cached_patcher_init") and hasattr(sd, "load_vae_patcher"):
                vae.patcher.cached_patcher_init = (sd.load_vae_patcher, (paths[0], metadata, None))
            return (vae,)

        def by_tensors(files, _layers, _encoder_layers):
            return (make(*files[0]),)

        return loaders.Job([_folder(vae_name, "vae")], by_path, by_tensors, converts=True)


class ClipVisionLoader(Loader):
    DESCRIPTION = "Load CLIP Vision, read from distorchd's memory instead of the disk."
    RETURN_TYPES = ("CLIP_VISION",)

    @classmethod
    def own_inputs(cls):
        return _stock_inputs("CLIPVisionLoader", ("clip_name",))

    def job(self, clip_name):
        vision = probe.module("comfy.clip_vision")

        def check(found):
            if found is None:
                raise RuntimeError(f"{clip_name} is no model of CLIP Vision")
            return (found,)

        def by_path(paths):
            return check(vision.load(paths[0]))

        def by_tensors(files, _layers, _encoder_layers):
            tensors = files[0][0]
            more = ({"prefix": "visual.", "convert_keys": True}
                    if "visual.transformer.resblocks.0.attn.in_proj_weight" in tensors else {})
            return check(vision.load_clipvision_from_sd(tensors, **more))

        return loaders.Job([_folder(clip_name, "clip_vision")], by_path, by_tensors, converts=True)


class ControlNetLoader(Loader):
    DESCRIPTION = "Load ControlNet Model, read from distorchd's memory instead of the disk."
    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def own_inputs(cls):
        return _stock_inputs("ControlNetLoader", ("control_net_name",))

    def job(self, control_net_name, model=None):
        controlnet = probe.module("comfy.controlnet")

        def check(found):
            if found is None:
                raise RuntimeError(f"{control_net_name} is no ControlNet")
            return (found,)

        def by_path(paths):
            return check(controlnet.load_controlnet(paths[0], model))

        def by_tensors(files, layers, _encoder_layers):
            tensors, options = _apart(files[0][0], model), _layers(layers)
            if os.path.splitext(control_net_name)[0].endswith(("_shuffle", "_shuffle_fp16")):
                options["global_average_pooling"] = True  # core sees it by the name too
            return check(controlnet.load_controlnet_state_dict(tensors, model=model,
                                                               model_options=options))

        return loaders.Job([_folder(control_net_name, "controlnet")], by_path, by_tensors,
                           converts=True)


def _apart(tensors, model):
    """Of a ControlNet that is a difference to the model: what core adds the model's weights to, in
    place, is no memory of the daemon's."""
    if model is None or "difference" not in tensors:
        return tensors
    names, prefix = model.model_state_dict(), "control_model."
    return {name: value.clone() if name.startswith(prefix) and
            f"diffusion_model.{name[len(prefix):]}" in names else value
            for name, value in tensors.items()}


class DiffControlNetLoader(ControlNetLoader):
    DESCRIPTION = ("Load ControlNet Model (diff): one whose weights are differences to the model's. "
                   "Those that are become copies of this process's.")

    @classmethod
    def own_inputs(cls):
        return _stock_inputs("DiffControlNetLoader", ("model", "control_net_name"))


# ---- managing ----

class Anything(str):
    """The type that matches each."""

    def __ne__(self, other):
        return False


class Manager:
    """Does something once what is connected to `after` is there, and passes that on."""

    CATEGORY = CATEGORY
    FUNCTION = "manage"
    OUTPUT_NODE = True
    RETURN_TYPES = (Anything("*"), "STRING")
    RETURN_NAMES = ("after", "report")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": cls.own_inputs(),
                "optional": {"after": (Anything("*"), {"tooltip":
                             "Do it when this is there. It is passed on unchanged."}),
                             **cls.later_inputs()}}

    @classmethod
    def own_inputs(cls):
        return {}

    @classmethod
    def later_inputs(cls):
        """Those that saved workflows may not have."""
        return {}

    @classmethod
    def IS_CHANGED(cls, **_inputs):
        return float("nan")  # what it does or tells is of this moment

    def manage(self, after=None, **inputs):
        try:
            report = session.call(lambda connection: self.deed(connection, **inputs))
        except Exception as failure:  # the daemon's, or what an input is
            report = f"not done: {failure}"
        return {"ui": {"text": [report]}, "result": (after, report)}

    def deed(self, connection, **inputs):
        raise NotImplementedError


class PinNode(Manager):
    DESCRIPTION = "Never evict a model (or no longer). A file name, a name or an id of distorchd."

    @classmethod
    def own_inputs(cls):
        return {"model": ("STRING", {"default": "", "tooltip":
                          "Its file name, as distorchctl ps shows it."}),
                "pin": ("BOOLEAN", {"default": True, "tooltip": "Off: it may be evicted again."})}

    def deed(self, connection, model, pin=True):
        found = connection.set(model, pin=pin)
        return f"{found.name} is {'pinned' if pin else 'not pinned any more'}"


def _patterns(names):
    """Of a text: a line each or, of a single one, what is between commas."""
    return [one.strip() for one in names.split("\n" if "\n" in names else ",") if one.strip()]


def _folders_of(kind):
    """Where files of a kind of model really lie; none of the folders is inside another."""
    if kind not in probe.model_kinds():
        raise ValueError(f"{kind} is no folder of models here")
    paths = probe.module("folder_paths")
    found = {os.path.realpath(one) for one in paths.get_folder_paths(kind)}
    files = (paths.get_full_path(kind, name) for name in paths.get_filename_list(kind))
    found |= {os.path.realpath(os.path.dirname(one)) for one in files if one}
    return [one for one in sorted(found) if not any(one.startswith(other + os.sep)
                                                    for other in found)]


class UnloadNode(Manager):
    DESCRIPTION = ("Free memory of distorchd selectively: all that is said must hold. What this or "
                   "another process uses goes when it is done with it.")

    @classmethod
    def own_inputs(cls):
        return {"names": ("STRING", {"default": "", "multiline": True, "tooltip":
                          "Patterns such as *vae*, separated by commas or, where names have such, "
                          "one a line; empty: all."}),
                "device": ("STRING", {"default": "", "tooltip":
                           "Only what lies on this device, such as cuda:0; empty: on any."}),
                "idle_minutes": ("INT", {"default": 0, "min": 0, "max": 100000, "tooltip":
                                 "Only what was not used for so long."}),
                "not_kept": ("BOOLEAN", {"default": True, "tooltip":
                             "Leave what somebody keeps or pinned."})}

    @classmethod
    def later_inputs(cls):
        return {"kind": ([ANY, *probe.model_kinds()], {"default": ANY, "tooltip":
                         "Only files of this folder of models."})}

    @classmethod
    def VALIDATE_INPUTS(cls, kind=None):
        return True  # named: another machine's may have other folders, and the report says so

    def deed(self, connection, names="", device="", idle_minutes=0, not_kept=True, kind=ANY):
        patterns = _patterns(names)
        reports = [connection.unload(names=patterns, under=folder, device=device.strip() or None,
                                     idle=idle_minutes * 60 or None, not_kept=not_kept,
                                     all=not patterns)
                   for folder in ([None] if kind == ANY else _folders_of(kind))]
        lines = [f"unloaded {unload.size(sum(report.total_bytes for report in reports))}"]
        for word in ("kept", "unloaded", "held"):
            lines += [f"{word}: {one.name} {unload.size(one.bytes)}, {one.reason}"
                      for report in reports for one in getattr(report, word)]
        return "\n".join(lines)


class MakeRoomNode(Manager):
    DESCRIPTION = ("Have distorchd move what is idle out of the way of what comes next, on a card or "
                   "in RAM. What was moved comes back when the time is over.")

    @classmethod
    def own_inputs(cls):
        return {"device": ("STRING", {"default": "cpu", "tooltip": "Such as cuda:0; cpu is RAM."}),
                "gigabytes": ("FLOAT", {"default": 4.0, "min": 0.1, "max": 4096.0, "step": 0.1,
                                        "tooltip": "GiB that are to be free there."}),
                "minutes": ("INT", {"default": 10, "min": 1, "max": 1440, "tooltip":
                            "After so long the room is the daemon's again."})}

    rooms = {}  # device: the last one there; the next one takes its place

    def deed(self, connection, device="cpu", gigabytes=4.0, minutes=10):
        device = device.strip()
        before = self.rooms.pop(device.lower(), None)
        if before is not None:
            before.release()
        room = connection.reserve(device, int(gigabytes * (1 << 30)), ttl=minutes * 60)
        self.rooms[device.lower()] = room
        moved = ", ".join(f"{one.name} {unload.size(one.bytes)}" for one in room.evicted)
        said = f"room for {unload.size(room.bytes)} on {room.device}"
        return f"{said}; moved: {moved}" if moved else said


class StatusNode(Manager):
    DESCRIPTION = "What distorchd holds, where, and who uses it."

    def deed(self, connection):
        lines = [f"{session.name_of(one.name)}: {unload.size(one.used)} of "
                 f"{unload.size(one.budget)}"
                 for one in connection.devices()]
        for model in connection.list():
            places = " + ".join(f"{session.name_of(place.device)} {unload.size(place.bytes)}"
                                for place in model.where)
            stays = ["in use"] * (model.leases > 0) + ["pinned"] * model.pinned + \
                    ["kept"] * model.keep
            lines.append(f"{model.name} {unload.size(model.bytes)} {places or model.state}"
                         + (f" ({', '.join(stays)})" if stays else ""))
        return "\n".join(lines)


class ResidentFileNode:
    CATEGORY = CATEGORY
    FUNCTION = "path"
    DESCRIPTION = ("The path of a model file in distorchd's memory, for loaders that take one. It is "
                   "good as long as this node's output is.")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"kind": (probe.model_kinds(), {"tooltip":
                                      "The folder of models that it is in."}),
                             "file": ("STRING", {"default": "", "tooltip":
                                      "Its name there, such as flux1-dev.safetensors."})},
                "optional": {"keep_loaded": KEEP, "priority": PRIORITY}}

    _given = weakref.WeakSet()  # the paths that ComfyUI has still
    _n_lost = 0

    @classmethod
    def IS_CHANGED(cls, **_inputs):
        """Once more when paths that it has lead nowhere: a login's folder goes with its end, and
        some tidy up /tmp."""
        lost = [one for one in cls._given if not os.path.exists(one)]
        cls._n_lost += bool(lost)
        cls._given.difference_update(lost)
        return cls._n_lost

    def files(self, kind, file, **_inputs):
        return [_folder(file, kind)]

    def _give(self, path):
        found = Path(path)
        self._given.add(found)
        return found

    def path(self, kind, file, keep_loaded=False, priority=0):
        if kind not in probe.model_kinds():  # it may be connected, and is not checked then
            raise ValueError(f"{kind} is no folder of models")
        found = loaders.load(loaders.Job([_folder(file, kind)],
                                         lambda paths: (self._give(paths[0]),)),
                             keep=keep_loaded, priority=priority)
        return _said(found)


NODES = {
    "DistorchDiffusionModelLoader": (DiffusionModelLoader, "Load Diffusion Model (distorch)"),
    "DistorchCheckpointLoader": (CheckpointLoader, "Load Checkpoint (distorch)"),
    "DistorchCLIPLoader": (ClipLoader, "Load CLIP (distorch)"),
    "DistorchDualCLIPLoader": (DualClipLoader, "DualCLIPLoader (distorch)"),
    "DistorchTripleCLIPLoader": (TripleClipLoader, "TripleCLIPLoader (distorch)"),
    "DistorchQuadrupleCLIPLoader": (QuadrupleClipLoader, "QuadrupleCLIPLoader (distorch)"),
    "DistorchVAELoader": (VaeLoader, "Load VAE (distorch)"),
    "DistorchCLIPVisionLoader": (ClipVisionLoader, "Load CLIP Vision (distorch)"),
    "DistorchControlNetLoader": (ControlNetLoader, "Load ControlNet Model (distorch)"),
    "DistorchDiffControlNetLoader": (DiffControlNetLoader,
                                     "Load ControlNet Model (diff, distorch)"),
    "DistorchResidentFile": (ResidentFileNode, "Resident file (distorch)"),
    "DistorchPin": (PinNode, "Pin (distorch)"),
    "DistorchUnload": (UnloadNode, "Unload (distorch)"),
    "DistorchMakeRoom": (MakeRoomNode, "Make room (distorch)"),
    "DistorchStatus": (StatusNode, "Status (distorch)"),
}

OF_GGUF = {
    "DistorchGGUFDiffusionModelLoader": (GgufDiffusionModelLoader, "Unet Loader (GGUF, distorch)"),
    "DistorchGGUFCLIPLoader": (GgufClipLoader, "CLIPLoader (GGUF, distorch)"),
    "DistorchGGUFDualCLIPLoader": (GgufDualClipLoader, "DualCLIPLoader (GGUF, distorch)"),
}


if "comfyuigguf" in probe.packs():
    NODES.update(OF_GGUF)

NODE_CLASS_MAPPINGS = {name: node for name, (node, _title) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_node, title) in NODES.items()}
