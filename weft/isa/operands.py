"""The parts of one PTX instruction: operands, guard, source location. Plain data, made by the parser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from weft.types import SourceLocation


# ---------------------------------------------------------------- operands
@dataclass(frozen=True)
class Register:
    name: str  # with its `%` where it has one


@dataclass(frozen=True)
class SpecialRegister:
    name: str  # "%tid.x", "%laneid", "%clock64", "WARP_SZ" ...


@dataclass(frozen=True)
class Immediate:
    """A constant. kind "int": any Python int; "f32"/"f64": the bit pattern of 0f.../0d...; "float": a Python float."""

    value: int | float
    kind: str = "int"


@dataclass(frozen=True)
class Symbol:
    """The address of a variable, a function or a parameter, plus a byte offset."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    """`[base + offset]`; offset in bytes. `coordinates` holds a tensor copy's `{c0, c1}` vector: `[map, {c0, c1}]`."""

    base: Register | Symbol | Immediate
    offset: int = 0
    coordinates: Vector | None = None


@dataclass(frozen=True)
class Vector:
    """`{a, b, ...}`."""

    items: tuple


@dataclass(frozen=True)
class Pair:
    """`d|p`: two destinations (shfl, setp, elect ...)."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Negated:
    """`!p`."""

    operand: Register


@dataclass(frozen=True)
class LabelRef:
    name: str


@dataclass(frozen=True)
class Discard:
    """`_`."""


@dataclass(frozen=True)
class CallTarget:
    """Everything that follows `call`: `(returns), target, (arguments), prototype`.

    `target` is a Symbol for a direct call and a Register for an indirect one; `prototype` names a
    `.callprototype` or `.calltargets` label (indirect calls only).
    """

    target: Symbol | Register
    returns: tuple = ()
    arguments: tuple = ()
    prototype: str = ""


Operand = Union[  # noqa: UP007  (the forward reference in Pair needs a type that exists at run time)
    Register, SpecialRegister, Immediate, Symbol, Address, Vector, Pair, Negated, LabelRef, Discard, CallTarget
]


# ---------------------------------------------------------------- statements
@dataclass(frozen=True)
class Guard:
    register: str
    negated: bool = False


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction. `line` is the line of the PTX text (1-based), `location` the user's source."""

    opcode: str
    modifiers: tuple[str, ...]  # in the order written, without dots: ("global", "v4", "b32")
    operands: tuple[Operand, ...]
    guard: Guard | None = None
    line: int = 0
    location: SourceLocation | None = None
    pragmas: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`ld.global.v4.b32`, as written."""
        return ".".join((self.opcode, *self.modifiers))
