"""Matrix products that only CUDA has as operators: with a wider result, with scales, in groups, with packed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.operators.host import host_kernel
from weft.frontends.torch.tensors import Tensor


def mm_wide(first: Tensor, second: Tensor, out_dtype: torch.dtype) -> Tensor:
    """mm.dtype and bmm.dtype: the accumulator is not rounded to the inputs' type."""
    return torch.matmul(first.to(out_dtype), second.to(out_dtype))


def addmm_wide(bias: Tensor, first: Tensor, second: Tensor, out_dtype: torch.dtype, *, beta: float = 1,
               alpha: float = 1) -> Tensor:  # fmt: skip
    return torch.addmm(bias.to(out_dtype), first.to(out_dtype), second.to(out_dtype), beta=beta, alpha=alpha)


def baddbmm_wide(bias: Tensor, first: Tensor, second: Tensor, out_dtype: torch.dtype, *, beta: float = 1,
                 alpha: float = 1) -> Tensor:  # fmt: skip
    return torch.baddbmm(bias.to(out_dtype), first.to(out_dtype), second.to(out_dtype), beta=beta, alpha=alpha)


def write_mm(first: Tensor, second: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> None:
    out.copy_(mm_wide(first, second, out_dtype))


def write_addmm(bias: Tensor, first: Tensor, second: Tensor, out_dtype: torch.dtype, *, beta: float = 1,
                alpha: float = 1, out: Tensor) -> None:  # fmt: skip
    out.copy_(addmm_wide(bias, first, second, out_dtype, beta=beta, alpha=alpha))


def write_baddbmm(bias: Tensor, first: Tensor, second: Tensor, out_dtype: torch.dtype, *, beta: float = 1,
                  alpha: float = 1, out: Tensor) -> None:  # fmt: skip
    out.copy_(baddbmm_wide(bias, first, second, out_dtype, beta=beta, alpha=alpha))


def _returning_out(name: str, function: Callable[..., None]) -> Callable[..., Tensor]:
    """A kernel of an out= form."""
    inner = host_kernel(name, function)

    def kernel(*args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        inner(*args, out=out, **kwargs)
        return out

    return kernel


# ---------------------------------------------------------------- products with scales
_ROW_WISE = 1  # ScalingType.RowWise of torch.nn.functional


def _spread(scale: Tensor, rows: int, columns: int) -> Tensor:
    """A scale per tensor, row, column or block of 128 (or 1 x 128) as one factor per element."""
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    if scale.dim() < 2:
        return scale.reshape(-1, 1) if scale.numel() == rows else scale.reshape(1, -1)
    if scale.shape in ((rows, 1), (1, columns)):
        return scale
    wide = scale
    for dim, length in ((0, rows), (1, columns)):
        if wide.size(dim) not in (1, length):
            times = -(-length // wide.size(dim))
            wide = wide.repeat_interleave(times, dim).narrow(dim, 0, length)
    return wide


def scaled_mm(first: Tensor, second: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None = None,
              scale_result: Tensor | None = None, out_dtype: torch.dtype | None = None,
              use_fast_accum: bool = False) -> Tensor:  # fmt: skip
    """_scaled_mm: fp8 (or fp4) inputs times their scales, multiplied in float32."""
    rows, columns, inner = first.size(0), second.size(1), first.size(1)
    one = first.float() * _spread(scale_a.float(), rows, inner)
    other = second.float() * _spread(scale_b.float(), inner, columns)
    result = one @ other
    if bias is not None:
        result = result + bias.float()
    wanted = out_dtype or first.dtype
    if scale_result is not None and wanted.itemsize == 1:
        result = result * scale_result
    if wanted.itemsize == 1:
        limit = torch.finfo(wanted).max
        result = result.clamp(-limit, limit)
    return result.to(wanted)


def write_scaled_mm(first: Tensor, second: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None = None,
                    scale_result: Tensor | None = None, out_dtype: torch.dtype | None = None,
                    use_fast_accum: bool = False, *, out: Tensor) -> None:  # fmt: skip
    out.copy_(scaled_mm(first, second, scale_a, scale_b, bias, scale_result, out_dtype or out.dtype))


def scaled_grouped_mm(first: Tensor, second: Tensor, scale_a: Tensor, scale_b: Tensor, offs: Tensor | None = None,
                      bias: Tensor | None = None, scale_result: Tensor | None = None,
                      out_dtype: torch.dtype | None = None, use_fast_accum: bool = False) -> Tensor:  # fmt: skip
    """_scaled_grouped_mm with one scale per row of the first and per column of the second factor."""
    wanted = out_dtype or torch.bfloat16
    if first.dim() == 3 and second.dim() == 3:
        one = first.float() * scale_a.float().unsqueeze(-1)
        return (one @ (second.float() * scale_b.float().unsqueeze(-2))).to(wanted)
    assert offs is not None, "groups of rows need their ends"
    bounds = [0, *offs.tolist()]
    spans = list(zip(bounds, bounds[1:]))
    if first.dim() == 2 and second.dim() == 3:
        one = first.float() * scale_a.float().unsqueeze(-1)
        result = torch.zeros(first.size(0), second.size(2))
        for group, (start, end) in enumerate(spans):
            result[start:end] = one[start:end] @ (second[group].float() * scale_b[group].float())
        return result.to(wanted)
    rows, columns, groups = first.size(-2), second.size(-1), len(spans)
    if first.dim() == 3:
        result = torch.zeros(rows, columns)
        for group, (start, end) in enumerate(spans):
            one = first[group].float() * scale_a[group].float().unsqueeze(-1)
            result[:, start:end] = one @ (second[:, start:end].float() * scale_b[start:end].float())
        return result.to(wanted)
    result = torch.zeros(groups, rows, columns)
    for group, (start, end) in enumerate(spans):
        by_row, by_column = scale_a.view(groups, rows)[group].float(), scale_b.view(groups, columns)[group].float()
        one = first[:, start:end].float() * by_row.unsqueeze(-1)
        result[group] = one @ (second[start:end].float() * by_column)
    return result.to(wanted)


def scaled_grouped_mm_v2(first: Tensor, second: Tensor, scale_a: list[Tensor], recipe_a: list[int],
                         swizzle_a: list[int], scale_b: list[Tensor], recipe_b: list[int], swizzle_b: list[int],
                         offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None,
                         contraction_dim: Any = (), use_fast_accum: bool = False) -> Tensor:  # fmt: skip
    """_scaled_grouped_mm_v2 with scales per row, which is all that Hopper has."""
    if list(recipe_a) != [_ROW_WISE] or list(recipe_b) != [_ROW_WISE]:
        raise NotImplementedError(
            "scaled_grouped_mm on a virtual GPU takes ScalingType.RowWise for both factors, as Hopper's kernels do"
        )
    return scaled_grouped_mm(first, second, scale_a[0], scale_b[0], offs, bias, None, out_dtype, use_fast_accum)


# ---------------------------------------------------------------- four-bit weights
def pack_int4(weight: Tensor, inner_k_tiles: int) -> Tensor:
    """_convert_weight_to_int4pack: two weights per byte, (n, k / 2) in; a tensor of CUDA's packed shape out.

    The order inside is ours: only _weight_int4pack_mm reads it.
    """
    rows, half = weight.shape
    return weight.contiguous().view(torch.int32).reshape(rows // 8, 2 * half // (inner_k_tiles * 16), 32,
                                                         inner_k_tiles // 2)  # fmt: skip


def int4_mm(data: Tensor, packed: Tensor, group_size: int, scales_and_zeros: Tensor) -> Tensor:
    """_weight_int4pack_mm: data (m, k) times weights of four bits with scale and zero per group."""
    rows, inner = packed.size(0) * 8, data.size(1)
    pairs = packed.reshape(-1).view(torch.uint8).reshape(rows, inner // 2)
    weights = torch.stack((pairs >> 4, pairs & 15), -1).reshape(rows, inner).float() - 8
    scales = scales_and_zeros.float().transpose(0, 1).repeat_interleave(group_size, 1)
    return (data.float() @ (weights * scales[..., 0] + scales[..., 1]).T).to(data.dtype)


_ON_HOST: dict[str, Callable[..., Any]] = {
    "mm.dtype": mm_wide,
    "bmm.dtype": mm_wide,
    "addmm.dtype": addmm_wide,
    "baddbmm.dtype": baddbmm_wide,
    "_scaled_mm": scaled_mm,
    "_scaled_grouped_mm": scaled_grouped_mm,
    "_scaled_grouped_mm_v2": scaled_grouped_mm_v2,
    "_convert_weight_to_int4pack": pack_int4,
    "_weight_int4pack_mm": int4_mm,
}
_WRITING: dict[str, Callable[..., None]] = {
    "mm.dtype_out": write_mm,
    "bmm.dtype_out": write_mm,
    "addmm.dtype_out": write_addmm,
    "baddbmm.dtype_out": write_baddbmm,
    "_scaled_mm.out": write_scaled_mm,
}
KERNELS: dict[str, Callable[..., Any]] = {
    name: host_kernel(name, function) for name, function in _ON_HOST.items()
} | {name: _returning_out(name, function) for name, function in _WRITING.items()}
