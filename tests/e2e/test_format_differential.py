# SPDX-License-Identifier: Apache-2.0
"""Our reader of safetensors headers against the safetensors package, file by file.

What the package accepts we accept, with the same names, dtypes, shapes and bytes, but for the
stricter rules that daemon/format/format.h lists; what it refuses we refuse, without exception.
"""

import json
import random
import re
import struct
import subprocess

import pytest
from conftest import BUILD

safetensors = pytest.importorskip("safetensors")
DUMP = BUILD / "tests" / "format_dump"

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
# Refusals that the package does not share, each a rule listed in format.h.
STRICTER = [
    r"does not begin with '\{'",
    r"is described twice",
    r"holds NUL",
    r"a string that is too long",
    r"more than 64 dimensions",
    r"over 2\^53",
    r"key \".*\" is not known",
    r"'\{' is missing",  # a tensor written as a list
    r"'\"' is missing",  # a dtype written as a map
]
ODD_NAMES = ["", " ", ".", "a b", "é", "日本", "😀", "\x01", "\x7f", '"', "\\", "/", "\u202e", "x" * 4096,
             "model.layers.0.weight", "0", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]  # fmt: skip


def file_bytes(header, data, padding=0):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * padding
    return struct.pack("<Q", len(text)) + text + data


def one(dtype="U8", shape=(4,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def random_shape(rng, dtype):
    shape = [rng.choice([0, 1, 1, 2, 3, 5, 8, 17]) for _ in range(rng.randrange(5))]
    if BITS[dtype] % 8:
        shape.append(rng.choice([4, 8, 0]))
    return shape


def good_file(rng):
    header, data = {}, b""
    if rng.random() < 0.5:
        header["__metadata__"] = {"format": "pt", rng.choice(ODD_NAMES): rng.choice(ODD_NAMES)}
    entries = []
    for number in range(rng.randrange(7)):
        dtype = rng.choice(list(BITS))
        shape = random_shape(rng, dtype)
        size = BITS[dtype]
        for length in shape:
            size *= length
        size //= 8
        name = rng.choice(ODD_NAMES[:-1]) if rng.random() < 0.5 else f"blocks.{number}.w"
        if name not in dict(entries):
            entries.append((name, one(dtype, shape, (len(data), len(data) + size))))
            data += rng.randbytes(size)
    rng.shuffle(entries)
    header.update(entries)
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))
    return file_bytes(text.encode("utf-8"), data, rng.randrange(9))


def bent_file(rng):
    """A good file with a few of its bytes, numbers or words changed."""
    content = bytearray(good_file(rng))
    size = struct.unpack("<Q", content[:8])[0]
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(8, 8 + size)] = rng.choice(b' {}[],:"0123456789-+.eE\\untr\0\xff\x80')
    elif kind == 1:
        del content[rng.randrange(len(content)):]
    elif kind == 2:
        content += rng.randbytes(rng.randrange(1, 4))
    else:
        text = content[8 : 8 + size].decode("utf-8")
        numbers = list(re.finditer(r"(?<=[\[, \n])\d+(?=[,\]\n])", text))
        if numbers:
            match = rng.choice(numbers)
            value = rng.choice(["0", "1", "2", "00", "01", "-0", "-1", "1.0", "1e1", "9007199254740993",
                                "18446744073709551615", "18446744073709551616", "null", "true", '"1"', "", "1,1",
                                str(int(match[0]) + 1)])  # fmt: skip
            text = text[: match.start()] + value + text[match.end() :]
        if kind == 4:
            old, new = rng.choice([("F32", "F33"), ("dtype", "shape"), ("shape", "sh\\u0061pe"), ("U8", "I8"),
                                   ("w", "\\u0077"), ("{", " {"), ("]", "],"), ("__metadata__", "blocks.1.w")])  # fmt: skip
            text = text.replace(old, new, 1)
        content = bytearray(file_bytes(text.encode("utf-8"), bytes(content[8 + size :])))
    return bytes(content)


CHOSEN = {
    "nothing": file_bytes({}, b""),
    "blanks": file_bytes(b"{ \n\r\t }   ", b""),
    "scalar": file_bytes({"a": one("F64", (), (0, 8))}, b"12345678"),
    "empty first": file_bytes({"a": one("U8", (0,), (0, 0)), "b": one()}, b"1234"),
    "empty inside": file_bytes({"a": one("U8", (0,), (2, 2)), "b": one()}, b"1234"),
    "empty last": file_bytes({"a": one("U8", (0, 5), (4, 4)), "b": one()}, b"1234"),
    "metadata null": file_bytes({"__metadata__": None, "b": one()}, b"1234"),
    "metadata nested": file_bytes({"__metadata__": {"a": {}}, "b": one()}, b"1234"),
    "metadata number": file_bytes({"__metadata__": {"a": 1}, "b": one()}, b"1234"),
    "metadata twice": file_bytes(b'{"__metadata__":{},"__metadata__":{}}', b""),
    "metadata escaped": file_bytes(b'{"\\u005f_metadata__":{"a":"b"}}', b""),
    "leading blank": file_bytes(b" {}", b""),
    "byte order mark": file_bytes(b"\xef\xbb\xbf{}", b""),
    "trailing text": file_bytes(b"{}x", b""),
    "trailing nul": file_bytes(b"{}\0", b""),
    "name twice": file_bytes(b'{"a":' + json.dumps(one()).encode() + b',"a":' + json.dumps(one()).encode() + b"}", b"1234"),
    "nul in a name": file_bytes({"a\0b": one()}, b"1234"),
    "long name": file_bytes({"n" * 4097: one()}, b"1234"),
    "65 dimensions": file_bytes({"a": one("U8", [1] * 64 + [4])}, b"1234"),
    "2^53 + 1": file_bytes({"a": one("U8", [0, 2**53 + 1], (0, 0))}, b""),
    "overflow before zero": file_bytes({"a": one("U8", [2**40, 2**40, 0], (0, 0))}, b""),
    "zero before overflow": file_bytes({"a": one("U8", [0, 2**40, 2**40], (0, 0))}, b""),
    "unknown key": file_bytes({"a": one(stride=[1])}, b"1234"),
    "key twice": file_bytes(b'{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"1234"),
    "key missing": file_bytes(b'{"a":{"dtype":"U8","shape":[4]}}', b"1234"),
    "key escaped": file_bytes(b'{"a":{"dtyp\\u0065":"\\u00558","shape":[4],"data_offsets":[0,4]}}', b"1234"),
    "tensor as a list": file_bytes(b'{"a":["U8",[4],[0,4]]}', b"1234"),
    "dtype as a map": file_bytes(b'{"a":{"dtype":{"U8":null},"shape":[4],"data_offsets":[0,4]}}', b"1234"),
    "unknown dtype": file_bytes({"a": one("Q4_K")}, b"1234"),
    "half a byte": file_bytes({"a": one("F4", (3,), (0, 2))}, b"12"),
    "lone surrogate": file_bytes(b'{"\\ud800":' + json.dumps(one()).encode() + b"}", b"1234"),
    "not utf-8": file_bytes(b'{"\xff":' + json.dumps(one()).encode() + b"}", b"1234"),
    "hole": file_bytes({"a": one(), "b": one(offsets=(5, 9))}, b"123456789"),
    "overlap": file_bytes({"a": one(), "b": one(offsets=(2, 6))}, b"123456"),
    "same range": file_bytes({"a": one(), "b": one()}, b"1234"),
    "short": file_bytes({"a": one()}, b"123"),
    "long": file_bytes({"a": one()}, b"12345"),
    "no length": b"",
    "seven bytes": b"\2\0\0\0\0\0\0",
    "length 0": struct.pack("<Q", 0),
    "length 1": struct.pack("<Q", 1) + b"{",
    "length over": struct.pack("<Q", 3) + b"{}",
    "length 2^63": struct.pack("<Q", 2**63) + b"{}",
}  # fmt: skip


def every_dtype():
    header, data = {}, b""
    for number, (dtype, bits) in enumerate(BITS.items()):
        header[f"t.{number}"] = one(dtype, (3, 8), (len(data), len(data) + 3 * bits))
        data += bytes([number]) * (3 * bits)
    return file_bytes(header, data)


CHOSEN["every dtype"] = every_dtype()


def ours(paths):
    result = subprocess.run([DUMP, *paths], capture_output=True, check=True, timeout=60)
    return [json.loads(line) for line in result.stdout.decode("utf-8").splitlines()]


def theirs(content):
    """{name: (dtype, shape, bytes)}, or None where the package refuses."""
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {name: (t["dtype"], list(t["shape"]), bytes(t["data"])) for name, t in tensors}


def compare(content, found, what):
    wanted = theirs(content)
    if "error" in found:
        if wanted is not None:
            assert any(re.search(rule, found["text"]) for rule in STRICTER), (what, found, content[:500])
        return False
    assert wanted is not None, (what, "accepted by us alone", content[:500])
    got = {name: (dtype, shape, content[offset : offset + size])
           for name, dtype, shape, offset, size in found["tensors"]}  # fmt: skip
    assert len(got) == len(found["tensors"])
    assert got == wanted, what
    return True


def compare_all(tmp_path, contents):
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"{number}.safetensors")
        paths[-1].write_bytes(content)
    answers = ours(paths)
    assert len(answers) == len(paths)
    return [compare(content, answer, path.name) for content, answer, path in zip(contents, answers, paths)]


def test_chosen_files_are_judged_as_the_package_judges_them(tmp_path):
    accepted = dict(zip(CHOSEN, compare_all(tmp_path, list(CHOSEN.values()))))
    assert accepted["every dtype"] and accepted["scalar"] and accepted["zero before overflow"]
    assert not accepted["hole"] and not accepted["half a byte"]


@pytest.mark.parametrize("seed", range(4))
def test_generated_files_hold_the_same_tensors(tmp_path, seed):
    rng = random.Random(seed)
    assert all(compare_all(tmp_path, [good_file(rng) for _ in range(250)]))


@pytest.mark.parametrize("seed", range(8))
def test_bent_files_are_refused_by_both_or_hold_the_same(tmp_path, seed):
    rng = random.Random(1000 + seed)
    accepted = compare_all(tmp_path, [bent_file(rng) for _ in range(500)])
    assert 0 < sum(accepted) < len(accepted)


def test_the_package_writes_what_we_read(tmp_path):
    """The package's own writer, as most files in the world were made."""
    numpy = pytest.importorskip("numpy")
    save = pytest.importorskip("safetensors.numpy").save
    tensors = {}
    for number, dtype in enumerate(["float32", "float16", "float64", "int64", "int8", "uint8", "bool"]):
        tensors[f"blocks.{number}.é"] = numpy.ones((3, number), dtype=dtype)
    assert all(compare_all(tmp_path, [save(tensors, {"format": "np"})]))
