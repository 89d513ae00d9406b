# SPDX-License-Identifier: Apache-2.0
"""The daemon, as this ComfyUI uses it: one connection, and the files that it holds for us.

Nothing here raises anything but Unavailable for what the daemon does or does not do; whoever asks
then loads as ComfyUI does by itself.
"""
import atexit
import contextlib
import importlib
import json
import logging
import os
import pathlib
import queue
import shutil
import sys
import tempfile
import threading
import time
import traceback
import weakref

from . import cards, comfy_server, living

RETRY_S = 5  # a daemon that was not there is not looked for again before
NAMES_S = 5  # so long the names of devices hold
SOON_S = 1  # what ComfyUI's server waits for the daemon while it does nothing else
CALL_S = 10  # of any call but a load and a move
PLACE_S = 1800
ROOM_S = 600  # so long is room held at most, should nobody give it back
MAX_HEADER_BYTES = 100 << 20  # of a safetensors file; as its own reader has it
LINKS = "links-"  # how the folder of a process begins
SETTING = "distorch.enable"  # of the page, as the next two
SOCKET, LOG_LEVEL = "distorch.socket", "distorch.logLevel"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
DISABLED = "disabled"  # code of an Unavailable

log = logging.getLogger("distorch")

#: What ComfyUI no longer uses, as ("released" or "detached", model id). Finalizers put into it,
#: wherever they run: of all queues this one alone bears that.
ended = queue.SimpleQueue()


class Unavailable(Exception):
    """The daemon does not serve this: `reason` is one line for a person."""

    def __init__(self, reason, code=None):
        super().__init__(reason)
        self.reason, self.code = reason, code


# ---- the binding ----

def _binding_folders():
    """Where the binding lies when it is not installed: in the pack, or beside it in the source."""
    pack = pathlib.Path(__file__).resolve().parent
    return [pack / "binding", pack.parent / "client" / "python"]


def binding():
    """The Python package of distorchd; Unavailable without."""
    try:
        return importlib.import_module("distorch")
    except ImportError:
        pass
    for folder in _binding_folders():
        if (folder / "distorch" / "__init__.py").is_file():
            sys.path.append(str(folder))
            try:
                return importlib.import_module("distorch")
            except ImportError as failure:
                raise Unavailable(f"its Python package cannot be used: {failure}") from failure
            finally:
                sys.path.remove(str(folder))
    raise Unavailable("its Python package is not installed: run scripts/install --plugin")


def _is_of_binding(failure):
    """Does its Python package refuse an argument (no text for the daemon, say)? Then it, or what it
    asks of os, raised that, and not what it was given to call."""
    modules = [frame.f_globals.get("__name__", "").partition(".")[0]
               for frame, _line in traceback.walk_tb(failure.__traceback__)]
    return [module for module in modules if module != "os"][-1:] == ["distorch"]


# ---- links ----

class _Links:
    """The folder in which files of the daemon have the names that loaders want to see. It is this
    process's own and goes with it; those of processes that were killed go with the next one."""

    def __init__(self):
        self._folder = self._held = None
        self._number = 0
        self._lock = threading.Lock()

    def _make_folder(self):
        for old in living.of_the_dead(LINKS + "*"):
            shutil.rmtree(old, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None
        folder, self._held = living.claim(
            lambda parent: pathlib.Path(tempfile.mkdtemp(prefix=LINKS, dir=parent)))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _make_room(self):
        """A folder for one link. Ours may be gone: a login's goes with it, and some tidy up /tmp."""
        self._number += 1
        for is_last in (False, True):
            self._folder = self._folder or self._make_folder()
            folder = self._folder / str(self._number)
            try:
                folder.mkdir()
                return folder
            except FileNotFoundError:
                if is_last:
                    raise
                self._folder = None

    def add(self, name, fd):
        """A path that ends in `name` and is what `fd` is, for children too."""
        with self._lock:
            path = self._make_room() / name
        path.symlink_to(f"/proc/{os.getpid()}/fd/{fd}")
        return path

    @staticmethod
    def add_companions(link, path):
        """What a loader of GGUF text encoders looks for beside the file."""
        folder = os.path.dirname(path)
        if not path.lower().endswith(".gguf"):
            return
        for name in os.listdir(folder):
            if "mmproj" in name.lower() and name != link.name:
                link.with_name(name).symlink_to(os.path.join(folder, name))


_links = _Links()


def _as_torch(tensor):
    try:
        return tensor.torch()
    except TypeError:
        import torch

        with torch.inference_mode(False):
            return torch.frombuffer(tensor.buffer, dtype=torch.uint8)


class Path(str):
    """A path that the life of a lease hangs on."""


# ---- what is held ----

class Resident:
    """A file in the daemon's memory, leased by this process until nothing uses it any more: the
    objects of `keep_with` and whoever has not called release()."""

    def __init__(self, weights, path):
        self._weights = weights
        self._lock = threading.RLock()  # a finalizer may run anywhere, in here too
        self._n_users = 1
        self._fd = self._link = None
        self.path = path
        self.id = weights.id
        self.was_there = getattr(weights, "source", None) == "ram"  # before it was asked for
        self.is_used = False  # by a model: then its end is told

    def keep_with(self, user):
        """Keep it as long as `user` lives, or until what this returns is detached and it is
        released."""
        found = weakref.finalize(user, self.release)
        found.atexit = False
        with self._lock:
            self._n_users += 1
        return found

    def release(self):
        with self._lock:
            self._n_users -= 1
            if self._n_users > 0:
                return
        if self._link is not None:
            shutil.rmtree(self._link.parent, ignore_errors=True)
        if self._fd is not None:
            os.close(self._fd)
        self._weights.close()
        if self.is_used:
            ended.put(("released", self.id))
        session.changed(self.id, False)

    def descriptor(self):
        """Of the file's bytes; this object's own."""
        with self._lock:
            if self._fd is None:
                self._fd = self._weights.fd()
            return self._fd

    def link(self):
        """A path to the bytes in memory, under the file's own name. It is good as long as the
        object that this returns: core keeps that, to make a model once more."""
        fd = self.descriptor()
        with self._lock:
            if self._link is None or not os.path.lexists(self._link):
                self._link = _links.add(os.path.basename(self.path), fd)
                _links.add_companions(self._link, self.path)
            found = Path(self._link)
        self.keep_with(found)
        return found

    def tensors(self):
        """{name: torch tensor} over the daemon's memory: written to, they become private. What is
        on a card lies there. What torch has no type for is bytes."""
        return {name: _as_torch(tensor) for name, tensor in self._weights.items()}

    def devices(self):
        """{name of a tensor: the device that it lies on}, in the file's order."""
        return {name: session.name_of(tensor.device) for name, tensor in self._weights.items()}

    def dtypes(self):
        """The types of its tensors, as words of safetensors and ggml."""
        return {tensor.dtype for tensor in self._weights.values()}

    def metadata(self):
        """What the header of a safetensors file says besides its tensors; None: nothing."""
        fd = self.descriptor()
        size = int.from_bytes(os.pread(fd, 8, 0), "little")
        if size > MAX_HEADER_BYTES:
            return None
        return json.loads(os.pread(fd, size, 8)).get("__metadata__")

    def bytes_elsewhere(self):
        """Those that lie on devices."""
        return sum(block.bytes for block in self._weights.blocks() if block.device != "cpu")

    def places(self):
        """The devices that its blocks lie on."""
        return sorted({session.name_of(block.device) for block in self._weights.blocks()
                       if block.bytes > 0})


# ---- the connection ----

def soon(function, otherwise):
    """What `function` returns, or `otherwise` when that takes too long or fails. For what ComfyUI's
    server asks between its requests: a daemon that hangs must not hold it up."""
    found = [otherwise]

    def run():
        with contextlib.suppress(Unavailable):
            found[0] = function()

    thread = threading.Thread(target=run, daemon=True, name="distorch-soon")
    thread.start()
    thread.join(SOON_S)
    return found[0]


def why_disabled():
    """Who does not want distorchd to be used, for a person; None: nobody."""
    if os.environ.get("DISTORCH_DISABLE", "") not in ("", "0"):
        return "DISTORCH_DISABLE is set"
    if comfy_server.setting(SETTING) is False:
        return '"Use distorchd" is off in the settings'
    return None


def _socket():
    """That of the page's setting; None: where the library looks by itself."""
    found = comfy_server.setting(SOCKET)
    wanted = found.strip() if isinstance(found, str) else ""
    return wanted if wanted and not os.environ.get("DISTORCH_SOCKET") else None


_level = None  # that the setting has given


def _follow_log_level():
    global _level
    wanted = LEVELS.get(comfy_server.setting(LOG_LEVEL))
    if wanted != _level:
        log.setLevel(logging.NOTSET if wanted is None else wanted)
        _level = wanted


def _check_wanted():
    _follow_log_level()
    reason = why_disabled()
    if reason is not None:
        raise Unavailable(reason, DISABLED)


def _reserve(connection, device, nbytes):
    """So many bytes or, where not all of that can be had, what is free and idle."""
    try:
        return connection.reserve(device, nbytes, ttl=ROOM_S)
    except binding().Error as failure:
        idle = failure.detail.get("evictable", 0)
        if failure.code != "no-memory" or idle == 0:
            raise
        return connection.reserve(device, failure.detail.get("free", 0) + idle, ttl=ROOM_S)


@contextlib.contextmanager
def alone(path):
    """(path, options) for a load of this file, which may be one of several: by its own path the
    library takes all of the model, and ComfyUI's loaders want what is in the file that they name.
    The name is the one that people know: the file may be a link to one named by its hash."""
    name = os.path.basename(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not wait
    except OSError as failure:
        raise Unavailable(f"{path} cannot be opened: {failure.strerror}") from failure
    try:
        yield (f"/proc/self/fd/{fd}",
               {"name": name} if os.path.basename(os.path.realpath(path)) != name else {})
    finally:
        os.close(fd)


class Session:
    """Connects when it is first needed. The connection stays: the library connects it again when the
    daemon was away, and with it come the leases of what ComfyUI uses, which end with a close."""

    def __init__(self):
        self._connection = None
        self._socket = None  # of the page's setting, as it was when that was made
        self._lock = threading.Lock()
        self._failed_at = None
        self._failure = None
        self._names, self._names_at = {"cpu": "cpu"}, None
        self._told = {}  # names that differ and were told of
        self.opening = []  # paths that are being opened now
        self.on_change = []  # called with a model's id: this process takes it (True) or leaves it

    def changed(self, model, is_taken):
        """Also from finalizers, which run anywhere: what is called takes no lock."""
        for tell in self.on_change:
            tell(model, is_taken)

    def _note(self, failure):
        """Say it once, until it is something else."""
        if self._failure is None or str(self._failure) != str(failure):
            log.warning("distorch: ComfyUI loads by itself: %s", failure)
        self._failure = Unavailable(str(failure), failure.code)  # another one: it holds no frames
        self._failed_at = time.monotonic()

    def is_connected(self):
        """Was it, when it was last looked at?"""
        return self._connection is not None

    def connection(self):
        """The open connection; Unavailable with the reason."""
        _check_wanted()
        with self._lock:
            if self._failed_at is not None and time.monotonic() - self._failed_at < RETRY_S:
                raise Unavailable(self._failure.reason, self._failure.code)
            if self._connection is None:
                try:
                    self._connection = self.connect()
                except Unavailable as failure:
                    self._note(failure)
                    raise
                self._failed_at = self._failure = None
            return self._connection

    def connect(self, label="ComfyUI", timeout=CALL_S):
        """Another connection, which is the caller's: to the same daemon, as long as one is open."""
        _check_wanted()
        if not sys.platform.startswith("linux"):
            raise Unavailable(f"distorchd runs on Linux, not on {sys.platform}")
        distorch = binding()
        try:
            self._socket = self.given_socket()
            return distorch.connect(self._socket, client="ComfyUI", label=label, timeout=timeout,
                                    devices=cards.uuids())
        except Exception as failure:  # its own, or of a library that is older than its package
            raise Unavailable(str(failure), getattr(failure, "code", None)) from failure

    def call(self, function):
        """What `function` of the connection returns. A daemon that was restarted is asked again,
        once; whatever it refuses is Unavailable."""
        for is_last in (False, True):
            connection = self.connection()
            distorch = binding()
            try:
                found = function(connection)
            except distorch.Error as failure:
                if failure.code == "no-connection" and not is_last:
                    continue
                if failure.code in ("no-connection", "timeout"):  # what comes next does not wait
                    with self._lock:
                        self._note(failure)
                raise Unavailable(str(failure), failure.code) from failure
            except ValueError as failure:
                if not _is_of_binding(failure):
                    raise
                raise Unavailable(str(failure), "bad-argument") from failure
            self._failed_at = self._failure = None
            return found

    def open(self, path, progress=None, **options):
        """A Resident of the file; whatever else can go wrong is Unavailable too. What `progress`
        raises comes through: that is how a load is cancelled."""
        options = {name: value for name, value in options.items() if value}
        self.opening.append(path)
        try:
            with alone(path) as (file, named):
                found = Resident(self.call(lambda connection: connection.open(
                    file, progress=progress, **options, **named)), path)
        finally:
            self.opening.remove(path)
        self.changed(found.id, True)
        return found

    def given_socket(self):
        """That of the page's setting which the connection has, or the next one will; None: where
        the library looks by itself."""
        return _socket() if self._connection is None else self._socket

    def socket_path(self):
        """The daemon's."""
        return self.call(lambda connection: connection.server().socket_path)

    def place(self, model, allocation, label="ComfyUI"):
        """As Connection.place, by a connection of its own: a move takes longer than a question may.
        Unavailable with the reason."""
        try:
            with self.connect(label, timeout=PLACE_S) as connection:
                return connection.place(model, allocation)
        except binding().Error as failure:
            raise Unavailable(str(failure), failure.code) from failure
        except ValueError as failure:
            raise Unavailable(str(failure), "bad-argument") from failure

    def devices(self):
        """The names of the devices, as of a moment ago; the last known when nobody answers."""
        return tuple(name for name in self._look().values() if name is not None)

    def sees(self, device):
        """Has this process a name for what the daemon calls so?"""
        return device == "cpu" or self._look().get(device, device) is not None

    def name_of(self, device):
        """Of the daemon's name for a device the one that this process has. One that it does not see
        is called as nothing is here: the daemon's name for it may be another card's."""
        if not self.sees(device):
            return f"{device} (not visible here)"
        return device if device == "cpu" else self._look().get(device, device)

    def _look(self):
        """{the daemon's name of a device: ours}"""
        if self._names_at is None or time.monotonic() - self._names_at > NAMES_S:
            self._names_at = time.monotonic()
            self._names = soon(lambda: cards.names(self.call(
                lambda connection: connection.devices())), self._names)
            self._tell_names()
        return self._names

    def _tell_names(self):
        """Who reads of a card here and in distorchctl ought to know which one is meant."""
        differing = {ours: theirs for theirs, ours in self._names.items()
                     if ours not in (None, theirs)}
        if differing != self._told:
            for ours, theirs in differing.items():
                log.warning("distorch: %s of ComfyUI is %s in distorchctl, which counts cards by "
                            "bus", ours, theirs)
            self._told = differing

    def unload_idle(self, except_for=()):
        """Have the daemon let go of what nobody uses, keeps or has pinned, but for these paths. A
        Report, or None: nothing is idle."""
        def deed(connection):
            idle = [model.id for model in connection.list()
                    if model.leases == 0 and not model.keep and not model.pinned and
                    model.state != "loading" and model.path not in except_for]
            return connection.unload(*idle) if idle else None

        return self.call(deed)

    @contextlib.contextmanager
    def displace(self, device, nbytes):
        """While this lasts, idle models of so many bytes are off the device, or as many as there
        are: what the budget still has free does not help who runs short. Unavailable: none are."""
        def ask(connection):
            free = next((one.free for one in connection.devices()
                         if self.name_of(one.name) == device), 0)
            return _reserve(connection, device, free + nbytes)

        room = self.call(ask)
        try:
            yield room
        finally:
            with contextlib.suppress(Exception):
                room.release()

    @contextlib.contextmanager
    def room(self, device, nbytes):
        """Have what is idle make room for what the daemon knows nothing of; no matter if not."""
        room = None
        with contextlib.suppress(Exception):
            room = self.call(lambda connection: _reserve(connection, device, nbytes))
        try:
            yield
        finally:
            if room is not None:
                with contextlib.suppress(Exception):
                    room.release()


session = Session()
