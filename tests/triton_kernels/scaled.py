"""Block-scaled matrix products: microscaling formats, a scale of eight exponent bits for every 32 elements along k."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def scaled_kernel(a, a_scale, b, b_scale, c, m, n, k, A_FORMAT: tl.constexpr, B_FORMAT: tl.constexpr,
                  A_SCALED: tl.constexpr, B_SCALED: tl.constexpr, A_PACK: tl.constexpr, B_PACK: tl.constexpr,
                  TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr):  # fmt: skip
    """a is (m, k / A_PACK), b is (k / B_PACK, n), the scales are (m, k / 32) and (n, k / 32)."""
    row = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    column = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    a_depth, b_depth = tl.arange(0, TILE_K // A_PACK), tl.arange(0, TILE_K // B_PACK)
    group = tl.arange(0, TILE_K // 32)
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, k, TILE_K):
        left = tl.load(a + row[:, None] * (k // A_PACK) + (start // A_PACK + a_depth)[None, :])
        right = tl.load(b + (start // B_PACK + b_depth)[:, None] * n + column[None, :])
        left_scale = None
        right_scale = None
        if A_SCALED:
            left_scale = tl.load(a_scale + row[:, None] * (k // 32) + (start // 32 + group)[None, :])
        if B_SCALED:
            right_scale = tl.load(b_scale + column[:, None] * (k // 32) + (start // 32 + group)[None, :])
        total = tl.dot_scaled(left, left_scale, A_FORMAT, right, right_scale, B_FORMAT, total)
    tl.store(c + row[:, None] * n + column[None, :], total)


def scaled(a, a_scale, a_format, b, b_scale, b_format, tile=(64, 64, 64), **options):
    """(a * a_scale) @ (b * b_scale). e2m1 comes two to a byte along k; scales are bytes, or None."""
    packs = [2 if name == "e2m1" else 1 for name in (a_format, b_format)]
    (m, depth), n = a.shape, b.shape[1]
    out = torch.empty((m, n))
    scaled_kernel[(m // tile[0], n // tile[1])](
        a, a_scale, b, b_scale, out, m, n, depth * packs[0], A_FORMAT=a_format, B_FORMAT=b_format,
        A_SCALED=a_scale is not None, B_SCALED=b_scale is not None, A_PACK=packs[0], B_PACK=packs[1],
        TILE_M=tile[0], TILE_N=tile[1], TILE_K=tile[2], **options,
    )  # fmt: skip
    return out
