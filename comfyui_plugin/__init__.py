# SPDX-License-Identifier: Apache-2.0
"""Loaders for ComfyUI whose models live in distorchd, outside of ComfyUI.

The pack imports nothing heavy and connects to nothing before the first prompt or question of the
page. Without a daemon, or with DISTORCH_DISABLE=1, its loaders load as ComfyUI's own do and say why.
"""
from . import legacy_ids, routes, wrap
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

_OLD = legacy_ids.ids()
NODE_CLASS_MAPPINGS = {**NODE_CLASS_MAPPINGS, **{name: one for name, (one, _title) in _OLD.items()}}
NODE_DISPLAY_NAME_MAPPINGS = {**NODE_DISPLAY_NAME_MAPPINGS,
                              **{name: title for name, (_one, title) in _OLD.items()}}

WEB_DIRECTORY = "web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

routes.register_on_server()
if wrap.is_wanted():
    wrap.wrap()
