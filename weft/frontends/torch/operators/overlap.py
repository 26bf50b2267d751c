"""Memory that an out= tensor shares with another argument: the tensors of a call in, PyTorch's error or nothing out.

The CPU's kernels cannot see it, since host twins have storages of their own. Source: at::assert_no_partial_overlap and
at::assert_no_internal_overlap (ATen/MemoryOverlap.cpp): what is not dense is not looked at, and equal tensors are fine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def _extent(tensor: Tensor) -> int:
    """Elements between a tensor's first and its last, both counted; of no meaning for empty tensors."""
    return 1 + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride()))


# These do not take an argument as their out= tensor at all.
WHOLE = frozenset(("cat", "gather", "take", "index_select", "scatter", "scatter_add", "scatter_reduce"))


def refuse_overlap(out: Tensor, others: Iterable[Any], whole: bool = False) -> None:
    """Raises RuntimeError, in PyTorch's words, where `out` overlaps itself, or one of the others in part; with `whole`
    also where it is one of them."""
    if out.layout is not torch.strided:
        return
    extent = _extent(out)
    if 0 < extent < out.numel():
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory location. "
            "Please clone() the tensor before performing the operation."
        )
    storage = out.untyped_storage()._cdata
    for other in others:
        if isinstance(other, (list, tuple)):
            refuse_overlap(out, other, whole)
            continue
        if not isinstance(other, Tensor):
            continue
        if whole if other is out else _overlap(out, extent, other, storage, whole):
            raise RuntimeError(
                "unsupported operation: some elements of the input tensor and the written-to tensor refer to a single "
                "memory location. Please clone() the tensor before performing the operation."
            )


def _overlap(out: Tensor, extent: int, other: Tensor, storage: int, whole: bool) -> bool:
    if not (out.numel() and other.numel()) or other.layout is not torch.strided:
        return False
    if other.untyped_storage()._cdata != storage:
        return False
    length = _extent(other)
    if extent != out.numel() or length != other.numel():
        return False
    first, second = out.data_ptr(), other.data_ptr()
    end, its_end = first + extent * out.element_size(), second + length * other.element_size()
    if (first, end) == (second, its_end):
        return whole or out.stride() != other.stride()
    return first < its_end and second < end
