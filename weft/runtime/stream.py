"""Streams and events with CUDA's interface. Work is done when it is issued, so every order that CUDA allows holds.

Launches and copies return when they are finished. A stream therefore never has anything pending: `synchronize` and
`wait_event` return at once, `query` is true. Times are measured on the host and say how long this machine took, not
how long the chip would.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weft.errors import InvalidValueError

if TYPE_CHECKING:
    from weft.runtime.device import Device


class Stream:
    """A queue of work on a device. Priority and non_blocking are kept for programs that ask."""

    def __init__(self, device: Device, priority: int = 0, non_blocking: bool = False):
        self.device, self.priority, self.non_blocking = device, priority, non_blocking

    def __repr__(self) -> str:
        return f"<weft.Stream on {self.device.name}>"

    def synchronize(self) -> None:
        """Waits for the stream's work: there is never any left."""

    def query(self) -> bool:
        """Whether all work is done: always."""
        return True

    def wait_event(self, event: Event) -> None:
        """Lets later work wait for the event. Work is done in the order of issue, so it already happened."""
        if not isinstance(event, Event):
            raise InvalidValueError(f"invalid argument: found {type(event).__name__}, expected an Event")

    def record_event(self, event: Event | None = None) -> Event:
        """Records an event (a new one by default) and returns it."""
        event = event or Event(self.device)
        event.record(self)
        return event

    def launch_host_function(self, function: Callable[..., Any], *args: Any) -> None:
        """Calls a function on the host after the stream's work: at once."""
        function(*args)


class Event:
    """A point in a stream's work."""

    timing_source = "measured on the host"

    def __init__(self, device: Device, enable_timing: bool = True):
        self.device, self.enable_timing = device, enable_timing
        self._recorded_ns: int | None = None

    def __repr__(self) -> str:
        state = "not recorded" if self._recorded_ns is None else "recorded"
        return f"<weft.Event on {self.device.name}, {state}>"

    def record(self, stream: Stream | None = None) -> None:
        """Marks the work issued so far. Raises InvalidValueError for another device's stream."""
        if stream is not None and getattr(stream, "device", self.device) is not self.device:
            raise InvalidValueError("invalid argument: the stream belongs to another device than the event")
        self._recorded_ns = time.perf_counter_ns()

    def query(self) -> bool:
        """Whether the marked work is done: always."""
        return True

    def synchronize(self) -> None:
        """Waits for the marked work: it is done."""

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to `end`, measured on the host. Raises InvalidValueError where one was not
        recorded or keeps no time."""
        for name, event in (("start", self), ("end", end)):
            if not event.enable_timing:
                raise InvalidValueError(f"invalid argument: the {name} event was made with enable_timing=False")
            if event._recorded_ns is None:
                raise InvalidValueError(f"invalid argument: the {name} event was not recorded")
        return (end._recorded_ns - self._recorded_ns) / 1e6  # type: ignore[operator]
