"""torch.compile on virtual GPUs: Inductor's own Triton kernels run on the engine and agree with the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

import weft  # noqa: E402
from weft import timeline  # noqa: E402

PROGRAM = """
import torch

@torch.compile
def step(x, y):
    return torch.nn.functional.gelu(x * 2 + y).sum(-1)

torch.manual_seed(0)
x, y = torch.randn(33, 70), torch.randn(33, 70)
near, far = x.clone().requires_grad_(), x.cuda().requires_grad_()
want = torch.nn.functional.gelu(near * 2 + y).sum(-1)
got = step(far, y.cuda())
assert got.device.type == "cuda"
torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-5)
want.square().sum().backward()
got.square().sum().backward()
torch.testing.assert_close(far.grad.cpu(), near.grad, rtol=1e-4, atol=1e-4)
from torch._inductor.utils import run_and_get_code
assert any("triton" in code for code in run_and_get_code(torch.compile(torch.cos), far.detach())[1])
print("agrees")
"""


@pytest.mark.slow
def test_inductors_kernels_agree(tmp_path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "weft", "run", "--gpu", "h100", str(tmp_path / "program.py")]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agrees" in done.stdout


@pytest.fixture(scope="module", autouse=True)
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[weft.Device]:
    """The virtual GPU, and folders of this module's own for what Inductor keeps."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))
    yield weft.install("h100", children=False)
    torch._dynamo.reset()
    if before is None:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    else:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def check(function: Callable[..., Any], *inputs: Any, tolerance: float = 1e-5, **options: Any) -> Any:
    """A compiled function on CUDA tensors against the same function on the CPU; returns the compiled function."""
    torch._dynamo.reset()
    compiled = torch.compile(function, **options)
    torch.testing.assert_close(
        compiled(*[value.cuda() for value in inputs]).cpu(), function(*inputs), rtol=tolerance, atol=tolerance
    )
    return compiled


def graph_launches() -> int:
    current = timeline.current()
    return sum(type(current.work[record >> timeline.LANE_BITS]).__name__ == "GraphLaunch" for record in current._log)


def count_kernels() -> int:
    return sum(span.kind == "kernel" for span in timeline.current().spans())


def scores(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).softmax(-1).sum(0)


def test_sizes_that_change_compile_once() -> None:
    compiled = check(scores, torch.randn(5, 7), dynamic=True, fullgraph=True)
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    for rows in (9, 33):
        x = torch.randn(rows, 7)
        torch.testing.assert_close(compiled(x.cuda()).cpu(), scores(x))
    assert counters["stats"]["unique_graphs"] == before


def test_reduce_overhead_replays_graphs() -> None:
    x, w = torch.randn(12, 17), torch.randn(17, 17)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return (x @ w.to(x.device)).relu() + 1

    w = w.cuda()
    compiled = torch.compile(layer, mode="reduce-overhead")
    before = graph_launches()
    for shift in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        want = ((x + shift) @ w.cpu()).relu() + 1
        torch.testing.assert_close(compiled((x + shift).cuda()).cpu(), want, rtol=1e-4, atol=1e-4)
    assert graph_launches() >= before + 3


@pytest.mark.slow
def test_autotuning_chooses_among_real_candidates(capfd: pytest.CaptureFixture[str]) -> None:
    import torch._inductor.config as config

    before = count_kernels()
    with config.patch({"test_configs.autotune_choice_name_regex": r"triton_mm_[01]$|^mm$"}):
        x = torch.randn(32, 32)
        check(lambda a: (a @ a).relu(), x, mode="max-autotune-no-cudagraphs", tolerance=1e-4)
    assert "AUTOTUNE mm(32x32, 32x32)" in capfd.readouterr().err
    # What was tried is not the program's work.
    assert 1 <= count_kernels() - before <= 2


@pytest.mark.slow
def test_training_step_with_compiled_optimizer_and_mixed_precision() -> None:
    torch._dynamo.reset()

    def make() -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).cuda()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    x = torch.randn(6, 8, device="cuda")
    results = []
    for compiled in (False, True):
        model, optimizer = make()
        forward = torch.compile(model) if compiled else model
        step = torch.compile(optimizer.step) if compiled else optimizer.step
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                out = forward(x)
            assert out.dtype is torch.bfloat16
            out.float().square().mean().backward()
            step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    for ours, plain in zip(results[1], results[0]):
        torch.testing.assert_close(ours, plain, rtol=2e-2, atol=5e-3)


@pytest.mark.slow
def test_flex_attention() -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    q, k, v = (torch.randn(1, 2, 128, 16) for _ in range(3))
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 128, 128, device="cuda")
    got = torch.compile(flex_attention)(q.cuda(), k.cuda(), v.cuda(), block_mask=mask)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(got.cpu(), want, rtol=2e-2, atol=2e-2)


@triton.jit
def double_kernel(x, y, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, tl.load(x + index, mask=index < n) * 2, mask=index < n)


def double(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    double_kernel[(triton.cdiv(x.numel(), 64),)](x, y, x.numel(), BLOCK=64)
    return y


def test_kernels_of_the_programs_own_inside() -> None:
    torch._dynamo.reset()
    x = torch.randn(100, device="cuda")
    torch.testing.assert_close(torch.compile(lambda x: double(x).sin(), fullgraph=True)(x), (x * 2).sin())


def test_settings_that_need_a_real_gpu_do_not_break() -> None:
    import torch._inductor.config as config

    with config.patch({"use_static_cuda_launcher": True, "compile_threads": 4}):
        check(lambda x: (x * 5).softmax(-1).sum(0), torch.randn(12, 17))


def test_cpp_wrapper_is_refused() -> None:
    torch._dynamo.reset()
    with pytest.raises(Exception, match="need a CUDA build of PyTorch"):
        torch.compile(scores, options={"cpp_wrapper": True})(torch.randn(3, 7, device="cuda"))
