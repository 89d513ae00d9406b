# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's server, where there is one: what its page has set, and the prompts that it has."""
import json
import sys
import types


def instance():
    found = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(found, "instance", None)


def setting(name):
    """As this ComfyUI's only user has set it; of several users none is the one. None: not set."""
    path_of = getattr(getattr(instance(), "user_manager", None), "get_request_user_filepath", None)
    try:
        path = path_of(types.SimpleNamespace(headers={}), "comfy.settings.json", create_dir=False)
        with open(path, encoding="utf-8") as file:
            return json.load(file).get(name)
    except Exception:  # none was saved, or a later release keeps them elsewhere
        return None


def prompts():
    """([those that run now], [those that wait]), as ComfyUI's queue has them: (number, id, prompt,
    ...). A later release may have its queue elsewhere: then there are none."""
    queue = getattr(instance(), "prompt_queue", None)
    look = getattr(queue, "get_current_queue_volatile", None) or getattr(
        queue, "get_current_queue", None)
    try:
        running, waiting = look()
        return list(running), list(waiting)
    except Exception:
        return [], []
