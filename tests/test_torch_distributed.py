"""Several virtual GPUs in several processes: NCCL by name, what PyTorch builds on it, launchers, ranks that die.

The ranks' side, which compares numbers, is tests/torch_ranks.py. Starting processes takes longer than all that they
check, so one job runs all parts, and the tests here look at what it said.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

PROGRAM = str(Path(__file__).with_name("torch_ranks.py"))
PARTS = (
    "reductions", "movements", "batches", "refusals", "groups", "ddp", "ddp_mixed", "overlap", "prefetch", "links",
    "graphs", "random_numbers", "fsdp", "tensor_parallel", "pipeline", "data_parallel", "eager",
)  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def weft_run(*words: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "weft", "run", "--gpus", "2", *words]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(weft_run(*words), capture_output=True, text=True, timeout=280, env=ENVIRONMENT)


def test_a_job_of_two_ranks(tmp_path: Path) -> None:
    """All parts, in processes that torch.multiprocessing.spawn starts; then what Weft reports of them.

    There is one summary for all ranks; the JSON and the trace have each of them, and their collectives lie together.
    """
    done = run("--json", str(tmp_path / "run.json"), "--trace", str(tmp_path / "trace.json"), PROGRAM, *PARTS)
    # The first part that fails ends the job, and says why.
    passed = done.stdout.splitlines()
    assert [part for part in PARTS if passed.count(f"{part} passed") == 2] == list(PARTS), done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("weft: ")]
    assert sum(line.startswith("weft: time ") for line in lines) == 1, lines
    assert lines[-1].startswith("weft: this is rank 0 of 2 processes; all of them "), lines
    data = json.loads((tmp_path / "run.json").read_text())
    assert [found["rank"] for found in data["processes"]] == [0, 1]
    first, second = (found["predicted"]["elapsed_seconds"] for found in data["processes"])
    assert first == pytest.approx(second, rel=0.2)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    reductions: dict[int, set[float]] = {}
    for event in events:
        if event["name"] == "all_reduce":
            reductions.setdefault(event["pid"], set()).add(event["ts"])
    one, other = reductions.values()
    assert len(one) > 50 and len(one & other) > 0.9 * len(one | other), "reductions start together on both ranks"


def test_torchrun() -> None:
    """The launcher by its name on PATH, and by its module, which starts the ranks as new programs."""
    done = run("torchrun", "--standalone", "--nproc-per-node", "2", PROGRAM, "groups")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines().count("groups passed") == 2
    assert "this is rank 0 of 2 processes" in done.stderr


def test_a_rank_that_dies_is_named(tmp_path: Path) -> None:
    """Two ranks started one by one, so that nobody but they themselves can notice."""
    environment = {**ENVIRONMENT, "TORCH_RANKS_STORE": f"file://{tmp_path}/store"}
    ranks = [
        subprocess.Popen(
            weft_run("--no-summary", PROGRAM, "dies"), env={**environment, "RANK": str(rank)}, text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    _, text = ranks[0].communicate(timeout=120)
    since = time.monotonic()
    assert ranks[1].wait(timeout=60) == 3
    assert time.monotonic() - since < 20, "neither waits for the other's timeout"
    assert ranks[0].returncode == 1
    assert f"all_reduce in process group '0' failed: rank 1 (process {ranks[1].pid}) ended" in text, text[-3000:]


def test_what_is_said_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has ended is seen before its parent takes notice; a rank of another machine is never said to have ended."""
    from weft.frontends.torch import distributed_peers as peers

    here = socket.gethostname()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    processes = {0: (here, os.getpid()), 1: (here, ended.pid), 2: (here, os.getpid()), 3: ("elsewhere", ended.pid)}
    monkeypatch.setattr(peers, "job", peers.Job(rank=0, size=4, processes=processes))
    lost = RuntimeError("[third_party/gloo/x.cc:1] Connection closed by peer. This is typically caused by a crash")
    assert peers.is_lost_connection(lost) and not peers.is_lost_connection(RuntimeError("invalid tensor size"))
    text = peers.explain_failure("all_reduce", [0, 1, 2, 3], lost)
    assert f"[rank 0] all_reduce failed: rank 1 (process {ended.pid}) ended" in text and "typically" not in text
    ended.wait()
    assert peers.find_ended([1]) == [1], "nor does it matter that the process is gone altogether"
    monkeypatch.setattr(peers, "_PATIENCE", 0.0)
    assert "a connection to another rank was lost" in peers.explain_failure("all_reduce", [0, 2, 3], lost)
    late = RuntimeError("Timed out waiting 600000ms for recv operation to complete")
    assert "not every rank came within the timeout" in peers.explain_failure("all_reduce", [0, 2], late)
