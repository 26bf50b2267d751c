"""The host's side of a dry run: large parameters on the CPU stay untouched, checkpoints hold no data.

Memory that nobody writes to costs a process nothing. So a model whose parameters are made on the CPU and then moved to
the GPU can be larger than the host: PyTorch's initialisers leave large CPU tensors alone, and the move reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

# Initialisers fill CPU tensors up to this size, in bytes.
MOST_FILLED = 1 << 20
# What torch.nn.init does all its work by, and whether the tensor is the first argument.
_INITIALISERS = ("_no_grad_uniform_", "_no_grad_normal_", "_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_",
                 "orthogonal_", "sparse_", "eye_", "dirac_")  # fmt: skip


def _skipping_large(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def initialise(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if tensor.device.type == "cpu" and tensor.nbytes > MOST_FILLED:
            return tensor
        return function(tensor, *args, **kwargs)

    return initialise


class FinishedProcesses:
    """What torch.multiprocessing.spawn(join=False) gives: processes that have ended well."""

    processes: tuple[()] = ()

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        return True


def spawn(fn: Callable[..., None], args: tuple = (), nprocs: int = 1, join: bool = True, daemon: bool = False,
          start_method: str = "spawn") -> FinishedProcesses | None:  # fmt: skip
    """torch.multiprocessing.spawn: the first process's work in this one; the others would do the same."""
    fn(0, *args)
    return None if join else FinishedProcesses()


def patch_host() -> None:
    """Puts the functions in place."""
    torch.multiprocessing.spawn = spawn  # type: ignore[assignment]
    for name in _INITIALISERS:
        setattr(torch.nn.init, name, _skipping_large(getattr(torch.nn.init, name)))
