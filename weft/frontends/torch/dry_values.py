"""What a dry run says when a program asks for values: a question in, a number that stands for the answer out, or an
error that names the operator, the program's line and what to do.

A number that nobody knows is not-a-number: `.item()` of a loss gives nan, with a warning for each line that asks, and
whatever is computed from it on the host is nan as well. Where that cannot be (truth values, sizes, integers copied to
the host) DryRunError is raised. The setting dry_value (`--dry-value 0`) stands for every such number instead.
"""

from __future__ import annotations

import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from weft import settings
from weft.errors import DryRunError
from weft.frontends.torch.dry import is_unknown
from weft.frontends.torch.tensors import Tensor

_FOLDERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))
_INSTALLED = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"])
_ADVICE = (
    "Leave this part out of the dry run (weft.is_dry() tells), or let a number stand for whatever is unknown: "
    "--dry-value 0"
)
# Larger host tensors are left as they are, since filling them would take memory.
_MOST_FILLED = 1 << 20
_warned: set[tuple[str, int]] = set()
_item = torch._C.TensorBase.item


def find_line() -> tuple[str, int]:
    """File and line of the program that is running: the innermost frame that belongs to no installed package, or at
    least not to PyTorch or Weft."""
    frame: Any = sys._getframe(1)
    package = ("", 0)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_FOLDERS) and not name.startswith("<"):
            if not any(part in name for part in _INSTALLED):
                return name, frame.f_lineno
            package = package if package[0] else (name, frame.f_lineno)
        frame = frame.f_back
    return package


def place() -> str:
    file, line = find_line()
    return f"{file}:{line}: " if file else ""


def refuse(operator: str, what: str, advice: str = _ADVICE) -> DryRunError:
    """The error for an operator that needs values."""
    return DryRunError(f"{place()}{operator}: {what}, which a dry run does not compute. {advice}.")


def warn(text: str) -> None:
    """A warning at the program's line, once for each."""
    found = find_line()
    if found not in _warned:
        _warned.add(found)
        file, line = found
        warnings.warn_explicit(f"dry run: {text}", UserWarning, file or "<unknown>", line, registry={})


def substitute() -> float | None:
    """The number that stands for unknown ones, None where there is none."""
    return settings.current().dry_value


def unknown_number(tensor: Tensor) -> Any:
    """What `.item()` gives for an unknown element: nan, or the number that stands for it, in the tensor's type."""
    value = substitute()
    if value is None:
        warn(".item() of a number that is not computed gives nan")
        return float("nan")
    if tensor.dtype is torch.bool:
        return bool(value)
    return value if tensor.dtype.is_floating_point or tensor.dtype.is_complex else int(value)


def item(self: Tensor) -> Any:
    """Tensor.item. Unknown integers are nan as well, so that counts of a loop that nobody looks at do no harm."""
    if type(self) in (Tensor, torch.nn.Parameter) and self.is_cuda and self.numel() == 1 and is_unknown(self):
        if self.dtype is not torch.bool and not self.dtype.is_floating_point and not self.dtype.is_complex:
            note_item(self)
            return unknown_number(self)
    return _item(self)


def note_item(tensor: Tensor) -> None:
    """The host waits for a few bytes, whatever they hold."""
    from weft.frontends.torch.recording import record

    record("_local_scalar_dense", (tensor,), {}, None, tensor.get_device())


def scalar_of(tensor: Tensor) -> Any:
    """aten::_local_scalar_dense of an unknown tensor. Raises DryRunError for integers and truth values."""
    if substitute() is None and not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        kind = "a truth value" if tensor.dtype is torch.bool else "an integer"
        raise refuse("aten::_local_scalar_dense", f"the program asks for {kind} that depends on a tensor's values")
    return unknown_number(tensor)


def is_nonzero(tensor: Tensor) -> bool:
    """aten::is_nonzero of an unknown tensor: bool(tensor) and `if tensor:`."""
    value = substitute()
    if value is None:
        raise refuse("aten::is_nonzero", "the program branches on a tensor's values")
    note_item(tensor)
    return bool(value)


def fill_host(target: Tensor, source: Tensor) -> None:
    """What a CPU tensor holds after an unknown tensor was copied into it."""
    value = substitute()
    if value is None:
        if not target.dtype.is_floating_point and not target.dtype.is_complex:
            raise refuse("aten::copy_", f"a CPU copy of a tensor of {source.dtype} would hold its values")
        warn("CPU copies of tensors that are not computed hold nan")
        value = float("nan")
    if target.numel() <= _MOST_FILLED:
        target.fill_(value)


def short_text(self: Tensor, *, tensor_contents: Any = None) -> str:
    """repr of an unknown tensor: what is known of it."""
    parts = [f"device='{self.device}'", f"size={tuple(self.shape)}"]
    if self.dtype is not torch.get_default_dtype():
        parts.append(f"dtype={self.dtype}")
    if self.grad_fn is not None:
        parts.append(f"grad_fn=<{type(self.grad_fn).__name__}>")
    elif self.requires_grad:
        parts.append("requires_grad=True")
    text = f"(..., {', '.join(parts)})"
    return f"Parameter containing:\ntensor{text}" if type(self) is torch.nn.Parameter else f"tensor{text}"


def patch_questions() -> None:
    """Tensor.item, and what print shows."""
    from torch import _tensor_str

    Tensor.item = item
    own: Callable[..., str] = _tensor_str._str_intern

    def text_of(inp: Tensor, *, tensor_contents: Any = None) -> str:
        kind = type(inp)
        if kind in (Tensor, torch.nn.Parameter) and inp.is_cuda and inp.layout is torch.strided and is_unknown(inp):
            return short_text(inp)
        return own(inp, tensor_contents=tensor_contents)

    _tensor_str._str_intern = text_of
