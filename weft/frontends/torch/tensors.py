"""CUDA tensors on host memory: a CPU tensor in, a CUDA tensor of the same storage out, and back.

Every CUDA tensor is an ordinary torch.Tensor whose TensorImpl names the device (layout.py). Its host twin is a CPU
tensor of the same storage, sizes and strides: CPU kernels compute on twins. The twin is kept in the tensor's attribute
`_weft` and dropped where the tensor's storage or shape changes in place. What the storage takes of the GPU's memory is
held by the attribute `_weft` of the storage.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.frontends.torch.gpus import current_stream, gpus
from weft.frontends.torch.layout import CPU, NO_INDEX, device_code, keys_of, storage_at, tensor_at

Tensor = torch.Tensor
HOST_CODE = CPU | NO_INDEX
KEYS_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
# What differs between the dispatch keys of a host twin and its CUDA tensor.
KEYS_CHANGE = keys_of(torch, "CPU") ^ keys_of(torch, "CUDA")

# `.data` is a new TensorImpl of the same storage with a version counter of its own, in a third of a microsecond.
share = Tensor.data.__get__
_set_data = Tensor.data.__set__
_set_storage = torch.ops.aten.set_.source_Storage_storage_offset._handle.redispatch_boxed

torch_device_cpu = torch.device("cpu")


# ---------------------------------------------------------------- host -> CUDA
def to_cuda(host: Tensor, index: int) -> Tensor:
    """A CUDA tensor on the memory of a CPU tensor, which becomes its twin. New memory is charged to the GPU.

    Raises torch.OutOfMemoryError.
    """
    if host.layout is not torch.strided:
        return sparse_to_cuda(host, index)
    code = device_code(index)
    storage = host.untyped_storage()
    if storage_at(storage._cdata).device != code:
        charge(storage, index)
    tensor = share(host)
    fields = tensor_at(tensor._cdata)
    fields.keys ^= KEYS_CHANGE
    fields.device = code
    tensor._weft = host
    return tensor


def charge(storage: Any, index: int) -> None:
    """Makes a host storage one of the GPU's, and its size count as allocated there."""
    fields = storage_at(storage._cdata)
    if fields.size:
        storage._weft = gpus[index].allocator.allocate(fields.size, current_stream(index))
    fields.device = device_code(index)


def recharge(storage: Any, index: int) -> None:
    """After a CUDA storage's memory was replaced (by resize_): the GPU's block follows."""
    storage._weft = None
    charge(storage, index)


def sparse_to_cuda(host: Tensor, index: int) -> Tensor:
    """to_cuda for the sparse layouts."""
    from weft.frontends.torch.sparse import assemble_on_cuda

    return assemble_on_cuda(host, index)


# ---------------------------------------------------------------- CUDA -> host
def to_host(tensor: Tensor) -> Tensor:
    """The host twin of a CUDA tensor; a CPU tensor as it is."""
    try:
        return tensor._weft
    except AttributeError:
        return make_twin(tensor) if tensor.is_cuda else tensor


def make_twin(tensor: Tensor) -> Tensor:
    """A new host twin of a CUDA tensor."""
    if tensor.layout is not torch.strided:
        from weft.frontends.torch.sparse import assemble_on_host

        return assemble_on_host(tensor)
    twin = share(tensor)
    fields = tensor_at(twin._cdata)
    fields.keys ^= KEYS_CHANGE
    fields.device = HOST_CODE
    tensor._weft = twin
    return twin


def to_host_anything(value: Any) -> Any:
    """The same value with host twins for the CUDA tensors in it, and the CPU for CUDA devices."""
    if isinstance(value, Tensor):
        return to_host(value)
    if type(value) in (list, tuple):
        return type(value)(to_host_anything(entry) for entry in value)
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch_device_cpu
    return value


def to_cuda_anything(value: Any, index: int) -> Any:
    """The same value with CUDA tensors for the CPU tensors in it."""
    if isinstance(value, Tensor):
        return to_cuda(value, index)
    if isinstance(value, (list, tuple)):
        return tuple(to_cuda_anything(entry, index) for entry in value)
    return value


# ---------------------------------------------------------------- changes in place
def forget_twin(tensor: Tensor) -> None:
    """After this the tensor's storage, shape or strides may change."""
    tensor.__dict__.pop("_weft", None)


def set_storage(tensor: Tensor, storage: Any, offset: int, size: Any, stride: Any) -> None:
    """Tensor.set_ on the CUDA tensor itself, by the CPU's kernel, which looks at sizes only."""
    forget_twin(tensor)
    _set_storage(KEYS_CPU, tensor, storage, offset, size, stride)


def follow_twin(tensor: Tensor, twin: Tensor) -> None:
    """Gives a CUDA tensor the sizes and memory that its twin got when a CPU kernel resized it."""
    index = tensor.get_device()
    storage = twin.untyped_storage()
    if storage_at(storage._cdata).device != device_code(index):
        recharge(storage, index)
    _set_storage(KEYS_CPU, tensor, storage, twin.storage_offset(), twin.shape, twin.stride())
    tensor._weft = twin


def _set_data_and_forget(tensor: Tensor, value: Tensor) -> None:
    forget_twin(tensor)
    _set_data(tensor, value)


def _without_twin(method: Any) -> Any:
    """A method of Tensor that copies the attributes, without the twin among them."""

    def copy_without_twin(self: Tensor, *args: Any) -> Any:
        if "_weft" in self.__dict__:
            del self._weft
        return method(self, *args)

    copy_without_twin.__name__, copy_without_twin.__qualname__ = method.__name__, method.__qualname__
    copy_without_twin.__doc__ = method.__doc__
    return copy_without_twin


def guard_twins() -> None:
    """Makes what changes or copies a tensor behind the dispatcher's back drop the twin first."""
    Tensor.data = property(share, _set_data_and_forget, doc=Tensor.data.__doc__)
    for owner in (Tensor, torch.nn.Parameter):
        for name in ("__deepcopy__", "__reduce_ex__"):
            if name in owner.__dict__:
                setattr(owner, name, _without_twin(owner.__dict__[name]))


# ---------------------------------------------------------------- devices of arguments
def find_devices(values: Any) -> list[int]:
    """The device indices of the CUDA tensors in arguments, in order, each once."""
    found: list[int] = []
    for value in values:
        if isinstance(value, Tensor):
            if value.is_cuda and value.get_device() not in found:
                found.append(value.get_device())
        elif type(value) in (list, tuple):
            found.extend(index for index in find_devices(value) if index not in found)
    return found
