"""Legality beyond the grammar. Enters: a Module. Leaves: nothing, or the first mistake as an exception.

Each instruction is held against the instruction table, and its registers, constants, variables and calls against the
types that the table gives, as ptxas does. Sources: PTX manual, "Operand Type Checking" and "Operand Size Exceeding
Instruction-Type Size", and the verdicts of ptxas where the manual leaves it open.
"""

from __future__ import annotations

from typing import NoReturn

from weft.errors import PtxError
from weft.isa.instruction import Match, match
from weft.isa.operands import (
    Address,
    CallTarget,
    Discard,
    Immediate,
    Instruction,
    Negated,
    Operand,
    Pair,
    Register,
    Symbol,
    Vector,
)
from weft.ptx.module import Function, Module, Param, Prototype
from weft.types import TYPES, ScalarType

# Registers may be wider than the type of these instructions.
WIDENING = ("ld", "ldu", "st", "cvt")
# Entries with raw operands whose operand types the table states exactly.
_CHECKED_RAW = ("ld", "ldu", "st", "mov", "atom", "red", "mapa", "getctarank")
_SPACES = ("global", "shared", "local", "const", "param")
_SINGLE_SPACE = ("ld", "ldu", "st", "atom", "red")


def check_module(module: Module) -> None:
    """Check every function of a module.

    Raises PtxError for a form that no instruction has, for types and state spaces that do not fit and for calls
    that do not agree with the function called; UnsupportedError for legal forms that Weft does not run.
    """
    for function in module.functions.values():
        if not function.is_declaration:
            _Checker(module, function).check()


def fits(register: ScalarType, wanted: ScalarType, widening: bool = False) -> bool:
    """Whether a register of one type may stand where an instruction wants another.

    Untyped registers agree with every type of their size, signed with unsigned integers, floats only with the same
    float type; with `widening` an integer or untyped register may also be wider.
    """
    if register.kind == "pred" or wanted.kind == "pred":
        return register.kind == wanted.kind
    if register.kind == "f":
        return register.name == wanted.name or (wanted.kind == "b" and register.bits == wanted.bits)
    if wanted.kind == "f" and register.kind != "b":
        return False
    return register.bits == wanted.bits or (widening and register.bits > wanted.bits)


class _Checker:
    """Checks one function."""

    def __init__(self, module: Module, function: Function):
        self.module, self.function = module, function
        self.params = {param.name: param for param in (*function.returns, *function.params)}
        self.line = 0

    def check(self) -> None:
        for statement in self.function.body:
            if isinstance(statement, Instruction):
                self.line = statement.line
                self._instruction(statement)

    def _illegal(self, message: str, *, found: str = "", expected: str = "") -> NoReturn:
        raise PtxError(message, file=self.module.file, line=self.line, found=found, expected=expected)

    def _instruction(self, ins: Instruction) -> None:
        m = match(ins, self.module.file)
        if ins.operands and isinstance(ins.operands[0], CallTarget):
            self._call(ins, ins.operands[0])
            return
        own = getattr(m.entry.definition, "check", None)
        wrong = own(m, ins) if own is not None else ""
        if wrong:
            self._illegal(f"{ins.name}: {wrong}")
        checked = not m.entry.raw or ins.opcode in _CHECKED_RAW
        for spec, operand in zip(m.entry.operands, ins.operands):
            if isinstance(operand, Address):
                self._address(ins, operand)
            elif checked and isinstance(operand, Pair):
                self._operand(ins, operand.first, self._type(m, spec.name))
                self._operand(ins, operand.second, self._type(m, spec.pair))
            elif checked:
                self._operand(ins, operand, self._type(m, spec.name))

    def _type(self, m: Match, name: str) -> ScalarType | None:
        """The type of an operand; None where the table gives none (raw entries)."""
        try:
            return m.operand_type(name)
        except (AssertionError, KeyError):
            return None

    # ------------------------------------------------------------ operands
    def _operand(self, ins: Instruction, operand: Operand, wanted: ScalarType | None) -> None:
        if wanted is None or isinstance(operand, Discard):
            return
        if isinstance(operand, Negated):
            if wanted.kind != "pred":
                self._illegal(f"{ins.name}: !{operand.operand.name}", expected=f"a value of type .{wanted}")
            operand = operand.operand
        if isinstance(operand, Register):
            kind = self.function.registers[operand.name]
            if not fits(kind, wanted, ins.opcode in WIDENING):
                self._illegal(f"{ins.name}: register {operand.name}", found=f".{kind}", expected=f".{wanted}")
        elif isinstance(operand, Immediate):
            self._immediate(ins, operand, wanted)
        elif isinstance(operand, Vector):
            self._vector(ins, operand, wanted)

    def _immediate(self, ins: Instruction, operand: Immediate, wanted: ScalarType) -> None:
        if operand.kind == "int":
            if wanted.kind == "f":
                self._illegal(f"{ins.name}: constant", found=f"integer {operand.value}", expected=f".{wanted}")
        elif wanted.kind not in ("f", "b") or (wanted.kind == "b" and operand.kind == "float"):
            self._illegal(f"{ins.name}: constant", found="a float", expected=f".{wanted}")

    def _vector(self, ins: Instruction, operand: Vector, wanted: ScalarType) -> None:
        if ins.opcode == "mov" and not any(part in ins.modifiers for part in ("v2", "v4")):
            # `mov.b64 d, {a, b}` cuts the type in parts.
            wanted_name = f"b{wanted.bits // len(operand.items)}"
            if wanted.bits % len(operand.items) or wanted_name not in TYPES:
                self._illegal(f"{ins.name}: a vector of {len(operand.items)} has no part of .{wanted}")
            wanted = TYPES[wanted_name]
        elif ins.opcode not in WIDENING:
            return
        for item in operand.items:
            self._operand(ins, item, wanted)

    def _address(self, ins: Instruction, operand: Address) -> None:
        base = operand.base
        if isinstance(base, Register):
            kind = self.function.registers[base.name]
            if kind.kind not in ("b", "u", "s") or kind.bits not in (32, 64):
                found = f"{base.name} of type .{kind}"
                self._illegal(f"{ins.name}: address", found=found, expected="an integer register of 32 or 64 bits")
        elif isinstance(base, Symbol) and ins.opcode in _SINGLE_SPACE:
            named = [part.partition("::")[0] for part in ins.modifiers]
            spaces = [space for space in named if space in _SPACES]
            space = self._space(base.name)
            if spaces and space and spaces[0] != space:
                self._illegal(f"{ins.name}: {base.name}", found=f".{space}", expected=f".{spaces[0]}")

    def _space(self, name: str) -> str:
        if name in self.params:
            return "param"
        variable = self.function.variables.get(name) or self.module.variables.get(name)
        return variable.space if variable else ""

    # ------------------------------------------------------------ calls
    def _call(self, ins: Instruction, call: CallTarget) -> None:
        if isinstance(call.target, Register):
            kind = self.function.registers[call.target.name]
            if kind.kind not in ("b", "u", "s") or kind.bits not in (32, 64):
                self._illegal(f"{ins.name}: {call.target.name}", found=f".{kind}", expected="an address")
            shape: Function | Prototype | None = self.function.prototypes.get(call.prototype)
            names = self.function.call_targets.get(call.prototype, ())
            candidates = [shape] if shape is not None else [self._function(ins, name) for name in names]
        else:
            candidates = [self._function(ins, call.target.name)]
        for candidate in candidates:
            self._agree(ins, "return values", call.returns, candidate.returns)
            self._agree(ins, "arguments", call.arguments, candidate.params)

    def _function(self, ins: Instruction, name: str) -> Function:
        function = self.module.functions.get(self.module.aliases.get(name, name))
        if function is None:
            self._illegal(f"{ins.name}: {name} is no function")
        return function

    def _agree(self, ins: Instruction, what: str, actual: tuple, formal: tuple[Param, ...] | list[Param]) -> None:
        # A last parameter without a size takes what comes (".param .b8 x[]", variadic functions).
        is_open = bool(formal) and formal[-1].is_array and formal[-1].size == 0
        if len(actual) != len(formal) and not (is_open and len(actual) == len(formal) - 1):
            self._illegal(f"{ins.name}: number of {what}", found=str(len(actual)), expected=str(len(formal)))
        for operand, param in zip(actual, formal):
            if isinstance(operand, Register):
                kind = self.function.registers[operand.name]
                if param.is_array or not fits(kind, param.type):
                    expected = f".{param.type}" + (f"[{param.size}]" if param.is_array else "")
                    self._illegal(f"{ins.name}: {operand.name}", found=f".{kind}", expected=expected)
            elif isinstance(operand, Immediate):
                self._immediate(ins, operand, param.type)
            elif isinstance(operand, Symbol) and operand.name in self.function.variables:
                size = self.function.variables[operand.name].size
                if size != param.size and not (param.is_array and param.size == 0):
                    self._illegal(f"{ins.name}: {operand.name}", found=f"{size} bytes", expected=f"{param.size} bytes")
