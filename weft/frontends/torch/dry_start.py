"""A dry run's part of attaching: what is put in place before and after the steps that every run takes."""

from __future__ import annotations

import os
from typing import Any

import torch

from weft import settings
from weft.errors import InvalidValueError
from weft.frontends.torch import dry


class DryState:
    """attached: whether this process's front end is that of a dry run, which does not change afterwards."""

    attached = False


def is_dry() -> bool:
    """Whether the process's settings ask for a dry run."""
    return settings.current().dry


def check_unchanged() -> None:
    """Raises InvalidValueError where the settings ask for a dry run and PyTorch is attached for an ordinary one, or the
    other way."""
    if is_dry() != DryState.attached:
        raise InvalidValueError(
            f"invalid argument: dry={is_dry()}, but PyTorch is attached with dry={DryState.attached} already: choose "
            "before PyTorch is imported, in a process of its own"
        )


def before_start() -> None:
    """To be called before anything else has looked into tensors.py."""
    dry.take_over()
    DryState.attached = True
    # Compiled kernels would need data: operators are priced one by one.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"


def choose_kernels(special: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The kernels written for CUDA as a dry run has them, and the function that makes one for any other operator."""
    from weft.frontends.torch import dry_kernels

    chosen = {
        name: function if name in dry_kernels.AS_EVER else dry_kernels.make_special(name, function)
        for name, function in special.items()
    }
    return chosen | dry_kernels.KERNELS, dry_kernels.make_entry


def after_start(libraries: list[Any]) -> None:
    """What needs all of torch: composed operators, questions for values, the host's side."""
    from weft.frontends.torch import dry_host, dry_kernels, dry_values

    above = torch._C._dispatch_library("IMPL", "aten", "AutogradCUDA", "", 0)
    libraries.append(above)
    for name in dry_kernels.COMPOSITES:
        above.impl(name, "AutogradCUDA", dry_kernels.KERNELS[name], False)
    dry_values.patch_questions()
    dry_host.patch_host()
