"""What a block's place in its cluster means to its code: addresses in the cluster's shared memory, the cluster's
barrier. Part of Lowering.

Blocks of a cluster lie side by side on one worker (schedule.py); the addresses are those of abi.CLUSTER_STRIDE.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.codegen import abi
from weft.codegen.loadstore import CONTEXT
from weft.codegen.value import Value
from weft.codegen.warpops import WarpOps
from weft.isa.operands import Instruction

_USES = {"mapa", "getctarank"}


def uses_clusters(instructions: Iterable[Instruction]) -> bool:
    """Whether a kernel with these instructions may have to do with other blocks of its cluster."""
    return any(
        ins.opcode in _USES
        or (ins.opcode == "barrier" and "cluster" in ins.modifiers)
        or "multicast::cluster" in ins.modifiers
        for ins in instructions
    )


class ClusterOps(WarpOps):
    """Operations that have to do with other blocks of the cluster."""

    live_slots: list[str] | None

    # ------------------------------------------------------------ addresses
    def map_to_rank(self, address: Value, rank: Value) -> Value:
        """The address (32 or 64 bits, in the space shared::cluster) at which the block of that rank has what this
        block has at `address`."""
        bits = address.bits
        within = self.and_(address, self.const(abi.CLUSTER_STRIDE - 1, bits))
        # beyond any cluster, but within the window: accesses there fault
        known = self.umin(rank, self.const(2 * abi.MAX_CLUSTER_BLOCKS - 2, 32))
        place = self.mul(self.add(known, self.const(1, 32)), self.const(abi.CLUSTER_STRIDE, 32))
        return self.add(within, self.zext(place, bits) if bits > 32 else place)

    def rank_of(self, address: Value) -> Value:
        """The rank of the block whose shared memory has an address of the space shared::cluster."""
        shift = self.const(abi.CLUSTER_STRIDE.bit_length() - 1, 32)
        place = self.trunc(self.lshr(address, shift), 32) if address.bits > 32 else self.lshr(address, shift)
        own = self.special("%cluster_ctarank", 32)
        return self.select(self.icmp("eq", place, self.const(0, 32)), own, self.sub(place, self.const(1, 32)))

    # ------------------------------------------------------------ the cluster's barrier
    def arrive_at_cluster(self) -> None:
        """barrier.cluster.arrive by the running lanes."""
        if self.dry:
            return
        name = self._call_support("weft_cluster_arrive")
        self.e(f"call void {name}({CONTEXT}, i32 {self.mask_word()}, i32 {self._lanes_left()}, i32 {self.site})")
        self.after_slow_call()

    def await_cluster(self) -> None:
        """Before a warp suspends in barrier.cluster.wait."""
        name = self._call_support("weft_cluster_wait")
        self.e(f"call void {name}({CONTEXT}, i32 {self.mask_word()}, i32 {self.site})")
        self.after_slow_call()

    def _lanes_left(self) -> str:
        """Lanes that have not exited, as far as this code knows."""
        if self.mask is None or self.live_slots is None:
            return "-1"
        return self.mask_bits(self._load_mask(self.live_slots))  # type: ignore[attr-defined]
