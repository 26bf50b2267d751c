"""A small GPT, trained with Triton kernels only.

    weft run examples/gpt_triton.py
    weft run examples/gpt_triton.py --steps 600 --layers 4 --dtype float16

The model is a character-level GPT-2 without biases in its matrices. Its text is the language reference that comes with
every Python (pydoc_data.topics). Forward, backward and optimiser are the kernels below: matrix products on tensor
cores, flash attention, layer norm, GELU, cross-entropy, embeddings, AdamW. PyTorch gives memory and nothing else: no
autograd, no arithmetic. Master weights, residual stream and sums are f32; what enters a tensor core is bf16 or f16.

The gradient that flows is that of the *sum* of the loss over all characters, so that f16 needs no loss scaling: AdamW
divides by their number. The same script runs on a real GPU with `python`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

LN_EPS = tl.constexpr(1e-5)
LOG2E = tl.constexpr(1.4426950408889634)
TILE_M, TILE_N, TILE_K = 64, 128, 64
LN_ROWS = 32  # rows of a layer norm's program
CHUNK = 1024  # elements of a program of the elementwise kernels


# ---------------------------------------------------------------- parameters and data
@triton.jit
def init_kernel(master, low, offset, n, mean, std, seed, CHUNK: tl.constexpr):
    """Normally distributed weights, and their copies in low precision."""
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    value = mean + std * tl.randn(seed, offset + at)
    tl.store(master + offset + at, value, mask=at < n)
    tl.store(low + offset + at, value.to(low.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["first", "count", "seed"])
def batch_kernel(text, inputs, targets, first, count, seed, T: tl.constexpr):
    """A random stretch of T characters of text[first : first + count], and the same one character later."""
    row = tl.program_id(0)
    start = first + (tl.randint(seed, row).to(tl.uint32, bitcast=True) % (count - T).to(tl.uint32)).to(tl.int32)
    at = tl.arange(0, T)
    tl.store(inputs + row * T + at, tl.load(text + start + at))
    tl.store(targets + row * T + at, tl.load(text + start + at + 1))


# ---------------------------------------------------------------- embedding
@triton.jit(do_not_specialize=["start"])
def embed_kernel(tokens, start, stride, table, positions, x, T: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr):
    """x[sequence, t] = table[tokens[sequence, start + t]] + positions[t]."""
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sequence = tl.program_id(1)
    c = tl.arange(0, C)
    token = tl.load(tokens + sequence * stride + start + t)
    value = tl.load(table + token[:, None] * C + c[None, :]) + tl.load(positions + t[:, None] * C + c[None, :])
    tl.store(x + (sequence * T + t)[:, None] * C + c[None, :], value)


@triton.jit
def embed_backward_kernel(tokens, dx, grad, n, C: tl.constexpr, VOCAB_TILE: tl.constexpr, K: tl.constexpr):
    """The table's gradient as the product of one-hot rows and dx: sums without atomics, in one order."""
    v = tl.program_id(0) * VOCAB_TILE + tl.arange(0, VOCAB_TILE)
    c, k = tl.arange(0, C), tl.arange(0, K)
    total = tl.zeros((VOCAB_TILE, C), tl.float32)
    for start in range(0, n, K):
        token = tl.load(tokens + start + k)
        one_hot = (token[None, :] == v[:, None]).to(dx.dtype.element_ty)
        total = tl.dot(one_hot, tl.load(dx + (start + k)[:, None] * C + c[None, :]), total)
    tl.store(grad + v[:, None] * C + c[None, :], total)


@triton.jit
def sum_rows_kernel(x, out, rows, stride, C: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):
    """out[c] = the sum over x[0 : rows, c]; `stride` elements from row to row."""
    c = tl.program_id(0) * TILE + tl.arange(0, TILE)
    r = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, rows, ROWS):
        inside = ((start + r) < rows)[:, None] & (c < C)[None, :]
        total += tl.load(x + (start + r)[:, None] * stride + c[None, :], mask=inside, other=0.0)
    tl.store(out + c, tl.sum(total, axis=0), mask=c < C)


# ---------------------------------------------------------------- layer norm
@triton.jit
def layer_norm_kernel(x, weight, bias, out, mean, rstd, C: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, C)
    at = row[:, None] * C + c[None, :]
    value = tl.load(x + at)
    centre = tl.sum(value, axis=1) / C
    value -= centre[:, None]
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / C + LN_EPS)
    result = value * scale[:, None] * tl.load(weight + c)[None, :] + tl.load(bias + c)[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty))
    tl.store(mean + row, centre)
    tl.store(rstd + row, scale)


@triton.jit
def layer_norm_backward_kernel(dy, x, weight, mean, rstd, residual, dx, dx_low, partial,
                               C: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """dx = residual + the gradient through the layer norm, also in low precision; partial[program] = (sums for the
    weight's gradient, sums for the bias')."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, C)
    at = row[:, None] * C + c[None, :]
    scale = tl.load(rstd + row)[:, None]
    normal = (tl.load(x + at) - tl.load(mean + row)[:, None]) * scale
    given = tl.load(dy + at).to(tl.float32)
    weighted = given * tl.load(weight + c)[None, :]
    along = tl.sum(weighted * normal, axis=1) / C
    level = tl.sum(weighted, axis=1) / C
    value = tl.load(residual + at) + (weighted - level[:, None] - normal * along[:, None]) * scale
    tl.store(dx + at, value)
    tl.store(dx_low + at, value.to(dx_low.dtype.element_ty))
    partial += tl.program_id(0) * 2 * C
    tl.store(partial + c, tl.sum(given * normal, axis=0))
    tl.store(partial + C + c, tl.sum(given, axis=0))


# ---------------------------------------------------------------- matrix products
@triton.jit
def gelu(x):
    """x * sigmoid(2 z), which is GPT-2's form with the hyperbolic tangent."""
    return x * tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))


@triton.jit
def gelu_slope(x):
    s = tl.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))
    return s + x * s * (1 - s) * 1.5957691216057308 * (1 + 3 * 0.044715 * x * x)


@triton.jit
def matmul_kernel(a, b, out, extra, k, stride_a, stride_b, stride_out, A_TRANSPOSED: tl.constexpr,
                  B_TRANSPOSED: tl.constexpr, EPILOGUE: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
                  TILE_K: tl.constexpr):  # fmt: skip
    """out = epilogue(A @ B), A and B stored row by row, or transposed. All sizes are multiples of the tiles.

    Epilogues: "none"; "add" adds `extra`; "gelu" keeps the product in `extra` and gives its GELU; "gelu_backward"
    multiplies with GELU's slope at `extra`.
    """
    row = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    column = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    depth = tl.arange(0, TILE_K)
    if A_TRANSPOSED:
        a_at = a + row[:, None] + depth[None, :] * stride_a
        a_step = TILE_K * stride_a
    else:
        a_at = a + row[:, None] * stride_a + depth[None, :]
        a_step = TILE_K
    if B_TRANSPOSED:
        b_at = b + column[None, :] * stride_b + depth[:, None]
        b_step = TILE_K
    else:
        b_at = b + column[None, :] + depth[:, None] * stride_b
        b_step = TILE_K * stride_b
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for _ in range(0, k, TILE_K):
        total = tl.dot(tl.load(a_at), tl.load(b_at), total)
        a_at += a_step
        b_at += b_step
    at = row[:, None] * stride_out + column[None, :]
    if EPILOGUE == "add":
        total += tl.load(extra + at)
    elif EPILOGUE == "gelu":
        tl.store(extra + at, total.to(extra.dtype.element_ty))
        total = gelu(total)
    elif EPILOGUE == "gelu_backward":
        total *= gelu_slope(tl.load(extra + at).to(tl.float32))
    tl.store(out + at, total.to(out.dtype.element_ty))


# ---------------------------------------------------------------- attention
@triton.jit
def attention_kernel(qkv, out, logsumexp, scale, T: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
                     QUERIES: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """Causal attention of QUERIES rows of one head: rows of `qkv` hold the queries of all heads, keys, values."""
    C: tl.constexpr = HEADS * D
    first = tl.program_id(0) * QUERIES
    head, sequence = tl.program_id(1), tl.program_id(2)
    q_rows, k_rows, d = first + tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, D)
    qkv += sequence * T * 3 * C + head * D
    q = tl.load(qkv + q_rows[:, None] * 3 * C + d[None, :])
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, D), tl.float32)
    for start in range(0, first + QUERIES, KEYS):
        k_at = qkv + C + (start + k_rows)[:, None] * 3 * C + d[None, :]
        scores = tl.dot(q, tl.load(k_at).T) * (scale * LOG2E)
        scores = tl.where(q_rows[:, None] >= (start + k_rows)[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        p = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        weight = weight * shrink + tl.sum(p, axis=1)
        total = tl.dot(p.to(q.dtype), tl.load(k_at + C), total * shrink[:, None])
        top = new_top
    out += (sequence * T + q_rows)[:, None] * C + head * D + d[None, :]
    tl.store(out, (total / weight[:, None]).to(out.dtype.element_ty))
    tl.store(logsumexp + (sequence * HEADS + head) * T + q_rows, top + tl.log2(weight))


@triton.jit
def attention_delta_kernel(out, dout, delta, T: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
                           ROWS: tl.constexpr):  # fmt: skip
    """delta = the sum over each head's row of out * dout."""
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head, sequence = tl.program_id(1), tl.program_id(2)
    at = (sequence * T + t)[:, None] * HEADS * D + head * D + tl.arange(0, D)[None, :]
    product = tl.load(out + at).to(tl.float32) * tl.load(dout + at).to(tl.float32)
    tl.store(delta + (sequence * HEADS + head) * T + t, tl.sum(product, axis=1))


@triton.jit
def attention_keys_kernel(qkv, dout, dqkv, logsumexp, delta, scale, T: tl.constexpr, HEADS: tl.constexpr,
                          D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """Gradients of KEYS keys and values of one head, from all queries that see them."""
    C: tl.constexpr = HEADS * D
    first = tl.program_id(0) * KEYS
    head, sequence = tl.program_id(1), tl.program_id(2)
    k_rows, q_rows, d = first + tl.arange(0, KEYS), tl.arange(0, QUERIES), tl.arange(0, D)
    base = sequence * T * 3 * C + head * D
    own = base + C + k_rows[:, None] * 3 * C + d[None, :]
    logsumexp += (sequence * HEADS + head) * T
    delta += (sequence * HEADS + head) * T
    k, v = tl.load(qkv + own), tl.load(qkv + own + C)
    dk, dv = tl.zeros((KEYS, D), tl.float32), tl.zeros((KEYS, D), tl.float32)
    for start in range(first // QUERIES * QUERIES, T, QUERIES):
        rows = start + q_rows
        q = tl.load(qkv + base + rows[:, None] * 3 * C + d[None, :])
        do = tl.load(dout + (sequence * T + rows)[:, None] * C + head * D + d[None, :])
        scores = tl.dot(k, q.T) * (scale * LOG2E) - tl.load(logsumexp + rows)[None, :]
        p = tl.where(rows[None, :] >= k_rows[:, None], tl.exp2(scores), 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv)
        ds = p * (tl.dot(v, do.T) - tl.load(delta + rows)[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk)
    tl.store(dqkv + own, (dk * scale).to(dqkv.dtype.element_ty))
    tl.store(dqkv + own + C, dv.to(dqkv.dtype.element_ty))


@triton.jit
def attention_queries_kernel(qkv, dout, dqkv, logsumexp, delta, scale, T: tl.constexpr, HEADS: tl.constexpr,
                             D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):  # fmt: skip
    """Gradients of QUERIES queries of one head, from all keys that they see."""
    C: tl.constexpr = HEADS * D
    first = tl.program_id(0) * QUERIES
    head, sequence = tl.program_id(1), tl.program_id(2)
    q_rows, k_rows, d = first + tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, D)
    base = sequence * T * 3 * C + head * D
    own = base + q_rows[:, None] * 3 * C + d[None, :]
    row_values = (sequence * HEADS + head) * T + q_rows
    q = tl.load(qkv + own)
    do = tl.load(dout + (sequence * T + q_rows)[:, None] * C + head * D + d[None, :])
    top, level = tl.load(logsumexp + row_values), tl.load(delta + row_values)
    dq = tl.zeros((QUERIES, D), tl.float32)
    for start in range(0, first + QUERIES, KEYS):
        k_at = qkv + base + C + (start + k_rows)[:, None] * 3 * C + d[None, :]
        k, v = tl.load(k_at), tl.load(k_at + C)
        scores = tl.dot(q, k.T) * (scale * LOG2E) - top[:, None]
        p = tl.where(q_rows[:, None] >= (start + k_rows)[None, :], tl.exp2(scores), 0.0)
        ds = p * (tl.dot(do, v.T) - level[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq)
    tl.store(dqkv + own, (dq * scale).to(dqkv.dtype.element_ty))


# ---------------------------------------------------------------- loss
@triton.jit
def cross_entropy_kernel(logits, targets, losses, dlogits, vocabulary, V: tl.constexpr, ROWS: tl.constexpr):
    """Loss of each row in nats, and the gradient of their sum. Columns from `vocabulary` on are padding."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    v = tl.arange(0, V)
    at = row[:, None] * V + v[None, :]
    target = tl.load(targets + row)
    value = tl.where((v < vocabulary)[None, :], tl.load(logits + at), float("-inf"))
    value -= tl.max(value, axis=1)[:, None]
    power = tl.exp(value)
    weight = tl.sum(power, axis=1)
    right = v[None, :] == target[:, None]
    tl.store(losses + row, tl.log(weight) - tl.sum(tl.where(right, value, 0.0), axis=1))
    gradient = power / weight[:, None] - right.to(tl.float32)
    tl.store(dlogits + at, gradient.to(dlogits.dtype.element_ty))


@triton.jit(do_not_specialize=["row", "place", "seed"])
def sample_kernel(logits, row_stride, row, tokens, place, stride, vocabulary, temperature, seed, V: tl.constexpr):
    """Draws a character for each sequence: the largest of logit / temperature plus Gumbel noise."""
    sequence = tl.program_id(0)
    v = tl.arange(0, V)
    noise = -tl.log(-tl.log(tl.rand(seed, sequence * V + v) + 1e-9) + 1e-9)
    value = tl.load(logits + sequence * row_stride + row * V + v) / temperature + noise
    choice = tl.argmax(tl.where(v < vocabulary, value, float("-inf")), axis=0)
    tl.store(tokens + sequence * stride + place, choice)


# ---------------------------------------------------------------- optimiser
@triton.jit
def square_sums_kernel(grad, partial, n, CHUNK: tl.constexpr):
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(grad + at, mask=at < n, other=0.0)
    tl.store(partial + tl.program_id(0), tl.sum(value * value, axis=0))


@triton.jit
def adamw_kernel(master, low, grad, first, second, square_sums, sums, n, decayed, grad_scale, clip, rate, decay,
                 correction1, correction2, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr,
                 SUMS: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """One step of AdamW; gradients times grad_scale are clipped to the norm `clip`. A step with gradients that are not
    finite is left out. The first `decayed` parameters decay."""
    s = tl.arange(0, SUMS)
    norm = tl.sqrt(tl.sum(tl.load(square_sums + s, mask=s < sums, other=0.0), axis=0)) * grad_scale
    if norm < float("inf"):
        at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
        inside = at < n
        g = tl.load(grad + at, mask=inside) * (grad_scale * tl.minimum(clip / norm, 1.0))
        m = BETA1 * tl.load(first + at, mask=inside) + (1 - BETA1) * g
        v = BETA2 * tl.load(second + at, mask=inside) + (1 - BETA2) * g * g
        p = tl.load(master + at, mask=inside)
        p *= 1 - rate * tl.where(at < decayed, decay, 0.0)
        p -= rate * (m / correction1) / (tl.sqrt(v / correction2) + EPS)
        tl.store(first + at, m, mask=inside)
        tl.store(second + at, v, mask=inside)
        tl.store(master + at, p, mask=inside)
        tl.store(low + at, p.to(low.dtype.element_ty), mask=inside)


# ---------------------------------------------------------------- model
@dataclass(frozen=True)
class Shape:
    """Sizes of a model. Width, context and padded vocabulary are powers of two from 128; 16 or more columns a head."""

    vocabulary: int
    layers: int = 3
    width: int = 128
    heads: int = 4
    context: int = 128

    def __post_init__(self) -> None:
        for name in ("width", "context"):
            size = getattr(self, name)
            if size < 128 or size & (size - 1):
                raise ValueError(f"{name}: found {size}, expected a power of two from 128 on")
        if self.heads < 1 or self.width % self.heads or self.head_width not in (16, 32, 64, 128):
            raise ValueError(f"heads: found {self.heads}, expected width / heads of 16, 32, 64 or 128")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def padded(self) -> int:
        """The vocabulary's size in memory."""
        return max(128, triton.next_power_of_2(self.vocabulary))

    def parameters(self) -> dict[str, tuple[tuple[int, ...], float, float]]:
        """Shape, mean and standard deviation at the start of every parameter; those that decay come first."""
        c, layers = self.width, self.layers
        std = c**-0.5
        found: dict[str, tuple[tuple[int, ...], float, float]] = {
            "table": ((self.padded, c), 0, 0.1),
            "positions": ((self.context, c), 0, 0.1),
            "head": ((c, self.padded), 0, 0.02),
        }
        for i in range(layers):
            found[f"{i}.qkv"] = ((c, 3 * c), 0, std)
            found[f"{i}.mix"] = ((c, c), 0, std / (2 * layers) ** 0.5)
            found[f"{i}.up"] = ((c, 4 * c), 0, std)
            found[f"{i}.down"] = ((4 * c, c), 0, std / (8 * layers) ** 0.5)
        for name in [f"{i}.ln{j}" for i in range(self.layers) for j in (1, 2)] + ["ln"]:
            found[f"{name}.weight"] = ((c,), 1, 0)
            found[f"{name}.bias"] = ((c,), 0, 0)
        return found


class Parameters:
    """All parameters in one buffer, their low-precision copies, gradients and AdamW's moments in buffers beside it."""

    def __init__(self, shape: Shape, low: torch.dtype, device: torch.device, seed: int):
        table = shape.parameters()
        self.size = sum(math.prod(dims) for dims, _, _ in table.values())
        self.decayed = sum(math.prod(dims) for dims, _, _ in table.values() if len(dims) > 1)
        self.flat = torch.zeros(self.size, dtype=torch.float32, device=device)
        self.flat_low = torch.zeros(self.size, dtype=low, device=device)
        self.flat_grad, self.first, self.second = (torch.zeros_like(self.flat) for _ in range(3))
        self.square_sums = torch.zeros(triton.cdiv(self.size, CHUNK), dtype=torch.float32, device=device)
        self.master: dict[str, torch.Tensor] = {}
        self.low: dict[str, torch.Tensor] = {}
        self.grad: dict[str, torch.Tensor] = {}
        offset = 0
        for name, (dims, mean, std) in table.items():
            n = math.prod(dims)
            init_kernel[(triton.cdiv(n, CHUNK),)](
                self.flat, self.flat_low, offset, n, float(mean), float(std), seed, CHUNK=CHUNK
            )
            for views, buffer in ((self.master, self.flat), (self.low, self.flat_low), (self.grad, self.flat_grad)):
                views[name] = buffer[offset : offset + n].view(dims)
            offset += n

    def adamw(self, step: int, count: int, rate: float, decay: float = 0.1, clip: float = 1.0) -> None:
        """One step, number `step` from 1 on, with gradients that are sums over `count` characters."""
        programs = triton.cdiv(self.size, CHUNK)
        square_sums_kernel[(programs,)](self.flat_grad, self.square_sums, self.size, CHUNK=CHUNK)
        beta1, beta2 = 0.9, 0.99
        adamw_kernel[(programs,)](
            self.flat, self.flat_low, self.flat_grad, self.first, self.second, self.square_sums, programs,
            self.size, self.decayed, 1 / count, clip, rate, decay, 1 - beta1**step, 1 - beta2**step,
            BETA1=beta1, BETA2=beta2, EPS=1e-8, SUMS=triton.next_power_of_2(programs), CHUNK=CHUNK,
        )  # fmt: skip


def matmul(a, b, out, extra=None, *, a_transposed=False, b_transposed=False, epilogue="none") -> None:
    """out = epilogue(A @ B), see matmul_kernel; `a` and `b` as they lie in memory."""
    (m, n), k = out.shape, a.shape[0 if a_transposed else 1]
    assert k == b.shape[1 if b_transposed else 0] and k % TILE_K == m % TILE_M == n % TILE_N == 0, (a.shape, b.shape)
    matmul_kernel[(m // TILE_M, n // TILE_N)](
        a, b, out, out if extra is None else extra, k, a.stride(0), b.stride(0), out.stride(0),
        A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed, EPILOGUE=epilogue,
        TILE_M=TILE_M, TILE_N=TILE_N, TILE_K=TILE_K, num_stages=2,
    )  # fmt: skip


class GPT:
    """A model with the memory for one batch of `batch` sequences.

    low: torch.bfloat16 or torch.float16, the type in which matrices are multiplied.
    """

    def __init__(self, shape: Shape, batch: int, low: torch.dtype = torch.bfloat16, seed: int = 1,
                 device: torch.device | None = None, parameters: Parameters | None = None):  # fmt: skip
        self.shape, self.batch = shape, batch
        device = device or triton.runtime.driver.active.get_active_torch_device()
        self.parameters = parameters or Parameters(shape, low, device, seed)
        n, c, t, h = batch * shape.context, shape.width, shape.context, shape.heads
        self.rows = n

        def memory(*dims: int, dtype: torch.dtype = low) -> torch.Tensor:
            return torch.zeros(dims, dtype=dtype, device=device)

        f32 = torch.float32
        self.inputs, self.targets = memory(batch, t, dtype=torch.int32), memory(batch, t, dtype=torch.int32)
        # What the backward pass needs of each layer; x is the residual stream before the layer's two halves.
        layer = {"normal1": (n, c), "qkv": (n, 3 * c), "mixed": (n, c), "normal2": (n, c), "up": (n, 4 * c),
                 "active": (n, 4 * c)}  # fmt: skip
        layer_f32 = {"x1": (n, c), "x2": (n, c), "mean1": (n,), "rstd1": (n,), "mean2": (n,), "rstd2": (n,),
                     "logsumexp": (batch * h, t)}  # fmt: skip
        self.layers = [
            {name: memory(*dims) for name, dims in layer.items()}
            | {name: memory(*dims, dtype=f32) for name, dims in layer_f32.items()}
            for _ in range(shape.layers)
        ]
        self.x, self.normal = memory(n, c, dtype=f32), memory(n, c)
        self.mean, self.rstd = memory(n, dtype=f32), memory(n, dtype=f32)
        self.logits, self.losses = memory(n, shape.padded, dtype=f32), memory(n, dtype=f32)
        self.loss_sum = memory(1, dtype=f32)
        # Gradients: of the residual stream (two, used in turn), and of what lies between.
        self.zeros = memory(n, c, dtype=f32)
        self.dx, self.dx_low = [memory(n, c, dtype=f32) for _ in range(2)], [memory(n, c) for _ in range(2)]
        self.dlogits, self.dnormal, self.dmixed = memory(n, shape.padded), memory(n, c), memory(n, c)
        self.dup, self.dqkv = memory(n, 4 * c), memory(n, 3 * c)
        self.delta = memory(batch * h, t, dtype=f32)
        self.partial = memory(n // LN_ROWS, 2 * c, dtype=f32)

    # ------------------------------------------------------------ forward
    def forward(self, tokens: torch.Tensor, start: int = 0) -> None:
        """Logits of tokens[:, start : start + context]."""
        s, p = self.shape, self.parameters.low
        master = self.parameters.master
        x = self.layers[0]["x1"]
        embed_kernel[(s.context // LN_ROWS, self.batch)](
            tokens, start, tokens.stride(0), master["table"], master["positions"], x,
            T=s.context, C=s.width, ROWS=LN_ROWS,
        )  # fmt: skip
        for i, layer in enumerate(self.layers):
            after = self.layers[i + 1]["x1"] if i + 1 < s.layers else self.x
            self._layer_norm(f"{i}.ln1", layer["x1"], layer["normal1"], layer["mean1"], layer["rstd1"])
            matmul(layer["normal1"], p[f"{i}.qkv"], layer["qkv"])
            attention_kernel[(s.context // 64, s.heads, self.batch)](
                layer["qkv"], layer["mixed"], layer["logsumexp"], s.head_width**-0.5, **self._attention_sizes()
            )
            matmul(layer["mixed"], p[f"{i}.mix"], layer["x2"], layer["x1"], epilogue="add")
            self._layer_norm(f"{i}.ln2", layer["x2"], layer["normal2"], layer["mean2"], layer["rstd2"])
            matmul(layer["normal2"], p[f"{i}.up"], layer["active"], layer["up"], epilogue="gelu")
            matmul(layer["active"], p[f"{i}.down"], after, layer["x2"], epilogue="add")
        self._layer_norm("ln", self.x, self.normal, self.mean, self.rstd)
        matmul(self.normal, p["head"], self.logits)

    def loss(self) -> None:
        """Losses of the targets, and the gradient of the logits."""
        s = self.shape
        cross_entropy_kernel[(self.rows // 16,)](
            self.logits, self.targets, self.losses, self.dlogits, s.vocabulary, V=s.padded, ROWS=16
        )

    def mean_loss(self) -> float:
        """Nats per character. The host waits for it."""
        sum_rows_kernel[(1,)](self.losses, self.loss_sum, self.rows, 1, C=1, TILE=1, ROWS=1024)
        return self.loss_sum.item() / self.rows

    def _attention_sizes(self) -> dict[str, int]:
        s = self.shape
        return {"T": s.context, "HEADS": s.heads, "D": s.head_width, "QUERIES": 64, "KEYS": 64}

    def _layer_norm(self, name: str, x, out, mean, rstd) -> None:
        p = self.parameters.master
        layer_norm_kernel[(self.rows // LN_ROWS,)](
            x, p[f"{name}.weight"], p[f"{name}.bias"], out, mean, rstd, C=self.shape.width, ROWS=LN_ROWS
        )

    # ------------------------------------------------------------ backward
    def backward(self) -> None:
        """Gradients of the sum of the losses, into the parameters' gradients."""
        s, p, grad = self.shape, self.parameters.low, self.parameters.grad
        matmul(self.normal, self.dlogits, grad["head"], a_transposed=True)
        matmul(self.dlogits, p["head"], self.dnormal, b_transposed=True)
        self._layer_norm_backward("ln", self.x, self.mean, self.rstd, self.zeros, 0)
        for i in reversed(range(s.layers)):
            layer = self.layers[i]
            matmul(layer["active"], self.dx_low[0], grad[f"{i}.down"], a_transposed=True)
            matmul(self.dx_low[0], p[f"{i}.down"], self.dup, layer["up"], b_transposed=True, epilogue="gelu_backward")
            matmul(layer["normal2"], self.dup, grad[f"{i}.up"], a_transposed=True)
            matmul(self.dup, p[f"{i}.up"], self.dnormal, b_transposed=True)
            self._layer_norm_backward(f"{i}.ln2", layer["x2"], layer["mean2"], layer["rstd2"], self.dx[0], 1)
            matmul(layer["mixed"], self.dx_low[1], grad[f"{i}.mix"], a_transposed=True)
            matmul(self.dx_low[1], p[f"{i}.mix"], self.dmixed, b_transposed=True)
            self._attention_backward(layer)
            matmul(layer["normal1"], self.dqkv, grad[f"{i}.qkv"], a_transposed=True)
            matmul(self.dqkv, p[f"{i}.qkv"], self.dnormal, b_transposed=True)
            self._layer_norm_backward(f"{i}.ln1", layer["x1"], layer["mean1"], layer["rstd1"], self.dx[1], 0)
        embed_backward_kernel[(s.padded // 64,)](
            self.inputs, self.dx_low[0], grad["table"], self.rows, C=s.width, VOCAB_TILE=64, K=64, num_stages=2
        )
        size = s.context * s.width
        sum_rows_kernel[(size // 256,)](
            self.dx[0], grad["positions"], self.batch, size, C=size, TILE=256, ROWS=8
        )

    def _layer_norm_backward(self, name: str, x, mean, rstd, residual, to: int) -> None:
        """Takes self.dnormal; writes self.dx[to]."""
        grad, c = self.parameters.grad, self.shape.width
        programs = self.rows // LN_ROWS
        layer_norm_backward_kernel[(programs,)](
            self.dnormal, x, self.parameters.master[f"{name}.weight"], mean, rstd, residual, self.dx[to],
            self.dx_low[to], self.partial, C=c, ROWS=LN_ROWS,
        )  # fmt: skip
        # Weight and bias lie side by side, as their sums do.
        sum_rows_kernel[(2 * c // 256,)](
            self.partial, grad[f"{name}.weight"], programs, 2 * c, C=2 * c, TILE=256, ROWS=8
        )

    def _attention_backward(self, layer: dict[str, torch.Tensor]) -> None:
        s = self.shape
        grid = (s.context // 64, s.heads, self.batch)
        sizes = self._attention_sizes()
        attention_delta_kernel[grid](
            layer["mixed"], self.dmixed, self.delta, T=s.context, HEADS=s.heads, D=s.head_width, ROWS=64
        )
        given = (layer["qkv"], self.dmixed, self.dqkv, layer["logsumexp"], self.delta, s.head_width**-0.5)
        attention_keys_kernel[grid](*given, **sizes)
        attention_queries_kernel[grid](*given, **sizes)


# ---------------------------------------------------------------- text
class Text:
    """The language reference that comes with Python, as numbers: the last tenth is held out."""

    def __init__(self, device: torch.device):
        from pydoc_data import topics

        text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
        counts = Counter(text)
        self.characters = sorted(counts)
        self.number = {character: i for i, character in enumerate(self.characters)}
        self.entropy = -sum(n / len(text) * math.log(n / len(text)) for n in counts.values())
        self.tokens = torch.tensor([self.number[character] for character in text], dtype=torch.int32, device=device)
        self.held_out = len(text) * 9 // 10

    def draw(self, model: GPT, seed: int, held_out: bool = False) -> None:
        """Fills a model's inputs and targets with random stretches."""
        first = self.held_out if held_out else 0
        count = len(self.tokens) - first if held_out else self.held_out
        batch_kernel[(model.batch,)](
            self.tokens, model.inputs, model.targets, first, count, seed, T=model.shape.context
        )


def write_text(model: GPT, text: Text, prompt: str, length: int, temperature: float, seed: int) -> str:
    """`length` characters that a model of batch 1 continues a prompt with."""
    s = model.shape
    tokens = torch.zeros(1, max(s.context, len(prompt) + length), dtype=torch.int32, device=text.tokens.device)
    tokens[0, : len(prompt)] = torch.tensor([text.number[character] for character in prompt], dtype=torch.int32)
    for place in range(len(prompt), len(prompt) + length):
        start = max(0, place - s.context)
        model.forward(tokens, start)
        sample_kernel[(1,)](
            model.logits, s.context * s.padded, place - 1 - start, tokens, place, tokens.stride(0), s.vocabulary,
            temperature, seed + place, V=s.padded,
        )  # fmt: skip
    return "".join(text.characters[token] for token in tokens[0, : len(prompt) + length].tolist())


def held_out_loss(model: GPT, text: Text, batches: int = 4) -> float:
    """Nats per character on text that the model has not seen."""
    total = 0.0
    for i in range(batches):
        text.draw(model, 1_000_000 + i, held_out=True)
        model.forward(model.inputs)
        model.loss()
        total += model.mean_loss()
    return total / batches


def train(model: GPT, text: Text, steps: int, rate: float, seed: int) -> None:
    """Trains, printing the loss and how long a step takes."""
    warm_up = max(1, steps // 20)
    began = shown = time.perf_counter()
    first = 0
    for step in range(1, steps + 1):
        text.draw(model, seed * 100_000 + step)
        model.forward(model.inputs)
        model.loss()
        model.backward()
        falling = 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))
        now = step / warm_up if step < warm_up else falling
        model.parameters.adamw(step, model.rows, rate * now)
        if step == 1 or step % 50 == 0 or step == steps:
            loss = model.mean_loss()
            moment = time.perf_counter()
            pace = (moment - shown) / (step - first)
            print(f"step {step:4}  loss {loss:.3f} nats per character  {pace:6.3f} s a step  {moment - began:6.1f} s",
                  flush=True)  # fmt: skip
            shown, first = moment, step


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a small GPT with Triton kernels.")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=128, help="characters that the model looks back on")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--sample", type=int, default=400, help="characters to write at the end")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    began = time.perf_counter()
    device = triton.runtime.driver.active.get_active_torch_device()
    text = Text(device)
    shape = Shape(len(text.characters), options.layers, options.width, options.heads, options.context)
    low = getattr(torch, options.dtype)
    model = GPT(shape, options.batch, low, options.seed, device)
    print(f"{len(text.tokens):,} characters, {len(text.characters)} different ones; "
          f"{model.parameters.size:,} parameters, {options.dtype}")  # fmt: skip
    print(f"unigram entropy of the text: {text.entropy:.3f} nats per character")
    train(model, text, options.steps, options.rate, options.seed)
    loss = held_out_loss(model, text)
    print(f"held-out loss {loss:.3f} nats per character, {text.entropy - loss:.3f} below the unigram entropy")
    if options.sample:
        writer = GPT(shape, 1, low, options.seed, device, model.parameters)
        print("-" * 80)
        print(write_text(writer, text, "The ", options.sample, options.temperature, options.seed))
        print("-" * 80)
    print(f"{time.perf_counter() - began:.1f} s in all")


if __name__ == "__main__":
    main()
