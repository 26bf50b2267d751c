"""A PyTorch program whose output must not depend on the compiled helper: tests/test_torch_helper.py runs it with the
helper and without, and compares what it prints line by line.

Each line is JSON: the name of a part, and results, memory statistics, records on the timeline, or errors.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import threading

import weft

weft.install("h100")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import weft.timeline  # noqa: E402
from weft.model.operators import base_name  # noqa: E402

PARTS = {}


def part(function):
    PARTS[function.__name__] = function
    return function


def digest(*tensors) -> list[str]:
    """The bits of tensors, with shapes, strides and data types."""
    found = []
    for tensor in tensors:
        data = tensor.detach().cpu()
        bits = data.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
        text = hashlib.sha256(bits.numpy().tobytes()).hexdigest()[:16]
        found.append(f"{text} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device}")
    return found


def numbers(*shape: int, dtype=torch.float32) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 37 % 101).reshape(shape) / 10 - 5).to(dtype).cuda()


@part
def values():
    a, b, ints = numbers(3, 4), numbers(4, 3), torch.arange(12, device="cuda").reshape(3, 4)
    results = [
        a + 1, 1 - a, a * a, a + a.t().t(), a @ b, a.sum(), a.sum(0, keepdim=True), a.mean(1), a > 0, a.half() * 2,
        torch.where(a > 0, a, -a), a.double(), a.bfloat16() @ b.bfloat16(), ints // 5, ints % 3, ints.float(),
        a[ints[0] % 3], a[:, 1:3] * 2, a[a > 0], torch.cat((a, a), 1), torch.stack((a, a)), a.expand(2, 3, 4).clone(),
        a.t().contiguous(), a.softmax(-1), a.sort(1).values, a.sort(1).indices, a.max(1).values, a.topk(2).indices,
        a.cumsum(0), F.gelu(a), a.clamp(-1, 1), a.view(torch.int32), a.unfold(1, 2, 1), a.nonzero(),
        torch.einsum("ij,jk->ik", a, b), torch.zeros(0, 3, device="cuda") + 1, a.to(torch.complex64).conj() * 2j,
        a.to(torch.complex64).imag, torch.arange(5, device="cuda"), torch.full((2, 2), 3, device="cuda"),
        F.layer_norm(a, (4,)), F.embedding(ints[0] % 3, a), torch.var_mean(a, 1)[0], a.tril(), a.flip(0),
    ]  # fmt: skip
    return digest(*results)


@part
def in_place():
    a = numbers(4, 4)
    version = a._version
    a.add_(1).mul_(2)[1].zero_()
    a[:, 2] = 7.0
    a[0, 0] = torch.tensor(3.0)
    a.t().div_(2)
    row = a[3]
    row += 1
    torch.add(a, a, out=a)
    a.fill_diagonal_(0.5)
    overlapping = None
    try:
        numbers(1, 3).expand(3, 3).add_(1)
    except RuntimeError as error:
        overlapping = str(error).splitlines()[0]
    return [*digest(a, row), a._version - version, overlapping, a.storage_offset(), row.data_ptr() - a.data_ptr()]


@part
def training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4)).cuda()
    losses = []
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        optimiser = kind(model.parameters(), lr=1e-2)
        for _ in range(3):
            loss = F.cross_entropy(model(numbers(6, 8)), torch.arange(6, device="cuda") % 4)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
    return [losses, *digest(*model.parameters())]


@part
def errors():
    a = numbers(2, 3)
    found = []
    for wrong in (
        lambda: a + torch.ones(2, 3), lambda: a @ a, lambda: a.view(7), lambda: a + numbers(5),
        lambda: torch.zeros(3, device="cuda:7"), lambda: a.index_select(0, torch.tensor([9], device="cuda")),
        lambda: torch.ones(3, dtype=torch.int64, device="cuda") @ torch.ones(3, dtype=torch.int64, device="cuda"),
        lambda: torch.empty(1 << 40, device="cuda"), lambda: torch.empty(-1, device="cuda"), lambda: a.numpy(),
        lambda: a.requires_grad_().add_(1),
    ):  # fmt: skip
        try:
            wrong()
            found.append("none")
        except Exception as error:
            found.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return found


@part
def memory():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_accumulated_memory_stats()
    before = torch.cuda.memory_stats()
    held, sizes = [], random.Random(1)
    for _ in range(3000):
        if held and sizes.random() < 0.48:
            held.pop(sizes.randrange(len(held)))
        else:
            kind = sizes.random()
            limit = 4000 if kind < 0.7 else 400_000 if kind < 0.95 else 6_000_000
            held.append(torch.empty(sizes.randrange(1, limit), dtype=torch.uint8, device="cuda"))
    after = torch.cuda.memory_stats()
    segments = [
        (segment["total_size"], segment["segment_type"], [(b["size"], b["state"]) for b in segment["blocks"]])
        for segment in torch.cuda.memory_snapshot()
    ]
    held.clear()
    end = torch.cuda.memory_stats()
    torch.cuda.empty_cache()
    changes = {name: (after[name] - before[name], end[name] - before[name]) for name in after}
    return [changes, hashlib.sha256(repr(segments).encode()).hexdigest(), torch.cuda.memory_reserved()]


@part
def threads():
    results = {}

    def work(number: int) -> None:
        a = numbers(8, 8) + number
        for _ in range(200):
            a = (a @ a).softmax(-1) * 3
        results[number] = digest(a)

    all_threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join()
    return [results[number] for number in range(4)]


@part
def streams_and_graphs():
    timeline = weft.timeline.current()
    side, a = torch.cuda.Stream(), numbers(64, 64)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    with torch.cuda.stream(side):
        b = a @ a
    torch.cuda.current_stream().wait_stream(side)
    c = b + 1
    end.record()
    end.synchronize()
    lanes = set(timeline.lanes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        d = c * 2
    c.fill_(1.5)
    graph.replay()
    return [*digest(b, c, d), len(lanes), start.elapsed_time(end)]


@part
def switches():
    a = numbers(16, 16) / 3
    found = digest(a @ a)
    torch.set_float32_matmul_precision("high")
    found += digest(a @ a)
    torch.set_float32_matmul_precision("highest")
    return [*found, *digest(a @ a)]


@part
def storages():
    a = numbers(1000)
    b = a[10:]
    before = torch.cuda.memory_allocated()
    a.untyped_storage().resize_(0)
    gone = torch.cuda.memory_allocated() - before
    a.untyped_storage().resize_(4000)
    back = torch.cuda.memory_allocated() - before
    a.fill_(2.0)
    c = a + 1
    c.resize_(3000).zero_()
    d = torch.empty(0, device="cuda")
    torch.mul(a, 2, out=d)
    e = a.clone()
    e.data = numbers(3)
    return [gone, back, *digest(a, b, c, d, e), torch.cuda.memory_allocated() - before]


def main() -> None:
    timeline = weft.timeline.current()
    for name, function in PARTS.items():
        gc.collect()
        gc.disable()
        before = len(timeline.spans())
        result = function()
        gc.enable()
        spans = timeline.spans()
        # In place or not is autograd's choice, which looks at who else holds a gradient.
        works = [
            (base_name(span.name), span.kind, span.device, str(span.stream), round(span.seconds * 1e12))
            for span in spans[before:]
        ]
        if name == "threads":
            works.sort()
        print(json.dumps([name, result, works]), flush=True)


if __name__ == "__main__":
    main()
