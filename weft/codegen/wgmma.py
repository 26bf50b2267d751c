"""wgmma of one warp: descriptors and accumulators enter, calls of out-of-line functions (warpgroup.py) leave.

Multiplications are not emitted one by one: those between two waits are gathered, and where several add to the same
accumulators (a step of k each), or use the same B (64 rows each), accumulators are fetched and B is laid out once, and
that by one warp for the whole warpgroup. The accumulators stay where the register file keeps them, side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weft.codegen import abi
from weft.codegen.loadstore import CONTEXT
from weft.codegen.registers import RegisterFile
from weft.codegen.value import Value
from weft.codegen.warpgroup import A_ROW_BYTES, B_ROW_BYTES, PANEL_TAG_BYTES, REGISTER_BYTES, TILE
from weft.codegen.warpops import WarpOps
from weft.isa.operands import Register, Vector
from weft.isa.wgmma import WARP_ROWS, WgmmaForm, WgmmaOperands, scale_is_constant

PANEL_FLOATS = 16384  # of B's panel: 64 KB, at home in the second-level cache
INTEGER_PRODUCTS = 256  # 256 * 255 * 255 < 2**24
MAX_PANELS = 8  # that a kernel keeps apart; more take turns in the same memory
KEY_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)  # an odd number without pattern: 2**64 over the golden ratio


@dataclass
class PendingMultiply:
    """One wgmma.mma_async that has been issued. `a` is a descriptor or the chunks of four registers."""

    form: WgmmaForm
    d: tuple[str, ...]
    a: str | tuple[tuple[str, ...], ...]
    b: str
    keep: str  # i1
    metadata: tuple[str, ...] | None
    site: int


class WgmmaOps(WarpOps):
    """The warpgroup multiplications of a kernel: part of Lowering."""

    registers: RegisterFile
    guard: Value | None
    pending_wgmma: list[PendingMultiply]

    def setup_wgmma(self) -> None:
        self.pending_wgmma = []
        self._wgmma_buffers: dict[str, int] = {}
        self._descriptors: dict[tuple, str] = {}
        self._panels: dict[int, int] = {}  # B's panels: offset in the frame -> size
        self._panel_count = 0

    # ------------------------------------------------------------ issue
    def wgmma(self, form: WgmmaForm, operands: WgmmaOperands) -> None:
        """Issue one multiplication: it is emitted by `finish_wgmma`, at the latest before anybody could tell."""
        names = tuple(item.name for item in operands.d.items)
        if self.dry:
            for item in operands.d.items:
                self.write(item, self.varying(("%dry",) * self.chunks, 32))
            return
        self._check_all_lanes()
        if isinstance(operands.a, Vector):
            a: Any = tuple(self.vec(self.read(item, 32)) for item in operands.a.items)
        else:
            a = self._descriptor(self.read(operands.a, 64))
        known = scale_is_constant(operands.scale_d)
        keep = self.read(operands.scale_d, 1) if known is None else self.const(int(known), 1)
        metadata = None if operands.metadata is None else self.vec(self.read(operands.metadata, 32))
        self.pending_wgmma.append(
            PendingMultiply(
                form, names, a, self._descriptor(self.read(operands.b, 64)), self._same_in_all_lanes(keep), metadata,
                self.site,
            )
        )  # fmt: skip
        if self.depth or self.guard is not None:
            self.finish_wgmma()

    def wgmma_conflicts(self, op) -> bool:
        """Whether an instruction could tell that issued multiplications have not been emitted."""
        if op.opcode == "wgmma" and "mma_async" not in op.ins.modifiers:
            return False
        if op.opcode != "wgmma" and op.match.entry.effects & {"memory", "barrier", "control"} and op.opcode != "ld":
            return True
        if op.opcode in ("call", "trap", "bar", "barrier"):
            return True
        own = tuple(item.name for item in op.ins.operands[0].items) if op.opcode == "wgmma" else ()
        touched = set(op.reads) | set(op.writes)
        return any(p.d != own and not touched.isdisjoint(p.d) for p in self.pending_wgmma)

    def _same_in_all_lanes(self, value) -> str:
        """The SSA scalar of a value that all lanes must agree on."""
        if value.is_uniform:
            return self.uval(value)
        first = self.vec(value)[0]
        return self.t(f"extractelement {self.vtype(value.bits)} {first}, i32 0")

    def _descriptor(self, value) -> str:
        """The same, one name for equal descriptors of what is pending."""
        if value.base is None or not value.is_uniform:
            return self._same_in_all_lanes(value)
        key = value.base, value.offset, value.table
        if key not in self._descriptors:
            self._descriptors[key] = self.uval(value)
        return self._descriptors[key]

    def _check_all_lanes(self) -> None:
        """All 32 lanes must execute the instruction."""
        if self.mask is None:
            return
        fine, wrong = self.new_label("whole"), self.new_label("parts")
        self.e(f"br i1 {self.all_running()}, label %{fine}, label %{wrong}, !prof !0")
        self.label(wrong)
        self._call_support("weft_fault")
        kind = int(abi.FaultKind.DESCRIPTOR)
        self.e(
            f"call void @weft_fault({CONTEXT}, i32 {kind}, i32 {self.site}, i32 0, i64 0, i32 {abi.DESCRIPTOR_LANES})"
        )
        self.e("br label %stopped")
        self.label(fine)

    # ------------------------------------------------------------ emission
    def finish_wgmma(self) -> None:
        """Emit all multiplications that have been issued."""
        pending, self.pending_wgmma = self.pending_wgmma, []
        self._descriptors.clear()
        steps: tuple = ()
        panel = ""
        for chain in _chains(pending):
            form = chain[0].form
            wanted = tuple((p.b, form.b_type, form.b_major, form.n, form.k) for p in chain)
            if wanted != steps:
                steps, panel = wanted, self._lay_out_b(chain)
            self._lay_out_a(chain)
            self._multiply(chain, panel)
        if pending:
            self.after_slow_call()

    def _buffer(self, name: str, size: int) -> str:
        """Stack memory of the warp function that several multiplications use in turn."""
        self._wgmma_buffers[name] = max(self._wgmma_buffers.get(name, 0), size)
        return f"%wgmma.{name}"

    def wgmma_allocas(self) -> list[str]:
        """For the function's head, when its frame has its final size."""
        lines = [f"  %wgmma.{name} = alloca [{size} x i8], align 64" for name, size in self._wgmma_buffers.items()]
        if self._panels:
            frame = (self.registers.frame_bytes + 63) // 64 * 64
            lines += ["  %warp.rank = and i32 %w, 3", f"  %warp.back = mul i32 %warp.rank, {-frame}",
                      "  %panels = getelementptr i8, ptr %frame, i32 %warp.back"]  # fmt: skip
            lines += [f"  %panel.{at} = getelementptr i8, ptr %panels, i64 {at}" for at in self._panels]
        return lines

    def start_panels(self) -> None:
        """When a warp starts: it has used no panel yet."""
        if self._panels:
            self.e("store i64 0, ptr %panel.count")

    def _panel(self, size: int) -> str:
        """Memory for one more panel of B, in the frame of the warpgroup's first warp."""
        registers = self.registers
        if not self._panels:
            registers.frame_slot("%panel.count", "i64")
        self._panel_count += 1
        large_enough = [at for at, found in self._panels.items() if found >= size]
        if self._panel_count > MAX_PANELS and large_enough:
            at = large_enough[self._panel_count % len(large_enough)]
        else:
            at = (registers.frame_bytes + 63) // 64 * 64
            registers.frame_bytes = at + PANEL_TAG_BYTES + size
            self._panels[at] = size
        return f"%panel.{at}"

    def _lay_out_b(self, chain: list[PendingMultiply]) -> str:
        """B's panel for these steps. The warps of a warpgroup all need it and come one after another: who comes first
        makes it. It is known by the block, by how many panels the warp has used before, and by the descriptors."""
        form = chain[0].form
        tiles, depth = form.n // TILE, _depth(form)
        pitch = depth * len(chain) * B_ROW_BYTES
        tag = self._panel(tiles * pitch)
        count = self.t("load i64, ptr %panel.count")
        self.e(f"store i64 {self.t(f'add i64 {count}, 1')}, ptr %panel.count")
        key = chain[0].b
        for p in chain[1:]:
            key = self.t(f"add i64 {self.t(f'mul i64 {key}, {KEY_FACTOR}')}, {p.b}")
        claim = self._call_support("weft_wgmma_claim")
        mine = self.t(f"call i1 {claim}(ptr %wk, ptr %blk, ptr {tag}, i64 {count}, i64 {key})")
        make, ready = self.new_label("panel"), self.new_label("ready")
        self.e(f"br i1 {mine}, label %{make}, label %{ready}")
        self.label(make)
        self.depth += 1
        name = self._call_support(f"weft_wgmma_b_{form.b_major}_{form.b_type}_{form.k}")
        for i, p in enumerate(chain):
            place = self._offset(tag, PANEL_TAG_BYTES + i * depth * B_ROW_BYTES)
            self.e(f"call void {name}({CONTEXT}, i64 {p.b}, ptr {place}, i64 {pitch}, i32 {tiles}, i32 {p.site})")
        self.depth -= 1
        self.e(f"br label %{ready}")
        self.label(ready)
        return self._offset(tag, PANEL_TAG_BYTES)

    def _lay_out_a(self, chain: list[PendingMultiply]) -> None:
        form = chain[0].form
        depth = _stored_depth(form)
        panel = self._buffer("a", depth * len(chain) * A_ROW_BYTES)
        flip = -(1 << 31) if form.negate else 0
        for i, p in enumerate(chain):
            place = self._offset(panel, i * depth * A_ROW_BYTES)
            if form.a_major:
                name = self._call_support(f"weft_wgmma_a_{form.a_major}_{form.a_type}_{form.stored_k}")
                self.e(f"call void {name}({CONTEXT}, i64 {p.a}, ptr {place}, i32 {flip}, i32 {p.site})")
            else:
                fragment = self._store_registers("fragment", p.a)
                name = self._call_support(f"weft_wgmma_a_registers_{form.a_type}")
                self.e(f"call void {name}(ptr {fragment}, ptr {place}, i32 {flip})")

    def _store_registers(self, buffer: str, registers: Sequence[tuple[str, ...]]) -> str:
        place = self._buffer(buffer, len(registers) * REGISTER_BYTES)
        width = 4 * self.chunk
        for r, chunks in enumerate(registers):
            for c, x in enumerate(chunks):
                at = self._offset(place, r * REGISTER_BYTES + c * width)
                self.e(f"store {self.vtype(32)} {x}, ptr {at}, align {width}")
        return place

    def _multiply(self, chain: list[PendingMultiply], panel: str) -> None:
        form, names = chain[0].form, chain[0].d
        self.registers.spill(names)
        base = self.registers.run_pointer(names)
        if base is None:
            base = self._store_registers("d", [self.vec(self.registers.read(name)) for name in names])
        kind = form.d_type + ("_sat" if form.saturate else "") + ("_bits" if form.a_type == "b1" else "")
        tail = f"i64 {_stored_depth(form) * len(chain)}, i32 {form.n // TILE}, i1 {chain[0].keep}"
        panels = f"ptr {self._buffer('a', 0)}, ptr {panel}"
        if form.selector is None:
            name = self._call_support(f"weft_wgmma_multiply_{kind}")
            self.e(f"call void {name}(ptr {base}, {panels}, {tail})")
        else:
            places = self._buffer("places", WARP_ROWS * 4 * _stored_depth(form))
            words = self._store_registers("metadata", [chain[0].metadata])
            name = self._call_support(f"weft_wgmma_places_{form.a_type}_{form.selector}")
            self.e(f"call void {name}(ptr {words}, ptr {places})")
            name = self._call_support(f"weft_wgmma_sparse_{kind}")
            self.e(f"call void {name}(ptr {base}, {panels}, {tail}, ptr {places})")
        if self.registers.run_pointer(names) is not None:
            self.registers.forget(names)
            return
        n = self.chunk
        for r, name in enumerate(names):
            at = r * REGISTER_BYTES
            chunks = [
                self.t(f"load {self.vtype(32)}, ptr {self._offset(base, at + 4 * n * c)}, align {4 * n}")
                for c in range(self.chunks)
            ]
            self.write(Register(name), self.varying(chunks, 32))


def _depth(form: WgmmaForm) -> int:
    """Numbers of a column of B in the panel: words of 32 bits for single bits."""
    return form.k // 32 if form.a_type == "b1" else form.k


def _stored_depth(form: WgmmaForm) -> int:
    return form.stored_k // 32 if form.a_type == "b1" else form.stored_k


def accumulator_runs(ops: Iterable) -> list[tuple[str, ...]]:
    """The accumulators of a kernel's multiplications: registers that should lie side by side."""
    found = {
        tuple(item.name for item in op.ins.operands[0].items): None
        for op in ops
        if op.opcode == "wgmma" and "mma_async" in op.ins.modifiers
    }
    return list(found)


def _chains(pending: list[PendingMultiply]) -> list[list[PendingMultiply]]:
    """Multiplications that add to the same accumulators, step after step of k, together as far as that gives the
    same numbers. Multiplications of different accumulators do not touch each other, so their order is free."""
    chains: list[list[PendingMultiply]] = []
    open_chain: dict[tuple[str, ...], list[PendingMultiply]] = {}
    for p in pending:
        chain = open_chain.get(p.d)
        if chain is not None and len(chain) < _longest(p.form) and p.form == chain[0].form and p.keep == "true":
            chain.append(p)
            continue
        chain = open_chain[p.d] = [p]
        chains.append(chain)
    return chains


def _longest(form: WgmmaForm) -> int:
    """How many steps may be added at once: f16 accumulators are rounded after each, saturation looks at each."""
    if form.d_type == "f16" or form.saturate or form.selector is not None:
        return 1
    fitting = max(1, PANEL_FLOATS // (form.k * form.n))
    return min(fitting, INTEGER_PRODUCTS // form.k) if form.d_type == "s32" and form.a_type != "b1" else fitting
