"""The report of `weft run` and `weft compare`: a program that runs goes in, what it would have cost comes out."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weft import timeline as timelines
from weft.chips import Chip
from weft.errors import InvalidValueError
from weft.report.comparison import compare, print_comparison
from weft.report.summary import format_dollars, format_joules, print_summary, summarize
from weft.report.terminal import format_bytes, make_console
from weft.report.trace import write_trace
from weft.timeline import Timeline


@contextmanager
def report_run(chip: Chip, devices: int = 1, *, chips: Sequence[Chip] = (), summary: bool = True,
               json_file: str | None = None, trace_file: str | None = None,
               tell: Callable[[], None] | None = None) -> Iterator[Timeline]:  # fmt: skip
    """Records what runs inside the block and reports it at the end, also after an exception.

    chips: those to compare; the table is then printed on standard output instead of the summary on standard error.
    json_file, trace_file: where to write all of it, and the Chrome trace. tell: called when the settings are made that
    child processes shall find. Raises InvalidValueError for a file that
    cannot be written, before anything runs.
    """
    for path in (json_file, trace_file):
        if path is not None:
            _check_writable(path)
    with tempfile.TemporaryDirectory(prefix="weft-report-") as directory:
        timelines.collect_from_children(directory)
        if tell is not None:
            tell()
        timeline = timelines.start(chip, devices, chips)
        start = time.perf_counter()
        try:
            yield timeline
        finally:
            wall = time.perf_counter() - start
            # A front end may have put another timeline in the first one's place.
            last = timelines.stop() or timeline
            children = timelines.load_timelines(directory)
            try:
                _report(last, children, wall, chips, summary, json_file, trace_file)
            except Exception as error:  # the program's own outcome stands all the same
                text = f"weft: this run cannot be reported, a mistake of Weft's: {type(error).__name__}: {error}"
                make_console(stderr=True).print(text, markup=False, soft_wrap=True)


def _check_writable(path: str) -> None:
    try:
        with Path(path).open("a"):
            pass
    except OSError as error:
        raise InvalidValueError(f"cannot write {path}: {error.strerror}") from None


def in_order(own: Timeline, others: Sequence[Timeline]) -> list[Timeline]:
    """The timelines of a run in which anything happened: by rank where processes have one, this process's first."""
    used = [timeline for timeline in (own, *others) if timeline.record_count]
    return sorted(used, key=lambda timeline: -1 if timeline.rank is None else timeline.rank)


def slowest(own: Timeline, others: Sequence[Timeline]) -> Timeline:
    """The timeline that speaks for a run of several processes: the one that takes longest, or the first that takes as
    long within a hundredth."""
    used = in_order(own, others)
    longest = max((timeline.clock.elapsed for timeline in used), default=0.0)
    return next((timeline for timeline in used if timeline.clock.elapsed >= 0.99 * longest), own)


def _report(own: Timeline, others: Sequence[Timeline], wall: float, chips: Sequence[Chip], summary: bool,
            json_file: str | None, trace_file: str | None) -> None:  # fmt: skip
    sys.stdout.flush()
    used = in_order(own, others)
    timelines.align_ranks(used, chips)
    main = slowest(own, others)
    if chips:
        print_comparison(main, chips, wall)
    elif summary:
        console = make_console(stderr=True)
        print_summary(main, console, wall)
        if len(used) > 1:
            console.print("weft: " + describe_processes(used, main), markup=False, soft_wrap=True)
    if json_file is not None:
        data: dict[str, Any] = compare(main, chips, wall) if chips else summarize(main, wall_seconds=wall)
        if len(used) > 1:
            data["processes"] = [{"rank": timeline.rank, **summarize(timeline)} for timeline in used]
        Path(json_file).write_text(json.dumps(data, indent=2) + "\n")
    if trace_file is not None:
        write_trace(used or [main], trace_file)


def describe_processes(used: Sequence[Timeline], shown: Timeline) -> str:
    """One line about all processes of a run, of which the summary shows the one that takes longest."""
    found = [summarize(timeline) for timeline in used]
    data = [one["predicted"] for one in found]
    joules = sum(one["energy_joules"] for one in data)
    which = "the slowest" if shown.rank is None else f"rank {shown.rank}"
    text = f"this is {which} of {len(used)} processes; all of them {format_joules(joules)}"
    costs = [one["cost_dollars"] for one in data]
    if None not in costs:
        text += f" and {format_dollars(sum(costs))} predicted"
    peaks = [[memory["allocated"] for memory in one["counted"]["peak_memory"].values()] for one in found]
    most = max(max(peak, default=0) for peak in peaks)
    return text + (f"; {format_bytes(most)} at most on one device" if most else "")
