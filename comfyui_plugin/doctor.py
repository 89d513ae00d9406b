# SPDX-License-Identifier: Apache-2.0
"""What `distorchctl doctor` finds, for the page; and whether the daemon is of the pack's version."""
import functools
import importlib
import json
import os
import pathlib
import re
import shutil

from .session import Unavailable, binding, session, why_disabled

TIMEOUT_S = 15  # of distorchctl
NAME = "distorchctl"
FIX = "scripts/install --plugin with the folder of this ComfyUI; restart what is older"


@functools.lru_cache(maxsize=None)
def pack_version():
    text = (pathlib.Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'(?m)^version = "(.*)"$', text).group(1)


def mismatch(version):
    """None, or that the daemon is of another version than the pack."""
    try:
        own = pack_version()
    except (OSError, AttributeError):  # somebody has packed it otherwise
        return None
    if version.rpartition("/")[2] == own:
        return None
    return f"the daemon is {version.rpartition('/')[2]}, ComfyUI's pack {own}"


def _beside_the_library():
    """Folders of programs, as the binding's library lies beside them."""
    try:
        binding()
        path = importlib.import_module("distorch._library").library().path
    except (Unavailable, ImportError, AttributeError):
        return []
    if os.sep not in path:
        return []
    return [folder / "bin" for folder in pathlib.Path(path).resolve().parents[1:3]]


def _program():
    """The path of distorchctl, or None."""
    for folder in _beside_the_library():
        if os.access(folder / NAME, os.X_OK):
            return str(folder / NAME)
    places = [os.environ.get("PATH", os.defpath), os.path.expanduser("~/.local/bin"),
              "/usr/local/bin", "/usr/bin"]  # a service's path may be short
    return shutil.which(NAME, path=os.pathsep.join(places))


def _finding(text, fix):
    return {"ok": False, "text": text, "fix": fix}


def _ask():
    """[{"ok", "text", "fix"}], as distorchctl says."""
    import subprocess

    program = _program()
    if program is None:
        return [_finding(f"{NAME} was not found", "scripts/install puts it into ~/.local/bin")]
    command, socket = [program, "doctor", "--json"], session.given_socket()
    if socket is not None:
        command.append(f"--socket={socket}")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=TIMEOUT_S, check=False, cwd="/")
        return [{"ok": one["ok"], "text": one["text"], "fix": one.get("fix")}
                for one in json.loads(done.stdout)["checks"]]
    except subprocess.TimeoutExpired:
        return [_finding(f"{NAME} doctor has not answered in {TIMEOUT_S} s",
                         f"{NAME} logs; or start the daemon anew")]
    except (OSError, ValueError, KeyError, TypeError) as failure:
        return [_finding(f"{program} doctor failed: {failure}", f"run {NAME} doctor in a terminal")]


def look():
    """{"checks": [{"ok", "text", "fix"}]}"""
    from .news import overview

    checks = _ask()
    reason = why_disabled()
    if reason is not None:
        checks.append(_finding(reason, "set it otherwise to use distorchd"))
        return {"checks": checks}
    found = overview()
    if found.get("mismatch"):
        checks.append(_finding(found["mismatch"], FIX))
    elif not found["available"]:
        if all(one["ok"] for one in checks):  # only ComfyUI's process has trouble
            checks.append(_finding(f"ComfyUI does not reach the daemon: {found['reason']}",
                                   "its environment: DISTORCH_SOCKET, DISTORCH_LIBRARY"))
    else:
        checks.append({"ok": True, "text": f"ComfyUI's pack is {pack_version()}", "fix": None})
    return {"checks": checks}
