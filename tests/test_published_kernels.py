"""tools/published_kernels.py: a few operators of each published package; the tool itself runs all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "published_kernels.py"

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")


@pytest.mark.parametrize(
    "package, module, only",
    [("fla", "fla", "l2norm"), ("fla", "fla", "fused_recurrent_retention"), ("liger", "liger_kernel", "rms_norm")],
)
def test_operators_agree(package: str, module: str, only: str, tmp_path: Path) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    results = tmp_path / "results.json"
    command = [sys.executable, str(TOOL), "--package", package, "--only", only, "--json", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    rows = json.loads(results.read_text())
    assert rows and all(row["state"] == "agrees" for row in rows), done.stdout + done.stderr
    assert done.returncode == 0


def test_a_wrong_result_differs() -> None:
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(TOOL.parent))
    try:
        from published_cases import Case
        from published_kernels import check_case
    finally:
        sys.path.remove(str(TOOL.parent))

    def inputs():
        return {"x": torch.randn(50)}

    right = check_case(Case("right", inputs, lambda x: x.sin(), lambda x: x.sin()), "cpu")
    assert right == {"out": 0.0, "dx": 0.0}
    wrong = check_case(Case("wrong", inputs, lambda x: x.sin() + 0.1, lambda x: x.sin()), "cpu")
    assert wrong["out"] > 0.05 and wrong["dx"] == 0.0
    broken = check_case(Case("broken", inputs, lambda x: x / 0, lambda x: x.sin()), "cpu")
    assert broken["out"] != broken["out"]
