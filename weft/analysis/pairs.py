"""Pairs of registers that are always taken apart and put together as a whole: one register takes their place.

Compilers hand packed halves through loops as `mov.b32 {%rs1, %rs2}, %r1` and `mov.b32 %r2, {%rs1, %rs2}`, because the
halves are separate values to them. A flattened function enters; the same leaves, with such pairs as one register.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from weft.analysis.flow import registers_of
from weft.analysis.inline import FlatFunction
from weft.isa.operands import CallTarget, Instruction, Register, Vector
from weft.ptx.module import Label
from weft.types import TYPES

Names = tuple[str, ...]


def join_pairs(flat: FlatFunction) -> FlatFunction:
    """The function with every such pair (or group of four) replaced; instructions keep their places."""
    moves = {i: names for i, item in enumerate(flat.body) if (names := _parts_of_move(item)) is not None}
    if not moves:
        return flat
    wholes = _wholes(flat, moves)
    if not wholes:
        return flat
    body = list(flat.body)
    registers = dict(flat.registers)
    for i, names in moves.items():
        if names in wholes:
            registers[_joined(names)] = TYPES[body[i].modifiers[-1]]
            body[i] = replace(body[i], operands=tuple(_replaced(x, names) for x in body[i].operands))
    return replace(flat, body=body, registers=registers)


def _parts_of_move(item: object) -> Names | None:
    """The parts, if the item is an unguarded move between a register and its parts."""
    if not isinstance(item, Instruction) or item.opcode != "mov" or item.guard is not None or len(item.operands) != 2:
        return None
    vectors = [x for x in item.operands if isinstance(x, Vector)]
    others = [x for x in item.operands if isinstance(x, Register)]
    if len(vectors) != 1 or len(others) != 1 or item.modifiers not in (("b32",), ("b64",)):
        return None
    names = tuple(x.name for x in vectors[0].items if isinstance(x, Register))
    return names if len(names) == len(vectors[0].items) == len(set(names)) else None


def _wholes(flat: FlatFunction, moves: dict[int, Names]) -> set[Names]:
    """The groups of parts that nothing mentions but their own moves, at least one in either direction. Parts have one
    size, so that the moves of a group do too."""
    mentions: Counter[str] = Counter()
    for item in flat.body:
        if not isinstance(item, Label):
            mentions.update(_mentioned(item))
    count = Counter(moves.values())
    taken_apart = {names for i, names in moves.items() if isinstance(flat.body[i].operands[0], Vector)}
    put_together = {names for i, names in moves.items() if isinstance(flat.body[i].operands[1], Vector)}
    return {
        names for names in taken_apart & put_together if all(mentions[name] == count[names] for name in names)
    }


def _mentioned(item: Instruction) -> list[str]:
    names = [] if item.guard is None else [item.guard.register]
    for operand in item.operands:
        if isinstance(operand, CallTarget):
            for part in (*operand.returns, *operand.arguments, operand.target):
                names += registers_of(part)
        else:
            names += registers_of(operand)
    return names


def _joined(names: Names) -> str:
    return "+".join(names)


def _replaced(operand: object, names: Names):
    return Register(_joined(names)) if isinstance(operand, Vector) else operand
