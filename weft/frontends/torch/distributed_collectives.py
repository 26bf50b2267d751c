"""The collectives of torch.distributed on CUDA tensors: their host twins go through the CPU's backend.

An operator c10d::* with CUDA tensors comes in; the same operator runs on their memory, and the timeline hears of it.
What NCCL refuses is refused in its words, and what it can but gloo cannot (means before the sum, factors, 8-bit
floats, parts of unequal size) is done here. Source of the rules: ProcessGroupNCCL.cpp of PyTorch 2.13.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from weft.frontends.devices import LaunchCapture
from weft.frontends.torch.distributed_works import PlacedWork, Placement, Sending, place_collective, with_errors
from weft.frontends.torch.gpus import current_stream
from weft.frontends.torch.recording import current_timeline
from weft.frontends.torch.tensors import Tensor, to_host

_C = torch._C
_c10d: Any = dist.distributed_c10d
_Operation: Any = dist.ReduceOp.RedOpType


@dataclass(frozen=True)
class Kind:
    """name: the kind on the timeline. sized: the argument whose bytes count as NCCL's tests count them. whole: whether
    that is only one rank's part of the buffer. inputs: the argument that is reduced or sent."""

    name: str
    sized: int = 0
    whole: bool = False
    inputs: int = 0


KINDS = {
    "allreduce_": Kind("all_reduce"),
    "allreduce_coalesced_": Kind("all_reduce"),
    "broadcast_": Kind("broadcast"),
    "reduce_": Kind("reduce"),
    "allgather_": Kind("all_gather", inputs=1),
    "_allgather_base_": Kind("all_gather", inputs=1),
    "allgather_coalesced_": Kind("all_gather", inputs=1),
    "allgather_into_tensor_coalesced_": Kind("all_gather", inputs=1),
    "reduce_scatter_": Kind("reduce_scatter", 1, inputs=1),
    "_reduce_scatter_base_": Kind("reduce_scatter", 1, inputs=1),
    "reduce_scatter_tensor_coalesced_": Kind("reduce_scatter", 1, inputs=1),
    "gather_": Kind("gather", 1, whole=True, inputs=1),
    "scatter_": Kind("scatter", 0, whole=True, inputs=1),
    "alltoall_": Kind("all_to_all", 1, inputs=1),
    "alltoall_base_": Kind("all_to_all", 1, inputs=1),
    "barrier": Kind("barrier"),
    "send": Kind("p2p"),
    "recv_": Kind("p2p"),
}
# What NCCL has a type for. Source: ncclDataType in ProcessGroupNCCL.cpp.
_EIGHT_BIT = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_TYPES = frozenset((
    torch.int8, torch.uint8, torch.float32, torch.float64, torch.int32, torch.int64, torch.float16, torch.bool,
    torch.bfloat16, *_EIGHT_BIT,
))  # fmt: skip


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of an argument that may be one, a list or a list of lists."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for entry in value for tensor in tensors_in(entry)]
    return []


def change_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An argument with each of its tensors replaced."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return [change_tensors(entry, change) for entry in value]
    return value


def _twin(tensor: Tensor) -> Tensor:
    return to_host(tensor) if tensor.is_cuda else tensor


def check_tensors(name: str, tensors: list[Tensor]) -> None:
    """Raises what NCCL does for tensors that it cannot take: TypeError for a type, ValueError for the rest."""
    for tensor in tensors:
        if not tensor.is_cuda or tensor.is_sparse:
            raise ValueError("Tensors must be CUDA and dense")
        if KINDS[name].name != "p2p" and not tensor.is_contiguous():
            if not tensor.is_contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else
                                        torch.channels_last_3d if tensor.dim() == 5 else
                                        torch.contiguous_format):  # fmt: skip
                raise ValueError("Tensors must be contiguous")
        if tensor.dtype not in _TYPES:
            title = str(tensor.dtype).removeprefix("torch.")
            raise TypeError(f"Input tensor data type is not supported for NCCL process group: {title}")


# ---------------------------------------------------------------- reductions
class _Factor(threading.local):
    """value: the factor of the ReduceOp.PREMUL_SUM that this thread put into an operator's options last. The operator
    itself does not say it."""

    value: Any = 1.0


_factor = _Factor()


def follow_factors() -> None:
    """Lets the options of reductions note their factor."""
    for name in ("AllreduceOptions", "AllreduceCoalescedOptions", "ReduceOptions", "ReduceScatterOptions"):
        options = getattr(_c10d, name, None) or getattr(_C._distributed_c10d, name)
        options.reduceOp = _make_property(options.reduceOp)


def _make_property(own: Any) -> property:
    def put(self: Any, operation: Any) -> None:
        if operation == _Operation.PREMUL_SUM:
            _factor.value = operation.factor
        own.fset(self, operation)

    return property(own.fget, put, doc=own.__doc__)


@dataclass
class Reduction:
    """How a reduction of NCCL's is done by gloo. operation: gloo's. change: what becomes of each input first, in place
    or not. finish: what becomes of each output in the end, in place; None for nothing, and then nobody need wait."""

    operation: Any
    change: Callable[[Tensor], Tensor] | None = None
    finish: Callable[[Tensor], Any] | None = None


def plan_reduction(operation: Any, dtype: torch.dtype, size: int, in_place: bool) -> Reduction:
    """What gloo has to do among `size` ranks. in_place: whether inputs are outputs.

    Raises ValueError or TypeError, in NCCL's words, for an operation that NCCL does not have.
    """
    if operation in (_Operation.BAND, _Operation.BOR, _Operation.BXOR):
        raise ValueError(f"Cannot use ReduceOp.{operation.name} with NCCL")
    if dtype is torch.bool:
        if operation == _Operation.AVG:
            raise TypeError("Cannot use ReduceOp.AVG with boolean inputs")
        other = {_Operation.SUM: _Operation.MAX, _Operation.PRODUCT: _Operation.MIN}.get(operation, operation)
        return Reduction(other)
    if operation == _Operation.PREMUL_SUM:
        factor = _factor.value
        factor = to_host(factor) if isinstance(factor, Tensor) else factor
    elif operation != _Operation.AVG:
        return Reduction(operation)
    elif not dtype.is_floating_point:
        return Reduction(_Operation.SUM, finish=lambda tensor: tensor.div_(size, rounding_mode="trunc"))
    else:
        # NCCL too multiplies before it adds, so that a sum of halves does not overflow.
        factor = 1.0 / size
    return Reduction(_Operation.SUM, lambda tensor: tensor.mul_(factor) if in_place else tensor * factor)


_METHODS = {
    "allreduce_": ("allreduce", _c10d.AllreduceOptions),
    "allreduce_coalesced_": ("allreduce_coalesced", _c10d.AllreduceCoalescedOptions),
    "reduce_": ("reduce", _c10d.ReduceOptions),
    "reduce_scatter_": ("reduce_scatter", _c10d.ReduceScatterOptions),
    "_reduce_scatter_base_": ("_reduce_scatter_base", _c10d.ReduceScatterOptions),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter_tensor_coalesced", _c10d.ReduceScatterOptions),
}


def reduce_hosts(name: str, shadow: Any, hosts: dict[str, Any], operation: Any) -> Any:
    """Runs a reduction on host tensors; returns its Work, None where it has been waited for."""
    places = list(hosts)
    outputs = hosts[places[0]]
    separate = KINDS[name].inputs == 1
    given = [hosts[places[1]]] if separate else [outputs]
    dtype = tensors_in(given)[0].dtype
    if name == "reduce_" and hosts["root_rank"] != shadow.rank():
        # Gloo leaves sums of some ranks behind where the result does not go.
        given = [change_tensors(outputs, torch.clone)]
        outputs = given[0]
    plan = plan_reduction(operation, dtype, shadow.size(), not separate)
    kept = tensors_in(outputs)
    if dtype in _EIGHT_BIT:
        given = change_tensors(given, Tensor.float)
        outputs = change_tensors(outputs, Tensor.float) if separate else given[0]
    elif dtype is torch.bool:
        given = change_tensors(given, lambda tensor: tensor.view(torch.uint8))
        outputs = change_tensors(outputs, lambda tensor: tensor.view(torch.uint8)) if separate else given[0]
    if plan.change is not None:
        given = change_tensors(given, plan.change)
    if name == "reduce_scatter_" and _sizes_differ(given[0][0]):
        works = _reduce_parts(shadow, outputs[0], given[0][0], plan.operation)
    else:
        method, options_class = _METHODS[name]
        options = options_class()
        options.reduceOp = dist.ReduceOp(plan.operation)
        if name == "reduce_":
            options.rootRank = hosts["root_rank"]
        if hosts.get("timeout", -1) is not None and hosts.get("timeout", -1) >= 0:
            options.timeout = timedelta(milliseconds=hosts["timeout"])
        works = getattr(shadow, method)(*([outputs] if separate else []), *given, options)
    if plan.finish is None and dtype not in _EIGHT_BIT:
        return works
    works.wait()
    found = tensors_in(outputs)
    for tensor, target in zip(found, kept):
        if plan.finish is not None:
            plan.finish(tensor)
        if tensor.dtype is not target.dtype and target.dtype is not torch.bool:
            target.copy_(tensor)
    return None


# ---------------------------------------------------------------- parts of unequal size
def _sizes_differ(tensors: Any) -> bool:
    return any(tensor.numel() != tensors[0].numel() for tensor in tensors)


def _reduce_parts(shadow: Any, output: Tensor, parts: list[Tensor], operation: Any) -> Any:
    """reduce_scatter of parts that differ in size: one reduction for each rank."""
    work = None
    for root, part in enumerate(parts):
        options = _c10d.ReduceOptions()
        options.reduceOp, options.rootRank = dist.ReduceOp(operation), root
        whole = part.clone()
        work = shadow.reduce([whole], options)
        work.wait()
        if root == shadow.rank():
            output.copy_(whole.view_as(output))
    return work


def _gather_parts(shadow: Any, outputs: list[Tensor], own: Tensor) -> Any:
    """all_gather of parts that differ in size: one broadcast from each rank."""
    work = None
    outputs[shadow.rank()].copy_(own.view_as(outputs[shadow.rank()]))
    for root, part in enumerate(outputs):
        options = _c10d.BroadcastOptions()
        options.rootRank = root
        work = shadow.broadcast([part], options)
        work.wait()
    return work


# ---------------------------------------------------------------- kernels
def make_collective(name: str, find_communicator: Callable[[Any], Any]) -> Callable[..., Any]:
    """The kernel of c10d::NAME for CUDA tensors. find_communicator: from a process group to its Communicator."""
    operator = getattr(torch.ops.c10d, name).default
    arguments = [argument.name for argument in operator._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in operator._schema.arguments
                if argument.has_default_value()}  # fmt: skip
    returns_tensors = len(operator._schema.returns) == 2
    kind = KINDS[name]

    def collective(*args: Any, **kwargs: Any) -> Any:
        # In the order of the schema: the first argument is what is written, or the only tensors.
        given = {**dict(zip(arguments, args)), **defaults, **dict(zip(arguments, args)), **kwargs}
        group = find_communicator(dist.ProcessGroup.unbox(given["process_group"]))
        tensors = tensors_in(args[:2])
        if group.is_nccl:
            check_tensors(name, tensors)
        device = next((tensor.get_device() for tensor in tensors if tensor.is_cuda), _C._accelerator_getDeviceIndex())
        what = f"{kind.name} in process group {group.name!r}"
        # A send or a receive has no such argument, and a stream of its own all the same.
        asynchronous = given.get("async_op", True)
        with _C.DisableTorchFunction(), torch.no_grad():
            work = with_errors(lambda: run_on_hosts(name, operator, group, given), what, group.ranks)
        if LaunchCapture.note is not None and kind.name != "barrier":
            again = {**given, "factor": _factor.value}
            held = dict(zip(arguments[: 1 + kind.inputs], args))
            LaunchCapture.note(partial(_run_again, name, operator, group, again, tuple(held)), tuple(held.values()))
        sizes = [tensor.nbytes for tensor in tensors_in(args[kind.sized])]
        nbytes = sum(sizes) * (group.size if kind.whole else 1)
        pair = None
        if kind.name == "p2p":
            pair = (group.rank, given["dst"]) if name == "send" else (given["src"], group.rank)
        elif kind.name == "barrier":
            nbytes = 1
        if group.is_nccl:
            placement = place_collective(group, kind.name, nbytes, device, asynchronous=asynchronous, pair=pair)
        else:
            placement = _through_host(tensors, device)
        outputs = tensors_in(args[0])
        placed = PlacedWork([] if work is None else [work], [placement], outputs, what, group.ranks)
        group.note(placed)
        boxed = placed.boxed()
        return (args[0], boxed) if returns_tensors else boxed

    collective.__name__ = f"{name}collective"
    return collective


def _run_again(name: str, operator: Any, group: Any, given: dict[str, Any], names: tuple[str, ...], *held: Any) -> None:
    """A collective in the replay of a CUDA graph. names, held: the arguments with tensors, on the graph's memory."""
    given = {**given, **dict(zip(names, held))}
    _factor.value = given.pop("factor")
    work = run_on_hosts(name, operator, group, given)
    if work is not None:
        work.wait()


def run_on_hosts(name: str, operator: Any, group: Any, given: dict[str, Any]) -> Any:
    """Runs an operator on the host twins of its tensors; returns its Work, None where it is done."""
    hosts = {argument: change_tensors(value, _twin) for argument, value in given.items()}
    places = list(hosts)
    tensors = tensors_in([hosts[places[0]], hosts[places[1]]])
    if any(tensor.is_meta for tensor in tensors):
        return None
    if name in _FLAT and group.is_nccl:
        hosts = {argument: change_tensors(value, _as_vector) for argument, value in hosts.items()}
    if "reduce_op" in given and group.is_nccl:
        operation = _Operation(given["reduce_op"].op())
        return reduce_hosts(name, group.shadow, hosts, operation)
    if any(tensor.dtype in _EIGHT_BIT for tensor in tensors):
        hosts = {argument: change_tensors(value, _as_bytes) for argument, value in hosts.items()}
    if name == "allgather_" and len(hosts["output_tensors"]) == 1 and _sizes_differ(hosts["output_tensors"][0]):
        return _gather_parts(group.shadow, hosts["output_tensors"][0], hosts["input_tensors"][0])
    if "tag" in hosts and group.is_nccl:
        hosts["tag"] = 0  # NCCL knows no tags: messages between two ranks come in the order in which they were sent
    hosts["process_group"] = group.shadow.boxed()
    sends = name == "send" and group.is_nccl
    if sends:
        hosts["tensors"] = [tensor.clone() for tensor in hosts["tensors"]]
    result = operator(**hosts)
    work = _c10d.Work.unbox(result[1] if isinstance(result, tuple) else result)
    return Sending(work) if sends else work


# Where NCCL has one buffer, whose parts are equal pieces of memory; gloo would cut along the first dimension.
_FLAT = frozenset((
    "_allgather_base_", "allgather_into_tensor_coalesced_", "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_",
))  # fmt: skip


def _as_vector(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype in _EIGHT_BIT else tensor


def _through_host(tensors: list[Tensor], device: int) -> Placement:
    """What gloo does with CUDA tensors: it copies them to the host and back, and the host waits."""
    timeline = current_timeline()
    nbytes = sum(tensor.nbytes for tensor in tensors if tensor.is_cuda)
    if timeline is not None and nbytes:
        stream = current_stream(device)
        for direction in ("d2h", "h2d"):
            timeline.copy(direction, nbytes, stream, device, pinned=True, blocking=True)
    return Placement(device)


def refuse_any_source(*args: Any, **kwargs: Any) -> Any:
    """A receive that names no sender. Raises NotImplementedError, as NCCL does."""
    raise NotImplementedError("ProcessGroupNCCL does not support recvAnysource")
