"""Blocks of a function's flow graph enter, labels, branches and the code between them leave.

Blocks outside divergent groups are plain basic blocks. A group's blocks run in layout order under masks: each starts by
taking the lanes that wait for it and is left out when there are none; a loop goes round at its last block while lanes
wait at its header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.analysis.divergence import Divergence, Group
from weft.analysis.flow import Block, Flow, Loop, Op
from weft.analysis.tiles import Group as MultiplyGroup
from weft.codegen import abi
from weft.codegen.barriers import Barriers
from weft.isa.operands import Register


class ControlFlow(Barriers):
    """The order in which blocks run, and with which lanes."""

    if TYPE_CHECKING:  # the lowering's
        flow: Flow
        divergence: Divergence
        plan: dict[int, list[Op | MultiplyGroup]]
        in_frame: set[str]
        spinning: dict[int, Loop]
        striding: set[int]
        suspends: list[Block]
        waiting: int
        block_mask: tuple[str, ...] | None
        live_slots: list[str] | None
        _divergent: set[int]

        def emit_group(self, group: MultiplyGroup) -> None: ...
        def finish_wgmma(self) -> None: ...
        def _enter_block(self, block: Block) -> None: ...
        def _emit_op(self, op: Op) -> None: ...

    def _emit_all(self) -> None:
        flow = self.flow
        self.mask_slots: dict[int, list[str]] = {}
        for group in self.divergence.groups:
            frame = self._group_suspends(group)
            for b in group.blocks:
                self.mask_slots[b] = self._mask_slot(f"%M{b}", frame)
        self.live_slots = None
        if any(b.index in self.divergence.group_of for b in self.suspends):
            self.live_slots = self._mask_slot("%live", True)
        self.lines.clear()
        emitted: set[int] = set()
        for b in flow.order:
            if b in emitted:
                continue
            group = self.divergence.group_of.get(b)
            if group is None:
                self._emit_uniform_block(flow.blocks[b])
                emitted.add(b)
            else:
                self._emit_group(group)
                emitted.update(group.blocks)

    def _group_suspends(self, group: Group) -> bool:
        return any(
            self.flow.blocks[b].kind == "suspend" or b in self.spinning or b in self.striding for b in group.blocks
        )

    def _block_label(self, b: int) -> str:
        return "finished" if b == self.flow.exit else f"B{b}"

    def _poll(self) -> None:
        """Leave when the launch is to stop (fault elsewhere, time limit, Ctrl-C)."""
        stop = self.t("load atomic i32, ptr %stop.ptr monotonic, align 4")
        onward = self.new_label("go")
        self.e(f"br i1 {self.t(f'icmp ne i32 {stop}, 0')}, label %stopped, label %{onward}{', !prof !5'}")
        self.label(onward)

    # ------------------------------------------------------------ blocks that run with all lanes
    def _emit_uniform_block(self, block: Block) -> None:
        self._enter_block(block)
        self.label(f"B{block.index}")
        self._emit_ops(block)
        self.op = block.terminator or self.op
        self._flush(block)
        if block.kind == "trap":
            self._emit_trap(block)
        elif block.kind == "suspend":
            self._emit_uniform_suspend(block)
        elif block.kind == "exit":
            self.e("br label %finished")
        elif block.kind == "jump":
            self._jump_uniform(block, block.successors[0])
        elif self._branch_is_uniform_now(block):
            self._branch_uniform(block)
        else:
            self._branch_divergent(block)

    def _emit_ops(self, block: Block) -> None:
        last = self._last_writes(block)
        for item in self.plan[block.index]:
            if isinstance(item, MultiplyGroup):
                self.emit_group(item)
                continue
            self._emit_op(item)
            self.registers.spill([name for name in item.writes if last.get(name) is item])

    def _last_writes(self, block: Block) -> dict[str, Op]:
        """The last instructions to write to registers that must be in memory at the block's end, or, accumulators,
        before the next multiplication. They store at once: LLVM would keep all until the end, in stack slots."""
        needed = self.flow.live_out[block.index] | self.waiting
        last: dict[str, Op] = {}
        for item in self.plan[block.index]:
            if isinstance(item, MultiplyGroup):
                continue
            for name in item.writes:
                kept = name in self.in_frame and needed >> self.flow.registers[name] & 1
                if kept or name in self.registers.regions:
                    last[name] = item
        return last

    def _flush(self, block: Block) -> None:
        self.finish_wgmma()
        self.registers.flush(self.flow.live_out[block.index] | self.waiting, self.flow.registers)

    def _branch_is_uniform_now(self, block: Block) -> bool:
        return block.index not in self.divergent_blocks()

    def divergent_blocks(self) -> set[int]:
        if not hasattr(self, "_divergent"):
            self._divergent = {
                b.index for b in self.flow.blocks if b.kind in ("branch", "switch") and not self._form_is_uniform(b)
            }
        return self._divergent

    def _form_is_uniform(self, block: Block) -> bool:
        terminator = block.terminator
        if block.kind == "branch":
            form = self.registers.forms.get(terminator.ins.guard.register)
        else:
            operand = terminator.ins.operands[0]
            form = self.registers.forms.get(operand.name) if isinstance(operand, Register) else None
        return form is None or form.is_uniform

    def _emit_trap(self, block: Block) -> None:
        self.site = block.terminator.site
        self.fault(abi.FaultKind.TRAP, self.mask_word())
        self.e("br label %stopped")

    def _jump_uniform(self, block: Block, target: int) -> None:
        """Go on to one block with all lanes."""
        if self.flow.is_back_edge(block.index, target):
            if target in self.spinning and target not in self.divergence.group_of:
                self._suspend(abi.WARP_YIELD, f"B{target}")
                return
            if target in self.striding and target not in self.divergence.group_of:
                self._suspend(abi.WARP_YIELD, f"B{target}")
                return
            self._poll()
        if target in self.divergence.group_of:
            self._fill_mask(self.mask_slots[target])
            self.e(f"br label %{self._group_label(self.divergence.group_of[target])}")
        else:
            self.e(f"br label %{self._block_label(target)}")

    def _group_label(self, group: Group) -> str:
        return f"D{group.blocks[0]}"

    def _edge_uniform(self, block: Block, target: int, label: str) -> None:
        self.label(label)
        self._jump_uniform(block, target)

    def _branch_uniform(self, block: Block) -> None:
        terminator = block.terminator
        if block.kind == "switch":
            index = self.uval(self.read(terminator.ins.operands[0], 32))
            labels = [self.new_label("case") for _ in block.successors]
            cases = " ".join(f"i32 {i}, label %{label}" for i, label in enumerate(labels) if i)
            self.e(f"switch i32 {index}, label %{labels[0]} [ {cases} ]")
            for label, target in zip(labels, block.successors):
                self._edge_uniform(block, target, label)
            return
        p = self.uval(self.registers.read(terminator.ins.guard.register))
        labels = [self.new_label("edge") for _ in block.successors]
        order = labels[::-1] if terminator.ins.guard.negated else labels
        self.e(f"br i1 {p}, label %{order[0]}, label %{order[1]}")
        for label, target in zip(labels, block.successors):
            self._edge_uniform(block, target, label)

    def _branch_divergent(self, block: Block) -> None:
        """Lanes part here: enter the group with a mask for each side."""
        for target, chunks in self._split_lanes(block):
            if target in self.divergence.group_of:
                self._add_lanes(target, chunks)
        group = next(self.divergence.group_of[s] for s in block.successors if s in self.divergence.group_of)
        back = [s for s in block.successors if self.flow.is_back_edge(block.index, s)]
        if back:
            self._poll()
        self.e(f"br label %{self._group_label(group)}")

    def _split_lanes(self, block: Block) -> list[tuple[int, list[str]]]:
        """(successor, predicate chunks of the lanes that go there) of a branch, within the running lanes."""
        n = self.chunk
        terminator = block.terminator

        def within(chunks):
            if self.mask is None:
                return list(chunks)
            return [self.t(f"and <{n} x i1> {x}, {m}") for x, m in zip(chunks, self.mask)]

        if block.kind == "switch":
            index = self.read(terminator.ins.operands[0], 32)
            found = []
            for i, target in enumerate(block.successors):
                chosen = self.icmp("eq", index, self.const(i, 32))
                found.append((target, within(self.vec(chosen))))
            return found
        p = self.registers.read(terminator.ins.guard.register)
        if terminator.ins.guard.negated:
            p = self.not_(p)
        taken, other = block.successors
        return [(taken, within(self.vec(p))), (other, within(self.vec(self.not_(p))))]

    def _emit_uniform_suspend(self, block: Block) -> None:
        op = block.terminator
        self.site = op.site
        self._arrive(op)
        label = self.new_label("resume")
        self._suspend(abi.WARP_CLUSTER if "cluster" in op.ins.modifiers else abi.WARP_BARRIER, label)
        self.label(label)
        self.registers.begin_block()
        self.splats.clear()
        self._barrier_result(op)
        self._flush(block)
        self._jump_uniform(block, block.successors[0])

    # ------------------------------------------------------------ groups
    def _emit_group(self, group: Group) -> None:
        last_of: dict[int, list[Loop]] = {}
        for loop in self.flow.loops:
            if loop.blocks <= group.members:
                last = max(loop.blocks, key=self.flow.position.__getitem__)
                last_of.setdefault(last, []).append(loop)
        for loops in last_of.values():
            loops.sort(key=lambda loop: len(loop.blocks))
        for i, b in enumerate(group.blocks):
            following = f"D{group.blocks[i + 1]}" if i + 1 < len(group.blocks) else f"E{group.blocks[0]}"
            self._emit_group_block(group, self.flow.blocks[b], following, last_of.get(b, []))
        self._emit_group_end(group)

    def _emit_group_block(self, group: Group, block: Block, following: str, ending: list[Loop]) -> None:
        self._enter_block(block)
        self.label(f"D{block.index}")
        slots = self.mask_slots[block.index]
        mask = self._load_mask(slots)
        end = f"N{block.index}"
        self.e(f"br i1 {self.any_chunk(mask)}, label %B{block.index}, label %{end}")
        self.label(f"B{block.index}")
        self._clear_mask(slots)
        self.mask = self.block_mask = mask
        self._emit_ops(block)
        self.op = block.terminator or self.op
        self._flush(block)
        self._leave_group_block(group, block)
        if block.kind != "trap":
            self.e(f"br label %{end}")
        self.label(end)
        self.registers.begin_block()
        self.splats.clear()
        for loop in ending:
            if loop.header in self.spinning:
                continue
            again, onward = self.new_label("again"), self.new_label("through")
            self.e(f"br i1 {self._any_waiting(self.mask_slots[loop.header])}, label %{again}, label %{onward}")
            self.label(again)
            if loop.header in self.striding:
                self._suspend(abi.WARP_YIELD, f"D{loop.header}")
            else:
                self._poll()
                self.e(f"br label %D{loop.header}")
            self.label(onward)
        self.e(f"br label %{following}")

    def _leave_group_block(self, group: Group, block: Block) -> None:
        if block.kind == "trap":
            self._emit_trap(block)
        elif block.kind == "suspend":
            self._emit_group_suspend(group, block)
        elif block.kind == "exit":
            self._retire(self.mask)
        elif block.kind == "jump":
            self._send(group, block.successors[0], self.mask)
        else:
            for target, chunks in self._split_lanes(block):
                self._send(group, target, chunks)

    def _send(self, group: Group, target: int, chunks) -> None:
        if target == self.flow.exit:
            self._retire(chunks)
        elif target in group.members:
            if self._only_exits(target):
                self._retire(chunks)
            else:
                self._add_lanes(target, chunks)

    def _only_exits(self, b: int) -> bool:
        block = self.flow.blocks[b]
        return block.kind == "exit" and not block.ops

    def _retire(self, chunks) -> None:
        """These lanes leave the kernel."""
        if self.live_slots is None:
            return
        ty = self._mask_type()
        for p, x in zip(self.live_slots, chunks):
            kept = self.t(f"and {ty} {self._mask_word(p)}, {self._not_word(self._mask_out(x))}")
            self.e(f"store {ty} {kept}, ptr {p}")

    def _emit_group_end(self, group: Group) -> None:
        self.label(f"E{group.blocks[0]}")
        self.registers.begin_block()
        self.splats.clear()
        for b in group.blocks:
            if b in self.spinning:
                again, onward = self.new_label("spin"), self.new_label("through")
                self.e(f"br i1 {self._any_waiting(self.mask_slots[b])}, label %{again}, label %{onward}")
                self.label(again)
                self.site = self.flow.blocks[b].ops[0].site if self.flow.blocks[b].ops else 0
                self._suspend(abi.WARP_YIELD, f"D{group.blocks[0]}")
                self.label(onward)
        if group.exit in self.divergence.group_of:
            raise AssertionError("a divergent group leads into another")
        self.e(f"br label %{self._block_label(group.exit)}")

    def _emit_group_suspend(self, group: Group, block: Block) -> None:
        """A barrier in divergent code: all lanes that have not left, or are on a way out without barriers, must be
        here together."""
        op = block.terminator
        self.site = op.site
        ty = self._mask_type()
        missing = None
        for c, (p, m) in enumerate(zip(self.live_slots, self.mask)):
            if group.exit in self.flow.to_barrier:
                # lanes may have gone ahead to the group's exit, and would come to a barrier there
                absent = self.t(f"and {ty} {self._mask_word(p)}, {self._not_word(self._mask_out(m))}")
                for b in group.blocks:
                    if b not in self.flow.to_barrier:
                        waiting = self._mask_word(self.mask_slots[b][c])
                        absent = self.t(f"and {ty} {absent}, {self._not_word(waiting)}")
                missing = absent if missing is None else self.t(f"or {ty} {missing}, {absent}")
                continue
            for b in group.blocks:
                if b in self.flow.to_barrier:
                    waiting = self._mask_word(self.mask_slots[b][c])
                    missing = waiting if missing is None else self.t(f"or {ty} {missing}, {waiting}")
        wrong, fine = self.new_label("apart"), self.new_label("together")
        self.e(f"br i1 {self._any_word(missing)}, label %{wrong}, label %{fine}, !prof !5")
        self.label(wrong)
        self.depth += 1
        self.fault(abi.FaultKind.BARRIER, self.mask_word())
        self.depth -= 1
        self.e("br label %stopped")
        self.label(fine)
        self._arrive(op)
        target = block.successors[0]
        label = self.new_label("resume")
        self._send(group, target, self.mask)
        if "red" in op.ins.modifiers:
            self._store_mask(self._barrier_lanes(), self.mask)
        self._suspend(abi.WARP_CLUSTER if "cluster" in op.ins.modifiers else abi.WARP_BARRIER, label)
        self.label(label)
        self.registers.begin_block()
        self.splats.clear()
        if "red" in op.ins.modifiers:
            self.mask = self.block_mask = self._load_mask(self._barrier_lanes())
            self._barrier_result(op)
            self._flush(block)
