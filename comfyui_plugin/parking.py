# SPDX-License-Identifier: Apache-2.0
"""A placed model that ComfyUI has unloaded, and still has in its cache, leaves the cards: its blocks
move to RAM, and its parameters are bound to them there. When it is loaded again, it is placed again
as it was; where that fails it computes from RAM.

A file may be more than one model (a checkpoint's parts): they leave together, once core has none
of them loaded, for a lease is of a whole file.
"""
import logging
import threading
import weakref

from . import probe
from .session import Unavailable, ended, session

log = logging.getLogger("distorch")

GROUP = "distorch_group"  # on a model: the Group that it is of


def _none():
    return None


def _files(resident):
    return resident.tensors(), resident.devices()


class Group:
    """The models of one load of the same files. `open_placed` and `open_in_ram` return Residents of
    them; the latter in the middle of core's unloading, where nothing may be cancelled.
    `rebind(models, before, after)` binds them to other memory of the same bytes; both are the
    files' [({name: tensor}, {name: device})]."""

    def __init__(self, residents, open_placed, open_in_ram, rebind):
        self._open = {False: open_placed, True: open_in_ram}
        self._rebind = rebind
        self._lock = threading.RLock()
        self._residents = [(resident, []) for resident in residents]  # [(weak user, its end)]
        self._members = []  # weak models
        self._loaded = weakref.WeakSet()
        self.is_parked = False

    def __reduce__(self):
        return _none, ()  # a copy of a model has memory of its own

    def add(self, model):
        setattr(model, GROUP, self)
        self._members.append(weakref.ref(model))

    def keep(self, user):
        """The leases live as long as `user`, whichever they are by then."""
        for resident, users in self._residents:
            users.append((weakref.ref(user), resident.keep_with(user)))

    def _move(self, into_ram):
        """Bind all of them to the files' memory as it then lies; bytes that left the cards."""
        before = sum(resident.bytes_elsewhere() for resident, _ in self._residents)
        found = self._open[into_ram]()
        try:
            models = [model for member in self._members if (model := member()) is not None]
            self._rebind(models, [_files(resident) for resident, _ in self._residents],
                         [_files(resident) for resident in found])
        except BaseException:
            for resident in found:
                resident.release()
            raise
        self._swap(found)
        self.is_parked = into_ram
        return before - sum(resident.bytes_elsewhere() for resident in found)

    def _swap(self, found):
        """The models live on the new leases; the old ones end."""
        old, self._residents = self._residents, [(resident, []) for resident in found]
        for user in [user() for user, _end in old[0][1]]:
            if user is not None:
                self.keep(user)
        for resident in found:
            resident.is_used = True
            resident.release()  # what opening it held
        for resident, users in old:
            resident.is_used = False  # its end is no news
            for _user, end in users:
                if end.detach() is not None:
                    resident.release()

    def _may_leave(self):
        """Nobody keeps or has pinned it, and no other process uses it as it lies."""
        ids = {resident.id for resident, _ in self._residents}

        def ask(connection):
            models, own = connection.list(), connection.server().client  # of after the question
            return not any(model.keep or model.pinned or
                           any(user.client != own for user in model.users)
                           for model in models if model.id in ids)

        return session.call(ask)

    def begin(self, model):
        """Core is about to load it."""
        with self._lock:
            self._loaded.add(model)
            if self.is_parked:
                try:
                    self._move(into_ram=False)
                except probe.interruptions():
                    raise
                except Exception as failure:  # it computes from RAM
                    log.warning("distorch: not placed again: %s", failure)

    def end(self, model):
        """Core has unloaded it; it and those of the same files leave the cards."""
        with self._lock:
            self._loaded.discard(model)
            if self._loaded or self.is_parked:
                return
            try:
                nbytes = self._move(into_ram=True) if self._may_leave() else 0
            except Unavailable as failure:  # no room in RAM, say: it stays
                log.info("distorch: it stays on its devices: %s", failure.reason)
                return
            except Exception:
                log.warning("distorch: it stays on its devices", exc_info=True)
                return
            for resident, _ in self._residents:
                if nbytes > 0:
                    ended.put(("moved", resident.id, nbytes))


def begin(model):
    group = getattr(model, GROUP, None)
    if group is not None:
        group.begin(model)


def end(model):
    group = getattr(model, GROUP, None)
    if group is not None:
        group.end(model)
