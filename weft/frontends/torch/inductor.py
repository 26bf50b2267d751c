"""torch.compile with Inductor: settings that make its generated Triton code run through Weft's driver for Triton.

Inductor is imported long after torch, so the settings are made when its config module has run.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_CONFIG = "torch._inductor.config"


def configure(config: Any) -> None:
    """The settings. config: torch._inductor.config."""
    # Inductor's own launcher loads machine code, of which there is none.
    config.use_static_cuda_launcher = False
    # Kernels are compiled in this process, where the driver is; its workers would each import everything again.
    config.compile_threads = 1
    # The trees restore states of the allocator block by block; plain graphs do without.
    config.triton.cudagraph_trees = False


class _ConfiguringLoader(Loader):
    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        configure(module)


class _ConfigFinder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ConfiguringLoader(spec.loader)
        return spec


def empty_strided_cuda(size: Any, stride: Any, dtype: Any) -> Any:
    """torch._C._dynamo.guards._empty_strided_cuda, which generated code calls for its buffers."""
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


class AllocatorState:
    """torch._C._cuda_CUDAAllocator_AllocatorState: imported by name only, since the trees that use it are off."""


def set_cached_tensors_enabled(enabled: bool) -> None:
    """torch._C._set_cached_tensors_enabled: imported by name only."""


def prepare_inductor() -> None:
    """Waits for Inductor; gives it what a CPU build lacks."""
    torch._C._cuda_CUDAAllocator_AllocatorState = AllocatorState
    torch._C._set_cached_tensors_enabled = set_cached_tensors_enabled
    torch._C._dynamo.guards._empty_strided_cuda = empty_strided_cuda
    if _CONFIG in sys.modules:
        configure(sys.modules[_CONFIG])
    else:
        sys.meta_path.insert(0, _ConfigFinder())
