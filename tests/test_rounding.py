"""The exact rounding module against other implementations: struct, NumPy, ml_dtypes, Fraction arithmetic and libm."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.isa import rounding
from weft.isa.rounding import FORMATS, MODES, Exact, decode, encode, pack, unpack

settings.register_profile("rounding", max_examples=300, deadline=None)
settings.load_profile("rounding")

LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
LIBM.fma.restype = ctypes.c_double
LIBM.fma.argtypes = (ctypes.c_double,) * 3

NUMPY = {"f16": (np.uint16, np.float16), "f32": (np.uint32, np.float32), "f64": (np.uint64, np.float64)}
BITS32 = st.integers(0, 2**32 - 1)
BITS64 = st.integers(0, 2**64 - 1)
# Numbers near every format's edges: a few significant bits at any exponent, or any f64.
NUMBERS = st.one_of(
    st.builds(math.ldexp, st.integers(-(2**27), 2**27), st.integers(-180, 110)),
    st.builds(math.ldexp, st.integers(-(2**12), 2**12), st.integers(-40, 20)),
    BITS64.map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]),
)


def f64_bits(number: float) -> int:
    return struct.unpack("<Q", struct.pack("<d", number))[0]


def f64_number(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


def same(fmt: str, found: int, expected: int) -> bool:
    return found == expected or (rounding.is_nan(fmt, found) and rounding.is_nan(fmt, expected))


def from_numpy(fmt: str, value) -> int:
    unsigned, real = NUMPY[fmt]
    return int(np.array(value, dtype=real).view(unsigned))


# ---------------------------------------------------------------- reading
@pytest.mark.parametrize("fmt", ["f16", "bf16"])
def test_decode_every_16_bit_pattern(fmt):
    patterns = np.arange(1 << 16, dtype=np.uint32)
    narrow = patterns.astype(np.uint16).view(np.float16) if fmt == "f16" else (patterns << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        numbers = narrow.astype(np.float64)
    for bits, number in enumerate(numbers.tolist()):
        found = rounding.to_float(fmt, bits)
        assert f64_bits(found) == f64_bits(number) or (found != found and number != number), hex(bits)


@given(BITS64)
def test_decode_f64(bits):
    number = f64_number(bits)
    value = decode("f64", bits)
    assert value == number if number == number else value != value
    assert unpack("f64", bits).negative == (math.copysign(1, number) < 0)


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_pattern_is_its_own_rounding(fmt):
    f = FORMATS[fmt]
    step = 1 if f.bits <= 16 else (1 << f.bits) // 4099
    for bits in range(0, 1 << f.bits, step):
        if rounding.is_nan(fmt, bits):
            assert decode(fmt, bits) != decode(fmt, bits)
            continue
        kept = bits & ~((1 << f.unused) - 1)
        for mode in MODES:
            assert pack(fmt, unpack(fmt, kept), mode) == kept


# ---------------------------------------------------------------- writing
@given(NUMBERS)
@pytest.mark.parametrize("fmt", ["f16", "f32"])
def test_encode_nearest_as_numpy(fmt, number):
    with np.errstate(all="ignore"):
        assert same(fmt, encode(fmt, number), from_numpy(fmt, NUMPY[fmt][1](number)))


ML_DTYPES = {
    "bf16": "bfloat16", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "e2m1": "float4_e2m1fn",
    "e2m3": "float6_e2m3fn", "e3m2": "float6_e3m2fn",
}  # fmt: skip


@pytest.mark.parametrize("fmt", ML_DTYPES)
def test_as_ml_dtypes(fmt):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = getattr(ml_dtypes, ML_DTYPES[fmt])
    f = FORMATS[fmt]
    patterns = np.arange(1 << f.bits, dtype=np.uint16 if f.bits == 16 else np.uint8)
    with np.errstate(invalid="ignore"):
        decoded = patterns.view(dtype).astype(np.float64).tolist()
    for bits, number in zip(patterns.tolist(), decoded):
        found = rounding.to_float(fmt, bits)
        assert f64_bits(found) == f64_bits(number) or (found != found and number != number), hex(bits)
    rng = np.random.default_rng(7)
    numbers = np.ldexp(rng.integers(-(2**11), 2**11, 4000), rng.integers(-24, 12, 4000)).astype(np.float32)
    codes = numbers.astype(dtype).view(patterns.dtype)
    largest = rounding.to_float(fmt, f.largest)
    for number, code in zip(numbers.tolist(), codes.tolist()):
        if abs(number) <= largest:
            assert encode(fmt, number, satfinite=True) == code, number


def neighbours(fmt: str, number: float) -> tuple[Fraction, Fraction]:
    """The representable numbers around a finite one, by search among patterns (positive formats are ordered)."""
    f = FORMATS[fmt]
    magnitude = abs(Fraction(number))
    low, high = 0, (f.largest >> f.unused) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if decode(fmt, middle << f.unused) <= magnitude:
            low = middle
        else:
            high = middle
    below = decode(fmt, low << f.unused)
    above = decode(fmt, high << f.unused) if high <= f.largest >> f.unused else None
    exact = below == magnitude
    return below, below if exact else above


@given(NUMBERS.filter(math.isfinite), st.sampled_from(MODES))
@pytest.mark.parametrize("fmt", ["f16", "bf16", "tf32", "f32", "e5m2"])
def test_encode_by_definition(fmt, number, mode):
    below, above = neighbours(fmt, number)
    magnitude = abs(Fraction(number))
    negative = math.copysign(1, number) < 0
    found = unpack(fmt, encode(fmt, number, mode))
    assert found.negative == negative
    if above is None:
        toward_zero = mode == "rz" or mode == ("rp" if negative else "rm")
        step = below - decode(fmt, FORMATS[fmt].largest - (1 << FORMATS[fmt].unused))
        stays = mode in ("rn", "rna") and magnitude < below + step / 2
        assert found.is_infinite != (toward_zero or stays)
        return
    middle = (below + above) / 2
    up = {"rz": False, "rm": negative, "rp": not negative, "rna": magnitude >= middle, "rn": magnitude > middle}[mode]
    if mode == "rn" and magnitude == middle:
        up = encode(fmt, above) & (1 << FORMATS[fmt].unused) == 0
    assert abs(found.value) == (above if up and above != below else below)


def test_clamps():
    assert encode("f16", 1e6) == 0x7C00
    assert encode("f16", -1e6, satfinite=True) == 0xFBFF
    assert encode("f16", math.inf, "rz") == 0x7C00
    assert encode("f16", math.inf, satfinite=True) == 0x7BFF
    assert encode("e4m3", 449.0, satfinite=True) == 0x7E
    assert encode("e4m3", math.nan, satfinite=True) == 0x7F
    assert encode("e2m1", math.nan, satfinite=True) == 0x7
    assert encode("e2m1", -math.inf, satfinite=True) == 0xF
    assert encode("f32", -2.0, sat=True) == 0
    assert encode("f32", -0.0, sat=True) == 0
    assert encode("f32", 7.0, sat=True) == 0x3F800000
    assert encode("f32", math.nan, sat=True) == 0
    assert encode("f32", -2.0, relu=True) == 0
    assert encode("f16", math.nan, relu=True) == 0x7FFF
    assert encode("f32", 2.0**-127) == 0x00400000
    assert encode("f32", -(2.0**-127), ftz=True) == 0x80000000
    assert encode("tf32", 1 + 2.0**-11, "rna") == 0x3F802000
    assert encode("tf32", 1 + 2.0**-11, "rn") == 0x3F800000
    assert encode("f32", 0, negative=True) == 0x80000000


def test_scale_factors():
    for code in range(255):
        assert rounding.encode_ue8m0(rounding.decode_ue8m0(code), "rp", False) == code
    for number, down, up in ((3.0, 128, 129), (-3.0, 128, 129), (1e-45, 0, 0), (2.0**-126 * 1.5, 1, 2), (0.0, 0, 0)):
        assert rounding.encode_ue8m0(rounding.from_float(number), "rz", True) == down
        assert rounding.encode_ue8m0(rounding.from_float(number), "rp", True) == up
    assert rounding.encode_ue8m0(rounding.from_float(math.inf), "rz", False) == 0xFF
    assert rounding.encode_ue8m0(rounding.from_float(3e38), "rp", True) == 0xFE
    assert rounding.encode_ue8m0(rounding.from_float(3e38), "rp", False) == 0xFF


# ---------------------------------------------------------------- arithmetic
OPERATIONS = {
    "add": (rounding.add, np.add), "subtract": (rounding.subtract, np.subtract),
    "multiply": (rounding.multiply, np.multiply), "divide": (rounding.divide, np.divide),
}  # fmt: skip


@given(BITS64, BITS64)
@pytest.mark.parametrize("fmt", ["f32", "f64"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_arithmetic_as_numpy(fmt, name, x, y):
    exact, numpy = OPERATIONS[name]
    unsigned, real = NUMPY[fmt]
    x, y = (value & ((1 << FORMATS[fmt].bits) - 1) for value in (x, y))
    with np.errstate(all="ignore"):
        expected = from_numpy(fmt, numpy(unsigned(x).view(real), unsigned(y).view(real)))
    assert same(fmt, pack(fmt, exact(unpack(fmt, x), unpack(fmt, y))), expected)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_fused_as_libm(x, y, z):
    exact = rounding.fused(*(rounding.from_float(number) for number in (x, y, z)))
    assert same("f64", pack("f64", exact), f64_bits(LIBM.fma(x, y, z)))


@given(NUMBERS)
def test_square_root(number):
    exact = rounding.square_root(rounding.from_float(number))
    with np.errstate(invalid="ignore"):
        assert same("f64", pack("f64", exact), f64_bits(float(np.sqrt(np.float64(number)))))


@given(BITS32, st.sampled_from(("rz", "rm", "rp")))
def test_square_root_is_bracketed(bits, mode):
    x = unpack("f32", bits & 0x7FFFFFFF)
    if not x.is_finite:
        return
    root = rounding.square_root(x)
    found = decode("f32", pack("f32", root, mode))
    other = decode("f32", pack("f32", root, "rm" if mode == "rp" else "rp"))
    low, high = sorted((found, other))
    assert low * low <= x.value <= high * high


def test_zero_signs():
    plus, minus, one = Exact(Fraction(0), False), Exact(Fraction(0), True), rounding.from_float(1.0)
    for mode in MODES:
        assert rounding.add(minus, minus, mode).negative
        assert not rounding.add(plus, plus, mode).negative
        assert rounding.add(plus, minus, mode).negative == (mode == "rm")
        assert rounding.subtract(one, one, mode).negative == (mode == "rm")
    assert rounding.multiply(minus, one).negative
    assert rounding.square_root(minus).negative


@given(NUMBERS.filter(math.isfinite), st.sampled_from(("rn", "rz", "rm", "rp")))
def test_round_to_integral(number, mode):
    function = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}[mode]
    found = rounding.round_to_integral(rounding.from_float(number), mode)
    assert found.value == function(Fraction(number))
    assert found.negative == (math.copysign(1, number) < 0)
