"""The model's error against measured values: `python bench/accuracy.py [--json FILE]`.

In: bench/measured. Out: for each chip and each range of measured times the error of the model (median, 90th
percentile, worst) and, beside it, the bare roofline's, which takes the larger of FLOPs over the peak rate and bytes
over the peak bandwidth. An error of 50 % means that prediction and measurement differ by a factor of 1.5 either way.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from weft.chips import find_chip
from weft.model.families.matrix import gemm
from weft.model.rates import constants, peak_rate
from weft.model.roofline import MODEL

MEASURED = Path(__file__).parent / "measured"
ITEM_BYTES = {"bfloat16": 2}
RANGES = ((0.0, 1e-5), (1e-5, 1e-4), (1e-4, 10.0))


class Case(NamedTuple):
    """Seconds: measured, the model's, the bare roofline's."""

    chip: str
    measured: float
    model: float
    roofline: float


def gemm_cases() -> Iterator[Case]:
    """Every measured matrix product."""
    with (MEASURED / "gemm.csv").open() as file:
        for row in csv.DictReader(file):
            chip = find_chip(row["chip"])
            m, n, k = int(row["m"]), int(row["n"]), int(row["k"])
            size = ITEM_BYTES[row["dtype"]]
            profile = gemm("gemm", 1, m, n, k, row["dtype"], False, (m * k + k * n) * size, m * n * size)
            unit, flops = profile.flops[0]
            bare = max(flops / peak_rate(chip, unit).value, profile.bytes_moved / chip.memory_bandwidth)
            estimate = MODEL.estimate(profile, chip)
            # The database gives times from launch to launch, the model those of the kernel alone.
            seconds = estimate.seconds + constants()["kernel"]["gap"]
            yield Case(chip.name, float(row["time_us"]) * 1e-6, seconds, bare)


def errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Median, 90th percentile and worst of the factor between prediction and measurement, less one; median bias."""
    ratio = np.log(predicted / measured)
    factor = np.expm1(np.abs(ratio))
    return {
        "median": float(np.median(factor)), "p90": float(np.percentile(factor, 90)), "worst": float(factor.max()),
        "bias": float(np.expm1(np.median(ratio))),
    }  # fmt: skip


def rows() -> list[dict]:
    """One row for each chip and range of times."""
    cases = list(gemm_cases())
    found = []
    for chip in dict.fromkeys(case.chip for case in cases):
        for low, high in ((0.0, 10.0), *RANGES):
            chosen = [case for case in cases if case.chip == chip and low <= case.measured < high]
            if not chosen:
                continue
            measured = np.array([case.measured for case in chosen])
            found.append(
                {
                    "chip": chip, "what": "bf16 matrix product", "from_seconds": low, "to_seconds": high,
                    "cases": len(chosen), "model": errors(np.array([case.model for case in chosen]), measured),
                    "bare_roofline": errors(np.array([case.roofline for case in chosen]), measured),
                }
            )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    found = rows()
    print(f"{'chip':12}{'times':>18}{'cases':>7}   {'model: median':>14}{'p90':>7}{'worst':>8}{'bias':>7}"
          f"   {'roofline: median':>17}{'p90':>7}")  # fmt: skip
    for row in found:
        times = f"{row['from_seconds'] * 1e6:,.0f} to {row['to_seconds'] * 1e6:,.0f} us"
        model, bare = row["model"], row["bare_roofline"]
        if row["to_seconds"] - row["from_seconds"] == 10.0:
            times = "all"
        print(f"{row['chip']:12}{times:>18}{row['cases']:>7}   {model['median']:>14.0%}{model['p90']:>7.0%}"
              f"{model['worst']:>8.0%}{model['bias']:>+7.0%}   {bare['median']:>17.0%}{bare['p90']:>7.0%}")  # fmt: skip
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
