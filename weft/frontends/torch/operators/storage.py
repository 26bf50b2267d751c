"""Making, copying and reshaping memory: empty, copy_, item, resize_, set_ and views.

What enters are CUDA tensors; views and set_ change sizes only, so the CPU's kernels do them on the CUDA tensor itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.bindings import BindingState, warn_of_synchronising
from weft.frontends.torch.devicecheck import factory_device, without_modes
from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.graphs import refuse_while_capturing
from weft.frontends.torch.memory import HOST_CHECK
from weft.frontends.torch.recording import record
from weft.frontends.torch.retry import refuse_memory
from weft.frontends.torch.tensors import KEYS_CPU, Tensor, resize_storage, set_storage, to_cuda, to_host

_empty = torch._C._VariableFunctions.empty
_empty_strided = torch._C._VariableFunctions.empty_strided
_depth = torch._C._len_torch_function_stack
_copy = torch._C.TensorBase.copy_
_zero_tensor = torch.ops.aten._efficientzerotensor.default._handle.redispatch_boxed
_KEYS_ZERO = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)


def empty(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: bool | None = None,
          memory_format: Any = None) -> Tensor:  # fmt: skip
    """aten::empty.memory_format. Raises torch.OutOfMemoryError before any host memory is taken."""
    if pin_memory:
        raise RuntimeError("Only dense CPU tensors can be pinned")
    index = factory_device(device, ())
    if dtype is None:
        dtype = torch.get_default_dtype()
    count = dtype.itemsize
    for length in size:
        count *= length
    if count >= HOST_CHECK:
        gpus[index].allocator.check_room(count)
    try:
        if memory_format is None and not _depth():
            host = _empty(size, dtype=dtype)
        else:
            options = {"dtype": dtype} if memory_format is None else {"dtype": dtype, "memory_format": memory_format}
            host = without_modes(_empty, (size,), options)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        refuse_memory(count, index, error)
    return to_cuda(host, index)


def empty_strided(size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
                  pin_memory: bool | None = None) -> Tensor:  # fmt: skip
    """aten::empty_strided, as `empty`."""
    if pin_memory:
        raise RuntimeError("Only dense CPU tensors can be pinned")
    index = factory_device(device, ())
    if dtype is None:
        dtype = torch.get_default_dtype()
    count = extent(size, stride) * dtype.itemsize
    if count >= HOST_CHECK:
        gpus[index].allocator.check_room(count)
    options = {"dtype": dtype}
    try:
        host = without_modes(_empty_strided, (size, stride), options) if _depth() else _empty_strided(
            size, stride, dtype=dtype
        )  # fmt: skip
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        refuse_memory(count, index, error)
    return to_cuda(host, index)


def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """aten::copy_ between devices, and between host and device."""
    if _depth():
        without_modes(_copy, (to_host(target), to_host(source)), {})
    else:
        _copy(to_host(target), to_host(source))
    if target.is_cuda:
        device = target.get_device()
    else:
        device = source.get_device()
        if not non_blocking:
            refuse_while_capturing()
            if BindingState.sync_debug_mode:
                warn_of_synchronising()
    record("copy_", (target, source, non_blocking), {}, target, device)
    return target


def local_scalar_dense(tensor: Tensor) -> Any:
    """What .item() asks for; on a GPU the host waits for it."""
    refuse_while_capturing()
    if BindingState.sync_debug_mode:
        warn_of_synchronising()
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
        stride = contiguous_strides(size)
    needed = extent(size, stride, offset) * tensor.element_size()
    if needed > storage.nbytes():
        resize_storage(storage, needed)
    set_storage(tensor, storage, offset, size, stride)
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


def extent(size: Any, stride: Any, offset: int = 0) -> int:
    """Elements that a storage must have for a tensor."""
    last = offset + 1
    for length, step in zip(size, stride):
        if length == 0:
            return 0
        last += (length - 1) * step
    return last


def contiguous_strides(size: Any) -> list[int]:
    steps, step = [], 1
    for length in reversed(size):
        steps.append(step)
        step *= max(length, 1)
    return steps[::-1]


def resize_(tensor: Tensor, size: Any, *, memory_format: Any = None) -> Tensor:
    """aten::resize_: the storage grows where it is too small, and never shrinks."""
    size = [int(length) for length in size]
    if memory_format in (None, torch.contiguous_format):
        if size == list(tensor.shape):
            return tensor
        stride: Any = contiguous_strides(size)
    else:
        stride = torch.empty(size, device="meta", memory_format=memory_format).stride()
    storage = tensor.untyped_storage()
    offset = tensor.storage_offset()
    needed = extent(size, stride, offset) * tensor.element_size()
    if needed > storage.nbytes():
        resize_storage(storage, needed)
    set_storage(tensor, storage, offset, size, stride)
    return tensor


def efficient_zero_tensor(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
                          pin_memory: bool | None = None) -> Tensor:  # fmt: skip
    index = factory_device(device, ())
    return _zero_tensor(_KEYS_ZERO, size, dtype=dtype, device=torch.device("cuda", index))


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
    "_nested_view_from_buffer",
)  # fmt: skip


def make_view_kernel(operator: Any) -> Callable[..., Any]:
    """The kernel of a view operator."""
    redispatch = operator._handle.redispatch_boxed

    def view_kernel(*args: Any, **kwargs: Any) -> Any:
        return redispatch(KEYS_CPU, *args, **kwargs)

    return view_kernel
