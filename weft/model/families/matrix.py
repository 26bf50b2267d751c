"""Matrix products: cuBLAS and cuBLASLt."""

from __future__ import annotations

import math

from weft.model.families.shapes import complex_factor, matrix_pipe, operands_of, plain_pipe, reads, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call, Operand


def gemm(name: str, batch: int, m: int, n: int, k: int, dtype: str, tf32: bool, bytes_read: float,
         bytes_written: float, family: str = "gemm", pipe: str = "") -> Profile:  # fmt: skip
    """C[m, n] = A[m, k] B[k, n], `batch` times."""
    unit = pipe or matrix_pipe(dtype, tf32)
    flops = 2.0 * batch * m * n * k * complex_factor(dtype)
    return Profile(name, family, ((unit, flops),), bytes_read, bytes_written, gemm=(batch, m, n, k))


def _product(call: Call, a: Operand, b: Operand, name: str) -> Profile:
    """a[..., m, k] times b[..., k, n]."""
    *lead, m, k = a.shape
    n = b.shape[-1]
    return gemm(name, math.prod(lead), m, n, k, a.dtype, call.tf32_matmul, reads(call), writes(call))


@rule("gemm", "mm bmm")
def price_product(call: Call) -> Profile:
    """mm(a, b), bmm(a, b)"""
    return _product(call, call.inputs[0], call.inputs[1], "gemm")


@rule("gemm", "addmm baddbmm _addmm_activation")
def price_product_sum(call: Call) -> Profile:
    """addmm(c, a, b): the sum and the activation are part of the kernel"""
    return _product(call, call.inputs[1], call.inputs[2], "gemm")


@rule("gemm", "addbmm")
def price_batch_sum(call: Call) -> Profile:
    """addbmm(c, a, b): the batch is part of the inner dimension"""
    a, b = call.inputs[1], call.inputs[2]
    batch, m, k = a.shape
    return gemm("gemm", 1, m, b.shape[-1], batch * k, a.dtype, call.tf32_matmul, reads(call), writes(call))


@rule("gemm", "linear")
def price_linear(call: Call) -> Profile:
    """linear(x, w, bias)"""
    x, w = call.inputs[0], call.inputs[1]
    rows = math.prod(x.shape[:-1])
    n = w.shape[0] if len(w.shape) > 1 else 1
    return gemm("gemm", 1, rows, n, x.shape[-1], x.dtype, call.tf32_matmul, reads(call), writes(call))


@rule("gemm", "linear_backward")
def price_linear_backward(call: Call) -> list[Profile]:
    """linear_backward(x, grad, w, mask): one product each for the gradients of input and weight"""
    x, grad, w = call.inputs[0], call.inputs[1], call.inputs[2]
    rows, n, k = math.prod(x.shape[:-1]), w.shape[0], w.shape[1]
    size = x.itemsize
    return [
        gemm("gemm", 1, rows, k, n, x.dtype, call.tf32_matmul, grad.nbytes + w.nbytes, rows * k * size),
        gemm("gemm", 1, n, k, rows, x.dtype, call.tf32_matmul, grad.nbytes + x.nbytes, n * k * size),
    ]


@rule("gemm", "matmul")
def price_matmul(call: Call) -> Profile:
    """matmul(a, b) with its broadcasting"""
    a, b = call.inputs[0], call.inputs[1]
    m = a.shape[-2] if len(a.shape) > 1 else 1
    n = b.shape[-1] if len(b.shape) > 1 else 1
    k = a.shape[-1]
    batch = max(1, math.prod(call.results()[0].shape) // max(m * n, 1))
    return gemm("gemm", batch, m, n, k, a.dtype, call.tf32_matmul, reads(call), writes(call))


@rule("gemm", "matmul_backward")
def price_matmul_backward(call: Call) -> list[Profile]:
    """matmul_backward(grad, a, b, mask): two products"""
    grad, a, b = call.inputs[:3]
    m = a.shape[-2] if len(a.shape) > 1 else 1
    n = b.shape[-1] if len(b.shape) > 1 else 1
    k = a.shape[-1]
    batch = max(1, grad.count // max(m * n, 1))
    tf32, dtype = call.tf32_matmul, a.dtype
    return [
        gemm("gemm", batch, m, k, n, dtype, tf32, grad.nbytes + b.nbytes, a.nbytes),
        gemm("gemm", batch, k, n, m, dtype, tf32, grad.nbytes + a.nbytes, b.nbytes),
    ]


@rule("gemm", "mv addmv dot vdot")
def price_vector(call: Call) -> Profile:
    """Matrix times vector, and dot products: no tensor cores"""
    *_, a, x = list(operands_of(call.inputs))[:3]
    m = a.shape[0] if len(a.shape) > 1 else 1
    k = x.shape[-1]
    pipe = plain_pipe(a.dtype)
    flops = 2.0 * m * k * complex_factor(a.dtype)
    return Profile("gemv", "gemm", ((pipe, flops),), reads(call), writes(call))


@rule("gemm", "addr outer ger")
def price_outer(call: Call) -> Profile:
    """Outer products are written element by element"""
    out = call.results()[0]
    return Profile("outer", "pointwise", ((plain_pipe(out.dtype), 2.0 * out.count),), reads(call), writes(call))


@rule("gemm", "_scaled_mm _scaled_mm_v2 _int_mm")
def price_scaled(call: Call) -> Profile:
    """fp8 and int8 products with scales"""
    return _product(call, call.inputs[0], call.inputs[1], "gemm_scaled")


@rule("gemm", "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2")
def price_grouped(call: Call) -> Profile:
    """Products of several groups in one kernel; offsets divide the rows of a 2-D operand"""
    a, b, out = call.inputs[0], call.inputs[1], call.results()[0]
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    if len(a.shape) == 2 and len(b.shape) == 2:  # the inner dimension is divided
        groups = out.shape[0]
        return gemm("gemm_grouped", groups, m, n, max(1, k // groups), a.dtype, False, reads(call), writes(call))
    groups = max(a.shape[0] if len(a.shape) == 3 else 1, b.shape[0] if len(b.shape) == 3 else 1)
    rows = m if len(a.shape) == 3 else max(1, m // groups)
    columns = n if len(b.shape) == 3 else max(1, n // groups)
    return gemm("gemm_grouped", groups, rows, columns, k, a.dtype, False, reads(call), writes(call))


@rule("gemm", "_foreach_mm")
def price_foreach_mm(call: Call) -> list[Profile]:
    """One product per pair"""
    return [
        gemm("gemm", 1, a.shape[0], b.shape[1], a.shape[1], a.dtype, call.tf32_matmul, a.nbytes + b.nbytes,
             a.shape[0] * b.shape[1] * a.itemsize)
        for a, b in zip(call.inputs[0], call.inputs[1])
    ]  # fmt: skip


@rule(
    "gemm",
    "_weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_with_scales_and_zeros _mixed_dtypes_linear "
    "_dyn_quant_matmul_4bit",
)
def price_packed_weight(call: Call) -> Profile:
    """x[m, k] times a packed integer weight: its bytes are read as stored, the products are those of x"""
    x, out = call.inputs[0], call.results()[0]
    k = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    return gemm("gemm_packed", 1, rows, out.shape[-1], k, x.dtype, call.tf32_matmul, reads(call), writes(call))


@rule("gemm", "_sparse_semi_structured_linear _sparse_semi_structured_mm _sparse_semi_structured_addmm _cslt_sparse_mm")
def price_semi_structured(call: Call) -> Profile:
    """2:4 sparse weights: half the products"""
    tensors = list(operands_of(call.inputs))
    out = call.results()[0]
    dense = max(tensors, key=lambda operand: operand.shape[-1] if len(operand.shape) > 1 else 0)
    k = dense.shape[-1]
    flops = 2.0 * out.count * k / 2
    return Profile("gemm_sparse", "gemm", ((matrix_pipe(dense.dtype, False), flops),), reads(call), writes(call))


@rule("gemm", "_trilinear")
def price_trilinear(call: Call) -> Profile:
    """bilinear: a product over the feature dimensions"""
    first, weight, third = call.inputs[:3]
    flops = 2.0 * max(first.count, third.count) * max(1, weight.count // max(first.shape[-1], 1))
    pipe = matrix_pipe(first.dtype, call.tf32_matmul)
    return Profile("trilinear", "gemm", ((pipe, flops),), reads(call), writes(call))


@rule(
    "gemm",
    "_sparse_addmm _sparse_sparse_matmul sparse_sampled_addmm hspmm sspaddmm _sparse_mm_reduce_impl "
    "_sparse_mm_reduce_impl_backward _spsolve",
)
def price_sparse(call: Call) -> Profile:
    """Sparse products are bound by memory: what is stored is read once, in no order"""
    return Profile("spmm", "gemm", (), total_bytes(call.inputs), writes(call), access="random")


@rule("gemm", "_euclidean_dist _cdist_forward _cdist_backward _pdist_forward _pdist_backward")
def price_distance(call: Call) -> Profile:
    """Pairwise distances: three operations per pair and feature"""
    tensors = list(operands_of(call.inputs))
    last = tensors[0].shape[-1]
    pairs = max(operand.count for operand in (*call.results(), *tensors))
    pipe = plain_pipe(tensors[0].dtype)
    return Profile("cdist", "gemm", ((pipe, 3.0 * pairs * last),), reads(call), writes(call))


@rule("gemm", "_compute_linear_combination")
def price_combination(call: Call) -> Profile:
    """A small product with coefficients"""
    x, coefficients = call.inputs[0], call.inputs[1]
    rows, k = coefficients.shape
    return gemm("gemm", 1, rows, max(1, x.count // max(k, 1)), k, x.dtype, False, reads(call), writes(call))
