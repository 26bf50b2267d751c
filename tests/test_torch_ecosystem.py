"""Published packages on a virtual GPU: the light checks of tools/nightly_torch.py, and what they found."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
# They take seconds to import, so the tests do that, and the other files of this process come without.
if missing := [name for name in ("transformers", "accelerate") if find_spec(name) is None]:
    pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)

import weft  # noqa: E402

TOOLS = Path(__file__).parents[1] / "tools"


@contextlib.contextmanager
def tools_in_reach() -> Iterator[None]:
    sys.path.insert(0, str(TOOLS))
    try:
        yield
    finally:
        sys.path.remove(str(TOOLS))


with tools_in_reach():
    import nightly_huggingface
    import nightly_training
    from nightly_checks import compare, error_of, plain_settings
    from nightly_models import FAMILIES

LIGHT = {
    name: check
    for module in (nightly_huggingface, nightly_training)
    for name, check in module.CHECKS.found.items()
    if check.light
}


@pytest.fixture(scope="module", autouse=True)
def gpu() -> weft.Device:
    return weft.install("h100", children=False)


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_agrees_with_the_cpu(name: str) -> None:
    if missing := [package for package in LIGHT[name].packages if find_spec(package) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    assert LIGHT[name].run()


def test_wrong_results_are_noticed() -> None:
    right = torch.tensor([1.0, 2.0])
    assert compare([right], [right], 0.0, "values") == 0
    for wrong in (right + 0.1, right[:1], torch.tensor([1.0, float("nan")])):
        assert error_of(wrong, right) > 0.04
        with pytest.raises(AssertionError, match="values: "):
            compare([wrong], [right], 0.01, "values")
    with pytest.raises(AssertionError, match="nothing to compare"):
        compare([], [], 0.01, "values")


def test_every_operator_of_a_model_has_a_price() -> None:
    """Forward, backward and an optimiser's step of every family: nothing is priced by bytes alone."""
    from weft import timeline as timelines

    before = timelines.current()
    assert before is not None
    counted = dict(before.clock.counts.bytes_only)
    with plain_settings():
        for family in FAMILIES.values():
            model = copy.deepcopy(family.make("sdpa")).cuda().train()
            optimiser = torch.optim.AdamW(model.parameters())
            inputs = {name: value.cuda() for name, value in family.inputs().items()}
            with torch.autocast("cuda", torch.bfloat16):
                model(**inputs).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            if family.prompt is not None:
                model.eval().generate(
                    **{name: value.cuda() for name, value in family.prompt().items()}, max_new_tokens=3
                )
    found: dict[str, Any] = before.clock.counts.bytes_only
    assert {name: count - counted.get(name, 0) for name, count in found.items() if count != counted.get(name)} == {}


# ---------------------------------------------------------------- what the checks found
def test_histogram_of_integers() -> None:
    """Mixtral counts its experts' tokens with histc of integers, which only CUDA has."""
    values = torch.tensor([0, 3, 1, 3, -4, 9, 2, 3], dtype=torch.int32)
    for bins, low, high in ((4, 0, 3), (3, -4, 9), (5, 0, 0), (2, 1, 2)):
        expected = torch.histc(values.double(), bins, low, high)
        found = torch.histc(values.cuda(), bins, low, high)
        assert found.dtype is torch.int32 and found.tolist() == expected.tolist(), (bins, low, high)
    assert torch.histc(torch.full((3,), 7, device="cuda"), 2).tolist() == [0, 3]
    out = torch.empty(0, dtype=torch.int32, device="cuda")
    assert torch.histc(values.cuda(), 4, 0, 3, out=out) is out and out.tolist() == [1, 1, 1, 3]
    with pytest.raises(RuntimeError, match="max must be larger than min"):
        torch.histc(values.cuda(), 4, 3, 0)
    with pytest.raises(RuntimeError, match="bins must be > 0"):
        torch.histc(values.cuda(), 0, 0, 3)


def test_a_compiled_function_that_writes_into_its_inputs_is_not_captured() -> None:
    """generate with a static cache compiles with CUDA graphs; the run before the capture would write a second time."""
    pytest.importorskip("triton")

    @torch.compile(mode="reduce-overhead", fullgraph=True)
    def advance(count: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        table.index_copy_(0, count, count.float())
        count.add_(1)
        return table * 2

    count, table = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.full((3,), -1.0, device="cuda")
    for expected in ([0.0, -2.0, -2.0], [0.0, 2.0, -2.0], [0.0, 2.0, 4.0]):
        assert advance(count, table).tolist() == expected
    assert count.item() == 3


def test_first_use_of_a_gpu_where_gradients_are_off() -> None:
    """As in a pipeline of a program that installs Weft after it imported torch and trained on the CPU."""
    program = """
        import torch
        from torch._dynamo.device_interface import CudaInterface  # as transformers imports it
        (torch.ones(2, requires_grad=True) * 3).sum().backward()
        import weft
        weft.install("h100", children=False)
        with torch.inference_mode():
            print(torch.ones(3, device="cuda").sum().item())
        weight = torch.ones(2, device="cuda", requires_grad=True)
        (weight * 2).sum().backward()
        print(weight.grad.tolist())
        raw = CudaInterface.get_raw_stream(0)
        print(CudaInterface.exchange_device(0), CudaInterface.Stream is torch.cuda.Stream, raw)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3.0", "[2.0, 2.0]", "0 True 0"]


def test_weft_run_inside_weft_run(tmp_path: Path) -> None:
    """The inner command's choice stands, though its process and that of a launcher inherit the outer one's."""
    inner, outer = tmp_path / "inner.py", tmp_path / "outer.py"
    inner.write_text("import torch; print(torch.cuda.get_device_name(), torch.cuda.device_count())")
    outer.write_text(
        textwrap.dedent(f"""
            import subprocess, sys
            command = [sys.executable, "-m", "weft", "run", "--no-summary", "--gpu", "t4", "--gpus", "2"]
            subprocess.run([*command, {str(inner)!r}], check=True)
        """)
    )
    command = [sys.executable, "-m", "weft", "run", "--no-summary", "--gpu", "a100", str(outer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Tesla T4 2"


# ---------------------------------------------------------------- the tool
def test_the_tool_prints_a_table_and_fails_with_a_check(tmp_path: Path) -> None:
    broken = tmp_path / "nightly_broken.py"
    broken.write_text(
        textwrap.dedent("""
            import os
            from nightly_checks import Checks
            CHECKS = Checks("torch")
            CHECKS.add("right")(lambda: "well")
            CHECKS.add("wrong")(lambda: str(1 / 0))
            CHECKS.add("dies")(lambda: os._exit(3))
            CHECKS.add("right again")(lambda: "well")
            CHECKS.add("elsewhere", "no_such_package")(lambda: "never")
        """)
    )
    program = tmp_path / "run.py"
    program.write_text(
        textwrap.dedent(f"""
            import sys
            sys.path[:0] = [{str(TOOLS)!r}, {str(tmp_path)!r}]
            import nightly_torch
            nightly_torch.GROUPS = {{"broken": ("torch",)}}
            nightly_torch.__file__ = __file__
            sys.exit(nightly_torch.main())
        """)
    )
    rows = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, str(program), "--json", str(rows)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1, done.stdout + done.stderr
    states = {row["check"]: (row["state"], row["detail"]) for row in json.loads(rows.read_text())}
    assert states == {
        "right": ("agrees", "well"),
        "wrong": ("fails", "ZeroDivisionError: division by zero"),
        "dies": ("fails", "the process died with exit code 3"),
        "right again": ("agrees", "well"),
    }
    assert "2 of 4 checks agree" in done.stdout and "not installed: no_such_package" in done.stdout
