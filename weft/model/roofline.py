"""The first time model: a roofline with launch latency, fractions of the peaks by family, tiles of matrix products.

A kernel takes the longest of its bounds (each unit's operations over its rate, bytes over bandwidth), and the time
that a kernel takes which does nothing. Constants and their sources: weft/model/data/roofline.toml.
"""

from __future__ import annotations

from functools import lru_cache

from weft.chips import Chip
from weft.model.products import fitted, time_product
from weft.model.profile import Estimate, Profile
from weft.model.rates import constants, peak_rate, sustained_bandwidth, sustained_rate

UNIT_NAMES = {
    "fp64": "FP64 pipe", "fp32": "FP32 pipe", "fp16": "FP16 pipe", "bf16": "BF16 pipe", "int32": "integer pipe",
    "sfu": "special functions", "tc_fp64": "tensor cores (FP64)", "tc_tf32": "tensor cores (TF32)",
    "tc_fp16": "tensor cores (FP16)", "tc_bf16": "tensor cores (BF16)", "tc_fp8": "tensor cores (FP8)",
    "tc_fp4": "tensor cores (FP4)", "tc_int8": "tensor cores (INT8)",
}  # fmt: skip
MEMORY = "memory bandwidth"
LAUNCH = "launch latency"
OPERAND_BYTES = {"tc_fp64": 8.0, "fp64": 8.0, "fp32": 4.0, "tc_tf32": 4.0, "tc_fp8": 1.0, "tc_int8": 1.0, "tc_fp4": 0.5}


class Roofline:
    """A TimeModel."""

    name = "roofline with launch latency"

    def estimate(self, profile: Profile, chip: Chip) -> Estimate:
        """Seconds, joules and the limiter of one kernel of the profile."""
        return _estimate(profile, chip)


@lru_cache(maxsize=65536)
def _estimate(profile: Profile, chip: Chip) -> Estimate:
    numbers = constants()
    used = _used_sms(profile, chip)
    bounds = {name: seconds / used for name, seconds in _compute_bounds(profile, chip).items()}
    bounds[MEMORY] = _memory_bound(profile, chip) / min(1.0, numbers["parallel"]["bandwidth"] * used)
    kernel = numbers["kernel"]
    start = kernel["floor"]
    low = high = None
    if profile.gemm is not None and profile.flops and fitted(chip) is not None:
        unit = profile.flops[0][0]
        pipe = _pipe_name(chip, unit)
        rate = profile.flops[0][1] / bounds[pipe] if bounds.get(pipe) else 0.0
        if rate > 0:
            itemsize = OPERAND_BYTES.get(unit, 2.0)
            found = time_product(chip, rate, profile.gemm, itemsize, profile.bytes_moved, min(itemsize * 2, 4.0)
                                 if itemsize < 2 else itemsize)  # fmt: skip
            bounds[pipe], bounds[MEMORY] = found.compute, found.memory
            start = max(found.start - kernel["gap"], kernel["shortest"])
            if profile.family == "gemm" and "range" in numbers["products"]:
                low, high = numbers["products"]["range"]
    limiter = max(bounds, key=lambda name: bounds[name])
    seconds = start + bounds[limiter]
    if start > bounds[limiter]:
        limiter = LAUNCH
    bounds[LAUNCH] = start
    joules = seconds * _power(chip, seconds, bounds)
    basis = "predicted" if profile.basis == "shapes" else profile.basis
    return Estimate(seconds, joules, limiter, bounds, low and low * seconds, high and high * seconds, basis)


def _used_sms(profile: Profile, chip: Chip) -> float:
    """The part of the chip's SMs that have blocks, over all waves; 1 where the library chooses the blocks."""
    if not profile.blocks or chip.limits is None:
        return 1.0
    waves = -(-profile.blocks // chip.sm_count)
    # Several blocks share an SM, so that only the last wave of many leaves SMs idle.
    return (
        min(1.0, profile.blocks / chip.sm_count) if waves == 1 else max(0.5, profile.blocks / (waves * chip.sm_count))
    )


def _compute_bounds(profile: Profile, chip: Chip) -> dict[str, float]:
    """Seconds by unit."""
    families = constants()["families"]
    bounds: dict[str, float] = {}
    for unit, operations in profile.flops:
        if operations <= 0:
            continue
        rate = sustained_rate(chip, unit)
        if peak_rate(chip, unit).unit.startswith("tc_"):
            rate *= families.get(profile.family, 1.0)
        pipe = _pipe_name(chip, unit)
        bounds[pipe] = bounds.get(pipe, 0.0) + operations / rate
    return bounds


def _pipe_name(chip: Chip, unit: str) -> str:
    """What does the work of a unit on this chip, in words: bf16 products on a T4 are done by the FP32 pipe."""
    return UNIT_NAMES[peak_rate(chip, unit).unit]


def _memory_bound(profile: Profile, chip: Chip) -> float:
    numbers = constants()
    bandwidth = sustained_bandwidth(chip) * numbers["access"][profile.access]
    cache = numbers["cache"]
    if profile.gemm is None and chip.l2_bytes and profile.bytes_moved <= cache["share"] * chip.l2_bytes:
        bandwidth *= cache["ratio"]
    return profile.bytes_moved / bandwidth


def _power(chip: Chip, seconds: float, bounds: dict[str, float]) -> float:
    """Watts while the kernel runs, between the chip's idle power and its limit."""
    numbers = constants()["energy"]
    compute = max((value for name, value in bounds.items() if name not in (MEMORY, LAUNCH)), default=0.0)
    use = max(numbers["waiting"], numbers["compute"] * compute / seconds, numbers["memory"] * bounds[MEMORY] / seconds)
    idle = idle_power(chip)
    return idle + (float(chip.power) - idle) * min(use, 1.0)


def idle_power(chip: Chip) -> float:
    """Watts without work: the chip's, or a tenth of its limit where none is known."""
    return float(chip.idle_power) if chip.idle_power is not None else 0.1 * float(chip.power)


MODEL = Roofline()
