"""Small models trained for two steps, with data or dry: `python torch_dry_models.py real|dry`.

Prints JSON: for each model the memory statistics, what its parameters, gradients and loss look like, and what is on the
timeline. tests/test_torch_dry.py holds one against the other. With RANK in the environment: a sharded model instead.
"""

from __future__ import annotations

import json
import os
import sys

import weft

if "RANK" not in os.environ:
    weft.install("h100", dry=sys.argv[1] == "dry")

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + F.dropout(self.down(F.gelu(self.up(x))), 0.1, self.training)


class Gpt(nn.Module):
    """Tied weights; the second block computes its activations again."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(300, 128), nn.Embedding(64, 128)
        self.blocks = nn.ModuleList(Block(128, 2) for _ in range(2))
        self.head = nn.Linear(128, 300, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for place, block in enumerate(self.blocks):
            x = checkpoint(block, x, use_reentrant=False) if place == 1 else block(x)
        return self.head(x)


def gpt() -> tuple[nn.Module, torch.Tensor]:
    model = Gpt().cuda()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        tokens = torch.randint(0, 300, (4, 33)).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model(tokens[:, :-1]).sum().backward()
    return model, loss


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    """Channels last, half precision with a scaler, batch statistics, then inference."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    ).to("cuda", memory_format=torch.channels_last)  # fmt: skip
    optimiser = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    scaler = torch.amp.GradScaler(init_scale=16.0)
    for _ in range(2):
        images = torch.randn(8, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(model(images), torch.randint(0, 10, (8,), device="cuda"))
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        scaler.update()
    model.eval()
    with torch.no_grad():
        model(images)
    model(images).sum().backward()
    return model, loss


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(300, 64)
        self.recurrent = nn.LSTM(64, 48, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0])


def recurrent() -> tuple[nn.Module, torch.Tensor]:
    model = Tagger().cuda()
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(2):
        out = model(torch.randint(0, 300, (4, 11), device="cuda"))
        loss = F.cross_entropy(out.flatten(0, 1), torch.randint(0, 7, (44,), device="cuda"))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
    return model, loss


def scattered() -> tuple[nn.Module, torch.Tensor]:
    """Sorting, scattering, reductions of all sorts."""
    table = nn.Embedding(5000, 64).cuda()
    head = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.GroupNorm(8, 128), nn.Linear(128, 1)).cuda()
    items = torch.randint(0, 5000, (700,), device="cuda")
    out = head(table(items).view(100, 7, 64).mean(1)).squeeze(1)
    order = torch.sort(out)[1]
    picked = torch.zeros(64, 40, device="cuda").scatter_add(0, (order[:40] % 64)[None], out[None, :40])
    loss = (picked.cumsum(0).amax(1) ** 2).mean() + torch.where(out > 0, out, -out).topk(5)[0].sum()
    loss.backward()
    torch.stack(torch.cat([out, out]).chunk(4)[:2]).std(1).sort()
    torch.einsum("ij,kj->ik", picked, picked).softmax(-1).argmax(-1)
    return head, loss


def sharded() -> tuple[nn.Module, torch.Tensor]:
    """FSDP2 with AdamW."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    with torch.device("meta"):
        model = Gpt()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    model.to_empty(device="cuda")
    for parameter in model.parameters():
        parameter.data._local_tensor.normal_()
    optimiser = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        tokens = torch.randint(0, 300, (4, 33)).cuda()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model, loss


def describe(tensor: torch.Tensor) -> list:
    return [list(tensor.shape), list(tensor.stride()), str(tensor.dtype), str(tensor.device), tensor.requires_grad]


def observe(build) -> dict:
    timeline = weft.timeline.current()
    start = len(timeline.spans())
    torch.cuda.reset_peak_memory_stats()
    model, loss = build()
    stats = torch.cuda.memory_stats()
    counted = ("allocat", "reserved", "segment", "requested")
    found = {
        "memory": {name: value for name, value in stats.items() if name.startswith(counted)},
        "parameters": {
            name: describe(value) + (describe(value.grad) if value.grad is not None else [])
            for name, value in model.named_parameters()
        },
        "buffers": {name: describe(value) for name, value in model.named_buffers()},
        "loss": [*describe(loss), str(type(loss.grad_fn))],
        "timeline": [[s.name, s.kind, str(s.stream), round(s.seconds * 1e12)] for s in timeline.spans()[start:]],
    }
    del model, loss
    return found | {"left": torch.cuda.memory_allocated()}


def main() -> None:
    torch.manual_seed(0)
    if "RANK" not in os.environ:
        print(json.dumps({build.__name__: observe(build) for build in (gpt, convolutions, recurrent, scattered)}))
        return
    found = observe(sharded)
    if os.environ["RANK"] == "0":
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
