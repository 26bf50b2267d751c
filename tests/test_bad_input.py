"""Wrong programs, wrong arguments, wrong surroundings: each gives a clear error or the right answer, and the device
works afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_device import SAXPY, needs_compiler, run_saxpy

import weft
from weft.errors import (
    CompileError,
    DeadlockError,
    IllegalAddressError,
    InvalidConfigurationError,
    InvalidDevicePointerError,
    LaunchResourcesError,
    LaunchTimeoutError,
    MisalignedAddressError,
    OutOfMemoryError,
    PtxError,
    PtxSyntaxError,
    SourceError,
    StackOverflowError,
    TrapError,
    UnsupportedError,
)

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


@pytest.fixture(scope="module")
def gpu() -> weft.Device:
    return weft.Device("h100", threads=2)


@pytest.fixture(autouse=True)
def device_works_afterwards(gpu):
    yield
    run_saxpy(gpu)


def kernel(gpu: weft.Device, params: str, body: str, name: str = "bad.ptx") -> weft.Kernel:
    """A kernel `k`; registers %r, %rd, %f, %p are declared."""
    registers = ".reg .pred %p<9>; .reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<20>;"
    return gpu.load(f"{HEAD}.visible .entry k({params}) {{\n{registers}\n{body}\n}}\n", name)["k"]


# ---------------------------------------------------------------- PTX text
@pytest.mark.parametrize(
    "text, line",
    [
        ("", 0),
        ("not ptx at all", 1),
        (".version 8.0\n.target sm_80\n.visible .entry k( {\n", 3),
        (HEAD + ".visible .entry k() {\n .reg .b32 %r<9>;\n add.u32 %r1, %r2, %r3\n}\n", 7),
        (HEAD + ".visible .entry k() {\n  ret;\n", 0),
        (HEAD + ".visible .entry k() {\n .reg .b99 %r<3>;\n ret;\n}\n", 5),
        (HEAD + ".visible .entry k() { ret; }\n.visible .entry k() { ret; }\n", 5),
        (SAXPY.replace("ld.param.f32 %f1, [a];", "ld.param.f32 %f1, [nothing];"), 12),
        ("\x7fELF" + "\0" * 100, 0),
    ],
)
def test_malformed_ptx(gpu, text: str, line: int) -> None:
    with pytest.raises(SourceError) as caught:
        program = gpu.load(text, "bad.ptx")
        for name in program.kernels:
            program[name].compile(32)
    assert "bad.ptx" in str(caught.value) or not caught.value.line
    if line:
        assert caught.value.line == line, caught.value


def test_every_truncation_of_a_program(gpu) -> None:
    for length in range(0, len(SAXPY) - 3, 37):
        with pytest.raises(SourceError):
            program = gpu.load(SAXPY[:length])
            program["saxpy"].compile(32) if "saxpy" in program else gpu.load("?")


@pytest.mark.parametrize(
    "line, found",
    [
        ("frobnicate.u32 %r1, %r2;", "frobnicate"),
        ("add.u33 %r1, %r2, %r3;", "u33"),
        ("add.f99 %f1, %f2, %f3;", "f99"),
        ("shl.b8 %r1, %r2, 3;", "b8"),
        ("add.u32 %r1, %r2, %nosuch;", "nosuch"),
        ("mov.u32 %r1, %nosuch.x;", "nosuch"),
        ("bra NOWHERE;", "NOWHERE"),
        ("call nobody, ();", "nobody"),
    ],
)
def test_unknown_instructions_and_names(gpu, line: str, found: str) -> None:
    with pytest.raises((PtxError, PtxSyntaxError, UnsupportedError), match=found) as caught:
        kernel(gpu, "", line + "\nret;").compile(32)
    assert caught.value.line == 6


@needs_compiler
def test_cuda_that_does_not_compile(gpu) -> None:
    with pytest.raises(CompileError, match="undeclared_name"):
        gpu.compile("__global__ void k() { undeclared_name = 1; }")


# ---------------------------------------------------------------- arguments and shapes
def test_wrong_arguments(gpu) -> None:
    saxpy = gpu.load(SAXPY)["saxpy"]
    x = gpu.ones(10)
    with pytest.raises(TypeError, match=r"saxpy takes 4 arguments \(.u32, .f32, .u64, .u64\), found 3"):
        saxpy[1, 32](10, 2.0, x)
    with pytest.raises(TypeError, match="argument 0 .*expected an integer, found float"):
        saxpy[1, 32](10.0, 2.0, x, x)
    with pytest.raises(TypeError, match="argument 0 .*found a device array of float32|expected an integer"):
        saxpy[1, 32](x, 2.0, x, 10)
    with pytest.raises(TypeError, match="argument 2 .*NumPy array .* host memory"):
        saxpy[1, 32](10, 2.0, np.ones(10, np.float32), x)


def test_host_pointers(gpu) -> None:
    host = np.ones(1000, np.float32)
    saxpy = gpu.load(SAXPY)["saxpy"]
    with pytest.raises(IllegalAddressError, match="host pointer"):
        saxpy[1, 32](10, 2.0, host.ctypes.data, gpu.ones(10))
    mapped = gpu.register(host)
    y = gpu.ones(10)
    saxpy[1, 32](10, 2.0, mapped, y)
    assert y.numpy().tolist() == [3.0] * 10


def test_freed_and_foreign_arrays(gpu) -> None:
    saxpy = gpu.load(SAXPY)["saxpy"]
    x, freed = gpu.ones(10), gpu.ones(10)
    address = freed.ptr
    freed.free()
    with pytest.raises(InvalidDevicePointerError, match="freed"):
        saxpy[1, 32](10, 2.0, freed, x)
    with pytest.raises(IllegalAddressError, match="freed memory: array of shape"):
        saxpy[1, 32](10, 2.0, address, x)
    with pytest.raises(InvalidDevicePointerError, match="another device"):
        saxpy[1, 32](10, 2.0, weft.Device("h100").ones(10), x)


def test_shapes_that_are_too_large(gpu) -> None:
    saxpy = gpu.load(SAXPY)["saxpy"]
    with pytest.raises(InvalidConfigurationError, match="2048"):
        saxpy[1, 2048]
    with pytest.raises(LaunchResourcesError, match="262144 bytes"):
        saxpy[1, 32, None, 256 << 10]


# ---------------------------------------------------------------- accesses
STORE = """
ld.param.u64 %rd1, [p];
ld.param.u64 %rd5, [offset];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd2, %r1, 4;
add.u64 %rd3, %rd1, %rd2;
add.u64 %rd3, %rd3, %rd5;
st.global.u32 [%rd3], %r1;
ret;
"""
STORE_PARAMS = ".param .u64 p, .param .u64 offset"


@pytest.mark.parametrize("threads", [32, 64, 100])
def test_out_of_bounds(gpu, threads: int) -> None:
    store = kernel(gpu, STORE_PARAMS, STORE)
    x = gpu.zeros(threads, np.int32)
    store[1, threads](x, 0)
    assert x.numpy().tolist() == list(range(threads))
    text = rf"a write of 4 bytes .st.global.u32. .* 0 bytes past the end of array of shape .{threads},., int32"
    with pytest.raises(IllegalAddressError, match=text) as caught:
        store[1, threads](x, 4)
    fault = caught.value
    assert fault.thread == (threads - 1, 0, 0) and fault.block == (0, 0, 0) and fault.ptx_line == 13
    assert fault.address == x.ptr + 4 * threads
    with pytest.raises(IllegalAddressError, match="before the start of"):
        store[1, threads](x, -4)
    for far in (1 << 40, 1 << 46, 1 << 63):
        with pytest.raises(IllegalAddressError):
            store[1, threads](x, far)


def test_misaligned(gpu) -> None:
    store = kernel(gpu, STORE_PARAMS, STORE)
    with pytest.raises(MisalignedAddressError, match="2 bytes past a multiple of 4") as caught:
        store[1, 32](gpu.zeros(100, np.int32), 2)
    assert caught.value.thread == (0, 0, 0)


def test_null_pointers(gpu) -> None:
    store = kernel(gpu, STORE_PARAMS, STORE)
    with pytest.raises(IllegalAddressError, match="a null pointer"):
        store[1, 32](None, 0)
    with pytest.raises(IllegalAddressError, match="a null pointer plus 64 bytes"):
        store[1, 1](0, 64)


def test_shared_memory_out_of_bounds(gpu) -> None:
    store = kernel(gpu, ".param .u32 n", ".shared .align 4 .b8 buffer[128];\nld.param.u32 %r1, [n];\n"
                   "mov.u32 %r2, buffer;\nadd.u32 %r3, %r2, %r1;\nst.shared.u32 [%r3], %r1;\nret;")  # fmt: skip
    store[1, 1](124)
    for offset in (128, 4096, -4, 1 << 30):
        with pytest.raises(IllegalAddressError):
            store[1, 1](offset)


def test_division_by_zero(gpu) -> None:
    divide = kernel(gpu, ".param .u64 p, .param .u32 a, .param .u32 b",
                    "ld.param.u64 %rd1, [p];\nld.param.u32 %r1, [a];\nld.param.u32 %r2, [b];\ndiv.s32 %r3, %r1, %r2;\n"
                    "rem.s32 %r4, %r1, %r2;\ndiv.u32 %r5, %r1, %r2;\nst.global.v2.u32 [%rd1], {%r3, %r4};\n"
                    "st.global.u32 [%rd1+8], %r5;\nret;")  # fmt: skip
    out = gpu.zeros(3, np.int32)
    divide[1, 1](out, 17, 5)
    assert out.numpy().tolist() == [3, 2, 3]
    divide[1, 1](out, 17, 0)  # PTX leaves the value open; it must not trap
    divide[1, 1](out, -(1 << 31), -1)


def test_trap(gpu) -> None:
    with pytest.raises(TrapError, match="trap.*in kernel k, at PTX line 6, block"):
        kernel(gpu, "", "trap;\nret;")[2, 32]()


CHECKED = """
ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [out];
mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
ld.global.b32 %r2, [%rd1];
setp.ge.s32 %p1, %r2, 100;
@%p1 bra BAD;
bar.sync 0;
st.global.b32 [%rd2], %r2;
setp.lt.s32 %p2, %r2, 0;
@%p2 bra BAD;
bar.sync 0;
add.s32 %r2, %r2, 1;
setp.eq.s32 %p2, %r1, 5;
@%p2 bra FIVE;
st.global.b32 [%rd2+128], %r2;
ret;
FIVE: st.global.b32 [%rd2+128], 777;
ret;
BAD: trap;
"""


def test_branches_to_a_trap_that_are_not_taken(gpu) -> None:
    checked = kernel(gpu, ".param .u64 x, .param .u64 out", CHECKED)
    out = gpu.zeros((2, 32), np.int32)
    x = np.arange(32, dtype=np.int32)
    checked[1, 32](gpu.array(x), out)
    assert np.array_equal(out.numpy(), [x, np.where(x == 5, 777, x + 1)])
    for wrong in (x + 90, x - 1):
        with pytest.raises(TrapError):
            checked[1, 32](gpu.array(wrong.astype(np.int32)), out)


# ---------------------------------------------------------------- what never ends
def test_infinite_loop_under_a_time_limit(gpu) -> None:
    loop = kernel(gpu, "", "L:\nbra L;\nret;")
    start = time.monotonic()
    with pytest.raises(LaunchTimeoutError, match="in kernel k"):
        loop[8, 64](time_limit=0.3)
    assert time.monotonic() - start < 10


def test_divergent_infinite_loop(gpu) -> None:
    body = "mov.u32 %r1, %tid.x;\nL:\nsetp.eq.u32 %p1, %r1, 5;\n@%p1 bra L;\nret;"
    with pytest.raises(LaunchTimeoutError):
        kernel(gpu, "", body)[2, 64](time_limit=0.3)


def test_waiting_for_what_never_comes(gpu) -> None:
    """A lock that nobody releases is a deadlock or runs into the time limit."""
    body = (
        "ld.param.u64 %rd1, [p];\nL:\nld.volatile.global.u32 %r1, [%rd1];\nsetp.eq.u32 %p1, %r1, 0;\n"
        "@%p1 bra L;\nret;"
    )
    with pytest.raises((DeadlockError, LaunchTimeoutError)):
        kernel(gpu, ".param .u64 p", body)[2, 64](gpu.zeros(1, np.int32), time_limit=2)


def test_deadlock_at_a_barrier(gpu) -> None:
    body = (
        "mov.u32 %r1, %tid.x;\nsetp.lt.u32 %p1, %r1, 32;\n@%p1 bra FIRST;\nbar.sync 1, 64;\nret;\n"
        "FIRST:\nbar.sync 2, 64;\nret;"
    )
    with pytest.raises(DeadlockError, match="waits at PTX line 9 .bar.sync. for barrier 1: 32 of 64 threads") as caught:
        kernel(gpu, "", body)[1, 64](time_limit=20)
    assert "barrier 2: 32 of 64" in str(caught.value)


RECURSION = """
extern "C" __device__ __noinline__ int depth(int n, int* x) { return n == 0 ? x[0] : depth(n - 1, x) + 1; }
extern "C" __global__ void recurse(int n, int* x) { x[1 + threadIdx.x] = depth(n, x); }
"""


@needs_compiler
def test_stack_overflow_in_recursion(gpu) -> None:
    recurse = gpu.compile(RECURSION)["recurse"]
    x = gpu.zeros(33, np.int32)
    recurse[1, 32](20, x)
    assert x.numpy()[1:].tolist() == [20] * 32
    with pytest.raises(StackOverflowError, match="recursion"):
        recurse[1, 32](1 << 30, x)


def run_python(code: str, **environment: str) -> subprocess.Popen:
    root = Path(__file__).parent
    path = os.pathsep.join([str(root), str(root.parent)])
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": path, **environment})  # fmt: skip


def test_ctrl_c_during_a_launch() -> None:
    code = f"""
import sys, weft
from test_device import run_saxpy
gpu = weft.Device("h100")
loop = gpu.load({HEAD!r} + ".visible .entry k() {{ L: bra L; ret; }}")["k"]
loop.compile(64)
run_saxpy(gpu)
print("ready", flush=True)
try:
    loop[8, 64]()
except KeyboardInterrupt:
    run_saxpy(gpu)
    print("works")
"""
    process = run_python(code)
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.strip() == "works" and process.returncode == 0, err


# ---------------------------------------------------------------- memory
def test_out_of_device_memory(gpu) -> None:
    with pytest.raises(OutOfMemoryError, match="tried to allocate 93.13 GiB; h100 has a capacity of 80.00 GiB"):
        gpu.empty(10**11, np.uint8)
    with pytest.raises(MemoryError):
        gpu.zeros((1 << 20, 1 << 20))


def test_more_device_memory_in_use_than_the_host_has(gpu) -> None:
    from weft.runtime.hostmemory import available_bytes

    if (available_bytes() or 1 << 60) > 70 << 30:
        pytest.skip("this host has more memory than the chip")
    kept = []
    with pytest.raises(OutOfMemoryError, match="on the host.*--dry"):
        for _ in range(80):
            kept.append(gpu.empty(1 << 30, np.uint8))
    kept.clear()


# ---------------------------------------------------------------- the cache, shared
def test_two_threads_and_one_cache(tmp_path: Path) -> None:
    errors = []

    def work() -> None:
        try:
            for _ in range(3):
                run_saxpy(weft.Device("h100", cache_dir=tmp_path))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_two_processes_and_one_cache(tmp_path: Path) -> None:
    code = (
        "import weft\nfrom test_device import run_saxpy\nfor _ in range(3): run_saxpy(weft.Device('h100'))\n"
        "print('done')"
    )
    processes = [run_python(code, WEFT_CACHE_DIR=str(tmp_path)) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert out.strip() == "done", err


def test_a_cache_damaged_while_in_use(tmp_path: Path) -> None:
    run_saxpy(weft.Device("h100", cache_dir=tmp_path))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(os.urandom(100))
    run_saxpy(weft.Device("h100", cache_dir=tmp_path))
