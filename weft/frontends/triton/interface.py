"""What Triton asks of torch.cuda about streams and events, for CPU tensors on a virtual GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from weft.frontends.devices import virtual_device, virtual_devices
from weft.runtime.stream import Event as DeviceEvent
from weft.runtime.stream import Stream as DeviceStream


class DeviceInterface:
    """`driver.active.get_device_interface()`: the part of torch.cuda that programs for Triton use."""

    def Event(self, enable_timing: bool = False, **_: Any) -> DeviceEvent:
        return DeviceEvent(virtual_device(), enable_timing)

    def Stream(self, device: Any = None, priority: int = 0, **_: Any) -> DeviceStream:
        return DeviceStream(virtual_device(), priority)

    def synchronize(self, device: Any = None) -> None:
        virtual_device().synchronize()

    def current_stream(self, device: Any = None) -> DeviceStream:
        return virtual_device().default_stream

    default_stream = current_stream

    @contextmanager
    def stream(self, stream: Any) -> Iterator[Any]:
        yield stream

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return len(virtual_devices())

    def is_available(self) -> bool:
        return True

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return virtual_device().compute_capability

    def get_device_name(self, device: Any = None) -> str:
        return virtual_device().name
