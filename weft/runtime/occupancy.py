"""How many blocks fit on an SM: a kernel's needs and a chip's limits in, the CUDA occupancy calculation out.

The rules are those of NVIDIA's occupancy calculator (registers are given per warp, warps spread over four
sub-partitions, shared memory in units of 128 bytes with 1 KiB per block kept by the system).
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.chips import Capability
from weft.runtime.hostmemory import round_up


@dataclass(frozen=True)
class Occupancy:
    """`blocks_per_sm` resident blocks; `fraction` of the SM's warps; `limits` is the number that each resource allows.

    limiter names the scarcest ("warps", "blocks", "registers", "shared memory"). Where the register count behind it is
    an estimate `estimated` is true.
    """

    blocks_per_sm: int
    warps_per_sm: int
    fraction: float
    limiter: str
    limits: dict[str, int]
    estimated: bool = False


def compute_occupancy(
    capability: Capability, threads: int, registers: int, shared_bytes: int, *, estimated: bool = False
) -> Occupancy:
    """For blocks of `threads` threads, `registers` per thread, `shared_bytes` per block (static and dynamic)."""
    warps = -(-threads // capability.warp_size)
    limits = {"blocks": capability.blocks_per_sm, "warps": capability.warps_per_sm // warps}
    if registers > capability.max_registers_per_thread:
        limits["registers"] = 0
    elif registers > 0:
        per_warp = round_up(registers * capability.warp_size, capability.register_unit)
        # Each sub-partition holds a quarter of the registers and whole warps.
        per_partition = capability.registers_per_sm // capability.warp_unit // per_warp
        limits["registers"] = per_partition * capability.warp_unit // warps
    if shared_bytes > capability.shared_per_block_optin:
        limits["shared memory"] = 0
    else:
        per_block = round_up(shared_bytes + capability.shared_reserved, capability.shared_unit)
        limits["shared memory"] = capability.shared_per_sm // per_block
    limiter = min(limits, key=lambda name: limits[name])
    blocks = limits[limiter]
    resident = blocks * warps
    return Occupancy(blocks, resident, resident / capability.warps_per_sm, limiter, limits, estimated)
