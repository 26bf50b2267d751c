"""NVTX: ranges and marks that a program names, put on the timeline."""

from __future__ import annotations

import itertools
import threading
import types
from typing import Any

import torch

from weft.frontends.torch.recording import current_timeline

_depth = threading.local()
_handles = itertools.count(1)


def range_push(message: str) -> int:
    """Opens a range; the depth that it has."""
    timeline = current_timeline()
    if timeline is not None:
        timeline.push_range(message, torch._C._accelerator_getDeviceIndex())
    depth = getattr(_depth, "value", 0)
    _depth.value = depth + 1
    return depth


def range_pop() -> int:
    """Closes the innermost range; the depth that it had, -2 where none was open (as NVTX)."""
    depth = getattr(_depth, "value", 0)
    if depth == 0:
        return -2
    timeline = current_timeline()
    if timeline is not None:
        timeline.pop_range(torch._C._accelerator_getDeviceIndex())
    _depth.value = depth - 1
    return depth - 1


def mark(message: str) -> None:
    timeline = current_timeline()
    if timeline is not None:
        timeline.mark(message, torch._C._accelerator_getDeviceIndex())


def range_start(message: str) -> int:
    """Starts a range that another thread may end; on the timeline its two ends are marks."""
    handle = next(_handles)
    _started[handle] = message
    mark(f"{message} (start)")
    return handle


def range_end(handle: int) -> None:
    mark(f"{_started.pop(handle, '')} (end)")


_started: dict[int, str] = {}


def _device_range_start(message: str, stream: int) -> Any:
    return range_start(message)


def _device_range_end(handle: Any, stream: int) -> None:
    range_end(handle)


nvtx = types.SimpleNamespace(
    rangePushA=range_push, rangePop=range_pop, markA=mark, rangeStartA=range_start, rangeEnd=range_end,
    deviceRangeStart=_device_range_start, deviceRangeEnd=_device_range_end,
)  # fmt: skip
