"""PyTorch programs on the virtual GPU against the same on the CPU: `python bench/torch.py [--json FILE] [--only JOB]`.

In: nothing. Out: a table (and JSON) with what `device="cuda"` costs on top of plain CPU PyTorch: microseconds per tiny
operator, the speed of a training step of a transformer with 25 million parameters, seconds at import, and host
memory. Both sides run in turn in one process with the timeline recording; import and memory are taken in child
processes, one for each side.
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
    "mul_": lambda torch, a, b: b.mul_(1.0),
    "relu": lambda torch, a, b: torch.relu(a),
    "view": lambda torch, a, b: a.view(-1),
    "transpose": lambda torch, a, b: a.t(),
    "sum": lambda torch, a, b: a.sum(),
    "matmul": lambda torch, a, b: a @ b,
    "linear": lambda torch, a, b: torch.nn.functional.linear(a, b),
}


def seconds_per_call(operator: Callable, torch, device: str, calls: int) -> float:
    """Time of one call on 4 x 4 values."""
    a, b = torch.ones(4, 4, device=device), torch.ones(4, 4, device=device)
    for _ in range(50):
        operator(torch, a, b)
    started = time.perf_counter()
    for _ in range(calls):
        operator(torch, a, b)
    return (time.perf_counter() - started) / calls


def tiny_rows(quick: bool) -> list:
    """Microseconds that the virtual GPU adds to tiny operators, and the median of them."""
    import torch
    from common import limit_row

    calls = 300 if quick else 2000
    added = {}
    with torch.no_grad():
        for name, operator in TINY.items():
            rounds = [
                [seconds_per_call(operator, torch, device, calls) for device in ("cpu", "cuda")] for _ in range(5)
            ]
            cpu, cuda = (min(side) for side in zip(*rounds))
            added[name] = (cuda - cpu) * 1e6
    rows = [limit_row(f"added to a tiny {name}", 1, value, "us", TINY_LIMIT_US) for name, value in added.items()]
    median = statistics.median(added.values())
    return [*rows, limit_row("added to a tiny operator, median", 1, median, "us", TINY_LIMIT_US)]


def step_rows(quick: bool) -> list:
    """The training step against the CPU's."""
    import torch
    from common import median_times, ratio_row

    sides = {device: training_step(torch, device, quick) for device in ("cpu", "cuda")}
    times = median_times(sides, seconds=2 if quick else 20, least=3)
    name = "training step, 25 M parameters"
    return [ratio_row(name, torch.get_num_threads(), times["cuda"], times["cpu"], "PyTorch on the CPU", STEP_BAR)]


def run_child(what: str, side: str) -> float:
    """A figure that this program prints when it is called with --child."""
    command = [sys.executable, __file__, "--child", what, side]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
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


def child(what: str, side: str) -> float:
    """What a child process measures: seconds to import, or peak resident bytes."""
    started = time.perf_counter()
    if side == "cuda":
        install()
    import torch

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
