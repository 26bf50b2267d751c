"""The timeline as a file: spans in, a Chrome trace (chrome://tracing, Perfetto) or plain JSON out.

Every device is a process of the trace, every stream a thread of it, the host one more process with its ranges and
marks. Times are predicted, in microseconds on the chip's clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weft.chips import Chip
from weft.model.clock import Span
from weft.timeline import Timeline, spans_of_ranks

HOST = 1_000_000  # process number of the host in the trace
RANGES = 0
PROCESSES = 100  # numbers that each process of the run has for its devices in the trace


def trace_events(spans: Iterable[Span], chip: Chip, rank: int | None = None,
                 first: int = 0) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The events of a Chrome trace (Trace Event Format, complete events "X", instants "i", metadata "M").

    rank: of the process, None for the only one. first: what to add to the numbers of the trace's processes.
    """
    threads: dict[tuple[int, Any], int] = {}
    host, who = HOST + first, "" if rank is None else f"rank {rank}, "
    yield _name_process(host, f"{who}host (virtual)")
    yield {"ph": "M", "name": "thread_name", "pid": host, "tid": RANGES, "args": {"name": "ranges"}}
    for span in spans:
        if span.kind in ("range", "host", "mark"):
            event: dict[str, Any] = {"name": span.name, "cat": span.kind, "pid": host, "tid": RANGES,
                                     "ts": span.start * 1e6}  # fmt: skip
            yield {**event, "ph": "i", "s": "g"} if span.kind == "mark" else {
                **event, "ph": "X", "dur": span.seconds * 1e6,
            }  # fmt: skip
            continue
        lane = (span.device, span.stream)
        if lane not in threads:
            if not any(device == span.device for device, _ in threads):
                yield _name_process(first + span.device, f"{who}device {span.device}: {chip.full_name} (predicted)")
            threads[lane] = len(threads) + 1
            yield {"ph": "M", "name": "thread_name", "pid": first + span.device, "tid": threads[lane],
                   "args": {"name": f"stream {span.stream}"}}  # fmt: skip
        yield {
            "ph": "X", "name": span.name, "cat": span.family, "pid": first + span.device, "tid": threads[lane],
            "ts": span.start * 1e6, "dur": span.seconds * 1e6,
            "args": {"started after": span.waited_for, "limited by": span.limiter, "basis": span.basis,
                     "issued at us": span.issued * 1e6},
        }  # fmt: skip


def _name_process(number: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}


def write_trace(timelines: Timeline | Sequence[Timeline], path: str | Path, chip: Chip | None = None) -> int:
    """Writes the kept part of a timeline, or of one for each process of a run, as a Chrome trace; returns the number
    of events."""
    shown = [timelines] if isinstance(timelines, Timeline) else list(timelines)
    wanted = chip or shown[0].chip
    count = 0
    with Path(path).open("w") as file:
        dropped = sum(timeline.dropped for timeline in shown)
        note = f"{dropped:,} earlier records are not in this trace" if dropped else ""
        head = {"chip": wanted.name, "times": "predicted", "note": note}
        file.write('{"displayTimeUnit": "ms", "otherData": ' + json.dumps(head) + ', "traceEvents": [\n')
        for place, (timeline, spans) in enumerate(zip(shown, spans_of_ranks(shown, wanted))):
            rank = timeline.rank if timeline.rank is not None or len(shown) == 1 else place
            for event in trace_events(spans, wanted, rank, place * PROCESSES):
                file.write((",\n" if count else "") + json.dumps(event))
                count += 1
        file.write("\n]}\n")
    return count


def list_spans(timeline: Timeline, chip: Chip | None = None) -> list[dict[str, Any]]:
    """The same as plain data, seconds."""
    return [asdict(span) for span in timeline.spans(chip)]
