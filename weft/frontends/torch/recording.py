"""The seam between operators and the model: every operator call goes through `Recorder.sink`, where there is one.

What enters: an operator's name, its CUDA arguments and results, as the kernels of dispatch.py have them at hand; what
leaves: whatever the listeners make of it (the timeline, counts of tests). A listener must not keep tensors: it would
keep their memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch._C import DisableTorchFunction

from weft import settings
from weft.frontends.torch.gpus import StreamState, current_stream, gpus
from weft.frontends.torch.helper import OFF, RECORDING, SILENT, load_helper, needs_as_bits
from weft.runtime import launch
from weft.timeline import Timeline

# (operator as "add.Tensor", positional arguments, result, keyword arguments, stream's id, device index), the order that
# Timeline.operator has, so that nothing stands between a kernel and the timeline.
Sink = Callable[[str, tuple, Any, dict, int, int], None]


class HelperState:
    """timeline: the one that the compiled helper records on; None while it has none."""

    timeline: Any = None


class Recorder:
    """sink: called after each operator, None while nobody listens. timeline: the one whose `operator` is the sink, None
    where that is something else."""

    __slots__ = ("_listeners", "sink", "timeline")

    def __init__(self) -> None:
        self._listeners: list[Sink] = []
        self.timeline: Any = None
        self.sink: Sink | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "sink":
            owner = getattr(value, "__self__", None)
            self.timeline = owner if getattr(value, "__func__", None) is Timeline.operator else None
        if name == "sink" and HelperState.timeline is not None:
            tell_helper()

    def add(self, listener: Sink) -> None:
        """From now on `listener` hears of every operator."""
        self._listeners.append(listener)
        self._choose()

    def remove(self, listener: Sink) -> None:
        self._listeners.remove(listener)
        self._choose()

    def replace(self, listener: Sink) -> None:
        """Nobody but `listener` hears of operators any more."""
        self._listeners = [listener]
        self._choose()

    def _choose(self) -> None:
        listeners = tuple(self._listeners)
        if len(listeners) < 2:
            self.sink = listeners[0] if listeners else None
            return

        def tell_all(name: str, args: tuple, result: Any, kwargs: dict, stream: int, device: int) -> None:
            for listener in listeners:
                listener(name, args, result, kwargs, stream, device)

        self.sink = tell_all


recorder = Recorder()


def tell_helper() -> None:
    """Lets the compiled helper do without Python's kernels as long as nobody but the timeline listens; which operators
    it may compute depends on PyTorch's switches, which may have been turned."""
    helper = load_helper()
    if helper is None or HelperState.timeline is None:
        return
    helper.ask_again()
    if recorder.sink is None:
        mode = SILENT
    else:
        mode = RECORDING if recorder.sink == HelperState.timeline.operator else OFF
    helper.set_mode(mode)


def connect_helper(timeline: Any) -> None:
    """Gives the compiled helper, where there is one, the GPUs and the timeline."""
    helper = load_helper()
    if helper is None:
        return
    from weft.frontends.torch.tensors import to_cuda

    def describe(name: str, args: tuple, results: tuple, kwargs: dict, stream: int, device: int) -> int:
        with DisableTorchFunction():
            return timeline.number_of(name, args, results, kwargs, stream)

    helper.connect(
        allocators=[gpu.allocator for gpu in gpus], to_cuda=to_cuda, describe=describe, needs=needs_as_bits,
        settle=timeline.settle, timeline=timeline,
    )  # fmt: skip
    HelperState.timeline = timeline
    tell_helper()


@contextmanager
def off_the_timeline() -> Iterator[None]:
    """Work in here, operators and compiled kernels alike, is told to nobody."""
    sink, recorder.sink = recorder.sink, None
    observer, launch.observer = launch.observer, None
    try:
        yield
    finally:
        recorder.sink = sink
        launch.observer = observer


def record(name: str, args: tuple, kwargs: dict, result: Any, device: int) -> None:
    """Tells the listeners of one operator."""
    if recorder.sink is not None:
        recorder.sink(name, args, result, kwargs, current_stream(device), device)


def current_timeline() -> Any:
    """The process's timeline (weft.timeline), None where nothing is recorded."""
    module = sys.modules.get("weft.timeline")
    return module.current() if module is not None else None


_connected: list[Sink] = []


def connect(renew: bool = False) -> None:
    """Lets the process's timeline hear of every operator; makes one where there is none, or a new one to renew it."""
    import torch

    try:
        from weft import timeline as timelines
    except ImportError:
        return
    timeline = None if renew else timelines.current()
    if timeline is None:
        timeline = timelines.start(gpus[0].chip, devices=len(gpus))
    if settings.current().dry:
        from weft.frontends.torch.dry_memory import notes

        timeline.dry = notes
    timeline.current_stream = lambda device: current_stream(device) if StreamState.used else 0
    precision = torch._C._get_fp32_precision_getter
    timeline.tf32_source = lambda: (precision("cuda", "matmul") == "tf32", precision("cuda", "conv") == "tf32")
    timeline.memory_sources[:] = [
        lambda: [(gpu.index, gpu.allocator.bytes_peak, gpu.allocator.reserved.peak) for gpu in gpus]
    ]

    connect_helper(timeline)
    while _connected:
        recorder.remove(_connected.pop())
    _connected.append(timeline.operator)
    recorder.add(timeline.operator)
