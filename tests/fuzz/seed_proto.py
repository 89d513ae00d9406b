#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the seed corpora of fuzz_wire, fuzz_reply and fuzz_table.

Seeds are the golden packets (tests/unit/proto/vectors.txt), cut to their bodies for replies,
and a few tables in the layout of client/python/distorch/_wire.py.
"""

import importlib.util
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.dont_write_bytecode = True
spec = importlib.util.spec_from_file_location(
    "_wire", ROOT / "client" / "python" / "distorch" / "_wire.py")
wire = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wire)


def write(target, name, content):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def pack(record, **values):
    layout, names = wire.RECORDS[record]
    return struct.pack(layout, *(values.get(name, b"" if name in ("magic", "model_id") else 0)
                                 for name in names))


def table(n_tensors):
    shapes = b"".join(struct.pack("<2Q", 2, n + 1) for n in range(n_tensors))
    names = b"file.safetensorsblk" + b"".join(b"t%d" % n for n in range(n_tensors))
    name_at = [len(shapes) + 19 + 2 * n for n in range(n_tensors)]
    tensors = b"".join(
        pack("table_tensor", offset=64 * n, size=4 * (n + 1), name_offset=name_at[n], name_size=2,
             shape_offset=16 * n, dtype=12, rank=2) for n in range(n_tensors))
    shard = pack("table_shard", size=4096, image_size=4096, n_sums=1, name_offset=len(shapes),
                 name_size=16)
    block = pack("table_block", name_offset=len(shapes) + 16, name_size=3, n_tensors=n_tensors,
                 is_head=1)
    sums, strings = struct.pack("<Q", 7), shapes + names
    at = [struct.calcsize(wire.RECORDS["table_header"][0])]
    for part in (shard, tensors, block, sums, strings):
        at.append(at[-1] + len(part))
    header = pack("table_header", magic=b"DISTTBL", layout=1, complete=0x444F4E45,
                  table_size=at[-1], format=1, n_shards=1, n_tensors=n_tensors, n_blocks=1,
                  n_sums=1, shards_offset=at[0], tensors_offset=at[1], blocks_offset=at[2],
                  sums_offset=at[3], strings_offset=at[4], strings_size=len(strings),
                  sum_range=64 << 20)
    return header + shard + tensors + block + sums + strings


def main():
    vectors = ROOT / "tests" / "unit" / "proto" / "vectors.txt"
    lines = [line.split() for line in vectors.read_text(encoding="utf-8").splitlines()
             if not line.startswith("#")]
    events = list(wire.EVENTS)
    methods = list(dict.fromkeys(name for kind, name, _, _ in lines if kind == "request"))
    assert methods[:len(wire.METHODS)] == list(wire.METHODS)  # those of workers follow
    for kind, name, form, packed in lines:
        if form == "minimal" or kind == "request" or name in ("load.done", "error", "load"):
            write("wire", f"{kind}-{name}-{form}", bytes.fromhex(packed))
        if kind == "response" and form == "maximal":  # [1, 4-byte id, nil, body
            write("reply", name, bytes([methods.index(name)]) + bytes.fromhex(packed)[8:])
        if kind == "event" and form == "maximal":  # [2, short name, body
            body = bytes.fromhex(packed)[3 + len(name):]
            write("reply", name, bytes([len(methods) + events.index(name)]) + body)
    for n_tensors in (0, 1, 3):
        write("table", f"tensors-{n_tensors}", table(n_tensors))


if __name__ == "__main__":
    main()
