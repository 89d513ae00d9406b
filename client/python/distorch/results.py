# SPDX-License-Identifier: Apache-2.0
"""What calls return. Names and meanings are those of distorch.h; numbers that are absent are
None, sizes are bytes, times milliseconds."""

from dataclasses import dataclass, field
from typing import List, Optional


class Error(Exception):
    """A call failed. `code` is a stable word such as "no-memory" or "not-resident"; `message`
    names the thing and the number, `hint` says what to do or is None; `detail` holds the
    numbers behind it (need, free, holders, ...), as far as the code has any.

    `retryable`: the same may succeed later without a change by the caller. For
    "no-connection" later means once the daemon answers again: the same Connection then connects
    again by itself, unless it was closed."""

    def __init__(self, code, message, hint=None, retryable=False, detail=None):
        super().__init__(code, message, hint, retryable, detail)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = retryable
        self.detail = detail or {}

    def __str__(self):
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.code}: {self.message}{hint}"


@dataclass(frozen=True)
class Holder:
    """A process that uses or still maps bytes."""

    client: int
    pid: int
    uid: int
    comm: str
    held_bytes: int


@dataclass(frozen=True)
class Place:
    """Bytes of a model on one device."""

    device: str
    bytes: int
    backing: str
    tensor_bytes: Optional[int] = None  # of bytes, what is tensors' own and no rounding up


@dataclass(frozen=True)
class Model:
    """One model as listings show it; name, path and label are None without a right to it."""

    id: str
    name: Optional[str]
    path: Optional[str]
    label: Optional[str]
    uid: int
    bytes: int
    state: str
    progress_bytes: Optional[int]
    where: List[Place]
    stays: List[str]
    keep: bool
    pinned: bool
    ttl_left_ms: Optional[int]
    priority: int
    leases: int
    last_used_ms: int
    generation: int
    tensors: int
    blocks: int
    format: str
    users: List[Holder]
    # by which its blocks were placed; None: by virtual VRAM, or all in images
    allocation: Optional[str] = None
    # What generations before it still have, for those who lease or map them.
    older: List[Place] = field(default_factory=list)
    moving: bool = False  # its blocks are being moved; it serves meanwhile


@dataclass(frozen=True)
class Outcome:
    """What happened to one model in an unload, or to make room for a load."""

    id: str
    name: Optional[str]
    reason: str
    bytes: int
    holders: List[Holder]


@dataclass(frozen=True)
class Loaded(Model):
    """A model after a load: where its bytes came from (begun, disk, ram, joined), how long it
    took, what made room."""

    source: str = ""
    duration_ms: Optional[int] = None
    evicted: tuple = ()
    warnings: tuple = ()  # of its placement, as a Plan has them


@dataclass(frozen=True)
class Moved(Model):
    """A model after a move of its blocks: what was copied for it, how long it took, what made
    room."""

    moved_bytes: Optional[int] = None
    duration_ms: Optional[int] = None
    evicted: tuple = ()
    warnings: tuple = ()  # of its placement, as a Plan has them


@dataclass(frozen=True)
class Share:
    """What a plan puts on one device."""

    device: str
    bytes: int
    blocks: int
    free_after: int


@dataclass(frozen=True)
class PlannedBlock:
    """One block of a plan."""

    name: str
    bytes: int
    tensors: int
    device: str


@dataclass(frozen=True)
class Block:
    """Tensors of attached weights that lie together; `device` is None where nothing is mapped."""

    name: str
    bytes: int
    device: Optional[str]
    uuid: Optional[str]
    n_tensors: int


@dataclass(frozen=True)
class Plan:
    """Where blocks would go; `moved_per_pass` are the bytes that one pass over the model brings
    to `compute`, the device that computes, which takes at least `floor_ns` (None: nothing is
    copied, or the speed of a link is not known)."""

    devices: List[Share]
    blocks: List[PlannedBlock]
    warnings: List[str]
    moved_per_pass: int
    compute: Optional[str]
    floor_ns: Optional[int]


@dataclass(frozen=True)
class Report:
    """What an unload did."""

    kept: List[Outcome]
    unloaded: List[Outcome]
    held: List[Outcome]
    total_bytes: int


@dataclass(frozen=True)
class Wish:
    """What one user said about a model; pin_left_ms and keep_left_ms: how long that holds still,
    None where it does not lapse."""

    uid: int
    pin: bool
    keep: bool
    ttl_ms: Optional[int]
    priority: int
    pin_left_ms: Optional[int]
    keep_left_ms: Optional[int]


@dataclass(frozen=True)
class Shard:
    """One file of a model that has several."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Detail:
    """All about one model."""

    model: Model
    page_size: Optional[int]
    huge_bytes: Optional[int]
    notice: Optional[str]
    backing: Optional[str]
    loaded_from: Optional[str]
    load_ms: Optional[int]
    checksum: Optional[str]
    clients: List[Holder]
    wishes: List[Wish]
    shards: List[Shard]  # none: it is a single file
    places: List[str]  # of each block ("file": it has gone); none: all are in RAM


@dataclass(frozen=True)
class Peer:
    """A device that another one reads from without the host between."""

    device: str
    link: Optional[int]  # bytes a second


@dataclass(frozen=True)
class Device:
    """Memory that can hold copies, and its account."""

    name: str
    uuid: str
    state: str
    total: int
    budget: int
    used: int
    held: int
    reserved: int
    free: int
    models: int
    draining: bool  # takes no new loads
    product: Optional[str] = None  # "RTX 4090"
    pci: Optional[str] = None
    foreign: Optional[int] = None  # used by others on the machine
    dropping: int = 0  # of used: being given back
    temperature: Optional[int] = None
    last_xid: Optional[int] = None
    text: Optional[str] = None  # why it is not ok
    link: Optional[int] = None  # bytes a second between host and device
    pid: Optional[int] = None  # of its worker process
    # what a load can have at once: less than free where the machine has less, more by what is
    # being dropped; what may be evicted for it; what may once the loads under way have ended
    room: Optional[int] = None
    evictable: Optional[int] = None
    later: Optional[int] = None
    loading: Optional[int] = None  # of used: for loads under way
    granularity: Optional[int] = None  # what a block takes is a multiple of it
    peers: List[Peer] = field(default_factory=list)


@dataclass(frozen=True)
class Client:
    """A connection, or a process that still maps bytes of a closed one."""

    client: int
    pid: int
    uid: int
    comm: str
    label: Optional[str]
    library: Optional[str]
    connected: bool
    admin: bool
    leases: int
    held_bytes: int
    age_ms: int


@dataclass(frozen=True)
class Record:
    """One line of history: what happened to a model, when, why and for whom."""

    seq: int
    age_ms: int
    time_ms: int
    type: str
    model: str
    name: Optional[str]
    device: Optional[str]
    bytes: Optional[int]
    duration_ms: Optional[int]
    why: Optional[str]
    for_whom: Optional[str]


@dataclass(frozen=True)
class Status:
    """The daemon at a glance."""

    version: str
    epoch: int
    uptime_ms: int
    restarts: int
    survives_restart: bool
    devices: List[Device]
    models: int
    pinned: int
    loading: int
    clients: int
    hits: int
    misses: int
    bytes_read: int
    bytes_saved: int
    evictions: int
    refusals: int
    open_fds: int
    rss_bytes: int
    last: List[Record]
    config_fault: Optional[str] = None
    state_fault: Optional[str] = None
    no_cards: Optional[str] = None  # why no GPU is used


@dataclass(frozen=True)
class Setting:
    """One effective configuration value and where it came from."""

    key: str
    value: str
    source: str


@dataclass(frozen=True)
class Check:
    """What verify found out about one copy."""

    id: str
    name: Optional[str]
    ok: bool
    bytes: int
    offset: Optional[int]
    text: Optional[str]


@dataclass(frozen=True)
class Reloaded:
    """Settings that a reload found changed, or that were set, by key."""

    applied: List[str]
    later: List[str]  # in effect from the next start on
    notice: Optional[str]  # what ranks above one that was set


@dataclass(frozen=True)
class Drain:
    """What is still under way; `loading` names the first of the loads, `holders` whose the
    leases are, `reservers` who has room reserved there."""

    draining: bool
    loads: int
    loading: List[str]
    leases: int
    holders: List[Holder]
    reservers: List[Holder]


@dataclass(frozen=True)
class Parked:
    """One descriptor that is parked for the daemon's next life; `model`, `model_name` and
    `generation` are None for what belongs to no model."""

    name: str
    kind: str
    state: str
    model: Optional[str]
    model_name: Optional[str]
    generation: Optional[int]
    bytes: Optional[int]


@dataclass(frozen=True)
class Store:
    """What whoever restarts the daemon keeps for it; `bytes` are the images'."""

    survives_restart: bool
    descriptors: int
    max_descriptors: int
    bytes: int
    parked: List[Parked]


@dataclass(frozen=True)
class WarmEntry:
    """One model that is loaded at each start; `state` is waiting, opening, loading, loaded,
    unloaded or failed, and `text` why it is not loaded."""

    path: str
    source: str
    state: str
    model: Optional[str]
    bytes: Optional[int]
    text: Optional[str]


@dataclass(frozen=True)
class Server:
    """Who answered the hello."""

    socket_path: str
    version: str
    role: str
    protocol: int
    epoch: int
    client: int


@dataclass(frozen=True)
class Progress:
    """How far a load is; `model` is None and `total` 0 before they are known.

    `phase` is queued, header, room, reading, checking or stalled, and "done" in the last one,
    which comes once for every load that succeeded, also of what was resident already: then
    `bytes` and `total` are both the size of the file."""

    model: Optional[str]
    phase: str
    bytes: int
    total: int


@dataclass(frozen=True)
class Event:
    """Something happened. Which members are there depends on `type`: distorch.h has the table, at
    struct distorch_event."""

    type: str
    seq: Optional[int]
    model: Optional[str]
    name: Optional[str]
    state: Optional[str]
    phase: Optional[str]
    device: Optional[str]
    uuid: Optional[str]
    why: Optional[str]
    for_whom: Optional[str]
    code: Optional[str]
    lease: Optional[int]
    bytes: Optional[int]
    total: Optional[int]
    free: Optional[int]
    wanted: Optional[int]
    deadline_ms: Optional[int]
    record: Optional[Record]
    error: Optional[Error]
