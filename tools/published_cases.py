"""What the cases of tools/published_kernels.py have in common: an operator, its reference, inputs for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

B, T, H, D = 2, 130, 2, 64  # batch, time, heads, head size; time is no multiple of a chunk


@dataclass(frozen=True)
class Case:
    """One operator. make_inputs gives named inputs, which both functions take. gradients: whether those are compared.
    tolerance: the largest error ratio."""

    name: str
    make_inputs: Callable[[], dict[str, Any]]
    operator: Callable[..., Any]
    reference: Callable[..., Any]
    gradients: bool = True
    tolerance: float = 0.01


def normal(*shape: int, dtype: Any = torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).to(dtype)


def unit(*shape: int, dtype: Any = torch.bfloat16) -> torch.Tensor:
    """Rows of length one."""
    return F.normalize(torch.randn(shape), dim=-1).to(dtype)


def gate(*shape: int, dtype: Any = torch.float32, scale: float = 16.0) -> torch.Tensor:
    """Logarithms of forget gates."""
    return (F.logsigmoid(torch.randn(shape)) / scale).to(dtype)


def fraction(*shape: int, dtype: Any = torch.bfloat16) -> torch.Tensor:
    return torch.rand(shape).sigmoid().to(dtype)


def qkv(dtype: Any = torch.bfloat16, time: int = T) -> dict[str, Any]:
    return {name: normal(B, time, H, D, dtype=dtype) for name in "qkv"}


def qkv_unit(dtype: Any = torch.bfloat16) -> dict[str, Any]:
    return {**qkv(dtype), "k": unit(B, T, H, D, dtype=dtype)}


def first(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """The first of a function's results, with some arguments fixed."""

    def call(**inputs: Any) -> Any:
        found = function(**inputs, **fixed)
        return found[0] if isinstance(found, tuple) else found

    return call


def head_first(function: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    """A function of [batch, heads, time, ...] as one of [batch, time, heads, ...]."""

    def call(**inputs: Any) -> Any:
        turned = {name: value.transpose(1, 2) for name, value in inputs.items()}
        found = function(**turned, **fixed)
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    return call
