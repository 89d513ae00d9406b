# SPDX-License-Identifier: Apache-2.0
"""How a model comes out of the daemon into ComfyUI, in tiers. Each is complete alone; one that does
not serve falls back to the next, the last to core's own loader on the original file.

- placed: as assign, but its parameters are where an allocation has put them, over several devices.
  For models that somebody has placed, this loader or another process.
- assign: core builds the model, and its parameters are the daemon's memory. No copy of the
  weights in this process. For plain weights on ComfyUI's classic path (--cpu, other vendors).
- path: core's own loader reads the daemon's memory by the path of a link, not the disk.
"""
import collections
import contextlib
import logging
import os
import time
from dataclasses import dataclass, field

from . import (cards, comfy_server, memory, parking, patcher, placed, placement, probe, selftest,
               unload)
from .session import Unavailable, session

log = logging.getLogger("distorch")

# What takes another type than core would give it where its layers cast at use; the rest is
# converted by core.
PLAIN = {"F16", "BF16", "F32", "I64", "F8_E4M3", "F8_E5M2"}
QUANTISED = (".comfy_quant", "scaled_fp8", ".scale_weight", ".weight_scale")  # ends of names
STOCK = "stock"
NOT_PLACED = "not placed: "
SETTING = "distorch.pinUsed"  # of the page


@dataclass
class Loaded:
    """What a loader returns, by which tier, and why not by a better one."""

    objects: tuple
    tier: str
    reasons: list = field(default_factory=list)
    counts: str = ""
    places: dict = field(default_factory=dict)  # {device: how many parameters}; placed only
    warm: dict = field(default_factory=dict)  # of what was in memory: its bytes, and the seconds
                                              # that it took nevertheless

    def text(self):
        """For the node: one line for what it is, one for each reason."""
        what = {"placed": f"served by distorchd, placed: {self.counts}",
                "assign": f"served by distorchd, no copy ({self.counts})",
                "path": "served by distorchd", STOCK: "loaded by ComfyUI itself"}[self.tier]
        return [what, *self.reasons]


class Skipped(Exception):
    """A tier that this file is not for; nothing went wrong."""


# ---- what core offers ----

def _progress():
    """For a load: ComfyUI's own bar, and its own way to cancel."""
    utils, management = probe.module("comfy.utils"), probe.module("comfy.model_management")
    bar = None

    def tell(progress):
        nonlocal bar
        stop = getattr(management, "throw_exception_if_processing_interrupted", None)
        if stop is not None and progress.phase != "done":
            stop()
        if progress.total > 0 and hasattr(utils, "ProgressBar"):
            bar = bar or utils.ProgressBar(progress.total)
            bar.update_absolute(progress.bytes, progress.total)

    return tell


def _model_of(found):
    """The object whose life is that of the weights."""
    for name in ("model", "cond_stage_model", "first_stage_model", "control_model"):
        inner = getattr(found, name, None)
        if inner is not None:
            return inner
    return found


@dataclass
class Part:
    """Of what a loader has made: a patcher, and the module that has the file's weights."""

    name: str  # as allocation strings call it
    owner: object  # what the next nodes get
    attribute: str  # of the owner, where its patcher is; None: the owner is it
    module: object

    @property
    def patcher(self):
        return self.owner if self.attribute is None else getattr(self.owner, self.attribute)

    def is_paged(self):
        """By core, as it likes."""
        return bool(getattr(self.patcher, "is_dynamic", bool)())

    def page_no_more(self):
        """Where core has a way back, its classic patcher takes this one's place, over the same
        model. Is it so now?"""
        if not self.is_paged():
            return True
        override = getattr(self.patcher, "get_clone_model_override", None)
        if self.attribute is None or override is None or not probe.takes(self.patcher.clone,
                                                                         "model_override"):
            return False
        setattr(self.owner, self.attribute,
                self.patcher.clone(disable_dynamic=True, model_override=override()))
        return True


def _parts_of(found):
    if hasattr(found, "model") and hasattr(found.model, "diffusion_model"):
        return [Part("unet", found, None, found.model.diffusion_model)]
    for name, module, one in (("clip", "cond_stage_model", "patcher"),
                              ("vae", "first_stage_model", "patcher"),
                              ("control", "control_model", "control_model_wrapped"),
                              ("vision", "model", "patcher")):
        if getattr(found, module, None) is not None and hasattr(getattr(found, one, None), "model"):
            return [Part(name, found, one, getattr(found, module))]
    return []


class Job:
    """One kind of model: how core makes it of files, and of their tensors.

    `by_path(paths)` is core's loader; `by_tensors(files, layers, encoder_layers)` the same one over
    [(tensors, metadata)], with the layers of its diffusion model and of its text encoders (None:
    core's own), or None where only the path will do. It makes models that core does not page by
    itself, as far as core lets it. Both return a tuple of what nodes pass on.
    """

    converts = False  # core makes another type of the weights before it loads them
    maps_files = False  # `by_path` copies nothing of its file: good enough to be bound anew

    def __init__(self, paths, by_path, by_tensors=None, **what):
        self.paths, self.by_path, self.by_tensors = paths, by_path, by_tensors
        self.__dict__.update(what)


# ---- tiers ----

def _operations():
    """Core's layers that compute in another type than that of their weights where they must."""
    import torch

    found = getattr(probe.module("comfy.ops"), "manual_cast", None)
    if found is None or not issubclass(found.Linear, torch.nn.Module):
        raise Skipped("this ComfyUI has no layers that take weights as they are")
    return patcher.assigning(found, widens=True), patcher.assigning(found, widens=False)


def _kinds(residents):
    return set().union(*(resident.dtypes() for resident in residents))


def _is_quantised(residents):
    """Core converts such files before it builds a model, and takes no other layers for that."""
    return any(name.endswith(QUANTISED) for resident in residents
               for name in resident.devices()) or any(
        "_quantization_metadata" in (resident.metadata() or {}) for resident in residents)


def _check_plain(residents):
    kinds = _kinds(residents)
    if not kinds <= PLAIN:
        raise Skipped(f"{', '.join(sorted(kinds - PLAIN))} weights are converted by ComfyUI")
    if _is_quantised(residents):
        raise Skipped("quantised weights are converted by ComfyUI")


def _files(residents):
    """[(tensors, metadata)]"""
    return [(resident.tensors(), resident.metadata()) for resident in residents]


def _build(job, files, layers):
    """What core makes of them."""
    if job.by_tensors is None:
        return job.by_path(job.paths)
    objects = job.by_tensors([(dict(part), metadata) for part, metadata in files], *layers)
    for one in layers:
        if one is not None:
            one.takes = False  # what core loads into a layer later is another model's, say
    return objects


def _assign(job, residents, _placement):
    if job.by_tensors is None:
        raise Skipped("models of this kind are loaded by their path")
    if probe.has_dynamic_vram() or not probe.computes_on_cpu():
        raise Skipped("ComfyUI brings weights to its card by itself")
    if job.converts:
        raise Skipped("ComfyUI converts models of this kind")
    _check_plain(residents)
    selftest.check("assign")
    return _assemble(job, _files(residents))


def _assemble(job, files):
    """What `job` makes of [(tensors, metadata)], whose memory its parameters are."""
    objects = _build(job, files, _operations())
    parts = [tensors for tensors, _ in files]  # two of them may have the same names
    extents = patcher.extents_of(value for tensors in parts for value in tensors.values())
    n_mapped = n_all = 0
    for found in objects:
        for part in _parts_of(found):
            if part.name not in ("unet", "clip"):
                continue
            for tensors in parts:
                patcher.take_stragglers(part.module, _names_inside(part.module, tensors))
            patcher.guard(part.patcher, extents)
            mapped, every = patcher.count_mapped(part.module, extents)
            n_mapped, n_all = n_mapped + mapped, n_all + every
    if n_mapped == 0:
        raise Skipped("ComfyUI converts its weights")
    return Loaded(objects, "assign", counts=f"{n_mapped} of {n_all} in place")


def _test_job():
    load = probe.module("comfy.sd").load_diffusion_model_state_dict

    def by_tensors(files, layers, _encoder_layers):
        return (load(files[0][0], model_options={"custom_operations": layers},
                     **probe.those_taken(load, disable_dynamic=True)),)

    return Job([], None, by_tensors)


def _assemble_test(tensors):
    return _assemble(_test_job(), [(tensors, None)]).objects[0]


selftest.register("assign", _assemble_test)


# ---- placed ----

def _elsewhere(residents):
    return sorted({place for resident in residents for place in resident.places()} - {"cpu"})


def _torch_device(name):
    """The device of torch that computes for one of the daemon's; simulated ones are memory that
    this process maps."""
    import torch

    return torch.device(name if name.startswith("cuda") else "cpu")


def _computes(asked, devices):
    """The daemon's name of the device that computes, as its planner has it: what was said, else the
    first that is not RAM. None: core's own choice."""
    if asked != placement.AUTO:
        return asked
    return next((device for device in devices if device != "cpu"), None)


def _compute_on(part, name):
    placed.compute_on(part.patcher, name)
    if name is None:
        return
    device = _torch_device(name)
    part.patcher.load_device = device
    for attribute in ("device", "load_device"):
        if part.owner is not part.patcher and hasattr(part.owner, attribute):
            setattr(part.owner, attribute, device)


def _words(counts):
    """40 of 59 on sim:0, 19 in RAM"""
    n_all, said = sum(counts.values()), []
    for device, count in counts.items():
        if device is not None:
            of = f" of {n_all}" if not said else ""
            said.append(f"{count}{of} {'in RAM' if device == 'cpu' else f'on {device}'}")
    if counts[None]:
        said.append(f"{counts[None]} converted by ComfyUI")
    return ", ".join(said)


def _placed(job, residents, wanted):
    if not wanted and not _elsewhere(residents):
        raise Skipped("nobody has placed it")
    if job.by_tensors is None and not job.maps_files:
        raise Skipped("models of this kind are loaded by their path")
    selftest.check("placed")
    is_plain = _kinds(residents) <= PLAIN and not _is_quantised(residents)
    return _place(job, _files(residents), _operations() if is_plain else (None, None),
                  [resident.devices() for resident in residents], wanted or placement.Placement())


def _make_classic(part):
    """Of a part: one that core does not page. Can it be?"""
    found = part.page_no_more()
    if found and probe.has_dynamic_vram():
        patcher.convert_as_core(part.module)
    return found


def _place(job, files, layers, devices, wanted):
    """What `job` makes of [(tensors, metadata)], bound to them where they lie; `devices`: [{name of
    a tensor: device}]. Told are the parts that something was asked for."""
    objects = _build(job, files, layers)
    tensors = placed.Tensors([(part, where) for (part, _), where in zip(files, devices)])
    in_order = list(dict.fromkeys(name for where in devices for name in where.values()))
    counts = collections.Counter()
    parts = [part for found in objects for part in _parts_of(found)]
    if not parts:
        raise Skipped("ComfyUI moves models of this kind by itself, as a whole")
    for part in parts:
        told = counts if wanted.asks_for(part.name) else collections.Counter()
        if not _make_classic(part):
            told[None] += sum(1 for _ in part.module.parameters())
            continue
        bound = placed.bind(part.patcher, part.module, tensors)
        told.update(bound)
        _compute_on(part, _computes(wanted.compute_of(part.name),
                                    [device for device in in_order if bound[device]]))
    places = {device: counts[device] for device in in_order if counts[device]}
    if not places:
        raise Skipped("ComfyUI pages its weights by itself" if any(part.is_paged()
                                                                  for part in parts) else
                      "ComfyUI converts its weights")
    return Loaded(objects, "placed", places=places,
                  counts=_words(collections.Counter({**places, None: counts[None]})))


def _place_test(tensors):
    """Half of it on the device that computes, which is core's, half in RAM."""
    device = probe.compute_device()
    name = _name_in_test(device)
    where = {one: "cpu" if i % 2 else name for i, one in enumerate(tensors)}
    lying = {one: value if where[one] == "cpu" else value.to(device)
             for one, value in tensors.items()}
    return _place(_test_job(), [(lying, None)], _operations(), [where],
                  placement.Placement()).objects[0]


def _name_in_test(device):
    """As the daemon would name it; cpu where it has none of that kind."""
    return {"cuda": cards.name(device), "cpu": "sim:0"}.get(device.type, "cpu")


selftest.register("placed", _place_test)


def _names_inside(module, tensors):
    """The file's tensors by the names that the module has for them: without what comes before them
    in the file, and as core renames them."""
    names = set(module.state_dict())
    prefixes = {""}
    for key in tensors:
        at = key.find(".")
        while at >= 0:
            if key[at + 1:] in names:
                prefixes.add(key[:at + 1])
            at = key.find(".", at + 1)
    found = {}
    for prefix in sorted(prefixes, key=len):
        inside = {key[len(prefix):]: value for key, value in tensors.items()
                  if key.startswith(prefix)}
        if len(names & set(inside)) > len(names & set(found)):
            found = inside
    return found


# ---- what core makes anew of it ----

def read(path):
    """(tensors, metadata), by core's own reader."""
    load = probe.module("comfy.utils").load_torch_file
    if probe.takes(load, "return_metadata"):
        return load(path, return_metadata=True)
    return load(path), None


def _patcher_again(job, name, disable_dynamic=True):
    """Core's way to a second model of a loader's files, for another card, say: one part, with
    weights of its own. The daemon's memory is read, not the disk."""
    def by_path(paths):
        return job.by_tensors([read(path) for path in paths], None, None)

    made = load(Job(job.paths, by_path if job.by_tensors is not None else job.by_path))
    part = next(part for found in made.objects for part in _parts_of(found) if part.name == name)
    _make_classic(part)  # as those are that it is for
    return part.patcher


def _offer_again(job, objects):
    """As core's loaders of files do it themselves, for what core makes a second one of."""
    for part in (part for found in objects for part in _parts_of(found)):
        if (part.name in placement.PARTS and
                getattr(part.patcher, "cached_patcher_init", part) is None):
            part.patcher.cached_patcher_init = (_patcher_again, (job, part.name))


def _keep(residents, objects, keep):
    """The leases live as long as what was made of them."""
    for found in objects:
        if found is not None:
            keep(_model_of(found))
            unload.watch(found, [resident.id for resident in residents])
            memory.watch(found)
    for resident in residents:
        resident.is_used = True


def _group(job, residents, objects, wanted):
    """What was placed for us leaves the cards while core has it unloaded. None: it cannot, for core
    pages a part of it by itself."""
    parts = [part for found in objects for part in _parts_of(found)]
    if not all(hasattr(part.patcher.model, placed.PLACES) for part in parts):
        return None

    def rebind(models, before, after):
        moved = placed.Moved(before, after)
        for model in models:
            placed.rebind(model, moved)

    group = parking.Group(residents, lambda: _open(job.paths, {}, wanted, progress=_progress()),
                          lambda: _open(job.paths, {"allocation": "cpu"}), rebind)
    for part in parts:
        group.add(part.patcher.model)
    return group


def _path(job, residents, _placement):
    objects = job.by_path([resident.link() for resident in residents])
    for found in objects:
        for part in _parts_of(found):
            if part.is_paged():
                patcher.reads_fast(part.patcher)
            elif patcher.has_quantised(part.patcher.model):
                patcher.guard(part.patcher, [])  # core cannot unload these between prompts
    return Loaded(objects, "path")


def _open(paths, options, wanted=None, progress=None):
    residents = []
    try:
        for path in paths:
            where = wanted.options(placement.parts_in(placement.names_in(path))) if wanted else {}
            residents.append(session.open(path, progress=progress, **options, **where))
    except BaseException:
        _release(residents)
        raise
    return residents


def _pin_if_wanted(residents):
    if comfy_server.setting(SETTING) is not True:
        return
    for resident in residents:
        try:
            session.call(lambda connection, model=resident.id: connection.pin(model))
        except Unavailable as failure:
            log.warning("distorch: %s is not pinned: %s", os.path.basename(resident.path),
                        failure.reason)


def _release(residents):
    for resident in residents:
        resident.release()


#: Paths of what ComfyUI has loaded by itself in the last run of its loader, and may have still
by_comfyui = set()

TIERS = (("placed", _placed), ("assign", _assign), ("path", _path))


def _tiers():
    """From the one that DISTORCH_TIER names on."""
    best = os.environ.get("DISTORCH_TIER") or TIERS[0][0]
    names = [name for name, _ in TIERS]
    if best not in names:
        raise Unavailable(f"DISTORCH_TIER is {best}; it can be {', '.join(names)}")
    return TIERS[names.index(best):]


def _size(job):
    return sum(os.path.getsize(path) for path in job.paths)


def _by(tier, job, residents, wanted):
    loaded = memory.with_room(lambda: tier(job, residents, wanted), _size(job))
    group = None
    if wanted and loaded.tier == "placed":
        group = _group(job, residents, loaded.objects, wanted)
    if loaded.tier != "path":
        _offer_again(job, loaded.objects)
    _keep(residents, loaded.objects, group.keep if group is not None else
          lambda user: [resident.keep_with(user) for resident in residents])
    return loaded


class Attempt:
    """At one load: what was asked, and why it was not had."""

    def __init__(self, job, options, wanted):
        self.job, self.options, self.wanted = job, options, wanted
        self.reasons = []
        self.seconds = 0  # that the daemon took

    def _note(self, reason):
        self.reasons.append(reason)
        log.warning("distorch: %s: %s", os.path.basename(self.job.paths[0]), reason)

    def _timed(self, options, wanted=None):
        begun = time.monotonic()
        try:
            return _open(self.job.paths, options, wanted, _progress())
        finally:
            self.seconds += time.monotonic() - begun

    def _open(self):
        """As it was asked for, or else wherever it is."""
        if self.wanted:
            try:
                return self._timed(self.options, self.wanted)
            except Unavailable as failure:
                if failure.code in (None, "no-connection", "timeout"):
                    raise  # the daemon does not answer at all
                self._note(NOT_PLACED + failure.reason)
                self.wanted = None
        return self._timed(self.options)

    def _in_ram(self, residents):
        """The tiers below need all of it there. What we have placed ourselves is brought back; what
        another process has is left to it."""
        elsewhere = _elsewhere(residents)
        if not elsewhere:
            return residents
        name = os.path.basename(self.job.paths[0])
        if not self.wanted:
            raise Unavailable(f"{name} is placed on {', '.join(elsewhere)}; move it: "
                              f"distorchctl place {name} ram")
        found = self._timed({**self.options, "allocation": "cpu"})
        _release(residents)
        residents[:] = found
        return residents

    def run(self, residents):
        tiers = _tiers()
        if self.wanted and tiers[0][0] != "placed":
            self._note(f"{NOT_PLACED}DISTORCH_TIER is {tiers[0][0]}")
            self.wanted = None
        residents[:] = self._open()
        was_there = all(resident.was_there for resident in residents)
        for name, tier in tiers:
            if name != "placed":
                self._in_ram(residents)
            try:
                loaded = _by(tier, self.job, residents, self.wanted)
            except probe.interruptions():
                raise
            except Skipped as skipped:
                if name == "placed" and (self.wanted or _elsewhere(residents)):
                    self._note(f"{NOT_PLACED}{skipped}")
                log.debug("distorch: %s, %s: %s", os.path.basename(self.job.paths[0]), name,
                          str(skipped))  # who keeps the record does not keep our frames
            except selftest.Failed as failed:
                self._note(f"{NOT_PLACED if name == 'placed' else ''}{name} is switched off: "
                           f"{failed}")
            except Exception as failure:  # whatever a release of ComfyUI has changed
                said = NOT_PLACED if name == "placed" else f"{name} did not serve: "
                self._note(f"{said}{type(failure).__name__}: {failure}")
                log.debug("distorch: %s", name, exc_info=True)
            else:
                loaded.reasons[:0] = self.reasons
                if was_there:
                    loaded.warm = {"bytes": _size(self.job), "seconds": self.seconds}
                return loaded
        raise Unavailable(self.reasons.pop() if self.reasons else "no tier serves it")


def load(job, wanted=None, eject=False, **options):
    """What `job` makes of its files, by the best tier that serves. `wanted`: the Placement that is
    asked for; `eject`: what nobody uses or keeps goes first."""
    for path in job.paths:
        probe.check_allowed(path)
    residents, attempt = [], Attempt(job, options, wanted)
    try:
        if eject:
            with contextlib.suppress(Unavailable):
                session.unload_idle([os.path.realpath(path) for path in job.paths])
        loaded = attempt.run(residents)
        _pin_if_wanted(residents)
        by_comfyui.difference_update(job.paths)
        return loaded
    except probe.interruptions():
        raise
    except Exception as failure:  # also what nobody has thought of: a prompt never fails by us
        reason = getattr(failure, "reason", None) or f"{type(failure).__name__}: {failure}"
        if wanted and not attempt.reasons and not reason.startswith(NOT_PLACED):
            reason = NOT_PLACED + reason
        log.info("distorch: %s is loaded by ComfyUI itself: %s", os.path.basename(job.paths[0]),
                 reason)
    finally:
        _release(residents)
    by_comfyui.update(job.paths)
    with session.room("cpu", _size(job)):
        objects = memory.with_room(lambda: job.by_path(job.paths), _size(job))
    for found in objects:
        memory.watch(found)
    return Loaded(objects, STOCK, [*attempt.reasons, reason])
