"""The bindings that a CPU build lacks: torch._C._cuda_* and its classes, beneath PyTorch's own torch.cuda.

`fill_bindings` must run before torch/cuda/__init__.py does, which looks for them when it is imported. Functions are
distinct and named, since Dynamo traces some of them.
"""

from __future__ import annotations

import enum
import os
import types
from typing import Any

import torch

from weft.frontends.torch import graphs, streams, tunable
from weft.frontends.torch.gpus import (
    Gpu,
    GpuState,
    find_gpu,
    gpus,
    guard_set_device,
    invalid_ordinal,
    refuse_after_fork,
)
from weft.frontends.torch.nvtx import nvtx
from weft.frontends.torch.properties import CudaDeviceProperties, architectures
from weft.frontends.torch.random import make_default_generators
from weft.frontends.torch.recording import current_timeline, recorder
from weft.frontends.torch.versions import CUDA_VERSION, CUDNN_VERSION

_C = torch._C
NCCL_VERSION = (2, 28, 9)


class BindingState:
    """sync_debug_mode: 0, 1 (warn) or 2 (raise); process: the one that initialised CUDA, which its forks cannot use."""

    sync_debug_mode = 0
    process = 0
    blas_workspace = 4096 * 1024 * 2 + 16 * 1024 * 8
    blas_lt_workspace = 1 << 20
    benchmark_limit = 10
    benchmark_empty_cache = False
    memory_metadata = ""
    history = False


# ---------------------------------------------------------------- devices
def get_device_count() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0
    return len(gpus)


def is_in_bad_fork() -> bool:
    return BindingState.process not in (0, os.getpid())


def initialise() -> None:
    """torch._C._cuda_init: the generators and properties that torch.cuda looks up from then on."""
    if not get_device_count():
        raise RuntimeError("No CUDA GPUs are available")
    if not BindingState.process:
        os.register_at_fork(after_in_child=refuse_in_child)
    BindingState.process = os.getpid()
    torch.cuda.default_generators = make_default_generators()
    torch.cuda._get_device_properties = get_device_properties


def refuse_in_child() -> None:
    """In a forked child whose parent used CUDA: every use of the devices raises, as with a real GPU."""
    GpuState.forked = True
    recorder.replace(refuse_after_fork)


_properties: dict[int, CudaDeviceProperties] = {}


def get_device_properties(index: int) -> CudaDeviceProperties:
    found = _properties.get(index)
    if found is None or found.name != gpus[index].chip.full_name:
        gpu = find_gpu(index)
        found = _properties[index] = CudaDeviceProperties(gpu.chip, gpu.index)
    return found


def get_device() -> int:
    return _C._accelerator_getDeviceIndex()


def set_device(index: int) -> None:
    if index < 0:
        return
    if index >= len(gpus):
        raise invalid_ordinal()
    guard_set_device(index)


def exchange_device(index: int) -> int:
    if index < 0:
        return -1
    before = _C._accelerator_getDeviceIndex()
    if index != before:
        set_device(index)
    return before


def maybe_exchange_device(index: int) -> int:
    return exchange_device(index)


def get_arch_flags() -> str:
    return " ".join(architectures(gpus[0].chip.compute_capability))


def get_compiled_version() -> int:
    return CUDA_VERSION


def can_device_access_peer(device: int, peer: int) -> bool:
    find_gpu(device), find_gpu(peer)
    return device != peer


def synchronize() -> None:
    warn_of_synchronising()
    streams.synchronize_device(None)


def has_primary_context(index: int) -> bool:
    return is_initialised() and 0 <= index < len(gpus)


def is_initialised() -> bool:
    return bool(BindingState.process)


def get_blas_handle() -> int:
    return 0


def sleep(cycles: int) -> None:
    """torch.cuda._sleep: a kernel that spins for some cycles; on the timeline it is a stretch of host work."""
    timeline = current_timeline()
    if timeline is not None:
        timeline.host(cycles / (gpus[get_device()].chip.boost_clock or 1e9), "sleep")


# ---------------------------------------------------------------- warnings of hidden waits
def set_sync_debug_mode(mode: int) -> None:
    BindingState.sync_debug_mode = int(mode)


def get_sync_debug_mode() -> int:
    return BindingState.sync_debug_mode


def warn_of_synchronising() -> None:
    """What torch.cuda.set_sync_debug_mode asks for, where the host waits for the device."""
    if BindingState.sync_debug_mode == 1:
        import warnings

        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=3)
    elif BindingState.sync_debug_mode == 2:
        raise RuntimeError("called a synchronizing CUDA operation")


# ---------------------------------------------------------------- memory
def empty_cache() -> None:
    for gpu in gpus:
        gpu.allocator.release_cached()


def _valid_gpu(index: int) -> Gpu:
    """The GPU of an index. Raises RuntimeError, in the caching allocator's words, where there is none."""
    if not 0 <= index < len(gpus):
        raise RuntimeError(f"Invalid device argument {index}: did you call init?")
    return gpus[index]


def memory_stats(index: int) -> dict[str, Any]:
    return _valid_gpu(index).allocator.statistics()


def reset_peak_memory_stats(index: int) -> None:
    timeline = current_timeline()
    if timeline is not None:
        timeline.peak_memory()  # asks now, so that the run's summary knows the peak until here
    _valid_gpu(index).allocator.reset_peaks()


def reset_accumulated_memory_stats(index: int) -> None:
    _valid_gpu(index).allocator.reset_totals()


def host_memory_stats() -> dict[str, Any]:
    none = dict.fromkeys(("current", "peak", "allocated", "freed"), 0)
    times = dict.fromkeys(("total", "max", "min", "count", "avg"), 0)
    return {
        **{name: dict(none) for name in ("allocations", "allocated_bytes", "active_requests", "active_bytes")},
        **{name: dict(times) for name in ("host_alloc_time", "host_free_time")},
        "num_host_alloc": 0, "num_host_free": 0,
    }  # fmt: skip


def reset_host_memory_stats() -> None:
    """Pinned host memory is not counted, so there is nothing to set back."""


def set_memory_fraction(fraction: float, index: int) -> None:
    _valid_gpu(index).allocator.fraction = fraction


def get_memory_fraction(index: int) -> float:
    return _valid_gpu(index).allocator.fraction


def memory_snapshot(pool_id: tuple[Any, ...] | None = None) -> dict[str, Any]:
    """Segments, traces and settings; the segments of one pool where its id is given."""
    wanted = None if pool_id is None or pool_id[:2] == (0, 0) else pool_id[:2]
    segments = [segment for gpu in gpus for segment in gpu.allocator.snapshot()]
    return {
        "segments": [segment for segment in segments if wanted in (None, segment["segment_pool_id"])],
        "device_traces": [list(gpu.allocator.trace or ()) for gpu in gpus],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_ALLOC_CONF", ""), "expandable_segments": False,
            "max_split_size": -1, "garbage_collection_threshold": 0.0, "release_lock_on_cudamalloc": False,
            "pinned_use_cuda_host_register": False, "roundup_power2_divisions": {},
        },
        "external_annotations": [],
    }  # fmt: skip


def record_memory_history(enabled: Any = "all", *args: Any, **kwargs: Any) -> None:
    entries = None
    if enabled not in (None, False):
        entries = next((value for value in args if type(value) is int), None) or kwargs.get("max_entries") or 1 << 20
    BindingState.history = entries is not None
    for gpu in gpus:
        gpu.allocator.record_history(entries)


def is_history_enabled() -> bool:
    return BindingState.history


def attach_observer(observer: Any) -> None:
    for gpu in gpus:
        gpu.allocator.observers.append(observer)


def get_allocator_backend() -> str:
    return "native"


def set_memory_metadata(metadata: str) -> None:
    BindingState.memory_metadata = metadata


def get_memory_metadata() -> str:
    return BindingState.memory_metadata


_raw_allocations: dict[int, Any] = {}


def raw_alloc(size: int, stream: int) -> int:
    """torch.cuda.caching_allocator_alloc: an address of device memory without a tensor."""
    buffer = torch.empty(size, dtype=torch.uint8, device="cuda")
    _raw_allocations[buffer.data_ptr()] = buffer
    return buffer.data_ptr()


def raw_delete(address: int) -> None:
    if _raw_allocations.pop(address, None) is None:
        raise RuntimeError(f"invalid device pointer: {address:#x}")


def enable_caching_allocator(value: bool) -> None:
    """While it is off, memory is taken past the allocator, whose statistics do not count it, as with cudaMalloc."""
    for gpu in gpus:
        gpu.allocator.suspended = not value


def is_caching_allocator_enabled() -> bool:
    return not gpus[0].allocator.suspended


class MemPool:
    """torch._C._MemPool: memory set aside under an id of its own."""

    def __init__(self, allocator: Any = None, is_user_created: bool = True, use_on_oom: bool = False,
                 no_split: bool = False):  # fmt: skip
        if allocator is not None:
            raise RuntimeError("virtual GPUs have no allocator other than the caching one")
        number = graphs.graph_pool_handle()[1]
        self._id = (number, 0) if is_user_created else (0, number)
        self._users = 1

    @property
    def id(self) -> tuple[int, int]:
        return self._id

    @property
    def allocator(self) -> None:
        return None

    def use_count(self) -> int:
        return self._users

    def snapshot(self) -> list[dict[str, Any]]:
        return memory_snapshot(self._id)["segments"]


def begin_allocate_to_pool(index: int, pool_id: tuple[int, int]) -> None:
    find_gpu(index).allocator.begin_pool((pool_id[0], pool_id[1]), None)


def end_allocate_to_pool(index: int, pool_id: tuple[int, int]) -> None:
    find_gpu(index).allocator.end_pool((pool_id[0], pool_id[1]))


def release_pool(index: int, pool_id: tuple[int, int]) -> None:
    find_gpu(index).allocator.release_pool((pool_id[0], pool_id[1]))


class CudaAllocator:
    """torch._C._cuda_CUDAAllocator: a name for the one allocator that there is."""


def get_allocator() -> CudaAllocator:
    return CudaAllocator()


def custom_allocator(alloc_fn: int, free_fn: int) -> CudaAllocator:
    raise RuntimeError("virtual GPUs have no allocator other than the caching one")


def change_current_allocator(allocator: Any) -> None:
    raise RuntimeError("virtual GPUs have no allocator other than the caching one")


# ---------------------------------------------------------------- CUDA runtime
class CudaError(enum.IntEnum):
    success = 0
    invalid_value = 1
    memory_allocation = 2
    not_ready = 600


def _succeed(*args: Any) -> CudaError:
    return CudaError.success


# Source: the texts of cudaGetErrorString, CUDA runtime 13.
_ERRORS = {
    0: "no error", 1: "invalid argument", 2: "out of memory", 3: "initialization error",
    100: "no CUDA-capable device is detected", 101: "invalid device ordinal", 201: "invalid device context",
    209: "no kernel image is available for execution on the device", 217: "peer access is not supported between these "
    "two devices", 400: "invalid resource handle", 600: "device not ready", 700: "an illegal memory access was "
    "encountered", 701: "too many resources requested for launch", 702: "the launch timed out and was terminated",
    704: "peer access is already enabled", 710: "device-side assert triggered", 716: "misaligned address",
    719: "unspecified launch failure", 801: "operation not supported",
    900: "operation not permitted when stream is capturing", 999: "unknown error",
}  # fmt: skip


def get_error_string(code: int) -> str:
    return _ERRORS.get(int(code), "unrecognized error code")


def get_memory_info(index: int) -> tuple[int, int]:
    """(free, total) in bytes."""
    gpu = find_gpu(index)
    return gpu.allocator.free_bytes(), gpu.chip.memory_bytes


def device_synchronize() -> CudaError:
    streams.synchronize_device(None)
    return CudaError.success


def make_cudart() -> types.ModuleType:
    """torch._C._cudart: the functions of the CUDA runtime that PyTorch exposes."""
    module = types.ModuleType("torch._C._cudart")
    for name, function in {
        "cudaError": CudaError, "cudaGetErrorString": get_error_string, "cudaMemGetInfo": get_memory_info,
        "cudaProfilerStart": _succeed, "cudaProfilerStop": _succeed, "cudaHostRegister": _succeed,
        "cudaHostUnregister": _succeed, "cudaStreamCreate": _succeed, "cudaStreamDestroy": _succeed,
        "cudaDeviceSynchronize": device_synchronize,
    }.items():  # fmt: skip
        setattr(module, name, function)
    return module


def get_cudnn_version(*_: Any) -> tuple[int, int, int]:
    return (CUDNN_VERSION // 10000, CUDNN_VERSION // 100 % 100, CUDNN_VERSION % 100)


def make_cudnn() -> types.ModuleType:
    """torch._C._cudnn."""
    module = types.ModuleType("torch._C._cudnn")

    class RNNMode(enum.IntEnum):
        rnn_relu, rnn_tanh, lstm, gru = range(4)

    module.is_cuda = True  # type: ignore[attr-defined]
    module.RNNMode = RNNMode  # type: ignore[attr-defined]
    for name in ("getRuntimeVersion", "getCompileVersion"):
        setattr(module, name, get_cudnn_version)
    module.getVersionInt = get_cudnn_version_number  # type: ignore[attr-defined]
    return module


def get_cudnn_version_number() -> int:
    return CUDNN_VERSION


# ---------------------------------------------------------------- settings that only cuBLAS and cuDNN would read
def _do_nothing(*args: Any) -> None:
    """For calls whose effect a virtual GPU does not have: handles, plan caches, inter-process memory."""


def get_blas_workspace() -> int:
    return BindingState.blas_workspace


def set_blas_workspace(size: int) -> None:
    BindingState.blas_workspace = size


def get_blas_lt_workspace() -> int:
    return BindingState.blas_lt_workspace


def set_blas_lt_workspace(size: int) -> None:
    BindingState.blas_lt_workspace = size


def get_benchmark_limit() -> int:
    return BindingState.benchmark_limit


def set_benchmark_limit(limit: int) -> None:
    BindingState.benchmark_limit = limit


def get_benchmark_empty_cache() -> bool:
    return BindingState.benchmark_empty_cache


def set_benchmark_empty_cache(enable: bool) -> None:
    BindingState.benchmark_empty_cache = enable


def nccl_version() -> int:
    major, minor, patch = NCCL_VERSION
    return major << 32 | minor << 16 | patch


def nccl_version_suffix() -> bytes:
    return b""


_FUNCTIONS = {
    "_cuda_init": initialise, "_cuda_isInBadFork": is_in_bad_fork, "_cuda_getDeviceCount": get_device_count,
    "_cuda_getDevice": get_device, "_cuda_setDevice": set_device, "_cuda_exchangeDevice": exchange_device,
    "_cuda_maybeExchangeDevice": maybe_exchange_device, "_cuda_getArchFlags": get_arch_flags,
    "_cuda_getCompiledVersion": get_compiled_version, "_cuda_canDeviceAccessPeer": can_device_access_peer,
    "_cuda_synchronize": synchronize, "_cuda_hasPrimaryContext": has_primary_context, "_cuda_sleep": sleep,
    "_cuda_getCurrentBlasHandle": get_blas_handle, "_cuda_getCurrentSolverHandle": get_blas_handle,
    "_cuda_set_sync_debug_mode": set_sync_debug_mode, "_cuda_get_sync_debug_mode": get_sync_debug_mode,
    "_cuda_emptyCache": empty_cache, "_cuda_memoryStats": memory_stats, "_cuda_ipc_collect": _do_nothing,
    "_cuda_resetPeakMemoryStats": reset_peak_memory_stats, "_cuda_memorySnapshot": memory_snapshot,
    "_cuda_resetAccumulatedMemoryStats": reset_accumulated_memory_stats, "_cuda_hostMemoryStats": host_memory_stats,
    "_cuda_resetAccumulatedHostMemoryStats": reset_host_memory_stats,
    "_cuda_resetPeakHostMemoryStats": reset_host_memory_stats, "_cuda_setMemoryFraction": set_memory_fraction,
    "_cuda_getMemoryFraction": get_memory_fraction, "_cuda_record_memory_history": record_memory_history,
    "_cuda_record_memory_history_legacy": record_memory_history, "_cuda_isHistoryEnabled": is_history_enabled,
    "_cuda_attach_out_of_memory_observer": attach_observer, "_cuda_getAllocatorBackend": get_allocator_backend,
    "_cuda_setMemoryMetadata": set_memory_metadata, "_cuda_getMemoryMetadata": get_memory_metadata,
    "_cuda_cudaCachingAllocator_raw_alloc": raw_alloc, "_cuda_cudaCachingAllocator_raw_delete": raw_delete,
    "_cuda_cudaCachingAllocator_enable": enable_caching_allocator,
    "_cuda_cudaCachingAllocator_is_enabled": is_caching_allocator_enabled,
    "_cuda_beginAllocateToPool": begin_allocate_to_pool, "_cuda_endAllocateToPool": end_allocate_to_pool,
    "_cuda_beginAllocateCurrentThreadToPool": begin_allocate_to_pool,
    "_cuda_beginAllocateCurrentStreamToPool": begin_allocate_to_pool, "_cuda_releasePool": release_pool,
    "_cuda_getAllocator": get_allocator, "_cuda_customAllocator": custom_allocator,
    "_cuda_changeCurrentAllocator": change_current_allocator, "_cuda_clearCublasWorkspaces": _do_nothing,
    "_cuda_getCublasWorkspaceSize": get_blas_workspace, "_cuda_setCublasWorkspaceSize": set_blas_workspace,
    "_cuda_getCublasLtWorkspaceSize": get_blas_lt_workspace,
    "_cuda_setCublasLtWorkspaceSize": set_blas_lt_workspace, "_cuda_resetCublasWorkspaceSize": _do_nothing,
    "_cuda_resetCublasLtWorkspaceSize": _do_nothing, "_cuda_get_cudnn_benchmark_limit": get_benchmark_limit,
    "_cuda_set_cudnn_benchmark_limit": set_benchmark_limit,
    "_cuda_get_conv_benchmark_empty_cache": get_benchmark_empty_cache,
    "_cudnn_set_conv_benchmark_empty_cache": set_benchmark_empty_cache,
    "_cuda_getCurrentStream": streams.current_stream_data,
    "_cuda_getDefaultStream": streams.default_stream_data, "_cuda_setStream": streams.set_stream,
    "_cuda_getStreamFromExternal": streams.external_stream_data,
    "_cuda_getCurrentRawStream": streams.current_raw_stream,
    "_cuda_isCurrentStreamCapturing": graphs.is_capturing, "_graph_pool_handle": graphs.graph_pool_handle,
    "_nccl_version": nccl_version, "_nccl_version_suffix": nccl_version_suffix,
}  # fmt: skip

_CLASSES = {
    "_CudaStreamBase": streams.CudaStreamBase, "_CudaEventBase": streams.CudaEventBase,
    "_CudaDeviceProperties": CudaDeviceProperties, "_CUDAGraph": graphs.CudaGraph, "_MemPool": MemPool,
    "_cuda_CUDAAllocator": CudaAllocator,
}  # fmt: skip


def fill_bindings() -> None:
    """Puts the functions and classes into torch._C."""
    for name, value in {**_FUNCTIONS, **_CLASSES, **tunable.FUNCTIONS}.items():
        setattr(_C, name, value)
    _C._has_cuda = True
    _C._has_cudnn = True
    _C._cudart = make_cudart()
    _C._cudnn = make_cudnn()
    _C._nvtx = nvtx
