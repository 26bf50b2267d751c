"""Softmax over rows: a row in one block, and rows of any length in several passes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def softmax_kernel(x, out, rows, columns, x_stride, out_stride, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Persistent: each program takes every so-many-th row."""
    c = tl.arange(0, BLOCK)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        value = tl.load(x + row * x_stride + c, mask=c < columns, other=float("-inf")).to(tl.float32)
        power = tl.exp(value - tl.max(value, axis=0))
        result = power / tl.sum(power, axis=0)
        tl.store(out + row * out_stride + c, result.to(out.dtype.element_ty), mask=c < columns)


def softmax(x, programs=3, stages=2, **options):
    rows, columns = x.shape
    out = torch.empty_like(x)
    softmax_kernel[(min(rows, programs),)](
        x, out, rows, columns, x.stride(0), out.stride(0), BLOCK=triton.next_power_of_2(columns), STAGES=stages,
        **options,
    )  # fmt: skip
    return out


@triton.jit
def online_softmax_kernel(x, out, rows, columns, x_stride, out_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest value and the sum in one pass, the results in a second; several rows in a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    for start in range(0, columns, BLOCK):
        inside = (row < rows)[:, None] & (start + c < columns)[None, :]
        value = tl.load(x + row[:, None] * x_stride + (start + c)[None, :], mask=inside, other=float("-inf"))
        value = value.to(tl.float32)
        higher = tl.maximum(top, tl.max(value, axis=1))
        weight = weight * tl.exp(top - higher) + tl.sum(tl.exp(value - higher[:, None]), axis=1)
        top = higher
    for start in range(0, columns, BLOCK):
        inside = (row < rows)[:, None] & (start + c < columns)[None, :]
        value = tl.load(x + row[:, None] * x_stride + (start + c)[None, :], mask=inside, other=0.0).to(tl.float32)
        result = tl.exp(value - top[:, None]) / weight[:, None]
        tl.store(out + row[:, None] * out_stride + (start + c)[None, :], result.to(out.dtype.element_ty), mask=inside)


def online_softmax(x, rows_per_program=8, block=64):
    rows, columns = x.shape
    out = torch.empty_like(x)
    online_softmax_kernel[(triton.cdiv(rows, rows_per_program),)](
        x, out, rows, columns, x.stride(0), out.stride(0), ROWS=rows_per_program, BLOCK=block
    )
    return out
