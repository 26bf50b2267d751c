"""Floating-point and conversion instructions: every form against its reference, at three depths.

1. the emission rule evaluated on arrays (no compiler);
2. the rule compiled by the vector builder, with every way of holding operands;
3. whole kernels on a device, under masks.
The references themselves rest on the rounding module (test_rounding.py), on ptxas's constant folding
(test_ptxas_folding.py), and on the numbers here; the approximate functions are held against f64 mathematics and the
manual's bounds.
"""

from __future__ import annotations

import functools
import math
import random
import struct

import numpy as np
import pytest
from builder_harness import check_on_builder
from form_harness import Form, check_emission, check_on_device, forms_of, instances_of
from scalar_builder import ScalarBuilder

import weft
import weft.isa
from weft.codegen.jit import Target
from weft.errors import PtxError, UnsupportedError
from weft.isa import approximate, convert, floating
from weft.isa.instruction import TABLE, Entry, Match, match
from weft.isa.operands import Instruction, Register
from weft.isa.rounding import is_nan

MODULES = (floating, approximate, convert)
TARGETS = {"host": Target.host(), "avx2": Target.host("avx2")}
# Forms of one entry that are tested at each depth.
EMITTED, BUILT, RUN, RUN_THOROUGH = 12, 2, 1, 4


def own_entries(opcode: str) -> list[Entry]:
    """The entries of an opcode that these modules define and that compute values."""
    names = {module.__name__ for module in MODULES}
    return [entry for entry in TABLE[opcode] if entry.definition.__module__ in names and not entry.missing]


ENTRIES = [entry for opcode in sorted(TABLE) for entry in own_entries(opcode)]
OPCODES = sorted({entry.opcode for entry in ENTRIES})


def pick(opcode: str, limit: int) -> list[Form]:
    return [form for entry in own_entries(opcode) for form in forms_of(entry, limit)]


@pytest.mark.parametrize("opcode", OPCODES)
def test_emission(opcode):
    wrong = [text for form in pick(opcode, EMITTED) for text in check_emission(form, 128)]
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.thorough
@pytest.mark.parametrize("opcode", OPCODES)
def test_emission_thorough(opcode):
    wrong = [text for form in pick(opcode, 10**6) for text in check_emission(form, 1000)]
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opcode", OPCODES)
def test_builder(opcode, target):
    instances = [instances_of(form)[0] for form in pick(opcode, BUILT if target == "host" else 1)]
    wrong = []
    for at in range(0, len(instances), 60):
        wrong += check_on_builder(instances[at : at + 60], TARGETS[target])
    assert not wrong, "\n".join(wrong[:20])


@functools.cache
def device():
    return weft.Device("h100")


@pytest.mark.parametrize("opcode", OPCODES)
def test_device(opcode):
    instances = [instance for form in pick(opcode, RUN) for instance in instances_of(form)[:1]]
    wrong = check_on_device(device(), instances)
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.thorough
@pytest.mark.parametrize("opcode", OPCODES)
def test_device_thorough(opcode):
    instances = [instance for form in pick(opcode, RUN_THOROUGH) for instance in instances_of(form)]
    wrong = check_on_device(device(), instances)
    assert not wrong, "\n".join(wrong[:20])


# ---------------------------------------------------------------- numbers of the manual
def matched(text: str, sources: int) -> Match:
    opcode, *tokens = text.split(".")
    operands = (Register("%d"), *(Register(f"%s{i}") for i in range(sources)))
    return match(Instruction(opcode, tuple(tokens), operands))


def evaluate(text: str, *values: int) -> int:
    """The result of `opcode.modifiers` by the reference, and the same by the emission rule."""
    m = matched(text, len(values))
    bits = m.operand_type("d" if m.entry.operands[0].name == "d" else "p").bits
    result = int(m.entry.reference(m, *values)) & ((1 << bits) - 1)
    b = ScalarBuilder(lanes=1)
    names = [spec.name for spec in m.entry.operands[1:]]
    sources = [b.value([value], m.operand_type(name).bits) for name, value in zip(names, values)]
    emitted = m.entry.emit(b, m, *sources).ints()[0]
    assert emitted == result, f"{text}: emission gives {emitted:#x}, reference {result:#x}"
    return result


F32 = {
    "one": 0x3F800000, "-one": 0xBF800000, "inf": 0x7F800000, "-inf": 0xFF800000, "nan": 0x7FC12345, "zero": 0,
    "-zero": 0x80000000, "tiny": 1, "-tiny": 0x80000001,
}  # fmt: skip
KNOWN = [
    # Signed zeros and NaN in minimum and maximum.
    ("max.f32", ("zero", "-zero"), 0),
    ("min.f32", ("zero", "-zero"), 0x80000000),
    ("max.f32", ("nan", "one"), 0x3F800000),
    ("max.f32", ("nan", "nan"), 0x7FFFFFFF),
    ("max.NaN.f32", ("nan", "one"), 0x7FFFFFFF),
    ("min.xorsign.abs.f32", ("-inf", "one"), 0xBF800000),
    ("max.f32", ("one", "nan", "inf"), 0x7F800000),
    ("min.f16", (0x7E00, 0x3C00), 0x3C00),
    ("max.bf16x2", (0x7FC08000, 0x7FC00000), 0x7FFF0000),
    # Rounding modes on the smallest excess over 1, and exact zero sums.
    ("add.rn.f32", ("one", "tiny"), 0x3F800000),
    ("add.rp.f32", ("one", "tiny"), 0x3F800001),
    ("add.rm.f32", ("one", "-tiny"), 0x3F7FFFFF),
    ("add.rz.f32", ("-one", "tiny"), 0xBF7FFFFF),
    ("add.rm.f32", ("one", "-one"), 0x80000000),
    ("sub.rp.f32", ("one", "one"), 0),
    ("mul.rp.f32", ("tiny", "tiny"), 1),
    ("mul.rm.f32", ("tiny", "-tiny"), 0x80000001),
    ("add.ftz.f32", ("tiny", "-zero"), 0),
    ("add.sat.f32", ("one", "one"), 0x3F800000),
    ("add.sat.f32", ("nan", "one"), 0),
    ("fma.rz.f32", ("inf", "one", "-one"), 0x7F800000),
    ("mul.rz.f32", (0x7F7FFFFF, 0x7F7FFFFF), 0x7F7FFFFF),
    ("div.rp.f32", ("one", 0x40400000), 0x3EAAAAAB),
    ("div.rz.f32", ("one", 0x40400000), 0x3EAAAAAA),
    # 1 + 2^-12 squared is 1 + 2^-11 + 2^-24; rounding twice would give a tie.
    ("fma.rn.f16", (0x3C01, 0x3C01, 0x0001), 0x3C02),
    ("fma.rn.relu.f16", (0xBC00, 0x3C00, 0), 0),
    ("fma.rn.relu.bf16", (0x7FC1, 0x3F80, 0), 0x7FFF),
    ("add.rz.f32.f16", (0x3C00, "tiny"), 0x3F800000),
    # The sign of a on b.
    ("copysign.f32", ("-zero", "one"), 0xBF800000),
    ("testp.normal.f32", ("-zero",), 1),
    ("testp.subnormal.f32", ("tiny",), 1),
    ("testp.number.f32", ("nan",), 0),
    # Approximate functions' special values, from the tables in their sections.
    ("ex2.approx.f32", ("-inf",), 0),
    ("ex2.approx.f32", ("-tiny",), 0x3F800000),
    ("ex2.approx.f32", ("inf",), 0x7F800000),
    ("ex2.approx.f32", (0xC3150000,), 1),  # 2^-149
    ("ex2.approx.ftz.f32", (0xC3150000,), 0),
    ("ex2.approx.ftz.f32", (0xC2FC0000,), 0x00800000),  # 2^-126
    ("lg2.approx.f32", ("zero",), 0xFF800000),
    ("lg2.approx.f32", ("-zero",), 0xFF800000),
    ("lg2.approx.ftz.f32", ("-tiny",), 0xFF800000),
    ("lg2.approx.f32", ("tiny",), 0xC3150000),  # -149
    ("lg2.approx.f32", ("one",), 0),
    ("lg2.approx.f32", ("inf",), 0x7F800000),
    ("sin.approx.f32", ("-zero",), 0x80000000),
    ("cos.approx.f32", ("-zero",), 0x3F800000),
    ("tanh.approx.f32", ("-inf",), 0xBF800000),
    ("tanh.approx.f32", ("-tiny",), 0x80000001),
    ("rcp.approx.ftz.f32", ("-tiny",), 0xFF800000),
    ("rsqrt.approx.f32", ("-zero",), 0xFF800000),
    ("rsqrt.approx.f32", ("inf",), 0),
    ("rcp.approx.ftz.f64", (0x4008000000000000,), 0x3FD5555500000000),
    ("div.approx.ftz.f32", ("one", 0x7F000000), 0),
    ("div.full.f32", ("one", 0x7F000000), 0x00400000),
    # Conversions: saturation, NaN, rounding.
    ("cvt.rni.s32.f32", (0x40200000,), 2),
    ("cvt.rpi.s32.f32", (0x40200000,), 3),
    ("cvt.rzi.s32.f32", ("nan",), 0),
    ("cvt.rzi.s32.f32", ("inf",), 0x7FFFFFFF),
    ("cvt.rzi.u32.f32", ("-one",), 0),
    ("cvt.rzi.s64.f32", ("nan",), 1 << 63),
    ("cvt.rzi.s32.f64", (0x7FF8000000000000,), 0x80000000),
    ("cvt.rni.s8.f16", (0x5BFF,), 0x7F),
    ("cvt.rpi.s32.f32", ("tiny",), 1),
    ("cvt.rpi.ftz.s32.f32", ("tiny",), 0),
    ("cvt.sat.u8.s32", (0xFFFFFFFF,), 0),
    ("cvt.sat.s8.u32", (0xFFFFFFFF,), 0x7F),
    ("cvt.s64.s32", (0x80000000,), 0xFFFFFFFF80000000),
    ("cvt.u16.s8", (0x80,), 0xFF80),
    ("cvt.rn.f32.u64", ((1 << 64) - 1,), 0x5F800000),
    ("cvt.rz.f32.u64", ((1 << 64) - 1,), 0x5F7FFFFF),
    ("cvt.rm.f64.s64", ((1 << 64) - (1 << 63) - 1,), 0x43DFFFFFFFFFFFFF),
    ("cvt.rn.f16.s32", (65520,), 0x7C00),
    ("cvt.rz.f16.s32", (65520,), 0x7BFF),
    ("cvt.rn.sat.f32.s32", (0xFFFFFFFF,), 0),
    ("cvt.rni.f32.f32", (0xBEFFFFFF,), 0x80000000),
    ("cvt.rn.f16x2.f32", ("one", "-one"), 0x3C00BC00),
    ("cvt.rn.satfinite.f16x2.f32", ("inf", "nan"), 0x7BFF7FFF),
    ("cvt.rz.bf16x2.f32", (0x3F80FFFF, 0x7F800001), 0x3F807FFF),
    ("cvt.rna.tf32.f32", (0x3F801000,), 0x3F802000),
    ("cvt.rn.tf32.f32", (0x3F801000,), 0x3F800000),
    ("cvt.rn.satfinite.e4m3x2.f32", (0x43E10000, "nan"), 0x7E7F),
    ("cvt.rn.satfinite.e5m2x2.f32", ("-inf", 0x37800000), 0xFB01),
    ("cvt.rn.satfinite.e2m1x2.f32", (0x40A00000, "nan"), 0x67),
    ("cvt.rn.f16x2.e4m3x2", (0x7E01,), 0x5F001800),
    ("cvt.rn.f16x2.e5m2x2", (0xFC7F,), 0xFC007FFF),
    ("cvt.rn.f16x2.e2m1x2", (0xF1,), 0xC6003800),
    ("cvt.rn.bf16x2.ue8m0x2", (0x7F00,), 0x3F800040),
    ("cvt.rp.satfinite.ue8m0x2.f32", (0x40400000, "one"), 0x817F),
    ("cvt.pack.sat.u8.s32.b32", (300, 0xFFFFFFFF, 0x1234), 0x1234FF00),
    ("cvt.pack.sat.s16.s32", (40000, 0xFFFF0000), 0x7FFF8000),
]


@pytest.mark.parametrize("text, values, expected", KNOWN, ids=[f"{k[0]}-{i}" for i, k in enumerate(KNOWN)])
def test_known(text, values, expected):
    assert evaluate(text, *(F32[v] if isinstance(v, str) else v for v in values)) == expected


@pytest.mark.parametrize("text, sources", [
    ("cvt.s32.f32", 1), ("cvt.f32.s32", 1), ("cvt.f16.f32", 1), ("cvt.rn.f32.f16", 1), ("cvt.rn.s32.f32", 1),
    ("cvt.ftz.f16.f16", 1), ("cvt.rni.f16.f32", 1), ("cvt.rn.e4m3x2.f32", 2), ("add.rz.f16", 2), ("add.sat.bf16", 2),
    ("fma.f32", 3), ("mad.f64", 3), ("div.f32", 2), ("max.xorsign.f32", 2), ("max.NaN.f64", 2), ("sqrt.approx.f64", 1),
    ("fma.rn.sat.relu.f16", 3), ("ex2.approx.bf16", 1), ("tanh.approx.ftz.f32", 1), ("cvt.rna.bf16.f32", 1),
    ("cvt.rp.relu.f16.f32", 1), ("cvt.rn.satfinite.f16x2.e5m2x2", 1),
])  # fmt: skip
def test_illegal_forms(text, sources):
    # Each of these is refused by ptxas 13.5 too.
    with pytest.raises(PtxError):
        matched(text, sources)


@pytest.mark.parametrize("text, sources", [("fma.rn.oob.f16", 3), ("cvt.rs.f16x2.f32", 3)])
def test_refused_forms_say_what_to_do(text, sources):
    with pytest.raises(UnsupportedError, match="use"):
        matched(text, sources)


@pytest.mark.parametrize("low, high", [(-137, -130), (-152, -137), (125, 131), (-4, 4)])
def test_bf16_fma_at_the_edges_of_f32(low, high):
    # Products around half of the smallest bf16, below f32's last bit and above its range; see emit_float.fused_half.
    rng = random.Random(low)
    rows = []
    while len(rows) < 2000:
        first = rng.randrange(1, 254)
        second = rng.randint(low, high) - first + 254
        if 0 < second < 255:
            third = rng.choice((rng.randrange(0, 4), rng.randrange(250, 255), rng.randrange(0, 255)))
            rows.append([rng.getrandbits(1) << 15 | e << 7 | rng.getrandbits(7) for e in (first, second, third)])
    m = matched("fma.rn.bf16", 3)
    b = ScalarBuilder(lanes=len(rows))
    found = m.entry.emit(b, m, *(b.value(column, 16) for column in zip(*rows))).ints()
    for row, result in zip(rows, found):
        expected = m.entry.reference(m, *row)
        assert result == expected or (is_nan("bf16", result) and is_nan("bf16", expected)), [hex(v) for v in row]


# ---------------------------------------------------------------- errors of the approximate functions
LANES = 1 << 15


def patterns_between(low: float, high: float, negative: bool = False) -> np.ndarray:
    """Random f32 patterns of numbers from low to high (both positive), evenly spread over the patterns."""
    first, last = (struct.unpack("<I", struct.pack("<f", number))[0] for number in (low, high))
    rng = np.random.default_rng(first ^ last)
    return rng.integers(first, last, LANES, dtype=np.uint64, endpoint=True) | np.uint64(0x80000000 * negative)


def run(text: str, patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(arguments, results, operations) of a form's emission; numbers as long double."""
    b = ScalarBuilder(lanes=LANES)
    m = matched(text, 1)
    found = m.entry.emit(b, m, b.value(patterns, 32))
    x, y = (data.astype(np.uint32).view(np.float32).astype(np.longdouble) for data in (patterns, found.data))
    return x, y, sum(b.counts.values())


def ulp(numbers: np.ndarray) -> np.ndarray:
    exponents = np.maximum(np.floor(np.log2(np.abs(numbers))), -126)
    return np.exp2(exponents - 23)


@pytest.mark.parametrize("low, high, negative", [
    (2.0**-30, 127.999, False), (2.0**-30, 125.9, True), (1.0, 8.0, False), (1.0, 8.0, True),
])  # fmt: skip
@pytest.mark.parametrize("form", ["ex2.approx.f32", "ex2.approx.ftz.f32"])
def test_ex2_error(form, low, high, negative):
    x, y, operations = run(form, patterns_between(low, high, negative))
    assert (np.abs(y - np.exp2(x)) / ulp(np.exp2(x))).max() <= 1.3
    assert operations <= 20


def test_ex2_of_integers_is_exact():
    integers = np.arange(-149, 128, dtype=np.float32)
    patterns = np.resize(integers.view(np.uint32).astype(np.uint64), LANES)
    x, y, _ = run("ex2.approx.f32", patterns)
    assert (y == np.exp2(x)).all()


@pytest.mark.parametrize("form", ["lg2.approx.f32", "lg2.approx.ftz.f32"])
def test_lg2_error(form):
    for low, high in ((0.5000001, 1.9999999), (0.99, 1.01)):
        x, y, operations = run(form, patterns_between(low, high))
        assert np.abs(y - np.log2(x)).max() <= 2.0**-22.6
    for low, high in ((2.0, 3e38), (2.0**-126, 0.5)) + (((2.0**-149, 2.0**-126),) if "ftz" not in form else ()):
        x, y, operations = run(form, patterns_between(low, high))
        assert (np.abs(y - np.log2(x)) / np.abs(np.log2(x))).max() <= 2.0**-22
    assert operations <= 25


@pytest.mark.parametrize("name", ["sin", "cos"])
@pytest.mark.parametrize("high, bound", [(2 * math.pi, 2.0**-20.5), (100 * math.pi, 2.0**-14.7)])
def test_circular_error(name, high, bound):
    for negative in (False, True):
        x, y, operations = run(f"{name}.approx.f32", patterns_between(high / 32, high, negative))
        assert np.abs(y - getattr(np, name)(x)).max() <= bound
        assert np.abs(y).max() <= 1
    assert operations <= 18


def test_circular_functions_of_huge_angles_stay_bounded():
    for name in ("sin", "cos"):
        _, y, _ = run(f"{name}.approx.f32", patterns_between(1e3, 3e38))
        assert np.abs(y).max() <= 1


def test_tanh_error():
    for low, high in ((2.0**-149, 1e-3), (1e-3, 10.0), (9.0, 3e38)):
        x, y, operations = run("tanh.approx.f32", patterns_between(low, high))
        assert (np.abs(y - np.tanh(x)) / np.tanh(x)).max() <= 2.0**-11
        assert y.max() <= 1
    assert operations <= 16


@pytest.mark.parametrize("form, function, bound", [
    ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x), 2.0**-22.9), ("sqrt.approx.f32", np.sqrt, 2.0**-23),
    ("rcp.approx.f32", lambda x: 1 / x, 2.0**-23),
])  # fmt: skip
def test_root_error(form, function, bound):
    x, y, _ = run(form, patterns_between(2.0**-125, 2.0**125))
    assert (np.abs(y - function(x)) / function(x)).max() <= bound
