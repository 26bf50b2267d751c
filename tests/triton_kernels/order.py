"""Sorting, the largest k, histograms and gathers inside a block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def sort_kernel(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCENDING: tl.constexpr):
    at = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + at, tl.sort(tl.load(x + at), descending=DESCENDING))


def sort(x, descending=False, rows=4, **options):
    out = torch.empty_like(x)
    sort_kernel[(x.shape[0] // rows,)](x, out, ROWS=rows, COLUMNS=x.shape[1], DESCENDING=descending, **options)
    return out


@triton.jit
def argsort_kernel(x, out, n, BLOCK: tl.constexpr):
    """Places in the order of 16-bit keys: the place rides in the low bits."""
    at = tl.arange(0, BLOCK)
    key = tl.load(x + at, mask=at < n, other=65535).to(tl.int32)
    tl.store(out + at, tl.sort(key * BLOCK + at) % BLOCK, mask=at < n)


def argsort(x):
    out = torch.empty(x.shape, dtype=torch.int32)
    argsort_kernel[(1,)](x, out, x.numel(), BLOCK=triton.next_power_of_2(x.numel()))
    return out


@triton.jit
def largest_kernel(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr):
    r = tl.arange(0, ROWS)[:, None]
    tile = tl.load(x + r * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    tl.store(out + r * K + tl.arange(0, K)[None, :], tl.topk(tile, K))


def largest(x, k):
    out = torch.empty((x.shape[0], k), dtype=x.dtype)
    largest_kernel[(1,)](x, out, ROWS=x.shape[0], COLUMNS=x.shape[1], K=k)
    return out


@triton.jit
def histogram_kernel(x, out, n, BINS: tl.constexpr, BLOCK: tl.constexpr):
    """Counts of a block, then added to those of the others."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0)
    counts = tl.histogram(value, BINS, mask=at < n)
    tl.atomic_add(out + tl.arange(0, BINS), counts)


def histogram(x, bins, block=256, **options):
    out = torch.zeros(bins, dtype=torch.int32)
    histogram_kernel[(triton.cdiv(x.numel(), block),)](x, out, x.numel(), BINS=bins, BLOCK=block, **options)
    return out


@triton.jit
def gather_kernel(x, index, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OUT_ROWS: tl.constexpr,
                  OUT_COLUMNS: tl.constexpr, AXIS: tl.constexpr):  # fmt: skip
    tile = tl.load(x + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    at = tl.arange(0, OUT_ROWS)[:, None] * OUT_COLUMNS + tl.arange(0, OUT_COLUMNS)[None, :]
    tl.store(out + at, tl.gather(tile, tl.load(index + at), AXIS))


def gather(x, index, axis, **options):
    """As torch.gather, inside a block."""
    out = torch.empty(index.shape, dtype=x.dtype)
    gather_kernel[(1,)](
        x, index, out, ROWS=x.shape[0], COLUMNS=x.shape[1], OUT_ROWS=index.shape[0], OUT_COLUMNS=index.shape[1],
        AXIS=axis, **options,
    )  # fmt: skip
    return out


@triton.jit
def rows_kernel(table, index, out, count, columns, BLOCK: tl.constexpr):
    """Rows of a table by number; a negative number gives zeros."""
    row = tl.program_id(0)
    source = tl.load(index + row)
    c = tl.arange(0, BLOCK)
    value = tl.load(table + source * columns + c, mask=(c < columns) & (source >= 0), other=0.0)
    tl.store(out + row * columns + c, value, mask=c < columns)


def rows(table, index):
    out = torch.empty((index.numel(), table.shape[1]), dtype=table.dtype)
    rows_kernel[(index.numel(),)](
        table, index, out, index.numel(), table.shape[1], BLOCK=triton.next_power_of_2(table.shape[1])
    )
    return out
