"""Integer arithmetic instructions: one table entry per form, with exact semantics and emission side by side.

Section numbers are those of the PTX ISA manual, "Integer Arithmetic Instructions". Instructions with a carry are in
carry.py, bitwise logic and shifts in logic.py.
"""

from __future__ import annotations

from weft.isa.bits import clamp, emit_lanes, map_numbers, mask_of, number_of, split, to_signed
from weft.isa.instruction import Match, instruction
from weft.types import TYPES, ScalarType

WORDS = ("u16", "u32", "u64", "s16", "s32", "s64")
SIGNED_WORDS = ("s16", "s32", "s64")
HALF_PAIRS = ("u16x2", "s16x2")
BYTE_QUADS = ("u8x4", "s8x4")
BIT_WORDS = ("b32", "b64")
# The packed byte forms are emulated by ptxas on every chip but these.
BYTE_QUAD_SM = 120


def wide_type(m: Match) -> ScalarType:
    """Type of a product: twice the width for `.wide`, else the operands' own."""
    if m.get("wide"):
        return TYPES[f"{m.type.kind}{2 * m.type.bits}"]
    return m.type


def product(m: Match, a: int, b: int) -> int:
    """The part of the exact product that the mode names, as a number."""
    number = number_of(a, m.type.bits, m.type.signed) * number_of(b, m.type.bits, m.type.signed)
    return number >> m.type.bits if m.get("mode") == "hi" else number


def emit_product(b, m: Match, x, y):
    if m.get("wide"):
        width = 2 * m.type.bits
        return b.mul(b.resize(x, width, m.type.signed), b.resize(y, width, m.type.signed))
    if m.mode == "lo":
        return b.mul(x, y)
    return b.mulhi_s(x, y) if m.type.signed else b.mulhi_u(x, y)


def emit_sum(b, x, y, saturate: bool, signed: bool):
    """x + y, kept within the range of its width on request."""
    if not saturate:
        return b.add(x, y)
    if not signed:
        return b.add(x, b.umin(y, b.not_(x)))
    total = b.add(x, y)
    overflow = b.and_(b.xor(x, total), b.xor(y, total))
    return _emit_limit_on_overflow(b, x, total, overflow)


def emit_difference(b, x, y, saturate: bool, signed: bool):
    """x - y, kept within the range of its width on request."""
    if not saturate:
        return b.sub(x, y)
    if not signed:
        return b.sub(x, b.umin(x, y))
    total = b.sub(x, y)
    overflow = b.and_(b.xor(x, y), b.xor(x, total))
    return _emit_limit_on_overflow(b, x, total, overflow)


def _emit_limit_on_overflow(b, x, total, overflow):
    # The sign of the first operand says which limit was passed.
    limit = b.xor(b.ashr(x, b.const(x.bits - 1, 32)), b.const(mask_of(x.bits - 1), x.bits))
    return b.select(b.icmp("slt", overflow, b.const(0, x.bits)), limit, total)


# ---------------------------------------------------------------- add, sub, mul, mad
@instruction("add.type d, a, b", type=WORDS, pipe="alu", section="9.7.1.1")
@instruction("add.sat.s32 d, a, b", pipe="alu", section="9.7.1.1")
@instruction("add.type d, a, b", type=HALF_PAIRS, pipe="alu", ptx="8.0", sm=90, section="9.7.1.1")
@instruction("add.sat.type d, a, b", type=("u32", *HALF_PAIRS), pipe="alu", ptx="9.2", sm=BYTE_QUAD_SM,
             section="9.7.1.1")  # fmt: skip
@instruction("add{.sat}.type d, a, b", type=BYTE_QUADS, pipe="alu", ptx="9.2", sm=BYTE_QUAD_SM, section="9.7.1.1")
class Add:
    @staticmethod
    def reference(m, a, b):
        return _add_or_subtract(m, a, b, 1)

    @staticmethod
    def emit(b, m, x, y):
        scalar = m.operand_type("d")
        return emit_lanes(b, lambda u, v: emit_sum(b, u, v, m.get("sat"), scalar.signed), scalar, x, y)


@instruction("sub.type d, a, b", type=WORDS, pipe="alu", section="9.7.1.2")
@instruction("sub.sat.s32 d, a, b", pipe="alu", section="9.7.1.2")
@instruction("sub{.sat}.type d, a, b", type=BYTE_QUADS, pipe="alu", ptx="9.2", sm=BYTE_QUAD_SM, section="9.7.1.2")
class Sub:
    @staticmethod
    def reference(m, a, b):
        return _add_or_subtract(m, a, b, -1)

    @staticmethod
    def emit(b, m, x, y):
        scalar = m.operand_type("d")
        return emit_lanes(b, lambda u, v: emit_difference(b, u, v, m.get("sat"), scalar.signed), scalar, x, y)


def _add_or_subtract(m: Match, a: int, b: int, sign: int) -> int:
    scalar = m.operand_type("d")
    bits = scalar.bits // scalar.lanes

    def combine(u: int, v: int) -> int:
        total = u + sign * v
        return clamp(total, bits, scalar.signed) if m.get("sat") else total

    return map_numbers(combine, scalar, a, b)


@instruction("mul.mode.type d, a, b", mode=("lo", "hi"), type=WORDS, pipe="alu", section="9.7.1.3")
@instruction("mul.wide.type d, a, b", type=("u16", "u32", "s16", "s32"), operands={"d": wide_type}, pipe="alu",
             section="9.7.1.3")  # fmt: skip
class Mul:
    reference = staticmethod(product)
    emit = staticmethod(emit_product)


@instruction("mad.mode.type d, a, b, c", mode=("lo", "hi"), type=WORDS, pipe="alu", section="9.7.1.4")
@instruction("mad.wide.type d, a, b, c", type=("u16", "u32", "s16", "s32"),
             operands={"d": wide_type, "c": wide_type}, pipe="alu", section="9.7.1.4")  # fmt: skip
class Mad:
    @staticmethod
    def reference(m, a, b, c):
        return product(m, a, b) + c

    @staticmethod
    def emit(b, m, x, y, z):
        return b.add(emit_product(b, m, x, y), z)


@instruction("mad.hi.sat.s32 d, a, b, c", pipe="alu", section="9.7.1.4")
class MadSaturated:
    @staticmethod
    def reference(m, a, b, c):
        return clamp((to_signed(a, 32) * to_signed(b, 32) >> 32) + to_signed(c, 32), 32, True)

    @staticmethod
    def emit(b, m, x, y, z):
        return emit_sum(b, b.mulhi_s(x, y), z, True, True)


def _product_24(m: Match, a: int, b: int) -> int:
    """Bits 31..0 or 47..16 of the product of the low 24 bits, as a number."""
    number = number_of(a, 24, m.operand_type("a").signed) * number_of(b, 24, m.operand_type("b").signed)
    return number >> 16 if m.get("hi") or m.get("mode") == "hi" else number


def _emit_product_24(b, m: Match, x, y):
    signed = m.operand_type("a").signed
    eight = b.const(8, 32)
    factors = [(b.ashr if signed else b.lshr)(b.shl(v, eight), eight) for v in (x, y)]
    if not (m.get("hi") or m.mode == "hi"):
        return b.mul(*factors)
    wide = b.mul(*(b.resize(v, 64, signed) for v in factors))
    return b.extract(wide, 16, 32)


@instruction("mul24.mode.type d, a, b", mode=("lo", "hi"), type=("u32", "s32"), pipe="alu", section="9.7.1.5")
class Mul24:
    reference = staticmethod(_product_24)
    emit = staticmethod(_emit_product_24)


@instruction("mad24.mode.type d, a, b, c", mode=("lo", "hi"), type=("u32", "s32"), pipe="alu", section="9.7.1.6")
class Mad24:
    @staticmethod
    def reference(m, a, b, c):
        return _product_24(m, a, b) + c

    @staticmethod
    def emit(b, m, x, y, z):
        return b.add(_emit_product_24(b, m, x, y), z)


@instruction("mad24.hi.sat.s32 d, a, b, c", pipe="alu", section="9.7.1.6")
class Mad24Saturated:
    @staticmethod
    def reference(m, a, b, c):
        return clamp(to_signed(_product_24(m, a, b), 32) + to_signed(c, 32), 32, True)

    @staticmethod
    def emit(b, m, x, y, z):
        return emit_sum(b, _emit_product_24(b, m, x, y), z, True, True)


# ---------------------------------------------------------------- differences, quotients
@instruction("sad.type d, a, b, c", type=WORDS, pipe="alu", section="9.7.1.7")
class Sad:
    @staticmethod
    def reference(m, a, b, c):
        bits, signed = m.type.bits, m.type.signed
        return c + abs(number_of(a, bits, signed) - number_of(b, bits, signed))

    @staticmethod
    def emit(b, m, x, y, z):
        return b.add(z, emit_absolute_difference(b, x, y, m.type.signed))


def emit_absolute_difference(b, x, y, signed: bool):
    if signed:
        return b.sub(b.smax(x, y), b.smin(x, y))
    return b.sub(b.umax(x, y), b.umin(x, y))


@instruction("div.type d, a, b", type=WORDS, pipe="alu", section="9.7.1.8")
class Div:
    """Division by zero is unspecified in the manual; the hardware's code gives all ones."""

    @staticmethod
    def reference(m, a, b):
        return divide(a, b, m.type)[0]

    @staticmethod
    def emit(b, m, x, y):
        return b.sdiv(x, y) if m.type.signed else b.udiv(x, y)


@instruction("rem.type d, a, b", type=WORDS, pipe="alu", section="9.7.1.9")
class Rem:
    """The remainder of a division by zero is the dividend."""

    @staticmethod
    def reference(m, a, b):
        return divide(a, b, m.type)[1]

    @staticmethod
    def emit(b, m, x, y):
        return b.srem(x, y) if m.type.signed else b.urem(x, y)


def divide(a: int, b: int, type: ScalarType) -> tuple[int, int]:
    """(quotient rounded to zero, remainder) of two patterns."""
    x, y = number_of(a, type.bits, type.signed), number_of(b, type.bits, type.signed)
    if y == 0:
        return -1, x
    quotient = abs(x) // abs(y)
    if (x < 0) != (y < 0):
        quotient = -quotient
    return quotient, x - quotient * y


# ---------------------------------------------------------------- abs, neg, min, max
@instruction("abs.type d, a", type=SIGNED_WORDS, pipe="alu", section="9.7.1.10")
class Abs:
    @staticmethod
    def reference(m, a):
        return abs(to_signed(a, m.type.bits))

    @staticmethod
    def emit(b, m, x):
        return b.abs_(x)


@instruction("neg.type d, a", type=SIGNED_WORDS, pipe="alu", section="9.7.1.11")
@instruction("neg.s8x4 d, a", pipe="alu", ptx="9.2", sm=BYTE_QUAD_SM, section="9.7.1.11")
class Neg:
    @staticmethod
    def reference(m, a):
        return map_numbers(lambda x: -x, m.operand_type("d"), a)

    @staticmethod
    def emit(b, m, x):
        return emit_lanes(b, b.neg, m.operand_type("d"), x)


def _choose(m: Match, a: int, b: int, choose) -> int:
    scalar = m.operand_type("d")
    if m.get("relu"):
        return map_numbers(lambda u, v: max(choose(u, v), 0), scalar, a, b)
    return map_numbers(choose, scalar, a, b)


def _emit_choose(b, m: Match, x, y, signed_choice, unsigned_choice):
    scalar = m.operand_type("d")

    def choose(u, v):
        chosen = signed_choice(u, v) if scalar.signed else unsigned_choice(u, v)
        return b.smax(chosen, b.const(0, chosen.bits)) if m.get("relu") else chosen

    return emit_lanes(b, choose, scalar, x, y)


@instruction("min.type d, a, b", type=WORDS, pipe="alu", section="9.7.1.12")
@instruction("min.relu.s32 d, a, b", pipe="alu", ptx="8.0", sm=90, section="9.7.1.12")
@instruction("min.u16x2 d, a, b", pipe="alu", ptx="8.0", sm=90, section="9.7.1.12")
@instruction("min{.relu}.s16x2 d, a, b", pipe="alu", ptx="8.0", sm=90, section="9.7.1.12")
@instruction("min.u8x4 d, a, b", pipe="alu", ptx="9.2", sm=BYTE_QUAD_SM, section="9.7.1.12")
@instruction("min{.relu}.s8x4 d, a, b", pipe="alu", ptx="9.2", sm=BYTE_QUAD_SM, section="9.7.1.12")
class Min:
    @staticmethod
    def reference(m, a, b):
        return _choose(m, a, b, min)

    @staticmethod
    def emit(b, m, x, y):
        return _emit_choose(b, m, x, y, b.smin, b.umin)


@instruction("max.type d, a, b", type=WORDS, pipe="alu", section="9.7.1.13")
@instruction("max.relu.s32 d, a, b", pipe="alu", ptx="8.0", sm=90, section="9.7.1.13")
@instruction("max.u16x2 d, a, b", pipe="alu", ptx="8.0", sm=90, section="9.7.1.13")
@instruction("max{.relu}.s16x2 d, a, b", pipe="alu", ptx="8.0", sm=90, section="9.7.1.13")
@instruction("max.u8x4 d, a, b", pipe="alu", ptx="9.2", sm=BYTE_QUAD_SM, section="9.7.1.13")
@instruction("max{.relu}.s8x4 d, a, b", pipe="alu", ptx="9.2", sm=BYTE_QUAD_SM, section="9.7.1.13")
class Max:
    @staticmethod
    def reference(m, a, b):
        return _choose(m, a, b, max)

    @staticmethod
    def emit(b, m, x, y):
        return _emit_choose(b, m, x, y, b.smax, b.umax)


# ---------------------------------------------------------------- counting and finding bits
@instruction("popc.type d, a", type=BIT_WORDS, operands={"d": "u32"}, pipe="xu", ptx="2.0", sm=20, section="9.7.1.14")
class Popc:
    @staticmethod
    def reference(m, a):
        return a.bit_count()

    @staticmethod
    def emit(b, m, x):
        return b.resize(b.popc(x), 32, False)


@instruction("clz.type d, a", type=BIT_WORDS, operands={"d": "u32"}, pipe="xu", ptx="2.0", sm=20, section="9.7.1.15")
class Clz:
    @staticmethod
    def reference(m, a):
        return m.type.bits - a.bit_length()

    @staticmethod
    def emit(b, m, x):
        return b.resize(b.ctlz(x), 32, False)


@instruction("bfind{.shiftamt}.type d, a", type=("u32", "u64", "s32", "s64"), operands={"d": "u32"}, pipe="xu",
             ptx="2.0", sm=20, section="9.7.1.16")  # fmt: skip
class Bfind:
    @staticmethod
    def reference(m, a):
        if m.type.signed and to_signed(a, m.type.bits) < 0:
            a = ~a & m.type.mask
        position = a.bit_length() - 1
        return m.type.bits - 1 - position if m.shiftamt and position >= 0 else position

    @staticmethod
    def emit(b, m, x):
        width = m.type.bits
        if m.type.signed:
            x = b.xor(x, b.ashr(x, b.const(width - 1, 32)))
        zeros = b.ctlz(x)
        if m.shiftamt:
            none = b.icmp("eq", zeros, b.const(width, width))
            return b.resize(b.select(none, b.const(-1, width), zeros), 32, True)
        # No bit set: ctlz is the width, and the result -1.
        return b.resize(b.sub(b.const(width - 1, width), zeros), 32, True)


@instruction("fns.b32 d, a, b, c", operands={"b": "u32", "c": "s32"}, pipe="xu", ptx="6.0", sm=30, section="9.7.1.17")
class Fns:
    """The |c|-th set bit of a, counted from bit b upwards (c > 0) or downwards (c < 0); all ones where none is."""

    @staticmethod
    def reference(m, a, b, c):
        offset = to_signed(c, 32)
        if b > 31:
            return -1
        if offset == 0:
            return b if a >> b & 1 else -1
        positions = range(b, 32) if offset > 0 else range(b, -1, -1)
        hits = [i for i in positions if a >> i & 1]
        return hits[abs(offset) - 1] if abs(offset) <= len(hits) else -1

    @staticmethod
    def emit(b, m, mask, base, offset):
        zero = b.const(0, 32)
        one = b.const(1, 32)
        last = b.const(31, 32)
        # Counting downwards is counting upwards in the reversed word.
        down = b.icmp("slt", offset, zero)
        word = b.select(down, b.brev(mask), mask)
        start = b.select(down, b.sub(last, base), base)
        here = b.icmp("eq", offset, zero)
        # An offset of zero asks for bit `base` itself: the first one of a word that holds no other.
        kept = b.select(here, b.shl(one, start), b.shl(b.const(-1, 32), start))
        word = b.and_(word, kept)
        rank = b.select(here, one, b.abs_(offset))
        inside = b.icmp("ule", base, last)
        found = b.and_(inside, b.icmp("ule", rank, b.popc(word)))
        position = zero
        for width in (16, 8, 4, 2, 1):
            low = b.and_(b.lshr(word, position), b.const(mask_of(width), 32))
            count = b.popc(low)
            above = b.icmp("ugt", rank, count)
            rank = b.select(above, b.sub(rank, count), rank)
            position = b.select(above, b.add(position, b.const(width, 32)), position)
        position = b.select(down, b.sub(last, position), position)
        return b.select(found, position, b.const(-1, 32))


@instruction("brev.type d, a", type=BIT_WORDS, pipe="xu", ptx="2.0", sm=20, section="9.7.1.18")
class Brev:
    @staticmethod
    def reference(m, a):
        return int(f"{a:0{m.type.bits}b}"[::-1], 2)

    @staticmethod
    def emit(b, m, x):
        return b.brev(x)


# ---------------------------------------------------------------- bit fields
@instruction("bfe.type d, a, b, c", type=("u32", "u64", "s32", "s64"), operands={"b": "u32", "c": "u32"}, pipe="alu",
             ptx="2.0", sm=20, section="9.7.1.19")  # fmt: skip
class Bfe:
    """The field of c bits at position b. A field that runs past the top is filled with the sign for signed types."""

    @staticmethod
    def reference(m, a, b, c):
        position, length = b & 0xFF, c & 0xFF
        if length == 0:
            return 0
        # The number is extended far beyond the register: what lies above the top is sign or zero.
        field = number_of(a, m.type.bits, m.type.signed) >> position
        return number_of(field, min(length, m.type.bits), m.type.signed)

    @staticmethod
    def emit(b, m, x, position, length):
        width = m.type.bits
        position = b.and_(position, b.const(0xFF, 32))
        length = b.and_(length, b.const(0xFF, 32))
        if not m.type.signed:
            ones = b.sub(b.shl(b.const(1, width), length), b.const(1, width))
            return b.and_(b.lshr(x, position), ones)
        end = b.umin(b.add(position, length), b.const(width, 32))
        left = b.sub(b.const(width, 32), end)
        field = b.ashr(b.shl(x, left), b.add(left, position))
        return b.select(b.icmp("eq", length, b.const(0, 32)), b.const(0, width), field)


@instruction("bfi.type d, a, b, c, e", type=BIT_WORDS, operands={"c": "u32", "e": "u32"}, pipe="alu", ptx="2.0",
             sm=20, section="9.7.1.20")  # fmt: skip
class Bfi:
    """b with the low e bits of a written over it at position c (the manual calls the operands f, a, b, c, d)."""

    @staticmethod
    def reference(m, a, b, c, e):
        field = mask_of(e & 0xFF) << (c & 0xFF)
        return b & ~field | a << (c & 0xFF) & field

    @staticmethod
    def emit(b, m, x, y, position, length):
        width = m.type.bits
        position = b.and_(position, b.const(0xFF, 32))
        length = b.and_(length, b.const(0xFF, 32))
        ones = b.sub(b.shl(b.const(1, width), length), b.const(1, width))
        field = b.shl(ones, position)
        return b.or_(b.and_(y, b.not_(field)), b.and_(b.shl(x, position), field))


@instruction("szext.mode.type d, a, b", mode=("clamp", "wrap"), type=("u32", "s32"), operands={"b": "u32"}, pipe="alu",
             ptx="7.6", sm=70, section="9.7.1.21")  # fmt: skip
class Szext:
    """a's low b bits, extended; b counts modulo 32 (wrap), or 32 and more keep all of a (clamp)."""

    @staticmethod
    def reference(m, a, b):
        if m.mode == "clamp" and b >= 32:
            return a
        length = b & 31
        return number_of(a, length, m.type.signed) if length else 0

    @staticmethod
    def emit(b, m, x, n):
        length = b.and_(n, b.const(31, 32))
        unused = b.sub(b.const(32, 32), length)
        # A length of zero shifts everything out; the arithmetic shift back then finds zero.
        result = (b.ashr if m.type.signed else b.lshr)(b.shl(x, unused), unused)
        if m.mode == "clamp":
            return b.select(b.icmp("uge", n, b.const(32, 32)), x, result)
        return result


@instruction("bmsk.mode.b32 d, a, b", mode=("clamp", "wrap"), operands={"a": "u32", "b": "u32"}, pipe="alu", ptx="7.6",
             sm=70, section="9.7.1.22")  # fmt: skip
class Bmsk:
    """b ones at position a; both count modulo 32 (wrap) or are kept within the word (clamp)."""

    @staticmethod
    def reference(m, a, b):
        if m.mode == "clamp":
            if a >= 32:
                return 0
            if b >= 32:
                return mask_of(32) << a
        return mask_of(b & 31) << (a & 31)

    @staticmethod
    def emit(b, m, position, length):
        one = b.const(1, 32)
        if m.mode == "wrap":
            position = b.and_(position, b.const(31, 32))
            length = b.and_(length, b.const(31, 32))
        return b.shl(b.sub(b.shl(one, length), one), position)


# ---------------------------------------------------------------- dot products
@instruction("dp4a.atype.btype d, a, b, c", atype=("u32", "s32"), btype=("u32", "s32"),
             operands={"d": "b32", "c": "b32"}, pipe="fma", ptx="5.0", sm=61, section="9.7.1.23")  # fmt: skip
class Dp4a:
    @staticmethod
    def reference(m, a, b, c):
        pairs = zip(split(a, 4, 8), split(b, 4, 8))
        return c + sum(number_of(x, 8, m.atype.signed) * number_of(y, 8, m.btype.signed) for x, y in pairs)

    @staticmethod
    def emit(b, m, x, y, z):
        for i in range(4):
            u = b.resize(b.extract(x, 8 * i, 8), 32, m.atype.signed)
            v = b.resize(b.extract(y, 8 * i, 8), 32, m.btype.signed)
            z = b.add(z, b.mul(u, v))
        return z


@instruction("dp2a.mode.atype.btype d, a, b, c", mode=("lo", "hi"), atype=("u32", "s32"), btype=("u32", "s32"),
             operands={"d": "b32", "c": "b32"}, pipe="fma", ptx="5.0", sm=61, section="9.7.1.24")  # fmt: skip
class Dp2a:
    @staticmethod
    def reference(m, a, b, c):
        bytes_used = split(b, 4, 8)[2:] if m.mode == "hi" else split(b, 4, 8)[:2]
        pairs = zip(split(a, 2, 16), bytes_used)
        return c + sum(number_of(x, 16, m.atype.signed) * number_of(y, 8, m.btype.signed) for x, y in pairs)

    @staticmethod
    def emit(b, m, x, y, z):
        first = 16 if m.mode == "hi" else 0
        for i in range(2):
            u = b.resize(b.extract(x, 16 * i, 16), 32, m.atype.signed)
            v = b.resize(b.extract(y, first + 8 * i, 8), 32, m.btype.signed)
            z = b.add(z, b.mul(u, v))
        return z
