"""torch.profiler on virtual GPUs: PyTorch's own record of operators in, the same with the device's work beside it out.

PyTorch's profiler runs as on a CPU build and gives the host's side, measured on this machine. While it runs, every
record of the timeline is stamped; afterwards the records are priced, and each kernel, copy and collective becomes a
device event, tied to the operator that was running when it was issued. Device times are predicted ones, on the virtual
device's clock, which starts with the profile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType, profiler
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.recording import current_timeline, recorder
from weft.model.clock import Span

# Spans of a timeline that are a device's work, and what kineto calls their kind.
_CATEGORIES = {"kernel": "kernel", "copy": "gpu_memcpy", "collective": "kernel"}
_COPIES = {
    "copy_h2d": "Memcpy HtoD", "copy_d2h": "Memcpy DtoH", "copy_d2d": "Memcpy DtoD", "copy_p2p": "Memcpy PtoP",
}  # fmt: skip
_CORRELATION = 1 << 40  # ids of device events start here, out of the way of kineto's

_profile = profiler.profile
_init, _start_trace, _exit = _profile.__init__, _profile._start_trace, _profile.__exit__
_parse_results, _export_trace = _profile._parse_kineto_results, _profile.export_chrome_trace
_toggle = _profile.toggle_collection_dynamic
_own_activities = torch.autograd._supported_activities


@dataclass
class DeviceWork:
    """One piece of a device's work, microseconds since the profile's start; when (ns) its record was issued; the
    operator that issued it, where one was running."""

    span: Span
    start: float
    duration: float
    stamp: int
    correlation: int = 0
    issuer: Any = None

    @property
    def name(self) -> str:
        return _COPIES.get(self.span.name, self.span.name)


@dataclass
class Collection:
    """What one profile collects. stamps: time in ns since the epoch of each record; `work` is there once it ended."""

    timeline: Any
    first: int
    clock: Any
    stamps: list[int] = field(default_factory=list)
    off: list[tuple[int, int]] = field(default_factory=list)  # times between which the device was not collected
    work: list[DeviceWork] = field(default_factory=list)
    annotations: dict[int, tuple[Any, list[DeviceWork]]] = field(default_factory=dict)

    def stamp(self) -> None:
        self.stamps.append(time.time_ns())

    def finish(self) -> None:
        """Prices the records since the start."""
        self.timeline.tap(None)
        records = self.timeline.records_since(self.first)
        stamps = self.stamps[-len(records) :] if len(records) else []
        spans: list[Span] = []
        clock = self.clock.fork(spans.append)
        begin = clock.host_time
        for place, stamp in enumerate(stamps):
            clock.advance(records, place, place + 1)
            if not any(since <= stamp < until for since, until in self.off):
                for span in spans:
                    if span.kind in _CATEGORIES:
                        work = DeviceWork(span, max(0.0, span.start - begin) * 1e6, span.seconds * 1e6, stamp)
                        work.correlation = _CORRELATION + len(self.work)
                        self.work.append(work)
            spans.clear()


# ---------------------------------------------------------------- torch.autograd.profiler.profile
def supported_activities() -> set[ProfilerActivity]:
    """torch.profiler.supported_activities()."""
    return {*_own_activities(), ProfilerActivity.CUDA}


def init(self: Any, *args: Any, **kwargs: Any) -> None:
    """profile.__init__: kineto is asked for the host's activities alone."""
    _init(self, *args, **kwargs)
    self._weft = None
    if not self.enabled or self.use_device != "cuda":
        return
    self.profiler_kind = torch.autograd.ProfilerState.KINETO
    # Kineto takes no empty set; with the device alone, what it says of the host is left out again.
    self.kineto_activities.discard(ProfilerActivity.CUDA)
    self.kineto_activities = self.kineto_activities or {ProfilerActivity.CPU}


def start_trace(self: Any) -> None:
    _start_trace(self)
    timeline = current_timeline()
    if self.use_device == "cuda" and timeline is not None:
        self._weft = Collection(timeline, timeline.record_count, timeline.clock.fork(_ignore))
        timeline.tap(self._weft.stamp)


def _ignore(span: Span) -> None:
    """For a clock that only keeps its state."""


def leave(self: Any, *error: Any) -> Any:
    """profile.__exit__."""
    result = _exit(self, *error)
    if self.enabled and self._weft is not None:
        self._weft.finish()
    return result


def toggle_collection_dynamic(self: Any, enabled: bool, activities: Iterable[ProfilerActivity]) -> Any:
    """Kineto switches the host's part, this the device's."""
    wanted = set(activities)
    if ProfilerActivity.CUDA in wanted and self._weft is not None:
        off, now = self._weft.off, time.time_ns()
        if not enabled and not (off and off[-1][1] == 1 << 63):
            off.append((now, 1 << 63))
        elif enabled and off and off[-1][1] == 1 << 63:
            off[-1] = (off[-1][0], now)
    wanted.discard(ProfilerActivity.CUDA)
    return _toggle(self, enabled, wanted) if wanted else None


# ---------------------------------------------------------------- operators and their kernels
def parse_results(self: Any, result: Any, timeout_s: float | None = None) -> list[Any]:
    """profile._parse_kineto_results with the device's events among the host's."""
    events = _parse_results(self, result, timeout_s)
    if self._weft is None:
        return events
    events = drop_redispatched(events)
    tie_work(self._weft, events, result.trace_start_ns())
    for work in self._weft.work:
        if work.issuer is not None:
            work.issuer.append_kernel(work.name, work.span.device, work.duration)
    if not self.use_cpu:
        events = []
    events = [*events, *(_make_event(work.name, work, work.start, work.duration) for work in self._weft.work)]
    for annotation, issued in self._weft.annotations.values():
        start, end = _extent(issued)
        events.append(_make_event(annotation.name, issued[0], start, end - start, annotation=True))
    events.sort(key=lambda event: (event.time_range.start, -event.time_range.end))
    return events


def _extent(issued: list[DeviceWork]) -> tuple[float, float]:
    """From the first start to the last end, microseconds."""
    return min(work.start for work in issued), max(work.start + work.duration for work in issued)


def _make_event(name: str, work: DeviceWork, start: float, duration: float, annotation: bool = False) -> FunctionEvent:
    return FunctionEvent(
        id=work.correlation, name=name, trace_name=name, overload_name="", thread=work.span.stream, start_us=start,
        end_us=start + duration, fwd_thread=0, input_shapes=[], stack=[], use_device="cuda",
        device_type=DeviceType.CUDA, device_index=work.span.device, device_resource_id=work.span.stream,
        is_user_annotation=annotation, flops=0,
        activity_type="gpu_user_annotation" if annotation else _CATEGORIES[work.span.kind],
    )  # fmt: skip


def drop_redispatched(events: list[Any]) -> list[Any]:
    """The events without operators right inside one of the same name: the CPU's kernel, called by a CUDA one.

    PyTorch drops those too, but takes the kernels of the inner one for both.
    """
    kept: list[Any] = []
    running: dict[int, list[Any]] = {}
    for event in sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end)):
        if event.device_type == DeviceType.CPU and not event.is_async:
            stack = running.setdefault(event.thread, [])
            while stack and stack[-1].time_range.end < event.time_range.end:
                stack.pop()
            if stack and stack[-1].name == event.name and event.name.startswith("aten::"):
                continue
            stack.append(event)
        kept.append(event)
    return kept


def tie_work(collection: Collection, events: list[Any], trace_start: int) -> None:
    """Finds for each piece of work the innermost operator of the host that was running when it was issued, and the
    user's annotations (record_function) around it."""
    host = [event for event in events if event.device_type == DeviceType.CPU and not event.is_async]
    host.sort(key=lambda event: (event.time_range.start, -event.time_range.end))
    running: dict[int, list[Any]] = {}  # thread -> what runs in it, outermost first
    place = 0
    collection.annotations = {}
    for work in collection.work:
        now = (work.stamp - trace_start) / 1e3
        while place < len(host) and host[place].time_range.start <= now:
            running.setdefault(host[place].thread, []).append(host[place])
            place += 1
        innermost = None
        for thread, stack in running.items():
            running[thread] = stack = [event for event in stack if event.time_range.end >= now]
            if stack and (innermost is None or stack[-1].time_range.start > innermost.time_range.start):
                innermost = stack[-1]
        work.issuer = innermost
        if innermost is not None:
            for event in running[innermost.thread]:
                if event.is_user_annotation:
                    collection.annotations.setdefault(id(event), (event, []))[1].append(work)


# ---------------------------------------------------------------- traces
def export_chrome_trace(self: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
    """profile.export_chrome_trace: kineto's file with the device's processes added."""
    result = _export_trace(self, path, *args, **kwargs)
    if self._weft is not None:
        if not self.experimental_config.trace_only:
            self._ensure_function_events()  # ties work to operators
        trace = json.loads(Path(path).read_text())
        add_device_events(trace, self._weft, _start_of(self))
        Path(path).write_text(json.dumps(trace))
    return result


def _start_of(profile: Any) -> int:
    return int(profile.kineto_results.trace_start_ns())


def add_device_events(trace: dict[str, Any], collection: Collection, start_ns: int) -> None:
    """Puts the device's work into a trace of kineto's: a process per device, a thread per stream, arrows from the
    operators."""
    base = start_ns / 1e3 - trace.get("baseTimeNanoseconds", 0) / 1e3
    events = trace["traceEvents"]
    operators = {
        event["args"]["External id"]: event
        for event in events
        if event.get("cat") == "cpu_op" and "External id" in event.get("args", {})
    }
    trace["deviceProperties"] = [
        {"id": gpu.index, "name": f"{gpu.chip.full_name} (virtual; times are predicted)",
         "totalGlobalMem": gpu.chip.memory_bytes, "numSms": gpu.chip.sm_count,
         "computeMajor": gpu.chip.compute_capability[0], "computeMinor": gpu.chip.compute_capability[1]}
        for gpu in gpus
    ]  # fmt: skip
    named: set[Any] = set()
    for work in collection.work:
        device, stream = work.span.device, work.span.stream
        place = {"pid": device, "tid": stream}
        if device not in named:
            named.add(device)
            label = f"GPU {device}, predicted"
            events.append({"ph": "M", "name": "process_name", "ts": base, **place, "args": {"name": "weft"}})
            events.append({"ph": "M", "name": "process_labels", "ts": base, **place, "args": {"labels": label}})
        if (device, stream) not in named:
            named.add((device, stream))
            events.append({"ph": "M", "name": "thread_name", "ts": base, **place,
                           "args": {"name": f"stream {stream}"}})  # fmt: skip
        arguments = {
            "device": device, "stream": stream, "correlation": work.correlation, "basis": work.span.basis,
            "limited by": work.span.limiter, "started after": work.span.waited_for,
        }  # fmt: skip
        operator = operators.get(work.issuer.id) if work.issuer is not None else None
        if operator is not None:
            arguments["External id"] = work.issuer.id
            arrow = {"cat": "ac2g", "name": "ac2g", "id": work.correlation}
            events.append({"ph": "s", **arrow, "pid": operator["pid"], "tid": operator["tid"], "ts": operator["ts"]})
            events.append({"ph": "f", "bp": "e", **arrow, **place, "ts": base + work.start})
        events.append({"ph": "X", "cat": _CATEGORIES[work.span.kind], "name": work.name, **place,
                       "ts": base + work.start, "dur": work.duration, "args": arguments})  # fmt: skip
    for annotation, issued in collection.annotations.values():
        start, end = _extent(issued)
        events.append({"ph": "X", "cat": "gpu_user_annotation", "name": annotation.name, "ts": base + start,
                       "dur": end - start, "pid": issued[0].span.device, "tid": issued[0].span.stream})  # fmt: skip


# ---------------------------------------------------------------- emit_nvtx
class EmitNvtx:
    """torch.autograd.profiler.emit_nvtx: every operator is a range on the timeline.

    enabled, record_shapes: as in PyTorch; with shapes a range's name ends with the sizes of the tensors.
    """

    def __init__(self, enabled: bool = True, record_shapes: bool = False):
        self.enabled, self.record_shapes = enabled, record_shapes
        self.entered = False
        self._timeline: Any = None

    def __enter__(self) -> Any:
        if not self.enabled:
            return None
        if self.entered:
            raise RuntimeError("NVTX annotation context manager is not reentrant")
        self.entered = True
        self._timeline = current_timeline()
        if self._timeline is not None:
            recorder.remove(self._timeline.operator)
            recorder.add(self._record)
        return self

    def _record(self, name: str, args: tuple, result: Any, kwargs: dict, stream: int, device: int) -> None:
        label = f"aten::{name.partition('.')[0]}"
        if self.record_shapes:
            sizes = [list(value.shape) if isinstance(value, torch.Tensor) else [] for value in args]
            label += f", sizes = {sizes}"
        self._timeline.push_range(label, device)
        self._timeline.operator(name, args, result, kwargs, stream, device)
        self._timeline.pop_range(device)

    def __exit__(self, *error: Any) -> None:
        if self.entered and self._timeline is not None:
            recorder.remove(self._record)
            recorder.add(self._timeline.operator)
        self.entered = False


def connect_profiler() -> None:
    """Gives PyTorch's profiler the device's side."""
    torch.autograd._supported_activities = supported_activities
    profiler._supported_activities = supported_activities
    _profile.__init__ = init
    _profile._start_trace = start_trace
    _profile.__exit__ = leave
    _profile._parse_kineto_results = parse_results
    _profile.export_chrome_trace = export_chrome_trace
    _profile.toggle_collection_dynamic = toggle_collection_dynamic
    profiler.emit_nvtx = EmitNvtx
