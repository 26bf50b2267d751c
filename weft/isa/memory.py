"""Loads and stores of every state space, and the hints that go with them.

A load into a register wider than its type extends by the type's sign; a store takes the low bits. Vectors are loaded
and stored as a whole: the address must be a multiple of the vector's size. Cache operators, eviction priorities and
prefetches are hints and change nothing. Sections: PTX ISA, "Data Movement and Conversion Instructions".
"""

from __future__ import annotations

from weft.isa.instruction import instruction
from weft.isa.operands import Discard, Register, Vector
from weft.types import TYPES, ScalarType

LOAD_TYPES = ("b8", "b16", "b32", "b64", "b128", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f32",
              "f64")  # fmt: skip
SCOPES = ("cta", "cluster", "gpu", "sys")
SPACES = {
    "global": "global", "shared": "shared", "shared::cta": "shared", "shared::cluster": "cluster", "local": "local",
    "const": "const", "param": "param", "param::entry": "param", "param::func": "param",
}  # fmt: skip
EVICTION = ("L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate")
L2_EVICTION = ("L2::evict_normal", "L2::evict_first", "L2::evict_last")
PREFETCH_SIZES = ("L2::64B", "L2::128B", "L2::256B")
VECTORS = ("v2", "v4", "v8")


def space_of(m) -> str:
    """The state space that a load or store names; generic without one."""
    name = m.get("space")
    return SPACES[name] if name else "generic"


def elements(operand) -> tuple:
    return operand.items if isinstance(operand, Vector) else (operand,)


def extended(value: int, type_: ScalarType, bits: int) -> int:
    """What a register of `bits` bits holds after a load of `type_`."""
    if type_.signed and bits > type_.bits and value >> (type_.bits - 1):
        return value | (((1 << bits) - 1) & ~type_.mask)
    return value


def _fits_access(m) -> str:
    """Vectors are up to 16 bytes wide, in global memory up to 32; a scope goes with an order that has one."""
    count = int(m.vec[1]) if m.get("vec") else 1
    wide = m.get("space") in (None, "global") and (count, m.type.bits) in ((8, 32), (4, 64))
    if count * m.type.bits > 128 and not wide:
        return f"a vector of {count} x {m.type} is wider than 128 bits"
    if count == 8 and m.type.bits != 32:
        return f".v8 needs a type of 32 bits, found {m.type}"
    ordered = m.get("order") in ("relaxed", "acquire", "release")
    if m.get("scope") and not ordered:
        return f".{m.scope} needs .relaxed, .acquire or .release"
    if ordered and not m.scope:
        return f".{m.order} needs a scope: .cta, .cluster, .gpu or .sys"
    if m.get("mmio") and m.order != "relaxed":
        return ".mmio needs .relaxed"
    if m.get("nc") and m.get("space") not in (None, "global"):
        return f".nc is for global memory, found .{m.space}"
    return ""


_HINTS = "{.evict}{.evict2}{.L2::cache_hint}"
_HINT_CHOICES = {"evict": EVICTION, "evict2": L2_EVICTION}
_LOAD = {
    "space": tuple(SPACES), "vec": VECTORS, "type": LOAD_TYPES, "size": PREFETCH_SIZES, "operands": {"e": "b64"},
    "raw": True, "pipe": "lsu", "section": "9.7.9.8", "where": _fits_access, **_HINT_CHOICES,
}  # fmt: skip


@instruction(
    f"ld{{.weak}}{{.space}}{{.unified}}{{.nc}}{{.cop}}{_HINTS}{{.size}}{{.vec}}.type d, [a]{{, e}}",
    cop=("ca", "cg", "cs", "lu"), effects=("memory",), **_LOAD,
)  # fmt: skip
@instruction(
    f"ld.order{{.mmio}}{{.scope}}{{.space}}{_HINTS}{{.size}}{{.vec}}.type d, [a]{{, e}}",
    order=("volatile", "relaxed", "acquire", "cv"), scope=SCOPES, effects=("memory", "spin"), **_LOAD,
)  # fmt: skip
class Load:
    """ld. Loads with an order, volatile ones and .cv (fetch again) may see what other threads do meanwhile."""

    @staticmethod
    def reference(t, m, ins):
        space = space_of(m)
        address = t.address(ins.operands[1])
        parts = elements(ins.operands[0])
        size = m.type.bytes
        whole = t.load(space, address, size * len(parts))
        for i, part in enumerate(parts):
            if not isinstance(part, Discard):
                value = whole >> (8 * size * i) & m.type.mask
                type_ = t.register_type(part)
                t.write(part, type_, extended(value, m.type, type_.bits))

    @staticmethod
    def emit(b, m, ins):
        space = space_of(m)
        parts = elements(ins.operands[0])
        order = m.get("order")
        loaded = b.load(
            space, b.address(ins.operands[1], space), m.type.bits, len(parts), volatile=order is not None
        )
        if order == "acquire":
            b.fence()
        for part, value in zip(parts, loaded):
            if isinstance(part, Register) and m.type.signed:
                value = b.sext(value, max(b.registers.bits[part.name], m.type.bits))
            b.write(part, value)


@instruction("ldu{.space}{.vec}.type d, [a]", space=("global",), vec=VECTORS, type=LOAD_TYPES, raw=True, pipe="lsu",
             effects=("memory",), ptx="2.0", sm=20, section="9.7.9.11", where=_fits_access)  # fmt: skip
class LoadUniform:
    """ldu: a load whose address is the same in all lanes."""

    @staticmethod
    def reference(t, m, ins):
        space = space_of(m)
        parts = elements(ins.operands[0])
        whole = t.load(space, t.address(ins.operands[1]), m.type.bytes * len(parts))
        for i, part in enumerate(parts):
            if not isinstance(part, Discard):
                type_ = t.register_type(part)
                t.write(part, type_, extended(whole >> (m.type.bits * i) & m.type.mask, m.type, type_.bits))

    @staticmethod
    def emit(b, m, ins):
        space = space_of(m)
        parts = elements(ins.operands[0])
        for part, value in zip(parts, b.load(space, b.address(ins.operands[1], space), m.type.bits, len(parts))):
            if isinstance(part, Register) and m.type.signed:
                value = b.sext(value, max(b.registers.bits[part.name], m.type.bits))
            b.write(part, value)


_STORE = {
    "space": tuple(SPACES), "vec": VECTORS, "type": LOAD_TYPES, "operands": {"e": "b64"}, "raw": True, "pipe": "lsu",
    "effects": ("memory",), "section": "9.7.9.12", "where": _fits_access, **_HINT_CHOICES,
}  # fmt: skip


@instruction(
    f"st{{.weak}}{{.space}}{{.cop}}{_HINTS}{{.vec}}.type [a], b{{, e}}", cop=("wb", "cg", "cs", "wt"), **_STORE
)
@instruction(
    f"st.order{{.mmio}}{{.scope}}{{.space}}{_HINTS}{{.vec}}.type [a], b{{, e}}",
    order=("volatile", "relaxed", "release"), scope=SCOPES, **_STORE,
)  # fmt: skip
class Store:
    """st: weak, volatile, relaxed and release stores."""

    @staticmethod
    def reference(t, m, ins):
        parts = elements(ins.operands[1])
        size = m.type.bytes
        whole = 0
        for i, part in enumerate(parts):
            whole |= (t.read(part, m.type) & m.type.mask) << (8 * size * i)
        t.store(space_of(m), t.address(ins.operands[0]), size * len(parts), whole)

    @staticmethod
    def emit(b, m, ins):
        space = space_of(m)
        order = m.get("order")
        if order == "release":
            b.fence()
        values = [b.read(part, m.type.bits, m.type) for part in elements(ins.operands[1])]
        b.store(space, b.address(ins.operands[0], space), values, volatile=order is not None)


# ---------------------------------------------------------------- hints
@instruction("prefetch{.space}.level [a]", space=("global", "local", "const", "param"), level=("L1", "L2"), raw=True,
             pipe="lsu", effects=("memory",), ptx="2.0", sm=20, section="9.7.9.15")  # fmt: skip
@instruction("prefetch.global.evict [a]", evict=("L2::evict_last", "L2::evict_normal"), raw=True, pipe="lsu",
             effects=("memory",), ptx="7.4", sm=80, section="9.7.9.15")  # fmt: skip
@instruction("prefetch{.space}.tensormap [a]", space=("const", "param"), raw=True, pipe="lsu", effects=("memory",),
             ptx="8.0", sm=90, section="9.7.9.15")  # fmt: skip
@instruction("prefetchu.L1 [a]", raw=True, pipe="lsu", effects=("memory",), ptx="2.0", sm=20, section="9.7.9.15")
@instruction("applypriority{.global}.L2::evict_normal [a], b", operands={"b": "b32"}, raw=True, pipe="lsu",
             effects=("memory",), ptx="7.4", sm=80, section="9.7.9.17")  # fmt: skip
class Hint:
    """Accepted; caches are not modelled while a kernel runs, so there is nothing to do."""

    @staticmethod
    def reference(t, m, ins):
        return None

    @staticmethod
    def emit(b, m, ins):
        return None


@instruction("discard{.global}.L2 [a], b", operands={"b": "b32"}, raw=True, pipe="lsu", effects=("memory",), ptx="7.4",
             sm=80, section="9.7.9.18")  # fmt: skip
class DiscardLines:
    """The contents may be lost; keeping them is one of the allowed outcomes."""

    @staticmethod
    def reference(t, m, ins):
        return None

    @staticmethod
    def emit(b, m, ins):
        return None


_POLICIES = ("L2::evict_last", "L2::evict_normal", "L2::evict_first", "L2::evict_unchanged")


@instruction("createpolicy.fractional.primary{.secondary}.b64 d{, a}", primary=_POLICIES,
             secondary=("L2::evict_first", "L2::evict_unchanged"), operands={"d": "b64", "a": "f32"}, pipe="alu",
             ptx="7.4", sm=80, section="9.7.9.19")  # fmt: skip
@instruction("createpolicy.range{.global}.primary{.secondary}.b64 d, [a], b, c", primary=_POLICIES,
             secondary=("L2::evict_first", "L2::evict_unchanged"), operands={"d": "b64", "b": "u32", "c": "u32"},
             pipe="alu", ptx="7.4", sm=80, section="9.7.9.19")  # fmt: skip
@instruction("createpolicy.cvt.L2.b64 d, a", operands={"d": "b64", "a": "b64"}, pipe="alu", ptx="7.4", sm=80,
             section="9.7.9.19")  # fmt: skip
class CreatePolicy:
    """An opaque cache policy; only cache hints read it."""

    @staticmethod
    def reference(m, *sources):
        return 0

    @staticmethod
    def emit(b, m, *sources):
        return b.const(0, 64)


assert set(LOAD_TYPES) <= set(TYPES)


# ---------------------------------------------------------------- stack
_STACK = {"raw": True, "pipe": "alu", "effects": ("stack",), "ptx": "7.3", "sm": 52}


@instruction("alloca.type d, a{, b}", type=("u32", "u64"), operands={"b": "u32"}, section="9.7.16.3", **_STACK)
class Alloca:
    """Local memory that lives until the function returns or stackrestore frees it; b is the alignment, 8 without it.
    Memory beyond the thread's limit faults when it is used."""

    @staticmethod
    def reference(t, m, ins):
        align = ins.operands[2].value if len(ins.operands) > 2 else 8
        t.write(ins.operands[0], m.operand_type("d"), t.allocate_stack(t.read(ins.operands[1], m.type), align))

    @staticmethod
    def emit(b, m, ins):
        align = ins.operands[2].value if len(ins.operands) > 2 else 8
        size = b.zext(b.read(ins.operands[1], m.type.bits), 64)
        top = b.stack_top()
        place = b.and_(b.add(top, b.const(align - 1, 64)), b.const(-align, 64))
        b.set_stack_top(b.add(place, size))
        b.write(ins.operands[0], b.trunc(place, m.type.bits))


@instruction("stacksave.type d", type=("u32", "u64"), section="9.7.16.1", **_STACK)
class StackSave:
    """The end of the stack, for stackrestore."""

    @staticmethod
    def reference(t, m, ins):
        t.write(ins.operands[0], m.type, t.stack_top())

    @staticmethod
    def emit(b, m, ins):
        b.write(ins.operands[0], b.trunc(b.stack_top(), m.type.bits))


@instruction("stackrestore.type a", type=("u32", "u64"), section="9.7.16.2", **_STACK)
class StackRestore:
    """Frees what alloca gave since the stacksave."""

    @staticmethod
    def reference(t, m, ins):
        t.restore_stack(t.read(ins.operands[0], m.type))

    @staticmethod
    def emit(b, m, ins):
        b.set_stack_top(b.zext(b.read(ins.operands[0], m.type.bits), 64))
