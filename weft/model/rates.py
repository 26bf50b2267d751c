"""Peak and sustained rates of a chip: a unit's name in, operations or bytes per second out.

Where a chip file has no rate for a unit, the work runs on the next best unit that has one (bf16 on a V100 is done in
f32), or the rate follows from the capability's lanes; the answer says which.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from weft.chips import Chip

DATA = Path(__file__).parent / "data"

# A unit -> (the unit that does its work where the chip has none, operations there for one here).
SUBSTITUTES: dict[str, tuple[str, float]] = {
    "tc_fp64": ("fp64", 1.0),
    "tc_tf32": ("fp32", 1.0),
    "tc_fp16": ("tc_bf16", 1.0),
    "tc_bf16": ("fp32", 1.0),
    "tc_fp8": ("tc_fp16", 1.0),
    "tc_fp4": ("tc_fp8", 1.0),
    "tc_int8": ("int32", 0.25),  # four products per dp4a
    "fp16": ("fp32", 1.0),
    "bf16": ("fp32", 1.0),
    "fp64": ("fp32", 32.0),  # emulated
    "int32": ("fp32", 1.0),
    "sfu": ("fp32", 8.0),
}
# Operations per clock and SM of units that no data sheet lists: CUDA C++ Programming Guide, throughput of native
# arithmetic instructions (an addition counts one; 16 special functions).
LANES = {"int32": 64, "sfu": 16}


@cache
def constants() -> dict[str, Any]:
    """The numbers of roofline.toml by section."""
    with (DATA / "roofline.toml").open("rb") as file:
        return tomllib.load(file)


@dataclass(frozen=True)
class Rate:
    """Operations or bytes per second. unit: what does the work; kind: published, derived, measured or assumed."""

    value: float
    unit: str
    kind: str


@cache
def peak_rate(chip: Chip, unit: str) -> Rate:
    """A unit's rate. Raises KeyError for a name that is no unit."""
    fact = chip.facts.get(f"{unit}_rate")
    if fact is not None:
        return Rate(float(fact.value), unit, fact.source.kind)
    limits = chip.limits
    if limits is not None:
        per_sm = {"fp32": 2 * limits.fp32_lanes_per_sm, "fp64": 2 * limits.fp64_lanes_per_sm, **LANES}.get(unit)
        if per_sm is not None:
            return Rate(float(chip.sm_count * per_sm * chip.boost_clock), unit, "derived")
    if unit == "fp32":
        raise KeyError(f"{chip.name} has no fp32_rate")
    other, operations = SUBSTITUTES[unit]
    found = peak_rate(chip, other)
    return Rate(found.value / operations, found.unit, found.kind)


@cache
def sustained_rate(chip: Chip, unit: str) -> float:
    """What the best kernels reach: tensor cores by the chip's measured matrix product, plain pipes by a fraction."""
    found = peak_rate(chip, unit)
    fractions = constants()["fractions"]
    if not found.unit.startswith("tc_"):
        return found.value * fractions["plain"]
    return found.value * tensor_fraction(chip)


@cache
def tensor_fraction(chip: Chip) -> float:
    """The part of the tensor cores' peak that the best bf16 product reaches: measured, or the median of those."""
    measured = chip.facts.get("sustained_tensor_rate")
    peak = chip.facts.get("tc_bf16_rate")
    if measured is None or peak is None:
        return float(constants()["fractions"]["tensor"])
    return float(measured.value) / float(peak.value)


@cache
def sustained_bandwidth(chip: Chip) -> float:
    """Bytes per second that kernels reach when they stream through device memory."""
    if chip.sustained_bandwidth is not None:
        return float(chip.sustained_bandwidth)
    return float(chip.memory_bandwidth) * float(constants()["fractions"]["bandwidth"])


@cache
def link_bandwidth(chip: Chip, link: str) -> float | None:
    """Bytes per second in one direction that large copies reach over "pcie", "nvlink" or "network"; None without one.

    An integrated chip shares its memory with the CPU: a copy to it is one within that memory.
    """
    fraction = constants()["transfer"]["fraction"]
    if link == "pcie" and chip.integrated:
        return sustained_bandwidth(chip) / 2
    fact = chip.facts.get(f"{link}_bandwidth")
    if fact is None:
        return None
    both_directions = link in ("pcie", "nvlink")
    return float(fact.value) * fraction / (2 if both_directions else 1)
