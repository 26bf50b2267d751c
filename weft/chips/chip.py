"""Chip and its limits, read from the TOML files of weft/chips/data.

capability.toml holds what all chips of one compute capability share; one file per chip holds the rest. All sizes are
in bytes, clocks in Hz, bandwidths in bytes per second, rates in operations per second, power in watts, prices in US
dollars. A chip without a compute capability cannot run compiled kernels: only library kernels are priced on it.
docs/chips.md describes the files.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from weft.errors import InvalidValueError

DATA = Path(__file__).parent / "data"

# Field of a chip file -> unit ("" where there is none), what it is. Rates are of dense operations, a fused multiply-add
# counting two, with results accumulated in f32 where the type is narrower.
FIELDS: dict[str, tuple[str, str]] = {
    "sm_count": ("", "streaming multiprocessors (compute units, cores)"),
    "memory_bytes": ("bytes", "device memory"),
    "memory_type": ("", "kind of device memory"),
    "memory_bus_bits": ("bits", "width of the memory bus"),
    "memory_bandwidth": ("bytes/s", "peak bandwidth of device memory"),
    "l2_bytes": ("bytes", "L2 cache"),
    "base_clock": ("Hz", "base clock"),
    "boost_clock": ("Hz", "boost clock"),
    "power": ("W", "board power"),
    "idle_power": ("W", "power without work"),
    "fp64_rate": ("FLOP/s", "f64, plain"),
    "fp32_rate": ("FLOP/s", "f32, plain"),
    "fp16_rate": ("FLOP/s", "f16, plain"),
    "tc_fp64_rate": ("FLOP/s", "f64, tensor cores"),
    "tc_tf32_rate": ("FLOP/s", "tf32, tensor cores"),
    "tc_fp16_rate": ("FLOP/s", "f16, tensor cores"),
    "tc_bf16_rate": ("FLOP/s", "bf16, tensor cores"),
    "tc_fp8_rate": ("FLOP/s", "fp8, tensor cores"),
    "tc_fp4_rate": ("FLOP/s", "fp4, tensor cores"),
    "tc_int8_rate": ("OP/s", "int8, tensor cores"),
    "sustained_bandwidth": ("bytes/s", "bandwidth of device memory that kernels reach"),
    "sustained_tensor_rate": ("FLOP/s", "bf16 matrix product, best found"),
    "nvlink_bandwidth": ("bytes/s", "NVLink, or the maker's other link between chips"),
    "pcie_bandwidth": ("bytes/s", "host link"),
    "network_bandwidth": ("bytes/s", "network of its usual server, per GPU, one direction"),
    "chips_per_node": ("", "chips in its usual server"),
    "integrated": ("", "shares memory with the CPU"),
    "price_per_hour": ("USD/h", "price per hour"),
    "price": ("USD", "price to buy"),
}
_REQUIRED = ("sm_count", "memory_bytes", "memory_bandwidth", "boost_clock", "power")
# Where a number comes from; shown wherever it is.
KINDS = ("published", "derived", "measured", "assumed")


@dataclass(frozen=True)
class Source:
    """Where a number was published; `date` is the publication's, or when the number was checked there.

    kind is one of KINDS: published by the maker or seller, derived from published numbers, measured by the source on
    such a chip, or assumed.
    """

    title: str
    url: str
    date: str
    kind: str = "published"


@dataclass(frozen=True)
class Fact:
    """One published number of a chip, in the field's unit (FIELDS)."""

    value: int | float | str | bool
    source: Source
    note: str = ""


@dataclass(frozen=True)
class Capability:
    """Limits that all chips of one compute capability share. Bytes; registers are 32 bits wide.

    The *_unit fields are the granularities of the CUDA occupancy calculation, `shared_reserved` the bytes that the
    system takes of each block's shared memory. max_parameter_bytes is for PTX before 8.1.
    """

    version: tuple[int, int]
    warp_size: int
    max_threads_per_block: int
    max_block_dim: tuple[int, int, int]
    max_grid_dim: tuple[int, int, int]
    shared_per_block: int
    shared_per_block_optin: int
    shared_per_sm: int
    shared_unit: int
    shared_reserved: int
    constant_bytes: int
    max_parameter_bytes: int
    max_parameter_bytes_ptx_8_1: int
    registers_per_sm: int
    registers_per_block: int
    max_registers_per_thread: int
    register_unit: int
    local_bytes_per_thread: int
    warps_per_sm: int
    warp_unit: int
    blocks_per_sm: int
    fp32_lanes_per_sm: int
    fp64_lanes_per_sm: int
    tensor_cores_per_sm: int
    sources: tuple[Source, ...]

    @property
    def threads_per_sm(self) -> int:
        return self.warps_per_sm * self.warp_size

    def __str__(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


@dataclass(frozen=True)
class Chip:
    """One real chip. `name` is the catalogue's, `full_name` what its maker's software calls the device.

    Facts are read as attributes: chip.sm_count, chip.memory_bytes ... (FIELDS). One that is not known is None.
    limits is None for a chip that runs no compiled kernels.
    """

    name: str
    full_name: str
    aliases: tuple[str, ...]
    limits: Capability | None
    facts: dict[str, Fact]
    maker: str = "NVIDIA"

    def __getattr__(self, field: str) -> Any:
        if field not in FIELDS:
            raise AttributeError(f"a chip has no {field!r}")
        fact = self.facts.get(field)
        return fact.value if fact else None

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def runs_kernels(self) -> bool:
        """Whether it can be a device; on the others library kernels are priced, and nothing runs."""
        return self.limits is not None

    def check_runs_kernels(self) -> None:
        """Raises InvalidValueError for a chip that runs no compiled kernels."""
        if self.limits is None:
            raise InvalidValueError(
                f"{self.name} ({self.full_name}) runs no CUDA kernels: it cannot be a device. `weft compare` prices "
                "library kernels on it"
            )

    @property
    def capability(self) -> Capability:
        """The limits. Raises InvalidValueError for a chip that runs no compiled kernels."""
        self.check_runs_kernels()
        assert self.limits is not None
        return self.limits

    @property
    def compute_capability(self) -> tuple[int, int]:
        return self.capability.version

    @property
    def arch(self) -> str:
        """The PTX target: "sm_90"."""
        return f"sm_{self.capability.version[0]}{self.capability.version[1]}"


def _read(path: Path) -> dict:
    with path.open("rb") as file:
        return tomllib.load(file)


def _sources(data: dict) -> dict[str, Source]:
    return {
        key: Source(
            source["title"], source["url"], source.get("date") or source["checked"], source.get("kind", "published")
        )
        for key, source in data["sources"].items()
    }


@cache
def _capabilities() -> dict[str, Capability]:
    data = _read(DATA / "capability.toml")
    sources = _sources(data)
    common = dict(data["common"])
    occupancy = dict(common.pop("occupancy"))
    result = {}
    for key, own in data.items():
        if key in ("sources", "common"):
            continue
        parts = [dict(common), dict(occupancy), dict(own)]
        cited = tuple(dict.fromkeys(sources[part.pop("source")] for part in parts))
        values: dict[str, Any] = {name: value for part in parts for name, value in part.items()}
        for name in ("max_block_dim", "max_grid_dim"):
            values[name] = tuple(values[name])
        major, minor = key.split("_")
        result[f"{major}.{minor}"] = Capability(version=(int(major), int(minor)), sources=cited, **values)
    return result


def read_chip(path: Path) -> Chip:
    """A chip from its file. Raises ValueError for a field that is unknown or missing."""
    data = _read(path)
    unknown = set(data) - {"name", "full_name", "aliases", "compute_capability", "maker", "sources", "facts"}
    if unknown:
        raise ValueError(f"{path.name}: unknown entry {', '.join(sorted(unknown))}")
    sources = _sources(data)
    for key, source in sources.items():
        if source.kind not in KINDS:
            raise ValueError(f"{path.name}: source {key}: kind {source.kind!r}, expected one of {', '.join(KINDS)}")
    facts = {}
    for field, entry in data["facts"].items():
        if field not in FIELDS:
            raise ValueError(f"{path.name}: unknown fact {field}")
        facts[field] = Fact(entry["value"], sources[entry["source"]], entry.get("note", ""))
    missing = [field for field in _REQUIRED if field not in facts]
    if missing:
        raise ValueError(f"{path.name}: missing facts: {', '.join(missing)}")
    limits = _capabilities()[data["compute_capability"]] if "compute_capability" in data else None
    return Chip(data["name"], data["full_name"], tuple(data["aliases"]), limits, facts, data.get("maker", "NVIDIA"))


@cache
def all_chips() -> tuple[Chip, ...]:
    """Every chip of the catalogue, by name."""
    paths = sorted(path for path in DATA.glob("*.toml") if path.name != "capability.toml")
    return tuple(read_chip(path) for path in paths)


def _simplify(name: str) -> str:
    """The letters and digits of a name, without the maker's."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia")


@lru_cache(maxsize=64)
def find_chip(name: str) -> Chip:
    """The chip of that name or alias; case, spaces and dashes do not matter. "cpu" is this machine's, measured.

    Raises InvalidValueError that lists what there is.
    """
    wanted = _simplify(name)
    if wanted in ("cpu", "host", "thismachine"):
        from weft.chips.host import host_chip

        return host_chip()
    path = DATA / f"{name}.toml"  # the usual case needs one file only
    if re.fullmatch(r"[a-z0-9-]+", name) and name != "capability" and path.exists():
        return read_chip(path)
    known: dict[str, Chip] = {}
    for chip in all_chips():
        for other in (chip.name, chip.full_name, *chip.aliases):
            known[_simplify(other)] = chip
    if wanted in known:
        return known[wanted]
    names = ", ".join(chip.name for chip in all_chips())
    close = difflib.get_close_matches(wanted, known, 1)
    hint = f" (did you mean {known[close[0]].name}?)" if close else ""
    raise InvalidValueError(f"no chip {name!r} in the catalogue{hint}; it has: {names}")
