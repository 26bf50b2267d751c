"""Streams and events: what torch.cuda.Stream and torch.cuda.Event stand on, with the timeline as their clock.

The numbers are computed in the order of the program, so every stream is always ready; when work would run on the GPU,
and how long, the timeline says. Which stream is current is kept in torch's device guard, per thread.
"""

from __future__ import annotations

import itertools
import struct
from typing import Any

import torch

from weft.frontends.torch.gpus import StreamState, find_gpu, gpus, guard_set_device, guard_stream
from weft.frontends.torch.layout import CUDA
from weft.frontends.torch.recording import current_timeline

_C = torch._C
guard_set_stream = _C._accelerator_setStream
_Stream: Any = _C.Stream
_Event: Any = _C.Event
POOL_SIZE = 32  # streams per priority; PyTorch hands them out in turn
PRIORITIES = 4  # 0 to -3; lower numbers than that count as -3
_pools: dict[tuple[int, int], itertools.count] = {}
_event_numbers = itertools.count(1)
_EVENT_MARK = b"weft-evt"


def _next_stream(index: int, priority: int) -> int:
    """The id of a stream of the pool; its last two bits are the priority, negated. Raises RuntimeError for one above 0.
    """
    if priority > 0:
        raise RuntimeError(f"Expected cuda stream priority to be less than or equal to 0, got {priority}")
    level = min(-priority, PRIORITIES - 1)
    count = _pools.setdefault((index, level), itertools.count())
    return PRIORITIES * (1 + next(count) % POOL_SIZE) + level


def _check_index(index: int) -> None:
    """Raises RuntimeError, as getCurrentCUDAStream does, for a device that is not there."""
    if index >= len(gpus):
        raise RuntimeError(f"Device index value {index} is out of index range [0, {len(gpus)})")


def current_stream_data(index: int) -> tuple[int, int, int]:
    """torch._C._cuda_getCurrentStream: (stream id, device index, device type)."""
    _check_index(index)
    index = find_gpu(index).index
    return (guard_stream(index).stream_id, index, CUDA)


def default_stream_data(index: int) -> tuple[int, int, int]:
    _check_index(index)
    return (0, find_gpu(index).index, CUDA)


def external_stream_data(pointer: int, index: int) -> tuple[int, int, int]:
    return (pointer, find_gpu(index).index, CUDA)


def current_raw_stream(index: int) -> int:
    """torch._C._cuda_getCurrentRawStream: what kernels are launched on."""
    return guard_stream(index).stream_id if StreamState.used else 0


def set_stream(stream_id: int, device_index: int, device_type: int) -> None:
    """Makes a stream and its device current for the calling thread."""
    if stream_id:
        StreamState.used = True
    if StreamState.used:
        guard_set_stream(
            torch._C.Stream(stream_id=stream_id, device_index=device_index, device_type=device_type)
        )
    guard_set_device(device_index)


class CudaStreamBase(_Stream):
    """torch._C._CudaStreamBase. cuda_stream, the handle, is the stream's id; 0 is the default stream."""

    def __new__(cls, priority: int = 0, stream_id: int = 0, device_index: int | None = None,
                device_type: int = CUDA, stream_ptr: int = 0, **_: Any) -> Any:  # fmt: skip
        index = find_gpu(device_index).index
        if stream_ptr:
            stream_id = stream_ptr
        elif not stream_id and device_index is None:
            stream_id = _next_stream(index, priority)
        self = _C.Stream.__new__(cls, stream_id=stream_id, device_index=index, device_type=CUDA)
        self._priority = 0 if stream_ptr else -(stream_id % PRIORITIES)
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @property
    def cuda_stream(self) -> int:
        return self.stream_id

    @property
    def native_handle(self) -> int:
        return self.stream_id

    @property
    def priority(self) -> int:
        return self._priority

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return (0, 1 - PRIORITIES)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        timeline = current_timeline()
        if timeline is not None:
            timeline.synchronize(self.device_index, stream=self.stream_id)

    def is_capturing(self) -> bool:
        from weft.frontends.torch.graphs import is_capturing

        return is_capturing()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _C.Stream):
            return False
        return (self.stream_id, self.device) == (other.stream_id, other.device)

    def __hash__(self) -> int:
        return hash((self.stream_id, self.device))


class CudaEventBase(_Event):
    """torch._C._CudaEventBase. cuda_event, the handle, is a number of the timeline's, 0 before the first record."""

    _timed: bool
    _interprocess: bool
    _number: int
    _device_index: int

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False,
                external: bool = False, **_: Any) -> Any:  # fmt: skip
        self = _C.Event.__new__(cls, device=torch.device("cuda"), enable_timing=enable_timing)
        if interprocess and enable_timing:
            raise torch.AcceleratorError("CUDA error: invalid argument")
        self._timed, self._interprocess, self._number, self._device_index = enable_timing, interprocess, 0, -1
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def from_ipc_handle(cls, device: Any, handle: bytes) -> Any:
        """An event of another process. Operators run when they are called, so what it marks is over."""
        index, mark = struct.unpack_from("<q8s", handle)
        if mark != _EVENT_MARK:
            raise torch.AcceleratorError("CUDA error: invalid argument")
        self = cls(enable_timing=False, interprocess=True)
        self._number, self._device_index = next(_event_numbers), find_gpu(index).index
        return self

    def ipc_handle(self) -> bytes:
        """64 bytes for from_ipc_handle. Raises torch.AcceleratorError for an event that was not made for it."""
        if not self._interprocess:
            raise torch.AcceleratorError("CUDA error: invalid resource handle")
        if not self._number:
            self.record()
        return struct.pack("<q8s", self._device_index, _EVENT_MARK).ljust(64, b"\0")

    @property
    def cuda_event(self) -> int:
        return self._number

    @property
    def event_id(self) -> int:
        return self._number

    @property
    def device(self) -> Any:
        return torch.device("cuda", self._device_index) if self._number else None

    def record(self, stream: Any = None) -> None:
        stream = stream if stream is not None else torch.cuda.current_stream()
        if self._number and stream.device_index != self._device_index:
            raise RuntimeError(
                f"Event device {self._device_index} does not match recording stream's device {stream.device_index}."
            )
        if not self._number:
            self._number, self._device_index = next(_event_numbers), stream.device_index
        timeline = current_timeline()
        if timeline is not None:
            timeline.record_event(self._number, stream.stream_id, stream.device_index)

    def wait(self, stream: Any = None) -> None:
        stream = stream if stream is not None else torch.cuda.current_stream()
        timeline = current_timeline()
        if self._number and timeline is not None:
            timeline.wait_event(self._number, stream.stream_id, stream.device_index)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        timeline = current_timeline()
        if self._number and timeline is not None:
            timeline.synchronize(self._device_index, event=self._number)

    def elapsed_time(self, other: Any) -> float:
        """Milliseconds on the device's clock. Raises ValueError for events that were not recorded or take no time."""
        if not self._timed or not other._timed:
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if not self._number or not other._number:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        timeline = current_timeline()
        assert timeline is not None, "events need a timeline"
        return timeline.elapsed(self._number, other._number)


def synchronize_device(index: int | None = None) -> None:
    """torch.cuda.synchronize(): the host's clock waits for all streams of the device."""
    timeline = current_timeline()
    if timeline is not None:
        timeline.synchronize(find_gpu(index).index)
