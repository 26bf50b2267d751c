"""Exact arithmetic on bit patterns, for the reference semantics: Python ints in, Python ints out.

A bit pattern is an unsigned int below 2**bits; a number is what it stands for in a type. Packed types hold `lanes`
numbers, the first in the lowest bits.
"""

from __future__ import annotations

from collections.abc import Callable

from weft.types import ScalarType


def mask_of(bits: int) -> int:
    """`bits` ones."""
    return (1 << bits) - 1


def to_signed(pattern: int, bits: int) -> int:
    """The two's complement number of a pattern (which may have higher bits set; they are ignored)."""
    pattern &= mask_of(bits)
    return pattern - (1 << bits) if pattern >> (bits - 1) else pattern


def number_of(pattern: int, bits: int, signed: bool) -> int:
    return to_signed(pattern, bits) if signed else pattern & mask_of(bits)


def clamp(number: int, bits: int, signed: bool) -> int:
    """The nearest number that `bits` bits can hold."""
    low = -(1 << (bits - 1)) if signed else 0
    high = (1 << (bits - 1)) - 1 if signed else mask_of(bits)
    return min(max(number, low), high)


def split(pattern: int, parts: int, bits: int) -> list[int]:
    """`parts` patterns of `bits` bits each, lowest first."""
    return [pattern >> (i * bits) & mask_of(bits) for i in range(parts)]


def join(parts: list[int], bits: int) -> int:
    """The inverse of `split`; each part may be any int."""
    return sum((part & mask_of(bits)) << (i * bits) for i, part in enumerate(parts))


def map_numbers(function: Callable[..., int], type: ScalarType, *patterns: int) -> int:
    """Apply `function` to the numbers of an integer type, lane by lane; its results are wrapped to the lane."""
    bits = type.bits // type.lanes
    lanes = zip(*(split(pattern, type.lanes, bits) for pattern in patterns))
    return join([function(*(number_of(part, bits, type.signed) for part in lane)) for lane in lanes], bits)


def emit_lanes(b, function: Callable, type: ScalarType, *values):
    """The builder's counterpart of `map_numbers`: `function` takes and returns Values of one lane's width."""
    if type.lanes == 1:
        return function(*values)
    lanes = zip(*(b.unpack(value, type.lanes) for value in values))
    return b.pack([function(*lane) for lane in lanes])
