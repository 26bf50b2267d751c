"""Bulk and tensor copies of CUDA C++ programs (the library's cuda::ptx and cuda::memcpy_async) and of Triton's tensor
descriptors, with copies made at issue and deferred."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_cases import has_compiler

import weft

pytestmark = pytest.mark.skipif(not has_compiler("nvrtc"), reason="NVRTC is not installed")
FILE = Path(__file__).parent / "cuda" / "tensor_copy.cu"


@pytest.fixture(scope="module", params=[False, True], ids=["at issue", "deferred"])
def gpu(request):
    return weft.Device("h100", threads=2, deferred_copies=request.param)


@pytest.fixture(scope="module")
def kernels(gpu):
    return gpu.compile(FILE, compiler="nvrtc")


@pytest.mark.parametrize("x,y", [(0, 0), (32, 64), (50, 90), (-8, -30)])
def test_tile(gpu, kernels, x, y):
    array = np.arange(100 * 64, dtype=np.int32).reshape(100, 64)
    device = gpu.array(array)
    kernels["add_one"][1, 128](weft.tensor_map(device, (32, 32)), x, y, 1)
    array[max(0, y) : y + 32, max(0, x) : x + 32] += 1
    np.testing.assert_array_equal(device.numpy(), array)


def test_forgotten_wait(gpu, kernels):
    """With deferred copies the tile still has what it had before."""
    array = np.arange(32 * 32, dtype=np.int32).reshape(32, 32)
    device = gpu.array(array)
    kernels["add_one"][1, 128](weft.tensor_map(device, (32, 32)), 0, 0, 0)
    np.testing.assert_array_equal(device.numpy(), np.full((32, 32), 1001) if gpu.deferred_copies else array + 1)


def test_rows_add_up(gpu, kernels):
    x = np.random.default_rng(1).integers(-99, 99, (40, 256)).astype(np.float32)
    total = gpu.zeros(256)
    kernels["sum_rows"][40, 96](gpu.array(x), total)
    np.testing.assert_array_equal(total.numpy(), 2 * x.sum(0))


@pytest.mark.parametrize("threads", [64, 160])
def test_ring(gpu, kernels, threads):
    array = np.random.default_rng(2).integers(-999, 999, (64, 320)).astype(np.int32)
    totals = gpu.zeros(4, np.int64)
    kernels["ring"][4, threads](weft.tensor_map(gpu.array(array), (16, 32), swizzle=128), 10, totals)
    np.testing.assert_array_equal(totals.numpy(), array.reshape(4, 16 * 320).sum(1))


def test_triton_descriptors(gpu):
    """A matrix product of Triton for sm_90a: tensor maps in parameters, stages and wgmma."""
    triton = pytest.importorskip("triton")
    import triton_sources

    source = triton.compiler.ASTSource(
        triton_sources.descriptor_product,
        signature={
            "a": "tensordesc<fp16[64,64]>", "b": "tensordesc<fp16[64,64]>", "c": "tensordesc<fp16[64,64]>", "K": "i32",
            "BM": "constexpr", "BN": "constexpr", "BK": "constexpr",
        },
        constexprs={"BM": 64, "BN": 64, "BK": 64},
    )  # fmt: skip
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 3})
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((128, 128)).astype(np.float16) for _ in range(2))
    c = gpu.zeros((128, 128), np.float16)
    arguments = []
    for array in (gpu.array(a), gpu.array(b), c):
        arguments += [weft.tensor_map(array, (64, 64), swizzle=128), 128, 128, 128, 1]
    gpu.load(made.asm["ptx"])[made.metadata.name][(2, 2), 128](*arguments, 128, 0, 0, shared_bytes=made.metadata.shared)
    expected = a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_allclose(c.numpy().astype(np.float32), expected, atol=0.03, rtol=2e-3)
