# SPDX-License-Identifier: Apache-2.0
"""Models whose parameters are the daemon's memory: how they are made so, and how they stay so.

The mapping is private and copy-on-write, so whatever a node does in place harms nobody else. The
guard is for this process: a parameter that something is about to write to becomes a copy first,
and the mapped one takes its place again once that is undone.
"""
import contextlib

from . import probe

MAPPED = "distorch_mapped"  # on the model: {key: mapped parameter}
CORE_DTYPE = "distorch_core_dtype"  # on a mapped parameter: the type it has in core, if another


def is_mapped(tensor, extents):
    """Do the bytes lie in one of the (begin, end) of addresses?"""
    address = tensor.data_ptr()
    return any(begin <= address and address + tensor.nbytes <= end for begin, end in extents)


def extents_of(tensors):
    """Where the tensors lie, as few (begin, end) as that takes."""
    found = []
    for begin, end in sorted((one.data_ptr(), one.data_ptr() + one.nbytes)
                             for one in tensors if one.nbytes > 0):
        if found and begin <= found[-1][1] + (1 << 20):
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def is_quantised(parameter):
    """Of core's kind that has its data and scales inside."""
    return hasattr(parameter, "_qdata") and hasattr(parameter, "_params")


def is_ggml(parameter):
    """Of the kind of ComfyUI-GGUF: bytes, with their type and shape beside them."""
    return hasattr(parameter, "tensor_type") and hasattr(parameter, "tensor_shape")


def has_quantised(model):
    return any(is_quantised(parameter) for parameter in model.parameters())


def _fits(value, current):
    return (current is not None and value.shape == current.shape and
            value.device == current.device and value.is_contiguous())


def _suits(value, current):
    return _fits(value, current) and value.dtype == current.dtype


def _copy(mapped):
    """Of this process, in the type that core would have given it."""
    return mapped.detach().to(getattr(mapped, CORE_DTYPE, mapped.dtype), copy=True)


def assigning(operations, widens):
    """The class of layers `operations` of core, but that they take what suits them as it is instead
    of copying it, as long as its `takes` is true. `widens`: also what core would make a wider type
    of; as they cast at use, they compute the same. Not so an embedding, whose weight's type is that
    of what it returns."""
    import torch

    single, half = {torch.float32}, {torch.float16, torch.bfloat16}
    wider = {torch.float16: single, torch.bfloat16: single,
             torch.float8_e4m3fn: single | half, torch.float8_e5m2: single | half}

    def taken(layer, value, current):
        is_cast = (_fits(value, current) and widens and
                   current.dtype in wider.get(value.dtype, ()) and
                   not isinstance(layer, torch.nn.Embedding))
        if not is_cast and not _suits(value, current):
            return None
        found = torch.nn.Parameter(value, requires_grad=False)
        if is_cast:
            setattr(found, CORE_DTYPE, current.dtype)
        return found

    class Assigns:
        def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys,
                                  unexpected_keys, error_msgs):
            done = set()
            for name, current in list(self._parameters.items()) if found.takes else ():
                value = state_dict.get(prefix + name)
                made = taken(self, value, current) if value is not None else None
                if made is not None:
                    self._parameters[name] = made
                    done.add(prefix + name)
            rest = {key: value for key, value in state_dict.items() if key not in done}
            missing = []
            super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing,
                                          unexpected_keys, error_msgs)
            missing_keys.extend(key for key in missing if key not in done)

    members = {}
    for name in dir(operations):
        layer = getattr(operations, name)
        if isinstance(layer, type) and issubclass(layer, torch.nn.Module):
            members[name] = type(name, (Assigns, layer), {})
    found = type("DistorchOperations", (operations,), {**members, "takes": True})
    return found


def take_stragglers(module, tensors):
    """What was made outside of core's layers takes what suits it too, if that is what core has made
    it: files have several models, and core may have changed one."""
    import torch

    matching = {name: tensors[name] for name, current in module.state_dict().items()
                if name in tensors and current is not tensors[name] and
                current.data_ptr() != tensors[name].data_ptr() and
                _suits(tensors[name], current) and torch.equal(tensors[name], current)}
    if matching:
        module.load_state_dict(matching, strict=False, assign=True)
        for parameter in module.parameters():
            parameter.requires_grad_(False)


def count_mapped(module, extents):
    """(parameters and buffers that are the daemon's memory, all of them)."""
    all_of_it = list(module.state_dict().values())
    return sum(1 for one in all_of_it if is_mapped(one, extents)), len(all_of_it)


def _core_dtype(layer, name, current):
    """The type that core would give it as it pages it in, or None: the one that it has."""
    found = getattr(layer, f"{name}_comfy_model_dtype", None)
    is_plain = not (is_quantised(current) or is_ggml(current) or hasattr(current, CORE_DTYPE))
    return found if is_plain and found not in (None, current.dtype) else None


def convert_as_core(module):
    """Where core pages weights by itself, it puts them into a model in the file's types, also into
    one that it does not page. That one cannot compute so: here they get the model's own."""
    import torch

    for layer in module.modules():
        for table in (layer._parameters, layer._buffers):
            for name, current in table.items():
                kind = None if current is None else _core_dtype(layer, name, current)
                if kind is not None:
                    made = current.detach().to(kind)
                    table[name] = (torch.nn.Parameter(made, requires_grad=False)
                                   if table is layer._parameters else made)


def reads_fast(patcher):
    """What core pages out of the daemon's memory needs no second, pinned copy in this process,
    which it keeps of what lies on a slow disk."""
    if hasattr(patcher, "fast_disk"):
        patcher.fast_disk = True
        for pins in getattr(patcher.model, "dynamic_pins", {}).values():
            if "fast_disk" in pins:
                pins["fast_disk"] = True


def calm(model):
    """Core makes quantised parameters anew whenever it moves them, of tensors that nodes made in
    inference mode; outside of that, as when memory is freed between prompts, it cannot."""
    import torch

    return torch.inference_mode(True) if has_quantised(model) else contextlib.nullcontext()


class Guard:
    """Goes before a ModelPatcher's class. Its model has MAPPED."""

    def _free(self, key):
        """Before something is written into the parameter: a copy takes its place."""
        utils = probe.module("comfy.utils")
        mapped = getattr(self.model, MAPPED, {}).get(key)
        if mapped is not None and utils.get_attr(self.model, key) is mapped:
            utils.set_attr_param(self.model, key, _copy(mapped))

    def _bind(self, except_for=()):
        """Once it is undone: the mapped one again, but where something still is."""
        utils = probe.module("comfy.utils")
        for key, mapped in getattr(self.model, MAPPED, {}).items():
            if key in self.backup or key in self.hook_backup or key in except_for:
                continue
            if utils.get_attr(self.model, key) is not mapped:
                utils.set_attr(self.model, key, mapped)

    def _calm(self):
        return calm(self.model)

    def clone(self, *args, **kwargs):
        """Some packs make a clone of their own class. One over another model, as core makes for
        other cards, has nothing of the mapping."""
        found = super().clone(*args, **kwargs)
        if found.model is self.model:
            become(found, type(self).guard)
        elif isinstance(found, Guard):
            found.__class__ = next(kind for kind in type(found).__mro__
                                   if not issubclass(kind, Guard))
        return found

    def load(self, *args, **kwargs):
        with self._calm():
            return super().load(*args, **kwargs)

    def partially_unload(self, *args, **kwargs):
        with self._calm():
            return super().partially_unload(*args, **kwargs)

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False, *args, **kwargs):
        mapped = getattr(self.model, MAPPED, {}).get(key)
        is_inplace = inplace_update or self.weight_inplace_update
        is_rounded = hasattr(mapped, CORE_DTYPE)  # it would be, to its type
        if (is_inplace or is_rounded) and (key in self.patches or args or kwargs):
            self._free(key)
        return super().patch_weight_to_device(key, device_to, inplace_update, *args, **kwargs)

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, *args, **kwargs):
        if key in combined_patches:
            self._free(key)
        return super().patch_hook_weight_to_device(hooks, combined_patches, key, *args, **kwargs)

    def patch_cached_hook_weights(self, cached_weights, key, *args, **kwargs):
        self._free(key)
        return super().patch_cached_hook_weights(cached_weights, key, *args, **kwargs)

    def unpatch_hooks(self, *args, **kwargs):
        found = super().unpatch_hooks(*args, **kwargs)
        self._bind()
        return found

    def unpatch_model(self, device_to=None, unpatch_weights=True, *args, **kwargs):
        if unpatch_weights:
            self._bind()  # first: what is on the host already is not copied to it
        with self._calm():
            found = super().unpatch_model(device_to, unpatch_weights, *args, **kwargs)
        if unpatch_weights:
            self._bind()  # what had a backup is back now
        return found


def guard(patcher, extents):
    """From now on the patcher, and all that is cloned from it, keep the mapping in place."""
    mapped = {key: parameter for key, parameter in patcher.model.named_parameters()
              if is_mapped(parameter, extents)}
    setattr(patcher.model, MAPPED, mapped)
    become(patcher, Guard)


def become(patcher, guard_kind):
    """Put one of the guards before the patcher's class."""
    kind = type(patcher)
    if not issubclass(kind, guard_kind):
        patcher.__class__ = type("Distorch" + kind.__name__, (guard_kind, kind),
                                 {"guard": guard_kind})
