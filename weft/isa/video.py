"""Video instructions: 32-bit arithmetic on differently signed operands, and the same on two or four lanes of a word.

PTX ISA, "Scalar Video Instructions" and "SIMD Video Instructions". All of them compute with exact intermediates, then
saturate on request, then combine with the third operand: the scalar forms by add, min or max (or not at all: without
selectors the merging form takes nothing from it), the lane forms by merging or by adding up. Byte and half-word
selectors (`%r1.b0`), lane masks and negated operands are not read by the parser, which says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weft.isa.bits import clamp, join, number_of, split
from weft.isa.compare import INTEGER_CONDITIONS, SIGNED_COMPARISONS, compare_numbers
from weft.isa.instruction import Match, instruction

SIGNS = ("u32", "s32")
SCALAR = {"pipe": "alu", "ptx": "2.0", "sm": 20, "section": "Scalar Video Instructions"}
LANES = {"pipe": "alu", "ptx": "3.0", "sm": 30, "section": "SIMD Video Instructions"}


@dataclass(frozen=True)
class Operation:
    """`number(x, y)` on exact ints; `emit(b, x, y)` on Values wide enough that nothing wraps."""

    number: Callable[[int, int], int]
    emit: Callable


def _average(x: int, y: int) -> int:
    """Half the sum, rounded away from zero where it is not negative."""
    total = x + y
    return (total + 1 if total >= 0 else total) >> 1


def _emit_average(b, x, y):
    total = b.add(x, y)
    one = b.const(1, x.bits)
    rounding = b.and_(b.not_(b.lshr(total, b.const(x.bits - 1, 32))), one)
    return b.ashr(b.add(total, rounding), one)


def _emit_distance(b, x, y):
    return b.sub(b.smax(x, y), b.smin(x, y))


OPERATIONS = {
    "add": Operation(lambda x, y: x + y, lambda b, x, y: b.add(x, y)),
    "sub": Operation(lambda x, y: x - y, lambda b, x, y: b.sub(x, y)),
    "absdiff": Operation(lambda x, y: abs(x - y), _emit_distance),
    "min": Operation(min, lambda b, x, y: b.smin(x, y)),
    "max": Operation(max, lambda b, x, y: b.smax(x, y)),
    "avrg": Operation(_average, _emit_average),
}


def _emit_clamp(b, x, bits: int, signed: bool):
    """The nearest number that `bits` bits hold; x stays in its wider width."""
    low = -(1 << (bits - 1)) if signed else 0
    high = (1 << (bits - 1 if signed else bits)) - 1
    return b.smin(b.smax(x, b.const(low, x.bits)), b.const(high, x.bits))


# ---------------------------------------------------------------- scalar forms
def _finish(m: Match, number: int, c: int | None) -> int:
    """Saturate, then apply the secondary operation."""
    signed = m.dtype.signed
    if m.get("sat"):
        number = clamp(number, 32, signed)
    second = m.get("second")
    if not second:
        return number
    if second == "add":
        return number + c
    return (min if second == "min" else max)(number_of(number, 32, signed), number_of(c, 32, signed))


def _emit_finish(b, m: Match, x, z):
    """The same for a 64-bit Value."""
    signed = m.dtype.signed
    if m.get("sat"):
        x = _emit_clamp(b, x, 32, signed)
    x = b.trunc(x, 32)
    second = m.get("second")
    if not second:
        return x
    if second == "add":
        return b.add(x, z)
    names = {"min": ("umin", "smin"), "max": ("umax", "smax")}[second]
    return getattr(b, names[signed])(x, z)


def _scalar_rule(operation: Operation) -> type:
    class Rule:
        @staticmethod
        def reference(m, a, b, c=None):
            x, y = number_of(a, 32, m.atype.signed), number_of(b, 32, m.btype.signed)
            return _finish(m, operation.number(x, y), c)

        @staticmethod
        def emit(b, m, x, y, z=None):
            wide = operation.emit(b, b.resize(x, 64, m.atype.signed), b.resize(y, 64, m.btype.signed))
            return _emit_finish(b, m, wide, z)

    return Rule


_TYPES = {"dtype": SIGNS, "atype": SIGNS, "btype": SIGNS}
_ALL_D = {"d": "dtype", "c": "dtype"}
for _name in ("add", "sub", "absdiff", "min", "max"):
    _rule = _scalar_rule(OPERATIONS[_name])
    instruction(f"v{_name}.dtype.atype.btype{{.sat}} d, a, b{{, c}}", operands=_ALL_D, **_TYPES, **SCALAR)(_rule)
    instruction(f"v{_name}.dtype.atype.btype{{.sat}}.second d, a, b, c", operands=_ALL_D,
                second=("add", "min", "max"), **_TYPES, **SCALAR)(_rule)  # fmt: skip


class _VideoShift:
    """Shift counts are kept at 32 (clamp) or taken modulo 32 (wrap)."""

    @staticmethod
    def reference(m, a, b, c=None):
        n = min(b, 32) if m.mode == "clamp" else b & 31
        x = number_of(a, 32, m.atype.signed)
        return _finish(m, x << n if m.entry.opcode == "vshl" else x >> n, c)

    @staticmethod
    def emit(b, m, x, n, z=None):
        n = b.umin(n, b.const(32, 32)) if m.mode == "clamp" else b.and_(n, b.const(31, 32))
        wide = b.resize(x, 64, m.atype.signed)
        if m.entry.opcode == "vshr":
            return _emit_finish(b, m, b.ashr(wide, n), z)
        # 32 more bits hold every left shift but that of 2**31 and above by 32, which the clamp must still see as
        # a positive number: only unsigned operands are that large.
        shifted = b.shl(wide, n)
        if m.get("sat") and not m.atype.signed:
            shifted = b.select(b.icmp("slt", shifted, b.const(0, 64)), b.const((1 << 63) - 1, 64), shifted)
        return _emit_finish(b, m, shifted, z)


for _name in ("vshl", "vshr"):
    _shift_types = {"dtype": SIGNS, "atype": SIGNS, "mode": ("clamp", "wrap")}
    _operands = {**_ALL_D, "a": "atype", "b": "u32"}
    instruction(f"{_name}.dtype.atype.u32{{.sat}}.mode d, a, b{{, c}}", operands=_operands, **_shift_types,
                **SCALAR)(_VideoShift)  # fmt: skip
    instruction(f"{_name}.dtype.atype.u32{{.sat}}.mode.second d, a, b, c", operands=_operands,
                second=("add", "min", "max"), **_shift_types, **SCALAR)(_VideoShift)  # fmt: skip


@instruction("vmad.dtype.atype.btype{.sat}{.scale} d, a, b, c", scale=("shr7", "shr15"),
             operands={"d": "dtype", "c": "b32"}, **_TYPES, **SCALAR)  # fmt: skip
@instruction("vmad.dtype.atype.btype.po{.sat}{.scale} d, a, b, c", scale=("shr7", "shr15"),
             operands={"d": "dtype", "c": "b32"}, **_TYPES, **SCALAR)  # fmt: skip
class Vmad:
    """(a * b + c [+ 1 with .po]) >> scale; the sum is signed where a or b is, and saturates as that says."""

    @staticmethod
    def reference(m, a, b, c):
        signed = m.atype.signed or m.btype.signed
        total = number_of(a, 32, m.atype.signed) * number_of(b, 32, m.btype.signed) + number_of(c, 32, signed)
        total += int(bool(m.get("po")))
        total >>= {"shr7": 7, "shr15": 15}.get(m.scale, 0)
        return clamp(total, 32, signed) if m.sat else total

    @staticmethod
    def emit(b, m, x, y, z):
        signed = m.atype.signed or m.btype.signed
        x, y = b.resize(x, 64, m.atype.signed), b.resize(y, 64, m.btype.signed)
        # At most (2**32 - 1)**2 + 2**32 < 2**64, and within 2**63 when signed.
        total = b.add(b.mul(x, y), b.resize(z, 64, signed))
        if m.get("po"):
            total = b.add(total, b.const(1, 64))
        shift = b.const({"shr7": 7, "shr15": 15}.get(m.scale, 0), 32)
        total = (b.ashr if signed else b.lshr)(total, shift)
        if m.sat:
            total = _emit_clamp(b, total, 32, True) if signed else b.umin(total, b.const((1 << 32) - 1, 64))
        return b.trunc(total, 32)


class _VideoSet:
    """1 or 0, then the secondary operation on unsigned numbers."""

    @staticmethod
    def reference(m, a, b, c=None):
        x, y = number_of(a, 32, m.atype.signed), number_of(b, 32, m.btype.signed)
        t = int(compare_numbers(m.cmp, x, y))
        second = m.get("second")
        if not second:
            return t
        return t + c if second == "add" else (min if second == "min" else max)(t, c)

    @staticmethod
    def emit(b, m, x, y, z=None):
        wide = b.resize(x, 64, m.atype.signed), b.resize(y, 64, m.btype.signed)
        t = b.zext(b.icmp(INTEGER_CONDITIONS[m.cmp][0], *wide), 32)
        second = m.get("second")
        if not second:
            return t
        return {"add": b.add, "min": b.umin, "max": b.umax}[second](t, z)


_SET_TYPES = {"atype": SIGNS, "btype": SIGNS, "cmp": SIGNED_COMPARISONS}
instruction("vset.atype.btype.cmp d, a, b{, c}", operands={"d": "u32", "c": "u32"}, **_SET_TYPES, **SCALAR)(_VideoSet)
instruction("vset.atype.btype.cmp.second d, a, b, c", operands={"d": "u32", "c": "u32"},
            second=("add", "min", "max"), **_SET_TYPES, **SCALAR)(_VideoSet)  # fmt: skip


# ---------------------------------------------------------------- lane forms
def _lane_numbers(pattern: int, lanes: int, signed: bool) -> list[int]:
    bits = 32 // lanes
    return [number_of(part, bits, signed) for part in split(pattern, lanes, bits)]


def _emit_lane_numbers(b, value, lanes: int, signed: bool) -> list:
    return [b.resize(part, 32, signed) for part in b.unpack(value, lanes)]


def _lanes_rule(operation: Operation, lanes: int) -> type:
    bits = 32 // lanes

    class Rule:
        @staticmethod
        def reference(m, a, b, c):
            pairs = zip(_lane_numbers(a, lanes, m.atype.signed), _lane_numbers(b, lanes, m.btype.signed))
            numbers = [operation.number(x, y) for x, y in pairs]
            if m.get("add"):
                return c + sum(numbers)
            return join([clamp(n, bits, m.dtype.signed) if m.sat else n for n in numbers], bits)

        @staticmethod
        def emit(b, m, x, y, z):
            xs = _emit_lane_numbers(b, x, lanes, m.atype.signed)
            ys = _emit_lane_numbers(b, y, lanes, m.btype.signed)
            numbers = [operation.emit(b, u, v) for u, v in zip(xs, ys)]
            if m.get("add"):
                for number in numbers:
                    z = b.add(z, number)
                return z
            if m.sat:
                numbers = [_emit_clamp(b, number, bits, m.dtype.signed) for number in numbers]
            return b.pack([b.trunc(number, bits) for number in numbers])

    return Rule


def _lanes_set_rule(lanes: int) -> type:
    bits = 32 // lanes

    class Rule:
        @staticmethod
        def reference(m, a, b, c):
            pairs = zip(_lane_numbers(a, lanes, m.atype.signed), _lane_numbers(b, lanes, m.btype.signed))
            truths = [int(compare_numbers(m.cmp, x, y)) for x, y in pairs]
            return c + sum(truths) if m.get("add") else join(truths, bits)

        @staticmethod
        def emit(b, m, x, y, z):
            xs = _emit_lane_numbers(b, x, lanes, m.atype.signed)
            ys = _emit_lane_numbers(b, y, lanes, m.btype.signed)
            condition = INTEGER_CONDITIONS[m.cmp][0]
            truths = [b.icmp(condition, u, v) for u, v in zip(xs, ys)]
            if m.get("add"):
                for truth in truths:
                    z = b.add(z, b.zext(truth, 32))
                return z
            return b.pack([b.zext(truth, bits) for truth in truths])

    return Rule


for _lanes in (2, 4):
    for _name in ("add", "sub", "avrg", "absdiff", "min", "max"):
        _rule = _lanes_rule(OPERATIONS[_name], _lanes)
        _signature = f"v{_name}{_lanes}.dtype.atype.btype"
        instruction(_signature + "{.sat} d, a, b, c", operands=_ALL_D, **_TYPES, **LANES)(_rule)
        instruction(_signature + ".add d, a, b, c", operands=_ALL_D, **_TYPES, **LANES)(_rule)
    _rule = _lanes_set_rule(_lanes)
    _set_operands = {"d": "u32", "c": "u32"}
    instruction(f"vset{_lanes}.atype.btype.cmp d, a, b, c", operands=_set_operands, **_SET_TYPES, **LANES)(_rule)
    instruction(f"vset{_lanes}.atype.btype.cmp.add d, a, b, c", operands=_set_operands, **_SET_TYPES, **LANES)(_rule)
