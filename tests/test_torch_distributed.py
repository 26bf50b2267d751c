"""Several virtual GPUs in several processes: collectives by the name of NCCL, and what PyTorch builds on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

PROGRAM = Path(__file__).with_name("torch_ranks.py")


def run(*arguments: str, module: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "weft", "run", "--gpus", "2"]
    command += ["-m", module, "--nproc-per-node", "2", "--master-port", "29611"] if module else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": "29612"}
    return subprocess.run(
        [*command, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=280, env=environment
    )


@pytest.mark.slow
def test_two_ranks_of_spawned_processes() -> None:
    done = run("collectives", "ddp", "fsdp", "tensor_parallel")
    assert done.returncode == 0, done.stderr[-3000:]
    for part in ("collectives", "ddp", "fsdp", "tensor_parallel"):
        assert done.stdout.count(f"{part} passed") == 2, done.stdout


def test_torchrun() -> None:
    done = run("collectives", module="torch.distributed.run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("collectives passed") == 2


def test_a_rank_that_dies_ends_the_others() -> None:
    done = run("dies")
    assert done.returncode != 0, done.stdout
    assert "process 1 terminated with exit code 3" in done.stderr or "Connection closed by peer" in done.stderr
