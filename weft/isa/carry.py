"""Extended-precision integer arithmetic: the instructions that read or write the carry flag CC.CF.

The flag arrives as the last source of an entry with the effect "carry_in" and leaves as the last result of one with
"carry_out" (PTX ISA, "Extended-Precision Integer Arithmetic Instructions"). The manual speaks of a borrow after a
subtraction; in the code that ptxas makes, the flag is the adder's carry there too (a - b is a + ~b + 1, so the flag is
set where nothing is borrowed), which shows where an addition reads the flag of a subtraction.
"""

from __future__ import annotations

from weft.isa.bits import clamp, mask_of, to_signed
from weft.isa.instruction import Match, instruction
from weft.isa.integer import WORDS, emit_product, product

CARRY_WORDS = ("u32", "s32", "u64", "s64")
SECTION = "9.7.2"


def _result(m: Match, total: int):
    """The wrapped total, and the carry where the form writes it."""
    bits = m.type.bits
    if "carry_out" in m.entry.effects:
        return total & mask_of(bits), total >> bits & 1
    return total


def _emit_total(b, m: Match, x, y, carry):
    """x + y + carry, with the carry out where the form writes it."""
    total = b.add(x, y)
    over = b.icmp("ult", total, x)
    if carry is not None:
        before = total
        total = b.add(total, b.zext(carry, x.bits))
        over = b.or_(over, b.icmp("ult", total, before))
    return (total, over) if "carry_out" in m.entry.effects else total


@instruction("add.cc.type d, a, b", type=CARRY_WORDS, effects=("carry_out",), pipe="alu", ptx="1.2",
             section=SECTION + ".1")  # fmt: skip
@instruction("addc.type d, a, b", type=WORDS, effects=("carry_in",), pipe="alu", ptx="1.2", section=SECTION + ".2")
@instruction("addc.cc.type d, a, b", type=CARRY_WORDS, effects=("carry_in", "carry_out"), pipe="alu", ptx="1.2",
             section=SECTION + ".2")  # fmt: skip
class AddWithCarry:
    @staticmethod
    def reference(m, a, b, carry=0):
        return _result(m, a + b + carry)

    @staticmethod
    def emit(b, m, x, y, carry=None):
        return _emit_total(b, m, x, y, carry)


@instruction("sub.cc.type d, a, b", type=CARRY_WORDS, effects=("carry_out",), pipe="alu", ptx="1.2",
             section=SECTION + ".3")  # fmt: skip
@instruction("subc.type d, a, b", type=WORDS, effects=("carry_in",), pipe="alu", ptx="1.2", section=SECTION + ".4")
@instruction("subc.cc.type d, a, b", type=CARRY_WORDS, effects=("carry_in", "carry_out"), pipe="alu", ptx="1.2",
             section=SECTION + ".4")  # fmt: skip
class SubtractWithCarry:
    @staticmethod
    def reference(m, a, b, carry=1):
        return _result(m, a + (~b & m.type.mask) + carry)

    @staticmethod
    def emit(b, m, x, y, carry=None):
        if carry is not None:
            return _emit_total(b, m, x, b.not_(y), carry)
        return b.sub(x, y), b.icmp("uge", x, y)


@instruction("mad.mode.cc.type d, a, b, c", mode=("lo", "hi"), type=CARRY_WORDS, effects=("carry_out",), pipe="alu",
             ptx="3.0", sm=20, section=SECTION + ".5")  # fmt: skip
@instruction("madc.mode.type d, a, b, c", mode=("lo", "hi"), type=WORDS, effects=("carry_in",), pipe="alu", ptx="3.0",
             sm=20, section=SECTION + ".6")  # fmt: skip
@instruction("madc.mode.cc.type d, a, b, c", mode=("lo", "hi"), type=CARRY_WORDS, effects=("carry_in", "carry_out"),
             pipe="alu", ptx="3.0", sm=20, section=SECTION + ".6")  # fmt: skip
class MadWithCarry:
    @staticmethod
    def reference(m, a, b, c, carry=0):
        return _result(m, (product(m, a, b) & m.type.mask) + c + carry)

    @staticmethod
    def emit(b, m, x, y, z, carry=None):
        return _emit_total(b, m, emit_product(b, m, x, y), z, carry)


@instruction("madc.hi.sat.s32 d, a, b, c", effects=("carry_in",), pipe="alu", ptx="3.0", sm=20, section=SECTION + ".6")
class MadWithCarrySaturated:
    @staticmethod
    def reference(m, a, b, c, carry):
        return clamp((to_signed(a, 32) * to_signed(b, 32) >> 32) + to_signed(c, 32) + carry, 32, True)

    @staticmethod
    def emit(b, m, x, y, z, carry):
        # In 64 bits nothing overflows: |hi(x * y)| <= 2**30.
        high = b.sext(b.mulhi_s(x, y), 64)
        total = b.add(b.add(high, b.sext(z, 64)), b.zext(carry, 64))
        total = b.smin(b.smax(total, b.const(-(1 << 31), 64)), b.const((1 << 31) - 1, 64))
        return b.trunc(total, 32)
