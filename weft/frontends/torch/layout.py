"""Where PyTorch's C++ objects keep the few fields that cannot be reached from Python: addresses in, overlays out.

The offsets belong to the 64-bit builds of the versions in versions.py; `check_layout` reads every field against live
objects before anything is written.

Sources: c10/core/StorageImpl.h and GeneratorImpl.h of PyTorch 2.13, ATen/dlpack.h (DLPack 1.x), Include/cpython of
Python 3.11 to 3.13 (a capsule's pointer follows the object's header).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from weft.errors import UnsupportedError
from weft.frontends.torch.versions import RANGE

CPU, CUDA = 0, 1  # c10::DeviceType
NO_INDEX = 0xFF00  # a c10::Device's index -1, the way the CPU has it
DLPACK_CPU = 1  # DLDevice: its type, and the index in the upper half

word_at = ctypes.c_uint64.from_address


class StorageFields(ctypes.Structure):
    """A StorageImpl. data: the address; context: what its deleter gets; size in bytes; allocator: which one made it."""

    _fields_ = (
        ("_before", ctypes.c_char * 16),
        ("data", ctypes.c_uint64),
        ("deleter", ctypes.c_uint64),
        ("context", ctypes.c_uint64),
        ("device", ctypes.c_uint16),
        ("_between", ctypes.c_char * 6),
        ("size", ctypes.c_uint64),
        ("_flags", ctypes.c_char * 16),
        ("allocator", ctypes.c_uint64),
    )


class GeneratorFields(ctypes.Structure):
    """A GeneratorImpl, after its mutex."""

    _fields_ = (
        ("_before", ctypes.c_char * 56),
        ("device", ctypes.c_uint16),
        ("_between", ctypes.c_char * 6),
        ("keys", ctypes.c_uint64),
    )


storage_at = StorageFields.from_address
generator_at = GeneratorFields.from_address


def device_code(index: int) -> int:
    """The c10::Device of cuda:index."""
    return CUDA | index << 8


def dlpack_cuda(index: int) -> int:
    """The DLDevice of cuda:index."""
    return 2 | index << 32


def check_layout(torch: Any) -> None:
    """Reads every field that is used from live objects. Raises UnsupportedError where one holds something else."""
    problems = []
    tensor = torch.empty(7)
    capsule = torch._C._to_dlpack(tensor)
    if object.__basicsize__ != 16 or sys.maxsize >> 32 == 0:
        problems.append("capsules (of this Python)")
    elif word_at(word_at(id(capsule) + 16).value).value != tensor.data_ptr():
        problems.append("DLPack capsules")
    elif word_at(word_at(id(capsule) + 16).value + 8).value != DLPACK_CPU:
        problems.append("DLPack devices")
    storage = tensor.untyped_storage()
    memory = storage_at(storage._cdata)
    if (memory.data, memory.size, memory.device) != (storage.data_ptr(), storage.nbytes(), CPU | NO_INDEX):
        problems.append("storages")
    other = storage_at(torch.empty(3).untyped_storage()._cdata)
    if not memory.allocator or memory.allocator != other.allocator:
        problems.append("allocators")
    generator = generator_at(torch._C.Generator()._cdata)
    if (generator.device, generator.keys) != (
        CPU | NO_INDEX,
        torch._C.DispatchKeySet(torch._C.DispatchKey.CPU).raw_repr(),
    ):
        problems.append("generators")
    if problems:
        raise UnsupportedError(
            f"this build of PyTorch {torch.__version__} lays out its {', '.join(problems)} in a way that Weft does not "
            f"know; virtual GPUs need the CPU build of {RANGE} from PyPI or download.pytorch.org"
        )
