"""Rates, roofline, matrix products and collectives against numbers worked out by hand, and against measured ones."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from weft.chips import all_chips, find_chip
from weft.errors import InvalidValueError
from weft.model.collectives import KINDS, estimate_collective, find_kind
from weft.model.families.matrix import gemm
from weft.model.profile import PIPES, Profile
from weft.model.rates import constants, link_bandwidth, peak_rate, sustained_bandwidth, sustained_rate
from weft.model.roofline import LAUNCH, MEMORY, MODEL, idle_power

ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------- rates
@pytest.mark.parametrize(
    "chip, unit, tera, kind",
    [
        ("h100", "tc_bf16", 989.4, "published"),
        ("h100", "fp32", 67.0, "published"),
        ("a100", "tc_tf32", 156.0, "published"),
        ("rtx4090", "fp32", 128 * 128 * 2 * 2.52e9 / 1e12, "derived"),
        ("rtx3080", "tc_fp16", 59.5, "derived"),  # GA102 white paper: 59.5 with f32 accumulation
        ("rtx4090", "tc_fp16", 165.2, "derived"),  # Ada white paper: 165.2
        ("rtx5090", "tc_fp16", 209.5, "derived"),  # Blackwell white paper: 209.5
        ("t4", "sfu", 40 * 16 * 1.59e9 / 1e12, "derived"),
        ("rtx3060", "fp64", 28 * 4 * 1.777e9 / 1e12, "derived"),
    ],
)
def test_peak_rates(chip: str, unit: str, tera: float, kind: str) -> None:
    found = peak_rate(find_chip(chip), unit)
    assert found.value / 1e12 == pytest.approx(tera, rel=2e-3) and (found.unit, found.kind) == (unit, kind)


@pytest.mark.parametrize(
    "chip, unit, does_the_work",
    [("v100", "tc_bf16", "fp32"), ("v100", "tc_tf32", "fp32"), ("a100", "tc_fp8", "tc_fp16"), ("t4", "tc_fp64", "fp64"),
     ("tpu-v5e", "tc_fp16", "tc_bf16"), ("rtx4090", "tc_fp4", "tc_fp8")],
)  # fmt: skip
def test_missing_units_are_replaced(chip: str, unit: str, does_the_work: str) -> None:
    assert peak_rate(find_chip(chip), unit).unit == does_the_work


@pytest.mark.parametrize("chip", all_chips(), ids=lambda chip: chip.name)
def test_every_chip_has_every_rate(chip) -> None:
    for unit in PIPES:
        assert sustained_rate(chip, unit) > 1e9, unit
    assert 0.6 * chip.memory_bandwidth < sustained_bandwidth(chip) <= chip.memory_bandwidth
    assert 0 < idle_power(chip) < 0.5 * chip.power
    assert link_bandwidth(chip, "pcie")


def test_links_are_halved_into_directions() -> None:
    h100 = find_chip("h100")
    assert link_bandwidth(h100, "nvlink") == pytest.approx(900e9 / 2 * 0.8)
    assert link_bandwidth(h100, "pcie") == pytest.approx(128e9 / 2 * 0.8)
    assert link_bandwidth(h100, "network") == pytest.approx(50e9 * 0.8)
    assert link_bandwidth(find_chip("t4"), "nvlink") is None


# ---------------------------------------------------------------- roofline
def test_large_elementwise_kernel_runs_at_memory_bandwidth() -> None:
    chip = find_chip("h100")
    profile = Profile("add", "pointwise", (("fp32", 1e8),), bytes_read=8e8, bytes_written=4e8)
    found = MODEL.estimate(profile, chip)
    assert found.seconds == pytest.approx(1.2e9 / 3.0e12 + 1.5e-6, rel=1e-6)  # 3.0 TB/s sustained, 1.5 us of start
    assert found.limiter == MEMORY and found.basis == "predicted"
    assert found.bounds["FP32 pipe"] == pytest.approx(1e8 / (67e12 * 0.85))


def test_tiny_kernel_is_bound_by_its_start() -> None:
    found = MODEL.estimate(Profile("add", "pointwise", bytes_read=64, bytes_written=32), find_chip("h100"))
    assert found.limiter == LAUNCH and found.seconds == pytest.approx(1.5e-6, rel=0.01)


def test_data_in_the_cache_moves_faster() -> None:
    chip = find_chip("h100")  # 50 MiB of L2, half of which counts
    small = MODEL.estimate(Profile("add", "pointwise", bytes_read=20e6), chip)
    assert small.bounds[MEMORY] == pytest.approx(20e6 / 3.0e12 / 3.0)
    large = MODEL.estimate(Profile("add", "pointwise", bytes_read=200e6), chip)
    assert large.bounds[MEMORY] == pytest.approx(200e6 / 3.0e12)


def test_few_blocks_use_few_sms() -> None:
    chip = find_chip("h100")  # 132 SMs
    shape = {"flops": (("fp32", 1e10),), "bytes_read": 1e9}
    all_of_it = MODEL.estimate(Profile("k", "compiled", **shape, blocks=1320), chip)
    quarter = MODEL.estimate(Profile("k", "compiled", **shape, blocks=33), chip)
    eighth = MODEL.estimate(Profile("k", "compiled", **shape, blocks=16), chip)
    assert quarter.bounds["FP32 pipe"] == pytest.approx(4 * all_of_it.bounds["FP32 pipe"])
    assert quarter.bounds[MEMORY] == pytest.approx(all_of_it.bounds[MEMORY]), "an SM reaches four times its share"
    assert eighth.bounds[MEMORY] == pytest.approx(all_of_it.bounds[MEMORY] * 132 / 64)


@pytest.mark.parametrize("access, factor", [("stream", 1.0), ("strided", 0.75), ("random", 0.25)])
def test_access_costs_bandwidth(access: str, factor: float) -> None:
    found = MODEL.estimate(Profile("x", "copy", bytes_read=1e9, access=access), find_chip("a100"))
    assert found.bounds[MEMORY] == pytest.approx(1e9 / (1.759e12 * factor))


def test_arithmetic_binds_where_there_is_enough() -> None:
    found = MODEL.estimate(Profile("x", "pointwise", (("fp64", 1e12),), bytes_read=1e6), find_chip("rtx4090"))
    assert found.limiter == "FP64 pipe"
    assert found.seconds == pytest.approx(1e12 / (128 * 4 * 2.52e9 * 0.85), rel=1e-3)


@pytest.mark.parametrize("chip, name", [("t4", "FP32 pipe"), ("h100", "tensor cores (BF16)")])
def test_the_limiter_is_the_unit_that_does_the_work(chip: str, name: str) -> None:
    """A T4 has no tensor cores for bf16."""
    product = MODEL.estimate(gemm("g", 1, 4096, 4096, 4096, "bfloat16", False, 6e7, 3e7), find_chip(chip))
    assert product.limiter == name and name in product.bounds


def test_energy_lies_between_idle_and_limit() -> None:
    chip = find_chip("h100")
    for profile in (
        Profile("x", "pointwise", bytes_read=1e9),
        Profile("x", "pointwise", (("fp32", 1e12),)),
        Profile("x", "pointwise", bytes_read=10),
    ):
        found = MODEL.estimate(profile, chip)
        assert chip.idle_power < found.joules / found.seconds <= chip.power


@pytest.mark.parametrize("name", ["h100", "a100", "l40s", "rtx3060", "agx-orin", "v100", "b200", "mi300x", "tpu-v6e"])
def test_large_product_reaches_the_sustained_rate(name: str) -> None:
    chip = find_chip(name)
    n = 8192
    profile = gemm("gemm", 1, n, n, n, "bfloat16", False, 2 * n * n * 2, n * n * 2)
    found = MODEL.estimate(profile, chip)
    reached = 2 * n**3 / found.seconds / sustained_rate(chip, "tc_bf16")
    assert 0.75 < reached < 1.1, reached


def test_a_partly_filled_last_wave_costs_a_whole_one() -> None:
    chip = find_chip("h100")  # 132 SMs: 132 tiles of 256 x 128 are one wave, 133 nearly two
    one = MODEL.estimate(gemm("g", 1, 256 * 12, 128 * 11, 4096, "bfloat16", False, 0, 0), chip)
    more = MODEL.estimate(gemm("g", 1, 256 * 12, 128 * 11 + 1, 4096, "bfloat16", False, 0, 0), chip)
    assert more.seconds > 1.2 * one.seconds


def test_error_range_is_given_where_it_was_measured() -> None:
    found = MODEL.estimate(gemm("g", 1, 512, 512, 512, "bfloat16", False, 1e6, 5e5), find_chip("h100"))
    assert found.low < found.seconds < found.high
    assert MODEL.estimate(Profile("x", "copy", bytes_read=1e9), find_chip("h100")).low is None


# ---------------------------------------------------------------- against measurements
def load_accuracy():
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "bench" / "accuracy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_matrix_products_agree_with_measured_times() -> None:
    """600 shapes for each of three chips that the constants were not fitted to."""
    rows = [row for row in load_accuracy().rows() if (row["from_seconds"], row["to_seconds"]) == (0.0, 10.0)]
    assert {row["chip"] for row in rows} == {"a100-80gb", "h100", "l40s"} and all(row["cases"] == 600 for row in rows)
    for row in rows:
        assert row["model"]["median"] < 0.15, row
        assert abs(row["model"]["bias"]) < 0.07, row
        assert row["model"]["median"] < 0.5 * row["bare_roofline"]["median"], row


def test_sustained_numbers_are_those_measured() -> None:
    import csv

    with (ROOT / "bench/measured/memory.csv").open() as file:
        for row in csv.DictReader(file):
            try:
                chip = find_chip(row["chip"])
            except InvalidValueError:
                continue
            assert chip.sustained_bandwidth == pytest.approx(float(row["triad_gb_s"]) * 1e9), chip.name
    with (ROOT / "bench/measured/peaks.csv").open() as file:
        for row in csv.DictReader(file):
            if row["chip"] in {chip.name for chip in all_chips()}:
                assert find_chip(row["chip"]).sustained_tensor_rate == float(row["bf16_tflops"]) * 1e12


# ---------------------------------------------------------------- collectives
def test_all_reduce_of_a_gigabyte_on_eight_h100() -> None:
    found = estimate_collective(find_chip("h100"), "all_reduce", 10**9, 8)
    # A ring moves 2 * 7/8 of the buffer at 360 GB/s.
    assert found.seconds == pytest.approx(1.75e9 / 360e9, rel=0.03) and found.limiter == "NVLink"
    # NCCL's own bus bandwidth there is 360 to 480 GB/s.
    assert 330e9 < 1.75e9 / found.seconds < 480e9


def test_small_all_reduce_is_bound_by_latency() -> None:
    found = estimate_collective(find_chip("h100"), "all_reduce", 1024, 8)
    assert found.limiter == "link latency" and 5e-6 < found.seconds < 40e-6


def test_without_nvlink_pcie_carries_it() -> None:
    found = estimate_collective(find_chip("l40s"), "all_gather", 10**9, 4)
    assert found.limiter == "PCIe" and found.seconds == pytest.approx(0.75e9 / 25.6e9, rel=0.03)


def test_between_servers_the_network_binds() -> None:
    inside = estimate_collective(find_chip("h100"), "all_reduce", 10**9, 8)
    across = estimate_collective(find_chip("h100"), "all_reduce", 10**9, 16, 2)
    assert across.limiter == "network" and across.seconds > 5 * inside.seconds
    assert across.seconds == pytest.approx(2 * 15 / 16 * 1e9 / 40e9, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_collectives_grow_with_bytes_and_ranks(kind: str) -> None:
    chip = find_chip("a100")
    small, large = (estimate_collective(chip, kind, size, 8).seconds for size in (1 << 10, 1 << 28))
    assert small <= large and (kind == "barrier") == (small == large)
    assert estimate_collective(chip, kind, 1 << 20, 1).seconds <= estimate_collective(chip, kind, 1 << 20, 2).seconds


def test_trees_help_many_servers() -> None:
    """A ring's latency grows with the number of servers, a tree's with its logarithm."""
    chip = find_chip("h100")
    few = estimate_collective(chip, "all_reduce", 1 << 10, 64, 8).seconds
    many = estimate_collective(chip, "all_reduce", 1 << 10, 512, 64).seconds
    assert many - few == pytest.approx(2 * math.log2(8) * constants()["collectives"]["low_latency"]["hop"]["network"])


@pytest.mark.parametrize(
    "name, kind",
    [("c10d::allreduce_", "all_reduce"), ("_c10d_functional::all_gather_into_tensor", "all_gather"),
     ("c10d::_reduce_scatter_base_", "reduce_scatter"), ("c10d::alltoall_base_", "all_to_all"),
     ("c10d::send", "p2p"), ("broadcast", "broadcast"), ("c10d::reduce_", "reduce")],
)  # fmt: skip
def test_names_of_collectives(name: str, kind: str) -> None:
    assert find_kind(name) == kind


def test_bad_collectives() -> None:
    with pytest.raises(InvalidValueError, match="kind of collective: found 'gossip'"):
        estimate_collective(find_chip("h100"), "gossip", 8, 2)
    with pytest.raises(InvalidValueError, match="2 ranks on 4 nodes"):
        estimate_collective(find_chip("h100"), "all_reduce", 8, 2, 4)
