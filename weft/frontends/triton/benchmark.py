"""Times for `triton.testing.do_bench` and the autotuner: a function in, milliseconds out.

do_bench gives the time that the model predicts for the chip, where the function launched something that the model can
price; otherwise the time that this machine took. The autotuner always gets the latter: a model that is no finer than
the work itself cannot rank configurations of one kernel, and what is fast here is what its user waits for. A line on
standard error says once which of the two a number is.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from triton import testing

from weft import timeline as timelines
from weft.frontends.devices import virtual_device, virtual_devices

_MAX_REPETITIONS = 1000
_MODES: dict[str, Callable[[list[float]], float]] = {
    "min": min, "max": max, "mean": statistics.mean, "median": statistics.median,
}  # fmt: skip
_told: set[str] = set()


class NoCache:
    """Stands for the buffer that Triton writes to between runs to empty a GPU's L2 cache."""

    def zero_(self) -> None:
        pass


def tell(source: str) -> None:
    """Says on standard error, once for each source, what the times are."""
    if source not in _told:
        _told.add(source)
        print(f"weft: do_bench: times are {source}", file=sys.stderr)


def do_bench(fn: Callable[[], Any], warmup: float = 25, rep: float = 100, grad_to_none: Iterable[Any] | None = None,
             quantiles: Iterable[float] | None = None, return_mode: str = "mean") -> Any:  # fmt: skip
    """Milliseconds that `fn` takes on the chip, or here: with the arguments and results of triton.testing.do_bench."""
    from weft.frontends.triton.driver import current_ordinal

    assert return_mode in ("min", "max", "mean", "median", "all"), return_mode
    fn()
    device = current_ordinal()
    predicted = predict(fn, device, grad_to_none)
    if not predicted:
        return do_bench_host(fn, warmup, rep, grad_to_none, quantiles, return_mode)
    tell(f"predicted for {virtual_device(device).chip.name}")
    return _summarise([predicted], list(quantiles) if quantiles is not None else None, return_mode)


def do_bench_cudagraph(fn: Callable[[], Any], rep: float = 20, grad_to_none: Iterable[Any] | None = None,
                       quantiles: Iterable[float] | None = None, return_mode: str = "mean") -> Any:  # fmt: skip
    """As do_bench."""
    return do_bench(fn, 0, rep, grad_to_none, quantiles, return_mode)


def predict(fn: Callable[[], Any], device: int, grad_to_none: Iterable[Any] | None = None) -> float:
    """Milliseconds of the device's clock that one call takes; 0 where it put no work on the device."""
    timeline = timelines.current()
    mine = timeline is None
    if timeline is None:
        timeline = timelines.start(virtual_device(device).chip, len(virtual_devices()))
    for tensor in grad_to_none or ():
        tensor.grad = None
    try:
        stream = timeline.current_stream(device)
        start, end = object(), object()
        timeline.synchronize(device)
        timeline.record_event(start, stream, device)
        before = timeline.record_count
        fn()
        if timeline.record_count == before:
            return 0.0
        timeline.record_event(end, stream, device)
        return timeline.elapsed(start, end)
    finally:
        if mine:
            timelines.stop()


def do_bench_host(fn: Callable[[], Any], warmup: float = 25, rep: float = 100,
                  grad_to_none: Iterable[Any] | None = None, quantiles: Iterable[float] | None = None,
                  return_mode: str = "mean") -> Any:  # fmt: skip
    """Milliseconds that this machine takes for `fn`. warmup and rep are times in ms; one run each is enough where it
    takes longer."""
    first = _time_once(fn, grad_to_none)
    for _ in range(min(_MAX_REPETITIONS, int(warmup / max(first, 1e-3)))):
        fn()
    count = max(1, min(_MAX_REPETITIONS, int(rep / max(first, 1e-3))))
    times = [_time_once(fn, grad_to_none) for _ in range(count)]
    tell("measured on this host")
    return _summarise(times, list(quantiles) if quantiles is not None else None, return_mode)


def benchmark_configuration(fn: Callable[[], Any], quantiles: Iterable[float] | None = None, **options: Any) -> Any:
    """What the autotuner calls for every configuration: the host's time, without a word on standard error."""
    fn()
    times = [_time_once(fn, None)]
    # Some configurations are ten times slower than others: what is measured for long is the fast ones.
    while sum(times) < 30 and len(times) < 20:
        times.append(_time_once(fn, None))
    return _summarise(times, list(quantiles) if quantiles is not None else None, options.get("return_mode", "mean"))


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
