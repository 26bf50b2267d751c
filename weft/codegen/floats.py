"""Floating point on values of 32 lanes: bit patterns enter and leave, as integers of the format's width.

Formats go by PTX's names. bf16 has no arithmetic here: only its conversions.
"""

from __future__ import annotations

from weft.codegen.integers import Integers
from weft.codegen.value import Value, mask_of

FLOAT_TYPE = {"f16": "half", "bf16": "bfloat", "f32": "float", "f64": "double"}
FLOAT_BITS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}


class Floats(Integers):
    """Arithmetic, comparison and conversion of f16, bf16, f32 and f64, rounded to nearest even."""

    def _float_op(self, op: str, fmt: str, *values: Value) -> Value:
        ty, bits = FLOAT_TYPE[fmt], FLOAT_BITS[fmt]
        return self.elementwise([(v, ty) for v in values], bits, ty, lambda n, T: f"{op} {T(ty)} " + ", ".join(n))

    def _float_call(self, name: str, fmt: str, *values: Value) -> Value:
        ty, bits = FLOAT_TYPE[fmt], FLOAT_BITS[fmt]

        def write(n, T):
            full = T(ty)
            suffix = fmt if full == ty else f"v{self.chunk}{fmt}"
            self.declare(f"declare {full} @llvm.{name}.{suffix}({', '.join([full] * len(n))})")
            return f"call {full} @llvm.{name}.{suffix}({', '.join(f'{full} {x}' for x in n)})"

        return self.elementwise([(v, ty) for v in values], bits, ty, write)

    def fadd(self, fmt: str, x: Value, y: Value) -> Value:
        return self._float_op("fadd", fmt, x, y)

    def fsub(self, fmt: str, x: Value, y: Value) -> Value:
        return self._float_op("fsub", fmt, x, y)

    def fmul(self, fmt: str, x: Value, y: Value) -> Value:
        return self._float_op("fmul", fmt, x, y)

    def fdiv(self, fmt: str, x: Value, y: Value) -> Value:
        return self._float_op("fdiv", fmt, x, y)

    def fma(self, fmt: str, x: Value, y: Value, z: Value) -> Value:
        return self._float_call("fma", fmt, x, y, z)

    def fsqrt(self, fmt: str, x: Value) -> Value:
        return self._float_call("sqrt", fmt, x)

    def fneg(self, fmt: str, x: Value) -> Value:
        bits = FLOAT_BITS[fmt]
        return self.xor(x, self.const(1 << (bits - 1), bits))

    def fabs(self, fmt: str, x: Value) -> Value:
        bits = FLOAT_BITS[fmt]
        return self.and_(x, self.const(mask_of(bits - 1), bits))

    def fcmp(self, condition: str, fmt: str, x: Value, y: Value) -> Value:
        ty = FLOAT_TYPE[fmt]
        return self.elementwise([(x, ty), (y, ty)], 1, "i1", lambda n, T: f"fcmp {condition} {T(ty)} {n[0]}, {n[1]}")

    def fround(self, fmt: str, x: Value, mode: str) -> Value:
        return self._float_call({"rn": "roundeven", "rz": "trunc", "rm": "floor", "rp": "ceil"}[mode], fmt, x)

    def fpext(self, x: Value, source: str, target: str) -> Value:
        if source == "bf16":
            wide = self.shl(self.zext(x, 32), self.const(16, 32))
            return wide if target == "f32" else self.fpext(wide, "f32", target)
        return self._float_cast("fpext", x, source, target)

    def fptrunc(self, x: Value, source: str, target: str) -> Value:
        if target == "bf16":
            return self._to_bf16(x, source)
        if (source, target) == ("f64", "f16"):
            return self._double_to_half(x)
        return self._float_cast("fptrunc", x, source, target)

    def _float_cast(self, op: str, x: Value, source: str, target: str) -> Value:
        a, b = FLOAT_TYPE[source], FLOAT_TYPE[target]
        return self.elementwise([(x, a)], FLOAT_BITS[target], b, lambda n, T: f"{op} {T(a)} {n[0]} to {T(b)}")

    def _odd_f32(self, x: Value) -> Value:
        """f64 to f32 rounded to odd, so that a second rounding to 16 bits is right."""
        near = self._float_cast("fptrunc", x, "f64", "f32")
        back = self._float_cast("fpext", near, "f32", "f64")
        inexact = self.fcmp("one", "f64", back, x)
        magnitude_grew = self.fcmp("ogt", "f64", self.fabs("f64", back), self.fabs("f64", x))
        toward_zero = self.select(magnitude_grew, self.sub(near, self.const(1, 32)), near)
        return self.select(inexact, self.or_(toward_zero, self.const(1, 32)), near)

    def _double_to_half(self, x: Value) -> Value:
        return self._float_cast("fptrunc", self._odd_f32(x), "f32", "f16")

    def _to_bf16(self, x: Value, source: str) -> Value:
        if source == "f64":
            x = self._odd_f32(x)
        elif source == "f16":
            x = self.fpext(x, "f16", "f32")
        lowest = self.and_(self.lshr(x, self.const(16, 32)), self.const(1, 32))
        rounded = self.lshr(self.add(self.add(x, lowest), self.const(0x7FFF, 32)), self.const(16, 32))
        nan = self.fcmp("uno", "f32", x, x)
        quiet = self.or_(self.lshr(x, self.const(16, 32)), self.const(0x40, 32))
        return self.trunc(self.select(nan, quiet, rounded), 16)

    def sitofp(self, x: Value, fmt: str) -> Value:
        return self._int_to_float("sitofp", x, fmt)

    def uitofp(self, x: Value, fmt: str) -> Value:
        return self._int_to_float("uitofp", x, fmt)

    def _int_to_float(self, op: str, x: Value, fmt: str) -> Value:
        ty, source = FLOAT_TYPE[fmt], f"i{x.bits}"
        return self.elementwise([(x, source)], FLOAT_BITS[fmt], ty, lambda n, T: f"{op} {T(source)} {n[0]} to {T(ty)}")

    def fptosi(self, fmt: str, x: Value, bits: int) -> Value:
        return self._float_to_int("fptosi", fmt, x, bits)

    def fptoui(self, fmt: str, x: Value, bits: int) -> Value:
        return self._float_to_int("fptoui", fmt, x, bits)

    def _float_to_int(self, name: str, fmt: str, x: Value, bits: int) -> Value:
        # LLVM takes llvm.fptosi.sat apart lane by lane; the plain conversion is a vector instruction, but undefined
        # outside the range, so what is outside is kept from it.
        ty, signed = FLOAT_TYPE[fmt], name == "fptosi"
        beyond = bits - signed
        sign, exponent = (1 << 31, (127 + beyond) << 23) if fmt == "f32" else (1 << 63, (1023 + beyond) << 52)
        width = FLOAT_BITS[fmt]
        zero, high = self.const(0, width), self.const(exponent, width)
        if signed:
            inside = self.fcmp("olt", fmt, self.fabs(fmt, x), high)
        else:
            inside = self.and_(self.fcmp("ogt", fmt, x, zero), self.fcmp("olt", fmt, x, high))
        kept = self.select(inside, x, zero)
        result = self.elementwise(
            [(kept, ty)], bits, f"i{bits}", lambda n, T: f"{name} {T(ty)} {n[0]} to {T(f'i{bits}')}"
        )
        result = self.select(self.fcmp("oge", fmt, x, high), self.const(mask_of(beyond), bits), result)
        if signed:
            low = self.const(exponent | sign, width)
            result = self.select(self.fcmp("ole", fmt, x, low), self.const(1 << beyond, bits), result)
        return result

    def ftz(self, x: Value) -> Value:
        """Subnormal f32 values become zero of the same sign."""
        magnitude = self.and_(x, self.const(0x7F800000, 32))
        sign = self.and_(x, self.const(0x80000000, 32))
        return self.select(self.icmp("eq", magnitude, self.const(0, 32)), sign, x)
