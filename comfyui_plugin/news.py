# SPDX-License-Identifier: Apache-2.0
"""Tells the pages that look what the daemon holds, when that changes.

One thread, as long as a page looks: it waits for the daemon's events over a connection of its own,
and asks what is held only when one came, this process took or left a model, or a load is under way.
At rest there is one ping in five seconds.
"""
import os
import threading
import time

from . import comfy_server, crash, doctor
from .session import DISABLED, RETRY_S, Unavailable, binding, session

EVENT = "distorch.status"
SETTING = "distorch.refresh"  # of the page
LABEL = "ComfyUI page"  # of connections, in listings
BETWEEN_S = 1  # of two tellings, where the page's setting says nothing else
LEAST_S, MOST_S = 0.5, 10  # of them, whatever that says
LOOK_S = 1  # how often it looks whether anybody looks
N_LAST = 12  # lines of history
TYPES = ("evicted", "unloaded", "refused", "load.failed", "quarantined", "placed",
         "place.failed")
N_LOADS = 8  # the speed is that of the last ones


# ---- what is told ----

def model_of(one):
    return {"id": one.id, "name": one.name, "bytes": one.bytes, "state": one.state,
            "progress": one.progress_bytes, "pinned": one.pinned, "keep": one.keep,
            "leases": one.leases, "allocation": one.allocation,
            "where": [{"device": session.name_of(place.device), "bytes": place.bytes}
                      for place in one.where],
            "users": [{"pid": user.pid, "comm": user.comm, "is_me": user.pid == os.getpid()}
                      for user in one.users]}


def device_of(one):
    return {"name": session.name_of(one.name), "is_visible": session.sees(one.name),
            "state": one.state, "text": one.text,
            "product": one.product,
            "used": one.used, "budget": one.budget, "total": one.total, "free": one.free,
            "draining": one.draining}


def _record(one):
    return {"time_ms": one.time_ms, "type": one.type, "model": one.model, "name": one.name,
            "device": one.device and session.name_of(one.device), "bytes": one.bytes,
            "why": one.why}


def _speed(records):
    """Bytes a second of the last loads; None: none was measured."""
    loads = [one for one in records if one.bytes and one.duration_ms][-N_LOADS:]
    ms = sum(one.duration_ms for one in loads)
    return sum(one.bytes for one in loads) * 1000 // ms if ms else None


def overview():
    """All that the page shows; times in it are those of things that happened, so that it is equal
    while nothing does."""
    def ask(connection):
        status = connection.status()
        return {"available": True, "version": status.version,
                "mismatch": doctor.mismatch(status.version),
                "hits": status.hits, "misses": status.misses,
                "devices": [device_of(one) for one in status.devices],
                "models": [model_of(one) for one in connection.list()],
                "last": [_record(one) for one in connection.events(types=TYPES)[-N_LAST:]],
                "speed": _speed(connection.events(types="load.done"))}

    try:
        return session.call(ask)
    except Unavailable as failure:
        return {"available": False, "reason": failure.reason,
                "is_off": failure.code == DISABLED}


def left_warm():
    """Models of a ComfyUI that is gone, and that nobody wants since; until a page says that it has
    told of them."""
    ids = crash.left_behind()
    if not ids:
        return []
    try:
        models = session.call(lambda connection: connection.list())
    except Unavailable:
        return []
    gone = ids - {one.id for one in models}
    if gone:
        crash.forget(gone)
    return [model_of(one) for one in models if one.id in ids and one.leases == 0 and
            one.state == "resident" and not one.pinned and not one.keep]


# ---- who is told ----

def _between():
    """Seconds from one telling to the next; 0: nothing is told unless a page asks."""
    found = comfy_server.setting(SETTING)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return BETWEEN_S
    return min(max(found, LEAST_S), MOST_S) if found > 0 else 0


class News:
    """Of one server."""

    def __init__(self, server):
        self._server = server
        self._lock = threading.Lock()
        self._pages = set()
        self._thread = None
        self._told = None
        self._n_looks = 0  # that are due without an event
        self._between = BETWEEN_S  # as it was when somebody was last looked for
        session.on_change.append(self._note)

    def _note(self, _model, _is_taken):
        self._n_looks = 2  # what is left is mapped for a moment more

    def follow(self, page):
        """Tell the page of this id, as long as it is connected."""
        with self._lock:
            if page not in self._server.sockets:
                return
            self._pages.add(page)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True,
                                                name="distorch-news")
                self._thread.start()

    def _is_wanted(self):
        with self._lock:
            self._pages &= set(self._server.sockets)
            if not self._pages:
                self._thread = None
            return bool(self._pages)

    def _run(self):
        self._told = None
        try:
            while self._is_wanted():
                if self._is_looked_at():
                    self._follow_daemon()
                else:
                    time.sleep(LOOK_S)
        except BaseException:
            self._thread = None  # the next page that asks begins anew
            raise

    def _follow_daemon(self):
        """Until it is gone, or nobody wants to be told any more."""
        try:
            with session.connect(LABEL) as connection:
                connection.subscribe()
                self._tell()
                heard = time.monotonic()
                while self._is_looked_at():
                    self._listen(connection)
                    if time.monotonic() - heard > RETRY_S:
                        connection.ping()  # the library is silent of a daemon that is gone
                        heard = time.monotonic()
                return
        except Unavailable:
            pass
        except binding().Error:
            pass
        self._tell()
        end = time.monotonic() + RETRY_S
        while time.monotonic() < end and self._is_looked_at():
            time.sleep(LOOK_S)

    def _is_looked_at(self):
        if not self._pages & set(self._server.sockets):
            return False
        self._between = _between()
        return self._between > 0

    def _listen(self, connection):
        is_loading = self._has_loads()  # how far they are comes with no event
        if connection.next_event(self._between if is_loading else LOOK_S) is None:
            if self._n_looks == 0 and not is_loading:
                return
            self._n_looks = max(0, self._n_looks - 1)
        self._tell()
        end = time.monotonic() + self._between
        while (left := end - time.monotonic()) > 0:  # what comes meanwhile is told of together
            if connection.next_event(left) is not None:
                self._n_looks = max(self._n_looks, 1)

    def _has_loads(self):
        return any(one["state"] == "loading" for one in (self._told or {}).get("models", ()))

    def _tell(self):
        found = overview()
        if found == self._told:
            return
        self._told = found
        for page in list(self._pages):
            self._server.send_sync(EVENT, found, page)
