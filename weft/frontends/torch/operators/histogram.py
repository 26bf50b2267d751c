"""torch.histc of integers, which only CUDA has: integer values in, counts of the same type out.

Source of the bins: ATen/native/cuda/SummaryOps.cu (getBin, _histc_template): integer arithmetic throughout, every bin
open at its upper end but the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.operators.host import host_kernel
from weft.frontends.torch.tensors import Tensor


def histc(values: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Counts in `bins` bins of equal width from min to max; where both are equal, those of the values."""
    if values.is_floating_point():
        return torch.histc(values, bins, min, max)
    if bins <= 0:
        raise RuntimeError("bins must be > 0")
    low, high = int(min), int(max)
    if low == high and values.numel():
        low, high = int(values.min()), int(values.max())
    if low == high:
        low, high = low - 1, high + 1
    if low > high:
        raise RuntimeError("max must be larger than min")
    inside = values[(values >= low) & (values <= high)].to(torch.int64)
    places = ((inside - low) * bins).div(high - low, rounding_mode="trunc").clamp_(max=bins - 1)
    return torch.bincount(places, minlength=bins).to(values.dtype)


def histc_out(values: Tensor, bins: int = 100, min: float = 0, max: float = 0, *, out: Tensor) -> Tensor:
    found = KERNELS["histc"](values, bins, min, max)
    out.resize_(found.shape).copy_(found)
    return out


KERNELS: dict[str, Callable[..., Any]] = {"histc": host_kernel("histc", histc), "histc.out": histc_out}
