"""The engine against native code: `python bench/engine.py [--json FILE] [--only JOB] [--threads N] [--target avx2]`.

In: the CUDA kernels of bench/kernels, compiled with whatever CUDA C++ compiler is installed. Out: a table (and JSON)
with the speed of each as a ratio to the best native code for the same job in the same run, on one thread and on all;
the gain of all threads over one; speed against Numba's CUDA simulator; launch overhead, compile times, memory, import.
Every result is compared with NumPy's before anything is timed. The native side is PyTorch, NumPy (its OpenBLAS), and C
compiled with `gcc -O3 -march=native` (bench/native.py), whichever of them is fastest at the job.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

sys.path.append(sys.path.pop(0))  # this folder last: files in it have the names of PyTorch and Triton

import numpy as np
import passive  # noqa: F401  (before NumPy and PyTorch)
from common import Row, benchmark_parser, limit_row, median_times, print_rows, ratio_row, write_rows
from native import build_native
from probes import CHIP, KERNELS, SIMULATED, SUMS_A_BLOCK

import weft

SCALING_BAR = 1.7  # all of two threads against one
SIMULATOR_BAR = 1000.0


@dataclass
class Peers:
    """What Weft is held against, and why anything is missing. torch and native are None where they are."""

    torch: ModuleType | None
    native: object | None
    threadpoolctl: ModuleType | None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One prepared job: what a side runs, by the name it has in the table; `peers` take the thread count.

    work and unit: what one run amounts to, so that work / seconds is a rate in `unit`. check raises AssertionError
    when Weft's last result is wrong.
    """

    run: Callable[[], None]
    peers: dict[str, Callable[[int], object]]
    work: float
    unit: str
    check: Callable[[], None]


@dataclass(frozen=True)
class Job:
    """A row of JOBS: `prepare(gpu, peers, quick)` makes its Case; `bar` is the ratio asked for."""

    name: str
    bar: float
    prepare: Callable[..., Case]


def load_peers() -> Peers:
    missing = {}
    try:
        import torch
    except ImportError:
        torch = None
        missing["PyTorch"] = "not installed: pip install torch==2.13.0"
    try:
        import threadpoolctl
    except ImportError:
        threadpoolctl = None
        missing["OpenBLAS on a set number of threads"] = "threadpoolctl is not installed"
    native = build_native()
    if isinstance(native, str):
        missing["C compiled with gcc"] = native
        native = None
    return Peers(torch, native, threadpoolctl, missing)


def compile_kernels(gpu, name: str):
    return gpu.compile(KERNELS / name)


def expect_close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    difference = float(np.max(np.abs(found - wanted)))
    scale = float(np.max(np.abs(wanted)))
    assert difference <= tolerance * scale, f"wrong result: difference {difference:.3g}, scale {scale:.3g}"


# ---------------------------------------------------------------- jobs
def prepare_saxpy(gpu, peers: Peers, quick: bool, *, kernel: str, blocks: int | None) -> Case:
    n = 1 << (20 if quick else 24)
    random = np.random.default_rng(1)
    x, y = random.random(n, dtype=np.float32), random.random(n, dtype=np.float32)
    device_x, device_y = gpu.array(x), gpu.array(y)
    function = compile_kernels(gpu, "saxpy.cu")[kernel]
    grid = blocks or (n + 255) // 256
    a = 1e-3  # small, so that y stays near where it began however often it is updated
    steps = 0

    def run() -> None:
        nonlocal steps
        function[grid, 256](n, a, device_x, device_y)
        steps += 1

    def check() -> None:
        expect_close(device_y.numpy(), y + steps * np.float32(a) * x, 1e-4)

    host_y, product = y.copy(), np.empty_like(x)

    def numpy_saxpy(threads: int) -> None:
        np.multiply(x, np.float32(a), out=product)
        np.add(host_y, product, out=host_y)

    sides: dict[str, Callable[[int], object]] = {"NumPy": numpy_saxpy}
    if peers.torch is not None:
        torch_x, torch_y = peers.torch.from_numpy(x), peers.torch.from_numpy(y.copy())
        sides["PyTorch"] = lambda threads: torch_y.add_(torch_x, alpha=a)
    return Case(run, sides, 12 * n / 1e9, "GB/s", check)


def saxpy_plain(gpu, peers: Peers, quick: bool) -> Case:
    return prepare_saxpy(gpu, peers, quick, kernel="saxpy", blocks=None)


def saxpy_grid_stride(gpu, peers: Peers, quick: bool) -> Case:
    return prepare_saxpy(gpu, peers, quick, kernel="saxpy_grid_stride", blocks=128)


def reduction(gpu, peers: Peers, quick: bool) -> Case:
    n = 1 << (20 if quick else 24)
    x = np.random.default_rng(2).random(n, dtype=np.float32)
    source = gpu.array(x)
    function = compile_kernels(gpu, "reduce.cu")["block_sum"]
    stages = []
    count, current = n, source
    while count > 1:
        blocks = -(-count // SUMS_A_BLOCK)
        sums = gpu.zeros(blocks, np.float32)
        stages.append((count, blocks, current, sums))
        count, current = blocks, sums

    def run() -> None:
        for size, blocks, array, sums in stages:
            function[blocks, 256](size, array, sums)

    def check() -> None:
        expect_close(current.numpy(), np.array([x.sum(dtype=np.float64)]), 1e-5)

    sides: dict[str, Callable[[int], object]] = {"NumPy": lambda threads: x.sum()}
    if peers.torch is not None:
        tensor = peers.torch.from_numpy(x)
        sides = {"PyTorch": lambda threads: tensor.sum()}
    return Case(run, sides, 4 * n / 1e9, "GB/s", check)


def prepare_sgemm(gpu, peers: Peers, quick: bool, *, kernel: str, tile: int, block: int) -> Case:
    n = 256 if quick else 1024
    random = np.random.default_rng(3)
    a, b = random.random((n, n), dtype=np.float32), random.random((n, n), dtype=np.float32)
    device_a, device_b, device_c = gpu.array(a), gpu.array(b), gpu.zeros((n, n), np.float32)
    function = compile_kernels(gpu, "sgemm.cu")[kernel]
    host_c = np.empty_like(a)

    def run() -> None:
        function[(n // tile, n // tile), (block, block)](n, device_a, device_b, device_c)

    def check() -> None:
        expect_close(device_c.numpy(), a.astype(np.float64) @ b, 1e-5)

    return Case(run, {"OpenBLAS": lambda threads: np.matmul(a, b, out=host_c)}, 2 * n**3 / 1e9, "GFLOP/s", check)


def sgemm_tile32(gpu, peers: Peers, quick: bool) -> Case:
    return prepare_sgemm(gpu, peers, quick, kernel="sgemm_tile32", tile=32, block=32)


def sgemm_8x8(gpu, peers: Peers, quick: bool) -> Case:
    return prepare_sgemm(gpu, peers, quick, kernel="sgemm_8x8", tile=128, block=16)


def histogram(gpu, peers: Peers, quick: bool) -> Case:
    n = 1 << (20 if quick else 24)
    values = np.random.default_rng(4).integers(0, 256, n, dtype=np.uint8)
    source, bins = gpu.array(values.view(np.uint32)), gpu.zeros(256, np.uint32)
    function = compile_kernels(gpu, "histogram.cu")["histogram"]
    runs = 0

    def run() -> None:
        nonlocal runs
        function[256, 256](n // 4, source, bins)
        runs += 1

    def check() -> None:
        wanted = np.bincount(values, minlength=256) * runs
        assert np.array_equal(bins.numpy(), wanted.astype(np.uint32)), "wrong result: the counts differ"

    sides: dict[str, Callable[[int], object]] = {"NumPy": lambda threads: np.bincount(values, minlength=256)}
    if peers.native is not None:
        host_bins = np.empty(256, np.uint32)
        native = peers.native.histogram
        sides["gcc"] = lambda threads: native(n, values.ctypes.data, host_bins.ctypes.data, threads)
    return Case(run, sides, n / 1e9, "G values/s", check)


def prepare_plane(gpu, peers: Peers, quick: bool, *, name: str, grid_rows: int, wanted: Callable,
                  with_numpy: Callable) -> Case:  # fmt: skip
    """A job from one n x n plane to another: transpose and stencil."""
    n = 1024 if quick else 4096
    plane = np.random.default_rng(5).random((n, n), dtype=np.float32)
    source, result = gpu.array(plane), gpu.zeros((n, n), np.float32)
    function = compile_kernels(gpu, f"{name}.cu")[name]
    host = np.empty_like(plane)

    def run() -> None:
        function[(n // 32, n // grid_rows), (32, 8)](n, source, result)

    def check() -> None:
        expect_close(result.numpy(), wanted(plane), 1e-6)

    sides: dict[str, Callable[[int], object]] = {"NumPy": lambda threads: with_numpy(plane, host)}
    if peers.native is not None:
        native = getattr(peers.native, name)
        sides["gcc"] = lambda threads: native(n, plane.ctypes.data, host.ctypes.data, threads)
    return Case(run, sides, 8 * n * n / 1e9, "GB/s", check)


def transpose(gpu, peers: Peers, quick: bool) -> Case:
    return prepare_plane(
        gpu, peers, quick, name="transpose", grid_rows=32, wanted=np.transpose,
        with_numpy=lambda plane, out: np.copyto(out, plane.T),
    )  # fmt: skip


def numpy_stencil(plane: np.ndarray, out: np.ndarray) -> np.ndarray:
    np.copyto(out, plane)
    inner = out[1:-1, 1:-1]
    np.add(inner, plane[1:-1, :-2], out=inner)
    np.add(inner, plane[1:-1, 2:], out=inner)
    np.add(inner, plane[:-2, 1:-1], out=inner)
    np.add(inner, plane[2:, 1:-1], out=inner)
    np.multiply(inner, np.float32(0.2), out=inner)
    return out


def stencil(gpu, peers: Peers, quick: bool) -> Case:
    return prepare_plane(
        gpu, peers, quick, name="stencil", grid_rows=8, with_numpy=numpy_stencil,
        wanted=lambda plane: numpy_stencil(plane, np.empty_like(plane)),
    )  # fmt: skip


def mandelbrot(gpu, peers: Peers, quick: bool) -> Case:
    width, height, limit = (256, 256, 256) if quick else (1024, 1024, 256)
    left, top, pitch = -2.0, -1.25, 2.5 / height
    steps = gpu.zeros((height, width), np.int32)
    function = compile_kernels(gpu, "mandelbrot.cu")["mandelbrot"]

    def run() -> None:
        function[(width // 32, height // 8), (32, 8)](width, height, limit, left, top, pitch, steps)

    cx = np.float32(left) + np.arange(width, dtype=np.float32) * np.float32(pitch)
    cy = np.float32(top) + np.arange(height, dtype=np.float32)[:, None] * np.float32(pitch)

    def check() -> None:
        x, y = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
        wanted = np.zeros((height, width), np.int32)
        for _ in range(limit):
            inside = x * x + y * y <= 4
            wanted += inside
            x, y = np.where(inside, x * x - y * y + cx, 3), np.where(inside, 2 * x * y + cy, 3)
        # The kernel's fused multiply-adds move a few orbits on the set's rim.
        different = np.mean(steps.numpy() != wanted)
        assert different < 0.02, f"wrong result: {different:.1%} of the points differ"

    sides: dict[str, Callable[[int], object]] = {}
    if peers.native is not None:
        host = np.empty((height, width), np.int32)
        native = peers.native.mandelbrot
        sides["gcc, scalar"] = lambda threads: native(
            width, height, limit, left, top, pitch, host.ctypes.data, threads
        )
    return Case(run, sides, width * height / 1e6, "M points/s", check)


JOBS = (
    Job("saxpy", 0.85, saxpy_plain),
    Job("saxpy, grid-stride, 128 blocks", 0.70, saxpy_grid_stride),
    Job("block reduction", 0.70, reduction),
    Job("sgemm, 32x32 tiles", 0.45, sgemm_tile32),
    Job("sgemm, 8x8 outputs a thread", 0.50, sgemm_8x8),
    Job("histogram, shared atomics", 0.30, histogram),
    Job("transpose", 0.60, transpose),
    Job("five-point stencil", 0.60, stencil),
    Job("Mandelbrot, divergent", 5.0, mandelbrot),
)


def run_job(job: Job, devices: Mapping[int, weft.Device], peers: Peers, quick: bool) -> list[Row]:
    """The job's rows: the Device of one thread and, where there is another, that of all threads against the fastest
    peer, and the gain of all threads over one."""
    rows = []
    times: dict[int, float] = {}
    for count, gpu in devices.items():
        case = job.prepare(gpu, peers, quick)
        case.run()
        case.check()
        sides: dict[str, Callable[[], object]] = {"Weft": case.run}
        for name, peer in case.peers.items():
            sides[name] = partial(peer, count)
        with peer_threads(peers, count):
            found = median_times(sides, seconds=0.3 if quick else 2.0, least=3 if quick else 7)
        case.check()
        times[count] = found["Weft"]
        if case.peers:
            best = min(case.peers, key=found.__getitem__)
            # The scalar baseline of the divergent job is asked for on one thread only.
            bar = job.bar if count == 1 or job.bar < 1 else None
            rows.append(ratio_row(job.name, count, found["Weft"], found[best], best, bar, case.work, case.unit))
        if count > 1:
            bar = SCALING_BAR if count == 2 else None
            rows.append(ratio_row(job.name, count, times[count], times[1], "Weft, 1 thread", bar, case.work, case.unit))
    return rows


@contextmanager
def peer_threads(peers: Peers, count: int):
    """PyTorch and OpenBLAS on `count` threads. NumPy's other loops know one thread only."""
    with ExitStack() as stack:
        if peers.threadpoolctl is not None:
            stack.enter_context(peers.threadpoolctl.threadpool_limits(count, user_api="blas"))
        if peers.torch is not None:
            before = peers.torch.get_num_threads()
            peers.torch.set_num_threads(count)
            stack.callback(peers.torch.set_num_threads, before)
        yield


# ---------------------------------------------------------------- overheads
def run_probe(*arguments: str, environment: dict[str, str] | None = None) -> dict:
    """The answer of one of probes.py's measurements, made in a fresh process."""
    command = [sys.executable, str(Path(__file__).with_name("probes.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def launch_rows(devices: Mapping[int, weft.Device], quick: bool) -> list[Row]:
    """Median time of one launch of an empty kernel, on one thread and on all."""
    rows = []
    for count, gpu in devices.items():
        kernel = gpu.compile(KERNELS / "saxpy.cu")["empty"]
        for _ in range(100):
            kernel[1, 32]()
        times = []
        for _ in range(200 if quick else 2000):
            start = time.perf_counter()
            kernel[1, 32]()
            times.append(time.perf_counter() - start)
        rows.append(limit_row("launch of an empty kernel", count, statistics.median(times) * 1e6, "us", 30.0))
    return rows


def chain_ptx(count: int, name: str) -> str:
    """PTX of a kernel with `count` instructions: a load, a mix of float and integer arithmetic on eight registers,
    a store."""
    forms = (
        "fma.rn.f32 %f{d}, %f{a}, %f{b}, %f{d};",
        "add.f32 %f{d}, %f{a}, %f{b};",
        "mul.f32 %f{d}, %f{d}, %f{a};",
        "mad.lo.s32 %r{d}, %r{a}, %r{b}, %r{d};",
        "xor.b32 %r{d}, %r{a}, %r{b};",
        "shl.b32 %r{d}, %r{a}, 3;",
        "cvt.rn.f32.s32 %f{d}, %r{a};",
        "max.f32 %f{d}, %f{a}, %f{b};",
        "setp.lt.s32 %p1, %r{a}, %r{b};",
        "selp.f32 %f{d}, %f{a}, %f{b}, %p1;",
    )
    head = [
        f"ld.param.u64 %rd1, [{name}_param_0];",
        "cvta.to.global.u64 %rd2, %rd1;",
        "mov.u32 %r0, %tid.x;",
        "mul.wide.u32 %rd3, %r0, 4;",
        "add.s64 %rd4, %rd2, %rd3;",
        "ld.global.f32 %f0, [%rd4];",
        *(f"add.s32 %r{i}, %r0, {i};" for i in range(1, 8)),
        *(f"add.f32 %f{i}, %f0, 0f3F800000;" for i in range(1, 8)),
    ]
    tail = [*(f"add.f32 %f0, %f0, %f{i};" for i in range(1, 8)), "cvt.rn.f32.s32 %f1, %r7;",
            "add.f32 %f0, %f0, %f1;", "st.global.f32 [%rd4], %f0;", "ret;"]  # fmt: skip
    body = []
    for i in range(max(0, count - len(head) - len(tail))):
        body.append(forms[i % len(forms)].format(d=1 + i % 7, a=1 + (i * 3 + 1) % 7, b=1 + (i * 5 + 2) % 7))
    lines = "\n    ".join([".reg .pred %p<2>;", ".reg .b32 %r<8>;", ".reg .f32 %f<8>;", ".reg .b64 %rd<5>;"]
                          + head + body + tail)  # fmt: skip
    return (
        f".version 7.0\n.target sm_70\n.address_size 64\n\n"
        f".visible .entry {name}(.param .u64 {name}_param_0)\n{{\n    {lines}\n}}\n"
    )


COMPILE_LIMITS = ((40, 100.0), (1000, 600.0))  # instructions, milliseconds
CACHED_LIMIT = 5.0  # milliseconds


def compile_rows(quick: bool) -> list[Row]:
    """From PTX to the end of the first launch: with an empty cache, and from the cache."""
    rows = []
    for count, limit in COMPILE_LIMITS:
        cold, warm = [], []
        for _ in range(1 if quick else 5):
            with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
                file = Path(folder) / "chain.ptx"
                file.write_text(chain_ptx(count, "chain"))
                environment = {"WEFT_CACHE_DIR": str(Path(folder) / "cache")}
                cold.append(run_probe("compile", str(file), "chain", environment=environment)["seconds"])
                warm.append(run_probe("compile", str(file), "chain", environment=environment)["seconds"])
        rows.append(limit_row(f"cold compile, {count} instructions", 1, statistics.median(cold) * 1e3, "ms", limit))
        rows.append(
            limit_row(f"from the cache, {count} instructions", 1, statistics.median(warm) * 1e3, "ms", CACHED_LIMIT)
        )
    return rows


def process_rows(quick: bool) -> list[Row]:
    """Memory beyond the arrays, and the time of `import weft`."""
    memory = run_probe("memory")["bytes"] / 1e6
    imports = [run_probe("import")["seconds"] for _ in range(2 if quick else 7)]
    return [
        limit_row("memory beyond the arrays", os.cpu_count() or 1, memory, "MB", 300.0),
        limit_row("import weft", 1, statistics.median(imports), "s", 0.3),
    ]


def simulator_rows(gpu, missing: dict[str, str]) -> list[Row]:
    """The jobs of SIMULATED at a size that Numba's simulator finishes, one thread."""
    try:
        theirs = run_probe("simulator", environment={"NUMBA_ENABLE_CUDASIM": "1"})
    except RuntimeError as error:
        missing["Numba's CUDA simulator"] = str(error)
        return []
    n, order = SIMULATED["saxpy"], SIMULATED["sgemm, 32x32 tiles"]
    x, y = gpu.array(np.ones(n, np.float32)), gpu.array(np.ones(n, np.float32))
    sums = gpu.zeros(-(-n // SUMS_A_BLOCK), np.float32)
    a, c = gpu.array(np.ones((order, order), np.float32)), gpu.zeros((order, order), np.float32)
    saxpy = gpu.compile(KERNELS / "saxpy.cu")["saxpy"]
    block_sum = gpu.compile(KERNELS / "reduce.cu")["block_sum"]
    sgemm = gpu.compile(KERNELS / "sgemm.cu")["sgemm_tile32"]
    tiles = order // 32
    launches: dict[str, Callable[[], object]] = {
        "saxpy": lambda: saxpy[n // 256, 256](n, 2.0, x, y),
        "block reduction": lambda: block_sum[-(-n // SUMS_A_BLOCK), 256](n, x, sums),
        "sgemm, 32x32 tiles": lambda: sgemm[(tiles, tiles), (32, 32)](order, a, a, c),
    }
    rows = []
    for name, launch in launches.items():
        ours = median_times({"Weft": launch}, seconds=0.2)["Weft"]
        label = f"{name}, {SIMULATED[name]}"
        rows.append(ratio_row(label, 1, ours, theirs[name], "Numba's CUDA simulator", SIMULATOR_BAR))
    return rows


def main() -> int:
    parser = benchmark_parser("The engine against native code.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="all threads (default: all cores)")
    parser.add_argument("--target", choices=("avx2",), help="leave out vector instructions beyond this")
    arguments = parser.parse_args()
    if arguments.target:
        os.environ["WEFT_TARGET"] = arguments.target  # read when weft is first used; the probes inherit it
    quick, threads = arguments.quick, arguments.threads
    devices = {count: weft.Device(CHIP, threads=count) for count in sorted({1, threads})}
    peers = load_peers()
    parts: dict[str, Callable[[], list[Row]]] = {job.name: partial(run_job, job, devices, peers, quick) for job in JOBS}
    parts["Numba's CUDA simulator"] = partial(simulator_rows, devices[1], peers.missing)
    parts["launch"] = partial(launch_rows, devices, quick)
    parts["compile"] = partial(compile_rows, quick)
    parts["memory and import"] = partial(process_rows, quick)
    chosen = [name for name in parts if not arguments.only or any(text in name for text in arguments.only)]
    if not chosen:
        parser.error(f"--only: found {', '.join(arguments.only)}, expected a part of one of: {'; '.join(parts)}")
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for name in chosen:
        print(f"... {name}", file=sys.stderr, flush=True)
        try:
            rows += parts[name]()
        except (weft.WeftError, AssertionError, RuntimeError) as error:
            failed[name] = f"{type(error).__name__}: {error}"
    label = f", {arguments.target} only" if arguments.target else ""
    print_rows(f"Engine against native code{label}{' (quick: not to quote)' if quick else ''}", rows, peers.missing)
    for name, reason in failed.items():
        print(f"FAILED: {name}: {reason}", file=sys.stderr)
    if arguments.json:
        write_rows(arguments.json, rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
