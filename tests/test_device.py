"""The device as a program sees it: attributes, streams, events, programs from PTX and CUDA C++, printf, the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import weft
from weft.errors import DeviceAssertError, InvalidValueError, NoSuchKernelError
from weft.runtime.hostcalls import DeviceHeap
from weft.runtime.printf import argument_bytes, format_printf, parse_format

SAXPY = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry saxpy(.param .u32 n, .param .f32 a, .param .u64 x, .param .u64 y)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<5>;
    .reg .b64 %rd<7>;
    ld.param.u32 %r1, [n];
    ld.param.f32 %f1, [a];
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra DONE;
    mul.wide.s32 %rd5, %r5, 4;
    add.s64 %rd3, %rd1, %rd5;
    add.s64 %rd4, %rd2, %rd5;
    ld.global.f32 %f2, [%rd3];
    ld.global.f32 %f3, [%rd4];
    fma.rn.f32 %f4, %f1, %f2, %f3;
    st.global.f32 [%rd4], %f4;
DONE:
    ret;
}
"""


@pytest.fixture(scope="module")
def gpu() -> weft.Device:
    return weft.Device("h100")


def run_saxpy(gpu: weft.Device, n: int = 1000) -> None:
    x = np.linspace(0, 1, n, dtype=np.float32)
    device_x, y = gpu.array(x), gpu.ones(n)
    gpu.load(SAXPY)["saxpy"][(n + 127) // 128, 128](n, 2.0, device_x, y)
    assert np.array_equal(y.numpy(), 2 * x + 1)


def has_cuda_compiler() -> bool:
    from weft.errors import CompileError
    from weft.frontends.cuda_cpp import find_compiler

    try:
        find_compiler()
    except CompileError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_cuda_compiler(), reason="no CUDA C++ compiler")


# ---------------------------------------------------------------- device
@pytest.mark.parametrize("chip", ["rtx3060", "rtx4080", "a100-80gb", "h100", "agx-orin"])
def test_every_chip_runs_kernels(chip: str) -> None:
    run_saxpy(weft.Device(chip))


def test_attributes(gpu: weft.Device) -> None:
    found = gpu.attributes
    assert found["name"] == gpu.name == "NVIDIA H100 80GB HBM3"
    assert (found["major"], found["minor"]) == gpu.compute_capability == (9, 0)
    assert found["multiProcessorCount"] == 132 and found["sharedMemPerBlockOptin"] == 227 << 10
    assert found["totalGlobalMem"] == gpu.memory_info()[1] and found["clockRate"] == 1980000


def test_choices_of_a_device() -> None:
    assert weft.Device("rtx3060", threads=3).threads == 3
    for bad in ({"threads": 0}, {"seed": -1}, {"time_limit": 0}):
        with pytest.raises(InvalidValueError):
            weft.Device("h100", **bad)
    with pytest.raises(InvalidValueError, match="gtx"):
        weft.Device("gtx 9999")
    assert weft.Device(weft.find_chip("a100")).chip.name == "a100-80gb"


def test_a_closed_device_refuses_work() -> None:
    with weft.Device("h100") as gpu:
        kernel = gpu.load(SAXPY)["saxpy"]
        x = gpu.ones(10)
    for use in (lambda: gpu.zeros(3), lambda: gpu.load(SAXPY), lambda: kernel[1, 32](10, 1.0, x, x), gpu.stream):
        with pytest.raises(InvalidValueError, match="after close"):
            use()


def test_streams_and_events(gpu: weft.Device) -> None:
    stream, start, end = gpu.stream(), gpu.event(), gpu.event()
    with pytest.raises(InvalidValueError, match="start event was not recorded"):
        start.elapsed_time(end)
    start.record(stream)
    time.sleep(0.02)
    end = stream.record_event(end)
    assert 15 < start.elapsed_time(end) < 5000 and start.timing_source == "measured on the host"
    stream.wait_event(start)
    stream.synchronize()
    gpu.synchronize()
    assert stream.query() and end.query()
    called = []
    stream.launch_host_function(called.append, 1)
    assert called == [1]
    with pytest.raises(InvalidValueError, match="enable_timing"):
        start.elapsed_time(gpu.event(enable_timing=False))
    with pytest.raises(InvalidValueError, match="another device"):
        start.record(weft.Device("h100").stream())


# ---------------------------------------------------------------- CUDA C++
@needs_compiler
def test_compile_and_names(gpu: weft.Device) -> None:
    program = gpu.compile(
        """
        __device__ int counter = 3;
        __constant__ float table[2];
        namespace ns { template <class T> __global__ void scale(T* x, T a) { x[threadIdx.x] *= a; } }
        __global__ void add(int* x) { x[threadIdx.x] += counter + (int)table[1]; }
        extern "C" __global__ void plain() {}
        """,
        name="names.cu",
        name_expressions=["ns::scale<float>"],
    )
    x = gpu.ones(32)
    program["ns::scale<float>"][1, 32](x, 3.0)
    program["scale"][1, 32](x, 2.0)
    assert x.numpy().tolist() == [6.0] * 32
    counts = gpu.zeros(4, np.int32)
    program.set_symbol("table", np.array([1, 10], np.float32))
    program["add"][1, 4](counts)
    assert counts.numpy().tolist() == [13] * 4
    assert program.get_symbol("counter") == 3
    program["plain"][1, 1]()
    with pytest.raises(NoSuchKernelError, match="subtract"):
        program["subtract"]


@needs_compiler
def test_printf(gpu: weft.Device, capsys) -> None:
    program = gpu.compile(
        r"""
        #include <cstdio>
        extern "C" __global__ void hello(int n, double d) {
            if (threadIdx.x < n)
                printf("thread %d of %s: %5.2f %llx %c|%-4u|%%\n", threadIdx.x, "block", d, 1ull << 40, 'x', 7u);
        }
        """
    )
    program["hello"][1, 40](34, 1.5)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"thread {i} of block:  1.50 10000000000 x|7   |%" for i in range(34))
    # Lanes of a warp print in their order.
    assert [line for line in lines if int(line.split()[1]) < 32] == [
        f"thread {i} of block:  1.50 10000000000 x|7   |%" for i in range(32)
    ]


@needs_compiler
def test_assert(gpu: weft.Device) -> None:
    program = gpu.compile(
        "#include <cassert>\n"
        'extern "C" __global__ void check(int n) {\n'
        "    assert(threadIdx.x < n);\n"
        "}\n",
        name="check.cu",
    )
    program["check"][2, 64](64)
    text = r"check.cu:3: .*block: \[0,0,0\], thread: \[40,0,0\] Assertion `threadIdx.x < n` failed.*23 more threads"
    with pytest.raises(DeviceAssertError, match=text) as caught:
        program["check"][1, 64](40)
    assert caught.value.thread == (40, 0, 0)
    program["check"][1, 32](32)


@needs_compiler
def test_device_malloc(gpu: weft.Device) -> None:
    program = gpu.compile(
        """
        extern "C" __global__ void chain(int* out) {
            int* mine = (int*)malloc(4 * sizeof(int));
            for (int i = 0; i < 4; i++) mine[i] = threadIdx.x + i;
            int sum = 0;
            for (int i = 0; i < 4; i++) sum += mine[i];
            out[threadIdx.x] = sum;
            free(mine);
        }
        extern "C" __global__ void greedy(int* out) { out[0] = malloc(1ull << 40) == nullptr; }
        """
    )
    out = gpu.zeros(64, np.int32)
    for _ in range(3):
        program["chain"][1, 64](out)
    assert out.numpy().tolist() == [4 * i + 6 for i in range(64)]
    program["greedy"][1, 1](out)
    assert out.numpy()[0] == 1


def test_heap_joins_freed_pieces() -> None:
    heap = DeviceHeap(0x1000, 1024)
    pieces = [heap.allocate(100) for _ in range(9)]
    assert all(piece % 16 == 0 for piece in pieces) and heap.allocate(100) == 0
    for piece in pieces[::2] + pieces[1::2]:
        assert heap.release(piece)
    assert not heap.release(pieces[0]) and heap.allocate(1024) == 0x1000


# ---------------------------------------------------------------- printf's formats
@pytest.mark.parametrize(
    "text, types, args",
    [
        ("%d %i %u", "iiI", (-5, 7, 4000000000)),
        ("%5d|%-5d|%05d|%+d|% d", "iiiii", (42, 42, 42, 42, 42)),
        ("%.3d|%8.3d|%08.3d|%.0d", "iiii", (5, 5, 5, 0)),
        ("%x %X %#x %o %#o", "IIIII", (255, 255, 255, 8, 8)),
        ("%f %.2f %10.3f %-10.1f| %+.1f %.0f", "dddddd", (1.5, 3.14159, 2.71828, 9.99, 0.5, 2.5)),
        ("%e %E %g %G %#g %.3g", "dddddd", (12345.678, 1e-10, 1e10, 1e-10, 1.0, 1234567.0)),
        ("%a %.2a %A", "ddd", (1.5, 3.14159, 0.1)),
        ("%f %F %e %05f", "dddd", (float("inf"), float("-inf"), float("nan"), float("inf"))),
        ("%c%c", "ii", (72, 105)),
        ("%lld %lu %llx", "qQQ", (-(1 << 40), 1 << 63, 1 << 60)),
        ("%hd %hhu", "ii", (70000, 300)),
        ("%*d|%-*d|%.*f", "iiiiid", (6, 42, 6, 42, 2, 3.14159)),
        ("100%%", "", ()),
        ("%08x %zu", "IQ", (48879, 5)),
    ],
)
def test_printf_formats_as_c_does(text: str, types: str, args: tuple) -> None:
    import ctypes
    import struct

    packed = b""
    for code, value in zip(types, args):
        size = struct.calcsize(code)
        packed += bytes(-len(packed) % size) + struct.pack("<" + code, value)
    parts = parse_format(text.encode())
    assert argument_bytes(parts) == len(packed)
    kinds = {"i": ctypes.c_int, "I": ctypes.c_uint, "d": ctypes.c_double, "q": ctypes.c_int64, "Q": ctypes.c_uint64}
    buffer = ctypes.create_string_buffer(1000)
    ctypes.CDLL(None).snprintf(buffer, 1000, text.encode(), *(kinds[code](value) for code, value in zip(types, args)))
    assert format_printf(parts, packed, lambda address: b"") == buffer.value


def test_printf_strings_and_pointers() -> None:
    import struct

    packed = struct.pack("<QQQ", 1, 0, 0x7F00)
    parts = parse_format(b"[%6s] [%s] %p %y")
    assert format_printf(parts, packed, lambda address: b"abc") == b"[   abc] [(null)] 0x7f00 %y"


# ---------------------------------------------------------------- the cache
def test_cached_programs_need_no_parsing(tmp_path: Path, monkeypatch) -> None:
    run_saxpy(weft.Device("h100", cache_dir=tmp_path))
    monkeypatch.setattr("weft.ptx.parser.parse_module", None)
    gpu = weft.Device("h100", cache_dir=tmp_path)
    run_saxpy(gpu)
    x = gpu.ones(10)
    best = 1.0
    for _ in range(5):
        other = weft.Device("h100", cache_dir=tmp_path)
        x = other.ones(10)
        start = time.perf_counter()
        other.load(SAXPY)["saxpy"][1, 128](10, 2.0, x, x)
        best = min(best, time.perf_counter() - start)
    assert best < 0.02, f"load and first launch from the cache took {best * 1e3:.1f} ms"


def test_a_damaged_cache_is_rebuilt(tmp_path: Path) -> None:
    run_saxpy(weft.Device("h100", cache_dir=tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for damage in (lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:-1] + b"\0", lambda d: d[::-1]):
        for path in files:
            path.write_bytes(damage(path.read_bytes()))
        run_saxpy(weft.Device("h100", cache_dir=tmp_path))


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    gpu = weft.Device("h100", cache_dir=blocked / "cache")
    with pytest.warns(UserWarning, match="compiled kernels are not kept.*WEFT_CACHE_DIR"):
        run_saxpy(gpu)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_saxpy(gpu)


def test_import_is_quick() -> None:
    code = (
        "import time; t = time.perf_counter(); import weft, sys; "
        "print(time.perf_counter() - t, 'llvmlite' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(weft.__file__).parents[1])}
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        seconds, llvm = done.stdout.split()
        assert llvm == "False"
        times.append(float(seconds))
    assert min(times) < 0.5, times


def test_alloca_gives_each_thread_stack_of_its_own():
    gpu = weft.Device("a100")
    source = (Path(__file__).parent / "ptx" / "alloca.ptx").read_text()
    out = gpu.zeros((40, 2), np.uint32)
    gpu.load(source, "alloca.ptx")["stacked"][1, 40](out)
    t = np.arange(40)
    np.testing.assert_array_equal(out.numpy(), np.stack([4 * t + 4 + 3 * t, 7 + t], 1))
