"""What the rules share: bytes read and written by a call, the unit that does the arithmetic of a dtype."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weft.model.profile import Profile
from weft.model.work import Call, Operand

HALF = ("float16", "bfloat16")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
REAL = ("float64", "float32", *HALF, *FLOAT8)
COMPLEX = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}


def reads(call: Call) -> float:
    """Bytes of all tensors among the arguments but `out`, each once."""
    return sum(operand.nbytes for operand in _inputs(call))


def writes(call: Call) -> float:
    """Bytes of all results."""
    return sum(operand.nbytes for operand in call.results())


def _inputs(call: Call) -> Iterable[Operand]:
    yield from operands_of(call.inputs)
    for name, value in call.kwargs.items():
        if name not in ("out", "out0", "out1", "out2", "values", "indices"):
            yield from operands_of((value,))


def operands_of(values: Iterable[Any]) -> Iterable[Operand]:
    """The tensors among values, in lists too."""
    for value in values:
        if isinstance(value, Operand):
            yield value
        elif isinstance(value, tuple):
            yield from operands_of(value)


def total_bytes(values: Iterable[Any]) -> float:
    return sum(operand.nbytes for operand in operands_of(values))


def main_operand(call: Call) -> Operand:
    """The largest tensor of the call. Raises ValueError where there is none."""
    return max([*call.results(), *call.tensors()], key=lambda operand: operand.count)


def plain_pipe(dtype: str) -> str:
    """The unit for arithmetic outside tensor cores. CUDA's elementwise kernels compute halves in f32."""
    dtype = COMPLEX.get(dtype, dtype)
    if dtype == "float64":
        return "fp64"
    return "fp32" if dtype in REAL else "int32"


def matrix_pipe(dtype: str, tf32: bool) -> str:
    """The unit that multiplies matrices of a dtype."""
    dtype = COMPLEX.get(dtype, dtype)
    if dtype == "float64":
        return "tc_fp64"
    if dtype == "float32":
        return "tc_tf32" if tf32 else "fp32"
    if dtype == "float16":
        return "tc_fp16"
    if dtype == "bfloat16":
        return "tc_bf16"
    if dtype.startswith("float8"):
        return "tc_fp8"
    if dtype.startswith("float4"):
        return "tc_fp4"
    if dtype in ("int8", "uint8", "qint8", "quint8"):
        return "tc_int8"
    return "int32"


def complex_factor(dtype: str) -> int:
    """Real multiply-adds per complex one."""
    return 4 if dtype in COMPLEX else 1


def streaming(call: Call, family: str, name: str, *, operations: float = 1.0, special: float = 0.0, kernels: int = 1,
              passes: float = 1.0, access: str = "stream") -> Profile:  # fmt: skip
    """One kernel that reads its arguments `passes` times and writes its results once.

    operations, special: arithmetic and special-function operations per element of the largest tensor.
    """
    largest = main_operand(call)
    pipe = plain_pipe(largest.dtype)
    flops: list[tuple[str, float]] = []
    if operations:
        flops.append((pipe, operations * largest.count))
    if special:
        # In f64 a special function is a few dozen multiply-adds.
        flops.append(("fp64", 40 * special * largest.count) if pipe == "fp64" else ("sfu", special * largest.count))
    if len(flops) == 2 and flops[0][0] == flops[1][0]:
        flops = [(pipe, flops[0][1] + flops[1][1])]
    return Profile(
        name, family, tuple(flops), reads(call) * passes / kernels, writes(call) / kernels, kernels, access=access
    )
