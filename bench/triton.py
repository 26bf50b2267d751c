"""Triton on Weft: `python bench/triton.py [--json FILE] [--only JOB] [--threads N] [--target avx2] [--quick]`.

In: the Triton kernels of bench/triton_kernels.py, compiled by Triton for an A100 (sm_80) and an H100 (sm_90a). Out: a
table (and JSON) with the speed of each as a ratio to PyTorch's own CPU operator and to Triton's interpreter, and the
compile time of the attention kernel without Triton's share. Every result is compared with PyTorch's before anything is
timed.

The interpreter (TRITON_INTERPRET=1) runs in a child process, at a smaller size with the same blocks. It runs the
programs of a grid one after another, so its time is multiplied by the ratio of the numbers of programs.

PyTorch's f16 matmul is also shown as f32: where the processor has no f16 arithmetic it takes a slow path of its own.
"""

from __future__ import annotations

import sys

sys.path.append(sys.path.pop(0))  # this folder last: files in it have the names of PyTorch and Triton

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import passive  # noqa: F401  (before NumPy and PyTorch)
from common import Row, benchmark_parser, limit_row, median_times, print_rows, ratio_row, write_rows

INTERPRETER = "Triton's interpreter"
SIZE = {False: 1, True: 4}  # by --quick: what sizes are divided by


@dataclass(frozen=True)
class Case:
    """One prepared job.

    weft: the launch. peers: PyTorch's operators by name, the first is what the bar is for. out, wanted: result and
    oracle, compared within `tolerance` of the largest element. programs: how many the grid has. work, unit: what one
    run amounts to, so that work / seconds is a rate in `unit`.
    """

    weft: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    out: Any
    wanted: Callable[[], Any]
    tolerance: float
    programs: int
    work: float
    unit: str


@dataclass(frozen=True)
class Job:
    """A row of JOBS. bar: of PyTorch's speed; interpreter_bar: how many times faster than the interpreter.

    prepare(size) makes the Case; `full` is the size for the table, `small` the one for the interpreter, None where it
    is not asked. chip: the virtual GPU that the kernel is compiled for.
    """

    name: str
    prepare: Callable[..., Case]
    full: tuple[int, ...]
    small: tuple[int, ...] | None
    bar: float
    interpreter_bar: float | None
    chip: str = "a100"


def prepare_add(n: int) -> Case:
    import torch
    import triton_kernels as kernels

    x, y, out, native = (torch.rand(n) for _ in range(4))
    return Case(
        partial(kernels.add, x, y, out), {"PyTorch": lambda: torch.add(x, y, out=native)}, out, lambda: x + y, 0.0,
        -(-n // kernels.ADD_BLOCK), 12 * n / 1e9, "GB/s",
    )  # fmt: skip


def prepare_softmax(rows: int, columns: int) -> Case:
    import torch
    import triton_kernels as kernels

    x = torch.randn(rows, columns)
    out, native = torch.empty_like(x), torch.empty_like(x)
    return Case(
        partial(kernels.softmax, x, out), {"PyTorch": lambda: torch.softmax(x, 1, out=native)}, out,
        lambda: torch.softmax(x, 1), 1e-5, rows, 8 * rows * columns / 1e9, "GB/s",
    )  # fmt: skip


def prepare_layer_norm(rows: int, columns: int) -> Case:
    import torch
    import triton_kernels as kernels

    x, weight, bias = torch.randn(rows, columns), torch.rand(columns), torch.rand(columns)
    out = torch.empty_like(x)
    native = partial(torch.nn.functional.layer_norm, x, (columns,), weight, bias)
    return Case(
        partial(kernels.layer_norm, x, weight, bias, out), {"PyTorch": native}, out, native, 1e-5, rows,
        8 * rows * columns / 1e9, "GB/s",
    )  # fmt: skip


def prepare_matmul(m: int, n: int, k: int, *, type_: str, through: str = "matmul") -> Case:
    import torch
    import triton_kernels as kernels

    dtype = getattr(torch, type_)
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    wide_a, wide_b = a.float(), b.float()
    peers = {f"PyTorch {type_}": lambda: a @ b, "PyTorch float32": lambda: wide_a @ wide_b}
    return Case(
        partial(getattr(kernels, through), a, b, out), peers, out, lambda: wide_a @ wide_b,
        1e-2 if type_ == "bfloat16" else 2e-3, -(-m // kernels.TILE_M) * -(-n // kernels.TILE_N), 2 * m * n * k / 1e9,
        "GFLOP/s",
    )  # fmt: skip


def prepare_attention(heads: int, length: int) -> Case:
    import torch
    import triton_kernels as kernels

    q, k, v = (torch.randn(heads, length, kernels.HEAD).half() for _ in range(3))
    out = torch.empty_like(q)
    native = torch.nn.functional.scaled_dot_product_attention
    batched = [x[None] for x in (q, k, v)]
    return Case(
        partial(kernels.attention, q, k, v, out), {"PyTorch": lambda: native(*batched)}, out,
        lambda: native(*(x.float() for x in batched))[0], 2e-3, heads * -(-length // kernels.ROWS),
        4 * heads * length * length * kernels.HEAD / 1e9, "GFLOP/s",
    )  # fmt: skip


JOBS = (
    Job("vector add, 16 M f32", prepare_add, (1 << 24,), (1 << 18,), 0.8, 500),
    Job("softmax, 4096x4096 f32", prepare_softmax, (4096, 4096), (64, 4096), 0.5, 150),
    Job("layer norm, 4096x4096 f32", prepare_layer_norm, (4096, 4096), (64, 4096), 0.5, 150),
    Job("matmul, 1024^3 f16, sm_80", partial(prepare_matmul, type_="float16"), (1024, 1024, 1024), (256, 256, 1024),
        0.5, 250),
    Job("matmul, 1024^3 bf16, sm_80", partial(prepare_matmul, type_="bfloat16"), (1024, 1024, 1024), (256, 256, 1024),
        0.2, 100),
    Job("matmul, 1024^3 f16, sm_90", partial(prepare_matmul, type_="float16", through="matmul_tensor"),
        (1024, 1024, 1024), None, 0.4, None, chip="h100"),
    Job("attention, 8 heads, 1024x64 f16", prepare_attention, (8, 1024), (1, 1024), 0.35, 150),
)  # fmt: skip


def check(case: Case) -> None:
    case.weft()
    wanted = case.wanted().float()
    difference = float((case.out.float() - wanted).abs().max())
    allowed = case.tolerance * float(wanted.abs().max())
    assert difference <= allowed, f"wrong result: difference {difference:.3g}, allowed {allowed:.3g}"


def run_job(job: Job, threads: int, quick: bool, missing: dict[str, str]) -> list[Row]:
    """The rows of one job: against PyTorch's operators, then against the interpreter."""
    import weft

    weft.install(job.chip, threads=threads)
    size = tuple(max(1, n // SIZE[quick]) if i == 0 else n for i, n in enumerate(job.full))
    case = job.prepare(*size)
    check(case)
    times = median_times({"Weft": case.weft, **case.peers}, seconds=1.0 if quick else 6.0)
    rows = []
    for i, name in enumerate(case.peers):
        bar = job.bar if i == 0 else None
        rows.append(ratio_row(job.name, threads, times["Weft"], times[name], name, bar, case.work, case.unit))
    if job.small is not None:
        try:
            found = run_child("interpreter", job.name, environment={"TRITON_INTERPRET": "1"})
        except RuntimeError as error:
            missing[INTERPRETER] = str(error)
            return rows
        theirs = found["seconds"] * case.programs / found["programs"]
        label = f"{INTERPRETER}, {found['programs']} of {case.programs} programs"
        if found["wrong"]:
            missing[f"{INTERPRETER}'s result of {job.name}, which is timed all the same"] = found["wrong"]
        rows.append(ratio_row(job.name, threads, times["Weft"], theirs, label, job.interpreter_bar))
    return rows


# ---------------------------------------------------------------- compile time
COLD_LIMIT, CACHED_LIMIT = 2.0, 20.0  # seconds, milliseconds


def compile_rows(threads: int, quick: bool) -> list[Row]:
    """From PTX to code that can run: with an empty cache, and from the cache, each in a fresh process."""
    import weft

    weft.install("a100", threads=threads)
    kernel = prepare_attention(1, 128).weft()
    ptx = kernel.asm["ptx"]
    cold, warm = [], []
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder:
            file = Path(folder) / "attention.ptx"
            file.write_text(ptx)
            environment = {"WEFT_CACHE_DIR": str(Path(folder) / "cache")}
            arguments = (str(file), kernel.metadata.name, str(32 * kernel.metadata.num_warps))
            cold.append(run_child("compile", *arguments, environment=environment)["seconds"])
            warm.append(run_child("compile", *arguments, environment=environment)["seconds"])
    count = sum(line.rstrip().endswith(";") and not line.lstrip().startswith(".") for line in ptx.splitlines())
    name = f"attention kernel, {count:,} instructions"
    return [
        limit_row(f"cold compile, {name}", 1, statistics.median(cold), "s", COLD_LIMIT),
        limit_row(f"from the cache, {name}", 1, statistics.median(warm) * 1e3, "ms", CACHED_LIMIT),
    ]


# ---------------------------------------------------------------- child processes
def run_child(*arguments: str, environment: dict[str, str]) -> dict:
    """The answer of a function of CHILDREN, called in a fresh process without any front end of Weft's."""
    command = [sys.executable, __file__, "--child", *arguments]
    own = {key: value for key, value in os.environ.items() if key not in ("WEFT_INSTALL", "PYTHONPATH")}
    done = subprocess.run(command, capture_output=True, text=True, env={**own, **environment})
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def child_interpreter(name: str) -> dict[str, Any]:
    """Seconds and number of programs of one run of a job at its small size; TRITON_INTERPRET must be set. `wrong` says
    what is wrong with the result: Triton 3.9 multiplies the patterns of bf16 numbers as integers."""
    job = next(job for job in JOBS if job.name == name)
    assert job.small is not None
    case = job.prepare(*job.small)
    try:
        check(case)
        wrong = ""
    except AssertionError as error:
        wrong = str(error)
    start = time.perf_counter()
    case.weft()
    return {"seconds": time.perf_counter() - start, "programs": case.programs, "wrong": wrong}


def child_compile(file: str, kernel: str, threads: str) -> dict[str, float]:
    """Seconds from PTX text to code that can run, LLVM being loaded."""
    from probes import WARM_UP_PTX

    import weft

    gpu = weft.Device("a100")
    gpu.load(WARM_UP_PTX)["warm_up"][1, 32](gpu.zeros(4096, "float32"))
    ptx = Path(file).read_text()
    start = time.perf_counter()
    gpu.load(ptx)[kernel][1, int(threads)].prepare()
    return {"seconds": time.perf_counter() - start}


CHILDREN: dict[str, Callable[..., dict]] = {"interpreter": child_interpreter, "compile": child_compile}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
        return 0
    parser: argparse.ArgumentParser = benchmark_parser("Triton kernels on Weft.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads (default: all cores)")
    parser.add_argument("--target", choices=("avx2",), help="leave out vector instructions beyond this")
    arguments = parser.parse_args()
    if arguments.target:
        os.environ["WEFT_TARGET"] = arguments.target  # read when weft is first used; the children inherit it
    import torch

    import weft

    threads, quick = arguments.threads, arguments.quick
    torch.set_num_threads(threads)
    missing: dict[str, str] = {}
    parts: dict[str, Callable[[], list[Row]]] = {
        job.name: partial(run_job, job, threads, quick, missing) for job in JOBS
    }
    parts["compile"] = partial(compile_rows, threads, quick)
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
    print_rows(f"Triton kernels against native code{label}{' (quick: not to quote)' if quick else ''}", rows, missing)
    for name, reason in failed.items():
        print(f"FAILED: {name}: {reason}", file=sys.stderr)
    if arguments.json:
        write_rows(arguments.json, rows)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
