# SPDX-License-Identifier: Apache-2.0
"""What the loaders of a prompt will want begins to load when it is queued, while earlier nodes run.

It must never make anything worse. So it comes into RAM, whatever the loader places where: the
cards are of the nodes that run before it. It comes only while no other load is under way, only
where it has room as it is, one file after the other in the prompt's order, and only as long as
the prompt is in ComfyUI's queue. Nobody leases it: whoever is short of memory takes it first.
"""
import logging
import os
import threading
import time

from . import comfy_server, legacy_ids, loaders, nodes, probe
from .session import Unavailable, alone, session, why_disabled

log = logging.getLogger("distorch")

SETTING = "distorch.prewarm"  # of the page
ENDINGS = (".safetensors", ".sft", ".gguf")
SPARE = 64 << 20  # bytes that stay free beside it
CHECKED_S = 30  # in which ComfyUI has checked a prompt and put it into its queue
LOOK_S = 0.1
WAIT_S = 0.5  # until it is looked again whether another load is over
KINDS = (nodes.Loader, nodes.ResidentFileNode)
UNLOADERS = (nodes.UnloadNode, nodes.MakeRoomNode)


# ---- what a prompt will read ----

def _class_of(one):
    kinds = getattr(probe.module("nodes"), "NODE_CLASS_MAPPINGS", {})
    found = kinds.get(one.get("class_type")) if isinstance(one, dict) else None
    return found if isinstance(found, type) else None


def _has_ours(prompt):
    return isinstance(prompt, dict) and any(issubclass(_class_of(one) or object, KINDS)
                                            for one in prompt.values())


def _lazy(kind):
    """The inputs that a node may do without: what they hang on may never run."""
    if not hasattr(kind, "check_lazy_status"):
        return set()
    return {name for group in kind.INPUT_TYPES().values() if isinstance(group, dict)
            for name, spec in group.items()
            if isinstance(spec, (tuple, list)) and len(spec) > 1 and spec[1].get("lazy")}


def _needed(prompt, targets):
    """The nodes that run in any case, by their ids."""
    due = [name for name, one in prompt.items()
           if getattr(_class_of(one), "OUTPUT_NODE", False) and (not targets or name in targets)]
    found = set()
    while due:
        name = due.pop()
        if name in found or name not in prompt:
            continue
        found.add(name)
        lazy = _lazy(_class_of(prompt[name]))
        due += [value[0] for key, value in prompt[name].get("inputs", {}).items()
                if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
                and key not in lazy]
    return found


def _is_allowed(path):
    try:
        probe.check_allowed(path)
    except RuntimeError:
        return False
    return True


def _files(prompt, targets):
    """Paths of what its loaders of ours will read, in its order. None of them where a node lets go
    of what nobody uses: they would go before they are used."""
    needed = _needed(prompt, targets)
    found = []
    for name, one in prompt.items():
        kind, inputs = _class_of(one) or object, one.get("inputs", {})
        if name not in needed:
            continue
        ejects = not issubclass(kind, legacy_ids.Old) and inputs.get("eject_models", False)
        if issubclass(kind, UNLOADERS) or issubclass(kind, KINDS) and ejects:
            return []
        if issubclass(kind, KINDS):
            try:
                found += kind().files(**inputs)
            except Exception:  # a name comes from another node, or there is no such file
                continue
    return [path for path in dict.fromkeys(found) if path.lower().endswith(ENDINGS)
            and path not in loaders.by_comfyui and _is_allowed(path)]


# ---- one file ----

class _Enough(Exception):
    """It is wanted no more, or is in the way of another load."""


def _what(prompt):
    return {name: (one.get("class_type"), one.get("inputs")) for name, one in prompt.items()}


def _id_of(prompt):
    """The number that it has got in ComfyUI's queue; None: it is not there. What runs is a copy."""
    running, waiting = comfy_server.prompts()
    return next((item[1] for item in (*running, *waiting)
                 if item[2] is prompt or _what(item[2]) == _what(prompt)), None)


def _is_queued(number):
    running, waiting = comfy_server.prompts()
    return any(item[1] == number for item in (*running, *waiting))


def _fits(connection, path):
    """Is it cold, with room for it as it is? None: not to be said while another load runs."""
    models, real = connection.list(), os.path.realpath(path)
    if any(model.path == real and model.state != "registered" for model in models):
        return False
    ram = next((one for one in connection.devices() if one.name == "cpu"), None)
    if ram is None or ram.draining or ram.free < os.path.getsize(path) + SPARE:
        return False
    is_busy = session.opening or any(model.state == "loading" for model in models)
    return None if is_busy else True


def _load(path, is_wanted):
    def watch(progress):
        if progress.phase != "done" and (not is_wanted() or
                                         any(other != path for other in session.opening)):
            raise _Enough

    while is_wanted():
        fits = session.call(lambda connection: _fits(connection, path))
        if fits is False:
            return
        if fits:
            try:
                with alone(path) as (file, named):
                    session.call(lambda connection: connection.load(file, progress=watch, **named))
                log.debug("distorch: %s was loaded ahead", os.path.basename(path))
                return
            except _Enough:
                continue
        time.sleep(WAIT_S)


# ---- a prompt ----

_turn = threading.Lock()  # one file at a time


def _run(prompt, targets):
    if why_disabled() is not None or comfy_server.setting(SETTING) is False:
        return
    end = time.monotonic() + CHECKED_S
    while (number := _id_of(prompt)) is None:
        if time.monotonic() > end:  # it was refused
            return
        time.sleep(LOOK_S)
    for path in _files(dict(prompt), targets):
        with _turn:
            _load(path, lambda: _is_queued(number))


def _try(prompt, targets):
    try:
        _run(prompt, targets)
    except Unavailable as failure:
        log.debug("distorch: nothing was loaded ahead: %s", failure.reason)
    except Exception:  # the loaders say what there is to say
        log.debug("distorch: nothing was loaded ahead", exc_info=True)


def on_prompt(body):
    """What ComfyUI calls with each prompt that comes, before it checks it; it goes on with what
    this returns, and does nothing else meanwhile."""
    try:
        prompt = body.get("prompt")
        if _has_ours(prompt):
            threading.Thread(target=_try, args=(prompt, body.get("partial_execution_targets")),
                             daemon=True, name="distorch-prewarm").start()
    except Exception:
        log.debug("distorch: nothing was loaded ahead", exc_info=True)
    return body
