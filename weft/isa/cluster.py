"""Thread-block clusters: other blocks' shared memory, the cluster's barrier, stores and reductions that count at an
mbarrier.

The space shared::cluster: a block's own shared memory begins at address 0; mapa gives the addresses at which blocks of
the cluster find each other's (codegen/abi.py, reference/addresses.py). Loads, stores and atomics of that space are
entries of memory.py and atomic.py. barrier.cluster suspends a warp: the lowering and the interpreter treat it by its
opcode.
Sections: PTX ISA, "Data Movement and Conversion Instructions", "Parallel Synchronization and Communication
Instructions".
"""

from __future__ import annotations

from weft.isa.atomic import combined
from weft.isa.barrier import shared_offset, update_reference
from weft.isa.instruction import instruction
from weft.isa.memory import elements
from weft.types import TYPES

# ---------------------------------------------------------------- barrier.cluster
_BARRIER = {"pipe": "adu", "effects": ("barrier",), "ptx": "7.8", "sm": 90, "section": "9.7.13.3"}


@instruction("barrier.cluster.arrive{.sem}{.aligned}", sem=("release", "relaxed"), **_BARRIER)
class ClusterArrive:
    """Arrive at the cluster's barrier and go on."""


@instruction("barrier.cluster.wait{.acquire}{.aligned}", **_BARRIER)
class ClusterWait:
    """Wait until all threads of the cluster that have not exited have arrived."""


# ---------------------------------------------------------------- mapa, getctarank
_MAP = {"type": ("u32", "u64"), "raw": True, "pipe": "alu", "ptx": "7.8", "sm": 90}


@instruction("mapa{.shared::cluster}.type d, a, b", operands={"b": "u32"}, section="9.7.9.22", **_MAP)
class Mapa:
    """The address at which the block of rank b has what this block has at shared address a; generic addresses without
    the space."""

    @staticmethod
    def reference(t, m, ins):
        address = t.read(ins.operands[1], m.type)
        rank = t.read(ins.operands[2], TYPES["u32"])
        base = 0 if m["shared::cluster"] else t.window("shared")
        t.write(ins.operands[0], m.type, base + t.map_to_rank(address - base, rank))

    @staticmethod
    def emit(b, m, ins):
        address, rank = b.read(ins.operands[1], m.type.bits), b.read(ins.operands[2], 32)
        if m["shared::cluster"]:
            b.write(ins.operands[0], b.map_to_rank(address, rank))
        else:
            base = b.resize(b.window("shared"), m.type.bits, False)
            b.write(ins.operands[0], b.add(b.map_to_rank(b.sub(address, base), rank), base))


@instruction("getctarank{.shared::cluster}.type d, a", operands={"d": "u32"}, section="9.7.9.23", **_MAP)
class GetCtaRank:
    """The rank of the block in whose shared memory an address lies."""

    @staticmethod
    def reference(t, m, ins):
        address = t.read(ins.operands[1], m.type)
        base = 0 if m["shared::cluster"] else t.window("shared")
        t.write(ins.operands[0], TYPES["u32"], t.rank_of(address - base))

    @staticmethod
    def emit(b, m, ins):
        address = b.read(ins.operands[1], m.type.bits)
        if not m["shared::cluster"]:
            address = b.sub(address, b.resize(b.window("shared"), m.type.bits, False))
        b.write(ins.operands[0], b.rank_of(address))


# ---------------------------------------------------------------- st.async, red.async
_ASYNC = {"raw": True, "pipe": "lsu", "effects": ("memory",), "ptx": "8.1", "sm": 90}
_SPACES = ("shared::cluster", "shared::cta")
_COMPLETION = ".mbarrier::complete_tx::bytes"


def _reference_space(m) -> str:
    return "cluster" if m.space else "generic"


def _cluster_address(b, m, operand):
    """The address in the cluster's shared memory, 32 bits."""
    return b.address(operand, "cluster") if m.space else shared_offset(b, b.address(operand, "generic"))


def _store_fits(m) -> str:
    count = int(m.vec[1]) if m.vec else 1
    return f"a vector of {count} x {m.type} is wider than 128 bits" if count * m.type.bits > 128 else ""


@instruction(f"st.async{{.weak}}{{.space}}{_COMPLETION}{{.vec}}.type [a], b, [c]", space=_SPACES, vec=("v2", "v4"),
             type=("b32", "b64", "u32", "u64", "s32", "s64", "f32", "f64"), where=_store_fits, section="9.7.9.13",
             **_ASYNC)  # fmt: skip
class StoreAsync:
    """A store to another block's shared memory that counts its bytes at an mbarrier there. It is there at once."""

    @staticmethod
    def reference(t, m, ins):
        address, bar = t.address(ins.operands[0]), t.address(ins.operands[2])
        parts = elements(ins.operands[1])
        size = m.type.bytes * len(parts)
        value = sum(t.read(part, m.type) << (m.type.bits * i) for i, part in enumerate(parts))
        t.store(_reference_space(m), address, size, value)
        update_reference(t, _reference_space(m), bar, bytes_=-size)

    @staticmethod
    def emit(b, m, ins):
        parts = elements(ins.operands[1])
        values = [b.read(part, m.type.bits, m.type) for part in parts]
        b.bulk_call(
            f"weft_store_async_{len(parts)}_i{m.type.bits}",
            [_cluster_address(b, m, ins.operands[0]), _cluster_address(b, m, ins.operands[2]), *values],
        )


class _ReduceAsync:
    """A reduction in another block's shared memory that counts its bytes at an mbarrier there."""

    @staticmethod
    def reference(t, m, ins):
        address, bar = t.address(ins.operands[0]), t.address(ins.operands[2])
        value = t.read(ins.operands[1], m.type)
        space = _reference_space(m)
        t.atomic(space, address, m.type.bytes, lambda old: combined(m.op, m.type, old, value, "cluster"))
        update_reference(t, space, bar, bytes_=-m.type.bytes)

    @staticmethod
    def emit(b, m, ins):
        b.bulk_call(
            f"weft_red_async_{m.op}_{m.type.kind}_i{m.type.bits}",
            [_cluster_address(b, m, ins.operands[0]), _cluster_address(b, m, ins.operands[2]),
             b.read(ins.operands[1], m.type.bits, m.type)],
        )  # fmt: skip


for _ops, _types in (
    (("inc", "dec"), ("u32",)), (("min", "max"), ("u32", "s32")), (("and", "or", "xor"), ("b32",)),
    (("add",), ("u32", "s32", "u64", "s64")),
):  # fmt: skip
    instruction(
        f"red.async.relaxed.cluster{{.space}}{_COMPLETION}.op.type [a], b, [c]", space=_SPACES, op=_ops, type=_types,
        section="9.7.13.8", **_ASYNC,
    )(_ReduceAsync)  # fmt: skip
