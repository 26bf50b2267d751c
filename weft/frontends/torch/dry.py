"""CUDA tensors of a dry run: shapes in, tensors that have everything but data out.

Such a tensor is *unknown*: its storage has the size that it should have and an address at which there is no memory.
Operators on it run on meta tensors, which have shapes only. Small tensors that follow from what the host knows (token
numbers, lengths, masks, step counts) are *known*: they lie in host memory as in an ordinary run and operators compute
them, so that programs can look at them. What is written with unknown values becomes unknown, and so do all its views.

`take_over` puts these functions in the places of those of tensors.py, before anything else has taken them from there.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from weft.frontends.torch import tensors
from weft.frontends.torch.gpus import current_stream, gpus
from weft.frontends.torch.layout import storage_at
from weft.frontends.torch.tensors import KEYS_CPU, Tensor, share
from weft.runtime.memory import NO_DATA

_C = torch._C
_functions = _C._VariableFunctions
_make_storage = _C._construct_storage_from_data_pointer
_set_storage = torch.ops.aten.set_.source_Storage_storage_offset._handle.redispatch_boxed
meta_device = torch.device("meta")

# The largest tensors, in bytes, that are computed because their values may be asked for.
MOST_KNOWN_NUMBERS = 4 << 10  # of floating-point numbers
MOST_KNOWN_INTEGERS = 1 << 20


class ShapesOnly(threading.local):
    """active: whether known tensors count as unknown in this thread at the moment, since they meet unknown ones."""

    active = False


shapes_only = ShapesOnly()
_full_make_twin = tensors.make_twin
_full_to_cuda = tensors.to_cuda
_full_resize = tensors.resize_storage
_templates: dict[tuple[torch.dtype, int], Tensor] = {}


# ---------------------------------------------------------------- known and unknown
def is_unknown(tensor: Tensor) -> bool:
    """Whether a strided CUDA tensor has no data. One without elements always is known."""
    return tensor.data_ptr() >= NO_DATA


def may_be_known(dtype: torch.dtype, nbytes: int) -> bool:
    """Whether a tensor that could be computed shall be."""
    floating = dtype.is_floating_point or dtype.is_complex
    return nbytes <= (MOST_KNOWN_NUMBERS if floating else MOST_KNOWN_INTEGERS)


def extent(size: Any, stride: Any) -> int:
    """Elements from a tensor's first to its last in memory."""
    last = 1
    for length, step in zip(size, stride):
        if length == 0:
            return 0
        last += (length - 1) * step
    return last


def make_unknown(size: Any, stride: Any, dtype: torch.dtype, index: int) -> Tensor:
    """A CUDA tensor without data, charged to the GPU like any other."""
    template = _templates.get((dtype, index))
    if template is None:
        with tensors_uncounted(index):
            template = _templates[dtype, index] = _full_to_cuda(_functions.empty(0, dtype=dtype), index)
        tensors.forget_twin(template)
    nbytes = extent(size, stride) * dtype.itemsize
    tensor = share(template)
    if nbytes:
        allocation = gpus[index].allocator.allocate(nbytes, current_stream(index))
        storage = _make_storage(_address(allocation), template.device, nbytes)
        storage._weft = allocation
    else:
        storage = _make_storage(0, template.device, 0)
    _set_storage(KEYS_CPU, tensor, storage, 0, size, stride)
    return tensor


def tensors_uncounted(index: int) -> Any:
    from weft.frontends.torch.memory import uncounted

    return uncounted(gpus[index].allocator)


def _address(allocation: Any) -> int:
    return NO_DATA if allocation is None else NO_DATA + allocation.block.address


def forget_values(tensor: Tensor) -> None:
    """A known tensor becomes unknown, with every view of it."""
    address = tensor.data_ptr()
    if address and address < NO_DATA:
        storage = tensor.untyped_storage()
        fields = storage_at(storage._cdata)
        if fields.data:
            # The host memory belongs to the storage's deleter, which does not look at this pointer.
            fields.data = _address(storage.__dict__.get("_weft"))


# ---------------------------------------------------------------- in the places of tensors.py's functions
def to_cuda(host: Tensor, index: int) -> Tensor:
    """A CUDA tensor for the result of an operator: on the memory of a small CPU tensor, without data for others."""
    if host.layout is not torch.strided or host.is_quantized:
        return _full_to_cuda(host, index)
    if host.requires_grad:
        host = host.detach()
    if host.is_conj():
        return torch._conj(to_cuda(torch._conj(host), index))
    if host.is_neg():
        return torch._neg_view(to_cuda(torch._neg_view(host), index))
    size, stride = host.shape, host.stride()
    if host.is_meta or not may_be_known(host.dtype, extent(size, stride) * host.element_size()):
        return make_unknown(size, stride, host.dtype, index)
    tensor = _full_to_cuda(host, index)
    tensors.forget_twin(tensor)
    return tensor


def make_twin(tensor: Tensor) -> Tensor:
    """The host twin of a CUDA tensor: on its memory where it is known, else a meta tensor. Twins are not kept."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        twin = _full_make_twin(tensor)
    elif shapes_only.active or is_unknown(tensor):
        return _make_meta(tensor)
    else:
        twin = _full_make_twin(tensor)
    tensors.forget_twin(tensor)
    return twin


def _make_meta(tensor: Tensor) -> Tensor:
    made = _functions.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=meta_device)
    if tensor.is_conj():
        made = torch._conj(made)
    if tensor.is_neg():
        made = torch._neg_view(made)
    return made


def to_host(tensor: Tensor) -> Tensor:
    """The twin of a CUDA tensor; a CPU tensor as it is, or its shape where it meets unknown ones."""
    if tensor.is_cuda:
        return make_twin(tensor)
    if shapes_only.active and tensor.device.type == "cpu":
        return tensor.to(meta_device)
    return tensor


def out_twin(tensor: Tensor) -> Tensor:
    """The twin of an out= argument, which the operator may resize."""
    if tensor.numel() == 0:
        device = meta_device if shapes_only.active else tensors.cpu_device
        return _functions.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return make_twin(tensor)


def adopt_result(tensor: Tensor, host: Tensor) -> None:
    """Makes an out= tensor what an operator made of its twin, which had another size before."""
    made = to_cuda(host, tensor.get_device())
    tensors.set_storage(tensor, made.untyped_storage(), made.storage_offset(), made.shape, made.stride())


def resize_storage(storage: Any, size: int) -> None:
    """UntypedStorage.resize_: no data moves; a storage that outgrows what may be known becomes unknown."""
    fields = storage_at(storage._cdata)
    if fields.data < NO_DATA and size <= max(fields.size, MOST_KNOWN_NUMBERS):
        _full_resize(storage, size)
        return
    index = storage.device.index
    storage._weft = None
    if size:
        storage._weft = gpus[index].allocator.allocate(size, current_stream(index))
    fields.data = _address(storage._weft)
    fields.size = size


def take_over() -> None:
    """Makes tensors.py's functions those of a dry run."""
    for name, function in {
        "to_cuda": to_cuda, "to_host": to_host, "make_twin": make_twin, "out_twin": out_twin,
        "adopt_result": adopt_result, "resize_storage": resize_storage,
    }.items():  # fmt: skip
        setattr(tensors, name, function)
