"""Scans along an axis: sums, products, and operators of our own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def largest(a, b):
    return tl.maximum(a, b)


@triton.jit
def recur(a1, b1, a2, b2):
    """Two steps h -> a h + b, one after the other, as one."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def scan_kernel(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NAME: tl.constexpr, AXIS: tl.constexpr,
                REVERSE: tl.constexpr):  # fmt: skip
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tile = tl.load(x + at)
    if NAME == "sum":
        result = tl.cumsum(tile, AXIS, reverse=REVERSE)
    elif NAME == "product":
        result = tl.cumprod(tile, AXIS, reverse=REVERSE)
    else:
        result = tl.associative_scan(tile, AXIS, largest, reverse=REVERSE)
    tl.store(out + at, result.to(out.dtype.element_ty))


def scan(x, name, axis, reverse=False, **options):
    out = torch.empty_like(x)
    scan_kernel[(1,)](x, out, ROWS=x.shape[0], COLUMNS=x.shape[1], NAME=name, AXIS=axis, REVERSE=reverse, **options)
    return out


@triton.jit
def line_kernel(x, out, n, BLOCK: tl.constexpr):
    """A running sum over a whole array: one program carries the sum from block to block."""
    carry = tl.zeros((1,), tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < n, other=0.0)
        tl.store(out + at, tl.cumsum(value, 0) + carry, mask=at < n)
        carry += tl.sum(value, axis=0)


def line(x, block=128, **options):
    out = torch.empty_like(x)
    line_kernel[(1,)](x, out, x.numel(), BLOCK=block, **options)
    return out


@triton.jit
def recurrence_kernel(a, b, out, COLUMNS: tl.constexpr, LENGTH: tl.constexpr):
    """h[t] = a[t] h[t - 1] + b[t] for every column."""
    at = tl.arange(0, LENGTH)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    _, h = tl.associative_scan((tl.load(a + at), tl.load(b + at)), 0, recur)
    tl.store(out + at, h)


def recurrence(a, b, **options):
    out = torch.empty_like(a)
    recurrence_kernel[(1,)](a, b, out, COLUMNS=a.shape[1], LENGTH=a.shape[0], **options)
    return out


@triton.jit
def chained_kernel(x, out, sums, flags, n, BLOCK: tl.constexpr):
    """A running sum over a whole array in one pass: each program waits for the sum of those before it."""
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0)
    total = tl.sum(value, axis=0)
    before = total * 0
    if program > 0:
        while tl.atomic_add(flags + program - 1, 0, sem="acquire") == 0:
            pass
        before = tl.load(sums + program - 1, volatile=True)
    tl.store(sums + program, before + total)
    tl.debug_barrier()
    tl.atomic_xchg(flags + program, 1, sem="release")
    tl.store(out + at, before + tl.cumsum(value, 0), mask=at < n)


def chained(x, block=64):
    programs = triton.cdiv(x.numel(), block)
    out = torch.empty_like(x)
    sums, flags = torch.zeros(programs, dtype=x.dtype), torch.zeros(programs, dtype=torch.int32)
    chained_kernel[(programs,)](x, out, sums, flags, x.numel(), BLOCK=block)
    return out
