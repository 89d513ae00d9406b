# SPDX-License-Identifier: Apache-2.0
"""Does torch use memory of the driver's virtual memory where it is? One line says so; without
torch, or a card that it sees, the last line says why not, and the exit code is 1."""

import ctypes
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
for folder in HERE, HERE.parents[1] / "client" / "python":  # of a made folder, of the tree
    sys.path.insert(0, str(folder / "distorch"))
SIZE = 2 << 20


class Properties(ctypes.Structure):  # CUmemAllocationProp
    _fields_ = [("type", ctypes.c_int), ("handles", ctypes.c_int), ("location_type", ctypes.c_int),
                ("device", ctypes.c_int), ("security", ctypes.c_void_p),
                ("flags", ctypes.c_ubyte * 32)]


class Access(ctypes.Structure):  # CUmemAccessDesc
    _fields_ = [("location_type", ctypes.c_int), ("device", ctypes.c_int), ("flags", ctypes.c_int)]


def main():
    try:
        import torch
    except ImportError:
        sys.exit("no torch")
    if not torch.cuda.is_available():
        sys.exit("torch sees no card")
    import _dlpack

    torch.cuda.init()
    torch.zeros(1, device="cuda:0")
    driver = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        result = getattr(driver, name)(*arguments)
        if result != 0:
            print(f"refused ({result}, {name})")
            sys.exit(0)

    size = ctypes.c_size_t(SIZE)
    handle, address = ctypes.c_ulonglong(), ctypes.c_ulonglong()
    properties = Properties(type=1, handles=1, location_type=1, device=0)
    call("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(properties), ctypes.c_ulonglong(0))
    call("cuMemAddressReserve", ctypes.byref(address), size, ctypes.c_size_t(0),
         ctypes.c_ulonglong(0), ctypes.c_ulonglong(0))
    call("cuMemMap", address, size, ctypes.c_size_t(0), handle, ctypes.c_ulonglong(0))
    access = Access(location_type=1, device=0, flags=3)
    call("cuMemSetAccess", address, size, ctypes.byref(access), ctypes.c_size_t(1))
    call("cuMemsetD8_v2", address, ctypes.c_ubyte(1), size)
    access.flags = 1  # from here on for reading only, as a client has it
    call("cuMemSetAccess", address, size, ctypes.byref(access), ctypes.c_size_t(1))
    tensor = torch.from_dlpack(_dlpack.Exchange(None, address.value, (SIZE,), "U8", SIZE))
    if tensor.data_ptr() != address.value:
        print("refused (torch made a copy)")
    elif int(tensor.sum(dtype=torch.int64)) != SIZE:
        print("refused (torch read other bytes)")
    else:
        print(f"works (torch {torch.__version__})")
    del tensor


main()
