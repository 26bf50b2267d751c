"""Matrix products: grouped order of tiles, any strides, every type of a tensor core; batches; split sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.float64: tl.float64, torch.int32: tl.int32}


@triton.jit
def tile_place(program, m, n, TILE_M: tl.constexpr, TILE_N: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of a program's tile: GROUP rows of tiles together, column by column."""
    rows, columns = tl.cdiv(m, TILE_M), tl.cdiv(n, TILE_N)
    first = program // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + program % (GROUP * columns) % height, program % (GROUP * columns) // height


@triton.jit
def matmul_kernel(a, b, c, m, n, k, a_row, a_depth, b_depth, b_column, c_row, c_column, SUM: tl.constexpr,
                  PRECISION: tl.constexpr, LEAKY: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
                  TILE_K: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    place_m, place_n = tile_place(tl.program_id(0), m, n, TILE_M, TILE_N, GROUP)
    row = place_m * TILE_M + tl.arange(0, TILE_M)
    column = place_n * TILE_N + tl.arange(0, TILE_N)
    depth = tl.arange(0, TILE_K)
    a_at = a + row[:, None] * a_row + depth[None, :] * a_depth
    b_at = b + depth[:, None] * b_depth + column[None, :] * b_column
    total = tl.zeros((TILE_M, TILE_N), dtype=SUM)
    for start in range(0, k, TILE_K):
        left = tl.load(a_at, mask=(row < m)[:, None] & (start + depth < k)[None, :], other=0.0)
        right = tl.load(b_at, mask=(start + depth < k)[:, None] & (column < n)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=SUM)
        a_at += TILE_K * a_depth
        b_at += TILE_K * b_depth
    if LEAKY:
        total = tl.where(total >= 0, total, 0.01 * total)
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(c + row[:, None] * c_row + column[None, :] * c_column, total.to(c.dtype.element_ty), mask=inside)


def matmul(a, b, out_dtype=None, sum_dtype=torch.float32, precision=None, leaky=False, tile=(64, 64, 32), group=3,
           out=None, **options):  # fmt: skip
    """a @ b, added up in sum_dtype; precision as tl.dot's input_precision."""
    (m, k), n = a.shape, b.shape[1]
    if out is None:
        out = torch.empty((m, n), dtype=out_dtype or sum_dtype)
    matmul_kernel[(triton.cdiv(m, tile[0]) * triton.cdiv(n, tile[1]),)](
        a, b, out, m, n, k, *a.stride(), *b.stride(), *out.stride(), SUM=TYPES[sum_dtype], PRECISION=precision,
        LEAKY=leaky, TILE_M=tile[0], TILE_N=tile[1], TILE_K=tile[2], GROUP=group, **options,
    )  # fmt: skip
    return out


@triton.jit
def batched_kernel(a, b, c, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    batch, row, column, depth = tl.arange(0, B), tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + (batch[:, None, None] * M + row[None, :, None]) * K + depth[None, None, :])
    right = tl.load(b + (batch[:, None, None] * K + depth[None, :, None]) * N + column[None, None, :])
    tl.store(c + (batch[:, None, None] * M + row[None, :, None]) * N + column[None, None, :], tl.dot(left, right))


def batched(a, b, **options):
    (batch, m, k), n = a.shape, b.shape[2]
    out = torch.empty((batch, m, n), dtype=torch.float32)
    batched_kernel[(1,)](a, b, out, B=batch, M=m, N=n, K=k, **options)
    return out


@triton.jit
def split_kernel(a, b, c, m, n, k, TILE: tl.constexpr, TILE_K: tl.constexpr, SPLIT: tl.constexpr):
    """Several programs add to one tile of c, with atomic additions."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    depth = tl.program_id(2) * TILE_K + tl.arange(0, TILE_K)
    total = tl.zeros((TILE, TILE), tl.float32)
    for _ in range(tl.cdiv(k, SPLIT * TILE_K)):
        left = tl.load(a + row[:, None] * k + depth[None, :], mask=(row < m)[:, None] & (depth < k)[None, :], other=0.0)
        right = tl.load(b + depth[:, None] * n + column[None, :], mask=(depth < k)[:, None] & (column < n)[None, :],
                        other=0.0)  # fmt: skip
        total = tl.dot(left, right, total)
        depth += SPLIT * TILE_K
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.atomic_add(c + row[:, None] * n + column[None, :], total.to(c.dtype.element_ty), mask=inside)


def split(a, b, parts=4, dtype=torch.float32):
    (m, k), n = a.shape, b.shape[1]
    out = torch.zeros((m, n), dtype=dtype)
    grid = (triton.cdiv(m, 32), triton.cdiv(n, 32), parts)
    split_kernel[grid](a, b, out, m, n, k, TILE=32, TILE_K=32, SPLIT=parts)
    return out


@triton.jit
def chain_kernel(a, b, c, out, N: tl.constexpr):
    """(a @ b) @ c, the first product's tile going straight into the second."""
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    at = i * N + j
    first = tl.dot(tl.load(a + at), tl.load(b + at))
    tl.store(out + at, tl.dot(first.to(c.dtype.element_ty), tl.load(c + at)))


def chain(a, b, c, **options):
    out = torch.empty(a.shape, dtype=torch.float32)
    chain_kernel[(1,)](a, b, c, out, N=a.shape[0], **options)
    return out
