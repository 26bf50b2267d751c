"""Normalisation that only CUDA has as operators: batch statistics across processes, RMS norm, cuDNN's batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.operators.host import host_kernel
from weft.frontends.torch.tensors import Tensor

_aten = torch.ops.aten


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _other_dims(tensor: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _by_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view([1, -1] + [1] * (like.dim() - 2))


# ---------------------------------------------------------------- SyncBatchNorm
def batch_norm_stats(data: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation per channel."""
    wide = _wide(data)
    variance, mean = torch.var_mean(wide, _other_dims(data), unbiased=False)
    return mean, torch.rsqrt(variance + eps)


def batch_norm_elemt(data: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor,
                     eps: float) -> Tensor:  # fmt: skip
    result = (_wide(data) - _by_channel(mean, data)) * _by_channel(invstd, data)
    if weight is not None:
        result = result * _by_channel(weight, data)
    if bias is not None:
        result = result + _by_channel(bias, data)
    return result.to(data.dtype)


def gather_stats_with_counts(data: Tensor, mean: Tensor, invstd: Tensor, running_mean: Tensor | None,
                             running_var: Tensor | None, momentum: float, eps: float,
                             counts: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and reciprocal deviation over all processes, from those of each (processes, channels)."""
    counts = counts.to(mean.dtype).view(-1, 1)
    total = counts.sum()
    variances = invstd.pow(-2) - eps
    whole = (mean * counts).sum(0) / total
    variance = ((variances + (mean - whole).square()) * counts).sum(0) / total
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(whole.to(running_mean.dtype), alpha=momentum)
    if running_var is not None:
        unbiased = variance * total / (total - 1)
        running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
    return whole, torch.rsqrt(variance + eps)


def gather_stats(data: Tensor, mean: Tensor, invstd: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
                 momentum: float, eps: float, count: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    counts = torch.full((mean.size(0),), count, dtype=mean.dtype)
    return gather_stats_with_counts(data, mean, invstd, running_mean, running_var, momentum, eps, counts)


def backward_reduce(grad_out: Tensor, data: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, input_g: bool,
                    weight_g: bool, bias_g: bool) -> tuple[Tensor | None, ...]:  # fmt: skip
    gradient, centred = _wide(grad_out), _wide(data) - _by_channel(mean, data)
    sum_dy = gradient.sum(_other_dims(data))
    sum_dy_xmu = (gradient * centred).sum(_other_dims(data))
    kind = weight.dtype if weight is not None else data.dtype
    return (
        sum_dy, sum_dy_xmu, (sum_dy_xmu * invstd).to(kind) if weight_g else None,
        sum_dy.to(kind) if bias_g else None,
    )  # fmt: skip


def backward_elemt(grad_out: Tensor, data: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, sum_dy: Tensor,
                   sum_dy_xmu: Tensor, count: Tensor) -> Tensor:  # fmt: skip
    total = count.sum()
    scale = invstd if weight is None else invstd * weight
    centred = _wide(data) - _by_channel(mean, data)
    shift = _by_channel(sum_dy / total, data) + centred * _by_channel(invstd.square() * sum_dy_xmu / total, data)
    return ((_wide(grad_out) - shift) * _by_channel(scale, data)).to(data.dtype)


# ---------------------------------------------------------------- RMS norm
def rms_norm(data: Tensor, normalized_shape: Any, weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    """(output, reciprocal root of the mean square)."""
    wide = _wide(data)
    dims = list(range(-len(normalized_shape), 0))
    small = torch.finfo(wide.dtype).eps if eps is None else eps
    rstd = torch.rsqrt(wide.square().mean(dims, keepdim=True) + small)
    result = wide * rstd
    if weight is not None:
        result = result * weight
    return result.to(data.dtype), rstd


def rms_norm_backward(grad_out: Tensor, data: Tensor, normalized_shape: Any, rstd: Tensor, weight: Tensor | None,
                      output_mask: Any) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    gradient, wide = _wide(grad_out), _wide(data)
    dims = list(range(-len(normalized_shape), 0))
    scaled = wide * rstd
    by_output = gradient if weight is None else gradient * weight
    for_data = for_weight = None
    if output_mask[0]:
        for_data = rstd * (by_output - scaled * (by_output * scaled).mean(dims, keepdim=True))
        for_data = for_data.to(data.dtype)
    if output_mask[1] and weight is not None:
        outer = list(range(data.dim() - len(normalized_shape)))
        for_weight = gradient * scaled
        for_weight = (for_weight.sum(outer) if outer else for_weight).to(weight.dtype)
    return for_data, for_weight


# ---------------------------------------------------------------- cuDNN
def cudnn_batch_norm(data: Tensor, weight: Tensor, bias: Tensor | None, running_mean: Tensor | None,
                     running_var: Tensor | None, training: bool, exponential_average_factor: float,
                     epsilon: float) -> tuple[Tensor, ...]:  # fmt: skip
    output, mean, invstd = torch.native_batch_norm(
        data, weight, bias, running_mean, running_var, training, exponential_average_factor, epsilon
    )
    return output, mean, invstd, torch.empty(0, dtype=torch.uint8)


def cudnn_batch_norm_backward(data: Tensor, grad_output: Tensor, weight: Tensor, running_mean: Tensor | None,
                              running_var: Tensor | None, save_mean: Tensor | None, save_var: Tensor | None,
                              epsilon: float, reserve: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
    return _aten.native_batch_norm_backward(
        grad_output, data, weight, running_mean, running_var, save_mean, save_var, True, epsilon, [True, True, True]
    )


_ON_HOST: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": batch_norm_stats,
    "batch_norm_elemt": batch_norm_elemt,
    "batch_norm_gather_stats": gather_stats,
    "batch_norm_gather_stats_with_counts": gather_stats_with_counts,
    "batch_norm_backward_reduce": backward_reduce,
    "batch_norm_backward_elemt": backward_elemt,
    "_fused_rms_norm": rms_norm,
    "_fused_rms_norm_backward": rms_norm_backward,
    "cudnn_batch_norm": cudnn_batch_norm,
    "cudnn_batch_norm_backward": cudnn_batch_norm_backward,
}
KERNELS: dict[str, Callable[..., Any]] = {
    name: host_kernel(name, function) for name, function in _ON_HOST.items()
}
