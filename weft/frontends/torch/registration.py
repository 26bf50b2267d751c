"""Registers the kernels: which operators get which, for the dispatch keys of a CUDA build."""

from __future__ import annotations

from typing import Any

import torch

from weft import settings
from weft.frontends.torch import dispatch, sparse
from weft.frontends.torch.devicecheck import factory_device
from weft.frontends.torch.dry_start import choose_kernels
from weft.frontends.torch.operators import attention, cudnn, histogram, normalisation, products, recurrent, storage
from weft.frontends.torch.operators.modes import watch_modes
from weft.frontends.torch.random import host_generator
from weft.frontends.torch.recording import tell_helper
from weft.frontends.torch.sparse import register_sparse_kernels

_C = torch._C

# Composite operators that CUDA runs as one kernel, or that would look for CUDA-only code: computed whole.
_WHOLE = frozenset((
    "convolution", "convolution_backward", "_chunk_cat", "_chunk_cat.out", "_grouped_mm", "split_with_sizes_copy.out",
    "sum", "mean", "conj_physical_", "mode.values",
))  # fmt: skip
# Kernels written for CUDA, and what is composed of them above autograd.
_SPECIAL = (storage, attention, recurrent, normalisation, products, cudnn, histogram, sparse)
# Kernels of the CPU that must not run for CUDA tensors, because something above or below them does it.
_LEFT_OUT = frozenset(("is_pinned", "_pin_memory", "set_data", "_to_copy"))
# Operators for which CUDA has no kernel of its own (native_functions.yaml of PyTorch 2.13): PyTorch says so by itself,
# or composes them of others.
_CPU_ONLY = frozenset("""
    histogram narrow_copy _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors
    slow_conv3d_forward
    _upsample_lanczos2d_aa _upsample_lanczos2d_aa_backward mkldnn_rnn_layer mkldnn_rnn_layer_backward to_mkldnn _spdiags
    _add_relu _add_relu_ _convert_weight_to_int4pack_for_cpu _weight_int4pack_mm_for_cpu _dyn_quant_pack_4bit_weight
    _dyn_quant_matmul_4bit _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_flash_attention_for_cpu_backward
""".split())

# The registrations live as long as these.
libraries: list[Any] = []


def needs_kernel(name: str) -> bool:
    """Whether an operator "aten::name" is computed by a generic kernel."""
    full = f"aten::{name}"
    if name.partition(".")[0] in _LEFT_OUT | _CPU_ONLY:
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
    watch_modes(dispatch.forget_kernels, lambda names: tell_helper())
    return count
