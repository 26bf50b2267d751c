"""Module -> PTX text. Enters: a Module. Leaves: text that parses to an equal Module, for dumps.

Scopes are flat in a Module, so all registers, parameters of calls and prototypes are declared at the top of a body.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.isa.operands import (
    Address,
    CallTarget,
    Discard,
    Immediate,
    Instruction,
    LabelRef,
    Negated,
    Operand,
    Pair,
    Register,
    SourceLocation,
    SpecialRegister,
    Symbol,
    Vector,
)
from weft.ptx.module import Function, Label, Module, Param, Prototype, Relocation, Variable


def format_module(module: Module) -> str:
    """The module as PTX. Every function is declared before the first variable, so any order of definitions is legal."""
    locations = _Locations(module)
    lines = [f".version {module.version[0]}.{module.version[1]}", f".target {module.target}"]
    lines.append(f".address_size {module.address_bits}")
    lines += [f'.file {index} "{path}"' for index, path in locations.files.items()]
    lines.append("")
    for function in sorted(module.functions.values(), key=lambda function: not function.is_declaration):
        if not function.is_entry or function.is_declaration:
            lines.append("\n".join(_header(function)) + ";")
    lines += [format_variable(variable) for variable in module.variables.values()]
    for function in module.functions.values():
        if not function.is_declaration:
            lines.append("")
            lines += _definition(function, locations)
    lines += [f".alias {alias}, {target};" for alias, target in module.aliases.items()]
    lines += locations.section()
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- declarations
def format_variable(variable: Variable) -> str:
    """One declaration with its initialiser."""
    element = variable.type
    linkage = f".{variable.linkage} " if variable.linkage else ""
    text = f"{linkage}.{variable.space} .align {variable.align} .{element} {variable.name}"
    is_scalar = variable.size == element.bytes and not variable.unsized
    if variable.space == "param" and element.name == "b8":
        # A Variable does not tell `x` from `x[1]`. Compilers pass a scalar as .b32 and an empty class as .b8 x[1].
        is_scalar = False
    if not is_scalar:
        text += "[]" if variable.unsized else f"[{variable.size // element.bytes}]"
    if variable.init is not None:
        values = _initializer(variable)
        text += f" = {values[0]}" if is_scalar else f" = {{{', '.join(values)}}}"
    return text + ";"


def _initializer(variable: Variable) -> list[str]:
    element, init = variable.type, variable.init or b""
    addresses = {relocation.offset: relocation for relocation in variable.relocations}
    values = []
    # What is left out is zero.
    used = max([len(init.rstrip(b"\0")), *(offset + 1 for offset in addresses), 1])
    for offset in range(0, min(used, len(init)), element.bytes):
        if offset in addresses:
            values.append(_relocation(addresses[offset]))
            continue
        bits = int.from_bytes(init[offset : offset + element.bytes], "little")
        values.append(_float(bits, element.name) if element.kind == "f" else str(bits))
    return values


def _relocation(relocation: Relocation) -> str:
    text = f"generic({relocation.symbol})" if relocation.generic else relocation.symbol
    if relocation.addend:
        text += f"+{relocation.addend}"
    return f"{hex(0xFF << relocation.shift)}({text})" if relocation.bytes == 1 else text


def _param(param: Param) -> str:
    text = ".reg" if param.in_register else ".param"
    if param.align != param.type.bytes:
        text += f" .align {param.align}"
    text += f" .{param.type}"
    if param.pointer_space:
        text += " .ptr .align 1" if param.pointer_space == "generic" else f" .ptr .{param.pointer_space} .align 1"
    text += f" {param.name}"
    if param.is_array:
        text += f"[{param.size // param.type.bytes}]" if param.size else "[]"
    return text


def _header(function: Function) -> list[str]:
    text = f".{function.linkage} " if function.linkage else ""
    text += ".entry " if function.is_entry else ".func "
    if function.returns:
        text += f"({', '.join(map(_param, function.returns))}) "
    lines = [text + function.name + "("]
    params = [f"    {_param(param)}" for param in function.params]
    lines.append(",\n".join(params) + ")" if params else ")")
    for name, values in function.directives.items():
        if name == "pragma":
            lines.append(f".pragma {_strings(values)};")
        else:
            lines.append(f".{name} {', '.join(map(str, values))}".rstrip())
    if function.noreturn:
        lines.append(".noreturn")
    return lines


def _prototype(prototype: Prototype) -> str:
    returns = f"({', '.join(map(_param, prototype.returns))}) " if prototype.returns else ""
    return f".callprototype {returns}_ ({', '.join(map(_param, prototype.params))});"


def _strings(values: Iterable[str]) -> str:
    return ", ".join(f'"{value}"' for value in values)


# ---------------------------------------------------------------- bodies
def _definition(function: Function, locations: _Locations) -> list[str]:
    lines = [*_header(function), "{"]
    in_header = {param.name for param in (*function.returns, *function.params)}
    by_type: dict[str, list[str]] = {}
    for name, kind in function.registers.items():
        if name not in in_header:
            by_type.setdefault(kind.name, []).append(name)
    for kind_name, names in by_type.items():
        lines += [f"    .reg .{kind_name} {', '.join(names[at : at + 8])};" for at in range(0, len(names), 8)]
    lines += [f"    {format_variable(variable)}" for variable in function.variables.values()]
    lines += [f"{name}: {_prototype(prototype)}" for name, prototype in function.prototypes.items()]
    lines += [f"{name}: .calltargets {', '.join(targets)};" for name, targets in function.call_targets.items()]
    lines += [f"{name}: .branchtargets {', '.join(targets)};" for name, targets in function.branch_targets.items()]
    location: SourceLocation | None = None
    for statement in function.body:
        if isinstance(statement, Label):
            lines.append(f"{statement.name}:")
            continue
        if statement.location is not location and statement.location is not None:
            location = statement.location
            lines += locations.directives(location)
        if statement.pragmas:
            lines.append(f"    .pragma {_strings(statement.pragmas)};")
        lines.append(f"    {format_instruction(statement)}")
    return [*lines, "}"]


def format_instruction(ins: Instruction) -> str:
    """One instruction with its guard and `;`."""
    guard = f"@{'!' if ins.guard.negated else ''}{ins.guard.register} " if ins.guard else ""
    operands = ", ".join(map(format_operand, ins.operands))
    return f"{guard}{ins.name} {operands}".rstrip() + ";"


def format_operand(operand: Operand) -> str:
    """One operand as PTX writes it."""
    match operand:
        case Register(name) | SpecialRegister(name) | LabelRef(name):
            return name
        case Immediate(value, kind):
            return str(value) if kind == "int" else _float(value, kind)
        case Symbol(name, offset):
            return f"{name}+{offset}" if offset else name
        case Address(base, offset, coordinates):
            text = format_operand(base) + (f"+{offset}" if offset else "")
            return f"[{text}{_coordinates(coordinates)}]"
        case Vector(items):
            return f"{{{', '.join(map(format_operand, items))}}}"
        case Pair(first, second):
            return f"{format_operand(first)}|{format_operand(second)}"
        case Negated(inner):
            return f"!{format_operand(inner)}"
        case Discard():
            return "_"
        case CallTarget(target, returns, arguments, prototype):
            parts = [f"({', '.join(map(format_operand, returns))})"] if returns else []
            parts += [format_operand(target), f"({', '.join(map(format_operand, arguments))})"]
            return ", ".join(parts + ([prototype] if prototype else []))
    raise AssertionError(f"no operand: {operand!r}")


def _coordinates(coordinates: Vector | None) -> str:
    if coordinates is None:
        return ""
    # `[texture, sampler, {x, y}]`: the list itself, where one of its items is a vector.
    if any(isinstance(item, Vector) for item in coordinates.items):
        return "".join(f", {format_operand(item)}" for item in coordinates.items)
    return f", {format_operand(coordinates)}"


def _float(value: float, kind: str) -> str:
    if kind == "f32":
        return f"0f{value:08X}"
    if kind == "f64":
        return f"0d{value:016X}"
    if value != value or value in (float("inf"), -float("inf")):
        return "0d7FF8000000000000" if value != value else f"{'-' if value < 0 else ''}1e999"
    return repr(float(value))


# ---------------------------------------------------------------- source locations
class _Locations:
    """Numbers files and inlined functions' names as `.loc` needs them."""

    def __init__(self, module: Module):
        self.files = dict(module.files)
        self._index = {path: index for index, path in reversed(module.files.items())}
        for function in module.functions.values():
            for statement in function.body:
                location = getattr(statement, "location", None)
                while location is not None:
                    self._add_file(location.file)
                    location = location.inlined_at
        self._names: dict[str, str] = {}

    def _add_file(self, path: str) -> None:
        if path in self._index or (path.startswith("<file ") and path.endswith(">")):
            return
        index = max(self.files, default=0) + 1
        self.files[index] = path
        self._index[path] = index

    def _place(self, location: SourceLocation) -> str:
        index = self._index.get(location.file)
        if index is None:
            index = int(location.file[len("<file ") : -1])
        return f"{index} {location.line} {location.column}"

    def directives(self, location: SourceLocation) -> list[str]:
        """`.loc` for `location`, behind those for the call sites around it, outermost first."""
        if location.inlined_at is None:
            return [f"    .loc {self._place(location)}"]
        label = self._names.setdefault(location.function, f"$weft_function_{len(self._names)}")
        return [
            *self.directives(location.inlined_at),
            f"    .loc {self._place(location)}, function_name {label}, inlined_at {self._place(location.inlined_at)}",
        ]

    def section(self) -> list[str]:
        """`.section .debug_str` with the names used so far."""
        if not self._names:
            return []
        lines = [".section .debug_str {"]
        for name, label in self._names.items():
            data = ",".join(map(str, name.encode() + b"\0"))
            lines += [f"{label}:", f".b8 {data}"]
        return [*lines, "}"]
