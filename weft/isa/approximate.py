"""Approximate functions: ex2, lg2, sin, cos, tanh, and the .approx and .full forms of rcp, sqrt, rsqrt and div.

What enters and leaves are the patterns of f32 (f16, bf16 and f64 where a form has them). References compute in f64 and
round once; emissions are polynomials and rationals in the builder's own operations, never library calls. Their
coefficients are minimax fits (iteratively reweighted least squares on Chebyshev points, rounded to f32 one by one,
refitting the rest). The bounds are the PTX manual's ("Floating Point Instructions"); the errors here are the largest
over 2^20 random patterns in each of several ranges (tests/test_forms_float.py holds the bounds):

    function   manual                                         here                      operations (.ftz, without)
    ex2        2 ulp                                          1.21 ulp                  15, 20
    lg2        2^-22.6 abs. on (0.5, 2), else 2^-22 rel.      2^-23.2 abs., 2^-23.2     21, 25
    sin, cos   2^-20.5 abs. on [-2 pi, 2 pi]                  2^-21.1                   18, 13
               2^-14.7 abs. on [-100 pi, 100 pi]              2^-15.3
    tanh       2^-11 rel.                                     2^-18.9                   16
    rsqrt      2^-22.9 rel.                                   2^-23.4                   2

Decisions:
- sin and cos multiply by 1/(2 pi) in f32 once and drop whole turns, as the hardware does; the reference does the same,
  so that huge arguments agree (they end as whole turns: sin 0, cos 1).
- div.approx.ftz is a * rcp(b), which gives the manual's 0 (NaN for infinite a) where |b| > 2^126; without .ftz the
  quotient is the nearest one everywhere.
- rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 read the upper 32 bits of their operand and write those of the result.
"""

from __future__ import annotations

import math

from weft.isa import emit_float as ef
from weft.isa import rounding
from weft.isa.floating import BRAINS, HALVES, format_of, map_patterns
from weft.isa.instruction import Match, Tolerance, instruction
from weft.isa.rounding import FORMATS, Exact

# 2^f = 1 + f * (...), f in [0, 1]; relative error 2.1e-9.
EX2 = (0.6931470632553101, 0.24022908508777618, 0.05548618361353874, 0.009673775173723698, 0.0012482289457693696,
       0.000215659718378447)  # fmt: skip
# log2(1 + f) = f * (...), f in [sqrt(1/2) - 1, sqrt(2) - 1]; absolute error 4.9e-8.
LG2 = (1.4426947832107544, -0.7213571071624756, 0.4809388816356659, -0.36008819937705994, 0.28671708703041077,
       -0.2500680387020111, 0.2368362545967102, -0.14568917453289032)  # fmt: skip
# sin(2 pi g) = g * (polynomial in g^2), g in [-1/4, 1/4]; relative error 3e-8. The third coefficient is two units below
# its best value: no g gives more than 1 in f32 then (all were tried), and 1/4 gives 1.
SIN = (6.2831854820251465, -41.341766357421875, 81.6086196899414, -76.72798156738281, 40.875911712646484)
# tanh(x) = x * numerator(x^2) / denominator(x^2), x in [0, 7.5]; relative error 1.9e-6. Above it 1 is as near.
TANH_NUMERATOR = (1.0, 0.1226826012134552, 0.0022438103333115578, 3.758218554139603e-06)
TANH_DENOMINATOR = (1.0, 0.45600762963294983, 0.020924974232912064, 0.0001385645300615579)
TANH_LIMIT = 7.5
# 1 / (2 pi) in f32.
TURNS_PER_RADIAN = 0.15915493667125702
SIGN = FORMATS["f32"].sign_bit
ONE = rounding.unpack("f32", FORMATS["f32"].one)
ULP2 = Tolerance(ulp=2)


def polynomial(b, x, coefficients):
    """Horner's rule in f32, lowest coefficient first."""
    result = ef.float_const(b, "f32", coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = b.fma("f32", result, x, ef.float_const(b, "f32", coefficient))
    return result


def round_float(fmt: str, number: float, ftz: bool = False) -> int:
    """The pattern nearest to a Python float."""
    return rounding.pack(fmt, rounding.from_float(number), ftz=ftz)


# ---------------------------------------------------------------- exponential and logarithm
def exact_ex2(x: float) -> float:
    """2^x as a Python float."""
    if x != x:
        return x
    return math.inf if x > 1023 else 0.0 if x < -1080 else 2.0**x


def emit_ex2(b, x, subnormals: bool):
    """2^x in f32. Without `subnormals`, results below 2^-126 are zero."""

    def number(value: float):
        return ef.float_const(b, "f32", value)

    tiny = b.fcmp("olt", "f32", x, number(-126.0))
    bounded = b.select(b.fcmp("ogt", "f32", x, number(128.0)), number(128.0), x)
    if subnormals:
        # Computed 2^64 times as large, in the range of normal numbers.
        bounded = b.select(b.fcmp("olt", "f32", bounded, number(-180.0)), number(-180.0), bounded)
        bounded = b.select(tiny, b.fadd("f32", bounded, number(64.0)), bounded)
    whole = b.fround("f32", bounded, "rm")
    fraction = b.fsub("f32", bounded, whole)
    # Adding 1.5 * 2^23 puts the integer into the low bits; the biased exponent goes from there to its place.
    scale = b.shl(b.fadd("f32", whole, number(12582912.0 + 127.0)), b.const(23, 32))
    result = b.fmul("f32", polynomial(b, fraction, (1.0, *EX2)), scale)
    if subnormals:
        return b.fmul("f32", result, b.select(tiny, number(2.0**-64), number(1.0)))
    return b.select(tiny, number(0.0), result)


@instruction("ex2.approx{.ftz}.f32 d, a", pipe="xu", ptx="1.4", section="9.7.3.21", tolerance=ULP2)
class Ex2:
    """2^a."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        a = rounding.flush("f32", a) if m.ftz else a
        return round_float("f32", exact_ex2(rounding.to_float("f32", a)), ftz=m.ftz)

    @staticmethod
    def emit(b, m: Match, x):
        return emit_ex2(b, x, subnormals=not m.ftz)


def exact_lg2(x: float) -> float:
    """log2(x) as a Python float."""
    if x != x or x < 0:
        return math.nan
    return -math.inf if x == 0 else math.log2(x)


@instruction("lg2.approx{.ftz}.f32 d, a", pipe="xu", ptx="1.4", section="9.7.3.20",
             tolerance=Tolerance(absolute=2.0**-22.6, relative=2.0**-22))  # fmt: skip
class Lg2:
    """log2(a): -inf for zeros, NaN for negative numbers."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        a = rounding.flush("f32", a) if m.ftz else a
        return round_float("f32", exact_lg2(rounding.to_float("f32", a)))

    @staticmethod
    def emit(b, m: Match, x):
        def number(value: float):
            return ef.float_const(b, "f32", value)

        if m.ftz:
            x = b.ftz(x)
            scaled = x
        else:
            small = b.fcmp("olt", "f32", x, number(2.0**-126))
            scaled = b.select(small, b.fmul("f32", x, number(2.0**24)), x)
        # scaled = 2^exponent * mantissa, with the mantissa from sqrt(1/2) to sqrt(2).
        shifted = b.sub(scaled, b.const(0x3F3504F3, 32))
        mantissa = b.sub(scaled, b.and_(shifted, b.const(0xFF800000, 32)))
        exponent = b.sitofp(b.ashr(shifted, b.const(23, 32)), "f32")
        if not m.ftz:
            exponent = b.fsub("f32", exponent, b.select(small, number(24.0), number(0.0)))
        fraction = b.fsub("f32", mantissa, number(1.0))
        result = b.fma("f32", fraction, polynomial(b, fraction, LG2), exponent)
        result = b.select(b.fcmp("olt", "f32", x, number(math.inf)), result, x)
        outside = b.select(b.fcmp("oeq", "f32", x, number(0.0)), number(-math.inf), number(math.nan))
        return b.select(b.fcmp("ole", "f32", x, number(0.0)), outside, result)


# ---------------------------------------------------------------- trigonometry
def exact_turns(pattern: int) -> float:
    """The part of a turn, in [-1/2, 1/2], that is left of an angle (an f32 pattern, in radians)."""
    angle = rounding.unpack("f32", pattern)
    if not angle.is_finite:
        return math.nan
    product = rounding.multiply(angle, rounding.from_float(TURNS_PER_RADIAN))
    turns = rounding.to_float("f32", rounding.pack("f32", product))
    return math.remainder(turns, 1.0) or (turns if turns == 0 else 0.0)


def emit_turns(b, x):
    """The same on Values: a zero keeps the sign of its angle."""
    turns = b.fmul("f32", x, ef.float_const(b, "f32", TURNS_PER_RADIAN))
    # Adding +0 turns a whole part of -0 into +0, so that the difference can be -0.
    whole = b.fadd("f32", b.fround("f32", turns, "rn"), ef.float_const(b, "f32", 0.0))
    return b.fsub("f32", turns, whole)


CIRCULAR = {"pipe": "xu", "ptx": "1.4", "tolerance": Tolerance(absolute=2.0**-20.5)}


@instruction("sin.approx{.ftz}.f32 d, a", section="9.7.3.18", **CIRCULAR)
@instruction("cos.approx{.ftz}.f32 d, a", section="9.7.3.19", **CIRCULAR)
class Circular:
    """sin and cos of an angle in radians; NaN for infinities."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        turns = exact_turns(rounding.flush("f32", a) if m.ftz else a)
        function = math.sin if m.entry.opcode == "sin" else math.cos
        return round_float("f32", function(2 * math.pi * turns), ftz=m.ftz)

    @staticmethod
    def emit(b, m: Match, x):
        turns = emit_turns(b, b.ftz(x) if m.ftz else x)
        magnitude = b.fabs("f32", turns)
        if m.entry.opcode == "cos":
            # cos(2 pi t) = sin(2 pi (1/4 - |t|))
            quarter = b.fsub("f32", ef.float_const(b, "f32", 0.25), magnitude)
            return b.fmul("f32", quarter, polynomial(b, b.fmul("f32", quarter, quarter), SIN))
        rest = b.fsub("f32", ef.float_const(b, "f32", 0.5), magnitude)
        folded = b.select(b.fcmp("olt", "f32", rest, magnitude), rest, magnitude)
        value = b.fmul("f32", folded, polynomial(b, b.fmul("f32", folded, folded), SIN))
        result = b.or_(value, b.and_(turns, b.const(SIGN, 32)))
        return b.ftz(result) if m.ftz else result


# ---------------------------------------------------------------- hyperbolic tangent
def emit_tanh(b, x):
    """tanh(x) in f32."""

    def number(value: float):
        return ef.float_const(b, "f32", value)

    magnitude = b.fabs("f32", x)
    bounded = b.select(b.fcmp("ogt", "f32", magnitude, number(TANH_LIMIT)), number(TANH_LIMIT), magnitude)
    square = b.fmul("f32", bounded, bounded)
    numerator = b.fmul("f32", bounded, polynomial(b, square, TANH_NUMERATOR))
    ratio = b.fdiv("f32", numerator, polynomial(b, square, TANH_DENOMINATOR))
    # The fit ends above 1, so this makes the limit exactly 1.
    ratio = b.select(b.fcmp("ogt", "f32", ratio, number(1.0)), number(1.0), ratio)
    return b.or_(ratio, b.and_(x, b.const(SIGN, 32)))


@instruction("tanh.approx.f32 d, a", pipe="xu", sm=75, ptx="7.0", section="9.7.3.22",
             tolerance=Tolerance(relative=2.0**-11))  # fmt: skip
class Tanh:
    """The hyperbolic tangent."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        return round_float("f32", math.tanh(rounding.to_float("f32", a)))

    @staticmethod
    def emit(b, m: Match, x):
        return emit_tanh(b, x)


def half_tolerance(m: Match) -> Tolerance:
    """The manual's bounds for f16 and bf16; one unit more where results are subnormal."""
    brain = format_of(m.type) == "bf16"
    if m.entry.opcode == "ex2":
        return Tolerance(relative=2.0**-7 if brain else 2.0**-9.9, ulp=1)
    return Tolerance(absolute=2.0**-8 if brain else 2.0**-10.987)


HALF = {"type": HALVES, "pipe": "xu", "sm": 75, "ptx": "7.0", "tolerance": half_tolerance}
BRAIN = {"type": BRAINS, "pipe": "xu", "sm": 90, "ptx": "7.8", "tolerance": half_tolerance}


@instruction("tanh.approx.type d, a", section="9.7.4.9", **HALF)
@instruction("tanh.approx.type d, a", section="9.7.4.9", **BRAIN)
@instruction("ex2.approx.type d, a", section="9.7.4.10", **HALF)
@instruction("ex2.approx.ftz.type d, a", section="9.7.4.10", **BRAIN)
class HalfFunction:
    """ex2 and tanh in f16 and bf16: computed in f32, rounded once more."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        fmt = format_of(m.type)
        ftz = bool(m.get("ftz"))
        function = exact_ex2 if m.entry.opcode == "ex2" else math.tanh

        def one_lane(x: int) -> int:
            x = rounding.flush(fmt, x) if ftz else x
            return round_float(fmt, function(rounding.to_float(fmt, x)), ftz=ftz)

        return map_patterns(one_lane, m.type, a)

    @staticmethod
    def emit(b, m: Match, x):
        fmt = format_of(m.type)

        def one_lane(x):
            wide = ef.widen(b, fmt, x)
            result = emit_ex2(b, wide, subnormals=False) if m.entry.opcode == "ex2" else emit_tanh(b, wide)
            return b.fptrunc(result, "f32", fmt)

        return ef.lanes_of(b, [x], m.type.lanes, one_lane)


# ---------------------------------------------------------------- roots and quotients
@instruction("rcp.approx{.ftz}.f32 d, a", pipe="xu", ptx="1.4", section="9.7.3.13", tolerance=Tolerance(ulp=1))
@instruction("sqrt.approx{.ftz}.f32 d, a", pipe="xu", ptx="1.4", section="9.7.3.15",
             tolerance=Tolerance(relative=2.0**-23))  # fmt: skip
@instruction("rsqrt.approx{.ftz}.f32 d, a", pipe="xu", ptx="1.4", section="9.7.3.16",
             tolerance=Tolerance(relative=2.0**-22.9))  # fmt: skip
@instruction("rsqrt.approx.f64 d, a", pipe="fp64", sm=13, ptx="1.4", section="9.7.3.16", tolerance=ULP2)
class Root:
    """1/a, the root, and 1/root, by IEEE division and root."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        fmt = m.operand_type("d").name
        ftz = bool(m.get("ftz"))
        exact = rounding.unpack(fmt, rounding.flush(fmt, a) if ftz else a)
        return rounding.pack(fmt, exact_root(m.entry.opcode, exact), ftz=ftz)

    @staticmethod
    def emit(b, m: Match, x):
        fmt = m.operand_type("d").name
        ftz = bool(m.get("ftz"))
        x = b.ftz(x) if ftz else x
        return ef.finish(b, fmt, emit_root_function(b, m.entry.opcode, fmt, x), ftz)


def exact_root(opcode: str, x: Exact) -> Exact:
    """rcp, sqrt or rsqrt of an exact value."""
    root = x if opcode == "rcp" else rounding.square_root(x)
    return root if opcode == "sqrt" else rounding.divide(ONE, root)


def emit_root_function(b, opcode: str, fmt: str, x):
    """rcp, sqrt or rsqrt in f32 or f64."""
    root = x if opcode == "rcp" else b.fsqrt(fmt, x)
    return root if opcode == "sqrt" else b.fdiv(fmt, ef.float_const(b, fmt, 1.0), root)


UPPER_WORD = 0xFFFFFFFF_00000000


@instruction("rcp.approx.ftz.f64 d, a", pipe="xu", sm=20, ptx="2.1", section="9.7.3.14",
             tolerance=Tolerance(relative=2.0**-19))  # fmt: skip
@instruction("rsqrt.approx.ftz.f64 d, a", pipe="xu", sm=20, ptx="4.0", section="9.7.3.17",
             tolerance=Tolerance(relative=2.0**-19))  # fmt: skip
class GrossRoot:
    """A first approximation in f64: the lower 32 bits of the operand are not read, those of the result are zero."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        exact = rounding.unpack("f64", rounding.flush("f64", a & UPPER_WORD))
        result = exact_root(m.entry.opcode, exact)
        return 0x7FFFFFFF_00000000 if result.is_nan else rounding.pack("f64", result, "rz", ftz=True) & UPPER_WORD

    @staticmethod
    def emit(b, m: Match, x):
        upper = b.const(UPPER_WORD, 64)
        result = emit_root_function(b, m.entry.opcode, "f64", ef.flush(b, "f64", b.and_(x, upper)))
        cut = b.and_(ef.flush(b, "f64", result), upper)
        return b.select(b.fcmp("uno", "f64", result, result), b.const(0x7FFFFFFF_00000000, 64), cut)


@instruction("div.full{.ftz}.f32 d, a, b", pipe="xu", ptx="1.4", section="9.7.3.8", tolerance=ULP2)
@instruction("div.approx{.ftz}.f32 d, a, b", pipe="xu", ptx="1.4", section="9.7.3.8", tolerance=ULP2)
class ApproximateQuotient:
    """a / b: the nearest quotient, but for div.approx.ftz (see the module)."""

    @staticmethod
    def reference(m: Match, a: int, b: int) -> int:
        x, y = (rounding.unpack("f32", rounding.flush("f32", p) if m.ftz else p) for p in (a, b))
        if m.ftz and m.get("approx"):
            inverse = rounding.pack("f32", rounding.divide(ONE, y), ftz=True)
            return rounding.pack("f32", rounding.multiply(x, rounding.unpack("f32", inverse)), ftz=True)
        return rounding.pack("f32", rounding.divide(x, y), ftz=m.ftz)

    @staticmethod
    def emit(b, m: Match, x, y):
        if not m.ftz:
            return b.fdiv("f32", x, y)
        x, y = b.ftz(x), b.ftz(y)
        if m.get("approx"):
            inverse = b.ftz(b.fdiv("f32", ef.float_const(b, "f32", 1.0), y))
            return b.ftz(b.fmul("f32", x, inverse))
        return b.ftz(b.fdiv("f32", x, y))
