"""What the parser makes of PTX text: a Module of Functions and Variables. Plain data; nothing here computes.

Names are unique within a function: the parser renames registers, labels and variables that an inner scope
declares again (`%r1` becomes `%r1$2`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.types import ScalarType

__all__ = ["Function", "Label", "Module", "Param", "Prototype", "Relocation", "Variable"]


@dataclass(frozen=True)
class Label:
    name: str
    line: int = 0


# ---------------------------------------------------------------- declarations
@dataclass(frozen=True)
class Relocation:
    """The address of `symbol` + addend is to be written at byte `offset` of an initialiser, `bytes` wide.

    `generic` says `generic(symbol)`; `shift` is the bit shift of a `mask(0xff00, symbol)` initialiser (0 without)."""

    offset: int
    symbol: str
    addend: int = 0
    bytes: int = 8
    generic: bool = False
    shift: int = 0


@dataclass(frozen=True)
class Variable:
    """A variable of state space `space`. `size` is in bytes; `unsized` marks `.extern .shared x[]`."""

    name: str
    space: str
    type: ScalarType
    size: int
    align: int
    init: bytes | None = None
    relocations: tuple[Relocation, ...] = ()
    linkage: str = ""  # "visible", "extern", "weak", "common" or ""
    unsized: bool = False
    line: int = 0


@dataclass(frozen=True)
class Param:
    """A parameter or return value; `offset` in bytes from the start of the parameter buffer (entry functions)."""

    name: str
    type: ScalarType
    size: int
    align: int
    offset: int = 0
    in_register: bool = False  # declared `.reg` rather than `.param` (.func only)
    pointer_space: str = ""  # from `.ptr .global .align 16`
    is_array: bool = False


@dataclass(frozen=True)
class Prototype:
    """A `.callprototype` label: the shapes of an indirect call's parameters."""

    returns: tuple[Param, ...]
    params: tuple[Param, ...]


@dataclass
class Function:
    """`.entry` or `.func`. `body` is the list of Labels and Instructions in order; empty for a declaration."""

    name: str
    is_entry: bool
    params: list[Param] = field(default_factory=list)
    returns: list[Param] = field(default_factory=list)
    registers: dict[str, ScalarType] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)  # .local, .shared and .param declared inside
    body: list = field(default_factory=list)
    # name -> list of ints: maxntid, reqntid, minnctapersm, maxnctapersm, maxnreg, reqnctapercluster, ...
    directives: dict[str, tuple] = field(default_factory=dict)
    prototypes: dict[str, Prototype] = field(default_factory=dict)
    branch_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # .branchtargets label -> labels
    call_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)  # .calltargets label -> functions
    linkage: str = ""
    is_declaration: bool = False
    noreturn: bool = False
    line: int = 0

    @property
    def param_bytes(self) -> int:
        """Size of the parameter buffer of an entry function, in bytes."""
        return max((p.offset + p.size for p in self.params), default=0)


@dataclass
class Module:
    """A parsed PTX file. `file` is the name used in messages."""

    file: str
    version: tuple[int, int]
    target: str  # "sm_90a"
    address_bits: int = 64
    functions: dict[str, Function] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def kernels(self) -> dict[str, Function]:
        return {name: f for name, f in self.functions.items() if f.is_entry and not f.is_declaration}
