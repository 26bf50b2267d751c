"""Scopes of names. Enters: the declarations of a `{ }`. Leaves: what each name, and each operand's text, stands for."""

from __future__ import annotations

from collections.abc import Callable

from weft.isa.operands import Operand, Register
from weft.ptx.declarations import Qualifiers
from weft.types import ScalarType


class NotPlainError(Exception):
    """An operand whose text alone does not tell what it is."""


class OperandCache(dict):
    """Operand text -> operand, for one scope; what is not there yet is made on the first look-up.

    `ranges`, `names`, `used` and `registers` are the scope's and the function's (see Scope and BodyParser).
    """

    __slots__ = ("make", "names", "ranges", "registers", "used")

    def __init__(
        self,
        make: Callable[[str, OperandCache], Operand],
        names: dict[str, Operand],
        used: set[str],
        registers: dict[str, ScalarType],
    ):
        super().__init__()
        self.make, self.names, self.used, self.registers = make, names, used, registers
        # Of the outermost scope and scalars only: such a name means nothing else, and no other is in its way.
        self.ranges: dict[str, tuple[int, Qualifiers]] = {}

    def __missing__(self, piece: str) -> Operand:
        # Two thirds of the misses are the first use of a register from `%r<100>`: they end here.
        text = piece.strip()
        prefix = text.rstrip("0123456789")
        declared = self.ranges.get(prefix)
        if declared is not None and text not in self.used:
            digits = text[len(prefix) :]
            if digits and (digits[0] != "0" or digits == "0") and len(digits) < 19 and int(digits) < declared[0]:
                register = self.names[text] = self[text] = self[" " + text] = Register(text)
                self.used.add(text)
                self.registers[text] = declared[1].type
                return register
        return self.make(piece, self)


class Scope:
    """The names that one `{ }` declares. `cache` maps operand text to operands while the scope is innermost."""

    __slots__ = ("cache", "labels", "names", "parent", "ranges", "tables")

    def __init__(
        self,
        parent: Scope | None,
        make: Callable[[str, OperandCache], Operand],
        used: set[str],
        registers: dict[str, ScalarType],
    ):
        self.parent = parent
        self.names: dict[str, Operand] = {}
        self.ranges: dict[str, tuple[int, Qualifiers]] = {}  # prefix -> (count, type), from `%r<100>`
        self.labels: dict[str, str] = {}  # name -> name in the Function
        self.tables: dict[str, str] = {}  # of .callprototype, .calltargets and .branchtargets
        self.cache = OperandCache(make, self.names, used, registers)

    def range_of(self, name: str) -> Qualifiers | None:
        """The type of `name` if a parametrised declaration of this scope covers it."""
        prefix = name.rstrip("0123456789")
        while len(prefix) < len(name):
            declared = self.ranges.get(prefix)
            if declared is not None:
                digits = name[len(prefix) :]
                if (digits[0] != "0" or len(digits) == 1) and len(digits) < 19 and int(digits) < declared[0]:
                    return declared[1]
            prefix = name[: len(prefix) + 1]
        return None

    def declares(self, name: str) -> bool:
        return name in self.names or (bool(self.ranges) and self.range_of(name) is not None)
