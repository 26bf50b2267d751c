"""Conversions: cvt between integers and floats of all widths, packed narrow formats, and cvt.pack.

Section numbers are those of the PTX ISA manual, "Data Movement and Conversion Instructions: cvt". Operands have their
own type's width here; a wider source register is cut to it, a wider destination register extended by the
destination's signedness, by whoever reads and writes operands.

Decisions, where the manual is silent or leaves room:
- NaN: conversions between floats may give any NaN (tolerance nan="any", as in floating.py); with .relu or .satfinite,
  and to and from the formats below 16 bits, it is the canonical one.
- f16 to bf16 and back without a rounding modifier round to nearest even.
- NaN to an integer is 0, but the lowest signed pattern (1 << (bits - 1)) where the source is f64 or the destination
  has 64 bits (manual, "cvt", notes on saturation).
"""

from __future__ import annotations

from weft.isa import emit_float as ef
from weft.isa import rounding
from weft.isa.bits import clamp, mask_of, number_of
from weft.isa.floating import ANY_NAN, format_of
from weft.isa.instruction import Match, instruction
from weft.isa.rounding import FORMATS, Exact
from weft.types import TYPES, ScalarType

INTEGERS = ("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64")
FLOATS = ("f16", "f32", "f64")
ALL_FLOATS = ("f16", "bf16", "f32", "f64")
TO_INTEGRAL = ("rni", "rzi", "rmi", "rpi")
ROUNDINGS = ("rn", "rz", "rm", "rp")
SECTION = "9.7.9.21"
PAIRS = ("f16x2", "bf16x2")
EIGHT_BITS = ("e4m3x2", "e5m2x2")
BELOW = ("e2m1x2", "e2m3x2", "e3m2x2")
# Packed formats below 16 bits: the lane's format, and the bits between lanes.
SMALL_PAIRS = {"e4m3x2": ("e4m3", 8), "e5m2x2": ("e5m2", 8), "e2m1x2": ("e2m1", 4), "e2m3x2": ("e2m3", 8),
               "e3m2x2": ("e3m2", 8)}  # fmt: skip


def name_of(choice) -> str:
    """A modifier's choice as text: types this package has no ScalarType for arrive as text."""
    return choice if isinstance(choice, str) else choice.name


def small_type(slot: str):
    """An operand's type: that of `slot`, a pattern of bits where the slot's choice is no ScalarType."""

    def find(m: Match) -> ScalarType:
        choice = m[slot]
        return TYPES["b16"] if isinstance(choice, str) else choice

    return find


def read_float(m: Match, fmt: str, pattern: int) -> Exact:
    """The exact value of a float source; .ftz concerns f32 alone."""
    return rounding.unpack(fmt, rounding.flush(fmt, pattern) if m.get("ftz") and fmt == "f32" else pattern)


def emit_read(b, m: Match, fmt: str, x):
    """A float source as (f32 or f64 Value, its format), flushed where the form says so."""
    if fmt == "f32":
        return (b.ftz(x) if m.get("ftz") else x), fmt
    return (x, fmt) if fmt == "f64" else (ef.widen(b, fmt, x), "f32")


def emit_round(b, source: str, fmt: str, x, mode: str):
    """x rounded to an integer; zero results from f16 may have lost their sign."""
    if source == "f16":
        # LLVM makes a rounding of an extended f16 a rounding of the f16, which x86 does lane by lane. Adding zero
        # keeps the two apart.
        x = b.fadd(fmt, x, ef.float_const(b, fmt, 0.0))
    return b.fround(fmt, x, mode)


# ---------------------------------------------------------------- integer to integer
def saturates(m: Match) -> str:
    """A `where`: .sat is for destinations that cannot hold every source."""
    (low, high), (lowest, highest) = number_range(m.atype), number_range(m.dtype)
    return ".sat has nothing to do" if m.sat and lowest <= low and high <= highest else ""


@instruction("cvt{.sat}.dtype.atype d, a", dtype=INTEGERS, atype=INTEGERS, pipe="alu", section=SECTION, where=saturates)
class IntegerToInteger:
    """Wraps, or with .sat keeps to the destination's range."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        number = number_of(a, m.atype.bits, m.atype.signed)
        return clamp(number, m.dtype.bits, m.dtype.signed) if m.sat else number

    @staticmethod
    def emit(b, m: Match, x):
        if m.sat:
            low, high = number_range(m.atype)
            lowest, highest = number_range(m.dtype)
            if lowest > low:
                x = (b.smax if m.atype.signed else b.umax)(x, b.const(lowest, x.bits))
            if highest < high:
                x = (b.smin if m.atype.signed else b.umin)(x, b.const(highest, x.bits))
        return b.resize(x, m.dtype.bits, m.atype.signed)


def number_range(type: ScalarType) -> tuple[int, int]:
    """The lowest and highest number of an integer type."""
    if type.signed:
        return -(1 << (type.bits - 1)), mask_of(type.bits - 1)
    return 0, mask_of(type.bits)


# ---------------------------------------------------------------- integer to float
def types_as_spelt(m: Match) -> str:
    """A `where` for entries whose types are literals: `.ue8m0x2.bf16x2` is not `.bf16x2.ue8m0x2`."""
    spelt = [slot.name for slot in m.entry.modifiers if slot.literal and slot.name in ("ue8m0x2", "bf16x2")]
    found = [token for token in m.tokens if token in spelt]
    return "" if found == spelt else f"found .{'.'.join(found)}, expected .{'.'.join(spelt)}"


def in_order(m: Match) -> str:
    """A `where`: the destination's type is written first. Modifiers match as a set, so a signature whose two type lists
    have nothing in common would take the opposite conversion for its own."""
    target, source = name_of(m.dtype), name_of(m.atype)
    if m.tokens.index(target) <= m.tokens.index(source):
        return ""
    return f"no conversion from {target} to {source} with these modifiers"


def ftz_needs_f32(m: Match) -> str:
    """A `where`: `in_order`, and .ftz is for conversions from or to f32."""
    if m.ftz and "f32" not in (m.dtype.name, m.atype.name):
        return ".ftz needs f32"
    return in_order(m)


@instruction("cvt.frnd{.ftz}{.sat}.dtype.atype d, a", frnd=ROUNDINGS, dtype=FLOATS, atype=INTEGERS, pipe="xu",
             section=SECTION, where=ftz_needs_f32)  # fmt: skip
@instruction("cvt.frnd.dtype.atype d, a", frnd=ROUNDINGS, dtype=("bf16",), atype=INTEGERS, pipe="xu", sm=90, ptx="7.8",
             section=SECTION, where=in_order)  # fmt: skip
class IntegerToFloat:
    """Every rounding; .sat keeps results within [0, 1]."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        number = number_of(a, m.atype.bits, m.atype.signed)
        return rounding.pack(m.dtype.name, rounding.exact_integer(number), m.frnd, sat=bool(m.get("sat")))

    @staticmethod
    def emit(b, m: Match, x):
        signed, fmt = m.atype.signed, m.dtype.name
        x = b.resize(x, max(x.bits, 32), signed)
        if m.get("sat"):
            if signed:
                x = b.smax(x, b.const(0, x.bits))
            x = b.umin(x, b.const(1, x.bits))
        convert = b.sitofp if signed else b.uitofp
        exact = m.atype.bits < FORMATS[fmt].fraction_bits + 2
        if fmt in ("f32", "f64") and (exact or m.frnd == "rn"):
            return convert(x, fmt)
        # What f32 cannot hold exactly is beyond f16's range anyway.
        if m.atype.bits <= 16 or fmt == "f16":
            return ef.narrow(b, convert(x, "f32"), "f32", fmt, m.frnd)
        if m.atype.bits == 32:
            return ef.narrow(b, convert(x, "f64"), "f64", fmt, m.frnd)
        near, error = split_wide_integer(b, x, signed)
        if fmt == "f64":
            return ef.adjust(b, fmt, near, error, m.frnd)
        return ef.narrow(b, near, "f64", fmt, m.frnd, error)


def split_wide_integer(b, x, signed: bool):
    """A 64-bit integer as the nearest f64 and the exact rest."""
    low, high = b.unpack(x, 2)
    upper = (b.sitofp if signed else b.uitofp)(high, "f64")
    upper = b.fmul("f64", upper, ef.float_const(b, "f64", 2.0**32))
    lower = b.uitofp(low, "f64")
    near = b.fadd("f64", upper, lower)
    return near, b.fsub("f64", lower, b.fsub("f64", near, upper))


# ---------------------------------------------------------------- float to integer
@instruction("cvt.irnd{.ftz}{.sat}.dtype.atype d, a", irnd=TO_INTEGRAL, dtype=INTEGERS, atype=FLOATS, pipe="xu",
             section=SECTION, where=ftz_needs_f32)  # fmt: skip
@instruction("cvt.irnd.dtype.atype d, a", irnd=TO_INTEGRAL, dtype=INTEGERS, atype=("bf16",), pipe="xu", sm=90,
             ptx="7.8", section=SECTION, where=in_order)  # fmt: skip
class FloatToInteger:
    """Rounded to an integer, kept to the destination's range (with or without .sat)."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        exact = rounding.round_to_integral(read_float(m, m.atype.name, a), m.irnd[:2])
        if exact.is_nan:
            return 1 << (m.dtype.bits - 1) if nan_is_lowest(m) else 0
        lowest, highest = number_range(m.dtype)
        return int(max(lowest, min(highest, exact.value)))

    @staticmethod
    def emit(b, m: Match, x):
        x, fmt = emit_read(b, m, m.atype.name, x)
        whole = x if m.irnd == "rzi" else emit_round(b, m.atype.name, fmt, x, m.irnd[:2])
        bits = m.dtype.bits
        wide = max(bits, 32)
        result = (b.fptosi if m.dtype.signed else b.fptoui)(fmt, whole, wide)
        if bits < wide:
            lowest, highest = number_range(m.dtype)
            if m.dtype.signed:
                result = b.smin(b.smax(result, b.const(lowest, wide)), b.const(highest, wide))
            else:
                result = b.umin(result, b.const(highest, wide))
            result = b.trunc(result, bits)
        if nan_is_lowest(m):
            result = b.select(b.fcmp("uno", fmt, x, x), b.const(1 << (bits - 1), bits), result)
        return result


def nan_is_lowest(m: Match) -> bool:
    """Whether NaN becomes 1 << (bits - 1) rather than 0."""
    return m.atype.name == "f64" or m.dtype.bits == 64


# ---------------------------------------------------------------- float to float
def needs_rounding(m: Match) -> str:
    """A `where`: the rounding modifier is for narrower destinations, which need it."""
    if m.frnd and m.dtype.bits >= m.atype.bits:
        return "a rounding modifier is for narrower destinations"
    if not m.frnd and m.dtype.bits < m.atype.bits:
        return "a narrower destination needs .rn, .rz, .rm or .rp"
    return ftz_needs_f32(m)


FLOAT_FLOAT = {"frnd": ROUNDINGS, "pipe": "xu", "section": SECTION, "tolerance": ANY_NAN}
TO_FLOAT = {**FLOAT_FLOAT, "where": in_order}
CLAMPED = {**TO_FLOAT, "frnd": ("rn", "rz"), "sm": 80, "ptx": "7.0"}


@instruction("cvt{.frnd}{.ftz}{.sat}.dtype.atype d, a", dtype=FLOATS, atype=FLOATS, where=needs_rounding, **FLOAT_FLOAT)
@instruction("cvt.frnd{.ftz}.dtype.atype d, a", dtype=("bf16",), atype=("f32",), sm=80, ptx="7.0", **TO_FLOAT)
@instruction("cvt.frnd.dtype.atype d, a", dtype=("bf16",), atype=("f64",), sm=90, ptx="7.8", **TO_FLOAT)
@instruction("cvt{.frnd}.dtype.atype d, a", dtype=("bf16",), atype=("f16",), sm=90, ptx="7.8", **TO_FLOAT)
@instruction("cvt.dtype.atype d, a", dtype=("bf16",), atype=("bf16",), pipe="xu", sm=90, ptx="7.8", section=SECTION,
             tolerance=ANY_NAN)  # fmt: skip
@instruction("cvt{.frnd}{.ftz}.dtype.atype d, a", dtype=("f32",), atype=("bf16",), sm=80, ptx="7.1", **TO_FLOAT)
@instruction("cvt{.frnd}.dtype.atype d, a", dtype=("f16", "f64"), atype=("bf16",), sm=90, ptx="7.8", **TO_FLOAT)
@instruction("cvt.frnd.relu.dtype.atype d, a", dtype=("f16", "bf16"), atype=("f32",), **CLAMPED)
@instruction("cvt.frnd.relu.satfinite.dtype.atype d, a", dtype=("f16", "bf16"), atype=("f32",),
             **{**CLAMPED, "ptx": "8.1"})  # fmt: skip
@instruction("cvt.frnd.satfinite.dtype.atype d, a", dtype=("f16",), atype=("f32",),
             **{**CLAMPED, "ptx": "8.1", "sm": 75})  # fmt: skip
@instruction("cvt.frnd.satfinite.dtype.atype d, a", dtype=("bf16",), atype=("f32",),
             **{**CLAMPED, "ptx": "8.1"})  # fmt: skip
class FloatToFloat:
    """Widened exactly, narrowed with every rounding."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        source, target = m.atype.name, m.dtype.name
        exact = read_float(m, source, a)
        clamps = {name: bool(m.get(name)) for name in ("sat", "relu", "satfinite")}
        return rounding.pack(target, exact, m.get("frnd") or "rn", ftz=bool(m.get("ftz")) and target == "f32", **clamps)

    @staticmethod
    def emit(b, m: Match, x):
        source, target = m.atype.name, m.dtype.name
        clamps = {name: bool(m.get(name)) for name in ("sat", "relu", "satfinite")}
        if source == target and not any(clamps.values()):
            return b.ftz(x) if m.get("ftz") else x
        wide, fmt = emit_read(b, m, source, x)
        result = emit_narrow(b, wide, fmt, target, m.get("frnd") or "rn", **clamps)
        return b.ftz(result) if m.get("ftz") and target == "f32" else result


def emit_narrow(b, x, source: str, target: str, mode: str, sat=False, relu=False, satfinite=False):
    """f32 or f64 to any format from 16 to 64 bits, with the clamps of `rounding.pack`."""
    if sat:
        x = ef.saturate(b, source, x)
    if relu:
        x = ef.rectify(b, source, x)
    if FORMATS[target].bits > FORMATS[source].bits:
        result = b.fpext(x, source, target)
    elif source == target:
        result = x
    elif (source, target, mode) == ("f32", "bf16", "rz"):
        result = ef.canonical(b, "f32", x)
        result = b.extract(result, 16, 16)
    else:
        result = ef.narrow(b, x, source, target, mode)
    if satfinite:
        infinite = b.icmp("eq", b.fabs(target, result), b.const(FORMATS[target].infinity, result.bits))
        result = b.select(infinite, b.sub(result, b.const(1, result.bits)), result)
    return ef.canonical(b, target, result) if relu or satfinite else result


@instruction("cvt.irnd{.ftz}{.sat}.dtype.atype d, a", irnd=TO_INTEGRAL, dtype=FLOATS, atype=FLOATS, pipe="xu",
             section=SECTION, tolerance=ANY_NAN,
             where=lambda m: ftz_needs_f32(m) if m.dtype == m.atype else "the two types must be the same")  # fmt: skip
@instruction("cvt.irnd.dtype.bf16 d, a", irnd=TO_INTEGRAL, dtype=("bf16",), operands={"a": "bf16"}, pipe="xu", sm=90,
             ptx="7.8", section=SECTION, tolerance=ANY_NAN)  # fmt: skip
class FloatToIntegral:
    """The integer nearby, as a float of the same type."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        fmt = m.dtype.name
        exact = rounding.round_to_integral(read_float(m, fmt, a), m.irnd[:2])
        return rounding.pack(fmt, exact, sat=bool(m.get("sat")))

    @staticmethod
    def emit(b, m: Match, x):
        x, fmt = emit_read(b, m, m.dtype.name, x)
        whole = emit_round(b, m.dtype.name, fmt, x, m.irnd[:2])
        if m.dtype.name == "f16":
            whole = b.or_(whole, b.and_(x, b.const(1 << 31, 32)))
        return emit_narrow(b, whole, fmt, m.dtype.name, "rn", sat=bool(m.get("sat")))


# ---------------------------------------------------------------- pairs of f16 and bf16
@instruction("cvt.frnd{.relu}{.satfinite}.dtype.f32 d, a, b", frnd=("rn", "rz"), dtype=PAIRS,
             operands={"a": "f32", "b": "f32"}, pipe="xu", sm=80, ptx="7.0", section=SECTION,
             tolerance=ANY_NAN)  # fmt: skip
class FloatsToPair:
    """Two f32 to a pair: a in the upper half, b in the lower."""

    @staticmethod
    def reference(m: Match, a: int, b: int) -> int:
        fmt = format_of(m.dtype)
        clamps = {"relu": m.relu, "satfinite": m.satfinite}
        upper, lower = (rounding.pack(fmt, rounding.unpack("f32", x), m.frnd, **clamps) for x in (a, b))
        return upper << 16 | lower

    @staticmethod
    def emit(b, m: Match, x, y):
        fmt = format_of(m.dtype)
        return b.pack([emit_narrow(b, v, "f32", fmt, m.frnd, relu=m.relu, satfinite=m.satfinite) for v in (y, x)])


TO_TF32 = {"operands": {"d": "tf32", "a": "f32"}, "pipe": "alu", "section": SECTION}


@instruction("cvt.rnd{.satfinite}.tf32.f32 d, a", rnd=("rna",), sm=80, ptx="7.0", **TO_TF32)
@instruction("cvt.rnd{.relu}.tf32.f32 d, a", rnd=("rn", "rz"), sm=90, ptx="7.8", **TO_TF32)
@instruction("cvt.rnd.satfinite{.relu}.tf32.f32 d, a", rnd=("rn", "rz"), sm=100, ptx="8.6", **TO_TF32)
class FloatToTf32:
    """f32 cut to 10 fraction bits, kept in place; the rest is zero."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        clamps = {name: bool(m.get(name)) for name in ("relu", "satfinite")}
        return rounding.pack("tf32", rounding.unpack("f32", a), m.rnd, **clamps)

    @staticmethod
    def emit(b, m: Match, x):
        kept = b.const(0xFFFFE000, 32)
        if m.get("relu"):
            x = ef.rectify(b, "f32", x)
        rounded = x
        if m.rnd == "rna":
            rounded = b.add(x, b.const(0x1000, 32))
        elif m.rnd == "rn":
            odd = b.and_(b.lshr(x, b.const(13, 32)), b.const(1, 32))
            rounded = b.add(b.add(x, b.const(0xFFF, 32)), odd)
        rounded = b.and_(rounded, kept)
        if m.get("satfinite"):
            infinite = b.icmp("eq", b.fabs("f32", rounded), b.const(FORMATS["tf32"].infinity, 32))
            rounded = b.select(infinite, b.sub(rounded, b.const(1 << 13, 32)), rounded)
        return b.select(b.fcmp("uno", "f32", x, x), b.const(FORMATS["tf32"].canonical_nan, 32), rounded)


# ---------------------------------------------------------------- pairs below 16 bits
def join_small(name: str, upper: int, lower: int) -> int:
    """Two codes as a packed pattern."""
    return upper << SMALL_PAIRS[name][1] | lower


def emit_join_small(b, m: Match, upper, lower):
    """The same on 32-bit Values; the result has the destination's width."""
    joined = b.or_(b.shl(upper, b.const(SMALL_PAIRS[name_of(m.dtype)][1], 32)), lower)
    return b.trunc(joined, m.operand_type("d").bits)


def emit_small(b, fmt: str, x):
    """f32 to a format below 16 bits, in a 32-bit Value: rounded to nearest even, satfinite."""
    f = FORMATS[fmt]
    magnitude = b.fabs("f32", x)
    # Normal results: round the f32 pattern at the format's last bit and move its exponent.
    shift = 23 - f.fraction_bits
    odd = b.and_(b.lshr(magnitude, b.const(shift, 32)), b.const(1, 32))
    rounded = b.add(b.add(magnitude, b.const((1 << (shift - 1)) - 1, 32)), odd)
    normal = b.sub(b.lshr(rounded, b.const(shift, 32)), b.const((127 - f.bias) << f.fraction_bits, 32))
    # Subnormal results: adding a number whose last bit is the format's makes the addition round there.
    anchor = ef.float_const(b, "f32", 2.0 ** (f.lowest_exponent - f.fraction_bits + 23))
    subnormal = b.sub(b.fadd("f32", magnitude, anchor), anchor)
    is_normal = b.fcmp("oge", "f32", magnitude, ef.float_const(b, "f32", 2.0**f.lowest_exponent))
    code = b.umin(b.select(is_normal, normal, subnormal), b.const(f.largest, 32))
    sign = b.and_(b.lshr(x, b.const(32 - f.bits, 32)), b.const(f.sign_bit, 32))
    nan = f.canonical_nan if f.special != "none" else f.largest
    return b.select(b.fcmp("uno", "f32", x, x), b.const(nan, 32), b.or_(code, sign))


@instruction("cvt.rn.satfinite{.relu}.dtype.f32 d, a, b", dtype=EIGHT_BITS,
             operands={"a": "f32", "b": "f32"}, pipe="xu", sm=89, ptx="8.1", section=SECTION)  # fmt: skip
@instruction("cvt.rn.satfinite{.relu}.dtype.f32 d, a, b", dtype=BELOW,
             operands={"d": small_type("dtype"), "a": "f32", "b": "f32"}, pipe="xu", sm=100, ptx="8.6",
             section=SECTION)  # fmt: skip
class FloatsToSmallPair:
    """Two f32 to a pair of codes: a in the upper, b in the lower."""

    @staticmethod
    def reference(m: Match, a: int, b: int) -> int:
        name = name_of(m.dtype)
        fmt = SMALL_PAIRS[name][0]
        codes = (rounding.pack(fmt, rounding.unpack("f32", x), satfinite=True, relu=m.relu) for x in (a, b))
        return join_small(name, *codes)

    @staticmethod
    def emit(b, m: Match, x, y):
        fmt = SMALL_PAIRS[name_of(m.dtype)][0]
        if m.relu:
            x, y = ef.rectify(b, "f32", x), ef.rectify(b, "f32", y)
        return emit_join_small(b, m, emit_small(b, fmt, x), emit_small(b, fmt, y))


BETWEEN_PAIRS = {"pipe": "xu", "section": SECTION, "where": in_order}


@instruction("cvt.rn.satfinite{.relu}.dtype.atype d, a", dtype=EIGHT_BITS, atype=("f16x2",), sm=89, ptx="8.1",
             **BETWEEN_PAIRS)  # fmt: skip
@instruction("cvt.rn.satfinite{.relu}.dtype.atype d, a", dtype=EIGHT_BITS, atype=("bf16x2",), sm=100, ptx="9.1",
             **BETWEEN_PAIRS)  # fmt: skip
@instruction("cvt.rn.satfinite{.relu}.dtype.atype d, a", dtype=BELOW, atype=PAIRS,
             operands={"d": small_type("dtype")}, sm=100, ptx="9.1", **BETWEEN_PAIRS)  # fmt: skip
class PairToSmallPair:
    """A pair of f16 or bf16 to a pair of codes."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        name, source = name_of(m.dtype), format_of(m.atype)
        fmt = SMALL_PAIRS[name][0]
        parts = (a >> 16, a & 0xFFFF)
        codes = (rounding.pack(fmt, rounding.unpack(source, x), satfinite=True, relu=m.relu) for x in parts)
        return join_small(name, *codes)

    @staticmethod
    def emit(b, m: Match, x):
        source, fmt = format_of(m.atype), SMALL_PAIRS[name_of(m.dtype)][0]
        codes = []
        for part in b.unpack(x, 2):
            wide = ef.widen(b, source, part)
            codes.append(emit_small(b, fmt, ef.rectify(b, "f32", wide) if m.relu else wide))
        return emit_join_small(b, m, codes[1], codes[0])


@instruction("cvt.rn{.relu}.dtype.atype d, a", dtype=("f16x2",), atype=EIGHT_BITS, sm=89, ptx="8.1", **BETWEEN_PAIRS)
@instruction("cvt.rn{.relu}.dtype.atype d, a", dtype=("f16x2",), atype=BELOW,
             operands={"a": small_type("atype")}, sm=100, ptx="8.6", **BETWEEN_PAIRS)  # fmt: skip
@instruction("cvt.rn{.relu}{.satfinite}.dtype.atype d, a", dtype=("bf16x2",), atype=EIGHT_BITS + BELOW,
             operands={"a": small_type("atype")}, sm=100, ptx="9.2", **BETWEEN_PAIRS)  # fmt: skip
class SmallPairToPair:
    """A pair of codes to a pair of f16 or bf16, exactly."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        fmt, stride = SMALL_PAIRS[name_of(m.atype)]
        codes = (a >> stride & mask_of(FORMATS[fmt].bits), a & mask_of(FORMATS[fmt].bits))
        clamps = {"relu": m.relu, "satfinite": bool(m.get("satfinite"))}
        upper, lower = (rounding.pack(format_of(m.dtype), rounding.unpack(fmt, code), **clamps) for code in codes)
        return upper << 16 | lower

    @staticmethod
    def emit(b, m: Match, x):
        fmt, stride = SMALL_PAIRS[name_of(m.atype)]
        target = format_of(m.dtype)
        x = b.zext(x, 32)
        halves = []
        for low_bit in (0, stride):
            wide = emit_from_small(b, fmt, b.lshr(x, b.const(low_bit, 32)))
            clamps = {"relu": m.relu, "satfinite": bool(m.get("satfinite")) and fmt == "e5m2"}
            half = emit_narrow(b, wide, "f32", target, "rn", **clamps)
            halves.append(ef.canonical(b, target, half) if FORMATS[fmt].special != "none" else half)
        return b.pack(halves)


def emit_from_small(b, fmt: str, code):
    """f32 of a code in the low bits of a 32-bit Value (bits above it are ignored)."""
    f = FORMATS[fmt]
    sign = b.shl(b.and_(code, b.const(f.sign_bit, 32)), b.const(32 - f.bits, 32))
    magnitude = b.and_(code, b.const(f.sign_bit - 1, 32))
    moved = b.shl(magnitude, b.const(23 - f.fraction_bits, 32))
    normal = b.add(moved, b.const((127 - f.bias) << 23, 32))
    unit = ef.float_const(b, "f32", 2.0 ** (f.lowest_exponent - f.fraction_bits))
    subnormal = b.fmul("f32", b.uitofp(magnitude, "f32"), unit)
    is_subnormal = b.icmp("ult", magnitude, b.const(1 << f.fraction_bits, 32))
    value = b.select(is_subnormal, subnormal, normal)
    if f.special == "ieee":
        beyond = b.icmp("uge", magnitude, b.const(f.infinity, 32))
        value = b.select(beyond, b.or_(moved, b.const(0x7F800000, 32)), value)
    elif f.special == "nan":
        value = b.select(b.icmp("eq", magnitude, b.const(f.canonical_nan, 32)), b.const(0x7FC00000, 32), value)
    return b.or_(value, sign)


# ---------------------------------------------------------------- scale factors
def ue8m0_lanes(pattern: int, bits: int) -> tuple[int, int]:
    return pattern >> bits, pattern & mask_of(bits)


@instruction("cvt.frnd{.satfinite}.ue8m0x2.f32 d, a, b", frnd=("rz", "rp"),
             operands={"d": "b16", "a": "f32", "b": "f32"}, pipe="xu", sm=100, ptx="8.6", section=SECTION)  # fmt: skip
@instruction("cvt.frnd{.satfinite}.ue8m0x2.bf16x2 d, a", where=types_as_spelt, frnd=("rz", "rp"),
             operands={"d": "b16", "a": "bf16x2"},
             pipe="xu", sm=100, ptx="8.6", section=SECTION)  # fmt: skip
class ToScalePair:
    """Two numbers to powers of two: their signs are dropped."""

    @staticmethod
    def reference(m: Match, a: int, b: int | None = None) -> int:
        fmt, parts = ("bf16", ue8m0_lanes(a, 16)) if b is None else ("f32", (a, b))
        upper, lower = (rounding.encode_ue8m0(rounding.unpack(fmt, x), m.frnd, m.satfinite) for x in parts)
        return upper << 8 | lower

    @staticmethod
    def emit(b, m: Match, x, y=None):
        if y is None:
            y, x = (ef.widen(b, "bf16", part) for part in b.unpack(x, 2))
        return b.pack([emit_scale(b, m, value) for value in (y, x)])


def emit_scale(b, m: Match, x):
    """ue8m0 (8 bits) of an f32."""
    magnitude = b.fabs("f32", x)
    infinity = b.const(FORMATS["f32"].infinity, 32)
    exponent = b.lshr(magnitude, b.const(23, 32))
    if m.frnd == "rp":
        fraction = b.and_(magnitude, b.const(0x7FFFFF, 32))
        inexact = b.and_(b.icmp("ne", fraction, b.const(0, 32)), b.icmp("ult", magnitude, infinity))
        # 2^-127, the lowest code, is a subnormal f32; what is below it goes up to it.
        above = b.icmp("ugt", magnitude, b.const(0x400000, 32))
        exponent = b.add(exponent, b.zext(b.and_(inexact, above), 32))
    if m.satfinite:
        limit = b.select(b.icmp("ule", magnitude, infinity), b.const(0xFE, 32), b.const(0xFF, 32))
        exponent = b.umin(exponent, limit)
    return b.trunc(exponent, 8)


@instruction("cvt.rn.bf16x2.ue8m0x2 d, a", where=types_as_spelt,
             operands={"d": "bf16x2", "a": "b16"}, pipe="xu", sm=100, ptx="8.6",
             section=SECTION)  # fmt: skip
class FromScalePair:
    """Two powers of two as bf16."""

    @staticmethod
    def reference(m: Match, a: int) -> int:
        upper, lower = (rounding.pack("bf16", rounding.decode_ue8m0(code)) for code in ue8m0_lanes(a, 8))
        return upper << 16 | lower

    @staticmethod
    def emit(b, m: Match, x):
        halves = []
        for code in b.unpack(x, 2):
            half = b.shl(b.zext(code, 16), b.const(7, 16))
            # Code 0 is 2^-127, a subnormal bf16; 255 is NaN.
            half = b.select(b.icmp("eq", code, b.const(0, 8)), b.const(0x40, 16), half)
            halves.append(b.select(b.icmp("eq", code, b.const(0xFF, 8)), b.const(0x7FFF, 16), half))
        return b.pack(halves)


# ---------------------------------------------------------------- refused
STOCHASTIC = "stochastic rounding is not there yet; use .rn or .rz"
SCALED = "conversion with a scale factor is not there yet; convert, then multiply"


@instruction("cvt.rs{.relu}{.satfinite}.dtype.f32 d, a, b, c", dtype=PAIRS,
             operands={"a": "f32", "b": "f32", "c": "b32"}, pipe="xu", sm=100, ptx="8.7", section=SECTION,
             missing=STOCHASTIC)  # fmt: skip
@instruction("cvt.rs{.relu}.satfinite.dtype.f32 d, a, b", dtype=("e4m3x4", "e5m2x4", "e2m1x4", "e2m3x4", "e3m2x4"),
             operands={"d": "b32", "a": "f32", "b": "b32"}, pipe="xu", sm=100, ptx="8.7", section=SECTION,
             missing=STOCHASTIC)  # fmt: skip
@instruction("cvt.rn{.relu}{.satfinite}.scaled::n2::ue8m0.dtype.atype d, a, b", dtype=PAIRS, atype=tuple(SMALL_PAIRS),
             operands={"a": small_type("atype"), "b": "b16"}, pipe="xu", sm=100, ptx="9.1", section=SECTION,
             missing=SCALED)  # fmt: skip
class Refused:
    """Parsed, and refused: see `missing`."""


# ---------------------------------------------------------------- cvt.pack
PACK_SECTION = "9.7.9.22"
NARROW_INTEGERS = ("u2", "s2", "u4", "s4", "u8", "s8")


@instruction("cvt.pack.sat.convert.s32 d, a, b", convert=("u16", "s16"), operands={"d": "b32", "a": "s32", "b": "s32"},
             pipe="alu", sm=72, ptx="6.5", section=PACK_SECTION)  # fmt: skip
@instruction("cvt.pack.sat.convert.s32.b32 d, a, b, c", convert=NARROW_INTEGERS,
             operands={"d": "b32", "a": "s32", "b": "s32", "c": "b32"}, pipe="alu", sm=75, ptx="6.5",
             section=PACK_SECTION)  # fmt: skip
class Pack:
    """b below a, each kept to a narrow range; the rest of the word is c, moved up."""

    @staticmethod
    def reference(m: Match, a: int, b: int, c: int | None = None) -> int:
        bits, signed = narrow_integer(m)
        upper, lower = (clamp(number_of(x, 32, True), bits, signed) & mask_of(bits) for x in (a, b))
        return (c or 0) << (2 * bits) | upper << bits | lower

    @staticmethod
    def emit(b, m: Match, x, y, z=None):
        bits, signed = narrow_integer(m)
        lowest = -(1 << (bits - 1)) if signed else 0
        highest = mask_of(bits - 1) if signed else mask_of(bits)
        kept = [b.smin(b.smax(v, b.const(lowest, 32)), b.const(highest, 32)) for v in (x, y)]
        if signed:
            kept = [b.and_(v, b.const(mask_of(bits), 32)) for v in kept]
        joined = b.or_(b.shl(kept[0], b.const(bits, 32)), kept[1])
        return joined if z is None else b.or_(b.shl(z, b.const(2 * bits, 32)), joined)


def narrow_integer(m: Match) -> tuple[int, bool]:
    """Width and signedness of cvt.pack's target."""
    name = name_of(m.convert)
    return int(name[1:]), name[0] == "s"
