"""Support functions that multiply strips of tiles for tensor-core instructions: the name says the types, IR leaves.

A strip is one A fragment (16 x k) times the B fragments of neighbouring tiles (k x 8 each). Two functions share the
work; `TYPE_k` stands for the kind, as in `f16_16`:

    void weft_columns_TYPE_k(<n x i32> b0 ..., ptr columns)
        One B fragment, its registers as chunks of n lanes, becomes f32 columns: for each k eight floats, even columns
        before odd ones, so that the four that a quarter of the lanes needs lie side by side. The order of the k is
        `Kind.column_offset`'s.
    void weft_strip_TYPE_k(<n x i32> a0 ..., ptr columns, ptr c, ptr d, i32 tiles)
        D = A * B + C for `tiles` tiles; columns, c and d advance by Kind.column_bytes and TILE_BYTES a tile. C and D
        tiles are accumulator registers as they are: c0 to c3, 32 lanes each. c may be d.

Accumulators keep their fragment order, so that any other instruction can use them at once. Lane 4 g + t of a chunk
holds row g and columns 2 t (+ 1): for one k a chunk's product is that of a vector in which each element of A is there
four times and one in which four elements of B follow each other again and again. The first is made once for a strip
and kept in memory, the second is a broadcast of 16 bytes.

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


def write_strip(name: str, target: Target, type_: str, k: str) -> IRFunction:
    """`weft_strip_TYPE_k`."""
    kind = Kind(type_, int(k))
    lanes = chunk_lanes(target)
    chunks = 32 // lanes
    parameters = [*_fragment_parameters(target, "a", 2 * kind.b_registers), ("ptr", "columns"), ("ptr", "c"),
                  ("ptr", "d"), ("i32", "tiles")]  # fmt: skip
    f = begin(name, "void", parameters, target)
    *parts, columns, c, d, tiles = f.parameters
    rows = f.alloca(f"[{kind.k * 64} x float]", align=64)
    converted = [_floats(f, kind, x) for x in parts]
    for step in range(kind.k):
        block, half, t = kind.place(step)
        for i in range(2 * chunks):
            source = converted[2 * block * chunks + i][half]
            repeated = f.shuffle(source, None, [lane // 4 * 4 + t for lane in range(lanes)])
            f.store(repeated, f.offset(rows, (step * 2 * chunks + i) * lanes * 4), align=4 * lanes)
    multiply = _Strip(f, kind, lanes, rows)
    # as many accumulators as registers allow: 8 vectors of 16 lanes a tile, or half a tile of 8 vectors of 8 lanes
    together = 2 if lanes == 16 else 1
    at = f.variable(constant("i32", 0))
    if together > 1:
        with f.loop() as pairs:
            here = f.get(at)
            after = f.add(here, together)
            pairs.break_if(f.icmp("sgt", after, tiles))
            f.set(at, after)
            multiply.tiles(columns, c, d, here, together)
    with f.loop() as rest:
        here = f.get(at)
        rest.break_if(f.icmp("sge", here, tiles))
        f.set(at, f.add(here, 1))
        multiply.tiles(columns, c, d, here, 1)
    f.ret()
    return f


class _Strip:
    """Writes the product of a strip's rows with a few tiles."""

    def __init__(self, f: IRFunction, kind: Kind, lanes: int, rows: Value):
        self.f, self.kind, self.lanes, self.rows = f, kind, lanes, rows
        self.chunks = 32 // lanes
        self.floats = vector_type("float", lanes)

    def tiles(self, columns: Value, c: Value, d: Value, first: Value, count: int) -> None:
        """`count` tiles from `first` on, all their rows at once where that fits the registers."""
        f = self.f
        wide = f.zext(first, "i64")
        at = f.mul(wide, TILE_BYTES)
        columns = f.offset(columns, f.mul(wide, self.kind.column_bytes))
        halves = [(0, 1)] if self.lanes == 16 else [(0,), (1,)]
        for rows in halves:
            self._rows(columns, f.offset(c, at), f.offset(d, at), count, rows)

    def _rows(self, columns: Value, c: Value, d: Value, count: int, halves: tuple[int, ...]) -> None:
        """Accumulators of rows 0 to 7 (registers c0, c1) or 8 to 15 (c2, c3) or both."""
        f, lanes = self.f, self.lanes
        vector = 4 * lanes
        places = [
            (tile, half, odd, chunk)
            for tile in range(count)
            for half in halves
            for odd in (0, 1)
            for chunk in range(self.chunks)
        ]

        def offset(place: tuple[int, int, int, int]) -> int:
            tile, half, odd, chunk = place
            return tile * TILE_BYTES + (2 * half + odd) * 128 + chunk * vector

        sums = {p: f.load(self.floats, f.offset(c, offset(p)), align=vector) for p in places}
        quad = vector_type("float", 4)
        for step in range(self.kind.k):
            left = {
                (half, chunk): f.load(
                    self.floats,
                    f.offset(self.rows, ((step * 2 + half) * self.chunks + chunk) * vector),
                    align=vector,
                )
                for half in halves
                for chunk in range(self.chunks)
            }
            for tile in range(count):
                for odd in (0, 1):
                    where = tile * self.kind.column_bytes + self.kind.column_offset(step) + 16 * odd
                    four = f.load(quad, f.offset(columns, where), align=16)
                    right = f.shuffle(four, None, [lane % 4 for lane in range(lanes)])
                    for half in halves:
                        for chunk in range(self.chunks):
                            p = (tile, half, odd, chunk)
                            sums[p] = f.intrinsic(
                                self.floats, f"llvm.fma.v{lanes}f32", left[half, chunk], right, sums[p]
                            )
        for p in places:
            f.store(sums[p], f.offset(d, offset(p)), align=vector)
