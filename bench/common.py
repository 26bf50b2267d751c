"""What all benchmarks share: timing in turn, the row format, the table, the JSON.

A benchmark makes a list of Rows. A row holds one job of Weft's against one peer, or against a fixed limit:

    job  threads  Weft  against  ratio  bar  reached

`ratio` is Weft's speed divided by the peer's (above 1: Weft is faster). All times are wall-clock seconds and measured:
both sides run in turn in the same process, after a warm-up, and each figure is the median of its runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


def _load_of_others() -> float | None:
    """The load of the last minute where it is high enough to disturb what is measured."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load if load > 0.25 * (os.cpu_count() or 1) else None


BUSY = _load_of_others()  # asked before this program's own load counts


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    value, against_value: Weft's figure and the other side's, in `unit`. ratio: Weft's speed over the peer's; None
    where the job is held against a limit. bar: what is asked for, a ratio to reach or, where ratio is None, a value in
    `unit` to stay below; None where nothing is asked. reached: whether it was; None without a bar.
    """

    job: str
    threads: int
    value: float
    unit: str
    against: str
    against_value: float | None
    ratio: float | None
    bar: float | None
    reached: bool | None


def ratio_row(job: str, threads: int, ours: float, theirs: float, against: str, bar: float | None,
              work: float | None = None, unit: str = "s") -> Row:  # fmt: skip
    """A row from two times in seconds. With `work` (in `unit` times seconds) the figures shown are rates."""
    ratio = theirs / ours
    figure = (lambda seconds: work / seconds) if work is not None else (lambda seconds: seconds)
    reached = None if bar is None else ratio >= bar
    return Row(job, threads, figure(ours), unit, against, figure(theirs), ratio, bar, reached)


def limit_row(job: str, threads: int, value: float, unit: str, limit: float) -> Row:
    """A row held against a limit in the same unit: the value must not exceed it."""
    return Row(job, threads, value, unit, "limit", None, None, limit, value <= limit)


def median_times(sides: Mapping[str, Callable[[], object]], *, seconds: float = 2.0, least: int = 5,
                 most: int = 50) -> dict[str, float]:  # fmt: skip
    """Median wall-clock seconds of each side, timed in turn.

    Every side runs once to warm up; then rounds of one run each follow until `seconds` have passed, at least `least`
    rounds and at most `most`. The order turns from round to round, so that no side always follows the same other.
    """
    names = list(sides)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        sides[name]()
    begin = time.perf_counter()
    for number in range(most):
        if number >= least and time.perf_counter() - begin > seconds:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_name() -> str:
    """The processor's own name, as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _figure(value: float, unit: str) -> str:
    """A value with its unit; seconds below one are shown as ms or us."""
    if unit == "s" and value < 1:
        return f"{_number(value * 1e3)} ms" if value >= 1e-3 else f"{_number(value * 1e6)} us"
    return f"{_number(value)} {unit}"


def _cells(row: Row) -> tuple[str, ...]:
    if row.ratio is None:
        bar = "" if row.bar is None else f"at most {_figure(row.bar, row.unit)}"
        ratio = ""
    else:
        bar = "" if row.bar is None else f"at least {_number(row.bar)}"
        ratio = f"{row.ratio:,.2f}" if row.ratio < 100 else f"{row.ratio:,.0f}"
    against = row.against
    if row.against_value is not None:
        against += f", {_figure(row.against_value, row.unit)}"
    reached = {None: "", True: "reached", False: "[bold red]not reached[/]"}[row.reached]
    return row.job, str(row.threads), _figure(row.value, row.unit), against, ratio, bar, reached


def print_rows(title: str, rows: Sequence[Row], missing: Mapping[str, str], console: Console | None = None) -> None:
    """The table, and below it the peers that were left out: `missing` maps a peer's name to the reason."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    table = Table(title=title, title_justify="left", caption_justify="left")
    for heading in ("job", "threads", "Weft", "against", "ratio", "bar", "reached or not"):
        table.add_column(heading, justify="right" if heading in ("threads", "Weft", "ratio") else "left")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    asked = [row for row in rows if row.reached is not None]
    console.print(f"{sum(bool(row.reached) for row in asked)} of {len(asked)} bars reached. Measured on {cpu_name()}.")
    if BUSY is not None:
        console.print(f"Other programs were running (load {BUSY:.1f} before the start): not to quote.")
    for name, reason in missing.items():
        console.print(f"left out: {name} ({reason})")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The JSON form: a list of rows, each an object with the fields of Row."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def benchmark_parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has: --json, --only, --quick."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--only", action="append", metavar="JOB", help="run only the jobs whose name contains JOB")
    parser.add_argument("--quick", action="store_true", help="small sizes, few runs; not to quote")
    return parser
