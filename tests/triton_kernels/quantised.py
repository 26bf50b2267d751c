"""Products with quantised matrices: int8 times int8, and weights of eight or four bits that become f16 on the way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def int8_kernel(a, b, a_scale, b_scale, c, m, n, k, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr):
    """Whole numbers on the tensor cores; a scale for each row of a and each column of b."""
    row = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    column = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    depth = tl.arange(0, TILE_K)
    total = tl.zeros((TILE_M, TILE_N), tl.int32)
    for start in range(0, k, TILE_K):
        at = start + depth
        left = tl.load(a + row[:, None] * k + at[None, :], mask=(row < m)[:, None] & (at < k)[None, :], other=0)
        right = tl.load(b + at[:, None] * n + column[None, :], mask=(at < k)[:, None] & (column < n)[None, :], other=0)
        total = tl.dot(left, right, total)
    scale = tl.load(a_scale + row, mask=row < m)[:, None] * tl.load(b_scale + column, mask=column < n)[None, :]
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(c + row[:, None] * n + column[None, :], total.to(tl.float32) * scale, mask=inside)


def int8(a, b, a_scale, b_scale, tile=(32, 64, 64), **options):
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n))
    int8_kernel[(triton.cdiv(m, tile[0]), triton.cdiv(n, tile[1]))](
        a, b, a_scale, b_scale, out, m, n, k, TILE_M=tile[0], TILE_N=tile[1], TILE_K=tile[2], **options
    )
    return out


@triton.jit
def weight8_kernel(a, b, scale, c, m, n, k, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr):
    """b holds int8 weights, with a scale for each column; a's type is that of the product."""
    row = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    column = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    depth = tl.arange(0, TILE_K)
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, k, TILE_K):
        at = start + depth
        left = tl.load(a + row[:, None] * k + at[None, :], mask=(row < m)[:, None] & (at < k)[None, :], other=0.0)
        right = tl.load(b + at[:, None] * n + column[None, :], mask=(at < k)[:, None] & (column < n)[None, :], other=0)
        total = tl.dot(left, right.to(left.dtype), total)
    total *= tl.load(scale + column, mask=column < n)[None, :]
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(c + row[:, None] * n + column[None, :], total.to(c.dtype.element_ty), mask=inside)


def weight8(a, b, scale, tile=(32, 64, 64), **options):
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=a.dtype)
    weight8_kernel[(triton.cdiv(m, tile[0]), triton.cdiv(n, tile[1]))](
        a, b, scale, out, m, n, k, TILE_M=tile[0], TILE_N=tile[1], TILE_K=tile[2], **options
    )
    return out


@triton.jit
def weight4_kernel(a, b, scale, zero, c, m, n, k, GROUP: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
                   TILE_K: tl.constexpr):  # fmt: skip
    """b holds eight 4-bit weights a word along k; each GROUP of k has scales and zero points of its own."""
    row = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    column = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    depth = tl.arange(0, TILE_K)
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, k, TILE_K):
        at = start + depth
        left = tl.load(a + row[:, None] * k + at[None, :], mask=(row < m)[:, None], other=0.0)
        word = tl.load(b + (at // 8)[:, None] * n + column[None, :])
        level = (word >> (at % 8 * 4)[:, None]) & 15
        group = (at // GROUP)[:, None] * n + column[None, :]
        weight = (level - tl.load(zero + group)).to(tl.float32) * tl.load(scale + group)
        total = tl.dot(left, weight.to(left.dtype), total)
    tl.store(c + row[:, None] * n + column[None, :], total.to(c.dtype.element_ty), mask=(row < m)[:, None])


def weight4(a, b, scale, zero, group, tile=(32, 64, 64), **options):
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=a.dtype)
    weight4_kernel[(triton.cdiv(m, tile[0]), n // tile[1])](
        a, b, scale, zero, out, m, n, k, GROUP=group, TILE_M=tile[0], TILE_N=tile[1], TILE_K=tile[2], **options
    )
    return out
