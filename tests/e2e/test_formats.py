# SPDX-License-Identifier: Apache-2.0
"""GGUF files and raw ones through every public door; the gguf package is the oracle."""

import json
import os
import random
import struct
import subprocess

import pytest
from conftest import BUILD, RawError, make_safetensors, opened
from test_ctl import ctl, ctl_json

gguf = pytest.importorskip("gguf")
numpy = pytest.importorskip("numpy")
DUMP = BUILD / "tests" / "format_dump"
Type = gguf.GGMLQuantizationType
PLAIN = {"F32": "float32", "F16": "float16", "F64": "float64", "I8": "int8", "I16": "int16",
         "I32": "int32", "I64": "int64"}  # fmt: skip


def write_gguf(path, tensors, keys=None, alignment=None, seed=1):
    """Write {name: (type, shape)}, shapes of elements in numpy's order, by the package."""
    rng = numpy.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value in (keys or {}).items():
        writer.add_array(key, value) if isinstance(value, list) else writer.add_string(key, value)
    for name, (kind, shape) in tensors.items():
        group, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, [*shape[:-1], shape[-1] // group * size], dtype="uint8")
        if kind.name in PLAIN:
            writer.add_tensor(name, data.view(PLAIN[kind.name]))
        else:
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def every_type():
    tensors = {}
    for kind in Type:
        group = gguf.GGML_QUANT_SIZES[kind][0]
        tensors[f"blk.{int(kind)}.{kind.name}.weight"] = (kind, [3, 2 * group])
        tensors[f"blk.{int(kind)}.{kind.name}.row"] = (kind, [group])
    tensors["output.deep"] = (Type.Q8_0, [2, 1, 3, 64])
    return tensors


def known(path):
    """{name: (dtype, shape, bytes)} as the package reads them."""
    return {t.name: (t.tensor_type.name, tuple(int(n) for n in reversed(t.shape)), t.data.tobytes())
            for t in gguf.GGUFReader(path).tensors}  # fmt: skip


def seen(weights):
    return {t.name: (t.dtype, t.shape, bytes(t.buffer)) for t in weights.values()}


def refusal(function):
    """What the TypeError says; the error itself would keep its tensor alive."""
    try:
        function()
    except TypeError as failure:
        return str(failure)


# ---- what is read ----


@pytest.mark.parametrize("version", [2, 3])
def test_every_type_has_the_bytes_that_the_package_reads(connect, tmp_path, version):
    path = write_gguf(tmp_path / "all.gguf", every_type())
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", version))
    wanted = known(path)
    assert len(wanted) == 2 * len(Type) + 1
    with connect().open(path) as weights:
        found = seen(weights)
        for name, (dtype, shape, data) in wanted.items():
            assert found.pop(name) == (dtype, shape, data), name
            tensor = weights[name]
            assert tensor.nbytes == len(data)
        assert found == {}


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignments_other_than_32_are_kept(connect, tmp_path, alignment):
    path = write_gguf(tmp_path / "m.gguf", {f"blk.{i}.w": (Type.I8, [i + 1]) for i in range(9)},
                      alignment=alignment)
    with connect().open(path) as weights:
        assert seen(weights) == known(path)


def test_a_header_of_several_mib_is_read(connect, tmp_path):
    keys = {"tokenizer.ggml.tokens": [f"{i} ".rjust(100, "x") for i in range(40_000)],
            "tokenizer.ggml.scores": [0.5] * 40_000}
    path = write_gguf(tmp_path / "m.gguf", {"blk.0.w": (Type.Q4_K, [4, 256])}, keys)
    assert path.stat().st_size > 4_000_000
    with connect().open(path) as weights:
        assert seen(weights) == known(path)


def test_numpy_reads_plain_types_and_says_how_to_dequantise_others(connect, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", every_type())
    with connect().open(path) as weights:
        for tensor in weights.values():
            if tensor.dtype in PLAIN:
                array = tensor.numpy()
                assert array.dtype == PLAIN[tensor.dtype] and array.shape == tensor.shape
                assert array.tobytes() == bytes(tensor.buffer)
            elif tensor.dtype != "BF16":
                words = refusal(tensor.numpy)
                assert f"type for {tensor.dtype} ({tensor.name})" in words
                assert ".buffer" in words and "gguf.quants.dequantize" in words
        # What the text says, word for word.
        tensor = weights["output.deep"]
        advice = refusal(tensor.numpy).split("and ")[-1].split(" makes numbers")[0]
        array = eval(advice, {"gguf": gguf, "numpy": numpy, "tensor": tensor})  # noqa: S307
        assert array.dtype == "float32" and array.shape == tensor.shape
        blocks = next(t for t in gguf.GGUFReader(path).tensors if t.name == tensor.name)
        assert numpy.array_equal(array, gguf.quants.dequantize(blocks.data, Type.Q8_0),
                                 equal_nan=True)


def test_names_make_blocks_and_listings_say_gguf(daemon, tmp_path):
    tensors = {"token_embd.weight": (Type.Q8_0, [4, 32])}
    for block in (10, 7):
        tensors[f"blk.{block}.attn_q.weight"] = (Type.Q4_K, [2, 256])
        tensors[f"blk.{block}.ffn_up.weight"] = (Type.Q6_K, [2, 256])
    path = write_gguf(tmp_path / "llm.gguf", tensors)
    assert ctl(daemon, "load", path).returncode == 0
    shown = ctl_json(daemon, "show", path.name, "--tensors")
    assert shown["format"] == "gguf" and shown["tensors"] == 5 and shown["blocks"] == 3
    table = {t["name"]: t for t in shown["tensor_table"]}
    assert table["blk.7.attn_q.weight"] == {"name": "blk.7.attn_q.weight", "dtype": "Q4_K",
                                            "shape": [2, 256], "bytes": 288, "block": 1}
    assert table["blk.10.ffn_up.weight"]["block"] == 2
    assert table["token_embd.weight"]["block"] == 0
    assert "Q6_K" in ctl(daemon, "show", path.name, "--tensors").stdout


# ---- which format ----


def test_a_format_that_is_asked_for_must_be_the_files(raw, tmp_path):
    model = write_gguf(tmp_path / "m.gguf", {"w": (Type.F32, [2])})
    other = tmp_path / "m.safetensors"
    make_safetensors(other, {"w": ("F32", [2])})
    for path, wrong, right in ((model, "safetensors", "gguf"), (other, "gguf", "safetensors")):
        with pytest.raises(RawError) as caught:
            raw.load(path, format=wrong)
        assert caught.value.code == "unsupported"
        assert raw.load(path, format=right)["model"]["format"] == right
        assert raw.load(path)["source"] == "ram"
        with pytest.raises(RawError) as caught:  # the same where it is resident
            raw.load(path, format=wrong)
        assert caught.value.code == "unsupported"
        assert f"the file is {right}, not {wrong}" in caught.value.error["message"]
        assert caught.value.error["detail"]["field"] == "format"
    with pytest.raises(RawError) as caught:
        raw.load(model, format="ggml")
    assert caught.value.code == "bad-argument"


def test_raw_is_any_file_as_one_tensor(daemon, connect, tmp_path):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(b"\x80\x02not read as a pickle" + bytes(range(256)) * 40)
    with connect().open(path, format="raw") as weights:
        assert seen(weights) == {"data": ("U8", (path.stat().st_size,), path.read_bytes())}
        assert weights["data"].numpy().tobytes() == path.read_bytes()
    assert daemon.models()[0]["format"] == "raw"
    empty = tmp_path / "empty"
    empty.touch()
    done = ctl(daemon, "load", "--format", "raw", empty)
    assert done.returncode == 7 and "the file is empty" in done.stderr


def test_a_file_read_raw_is_another_model_than_its_tensors(daemon, connect, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"w": (Type.Q8_0, [2, 32])})
    with connect() as d, d.open(path, format="raw") as whole, d.open(path) as parts:
        assert whole.id != parts.id
        assert list(whole) == ["data"] and list(parts) == ["w"]
        assert bytes(parts["w"].buffer) in bytes(whole["data"].buffer)
    assert sorted(model["format"] for model in daemon.models()) == ["gguf", "raw"]


def test_gguf_and_raw_models_outlive_the_daemon(held, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"w": (Type.Q8_0, [2, 32])})
    with held.raw() as raw:
        ids = {raw.load(path, format=word)["model"]["id"] for word in ("gguf", "raw")}
    assert len(ids) == 2
    held.kill_daemon()
    assert {model["id"] for model in held.models()} == ids
    with held.raw() as raw:
        assert raw.load(path)["source"] == "ram"
        assert raw.load(path, format="raw")["source"] == "ram"


# ---- hostile headers, through the public door ----


def u32(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


def u64(*numbers):
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def text(words):
    return u64(len(words)) + words


def start(n_tensors=0, n_keys=0, version=3, magic=b"GGUF"):
    return magic + u32(version) + u64(n_tensors, n_keys)


def tensor(name=b"w", dims=(4,), kind=0, offset=0):
    return text(name) + u32(len(dims)) + u64(*dims) + u32(kind) + u64(offset)


def alignment(value, kind=4):
    return text(b"general.alignment") + u32(kind) + value


HUGE = 2**64 - 1
HOSTILE = {
    "F20": [(start(version=v), "unsupported", "version") for v in (0, 1, 4, 2**32 - 1)] + [
        (start(version=0x03000000), "unsupported", "big-endian"),
        (start(magic=b"FUGG"), "unsupported", "big-endian"),
        (start(magic=b"GGML"), "unsupported", "not a GGUF file")],
    "F21": [(start(count, 0), "bad-file", "tensors do not fit") for count in (HUGE, 2**63, 99)] + [
        (start(0, count), "bad-file", "keys do not fit") for count in (HUGE, 2**63, 99)],
    "F22": [
        (start(1) + tensor(dims=(2**32, 2**32), kind=24), "bad-file", "2^64 elements"),
        (start(1) + tensor(dims=(2**62,), kind=28), "bad-file", "a row of more than 2^64"),
        (start(1) + tensor(dims=(HUGE // 3, 3), kind=24), "bad-file", "its padded size"),
        (start(2) + tensor(b"a", (2**62, 2), 24) + tensor(b"b", (2**62, 2), 24, 2**63),
         "bad-file", 'tensor "b": byte')],
    "F23": [(start(1) + tensor(offset=64), "bad-file", "hole"),
            (start(1) + tensor(offset=3), "bad-file", "not aligned"),
            (start(1) + tensor(dims=(2**40,)), "bad-file", "download is incomplete"),
            (start(2) + tensor(b"a") + tensor(b"b"), "bad-file", "overlaps"),
            (start(2) + tensor(b"a", offset=32) + tensor(b"b"), "bad-file", 'tensor "a"')],
    "F24": [(start(0, 1) + u64(HUGE), "bad-file", "a key of"),
            (start(0, 1) + text(b"k") + u32(9, 9) + u64(1), "unsupported", "array of arrays"),
            (start(0, 1) + text(b"k") + u32(9, 13) + u64(1), "bad-file", "type 13"),
            (start(0, 1) + text(b"k") + u32(9, 10) + u64(2**61 + 1), "bad-file", "do not fit")],
    "F25": [(start(0, 1) + alignment(u32(n)), "bad-file", "no power of two")
            for n in (0, 3, 2**31, 2**21)] + [
        (start(0, 1) + alignment(u64(2**63), 10), "bad-file", "not uint32")],
    "F27": [(start(1) + tensor(dims=(1,) * n), "bad-file", f"{n} dimensions") for n in (0, 5)] + [
        (start(1) + text(b"w") + u32(2**32 - 1), "bad-file", "4294967295 dimensions"),
        (start(1) + tensor(dims=(4, 0)), "bad-file", "a dimension of 0"),
        (start(1) + tensor(dims=(2**64 - 4,)), "bad-file", "a dimension of -4")],
    "F28": [(start(1) + tensor(kind=31), "unsupported", "type 31 (Q4_0_4_4) was retired"),
            (start(1) + tensor(kind=99), "unsupported", "type 99 is not known")],
    "F29": [(start(0, 2) + 2 * alignment(u32(32)), "bad-file", "is there twice"),
            (start(2) + tensor(b"w") + tensor(b"w", offset=32), "bad-file", "described twice")],
}  # fmt: skip


def expect_refusals(raw, tmp_path, case):
    for number, (content, code, words) in enumerate(HOSTILE[case]):
        path = tmp_path / f"{case}-{number}.gguf"
        path.write_bytes(content + bytes(160))
        with pytest.raises(RawError) as caught:
            raw.load(path, format="gguf")
        assert (caught.value.code, words in caught.value.error["message"]) == (code, True), (
            case, number, caught.value.error)  # fmt: skip


@pytest.mark.fault("F20", "F21", "F22", "F23", "F24", "F25", "F27", "F28", "F29")
@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_header_is_refused_and_nothing_is_kept(daemon, raw, tmp_path, case):
    expect_refusals(raw, tmp_path, case)
    assert daemon.status()["devices"][0]["used"] == 0


@pytest.mark.fault("F26")
def test_every_prefix_is_refused(raw, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"blk.0.w": (Type.Q8_0, [2, 32]), "w": (Type.I8, [32])})
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(RawError) as caught:
            raw.load(path)
        assert caught.value.code == "bad-file", (size, caught.value.error)


@pytest.mark.fault("F23")
def test_the_command_line_names_the_tensor_and_ends_with_7(daemon, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(start(1) + tensor(b"blk.0.\x1b[31m", offset=64) + bytes(200))
    done = ctl(daemon, "load", path)
    assert done.returncode == 7
    assert "error: bad.gguf: tensor \"blk.0." in done.stderr
    assert "byte 59: its offset 64 leaves a hole after 0" in done.stderr
    assert "\x1b" not in done.stderr
    answer = ctl_json(daemon, "load", path, status=7)
    assert answer["error"]["code"] == "bad-file"


# ---- the same files, judged by the package ----


def theirs(path):
    try:
        return known(path)
    except Exception:  # noqa: BLE001 - whatever it raises, it did not read the file
        return None


def bent(rng, content, header_size):
    content = bytearray(content)
    kind = rng.randrange(4)
    if kind == 0:
        content[rng.randrange(header_size)] = rng.randrange(256)
    elif kind == 1:
        at = rng.randrange(header_size - 8)
        content[at : at + 8] = u64(rng.choice([0, 1, 2, 31, 32, 64, 2**32, 2**63, HUGE]))
    elif kind == 2:
        del content[rng.randrange(len(content)) :]
    else:
        content[4] = rng.choice([1, 2, 3, 4])
    return bytes(content)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_accepted_the_package_reads_alike(tmp_path, seed):
    rng = random.Random(seed)
    paths = []
    for number in range(120):
        tensors = {}
        for index in range(rng.randrange(5)):
            kind = rng.choice(list(Type))
            shape = [rng.randrange(1, 4) for _ in range(rng.randrange(3))]
            shape.append(rng.randrange(1, 3) * gguf.GGML_QUANT_SIZES[kind][0])
            tensors[rng.choice(["blk.{}.w", "é {}", "{}"]).format(index)] = (kind, shape)
        path = write_gguf(tmp_path / f"{number}.gguf", tensors, {"a": "b", "c": ["d", ""]},
                          rng.choice([None, 64]), seed=number)
        paths.append(path)
        content = path.read_bytes()
        header_size = content.find(b"\0" * 16) if not tensors else content.rfind(b"\0" * 4)
        for more in range(3):
            other = tmp_path / f"{number}.{more}.gguf"
            other.write_bytes(bent(rng, content, max(64, min(header_size, 300, len(content)))))
            paths.append(other)
    lines = subprocess.run([DUMP, *paths], capture_output=True, check=True, timeout=60).stdout
    answers = [json.loads(line) for line in lines.decode().splitlines()]
    assert len(answers) == len(paths)
    n_refused = 0
    for path, answer in zip(paths, answers):
        if "error" in answer:
            assert path.name.count(".") == 2, (path.name, answer)  # a good one is never refused
            n_refused += 1
            continue
        content = path.read_bytes()
        found = {name: (dtype, tuple(shape), content[offset : offset + size])
                 for name, dtype, shape, offset, size in answer["tensors"]}  # fmt: skip
        assert found == theirs(path), path.name
    assert n_refused > 100


def test_an_opened_file_needs_no_name(raw, tmp_path):
    path = write_gguf(tmp_path / "m.bin", {"w": (Type.Q8_0, [32])})
    with opened(path) as fd:
        assert raw.call("load", {}, [fd])["model"]["format"] == "gguf"
