"""A diffusion model learns to draw digits.

    weft run --gpu rtx4070 examples/pytorch/diffusion.py [--epochs N] [--seed N]

In: the images of 8 x 8 pixels that scikit-learn ships, with their labels. A network learns to find the noise in a
noisy image (Ho et al. 2020); drawing starts from pure noise. Out: the loss, drawings of all ten digits, how many of
100 drawings a nearest-neighbour classifier trained on real images takes for the digit that was asked for, and the
time of drawing a batch on the CPU and on the GPU.
"""

from __future__ import annotations

import argparse
import math

import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from stopwatch import devices, print_comparison, seconds_per_step
from torch import nn
from torch.nn import functional as F

STEPS, WIDTH, BATCH = 100, 256, 128


class Denoiser(nn.Module):
    """Noisy images [n, 64], step [n], digit [n] -> the noise in them [n, 64]."""

    def __init__(self):
        super().__init__()
        self.digit = nn.Embedding(10, WIDTH)
        self.enter = nn.Linear(64, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(3)
        )
        self.leave = nn.Linear(WIDTH, 64)
        self.register_buffer("pace", torch.exp(-math.log(1e4) * torch.arange(WIDTH // 2) / (WIDTH // 2)))

    def forward(self, images: torch.Tensor, step: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
        angle = step[:, None] * self.pace
        known = torch.cat([angle.sin(), angle.cos()], dim=1) + self.digit(digit)
        x = self.enter(images)
        for block in self.blocks:
            x = x + block(x + known)
        return self.leave(x)


class Schedule:
    """How much of an image is left after each step: a cosine (Nichol and Dhariwal 2021)."""

    def __init__(self, device: torch.device):
        at = torch.arange(STEPS + 1, device=device) / STEPS
        left = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
        self.beta = (1 - left[1:] / left[:-1]).clamp(max=0.999)
        self.left = (1 - self.beta).cumprod(0)

    def add_noise(self, images: torch.Tensor, step: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        left = self.left[step, None]
        return left.sqrt() * images + (1 - left).sqrt() * noise


def draw(network: Denoiser, schedule: Schedule, digit: torch.Tensor) -> torch.Tensor:
    """One image of each digit asked for [n, 64], from noise to picture."""
    images = torch.randn(len(digit), 64, device=digit.device)
    with torch.inference_mode():
        for step in reversed(range(STEPS)):
            noise = network(images, torch.full_like(digit, step), digit)
            beta, left = schedule.beta[step], schedule.left[step]
            images = (images - beta / (1 - left).sqrt() * noise) / (1 - beta).sqrt()
            if step:
                images = images + beta.sqrt() * torch.randn_like(images)
    return images


def as_text(images: torch.Tensor) -> str:
    """Images [n, 64] in -1..1 side by side, as characters."""
    shades = " .:-=+*#%@"
    level = ((images.clamp(-1, 1) + 1) * 4.99).long().view(-1, 8, 8).tolist()
    return "\n".join("  ".join("".join(shades[v] for v in image[row]) for image in level) for row in range(8))


def time_drawing(device: torch.device) -> float:
    """Seconds of one of the hundred steps that draw a batch of 256 images."""
    network = Denoiser().to(device)
    images = torch.randn(256, 64, device=device)
    number = torch.zeros(256, dtype=torch.int64, device=device)

    def step() -> None:
        with torch.inference_mode():
            network(images, number, number)

    return seconds_per_step(step, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = devices()[-1]
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 8 - 1, dtype=torch.float32, device=device)
    digits = torch.tensor(labels, device=device)
    network, schedule = Denoiser().to(device), Schedule(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, args.epochs)
    for epoch in range(args.epochs):
        for rows in torch.randperm(len(images), device=device).split(BATCH):
            step = torch.randint(STEPS, (len(rows),), device=device)
            noise = torch.randn(len(rows), 64, device=device)
            loss = F.mse_loss(network(schedule.add_noise(images[rows], step, noise), step, digits[rows]), noise)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        pace.step()
        if (epoch + 1) % 30 == 0:
            print(f"epoch {epoch + 1:3}  loss {loss.item():.4f}")
    wanted = torch.arange(10, device=device).repeat(10)
    drawn = draw(network.eval(), schedule, wanted).cpu()
    print(as_text(drawn[:10]))
    judge = KNeighborsClassifier(3).fit(pixels / 8 - 1, labels)
    right = (judge.predict(drawn.numpy()) == wanted.cpu().numpy()).mean()
    print(f"drawings taken for the digit that was asked for  {right:.0%}")
    times = {d: time_drawing(d) for d in devices()}
    print_comparison("one of 100 steps, 256 drawings", times, 256, "images")


if __name__ == "__main__":
    main()
