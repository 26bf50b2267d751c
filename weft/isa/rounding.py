"""Exact floating point: bit patterns to exact values and back, with every rounding that PTX has.

The reference semantics rest on this module. What enters: bit patterns (Python ints) with the name of their format;
what leaves: exact values, or bit patterns rounded once. A finite value is a Fraction; infinities and NaN are the Python
floats inf, -inf and nan. As a Fraction has no signed zero, a value travels as an `Exact`: the value and its sign.

    encode("f16", decode("f32", bits), "rz")          # narrowing, toward zero
    pack("f32", fused(unpack("f16", a), unpack("f16", b), unpack("f32", c), "rn"), "rn")

Formats (PTX ISA, "Fundamental Types" and "Alternate Floating-Point Data Formats"): f16, bf16, tf32, f32, f64, e4m3,
e5m2, e2m1, e2m3, e3m2. tf32 is stored in the upper bits of a 32-bit pattern, and the 13 low bits are ignored when it is
read. e4m3 has NaN but no infinity, e2m1, e2m3 and e3m2 have neither. ue8m0 (a power of two from 2^-127 to 2^127, or
NaN) has functions of its own.

Rounding modes: rn (nearest, ties to even), rna (nearest, ties away from zero), rz, rm (down), rp (up).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

Value = Fraction | float
INFINITY = math.inf
NAN = math.nan
MODES = ("rn", "rz", "rm", "rp", "rna")


@dataclass(frozen=True)
class Format:
    """A binary floating-point format. `bits` is the width of its pattern, `unused` counts the ignored low bits
    (tf32), `special` says what the highest exponent holds: "ieee" infinities and NaN, "nan" NaN in its last code
    alone (e4m3), "none" ordinary numbers."""

    name: str
    bits: int
    exponent_bits: int
    fraction_bits: int
    canonical_nan: int
    special: str = "ieee"
    unused: int = 0

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def lowest_exponent(self) -> int:
        """Exponent of the smallest normal number."""
        return 1 - self.bias

    @property
    def sign_bit(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def infinity(self) -> int:
        """Pattern of +inf (IEEE formats only)."""
        assert self.special == "ieee", f"{self.name} has no infinity"
        return ((1 << self.exponent_bits) - 1) << (self.fraction_bits + self.unused)

    @property
    def largest(self) -> int:
        """Pattern of the largest finite number."""
        top = (1 << (self.exponent_bits + self.fraction_bits)) - 1
        beyond = {"ieee": 1 << self.fraction_bits, "nan": 1, "none": 0}[self.special]
        return (top - beyond) << self.unused

    @property
    def one(self) -> int:
        """Pattern of 1.0."""
        return self.bias << (self.fraction_bits + self.unused)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("f16", 16, 5, 10, 0x7FFF),
        Format("bf16", 16, 8, 7, 0x7FFF),
        Format("tf32", 32, 8, 10, 0x7FFFFFFF, unused=13),
        Format("f32", 32, 8, 23, 0x7FFFFFFF),
        Format("f64", 64, 11, 52, 0xFFF8000000000000),
        Format("e4m3", 8, 4, 3, 0x7F, special="nan"),
        Format("e5m2", 8, 5, 2, 0x7F),
        Format("e2m1", 4, 2, 1, 0, special="none"),
        Format("e2m3", 6, 2, 3, 0, special="none"),
        Format("e3m2", 6, 3, 2, 0, special="none"),
    )
}


class Exact(NamedTuple):
    """An exact value with the sign that its zero (or NaN) has."""

    value: Value
    negative: bool

    @property
    def is_nan(self) -> bool:
        return self.value != self.value

    @property
    def is_infinite(self) -> bool:
        return isinstance(self.value, float) and not self.is_nan

    @property
    def is_finite(self) -> bool:
        return not isinstance(self.value, float)

    @property
    def is_zero(self) -> bool:
        return self.is_finite and not self.value


NOT_A_NUMBER = Exact(NAN, False)


# ---------------------------------------------------------------- reading
def decode(fmt: str, bits: int) -> Value:
    """The exact value of a pattern: a Fraction (zero for both zeros), or the float inf, -inf or nan."""
    return unpack(fmt, bits).value


def unpack(fmt: str, bits: int) -> Exact:
    """The exact value of a pattern, with its sign."""
    f = FORMATS[fmt]
    negative = bool(bits & f.sign_bit)
    magnitude = (bits & (f.sign_bit - 1)) >> f.unused
    exponent = magnitude >> f.fraction_bits
    fraction = magnitude & ((1 << f.fraction_bits) - 1)
    if f.special == "ieee" and exponent == (1 << f.exponent_bits) - 1:
        if bits & (f.sign_bit - 1) > f.infinity:
            return Exact(NAN, negative)
        return Exact(-INFINITY if negative else INFINITY, negative)
    if f.special == "nan" and magnitude == f.sign_bit - 1:
        return Exact(NAN, negative)
    significand = fraction | (1 << f.fraction_bits) if exponent else fraction
    power = max(exponent, 1) - f.bias - f.fraction_bits
    if negative:
        significand = -significand
    return Exact(Fraction(significand << power) if power >= 0 else Fraction(significand, 1 << -power), negative)


def is_nan(fmt: str, bits: int) -> bool:
    """Whether a pattern is a NaN."""
    f = FORMATS[fmt]
    magnitude = bits & (f.sign_bit - 1)
    if f.special == "ieee":
        return magnitude > f.infinity
    return f.special == "nan" and magnitude == f.sign_bit - 1


def is_subnormal(fmt: str, bits: int) -> bool:
    """Whether a pattern is a nonzero number below the smallest normal one."""
    f = FORMATS[fmt]
    magnitude = bits & (f.sign_bit - 1)
    return 0 < magnitude < 1 << (f.fraction_bits + f.unused)


def flush(fmt: str, bits: int) -> int:
    """A pattern with subnormals replaced by the zero of their sign (.ftz on inputs)."""
    return bits & FORMATS[fmt].sign_bit if is_subnormal(fmt, bits) else bits


# ---------------------------------------------------------------- writing
def encode(fmt: str, value: Value | int, mode: str = "rn", *, negative: bool = False, **changes: bool) -> int:
    """The pattern of a value, rounded once. `negative` gives the sign of a zero that has none (0 and Fraction(0));
    the rest is as in `pack`."""
    if isinstance(value, float):
        return pack(fmt, from_float(value), mode, **changes)
    return pack(fmt, Exact(Fraction(value), value < 0 if value else negative), mode, **changes)


def pack(
    fmt: str,
    exact: Exact,
    mode: str = "rn",
    *,
    ftz: bool = False,
    sat: bool = False,
    relu: bool = False,
    satfinite: bool = False,
) -> int:
    """The pattern of an exact value, rounded once.

    ftz: a subnormal result becomes the zero of its sign. sat: results are held within [0, 1], NaN becomes +0.
    relu: negative results (and -0) become +0, NaN the canonical NaN. satfinite: what is too large (infinities too)
    becomes the largest finite number of its sign; NaN stays NaN, or becomes the largest positive number where the
    format has none. Without satfinite a format without infinity overflows to NaN.
    """
    f = FORMATS[fmt]
    assert mode in MODES, mode
    if exact.is_nan:
        if sat:
            return 0
        return f.largest if f.special == "none" else f.canonical_nan
    sign = f.sign_bit if exact.negative else 0
    if exact.is_infinite:
        magnitude = _overflow(f, "rn", exact.negative, satfinite)
    else:
        magnitude = _round_magnitude(f, exact, mode, satfinite)
    if ftz and 0 < magnitude < 1 << (f.fraction_bits + f.unused):
        magnitude = 0
    if sat:
        return 0 if sign else min(magnitude, f.one)
    if relu and sign:
        return 0
    return sign | magnitude


def _round_magnitude(f: Format, exact: Exact, mode: str, satfinite: bool) -> int:
    numerator, denominator = abs(exact.value.numerator), exact.value.denominator
    if not numerator:
        return 0
    exponent = numerator.bit_length() - denominator.bit_length()
    if numerator << max(0, -exponent) < denominator << max(0, exponent):
        exponent -= 1
    exponent = max(exponent, f.lowest_exponent)
    power = exponent - f.fraction_bits
    if power >= 0:
        denominator <<= power
    else:
        numerator <<= -power
    significand, rest = divmod(numerator, denominator)
    if rest and _rounds_up(mode, exact.negative, 2 * rest - denominator, significand & 1):
        significand += 1
    # A carry out of the fraction runs into the exponent, as it should.
    magnitude = (((exponent - f.lowest_exponent) << f.fraction_bits) + significand) << f.unused
    return _overflow(f, mode, exact.negative, satfinite) if magnitude > f.largest else magnitude


def _rounds_up(mode: str, negative: bool, beyond_half: int, odd: int) -> bool:
    """Whether an inexact magnitude is rounded away from zero; `beyond_half` is the sign of (rest - one half)."""
    if mode == "rn":
        return beyond_half > 0 or (beyond_half == 0 and bool(odd))
    if mode == "rna":
        return beyond_half >= 0
    return mode == ("rm" if negative else "rp")


def _overflow(f: Format, mode: str, negative: bool, satfinite: bool) -> int:
    if satfinite or mode == "rz" or mode == ("rp" if negative else "rm"):
        return f.largest
    return f.infinity if f.special == "ieee" else f.canonical_nan


# ---------------------------------------------------------------- exact arithmetic
def negate(x: Exact) -> Exact:
    return Exact(-x.value, not x.negative)


def add(x: Exact, y: Exact, mode: str = "rn") -> Exact:
    """x + y. `mode` decides the sign of an exact zero sum of nonzero or differing terms (IEEE 754, 6.3)."""
    if x.is_nan or y.is_nan:
        return NOT_A_NUMBER
    if x.is_infinite or y.is_infinite:
        if x.is_infinite and y.is_infinite and x.negative != y.negative:
            return NOT_A_NUMBER
        return x if x.is_infinite else y
    total = x.value + y.value
    if total:
        return Exact(total, total < 0)
    same_zeros = x.is_zero and y.is_zero and x.negative == y.negative
    return Exact(total, x.negative if same_zeros else mode == "rm")


def subtract(x: Exact, y: Exact, mode: str = "rn") -> Exact:
    """x - y."""
    return add(x, negate(y), mode)


def multiply(x: Exact, y: Exact) -> Exact:
    """x * y."""
    negative = x.negative != y.negative
    if x.is_nan or y.is_nan or (x.is_infinite and y.is_zero) or (x.is_zero and y.is_infinite):
        return NOT_A_NUMBER
    if x.is_infinite or y.is_infinite:
        return Exact(-INFINITY if negative else INFINITY, negative)
    return Exact(x.value * y.value, negative)


def fused(x: Exact, y: Exact, z: Exact, mode: str = "rn") -> Exact:
    """x * y + z, exactly."""
    return add(multiply(x, y), z, mode)


def divide(x: Exact, y: Exact) -> Exact:
    """x / y; a nonzero number divided by zero is infinite."""
    negative = x.negative != y.negative
    if x.is_nan or y.is_nan or (x.is_infinite and y.is_infinite) or (x.is_zero and y.is_zero):
        return NOT_A_NUMBER
    if x.is_infinite or y.is_zero:
        return Exact(-INFINITY if negative else INFINITY, negative)
    if y.is_infinite:
        return Exact(Fraction(0), negative)
    return Exact(x.value / y.value, negative)


def square_root(x: Exact) -> Exact:
    """The square root, or a value that every format here rounds as it would round the root: an irrational root is cut
    to at least 128 bits, with a last bit set for what was cut."""
    if x.is_nan or x.is_zero:
        return x if x.is_zero else NOT_A_NUMBER
    if x.negative:
        return NOT_A_NUMBER
    if x.is_infinite:
        return x
    numerator, denominator = x.value.numerator, x.value.denominator
    # Denominators are powers of two: make that power even, then widen both.
    power = denominator.bit_length() - 1
    assert denominator == 1 << power, f"not a binary number: {x.value}"
    if power & 1:
        numerator, power = numerator << 1, power + 1
    widen = max(0, 260 - numerator.bit_length()) // 2
    numerator, power = numerator << (2 * widen), power + 2 * widen
    root = math.isqrt(numerator)
    inexact = root * root != numerator
    return Exact(Fraction(2 * root + inexact, 1 << (power // 2 + 1)), False)


def round_to_integral(x: Exact, mode: str) -> Exact:
    """The integer that a rounding mode gives, with x's sign when it is zero."""
    if not x.is_finite:
        return x
    floor = x.value.numerator // x.value.denominator
    rest = x.value - floor
    up = {
        "rz": x.negative and rest > 0,
        "rm": False,
        "rp": rest > 0,
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor & 1 == 1),
    }[mode]
    return Exact(Fraction(floor + up), x.negative)


def from_float(number: float) -> Exact:
    """A Python float as an exact value."""
    negative = math.copysign(1.0, number) < 0
    return Exact(Fraction(number) if math.isfinite(number) else number, negative)


def exact_integer(number: int) -> Exact:
    """An integer as an exact value; zero is +0."""
    return Exact(Fraction(number), number < 0)


def to_float(fmt: str, bits: int) -> float:
    """A pattern of any format here as a Python float (all of them fit one exactly)."""
    exact = unpack(fmt, bits)
    if exact.is_finite:
        return math.copysign(float(exact.value), -1.0 if exact.negative else 1.0)
    return float(exact.value)


# ---------------------------------------------------------------- ue8m0
UE8M0_NAN = 0xFF


def decode_ue8m0(bits: int) -> Exact:
    """2^(bits - 127), or NaN for 0xff."""
    return NOT_A_NUMBER if bits == UE8M0_NAN else Exact(Fraction(2) ** (bits - 127), False)


def encode_ue8m0(exact: Exact, mode: str, satfinite: bool) -> int:
    """The power of two at the magnitude of a value, rounded toward zero (rz) or up (rp); the sign is dropped.

    What is below 2^-127 gives 2^-127. Above 2^127 satfinite gives 2^127; without it rp and infinities give NaN.
    """
    assert mode in ("rz", "rp"), mode
    if exact.is_nan:
        return UE8M0_NAN
    if exact.is_infinite:
        return 0xFE if satfinite else UE8M0_NAN
    value = abs(Fraction(exact.value))
    lowest = Fraction(1, 1 << 127)
    if value <= lowest:
        return 0
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if Fraction(2) ** exponent > value:
        exponent -= 1
    if mode == "rp" and Fraction(2) ** exponent != value:
        exponent += 1
    if exponent > 127:
        return 0xFE if satfinite else UE8M0_NAN
    return exponent + 127
