"""Time of a matrix product: its shape and a chip in, seconds and what bounds them out.

The library divides C into tiles, one block each; blocks run in waves of one per SM, so a product that fills the last
wave badly wastes SMs. Each tile takes the longer of its arithmetic and of its operands' way through the L2 cache, then
stores its result. Small products with a long inner dimension split it. All of it cannot be faster than the operands'
way through memory. The library is assumed to choose the best tile; the constants were fitted to measured times
(roofline.toml, [products.*]).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.chips import Chip
from weft.model.rates import constants, sustained_bandwidth

# Rows and columns of C that a block computes, as cuBLAS's and CUTLASS's kernels have them.
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (32, 64), (64, 32), (16, 64))
SPLITS = (1, 2, 4, 8, 16)
SHORTEST = 64  # of the inner dimension in one block

# Compute capability -> the fitted set of its generation.
GENERATIONS = {
    (7, 0): "ampere", (7, 5): "ampere", (8, 0): "ampere", (8, 6): "ampere", (8, 7): "ampere", (8, 9): "ada",
    (9, 0): "hopper", (10, 0): "hopper", (12, 0): "ada",
}  # fmt: skip


@dataclass(frozen=True)
class ProductTime:
    """seconds in all; compute, memory, start: the bounds; tile and split: what was assumed."""

    seconds: float
    compute: float
    memory: float
    start: float
    tile: tuple[int, int]
    split: int


def fitted(chip: Chip) -> dict[str, float] | None:
    """The constants for a chip, None for one of which no relative was measured."""
    if chip.limits is None:
        return None
    generation = GENERATIONS.get(chip.limits.version)
    found: dict[str, Any] = constants()["products"]
    return found[generation] if generation else None


def time_product(chip: Chip, rate: float, shape: tuple[int, int, int, int], itemsize: float, bytes_moved: float,
                 result_itemsize: float = 2.0) -> ProductTime:  # fmt: skip
    """shape: (batch, m, n, k). rate: sustained FLOP/s of the unit. itemsize: bytes per element of the operands.

    Raises ValueError for a chip without fitted constants.
    """
    numbers = fitted(chip)
    if numbers is None:
        raise ValueError(f"no constants of matrix products for {chip.name}")
    batch, m, n, k = shape
    sms = chip.sm_count
    bandwidth = sustained_bandwidth(chip) * numbers["memory"]
    per_sm, memory_per_sm = rate * numbers["compute"] / sms, bandwidth / sms
    memory = bytes_moved / bandwidth
    best: ProductTime | None = None
    for rows, columns in TILES:
        tiles = -(-m // rows) * -(-n // columns) * batch
        step = max(2 * rows * columns / per_sm, (rows + columns) * itemsize / (numbers["cache"] * memory_per_sm))
        for split in SPLITS:
            waves = -(-tiles * split // sms)
            inner = max(k / split, SHORTEST)
            partial = result_itemsize if split == 1 else 8.0  # f32 sums, written and read again
            store = rows * columns * partial / memory_per_sm * numbers["store"]
            compute = waves * (step * inner + store + numbers["wave"])
            extra = 0.0 if split == 1 else numbers["split"]
            seconds = numbers["start"] + max(compute, memory) + extra
            if best is None or seconds < best.seconds:
                best = ProductTime(seconds, compute, memory, numbers["start"] + extra, (rows, columns), split)
    assert best is not None
    return best
