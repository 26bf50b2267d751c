"""Registers the kernels: which operators get which, for the dispatch keys of a CUDA build."""

from __future__ import annotations

from typing import Any

import torch

from weft import settings
from weft.frontends.torch import dispatch
from weft.frontends.torch.devicecheck import factory_device
from weft.frontends.torch.dry_start import choose_kernels
from weft.frontends.torch.operators import attention, cudnn, histogram, normalisation, products, recurrent, storage
from weft.frontends.torch.random import host_generator
from weft.frontends.torch.sparse import register_sparse_kernels

_C = torch._C

# Composite operators that CUDA runs as one kernel, or that would look for CUDA-only code: computed whole.
_WHOLE = frozenset((
    "convolution", "convolution_backward", "_chunk_cat", "_chunk_cat.out", "_grouped_mm", "split_with_sizes_copy.out",
    "sum", "mean",
))  # fmt: skip
# Kernels written for CUDA, and what is composed of them above autograd.
_SPECIAL = (storage, attention, recurrent, normalisation, products, cudnn, histogram)
# Kernels of the CPU that must not run for CUDA tensors, because something above or below them does it.
_LEFT_OUT = frozenset(("is_pinned", "_pin_memory", "set_data", "_to_copy"))

# The registrations live as long as these.
libraries: list[Any] = []


def needs_kernel(name: str) -> bool:
    """Whether an operator "aten::name" is computed by a generic kernel."""
    full = f"aten::{name}"
    if name.partition(".")[0] in _LEFT_OUT:
        return False
    if name in _WHOLE:
        return True
    has = _C._dispatch_has_kernel_for_dispatch_key
    if name.startswith("_foreach") and has(full, "CompositeExplicitAutograd"):
        return True
    return has(full, "CPU") and not has(full, "CompositeImplicitAutograd")


def is_view(operator: Any) -> bool:
    """Whether a result shares memory with an argument that is not written."""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in operator._schema.returns)


def register_kernels() -> int:
    """Registers a kernel for every operator of the CPU build; returns how many there are."""
    dispatch.namespace["host_generator"] = host_generator
    dispatch.namespace["factory_device"] = factory_device
    library = _C._dispatch_library("IMPL", "aten", "CUDA", "", 0)
    libraries.append(library)
    special: dict[str, Any] = {}
    for family in _SPECIAL:
        special |= family.KERNELS
    make_entry = dispatch.make_entry
    if settings.current().dry:
        special, make_entry = choose_kernels(special)
    above = _C._dispatch_library("IMPL", "aten", "AutogradCUDA", "", 0)
    libraries.append(above)
    count = 0
    for family in (attention, recurrent):
        for name, function in family.COMPOSITES.items():
            special[name] = function
            above.impl(name, "AutogradCUDA", function, False)
    for name, function in special.items():
        library.impl(name, "CUDA", function, False)
        count += 1
    views = set(storage.VIEWS)
    for full in _C._dispatch_get_all_op_names():
        space, _, name = full.partition("::")
        if space != "aten" or name in special or not _C._dispatch_has_kernel(full):
            continue
        if name in views:
            if _C._dispatch_has_kernel_for_dispatch_key(full, "CPU"):
                library.impl(name, "CUDA", storage.make_view_kernel(dispatch.find_operator(name)), False)
                count += 1
        elif needs_kernel(name):
            library.impl(name, "CUDA", make_entry(name), False)
            count += 1
    count += register_sparse_kernels(libraries)
    return count
