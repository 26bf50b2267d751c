"""Flash attention, forward and backward, causal or not, for any number of queries and keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def forward_kernel(q, k, v, out, logsumexp, scale, queries, keys, CAUSAL: tl.constexpr, D: tl.constexpr,
                   TILE_Q: tl.constexpr, TILE_K: tl.constexpr):  # fmt: skip
    """Arrays are (heads, rows, D). Query i sees the keys up to i + keys - queries where CAUSAL."""
    first, head = tl.program_id(0) * TILE_Q, tl.program_id(1)
    row, key, d = first + tl.arange(0, TILE_Q), tl.arange(0, TILE_K), tl.arange(0, D)
    q += head * queries * D
    k += head * keys * D
    v += head * keys * D
    query = tl.load(q + row[:, None] * D + d[None, :], mask=(row < queries)[:, None], other=0.0)
    top = tl.full((TILE_Q,), float("-inf"), tl.float32)
    weight = tl.zeros((TILE_Q,), tl.float32)
    total = tl.zeros((TILE_Q, D), tl.float32)
    last = keys
    if CAUSAL:
        last = tl.minimum(keys, first + TILE_Q + keys - queries)
    for start in range(0, last, TILE_K):
        at = start + key
        seen = (at < keys)[None, :]
        if CAUSAL:
            seen = seen & (at[None, :] <= (row + keys - queries)[:, None])
        right = tl.load(k + at[None, :] * D + d[:, None], mask=(at < keys)[None, :], other=0.0)
        scores = tl.where(seen, tl.dot(query, right) * (scale * LOG2E), float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        p = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        weight = weight * shrink + tl.sum(p, axis=1)
        value = tl.load(v + at[:, None] * D + d[None, :], mask=(at < keys)[:, None], other=0.0)
        total = tl.dot(p.to(value.dtype), value, total * shrink[:, None])
        top = higher
    result = (total / weight[:, None]).to(out.dtype.element_ty)
    tl.store(out + (head * queries + row)[:, None] * D + d[None, :], result, mask=(row < queries)[:, None])
    tl.store(logsumexp + head * queries + row, top + tl.log2(weight), mask=row < queries)


@triton.jit
def delta_kernel(out, dout, delta, rows, D: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * D + tl.arange(0, D)[None, :]
    inside = (row < rows)[:, None]
    product = tl.load(out + at, mask=inside, other=0.0).to(tl.float32) * tl.load(dout + at, mask=inside, other=0.0)
    tl.store(delta + row, tl.sum(product, axis=1), mask=row < rows)


@triton.jit
def keys_kernel(q, k, v, dout, dk, dv, logsumexp, delta, scale, queries, keys, CAUSAL: tl.constexpr, D: tl.constexpr,
                TILE_Q: tl.constexpr, TILE_K: tl.constexpr):  # fmt: skip
    first, head = tl.program_id(0) * TILE_K, tl.program_id(1)
    key, d = first + tl.arange(0, TILE_K), tl.arange(0, D)
    own = (head * keys + key)[:, None] * D + d[None, :]
    right = tl.load(k + own, mask=(key < keys)[:, None], other=0.0)
    value = tl.load(v + own, mask=(key < keys)[:, None], other=0.0)
    sum_k, sum_v = tl.zeros((TILE_K, D), tl.float32), tl.zeros((TILE_K, D), tl.float32)
    start = 0
    if CAUSAL:
        start = tl.maximum(first - (keys - queries), 0) // TILE_Q * TILE_Q
    for begin in range(start, queries, TILE_Q):
        row = begin + tl.arange(0, TILE_Q)
        inside = row < queries
        at = (head * queries + row)[:, None] * D + d[None, :]
        query = tl.load(q + at, mask=inside[:, None], other=0.0)
        given = tl.load(dout + at, mask=inside[:, None], other=0.0)
        top = tl.load(logsumexp + head * queries + row, mask=inside, other=float("inf"))
        level = tl.load(delta + head * queries + row, mask=inside, other=0.0)
        p = tl.exp2(tl.dot(right, query.T) * (scale * LOG2E) - top[None, :])  # keys x queries
        if CAUSAL:
            p = tl.where(key[:, None] <= (row + keys - queries)[None, :], p, 0.0)
        sum_v = tl.dot(p.to(given.dtype), given, sum_v)
        ds = p * (tl.dot(value, given.T) - level[None, :])
        sum_k = tl.dot(ds.to(query.dtype), query, sum_k)
    tl.store(dk + own, (sum_k * scale).to(dk.dtype.element_ty), mask=(key < keys)[:, None])
    tl.store(dv + own, sum_v.to(dv.dtype.element_ty), mask=(key < keys)[:, None])


@triton.jit
def queries_kernel(q, k, v, dout, dq, logsumexp, delta, scale, queries, keys, CAUSAL: tl.constexpr, D: tl.constexpr,
                   TILE_Q: tl.constexpr, TILE_K: tl.constexpr):  # fmt: skip
    first, head = tl.program_id(0) * TILE_Q, tl.program_id(1)
    row, d = first + tl.arange(0, TILE_Q), tl.arange(0, D)
    inside = row < queries
    own = (head * queries + row)[:, None] * D + d[None, :]
    query = tl.load(q + own, mask=inside[:, None], other=0.0)
    given = tl.load(dout + own, mask=inside[:, None], other=0.0)
    top = tl.load(logsumexp + head * queries + row, mask=inside, other=float("inf"))
    level = tl.load(delta + head * queries + row, mask=inside, other=0.0)
    total = tl.zeros((TILE_Q, D), tl.float32)
    last = keys
    if CAUSAL:
        last = tl.minimum(keys, first + TILE_Q + keys - queries)
    for start in range(0, last, TILE_K):
        key = start + tl.arange(0, TILE_K)
        at = (head * keys + key)[:, None] * D + d[None, :]
        right = tl.load(k + at, mask=(key < keys)[:, None], other=0.0)
        value = tl.load(v + at, mask=(key < keys)[:, None], other=0.0)
        p = tl.exp2(tl.dot(query, right.T) * (scale * LOG2E) - top[:, None])
        seen = (key < keys)[None, :]
        if CAUSAL:
            seen = seen & (key[None, :] <= (row + keys - queries)[:, None])
        ds = tl.where(seen, p * (tl.dot(given, value.T) - level[:, None]), 0.0)
        total = tl.dot(ds.to(right.dtype), right, total)
    tl.store(dq + own, (total * scale).to(dq.dtype.element_ty), mask=inside[:, None])


def forward(q, k, v, causal, tile=(64, 32), **options):
    """(result, base-2 logarithm of each row's sum) for q of (heads, queries, D), k and v of (heads, keys, D)."""
    (heads, queries, d), keys = q.shape, k.shape[1]
    out, logsumexp = torch.empty_like(q), torch.empty((heads, queries))
    forward_kernel[(triton.cdiv(queries, tile[0]), heads)](
        q, k, v, out, logsumexp, d**-0.5, queries, keys, CAUSAL=causal, D=d, TILE_Q=tile[0], TILE_K=tile[1], **options
    )
    return out, logsumexp


def backward(q, k, v, out, dout, logsumexp, causal, tile=(64, 64), **options):
    """Gradients of q, k and v."""
    (heads, queries, d), keys = q.shape, k.shape[1]
    delta = torch.empty((heads, queries))
    delta_kernel[(triton.cdiv(heads * queries, 64),)](out, dout, delta, heads * queries, D=d, ROWS=64)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    rest = (logsumexp, delta, d**-0.5, queries, keys, causal, d, *tile)
    keys_kernel[(triton.cdiv(keys, tile[1]), heads)](q, k, v, dout, dk, dv, *rest, **options)
    queries_kernel[(triton.cdiv(queries, tile[0]), heads)](q, k, v, dout, dq, *rest, **options)
    return dq, dk, dv
