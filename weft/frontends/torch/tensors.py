"""CUDA tensors on host memory: a CPU tensor in, a CUDA tensor on the same memory out, and back.

Every CUDA tensor is an ordinary torch.Tensor whose storage says cuda:N and points at host memory. It is made through
DLPack: PyTorch exports the CPU tensor, the device in the exchanged structure is changed, PyTorch imports it; one
microsecond, and the storage keeps the CPU tensor alive by itself. The CPU tensor is the CUDA tensor's host twin: CPU
kernels compute on twins. A tensor keeps its twin in the attribute `_weft`, which is dropped where the tensor's storage
or shape changes in place. What a storage takes of the GPU's memory is held by the attribute `_weft` of the storage.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
from typing import Any

import torch
from torch import Tensor

from weft.frontends.torch.gpus import StreamState, current_stream, gpus
from weft.frontends.torch.helper import load_helper
from weft.frontends.torch.layout import DLPACK_CPU, storage_at, word_at

KEYS_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

export = torch._C._to_dlpack
take_in = torch._C._from_dlpack
# `.data` is a new TensorImpl of the same storage, in a third of a microsecond.
share = Tensor.data.__get__
_set_data = Tensor.data.__set__
_set_storage = torch.ops.aten.set_.source_Storage_storage_offset._handle.redispatch_boxed

cpu_device = torch.device("cpu")


# ---------------------------------------------------------------- host -> CUDA
def to_cuda(host: Tensor, index: int) -> Tensor:
    """A CUDA tensor on the memory of a CPU tensor, which becomes its twin. The memory is charged to the GPU.

    Raises torch.OutOfMemoryError.
    """
    if host.is_conj() or host.is_neg():
        return _other_to_cuda(host, index)
    try:
        capsule = export(host)
    except Exception:
        return _other_to_cuda(host, index)
    # A capsule's pointer follows the object's header; the device follows the first pointer behind it.
    word_at(word_at(id(capsule) + 16).value + 8).value = 2 | index << 32  # dlpack_cuda(index)
    tensor = take_in(capsule)
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if size:
        allocate = gpus[index].allocator.allocate
        storage._weft = allocate(size, current_stream(index)) if StreamState.used else allocate(size)
    tensor._weft = host
    return tensor


def _other_to_cuda(host: Tensor, index: int) -> Tensor:
    """to_cuda for what DLPack does not carry: conjugate and negative views, sparse layouts, quantised tensors."""
    if host.layout is not torch.strided or host.is_quantized or host.is_nested:
        from weft.frontends.torch.sparse import assemble_on_cuda

        return assemble_on_cuda(host, index)
    if host.requires_grad:
        return to_cuda(host.detach(), index)
    if host.is_conj():
        return torch._conj(to_cuda(torch._conj(host), index))
    assert host.is_neg(), (host.dtype, host.layout)
    return torch._neg_view(to_cuda(torch._neg_view(host), index))


# ---------------------------------------------------------------- CUDA -> host
def to_host(tensor: Tensor) -> Tensor:
    """The host twin of a CUDA tensor; a CPU tensor as it is."""
    try:
        return tensor._weft
    except AttributeError:
        return make_twin(tensor) if tensor.is_cuda else tensor


def make_twin(tensor: Tensor) -> Tensor:
    """A new host twin of a CUDA tensor."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        from weft.frontends.torch.sparse import assemble_on_host

        return assemble_on_host(tensor)
    # The exchanged structure holds the shared tensor, not this one, which would otherwise hold itself.
    shared = share(tensor)
    if shared.is_conj():
        twin = torch._conj(make_twin(torch._conj(shared)))
    elif shared.is_neg():
        twin = torch._neg_view(make_twin(torch._neg_view(shared)))
    else:
        capsule = export(shared)
        word_at(word_at(id(capsule) + 16).value + 8).value = DLPACK_CPU
        twin = take_in(capsule)
    tensor._weft = twin
    return twin


def to_host_anything(value: Any) -> Any:
    """The same value with host twins for the CUDA tensors in it, and the CPU for CUDA devices."""
    if isinstance(value, Tensor):
        return to_host(value)
    if type(value) in (list, tuple):
        return type(value)(to_host_anything(entry) for entry in value)
    if isinstance(value, torch.device) and value.type == "cuda":
        return cpu_device
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


def adopt_result(tensor: Tensor, host: Tensor) -> None:
    """Makes an out= tensor what a CPU kernel made of its twin, which had another size before."""
    made = to_cuda(host, tensor.get_device())
    set_storage(tensor, made.untyped_storage(), made.storage_offset(), made.shape, made.stride())
    tensor._weft = host


def settle_conjugate(tensor: Tensor, host: Tensor) -> None:
    """Writes out the conjugate that a CPU kernel only noted on the twin of an out= tensor."""
    if host.is_conj():
        values = host.resolve_conj()
        forget_twin(tensor)
        to_host(tensor).copy_(values)


def out_twin(tensor: Tensor) -> Tensor:
    """The twin of an out= argument; an empty one gets a twin that a CPU kernel can resize.

    Raises RuntimeError for a CPU tensor, which cannot take the result of CUDA tensors.
    """
    if not tensor.is_cuda:
        index = torch._C._accelerator_getDeviceIndex()
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:{index} and {tensor.device}!"
        )
    if tensor.numel() == 0:
        tensor._weft = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return to_host(tensor)


def resize_storage(storage: Any, size: int) -> None:
    """UntypedStorage.resize_ of a CUDA storage: its contents stay, and so does every tensor on it.

    A storage that shrinks keeps its address and gives its memory back, so that it can grow again in place, the way
    programs free and restore parameters. One that outgrows its memory moves.
    """
    index = storage.device.index
    fields = storage_at(storage._cdata)
    had = fields.size
    state = storage.__dict__
    room = max(state.get("_room", 0), had)
    release_block(storage)
    if size:
        storage._weft = gpus[index].allocator.allocate(size, current_stream(index))
    if size > room:
        _move_storage(storage, fields, size)
        room = size
    elif size < had:
        _give_back(fields.data + size, had - size)
    fields.size = size
    storage._room = room


def release_block(storage: Any) -> None:
    """Gives back what a CUDA storage takes of the GPU's memory, whoever made it."""
    storage._weft = None
    helper = load_helper()
    if helper is not None:
        helper.release_storage(storage._cdata)


def _move_storage(storage: Any, fields: Any, size: int) -> None:
    """Gives a storage new host memory with the old contents."""
    adopt_memory(storage, fields, torch.UntypedStorage(size))


def adopt_memory(storage: Any, fields: Any, new: Any) -> None:
    """Puts a storage's contents into the host memory of another one. The old memory dies with that one."""
    size = new.nbytes()
    helper = load_helper()
    if helper is not None and helper.release_storage(storage._cdata):
        # The block was the old memory's, and would die with it.
        index = storage.device.index
        storage._weft = gpus[index].allocator.allocate(fields.size, current_stream(index))
    other = storage_at(new._cdata)
    ctypes.memmove(other.data, fields.data, min(size, fields.size))
    for field in ("data", "deleter", "context"):
        mine, its = getattr(fields, field), getattr(other, field)
        setattr(fields, field, its)
        setattr(other, field, mine)
    # Twins point at the old memory.
    address = storage._cdata
    for found in gc.get_objects():
        if issubclass(type(found), Tensor) and found.__dict__.get("_weft") is not None and found.is_cuda:
            if found.untyped_storage()._cdata == address:
                forget_twin(found)


def _give_back(address: int, size: int) -> None:
    """Lets the host have the whole pages of a range that holds nothing any more."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_DONTNEED))


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
