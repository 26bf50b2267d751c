"""Floating-point emission shared by the entries: functions that take the builder and Values, and return Values.

The builder rounds to nearest even only, in f32 and f64. What is built here from that:
- directed rounding (rz, rm, rp): the result is rounded to nearest, the sign of its error is found exactly (an
  error-free transform, or the residual in f64), and the pattern is moved by one unit where it is on the wrong side;
- f16 and bf16 arithmetic: in f32 where rounding twice is innocuous (add, sub, mul), else rounded to odd first;
- saturation, relu, flushing, minimum and maximum with PTX's rules for NaN and signed zero.
"""

from __future__ import annotations

import struct

from weft.isa.rounding import FORMATS

DIRECTED = ("rz", "rm", "rp")
# The format in which a narrow format's arithmetic is done.
WIDER = {"f16": "f32", "bf16": "f32", "f32": "f64"}


def float_const(b, fmt: str, number: float):
    """A constant of f32 or f64."""
    if fmt == "f32":
        return b.const(struct.unpack("<I", struct.pack("<f", number))[0], 32)
    return b.const(struct.unpack("<Q", struct.pack("<d", number))[0], 64)


def lanes_of(b, values, count: int, function):
    """`function` on the lanes of packed values; absent operands (None) stay None."""
    if count == 1:
        return function(*values)
    parts = [(None,) * count if value is None else b.unpack(value, count) for value in values]
    return b.pack([function(*lane) for lane in zip(*parts)])


# ---------------------------------------------------------------- patterns
def flush(b, fmt: str, x):
    """Subnormals of f16, bf16, f32 or f64 become the zero of their sign."""
    if fmt == "f32":
        return b.ftz(x)
    f = FORMATS[fmt]
    tiny = b.icmp("eq", b.and_(x, b.const(f.infinity, f.bits)), b.const(0, f.bits))
    return b.select(tiny, b.and_(x, b.const(f.sign_bit, f.bits)), x)


def is_nan(b, fmt: str, x):
    """1-bit: x is a NaN."""
    if fmt in ("f32", "f64"):
        return b.fcmp("uno", fmt, x, x)
    f = FORMATS[fmt]
    return b.icmp("ugt", b.fabs(fmt, x), b.const(f.infinity, f.bits))


def canonical(b, fmt: str, x):
    """Any NaN becomes the canonical one."""
    f = FORMATS[fmt]
    return b.select(is_nan(b, fmt, x), b.const(f.canonical_nan, f.bits), x)


def saturate(b, fmt: str, x):
    """x held within [0, 1]; NaN and -0 become +0. f32 or f64."""
    zero = float_const(b, fmt, 0.0)
    one = float_const(b, fmt, 1.0)
    positive = b.select(b.fcmp("ogt", fmt, x, zero), x, zero)
    return b.select(b.fcmp("olt", fmt, positive, one), positive, one)


def rectify(b, fmt: str, x):
    """Negative numbers and -0 become +0; NaN stays (its caller makes it canonical). f32 or f64."""
    zero = float_const(b, fmt, 0.0)
    return b.select(b.fcmp("ugt", fmt, x, zero), x, zero)


def finish(b, fmt: str, x, ftz: bool = False, sat: bool = False, relu: bool = False):
    """What follows an f32 or f64 operation: flush, then clamp."""
    if ftz:
        x = flush(b, fmt, x)
    if sat:
        x = saturate(b, fmt, x)
    if relu:
        x = canonical(b, fmt, rectify(b, fmt, x))
    return x


# ---------------------------------------------------------------- error-free transforms
def two_sum(b, fmt: str, x, y):
    """(s, e): s = x + y rounded, and e its exact error (NaN once s overflows). Knuth, TAOCP vol. 2, 4.2.2."""
    s = b.fadd(fmt, x, y)
    return s, sum_error(b, fmt, x, y, s)


def sum_error(b, fmt: str, x, y, s):
    """The exact error of s = x + y rounded to nearest."""
    part = b.fsub(fmt, s, x)
    return b.fadd(fmt, b.fsub(fmt, x, b.fsub(fmt, s, part)), b.fsub(fmt, y, part))


def round_to_odd(b, fmt: str, s, e):
    """s + e (s rounded to nearest, e its error) rounded to odd: a later rounding to a format at least two bits
    narrower is then right in every mode. Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008."""
    bits = FORMATS[fmt].bits
    inexact = b.fcmp("one", fmt, e, float_const(b, fmt, 0.0))
    toward_zero = b.add(s, b.ashr(b.xor(s, e), b.const(bits - 1, bits)))
    return b.select(inexact, b.or_(toward_zero, b.const(1, bits)), s)


def step(b, x, mode: str, wrong):
    """The pattern of x, moved one unit in the direction of `mode` where `wrong` (rz: toward zero)."""
    one = b.const(1, x.bits)
    if mode == "rz":
        return b.select(wrong, b.sub(x, one), x)
    unit = b.or_(b.ashr(x, b.const(x.bits - 1, x.bits)), one)
    return b.select(wrong, b.sub(x, unit) if mode == "rm" else b.add(x, unit), x)


def overshoots(b, fmt: str, excess, x, mode: str):
    """1-bit: a result that exceeds the exact value by `excess` lies on the wrong side; x has the result's sign."""
    zero = float_const(b, fmt, 0.0)
    if mode == "rz":
        bits = FORMATS[fmt].bits
        excess = b.xor(excess, b.and_(x, b.const(1 << (bits - 1), bits)))
    return b.fcmp("olt" if mode == "rp" else "ogt", fmt, excess, zero)


def narrow(b, x, source: str, target: str, mode: str = "rn", error=None):
    """A narrower format of x + error, rounded once. `error` is the exact error of x (f64), or None for exact x."""
    if mode == "rn":
        if error is not None:
            x = round_to_odd(b, source, x, error)
        return b.fptrunc(x, source, target)
    near = b.fptrunc(x, source, target)
    excess = b.fsub(source, b.fpext(near, target, source), x)
    if error is not None:
        excess = b.fsub(source, excess, error)
    return step(b, near, mode, overshoots(b, source, excess, x, mode))


# ---------------------------------------------------------------- sums, products, quotients
def emit_sum(b, fmt: str, x, y, mode: str = "rn"):
    """x + y in f32 or f64."""
    if mode == "rn":
        return b.fadd(fmt, x, y)
    if mode == "rm":
        # Also gives the exact zero of a difference its minus sign.
        return b.fneg(fmt, emit_sum(b, fmt, b.fneg(fmt, x), b.fneg(fmt, y), "rp"))
    if fmt == "f32":
        s, e = two_sum(b, "f64", b.fpext(x, "f32", "f64"), b.fpext(y, "f32", "f64"))
        return narrow(b, s, "f64", "f32", mode, e)
    s, e = two_sum(b, fmt, x, y)
    # After an overflow of finite terms the error points back from infinity.
    overflowed = b.fadd(fmt, b.fsub(fmt, x, s), y)
    infinite = b.icmp("eq", b.fabs(fmt, s), b.const(FORMATS[fmt].infinity, 64))
    return adjust(b, fmt, s, b.select(infinite, overflowed, e), mode)


def adjust(b, fmt: str, x, residual, mode: str):
    """x (f32 or f64, rounded to nearest) rounded in `mode` instead; the exact value minus x has the residual's sign."""
    return step(b, x, mode, overshoots(b, fmt, b.fneg(fmt, residual), x, mode))


def emit_product(b, fmt: str, x, y, mode: str = "rn"):
    """x * y in f32 or f64."""
    if mode == "rn":
        return b.fmul(fmt, x, y)
    if fmt == "f32":
        return narrow(b, b.fmul("f64", b.fpext(x, "f32", "f64"), b.fpext(y, "f32", "f64")), "f64", "f32", mode)
    p = b.fmul(fmt, x, y)
    # The residual of a tiny product would underflow: it is taken of operands scaled by 2^550.
    small = b.fcmp("olt", fmt, b.fabs(fmt, p), float_const(b, fmt, 2.0**-900))
    scale = b.select(small, float_const(b, fmt, 2.0**550), float_const(b, fmt, 1.0))
    scaled = b.fmul(fmt, b.fmul(fmt, p, scale), scale)
    residual = b.fma(fmt, b.fmul(fmt, x, scale), b.fmul(fmt, y, scale), b.fneg(fmt, scaled))
    return adjust(b, fmt, p, residual, mode)


def emit_fused(b, fmt: str, x, y, z, mode: str = "rn"):
    """x * y + z in f32 or f64, rounded once."""
    if mode == "rn":
        return b.fma(fmt, x, y, z)
    if mode == "rm":
        return b.fneg(fmt, emit_fused(b, fmt, b.fneg(fmt, x), y, b.fneg(fmt, z), "rp"))
    if fmt == "f32":
        product = b.fmul("f64", b.fpext(x, "f32", "f64"), b.fpext(y, "f32", "f64"))
        s, e = two_sum(b, "f64", product, b.fpext(z, "f32", "f64"))
        return narrow(b, s, "f64", "f32", mode, e)
    s = b.fma(fmt, x, y, z)
    return adjust(b, fmt, s, _fused_residual(b, x, y, z, s), mode)


def _fused_residual(b, x, y, z, s):
    """A value with the sign of x * y + z - s, s being the nearest f64. Boldo and Muller, "Exact and approximated error
    of the FMA", 2011, on operands scaled into the range where nothing overflows or underflows."""
    fmt = "f64"

    def number(value: float):
        return float_const(b, fmt, value)

    one = number(1.0)
    product = b.fabs(fmt, b.fmul(fmt, x, y))
    addend = b.fabs(fmt, z)
    size = b.select(b.fcmp("ogt", fmt, product, addend), product, addend)
    large = b.fcmp("ogt", fmt, size, number(2.0**900))
    small = b.fcmp("olt", fmt, size, number(2.0**-700))
    # One scale for each factor, its square for the sum. A large factor has the scale of a large product alone.
    scale = b.select(large, number(2.0**-100), b.select(small, number(2.0**550), one))
    x_is_larger = b.fcmp("ogt", fmt, b.fabs(fmt, x), b.fabs(fmt, y))
    squeeze = b.select(large, number(2.0**-200), one)
    even = b.select(large, one, scale)
    u = b.fmul(fmt, x, b.select(x_is_larger, b.fmul(fmt, squeeze, even), even))
    v = b.fmul(fmt, y, b.select(x_is_larger, even, b.fmul(fmt, squeeze, even)))
    # A tiny addend of a large product counts by its sign alone: as it is, lest scaling it down make it zero.
    z_scale = b.select(b.fcmp("olt", fmt, addend, number(2.0**-800)), b.select(large, one, scale), scale)
    w = b.fmul(fmt, b.fmul(fmt, z, z_scale), z_scale)
    t = b.fmul(fmt, b.fmul(fmt, s, scale), scale)
    p = b.fmul(fmt, u, v)
    p_error = b.fma(fmt, u, v, b.fneg(fmt, p))
    # A product that vanishes beside the addend counts by its sign alone.
    vanishing = b.fcmp("olt", fmt, b.fabs(fmt, p), number(2.0**-950))
    some = b.and_(b.fcmp("une", fmt, x, number(0.0)), b.fcmp("une", fmt, y, number(0.0)))
    sign = b.and_(b.xor(x, y), b.const(1 << 63, 64))
    trace = b.select(some, b.or_(sign, number(2.0**-950)), number(0.0))
    p = b.select(vanishing, trace, p)
    p_error = b.select(vanishing, number(0.0), p_error)
    a_sum, a_error = two_sum(b, fmt, w, p_error)
    b_sum, b_error = two_sum(b, fmt, p, a_sum)
    gap = b.fadd(fmt, b.fsub(fmt, b_sum, t), b_error)
    # Where s overflowed the residual points back from infinity, if all operands are finite (else it is NaN).
    tiny = number(2.0**-600)
    shrunk = b.fma(fmt, b.fmul(fmt, x, tiny), b.fmul(fmt, y, tiny), b.fmul(fmt, z, tiny))
    infinite = b.icmp("eq", b.fabs(fmt, s), b.const(FORMATS[fmt].infinity, 64))
    return b.select(infinite, b.fsub(fmt, shrunk, s), b.fadd(fmt, gap, a_error))


def emit_quotient(b, fmt: str, x, y, mode: str = "rn"):
    """x / y in f32 or f64."""
    q = b.fdiv(fmt, x, y)
    if mode == "rn":
        return q
    if fmt == "f32":
        wide = [b.fpext(value, "f32", "f64") for value in (q, y, x)]
        return _step_quotient(b, q, wide[1], b.fma("f64", wide[0], wide[1], b.fneg("f64", wide[2])), mode)
    # q * y - x must not underflow where x is small: the smaller factor is scaled up with x.
    one = float_const(b, fmt, 1.0)
    small = b.fcmp("olt", fmt, b.fabs(fmt, x), float_const(b, fmt, 2.0**-900))
    scale = b.select(small, float_const(b, fmt, 2.0**200), one)
    on_y = b.fcmp("olt", fmt, b.fabs(fmt, y), one)
    u = b.fmul(fmt, q, b.select(on_y, one, scale))
    v = b.fmul(fmt, y, b.select(on_y, scale, one))
    excess = b.fma(fmt, u, v, b.fneg(fmt, b.fmul(fmt, x, scale)))
    return _step_quotient(b, q, y, excess, mode)


def _step_quotient(b, q, divisor, excess, mode: str):
    """q moved where its excess over the exact quotient, times the f64 divisor, puts it on the wrong side."""
    excess = b.xor(excess, b.and_(divisor, b.const(1 << 63, 64)))
    sign = q if q.bits == 64 else b.shl(b.zext(q, 64), b.const(32, 64))
    return step(b, q, mode, overshoots(b, "f64", excess, sign, mode))


def emit_root(b, fmt: str, x, mode: str = "rn"):
    """The square root in f32 or f64."""
    root = b.fsqrt(fmt, x)
    if mode == "rn":
        return root
    if fmt == "f32":
        wide = b.fpext(root, "f32", "f64")
        excess = b.fma("f64", wide, wide, b.fneg("f64", b.fpext(x, "f32", "f64")))
        return step(b, root, mode, overshoots(b, "f64", excess, wide, mode))
    small = b.fcmp("olt", fmt, x, float_const(b, fmt, 2.0**-900))
    one = float_const(b, fmt, 1.0)
    scaled = b.fmul(fmt, root, b.select(small, float_const(b, fmt, 2.0**100), one))
    square = b.fmul(fmt, x, b.select(small, float_const(b, fmt, 2.0**200), one))
    return step(b, root, mode, overshoots(b, fmt, b.fma(fmt, scaled, scaled, b.fneg(fmt, square)), root, mode))


# ---------------------------------------------------------------- f16 and bf16
def widen(b, fmt: str, x):
    """f16 or bf16 as f32."""
    return b.fpext(x, fmt, "f32")


def fused_half(b, fmt: str, x, y, z, shape):
    """x * y + z in f16 or bf16, rounded once; `shape` changes the f32 sum before it is narrowed.

    The product is exact in f32 and the f32 sum is rounded to odd, so that narrowing it is right. Two cases of bf16 need
    a word. A product above f32's range leaves no error (NaN): a finite sum then has at most 15 bits and is exact. A
    product with bits below 2^-149 is smaller than 2^-133, and its rounding could only matter if it gave 2^-134, half of
    the smallest bf16, without being it: that takes 16 ones, and 65535 is no product of two 8-bit numbers.
    """
    u, v, w = (widen(b, fmt, value) for value in (x, y, z))
    product = b.fmul("f32", u, v)
    s = b.fma("f32", u, v, w)
    return b.fptrunc(shape(round_to_odd(b, "f32", s, sum_error(b, "f32", product, w, s))), "f32", fmt)


# ---------------------------------------------------------------- minimum and maximum
def emit_extreme(b, fmt: str, largest: bool, x, y, nan: bool, positive: bool = False):
    """max (or min) of two: a NaN operand gives way to the other, or with `nan` wins; +0 is above -0. NaN results are
    not canonical yet, but for `nan`. `positive`: both operands have a plus sign."""
    if fmt in ("f32", "f64"):
        return _extreme_of_floats(b, fmt, largest, x, y, nan, positive)
    f = FORMATS[fmt]
    condition = "sgt" if largest else "slt"
    chosen = b.select(b.icmp(condition, _ordinal(b, f, x), _ordinal(b, f, y)), x, y)
    x_nan, y_nan = is_nan(b, fmt, x), is_nan(b, fmt, y)
    if nan:
        return b.select(b.or_(x_nan, y_nan), b.const(f.canonical_nan, f.bits), chosen)
    return b.select(x_nan, y, b.select(y_nan, x, chosen))


def _ordinal(b, f, x):
    """Signed integers in the order of the numbers of a 16-bit format."""
    sign = b.ashr(x, b.const(f.bits - 1, f.bits))
    return b.xor(x, b.and_(sign, b.const(f.sign_bit - 1, f.bits)))


def _extreme_of_floats(b, fmt: str, largest: bool, x, y, nan: bool, positive: bool):
    # select(x > y, x, y) is one instruction on x86, and takes y for unordered and for equal operands.
    chosen = b.select(b.fcmp("ogt" if largest else "olt", fmt, x, y), x, y)
    if not positive:
        joined = b.and_(x, y) if largest else b.or_(x, y)
        chosen = b.select(b.fcmp("oeq", fmt, x, y), joined, chosen)
    if nan:
        f = FORMATS[fmt]
        return b.select(b.fcmp("uno", fmt, x, y), b.const(f.canonical_nan, f.bits), chosen)
    return b.select(b.fcmp("uno", fmt, y, y), x, chosen)
