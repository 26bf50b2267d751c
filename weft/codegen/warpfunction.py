"""The frame of a warp function: its head, what it does before the first block, where it ends.

The lines of the body enter, when all blocks are written; the whole text leaves, with what the scheduler, the support
code and the runtime must know of it (`Lowered`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weft.analysis.flow import STACK
from weft.analysis.inline import FlatFunction
from weft.codegen import abi
from weft.codegen.controlflow import ControlFlow
from weft.codegen.jit import Target, function_attributes
from weft.codegen.value import WARP_LANES


@dataclass
class Lowered:
    """The warp function and what the scheduler, the support code and the runtime need."""

    text: str
    functions: dict[str, str]  # functions that it calls: name -> IR name
    declarations: set[str]
    support: set[str]
    kind: str  # scheduler kind
    reductions: tuple[int, ...]
    frame_bytes: int
    slot_count: int
    symbols: tuple[str, ...]
    has_loops: bool
    allocates: bool  # uses alloca
    may_spin: bool
    registers: int
    uses_clusters: bool


class WarpFunction(ControlFlow):
    """Head, prologue and end of a kernel's warp function, or of a device function's."""

    if TYPE_CHECKING:  # the lowering's
        target: Target
        flat: FlatFunction
        functions: dict[str, str]
        symbol_index: dict[str, int]
        is_function: bool
        partial: bool
        uses_clusters: bool

        def wgmma_allocas(self) -> list[str]: ...
        def strip_lines(self) -> list[str]: ...
        def start_panels(self) -> None: ...
        def finish_copies(self) -> list[str]: ...
        def _initial(self, name: str) -> int: ...

    def _finish(self) -> Lowered:
        body = self.lines
        self.lines = []
        self.splats.clear()
        self._prologue()
        prologue = self.lines
        head = self._head()
        stopped = ["stopped:", f"  ret i32 {abi.WARP_STOP}", "}"]
        tail = ["finished:", *self.finish_copies(), f"  ret i32 {abi.WARP_DONE}", *stopped]
        buffers = [*self.wgmma_allocas(), *self.strip_lines()]
        lines = [*self.global_lines, head, "entry:", *self.registers.allocas, *buffers, *prologue, *body, *tail, ""]
        text = "\n".join(lines)
        frame = (self.registers.frame_bytes + 63) // 64 * 64
        if not self.resume_points:
            kind = "plain"
        elif self.striding:
            kind = "ganged"
        else:
            kind = "phased" if self.simple_barriers else "general"
        if kind == "plain" and not self.simple_barriers:
            kind = "general"
        assert kind == "general" or not self.uses_clusters, kind
        return Lowered(
            text, self.functions, self.declarations, self.support, kind, (), frame, len(self.slot_of),
            tuple(self.symbol_index), bool(self.flow.loops), STACK in self.flow.registers,
            bool(self.spinning), self._register_estimate(), self.uses_clusters,
        )  # fmt: skip

    def _head(self) -> str:
        attributes = function_attributes(self.target)
        if self.is_function:
            return (
                f"define internal i32 {self.functions[self.flat.name]}(ptr %wk, ptr %blk, ptr align 64 %sh, "
                "ptr align 64 %loc, i32 %w, i32 %cx, i32 %cy, i32 %cz, i32 %lanes, i32 %stack, i32 %call.site) "
                f"noinline {attributes} {{"
            )
        return (
            "define internal i32 @warp(ptr %wk, ptr %blk, ptr noalias align 64 %frame, ptr align 64 %sh, "
            f"ptr align 64 %loc, i32 %w, i32 %state, i32 %cx, i32 %cy, i32 %cz) {attributes} {{"
        )

    def _register_estimate(self) -> int:
        """Registers a thread would need, estimated as the most 32-bit values live at a block boundary, plus the
        hardware's minimum: ptxas is not asked here."""
        widths = [0] * len(self.flow.registers)
        for name, bit in self.flow.registers.items():
            width = self.registers.bits.get(name, 32)
            widths[bit] = 0 if width == 1 else max(1, width // 32)
        most = 0
        for live in self.flow.live_in[: self.flow.exit]:
            total = 0
            while live:
                low = live & -live
                total += widths[low.bit_length() - 1]
                live ^= low
            most = max(most, total)
        return min(255, max(16, most + 8))

    def _prologue(self) -> None:
        n = self.chunk
        lines = [
            "%w64 = zext i32 %w to i64",
            "%w16 = trunc i32 %w to i16",
            "%launch = load ptr, ptr %wk, align 8, !invariant.load !1",
            f"%slots.at = getelementptr i8, ptr %wk, i64 {abi.Worker.slots.offset}",
            "%slots = load ptr, ptr %slots.at, align 8, !invariant.load !1",
        ]
        for name, field, type_ in (
            ("params", "params", "ptr"), ("symbols", "symbols", "ptr"), ("shared.bytes", "shared_bytes", "i32"),
            ("local.bytes", "local_bytes", "i32"), ("shared.window", "shared_window", "i64"),
            ("local.window", "local_window", "i64"),
        ):  # fmt: skip
            lines.append(f"%{name}.at = getelementptr i8, ptr %launch, i64 {getattr(abi.Launch, field).offset}")
            lines.append(f"%{name} = load {type_}, ptr %{name}.at, align 4, !invariant.load !1")
        lines.append(f"%stop.ptr = getelementptr i8, ptr %launch, i64 {abi.Launch.stop.offset}")
        lines.append("%shared.int = ptrtoint ptr %sh to i64")
        lines.append("%params.int = ptrtoint ptr %params to i64")
        self.registers.allocas.append("  %exchange = alloca [32 x i32], align 64")
        self.registers.allocas.append("  %parts = alloca [1024 x i8], align 64")
        for line in lines:
            self.e(line)
        if self.is_function:
            self._enter_function()
        for group in self.divergence.groups:
            if not self._group_suspends(group):
                # nobody waits in such a group while the warp is suspended: it is empty at every entry
                for b in group.blocks:
                    self._clear_mask(self.mask_slots[b])
        if self.resume_points:
            cases = " ".join(f"i32 {state}, label %{label}" for state, label in self.resume_points)
            self.e(f"switch i32 %state, label %start [ {cases} ]")
        else:
            self.e("br label %start")
        self.label("start")
        self.start_panels()
        live_at_entry = self.flow.live_in[0]
        for name, storage in self.registers.storage.items():
            bit = self.flow.registers.get(name)
            if bit is not None and live_at_entry >> bit & 1:
                self._zero(name, storage)
        for group in self.divergence.groups:
            if self._group_suspends(group):
                for b in group.blocks:
                    self._clear_mask(self.mask_slots[b])
        first = [self.literal(-1, 32)]
        if self.is_function:
            first = ["%lanes"]
            self._store_mask(self.mask_slots[0], self.mask_chunks("%lanes"))
        elif self.partial:
            rows = np.full(self.warps, -1, np.int64)
            rows[-1] = (1 << self.block.count % WARP_LANES) - 1
            first = [self.row_scalar(rows, 32)]
            self._store_mask(self.mask_slots[0], self.mask_chunks(first[0]))
        if self.live_slots is not None:
            self._store_mask(self.live_slots, self.mask_chunks(first[0]))
        if not self.partial and 0 in self.divergence.group_of:
            self._fill_mask(self.mask_slots[0])
        group = self.divergence.group_of.get(0)
        self.e(f"br label %{self._group_label(group) if group is not None else 'B0'}")
        assert n * self.chunks == WARP_LANES

    def _enter_function(self) -> None:
        """Check both stacks: the device's local memory and the host thread's."""
        self.e("%stack64 = zext i32 %stack to i64")
        top = self.t(f"add i32 %stack, {self.flat.local_bytes}")
        beyond = self.t(f"icmp ugt i32 {top}, %local.bytes")
        limit_at = self.t(f"getelementptr i8, ptr %wk, i64 {abi.Worker.stack_limit.offset}")
        limit = self.t(f"load i64, ptr {limit_at}, !invariant.load !1")
        here = self.t("ptrtoint ptr %exchange to i64")
        deep = self.t(f"icmp ult i64 {here}, {limit}")
        both = self.t(f"or i1 {beyond}, {deep}")
        self.e(f"br i1 {both}, label %overflow, label %entered, !prof !5")
        self.label("overflow")
        name = self._call_support("weft_fault")
        self.declare("declare i32 @llvm.cttz.i32(i32, i1)")
        lane = self.t("call i32 @llvm.cttz.i32(i32 %lanes, i1 false)")
        kind = int(abi.FaultKind.STACK)
        self.e(f"call void {name}(ptr %wk, ptr %blk, i32 %w, i32 {kind}, i32 %call.site, i32 {lane}, i64 0, i32 0)")
        self.e("br label %stopped")
        self.label("entered")

    def _zero(self, name: str, storage) -> None:
        form = self.registers.forms[name]
        first = self._initial(name)
        for p in storage.chunks:
            literal = self.vector_literal([first] * self.chunk, form.bits)
            self.e(f"store {self.vtype(form.bits)} {literal}, ptr {p}")
        if form.wide is not None:
            self.e(f"store i64 0, ptr {storage.scalars[0]}")
            self.e(f"store i32 0, ptr {storage.scalars[1]}")
        else:
            for p in storage.scalars:
                self.e(f"store i{form.bits} {first}, ptr {p}")
