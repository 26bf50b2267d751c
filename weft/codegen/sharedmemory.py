"""Shared memory: loads and stores of a warp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.codegen.checks import CONTEXT, lane_vector
from weft.codegen.globalmemory import GlobalMemory
from weft.codegen.value import WARP_LANES, Value


class SharedMemory(GlobalMemory):
    """Accesses to the block's shared memory, which is one piece: where all lanes run, an address outside is a fault."""

    def _shared_window(self, address: Value, offsets: np.ndarray, size: int, align: int) -> tuple[str, str | None]:
        """(pointer, i1 "inside" or None when that is known) of lanes at `offsets` from the lowest shared address."""
        base, _ = self._split_address(address)
        if address.is_known:
            array = self.known_array(address)
            low, high = int(array.min()), int(array.max())
            if low >= 0 and high + size <= self.static_shared and not (array % align).any():
                return self._shared_pointer(base), None
        ok = self._inside(base, "%shared.bytes", int(offsets.max()) + size, align, "i32")
        return self._shared_pointer(base), ok

    def _shared_pointer(self, base: str) -> str:
        if base.lstrip("-").isdigit():
            return self.t(f"getelementptr i8, ptr %sh, i64 {base}")
        return self.t(f"getelementptr i8, ptr %sh, i64 {self.t(f'zext i32 {base} to i64')}")

    def _shared_access(self, ok: str | None, address: Value, bytes_: int, fast, slow, types) -> list[str]:
        """Like `_maybe` for an access of `bytes_` a lane. Where all lanes run and `ok` says "all inside", the other
        case is a fault and gives nothing: one branch, and nothing to join."""
        if ok is None or self.mask is not None:
            return self._maybe(ok, fast, slow, types)
        self.require_shared(ok, address, bytes_)
        return fast()

    def require_shared(self, ok: str, address: Value, bytes_: int) -> None:
        """A fault where some lane's access of `bytes_` (a power of two) is not inside shared memory; all lanes run."""
        bad, fine = self.new_label("outside"), self.new_label("inside")
        self.e(f"br i1 {ok}, label %{fine}, label %{bad}, !prof !0")
        self.depth += 1
        self.label(bad)
        bits = 8 * bytes_
        name = self._call_support(f"weft_load_shared_i{bits}")
        addresses = self.join_chunks(self.vec(address), "i32")
        self.t(f"call {lane_vector(bits)} {name}({CONTEXT}, <32 x i32> {addresses}, i32 -1, i32 {self.site})")
        self.e("br label %stopped")
        self.depth -= 1
        self.label(fine)

    def _load_shared(self, address: Value, bits: int, count: int) -> list[Value]:
        size = bits // 8
        if self.dry:
            return self._unknown(bits, count, address.is_uniform)

        def slow():
            return self._slow_load("shared_", address, bits, count)

        if address.is_uniform:
            pointer, ok = self._shared_window(address, np.zeros(1, np.int64), size * count, size * count)

            def first_lanes():
                flat = slow()
                if self.mask is None:
                    lane = "0"
                else:
                    self.declare("declare i32 @llvm.cttz.i32(i32, i1)")
                    lane = self.t(f"call i32 @llvm.cttz.i32(i32 {self.mask_word()}, i1 false)")
                found = []
                for i in range(count):
                    whole = self.join_chunks(flat[i * self.chunks : (i + 1) * self.chunks], f"i{bits}")
                    found.append(self.t(f"extractelement <32 x i{bits}> {whole}, i32 {lane}"))
                return found

            names = self._shared_access(
                ok, address, size * count, lambda: self._scalar_loads(pointer, bits, count), first_lanes,
                [f"i{bits}"] * count,
            )  # fmt: skip
            return [self.scalar(x, bits) for x in names]
        types = [self.vtype(bits)] * (self.chunks * count)
        offsets = self._lane_offsets(address)
        if offsets is None:
            return self._regroup_chunks(self._gather_shared(address, bits, count, types, slow), bits, count)
        pointer, ok = self._shared_window(address, offsets, size * count, size * count)
        if self._pattern(address, size, count) is not None:

            def fast():
                return self._load_pattern(pointer, offsets, size, count)
        else:

            def fast():
                return self._load_one_by_one(pointer, offsets, bits, count)

        flat = self._shared_access(ok, address, size * count, fast, slow, types)
        return self._regroup_chunks(flat, bits, count)

    def _load_one_by_one(self, pointer: str, offsets: np.ndarray, bits: int, count: int) -> list[str]:
        """Elements at known offsets that form no pattern (a column of a padded tile): one scalar load each."""
        n, size, ty = self.chunk, bits // 8, f"i{bits}"
        if bits * count == 128 and bits >= 32:
            return self._load_quads([self._offset(pointer, int(offset)) for offset in offsets], bits)
        found = []
        for i in range(count):
            for c in range(self.chunks):
                vector = "poison"
                for lane in range(n):
                    at = self._offset(pointer, int(offsets[c * n + lane]) + i * size)
                    x = self.t(f"load {ty}, ptr {at}, align {size}, !noalias !3")
                    vector = self.t(f"insertelement <{n} x {ty}> {vector}, {ty} {x}, i32 {lane}")
                found.append(vector)
        return found

    def _shared_addresses(self, chunk: str) -> str:
        wide = self.t(f"zext {self.vtype(32)} {chunk} to {self.vtype(64)}")
        return self.t(f"add {self.vtype(64)} {wide}, {self.splat('%shared.int', 'i64')}")

    def _gather_shared(self, address: Value, bits: int, count: int, types, slow) -> list[str]:
        size = bits // 8
        chunks = self.vec(address)
        if bits < 32 or count > 2:
            return slow()
        inside = self._all_below(chunks, "%shared.bytes", size * count, 32)

        def gather():
            return [
                self._gather(self._chunk_add(self._shared_addresses(x), i * size), bits, self._lane_mask(c))
                for i in range(count)
                for c, x in enumerate(chunks)
            ]

        return self.diamond(inside, gather, slow, types)

    def _store_shared(self, address: Value, values: Sequence[Value]) -> None:
        bits, count = values[0].bits, len(values)
        size = bits // 8

        def slow():
            return self._slow_store("shared_", address, values)

        if address.is_uniform:
            pointer, ok = self._shared_window(address, np.zeros(1, np.int64), size * count, size * count)
            self._shared_access(ok, address, size * count, lambda: self._store_last(pointer, values), slow, [])
            return
        offsets = self._pattern(address, size, count, storing=True)
        if offsets is not None:
            pointer, ok = self._shared_window(address, offsets, size * count, size * count)
            if ok is not None and self.mask is None:
                self.require_shared(ok, address, size * count)
                ok = None
            self._store_by_plan(ok, lambda: pointer, offsets, values, slow)
            return
        offsets = self._lane_offsets(address)
        if offsets is not None and bits >= 32 and (count == 1 or bits * count == 128):
            if len(set(offsets.tolist())) == WARP_LANES:
                self._store_one_by_one(address, offsets, values, slow)
                return
        if bits < 32 or not self.has_scatter or count > 1:
            # of several components, scalar stores are faster than scatters
            slow()
            return
        chunks = self.vec(address)
        self.vec(values[0])
        inside = self._all_below(chunks, "%shared.bytes", size, 32)

        def scatter():
            for c, (x, data) in enumerate(zip(chunks, self.vec(values[0]))):
                self._scatter(self._shared_addresses(x), data, bits, self._lane_mask(c))
            return []

        self.diamond(inside, scatter, slow, [])

    def _store_one_by_one(self, address: Value, offsets: np.ndarray, values: Sequence[Value], slow) -> None:
        """Elements, or 16 bytes a lane, at known offsets that form no pattern."""
        bits, size = values[0].bits, values[0].bits // 8 * len(values)
        pointer, ok = self._shared_window(address, offsets, size, size)
        for v in values:
            self.vec(v)
        if self.mask is not None:
            every = self.all_running()
            ok = every if ok is None else self.t(f"and i1 {ok}, {every}")

        def fast():
            places = [self._offset(pointer, int(offset)) for offset in offsets]
            if len(values) > 1:
                self._store_quads(places, values)
                return []
            chunks = self.vec(values[0])
            for lane, place in enumerate(places):
                chunk = chunks[lane // self.chunk]
                x = self.t(f"extractelement {self.vtype(bits)} {chunk}, i32 {lane % self.chunk}")
                self.e(f"store i{bits} {x}, ptr {place}, align {bits // 8}, !noalias !3")
            return []

        self._shared_access(ok, address, size, fast, slow, [])
