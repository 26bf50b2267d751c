"""A recommender with embeddings: which modules will a source file import?

    weft run --gpu l4 examples/pytorch/recommender.py [--epochs N] [--seed N]

In: the import statements of Python's own standard library. A file is a user, an imported module an item, as films are
to the people who saw them. One import of each file is hidden. Out: how often the hidden module is among the ten that
the network recommends (beside recommending the ten most popular), some recommendations, and the time of a training
step with tables of a realistic size on the CPU and on the GPU.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
import warnings
from pathlib import Path

import torch
from stopwatch import devices, print_comparison, seconds_per_step
from torch import nn
from torch.nn import functional as F

BATCH, WIDTH, TOP = 256, 32, 10


def load_imports(least: int = 4, most: int = 900) -> dict[str, list[str]]:
    """File -> the modules that it imports, for files of the standard library with at least `least` of them."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(("site-packages", "test/test_lib2to3", "lib2to3/tests/data", "test/bad")):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        modules = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
        if len(modules) >= least:
            found[name] = sorted(modules)
        if len(found) == most:
            break
    return found


class Recommender(nn.Module):
    """The mean embedding of what a user has, through two layers -> a score for each item [n, items]."""

    def __init__(self, items: int):
        super().__init__()
        self.have = nn.EmbeddingBag(items + 1, WIDTH, mode="mean", padding_idx=items)
        self.hidden = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Dropout(0.2), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.items = nn.Embedding(items, WIDTH)
        self.popularity = nn.Parameter(torch.zeros(items))

    def forward(self, have: torch.Tensor) -> torch.Tensor:
        return self.hidden(self.have(have)) @ self.items.weight.T + self.popularity


def make_examples(baskets: list[list[int]], items: int, hidden: list[int], longest: int):
    """(what each basket has without one item [n, longest], that item [n]); the hidden item of the test is in none."""
    rows, wanted = [], []
    for basket, out in zip(baskets, hidden):
        rest = [item for item in basket if item != out]
        for item in rest:
            others = [other for other in rest if other != item][:longest]
            rows.append(others + [items] * (longest - len(others)))
            wanted.append(item)
    return torch.tensor(rows), torch.tensor(wanted)


def hit_rate(scores: torch.Tensor, have: torch.Tensor, wanted: torch.Tensor) -> float:
    """Share of rows whose wanted item is among the best ten of those that they do not have."""
    width = scores.shape[1]
    known = torch.zeros(len(scores), width + 1, dtype=torch.bool, device=scores.device).scatter_(1, have, True)
    best = scores.masked_fill(known[:, :width], float("-inf")).topk(TOP).indices
    return (best == wanted[:, None]).any(1).float().mean().item()


def time_training_step(device: torch.device) -> float:
    """Seconds of one step: 2,048 users with 50 items each, tables of 100,000 rows of 64 values."""
    have = nn.EmbeddingBag(100_000, 64, mode="mean").to(device)
    items = nn.Embedding(100_000, 64).to(device)
    optimiser = torch.optim.Adagrad([*have.parameters(), *items.parameters()])
    bags = torch.randint(100_000, (2048, 50), device=device)
    pairs = torch.randint(100_000, (2048, 8), device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        scores = (have(bags)[:, None] * items(pairs)).sum(-1)
        F.cross_entropy(scores, torch.zeros(2048, dtype=torch.int64, device=device)).backward()
        optimiser.step()

    return seconds_per_step(step, device, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = devices()[-1]
    files = load_imports()
    names = sorted({module for modules in files.values() for module in modules})
    number = {name: i for i, name in enumerate(names)}
    baskets = [[number[module] for module in modules] for modules in files.values()]
    hidden = [basket[int(torch.randint(len(basket), ()))] for basket in baskets]
    longest = max(map(len, baskets))
    have, wanted = (t.to(device) for t in make_examples(baskets, len(names), hidden, longest))
    rest = [[item for item in basket if item != out] for basket, out in zip(baskets, hidden)]
    test_have = torch.tensor([row + [len(names)] * (longest - len(row)) for row in rest], device=device)
    test_wanted = torch.tensor(hidden, device=device)
    print(f"{len(files)} files import {len(names)} modules; one import of each file is hidden")

    popular = torch.bincount(wanted, minlength=len(names)).float().expand(len(files), -1)
    print(f"the ten most popular    hit rate {hit_rate(popular, test_have, test_wanted):.1%}")
    network = Recommender(len(names)).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.02)
    for _ in range(args.epochs):
        network.train()
        for rows in torch.randperm(len(have), device=device).split(BATCH):
            loss = F.cross_entropy(network(have[rows]), wanted[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    network.eval()
    with torch.inference_mode():
        scores = network(test_have)
        print(f"recommender             hit rate {hit_rate(scores, test_have, test_wanted):.1%}")
        for basket in (["socket", "ssl"], ["ast", "sys"], ["unittest", "tempfile"]):
            row = torch.tensor([[number[name] for name in basket if name in number]], device=device)
            scores = network(row).scatter(1, row, float("-inf"))
            best = [names[i] for i in scores.topk(4).indices[0].tolist()]
            print(f"  who imports {' and '.join(basket):22} may want {', '.join(best)}")
    times = {d: time_training_step(d) for d in devices()}
    print_comparison("training step, 2,048 users, tables of 100,000 rows", times, 2048, "users")


if __name__ == "__main__":
    main()
