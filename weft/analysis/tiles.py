"""Multiplications that can be done together: a block's instructions enter, the same with groups of mma leave.

Compilers write a product of large tiles as many mma.sync on small ones: all with one A fragment one after another, or
all of one step along k. Here such instructions are collected as long as nothing between them needs what they write or
changes what they read; a group then runs as strips (one A, several neighbouring B), step by step along k. Accumulators
of one strip get neighbouring places in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from weft.analysis.flow import Op
from weft.isa.operands import Register, Vector

Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Multiply:
    """One mma on registers. `kind` is whatever tells its function; only equal kinds are grouped."""

    op: Op
    kind: object
    d: Names
    a: Names
    b: Names
    c: Names


@dataclass(eq=False)
class Strip:
    """Multiplications with one A fragment, in the order of their B fragments."""

    a: Names
    items: list[Multiply] = field(default_factory=list)


@dataclass(eq=False)
class Group:
    """Multiplications that run together. `steps`: what must follow what; the strips of a step may run in any order."""

    items: list[Multiply]

    @property
    def kind(self):
        return self.items[0].kind

    def steps(self) -> list[list[Strip]]:
        """Chains of products that add to the same accumulators become one item in each of several steps."""
        depth_of: dict[Names, int] = {}
        steps: list[dict[Names, Strip]] = []
        for item in self.items:
            depth = depth_of.get(item.c, -1) + 1
            depth_of[item.d] = depth
            while len(steps) <= depth:
                steps.append({})
            steps[depth].setdefault(item.a, Strip(item.a)).items.append(item)
        return [list(step.values()) for step in steps]


def operand_names(operand: object) -> Names | None:
    """The registers of a fragment; None when something else is among them, or one is there twice."""
    items = operand.items if isinstance(operand, Vector) else (operand,)
    names = tuple(x.name for x in items if isinstance(x, Register))
    return names if len(names) == len(items) == len(set(names)) else None


def find_multiply(op: Op, kind_of: Callable[[Op], object | None]) -> Multiply | None:
    """The op as a Multiply, if `kind_of` knows its form and all its operands are registers without a guard."""
    if op.opcode != "mma" or op.ins.guard is not None or len(op.ins.operands) != 4:
        return None
    kind = kind_of(op)
    if kind is None:
        return None
    d, a, b, c = (operand_names(x) for x in op.ins.operands)
    if d is None or a is None or b is None or c is None or (set(d) & set(c) and d != c):
        return None
    return Multiply(op, kind, d, a, b, c)


class _Pending:
    """The group being collected and what it touches."""

    def __init__(self) -> None:
        self.items: list[Multiply] = []
        self.reads: set[str] = set()
        self.writes: set[str] = set()
        self.sums: dict[str, Names] = {}  # register -> the accumulator fragment it belongs to
        self.kept: set[str] = set()  # of accumulators that are read and not written by the same item

    def takes(self, item: Multiply) -> bool:
        """Whether the item can join: it may go on with the accumulators of another, nothing else may be shared."""
        if not self.items:
            return True
        if item.kind != self.items[0].kind:
            return False
        if not self.writes.isdisjoint(item.a) or not self.writes.isdisjoint(item.b):
            return False
        if not self.reads.isdisjoint(item.d) or not self.kept.isdisjoint(item.d):
            return False
        if item.c != item.d and not self.writes.isdisjoint(item.d):
            return False
        return all(self.sums.get(name, fragment) == fragment for fragment in (item.c, item.d) for name in fragment)

    def add(self, item: Multiply) -> None:
        self.items.append(item)
        self.reads.update(item.a, item.b)
        self.writes.update(item.d)
        if item.c != item.d:
            self.kept.update(item.c)
        for fragment in (item.c, item.d):
            self.sums.update(dict.fromkeys(fragment, fragment))

    def touches(self, op: Op) -> bool:
        """Whether the op must not run before the group."""
        if not self.writes.isdisjoint(op.reads):
            return True
        return any(name in self.reads or name in self.sums for name in op.writes)


def group_multiplies(ops: Iterable[Op], kind_of: Callable[[Op], object | None]) -> list[Op | Group]:
    """The ops in their order, with multiplications gathered in groups. A group stands where the first instruction
    stands that needs it, or at the end."""
    result: list[Op | Group] = []
    pending = _Pending()

    def close() -> None:
        nonlocal pending
        if pending.items:
            result.append(Group(pending.items))
            pending = _Pending()

    for op in ops:
        item = find_multiply(op, kind_of)
        if item is not None:
            if not pending.takes(item):
                close()
            pending.add(item)
            continue
        if pending.touches(op):
            close()
        result.append(op)
    close()
    return result
