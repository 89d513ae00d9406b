# SPDX-License-Identifier: Apache-2.0
"""What the pack calls and overrides of ComfyUI, as small as it can be: with the signatures of three
generations, early 2025, October 2025 and August 2026, each without a parameter that it had not.

A model here is whatever a state dict says: each two-dimensional `….weight` is a layer of the
operations that were asked for, everything else a parameter outside of them.
"""
import collections
import pathlib
import types

import torch


class Interrupted(Exception):
    pass


class InterruptedOf2026(BaseException):
    """No `except Exception` takes it for a failure."""


# ---- layers, with the type of their weights or that of what they are given ----

class Plain:
    class Linear(torch.nn.Linear):
        comfy_cast_weights = False

        def reset_parameters(self):
            pass


class Casting(Plain):
    class Linear(Plain.Linear):
        comfy_cast_weights = True

        def forward(self, given):
            bias = self.bias.to(given.dtype) if self.bias is not None else None
            return torch.nn.functional.linear(given, self.weight.to(given.dtype), bias)


# ---- a model ----

class Net(torch.nn.Module):
    def __init__(self, shapes, operations, dtype):
        super().__init__()
        for name, shape in shapes.items():
            *path, last = name.split(".")
            if last == "bias" and len(shapes.get(f"{'.'.join(path)}.weight", ())) == 2:
                continue  # its layer has it
            at = self
            for part in path[:-1] if last == "weight" and len(shape) == 2 else path:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            if last == "weight" and len(shape) == 2:
                at.add_module(path[-1], operations.Linear(
                    shape[1], shape[0], bias=f"{'.'.join(path)}.bias" in shapes, dtype=dtype))
            else:
                at.register_parameter(last, torch.nn.Parameter(torch.rand(shape, dtype=dtype)))

    def forward(self, given):
        total = given.sum()
        for _name, module in self.named_modules():
            if isinstance(module, torch.nn.Linear):
                total = total + module(torch.linspace(-1, 1, module.in_features)).square().sum()
            else:
                for parameter in module.parameters(recurse=False):
                    total = total + parameter.float().square().sum()
        return given * total


class Model(torch.nn.Module):
    def __init__(self, tensors, operations):
        super().__init__()
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        self.diffusion_model = Net(shapes, operations or Plain, torch.float32)
        self.device = torch.device("cpu")

    def apply_model(self, x, t, c_crossattn=None, y=None):
        return self.diffusion_model(x)


# ---- utils ----

def get_attr(obj, attr):
    for name in attr.split("."):
        obj = getattr(obj, name)
    return obj


def set_attr(obj, attr, value):
    *path, name = attr.split(".")
    for part in path:
        obj = getattr(obj, part)
    before = getattr(obj, name)
    setattr(obj, name, value)
    return before


def set_attr_param(obj, attr, value):
    return set_attr(obj, attr, torch.nn.Parameter(value, requires_grad=False))


def set_attr_param_of_2026(obj, attr, value):
    if value.is_inference() and not torch.is_inference_mode_enabled():
        value = value.clone()
    return set_attr_param(obj, attr, value)


def copy_to_param(obj, attr, value):
    get_attr(obj, attr).data.copy_(value)


def read_file(path):
    from safetensors.torch import load_file

    return load_file(path)


class Bar:
    def __init__(self, total):
        self.total = total

    def update_absolute(self, value, total=None, preview=None):
        assert value <= (total or self.total)


# ---- the patcher: a patch is added to its weight, a hook's too ----

Backup = collections.namedtuple("Backup", "weight inplace_update")


class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        self.model, self.size = model, size
        self.load_device, self.offload_device = load_device, offload_device
        self.weight_inplace_update = weight_inplace_update
        self.patches, self.backup = {}, {}
        self.hook_patches, self.hook_backup, self.cached_hook_patches = {}, {}, {}
        self.offloaded = set()  # the names of layers that the last loads had no room for
        model.model_loaded_weight_memory = 0

    def is_dynamic(self):
        return False

    def clone(self):
        return self._clone_as(self.__class__)

    def _clone_as(self, kind):
        found = kind(self.model, self.load_device, self.offload_device, self.size,
                     weight_inplace_update=self.weight_inplace_update)
        found.patches = {key: list(value) for key, value in self.patches.items()}
        found.backup, found.hook_backup = self.backup, self.hook_backup
        return found

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        names = self.model.state_dict()
        for key, patch in patches.items():
            if key in names:
                self.patches.setdefault(key, []).append((strength_patch, patch[0]))
        return [key for key in patches if key in names]

    def _patched(self, key):
        weight = get_attr(self.model, key)
        found = weight.to(torch.float32, copy=True)
        for strength, difference in self.patches.get(key, ()):
            found += strength * difference
        return weight, found.to(weight.dtype)

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
        if key not in self.patches:
            return
        self._patch(key, inplace_update or self.weight_inplace_update)

    def _patch(self, key, inplace):
        weight, found = self._patched(key)
        if key not in self.backup:
            self.backup[key] = Backup(weight.to(self.offload_device, copy=inplace), inplace)
        if inplace:
            copy_to_param(self.model, key, found)
        else:
            set_attr_param(self.model, key, found)

    def _layers(self):
        """[(bytes, name, layer, names of its parameters)]"""
        return [(sum(one.nbytes for one in layer._parameters.values() if one is not None), name,
                 layer, [key for key, one in layer._parameters.items() if one is not None])
                for name, layer in self.model.named_modules() if layer._parameters]

    def _load_list(self):
        return self._layers()

    def model_size(self):
        return sum(one.nbytes for one in self.model.parameters())

    def loaded_size(self):
        return self.model.model_loaded_weight_memory

    def current_loaded_device(self):
        return self.model.device

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False,
             full_load=False):
        """Layers that do not fit go without a patched weight of their own: they are patched as they
        compute, which this has not, so they have to be able to cast."""
        self.unpatch_hooks()
        used = 0
        for entry in self._load_list():
            nbytes, name, layer, names = entry[-4:]
            used += nbytes
            if not full_load and used > lowvram_model_memory > 0:
                self.offloaded.add(name)
                assert layer.comfy_cast_weights, f"{name} cannot cast"
            for one in names:
                self.patch_weight_to_device(f"{name}.{one}", device_to=device_to)
        self.model.model_loaded_weight_memory = self.model_size()

    def patch_model(self, device_to=None, lowvram_model_memory=0, load_weights=True,
                    force_patch_weights=False):
        if load_weights:
            self.load(device_to, lowvram_model_memory=lowvram_model_memory,
                      force_patch_weights=force_patch_weights,
                      full_load=lowvram_model_memory == 0)
        return self.model

    def partially_unload(self, device_to, memory_to_free=0):
        return 0

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if not unpatch_weights:
            return
        self.unpatch_hooks()
        for key, (weight, inplace) in self.backup.items():
            (copy_to_param if inplace else set_attr_param)(self.model, key, weight)
        self.backup.clear()
        self.model.to(device_to)

    def patch_hooks(self, hooks):
        """`hooks` is a name: what is added to which weights stands in hook_patches."""
        self.unpatch_hooks()
        patches = self.hook_patches.get(hooks, {})
        cached = self.cached_hook_patches.get(hooks)
        original = dict.fromkeys(patches)
        for key in patches:
            if cached is not None:
                self.patch_cached_hook_weights(cached_weights=cached, key=key, memory_counter=None)
            else:
                self.patch_hook_weight_to_device(hooks=hooks, combined_patches=patches, key=key,
                                                 original_weights=original, memory_counter=None)

    def patch_cached_hook_weights(self, cached_weights, key, memory_counter):
        self._back_up_for_hooks(key)
        copy_to_param(self.model, key, cached_weights[key])

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, original_weights,
                                    memory_counter):
        self._back_up_for_hooks(key)
        del original_weights[key]
        found = get_attr(self.model, key).to(torch.float32, copy=True) + combined_patches[key]
        copy_to_param(self.model, key, found)
        self.cached_hook_patches.setdefault(hooks, {})[key] = found

    def _back_up_for_hooks(self, key):
        if key not in self.hook_backup:
            self.hook_backup[key] = get_attr(self.model, key).to("cpu", copy=True)

    def unpatch_hooks(self, whitelist_keys_set=None):
        for key in list(self.hook_backup):
            if not whitelist_keys_set or key in whitelist_keys_set:
                copy_to_param(self.model, key, self.hook_backup.pop(key))


class ModelPatcherOf2026(ModelPatcher):
    def clone(self, disable_dynamic=False, model_override=None, force_deepcopy=False):
        assert model_override is None and not force_deepcopy
        return self._clone_as(self.__class__)

    def _load_list(self, for_dynamic=False, default_device=None):
        return [(0, *entry) for entry in self._layers()]  # what it takes off the card, first

    def partially_unload(self, device_to, memory_to_free=0, force_patch_weights=False):
        return 0

    def partially_unload_ram(self, ram_to_unload):
        return 0

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False,
                               return_weight=False, force_cast=False):
        if key not in self.patches and not force_cast:
            return get_attr(self.model, key)
        if return_weight:
            return self._patched(key)[1]
        self._patch(key, inplace_update or self.weight_inplace_update)


class PagingPatcher(ModelPatcherOf2026):
    """Of a model that core pages by itself. Later releases ask how fast the disk is that it is on:
    what a slow one has is kept in RAM too, pinned."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fast_disk = False
        self.model.dynamic_pins = {self.load_device: {"fast_disk": False, "active": False}}

    def is_dynamic(self):
        return True


# ---- the loaders ----

class Comfy:
    """One generation: `modules` by name. What its loaders were given is in `seen`."""

    PREFIX = "model.diffusion_model."
    patcher = ModelPatcher
    interrupted = Interrupted
    set_attr_param = staticmethod(set_attr_param)

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.seen = []
        self.modules = {}
        self.sd = self.module("comfy.sd", **self.loaders(), VAE=self.vae(), CLIPType=self.types())
        package = self.module("comfy", sd=self.sd)
        package.__path__ = []
        self.ops = self.module("comfy.ops", disable_weight_init=Plain, manual_cast=Casting)
        self.utils = self.module(
            "comfy.utils", get_attr=get_attr, set_attr=set_attr, copy_to_param=copy_to_param,
            set_attr_param=self.set_attr_param, load_torch_file=self.file_reader(), ProgressBar=Bar)
        self.management = self.module(
            "comfy.model_management", InterruptProcessingException=self.interrupted,
            throw_exception_if_processing_interrupted=lambda: None,
            get_torch_device=lambda: torch.device("cpu"))
        self.module("folder_paths", folder_names_and_paths={},
                    get_full_path_or_raise=lambda kind, name: str(self.folder / name),
                    get_filename_list=lambda kind: sorted(p.name for p in self.folder.iterdir()),
                    get_folder_paths=lambda kind: [str(self.folder)])
        self.module("nodes", NODE_CLASS_MAPPINGS={})

    @staticmethod
    def types():
        return types.SimpleNamespace(STABLE_DIFFUSION=1)

    def module(self, name, **members):
        found = self.modules[name] = types.ModuleType(name)
        found.__dict__.update(members)
        return found

    def build(self, tensors, model_options):
        if not any(name.startswith(self.PREFIX) for name in tensors):
            return None
        inside = {name[len(self.PREFIX):]: tensors.pop(name) for name in list(tensors)
                  if name.startswith(self.PREFIX)}
        model = Model(inside, model_options.get("custom_operations"))
        model.diffusion_model.load_state_dict(inside)
        cpu = torch.device("cpu")
        return self.patcher(model, load_device=cpu, offload_device=cpu)

    def encoder(self, state_dicts, model_options):
        net = Net({name: tuple(value.shape) for one in state_dicts for name, value in one.items()},
                  model_options.get("custom_operations") or Plain, torch.float32)
        for one in state_dicts:
            net.load_state_dict(one, strict=False)
        net.requires_grad_(False)
        cpu = torch.device("cpu")
        return types.SimpleNamespace(cond_stage_model=net, patcher=self.patcher(net, cpu, cpu))

    def file_reader(self):
        def load_torch_file(ckpt, safe_load=False, device=None):
            return read_file(ckpt)

        return load_torch_file

    def vae(self):
        comfy = self

        class VAE:
            def __init__(self, sd=None, device=None, config=None, dtype=None):
                comfy.seen.append(("vae", None))
                self.first_stage_model = Net({k: tuple(v.shape) for k, v in sd.items()}, Plain,
                                             torch.float32)
                self.first_stage_model.load_state_dict(sd)
                self.patcher = types.SimpleNamespace()

            def throw_exception_if_invalid(self):
                pass

        return VAE

    def shared_loaders(self):
        def load_diffusion_model(unet_path, model_options={}):
            self.seen.append(("path", unet_path))
            return self.build(read_file(unet_path), model_options)

        def load_clip(ckpt_paths, embedding_directory=None, clip_type=1, model_options={}):
            self.seen.append(("path", ckpt_paths[0]))
            return self.encoder([read_file(one) for one in ckpt_paths], model_options)

        def load_text_encoder_state_dicts(state_dicts=[], embedding_directory=None, clip_type=1,
                                          model_options={}):
            return self.encoder(state_dicts, model_options)

        def load_checkpoint_guess_config(
                ckpt_path, output_vae=True, output_clip=True, output_clipvision=False,
                embedding_directory=None, output_model=True, model_options={}, te_model_options={}):
            self.seen.append(("path", ckpt_path))
            return self.build(read_file(ckpt_path), model_options), None, None, None

        return {one.__name__: one for one in (
            load_diffusion_model, load_clip, load_text_encoder_state_dicts,
            load_checkpoint_guess_config)}

    def loaders(self):
        def load_diffusion_model_state_dict(sd, model_options={}):
            return self.build(sd, model_options)

        def load_state_dict_guess_config(
                sd, output_vae=True, output_clip=True, output_clipvision=False,
                embedding_directory=None, output_model=True, model_options={}, te_model_options={}):
            return self.build(sd, model_options), None, None, None

        return {**self.shared_loaders(),
                "load_diffusion_model_state_dict": load_diffusion_model_state_dict,
                "load_state_dict_guess_config": load_state_dict_guess_config}


class WithMetadata(Comfy):
    """Files' metadata are read and passed on, but not to the diffusion model alone."""

    def file_reader(self):
        def load_torch_file(ckpt, safe_load=False, device=None, return_metadata=False):
            return (read_file(ckpt), {"a": "b"}) if return_metadata else read_file(ckpt)

        return load_torch_file

    def vae(self):
        comfy = self

        class VAE(super().vae()):
            def __init__(self, sd=None, device=None, config=None, dtype=None, metadata=None):
                super().__init__(sd, device, config, dtype)
                comfy.seen.append(("vae", metadata))

        return VAE

    def loaders(self):
        def load_state_dict_guess_config(
                sd, output_vae=True, output_clip=True, output_clipvision=False,
                embedding_directory=None, output_model=True, model_options={}, te_model_options={},
                metadata=None):
            self.seen.append(("checkpoint", metadata))
            return self.build(sd, model_options), None, None, None

        return {**super().loaders(), "load_state_dict_guess_config": load_state_dict_guess_config}


class WithPaging(WithMetadata):
    """Core may page weights by itself; most calls have more parameters."""

    patcher = ModelPatcherOf2026
    interrupted = InterruptedOf2026
    set_attr_param = staticmethod(set_attr_param_of_2026)

    def __init__(self, folder):
        super().__init__(folder)
        self.memory = self.module("comfy.memory_management", aimdo_enabled=False)

    def loaders(self):
        def load_diffusion_model_state_dict(sd, model_options={}, metadata=None,
                                            disable_dynamic=False):
            self.seen.append(("diffusion model", metadata))
            return self.build(sd, model_options)

        return {**super().loaders(),
                "load_diffusion_model_state_dict": load_diffusion_model_state_dict}


GENERATIONS = {"early 2025": Comfy, "October 2025": WithMetadata, "August 2026": WithPaging}
