"""Bitwise logic, shifts and byte permutation: and, or, xor, not, cnot, lop3, shf, shl, shr, prmt.

Section numbers are those of the PTX ISA manual, "Logic and Shift Instructions" and "prmt".
"""

from __future__ import annotations

from weft.errors import PtxError
from weft.isa.bits import join, mask_of, number_of, split
from weft.isa.instruction import instruction

LOGIC_TYPES = ("pred", "b16", "b32", "b64")


# ---------------------------------------------------------------- logic
@instruction("and.type d, a, b", type=LOGIC_TYPES, pipe="alu", section="9.7.8.1")
class And:
    @staticmethod
    def reference(m, a, b):
        return a & b

    @staticmethod
    def emit(b, m, x, y):
        return b.and_(x, y)


@instruction("or.type d, a, b", type=LOGIC_TYPES, pipe="alu", section="9.7.8.2")
class Or:
    @staticmethod
    def reference(m, a, b):
        return a | b

    @staticmethod
    def emit(b, m, x, y):
        return b.or_(x, y)


@instruction("xor.type d, a, b", type=LOGIC_TYPES, pipe="alu", section="9.7.8.3")
class Xor:
    @staticmethod
    def reference(m, a, b):
        return a ^ b

    @staticmethod
    def emit(b, m, x, y):
        return b.xor(x, y)


@instruction("not.type d, a", type=LOGIC_TYPES, pipe="alu", section="9.7.8.4")
class Not:
    @staticmethod
    def reference(m, a):
        return ~a

    @staticmethod
    def emit(b, m, x):
        return b.not_(x)


@instruction("cnot.type d, a", type=("b16", "b32", "b64"), pipe="alu", section="9.7.8.5")
class Cnot:
    @staticmethod
    def reference(m, a):
        return int(a == 0)

    @staticmethod
    def emit(b, m, x):
        return b.zext(b.icmp("eq", x, b.const(0, x.bits)), x.bits)


def _look_up(lut: int, a: int, b: int, c: int) -> int:
    """Each result bit is the bit of lut at the index that a (4), b (2) and c (1) spell there."""
    result = 0
    for index in range(8):
        if lut >> index & 1:
            result |= (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    return result & mask_of(32)


def _emit_of_two(b, table: int, y, z):
    """The bitwise function of two operands with this 4-bit truth table (bit 2 * y + z)."""
    rules = {
        0b0000: lambda: b.const(0, 32),
        0b0001: lambda: b.not_(b.or_(y, z)),
        0b0010: lambda: b.and_(b.not_(y), z),
        0b0011: lambda: b.not_(y),
        0b0100: lambda: b.and_(y, b.not_(z)),
        0b0101: lambda: b.not_(z),
        0b0110: lambda: b.xor(y, z),
        0b0111: lambda: b.not_(b.and_(y, z)),
        0b1000: lambda: b.and_(y, z),
        0b1001: lambda: b.not_(b.xor(y, z)),
        0b1010: lambda: z,
        0b1011: lambda: b.or_(b.not_(y), z),
        0b1100: lambda: y,
        0b1101: lambda: b.or_(y, b.not_(z)),
        0b1110: lambda: b.or_(y, z),
        0b1111: lambda: b.const(-1, 32),
    }
    return rules[table]()


def _emit_look_up(b, m, x, y, z, lut):
    if lut.constant is None:
        raise PtxError(f"{m.text}: the look-up table must be an immediate", expected="a constant 0 to 255")
    table = lut.constant & 0xFF
    unset, set_ = table & 15, table >> 4  # the functions of y and z where x's bit is 0 and where it is 1
    low = _emit_of_two(b, unset, y, z)
    if unset == set_:
        return low
    if unset == set_ ^ 15:
        return b.xor(x, low)
    if unset == 0:
        return b.and_(x, _emit_of_two(b, set_, y, z))
    if set_ == 15:
        return b.or_(x, low)
    if set_ == 0:
        return b.and_(b.not_(x), low)
    high = _emit_of_two(b, set_, y, z)
    if unset == 15:
        return b.or_(b.not_(x), high)
    return b.or_(b.and_(x, high), b.and_(b.not_(x), low))


@instruction("lop3.b32 d, a, b, c, lut", pipe="alu", ptx="4.3", sm=50, section="9.7.8.6")
class Lop3:
    @staticmethod
    def reference(m, a, b, c, lut):
        return _look_up(lut, a, b, c)

    @staticmethod
    def emit(b, m, x, y, z, lut):
        return _emit_look_up(b, m, x, y, z, lut)


@instruction("lop3.bool.b32 d|p, a, b, c, lut, e", bool=("or", "and"), operands={"e": "pred"}, pipe="alu", ptx="8.2",
             sm=70, section="9.7.8.6")  # fmt: skip
class Lop3Predicate:
    """Also p = (d != 0) BoolOp e (the manual calls e q)."""

    @staticmethod
    def reference(m, a, b, c, lut, e):
        word = _look_up(lut, a, b, c)
        some = int(word != 0)
        return word, some | e if m.bool == "or" else some & e

    @staticmethod
    def emit(b, m, x, y, z, lut, e):
        word = _emit_look_up(b, m, x, y, z, lut)
        some = b.icmp("ne", word, b.const(0, 32))
        return word, b.or_(some, e) if m.bool == "or" else b.and_(some, e)


# ---------------------------------------------------------------- shifts
@instruction("shf.direction.mode.b32 d, a, b, c", direction=("l", "r"), mode=("clamp", "wrap"), operands={"c": "u32"},
             pipe="alu", ptx="3.1", sm=32, section="9.7.8.7")  # fmt: skip
class Shf:
    """The 64-bit word b:a (b high) shifted; the high half of a left shift, the low half of a right one."""

    @staticmethod
    def reference(m, a, b, c):
        n = min(c, 32) if m.mode == "clamp" else c & 31
        word = b << 32 | a
        return word << n >> 32 if m.direction == "l" else word >> n

    @staticmethod
    def emit(b, m, low, high, n):
        shifted = (b.fshl if m.direction == "l" else b.fshr)(high, low, n)
        if m.mode == "wrap":
            return shifted
        return b.select(b.icmp("ult", n, b.const(32, 32)), shifted, low if m.direction == "l" else high)


@instruction("shl.type d, a, b", type=("b16", "b32", "b64"), operands={"b": "u32"}, pipe="alu", section="9.7.8.8")
class Shl:
    @staticmethod
    def reference(m, a, b):
        return a << b if b < m.type.bits else 0

    @staticmethod
    def emit(b, m, x, n):
        return b.shl(x, n)


@instruction("shr.type d, a, b", type=("b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64"),
             operands={"b": "u32"}, pipe="alu", section="9.7.8.9")  # fmt: skip
class Shr:
    @staticmethod
    def reference(m, a, b):
        return number_of(a, m.type.bits, m.type.signed) >> min(b, m.type.bits)

    @staticmethod
    def emit(b, m, x, n):
        return b.ashr(x, n) if m.type.signed else b.lshr(x, n)


# ---------------------------------------------------------------- prmt
# Which of the bytes 0-7 of b:a each result byte takes, lowest result byte first, by the selector's low two bits.
# PTX ISA, 9.7.9.7, table of the specialised modes.
PRMT_MODES = {
    "f4e": ((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 6)),
    "b4e": ((0, 7, 6, 5), (1, 0, 7, 6), (2, 1, 0, 7), (3, 2, 1, 0)),
    "rc8": ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (3, 3, 3, 3)),
    "ecl": ((0, 1, 2, 3), (1, 1, 2, 3), (2, 2, 2, 3), (3, 3, 3, 3)),
    "ecr": ((0, 0, 0, 0), (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)),
    "rc16": ((0, 1, 0, 1), (2, 3, 2, 3), (0, 1, 0, 1), (2, 3, 2, 3)),
}


def mode_selector(mode: str, n: int) -> int:
    """The selector in the default mode's notation (four nibbles) of a specialised mode."""
    return join(list(PRMT_MODES[mode][n & 3]), 4)


def _permute(a: int, b: int, selector: int) -> int:
    source = split(b << 32 | a, 8, 8)
    picked = []
    for nibble in split(selector, 4, 4):
        byte = source[nibble & 7]
        picked.append((0xFF if byte >> 7 else 0) if nibble & 8 else byte)
    return join(picked, 8)


@instruction("prmt.b32{.mode} d, a, b, c", mode=tuple(PRMT_MODES), operands={"c": "b32"}, pipe="alu", ptx="2.0", sm=20,
             section="9.7.9.7")  # fmt: skip
class Prmt:
    """Result byte i is the byte that nibble i of c names, or its sign eight times where the nibble's top bit is set."""

    @staticmethod
    def reference(m, a, b, c):
        return _permute(a, b, mode_selector(m.mode, c) if m.mode else c)

    @staticmethod
    def emit(b, m, x, y, c):
        if m.mode:
            selector = c.constant
            if selector is not None:
                return _emit_permute_known(b, x, y, mode_selector(m.mode, selector))
            c = b.and_(c, b.const(3, 32))
            choice = b.const(mode_selector(m.mode, 0), 32)
            for n in range(1, 4):
                choice = b.select(b.icmp("eq", c, b.const(n, 32)), b.const(mode_selector(m.mode, n), 32), choice)
            c = choice
        elif c.constant is not None:
            return _emit_permute_known(b, x, y, c.constant)
        return _emit_permute(b, x, y, c)


def _emit_permute_known(b, x, y, selector: int):
    nibbles = split(selector, 4, 4)
    for word, first in ((x, 0), (y, 4)):
        if nibbles == [first, first + 1, first + 2, first + 3]:
            return word
    sources = {}
    picked = []
    for nibble in nibbles:
        if nibble not in sources:
            byte = b.extract(y if nibble & 4 else x, 8 * (nibble & 3), 8)
            sources[nibble] = b.ashr(byte, b.const(7, 32)) if nibble & 8 else byte
        picked.append(sources[nibble])
    return b.pack(picked)


def _emit_permute(b, x, y, selector):
    zero = b.const(0, 32)
    result = zero
    for i in range(4):
        nibble = b.lshr(selector, b.const(4 * i, 32))
        word = b.select(b.icmp("ne", b.and_(nibble, b.const(4, 32)), zero), y, x)
        # The wanted byte is moved to the top, from where both its copies are one shift away.
        up = b.sub(b.const(24, 32), b.shl(b.and_(nibble, b.const(3, 32)), b.const(3, 32)))
        top = b.shl(word, up)
        sign = b.icmp("ne", b.and_(nibble, b.const(8, 32)), zero)
        byte = b.lshr(b.select(sign, b.ashr(top, b.const(31, 32)), top), b.const(24, 32))
        result = b.or_(result, b.shl(byte, b.const(8 * i, 32)))
    return result
