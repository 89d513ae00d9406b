# SPDX-License-Identifier: Apache-2.0
"""Loaders of other packs, served by the daemon: with DISTORCH_WRAP_LOADERS=1 and not otherwise.

They all read their files by `comfy.utils.load_torch_file`. In its place goes one that hands it a
link to the daemon's memory instead of the path, for safetensors files in folders of models, and
the path itself whenever that is not to be had. This is the one function of ComfyUI that the pack
ever replaces, and only where the user asked for it.
"""
import functools
import logging
import os
import sys

from . import loaders, probe

log = logging.getLogger("distorch")

NAME = "load_torch_file"
ENDINGS = (".safetensors", ".sft")


def is_wanted():
    return os.environ.get("DISTORCH_WRAP_LOADERS", "") not in ("", "0")


def _folders():
    """Those of models."""
    paths = probe.module("folder_paths")
    found = [getattr(paths, "models_dir", None)]
    for kind in probe.model_kinds():
        found += paths.folder_names_and_paths[kind][0]
    return [os.path.abspath(folder) + os.sep for folder in found if folder]


def _is_model(path):
    return (isinstance(path, str) and path.lower().endswith(ENDINGS) and
            os.path.abspath(path).startswith(tuple(_folders())))


def _keep(link, found):
    """The link, and with it the lease, lives as long as any of the tensors that were read by it."""
    tensors = found[0] if isinstance(found, tuple) else found
    for tensor in tensors.values():
        if getattr(getattr(tensor, "device", None), "type", None) == "cpu":
            tensor.untyped_storage()._distorch_link = link


def _read(original, path, args, kwargs):
    """By the daemon's memory; raises where that is not to be had."""
    (resident,) = loaders._open([path], {})
    try:
        link = resident.link()
    finally:
        resident.release()
    found = original(link, *args, **kwargs)
    _keep(link, found)
    return found


def wrapper(original):
    """What takes the place of core's function."""
    @functools.wraps(original)
    def load_torch_file(ckpt, *args, **kwargs):
        if not _is_model(ckpt):
            return original(ckpt, *args, **kwargs)
        name = os.path.basename(ckpt)
        try:
            found = _read(original, ckpt, args, kwargs)
        except probe.interruptions():
            raise
        except Exception as failure:  # a prompt never fails by us
            log.info("distorch: %s is read from its file: %s", name,
                     getattr(failure, "reason", None) or failure)
            return original(ckpt, *args, **kwargs)
        log.info("distorch: %s is read from distorchd's memory", name)
        return found

    load_torch_file.distorch_original = original
    return load_torch_file


def wrap():
    """Put it in the place of core's, also where another pack has that by name already."""
    utils = sys.modules.get("comfy.utils")
    original = getattr(utils, NAME, None)
    if original is None or hasattr(original, "distorch_original"):
        return
    wrapped = wrapper(original)
    for module in list(sys.modules.values()):
        try:
            if vars(module).get(NAME) is original:
                setattr(module, NAME, wrapped)
        except TypeError:  # no module at all
            continue
    log.info("distorch: loaders of other packs are served too (DISTORCH_WRAP_LOADERS)")
