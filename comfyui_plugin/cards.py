# SPDX-License-Identifier: Apache-2.0
"""Devices by the names that this process has for them. torch puts the fastest card first and sees
only those that CUDA_VISIBLE_DEVICES leaves, the daemon counts all of them by bus. What is asked of
the daemon it understands as this process counts, for it is told the order; what it answers is in
its own names.
"""
import sys


def name(device):
    """Of a device of torch."""
    return device.type if device.type == "cpu" else f"{device.type}:{device.index or 0}"


def uuids():
    """Of the cards that torch uses here, in its order; none: the daemon's names are as good."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    found = [getattr(torch.cuda.get_device_properties(index), "uuid", None)
             for index in range(torch.cuda.device_count())]
    return [] if None in found else [f"GPU-{uuid}" for uuid in found]


def names(devices):
    """{the daemon's name: ours} of its devices; None for those that this process does not see."""
    order, found = uuids(), {}
    for one in devices:
        told = [uuid for uuid in order if _is_simulated(uuid) == _is_simulated(one.uuid)]
        if one.name == "cpu" or not told:
            found[one.name] = one.name
        elif one.uuid in told:
            found[one.name] = f"{one.name.partition(':')[0]}:{told.index(one.uuid)}"
        else:
            found[one.name] = None
    return found


def _is_simulated(uuid):
    return uuid.startswith("SIM-")
