"""A launch: a Module, a kernel's name, the launch shape, parameters as bytes and a ReferenceMemory enter; the memory as
the kernel left it and a Run leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import weft.isa  # noqa: F401  (fills the instruction table)
from weft.errors import InvalidValueError, LaunchTimeoutError, NoSuchKernelError, PtxError
from weft.isa.instruction import match
from weft.isa.operands import Instruction
from weft.ptx.module import Function, Label, Module
from weft.reference.addresses import function_address, place_shared
from weft.reference.block import Block, Cluster
from weft.reference.code import Code, Step
from weft.reference.decode import decode_collective, decode_control, decode_raw, decode_value, decode_warp
from weft.reference.memory import ReferenceMemory
from weft.types import Dim3, as_dim3

ROUNDS = 40  # turns that a block gets before the next block runs too


@dataclass
class Run:
    """What a launch did. An instruction counts when its guard holds (or it has none); a call counts once, as `call`.

    by_opcode and by_line count thread-instructions, by_thread the same per thread, keyed by (linear block index,
    linear thread index). printed is what printf wrote, thread by thread in the order it happened.
    """

    by_opcode: Counter[str] = field(default_factory=Counter)
    by_line: Counter[int] = field(default_factory=Counter)
    by_thread: dict[tuple[int, int], int] = field(default_factory=dict)
    printed: str = ""

    @property
    def total(self) -> int:
        return sum(self.by_opcode.values())


class Interpreter:
    """One launch."""

    def __init__(self, module: Module, name: str, grid: Dim3, block: Dim3, memory: ReferenceMemory,
                 dynamic_shared: int, step_limit: int, cluster: Dim3 | None):  # fmt: skip
        function = module.kernels.get(name)
        if function is None:
            raise NoSuchKernelError(f"no kernel {name!r}; there are {', '.join(module.kernels) or 'none'}")
        self.module, self.name, self.grid, self.block, self.memory = module, name, grid, block, memory
        self.dynamic_shared, self.step_limit = dynamic_shared, step_limit
        declared = function.directives.get("reqnctapercluster")
        if cluster is None and declared:
            cluster = as_dim3(declared)
        self.explicit_cluster = cluster is not None
        self.cluster = cluster or Dim3()
        if any(n % c for n, c in zip(grid, self.cluster)):
            raise InvalidValueError(f"a grid of {tuple(grid)} is not made of clusters of {tuple(self.cluster)}")
        self.clusters = Dim3(*(n // c for n, c in zip(grid, self.cluster)))
        self.moves = 0
        self.globals = memory.symbols(module)
        self.spent = 0
        self.executed: list[int] = []
        self.sites: list[Instruction] = []
        self.codes: dict[str, Code] = {}
        self.printed: list[str] = []
        self.entry_parameters: dict[str, int] = {}
        self.shared_offsets, self.shared_bytes = place_shared(module, dynamic_shared)
        self.entry = self.decode(function)

    def spend(self, steps: int) -> None:
        self.spent += steps
        if self.spent > self.step_limit:
            raise LaunchTimeoutError(f"more than {self.step_limit} instructions", kernel=self.name)

    def symbol(self, function: Function, name: str) -> int:
        if function.is_entry and name in self.entry_parameters:
            return self.entry_parameters[name]
        for key in (f"{function.name} {name}", name):
            if key in self.shared_offsets:
                return self.shared_offsets[key]
        if name in self.globals:
            return self.globals[name]
        name = self.module.aliases.get(name, name)
        if name in self.module.functions:
            return function_address(self.module, name)
        raise PtxError(f"symbol {name!r} is not defined", file=self.module.file)

    def code_of(self, name: str) -> Code:
        """The decoded function of a name."""
        name = self.module.aliases.get(name, name)
        found = self.codes.get(name)
        if found is None:
            function = self.module.functions.get(name)
            if function is None or function.is_declaration:
                raise PtxError(f"call of {name}: the function has no body in this module", file=self.module.file)
            found = self.decode(function)
        return found

    def decode(self, function: Function) -> Code:
        index = {name: i for i, name in enumerate(function.registers)}
        types = dict(function.registers)
        for param in (*function.params, *function.returns):
            if param.in_register and param.name not in index:
                index[param.name] = len(index)
                types[param.name] = param.type
        places: dict[str, tuple[int, int]] = {}
        at = 0
        framed: list[Any] = [v for v in function.variables.values() if v.space in ("local", "param")]
        if not function.is_entry:
            framed += [p for p in (*function.params, *function.returns) if not p.in_register]
        for variable in framed:
            align = max(8, variable.align)
            at = -(-at // align) * align
            places[variable.name] = (at, variable.size)
            at += variable.size
        code = Code(function, [], index, types, places, at)
        self.codes[function.name] = code
        labels: dict[str, int] = {}
        body: list[Instruction] = []
        for item in function.body:
            if isinstance(item, Label):
                labels[item.name] = len(body)
            else:
                body.append(item)
        for ins in body:
            code.steps.append(self._decode_instruction(code, labels, ins))
        return code

    def _decode_instruction(self, code: Code, labels: dict[str, int], ins: Instruction) -> Step:
        m = match(ins, self.module.file)
        guard, negated = -1, False
        if ins.guard is not None:
            guard, negated = code.index[ins.guard.register], ins.guard.negated
        site = len(self.executed)
        self.executed.append(0)
        self.sites.append(ins)
        slot: list[Step] = []
        if m.entry.effects & {"control", "barrier"} and not m.entry.raw:
            run = decode_control(self, code, labels, m, ins, slot)
        elif m.entry.raw and m.entry.collective:
            run = decode_warp(m, ins, slot)
        elif m.entry.raw:
            run = decode_raw(m, ins)
        elif m.entry.collective:
            run = decode_collective(code, m, ins, slot)
        else:
            run = decode_value(code, m, ins)
        step = Step(run, guard, negated, site, ins)
        slot.append(step)
        return step

    def run(self) -> Run:
        """All blocks, in order; a block that does not finish in its turns lets the next one start."""
        result = Run()
        resident: list[Block] = []
        following = 0
        total = self.clusters.count
        while following < total or resident:
            before = self.moves
            if following < total:
                resident += Cluster(self, following).blocks
                following += 1
                before = -1
            remaining = []
            for block in resident:
                if block.run(ROUNDS):
                    for thread in block.threads:
                        result.by_thread[block.linear, thread.index] = thread.count
                else:
                    remaining.append(block)
            if self.moves == before and remaining:
                raise remaining[0].deadlock()
            resident = remaining
        for ins, count in zip(self.sites, self.executed):
            if count:
                result.by_opcode[ins.opcode] += count
                result.by_line[ins.line] += count
        result.printed = "".join(self.printed)
        return result


# ---------------------------------------------------------------- the entry point
def run_kernel(
    module: Module,
    name: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    params: Sequence[bytes] | bytes,
    memory: ReferenceMemory,
    dynamic_shared: int = 0,
    step_limit: int = 50_000_000,
    cluster: int | Sequence[int] | None = None,
) -> Run:
    """Run one launch to its end.

    params: the parameter buffer, or one bytes per parameter. dynamic_shared: bytes. cluster: the shape of a cluster in
    blocks (default: what the kernel declares, else none). step_limit: instructions of all
    threads together. Raises what the kernel's faults are (weft.errors.KernelFault and its kinds), DeadlockError when
    the threads of a block wait for each other, LaunchTimeoutError past the limit, PtxError for a form that the table
    does not have.
    """
    shape = None if cluster is None else as_dim3(cluster)
    interpreter = Interpreter(module, name, as_dim3(grid), as_dim3(block), memory, dynamic_shared, step_limit, shape)
    function = module.kernels[name]
    buffer = bytearray(max(function.param_bytes, 1))
    if isinstance(params, (bytes, bytearray)):
        if len(params) > len(buffer):
            raise InvalidValueError(f"{name} takes {function.param_bytes} bytes of parameters, found {len(params)}")
        buffer[: len(params)] = params
    else:
        if len(params) != len(function.params):
            raise InvalidValueError(f"{name} takes {len(function.params)} parameters, found {len(params)}")
        for param, data in zip(function.params, params):
            if len(data) != param.size:
                raise InvalidValueError(f"{name}: parameter {param.name} has {param.size} bytes, found {len(data)}")
            buffer[param.offset : param.offset + param.size] = data
    base = memory.allocate(len(buffer))
    memory.write(base, bytes(buffer))
    interpreter.entry_parameters = {p.name: base + p.offset for p in function.params}
    try:
        return interpreter.run()
    finally:
        memory.free(base)
