# SPDX-License-Identifier: Apache-2.0
"""Models of several files with an index, as transformers and diffusers write them."""

import json
import os
import pathlib

from conftest import close_all, make_safetensors, pattern

INDEX = "model.safetensors.index.json"


def shard_names(n, stem="model"):
    return [f"{stem}-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]


class Sharded:
    """`n` files of `each` tensors of `bytes` bytes in all, and their index, in `folder`."""

    def __init__(self, folder, n=3, each=2, bytes=1 << 16, seed=1, index=INDEX,
                 stem="model"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = shard_names(n, stem)
        self.index = self.folder / index
        self.tensors = {}  # name -> bytes
        self.weight_map = {}
        for i, name in enumerate(self.names):
            tensors = {}
            for j in range(each):
                key = f"model.layers.{i}.w{j}"
                data = pattern(seed * 1000 + i * each + j, bytes // each // 4 * 4)
                tensors[key] = ("F32", [len(data) // 4], data)
                self.tensors[key] = data
                self.weight_map[key] = name
            make_safetensors(self.folder / name, tensors)
        self.write_index()

    def write_index(self, weight_map=None, **more):
        weight_map = self.weight_map if weight_map is None else weight_map
        total = sum(len(data) for data in self.tensors.values())
        self.index.write_text(json.dumps({"metadata": {"total_size": total},
                                          "weight_map": weight_map, **more}, indent=2))

    @property
    def paths(self):
        return [self.folder / name for name in self.names]

    @property
    def bytes(self):
        return sum(path.stat().st_size for path in self.paths)


def open_all(paths, flags=os.O_RDONLY):
    return [os.open(path, flags | os.O_CLOEXEC) for path in paths]


def raw_request(raw, method, sharded, first=None, names=None, **params):
    """Send a load or attach with the descriptors of the first files; its id."""
    names = sharded.names if names is None else names
    first = len(names) if first is None else first
    paths = ([sharded.index] if method == "load" and params.get("index", True) else []) + [
        sharded.folder / name for name in names[:first]]
    fds = open_all(paths)
    try:
        return raw.request(method, {"shards": names, **params}, fds)
    finally:
        close_all(fds)


def raw_part(raw, load, sharded, names):
    """Send more descriptors; answers as call does."""
    fds = open_all(sharded.folder / name for name in names)
    try:
        return raw.call("load.part", {"load": load, "shards": names}, fds)
    finally:
        close_all(fds)


def raw_load(raw, sharded, **params):
    error, result, fds = raw.wait(raw_request(raw, "load", sharded, **params))
    return error, result, fds
