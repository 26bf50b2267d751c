"""Persistent matrix products through tensor descriptors, made by the host or on the device; copies through them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def place_of(tile, rows, columns, GROUP: tl.constexpr):
    first = tile // (GROUP * columns) * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + tile % (GROUP * columns) % height, tile % (GROUP * columns) // height


@triton.jit
def host_kernel(a, b, c, m, n, k, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
                GROUP: tl.constexpr, B_TURNED: tl.constexpr, FLATTEN: tl.constexpr,
                SPECIALIZE: tl.constexpr):  # fmt: skip
    """a, b and c are descriptors; b is (n, k) where B_TURNED."""
    rows, columns = tl.cdiv(m, TILE_M), tl.cdiv(n, TILE_N)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=FLATTEN):
        place_m, place_n = place_of(tile, rows, columns, GROUP)
        row, column = place_m * TILE_M, place_n * TILE_N
        total = tl.zeros((TILE_M, TILE_N), tl.float32)
        for start in tl.range(0, k, TILE_K, warp_specialize=SPECIALIZE):
            left = a.load([row, start])
            if B_TURNED:
                right = b.load([column, start]).T
            else:
                right = b.load([start, column])
            total = tl.dot(left, right, total)
        c.store([row, column], total.to(c.dtype))


def host(a, b, tile=(64, 64, 32), programs=2, turned=False, flatten=False, specialize=False, **options):
    """a @ b with descriptors that the host makes; turned: b lies transposed in memory."""
    (m, k), n = a.shape, b.shape[1]
    stored = b.T.contiguous() if turned else b
    out = torch.full((m, n), float("nan"), dtype=a.dtype)
    host_kernel[(programs,)](
        TensorDescriptor.from_tensor(a, [tile[0], tile[2]]),
        TensorDescriptor.from_tensor(stored, [tile[1], tile[2]] if turned else [tile[2], tile[1]]),
        TensorDescriptor.from_tensor(out, [tile[0], tile[1]]),
        m, n, k, TILE_M=tile[0], TILE_N=tile[1], TILE_K=tile[2], GROUP=2, B_TURNED=turned, FLATTEN=flatten,
        SPECIALIZE=specialize, **options,
    )  # fmt: skip
    return out


@triton.jit
def device_kernel(a, b, c, m, n, k, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
                  GROUP: tl.constexpr):  # fmt: skip
    """The descriptors are made here, in scratch memory that the launch provides; the epilogue stores two halves."""
    a_view = tl.make_tensor_descriptor(a, shape=[m, k], strides=[k, 1], block_shape=[TILE_M, TILE_K])
    b_view = tl.make_tensor_descriptor(b, shape=[k, n], strides=[n, 1], block_shape=[TILE_K, TILE_N])
    c_view = tl.make_tensor_descriptor(c, shape=[m, n], strides=[n, 1], block_shape=[TILE_M, TILE_N // 2])
    rows, columns = tl.cdiv(m, TILE_M), tl.cdiv(n, TILE_N)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0)):
        place_m, place_n = place_of(tile, rows, columns, GROUP)
        row, column = place_m * TILE_M, place_n * TILE_N
        total = tl.zeros((TILE_M, TILE_N), tl.float32)
        for start in range(0, k, TILE_K):
            total = tl.dot(a_view.load([row, start]), b_view.load([start, column]), total)
        halves = tl.permute(tl.reshape(total, (TILE_M, 2, TILE_N // 2)), (0, 2, 1))
        low, high = tl.split(halves)
        c_view.store([row, column], low.to(c.dtype.element_ty))
        c_view.store([row, column + TILE_N // 2], high.to(c.dtype.element_ty))


def allocate(size: int, alignment: int, stream):
    """Scratch memory for descriptors, for triton.set_allocator."""
    return torch.empty(size, dtype=torch.int8)


def device(a, b, tile=(64, 64, 32), programs=2, **options):
    (m, k), n = a.shape, b.shape[1]
    out = torch.full((m, n), float("nan"), dtype=a.dtype)
    triton.set_allocator(allocate)
    device_kernel[(programs,)](a, b, out, m, n, k, TILE_M=tile[0], TILE_N=tile[1], TILE_K=tile[2], GROUP=2, **options)
    return out


@triton.jit
def window_kernel(x, out, row, column):
    """One tile from anywhere, also beyond the edges, to another place."""
    out.store([0, 0], x.load([row, column]))


def window(x, row, column, tile, padding="zero"):
    """The tile of x at (row, column); what lies outside of x is `padding`."""
    out = torch.zeros(tile, dtype=x.dtype)
    source = TensorDescriptor(x, list(x.shape), list(x.stride()), list(tile), padding)
    window_kernel[(1,)](source, TensorDescriptor.from_tensor(out, list(tile)), row, column)
    return out


@triton.jit
def volume_kernel(x, out, SIZE: tl.constexpr):
    """A three-dimensional tile, doubled, added to what is there."""
    at = [tl.program_id(0) * SIZE, tl.program_id(1) * SIZE, 0]
    out.atomic_add(at, x.load(at) * 2)


def volume(x, out, size, columns):
    descriptors = [TensorDescriptor.from_tensor(t, [size, size, columns]) for t in (x, out)]
    volume_kernel[(triton.cdiv(x.shape[0], size), triton.cdiv(x.shape[1], size))](*descriptors, SIZE=size)
    return out


@triton.jit
def rows_kernel(x, rows, out, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Gathers rows through a descriptor."""
    index = tl.load(rows + tl.arange(0, ROWS))
    tile = x.gather(index, column)
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + at, tile)
