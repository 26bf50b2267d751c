"""`ScalarBuilder`: the Builder API of the rules, evaluated at once on NumPy arrays, for tests without code generation.

An entry's `emit(b, m, *sources)` is written against `weft.codegen.builder.Builder`. Given a `ScalarBuilder` instead,
the very same rule computes its result immediately, lane by lane, so that it can be checked against the entry's
`reference` without LLVM:

    from scalar_builder import ScalarBuilder
    b = ScalarBuilder(lanes=32)
    d = entry.emit(b, m, b.value([1, 2, ...], 32), b.value([3, 4, ...], 32))
    d.ints()                                  # list of Python ints, one per lane

What enters: `Lanes` (a width in bits and one unsigned integer per lane); what leaves: the same. Widths up to 64 bits
live in uint64 arrays, wider ones in arrays of Python ints. Any lane count works for value rules; the warp operations
(ballot, shuffle, reduce, match_any) are defined for any count too, with `active` as the list of executing lanes.
Every operation asserts the widths that the contract asks for, so a rule with a width error fails here and not in
LLVM. `b.counts` counts the operations by name: the price of a rule in vector operations.

Not here: memory, operand access, traps and control flow (they need a machine); raw rules that only read and write
operands can be run with `sources` and `destinations` set (see `read` and `write`).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections import Counter
from collections.abc import Sequence

import numpy as np

_LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
_LIBM.fma.restype = ctypes.c_double
_LIBM.fma.argtypes = (ctypes.c_double,) * 3

FLOAT_BITS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}
_DTYPES = {"f16": (np.uint16, np.float16), "f32": (np.uint32, np.float32), "f64": (np.uint64, np.float64)}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}


def _mask(bits: int) -> int:
    return (1 << bits) - 1


class Lanes:
    """One value per lane: `bits` wide, unsigned, in `data` (uint64 array, or object array above 64 bits)."""

    def __init__(self, data: np.ndarray, bits: int, constant: int | None = None):
        self.data = data
        self.bits = bits
        self.constant = constant  # the value of all lanes, where the builder would know it when compiling

    def ints(self) -> list[int]:
        """The lanes as Python ints."""
        return [int(value) for value in self.data]

    def __repr__(self) -> str:
        return f"Lanes({self.bits}, [{', '.join(hex(value) for value in self.ints()[:4])}, ...])"

    def __bool__(self) -> bool:
        raise TypeError("a rule must not branch on a run-time value")


class ScalarBuilder:
    """The Builder API on arrays of `lanes` values. `active`: booleans, all lanes by default."""

    def __init__(self, lanes: int = 32, active: Sequence[bool] | None = None, specials: dict | None = None):
        self.lanes = lanes
        self.active = np.ones(lanes, dtype=bool) if active is None else np.array(active, dtype=bool)
        self.specials = specials or {}
        self.sources: dict = {}
        self.destinations: dict = {}
        self.counts: Counter[str] = Counter()

    # ------------------------------------------------------------ making and checking values
    def value(self, values: Sequence[int], bits: int) -> Lanes:
        """Lanes from Python ints (taken modulo 2**bits)."""
        masked = [int(value) & _mask(bits) for value in values]
        assert len(masked) == self.lanes, (len(masked), self.lanes)
        return Lanes(np.array(masked, dtype=np.uint64 if bits <= 64 else object), bits)

    def _make(self, name: str, data: np.ndarray, bits: int) -> Lanes:
        self.counts[name] += 1
        if bits <= 64:
            data = data.astype(np.uint64)
            if bits < 64:
                data = data & np.uint64(_mask(bits))
        elif data.dtype != object:
            data = np.array([int(value) for value in data], dtype=object)
        else:
            data = np.array([int(value) & _mask(bits) for value in data], dtype=object)
        return Lanes(data, bits)

    def _each(self, name: str, bits: int, function, *sources: Lanes) -> Lanes:
        values = [function(*(int(part) for part in row)) & _mask(bits) for row in zip(*(s.data for s in sources))]
        return self._make(name, np.array(values, dtype=np.uint64 if bits <= 64 else object), bits)

    @staticmethod
    def _same(*sources: Lanes) -> int:
        widths = {source.bits for source in sources}
        assert len(widths) == 1, f"operands of different widths: {[source.bits for source in sources]}"
        return widths.pop()

    @staticmethod
    def _signed(x: Lanes) -> np.ndarray:
        if x.bits in _SIGNED:
            return x.data.astype(f"u{x.bits // 8}").view(_SIGNED[x.bits]).astype(np.int64)
        shift = np.int64(64 - x.bits)
        return (x.data.view(np.int64) << shift) >> shift

    @staticmethod
    def _float(fmt: str, x: Lanes) -> np.ndarray:
        assert x.bits == FLOAT_BITS[fmt], f"{fmt} needs {FLOAT_BITS[fmt]} bits, found {x.bits}"
        if fmt == "bf16":
            return (x.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        unsigned, real = _DTYPES[fmt]
        return x.data.astype(unsigned).view(real)

    def _from_float(self, name: str, fmt: str, x: np.ndarray) -> Lanes:
        unsigned, real = _DTYPES[fmt]
        return self._make(name, np.ascontiguousarray(x.astype(real)).view(unsigned), FLOAT_BITS[fmt])

    def const(self, value: int, bits: int) -> Lanes:
        """The same constant in all lanes."""
        made = self.value([value] * self.lanes, bits)
        made.constant = int(value) & _mask(bits)
        return made

    # ------------------------------------------------------------ integers
    def add(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("add", x.data + y.data, self._same(x, y))

    def sub(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("sub", x.data - y.data, self._same(x, y))

    def mul(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("mul", x.data * y.data, self._same(x, y))

    def and_(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("and_", x.data & y.data, self._same(x, y))

    def or_(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("or_", x.data | y.data, self._same(x, y))

    def xor(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("xor", x.data ^ y.data, self._same(x, y))

    def not_(self, x: Lanes) -> Lanes:
        if x.bits > 64:
            return self._each("not_", x.bits, lambda value: ~value, x)
        return self._make("not_", ~x.data, x.bits)

    def neg(self, x: Lanes) -> Lanes:
        return self._make("neg", np.zeros_like(x.data) - x.data, x.bits)

    def _shift(self, name: str, x: Lanes, n: Lanes, function) -> Lanes:
        assert n.bits <= 64
        if x.bits > 64:
            return self._each(name, x.bits, lambda value, count: function(value, min(count, x.bits)), x, n)
        count = np.minimum(n.data, np.uint64(63))
        if name == "ashr":
            return self._make(name, (self._signed(x) >> count.astype(np.int64)).view(np.uint64), x.bits)
        shifted = x.data << count if name == "shl" else x.data >> count
        return self._make(name, np.where(n.data >= x.bits, np.uint64(0), shifted), x.bits)

    def shl(self, x: Lanes, n: Lanes) -> Lanes:
        return self._shift("shl", x, n, lambda value, count: value << count)

    def lshr(self, x: Lanes, n: Lanes) -> Lanes:
        return self._shift("lshr", x, n, lambda value, count: value >> count)

    def ashr(self, x: Lanes, n: Lanes) -> Lanes:
        sign = 1 << (x.bits - 1)
        return self._shift("ashr", x, n, lambda value, count: ((value ^ sign) - sign) >> count)

    def mulhi_u(self, x: Lanes, y: Lanes) -> Lanes:
        bits = self._same(x, y)
        return self._each("mulhi_u", bits, lambda a, c: (a * c) >> bits, x, y)

    def mulhi_s(self, x: Lanes, y: Lanes) -> Lanes:
        bits = self._same(x, y)
        sign = 1 << (bits - 1)
        return self._each("mulhi_s", bits, lambda a, c: (((a ^ sign) - sign) * ((c ^ sign) - sign)) >> bits, x, y)

    def udiv(self, x: Lanes, y: Lanes) -> Lanes:
        return self._each("udiv", self._same(x, y), lambda a, c: a // c if c else -1, x, y)

    def urem(self, x: Lanes, y: Lanes) -> Lanes:
        return self._each("urem", self._same(x, y), lambda a, c: a % c if c else a, x, y)

    def _signed_division(self, name: str, x: Lanes, y: Lanes, remainder: bool) -> Lanes:
        bits = self._same(x, y)
        sign = 1 << (bits - 1)

        def divide(a: int, c: int) -> int:
            a, c = (a ^ sign) - sign, (c ^ sign) - sign
            if c == 0:
                return a if remainder else -1
            quotient = abs(a) // abs(c)
            quotient = -quotient if (a < 0) != (c < 0) else quotient
            return a - quotient * c if remainder else quotient

        return self._each(name, bits, divide, x, y)

    def sdiv(self, x: Lanes, y: Lanes) -> Lanes:
        return self._signed_division("sdiv", x, y, False)

    def srem(self, x: Lanes, y: Lanes) -> Lanes:
        return self._signed_division("srem", x, y, True)

    def umin(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("umin", np.minimum(x.data, y.data), self._same(x, y))

    def umax(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("umax", np.maximum(x.data, y.data), self._same(x, y))

    def smin(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("smin", np.minimum(self._signed(x), self._signed(y)).view(np.uint64), self._same(x, y))

    def smax(self, x: Lanes, y: Lanes) -> Lanes:
        return self._make("smax", np.maximum(self._signed(x), self._signed(y)).view(np.uint64), self._same(x, y))

    def abs_(self, x: Lanes) -> Lanes:
        return self._make("abs_", np.abs(self._signed(x)).view(np.uint64), x.bits)

    def icmp(self, cond: str, x: Lanes, y: Lanes) -> Lanes:
        bits = self._same(x, y)
        signed = cond[0] == "s" and bits <= 64
        left, right = (self._signed(x), self._signed(y)) if signed else (x.data, y.data)
        compare = {
            "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
            "ge": np.greater_equal,
        }[cond if cond in ("eq", "ne") else cond[1:]]  # fmt: skip
        return self._make("icmp", compare(left, right).astype(np.uint64), 1)

    def select(self, p: Lanes, x: Lanes, y: Lanes) -> Lanes:
        assert p.bits == 1, f"select needs a 1-bit condition, found {p.bits}"
        return self._make("select", np.where(p.data.astype(bool), x.data, y.data), self._same(x, y))

    def zext(self, x: Lanes, bits: int) -> Lanes:
        assert bits >= x.bits, (x.bits, bits)
        return self._make("zext", x.data, bits)

    def sext(self, x: Lanes, bits: int) -> Lanes:
        assert bits >= x.bits, (x.bits, bits)
        sign = 1 << (x.bits - 1)
        return self._each("sext", bits, lambda value: (value ^ sign) - sign, x)

    def trunc(self, x: Lanes, bits: int) -> Lanes:
        assert bits <= x.bits, (x.bits, bits)
        if x.bits > 64:
            return self._each("trunc", bits, lambda value: value, x)
        return self._make("trunc", x.data, bits)

    def resize(self, x: Lanes, bits: int, signed: bool) -> Lanes:
        if bits == x.bits:
            return x
        if bits < x.bits:
            return self.trunc(x, bits)
        return self.sext(x, bits) if signed else self.zext(x, bits)

    def popc(self, x: Lanes) -> Lanes:
        return self._each("popc", x.bits, lambda value: value.bit_count(), x)

    def ctlz(self, x: Lanes) -> Lanes:
        return self._each("ctlz", x.bits, lambda value: x.bits - value.bit_length(), x)

    def cttz(self, x: Lanes) -> Lanes:
        return self._each("cttz", x.bits, lambda value: (value & -value).bit_length() - 1 if value else x.bits, x)

    def brev(self, x: Lanes) -> Lanes:
        return self._each("brev", x.bits, lambda value: int(f"{value:0{x.bits}b}"[::-1], 2), x)

    def fshl(self, hi: Lanes, lo: Lanes, n: Lanes) -> Lanes:
        bits = self._same(hi, lo)
        return self._each("fshl", bits, lambda h, w, c: ((h << bits | w) << (c % bits)) >> bits, hi, lo, n)

    def fshr(self, hi: Lanes, lo: Lanes, n: Lanes) -> Lanes:
        bits = self._same(hi, lo)
        return self._each("fshr", bits, lambda h, w, c: (h << bits | w) >> (c % bits), hi, lo, n)

    def pack(self, parts: Sequence[Lanes]) -> Lanes:
        bits = self._same(*parts)

        def join(*values: int) -> int:
            return sum(value << (bits * index) for index, value in enumerate(values))

        return self._each("pack", bits * len(parts), join, *parts)

    def unpack(self, x: Lanes, parts: int) -> tuple[Lanes, ...]:
        assert x.bits % parts == 0, (x.bits, parts)
        bits = x.bits // parts
        return tuple(self.extract(x, index * bits, bits) for index in range(parts))

    def extract(self, x: Lanes, low_bit: int, bits: int) -> Lanes:
        assert low_bit + bits <= x.bits, (low_bit, bits, x.bits)
        if x.bits > 64:
            return self._each("extract", bits, lambda value: value >> low_bit, x)
        return self._make("extract", x.data >> np.uint64(low_bit), bits)

    # ------------------------------------------------------------ floating point
    def _arithmetic(self, name: str, fmt: str, function, *sources: Lanes) -> Lanes:
        assert fmt in ("f32", "f64"), f"{name} has no {fmt} form"
        with np.errstate(all="ignore"):
            return self._from_float(name, fmt, function(*(self._float(fmt, source) for source in sources)))

    def fadd(self, fmt: str, x: Lanes, y: Lanes) -> Lanes:
        return self._arithmetic("fadd", fmt, np.add, x, y)

    def fsub(self, fmt: str, x: Lanes, y: Lanes) -> Lanes:
        return self._arithmetic("fsub", fmt, np.subtract, x, y)

    def fmul(self, fmt: str, x: Lanes, y: Lanes) -> Lanes:
        return self._arithmetic("fmul", fmt, np.multiply, x, y)

    def fdiv(self, fmt: str, x: Lanes, y: Lanes) -> Lanes:
        return self._arithmetic("fdiv", fmt, np.divide, x, y)

    def fsqrt(self, fmt: str, x: Lanes) -> Lanes:
        return self._arithmetic("fsqrt", fmt, np.sqrt, x)

    def fma(self, fmt: str, x: Lanes, y: Lanes, z: Lanes) -> Lanes:
        return self._arithmetic("fma", fmt, _fma_f32 if fmt == "f32" else _fma_f64, x, y, z)

    def fneg(self, fmt: str, x: Lanes) -> Lanes:
        assert x.bits == FLOAT_BITS[fmt], (fmt, x.bits)
        return self._make("fneg", x.data ^ np.uint64(1 << (x.bits - 1)), x.bits)

    def fabs(self, fmt: str, x: Lanes) -> Lanes:
        assert x.bits == FLOAT_BITS[fmt], (fmt, x.bits)
        return self._make("fabs", x.data & np.uint64(_mask(x.bits - 1)), x.bits)

    def fcmp(self, cond: str, fmt: str, x: Lanes, y: Lanes) -> Lanes:
        assert fmt in ("f32", "f64"), f"fcmp has no {fmt} form"
        left, right = self._float(fmt, x), self._float(fmt, y)
        unordered = np.isnan(left) | np.isnan(right)
        if cond in ("ord", "uno"):
            result = unordered if cond == "uno" else ~unordered
        else:
            compare = {
                "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
                "ge": np.greater_equal,
            }[cond[1:]]  # fmt: skip
            with np.errstate(invalid="ignore"):
                result = compare(left, right)
            result = (result & ~unordered) if cond[0] == "o" else (result | unordered)
        return self._make("fcmp", result.astype(np.uint64), 1)

    def fround(self, fmt: str, x: Lanes, mode: str) -> Lanes:
        return self._arithmetic("fround", fmt, {"rn": np.rint, "rz": np.trunc, "rm": np.floor, "rp": np.ceil}[mode], x)

    def fpext(self, x: Lanes, source: str, target: str) -> Lanes:
        assert FLOAT_BITS[target] > FLOAT_BITS[source], (source, target)
        with np.errstate(invalid="ignore"):
            return self._from_float("fpext", target, self._float(source, x))

    def fptrunc(self, x: Lanes, source: str, target: str) -> Lanes:
        assert FLOAT_BITS[target] < FLOAT_BITS[source], (source, target)
        with np.errstate(all="ignore"):
            if target != "bf16":
                return self._from_float("fptrunc", target, self._float(source, x))
            wide = self._float(source, x)
            bits = wide.view(np.uint32) if source == "f32" else _round_to_odd_f32(wide).view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
            return self._make("fptrunc", np.where(np.isnan(wide), quiet, rounded), 16)

    def sitofp(self, x: Lanes, fmt: str) -> Lanes:
        assert fmt in ("f32", "f64"), fmt
        return self._from_float("sitofp", fmt, self._signed(x))

    def uitofp(self, x: Lanes, fmt: str) -> Lanes:
        assert fmt in ("f32", "f64"), fmt
        return self._from_float("uitofp", fmt, x.data)

    def _to_integer(self, name: str, fmt: str, x: Lanes, low: int, high: int, bits: int) -> Lanes:
        def convert(value: float) -> int:
            if value != value:
                return 0
            if value in (float("inf"), float("-inf")):
                return high if value > 0 else low
            return max(low, min(high, int(value)))

        values = [convert(float(value)) & _mask(bits) for value in self._float(fmt, x)]
        return self._make(name, np.array(values, dtype=np.uint64), bits)

    def fptosi(self, fmt: str, x: Lanes, bits: int) -> Lanes:
        assert fmt in ("f32", "f64"), fmt
        return self._to_integer("fptosi", fmt, x, -(1 << (bits - 1)), _mask(bits - 1), bits)

    def fptoui(self, fmt: str, x: Lanes, bits: int) -> Lanes:
        assert fmt in ("f32", "f64"), fmt
        return self._to_integer("fptoui", fmt, x, 0, _mask(bits), bits)

    def ftz(self, x: Lanes) -> Lanes:
        assert x.bits == 32, x.bits
        flushed = x.data & np.uint64(0x80000000)
        return self._make("ftz", np.where((x.data & np.uint64(0x7F800000)) == 0, flushed, x.data), 32)

    # ------------------------------------------------------------ the warp
    def lane(self) -> Lanes:
        return Lanes(np.arange(self.lanes, dtype=np.uint64), 32)

    def active_mask(self) -> Lanes:
        return self.const(sum(1 << lane for lane in range(self.lanes) if self.active[lane]), 32)

    def ballot(self, p: Lanes) -> Lanes:
        assert p.bits == 1, p.bits
        return self.const(sum(1 << k for k in range(self.lanes) if self.active[k] and p.data[k]), 32)

    def shuffle(self, x: Lanes, lane: Lanes) -> Lanes:
        return self._make("shuffle", x.data[(lane.data % np.uint64(self.lanes)).astype(np.int64)], x.bits)

    def reduce(self, op: str, x: Lanes, mask: Lanes) -> Lanes:
        chosen = [k for k in range(self.lanes) if int(mask.data[0]) >> k & 1]
        assert chosen, "reduce over no lanes"
        result = Lanes(x.data[chosen[:1]], x.bits)
        function = getattr(self, {"and": "and_", "or": "or_"}.get(op, op))
        for lane in chosen[1:]:
            result = function(result, Lanes(x.data[lane : lane + 1], x.bits))
        return self.const(int(result.data[0]), x.bits)

    def match_any(self, x: Lanes) -> Lanes:
        values = x.ints()
        masks = [
            sum(1 << k for k in range(self.lanes) if self.active[k] and values[k] == values[lane])
            for lane in range(self.lanes)
        ]
        return self.value(masks, 32)

    def is_uniform(self, x: Lanes) -> bool:
        return False

    def special(self, name: str, bits: int) -> Lanes:
        value = self.specials[name]
        return self.const(value, bits) if isinstance(value, int) else self.value(value, bits)

    # ------------------------------------------------------------ operands of raw rules
    def read(self, operand, bits: int, type=None) -> Lanes:
        """The Lanes filed under the operand in `sources`, cut or widened as its type says."""
        signed = getattr(type, "kind", "") == "s"
        return self.resize(self.sources[operand], bits, signed)

    def write(self, operand, value: Lanes, bits: int) -> None:
        """Files the value under the operand in `destinations`."""
        assert value.bits == bits, (value.bits, bits)
        self.destinations[operand] = value


def _fma_f64(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return np.array([_LIBM.fma(a, c, e) for a, c, e in zip(x.tolist(), y.tolist(), z.tolist())], dtype=np.float64)


def _fma_f32(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    # The product is exact in f64; the sum is rounded to odd there, which makes the second rounding innocuous.
    product = x.astype(np.float64) * y.astype(np.float64)
    addend = z.astype(np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    return _odd(total, error).astype(np.float32)


def _odd(value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """`value` is the exact result minus `error`, rounded to nearest: the same result rounded to odd."""
    bits = value.view(np.int64)
    away = np.signbit(value) != np.signbit(error)
    inexact = np.isfinite(value) & np.isfinite(error) & (error != 0)
    return np.where(inexact, (bits - away.astype(np.int64)) | 1, bits).view(np.float64)


def _round_to_odd_f32(value: np.ndarray) -> np.ndarray:
    narrow = value.astype(np.float32)
    back = narrow.astype(np.float64)
    bits = narrow.view(np.int32)
    inexact = ~np.isnan(value) & (back != value)
    away = (np.abs(back) > np.abs(value)).astype(np.int32)
    return np.where(inexact, (bits - away) | 1, bits).view(np.float32)
