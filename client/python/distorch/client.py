# SPDX-License-Identifier: Apache-2.0
"""A connection to distorchd."""

import _thread
import concurrent.futures
import contextlib
import ctypes
import os
import sys
import threading
import time
import warnings
import weakref
from ctypes import POINTER, byref

from . import _arguments as given
from . import _library as lib
from . import results
from .tensors import Lease, Weights

_PATH_SIZE = 4096
_EVENT_SLICE_MS = 250  # how often a waiting thread looks for Ctrl-C
_QUIET_SLICE_MS = 1000  # and how often one looks that gets none


def last_error(pointer):
    """The calling thread's last failure as a distorch.Error."""
    return lib.read_error(lib.library().error(pointer))


def connect(path=None, *, client=None, label=None, timeout=None, devices=()):
    """Connect to the daemon at `path` (None: $DISTORCH_SOCKET, the user's, then the system's).
    `client` is "name/version" of the program, `label` how listings call this connection.
    `timeout` in seconds (None, 0: 30) bounds every call but load, open, place, reserve, verify and
    unload with `recall`: these wait as long as the daemon answers at all. `devices`: the UUIDs
    of those that this process sees, in the order in which it counts them, as torch does; then
    cuda:0 in what it asks for is the first card of these. Answers name devices as the daemon does.

    When the daemon ends, calls under way raise an Error with the code "no-connection" (or
    "shutting-down", where it ended in order), which is retryable: the next call of the same
    Connection connects again. Weights and arrays that exist stay usable meanwhile and afterwards,
    and are attached again when a daemon is back; reservations have ended."""
    return Connection(path, client=client, label=label, timeout=timeout, devices=devices)


def _policy(pin=None, keep=None, ttl=None, priority=None, duration=None):
    """Wishes; None is not said."""
    policy = lib.POLICY()
    if pin is not None:
        policy.said |= lib.SAID_PIN
        policy.pin = given.flag("pin", pin)
    if keep is not None:
        policy.said |= lib.SAID_KEEP
        policy.keep = given.flag("keep", keep)
    if priority is not None:
        policy.said |= lib.SAID_PRIORITY
        policy.priority = given.whole("priority", priority, -100, 100)
    if ttl is not None:
        policy.said |= lib.SAID_TTL
        policy.ttl_ms = given.ms("ttl", ttl)
    if duration is not None:
        policy.said |= lib.SAID_FOR
        policy.for_ms = given.ms("duration", duration)
    return policy


_PLACEMENT = ("compute", "virtual_vram", "donors", "strategy", "granularity")


def _place_into(options, allocation, more, name="allocation", must_say=True):
    """Where blocks go, in the structure of a load or a placement; `name` is the allocation's."""
    unknown = set(more) - set(_PLACEMENT)
    if unknown:
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    options.allocation = given.optional_text(name, allocation)
    for member in ("compute", "strategy", "granularity"):
        setattr(options, member, given.optional_text(member, more.get(member)))
    virtual_vram = more.get("virtual_vram")
    options.virtual_vram = 0 if virtual_vram is None else given.size("virtual_vram", virtual_vram)
    is_blank = must_say if allocation is None else not options.allocation.strip(b" ;")
    if is_blank and options.virtual_vram == 0:
        raise results.Error("bad-argument", f"{name} does not say where the blocks are to go",
                            'say it as "cuda:0,6gb;cpu,*" or "auto", or say virtual_vram')
    donors = more.get("donors")
    options.donors, options.n_donors = given.texts("donors", () if donors is None else donors)
    return options


def _neither(path, failure):
    """The error of an open of what is no file, made of the daemon's about it as a name."""
    if failure.code == "not-found":
        model = "no resident model is called so"
        hint = "check the path; list() shows the models and their names"
    else:
        model = "the model that is called so is not resident"
        hint = "open it by the path of its file"
    return results.Error(failure.code, f"there is no file {path}, and {model}", hint,
                         failure.retryable, failure.detail)


def _done(model):
    """The last progress of a load or a move."""
    return results.Progress(model.id, "done", model.bytes, model.bytes)


def _watch(function, raised):
    """The progress callback of one call: `send` takes a progress and answers whether to cancel.
    It is there without a `function` too, so that Ctrl-C is noticed.

    Python handles a signal at the start of a function, where no `try` of that function holds
    yet, and ctypes drops what a callback raises. A generator goes on inside its `try`; so also
    KeyboardInterrupt comes into `raised`, ends the call, and is raised again after it.
    """
    try:
        while True:
            progress = yield 0
            if function is not None:
                function(results.Progress(**lib.values(progress.contents)))
    except GeneratorExit:
        return
    except BaseException as failure:
        raised.append(failure)
    while True:
        yield 1


@contextlib.contextmanager
def _watched(options, progress):
    """Around the call that takes the options: what `progress` raises ends it, and is raised."""
    raised = []
    watch = _watch(progress, raised)
    next(watch)
    options.progress = lib.PROGRESS_FN(watch.send)
    try:
        yield
    except results.Error:
        if raised:
            raise raised.pop() from None
        raise
    if raised:  # too late to cancel
        raise raised.pop()


def _in_main_thread():
    return threading.current_thread() is threading.main_thread()


def _interruptibly(call, undo=None):
    """What `call` returns. Python handles signals in the main thread and not while that waits in
    C: there, another thread makes the call. One that is interrupted goes on alone; `undo` gets
    what it returns, which nobody else will."""
    if not _in_main_thread():
        return call()
    future = concurrent.futures.Future()
    done = _thread.allocate_lock()

    def work():
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as failure:  # for who waits
                future.set_exception(failure)
        done.release()

    try:
        done.acquire()
        # Not by a condition, as Thread.start and Future.result wait: interrupted as it lets go of
        # its lock it raises RuntimeError.
        _thread.start_new_thread(work, ())
        done.acquire()
        return future.result()
    except BaseException:
        if not future.cancel() and undo is not None:  # it has begun
            future.add_done_callback(lambda _: future.exception() or undo(future.result()))
        raise


class _Recall:
    """What on_recall asked for. Its weights own it and the connection refers to it weakly: the
    callback may hold the weights, and then all three go together."""

    def __init__(self, lease, callback):
        self.lease = weakref.ref(lease)
        self.callback = callback

    def is_of(self, number):
        lease = self.lease()
        return lease is not None and lib.library().weights_lease(lease.pointer) == number


class Connection:
    """A connection; safe to use from several threads at once. The daemon has 31 calls of it at a
    time; further ones wait, and after `timeout` are an Error with the code "too-many"."""

    def __init__(self, path=None, *, client=None, label=None, timeout=None, devices=()):
        self._closing = False
        self._pointer = None
        self._running = []  # who makes calls: identities of threads
        self._begin()
        self._library = lib.library()
        options = lib.OPTIONS(client=given.optional_text("client", client),
                              label=given.optional_text("label", label),
                              timeout_ms=given.timeout_ms(timeout))
        options.device_uuids, options.n_device_uuids = given.texts("devices", devices)
        path = given.optional_text("path", path)
        self._path = os.fsdecode(path or self._default_path())
        pointer = ctypes.c_void_p()
        if self._library.open(path, byref(options), byref(pointer)) < 0:
            raise last_error(None)
        self._pointer = pointer

    def _begin(self):
        """What starts afresh in a forked child: there the other threads are not, and the leases
        are the parent's."""
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)  # a call has ended
        self._running = [thread for thread in self._running if thread == threading.get_ident()]
        self._recalls = weakref.WeakSet()
        self._listener = None  # the thread that waits for recalls
        self._unheard = {}  # recalls that are next_event's: the newest of each lease
        _connections.add(self)

    def _default_path(self):
        found = ctypes.create_string_buffer(_PATH_SIZE)
        self._library.default_path(found, _PATH_SIZE)  # too long: open says so
        return found.value

    def __repr__(self):
        is_open = self._pointer is not None and not self._closing
        return f"<distorch.Connection to {self._path!r}, {'open' if is_open else 'closed'}>"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def close(self):
        """End the connection. Calls that other threads have running are cancelled or end first;
        weights and arrays stay as they are."""
        me = threading.get_ident()
        with self._lock:
            if self._pointer is None or self._closing:
                return
            self._closing = True
            listener = self._listener and self._listener.ident
            must_cancel = any(thread != listener for thread in self._running)
            self._running.append(me)
        try:
            if must_cancel:
                self._library.cancel(self._pointer, 0)
            with self._lock:  # where the interpreter ends, a thread may never leave
                self._left.wait_for(lambda: listener == me or listener not in self._running,
                                    _QUIET_SLICE_MS / 1000)
        finally:
            self._leave()

    def _leave(self):
        """The end of a call; of the last one once the connection was closed, that of both."""
        with self._lock:
            self._running.remove(threading.get_ident())
            self._left.notify_all()
            if not self._closing or self._running:
                return
            pointer, self._pointer = self._pointer, None
        self._library.close(pointer)

    @contextlib.contextmanager
    def _use(self):
        """The pointer, which is not freed meanwhile."""
        with self._lock:
            if self._pointer is None or self._closing:
                raise results.Error("no-connection", "the connection was closed")
            self._running.append(threading.get_ident())
            pointer = self._pointer
        try:
            yield pointer
        finally:
            self._leave()

    def _call(self, name, *arguments):
        with self._use() as pointer:
            if getattr(self._library, name)(pointer, *arguments) < 0:
                raise last_error(pointer)

    def _ask(self, name, made, read, *arguments):
        """Call a function whose last argument returns a structure; read it and free it."""
        pointer = POINTER(made)()
        self._call(name, *arguments, byref(pointer))
        try:
            return read(pointer.contents)
        finally:
            self._library.free[made.__name__](pointer)

    def _ask_one(self, name, made, into, *arguments):
        return self._ask(name, made, lambda found: into(**lib.values(found)), *arguments)

    def _ask_list(self, name, made, member, *arguments):
        return self._ask(name, made, lambda found: lib.values(found)[member], *arguments)

    # ---- models ----

    def _load(self, path, wants_weights, options, progress):
        loaded = POINTER(lib.LOADED)()
        lease = Lease() if wants_weights else None
        try:
            with _watched(options, progress):
                self._call("load", path, byref(options), byref(loaded),
                           byref(lease.pointer) if wants_weights else None)
            found = lib.values(loaded.contents)
        finally:
            self._library.free["distorch_loaded"](loaded)
        model = results.Loaded(**found.pop("model"), **found)
        if progress is not None and (model.state == "resident" or not options.no_wait):
            progress(_done(model))
        return model, Weights(lease, self, model.source) if wants_weights else None

    @staticmethod
    def _load_options(keep, pin, ttl, priority, duration, more):
        policy = _policy(pin, keep, ttl, priority, duration)
        for value, bit in ((policy.pin, lib.SAID_PIN), (policy.keep, lib.SAID_KEEP),
                           (policy.priority, lib.SAID_PRIORITY)):
            if not value:
                policy.said &= ~bit
        options = lib.LOAD_OPTIONS(policy=policy)
        options.no_wait = not given.flag("wait", more.pop("wait", True))
        to, allocation = more.pop("to", None), more.pop("allocation", None)
        if to is not None and allocation is not None:
            raise TypeError("to and allocation are one option: say one of them")
        for member in ("name", "format", "backing"):
            setattr(options, member, given.optional_text(member, more.pop(member, None)))
        _place_into(options, allocation if to is None else to,
                    {name: more.pop(name) for name in _PLACEMENT if name in more},
                    "allocation" if to is None else "to", must_say=False)
        if more:
            raise TypeError(f"load has no option {', '.join(sorted(more))}")
        return options

    def load(self, path, *, keep=False, pin=False, ttl=None, priority=0, duration=None,
             progress=None, **more):
        """Load a file, or join a running load of it; returns a Model.

        keep, pin and priority are said only when they are not False or 0 (take a wish back by
        unkeep, unpin and set); `ttl` and `duration` (of pin and keep) are seconds. `progress` is
        called with a Progress, the last time at 100 % when the load has succeeded; what it raises
        is raised by the load, which is cancelled unless it was done. So is KeyboardInterrupt.
        More options: name (of a file that the daemon does not know yet), format, backing,
        wait=False (return once the load has begun), `to`, an allocation as "cuda:0,6gb;cpu,*"
        (also: allocation), and with it compute, virtual_vram (bytes), donors, strategy and
        granularity, as for place."""
        options = self._load_options(keep, pin, ttl, priority, duration, more)
        return self._load(given.text("path", path), False, options, progress)[0]

    def open(self, path, *, keep=False, pin=False, ttl=None, priority=0, duration=None,
             progress=None, **more):
        """Load if needed and attach, in one step; returns Weights. Options as for load. What is
        no file is taken for the name or id of a resident model; then no wishes are said."""
        options = self._load_options(keep, pin, ttl, priority, duration, more)
        path = given.text("path", path)
        is_name = b"/" not in path and os.path.isdir(path)  # a folder here is no model
        if os.path.exists(path) and not is_name or os.path.exists(path + b".index.json"):
            return self._load(path, True, options, progress)[1]
        try:
            weights = self.attach(path)
        except results.Error as failure:
            if failure.code not in ("not-found", "not-resident"):
                raise
            raise _neither(os.fsdecode(path), failure) from None
        if progress is not None:
            progress(_done(self.show(weights.id).model))
        return weights

    def attach(self, model):
        """Attach a resident model by name, id or path; returns Weights. One that is not resident
        is an Error with the code "not-resident"."""
        lease = Lease()
        self._call("attach", given.text("model", model), byref(lease.pointer))
        return Weights(lease, self)

    # ---- blocks over devices ----

    def place(self, model, allocation=None, *, progress=None, **more):
        """Move the blocks of a resident model between devices, all or nothing; returns a Moved.
        `allocation` is a string as "cuda:0,6gb;cpu,*", "cuda:1" or "auto"; options: compute (a
        device), virtual_vram (bytes that live off it) and donors (devices that take them),
        strategy ("contiguous", "spread"), granularity ("block", "tensor"). Weights that are
        attached stay as they are. `progress` is called as by load; what it raises cancels the
        move, unless that was done, and is raised, as KeyboardInterrupt is."""
        options = _place_into(lib.PLACEMENT(), allocation, more)

        def read(found):
            moved = lib.values(found)
            return results.Moved(**moved.pop("model"), **moved)

        name = given.text("model", model)
        with _watched(options, progress):
            moved = self._ask("place", lib.MOVED, read, name, byref(options))
        if progress is not None:
            progress(_done(moved))
        return moved

    def plan(self, model=None, allocation=None, *, blocks=None, **more):
        """What place would do, as a Plan; changes nothing. Options as for place. It plans by the
        blocks that the model has: another granularity than it lies by is an Error with the code
        "unsupported" (`distorchctl plan FILE --granularity tensor` plans by the file).

        Instead of a model, `blocks` may be a list of at most 512 (name, bytes), in the order in
        which they are used: then it is what a load of a model of these would do. Names, of at most
        4,200 bytes, tell the parts of a model as tensors' do: "vae.decoder.up.0" is of the VAE, and
        what has no number between dots is of the head. The granularity "tensor" is not for them:
        say each tensor."""
        if (model is None) == (blocks is None):
            raise TypeError("plan takes a model or blocks: say one of them")
        options = _place_into(lib.PLACEMENT(), allocation, more)
        name, what = ("plan", [given.text("model", model)]) if blocks is None else \
            ("plan_blocks", given.blocks("blocks", blocks))
        return self._ask_one(name, lib.PLAN, results.Plan, *what, byref(options))

    def reserve(self, device, bytes, *, ttl=None, recall=None):
        """Room on a device for what the daemon knows nothing of; returns a Reservation, which a
        `with` block ends. What nobody uses is evicted for it and comes back afterwards. `ttl`:
        it ends by itself after so many seconds (None: it does not); `recall`: ask those who lease
        something there, but for this connection itself, to let it go, and wait so many seconds for
        them. KeyboardInterrupt is raised at once; the daemon may still ask and evict, and room
        that comes of it is given back."""
        options = lib.RESERVE_OPTIONS(ttl_ms=given.ms("ttl", ttl),
                                      recall_ms=given.ms("recall", recall))
        if ttl is not None and options.ttl_ms == 0:
            raise ValueError("ttl must be more than 0 seconds; None means that it does not end")
        name, size = given.text("device", device), given.size("bytes", bytes)

        def call():
            found = self._ask("reserve", lib.RESERVATION, lib.values, name, size, byref(options))
            return Reservation(self, device, bytes, ttl, **found)

        return _interruptibly(call, undo=Reservation.release)

    def unload(self, *models, names=(), under=None, device=None, idle=None, not_kept=False,
               mine=False, all=False, recall=None):
        """Free memory selectively; all conditions must hold. Returns a Report.

        `models` are names, ids or paths, `names` patterns such as "*.vae.safetensors" (a single
        string is one pattern), `under` a folder; not used for `idle` seconds; `not_kept` leaves
        what is kept or pinned; `mine` means models that this user has a wish or lease on;
        `recall` asks those who use one to let it go, and waits so many seconds for them;
        KeyboardInterrupt is raised at once then, and the daemon goes on with it."""
        select = lib.SELECT(under=given.optional_text("under", under),
                            device=given.optional_text("device", device),
                            idle_ms=given.ms("idle", idle),
                            not_kept=given.flag("not_kept", not_kept),
                            mine=given.flag("mine", mine), all=given.flag("all", all))
        if recall is not None:
            select.mode = b"recall"
            select.recall_ms = given.ms("recall", recall)
        select.models, select.n_models = given.model_texts(models)
        select.names, select.n_names = given.texts("names", names)

        def call():
            return self._ask_one("unload", lib.REPORT, results.Report, byref(select))

        return call() if recall is None else _interruptibly(call)

    def set(self, model, *, pin=None, keep=None, ttl=None, priority=None, duration=None,
            label=None):
        """Change wishes of this user about a model; None leaves one as it is, ttl=0 takes that
        one back. The label is one for all users: who loaded it first and administrators say it,
        "" takes it away. Returns the Model."""
        policy = _policy(pin, keep, ttl, priority, duration)
        return self._ask_one("set", lib.MODEL, results.Model, given.text("model", model),
                             byref(policy) if policy.said else None,
                             given.optional_text("label", label))

    def pin(self, model, duration=None):
        """Never evict it (for `duration` seconds)."""
        return self.set(model, pin=True, duration=duration)

    def unpin(self, model):
        return self.set(model, pin=False)

    def keep(self, model, duration=None):
        """Let it survive a selective unload (for `duration` seconds)."""
        return self.set(model, keep=True, duration=duration)

    def unkeep(self, model):
        return self.set(model, keep=False)

    # ---- looking ----

    def list(self, *, device=None, mine=False, all=False):
        """The models that hold bytes, are being loaded or wished for, or whose last load failed;
        `all`: also those registered."""
        query = lib.LIST_FILTER(device=given.optional_text("device", device),
                                mine=given.flag("mine", mine), all=given.flag("all", all))
        return self._ask_list("list", lib.MODELS, "models", byref(query))

    def show(self, model):
        """All about one model, as a Detail."""
        pointer = POINTER(lib.DETAIL)()
        self._call("show", given.text("model", model), byref(pointer), None)
        try:
            return results.Detail(**lib.values(pointer.contents))
        finally:
            self._library.free["distorch_detail"](pointer)

    def table(self, model):
        """The tensors of a model as Weights that describe and map nothing."""
        pointer = POINTER(lib.DETAIL)()
        lease = Lease()
        self._call("show", given.text("model", model), byref(pointer), byref(lease.pointer))
        self._library.free["distorch_detail"](pointer)
        return Weights(lease)

    def status(self):
        return self._ask_one("status", lib.STATUS, results.Status)

    def devices(self):
        return self._ask_list("devices", lib.DEVICES, "devices")

    def budget(self, device=None, bytes=None, *, save=False):
        """The devices with their budgets; with a device and bytes, set its budget first (admin).
        `save` keeps it over restarts and boots (without bytes that of now, without a device
        RAM's); what ranks above that is a warning."""
        save = given.flag("save", save)
        if (device is None) != (bytes is None) and not (save and bytes is None):
            raise ValueError("budget: device and bytes belong together")
        found = self._ask("budget_save" if save else "budget", lib.DEVICES, lib.values,
                          given.optional_text("device", device),
                          lib.ABSENT if bytes is None else given.size("bytes", bytes))
        if found["notice"] is not None:
            warnings.warn(found["notice"], stacklevel=2)
        return found["devices"]

    def clients(self):
        return self._ask_list("clients", lib.CLIENTS, "clients")

    def config(self):
        return self._ask_list("config", lib.SETTINGS, "settings")

    def verify(self, *models):
        """Hash held copies again and compare (admin); none named: all. Returns Checks.
        KeyboardInterrupt is raised at once, and the daemon goes on with it."""
        array, count = given.model_texts(models)
        return _interruptibly(
            lambda: self._ask_list("verify", lib.CHECKS, "checks", array, count))

    def metrics(self):
        """What there is to measure, as OpenMetrics text (admin)."""
        return self._ask_one("metrics", lib.METRICS, dict)["text"]

    def store(self):
        """What is parked with whoever restarts the daemon, as a Store (admin)."""
        return self._ask_one("store", lib.STORE, results.Store)

    def events(self, *, model=None, types=(), since=None):
        """What happened, oldest first, as Records; `since` seconds ago. `types` such as
        "load.done" (a single string is one type)."""
        query = lib.HISTORY_FILTER(model=given.optional_text("model", model),
                                   since_ms=given.ms("since", since))
        query.types, query.n_types = given.texts("types", types)
        return self._ask_list("history", lib.RECORDS, "records", byref(query))

    def why(self, model):
        """The history of one model: why it is where it is."""
        return self.events(model=given.text("model", model))

    def ping(self):
        self._call("ping")

    def server(self):
        """Who answered, as a Server."""
        return self._ask_one("server", lib.SERVER, results.Server)

    def reload(self):
        """Have the daemon read its configuration again (admin); returns a Reloaded. A fault
        in it changes nothing and is an Error that names file and line."""
        return self._ask_one("reload", lib.RELOADED, results.Reloaded)

    def config_set(self, key, value):
        """Save a setting ("section.key") in the daemon's state (admin): it ranks above its
        files, below its environment and command line. None forgets what was saved. Returns a
        Reloaded; its `notice` says what ranks above."""
        return self._ask_one("config_set", lib.RELOADED, results.Reloaded,
                             given.text("key", key), given.optional_text("value", value))

    def warm(self):
        """The models that are loaded at each start, as WarmEntries (admin)."""
        return self._ask_list("warm", lib.WARM, "entries", 0, None)

    def warm_add(self, path):
        """Have a file loaded at each start, and now (admin): the daemon opens it itself, with its
        own rights. Returns the list afterwards, without waiting for the load."""
        path = os.path.abspath(os.fsdecode(given.text("path", path)))
        return self._ask_list("warm", lib.WARM, "entries", 1, os.fsencode(path))

    def warm_remove(self, path):
        """Take a file off the list (admin); what is in memory stays. Returns the list."""
        path = os.path.abspath(os.fsdecode(given.text("path", path)))
        return self._ask_list("warm", lib.WARM, "entries", 2, os.fsencode(path))

    def drain(self, on=None, *, device=None):
        """Have the daemon refuse new loads (True), take them again (False), or only look (None);
        returns a Drain at once: what is still under way (admin)."""
        order = 0 if on is None else 1 if given.flag("on", on) else 2
        return self._ask_one("drain", lib.DRAIN, results.Drain,
                             given.optional_text("device", device), order)

    def shutdown(self):
        """End the daemon in order (admin)."""
        self._call("shutdown")

    # ---- recalls ----

    def _on_recall(self, lease, callback):
        recall = _Recall(lease, callback)
        with self._lock:
            self._recalls.add(recall)
            if self._listener is None:
                thread = threading.Thread(target=_listen, args=(weakref.ref(self),), daemon=True,
                                          name="distorch-recalls")
                thread.start()
                self._listener = thread
        return recall

    def _told_by(self, event):
        """The callbacks for a recall."""
        with self._lock:
            found = list(self._recalls)
        return [recall.callback for recall in found if recall.is_of(event.lease)]

    def _tell(self, event):
        """Call who asked for the recalls of its lease; False: nobody did."""
        callbacks = self._told_by(event)
        for callback in callbacks:
            try:
                callback(event)
            except BaseException as failure:
                if isinstance(failure, KeyboardInterrupt) and _in_main_thread():
                    raise  # next_event's, not the callback's
                threading.excepthook(threading.ExceptHookArgs(
                    (*sys.exc_info(), threading.current_thread())))
        return bool(callbacks)

    def _hear(self):
        """Wait a moment for a recall and tell of it. False: nobody asks for them any more."""
        with self._lock:
            recalls = list(self._recalls)  # where one ends now, it does so without the lock
            if self._closing or not any(recall.lease() for recall in recalls):
                self._listener = None
                return False
        del recalls
        try:
            event = self._ask_one("next_recall", lib.EVENT, results.Event, _EVENT_SLICE_MS)
        except results.Error as failure:
            if failure.code == "timeout":
                return True
            time.sleep(_EVENT_SLICE_MS / 1000)  # the daemon is away; the library comes back
            return True
        if not self._tell(event):
            with self._lock:
                self._unheard.pop(event.lease, None)
                self._unheard[event.lease] = event
        return True

    # ---- events as they happen ----

    def subscribe(self, *, events=(), models=()):
        """Have events sent from now on; returns an iterator of Event. `events` are types,
        `models` ids (a single string is one of them). A later call replaces what an earlier one
        asked for: all iterators of a connection take from one queue."""
        query = lib.EVENT_FILTER()
        query.events, query.n_events = given.texts("events", events)
        query.models, query.n_models = given.texts("models", models)
        self._call("subscribe", byref(query))
        return Subscription(self)

    def next_event(self, timeout=None):
        """The oldest event, or None when `timeout` seconds (None: for ever) brought none. With
        weights or a subscription it waits on when the daemon has ended: the library connects again,
        and the event "overflow" tells a subscriber that something may have been missed. Without
        either it is an Error then, "no-connection" or "shutting-down", until another call has
        connected again."""
        left = None if timeout is None else given.wait_ms("timeout", timeout)
        while True:
            with self._lock:
                if self._unheard:
                    return self._unheard.pop(next(iter(self._unheard)))
            wait = _EVENT_SLICE_MS
            if not self._recalls and not _in_main_thread():
                wait = _QUIET_SLICE_MS
            wait = wait if left is None else min(left, wait)
            try:
                event = self._ask_one("next_event", lib.EVENT, results.Event, wait)
                if event.type == "recall":  # the listening thread was not the first
                    self._tell(event)
                return event
            except results.Error as failure:
                if failure.code != "timeout":
                    raise
            if left is not None:
                left -= wait
                if left <= 0:
                    return None


def _listen(reference):
    """The thread of a connection that takes its recalls; it keeps no connection open."""
    while True:
        connection = reference()
        if connection is None or not connection._hear():
            return
        del connection


def _after_fork():
    for connection in list(_connections):
        connection._begin()


_connections = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)


class Reservation:
    """Room on a device: `device`, `bytes`, `evicted` (what made room). It ends by release(), the
    end of a `with` block, its time, or the end of the connection, also where the daemon's end is
    that."""

    def __init__(self, connection, device, bytes, ttl, token, evicted):
        self._connection = connection
        self._until = time.monotonic() + ttl if ttl else None
        self._token = token
        self.device = os.fsdecode(device)
        self.bytes = bytes
        self.evicted = evicted

    def __repr__(self):
        state = "released" if self._token is None else "ended" if self._has_ended() else "held"
        return f"<distorch.Reservation of {self.bytes} bytes on {self.device}, {state}>"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    def _has_ended(self):
        """By its time or a close; what else ends it the daemon alone knows."""
        is_over = self._until is not None and time.monotonic() >= self._until
        return is_over or self._connection._closing

    def release(self):
        """End it; one that has ended already is fine."""
        token, self._token = self._token, None
        if token is None:
            return
        try:
            self._connection._call("release", token)
        except results.Error as failure:
            if failure.code not in ("not-found", "no-connection"):
                raise


class Subscription:
    """Iterates over the events of its connection as they come, also of the next daemon when this
    one ends; a close of the connection is an Error with the code "no-connection"."""

    def __init__(self, connection):
        self.connection = connection

    def __iter__(self):
        return self

    def __next__(self):
        return self.connection.next_event()
