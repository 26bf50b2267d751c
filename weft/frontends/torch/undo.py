"""What a capture of a CUDA graph writes, put back: operators in, the memory as it was before them out.

A file of its own, since torch.cuda's bindings (graphs.py) must load before the rest of torch is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weft.frontends.torch.graphs import flat_tensors
from weft.frontends.torch.tensors import to_host


class Undo(TorchDispatchMode):
    """Puts back what a capture writes into memory that is older than it: on a GPU nothing runs while it is captured.

    is_older: whether a CUDA tensor's memory was there before the capture.
    """

    def __init__(self, is_older: Callable[[Any], bool]):
        super().__init__()
        self._is_older = is_older
        self._kept: dict[int, tuple[Any, Any]] = {}  # address of a storage -> (all of it as bytes, a copy)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(value)
        for argument in func._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(kwargs[argument.name])
        return func(*args, **kwargs)

    def keep(self, value: Any) -> None:
        """Copies the memory of the CUDA tensors in `value`, once for each."""
        for tensor in flat_tensors(value):
            if not tensor.is_cuda or tensor.layout is not torch.strided or not tensor.numel():
                continue
            storage = to_host(tensor).untyped_storage()
            address = storage.data_ptr()
            if address not in self._kept and self._is_older(tensor):
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self._kept[address] = (whole, whole.clone())

    def restore(self) -> None:
        """Brings the memory back, after the capture."""
        for whole, before in self._kept.values():
            whole.copy_(before)
        self._kept = {}
