"""Data types that CUDA's kernels do not take, though the CPU's do: an operator in, lines for its kernel out.

Source: the AT_DISPATCH macros in ATen/native/cuda of PyTorch 2.13; the words are theirs. PyTorch's database says the
same (dtypes and dtypesIfCUDA), and the sweep over it checks both ways.
"""

from __future__ import annotations

from typing import Any

import torch

_INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
_WITH_BOOL = _INTEGERS | {torch.bool}
_LOW = frozenset((torch.float16, torch.bfloat16))
_NAMES = {
    torch.uint8: "Byte", torch.int8: "Char", torch.int16: "Short", torch.int32: "Int", torch.int64: "Long",
    torch.bool: "Bool", torch.float16: "Half", torch.bfloat16: "BFloat16",
}  # fmt: skip

# operator -> (types, name of the CUDA function)
REFUSED: dict[str, tuple[frozenset[torch.dtype], str]] = {
    "mm": (_WITH_BOOL, "addmm_cuda"),
    "addmm": (_WITH_BOOL, "addmm_cuda"),
    "addbmm": (_WITH_BOOL, "baddbmm_cuda"),
    "bmm": (_WITH_BOOL, "baddbmm_cuda"),
    "baddbmm": (_WITH_BOOL, "baddbmm_cuda"),
    "addmv": (_WITH_BOOL, "addmv_impl_cuda"),
    "mv": (_WITH_BOOL, "addmv_impl_cuda"),
    "dot": (_WITH_BOOL, "dot"),
    "vdot": (_WITH_BOOL, "vdot"),
    "convolution": (_WITH_BOOL, "slow_conv2d_cuda"),
    "avg_pool2d": (_WITH_BOOL, "avg_pool2d_out_cuda_frame"),
    "avg_pool3d": (_WITH_BOOL, "avg_pool3d_out_cuda"),
    "max_pool2d_with_indices": (_WITH_BOOL, "max_pool2d_with_indices_out_cuda_frame"),
    "max_pool3d_with_indices": (_WITH_BOOL, "max_pool3d_with_indices_out_frame"),
    "igamma": (_LOW, "igamma_cuda"),
    "igammac": (_LOW, "igammac_cuda"),
    "angle": (_LOW, "angle_cuda"),
}
# An operator's tensors have one type, so the first tells.
INTEGERS_REFUSED = frozenset(name for name, (types, _) in REFUSED.items() if torch.int64 in types)
HALF_REFUSED = frozenset(name for name, (types, _) in REFUSED.items() if torch.float16 in types)
MAX_DIMS = 25  # MAX_TENSORINFO_DIMS of ATen/cuda/detail/IndexUtils.cuh


def refuse_dims() -> None:
    """Raises RuntimeError in the words of ATen/cuda/detail/IndexUtils.cuh."""
    raise RuntimeError(f"CUDA Tensors cannot have more than {MAX_DIMS} dimensions")


def key_of(name: str) -> str:
    """The name under which an operator, its in-place form or its out= form stands in the table."""
    base = name.partition(".")[0]
    return base[:-1] if base.endswith("_") else base


def check_lines(name: str, variable: str) -> list[str]:
    """Lines that refuse types, or too many dimensions, of an operator's first tensor, which is in `variable`."""
    if name.partition(".")[0] == "median":
        return [f"if {variable}.dim() >= {MAX_DIMS}:", "    refuse_dims()"]
    key = key_of(name)
    if key not in REFUSED:
        return []
    return [f"if {variable}.dtype in refused_types[{key!r}][0]:", f"    refuse_type({key!r}, {variable})"]


def refuse_type(name: str, tensor: Any) -> None:
    """Raises NotImplementedError in the words of CUDA's kernels."""
    raise NotImplementedError(f"\"{REFUSED[name][1]}\" not implemented for '{_NAMES[tensor.dtype]}'")
