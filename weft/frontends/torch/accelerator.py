"""torch.accelerator, torch.Stream and torch.Event: the names of the generic interface, led to the CUDA ones."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from weft.frontends.torch import bindings
from weft.frontends.torch.gpus import StreamState, find_gpu, guard_set_device
from weft.frontends.torch.graphs import CudaGraph
from weft.frontends.torch.layout import CUDA
from weft.frontends.torch.streams import CudaEventBase, CudaStreamBase, guard_set_stream, synchronize_device

_C = torch._C
_Stream, _Event = _C.Stream, _C.Event


class _Kind(type):
    """Lets isinstance(x, torch.Stream) hold for every stream, whoever made it."""

    base: type

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.base)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        return issubclass(subclass, cls.base)


class _StreamKind(_Kind):
    base = _Stream


class _EventKind(_Kind):
    base = _Event


def _is_cuda(device: Any) -> bool:
    if device is None:
        return True
    return isinstance(device, int) or torch.device(device).type == "cuda"


class Stream(metaclass=_StreamKind):
    """torch.Stream(device): a CUDA stream for CUDA devices, the default being the accelerator."""

    def __new__(cls, device: Any = None, *args: Any, priority: int = 0, **kwargs: Any) -> Any:
        if "stream_id" in kwargs:
            if kwargs.get("device_type", CUDA) != CUDA:
                return _Stream(**kwargs)
            return torch.cuda.Stream(stream_id=kwargs["stream_id"], device_index=kwargs["device_index"])
        if args or not _is_cuda(device):
            return _Stream(device, *args, priority=priority, **kwargs)
        index = device if isinstance(device, int) else torch.device(device or "cuda").index
        return torch.cuda.Stream(find_gpu(index).index, priority=priority)


class Event(metaclass=_EventKind):
    """torch.Event(device): a CUDA event for CUDA devices, the default being the accelerator."""

    def __new__(cls, device: Any = None, *, enable_timing: bool = False, blocking: bool = False,
                interprocess: bool = False) -> Any:  # fmt: skip
        if not _is_cuda(device):
            return _Event(device, enable_timing=enable_timing, blocking=blocking, interprocess=interprocess)
        return torch.cuda.Event(enable_timing=enable_timing, blocking=blocking)


class AcceleratorGraph(CudaGraph):
    """torch._C._acceleratorGraph, which torch.accelerator.Graph stands on."""

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "default", **_: Any) -> None:
        super().capture_begin(pool, capture_error_mode)


def synchronize(index: int = -1) -> None:
    bindings.warn_of_synchronising()
    synchronize_device(index)


def get_stream(index: int) -> Any:
    return torch.cuda.current_stream(index)


def set_stream(stream: Any) -> None:
    if stream.stream_id:
        StreamState.used = True
    guard_set_stream(_Stream(stream_id=stream.stream_id, device_index=stream.device_index, device_type=CUDA))
    guard_set_device(stream.device_index)


def get_capability(index: int) -> dict[str, Any]:
    return {"supported_dtypes": {
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
        torch.int64, torch.bool, torch.complex64, torch.complex128,
    }}  # fmt: skip


def is_allocator_initialised() -> bool:
    return bindings.is_initialised()


def get_memory_info(index: int) -> tuple[int, int]:
    return bindings.get_memory_info(index)


def _do_nothing(*args: Any) -> None:
    """Pinned memory is not cached here."""


def patch_accelerator() -> None:
    """Puts the functions in place of those that the guard for tests lacks."""
    for name, function in {
        "_accelerator_synchronizeDevice": synchronize, "_accelerator_setStream": set_stream,
        "_accelerator_getStream": get_stream,
        "_accelerator_getDeviceCapability": get_capability, "_accelerator_emptyCache": bindings.empty_cache,
        "_accelerator_emptyHostCache": _do_nothing, "_host_emptyCache": _do_nothing,
        "_accelerator_isAllocatorInitialized": is_allocator_initialised,
        "_accelerator_getDeviceStats": bindings.memory_stats, "_accelerator_getMemoryInfo": get_memory_info,
        "_accelerator_resetAccumulatedStats": bindings.reset_accumulated_memory_stats,
        "_accelerator_resetPeakStats": bindings.reset_peak_memory_stats,
        "_accelerator_setDeviceIndex": bindings.set_device, "_accelerator_exchangeDevice": bindings.exchange_device,
        "_accelerator_maybeExchangeDevice": bindings.maybe_exchange_device, "_acceleratorGraph": AcceleratorGraph,
    }.items():  # fmt: skip
        setattr(_C, name, function)
    torch.Stream, torch.Event = Stream, Event
    torch.accelerator.Graph = importlib.reload(torch.accelerator.graphs).Graph
    assert issubclass(CudaStreamBase, _Stream) and issubclass(CudaEventBase, _Event)
