"""The table behind tests/test_cuda_kernels.py: one Case per kernel of tests/cuda, with its launch, inputs and the
result that NumPy gives. Helpers for the tests that launch those kernels in several steps are here too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import weft
from weft.errors import CompileError
from weft.frontends.cuda_cpp import find_compiler

FOLDER = Path(__file__).parent / "cuda"
BOTH = ("nvrtc", "clang")
NVRTC = ("nvrtc",)


@dataclass(frozen=True)
class Case:
    """One launch. `inputs(rng)` makes the arguments: NumPy arrays become device arrays, scalars are passed on.
    `expect(*arguments)` gives the arrays after the launch, by argument index; all others must come back unchanged.
    """

    file: str
    kernel: str
    grid: object
    block: object
    inputs: Callable
    expect: Callable
    rtol: float = 0.0
    atol: float = 0.0
    compilers: tuple[str, ...] = BOTH
    shared_bytes: int = 0
    cooperative: bool = False
    arch: str | None = None  # the PTX target; None for the device's own


@cache
def has_compiler(name: str) -> bool:
    try:
        find_compiler(name)
    except CompileError:
        return False
    return True


@cache
def device():
    return weft.Device("h100")


@cache
def kernels(file: str, compiler: str = "nvrtc", name_expressions: tuple[str, ...] = (), arch: str | None = None):
    """The compiled kernels of a file in tests/cuda; skips the test where the compiler is not installed."""
    if not has_compiler(compiler):
        pytest.skip(f"{compiler} is not installed")
    return device().compile(FOLDER / file, compiler=compiler, name_expressions=name_expressions, arch=arch)


def run_case(case: Case, compiler: str) -> None:
    rng = np.random.default_rng(7)
    given = case.inputs(rng)
    wanted = case.expect(*[item.copy() if isinstance(item, np.ndarray) else item for item in given])
    launch = kernels(case.file, compiler, arch=case.arch)[case.kernel]
    passed = [device().array(item) if isinstance(item, np.ndarray) else item for item in given]
    launch[case.grid, case.block](*passed, shared_bytes=case.shared_bytes, cooperative=case.cooperative)
    for index, item in enumerate(given):
        if not isinstance(item, np.ndarray):
            continue
        found = passed[index].numpy()
        expected = np.asarray(wanted.get(index, item))
        assert found.shape == item.shape
        assert index not in wanted or expected.shape == item.shape, (expected.shape, item.shape)
        compare(
            found,
            expected,
            case.rtol if index in wanted else 0,
            case.atol if index in wanted else 0,
            f"argument {index}",
        )


def compare(found: np.ndarray, expected: np.ndarray, rtol: float, atol: float, what: str = "") -> None:
    """Equality, NaN equal to NaN, or within the tolerances where there are any."""
    if found.dtype.names:
        for name in found.dtype.names:
            compare(found[name], expected[name], rtol, atol, f"{what}.{name}")
    elif rtol or atol:
        wide = np.complex128 if np.iscomplexobj(found) else np.float64
        np.testing.assert_allclose(found.astype(wide), expected.astype(wide), rtol, atol, err_msg=what)
    else:
        np.testing.assert_array_equal(found, expected.astype(found.dtype), err_msg=what)


# ---------------------------------------------------------------- inputs
def normal(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def ints(rng, low, high, *shape, dtype=np.int32):
    return rng.integers(low, high, shape, dtype=dtype)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def int_zeros(*shape):
    return np.zeros(shape, np.int32)


def filled(value, *shape, dtype=np.int32):
    return np.full(shape, value, dtype)


def csr(rng, rows, cols, most):
    """A sparse matrix: row starts, columns, values; rows of 0 to `most` entries."""
    lengths = rng.integers(0, most + 1, rows)
    start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    col = np.concatenate([np.sort(rng.choice(cols, size, replace=False)) for size in lengths]).astype(np.int32)
    return start, col, normal(rng, len(col))


def csr_product(start, col, value, x):
    y = np.zeros(len(start) - 1)
    np.add.at(y, np.repeat(np.arange(len(start) - 1), np.diff(start)), value.astype(np.float64) * x[col])
    return y


def blocks_of(x, size):
    return x.reshape(-1, size)


def truncated_division(a, b):
    """Quotient toward zero and its remainder, b without zeros; 64-bit Python integers inside."""
    a, b = a.astype(object), b.astype(object)
    quotient = np.array(
        [abs(int(p)) // abs(int(q)) * (1 if (p < 0) == (q < 0) else -1) for p, q in zip(a, b)], dtype=object
    )
    return quotient, a - quotient * b


def wrap(values, dtype):
    """Python integers reduced to the width of `dtype`."""
    bits = np.dtype(dtype).itemsize * 8
    unsigned = np.array(
        [int(v) & ((1 << bits) - 1) for v in np.asarray(values, dtype=object).ravel()], dtype=f"u{bits // 8}"
    )
    return unsigned.view(dtype)


def softmax64(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
