"""Layer norm, forward and backward; rows' shares of the weights' gradients are added up under locks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def forward_kernel(x, weight, bias, out, mean, rstd, stride, columns, eps, BLOCK: tl.constexpr):
    """Three passes over a row of any length: mean, variance, result."""
    row = tl.program_id(0)
    x += row * stride
    out += row * stride
    c = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        total += tl.load(x + start + c, mask=start + c < columns, other=0.0).to(tl.float32)
    centre = tl.sum(total, axis=0) / columns
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        value = tl.load(x + start + c, mask=start + c < columns, other=0.0).to(tl.float32)
        value = tl.where(start + c < columns, value - centre, 0.0)
        squares += value * value
    scale = 1 / tl.sqrt(tl.sum(squares, axis=0) / columns + eps)
    tl.store(mean + row, centre)
    tl.store(rstd + row, scale)
    for start in range(0, columns, BLOCK):
        inside = start + c < columns
        w = tl.load(weight + start + c, mask=inside).to(tl.float32)
        b = tl.load(bias + start + c, mask=inside).to(tl.float32)
        value = tl.load(x + start + c, mask=inside).to(tl.float32)
        tl.store(out + start + c, ((value - centre) * scale * w + b).to(out.dtype.element_ty), mask=inside)


def forward(x, weight, bias, eps=1e-5, block=128, **options):
    """(result, mean of each row, 1 / standard deviation of each row)."""
    rows, columns = x.shape
    out = torch.empty_like(x)
    mean, rstd = torch.empty(rows), torch.empty(rows)
    forward_kernel[(rows,)](x, weight, bias, out, mean, rstd, x.stride(0), columns, eps, BLOCK=block, **options)
    return out, mean, rstd


@triton.jit
def backward_kernel(dy, x, weight, mean, rstd, dx, dweight, dbias, lock, filled, stride, columns,
                    BLOCK: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    """dx of a row; the row's shares of dweight and dbias go to one of GROUPS buffers, each with a lock."""
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    inside = c < columns
    value = tl.load(x + row * stride + c, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(dy + row * stride + c, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(rstd + row)
    normal = tl.where(inside, (value - tl.load(mean + row)) * scale, 0.0)
    weighted = given * w
    along = tl.sum(normal * weighted, axis=0) / columns
    level = tl.sum(weighted, axis=0) / columns
    result = (weighted - normal * along - level) * scale
    tl.store(dx + row * stride + c, result.to(dx.dtype.element_ty), mask=inside)
    group = row % GROUPS
    dweight += group * columns + c
    dbias += group * columns + c
    dw = given * normal
    db = given
    while tl.atomic_cas(lock + group, 0, 1) == 1:
        pass
    if tl.load(filled + group) == 0:
        tl.atomic_xchg(filled + group, 1)
    else:
        dw += tl.load(dweight, mask=inside)
        db += tl.load(dbias, mask=inside)
    tl.store(dweight, dw, mask=inside)
    tl.store(dbias, db, mask=inside)
    tl.debug_barrier()
    tl.atomic_xchg(lock + group, 0)


@triton.jit
def columns_kernel(x, out, rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, rows, ROWS):
        r = start + tl.arange(0, ROWS)
        inside = (r < rows)[:, None] & (c < columns)[None, :]
        total += tl.load(x + r[:, None] * columns + c[None, :], mask=inside, other=0.0)
    tl.store(out + c, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=c < columns)


def backward(dy, x, weight, mean, rstd, groups=4, **options):
    """Gradients of x, weight and bias."""
    rows, columns = x.shape
    dx = torch.empty_like(x)
    shares = torch.full((2, groups, columns), float("nan"))
    lock, filled = torch.zeros(groups, dtype=torch.int32), torch.zeros(groups, dtype=torch.int32)
    backward_kernel[(rows,)](
        dy, x, weight, mean, rstd, dx, shares[0], shares[1], lock, filled, x.stride(0), columns,
        BLOCK=triton.next_power_of_2(columns), GROUPS=groups, **options,
    )  # fmt: skip
    used = min(rows, groups)
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    for share, out in zip(shares, (dweight, dbias)):
        columns_kernel[(triton.cdiv(columns, 64),)](share, out, used, columns, ROWS=8, BLOCK=64)
    return dx, dweight, dbias
