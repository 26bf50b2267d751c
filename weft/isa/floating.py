"""Floating-point instructions: one table entry per form, with exact semantics and emission side by side.

Section numbers are those of the PTX ISA manual: "Floating Point", "Half Precision" and "Mixed Precision Floating Point
Instructions". Approximate functions are in approximate.py, conversions in convert.py.

Decisions:
- NaN: PTX leaves the payload of f32 arithmetic's NaN unspecified, and making it canonical would cost two vector
  operations on every add. So arithmetic (add, sub, mul, fma, mad, div, rcp, sqrt, in all formats) carries a tolerance
  with nan="any": any NaN agrees with any other. Everything else about these results is exact, the sign of zero too.
  min and max give the canonical NaN (0x7fffffff, 0x7fff), as do relu forms; abs, neg and copysign work on the sign bit
  alone, and .sat turns NaN into +0.
- Subnormals: f32 keeps them without .ftz; .ftz flushes inputs and results (after rounding) to zero of their sign.
- Clamps: .sat holds results within [0, 1], -0 becomes +0. .relu makes negative results and -0 into +0.
"""

from __future__ import annotations

from weft.isa import emit_float as ef
from weft.isa import rounding
from weft.isa.bits import mask_of
from weft.isa.instruction import Match, Tolerance, instruction
from weft.isa.rounding import FORMATS, Exact
from weft.types import ScalarType

ROUNDINGS = ("rn", "rz", "rm", "rp")
NEAREST = ("rn",)
HALVES = ("f16", "f16x2")
BRAINS = ("bf16", "bf16x2")
WORDS = ("f32", "f64")
NARROW = ("f16", "bf16")
ANY_NAN = Tolerance(nan="any")
# What the entries of one kind share.
F32 = {"rnd": ROUNDINGS, "pipe": "fma", "tolerance": ANY_NAN}
F64 = {"rnd": ROUNDINGS, "pipe": "fp64", "sm": 13, "ptx": "1.4", "tolerance": ANY_NAN}
F32X2 = {"rnd": ROUNDINGS, "pipe": "fma", "sm": 100, "ptx": "8.6", "tolerance": ANY_NAN}
XU = {"rnd": ROUNDINGS, "pipe": "xu", "sm": 20, "ptx": "1.4", "tolerance": ANY_NAN}
F16 = {"rnd": NEAREST, "type": HALVES, "pipe": "fp16", "sm": 53, "ptx": "4.2", "tolerance": ANY_NAN}
BF16 = {"rnd": NEAREST, "type": BRAINS, "pipe": "fp16", "sm": 90, "ptx": "7.8", "tolerance": ANY_NAN}
MIXED = {"rnd": ROUNDINGS, "atype": NARROW, "pipe": "fma", "sm": 100, "ptx": "8.6", "tolerance": ANY_NAN}


def format_of(type: ScalarType) -> str:
    """The format of a type's lanes: f16 for f16x2."""
    return type.name.removesuffix("x2")


def map_patterns(function, type: ScalarType, *patterns: int) -> int:
    """`function` on the patterns of a type's lanes; absent operands (None) stay None."""
    bits = type.bits // type.lanes
    result = 0
    for lane in range(type.lanes):
        parts = [None if p is None else p >> (lane * bits) & mask_of(bits) for p in patterns]
        result |= (function(*parts) & mask_of(bits)) << (lane * bits)
    return result


def read_exact(m: Match, fmt: str, pattern: int) -> Exact:
    """The exact value of a source, flushed where the form says so."""
    return rounding.unpack(fmt, rounding.flush(fmt, pattern) if m.get("ftz") else pattern)


def pack_exact(m: Match, fmt: str, exact: Exact) -> int:
    """The result's pattern by the form's rounding and clamps."""
    return rounding.pack(
        fmt, exact, m.get("rnd") or "rn", ftz=bool(m.get("ftz")), sat=bool(m.get("sat")), relu=bool(m.get("relu"))
    )


def emit_operation(b, opcode: str, fmt: str, mode: str, values):
    """One operation on f32 or f64 Values."""
    match opcode:
        case "add":
            return ef.emit_sum(b, fmt, *values, mode)
        case "sub" if mode == "rn":
            return b.fsub(fmt, *values)
        case "sub":
            return ef.emit_sum(b, fmt, values[0], b.fneg(fmt, values[1]), mode)
        case "mul":
            return ef.emit_product(b, fmt, *values, mode)
        case "fma" | "mad":
            return ef.emit_fused(b, fmt, *values, mode)
        case "div":
            return ef.emit_quotient(b, fmt, *values, mode)
        case "rcp":
            return ef.emit_quotient(b, fmt, ef.float_const(b, fmt, 1.0), *values, mode)
        case "sqrt":
            return ef.emit_root(b, fmt, *values, mode)
    raise AssertionError(opcode)


def exact_operation(opcode: str, mode: str, values: list[Exact]) -> Exact:
    """One operation on exact values; `mode` matters to the sign of zero sums alone."""
    match opcode:
        case "add":
            return rounding.add(*values, mode)
        case "sub":
            return rounding.subtract(*values, mode)
        case "mul":
            return rounding.multiply(*values)
        case "fma" | "mad":
            return rounding.fused(*values, mode)
        case "div":
            return rounding.divide(*values)
        case "rcp":
            return rounding.divide(rounding.unpack("f32", FORMATS["f32"].one), *values)
        case "sqrt":
            return rounding.square_root(*values)
    raise AssertionError(opcode)


# ---------------------------------------------------------------- arithmetic
@instruction("add{.rnd}{.ftz}{.sat}.f32 d, a, b", section="9.7.3.3", **F32)
@instruction("add{.rnd}.f64 d, a, b", section="9.7.3.3", **F64)
@instruction("add{.rnd}{.ftz}.f32x2 d, a, b", section="9.7.3.3", **F32X2)
@instruction("sub{.rnd}{.ftz}{.sat}.f32 d, a, b", section="9.7.3.4", **F32)
@instruction("sub{.rnd}.f64 d, a, b", section="9.7.3.4", **F64)
@instruction("sub{.rnd}{.ftz}.f32x2 d, a, b", section="9.7.3.4", **F32X2)
@instruction("mul{.rnd}{.ftz}{.sat}.f32 d, a, b", section="9.7.3.5", **F32)
@instruction("mul{.rnd}.f64 d, a, b", section="9.7.3.5", **F64)
@instruction("mul{.rnd}{.ftz}.f32x2 d, a, b", section="9.7.3.5", **F32X2)
@instruction("fma.rnd{.ftz}{.sat}.f32 d, a, b, c", section="9.7.3.6", sm=20, **F32)
@instruction("fma.rnd.f64 d, a, b, c", section="9.7.3.6", **F64)
@instruction("fma.rnd{.ftz}.f32x2 d, a, b, c", section="9.7.3.6", **F32X2)
@instruction("mad.rnd{.ftz}{.sat}.f32 d, a, b, c", section="9.7.3.7", sm=20, **F32)
@instruction("mad.rnd.f64 d, a, b, c", section="9.7.3.7", **F64)
@instruction("div.rnd{.ftz}.f32 d, a, b", section="9.7.3.8", **XU)
@instruction("div.rnd.f64 d, a, b", section="9.7.3.8", **F64)
@instruction("rcp.rnd{.ftz}.f32 d, a", section="9.7.3.13", **XU)
@instruction("rcp.rnd.f64 d, a", section="9.7.3.13", **F64)
@instruction("sqrt.rnd{.ftz}.f32 d, a", section="9.7.3.15", **XU)
@instruction("sqrt.rnd.f64 d, a", section="9.7.3.15", **F64)
class WordArithmetic:
    """f32, f64 and f32x2: every rounding."""

    @staticmethod
    def reference(m: Match, *sources: int) -> int:
        fmt = format_of(m.operand_type("d"))

        def one_lane(*lane: int) -> int:
            values = [read_exact(m, fmt, pattern) for pattern in lane]
            return pack_exact(m, fmt, exact_operation(m.entry.opcode, m.rnd or "rn", values))

        return map_patterns(one_lane, m.operand_type("d"), *sources)

    @staticmethod
    def emit(b, m: Match, *sources):
        scalar = m.operand_type("d")
        fmt = format_of(scalar)
        ftz = bool(m.get("ftz"))

        def one_lane(*lane):
            values = [b.ftz(x) for x in lane] if ftz else lane
            result = emit_operation(b, m.entry.opcode, fmt, m.rnd or "rn", values)
            return ef.finish(b, fmt, result, ftz, bool(m.get("sat")))

        return ef.lanes_of(b, sources, scalar.lanes, one_lane)


@instruction("add{.rnd}{.ftz}{.sat}.type d, a, b", section="9.7.4.1", **F16)
@instruction("add{.rnd}.type d, a, b", section="9.7.4.1", **BF16)
@instruction("sub{.rnd}{.ftz}{.sat}.type d, a, b", section="9.7.4.2", **F16)
@instruction("sub{.rnd}.type d, a, b", section="9.7.4.2", **BF16)
@instruction("mul{.rnd}{.ftz}{.sat}.type d, a, b", section="9.7.4.3", **F16)
@instruction("mul{.rnd}.type d, a, b", section="9.7.4.3", **BF16)
@instruction("fma.rnd{.ftz}{.sat}.type d, a, b, c", section="9.7.4.4", **F16)
@instruction("fma.rnd{.ftz}.relu.type d, a, b, c", section="9.7.4.4", **{**F16, "sm": 80, "ptx": "7.0"})
@instruction("fma.rnd{.relu}.type d, a, b, c", section="9.7.4.4", **{**BF16, "sm": 80, "ptx": "7.0"})
class HalfArithmetic:
    """f16 and bf16, alone and in pairs: round to nearest.

    A sum or product is computed in f32 and rounded twice, which is innocuous: f32 has more than twice the bits and
    two (Figueroa, "When is double rounding innocuous?", 1995), and where results are subnormal sums are exact and
    products that f32 cannot hold are below half of the smallest bf16.
    """

    @staticmethod
    def reference(m: Match, *sources: int) -> int:
        fmt = format_of(m.type)

        def one_lane(*lane: int) -> int:
            values = [read_exact(m, fmt, pattern) for pattern in lane]
            return pack_exact(m, fmt, exact_operation(m.entry.opcode, "rn", values))

        return map_patterns(one_lane, m.type, *sources)

    @staticmethod
    def emit(b, m: Match, *sources):
        fmt = format_of(m.type)

        def shape(x):
            if m.get("sat"):
                x = ef.saturate(b, "f32", x)
            return ef.rectify(b, "f32", x) if m.get("relu") else x

        def one_lane(*lane):
            if m.get("ftz"):
                lane = tuple(ef.flush(b, fmt, x) for x in lane)
            if m.entry.opcode == "fma":
                result = ef.fused_half(b, fmt, *lane, shape)
            else:
                wide = [ef.widen(b, fmt, x) for x in lane]
                total = shape(emit_operation(b, m.entry.opcode, "f32", "rn", wide))
                result = b.fptrunc(total, "f32", fmt)
            if m.get("ftz"):
                result = ef.flush(b, fmt, result)
            return ef.canonical(b, fmt, result) if m.get("relu") else result

        return ef.lanes_of(b, sources, m.type.lanes, one_lane)


@instruction("fma.rnd.oob{.relu}.type d, a, b, c", rnd=NEAREST, type=HALVES + BRAINS, pipe="fp16", sm=90, ptx="8.1",
             section="9.7.4.4",
             missing="the manual does not say which bit pattern is the out-of-bounds NaN that .oob looks for; "
                     "use fma.rn without .oob")  # fmt: skip
class FusedOutOfBounds:
    """Parsed, and refused: see `missing`."""


@instruction("add{.rnd}{.sat}.f32.atype d, a, c", operands={"d": "f32", "c": "f32"}, section="9.7.5.1", **MIXED)
@instruction("sub{.rnd}{.sat}.f32.atype d, a, c", operands={"d": "f32", "c": "f32"}, section="9.7.5.2", **MIXED)
@instruction("fma.rnd{.sat}.f32.atype d, a, b, c", operands={"d": "f32", "b": "atype", "c": "f32"}, section="9.7.5.3",
             **MIXED)  # fmt: skip
class MixedArithmetic:
    """f16 or bf16 factors (or first terms), f32 last term and result."""

    @staticmethod
    def reference(m: Match, *sources: int) -> int:
        formats = [m.atype.name] * (len(sources) - 1) + ["f32"]
        values = [rounding.unpack(fmt, pattern) for fmt, pattern in zip(formats, sources)]
        return pack_exact(m, "f32", exact_operation(m.entry.opcode, m.rnd or "rn", values))

    @staticmethod
    def emit(b, m: Match, *sources):
        *narrow, last = sources
        values = [*(ef.widen(b, m.atype.name, x) for x in narrow), last]
        return ef.finish(b, "f32", emit_operation(b, m.entry.opcode, "f32", m.rnd or "rn", values), sat=m.sat)


# ---------------------------------------------------------------- signs
@instruction("abs{.ftz}.f32 d, a", pipe="alu", section="9.7.3.9")
@instruction("abs.f64 d, a", pipe="alu", sm=13, section="9.7.3.9")
@instruction("neg{.ftz}.f32 d, a", pipe="alu", section="9.7.3.10")
@instruction("neg.f64 d, a", pipe="alu", sm=13, section="9.7.3.10")
@instruction("neg{.ftz}.type d, a", type=HALVES, pipe="fp16", sm=53, ptx="6.0", section="9.7.4.5")
@instruction("neg.type d, a", type=BRAINS, pipe="fp16", sm=80, ptx="7.0", section="9.7.4.5")
@instruction("abs{.ftz}.type d, a", type=HALVES, pipe="fp16", sm=53, ptx="6.5", section="9.7.4.6")
@instruction("abs.type d, a", type=BRAINS, pipe="fp16", sm=80, ptx="7.0", section="9.7.4.6")
class SignChange:
    """abs and neg: the sign bit alone, for NaN too."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        fmt = format_of(m.operand_type("d"))
        sign = FORMATS[fmt].sign_bit

        def one_lane(x: int) -> int:
            x = rounding.flush(fmt, x) if m.get("ftz") else x
            return x & ~sign if m.entry.opcode == "abs" else x ^ sign

        return map_patterns(one_lane, m.operand_type("d"), a)

    @staticmethod
    def emit(b, m: Match, x):
        scalar = m.operand_type("d")
        fmt = format_of(scalar)

        def one_lane(x):
            x = ef.flush(b, fmt, x) if m.get("ftz") else x
            return b.fabs(fmt, x) if m.entry.opcode == "abs" else b.fneg(fmt, x)

        if m.get("ftz"):
            return ef.lanes_of(b, [x], scalar.lanes, one_lane)
        # Both lanes of a pair at once.
        bits = scalar.bits // scalar.lanes
        signs = sum(1 << (bits * (lane + 1) - 1) for lane in range(scalar.lanes))
        if m.entry.opcode == "abs":
            return b.and_(x, b.const(mask_of(scalar.bits) ^ signs, scalar.bits))
        return b.xor(x, b.const(signs, scalar.bits))


@instruction("copysign.type d, a, b", type=WORDS, pipe="alu", sm=20, ptx="2.0", section="9.7.3.2")
class Copysign:
    """The sign of a on the magnitude of b."""

    @staticmethod
    def reference(m: Match, a: int, b: int) -> int:
        sign = FORMATS[m.type.name].sign_bit
        return (a & sign) | (b & ~sign)

    @staticmethod
    def emit(b, m: Match, x, y):
        sign = b.and_(x, b.const(FORMATS[m.type.name].sign_bit, x.bits))
        return b.or_(sign, b.fabs(m.type.name, y))


@instruction("testp.op.type p, a", op=("finite", "infinite", "number", "notanumber", "normal", "subnormal"), type=WORDS,
             pipe="alu", sm=20, ptx="2.0", section="9.7.3.1")  # fmt: skip
class Testp:
    """A property of a number; both zeros count as normal."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        exact = rounding.unpack(m.type.name, a)
        subnormal = rounding.is_subnormal(m.type.name, a)
        return {
            "finite": exact.is_finite,
            "infinite": exact.is_infinite,
            "number": not exact.is_nan,
            "notanumber": exact.is_nan,
            "normal": exact.is_finite and not subnormal,
            "subnormal": subnormal,
        }[m.op]

    @staticmethod
    def emit(b, m: Match, x):
        f = FORMATS[m.type.name]
        magnitude = b.fabs(f.name, x)
        infinity = b.const(f.infinity, f.bits)
        # Subnormal magnitudes are 1 to 2^fraction_bits - 1; taking 1 puts zero above them.
        below = b.sub(magnitude, b.const(1, f.bits))
        limit = b.const((1 << f.fraction_bits) - 1, f.bits)
        match m.op:
            case "finite":
                return b.icmp("ult", magnitude, infinity)
            case "infinite":
                return b.icmp("eq", magnitude, infinity)
            case "number":
                return b.icmp("ule", magnitude, infinity)
            case "notanumber":
                return b.icmp("ugt", magnitude, infinity)
            case "subnormal":
                return b.icmp("ult", below, limit)
            case "normal":
                return b.and_(b.icmp("uge", below, limit), b.icmp("ult", magnitude, infinity))
        raise AssertionError(m.op)


# ---------------------------------------------------------------- minimum and maximum
def exact_extreme(fmt: str, largest: bool, x: int, y: int, nan: bool) -> int:
    """max or min of two patterns: a NaN gives way to a number (or wins, with `nan`); +0 is above -0."""
    f = FORMATS[fmt]
    x_nan, y_nan = rounding.is_nan(fmt, x), rounding.is_nan(fmt, y)
    if (x_nan and y_nan) or (nan and (x_nan or y_nan)):
        return f.canonical_nan
    if x_nan or y_nan:
        return y if x_nan else x
    a, b = rounding.unpack(fmt, x), rounding.unpack(fmt, y)
    x_is_above = a.value > b.value or (a.value == b.value and b.negative)
    return x if x_is_above == largest else y


def signs_agree(m: Match) -> str:
    """The `where` of min and max of two."""
    return "" if m.xorsign == m.abs else ".xorsign and .abs go together"


HALF_EXTREME = {"pipe": "fp16", "sm": 80, "ptx": "7.0", "where": signs_agree}


@instruction("min{.ftz}{.NaN}{.xorsign}{.abs}.f32 d, a, b", pipe="alu", section="9.7.3.11", where=signs_agree)
@instruction("min{.ftz}{.NaN}{.abs}.f32 d, a, b, c", pipe="alu", sm=100, ptx="8.8", section="9.7.3.11")
@instruction("min.f64 d, a, b", pipe="fp64", sm=13, section="9.7.3.11")
@instruction("max{.ftz}{.NaN}{.xorsign}{.abs}.f32 d, a, b", pipe="alu", section="9.7.3.12", where=signs_agree)
@instruction("max{.ftz}{.NaN}{.abs}.f32 d, a, b, c", pipe="alu", sm=100, ptx="8.8", section="9.7.3.12")
@instruction("max.f64 d, a, b", pipe="fp64", sm=13, section="9.7.3.12")
@instruction("min{.ftz}{.NaN}{.xorsign}{.abs}.type d, a, b", type=HALVES, section="9.7.4.7", **HALF_EXTREME)
@instruction("min{.NaN}{.xorsign}{.abs}.type d, a, b", type=BRAINS, section="9.7.4.7", **HALF_EXTREME)
@instruction("max{.ftz}{.NaN}{.xorsign}{.abs}.type d, a, b", type=HALVES, section="9.7.4.8", **HALF_EXTREME)
@instruction("max{.NaN}{.xorsign}{.abs}.type d, a, b", type=BRAINS, section="9.7.4.8", **HALF_EXTREME)
class Extreme:
    """min and max of two, or of three in f32. `.abs` compares magnitudes; `.xorsign` gives the result the product's
    sign (two operands only)."""

    @staticmethod
    def reference(m: Match, a: int, b: int, c: int | None = None) -> int:
        scalar = m.operand_type("d")
        fmt = format_of(scalar)
        f = FORMATS[fmt]
        largest = m.entry.opcode == "max"
        nan = bool(m.get("NaN"))

        def one_lane(*lane: int | None) -> int:
            values = [x for x in lane if x is not None]
            signs = (values[0] ^ values[1]) & f.sign_bit
            if m.get("ftz"):
                values = [rounding.flush(fmt, x) for x in values]
            if m.get("abs"):
                values = [x & ~f.sign_bit for x in values]
            result = values[0]
            for x in values[1:]:
                result = exact_extreme(fmt, largest, result, x, nan)
            return result | signs if m.get("xorsign") and not rounding.is_nan(fmt, result) else result

        return map_patterns(one_lane, scalar, a, b, c)

    @staticmethod
    def emit(b, m: Match, x, y, z=None):
        scalar = m.operand_type("d")
        fmt = format_of(scalar)
        f = FORMATS[fmt]
        largest = m.entry.opcode == "max"
        nan, magnitudes = bool(m.get("NaN")), bool(m.get("abs"))

        def one_lane(x, y, z):
            signs = b.and_(b.xor(x, y), b.const(f.sign_bit, f.bits)) if m.get("xorsign") else None
            values = [value for value in (x, y, z) if value is not None]
            if m.get("ftz"):
                values = [ef.flush(b, fmt, value) for value in values]
            if magnitudes:
                values = [b.fabs(fmt, value) for value in values]
            result = values[0]
            for value in values[1:]:
                result = ef.emit_extreme(b, fmt, largest, result, value, nan, magnitudes)
            if signs is not None:
                result = b.or_(result, signs)
            return result if nan and signs is None else ef.canonical(b, fmt, result)

        return ef.lanes_of(b, [x, y, z], scalar.lanes, one_lane)
