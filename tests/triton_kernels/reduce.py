"""Reductions along an axis: sums, extremes and their places, and operators of our own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def product(a, b):
    return a * b


@triton.jit
def merge_moments(mean1, square1, count1, mean2, square2, count2):
    """Welford's rule for two parts: means, sums of squared distances from them, counts."""
    count = count1 + count2
    share = tl.where(count == 0, 0.0, count2 / count)
    distance = mean2 - mean1
    return mean1 + distance * share, square1 + square2 + distance * distance * count1 * share, count


@triton.jit
def reduce_kernel(x, out, rows, columns, x_row, x_column, NAME: tl.constexpr, AXIS: tl.constexpr, ROWS: tl.constexpr,
                  COLUMNS: tl.constexpr):  # fmt: skip
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < columns)[None, :]
    at = x + r[:, None] * x_row + c[None, :] * x_column
    if NAME == "sum":
        result = tl.sum(tl.load(at, mask=inside, other=0), AXIS)
    elif NAME == "max":
        result = tl.max(tl.load(at, mask=inside, other=-100), AXIS)
    elif NAME == "min":
        result = tl.min(tl.load(at, mask=inside, other=100), AXIS)
    elif NAME == "argmax":
        result = tl.argmax(tl.load(at, mask=inside, other=-100), AXIS)
    elif NAME == "argmin":
        result = tl.argmin(tl.load(at, mask=inside, other=100), AXIS)
    elif NAME == "xor":
        result = tl.xor_sum(tl.load(at, mask=inside, other=0), AXIS)
    elif NAME == "or":
        result = tl.reduce_or(tl.load(at, mask=inside, other=0), AXIS)
    else:
        result = tl.reduce(tl.load(at, mask=inside, other=1), AXIS, product)
    length: tl.constexpr = ROWS if AXIS == 1 else COLUMNS
    i = tl.arange(0, length)
    tl.store(out + i, result.to(out.dtype.element_ty), mask=i < (rows if AXIS == 1 else columns))


def reduce(x, name, axis, dtype=None, **options):
    """The reduction `name` of a two-dimensional x along an axis."""
    rows, columns = x.shape
    out = torch.empty(rows if axis == 1 else columns, dtype=dtype or x.dtype)
    reduce_kernel[(1,)](
        x, out, rows, columns, *x.stride(), NAME=name, AXIS=axis, ROWS=triton.next_power_of_2(rows),
        COLUMNS=triton.next_power_of_2(columns), **options,
    )  # fmt: skip
    return out


@triton.jit
def moments_kernel(x, mean, variance, n, BLOCK: tl.constexpr):
    """Mean and variance of a row in one reduction of triples."""
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    value = tl.load(x + row * n + c, mask=c < n, other=0.0)
    count = (c < n).to(tl.float32)
    m, square, total = tl.reduce((value, tl.zeros((BLOCK,), tl.float32), count), 0, merge_moments)
    tl.store(mean + row, m)
    tl.store(variance + row, square / total)


def moments(x, **options):
    rows, n = x.shape
    mean, variance = torch.empty(rows), torch.empty(rows)
    moments_kernel[(rows,)](x, mean, variance, n, BLOCK=triton.next_power_of_2(n), **options)
    return mean, variance


@triton.jit
def extremes_kernel(x, high, place, n, BLOCK: tl.constexpr):
    """The largest element and its place, over blocks."""
    best = tl.full((1,), float("-inf"), tl.float32)
    where = tl.zeros((1,), tl.int32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value, index = tl.max(tl.load(x + at, mask=at < n, other=float("-inf")), 0, return_indices=True)
        where = tl.where(value > best, start + index, where)
        best = tl.maximum(best, value)
    tl.store(high + tl.arange(0, 1), best)
    tl.store(place + tl.arange(0, 1), where)


def extremes(x, block=128):
    high, place = torch.empty(1), torch.empty(1, dtype=torch.int32)
    extremes_kernel[(1,)](x, high, place, x.numel(), BLOCK=block)
    return high.item(), place.item()


@triton.jit
def cube_kernel(x, out, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """A three-dimensional block, summed along its middle axis, then its extremes along the others."""
    a, b, c = tl.arange(0, A), tl.arange(0, B), tl.arange(0, C)
    tile = tl.load(x + (a[:, None, None] * B + b[None, :, None]) * C + c[None, None, :])
    middle = tl.sum(tile, axis=1)
    tl.store(out + a[:, None] * C + c[None, :], middle)
    tl.store(out + A * C, tl.max(middle))
    tl.store(out + A * C + 1, tl.sum(tl.min(middle, axis=1), axis=0))


def cube(x):
    a, _, c = x.shape
    out = torch.empty(a * c + 2, dtype=x.dtype)
    cube_kernel[(1,)](x, out, A=x.shape[0], B=x.shape[1], C=x.shape[2])
    return out
