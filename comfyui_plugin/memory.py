# SPDX-License-Identifier: Apache-2.0
"""Room for ComfyUI beside the daemon: what is idle there goes before a sampler of ours runs short,
and before something fails for want of memory."""
import contextlib
import logging
import sys

from . import cards, probe
from .session import Unavailable, session

log = logging.getLogger("distorch")

KEY = "distorch"  # of our wrappers
CPU_WORDS = ("DefaultCPUAllocator", "not enough memory")  # torch has no class for these


def is_oom(failure):
    """Is it that there was no memory left?"""
    if isinstance(failure, MemoryError):
        return True
    if isinstance(failure, RuntimeError) and any(word in str(failure) for word in CPU_WORDS):
        return True
    management = probe.module("comfy.model_management")
    kind = getattr(management, "OOM_EXCEPTION", None)
    if kind in (None, Exception):  # this torch has none of its own
        return False
    asked = getattr(management, "is_oom", lambda one: isinstance(one, kind))
    return bool(asked(failure))


def empty_caches():
    """Of every card that this process uses: core empties that of the current one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    for index in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(index) == 0:  # to look closer would begin to use it
            continue
        with torch.cuda.device(index):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.ipc_collect()


def _lacking(device, nbytes):
    """Of the bytes, those that the device has not, as core counts."""
    management = probe.module("comfy.model_management")
    return max(0, int(nbytes - management.get_free_memory(device)))


@contextlib.contextmanager
def _displaced(device, nbytes):
    """Have idle models of so many bytes make room on the device while this lasts; did they?"""
    with contextlib.ExitStack() as stack:
        done = False
        if nbytes > 0:
            with contextlib.suppress(Unavailable):
                stack.enter_context(session.displace(cards.name(device), nbytes))
                done = True
        yield done


# ---- around a load ----

def with_room(function, nbytes):
    """What `function` returns. Where it finds no memory, what is idle in the daemon makes room for
    `nbytes`, and it is called once more."""
    try:
        return function()
    except probe.interruptions():
        raise
    except Exception as failure:
        if not is_oom(failure):
            raise
        text = str(failure)
    log.warning("distorch: out of memory; once more, with room made: %s", text)
    empty_caches()
    compute = probe.compute_device()
    with contextlib.ExitStack() as stack:
        for name in {"cpu", *([cards.name(compute)] if compute is not None else [])}:
            with contextlib.suppress(Unavailable):
                stack.enter_context(session.displace(name, nbytes))
        return function()


# ---- around a sampler ----

def _needs(patcher, noise):
    """Bytes that sampling takes, as core reckons, on the device that computes: of the model what is
    not there yet, too."""
    shape = list(noise.shape)
    needed = patcher.memory_required([shape[0] * 2, *shape[1:]])
    if patcher.load_device.type != "cpu":
        needed += max(0, patcher.model_size() - patcher.loaded_size())
    return int(needed)


def _sample(executor, *args, **kwargs):
    """Around core's sampling of a model of ours."""
    try:
        patcher = executor.class_obj.model_patcher
        noise = args[0] if args else kwargs["noise"]
        device, needed = patcher.load_device, _needs(patcher, noise)
        lacking = _lacking(device, needed)
    except Exception:  # a release that names things otherwise
        log.debug("distorch: what a sampler needs is not known", exc_info=True)
        return executor(*args, **kwargs)
    with contextlib.ExitStack() as stack:
        if stack.enter_context(_displaced(device, lacking)):
            log.info("distorch: idle models made room for a sampler on %s", cards.name(device))
        try:
            return executor(*args, **kwargs)
        except probe.interruptions():
            raise
        except Exception as failure:
            if not is_oom(failure):
                raise
            if not stack.enter_context(_displaced(device, needed)):
                raise
        # here, where what failed holds no tensors any more
        log.warning("distorch: out of memory on %s; idle models made room, sampling once more",
                    cards.name(device))
        empty_caches()
        return executor(*args, **kwargs)


def watch(found):
    """Samplers of this model have room from now on."""
    patcher = probe.patcher_of(found)
    kinds = getattr(probe.module("comfy.patcher_extension"), "WrappersMP", None)
    kind = getattr(kinds, "OUTER_SAMPLE", None)
    if patcher is found and kind is not None and hasattr(patcher, "add_wrapper_with_key"):
        patcher.add_wrapper_with_key(kind, KEY, _sample)
