"""PyTorch programs on the virtual GPU against the same on the CPU: `python bench/torch.py [--json FILE] [--only JOB]`.

In: nothing. Out: a table (and JSON) with what `device="cuda"` costs on top of plain CPU PyTorch: microseconds per tiny
operator, the speed of a training step of a transformer with 25 million parameters, seconds at import, and host
memory. Both sides run in turn in one process with the timeline recording, tiny operators with the compiled helper
(`weft helper build`) and without; import and memory are taken in child processes, one for each side.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

sys.path.append(sys.path.pop(0))  # this folder last: a file in it has PyTorch's name

CHIP = "h100"
TINY_LIMIT_US = 8.0
HELPER_LIMIT_US = 2.0
STEP_BAR = 1 / 1.1
IMPORT_LIMIT_S = 0.5
MEMORY_LIMIT = 1.1
VOCABULARY, WIDTH, HEADS, LAYERS = 512, 512, 8, 8  # 8 layers of 12 * 512**2 weights: 25 million


def make_transformer(torch, device: str):
    """A decoder of 25 million parameters with its optimiser, as a function of tokens [batch, length] -> loss."""
    from torch import nn
    from torch.nn import functional as F

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
            self.out = nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x):
            batch, length, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
            return x + self.down(F.gelu(self.up(self.norms[1](x))))

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH), *(Layer() for _ in range(LAYERS)), nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, VOCABULARY),
    ).to(device)  # fmt: skip
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-4)

    def step(tokens) -> None:
        loss = F.cross_entropy(network(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def training_step(torch, device: str, quick: bool) -> Callable[[], None]:
    """One step on 4 pieces of 128 tokens."""
    step = make_transformer(torch, device)
    tokens = torch.randint(VOCABULARY, (1 if quick else 4, 129), device=device)
    return lambda: step(tokens)


TINY: dict[str, Callable] = {
    "add": lambda torch, a, b: torch.add(a, b),
    "add a number": lambda torch, a, b: a + 1.0,
    "mul_": lambda torch, a, b: b.mul_(1.0),
    "relu": lambda torch, a, b: torch.relu(a),
    "view": lambda torch, a, b: a.view(-1),
    "transpose": lambda torch, a, b: a.t(),
    "slice": lambda torch, a, b: a[1:3],
    "sum": lambda torch, a, b: a.sum(),
    "matmul": lambda torch, a, b: a @ b,
    "linear": lambda torch, a, b: torch.nn.functional.linear(a, b),
    "softmax": lambda torch, a, b: torch.softmax(a, -1),
    "copy_": lambda torch, a, b: b.copy_(a),
    "empty_like": lambda torch, a, b: torch.empty_like(a),
    "zeros": lambda torch, a, b: torch.zeros(4, 4, device=a.device),
    "to float16": lambda torch, a, b: a.half(),
    "cat": lambda torch, a, b: torch.cat((a, b)),
}


def run_backward(torch, a, b) -> None:
    """A product, a sum, and their gradients."""
    b.grad = None
    (a @ b).sum().backward()


def count_operators(operator: Callable, torch, *tensors) -> int:
    """Calls of operators on the device in one call, those of autograd included."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    with Counting() as mode:
        operator(torch, *tensors)
    return max(mode.calls, 1)


def seconds_per_operator(operator: Callable, torch, device: str, calls: int, trains: bool) -> float:
    """Time of one call on 4 x 4 values, by operator; the least of three parts."""
    a, b = torch.ones(4, 4, device=device), torch.ones(4, 4, device=device, requires_grad=trains)
    count = count_operators(operator, torch, a, b)
    for _ in range(50):
        operator(torch, a, b)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(calls):
            operator(torch, a, b)
        best = min(best, (time.perf_counter() - started) / calls)
    return best / count


def tiny_times(quick: bool) -> dict[str, float]:
    """Microseconds that the virtual GPU adds to each operator of a job, the least of several rounds on both sides."""
    import torch

    jobs = {name: (operator, False) for name, operator in TINY.items()}
    jobs["product, forward and backward"] = (run_backward, True)
    added = {}
    for name, (operator, trains) in jobs.items():
        calls = 100 if quick else 500
        with torch.set_grad_enabled(trains):
            rounds = [
                [seconds_per_operator(operator, torch, device, calls, trains) for device in ("cpu", "cuda")]
                for _ in range(3 if quick else 8)
            ]
        cpu, cuda = (min(side) for side in zip(*rounds))
        added[name] = (cuda - cpu) * 1e6
    return added


def tiny_rows(quick: bool) -> list:
    """What the virtual GPU adds to tiny operators, with the compiled helper where it is built, and without."""
    from common import limit_row

    from weft.frontends.torch.helper import helper_path

    kinds = {"": (0, TINY_LIMIT_US)}
    if helper_path().exists():
        kinds[", helper"] = (1, HELPER_LIMIT_US)
    rows = []
    for words, (use, limit) in kinds.items():
        added = run_child("tiny", "quick" if quick else "cuda", WEFT_TORCH_HELPER=str(use))
        rows += [limit_row(f"added to a tiny {name}{words}", 1, value, "us", limit) for name, value in added.items()]
        median = statistics.median(added.values())
        rows.append(limit_row(f"added to a tiny operator, median{words}", 1, median, "us", limit))
    return rows


def step_rows(quick: bool) -> list:
    """The training step against the CPU's."""
    import torch
    from common import median_times, ratio_row

    sides = {device: training_step(torch, device, quick) for device in ("cpu", "cuda")}
    times = median_times(sides, seconds=2 if quick else 20, least=3)
    name = "training step, 25 M parameters"
    return [ratio_row(name, torch.get_num_threads(), times["cuda"], times["cpu"], "PyTorch on the CPU", STEP_BAR)]


# As it was before `weft.install`, which lets child processes find virtual GPUs too.
ENVIRONMENT = dict(os.environ)


def run_child(what: str, side: str, **environment: str):
    """What this program prints when it is called with --child."""
    command = [sys.executable, __file__, "--child", what, side]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT | environment)
    if done.returncode:
        raise RuntimeError(f"{what} of {side}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def import_rows(quick: bool) -> list:
    """Seconds that installing the virtual GPU adds to `import torch`."""
    from common import limit_row

    rounds = [[run_child("import", side) for side in ("cpu", "cuda")] for _ in range(2 if quick else 5)]
    cpu, cuda = (statistics.median(side) for side in zip(*rounds))
    return [limit_row("added to import torch", 1, cuda - cpu, "s", IMPORT_LIMIT_S)]


def memory_rows(quick: bool) -> list:
    """Peak host memory of five training steps, as a multiple of the CPU's."""
    from common import limit_row

    del quick
    cpu, cuda = run_child("memory", "cpu"), run_child("memory", "cuda")
    return [limit_row("host memory, times the CPU's", os.cpu_count() or 1, cuda / cpu, "times", MEMORY_LIMIT)]


def install() -> None:
    import weft

    weft.install(CHIP)


def child(what: str, side: str):
    """What a child process measures: seconds to import, peak resident bytes, or times of tiny operators."""
    started = time.perf_counter()
    if side != "cpu":
        install()
    import torch

    if what == "tiny":
        return tiny_times(side == "quick")
    if what == "import":
        torch.ones(1, device=side)
        return time.perf_counter() - started
    step = training_step(torch, side, quick=False)
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PARTS: dict[str, Callable[[bool], list]] = {
    "tiny operators": tiny_rows, "training step": step_rows, "import": import_rows, "memory": memory_rows,
}  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(*sys.argv[2:4])))
        return 0
    from common import benchmark_parser, print_rows, write_rows

    parser: argparse.ArgumentParser = benchmark_parser("PyTorch on the virtual GPU against PyTorch on the CPU.")
    arguments = parser.parse_args()
    chosen = [name for name in PARTS if not arguments.only or any(text in name for text in arguments.only)]
    if not chosen:
        parser.error(f"--only: found {', '.join(arguments.only)}, expected a part of one of: {'; '.join(PARTS)}")
    install()
    rows = []
    failed: dict[str, str] = {}
    for name in chosen:
        print(f"... {name}", file=sys.stderr, flush=True)
        try:
            rows += partial(PARTS[name], arguments.quick)()
        except RuntimeError as error:
            failed[name] = str(error)
    print_rows(f"PyTorch on a virtual {CHIP}{' (quick: not to quote)' if arguments.quick else ''}", rows, {})
    for name, reason in failed.items():
        print(f"FAILED: {name}: {reason}", file=sys.stderr)
    if arguments.json:
        write_rows(arguments.json, rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
