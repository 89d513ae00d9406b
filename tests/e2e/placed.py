# SPDX-License-Identifier: Apache-2.0
"""Models whose blocks lie over devices: made, and mapped tensor by tensor."""
import mmap
import os
import struct

from conftest import close_all, make_safetensors, opened, pattern

MIB = 1 << 20
ALIGNMENT = 256  # of tensors in a block's segment
HEADER = struct.Struct("<8sIIQ16sQIIIIIIQQQQQQQQ")
TENSOR = struct.Struct("<QQIIIIIHBB")
BLOCK = struct.Struct("<QIIIIII")


class Table:
    """What a sealed tensor table says, by its documented layout (docs/protocol.md)."""

    def __init__(self, fd):
        size = os.fstat(fd).st_size
        data = os.pread(fd, size, 0)
        assert len(data) == size
        (magic, _layout, _complete, _size, _model, self.generation, _uid, _format, _n_shards,
         n_tensors, n_blocks, _n_sums, _shards_at, tensors_at, blocks_at, _sums_at, strings_at,
         _strings_size, _range, _hash) = HEADER.unpack_from(data)
        assert magic == b"DISTTBL\0"

        def text(offset, size):
            return data[strings_at + offset:strings_at + offset + size].decode()

        self.tensors = []  # (name, shard, block, offset, size)
        for i in range(n_tensors):
            offset, size, name, name_size, _shape, shard, block, _dtype, _rank, _encoding = \
                TENSOR.unpack_from(data, tensors_at + i * TENSOR.size)
            self.tensors.append((text(name, name_size), shard, block, offset, size))
        self.blocks = []  # (name, size)
        for i in range(n_blocks):
            size, name, name_size, _first, _n, _component, _head = \
                BLOCK.unpack_from(data, blocks_at + i * BLOCK.size)
            self.blocks.append((text(name, name_size), size))

    def segment_offsets(self):
        """Of each tensor in its block's segment."""
        ends, offsets = {}, []
        for _name, _shard, block, _offset, size in self.tensors:
            at = -(-ends.get(block, 0) // ALIGNMENT) * ALIGNMENT
            offsets.append(at)
            ends[block] = at + size
        return offsets


class Lease:
    """A placed model as one client has it: every tensor's bytes, from where they lie."""

    def __init__(self, raw, result, fds):
        self.raw, self.result, self.number = raw, result, result["lease"]
        self.table = Table(fds[0])
        self.images = fds[1:]
        os.close(fds[0])
        self.layout = result.get("layout")
        self.places = self.layout["places"] if self.layout else "A" * len(self.table.blocks)
        assert len(self.places) == len(self.table.blocks)
        self.segments = {}  # block -> (device, bytes, fd)

    def device_of(self, block):
        if self.layout is None:
            return "cpu"
        return self.layout["devices"][ord(self.places[block]) - ord("A")]

    def map_blocks(self):
        first = 0
        while first is not None:
            result, fds = self.raw.call_fds("map", {"lease": self.number,
                                                    "blocks": [first, 1 << 20]})
            assert len(fds) == len(result["segments"]) == len(result["blocks"])
            for block, place, fd in zip(result["blocks"], result["segments"], fds):
                assert place["device"] == self.device_of(block) and place["device"] != "cpu"
                self.segments[block] = (place["device"], place["bytes"], fd)
            first = result.get("next")
        assert sorted(self.segments) == [i for i in range(len(self.places))
                                         if self.device_of(i) != "cpu"]

    def tensors(self):
        """{name: bytes}, each read where the layout says that it lies."""
        if not self.segments and self.layout is not None:
            self.map_blocks()
        found = {}
        for (name, shard, block, offset, size), at in zip(self.table.tensors,
                                                          self.table.segment_offsets()):
            if self.device_of(block) == "cpu":
                found[name] = os.pread(self.images[shard], size, offset)
            else:
                _device, n_bytes, fd = self.segments[block]
                assert at + size <= n_bytes
                with mmap.mmap(fd, n_bytes, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
                    found[name] = bytes(memory[at:at + size])
        return found

    def bytes_on(self):
        """The model's bytes by device."""
        sums = {}
        for block, (_name, size) in enumerate(self.table.blocks):
            device = self.device_of(block)
            sums[device] = sums.get(device, 0) + size
        return sums

    def close(self, detach=True):
        close_all(self.images)
        close_all(fd for _device, _bytes, fd in self.segments.values())
        self.images, self.segments = [], {}
        if detach:
            self.raw.call("detach", {"lease": self.number})


def make_blocks(path, sizes, head=4096, seed=1, stem="blocks"):
    """A model of numbered blocks of about these sizes, two tensors each, and a head; returns
    {name: bytes}."""
    tensors = {"embed.weight": ("U8", [head], pattern(seed, head))} if head else {}
    for index, size in enumerate(sizes):
        first = max(1, size * 2 // 3)
        tensors[f"{stem}.{index}.attn.weight"] = \
            ("U8", [first], pattern(seed + 2 * index + 1, first))
        if size > first:
            tensors[f"{stem}.{index}.mlp.weight"] = \
                ("U8", [size - first], pattern(seed + 2 * index + 2, size - first))
    return make_safetensors(path, tensors, seed=seed)


def load(raw, path, allocation=None, **params):
    """Load and lease; returns a Lease."""
    if allocation is not None:
        params["allocation"] = allocation
    with opened(path) as fd:
        result, fds = raw.call_fds("load", {"attach": True, "map": True, **params}, [fd])
    return Lease(raw, result, fds)


def attach(raw, path):
    result, fds = raw.attach(path)
    return Lease(raw, result, fds)


def account(raw, name):
    return next(one for one in raw.call("devices")["devices"] if one["name"] == name)
