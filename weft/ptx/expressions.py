"""Constant expressions. Enters: a Lexer at the first token. Leaves: a Constant (value and type).

Integers are .s64 or .u64 and wrap at 64 bits; floats are computed as .f64 (PTX manual, "Constants" and "Summary of
Constant Expression Evaluation Rules").
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from weft.isa.operands import Immediate
from weft.ptx.lexer import Lexer, integer_literal

MAX_NESTING = 64
_MASK = (1 << 64) - 1

_PRECEDENCE = {
    "||": 1, "&&": 2, "|": 3, "^": 4, "&": 5, "==": 6, "!=": 6, "<": 7, "<=": 7, ">": 7, ">=": 7,
    "<<": 8, ">>": 8, "+": 9, "-": 9, "*": 10, "/": 10, "%": 10,
}  # fmt: skip
_COMPARE = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class Constant(NamedTuple):
    """kind "s64", "u64": an int in that range; "f32", "f64": the bits of 0f.../0d...; "float": a Python float."""

    value: int | float
    kind: str

    @property
    def integer(self) -> int:
        """The value of an s64 or u64 constant, or the bits of an f32 or f64 one."""
        assert isinstance(self.value, int), self
        return self.value

    @property
    def is_float(self) -> bool:
        return self.kind[0] == "f"

    def immediate(self) -> Immediate:
        return Immediate(self.value, self.kind if self.is_float else "int")

    def number(self) -> int | float:
        """The value itself: a Python float for all float kinds."""
        if self.kind == "f32":
            return struct.unpack("<f", self.integer.to_bytes(4, "little"))[0]
        if self.kind == "f64":
            return struct.unpack("<d", self.integer.to_bytes(8, "little"))[0]
        return self.value


def parse_constant(lexer: Lexer) -> Constant:
    """Parse an expression with ?: and all binary operators. Raises PtxSyntaxError, PtxError."""
    return _conditional(lexer, 0)


def parse_integer(lexer: Lexer, what: str) -> int:
    """Parse a constant expression that must be an integer; `what` names it in messages."""
    line = lexer.line
    constant = parse_constant(lexer)
    if constant.is_float:
        lexer.illegal(f"{what} must be an integer", found=str(constant.number()), line=line)
    return constant.integer


def float_bits(value: float, kind: str) -> int:
    """IEEE bits of `value` rounded to kind "f32" or "f64"; overflow gives infinity."""
    if kind == "f64":
        return int.from_bytes(struct.pack("<d", value), "little")
    try:
        return int.from_bytes(struct.pack("<f", value), "little")
    except OverflowError:
        return 0xFF800000 if value < 0 else 0x7F800000


def _wrap(value: int, unsigned: bool) -> Constant:
    value &= _MASK
    if unsigned:
        return Constant(value, "u64")
    return Constant(value - (1 << 64) if value >> 63 else value, "s64")


def _conditional(lexer: Lexer, depth: int) -> Constant:
    if depth > MAX_NESTING:
        lexer.fail("expression is nested too deeply", f"at most {MAX_NESTING} levels")
    condition = _binary(lexer, 1, depth)
    if not lexer.accept("?"):
        return condition
    if condition.is_float:
        lexer.illegal("the condition of ?: must be an integer", found=str(condition.number()))
    first = _conditional(lexer, depth + 1)
    lexer.expect(":", "?: without its second half")
    second = _conditional(lexer, depth + 1)
    chosen = first if condition.value else second
    if first.is_float or second.is_float:
        return chosen
    return _wrap(chosen.integer, "u64" in (first.kind, second.kind))


def _binary(lexer: Lexer, lowest: int, depth: int) -> Constant:
    left = _unary(lexer, depth)
    while lexer.kind == "op":
        operator = lexer.value
        precedence = _PRECEDENCE.get(operator, 0)
        if precedence < lowest or precedence == 0:
            break
        lexer.advance()
        line = lexer.line
        right = _binary(lexer, precedence + 1, depth + 1)
        left = _apply(lexer, operator, left, right, line)
    return left


def _apply(lexer: Lexer, operator: str, left: Constant, right: Constant, line: int) -> Constant:
    if operator in _COMPARE:
        return Constant(int(_COMPARE[operator](left.number(), right.number())), "s64")
    if left.is_float or right.is_float:
        return Constant(_apply_float(lexer, operator, float(left.number()), float(right.number()), line), "float")
    a, b = left.integer, right.integer
    unsigned = "u64" in (left.kind, right.kind)
    if operator in ("<<", ">>"):
        unsigned = left.kind == "u64"
        count = b & _MASK
        if operator == "<<":
            return _wrap(a << count if count < 64 else 0, unsigned)
        return _wrap(a >> min(count, 64), unsigned)
    if operator == "&&":
        return Constant(int(bool(a) and bool(b)), "s64")
    if operator == "||":
        return Constant(int(bool(a) or bool(b)), "s64")
    if unsigned:
        a, b = a & _MASK, b & _MASK
    if operator in ("/", "%"):
        if b == 0:
            lexer.illegal("constant expression divides by zero", line=line)
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return _wrap(quotient if operator == "/" else a - quotient * b, unsigned)
    results = {"+": a + b, "-": a - b, "*": a * b, "&": a & b, "|": a | b, "^": a ^ b}
    return _wrap(results[operator], unsigned)


def _apply_float(lexer: Lexer, operator: str, a: float, b: float, line: int) -> float:
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    if operator == "/":
        if b != 0:
            return a / b
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1, b)
    return lexer.illegal(f"operator {operator} needs integers", line=line)


def _unary(lexer: Lexer, depth: int) -> Constant:
    if depth > MAX_NESTING:
        lexer.fail("expression is nested too deeply", f"at most {MAX_NESTING} levels")
    kind, value = lexer.kind, lexer.value
    if kind == "int":
        number, unsigned = integer_literal(lexer)
        lexer.advance()
        return Constant(number, "u64" if unsigned else "s64")
    if kind == "float":
        lexer.advance()
        if value[1:2] in ("f", "F"):
            return Constant(int(value[2:], 16), "f32")
        if value[1:2] in ("d", "D"):
            return Constant(int(value[2:], 16), "f64")
        return Constant(float(value), "float")
    if value == "WARP_SZ":
        lexer.advance()
        return Constant(32, "u64")
    if kind == "op" and value in ("-", "+", "!", "~"):
        lexer.advance()
        line = lexer.line
        return _negate(lexer, value, _unary(lexer, depth + 1), line)
    if value == "(" and kind == "op":
        lexer.advance()
        if lexer.value in (".s64", ".u64"):
            unsigned = lexer.advance() == ".u64"
            lexer.expect(")")
            operand = _unary(lexer, depth + 1)
            if operand.is_float:
                lexer.illegal("a cast needs an integer", found=str(operand.number()))
            return _wrap(operand.integer, unsigned)
        inner = _conditional(lexer, depth + 1)
        lexer.expect(")")
        return inner
    return lexer.fail("syntax error", "a constant")


def _negate(lexer: Lexer, operator: str, operand: Constant, line: int) -> Constant:
    if operator == "+":
        return operand
    if operand.is_float:
        if operator != "-":
            lexer.illegal(f"operator {operator} needs an integer", found=str(operand.number()), line=line)
        return Constant(-operand.number(), "float")
    if operator == "!":
        return Constant(int(operand.value == 0), "s64")
    value = -operand.integer if operator == "-" else ~operand.integer
    return _wrap(value, operand.kind == "u64")
