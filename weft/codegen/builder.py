"""The vector builder: instruction rules call it with Values, it writes LLVM IR for one warp of 32 lanes.

The same calls run "dry" during analysis (no text is written, placeholders stand for SSA names), so that the forms
found by the analysis are the forms that emission makes. Masks are the builder's business: rules read as scalar code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from weft.codegen.value import (
    WARP_LANES,
    Table,
    TablePool,
    Value,
    Wide,
    full_range,
    mask_of,
    to_signed,
    trailing_zeros,
)
from weft.types import Dim3

FLOAT_TYPE = {"f16": "half", "bf16": "bfloat", "f32": "float", "f64": "double"}
FLOAT_BITS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}
_SIGNED_CONDITIONS = {"slt", "sle", "sgt", "sge"}
_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "slt": np.less, "sle": np.less_equal, "sgt": np.greater,
    "sge": np.greater_equal, "ult": np.less, "ule": np.less_equal, "ugt": np.greater, "uge": np.greater_equal,
}  # fmt: skip


class Builder:
    """Writes the body of one warp function. `lines` is the text so far; `dry` turns writing off."""

    def __init__(self, block: Dim3, chunk_lanes: int):
        self.block = block
        self.warps = (block.count + WARP_LANES - 1) // WARP_LANES
        self.chunk = chunk_lanes
        self.chunks = WARP_LANES // chunk_lanes
        self.dry = True
        self.lines: list[str] = []
        self.globals: dict[tuple, str] = {}
        self.global_lines: list[str] = []
        self.global_prefix = "@const"
        self.declarations: set[str] = set()
        self.counter = 0
        self.depth = 0  # above 0 inside an arm of a diamond: nothing computed there may be remembered
        self.current_label = "entry"
        self.pool = TablePool()
        threads = np.arange(self.warps * WARP_LANES, dtype=np.int64).reshape(self.warps, WARP_LANES)
        self.thread_index = threads
        self.lane_table = self.pool.intern(np.tile(np.arange(WARP_LANES, dtype=np.int64), (self.warps, 1)))
        self.splats: dict[tuple, str] = {}
        self.casts: dict[tuple[str, str], str] = {}  # (integer name, float type) -> the float that it was made of
        self.masked: dict[str, int] = {}  # results of `and` with a constant -> the constant

    # ------------------------------------------------------------ text
    def t(self, expression: str) -> str:
        """Emit `%tN = expression` and return its name."""
        if self.dry:
            return "%dry"
        self.counter += 1
        name = f"%t{self.counter}"
        self.lines.append(f"  {name} = {expression}")
        return name

    def e(self, statement: str) -> None:
        """Emit a statement without a result."""
        if not self.dry:
            self.lines.append("  " + statement)

    def new_label(self, stem: str) -> str:
        self.counter += 1
        return f"{stem}.{self.counter}"

    def label(self, name: str) -> None:
        if not self.dry:
            self.lines.append(f"{name}:")
        self.current_label = name

    def declare(self, text: str) -> None:
        self.declarations.add(text)

    def constant_global(self, key: tuple, type_: str, text: str) -> str:
        """A private constant of the module, made once per key. `text` is its initialiser."""
        name = self.globals.get(key)
        if name is None:
            name = self.globals[key] = f"{self.global_prefix}.{len(self.globals)}"
            self.global_lines.append(f"{name} = private unnamed_addr constant {type_} {text}, align 64")
        return name

    def vtype(self, bits: int) -> str:
        return f"<{self.chunk} x i{bits}>"

    # ------------------------------------------------------------ making values
    def const(self, value: int, bits: int) -> Value:
        v = Value(bits)
        v.offset = to_signed(value, bits) if bits > 1 else value & 1
        return v

    def scalar(
        self, name: str, bits: int, lo: int | None = None, hi: int | None = None, nz: int | None = None
    ) -> Value:
        """A uniform value from an SSA scalar, with what is known of its signed range and its bits."""
        v = Value(bits)
        v.base = name
        low, high = full_range(bits) if bits > 1 else (0, 1)
        if nz is None:
            nz = mask_of(bits)
        if lo is None or hi is None or lo < low or hi > high:
            lo, hi = low, high
            if bits > 1 and not nz >> (bits - 1):
                lo, hi = 0, nz
        if lo >= 0:
            nz &= mask_of(max(1, hi.bit_length()))
            hi = min(hi, nz)
            lo = min(lo, hi)
        v.lo, v.hi, v.nz = lo, hi, nz
        return v

    def varying(self, names: Sequence[str], bits: int) -> Value:
        v = Value(bits)
        v.vec = tuple(names)
        return v

    def from_array(self, array: np.ndarray, bits: int) -> Value:
        """A known value from an array [warps, 32] of integers modulo 2^bits."""
        return self._known(self.pool.intern(_wrap(array, bits)), bits)

    def _known(self, table: Table, bits: int) -> Value:
        v = Value(bits)
        if table.low == table.high:
            v.offset = table.low
            return v
        first = int(table.array[0, 0])
        if first and bits > 1:
            v.offset = first
            table = self.pool.apply("sub", lambda a, b: a - b, table, first)
        v.table = table
        return v

    def _affine(
        self, base: str | None, offset: int, table: Table | None, bits: int, lo: int, hi: int, nz: int
    ) -> Value:
        """An affine value in canonical form: table[0][0] is 0, offset fits the width."""
        if base is None:
            lo = hi = nz = 0
        low, high = full_range(bits)
        if lo < low or hi > high:
            lo, hi = low, high
        if table is not None:
            if table.low == table.high:
                offset += table.low
                table = None
            elif first := int(table.array[0, 0]):
                offset += first
                table = self.pool.apply("sub", lambda a, b: a - b, table, first)
        if not low <= offset <= high:
            offset = to_signed(offset, bits)
            if base is not None:
                lo, hi = low, high
        v = Value(bits)
        v.base, v.offset, v.table = base, offset, table
        if base is not None:
            if lo >= 0:
                nz &= mask_of(max(1, hi.bit_length()))
                hi = min(hi, nz)
                lo = min(lo, hi)
            v.lo, v.hi, v.nz = lo, hi, nz & mask_of(bits)
        elif table is not None:
            total = self.pool.apply("add", lambda a, b: a + b, table, offset)
            if total.low < low or total.high > high:
                wrapped = self.pool.apply(f"wrap{bits}", lambda a: _wrap(a, bits), total)
                return self._known(wrapped, bits)
        return v

    def known_array(self, v: Value) -> np.ndarray:
        """All lanes of a known value as signed int64, [warps, 32]."""
        if v.table is None:
            return np.full((self.warps, WARP_LANES), v.offset, np.int64)
        if v.bits == 1:
            return v.table.array
        return _wrap(v.table.array + v.offset, v.bits)

    def lane(self) -> Value:
        return self._known(self.lane_table, 32)

    def thread_coordinate(self, axis: str) -> Value:
        bx, by, _ = self.block
        index = self.thread_index
        array = {"x": index % bx, "y": index // bx % by, "z": index // (bx * by)}[axis]
        return self.from_array(array, 32)

    # ------------------------------------------------------------ reading forms
    def is_uniform(self, v: Value) -> bool:
        return v.is_uniform

    def row_scalar(self, column: np.ndarray, bits: int) -> str:
        """The SSA scalar (or literal) of a number per warp."""
        values = [to_signed(int(x), bits) if bits > 1 else int(x) & 1 for x in column]
        if all(x == values[0] for x in values):
            return self.literal(values[0], bits)
        step = values[1] - values[0]
        if bits >= 16 and all(x == values[0] + step * i for i, x in enumerate(values)):
            name = {16: "%w16", 32: "%w", 64: "%w64"}[bits]
            if step != 1:
                name = self.t(f"mul i{bits} {name}, {step}")
            return name if values[0] == 0 else self.t(f"add i{bits} {name}, {values[0]}")
        width = 8 if bits == 1 else bits
        items = ", ".join(f"i{width} {x}" for x in values)
        table = self.constant_global(("row", bits, tuple(values)), f"[{self.warps} x i{width}]", f"[{items}]")
        loaded = self.t(
            f"load i{width}, ptr {self.t(f'getelementptr i{width}, ptr {table}, i32 %w')}, !invariant.load !1"
        )
        return self.t(f"trunc i8 {loaded} to i1") if bits == 1 else loaded

    def literal(self, value: int, bits: int) -> str:
        if bits == 1:
            return "true" if value & 1 else "false"
        return str(to_signed(value, bits))

    def uval(self, v: Value) -> str:
        """The SSA scalar of a uniform value."""
        assert v.is_uniform, "uval of a value that differs between lanes"
        if v.bits == 1:
            return v.base if v.base is not None else self.row_scalar(self.known_array(v)[:, 0], 1)
        if v.base is None:
            return self.row_scalar(self.known_array(v)[:, 0], v.bits)
        name = v.base
        if v.table is not None:
            row = self.row_scalar(v.table.array[:, 0] + v.offset, v.bits)
            return self.t(f"add i{v.bits} {name}, {row}")
        if v.offset:
            return self.t(f"add i{v.bits} {name}, {v.offset}")
        return name

    def splat(self, scalar: str, type_: str, lanes: int | None = None) -> str:
        if scalar[0] != "%":
            return f"splat ({type_} {scalar})"
        lanes = lanes or self.chunk
        key = (scalar, type_, lanes)
        found = self.splats.get(key)
        if found is not None:
            return found
        first = self.t(f"insertelement <{lanes} x {type_}> poison, {type_} {scalar}, i32 0")
        found = self.t(
            f"shufflevector <{lanes} x {type_}> {first}, <{lanes} x {type_}> poison, <{lanes} x i32> zeroinitializer"
        )
        if self.depth == 0 and not self.dry:
            self.splats[key] = found
        return found

    def vector_literal(self, values, bits: int) -> str:
        values = list(values)
        if bits == 1:
            return "<" + ", ".join("i1 true" if x else "i1 false" for x in values) + ">"
        if not any(values):
            return "zeroinitializer"
        return "<" + ", ".join(f"i{bits} {to_signed(int(x), bits)}" for x in values) + ">"

    def vec(self, v: Value) -> tuple[str, ...]:
        """The chunks of any value as SSA vectors."""
        if v.vec is not None:
            return v.vec
        if v.cached is not None:
            return v.cached
        made = self._materialise(v)
        if self.depth == 0 and not self.dry:
            v.cached = made
        return made

    def _materialise(self, v: Value) -> tuple[str, ...]:
        if self.dry:
            return ("%dry",) * self.chunks
        if v.wide is not None:
            return self._materialise_wide(v)
        bits, vtype = v.bits, self.vtype(v.bits)
        if v.is_uniform:
            scalar = self.uval(v)
            return (self.splat(scalar, f"i{bits}"),) * self.chunks
        table = v.table
        if bits == 1:
            return self._materialise_predicate(table)
        if table.rows_alike:
            relative = table.array[0] - table.array[0, 0]
            row = self.row_scalar(table.array[:, 0] + v.offset, bits)
            if v.base is not None:
                row = v.base if row == "0" else self.t(f"add i{bits} {v.base}, {row}")
            if row == "0":
                return tuple(self.vector_literal(part, bits) for part in self._parts(relative))
            base = self.splat(row, f"i{bits}")
            return tuple(
                self.t(f"add {vtype} {base}, {self.vector_literal(part, bits)}") for part in self._parts(relative)
            )
        pointer = self._table_pointer(table, bits)
        base = None
        if v.base is not None or v.offset:
            scalar = self.literal(v.offset, bits) if v.base is None else v.base
            if v.base is not None and v.offset:
                scalar = self.t(f"add i{bits} {v.base}, {v.offset}")
            base = self.splat(scalar, f"i{bits}")
        chunks = []
        for c in range(self.chunks):
            at = pointer if c == 0 else self.t(f"getelementptr i{bits}, ptr {pointer}, i32 {c * self.chunk}")
            x = self.t(f"load {vtype}, ptr {at}, align {max(1, bits // 8)}, !invariant.load !1")
            chunks.append(x if base is None else self.t(f"add {vtype} {x}, {base}"))
        return tuple(chunks)

    def _parts(self, row):
        return [row[c * self.chunk : (c + 1) * self.chunk] for c in range(self.chunks)]

    def _table_pointer(self, table: Table, bits: int) -> str:
        rows = ", ".join(f"<32 x i{bits}> {self.vector_literal(row, bits)}" for row in table.array)
        name = self.constant_global(("table", bits, table.key), f"[{self.warps} x <32 x i{bits}>]", f"[{rows}]")
        return self.t(f"getelementptr <32 x i{bits}>, ptr {name}, i32 %w")

    def _materialise_predicate(self, table: Table) -> tuple[str, ...]:
        rows = [sum(int(x & 1) << i for i, x in enumerate(row)) for row in table.array]
        if all(row == rows[0] for row in rows):
            return tuple(self.vector_literal(part, 1) for part in self._parts(table.array[0] & 1))
        return self.mask_chunks(self.row_scalar(np.array(rows), 32))

    def _materialise_wide(self, v: Value) -> tuple[str, ...]:
        w = v.wide
        index = Value(32)
        index.base, index.table = w.base, w.table
        chunks = []
        rest = Value(64)
        rest.base, rest.offset, rest.table = v.base, v.offset, v.table
        rest.lo, rest.hi = full_range(64)
        others = None if rest.is_known and rest.constant == 0 else self._materialise(rest)
        extend = "sext" if w.signed else "zext"
        for i, x in enumerate(self._materialise(index)):
            y = self.t(f"{extend} {self.vtype(32)} {x} to {self.vtype(64)}")
            if w.scale != 1:
                y = self.t(f"mul {self.vtype(64)} {y}, {self.vector_literal([w.scale] * self.chunk, 64)}")
            if others is not None:
                y = self.t(f"add {self.vtype(64)} {y}, {others[i]}")
            chunks.append(y)
        return tuple(chunks)

    # ------------------------------------------------------------ chunks and whole vectors
    def join_chunks(self, chunks: Sequence[str], type_: str) -> str:
        """<32 x type> from chunks."""
        parts, lanes = list(chunks), self.chunk
        while len(parts) > 1:
            index = ", ".join(f"i32 {i}" for i in range(2 * lanes))
            parts = [
                self.t(f"shufflevector <{lanes} x {type_}> {a}, <{lanes} x {type_}> {b}, <{2 * lanes} x i32> <{index}>")
                for a, b in zip(parts[::2], parts[1::2])
            ]
            lanes *= 2
        return parts[0]

    def split_chunks(self, whole: str, type_: str) -> tuple[str, ...]:
        """Chunks of a <32 x type>."""
        if self.chunks == 1:
            return (whole,)
        return tuple(
            self.shuffle_constant(whole, None, type_, WARP_LANES, range(c * self.chunk, (c + 1) * self.chunk))
            for c in range(self.chunks)
        )

    def shuffle_constant(self, a: str, b: str | None, type_: str, lanes: int, index) -> str:
        index = list(index)
        second = b if b is not None else "poison"
        picks = ", ".join(f"i32 {i}" for i in index)
        return self.t(
            f"shufflevector <{lanes} x {type_}> {a}, <{lanes} x {type_}> {second}, <{len(index)} x i32> <{picks}>"
        )

    def mask_chunks(self, mask: str) -> tuple[str, ...]:
        """Predicate chunks of an i32 lane mask."""
        whole = self.t(f"bitcast i32 {mask} to <32 x i1>")
        return self.split_chunks(whole, "i1")

    def mask_bits(self, chunks: Sequence[str]) -> str:
        """The i32 lane mask of predicate chunks."""
        n = self.chunk
        if n == WARP_LANES:
            return self.t(f"bitcast <32 x i1> {chunks[0]} to i32")
        result = None
        for c, x in enumerate(chunks):
            word = self.t(f"zext i{n} {self.t(f'bitcast <{n} x i1> {x} to i{n}')} to i32")
            if c:
                word = self.t(f"shl i32 {word}, {c * n}")
            result = word if result is None else self.t(f"or i32 {result}, {word}")
        return result

    def any_chunk(self, chunks: Sequence[str]) -> str:
        """i1: some lane of the predicate chunks is set."""
        n = self.chunk
        total = None
        for x in chunks:
            total = x if total is None else self.t(f"or <{n} x i1> {total}, {x}")
        return self.t(f"icmp ne i{n} {self.t(f'bitcast <{n} x i1> {total} to i{n}')}, 0")

    # ------------------------------------------------------------ elementwise operations
    def elementwise(
        self, inputs: Sequence[tuple[Value, str]], bits: int, type_: str, write: Callable[..., str]
    ) -> Value:
        """`write(names, T)` gives an expression on operands of their LLVM element types; T is the type constructor
        (identity for scalars, a vector of the chunk's lanes otherwise). `type_` is the result's element type."""
        if all(v.is_uniform for v, _ in inputs):
            names = [self._cast_in(self.uval(v), v.bits, ty, None) for v, ty in inputs]
            result = self.t(write(names, str))
            return self.scalar(self._cast_out(result, bits, type_, None), bits)
        n = self.chunk
        columns = [self.vec(v) for v, _ in inputs]
        chunks = []
        if self.dry:
            write(["%dry"] * len(inputs), lambda ty: f"<{n} x {ty}>")
            return self.varying(("%dry",) * self.chunks, bits)
        done: dict[tuple, str] = {}
        for parts in zip(*columns):
            if parts not in done:
                names = [self._cast_in(x, v.bits, ty, n) for x, (v, ty) in zip(parts, inputs)]
                result = self.t(write(names, lambda ty: f"<{n} x {ty}>"))
                done[parts] = self._cast_out(result, bits, type_, n)
            chunks.append(done[parts])
        return self.varying(chunks, bits)

    def _cast_in(self, name: str, bits: int, type_: str, lanes: int | None) -> str:
        if type_ == f"i{bits}":
            return name
        before = self.casts.get((name, type_))
        if before is not None:
            return before
        if lanes is None:
            return self.t(f"bitcast i{bits} {name} to {type_}")
        return self.t(f"bitcast <{lanes} x i{bits}> {name} to <{lanes} x {type_}>")

    def _cast_out(self, name: str, bits: int, type_: str, lanes: int | None) -> str:
        if type_ == f"i{bits}":
            return name
        if self.dry:
            return name
        if lanes is None:
            made = self.t(f"bitcast {type_} {name} to i{bits}")
        else:
            made = self.t(f"bitcast <{lanes} x {type_}> {name} to <{lanes} x i{bits}>")
        self.casts[made, type_] = name
        return made

    def _binary(self, op: str, x: Value, y: Value) -> Value:
        ty = f"i{x.bits}"
        return self.elementwise([(x, ty), (y, ty)], x.bits, ty, lambda n, T: f"{op} {T(ty)} {n[0]}, {n[1]}")

    def _fold(self, name: str, function, bits: int, *values: Value) -> Value | None:
        """Evaluate a known operation: `function` works on signed int64 arrays."""
        if not all(v.is_known for v in values):
            return None
        if all(v.table is None for v in values):
            arrays = [np.array([[v.offset]], np.int64) for v in values]
            with np.errstate(all="ignore"):
                return self.const(int(_wrap(np.asarray(function(*arrays)).astype(np.int64), bits)[0, 0]), bits)
        arguments = tuple((v.table, v.offset, v.bits) for v in values)
        memo = ("fold", name, bits, *arguments)
        table = self.pool.results.get(memo)
        if table is None:
            with np.errstate(all="ignore"):
                result = np.asarray(function(*(self.known_array(v) for v in values))).astype(np.int64)
            table = self.pool.results[memo] = self.pool.intern(_wrap(result, bits))
        return self._known(table, bits)

    # ------------------------------------------------------------ integers
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

    def _shift_amount(self, n: Value, bits: int) -> Value:
        return self.resize(n, bits, False) if n.bits <= bits else n

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
            folded = self._fold(f"lshr{c}", lambda a: (_unsigned(a, bits) >> np.uint64(c)).astype(np.int64), bits, x)
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
            folded = self._fold("zext", lambda a: _unsigned(a, narrow).astype(np.int64), bits, x)
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
                table = self.pool.apply(f"wrap{bits}", lambda a: _wrap(a, bits), table)
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
            folded = self._fold(condition, lambda a, b: compare(_unsigned(a, bits), _unsigned(b, bits)), 1, x, y)
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
                name, lambda a, b: function(_unsigned(a, bits), _unsigned(b, bits)).astype(np.int64), bits, x, y
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
                    op, lambda a, b: function(_unsigned(a, bits), _unsigned(b, bits)).astype(np.int64), bits, x, y
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

    # ------------------------------------------------------------ packing
    def pack(self, parts: Sequence[Value]) -> Value:
        """Concatenate values, low first."""
        total = sum(p.bits for p in parts)
        result = None
        at = 0
        for part in parts:
            wide = self.zext(part, total)
            if at:
                wide = self.shl(wide, self.const(at, 32)) if total <= 64 else self._shift_constant("shl", wide, at)
            result = (
                wide
                if result is None
                else (self.or_(result, wide) if total <= 64 else self._binary("or", result, wide))
            )
            at += part.bits
        return result

    def unpack(self, x: Value, parts: int) -> tuple[Value, ...]:
        bits = x.bits // parts
        return tuple(self.extract(x, i * bits, bits) for i in range(parts))

    def extract(self, x: Value, low_bit: int, bits: int) -> Value:
        if low_bit:
            x = self.lshr(x, self.const(low_bit, 32)) if x.bits <= 64 else self._shift_constant("lshr", x, low_bit)
        return self.trunc(x, bits)

    # ------------------------------------------------------------ floats
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


def _wrap(array: np.ndarray, bits: int) -> np.ndarray:
    """Integers modulo 2^bits as signed int64 (1 bit: 0 or 1)."""
    if bits == 1:
        return array & 1
    if bits >= 64:
        return array
    shift = 64 - bits
    return (array << shift) >> shift


def _unsigned(array: np.ndarray, bits: int) -> np.ndarray:
    return array.astype(np.uint64) & np.uint64(mask_of(bits))


def _truncating_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _high_half(bits: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The upper `bits` bits of an unsigned product, for up to 32 bits."""
    return lambda a, b: ((_unsigned(a, bits) * _unsigned(b, bits)) >> np.uint64(bits)).astype(np.int64)


_DIVIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "udiv": np.floor_divide,
    "urem": np.remainder,
    "sdiv": _truncating_divide,
    "srem": lambda a, b: a - b * _truncating_divide(a, b),
}
