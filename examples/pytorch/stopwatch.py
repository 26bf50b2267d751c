"""Times one step of a PyTorch program on the CPU and on a GPU, and says which of the two figures is measured.

In: a function that does one step on a device. Out: seconds per step, and a line of text that compares them. A CPU's
time is the wall clock's. A GPU's time is the distance between two CUDA events: on a real GPU it is measured, on a
virtual one it is what Weft's model predicts for the chip.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch


def is_virtual() -> bool:
    """Whether `cuda` is a virtual GPU in this process."""
    weft = sys.modules.get("weft")
    return weft is not None and weft.is_installed()


def seconds_per_step(step: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median time of one call in seconds, after one call to warm up."""
    step()
    if device.type == "cpu":
        return statistics.median(_wall(step) for _ in range(repeats))
    return statistics.median(_between_events(step) for _ in range(repeats))


def _wall(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _between_events(step: Callable[[], object]) -> float:
    first = torch.cuda.Event(enable_timing=True)
    last = torch.cuda.Event(enable_timing=True)
    first.record()
    step()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def device_label(device: torch.device) -> str:
    """The device's name with the word for its times: measured or predicted."""
    if device.type == "cpu":
        return "this machine's CPU (measured)"
    word = "predicted" if is_virtual() else "measured"
    return f"{torch.cuda.get_device_name(device)} ({word})"


def print_comparison(what: str, times: dict[torch.device, float], items: int = 0, unit: str = "") -> None:
    """Prints a table: device, milliseconds per step, items per second, how many times the first device's speed."""
    print(f"\n{what}")
    first = next(iter(times.values()))
    for device, seconds in times.items():
        rate = f"{items / seconds:12,.0f} {unit}/s" if items else ""
        print(f"  {device_label(device):40} {seconds * 1e3:10.3f} ms {rate}  {first / seconds:8.1f} x")


def devices() -> list[torch.device]:
    """The CPU, and the GPU where PyTorch finds one."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found.append(torch.device("cuda", 0))
    return found
