"""This machine's CPU as a chip: nothing in, a Chip with measured rates out.

Measured once with NumPy (about two seconds) and kept in the cache folder, for as long as the processor and the number
of cores stay the same. It runs no kernels as a device; library kernels are priced on it.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from weft import settings
from weft.chips.chip import Chip, Fact, Source

NAME = "cpu"
SIDE = 1536  # of the square matrices
COPY_BYTES = 256 << 20
WATTS_PER_CORE, IDLE_WATTS_PER_CORE, DOLLARS_PER_CORE_HOUR = 10.0, 2.0, 0.04


def describe_processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()


def clock_hertz() -> float:
    """The processor's clock of the moment, 0 where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("cpu MHz"):
                return float(line.partition(":")[2]) * 1e6
    except (OSError, ValueError):
        pass
    return 0.0


def _best_seconds(job: Callable[[], object], seconds: float = 0.4) -> float:
    """The shortest of several runs within a time."""
    job()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        job()
        best = min(best, time.perf_counter() - start)
    return best


def _multiply_rate(dtype: type) -> float:
    a: np.ndarray = np.ones((SIDE, SIDE), dtype)
    out = np.empty_like(a)
    return 2.0 * SIDE**3 / _best_seconds(lambda: np.matmul(a, a, out=out))


def measure() -> dict[str, float]:
    """FLOP/s of matrix products in f32 and f64, bytes per second of a copy (read and written)."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    return {
        "fp32_rate": _multiply_rate(np.float32),
        "fp64_rate": _multiply_rate(np.float64),
        "memory_bandwidth": 2 * COPY_BYTES / _best_seconds(lambda: np.copyto(target, source)),
    }


def host_chip() -> Chip:
    """This machine's CPU, measured now or earlier."""
    name, cores = describe_processor(), settings.usable_cores()
    path = Path(settings.current().cache_dir) / "host.json"
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    if kept.get("name") != name or kept.get("cores") != cores:
        kept = {"name": name, "cores": cores, "date": datetime.date.today().isoformat(), "rates": measure()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept))
        except OSError:
            pass  # measured again the next time
    return _make_chip(name, cores, kept["date"], kept["rates"])


def _make_chip(name: str, cores: int, date: str, rates: dict[str, float]) -> Chip:
    measured = Source("Measured on this machine with NumPy", "https://numpy.org/doc/stable/", date, "measured")
    asked = Source("Asked of this machine's system", "https://docs.kernel.org/filesystems/proc.html", date, "measured")
    assumed = Source("Assumed for a server's core", "https://www.spec.org/power_ssj2008/", "2026-11", "assumed")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts = {
        "sm_count": Fact(cores, asked, "cores that this process may use"),
        "memory_bytes": Fact(memory, asked),
        "memory_bandwidth": Fact(rates["memory_bandwidth"], measured, "a copy, bytes read and written"),
        "sustained_bandwidth": Fact(rates["memory_bandwidth"], measured),
        "boost_clock": Fact(clock_hertz(), asked, "of the moment"),
        "fp32_rate": Fact(rates["fp32_rate"], measured, f"matrix product of side {SIDE}"),
        "fp64_rate": Fact(rates["fp64_rate"], measured, f"matrix product of side {SIDE}"),
        "power": Fact(WATTS_PER_CORE * cores, assumed),
        "idle_power": Fact(IDLE_WATTS_PER_CORE * cores, assumed),
        "integrated": Fact(True, asked, "there is nothing to copy to"),
        "price_per_hour": Fact(DOLLARS_PER_CORE_HOUR * cores, assumed),
    }
    return Chip(NAME, name, ("host", "this-machine"), None, facts, "this machine")
