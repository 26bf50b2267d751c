"""The instruction table: one entry per instruction, and the matcher that finds the entry for PTX text.

An entry is a class under `@instruction(signature, ...)`. The signature is in the PTX manual's own notation and is
all that the parser and the checker know of the instruction's spelling:

    @instruction("shl.type d, a, b", type=("b16", "b32", "b64"), operands={"b": "u32"}, pipe="alu", ptx="1.0",
                 section="9.7.8.9")
    class Shl:
        @staticmethod
        def reference(m, a, b): ...     # exact Python integers (bit patterns) in and out
        @staticmethod
        def emit(b, m, x, n): ...       # builder Values in and out

Signature notation: `.name` is a variable modifier when `name` is a keyword argument (its choices), else a literal;
`{.x}` is optional; operands follow after a space: `a` a value, `[a]` an address, `d|p` a pair, `d{|p}` a pair whose
second half is optional, `{, c}` optional trailing operands. Operands named d, p and q are destinations.
Modifiers match as a set: `ld.global.acquire.gpu` and `ld.acquire.gpu.global` are one form; only types keep their
order among each other. Where several variable slots admit a token (cvt.dtype.atype), the first free one in signature
order takes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weft.errors import PtxError, UnsupportedError
from weft.isa.operands import Address, Discard, Instruction, Pair
from weft.types import TYPES, ScalarType

DESTINATIONS = ("d", "p", "q")


@dataclass(frozen=True)
class Modifier:
    """One slot of a signature: its attribute name, its choices, whether it may be absent."""

    name: str
    choices: tuple[str, ...]
    optional: bool
    literal: bool

    @property
    def attribute(self) -> str:
        return self.name.replace("::", "_")


@dataclass(frozen=True)
class OperandSpec:
    """One operand of a signature. `pair` is the name behind `|` ("" without), `pair_optional` for `d{|p}`."""

    name: str
    is_address: bool = False
    pair: str = ""
    pair_optional: bool = False
    optional: bool = False

    @property
    def is_destination(self) -> bool:
        return self.name in DESTINATIONS and not self.is_address


@dataclass(frozen=True)
class Tolerance:
    """Allowed error of a form, from the PTX manual: in units in the last place, absolute, or relative. All zero asks
    for the very pattern (the sign of zero included), but for NaN.

    nan: "" asks for the reference's NaN, "any" takes any NaN for any other (see isa/floating.py). A form with an
    error bound takes any NaN as well.
    """

    ulp: float = 0.0
    absolute: float = 0.0
    relative: float = 0.0
    nan: str = ""


@dataclass(frozen=True, eq=False)
class Entry:
    """One row of the table. See `instruction` for the fields."""

    opcode: str
    signature: str
    modifiers: tuple[Modifier, ...]
    operands: tuple[OperandSpec, ...]
    operand_types: Mapping[str, Any]
    definition: type
    pipe: str
    effects: frozenset[str]
    raw: bool
    collective: bool
    ptx: tuple[int, int]
    sm: int
    section: str
    tolerance: Tolerance | Callable | None
    missing: str
    where: Callable | None

    @property
    def reference(self):
        return getattr(self.definition, "reference", None)

    @property
    def emit(self):
        return getattr(self.definition, "emit", None)

    @property
    def min_operands(self) -> int:
        return sum(not spec.optional for spec in self.operands)


class Match:
    """The outcome of matching one instruction: `m.type` is a ScalarType (or a str where the choice is no type),
    `m.sat` True or False for a literal, None for an absent variable. `m["2d"]` reads any slot by its name.
    `m.operand_type(name)` is the ScalarType of an operand, `m.entry` the table's row."""

    def __init__(self, entry: Entry, values: dict[str, Any], tokens: tuple[str, ...]):
        self.entry = entry
        self.values = values
        self.tokens = tokens
        for name, value in values.items():
            attribute = name.replace("::", "_")
            if attribute.isidentifier():
                setattr(self, attribute, value)

    def __getattr__(self, name: str):
        raise AttributeError(f"{self.entry.signature!r} has no modifier {name!r}")

    def __getitem__(self, name: str):
        return self.values[name]

    def get(self, name: str, default=None):
        """The slot's value, or `default` where the signature has no such slot."""
        return self.values.get(name, default)

    @property
    def text(self) -> str:
        return ".".join((self.entry.opcode, *self.tokens))

    def operand_type(self, name: str) -> ScalarType:
        """Type of operand `name`: the entry's own word for it, else slot `<name>type`, else `type`, else the
        signature's literal type; p and q are predicates."""
        spec = self.entry.operand_types.get(name)
        if callable(spec):
            spec = spec(self)
        if isinstance(spec, ScalarType):
            return spec
        if isinstance(spec, str):
            value = self.values.get(spec)
            if isinstance(value, ScalarType):
                return value
            return TYPES[spec]
        if name in ("p", "q"):
            return TYPES["pred"]
        for slot in (f"{name}type", "type"):
            value = self.values.get(slot)
            if isinstance(value, ScalarType):
                return value
        for token in reversed(self.tokens):
            if token in TYPES:
                return TYPES[token]
        raise AssertionError(f"{self.entry.signature}: operand {name} has no type")


TABLE: dict[str, list[Entry]] = {}


def instruction(
    signature: str,
    *,
    operands: Mapping[str, Any] | None = None,
    pipe: str,
    ptx: str = "1.0",
    sm: int = 10,
    section: str = "",
    effects: tuple[str, ...] = (),
    raw: bool = False,
    collective: bool = False,
    tolerance: Tolerance | Callable | None = None,
    missing: str = "",
    where: Callable | None = None,
    **choices: tuple[str, ...],
):
    """Define an entry.

    operands: name -> type name, slot name or function of the Match; see Match.operand_type for the default.
    pipe: alu, fma, fp64, fp16, xu, lsu, cbu, tensor, adu or uniform (Nsight Compute's names).
    effects: of memory, barrier, control, convergence, spin; "accumulates" where destinations are sources as well.
    raw: reference(t, m, ins) and emit(b, m, ins) take the instruction itself and read and write its operands; with
    `collective` too, reference(threads, m, ins) sees the warp's 32 threads, None for lanes that are not there.
    collective: reference(m, active, *sources) sees lists of 32 lane values and returns a list (or a tuple of lists).
    tolerance: allowed error of approximate forms, or a function of the Match giving it.
    missing: the form parses, and its use raises UnsupportedError with this text.
    where: a function of the Match that says whether the combination is legal: returns "" or what is wrong.
    choices: variable modifiers: name -> admitted tokens.
    Raises AssertionError for a signature that is already in the table.
    """

    def define(definition: type) -> type:
        opcode, modifiers, specs = _parse_signature(signature, choices)
        entry = Entry(
            opcode=opcode, signature=signature, modifiers=modifiers, operands=specs,
            operand_types=dict(operands or {}), definition=definition, pipe=pipe, effects=frozenset(effects), raw=raw,
            collective=collective, ptx=_version(ptx), sm=sm, section=section, tolerance=tolerance, missing=missing,
            where=where,
        )  # fmt: skip
        rows = TABLE.setdefault(opcode, [])
        same = [row for row in rows if row.modifiers == modifiers and row.operands == specs]
        assert not same, f"{signature}: defined twice"
        rows.append(entry)
        _match_cached.clear()
        return definition

    return define


# (opcode, first modifiers) of families that are known and do not run yet -> what to say of their use.
MISSING: dict[tuple[str, tuple[str, ...]], str] = {}


def declare_missing(reason: str, *families: str) -> None:
    """Families such as "mma" or "cp.async.bulk" whose use raises UnsupportedError with `reason`."""
    for family in families:
        opcode, *prefix = family.split(".")
        MISSING[opcode, tuple(prefix)] = reason


def missing_reason(ins: Instruction) -> str:
    """Why an instruction of a known family does not run yet; "" for any other."""
    for length in range(min(3, len(ins.modifiers)) + 1):
        reason = MISSING.get((ins.opcode, ins.modifiers[:length]))
        if reason:
            return reason
    return ""


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _parse_signature(signature: str, choices: Mapping[str, tuple[str, ...]]):
    head, _, tail = signature.partition(" ")
    opcode = re.match(r"[a-z0-9]+", head).group()
    modifiers = []
    used = set()
    for brace, name in re.findall(r"(\{?)\.([\w:]+)\}?", head[len(opcode) :]):
        literal = name not in choices
        used.add(name)
        modifiers.append(Modifier(name, (name,) if literal else tuple(choices[name]), bool(brace), literal))
    assert used >= set(choices), f"{signature}: no slot for {set(choices) - used}"
    specs = []
    optional = False
    for part in re.findall(r"\{,|\[?\w+\]?(?:\{?\|\w+\}?)?", tail):
        if part == "{,":
            optional = True
            continue
        name, _, pair = part.partition("|")
        specs.append(
            OperandSpec(name.strip("[]{}"), part.startswith("["), pair.strip("{}"), name.endswith("{"), optional)
        )
    return opcode, tuple(modifiers), tuple(specs)


def _match_modifiers(entry: Entry, tokens: tuple[str, ...]) -> tuple[dict[str, Any] | None, int, str]:
    """(values, tokens matched, what is wrong)."""
    values: dict[str, Any] = {}
    type_place = -1
    for index, token in enumerate(tokens):
        for place, slot in enumerate(entry.modifiers):
            if slot.name in values or token not in slot.choices:
                continue
            if token in TYPES:
                # `set.eq.u16.f16` is not `set.eq.f16.u16`.
                if place < type_place:
                    continue
                type_place = place
            values[slot.name] = True if slot.literal else TYPES.get(token, token)
            break
        else:
            free = [c for slot in entry.modifiers if slot.name not in values for c in slot.choices]
            return None, index, f"found .{token}, expected one of {', '.join('.' + c for c in free) or 'nothing'}"
    for slot in entry.modifiers:
        if slot.name not in values:
            if not slot.optional:
                return None, len(tokens), f"{slot.name} is missing, expected one of {', '.join(slot.choices)}"
            values[slot.name] = False if slot.literal else None
    return values, len(tokens) + 1, ""


def _match_operands(entry: Entry, operands: tuple) -> str:
    if not entry.min_operands <= len(operands) <= len(entry.operands):
        low, high = entry.min_operands, len(entry.operands)
        expected = str(low) if low == high else f"{low} to {high}"
        return f"found {len(operands)} operands, expected {expected} ({entry.signature})"
    for spec, operand in zip(entry.operands, operands):
        if spec.is_address and not isinstance(operand, (Address, Discard)):
            return f"operand {spec.name} must be an address in brackets"
        if isinstance(operand, Address) and not spec.is_address:
            return f"operand {spec.name} must not be an address in brackets"
        if isinstance(operand, Pair) and not spec.pair:
            return f"operand {spec.name} must not be a pair"
        if spec.pair and not spec.pair_optional and not isinstance(operand, Pair):
            return f"operand {spec.name} must be a pair {spec.name}|{spec.pair}"
    return ""


_match_cached: dict[Any, Match] = {}


def match(ins: Instruction, file: str = "") -> Match:
    """The table's row for an instruction.

    Raises PtxError when no entry has this form, naming the nearest one, and UnsupportedError for a form that
    parses but is not there yet.
    """
    shape = tuple(type(operand) for operand in ins.operands)
    key = (ins.opcode, ins.modifiers, shape)
    found = _match_cached.get(key)
    if found is None:
        found = _search(ins, file)
        _match_cached[key] = found
    if found.entry.missing:
        raise UnsupportedError(f"{ins.name}: {found.entry.missing}", file=file, line=ins.line)
    return found


def _search(ins: Instruction, file: str) -> Match:
    reason = missing_reason(ins)
    if reason:
        raise UnsupportedError(f"{ins.name}: {reason}", file=file, line=ins.line)
    rows = TABLE.get(ins.opcode)
    if not rows:
        raise PtxError(f"{ins.name}: unknown instruction {ins.opcode!r}", file=file, line=ins.line)
    best, reason = -1, ""
    for entry in rows:
        values, reached, wrong = _match_modifiers(entry, ins.modifiers)
        if values is not None:
            wrong = _match_operands(entry, ins.operands)
            if not wrong:
                m = Match(entry, values, ins.modifiers)
                wrong = entry.where(m) if entry.where else ""
                if not wrong:
                    return m
                reached += 1
            reached += 1
        if reached > best:
            best, reason = reached, wrong
    raise PtxError(f"{ins.name}: {reason}", file=file, line=ins.line)


def first_destinations(m: Match, ins: Instruction) -> list[tuple[Any, ScalarType]]:
    """The destination operands of an instruction with their types (pairs are split)."""
    found = []
    for spec, operand in zip(m.entry.operands, ins.operands):
        if not spec.is_destination:
            continue
        if isinstance(operand, Pair):
            found.append((operand.first, m.operand_type(spec.name)))
            found.append((operand.second, m.operand_type(spec.pair)))
        else:
            found.append((operand, m.operand_type(spec.name)))
    return found


def source_operands(m: Match, ins: Instruction) -> list[tuple[Any, ScalarType]]:
    """The value sources of an instruction with their types, in order; addresses are not among them."""
    return [
        (operand, m.operand_type(spec.name))
        for spec, operand in zip(m.entry.operands, ins.operands)
        if not spec.is_destination and not spec.is_address
    ]
