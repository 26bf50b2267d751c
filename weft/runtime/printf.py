"""Device printf: a format and packed arguments in, text out. C's conversions, as CUDA's printf takes them."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

_CONVERSION = re.compile(
    rb"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    rb"(?P<length>hh|h|ll|l|j|z|t|L|I64|I32)?(?P<letter>[diouxXeEfFgGaAcsp%])"
)
_WIDE = {b"ll", b"l", b"j", b"z", b"t", b"I64"}
_NARROW = {b"hh": 8, b"h": 16}


@dataclass(frozen=True)
class Conversion:
    """One %... of a format. width and precision: an int, "*" or None; size is of the argument in bytes."""

    flags: str
    width: int | str | None
    precision: int | str | None
    letter: str
    bits: int

    @property
    def size(self) -> int:
        if self.letter in "eEfFgGaAsp":
            return 8
        return 8 if self.bits == 64 else 4


@lru_cache(maxsize=256)
def parse_format(text: bytes) -> tuple[bytes | Conversion, ...]:
    """Literal text and conversions in turn. What is no conversion stays as it is, as in CUDA."""
    parts: list[bytes | Conversion] = []
    at = 0
    for match in _CONVERSION.finditer(text):
        if match.start() > at:
            parts.append(text[at : match.start()])
        at = match.end()
        letter = match["letter"].decode()
        if letter == "%":
            parts.append(b"%")
            continue
        length = match["length"] or b""
        bits = 64 if length in _WIDE else _NARROW.get(length, 32)
        width = match["width"]
        precision = match["precision"]
        parts.append(
            Conversion(
                match["flags"].decode(),
                "*" if width == b"*" else int(width) if width else None,
                "*" if precision == b"*" else None if precision is None else int(precision or 0),
                letter,
                bits,
            )
        )
    if at < len(text):
        parts.append(text[at:])
    return tuple(parts)


def argument_bytes(parts: tuple[bytes | Conversion, ...]) -> int:
    """How far into the argument buffer the conversions reach."""
    at = 0
    for part in parts:
        if isinstance(part, bytes):
            continue
        for star in (part.width, part.precision):
            at += 4 * (star == "*")
        at = -(-at // part.size) * part.size + part.size
    return at


def format_printf(
    parts: tuple[bytes | Conversion, ...], arguments: bytes, read_string: Callable[[int], bytes]
) -> bytes:
    """The text of one thread's printf. `arguments` lie at their natural alignment; read_string reads a C string."""
    out = []
    at = 0

    def take(code: str, size: int) -> int | float:
        nonlocal at
        at = -(-at // size) * size
        (value,) = struct.unpack_from("<" + code, arguments, at)
        at += size
        return value

    for part in parts:
        if isinstance(part, bytes):
            out.append(part)
            continue
        flags, width, precision = part.flags, part.width, part.precision
        if width == "*":
            width = int(take("i", 4))
            if width < 0:
                flags, width = flags + "-", -width
        if precision == "*":
            precision = int(take("i", 4))
            if precision < 0:
                precision = None
        if part.letter in "eEfFgGaA":
            body = _format_float(float(take("d", 8)), part.letter, flags, precision)
        elif part.letter == "s":
            pointer = int(take("Q", 8))
            text = read_string(pointer) if pointer else b"(null)"
            body = text if precision is None else text[: int(precision)]
        elif part.letter == "p":
            pointer = int(take("Q", 8))
            body = b"%#x" % pointer if pointer else b"(nil)"
        elif part.letter == "c":
            body = bytes([int(take("i", 4)) & 0xFF])
        else:
            value = int(take("Q" if part.bits == 64 else "I", part.size)) & ((1 << part.bits) - 1)
            body = _format_integer(value, part, flags, precision)
        out.append(_pad(body, part.letter, flags, int(width or 0), precision))
    return b"".join(out)


def _format_integer(value: int, part: Conversion, flags: str, precision: int | str | None) -> bytes:
    sign = ""
    if part.letter in "di":
        if value >> (part.bits - 1):
            value -= 1 << part.bits
        sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
    digits = format(abs(value), {"o": "o", "x": "x", "X": "X"}.get(part.letter, "d"))
    if precision is not None:
        digits = "" if precision == 0 and value == 0 else digits.rjust(int(precision), "0")
    if "#" in flags:
        if part.letter == "o" and not digits.startswith("0"):
            digits = "0" + digits
        elif part.letter in "xX" and value:
            sign = "0" + part.letter
    return (sign + digits).encode()


def _format_float(value: float, letter: str, flags: str, precision: int | str | None) -> bytes:
    sign = "-" if math.copysign(1.0, value) < 0 else "+" if "+" in flags else " " if " " in flags else ""
    if not math.isfinite(value):
        text = "nan" if math.isnan(value) else "inf"
        return (sign + (text.upper() if letter.isupper() else text)).encode()
    if letter in "aA":
        text = _hexadecimal(abs(value), precision)
        return (sign + (text.upper() if letter == "A" else text)).encode()
    digits = 6 if precision is None else precision
    alternate = "#" if "#" in flags else ""
    return (sign + f"%{alternate}.{digits}{letter}" % abs(value)).encode()


def _hexadecimal(value: float, precision: int | str | None) -> str:
    """0x1.8p+1: glibc's form of %a, which drops trailing zeros."""
    mantissa, exponent = value.hex().split("p")
    whole, _, fraction = mantissa.partition(".")
    if precision is not None:
        places = int(precision)
        if places < len(fraction):
            scaled = int(whole, 16) << 4 * len(fraction) | int(fraction or "0", 16)
            drop = 4 * (len(fraction) - places)
            kept, rest = scaled >> drop, scaled & ((1 << drop) - 1)
            half = 1 << (drop - 1)
            kept += rest > half or (rest == half and kept & 1)
            whole, fraction = hex(kept >> 4 * places), format(kept & ((1 << 4 * places) - 1), f"0{places}x")
            fraction = fraction if places else ""
        else:
            fraction = fraction.ljust(places, "0")
    else:
        fraction = fraction.rstrip("0")
    return f"{whole}{'.' * bool(fraction)}{fraction}p{int(exponent):+d}"


def _pad(body: bytes, letter: str, flags: str, width: int, precision: int | str | None) -> bytes:
    if len(body) >= width:
        return body
    if "-" in flags:
        return body.ljust(width)
    finite = body[-1:] not in b"fFyYnN" or letter in "diouxX"
    zeros = "0" in flags and letter not in "csp" and finite and (letter in "eEfFgGaA" or precision is None)
    if not zeros:
        return body.rjust(width)
    head = re.match(rb"[-+ ]?(?:0[xX])?", body)[0]  # type: ignore[index]
    return head + body[len(head) :].rjust(width - len(head), b"0")
