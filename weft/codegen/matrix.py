"""What tensor-core rules ask of the builder: multiplications, and matrices between shared memory and registers.

`multiply` is the seam between the instructions (mma, wmma, wgmma) and the arithmetic: a MultiplyForm and register
operands enter. Here it goes through a workspace and one support function per form (codegen/multiply.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.codegen.fragmentio import fragment_name
from weft.codegen.loadstore import CONTEXT
from weft.codegen.multiply import WORKSPACE_BYTES, Workspace, multiply_name
from weft.codegen.registers import RegisterFile
from weft.codegen.value import WARP_LANES, Value
from weft.codegen.warpops import WarpOps
from weft.isa.fragments import MultiplyForm, fragment
from weft.isa.matrix_move import ROW_BYTES
from weft.isa.operands import Address
from weft.isa.wmma import lines_of


class MatrixOps(WarpOps):
    """Operations of a whole warp on matrices."""

    registers: RegisterFile
    has_workspace = False

    def workspace(self) -> str:
        """Memory of the warp function in which matrices are handed to support functions; aligned to 64 bytes."""
        if not self.dry and not self.has_workspace:
            self.has_workspace = True
            self.registers.allocas.append(f"  %workspace = alloca [{WORKSPACE_BYTES} x i8], align 64")
        return "%workspace"

    # ------------------------------------------------------------ multiplication
    def multiply(
        self, form: MultiplyForm, d: Sequence, a: Sequence, b: Sequence, c: Sequence, *, metadata=None, scales=None
    ) -> None:
        """D = A * B + C. d, a, b, c are register operands in fragment order (isa/fragments.py).

        `metadata` is the register operand of sparse forms; `scales` the two Values of block scaling, made by
        isa/matrix.py.
        """
        self.multiply_outlined(form, d, a, b, c, metadata=metadata, scales=scales)

    def multiply_outlined(
        self, form: MultiplyForm, d: Sequence, a: Sequence, b: Sequence, c: Sequence, *, metadata=None, scales=None
    ) -> None:
        """The general way: registers through the workspace, one call."""
        space = Workspace(form)
        values: dict[str, list[Value | None]] = {}
        for name, operands in zip("abc", (a, b, c)):
            piece = fragment(form, name)
            needed = operands[: piece.distinct_registers(form.matrix_shape(name), form.parts)]
            values[name] = [self.read(x, piece.register_bits) for x in needed]
        if form.sparse:
            values["metadata"] = [self.read(metadata, 32)]
        if form.scale_type:
            values["scale_a"], values["scale_b"] = [scales[0]], [scales[1]]
        if any(v is None for parts in values.values() for v in parts):
            return
        bits = fragment(form, "d").register_bits
        if self.dry:
            for x in d:
                self.write(x, self.varying(("%dry",) * self.chunks, bits))
            return
        place = self.workspace()
        for name, parts in values.items():
            for r, value in enumerate(parts):
                self.spill_lanes(value, space.offsets[name] + r * space.bytes_of(name))
        self.e(f"call void {self._call_support(multiply_name(form))}(ptr {place})")
        for r, x in enumerate(d):
            self.write(x, self.reload_lanes(space.offsets["d"] + r * space.bytes_of("d"), bits))

    def spill_lanes(self, value, offset: int) -> None:
        """Store a value's 32 lanes in the workspace, in lane order."""
        vtype = self.vtype(value.bits)
        step = self.chunk * value.bits // 8
        for c, part in enumerate(self.vec(value)):
            self.e(f"store {vtype} {part}, ptr {self._offset('%workspace', offset + c * step)}, align {min(step, 64)}")

    def reload_lanes(self, offset: int, bits: int):
        """A value from 32 lanes in the workspace."""
        vtype = self.vtype(bits)
        step = self.chunk * bits // 8
        parts = [
            self.t(f"load {vtype}, ptr {self._offset('%workspace', offset + c * step)}, align {min(step, 64)}")
            for c in range(self.chunks)
        ]
        return self.varying(parts, bits)

    # ------------------------------------------------------------ shared memory
    def load_matrices(self, operand: Address, space: str, count: int) -> list[Value] | None:
        """`count` registers, each the eight rows of 16 bytes at the addresses of lanes 8 i to 8 i + 7, in order.

        A row outside of shared memory, or not at a multiple of 16, is a fault of its lane.
        """
        address = self._row_addresses(operand, space, count)
        if address is None:
            return None
        if self.dry:
            return [self.varying(("%dry",) * self.chunks, 32) for _ in range(count)]
        n = self.chunk
        types = [self.vtype(32)] * (self.chunks * count)
        ok, pointer = self._rows(address, count)

        def fast() -> list[str]:
            if isinstance(pointer, tuple):
                base, offsets = pointer
                words = (offsets[:, None] + 4 * np.arange(4)).reshape(-1)
                found = [self._load_offsets(base, words[i : i + n], 4) for i in range(0, WARP_LANES * count, n)]
                assert None not in found, offsets
                return found
            rows = [self.t(f"load <4 x i32>, ptr {pointer(i)}, align 16, !noalias !3") for i in range(8 * count)]
            return self._join_rows(rows)

        def slow() -> list[str]:
            name = self._call_support("weft_load_shared_i128")
            whole = self.t(
                f"call <64 x i64> {name}({CONTEXT}, <32 x i32> {self._offsets_of(address)}, "
                f"i32 {self._row_lanes(count)}, i32 {self.site})"
            )
            self.after_slow_call()
            flat = self.t(f"bitcast <64 x i64> {whole} to <128 x i32>")
            places = range(0, WARP_LANES * count, n)
            return [self.shuffle_constant(flat, None, "i32", 128, range(i, i + n)) for i in places]

        if ok is not None and self.mask is None and address.bits == 32:
            self.require_shared(ok, address, ROW_BYTES)
            ok = None
        return self._regroup_chunks(self._maybe(ok, fast, slow, types), 32, count)

    def store_matrices(self, operand: Address, space: str, values: Sequence[Value]) -> None:
        """The inverse of `load_matrices`."""
        count, n = len(values), self.chunk
        address = self._row_addresses(operand, space, count)
        if address is None or self.dry:
            return
        chunks = [part for v in values for part in self.vec(v)]
        ok, pointer = self._rows(address, count)
        if self.mask is not None:
            every = self.all_running()
            ok = every if ok is None else self.t(f"and i1 {ok}, {every}")

        def fast() -> list[str]:
            for i in range(8 * count):
                part = self.shuffle_constant(chunks[4 * i // n], None, "i32", n, range(4 * i % n, 4 * i % n + 4))
                if isinstance(pointer, tuple):
                    at = self._offset(pointer[0], int(pointer[1][i]))
                else:
                    at = pointer(i)
                self.e(f"store <4 x i32> {part}, ptr {at}, align 16, !noalias !3")
            return []

        def slow() -> list[str]:
            parts = [*chunks, *(["zeroinitializer"] * (4 * self.chunks - len(chunks)))]
            lanes = n
            while len(parts) > 1:
                parts = [
                    self.shuffle_constant(x, y, "i32", lanes, range(2 * lanes)) for x, y in zip(parts[::2], parts[1::2])
                ]
                lanes *= 2
            whole = self.t(f"bitcast <128 x i32> {parts[0]} to <64 x i64>")
            name = self._call_support("weft_store_shared_i128")
            self.e(
                f"call void {name}({CONTEXT}, <32 x i32> {self._offsets_of(address)}, <64 x i64> {whole}, "
                f"i32 {self._row_lanes(count)}, i32 {self.site})"
            )
            self.after_slow_call()
            return []

        self._maybe(ok, fast, slow, [])

    def _row_addresses(self, operand: Address, space: str, count: int) -> Value | None:
        """Offsets of the rows in shared memory: 32 bits, or 64 from a generic address. Lanes whose address is not
        used repeat that of a lane whose is."""
        address = self.address(operand, space)
        if address is None:
            return None
        if space == "generic":
            address = self.sub(address, self.window("shared"))
        if count < 4:
            lanes = np.broadcast_to(np.arange(WARP_LANES) % (8 * count), (self.warps, WARP_LANES))
            address = self.shuffle(address, self.from_array(lanes, 32))
        return address

    def _rows(self, address: Value, count: int):
        """(i1 "all rows are inside and aligned" or None when that is known, where the rows are): a base pointer with
        the rows' known byte offsets, or a function from a row's number to its pointer."""
        bits = address.bits
        size = "%shared.bytes"
        offsets = self._lane_offsets(address)
        if offsets is not None and not (offsets % ROW_BYTES).any():
            base, no_wrap = self._split_address(address)
            window = int(offsets.max()) + ROW_BYTES
            ok: str | None
            if address.is_known and self._known_inside(address):
                ok = None
            else:
                if bits == 64:
                    size = self.t("zext i32 %shared.bytes to i64")
                ok = self._inside(base, size, window, ROW_BYTES, f"i{bits}")
                if no_wrap is not None:
                    ok = self.t(f"and i1 {ok}, {no_wrap}")
            pointer = self._shared_pointer(base) if bits == 32 else self.t(f"getelementptr i8, ptr %sh, i64 {base}")
            return ok, (pointer, offsets[: 8 * count])
        if bits == 64:
            size = self.t("zext i32 %shared.bytes to i64")
        chunks = self.vec(address)
        needed = chunks[: max(1, 8 * count // self.chunk)]
        mask, self.mask = self.mask, None
        ok = self._all_below(needed, size, ROW_BYTES, bits)
        self.mask = mask
        place = self.workspace()
        step = self.chunk * bits // 8
        for c, part in enumerate(needed):
            self.e(f"store {self.vtype(bits)} {part}, ptr {self._offset(place, c * step)}, align {step}")

        def row(i: int) -> str:
            at = self.t(f"load i{bits}, ptr {self._offset(place, i * bits // 8)}, align {bits // 8}")
            if bits == 32:
                at = self.t(f"zext i32 {at} to i64")
            return self.t(f"getelementptr i8, ptr %sh, i64 {at}")

        return ok, row

    def _known_inside(self, address: Value) -> bool:
        array = self.known_array(address)
        inside = int(array.min()) >= 0 and int(array.max()) + ROW_BYTES <= self.static_shared
        return inside and not (array % ROW_BYTES).any()

    def _offsets_of(self, address: Value) -> str:
        """<32 x i32> for the support functions; what does not fit 32 bits becomes an offset outside of memory."""
        if address.bits == 64:
            beyond = self.icmp("ugt", address, self.const(0xFFFFFFFF, 64))
            address = self.select(beyond, self.const(-ROW_BYTES, 32), self.trunc(address, 32))
        return self.join_chunks(self.vec(address), "i32")

    def _row_lanes(self, count: int) -> str:
        """The running lanes among those that give rows, as an i32."""
        word = self.mask_word()
        if count == 4:
            return word
        used = (1 << 8 * count) - 1
        return str(used) if word == "-1" else self.t(f"and i32 {word}, {used}")

    def _join_rows(self, rows: Sequence[str]) -> list[str]:
        """Chunks of `chunk` words from rows of four."""
        parts, lanes = list(rows), 4
        while lanes < self.chunk:
            parts = [
                self.shuffle_constant(x, y, "i32", lanes, range(2 * lanes)) for x, y in zip(parts[::2], parts[1::2])
            ]
            lanes *= 2
        return parts

    def transpose_halves(self, value: Value) -> Value:
        """The transposed matrix of 8 x 8 elements of 16 bits, four lanes to a row."""
        if self.chunk == 8 and not self.dry:
            return self._transpose_in_steps(value)
        return self._rearrange([value], 16, [c * 8 + r for r in range(8) for c in range(8)])[0]

    def _transpose_in_steps(self, value: Value) -> Value:
        """The same for vectors of two rows, by shuffles that AVX2 has: half the time of one shuffle of the whole
        matrix, which LLVM takes apart badly (ldmatrix.x4.trans: 20 to 22 ns instead of 26 to 38)."""
        halves = "<16 x i16>"
        pairs = [self.t(f"bitcast <8 x i32> {x} to {halves}") for x in self.vec(value)]
        low = [i for k in (0, 8) for j in range(4) for i in (k + j, k + j + 16)]
        high = [i + 4 for i in low]

        def interleave(x: str, y: str) -> tuple[str, str]:
            return self.shuffle_constant(x, y, "i16", 16, low), self.shuffle_constant(x, y, "i16", 16, high)

        # rows 0 and 4, 1 and 5; 2 and 6, 3 and 7; then the even rows in the lower half, the odd ones in the upper
        first, second = interleave(pairs[0], pairs[2]), interleave(pairs[1], pairs[3])
        columns = [*interleave(first[0], second[0]), *interleave(first[1], second[1])]
        mixed = [i for k in (0, 4) for j in range(4) for i in (k + j, k + j + 8)]
        found = [self.shuffle_constant(x, None, "i16", 16, mixed) for x in columns]
        return self.varying([self.t(f"bitcast {halves} {x} to <8 x i32>") for x in found], 32)

    def transpose_bytes(self, upper: Value, lower: Value) -> list[Value]:
        """The transposed matrix of 16 x 16 bytes, four lanes to a row, eight rows to a value."""
        return self._rearrange([upper, lower], 8, [c * 16 + r for r in range(16) for c in range(16)])

    def columns_of_bytes(self, value: Value) -> Value:
        """A matrix of 16 x 8 bytes in accumulator order (lane 4 g + t: rows g and g + 8, columns 2 t and 2 t + 1) by
        columns, four lanes to a column."""
        order = []
        for column in range(8):
            for row in range(16):
                lane = 4 * (row % 8) + column // 2
                order.append(4 * lane + 2 * (row // 8) + column % 2)
        return self._rearrange([value], 8, order)[0]

    def _rearrange(self, values: Sequence[Value], bits: int, order: Sequence[int]) -> list[Value]:
        """Elements of `bits` bits of values taken as one sequence, in another order."""
        if self.dry:
            return [self.varying(("%dry",) * self.chunks, 32) for _ in values]
        n, count = self.chunk, len(order)
        words = WARP_LANES * len(values)
        parts = [part for v in values for part in self.vec(v)]
        lanes = n
        while len(parts) > 1:
            parts = [
                self.shuffle_constant(x, y, "i32", lanes, range(2 * lanes)) for x, y in zip(parts[::2], parts[1::2])
            ]
            lanes *= 2
        whole = self.t(f"bitcast <{words} x i32> {parts[0]} to <{count} x i{bits}>")
        turned = self.shuffle_constant(whole, None, f"i{bits}", count, order)
        back = self.t(f"bitcast <{count} x i{bits}> {turned} to <{words} x i32>")
        flat = [self.shuffle_constant(back, None, "i32", words, range(i, i + n)) for i in range(0, words, n)]
        return self._regroup_chunks(flat, 32, len(values))

    # ------------------------------------------------------------ fragments of wmma
    def load_fragment(
        self, form: MultiplyForm, operand: str, d: Sequence, address: Address, space: str, layout: str, stride
    ) -> None:
        """Load the matrix of an operand into the registers d. `stride` is an operand that counts elements, None for
        a matrix without gaps."""
        place = self._fragment_place(form, operand, address, space, layout, stride)
        if place is None:
            return
        bits = fragment(form, operand).register_bits
        if self.dry:
            for x in d:
                self.write(x, self.varying(("%dry",) * self.chunks, bits))
            return
        self._move_fragment("load", form, operand, layout, *place)
        count = fragment(form, operand).distinct_registers(form.matrix_shape(operand))
        values = [self.reload_lanes(r * WARP_LANES * bits // 8, bits) for r in range(count)]
        for r, x in enumerate(d):
            self.write(x, values[r % count])

    def store_fragment(
        self, form: MultiplyForm, operand: str, source: Sequence, address: Address, space: str, layout: str, stride
    ) -> None:
        """The inverse of `load_fragment`."""
        bits = fragment(form, operand).register_bits
        values = [self.read(x, bits) for x in source]
        place = self._fragment_place(form, operand, address, space, layout, stride)
        if place is None or any(v is None for v in values) or self.dry:
            return
        self.workspace()
        for r, value in enumerate(values):
            self.spill_lanes(value, r * WARP_LANES * bits // 8)
        self._move_fragment("store", form, operand, layout, *place)

    def _fragment_place(self, form, operand: str, address: Address, space: str, layout: str, stride):
        """(generic address, stride in elements) as uniform Values; None while one is not known."""
        at = self.address(address, space)
        _, length = lines_of(form, operand, layout)
        step = self.const(length, 32) if stride is None else self.read(stride, 32)
        if at is None or step is None:
            return None
        if space == "shared":
            at = self.add(self.zext(at, 64), self.window("shared"))
        first = self.const(0, 32) if self.mask is None else self.cttz(self.active_mask())
        return tuple(x if x.is_uniform else self.shuffle(x, first) for x in (at, self.zext(step, 64)))

    def _move_fragment(self, action: str, form, operand: str, layout: str, at: Value, step: Value) -> None:
        name = self._call_support(fragment_name(action, form, operand, layout))
        self.e(
            f"call void {name}({CONTEXT}, ptr {self.workspace()}, i64 {self.uval(at)}, i64 {self.uval(step)}, "
            f"i32 {self.mask_word()}, i32 {self.site}, ptr {self.slot_pointer()})"
        )
        self.after_slow_call()
