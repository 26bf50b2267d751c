"""Collectives on the timeline: where one is placed, and the handle that a program waits for.

A collective that the program waits for at once runs on the current stream. One with async_op=True has a stream of its
process group: it waits for what was issued before it, and the current stream waits for it where the program calls
`wait`, so that overlap shows. A send or a receive has a stream for its two ranks and its direction. This is the order
that PyTorch's ProcessGroupNCCL has.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from weft.frontends.torch.distributed_peers import explain_failure, is_lost_connection
from weft.frontends.torch.gpus import current_stream
from weft.frontends.torch.recording import current_timeline

_C = torch._C
_Work: Any = dist.distributed_c10d.Work
# Handles that nobody waits for are let go when there are more of them.
_MOST_UNWAITED = 1024


class Placement:
    """Where collectives stand on the timeline: streams that the current one has not waited for yet.

    blocking: whether the host waits as well, as it does for a barrier.
    """

    __slots__ = ("blocking", "device", "streams")

    def __init__(self, device: int, streams: Sequence[Hashable] = (), blocking: bool = False):
        self.device, self.streams, self.blocking = device, list(streams), blocking

    def meet(self) -> None:
        """The current stream waits for the collective; the second time there is nothing left to wait for."""
        streams, self.streams = self.streams, []
        timeline = current_timeline()
        if timeline is None:
            return
        for stream in streams:
            timeline.stream_wait(current_stream(self.device), stream, self.device)
            if self.blocking:
                timeline.synchronize(self.device, stream=stream)


def place_collective(group: Any, kind: str, nbytes: int, device: int, *, asynchronous: bool,
                     pair: tuple[int, int] | None = None) -> Placement:  # fmt: skip
    """Puts a collective of a Communicator on the timeline. pair: sender and receiver of a kind "p2p"."""
    timeline = current_timeline()
    if timeline is None or group.size < 2:
        return Placement(device)
    current = current_stream(device)
    stream: Hashable = current
    if asynchronous:
        stream = group.stream if pair is None else f"{group.stream} {pair[0]}->{pair[1]}"
        timeline.stream_wait(stream, current, device)
    timeline.collective(kind, nbytes, group.size if pair is None else 2, stream, device, nodes=group.nodes_of(pair),
                        group=group.key, pair=pair)  # fmt: skip
    return Placement(device, [stream] if asynchronous else [], blocking=kind == "barrier")


def in_backward() -> bool:
    """Whether this thread is inside a backward pass."""
    return _C._current_graph_task_id() != -1


class PlacedWork(_Work):
    """A collective under way, or several: handles of the backend that moves the data, and their places.

    outputs: the CUDA tensors that it writes. what, ranks: the collective and the global ranks of its group, for errors.
    Raises torch.distributed.DistBackendError from `wait` where another rank is gone, with its number.
    """

    def __init__(self, inner: Sequence[Any], placements: Sequence[Placement], outputs: list[Any], what: str,
                 ranks: list[int]):  # fmt: skip
        super().__init__()
        self.inner, self.placements, self.outputs = list(inner), list(placements), outputs
        self.what, self.ranks = what, ranks
        _keep(self)

    def finish(self, *timeout: Any) -> None:
        """Waits for the numbers, without a word to the timeline."""
        _unwaited.pop(id(self), None)
        with_errors(lambda: [work.wait(*timeout) for work in self.inner], self.what, self.ranks)

    def meet(self) -> None:
        """The current stream waits for the collective."""
        for placement in self.placements:
            placement.meet()

    def wait(self, *timeout: Any) -> bool:
        self.finish(*timeout)
        self.meet()
        return True

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self.inner)

    def is_success(self) -> bool:
        return all(work.is_success() for work in self.inner)

    def exception(self) -> Any:
        return next((found for found in (work.exception() for work in self.inner) if found is not None), None)

    def source_rank(self) -> int:
        return self.inner[0].source_rank()

    def synchronize(self) -> None:
        self.wait()

    def block_current_stream(self) -> None:
        self.wait()

    def result(self) -> list[Any]:
        return self.outputs

    def get_future(self) -> Any:
        """A future that is done already, with the output tensors: what DistributedDataParallel asks for.

        In a backward pass the current stream waits at the pass's end, where DistributedDataParallel does. Elsewhere
        nobody says when a future is waited for, so the current stream waits here.
        """
        self.finish()
        if in_backward():
            torch.autograd.Variable._execution_engine.queue_callback(self.meet)
        else:
            self.meet()
        # Of all ways to make a future, this one gives its value the type that C++ expects.
        return _C.fork(lambda: self.outputs)


class Sending:
    """A message on its way, with a copy of what it says: as with NCCL, the host does not wait until it is received.

    Programs rely on that when two ranks send to each other before they receive.
    """

    def __init__(self, work: Any):
        self._done = _senders.submit(work.wait)
        _sending[:] = [one for one in _sending if not one.is_completed()]
        _sending.append(self)

    def wait(self, *timeout: Any) -> bool:
        """Raises what went wrong, where that is known by now."""
        if self._done.done():
            self._done.result()
        return True

    def deliver(self) -> None:
        """Waits until the message is received or cannot be."""
        self._done.exception()

    def is_completed(self) -> bool:
        return self._done.done()

    def is_success(self) -> bool:
        return self.exception() is None

    def exception(self) -> Any:
        return self._done.exception() if self._done.done() else None


# The executor's thread ends with the process, and not before all messages are received.
_senders = ThreadPoolExecutor(1, "weft-sender")
_sending: list[Sending] = []


def deliver_all() -> None:
    """Waits for all messages on their way, before connections are closed."""
    for one in _sending:
        one.deliver()
    _sending.clear()


# C++ holds only its own half of a handle, which is of no use once Python's half is gone.
_unwaited: dict[int, PlacedWork] = {}


def _keep(work: PlacedWork) -> None:
    _unwaited[id(work)] = work
    if len(_unwaited) > _MOST_UNWAITED:
        del _unwaited[next(iter(_unwaited))]


def with_errors(action: Callable[[], Any], what: str, ranks: list[int]) -> Any:
    """Runs something that other ranks take part in; where one of them is gone, the error names it."""
    try:
        return action()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or not is_lost_connection(error):
            raise
        raise dist.DistBackendError(explain_failure(what, ranks, error)) from error
