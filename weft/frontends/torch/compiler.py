"""torch.compile: what Dynamo and Inductor must know of the front end, told when they are imported, long after torch."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from weft.errors import UnsupportedError
from weft.frontends.torch.distributed import patch_distributed
from weft.frontends.torch.extensions import connect_extensions
from weft.frontends.torch.recording import off_the_timeline


def configure_inductor(config: Any) -> None:
    """Settings for torch._inductor.config: its Triton code runs through Weft's driver for Triton."""
    config.use_static_cuda_launcher = False
    # Workers would each import everything again, and would not find the driver.
    config.compile_threads = 1
    # The trees restore states of the allocator block by block; plain graphs do without.
    config.triton.cudagraph_trees = False
    # Without the trees a graph that writes into its inputs must not be captured: the run before the capture would write
    # too.
    config.triton.cudagraph_support_input_mutation = False


def refuse_static_launches(launcher: Any) -> None:
    """Inductor's own launcher loads machine code, whoever asks for it: it is left out, kernel by kernel."""
    launcher.statically_launched_kernel_by_device = refuse_static_launch


def refuse_static_launch(*args: Any, **kwargs: Any) -> Any:
    """Raises NotImplementedError, which Inductor takes as a reason to launch through Triton."""
    raise NotImplementedError("a virtual GPU's kernels are launched through Triton")


def compile_in_process(async_compile: Any) -> None:
    """Kernels are compiled in this process, where Weft's driver is, whatever the program sets."""
    async_compile.get_compile_threads = count_compile_threads


def count_compile_threads() -> int:
    return 1


def refuse_cpp_wrapper(cpp_wrapper_gpu: Any) -> None:
    """Inductor's C++ wrapper, and AOTInductor with it, calls functions that only a CUDA build of PyTorch has."""
    cpp_wrapper_gpu.CppWrapperGpu.__init__ = refuse_wrapper


def refuse_wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
    raise UnsupportedError(
        "Inductor's C++ wrapper (cpp_wrapper=True) and AOTInductor need a CUDA build of PyTorch; on a virtual GPU use "
        "torch.compile without it, or torch.export"
    )


def skip_own_files(trace_rules: Any) -> None:
    """Lets Dynamo leave the front end's own Python functions alone, kernels of operators among them."""
    trace_rules.add("weft")


def _benchmark(self: Any, function: Callable[[], Any], *args: Any, **options: Any) -> Any:
    """What Inductor calls to choose among configurations: milliseconds that this machine takes, least of a few runs.

    The runs do not appear on the program's timeline, and a model that is no finer than the work itself could not rank
    configurations of one kernel.
    """
    with off_the_timeline():
        function()
        times: list[float] = []
        while len(times) < 2 or (sum(times) < _BENCHMARK_MS and len(times) < _BENCHMARK_RUNS):
            start = time.perf_counter_ns()
            function()
            times.append((time.perf_counter_ns() - start) / 1e6)
    if options.get("return_mode") == "all":
        return times
    return min(times)


def replace_benchmarks(benchmarking: Any) -> None:
    """Makes Inductor's benchmarks on a GPU this one."""
    for name in ("TritonBenchmarker", "InductorBenchmarker", "TorchProfilerBenchmarker"):
        if hasattr(benchmarking, name):
            getattr(benchmarking, name).benchmark_gpu = _benchmark
    benchmarking.Benchmarker.benchmark_gpu_with_cuda_graph = _benchmark


def _run_quietly(owner: Any, name: str) -> None:
    """Makes a function of Inductor's work off the timeline."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def run_off_the_timeline(*args: Any, **kwargs: Any) -> Any:
        with off_the_timeline():
            return original(*args, **kwargs)

    setattr(owner, name, run_off_the_timeline)


def compile_off_the_timeline(compile_fx: Any) -> None:
    """Compiling makes inputs and runs candidates, which are no work of the program's."""
    _run_quietly(compile_fx, "compile_fx")


def tune_off_the_timeline(triton_heuristics: Any) -> None:
    """A kernel's first call may try its configurations, on copies of what it writes."""
    _run_quietly(triton_heuristics.CachingAutotuner, "autotune_to_one_config")


_BENCHMARK_MS, _BENCHMARK_RUNS = 30, 20

_WAITING: dict[str, Callable[[Any], None]] = {
    "torch._inductor.config": configure_inductor,
    "torch._dynamo.trace_rules": skip_own_files,
    "torch._inductor.runtime.benchmarking": replace_benchmarks,
    "torch._inductor.compile_fx": compile_off_the_timeline,
    "torch._inductor.runtime.triton_heuristics": tune_off_the_timeline,
    "torch._inductor.runtime.static_triton_launcher": refuse_static_launches,
    "torch._inductor.async_compile": compile_in_process,
    "torch._inductor.codegen.cpp_wrapper_gpu": refuse_cpp_wrapper,
    "torch.utils.cpp_extension": connect_extensions,
    "torch.distributed.distributed_c10d": patch_distributed,
}


class _CallingLoader(Loader):
    """Runs a module with its own loader, then calls a function with it."""

    def __init__(self, loader: Loader, function: Callable[[Any], None]):
        self._loader, self._function = loader, function

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._function(module)


class _Finder(MetaPathFinder):
    """Lets the other finders find the modules that are waited for."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        function = _WAITING.pop(fullname, None)
        if function is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingLoader(spec.loader, function)
        return spec


def empty_strided_cuda(size: Any, stride: Any, dtype: Any) -> Any:
    """torch._C._dynamo.guards._empty_strided_cuda, which generated code calls for its buffers."""
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


class AllocatorState:
    """torch._C._cuda_CUDAAllocator_AllocatorState: imported by name only, since the trees that use it are off."""


def set_cached_tensors_enabled(enabled: bool) -> None:
    """torch._C._set_cached_tensors_enabled: imported by name only."""


def prepare_compiler() -> None:
    """Waits for Dynamo and Inductor; gives them what a CPU build lacks."""
    torch._C._cuda_CUDAAllocator_AllocatorState = AllocatorState
    torch._C._set_cached_tensors_enabled = set_cached_tensors_enabled
    torch._C._dynamo.guards._empty_strided_cuda = empty_strided_cuda
    for name in list(_WAITING):
        if name in sys.modules:
            _WAITING.pop(name)(sys.modules[name])
    if _WAITING:
        sys.meta_path.insert(0, _Finder())
