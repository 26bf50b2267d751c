"""Support functions that multiply strips of tiles for tensor-core instructions: the name says the types, IR leaves.

A strip is one or more A fragments (16 x k, the steps) times the B fragments of neighbouring tiles (k x 8 each, for each
step). Three functions share the work; `TYPE_k` stands for the kind, as in `f16_16`:

    void weft_rows_TYPE_k(<n x i32> a0 ..., ptr rows)
        One A fragment, its registers as chunks of n lanes, becomes f32: for each place in a register, the chunks.
    void weft_columns_TYPE_k(<n x i32> b0 ..., ptr columns)
        One B fragment becomes f32 columns: for each k eight floats, even columns before odd ones, so that the four that
        a quarter of the lanes needs lie side by side. The order of the k is `Kind.column_offset`'s.
    void weft_strip_TYPE_k(ptr rows, ptr columns, ptr c, ptr d, i32 tiles, i32 steps)
        D = A * B + C for `tiles` tiles, each the sum of `steps` products. rows advance by Kind.row_bytes a step,
        columns by Kind.column_bytes a step and then on to the next tile, c and d by TILE_BYTES a tile. C and D tiles
        are accumulator registers as they are: c0 to c3, 32 lanes each. c may be d.

Accumulators keep their fragment order, so that any other instruction can use them at once. Lane 4 g + t of a chunk
holds row g and columns 2 t (+ 1): for one k a chunk's product is that of a vector in which each element of A is there
four times, a shuffle within 128 bits, and one in which four elements of B follow each other again and again, a
broadcast of 16 bytes. Zen 4 does both beside its fused multiply-adds at no cost; what costs are stores (1.3 of them for
a 64-byte store), so that nothing is stored expanded and accumulators are stored once for all steps.

Numbers: products are exact, sums are rounded once for each k in ascending order (fused multiply-add in f32); tf32
inputs lose their 13 lowest bits. Layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.codegen.access import begin
from weft.codegen.irtext import IRFunction, Value, constant, vector_type
from weft.codegen.jit import Target

TILE_BYTES = 4 * 32 * 4  # c0 to c3 of one tile
STRIP_NAME = r"weft_strip_(f16|bf16|tf32)_(\d+)"
ROWS_NAME = r"weft_rows_(f16|bf16|tf32)_(\d+)"
COLUMNS_NAME = r"weft_columns_(f16|bf16|tf32)_(\d+)"
_EVEN_THEN_ODD = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Kind:
    """The types of A and B and the depth k of one instruction; accumulators are f32."""

    type: str
    k: int

    @property
    def per_register(self) -> int:
        """Elements in a 32-bit register."""
        return 1 if self.type == "tf32" else 2

    @property
    def b_registers(self) -> int:
        """Registers of a B fragment; A has twice as many."""
        return self.k // (4 * self.per_register)

    @property
    def column_bytes(self) -> int:
        """Bytes of one tile's columns."""
        return self.k * 8 * 4

    def place(self, k: int) -> tuple[int, int, int]:
        """(B register, place in the register, lane % 4) of the element k of a row or column."""
        block, within = divmod(k, 4 * self.per_register)
        return block, within % self.per_register, within // self.per_register

    def column_offset(self, k: int) -> int:
        """Where in a tile's columns the eight floats of k begin, in bytes."""
        block, half, t = self.place(k)
        return ((block * self.per_register + half) * 4 + t) * 32

    @property
    def row_bytes(self) -> int:
        """Bytes of one A fragment's rows."""
        return 16 * self.k * 4

    @property
    def rows(self) -> str:
        return f"weft_rows_{self.type}_{self.k}"

    @property
    def strip(self) -> str:
        return f"weft_strip_{self.type}_{self.k}"

    @property
    def columns(self) -> str:
        return f"weft_columns_{self.type}_{self.k}"


def chunk_lanes(target: Target) -> int:
    """Lanes of a vector register that holds 32-bit elements."""
    return 16 if target.vector_bits >= 512 else 8


def _floats(f: IRFunction, kind: Kind, chunk: Value) -> list[Value]:
    """The f32 values of a chunk of registers, one vector for each place in the register."""
    lanes = int(chunk.type[1:].split()[0])
    floats = vector_type("float", lanes)
    if kind.type == "tf32":
        return [f.bitcast(f.and_(chunk, -8192), floats)]
    high = f.lshr(chunk, 16)
    if kind.type == "bf16":
        return [f.bitcast(f.shl(chunk, 16), floats), f.bitcast(f.and_(chunk, -65536), floats)]
    narrow, halves = vector_type("i16", lanes), vector_type("half", lanes)
    return [f.convert("fpext", f.bitcast(f.trunc(x, narrow), halves), floats) for x in (chunk, high)]


def _fragment_parameters(target: Target, letter: str, registers: int) -> list[tuple[str, str]]:
    lanes = chunk_lanes(target)
    type_ = vector_type("i32", lanes)
    return [(type_, f"{letter}{r}.{c}") for r in range(registers) for c in range(32 // lanes)]


def write_columns(name: str, target: Target, type_: str, k: str) -> IRFunction:
    """`weft_columns_TYPE_k`."""
    kind = Kind(type_, int(k))
    lanes = chunk_lanes(target)
    chunks = 32 // lanes
    f = begin(name, "void", [*_fragment_parameters(target, "b", kind.b_registers), ("ptr", "columns")], target)
    *parts, columns = f.parameters
    for register in range(kind.b_registers):
        converted = [_floats(f, kind, x) for x in parts[register * chunks : (register + 1) * chunks]]
        for half in range(kind.per_register):
            first, second = (_join(f, [x[half] for x in side]) for side in (converted[: chunks // 2],
                                                                            converted[chunks // 2 :]))  # fmt: skip
            for t in range(0, 4, lanes // 8):
                lane = [4 * n + t + i for i in range(lanes // 8) for n in _EVEN_THEN_ODD]
                at = ((register * kind.per_register + half) * 4 + t) * 32
                f.store(f.shuffle(first, second, lane), f.offset(columns, at), align=4 * lanes)
    return f


def _join(f: IRFunction, parts: list[Value]) -> Value:
    while len(parts) > 1:
        width = int(parts[0].type[1:].split()[0])
        parts = [f.shuffle(a, b, list(range(2 * width))) for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


def write_rows(name: str, target: Target, type_: str, k: str) -> IRFunction:
    """`weft_rows_TYPE_k`."""
    kind = Kind(type_, int(k))
    lanes = chunk_lanes(target)
    vectors = 2 * 32 // lanes  # of rows 0 to 15, for one place in the registers
    f = begin(name, "void", [*_fragment_parameters(target, "a", 2 * kind.b_registers), ("ptr", "rows")], target)
    *parts, rows = f.parameters
    for i, x in enumerate(parts):
        block, within = divmod(i, vectors)
        for half, floats in enumerate(_floats(f, kind, x)):
            at = ((block * kind.per_register + half) * vectors + within) * 4 * lanes
            f.store(floats, f.offset(rows, at), align=4 * lanes)
    return f


def write_strip(name: str, target: Target, type_: str, k: str) -> IRFunction:
    """`weft_strip_TYPE_k`."""
    kind = Kind(type_, int(k))
    lanes = chunk_lanes(target)
    parameters = [("ptr", "rows"), ("ptr", "columns"), ("ptr", "c"), ("ptr", "d"), ("i32", "tiles"), ("i32", "steps")]
    f = begin(name, "void", parameters, target)
    rows, columns, c, d, tiles, steps = f.parameters
    here, out_of, into = f.variable(columns), f.variable(c), f.variable(d)
    # as many accumulators at once as there are registers for: 8 of 16 lanes are a tile, 8 of 8 lanes half of one
    halves: list[tuple[int, ...]] = [(0, 1)] if lanes == 16 else [(0,), (1,)]
    with f.for_range(constant("i32", 0), tiles):
        for side in halves:
            first = f.get(here)
            after = _add_steps(f, kind, lanes, side, (rows, first, f.get(out_of), f.get(into)), steps)
        f.set(here, after)
        for place in (out_of, into):
            f.set(place, f.offset(f.get(place), TILE_BYTES))
    f.ret()
    return f


def _add_steps(
    f: IRFunction, kind: Kind, lanes: int, halves: tuple[int, ...], places: tuple[Value, Value, Value, Value],
    steps: Value,
) -> Value:  # fmt: skip
    """The products of all steps with one tile, for rows 0 to 7 (half 0: registers c0, c1) or 8 to 15 (c2, c3) or both.
    Gives the pointer behind the tile's columns."""
    rows, columns, c, d = places
    chunks = 32 // lanes
    vector, floats, quad = 4 * lanes, vector_type("float", lanes), vector_type("float", 4)
    keys = [(half, odd, chunk) for half in halves for odd in (0, 1) for chunk in range(chunks)]
    offsets = {key: (2 * key[0] + key[1]) * 128 + key[2] * vector for key in keys}
    sums = {key: f.variable(f.load(floats, f.offset(c, offsets[key]), align=vector)) for key in keys}
    row_at, column_at = f.variable(rows), f.variable(columns)
    with f.for_range(constant("i32", 0), steps):
        row, column = f.get(row_at), f.get(column_at)
        total = {key: f.get(sums[key]) for key in keys}
        for step in range(kind.k):
            block, part, t = kind.place(step)
            left = {}
            for half in halves:
                for chunk in range(chunks):
                    place = (block * kind.per_register + part) * 2 * chunks + half * chunks + chunk
                    whole = f.load(floats, f.offset(row, place * vector), align=vector)
                    left[half, chunk] = f.shuffle(whole, None, [lane // 4 * 4 + t for lane in range(lanes)])
            for odd in (0, 1):
                four = f.load(quad, f.offset(column, kind.column_offset(step) + 16 * odd), align=16)
                right = f.shuffle(four, None, [lane % 4 for lane in range(lanes)])
                for half in halves:
                    for chunk in range(chunks):
                        key = (half, odd, chunk)
                        total[key] = f.intrinsic(floats, f"llvm.fma.v{lanes}f32", left[half, chunk], right, total[key])
        for key in keys:
            f.set(sums[key], total[key])
        f.set(row_at, f.offset(row, kind.row_bytes))
        f.set(column_at, f.offset(column, kind.column_bytes))
    for key in keys:
        f.store(f.get(sums[key]), f.offset(d, offsets[key]), align=vector)
    return f.get(column_at)
