"""One thread's way through a kernel, followed without memory: a flattened function and its parameters in, how often
each instruction runs out.

Registers hold Python integers where the parameters, the launch shape and constants determine them, and None elsewhere
(whatever was loaded, floating point). Loops whose ends depend on parameters and shape run as often as on the device;
a branch that depends on data is guessed: out of a loop after GUESSED_TRIPS turns, otherwise not taken. The result is an
estimate, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from weft.analysis.inline import FlatFunction
from weft.isa.operands import (
    Address,
    Immediate,
    Instruction,
    LabelRef,
    Negated,
    Pair,
    Register,
    SpecialRegister,
    Symbol,
    Vector,
)
from weft.ptx.module import Label
from weft.types import TYPES, Dim3

GUESSED_TRIPS = 4
MAX_STEPS = 200_000  # instructions; a loop that is not done by then is cut off and scaled by nothing

Value = int | None


@dataclass
class Path:
    """counts: runs of each instruction, by its place in the body. sizes: bytes, for instructions that take their size
    from a register (bulk copies). guessed: a branch depended on data; cut: MAX_STEPS were not enough."""

    counts: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    guessed: bool = False
    cut: bool = False


def _wrap(value: int, bits: int, signed: bool) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "lo": lambda a, b: a < b, "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b, "hs": lambda a, b: a >= b,
}  # fmt: skip


def _divide(a: int, b: int) -> Value:
    return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> Value:
    quotient = _divide(a, b)
    return None if quotient is None else a - quotient * b


_BINARY: dict[str, Callable[[int, int], Value]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b, "min": min, "max": max, "div": _divide, "rem": _remainder,
    "shl": lambda a, b: a << min(b, 64), "shr": lambda a, b: a >> min(b, 64),
}  # fmt: skip


class _Thread:
    """The registers of one thread of one block, in the middle of the grid."""

    def __init__(self, flat: FlatFunction, parameters: bytes, grid: Dim3, block: Dim3):
        self.flat, self.parameters = flat, parameters
        self.values: dict[str, Any] = {}
        middle = Dim3(grid.x // 2, grid.y // 2, grid.z // 2)
        self.special: dict[str, int] = {"%laneid": 0, "%warpid": 0, "WARP_SZ": 32}
        for name, shape in (("%ntid", block), ("%nctaid", grid), ("%ctaid", middle), ("%tid", Dim3(0, 0, 0))):
            for axis, value in zip("xyz", shape):
                self.special[f"{name}.{axis}"] = value

    def read(self, operand: Any) -> Value:
        if isinstance(operand, Register):
            return self.values.get(operand.name)
        if isinstance(operand, Immediate):
            return operand.value if isinstance(operand.value, int) and operand.kind == "int" else None
        if isinstance(operand, SpecialRegister):
            return self.special.get(operand.name)
        if isinstance(operand, Negated):
            found = self.values.get(operand.operand.name)
            return None if found is None else int(not found)
        return None

    def write(self, operand: Any, value: Value) -> None:
        if isinstance(operand, Register):
            self.values[operand.name] = value
        elif isinstance(operand, Pair):
            self.write(operand.first, value)
            self.write(operand.second, None if value is None else int(not value))
        elif isinstance(operand, Vector):
            for item in operand.items:
                self.write(item, None)

    def load_parameter(self, address: Address, name: str, signed: bool, size: int) -> Value:
        base = address.base
        if not isinstance(base, Symbol) or base.name not in self.flat.parameter_offsets:
            return None
        at = self.flat.parameter_offsets[base.name] + base.offset + address.offset
        if at + size > len(self.parameters):
            return None
        return int.from_bytes(self.parameters[at : at + size], "little", signed=signed)


def _type_of(ins: Instruction) -> tuple[int, bool, bool]:
    """(bits, signed, integer) of an instruction's last type."""
    for token in reversed(ins.modifiers):
        found = TYPES.get(token)
        if found is not None:
            return found.bits, token.startswith("s"), token[0] in "usb" or token == "pred"
    return 32, False, True


def follow_thread(flat: FlatFunction, parameters: bytes, grid: Dim3, block: Dim3) -> Path:
    """The way of one thread through a flattened entry function. parameters: the bytes of its parameter buffer."""
    body = flat.body
    labels = {item.name: at for at, item in enumerate(body) if isinstance(item, Label)}
    thread, path = _Thread(flat, parameters, grid, block), Path()
    turns: dict[int, int] = {}
    at = steps = 0
    while at < len(body):
        item = body[at]
        if isinstance(item, Label):
            at += 1
            continue
        steps += 1
        if steps > MAX_STEPS:
            path.cut = True
            break
        guard: Value = 1
        if item.guard is not None:
            found = thread.values.get(item.guard.register)
            guard = None if found is None else int(bool(found) != item.guard.negated)
        if guard == 0:
            at += 1
            continue
        path.counts[at] = path.counts.get(at, 0) + 1
        if item.opcode in ("ret", "exit", "trap"):
            if guard is None:
                path.guessed = True
                at += 1
                continue
            break
        if item.opcode == "bra" and isinstance(item.operands[0], LabelRef):
            target = labels[item.operands[0].name]
            taken = guard == 1
            if guard is None:
                path.guessed = True
                turns[at] = turns.get(at, 0) + 1
                taken = target <= at and turns[at] < GUESSED_TRIPS
            elif target <= at:
                # A loop whose exit was guessed elsewhere may have lost its end: it is left after as many turns.
                turns[at] = turns.get(at, 0) + 1
            at = target if taken else at + 1
            continue
        if item.opcode in ("brx", "call"):
            path.guessed = True
        _step(thread, item, at, path)
        at += 1
    return path


def _step(thread: _Thread, ins: Instruction, at: int, path: Path) -> None:
    opcode, operands, modifiers = ins.opcode, ins.operands, ins.modifiers
    if not operands:
        return
    bits, signed, integer = _type_of(ins)
    if opcode.startswith("cp") and "bulk" in modifiers:
        sizes = [found for operand in operands if (found := thread.read(operand)) is not None]
        path.sizes[at] = max(sizes, default=0)
        return
    if opcode in ("st", "red", "bar", "barrier", "mbarrier", "fence", "membar"):
        return
    result: Value = None
    if (
        opcode == "ld"
        and "param" in modifiers
        and isinstance(operands[1], Address)
        and isinstance(operands[0], Register)
    ):
        result = thread.load_parameter(operands[1], "", signed, max(1, bits // 8)) if integer else None
    elif integer or opcode in ("mov", "setp", "selp"):
        values = [thread.read(operand) for operand in operands[1:]]
        result = _compute(opcode, modifiers, values, bits, signed)
    thread.write(operands[0], result)


def _compute(opcode: str, modifiers: tuple[str, ...], values: list[Value], bits: int, signed: bool) -> Value:
    if opcode == "selp":
        return None if values[2] is None else values[0] if values[2] else values[1]
    if opcode in ("and", "or") and "pred" in modifiers and None in values:
        known = [value for value in values if value is not None]
        if opcode == "and" and 0 in known:
            return 0
        return 1 if opcode == "or" and 1 in known else None
    if not values or any(value is None for value in values):
        return None
    numbers = [value for value in values if value is not None]
    if opcode in ("mov", "cvta", "cvt"):
        return _wrap(numbers[0], bits if opcode != "cvt" else _narrowest(modifiers), signed)
    if opcode in ("mul", "mad") and len(numbers) >= 2:
        low = _wrap(numbers[0], bits, signed) * _wrap(numbers[1], bits, signed)
        width = 2 * bits if "wide" in modifiers else bits
        if "hi" in modifiers:
            low >>= bits
        return _wrap(low + (numbers[2] if opcode == "mad" else 0), width, signed)
    if opcode == "setp":
        compare = next((token for token in modifiers if token in _COMPARE), None)
        if compare is None or len(numbers) != 2:
            return None
        a, b = (_wrap(number, bits, signed) for number in numbers)
        return int(_COMPARE[compare](a, b))
    if opcode == "not":
        return int(not numbers[0]) if "pred" in modifiers else _wrap(~numbers[0], bits, signed)
    if opcode == "neg":
        return _wrap(-numbers[0], bits, signed)
    if opcode == "abs":
        return abs(_wrap(numbers[0], bits, True))
    operation = _BINARY.get(opcode)
    if operation is None or len(numbers) != 2:
        return None
    shift = opcode in ("shl", "shr")
    a = _wrap(numbers[0], bits, signed)
    b = numbers[1] & 0xFFFFFFFF if shift else _wrap(numbers[1], bits, signed)
    found = operation(a, b)
    return None if found is None else _wrap(found, bits, signed)


def _narrowest(modifiers: tuple[str, ...]) -> int:
    return min((TYPES[token].bits for token in modifiers if token in TYPES), default=32)
