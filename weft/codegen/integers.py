"""Integer arithmetic on values of 32 lanes: sums, products, bits, shifts, widths, comparisons.

Values enter, a value leaves: a known one where all operands are, an affine one where that is exact, else instructions.
"""

from __future__ import annotations

import numpy as np

from weft.codegen.value import (
    WARP_LANES,
    Table,
    Value,
    Wide,
    full_range,
    mask_of,
    to_signed,
    trailing_zeros,
)
from weft.codegen.vectors import Vectors, wrap

_SIGNED_CONDITIONS = {"slt", "sle", "sgt", "sge"}
_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "slt": np.less, "sle": np.less_equal, "sgt": np.greater,
    "sge": np.greater_equal, "ult": np.less, "ule": np.less_equal, "ugt": np.greater, "uge": np.greater_equal,
}  # fmt: skip


class Integers(Vectors):
    """The operators of integers and predicates. Values keep the bits and ranges that are known of them."""

    def add(self, x: Value, y: Value) -> Value:
        assert x.bits == y.bits, ("add", x.bits, y.bits)
        if x.wide is not None or y.wide is not None:
            return self._add_wide(x, y)
        if x.is_varying or y.is_varying:
            if y.constant == 0:
                return x
            if x.constant == 0:
                return y
            return self._binary("add", x, y)
        bits = x.bits
        if x.base is None:
            base, lo, hi, nz = y.base, y.lo, y.hi, y.nz
        elif y.base is None:
            base, lo, hi, nz = x.base, x.lo, x.hi, x.nz
        else:
            base = self.t(f"add i{bits} {x.base}, {y.base}")
            lo, hi = x.lo + y.lo, x.hi + y.hi
            zeros = min(trailing_zeros(x.nz, bits), trailing_zeros(y.nz, bits))
            nz = mask_of(bits) & ~mask_of(zeros)
        return self._affine(base, x.offset + y.offset, self._add_tables(x.table, y.table), bits, lo, hi, nz)

    def _add_tables(self, a: Table | None, b: Table | None) -> Table | None:
        if a is None or b is None:
            return a or b
        return self.pool.apply("add", lambda p, q: p + q, a, b)

    def _add_wide(self, x: Value, y: Value) -> Value:
        if x.wide is not None and y.wide is not None or x.is_varying or y.is_varying:
            return self._binary("add", x, y)
        if y.wide is not None:
            x, y = y, x
        rest = Value(64)
        rest.base, rest.offset, rest.table = x.base, x.offset, x.table
        rest.lo, rest.hi = full_range(64)
        rest.nz = mask_of(64)
        total = self.add(rest, y)
        v = Value(64)
        v.base, v.offset, v.table, v.wide = total.base, total.offset, total.table, x.wide
        return v

    def neg(self, x: Value) -> Value:
        return self.sub(self.const(0, x.bits), x)

    def sub(self, x: Value, y: Value) -> Value:
        assert x.bits == y.bits, ("sub", x.bits, y.bits)
        if not (x.is_affine and y.is_affine):
            if y.is_known and y.table is None:
                return self.add(x, self.const(-y.offset, y.bits))
            return self._binary("sub", x, y)
        bits = x.bits
        if y.base is None:
            base, lo, hi, nz = x.base, x.lo, x.hi, x.nz
        else:
            base = self.t(f"sub i{bits} {x.base if x.base is not None else 0}, {y.base}")
            lo, hi = x.lo - y.hi, x.hi - y.lo
            zeros = min(trailing_zeros(x.nz if x.base else 0, bits), trailing_zeros(y.nz, bits))
            nz = mask_of(bits) & ~mask_of(zeros)
        table = x.table
        if y.table is not None:
            negated = self.pool.apply("neg", lambda a: -a, y.table)
            table = self._add_tables(x.table, negated)
        return self._affine(base, x.offset - y.offset, table, bits, lo, hi, nz)

    def mul(self, x: Value, y: Value) -> Value:
        assert x.bits == y.bits, ("mul", x.bits, y.bits)
        bits = x.bits
        if x.constant is not None:
            x, y = y, x
        c = y.constant
        if c is not None:
            return self._mul_constant(x, to_signed(c, bits))
        folded = self._fold("mul", lambda a, b: a * b, bits, x, y) if bits <= 32 else None
        if folded is not None:
            return folded
        if x.is_uniform and y.is_uniform:
            name = self.t(f"mul i{bits} {self.uval(x)}, {self.uval(y)}")
            corners = [x.low * y.low, x.low * y.high, x.high * y.low, x.high * y.high]
            zeros = trailing_zeros(x.known_nz, bits) + trailing_zeros(y.known_nz, bits)
            return self.scalar(name, bits, min(corners), max(corners), mask_of(bits) & ~mask_of(min(bits, zeros)))
        return self._binary("mul", x, y)

    def _mul_constant(self, x: Value, c: int) -> Value:
        bits = x.bits
        if c == 1:
            return x
        if c == 0:
            return self.const(0, bits)
        if x.wide is not None:
            w = x.wide
            scale = w.scale * c
            if abs(scale) < 1 << 31 and (x.table is None or abs(c) < 1 << 20):
                rest = Value(64)
                rest.base, rest.offset, rest.table = x.base, x.offset, x.table
                rest.lo, rest.hi = full_range(64)
                rest.nz = mask_of(64)
                scaled = self._mul_constant(rest, c)
                v = Value(64)
                v.base, v.offset, v.table = scaled.base, scaled.offset, scaled.table
                v.wide = Wide(w.base, w.table, scale, w.signed)
                return v
        if not x.is_affine:
            return self._binary("mul", x, self.const(c, bits))
        base, nz, lo, hi = x.base, 0, 0, 0
        if base is not None:
            base = self.t(f"mul i{bits} {base}, {c}")
            lo, hi = sorted((x.lo * c, x.hi * c))
            zeros = trailing_zeros(x.nz, bits) + trailing_zeros(c & mask_of(bits), bits)
            nz = mask_of(bits) & ~mask_of(min(bits, zeros))
        table = x.table
        if table is not None:
            biggest = max(abs(table.low), abs(table.high)) * abs(c)
            if biggest >= 1 << 62:
                return self._binary("mul", x, self.const(c, bits))
            table = self.pool.apply("mul", lambda a, b: a * b, table, c)
        return self._affine(base, x.offset * c, table, bits, lo, hi, nz)

    def _bits_disjoint(self, x: Value, y: Value) -> bool:
        return x.known_nz & y.known_nz == 0

    def and_(self, x: Value, y: Value) -> Value:
        bits = x.bits
        folded = self._fold("and", np.bitwise_and, bits, x, y)
        if folded is not None:
            return folded
        if x.constant is not None:
            x, y = y, x
        c = y.constant
        if c is not None:
            if c == 0:
                return self.const(0, bits)
            if c == mask_of(bits) or (bits > 1 and not x.is_varying and x.known_nz & ~c == 0):
                return x
            found = self._and_constant(x, c)
            if found is not None:
                return found
        if x.is_uniform and y.is_uniform:
            name = self.t(f"and i{bits} {self.uval(x)}, {self.uval(y)}")
            return self.scalar(name, bits, nz=x.known_nz & y.known_nz)
        result = self._binary("and", x, y)
        if c is not None and not self.dry:
            self.masked.update((name, c) for name in result.vec)
        return result

    def _and_constant(self, x: Value, c: int) -> Value | None:
        """base + t masked by c, where the known part t and the base do not carry into each other."""
        bits = x.bits
        if bits == 1 or not x.is_affine or x.base is None or not x.exact_unsigned:
            return None
        rest = self._rest(x)
        if rest is None or rest.low < 0:
            return None
        rest_bits = mask_of(max(1, rest.high.bit_length()))
        if x.nz & rest_bits == 0:
            masked = self.pool.apply("and", np.bitwise_and, rest, to_signed(c, 64))
            keep = x.nz & c
            base = self.t(f"and i{bits} {x.base}, {to_signed(c, bits)}") if keep else None
            return self._affine(base, 0, masked, bits, 0, keep, keep)
        low_bits = trailing_zeros(x.nz, bits)
        if c <= mask_of(low_bits):
            masked = self.pool.apply("and", np.bitwise_and, rest, c)
            return self._affine(None, 0, masked, bits, 0, 0, 0)
        return None

    def _rest(self, x: Value) -> Table | None:
        """The known part of an affine value (offset and table) as one table."""
        if x.table is None:
            return self.pool.intern(np.full((self.warps, WARP_LANES), x.offset, np.int64))
        return self.pool.apply("add", lambda a, b: a + b, x.table, x.offset)

    def or_(self, x: Value, y: Value) -> Value:
        bits = x.bits
        folded = self._fold("or", np.bitwise_or, bits, x, y)
        if folded is not None:
            return folded
        if x.constant == 0:
            return y
        if y.constant == 0:
            return x
        if bits > 1 and x.is_affine and y.is_affine and self._bits_disjoint(x, y):
            return self.add(x, y)
        if x.is_uniform and y.is_uniform:
            name = self.t(f"or i{bits} {self.uval(x)}, {self.uval(y)}")
            return self.scalar(name, bits, nz=x.known_nz | y.known_nz)
        return self._hide_bit_select(x, y, self._binary("or", x, y))

    def _hide_bit_select(self, x: Value, y: Value, result: Value) -> Value:
        """(a & C) | (b & ~C), kept from being merged with a masked blend behind it: LLVM 22 makes a vpternlog with a
        broadcast constant of the two and then takes `b ? C : a` for the bits. The empty assembly costs nothing."""
        n, bits = self.chunk, result.bits
        if self.dry or n != 16 or bits not in (32, 64) or x.vec is None or y.vec is None:
            return result
        both = zip(x.vec, y.vec)
        if not any(self.masked.get(a, 0) ^ self.masked.get(b, 0) == mask_of(bits) for a, b in both):
            return result
        hidden = []
        for whole in result.vec:
            lanes = 512 // bits
            parts = [whole]
            if lanes < n:
                parts = [self.shuffle_constant(whole, None, f"i{bits}", n, range(at, at + lanes)) for at in (0, lanes)]
            type_ = f"<{lanes} x i{bits}>"
            hidden.append(self._join([self.t(f'call {type_} asm "", "=v,0"({type_} {part})') for part in parts], bits))
        return self.varying(hidden, bits)

    def _join(self, parts: list[str], bits: int) -> str:
        """One or two vectors as one."""
        if len(parts) == 1:
            return parts[0]
        lanes = 512 // bits
        index = ", ".join(f"i32 {i}" for i in range(2 * lanes))
        type_ = f"<{lanes} x i{bits}>"
        return self.t(f"shufflevector {type_} {parts[0]}, {type_} {parts[1]}, <{2 * lanes} x i32> <{index}>")

    def xor(self, x: Value, y: Value) -> Value:
        bits = x.bits
        folded = self._fold("xor", np.bitwise_xor, bits, x, y)
        if folded is not None:
            return folded
        if x.constant == 0:
            return y
        if y.constant == 0:
            return x
        if bits > 1 and x.is_affine and y.is_affine and self._bits_disjoint(x, y):
            return self.add(x, y)
        if x.is_uniform and y.is_uniform:
            name = self.t(f"xor i{bits} {self.uval(x)}, {self.uval(y)}")
            return self.scalar(name, bits, nz=x.known_nz | y.known_nz)
        return self._binary("xor", x, y)

    def not_(self, x: Value) -> Value:
        return self.xor(x, self.const(mask_of(x.bits), x.bits))

    def shl(self, x: Value, n: Value) -> Value:
        bits = x.bits
        c = n.constant
        if c is not None:
            if c >= bits:
                return self.const(0, bits)
            return self._mul_constant(x, 1 << c) if not x.is_varying else self._shift_constant("shl", x, c)
        return self._shift("shl", x, n)

    def lshr(self, x: Value, n: Value) -> Value:
        return self._shift_right("lshr", x, n)

    def ashr(self, x: Value, n: Value) -> Value:
        return self._shift_right("ashr", x, n)

    def _shift_right(self, op: str, x: Value, n: Value) -> Value:
        bits = x.bits
        c = n.constant
        if c is None:
            return self._shift(op, x, n)
        if c >= bits:
            if op == "lshr":
                return self.const(0, bits)
            c = bits - 1
        if c == 0:
            return x
        if op == "ashr":
            folded = self._fold(f"ashr{c}", lambda a: a >> c, bits, x)
        else:
            folded = self._fold(f"lshr{c}", lambda a: (unsigned(a, bits) >> np.uint64(c)).astype(np.int64), bits, x)
        if folded is not None:
            return folded
        exact = x.is_affine and (x.exact_unsigned if op == "lshr" else x.exact_signed)
        if exact and x.table is not None and trailing_zeros(x.nz, bits) >= c and (op == "ashr" or x.lo >= 0):
            rest = self.pool.apply(f"shift{c}", lambda a: a >> c, self._rest(x))
            base = self.t(f"{op} i{bits} {x.base}, {c}")
            return self._affine(base, 0, rest, bits, x.lo >> c, x.hi >> c, (x.nz >> c) if x.lo >= 0 else mask_of(bits))
        if exact and x.table is not None and x.lo >= 0:
            rest = self._rest(x)
            if rest.low >= 0 and x.nz & mask_of(max(1, rest.high.bit_length())) == 0:
                shifted = self.pool.apply(f"shift{c}", lambda a: a >> c, rest)
                base = self.t(f"lshr i{bits} {x.base}, {c}") if x.nz >> c else None
                return self._affine(base, 0, shifted, bits, x.lo >> c, x.hi >> c, x.nz >> c)
        if x.is_uniform:
            name = self.t(f"{op} i{bits} {self.uval(x)}, {c}")
            if op == "lshr":
                return self.scalar(name, bits, nz=x.known_nz >> c)
            return self.scalar(name, bits, x.low >> c, x.high >> c)
        return self._shift_constant(op, x, c)

    def _shift_constant(self, op: str, x: Value, c: int) -> Value:
        ty = f"i{x.bits}"
        amount = self.const(c, x.bits)
        return self.elementwise([(x, ty), (amount, ty)], x.bits, ty, lambda n, T: f"{op} {T(ty)} {n[0]}, {n[1]}")

    def _shift(self, op: str, x: Value, n: Value) -> Value:
        """A shift by an amount that is not known: amounts of the width and above clamp, as PTX says."""
        bits = x.bits
        over = self.icmp("uge", n, self.const(bits, n.bits))
        amount = self.resize(n, bits, False) if n.bits != bits else n
        if op == "ashr":
            amount = self.select(over, self.const(bits - 1, bits), amount)
            return self._binary("ashr", x, amount)
        safe = self.and_(amount, self.const(bits - 1, bits))
        return self.select(over, self.const(0, bits), self._binary(op, x, safe))

    def resize(self, x: Value, bits: int, signed: bool) -> Value:
        if bits == x.bits:
            return x
        if bits < x.bits:
            return self.trunc(x, bits)
        return self.sext(x, bits) if signed else self.zext(x, bits)

    def zext(self, x: Value, bits: int) -> Value:
        return self._extend(x, bits, False)

    def sext(self, x: Value, bits: int) -> Value:
        return self._extend(x, bits, True)

    def _extend(self, x: Value, bits: int, signed: bool) -> Value:
        if bits == x.bits:
            return x
        op = "sext" if signed else "zext"
        narrow = x.bits
        if signed:
            folded = self._fold("sext", lambda a: -a if narrow == 1 else a, bits, x)
        else:
            folded = self._fold("zext", lambda a: unsigned(a, narrow).astype(np.int64), bits, x)
        if folded is not None:
            return folded
        if x.is_affine and narrow > 1 and x.table is not None:
            if x.exact_signed if signed else x.exact_unsigned and x.high <= full_range(narrow)[1]:
                base = self.t(f"{'zext' if x.lo >= 0 else 'sext'} i{narrow} {x.base} to i{bits}")
                nz = x.nz if x.lo >= 0 else mask_of(bits) & ~mask_of(trailing_zeros(x.nz, narrow))
                return self._affine(base, x.offset, x.table, bits, x.lo, x.hi, nz)
        if x.is_uniform:
            name = self.t(f"{op} i{narrow} {self.uval(x)} to i{bits}")
            if narrow == 1:
                return self.scalar(name, bits, -1 if signed else 0, 0 if signed else 1)
            if signed:
                nz = x.known_nz if not x.known_nz >> (narrow - 1) else x.known_nz | (mask_of(bits) & ~mask_of(narrow))
                if x.exact_signed:
                    return self.scalar(name, bits, x.low, x.high, nz)
                return self.scalar(name, bits, *full_range(narrow), nz)
            if x.exact_unsigned:
                return self.scalar(name, bits, x.low, x.high, x.known_nz)
            return self.scalar(name, bits, 0, mask_of(narrow), x.known_nz)
        if x.is_affine and narrow == 32 and bits == 64 and x.base is not None:
            v = Value(64)
            v.wide = Wide(x.base, self._rest(x), 1, signed)
            return v
        return self.elementwise(
            [(x, f"i{narrow}")], bits, f"i{bits}", lambda n, T: f"{op} {T(f'i{narrow}')} {n[0]} to {T(f'i{bits}')}"
        )

    def trunc(self, x: Value, bits: int) -> Value:
        if bits == x.bits:
            return x
        wide = x.bits
        folded = self._fold("trunc", lambda a: a, bits, x)
        if folded is not None:
            return folded
        if x.is_affine and bits > 1:
            base = self.t(f"trunc i{wide} {x.base} to i{bits}")
            table = x.table
            if table is not None and max(abs(table.low), abs(table.high)) >= 1 << (bits - 1):
                table = self.pool.apply(f"wrap{bits}", lambda a: wrap(a, bits), table)
                return self._affine(
                    base, to_signed(x.offset, bits), table, bits, *full_range(bits), x.nz & mask_of(bits)
                )
            low, high = full_range(bits)
            lo, hi = (x.lo, x.hi) if x.lo >= low and x.hi <= high else (low, high)
            nz = x.nz & mask_of(bits)
            if (lo, hi) == (low, high) and not nz >> (bits - 1):
                lo, hi = 0, nz
            return self._affine(base, to_signed(x.offset, bits), table, bits, lo, hi, nz)
        return self.elementwise(
            [(x, f"i{wide}")], bits, f"i{bits}", lambda n, T: f"trunc {T(f'i{wide}')} {n[0]} to {T(f'i{bits}')}"
        )

    def icmp(self, condition: str, x: Value, y: Value) -> Value:
        assert x.bits == y.bits, ("icmp", x.bits, y.bits)
        bits = x.bits
        compare = _COMPARE[condition]
        if condition[0] == "u":
            folded = self._fold(condition, lambda a, b: compare(unsigned(a, bits), unsigned(b, bits)), 1, x, y)
        else:
            folded = self._fold("i" + condition, compare, 1, x, y)
        if folded is not None:
            return folded
        decided = self._decide(condition, x, y)
        if decided is not None:
            return self.const(int(decided), 1)
        ty = f"i{bits}"
        return self.elementwise([(x, ty), (y, ty)], 1, "i1", lambda n, T: f"icmp {condition} {T(ty)} {n[0]}, {n[1]}")

    def _decide(self, condition: str, x: Value, y: Value) -> bool | None:
        """The outcome of a comparison that ranges settle, or None."""
        if not (x.is_affine and y.is_affine) or x.bits == 1:
            return None
        if condition in _SIGNED_CONDITIONS or condition in ("eq", "ne"):
            if not (x.exact_signed and y.exact_signed):
                return None
        elif not (x.exact_unsigned and y.exact_unsigned):
            return None
        relation = condition[-2:]
        if relation in ("eq", "ne"):
            if x.high < y.low or y.high < x.low:
                return relation == "ne"
            return None
        if relation in ("gt", "ge"):
            x, y = y, x
            relation = {"gt": "lt", "ge": "le"}[relation]
        strict = relation == "lt"
        if x.high < y.low or (not strict and x.high <= y.low):
            return True
        if x.low > y.high or (strict and x.low >= y.high):
            return False
        return None

    def select(self, p: Value, x: Value, y: Value) -> Value:
        assert x.bits == y.bits and p.bits == 1, ("select", p.bits, x.bits, y.bits)
        bits = x.bits
        c = p.constant
        if c is not None:
            return x if c else y
        folded = self._fold("select", lambda q, a, b: np.where(q & 1 != 0, a, b), bits, p, x, y)
        if folded is not None:
            return folded
        if p.is_uniform and x.is_affine and y.is_affine and bits > 1 and x.table is y.table:
            px = Value(bits)
            px.base, px.offset, px.lo, px.hi, px.nz = x.base, x.offset, x.lo, x.hi, x.nz
            py = Value(bits)
            py.base, py.offset, py.lo, py.hi, py.nz = y.base, y.offset, y.lo, y.hi, y.nz
            base = self.t(f"select i1 {self.uval(p)}, i{bits} {self.uval(px)}, i{bits} {self.uval(py)}")
            if px.exact_signed and py.exact_signed:
                lo, hi = min(px.low, py.low), max(px.high, py.high)
            else:
                lo, hi = full_range(bits)
            return self._affine(base, 0, x.table, bits, lo, hi, px.known_nz | py.known_nz)
        ty = f"i{bits}"
        return self.elementwise(
            [(p, "i1"), (x, ty), (y, ty)], bits, ty,
            lambda n, T: f"select {T('i1')} {n[0]}, {T(ty)} {n[1]}, {T(ty)} {n[2]}",
        )  # fmt: skip


def unsigned(array: np.ndarray, bits: int) -> np.ndarray:
    return array.astype(np.uint64) & np.uint64(mask_of(bits))
