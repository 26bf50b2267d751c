"""A chip's clock: records of work in the order of issue go in; when each ran, and sums by family, come out.

The host issues work one piece after another and spends time on each; a stream runs its work in order; events, waits
and synchronising tie streams and host together. A kernel starts when its stream is free, what it waits for is done,
and the host's launch has arrived, whichever is last: where that is the launch, the program is launch-bound.

Times are seconds since the first record, on the virtual host's clock, which does not depend on this machine's speed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weft.chips import Chip
from weft.model.collectives import estimate_collective, find_kind
from weft.model.compiled import PendingLaunch
from weft.model.operators import profiles_of, waits_for_device
from weft.model.profile import Estimate, Profile, TimeModel
from weft.model.rates import constants, link_bandwidth, sustained_bandwidth
from weft.model.roofline import MODEL, idle_power
from weft.model.work import (
    Call,
    Collective,
    Copy,
    EventRecord,
    EventWait,
    GraphLaunch,
    HostWork,
    KernelLaunch,
    Mark,
    RangeEnd,
    RangeStart,
    StreamWait,
    Synchronize,
    Work,
)

# Why a piece of work started no sooner.
AFTER_STREAM, AFTER_EVENT, AFTER_LAUNCH, AFTER_RANKS, AFTER_ENGINE = (
    "earlier work of its stream", "an event", "the host's launch", "other ranks", "the copy engine",
)  # fmt: skip


@dataclass
class Share:
    """Sums over kernels: seconds, joules, launches, FLOPs, bytes to and from device memory."""

    seconds: float = 0.0
    joules: float = 0.0
    kernels: int = 0
    flops: float = 0.0
    bytes_moved: float = 0.0


@dataclass(frozen=True)
class Span:
    """One piece of work on the clock, in seconds. kind: kernel, copy, collective, range, mark, host."""

    name: str
    kind: str
    family: str
    device: int
    stream: Hashable
    start: float
    seconds: float
    waited_for: str = ""
    waited: float = 0.0
    issued: float = 0.0
    limiter: str = ""
    basis: str = "predicted"


@dataclass(frozen=True)
class Piece:
    """Kernels of one operator, priced on the chip."""

    profile: Profile
    seconds: float
    joules: float
    limiter: str
    basis: str


@dataclass
class Priced:
    """An operator on the chip: its pieces in order, and whether the host waits for it."""

    pieces: list[Piece]
    host: float
    waits: bool = False


@dataclass
class DeviceTotals:
    """Of one device: seconds in which it had work, first start, last end; joules of its work."""

    busy: float = 0.0
    first: float = -1.0
    last: float = 0.0
    joules: float = 0.0


@dataclass
class Range:
    """A named range: how often, seconds of the host between its ends, seconds of device work issued inside."""

    count: int = 0
    host_seconds: float = 0.0
    device_seconds: float = 0.0


@dataclass
class Counts:
    """Numbers of records by what they were."""

    kernels: int = 0
    copies: int = 0
    collectives: int = 0
    bytes_only: dict[str, int] = field(default_factory=dict)
    rough: dict[str, int] = field(default_factory=dict)


class Clock:
    """One chip's view of a log. `work` and `lanes` are the timeline's own lists, which grow."""

    def __init__(self, chip: Chip, work: Sequence[Work], lanes: Sequence[tuple[int, Hashable]], lane_bits: int,
                 model: TimeModel = MODEL, sink: Callable[[Span], None] | None = None):  # fmt: skip
        self.chip, self.model = chip, model
        self.host_time = 0.0
        self.event_times: dict[Hashable, float] = {}
        self.families: dict[str, Share] = {}
        self.limiters: dict[str, float] = {}
        self.names: dict[str, Share] = {}
        self.waits: dict[str, float] = {}
        self.ranges: dict[str, Range] = {}
        self.devices: dict[int, DeviceTotals] = {}
        self.counts = Counts()
        self._work, self._lanes = work, lanes
        self._bits, self._mask = lane_bits, (1 << lane_bits) - 1
        self._ready: dict[tuple[int, Hashable], float] = {}
        self._engines: dict[tuple[int, str], float] = {}
        self._priced: dict[int, Priced] = {}
        self._open: dict[int, list[tuple[str, float, float]]] = {}
        self._issued_device_seconds = 0.0
        self._sink = sink
        self._host: dict[str, float] = constants()["host"]
        self._gap: float = constants()["kernel"]["gap"]

    # ------------------------------------------------------------ results
    @property
    def elapsed(self) -> float:
        """Seconds from the first record to the end of host and devices."""
        return max([self.host_time, *self._ready.values()])

    @property
    def busy(self) -> float:
        """Seconds in which the devices had work, all of them together."""
        return sum(device.busy for device in self.devices.values())

    @property
    def joules(self) -> float:
        """Energy of all devices: their work's, and idle power in between."""
        idle = idle_power(self.chip)
        return sum(device.joules + idle * max(0.0, self.elapsed - device.busy) for device in self.devices.values())

    def fork(self, sink: Callable[[Span], None]) -> Clock:
        """A clock that goes on from here by itself: same times, sums from zero, `sink` told of every span."""
        made = Clock(self.chip, self._work, self._lanes, self._bits, self.model, sink)
        made.host_time = self.host_time
        made.event_times = dict(self.event_times)
        made._ready, made._engines, made._priced = dict(self._ready), dict(self._engines), dict(self._priced)
        made._open = {device: list(ranges) for device, ranges in self._open.items()}
        return made

    # ------------------------------------------------------------ running through the log
    def advance(self, log: array, start: int, end: int) -> None:
        """Takes the records log[start:end] into account."""
        work, lanes, bits, mask = self._work, self._lanes, self._bits, self._mask
        priced = self._priced
        for record in log[start:end]:
            number = record >> bits
            lane = lanes[record & mask]
            found = priced.get(number)
            if found is not None:
                self._run(found, lane)
            else:
                self._step(number, work[number], lane)

    def _step(self, number: int, item: Work, lane: tuple[int, Hashable]) -> None:
        if isinstance(item, PRICED):
            found = self._priced[number] = self._price(item)
            self._run(found, lane)
        else:
            _HANDLERS[type(item)](self, item, lane)

    def _price(self, item: Any) -> Priced:
        if isinstance(item, Call):
            profiles, host, waits = profiles_of(item), self._host["operator"], waits_for_device(item)
        else:
            launch = item.resolve() if isinstance(item, PendingLaunch) else item
            profiles, host, waits = [_profile_of(launch)], self._host["compiled_launch"], False
        pieces = []
        for profile in profiles:
            estimate = self.model.estimate(profile, self.chip)
            pieces.append(Piece(profile, estimate.seconds, estimate.joules, estimate.limiter, estimate.basis))
        return Priced(pieces, host, waits)

    def _run(self, priced: Priced, lane: tuple[int, Hashable]) -> None:
        """Launches an operator's kernels one after another."""
        launch, latency, gap = self._host["launch"], self._host["latency"], self._gap
        ready = self._ready.get(lane, 0.0)
        host = self.host_time + priced.host
        device = self._device(lane[0])
        for piece in priced.pieces:
            profile, seconds = piece.profile, piece.seconds
            count = profile.kernels
            for _ in range(count):
                host += launch
                arrival, free = host + latency, ready + gap if ready else 0.0
                start = arrival if arrival > free else free
                end = start + seconds
                if device.first < 0:
                    device.first = start
                idle = start - max(device.last, 0.0)
                if end > device.last:
                    device.busy += end - max(start, device.last)
                    device.last = end
                if idle > gap and start == arrival:
                    self.waits[AFTER_LAUNCH] = self.waits.get(AFTER_LAUNCH, 0.0) + idle
                if self._sink is not None:
                    reason = AFTER_LAUNCH if start == arrival else AFTER_STREAM
                    self._sink(Span(profile.name, "kernel", profile.family, *lane, start, seconds, reason,
                                    max(0.0, start - arrival), host, piece.limiter, piece.basis))  # fmt: skip
                ready = end
            self._add(piece, count)
            device.joules += piece.joules * count
        self.host_time = host
        self._ready[lane] = ready
        if priced.waits:
            self.host_time = max(host, ready) + self._host["synchronize"]

    def _add(self, piece: Piece, count: int) -> None:
        profile, seconds = piece.profile, piece.seconds * count
        for table, key in ((self.families, profile.family), (self.names, profile.name)):
            share = table.get(key)
            if share is None:
                share = table[key] = Share()
            share.seconds += seconds
            share.joules += piece.joules * count
            share.kernels += count
            share.flops += sum(value for _, value in profile.flops) * count
            share.bytes_moved += profile.bytes_moved * count
        self.limiters[piece.limiter] = self.limiters.get(piece.limiter, 0.0) + seconds
        self.counts.kernels += count
        if profile.basis == "bytes only":
            self.counts.bytes_only[profile.name] = self.counts.bytes_only.get(profile.name, 0) + count
        elif profile.basis == "rough estimate":
            self.counts.rough[profile.name] = self.counts.rough.get(profile.name, 0) + count
        self._issued_device_seconds += seconds

    def _device(self, ordinal: int) -> DeviceTotals:
        found = self.devices.get(ordinal)
        if found is None:
            found = self.devices[ordinal] = DeviceTotals()
        return found

    def _occupy(self, ordinal: int, start: float, end: float, joules: float) -> None:
        device = self._device(ordinal)
        if device.first < 0:
            device.first = start
        if end > device.last:
            device.busy += end - max(start, device.last)
            device.last = end
        device.joules += joules

    # ------------------------------------------------------------ other records
    def _copy(self, item: Copy, lane: tuple[int, Hashable]) -> None:
        """Copies between host and device use one engine per direction; within a device they are kernels."""
        device = lane[0]
        self.host_time += self._host["copy"]
        bandwidth, link = self._copy_bandwidth(item)
        latency = constants()["transfer"]["latency"] if item.kind in ("h2d", "d2h") else self._host["launch"]
        seconds = latency + item.nbytes / bandwidth
        arrival = self.host_time + self._host["latency"]
        ready = self._ready.get(lane, 0.0)
        engine = (device, item.kind)
        free = self._engines.get(engine, 0.0) if item.kind != "d2d" else 0.0
        start = max(arrival, ready, free)
        reason = AFTER_LAUNCH if start == arrival else AFTER_STREAM if start == ready else AFTER_ENGINE
        end = start + seconds
        self._ready[lane] = self._engines[engine] = end
        idle = idle_power(self.chip)
        joules = seconds * (idle + 0.2 * (float(self.chip.power) - idle))
        self._occupy(device, start, end, joules)
        if item.peer is not None:
            self._occupy(item.peer, start, end, joules)
        limiter = link if item.nbytes / bandwidth > latency else "link latency"
        self._add_share("transfer" if item.kind != "d2d" else "copy", f"copy_{item.kind}", seconds, joules, item.nbytes)
        self.limiters[limiter] = self.limiters.get(limiter, 0.0) + seconds
        self.counts.copies += 1
        if item.blocking or (item.kind in ("h2d", "d2h") and not item.pinned and item.nbytes > 65536):
            self.host_time = max(self.host_time, end) + self._host["synchronize"] * item.blocking
        if self._sink is not None:
            self._sink(Span(f"copy_{item.kind}", "copy", "transfer", device, lane[1], start, seconds, reason,
                            max(0.0, start - arrival), self.host_time, limiter))  # fmt: skip

    def _copy_bandwidth(self, item: Copy) -> tuple[float, str]:
        if item.kind == "d2d":
            return sustained_bandwidth(self.chip) / 2, "memory bandwidth"
        if item.kind == "p2p":
            nvlink = link_bandwidth(self.chip, "nvlink")
            if nvlink:
                return nvlink, "NVLink"
        pcie = link_bandwidth(self.chip, "pcie") or self._host["pageable_bandwidth"]
        if item.kind in ("h2d", "d2h") and not item.pinned and not self.chip.integrated:
            return min(pcie, self._host["pageable_bandwidth"]), "pageable host memory"
        return pcie, "memory bandwidth" if self.chip.integrated else "PCIe"

    def _add_share(self, family: str, name: str, seconds: float, joules: float, nbytes: float) -> None:
        for table, key in ((self.families, family), (self.names, name)):
            share = table.setdefault(key, Share())
            share.seconds += seconds
            share.joules += joules
            share.kernels += 1
            share.bytes_moved += nbytes
        self._issued_device_seconds += seconds

    def _collective(self, item: Collective, lane: tuple[int, Hashable]) -> None:
        """All devices of this process start together, when the last of them is ready."""
        arrival = self.issue_collective()
        start = max(arrival, *(self._ready.get((device, lane[1]), 0.0) for device in item.devices))
        self.place_collective(item, lane, start, arrival, self.estimate_collective(item))

    def issue_collective(self) -> float:
        """The host's part of a collective; returns when it arrives at the device."""
        self.host_time += self._host["collective"]
        return self.host_time + self._host["latency"]

    def ready(self, lane: tuple[int, Hashable]) -> float:
        """When the work is done that a stream has so far."""
        return self._ready.get(lane, 0.0)

    def estimate_collective(self, item: Collective) -> Estimate:
        """What a collective takes from the moment that all ranks have come."""
        return estimate_collective(self.chip, item.kind, item.nbytes, item.ranks, item.nodes)

    def place_collective(self, item: Collective, lane: tuple[int, Hashable], start: float, arrival: float,
                         estimate: Estimate) -> None:  # fmt: skip
        """Puts a collective on its lanes from `start` on; arrival: when the host's launch reached the device."""
        end = start + estimate.seconds
        kind = find_kind(item.kind)
        lanes = [(device, lane[1]) for device in item.devices]
        readies = [self._ready.get(one, 0.0) for one in lanes]
        reason = AFTER_LAUNCH if start == arrival else AFTER_STREAM if start == readies[0] else AFTER_RANKS
        for one, ready in zip(lanes, readies):
            waited = max(0.0, start - max(arrival, ready))
            if waited:
                self.waits[AFTER_RANKS] = self.waits.get(AFTER_RANKS, 0.0) + waited
            self._ready[one] = end
            self._occupy(one[0], start, end, estimate.joules)
            self._add_share("collective", kind, estimate.seconds, estimate.joules, item.nbytes)
            self.limiters[estimate.limiter] = self.limiters.get(estimate.limiter, 0.0) + estimate.seconds
            if self._sink is not None:
                self._sink(Span(kind, "collective", "collective", *one, start, estimate.seconds, reason, waited,
                                arrival - self._host["latency"], estimate.limiter))  # fmt: skip
        self.counts.collectives += 1

    def _record_event(self, item: EventRecord, lane: tuple[int, Hashable]) -> None:
        self.host_time += self._host["event"]
        self.event_times[item.event] = max(self._ready.get(lane, 0.0), self.host_time + self._host["latency"])

    def _wait_event(self, item: EventWait, lane: tuple[int, Hashable]) -> None:
        self.host_time += self._host["event"]
        self._wait_until(lane, self.event_times.get(item.event, 0.0), AFTER_EVENT)

    def _wait_stream(self, item: StreamWait, lane: tuple[int, Hashable]) -> None:
        self.host_time += self._host["event"]
        self._wait_until(lane, self._ready.get((item.device, item.stream), 0.0), AFTER_EVENT)

    def _wait_until(self, lane: tuple[int, Hashable], time: float, reason: str) -> None:
        ready = self._ready.get(lane, 0.0)
        if time > ready:
            self.waits[reason] = self.waits.get(reason, 0.0) + time - ready
            self._ready[lane] = time

    def _synchronize(self, item: Synchronize, lane: tuple[int, Hashable]) -> None:
        if item.what == "event":
            time = self.event_times.get(item.event, 0.0)
        elif item.what == "stream":
            time = self._ready.get(lane, 0.0)
        else:
            time = max((ready for (device, _), ready in self._ready.items() if device == lane[0]), default=0.0)
        self.host_time = max(self.host_time, time) + self._host["synchronize"]

    def _host_work(self, item: HostWork, lane: tuple[int, Hashable]) -> None:
        if self._sink is not None and item.what:
            self._sink(Span(item.what, "host", "", lane[0], lane[1], self.host_time, item.seconds))
        self.host_time += item.seconds

    def _open_range(self, item: RangeStart, lane: tuple[int, Hashable]) -> None:
        self._open.setdefault(lane[0], []).append((item.name, self.host_time, self._issued_device_seconds))

    def _close_range(self, item: RangeEnd, lane: tuple[int, Hashable]) -> None:
        stack = self._open.get(lane[0])
        if not stack:
            return
        name, start, before = stack.pop()
        found = self.ranges.setdefault(name, Range())
        found.count += 1
        found.host_seconds += self.host_time - start
        found.device_seconds += self._issued_device_seconds - before
        if self._sink is not None:
            self._sink(Span(name, "range", "", lane[0], lane[1], start, self.host_time - start))

    def _mark(self, item: Mark, lane: tuple[int, Hashable]) -> None:
        if self._sink is not None:
            self._sink(Span(item.name, "mark", "", lane[0], lane[1], self.host_time, 0.0))

    def _launch_graph(self, item: GraphLaunch, lane: tuple[int, Hashable]) -> None:
        """The captured work runs behind the launching stream's, with no launches of the host in between."""
        self.host_time += self._host["graph_launch"]
        begin = self.host_time
        arrival = max(begin + self._host["latency"], self._ready.get(lane, 0.0))
        saved, self._host = self._host, {**dict.fromkeys(self._host, 0.0),
                                         "pageable_bandwidth": self._host["pageable_bandwidth"]}  # fmt: skip
        records = item.graph.records
        lanes = {self._lanes[record & self._mask] for record in records}
        for one in lanes:
            self._ready[one] = max(self._ready.get(one, 0.0), arrival)
        for record in records:
            number = record >> self._bits
            one = self._lanes[record & self._mask]
            found = self._priced.get(number)
            if found is None and isinstance(self._work[number], PRICED):
                self._host = saved
                found = self._priced[number] = self._price(self._work[number])
                self._host = {**dict.fromkeys(saved, 0.0), "pageable_bandwidth": saved["pageable_bandwidth"]}
            self.host_time = begin
            if found is not None:
                self._run(Priced(found.pieces, 0.0), one)
            else:
                self._step(number, self._work[number], one)
        self._host, self.host_time = saved, begin
        self._ready[lane] = max([arrival, *(self._ready.get(one, 0.0) for one in lanes)])


# What is priced once and then run as often as it is launched.
PRICED = (Call, KernelLaunch, PendingLaunch)

_HANDLERS: dict[type, Callable[[Clock, Any, tuple[int, Hashable]], None]] = {
    Copy: Clock._copy, Collective: Clock._collective, EventRecord: Clock._record_event, EventWait: Clock._wait_event,
    StreamWait: Clock._wait_stream, Synchronize: Clock._synchronize, HostWork: Clock._host_work,
    RangeStart: Clock._open_range, RangeEnd: Clock._close_range, Mark: Clock._mark, GraphLaunch: Clock._launch_graph,
}  # fmt: skip


def _profile_of(launch: KernelLaunch) -> Profile:
    """A compiled kernel's Profile."""
    return Profile(
        launch.name, "compiled", launch.flops, launch.bytes_read, launch.bytes_written, 1, launch.blocks,
        launch.threads, registers=launch.registers, shared_bytes=launch.shared_bytes, basis=launch.basis,
    )  # fmt: skip
