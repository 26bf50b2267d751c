"""Making, copying and reshaping memory: empty, copy_, item, resize_, set_ and views.

What enters are CUDA tensors; views and set_ change sizes only, so the CPU's kernels do them on the CUDA tensor itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.devicecheck import factory_device
from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.layout import storage_at
from weft.frontends.torch.memory import HOST_CHECK
from weft.frontends.torch.recording import record
from weft.frontends.torch.retry import refuse_memory
from weft.frontends.torch.tensors import (
    KEYS_CPU,
    Tensor,
    device_code,
    follow_twin,
    recharge,
    set_storage,
    share,
    to_cuda,
    to_host,
)

_empty = torch.ops.aten.empty.memory_format._op
_empty_strided = torch.ops.aten.empty_strided.default._op
_copy = torch._C.TensorBase.copy_


def _refuse_pinned(pin_memory: bool | None) -> None:
    if pin_memory:
        raise RuntimeError("Only dense CPU tensors can be pinned")


def empty(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: bool | None = None,
          memory_format: Any = None) -> Tensor:  # fmt: skip
    """aten::empty.memory_format. Raises torch.OutOfMemoryError before any host memory is taken."""
    _refuse_pinned(pin_memory)
    index = factory_device(device, ())
    dtype = dtype or torch.get_default_dtype()
    count = dtype.itemsize
    for length in size:
        count *= length
    if count >= HOST_CHECK:
        gpus[index].allocator.check_room(count)
    with torch._C.DisableTorchFunction():
        try:
            host = _empty(size, dtype=dtype, memory_format=memory_format)
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            refuse_memory(count, index, error)
    return to_cuda(host, index)


def empty_strided(size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
                  pin_memory: bool | None = None) -> Tensor:  # fmt: skip
    """aten::empty_strided, as `empty`."""
    _refuse_pinned(pin_memory)
    index = factory_device(device, ())
    dtype = dtype or torch.get_default_dtype()
    last = 1
    for length, step in zip(size, stride):
        last = 0 if length == 0 else last + (length - 1) * step
    if last * dtype.itemsize >= HOST_CHECK:
        gpus[index].allocator.check_room(last * dtype.itemsize)
    with torch._C.DisableTorchFunction():
        try:
            host = _empty_strided(size, stride, dtype=dtype)
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            refuse_memory(last * dtype.itemsize, index, error)
    return to_cuda(host, index)


def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """aten::copy_ between devices, and between host and device."""
    with torch._C.DisableTorchFunction():
        _copy(to_host(target), to_host(source))
    device = target.get_device() if target.is_cuda else source.get_device()
    record("copy_", (target, source, non_blocking), {}, target, device)
    return target


def local_scalar_dense(tensor: Tensor) -> Any:
    """What .item() asks for; on a GPU the host waits for it."""
    record("_local_scalar_dense", (tensor,), {}, None, tensor.get_device())
    with torch._C.DisableTorchFunction():
        return to_host(tensor).item()


# ---------------------------------------------------------------- changes in place
def as_strided_(tensor: Tensor, size: Any, stride: Any, storage_offset: int | None = None) -> Tensor:
    offset = tensor.storage_offset() if storage_offset is None else storage_offset
    set_storage(tensor, tensor.untyped_storage(), offset, size, stride)
    return tensor


def set_source_storage(tensor: Tensor, storage: Any) -> Tensor:
    count = storage.nbytes() // tensor.element_size()
    set_storage(tensor, storage, 0, [count], [1])
    return tensor


def set_source_storage_offset(tensor: Tensor, storage: Any, offset: int, size: Any, stride: Any = ()) -> Tensor:
    if not len(stride):
        steps, step = [], 1
        for length in reversed(size):
            steps.append(step)
            step *= max(length, 1)
        stride = steps[::-1]
    set_storage(tensor, storage, offset, size, stride)
    _grow(tensor)
    return tensor


def set_source_tensor(tensor: Tensor, source: Tensor) -> Tensor:
    if source.device != tensor.device:
        raise RuntimeError(
            f'Attempted to set the storage of a tensor on device "{tensor.device}" to a storage on different device '
            f'"{source.device}".  This is no longer allowed; the devices must match.'
        )
    set_storage(tensor, source.untyped_storage(), source.storage_offset(), source.shape, source.stride())
    return tensor


def set_nothing(tensor: Tensor) -> Tensor:
    empty_storage = torch.empty(0, dtype=tensor.dtype, device=tensor.device).untyped_storage()
    set_storage(tensor, empty_storage, 0, [0], [1])
    return tensor


def _grow(tensor: Tensor) -> None:
    """After set_ or resize_: a storage that the CPU's kernel made larger has new memory."""
    storage = tensor.untyped_storage()
    index = tensor.get_device()
    if storage_at(storage._cdata).device != device_code(index):
        recharge(storage, index)


def resize_(tensor: Tensor, size: Any, *, memory_format: Any = None) -> Tensor:
    twin = to_host(tensor)
    with torch._C.DisableTorchFunction():
        twin.resize_(size, memory_format=memory_format or torch.contiguous_format)
    follow_twin(tensor, twin)
    return tensor


def efficient_zero_tensor(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
                          pin_memory: bool | None = None) -> Tensor:  # fmt: skip
    index = factory_device(device, ())
    with torch._C.DisableTorchFunction():
        host = torch._efficientzerotensor(size, dtype=dtype, device="cpu")
    tensor = share(host)
    from weft.frontends.torch.layout import tensor_at
    from weft.frontends.torch.tensors import KEYS_CHANGE

    fields = tensor_at(tensor._cdata)
    fields.keys ^= KEYS_CHANGE
    fields.device = device_code(index)
    return tensor


KERNELS: dict[str, Callable[..., Any]] = {
    "empty.memory_format": empty,
    "empty_strided": empty_strided,
    "copy_": copy_,
    "_local_scalar_dense": local_scalar_dense,
    "as_strided_": as_strided_,
    "set_.source_Storage": set_source_storage,
    "set_.source_Storage_storage_offset": set_source_storage_offset,
    "set_.source_Tensor": set_source_tensor,
    "set_": set_nothing,
    "resize_": resize_,
    "_efficientzerotensor": efficient_zero_tensor,
}

# Operators whose CPU kernel looks at sizes and strides only and is run on the CUDA tensor itself.
VIEWS = (
    "alias", "as_strided", "view", "view.dtype", "_reshape_alias", "unfold", "view_as_real", "view_as_complex", "_conj",
    "_neg_view", "_conj_physical", "detach", "slice.Tensor", "select.int",
)  # fmt: skip


def make_view_kernel(operator: Any) -> Callable[..., Any]:
    """The kernel of a view operator."""
    redispatch = operator._handle.redispatch_boxed

    def view_kernel(*args: Any, **kwargs: Any) -> Any:
        return redispatch(KEYS_CPU, *args, **kwargs)

    return view_kernel
