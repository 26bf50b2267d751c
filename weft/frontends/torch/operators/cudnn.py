"""cuDNN's own operators, which programs and compilers name directly, and dropout with CUDA's generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.operators.host import host_kernel
from weft.frontends.torch.random import host_generator
from weft.frontends.torch.recording import record
from weft.frontends.torch.tensors import Tensor, to_cuda, to_host

_C = torch._C
_aten = torch.ops.aten


# ---------------------------------------------------------------- convolution
def convolution(data: Tensor, weight: Tensor, padding: Any, stride: Any, dilation: Any, groups: int, benchmark: bool,
                deterministic: bool, allow_tf32: bool) -> Tensor:  # fmt: skip
    none = [0] * (data.dim() - 2)
    return torch.convolution(data, weight, None, stride, padding, dilation, False, none, groups)


def convolution_transpose(data: Tensor, weight: Tensor, padding: Any, output_padding: Any, stride: Any, dilation: Any,
                          groups: int, benchmark: bool, deterministic: bool, allow_tf32: bool) -> Tensor:  # fmt: skip
    return torch.convolution(data, weight, None, stride, padding, dilation, True, output_padding, groups)


def convolution_relu(data: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
                     groups: int) -> Tensor:  # fmt: skip
    none = [0] * (data.dim() - 2)
    return torch.relu_(torch.convolution(data, weight, bias, stride, padding, dilation, False, none, groups))


def convolution_add_relu(data: Tensor, weight: Tensor, z: Tensor, alpha: Any, bias: Tensor | None, stride: Any,
                         padding: Any, dilation: Any, groups: int) -> Tensor:  # fmt: skip
    none = [0] * (data.dim() - 2)
    result = torch.convolution(data, weight, bias, stride, padding, dilation, False, none, groups)
    return torch.relu_(result.add_(z, alpha=1 if alpha is None else alpha))


# ---------------------------------------------------------------- sampling of grids
def grid_sampler(data: Tensor, grid: Tensor) -> Tensor:
    return _aten.grid_sampler_2d(data, grid, 0, 0, True)


def grid_sampler_backward(data: Tensor, grid: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    return _aten.grid_sampler_2d_backward(grad_output, data, grid, 0, 0, True, [True, True])


def affine_grid(theta: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    return torch.affine_grid_generator(theta, [n, c, h, w], True)


# ---------------------------------------------------------------- CTC loss: PyTorch's own kernel does it
def use_other_ctc_loss(*args: Any) -> bool:
    return False


def ctc_loss(log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int,
             deterministic: bool, zero_infinity: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _aten._ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, zero_infinity)


# ---------------------------------------------------------------- dropout
def _drop(data: Tensor, kept: float, generator: Any) -> tuple[Tensor, Tensor]:
    host = to_host(data)
    mask = torch.empty_like(host, dtype=torch.bool).bernoulli_(kept, generator=generator)
    return (host * mask).mul_(1 / kept if kept else 0), mask


def native_dropout(data: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """aten::native_dropout: (output, mask)."""
    index = data.get_device()
    with _C.DisableTorchFunction():
        host = to_host(data)
        if train is False or not data.numel():
            output, mask = host.clone(), torch.ones_like(host, dtype=torch.bool)
        else:
            output, mask = _drop(data, 1 - p, host_generator(None, index))
        result = (to_cuda(output, index), to_cuda(mask, index))
    record("native_dropout", (data, p, train), {}, result, index)
    return result


def fused_dropout(data: Tensor, p: float, generator: Any = None) -> tuple[Tensor, Tensor]:
    """aten::_fused_dropout: p is the share that is kept; the mask is of bytes."""
    index = data.get_device()
    with _C.DisableTorchFunction():
        output, mask = _drop(data, p, host_generator(generator, index))
        result = (to_cuda(output, index), to_cuda(mask.to(torch.uint8), index))
    record("_fused_dropout", (data, p), {}, result, index)
    return result


def masked_scale(data: Tensor, mask: Tensor, scale: float) -> Tensor:
    return data * mask.to(data.dtype) * scale


# ---------------------------------------------------------------- streams
def record_stream(tensor: Tensor, stream: Any) -> None:
    """aten::record_stream: memory is freed in the order of the program here, so there is nothing to note."""


_ON_HOST: dict[str, Callable[..., Any]] = {
    "cudnn_convolution": convolution,
    "cudnn_convolution_transpose": convolution_transpose,
    "cudnn_convolution_relu": convolution_relu,
    "cudnn_convolution_add_relu": convolution_add_relu,
    "cudnn_grid_sampler": grid_sampler,
    "cudnn_grid_sampler_backward": grid_sampler_backward,
    "cudnn_affine_grid_generator": affine_grid,
    "_cudnn_ctc_loss": ctc_loss,
    "_cudnn_ctc_loss.Tensor": ctc_loss,
    "_masked_scale": masked_scale,
}
KERNELS: dict[str, Callable[..., Any]] = {
    name: host_kernel(name, function) for name, function in _ON_HOST.items()
} | {
    "_use_cudnn_ctc_loss": use_other_ctc_loss,
    "_use_cudnn_ctc_loss.Tensor": use_other_ctc_loss,
    "_use_miopen_ctc_loss": use_other_ctc_loss,
    "_use_miopen_ctc_loss.Tensor": use_other_ctc_loss,
    "native_dropout": native_dropout,
    "_fused_dropout": fused_dropout,
    "record_stream": record_stream,
}
