"""Does a Llama fit, and what would it cost? Nothing is computed: the model may be larger than this machine.

    weft run --dry --gpu h100 examples/pytorch/dry_llama.py --size 70b
    weft run --dry --gpu h100 --gpus 8 examples/pytorch/dry_llama.py --size 7b --train
    weft compare --dry --gpus h100,h200,b200 examples/pytorch/dry_llama.py --size 70b

In: the shape of a model with Llama's architecture (Touvron et al. 2023), a batch and a length. Out: parameters and
memory; the summary of the run then says whether it fits on the chip, how long it takes and what it costs. With several
GPUs parameters, gradients and optimiser states are sharded over them (FSDP2). With --train one step of AdamW: weights
in float32, products in bfloat16. Without it one forward pass in bfloat16.

The program is an ordinary one. It also runs with numbers where the model is small enough: --size tiny.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Shape:
    """width: of the residual stream; key_heads: heads of keys and values, each shared by several query heads."""

    layers: int
    width: int
    heads: int
    key_heads: int
    hidden: int
    vocabulary: int = 32000


SHAPES = {
    "tiny": Shape(2, 128, 4, 2, 352, 512),
    "7b": Shape(32, 4096, 32, 32, 11008),
    "13b": Shape(40, 5120, 40, 40, 13824),
    "70b": Shape(80, 8192, 64, 8, 28672),
}


def count_parameters(shape: Shape) -> int:
    """By formula: embedding and head; per layer the four projections, the three of the network, two norms."""
    head = shape.width // shape.heads
    attention = 2 * shape.width * shape.width + 2 * shape.width * shape.key_heads * head
    layer = attention + 3 * shape.width * shape.hidden + 2 * shape.width
    return 2 * shape.vocabulary * shape.width + shape.layers * layer + shape.width


class Attention(nn.Module):
    """Causal self-attention with rotary positions; [n, length, width] in and out."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.key_heads, self.size = shape.heads, shape.key_heads, shape.width // shape.heads
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, self.key_heads * self.size, bias=False)
        self.value = nn.Linear(shape.width, self.key_heads * self.size, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        n, length, width = x.shape
        query = rotate(self.query(x).view(n, length, self.heads, self.size), turns)
        key = rotate(self.key(x).view(n, length, self.key_heads, self.size), turns)
        value = self.value(x).view(n, length, self.key_heads, self.size)
        parts = (part.transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=self.key_heads < self.heads)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


def rotate(x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021): pairs of elements are turned by an angle that grows with position."""
    cosine, sine = turns
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(x.dtype)


def rotary_turns(length: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [length, 1, size / 2]."""
    speeds = 10000.0 ** -(torch.arange(0, size, 2, device=device).float() / size)
    angles = torch.arange(length, device=device).float()[:, None, None] * speeds
    return angles.cos(), angles.sin()


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.attention_norm, self.network_norm = nn.RMSNorm(shape.width, 1e-5), nn.RMSNorm(shape.width, 1e-5)
        self.attention = Attention(shape)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), turns)
        y = self.network_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # SwiGLU (Shazeer 2020)


class Llama(nn.Module):
    """Tokens [n, length] -> logits [n, length, vocabulary]. recompute: keep only the blocks' inputs for backward."""

    def __init__(self, shape: Shape, recompute: bool = False):
        super().__init__()
        self.size, self.recompute = shape.width // shape.heads, recompute
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, 1e-5)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        turns = rotary_turns(tokens.shape[1], self.size, tokens.device)
        for block in self.blocks:
            x = checkpoint(block, x, turns, use_reentrant=False) if self.recompute else block(x, turns)
        return self.head(self.norm(x))


def make_model(shape: Shape, device: torch.device, train: bool, shards: int, recompute: bool) -> nn.Module:
    """The model on the device, its parameters sharded where there are several GPUs. It is made without memory first."""
    with torch.device("meta"):
        model = Llama(shape, recompute).to(torch.float32 if train else torch.bfloat16)
    if shards > 1:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in model.blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    model.to_empty(device=device)
    if train:  # else the weights would come from a checkpoint
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02)
    return model


def run_forward(model: nn.Module, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        model(tokens)


def run_step(model: nn.Module, tokens: torch.Tensor) -> float:
    """One training step; the loss."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SHAPES, default="7b")
    parser.add_argument("--train", action="store_true", help="one step of AdamW instead of one forward pass")
    parser.add_argument("--batch", type=int, default=1, help="sequences on each GPU")
    parser.add_argument("--length", type=int, default=2048, help="tokens of each sequence")
    parser.add_argument("--recompute", action="store_true", help="compute activations again in the backward pass")
    options = parser.parse_args()
    ranks, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    if ranks > 1:
        dist.init_process_group("nccl")
    shape = SHAPES[options.size]
    model = make_model(shape, device, options.train, ranks, options.recompute)
    tokens = torch.randint(0, shape.vocabulary, (options.batch, options.length + options.train)).to(device)
    kind = "float32" if options.train else "bfloat16"
    parts = f", a part of 1/{ranks} on each of {ranks} GPUs" if ranks > 1 else ""
    print(f"{count_parameters(shape) / 1e9:.2f} billion parameters in {kind}{parts}")
    print(f"memory of the model   {torch.cuda.memory_allocated() / 1e9:8.2f} GB")
    if options.train:
        print(f"loss                  {run_step(model, tokens):8.4f}")
    else:
        run_forward(model, tokens)
    print(f"memory at the peak    {torch.cuda.max_memory_allocated() / 1e9:8.2f} GB")
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
