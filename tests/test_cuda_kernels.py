"""Realistic CUDA C++ kernels (tests/cuda/*.cu) against NumPy, through NVRTC and, where a kernel needs no NVIDIA header,
clang."""

from __future__ import annotations

import cuda_algorithms
import cuda_language
import pytest
from cuda_cases import kernels, run_case

from weft.errors import UnsupportedError

CASES = cuda_algorithms.CASES + cuda_language.CASES
TABLE = [pytest.param(case, compiler, id=f"{case.kernel}-{compiler}") for case in CASES for compiler in case.compilers]


@pytest.mark.parametrize(("case", "compiler"), TABLE)
def test_kernel(case, compiler):
    run_case(case, compiler)


@pytest.mark.parametrize("kernel", ["wmma_gemm", "wmma_relu"])
def test_tensor_core_kernels_are_refused_at_their_line(kernel):
    launch = kernels("tensor.cu")[kernel]
    with pytest.raises(UnsupportedError, match=r"tensor\.cu:\d+: wmma\..*not supported yet"):
        launch.compile(32)
