"""Several processes on one clock: their logs go in, one Clock for each comes out, in which collectives wait for ranks.

Each process knows only its own work. Put together, a collective starts when the last of its ranks has come, and a
message when sender and receiver have; so the slowest rank holds the others up, and a pipeline's stages wait for one
another as they would on real devices. All processes are taken to begin at the same time.

A log is run until it needs to know when a collective ends that not all ranks have reached; then it is another log's
turn. Where nothing goes on (a process died, or its log is missing) those that have come go on without the others.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weft.chips import Chip
from weft.model.clock import Clock, Span
from weft.model.work import Collective, GraphLaunch, StreamWait, Synchronize, Work

Lane = tuple[int, Hashable]
# A group, and the two places within it for a message.
Meeters = tuple[Hashable, Any]


@dataclass(frozen=True)
class RankLog:
    """What one process did. work, lanes, records: a Timeline's; sink: told of every span, in no certain order."""

    work: Sequence[Work]
    lanes: Sequence[Lane]
    records: array
    sink: Callable[[Span], None] | None = None


@dataclass
class _Arrival:
    runner: _Runner
    item: Collective
    lane: Lane
    time: float


@dataclass
class _Meeting:
    """A collective under way. expected: how many processes of the run take part."""

    expected: int
    arrivals: list[_Arrival] = field(default_factory=list)

    def start(self) -> float:
        return max(max(arrival.time, arrival.runner.clock.ready(arrival.lane)) for arrival in self.arrivals)

    def hold(self) -> None:
        """Everybody who has come starts, and ends together."""
        start = self.start()
        estimates = [arrival.runner.clock.estimate_collective(arrival.item) for arrival in self.arrivals]
        longest = max(estimates, key=lambda estimate: estimate.seconds)
        for arrival in self.arrivals:
            arrival.runner.clock.place_collective(arrival.item, arrival.lane, start, arrival.time, longest)
            del arrival.runner.open[arrival.lane]


def waits_for_ranks(item: Work) -> bool:
    """Whether a piece of work needs other processes."""
    return isinstance(item, Collective) and item.group is not None and item.ranks > 1


class _Runner:
    """One log's way through its records. open: streams whose last collective has not been placed yet."""

    def __init__(self, log: RankLog, chip: Chip, lane_bits: int):
        self.log, self.bits, self.mask = log, lane_bits, (1 << lane_bits) - 1
        self.clock = Clock(chip, log.work, log.lanes, lane_bits, sink=log.sink)
        self.place = 0
        self.open: dict[Lane, _Meeting] = {}
        self.counts: dict[Meeters, int] = {}
        meeting = {number for number, item in enumerate(log.work) if waits_for_ranks(item)}
        self.stops = [place for place, record in enumerate(log.records) if record >> lane_bits in meeting]
        self.stops.append(len(log.records))
        self.stop = 0

    @property
    def done(self) -> bool:
        return self.place == len(self.log.records)

    def _must_wait(self, item: Work, lane: Lane) -> bool:
        if lane in self.open or isinstance(item, GraphLaunch):
            return True
        if isinstance(item, StreamWait):
            return (item.device, item.stream) in self.open
        if isinstance(item, Synchronize):
            return item.what == "device" and any(device == lane[0] for device, _ in self.open)
        return False

    def run(self, meet: Callable[[_Runner, Collective, Lane], None]) -> bool:
        """Goes on as far as it can; returns whether it went on at all."""
        records = self.log.records
        before = self.place
        while self.place < len(records):
            stop = self.stops[self.stop]
            if not self.open and self.place < stop:
                self.clock.advance(records, self.place, stop)
                self.place = stop
                continue
            record = records[self.place]
            item, lane = self.log.work[record >> self.bits], self.log.lanes[record & self.mask]
            if self.open and self._must_wait(item, lane):
                break
            if self.place == stop:
                assert isinstance(item, Collective)
                meet(self, item, lane)
                self.stop += 1
            else:
                self.clock.advance(records, self.place, self.place + 1)
            self.place += 1
        return self.place > before


def run_together(logs: Sequence[RankLog], chip: Chip, lane_bits: int) -> list[Clock]:
    """The clocks of several processes' logs on a chip, in the order of the logs.

    lane_bits: of the records, as Clock has it.
    """
    runners = [_Runner(log, chip, lane_bits) for log in logs]
    expected: dict[Meeters, int] = {}
    for log in logs:
        for key in {
            (item.group, item.pair) for item in log.work if isinstance(item, Collective) and waits_for_ranks(item)
        }:
            expected[key] = expected.get(key, 0) + 1
    meetings: dict[tuple[Meeters, int], _Meeting] = {}

    def meet(runner: _Runner, item: Collective, lane: Lane) -> None:
        key = (item.group, item.pair)
        count = runner.counts[key] = runner.counts.get(key, 0) + 1
        meeting = meetings.setdefault((key, count), _Meeting(expected[key]))
        meeting.arrivals.append(_Arrival(runner, item, lane, runner.clock.issue_collective()))
        runner.open[lane] = meeting
        if len(meeting.arrivals) == meeting.expected:
            del meetings[key, count]
            meeting.hold()

    while not all(runner.done for runner in runners):
        if not any(runner.run(meet) for runner in runners):
            # Somebody will never come.
            first = min(meetings, key=lambda key: meetings[key].start())
            meetings.pop(first).hold()
    for meeting in meetings.values():
        meeting.hold()
    return [runner.clock for runner in runners]
