# SPDX-License-Identifier: Apache-2.0
"""Models of several files by their index, as libraries and people use them."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading

import pytest
from conftest import (BUILD, ROOT, HeldDaemon, make_safetensors, need_hooks, pattern, slowness,
                      wait_until)
from fuse import FuseFile
from sharded import INDEX, Sharded
from store import StoredDaemon

READER = """
import hashlib, sys, distorch
d = distorch.connect(sys.argv[1])
weights = d.open(sys.argv[2])
def sums():
    return {name: hashlib.sha256(weights[name].buffer).hexdigest() for name in weights}
first = sums()
print("READY", flush=True)
for line in sys.stdin:
    print("same" if sums() == first else "DIFFERENT", flush=True)
"""


def ctl(daemon, *arguments, cwd=None):
    return subprocess.run([BUILD / "bin" / "distorchctl", "--socket", daemon.socket,
                           *map(str, arguments)], capture_output=True, text=True, timeout=60,
                          cwd=cwd)


def residents(daemon):
    return [model["name"] for model in daemon.models() if model["state"] == "resident"]


def used(daemon):
    return daemon.status()["devices"][0]["used"]


def check(weights, sharded):
    assert set(weights) == set(sharded.tensors)
    for name, data in sharded.tensors.items():
        assert bytes(weights[name].buffer) == data


def nothing_is_left(daemon):
    """No bytes; that no descriptor is left either is looked at when each test has ended."""
    wait_until(lambda: used(daemon) == 0, 5 * slowness())
    assert residents(daemon) == []


def refusal(connect, path):
    import distorch

    with pytest.raises(distorch.Error) as caught:
        connect().load(path)
    return caught.value


def write_gguf(path):
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", numpy.zeros(32, dtype="float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- what is loaded --------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 40, 256])
def test_every_tensor_is_that_of_its_file(daemon, connect, tmp_path, n):
    safetensors = pytest.importorskip("safetensors")
    sharded = Sharded(tmp_path / "m", n=n)
    with connect().open(sharded.index) as weights:
        assert len(weights) == len(sharded.tensors)
        for path in sharded.paths:
            with open(path, "rb") as file:
                for name, oracle in safetensors.deserialize(file.read()):
                    assert bytes(weights[name].buffer) == bytes(oracle["data"])
                    assert weights[name].shape == tuple(oracle["shape"])
        for i, path in enumerate(sharded.paths):  # each image is its file, byte by byte
            fd = weights.fd(i)
            assert os.pread(fd, 1 << 20, 0) == path.read_bytes()
            os.close(fd)
    (model,) = daemon.models()
    assert (model["name"], model["bytes"]) == ("model.safetensors", sharded.bytes)


def test_it_is_named_by_its_index_by_a_file_or_by_what_they_are_together(daemon, connect,
                                                                         tmp_path):
    sharded = Sharded(tmp_path / "m")
    d = connect()
    names = [sharded.index, sharded.paths[0], sharded.paths[2],
             sharded.folder / "model.safetensors"]
    ids = set()
    for path in names:
        with d.open(path) as weights:
            check(weights, sharded)
            ids.add(weights.id)
        with d.attach(path) as weights:
            check(weights, sharded)
        assert d.show(path).model.path == str(sharded.index)
        assert d.set(path, keep=True).keep and not d.unkeep(path).keep
        with d.table(path) as table:
            assert {table[name].nbytes for name in table} == {1 << 15}
    assert len(ids) == 1 and len(daemon.models()) == 1
    assert [shard.name for shard in d.show("model.safetensors").shards] == sharded.names
    assert [shard.bytes for shard in d.show("model.safetensors").shards] == [
        path.stat().st_size for path in sharded.paths]
    assert [out.name for out in d.unload(sharded.paths[1]).unloaded] == ["model.safetensors"]
    nothing_is_left(daemon)


def test_one_file_alone_is_loaded_by_its_descriptor(raw, tmp_path):
    sharded = Sharded(tmp_path / "m")
    raw.load(sharded.paths[1])
    (model,) = raw.call("list")["models"]
    assert (model["name"], model["tensors"]) == (sharded.names[1], 2)


def test_as_raw_bytes_it_is_the_one_file(daemon, connect, tmp_path):
    sharded = Sharded(tmp_path / "m")
    for path in (sharded.paths[1], sharded.index):
        with connect().open(path, format="raw") as weights:
            assert bytes(weights["data"].buffer) == path.read_bytes()
    assert sorted(residents(daemon)) == [sharded.names[1], INDEX]


def test_a_file_that_no_index_names_is_itself(daemon, connect, tmp_path):
    sharded = Sharded(tmp_path / "m")
    lone = sharded.folder / "model-00001-of-00009.safetensors"
    make_safetensors(lone, {"own": ("U8", [4])})
    with connect().open(lone) as weights:
        assert list(weights) == ["own"]
    sharded.index.unlink()
    with connect().open(sharded.paths[0]) as weights:
        assert len(weights) == 2


def test_a_cache_of_links_is_followed(daemon, connect, tmp_path):
    """As the hub's cache has it: names are links to files that are named by their sums."""
    sharded = Sharded(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for i, path in enumerate([*sharded.paths, sharded.index]):
        path.rename(tmp_path / "blobs" / f"{i:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{i:064x}")
    d = connect()
    for name in (INDEX, sharded.names[1]):
        with d.open(snapshot / name) as weights:
            check(weights, sharded)
        assert d.show(snapshot / name).model.name == "model.safetensors"
    assert len(daemon.models()) == 1


@pytest.mark.parametrize("index,stem,ending", [
    ("model.safetensors.index.fp16.json", "model.fp16", ".safetensors"),
    ("diffusion_pytorch_model.safetensors.index.fp16.json", "diffusion_pytorch_model",
     ".fp16.safetensors"),
])
def test_variants_are_found(daemon, connect, tmp_path, index, stem, ending):
    sharded = Sharded(tmp_path / "m", index=index)
    renamed = {}
    for i, path in enumerate(sharded.paths, 1):
        renamed[path.name] = f"{stem}-{i:05d}-of-00003{ending}"
        path.rename(sharded.folder / renamed[path.name])
    sharded.write_index({key: renamed[name] for key, name in sharded.weight_map.items()})
    whole = index.split(".")[0] + ".fp16.safetensors"
    for name in (index, renamed[sharded.names[1]]):
        with connect().open(sharded.folder / name) as weights:
            check(weights, sharded)
    assert [model["name"] for model in daemon.models()] == [whole]
    assert ctl(daemon, "load", sharded.folder / whole).returncode == 0
    assert len(daemon.models()) == 1


def test_models_of_one_name_are_told_apart_by_their_folders(daemon, connect, tmp_path):
    d = connect()
    for folder in ("transformer", "text_encoder"):
        d.load(Sharded(tmp_path / folder, seed=len(folder)).index)
    names = sorted(model["name"] for model in daemon.models())
    assert names == ["text_encoder/model.safetensors", "transformer/model.safetensors"]
    d.attach("transformer/model.safetensors").close()
    d.load(Sharded(tmp_path / "x").index, name="mine-1-of-2")
    assert "mine-1-of-2" in {model["name"] for model in daemon.models()}


def test_the_command_line_shows_the_files(daemon, tmp_path):
    sharded = Sharded(tmp_path / "m")
    loaded = ctl(daemon, "load", sharded.paths[0])
    assert loaded.returncode == 0 and "model.safetensors (id" in loaded.stdout, loaded
    shown = ctl(daemon, "show", "model.safetensors").stdout
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("file ")] == [
        name + "," for name in sharded.names]
    found = json.loads(ctl(daemon, "-o", "json", "show", sharded.index).stdout)
    assert [item["name"] for item in found["files"]] == sharded.names
    assert sum(item["bytes"] for item in found["files"]) == found["bytes"] == sharded.bytes
    listed = ctl(daemon, "ps").stdout.splitlines()
    assert len(listed) == 2 and listed[1].startswith("model.safetensors ")
    verified = ctl(daemon, "verify", sharded.index)
    assert verified.returncode == 0, verified
    stopped = ctl(daemon, "unload", sharded.paths[2])
    assert stopped.returncode == 0, stopped
    nothing_is_left(daemon)


def test_it_is_named_by_its_files_without_their_folder(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=64M", "sim.count=1", "sim.memory=64M")
    sharded = Sharded(tmp_path / "m")

    def here(*words):
        done = ctl(daemon, *words, cwd=sharded.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = [sharded.names[1], sharded.index.name, "model.safetensors"]
    for name in names:
        assert "sim:0" in here("plan", name, "sim:0")
    for name in names:
        assert "sim:0" not in here("load", name)
        assert f"path       {sharded.index}\n" in here("show", f"./{name}")
        assert "sim:0" in here("plan", name, "sim:0")
        here("place", f"./{name}", "sim:0")
        assert "unloaded  model.safetensors" in here("unload", f"./{name}")
    here("load", "--format", "raw", names[0])
    here("load", names[2])
    assert f"unloaded  {names[0]}" in here("unload", names[0]), "a name is a name"
    here("unload", "--all")
    nothing_is_left(daemon)


C_PROGRAM = r"""
#include <distorch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
	struct distorch *c = NULL;
	struct distorch_weights *weights = NULL;

	if (distorch_open(argv[1], NULL, &c) < 0 ||
	    distorch_load(c, argv[2], NULL, NULL, &weights) < 0) {
		puts(distorch_error(c)->message);
		return 1;
	}
	if ((int)distorch_weights_n_shards(weights) != argc - 3) {
		return 2;
	}
	for (uint32_t i = 0; i < distorch_weights_n_shards(weights); i++) {
		uint64_t size;
		const char *bytes = distorch_weights_base(weights, i, &size);
		char *own = malloc(size + 1);
		FILE *file = fopen(argv[3 + i], "rb");

		if (fread(own, 1, size + 1, file) != size || memcmp(own, bytes, size) != 0) {
			return 3;
		}
		fclose(file);
		free(own);
	}
	for (uint32_t i = 0; i < distorch_weights_n_tensors(weights); i++) {
		const struct distorch_tensor *tensor = distorch_weights_tensor(weights, i);
		uint64_t size;
		const char *base = distorch_weights_base(weights, tensor->shard, &size);

		if ((const char *)tensor->data != base + tensor->offset ||
		    distorch_weights_find(weights, tensor->name) != tensor) {
			return 4;
		}
	}
	distorch_weights_unref(weights);
	distorch_close(c);
	puts("all is there");
	return 0;
}
"""


def test_a_program_in_c_has_all_images(daemon, tmp_path):
    source, program = tmp_path / "reader.c", tmp_path / "reader"
    source.write_text(C_PROGRAM)
    flags = ["-fsanitize=address,undefined"] if slowness() > 1 and BUILD.name == "asan" else []
    subprocess.run(["cc", *flags, "-I", ROOT / "client" / "include", source, "-o", program,
                    BUILD / "lib" / "libdistorch.so.1", f"-Wl,-rpath,{BUILD / 'lib'}"], check=True)
    sharded = Sharded(tmp_path / "m", n=40)
    done = subprocess.run([program, daemon.socket, sharded.index, *sharded.paths],
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "all is there\n"), done


def write_parts(folder, n, tensors):
    """A GGUF file in parts, by the package that defines the format."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama",
                             split_max_tensors=-(-len(tensors) // n))
    for name, data in tensors.items():
        writer.add_tensor(name, numpy.frombuffer(data, dtype="float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("m-*.gguf"))


@pytest.mark.parametrize("n", [2, 33])
def test_a_gguf_file_in_parts_is_named_by_one_of_them(start_daemon, distorch, child, tmp_path, n):
    tensors = {f"blk.{i}.w": pattern(i, 128) for i in range(n)}
    paths = write_parts(tmp_path, n, tensors)
    assert len(paths) == n
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=HeldDaemon)
    reader = child(READER, daemon.socket, paths[-1])
    with distorch.connect(str(daemon.socket)) as d:
        for path in (paths[0], paths[-1]):
            with d.open(path) as weights:
                assert {name: bytes(weights[name].buffer) for name in weights} == tensors
            assert d.show(path).model.path == str(paths[0])
        (model,) = d.list()
        assert (model.name, model.format, model.tensors) == ("m.gguf", "gguf", n)
        assert [parked.kind for parked in d.store().parked].count("image") == n
    daemon.kill_daemon()
    assert reader.ask() == "same"
    with distorch.connect(str(daemon.socket)) as d:
        assert d.load(paths[0]).id == model.id
    reader.end()


@pytest.mark.parametrize("how,code,words", [
    ("missing", "not-found", "same model as"),
    ("exchanged", "bad-file", "says that it is part 2 of 3; it was given as part 1 of 3"),
    ("of another model", "bad-file", "says that it is part 2 of 2; it was given as part 2 of 3"),
    ("whole", "bad-file", "it has no split.count"),
    ("257", "too-large", "is one of 257 files"),
])
def test_parts_that_do_not_fit_are_refused(daemon, connect, tmp_path, how, code, words):
    tensors = {f"blk.{i}.w": pattern(i, 128) for i in range(3)}
    paths = write_parts(tmp_path, 3, tensors)
    other = tmp_path / "other"
    other.mkdir()
    if how == "missing":
        paths[1].unlink()
    elif how == "exchanged":
        paths[0].rename(tmp_path / "x")
        paths[1].rename(paths[0])
        (tmp_path / "x").rename(paths[1])
    elif how == "of another model":
        shutil.copy(write_parts(other, 2, tensors)[1], paths[1])
    elif how == "whole":
        write_gguf(other / "w.gguf")
        shutil.copy(other / "w.gguf", paths[1])
    else:
        paths[0] = paths[0].rename(tmp_path / "m-00001-of-00257.gguf")
    failure = refusal(connect, paths[0])
    assert failure.code == code and words in failure.message, failure
    nothing_is_left(daemon)


@pytest.mark.parametrize("backing", ["image", "auto"])
def test_parts_that_are_holes_beyond_all_numbers_are_refused(daemon, tmp_path, backing):
    """Their sum wrapped an account, which ended the daemon; and to look how much of them is in the
    page cache took a thread for ever."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        paths = write_parts(pathlib.Path(folder), 2, {f"blk.{i}.w": pattern(i, 128) for i in range(2)})
        for path in paths:
            try:
                os.truncate(path, (1 << 63) - 1)
            except OSError:
                pytest.skip("no file can be that large here")
        done = ctl(daemon, "load", "--backing", backing, paths[0])
        assert done.returncode != 0 and "more than 2^63 bytes" in done.stderr, done
        alone = paths[0].rename(pathlib.Path(folder) / "alone.gguf")
        done = ctl(daemon, "load", "--backing", backing, alone, "--timeout", "20s")
        assert done.returncode == 6, done
    assert daemon.status()["models"] == 0


def test_a_gguf_file_in_one_part_is_a_file(daemon, connect, tmp_path):
    write_gguf(tmp_path / "m-00001-of-00001.gguf")
    connect().load(tmp_path / "m-00001-of-00001.gguf")
    assert residents(daemon) == ["m-00001-of-00001.gguf"]


# ---- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "folder", "loop", "dangling", "unreadable"])
def test_a_file_that_cannot_be_opened_is_named(daemon, connect, tmp_path, how):
    sharded = Sharded(tmp_path / "m")
    path = sharded.paths[1]
    path.unlink()
    code = "not-found"
    if how == "folder":
        path.mkdir()
        code = "bad-file"
    elif how == "loop":
        path.symlink_to(path.name)
        code = "io"
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "unreadable":
        os.mkfifo(path)
        code = "bad-file"
    failure = refusal(connect, sharded.index)
    assert failure.code == code and sharded.names[1] in failure.message, failure
    if code == "not-found":
        assert "same model" in failure.message and str(sharded.index) in failure.message
    nothing_is_left(daemon)


def other(sharded, key, name):
    return {**sharded.weight_map, key: name}


@pytest.mark.parametrize("how,code,words", [
    ("wrong file", "bad-file", 'tensor "model.layers.0.w0": is not in the file that is said, but '
     "in model-00001-of-00003.safetensors"),
    ("no such tensor", "bad-file", 'tensor "new": is in none of the files'),
    ("unnamed file", "bad-file", "there is no file"),
    ("traversal", "bad-file", '"../m/model-00001-of-00003.safetensors" is no name of a file'),
    ("absolute", "bad-file", "is no name of a file beside the index"),
    ("itself", "bad-file", INDEX),
    ("twice", "bad-file", "is named twice"),
    ("no map", "bad-file", "there is no weight_map"),
    ("no JSON", "bad-file", "byte 0: '{' is missing"),
    ("empty", "bad-file", "the index ends in the middle"),
    ("too large", "too-large", "it has 67108865 bytes"),
    ("deep", "bad-file", "32 levels deep"),
    ("257 files", "too-large", "more than 256 files"),
    ("a tensor in two files", "bad-file", "is in two files, model-00001-of-00003"),
    ("a million names", "bad-file", "is in none of the files"),
    ("a broken file", "bad-file", "model-00002-of-00003.safetensors: "),
    ("two formats", "unsupported", "are of different formats"),
])
def test_an_index_that_lies_is_refused_in_words(daemon, connect, tmp_path, how, code, words):
    sharded = Sharded(tmp_path / "m")
    key = "model.layers.0.w0"
    if how == "wrong file":
        sharded.write_index(other(sharded, key, sharded.names[1]))
    elif how == "no such tensor":
        sharded.write_index(other(sharded, "new", sharded.names[0]))
    elif how == "unnamed file":
        sharded.write_index(other(sharded, key, "model-00004-of-00003.safetensors"))
        code = "not-found"
    elif how == "traversal":
        sharded.write_index(other(sharded, key, f"../m/{sharded.names[0]}"))
    elif how == "absolute":
        sharded.write_index(other(sharded, key, "/etc/passwd"))
    elif how == "itself":
        sharded.write_index(other(sharded, key, INDEX))
    elif how == "twice":
        text = sharded.index.read_text()
        sharded.index.write_text(text.replace('"weight_map": {', '"weight_map": {"%s": "%s",' % (
            key, sharded.names[0])))
    elif how == "no map":
        sharded.index.write_text('{"metadata": {}}')
    elif how in ("no JSON", "empty"):
        sharded.index.write_text("weights" if how == "no JSON" else "")
    elif how == "too large":
        os.truncate(sharded.index, (64 << 20) + 1)
    elif how == "deep":
        sharded.index.write_text('{"metadata": ' + "[" * 100000)
    elif how == "257 files":
        sharded.write_index({str(i): f"f{i}" for i in range(257)})
    elif how == "a tensor in two files":
        shutil.copy(sharded.paths[0], sharded.paths[2])
    elif how == "a million names":
        sharded.write_index({**sharded.weight_map,
                             **{f"x.{i}": sharded.names[i % 3] for i in range(10 ** 6)}})
    elif how == "a broken file":
        sharded.paths[1].write_bytes(b"\xff" * 100)
    elif how == "two formats":
        write_gguf(sharded.paths[1])
    failure = refusal(connect, sharded.index)
    assert failure.code == code and words in failure.message, failure
    if code == "bad-file":
        assert any(name in failure.message for name in (INDEX, *sharded.names)), failure
    nothing_is_left(daemon)


@pytest.mark.daemon("memory.ram=1M")
def test_all_of_it_has_room_or_nothing(daemon, connect, tmp_path):
    fits = Sharded(tmp_path / "fits", n=3, bytes=256 << 10, seed=1)
    big = Sharded(tmp_path / "big", n=5, bytes=256 << 10, seed=2)
    d = connect()
    d.load(fits.index)
    failure = refusal(connect, big.index)
    assert failure.code in ("no-memory", "too-large"), failure
    assert residents(daemon) == ["fits/model.safetensors"]
    single = tmp_path / "s.safetensors"
    make_safetensors(single, {"x": ("U8", [600 << 10])})
    d.load(single)  # one model goes, with all its files
    assert residents(daemon) == ["s.safetensors"]
    wait_until(lambda: used(daemon) < 700 << 10, what="the last file of what goes")
    with d.open(fits.index) as weights:
        check(weights, fits)


def test_a_file_that_fails_to_be_read_leaves_nothing(daemon, connect, tmp_path):
    sharded = Sharded(tmp_path / "m", n=3, bytes=1 << 20)
    backing = tmp_path / "backing"
    sharded.paths[1].rename(backing)
    slow = FuseFile("eio", backing)
    try:
        if slow.why_not:
            pytest.skip(f"no FUSE here: {slow.why_not}")
        sharded.paths[1].symlink_to(slow.path)
        failure = refusal(connect, sharded.index)
        assert failure.code == "io" and sharded.names[1] in failure.message, failure
        nothing_is_left(daemon)
        sharded.paths[1].unlink()
        backing.rename(sharded.paths[1])
        with connect().open(sharded.index) as weights:
            check(weights, sharded)
    finally:
        slow.end()


# ---- what changes ----------------------------------------------------------------------


def test_a_file_that_changed_is_a_new_generation_of_the_whole(daemon, connect, tmp_path):
    sharded = Sharded(tmp_path / "m")
    d = connect()
    old = d.open(sharded.index)
    again = Sharded(tmp_path / "other", seed=7)
    sharded.paths[2].write_bytes(again.paths[2].read_bytes())
    with d.open(sharded.index) as weights:
        assert weights.id == old.id and weights.generation == old.generation + 1
        for name in sharded.tensors:
            source = again if sharded.weight_map[name] == sharded.names[2] else sharded
            assert bytes(weights[name].buffer) == source.tensors[name]
    check(old, sharded)
    old.close()


def test_times_that_changed_alone_cost_no_second_copy(daemon, connect, tmp_path):
    sharded = Sharded(tmp_path / "m")
    d = connect()
    with d.open(sharded.index) as weights:
        generation = weights.generation
    os.chmod(sharded.paths[1], 0o600)  # changes its ctime
    with d.open(sharded.index) as weights:
        assert weights.generation == generation
        check(weights, sharded)
    assert len(daemon.models()) == 1 and used(daemon) < sharded.bytes * 2


def test_another_file_in_its_place_is_another_model(daemon, connect, tmp_path):
    sharded = Sharded(tmp_path / "m")
    d = connect()
    with d.open(sharded.index) as weights:
        first = weights.id
    copy = tmp_path / "copy"
    shutil.copy(sharded.paths[0], copy)
    os.replace(copy, sharded.paths[0])
    with d.open(sharded.index) as weights:
        assert weights.id != first
        check(weights, sharded)


@pytest.mark.parametrize("backing", ["image", "file", "auto"])
def test_backings(start_daemon, tmp_path, distorch, backing):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", f"memory.backing={backing}")
    sharded = Sharded(tmp_path / "m", n=40)
    with distorch.connect(str(daemon.socket)) as d, d.open(sharded.index) as weights:
        check(weights, sharded)
        found = d.show(sharded.index)
        assert found.backing in ("image", "file") and (backing == "auto"
                                                       or found.backing == backing)
        assert [shard.name for shard in found.shards] == sharded.names


# ---- whoever else is there --------------------------------------------------------------


def test_two_who_load_at_once_share_one_read(daemon, distorch, tmp_path):
    need_hooks()
    sharded = Sharded(tmp_path / "m", n=8, bytes=1 << 18)
    daemon.tell("fault pread:1:delay=20:ever")
    results, progress = [], []

    def load(path):
        with distorch.connect(str(daemon.socket)) as d, d.open(
                path, progress=lambda it: progress.append((it.bytes, it.total))) as weights:
            results.append({name: bytes(weights[name].buffer) for name in weights})

    threads = [threading.Thread(target=load, args=(path,))
               for path in (sharded.index, sharded.paths[3], sharded.index)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    daemon.tell("clear")
    assert results == [sharded.tensors] * 3
    assert len(daemon.models()) == 1 and daemon.status()["bytes_read"] < 2 * sharded.bytes
    assert all(done <= total for done, total in progress)
    assert (sharded.bytes, sharded.bytes) in progress


def test_ctrl_c_cancels_all_of_it(daemon, tmp_path):
    need_hooks()
    sharded = Sharded(tmp_path / "m", n=8, bytes=1 << 20)
    daemon.tell("fault pread:1:delay=60000:ever")
    process = subprocess.Popen([BUILD / "bin" / "distorchctl", "--socket", daemon.socket, "load",
                                sharded.index], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_until(lambda: daemon.models(), 10 * slowness())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    daemon.tell("clear")
    nothing_is_left(daemon)


def test_verify_names_the_file_and_the_copy_goes(daemon, connect, tmp_path):
    need_hooks()
    sharded = Sharded(tmp_path / "m")
    d = connect()
    d.load(sharded.index)
    daemon.tell("corrupt 4000")
    (found,) = d.verify(sharded.index)
    assert not found.ok and any(name in found.text for name in sharded.names), found
    with d.open(sharded.index) as weights:
        check(weights, sharded)
    assert all(check.ok for check in d.verify())


# ---- over the daemon's death ------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 40])
def test_it_outlives_kill_9(start_daemon, distorch, child, tmp_path, n):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=HeldDaemon)
    sharded = Sharded(tmp_path / "m", n=n)
    reader = child(READER, daemon.socket, sharded.index)
    with distorch.connect(str(daemon.socket)) as d:
        before = d.show(sharded.index)
        kinds = [parked.kind for parked in d.store().parked]
        assert [kinds.count(kind) for kind in ("table", "index", "image", "source")] == [
            1, 1, n, n]
    for _ in range(2):
        daemon.kill_daemon()
        assert reader.ask() == "same"
        with distorch.connect(str(daemon.socket)) as d:
            after = d.show(sharded.index)
            assert after.model.id == before.model.id and after.shards == before.shards
            assert after.model.path == before.model.path
            wait_until(lambda: d.show(sharded.index).model.leases == 1, 10 * slowness())
            with d.open(sharded.paths[1]) as weights:
                check(weights, sharded)
                assert weights.generation == before.model.generation
            assert all(check.ok for check in d.verify())
            assert d.status().bytes_read == 0
    reader.end()
    with distorch.connect(str(daemon.socket)) as d:
        assert d.unload(sharded.index).total_bytes == before.model.where[0].bytes
        assert [parked.kind for parked in d.store().parked if parked.model] == []


def entries(daemon, kind):
    return sorted((entry for entry in daemon.kept if entry[0].startswith(kind + ".")),
                  key=lambda entry: int(entry[0].rsplit(".", 1)[1]))


@pytest.mark.parametrize("how", ["image", "source", "table", "index", "swapped", "more",
                                 "a source changed"])
def test_what_comes_back_in_part_is_given_up_as_a_whole(start_daemon, tmp_path, how):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    sharded = Sharded(tmp_path / "m")
    single = tmp_path / "single.safetensors"
    make_safetensors(single, {"x": ("U8", [4096])})
    with daemon.raw() as raw:
        raw.load(single)
    others = {name for name, _fd in daemon.kept}
    assert ctl(daemon, "load", sharded.index).returncode == 0
    daemon.die()
    mine = [entry for entry in daemon.kept if entry[0] not in others]
    named = {kind: [entry for entry in mine if entry[0].startswith(start)] for kind, start in (
        ("image", "img."), ("source", "src."), ("table", "hdr."), ("index", "idx."))}
    n_models = 1
    if how in named:
        daemon.kept.remove(named[how][-1])
    elif how == "swapped":
        first, second = named["image"][:2]
        for entry, fd in ((first, second[1]), (second, first[1])):
            daemon.kept[daemon.kept.index(entry)] = (entry[0], fd)
    elif how == "more":
        name, fd = named["image"][-1]
        daemon.kept.append((name[:-1] + "7", os.dup(fd)))
        n_models = 2
    elif how == "a source changed":
        with open(sharded.paths[1], "r+b") as file:
            file.seek(1000)
            file.write(b"changed")
        n_models = 2  # what is in memory is as it was; the next load sees the change
    daemon.start()
    assert len(daemon.models()) == n_models, daemon.log()
    loaded = ctl(daemon, "load", sharded.index)
    assert loaded.returncode == 0, loaded
    assert ctl(daemon, "verify").returncode == 0

    def is_whole():  # what came back of the old one may be on its way out
        names = [name.split(".")[0] for name, _fd in daemon.kept]
        return [names.count(kind) for kind in ("img", "hdr", "idx")] == [4, 2, 1]

    wait_until(is_whole, 10 * slowness(), "one of each")


def test_what_was_said_of_it_is_known_after_a_new_start(start_daemon, distorch, tmp_path):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0",
                          environment={"DISTORCHD_TEST_SAVE_MS": "1"})
    sharded = Sharded(tmp_path / "m")
    with distorch.connect(str(daemon.socket)) as d:
        d.load(sharded.index, keep=True)
        d.load(Sharded(tmp_path / "other", seed=3).index)
    state = daemon.state / "state.json"
    wait_until(lambda: state.exists() and len(json.loads(state.read_text())["wishes"]) == 1,
               10 * slowness())
    daemon.stop()
    daemon.start()
    with distorch.connect(str(daemon.socket)) as d:
        assert d.load(sharded.paths[2]).keep
        assert not d.load(tmp_path / "other" / INDEX).keep
        os.utime(sharded.paths[0])  # it is written again: another content at the same place
        d.unkeep(sharded.index)


def test_the_warm_list_takes_it_by_its_index(start_daemon, distorch, tmp_path):
    sharded = Sharded(tmp_path / "m", n=40)
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", f"warm.model={sharded.index}")

    def states():
        with distorch.connect(str(daemon.socket)) as d:
            return [entry.state for entry in d.warm()]

    wait_until(lambda: states() == ["loaded"], 10 * slowness())
    other = Sharded(tmp_path / "other")
    with distorch.connect(str(daemon.socket)) as d:
        assert d.load(sharded.index).name == "model.safetensors" and d.status().misses == 1
        with d.open(sharded.paths[5]) as weights:
            check(weights, sharded)
        assert d.show(sharded.index).shards[39].name == sharded.names[39]
        path = other.folder / "model.safetensors"  # it is no file; the index beside it counts
        d.warm_add(path)
        wait_until(lambda: states() == ["loaded", "loaded"], 10 * slowness())
        d.warm_remove(path)
        other.paths[1].unlink()
        with pytest.raises(distorch.Error) as caught:
            d.warm_add(path)
        assert caught.value.code == "not-found" and other.names[1] in caught.value.message


def test_the_warm_list_says_what_is_wrong_with_it(start_daemon, distorch, tmp_path):
    sharded = Sharded(tmp_path / "m")
    sharded.write_index(other(sharded, "model.layers.0.w0", "../../etc/passwd"))
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", f"warm.model={sharded.index}")

    def entry():
        with distorch.connect(str(daemon.socket)) as d:
            return d.warm()[0]

    wait_until(lambda: entry().state == "failed", 10 * slowness())
    assert "is no name of a file beside the index" in entry().text, entry()
