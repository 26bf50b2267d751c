"""Calls of the host: printf, assert, malloc and free, as the functions of CUDA that compilers call for them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from weft.errors import DeviceAssertError, InvalidValueError, KernelFault
from weft.isa.operands import CallTarget, Symbol
from weft.types import TYPES

if TYPE_CHECKING:
    from weft.reference.thread import Thread

HOST_FUNCTIONS = ("vprintf", "__assertfail", "malloc", "free")


def _host_arguments(t: Thread, target: CallTarget, sizes: Iterable[int]) -> list[int]:
    found = []
    for actual, size in zip(target.arguments, sizes):
        found.append(t.load("generic", t.symbol(actual.name, actual.offset), size) if isinstance(actual, Symbol) else
                     t.read(actual, TYPES[f"b{8 * size}"]))  # fmt: skip
    return found


def _host_result(t: Thread, target: CallTarget, size: int, value: int) -> None:
    if target.returns:
        actual = target.returns[0]
        if isinstance(actual, Symbol):
            t.store("generic", t.symbol(actual.name, actual.offset), size, value)
        else:
            t.write(actual, TYPES[f"b{8 * size}"], value)


_CONVERSION = re.compile(rb"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d*))?(hh|h|ll|l|j|z|t|L)?([diouxXeEfFgGaAcsp%])")


def _print(t: Thread, target: CallTarget) -> None:
    """vprintf(format, arguments): the arguments lie at their natural alignment."""
    format_at, arguments = _host_arguments(t, target, (8, 8))
    at = 0
    converted = 0

    def take(size: int) -> int:
        nonlocal at
        at = -(-at // size) * size
        value = t.load("generic", arguments + at, size)
        at += size
        return value

    def convert(found: re.Match) -> bytes:
        nonlocal converted
        flags, width, precision, length, letter = (part or b"" for part in found.groups())
        if letter == b"%":
            return b"%"
        converted += 1
        stars = tuple(_signed(take(4), 32) for part in (width, precision) if part == b"*")
        shape = b"%" + flags + width + (b"." + precision if found[3] is not None else b"")
        size = 8 if letter in b"eEfFgGaAsp" or length in (b"ll", b"l", b"j", b"z", b"t") else 4
        raw = take(size)
        if letter in b"eEfFgGaA":
            value: Any = struct.unpack("<d", raw.to_bytes(8, "little"))[0]
        elif letter == b"s":
            value = t.load_string(raw)
        elif letter == b"p":
            return b"0x%x" % raw
        elif letter == b"c":
            value = raw & 0xFF
        else:
            bits = {b"h": 16, b"hh": 8}.get(length, 8 * size)
            value = _signed(raw, bits) if letter in b"di" else raw & ((1 << bits) - 1)
        return (shape + letter) % (*stars, value)

    text = _CONVERSION.sub(convert, t.load_string(format_at))
    t.interpreter.printed.append(text.decode("utf-8", "replace"))
    _host_result(t, target, 4, converted)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _assert_failed(t: Thread, target: CallTarget) -> None:
    message, file, line, function, _ = _host_arguments(t, target, (8, 8, 4, 8, 8))
    texts = [t.load_string(a).decode("utf-8", "replace") if a else "?" for a in (file, function, message)]
    raise t.fault(DeviceAssertError, f"{texts[0]}:{line}: {texts[1]}: Assertion `{texts[2]}` failed.")


def _allocate(t: Thread, target: CallTarget) -> None:
    (size,) = _host_arguments(t, target, (8,))
    _host_result(t, target, 8, t.interpreter.memory.allocate(size))


def _release(t: Thread, target: CallTarget) -> None:
    (address,) = _host_arguments(t, target, (8,))
    if address:
        try:
            t.interpreter.memory.free(address)
        except InvalidValueError:
            raise t.fault(KernelFault, f"free of {address:#x}, which malloc did not give", address) from None


HOST_CALLS = {"vprintf": _print, "__assertfail": _assert_failed, "malloc": _allocate, "free": _release}
