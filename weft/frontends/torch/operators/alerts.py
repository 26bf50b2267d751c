"""Kernels of CUDA whose results depend on the order of atomic additions: an operator in, lines for its kernel out.

With torch.use_deterministic_algorithms(True) they raise, or warn, in PyTorch's words. Source: the list in the
documentation of torch.use_deterministic_algorithms of PyTorch 2.13; the names are those that CUDA's functions give.
"""

from __future__ import annotations

import warnings

import torch

from weft.frontends.torch.operators.modes import current_modes, depend

_ALWAYS = "True"
_IS_REAL = "a0.is_floating_point() or a0.is_complex()"

# operator -> (name in the error, condition on the kernel's arguments a0, a1 ...)
ALERTS: dict[str, tuple[str, str]] = {
    "avg_pool3d_backward": ("avg_pool3d_backward_cuda", _ALWAYS),
    "_adaptive_avg_pool2d_backward": ("adaptive_avg_pool2d_backward_cuda", _ALWAYS),
    "_adaptive_avg_pool3d_backward": ("adaptive_avg_pool3d_backward_cuda", _ALWAYS),
    "adaptive_max_pool2d_backward": ("adaptive_max_pool2d_backward_cuda", _ALWAYS),
    "fractional_max_pool2d_backward": ("fractional_max_pool2d_backward_cuda", _ALWAYS),
    "fractional_max_pool3d_backward": ("fractional_max_pool3d_backward_cuda", _ALWAYS),
    "max_unpool2d": ("max_unpooling2d_forward_out", _ALWAYS),
    "max_unpool3d": ("max_unpooling3d_forward_out", _ALWAYS),
    "upsample_linear1d_backward": ("upsample_linear1d_backward_out_cuda", _ALWAYS),
    "upsample_bilinear2d_backward": ("upsample_bilinear2d_backward_out_cuda", _ALWAYS),
    "upsample_bicubic2d_backward": ("upsample_bicubic2d_backward_out_cuda", _ALWAYS),
    "upsample_trilinear3d_backward": ("upsample_trilinear3d_backward_out_cuda", _ALWAYS),
    "reflection_pad1d_backward": ("reflection_pad1d_backward_out_cuda", _ALWAYS),
    "reflection_pad2d_backward": ("reflection_pad2d_backward_cuda", _ALWAYS),
    "reflection_pad3d_backward": ("reflection_pad3d_backward_out_cuda", _ALWAYS),
    "nll_loss2d_forward": ("nll_loss2d_forward_out_cuda_template", _ALWAYS),
    "_ctc_loss_backward": ("ctc_loss_backward_gpu", _ALWAYS),
    "_ctc_loss_backward.Tensor": ("ctc_loss_backward_gpu", _ALWAYS),
    "put_": ("put_", _ALWAYS),
    "bincount": ("_bincount_cuda", "a1 is not None"),
    "median.dim": ("median CUDA with indices output", _ALWAYS),
    "median.dim_values": ("median CUDA with indices output", _ALWAYS),
    "kthvalue": ("kthvalue CUDA", _ALWAYS),
    "kthvalue.values": ("kthvalue CUDA", _ALWAYS),
    "grid_sampler_2d_backward": ("grid_sampler_2d_backward_cuda", _ALWAYS),
    "grid_sampler_3d_backward": ("grid_sampler_3d_backward_cuda", _ALWAYS),
    "cumsum": ("cumsum_cuda_kernel", _IS_REAL),
    "cumsum_": ("cumsum_cuda_kernel", _IS_REAL),
    "cumsum.out": ("cumsum_cuda_kernel", _IS_REAL),
}
depend("deterministic", ALERTS)


def check_lines(name: str) -> list[str]:
    """Lines that raise the alert of an operator, where the switch is on."""
    if name not in ALERTS or not current_modes().deterministic:
        return []
    return [f"if {ALERTS[name][1]}:", f"    raise_alert({ALERTS[name][0]!r})"]


def raise_alert(caller: str) -> None:
    """Raises RuntimeError, or warns where PyTorch is told to."""
    only_warns = torch._C._get_deterministic_algorithms_warn_only()
    setting = "'torch.use_deterministic_algorithms(True"
    text = f"{caller} does not have a deterministic implementation, but you set {setting}"
    if only_warns:
        warnings.warn(
            f"{text}, warn_only=True)'. You can file an issue at https://github.com/pytorch/pytorch/issues to help us "
            "prioritize adding deterministic support for this operation.",
            stacklevel=3,
        )
        return
    raise RuntimeError(
        f"{text})'. You can turn off determinism just for this operation, or you can use the 'warn_only=True' option, "
        "if that's acceptable for your application. You can also file an issue at "
        "https://github.com/pytorch/pytorch/issues to help us prioritize adding deterministic support for this "
        "operation."
    )
