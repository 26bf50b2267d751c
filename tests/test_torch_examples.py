"""The PyTorch examples run on the virtual GPU, shortened, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "pytorch"

# Example, shorter settings, chip, what a line of its output must match: the number in the group at least as large.
CASES = {
    "images_resnet": ("--epochs 2 --width 8", "rtx4080", r"test accuracy  ([\d.]+)%", 80),
    "anomaly_detection": ("--epochs 60", "t4", r"area under the ROC curve  ([\d.]+)", 0.9),
    "recommender": ("--epochs 3", "l4", r"recommender +hit rate ([\d.]+)%", 45),
    "distillation": ("--steps 60", "orin-nano", r"teacher .*test accuracy ([\d.]+)%", 80),
    "policy_gradient": ("--updates 15 --carts 64", "l4", r"the agent +mean round +([\d.]+) steps", 40),
    "text_generation": ("--steps 60", "a10", r"\(predicted\).* ([\d.]+) x", 2),
    "text_classification": ("--epochs 1", "a10", r"transformer +test accuracy ([\d.]+)%", 45),
    "diffusion": ("--epochs 20", "l4", r"drawings taken for the digit that was asked for +(\d+)%", 60),
    "serving": ("--requests 60", "l4", r"right answers +([\d.]+)%", 70),
}


def run_example(name: str, words: str, chip: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weft", "run", "--gpu", chip, str(FOLDER / f"{name}.py"), *words.split()]
    return subprocess.run(command, capture_output=True, text=True, timeout=280,
                          env={"OMP_NUM_THREADS": "1", **os.environ})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_example_reaches_its_goal(name: str) -> None:
    for package in ("torch", "sklearn", *(("fastapi", "uvicorn", "httpx") if name == "serving" else ())):
        pytest.importorskip(package)
    words, chip, pattern, least = CASES[name]
    done = run_example(name, words, chip)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.findall(pattern, done.stdout)[-1]) >= least, done.stdout
    assert "(measured)" in done.stdout and "(predicted)" in done.stdout
    rate = re.search(r"\(predicted\) +([\d.]+) ms", done.stdout)
    assert float(rate[1]) > 0
