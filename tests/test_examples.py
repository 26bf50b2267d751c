"""The examples do what they claim, run as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from weft.errors import CompileError
from weft.frontends.cuda_cpp import find_compiler

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "examples" / "digits_cuda.py"


def run_digits(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "weft", "run", str(DIGITS), "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ)


def require_compiler(name: str) -> None:
    try:
        find_compiler(name)
    except CompileError as error:
        pytest.skip(str(error))


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.slow
def test_digits_reaches_its_accuracy_with_nvrtc(tmp_path: Path) -> None:
    require_compiler("nvrtc")
    picture = tmp_path / "digits.png"
    done = run_digits(picture, "--check", "--compiler", "nvrtc")
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = float(re.search(r"test accuracy  ([\d.]+)%", done.stdout)[1])
    assert accuracy >= 96.0
    assert done.stdout.count("agrees with NumPy") == 3
    assert "no GPU needed" in done.stdout and "\x1b" not in done.stdout
    width, height = png_size(picture)
    assert width > 800 and height > 300


@pytest.mark.slow
def test_digits_with_clang(tmp_path: Path) -> None:
    require_compiler("clang")
    done = run_digits(tmp_path / "digits.png", "--check", "--compiler", "clang", "--epochs", "4", "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.search(r"test accuracy  ([\d.]+)%", done.stdout)[1]) >= 90.0


def test_digits_refuses_zero_epochs(tmp_path: Path) -> None:
    done = run_digits(tmp_path / "digits.png", "--epochs", "0")
    assert done.returncode == 2
    assert "--epochs must be at least 1" in done.stderr
