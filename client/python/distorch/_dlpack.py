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


class _Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER)]

_DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR)(
    ("PyCapsule_New", ctypes.pythonapi))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi))

# What is handed out, by its address: the structure with all it points to, and who owns the memory.
_lent = {}


def _delete(managed):
    _lent.pop(ctypes.addressof(managed.contents), None)


def _destroy(capsule):  # one that nobody took: who takes it gives it another name
    if _is_valid(capsule, _NAME):
        _lent.pop(_pointer(capsule, _NAME), None)


_delete_callback = _DELETER(_delete)
_destroy_callback = _DESTRUCTOR(_destroy)


def form(shape, dtype, nbytes):
    """(shape, code, bits) of `nbytes` of a dtype as safetensors and ggml name them."""
    shape = tuple(shape)
    if dtype in _TYPES:
        return (shape, *_TYPES[dtype])
    rows = 1
    for axis in shape[:-1]:
        rows *= axis
    return ((*shape[:-1], nbytes // rows if rows else 0), *_TYPES["U8"])


def capsule(owner, address, shape, dtype, nbytes, device=(CUDA, 0)):
    """A capsule "dltensor" of memory that stays as long as `owner` does; it is held until the
    consumer is done with it, or the capsule goes without having been taken."""
    shape, code, bits = form(shape, dtype, nbytes)
    sizes = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    managed = _Managed(
        _Tensor(address, device[0], device[1], len(shape), code, bits, 1, sizes, None, 0), None,
        _delete_callback)
    place = ctypes.addressof(managed)
    _lent[place] = (managed, sizes, owner)
    try:
        return _new(place, _NAME, _destroy_callback)
    except BaseException:
        _lent.pop(place, None)
        raise


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
