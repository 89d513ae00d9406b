#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load a model with its blocks over devices, say what lies where, and move it.

placed.py FILE [ALLOCATION [ALLOCATION]], as in: placed.py model.safetensors 'sim:0,48M;cpu,*' cpu
"""
import sys
from collections import Counter

import distorch


def show(d, path):
    with d.open(path) as w:
        bytes_on, sums = Counter(), Counter()
        for name, tensor in w.items():
            bytes_on[tensor.device] += tensor.nbytes
            if not tensor.device.startswith("cuda"):  # the memory itself, no copy
                sums[tensor.device] += sum(tensor.buffer[:64])
        for device, size in bytes_on.items():
            print(f"  {device}: {size} bytes, first bytes sum up to {sums[device]}")


def main(path, first="auto", then=None):
    with distorch.connect() as d:
        model = d.load(path, to=first)
        print(f"{model.id[:8]} as {first}:")
        show(d, path)
        if then is not None:
            moved = d.place(path, then)
            print(f"moved as {then}, {moved.moved_bytes} bytes were copied:")
            show(d, path)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(f"usage: {sys.argv[0]} FILE [ALLOCATION [ALLOCATION]]")
    try:
        main(*sys.argv[1:])
    except distorch.Error as failure:
        sys.exit(f"error: {failure}")
