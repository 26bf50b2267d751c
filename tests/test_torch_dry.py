"""Dry runs: what a run with data shows, a dry one shows too; what only data could tell is refused by name and line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

HERE = Path(__file__).parent
MODELS = HERE / "torch_dry_models.py"
LLAMA = HERE.parent / "examples" / "pytorch" / "dry_llama.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env={**ENVIRONMENT, **more})


def weft_run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "weft", "run", *words, **more)


def run_dry(tmp_path: Path, program: str, *options: object) -> subprocess.CompletedProcess[str]:
    """Runs a text as program.py; its own lines are counted from 1."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program).lstrip())
    return weft_run("--dry", *options, path)


# ---------------------------------------------------------------- the same as with data
@pytest.mark.slow
def test_a_dry_run_shows_what_a_real_one_does() -> None:
    """Every statistic of allocated and reserved memory, every shape and stride, every kernel and its time."""
    found = []
    for kind in ("real", "dry"):
        done = run("-W", "ignore", MODELS, kind)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    real, dry = found
    for model, parts in real.items():
        assert parts["memory"]["allocated_bytes.all.peak"] > 1 << 20 and len(parts["timeline"]) > 50
        for part, expected in parts.items():
            assert dry[model][part] == expected, (model, part)


@pytest.mark.slow
def test_one_rank_alone_shows_what_two_processes_do(tmp_path: Path) -> None:
    """FSDP2: memory and timeline of rank 0, collectives among them."""
    paths = tmp_path / "real.json", tmp_path / "dry.json"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", 2)
    for options, path in (((), paths[0]), (("--dry",), paths[1])):
        words = (*options, "--no-summary", "--gpu", "h100", "--gpus", 2, *(launcher if not options else ()))
        done = weft_run(*words, MODELS, path)
        assert path.exists(), done.stderr[-3000:]
    real, dry = (json.loads(path.read_text()) for path in paths)
    assert dry == real
    assert sum(kind == "collective" for _, kind, _, _ in real["timeline"]) > 10


# ---------------------------------------------------------------- models that are larger than the host
def llama(tmp_path: Path, *words: object) -> tuple[dict, str]:
    """The run's JSON and standard output. The process may take 4 GB of address space beyond what libraries map."""
    path = tmp_path / "run.json"
    done = weft_run("--dry", "--gpu", "h100", "--json", path, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(path.read_text()), done.stdout + done.stderr


def parameters_of(layers: int, width: int, key_width: int, hidden: int, vocabulary: int = 32000) -> int:
    """Of a Llama, by its configuration: per layer q and o, k and v, gate, up and down, two norms."""
    layer = 2 * width * width + 2 * width * key_width + 3 * width * hidden + 2 * width
    return 2 * vocabulary * width + layers * layer + width


def test_forward_of_70_billion_parameters(tmp_path: Path) -> None:
    data, text = llama(tmp_path, LLAMA, "--size", "70b")
    weights = 2 * parameters_of(80, 8192, 1024, 28672)
    assert weights == pytest.approx(137.95e9, rel=1e-3)
    peak = data["counted"]["peak_memory"]["0"]
    # Besides the weights: the logits, or a network's two hidden activations and their product, and the residual stream.
    assert weights < peak["allocated"] < weights + 6 * 2 * 2048 * 32000 * 2
    assert peak["reserved"] > peak["capacity"] and data["counted"]["fits"] is False
    assert data["dry"]["overflows"][0]["place"].startswith(str(LLAMA) + ":")
    assert "does not fit: device 0 is full at " in text
    # Two FLOPs per weight and token, the embedding aside, and attention: QK and PV of half the square.
    flops = 2 * 2048 * (weights / 2 - 32000 * 8192)
    assert data["predicted"]["families"]["gemm"]["flops"] == pytest.approx(flops, rel=1e-3)
    # At most the tensor cores' published rate, and not much less.
    seconds = data["predicted"]["families"]["gemm"]["seconds"]
    assert flops / 989e12 < seconds < 2 * flops / 989e12


def test_training_of_7_billion_parameters(tmp_path: Path) -> None:
    data, text = llama(tmp_path, LLAMA, "--size", "7b", "--train")
    weights = 4 * parameters_of(32, 4096, 4096, 11008)
    peak = data["counted"]["peak_memory"]["0"]["allocated"]
    # Weights, gradients and AdamW's two states in float32, and a temporary of AdamW's as large as the weights.
    assert 5 * weights < peak < 5.05 * weights
    assert "does not fit" in text and re.search(r"^loss +nan$", text, re.MULTILINE)


def test_training_on_eight_gpus(tmp_path: Path) -> None:
    data, text = llama(tmp_path, "--gpus", 8, LLAMA, "--size", "7b", "--train", "--recompute")
    weights = 4 * parameters_of(32, 4096, 4096, 11008)
    peak = data["counted"]["peak_memory"]["0"]["allocated"]
    assert 5 * weights / 8 < peak < 80e9 and data["counted"]["fits"] is True
    assert data["dry"] == {"rank": 0, "ranks": 8, "overflows": []}
    assert "fits on each GPU" in text and "for rank 0 of 8, which was run" in text
    assert data["predicted"]["families"]["collective"]["seconds"] > 0


def test_host_memory_stays_small(tmp_path: Path) -> None:
    """A model made on the CPU in float32, 26 GB of it, moved to the GPU as programs do."""
    done = run_dry(tmp_path, """
        import resource
        import torch
        layers = [torch.nn.Linear(4096, 4096 * 4) for _ in range(100)]
        model = torch.nn.Sequential(*layers).cuda()
        assert torch.cuda.memory_allocated() == 100 * 4 * 4097 * 16384
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) < 2_000_000, "kilobytes"


def test_compare_prices_a_dry_run_on_chips(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    words = ("--dry", "--gpus", "h100,b200", "--json", path, LLAMA, "--size", "70b", "--length", 128)
    done = run("-m", "weft", "compare", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    h100, b200 = json.loads(path.read_text())["chips"]
    assert (h100["counted"]["fits"], b200["counted"]["fits"]) == (False, True)
    assert h100["predicted"]["elapsed_seconds"] > b200["predicted"]["elapsed_seconds"] > 0


# ---------------------------------------------------------------- questions for values
def test_values_that_nobody_knows(tmp_path: Path) -> None:
    """What a program may ask, and what it hears. One line for each question."""
    done = run_dry(tmp_path, """
        import math, torch
        from weft.errors import DryRunError

        def ask(name, question):
            try:
                print(name, question())
            except DryRunError as error:
                print(name, "refused:", error)

        x = torch.randn(4096, 8, device="cuda")
        ask("item", lambda: x.mean().item())
        ask("count", lambda: (x > 0).sum().item())
        ask("list", lambda: x[0, :2].tolist())
        ask("numbers", lambda: x[0].cpu().isnan().all().item())
        ask("healthy", lambda: (x[0].isnan().any().item(), torch.isfinite(x[0]).all().item()))
        ask("branch", lambda: bool(x.sum() > 0))
        ask("integer", lambda: int((x > 0).sum()))
        ask("positions", lambda: x.nonzero())
        ask("masked", lambda: x[x > 0])
        ask("integers", lambda: x.long().cpu())
        ask("equal", lambda: torch.equal(x, x))
        ask("show", lambda: x)
        for wrong in (lambda: x @ x, lambda: x + x[:, :3], lambda: x.reshape(7, -1), lambda: x @ torch.ones(8, 8)):
            try:
                wrong()
            except RuntimeError as error:
                print("wrong", error)
    """)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert said["item"] == said["count"] == "nan" and said["list"] == "[nan, nan]" and said["numbers"] == "True"
    assert said["healthy"] == "(False, True)"
    assert said["show"] == "tensor(..., device='cuda:0', size=(4096, 8))"
    lines = {"branch": (16, "is_nonzero"), "integer": (17, "_local_scalar_dense"), "positions": (18, "nonzero"),
             "masked": (19, "index.Tensor"), "integers": (20, "copy_"), "equal": (21, "equal")}  # fmt: skip
    for name, (line, operator) in lines.items():
        assert re.fullmatch(rf"refused: .*program\.py:{line}: aten::{operator}: .*weft\.is_dry\(\).*", said[name]), name
    wrong = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("wrong ")]
    assert wrong == [
        "mat1 and mat2 shapes cannot be multiplied (4096x8 and 4096x8)",
        "The size of tensor a (8) must match the size of tensor b (3) at non-singleton dimension 1",
        "shape '[7, -1]' is invalid for input of size 32768",
        "Expected all tensors to be on the same device, but got mat2 is on cpu, different from other tensors on cuda:0 "
        "(when checking argument in method wrapper_CUDA_mm)",
    ]
    assert "program.py:11: UserWarning: dry run: .item()" in done.stderr
    assert done.stderr.count("UserWarning") == 4, "one for each line"


def test_a_number_that_stands_for_the_unknown(tmp_path: Path) -> None:
    done = run_dry(tmp_path, """
        import torch
        x = torch.randn(4096, 8, device="cuda")
        print(x.mean().item(), (x > 0).sum().item(), int(x.long().sum()), bool(x.sum() > 0), x[0, :2].long().tolist())
    """, "--dry-value", "3", "--no-summary")  # fmt: skip
    assert done.stdout.split(maxsplit=4) == ["3.0", "3", "3", "True", "[3, 3]\n"], done.stderr
    assert not done.stderr


def test_small_tensors_from_the_host_are_known(tmp_path: Path) -> None:
    """What follows from them is computed, until it meets unknown numbers; then every view of it is unknown."""
    done = run_dry(tmp_path, """
        import torch
        ids = torch.tensor([[3, 1, 0, 0], [5, 2, 7, 0]]).cuda()
        lengths = (ids != 0).sum(1)
        assert lengths.tolist() == [2, 3] and ids.max().item() == 7 and lengths.max() == 3
        assert ids[ids != 0].tolist() == [3, 1, 5, 2, 7] and ids.nonzero().shape == (5, 2)
        big = torch.randn(4096, 8, device="cuda")
        mask = torch.zeros(4096, dtype=torch.bool)
        mask[5:9] = True
        assert big[mask].shape == big[mask.cuda()].shape == (4, 8)
        known = torch.ones(4, device="cuda")
        view, other = known[:2], known.view(2, 2)
        assert view.tolist() == [1, 1]
        other.add_(big[:2, :2])
        assert known.isnan().sum().item() == 0 and str(view.tolist()) == "[nan, nan]" and str(known[3].item()) == "nan"
        scaler = torch.amp.GradScaler()
        weight = torch.nn.Parameter(torch.randn(4096, 8, device="cuda"))
        optimiser = torch.optim.SGD([weight], 0.1)
        scaler.scale(weight.sum()).backward()
        scaler.step(optimiser)
        scaler.update()
        assert scaler.get_scale() == 65536.0 and scaler._growth_tracker.item() == 1
        torch.nn.utils.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)
        print("done")
    """)  # fmt: skip
    assert done.stdout == "done\n", done.stderr[-3000:]


# ---------------------------------------------------------------- memory
def test_capacity_is_told_of_or_enforced(tmp_path: Path) -> None:
    """A T4 has 16 GiB: by default the run goes on, with --dry-limit it ends as on the chip."""
    program = """
        import torch
        parts = []
        for _ in range(20):
            parts.append(torch.empty(1 << 30, dtype=torch.uint8, device="cuda"))
        print(len(parts), torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory < 18e9)
    """
    done = run_dry(tmp_path, program, "--gpu", "t4")
    assert done.stdout.split() == ["20", str(20 << 30), "True"], done.stderr[-3000:]
    assert re.search(r"does not fit: device 0 is full at .*program\.py:4, where 1\.07 GB more", done.stderr)
    done = run_dry(tmp_path, program, "--gpu", "t4", "--dry-limit")
    assert (
        done.returncode == 1
        and "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1024.00 MiB." in done.stderr
    )
    assert re.search(r"capacity +torch.OutOfMemoryError was raised at .*program\.py:4", done.stderr)


def test_cached_memory_is_given_back_before_a_device_is_full(tmp_path: Path) -> None:
    done = run_dry(tmp_path, """
        import torch
        for size in (9 << 30, 10 << 30, 11 << 30):
            torch.empty(size, dtype=torch.uint8, device="cuda")
        print(torch.cuda.memory_stats()["num_alloc_retries"], torch.cuda.max_memory_reserved() >> 30)
    """, "--gpu", "t4")  # fmt: skip
    assert done.stdout == "2 11\n" and re.search("capacity +fits", done.stderr), done.stderr[-3000:]


# ---------------------------------------------------------------- programs around models
def test_checkpoints_copies_and_compilation(tmp_path: Path) -> None:
    """A checkpoint holds shapes, loads in a dry run and is refused in a real one."""
    done = run_dry(tmp_path, f"""
        import copy, torch
        model = torch.compile(torch.nn.Linear(2000, 3000).cuda())
        average = copy.deepcopy(model)
        optimiser = torch.optim.Adam(model.parameters())
        model(torch.randn(4, 2000, device="cuda")).sum().backward()
        optimiser.step()
        torch.save({{"model": model.state_dict(), "optimiser": optimiser.state_dict()}}, {str(tmp_path / "c.pt")!r})
        loaded = torch.load({str(tmp_path / "c.pt")!r})
        average.load_state_dict(loaded["model"])
        optimiser.load_state_dict(loaded["optimiser"])
        print(average.weight.shape, optimiser.state[model.weight]["exp_avg"].device)
    """)  # fmt: skip
    assert done.stdout == "torch.Size([3000, 2000]) cuda:0\n", done.stderr[-3000:]
    assert "torch.compile is left out" in done.stderr
    assert (tmp_path / "c.pt").stat().st_size < 100_000
    load = tmp_path / "load.py"
    load.write_text(f"import torch\ntorch.load({str(tmp_path / 'c.pt')!r}, weights_only=False)\n")
    assert "DryRunError: this checkpoint was written by a dry run" in weft_run("--gpu", "h100", load).stderr


def test_graphs_are_priced(tmp_path: Path) -> None:
    done = run_dry(tmp_path, """
        import torch, weft
        x = torch.randn(4096, 4096, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = (x @ x).sum()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(3):
            graph.replay()
        last.record()
        products = [span for span in weft.timeline.current().spans() if span.family == "gemm"]
        print(len(products), y.item(), first.elapsed_time(last) >= 1e3 * sum(span.seconds for span in products))
    """)  # fmt: skip
    assert done.stdout == "3 nan True\n", done.stderr[-3000:]


@pytest.mark.slow
def test_shapes_of_all_operators() -> None:
    """PyTorch's operator database with unknown values, against the CPU's results: shapes, types, strides."""
    done = run("-W", "ignore", HERE / "torch_dry_sweep.py")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["agree"] > 1000
    assert set(found["refused"]) <= DATA_DEPENDENT
    assert set(found["differ"]) <= set(NOT_THE_SAME), found["differ"]


# Operators whose results' shapes, or the truth of whose conditions, only values tell.
DATA_DEPENDENT = set(
    """
    allclose argwhere bincount combinations cov equal linalg.lstsq linspace logspace masked_select narrow
    nn.functional.ctc_loss nn.functional.gaussian_nll_loss nn.functional.one_hot nonzero repeat_interleave to_sparse
    unique unique_consecutive
""".split()
)
NOT_THE_SAME = {
    "item": "an integer that nobody knows is not-a-number",
    "nonzero_static": "strides of a result without elements",
    "tensor_split": "CUDA refuses its indices as well",
    "histogram": "CUDA does not have it",
    "histogramdd": "CUDA does not have it",
    "sparse.mm": "CUDA does not have its reductions",
    "sparse.sampled_addmm": "sparse tensors with unknown values",
    "fft.rfftn": "the order in memory is cuFFT's",
    "linalg.eig": "the order in memory is cuSOLVER's",
    "svd_lowrank": "the order in memory is cuSOLVER's",
    "pca_lowrank": "the order in memory is cuSOLVER's",
}


# ---------------------------------------------------------------- one rank alone
def test_collectives_of_a_rank_alone(tmp_path: Path) -> None:
    """What every rank gives the same is combined as the ranks would; unknown numbers stay unknown."""
    done = run_dry(tmp_path, """
        import torch, torch.distributed as dist
        dist.init_process_group("nccl")
        rank, size = dist.get_rank(), dist.get_world_size()
        assert (rank, size, dist.get_backend(), torch.cuda.device_count()) == (0, 4, "nccl", 4)
        numbers = torch.tensor([3.0, 4.0], device="cuda")
        dist.all_reduce(numbers)
        assert numbers.tolist() == [12, 16]
        dist.all_reduce(numbers, dist.ReduceOp.AVG)
        assert numbers.tolist() == [12, 16]
        parts = [torch.zeros(2, dtype=torch.int64, device="cuda") for _ in range(size)]
        dist.all_gather(parts, torch.tensor([1, 2], device="cuda"))
        assert [part.tolist() for part in parts] == [[1, 2]] * 4
        part = torch.zeros(2, device="cuda")
        dist.reduce_scatter_tensor(part, torch.arange(8.0, device="cuda"))
        assert part.tolist() == [0, 4]
        objects = [None] * size
        dist.all_gather_object(objects, {"rank": rank})
        assert objects == [{"rank": 0}] * 4
        big = torch.randn(4096, 4, device="cuda")
        dist.all_reduce(big)
        whole = torch.zeros(16, device="cuda")
        dist.all_gather_into_tensor(whole, big[0])
        assert whole.isnan().sum().item() == 0 and str(whole[0].item()) == "nan"
        dist.barrier()
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2048, 2048).cuda())
        model(torch.randn(4, 2048, device="cuda")).sum().backward()
        print(model.module.weight.grad.shape)
    """, "--gpus", "4", "--gpu", "h100")  # fmt: skip
    assert done.stdout == "torch.Size([2048, 2048])\n", done.stderr[-3000:]
    assert "collective" in done.stderr


def test_spawned_programs_run_their_first_process(tmp_path: Path) -> None:
    done = run_dry(tmp_path, """
        import torch, torch.distributed as dist

        def work(rank, size):
            dist.init_process_group("nccl", init_method="tcp://127.0.0.1:1", rank=rank, world_size=size)
            print(rank, size, dist.get_world_size())

        if __name__ == "__main__":
            torch.multiprocessing.spawn(work, (2,), nprocs=2)
    """, "--gpus", "2")  # fmt: skip
    assert done.stdout == "0 2 2\n", done.stderr[-3000:]


def test_launchers_run_their_first_process(tmp_path: Path) -> None:
    """torchrun on two machines of four GPUs."""
    program = tmp_path / "train.py"
    program.write_text("import os, sys, torch\nimport torch.distributed as dist\ndist.init_process_group('nccl')\n"
                       "print(dist.get_rank(), dist.get_world_size(), os.environ['LOCAL_WORLD_SIZE'], sys.argv[1:])\n"
                       "dist.all_reduce(torch.ones(1 << 20, device='cuda'))\n")  # fmt: skip
    path = tmp_path / "run.json"
    launcher = ("-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 4)
    done = weft_run("--dry", "--gpu", "h100", "--gpus", 4, "--json", path, *launcher, program, "--steps", 3)
    assert done.stdout == "0 8 4 ['--steps', '3']\n", done.stderr[-3000:]
    data = json.loads(path.read_text())
    assert data["dry"]["ranks"] == 8 and next(iter(data["predicted"]["limiters"])) == "network"


def test_triton_kernels_are_left_out_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    done = run_dry(tmp_path, """
        import torch, triton, triton.language as tl

        @triton.jit
        def double(x, y, n, BLOCK: tl.constexpr):
            place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.store(y + place, 2 * tl.load(x + place, mask=place < n), mask=place < n)

        x = torch.randn(1 << 20, device="cuda")
        y = torch.empty_like(x)
        double[(1024,)](x, y, x.numel(), BLOCK=1024)
        known = torch.arange(4.0, device="cuda")
        result = torch.zeros(4, device="cuda")
        double[(1,)](known, result, 4, BLOCK=4)
        print(result.tolist(), y.sum().item())
    """)  # fmt: skip
    assert done.stdout == "[0.0, 2.0, 4.0, 6.0] nan\n", done.stderr[-3000:]
    assert "bytes alone: triton::double (1)" in done.stderr


def test_a_process_is_dry_or_not() -> None:
    program = """
import weft, torch
assert not weft.is_dry()
weft.install("h100")
assert torch.ones(3, device="cuda").sum().item() == 3
try:
    weft.install("h100", dry=True)
except weft.errors.InvalidValueError as error:
    print(error)
"""
    done = run("-c", program)
    assert "PyTorch is attached with dry=False already" in done.stdout, done.stderr[-2000:]
