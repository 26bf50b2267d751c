"""Realistic CUDA C++ kernels (tests/cuda/*.cu) against NumPy, through NVRTC and, where a kernel needs no NVIDIA header,
clang."""

from __future__ import annotations

import cuda_algorithms
import cuda_language
import pytest
from cuda_cases import run_case

CASES = cuda_algorithms.CASES + cuda_language.CASES
TABLE = [pytest.param(case, compiler, id=f"{case.kernel}-{compiler}") for case in CASES for compiler in case.compilers]


@pytest.mark.parametrize(("case", "compiler"), TABLE)
def test_kernel(case, compiler):
    run_case(case, compiler)
