"""Memory that PyTorch and other owners share: CUDA tensors in, addresses for Weft's kernels out, and arrays of Weft's
devices as CUDA tensors.

Both sides lie in the same host memory, so nothing is copied. Kernels reach a tensor's whole storage once they were
given it (weft.frontends.triton.tensors), as Triton's do.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.errors import InvalidDevicePointerError
from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.hooks import HooksState
from weft.frontends.torch.memory import uncounted
from weft.frontends.torch.tensors import to_cuda
from weft.frontends.triton.tensors import ranges_of
from weft.runtime.arguments import address_sources
from weft.runtime.array import Array

_from_dlpack = torch.from_dlpack


def address_of_tensor(device: Any, value: Any) -> int | None:
    """The address of a CUDA tensor for the kernels of a weft Device; None for other objects.

    Raises InvalidDevicePointerError for a tensor of another device.
    """
    if not isinstance(value, torch.Tensor) or not value.is_cuda:
        return None
    index = value.get_device()
    if gpus[index].device is not device:
        raise InvalidDevicePointerError(
            f"invalid device pointer: the tensor is on cuda:{index}, the kernel was loaded on another device: load it "
            f"on weft.virtual_device({index}), or move the tensor"
        )
    return ranges_of(device).address_of(value)


def device_of_pointer(address: int) -> int:
    """The index of the GPU whose memory holds an address; the current one for memory that is no array of Weft's."""
    for gpu in gpus:
        if gpu.device.arena.contains(address):
            return gpu.index
    return torch._C._accelerator_getDeviceIndex()


def from_dlpack(ext_tensor: Any, *, device: Any = None, copy: bool | None = None) -> Any:
    """torch.from_dlpack: arrays of this process's virtual GPUs become CUDA tensors on their memory."""
    if not isinstance(ext_tensor, Array):
        options = {name: value for name, value in (("device", device), ("copy", copy)) if value is not None}
        return _from_dlpack(ext_tensor, **options)
    gpu = next((gpu for gpu in gpus if gpu.device is ext_tensor.device), None)
    if gpu is None:
        made = _from_dlpack(ext_tensor)
    else:
        with uncounted(gpu.allocator):  # Weft's own arrays count by themselves
            made = to_cuda(_from_dlpack(ext_tensor), gpu.index)
    if device is not None:
        made = made.to(device)
    return made.clone() if copy else made


def connect_memory() -> None:
    """Lets kernels take tensors, and PyTorch take arrays."""
    HooksState.device_of_pointer = staticmethod(device_of_pointer)
    if address_of_tensor not in address_sources:
        address_sources.append(address_of_tensor)
    torch.from_dlpack = from_dlpack
    torch.utils.dlpack.from_dlpack = from_dlpack
