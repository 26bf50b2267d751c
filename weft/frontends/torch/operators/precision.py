"""Arithmetic in which CUDA's kernels differ from the CPU's: the name of an operator in, a function of host twins out.

TF32: float32 inputs of products and convolutions are rounded to 10 bits of mantissa, to the nearest, ties away from
zero (cvt.rna.tf32 of the PTX manual), and multiplied and summed in float32. PyTorch's note on CUDA semantics measures
0.1747 as the largest error of a 10240-wide product of normal numbers; rounding gives that, cutting off would give
twice as much.

Half sums (allow_fp16_accumulation): after every 16 products the sum is rounded to float16, as an mma instruction with
a float16 accumulator does.

Half inputs: gradients of embeddings, accumulating index_put and the gradients of layer norm are summed in float32 by
CUDA's kernels and rounded once; the CPU's sum in the narrow type. Layer norm keeps its statistics in float32. Softmax
takes float16 and gives float32 where it is asked to.
Source: ATen/native/cuda: EmbeddingBackwardKernel.cu, Indexing.cu, layer_norm_kernel.cu.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from weft.frontends.torch.operators.modes import current_modes, depend
from weft.frontends.torch.tensors import Tensor

_C = torch._C
_aten = torch.ops.aten
_LOW = (torch.float16, torch.bfloat16)
_HALF_BIT, _KEPT_BITS = 1 << 12, -(1 << 13)
_MMA_DEPTH = 16  # products that one mma instruction of float16 adds up
Host = Callable[..., Any]


# ---------------------------------------------------------------- TF32
def round_tf32(tensor: Tensor) -> Tensor:
    """A float32 tensor with 10 bits of mantissa, or a complex64 one likewise; others as they are."""
    if tensor.dtype is torch.complex64:
        return torch.view_as_complex(round_tf32(torch.view_as_real(tensor.resolve_conj())))
    if tensor.dtype is not torch.float32 or not tensor.numel():
        return tensor
    rounded = tensor.view(torch.int32).add(_HALF_BIT).bitwise_and_(_KEPT_BITS).view(torch.float32)
    if not torch.isfinite(tensor.sum()):
        # Only a NaN whose bits are all ones can overflow, and a sum tells cheaply whether there may be one.
        rounded = torch.where(tensor.isnan(), tensor, rounded)
    return rounded


@contextmanager
def _full_precision() -> Iterator[None]:
    """oneDNN follows set_float32_matmul_precision too; the rounding is done already."""
    before = _C._get_fp32_precision_getter("mkldnn", "matmul")
    if before in ("none", "ieee"):
        yield
        return
    _C._set_fp32_precision_setter("mkldnn", "matmul", "ieee")
    try:
        yield
    finally:
        _C._set_fp32_precision_setter("mkldnn", "matmul", before)


def _rounding(operator: Any, first: int) -> Host:
    """An operator whose arguments `first` and `first + 1` are the factors."""

    def product(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        given[first], given[first + 1] = round_tf32(given[first]), round_tf32(given[first + 1])
        with _full_precision():
            return operator(*given, **kwargs)

    return product


def _is_depthwise(data: Tensor, weight: Tensor, transposed: bool, groups: int) -> bool:
    """Whether PyTorch's own kernels do a convolution, which multiply in float32."""
    return not transposed and groups > 1 and weight.size(1) == 1 and data.dim() in (4, 5)


def convolution_tf32(data: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                     transposed: bool, output_padding: Any, groups: int) -> Tensor:  # fmt: skip
    if _C._get_cudnn_enabled() and not _is_depthwise(data, weight, transposed, groups):
        data, weight = round_tf32(data), round_tf32(weight)
    return torch.convolution(data, weight, bias, stride, padding, dilation, transposed, output_padding, groups)


def convolution_backward_tf32(grad_output: Tensor, data: Tensor, weight: Tensor, bias_sizes: Any, stride: Any,
                              padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int,
                              output_mask: Any) -> tuple:  # fmt: skip
    options = (stride, padding, dilation, transposed, output_padding, groups)
    if not _C._get_cudnn_enabled() or _is_depthwise(data, weight, transposed, groups):
        return _aten.convolution_backward(grad_output, data, weight, bias_sizes, *options, output_mask)
    for_data, for_weight, _ = _aten.convolution_backward(
        round_tf32(grad_output), round_tf32(data), round_tf32(weight), bias_sizes, *options,
        [output_mask[0], output_mask[1], False],
    )  # fmt: skip
    dims = [dim for dim in range(grad_output.dim()) if dim != 1]
    return for_data, for_weight, grad_output.sum(dims) if output_mask[2] else None


# ---------------------------------------------------------------- sums in float16
def _multiply_half(first: Tensor, second: Tensor) -> Tensor:
    """A product of float16 matrices, or batches of them, summed in float16."""
    total = torch.zeros(*first.shape[:-1], second.size(-1), dtype=torch.float16)
    for start in range(0, first.size(-1), _MMA_DEPTH):
        one, other = first[..., start : start + _MMA_DEPTH], second[..., start : start + _MMA_DEPTH, :]
        total = (total.float() + torch.matmul(one.float(), other.float())).half()
    return total


def _half_product(operator: Any, biased: bool) -> Host:
    def product(first: Tensor, second: Tensor) -> Tensor:
        if first.dtype is not torch.float16:
            return operator(first, second)
        return _multiply_half(first, second)

    def biased_product(bias: Tensor, first: Tensor, second: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        if first.dtype is not torch.float16:
            return operator(bias, first, second, beta=beta, alpha=alpha)
        scaled = _multiply_half(first, second).float() * alpha
        return (scaled + bias.float() * beta if beta else scaled).half()

    return biased_product if biased else product


# ---------------------------------------------------------------- half inputs, sums in float32
def embedding_backward(grad_output: Tensor, indices: Tensor, num_weights: Any, padding_idx: Any,
                       scale_grad_by_freq: bool) -> Tensor:  # fmt: skip
    wide = grad_output.float() if grad_output.dtype in _LOW else grad_output
    found = _aten.embedding_dense_backward(wide, indices, num_weights, padding_idx, scale_grad_by_freq)
    return found.to(grad_output.dtype)


def index_put_impl(tensor: Tensor, indices: Any, values: Tensor, accumulate: bool = False,
                   unsafe: bool = False) -> Tensor:  # fmt: skip
    if not accumulate or tensor.dtype not in _LOW:
        return _aten._index_put_impl_(tensor, indices, values, accumulate, unsafe)
    wide = _aten._index_put_impl_(tensor.float(), indices, values.float(), True, unsafe)
    return tensor.copy_(wide)


def layer_norm(data: Tensor, normalized_shape: Any, weight: Tensor | None, bias: Tensor | None,
               eps: float) -> tuple:  # fmt: skip
    if data.dtype not in _LOW:
        return torch.native_layer_norm(data, normalized_shape, weight, bias, eps)
    wide = [None if tensor is None else tensor.float() for tensor in (weight, bias)]
    output, mean, rstd = torch.native_layer_norm(data.float(), normalized_shape, wide[0], wide[1], eps)
    return output.to(data.dtype), mean, rstd


def layer_norm_backward(grad_out: Tensor, data: Tensor, normalized_shape: Any, mean: Tensor, rstd: Tensor,
                        weight: Tensor | None, bias: Tensor | None, output_mask: Any) -> tuple:  # fmt: skip
    if data.dtype not in _LOW:
        return _aten.native_layer_norm_backward(
            grad_out, data, normalized_shape, mean, rstd, weight, bias, output_mask
        )  # fmt: skip
    wide = [None if tensor is None else tensor.float() for tensor in (grad_out, data, mean, rstd, weight, bias)]
    found = _aten.native_layer_norm_backward(
        wide[0], wide[1], normalized_shape, wide[2], wide[3], wide[4], wide[5], output_mask
    )
    kinds = [data.dtype, data.dtype if weight is None else weight.dtype, data.dtype if bias is None else bias.dtype]
    return tuple(None if tensor is None else tensor.to(kind) for tensor, kind in zip(found, kinds))


def softmax(data: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return torch._softmax(data.float() if half_to_float else data, dim, False)


def log_softmax(data: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return torch._log_softmax(data.float() if half_to_float else data, dim, False)


# ---------------------------------------------------------------- the choice
# These differ for half inputs alone.
OF_HALF: dict[str, Host] = {
    "embedding_dense_backward": embedding_backward,
    "_index_put_impl_": index_put_impl,
    "native_layer_norm": layer_norm,
    "native_layer_norm_backward": layer_norm_backward,
    "_softmax": softmax,
    "_log_softmax": log_softmax,
}
# Where the factors stand, and whether a bias stands before them.
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1, "_addmm_activation": 1}
CONVOLUTIONS: dict[str, Host] = {
    "convolution": convolution_tf32,
    "convolution_backward": convolution_backward_tf32,
}
depend("tf32_products", _PRODUCTS)
depend("half_sums", _PRODUCTS)
depend("tf32_convolutions", CONVOLUTIONS)


def choose_function(name: str) -> Host | None:
    """The function of host twins that computes an operator with the switches as they are; None for the CPU's own."""
    modes = current_modes()
    if name in OF_HALF:
        return OF_HALF[name]
    if name in CONVOLUTIONS:
        return CONVOLUTIONS[name] if modes.tf32_convolutions else None
    if name not in _PRODUCTS:
        return None
    operator = getattr(torch, name)
    if modes.half_sums and name in ("mm", "bmm", "addmm", "baddbmm"):
        operator = _half_product(operator, biased=bool(_PRODUCTS[name]))
    if modes.tf32_products:
        return _rounding(operator, _PRODUCTS[name])
    return operator if modes.half_sums else None
