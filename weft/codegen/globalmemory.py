"""Global and generic memory: loads and stores of a warp, and what is fetched ahead of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weft.codegen.checks import CONTEXT
from weft.codegen.patterns import Patterns
from weft.codegen.value import WARP_LANES, Value

PREFETCH_ROUNDS = 8
TURNS_AHEAD = 16
BLOCKS_AHEAD = 1
WIDE_WINDOW = 256  # bytes of a warp's access from which on it is worth fetching ahead outside loops


class GlobalMemory(Patterns):
    """Accesses to global memory; lanes with unknown addresses may be contiguous all the same, which is tested."""

    if TYPE_CHECKING:  # the lowering's

        def takes_turns(self) -> bool: ...
        def in_loop(self) -> bool: ...
        def previous_address(self) -> str | None: ...

    def prefetch_ahead(self, base: str, window: int, store: bool = False) -> None:
        """In a loop that strides by the grid, fetch what this load will want PREFETCH_ROUNDS rounds later: each round
        is far from the last one, so the processor's own prefetchers see no pattern. Where warps take turns, what the
        warp TURNS_AHEAD turns later will want lies that much further on. Outside loops, a warp's wide access fetches
        what the same warp of a later block will want: blocks mostly follow each other at equal distances in memory,
        but the accesses of their warps are interleaved in pieces too short for the processor to see it."""
        if self.takes_turns():
            if not store:
                self._prefetch(self.t(f"add i64 {base}, {TURNS_AHEAD * window}"), window, 3)
            return
        slot = None if store else self.previous_address()
        rounds, locality = PREFETCH_ROUNDS, 3
        if slot is None:
            slot = self.previous_block_address() if window >= WIDE_WINDOW else None
            rounds, locality = BLOCKS_AHEAD, 2
        if slot is None:
            return
        before = self.t(f"load i64, ptr {slot}")
        self.e(f"store i64 {base}, ptr {slot}")
        step = self.t(f"sub i64 {base}, {before}")
        ahead = self.t(f"add i64 {base}, {self.t(f'mul i64 {step}, {rounds}')}")
        self._prefetch(ahead, window, locality)

    def previous_block_address(self) -> str | None:
        """Where this access keeps the address it had in the worker's last block, one for each warp; None in loops."""
        return None if self.in_loop() else self._last_address_pointer()

    def _last_address_pointer(self) -> str:
        """Memory of the worker thread for an address, one for each warp and access."""
        first = self.slot_of.get((self.site, "last"))
        if first is None:
            first = self.slot_of[(self.site, "last")] = len(self.slot_of)
            for i in range(1, (self.warps + 1) // 2):
                self.slot_of[(self.site, "last", i)] = len(self.slot_of)
        array = self.t(f"getelementptr i8, ptr %slots, i64 {first * 16}")
        return self.t(f"getelementptr i64, ptr {array}, i64 %w64")

    def _prefetch(self, address: str, window: int, locality: int) -> None:
        self.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        for offset in range(0, min(window, 512), 64):
            at = address if offset == 0 else self.t(f"add i64 {address}, {offset}")
            pointer = self.t(f"inttoptr i64 {at} to ptr")
            self.e(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {locality}, i32 1)")

    def _load_global(self, space: str, address: Value, bits: int, count: int) -> list[Value]:
        size = bits // 8
        if address.is_uniform and not (space == "generic" and self.has_local):
            return self._load_uniform(address, bits, count)
        offsets = self._pattern(address, size, count)
        if self.dry:
            return self._unknown(bits, count, False)
        slot = self.slot_pointer()
        types = [self.vtype(bits)] * (self.chunks * count)
        if offsets is None:
            return self._regroup_chunks(self._gather_global(address, bits, count, slot, types), bits, count)
        base, no_wrap = self._split_address(address)
        self.prefetch_ahead(base, int(offsets.max()) + size * count)
        ok = self._check_global(base, int(offsets.max()) + size * count, size * count, slot)
        if no_wrap is not None:
            ok = self.t(f"and i1 {ok}, {no_wrap}")

        def fast():
            return self._load_pattern(self.t(f"inttoptr i64 {base} to ptr"), offsets, size, count)

        flat = self.diamond(ok, fast, lambda: self._slow_load("", address, bits, count, slot), types)
        return self._regroup_chunks(flat, bits, count)

    def _load_uniform(self, address: Value, bits: int, count: int) -> list[Value]:
        if self.dry:
            return self._unknown(bits, count, True)
        size = bits // 8
        at = self.uval(address)
        slot = self.slot_pointer()
        ok = self._check_global(at, size * count, size * count, slot)

        def fast():
            return self._scalar_loads(self.t(f"inttoptr i64 {at} to ptr"), bits, count)

        def slow():
            total = bits * count
            name = self._call_support(f"weft_load_uniform_i{total}")
            type_ = f"i{total}" if total <= 64 else f"<{total // 64} x i64>"
            tail = f"i32 {self.mask_word()}, i32 {self.site}, ptr {slot}"
            whole = self.t(f"call {type_} {name}({CONTEXT}, i64 {at}, {tail})")
            self.after_slow_call()
            if count == 1:
                return [whole]
            parts = self.t(f"bitcast {type_} {whole} to <{count} x i{bits}>")
            return [self.t(f"extractelement <{count} x i{bits}> {parts}, i32 {i}") for i in range(count)]

        return [self.scalar(x, bits) for x in self.diamond(ok, fast, slow, [f"i{bits}"] * count)]

    def _gather_global(self, address: Value, bits: int, count: int, slot: str, types) -> list[str]:
        """Unknown addresses: contiguous at run time, or a gather when every running lane is inside the slot."""
        size = bits // 8
        chunks = self.vec(address)
        inside = self._lanes_inside(chunks, size * count, slot)

        def slow():
            return self._slow_load("", address, bits, count, slot)

        def gather():
            if bits < 32:
                return slow()
            if bits * count == 128:
                return self._load_lanes(chunks, bits, count, slot)
            if bits * count == 64 and count == 2:
                return self._gather_pairs(chunks)
            return [
                self._gather(self._chunk_add(x, i * size), bits, self._lane_mask(c))
                for i in range(count)
                for c, x in enumerate(chunks)
            ]

        if count > 1:
            return self.diamond(inside, gather, slow, types)
        first = self.t(f"extractelement {self.vtype(64)} {chunks[0]}, i32 0")
        run = self._contiguous(chunks, first, size)
        if self.mask is not None:
            # contiguous in all lanes, running or not, and all of them inside: no mask needed
            whole = self._check_global(first, size * WARP_LANES, size, slot)
            run = self.t(f"and i1 {run}, {whole}")

        def unknown():
            return self.diamond(inside, gather, slow, types)

        return self.diamond(run, lambda: self._load_run(first, bits, slot, address), unknown, types, weighted=False)

    def _gather_pairs(self, chunks: Sequence[str]) -> list[str]:
        """Two 32-bit components: one 64-bit gather, then the halves apart."""
        n = self.chunk
        words = [
            self.t(f"bitcast {self.vtype(64)} {self._gather(x, 64, self._lane_mask(c))} to <{2 * n} x i32>")
            for c, x in enumerate(chunks)
        ]
        return [self.shuffle_constant(w, None, "i32", 2 * n, range(i, 2 * n, 2)) for i in (0, 1) for w in words]

    def _load_lanes(self, chunks: Sequence[str], bits: int, count: int, slot: str) -> list[str]:
        """16 bytes a lane from unrelated addresses: a vector load per lane and a transposition of 4 x 4 words, about
        three times as fast as four gathers. Lanes that do not run read the start of the slot's range."""
        n, vtype = self.chunk, self.vtype(64)
        pointers = []
        for c, x in enumerate(chunks):
            if self.mask is not None:
                base = self.splat(self._load_slot(slot)[0], "i64")
                x = self.t(f"select <{n} x i1> {self.mask[c]}, {vtype} {x}, {vtype} {base}")
            for i in range(n):
                pointers.append(self.t(f"inttoptr i64 {self.t(f'extractelement {vtype} {x}, i32 {i}')} to ptr"))
        return self._load_quads(pointers, bits)

    def _load_run(self, first: str, bits: int, slot: str, address: Value) -> list[str]:
        """Contiguous lanes; without a mask the check is still to be made."""
        vtype, size = self.vtype(bits), bits // 8

        def fast():
            pointer = self.t(f"inttoptr i64 {first} to ptr")
            return [
                self.t(f"load {vtype}, ptr {self._offset(pointer, c * self.chunk * size)}, align {size}, !noalias !3")
                for c in range(self.chunks)
            ]

        if self.mask is not None:
            return fast()
        ok = self._check_global(first, size * WARP_LANES, size, slot)
        return self.diamond(ok, fast, lambda: self._slow_load("", address, bits, 1, slot), [vtype] * self.chunks)

    def _contiguous(self, chunks: Sequence[str], first: str, size: int) -> str:
        """i1: lane i is at first + i * size."""
        n, vtype = self.chunk, self.vtype(64)
        start = self.splat(first, "i64")
        differs = None
        for c, x in enumerate(chunks):
            steps = self.vector_literal([(c * n + i) * size for i in range(n)], 64)
            other = self.t(f"icmp ne {vtype} {self.t(f'add {vtype} {start}, {steps}')}, {x}")
            differs = other if differs is None else self.t(f"or <{n} x i1> {differs}, {other}")
        return self.t(f"icmp eq i{n} {self.t(f'bitcast <{n} x i1> {differs} to i{n}')}, 0")

    def _store_global(self, address: Value, values: Sequence[Value]) -> None:
        size, count = values[0].bits // 8, len(values)
        slot = self.slot_pointer()
        if address.is_uniform:
            at = self.uval(address)
            ok = self._check_global(at, size * count, size * count, slot)
            self.diamond(
                ok,
                lambda: self._store_last(self.t(f"inttoptr i64 {at} to ptr"), values),
                lambda: self._slow_store("", address, values, slot),
                [],
            )
            return
        offsets = self._pattern(address, size, count, storing=True)
        if offsets is None:
            self._scatter_global(address, values, slot)
            return
        base, no_wrap = self._split_address(address)
        self.prefetch_ahead(base, int(offsets.max()) + size * count, store=True)
        ok = self._check_global(base, int(offsets.max()) + size * count, size * count, slot)
        if no_wrap is not None:
            ok = self.t(f"and i1 {ok}, {no_wrap}")
        self._store_by_plan(
            ok, lambda: self.t(f"inttoptr i64 {base} to ptr"), offsets, values,
            lambda: self._slow_store("", address, values, slot),
        )  # fmt: skip

    def _scatter_global(self, address: Value, values: Sequence[Value], slot: str) -> None:
        bits, count = values[0].bits, len(values)
        size = bits // 8
        chunks = self.vec(address)
        for v in values:
            self.vec(v)
        inside = self._lanes_inside(chunks, size * count, slot)

        def slow():
            return self._slow_store("", address, values, slot)

        def scatter():
            if bits >= 32 and bits * count == 128:
                return self._store_lanes(chunks, values)
            if bits < 32 or not self.has_scatter:
                return slow()
            for i, v in enumerate(values):
                for c, (x, data) in enumerate(zip(chunks, self.vec(v))):
                    self._scatter(self._chunk_add(x, i * size), data, bits, self._lane_mask(c))
            return []

        if count > 1:
            self.diamond(inside, scatter, slow, [])
            return
        first = self.t(f"extractelement {self.vtype(64)} {chunks[0]}, i32 0")
        whole = self._check_global(first, size * WARP_LANES, size, slot)
        run = self.t(f"and i1 {whole}, {self._contiguous(chunks, first, size)}")

        def contiguous():
            self._store_chunks(self.t(f"inttoptr i64 {first} to ptr"), values[0])
            return []

        self.diamond(run, contiguous, lambda: self.diamond(inside, scatter, slow, []), [], weighted=False)

    def _store_lanes(self, chunks: Sequence[str], values: Sequence[Value]) -> list[str]:
        """16 bytes a lane to unrelated addresses, all inside: a store for each lane. Lanes that do not run write to
        the warp's own memory."""
        n, vtype = self.chunk, self.vtype(64)
        pointers = []
        for c, x in enumerate(chunks):
            if self.mask is not None:
                elsewhere = self.splat(self.t("ptrtoint ptr %exchange to i64"), "i64")
                x = self.t(f"select <{n} x i1> {self.mask[c]}, {vtype} {x}, {vtype} {elsewhere}")
            for i in range(n):
                pointers.append(self.t(f"inttoptr i64 {self.t(f'extractelement {vtype} {x}, i32 {i}')} to ptr"))
        self._store_quads(pointers, values)
        return []
