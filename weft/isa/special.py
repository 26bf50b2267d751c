"""The special registers: name -> type and meaning. Reading one is `mov`; lowering and interpreter give the values.

Source: PTX ISA, "Special Registers". In a launch without clusters each block is a cluster of its own. Performance
counters, the environment (but envreg1 and envreg2) and reserved registers read as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.errors import PtxError
from weft.types import TYPES, ScalarType


@dataclass(frozen=True)
class SpecialInfo:
    """One special register. `varies` says what may differ: lane, warp, block, grid (one value), time."""

    name: str
    type: ScalarType
    varies: str
    meaning: str


def _rows() -> list[SpecialInfo]:
    rows: list[tuple[str, str, str, str]] = []
    vectors = {
        "tid": ("lane", "index of the thread in its block"),
        "ntid": ("grid", "shape of a block in threads"),
        "ctaid": ("block", "index of the block in the grid"),
        "nctaid": ("grid", "shape of the grid in blocks"),
        "clusterid": ("block", "index of the cluster in the grid"),
        "nclusterid": ("grid", "shape of the grid in clusters"),
        "cluster_ctaid": ("block", "index of the block in its cluster"),
        "cluster_nctaid": ("grid", "shape of a cluster in blocks"),
    }
    for stem, (varies, meaning) in vectors.items():
        rows += [(f"%{stem}.{axis}", "u32", varies, f"{meaning}, {axis}") for axis in "xyz"]
        rows.append((f"%{stem}.w", "u32", "grid", "always 0"))
    rows += [
        ("%laneid", "u32", "lane", "lane in the warp, 0 to 31"),
        ("%warpid", "u32", "warp", "warp in the block"),
        ("%nwarpid", "u32", "grid", "warps of a block"),
        ("%smid", "u32", "block", "multiprocessor that runs the block"),
        ("%nsmid", "u32", "grid", "number of multiprocessors"),
        ("%gridid", "u64", "grid", "number of the launch"),
        ("%clusterrank", "u32", "block", "linear index of the cluster"),
        ("%cluster_ctarank", "u32", "block", "linear index of the block in its cluster"),
        ("%cluster_nctarank", "u32", "grid", "blocks of a cluster"),
        ("%is_explicit_cluster", "pred", "grid", "the launch named a cluster shape"),
        ("%lanemask_eq", "u32", "lane", "bit of this lane"),
        ("%lanemask_lt", "u32", "lane", "bits of the lanes below"),
        ("%lanemask_le", "u32", "lane", "bits of this lane and those below"),
        ("%lanemask_gt", "u32", "lane", "bits of the lanes above"),
        ("%lanemask_ge", "u32", "lane", "bits of this lane and those above"),
        ("%clock", "u32", "time", "cycle counter, low half"),
        ("%clock_hi", "u32", "time", "cycle counter, high half"),
        ("%clock64", "u64", "time", "cycle counter"),
        ("%globaltimer", "u64", "time", "nanoseconds"),
        ("%globaltimer_lo", "u32", "time", "nanoseconds, low half"),
        ("%globaltimer_hi", "u32", "time", "nanoseconds, high half"),
        ("%total_smem_size", "u32", "grid", "shared memory of a block in bytes, static and dynamic"),
        ("%aggr_smem_size", "u32", "grid", "the same with the reserved part"),
        ("%dynamic_smem_size", "u32", "grid", "dynamic shared memory in bytes"),
        ("%reserved_smem_offset_begin", "b32", "grid", "start of the reserved shared memory"),
        ("%reserved_smem_offset_end", "b32", "grid", "end of the reserved shared memory"),
        ("%reserved_smem_offset_cap", "b32", "grid", "size of the reserved shared memory"),
        ("%reserved_smem_offset_0", "b32", "grid", "reserved"),
        ("%reserved_smem_offset_1", "b32", "grid", "reserved"),
        ("%current_graph_exec", "u64", "grid", "the graph that launched the grid; 0 without"),
        ("WARP_SZ", "u32", "grid", "32"),
    ]
    rows += [(f"%envreg{i}", "b32", "grid", "set by the driver") for i in range(32)]
    rows += [(f"%pm{i}", "u32", "time", "performance counter") for i in range(8)]
    rows += [(f"%pm{i}_64", "u64", "time", "performance counter") for i in range(8)]
    return [SpecialInfo(name, TYPES[type_], varies, meaning) for name, type_, varies, meaning in rows]


SPECIAL_REGISTERS: dict[str, SpecialInfo] = {row.name: row for row in _rows()}


def special_register(name: str) -> SpecialInfo:
    """The row of a register, named with its %. Raises PtxError for an unknown one."""
    found = SPECIAL_REGISTERS.get(name)
    if found is None:
        raise PtxError(f"{name} is not a special register")
    return found
