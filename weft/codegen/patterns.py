"""Accesses at offsets that are known when compiling: contiguous lanes as vector accesses, other patterns as a few loads
and shuffles, 16 bytes a lane as one access for each lane and a transposition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from weft.codegen.checks import Checks
from weft.codegen.value import WARP_LANES, Value, full_range, mask_of

MAX_RUNS = 4  # pieces that a known pattern may consist of before a gather is cheaper


class Patterns(Checks):
    """Vectors at places relative to a pointer that has been checked."""

    def _scalar_loads(self, pointer: str, bits: int, count: int) -> list[str]:
        size = bits // 8
        return [
            self.t(f"load i{bits}, ptr {self._offset(pointer, i * size)}, align {size}, !noalias !3")
            for i in range(count)
        ]

    def _load_quads(self, pointers: Sequence[str], bits: int) -> list[str]:
        """16 bytes at each lane's pointer, as the chunks of four (or two, of 64 bits) components."""
        n, vtype = self.chunk, self.vtype(64)
        columns: list[list[str]] = [[] for _ in range(4)]
        for c in range(self.chunks):
            lanes = [self.t(f"load <4 x i32>, ptr {at}, align 16, !noalias !3") for at in pointers[c * n : (c + 1) * n]]
            for column, part in zip(columns, self._transpose(lanes)):
                column.append(part)
        if bits == 32:
            return [part for column in columns for part in column]
        found = []
        for i in (0, 1):
            for low, high in zip(columns[2 * i], columns[2 * i + 1]):
                pairs = self.shuffle_constant(low, high, "i32", n, [k for j in range(n) for k in (j, n + j)])
                found.append(self.t(f"bitcast <{2 * n} x i32> {pairs} to {vtype}"))
        return found

    def _transpose(self, lanes: list[str]) -> list[str]:
        """Four vectors, the i-th with word i of every lane, from one <4 x i32> per lane."""
        n = len(lanes)
        rows = []
        for j in range(4):
            parts = lanes[j::4]  # lane j, 4 + j, 8 + j ... side by side, so that the rest stays within 128 bits
            width = 4
            while len(parts) > 1:
                parts = [
                    self.shuffle_constant(a, b, "i32", width, range(2 * width)) for a, b in zip(parts[::2], parts[1::2])
                ]
                width *= 2
            rows.append(parts[0])
        low, high, first, second = _quad_picks(n)
        halves = [[self.shuffle_constant(rows[a], rows[a + 1], "i32", n, pick) for a in (0, 2)] for pick in (low, high)]
        return [self.shuffle_constant(*pair, "i32", n, pick) for pair in halves for pick in (first, second)]

    def _gather(self, addresses: str, bits: int, lanes: str) -> str:
        n, vtype = self.chunk, self.vtype(bits)
        pointers = self.t(f"inttoptr {self.vtype(64)} {addresses} to <{n} x ptr>")
        name = f"@llvm.masked.gather.v{n}i{bits}.v{n}p0"
        self.declare(f"declare {vtype} {name}(<{n} x ptr>, <{n} x i1>, {vtype})")
        return self.t(
            f"call {vtype} {name}(<{n} x ptr> align {bits // 8} {pointers}, <{n} x i1> {lanes}, "
            f"{vtype} zeroinitializer), !noalias !3"
        )

    def _scatter(self, addresses: str, data: str, bits: int, lanes: str) -> None:
        n, vtype = self.chunk, self.vtype(bits)
        pointers = self.t(f"inttoptr {self.vtype(64)} {addresses} to <{n} x ptr>")
        name = f"@llvm.masked.scatter.v{n}i{bits}.v{n}p0"
        self.declare(f"declare void {name}({vtype}, <{n} x ptr>, <{n} x i1>)")
        self.e(
            f"call void {name}({vtype} {data}, <{n} x ptr> align {bits // 8} {pointers}, <{n} x i1> {lanes}), "
            "!noalias !3"
        )

    def _lane_offsets(self, address: Value) -> np.ndarray | None:
        """Byte offsets of the 32 lanes from the lowest address when they are the same for every warp."""
        if address.is_varying:
            return None
        total = np.zeros(WARP_LANES, np.int64)
        tables = [(address.table, 1)]
        if address.wide is not None:
            tables.append((address.wide.table, address.wide.scale))
        for table, scale in tables:
            if table is None:
                continue
            if not table.rows_alike:
                return None
            total = total + (table.array[0] - table.array[0, 0]) * scale
        return total - total.min()

    def _pattern(self, address: Value, size: int, count: int, storing: bool = False) -> np.ndarray | None:
        """Lane offsets that can be accessed without a gather; None otherwise."""
        offsets = self._lane_offsets(address)
        if offsets is None:
            return None
        memo = (offsets.tobytes(), size, count, storing)
        possible = self.pool.possible.get(memo)
        if possible is None:
            if storing:
                possible = self._store_plan(offsets, size, count) is not None
            else:
                was, self.dry = self.dry, True
                possible = all(x is not None for x in self._load_pattern("%dry", offsets, size, count))
                self.dry = was
            self.pool.possible[memo] = possible
        return offsets if possible else None

    def _split_address(self, address: Value) -> tuple[str, str | None]:
        """(lowest address of the warp, i1 "no lane wraps" or None) of an address with lane offsets."""
        bits = address.bits
        column = np.zeros(self.warps, np.int64)
        relative = np.zeros(WARP_LANES, np.int64)
        if address.table is not None:
            column = column + address.table.array[:, 0]
            relative = relative + (address.table.array[0] - address.table.array[0, 0])
        no_wrap = scaled = None
        if address.wide is not None:
            w = address.wide
            column = column + w.table.array[:, 0] * w.scale
            relative = relative + (w.table.array[0] - w.table.array[0, 0]) * w.scale
            index = self.t(f"{'sext' if w.signed else 'zext'} i32 {w.base} to i64")
            scaled = index if w.scale == 1 else self.t(f"mul i64 {index}, {w.scale}")
            low, high = full_range(32) if w.signed else (0, mask_of(32))
            above = self.t(f"icmp sge i64 {index}, {low - min(0, w.table.low)}")
            below = self.t(f"icmp sle i64 {index}, {high - max(0, w.table.high)}")
            no_wrap = self.t(f"and i1 {above}, {below}")
        name = self.row_scalar(column + int(relative.min()) + address.offset, bits)
        for term in (address.base, scaled):
            if term is not None:
                name = term if name == "0" else self.t(f"add i{bits} {term}, {name}")
        return name, no_wrap

    def _load_pattern(self, pointer: str, offsets: np.ndarray, size: int, count: int) -> list[str | None]:
        """Chunks of each component, or None in the place of one that needs a gather."""
        n = self.chunk
        return [
            self._load_offsets(pointer, offsets[c * n : (c + 1) * n] + i * size, size)
            for i in range(count)
            for c in range(self.chunks)
        ]

    def _load_offsets(self, pointer: str, offsets: np.ndarray, size: int) -> str | None:
        """A vector of elements at known byte offsets."""
        ty, n = f"i{size * 8}", len(offsets)
        low = int(offsets.min())

        def piece(offset: int, lanes: int) -> str:
            kind = ty if lanes == 1 else f"<{lanes} x {ty}>"
            return self.t(f"load {kind}, ptr {self._offset(pointer, offset)}, align {size}, !noalias !3")

        distance = offsets - low
        if not distance.any():
            return self.splat(piece(low, 1), ty, n)
        if (distance % size).any():
            return None
        index = distance // size
        span = int(index.max()) + 1
        if span == n and (index == np.arange(n)).all():
            return piece(low, n)
        for step in (2, 4, 8):
            if (index == np.arange(n) * step).all():
                return self._load_strided(pointer, low, size, step, n)
        if span <= max(2 * n, 64 // size):
            return self.shuffle_constant(piece(low, span), None, ty, span, index.tolist())
        return self._load_runs(piece, index, low, size, n)

    def _load_strided(self, pointer: str, low: int, size: int, step: int, n: int) -> str:
        """Every `step`-th element. All components of a vector access load the same whole vectors, which LLVM shares,
        and pick theirs by a tree of shuffles. `low` is below step * size: the first lane is at offset 0."""
        ty = f"i{size * 8}"
        span = step * size
        first = low // span * span
        phase = (low - first) // size
        parts = [
            self.t(f"load <{n} x {ty}>, ptr {self._offset(pointer, first + i * n * size)}, align {size}, !noalias !3")
            for i in range(step)
        ]
        while len(parts) > 1:
            parity = phase & 1
            phase >>= 1
            parts = [
                self.shuffle_constant(a, b, ty, n, range(parity, 2 * n, 2)) for a, b in zip(parts[::2], parts[1::2])
            ]
        return parts[0]

    def _load_runs(self, piece, index: np.ndarray, low: int, size: int, n: int) -> str | None:
        """Up to MAX_RUNS contiguous pieces, put together by shuffles."""
        ty = f"i{size * 8}"
        runs: list[list[int]] = []
        for x in np.unique(index):
            if runs and x == runs[-1][0] + runs[-1][1]:
                runs[-1][1] += 1
            else:
                runs.append([int(x), 1])
        if len(runs) > MAX_RUNS:
            return None
        width = 1 << (max(length for _, length in runs) - 1).bit_length()
        if width * len(runs) > 4 * n:
            return None
        where: dict[int, int] = {}
        parts = []
        for at, (start, length) in enumerate(runs):
            x = piece(low + start * size, length)
            if length == 1:
                x = self.t(f"insertelement <{width} x {ty}> poison, {ty} {x}, i32 0")
            elif length < width:
                x = self.shuffle_constant(x, None, ty, length, [min(i, length - 1) for i in range(width)])
            for i in range(length):
                where[start + i] = at * width + i
            parts.append(x)
        while len(parts) & (len(parts) - 1):
            parts.append(parts[-1])
        while len(parts) > 1:
            parts = [self.shuffle_constant(a, b, ty, width, range(2 * width)) for a, b in zip(parts[::2], parts[1::2])]
            width *= 2
        return self.shuffle_constant(parts[0], None, ty, width, [where[int(i)] for i in index])

    def _store_plan(self, offsets: np.ndarray, size: int, count: int) -> list[tuple[int, list[int]]] | None:
        """Contiguous runs (byte offset, lanes in address order) of a store, or None when lanes collide or the runs
        are too many. For vectors of `count` elements the lanes must follow one another."""
        order = np.argsort(offsets, kind="stable")
        ordered = offsets[order]
        step = size * count
        gaps = np.diff(ordered)
        if (gaps < step).any():
            return None
        if count > 1:
            contiguous = (gaps == step).all() and (order == np.arange(WARP_LANES)).all()
            return [(0, list(range(WARP_LANES)))] if contiguous and count in (2, 4) else None
        runs: list[tuple[int, list[int]]] = []
        for lane, at in zip(order.tolist(), ordered.tolist()):
            if runs and at == runs[-1][0] + len(runs[-1][1]) * size:
                runs[-1][1].append(lane)
            else:
                runs.append((at, [lane]))
        return runs if len(runs) <= MAX_RUNS else None

    def _store_by_plan(self, ok: str | None, pointer: Callable[[], str], offsets, values, slow) -> None:
        bits, count = values[0].bits, len(values)
        size = bits // 8
        plan = self._store_plan(offsets, size, count)
        everyone = list(range(WARP_LANES))
        whole = count == 1 and len(plan) == 1 and plan[0][1] == everyone
        for v in values:
            self.vec(v)
        if self.mask is not None and not whole:
            ok = self.t(f"and i1 {ok or 'true'}, {self.all_running()}")

        def fast():
            at = pointer()
            if whole:
                self._store_chunks(at, values[0])
            elif count > 1:
                self._store_interleaved(at, values)
            else:
                joined = self.join_chunks(self.vec(values[0]), f"i{bits}")
                for offset, lanes in plan:
                    part = joined
                    if lanes != everyone:
                        part = self.shuffle_constant(joined, None, f"i{bits}", WARP_LANES, lanes)
                    where = self._offset(at, offset)
                    self.e(f"store <{len(lanes)} x i{bits}> {part}, ptr {where}, align {size}, !noalias !3")
            return []

        self._maybe(ok, fast, slow, [])

    def _store_chunks(self, pointer: str, value: Value) -> None:
        if self.mask is None or self.has_mask_registers:
            self._store_masked(pointer, value)
            return
        # Masked stores without mask registers take tens of cycles; a warp with all its lanes does without them.
        mask = self.mask

        def whole() -> list[str]:
            self.mask = None
            self._store_masked(pointer, value)
            self.mask = mask
            return []

        def partly() -> list[str]:
            self._store_masked(pointer, value)
            return []

        self.diamond(self.all_running(), whole, partly, [])

    def _store_masked(self, pointer: str, value: Value) -> None:
        bits, n = value.bits, self.chunk
        for c, x in enumerate(self.vec(value)):
            self._store_vector(self._offset(pointer, c * n * bits // 8), x, bits, c)

    def _store_vector(self, where: str, x: str, bits: int, c: int) -> None:
        """One chunk at contiguous places, under the mask."""
        n, vtype = self.chunk, self.vtype(bits)
        if self.mask is None:
            self.e(f"store {vtype} {x}, ptr {where}, align {bits // 8}, !noalias !3")
            return
        name = f"@llvm.masked.store.v{n}i{bits}.p0"
        self.declare(f"declare void {name}({vtype}, ptr, <{n} x i1>)")
        self.e(f"call void {name}({vtype} {x}, ptr align {bits // 8} {where}, <{n} x i1> {self.mask[c]}), !noalias !3")

    def _store_interleaved(self, pointer: str, values: Sequence[Value]) -> None:
        """Lanes one after another, each with 2 or 4 elements."""
        bits, n = values[0].bits, self.chunk
        ty, size = f"i{bits}", bits // 8
        columns = [self.vec(v) for v in values]
        zipped = [x for i in range(n) for x in (i, n + i)]
        for c in range(self.chunks):
            pairs = [
                self.shuffle_constant(columns[i][c], columns[i + 1][c], ty, n, zipped) for i in range(0, len(values), 2)
            ]
            at = c * n * size * len(values)
            if len(values) == 2:
                self.e(f"store <{2 * n} x {ty}> {pairs[0]}, ptr {self._offset(pointer, at)}, align {size}, !noalias !3")
                continue
            for q in range(4):
                lanes = range(q * n // 4, (q + 1) * n // 4)
                picks = [x for i in lanes for x in (2 * i, 2 * i + 1, 2 * n + 2 * i, 2 * n + 2 * i + 1)]
                part = self.shuffle_constant(pairs[0], pairs[1], ty, 2 * n, picks)
                where = self._offset(pointer, at + q * n * size)
                self.e(f"store <{n} x {ty}> {part}, ptr {where}, align {size}, !noalias !3")

    def _store_last(self, pointer: str, values: Sequence[Value]) -> list[str]:
        """All lanes write one address: the last running lane's value stays."""
        last = None
        for i, v in enumerate(values):
            size = v.bits // 8
            if v.is_uniform:
                x = self.uval(v)
            else:
                whole = self.join_chunks(self.vec(v), f"i{v.bits}")
                if last is None:
                    last = self._last_lane()
                x = self.t(f"extractelement <32 x i{v.bits}> {whole}, i32 {last}")
            self.e(f"store i{v.bits} {x}, ptr {self._offset(pointer, i * size)}, align {size}, !noalias !3")
        return []

    def _last_lane(self) -> str:
        if self.mask is None:
            return "31"
        self.declare("declare i32 @llvm.ctlz.i32(i32, i1)")
        zeros = self.t(f"call i32 @llvm.ctlz.i32(i32 {self.mask_word()}, i1 false)")
        return self.t(f"sub i32 31, {zeros}")

    def _store_quads(self, pointers: Sequence[str], values: Sequence[Value]) -> None:
        """16 bytes a lane, in four components of 32 bits or two of 64, at each lane's pointer, in lane order."""
        n = self.chunk
        words = [w for v in values for w in self.unpack(v, v.bits // 32)] if values[0].bits == 64 else list(values)
        low, high, first, second = _quad_picks(n)
        for c, (x0, x1, x2, x3) in enumerate(zip(*(self.vec(w) for w in words))):
            columns = []
            for pick in (low, high):
                pair = [self.shuffle_constant(a, b, "i32", n, pick) for a, b in ((x0, x1), (x2, x3))]
                columns += [self.shuffle_constant(*pair, "i32", n, second_pick) for second_pick in (first, second)]
            for lane in range(n):
                at = lane // 4 * 4
                quad = self.shuffle_constant(columns[lane % 4], None, "i32", n, range(at, at + 4))
                self.e(f"store <4 x i32> {quad}, ptr {pointers[c * n + lane]}, align 16, !noalias !3")


def _quad_picks(n: int) -> tuple[list[int], ...]:
    """Shuffles of two vectors of n elements that turn four rows into four columns within each 128 bits: the lower and
    the upper pairs interleaved, then the first and the second halves side by side."""
    quads = range(0, n, 4)
    low = [k for q in quads for k in (q, n + q, q + 1, n + q + 1)]
    high = [k for q in quads for k in (q + 2, n + q + 2, q + 3, n + q + 3)]
    first = [k for q in quads for k in (q, q + 1, n + q, n + q + 1)]
    second = [k for q in quads for k in (q + 2, q + 3, n + q + 2, n + q + 3)]
    return low, high, first, second
