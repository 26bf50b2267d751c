"""Where PyTorch's C++ objects keep the few fields that make a tensor a CUDA tensor: addresses in, overlays out.

A CUDA tensor here is an ordinary torch.Tensor on host memory whose TensorImpl says so in two fields: the device and the
set of dispatch keys. Storages and generators have a device field too. The offsets belong to the x86-64 and AArch64
builds of the versions in versions.py; `check_layout` reads them against live objects before anything is written.

Sources: c10/core/TensorImpl.h, StorageImpl.h, GeneratorImpl.h, Device.h of PyTorch 2.13.
"""

from __future__ import annotations

import ctypes
from typing import Any

from weft.errors import UnsupportedError
from weft.frontends.torch.versions import RANGE

CPU, CUDA, META = 0, 1, 14  # c10::DeviceType
NO_INDEX = 0xFF00  # a Device's index -1, the way the CPU has it


class TensorFields(ctypes.Structure):
    """A TensorImpl. device: c10::Device as type + 256 * index; keys: the DispatchKeySet."""

    _fields_ = (
        ("_before", ctypes.c_char * 162),
        ("device", ctypes.c_uint16),
        ("_between", ctypes.c_char * 4),
        ("keys", ctypes.c_uint64),
    )


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


tensor_at = TensorFields.from_address
storage_at = StorageFields.from_address
generator_at = GeneratorFields.from_address


def device_code(index: int) -> int:
    """The c10::Device of cuda:index as TensorFields has it."""
    return CUDA | index << 8


def keys_of(torch: Any, device: str) -> int:
    """The dispatch keys of an ordinary dense tensor on a device type, as TensorFields has them."""
    keys = torch._C.DispatchKey
    found = torch._C.DispatchKeySet(getattr(keys, device))
    for name in (f"Autograd{device}", "ADInplaceOrView", f"Autocast{device}"):
        if hasattr(keys, name):
            found = found | torch._C.DispatchKeySet(getattr(keys, name))
    return found.raw_repr()


def check_layout(torch: Any) -> None:
    """Reads every field that is used from live objects. Raises UnsupportedError where one holds something else."""
    problems = []
    tensor = torch.empty(7)
    fields = tensor_at(tensor._cdata)
    raw = torch._C._dispatch_keys(tensor).raw_repr()
    meta = tensor_at(torch.empty(7, device="meta")._cdata)
    if (fields.device, fields.keys, meta.device) != (CPU | NO_INDEX, raw, META | NO_INDEX):
        problems.append("tensors")
    if tensor.device.type != "cpu" or keys_of(torch, "CPU") != raw:
        problems.append("dispatch keys")
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
