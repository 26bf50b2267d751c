"""Decoding: an instruction and its table entry enter, what a thread runs for it leaves.

What it runs gives None, or a Wait where others must come first: at a barrier, or where lanes execute together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weft.errors import KernelFault, PtxError, TrapError
from weft.isa.instruction import Match
from weft.isa.operands import Discard, Immediate, Instruction, LabelRef, Pair, Register, Symbol, Vector
from weft.reference.addresses import FUNCTION_BASE
from weft.reference.code import U32, U64, WARP_LANES, Code, Step, Wait, extended, immediate_pattern
from weft.reference.hostcalls import HOST_CALLS, HOST_FUNCTIONS
from weft.reference.thread import Thread
from weft.types import TYPES, ScalarType

if TYPE_CHECKING:
    from weft.reference.interpreter import Interpreter


# ---------------------------------------------------------------- operands
def _getter(code: Code, operand, type: ScalarType) -> Callable[[Thread], int]:
    mask = type.mask
    if isinstance(operand, Register):
        i = code.index[operand.name]
        if code.types[operand.name].bits <= type.bits:
            return lambda t: t.frame.values[i]
        return lambda t: t.frame.values[i] & mask
    if isinstance(operand, Immediate):
        pattern = immediate_pattern(operand, type)
        return lambda t: pattern
    return lambda t: t.read(operand, type)


def _setter(code: Code, operand, type: ScalarType) -> Callable[[Thread, int], None]:
    if isinstance(operand, Discard):
        return lambda t, value: None
    if isinstance(operand, Vector):
        return lambda t, value: t.write(operand, type, value)
    register = code.types[operand.name]
    i = code.index[operand.name]
    if type.signed and register.bits > type.bits:

        def write_extended(t: Thread, value: int) -> None:
            t.frame.values[i] = extended(value, type, register)

        return write_extended
    mask = type.mask & register.mask

    def write(t: Thread, value: int) -> None:
        t.frame.values[i] = value & mask

    return write


def _decode_operands(code: Code, m: Match, ins: Instruction):
    """(getters of the sources, None where one is absent; setters of the destinations)."""
    getters: list[Callable | None] = []
    setters = []
    operands = list(ins.operands) + [None] * (len(m.entry.operands) - len(ins.operands))
    for spec, operand in zip(m.entry.operands, operands):
        if not spec.is_destination:
            if not spec.is_address:
                getters.append(None if operand is None else _getter(code, operand, m.operand_type(spec.name)))
        elif isinstance(operand, Pair):
            setters.append(_setter(code, operand.first, m.operand_type(spec.name)))
            setters.append(_setter(code, operand.second, m.operand_type(spec.pair)))
        else:
            setters.append(_setter(code, operand, m.operand_type(spec.name)))
            if spec.pair:
                setters.append(_setter(code, Discard(), TYPES["pred"]))
    return getters, setters


# ---------------------------------------------------------------- values and lanes
def decode_raw(m: Match, ins: Instruction) -> Callable[[Thread], Any]:
    reference = m.entry.reference

    def run(t: Thread) -> None:
        reference(t, m, ins)

    return run


def decode_warp(m: Match, ins: Instruction, slot: list[Step]) -> Callable[[Thread], Wait]:
    """A warp-wide instruction that reads and writes the lanes' operands itself: reference(threads, m, ins) sees a list
    of 32 threads, None for a lane that is not there."""
    reference = m.entry.reference

    def finish(group: list[Thread]) -> None:
        threads: list[Thread | None] = [None] * WARP_LANES
        for thread in group:
            threads[thread.lane] = thread
        reference(threads, m, ins)

    def run(t: Thread) -> Wait:
        return Wait("warp", slot[0], slot[0].index, None, (), finish)

    return run


def decode_value(code: Code, m: Match, ins: Instruction) -> Callable[[Thread], None]:
    reference = m.entry.reference
    getters, setters = _decode_operands(code, m, ins)
    carry_in = "carry_in" in m.entry.effects
    carry_out = "carry_out" in m.entry.effects
    # A form whose second destination was left out may compute it all the same: the rest is dropped.
    if len(setters) == 1 and not carry_in and not carry_out and None not in getters:
        write = setters[0]
        if len(getters) == 2:
            first, second = getters

            def run_binary(t: Thread) -> None:
                value = reference(m, first(t), second(t))
                write(t, value[0] if type(value) is tuple else value)

            return run_binary

        def run_simple(t: Thread) -> None:
            value = reference(m, *[get(t) for get in getters])
            write(t, value[0] if type(value) is tuple else value)

        return run_simple

    def run(t: Thread) -> None:
        sources = [None if get is None else get(t) for get in getters]
        if carry_in:
            sources.append(t.frame.carry)
        results = reference(m, *sources)
        if not isinstance(results, tuple):
            results = (results,)
        if carry_out:
            t.frame.carry = results[-1] & 1
            results = results[:-1]
        for write, value in zip(setters, results):
            write(t, value)

    return run


def decode_collective(code: Code, m: Match, ins: Instruction, slot: list[Step]) -> Callable[[Thread], Wait]:
    """Lanes meet here. Those that name the same instruction form and the same mask execute together; each writes to
    its own destination (they may come from different places)."""
    getters, setters = _decode_operands(code, m, ins)
    reference = m.entry.reference
    # .aligned forms have no member mask: all lanes of the warp take part
    synchronises = "sync" in ins.modifiers and "aligned" not in ins.modifiers

    def finish(group: list[Thread]) -> None:
        active = [False] * WARP_LANES
        columns: list[list[int] | None] = [None if get is None else [0] * WARP_LANES for get in getters]
        for thread in group:
            active[thread.lane] = True
            for column, value in zip(columns, thread.wait.sources[0]):
                if column is not None:
                    column[thread.lane] = value
        results = reference(m, active, *columns)
        if not isinstance(results, tuple):
            results = (results,)
        for thread in group:
            for write, row in zip(thread.wait.sources[1], results):
                write(thread, row[thread.lane])

    def run(t: Thread) -> Wait:
        values = [None if get is None else get(t) for get in getters]
        mask = values[-1] if synchronises else None
        key = (ins.opcode, ins.modifiers, mask) if synchronises else slot[0].index
        return Wait("warp", slot[0], key, mask, (values, setters), finish)

    return run


# ---------------------------------------------------------------- control flow and barriers
def decode_control(interpreter: Interpreter, code: Code, labels: dict[str, int], m: Match, ins: Instruction,
                    slot: list[Step]) -> Callable[[Thread], Wait | None]:  # fmt: skip
    opcode = ins.opcode
    if opcode == "bra":
        return _jump(_target(interpreter, labels, ins.operands[0], ins))
    if opcode == "brx":
        return _decode_switch(interpreter, code, labels, ins)
    if opcode == "call":
        return _decode_call(interpreter, code, ins)
    if opcode in ("bar", "barrier"):
        return _decode_barrier(code, m, ins, slot)
    runs = {"ret": Thread.leave, "exit": _exit, "trap": _trap}
    return runs[opcode]


def _target(interpreter: Interpreter, labels: dict[str, int], operand, ins: Instruction) -> int:
    name = operand.name if isinstance(operand, (LabelRef, Symbol)) else operand
    if name not in labels:
        raise PtxError(f"{ins.name}: no label {name!r} in this function", file=interpreter.module.file, line=ins.line)
    return labels[name]


def _jump(target: int) -> Callable[[Thread], None]:
    def run(t: Thread) -> None:
        t.frame.pc = target

    return run


def _exit(t: Thread) -> None:
    t.frames.clear()
    t.done = True
    t.frame = None


def _trap(t: Thread) -> None:
    raise t.fault(TrapError, "the kernel executed a trap")


def _decode_switch(interpreter: Interpreter, code: Code, labels: dict[str, int], ins: Instruction):
    index = _getter(code, ins.operands[0], U32)
    names = code.function.branch_targets[ins.operands[1].name]
    targets = [_target(interpreter, labels, name, ins) for name in names]

    def run(t: Thread) -> None:
        chosen = index(t)
        if chosen >= len(targets):
            raise t.fault(KernelFault, f"label number {chosen} of {len(targets)}")
        t.frame.pc = targets[chosen]

    return run


def _decode_call(interpreter: Interpreter, code: Code, ins: Instruction) -> Callable[[Thread], None]:
    target = ins.operands[0]
    if isinstance(target.target, Symbol):
        name = target.target.name
        if name in HOST_FUNCTIONS:
            return lambda t: HOST_CALLS[name](t, target)
        return lambda t: t.call(target, interpreter.code_of(name))
    names = list(interpreter.module.functions)

    def run(t: Thread) -> None:
        address = t.read(target.target, U64)
        index, rest = divmod(address - FUNCTION_BASE, 16)
        if rest or not 0 <= index < len(names):
            raise t.fault(KernelFault, f"call of {address:#x}, which is no function", address)
        t.call(target, interpreter.code_of(names[index]))

    return run


def _decode_barrier(code: Code, m: Match, ins: Instruction, slot: list[Step]) -> Callable[[Thread], Wait | None]:
    modifiers = ins.modifiers
    operands = list(ins.operands)
    if "warp" in modifiers:
        members = _getter(code, operands[0], U32)

        def run_warp(t: Thread) -> Wait:
            mask = members(t)
            return Wait("warp", slot[0], ("bar.warp.sync", mask), mask, (), lambda group: None)

        return run_warp
    write = predicate = None
    if "red" in modifiers:
        write = _setter(code, operands.pop(0), TYPES["u32" if "popc" in modifiers else "pred"])
        predicate = _getter(code, operands.pop(), TYPES["pred"])
    number = _getter(code, operands[0], U32) if operands else lambda t: 0
    count = _getter(code, operands[1], U32) if len(operands) > 1 else None
    arrives = "arrive" in modifiers
    if "cluster" in modifiers:
        return _arrive_at_cluster if arrives else lambda t: _await_cluster(t, slot[0])
    reduction = next((k for k in ("popc", "and", "or") if k in modifiers), "")

    def finish(group: list[Thread]) -> None:
        votes = [t.wait.sources[1] for t in group if t.wait.sources]
        results = {"popc": sum(votes), "and": int(all(votes)), "or": int(any(votes)), "": 0}
        for thread in group:
            if thread.wait.sources:
                kind, _, setter = thread.wait.sources
                setter(thread, results[kind])

    def run(t: Thread) -> Wait | None:
        at = number(t)
        expected = count(t) if count is not None else None
        t.block.arrive(t, at, expected)
        if arrives:
            return None
        sources = (reduction, predicate(t), write) if write is not None else ()
        return Wait("barrier", slot[0], at, None, sources, finish, expected)

    return run


def _arrive_at_cluster(t: Thread) -> None:
    cluster = t.block.cluster
    if t in cluster.arrived or t.cluster_phase is not None:
        raise t.fault(KernelFault, "the thread has arrived at the cluster's barrier already and not waited")
    cluster.arrived.add(t)
    t.cluster_phase = cluster.phase


def _await_cluster(t: Thread, step: Step) -> Wait:
    if t.cluster_phase is None:
        raise t.fault(KernelFault, "the thread waits at the cluster's barrier without having arrived")
    phase, t.cluster_phase = t.cluster_phase, None
    return Wait("cluster", step, phase)
