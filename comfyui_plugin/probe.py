# SPDX-License-Identifier: Apache-2.0
"""What this ComfyUI is like. Looked at when it is needed and by what is there, never by a version
number: signatures drift with every release."""
import contextlib
import importlib
import inspect
import os
import re
import sys

NOT_MODELS = {"custom_nodes", "configs"}  # of the kinds of files that core lists


def module(name):
    """A module of ComfyUI, or None where it has none of this name."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def has_dynamic_vram():
    """Does core page weights by itself? Then it takes mapped files as they are."""
    management = module("comfy.memory_management")
    return bool(getattr(management, "aimdo_enabled", False))


def compute_device():
    """The device of torch that core computes on, or None."""
    management = module("comfy.model_management")
    return getattr(management, "get_torch_device", lambda: None)()


def computes_on_cpu():
    return getattr(compute_device(), "type", None) == "cpu"


def takes(function, parameter):
    """Can the function be called with a parameter of this name?"""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return parameter in parameters or any(one.kind is inspect.Parameter.VAR_KEYWORD
                                          for one in parameters.values())


def those_taken(function, **arguments):
    """Those of the arguments that the function can be called with."""
    return {name: value for name, value in arguments.items() if takes(function, name)}


def interruptions():
    """The exceptions that mean that the user wants no more of this prompt."""
    management = module("comfy.model_management")
    found = getattr(management, "InterruptProcessingException", None)
    return (found,) if found is not None else ()


def patcher_of(found):
    """What core loads and unloads of what a loader returned, or None."""
    for one in (found, getattr(found, "patcher", None),
                getattr(found, "control_model_wrapped", None)):
        if hasattr(one, "add_callback_with_key"):
            return one
    return None


def stock_node(name):
    """The class of a node of ComfyUI's own, or None."""
    return getattr(module("nodes"), "NODE_CLASS_MAPPINGS", {}).get(name)


def check_allowed(path):
    """Where somebody governs which models may be used, the original path is asked about."""
    governance = module("app.governance")
    allowed = getattr(governance, "model_allowed", None)
    if allowed is not None and allowed(path) is False:
        raise RuntimeError(f"the policy of this ComfyUI does not allow {path}")


def packs():
    """The packs that are here and not switched off, by the letters and digits of their folders'
    names: people write them in many ways. They may be imported later than this one."""
    found = set()
    folders = getattr(sys.modules.get("folder_paths"), "get_folder_paths", lambda _kind: [])
    with contextlib.suppress(Exception):  # a later release may have them elsewhere
        for folder in folders("custom_nodes"):
            found |= {re.sub("-(main|master)$|[^a-z0-9]", "", one.lower())
                      for one in os.listdir(folder) if not one.endswith(".disabled")}
    return found


def model_kinds():
    """The kinds of models that core has folders of."""
    found = getattr(module("folder_paths"), "folder_names_and_paths", {})
    return sorted(set(found) - NOT_MODELS)
