"""What the checks of tools/nightly_torch.py have in common: a registry, and comparisons with the CPU's results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

_DECLARED = torch.library.Library("torchvision", "FRAGMENT")


class Help:
    """given: whether declare_operators had to."""

    given = False


def declare_operators() -> None:
    """Lets torchvision be imported without its own operators.

    Its builds on PyPI are for CUDA builds of PyTorch, and on a CPU build their operators do not load. timm and the
    others need none of them, but importing any of them stops at two that are not declared.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        Help.given = True
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            _DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@contextmanager
def plain_settings() -> Iterator[None]:
    """Convolutions without TF32, in which CUDA computes them by default; one thread, since a second one only waits for
    models as small as these. What checks change of the precision themselves is put back."""
    switches = (torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    threads, before = torch.get_num_threads(), [switch.fp32_precision for switch in switches]
    torch.set_num_threads(1)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[1] == "tf32"  # the older switch, with which some set the same
        for switch, precision in zip(switches, before):
            switch.fp32_precision = precision
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Check:
    """One row of the table. function: does the work, returns a few words about it, raises when something is wrong.

    packages: what must be installed beside torch. light: short enough for the tests of every change.
    """

    name: str
    function: Callable[[], str]
    packages: tuple[str, ...] = ()
    light: bool = False

    def run(self) -> str:
        with plain_settings():
            return self.function()


class Checks:
    """The checks of a file, in order."""

    def __init__(self, *packages: str):
        self.packages = packages
        self.found: dict[str, Check] = {}

    def add(self, name: str, *packages: str, light: bool = False) -> Callable[[Callable[..., str]], Callable[..., str]]:
        """Registers a function without arguments as a check."""

        def register(function: Callable[..., str]) -> Callable[..., str]:
            assert name not in self.found, name
            self.found[name] = Check(name, function, (*self.packages, *packages), light)
            return function

        return register


def move(value: Any, device: str) -> Any:
    """The same inputs on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: move(entry, device) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move(entry, device) for entry in value)
    return value


def error_of(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The root mean square of the difference over that of what is expected; infinite for other shapes or NaN."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    size = expected.square().mean().sqrt().clamp_min(1e-12)
    error = ((found - expected).square().mean().sqrt() / size).item()
    return error if error == error else float("inf")


def compare(found: Iterable[Any], expected: Iterable[Any], tolerance: float, what: str) -> float:
    """The largest error_of of pairs of tensors. Raises AssertionError above the tolerance, or when nothing is given."""
    pairs = list(zip(found, expected, strict=True))
    assert pairs, f"{what}: nothing to compare"
    worst = max(error_of(one, other) for one, other in pairs)
    assert worst <= tolerance, f"{what}: {worst:.2g} of {tolerance:g}"
    return worst


def on_gpu(value: torch.Tensor | torch.nn.Module) -> bool:
    """Whether a tensor, or all of a model's parameters, are on the GPU."""
    if isinstance(value, torch.nn.Module):
        return all(parameter.is_cuda for parameter in value.parameters())
    return value.is_cuda


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    """All gradients that there are, in the order of the parameters."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def train(model: torch.nn.Module, loss_of: Callable[[], torch.Tensor], steps: int = 3) -> list[float]:
    """Losses of a few steps with AdamW and clipped gradients."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses
