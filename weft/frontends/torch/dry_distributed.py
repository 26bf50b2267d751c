"""One rank of a distributed job, alone: a program that expects others in, collectives without them out.

In a dry run a process group has the size that the program asks for, and one member. A collective is priced as ever; it
leaves what it would if every rank held the same as this one: known tensors are computed so (a sum of counts is a
multiple), unknown ones stay unknown. Nothing is sent, and nobody is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
import torch.distributed as dist

from weft.frontends.torch import distributed_collectives as collectives
from weft.frontends.torch import dry, dry_values
from weft.frontends.torch.distributed import name_process
from weft.frontends.torch.distributed_works import PlacedWork
from weft.frontends.torch.dry_memory import notes
from weft.frontends.torch.tensors import Tensor

_C = torch._C
_Operation: Any = dist.ReduceOp.RedOpType
_libraries: list[Any] = []
_tensors_in = collectives.tensors_in


# ---------------------------------------------------------------- what a collective leaves behind
def _twin(tensor: Tensor) -> Tensor:
    return dry.make_twin(tensor) if tensor.is_cuda else tensor


def _has_values(tensor: Tensor) -> bool:
    return not tensor.is_meta and not (tensor.is_cuda and dry.is_unknown(tensor))


def _combine(tensor: Tensor, operation: Any, size: int) -> Tensor:
    """The reduction of `size` equal tensors."""
    if operation == _Operation.SUM:
        return tensor | tensor if tensor.dtype is torch.bool else tensor * size
    if operation == _Operation.PRODUCT:
        return tensor**size
    if operation == _Operation.BXOR:
        return tensor if size % 2 else torch.zeros_like(tensor)
    return tensor


def _put(target: Tensor, source: Tensor) -> None:
    """Copies elements in the order of memory, as many as both have."""
    count = min(target.numel(), source.numel())
    target.view(-1)[:count].copy_(source.reshape(-1)[:count])


def leave_results(name: str, given: dict[str, Any], rank: int, size: int) -> None:
    """Writes into the outputs of c10d::NAME what they hold when all of `size` ranks gave the same."""
    arguments = list(given.values())
    kind = collectives.KINDS[name].name
    outputs = _tensors_in(arguments[0])
    separate = collectives.KINDS[name].inputs == 1
    inputs = _tensors_in(arguments[1]) if separate else outputs
    if kind in ("broadcast", "barrier", "p2p") or kind == "scatter" and not inputs:
        return
    if not all(_has_values(tensor) for tensor in inputs):
        _forget(outputs, inputs)
        return
    if any(tensor.is_cuda and dry.is_unknown(tensor) for tensor in outputs):
        return
    operation = _Operation(given["reduce_op"].op()) if "reduce_op" in given else None
    hosts, sources = [_twin(tensor) for tensor in outputs], [_twin(tensor) for tensor in inputs]
    if kind in ("all_reduce", "reduce"):
        for host in hosts:
            host.copy_(_combine(host, operation, size))
    elif kind in ("all_gather", "gather"):
        whole = name in ("_allgather_base_", "allgather_into_tensor_coalesced_")
        for place, host in enumerate(hosts):
            source = sources[place % len(sources)]
            _put(host, source.reshape(-1).repeat(size) if whole else source)
    elif kind == "reduce_scatter":
        for place, host in enumerate(hosts):
            part = sources[place] if name != "reduce_scatter_" else sources[place * size + rank]
            if name != "reduce_scatter_":
                part = part.reshape(size, -1)[rank]
            _put(host, _combine(part, operation, size))
    elif kind == "scatter":
        _put(hosts[0], sources[rank])
    elif name == "alltoall_":
        for host in hosts:
            _put(host, sources[rank])
    else:
        _put(hosts[0], sources[0])


def _forget(outputs: list[Tensor], inputs: list[Tensor]) -> None:
    for tensor in outputs:
        if tensor.is_cuda:
            dry.forget_values(tensor)
        elif tensor.device.type == "cpu" and inputs:
            dry_values.fill_host(tensor, inputs[0])


def run_alone(name: str, operator: Any, group: Any, given: dict[str, Any]) -> None:
    """In the place of distributed_collectives.run_on_hosts; there is nothing to wait for."""
    leave_results(name, given, group.rank, group.size)


def make_host_collective(name: str) -> Callable[..., Any]:
    """The kernel of c10d::NAME for CPU tensors."""
    operator = getattr(torch.ops.c10d, name).default
    arguments = [argument.name for argument in operator._schema.arguments]
    returns_tensors = len(operator._schema.returns) == 2

    def collective(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(arguments, args)), **kwargs}
        group = dist.ProcessGroup.unbox(given["process_group"])
        with _C.DisableTorchFunction(), torch.no_grad():
            leave_results(name, given, group.rank(), group.size())
        boxed = PlacedWork([], [], _tensors_in(args[0]), name, []).boxed()
        return (args[0], boxed) if returns_tensors else boxed

    collective.__name__ = f"{name}alone"
    return collective


# ---------------------------------------------------------------- process groups
def rendezvous(url: str, rank: int = -1, world_size: int = -1, **options: Any) -> Iterator[tuple[Any, int, int]]:
    """torch.distributed.rendezvous without others: rank and size from the arguments, the URL or the environment."""
    asked = {name: values[0] for name, values in parse_qs(urlparse(url).query).items()}
    rank = rank if rank >= 0 else int(asked.get("rank", os.environ.get("RANK", "0")))
    size = world_size if world_size > 0 else int(asked.get("world_size", os.environ.get("WORLD_SIZE", "1")))
    yield dist.HashStore(), rank, size


def _note_group(ranks: Any, rank: int, size: int) -> None:
    """The default group says how many ranks there are."""
    if not ranks:
        notes["rank"], notes["ranks"] = rank, size
        name_process(rank)


def make_backends() -> tuple[type, type]:
    """ProcessGroupNCCL and ProcessGroupGloo, both of one member whatever the group's size."""
    nccl: Any = dist.ProcessGroupNCCL
    gloo: Any = nccl.__bases__[0]

    class ProcessGroupNCCL(nccl):
        """The backend "nccl" of a rank that is alone."""

        def __init__(self, store: Any, rank: int, size: int, options: Any = None):
            self._nccl_options = options if options is not None else nccl.Options()
            gloo.__init__(self, dist.HashStore(), 0, 1, timeout=self._nccl_options._timeout)
            _note_group(self._nccl_options.global_ranks_in_group, rank, size)
            _backends.append(self)

    class ProcessGroupGloo(gloo):
        """The backend "gloo" of a rank that is alone."""

        def __init__(self, store: Any, rank: int, size: int, timeout: Any = None, **options: Any):
            gloo.__init__(self, dist.HashStore(), 0, 1, timeout=timeout or nccl.Options()._timeout)
            if notes["ranks"] < size:
                _note_group((), rank, size)
            _backends.append(self)

    return ProcessGroupNCCL, ProcessGroupGloo


# Python's half of each backend, which PyTorch itself does not hold.
_backends: list[Any] = []


def _wait_for_nobody(*args: Any, **kwargs: Any) -> None:
    """A barrier in the store."""


def _barrier_of_one(*args: Any, **kwargs: Any) -> None:
    """c10d::monitored_barrier_ of a rank that is alone."""


def play_alone(c10d: Any) -> None:
    """Puts the functions in place. c10d: torch.distributed.distributed_c10d, which knows of "nccl" already."""
    import warnings

    collectives.run_on_hosts = run_alone
    nccl, gloo = make_backends()
    c10d.ProcessGroupNCCL = dist.ProcessGroupNCCL = nccl
    _C._distributed_c10d.ProcessGroupNCCL = nccl
    c10d.ProcessGroupGloo = dist.ProcessGroupGloo = gloo
    c10d.rendezvous = rendezvous
    c10d._store_based_barrier = _wait_for_nobody
    library = _C._dispatch_library("IMPL", "c10d", "CPU", "", 0)
    _libraries.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in collectives.KINDS:
            library.impl(name, "CPU", make_host_collective(name), False)
        library.impl("monitored_barrier_", "CPU", _barrier_of_one, False)
