"""CUDA graphs: operators captured once, run again on the same memory at each replay.

While a graph is captured, operators run as ever and are noted with their arguments; what they write into memory that is
older than the capture is put back at its end. A replay runs each again and copies what it returns into the memory of
the captured result. That memory belongs to the graph, as on a GPU: tensors that the
program lets go of no longer count as allocated, but their place stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from weft.frontends.devices import LaunchCapture
from weft.frontends.torch.gpus import current_stream, gpus
from weft.frontends.torch.recording import current_timeline, off_the_timeline, recorder
from weft.runtime import launch as runtime_launch
from weft.runtime.arguments import ArgumentPacker, RawArguments

_C = torch._C
_handles = itertools.count(1)


class CaptureState:
    """graph: the one that is being captured, or None; last: the latest pool handed out."""

    graph: CudaGraph | None = None


def is_capturing() -> bool:
    return CaptureState.graph is not None


def refuse_while_capturing() -> None:
    """Raises what CUDA does for work that the host waits for, while a graph is captured."""
    if CaptureState.graph is not None:
        raise torch.AcceleratorError(
            "CUDA error: operation not permitted when stream is capturing\n"
            "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might "
            "be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
        )


def graph_pool_handle() -> tuple[int, int]:
    """A new id of a private pool."""
    return (0, next(_handles))


class _Launch:
    """A step that launches a compiled kernel: a function that makes the launch, and arguments on the graph's memory."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., None], args: tuple):
        self.function, self.args = function, args

    def run(self) -> None:
        self.function(*self.args)


class _Step:
    """A step that runs an operator: its arguments on the graph's memory, and the host tensors of its results."""

    __slots__ = ("args", "kwargs", "operator", "results")

    def __init__(self, operator: Any, args: tuple, kwargs: dict, results: list[Any]):
        self.operator, self.args, self.kwargs, self.results = operator, args, kwargs, results

    def run(self) -> None:
        from weft.frontends.torch.tensors import to_host

        made = flat_tensors(self.operator(*self.args, **self.kwargs))
        for host, new in zip(self.results, made):
            if host is not None:
                host.copy_(to_host(new))


def flat_tensors(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for entry in value for tensor in flat_tensors(entry)]
    return []


class CudaGraph:
    """torch._C._CUDAGraph."""

    def __new__(cls, keep_graph: bool = False) -> Any:
        self = object.__new__(cls)
        self._steps, self._owned, self._recorded, self._undo = [], [], None, None
        self._pool_id, self._index, self._keep, self._captured = (0, 0), 0, keep_graph, False
        return self

    def __init__(self, keep_graph: bool = False) -> None:
        self._steps: list[Any]
        self._owned: list[Any]
        self._recorded: Any
        self._undo: Any
        self._pool_id: tuple[int, int]
        self._index: int
        self._keep: bool
        self._captured: bool

    # ------------------------------------------------------------ capture
    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global", **_: Any) -> None:
        if CaptureState.graph is not None:
            raise RuntimeError("Tried to instantiate dummy base class CUDAGraph while another capture is under way")
        self._index = _C._accelerator_getDeviceIndex()
        if not current_stream(self._index):
            raise RuntimeError(
                "CUDA graphs must be captured on a non-default stream. (However, after capture, it's ok to replay "
                "them on the default stream.)"
            )
        self._captured = False
        self._pool_id = tuple(pool) if pool is not None else graph_pool_handle()
        self._steps, self._owned = [], []
        gpus[self._index].allocator.begin_pool(self._pool_id, None)
        timeline = current_timeline()
        if timeline is not None:
            timeline.capture_begin()
        recorder.add(self._note)
        LaunchCapture.note = self._note_launch
        runtime_launch.capture = self._prepare_runtime_launch
        CaptureState.graph = self
        from weft.frontends.torch.undo import Undo

        self._undo = Undo(self._is_older)
        self._undo.__enter__()

    def capture_end(self) -> None:
        if CaptureState.graph is not self:
            raise RuntimeError("capture_end() called without a capture of this graph under way")
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.__exit__(None, None, None)
            undo.restore()
        CaptureState.graph = None
        recorder.remove(self._note)
        LaunchCapture.note = runtime_launch.capture = None
        timeline = current_timeline()
        if timeline is not None:
            self._recorded = timeline.capture_end()
        gpus[self._index].allocator.end_pool(self._pool_id)
        self._captured = True
        if not self._steps:
            import warnings

            warnings.warn(
                "The CUDA Graph is empty. This usually means that the graph was attempted to be captured on wrong "
                "device or stream."
            )

    def _note(self, name: str, args: tuple, result: Any, kwargs: dict, stream: int, device: int) -> None:
        from weft.frontends.torch.dispatch import find_operator

        before = {id(tensor) for tensor in flat_tensors((args, tuple(kwargs.values())))}
        held_args = tuple(self._hold(value) for value in args)
        held_kwargs = {option: self._hold(value) for option, value in kwargs.items() if value is not None}
        results: list[Any] = []
        for tensor in flat_tensors(result):
            if id(tensor) in before:
                results.append(None)
            else:
                results.append(self._own(tensor))
        self._steps.append(_Step(find_operator(name), held_args, held_kwargs, results))

    def _note_launch(self, function: Callable[..., None], args: tuple) -> None:
        self._steps.append(_Launch(function, tuple(self._hold(value) for value in args)))

    def _prepare_runtime_launch(self, launch: Any, args: tuple, options: dict[str, Any]) -> Callable[[], None]:
        """Before a compiled kernel runs, which may write to any argument; what is returned comes after."""
        if self._undo is not None and isinstance(launch.kernel.packer, RawArguments):
            from weft.frontends.torch.pointers import tensors_in

            self._undo.keep(tensors_in(args[0]))
        elif self._undo is not None:
            self._undo.keep([getattr(value, "base", value) for value in args])
        return partial(self._note_runtime_launch, launch, args, options)

    def _note_runtime_launch(self, launch: Any, args: tuple, options: dict[str, Any]) -> None:
        """A kernel that was launched by Weft's own interface; Triton's launcher notes its own."""
        if isinstance(launch.kernel.packer, RawArguments):  # of an extension: bare pointers
            from weft.frontends.torch.pointers import launch_keeping, storages_in

            self._note_launch(partial(launch_keeping, storages_in(args[0]), launch, options), args)
        elif isinstance(launch.kernel.packer, ArgumentPacker):
            self._note_launch(partial(launch, **options), args)

    def _own(self, tensor: Any) -> Any:
        """The host tensor of a result made in this capture; the graph keeps its memory."""
        from weft.frontends.torch.tensors import to_host

        host = to_host(tensor)
        if host.layout is torch.strided:
            storage = host.untyped_storage()
            self._owned.append((storage.data_ptr(), storage.nbytes(), storage))
        return host

    def _hold(self, value: Any) -> Any:
        """An argument for the replays: on the graph's memory if it was made in this capture, else as it is."""
        if isinstance(value, torch.Tensor):
            return self._hold_tensor(value) if value.is_cuda and value.layout is torch.strided else value
        if type(value) in (list, tuple):
            return type(value)(self._hold(entry) for entry in value)
        return value

    def _hold_tensor(self, tensor: Any) -> Any:
        from weft.frontends.torch.memory import uncounted
        from weft.frontends.torch.tensors import share, to_cuda, to_host

        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        owner = self._find_owner(address)
        if owner is None:
            allocation = storage.__dict__.get("_weft")
            if allocation is None or allocation.block.private != self._pool_id:
                return share(tensor)  # an input of the graph
            self._own(share(tensor) if tensor.storage_offset() else tensor)
            owner = self._find_owner(address)
        if owner is None or tensor.is_conj() or tensor.is_neg():
            return share(tensor)
        offset = (tensor.data_ptr() - owner.data_ptr()) // tensor.element_size()
        host = torch.empty(0, dtype=tensor.dtype)
        host.set_(owner, offset, tensor.shape, tensor.stride())
        with uncounted(gpus[self._index].allocator):
            held = to_cuda(host, self._index)
        assert to_host(held).data_ptr() == tensor.data_ptr()
        return held

    def _is_older(self, tensor: Any) -> bool:
        """Whether memory was there before this capture."""
        storage = tensor.untyped_storage()
        if self._find_owner(storage.data_ptr()) is not None:
            return False
        allocation = storage.__dict__.get("_weft")
        return allocation is None or allocation.block.private != self._pool_id

    def _find_owner(self, address: int) -> Any:
        for start, size, storage in self._owned:
            if start <= address < start + size or (size == 0 and start == address):
                return storage
        return None

    # ------------------------------------------------------------ replay
    def instantiate(self) -> None:
        """Nothing is left to do after the capture."""
        self._check_captured("instantiate")

    def replay(self) -> None:
        from weft.frontends.torch.memory import uncounted

        self._check_captured("replay")
        if CaptureState.graph is not None:
            refuse_while_capturing()
        below = _C._AutoDispatchBelowADInplaceOrView()
        with off_the_timeline(), below, uncounted(gpus[self._index].allocator):
            for step in self._steps:
                step.run()
        timeline = current_timeline()
        if timeline is not None and self._recorded is not None:
            timeline.launch_graph(self._recorded, current_stream(self._index), self._index)

    def reset(self) -> None:
        """Lets the graph's steps and memory go."""
        if self._steps:
            gpus[self._index].allocator.release_pool(self._pool_id)
        self._steps, self._owned, self._recorded, self._captured = [], [], None, False

    def _check_captured(self, method: str) -> None:
        if not self._captured:
            raise RuntimeError(f"Called CUDAGraph::{method} without a preceding successful capture.")

    def pool(self) -> tuple[int, int]:
        self._check_captured("pool()")
        return self._pool_id

    def register_generator_state(self, generator: Any) -> None:
        """Replays draw from the generator as it is then, so nothing is kept of it."""

    # ------------------------------------------------------------ looking inside
    def enable_debug_mode(self) -> None:
        """The steps are kept in any case."""

    def debug_dump(self, debug_path: str) -> None:
        """Writes the operators as a graph for Graphviz."""
        with open(debug_path, "w") as file:
            file.write("digraph {\n")
            for number, step in enumerate(self._steps):
                label = step.operator._schema.name if isinstance(step, _Step) else "kernel"
                file.write(f'  n{number} [label="{label}"];\n')
                if number:
                    file.write(f"  n{number - 1} -> n{number};\n")
            file.write("}\n")

    def raw_cuda_graph(self) -> int:
        raise RuntimeError("a virtual GPU's graph has no cudaGraph_t; use debug_dump to look inside")

    raw_cuda_graph_exec = raw_cuda_graph

    @staticmethod
    def get_currently_capturing_graph() -> Any:
        if CaptureState.graph is None:
            raise RuntimeError("get_currently_capturing_graph() called outside of a capture")
        return CaptureState.graph
