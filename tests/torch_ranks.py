"""What tests/test_torch_distributed.py runs in several processes: `weft run --gpus 2 tests/torch_ranks.py PART...`.

Every part is a function of the rank and its device; it compares what two ranks compute with what one process does.
Where no launcher has set RANK, the program starts two ranks itself. TORCH_RANKS_STORE says where they meet, if not
where torch.distributed's own variables do.
"""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import shutil
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
from torch import nn

WORLD = 2
SUM, PRODUCT, MIN, MAX, AVG = (getattr(dist.ReduceOp, name) for name in ("SUM", "PRODUCT", "MIN", "MAX", "AVG"))
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64, torch.uint8, torch.int8)


def inputs(dtype: torch.dtype, count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    """What each rank has, on the CPU; small integers, so that every type computes with them exactly."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 4, (count,), generator=generator).to(dtype) for _ in range(WORLD)]


def expect(found: torch.Tensor, wanted: torch.Tensor, **tolerances: float) -> None:
    assert found.is_cuda, found.device
    torch.testing.assert_close(found.cpu(), wanted, **(tolerances or {"rtol": 0, "atol": 0}))


def expect_error(kind: type[BaseException], text: str, action) -> None:
    try:
        action()
    except kind as error:
        assert text in str(error), (text, error)
    else:
        raise AssertionError(f"no {kind.__name__} with {text!r}")


def shared_folder(rank: int) -> str:
    """The same new folder on all ranks, which goes when rank 0 ends."""
    folders: list = [None]
    if rank == 0:
        folders = [tempfile.mkdtemp()]
        multiprocessing.util.Finalize(None, shutil.rmtree, (folders[0], True), exitpriority=0)
    dist.broadcast_object_list(folders, 0)
    return folders[0]


def make_model(device: torch.device, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)).to(
        device
    )


# ---------------------------------------------------------------- collectives
def reductions(rank: int, device: torch.device) -> None:
    for dtype in (*FLOATS, *INTEGERS):
        given = inputs(dtype)
        both = torch.stack(given)
        mean = both.double().mean(0)
        wanted = {
            SUM: both.sum(0, dtype=dtype),
            PRODUCT: both.prod(0, dtype=dtype),
            MIN: both.amin(0),
            MAX: both.amax(0),
            AVG: (mean if dtype.is_floating_point else mean.trunc()).to(dtype),
        }
        for operation, result in wanted.items():
            x = given[rank].to(device)
            dist.all_reduce(x, op=operation)
            expect(x, result)
            x = given[rank].to(device)
            dist.reduce(x, 1, op=operation)
            expect(x, result if rank == 1 else given[0])
            whole = given[rank].to(device)
            part = torch.empty(4, dtype=dtype, device=device)
            dist.reduce_scatter_single(part, whole, op=operation)
            expect(part, result[4 * rank : 4 * rank + 4])
            expect(whole, given[rank])
            dist.reduce_scatter(part, list(whole.chunk(2)), op=operation)
            expect(part, result[4 * rank : 4 * rank + 4])
    # 40000 + 40000 is beyond the largest half; NCCL halves before it adds.
    x = torch.full((2,), 40000.0, device=device, dtype=torch.float16)
    dist.all_reduce(x, op=AVG)
    assert x.tolist() == [40000.0] * 2
    x = torch.full((2,), rank + 1.0, device=device)
    dist.all_reduce(x, op=dist.ReduceOp.PREMUL_SUM(0.25))
    assert x.tolist() == [0.75] * 2
    flags = torch.tensor([True, False, rank == 0], device=device)
    dist.all_reduce(flags)
    assert flags.view(torch.uint8).tolist() == [1, 0, 1]
    eighths = torch.tensor([0.5, 1.0 + rank], device=device).to(torch.float8_e4m3fn)
    dist.all_reduce(eighths)
    assert eighths.float().tolist() == [1, 3]
    waves = torch.full((2,), 1 + rank * 1j, device=device)
    dist.all_reduce(waves)
    assert waves.tolist() == [2 + 1j] * 2
    uneven = torch.zeros(1 + 2 * rank, device=device)
    dist.reduce_scatter(uneven, [torch.full((1,), 1.0 + rank, device=device), torch.ones(3, device=device)])
    assert uneven.tolist() == [[3], [2, 2, 2]][rank]


def movements(rank: int, device: torch.device) -> None:
    for dtype in (*FLOATS, *INTEGERS, torch.bool, torch.float8_e4m3fn):
        given = inputs(dtype)
        own, whole = given[rank].to(device), torch.cat(given)
        x = own.clone()
        dist.broadcast(x, 1)
        expect(x.float(), given[1].float())
        parts = [torch.empty_like(own) for _ in range(WORLD)]
        dist.all_gather(parts, own)
        expect(torch.cat(parts).float(), whole.float())
        gathered = torch.empty(16, dtype=dtype, device=device)
        handle = dist.all_gather_single(gathered, own, async_op=True)
        handle.wait()
        assert handle.is_completed()
        expect(gathered.float(), whole.float())
        dist.all_to_all_single(gathered[:8], own)
        expect(gathered[:8].float(), torch.cat([one[4 * rank : 4 * rank + 4] for one in given]).float())
        if rank == 0:
            dist.send(own, 1, tag=7)  # NCCL has no tags
        else:
            dist.recv(gathered[:8], 0)
            expect(gathered[:8].float(), given[0].float())
    lists = [torch.empty(2 + part, device=device) for part in range(WORLD)]
    dist.all_gather(lists, torch.full((2 + rank,), float(rank), device=device))
    assert [part.tolist() for part in lists] == [[0, 0], [1, 1, 1]]
    parts = [torch.empty(1, device=device) for _ in range(WORLD)] if rank == 0 else None
    dist.gather(torch.full((1,), float(rank), device=device), parts, dst=0)
    assert rank or [part.item() for part in parts] == [0, 1]
    got = torch.empty(1, device=device)
    dist.scatter(got, [torch.full((1,), 5.0 + part, device=device) for part in range(WORLD)] if rank else None, src=1)
    assert got.item() == 5 + rank
    outs = [torch.empty(1, device=device) for _ in range(WORLD)]
    dist.all_to_all(outs, [torch.full((1,), 10.0 * rank + part, device=device) for part in range(WORLD)])
    assert [out.item() for out in outs] == [rank, 10 + rank]
    sizes = [[1, 2], [3, 1]]  # from, to
    got = torch.empty(sizes[0][rank] + sizes[1][rank], device=device)
    sent = torch.full((sum(sizes[rank]),), float(rank), device=device)
    dist.all_to_all_single(got, sent, [sizes[0][rank], sizes[1][rank]], sizes[rank])
    assert got.tolist() == [0.0] * sizes[0][rank] + [1.0] * sizes[1][rank]
    dist.barrier()
    dist.barrier(device_ids=[rank])


def batches(rank: int, device: torch.device) -> None:
    other = 1 - rank
    got, sent = torch.empty(3, device=device), torch.full((3,), float(rank), device=device)
    operations = [dist.P2POp(dist.irecv, got, other), dist.P2POp(dist.isend, sent, other)]
    for handle in dist.batch_isend_irecv(operations):
        handle.wait()
    assert got.tolist() == [other] * 3
    handles = [dist.isend(sent, other), dist.irecv(got, other)]
    for handle in handles:
        handle.wait()
    # Both send before they receive, and change what they sent.
    for count in (4, 1 << 20):
        sent, got = torch.full((count,), float(rank), device=device), torch.empty(count, device=device)
        dist.send(sent, other)
        sent.zero_()
        dist.recv(got, other)
        assert got.eq(other).all()
    got, sent = torch.empty(3, device=device), torch.full((3,), float(rank), device=device)
    tensors = [torch.full((2,), float(rank + part), device=device) for part in range(3)]
    with dist.distributed_c10d._coalescing_manager(async_ops=True) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor)
    manager.wait()
    assert [tensor[0].item() for tensor in tensors] == [1, 3, 5]
    wholes = [torch.empty(4, device=device) for _ in range(2)]
    with dist.distributed_c10d._coalescing_manager():
        for whole in wholes:
            dist.all_gather_single(whole, sent[:2])
    assert [whole.tolist() for whole in wholes] == [[0, 0, 1, 1]] * 2
    with dist.distributed_c10d._coalescing_manager(device=device):
        dist.broadcast(sent, 0)
    assert sent.tolist() == [0] * 3
    everyone: list = [None] * WORLD
    dist.all_gather_object(everyone, {"rank": rank, "on": torch.ones(1, device=device)})
    assert [found["rank"] for found in everyone] == [0, 1]
    objects = [{"rank": rank}]
    dist.broadcast_object_list(objects, 0)
    assert objects == [{"rank": 0}]
    received: list = [None]
    dist.scatter_object_list(received, ["a", "b"] if rank == 0 else None, src=0)
    assert received == ["ab"[rank]]
    found: list = [None] * WORLD
    dist.gather_object(rank, found if rank == 0 else None)
    assert rank or found == [0, 1]
    futures = [dist.all_reduce(torch.ones(2, device=device), async_op=True).get_future() for _ in range(2)]
    assert [future.then(lambda done: done.value()[0].sum().item()).wait() for future in futures] == [4, 4]


def refusals(rank: int, device: torch.device) -> None:
    """NCCL's own words for what it cannot do."""
    x = torch.ones(4, 4, device=device)
    expect_error(RuntimeError, "No backend type associated with device type cpu", lambda: dist.all_reduce(x.cpu()))
    expect_error(ValueError, "Tensors must be contiguous", lambda: dist.all_reduce(x[:, :2]))
    expect_error(TypeError, "not supported for NCCL", lambda: dist.all_reduce(x.to(torch.int16)))
    expect_error(
        ValueError, "Cannot use ReduceOp.BAND with NCCL", lambda: dist.all_reduce(x.int(), op=dist.ReduceOp.BAND)
    )
    expect_error(NotImplementedError, "recvAnysource", lambda: dist.recv(x))
    expect_error(TypeError, "AVG with boolean", lambda: dist.all_reduce(x.bool(), op=AVG))
    expect_error(ValueError, "only implemented for GLOO", dist.monitored_barrier)


def groups(rank: int, device: torch.device) -> None:
    import torch.distributed._functional_collectives as functional
    from torch.distributed.device_mesh import init_device_mesh

    alone = [dist.new_group([place]) for place in range(WORLD)][rank]
    x = torch.full((2,), rank + 1.0, device=device)
    dist.all_reduce(x, group=alone)
    assert x.tolist() == [rank + 1] * 2
    pair = dist.new_group([0, 1], backend="nccl")
    dist.all_reduce(x, group=pair)
    assert x.tolist() == [3, 3]
    host = dist.new_group(backend="gloo")
    y = torch.full((2,), rank + 1.0)
    dist.all_reduce(y, group=host)
    assert y.tolist() == [3, 3]
    dist.all_reduce(x, group=host)  # gloo takes CUDA tensors too
    assert x.tolist() == [6, 6]
    dist.destroy_process_group(pair)
    mesh = init_device_mesh("cuda", (2, 1), mesh_dim_names=("data", "model"))
    assert mesh["data"].size() == 2 and list(mesh.get_coordinate()) == [rank, 0]
    x = torch.full((2,), rank + 1.0, device=device)
    expect(functional.all_reduce(x, "sum", mesh["data"].get_group()), torch.full((2,), 3.0))
    expect(functional.all_gather_tensor(x, 0, (mesh, 0)), torch.tensor([1.0, 1, 2, 2]))
    expect(functional.reduce_scatter_tensor(x, "avg", 0, (mesh, 0)), torch.tensor([1.5]))
    expect(functional.all_to_all_single(x, None, None, (mesh, 0)), torch.tensor([1.0, 2]))
    expect(functional.broadcast(x, 1, (mesh, 0)), torch.full((2,), 2.0))


def eager(rank: int, device: torch.device) -> None:
    """A job whose default group is bound to a device: its subgroups are split from it."""
    from torch.distributed.device_mesh import init_device_mesh

    place = f"file://{shared_folder(rank)}/store"
    dist.destroy_process_group()
    dist.init_process_group("nccl", rank=rank, world_size=WORLD, init_method=place, device_id=device)
    mesh = init_device_mesh("cuda", (1, 2), mesh_dim_names=("data", "model"))
    x = torch.full((2,), rank + 1.0, device=device)
    dist.all_reduce(x, group=mesh["model"].get_group())
    dist.all_reduce(x, group=mesh["data"].get_group())
    assert x.tolist() == [3, 3] and dist.get_backend(mesh["model"].get_group()) == "nccl"
    dist.barrier()
    for backend in ("cpu:gloo,cuda:nccl", None):
        dist.destroy_process_group()
        dist.init_process_group(backend, rank=rank, world_size=WORLD, init_method=f"{place} of {backend}")
        for where in ("cpu", device) if backend else (device,):
            x = torch.full((2,), rank + 1.0, device=where)
            dist.all_reduce(x)
            assert x.tolist() == [3, 3]


# ---------------------------------------------------------------- training
def train(model: nn.Module, batches: list[torch.Tensor], steps: int = 3, **scopes) -> list[torch.Tensor]:
    """The parameters after a few steps of AdamW; several batches accumulate their gradients."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        for place, batch in enumerate(batches):
            last = place == len(batches) - 1
            with scopes["no_sync"]() if not last and "no_sync" in scopes else contextlib.nullcontext():
                (model(batch).square().mean() / len(batches)).backward()
        optimiser.step()
    return [parameter.detach() for parameter in model.parameters()]


def data(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def mine(batch: torch.Tensor, rank: int, device: torch.device) -> torch.Tensor:
    return batch.chunk(WORLD)[rank].to(device)


def ddp(rank: int, device: torch.device) -> None:
    wanted = train(make_model(torch.device("cpu")), [data()])
    options = {"bucket_cap_mb": 1e-4, "gradient_as_bucket_view": True}
    for choice in ({}, options, {"static_graph": True}, {"find_unused_parameters": True}):
        model = nn.parallel.DistributedDataParallel(make_model(device), device_ids=[rank], **choice)
        for found, expected in zip(train(model, [mine(data(), rank, device)]), wanted):
            expect(found, expected, rtol=1e-4, atol=1e-6)
    # Accumulated over two batches, of which only the last is reduced.
    model = nn.parallel.DistributedDataParallel(make_model(device), device_ids=[rank])
    halves = [mine(half, rank, device) for half in data(16).chunk(2)]
    wanted = train(make_model(torch.device("cpu")), list(data(16).chunk(2)))
    for found, expected in zip(train(model, halves, no_sync=model.no_sync), wanted):
        expect(found, expected, rtol=1e-4, atol=1e-6)


def ddp_mixed(rank: int, device: torch.device) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    def gradients(model: nn.Module, batch: torch.Tensor, kind: torch.dtype) -> list[torch.Tensor]:
        scaler = torch.amp.GradScaler(batch.device.type, enabled=kind is torch.float16)
        optimiser = torch.optim.SGD(model.parameters(), 0.0)
        with torch.autocast(batch.device.type, kind):
            loss = model(batch).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        return [parameter.grad for parameter in model.parameters()]

    for kind in (torch.bfloat16, torch.float16):
        wanted = gradients(make_model(torch.device("cpu")), data(), kind)
        model = nn.parallel.DistributedDataParallel(make_model(device), device_ids=[rank])
        for found, expected in zip(gradients(model, mine(data(), rank, device), kind), wanted):
            expect(found, expected, rtol=5e-2, atol=5e-3)
    wanted = gradients(make_model(torch.device("cpu")), data(), torch.float32)
    hooks = (default_hooks.allreduce_hook, default_hooks.fp16_compress_hook, default_hooks.bf16_compress_hook)
    for hook in (*hooks, dist.BuiltinCommHookType.FP16_COMPRESS):
        model = nn.parallel.DistributedDataParallel(make_model(device), device_ids=[rank])
        if callable(hook):
            model.register_comm_hook(None, hook)
        else:
            model._register_builtin_comm_hook(hook)
        for found, expected in zip(gradients(model, mine(data(), rank, device), torch.float32), wanted):
            expect(found, expected, rtol=2e-2, atol=1e-3)


def overlap(rank: int, device: torch.device) -> None:
    """DDP's reductions run beside the backward pass, on a stream of their own, and the optimiser waits for them."""
    import weft

    torch.manual_seed(0)
    layers = [nn.Linear(1024, 1024) for _ in range(4)]
    model = nn.parallel.DistributedDataParallel(
        nn.Sequential(*layers).to(device), device_ids=[rank], bucket_cap_mb=4, gradient_as_bucket_view=True
    )
    batch = torch.randn(256, 1024, device=device)
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, foreach=True)
    for _ in range(3):  # the second step sorts the buckets
        optimiser.zero_grad()
        torch.cuda.nvtx.mark("step")
        model(batch).sum().backward()
        torch.cuda.nvtx.mark("update")
        optimiser.step()
    spans = weft.timeline.current().spans()
    spans = spans[max(place for place, span in enumerate(spans) if span.name == "step") :]
    reductions = [span for span in spans if span.name == "all_reduce"]
    kernels = [span for span in spans if span.kind == "kernel"]
    assert len(reductions) == 4 and {span.stream for span in reductions} == {"nccl default_pg"}, reductions
    assert {(span.stream, span.device) for span in kernels} == {(0, rank)}
    assert not any(span.kind == "copy" for span in spans), "nothing goes through the host"
    for reduction in reductions[:-1]:
        during = [span for span in kernels if reduction.start < span.start < reduction.start + reduction.seconds]
        assert any(span.name == "gemm" for span in during), "backward goes on while a bucket travels"
    end = max(span.start + span.seconds for span in reductions)
    update = next(place for place, span in enumerate(spans) if span.name == "update")
    updates = [span for span in spans[update:] if span.kind == "kernel"]
    assert updates and all(span.start >= end for span in updates)


def prefetch(rank: int, device: torch.device) -> None:
    """fully_shard gathers a layer's parameters while the layer before it computes, and reduces gradients meanwhile."""
    from torch.distributed.fsdp import fully_shard

    import weft

    model = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(4)]).to(device)
    for layer in (*model, model):
        fully_shard(layer)
    batch = torch.randn(1024, 1024, device=device)
    torch.cuda.nvtx.mark("fully sharded")
    model(batch).sum().backward()
    spans = weft.timeline.current().spans()
    spans = spans[next(place for place, span in enumerate(spans) if span.name == "fully sharded") :]
    products = [span for span in spans if span.name == "gemm"]
    for kind, least in (("all_gather", 4), ("reduce_scatter", 3)):
        found = [span for span in spans if span.name == kind]
        beside = [one for one in found if any(one.start < other.start + other.seconds and
                                              other.start < one.start + one.seconds for other in products)]  # fmt: skip
        assert len(found) >= 4 and len(beside) >= least, (kind, found, products)
        assert {span.stream for span in found}.isdisjoint({0}), "neither is on the stream of the products"


def links(rank: int, device: torch.device) -> None:
    """Ranks of one server speak over the chip's own link, those of two over the network; a message has its stream."""
    import weft

    x = torch.ones(1 << 22, device=device)
    other = 1 - rank
    dist.all_reduce(x)
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    dist.all_reduce(x, group=dist.new_group([0, 1]))
    del os.environ["LOCAL_WORLD_SIZE"]
    for handle in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, other), dist.P2POp(dist.irecv, x.clone(), other)]):
        handle.wait()
    found = [span for span in weft.timeline.current().spans() if span.kind == "collective"][-4:]
    assert [span.name for span in found] == ["all_reduce", "all_reduce", "p2p", "p2p"]
    assert [span.limiter for span in found] == ["NVLink", "network", "NVLink", "NVLink"]
    assert found[0].stream == 0, "what the program waits for at once runs on its own stream"
    assert {span.stream for span in found[2:]} == {"nccl default_pg 0->1", "nccl default_pg 1->0"}
    # 16 MiB go twice half around the ring, at 450 GB/s or 50 GB/s at best.
    assert (1 << 24) / 450e9 < found[0].seconds < 3 * (1 << 24) / 450e9
    assert (1 << 24) / 50e9 < found[1].seconds < 3 * (1 << 24) / 50e9


def graphs(rank: int, device: torch.device) -> None:
    """A captured collective takes place at each replay, and its time is part of the graph's."""
    import weft

    x, whole = torch.ones(2, device=device), torch.zeros(4, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
        dist.all_reduce(y, op=AVG)
        dist.all_gather_single(whole, y + rank)
    count = sum(span.kind == "collective" for span in weft.timeline.current().spans())
    for value in (3.0, 5.0):
        x.fill_(value * (1 + rank))
        graph.replay()
        assert y.tolist() == [3 * value] * 2
        assert whole.tolist() == [3 * value] * 2 + [3 * value + 1] * 2
    assert sum(span.kind == "collective" for span in weft.timeline.current().spans()) == count + 4


def random_numbers(rank: int, device: torch.device) -> None:
    """A sharded tensor's parts are drawn apart, a replicated one's alike, from the seed that all ranks have."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, randn

    mesh = init_device_mesh("cuda", (WORLD,))
    torch.manual_seed(5)
    parts = randn(8, 4, device_mesh=mesh, placements=[Shard(0)])
    whole = parts.full_tensor()
    copy = whole.clone()
    dist.broadcast(copy, 0)
    assert torch.equal(copy, whole) and len(set(whole.flatten().tolist())) == 32
    same = randn(8, 4, device_mesh=mesh, placements=[Replicate()]).to_local()
    copy = same.clone()
    dist.broadcast(copy, 0)
    assert torch.equal(copy, same) and not torch.equal(same, whole)
    ones = distribute_tensor(torch.ones(64, 4, device=device), mesh, [Shard(0)])
    halves = nn.functional.dropout(ones, 0.5).full_tensor().chunk(2)
    assert not torch.equal(*halves)
    assert set(torch.cat(halves).flatten().tolist()) == {0.0, 2.0}
    generator = torch.Generator(device).manual_seed(3)
    state = generator.get_state()
    one, two = (torch.rand(3, device=device, generator=generator) for _ in range(2))
    assert state.numel() == 16 and generator.get_offset() == 8 and not torch.equal(one, two)
    generator.set_state(state)
    generator.set_offset(4)
    assert torch.equal(two, torch.rand(3, device=device, generator=generator))
    expect_error(RuntimeError, "RNG state is wrong size", lambda: generator.set_state(torch.get_rng_state()))


def fsdp(rank: int, device: torch.device) -> None:
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    def shard(model: nn.Module, **options) -> nn.Module:
        for layer in (*model[::2], model):
            fully_shard(layer, **options)
        return model

    wanted = train(make_model(torch.device("cpu")), [data()])
    model = shard(make_model(device))
    for found, expected in zip(train(model, [mine(data(), rank, device)]), wanted):
        assert found.to_local().shape[0] == expected.chunk(2)[rank].shape[0]
        expect(found.full_tensor(), expected, rtol=1e-4, atol=1e-6)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mixed = shard(make_model(device), mp_policy=policy)
    optimiser = torch.optim.AdamW(mixed.parameters(), 1e-2)
    loss = mixed(mine(data(), rank, device)).float().square().mean()
    loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        reference = make_model(torch.device("cpu"))
        reference(data()).float().square().mean().backward()
    for found, expected in zip(mixed.parameters(), reference.parameters()):
        assert found.grad.dtype == torch.float32
        expect(found.grad.full_tensor(), expected.grad, rtol=5e-2, atol=5e-3)
    optimiser.step()
    place = shared_folder(rank)
    model_state, optimiser_state = get_state_dict(mixed, optimiser)
    checkpoint.save({"model": model_state, "optimiser": optimiser_state}, checkpoint_id=place)
    other = shard(make_model(device), mp_policy=policy)
    other_optimiser = torch.optim.AdamW(other.parameters(), 1e-2)
    model_state, optimiser_state = get_state_dict(other, other_optimiser)
    state = {"model": model_state, "optimiser": optimiser_state}
    checkpoint.load(state, checkpoint_id=place)
    set_state_dict(other, other_optimiser, model_state_dict=state["model"], optim_state_dict=state["optimiser"])
    for found, expected in zip(other.parameters(), mixed.parameters()):
        expect(found.to_local(), expected.to_local().cpu())
    moments = [optimiser.state[parameter]["exp_avg"].to_local() for parameter in mixed.parameters()]
    for parameter, moment in zip(other.parameters(), moments):
        expect(other_optimiser.state[parameter]["exp_avg"].to_local(), moment.cpu())
    from torch.distributed.fsdp import FullyShardedDataParallel

    # The older class, too.
    wrapped = FullyShardedDataParallel(make_model(device), device_id=rank, use_orig_params=True)
    train(wrapped, [mine(data(), rank, device)])
    with FullyShardedDataParallel.summon_full_params(wrapped):
        for found, expected in zip(wrapped.parameters(), wanted):
            expect(found, expected, rtol=1e-4, atol=1e-6)


def tensor_parallel(rank: int, device: torch.device) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cuda", (WORLD,))
    plain, model = make_model(torch.device("cpu")), make_model(device)
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    batch = data()
    assert isinstance(model[0].weight, DTensor) and model[0].weight.to_local().shape == (4, 4)
    expect(model(batch.to(device)), plain(batch), rtol=1e-4, atol=1e-6)
    model(batch.to(device)).square().sum().backward()
    plain(batch).square().sum().backward()
    for found, expected in zip(model.parameters(), plain.parameters()):
        grad = found.grad.full_tensor() if isinstance(found.grad, DTensor) else found.grad
        expect(grad, expected.grad, rtol=1e-4, atol=1e-5)
    norm, tokens = nn.LayerNorm(4), data(16).view(2, 8, 4)
    wanted = norm(tokens)
    split = parallelize_module(norm.to(device), mesh, SequenceParallel(sequence_dim=1))
    own = tokens.chunk(WORLD, 1)[rank].to(device)
    expect(split(own).full_tensor(), wanted, rtol=1e-4, atol=1e-5)
    a, b = torch.randn(8, 6), torch.randn(6, 4)
    dist.broadcast(a := a.to(device), 0)
    dist.broadcast(b := b.to(device), 0)
    product = distribute_tensor(a, mesh, [Shard(1)]) @ distribute_tensor(b, mesh, [Shard(0)])
    expect(product.redistribute(mesh, [Replicate()]).to_local(), a.cpu() @ b.cpu(), rtol=1e-4, atol=1e-5)


def pipeline(rank: int, device: torch.device) -> None:
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
    from torch.distributed.pipelining.schedules import Schedule1F1B

    plain, batch = make_model(torch.device("cpu")), data(8)
    target = torch.ones(8, 2)
    nn.functional.mse_loss(plain(batch), target).backward()
    for schedule_class in (ScheduleGPipe, Schedule1F1B):
        model = make_model(device)
        part = model[:2] if rank == 0 else model[2:]
        stage = PipelineStage(part, rank, WORLD, device)
        schedule = schedule_class(stage, 4, loss_fn=nn.functional.mse_loss)
        losses: list = []
        if rank == 0:
            schedule.step(batch.to(device))
        else:
            found = schedule.step(target=target.to(device), losses=losses)
            expect(found, plain(batch).detach(), rtol=1e-4, atol=1e-6)
            assert len(losses) == 4
        own = [*plain.parameters()][:2] if rank == 0 else [*plain.parameters()][2:]
        for found, expected in zip(part.parameters(), own):
            expect(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def data_parallel(rank: int, device: torch.device) -> None:
    """One process that drives both GPUs."""
    if rank:
        return
    plain, model = make_model(torch.device("cpu")), nn.DataParallel(make_model(device))
    batch = data()
    expect(model(batch.to(device)), plain(batch), rtol=1e-4, atol=1e-6)
    model(batch.to(device)).square().mean().backward()
    plain(batch).square().mean().backward()
    for found, expected in zip(model.parameters(), plain.parameters()):
        expect(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- ends
def dies(rank: int, device: torch.device) -> None:
    """Rank 1 ends in the middle of a step; rank 0 notices in its backward pass."""
    model = nn.parallel.DistributedDataParallel(make_model(device), device_ids=[rank])
    loss = model(data().to(device)).sum()
    if rank == 1:
        os._exit(3)
    loss.backward()


PARTS = {
    part.__name__: part
    for part in (
        reductions, movements, batches, refusals, groups, eager, ddp, ddp_mixed, overlap, prefetch, links, graphs,
        random_numbers, fsdp, tensor_parallel, pipeline, data_parallel, dies,
    )
}  # fmt: skip


def run(rank: int, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=WORLD, init_method=os.environ.get("TORCH_RANKS_STORE"))
    assert dist.is_nccl_available() and dist.get_backend() == "nccl" and torch.cuda.nccl.version() > (2, 18)
    for name in names:
        PARTS[name](rank, torch.device("cuda", rank))
        print(f"{name} passed\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        run(int(os.environ["RANK"]), sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCH_RANKS_STORE"] = f"file://{folder}/store"
            torch.multiprocessing.spawn(run, (sys.argv[1:],), WORLD)
