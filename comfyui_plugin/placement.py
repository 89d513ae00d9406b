# SPDX-License-Identifier: Apache-2.0
"""From the widgets of a loader to what the daemon is asked for: where a model's blocks lie.

An allocation string says it all and wins over `virtual_vram_gb`, and that over `compute_device`
alone; nothing of it said is no placement. The daemon's planner alone knows what a string means.
"""
import contextlib
import json
import os
import struct
from dataclasses import dataclass

from .session import Unavailable, session, soon

AUTO = "auto"
MAX_VIRTUAL_VRAM_GB = 128
GIB = 1 << 30
#: of a checkpoint: how the names of its tensors begin, as the planner tells its parts apart
PARTS = {"unet": ("model.diffusion_model.",),
         "vae": ("first_stage_model.", "vae."),
         "clip": ("cond_stage_model.", "conditioner.", "text_encoders.")}


@dataclass(frozen=True)
class Wish:
    """For a model, or one part of it: what its widgets say."""

    compute: str = AUTO
    virtual_vram_gb: float = 0.0
    donors: tuple = ("cpu",)  # they fill in this order
    allocation: str = ""

    def __bool__(self):
        return bool(self.allocation.strip() or self.virtual_vram_gb > 0 or self.compute != AUTO)

    def options(self):
        """For Connection.open, place and plan."""
        compute = None if self.compute == AUTO else self.compute
        if self.allocation.strip():
            return {"allocation": self.allocation.strip(), "compute": compute}
        if self.virtual_vram_gb > 0:
            return {"virtual_vram": int(self.virtual_vram_gb * GIB), "donors": list(self.donors),
                    "compute": compute}
        return {"allocation": compute} if compute else {}

    def words(self):
        """As one part of an allocation string, which has no word for virtual VRAM: the donor takes
        so much, and the rest is where it computes."""
        if self.allocation.strip():
            return self.allocation.strip()
        if self.virtual_vram_gb > 0:
            return f"{self.donors[0]},{int(self.virtual_vram_gb * GIB)}b;{self._computes_on()},*"
        return self.compute

    def _computes_on(self):
        if self.compute != AUTO:
            return self.compute
        return next((name for name in session.devices() if name != "cpu"), "cpu")


@dataclass(frozen=True)
class Placement:
    """What a loader asks for: one Wish for all of a file, or one for each part of a checkpoint."""

    whole: Wish = Wish()
    parts: tuple = ()  # ((name, Wish), ...)

    def __bool__(self):
        return bool(self.whole) or any(wish for _name, wish in self.parts)

    def compute_of(self, part):
        """The device that one part is to compute on."""
        return dict(self.parts).get(part, self.whole).compute

    def asks_for(self, part):
        """Is anything said about where it lies?"""
        return not self.parts or bool(dict(self.parts).get(part))

    def options(self, parts=()):
        """For Connection.open, place and plan of a file that has these parts; {}: nothing is asked.
        What is not asked for stays in RAM."""
        if not self:
            return {}
        asked = [(name, wish) for name, wish in self.parts if wish]
        if not asked:
            return self.whole.options()
        if len(parts) < 2:  # such a file is placed without naming its part
            return next((wish.options() for name, wish in asked if name in (parts or ("unet",))),
                        {})
        computes = next((wish.compute for _name, wish in asked if wish.compute != AUTO), None)
        found = {"compute": computes, "allocation":
                 "|".join(f"{name}={wish.words()}" for name, wish in asked if name in parts)}
        if any(wish.virtual_vram_gb > 0 and not wish.allocation.strip() for _name, wish in asked):
            found["strategy"] = "spread"
        return found if found["allocation"] else {}


def _donors(names):
    return (names,) if isinstance(names, str) else tuple(names)


def of(compute_device=AUTO, virtual_vram_gb=0.0, donor_device="cpu", expert_mode_allocations=""):
    """For a file that is one model. `donor_device` may be several names."""
    return Placement(Wish(compute_device, virtual_vram_gb, _donors(donor_device),
                          expert_mode_allocations))


def of_checkpoint(compute_device=AUTO, virtual_vram_gb=0.0, donor_device="cpu",
                  expert_mode_allocations="", clip_device=AUTO, clip_allocations="",
                  vae_device=AUTO, vae_allocations=""):
    """For a checkpoint: the first four are for its diffusion model. A string that names parts says
    all, whatever the others are."""
    if "=" in expert_mode_allocations:
        return of(compute_device, 0, donor_device, expert_mode_allocations)
    return Placement(parts=(
        ("unet", Wish(compute_device, virtual_vram_gb, _donors(donor_device),
                      expert_mode_allocations)),
        ("clip", Wish(clip_device, allocation=clip_allocations)),
        ("vae", Wish(vae_device, allocation=vae_allocations))))


def parts_in(names):
    """The parts that tensors of these names are of; of none is of the diffusion model."""
    found = {next((part for part, prefixes in PARTS.items() if name.startswith(prefixes)), "unet")
             for name in names}
    return tuple(part for part in ("unet", "clip", "vae") if part in found)


def names_in(path):
    """The tensors of a safetensors file; none where it is nothing like it."""
    with contextlib.suppress(OSError, ValueError, struct.error), open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size <= os.path.getsize(path):
            return [name for name in json.loads(file.read(size)) if name != "__metadata__"]
    return []


# ---- before a prompt runs ----

def _plan(connection, placement, parts):
    """Over a block of one byte for each part: what a string means is the planner's to say."""
    names = [PARTS[part][0] + "0" for part in parts] or ["0"]
    return connection.plan(blocks=[(name, 1) for name in names], **placement.options(parts))


def check(placement, parts=()):
    """None, or what the planner has against what is asked: words or devices that it does not know.
    What depends on the model and on what there is room for is told when it is loaded. Without a
    daemon nothing is checked: the prompt goes on."""
    wishes = [placement.whole, *(wish for _name, wish in placement.parts)]
    if not all(0 <= wish.virtual_vram_gb <= MAX_VIRTUAL_VRAM_GB for wish in wishes):
        return f"virtual_vram_gb has to be from 0 to {MAX_VIRTUAL_VRAM_GB}"
    if not placement:
        return None
    if "=" in placement.whole.allocation:
        parts = tuple(PARTS)
    return soon(lambda: _refusal(placement, parts), None)


def _refusal(placement, parts):
    try:
        session.call(lambda connection: _plan(connection, placement, parts))
    except Unavailable as failure:
        return failure.reason if failure.code == "bad-argument" else None
    return None
