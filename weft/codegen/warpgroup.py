"""The functions that do a warp's part of wgmma: names enter (see weft.codegen.support), LLVM IR leaves.

A warp multiplies its 16 rows in three steps:

- `weft_wgmma_b_...` takes B apart: every chunk of 16 bytes is fetched from where the descriptor puts it, and its
  numbers are laid out as float32, `panel[tile][k][8]`, a tile being 8 columns of which the even ones come first;
- `weft_wgmma_a_...` lays out A as `panel[k][row][4]`, each number four times;
- `weft_wgmma_multiply_...` multiplies. A register of D holds, for eight rows, four even or four odd columns of a tile:
  as many of them as a vector has are the product of one vector of A's panel and four numbers of B's, repeated. So the
  accumulators need no rearrangement: they are worked on where they are kept, in memory, register after register.

Integers are multiplied in float32, which is exact for up to 256 products of 8 bits, and single bits as words of 32.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from weft.codegen import abi
from weft.codegen.access import begin
from weft.codegen.irtext import IRFunction, Value, constant, vector_type
from weft.codegen.jit import Target
from weft.isa.wgmma import CHUNK_BYTES, ELEMENT_BITS, ROWS, WARP_ROWS

TILE = 8  # columns of a tile
REPEAT = 4  # lanes of a register of D that share a row
EVEN_FIRST = (0, 2, 4, 6, 1, 3, 5, 7)
B_ROW_BYTES = 4 * TILE  # one k of a tile in B's panel
A_ROW_BYTES = 4 * REPEAT * WARP_ROWS  # one k in A's panel
REGISTER_BYTES = 128  # 32 lanes
PANEL_TAG_BYTES = 64  # before B's panel: whose it is


def _lanes(target: Target) -> int:
    return 16 if target.vector_bits >= 512 else 8


def _element(type_: str) -> tuple[str, int]:
    """(LLVM type of a stored element, elements of a chunk); single bits are handled as words."""
    bits = 32 if type_ == "b1" else ELEMENT_BITS[type_]
    return f"i{bits}", 8 * CHUNK_BYTES // bits


def _to_f32(f: IRFunction, x: Value, type_: str) -> Value:
    """A vector of stored elements as float32 (single bits: as they are)."""
    count = int(x.type[1:].split(" ")[0])
    floats, words = vector_type("float", count), vector_type("i32", count)
    if type_ == "b1":
        return f.bitcast(x, floats)
    if type_ == "f16":
        return f.convert("fpext", f.bitcast(x, vector_type("half", count)), floats)
    if type_ == "bf16":
        return f.bitcast(f.shl(f.zext(x, words), 16), floats)
    if type_ == "tf32":
        return f.bitcast(f.and_(x, -(1 << 13)), floats)
    if type_ in ("s8", "u8"):
        signed = type_ == "s8"
        return f.convert("sitofp", f.convert("sext" if signed else "zext", x, words), floats)
    halves = vector_type("half", count)
    wide = f.zext(x, vector_type("i16", count))
    if type_ == "e5m2":
        return f.convert("fpext", f.bitcast(f.shl(wide, 8), halves), floats)
    # e4m3 is f16 with an exponent eight too small; only all ones is no number
    sign, magnitude = f.shl(f.and_(wide, 0x80), 8), f.and_(wide, 0x7F)
    half = f.convert("fpext", f.bitcast(f.or_(sign, f.shl(magnitude, 7)), halves), floats)
    value = f.binary("fmul", half, Value(floats, "splat (float 2.560000e+02)"))
    nan = f.bitcast(f.const(words, 0x7FFFFFFF), floats)
    return f.select(f.icmp("eq", magnitude, 0x7F), nan, value)


class _Descriptor:
    """The fields of a descriptor in a register, checked; addresses of its chunks. All i64."""

    def __init__(self, f: IRFunction, word: Value, lines: int | Value, chunks: int | Value, major: str, site: Value):
        self.f, self.major = f, major
        named = {value.ref: value for value in f.parameters}

        def field(low: int) -> Value:
            return f.shl(f.and_(f.lshr(word, low), 0x3FFF), 4)

        self.start, self.leading, self.stride = field(0), field(16), field(32)
        self.base = f.and_(f.lshr(word, 49), 7)
        mode = f.lshr(word, 62)
        # modes 0, 1, 2, 3: rows of 16, 128, 64, 32 bytes
        self.plain = f.icmp("eq", mode, 0)
        self.width = f.select(self.plain, f.const("i64", 16), f.lshr(f.const("i64", 256), mode))
        self.phases = f.sub(f.lshr(self.width, 4), 1)
        if major == "k":
            self.chunk_step = f.select(self.plain, self.leading, f.const("i64", 16))
            self.atom_step = self.stride
        else:
            self.chunk_step = f.select(self.plain, self.stride, f.const("i64", 16))
            self.atom_step = f.select(self.plain, self.leading, self.stride)
        self._check(word, lines, chunks, site, named)

    def _check(self, word: Value, lines: int | Value, chunks: int | Value, site: Value, named: dict) -> None:
        f = self.f
        lines = f.const("i64", lines) if isinstance(lines, int) else lines
        chunks = f.const("i64", chunks) if isinstance(chunks, int) else chunks
        rows = f.intrinsic("i64", "llvm.umin.i64", lines, f.const("i64", 8))
        last = f.add(self.start, f.mul(f.sub(rows, 1), self.width))
        last = f.add(last, f.mul(f.lshr(f.sub(lines, 1), 3), self.atom_step))
        if self.major == "k":
            last = f.add(last, f.mul(f.sub(chunks, 1), self.chunk_step))
            wide = f.icmp("ugt", f.shl(chunks, 4), self.width)
            self._fail_if(f.and_(wide, f.not_(self.plain)), abi.DESCRIPTOR_TOO_WIDE, word, site, named)
        else:
            last = f.add(last, self.across(f.sub(chunks, 1)))
        end = f.add(f.or_(last, f.sub(self.width, 1)), 1)
        launch = f.field(named["%wk"], abi.Worker, "launch")
        shared = f.zext(f.field(launch, abi.Launch, "shared_bytes"), "i64")
        self._fail_if(f.icmp("ugt", end, shared), abi.DESCRIPTOR_OUTSIDE, word, site, named)
        self.shared = f.field(named["%blk"], abi.BlockHeader, "shared")

    def _fail_if(self, condition: Value, reason: int, word: Value, site: Value, named: dict) -> None:
        f = self.f
        with f.if_(condition, unlikely=True):
            kind = constant("i32", int(abi.FaultKind.DESCRIPTOR))
            f.call("void", "weft_fault", named["%wk"], named["%blk"], named["%w"], kind, site, constant("i32", 0), word,
                   constant("i32", reason))  # fmt: skip
            f.ret()

    def across(self, chunk: Value) -> Value:
        """MN-major: how far a chunk is from the first one."""
        f = self.f
        plain = f.mul(chunk, self.stride)
        width = f.add(self.phases, 1)
        outer = f.lshr(chunk, f.intrinsic("i64", "llvm.cttz.i64", width, constant("i1", 1)))
        swizzled = f.add(f.mul(outer, self.leading), f.shl(f.and_(chunk, self.phases), 4))
        return f.select(self.plain, plain, swizzled)

    def swizzled(self, address: Value) -> Value:
        """The address at which what belongs at `address` is found."""
        f = self.f
        phase = f.and_(f.sub(f.lshr(address, 7), self.base), self.phases)
        return f.xor(address, f.shl(phase, 4))

    def pointer(self, address: Value) -> Value:
        return self.f.offset(self.shared, address)


def _load_chunks(f: IRFunction, pointers: list[Value], element: str, count: int) -> Value:
    """Chunks of 16 bytes side by side in one vector."""
    part = vector_type(element, count)
    vectors = [f.load(part, p, align=16) for p in pointers]
    while len(vectors) > 1:
        size = count * (len(pointers) // len(vectors))
        vectors = [f.shuffle(a, b, list(range(2 * size))) for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]


def write_b(name: str, target: Target, major: str, type_: str, depth: str) -> IRFunction:
    """void weft_wgmma_b_MAJOR_TYPE_K(wk, blk, w, i64 descriptor, ptr panel, i64 pitch, i32 tiles, i32 site): lays out
    K rows of B. `pitch` is a tile's size in the panel, in bytes."""
    parameters = [("ptr", "wk"), ("ptr", "blk"), ("i32", "w"), ("i64", "word"), ("ptr", "panel"), ("i64", "pitch"),
                  ("i32", "tiles"), ("i32", "site")]  # fmt: skip
    f = begin(name, "void", parameters, target)
    *_, word, panel, pitch, tiles32, site = f.parameters
    tiles = f.zext(tiles32, "i64")
    element, per_chunk = _element(type_)
    k = int(depth) // 32 if type_ == "b1" else int(depth)
    lanes = _lanes(target)
    if major == "k":
        chunks = k // per_chunk
        d = _Descriptor(f, word, f.shl(tiles, 3), chunks, "k", site)
        with f.for_range(f.const("i64", 0), tiles) as tile:
            out = f.offset(panel, f.mul(tile, pitch))
            first = f.add(d.start, f.mul(tile, d.stride))
            for c in range(chunks):
                start = f.add(first, f.mul(d.chunk_step, c))
                pointers = [
                    d.pointer(d.swizzled(f.add(start, f.mul(d.width, row)) if row else start)) for row in range(TILE)
                ]
                _transpose(f, pointers, f.offset(out, c * per_chunk * B_ROW_BYTES), type_, lanes)
        return f
    d = _Descriptor(f, word, k, tiles, "mn", site)
    step = min(k, lanes // 4)
    with f.for_range(f.const("i64", 0), tiles) as tile:
        out = f.offset(panel, f.mul(tile, pitch))
        first = f.add(d.start, d.across(tile))
        for line in range(0, k, step):
            pointers = []
            for i in range(line, line + step):
                address = f.add(first, f.mul(d.width, i % 8)) if i % 8 else first
                if i // 8:
                    address = f.add(address, f.mul(d.atom_step, i // 8))
                pointers.append(d.pointer(d.swizzled(address)))
            whole = _load_chunks(f, pointers, element, per_chunk)
            for i in range(0, step, lanes // 8):
                order = [per_chunk * (i + q) + e for q in range(lanes // 8) for e in EVEN_FIRST]
                numbers = _to_f32(f, f.shuffle(whole, None, order), type_)
                f.store(numbers, f.offset(out, (line + i) * B_ROW_BYTES), align=4 * TILE)
    return f


def _transpose(f: IRFunction, pointers: list[Value], out: Value, type_: str, lanes: int) -> None:
    """Eight rows of a chunk each become one row of eight numbers for each element, even rows first."""
    element, count = _element(type_)
    if lanes == 16:
        even = _load_chunks(f, pointers[0::2], element, count)
        odd = _load_chunks(f, pointers[1::2], element, count)
        for e in range(0, count, 2):
            order = [(p % 4) * count + e + i + (4 * count if p >= 4 else 0) for i in range(2) for p in range(TILE)]
            f.store(_to_f32(f, f.shuffle(even, odd, order), type_), f.offset(out, e * B_ROW_BYTES), align=64)
        return
    rows = [f.load(vector_type(element, count), pointers[row], align=16) for row in EVEN_FIRST]
    for _ in range(3):  # a perfect shuffle of the two halves, three times, is a transposition of 8 x count
        mixed = []
        for a, b in zip(rows[:4], rows[4:]):
            pairs = [x for i in range(count) for x in (i, count + i)]
            mixed += [f.shuffle(a, b, pairs[:count]), f.shuffle(a, b, pairs[count:])]
        rows = mixed
    for i, row in enumerate(rows):
        for part in range(0, count, 8):
            piece = row if count <= 8 else f.shuffle(row, None, list(range(part, part + 8)))
            f.store(_to_f32(f, piece, type_), f.offset(out, 4 * (i * count + part)), align=16)


def write_claim(name: str, target: Target) -> IRFunction:
    """i1 weft_wgmma_claim(wk, blk, ptr tag, i64 count, i64 key): whether the panel behind the tag has yet to be made
    for this launch, block, count and key; the tag then says that it is."""
    f = begin(name, "i1", [("ptr", "wk"), ("ptr", "blk"), ("ptr", "tag"), ("i64", "count"), ("i64", "key")], target)
    worker, block, tag, count, key = f.parameters
    launch = f.field(worker, abi.Worker, "launch")
    wanted = [f.field(launch, abi.Launch, "grid_id"), f.field(block, abi.BlockHeader, "linear"), count, key]
    differs = f.const("i1", 0)
    for i, word in enumerate(wanted):
        differs = f.or_(differs, f.icmp("ne", f.load("i64", f.offset(tag, 8 * i)), word))
    with f.if_(differs):
        for i, word in enumerate(wanted):
            f.store(word, f.offset(tag, 8 * i))
    f.ret(differs)
    return f


def write_a(name: str, target: Target, major: str, type_: str, depth: str) -> IRFunction:
    """void weft_wgmma_a_MAJOR_TYPE_K(wk, blk, w, i64 descriptor, ptr panel, i32 flip, i32 site): lays out the warp's
    16 rows of A; `flip` is exclusive-ored with every number."""
    parameters = [("ptr", "wk"), ("ptr", "blk"), ("i32", "w"), ("i64", "word"), ("ptr", "panel"), ("i32", "flip"),
                  ("i32", "site")]  # fmt: skip
    f = begin(name, "void", parameters, target)
    _, _, warp, word, panel, flip, site = f.parameters
    element, per_chunk = _element(type_)
    k = int(depth) // 32 if type_ == "b1" else int(depth)
    rank = f.zext(f.and_(warp, 3), "i64")
    lanes = _lanes(target)
    rows = lanes // REPEAT
    if major == "k":
        chunks = k // per_chunk
        d = _Descriptor(f, word, ROWS, chunks, "k", site)
        first = f.add(d.start, f.mul(f.shl(rank, 1), d.stride))
        for line in range(0, WARP_ROWS, rows):
            for c in range(chunks):
                base = f.add(first, f.mul(d.chunk_step, c)) if c else first
                if line >= 8:
                    base = f.add(base, d.stride)
                pointers = [
                    d.pointer(d.swizzled(f.add(base, f.mul(d.width, (line + i) % 8)) if (line + i) % 8 else base))
                    for i in range(rows)
                ]
                _spread(f, pointers, panel, c * per_chunk, line, type_, flip, lanes)
        return f
    d = _Descriptor(f, word, k, ROWS // 8, "mn", site)
    for c in range(2):
        first = f.add(d.start, d.across(f.add(f.shl(rank, 1), c)))
        for line in range(k):
            address = f.add(first, f.mul(d.width, line % 8)) if line % 8 else first
            if line // 8:
                address = f.add(address, f.mul(d.atom_step, line // 8))
            whole = f.load(vector_type(element, per_chunk), d.pointer(d.swizzled(address)), align=16)
            for row in range(0, 8, rows):
                order = [row + q for q in range(rows) for _ in range(REPEAT)]
                _store_a(f, f.shuffle(whole, None, order), panel, line, 8 * c + row, type_, flip)
    return f


def write_a_registers(name: str, target: Target, type_: str) -> IRFunction:
    """void weft_wgmma_a_registers_TYPE(ptr fragment, ptr panel, i32 flip): the same for four registers in memory. Row
    g of a chunk is 16 bytes there: four lanes."""
    f = begin(name, "void", [("ptr", "fragment"), ("ptr", "panel"), ("i32", "flip")], target)
    fragment, panel, flip = f.parameters
    _, per_chunk = _element(type_)
    lanes = _lanes(target)
    rows = lanes // REPEAT
    for c in range(2):
        for line in range(0, WARP_ROWS, rows):
            register = 2 * c + line // 8
            pointers = [
                f.offset(fragment, register * REGISTER_BYTES + CHUNK_BYTES * ((line + i) % 8)) for i in range(rows)
            ]
            _spread(f, pointers, panel, c * per_chunk, line, type_, flip, lanes)
    return f


def _spread(f, pointers, panel, column: int, row: int, type_: str, flip: Value, lanes: int) -> None:
    """A chunk of each of some rows: every element goes to its k, four times."""
    element, count = _element(type_)
    whole = _load_chunks(f, pointers, element, count)
    for e in range(count):
        order = [q * count + e for q in range(len(pointers)) for _ in range(REPEAT)]
        _store_a(f, f.shuffle(whole, None, order), panel, column + e, row, type_, flip)


def _store_a(f, x: Value, panel: Value, k: int, row: int, type_: str, flip: Value) -> None:
    numbers = _to_f32(f, x, type_)
    count = int(numbers.type[1:].split(" ")[0])
    if ELEMENT_BITS[type_] > 1 and type_ not in ("s8", "u8"):
        words = f.xor(f.bitcast(numbers, vector_type("i32", count)), f.splat(flip, count))
        numbers = f.bitcast(words, numbers.type)
    f.store(numbers, f.offset(panel, k * A_ROW_BYTES + row * 4 * REPEAT), align=4 * count)


class _Accumulators:
    """The vectors of D that belong to some row vectors of one tile: [row vector][even, odd]."""

    def __init__(self, f: IRFunction, kind: str, lanes: int, keep: Value):
        self.f, self.kind, self.lanes, self.keep = f, kind, lanes, keep
        self.words, self.floats = vector_type("i32", lanes), vector_type("float", lanes)
        self.number = self.words if kind.endswith("bits") else self.floats
        self.zero = Value(self.number, "zeroinitializer")

    def _place(self, base: Value, row: int, parity: int) -> Value:
        """Where the accumulators of some rows are kept; f16: both parities together."""
        if self.kind == "f16":
            register, width = row // 8, 2
        else:
            register, width = parity + 2 * (row // 8), 4
        assert width
        return self.f.offset(base, register * REGISTER_BYTES + row % 8 * 4 * REPEAT)

    @property
    def tile_bytes(self) -> int:
        return (2 if self.kind == "f16" else 4) * REGISTER_BYTES

    def start(self, base: Value, row: int) -> list[Value]:
        """The numbers to add to, even and odd columns; integers are added to at the end."""
        f = self.f
        if self.kind.startswith("s32"):
            return [self.zero, self.zero]
        if self.kind == "f32":
            found = [f.load(self.floats, self._place(base, row, parity), align=32) for parity in (0, 1)]
        else:
            both = f.load(self.words, self._place(base, row, 0), align=32)
            halves = [f.trunc(both, vector_type("i16", self.lanes)),
                      f.trunc(f.lshr(both, 16), vector_type("i16", self.lanes))]  # fmt: skip
            found = [_to_f32(f, h, "f16") for h in halves]
        return [f.select(self.keep, x, self.zero) for x in found]

    def finish(self, base: Value, row: int, numbers: list[Value]) -> None:
        f = self.f
        if self.kind == "f32":
            for parity, x in enumerate(numbers):
                f.store(x, self._place(base, row, parity), align=32)
            return
        if self.kind == "f16":
            shorts = [
                f.zext(
                    f.bitcast(f.convert("fptrunc", x, vector_type("half", self.lanes)), vector_type("i16", self.lanes)),
                    self.words,
                )
                for x in numbers
            ]
            f.store(f.or_(shorts[0], f.shl(shorts[1], 16)), self._place(base, row, 0), align=32)
            return
        for parity, x in enumerate(numbers):
            place = self._place(base, row, parity)
            old = f.select(self.keep, f.load(self.words, place, align=32), Value(self.words, "zeroinitializer"))
            if not self.kind.endswith("bits"):
                x = f.convert("fptosi", x, self.words)
            if "sat" in self.kind:
                total = f.intrinsic(self.words, f"llvm.sadd.sat.v{self.lanes}i32", old, x)
            else:
                total = f.add(old, x)
            f.store(total, place, align=32)

    def step(self, total: Value, a: Value, b: Value) -> Value:
        f = self.f
        if self.kind.endswith("bits"):
            both = f.and_(f.bitcast(a, self.words), f.bitcast(b, self.words))
            return f.add(total, f.intrinsic(self.words, f"llvm.ctpop.v{self.lanes}i32", both))
        return f.intrinsic(self.floats, f"llvm.fma.v{self.lanes}f32", a, b, total)


def write_multiply(name: str, target: Target, kind: str) -> IRFunction:
    """void weft_wgmma_multiply_KIND(ptr d, ptr a, ptr b, i64 k, i32 tiles, i1 keep): D = A * B (+ D where keep)."""
    parameters = [("ptr", "d"), ("ptr", "a"), ("ptr", "b"), ("i64", "k"), ("i32", "tiles"), ("i1", "keep")]
    f = begin(name, "void", parameters, target)
    d, a, b, k, tiles32, keep = f.parameters
    lanes = _lanes(target)
    acc = _Accumulators(f, kind, lanes, keep)
    tiles, pitch = f.zext(tiles32, "i64"), f.mul(k, B_ROW_BYTES)
    # as many accumulators as leave registers for the factors: 16 of 32, or 8 of 16
    together = 2 if target.vector_bits >= 512 else 1
    halves = 1 if lanes == 16 else 2
    pairs = f.mul(f.udiv(tiles, together), together)

    def block(first: Value, count: int) -> None:
        panels = [f.offset(b, f.mul(f.add(first, t), pitch)) for t in range(count)]
        places = [f.offset(d, f.mul(f.add(first, t), acc.tile_bytes)) for t in range(count)]
        for half in range(halves):
            rows = range(half * WARP_ROWS // halves, (half + 1) * WARP_ROWS // halves, lanes // REPEAT)
            _multiply_block(f, acc, a, panels, places, rows, k)

    with f.for_range(f.const("i64", 0), pairs, together) as first:
        block(first, together)
    if together > 1:
        with f.if_(f.icmp("ne", pairs, tiles)):
            block(pairs, 1)
    return f


def _multiply_block(f, acc: _Accumulators, a: Value, panels: list[Value], places: list[Value], rows: range, k) -> None:
    """The accumulators of some rows and tiles, all k."""
    totals = [[[f.variable(x) for x in acc.start(place, row)] for row in rows] for place in places]
    quad = vector_type("float", REPEAT)
    repeated = [i % REPEAT for i in range(acc.lanes)]
    with f.for_range(f.const("i64", 0), k) as step:
        left = f.offset(a, f.mul(step, A_ROW_BYTES))
        factors = [f.load(acc.floats, f.offset(left, row * 4 * REPEAT), align=4 * acc.lanes) for row in rows]
        for panel, tile in zip(panels, totals):
            right = f.offset(panel, f.mul(step, B_ROW_BYTES))
            for parity in (0, 1):
                four = f.load(quad, f.offset(right, 16 * parity), align=16)
                many = f.shuffle(four, None, repeated)
                for x, pair in zip(factors, tile):
                    f.set(pair[parity], acc.step(f.get(pair[parity]), x, many))
    for place, tile in zip(places, totals):
        for row, pair in zip(rows, tile):
            acc.finish(place, row, [f.get(x) for x in pair])


def write_places(name: str, target: Target, type_: str, selector: str) -> IRFunction:
    """void weft_wgmma_places_TYPE_SELECTOR(ptr metadata, ptr places): for each stored element of a sparse A, the k it
    stands for, i32 places[stored k][16 rows]; metadata is a register in memory (see isa.wgmma.stored_places)."""
    f = begin(name, "void", [("ptr", "metadata"), ("ptr", "places")], target)
    metadata, places = f.parameters
    bits = ELEMENT_BITS[type_]
    stored = 8 * 2 * CHUNK_BYTES // bits
    per_lane = stored // 2
    with f.for_range(f.const("i64", 0), WARP_ROWS) as row:
        group = f.offset(metadata, f.shl(f.and_(row, 7), 4))
        high = f.lshr(row, 3)
        half = f.trunc(f.shl(high, 4), "i32")
        if bits == 8:  # even lanes have rows 0 to 7, odd lanes 8 to 15
            group = f.offset(group, f.shl(high, 2))
        for i in range(stored):
            part = i // per_lane
            if bits == 8:
                word = f.load("i32", f.offset(group, 8 * part))
            else:  # the low half of a word is for a row of the first eight, the high half for one of the others
                word = f.lshr(f.load("i32", f.offset(group, 4 * (2 * int(selector) + part))), half)
            within = i % per_lane
            if type_ == "tf32":
                place = f.add(f.and_(f.lshr(word, 4 * within + 1), 1), 2 * i)
            else:
                place = f.add(f.and_(f.lshr(word, 2 * within), 3), 4 * (i // 2))
            f.store(place, f.index(f.offset(places, 4 * WARP_ROWS * i), row, 4))
    return f


def write_sparse(name: str, target: Target, kind: str) -> IRFunction:
    """void weft_wgmma_sparse_KIND(ptr d, ptr a, ptr b, i64 stored_k, i32 tiles, i1 keep, ptr places): each row takes
    the rows of B that its stored elements stand for."""
    parameters = [("ptr", "d"), ("ptr", "a"), ("ptr", "b"), ("i64", "k"), ("i32", "tiles"), ("i1", "keep"),
                  ("ptr", "places")]  # fmt: skip
    f = begin(name, "void", parameters, target)
    d, a, b, k, tiles32, keep, places = f.parameters
    lanes = _lanes(target)
    acc = _Accumulators(f, kind, lanes, keep)
    pitch = f.mul(k, 2 * B_ROW_BYTES)
    quad = vector_type("float", REPEAT)
    with f.for_range(f.const("i64", 0), f.zext(tiles32, "i64")) as tile:
        panel, place = f.offset(b, f.mul(tile, pitch)), f.offset(d, f.mul(tile, acc.tile_bytes))
        for row in range(0, WARP_ROWS, lanes // REPEAT):
            totals = [f.variable(x) for x in acc.start(place, row)]
            with f.for_range(f.const("i64", 0), k) as step:
                left = f.offset(a, f.add(f.mul(step, A_ROW_BYTES), row * 4 * REPEAT))
                factor = f.load(acc.floats, left, align=4 * lanes)
                chosen = f.offset(places, f.add(f.mul(step, 4 * WARP_ROWS), 4 * row))
                rights = [
                    f.offset(panel, f.mul(f.zext(f.load("i32", f.offset(chosen, 4 * i)), "i64"), B_ROW_BYTES))
                    for i in range(lanes // REPEAT)
                ]
                for parity in (0, 1):
                    parts = [f.load(quad, f.offset(right, 16 * parity), align=16) for right in rights]
                    while len(parts) > 1:
                        size = 4 * (lanes // REPEAT) // len(parts)
                        parts = [f.shuffle(x, y, list(range(2 * size))) for x, y in zip(parts[::2], parts[1::2])]
                    f.set(totals[parity], acc.step(f.get(totals[parity]), factor, parts[0]))
            acc.finish(place, row, [f.get(x) for x in totals])
    return f


_TYPE = "([a-z0-9]+)"
_KIND = "(f16|f32|s32|s32_sat|s32_bits)"
# Names of the functions here, with their writers: see weft.codegen.support.
WGMMA_WRITERS: list[tuple[re.Pattern, Callable[..., IRFunction]]] = [
    (re.compile(f"weft_wgmma_b_(k|mn)_{_TYPE}_([0-9]+)"), write_b),
    (re.compile("weft_wgmma_claim"), write_claim),
    (re.compile(f"weft_wgmma_a_(k|mn)_{_TYPE}_([0-9]+)"), write_a),
    (re.compile(f"weft_wgmma_a_registers_{_TYPE}"), write_a_registers),
    (re.compile(f"weft_wgmma_multiply_{_KIND}"), write_multiply),
    (re.compile(f"weft_wgmma_places_{_TYPE}_([01])"), write_places),
    (re.compile(f"weft_wgmma_sparse_{_KIND}"), write_sparse),
]
