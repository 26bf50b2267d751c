"""Kernels that programs compile at run time through PyTorch: torch.cuda._compile_kernel and torch.cuda.jiterator.

CUDA C++ text in, a callable on CUDA tensors out. NVRTC compiles for the current GPU; the kernels are Weft's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from weft.errors import CompileError
from weft.frontends.cuda_cpp import compile_cuda
from weft.frontends.torch.gpus import find_gpu
from weft.types import Dim3

HEADERS = Path(__file__).parent / "include" / "device"
_STATIC_LIMIT = 48 << 10  # dynamic shared memory beyond this must be asked for
_JITERATOR_BLOCK = 256

# Names of element types in jiterator's kernels.
_TYPES = {
    torch.float32: "float", torch.float64: "double", torch.float16: "c10::Half", torch.bfloat16: "c10::BFloat16",
    torch.int8: "signed char", torch.uint8: "unsigned char", torch.int16: "short", torch.int32: "int",
    torch.int64: "long long", torch.bool: "bool", torch.complex64: "c10::complex<float>",
    torch.complex128: "c10::complex<double>",
}  # fmt: skip


def compile_source(kernel_source: str, kernel_name: str, compute_capability: str | None = None,
                   cuda_include_dirs: list[str] | None = None, nvcc_options: list[str] | None = None,
                   auto_pch: bool = False) -> tuple[bytes, str]:  # fmt: skip
    """torch.cuda._utils._nvrtc_compile: (PTX, mangled name). Raises RuntimeError with NVRTC's log, as PyTorch does."""
    gpu = find_gpu(None)
    arch = f"sm_{compute_capability}" if compute_capability else gpu.chip.arch
    options = [option for option in nvcc_options or [] if option != "--pch"]
    try:
        made = compile_cuda(
            kernel_source + "\n", arch=arch, compiler="nvrtc", include_dirs=cuda_include_dirs or (), options=options,
            name_expressions=[kernel_name], file_name=f"{kernel_name}.cu",
            cache_dir=gpu.device.cache_dir if gpu.device.cache.usable else None,
        )  # fmt: skip
    except CompileError as error:
        raise RuntimeError(f"Kernel compilation failed:\n{error.log or error}") from error
    return made.ptx.encode(), made.names[kernel_name]


class CudaKernel:
    """What torch.cuda._compile_kernel returns. Call it with grid, block, args, shared_mem (bytes) and stream."""

    def __init__(self, kernels: dict[int, Any], ptx: bytes, name: str):
        self._kernels, self._ptx, self._name = kernels, ptx, name
        self._max_shared_mem_bytes = 0

    def __call__(self, grid: tuple[int, int, int] = (1, 1, 1), block: tuple[int, int, int] = (1, 1, 1),
                 args: list[Any] | None = None, shared_mem: int = 0, stream: Any = None) -> None:  # fmt: skip
        """Launches the kernel. Raises ValueError for CPU tensors, TypeError for other arguments, RuntimeError for
        shared memory that was not configured, weft's errors for faults."""
        values = []
        for value in args or ():
            if isinstance(value, torch.Tensor):
                if not value.is_cuda:
                    raise ValueError("All tensor arguments must be CUDA tensors or pinned CPU tensors")
            elif not isinstance(value, (int, float)):
                raise TypeError(f"Unsupported argument type: {type(value)}")
            values.append(value)
        if shared_mem >= _STATIC_LIMIT and shared_mem > self._max_shared_mem_bytes:
            configured = f"only {self._max_shared_mem_bytes} bytes" if self._max_shared_mem_bytes else "not"
            raise RuntimeError(
                f"Kernel requires {shared_mem} bytes of shared memory (>= 48KB), but {configured} configured. Call "
                "kernel.set_shared_memory_config(shared_mem) after compilation and before launching the kernel."
            )
        launch = self._kernel().prepared(Dim3(*grid), Dim3(*block), None, shared_mem)
        if stream is None:
            launch(*values)
        else:
            with torch.cuda.stream(stream):
                launch(*values)

    def _kernel(self) -> Any:
        gpu = find_gpu(None)
        kernel = self._kernels.get(gpu.index)
        if kernel is None:
            kernel = self._kernels[gpu.index] = gpu.device.load(self._ptx, self._name)[self._name]
        return kernel

    def set_shared_memory_config(self, shared_mem_bytes: int) -> None:
        """Allows that many bytes of dynamic shared memory. Raises RuntimeError for more than the chip has."""
        most = find_gpu(None).chip.capability.shared_per_block_optin
        if shared_mem_bytes > most:
            raise RuntimeError(
                f"Requested shared memory ({shared_mem_bytes} bytes) exceeds device limit ({most} bytes). Consider "
                "reducing block size or shared memory usage."
            )
        self._max_shared_mem_bytes = shared_mem_bytes


class CudaModule:
    """What torch.cuda._utils._cuda_load_module returns without names: kernels by attribute."""

    def __init__(self, ptx: bytes):
        self._ptx = ptx
        self._names = find_gpu(None).device.load(ptx, "<ptx>").kernels

    def __getattr__(self, name: str) -> CudaKernel:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"No kernel named '{name}' in this module")
        return CudaKernel({}, self._ptx, name)


def load_module(ptx: str | bytes, kernel_names: list[str] | None = None) -> Any:
    """torch.cuda._utils._cuda_load_module."""
    text = ptx.encode() if isinstance(ptx, str) else ptx
    if not kernel_names:
        return CudaModule(text)
    return {name: CudaKernel({}, text, name) for name in kernel_names}


# ---------------------------------------------------------------- jiterator


@lru_cache(maxsize=256)
def _elementwise_kernel(arch: str, code: str, name: str, by_reference: bool, outputs: int, inputs: int, element: str,
                        scalars: int) -> str:  # fmt: skip
    """The PTX of an element-wise kernel around a jiterator function."""
    values = [f"x{i}[at]" for i in range(inputs)] + [f"s{i}" for i in range(scalars)]
    parameters = [f"const T* x{i}" for i in range(inputs)] + [f"T* y{i}" for i in range(outputs)]
    parameters += [f"T s{i}" for i in range(scalars)]
    if by_reference:
        call = f"{name}<T>({', '.join(values + [f'y{i}[at]' for i in range(outputs)])});"
    else:
        call = f"y0[at] = {name}<T>({', '.join(values)});"
    source = f"""#include "weft_torch_device.h"
{code}
using T = {element};
extern "C" __global__ void jitted(long long count, {", ".join(parameters)}) {{
  for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < count; at += gridDim.x * blockDim.x) {{
    {call}
  }}
}}
"""
    made = compile_cuda(
        source, arch=arch, compiler="nvrtc", std="c++17", include_dirs=[HEADERS], options=["-default-device"],
        file_name=f"{name}.cu",
    )  # fmt: skip
    return made.ptx


_programs: dict[tuple[int, str], Any] = {}


def launch_jitted(code: str, name: str, by_reference: bool, outputs: int, tensors: tuple[Any, ...],
                  options: dict[str, Any]) -> Any:  # fmt: skip
    """torch._C._cuda_jiterator_compile_and_launch_kernel: broadcasts and promotes the tensors, runs the function on
    each element. Raises RuntimeError with NVRTC's log."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    # Broadcasting and conversion are part of the kernel on a GPU: they cost nothing by themselves.
    given = torch.broadcast_tensors(*tensors)
    given = [tensor.to(dtype).contiguous() for tensor in given]
    results = [torch.empty(given[0].shape, dtype=dtype, device=given[0].device) for _ in range(outputs)]
    gpu = find_gpu(given[0].get_device())
    scalars = list(options.values())
    try:
        ptx = _elementwise_kernel(
            gpu.chip.arch, code, name, by_reference, outputs, len(given), _TYPES[dtype], len(scalars)
        )
    except CompileError as error:
        raise RuntimeError(f"{error}\n{error.log}") from error
    key = (gpu.index, ptx)
    if key not in _programs:
        _programs[key] = gpu.device.load(ptx, f"{name}.cu")["jitted"]
    count = results[0].numel()
    if count:
        converted = [torch.tensor(value, dtype=dtype).view(-1) for value in scalars]
        packed = [bytes(value.view(torch.uint8).tolist()) if dtype.is_complex else value.item() for value in converted]
        if dtype in (torch.float16, torch.bfloat16):
            packed = [bytes(value.view(torch.uint8).tolist()) for value in converted]
        blocks = min(-(-count // _JITERATOR_BLOCK), 65535)
        _programs[key][blocks, _JITERATOR_BLOCK](count, *given, *results, *packed)
    return results[0] if outputs == 1 and not by_reference else tuple(results) if outputs > 1 else results[0]


def connect_compilation() -> None:
    """Puts the functions in place."""
    import torch.cuda._utils as own

    own._nvrtc_compile = compile_source
    own._cuda_load_module = load_module
    own._CudaKernel, own._CudaModule = CudaKernel, CudaModule
    torch._C._cuda_jiterator_compile_and_launch_kernel = launch_jitted
