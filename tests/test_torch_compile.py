"""torch.compile on virtual GPUs: Inductor's own Triton kernels run on the engine and agree with the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

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
