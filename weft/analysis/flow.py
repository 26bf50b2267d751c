"""Function body -> control-flow graph: blocks in an order in which loops are contiguous, reconvergence points, loops,
liveness. Registers are numbered; sets of registers are Python ints used as bit sets.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from weft.errors import PtxError
from weft.isa.instruction import Match, match
from weft.isa.operands import (
    Address,
    CallTarget,
    Guard,
    Instruction,
    LabelRef,
    Negated,
    Pair,
    Register,
    Vector,
)
from weft.ptx.module import Label
from weft.types import TYPES

CARRY = "%cc.cf"  # the carry flag, kept as one more register
STACK = "%local.top"  # end of the local memory in use, which alloca moves; likewise
# Opcodes that end a block and take part in control flow; a guard on one of them becomes a branch.
_CONTROL = {"bra", "brx", "ret", "exit", "bar", "barrier", "call", "trap", "brkpt"}


@dataclass(eq=False)
class Op:
    """One instruction of the graph. `site` numbers instructions in program order."""

    ins: Instruction
    match: Match
    site: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def opcode(self) -> str:
        return self.ins.opcode


@dataclass(eq=False)
class Block:
    """A basic block. `kind` says how it ends: jump, branch, switch, exit, trap, suspend (a barrier)."""

    index: int
    ops: list[Op] = field(default_factory=list)
    kind: str = "jump"
    successors: list[int] = field(default_factory=list)
    terminator: Op | None = None


@dataclass(eq=False)
class Loop:
    header: int
    blocks: frozenset[int]


@dataclass(eq=False)
class Flow:
    """The graph. `exit` is the index of the virtual exit block. `order` is a topological order of the graph without
    its back edges, in which the blocks of a loop follow one another."""

    blocks: list[Block]
    exit: int
    order: list[int]
    position: list[int]
    loops: list[Loop]
    reconvergence: list[int]
    predecessors: list[list[int]]
    registers: dict[str, int]  # name -> bit
    live_in: list[int]
    live_out: list[int]
    to_barrier: set[int]  # blocks from which some barrier can be reached

    def reachable(self, start: list[int], stop: int) -> set[int]:
        """Blocks reachable from `start` without entering `stop` or the exit."""
        seen: set[int] = set()
        stack = [b for b in start if b not in (stop, self.exit)]
        while stack:
            b = stack.pop()
            if b in seen:
                continue
            seen.add(b)
            stack += [s for s in self.blocks[b].successors if s not in (stop, self.exit) and s not in seen]
        return seen

    def is_back_edge(self, source: int, target: int) -> bool:
        return target != self.exit and self.position[target] <= self.position[source]


def registers_of(operand) -> list[str]:
    """Names of all registers that an operand mentions."""
    if isinstance(operand, Register):
        return [operand.name]
    if isinstance(operand, (Vector,)):
        return [name for item in operand.items for name in registers_of(item)]
    if isinstance(operand, Pair):
        return registers_of(operand.first) + registers_of(operand.second)
    if isinstance(operand, Negated):
        return registers_of(operand.operand)
    if isinstance(operand, Address):
        names = registers_of(operand.base)
        return names + registers_of(operand.coordinates) if operand.coordinates is not None else names
    return []


def make_op(ins: Instruction, site: int, file: str) -> Op:
    """Match an instruction and find what it reads and writes."""
    m = match(ins, file)
    reads: list[str] = []
    writes: list[str] = []
    for spec, operand in zip(m.entry.operands, ins.operands):
        if isinstance(operand, CallTarget):
            continue
        (writes if spec.is_destination else reads).extend(registers_of(operand))
    for operand in ins.operands:
        if isinstance(operand, CallTarget):
            for item in operand.returns:
                writes += registers_of(item)
            for item in (*operand.arguments, operand.target):
                reads += registers_of(item)
    if "stack" in m.entry.effects:
        reads.append(STACK)
        writes.append(STACK)
    if "accumulates" in m.entry.effects:
        reads += writes
    if "carry_in" in m.entry.effects:
        reads.append(CARRY)
    if "carry_out" in m.entry.effects:
        writes.append(CARRY)
    if ins.guard is not None:
        reads.append(ins.guard.register)
        if ins.opcode != "bra":
            reads += writes
    return Op(ins, m, site, tuple(reads), tuple(writes))


def build_flow(
    body: list,
    file: str,
    branch_targets: dict[str, tuple[str, ...]],
    first_site: int = 0,
    registers: Collection[str] = (),
) -> Flow:
    """The graph of a flattened function; its instructions' sites count from `first_site`. `registers` are its
    registers' names: those of call parameters kept in registers (`param0@4`) are found among them. Raises PtxError for
    a branch to a label that does not exist."""
    blocks, labels = _split(body, file, first_site)
    _note_parameters(blocks, registers)
    _connect(blocks, labels, branch_targets, file)
    blocks = _drop_unreachable(blocks)
    exit_index = len(blocks)
    predecessors: list[list[int]] = [[] for _ in range(exit_index + 1)]
    for block in blocks:
        for s in block.successors:
            predecessors[s].append(block.index)
    to_barrier = _reaching_suspension(blocks, predecessors)
    order, loops = _layout(blocks, to_barrier)
    position = [0] * (exit_index + 1)
    for i, b in enumerate(order):
        position[b] = i
    position[exit_index] = exit_index
    numbers: dict[str, int] = {}
    for block in blocks:
        for op in _all_ops(block):
            for name in (*op.reads, *op.writes):
                numbers.setdefault(name, len(numbers))
    live_in, live_out = _liveness(blocks, order, numbers)
    reconvergence = _post_dominators(blocks, exit_index, predecessors, position)
    return Flow(
        blocks, exit_index, order, position, loops, reconvergence, predecessors, numbers, live_in, live_out, to_barrier
    )


def _all_ops(block: Block) -> list[Op]:
    return block.ops if block.terminator is None else [*block.ops, block.terminator]


def _split(body: list, file: str, first_site: int) -> tuple[list[Block], dict[str, int]]:
    blocks = [Block(0)]
    labels: dict[str, int] = {}

    def start() -> None:
        if blocks[-1].ops or blocks[-1].terminator is not None or len(blocks) == 1:
            blocks.append(Block(len(blocks)))

    spins = _may_spin(body, file)
    for site, item in enumerate(body, first_site):
        if spins and not isinstance(item, Label) and item.opcode in _MEETING:
            start()  # what comes before may have to run while other lanes spin
        if isinstance(item, Label):
            start()
            labels[item.name] = len(blocks) - 1
            continue
        ins = item
        if ins.guard is not None and ins.opcode in _CONTROL and ins.opcode != "bra":
            # `@p bar` is `@!p bra over; bar; over:`
            over = f"{site}$over"
            guard = Guard(ins.guard.register, not ins.guard.negated)
            skip = Instruction("bra", (), (LabelRef(over),), guard, ins.line, ins.location)
            blocks[-1].terminator = make_op(skip, site, file)
            blocks[-1].kind = "branch"
            blocks.append(Block(len(blocks)))
            _append(blocks, make_op(replace(ins, guard=None), site, file))
            start()
            labels[over] = len(blocks) - 1
            continue
        _append(blocks, make_op(ins, site, file))
    return blocks, labels


# Opcodes at which the lanes of a warp, or the warps of a block, come together.
_MEETING = {"bar", "barrier", "shfl", "vote", "match", "redux", "elect", "activemask"}


def _may_spin(body: list, file: str) -> bool:
    return any(not isinstance(item, Label) and "spin" in match(item, file).entry.effects for item in body)


_KINDS = {"brx": "switch", "ret": "exit", "exit": "exit", "trap": "trap", "bar": "suspend", "barrier": "suspend"}


def _append(blocks: list[Block], op: Op) -> None:
    opcode = op.opcode
    if opcode == "bra":
        kind = "branch" if op.ins.guard is not None else "jump"
    elif opcode in ("bar", "barrier"):
        modifiers = op.ins.modifiers
        kind = "" if "arrive" in modifiers or "warp" in modifiers else "suspend"  # barrier.cluster.wait too
    elif opcode == "call":
        kind = ""
    else:
        kind = _KINDS.get(opcode, "")
    if not kind:
        blocks[-1].ops.append(op)
        return
    blocks[-1].terminator = op
    blocks[-1].kind = kind
    blocks.append(Block(len(blocks)))


def _connect(blocks: list[Block], labels: dict[str, int], branch_targets, file: str) -> None:
    def target(name: str, op: Op) -> int:
        if name not in labels:
            raise PtxError(f"{op.ins.name}: no label {name!r} in this function", file=file, line=op.ins.line)
        return labels[name]

    count = len(blocks)
    for block in blocks:
        after = block.index + 1
        op = block.terminator
        if block.kind in ("exit",):
            block.successors = [count]
        elif block.kind == "trap":
            block.successors = []
        elif block.kind == "switch":
            index_operand = op.ins.operands[1]
            name = getattr(index_operand, "name", "")
            if name not in branch_targets:
                raise PtxError(f"{op.ins.name}: no .branchtargets {name!r}", file=file, line=op.ins.line)
            block.successors = [target(label, op) for label in branch_targets[name]]
        elif op is not None and op.opcode == "bra":
            there = target(op.ins.operands[0].name, op)
            if block.kind == "branch":
                block.successors = [there, after] if there != after else [after]
                if there == after:
                    block.kind = "jump"
            else:
                block.successors = [there]
        else:
            block.successors = [after if after < count else count]
        block.successors = [min(s, count) for s in block.successors]


def _drop_unreachable(blocks: list[Block]) -> list[Block]:
    count = len(blocks)
    seen = {0}
    stack = [0]
    while stack:
        for s in blocks[stack.pop()].successors:
            if s < count and s not in seen:
                seen.add(s)
                stack.append(s)
    keep = sorted(seen)
    number = {old: new for new, old in enumerate(keep)}
    number[count] = len(keep)
    result = []
    for old in keep:
        block = blocks[old]
        block.index = number[old]
        block.successors = [number[s] for s in block.successors]
        result.append(block)
    return result


# ---------------------------------------------------------------- call parameters
def _note_parameters(blocks: list[Block], registers: Collection[str]) -> None:
    """Add the call parameters that are kept in registers to what their accesses, and calls, read and write."""
    slots: dict[str, list[str]] = {}
    for register in registers:
        name, at, _ = register.rpartition("@")
        if at:
            slots.setdefault(name, []).append(register)
    if not slots:
        return
    for block in blocks:
        for op in _all_ops(block):
            reads, writes = _parameter_slots(op.ins, slots)
            if op.ins.guard is not None:
                reads += writes
            op.reads, op.writes = (*op.reads, *reads), (*op.writes, *writes)


def _parameter_slots(ins: Instruction, slots: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """(read, written) parameter registers of an instruction."""
    reads: list[str] = []
    writes: list[str] = []
    if ins.opcode in ("ld", "st") and "param" in ins.modifiers:
        address = ins.operands[1 if ins.opcode == "ld" else 0]
        name = getattr(address.base, "name", "")
        if name in slots:
            data = ins.operands[0 if ins.opcode == "ld" else 1]
            size = TYPES[ins.modifiers[-1]].bytes
            first = address.base.offset + address.offset
            count = len(data.items) if isinstance(data, Vector) else 1
            (reads if ins.opcode == "ld" else writes).extend(f"{name}@{first + i * size}" for i in range(count))
    for operand in ins.operands:
        if isinstance(operand, CallTarget):
            for item in operand.arguments:
                reads += slots.get(getattr(item, "name", ""), ())
            for item in operand.returns:
                writes += slots.get(getattr(item, "name", ""), ())
    return reads, writes


# ---------------------------------------------------------------- order and loops
def _components(nodes: list[int], edges: dict[int, list[int]]) -> list[list[int]]:
    """Strongly connected components (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    found: list[list[int]] = []
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, successors = work[-1]
            for s in successors:
                if s not in index:
                    index[s] = low[s] = len(index)
                    stack.append(s)
                    on_stack.add(s)
                    work.append((s, iter(edges[s])))
                    break
                if s in on_stack:
                    low[node] = min(low[node], index[s])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        x = stack.pop()
                        on_stack.discard(x)
                        component.append(x)
                        if x == node:
                            break
                    found.append(component)
    return found


def _reaching_suspension(blocks: list[Block], predecessors: list[list[int]]) -> set[int]:
    """Blocks from which some barrier can be reached."""
    seen = {b.index for b in blocks if b.kind == "suspend"}
    stack = list(seen)
    while stack:
        for p in predecessors[stack.pop()]:
            if p not in seen:
                seen.add(p)
                stack.append(p)
    return seen


def _layout(blocks: list[Block], to_barrier: set[int]) -> tuple[list[int], list[Loop]]:
    """Where several blocks could come next, those that lead to no barrier come first, so that lanes that leave the
    kernel have left when the others reach the barrier; then program order."""
    loops: list[Loop] = []

    def rank(component: list[int]) -> tuple[bool, int]:
        return any(n in to_barrier for n in component), min(component)

    def arrange(nodes: list[int], entry: int, cut: frozenset[int]) -> list[int]:
        # `cut` is the header of the loop being arranged: edges back to it do not order its blocks
        inside = set(nodes)
        edges = {n: [s for s in blocks[n].successors if s in inside and s not in cut] for n in nodes}
        components = _components(sorted(nodes), edges)
        number = {n: i for i, c in enumerate(components) for n in c}
        waiting = [0] * len(components)
        for n in nodes:
            for s in edges[n]:
                if number[s] != number[n]:
                    waiting[number[s]] += 1
        ready = [(rank(c), i) for i, c in enumerate(components) if waiting[i] == 0]
        heapq.heapify(ready)
        result: list[int] = []
        while ready:
            _, i = heapq.heappop(ready)
            component = components[i]
            if len(component) == 1 and component[0] not in edges[component[0]]:
                result.append(component[0])
            else:
                result += arrange_loop(component, entry, edges)
            for n in component:
                for s in edges[n]:
                    j = number[s]
                    if j != i:
                        waiting[j] -= 1
                        if waiting[j] == 0:
                            heapq.heappush(ready, (rank(components[j]), j))
        return result

    def arrange_loop(component: list[int], entry: int, edges: dict[int, list[int]]) -> list[int]:
        inside = set(component)
        if entry in inside:
            header = entry
        else:
            entered = {s for n, targets in edges.items() if n not in inside for s in targets if s in inside}
            header = min(entered) if entered else min(component)
        loops.append(Loop(header, frozenset(component)))
        if len(component) == 1:
            return [header]
        return arrange(component, header, frozenset([header]))

    order = arrange([b.index for b in blocks], 0, frozenset())
    assert len(order) == len(blocks), "the layout lost blocks"
    return order, loops


def _post_dominators(blocks: list[Block], exit_index: int, predecessors, position) -> list[int]:
    """Immediate post-dominator of every block (Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm").
    Blocks from which the exit cannot be reached (traps, endless loops) do not count; they reconverge at the exit."""
    seen = {exit_index}
    postorder: list[int] = []
    work = [(exit_index, iter(predecessors[exit_index]))]
    while work:
        node, rest = work[-1]
        for p in rest:
            if p not in seen:
                seen.add(p)
                work.append((p, iter(predecessors[p])))
                break
        else:
            work.pop()
            postorder.append(node)
    rank = {b: i for i, b in enumerate(postorder)}
    immediate: dict[int, int] = {exit_index: exit_index}

    def meet(a: int, b: int) -> int:
        while a != b:
            while rank[a] < rank[b]:
                a = immediate[a]
            while rank[b] < rank[a]:
                b = immediate[b]
        return a

    changed = True
    while changed:
        changed = False
        for b in reversed(postorder):
            if b == exit_index:
                continue
            best = None
            for s in blocks[b].successors:
                if s in immediate:
                    best = s if best is None else meet(best, s)
            if best is not None and immediate.get(b) != best:
                immediate[b] = best
                changed = True
    return [immediate.get(b.index, exit_index) for b in blocks] + [exit_index]


# ---------------------------------------------------------------- liveness
def _liveness(blocks: list[Block], order: list[int], registers: dict[str, int]) -> tuple[list[int], list[int]]:
    count = len(blocks)
    used, defined = [0] * count, [0] * count
    for block in blocks:
        use = define = 0
        for op in _all_ops(block):
            for name in op.reads:
                bit = 1 << registers[name]
                if not define & bit:
                    use |= bit
            if op.ins.guard is None:
                for name in op.writes:
                    define |= 1 << registers[name]
        used[block.index], defined[block.index] = use, define
    live_in, live_out = [0] * (count + 1), [0] * (count + 1)
    changed = True
    while changed:
        changed = False
        for b in reversed(order):
            out = 0
            for s in blocks[b].successors:
                out |= live_in[s]
            into = used[b] | (out & ~defined[b])
            if into != live_in[b] or out != live_out[b]:
                live_in[b], live_out[b] = into, out
                changed = True
    return live_in, live_out
