"""Multiplications that can be done together: a block's instructions enter, the same with groups of mma leave.

Compilers write a product of large tiles as many mma.sync on small ones: all with one A fragment one after another, or
all of one step along k. Here such instructions are collected as long as nothing between them needs what they write or
changes what they read; a group then runs as strips: one A, several neighbouring B, several steps along k. Accumulators
of one strip get neighbouring places in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
    """Multiplications with one A fragment each step: `steps[s][j]` adds to the j-th accumulators, all in place but for
    the first step's, which may take its sums from elsewhere."""

    steps: list[list[Multiply]]

    @property
    def a(self) -> list[Names]:
        """The A fragment of each step."""
        return [step[0].a for step in self.steps]

    @property
    def b(self) -> tuple[tuple[Names, ...], ...]:
        """The B fragments of each step."""
        return tuple(tuple(item.b for item in step) for step in self.steps)

    @property
    def tiles(self) -> list[Multiply]:
        """The first step, which tells the accumulators."""
        return self.steps[0]


@dataclass(eq=False)
class Group:
    """Multiplications that run together."""

    items: list[Multiply]

    @property
    def kind(self):
        return self.items[0].kind

    def _levels(self) -> list[list[list[Multiply]]]:
        """levels[depth]: rows of items with one A fragment each; an item's depth counts the products before it that
        add to the same accumulators."""
        depth_of: dict[Names, int] = {}
        levels: list[dict[Names, list[Multiply]]] = []
        for item in self.items:
            depth = depth_of.get(item.c, -1) + 1
            depth_of[item.d] = depth
            while len(levels) <= depth:
                levels.append({})
            levels[depth].setdefault(item.a, []).append(item)
        return [list(level.values()) for level in levels]

    def strips(self, most: int) -> list[Strip]:
        """All items as strips of at most `most` products (or one step), in an order that keeps every sum's order."""
        levels = self._levels()
        found: list[Strip] = []
        done: set[int] = set()
        for depth, level in enumerate(levels):
            for row in level:
                if id(row) in done:
                    continue
                strip = Strip([row])
                limit = max(1, most // len(row))
                for deeper in levels[depth + 1 : depth + limit]:
                    following = next(
                        (other for other in deeper if id(other) not in done and _continues(row, other)), None
                    )
                    if following is None:
                        break
                    done.add(id(following))
                    by_sum = {item.d: item for item in following}
                    strip.steps.append([by_sum[item.d] for item in row])
                found.append(strip)
        return found


def _continues(row: list[Multiply], other: list[Multiply]) -> bool:
    """The other row adds to just the accumulators that this one has written, in place."""
    if len(row) != len(other) or any(item.c != item.d for item in other):
        return False
    return {item.d for item in row} == {item.d for item in other}


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
