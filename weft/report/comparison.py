"""One run priced on several chips: a timeline in, a table or plain data out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.chips import Chip, find_chip
from weft.errors import InvalidValueError
from weft.report.summary import format_dollars, format_joules, format_seconds, summarize
from weft.report.terminal import format_bytes, make_console, print_table
from weft.timeline import Timeline

HEADINGS = ("chip", "time", "busy", "memory", "energy", "cost", "limited by", "note")


def choose_visible(chips: Sequence[Chip]) -> Chip:
    """The chip that the program sees while it runs: of those that run kernels the one with the most memory.

    Raises InvalidValueError where none does.
    """
    able = [chip for chip in chips if chip.runs_kernels]
    if not able:
        return find_chip("h100")
    return max(able, key=lambda chip: chip.memory_bytes)


def find_chips(names: str) -> list[Chip]:
    """The chips of a list separated by commas, each once. Raises InvalidValueError for an unknown or empty one."""
    found = [find_chip(name.strip()) for name in names.split(",") if name.strip()]
    if not found:
        raise InvalidValueError("name at least one chip, as in --gpus h100,rtx4090; `weft gpus` lists them")
    return list(dict.fromkeys(found))


def compare(timeline: Timeline, chips: Sequence[Chip], wall_seconds: float | None = None) -> dict[str, Any]:
    """Plain data: for each chip what `summarize` says, and this machine's measured time."""
    return {
        "chips": [summarize(timeline, chip) for chip in chips],
        "seen_by_the_program": timeline.chip.name,
        "measured": {"wall_seconds_on_this_machine": wall_seconds},
    }


def comparison_rows(timeline: Timeline, chips: Sequence[Chip], wall_seconds: float | None = None) -> list[list[str]]:
    """The table's rows, as texts under HEADINGS."""
    rows = []
    for chip in chips:
        data = summarize(timeline, chip)
        predicted, counted = data["predicted"], data["counted"]
        elapsed = predicted["elapsed_seconds"]
        devices = data["chip"]["devices"]
        notes = []
        compiled = predicted["families"].get("compiled", {}).get("kernels", 0)
        if not chip.runs_kernels and compiled:
            notes.append(f"{compiled:,} compiled kernels would have to be ported")
        if counted["priced_by_bytes_only"]:
            notes.append(f"{sum(counted['priced_by_bytes_only'].values()):,} kernels by bytes only")
        if counted["rough_estimates"]:
            notes.append(f"{sum(counted['rough_estimates'].values()):,} kernels estimated roughly")
        limiter = next(iter(predicted["limiters"]), "")
        if predicted["waiting_for_launches_seconds"] > 0.5 * elapsed * devices:
            limiter = "launches of the host"
        cost = predicted["cost_dollars"]
        assumed = chip.facts["price_per_hour"].source.kind == "assumed" if cost is not None else False
        rows.append(
            [
                chip.name,
                format_seconds(elapsed),
                f"{predicted['device_seconds'] / (elapsed * devices):.0%}" if elapsed else "",
                _describe_memory(counted, chip),
                format_joules(predicted["energy_joules"]),
                ("" if cost is None else format_dollars(cost)) + (" (assumed)" if assumed else ""),
                limiter,
                "; ".join(notes),
            ]
        )
    if wall_seconds is not None:
        what = ("this CPU", "measured, the whole program") if timeline.dry is None else ("dry run", "measured, shapes")
        rows.append([what[0], format_seconds(wall_seconds), "", "", "", "", "", what[1]])
    return rows


def _describe_memory(counted: dict[str, Any], chip: Chip) -> str:
    if counted["fits"] is None:
        return ""
    most = max(found["allocated"] for found in counted["peak_memory"].values())
    return f"{'fits' if counted['fits'] else 'does not fit'}: {format_bytes(most)} of {format_bytes(chip.memory_bytes)}"


def print_comparison(timeline: Timeline, chips: Sequence[Chip], wall_seconds: float | None = None, *,
                     stderr: bool = False) -> None:  # fmt: skip
    """The table. Everything but this CPU's time is predicted."""
    console = make_console(stderr=stderr)
    rows = comparison_rows(timeline, chips, wall_seconds)
    print_table(console, HEADINGS, rows, title="Predicted from one run", right=("time", "busy", "energy", "cost"))
    console.print(
        f"The program saw {timeline.chip.name}. Prices per hour and power: weft gpus NAME says where each comes from."
    )
