"""The host's side of a dry run: what a program does around its operators in, the same without data out.

Memory that nobody writes to costs a process nothing. So a model whose parameters are made on the CPU and then moved to
the GPU can be larger than the host: PyTorch's initialisers leave large CPU tensors alone, and the move reads nothing.
Checkpoints hold shapes; compiled kernels are left out and priced by the bytes of their tensors; torch.compile compiles
nothing, so that operators are priced one by one.
"""

from __future__ import annotations

import os
import runpy
import struct
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch

from weft import settings
from weft.errors import DryRunError
from weft.frontends.devices import LaunchCapture
from weft.frontends.torch import compiler, graphs
from weft.frontends.torch.dry import forget_values, is_unknown, make_unknown
from weft.frontends.torch.dry_values import warn
from weft.frontends.torch.random import Generator
from weft.frontends.torch.recording import record

# CPU tensors up to this size, in bytes, are filled with random numbers.
MOST_FILLED = 1 << 20
# What models fill their parameters by: methods of Tensor, and functions of torch.nn.init that do more than call them.
_METHODS = ("normal_", "uniform_")
_INITIALISERS = ("_no_grad_trunc_normal_", "_no_grad_fill_", "_no_grad_zero_", "orthogonal_")


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


_own_get_state, _own_set_state = Generator.get_state, Generator.set_state


def get_state(self: Generator) -> torch.Tensor:
    """A CUDA generator's state is its seed and its offset, 8 bytes each, as on a real GPU: DTensor looks inside."""
    if self.device.type != "cuda":
        return _own_get_state(self)
    packed = struct.pack("<QQ", self.initial_seed() % 2**64, self.__dict__.get("_offset", 0))
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def set_state(self: Generator, state: torch.Tensor) -> Generator:
    if self.device.type != "cuda":
        return _own_set_state(self, state)
    seed, self._offset = struct.unpack("<QQ", bytes(state.tolist()))
    return self.manual_seed(seed)


# ---------------------------------------------------------------- checkpoints
def rebuild_unknown(size: tuple, stride: tuple, dtype: torch.dtype, device: str, requires_grad: bool) -> Any:
    """An unknown tensor out of a dry run's checkpoint. Raises DryRunError in an ordinary run."""
    if not settings.current().dry:
        raise DryRunError("this checkpoint was written by a dry run and holds shapes only: load it under --dry")
    return make_unknown(size, stride, dtype, torch.device(device).index or 0).requires_grad_(requires_grad)


def _reducing_unknown(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def reduce(self: Any, protocol: Any) -> Any:
        if self.is_cuda and self.layout is torch.strided and is_unknown(self):
            described = (tuple(self.shape), self.stride(), self.dtype, str(self.device), self.requires_grad)
            return rebuild_unknown, described
        return own(self, protocol)

    return reduce


# ---------------------------------------------------------------- compiled kernels
def skip_launch(name: str, args: tuple) -> bool:
    """Whether a launch of a Triton kernel is left out, since a tensor among its arguments has no data. Then it is
    priced by its tensors' bytes, and floating-point tensors that it may have written are unknown."""
    tensors = [value for value in args if isinstance(value, torch.Tensor) and value.is_cuda]
    if not any(is_unknown(tensor) for tensor in tensors):
        return False
    record(f"triton::{name}", tuple(tensors), {}, None, tensors[0].get_device())
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            forget_values(tensor)
    return True


class _EmptyStep:
    """A step of a CUDA graph: a replay has nothing to compute, its time is the timeline's."""

    def run(self) -> None:
        pass


def note_step(self: Any, name: str, args: tuple, result: Any, kwargs: dict, stream: int, device: int) -> None:
    """In the place of CudaGraph._note. What a graph computes is unknown, since a replay would compute it anew."""
    self._steps.append(_EmptyStep())
    for tensor in result if isinstance(result, (list, tuple)) else [result]:
        if isinstance(tensor, torch.Tensor) and tensor.is_cuda and tensor.layout is torch.strided:
            forget_values(tensor)


def compile_nothing(model: Any = None, **options: Any) -> Any:
    """torch.compile."""
    if model is None:
        return partial(compile_nothing, **options)
    warn("torch.compile is left out; operators are priced one by one, as they run without it")
    return model


class LoneLaunch:
    """torch.distributed.launcher.api.elastic_launch, what torchrun runs: the first process's work in this one."""

    def __init__(self, config: Any, entrypoint: Any):
        self._config, self._entrypoint = config, entrypoint

    def __call__(self, *args: Any) -> dict[int, Any]:
        """Returns what the entry point does, by rank. A program's words come as for Python: -u, -m, its name."""
        local = self._config.nproc_per_node
        os.environ |= {
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(self._config.max_nodes * local),
            "LOCAL_WORLD_SIZE": str(local), "GROUP_RANK": "0",
        }  # fmt: skip
        if not isinstance(self._entrypoint, str):
            return {0: self._entrypoint(*args)}
        words = [str(word) for word in args]
        while words[0].startswith("-") and words[0] != "-m":
            del words[0]
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
        return {0: None}


def patch_launcher(api: Any) -> None:
    """For torch.distributed.launcher.api, when it is imported."""
    api.elastic_launch = LoneLaunch


def patch_host() -> None:
    """Puts the functions in place."""
    compiler._WAITING["torch.distributed.launcher.api"] = patch_launcher
    torch.Tensor.__reduce_ex__ = _reducing_unknown(torch.Tensor.__reduce_ex__)
    torch.serialization.add_safe_globals([rebuild_unknown])
    torch.compile = compile_nothing
    LaunchCapture.skip = skip_launch
    setattr(graphs.CudaGraph, "_note", note_step)  # noqa: B010
    setattr(Generator, "get_state", get_state)  # noqa: B010
    setattr(Generator, "set_state", set_state)  # noqa: B010
    torch.multiprocessing.spawn = spawn
    for name in _METHODS:
        setattr(torch.Tensor, name, _skipping_large(getattr(torch.Tensor, name)))
    for name in _INITIALISERS:
        setattr(torch.nn.init, name, _skipping_large(getattr(torch.nn.init, name)))
