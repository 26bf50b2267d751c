"""PyTorch's switches that change what CUDA's kernels do: the setters of torch._C in, the kernels to write anew out.

A kernel is written for the switches as they are (precision.py, alerts.py), so that it does not ask at each call. The
setters are wrapped: whoever turns a switch lets the kernels that depend on it be written again at their next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from weft.frontends.torch.gpus import gpus

_C = torch._C
_SETTERS = (
    "_set_cublas_allow_tf32", "_set_cudnn_allow_tf32", "_set_float32_matmul_precision", "_set_fp32_precision_setter",
    "_set_cublas_allow_fp16_accumulation", "_set_deterministic_algorithms",
)  # fmt: skip
# The first chips with tensor cores for TF32 are those of compute capability 8.0.
_TF32_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Modes:
    """tf32_products, tf32_convolutions: float32 inputs lose 13 bits; half_sums: float16 products are summed in float16;
    deterministic: kernels whose order of additions is open raise or warn."""

    tf32_products: bool = False
    tf32_convolutions: bool = False
    half_sums: bool = False
    deterministic: bool = False


class _Now:
    modes = Modes()
    listeners: list[Callable[[Iterable[str]], None]] = []
    # For each field the operators whose kernels depend on it.
    dependents: dict[str, frozenset[str]] = {}


def read_modes() -> Modes:
    """The switches as PyTorch has them, on the process's chip."""
    has_tf32 = bool(gpus) and tuple(gpus[0].chip.compute_capability) >= _TF32_CAPABILITY
    precision = _C._get_fp32_precision_getter
    return Modes(
        has_tf32 and precision("cuda", "matmul") == "tf32",
        has_tf32 and precision("cuda", "conv") == "tf32",
        _C._get_cublas_allow_fp16_accumulation(),
        _C._get_deterministic_algorithms(),
    )


def current_modes() -> Modes:
    """The switches that kernels are written for."""
    return _Now.modes


def depend(field: str, names: Iterable[str]) -> None:
    """Kernels of these operators are written anew when the field changes."""
    _Now.dependents[field] = _Now.dependents.get(field, frozenset()) | frozenset(names)


def refresh() -> None:
    """Reads the switches; tells the listeners which operators' kernels are out of date."""
    before, _Now.modes = _Now.modes, read_modes()
    changed: frozenset[str] = frozenset()
    for field, names in _Now.dependents.items():
        if getattr(before, field) != getattr(_Now.modes, field):
            changed |= names
    if before != _Now.modes:
        for listener in _Now.listeners:
            listener(changed)


def _refreshing(setter: Any) -> Any:
    @wraps(setter)
    def set_and_refresh(*args: Any, **kwargs: Any) -> Any:
        result = setter(*args, **kwargs)
        refresh()
        return result

    return set_and_refresh


def watch_modes(*listeners: Callable[[Iterable[str]], None]) -> None:
    """From now on the listeners hear of every change."""
    _Now.listeners.extend(listeners)
    for name in _SETTERS:
        setattr(_C, name, _refreshing(getattr(_C, name)))
    # This property has kept the setter itself.
    vars(type(torch.backends.cudnn))["allow_tf32"].setter = _C._set_cudnn_allow_tf32
    refresh()
