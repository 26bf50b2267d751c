"""Mathematical functions of CUDA C++ (tests/cuda/mathematics.cu) through both compilers, against their true values.

Limits are the maximum errors, in units in the last place from the correctly rounded result, of the CUDA C++ Programming
Guide, "Mathematical Functions", tables for single and double precision.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
from functools import cache

import numpy as np
import pytest
import scipy.special
from cuda_cases import device, kernels

wide = np.longdouble
PI = wide("3.14159265358979323846264338327950288")

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, 1e-30, -1e-30, 5e-324, 1e-40, math.inf, -math.inf, math.nan]


def sinpi(x):
    r = np.fmod(x, wide(2))
    return np.where((np.trunc(x) == x) & np.isfinite(x), np.copysign(wide(0), x), np.sin(r * PI))


def cospi(x):
    r = np.abs(np.fmod(x, wide(2)))
    return np.where(r % 1 == 0.5, wide(0), np.cos(r * PI))


def cube_root(x):
    return np.cbrt(x)


@cache
def c_function(name):
    """A long double function of the C library; results reach Python as doubles, right to about half a unit."""
    path = ctypes.util.find_library("m")
    if path is None:
        pytest.skip("no C mathematical library to compare with")
    function = getattr(ctypes.CDLL(path), name)
    function.argtypes, function.restype = [ctypes.c_longdouble], ctypes.c_longdouble
    return function


def by_c(name):
    return lambda x: np.array([c_function(name)(float(v)) for v in x], wide)


def normcdf(x):
    """erfc(-x / sqrt(2)) / 2, with what rounding the argument to double leaves out put back to first order."""
    exact = -x / np.sqrt(wide(2))
    rounded = exact.astype(np.float64).astype(wide)
    slope = -2 / np.sqrt(PI) * np.exp(-rounded * rounded)
    rest = np.where(np.isfinite(exact), exact - rounded, wide(0))
    return (by_c("erfcl")(rounded) + slope * rest) / 2


def erfinv(x):
    """SciPy's, good to about two units."""
    return np.copysign(scipy.special.erfinv(x.astype(np.float64)).astype(wide), x)


def half_away(x):
    return np.copysign(np.floor(np.abs(x) + wide(0.5)), x)


def span(low, high):
    return lambda rng, n: rng.uniform(low, high, n)


def spread(low, high, signed=True):
    """Magnitudes spread evenly over the exponents from 2^low to 2^high."""

    def draw(rng, n):
        sign = rng.choice([-1.0, 1.0], n) if signed else 1.0
        return sign * 2.0 ** rng.uniform(low, high, n)

    return draw


# name: true value, where arguments are drawn, limits for single and double precision
UNARY = {
    "exp": (np.exp, [span(-87, 88), span(-1, 1)], 1, 1),
    "exp2": (np.exp2, [span(-125, 127), span(-1, 1)], 2, 1),
    "exp10": (lambda x: wide(10) ** x, [span(-37, 38), span(-1, 1)], 1, 1),
    "expm1": (np.expm1, [span(-20, 88), spread(-30, 0)], 1, 1),
    "log": (np.log, [spread(-120, 120, False), span(0.5, 2)], 1, 1),
    "log2": (np.log2, [spread(-120, 120, False), span(0.5, 2)], 1, 1),
    "log10": (np.log10, [spread(-120, 120, False), span(0.5, 2)], 2, 1),
    "log1p": (np.log1p, [spread(-30, 100, False), span(-0.999, 1)], 1, 1),
    "sin": (np.sin, [span(-100, 100), spread(-20, 120)], 2, 2),
    "cos": (np.cos, [span(-100, 100), spread(-20, 120)], 2, 2),
    "tan": (np.tan, [span(-100, 100), spread(-20, 120)], 4, 2),
    "sinpi": (sinpi, [span(-10, 10), spread(-20, 20)], 2, 2),
    "cospi": (cospi, [span(-10, 10), spread(-20, 20)], 2, 2),
    "asin": (np.arcsin, [span(-1, 1), spread(-20, 0)], 2, 2),
    "acos": (np.arccos, [span(-1, 1), spread(-20, 0)], 2, 2),
    "atan": (np.arctan, [span(-5, 5), spread(-20, 40)], 2, 2),
    "sinh": (np.sinh, [span(-88, 88), spread(-20, 2)], 3, 2),
    "cosh": (np.cosh, [span(-88, 88), spread(-20, 2)], 2, 1),
    "tanh": (np.tanh, [span(-10, 10), spread(-20, 2)], 2, 1),
    "asinh": (np.arcsinh, [span(-5, 5), spread(-20, 100)], 3, 3),
    "acosh": (np.arccosh, [span(1, 5), spread(0, 100, False)], 4, 3),
    "atanh": (np.arctanh, [span(-1, 1), spread(-20, 0)], 3, 2),
    "sqrt": (np.sqrt, [spread(-120, 120, False)], 0, 0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), [spread(-120, 120, False)], 2, 1),
    "cbrt": (cube_root, [spread(-120, 120)], 1, 1),
    "rcbrt": (lambda x: 1 / np.cbrt(x), [spread(-120, 120)], 1, 1),
    "erf": (by_c("erfl"), [span(-5, 5), spread(-20, 0)], 2, 2),
    "erfc": (by_c("erfcl"), [span(-4, 9), span(0, 1)], 4, 5),
    "erfinv": (erfinv, [span(-1, 1)], 3, 7),
    "normcdf": (normcdf, [span(-12, 6)], 5, 5),
    "lgamma": (by_c("lgammal"), [span(0.01, 40), spread(0, 60, False)], 6, 4),
    "tgamma": (by_c("tgammal"), [span(0.01, 30), span(-5, 0)], 5, 10),
    "floor": (np.floor, [span(-100, 100), spread(-20, 60)], 0, 0),
    "ceil": (np.ceil, [span(-100, 100), spread(-20, 60)], 0, 0),
    "trunc": (np.trunc, [span(-100, 100), spread(-20, 60)], 0, 0),
    "round": (half_away, [span(-100, 100), spread(-20, 60)], 0, 0),
    "rint": (np.rint, [span(-100, 100), spread(-20, 60)], 0, 0),
    "fabs": (np.abs, [spread(-120, 120)], 0, 0),
    "logb": (lambda x: np.floor(np.log2(np.abs(x))), [spread(-120, 120)], 0, 0),
}
BINARY = {
    "pow": (np.power, [(spread(-10, 10, False), span(-8, 8)), (span(0.9, 1.1), span(-300, 300))], 4, 2),
    "atan2": (np.arctan2, [(span(-5, 5), span(-5, 5)), (spread(-40, 40), spread(-40, 40))], 3, 2),
    "hypot": (np.hypot, [(span(-5, 5), span(-5, 5)), (spread(-120, 120), spread(-120, 120))], 3, 2),
    "fmod": (np.fmod, [(span(-50, 50), span(-5, 5)), (spread(-30, 30), spread(-30, 30))], 0, 0),
    "remainder": (None, [(span(-50, 50), span(-5, 5)), (spread(-30, 30), spread(-30, 30))], 0, 0),
    "fmin": (np.fmin, [(span(-5, 5), span(-5, 5))], 0, 0),
    "fmax": (np.fmax, [(span(-5, 5), span(-5, 5))], 0, 0),
    "fdim": (lambda x, y: np.where(x <= y, wide(0), x - y), [(span(-5, 5), span(-5, 5))], 0, 0),
    "copysign": (np.copysign, [(span(-5, 5), span(-5, 5))], 0, 0),
    "nextafter": (None, [(span(-5, 5), span(-5, 5)), (spread(-120, 120), spread(-120, 120))], 0, 0),
    "divide": (np.divide, [(spread(-60, 60), spread(-60, 60))], 0, 0),
}
COUNT = 2000
COMPILERS = ("nvrtc", "clang")


def ordinals(x):
    """Integers in the order of the floating-point numbers: the distance between two is in units in the last place."""
    bits = x.view(np.int32 if x.dtype == np.float32 else np.int64).astype(object)
    half = 1 << (8 * x.itemsize - 1)
    return np.array([b if b >= 0 else -(int(b) + half) for b in bits], dtype=object)


def check(name, found, true, limit, *arguments):
    """Every result within `limit` units of the correctly rounded value; NaN and infinities where they belong."""
    with np.errstate(all="ignore"):
        expected = true.astype(found.dtype)
    bad_nan = np.isnan(found) != np.isnan(expected)
    assert not bad_nan.any(), (name, [a[bad_nan][:4] for a in arguments], found[bad_nan][:4], expected[bad_nan][:4])
    usable = ~np.isnan(expected)
    distance = np.abs(ordinals(found[usable]) - ordinals(expected[usable]))
    worst = int(np.argmax(distance))
    shown = [a[usable][worst] for a in arguments]
    assert distance[worst] <= limit, (name, int(distance[worst]), shown, found[usable][worst], expected[usable][worst])
    zero = usable & (expected == 0) & (found == 0)
    same_sign = np.signbit(found[zero]) == np.signbit(expected[zero])
    assert same_sign.all(), (name, "sign of zero", [a[zero][~same_sign][:4] for a in arguments])


def launch(compiler, kernel, *arrays):
    out = device().zeros(len(arrays[0]), arrays[0].dtype)
    count = len(arrays[0])
    kernels("mathematics.cu", compiler)[kernel][(count + 127) // 128, 128](count, *map(device().array, arrays), out)
    return out.numpy()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_function(name, dtype, compiler):
    function, domains, single, double = UNARY[name]
    rng = np.random.default_rng(3)
    with np.errstate(all="ignore"):
        edges = EDGES if name not in ("tgamma", "lgamma") else [1.0, 2.0, 0.5, 3.0, math.inf, math.nan]
        x = np.concatenate([*(draw(rng, COUNT) for draw in domains), edges]).astype(dtype)
        # what is rounded once in hardware must not be rounded twice here
        true = np.sqrt(x).astype(wide) if name == "sqrt" else function(x.astype(wide))
        if name == "logb":
            true = np.where(np.isinf(x), wide(np.inf), true)
        if name in ("rsqrt", "rcbrt"):
            true = np.where(x == 0, np.copysign(wide(np.inf), x.astype(wide)), true)
    check(
        name,
        launch(compiler, f"{'f' if dtype == np.float32 else 'd'}_{name}", x),
        true,
        single if dtype == np.float32 else double,
        x,
    )


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_function_of_two(name, dtype, compiler):
    function, domains, single, double = BINARY[name]
    rng = np.random.default_rng(3)
    left, right = np.meshgrid(EDGES, EDGES)
    with np.errstate(all="ignore"):
        x = np.concatenate([*(draw[0](rng, COUNT) for draw in domains), left.ravel()]).astype(dtype)
        y = np.concatenate([*(draw[1](rng, COUNT) for draw in domains), right.ravel()]).astype(dtype)
        if name == "nextafter":
            true = np.nextafter(x, y).astype(wide)
        elif name == "divide":
            true = (x / y).astype(wide)
        elif name == "remainder":
            true = np.array([ieee_remainder(float(p), float(q)) for p, q in zip(x, y)], wide)
        else:
            true = function(x.astype(wide), y.astype(wide))
    found = launch(compiler, f"{'f' if dtype == np.float32 else 'd'}_{name}", x, y)
    if name in ("fmin", "fmax"):  # of zeros of either sign, any may be chosen
        found, true = found + dtype(0), true + wide(0)
    check(name, found, true, single if dtype == np.float32 else double, x, y)


def ieee_remainder(x, y):
    try:
        return math.remainder(x, y)
    except ValueError:
        return math.nan


# Maximum absolute or relative errors of the intrinsics, from the Guide's table of intrinsic functions.
FAST = {
    "fast_exp": (np.exp, span(-20, 20), 2 + 24, 0),  # 2 + floor(abs(1.173 * x)) units
    "fast_exp10": (lambda x: wide(10) ** x, span(-8, 8), 2 + 24, 0),
    "fast_log": (np.log, span(0.5, 2), None, 2.0**-21.41),
    "fast_log2": (np.log2, span(0.5, 2), None, 2.0**-22),
    "fast_log10": (np.log10, span(0.5, 2), None, 2.0**-24),
    "fast_sin": (np.sin, span(-math.pi, math.pi), None, 2.0**-21.41),
    "fast_cos": (np.cos, span(-math.pi, math.pi), None, 2.0**-21.19),
    "fast_tan": (np.tan, span(-1, 1), None, 2.0**-18),
    "reciprocal": (lambda x: 1 / x, spread(-60, 60), 0, 0),
    "saturate": (lambda x: np.clip(x, 0, 1), span(-1, 2), 0, 0),
}


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", FAST)
def test_intrinsic(name, compiler):
    function, draw, units, absolute = FAST[name]
    x = draw(np.random.default_rng(5), COUNT).astype(np.float32)
    found, true = launch(compiler, f"f_{name}", x), function(x.astype(wide))
    if units is None:
        np.testing.assert_allclose(found.astype(wide), true, rtol=0, atol=absolute)
    else:
        check(name, found, true, units, x)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_directed_rounding(compiler):
    rng = np.random.default_rng(9)
    x, y = (spread(-20, 20)(rng, 500).astype(np.float32) for _ in range(2))
    out = device().zeros((500, 8))
    kernels("mathematics.cu", compiler)["rounding"][4, 128](500, device().array(x), device().array(y), out)
    total, product = x.astype(wide) + y, x.astype(wide) * y

    def neighbours(exact):
        near = exact.astype(np.float32)
        low = np.where(near.astype(wide) > exact, np.nextafter(near, np.float32(-np.inf)), near)
        high = np.where(near.astype(wide) < exact, np.nextafter(near, np.float32(np.inf)), near)
        return low, high

    low, high = neighbours(total)
    found = out.numpy()
    np.testing.assert_array_equal(found[:, 0], np.where(total < 0, high, low))
    np.testing.assert_array_equal(found[:, 1], high)
    np.testing.assert_array_equal(found[:, 2], neighbours(product)[0])
    np.testing.assert_array_equal(found[:, 3], x * y)
    np.testing.assert_array_equal(found[:, 4], (product + x).astype(np.float32))
    np.testing.assert_array_equal(found[:, 5], x / y)
    np.testing.assert_array_equal(found[:, 6], np.sqrt(np.abs(x)))
    np.testing.assert_array_equal(found[:, 7], x - y)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_pieces(compiler):
    rng = np.random.default_rng(11)
    x = np.concatenate([spread(-200, 200)(rng, 300), [0.0, -0.0, 5e-324, 1e308, 1.0, -0.5]])
    count, gpu = len(x), device()
    fraction, whole, part, scaled = (gpu.zeros(count, np.float64) for _ in range(4))
    exponent, kind = (gpu.zeros(count, np.int32) for _ in range(2))
    kernels("mathematics.cu", compiler)["pieces"][3, 128](
        count, gpu.array(x), fraction, exponent, whole, part, scaled, kind
    )
    mantissa, power = np.frexp(x)
    np.testing.assert_array_equal(fraction.numpy(), mantissa)
    np.testing.assert_array_equal(exponent.numpy(), power)
    np.testing.assert_array_equal(part.numpy(), np.modf(x)[0])
    np.testing.assert_array_equal(whole.numpy(), np.modf(x)[1])
    np.testing.assert_array_equal(scaled.numpy(), np.ldexp(x, np.arange(count) % 60 - 30))
    np.testing.assert_array_equal(kind.numpy(), np.where(np.signbit(x), 4, 0) + 8)
