# SPDX-License-Identifier: Apache-2.0
"""Model weights owned by distorchd, in this process without a copy.

    import distorch
    with distorch.connect() as d:
        with d.open("model.safetensors") as w:
            w["layer.0.weight"].torch()

The memory is private and copy-on-write: writing to an array changes nobody else's. It lives
as long as any array made of it, also after the `with` blocks have ended.

The package is pure Python over libdistorch.so.1, which is taken from the first of these:
the file that $DISTORCH_LIBRARY names (then from nowhere else), the folder of this package,
build/lib of the source tree that this package lies in, the places where the system looks
(LD_LIBRARY_PATH, ldconfig). It is loaded by the first connect(), which raises ImportError
where there is none.
"""

from .client import Connection, Reservation, Subscription, connect
from .results import (
    Block, Check, Client, Detail, Device, Drain, Error, Event, Holder, Loaded, Model, Moved,
    Outcome, Parked, Peer, Place, Plan, PlannedBlock, Progress, Record, Reloaded, Report, Server,
    Setting, Shard, Share, Status, Store, WarmEntry, Wish,
)
from .tensors import Tensor, Weights

__version__ = "0.1.0"

__all__ = [
    "Block", "Check", "Client", "Connection", "Detail", "Device", "Drain", "Error", "Event",
    "Holder", "Loaded", "Model", "Moved", "Outcome", "Parked", "Peer", "Place", "Plan",
    "PlannedBlock", "Progress", "Record", "Reloaded", "Report", "Reservation", "Server", "Setting",
    "Shard", "Share", "Status", "Store", "Subscription", "Tensor", "WarmEntry", "Weights", "Wish",
    "__version__", "connect",
]
