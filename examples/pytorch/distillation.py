"""A large network teaches a small one that has to run on an edge chip.

    weft run --gpu orin-nano examples/pytorch/distillation.py [--epochs N] [--seed N]

In: the digits that scikit-learn ships, 100 of them with labels, the others without. The teacher is an ensemble of
convolutional networks; the student, a hundred times smaller, learns from the labels alone and then from the teacher's
opinion on all images (Hinton et al. 2015). Out: test accuracy of the three, their size, and the time that each takes
for one image on the CPU and on the GPU that the program runs on: on a Jetson, whether it keeps up with a camera.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from stopwatch import devices, print_comparison, seconds_per_step
from torch import nn
from torch.nn import functional as F

LABELLED, BATCH, HEAT = 100, 64, 2.0


class Teacher(nn.Module):
    """The mean opinion of three convolutional networks; [n, 1, 8, 8] -> logits [n, 10]."""

    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
                nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                nn.Flatten(), nn.Dropout(0.4), nn.Linear(512, 10),
            )
            for _ in range(3)
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


def make_student() -> nn.Module:
    """[n, 1, 8, 8] -> logits [n, 10], with few weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Images moved by up to one pixel each way, with a little noise."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(images, (down, right), (2, 3)) + 0.1 * torch.randn_like(images)


def fit(network: nn.Module, images: torch.Tensor, goal: torch.Tensor, steps: int, soft: bool) -> None:
    """Trains on labels [n], or, with `soft`, on a teacher's logits [n, 10]."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,), device=images.device)
        logits = network(images[rows] if soft else jitter(images[rows]))
        if soft:
            wanted = F.log_softmax(goal[rows] / HEAT, dim=1)
            loss = HEAT**2 * F.kl_div(F.log_softmax(logits / HEAT, 1), wanted, log_target=True, reduction="batchmean")
        else:
            loss = F.cross_entropy(logits, goal[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()


def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images that the network names rightly."""
    with torch.inference_mode():
        return (network(images).argmax(1) == labels).float().mean().item()


def weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def time_one_image(network: nn.Module, device: torch.device) -> float:
    """Seconds from an image to its digit."""
    network = network.to(device)
    image = torch.randn(1, 1, 8, 8, device=device)

    def step() -> None:
        with torch.inference_mode():
            network(image).argmax(1)

    return seconds_per_step(step, device, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=400, help="training steps of the teacher; the students take three times as many"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = devices()[-1]
    pixels, names = load_digits(return_X_y=True)
    parts = train_test_split(pixels, names, test_size=0.25, stratify=names, random_state=args.seed)
    train_x, test_x = (torch.tensor(p / 8 - 1, dtype=torch.float32, device=device).view(-1, 1, 8, 8) for p in parts[:2])
    train_y, test_y = (torch.tensor(p, device=device) for p in parts[2:])

    teacher, alone, student = Teacher().to(device), make_student().to(device), make_student().to(device)
    fit(teacher, train_x[:LABELLED], train_y[:LABELLED], args.steps, soft=False)
    fit(alone, train_x[:LABELLED], train_y[:LABELLED], 3 * args.steps, soft=False)
    with torch.inference_mode():
        opinion = teacher(train_x)
    fit(student, train_x, opinion.clone(), 3 * args.steps, soft=True)
    print(f"{LABELLED} labelled images, {len(train_x) - LABELLED} more without labels, {len(test_x)} for the test")
    for name, network in (("teacher", teacher), ("student, labels only", alone), ("student, distilled", student)):
        print(f"{name:22} {weights(network):8,} weights  test accuracy {accuracy(network, test_x, test_y):.2%}")
    for name, network in (("teacher", teacher), ("student", student)):
        times = {d: time_one_image(network, d) for d in devices()}
        print_comparison(f"{name}: one image", times, 1, "images")


if __name__ == "__main__":
    main()
