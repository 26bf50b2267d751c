"""Triton programs on virtual GPUs: arguments, launches, Triton's own tools, errors, child processes.

Kernels are here for what the front end does with them; their arithmetic is tested in test_triton_kernels.py.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton import knobs  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402

import weft  # noqa: E402
from weft.errors import (  # noqa: E402
    DeviceAssertError,
    IllegalAddressError,
    InvalidConfigurationError,
    InvalidDevicePointerError,
    InvalidValueError,
    UnsupportedError,
)
from weft.frontends import devices  # noqa: E402
from weft.frontends.triton.arguments import flat_kinds, parse_descriptor  # noqa: E402
from weft.frontends.triton.tensors import ranges_of  # noqa: E402
from weft.frontends.triton.versions import check_version, parse_version  # noqa: E402
from weft.install import find_real_gpus  # noqa: E402

VERSION = parse_version(triton.__version__)
HERE = Path(__file__)


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    weft.install("h100", children=False)


@pytest.fixture
def gpu() -> weft.Device:
    """The virtual GPU that kernels run on now."""
    return devices.virtual_device()


@pytest.fixture
def restored(gpu: weft.Device):
    """Lets a test install other GPUs."""
    yield
    weft.install("h100", triton_arch="", children=False)


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    total = tl.load(x_ptr + offsets, mask=inside) + tl.load(y_ptr + offsets, mask=inside)
    tl.store(out_ptr + offsets, total, mask=inside)


@triton.jit
def copy_kernel(x_ptr, out_ptr, stride_x, stride_out, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(out_ptr + offsets * stride_out, tl.load(x_ptr + offsets * stride_x, mask=inside), mask=inside)


@triton.jit
def scalars_kernel(out_ptr, flag, small, wide, unsigned, number, half):
    tl.store(out_ptr + 0, flag.to(tl.float64))
    tl.store(out_ptr + 1, small.to(tl.float64))
    tl.store(out_ptr + 2, wide.to(tl.float64))
    tl.store(out_ptr + 3, unsigned.to(tl.float64))
    tl.store(out_ptr + 4, number.to(tl.float64))
    tl.store(out_ptr + 5, half.to(tl.float64))


@triton.jit
def typed_kernel(out_ptr, half: tl.float16, brain: tl.bfloat16, double: tl.float64, byte: tl.int8, word: tl.uint16):
    tl.store(out_ptr + 0, half.to(tl.float64))
    tl.store(out_ptr + 1, brain.to(tl.float64))
    tl.store(out_ptr + 2, double)
    tl.store(out_ptr + 3, byte.to(tl.float64))
    tl.store(out_ptr + 4, word.to(tl.float64))


@triton.jit
def tuple_kernel(pointers, numbers, out_ptr, extra):
    total = tl.load(pointers[0]) + tl.load(pointers[1]) + numbers[0] + numbers[1][0]
    if extra is not None:
        total += tl.load(extra)
    tl.store(out_ptr, total)


def launch_add(n: int = 1000, dtype=None):
    x, y = torch.rand(n, dtype=dtype), torch.rand(n, dtype=dtype)
    out = torch.empty(n, dtype=dtype)
    kernel = add_kernel[(triton.cdiv(n, 256),)](x, y, out, n, BLOCK=256)
    return x, y, out, kernel


# ---------------------------------------------------------------- arguments
@pytest.mark.parametrize("n", [1, 255, 256, 257, 100_000])
def test_vector_add(n: int) -> None:
    x, y, out, _ = launch_add(n)
    assert torch.equal(out, x + y)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]
)
def test_dtypes(dtype: str) -> None:
    kind = getattr(torch, dtype)
    x = torch.randint(0, 50, (300,)).to(kind)
    out = torch.empty_like(x)
    add_kernel[(2,)](x, x, out, 300, BLOCK=256)
    assert torch.equal(out, x + x)


def test_strided_views_reach_the_whole_storage() -> None:
    base = torch.rand(50, 40)
    out = torch.zeros(50, 40)
    copy_kernel[(1,)](base[3:, 7], out.T[5], 40, 40, 47, BLOCK=64)
    assert torch.equal(out[:47, 5], base[3:, 7])
    assert out.count_nonzero() == out[:47, 5].count_nonzero()


def test_views_of_numpy_memory() -> None:
    host = np.arange(200, dtype=np.float32)
    out = np.zeros(200, np.float32)
    add_kernel[(1,)](torch.from_numpy(host), torch.from_numpy(host), torch.from_numpy(out), 200, BLOCK=256)
    assert np.array_equal(out, 2 * host)


def test_scalars() -> None:
    out = torch.zeros(6, dtype=torch.float64)
    scalars_kernel[(1,)](out, True, -7, -(2**40), 2**63 + 2**40, 3.25, 1e-3)
    assert out.tolist() == [1.0, -7.0, -(2.0**40), 2.0**63 + 2.0**40, 3.25, float(np.float32(1e-3))]


def test_annotated_scalars_are_narrowed() -> None:
    out = torch.zeros(5, dtype=torch.float64)
    typed_kernel[(1,)](out, 0.1, 1.0 + 2**-7, 0.1, -3, 65535)
    assert out.tolist() == [float(np.float16(0.1)), 1.0 + 2**-7, 0.1, -3.0, 65535.0]


def test_bfloat16_scalars_are_cut_off_as_tritons_launcher_does() -> None:
    out = torch.zeros(5, dtype=torch.float64)
    typed_kernel[(1,)](out, 0.0, 1.0 + 2**-7 + 2**-8 + 2**-9, 0.0, 0, 0)
    assert out[1] == 1.0 + 2**-7


def test_infinite_scalars() -> None:
    out = torch.zeros(6, dtype=torch.float64)
    scalars_kernel[(1,)](out, False, 2, 2, 2, float("inf"), 1e300)
    assert out[4] == float("inf") and out[5] == float("inf")


def test_tuples_and_none() -> None:
    one, two, out = torch.ones(1), torch.full((1,), 2.0), torch.zeros(1)
    tuple_kernel[(1,)]((one, two), (4, (8.5,)), out, None)
    assert out.item() == 15.5
    tuple_kernel[(1,)]((one, two), (4, (8.5,)), out, two)
    assert out.item() == 17.5


def test_weft_arrays(gpu: weft.Device) -> None:
    x = gpu.array(np.arange(100, dtype=np.float32))
    out = gpu.zeros(100)
    add_kernel[(1,)](x, x, out, 100, BLOCK=128)
    assert np.array_equal(out.numpy(), 2 * x.numpy())


def test_cuda_array_interface_alone_is_enough(gpu: weft.Device) -> None:
    class Foreign:
        def __init__(self, array):
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    x, out = gpu.array(np.arange(100, dtype=np.float32)), gpu.zeros(100)
    add_kernel[(1,)](Foreign(x), Foreign(x), Foreign(out), 100, BLOCK=128)
    assert np.array_equal(out.numpy(), 2 * x.numpy())


def test_tensors_on_pytorchs_virtual_gpu(restored: None) -> None:
    weft.install("h100", children=False)
    x, y = torch.rand(300, device="cuda"), torch.rand(300, device="cuda")
    out = torch.empty_like(x)
    add_kernel[(2,)](x, y, out, 300, BLOCK=256)
    assert torch.equal(out.cpu(), x.cpu() + y.cpu())
    # As on a real GPU, a CPU tensor among them is a mistake.
    with pytest.raises(ValueError, match=r"argument y_ptr: Pointer argument cannot be accessed from Triton \(cpu"):
        add_kernel[(2,)](x, torch.rand(300), out, 300, BLOCK=256)


def test_freed_weft_array_is_refused_by_name(gpu: weft.Device) -> None:
    x, out = gpu.array(np.arange(100, dtype=np.float32)), gpu.zeros(100)
    x.free()
    with pytest.raises(InvalidDevicePointerError, match="argument x_ptr: .*was freed"):
        add_kernel[(1,)](x, out, out, 100, BLOCK=128)


def test_host_arrays_are_refused_as_by_triton() -> None:
    out = torch.zeros(3)
    with pytest.raises(TypeError, match="ndarray"):
        add_kernel[(1,)](np.zeros(3), out, out, 3, BLOCK=128)


def test_integer_that_does_not_fit_is_named() -> None:
    out = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(OverflowError, match="argument byte"):
        typed_kernel[(1,)](out, 0.0, 0.0, 0.0, 300, 0)


def test_empty_tensors_and_grids_do_nothing() -> None:
    nothing = torch.empty(0)
    add_kernel[(1,)](nothing, nothing, nothing, 0, BLOCK=128)
    x = torch.ones(10)
    assert add_kernel[(0,)](x, x, x, 10, BLOCK=128) is not None
    assert x.sum() == 10


def test_signature_is_flattened() -> None:
    kinds = ("*fp32", "constexpr", ("i32", ("fp32", "constexpr")))
    assert flat_kinds(kinds, "abc") == [("*fp32", "a"), ("i32", "c[0]"), ("fp32", "c[1][0]")]
    assert parse_descriptor("tensordesc<fp16[64, 32]>") == ("fp16", 2)
    assert parse_descriptor("tensordesc_im2col<fp16[64, 32],input_rank=4>") == ("fp16", 4)


# ---------------------------------------------------------------- descriptors and clusters
@triton.jit
def double_tile_kernel(x_desc, out_desc, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    place = [tl.program_id(0) * ROWS, tl.program_id(1) * COLUMNS]
    out_desc.store(place, x_desc.load(place) * 2)


@triton.jit
def double_tensor_kernel(x_ptr, out_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    x_desc = tl.make_tensor_descriptor(x_ptr, [rows, columns], [columns, 1], [ROWS, COLUMNS])
    out_desc = tl.make_tensor_descriptor(out_ptr, [rows, columns], [columns, 1], [ROWS, COLUMNS])
    double_tile_kernel(x_desc, out_desc, ROWS, COLUMNS)


@triton.jit
def load_tile_kernel(x_desc, out_ptr, SIZE: tl.constexpr):
    rows, columns = tl.arange(0, SIZE), tl.arange(0, SIZE)
    tl.store(out_ptr + rows[:, None] * SIZE + columns[None, :], x_desc.load([0, 0]))


@pytest.fixture(params=["sm_90", "sm_80"])
def architecture(request, gpu: weft.Device):
    """Tensor maps on sm_90, pointers and numbers on sm_80."""
    weft.install("h100", triton_arch=request.param, children=False)
    yield request.param
    weft.install("h100", triton_arch="", children=False)


def descriptor(tensor, block, **options):
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor, block, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "int8"])
def test_host_descriptors(architecture: str, dtype: str) -> None:
    x = torch.randint(-40, 40, (100, 80)).to(getattr(torch, dtype))
    out = torch.zeros_like(x)
    kernel = double_tile_kernel[(4, 3)](descriptor(x, [32, 32]), descriptor(out, [32, 32]), 32, 32)
    assert torch.equal(out, x * 2)
    assert ("cp.async.bulk.tensor" in kernel.asm["ptx"]) == (architecture == "sm_90")


@pytest.mark.skipif(VERSION < (3, 6), reason="padding came with Triton 3.6")
def test_host_descriptor_that_fills_with_nan(architecture: str) -> None:
    x, out = torch.rand(20, 24), torch.zeros(32, 32)
    load_tile_kernel[(1,)](descriptor(x, [32, 32], padding="nan"), out, SIZE=32)
    assert torch.equal(out[:20, :24], x)
    assert out[20:].isnan().all() and out[:, 24:].isnan().all()


def test_device_descriptors(architecture: str) -> None:
    triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8))
    x, out = torch.rand(100, 80), torch.zeros(100, 80)
    double_tensor_kernel[(4, 3)](x, out, 100, 80, 32, 32)
    assert torch.equal(out, x * 2)


def test_device_descriptors_without_an_allocator(gpu: weft.Device) -> None:
    from triton.runtime import _allocation

    triton.set_allocator(_allocation.NullAllocator())
    x = torch.rand(32, 32)
    with pytest.raises(RuntimeError, match="no allocator was set"):
        double_tensor_kernel[(1, 1)](x, x, 32, 32, 32, 32)


def test_misaligned_descriptor_is_refused(gpu: weft.Device) -> None:
    x, out = torch.rand(33, 32), torch.zeros(32, 32)
    made = descriptor(x[:32], [32, 32])
    load_tile_kernel[(1,)](made, out, SIZE=32)
    made.base = x.flatten()[1:]
    with pytest.raises(RuntimeError, match="Failed to create tensor map descriptor: .* must be a multiple of 16"):
        load_tile_kernel[(1,)](made, out, SIZE=32)


@triton.jit
def matmul_kernel(a_ptr, b_ptr, c_ptr, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows = tl.program_id(0) * M + tl.arange(0, M)
    columns = tl.program_id(1) * N + tl.arange(0, N)
    inner = tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, k, K):
        a = tl.load(a_ptr + rows[:, None] * k + (start + inner)[None, :])
        b = tl.load(b_ptr + (start + inner)[:, None] * n + columns[None, :])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + rows[:, None] * n + columns[None, :], total)


@pytest.mark.parametrize("ctas", [1, 2, 4])
def test_clusters(ctas: int) -> None:
    a, b, c = torch.randn(256, 128).half(), torch.randn(128, 256).half(), torch.zeros(256, 256)
    kernel = matmul_kernel[(2, 2)](a, b, c, 256, 128, 128, 128, 64, num_ctas=ctas)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-3, atol=1e-2)
    assert kernel.metadata.num_ctas == ctas


@pytest.mark.skipif(VERSION < (3, 6), reason="tried with Triton 3.6 and newer")
def test_warp_specialised_matmul_on_tensor_cores() -> None:
    @triton.jit
    def specialised_kernel(a_ptr, b_ptr, c_ptr, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
        a_desc = tl.make_tensor_descriptor(a_ptr, [m, k], [k, 1], [M, K])
        b_desc = tl.make_tensor_descriptor(b_ptr, [k, n], [n, 1], [K, N])
        c_desc = tl.make_tensor_descriptor(c_ptr, [m, n], [n, 1], [M, N])
        row, column = tl.program_id(0) * M, tl.program_id(1) * N
        total = tl.zeros((M, N), tl.float32)
        for start in tl.range(0, k, K, warp_specialize=True):
            total = tl.dot(a_desc.load([row, start]), b_desc.load([start, column]), total)
        c_desc.store([row, column], total)

    triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8))
    a, b, c = torch.randn(256, 192).half(), torch.randn(192, 128).half(), torch.zeros(256, 128)
    specialised_kernel[(2, 1)](a, b, c, 256, 128, 192, 128, 128, 64)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-3, atol=1e-2)


def test_gluon_kernel() -> None:
    gluon = pytest.importorskip("triton.experimental.gluon")
    from triton.experimental.gluon import language as gl

    @gluon.jit
    def gluon_add_kernel(x_ptr, out_ptr, n, BLOCK: gl.constexpr):
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
        offsets = gl.program_id(0) * BLOCK + gl.arange(0, BLOCK, layout=layout)
        gl.store(out_ptr + offsets, gl.load(x_ptr + offsets, mask=offsets < n) + 1, mask=offsets < n)

    x, out = torch.rand(300), torch.zeros(300)
    gluon_add_kernel[(3,)](x, out, 300, 128)
    assert torch.equal(out, x + 1)


# ---------------------------------------------------------------- memory
def test_registrations_end_with_their_tensors(gpu: weft.Device) -> None:
    ranges = ranges_of(gpu)
    gc.collect()
    before = len(ranges._storages)
    for extra in range(50):
        launch_add(1000 + extra)
    gc.collect()
    assert len(ranges._storages) <= before + 3
    gpu.arena.collect()
    assert gpu.arena.ranges.count < before + 20


def test_registration_follows_a_resized_storage() -> None:
    x = torch.rand(10)
    out = torch.zeros(100_000)
    add_kernel[(1,)](x, x, out, 10, BLOCK=256)
    x.resize_(100_000).fill_(1.5)
    add_kernel[(391,)](x, x, out, 100_000, BLOCK=256)
    assert (out == 3.0).all()


class Dangling:
    """An address without its tensor."""

    dtype = torch.float32

    def __init__(self, address: int):
        self.address = address

    def data_ptr(self) -> int:
        return self.address


def test_use_after_free_is_a_fault_with_the_line() -> None:
    x, _, out, _ = launch_add(5000)
    dangling = Dangling(x.data_ptr())
    del x
    gc.collect()
    with pytest.raises(IllegalAddressError, match="freed memory: array of shape .5000,., torch.float32") as caught:
        add_kernel[(1,)](dangling, out, out, 100, BLOCK=256)
    assert caught.value.location.file.endswith(HERE.name)
    launch_add()  # the next kernel runs


# ---------------------------------------------------------------- faults
@triton.jit
def overrun_kernel(x_ptr):
    tl.store(x_ptr + tl.program_id(0) * 128 + tl.arange(0, 128), 1.0)


@triton.jit(debug=True)
def assert_kernel(x_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.device_assert(x < 3, "x is too big")


@triton.jit
def deep_kernel(x_ptr, y_ptr, out_ptr, k, BLOCK: tl.constexpr):
    rows = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in tl.range(0, k, BLOCK, num_stages=20):
        x = tl.load(x_ptr + rows[:, None] * k + start + rows[None, :])
        y = tl.load(y_ptr + (start + rows[:, None]) * BLOCK + rows[None, :])
        total = tl.dot(x, y, total)
    tl.store(out_ptr + rows[:, None] * BLOCK + rows[None, :], total)


@triton.jit
def static_kernel(x_ptr, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK >= 16, "BLOCK is too small")
    tl.store(x_ptr + tl.arange(0, BLOCK), 1.0)


def line_of(text: str) -> int:
    lines = HERE.read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def test_overrun_names_tensor_and_source_line() -> None:
    x = torch.zeros(200)
    with pytest.raises(IllegalAddressError, match=r"past the end of array of shape \(200,\), torch.float32") as caught:
        overrun_kernel[(2,)](x)
    assert caught.value.location.line == line_of("tl.store(x_ptr + tl.program_id(0) * 128")
    assert caught.value.block == (1, 0, 0)


def test_device_assert_names_message_and_line() -> None:
    with pytest.raises(DeviceAssertError, match="x is too big") as caught:
        assert_kernel[(1,)](torch.tensor([1.0, 2.0, 3.0, 4.0]), BLOCK=4)
    assert f"{HERE.name}:{line_of('tl.device_assert(x < 3')}" in str(caught.value)
    assert_kernel[(1,)](torch.ones(4), BLOCK=4)


def test_static_assert() -> None:
    with pytest.raises(Exception, match="BLOCK is too small"):
        static_kernel[(1,)](torch.zeros(16), BLOCK=8)


def test_too_much_shared_memory_is_tritons_own_error() -> None:
    x = torch.zeros(64, 4096)
    with pytest.raises(OutOfResources, match="shared memory, Required: [0-9]+, Hardware limit: 232448"):
        deep_kernel[(1,)](x, x, x, 4096, BLOCK=64)
    launch_add()


def test_grid_beyond_the_chip() -> None:
    x = torch.zeros(10)
    with pytest.raises(InvalidConfigurationError, match="y is 65536"):
        add_kernel[(1, 65536)](x, x, x, 10, BLOCK=16)


def test_device_print(capfd: pytest.CaptureFixture) -> None:
    @triton.jit
    def print_kernel(x_ptr):
        tl.device_print("value", tl.load(x_ptr + tl.arange(0, 32)))

    print_kernel[(1,)](torch.arange(32).float(), num_warps=1)
    lines = capfd.readouterr().out.splitlines()
    assert "pid (0, 0, 0) idx (31) value: 31.000000" in lines
    assert len(lines) == 32


# ---------------------------------------------------------------- Triton's tools
def test_kernel_attributes() -> None:
    *_, kernel = launch_add()
    assert {"ttir", "ttgir", "llir", "ptx"} <= set(kernel.asm)
    assert ".target sm_90a" in kernel.asm["ptx"]
    kernel._init_handles()
    assert kernel.n_regs.source.startswith("ptxas") or kernel.n_regs.source == "estimated"
    assert 8 <= kernel.n_regs <= 255 and kernel.n_regs * 2 == 2 * int(kernel.n_regs) == kernel.n_regs + kernel.n_regs
    assert 65536 // (kernel.n_regs * 32) == 65536 // (int(kernel.n_regs) * 32)
    assert kernel.n_spills == 0 and f"{kernel.n_spills:3d}" == "  0"
    assert kernel.n_max_threads == 128


def test_sass_of_the_ptx() -> None:
    *_, kernel = launch_add()
    kernel._init_handles()
    if kernel.n_regs.source == "estimated":
        with pytest.raises(UnsupportedError, match="ptxas"):
            kernel.asm["sass"]
    else:
        assert "add_kernel" in kernel.asm["sass"]


def test_device_properties() -> None:
    active = triton.runtime.driver.active
    found = active.utils.get_device_properties(active.get_current_device())
    assert found["max_shared_mem"] == 232448 and found["multiprocessor_count"] == 132 and found["warpSize"] == 32
    assert active.get_current_target().arch == 90
    assert active.get_active_torch_device() == torch.device("cuda", 0)


def test_autotune_and_do_bench() -> None:
    configs = [triton.Config({"BLOCK": block}, num_warps=warps) for block in (128, 1024) for warps in (1, 4)]

    @triton.autotune(configs, key=["n"])
    @triton.jit
    def double_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
        offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, mask=offsets < n) * 2, mask=offsets < n)

    x = torch.rand(10_000)
    out = torch.empty_like(x)

    def grid(meta):
        return (triton.cdiv(10_000, meta["BLOCK"]),)

    double_kernel[grid](x, out, 10_000)
    assert torch.equal(out, 2 * x)
    assert double_kernel.best_config in configs


def test_do_bench_predicts_for_the_chip(restored: None, capfd: pytest.CaptureFixture) -> None:
    from weft.frontends.triton import benchmark

    benchmark._told.clear()
    n = 1 << 20
    x, y, out = torch.rand(n), torch.rand(n), torch.empty(n)
    times = {}
    for chip in ("h100", "rtx3060"):
        weft.install(chip, children=False)
        times[chip] = triton.testing.do_bench(lambda: add_kernel[(n // 1024,)](x, y, out, n, BLOCK=1024))
        # 12 MiB at the data sheet's bandwidth are the least that it can take, and a launch is not free.
        least = 1e3 * 3 * 4 * n / devices.virtual_device().chip.memory_bandwidth
        assert least < times[chip] < 4 * least + 0.02
    assert times["rtx3060"] > 3 * times["h100"]
    text = capfd.readouterr().err
    assert "times are predicted for h100" in text and "times are predicted for rtx3060" in text


def test_do_bench_measures_what_does_not_run_on_the_device(capfd: pytest.CaptureFixture) -> None:
    from weft.frontends.triton import benchmark

    benchmark._told.clear()
    low, middle, high = triton.testing.do_bench(lambda: sum(range(1000)), warmup=1, rep=2, quantiles=[0.2, 0.5, 0.8])
    assert 0 < low <= middle <= high < 100
    assert min(triton.testing.do_bench(lambda: sum(range(1000)), warmup=1, rep=2, return_mode="all")) > 0
    assert "times are measured on this host" in capfd.readouterr().err


def test_heuristics() -> None:
    @triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
    @triton.jit
    def fill_kernel(out_ptr, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
        offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        if EVEN:
            tl.store(out_ptr + offsets, 2.0)
        else:
            tl.store(out_ptr + offsets, 3.0, mask=offsets < n)

    out = torch.zeros(96)
    fill_kernel[(6,)](out, 96, BLOCK=16)
    assert (out == 2).all()
    fill_kernel[(6,)](out, 90, BLOCK=16)
    assert (out[:90] == 3).all() and (out[90:] == 2).all()


@pytest.mark.skipif(VERSION < (3, 5), reason="Triton 3.4 has one hook, not a chain")
def test_launch_hooks() -> None:
    calls = []

    def enter(metadata):
        calls.append(("enter", metadata.get()["name"]))

    def leave(metadata):
        calls.append(("exit", metadata.get()["name"]))

    knobs.runtime.launch_enter_hook.add(enter)
    knobs.runtime.launch_exit_hook.add(leave)
    try:
        launch_add()
    finally:
        knobs.runtime.launch_enter_hook.remove(enter)
        knobs.runtime.launch_exit_hook.remove(leave)
    assert calls == [("enter", "add_kernel"), ("exit", "add_kernel")]


def test_warmup_and_preload() -> None:
    seen = []
    knobs.runtime.jit_cache_hook = lambda **call: seen.append(call["compile"]["specialization_data"]) and None
    try:
        kind = torch.float32
        warm = add_kernel.warmup(kind, kind, kind, 100, BLOCK=64, grid=(1,))
    finally:
        knobs.runtime.jit_cache_hook = None
    warm._init_handles()
    assert warm.metadata.num_warps == 4
    add_kernel.device_caches.clear()
    assert add_kernel.preload(seen[0]).metadata.name == "add_kernel"


def test_asynchronous_compilation() -> None:
    if not hasattr(triton, "AsyncCompileMode"):
        pytest.skip("no AsyncCompileMode in this Triton")
    from concurrent.futures import ThreadPoolExecutor

    kind = torch.float64
    with ThreadPoolExecutor(2) as executor, triton.AsyncCompileMode(executor):
        for block in (16, 32):
            add_kernel.warmup(kind, kind, kind, 100, BLOCK=block, grid=(1,))
    x = torch.rand(100, dtype=kind)
    out = torch.empty_like(x)
    add_kernel[(4,)](x, x, out, 100, BLOCK=32)
    assert torch.equal(out, 2 * x)


def test_cooperative_grid_waits_for_all_blocks() -> None:
    @triton.jit
    def ring_kernel(x_ptr, count_ptr, out_ptr, n: tl.constexpr):
        pid = tl.program_id(0)
        tl.store(x_ptr + pid, pid + 1)
        tl.atomic_add(count_ptr, 1, sem="release")
        while tl.atomic_add(count_ptr, 0, sem="acquire") < n:
            pass
        tl.store(out_ptr + pid, tl.load(x_ptr + (pid + 1) % n))

    x, count, out = (torch.zeros(size, dtype=torch.int32) for size in (8, 1, 8))
    ring_kernel[(8,)](x, count, out, 8, launch_cooperative_grid=True)
    assert out.tolist() == [2, 3, 4, 5, 6, 7, 8, 1]


@triton.jit
def lock_kernel(lock_ptr, total_ptr, x_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    tl.store(total_ptr, tl.load(total_ptr) + tl.sum(x, 0))
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


def test_lock_between_blocks() -> None:
    x = torch.ones(64 * 128)
    lock, total = torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    lock_kernel[(64,)](lock, total, x, BLOCK=128)
    assert total.item() == 64 * 128 and lock.item() == 0


def test_cache_is_apart_from_a_real_gpus() -> None:
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler.compiler import make_backend

    target = triton.runtime.driver.active.get_current_target()
    own = make_backend(target)
    assert own.hash() != CUDABackend(target).hash()
    if "TRITON_CACHE_DIR" not in os.environ:
        assert Path(knobs.cache.dir).parent == weft.settings.current().cache_dir


# ---------------------------------------------------------------- chips and architectures
@pytest.mark.parametrize("chip, wanted", [("a100-80gb", "sm_80"), ("rtx4080", "sm_89"), ("rtx3060", "sm_86")])
def test_compiles_for_the_chips_architecture(chip: str, wanted: str, restored: None) -> None:
    weft.install(chip, children=False)
    x, y, out, kernel = launch_add()
    assert f".target {wanted}\n" in kernel.asm["ptx"]
    assert torch.equal(out, x + y)


def test_another_architecture_on_request(restored: None) -> None:
    weft.install("h100", triton_arch="sm_80", children=False)
    x, y, out, kernel = launch_add()
    assert ".target sm_80\n" in kernel.asm["ptx"] and torch.equal(out, x + y)


def test_architecture_that_the_chip_cannot_run(restored: None) -> None:
    weft.install("a100-80gb", triton_arch="sm_90", children=False)
    with pytest.raises(UnsupportedError, match="sm_90 does not run on a100-80gb"):
        triton.runtime.driver.active.get_current_target()
    weft.install("a100-80gb", triton_arch="ninety", children=False)
    with pytest.raises(InvalidValueError, match="WEFT_TRITON_ARCH"):
        triton.runtime.driver.active.get_current_target()


def test_several_devices(restored: None) -> None:
    weft.install("h100", count=2, children=False)
    active = triton.runtime.driver.active
    active.set_current_device(1)
    try:
        x, y, out, _ = launch_add()
        assert torch.equal(out, x + y)
        with pytest.raises(InvalidValueError, match="found 2, there are 2 devices"):
            active.set_current_device(2)
    finally:
        active.set_current_device(0)
    assert len(devices.virtual_devices()) == 2


# ---------------------------------------------------------------- installation
PROGRAM = """
import sys
import torch, triton, triton.language as tl

@triton.jit
def add_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n)
    tl.store(out_ptr + offsets, x + 1, mask=offsets < n)

def run(queue=None):
    x, out = torch.rand(100), torch.empty(100)
    add_kernel[(1,)](x, out, 100, BLOCK=128)
    target = triton.runtime.driver.active.get_current_target().arch
    result = torch.equal(out, x + 1), target
    queue.put(result) if queue is not None else print(*result)

if __name__ == "__main__":
    if len(sys.argv) > 1:
        import multiprocessing
        context = multiprocessing.get_context(sys.argv[1])
        queue = context.Queue()
        child = context.Process(target=run, args=(queue,))
        if sys.argv[1] == "fork":
            run()
        child.start()
        print(*queue.get(timeout=100))
        child.join()
    else:
        run()
"""


def weft_run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    command = [sys.executable, "-m", "weft", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=200)


@pytest.mark.parametrize("method", ["", "spawn", "fork", "forkserver"])
def test_weft_run_reaches_programs_and_their_children(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = weft_run(["--gpu", "a100-80gb", str(program), *filter(None, [method])])
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {"True 80"}


def test_children_keep_their_own_sitecustomize(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.own_sitecustomize_ran = True\n")
    parent = tmp_path / "parent.py"
    child = (
        "import builtins, triton; print(builtins.own_sitecustomize_ran, type(triton.runtime.driver.active).__name__)"
    )
    parent.write_text(
        f"import subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', {child!r}], text=True))"
    )
    done = weft_run([str(parent)], PYTHONPATH=str(tmp_path))
    assert done.stdout.split() == ["True", "WeftDriver"], done.stderr


def test_asking_whether_triton_is_there_does_not_use_up_the_hook(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import importlib.util\nimportlib.util.find_spec('triton')\n" + PROGRAM)
    done = weft_run(["--gpu", "a100-80gb", str(program)])
    assert done.stdout.split() == ["True", "80"], done.stderr


def test_a_triton_that_is_too_old_is_refused_at_its_first_use(tmp_path: Path) -> None:
    package = tmp_path / "triton"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "3.1.0"\n')
    (package / "runtime.py").write_text(
        "class Config:\n    def set_active(self, driver): self.active = driver\ndriver = Config()\n"
    )
    program = tmp_path / "program.py"
    program.write_text("from triton.runtime import driver\nprint('imported')\ndriver.active.get_current_target()\n")
    done = weft_run([str(program)], PYTHONPATH=str(tmp_path))
    assert done.stdout == "imported\n" and done.returncode == 1
    assert "Triton 3.1.0 is too old for Weft, which runs kernels of triton>=3.4" in done.stderr


def test_versions() -> None:
    assert parse_version("3.10.0+git1a2b") == (3, 10)
    check_version("3.4.0")
    check_version("4.0")
    with pytest.raises(UnsupportedError, match="3.4"):
        check_version("3.3.1")


def test_interpreter_mode_is_left_alone(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        PROGRAM.replace(
            "target = triton.runtime.driver.active.get_current_target().arch", "target = type(add_kernel).__name__"
        )
    )
    done = weft_run([str(program)], TRITON_INTERPRET="1")
    assert done.stdout.split() == ["True", "InterpretedFunction"], done.stderr


def test_real_gpus_are_found_by_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert find_real_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert all(re.fullmatch(r"/dev/nvidia\d+", path) for path in find_real_gpus())
