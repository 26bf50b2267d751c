"""What a run would have cost on its chip: a timeline in, a short text on standard error or plain data out.

Times, energy and cost are predicted; memory is what the virtual device allocated; prices and power are published or
assumed, as the chip's file says. Each is labelled so.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console

from weft.chips import Chip, Source
from weft.model.clock import AFTER_LAUNCH, AFTER_RANKS, Clock
from weft.model.rates import constants
from weft.report.terminal import format_bytes
from weft.timeline import Timeline

FORMAT_VERSION = 1
SHOWN_FAMILIES = 6
SHOWN_NAMES = 4


def format_seconds(seconds: float) -> str:
    """Three digits with a unit: 0.00123 is "1.23 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return f"{seconds / scale:,.3g} {unit}" if seconds / scale < 1000 else f"{seconds / scale:,.0f} {unit}"
    raise AssertionError(seconds)


def format_joules(joules: float) -> str:
    """Three digits with a unit: J, kJ, Wh above."""
    if joules >= 3.6e6:
        return f"{joules / 3.6e6:,.3g} kWh"
    if joules >= 3600:
        return f"{joules / 3600:,.3g} Wh"
    return f"{joules:,.3g} J" if joules >= 1 else f"{joules * 1e3:,.3g} mJ"


def format_dollars(dollars: float) -> str:
    """Three digits: 0.0000123 is "1.23e-05 USD"."""
    return f"{dollars:,.3g} USD"


def cost_of(clock: Clock, devices: int) -> float | None:
    """US dollars for the devices while the program runs, None without a price."""
    hourly = clock.chip.price_per_hour
    return None if hourly is None else clock.elapsed * devices * float(hourly) / 3600


def fits(chip: Chip, memory: dict[int, tuple[int, int]]) -> bool | None:
    """Whether the most that was allocated on a device at once is within a chip's memory; None where nothing was."""
    if not memory:
        return None
    return max(peak for peak, _ in memory.values()) <= chip.memory_bytes


def _overflows(timeline: Timeline, chip: Chip) -> list[dict[str, Any]]:
    """Where a dry run went beyond the capacity of the chip that the program saw, fragments counted in."""
    return timeline.dry["overflows"] if timeline.dry is not None and chip.name == timeline.chip.name else []


def describe_capacity(timeline: Timeline, chip: Chip) -> str:
    """Whether a dry run fits on its chip, or where it would not."""
    found = _overflows(timeline, chip)
    each = "fits" if timeline.dry is None or timeline.dry["ranks"] == 1 else "fits on each GPU"
    if not found:
        return each
    first = found[0]
    where = f" at {first['place']}" if first["place"] else ""
    if not first["granted"]:
        return f"torch.OutOfMemoryError was raised{where}; what the program holds otherwise {each}"
    return (
        f"does not fit: device {first['device']} is full{where}, where {format_bytes(first['requested'])} more are "
        f"wanted than the {format_bytes(first['reserved'])} that are reserved by then"
    )


def summarize(timeline: Timeline, chip: Chip | None = None, wall_seconds: float | None = None) -> dict[str, Any]:
    """Everything about a run on a chip (the program's own by default) as plain data, for --json.

    Seconds, joules, bytes, US dollars. wall_seconds: what the program took on this machine.
    """
    clock = timeline.clock_of(chip or timeline.chip)
    memory = timeline.peak_memory()
    devices = max(len(clock.devices), 1)
    busy = sum(share.seconds for share in clock.families.values()) or 1.0
    price = clock.chip.facts.get("price_per_hour")
    power = clock.chip.facts.get("power")
    assert power is not None
    return {
        "format": FORMAT_VERSION,
        "chip": {"name": clock.chip.name, "full_name": clock.chip.full_name, "devices": devices},
        "predicted": {
            "model": clock.model.name,
            "elapsed_seconds": clock.elapsed,
            "device_seconds": clock.busy,
            "host_seconds": clock.host_time,
            "waiting_for_launches_seconds": clock.waits.get(AFTER_LAUNCH, 0.0),
            "waiting_for_ranks_seconds": clock.waits.get(AFTER_RANKS, 0.0),
            "energy_joules": clock.joules,
            "cost_dollars": cost_of(clock, devices),
            "families": {
                name: {
                    "seconds": share.seconds, "share": share.seconds / busy, "kernels": share.kernels,
                    "flops": share.flops, "bytes": share.bytes_moved, "joules": share.joules,
                }
                for name, share in _sorted(clock.families)
            },
            "kernels_by_name": {
                name: {"seconds": share.seconds, "kernels": share.kernels} for name, share in _sorted(clock.names)
            },
            "limiters": {
                name: seconds / busy for name, seconds in sorted(clock.limiters.items(), key=lambda pair: -pair[1])
            },
            "ranges": {
                name: {"count": found.count, "host_seconds": found.host_seconds,
                       "device_seconds": found.device_seconds}
                for name, found in clock.ranges.items()
            },
            "devices": {
                ordinal: {"busy_seconds": device.busy, "joules": device.joules}
                for ordinal, device in clock.devices.items()
            },
        },
        "counted": {
            "records": timeline.record_count,
            "kernels": clock.counts.kernels,
            "copies": clock.counts.copies,
            "collectives": clock.counts.collectives,
            "priced_by_bytes_only": clock.counts.bytes_only,
            "rough_estimates": clock.counts.rough,
            "peak_memory": {
                device: {"allocated": peak, "reserved": reserved, "capacity": clock.chip.memory_bytes}
                for device, (peak, reserved) in memory.items()
            },
            "fits": fits(clock.chip, memory) and not any(
                found["granted"] for found in _overflows(timeline, clock.chip)
            ),
        },
        "dry": timeline.dry,
        "measured": {"wall_seconds_on_this_machine": wall_seconds},
        "prices_and_power": {
            "price_per_hour": None if price is None else price.value,
            "price_source": None if price is None else _describe_source(price.source),
            "power_limit_watts": power.value,
            "host_times": f"{constants()['host']['kind']}: {constants()['host']['title']}",
            "power_curve": f"{constants()['energy']['kind']}: {constants()['energy']['title']}",
        },
    }  # fmt: skip


def _describe_source(source: Source) -> str:
    return f"{source.kind}: {source.title}, {source.date}"


def _sorted(table: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(table.items(), key=lambda pair: -pair[1].seconds)


def summary_lines(timeline: Timeline, wall_seconds: float | None = None) -> list[tuple[str, str]]:
    """The summary as names and texts; empty where the program used no device."""
    data = summarize(timeline, wall_seconds=wall_seconds)
    predicted, counted = data["predicted"], data["counted"]
    planned = timeline.dry is not None and any(found["allocated"] for found in counted["peak_memory"].values())
    if not counted["kernels"] and not counted["copies"] and not counted["collectives"] and not planned:
        return []
    chip = timeline.chip
    devices = data["chip"]["devices"]
    kind = "virtual, a dry run: shapes and costs, no numbers" if timeline.dry is not None else "virtual"
    lines = [("device", f"{chip.full_name}" + (f", {devices} of them" if devices > 1 else "") + f" ({kind})")]
    elapsed, busy = predicted["elapsed_seconds"], predicted["device_seconds"]
    share = busy / (elapsed * devices) if elapsed else 0.0
    text = f"{format_seconds(elapsed)} predicted, the device busy for {share:.0%} of it"
    if predicted["waiting_for_launches_seconds"] > 0.5 * elapsed * devices:
        text += ": launch-bound, the host cannot feed it"
    if wall_seconds is not None:
        spent = format_seconds(wall_seconds)
        text += f"; the dry run took {spent}" if timeline.dry else f"; {spent} measured on this machine's CPU"
    lines.append(("time", text))
    families = list(predicted["families"].items())
    shown = [f"{name} {part['share']:.0%}" for name, part in families[:SHOWN_FAMILIES]]
    if len(families) > SHOWN_FAMILIES:
        shown.append(f"others {sum(part['share'] for _, part in families[SHOWN_FAMILIES:]):.0%}")
    if shown:
        lines.append(("by family", ", ".join(shown) + f" of {counted['kernels']:,} kernels"))
    limits = [f"{name} {part:.0%}" for name, part in list(predicted["limiters"].items())[:3]]
    if limits:
        lines.append(("limited by", ", ".join(limits)))
    memory = counted["peak_memory"]
    if memory:
        device, most = max(memory.items(), key=lambda pair: pair[1]["allocated"])
        where = f" (device {device})" if devices > 1 else ""
        room = most["allocated"] / chip.memory_bytes
        lines.append(
            ("memory", f"{format_bytes(most['allocated'])} allocated at most{where}, {room:.0%} of "
                       f"{format_bytes(chip.memory_bytes)}; {format_bytes(most['reserved'])} reserved")
        )  # fmt: skip
        if timeline.dry is not None:
            lines.append(("capacity", describe_capacity(timeline, chip)))
    rank, ranks = (timeline.dry["rank"], timeline.dry["ranks"]) if timeline.dry is not None else (0, 1)
    each = "" if ranks == 1 else f" for rank {rank} of {ranks}, which was run"
    every = "" if ranks == 1 else f"; {format_joules(ranks * predicted['energy_joules'])} for all, if they do the same"
    lines.append(("energy", f"{format_joules(predicted['energy_joules'])} predicted{each}{every}"))
    all_of_them = "" if ranks == 1 else f" for all {ranks}"
    price = chip.facts.get("price_per_hour")
    if price is not None and predicted["cost_dollars"] is not None:
        lines.append(
            ("cost", f"{format_dollars(ranks * predicted['cost_dollars'])} predicted{all_of_them}, at {price.value:g} "
                     f"USD per device and hour ({price.source.kind}, {price.source.date})")
        )  # fmt: skip
    for name, title in (("priced_by_bytes_only", "bytes only"), ("rough_estimates", "rough")):
        found = counted[name]
        if found:
            kinds = sorted(found.items(), key=lambda pair: -pair[1])
            names = ", ".join(f"{kind} ({count:,})" for kind, count in kinds[:SHOWN_NAMES])
            more = f" and {len(kinds) - SHOWN_NAMES} more" if len(kinds) > SHOWN_NAMES else ""
            text = {"bytes only": "operators priced by their bytes alone", "rough": "kernels estimated roughly"}[title]
            lines.append((title, f"{text}: {names}{more}"))
    return lines


def print_summary(timeline: Timeline, console: Console, wall_seconds: float | None = None) -> None:
    """The summary, a line for each subject; nothing where the program used no device."""
    lines = summary_lines(timeline, wall_seconds)
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        console.print(f"weft: {name:{width}}  {text}", markup=False, soft_wrap=True)
