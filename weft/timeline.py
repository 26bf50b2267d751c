"""The device's clock: what programs launch goes in, in the order of issue; what ran when, and why it waited, comes out.

A front end records every operator, copy, kernel, collective, event and wait. Recording is cheap: each distinct piece of
work is described once (weft.model.work) and given a number, and the log holds 8 bytes per launch. Time is worked out
only when somebody asks (`elapsed`, `clock`, the summary at the end), by weft.model.clock, for the chip that the program
sees and for as many others as the log shall be priced on.

    timeline = weft.timeline.start("h100", devices=2)
    timeline.operator("aten::mm", (a, b), c, stream=0, device=0)
    ...
    weft.timeline.stop()

Streams are any hashable names (0 is the default stream), events any hashable, devices ordinals.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import threading
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weft import settings
from weft.chips import Chip, find_chip
from weft.errors import InvalidValueError
from weft.model.clock import Clock, Span
from weft.model.compiled import PendingLaunch, describe_launch, scalar_parameters
from weft.model.operators import MULTIPLYING, base_name, needs_of
from weft.model.ranks import RankLog, run_together, waits_for_ranks
from weft.model.work import (
    Call,
    Collective,
    Copy,
    EventRecord,
    EventWait,
    Graph,
    GraphLaunch,
    HostWork,
    KernelLaunch,
    Mark,
    RangeEnd,
    RangeStart,
    StreamWait,
    Synchronize,
    Work,
    describe_value,
)
from weft.runtime import launch as runtime_launch

# A record is the number of its work times LANES plus the number of its lane, a lane being a stream of a device.
LANE_BITS = 16
LANES = 1 << LANE_BITS
# Records kept for traces and for pricing on chips that are named later; older ones are priced and let go.
KEPT_RECORDS = 8_000_000

_PLAIN, _FLOAT, _SEQUENCE, _TENSOR, _OTHER = range(5)
# How a value of a type enters the key of a call.
_kinds: dict[type, int] = {
    int: _PLAIN, bool: _PLAIN, str: _PLAIN, type(None): _PLAIN, float: _FLOAT, complex: _FLOAT, list: _SEQUENCE,
    tuple: _SEQUENCE,
}  # fmt: skip


def _classify(value: Any) -> int:
    cls = type(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = _TENSOR
    elif isinstance(value, int) or cls.__name__ == "dtype":
        kind = _PLAIN
    elif isinstance(value, (list, tuple)):
        kind = _SEQUENCE
    else:
        kind = _OTHER
    _kinds[cls] = kind
    return kind


class Timeline:
    """The work of a process's virtual GPUs in the order of issue.

    chip: what the devices are. devices: how many. compare: further chips on which the same work is priced. tf32_matmul,
    tf32_convolution: PyTorch's switches, part of what an operator costs.
    """

    def __init__(self, chip: Chip | str, devices: int = 1, compare: Iterable[Chip | str] = ()):
        self.chip = find_chip(chip) if isinstance(chip, str) else chip
        self.device_count = devices
        others = [find_chip(other) if isinstance(other, str) else other for other in compare]
        self.work: list[Work] = []
        self.lanes: list[tuple[int, Hashable]] = []
        self.clocks = {
            chip.name: Clock(chip, self.work, self.lanes, LANE_BITS) for chip in dict.fromkeys([self.chip, *others])
        }
        # Functions of front ends that say (device, most bytes allocated at once, most bytes reserved) when asked.
        self.memory_sources: list[Callable[[], Iterable[tuple[int, int, int]]]] = []
        # What a front end says of a dry run (weft.frontends.torch.dry_memory.notes); None for one with data.
        self.dry: dict[str, Any] | None = None
        self._noted: dict[int, tuple[int, int]] = {}
        self._arenas: dict[int, Any] = {}
        self.dropped = 0
        # This process's place in a distributed job.
        self.rank: int | None = None
        # The stream on which launches run that name none; a front end with streams of its own puts its answer here.
        self.current_stream: Callable[[int], Hashable] = lambda device: 0
        # Asked before products and convolutions whether f32 ones may use TF32: (products, convolutions).
        self.tf32_source: Callable[[], tuple[bool, bool]] | None = None
        self._numbers: dict[Any, int] = {}
        # What front ends append to the log for calls that they know again (`remember`).
        self.records: dict[tuple, int] = {}
        self._lane_numbers: dict[tuple[int, Hashable], int] = {}
        self._log = array("q")
        self._append: Callable[[int], None] = self._log.append
        self._tap: Callable[[], None] | None = None
        self._priced = 0
        self._modes = 1 << 1  # as PyTorch starts: TF32 in convolutions, not in matrix products
        self._lock = threading.RLock()
        self._capture: Graph | None = None

    # ------------------------------------------------------------ recording
    def operator(self, name: str, inputs: Sequence[Any], outputs: Any = (), kwargs: Mapping[str, Any] | None = None,
                 stream: Hashable = 0, device: int = 0) -> None:  # fmt: skip
        """An ATen operator that ran.

        name: "aten::add.Tensor", with or without namespace and overload. inputs: its positional arguments as ATen has
        them (tensors, lists, scalars). outputs: what it returned. Tensors are anything with shape and dtype; nothing
        of them is kept.
        """
        number = self.number_of(name, inputs, outputs, kwargs, stream)
        if number < 0:
            return
        lane = self._lane_numbers.get((device, stream))
        if lane is None:
            lane = self._add_lane(device, stream)
        self._append(number << LANE_BITS | lane)
        if len(self._log) > KEPT_RECORDS:
            self._let_go()

    def remember(self, key: tuple, name: str, inputs: Sequence[Any], outputs: Any, kwargs: Mapping[str, Any]) -> int:
        """The record of an operator on the default stream of device 0, for the log; `records` has it by the key now."""
        lane = self._lane_numbers.get((0, 0))
        if lane is None:
            lane = self._add_lane(0, 0)
        record = self.records[key] = self.number_of(name, inputs, outputs, kwargs) << LANE_BITS | lane
        return record

    def settle(self) -> None:
        """For recorders that append to the log by themselves: prices and lets go what is more than is kept."""
        if len(self._log) > KEPT_RECORDS:
            self._let_go()

    def number_of(self, name: str, inputs: Sequence[Any], outputs: Any = (), kwargs: Mapping[str, Any] | None = None,
                  stream: Hashable = 0) -> int:  # fmt: skip
        """The number of the work of an operator, arguments as for `operator`; -1 where there is none to record: it is
        free, or it copies between devices and has been recorded as that."""
        needs = needs_of(name)
        if needs.free or (needs.transfers and self._transfer(inputs, kwargs, stream)):
            return -1
        if needs.family in MULTIPLYING and self.tf32_source is not None:
            matmul, convolution = self.tf32_source()
            self._modes = matmul | convolution << 1
        key: list[Any] = [name, self._modes]
        strides = needs.strides
        self._extend(key, inputs, strides)
        if kwargs:
            for option, value in kwargs.items():
                key.append(option)
                self._extend(key, (value,), strides)
        if needs.outputs:
            key.append(None)
            self._extend(key, outputs if type(outputs) in (tuple, list) else (outputs,), strides)
        found = tuple(key)
        number = self._numbers.get(found)
        if number is None:
            number = self._describe(found, name, inputs, outputs, kwargs)
        return number

    def _transfer(self, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None, stream: Hashable) -> bool:
        """Records copy_(target, source, non_blocking) where the two are on different devices, else does nothing."""
        target, source = inputs[0], inputs[1]
        to, of = getattr(target, "device", None), getattr(source, "device", None)
        if to is None or of is None or to == of:
            return False
        nbytes = source.numel() * source.element_size()
        if to.type != "cpu" and of.type != "cpu":
            self.copy("p2p", nbytes, stream, of.index, peer=to.index)
            return True
        waits = not (inputs[2] if len(inputs) > 2 else (kwargs or {}).get("non_blocking", False))
        host, kind, device = (source, "h2d", to.index) if of.type == "cpu" else (target, "d2h", of.index)
        self.copy(kind, nbytes, stream, device or 0, pinned=host.is_pinned(), blocking=waits)
        return True

    def _extend(self, key: list[Any], values: Iterable[Any], strides: bool) -> None:
        """Puts what tells calls apart into a key: shapes, dtypes, integers, texts, but no floating-point numbers, which
        change all the time and cost nothing."""
        for value in values:
            kind = _kinds.get(type(value))
            if kind is None:
                kind = _classify(value)
            if kind == _TENSOR:
                key.append(value.shape)
                key.append(value.dtype)
                if strides:
                    key.append(value.stride())
            elif kind == _PLAIN:
                key.append(value)
            elif kind == _SEQUENCE:
                if value and type(value[0]) is int:
                    key.append(tuple(value))
                else:
                    key.append(len(value))
                    self._extend(key, value, strides)

    def _describe(self, key: tuple, name: str, inputs: Sequence[Any], outputs: Any,
                  kwargs: Mapping[str, Any] | None) -> int:  # fmt: skip
        if base_name(name) == "_local_scalar_dense":  # .item(): the host waits for a few bytes
            return self._number(key, Copy("d2h", int(describe_value(inputs[0]).itemsize), False, True))
        results = outputs if type(outputs) in (tuple, list) else (outputs,)
        call = Call(
            name,
            tuple(describe_value(value) for value in inputs),
            tuple(describe_value(value) for value in results),
            {option: describe_value(value) for option, value in (kwargs or {}).items()},
            tf32_matmul=bool(self._modes & 1),
            tf32_convolution=bool(self._modes & 2),
        )
        return self._number(key, call)

    def _number(self, key: Any, work: Work) -> int:
        with self._lock:
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self.work)
                self.work.append(work)
            return number

    def _add_lane(self, device: int, stream: Hashable) -> int:
        with self._lock:
            lane = self._lane_numbers.get((device, stream))
            if lane is None:
                lane = len(self.lanes)
                if lane >= LANES:
                    raise InvalidValueError(f"invalid argument: more than {LANES} streams in one timeline")
                self.lanes.append((device, stream))
                self._lane_numbers[device, stream] = lane
            return lane

    def _record(self, work: Work, stream: Hashable, device: int) -> None:
        number = self._numbers.get(work)
        if number is None:
            number = self._number(work, work)
        lane = self._lane_numbers.get((device, stream))
        if lane is None:
            lane = self._add_lane(device, stream)
        self._append(number << LANE_BITS | lane)

    def copy(self, kind: str, nbytes: int, stream: Hashable = 0, device: int = 0, *, pinned: bool = False,
             blocking: bool = False, peer: int | None = None) -> None:  # fmt: skip
        """A copy of `nbytes` bytes: kind "h2d", "d2h", "d2d" (within a device) or "p2p" (to the device `peer`).

        pinned: the host's side is page-locked; other host memory makes the host take part. blocking: the host waits for
        the end, as `.item()` and `.cpu()` do.
        """
        self._record(Copy(kind, int(nbytes), pinned, blocking, peer), stream, device)

    def kernel(self, launch: KernelLaunch, stream: Hashable = 0, device: int = 0) -> None:
        """A compiled kernel that ran (PTX, CUDA C++, Triton)."""
        self._record(launch, stream, device)

    def launched(self, launch: Any) -> None:
        """A launch of weft.runtime that just ended; every launch of the process comes here while this records."""
        key = ("launch", launch.kernel, launch.grid, launch.block, launch.shared_bytes, scalar_parameters(launch))
        number = self._numbers.get(key)
        if number is None:
            number = self._number(key, describe_launch(launch))
            self._arenas[id(launch.device.arena)] = (launch.device.ordinal, launch.device.arena)
        device = launch.device.ordinal
        stream = launch.stream
        if stream is None or stream is launch.device.default_stream or stream == 0:
            stream = self.current_stream(device)
        lane = self._lane_numbers.get((device, stream))
        if lane is None:
            lane = self._add_lane(device, stream)
        self._append(number << LANE_BITS | lane)

    def collective(self, kind: str, nbytes: int, ranks: int, stream: Hashable = 0, device: int | Sequence[int] = 0, *,
                   nodes: int = 1, group: Hashable = None, pair: tuple[int, int] | None = None) -> None:  # fmt: skip
        """A collective operation among `ranks` GPUs on `nodes` machines.

        kind: one of weft.model.collectives.KINDS. nbytes: as NCCL's tests count it: the whole buffer of one rank, which
        for all_gather is the output and for reduce_scatter the input. device: this rank's device; several where one
        process drives several ranks, which then start together. group: a name that the processes of all ranks know it
        by. pair: sender and receiver within the group, for kind "p2p".
        """
        devices = (device,) if isinstance(device, int) else tuple(device)
        work = Collective(kind, int(nbytes), ranks, nodes, devices, group, pair)
        self._record(work, stream, devices[0])

    # ------------------------------------------------------------ order
    def record_event(self, event: Hashable, stream: Hashable = 0, device: int = 0) -> None:
        """The event marks all work that was issued to the stream so far."""
        self._record(EventRecord(event), stream, device)

    def wait_event(self, event: Hashable, stream: Hashable = 0, device: int = 0) -> None:
        """Later work of the stream waits for the event."""
        self._record(EventWait(event), stream, device)

    def stream_wait(self, stream: Hashable, other: Hashable, device: int = 0, other_device: int | None = None) -> None:
        """Later work of `stream` waits for all work that was issued to `other` so far."""
        origin = device if other_device is None else other_device
        self._record(StreamWait(origin, other), stream, device)

    def synchronize(self, device: int = 0, *, stream: Hashable | None = None, event: Hashable | None = None) -> None:
        """The host waits: for an event, for one stream, or else for all streams of the device."""
        what = "event" if event is not None else "stream" if stream is not None else "device"
        self._record(Synchronize(what, event), 0 if stream is None else stream, device)

    def host(self, seconds: float, what: str = "") -> None:
        """Time that the host spends by itself, in seconds on the host of the real GPU."""
        self._record(HostWork(seconds, what), 0, 0)

    def push_range(self, name: str, device: int = 0) -> None:
        """Opens a named range (nvtx); ranges nest."""
        self._record(RangeStart(name), 0, device)

    def pop_range(self, device: int = 0) -> None:
        """Closes the innermost range."""
        self._record(RangeEnd(), 0, device)

    def mark(self, name: str, device: int = 0) -> None:
        """A named point in time."""
        self._record(Mark(name), 0, device)

    # ------------------------------------------------------------ graphs
    def capture_begin(self) -> None:
        """From now on work is put into a graph instead of being issued. Raises InvalidValueError while capturing."""
        with self._lock:
            if self._capture is not None:
                raise InvalidValueError("invalid argument: a capture is under way already")
            self._capture = Graph(array("q"))
            self._append = self._capture.records.append

    def capture_end(self) -> Graph:
        """Ends the capture; the graph is for `launch_graph`."""
        with self._lock:
            if self._capture is None:
                raise InvalidValueError("invalid argument: no capture is under way")
            graph, self._capture = self._capture, None
            self._append = self._log.append if self._tap is None else self._append_and_tell
            return graph

    def launch_graph(self, graph: Graph, stream: Hashable = 0, device: int = 0) -> None:
        """All work of a graph, for the host's price of one launch."""
        self._record(GraphLaunch(graph), stream, device)

    # ------------------------------------------------------------ listening
    def tap(self, listener: Callable[[], None] | None) -> None:
        """From now on `listener` is called after every record that is issued (a profiler notes when); None ends it."""
        with self._lock:
            self._tap = listener
            if self._capture is None:
                self._append = self._log.append if listener is None else self._append_and_tell

    def _append_and_tell(self, record: int) -> None:
        self._log.append(record)
        if self._tap is not None:
            self._tap()

    def records_since(self, count: int) -> array:
        """The records from number `count` on, as `record_count` numbers them; those that were let go are missing."""
        return self._log[max(0, count - self.dropped) :]

    # ------------------------------------------------------------ state
    def set_tf32(self, *, matmul: bool | None = None, convolution: bool | None = None) -> None:
        """Whether f32 matrix products and convolutions that follow may use TF32 tensor cores."""
        if matmul is not None:
            self._modes = self._modes & ~1 | matmul
        if convolution is not None:
            self._modes = self._modes & ~2 | convolution << 1

    def note_memory(self, device: int, peak: int, reserved: int) -> None:
        """The most bytes of a device that were allocated and reserved at once; the largest that is noted counts."""
        before = self._noted.get(device, (0, 0))
        self._noted[device] = (max(before[0], peak), max(before[1], reserved))

    def peak_memory(self) -> dict[int, tuple[int, int]]:
        """By device: the most bytes allocated and reserved at once, of all front ends together."""
        for source in self.memory_sources:
            for device, peak, reserved in source():
                self.note_memory(device, peak, reserved)
        found = dict(self._noted)
        for device, arena in self._arenas.values():
            allocated, reserved = found.get(device, (0, 0))
            found[device] = (allocated + arena.peak, reserved + arena.peak)
        return found

    # ------------------------------------------------------------ the clock
    def advance(self) -> None:
        """Prices whatever was recorded since the last call, on every chip."""
        with self._lock:
            end = len(self._log)
            if self._priced < end:
                for clock in self.clocks.values():
                    clock.advance(self._log, self._priced, end)
                self._priced = end

    def _let_go(self) -> None:
        with self._lock:
            self.advance()
            # Other threads may have added records since.
            del self._log[: self._priced]
            self.dropped += self._priced
            self._priced = 0

    @property
    def clock(self) -> Clock:
        """The clock of the chip that the program sees, up to date."""
        self.advance()
        return self.clocks[self.chip.name]

    def clock_of(self, chip: Chip | str) -> Clock:
        """The work so far on another chip. Raises InvalidValueError where the beginning of the log is gone already."""
        wanted = find_chip(chip) if isinstance(chip, str) else chip
        self.advance()
        if wanted.name not in self.clocks:
            if self.dropped:
                raise InvalidValueError(
                    f"the log is too long to be priced on {wanted.name} afterwards: name the chip in Timeline(compare=)"
                )
            clock = Clock(wanted, self.work, self.lanes, LANE_BITS)
            clock.advance(self._log, 0, self._priced)
            self.clocks[wanted.name] = clock
        return self.clocks[wanted.name]

    def elapsed(self, start: Hashable, end: Hashable) -> float:
        """Milliseconds on the device's clock from one recorded event to another, as CUDA's elapsed_time.

        Raises InvalidValueError for an event that was not recorded.
        """
        times = self.clock.event_times
        for name, event in (("start", start), ("end", end)):
            if event not in times:
                raise InvalidValueError(f"invalid argument: the {name} event was not recorded")
        return (times[end] - times[start]) * 1e3

    def reached(self, event: Hashable) -> bool:
        """Whether the host's clock is past the event, as cudaEventQuery."""
        clock = self.clock
        return clock.event_times.get(event, 0.0) <= clock.host_time

    def spans(self, chip: Chip | str | None = None) -> list[Span]:
        """Everything that is kept, placed on a chip's clock (the program's own by default), in the order of issue."""
        wanted = self.chip if chip is None else find_chip(chip) if isinstance(chip, str) else chip
        found: list[Span] = []
        with self._lock:
            Clock(wanted, self.work, self.lanes, LANE_BITS, sink=found.append).advance(self._log, 0, len(self._log))
        return found

    # ------------------------------------------------------------ from one process to another
    def save(self, path: Path) -> None:
        """Writes what is kept, for `load_timeline` in another process; whole or not at all."""
        work = [item.resolve() if isinstance(item, PendingLaunch) else item for item in self.work]
        memory = self.peak_memory()
        data = (self.chip.name, self.device_count, work, self.lanes, self._log, self.dropped, memory, self.rank)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_bytes(pickle.dumps(data))
        unfinished.replace(path)

    def forget(self) -> None:
        """Drops all records; a forked process does so with those of its parent."""
        with self._lock:
            del self._log[:]
            self.dropped = self._priced = 0
            for name, clock in self.clocks.items():
                self.clocks[name] = Clock(clock.chip, self.work, self.lanes, LANE_BITS)
            self._noted.clear()

    def rank_log(self, sink: Callable[[Span], None] | None = None) -> RankLog:
        """What is kept, to be run together with the logs of other processes."""
        return RankLog(self.work, self.lanes, self._log, sink)

    def adopt_clock(self, clock: Clock) -> None:
        """From now on this is how the work so far lies on the clock's chip."""
        with self._lock:
            if list(self.clocks) == [clock.chip.name]:
                self._priced = len(self._log)
            else:
                self.advance()
            self.clocks[clock.chip.name] = clock

    @property
    def record_count(self) -> int:
        """Records so far, those that were let go included."""
        return self.dropped + len(self._log)


def align_ranks(timelines: Sequence[Timeline], chips: Iterable[Chip] = ()) -> None:
    """Lets processes wait for one another in the collectives that they share, on the program's chip and on others.

    Where the beginning of a log is gone nothing changes: then each process keeps a clock of its own.
    """
    if not _share_collectives(timelines):
        return
    for chip in dict.fromkeys([timelines[0].chip, *chips]):
        clocks = run_together([timeline.rank_log() for timeline in timelines], chip, LANE_BITS)
        for timeline, clock in zip(timelines, clocks):
            timeline.adopt_clock(clock)


def _share_collectives(timelines: Sequence[Timeline]) -> bool:
    """Whether there is anything to wait for among processes, and all of their logs are whole."""
    sharing = [timeline for timeline in timelines if any(waits_for_ranks(item) for item in timeline.work)]
    return len(sharing) > 1 and not any(timeline.dropped for timeline in timelines)


def spans_of_ranks(timelines: Sequence[Timeline], chip: Chip) -> list[list[Span]]:
    """As `Timeline.spans`, for each of several processes that wait for one another."""
    if not _share_collectives(timelines):
        return [timeline.spans(chip) for timeline in timelines]
    found: list[list[Span]] = [[] for _ in timelines]
    logs = [timeline.rank_log(spans.append) for timeline, spans in zip(timelines, found)]
    run_together(logs, chip, LANE_BITS)
    return found


# ---------------------------------------------------------------- the current timeline
_current: Timeline | None = None


def current() -> Timeline | None:
    """The timeline that records this process's work, or None."""
    return _current


def start(chip: Chip | str, devices: int = 1, compare: Iterable[Chip | str] = ()) -> Timeline:
    """Makes a timeline the current one and lets launches of compiled kernels report to it. It replaces another."""
    global _current
    _current = Timeline(chip, devices, compare)
    runtime_launch.observer = _current.launched
    _save_at_exit()
    return _current


def stop() -> Timeline | None:
    """Ends recording; returns the timeline, all of it priced."""
    global _current
    ended, _current = _current, None
    runtime_launch.observer = None
    if ended is not None:
        ended.advance()
    return ended


# ---------------------------------------------------------------- processes that a reported run starts
class _Exit:
    """owner: the process that reads the others' timelines. registered: the process whose exit is waited for."""

    owner = 0
    registered = 0


def collect_from_children(directory: str) -> None:
    """From now on this process's children put their timelines into a folder when they end; `load_timelines` reads
    them. Only processes that find virtual GPUs through Weft do."""
    _Exit.owner = os.getpid()
    settings.configure(report_dir=directory)


def _save_at_exit() -> None:
    if not settings.current().report_dir or os.getpid() in (_Exit.owner, _Exit.registered):
        return
    _Exit.registered = os.getpid()
    atexit.register(_save_child)
    # Children of multiprocessing end without atexit, and forget finalizers that were made before they began.
    from multiprocessing import util

    util.Finalize(None, _save_child, exitpriority=100)
    util.register_after_fork(_Exit, lambda _: util.Finalize(None, _save_child, exitpriority=100))


def _save_child() -> None:
    directory = settings.current().report_dir
    if _current is None or not directory or os.getpid() == _Exit.owner or not _current.record_count:
        return
    with contextlib.suppress(OSError):  # the parent is gone, and its folder with it
        _current.save(Path(directory) / f"{os.getpid()}.timeline")


def _after_fork() -> None:
    if _current is not None:
        _current.forget()
        _save_at_exit()


os.register_at_fork(after_in_child=_after_fork)


def load_timelines(directory: str | Path) -> list[Timeline]:
    """The timelines that this process's children left in its folder, by process number.

    The files are pickles: the folder must be one that only this user can write to.
    """
    found = []
    for path in sorted(Path(directory).glob("*.timeline"), key=lambda path: int(path.stem)):
        chip, devices, work, lanes, log, dropped, memory, rank = pickle.loads(path.read_bytes())
        timeline = Timeline(chip, devices)
        timeline.work.extend(work)
        timeline.lanes.extend(lanes)
        timeline._log.extend(log)
        timeline.dropped, timeline.rank = dropped, rank
        for device, (peak, reserved) in memory.items():
            timeline.note_memory(device, peak, reserved)
        found.append(timeline)
    return found
