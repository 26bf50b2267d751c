"""torch.cuda itself: properties, memory and its exhaustion, generators, streams, events, graphs, several devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import weft  # noqa: E402
from weft.errors import UnsupportedError  # noqa: E402
from weft.frontends.torch.memory import CachingAllocator, uncounted  # noqa: E402
from weft.frontends.torch.versions import check_version  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def gpu() -> weft.Device:
    return weft.install("h100", children=False)


@pytest.fixture
def two_gpus():
    weft.install("a100-80gb", count=2, children=False)
    yield
    weft.install("h100", children=False)


# ---------------------------------------------------------------- the device
def test_properties_are_the_chips(gpu: weft.Device) -> None:
    found = torch.cuda.get_device_properties(0)
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert torch.cuda.get_device_name() == found.name == "NVIDIA H100 80GB HBM3"
    assert torch.cuda.get_device_capability() == (9, 0) and found.multi_processor_count == 132
    assert found.total_memory == gpu.chip.memory_bytes and torch.cuda.is_bf16_supported()
    assert torch.version.cuda and torch.backends.cudnn.is_available() and torch.backends.cuda.is_built()
    assert "sm_90" in torch.cuda.get_arch_list()


def test_generic_accelerator() -> None:
    assert torch.accelerator.is_available() and torch.accelerator.current_accelerator().type == "cuda"
    assert torch.accelerator.device_count() == 1 and torch.accelerator.current_device_index() == 0
    stream = torch.Stream(device="cuda")
    event = torch.Event(device="cuda", enable_timing=True)
    with stream:
        event.record()
    torch.accelerator.synchronize()
    assert isinstance(stream, torch.Stream) and isinstance(torch.cuda.Stream(), torch.Stream)
    assert torch.accelerator.current_stream() == torch.cuda.default_stream()


def test_versions_that_were_not_tried() -> None:
    check_version("2.13.0+cpu")
    with pytest.raises(UnsupportedError, match=r"PyTorch 2.9.1 was not tried.*torch>=2.13,<2.14"):
        check_version("2.9.1")
    with pytest.raises(UnsupportedError, match="built for CUDA 13.0; Weft's virtual GPUs need the CPU build"):
        check_version("2.13.0+cu130", "13.0")


# ---------------------------------------------------------------- memory
def test_the_allocator_reserves_as_cuda_does() -> None:
    memory = CachingAllocator(0, 1 << 30, MemoryError)
    small = [memory.allocate(1000) for _ in range(3)]
    assert memory.statistics()["allocated_bytes"]["all"]["current"] == 3 * 1024
    assert memory.reserved.current == 2 << 20  # one small segment
    middle = memory.allocate(3 << 20)
    assert memory.reserved.current == (2 + 20) << 20  # one large segment, split
    large = memory.allocate((19 << 20) + 1)
    assert memory.reserved.current == (2 + 20 + 20) << 20  # a segment of its own, in steps of 2 MiB
    statistics = memory.statistics()
    assert statistics["requested_bytes"]["all"]["current"] == 3000 + (3 << 20) + (19 << 20) + 1
    assert statistics["inactive_split_bytes"]["large_pool"]["current"] == 17 << 20
    del small, middle, large
    statistics = memory.statistics()
    assert statistics["allocated_bytes"]["all"] == {
        "current": 0, "peak": 3 * 1024 + (23 << 20), "allocated": 3 * 1024 + (23 << 20), "freed": 3 * 1024 + (23 << 20),
    }  # fmt: skip
    assert statistics["inactive_split"]["all"]["current"] == 0 and len(memory.snapshot()) == 3
    memory.release_cached()
    assert memory.reserved.current == 0 and memory.snapshot() == []


def test_the_allocator_takes_the_best_fit_and_merges() -> None:
    memory = CachingAllocator(0, 1 << 30, MemoryError)
    blocks = [memory.allocate(size << 20) for size in (2, 3, 2, 4)]
    assert memory.reserved.current == 20 << 20
    addresses = [block.block.address for block in blocks]
    blocks[1] = None
    again = memory.allocate(3 << 20)
    assert again.block.address == addresses[1]  # 3 MiB fit exactly; 9 MiB at the end would, too
    again = blocks[0] = blocks[2] = None
    assert memory.allocate(7 << 20).block.address == addresses[0]  # three neighbours became one


def test_memory_runs_out_and_comes_back() -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        kept = []
        with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has "
                           r"a total capacity of 80.00 GiB of which .* allowed; Of the allocated memory"):  # fmt: skip
            while True:
                kept.append(torch.empty(2 << 20, device="cuda"))
        assert len(kept) >= 8 and torch.cuda.memory_stats()["num_ooms"] >= 1
        del kept
        assert torch.empty(4 << 20, device="cuda").is_cuda
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_impossible_requests_take_no_host_memory() -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate 800.00 GiB"):
        torch.empty(200 << 30, device="cuda")
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate 4000.00 GiB"):
        torch.zeros(1000, 1 << 30, device="cuda")


def test_out_of_memory_in_backward_can_be_survived() -> None:
    torch.cuda.empty_cache()
    weight = torch.ones(1 << 20, device="cuda", requires_grad=True)
    loss = (weight * 2).sum()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / (80 << 30))
    filler = torch.empty(torch.cuda.memory_reserved() - torch.cuda.memory_allocated() - (4 << 20), device="cuda",
                         dtype=torch.uint8)  # fmt: skip
    try:
        with pytest.raises(torch.OutOfMemoryError):
            loss.backward()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del filler
    (weight * 2).sum().backward()
    assert weight.grad[0].item() == 2


def test_reports_of_memory() -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    x = torch.empty(1 << 18, device="cuda")
    del x
    assert torch.cuda.max_memory_allocated() == before + (1 << 20) and torch.cuda.memory_allocated() == before
    assert "PyTorch CUDA memory summary, device ID 0" in torch.cuda.memory_summary()
    free, total = torch.cuda.mem_get_info()
    assert total == 80 << 30 and 0 < free <= total - torch.cuda.memory_reserved()
    for segment in torch.cuda.memory_snapshot():
        assert segment["total_size"] == sum(block["size"] for block in segment["blocks"])


def test_uncounted_memory() -> None:
    memory = CachingAllocator(0, 1 << 30, MemoryError)
    with uncounted(memory):
        assert memory.allocate(1000) is None
    assert memory.allocate(1000) is not None


# ---------------------------------------------------------------- random numbers
def test_generators_belong_to_devices() -> None:
    torch.manual_seed(3)
    one = torch.randn(3, device="cuda")
    torch.manual_seed(3)
    assert torch.equal(one, torch.randn(3, device="cuda")) and torch.cuda.initial_seed() == 3
    generator = torch.Generator("cuda").manual_seed(5)
    one = torch.rand(3, device="cuda", generator=generator)
    state = generator.get_state()
    two = torch.rand(3, device="cuda", generator=generator)
    generator.set_state(state)
    assert torch.equal(two, torch.rand(3, device="cuda", generator=generator)) and generator.device.type == "cuda"
    host = torch.get_rng_state()
    torch.nn.functional.dropout(torch.ones(9, device="cuda"))
    torch.randperm(9, device="cuda"), torch.multinomial(torch.ones(4, device="cuda"), 2)
    torch.normal(0.0, 1.0, (3,), device="cuda"), torch.bernoulli(torch.full((3,), 0.5, device="cuda"))
    assert torch.equal(host, torch.get_rng_state())


def test_forking_of_random_numbers() -> None:
    state = torch.cuda.get_rng_state()
    with torch.random.fork_rng():
        inside = torch.rand(2, device="cuda")
    assert torch.equal(inside, torch.rand(2, device="cuda"))
    torch.cuda.set_rng_state(state)
    assert torch.equal(inside, torch.rand(2, device="cuda"))


def test_generators_of_the_wrong_device() -> None:
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'cuda'"):
        torch.randn(3, generator=torch.Generator("cuda"))


# ---------------------------------------------------------------- streams, events, graphs
def test_events_tell_the_devices_time() -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    matrix = torch.empty(2048, 2048, device="cuda", dtype=torch.float32)
    start.record()
    matrix @ matrix
    end.record()
    torch.cuda.synchronize()
    # 17 GFLOP in float32 at 67 TFLOP/s at most.
    assert 0.2 < start.elapsed_time(end) < 2
    with pytest.raises(ValueError, match="enable_timing"):
        torch.cuda.Event().elapsed_time(end)


def test_streams() -> None:
    stream = torch.cuda.Stream()
    assert stream != torch.cuda.current_stream() and torch.cuda.current_stream() == torch.cuda.default_stream()
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream() == stream
        x = torch.ones(3, device="cuda") * 2
        x.record_stream(stream)
    torch.cuda.current_stream().wait_stream(stream)
    assert stream.query() and x.tolist() == [2, 2, 2] and torch.cuda.Stream(priority=-1).priority == -1


def test_graphs_replay_on_the_same_memory() -> None:
    x, weight = torch.arange(4.0, device="cuda"), torch.ones(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        part = (x * 2 + weight)[1:]
        total = part.sum()
        buffer = torch.empty(3, device="cuda")
        torch.add(part, 1, out=buffer)
        weight.add_(1)
    x.copy_(torch.tensor([0.0, 10, 20, 30]))
    weight.fill_(1)
    for count in (1, 2):
        graph.replay()
        assert part.tolist() == [20 + count, 40 + count, 60 + count] and total.item() == 120 + 3 * count
        assert buffer.tolist() == [21 + count, 41 + count, 61 + count] and weight[0].item() == 1 + count


def test_a_capture_runs_nothing() -> None:
    x, y, out = torch.ones(4, device="cuda"), torch.zeros(4, device="cuda"), torch.zeros(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1)
        made = (x * 2).mul_(2)
        torch.add(x, x, out=out)
        y[1:3].copy_(x[:2])
    assert (x == 1).all() and (y == 0).all() and (out == 0).all()
    for turn in (2, 3):
        graph.replay()
        assert x.tolist() == [turn] * 4 and y.tolist() == [0, turn, turn, 0]
        assert made.tolist() == [4 * turn] * 4 and out.tolist() == [2 * turn] * 4


def test_graphs_draw_new_random_numbers() -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        noise = torch.rand(100, device="cuda")
    graph.replay()
    one = noise.clone()
    graph.replay()
    assert not torch.equal(one, noise)


def test_graphs_of_a_training_step() -> None:
    model = torch.nn.Linear(4, 1).cuda()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    data, wanted = torch.randn(8, 4, device="cuda"), torch.zeros(8, 1, device="cuda")

    def step() -> torch.Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(data), wanted)
        loss.backward()
        optimiser.step()
        return loss

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    optimiser.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    losses = []
    for _ in range(5):
        graph.replay()
        losses.append(loss.item())
    assert all(later < earlier for earlier, later in zip(losses, losses[1:])), losses


def test_captures_refuse_to_wait() -> None:
    x = torch.ones(2, device="cuda")
    with pytest.raises(torch.AcceleratorError, match="operation not permitted when stream is capturing"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            (x * 2).sum().item()
    assert not torch.cuda.is_current_stream_capturing() and (x + 1).tolist() == [2, 2]


def test_ranges_go_to_the_timeline() -> None:
    assert torch.cuda.nvtx.range_push("outer") == 0 and torch.cuda.nvtx.range_push("inner") == 1
    assert torch.cuda.nvtx.range_pop() == 1 and torch.cuda.nvtx.range_pop() == 0
    with torch.cuda.nvtx.range("block"):
        torch.cuda.nvtx.mark("here")


def test_hidden_waits_are_reported() -> None:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="called a synchronizing CUDA operation"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- several devices
def test_two_devices(two_gpus: None) -> None:
    assert torch.cuda.device_count() == 2 and torch.cuda.get_device_name(1) == "NVIDIA A100-SXM4-80GB"
    one, other = torch.randn(3, device="cuda:0"), torch.randn(3, device="cuda:1")
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cuda:1!"):
        one + other
    with torch.cuda.device(1):
        assert torch.randn(2, device="cuda").get_device() == 1
        assert torch.cuda.memory_allocated() == torch.cuda.memory_allocated(1) > 0
    assert torch.cuda.current_device() == 0 and torch.equal(one.to("cuda:1").cpu(), one.cpu())
    other.requires_grad_()
    (other.to("cuda:0") * one).sum().backward()
    assert other.grad.get_device() == 1
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, device="cuda:0", generator=torch.Generator("cuda:1"))


def test_data_parallel(two_gpus: None) -> None:
    from torch import nn

    model = nn.DataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).cuda())
    data = torch.randn(6, 4, device="cuda")
    output = model(data)
    torch.testing.assert_close(output, model.module(data))
    output.sum().backward()
    assert all(parameter.grad.get_device() == 0 for parameter in model.parameters())


# ---------------------------------------------------------------- programs
def run(text: str, tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    program = tmp_path / "program.py"
    program.write_text(text)
    command = [sys.executable, "-m", "weft", "run", *options, str(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=dict(os.environ))


def test_an_unmodified_program(tmp_path: Path) -> None:
    text = (
        "import torch\n"
        "x = torch.ones(3, device='cuda')\n"
        "print(torch.cuda.get_device_name(), torch.cuda.device_count(), (x @ x).item())\n"
    )
    done = run(text, tmp_path, "--gpu", "rtx4080", "--gpus", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["2", "3.0"] and "RTX 4080" in done.stdout


def test_forked_children_cannot_use_cuda(tmp_path: Path) -> None:
    text = (
        "import os, torch\n"
        "torch.ones(2, device='cuda')\n"
        "if os.fork() == 0:\n"
        "    try: torch.ones(2, device='cuda')\n"
        "    except RuntimeError as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    done = run(text, tmp_path)
    assert "Cannot re-initialize CUDA in forked subprocess" in done.stdout, done.stdout + done.stderr


def test_attaching_after_torch_was_imported(tmp_path: Path) -> None:
    program = tmp_path / "late.py"
    program.write_text(
        "import torch, weft\n"
        "assert not torch.cuda.is_available()\n"
        "weft.install('h100')\n"
        "stream = torch.cuda.Stream()\n"
        "with torch.cuda.stream(stream): x = torch.ones(2, device='cuda')\n"
        "print(x.sum().item(), torch.cuda.memory_allocated())\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=250)
    assert done.stdout.split() == ["2.0", "512"], done.stderr
