"""Grouped GEMM: products of different sizes in one launch, their pointers and sizes in arrays on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def grouped_kernel(a_pointers, b_pointers, c_pointers, sizes, strides, count, reached, TYPE: tl.constexpr,
                   TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr):  # fmt: skip
    """Every program walks all problems and takes each num_programs-th tile. `reached` is not used: CPU tensors may be
    touched by kernels once they have been an argument."""
    tile = tl.program_id(0)
    done = 0
    for problem in range(count):
        m = tl.load(sizes + problem * 3)
        n = tl.load(sizes + problem * 3 + 1)
        k = tl.load(sizes + problem * 3 + 2)
        columns = tl.cdiv(n, TILE_N)
        tiles = tl.cdiv(m, TILE_M) * columns
        while tile >= done and tile < done + tiles:
            a = tl.load(a_pointers + problem).to(tl.pointer_type(TYPE))
            b = tl.load(b_pointers + problem).to(tl.pointer_type(TYPE))
            c = tl.load(c_pointers + problem).to(tl.pointer_type(TYPE))
            a_row = tl.load(strides + problem * 3)
            b_row = tl.load(strides + problem * 3 + 1)
            c_row = tl.load(strides + problem * 3 + 2)
            row = (tile - done) // columns * TILE_M + tl.arange(0, TILE_M)
            column = (tile - done) % columns * TILE_N + tl.arange(0, TILE_N)
            depth = tl.arange(0, TILE_K)
            total = tl.zeros((TILE_M, TILE_N), tl.float32)
            for start in range(0, k, TILE_K):
                at = start + depth
                left = tl.load(a + row[:, None] * a_row + at[None, :], mask=(row < m)[:, None] & (at < k)[None, :],
                               other=0.0)  # fmt: skip
                right = tl.load(b + at[:, None] * b_row + column[None, :],
                                mask=(at < k)[:, None] & (column < n)[None, :], other=0.0)  # fmt: skip
                total = tl.dot(left, right, total)
            inside = (row < m)[:, None] & (column < n)[None, :]
            tl.store(c + row[:, None] * c_row + column[None, :], total.to(TYPE), mask=inside)
            tile += tl.num_programs(0)
        done += tiles


TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def grouped(lefts, rights, programs=3, tile=(32, 64, 32)):
    """The products of matrices in pairs."""
    outs = [torch.empty((a.shape[0], b.shape[1]), dtype=a.dtype) for a, b in zip(lefts, rights)]
    pointers = [torch.tensor([t.data_ptr() for t in group]) for group in (lefts, rights, outs)]
    sizes = torch.tensor([[a.shape[0], b.shape[1], a.shape[1]] for a, b in zip(lefts, rights)], dtype=torch.int32)
    strides = torch.tensor([[a.stride(0), b.stride(0), c.stride(0)] for a, b, c in zip(lefts, rights, outs)],
                           dtype=torch.int32)  # fmt: skip
    grouped_kernel[(programs,)](
        *pointers, sizes, strides, len(lefts), (*lefts, *rights, *outs), TYPE=TYPES[lefts[0].dtype],
        TILE_M=tile[0], TILE_N=tile[1], TILE_K=tile[2],
    )  # fmt: skip
    return outs
