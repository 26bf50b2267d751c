"""An entry function and a block shape -> LLVM IR of its warp function.

First the instruction rules run dry until the forms of all registers, the divergent branches and the masked writes are
stable; then they run once more and write text. Blocks outside divergent groups are plain basic blocks. A group's
blocks run in layout order under masks: each starts by taking the lanes that wait for it and is left out when there
are none; a loop goes round at its last block while lanes wait at its header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from weft.analysis.divergence import Divergence, Group, find_groups
from weft.analysis.flow import CARRY, STACK, Block, Flow, Loop, Op
from weft.analysis.inline import FlatFunction, address_taken, call_layout
from weft.analysis.order import ordered_ops
from weft.analysis.tiles import Group as MultiplyGroup
from weft.codegen import abi
from weft.codegen.bulk import BulkOps
from weft.codegen.clusters import ClusterOps, uses_clusters
from weft.codegen.jit import Target, function_attributes
from weft.codegen.registers import RegisterFile
from weft.codegen.tiles import TileOps
from weft.codegen.value import WARP_LANES, Value
from weft.codegen.wgmma import WgmmaOps, accumulator_runs
from weft.errors import PtxError, UnsupportedError
from weft.isa.operands import Address, Discard, Instruction, Pair, Register, Symbol, Vector
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


def _is_shared(op: Op) -> bool:
    return any(modifier.startswith("shared") for modifier in op.ins.modifiers)


class Lowering(TileOps, WgmmaOps, ClusterOps, BulkOps):
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

    def _emit_parameter_register(self, op: Op) -> bool:
        """ld.param/st.param on a call's parameter that is kept in registers."""
        ins = op.ins
        loading = ins.opcode == "ld"
        address = ins.operands[1 if loading else 0]
        if not isinstance(address, Address) or not isinstance(address.base, Symbol):
            return False
        name = address.base.name
        if name not in self.flat.parameter_registers:
            return False
        offset = address.base.offset + address.offset
        data = ins.operands[0 if loading else 1]
        items = data.items if isinstance(data, Vector) else (data,)
        type_ = op.match.get("type")
        for i, item in enumerate(items):
            slot = Register(f"{name}@{offset + i * type_.bytes}")
            if not loading:
                value = self.read(item, type_.bits, type_)
                if value is not None:
                    self.write(slot, value)
                continue
            value = self.registers.read(slot.name)
            if value is None:
                continue
            value = self.resize(value, type_.bits, False)
            if isinstance(item, Register):
                width = self.registers.bits[item.name]
                value = self.resize(value, width, type_.signed)
            self.write(item, value)
        return True

    # ------------------------------------------------------------ calls
    def _emit_call(self, op: Op) -> None:
        target = op.ins.operands[0]
        name = target.target.name
        handler = {"vprintf": self._call_printf, "__assertfail": self._call_assert, "malloc": self._call_malloc,
                   "free": self._call_free}.get(name)  # fmt: skip
        if handler is not None:
            handler(op, target)
        elif isinstance(target.target, Register):
            self._call_indirect(op, target)
        else:
            function = self.module.functions[name]
            self._call_function(target, function.returns, function.params, [(name, None)])

    def _call_indirect(self, op: Op, target) -> None:
        prototype = self.flat.prototypes.get(target.prototype)
        pointer = self.read(target.target, 64)
        if prototype is None:
            raise PtxError(f"{op.ins.name}: no .callprototype {target.prototype!r}", file=self.file, line=op.ins.line)
        if pointer is None:
            return
        shape = [(p.size, p.align) for p in (*prototype.returns, *prototype.params)]
        names = list(self.module.functions)
        choices = []
        known = self.const(0, 1)
        for name in address_taken(self.module):
            function = self.module.functions[name]
            if [(p.size, p.align) for p in (*function.returns, *function.params)] == shape:
                chosen = self.icmp("eq", pointer, self.const(abi.function_address(names.index(name)), 64))
                choices.append((name, chosen))
                known = self.or_(known, chosen)
        self._fault_lanes(self.not_(known), abi.FaultKind.CALL)
        self._call_function(target, prototype.returns, prototype.params, choices)

    def _fault_lanes(self, wrong: Value, kind: abi.FaultKind) -> None:
        if self.dry:
            return
        word = self.uval(self.ballot(wrong))
        bad, fine = self.new_label("bad"), self.new_label("fine")
        self.e(f"br i1 {self.t(f'icmp ne i32 {word}, 0')}, label %{bad}, label %{fine}, !prof !5")
        self.label(bad)
        self.depth += 1
        self.fault(kind, word)
        self.depth -= 1
        self.e("br label %stopped")
        self.label(fine)

    def _call_function(self, target, returns, params, choices: list[tuple[str, Value | None]]) -> None:
        """Pass the arguments on the local stack, call each chosen function with its lanes, fetch the results."""
        return_places, param_places, _ = call_layout(returns, params)
        frame = self.add(self.local_base(), self.const(self.flat.local_bytes, 64))

        def place(offset: int) -> Value:
            return self.add(frame, self.const(offset, 64))

        for formal, at, actual in zip(params, param_places, target.arguments, strict=True):
            for offset, value in self._argument_parts(formal, actual):
                if value is None:
                    return
                self.store("local", place(at + offset), [value])
        if not self.dry:
            for name, chosen in choices:
                self._call_lanes(name, chosen, self.uval(self.trunc(frame, 32)))
        for formal, at, actual in zip(returns, return_places, target.returns, strict=True):
            if isinstance(actual, Register):
                self.write(actual, self.load("local", place(at), max(8, formal.type.bits))[0])
                continue
            for offset, bits in self._parameter_parts(actual.name):
                value = self.load("local", place(at + offset), bits)[0]
                self.write(Register(f"{actual.name}@{offset}"), value)
            if actual.name in self.local_offsets:
                for offset in range(0, formal.size, 4):
                    word = self.load("local", place(at + offset), 32)
                    self.store("local", self.symbol_address(actual.name, offset), word)

    def _parameter_parts(self, name: str) -> list[tuple[int, int]]:
        """(offset, bits) of a call parameter kept in registers."""
        prefix = name + "@"
        return [(int(r[len(prefix) :]), bits) for r, bits in self.registers.bits.items() if r.startswith(prefix)]

    def _argument_parts(self, formal, actual):
        if isinstance(actual, Symbol):
            for offset, _ in self._parameter_parts(actual.name):
                yield offset, self.registers.read(f"{actual.name}@{offset}")
            if actual.name in self.local_offsets:
                for offset in range(0, formal.size, 4):
                    yield offset, self.load("local", self.symbol_address(actual.name, offset), 32)[0]
        else:
            yield 0, self.read(actual, max(8, formal.type.bits), formal.type)

    def _call_lanes(self, name: str, chosen: Value | None, frame: str) -> None:
        ir_name = self.functions.setdefault(name, f"@device.{len(self.functions)}")
        word = self.mask_word() if chosen is None else self.uval(self.ballot(chosen))
        end = None
        if chosen is not None:
            then, end = self.new_label("chosen"), self.new_label("next")
            self.e(f"br i1 {self.t(f'icmp ne i32 {word}, 0')}, label %{then}, label %{end}")
            self.label(then)
        status = self.t(
            f"call i32 {ir_name}(ptr %wk, ptr %blk, ptr %sh, ptr %loc, i32 %w, i32 %cx, i32 %cy, i32 %cz, "
            f"i32 {word}, i32 {frame}, i32 {self.site})"
        )
        onward = end or self.new_label("returned")
        self.e(f"br i1 {self.t(f'icmp ne i32 {status}, 0')}, label %stopped, label %{onward}")
        self.label(onward)

    def local_base(self) -> Value:
        """Where this function's local memory begins."""
        return self.scalar("%stack64", 64, 0, 1 << 31) if self.is_function else self.const(0, 64)

    def _call_arguments(self, target, count: int) -> list[Value] | None:
        values = []
        for argument in target.arguments[:count]:
            value = (
                self.registers.read(f"{argument.name}@0")
                if not isinstance(argument, Register)
                else self.read(argument, 64)
            )
            if value is None:
                return None
            values.append(self.resize(value, 64, False))
        return values

    def _call_result(self, target, value: Value) -> None:
        if target.returns:
            name = target.returns[0].name
            register = f"{name}@0"
            if register in self.registers.bits:
                self.write(Register(register), self.resize(value, self.registers.bits[register], False))

    def _call_printf(self, op: Op, target) -> None:
        values = self._call_arguments(target, 2)
        if values is not None:
            self._call_result(target, self.trunc(self.host_call(abi.HostCall.PRINTF, values), 32))

    def _call_assert(self, op: Op, target) -> None:
        values = self._call_arguments(target, 5)
        if values is not None:
            self.host_call(abi.HostCall.ASSERT, values)

    def _call_malloc(self, op: Op, target) -> None:
        values = self._call_arguments(target, 1)
        if values is not None:
            self._call_result(target, self.host_call(abi.HostCall.MALLOC, values))

    def _call_free(self, op: Op, target) -> None:
        values = self._call_arguments(target, 1)
        if values is not None:
            self.host_call(abi.HostCall.FREE, values)

    # ------------------------------------------------------------ emission of control flow
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

    # Masks are kept as bits where the host has mask registers, else as one word of ones or zeros per lane.
    def _mask_type(self) -> str:
        return f"i{self.chunk}" if self.has_mask_registers else self.vtype(32)

    def _mask_slot(self, name: str, in_frame: bool) -> list[str]:
        slots = []
        for c in range(self.chunks):
            slot = f"{name}.{c}"
            if in_frame:
                self.registers.frame_slot(slot, self._mask_type())
            else:
                self.registers.allocas.append(f"  {slot} = alloca {self._mask_type()}")
            slots.append(slot)
        return slots

    def _mask_out(self, x: str) -> str:
        """A predicate chunk as it is kept."""
        n = self.chunk
        if self.has_mask_registers:
            return self.t(f"bitcast <{n} x i1> {x} to i{n}")
        return self.t(f"sext <{n} x i1> {x} to {self.vtype(32)}")

    def _mask_word(self, slot: str) -> str:
        return self.t(f"load {self._mask_type()}, ptr {slot}")

    def _not_word(self, word: str) -> str:
        ones = "-1" if self.has_mask_registers else self.vector_literal([-1] * self.chunk, 32)
        return self.t(f"xor {self._mask_type()} {word}, {ones}")

    def _any_word(self, word: str) -> str:
        """i1: some lane of a kept mask is set."""
        n = self.chunk
        if self.has_mask_registers:
            return self.t(f"icmp ne i{n} {word}, 0")
        lanes = self.t(f"icmp slt {self.vtype(32)} {word}, zeroinitializer")
        return self.t(f"icmp ne i{n} {self.t(f'bitcast <{n} x i1> {lanes} to i{n}')}, 0")

    def _load_mask(self, slots: list[str]) -> tuple[str, ...]:
        n = self.chunk
        words = [self._mask_word(p) for p in slots]
        if self.has_mask_registers:
            return tuple(self.t(f"bitcast i{n} {w} to <{n} x i1>") for w in words)
        return tuple(self.t(f"icmp slt {self.vtype(32)} {w}, zeroinitializer") for w in words)

    def _store_mask(self, slots: list[str], chunks) -> None:
        for p, x in zip(slots, chunks):
            self.e(f"store {self._mask_type()} {self._mask_out(x)}, ptr {p}")

    def _clear_mask(self, slots: list[str]) -> None:
        zero = "0" if self.has_mask_registers else "zeroinitializer"
        for p in slots:
            self.e(f"store {self._mask_type()} {zero}, ptr {p}")

    def _fill_mask(self, slots: list[str]) -> None:
        ones = "-1" if self.has_mask_registers else self.vector_literal([-1] * self.chunk, 32)
        for p in slots:
            self.e(f"store {self._mask_type()} {ones}, ptr {p}")

    def _add_lanes(self, target: int, chunks) -> None:
        for p, x in zip(self.mask_slots[target], chunks):
            total = self.t(f"or {self._mask_type()} {self._mask_word(p)}, {self._mask_out(x)}")
            self.e(f"store {self._mask_type()} {total}, ptr {p}")

    def _any_waiting(self, slots: list[str]) -> str:
        total = None
        for p in slots:
            x = self._mask_word(p)
            total = x if total is None else self.t(f"or {self._mask_type()} {total}, {x}")
        return self._any_word(total)

    def _block_label(self, b: int) -> str:
        return "finished" if b == self.flow.exit else f"B{b}"

    def _poll(self) -> None:
        """Leave when the launch is to stop (fault elsewhere, time limit, Ctrl-C)."""
        stop = self.t("load atomic i32, ptr %stop.ptr monotonic, align 4")
        onward = self.new_label("go")
        self.e(f"br i1 {self.t(f'icmp ne i32 {stop}, 0')}, label %stopped, label %{onward}{', !prof !5'}")
        self.label(onward)

    # ---- blocks that run with all lanes
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

    # ---- groups
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

    # ---- suspension
    def _suspend(self, status: int, label: str) -> None:
        """Return to the scheduler; go on at `label` when the warp runs again."""
        state = len(self.resume_points) + 1
        self.resume_points.append((state, label))
        if not self.simple_barriers:
            self._record("site", self.site)
        self.e(f"ret i32 {status | state << 8}")

    def _record_pointer(self, field: str) -> str:
        at = self.t(f"mul i32 %w, {32}")
        offset = 64 + getattr(abi.WarpRecord, field).offset
        record = self.t(f"getelementptr i8, ptr %blk, i32 {at}")
        return self.t(f"getelementptr i8, ptr {record}, i64 {offset}")

    def _record(self, field: str, value: str | int) -> None:
        self.e(f"store i32 {value}, ptr {self._record_pointer(field)}")

    def _barrier_operands(self, op: Op) -> tuple[Value, Value | None, Value | None]:
        """(number, thread count or None, predicate or None) of a bar or barrier instruction."""
        operands = list(op.ins.operands)
        predicate = None
        if "red" in op.ins.modifiers:
            predicate = self.read(operands[-1], 1)
            operands = operands[1:-1]
        number = self.read(operands[0], 32) if operands else self.const(0, 32)
        count = self.read(operands[1], 32) if len(operands) > 1 else None
        for v in (number, count):
            if v is not None and not v.is_uniform:
                raise PtxError(f"{op.ins.name}: the barrier's number and count must be the same in all lanes of a warp",
                               file=self.file, line=op.ins.line)  # fmt: skip
        return number, count, predicate

    def _barrier_field(self, number: Value, field: str) -> str:
        index = self.uval(number)
        at = self.t(f"mul i32 {index}, 64")
        first = abi.block_layout(self.warps, 0, 0, 0)["barriers"]
        base = self.t(f"getelementptr i8, ptr %blk, i32 {at}")
        return self.t(f"getelementptr i8, ptr {base}, i64 {first + getattr(abi.Barrier, field).offset}")

    def _add_to(self, pointer: str, amount: str | int) -> None:
        before = self.t(f"load i32, ptr {pointer}")
        self.e(f"store i32 {self.t(f'add i32 {before}, {amount}')}, ptr {pointer}")

    def _check_barrier(self, number: Value) -> None:
        c = number.constant
        if c is not None and c < abi.BARRIER_COUNT:
            return
        bad = self.t(f"icmp uge i32 {self.uval(number)}, {abi.BARRIER_COUNT}")
        wrong, fine = self.new_label("badbar"), self.new_label("bar")
        self.e(f"br i1 {bad}, label %{wrong}, label %{fine}")
        self.label(wrong)
        self.fault(abi.FaultKind.BARRIER, self.mask_word())
        self.e("br label %stopped")
        self.label(fine)

    def _emit_arrival(self, op: Op) -> None:
        """bar.arrive: counts the warp and goes on. bar.warp.sync: lanes run in lockstep already."""
        if "warp" in op.ins.modifiers:
            return
        if "cluster" in op.ins.modifiers:
            self.arrive_at_cluster()
            return
        number, count, _ = self._barrier_operands(op)
        if self.dry:
            return
        self._check_barrier(number)
        self._add_to(self._barrier_field(number, "arrived"), WARP_LANES)
        if count is not None:
            self.e(f"store i32 {self.uval(count)}, ptr {self._barrier_field(number, 'expected')}")

    def _arrive(self, op: Op) -> None:
        """Fill in the warp's record and the barrier's counts before the warp suspends."""
        if self.simple_barriers:
            return
        if "cluster" in op.ins.modifiers:
            self.await_cluster()
            return
        number, count, predicate = self._barrier_operands(op)
        self._check_barrier(number)
        self._record("barrier", self.uval(number))
        self._record("expected", self.uval(count) if count is not None else 0)
        self._add_to(self._barrier_field(number, "arrived"), WARP_LANES)
        if predicate is not None:
            self.declare("declare i32 @llvm.ctpop.i32(i32)")
            true = self.uval(self.popc(self.ballot(predicate)))
            false = self.uval(self.popc(self.ballot(self.not_(predicate))))
            self._add_to(self._barrier_field(number, "sum_popc"), true)
            self._add_to(self._barrier_field(number, "sum_or"), true)
            self._add_to(self._barrier_field(number, "sum_and"), false)

    def _barrier_result(self, op: Op) -> None:
        """After the barrier: write the destination of bar.red."""
        if "red" not in op.ins.modifiers:
            return
        self.site, self.op = op.site, op
        number, _, _ = self._barrier_operands(op)
        kind = next(k for k in ("popc", "and", "or") if k in op.ins.modifiers)
        word = self.t(f"load i32, ptr {self._barrier_field(number, f'result_{kind}')}")
        if kind == "popc":
            self.write(op.ins.operands[0], self.scalar(word, 32))
        else:
            test = self.t(f"icmp {'eq' if kind == 'and' else 'ne'} i32 {word}, 0")
            self.write(op.ins.operands[0], self.scalar(test, 1))

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

    def _barrier_lanes(self) -> list[str]:
        if not hasattr(self, "_barrier_lane_slots"):
            self._barrier_lane_slots = self._mask_slot("%reduced", True)
        return self._barrier_lane_slots

    # ------------------------------------------------------------ the function
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
