"""Support functions that multiply strips of tiles for tensor-core instructions: the name says the types, IR leaves.

A strip is one or more A fragments (16 x k, the steps) times the B fragments of neighbouring tiles (k x 8 each, for each
step). Three functions share the work:

    void weft_rows_TYPE_k(<n x i32> a0 ..., ptr rows)
        One A fragment, its registers as chunks of n lanes, becomes f32: for each place in a register, the chunks.
    void weft_columns_TYPE_k(<n x i32> b0 ..., ptr columns)
        One B fragment becomes f32 columns: for each k eight floats, even columns before odd ones, so that the four that
        a quarter of the lanes needs lie side by side. The order of the k is `Kind.column_offset`'s.
    void weft_strip_SUMS_PER_k(ptr rows, ptr columns, ptr c, ptr d, i32 tiles, i32 steps)
        D = A * B + C for `tiles` tiles, each the sum of `steps` products; PER elements are in a register of A and B.
        rows advance by Kind.row_bytes a step, columns by Kind.column_bytes a step and then on to the next tile, c and d
        by Kind.tile_bytes a tile. C and D tiles are accumulator registers as they are, 32 lanes each. c may be d.

Accumulators keep their fragment order, so that any other instruction can use them at once. Lane 4 g + t of a chunk
holds row g and columns 2 t (+ 1): for one k a chunk's product is that of a vector in which each element of A is there
four times, a shuffle within 128 bits, and one in which four elements of B follow each other again and again, a
broadcast of 16 bytes. Zen 4 does both beside its fused multiply-adds at no cost; what costs are stores (1.3 of them for
a 64-byte store), so that nothing is stored expanded and accumulators are stored once for all steps.

Bytes with s32 sums stay bytes: four of a row times four of a column are one dot product where the processor has VNNI
(vpdpbusd, which wants one unsigned operand). Of operands of one sign A is moved by 128 (`flipped`), which a correction
behind each tile's columns takes back.

Numbers: products are exact, sums in f32 are rounded once for each k in ascending order (fused multiply-add); f16 sums
are rounded once more after each step; tf32 inputs lose their 13 lowest bits. Layouts: PTX ISA, "Matrix Fragments for
mma.m16n8k16 with floating point type" and its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.codegen.access import begin
from weft.codegen.irtext import IRFunction, Value, constant, vector_type
from weft.codegen.jit import Target

FLOATS = {"tf32": 1, "f16": 2, "bf16": 2, "e4m3": 4, "e5m2": 4}  # elements in a 32-bit register
BYTES = ("s8", "u8")
_FLOAT_NAMES = "|".join(FLOATS)
ROWS_NAME = rf"weft_rows_({_FLOAT_NAMES}|bytes|flipped)_(\d+)"
COLUMNS_NAME = rf"weft_columns_({_FLOAT_NAMES}|bytes|more|less)_(\d+)"
STRIP_NAME = r"weft_strip_(f32|f16)_(\d)_(\d+)"
DOT_NAME = r"weft_dot_(a|b)(_sat|)_(\d+)"
_EVEN_THEN_ODD = (0, 2, 4, 6, 1, 3, 5, 7)
_CORRECTION_BYTES = 64  # eight words, and as many again so that columns stay aligned


@dataclass(frozen=True)
class Kind:
    """The types of A and B, the depth k of one instruction, the type of the sums (f32, f16, s32)."""

    a: str
    b: str
    k: int
    sums: str = "f32"
    saturate: bool = False

    @property
    def per_register(self) -> int:
        """Elements of A and B in a 32-bit register."""
        return FLOATS.get(self.a, 4)

    @property
    def b_registers(self) -> int:
        """Registers of a B fragment; A has twice as many."""
        return self.k // (4 * self.per_register)

    @property
    def sum_registers(self) -> int:
        """Registers of a C or D fragment."""
        return 2 if self.sums == "f16" else 4

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile's accumulators."""
        return self.sum_registers * 128

    @property
    def row_bytes(self) -> int:
        """Bytes of one A fragment's rows."""
        return 16 * self.k * (1 if self.sums == "s32" else 4)

    @property
    def column_bytes(self) -> int:
        """Bytes of one tile's columns for one step."""
        return 8 * self.k + _CORRECTION_BYTES if self.sums == "s32" else 8 * self.k * 4

    def place(self, k: int) -> tuple[int, int, int]:
        """(B register, place in the register, lane % 4) of the element k of a row or column."""
        block, within = divmod(k, 4 * self.per_register)
        return block, within % self.per_register, within // self.per_register

    def column_offset(self, k: int) -> int:
        """Where in a tile's columns the eight floats of k begin, in bytes."""
        block, part, t = self.place(k)
        return ((block * self.per_register + part) * 4 + t) * 32

    # ---- functions
    @property
    def rows(self) -> str:
        if self.sums == "s32":
            return f"weft_rows_{'flipped' if self.a == self.b else 'bytes'}_{self.k}"
        return f"weft_rows_{self.a}_{self.k}"

    @property
    def columns(self) -> str:
        if self.sums == "s32":
            correction = "bytes" if self.a != self.b else "less" if self.b == "s8" else "more"
            return f"weft_columns_{correction}_{self.k}"
        return f"weft_columns_{self.b}_{self.k}"

    @property
    def strip(self) -> str:
        if self.sums == "s32":
            unsigned = "a" if self.b == "s8" else "b"
            return f"weft_dot_{unsigned}{'_sat' if self.saturate else ''}_{self.k}"
        return f"weft_strip_{self.sums}_{self.per_register}_{self.k}"

    def fits(self, target: Target) -> bool:
        """Whether the target has the instructions for it."""
        return self.sums != "s32" or (target.has("avx512vnni") and target.vector_bits >= 512)


def chunk_lanes(target: Target) -> int:
    """Lanes of a vector register that holds 32-bit elements."""
    return 16 if target.vector_bits >= 512 else 8


def _lanes_of(value: Value) -> int:
    return int(value.type[1:].split()[0])


def _fragment_parameters(target: Target, letter: str, registers: int) -> list[tuple[str, str]]:
    lanes = chunk_lanes(target)
    type_ = vector_type("i32", lanes)
    return [(type_, f"{letter}{r}.{c}") for r in range(registers) for c in range(32 // lanes)]


# ---------------------------------------------------------------- conversion
def _parts(f: IRFunction, type_: str, chunk: Value) -> list[Value]:
    """What a chunk of registers holds, one vector for each place in the register: f32, or the words of bytes."""
    lanes = _lanes_of(chunk)
    floats = vector_type("float", lanes)
    if type_ in ("bytes", "more", "less"):
        return [chunk]
    if type_ == "flipped":
        return [f.xor(chunk, constant(chunk.type, -0x7F7F7F80))]
    if type_ == "tf32":
        return [f.bitcast(f.and_(chunk, -8192), floats)]
    if type_ == "bf16":
        return [f.bitcast(f.shl(chunk, 16), floats), f.bitcast(f.and_(chunk, -65536), floats)]
    if type_ == "f16":
        return [_from_half(f, x) for x in (chunk, f.lshr(chunk, 16))]
    return [_from_byte(f, type_, f.lshr(chunk, 8 * i) if i else chunk) for i in range(4)]


def _from_half(f: IRFunction, words: Value) -> Value:
    """f32 from the halves in the lower 16 bits."""
    lanes = _lanes_of(words)
    halves = f.bitcast(f.trunc(words, vector_type("i16", lanes)), vector_type("half", lanes))
    return f.convert("fpext", halves, vector_type("float", lanes))


def _from_byte(f: IRFunction, type_: str, words: Value) -> Value:
    """f32 from the 8-bit numbers in the lowest byte."""
    if type_ == "e5m2":  # the upper byte of an f16
        return _from_half(f, f.shl(words, 8))
    # e4m3 is f16 with an exponent eight too small, and the largest magnitude is no number
    sign, magnitude = f.shl(f.and_(words, 0x80), 8), f.and_(words, 0x7F)
    half = _from_half(f, f.or_(sign, f.shl(magnitude, 7)))
    scaled = f.binary("fmul", half, Value(half.type, "splat (float 2.560000e+02)"))
    nan = f.bitcast(constant(words.type, 0x7FFFFFFF), half.type)
    return f.select(f.icmp("eq", magnitude, 0x7F), nan, scaled)


def _join(f: IRFunction, parts: list[Value]) -> Value:
    while len(parts) > 1:
        width = _lanes_of(parts[0])
        parts = [f.shuffle(a, b, list(range(2 * width))) for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


def _per_register(type_: str) -> int:
    """Vectors that a chunk of registers becomes."""
    return FLOATS.get(type_, 1)


def write_rows(name: str, target: Target, type_: str, k: str) -> IRFunction:
    """`weft_rows_TYPE_k`; of bytes, the registers as they are."""
    lanes = chunk_lanes(target)
    vectors = 2 * 32 // lanes  # of rows 0 to 15, for one place in the registers
    registers = 2 * (int(k) // (4 * FLOATS.get(type_, 4)))
    f = begin(name, "void", [*_fragment_parameters(target, "a", registers), ("ptr", "rows")], target)
    *parts, rows = f.parameters
    for i, x in enumerate(parts):
        block, within = divmod(i, vectors)
        for part, value in enumerate(_parts(f, type_, x)):
            at = ((block * _per_register(type_) + part) * vectors + within) * 4 * lanes
            f.store(value, f.offset(rows, at), align=4 * lanes)
    return f


def write_columns(name: str, target: Target, type_: str, k: str) -> IRFunction:
    """`weft_columns_TYPE_k`; of bytes, four of a column at a time, and the correction ("more", "less": 128 times the
    column's sum is to be added or taken away)."""
    lanes = chunk_lanes(target)
    chunks = 32 // lanes
    registers = int(k) // (4 * FLOATS.get(type_, 4))
    f = begin(name, "void", [*_fragment_parameters(target, "b", registers), ("ptr", "columns")], target)
    *parts, columns = f.parameters
    per = _per_register(type_)
    correction: Value | None = None
    for register in range(registers):
        converted = [_parts(f, type_, x) for x in parts[register * chunks : (register + 1) * chunks]]
        for part in range(per):
            whole = [x[part] for x in converted]
            first, second = _join(f, whole[: chunks // 2]), _join(f, whole[chunks // 2 :])
            for t in range(0, 4, lanes // 8):
                lane = [4 * n + t + i for i in range(lanes // 8) for n in _EVEN_THEN_ODD]
                at = ((register * per + part) * 4 + t) * 32
                words = f.shuffle(first, second, lane)
                f.store(words, f.offset(columns, at), align=4 * lanes)
                if type_ in ("more", "less"):
                    ones = constant(words.type, 0x01010101)
                    pair = (ones, words) if type_ == "less" else (words, ones)
                    correction = _dot(f, correction or constant(words.type, 0), *pair)
    if type_ in ("bytes", "more", "less"):
        total = vector_type("i32", lanes)
        if correction is None:
            correction = constant(total, 0)
        else:  # the two halves are the sums of different k
            other = f.shuffle(correction, None, [(i + 8) % lanes for i in range(lanes)])
            correction = f.mul(f.add(correction, other), -128 if type_ == "less" else 128)
        f.store(correction, f.offset(columns, 8 * int(k)), align=4 * lanes)
    return f


# ---------------------------------------------------------------- multiplication
def write_strip(name: str, target: Target, sums: str, per: str, k: str) -> IRFunction:
    """`weft_strip_SUMS_PER_k`."""
    kind = Kind({"1": "tf32", "2": "f16", "4": "e5m2"}[per], "", int(k), sums)
    return _Strip(name, target, kind).write()


def write_dot(name: str, target: Target, unsigned: str, saturate: str, k: str) -> IRFunction:
    """`weft_dot_UNSIGNED_k`: the same for bytes; "a" or "b" is the operand without a sign."""
    kind = Kind("u8" if unsigned == "a" else "s8", "s8" if unsigned == "a" else "u8", int(k), "s32", bool(saturate))
    return _DotStrip(name, target, kind).write()


def _dot(f: IRFunction, total: Value, unsigned: Value, signed: Value) -> Value:
    """Each word of `total` plus the sum of four products of bytes."""
    small = [f.bitcast(x, vector_type("i8", 64)) for x in (unsigned, signed)]
    return f.intrinsic(total.type, "llvm.x86.avx512.vpdpbusd.512", total, *small)


Key = tuple[int, int, int]  # of accumulators: rows 0 to 7 or 8 to 15, even or odd columns, chunk


class _Strip:
    """Writes a strip's function."""

    def __init__(self, name: str, target: Target, kind: Kind):
        parameters = [("ptr", "rows"), ("ptr", "columns"), ("ptr", "c"), ("ptr", "d"), ("i32", "tiles"),
                      ("i32", "steps")]  # fmt: skip
        self.f = begin(name, "void", parameters, target)
        self.kind = kind
        self.lanes = chunk_lanes(target)
        self.chunks = 32 // self.lanes
        self.vector = 4 * self.lanes
        self.element = "i32" if kind.sums == "s32" else "float"
        self.type = vector_type(self.element, self.lanes)

    def write(self) -> IRFunction:
        f = self.f
        rows, columns, c, d, tiles, steps = f.parameters
        here, out_of, into = f.variable(columns), f.variable(c), f.variable(d)
        # as many accumulators at once as there are registers for: 8 of 16 lanes are a tile, 8 of 8 lanes half of one
        halves: list[tuple[int, ...]] = [(0, 1)] if self.lanes == 16 else [(0,), (1,)]
        with f.for_range(constant("i32", 0), tiles):
            first = f.get(here)
            for side in halves:
                self._rows(side, rows, first, f.get(out_of), f.get(into), steps)
            f.set(here, f.index(first, steps, self.kind.column_bytes))
            for place in (out_of, into):
                f.set(place, f.offset(f.get(place), self.kind.tile_bytes))
        f.ret()
        return f

    def _rows(self, halves: tuple[int, ...], rows: Value, columns: Value, c: Value, d: Value, steps: Value) -> None:
        """All steps of one tile for the given halves of its rows."""
        f = self.f
        keys = [(half, odd, chunk) for half in halves for odd in (0, 1) for chunk in range(self.chunks)]
        sums = {key: f.variable(value) for key, value in self._load(c, keys).items()}
        row_at, column_at = f.variable(rows), f.variable(columns)
        with f.for_range(constant("i32", 0), steps):
            row, column = f.get(row_at), f.get(column_at)
            before = {key: f.get(sums[key]) for key in keys}
            for key, value in self._step(row, column, before, halves).items():
                f.set(sums[key], value)
            f.set(row_at, f.offset(row, self.kind.row_bytes))
            f.set(column_at, f.offset(column, self.kind.column_bytes))
        self._store(d, {key: f.get(sums[key]) for key in keys})

    # ---- accumulators
    def _load(self, c: Value, keys: list[Key]) -> dict[Key, Value]:
        f = self.f
        if self.kind.sums != "f16":
            return {key: f.load(self.type, f.offset(c, self._sum_offset(key)), align=self.vector) for key in keys}
        found: dict[Key, Value] = {}
        for half, odd, chunk in keys:
            if not odd:
                at = half * 128 + chunk * self.vector
                pair = f.load(vector_type("i32", self.lanes), f.offset(c, at), align=self.vector)
                found[half, 0, chunk], found[half, 1, chunk] = _parts(f, "f16", pair)
        return found

    def _store(self, d: Value, sums: dict[Key, Value]) -> None:
        f = self.f
        if self.kind.sums != "f16":
            for key, value in sums.items():
                f.store(value, f.offset(d, self._sum_offset(key)), align=self.vector)
            return
        words = vector_type("i32", self.lanes)
        for (half, odd, chunk), value in sums.items():
            if not odd:
                low, high = (f.zext(self._half_bits(x), words) for x in (value, sums[half, 1, chunk]))
                pair = f.or_(low, f.shl(high, 16))
                f.store(pair, f.offset(d, half * 128 + chunk * self.vector), align=self.vector)

    def _half_bits(self, value: Value) -> Value:
        f = self.f
        halves = f.convert("fptrunc", value, vector_type("half", self.lanes))
        return f.bitcast(halves, vector_type("i16", self.lanes))

    def _sum_offset(self, key: Key) -> int:
        half, odd, chunk = key
        return (2 * half + odd) * 128 + chunk * self.vector

    # ---- products
    def _left(self, row: Value, place: int, t: int, half: int, chunk: int) -> Value:
        """Of each row, the element at lane % 4 = t, four times."""
        f = self.f
        at = (place * 2 + half) * self.chunks + chunk
        whole = f.load(self.type, f.offset(row, at * self.vector), align=self.vector)
        return f.shuffle(whole, None, [lane // 4 * 4 + t for lane in range(self.lanes)])

    def _right(self, column: Value, offset: int, odd: int) -> Value:
        """Four even, or odd, columns again and again."""
        f = self.f
        four = f.load(vector_type(self.element, 4), f.offset(column, offset + 16 * odd), align=16)
        return f.shuffle(four, None, [lane % 4 for lane in range(self.lanes)])

    def _step(
        self, row: Value, column: Value, before: dict[Key, Value], halves: tuple[int, ...]
    ) -> dict[Key, Value]:  # fmt: skip
        """The sums after one product of fragments."""
        f, kind = self.f, self.kind
        total = dict(before)
        for k in range(kind.k):
            block, part, t = kind.place(k)
            place = block * kind.per_register + part
            left = {(h, c): self._left(row, place, t, h, c) for h in halves for c in range(self.chunks)}
            for odd in (0, 1):
                right = self._right(column, kind.column_offset(k), odd)
                for (half, chunk), x in left.items():
                    key = (half, odd, chunk)
                    total[key] = f.intrinsic(self.type, f"llvm.fma.v{self.lanes}f32", x, right, total[key])
        if kind.sums == "f16":
            halves_type = vector_type("half", self.lanes)
            total = {
                key: f.convert("fpext", f.convert("fptrunc", value, halves_type), self.type)
                for key, value in total.items()
            }
        return total


class _DotStrip(_Strip):
    """Writes the function of a strip of bytes: four k at a time."""

    def _step(
        self, row: Value, column: Value, before: dict[Key, Value], halves: tuple[int, ...]
    ) -> dict[Key, Value]:  # fmt: skip
        f, kind = self.f, self.kind
        corrections = [self._right(column, 8 * kind.k, odd) for odd in (0, 1)]
        if kind.saturate:
            total = {key: corrections[key[1]] for key in before}
        else:
            total = {key: f.add(value, corrections[key[1]]) for key, value in before.items()}
        for block in range(kind.b_registers):
            for t in range(4):
                left = {(h, c): self._left(row, block, t, h, c) for h in halves for c in range(self.chunks)}
                for odd in (0, 1):
                    right = self._right(column, (block * 4 + t) * 32, odd)
                    for (half, chunk), x in left.items():
                        pair = (x, right) if kind.a == "u8" else (right, x)
                        total[half, odd, chunk] = _dot(f, total[half, odd, chunk], *pair)
        if kind.saturate:
            name = f"llvm.sadd.sat.v{self.lanes}i32"
            return {key: f.intrinsic(self.type, name, before[key], value) for key, value in total.items()}
        return total
