"""Values of one warp as LLVM IR text: the forms of value.py enter, SSA scalars and vectors of the warp's lanes leave.

A vector of 32 lanes is a tuple of chunks, each as wide as the target's registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from weft.codegen.value import (
    WARP_LANES,
    Table,
    TablePool,
    Value,
    full_range,
    mask_of,
    to_signed,
)
from weft.types import Dim3


class Vectors:
    """Text and values of one function; the operations on values come on top (integers.py, floats.py)."""

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
        return self._known(self.pool.intern(wrap(array, bits)), bits)

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
                wrapped = self.pool.apply(f"wrap{bits}", lambda a: wrap(a, bits), total)
                return self._known(wrapped, bits)
        return v

    def known_array(self, v: Value) -> np.ndarray:
        """All lanes of a known value as signed int64, [warps, 32]."""
        if v.table is None:
            return np.full((self.warps, WARP_LANES), v.offset, np.int64)
        if v.bits == 1:
            return v.table.array
        return wrap(v.table.array + v.offset, v.bits)

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
                return self.const(int(wrap(np.asarray(function(*arrays)).astype(np.int64), bits)[0, 0]), bits)
        arguments = tuple((v.table, v.offset, v.bits) for v in values)
        memo = ("fold", name, bits, *arguments)
        table = self.pool.results.get(memo)
        if table is None:
            with np.errstate(all="ignore"):
                result = np.asarray(function(*(self.known_array(v) for v in values))).astype(np.int64)
            table = self.pool.results[memo] = self.pool.intern(wrap(result, bits))
        return self._known(table, bits)


def wrap(array: np.ndarray, bits: int) -> np.ndarray:
    """Integers modulo 2^bits as signed int64 (1 bit: 0 or 1)."""
    if bits == 1:
        return array & 1
    if bits >= 64:
        return array
    shift = 64 - bits
    return (array << shift) >> shift
