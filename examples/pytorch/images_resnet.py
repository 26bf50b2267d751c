"""A residual network learns handwritten digits in mixed precision.

    weft run --gpu rtx4080 examples/pytorch/images_resnet.py [--epochs N] [--width N] [--seed N]

In: the 1,797 images of 8 x 8 pixels that scikit-learn ships, a fifth of them held out. Out: loss and test accuracy
epoch by epoch, and the time of a training step on the CPU and on the GPU.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from stopwatch import devices, print_comparison, seconds_per_step
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

BATCH = 64


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; [n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def make_network(width: int) -> nn.Module:
    """Images [n, 1, 8, 8] -> logits [n, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width, width, 1),
        Residual(width, 2 * width, 2),
        Residual(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def load_split(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set: images [n, 1, 8, 8] float32 in -1..1, labels [n] int64."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=seed)
    train_x, test_x = (torch.tensor(x / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8) for x in parts[:2])
    train_y, test_y = (torch.tensor(y) for y in parts[2:])
    return TensorDataset(train_x, train_y), TensorDataset(test_x, test_y)


def accuracy(network: nn.Module, data: TensorDataset, device: torch.device) -> float:
    """Share of images that the network names rightly."""
    network.eval()
    images, labels = (t.to(device) for t in data.tensors)
    with torch.inference_mode():
        found = network(images).argmax(dim=1)
    return (found == labels).float().mean().item()


def train(args: argparse.Namespace, device: torch.device) -> float:
    """Trains for some epochs and returns the test accuracy."""
    training, test = load_split(args.seed)
    network = make_network(args.width).to(device, memory_format=torch.channels_last)
    steps = args.epochs * (len(training) // BATCH)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    loader = DataLoader(training, BATCH, shuffle=True, drop_last=True, pin_memory=device.type == "cuda")
    reached = 0.0
    for epoch in range(args.epochs):
        network.train()
        total = torch.zeros((), device=device)
        for images, labels in loader:
            images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(network(images), labels, label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach()
        reached = accuracy(network, test, device)
        print(f"epoch {epoch + 1:2}  loss {total.item() / len(loader):.4f}  test accuracy {reached:.2%}")
    return reached


def time_training_step(width: int, device: torch.device) -> float:
    """Seconds of one step on a batch of 256 images."""
    network = make_network(width).to(device)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    images = torch.randn(256, 1, 8, 8, device=device)
    labels = torch.randint(10, (256,), device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()

    return seconds_per_step(step, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = devices()[-1]
    started = time.perf_counter()
    reached = train(args, device)
    print(f"test accuracy  {reached:.2%}  ({time.perf_counter() - started:.0f} s on this machine)")
    times = {d: time_training_step(args.width, d) for d in devices()}
    print_comparison("training step, 256 images, float32", times, 256, "images")


if __name__ == "__main__":
    main()
