"""The launch path: arguments, shapes, workers, faults, time limits, host calls. Machine code is written by hand here
(tests/handmade.py), so that the runtime is tested on its own."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time

import numpy as np
import pytest
from handmade import CLAIM, COUNT, EMPTY, SPIN, fault_body, load_handmade

import weft
from weft.codegen import abi
from weft.errors import (
    CooperativeLaunchError,
    DeadlockError,
    IllegalAddressError,
    InvalidConfigurationError,
    InvalidDevicePointerError,
    InvalidSymbolError,
    InvalidValueError,
    LaunchResourcesError,
    LaunchTimeoutError,
    MisalignedAddressError,
    NoSuchKernelError,
    OutOfMemoryError,
    TrapError,
)


@pytest.fixture(scope="module")
def gpu() -> weft.Device:
    return weft.Device("h100", threads=2)


@pytest.fixture(scope="module")
def count(gpu):
    return load_handmade(gpu, ".param .u64 counter", COUNT)


def works(gpu, count) -> None:
    counter = gpu.zeros(1, np.int32)
    count[77, 32](counter)
    assert counter.numpy().tolist() == [77]


# ---------------------------------------------------------------- blocks and workers
@pytest.mark.parametrize("grid", [1, 2, 63, 1000, (3, 5, 7), (100_000,), [4, 4]])
def test_every_block_runs_once(gpu, count, grid) -> None:
    counter = gpu.zeros(1, np.int32)
    count[grid, 64](counter)
    assert counter.numpy()[0] == np.prod(grid)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_any_number_of_workers(threads: int) -> None:
    gpu = weft.Device("h100", threads=threads)
    kernel = load_handmade(gpu, ".param .u64 counter", COUNT)
    counter = gpu.zeros(1, np.int32)
    kernel[5000, 32](counter)
    assert counter.numpy()[0] == 5000


@pytest.mark.parametrize("warps", [1, 100, 1000, 100_000])
def test_straight_line_kernels_in_the_calling_thread_and_shared(gpu, warps: int) -> None:
    kernel = load_handmade(gpu, ".param .u64 counter", COUNT, has_loops=False)
    counter = gpu.zeros(1, np.int32)
    for _ in range(20):
        kernel[warps, 32](counter)
    assert counter.numpy()[0] == 20 * warps


ORDER = CLAIM + """
work:
  %order = load ptr, ptr %l.block_order
  %plain = icmp eq ptr %order, null
  br i1 %plain, label %write, label %look
look:
  %entry = getelementptr i64, ptr %order, i64 %block
  %found = load i64, ptr %entry
  br label %write
write:
  %index = phi i64 [ %block, %work ], [ %found, %look ]
  %out = load ptr, ptr %params
  %slot = getelementptr i64, ptr %out, i64 %block
  store i64 %index, ptr %slot
  br label %claim
"""


def test_deterministic_order_and_seeds() -> None:
    gpu = weft.Device("h100", deterministic=True)
    assert gpu.threads == 1
    kernel = load_handmade(gpu, ".param .u64 out", ORDER)
    out = gpu.zeros(100, np.int64)
    kernel[100, 32](out)
    assert out.numpy().tolist() == list(range(100))
    kernel[100, 32](out, seed=5)
    first = out.numpy()
    assert sorted(first) == list(range(100)) and first.tolist() != list(range(100))
    kernel[100, 32](out, seed=5)
    assert np.array_equal(out.numpy(), first)
    kernel[100, 32](out, seed=6)
    assert not np.array_equal(out.numpy(), first)
    kernel[100, 32](out)
    assert out.numpy().tolist() == list(range(100))
    seeded = weft.Device("h100", seed=5)
    kernel = load_handmade(seeded, ".param .u64 out", ORDER)
    out = seeded.zeros(100, np.int64)
    kernel[100, 32](out, deterministic=True)
    assert np.array_equal(out.numpy(), first)


# Stands for the general scheduler: asks for one more block memory until it has 500.
GROW = """
  %capacity = load i64, ptr %w.capacity
  %enough = icmp sge i64 %capacity, 500
  br i1 %enough, label %done, label %ask
ask:
  %blocks = load ptr, ptr %w.blocks
  %stride = load i64, ptr %w.block_stride
  %last = sub i64 %capacity, 1
  %offset = mul i64 %last, %stride
  %place = getelementptr i8, ptr %blocks, i64 %offset
  store i64 1, ptr %place
  store i32 1, ptr %w.need_blocks
  ret void
done:
  %out = load ptr, ptr %params
  %index = load i32, ptr %w.index
  %slot = getelementptr i64, ptr %out, i32 %index
  store i64 %capacity, ptr %slot
  ret void
"""


def test_block_memories_are_granted_on_demand(gpu) -> None:
    kernel = load_handmade(gpu, ".param .u64 out", GROW, has_barriers=True, static_shared_bytes=1000)
    out = gpu.zeros(2, np.int64)
    kernel[4096, 64](out)
    assert (out.numpy() >= 500).all()


def test_block_memories_end_with_the_host(gpu, count, monkeypatch) -> None:
    from weft.runtime import workers

    kernel = load_handmade(gpu, ".param .u64 out", GROW, has_barriers=True, local_bytes=4096)
    monkeypatch.setattr(workers, "available_bytes", lambda: 300 << 20)
    with pytest.raises(OutOfMemoryError, match="on the host"):
        kernel[4096, 1024](gpu.zeros(2, np.int64))
    monkeypatch.undo()
    works(gpu, count)


# Every worker's block memory begins on a 64-byte boundary and its stack limit lies below the stack.
ENVIRONMENT = """
  %here = alloca i64
  %limit = load i64, ptr %w.stack_limit
  %stack = ptrtoint ptr %here to i64
  %room = sub i64 %stack, %limit
  %blocks = load i64, ptr %w.blocks
  %out = load ptr, ptr %params
  store i64 %room, ptr %out
  %second = getelementptr i64, ptr %out, i64 1
  store i64 %blocks, ptr %second
  ret void
"""


@pytest.mark.parametrize("has_loops", [True, False])
def test_stack_limits(gpu, has_loops: bool) -> None:
    kernel = load_handmade(gpu, ".param .u64 out", ENVIRONMENT, has_loops=has_loops)
    out = gpu.zeros(2, np.int64)
    kernel[1, 32](out)
    room, blocks = out.numpy()
    least = 200 << 20 if has_loops else 1 << 20
    assert least < room < 300 << 20 or (not has_loops and room > 1 << 20)
    assert blocks % 64 == 0


def test_launches_from_many_threads(gpu, count) -> None:
    counters = [gpu.zeros(1, np.int32) for _ in range(6)]
    errors = []

    def work(counter) -> None:
        try:
            for _ in range(50):
                count[20, 32](counter)
                gpu.zeros(100)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(counter,)) for counter in counters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [int(c.numpy()[0]) for c in counters] == [1000] * 6


def test_a_forked_child_has_workers_of_its_own(gpu, count) -> None:
    works(gpu, count)
    child = os.fork()
    if child == 0:
        try:
            works(gpu, count)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    works(gpu, count)


# ---------------------------------------------------------------- shapes
@pytest.mark.parametrize(
    "grid, block, found",
    [
        (0, 32, "x is 0"),
        (1, 0, "x is 0"),
        (1, 1025, "x is 1025"),
        (1, (1, 1, 65), "z is 65"),
        (1, (32, 33), "1056 threads"),
        ((1, 65536), 32, "y is 65536"),
        (1 << 31, 32, "x is 2147483648"),
        (-1, 32, "x is -1"),
    ],
)
def test_shapes_that_the_chip_refuses(gpu, count, grid, block, found: str) -> None:
    with pytest.raises(InvalidConfigurationError, match=f"invalid configuration argument: kernel k.*{found}"):
        count[grid, block]
    works(gpu, count)


def test_shapes_that_are_no_shapes(count) -> None:
    for config in (5, (1,), (1, 2, None, 0, 0)):
        with pytest.raises(TypeError, match=r"expected \[grid, block\]"):
            count[config]
    for config in ((1.5, 32), ("a", 32), ((1, 2, 3, 4), 32)):
        with pytest.raises(TypeError, match="bad grid"):
            count[config]
    with pytest.raises(TypeError, match="needs a launch shape"):
        count(1)


def test_launch_bounds(gpu) -> None:
    text = (
        ".version 8.0\n.target sm_80\n.address_size 64\n"
        ".entry bounded() .maxntid 128, 1, 1 { ret; }\n.entry exact() .reqntid 8, 8, 1 { ret; }\n"
    )
    program = gpu.load(text)
    program["bounded"][1, 128]
    with pytest.raises(LaunchResourcesError, match="at most 128 threads per block.*found 256"):
        program["bounded"][1, 256]
    program["exact"][1, (8, 8)]
    with pytest.raises(InvalidConfigurationError, match=r"blocks of \(8, 8, 1\) \(.reqntid\), found \(64, 1, 1\)"):
        program["exact"][1, 64]


def test_shared_memory_limits(gpu, count) -> None:
    counter = gpu.zeros(1, np.int32)
    most = 227 << 10
    count[1, 32, None, most](counter)
    with pytest.raises(LaunchResourcesError, match=f"asks for {most + 1} bytes .* {most} bytes are allowed on h100"):
        count[1, 32, None, most + 1]
    with pytest.raises(LaunchResourcesError):
        count[1, 32](counter, shared_bytes=most + 1)
    static = load_handmade(gpu, ".param .u64 counter", COUNT, static_shared_bytes=1024)
    static[1, 32](counter, shared_bytes=most - 1024)
    for _ in range(2):
        with pytest.raises(LaunchResourcesError, match="beside 1024 bytes of static shared memory"):
            static[1, 32](counter, shared_bytes=most - 1023)
    static.max_dynamic_shared_bytes = 100
    with pytest.raises(LaunchResourcesError, match="100 bytes are allowed"):
        static[1, 32](counter, shared_bytes=101)
    with pytest.raises(InvalidValueError):
        count[1, 32](counter, shared_bytes=-1)


def test_cooperative_launches(gpu) -> None:
    kernel = load_handmade(gpu, ".param .u64 counter", COUNT, registers=32)
    counter = gpu.zeros(1, np.int32)
    kernel[132 * 2, 1024](counter, cooperative=True)
    assert counter.numpy()[0] == 264
    text = "too many blocks in cooperative launch.* 265 blocks; h100 holds 264"
    with pytest.raises(CooperativeLaunchError, match=text):
        kernel[132 * 2 + 1, 1024](counter, cooperative=True)
    kernel[132 * 2 + 1, 1024](counter)


def test_streams(gpu, count) -> None:
    counter = gpu.zeros(1, np.int32)
    stream = gpu.stream()
    count[3, 32, stream](counter)
    count[3, 32, 0](counter)
    count[3, 32](counter, stream=stream)
    assert counter.numpy()[0] == 9
    with pytest.raises(InvalidValueError, match="a stream of another device"):
        count[3, 32, weft.Device("h100").stream()](counter)
    with pytest.raises(InvalidValueError, match="expected a stream"):
        count[3, 32, "fast"](counter)
    with pytest.raises(TypeError, match="unknown launch option steam"):
        count[3, 32](counter, steam=stream)


# ---------------------------------------------------------------- arguments
DUMP_BYTES = 256
DUMP = f"""
  %out = load ptr, ptr %params
  call void @llvm.memcpy.p0.p0.i64(ptr %out, ptr %params, i64 {DUMP_BYTES}, i1 false)
  ret void
"""


def packed(gpu, params: str, *args) -> bytes:
    """The parameter buffer that a kernel sees, without its first eight bytes."""
    kernel = load_handmade(
        gpu, ".param .u64 out" + params, DUMP, declarations="declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
        has_loops=False,
    )  # fmt: skip
    out = gpu.zeros(DUMP_BYTES, np.uint8)
    kernel[1, 32](out, *args)
    return out.numpy().tobytes()[8:]


class Pair(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int), ("b", ctypes.c_double)]


@pytest.mark.parametrize(
    "params, args, wanted",
    [
        (", .param .u32 a", (7,), struct.pack("<I", 7)),
        (", .param .u32 a", (-1,), struct.pack("<i", -1)),
        (", .param .s32 a", (0xFFFFFFFF,), struct.pack("<i", -1)),
        (", .param .u32 a", (np.int64(5),), struct.pack("<I", 5)),
        (", .param .u32 a", (np.array(5),), struct.pack("<I", 5)),
        (", .param .u32 a", (True,), struct.pack("<I", 1)),
        (", .param .u32 a", (ctypes.c_int(-3),), struct.pack("<i", -3)),
        (", .param .f32 a", (1.5,), struct.pack("<f", 1.5)),
        (", .param .f32 a", (2,), struct.pack("<f", 2)),
        (", .param .f32 a", (1e300,), struct.pack("<f", float("inf"))),
        (", .param .f32 a", (np.float64(0.1),), struct.pack("<f", 0.1)),
        (", .param .f32 a", (float("-inf"),), struct.pack("<f", float("-inf"))),
        (", .param .f64 a", (np.float32(0.5),), struct.pack("<d", 0.5)),
        (", .param .f64 a", (3,), struct.pack("<d", 3)),
        (", .param .b32 a", (1.5,), struct.pack("<f", 1.5)),
        (", .param .b32 a", (np.float32(1.5),), struct.pack("<f", 1.5)),
        (", .param .b32 a", (np.float64(1.5),), struct.pack("<f", 1.5)),
        (", .param .b32 a", (3,), struct.pack("<I", 3)),
        (", .param .b64 a", (1.5,), struct.pack("<d", 1.5)),
        (", .param .b64 a", (3,), struct.pack("<Q", 3)),
        (", .param .u64 a", (-1,), struct.pack("<q", -1)),
        (", .param .u64 a", (None,), bytes(8)),
        (", .param .b16 a", (np.float16(1.5),), struct.pack("<e", 1.5)),
        (", .param .u8 a, .param .u32 b", (255, 1), struct.pack("<BxxxI", 255, 1)),
        (", .param .u8 a, .param .u8 b, .param .u64 c", (False, np.bool_(True), 9), struct.pack("<BBxxxxxxQ", 0, 1, 9)),
        (", .param .align 8 .b8 a[16]", (Pair(3, 2.5),), bytes(Pair(3, 2.5))),
        (", .param .align 4 .b8 a[12]", (np.array([1, 2, 3], np.float32),), struct.pack("<3f", 1, 2, 3)),
        (", .param .align 4 .b8 a[3], .param .u16 b", (b"abc", 513), b"abc\0\x01\x02"),
        (
            ", .param .align 8 .b8 a[16]",
            (np.array([(1, 2.0)], [("x", "i8"), ("y", "f8")])[0],),
            struct.pack("<qd", 1, 2.0),
        ),
    ],
)
def test_packing(gpu, params: str, args: tuple, wanted: bytes) -> None:
    assert packed(gpu, params, *args)[: len(wanted)] == wanted


def test_pointers(gpu) -> None:
    x = gpu.zeros(10, np.float32)

    class Foreign:
        __cuda_array_interface__ = x[3:].__cuda_array_interface__

    params = "".join(f", .param .u64 p{i}" for i in range(4))
    found = struct.unpack_from("<4Q", packed(gpu, params, x, x[2:], Foreign(), x.ptr))
    assert found == (x.ptr, x.ptr + 8, x.ptr + 12, x.ptr)
    assert struct.unpack_from("<Q", packed(gpu, ", .param .u64 p", gpu.zeros(0))) == (0,)


@pytest.mark.parametrize(
    "type_, value, error, text",
    [
        (".u32", 1.5, TypeError, "expected an integer, found float 1.5"),
        (".u32", "1", TypeError, "expected an integer, found str '1'"),
        (".u32", np.zeros(3), TypeError, "expected an integer, found a NumPy array of float64"),
        (".u32", 1 << 32, OverflowError, "4294967296 does not fit 32 bits"),
        (".u8", -129, OverflowError, "does not fit 8 bits"),
        (".u64", 1 << 64, OverflowError, "does not fit 64 bits"),
        (".f32", "x", TypeError, "expected a number"),
        (".f32", np.zeros(3, np.float32), TypeError, "expected a number"),
        (".f64", None, TypeError, "expected a number, found NoneType"),
        (".u64", 1.0, TypeError, "expected a device array, a pointer or an integer, found float 1.0"),
        (".u64", np.zeros(3), TypeError, "host memory; gpu.array"),
        (".u64", b"abc", TypeError, "host memory"),
        (".u64", ctypes.pointer(ctypes.c_int(1)), TypeError, "points into host memory"),
        (".b16", 1.5, TypeError, "np.float16"),
        (".align 4 .b8 s[8]", 5, TypeError, "structure of 8 bytes"),
        (".align 4 .b8 s[8]", b"1234", TypeError, "of 4 bytes"),
    ],
)
def test_arguments_of_the_wrong_kind(gpu, count, type_: str, value, error, text: str) -> None:
    params = f".param .u32 n, .param {type_}" + ("" if "[" in type_ else " a")
    kernel = load_handmade(gpu, params, EMPTY)
    with pytest.raises(error, match="kernel k, argument 1 .*" + text):
        kernel[1, 32](1, value)
    works(gpu, count)


def test_wrong_number_of_arguments(gpu, count) -> None:
    kernel = load_handmade(gpu, ".param .u32 n, .param .f32 a, .param .align 8 .b8 s[16]", EMPTY)
    with pytest.raises(TypeError, match=r"takes 3 arguments \(.u32, .f32, structure of 16 bytes\), found 1"):
        kernel[1, 32](1)
    with pytest.raises(TypeError, match="takes 1 argument .*, found 2"):
        count[1, 32](1, 2)


def test_arrays_that_are_not_this_devices(gpu, count) -> None:
    other = weft.Device("h100")
    with pytest.raises(InvalidDevicePointerError, match="belongs to another device"):
        count[1, 32](other.zeros(1, np.int32))

    class Foreign:
        __cuda_array_interface__ = other.zeros(1).__cuda_array_interface__

    with pytest.raises(InvalidDevicePointerError, match="Foreign at .* is no live memory"):
        count[1, 32](Foreign())
    freed = gpu.zeros(1, np.int32)
    freed.free()
    with pytest.raises(InvalidDevicePointerError, match="was freed"):
        count[1, 32](freed)
    works(gpu, count)


# ---------------------------------------------------------------- stops and faults
def test_time_limit(gpu, count) -> None:
    spin = load_handmade(gpu, "", SPIN)
    start = time.monotonic()
    with pytest.raises(LaunchTimeoutError, match="the launch timed out .* limit of 0.2 s, in kernel k"):
        spin[4, 32](time_limit=0.2)
    assert 0.2 <= time.monotonic() - start < 5
    works(gpu, count)
    limited = weft.Device("h100", time_limit=0.2)
    with pytest.raises(LaunchTimeoutError):
        load_handmade(limited, "", SPIN)[4, 32]()
    with pytest.raises(InvalidConfigurationError, match="time limit"):
        spin[4, 32](time_limit=0)


def test_ctrl_c_stops_a_launch(gpu, count) -> None:
    spin = load_handmade(gpu, "", SPIN)
    for _ in range(5):
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            spin[4, 32]()
        timer.join()
        works(gpu, count)


def test_ctrl_c_at_any_moment(gpu, count) -> None:
    """Interrupts that hit the hand-over to the workers leave the device usable."""
    counter = gpu.zeros(1, np.int32)
    short = load_handmade(gpu, ".param .u64 counter", COUNT, has_loops=False)
    stop, shots, hits = threading.Event(), 0, 0

    def send() -> None:
        while not stop.wait(0.0007):
            os.kill(os.getpid(), signal.SIGINT)

    def handle(*_) -> None:
        nonlocal shots
        if shots:
            shots -= 1
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                try:
                    shots = 2  # the second may hit the handling of the first
                    for _ in range(100):
                        count[200, 32](counter)
                        short[3000, 32](counter)
                finally:
                    hits += 1
                    shots = 0
            except KeyboardInterrupt:
                shots = 0
    finally:
        shots = 0
        stop.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert hits > 20
    for _ in range(20):
        works(gpu, count)


@pytest.mark.parametrize(
    "kind, address, error, text",
    [
        (abi.FaultKind.ADDRESS, "0", IllegalAddressError, "illegal memory access .* of 4 bytes .* a null pointer"),
        (abi.FaultKind.MISALIGNED, "4097", MisalignedAddressError, "misaligned address: .* 1 byte past a multiple"),
        (abi.FaultKind.TRAP, "0", TrapError, "trap"),
        (abi.FaultKind.DEADLOCK, "0", DeadlockError, "deadlock"),
    ],
)
@pytest.mark.parametrize("has_loops", [True, False])
def test_faults(gpu, count, kind, address, error, text, has_loops: bool) -> None:
    kernel = load_handmade(gpu, "", fault_body(kind, address, block=7, warp=1, lane=3), has_loops=has_loops)
    with pytest.raises(error, match=text) as caught:
        kernel[(4, 4), (8, 16)]()
    fault = caught.value
    assert fault.kernel == "k" and fault.block == (3, 1, 0) and fault.thread == (3, 4, 0) and fault.ptx_line == 5
    assert "at PTX line 5, block (3, 1, 0), thread (3, 4, 0)" in str(fault)
    assert fault.address == (int(address) if kind in (abi.FaultKind.ADDRESS, abi.FaultKind.MISALIGNED) else None)
    works(gpu, count)


def test_a_device_is_forgotten_with_its_memory() -> None:
    import gc
    import weakref

    gpu = weft.Device("h100", threads=2)
    works(gpu, load_handmade(gpu, ".param .u64 counter", COUNT))
    works(gpu, load_handmade(gpu, ".param .u64 counter", COUNT, has_loops=False))
    arena = weakref.ref(gpu.arena)
    del gpu
    gc.collect()
    assert arena() is None


# ---------------------------------------------------------------- symbols
VARIABLES = """
.visible .global .align 4 .u32 counter = 7;
.visible .const .align 4 .f32 table[4] = {0f3F800000, 0f40000000, 0f40400000, 0f40800000};
.global .align 8 .u64 pointer = generic(counter);
.global .align 4 .b8 buffer[64];
"""


def test_symbols(gpu) -> None:
    kernel = load_handmade(
        gpu, "", "  %symbols = load ptr, ptr %l.symbols\n  %counter = load ptr, ptr %symbols\n"
        "  %old = atomicrmw add ptr %counter, i32 5 monotonic\n  ret void",
        variables=VARIABLES, symbols=("counter", "table"), has_loops=False,
    )  # fmt: skip
    program = kernel.program
    assert program.get_symbol("counter") == 7
    kernel[1, 32]()
    assert program.get_symbol("counter") == 12
    program.set_symbol("counter", 100)
    kernel[1, 32]()
    assert program.symbol("counter").numpy() == 105
    assert program.get_symbol("table", np.float32).tolist() == [1, 2, 3, 4]
    program.set_symbol("table", np.array([9, 8], np.float32), offset=8)
    assert program.get_symbol("table", np.float32).tolist() == [1, 2, 9, 8]
    assert program.get_symbol("pointer") == program.symbol("counter").ptr
    program.set_symbol("buffer", b"hello")
    assert program.get_symbol("buffer").tobytes().startswith(b"hello\0")
    with pytest.raises(InvalidValueError, match="do not fit counter, which has 4 bytes"):
        program.set_symbol("counter", np.zeros(2, np.int32))
    with pytest.raises(InvalidSymbolError, match="no variable 'count' in k.ptx; it has: counter, table"):
        program.symbol("count")


def test_programs(gpu, count) -> None:
    program = count.program
    assert program.kernels == ("k",) and "k" in program and list(program) == ["k"]
    assert program["k"] is program["k"] and count[1, 32] is count[1, 32]
    with pytest.raises(NoSuchKernelError, match="no kernel 'j' in k.ptx; it has: k"):
        program["j"]
    with pytest.raises(TypeError, match="by its name"):
        program[0]
    found = count.attributes
    assert found["maxThreadsPerBlock"] == 1024 and found["ptxVersion"] == 80 and found["binaryVersion"] == 90
    assert count.occupancy(256).blocks_per_sm == 8 and count.occupancy(256).estimated


# ---------------------------------------------------------------- overhead
def test_launch_overhead(gpu) -> None:
    """An empty kernel takes well under 30 us, packing three arguments included."""
    kernel = load_handmade(gpu, ".param .u64 p, .param .u32 n, .param .f32 a", EMPTY, has_loops=False)
    x = gpu.zeros(1)
    kernel[1, 32](x, 3, 1.5)
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(200):
            kernel[1, 32](x, 3, 1.5)
        best = min(best, (time.perf_counter() - start) / 200)
    assert best < 30e-6, f"{best * 1e6:.1f} us"
