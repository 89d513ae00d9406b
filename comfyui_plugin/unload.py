# SPDX-License-Identifier: Apache-2.0
"""What becomes of models in the daemon once ComfyUI unloads them: by *Unload models* and *Free
memory*, for want of memory, or because another workflow pushed them out of its cache.

Nothing of ComfyUI is patched. A model tells by itself: core calls back when it detaches one, and
a finalizer when the last object over its weights is gone. A thread of ours gathers that until the
prompt is over, acts as the user has set it, and says in one line what was done. Memory under a
model that lives is never touched: the daemon reports it as held.
"""
import contextlib
import logging
import os
import threading
import time

from . import comfy_server, memory, parking, probe
from .session import Unavailable, ended, session

log = logging.getLogger("distorch")

EVENT = "distorch.unloaded"  # to the page
SETTING = "distorch.onUnload"  # of the page
KEEP, RAM, ALL = "keep", "ram", "all"
MODES = (KEEP, RAM, ALL)  # leave it on its devices; move it to RAM; drop it
POLL_S = 0.25  # how often the queue is looked at while something waits for the end of a prompt
SETTLE_S = 1.5  # what is unloaded together comes within this: a collection may lie between


# ---- what the user wants ----

def mode():
    """The environment's word, the page's, or RAM."""
    for word in (os.environ.get("DISTORCH_ON_UNLOAD"), comfy_server.setting(SETTING)):
        if word in MODES:
            return word
    return RAM


# ---- what is done ----

def _entry(model, reason, nbytes=None):
    return {"id": model.id, "name": model.name, "reason": reason,
            "bytes": model.bytes if nbytes is None else nbytes}


def outcome(one):
    """One of a report of the daemon's, as JSON has it."""
    return {"id": one.id, "name": one.name, "reason": one.reason, "bytes": one.bytes}


class Report:
    """What became of the models, by the daemon's three words."""

    def __init__(self, how):
        self.mode = how
        self.kept, self.unloaded, self.held = [], [], []

    def body(self):
        return {"mode": self.mode, "kept": self.kept, "unloaded": self.unloaded,
                "held": self.held, "text": self.text(),
                "total_bytes": sum(one["bytes"] for one in self.unloaded)}

    def text(self):
        return "; ".join(f"{word}: " + ", ".join(f"{one['name'] or one['id'][:8]} "
                                                 f"{size(one['bytes'])} ({one['reason']})"
                                                 for one in found)
                         for word, found in (("unloaded", self.unloaded), ("kept", self.kept),
                                             ("held", self.held)) if found)


def size(nbytes):
    """For people."""
    for unit in ("B", "K", "M", "G"):
        if nbytes < 1024:
            break
        nbytes, unit = nbytes / 1024, "T"
    return f"{nbytes:.1f}{unit}" if unit != "B" else f"{nbytes}B"


def _elsewhere(model):
    """Its bytes on devices."""
    return sum(place.bytes for place in model.where if place.device != "cpu")


def _to_ram(model, report):
    nbytes = _elsewhere(model)
    if nbytes == 0:
        report.kept.append(_entry(model, "in RAM"))
        return
    try:
        session.place(model.id, "cpu")
    except Unavailable as failure:  # no room there: it lingers, then the daemon drops it
        report.kept.append(_entry(model, failure.reason))
    else:
        report.unloaded.append(_entry(model, "moved to RAM", nbytes))


def _drop(connection, models, report):
    """Those that this process still uses go when it is done with them."""
    if models:  # no model named means all of them
        found = connection.unload(*(model.id for model in models), not_kept=True)
        for word in ("kept", "unloaded", "held"):
            getattr(report, word).extend(outcome(one) for one in getattr(found, word))


def act(connection, released, detached, moved, how):
    """Do as `how` says with the models of these ids; a Report. What somebody keeps or has pinned
    stays as it is, and so does what another process uses. `moved`: {id: bytes} of what has left
    the cards when core unloaded it."""
    report = Report(how)
    models, own = connection.list(), connection.server().client  # which the list may make anew
    goes = []
    for model in models:
        is_used = any(user.client == own for user in model.users)
        if model.id not in (detached if is_used else released | detached):
            continue  # it was loaded twice, say, and one of them goes on
        others = [user for user in model.users if user.client != own]
        if model.keep or model.pinned:
            report.kept.append(_entry(model, "pinned" if model.pinned else "kept"))
        elif others:
            report.held.append(_entry(model, f"in use by {others[0].comm} {others[0].pid}"))
        elif how == KEEP:
            report.kept.append(_entry(model, " + ".join(session.name_of(place.device)
                                                          for place in model.where)))
        elif how == RAM and model.id in moved and _elsewhere(model) == 0:
            report.unloaded.append(_entry(model, "moved to RAM", moved[model.id]))
        elif how == RAM and is_used:
            report.held.append(_entry(model, "ComfyUI still has it"))
        elif how == RAM:
            _to_ram(model, report)
        else:
            goes.append(model)
    _drop(connection, goes, report)
    return report


def clear_cards():
    """What nobody uses, keeps or has pinned leaves the cards for RAM; ComfyUI's own models too."""
    if probe.computes_on_cpu():
        return
    clear = getattr(probe.module("comfy.model_management"), "unload_all_models", None)
    if clear is not None:
        clear()
    memory.empty_caches()
    with contextlib.suppress(Unavailable):
        session.call(_clear)


def _clear(connection):
    report = Report(RAM)
    for model in connection.list():
        if not (model.leases or model.keep or model.pinned) and _elsewhere(model) > 0:
            _to_ram(model, report)


def tell(report):
    """In the log, and to the page."""
    log.info("distorch: %s", report.text())
    send = getattr(comfy_server.instance(), "send_sync", None)
    if send is None:
        return
    try:
        send(EVENT, report.body())
    except Exception:  # a page that is not told is no reason to end
        log.debug("distorch: the page was not told", exc_info=True)


# ---- when ----

def _running():
    """The prompts that run now."""
    running, _waiting = comfy_server.prompts()
    return {item[1] for item in running}


class News:
    """What has come in: ids of models."""

    def __init__(self):
        self.released, self.detached, self.moved = set(), set(), {}

    def add(self, kind, model, nbytes=0):
        if kind == "moved":
            self.moved[model] = nbytes
        else:
            (self.released if kind == "released" else self.detached).add(model)


def _gather(first):
    """(News, whether a prompt did it), once the prompts that ran at the first of it are over and
    nothing follows."""
    found, prompts = News(), _running()
    found.add(*first)
    quiet_at = time.monotonic() + SETTLE_S
    while prompts & _running() or time.monotonic() < quiet_at:
        time.sleep(POLL_S)
        while not ended.empty():
            found.add(*ended.get())
            quiet_at = time.monotonic() + SETTLE_S
    return found, bool(prompts)


def _finish(news, in_prompt):
    if not session.is_connected():
        return
    try:
        report = session.call(lambda connection: act(connection, news.released, news.detached,
                                                     news.moved, mode()))
    except Unavailable as failure:
        log.debug("distorch: nothing was unloaded: %s", failure.reason)
        return
    if not _running():
        memory.empty_caches()  # core has emptied that of one card
    # Core detaches models over and over while prompts alternate: that alone is no news.
    if report.unloaded or (report.kept or report.held) and (news.released or not in_prompt):
        tell(report)


def _watch():
    while True:
        try:
            _finish(*_gather(ended.get()))
        except Exception:  # whatever it was: the next one is as good as the first
            log.warning("distorch: what ComfyUI unloaded was not told on", exc_info=True)


_thread = None
_lock = threading.Lock()


def _start():
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_watch, daemon=True, name="distorch-unload")
            _thread.start()


def watch(found, ids):
    """From now on it is noticed when ComfyUI unloads what was made of the models `ids`."""
    _start()
    patcher = probe.patcher_of(found)
    kinds = getattr(probe.module("comfy.patcher_extension"), "CallbacksMP", None)
    kind = getattr(kinds, "ON_DETACH", None)
    if patcher is None or kind is None:
        return

    def detached(one, unpatch_all=True, *_more, **_options):
        if not unpatch_all:  # a clone takes over
            return
        for model in ids:
            ended.put(("detached", model))
        if mode() != KEEP and not getattr(one, "hook_backup", None):
            parking.end(one.model)

    patcher.add_callback_with_key(kind, "distorch", detached)
