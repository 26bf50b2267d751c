"""Comparison and selection: set, setp, selp, slct, for integers and every floating-point format.

Section numbers are those of the PTX ISA manual, "Comparison and Selection Instructions" and "Half Precision
Comparison Instructions".
"""

from __future__ import annotations

from weft.isa.bits import join, number_of, split
from weft.isa.instruction import instruction
from weft.types import ScalarType

# PTX comparison -> (the builder's condition for signed, for unsigned integers).
INTEGER_CONDITIONS = {
    "eq": ("eq", "eq"),
    "ne": ("ne", "ne"),
    "lt": ("slt", "ult"),
    "le": ("sle", "ule"),
    "gt": ("sgt", "ugt"),
    "ge": ("sge", "uge"),
    "lo": ("", "ult"),
    "ls": ("", "ule"),
    "hi": ("", "ugt"),
    "hs": ("", "uge"),
}
# PTX comparison -> the builder's condition for floats: o... is false and u... true where an operand is a NaN.
FLOAT_CONDITIONS = {
    "eq": "oeq",
    "ne": "one",
    "lt": "olt",
    "le": "ole",
    "gt": "ogt",
    "ge": "oge",
    "equ": "ueq",
    "neu": "une",
    "ltu": "ult",
    "leu": "ule",
    "gtu": "ugt",
    "geu": "uge",
    "num": "ord",
    "nan": "uno",
}
BITS_COMPARISONS = ("eq", "ne")
SIGNED_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
UNSIGNED_COMPARISONS = (*SIGNED_COMPARISONS, "lo", "ls", "hi", "hs")
FLOAT_COMPARISONS = tuple(FLOAT_CONDITIONS)
BOOLEANS = ("and", "or", "xor")
BITS_TYPES = ("b16", "b32", "b64")
UNSIGNED_TYPES = ("u16", "u32", "u64")
SIGNED_TYPES = ("s16", "s32", "s64")
# Width of the fraction of each format.
FRACTION_BITS = {"f16": 10, "bf16": 7, "f32": 23, "f64": 52}


# ---------------------------------------------------------------- comparing
def lane_format(type: ScalarType) -> str:
    """The format of one lane of a float type: f16 for f16x2."""
    return type.name.removesuffix("x2")


def flush_subnormal(pattern: int, bits: int, fmt: str) -> int:
    """A subnormal becomes a zero of its sign."""
    sign = 1 << (bits - 1)
    exponent_mask = (sign - 1) & ~((1 << FRACTION_BITS[fmt]) - 1)
    return pattern if pattern & exponent_mask else pattern & sign


def float_order(pattern: int, bits: int, fmt: str) -> int | None:
    """An int that orders like the number (both zeros are 0), or None for a NaN."""
    sign = 1 << (bits - 1)
    magnitude = pattern & (sign - 1)
    infinity = (sign - 1) & ~((1 << FRACTION_BITS[fmt]) - 1)
    if magnitude > infinity:
        return None
    return -magnitude if pattern & sign else magnitude


def compare_numbers(comparison: str, x: int, y: int) -> bool:
    """eq ne lt le gt ge of two ints; lo ls hi hs are the unsigned spellings of lt le gt ge."""
    return {
        "eq": x == y,
        "ne": x != y,
        "lt": x < y,
        "le": x <= y,
        "gt": x > y,
        "ge": x >= y,
        "lo": x < y,
        "ls": x <= y,
        "hi": x > y,
        "hs": x >= y,
    }[comparison]


def compare_lane(comparison: str, type: ScalarType, a: int, b: int, flush: bool) -> int:
    """0 or 1 for the patterns of one lane of `type`."""
    bits = type.bits // type.lanes
    if type.kind != "f":
        return int(compare_numbers(comparison, number_of(a, bits, type.signed), number_of(b, bits, type.signed)))
    fmt = lane_format(type)
    if flush:
        a, b = flush_subnormal(a, bits, fmt), flush_subnormal(b, bits, fmt)
    x, y = float_order(a, bits, fmt), float_order(b, bits, fmt)
    unordered = x is None or y is None
    if comparison in ("num", "nan"):
        return int(unordered == (comparison == "nan"))
    if unordered:
        return int(comparison.endswith("u"))
    return int(compare_numbers(comparison.removesuffix("u"), x, y))


def _emit_flush_half(b, x):
    """A subnormal f16 becomes +0, which compares as any zero."""
    subnormal = b.icmp("eq", b.and_(x, b.const(0x7C00, 16)), b.const(0, 16))
    return b.select(subnormal, b.const(0, 16), x)


def emit_compare_lane(b, comparison: str, type: ScalarType, x, y, flush: bool):
    if type.kind != "f":
        signed, unsigned = INTEGER_CONDITIONS[comparison]
        return b.icmp(signed if type.signed else unsigned, x, y)
    fmt = lane_format(type)
    if flush:
        x, y = (b.ftz(v) if fmt == "f32" else _emit_flush_half(b, v) for v in (x, y))
    if fmt in ("f16", "bf16"):
        x, y = b.fpext(x, fmt, "f32"), b.fpext(y, fmt, "f32")
        fmt = "f32"
    return b.fcmp(FLOAT_CONDITIONS[comparison], fmt, x, y)


def combine(boolean: str | None, t: int, c: int | None) -> int:
    """BoolOp(t, c), or t where the form has no BoolOp."""
    if not boolean:
        return t
    return {"and": t & c, "or": t | c, "xor": t ^ c}[boolean]


def emit_combine(b, boolean: str | None, t, c):
    if not boolean:
        return t
    return {"and": b.and_, "or": b.or_, "xor": b.xor}[boolean](t, c)


# ---------------------------------------------------------------- setp
class _SetPredicates:
    """p = BoolOp(a cmp b, c), q = BoolOp(!(a cmp b), c)."""

    @staticmethod
    def reference(m, a, b, c=None):
        t = compare_lane(m.cmp, m.operand_type("a"), a, b, bool(m.get("ftz")))
        boolean = m.get("bool")
        return combine(boolean, t, c), combine(boolean, t ^ 1, c)

    @staticmethod
    def emit(b, m, x, y, c=None):
        t = emit_compare_lane(b, m.cmp, m.operand_type("a"), x, y, bool(m.get("ftz")))
        boolean = m.get("bool")
        return emit_combine(b, boolean, t, c), emit_combine(b, boolean, b.not_(t), c)


class _SetLanePredicates:
    """p = BoolOp(low halves compared, c), q = BoolOp(high halves compared, c)."""

    @staticmethod
    def reference(m, a, b, c=None):
        source = m.operand_type("a")
        lanes = zip(split(a, 2, 16), split(b, 2, 16))
        return tuple(combine(m.get("bool"), compare_lane(m.cmp, source, u, v, bool(m.get("ftz"))), c) for u, v in lanes)

    @staticmethod
    def emit(b, m, x, y, c=None):
        source = m.operand_type("a")
        lanes = zip(b.unpack(x, 2), b.unpack(y, 2))
        compared = [emit_compare_lane(b, m.cmp, source, u, v, bool(m.get("ftz"))) for u, v in lanes]
        return tuple(emit_combine(b, m.get("bool"), t, c) for t in compared)


def _define_setp(types: str | tuple[str, ...], comparisons: tuple[str, ...], *, ftz: bool = False, pair: bool = True,
                 rule=_SetPredicates, **fields) -> None:  # fmt: skip
    """Both forms (with and without BoolOp) of setp for some types."""
    names = (types,) if isinstance(types, str) else types
    slot = f".{names[0]}" if len(names) == 1 else ".type"
    choices = {"cmp": comparisons} if len(names) == 1 else {"cmp": comparisons, "type": names}
    flush = "{.ftz}" if ftz else ""
    p = "p{|q}" if pair else "p"
    source = {"a": names[0], "b": names[0]} if len(names) == 1 else {"a": "type", "b": "type"}
    instruction(f"setp.cmp{flush}{slot} {p}, a, b", operands=source, **choices, **fields)(rule)
    instruction(f"setp.cmp.bool{flush}{slot} {p}, a, b, c", operands={**source, "c": "pred"}, bool=BOOLEANS,
                **choices, **fields)(rule)  # fmt: skip


_INTEGER = {"pipe": "alu", "section": "9.7.6.2"}
_HALF = {"pipe": "fp16", "section": "9.7.7.2"}
_define_setp(BITS_TYPES, BITS_COMPARISONS, **_INTEGER)
_define_setp(UNSIGNED_TYPES, UNSIGNED_COMPARISONS, **_INTEGER)
_define_setp(SIGNED_TYPES, SIGNED_COMPARISONS, **_INTEGER)
_define_setp("f32", FLOAT_COMPARISONS, ftz=True, **_INTEGER)
_define_setp("f64", FLOAT_COMPARISONS, pipe="fp64", sm=13, section="9.7.6.2")
_define_setp("f16", FLOAT_COMPARISONS, ftz=True, pair=False, ptx="4.2", sm=53, **_HALF)
_define_setp("bf16", FLOAT_COMPARISONS, pair=False, ptx="7.8", sm=90, **_HALF)
_define_setp("f16x2", FLOAT_COMPARISONS, ftz=True, rule=_SetLanePredicates, ptx="4.2", sm=53, **_HALF)
_define_setp("bf16x2", FLOAT_COMPARISONS, rule=_SetLanePredicates, ptx="7.8", sm=90, **_HALF)

# ---------------------------------------------------------------- set
ONE = {"f16": 0x3C00, "bf16": 0x3F80, "f32": 0x3F800000}


def truth_pattern(type: ScalarType, bits: int) -> int:
    """What `set` writes for true into `bits` bits: 1.0 for floats, all ones for integers."""
    return ONE[lane_format(type)] if type.kind == "f" else (1 << bits) - 1


class _Set:
    """d = BoolOp(a cmp b, c) as 1.0 or 0.0, or as all ones or zero."""

    @staticmethod
    def reference(m, a, b, c=None):
        to = m.operand_type("d")
        t = compare_lane(m.cmp, m.operand_type("a"), a, b, bool(m.get("ftz")))
        return combine(m.get("bool"), t, c) * truth_pattern(to, to.bits)

    @staticmethod
    def emit(b, m, x, y, c=None):
        to = m.operand_type("d")
        t = emit_compare_lane(b, m.cmp, m.operand_type("a"), x, y, bool(m.get("ftz")))
        t = emit_combine(b, m.get("bool"), t, c)
        return b.select(t, b.const(truth_pattern(to, to.bits), to.bits), b.const(0, to.bits))


class _SetLanes:
    """The same for both halves, packed into 32 bits."""

    @staticmethod
    def reference(m, a, b, c=None):
        to, source = m.operand_type("d"), m.operand_type("a")
        lanes = zip(split(a, 2, 16), split(b, 2, 16))
        bits = [combine(m.get("bool"), compare_lane(m.cmp, source, u, v, bool(m.get("ftz"))), c) for u, v in lanes]
        return join([t * truth_pattern(to, 16) for t in bits], 16)

    @staticmethod
    def emit(b, m, x, y, c=None):
        to, source = m.operand_type("d"), m.operand_type("a")
        truth, zero = b.const(truth_pattern(to, 16), 16), b.const(0, 16)
        halves = []
        for u, v in zip(b.unpack(x, 2), b.unpack(y, 2)):
            t = emit_compare_lane(b, m.cmp, source, u, v, bool(m.get("ftz")))
            halves.append(b.select(emit_combine(b, m.get("bool"), t, c), truth, zero))
        return b.pack(halves)


def _define_set(dtypes: tuple[str, ...], stypes: tuple[str, ...], comparisons: tuple[str, ...], *, ftz: bool = False,
                rule=_Set, **fields) -> None:  # fmt: skip
    flush = "{.ftz}" if ftz else ""
    source = {"a": "stype", "b": "stype"}
    choices = {"cmp": comparisons, "dtype": dtypes, "stype": stypes}
    instruction(f"set.cmp{flush}.dtype.stype d, a, b", operands=source, **choices, **fields)(rule)
    instruction(f"set.cmp.bool{flush}.dtype.stype d, a, b, c", operands={**source, "c": "pred"}, bool=BOOLEANS,
                **choices, **fields)(rule)  # fmt: skip


_PLAIN = {"pipe": "alu", "section": "9.7.6.1"}
_TO_F16 = {"pipe": "fp16", "ptx": "4.2", "sm": 53, "section": "9.7.7.1"}
_FROM_F16 = {**_TO_F16, "ptx": "6.5"}
_TO_BF16 = {"pipe": "fp16", "ptx": "7.8", "sm": 90, "section": "9.7.7.1"}
for _dtypes, _fields in ((("u32", "s32", "f32"), _PLAIN), (("f16",), _TO_F16), (("bf16",), _TO_BF16)):
    _define_set(_dtypes, BITS_TYPES, BITS_COMPARISONS, **_fields)
    _define_set(_dtypes, UNSIGNED_TYPES, UNSIGNED_COMPARISONS, **_fields)
    _define_set(_dtypes, SIGNED_TYPES, SIGNED_COMPARISONS, **_fields)
    _define_set(_dtypes, ("f32",), FLOAT_COMPARISONS, ftz=_dtypes != ("bf16",), **_fields)
    _define_set(_dtypes, ("f64",), FLOAT_COMPARISONS, **_fields)
_define_set(("f16",), ("f16",), FLOAT_COMPARISONS, ftz=True, **_TO_F16)
_define_set(("u16", "s16", "u32", "s32"), ("f16",), FLOAT_COMPARISONS, ftz=True, **_FROM_F16)
_define_set(("bf16",), ("f16",), FLOAT_COMPARISONS, **_TO_BF16)
_define_set(("u16", "s16", "u32", "s32", "bf16"), ("bf16",), FLOAT_COMPARISONS, **_TO_BF16)
_define_set(("f16x2",), ("f16x2",), FLOAT_COMPARISONS, ftz=True, rule=_SetLanes, **_TO_F16)
_define_set(("u32", "s32"), ("f16x2",), FLOAT_COMPARISONS, ftz=True, rule=_SetLanes, **_FROM_F16)
_define_set(("u32", "s32", "bf16x2"), ("bf16x2",), FLOAT_COMPARISONS, rule=_SetLanes, **_TO_BF16)

# ---------------------------------------------------------------- selp, slct
SELECT_TYPES = (*BITS_TYPES, *UNSIGNED_TYPES, *SIGNED_TYPES, "f32", "f64")


@instruction("selp.type d, a, b, c", type=SELECT_TYPES, operands={"c": "pred"}, pipe="alu", section="9.7.6.3")
class Selp:
    @staticmethod
    def reference(m, a, b, c):
        return a if c else b

    @staticmethod
    def emit(b, m, x, y, p):
        return b.select(p, x, y)


@instruction("slct.dtype.s32 d, a, b, c", dtype=SELECT_TYPES, operands={"a": "dtype", "b": "dtype", "c": "s32"},
             pipe="alu", section="9.7.6.4")  # fmt: skip
@instruction("slct{.ftz}.dtype.f32 d, a, b, c", dtype=SELECT_TYPES, operands={"a": "dtype", "b": "dtype", "c": "f32"},
             pipe="alu", section="9.7.6.4")  # fmt: skip
class Slct:
    """a where c >= 0 (so also for -0.0), else b (so also for a NaN)."""

    @staticmethod
    def reference(m, a, b, c):
        return a if compare_lane("ge", m.operand_type("c"), c, 0, bool(m.get("ftz"))) else b

    @staticmethod
    def emit(b, m, x, y, z):
        positive = emit_compare_lane(b, "ge", m.operand_type("c"), z, b.const(0, 32), bool(m.get("ftz")))
        return b.select(positive, x, y)

