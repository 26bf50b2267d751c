"""An LSTM writes documentation, a character at a time.

    weft run --gpu rtx3060 examples/pytorch/text_generation.py [--steps N] [--seed N]

In: the language reference that comes with Python (what `help("if")` shows). Out: the loss in bits per character beside
the entropy of single characters, a sample of what the network writes, and the time of a training step on the CPU and
on the GPU.
"""

from __future__ import annotations

import argparse
import math

import torch
from corpus import load_characters
from stopwatch import devices, print_comparison, seconds_per_step
from torch import nn
from torch.nn import functional as F

BATCH, LENGTH, WIDTH = 48, 64, 192


class Writer(nn.Module):
    """Characters [n, length] -> logits [n, length, characters] and the cells' state."""

    def __init__(self, characters: int):
        super().__init__()
        self.characters = nn.Embedding(characters, 64)
        self.cells = nn.LSTM(64, WIDTH, batch_first=True)
        self.out = nn.Linear(WIDTH, characters)

    def forward(self, x: torch.Tensor, state=None):
        x, state = self.cells(self.characters(x), state)
        return self.out(x), state


def write(network: Writer, alphabet: str, start: str, length: int, device: torch.device) -> str:
    """Samples `length` characters after `start`."""
    number = {c: i for i, c in enumerate(alphabet)}
    text, state = start, None
    x = torch.tensor([[number[c] for c in start]], device=device)
    with torch.inference_mode():
        for _ in range(length):
            logits, state = network(x, state)
            x = torch.multinomial(F.softmax(logits[:, -1] / 0.6, dim=-1), 1)
            text += alphabet[int(x)]
    return text


def time_training_step(characters: int, device: torch.device) -> float:
    """Seconds of one step on 48 pieces of 64 characters."""
    network = Writer(characters).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    x = torch.randint(characters, (BATCH, LENGTH), device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(network(x)[0].flatten(0, 1), x.flatten()).backward()
        optimiser.step()

    return seconds_per_step(step, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    text = load_characters(400_000)
    alphabet = "".join(sorted(set(text)))
    number = {c: i for i, c in enumerate(alphabet)}
    data = torch.tensor([number[c] for c in text])
    share = torch.bincount(data).float() / len(data)
    entropy = -(share * share.log2()).nansum().item()
    print(f"{len(text)} characters, {len(alphabet)} different ones, entropy {entropy:.2f} bits per character")
    device = devices()[-1]
    data = data.to(device)
    network = Writer(len(alphabet)).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, args.steps)
    for step in range(args.steps):
        at = torch.randint(len(data) - LENGTH - 1, (BATCH, 1), device=device)
        pieces = data[at + torch.arange(LENGTH + 1, device=device)]
        logits, _ = network(pieces[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1:4}  {loss.item() / math.log(2):.2f} bits per character")
    print(write(network, alphabet, "The ", 240, device))
    times = {d: time_training_step(len(alphabet), d) for d in devices()}
    print_comparison(f"training step, {BATCH * LENGTH} characters", times, BATCH * LENGTH, "characters")


if __name__ == "__main__":
    main()
