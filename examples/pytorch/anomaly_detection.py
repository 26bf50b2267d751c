"""Anomaly detection on imbalanced measurements: one case in thirty is malignant, and no label is used in training.

    weft run --gpu t4 examples/pytorch/anomaly_detection.py [--epochs N] [--seed N]

In: scikit-learn's breast cancer measurements (30 numbers a case), malignant cases made rare as fraud is among
payments. An autoencoder learns what benign cases look like; what it restores badly is suspicious. Out: area under the
ROC curve, average precision, and how many of the cases that it flags first are malignant, each beside what chance
gives; and the time of scoring a million cases on the CPU and on the GPU.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import average_precision_score, roc_auc_score
from stopwatch import devices, print_comparison, seconds_per_step
from torch import nn
from torch.nn import functional as F


def make_autoencoder(features: int) -> nn.Module:
    """[n, features] -> [n, features] through four numbers; dropout on the input makes it a denoising one."""
    return nn.Sequential(
        nn.Dropout(0.1), nn.Linear(features, 48), nn.GELU(), nn.Linear(48, 4), nn.Linear(4, 48), nn.GELU(),
        nn.Linear(48, features),
    )  # fmt: skip


def load_cases(seed: int, share: float = 1 / 30):
    """(training cases, all benign; test cases; whether a test case is malignant), scaled by the training cases."""
    data = load_breast_cancer()
    benign = torch.tensor(data.data[data.target == 1], dtype=torch.float32).log1p()
    malignant = torch.tensor(data.data[data.target == 0], dtype=torch.float32).log1p()
    random = torch.Generator().manual_seed(seed)
    benign = benign[torch.randperm(len(benign), generator=random)]
    training, rest = benign[:200], benign[200:]
    rare = malignant[torch.randperm(len(malignant), generator=random)[: max(5, int(share * len(rest)))]]
    mean, deviation = training.mean(0), training.std(0)
    test = torch.cat([rest, rare])
    is_malignant = torch.arange(len(test)) >= len(rest)
    return (training - mean) / deviation, (test - mean) / deviation, is_malignant


def anomaly_scores(network: nn.Module, cases: torch.Tensor) -> torch.Tensor:
    """Mean squared error of restoring each case [n]."""
    return F.mse_loss(network(cases), cases, reduction="none").mean(1)


def time_scoring(device: torch.device) -> float:
    """Seconds to score 1,000,000 cases."""
    network = make_autoencoder(30).to(device).eval()
    cases = torch.randn(1_000_000, 30, device=device)

    def step() -> None:
        with torch.inference_mode():
            anomaly_scores(network, cases)

    return seconds_per_step(step, device, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = devices()[-1]
    training, test, is_malignant = load_cases(args.seed)
    training, test = training.to(device), test.to(device)
    network = make_autoencoder(training.shape[1]).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    for epoch in range(args.epochs):
        for rows in torch.randperm(len(training), device=device).split(50):
            cases = training[rows]
            loss = F.mse_loss(network(cases), cases)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        if (epoch + 1) % 50 == 0:
            print(f"epoch {epoch + 1:3}  loss {loss.item():.4f}")
    network.eval()
    with torch.inference_mode():
        scores = anomaly_scores(network, test).cpu()
    rare = int(is_malignant.sum())
    first = is_malignant[scores.topk(rare).indices].float().mean().item()
    chance = rare / len(test)
    print(f"{len(test)} cases, {rare} of them malignant")
    print(f"area under the ROC curve  {roc_auc_score(is_malignant, scores):.3f}  (chance 0.500)")
    print(f"average precision         {average_precision_score(is_malignant, scores):.3f}  (chance {chance:.3f})")
    print(f"malignant among the {rare} most suspicious  {first:.0%}  (chance {chance:.0%})")
    times = {d: time_scoring(d) for d in devices()}
    print_comparison("scoring 1,000,000 cases", times, 1_000_000, "cases")


if __name__ == "__main__":
    main()
