# SPDX-License-Identifier: Apache-2.0
"""Memory as DLPack, which torch and others take without a copy: on a card there is no other way.

What DLPack has no word for (quantised types, and those that are younger than many a consumer)
goes as bytes: the last axis counts them.
"""

import ctypes

CPU = 1
CUDA = 2

# kDLInt, kDLUInt, kDLFloat, kDLBfloat, kDLComplex, kDLBool
_TYPES = {
    "BOOL": (6, 8), "U8": (1, 8), "I8": (0, 8), "U16": (1, 16), "I16": (0, 16), "F16": (2, 16),
    "BF16": (4, 16), "U32": (1, 32), "I32": (0, 32), "F32": (2, 32), "C64": (5, 64),
    "F64": (2, 64), "U64": (1, 64), "I64": (0, 64),
}
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device", ctypes.c_int32),
        ("rank", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64),
    ]


_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))


def form(shape, dtype, nbytes):
    """(shape, code, bits) of `nbytes` of a dtype as safetensors and ggml name them."""
    shape = tuple(shape)
    if dtype in _TYPES:
        return (shape, *_TYPES[dtype])
    rows = 1
    for axis in shape[:-1]:
        rows *= axis
    return ((*shape[:-1], nbytes // rows if rows else 0), *_TYPES["U8"])


def _lend(anchor):
    """A capsule of the byte `anchor`, which holds that until its consumer is done with it."""
    try:
        import numpy
    except ImportError:
        import torch

        return torch.frombuffer(anchor, dtype=torch.uint8).__dlpack__()
    return numpy.frombuffer(anchor, "uint8").__dlpack__()


def capsule(owner, address, shape, dtype, nbytes, device=(CUDA, 0)):
    """A capsule "dltensor" of memory that stays as long as `owner` does; it is held until the
    consumer is done with it, or the capsule goes without having been taken.

    Consumers let go while an exception of theirs is on its way, and no callback in Python may run
    then: ctypes would lose that exception. So numpy or torch lends a byte, with the callbacks
    that it has in C, and what the capsule says of the byte is replaced."""
    shape, code, bits = form(shape, dtype, nbytes)
    sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    anchor = (ctypes.c_ubyte * 1)()
    anchor.held = (owner, sizes)
    lent = _lend(anchor)
    said = _Tensor(address, *device, len(shape), code, bits, 1, sizes, None, 0)
    ctypes.memmove(_pointer(lent, _NAME), ctypes.byref(said), ctypes.sizeof(said))
    return lent


class Exchange:
    """What consumers ask for: torch.from_dlpack(Exchange(...)) or numpy.from_dlpack(...). The
    memory is filled before anybody gets it, so no stream has to wait."""

    def __init__(self, owner, address, shape, dtype, nbytes, device=(CUDA, 0)):
        self._what = (owner, address, shape, dtype, nbytes, device)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        device = self._what[5]
        if dl_device is not None and tuple(dl_device) != tuple(device):
            raise BufferError(f"the memory is on {device}, not on {tuple(dl_device)}")
        if copy:
            raise BufferError("a copy was asked for, and this is the memory itself")
        return capsule(*self._what)

    def __dlpack_device__(self):
        return self._what[5]
