# SPDX-License-Identifier: Apache-2.0
"""Memory as DLPack: the structure that consumers read, and how long the memory is held. What a
card's memory looks like needs no card to be seen; who reads it is numpy, of the host's."""

import gc
import sys
import weakref

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "client" / "python"))

from distorch import _dlpack  # noqa: E402

np = pytest.importorskip("numpy")


class Owner:
    def __init__(self, values):
        self.array = np.array(values)
        self.address = self.array.ctypes.data


def test_numpy_reads_the_very_memory_and_holds_its_owner():
    owner = Owner(np.arange(12, dtype="float32"))
    array = np.from_dlpack(_dlpack.Exchange(owner, owner.address, (3, 4), "F32", 48,
                                            (_dlpack.CPU, 0)))
    assert array.shape == (3, 4) and array.dtype == np.float32
    assert array.ctypes.data == owner.address and array[2, 3] == 11
    is_there = weakref.ref(owner)
    del owner
    gc.collect()
    assert is_there() is not None and array[1, 0] == 4
    del array
    gc.collect()
    assert is_there() is None


def reshaped(exchange):
    return np.from_dlpack(exchange).reshape(7)


def typed(exchange):
    return np.from_dlpack(exchange)  # numpy has no such type: it takes nothing


@pytest.mark.parametrize("dtype, use, message", [
    ("F32", reshaped, "cannot reshape"), ("BF16", typed, "Unsupported dtype")])
def test_an_exception_of_the_consumer_is_raised_and_the_memory_let_go(dtype, use, message):
    owner = Owner(np.zeros(12, dtype="float32"))
    is_there = weakref.ref(owner)
    exchange = _dlpack.Exchange(owner, owner.address, (12,), dtype, 48, (_dlpack.CPU, 0))
    del owner
    with pytest.raises((ValueError, RuntimeError, BufferError), match=message):
        use(exchange)
    del exchange
    gc.collect()
    assert is_there() is None


def test_torch_serves_where_numpy_is_not_there(monkeypatch):
    torch = pytest.importorskip("torch")
    owner = Owner(np.arange(12, dtype="float32"))
    is_there = weakref.ref(owner)
    exchange = _dlpack.Exchange(owner, owner.address, (3, 4), "F32", 48, (_dlpack.CPU, 0))
    del owner
    monkeypatch.setitem(sys.modules, "numpy", None)
    tensor = torch.from_dlpack(exchange)
    assert tensor.shape == (3, 4) and tensor[2, 3] == 11
    with pytest.raises(RuntimeError, match="invalid for input of size 12"):
        torch.from_dlpack(exchange).reshape(7)
    del exchange, tensor
    gc.collect()
    assert is_there() is None


def test_a_capsule_of_a_card_says_where_and_what():
    owner = object()
    capsule = _dlpack.capsule(owner, 0x7f0012340000, (2, 3), "BF16", 12, (_dlpack.CUDA, 1))
    tensor = _dlpack._Tensor.from_address(_dlpack._pointer(capsule, b"dltensor"))
    assert (tensor.data, tensor.device_type, tensor.device) == (0x7f0012340000, 2, 1)
    assert (tensor.rank, tensor.shape[0], tensor.shape[1]) == (2, 2, 3)
    assert (tensor.code, tensor.bits, tensor.lanes, tensor.offset) == (4, 16, 1, 0)
    assert not tensor.strides  # compact, in rows


def test_a_capsule_that_nobody_takes_lets_go():
    owner = Owner([1, 2, 3])
    is_there = weakref.ref(owner)
    capsule = _dlpack.capsule(owner, owner.address, (3,), "I64", 24)
    del owner
    gc.collect()
    assert is_there() is not None
    del capsule
    gc.collect()
    assert is_there() is None


@pytest.mark.parametrize("dtype, shape, nbytes, expected", [
    ("F8_E4M3", (4, 8), 32, ((4, 8), 1, 8)),
    ("Q4_K", (2, 256), 288, ((2, 144), 1, 8)),
    ("F16", (), 2, ((), 2, 16)),
    ("Q8_0", (0, 32), 0, ((0, 0), 1, 8)),
])
def test_what_has_no_word_goes_as_bytes(dtype, shape, nbytes, expected):
    assert _dlpack.form(shape, dtype, nbytes) == expected


def test_neither_a_copy_nor_another_device_is_made():
    exchange = _dlpack.Exchange(None, 4096, (1,), "U8", 1, (_dlpack.CUDA, 0))
    with pytest.raises(BufferError, match="a copy was asked for"):
        exchange.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="not on"):
        exchange.__dlpack__(dl_device=(_dlpack.CPU, 0))
    assert exchange.__dlpack_device__() == (2, 0)
