# SPDX-License-Identifier: Apache-2.0
"""Models whose parameters lie where the daemon has placed them, over several devices.

Core builds the model as it always does; then each parameter that has the bytes of a tensor of the
file becomes that tensor. What lies on the device that computes is used where it is; the rest, on
donors, stays in their memory and is cast when a layer needs it, as core does it for layers that do
not fit its card. Memory on a device is the daemon's: core neither makes room for it nor frees it.
"""
import bisect
import collections
import dataclasses

from . import parking, patcher, probe
from .patcher import CORE_DTYPE, MAPPED, Guard

PLACES = "distorch_places"  # on the model: {key: the daemon's name of the device}
COMPUTE = "distorch_compute"  # on the model: that of the device that computes; None: core's own
ALL_OF_IT = 1e32  # bytes; core takes it for a card that everything fits
SCALES = {"_scale": ".scale_weight"}  # as older files name what core knows by the first

_Backup = collections.namedtuple("Dimension", ["weight", "inplace_update"])  # as core has it


# ---- which tensor is which parameter ----

class Tensors:
    """Those of a model's files, by address and by the names that a module may have for them: core
    takes from the front of a name or puts something there. Where it renames them altogether, their
    bytes tell."""

    def __init__(self, files):
        """[({name: tensor}, {name: device})], one of each file."""
        self._names, self._ends, self._samples = {}, {}, None
        self._found = set()  # addresses
        self._extents = sorted((value.data_ptr(), value.data_ptr() + value.nbytes, devices[name])
                               for values, devices in files
                               for name, value in values.items() if value.nbytes > 0)
        for values, _devices in files:
            for name, value in values.items():
                self._names.setdefault(name, []).append(value)
                for end in _ends(name):
                    self._ends.setdefault(end, []).append(value)

    def _called(self, name):
        """What may be the one of a parameter of this name."""
        found = [*self._names.get(name, ()), *self._ends.get(name, ())]
        for end in _ends(name):
            found += self._names.get(end, ())
        return found

    def find(self, names, current, fits=lambda _value: True):
        """The first that is called one of the names, fits and has the bytes of `current`, or
        None."""
        return self._first((value for name in names for value in self._called(name)), current, fits)

    def find_alike(self, _names, current, fits=lambda _value: True):
        """As `find`, whatever it is called; each is found once, as what else has."""
        if self._samples is None:
            self._samples = collections.defaultdict(list)
            for name, values in self._names.items():
                for value in values:
                    for part in (value, *_thirds(name, value)):
                        self._samples[_sample(part)].append(part)
        return self._first((value for value in self._samples.get(_sample(current), ())
                            if value.data_ptr() not in self._found), current, fits)

    def own(self, current):
        """`current`, if it has been one of them from the start, or a part of one."""
        if patcher.is_quantised(current) or self.device_of(current) is None:
            return None
        self._found.add(current.data_ptr())
        return current

    def _first(self, values, current, fits):
        found = next((value for value in values if fits(value) and _is_same(value, current)), None)
        if found is not None:
            self._found.add(found.data_ptr())
        return found

    def device_of(self, tensor):
        """Where its bytes lie, or None where they are none of these."""
        at = bisect.bisect_right(self._extents, (tensor.data_ptr(), float("inf"))) - 1
        if at < 0 or tensor.nbytes == 0:
            return None
        begin, end, device = self._extents[at]
        is_inside = begin <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end
        return device if is_inside else None


class Moved(Tensors):
    """The same tensors in other memory, found by where they lay: to compare them would bring
    what lies on cards to RAM, and the reverse, just when memory is short."""

    def __init__(self, before, after):
        super().__init__(after)
        self._moves = sorted(((value.data_ptr(), value.data_ptr() + value.nbytes, now[name])
                              for (values, _devices), (now, _) in zip(before, after)
                              for name, value in values.items() if value.nbytes > 0),
                             key=lambda move: move[:2])

    def find(self, _names, current, _fits=None):
        import torch

        raw = current.as_subclass(torch.Tensor)
        at = bisect.bisect_right(self._moves, (raw.data_ptr(), float("inf"))) - 1
        if at < 0 or not raw.is_contiguous():
            return None
        begin, end, now = self._moves[at]
        offset = raw.data_ptr() - begin  # core may have made several parameters of one tensor
        if begin + offset + raw.nbytes > end:
            return None
        return _as_bytes(now)[offset:offset + raw.nbytes].view(raw.dtype).reshape(raw.shape)


def _ends(name):
    """c.d and d of b.c.d"""
    at = name.find(".")
    while at >= 0:
        yield name[at + 1:]
        at = name.find(".", at + 1)


def _thirds(name, tensor):
    """Queries, keys and values, which core has apart and some files in one."""
    is_one = "in_proj" in name and tensor.ndim > 0 and tensor.shape[0] % 3 == 0
    return tensor.chunk(3) if is_one and tensor.nbytes > 0 else ()


def _as_bytes(tensor):
    import torch

    return tensor.as_subclass(torch.Tensor).contiguous().reshape(-1).view(torch.uint8)


def _sample(tensor):
    """Its size and some of its bytes: what differs in them need not be compared."""
    if tensor.nbytes == 0:
        return 0, b""
    raw = _as_bytes(tensor)
    step = max(1, tensor.nbytes // 64)
    return tensor.nbytes, raw[::step][:64].cpu().numpy().tobytes()


def _is_same(value, current):
    """Bit for bit, wherever they lie."""
    import torch

    if value.nbytes != current.nbytes or value.nbytes == 0 or not value.is_contiguous():
        return False
    if value.device == current.device and value.data_ptr() == current.data_ptr():
        return True
    return torch.equal(_as_bytes(value).to(current.device), _as_bytes(current))


def _plain(name, current, find):
    """The parameter or buffer that a tensor is, if that is what core has made it."""
    import torch

    value = find([name], current.detach(), lambda value: value.shape == current.shape and
                 value.dtype == current.dtype)
    if value is None:
        return None
    is_parameter = isinstance(current, torch.nn.Parameter)
    return torch.nn.Parameter(value, requires_grad=False) if is_parameter else value


def _quantised(name, current, find):
    """As `_plain`, for core's quantised kind: its data and scales are the file's tensors."""
    import torch

    stem, found = name.rpartition(".")[0], {}
    stored = current.layout_cls.state_dict_tensors(current._qdata, current._params)
    for suffix, tensor in stored.items():
        value = find([name + suffix, stem + SCALES.get(suffix, suffix)], tensor)
        if value is not None:
            found[suffix] = value.view(tensor.dtype).reshape(tensor.shape)
    if "" not in found:
        return None
    changed = {field.name: found[suffix] for suffix, tensor in stored.items() if suffix in found
               for field in dataclasses.fields(current._params)
               if getattr(current._params, field.name) is tensor}
    params = dataclasses.replace(current._params, **changed)
    made = torch.nn.Parameter(type(current)(found[""], current._layout_cls, params),
                              requires_grad=False)
    made._qdata, made._params = found[""], params  # wrapping has made copies of the scales
    return made


def _ggml(name, current, find):
    """As `_plain`, for ComfyUI-GGUF's kind."""
    import torch

    value = find([name], current)
    if value is None:
        return None
    raw = current.as_subclass(torch.Tensor)
    found = type(current)(_as_bytes(value).view(raw.dtype).reshape(raw.shape),
                          tensor_type=current.tensor_type, tensor_shape=current.tensor_shape,
                          patches=getattr(current, "patches", []))
    if hasattr(current, "is_largest_weight"):
        found.is_largest_weight = current.is_largest_weight
    return torch.nn.Parameter(found, requires_grad=False)


def _made(name, current, find):
    """What takes the place of a parameter or buffer; None: core has converted it. `find` is one of
    the two of Tensors."""
    if patcher.is_quantised(current):
        return _quantised(name, current, find)
    if current.nbytes == 0 or current.is_meta:
        return None
    return (_ggml if patcher.is_ggml(current) else _plain)(name, current, find)


def _parameters(module):
    """[(name, parameter)] of all that lie in it."""
    return [(f"{prefix}.{name}" if prefix else name, current)
            for prefix, layer in module.named_modules()
            for name, current in layer._parameters.items() if current is not None]


def _buffers(module):
    """[(name, buffer)] of those that files have."""
    return [(f"{prefix}.{name}" if prefix else name, current)
            for prefix, layer in module.named_modules()
            for name, current in layer._buffers.items()
            if current is not None and name not in layer._non_persistent_buffers_set]


def bind(one, module, tensors):
    """Bind the parameters and buffers of `module`, in a ModelPatcher's model, to the Tensors that
    they are. Returns {device: how many}, with parameters that core has converted under None."""
    import torch

    utils, model = probe.module("comfy.utils"), one.model
    within = next((name for name, each in model.named_modules() if each is module), "")
    table, places = dict(getattr(model, MAPPED, {})), dict(getattr(model, PLACES, {}))
    counts = collections.Counter()

    def take(name, made):
        key = f"{within}.{name}" if within else name
        utils.set_attr(model, key, made)
        table[key] = made
        places[key] = tensors.device_of(made)
        counts[places[key]] += 1

    left = []
    for name, current in [*_parameters(module), *_buffers(module)]:
        made = tensors.own(current)
        if made is None:
            made = _made(name, current, tensors.find)
        if made is None:
            left.append((name, current))
        else:
            take(name, made)
    for name, current in left:
        made = _made(name, current, tensors.find_alike)
        if made is not None:
            take(name, made)
        else:
            counts[None] += isinstance(current, torch.nn.Parameter)
    setattr(model, MAPPED, table)
    setattr(model, PLACES, places)
    if hasattr(one, "mmap_released"):
        one.mmap_released = True  # nothing is of the file that it was made of: no copy for that
    patcher.become(one, Placed)
    return counts


def rebind(model, moved):
    """Bind what `bind` has bound to the same bytes in other memory: all of it, or nothing."""
    utils, before, after = probe.module("comfy.utils"), getattr(model, MAPPED, {}), {}
    with patcher.calm(model):
        for key, mapped in before.items():
            after[key] = _made(key, mapped, moved.find)
            if after[key] is None:
                raise RuntimeError(f"{key} is not in the model's files")
            if hasattr(mapped, CORE_DTYPE):
                setattr(after[key], CORE_DTYPE, getattr(mapped, CORE_DTYPE))
        for key, made in after.items():
            if utils.get_attr(model, key) is before[key]:
                utils.set_attr(model, key, made)
    setattr(model, MAPPED, after)
    setattr(model, PLACES, {key: moved.device_of(made) for key, made in after.items()})


def compute_on(one, name):
    """Say which of the daemon's devices computes; None: core's own choice."""
    setattr(one.model, COMPUTE, name)


# ---- while core uses the model ----

class Placed(Guard):
    """Goes before a ModelPatcher's class. Its model has MAPPED, PLACES and COMPUTE."""

    _wanted = None  # while core loads: the names of the layers that it sees

    # -- what is where --

    def _is_resident(self, key):
        """Is the parameter used where it lies?"""
        mapped = getattr(self.model, MAPPED, {}).get(key)
        compute = getattr(self.model, COMPUTE, None)
        return (mapped is not None and mapped.device == self.load_device and
                (compute is None or self.model.__dict__[PLACES][key] == compute))

    def _donors(self):
        """The layers that lie elsewhere and can cast what they need."""
        table, found = getattr(self.model, MAPPED, {}), set()
        for name, layer in self.model.named_modules():
            keys = [f"{name}.{one}" if name else one for one in layer._parameters]
            if (hasattr(layer, "comfy_cast_weights") and
                    any(key in table and not self._is_resident(key) for key in keys)):
                found.add(name)
        return found

    def _own(self):
        """{key: parameter} of what is this process's on the device that computes."""
        table = getattr(self.model, MAPPED, {})
        return {key: current for key, current in _parameters(self.model)
                if current is not table.get(key) and current.device == self.load_device}

    def _resident_bytes(self):
        return sum(mapped.nbytes for key, mapped in getattr(self.model, MAPPED, {}).items()
                   if self._is_resident(key) and key not in self.backup)

    def model_size(self):
        """What there is to be on the device that computes; donors' layers only pass through."""
        if not hasattr(self, "load_device"):  # core asks while it makes a clone
            return super().model_size()
        table = getattr(self.model, MAPPED, {})
        own = sum(current.nbytes for key, current in _parameters(self.model)
                  if current is not table.get(key))
        return max(1, own + self._resident_bytes())

    def loaded_size(self):
        """What lies in the daemon's memory there needs no room to be made, loaded or not."""
        return self._resident_bytes() + sum(one.nbytes for one in self._own().values())

    def current_loaded_device(self):
        return self.load_device if self._resident_bytes() > 0 else super().current_loaded_device()

    # -- core's steps --

    def _load_list(self, *args, **kwargs):
        found = super()._load_list(*args, **kwargs)
        if self._wanted is None:
            return found
        return [one for one in found
                if next(word for word in one if isinstance(word, str)) in self._wanted]

    def _seeing(self, names, step):
        """What `step` returns while core sees these layers alone."""
        self._wanted = names
        try:
            return step()
        finally:
            self._wanted = None

    def _bind(self):
        """But for layers that cannot cast: what core has brought to its device for them stays."""
        table = getattr(self.model, MAPPED, {})
        moved = [] if self._unloads else [
            key for key, current in self._own().items()
            if key in table and table[key].device != self.load_device]
        super()._bind(except_for=moved)

    _unloads = False

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False,
             full_load=False, **kwargs):
        parking.begin(self.model)
        donors = self._donors()
        others = {name for name, _layer in self.model.named_modules()} - donors
        load = super().load
        with self._calm():
            self._seeing(others, lambda: load(
                device_to, lowvram_model_memory=ALL_OF_IT, force_patch_weights=force_patch_weights,
                full_load=False, **kwargs))
            if donors:  # no room for them, so they cast
                self._seeing(donors, lambda: load(
                    device_to, lowvram_model_memory=1, force_patch_weights=force_patch_weights,
                    full_load=False, **kwargs))
            self._bind()
        self.model.model_loaded_weight_memory = self.loaded_size()

    def partially_unload(self, device_to, memory_to_free=0, *args, **kwargs):
        """Only what is this process's own can be freed."""
        own = self._own()
        if self.load_device == device_to:
            own = {key: one for key, one in own.items() if key in self.backup}
        if not own:
            return 0
        before = self.loaded_size() - self._resident_bytes()
        layers = {key.rpartition(".")[0] for key in own}
        unload = super().partially_unload
        with self._calm():
            self._seeing(layers, lambda: unload(device_to, memory_to_free, *args, **kwargs))
            self._bind()
        self.model.model_loaded_weight_memory = self.loaded_size()
        return max(0, before - (self.loaded_size() - self._resident_bytes()))

    def unpatch_model(self, device_to=None, unpatch_weights=True, *args, **kwargs):
        self._unloads = unpatch_weights
        try:
            # core would copy what lies on a device to RAM, of which nothing is freed
            found = super().unpatch_model(None, unpatch_weights, *args, **kwargs)
        finally:
            self._unloads = False
        if unpatch_weights and device_to is not None:
            with self._calm():
                self._move_own(device_to)
            self.model.device = device_to
        return found

    def _move_own(self, device_to):
        import torch

        utils, table = probe.module("comfy.utils"), getattr(self.model, MAPPED, {})
        for key, current in _parameters(self.model):
            if current is not table.get(key) and current.device != device_to:
                utils.set_attr(self.model, key, torch.nn.Parameter(current.to(device_to),
                                                                   requires_grad=False))
        mapped = {id(one) for one in table.values()}
        for layer in self.model.modules():
            for name, buffer in layer._buffers.items():
                if buffer is not None and id(buffer) not in mapped and buffer.device != device_to:
                    layer._buffers[name] = buffer.to(device_to)

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False, *args, **kwargs):
        mapped = getattr(self.model, MAPPED, {}).get(key)
        returns = kwargs.get("return_weight", args[0] if args else False)
        if (mapped is not None and key in self.patches and key not in self.backup and
                not (returns or inplace_update or self.weight_inplace_update or
                     hasattr(mapped, CORE_DTYPE)) and
                probe.module("comfy.utils").get_attr(self.model, key) is mapped):
            self.backup[key] = _Backup(mapped, False)  # itself, and no copy in RAM
        return super().patch_weight_to_device(key, device_to, inplace_update, *args, **kwargs)

    def pin_weight_to_device(self, key, *args, **kwargs):
        """Not what is mapped: to pin a private view is to copy it."""
        if key in getattr(self.model, MAPPED, {}):
            return None
        return super().pin_weight_to_device(key, *args, **kwargs)
