"""The Triton kernels that triton.py times, in the shapes in which Triton's users write them.

Each launcher takes torch tensors and allocates nothing, so that its time is the kernel's.
"""

from __future__ import annotations

import triton
import triton.language as tl

ADD_BLOCK = 1024
# One of the configurations in Triton's own matmul tutorial, and one with wider tiles for tensor descriptors.
TILE_M, TILE_N, TILE_K, GROUP = 128, 64, 32, 8
TENSOR_M, TENSOR_N, TENSOR_K = 128, 128, 64
HEAD, ROWS, KEYS = 64, 128, 64


@triton.jit
def add_kernel(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    tl.store(out + at, tl.load(x + at, mask=inside) + tl.load(y + at, mask=inside), mask=inside)


@triton.jit
def softmax_kernel(x, out, stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * stride + at, mask=inside, other=float("-inf"))
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * stride + at, powers / tl.sum(powers, axis=0), mask=inside)


@triton.jit
def layer_norm_kernel(x, weight, bias, out, stride, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    values = tl.load(x + row * stride + at, mask=inside, other=0.0)
    mean = tl.sum(values, axis=0) / columns
    centred = tl.where(inside, values - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / columns + eps)
    w = tl.load(weight + at, mask=inside)
    b = tl.load(bias + at, mask=inside)
    tl.store(out + row * stride + at, centred * scale * w + b, mask=inside)


@triton.jit
def tile_of(program, m, n, TM: tl.constexpr, TN: tl.constexpr, GROUP: tl.constexpr):
    """Tiles in groups of rows, so that programs that run together share what they read."""
    rows, columns = tl.cdiv(m, TM), tl.cdiv(n, TN)
    group = program // (GROUP * columns)
    height = min(rows - group * GROUP, GROUP)
    within = program % (GROUP * columns)
    return group * GROUP + within % height, within // height


@triton.jit
def matmul_kernel(a, b, c, m, n, k, stride_a, stride_b, stride_c,
                  TM: tl.constexpr, TN: tl.constexpr, TK: tl.constexpr, GROUP: tl.constexpr):  # fmt: skip
    row, column = tile_of(tl.program_id(0), m, n, TM, TN, GROUP)
    rows = (row * TM + tl.arange(0, TM)) % m
    columns = (column * TN + tl.arange(0, TN)) % n
    depth = tl.arange(0, TK)
    a_at = a + rows[:, None] * stride_a + depth[None, :]
    b_at = b + depth[:, None] * stride_b + columns[None, :]
    total = tl.zeros((TM, TN), dtype=tl.float32)
    for step in range(tl.cdiv(k, TK)):
        left = tl.load(a_at, mask=depth[None, :] < k - step * TK, other=0.0)
        right = tl.load(b_at, mask=depth[:, None] < k - step * TK, other=0.0)
        total = tl.dot(left, right, total)
        a_at += TK
        b_at += TK * stride_b
    rows = row * TM + tl.arange(0, TM)
    columns = column * TN + tl.arange(0, TN)
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c + rows[:, None] * stride_c + columns[None, :], total.to(c.dtype.element_ty), mask=inside)


@triton.jit
def matmul_tensor_kernel(a, b, c, m, n, k, TM: tl.constexpr, TN: tl.constexpr, TK: tl.constexpr, GROUP: tl.constexpr):
    """The same through tensor descriptors: bulk tensor copies and warpgroup multiplications on sm_90."""
    row, column = tile_of(tl.program_id(0), m, n, TM, TN, GROUP)
    total = tl.zeros((TM, TN), dtype=tl.float32)
    for step in range(tl.cdiv(k, TK)):
        total = tl.dot(a.load([row * TM, step * TK]), b.load([step * TK, column * TN]), total)
    c.store([row * TM, column * TN], total.to(tl.float16))


@triton.jit
def attention_kernel(q, k, v, out, scale, stride_head, stride_row, length,
                     HEAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """Flash attention, forward, without a causal mask; `scale` includes log2(e)."""
    base = tl.program_id(1).to(tl.int64) * stride_head
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    keys, depth = tl.arange(0, KEYS), tl.arange(0, HEAD)
    most = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    weight = tl.zeros([ROWS], dtype=tl.float32)
    total = tl.zeros([ROWS, HEAD], dtype=tl.float32)
    queries = tl.load(q + base + rows[:, None] * stride_row + depth[None, :])
    for start in range(0, length, KEYS):
        right = tl.load(k + base + depth[:, None] + (start + keys[None, :]) * stride_row)
        scores = tl.dot(queries, right)
        now = tl.maximum(most, tl.max(scores, 1) * scale)
        powers = tl.math.exp2(scores * scale - now[:, None])
        shrink = tl.math.exp2(most - now)
        values = tl.load(v + base + (start + keys[:, None]) * stride_row + depth[None, :])
        total = tl.dot(powers.to(values.dtype), values, total * shrink[:, None])
        weight = weight * shrink + tl.sum(powers, 1)
        most = now
    total = total / weight[:, None]
    tl.store(out + base + rows[:, None] * stride_row + depth[None, :], total.to(out.dtype.element_ty))


def add(x, y, out):
    n = x.numel()
    return add_kernel[(triton.cdiv(n, ADD_BLOCK),)](x, y, out, n, BLOCK=ADD_BLOCK)


def softmax(x, out):
    rows, columns = x.shape
    return softmax_kernel[(rows,)](x, out, x.stride(0), columns, BLOCK=triton.next_power_of_2(columns), num_warps=8)


def layer_norm(x, weight, bias, out):
    rows, columns = x.shape
    block = triton.next_power_of_2(columns)
    return layer_norm_kernel[(rows,)](x, weight, bias, out, x.stride(0), columns, 1e-5, BLOCK=block, num_warps=8)


def matmul(a, b, c):
    (m, k), n = a.shape, b.shape[1]
    grid = (triton.cdiv(m, TILE_M) * triton.cdiv(n, TILE_N),)
    return matmul_kernel[grid](
        a, b, c, m, n, k, a.stride(0), b.stride(0), c.stride(0), TM=TILE_M, TN=TILE_N, TK=TILE_K, GROUP=GROUP,
        num_warps=4, num_stages=4,
    )  # fmt: skip


def matmul_tensor(a, b, c):
    from triton.tools.tensor_descriptor import TensorDescriptor

    (m, k), n = a.shape, b.shape[1]
    described = [
        TensorDescriptor.from_tensor(x, shape)
        for x, shape in ((a, [TENSOR_M, TENSOR_K]), (b, [TENSOR_K, TENSOR_N]), (c, [TENSOR_M, TENSOR_N]))
    ]
    grid = (triton.cdiv(m, TENSOR_M) * triton.cdiv(n, TENSOR_N),)
    return matmul_tensor_kernel[grid](
        *described, m, n, k, TM=TENSOR_M, TN=TENSOR_N, TK=TENSOR_K, GROUP=GROUP, num_warps=4, num_stages=3
    )


def attention(q, k, v, out):
    """q, k, v, out: (heads, length, 64)."""
    heads, length, depth = q.shape
    scale = depth**-0.5 * 1.4426950408889634
    return attention_kernel[(triton.cdiv(length, ROWS), heads)](
        q, k, v, out, scale, q.stride(0), q.stride(1), length, HEAD=HEAD, ROWS=ROWS, KEYS=KEYS, num_warps=4,
        num_stages=3,
    )  # fmt: skip
