"""Kernels that treat every element by itself: sums, masks, strides, conversions, functions, loops, prints."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    tl.store(out + at, tl.load(x + at, mask=inside) + tl.load(y + at, mask=inside), mask=inside)


def add(x, y, block=256, **options):
    out = torch.empty_like(x)
    add_kernel[(triton.cdiv(x.numel(), block),)](x, y, out, x.numel(), BLOCK=block, **options)
    return out


@triton.jit
def copy_kernel(x, out, rows, columns, x_row, x_column, out_row, out_column, TILE_M: tl.constexpr,
                TILE_N: tl.constexpr):  # fmt: skip
    r = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    c = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    inside = (r < rows)[:, None] & (c < columns)[None, :]
    tile = tl.load(x + r[:, None] * x_row + c[None, :] * x_column, mask=inside)
    tl.store(out + r[:, None] * out_row + c[None, :] * out_column, tile, mask=inside)


def copy(x, out, tile=(32, 64), **options):
    """out[...] = x for two-dimensional views of any strides."""
    rows, columns = x.shape
    grid = (triton.cdiv(rows, tile[0]), triton.cdiv(columns, tile[1]))
    copy_kernel[grid](x, out, rows, columns, *x.stride(), *out.stride(), TILE_M=tile[0], TILE_N=tile[1], **options)
    return out


@triton.jit
def select_kernel(x, y, out, n, threshold, BLOCK: tl.constexpr):
    """Nested tl.where, masks with `other`, and a condition of the whole program."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + at, mask=at < n, other=-7)
    b = tl.load(y + at, mask=(at < n) & (at % 3 != 0), other=5)
    value = tl.where(a > threshold, a, tl.where(b > a, b, a + b))
    if tl.program_id(0) % 2 == 1:
        value = -value
    tl.store(out + at, value, mask=at < n)


def select(x, y, threshold):
    out = torch.full_like(x, 99)
    select_kernel[(triton.cdiv(x.numel(), 64),)](x, y, out, x.numel(), threshold, BLOCK=64, num_warps=2)
    return out


@triton.jit
def cast_kernel(x, out, n, ROUNDING: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    tl.store(out + at, value.to(out.dtype.element_ty, fp_downcast_rounding=ROUNDING), mask=at < n)


def cast(x, dtype, rounding=None):
    """x in another type, rounded to nearest or, with "rtz", to zero."""
    out = torch.empty(x.shape, dtype=dtype)
    cast_kernel[(triton.cdiv(x.numel(), 256),)](x, out, x.numel(), ROUNDING=rounding, BLOCK=256)
    return out


@triton.jit
def bits_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    tl.store(out + at, value.to(out.dtype.element_ty, bitcast=True), mask=at < n)


def bits(x, dtype):
    """The same bits read as another type of that width."""
    out = torch.empty(x.shape, dtype=dtype)
    bits_kernel[(1,)](x, out, x.numel(), BLOCK=triton.next_power_of_2(x.numel()))
    return out


@triton.jit
def function_kernel(x, out, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + at, mask=at < n, other=1.0)
    if NAME == "exp":
        r = tl.exp(v)
    elif NAME == "exp2":
        r = tl.exp2(v)
    elif NAME == "log":
        r = tl.log(v)
    elif NAME == "log2":
        r = tl.log2(v)
    elif NAME == "sin":
        r = tl.sin(v)
    elif NAME == "cos":
        r = tl.cos(v)
    elif NAME == "sqrt":
        r = tl.sqrt(v)
    elif NAME == "sqrt_rn":
        r = tl.sqrt_rn(v)
    elif NAME == "rsqrt":
        r = tl.rsqrt(v)
    elif NAME == "erf":
        r = tl.erf(v)
    elif NAME == "floor":
        r = tl.floor(v)
    elif NAME == "ceil":
        r = tl.ceil(v)
    elif NAME == "abs":
        r = tl.abs(v)
    elif NAME == "sigmoid":
        r = tl.sigmoid(v)
    elif NAME == "tanh":
        r = libdevice.tanh(v)
    elif NAME == "cbrt":
        r = libdevice.cbrt(v)
    elif NAME == "lgamma":
        r = libdevice.lgamma(v)
    elif NAME == "rint":
        r = libdevice.rint(v)
    else:
        tl.static_assert(False, "unknown function")
    tl.store(out + at, r, mask=at < n)


def function(x, name):
    out = torch.empty_like(x)
    function_kernel[(triton.cdiv(x.numel(), 256),)](x, out, x.numel(), NAME=name, BLOCK=256)
    return out


@triton.jit
def integer_kernel(x, y, out, n, NAME: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + at, mask=at < n, other=1)
    b = tl.load(y + at, mask=at < n, other=1)
    if NAME == "quotient":
        r = a // b
    elif NAME == "remainder":
        r = a % b
    elif NAME == "shift":
        r = (a << (b & 7)) ^ (a >> (b & 3))
    elif NAME == "logic":
        r = (a & b) | (~a & (a ^ b))
    elif NAME == "minimum":
        r = tl.minimum(a, b) * 3 - tl.maximum(a, b)
    else:
        r = tl.umulhi(a, b)
    tl.store(out + at, r, mask=at < n)


def integer(x, y, name):
    out = torch.empty_like(x)
    integer_kernel[(triton.cdiv(x.numel(), 128),)](x, y, out, x.numel(), NAME=name, BLOCK=128)
    return out


@triton.jit
def places_kernel(out):
    """Each program of a three-dimensional grid writes its place and the grid's size."""
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    nx, ny, nz = tl.num_programs(0), tl.num_programs(1), tl.num_programs(2)
    at = out + ((z * ny + y) * nx + x) * 4
    tl.store(at, x)
    tl.store(at + 1, y)
    tl.store(at + 2, z)
    tl.store(at + 3, nx * 10000 + ny * 100 + nz)


def places(grid):
    out = torch.zeros((*reversed(grid), 4), dtype=torch.int32)
    places_kernel[grid](out)
    return out


@triton.jit
def collatz_kernel(x, out, n, BLOCK: tl.constexpr):
    """Steps of the Collatz sequence to 1: a loop until the whole block is done."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=1)
    steps = tl.zeros((BLOCK,), tl.int32)
    while tl.max(value, axis=0) > 1:
        going = value > 1
        value = tl.where(going, tl.where(value % 2 == 0, value // 2, 3 * value + 1), value)
        steps += going.to(tl.int32)
    tl.store(out + at, steps, mask=at < n)


def collatz(x):
    out = torch.empty(x.shape, dtype=torch.int32)
    collatz_kernel[(triton.cdiv(x.numel(), 64),)](x, out, x.numel(), BLOCK=64, num_warps=2)
    return out


@triton.jit
def triangle_kernel(out, n):
    """Nested loops with bounds that depend on the program and on each other."""
    total = 0
    i = tl.program_id(0)
    while i < n:
        for j in range(i, n, 3):
            total += i * j
        i += 2
    tl.store(out + tl.program_id(0), total)


def triangle(n, programs):
    out = torch.zeros(programs, dtype=torch.int32)
    triangle_kernel[(programs,)](out, n)
    return out


@triton.jit
def print_kernel(x, BLOCK: tl.constexpr):
    value = tl.load(x + tl.arange(0, BLOCK))
    tl.device_print("value", value)


@triton.jit
def assert_kernel(x, out, limit, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.device_assert(value < limit, "value too large")
    tl.store(out + at, value)


@triton.jit
def shapes_kernel(x, out, M: tl.constexpr, N: tl.constexpr):
    """reshape, trans, join, split, interleave, expand_dims, broadcast, cat: a permutation of x, tile by tile."""
    at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tile = tl.load(x + at)
    turned = tl.trans(tile)  # N, M
    folded = tl.reshape(turned, (N // 2, 2, M))
    even, odd = tl.split(tl.permute(folded, (0, 2, 1)))  # N/2, M each
    joined = tl.join(odd, even)  # N/2, M, 2
    tl.store(out + tl.arange(0, M * N), tl.reshape(joined, (M * N,)))
    line = tl.interleave(tl.sum(even, axis=1), tl.sum(odd, axis=1))  # N
    tl.store(out + M * N + tl.arange(0, N), line)
    flipped = tl.flip(tile, dim=1)
    tl.store(out + M * N + N + at, flipped)


def shapes(x):
    m, n = x.shape
    out = torch.zeros(2 * m * n + n, dtype=x.dtype)
    shapes_kernel[(1,)](x, out, M=m, N=n)
    return out
