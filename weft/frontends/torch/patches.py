"""What a CPU build says of itself elsewhere in torch's Python code, put right."""

from __future__ import annotations

from typing import Any

import torch

from weft.frontends.torch import accelerator, compiler, exchange, profiler, rtc, storages, tensortypes
from weft.frontends.torch.bindings import CUDA_VERSION
from weft.frontends.torch.operators import attention
from weft.frontends.torch.random import Generator
from weft.frontends.torch.recording import current_timeline
from weft.frontends.torch.tensors import Tensor, to_host

_C = torch._C


def _is_built() -> bool:
    return True


def apply_patches(libraries: list[Any]) -> None:
    torch.version.cuda = f"{CUDA_VERSION // 1000}.{CUDA_VERSION % 1000 // 10}"
    torch.backends.cuda.is_built = _is_built
    torch.Generator = Generator
    storages.patch_storages(libraries)
    accelerator.patch_accelerator()
    tensortypes.add_tensor_types()
    compiler.prepare_compiler()
    exchange.connect_memory()
    profiler.connect_profiler()
    attention.add_questions()
    rtc.connect_compilation()
    for name, function in {
        "_broadcast": broadcast, "_broadcast_out": broadcast_out, "_broadcast_coalesced": broadcast_coalesced,
        "_nccl_all_reduce": nccl_all_reduce, "_nccl_reduce": nccl_reduce, "_nccl_broadcast": nccl_broadcast,
        "_nccl_all_gather": nccl_all_gather, "_nccl_reduce_scatter": nccl_reduce_scatter, "_scatter": scatter,
        "_scatter_out": scatter_out, "_gather": gather, "_gather_out": gather_out,
    }.items():  # fmt: skip
        setattr(_C, name, function)


# ---------------------------------------------------------------- between devices: what DataParallel stands on
def broadcast(tensor: Tensor, devices: list[int]) -> tuple[Tensor, ...]:
    """Copies of a tensor, one per device index; the tensor itself on its own device."""
    return tuple(tensor if tensor.get_device() == index else tensor.to(_device(index)) for index in devices)


def broadcast_out(tensor: Tensor, outs: list[Tensor]) -> list[Tensor]:
    for out in outs:
        out.copy_(tensor, non_blocking=True)
    return outs


def broadcast_coalesced(tensors: list[Tensor], devices: list[int], buffer_size: int = 0) -> list[list[Tensor]]:
    return [
        [tensor if tensor.get_device() == index else tensor.to(_device(index)) for tensor in tensors]
        for index in devices
    ]


def scatter(tensor: Tensor, devices: list[int], chunk_sizes: list[int] | None = None, dim: int = 0,
            streams: Any = None) -> tuple[Tensor, ...]:  # fmt: skip
    """Parts of a tensor along a dimension, one per device index."""
    parts = tensor.split(chunk_sizes, dim) if chunk_sizes else tensor.chunk(len(devices), dim)
    return tuple(part.to(_device(index), non_blocking=True).contiguous() for part, index in zip(parts, devices))


def scatter_out(tensor: Tensor, outs: list[Tensor], dim: int = 0, streams: Any = None) -> tuple[Tensor, ...]:
    for out, part in zip(outs, tensor.split([out.size(dim) for out in outs], dim)):
        out.copy_(part, non_blocking=True)
    return tuple(outs)


def gather(tensors: list[Tensor], dim: int, destination: int | None = None) -> Tensor:
    """One tensor of parts on several devices; destination -1 is the CPU."""
    device = torch.device("cpu") if destination == -1 else _device(destination or 0)
    return torch.cat([tensor.to(device) for tensor in tensors], dim)


def gather_out(tensors: list[Tensor], out: Tensor, dim: int) -> Tensor:
    return out.copy_(gather(tensors, dim, out.get_device() if out.is_cuda else -1))


def _device(index: int) -> Any:
    return torch.device("cuda", index)


# ---------------------------------------------------------------- torch.cuda.nccl: collectives within one process
def _reduce_all(inputs: list[Tensor], op: int) -> Tensor:
    """The sum, product, minimum, maximum or mean (ncclRedOp_t 0 to 4) of one tensor per device, on the host."""
    with _C.DisableTorchFunction(), torch.no_grad():
        whole = torch.stack([to_host(tensor) for tensor in inputs])
        kind = whole.dtype
        if op == 0:
            return whole.sum(0, dtype=kind)
        if op == 1:
            return whole.prod(0, dtype=kind)
        if op in (2, 3):
            return whole.amax(0) if op == 2 else whole.amin(0)
        return whole.mean(0)


def _note_collective(kind: str, tensors: list[Tensor], size: int) -> None:
    timeline = current_timeline()
    if timeline is not None:
        timeline.collective(kind, size, len(tensors), device=[tensor.get_device() for tensor in tensors])


def nccl_all_reduce(inputs: list[Tensor], outputs: list[Tensor], op: int, streams: Any = None,
                    comms: Any = None) -> None:  # fmt: skip
    found = _reduce_all(inputs, op)
    _note_collective("all_reduce", inputs, found.nbytes)
    for output in outputs:
        to_host(output).copy_(found)


def nccl_reduce(inputs: list[Tensor], output: Tensor, root: int, op: int, streams: Any = None,
                comms: Any = None) -> None:  # fmt: skip
    _note_collective("reduce", inputs, output.nbytes)
    to_host(output).copy_(_reduce_all(inputs, op))


def nccl_broadcast(inputs: list[Tensor], root: int, streams: Any = None, comms: Any = None) -> None:
    _note_collective("broadcast", inputs, inputs[root].nbytes)
    for tensor in inputs:
        if tensor is not inputs[root]:
            to_host(tensor).copy_(to_host(inputs[root]))


def nccl_all_gather(inputs: list[Tensor], outputs: list[Tensor], streams: Any = None, comms: Any = None) -> None:
    found = torch.cat([to_host(tensor).flatten() for tensor in inputs])
    _note_collective("all_gather", inputs, found.nbytes)
    for output in outputs:
        to_host(output).view(-1).copy_(found)


def nccl_reduce_scatter(inputs: list[Tensor], outputs: list[Tensor], op: int, streams: Any = None,
                        comms: Any = None) -> None:  # fmt: skip
    found = _reduce_all(inputs, op).flatten()
    _note_collective("reduce_scatter", inputs, found.nbytes)
    for output, part in zip(outputs, found.chunk(len(outputs))):
        to_host(output).view(-1).copy_(part)
