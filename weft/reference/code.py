"""Decoded code: the steps of a function, an activation of it, why a thread waits in it, and bit patterns of operands.

decode.py makes steps, thread.py runs them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from weft.isa.operands import CallTarget, Immediate, Instruction
from weft.ptx.module import Function
from weft.types import TYPES, ScalarType

if TYPE_CHECKING:
    from weft.reference.thread import Thread

WARP_LANES = 32
U32, U64 = TYPES["u32"], TYPES["u64"]


class Step(NamedTuple):
    """One decoded instruction. run(thread) gives None to go on, or a Wait."""

    run: Callable[[Thread], Wait | None]
    guard: int  # register index, -1 without a guard
    negated: bool
    index: int  # type: ignore[assignment]  # into Interpreter.executed; nobody calls tuple.index
    ins: Instruction


@dataclass
class Code:
    """A decoded function."""

    function: Function
    steps: list[Step]
    index: dict[str, int]  # register name -> place in Frame.values
    types: dict[str, ScalarType]
    places: dict[str, tuple[int, int]]  # .local and .param variables, parameters and returns: (frame offset, size)
    frame_bytes: int


@dataclass
class Wait:
    """Why a thread stands still. kind: warp (lanes of `mask`, or all that come, when None), barrier."""

    kind: str
    step: Step
    key: Any = None
    mask: int | None = None
    sources: tuple = ()
    finish: Callable[[list[Thread]], None] | None = None
    expected: int | None = None  # barrier: threads, None for all of the block


class Frame:
    """One activation of a function."""

    __slots__ = ("code", "values", "pc", "base", "call", "carry")

    def __init__(self, code: Code, base: int, call: CallTarget | None):
        self.code, self.base, self.call = code, base, call
        self.values = [0] * len(code.index)
        self.pc = 0
        self.carry = 0


def immediate_pattern(operand: Immediate, type: ScalarType) -> int:
    """The bit pattern of a constant in a type."""
    value = operand.value
    if operand.kind == "int":
        return int(value) & type.mask
    if operand.kind in ("f32", "f64"):
        width = 32 if operand.kind == "f32" else 64
        if type.bits == width or type.kind != "f":
            return int(value) & type.mask
        code = "<f" if width == 32 else "<d"
        value = struct.unpack(code, int(value).to_bytes(width // 8, "little"))[0]
    if type.bits == 64:
        return struct.unpack("<Q", struct.pack("<d", value))[0]
    if type.bits == 32:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    raise AssertionError(f"a floating constant as {type}")


def extended(value: int, type: ScalarType, register: ScalarType) -> int:
    """What a register holds after a result of `type` was written to it."""
    value &= type.mask
    if type.signed and register.bits > type.bits and value >> (type.bits - 1):
        value |= register.mask & ~type.mask
    return value & register.mask
