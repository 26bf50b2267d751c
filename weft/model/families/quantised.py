"""Quantised operators of the library `quantized`: integer products and elementwise kernels on int8 data."""

from __future__ import annotations

import math

from weft.model.families.matrix import gemm
from weft.model.families.shapes import reads, streaming, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call

_POINTWISE = "add add_relu add_scalar add_scalar_relu mul mul_relu mul_scalar mul_scalar_relu celu clamp elu hardswish "
_POINTWISE += "leaky_relu prelu relu6 sigmoid threshold dropout softmax cat cat_relu batch_norm batch_norm1d "
_POINTWISE += "batch_norm2d batch_norm3d batch_norm_relu batch_norm1d_relu batch_norm2d_relu batch_norm3d_relu "
_POINTWISE += "layer_norm group_norm instance_norm max_pool1d max_pool2d"


@rule("pointwise", " ".join(f"quantized::{name}" for name in _POINTWISE.split()))
def price_quantised(call: Call) -> Profile:
    """Each element is dequantised, treated and quantised"""
    return streaming(call, "pointwise", "quantised", operations=6.0)


@rule(
    "gemm",
    " ".join(
        f"quantized::{name}"
        for name in (
            "linear",
            "linear_relu",
            "linear_dynamic",
            "linear_relu_dynamic",
            "linear_leaky_relu",
            "linear_tanh",
            "matmul",
        )
    ),
)
def price_quantised_linear(call: Call) -> Profile:
    """x[m, k] times packed int8 weights; their width is that of the result"""
    x, out = call.inputs[0], call.results()[0]
    k, n = x.shape[-1], out.shape[-1]
    rows = math.prod(x.shape[:-1])
    return gemm("gemm_int8", 1, rows, n, k, "int8", False, reads(call) + n * k, writes(call))
