"""Timing of kernels for `triton.testing.do_bench` and the autotuner: a function in, milliseconds out.

Times are the host's: how long this machine takes to compute what the GPU would. They rank configurations by what is
fast here. The first time that a program asks, a line on standard error says so.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from triton import testing

_told = False
_DEFAULT_REP = 100.0  # ms of repetitions
_MAX_REPETITIONS = 1000
_MODES: dict[str, Callable[[list[float]], float]] = {
    "min": min, "max": max, "mean": statistics.mean, "median": statistics.median,
}  # fmt: skip


class NoCache:
    """Stands for the buffer that Triton writes to between runs to empty a GPU's L2 cache."""

    def zero_(self) -> None:
        pass


def tell_source() -> None:
    """Says once, on standard error, what the times are."""
    global _told
    if not _told:
        _told = True
        print("weft: do_bench: times are measured on this host, not predicted for the chip", file=sys.stderr)


def do_bench(fn: Callable[[], Any], warmup: float = 25, rep: float = _DEFAULT_REP,
             grad_to_none: Iterable[Any] | None = None, quantiles: Iterable[float] | None = None,
             return_mode: str = "mean") -> Any:  # fmt: skip
    """Milliseconds that `fn` takes: with the arguments and results of triton.testing.do_bench.

    warmup and rep are times in ms, as there; one run is enough where it takes longer.
    """
    assert return_mode in ("min", "max", "mean", "median", "all"), return_mode
    fn()
    first = _time_once(fn, grad_to_none)
    for _ in range(min(_MAX_REPETITIONS, int(warmup / max(first, 1e-3)))):
        fn()
    count = max(1, min(_MAX_REPETITIONS, int(rep / max(first, 1e-3))))
    times = [_time_once(fn, grad_to_none) for _ in range(count)]
    tell_source()
    return _summarise(times, list(quantiles) if quantiles is not None else None, return_mode)


def do_bench_cudagraph(fn: Callable[[], Any], rep: float = 20, grad_to_none: Iterable[Any] | None = None,
                       quantiles: Iterable[float] | None = None, return_mode: str = "mean") -> Any:  # fmt: skip
    """As do_bench: launches here have no overhead that a graph would save."""
    return do_bench(fn, 0, rep, grad_to_none, quantiles, return_mode)


def _time_once(fn: Callable[[], Any], grad_to_none: Iterable[Any] | None) -> float:
    for tensor in grad_to_none or ():
        tensor.grad = None
    start = time.perf_counter_ns()
    fn()
    return (time.perf_counter_ns() - start) / 1e6


def _summarise(times: list[float], quantiles: list[float] | None, return_mode: str) -> Any:
    if quantiles is not None:
        found = [_quantile(sorted(times), q) for q in quantiles]
        return found[0] if len(found) == 1 else found
    if return_mode == "all":
        return times
    return _MODES[return_mode](times)


def _quantile(ordered: list[float], q: float) -> float:
    """Linear between neighbours, as torch.quantile and numpy.quantile by default."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def replace_in_testing() -> None:
    """Makes triton.testing's functions these, and so what programs import from there."""
    testing.do_bench = do_bench
    testing.do_bench_cudagraph = do_bench_cudagraph
