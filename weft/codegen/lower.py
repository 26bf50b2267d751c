"""An entry function and a block shape -> LLVM IR of its warp function.

First the instruction rules run dry until the forms of all registers, the divergent branches and the masked writes are
stable; then they run once more and write text. Blocks outside divergent groups are plain basic blocks. A group's
blocks run in layout order under masks (controlflow.py).

Its parts: controlflow.py, masks.py, barriers.py, calls.py, and warpfunction.py for what is around the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from weft.analysis.divergence import Divergence, find_groups
from weft.analysis.flow import CARRY, STACK, Block, Flow, Loop, Op
from weft.analysis.inline import FlatFunction
from weft.analysis.order import ordered_ops
from weft.analysis.tiles import Group as MultiplyGroup
from weft.codegen.bulk import BulkOps
from weft.codegen.calls import Calls
from weft.codegen.clusters import ClusterOps, uses_clusters
from weft.codegen.jit import Target
from weft.codegen.registers import RegisterFile
from weft.codegen.tiles import TileOps
from weft.codegen.value import WARP_LANES, Value
from weft.codegen.warpfunction import Lowered, WarpFunction
from weft.codegen.wgmma import WgmmaOps, accumulator_runs
from weft.errors import UnsupportedError
from weft.isa.operands import Discard, Instruction, Pair, Register
from weft.ptx.module import Module
from weft.types import Dim3

MAX_PASSES = 40


# Metadata that the text of every function refers to: branch weights (likely, unlikely), an empty node, and the alias
# scope of the range slots, which no access of the program touches.
METADATA = """!0 = !{!"branch_weights", i32 2000, i32 1}
!1 = !{}
!2 = distinct !{!2}
!3 = !{!4}
!4 = distinct !{!4, !2}
!5 = !{!"branch_weights", i32 1, i32 2000}
"""


def _is_shared(op: Op) -> bool:
    return any(modifier.startswith("shared") for modifier in op.ins.modifiers)


class Lowering(Calls, WarpFunction, TileOps, WgmmaOps, ClusterOps, BulkOps):
    """One kernel for one block shape. `run()` does it all."""

    def __init__(
        self, module: Module, flat: FlatFunction, flow: Flow, block: Dim3, target: Target, small_grid: bool,
        caller: Lowering | None = None,
    ):  # fmt: skip
        super().__init__(block, 16 if target.vector_bits >= 512 else 8)
        self.module, self.flat, self.flow, self.target = module, flat, flow, target
        self.is_function = caller is not None
        self.small_grid = small_grid
        # functions that stay functions: name -> IR name; shared by all that are compiled together
        self.functions: dict[str, str] = caller.functions if caller is not None else {}
        self.file = module.file
        self.setup_access(target.has("avx512f"))
        self.setup_wgmma()
        self.has_mask_registers = target.has("avx512f") or not target.is_x86
        self.grid_limit = ((2**31 - 1) // block.x if small_grid else 2**31 - 1, 65535, 65535)
        self.registers = RegisterFile(self, self._register_bits())
        self.shared_offsets = flat.shared_offsets
        self.local_offsets = flat.local_offsets
        self.parameter_offsets = flat.parameter_offsets
        self.static_shared = flat.static_shared_bytes
        self.has_local = flat.local_bytes > 0 or STACK in flow.registers
        self.symbol_index: dict[str, int] = {}
        if caller is not None:
            self.slot_of, self.symbol_index, self.support = caller.slot_of, caller.symbol_index, caller.support
            self.declarations = caller.declarations
            self.global_prefix = f"@const.{flat.name}"
        self.mask: tuple[str, ...] | None = None
        self.guard: Value | None = None
        self.site = 0
        self.op: Op | None = None
        self.block_now: Block | None = None
        self.divergence = Divergence([], {}, {})
        self.partial = block.count % WARP_LANES != 0 or self.is_function
        self.spinning = {loop.header: loop for loop in flow.loops if self._spins(loop)}
        self.suspends = [b for b in flow.blocks if b.kind == "suspend"]
        if self.is_function:
            self._refuse_barriers()
            self.spinning = {}
        self.resume_points: list[tuple[int, str]] = []
        self.uses_clusters = uses_clusters(self._reachable_instructions())
        self.simple_barriers = self._only_plain_barriers()
        self.used = {name for b in flow.blocks for op in self._ops(b) if op.ins.guard is None for name in op.reads}
        self.used |= {
            name for b in flow.blocks for op in self._ops(b) if op.ins.guard for name in self._guarded_reads(op)
        }
        self.striding = self._striding_loops()
        self.far_blocks = self._far_blocks()

    def _refuse_barriers(self) -> None:
        for b in self.suspends:
            ins = b.terminator.ins
            raise UnsupportedError(
                f"{ins.name}: a barrier in a recursive function or one called through a pointer ({self.flat.name}) "
                "is not supported; call it directly",
                file=self.file, line=ins.line,
            )  # fmt: skip

    def _register_bits(self) -> dict[str, int]:
        bits = {name: t.bits for name, t in self.flat.registers.items()}
        bits[CARRY] = 1
        bits[STACK] = 64
        return bits

    def _reachable_instructions(self) -> Iterator[Instruction]:
        """The kernel's instructions, and those of all device functions where it calls any that is not inlined."""
        calls = False
        for b in self.flow.blocks:
            for op in self._ops(b):
                calls |= op.opcode == "call"
                yield op.ins
        if calls:
            for function in self.module.functions.values():
                yield from (item for item in function.body if isinstance(item, Instruction))

    def _only_plain_barriers(self) -> bool:
        if self.uses_clusters:
            return False
        for block in self.flow.blocks:
            for op in [*block.ops, *([block.terminator] if block.terminator else [])]:
                if op.opcode not in ("bar", "barrier") or "warp" in op.ins.modifiers:
                    continue
                plain = block.kind == "suspend" and "red" not in op.ins.modifiers and len(op.ins.operands) == 1
                if not plain or getattr(op.ins.operands[0], "value", None) != 0:
                    return False
        return not self.spinning

    @staticmethod
    def _waits_in_place(op: Op) -> bool:
        """Asks for something that only others can bring about."""
        return op.opcode in ("mbarrier", "nanosleep") and "spin" in op.match.entry.effects

    def _spins(self, loop: Loop) -> bool:
        """The loop may wait for other lanes, warps or blocks: an exit depends on memory that they change."""
        origin: set[str] = set()
        ops = [op for b in loop.blocks for op in self._ops(self.flow.blocks[b])]
        # A loop around an mbarrier that is a loop of its own does the waiting; loops further out go their rounds.
        inner = {b for other in self.flow.loops if other.blocks < loop.blocks for b in other.blocks}
        for b in loop.blocks - inner:
            if any(self._waits_in_place(op) for op in self._ops(self.flow.blocks[b])):
                return True
        for op in ops:
            if "spin" in op.match.entry.effects and not self._waits_in_place(op):
                origin.update(op.writes)
        if not origin:
            return False
        tainted = set(origin)
        # One thread may poll and hand the value to the block through shared memory.
        shared_loads = [op for op in ops if op.opcode == "ld" and _is_shared(op)]
        handed_on = False
        changed = True
        while changed:
            changed = False
            for op in ops:
                if tainted.isdisjoint(op.reads):
                    continue
                if not tainted.issuperset(op.writes):
                    tainted.update(op.writes)
                    changed = True
                if op.opcode == "st" and _is_shared(op) and not handed_on:
                    handed_on = changed = True
                    tainted.update(name for load in shared_loads for name in load.writes)
        for b in loop.blocks:
            block = self.flow.blocks[b]
            if block.kind in ("branch", "switch") and any(s not in loop.blocks for s in block.successors):
                if not tainted.isdisjoint(block.terminator.reads):
                    return True
        return False

    def _striding_loops(self) -> set[int]:
        """Headers of grid-stride loops in kernels without barriers: outermost loops with global accesses, in a kernel
        that asks for the size of the grid. One warp's accesses in such a loop are a whole grid apart, so the warps of
        a block take turns, an iteration each, and together they go through memory in order."""
        if self.suspends or self.spinning or not self.simple_barriers or self.is_function:
            return set()
        if not self._asks_for_grid():
            return set()
        found = set()
        for loop in self.flow.loops:
            if any(loop.blocks < other.blocks for other in self.flow.loops):
                continue
            inside = [op for b in loop.blocks for op in self._ops(self.flow.blocks[b])]
            if any(op.opcode in ("ld", "st") and "global" in op.ins.modifiers for op in inside):
                found.add(loop.header)
        return found

    @staticmethod
    def _guarded_reads(op: Op) -> tuple[str, ...]:
        """What a guarded instruction reads, without its own destinations' old values."""
        return op.reads[: len(op.reads) - len(op.writes)] if op.opcode != "bra" else op.reads

    def takes_turns(self) -> bool:
        """This block is in a loop whose warps take turns, a round each."""
        here = self.block_now.index
        return any(loop.header in self.striding and here in loop.blocks for loop in self.flow.loops)

    def in_loop(self) -> bool:
        """This block may run several times in one run of the warp, or belongs to a device function."""
        here = self.block_now.index
        return self.is_function or any(here in loop.blocks for loop in self.flow.loops)

    def previous_address(self) -> str | None:
        """Where a load in a grid-stride loop keeps the address of its last round; None elsewhere."""
        if self.block_now.index not in self.far_blocks:
            return None
        self.counter += 1
        name = f"%last.{self.counter}"
        self.registers.allocas += [f"  {name} = alloca i64", f"  store i64 0, ptr {name}"]
        return name

    def _far_blocks(self) -> set[int]:
        """Blocks of loops that stride by the size of the grid and whose warps do not take turns."""
        if self.striding or not self._asks_for_grid():
            return set()
        return {b for loop in self.flow.loops for b in loop.blocks if loop.header not in self.spinning}

    def _asks_for_grid(self) -> bool:
        return any(
            getattr(o, "name", "") == "%nctaid.x"
            for block in self.flow.blocks
            for op in self._ops(block)
            for o in op.ins.operands
        )

    @staticmethod
    def _ops(block: Block) -> list[Op]:
        return block.ops if block.terminator is None else [*block.ops, block.terminator]

    # ------------------------------------------------------------ driver
    def run(self) -> Lowered:
        self._analyse()
        self.plan = {b.index: self.plan_groups(ordered_ops(b.ops)) for b in self.flow.blocks}
        groups = [item for plan in self.plan.values() for item in plan if isinstance(item, MultiplyGroup)]
        runs = accumulator_runs(op for b in self.flow.blocks for op in b.ops)
        self.registers.runs = [*runs, *self.tile_places(groups)]
        self.in_frame = self._frame_registers()
        self.registers.place(self.in_frame)
        self.dry = False
        self._emit_all()
        return self._finish()

    # ------------------------------------------------------------ analysis
    def _analyse(self) -> None:
        divergent: set[int] = set()
        if self.partial:
            self._regroup(divergent)
        if self.flow.loops:
            self._settle_forms()
            self.registers.restart()
        while True:
            self._settle_forms()
            found = set(divergent)
            for b in self.flow.blocks:
                if b.kind in ("branch", "switch") and not self._branch_is_uniform(b):
                    found.add(b.index)
            if found == divergent:
                return
            divergent = found
            self._regroup(divergent)

    def _regroup(self, divergent: set[int]) -> None:
        spinning = [loop for loop in self.flow.loops if loop.header in self.spinning]
        self.divergence = find_groups(self.flow, divergent, self.partial, spinning)

    def _branch_is_uniform(self, block: Block) -> bool:
        terminator = block.terminator
        name = terminator.ins.guard.register if block.kind == "branch" else None
        if name is not None:
            form = self.registers.forms.get(name)
        else:
            form = self.read(terminator.ins.operands[0], 32)
        return form is None or form.is_uniform

    def _settle_forms(self) -> None:
        if STACK in self.flow.registers:
            self.registers.join(STACK, self.const(self.flat.local_bytes, 64))
        forms = self.registers.forms
        seen: dict[Op, tuple[Value | None, ...]] = {}
        for _ in range(MAX_PASSES):
            self.registers.changed = False
            for b in self.flow.order:
                self._enter_block(self.flow.blocks[b])
                for op in self.flow.blocks[b].ops:
                    # an instruction whose sources have the forms of the last pass gives what it gave then
                    sources = tuple([forms.get(name) for name in op.reads])
                    if seen.get(op) != sources:
                        seen[op] = sources
                        self._emit_op(op)
                self._note_barrier_result(self.flow.blocks[b])
            if not self.registers.changed and not self._start_unwritten():
                return
        raise AssertionError(f"{self.flat.name}: register forms do not settle after {MAX_PASSES} passes")

    def _start_unwritten(self) -> bool:
        """A register that only its own old value decides (`mad %r1, %r1, ...` with nothing before) never gets a form:
        it starts as 0. True when there was one."""
        entry = self.flow.live_in[0]
        found = False
        for name, bit in self.flow.registers.items():
            if entry >> bit & 1 and name not in self.registers.forms and name in self.registers.bits:
                self.registers.join(name, self.const(self._initial(name), self.registers.bits[name]))
                found = True
        return found

    def _initial(self, name: str) -> int:
        """What a register holds before anything is written to it."""
        return self.flat.local_bytes if name == STACK else 0

    def stack_top(self) -> Value | None:
        """End of the local memory in use, per lane, 64 bits."""
        if self.is_function:
            raise UnsupportedError(
                f"{self.op.ins.name}: not in a recursive function or one called through a pointer",
                file=self.file, line=self.op.ins.line,
            )  # fmt: skip
        return self.registers.read(STACK)

    def set_stack_top(self, value: Value) -> None:
        self.write(Register(STACK), value)

    def _note_barrier_result(self, block: Block) -> None:
        if block.kind == "suspend" and "red" in block.terminator.ins.modifiers:
            op = block.terminator
            self.op, self.site = op, op.site
            bits = 1 if "popc" not in op.ins.modifiers else 32
            self.write(op.ins.operands[0], self.scalar("%dry", bits))

    def _enter_block(self, block: Block) -> None:
        self.block_now = block
        self.registers.begin_block()
        self.splats.clear()
        group = self.divergence.group_of.get(block.index)
        self.waiting = self.divergence.waiting.get(block.index, 0) if group is not None else 0
        self.mask = ("%dry",) * self.chunks if group is not None else None
        self.block_mask = self.mask

    def _frame_registers(self) -> set[str]:
        """Registers that must survive a suspension."""
        live = 0
        for block in self.suspends:
            live |= self.flow.live_in[block.successors[0]] | self.divergence.waiting.get(block.index, 0)
            live |= self.flow.live_out[block.index]
        for header in (*self.spinning, *self.striding):
            live |= self.flow.live_in[header]
            group = self.divergence.group_of.get(header)
            if group is not None:
                for b in group.blocks:
                    live |= self.flow.live_in[b]
        return {name for name, bit in self.flow.registers.items() if live >> bit & 1}

    # ------------------------------------------------------------ instructions
    def _emit_op(self, op: Op) -> None:
        if self.pending_wgmma and self.wgmma_conflicts(op):
            self.finish_wgmma()
        self.op, self.site = op, op.site
        guard = op.ins.guard
        if guard is None:
            self._emit_plain(op)
            return
        p = self.registers.read(guard.register)
        if p is None:
            return
        if guard.negated:
            p = self.not_(p)
        constant = p.constant
        if constant == 0:
            return
        if constant == 1:
            self._emit_plain(op)
            return
        if self._is_value_rule(op):
            self._emit_selected(op, p)
        elif p.is_uniform:
            self._emit_behind_branch(op, p)
        else:
            self._emit_masked(op, p)

    def _is_value_rule(self, op: Op) -> bool:
        entry = op.match.entry
        return not entry.raw and not entry.collective and not entry.effects & {"memory", "barrier", "control"}

    def _emit_selected(self, op: Op, p: Value) -> None:
        results = self._evaluate(op)
        if results is None:
            return
        for operand, value in results:
            if isinstance(operand, Register):
                old = self.registers.read(operand.name)
                if old is not None:
                    value = self.select(p, self.resize(value, old.bits, False), old)
            self.write(operand, value)

    def _emit_behind_branch(self, op: Op, p: Value) -> None:
        if self.dry:
            self._emit_plain(op)
            return
        then, after = self.new_label("then"), self.new_label("after")
        self.registers.spill(op.writes)
        self.e(f"br i1 {self.uval(p)}, label %{then}, label %{after}")
        self.label(then)
        self.depth += 1
        self._emit_plain(op)
        self.depth -= 1
        self.e(f"br label %{after}")
        self.label(after)
        self.registers.forget(op.writes)

    def _emit_masked(self, op: Op, p: Value) -> None:
        before, before_guard = self.mask, self.guard
        self.guard = p
        if self.dry:
            self.mask = ("%dry",) * self.chunks
            self._emit_plain(op)
            self.mask, self.guard = before, before_guard
            return
        n = self.chunk
        chunks = self.vec(p)
        if before is not None:
            chunks = tuple(self.t(f"and <{n} x i1> {x}, {m}") for x, m in zip(chunks, before))
        self.mask = tuple(chunks)
        # no lane at all: nothing may be touched, not even a uniform address
        then, after = self.new_label("some"), self.new_label("after")
        self.registers.spill(op.writes)
        self.e(f"br i1 {self.any_chunk(self.mask)}, label %{then}, label %{after}")
        self.label(then)
        self.depth += 1
        self._emit_plain(op)
        self.depth -= 1
        self.e(f"br label %{after}")
        self.label(after)
        self.registers.forget(op.writes)
        self.mask, self.guard = before, before_guard

    def blend_mask(self, name: str) -> tuple[str, ...] | None:
        """Lanes that a write must be limited to; None when the other lanes' value is dead."""
        if self.guard is not None:
            return self.mask
        if self.block_mask is not None:
            bit = self.flow.registers.get(name)
            if bit is not None and self.waiting >> bit & 1:
                return self.block_mask
        return None

    def _emit_plain(self, op: Op) -> None:
        ins = op.ins
        if ins.opcode == "call":
            self._emit_call(op)
            return
        if ins.opcode in ("bar", "barrier"):
            self._emit_arrival(op)
            return
        if ins.opcode in ("ld", "st") and "param" in ins.modifiers and self._emit_parameter_register(op):
            return
        if ins.opcode == "atom" and self.used.isdisjoint(op.writes):
            # nobody reads the old value: a reduction
            ins = replace(ins, operands=(Discard(), *ins.operands[1:]))
        entry = op.match.entry
        if entry.emit is None:
            raise UnsupportedError(f"{ins.name}: not supported here", file=self.file, line=ins.line)
        if entry.raw:
            if all(
                self.registers.forms.get(name) is not None or not self.dry for name in op.reads if name not in op.writes
            ):
                entry.emit(self, op.match, ins)
            return
        results = self._evaluate(op)
        if results is not None:
            for operand, value in results:
                self.write(operand, value)

    def _evaluate(self, op: Op) -> list[tuple[object, Value]] | None:
        """Run a value rule: destinations with their values. None while a source has no value yet."""
        m, ins, entry = op.match, op.ins, op.match.entry
        sources: list[Value | None] = []
        destinations: list = []
        signed = []  # destinations whose type is signed
        for spec, operand in zip(entry.operands, ins.operands):
            if spec.is_destination:
                if m.operand_type(spec.name).signed:
                    signed.append(len(destinations))
                if isinstance(operand, Pair):
                    destinations += [operand.first, operand.second]
                else:
                    destinations.append(operand)
                    if spec.pair:
                        destinations.append(Discard())
                continue
            type_ = m.operand_type(spec.name)
            value = self.read(operand, type_.bits, type_)
            if value is None:
                return None
            sources.append(value)
        missing = len([s for s in entry.operands if not s.is_destination]) - len(sources)
        sources += [None] * missing
        if "carry_in" in entry.effects:
            carry = self.registers.read(CARRY)
            if carry is None:
                return None
            sources.append(carry)
        found = entry.emit(self, m, *sources)
        values = list(found) if isinstance(found, tuple) else [found]
        if "carry_out" in entry.effects:
            destinations.append(Register(CARRY))
        assert len(values) >= len([d for d in destinations if not isinstance(d, Discard)]), ins.name
        for i in signed:  # a wider register takes the result extended by its type's sign
            width = self.registers.bits[destinations[i].name] if isinstance(destinations[i], Register) else 0
            if width > values[i].bits:
                values[i] = self.resize(values[i], width, True)
        return list(zip(destinations, values))
