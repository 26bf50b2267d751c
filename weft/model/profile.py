"""What a kernel asks of a chip (Profile), what a model answers (Estimate), and what a model is (TimeModel).

A better model replaces the roofline by being another TimeModel: nothing else knows how times come about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from weft.chips import Chip

# Families of kernels, in the order in which reports list them.
FAMILIES: dict[str, str] = {
    "gemm": "matrix products",
    "convolution": "convolutions",
    "attention": "attention",
    "normalisation": "normalisation",
    "reduction": "reductions, softmax, scans",
    "pointwise": "element by element",
    "copy": "copies and fills within the device",
    "gather": "gather, scatter, embedding, index",
    "rnn": "recurrent layers",
    "random": "random numbers",
    "sort": "sorting, top-k, unique",
    "fft": "Fourier transforms",
    "linalg": "factorisations and solves",
    "optimiser": "fused optimisers, foreach",
    "collective": "communication between GPUs",
    "transfer": "copies between host and device",
    "compiled": "compiled kernels (PTX, CUDA C++, Triton)",
    "unknown": "priced by bytes only",
}

# Units that do arithmetic, each with its own peak rate on a chip (weft.model.rates). "tc" are tensor cores.
PIPES: tuple[str, ...] = (
    "fp64", "fp32", "fp16", "bf16", "int32", "sfu",
    "tc_fp64", "tc_tf32", "tc_fp16", "tc_bf16", "tc_fp8", "tc_fp4", "tc_int8",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """One kernel, or `kernels` equal ones launched in a row. Counts are for one of them.

    name: what the kernel is called in traces. family: one of FAMILIES. flops: by pipe (PIPES), a fused multiply-add
    counts 2. bytes_read, bytes_written: traffic with device memory, each byte once. blocks, threads: the launch shape,
    0 where the library chooses. gemm: (batch, m, n, k) of products. registers per thread and shared_bytes per block,
    where known. access: how memory is reached, "stream", "strided" or "random". basis: what the counts rest on:
    "shapes", "bytes only", "rough estimate".
    """

    name: str
    family: str
    flops: tuple[tuple[str, float], ...] = ()
    bytes_read: float = 0.0
    bytes_written: float = 0.0
    kernels: int = 1
    blocks: int = 0
    threads: int = 0
    gemm: tuple[int, int, int, int] | None = None
    registers: int = 0
    shared_bytes: int = 0
    access: str = "stream"
    basis: str = "shapes"

    def __post_init__(self) -> None:
        assert self.family in FAMILIES, self.family
        assert all(pipe in PIPES for pipe, _ in self.flops), self.flops
        assert self.kernels >= 1, self.kernels

    @property
    def bytes_moved(self) -> float:
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class Estimate:
    """What one kernel takes on a chip: seconds, joules.

    limiter: the bound that decided ("memory bandwidth", "tensor cores (bf16)", "launch latency", "NVLink" ...).
    bounds: seconds of every bound by name. low and high: the range of seconds in which 90 % of measured kernels of the
    family lay, None where nothing was measured. basis: "predicted" from shapes, or a weaker word for it.
    """

    seconds: float
    joules: float
    limiter: str
    bounds: dict[str, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    basis: str = "predicted"


class TimeModel(Protocol):
    """Profile and Chip in, Estimate of one kernel out (of one of Profile.kernels). A pure function of both."""

    name: str

    def estimate(self, profile: Profile, chip: Chip) -> Estimate: ...
