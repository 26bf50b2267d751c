"""The catalogue: names, limits, and that every number has a source."""

from __future__ import annotations

import pytest

from weft import settings
from weft.chips import FIELDS, all_chips, find_chip
from weft.errors import InvalidValueError
from weft.runtime.occupancy import compute_occupancy


def test_the_first_five_are_there() -> None:
    names = {chip.name for chip in all_chips()}
    assert {"rtx3060", "rtx4080", "a100-80gb", "h100", "agx-orin"} <= names


@pytest.mark.parametrize("chip", all_chips(), ids=lambda chip: chip.name)
def test_facts_are_plausible_and_sourced(chip) -> None:
    assert set(chip.facts) <= set(FIELDS)
    for field, fact in chip.facts.items():
        assert fact.source.title and fact.source.url.startswith("https://") and fact.source.date[:2] == "20", field
    limits = chip.capability
    assert limits.sources and limits.max_threads_per_block == 1024 and limits.shared_per_block == 48 << 10
    # The opt-in maximum is what an SM has less the 1 KiB that the system keeps.
    assert limits.shared_per_block_optin == limits.shared_per_sm - limits.shared_reserved
    assert 1 <= chip.sm_count <= 200 and 4 << 30 <= chip.memory_bytes <= 512 << 30
    assert 0.5e9 < chip.boost_clock < 3.5e9 and 50e9 < chip.memory_bandwidth < 10e12
    assert chip.base_clock is None or chip.base_clock < chip.boost_clock


@pytest.mark.parametrize(
    "name, sms, sm, warps, blocks, optin",
    [
        ("rtx3060", 28, (8, 6), 48, 16, 99),
        ("rtx4080", 76, (8, 9), 48, 24, 99),
        ("a100-80gb", 108, (8, 0), 64, 32, 163),
        ("h100", 132, (9, 0), 64, 32, 227),
        ("agx-orin", 16, (8, 7), 48, 16, 163),
    ],
)
def test_limits(name: str, sms: int, sm: tuple[int, int], warps: int, blocks: int, optin: int) -> None:
    chip = find_chip(name)
    limits = chip.capability
    assert (chip.sm_count, chip.compute_capability) == (sms, sm)
    assert (limits.warps_per_sm, limits.blocks_per_sm, limits.shared_per_block_optin) == (warps, blocks, optin << 10)
    assert chip.arch == f"sm_{sm[0]}{sm[1]}"


@pytest.mark.parametrize(
    "spelling, name",
    [("H100", "h100"), ("RTX 3060", "rtx3060"), ("a100", "a100-80gb"), ("NVIDIA GeForce RTX 4080", "rtx4080"),
     ("Jetson AGX Orin", "agx-orin"), ("h100-sxm", "h100")],
)  # fmt: skip
def test_spellings(spelling: str, name: str) -> None:
    assert find_chip(spelling).name == name


@pytest.mark.parametrize("name", ["h10", "", "capability", "gtx 9999"])
def test_unknown_chip_lists_what_there_is(name: str) -> None:
    with pytest.raises(InvalidValueError, match="rtx3060"):
        find_chip(name)


def test_close_spelling_is_suggested() -> None:
    with pytest.raises(InvalidValueError, match="did you mean rtx4080"):
        find_chip("rtx408")


# Worked by hand from the rules of NVIDIA's occupancy calculator.
@pytest.mark.parametrize(
    "name, threads, registers, shared, blocks, limiter",
    [
        ("h100", 256, 32, 0, 8, "warps"),
        ("h100", 256, 64, 0, 4, "registers"),  # 64 * 32 = 2048 per warp, 8 warps per partition
        ("h100", 32, 16, 0, 32, "blocks"),
        ("h100", 1024, 32, 0, 2, "warps"),
        ("h100", 128, 32, 48 << 10, 4, "shared memory"),  # 228 / (48 + 1)
        ("a100", 128, 32, 48 << 10, 3, "shared memory"),  # 164 / (48 + 1)
        ("rtx3060", 128, 32, 48 << 10, 2, "shared memory"),
        ("rtx3060", 1024, 32, 0, 1, "warps"),
        ("rtx4080", 32, 16, 0, 24, "blocks"),
        ("h100", 256, 255, 0, 1, "registers"),  # 8160 rounds up to 8192: 2 warps in each of 4 partitions
        ("h100", 256, 256, 0, 0, "registers"),
        ("h100", 256, 32, 228 << 10, 0, "shared memory"),
        ("a100", 96, 40, 0, 16, "registers"),  # 1280 per warp, 12 in a partition, 48 warps
    ],
)
def test_occupancy(name: str, threads: int, registers: int, shared: int, blocks: int, limiter: str) -> None:
    found = compute_occupancy(find_chip(name).capability, threads, registers, shared)
    assert (found.blocks_per_sm, found.limiter) == (blocks, limiter), found
    assert found.warps_per_sm == blocks * -(-threads // 32)


# ---------------------------------------------------------------- settings
def test_settings_from_the_environment(tmp_path) -> None:
    found = settings.read_settings(
        {"WEFT_GPU": "a100", "WEFT_THREADS": "3", "WEFT_CACHE_DIR": str(tmp_path), "WEFT_TIME_LIMIT": "1.5",
         "WEFT_TARGET": "avx2"}
    )  # fmt: skip
    assert (found.gpu, found.threads, found.cache_dir, found.time_limit, found.target) == (
        "a100", 3, tmp_path, 1.5, "avx2",
    )  # fmt: skip
    plain = settings.read_settings({})
    assert plain.gpu == "h100" and plain.threads >= 1 and plain.time_limit is None and plain.target == ""
    assert plain.cache_dir.parts[-2:] == (".cache", "weft")


@pytest.mark.parametrize(
    "variable, value",
    [("WEFT_THREADS", "0"), ("WEFT_THREADS", "many"), ("WEFT_TIME_LIMIT", "-1"), ("WEFT_TIME_LIMIT", "soon"),
     ("WEFT_TIME_LIMIT", "nan"), ("WEFT_TARGET", "sse")],
)  # fmt: skip
def test_settings_that_make_no_sense(variable: str, value: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{variable}: found '{value}'"):
        settings.read_settings({variable: value})
