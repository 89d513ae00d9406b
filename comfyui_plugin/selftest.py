# SPDX-License-Identifier: Apache-2.0
"""Does a tier work with this ComfyUI? Before its first use in a process it makes a tiny model, and
core makes the same one: both have to compute the same, bit for bit, as they are, with a patch on
them (nearly, on a card), and without it again. A release of ComfyUI may have changed what a tier
builds on; this is how it is noticed before a picture is wrong.
"""
import logging
import threading
import time

from . import patcher, probe

log = logging.getLogger("distorch")

PREFIX = "model.diffusion_model."
WIDTH = 64
#: A diffusion transformer of Stable Diffusion 3's kind, as small as core takes for one.
SHAPES = {
    "pos_embed": (1, 256, WIDTH),
    "x_embedder.proj.weight": (WIDTH, 16, 2, 2),
    "x_embedder.proj.bias": (WIDTH,),
    "context_embedder.weight": (WIDTH, WIDTH),
    "context_embedder.bias": (WIDTH,),
    "final_layer.linear.weight": (WIDTH, WIDTH),
    "final_layer.linear.bias": (WIDTH,),
    "final_layer.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH),
    "final_layer.adaLN_modulation.1.bias": (2 * WIDTH,),
    **{f"{name}_embedder.mlp.{layer}.{part}": shape
       for name, n_in in (("t", 256), ("y", 32))
       for layer, part, shape in ((0, "weight", (WIDTH, n_in)), (0, "bias", (WIDTH,)),
                                  (2, "weight", (WIDTH, WIDTH)), (2, "bias", (WIDTH,)))},
    **{f"joint_blocks.0.{block}.{name}": shape
       for block, n_parts in (("context_block", 2), ("x_block", 6))
       for name, shape in (("attn.qkv.weight", (3 * WIDTH, WIDTH)), ("attn.qkv.bias", (3 * WIDTH,)),
                           ("attn.ln_q.weight", (WIDTH,)), ("attn.ln_k.weight", (WIDTH,)),
                           ("adaLN_modulation.1.weight", (n_parts * WIDTH, WIDTH)),
                           ("adaLN_modulation.1.bias", (n_parts * WIDTH,)))},
    "joint_blocks.0.x_block.attn.proj.weight": (WIDTH, WIDTH),
    "joint_blocks.0.x_block.attn.proj.bias": (WIDTH,),
    "joint_blocks.0.x_block.mlp.fc1.weight": (4 * WIDTH, WIDTH),
    "joint_blocks.0.x_block.mlp.fc1.bias": (4 * WIDTH,),
    "joint_blocks.0.x_block.mlp.fc2.weight": (WIDTH, 4 * WIDTH),
    "joint_blocks.0.x_block.mlp.fc2.bias": (WIDTH,),
}
PATCH = " with a patch"
TOLERANCE = 0.02  # of the largest value; without the patch it is far from it
PATCHED = ("joint_blocks.0.x_block.attn.qkv.weight", "context_embedder.weight")

_builders = {}  # tier: how it makes a ModelPatcher of {name: tensor}
_reasons = {}  # tier: what was found; None: it works
_lock = threading.RLock()


class Failed(Exception):
    """The tier is not to be used in this process."""


def register(tier, build):
    """`build(tensors)` returns the ModelPatcher that the tier makes of a diffusion model's."""
    _builders[tier] = build


def _tensors():
    """The weights: some as wide as core computes, some narrower."""
    import torch

    random = torch.Generator().manual_seed(1)
    found = {}
    for name, shape in SHAPES.items():
        value = torch.randn(shape, generator=random) * 0.05
        is_narrow = name.startswith("joint_blocks") and len(shape) == 2
        found[PREFIX + name] = value.to(torch.float16) if is_narrow else value
    return found


def _stock(tensors):
    load = probe.module("comfy.sd").load_diffusion_model_state_dict
    found = load(tensors, model_options={}, **probe.those_taken(load, disable_dynamic=True))
    if found is None:
        raise RuntimeError("ComfyUI does not know the model of the self-test")
    if probe.has_dynamic_vram():
        patcher.convert_as_core(found.model.diffusion_model)
    return found


def _outputs(patcher):
    """What the model computes as it is, patched, and once that is undone."""
    import torch

    random = torch.Generator().manual_seed(2)

    def noise(*shape):
        return torch.randn(shape, generator=random).to(patcher.load_device)

    inputs = {"x": noise(1, 16, 8, 8), "t": torch.full((1,), 0.5, device=patcher.load_device),
              "c_crossattn": noise(1, 5, WIDTH), "y": noise(1, 32)}
    patched = patcher.clone()
    patched.add_patches({f"diffusion_model.{name}": (noise(*SHAPES[name]).cpu(),)
                         for name in PATCHED}, 0.5)
    found = []
    for one in (patcher, patched, patcher):
        one.patch_model(device_to=one.load_device)
        found.append(one.model.apply_model(**inputs).cpu())
        one.unpatch_model(device_to=one.offload_device)
    return found


def _find_reason(build):
    import torch

    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        expected = _outputs(_stock(_tensors()))
        found = _outputs(build(_tensors()))
    if torch.equal(expected[0], expected[1]) or not torch.isfinite(expected[0]).all():
        return "ComfyUI does not compute the model of the self-test"
    # On a card a layer that casts has a patch rounded to its weights' type, core before that.
    is_rounded = not probe.computes_on_cpu()
    for what, one, other in zip(("", PATCH, " after a patch"), expected, found):
        nearly = what == PATCH and is_rounded and bool(
            (one - other).abs().max() <= TOLERANCE * one.abs().max())
        if not (nearly or torch.equal(one, other)):
            return f"its self-test computes something else{what} than ComfyUI"
    return None


def reason_against(tier):
    """One line, why the tier is not to be used in this process; None: it works, or has no test."""
    build = _builders.get(tier)
    if build is None:
        return None
    with _lock:
        if tier not in _reasons:
            begun = time.monotonic()
            try:
                _reasons[tier] = _find_reason(build)
            except probe.interruptions():
                raise
            except Exception as failure:  # whatever a release of ComfyUI has changed
                text = " ".join(str(failure).split())
                _reasons[tier] = f"its self-test failed: {type(failure).__name__}: {text}"
            log.log(logging.WARNING if _reasons[tier] else logging.INFO,
                    "distorch: self-test of %s: %s (%.2f s)", tier, _reasons[tier] or "passed",
                    time.monotonic() - begun)
        return _reasons[tier]


def check(tier):
    """Raise Failed when there is a reason against the tier."""
    reason = reason_against(tier)
    if reason is not None:
        raise Failed(reason)
