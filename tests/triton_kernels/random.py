"""Random numbers from Philox: bits, uniform and normal numbers, dropout."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def bits_kernel(out, seed, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(seed, at)
    tl.store(out + 4 * at, a, mask=at < n)
    tl.store(out + 4 * at + 1, b, mask=at < n)
    tl.store(out + 4 * at + 2, c, mask=at < n)
    tl.store(out + 4 * at + 3, d, mask=at < n)


def bits(seed, n):
    """Four 32-bit words for each of the counters 0 to n - 1."""
    out = torch.empty((n, 4), dtype=torch.int32)
    bits_kernel[(triton.cdiv(n, 128),)](out, seed, n, BLOCK=128)
    return out


@triton.jit
def wide_bits_kernel(out, seed, first, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    counter = first + at.to(tl.int64)
    zero = counter * 0
    a, b, c, d = tl.philox(seed, counter, zero, zero, zero)
    tl.store(out + 5 * at, tl.randint(seed, counter).to(tl.int64), mask=at < n)
    tl.store(out + 5 * at + 1, a.to(tl.int64, bitcast=True), mask=at < n)
    tl.store(out + 5 * at + 2, b.to(tl.int64, bitcast=True), mask=at < n)
    tl.store(out + 5 * at + 3, c.to(tl.int64, bitcast=True), mask=at < n)
    tl.store(out + 5 * at + 4, d.to(tl.int64, bitcast=True), mask=at < n)


def wide_bits(seed, first, n):
    """For each of n 64-bit counters from `first` on: randint's 32 bits, and four 64-bit words of Philox4x64."""
    out = torch.empty((n, 5), dtype=torch.int64)
    wide_bits_kernel[(1,)](out, seed, first, n, BLOCK=triton.next_power_of_2(n))
    return out


@triton.jit
def numbers_kernel(uniform, normal, seed, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(uniform + at, tl.rand(seed, at), mask=at < n)
    tl.store(normal + at, tl.randn(seed, at), mask=at < n)


def numbers(seed, n):
    """n uniform and n normal numbers."""
    uniform, normal = torch.empty(n), torch.empty(n)
    numbers_kernel[(triton.cdiv(n, 256),)](uniform, normal, seed, n, BLOCK=256)
    return uniform, normal


@triton.jit
def dropout_kernel(x, out, n, p, seed, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    kept = tl.rand(seed, at) > p
    tl.store(out + at, tl.where(kept, value / (1 - p), 0.0), mask=at < n)


def dropout(x, p, seed):
    out = torch.empty_like(x)
    dropout_kernel[(triton.cdiv(x.numel(), 256),)](x, out, x.numel(), p, seed, BLOCK=256)
    return out
