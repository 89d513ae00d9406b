# SPDX-License-Identifier: Apache-2.0
"""libdistorch by ctypes: where it lies, its structures, its functions.

Each structure of distorch.h is declared once, as a list of (member, kind); from that come the
ctypes structure and the way into Python. tests/abi compares the layouts with a C compiler's.
Calls release the interpreter's lock.
"""

import ctypes
import functools
import os
import pathlib
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32
from ctypes import c_uint64, c_void_p

from . import results

ABSENT = 2**64 - 1
FOREVER = 2**32 - 1
NAME = "libdistorch.so.1"


class _Kind:
    """How one member lies in C (`members`) and becomes a Python value (`read`)."""

    def __init__(self, ctype, read=lambda value: value):
        self.ctype = ctype
        self.read = read

    def members(self, name):
        return [(name, self.ctype)]

    def value(self, structure, name):
        return self.read(getattr(structure, name))


class _List(_Kind):
    """n_<name> and an array of values, or of pointers to structures."""

    def members(self, name):
        return [("n_" + name, c_size_t), (name, POINTER(self.ctype))]

    def value(self, structure, name):
        count = getattr(structure, "n_" + name)
        array = getattr(structure, name)
        return [self.read(array[i]) for i in range(count)]


def _text(value):
    return None if value is None else value.decode("utf-8", "replace")


TEXT = _Kind(c_char_p, _text)
U64 = _Kind(c_uint64, lambda value: None if value == ABSENT else value)
U32 = _Kind(c_uint32)
I64 = _Kind(c_int64)
INT = _Kind(c_int)
BOOL = _Kind(c_bool)
TEXTS = _List(c_char_p, _text)
NUMBERS = _List(c_uint64)


def structure(name, fields):
    """The ctypes structure distorch_<name>, with its members' kinds."""
    members = [member for field, kind in fields for member in kind.members(field)]
    made = type("distorch_" + name, (ctypes.Structure,), {"_fields_": members})
    made.kinds = dict(fields)
    return made


def values(item):
    """{member: value} of a structure."""
    return {name: kind.value(item, name) for name, kind in item.kinds.items()}


def reader(made, into):
    """A kind: a pointer to a structure that becomes a dataclass, or None."""
    return lambda pointer: into(**values(pointer.contents)) if pointer else None


def _list_of(made, into):
    return _List(POINTER(made), reader(made, into))


def _one_of(made, into):
    return _Kind(POINTER(made), reader(made, into))


def read_error(pointer):
    """A distorch.Error of a struct distorch_error; None for a NULL."""
    if not pointer:
        return None
    found = values(pointer.contents)
    text = {key: found.pop(key) for key in ("word", "message", "hint", "is_retryable")}
    for key in ("code", "exit_code"):
        found.pop(key)
    found["errno"] = found.pop("sys_errno")
    detail = {key: value for key, value in found.items() if value not in (None, [])}
    return results.Error(text["word"], text["message"], text["hint"], text["is_retryable"], detail)


HOLDER = structure("holder", [
    ("client", U64), ("pid", U32), ("uid", U32), ("comm", TEXT), ("held_bytes", U64)])
HOLDERS = _list_of(HOLDER, results.Holder)
PLACE = structure("place", [
    ("device", TEXT), ("bytes", U64), ("backing", TEXT), ("tensor_bytes", U64)])
MODEL = structure("model", [
    ("id", TEXT), ("name", TEXT), ("path", TEXT), ("label", TEXT), ("uid", U32), ("bytes", U64),
    ("state", TEXT), ("progress_bytes", U64), ("where", _list_of(PLACE, results.Place)),
    ("stays", TEXTS), ("keep", BOOL), ("pinned", BOOL), ("ttl_left_ms", U64), ("priority", I64),
    ("leases", U64), ("last_used_ms", U64), ("generation", U64), ("tensors", U64),
    ("blocks", U64), ("format", TEXT), ("users", HOLDERS),
    ("allocation", TEXT), ("older", _list_of(PLACE, results.Place)), ("moving", BOOL)])
MODELS = structure("models", [("models", _list_of(MODEL, results.Model))])
OUTCOME = structure("outcome", [
    ("id", TEXT), ("name", TEXT), ("reason", TEXT), ("bytes", U64), ("holders", HOLDERS)])
OUTCOMES = _list_of(OUTCOME, results.Outcome)
REPORT = structure("report", [
    ("kept", OUTCOMES), ("unloaded", OUTCOMES), ("held", OUTCOMES), ("total_bytes", U64)])
LOADED = structure("loaded", [
    ("model", _one_of(MODEL, dict)), ("source", TEXT), ("duration_ms", U64),
    ("evicted", OUTCOMES), ("warnings", TEXTS)])
MOVED = structure("moved", [
    ("model", _one_of(MODEL, dict)), ("moved_bytes", U64), ("duration_ms", U64),
    ("evicted", OUTCOMES), ("warnings", TEXTS)])
SHARE = structure("share", [
    ("device", TEXT), ("bytes", U64), ("blocks", U64), ("free_after", U64)])
PLANNED_BLOCK = structure("planned_block", [
    ("name", TEXT), ("bytes", U64), ("tensors", U64), ("device", TEXT)])
PLAN = structure("plan", [
    ("devices", _list_of(SHARE, results.Share)),
    ("blocks", _list_of(PLANNED_BLOCK, results.PlannedBlock)), ("warnings", TEXTS),
    ("moved_per_pass", U64), ("compute", TEXT), ("floor_ns", U64)])
RESERVATION = structure("reservation", [("token", U64), ("evicted", OUTCOMES)])
WISH = structure("wish", [
    ("uid", U32), ("pin", BOOL), ("keep", BOOL), ("ttl_ms", U64), ("priority", I64),
    ("pin_left_ms", U64), ("keep_left_ms", U64)])
SHARD = structure("shard", [("name", TEXT), ("bytes", U64)])
DETAIL = structure("detail", [
    ("model", _one_of(MODEL, results.Model)), ("page_size", U64), ("huge_bytes", U64),
    ("notice", TEXT), ("backing", TEXT), ("loaded_from", TEXT), ("load_ms", U64),
    ("checksum", TEXT), ("clients", HOLDERS), ("wishes", _list_of(WISH, results.Wish)),
    ("shards", _list_of(SHARD, results.Shard)), ("places", TEXTS)])
PEER = structure("peer", [("device", TEXT), ("link", U64)])
DEVICE = structure("device", [
    ("name", TEXT), ("uuid", TEXT), ("state", TEXT), ("total", U64), ("budget", U64),
    ("used", U64), ("held", U64), ("reserved", U64), ("free", U64), ("models", U64),
    ("draining", BOOL), ("product", TEXT), ("pci", TEXT), ("foreign", U64), ("dropping", U64),
    ("temperature", U64), ("last_xid", U64), ("text", TEXT), ("link", U64), ("pid", U64),
    ("room", U64), ("evictable", U64), ("later", U64), ("loading", U64), ("granularity", U64),
    ("peers", _list_of(PEER, results.Peer))])
DEVICE_LIST = _list_of(DEVICE, results.Device)
DEVICES = structure("devices", [("devices", DEVICE_LIST), ("notice", TEXT)])
CLIENT = structure("client", [
    ("client", U64), ("pid", U32), ("uid", U32), ("comm", TEXT), ("label", TEXT),
    ("library", TEXT), ("connected", BOOL), ("admin", BOOL), ("leases", U64),
    ("held_bytes", U64), ("age_ms", U64)])
CLIENTS = structure("clients", [("clients", _list_of(CLIENT, results.Client))])
RECORD = structure("record", [
    ("seq", U64), ("age_ms", U64), ("time_ms", U64), ("type", TEXT), ("model", TEXT),
    ("name", TEXT), ("device", TEXT), ("bytes", U64), ("duration_ms", U64), ("why", TEXT),
    ("for_whom", TEXT)])
RECORD_LIST = _list_of(RECORD, results.Record)
RECORDS = structure("records", [("records", RECORD_LIST)])
STATUS = structure("status", [
    ("version", TEXT), ("epoch", U64), ("uptime_ms", U64), ("restarts", U64),
    ("survives_restart", BOOL), ("devices", DEVICE_LIST), ("models", U64), ("pinned", U64),
    ("loading", U64), ("clients", U64), ("hits", U64), ("misses", U64), ("bytes_read", U64),
    ("bytes_saved", U64), ("evictions", U64), ("refusals", U64), ("open_fds", U64),
    ("rss_bytes", U64), ("last", RECORD_LIST), ("config_fault", TEXT), ("state_fault", TEXT),
    ("no_cards", TEXT)])
SETTING = structure("setting", [("key", TEXT), ("value", TEXT), ("source", TEXT)])
SETTINGS = structure("settings", [("settings", _list_of(SETTING, results.Setting))])
CHECK = structure("check", [
    ("id", TEXT), ("name", TEXT), ("ok", BOOL), ("bytes", U64), ("offset", U64), ("text", TEXT)])
RELOADED = structure("reloaded", [("applied", TEXTS), ("later", TEXTS), ("notice", TEXT)])
DRAIN = structure("drain", [
    ("draining", BOOL), ("loads", U64), ("loading", TEXTS), ("leases", U64), ("holders", HOLDERS),
    ("reservers", HOLDERS)])
CHECKS = structure("checks", [("checks", _list_of(CHECK, results.Check))])
METRICS = structure("metrics", [("text", TEXT)])
PARKED = structure("parked", [
    ("name", TEXT), ("kind", TEXT), ("state", TEXT), ("model", TEXT), ("model_name", TEXT),
    ("generation", U64), ("bytes", U64)])
STORE = structure("store", [
    ("survives_restart", BOOL), ("descriptors", U64), ("max_descriptors", U64), ("bytes", U64),
    ("parked", _list_of(PARKED, results.Parked))])
WARM_ENTRY = structure("warm_entry", [
    ("path", TEXT), ("source", TEXT), ("state", TEXT), ("model", TEXT), ("bytes", U64),
    ("text", TEXT)])
WARM = structure("warm", [("entries", _list_of(WARM_ENTRY, results.WarmEntry))])
SERVER = structure("server", [
    ("socket_path", TEXT), ("version", TEXT), ("role", TEXT), ("protocol", U64), ("epoch", U64),
    ("client", U64)])
ERROR = structure("error", [
    ("code", INT), ("exit_code", INT), ("is_retryable", BOOL), ("word", TEXT), ("message", TEXT),
    ("hint", TEXT), ("field", TEXT), ("device", TEXT), ("need", U64), ("budget", U64),
    ("free", U64), ("evictable", U64), ("held", U64), ("foreign", U64), ("in_use", U64),
    ("pinned", U64), ("sys_errno", U64), ("offset", U64), ("current", U64), ("min", U64),
    ("max", U64), ("holders", HOLDERS), ("uids", NUMBERS), ("candidates", TEXTS)])
EVENT = structure("event", [
    ("type", TEXT), ("seq", U64), ("model", TEXT), ("name", TEXT), ("state", TEXT),
    ("phase", TEXT), ("device", TEXT), ("uuid", TEXT), ("why", TEXT), ("for_whom", TEXT),
    ("code", TEXT), ("lease", U64), ("bytes", U64), ("total", U64), ("free", U64),
    ("wanted", U64), ("deadline_ms", U64), ("record", _one_of(RECORD, results.Record)),
    ("error", _Kind(POINTER(ERROR), read_error))])
PROGRESS = structure("progress", [
    ("model", TEXT), ("phase", TEXT), ("bytes", U64), ("total", U64)])
TENSOR = structure("tensor", [
    ("name", TEXT), ("dtype", TEXT), ("bits", U32), ("rank", U32),
    ("shape", _Kind(POINTER(c_uint64))), ("bytes", U64), ("data", _Kind(c_void_p)),
    ("offset", U64), ("shard", U32), ("block", U32), ("group", U32), ("device", TEXT),
    ("uuid", TEXT), ("block_offset", U64), ("device_data", U64), ("device_ordinal", INT)])
BLOCK = structure("block", [
    ("name", TEXT), ("bytes", U64), ("device", TEXT), ("uuid", TEXT), ("n_tensors", U32),
    ("data", _Kind(c_void_p))])

# ---- what callers fill ----

# C also passes 'user', which Python has no use for: in C a callee may leave arguments alone.
PROGRESS_FN = ctypes.CFUNCTYPE(c_int, POINTER(PROGRESS))


def _options(name, members):
    return type("distorch_" + name, (ctypes.Structure,), {
        "_fields_": [("size", c_size_t)] + members,
        "__init__": lambda self, **given: ctypes.Structure.__init__(
            self, size=ctypes.sizeof(type(self)), **given)})


OPTIONS = _options("options", [
    ("client", c_char_p), ("label", c_char_p), ("timeout_ms", c_uint32),
    ("device_uuids", POINTER(c_char_p)), ("n_device_uuids", c_size_t)])
POLICY = _options("policy", [
    ("said", c_uint32), ("pin", c_bool), ("keep", c_bool), ("priority", c_int32),
    ("ttl_ms", c_uint64), ("for_ms", c_uint64)])
LOAD_OPTIONS = _options("load_options", [
    ("name", c_char_p), ("format", c_char_p), ("allocation", c_char_p), ("compute", c_char_p),
    ("backing", c_char_p), ("policy", POLICY), ("no_wait", c_bool), ("tag", c_uint64),
    ("progress", PROGRESS_FN), ("user", c_void_p), ("virtual_vram", c_uint64),
    ("donors", POINTER(c_char_p)), ("n_donors", c_size_t), ("strategy", c_char_p),
    ("granularity", c_char_p)])
PLACEMENT = _options("placement", [
    ("allocation", c_char_p), ("compute", c_char_p), ("virtual_vram", c_uint64),
    ("donors", POINTER(c_char_p)), ("n_donors", c_size_t), ("strategy", c_char_p),
    ("granularity", c_char_p), ("tag", c_uint64), ("progress", PROGRESS_FN), ("user", c_void_p)])
RESERVE_OPTIONS = _options("reserve_options", [("ttl_ms", c_uint64), ("recall_ms", c_uint64)])
SELECT = _options("select", [
    ("models", POINTER(c_char_p)), ("n_models", c_size_t), ("names", POINTER(c_char_p)),
    ("n_names", c_size_t), ("under", c_char_p), ("device", c_char_p), ("idle_ms", c_uint64),
    ("not_kept", c_bool), ("mine", c_bool), ("all", c_bool), ("mode", c_char_p),
    ("recall_ms", c_uint64)])
LIST_FILTER = _options("list_filter", [("device", c_char_p), ("mine", c_bool), ("all", c_bool)])
HISTORY_FILTER = _options("history_filter", [
    ("model", c_char_p), ("types", POINTER(c_char_p)), ("n_types", c_size_t),
    ("since_ms", c_uint64)])
EVENT_FILTER = _options("event_filter", [
    ("events", POINTER(c_char_p)), ("n_events", c_size_t), ("models", POINTER(c_char_p)),
    ("n_models", c_size_t)])

SAID_PIN, SAID_KEEP, SAID_TTL, SAID_PRIORITY, SAID_FOR = 1, 2, 4, 8, 16

_C = c_void_p  # struct distorch *
_W = c_void_p  # struct distorch_weights *

# name: (result, arguments)
PROTOTYPES = {
    "version": (c_char_p, []),
    "error": (POINTER(ERROR), [_C]),
    "default_path": (c_int, [c_char_p, c_size_t]),
    "open": (c_int, [c_char_p, POINTER(OPTIONS), POINTER(_C)]),
    "close": (c_void_p, [_C]),
    "server": (c_int, [_C, POINTER(POINTER(SERVER))]),
    "ping": (c_int, [_C]),
    "cancel": (c_int, [_C, c_uint64]),
    "load": (c_int, [_C, c_char_p, POINTER(LOAD_OPTIONS), POINTER(POINTER(LOADED)), POINTER(_W)]),
    "attach": (c_int, [_C, c_char_p, POINTER(_W)]),
    "place": (c_int, [_C, c_char_p, POINTER(PLACEMENT), POINTER(POINTER(MOVED))]),
    "plan": (c_int, [_C, c_char_p, POINTER(PLACEMENT), POINTER(POINTER(PLAN))]),
    "plan_blocks": (c_int, [_C, POINTER(c_char_p), POINTER(c_uint64), c_size_t, POINTER(PLACEMENT),
                            POINTER(POINTER(PLAN))]),
    "reserve": (c_int, [_C, c_char_p, c_uint64, POINTER(RESERVE_OPTIONS),
                        POINTER(POINTER(RESERVATION))]),
    "release": (c_int, [_C, c_uint64]),
    "unload": (c_int, [_C, POINTER(SELECT), POINTER(POINTER(REPORT))]),
    "set": (c_int, [_C, c_char_p, POINTER(POLICY), c_char_p, POINTER(POINTER(MODEL))]),
    "list": (c_int, [_C, POINTER(LIST_FILTER), POINTER(POINTER(MODELS))]),
    "show": (c_int, [_C, c_char_p, POINTER(POINTER(DETAIL)), POINTER(_W)]),
    "devices": (c_int, [_C, POINTER(POINTER(DEVICES))]),
    "budget": (c_int, [_C, c_char_p, c_uint64, POINTER(POINTER(DEVICES))]),
    "budget_save": (c_int, [_C, c_char_p, c_uint64, POINTER(POINTER(DEVICES))]),
    "warm": (c_int, [_C, c_int, c_char_p, POINTER(POINTER(WARM))]),
    "config_set": (c_int, [_C, c_char_p, c_char_p, POINTER(POINTER(RELOADED))]),
    "clients": (c_int, [_C, POINTER(POINTER(CLIENTS))]),
    "history": (c_int, [_C, POINTER(HISTORY_FILTER), POINTER(POINTER(RECORDS))]),
    "status": (c_int, [_C, POINTER(POINTER(STATUS))]),
    "config": (c_int, [_C, POINTER(POINTER(SETTINGS))]),
    "verify": (c_int, [_C, POINTER(c_char_p), c_size_t, POINTER(POINTER(CHECKS))]),
    "reload": (c_int, [_C, POINTER(POINTER(RELOADED))]),
    "drain": (c_int, [_C, c_char_p, c_int, POINTER(POINTER(DRAIN))]),
    "metrics": (c_int, [_C, POINTER(POINTER(METRICS))]),
    "store": (c_int, [_C, POINTER(POINTER(STORE))]),
    "shutdown": (c_int, [_C]),
    "subscribe": (c_int, [_C, POINTER(EVENT_FILTER)]),
    "next_event": (c_int, [_C, c_uint32, POINTER(POINTER(EVENT))]),
    "next_recall": (c_int, [_C, c_uint32, POINTER(POINTER(EVENT))]),
    "weights_unref": (c_void_p, [_W]),
    "weights_model": (c_char_p, [_W]),
    "weights_generation": (c_uint64, [_W]),
    "weights_lease": (c_uint64, [_W]),
    "weights_fd": (c_int, [_W, c_uint32]),
    "weights_n_tensors": (c_uint32, [_W]),
    "weights_tensor": (POINTER(TENSOR), [_W, c_uint32]),
    "map_cuda": (c_int, [_W]),
    "weights_n_blocks": (c_uint32, [_W]),
    "weights_block": (POINTER(BLOCK), [_W, c_uint32]),
    "weights_names": (c_void_p, [_W, POINTER(c_size_t)]),
}
FREED = ("server", "loaded", "moved", "plan", "reservation", "report", "model", "models", "detail", "devices", "clients",
         "records", "status", "settings", "checks", "metrics", "store", "reloaded", "drain", "warm", "event")


def _candidates():
    given = os.environ.get("DISTORCH_LIBRARY")
    if given:
        return [given]
    here = pathlib.Path(__file__).resolve().parent
    found = [here / NAME, here.parents[2] / "build" / "lib" / NAME]
    return [str(path) for path in found if path.exists()] + [NAME]


class Library:
    """The functions without their prefix: library.open, library.error, ..."""

    def __init__(self, path):
        self.path = path
        loaded = ctypes.CDLL(path)
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(loaded, "distorch_" + name)
            function.restype = result
            function.argtypes = arguments
            setattr(self, name, function)
        self.free = {}
        for name in FREED:
            function = getattr(loaded, f"distorch_{name}_free")
            function.restype = None
            function.argtypes = [c_void_p]
            self.free["distorch_" + name] = function


@functools.lru_cache(maxsize=None)
def library():
    """The library, loaded at the first use."""
    failures = []
    for path in _candidates():
        try:
            return Library(path)
        except OSError as failure:
            failures.append(str(failure))
    raise ImportError(f"{NAME} was not found; set DISTORCH_LIBRARY. " + "; ".join(failures))
