"""Integer functions beyond the operators: smallest and largest, bit counts, funnel shifts, high halves of products,
quotients. Values enter, a value leaves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from weft.codegen.integers import Integers, unsigned
from weft.codegen.value import Value, mask_of


class IntegerFunctions(Integers):
    """What needs an intrinsic, a wider type or several instructions."""

    def _intrinsic(self, name: str, bits: int, *values: Value, extra: str = "") -> Value:
        """An integer intrinsic @llvm.<name>.<type> on values of `bits` bits."""
        ty = f"i{bits}"

        def write(n, T):
            full = T(ty)
            suffix = ty if full == ty else f"v{self.chunk}{ty}"
            arguments = ", ".join(f"{full} {x}" for x in n) + extra
            types = ", ".join([full] * len(n)) + (", i1" if extra else "")
            self.declare(f"declare {full} @llvm.{name}.{suffix}({types})")
            return f"call {full} @llvm.{name}.{suffix}({arguments})"

        return self.elementwise([(v, ty) for v in values], bits, ty, write)

    def _minmax(self, name: str, function, x: Value, y: Value) -> Value:
        bits = x.bits
        if name[0] == "u":
            folded = self._fold(
                name, lambda a, b: function(unsigned(a, bits), unsigned(b, bits)).astype(np.int64), bits, x, y
            )
        else:
            folded = self._fold(name, function, bits, x, y)
        if folded is not None:
            return folded
        result = self._intrinsic(name, bits, x, y)
        if result.is_uniform and x.exact_signed and y.exact_signed:
            if name[0] == "s":
                pick = min if name == "smin" else max
                return self.scalar(result.base, bits, pick(x.low, y.low), pick(x.high, y.high))
            if name == "umin" and (x.low >= 0 or y.low >= 0):
                return self.scalar(result.base, bits, 0, min(v.high for v in (x, y) if v.low >= 0))
        return result

    def umin(self, x: Value, y: Value) -> Value:
        return self._minmax("umin", np.minimum, x, y)

    def umax(self, x: Value, y: Value) -> Value:
        return self._minmax("umax", np.maximum, x, y)

    def smin(self, x: Value, y: Value) -> Value:
        return self._minmax("smin", np.minimum, x, y)

    def smax(self, x: Value, y: Value) -> Value:
        return self._minmax("smax", np.maximum, x, y)

    def abs_(self, x: Value) -> Value:
        return self._intrinsic("abs", x.bits, x, extra=", i1 false")

    def popc(self, x: Value) -> Value:
        result = self._intrinsic("ctpop", x.bits, x)
        return self.scalar(result.base, x.bits, 0, x.bits) if result.is_uniform else result

    def ctlz(self, x: Value) -> Value:
        return self._intrinsic("ctlz", x.bits, x, extra=", i1 false")

    def cttz(self, x: Value) -> Value:
        return self._intrinsic("cttz", x.bits, x, extra=", i1 false")

    def brev(self, x: Value) -> Value:
        return self._intrinsic("bitreverse", x.bits, x)

    def fshl(self, hi: Value, lo: Value, n: Value) -> Value:
        return self._intrinsic("fshl", hi.bits, hi, lo, self.resize(n, hi.bits, False))

    def fshr(self, hi: Value, lo: Value, n: Value) -> Value:
        return self._intrinsic("fshr", hi.bits, hi, lo, self.resize(n, hi.bits, False))

    def mulhi_u(self, x: Value, y: Value) -> Value:
        return self._mulhi(x, y, "zext")

    def mulhi_s(self, x: Value, y: Value) -> Value:
        return self._mulhi(x, y, "sext")

    def _mulhi(self, x: Value, y: Value, extend: str) -> Value:
        bits = x.bits
        if bits <= 32:
            if extend == "zext":
                folded = self._fold(
                    "mulhi_u", _high_half(bits),
                    bits, x, y,
                )  # fmt: skip
            else:
                folded = self._fold("mulhi_s", lambda a, b: (a * b) >> bits, bits, x, y)
            if folded is not None:
                return folded
        signed = extend == "sext"
        if bits == 64 and not (x.is_uniform and y.is_uniform):
            return self._mulhi64(x, y, signed)
        double = 2 * bits
        a, b = ((self._plain_extend(v, double, extend)) for v in (x, y))
        product = self._binary("mul", a, b)
        shifted = self._shift_constant("lshr", product, bits)
        return self._plain_trunc(shifted, bits)

    def _plain_extend(self, x: Value, bits: int, op: str) -> Value:
        narrow = x.bits
        return self.elementwise(
            [(x, f"i{narrow}")], bits, f"i{bits}", lambda n, T: f"{op} {T(f'i{narrow}')} {n[0]} to {T(f'i{bits}')}"
        )

    def _plain_trunc(self, x: Value, bits: int) -> Value:
        wide = x.bits
        return self.elementwise(
            [(x, f"i{wide}")], bits, f"i{bits}", lambda n, T: f"trunc {T(f'i{wide}')} {n[0]} to {T(f'i{bits}')}"
        )

    def _mulhi64(self, x: Value, y: Value, signed: bool) -> Value:
        """High half of 64 x 64 from four 32-bit products: vectors have no wider multiply."""
        low = self.const(0xFFFFFFFF, 64)
        n32 = self.const(32, 64)
        xl, xh = self.and_(x, low), self.lshr(x, n32)
        yl, yh = self.and_(y, low), self.lshr(y, n32)
        ll = self._binary("mul", xl, yl)
        middle = self.add(self._binary("mul", xh, yl), self.lshr(ll, n32))
        cross = self.add(self._binary("mul", xl, yh), self.and_(middle, low))
        high = self.add(self.add(self._binary("mul", xh, yh), self.lshr(middle, n32)), self.lshr(cross, n32))
        if not signed:
            return high
        zero = self.const(0, 64)
        high = self.sub(high, self.select(self.icmp("slt", x, zero), y, zero))
        return self.sub(high, self.select(self.icmp("slt", y, zero), x, zero))

    def udiv(self, x: Value, y: Value) -> Value:
        return self._divide("udiv", x, y)

    def urem(self, x: Value, y: Value) -> Value:
        return self._divide("urem", x, y)

    def sdiv(self, x: Value, y: Value) -> Value:
        return self._divide("sdiv", x, y)

    def srem(self, x: Value, y: Value) -> Value:
        return self._divide("srem", x, y)

    def _divide(self, op: str, x: Value, y: Value) -> Value:
        """Division as the hardware does it: x/0 gives all ones (remainder x), INT_MIN / -1 gives INT_MIN, 0."""
        bits = x.bits
        quotient = op.endswith("div")
        signed = op[0] == "s"
        zero = self.icmp("eq", y, self.const(0, bits))
        if signed:
            minus_one = self.icmp("eq", y, self.const(-1, bits))
            safe = self.select(self.or_(zero, minus_one), self.const(1, bits), y)
        else:
            safe = self.select(zero, self.const(1, bits), y)
        c = y.constant
        if x.is_known and y.is_known and c not in (0, None) and not (signed and c == mask_of(bits)):
            function = _DIVIDE[op]
            if signed:
                folded = self._fold(op, function, bits, x, y)
            else:
                folded = self._fold(
                    op, lambda a, b: function(unsigned(a, bits), unsigned(b, bits)).astype(np.int64), bits, x, y
                )
            if folded is not None:
                return folded
        result = self._divide_fast(op, x, safe)
        if result.is_uniform and x.is_affine and x.low >= 0 and x.exact_signed and safe.is_uniform and safe.low > 0:
            high = x.high // safe.low if quotient else min(x.high, safe.high - 1)
            result = self.scalar(result.base, bits, 0, high)
        if signed:
            edge = self.neg(x) if quotient else self.const(0, bits)
            result = self.select(minus_one, edge, result)
        return self.select(zero, self.const(-1, bits) if quotient else x, result)

    def _divide_fast(self, op: str, x: Value, y: Value) -> Value:
        """32-bit and narrower lanes divide through f64, which is exact; 64-bit lanes one by one."""
        bits = x.bits
        if x.is_uniform and y.is_uniform or bits == 64 or y.constant is not None:
            return self._binary(op, x, y)
        signed = op[0] == "s"
        double = self._double_from(x, signed), self._double_from(y, signed)
        q = self.elementwise(
            [(double[0], "double"), (double[1], "double")],
            64,
            "double",
            lambda n, T: f"fdiv {T('double')} {n[0]}, {n[1]}",
        )
        cast = "fptosi" if signed else "fptoui"
        quotient = self.elementwise(
            [(q, "double")], bits, f"i{bits}", lambda n, T: f"{cast} {T('double')} {n[0]} to {T(f'i{bits}')}"
        )
        if op.endswith("div"):
            return quotient
        return self._binary("sub", x, self._binary("mul", quotient, y))

    def _double_from(self, x: Value, signed: bool) -> Value:
        op = "sitofp" if signed else "uitofp"
        return self.elementwise(
            [(x, f"i{x.bits}")], 64, "double", lambda n, T: f"{op} {T(f'i{x.bits}')} {n[0]} to {T('double')}"
        )


def _truncating_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _high_half(bits: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The upper `bits` bits of an unsigned product, for up to 32 bits."""
    return lambda a, b: ((unsigned(a, bits) * unsigned(b, bits)) >> np.uint64(bits)).astype(np.int64)


_DIVIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "udiv": np.floor_divide,
    "urem": np.remainder,
    "sdiv": _truncating_divide,
    "srem": lambda a, b: a - b * _truncating_divide(a, b),
}
