"""Untyped storages of virtual GPUs: what torch.UntypedStorage does in C++ only where it was built for CUDA."""

from __future__ import annotations

from typing import Any

import torch

from weft.frontends.torch.hooks import HooksState
from weft.frontends.torch.layout import storage_at
from weft.frontends.torch.sharing import share_storages
from weft.frontends.torch.tensors import resize_storage

_Storage = torch.UntypedStorage
_new = _Storage.__new__
_resize = _Storage.resize_
_deserialise_priority = 5


def new_storage(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.UntypedStorage(size or sequence, device="cuda")."""
    device = kwargs.get("device")
    if device is None or torch.device(device).type != "cuda":
        return _new(cls, *args, **kwargs)
    first = args[0] if args else kwargs.get("size", 0)
    if isinstance(first, int):
        return torch.empty(first, dtype=torch.uint8, device=device).untyped_storage()
    return torch.tensor(list(first), dtype=torch.uint8, device=device).untyped_storage()


def resize_(self: Any, size: int) -> Any:
    """UntypedStorage.resize_(bytes)."""
    if self.device.type == "cuda":
        resize_storage(self, size)
        return self
    return _resize(self, size)


def is_pinned(tensor: Any, device: Any = None) -> bool:
    """aten::is_pinned of a CPU tensor: whether the allocator of pinned memory made its storage."""
    if tensor.layout is not torch.strided:
        return False
    allocator = storage_at(tensor.untyped_storage()._cdata).allocator
    return bool(allocator) and allocator == HooksState.pinned_allocator


def patch_storages(libraries: list[Any]) -> None:
    """Puts the functions in place; registrations live in `libraries`."""
    _Storage.__new__ = new_storage
    _Storage.resize_ = resize_
    share_storages()
    library = torch._C._dispatch_library("IMPL", "aten", "CPU", "", 0)
    library.impl("is_pinned", "CPU", is_pinned, False)
    libraries.append(library)
