"""The catalogue: names, limits, and that every number has a source."""

from __future__ import annotations

import pytest

from weft import settings
from weft.chips import FIELDS, KINDS, all_chips, find_chip
from weft.errors import InvalidValueError
from weft.runtime.occupancy import compute_occupancy

# Edge to data centre.
WANTED = """rtx3060 rtx3070 rtx3080 rtx3090 rtx4060 rtx4070 rtx4080 rtx4090 rtx5090 v100 t4 a10 a100-40gb a100-80gb l4
l40s h100-pcie h100 h200 b200 gh200 orin-nano agx-orin mi300x tpu-v5e tpu-v5p tpu-v6e vck5000""".split()


def test_the_catalogue_is_complete() -> None:
    assert {chip.name for chip in all_chips()} == set(WANTED)
    assert [chip.name for chip in all_chips() if not chip.runs_kernels] == [
        "mi300x", "tpu-v5e", "tpu-v5p", "tpu-v6e", "vck5000",
    ]  # fmt: skip


@pytest.mark.parametrize("chip", all_chips(), ids=lambda chip: chip.name)
def test_facts_are_plausible_and_sourced(chip) -> None:
    assert set(chip.facts) <= set(FIELDS)
    for field, fact in chip.facts.items():
        assert fact.source.title and fact.source.url.startswith("https://") and fact.source.date[:2] == "20", field
        assert fact.source.kind in KINDS, field
        assert fact.source.title.startswith("Assumed") == (fact.source.kind == "assumed"), field
    assert 1 <= chip.sm_count <= 400 and 4 << 30 <= chip.memory_bytes <= 512 << 30
    assert 0.5e9 < chip.boost_clock < 3.5e9 and 50e9 < chip.memory_bandwidth < 10e12
    assert chip.base_clock is None or chip.base_clock < chip.boost_clock
    assert 5 <= chip.power <= 1500 and 0 < chip.idle_power < 0.4 * chip.power
    assert 0 < chip.price_per_hour < 20 and (chip.price is None or 100 < chip.price < 1e5)
    assert chip.sustained_bandwidth is None or chip.sustained_bandwidth < chip.memory_bandwidth
    assert chip.pcie_bandwidth or chip.integrated
    rates = [chip.facts[name].value for name in ("tc_bf16_rate", "tc_fp8_rate", "tc_fp4_rate") if name in chip.facts]
    assert rates == sorted(rates) and all(1e12 < rate < 2e16 for rate in rates)


@pytest.mark.parametrize("chip", [chip for chip in all_chips() if chip.runs_kernels], ids=lambda chip: chip.name)
def test_limits_and_rates_agree(chip) -> None:
    limits = chip.capability
    assert limits.sources and limits.max_threads_per_block == 1024 and limits.shared_per_block == 48 << 10
    # The opt-in maximum is what an SM has less what the system keeps of it.
    assert limits.shared_per_block_optin == limits.shared_per_sm - limits.shared_reserved
    assert chip.arch == f"sm_{limits.version[0]}{limits.version[1]}"
    if chip.memory_bus_bits:
        # 1.4 Gbit/s (HBM2 at its slowest) to 28 Gbit/s (GDDR7) a pin.
        assert 1.4e9 < chip.memory_bandwidth * 8 / chip.memory_bus_bits < 28.1e9
    if "fp32_rate" in chip.facts:  # data sheets round, and take their boost clock now and then for another
        lanes = chip.sm_count * limits.fp32_lanes_per_sm * 2 * chip.boost_clock
        assert chip.fp32_rate == pytest.approx(lanes, rel=0.02)


# Rows of published tables, written down by hand from the white papers.
@pytest.mark.parametrize(
    "name, memory_gib, gigabytes_per_second, watts, tera_bf16, tera_fp8",
    [
        ("rtx3090", 24, 936, 350, 71.2, None),
        ("rtx4090", 24, 1008, 450, 165.2, 330.3),
        ("rtx5090", 32, 1792, 575, 209.5, 419),
        ("a100-40gb", 40, 1555, 400, 312, None),
        ("h100", 80, 3350, 700, 989.4, 1978.9),
        ("h100-pcie", 80, 2039, 350, 756, 1513),
        ("h200", 141, 4800, 700, 989.4, 1978.9),
        ("b200", 180, 8000, 1000, 2250, 4500),
        ("l4", 24, 300, 72, 121, 242.5),
        ("mi300x", 192, 5300, 750, 1307.4, 2614.9),
        ("tpu-v5e", 16, 819, None, 197, None),
    ],
)
def test_published_rows(name, memory_gib, gigabytes_per_second, watts, tera_bf16, tera_fp8) -> None:
    chip = find_chip(name)
    assert chip.memory_bytes == memory_gib << 30
    assert chip.memory_bandwidth == pytest.approx(gigabytes_per_second * 1e9)
    assert watts is None or chip.power == watts
    assert chip.tc_bf16_rate == pytest.approx(tera_bf16 * 1e12, rel=1e-3)
    assert (chip.tc_fp8_rate is None) == (tera_fp8 is None)
    assert tera_fp8 is None or chip.tc_fp8_rate == pytest.approx(tera_fp8 * 1e12, rel=1e-3)


def test_a_chip_without_kernels_is_no_device() -> None:
    import weft

    with pytest.raises(InvalidValueError, match="mi300x .* runs no CUDA kernels: it cannot be a device"):
        weft.Device("mi300x")
    assert find_chip("trillium").name == "tpu-v6e"


@pytest.mark.parametrize(
    "change, message",
    [
        (('compute_capability = "9.0"', 'compute_capability = "9.0"\ncolour = "green"'), "unknown entry colour"),
        (("sm_count =", "sm_number ="), "unknown fact sm_number"),
        (("sm_count = {", "tc_fp4_rate = {"), "missing facts: sm_count"),
        (('kind = "assumed"', 'kind = "guessed"'), "kind 'guessed', expected one of"),
    ],
)
def test_files_are_checked(tmp_path, change, message) -> None:
    from weft.chips.chip import DATA, read_chip

    text = (DATA / "h100.toml").read_text()
    assert change[0] in text
    path = tmp_path / "h100.toml"
    path.write_text(text.replace(*change))
    with pytest.raises(ValueError, match=message):
        read_chip(path)


def test_this_machine_is_measured_once(tmp_path, monkeypatch) -> None:
    from weft.chips import host

    rates = {"fp32_rate": 1e11, "fp64_rate": 5e10, "memory_bandwidth": 2e10}
    calls = []
    monkeypatch.setattr(host, "measure", lambda: calls.append(1) or rates)
    before = settings.current()
    try:
        settings.configure(cache_dir=tmp_path)
        first, second = host.host_chip(), host.host_chip()
    finally:
        settings.configure(cache_dir=before.cache_dir)
    assert calls == [1] and first.fp32_rate == second.fp32_rate == 1e11
    assert first.facts["fp32_rate"].source.kind == "measured" and not first.runs_kernels
    assert first.memory_bytes > 1 << 28 and first.facts["power"].source.kind == "assumed"


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
