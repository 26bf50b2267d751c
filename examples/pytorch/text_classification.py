"""A transformer and an LSTM tell what a sentence of documentation is about.

    weft run --gpu a10 examples/pytorch/text_classification.py [--epochs N] [--seed N]

In: the docstrings of Python's standard library, cut into sentences, with the subject of their module (networking,
numbers, files, concurrency, code); a fifth is held out. Out: the test accuracy of both networks beside that of always
naming the most frequent subject, and the time of a training step on the CPU and on the GPU.
"""

from __future__ import annotations

import argparse

import torch
from corpus import SUBJECTS, Vocabulary, load_sentences
from stopwatch import devices, print_comparison, seconds_per_step
from torch import nn
from torch.nn import functional as F

BATCH, LENGTH, WIDTH = 64, 32, 96


class Transformer(nn.Module):
    """Words [n, length] -> logits [n, subjects]: two encoder layers, mean over the words."""

    def __init__(self, words: int):
        super().__init__()
        self.words = nn.Embedding(words, WIDTH, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.2, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, len(SUBJECTS))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        padding = words == 0
        x = self.layers(self.words(words) + self.places, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1)
        return self.out((x * kept).sum(1) / kept.sum(1))


class Recurrent(nn.Module):
    """Words [n, length] -> logits [n, subjects]: a bidirectional LSTM, maximum over the words."""

    def __init__(self, words: int):
        super().__init__()
        self.words = nn.Embedding(words, WIDTH, padding_idx=0)
        self.cells = nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(WIDTH, len(SUBJECTS))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x, _ = self.cells(self.drop(self.words(words)))
        x = x.masked_fill((words == 0).unsqueeze(-1), -1e4)
        return self.out(self.drop(x.amax(1)))


def train(network: nn.Module, data: tuple[torch.Tensor, ...], epochs: int, device: torch.device) -> float:
    """Trains and returns the accuracy on the test set."""
    train_x, train_y, test_x, test_y = (t.to(device) for t in data)
    network = network.to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(train_x), device=device).split(BATCH):
            loss = F.cross_entropy(network(train_x[rows]), train_y[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
    network.eval()
    with torch.inference_mode():
        return (network(test_x).argmax(1) == test_y).float().mean().item()


def time_training_step(kind: type[nn.Module], words: int, device: torch.device) -> float:
    """Seconds of one step on a batch of 64 sentences."""
    network = kind(words).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    x = torch.randint(1, words, (BATCH, LENGTH), device=device)
    y = torch.randint(len(SUBJECTS), (BATCH,), device=device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(network(x), y).backward()
        optimiser.step()

    return seconds_per_step(step, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    sentences = load_sentences()
    order = torch.randperm(len(sentences)).tolist()
    words = [sentences[i][0] for i in order]
    subjects = torch.tensor([sentences[i][1] for i in order])
    held = len(words) // 5
    vocabulary = Vocabulary(words[held:], 4000)
    rows = vocabulary.encode(words, LENGTH)
    data = (rows[held:], subjects[held:], rows[:held], subjects[:held])
    commonest = subjects[held:].mode().values
    print(f"{len(words)} sentences, {len(vocabulary)} words, {len(SUBJECTS)} subjects")
    print(f"always the most frequent   test accuracy {(subjects[:held] == commonest).float().mean():.2%}")
    device = devices()[-1]
    for kind in (Transformer, Recurrent):
        reached = train(kind(len(vocabulary)), data, args.epochs, device)
        print(f"{kind.__name__.lower():26} test accuracy {reached:.2%}")
    for kind in (Transformer, Recurrent):
        times = {d: time_training_step(kind, len(vocabulary), d) for d in devices()}
        print_comparison(f"{kind.__name__.lower()}: training step, {BATCH} sentences", times, BATCH, "sentences")


if __name__ == "__main__":
    main()
