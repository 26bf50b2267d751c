"""Moves and addresses: mov (also of vectors, symbols and special registers), cvta, isspacep.

How addresses look here: a global, const or param address is a generic address already. A shared address is an offset
into the block's shared memory, a local one an offset into the thread's local memory; their generic forms lie in two
reserved windows of WINDOW_BYTES each. Sections: PTX ISA, "Data Movement and Conversion Instructions".
"""

from __future__ import annotations

from weft.isa.bits import join, split
from weft.isa.instruction import instruction
from weft.isa.operands import Discard, SpecialRegister, Vector
from weft.types import TYPES

MOVE_TYPES = ("b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64")
WINDOW_BYTES = 1 << 24


# ---------------------------------------------------------------- mov
@instruction("mov.type d, a", type=MOVE_TYPES, raw=True, pipe="alu", section="9.7.9.1")
@instruction("mov.b128 d, a", raw=True, pipe="alu", ptx="8.3", sm=70, section="9.7.9.2")
class Mov:
    """Registers, immediates, special registers, addresses of symbols; a vector on one side packs or unpacks."""

    @staticmethod
    def reference(t, m, ins):
        destination, source = ins.operands
        whole = m.operand_type("d")
        if isinstance(source, Vector):
            width = whole.bits // len(source.items)
            value = join([t.read(item, TYPES[f"b{width}"]) for item in source.items], width)
        else:
            value = t.read(source, whole)
        if not isinstance(destination, Vector):
            t.write(destination, whole, value)
            return
        width = whole.bits // len(destination.items)
        for item, part in zip(destination.items, split(value, len(destination.items), width)):
            if not isinstance(item, Discard):
                t.write(item, TYPES[f"b{width}"], part)

    @staticmethod
    def emit(b, m, ins):
        destination, source = ins.operands
        whole = m.operand_type("d")
        if isinstance(source, Vector):
            width = whole.bits // len(source.items)
            value = b.pack([b.read(item, width) for item in source.items])
        else:
            value = b.read(source, whole.bits, whole)
        if not isinstance(destination, Vector):
            b.write(destination, value, whole.bits)
            return
        width = whole.bits // len(destination.items)
        for item, part in zip(destination.items, b.unpack(value, len(destination.items))):
            if not isinstance(item, Discard):
                b.write(item, part, width)


def _components(source):
    """The items of a vector operand; of a special register its .x, .y, .z and .w."""
    if isinstance(source, SpecialRegister):
        return [SpecialRegister(f"{source.name}.{axis}") for axis in "xyzw"]
    return source.items


@instruction("mov.vec.type d, a", vec=("v2", "v4"), type=MOVE_TYPES, raw=True, pipe="alu", section="9.7.9.1")
class MovVector:
    """Item by item, between two vectors, or from a special register that is one, such as %tid."""

    @staticmethod
    def reference(t, m, ins):
        destination, source = ins.operands
        values = [t.read(item, m.type) for item in _components(source)]
        for item, value in zip(destination.items, values):
            if not isinstance(item, Discard):
                t.write(item, m.type, value)

    @staticmethod
    def emit(b, m, ins):
        destination, source = ins.operands
        values = [b.read(item, m.type.bits, m.type) for item in _components(source)]
        for item, value in zip(destination.items, values):
            if not isinstance(item, Discard):
                b.write(item, value, m.type.bits)


@instruction("mov.pred d, a", pipe="alu", section="9.7.9.1")
class MovPredicate:
    @staticmethod
    def reference(m, a):
        return a

    @staticmethod
    def emit(b, m, x):
        return x


# ---------------------------------------------------------------- cvta
# State space as written -> window, or "" where addresses are generic already.
ADDRESS_WINDOWS = {
    "global": "",
    "const": "",
    "param": "",
    "param::entry": "",
    "local": "local",
    "shared": "shared",
    "shared::cta": "shared",
    "shared::cluster": "shared",
}
_CVTA = {"space": tuple(ADDRESS_WINDOWS), "raw": True, "pipe": "alu", "ptx": "2.0", "sm": 20, "section": "9.7.9.20"}


@instruction("cvta.space.type d, a", type=("u64",), **_CVTA)
class CvtaToGeneric:
    @staticmethod
    def reference(t, m, ins):
        window = ADDRESS_WINDOWS[m.space]
        address = t.read(ins.operands[1], m.type)
        if m.space.startswith("param"):
            address = t.window("param") + ((address - t.window("param")) & 0xFFFFFFFF)
        t.write(ins.operands[0], m.type, address + t.window(window) if window else address)

    @staticmethod
    def emit(b, m, ins):
        window = ADDRESS_WINDOWS[m.space]
        address = b.read(ins.operands[1], 64)
        if m.space.startswith("param") and address.base != b.parameter_base:
            # Triton keeps addresses of parameters in 32 bits: their low half, which is all that is needed.
            base = b.window("param")
            address = b.add(base, b.zext(b.trunc(b.sub(address, base), 32), 64))
        b.write(ins.operands[0], b.add(address, b.window(window)) if window else address, 64)


@instruction("cvta.to.space.type d, a", type=("u64",), **_CVTA)
class CvtaToSpace:
    @staticmethod
    def reference(t, m, ins):
        window = ADDRESS_WINDOWS[m.space]
        address = t.read(ins.operands[1], m.type)
        t.write(ins.operands[0], m.type, address - t.window(window) if window else address)

    @staticmethod
    def emit(b, m, ins):
        window = ADDRESS_WINDOWS[m.space]
        address = b.read(ins.operands[1], 64)
        b.write(ins.operands[0], b.sub(address, b.window(window)) if window else address, 64)


@instruction("cvta.space.u32 d, a", space=tuple(ADDRESS_WINDOWS), pipe="alu", ptx="2.0", sm=20, section="9.7.9.20",
             missing="32-bit generic addresses do not exist here; compile for 64-bit addresses")  # fmt: skip
@instruction("cvta.to.space.u32 d, a", space=tuple(ADDRESS_WINDOWS), pipe="alu", ptx="2.0", sm=20,
             section="9.7.9.20",
             missing="32-bit generic addresses do not exist here; compile for 64-bit addresses")  # fmt: skip
class Cvta32:
    """Parses only."""


# ---------------------------------------------------------------- isspacep
@instruction("isspacep.space p, a", space=("global", "local", "shared", "shared::cta", "shared::cluster"), raw=True,
             pipe="alu", ptx="2.0", sm=20, section="9.7.9.19")  # fmt: skip
class Isspacep:
    """Whether a generic address lies in a space's window; a global address lies in none. In a cluster, an address of
    another block's shared memory is in shared::cluster but not in shared::cta."""

    @staticmethod
    def reference(t, m, ins):
        address = t.read(ins.operands[1], TYPES["u64"])
        inside = {name: 0 <= address - t.window(name) < WINDOW_BYTES for name in ("local", "shared")}
        result = not any(inside.values()) if m.space == "global" else inside[ADDRESS_WINDOWS[m.space]]
        if result and m.space in ("shared", "shared::cta"):
            result = t.rank_of(address - t.window("shared")) == t.special("%cluster_ctarank")
        t.write(ins.operands[0], TYPES["pred"], int(result))

    @staticmethod
    def emit(b, m, ins):
        address = b.read(ins.operands[1], 64)
        size = b.const(WINDOW_BYTES, 64)
        names = ("local", "shared") if m.space == "global" else (ADDRESS_WINDOWS[m.space],)
        inside = [b.icmp("ult", b.sub(address, b.window(name)), size) for name in names]
        result = b.not_(b.or_(*inside)) if m.space == "global" else inside[0]
        if m.space in ("shared", "shared::cta") and b.uses_clusters:
            rank = b.rank_of(b.sub(address, b.window("shared")))
            result = b.and_(result, b.icmp("eq", rank, b.special("%cluster_ctarank", 32)))
        b.write(ins.operands[0], result, 1)


@instruction("isspacep.space p, a", space=("const", "param", "param::entry"), pipe="alu", ptx="3.1", sm=20,
             section="9.7.9.19",
             missing="constants and parameters lie in global memory here, so an address does not tell")  # fmt: skip
class IsspacepUntold:
    """Parses only."""
