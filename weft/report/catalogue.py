"""The chips in, a table of all of them or a page about one out; JSON for machines."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from weft.chips import FIELDS, Chip, all_chips, find_chip
from weft.report.terminal import format_kib, make_console, print_json, print_pairs, print_table

# Limits of Capability in the order in which a person looks for them, and what each is.
LIMITS = {
    "max_threads_per_block": "threads per block",
    "max_block_dim": "block shape at most",
    "max_grid_dim": "grid shape at most",
    "warp_size": "lanes per warp",
    "shared_per_block": "shared memory per block",
    "shared_per_block_optin": "shared memory per block, when asked for",
    "shared_per_sm": "shared memory per SM",
    "constant_bytes": "constant memory",
    "local_bytes_per_thread": "local memory per thread",
    "max_parameter_bytes": "kernel parameters, PTX before 8.1",
    "max_parameter_bytes_ptx_8_1": "kernel parameters, PTX 8.1 and later",
    "registers_per_sm": "registers per SM",
    "max_registers_per_thread": "registers per thread",
    "warps_per_sm": "warps per SM",
    "blocks_per_sm": "blocks per SM",
    "fp32_lanes_per_sm": "FP32 lanes per SM",
    "fp64_lanes_per_sm": "FP64 lanes per SM",
    "tensor_cores_per_sm": "tensor cores per SM",
}
# Limits that are sizes in bytes.
SIZES = ("shared_per_block", "shared_per_block_optin", "shared_per_sm", "constant_bytes", "local_bytes_per_thread",
         "max_parameter_bytes", "max_parameter_bytes_ptx_8_1")  # fmt: skip


def print_chips(name: str | None, as_json: bool) -> None:
    """One chip, or all where `name` is None. Raises InvalidValueError for a name that no chip has."""
    if name is None:
        if as_json:
            print_json([describe_chip(chip) for chip in all_chips()])
        else:
            _print_table()
        return
    chip = find_chip(name)
    if as_json:
        print_json(describe_chip(chip))
    else:
        _print_page(chip)


def describe_chip(chip: Chip) -> dict[str, Any]:
    """Everything known about a chip, as plain data."""
    limits = chip.limits
    return {
        "name": chip.name,
        "full_name": chip.full_name,
        "maker": chip.maker,
        "aliases": list(chip.aliases),
        "runs_kernels": chip.runs_kernels,
        "compute_capability": None if limits is None else str(limits),
        "limits": {}
        if limits is None
        else {
            field.name: getattr(limits, field.name)
            for field in fields(limits)
            if field.name not in ("version", "sources")
        },
        "facts": {name: {"unit": FIELDS[name][0], **asdict(fact)} for name, fact in chip.facts.items()},
        "limits_sources": [] if limits is None else [asdict(source) for source in limits.sources],
    }


def format_fact(field: str, value: int | float | str | bool) -> str:
    """A fact with its unit, scaled for reading: memory_bandwidth 3.35e12 is "3,350 GB/s"."""
    unit = FIELDS[field][0]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if unit == "bytes":
        return format_kib(int(value)) if value < 1 << 30 else f"{value / (1 << 30):,.4g} GiB"
    if unit == "bytes/s":
        return f"{value / 1e9:,.4g} GB/s" if value < 1e12 else f"{value / 1e9:,.0f} GB/s"
    if unit == "Hz":
        return f"{value / 1e6:,.0f} MHz"
    if unit in ("FLOP/s", "OP/s"):
        return f"{value / 1e12:,.4g} T{unit}"
    if unit == "USD/h":
        return f"{value:,.3g} USD/h"
    return f"{value:,} {unit}".rstrip()


def _print_table() -> None:
    headings = ("name", "device", "cc", "SMs", "memory", "bandwidth", "bf16", "shared/block", "L2", "power", "per hour")
    rows = []
    for chip in all_chips():
        limits = chip.limits
        price = chip.facts.get("price_per_hour")
        rows.append(
            (
                chip.name,
                chip.full_name,
                "-" if limits is None else str(limits),
                str(chip.sm_count),
                format_fact("memory_bytes", chip.memory_bytes),
                format_fact("memory_bandwidth", chip.memory_bandwidth),
                format_fact("tc_bf16_rate", chip.tc_bf16_rate) if chip.tc_bf16_rate else "",
                "" if limits is None else format_kib(limits.shared_per_block_optin),
                format_fact("l2_bytes", chip.l2_bytes) if chip.l2_bytes else "",
                format_fact("power", chip.power),
                "" if price is None else f"{price.value:,.3g} USD{' (assumed)' * (price.source.kind == 'assumed')}",
            )
        )
    console = make_console()
    print_table(console, headings, rows, right=headings[3:])
    others = sum(not chip.runs_kernels for chip in all_chips())
    console.print(
        f"{len(rows)} chips, figures as published unless marked; weft gpus NAME gives all limits and the sources. The "
        f"{others} without a compute capability (cc) run no kernels: weft compare prices library kernels on them. "
        "cpu is this machine's processor, measured when it is first asked for."
    )


def _print_page(chip: Chip) -> None:
    console = make_console()
    limits = chip.limits
    pairs = [
        ("name", chip.name),
        ("also called", ", ".join(chip.aliases)),
        ("device", chip.full_name),
        ("maker", chip.maker),
        ("compute capability", f"{limits} ({chip.arch})" if limits else "none: library kernels only"),
    ]
    console.print("[bold]Chip[/]")
    print_pairs(console, [(name, value) for name, value in pairs if value])
    print_table(
        console,
        ("fact", "value", "is", "source", "note"),
        [
            (FIELDS[name][1], format_fact(name, fact.value), fact.source.kind,
             f"{fact.source.title}, {fact.source.date}", fact.note)
            for name, fact in chip.facts.items()
        ],
    )  # fmt: skip
    if limits is not None:
        console.print()
        sources = "; ".join(f"{source.title}, {source.date}" for source in limits.sources)
        console.print(f"[bold]Limits[/] of compute capability {limits} ({sources})")
        print_pairs(console, [(text, _format_limit(name, getattr(limits, name))) for name, text in LIMITS.items()])
    console.print()
    console.print("[bold]Sources[/]")
    cited = dict.fromkeys([*(fact.source for fact in chip.facts.values()), *(limits.sources if limits else ())])
    print_pairs(console, [(source.title, source.url) for source in cited])


def _format_limit(name: str, value: int | tuple[int, ...]) -> str:
    if isinstance(value, tuple):
        return " x ".join(f"{part:,}" for part in value)
    return format_kib(value) if name in SIZES else f"{value:,}"
