"""The timeline as a file: spans in, a Chrome trace (chrome://tracing, Perfetto) or plain JSON out.

Every device is a process of the trace, every stream a thread of it, the host one more process with its ranges and
marks. Times are predicted, in microseconds on the chip's clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weft.chips import Chip
from weft.model.clock import Span
from weft.timeline import Timeline

HOST = 1_000_000  # process number of the host in the trace
RANGES = 0


def trace_events(spans: Iterable[Span], chip: Chip) -> Iterator[dict[str, Any]]:
    """The events of a Chrome trace (Trace Event Format, complete events "X", instants "i", metadata "M")."""
    threads: dict[tuple[int, Any], int] = {}
    yield _name_process(HOST, "host (virtual)")
    yield {"ph": "M", "name": "thread_name", "pid": HOST, "tid": RANGES, "args": {"name": "ranges"}}
    for span in spans:
        if span.kind in ("range", "host", "mark"):
            event: dict[str, Any] = {"name": span.name, "cat": span.kind, "pid": HOST, "tid": RANGES,
                                     "ts": span.start * 1e6}  # fmt: skip
            yield {**event, "ph": "i", "s": "g"} if span.kind == "mark" else {
                **event, "ph": "X", "dur": span.seconds * 1e6,
            }  # fmt: skip
            continue
        lane = (span.device, span.stream)
        if lane not in threads:
            if not any(device == span.device for device, _ in threads):
                yield _name_process(span.device, f"device {span.device}: {chip.full_name} (predicted)")
            threads[lane] = len(threads) + 1
            yield {"ph": "M", "name": "thread_name", "pid": span.device, "tid": threads[lane],
                   "args": {"name": f"stream {span.stream}"}}  # fmt: skip
        yield {
            "ph": "X", "name": span.name, "cat": span.family, "pid": span.device, "tid": threads[lane],
            "ts": span.start * 1e6, "dur": span.seconds * 1e6,
            "args": {"started after": span.waited_for, "limited by": span.limiter, "basis": span.basis,
                     "issued at us": span.issued * 1e6},
        }  # fmt: skip


def _name_process(number: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}


def write_trace(timeline: Timeline, path: str | Path, chip: Chip | None = None) -> int:
    """Writes the kept part of a timeline as a Chrome trace; returns the number of events."""
    wanted = chip or timeline.chip
    count = 0
    with Path(path).open("w") as file:
        note = f"{timeline.dropped:,} earlier records are not in this trace" if timeline.dropped else ""
        head = {"chip": wanted.name, "times": "predicted", "note": note}
        file.write('{"displayTimeUnit": "ms", "otherData": ' + json.dumps(head) + ', "traceEvents": [\n')
        for event in trace_events(timeline.spans(wanted), wanted):
            file.write((",\n" if count else "") + json.dumps(event))
            count += 1
        file.write("\n]}\n")
    return count


def list_spans(timeline: Timeline, chip: Chip | None = None) -> list[dict[str, Any]]:
    """The same as plain data, seconds."""
    return [asdict(span) for span in timeline.spans(chip)]
