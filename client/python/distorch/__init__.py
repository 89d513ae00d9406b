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

from .client import Connection, Subscription, connect
from .results import (
    Check, Client, Detail, Device, Error, Event, Holder, Loaded, Model, Outcome, Parked, Place,
    Progress, Record, Reloaded, Report, Server, Setting, Status, Store, Wish,
)
from .tensors import Tensor, Weights

__version__ = "0.1.0"

__all__ = [
    "Check", "Client", "Connection", "Detail", "Device", "Error", "Event", "Holder", "Loaded",
    "Model", "Outcome", "Parked", "Place", "Progress", "Record", "Reloaded", "Report", "Server",
    "Setting", "Status", "Store", "Subscription", "Tensor", "Weights", "Wish", "__version__",
    "connect",
]
