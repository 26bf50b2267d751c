"""What a program issues, as plain data: one class per kind of record. Nothing here keeps a tensor alive.

Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from weft.errors import InvalidValueError

COPY_KINDS = ("h2d", "d2h", "d2d", "p2p")

# Bytes per element of a dtype by its name, as PyTorch and NumPy spell it.
ITEM_BYTES: dict[str, float] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex32": 4, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 0.5, "quint2x4": 0.25,
}  # fmt: skip


@dataclass(frozen=True)
class Operand:
    """A tensor as an operator sees it. shape and strides in elements; dtype by name ("bfloat16"); strides may be None,
    which means contiguous."""

    shape: tuple[int, ...]
    dtype: str
    itemsize: float
    strides: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def touched(self) -> int:
        """Elements that lie in memory: a side that is only expanded (stride 0) counts once."""
        if self.strides is None:
            return self.count
        return math.prod(side for side, stride in zip(self.shape, self.strides) if stride)

    @property
    def nbytes(self) -> float:
        return self.touched * self.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in row-major order."""
        if self.strides is None:
            return True
        expected = 1
        for side, stride in zip(reversed(self.shape), reversed(self.strides)):
            if side != 1 and stride != expected:
                return False
            expected *= side
        return True


def describe_dtype(dtype: Any) -> str:
    """A dtype's name: torch.float32, np.dtype("float32"), np.float32 and "float32" are all "float32"."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rpartition(".")[2]


def describe_value(value: Any) -> Any:
    """An argument as plain data: tensors become Operands, sequences tuples, other objects their text."""
    if isinstance(value, (int, float, complex, bool, str, type(None), Operand)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(describe_value(part) for part in value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return describe_tensor(value)
    return str(value)


def describe_tensor(tensor: Any) -> Operand:
    """A tensor (PyTorch's, NumPy's, a meta tensor) as an Operand."""
    dtype = describe_dtype(tensor.dtype)
    itemsize = ITEM_BYTES.get(dtype)
    if itemsize is None:
        size = getattr(tensor, "element_size", None)
        itemsize = float(size()) if callable(size) else float(tensor.dtype.itemsize)
    shape = tuple(int(side) for side in tensor.shape)
    strides: tuple[int, ...] | None = None
    stride = getattr(tensor, "stride", None)
    if callable(stride):
        try:
            strides = tuple(int(step) for step in stride())
        except RuntimeError:  # sparse layouts have none
            strides = None
    elif hasattr(tensor, "strides"):  # NumPy: in bytes
        strides = tuple(int(step) // max(int(itemsize), 1) for step in tensor.strides)
    return Operand(shape, dtype, itemsize, strides)


@dataclass(frozen=True)
class Call:
    """One ATen operator with its arguments."""

    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tf32_matmul: bool = False
    tf32_convolution: bool = True

    def tensors(self) -> list[Operand]:
        """All tensors among the arguments, in order, those in lists too."""
        return [*_operands(self.inputs), *_operands(tuple(self.kwargs.values()))]

    def results(self) -> list[Operand]:
        return list(_operands(self.outputs))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        if position < len(self.inputs):
            return self.inputs[position]
        return self.kwargs.get(name, default)


def _operands(values: tuple[Any, ...]) -> Iterator[Operand]:
    for value in values:
        if isinstance(value, Operand):
            yield value
        elif isinstance(value, tuple):
            yield from _operands(value)


@dataclass(frozen=True)
class Copy:
    """A copy of nbytes; kind is one of COPY_KINDS, peer the other device of "p2p"."""

    kind: str
    nbytes: int
    pinned: bool = False
    blocking: bool = False
    peer: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in COPY_KINDS:
            raise InvalidValueError(f"kind of copy: found {self.kind!r}, expected one of {', '.join(COPY_KINDS)}")


@dataclass(frozen=True)
class KernelLaunch:
    """A compiled kernel with its launch shape.

    flops by pipe as in Profile.flops; bytes from and to device memory; threads per block; registers per thread;
    shared_bytes per block. instructions: of all warps. basis says what the counts rest on.
    """

    name: str
    blocks: int
    threads: int
    registers: int = 0
    shared_bytes: int = 0
    flops: tuple[tuple[str, float], ...] = ()
    instructions: float = 0.0
    bytes_read: float = 0.0
    bytes_written: float = 0.0
    basis: str = "rough estimate"


@dataclass(frozen=True)
class Collective:
    """A collective of `ranks` GPUs on `nodes` machines. devices: those that this process drives.

    group: a name that the ranks' processes share, by which their collectives are put together. pair: sender and
    receiver within the group, of a kind "p2p".
    """

    kind: str
    nbytes: int
    ranks: int
    nodes: int = 1
    devices: tuple[int, ...] = (0,)
    group: Hashable = None
    pair: tuple[int, int] | None = None


@dataclass(frozen=True)
class EventRecord:
    event: Hashable


@dataclass(frozen=True)
class EventWait:
    event: Hashable


@dataclass(frozen=True)
class StreamWait:
    device: int
    stream: Hashable


@dataclass(frozen=True)
class Synchronize:
    """The host waits for "device", "stream" or "event"."""

    what: str
    event: Hashable = None


@dataclass(frozen=True)
class HostWork:
    seconds: float
    what: str = ""


@dataclass(frozen=True)
class RangeStart:
    name: str


@dataclass(frozen=True)
class RangeEnd:
    pass


@dataclass(frozen=True)
class Mark:
    name: str


@dataclass(frozen=True, eq=False)
class Graph:
    """Captured work, as records of the timeline."""

    records: array


@dataclass(frozen=True)
class GraphLaunch:
    graph: Graph


class Pending(Protocol):
    """Work whose details are worked out when somebody asks (weft.model.compiled.PendingLaunch)."""

    def resolve(self) -> KernelLaunch: ...


Work = (
    Call | Copy | KernelLaunch | Collective | EventRecord | EventWait | StreamWait | Synchronize | HostWork | RangeStart
    | RangeEnd | Mark | GraphLaunch | Pending
)  # fmt: skip
