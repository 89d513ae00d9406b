# SPDX-License-Identifier: Apache-2.0
"""The tensors of an attached model, as memory that other libraries can use.

Who owns what: an array (memoryview, numpy, torch) holds a ctypes array, that holds a Lease,
that holds the reference to the library's weights. When the last array dies, the lease goes and
the memory is unmapped. Nothing points back, so no collector is needed for it.
"""

import ctypes
from collections.abc import Mapping

from . import _arguments as given
from . import _dlpack
from ._library import library, values
from ._wire import DTYPES
from .results import Block

_NUMPY = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16",
    "F16": "float16", "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64",
    "F64": "float64", "I64": "int64", "U64": "uint64",
}
_ML_DTYPES = {
    "BF16": "bfloat16", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_TORCH = {
    **_NUMPY, **_ML_DTYPES, "F4": "float4_e2m1fn_x2",
}
_QUANTISED = {name for name, _, group in DTYPES.values() if group > 1}


def _how_to_dequantise(dtype):
    return (f"its blocks are the bytes in .buffer, and gguf.quants.dequantize(numpy.frombuffer("
            f'tensor.buffer, "uint8").reshape(*tensor.shape[:-1], -1), '
            f"gguf.GGMLQuantizationType.{dtype}) makes numbers of them")


class Lease:
    """One reference to the library's weights, given back when nothing uses it any more. The
    library fills `pointer` in, so that not even Ctrl-C comes between."""

    __slots__ = ("pointer", "_unref", "__weakref__")

    def __init__(self):
        self.pointer = ctypes.c_void_p()
        self._unref = library().weights_unref

    def __del__(self):
        unref = getattr(self, "_unref", None)  # None: interrupted before there was one
        if unref is not None:
            unref(self.pointer)


class Tensor:
    """One tensor: `name`, `dtype`, `shape`, `nbytes`, `device`, `uuid`, `block`, `buffer`. `dtype`
    is the word of safetensors ("BF16") or of ggml ("Q4_K"); `shape` counts elements, as numpy does.
    `device` is where its bytes lie ("cpu", "cuda:0", "sim:0"), `uuid` that device's (None: cpu),
    `block` the number of its block."""

    __slots__ = ("name", "dtype", "shape", "nbytes", "device", "uuid", "block", "_address",
                 "_lease", "_index")

    def __init__(self, lease, index):
        found = library().weights_tensor(lease.pointer, index).contents
        self.name = found.name.decode()
        self.dtype = found.dtype.decode()
        self.shape = tuple(found.shape[: found.rank])
        self.nbytes = found.bytes
        self.device = found.device.decode() if found.device is not None else None
        self.uuid = found.uuid.decode() if found.uuid is not None else None
        self.block = found.block
        self._address = found.data
        self._lease = lease
        self._index = index

    def __repr__(self):
        where = "described only" if self.device is None else f"on {self.device}"
        return (f"<distorch.Tensor {self.name!r}, {self.dtype} {self.shape}, "
                f"{self.nbytes} bytes, {where}>")

    @property
    def buffer(self):
        """The bytes, writable for this process alone, as a memoryview of unsigned bytes."""
        if self._address is None:
            raise ValueError(f"{self.name} is described, but not mapped" if self.device is None
                             else f"{self.name} lies on {self.device}: this process cannot see it")
        array = (ctypes.c_ubyte * self.nbytes).from_address(self._address)
        array.lease = self._lease
        return memoryview(array).cast("B")

    def _torch_on_card(self, torch):
        dtype = getattr(torch, _TORCH.get(self.dtype, ""), None)
        found = torch.from_dlpack(self._exchange())
        if dtype is None or found.dtype == dtype:
            return found  # what torch has no word for: its bytes
        found = found.view(dtype)  # DLPack had none, and gave bytes
        return found if self.dtype == "F4" else found.reshape(self.shape)  # torch counts pairs

    def numpy(self):
        """The same memory as a numpy array. BF16 and F8 need ml_dtypes; numpy has nothing for
        less than 8 bits and quantised types: TypeError, which says what to do instead."""
        import numpy

        dtype = self._numpy_dtype(numpy)
        if self.nbytes == 0:
            return numpy.empty(self.shape, dtype)
        return numpy.frombuffer(self.buffer, dtype).reshape(self.shape)

    def _numpy_dtype(self, numpy):
        if self.dtype in _NUMPY:
            return numpy.dtype(_NUMPY[self.dtype])
        try:
            import ml_dtypes
        except ImportError:
            ml_dtypes = None
        kind = getattr(ml_dtypes, _ML_DTYPES.get(self.dtype, ""), None)
        if kind is not None:
            return numpy.dtype(kind)
        advice = "read the bytes in .buffer"
        if self.dtype in _QUANTISED:
            advice = _how_to_dequantise(self.dtype)
        if self.dtype in _TORCH:
            advice = "use .torch() or " + advice
        if self.dtype in _ML_DTYPES:  # its types of less than 8 bits are not packed as files are
            advice = f"{'update' if ml_dtypes else 'install'} ml_dtypes, {advice}"
        raise TypeError(f"numpy has no type for {self.dtype} ({self.name}); {advice}")

    def _exchange(self):
        """The memory as DLPack."""
        if self._address is not None or self.device is None or not self.device.startswith("cuda:"):
            _ = self.buffer  # says why not
            return _dlpack.Exchange(self._lease, self._address, self.shape, self.dtype,
                                    self.nbytes, (_dlpack.CPU, 0))
        if library().map_cuda(self._lease.pointer) < 0:
            from .client import last_error

            raise last_error(None)
        found = library().weights_tensor(self._lease.pointer, self._index).contents
        return _dlpack.Exchange(self._lease, found.device_data, self.shape, self.dtype,
                                self.nbytes, (_dlpack.CUDA, found.device_ordinal))

    def __dlpack__(self, **options):
        return self._exchange().__dlpack__(**options)

    def __dlpack_device__(self):
        return self._exchange().__dlpack_device__()

    def torch(self):
        """The same memory as a torch tensor: on the CPU, where writing to it is private, or on the
        card that it lies on, whose memory is shared: a write there ends this process's use of
        the card."""
        import torch

        if self.device is not None and self.device.startswith("cuda:"):
            return self._torch_on_card(torch)
        dtype = getattr(torch, _TORCH.get(self.dtype, ""), None)
        if dtype is None:
            advice = "read the bytes in .buffer"
            if self.dtype in _QUANTISED:
                advice = _how_to_dequantise(self.dtype)
            elif self.dtype in _TORCH:
                advice = "update torch or " + advice
            raise TypeError(f"this torch has no type for {self.dtype} ({self.name}); {advice}")
        shape = self.shape
        if self.dtype == "F4":  # torch counts pairs
            shape = shape[:-1] + (shape[-1] // 2,)
        with torch.inference_mode(False):  # else it could not be written to later
            if self.nbytes == 0:
                return torch.empty(shape, dtype=dtype)
            return torch.frombuffer(self.buffer, dtype=dtype).reshape(shape)


class Weights(Mapping):
    """The tensors of an attached model by name, in the file's order.

    Tensors are made when they are asked for. `close` (or the end of a `with` block) gives this
    object's hold on the memory up; arrays that were made keep theirs. `source` is where an open
    had them from: "disk", "ram" (they were resident) or "joined" (a running load); None: attached.
    """

    def __init__(self, lease, connection=None, source=None):
        self._lease = lease
        self._index = None
        self._connection = connection
        self._recall = None  # what on_recall has asked for
        self.source = source
        self.id = library().weights_model(lease.pointer).decode()
        self.generation = library().weights_generation(lease.pointer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        if self._lease is None:
            return f"<distorch.Weights {self.id[:8]}, closed>"
        return f"<distorch.Weights {self.id[:8]}, {len(self)} tensors, open>"

    def close(self):
        self._lease = None

    @property
    def lease(self):
        """The number of the lease, as an Event of it says; another one once the library has
        asserted it again after the daemon's end. 0: they only describe."""
        return library().weights_lease(self._pointer())

    def on_recall(self, callback):
        """Have `callback` called with an Event when somebody waits for what these weights hold:
        `why`, `for_whom`, and `deadline_ms`, in which whoever waits gets an answer. Let go by
        dropping arrays and closing the weights; nobody can be made to. It is called by a thread
        of the connection; what it raises goes to threading.excepthook. None takes it back, and so
        does the end of this object, whatever arrays of it are left. After a fork it is the
        parent's alone."""
        self._pointer()  # they are open
        if self._connection is None:
            raise ValueError("these weights only describe: nobody waits for them")
        self._recall = None if given.callback("callback", callback) is None else \
            self._connection._on_recall(self._lease, callback)

    def blocks(self):
        """The blocks of the model, in order, as Blocks."""
        pointer = self._pointer()
        found = [library().weights_block(pointer, i).contents
                 for i in range(library().weights_n_blocks(pointer))]
        return [Block(**{name: value for name, value in values(block).items() if name != "data"})
                for block in found]

    def _pointer(self):
        if self._lease is None:
            raise ValueError("these weights were closed")
        return self._lease.pointer

    def _names(self):
        """{name: number}, made at the first use of a name."""
        pointer = self._pointer()
        if self._index is None:
            size = ctypes.c_size_t()
            names = library().weights_names(pointer, ctypes.byref(size))
            text = ctypes.string_at(names, size.value).decode()
            self._index = {name: i for i, name in enumerate(text.split("\0")[:-1])}
        return self._index

    def keys(self):
        return self._names().keys()

    def __iter__(self):
        return iter(self._names())

    def __len__(self):
        return library().weights_n_tensors(self._pointer())

    def __contains__(self, name):
        return name in self._names()

    def __getitem__(self, name):
        index = self._names()[name]
        self._pointer()  # they are open
        return Tensor(self._lease, index)

    def state_dict(self, framework="torch"):
        """{name: array} of all tensors: "torch" or "numpy"."""
        if framework not in ("torch", "numpy"):
            raise ValueError(f'framework is "torch" or "numpy", not {framework!r}')
        return {tensor.name: getattr(tensor, framework)() for tensor in self.values()}

    def fd(self, shard=0):
        """A new read-only descriptor of the image, the file's bytes at the file's offsets; close
        it with os.close. "/proc/self/fd/N" is a path to it. Its offset and flags are its own; but
        where this process may not open the file itself, common to all who have one: use os.pread,
        and leave the flags alone. Tensors whose `device` is not "cpu" read as zeros there: where
        there are such, give it to no loader of files."""
        shard = given.whole("shard", shard, 0, 2**32 - 1)
        fd = library().weights_fd(self._pointer(), shard)
        if fd < 0:
            from .client import last_error

            raise last_error(None)
        return fd
