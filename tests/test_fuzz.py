"""Random kernels through the compiled engine and the reference. `python -m tests.fuzz` runs as many as one likes."""

from __future__ import annotations

import os

import pytest
from fuzz.compare import check, difference, run_engine, run_reference, shrink
from fuzz.generator import generate, render, smaller

import weft

FIRST = int(os.environ.get("WEFT_FUZZ_SEED", "0"))
COUNT = int(os.environ.get("WEFT_FUZZ_COUNT", "25"))


@pytest.fixture(scope="module")
def gpu() -> weft.Device:
    return weft.Device()


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_gives_one_kernel_and_one_result(seed: int) -> None:
    program, again = generate(seed), generate(seed)
    assert render(program) == render(again)
    assert run_reference(program, render(program)) == run_reference(again, render(again))


def test_what_is_cut_away_leaves_a_valid_kernel() -> None:
    program = generate(3)
    for candidate in list(smaller(program))[::7]:
        run_reference(candidate, render(candidate))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_compiled_code_agrees_with_the_reference(gpu: weft.Device, seed: int) -> None:
    program = generate(seed)
    wrong = check(gpu, program)
    assert wrong is not None, "the reference cannot run a generated kernel"
    if wrong:
        program, wrong = shrink(gpu, program, wrong, attempts=100)
        shape = f"grid {program.grid} block {program.block} n {program.n}"
        raise AssertionError(f"seed {seed}: {wrong}\n{shape}\n{render(program)}")


def test_results_do_not_depend_on_the_order_of_blocks_and_warps(gpu: weft.Device) -> None:
    shuffled = weft.Device(seed=7)
    for seed in range(40, 44):
        program = generate(seed)
        text = render(program)
        assert difference(program, run_engine(gpu, program, text), run_engine(shuffled, program, text)) == ""
