"""Convolutions: cuDNN's implicit matrix products, PyTorch's own kernels for depthwise ones."""

from __future__ import annotations

import math

from weft.model.families.shapes import complex_factor, matrix_pipe, plain_pipe, reads, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call, Operand

TENSOR_PIPES = ("tc_fp16", "tc_bf16", "tc_tf32", "tc_int8", "tc_fp8")


def _layout_copies(pipe: str, operands: list[Operand]) -> list[Profile]:
    """cuDNN's tensor-core kernels want channels last; tensors that are not are transposed before and after."""
    if pipe not in TENSOR_PIPES:
        return []
    return [
        Profile("transpose_layout", "copy", (), operand.nbytes, operand.nbytes, access="strided")
        for operand in operands
        if len(operand.shape) > 2 and operand.contiguous and operand.shape[1] > 1 and math.prod(operand.shape[2:]) > 1
    ]


def _convolve(name: str, dtype: str, tf32: bool, groups: int, m: int, n: int, k: int, bytes_read: float,
              bytes_written: float) -> Profile:  # fmt: skip
    """Per group an implicit product of m positions, n output channels, k = input channels x kernel size."""
    flops = 2.0 * groups * m * n * k * complex_factor(dtype)
    if groups > 1 and n <= 4 and k <= 128:  # depthwise: no tensor cores
        return Profile(f"{name}_depthwise", "convolution", ((plain_pipe(dtype), flops),), bytes_read, bytes_written)
    pipe = matrix_pipe(dtype, tf32)
    if pipe == "tc_fp64":
        pipe = "fp64"
    return Profile(name, "convolution", ((pipe, flops),), bytes_read, bytes_written, gemm=(groups, m, n, k))


def _forward(call: Call, x: Operand, weight: Operand, out: Operand, transposed: bool, groups: int,
             name: str) -> list[Profile]:  # fmt: skip
    kernel = math.prod(weight.shape[2:])
    # Every element of `rows` (the input where transposed, else the output) meets kernel x channels of the other side.
    rows = x if transposed else out
    positions = rows.shape[0] * math.prod(rows.shape[2:])
    if transposed:  # weight is [in, out / groups, ...]
        n, k = weight.shape[1] * kernel, weight.shape[0] // groups
    else:
        n, k = weight.shape[0] // groups, weight.shape[1] * kernel
    main = _convolve(name, x.dtype, call.tf32_convolution, groups, positions, n, k, reads(call), writes(call))
    pipe = main.flops[0][0]
    return [*_layout_copies(pipe, [x]), main, *_layout_copies(pipe, [out])]


@rule("convolution", "convolution _convolution cudnn_convolution cudnn_convolution_transpose cudnn_convolution_relu "
      "cudnn_convolution_add_relu conv_depthwise3d _conv_depthwise2d mkldnn_convolution convolution_overrideable "
      "slow_conv_transpose2d slow_conv_transpose3d _slow_conv2d_forward slow_conv3d_forward slow_conv_dilated2d "
      "slow_conv_dilated3d conv1d conv2d conv3d miopen_convolution miopen_convolution_transpose "
      "miopen_depthwise_convolution miopen_convolution_relu miopen_convolution_add_relu", strides=True)  # fmt: skip
def price_convolution(call: Call) -> list[Profile]:
    """convolution(x, w, bias, stride, padding, dilation, transposed, output_padding, groups)"""
    x, weight = call.inputs[0], call.inputs[1]
    out = call.results()[0]
    base = call.name.rpartition("::")[2].partition(".")[0]
    transposed = "transpose" in base
    if base in ("convolution", "_convolution", "convolution_overrideable"):
        transposed = bool(call.argument(6, "transposed", False))
    channels = x.shape[1] if len(x.shape) == len(weight.shape) else x.shape[0]
    inside = weight.shape[0] if transposed else weight.shape[1]
    groups = 1 if transposed else max(1, channels // max(inside, 1))
    if transposed:
        groups = max(1, out.shape[1] // max(weight.shape[1], 1))
    return _forward(call, x, weight, out, transposed, groups, "convolution")


@rule("convolution", "convolution_backward convolution_backward_overrideable _slow_conv2d_backward", strides=True)
def price_convolution_backward(call: Call) -> list[Profile]:
    """convolution_backward(grad, x, w, bias_sizes, stride, padding, dilation, transposed, ..., groups, mask)"""
    grad, x, weight = call.inputs[:3]
    transposed = bool(call.argument(7, "transposed", False))
    groups = int(call.argument(9, "groups", 1) or 1)
    mask = call.argument(10, "output_mask", None) or (True, True, True)
    kernel = math.prod(weight.shape[2:])
    small = x if transposed else grad  # every element of it meets the kernel
    positions = small.shape[0] * math.prod(small.shape[2:])
    n, k = weight.shape[0] // groups, weight.shape[1] * kernel
    dtype, tf32 = x.dtype, call.tf32_convolution
    found: list[Profile] = []
    if mask[0]:
        found.append(_convolve("convolution_grad_input", dtype, tf32, groups, positions, k, n,
                               grad.nbytes + weight.nbytes, x.nbytes))  # fmt: skip
    if mask[1]:
        found.append(_convolve("convolution_grad_weight", dtype, tf32, groups, n, k, positions,
                               grad.nbytes + x.nbytes, weight.nbytes))  # fmt: skip
    if found:
        pipe = found[0].flops[0][0]
        found = [*_layout_copies(pipe, [grad, x] if mask[1] else [grad]), *found]
        if mask[0]:
            found += _layout_copies(pipe, [x])
    if mask[2]:
        found.append(
            Profile("bias_gradient", "reduction", ((plain_pipe(dtype), float(grad.count)),), grad.nbytes,
                    grad.shape[1] * grad.itemsize)
        )  # fmt: skip
    return found


@rule("convolution", "conv_tbc")
def price_conv_tbc(call: Call) -> Profile:
    """conv_tbc(x[t, b, c], w[k, c, n], bias, pad)"""
    x, weight = call.inputs[0], call.inputs[1]
    out = call.results()[0]
    kernel, channels, n = weight.shape
    positions = out.shape[0] * out.shape[1]
    return _convolve("convolution", x.dtype, call.tf32_convolution, 1, positions, n, kernel * channels, reads(call),
                     writes(call))  # fmt: skip
