"""An entry function with the functions it calls expanded in place, and the layout of its memory.

Calls that are direct and not recursive are expanded. A parameter of such a call that is only read and written at
fixed places is kept in registers (`param0@4`); any other one becomes local memory.

Recursive and indirect calls stay. The functions they reach are flattened by themselves; such a function finds its
return values and parameters at the start of its frame on the local stack (`call_layout`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from weft.errors import PtxError, UnsupportedError
from weft.isa.operands import (
    Address,
    CallTarget,
    Guard,
    Instruction,
    LabelRef,
    Negated,
    Pair,
    Register,
    Symbol,
    Vector,
)
from weft.ptx.module import Function, Label, Module, Param, Prototype, Variable
from weft.types import TYPES, ScalarType

# Functions that the runtime provides; their calls stay.
BUILTINS = {"vprintf", "__assertfail", "malloc", "free"}


@dataclass
class FlatFunction:
    """What codegen lowers. Offsets and sizes in bytes."""

    name: str
    body: list
    registers: dict[str, ScalarType]
    parameter_offsets: dict[str, int]
    parameter_registers: set[str]  # call parameters kept in registers named `<param>@<offset>`
    shared_offsets: dict[str, int]
    local_offsets: dict[str, int]
    static_shared_bytes: int
    local_bytes: int
    branch_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prototypes: dict[str, Prototype] = field(default_factory=dict)  # of the indirect calls that stay
    call_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # .calltargets label -> functions
    calls: bool = False  # some calls stay


def call_layout(returns, params) -> tuple[list[int], list[int], int]:
    """Offsets of return values and parameters in a callee's frame, and the bytes that they take."""
    at = 0
    places: list[int] = []
    for p in (*returns, *params):
        at = _align(at, max(4, p.align))
        places.append(at)
        at += _align(p.size, 4)
    return places[: len(returns)], places[len(returns) :], _align(at, 16)


def address_taken(module: Module) -> list[str]:
    """Functions whose address the module uses, in the module's order: an indirect call may reach them."""
    found: set[str] = set()
    for variable in module.variables.values():
        found.update(r.symbol for r in variable.relocations)
    for function in module.functions.values():
        for item in function.body:
            if not isinstance(item, Label):
                for operand in item.operands:
                    items = operand.items if isinstance(operand, Vector) else (operand,)
                    found.update(o.name for o in items if isinstance(o, Symbol))
    return [name for name, f in module.functions.items() if name in found and not f.is_entry and not f.is_declaration]


@dataclass
class _Names:
    """How one expansion of a function renames what it declares."""

    suffix: str
    symbols: dict[str, str]

    def register(self, name: str) -> str:
        return name + self.suffix

    def symbol(self, name: str) -> str:
        return self.symbols.get(name, name)


class _Flattener:
    def __init__(self, module: Module, function: Function):
        self.module, self.function = module, function
        self.body: list = []
        self.registers: dict[str, ScalarType] = {}
        self.locals: dict[str, Variable] = {}
        self.shared: dict[str, Variable] = {}
        self.call_params: dict[str, tuple[int, int]] = {}  # name -> (size, align)
        self.branch_targets: dict[str, tuple[str, ...]] = {}
        self.prototypes: dict[str, Prototype] = {}
        self.call_targets: dict[str, tuple[str, ...]] = {}
        self.calls = False
        self.count = 0

    def run(self) -> FlatFunction:
        function = self.function
        if not function.is_entry and any(p.in_register for p in (*function.params, *function.returns)):
            raise UnsupportedError(
                f"{function.name}: .reg parameters of a recursive function, or of one called by pointer, are not "
                "supported; declare them .param",
                file=self.module.file, line=function.line,
            )  # fmt: skip
        self._expand(function, _Names("", {}), {}, None, (function.name,))
        parameters = {p.name: p.offset for p in function.params} if function.is_entry else {}
        in_registers = self._classify_parameters()
        shared_offsets, shared_bytes = self._place_shared()
        local_offsets, local_bytes = self._place_local(in_registers)
        return FlatFunction(
            self.function.name, self.body, self.registers, parameters, in_registers, shared_offsets, local_offsets,
            shared_bytes, local_bytes, self.branch_targets, self.prototypes, self.call_targets,
            self.calls,
        )  # fmt: skip

    # ------------------------------------------------------------ expansion
    def _expand(self, function: Function, names: _Names, params: dict[str, str], end: str | None, stack) -> None:
        for name, type_ in function.registers.items():
            self.registers[names.register(name)] = type_
        for variable in function.variables.values():
            new = variable.name + names.suffix
            names.symbols[variable.name] = new
            if variable.space == "local":
                self.locals[new] = replace(variable, name=new)
            elif variable.space == "shared":
                # shared variables of a function exist once, however often it is expanded
                names.symbols[variable.name] = variable.name
                self.shared[variable.name] = variable
            elif variable.space == "param":
                self.call_params[new] = (variable.size, variable.align)
        names.symbols.update(params)
        for name, prototype in function.prototypes.items():
            self.prototypes[name] = prototype
        self.call_targets.update(function.call_targets)
        for label, targets in function.branch_targets.items():
            self.branch_targets[label + names.suffix] = tuple(t + names.suffix for t in targets)
        for item in function.body:
            if isinstance(item, Label):
                self.body.append(Label(item.name + names.suffix, item.line))
                continue
            self._expand_instruction(item, names, end, stack)

    def _expand_instruction(self, ins: Instruction, names: _Names, end: str | None, stack) -> None:
        if ins.opcode == "ret" and end is not None:
            guard = self._guard(ins, names)
            self.body.append(Instruction("bra", (), (LabelRef(end),), guard, ins.line, ins.location))
            return
        if ins.opcode == "call":
            target = next(o for o in ins.operands if isinstance(o, CallTarget))
            if isinstance(target.target, Symbol) and target.target.name not in BUILTINS:
                self._expand_call(ins, target, names, stack)
                return
            self.calls = self.calls or isinstance(target.target, Register)
        operands = tuple(self._operand(o, names, ins) for o in ins.operands)
        self.body.append(replace(ins, operands=operands, guard=self._guard(ins, names)))

    def _guard(self, ins: Instruction, names: _Names) -> Guard | None:
        guard = ins.guard
        return None if guard is None else Guard(names.register(guard.register), guard.negated)

    def _expand_call(self, ins: Instruction, target: CallTarget, names: _Names, stack) -> None:
        name = self.module.aliases.get(target.target.name, target.target.name)
        callee = self.module.functions.get(name)
        if callee is None or callee.is_declaration:
            raise PtxError(
                f"call of {name}: the function has no body in this module", file=self.module.file, line=ins.line
            )
        if name in stack:
            self.calls = True
            operands = tuple(self._operand(o, names, ins) for o in ins.operands)
            self.body.append(replace(ins, operands=operands, guard=self._guard(ins, names)))
            return
        self.count += 1
        inner = _Names(f"${name}${self.count}", {})
        end = f"end{inner.suffix}"
        skip = None
        if ins.guard is not None:
            skip = f"skip{inner.suffix}"
            guard = self._guard(ins, names)
            away = Guard(guard.register, not guard.negated)
            self.body.append(Instruction("bra", (), (LabelRef(skip),), away, ins.line, ins.location))
        params: dict[str, str] = {}
        moves_after = []
        for formal, actual in zip(callee.params, target.arguments, strict=True):
            self._bind(formal, actual, names, inner, params, ins, self.body)
        for formal, actual in zip(callee.returns, target.returns, strict=True):
            if formal.in_register:
                self.registers[inner.register(formal.name)] = formal.type
                moves_after.append(
                    self._move(formal, self._operand(actual, names, ins), Register(inner.register(formal.name)), ins)
                )
            else:
                params[formal.name] = names.symbol(getattr(actual, "name", ""))
        self._expand(callee, inner, params, end, (*stack, name))
        self.body.append(Label(end, ins.line))
        self.body += moves_after
        if skip is not None:
            self.body.append(Label(skip, ins.line))

    def _bind(self, formal: Param, actual, names: _Names, inner: _Names, params, ins: Instruction, body: list) -> None:
        if formal.in_register:
            register = inner.register(formal.name)
            self.registers[register] = formal.type
            body.append(self._move(formal, Register(register), self._operand(actual, names, ins), ins))
        elif isinstance(actual, Symbol):
            params[formal.name] = names.symbol(actual.name)
        else:
            # a register or constant passed to a .param: give the parameter a place of its own
            place = formal.name + inner.suffix
            self.call_params[place] = (formal.size, formal.align)
            params[formal.name] = place
            value = self._operand(actual, names, ins)
            type_ = f"b{formal.type.bits}"
            body.append(
                Instruction("st", ("param", type_), (Address(Symbol(place)), value), None, ins.line, ins.location)
            )

    @staticmethod
    def _move(formal: Param, destination, source, ins: Instruction) -> Instruction:
        name = "pred" if formal.type.bits == 1 else f"b{max(16, formal.type.bits)}"
        return Instruction("mov", (name,), (destination, source), None, ins.line, ins.location)

    def _operand(self, operand, names: _Names, ins: Instruction):
        if isinstance(operand, Register):
            return Register(names.register(operand.name)) if names.suffix else operand
        if isinstance(operand, Symbol):
            return Symbol(names.symbol(operand.name), operand.offset)
        if isinstance(operand, LabelRef):
            return LabelRef(operand.name + names.suffix)
        if isinstance(operand, Vector):
            return Vector(tuple(self._operand(item, names, ins) for item in operand.items))
        if isinstance(operand, Pair):
            return Pair(self._operand(operand.first, names, ins), self._operand(operand.second, names, ins))
        if isinstance(operand, Negated):
            return Negated(self._operand(operand.operand, names, ins))
        if isinstance(operand, Address):
            base = self._operand(operand.base, names, ins)
            coordinates = self._operand(operand.coordinates, names, ins) if operand.coordinates is not None else None
            return Address(base, operand.offset, coordinates)
        if isinstance(operand, CallTarget):
            return CallTarget(
                self._operand(operand.target, names, ins),
                tuple(self._operand(o, names, ins) for o in operand.returns),
                tuple(self._operand(o, names, ins) for o in operand.arguments),
                operand.prototype,
            )
        return operand

    # ------------------------------------------------------------ call parameters
    def _classify_parameters(self) -> set[str]:
        """Call parameters whose every access has a fixed place and whose places do not partly overlap."""
        places: dict[str, dict[int, int]] = {name: {} for name in self.call_params}
        bad: set[str] = set()

        def note(name: str, offset: int, size: int) -> None:
            known = places[name]
            if known.get(offset, size) != size:
                bad.add(name)
            known[offset] = size

        for ins in self.body:
            if isinstance(ins, Label):
                continue
            access = ins.opcode in ("ld", "st") and "param" in ins.modifiers
            for operand in ins.operands:
                if isinstance(operand, Address) and isinstance(operand.base, Symbol) and operand.base.name in places:
                    if not access:
                        bad.add(operand.base.name)
                        continue
                    type_ = TYPES[ins.modifiers[-1]]
                    data = ins.operands[0] if ins.opcode == "ld" else ins.operands[1]
                    count = len(data.items) if isinstance(data, Vector) else 1
                    at = operand.base.offset + operand.offset
                    for i in range(count):
                        note(operand.base.name, at + i * type_.bytes, type_.bytes)
                elif isinstance(operand, Symbol) and operand.name in places:
                    bad.add(operand.name)
        good = set()
        for name, known in places.items():
            spans = sorted(known.items())
            overlap = any(a + size > b for (a, size), (b, _) in zip(spans, spans[1:]))
            if name in bad or overlap:
                continue
            good.add(name)
            for offset, size in known.items():
                self.registers[f"{name}@{offset}"] = TYPES[f"b{size * 8}"]
        self._rewrite_parameters(good)
        return good

    def _rewrite_parameters(self, in_registers: set[str]) -> None:
        """Accesses to the remaining call parameters, and to a called function's own, become accesses to local
        memory."""
        function = self.function
        own = {p.name for p in function.params} if function.is_entry else set()
        framed = set() if function.is_entry else {p.name for p in (*function.params, *function.returns)}
        body = []
        for ins in self.body:
            if not isinstance(ins, Label) and ins.opcode in ("ld", "st") and "param" in ins.modifiers:
                address = next(o for o in ins.operands if isinstance(o, Address))
                name = address.base.name if isinstance(address.base, Symbol) else None
                moved = name in framed or (name in self.call_params and name not in in_registers and name not in own)
                if moved:
                    modifiers = tuple("local" if x == "param" else x for x in ins.modifiers if "::" not in x)
                    ins = replace(ins, modifiers=modifiers)
            body.append(ins)
        self.body = body

    # ------------------------------------------------------------ memory layout
    def _place_shared(self) -> tuple[dict[str, int], int]:
        """Static variables first, in order of declaration; `.extern .shared x[]` begins behind them."""
        used = self._used_symbols()
        variables = [
            v
            for v in (*self.module.variables.values(), *self.shared.values())
            if v.space == "shared" and v.name in used
        ]
        offsets: dict[str, int] = {}
        at = 0
        for v in variables:
            if not v.unsized:
                at = _align(at, v.align)
                offsets[v.name] = at
                at += v.size
        unsized = [v for v in variables if v.unsized]
        if unsized:
            at = _align(at, max(16, *(v.align for v in unsized)))
            for v in unsized:
                offsets[v.name] = at
        return offsets, at

    def _used_symbols(self) -> set[str]:
        found: set[str] = set()

        def note(operand) -> None:
            if isinstance(operand, Symbol):
                found.add(operand.name)
            elif isinstance(operand, Address):
                note(operand.base)
            elif isinstance(operand, Vector):
                for item in operand.items:
                    note(item)

        for ins in self.body:
            if not isinstance(ins, Label):
                for operand in ins.operands:
                    note(operand)
        return found

    def _place_local(self, in_registers: set[str]) -> tuple[dict[str, int], int]:
        offsets: dict[str, int] = {}
        at = 0
        function = self.function
        if not function.is_entry:
            returns, params, at = call_layout(function.returns, function.params)
            for p, place in zip((*function.returns, *function.params), (*returns, *params)):
                offsets[p.name] = place
        for v in self.locals.values():
            at = _align(at, v.align)
            offsets[v.name] = at
            at += v.size
        for name, (size, align) in self.call_params.items():
            if name not in in_registers:
                at = _align(at, align)
                offsets[name] = at
                at += size
        return offsets, _align(at, 16)


def _align(value: int, align: int) -> int:
    align = max(1, align)
    return (value + align - 1) // align * align


def flatten_function(module: Module, name: str) -> FlatFunction:
    """An entry function, or one that stays a function, ready for lowering. Raises PtxError for a call of a function
    without a body."""
    return _Flattener(module, module.functions[name]).run()
