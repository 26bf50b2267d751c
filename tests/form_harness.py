"""Table-driven tests of instruction forms: every form of an entry, on edge operands, under masks.

What enters: entries of weft.isa's TABLE. `forms_of(entry)` expands an entry to its forms (one per combination of
modifiers); `check_emission(form)` runs the form's rule on the ScalarBuilder against its reference, without compiling;
`check_on_device(gpu, instances)` compiles kernels that execute many instances of forms and compares every lane's
result with the reference. What leaves: a list of texts, one per mismatch, empty when all is well.

An instance is a form with one way of supplying each source and one way of masking:
    loaded    each thread loads its own operand (the compiler knows nothing of it)
    uniform   each warp loads one operand for all its lanes
    immediate a constant in the text
    lane      a linear function of %tid.x, which the compiler keeps as a table
    offset    uniform + lane
    guard     "", "guard" (`@%g`, a loaded predicate) or "branch" (inside a divergent branch)
Results of lanes that a guard masks off must stay what they were.
"""

from __future__ import annotations

import itertools
import math
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scalar_builder import ScalarBuilder

from weft.errors import PtxError
from weft.isa.bits import split
from weft.isa.instruction import Entry, Match, Tolerance, match
from weft.isa.operands import Address, Immediate, Instruction, Pair, Register
from weft.types import TYPES, ScalarType

LANES = 32
BLOCK = 64
THREADS = 256
PRED = TYPES["pred"]
SENTINEL = 0x5AA5_C33C_0FF0_9669
# Operands that must be constants in the text, with the values to try.
IMMEDIATE_OPERANDS: dict[tuple[str, str], Sequence[int]] = {("lop3", "lut"): range(256)}


# ---------------------------------------------------------------- forms
@dataclass(frozen=True, eq=False)
class Form:
    """One spelling of an entry. `paired` says whether an optional second destination is there, `sources` how many
    value sources are written, `immediates` the values of operands that must be constants."""

    entry: Entry
    tokens: tuple[str, ...]
    match: Match
    paired: bool
    source_count: int
    immediates: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        name = ".".join((self.entry.opcode, *self.tokens))
        if any(spec.pair_optional for spec in self.entry.operands) and not self.paired:
            name += " (one destination)"
        return name + "".join(f" {operand}={value:#x}" for operand, value in self.immediates)

    @property
    def opcode(self) -> str:
        return ".".join((self.entry.opcode, *self.tokens))

    @property
    def destinations(self) -> list[tuple[str, ScalarType]]:
        """(name, type) of each result, the second of a pair included; a carry out is none of them."""
        found = []
        for spec in self.entry.operands:
            if not spec.is_destination:
                continue
            found.append((spec.name, self.match.operand_type(spec.name)))
            if spec.pair and (self.paired or not spec.pair_optional):
                found.append((spec.pair, self.match.operand_type(spec.pair)))
        return found

    @property
    def sources(self) -> list[tuple[str, ScalarType]]:
        specs = [spec for spec in self.entry.operands if not spec.is_destination and not spec.is_address]
        return [(spec.name, self.match.operand_type(spec.name)) for spec in specs[: self.source_count]]

    @property
    def carry_in(self) -> bool:
        return "carry_in" in self.entry.effects

    @property
    def carry_out(self) -> bool:
        return "carry_out" in self.entry.effects

    @property
    def all_sources(self) -> list[tuple[str, ScalarType]]:
        """The sources, then the carry where the form reads one."""
        return [*self.sources, ("carry", PRED)] if self.carry_in else self.sources

    @property
    def all_results(self) -> list[tuple[str, ScalarType]]:
        return [*self.destinations, ("carry", PRED)] if self.carry_out else self.destinations

    @property
    def tolerance(self) -> Tolerance | None:
        allowed = self.entry.tolerance
        return allowed(self.match) if callable(allowed) else allowed

    @property
    def random(self) -> random.Random:
        """A generator that depends on the form's name alone."""
        return random.Random(zlib.crc32(self.name.encode()))


def forms_of(entry: Entry, limit: int | None = None) -> list[Form]:
    """The forms of an entry that `where` admits; a deterministic sample where there are more than `limit`.

    Raises AssertionError where another entry takes a form's text.
    """
    optional = sum(spec.optional for spec in entry.operands if not spec.is_destination and not spec.is_address)
    total = sum(not spec.is_destination and not spec.is_address for spec in entry.operands)
    pairings = (True, False) if any(spec.pair_optional for spec in entry.operands) else (True,)
    fixed = [
        [(spec.name, value) for value in IMMEDIATE_OPERANDS[entry.opcode, spec.name]]
        for spec in entry.operands
        if (entry.opcode, spec.name) in IMMEDIATE_OPERANDS
    ]
    spellings = list(
        itertools.product(
            modifier_choices(entry), pairings, range(total - optional, total + 1), itertools.product(*fixed)
        )
    )
    random.Random(zlib.crc32(entry.signature.encode())).shuffle(spellings)
    found: list[Form] = []
    for tokens, paired, count, immediates in spellings:
        found_match = match_form(entry, tokens, paired, count)
        if found_match is not None:
            found.append(Form(entry, tokens, found_match, paired, count, immediates))
        if limit is not None and len(found) >= limit:
            break
    return sorted(found, key=lambda form: form.name)


def modifier_choices(entry: Entry) -> Iterator[tuple[str, ...]]:
    """Every combination of an entry's modifiers, in signature order."""
    slots = [[(choice,) for choice in slot.choices] + [()] * slot.optional for slot in entry.modifiers]
    for combination in itertools.product(*slots):
        yield tuple(itertools.chain.from_iterable(combination))


def match_form(entry: Entry, tokens: tuple[str, ...], paired: bool, sources: int) -> Match | None:
    """The Match of a spelling, or None where `where` refuses it."""
    operands = []
    remaining = sources
    for spec in entry.operands:
        if spec.is_address:
            operands.append(Address(Register("%a")))
        elif spec.is_destination:
            two = spec.pair and (paired or not spec.pair_optional)
            operands.append(Pair(Register("%d"), Register("%p")) if two else Register("%d"))
        elif remaining:
            remaining -= 1
            is_constant = (entry.opcode, spec.name) in IMMEDIATE_OPERANDS
            operands.append(Immediate(0) if is_constant else Register(f"%{spec.name}"))
    try:
        found = match(Instruction(entry.opcode, tokens, tuple(operands)))
    except PtxError:
        return None
    assert found.entry is entry, f"{'.'.join((entry.opcode, *tokens))}: {entry.signature} and {found.entry.signature}"
    return found


# ---------------------------------------------------------------- operands
FLOAT_SHAPES = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "tf32": (8, 23), "f64": (11, 52),
                "e4m3": (4, 3), "e5m2": (5, 2)}  # fmt: skip
FLOAT_NUMBERS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 1 / 3, 3.141592653589793, 1e-3, 100.0, 255.5, 65504.0, 2147483648.0,
                 4294967296.0)  # fmt: skip


def _float_pattern(number: float, lane: str) -> int:
    """The pattern of a number cut to a format (a source of operands, so the rounding does not matter)."""
    if lane in ("f64",):
        return struct.unpack("<Q", struct.pack("<d", number))[0]
    exponent_bits, fraction_bits = FLOAT_SHAPES[lane]
    bias = (1 << (exponent_bits - 1)) - 1
    fraction, exponent = math.frexp(number)
    exponent += bias - 1
    if not 0 < exponent < (1 << exponent_bits) - 1:
        return 0
    return exponent << fraction_bits | int((fraction * 2 - 1) * (1 << fraction_bits))


def edge_patterns(scalar: ScalarType) -> list[int]:
    """Patterns of one lane of a type at which instructions go wrong."""
    bits = scalar.bits // scalar.lanes
    mask = (1 << bits) - 1
    if scalar.kind == "pred":
        return [0, 1]
    lane = scalar.name.removesuffix("x2").removesuffix("x4")
    if scalar.kind == "f" and lane in FLOAT_SHAPES:
        exponent_bits, fraction_bits = FLOAT_SHAPES[lane]
        infinity = ((1 << exponent_bits) - 1) << fraction_bits
        positive = [0, 1, (1 << fraction_bits) - 1, 1 << fraction_bits, (1 << fraction_bits) + 1, infinity - 1,
                    infinity, infinity + 1, infinity | 1 << (fraction_bits - 1), infinity | (1 << fraction_bits) - 1,
                    infinity | 0x2A % (1 << fraction_bits) | 1]  # fmt: skip
        positive += [_float_pattern(number, lane) for number in FLOAT_NUMBERS]
        return [p & mask for p in positive] + [(p | 1 << (bits - 1)) & mask for p in positive]
    sign = 1 << (bits - 1)
    numbers = [0, 1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, bits - 1, bits,
               bits + 1, sign, sign - 1, sign + 1, -1, -2, -3, -32, -64, 0x5555555555555555, 0xAAAAAAAAAAAAAAAA,
               0xFFFFFF, 0x800000, 0x7FFFFF, 0x80000000, 0x7FFFFFFF, 0x0123456789ABCDEF]  # fmt: skip
    return [number & mask for number in numbers]


def pick_pattern(scalar: ScalarType, rng: random.Random, edges: list[int]) -> int:
    """An operand: an edge, a small number or random bits."""
    bits = scalar.bits // scalar.lanes
    result = 0
    for lane in range(scalar.lanes):
        choice = rng.random()
        if choice < 0.6:
            part = rng.choice(edges)
        elif choice < 0.75 and scalar.kind != "f":
            part = rng.randrange(-40, 70) & ((1 << bits) - 1)
        else:
            part = rng.getrandbits(bits)
        result |= part << (lane * bits)
    return result


def operand_columns(form: Form, count: int, rng: random.Random | None = None) -> list[list[int]]:
    """`count` cases: one list of patterns per source of the form (its carry included)."""
    rng = rng or form.random
    constants = dict(form.immediates)
    columns = []
    for name, scalar in form.all_sources:
        if name in constants:
            columns.append([constants[name]] * count)
            continue
        edges = edge_patterns(scalar)
        columns.append([pick_pattern(scalar, rng, edges) for _ in range(count)])
    # The first cases pair equal operands and walk along the first operand's edges.
    if len(columns) > 1 and form.sources[0][1].bits == form.sources[1][1].bits:
        for i in range(0, count, 8):
            columns[1][i] = columns[0][i] if form.sources[1][0] not in constants else columns[1][i]
    return columns


# ---------------------------------------------------------------- results
def reference_results(
    form: Form, columns: list[list[int]], active: Sequence[bool] | None = None
) -> list[tuple[int, ...]]:
    """Per case, the patterns of all results by the entry's reference. For collective forms a case is a lane, the
    columns cover whole warps and `active` names the lanes that execute together; others may hold anything."""
    count = len(columns[0]) if columns else len(active or ())
    masks = [(1 << scalar.bits) - 1 for _, scalar in form.all_results]
    absent = [None] * (sum(not s.is_destination and not s.is_address for s in form.entry.operands) - len(form.sources))
    if form.entry.collective:
        active = list(active) if active is not None else [True] * count
        rows: list[tuple[int, ...]] = []
        for at in range(0, count, LANES):
            lanes = [column[at : at + LANES] for column in columns]
            together = active[at : at + LANES]
            if not any(together):
                rows += [(0,) * len(masks)] * LANES
                continue
            result = form.entry.reference(form.match, together, *lanes, *absent)
            lists = result if isinstance(result, tuple) else (result,)
            rows += [tuple(int(v) & m for v, m in zip(row, masks)) for row in zip(*lists)]
        return rows
    results = []
    for values in zip(*columns) if columns else [()] * count:
        plain, carry = (values[:-1], values[-1:]) if form.carry_in else (values, ())
        result = form.entry.reference(form.match, *plain, *absent, *carry)
        given = result if isinstance(result, tuple) else (result,)
        # A form whose second destination is left out computes it all the same.
        if form.carry_out and len(given) > len(masks):
            given = (*given[: len(masks) - 1], given[-1])
        results.append(tuple(int(v) & m for v, m in zip(given, masks)))
    return results


def emission_results(form: Form, columns: list[list[int]]) -> list[tuple[int, ...]]:
    """The same by the entry's emission rule, evaluated on arrays."""
    count = len(columns[0])
    b = ScalarBuilder(lanes=count)
    constants = dict(form.immediates)
    values = [
        b.const(constants[name], scalar.bits) if name in constants else b.value(column, scalar.bits)
        for (name, scalar), column in zip(form.all_sources, columns)
    ]
    plain, carry = (values[:-1], values[-1:]) if form.carry_in else (values, [])
    total = sum(not s.is_destination and not s.is_address for s in form.entry.operands)
    result = form.entry.emit(b, form.match, *plain, *[None] * (total - len(form.sources)), *carry)
    given = result if isinstance(result, tuple) else (result,)
    for (name, scalar), value in zip(form.all_results, given):
        assert value.bits == scalar.bits, f"{form.name}: {name} has {value.bits} bits, expected {scalar.bits}"
    return list(zip(*(value.ints() for value in given[: len(form.all_results)])))


def to_float(pattern: int, lane: str, bits: int) -> float:
    """The number of a lane's pattern (any format of FLOAT_SHAPES; e4m3 without its NaN)."""
    exponent_bits, fraction_bits = FLOAT_SHAPES[lane]
    sign = -1.0 if pattern >> (bits - 1) & 1 else 1.0
    exponent = pattern >> fraction_bits & ((1 << exponent_bits) - 1)
    fraction = pattern & ((1 << fraction_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    if exponent == (1 << exponent_bits) - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * math.ldexp(fraction, 1 - bias - fraction_bits)
    return sign * math.ldexp(fraction | 1 << fraction_bits, exponent - bias - fraction_bits)


def is_nan(pattern: int, scalar: ScalarType) -> bool:
    """Whether some lane of a float type holds a NaN."""
    bits = scalar.bits // scalar.lanes
    lane = scalar.name.removesuffix("x2")
    return any(math.isnan(to_float(part, lane, bits)) for part in split(pattern, scalar.lanes, bits))


def agrees(found: int, expected: int, scalar: ScalarType, tolerance: Tolerance | None) -> bool:
    """Bit for bit, or within the tolerance of an approximate form. Any NaN then agrees with any NaN."""
    if found == expected:
        return True
    if tolerance is None or scalar.kind != "f":
        return False
    bits = scalar.bits // scalar.lanes
    lane = scalar.name.removesuffix("x2")
    for at in range(0, scalar.bits, bits):
        x = to_float(found >> at & ((1 << bits) - 1), lane, bits)
        y = to_float(expected >> at & ((1 << bits) - 1), lane, bits)
        if math.isnan(x) or math.isnan(y):
            if math.isnan(x) != math.isnan(y):
                return False
            continue
        exponent_bits, fraction_bits = FLOAT_SHAPES[lane]
        lowest = 2 - (1 << (exponent_bits - 1))
        if math.isinf(x) or math.isinf(y):
            if x == y:
                continue
            # Infinity counts as the largest finite number: an error bound may reach across the overflow.
            largest = math.ldexp(2.0 - math.ldexp(1.0, -fraction_bits), -lowest + 1)
            if not (tolerance.relative or tolerance.ulp):
                return False
            x, y = (math.copysign(min(abs(number), largest), number) for number in (x, y))
        ulp = math.ldexp(1.0, max(math.frexp(y)[1] - 1, lowest) - fraction_bits)
        allowed = max(tolerance.ulp * ulp, tolerance.absolute, tolerance.relative * abs(y))
        if abs(x - y) > allowed or (not allowed and math.copysign(1.0, x) != math.copysign(1.0, y)):
            return False
    return True


def check_emission(form: Form, count: int = 256) -> list[str]:
    """Mismatches between a form's emission rule and its reference on `count` cases."""
    columns = operand_columns(form, count)
    expected = reference_results(form, columns)
    found = emission_results(form, columns)
    return list(itertools.islice(row_mismatches(form, columns, found, expected), 4))


def row_mismatches(form: Form, columns: list[list[int]], found, expected, note: str = "") -> Iterator[str]:
    for i, (got, want) in enumerate(zip(found, expected)):
        for (name, scalar), x, y in zip(form.all_results, got, want):
            if not agrees(x, y, scalar, form.tolerance):
                operands = ", ".join(f"{n}={c[i]:#x}" for (n, _), c in zip(form.all_sources, columns))
                yield f"{form.name}{note}: {operands}: {name} is {x:#x}, expected {y:#x} (case {i})"


# ---------------------------------------------------------------- instances
KINDS = ("loaded", "uniform", "immediate", "lane", "offset")
GUARDS = ("", "guard", "branch")


@dataclass(eq=False)
class Instance:
    """A form with one way of supplying its sources and of masking; `columns` are its operands, thread by thread."""

    form: Form
    kinds: tuple[str, ...]
    guard: str
    columns: list[list[int]] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)  # per source: (factor, constant) of the lane kinds

    @property
    def note(self) -> str:
        return f" [{' '.join(self.kinds)}{' ' if self.guard else ''}{self.guard}]"


Prepare = Callable[[Form, list[bool], list[list[int]]], None]


def make_instance(form: Form, kinds: Sequence[str], guard: str, threads: int = THREADS) -> Instance:
    """Fill in the operands of an instance."""
    rng = random.Random(zlib.crc32(f"{form.name} {kinds} {guard}".encode()))
    instance = Instance(form, tuple(kinds), guard)
    constants = dict(form.immediates)
    columns = operand_columns(form, threads, rng)
    for (name, scalar), kind, column in zip(form.all_sources, instance.kinds, columns):
        mask = (1 << scalar.bits) - 1
        factor = rng.choice((1, 1, 2, 3, 4, 8, -1, 5))
        start = rng.choice((0, 0, 1, -1, -16, 31, 100)) if rng.random() < 0.7 else column[0]
        if scalar.kind == "pred":
            factor, start = 1, rng.randrange(33)
        if name in constants:
            column = [constants[name]] * threads
        elif kind == "uniform":
            column = [column[i - i % LANES] for i in range(threads)]
        elif kind == "immediate":
            column = [column[0]] * threads
        elif kind == "lane" and scalar.kind == "pred":
            column = [int(i % BLOCK % LANES < start) for i in range(threads)]
        elif kind == "lane":
            column = [(i % BLOCK * factor + start) & mask for i in range(threads)]
        elif kind == "offset" and scalar.kind != "pred":
            column = [(column[i - i % LANES] + i % BLOCK * factor) & mask for i in range(threads)]
        instance.columns.append(column)
        instance.steps.append((factor, start if scalar.kind == "pred" else start & mask))
    return instance


def instances_of(form: Form, thorough: bool = False) -> list[Instance]:
    """The instances that one form is tested with: loaded operands under every guard, and the other kinds in turn (all
    combinations that differ in one operand when `thorough`)."""
    count = len(form.all_sources)
    if form.immediates:
        wanted = [(("loaded",) * count, "")]
    else:
        wanted = [(("loaded",) * count, guard) for guard in GUARDS]
        mixes = [("lane", "uniform"), ("lane", "immediate"), ("offset", "uniform"), ("uniform", "uniform"),
                 ("uniform", "lane"), ("loaded", "immediate"), ("lane", "lane"), ("uniform", "loaded"),
                 ("loaded", "uniform"), ("offset", "lane"), ("immediate", "loaded"), ("loaded", "lane")]  # fmt: skip
        start = form.random.randrange(len(mixes))
        chosen = mixes if thorough else [mixes[start], mixes[(start + 5) % len(mixes)], mixes[(start + 3) % len(mixes)]]
        for first, rest in chosen:
            wanted.append(((first, *[rest] * (count - 1))[:count], GUARDS[len(wanted) % 3 if thorough else 0]))
    instances = []
    for kinds, guard in dict.fromkeys(wanted):
        # The carry flag is always made from a loaded predicate.
        fixed = (*kinds[:-1], "loaded") if form.carry_in else kinds
        instances.append(make_instance(form, fixed, guard))
    return instances


def guard_column(threads: int = THREADS) -> list[int]:
    """The guard of each thread: by warp all, none, one lane, random, alternating, all but one, first half, random."""
    rng = random.Random(20)
    rows = []
    for warp in range((threads + LANES - 1) // LANES):
        one = rng.randrange(LANES)
        rows += [
            [1] * LANES, [0] * LANES, [int(i == one) for i in range(LANES)], [rng.randrange(2) for _ in range(LANES)],
            [i & 1 for i in range(LANES)], [int(i != one) for i in range(LANES)], [int(i < 16) for i in range(LANES)],
            [int(rng.random() < 0.2) for _ in range(LANES)],
        ][warp % 8]  # fmt: skip
    return rows[:threads]


# ---------------------------------------------------------------- kernels
def register_type(scalar: ScalarType) -> str:
    """Declared type of the register for an operand: .pred or untyped bits; bytes live in 16 bits."""
    return "pred" if scalar.kind == "pred" else f"b{max(scalar.bits, 16)}"


def memory_bytes(scalar: ScalarType) -> int:
    """Bytes between the values of neighbouring threads: a predicate is a word."""
    return 4 if scalar.kind == "pred" else scalar.bits // 8


def _load(lines: list[str], register: str, scalar: ScalarType, pointer: str, offset: int) -> None:
    """`pointer` is "in" for a value per thread, "warp" for the value of the warp's first thread."""
    address = f"[%{pointer}{memory_bytes(scalar)}+{offset}]"
    if scalar.kind == "pred":
        lines.append(f"ld.global.b32 %word, {address};")
        lines.append(f"setp.ne.u32 {register}, %word, 0;")
    else:
        lines.append(f"ld.global.b{scalar.bits} {register}, {address};")


def takes_immediate(form: Form, scalar: ScalarType, value: int) -> bool:
    """Whether ptxas reads a constant there; elsewhere a constant goes through a register."""
    if scalar.kind == "f":
        return scalar.name in ("f32", "f64")
    if form.entry.opcode in ("bfe", "bfi") and value > 255:
        return False
    return scalar.lanes == 1 and scalar.bits in (16, 32, 64) and not form.entry.opcode.endswith(("2", "4"))


def _literal(value: int, scalar: ScalarType) -> str:
    if scalar.name == "f32":
        return f"0f{value:08X}"
    if scalar.name == "f64":
        return f"0d{value:016X}"
    if scalar.kind != "s":
        return f"{value:#x}"
    return str(value - (1 << scalar.bits) if value >> (scalar.bits - 1) else value)


def packed_column(column: list[int], size: int) -> np.ndarray:
    """The bytes of one slot: an array of `size`-byte values, filled up to 8 bytes per thread."""
    slot = np.zeros(8 * len(column), dtype=np.uint8)
    mask = (1 << 8 * size) - 1
    slot[: size * len(column)] = np.array([v & mask for v in column], dtype=f"u{size}").view(np.uint8)
    return slot


class Kernel:
    """The text of a kernel that runs instances, and where operands and results lie: in slots of 8 bytes per thread,
    each an array of the operand's width."""

    def __init__(self, name: str, threads: int = THREADS):
        self.name = name
        self.threads = threads
        self.guard = guard_column(threads)
        self.inputs: list[np.ndarray] = [packed_column(self.guard, 4)]
        self.results: list[int] = []  # bytes per value of each result slot
        self.body: list[str] = []
        self.members: list[tuple[Instance, int]] = []
        self.version, self.sm = (7, 8), 80

    def add(self, instance: Instance) -> None:
        form = instance.form
        self.version = max(self.version, form.entry.ptx)
        self.sm = max(self.sm, form.entry.sm)
        lines: list[str] = []
        names = []
        constants = dict(form.immediates)
        for index, ((name, scalar), kind, column, (factor, start)) in enumerate(
            zip(form.all_sources, instance.kinds, instance.columns, instance.steps)
        ):
            if name in constants:
                names.append(str(constants[name]))
                continue
            if kind == "immediate" and takes_immediate(form, scalar, column[0]):
                names.append(_literal(column[0], scalar))
                continue
            register = f"%s{index}"
            names.append(register)
            lines.append(f".reg .{register_type(scalar)} {register};")
            if kind == "immediate" and scalar.bits in (1, 16, 32, 64):
                lines.append(f"mov.{register_type(scalar)} {register}, {column[0]:#x};")
                continue
            if kind in ("lane", "offset") and (scalar.kind != "pred" or kind == "lane") and scalar.bits != 8:
                self._lane_operand(lines, register, scalar, kind, column, factor, start)
                continue
            _load(lines, register, scalar, "warp" if kind == "uniform" else "in", self._file(column, scalar))
        first = len(self.results)
        self.results += [memory_bytes(scalar) for _, scalar in form.all_results]
        operands = []
        sources = iter(names)
        written = 0
        for spec in form.entry.operands:
            if spec.is_destination:
                pair = [spec.name, spec.pair] if spec.pair and (form.paired or not spec.pair_optional) else [spec.name]
                for name in pair:
                    scalar = form.match.operand_type(name)
                    lines.append(f".reg .{register_type(scalar)} %o_{name};")
                    self._preset(lines, f"%o_{name}", scalar)
                operands.append("|".join(f"%o_{name}" for name in pair))
            elif written < form.source_count:
                written += 1
                operands.append(next(sources))
        if form.carry_in or form.carry_out:
            # CC.CF is the carry operand, or set as a sentinel.
            if form.carry_in:
                lines.append(f"selp.b32 %word, 1, 0, {names[-1]};")
            lines.append(f"add.cc.u32 %word, {'%word' if form.carry_in else '1'}, 0xffffffff;")
        text = f"{form.opcode} {', '.join(operands)};"
        label = f"SKIP_{self.name}_{len(self.members)}"
        if instance.guard == "guard":
            lines.append(f"@%g {text}")
        elif instance.guard == "branch":
            lines += [f"@!%g bra {label};", text, f"{label}:"]
        else:
            lines.append(text)
        slot = first
        for name, scalar in form.all_results:
            address = f"[%out{memory_bytes(scalar)}+{slot * self.threads * 8}]"
            if name == "carry":
                lines.append("addc.u32 %word, 0, 0;")
                lines.append(f"st.global.b32 {address}, %word;")
            elif scalar.kind == "pred":
                lines.append(f"selp.b32 %word, 1, 0, %o_{name};")
                lines.append(f"st.global.b32 {address}, %word;")
            else:
                lines.append(f"st.global.b{scalar.bits} {address}, %o_{name};")
            slot += 1
        self.body += ["{", *lines, "}"]
        self.members.append((instance, first))

    def _file(self, column: list[int], scalar: ScalarType) -> int:
        """Byte offset of a new slot of operands."""
        self.inputs.append(packed_column(column, memory_bytes(scalar)))
        return (len(self.inputs) - 1) * self.threads * 8

    def _lane_operand(self, lines, register, scalar, kind, column, factor, start) -> None:
        if scalar.kind == "pred":
            lines.append(f"setp.lt.u32 {register}, %lane, {start};")
            return
        width = scalar.bits
        lines.append(f".reg .b{width} %t{register[1:]};")
        scaled = f"%t{register[1:]}"
        if width == 16:
            lines.append(f"cvt.u16.u32 {scaled}, %tid32;")
        elif width == 32:
            lines.append(f"mov.b32 {scaled}, %tid32;")
        else:
            lines.append(f"cvt.u64.u32 {scaled}, %tid32;")
        lines.append(f"mul.lo.s{width} {scaled}, {scaled}, {factor};")
        if kind == "lane":
            number = start - (1 << width) if start >> (width - 1) else start
            lines.append(f"add.s{width} {register}, {scaled}, {number};")
            return
        mask = (1 << width) - 1
        # The uniform part is what lane 0 of the warp would hold at thread 0 of the block.
        base = [(column[i] - i % BLOCK * factor) & mask for i in range(self.threads)]
        _load(lines, register, scalar, "warp", self._file(base, scalar))
        lines.append(f"add.s{width} {register}, {register}, {scaled};")

    @staticmethod
    def _preset(lines: list[str], register: str, scalar: ScalarType) -> None:
        if scalar.kind == "pred":
            lines.append(f"mov.pred {register}, {SENTINEL & 1};")
        elif scalar.bits == 128:
            lines.append(f"mov.b128 {register}, {{%zero64, %zero64}};")
        else:
            bits = max(scalar.bits, 16)
            lines.append(f"mov.b{bits} {register}, {SENTINEL & ((1 << bits) - 1):#x};")

    def text(self) -> str:
        """The kernel's PTX, without the module's header."""
        pointers = []
        for size in (1, 2, 4, 8):
            pointers += [f"mul.wide.u32 %at, %word, {size};", f"add.u64 %warp{size}, %in0, %at;"]
            pointers += [f"mul.wide.u32 %at, %thread, {size};", f"add.u64 %in{size}, %in0, %at;"]
            pointers += [f"add.u64 %out{size}, %out0, %at;"]
        lines = [
            f".visible .entry {self.name}(.param .u64 p_in, .param .u64 p_out)",
            "{",
            ".reg .b64 %in<9>, %out<9>, %warp<9>, %at, %zero64;",
            ".reg .b32 %word, %tid32, %thread, %lane, %ctaid32, %gword;",
            ".reg .pred %g;",
            "mov.b64 %zero64, 0;",
            "ld.param.u64 %in0, [p_in];",
            "ld.param.u64 %out0, [p_out];",
            "mov.u32 %tid32, %tid.x;",
            "mov.u32 %ctaid32, %ctaid.x;",
            f"mad.lo.u32 %thread, %ctaid32, {BLOCK}, %tid32;",
            "and.b32 %lane, %tid32, 31;",
            "sub.u32 %word, %thread, %lane;",
            *pointers,
            "ld.global.b32 %gword, [%in4];",
            "setp.ne.u32 %g, %gword, 0;",
            *self.body,
            "ret;",
            "}",
        ]
        return "\n".join(lines)

    def expected(self, instance: Instance) -> list[tuple[int, ...]]:
        guard = self.guard if instance.guard else [1] * self.threads
        form = instance.form
        kept = []
        for name, scalar in form.all_results:
            if name != "carry":
                kept.append(SENTINEL & ((1 << scalar.bits) - 1))
        rows = reference_results(form, instance.columns, [bool(g) for g in guard])
        result = []
        for i, row in enumerate(rows):
            if guard[i]:
                result.append(row)
            elif form.carry_out:
                result.append((*kept, instance.columns[-1][i] if form.carry_in else 1))
            else:
                result.append(tuple(kept))
        return result


def module_text(kernels: Iterable[Kernel], version: tuple[int, int] | None = None, target: str = "") -> str:
    kernels = list(kernels)
    version = version or max(kernel.version for kernel in kernels)
    sm = max(kernel.sm for kernel in kernels)
    if not target:
        sm = next(known for known in (80, 90, 100, 103, 110, 120, 121, sm) if known >= sm)
        needed = {80: (7, 0), 90: (7, 8), 100: (8, 6), 103: (8, 8), 110: (9, 0), 120: (8, 7), 121: (8, 8)}
        version = max(version, needed.get(sm, version))
        target = f"sm_{sm}"
    head = f".version {version[0]}.{version[1]}\n.target {target}\n.address_size 64\n"
    return head + "\n".join(kernel.text() for kernel in kernels)


def check_on_device(
    gpu, instances: Sequence[Instance], per_kernel: int = 16, prepare: Prepare | None = None
) -> list[str]:
    """Run instances on a weft.Device and return the mismatches (at most four per instance).

    `prepare(form, active, columns)` may change the operands of a collective form, warp by warp, so that they fit the
    lanes that execute it (a member mask, say)."""
    kernels = []
    for at in range(0, len(instances), per_kernel):
        kernel = Kernel(f"forms_{at // per_kernel}")
        for instance in instances[at : at + per_kernel]:
            if prepare is not None:
                guard = kernel.guard if instance.guard else [1] * kernel.threads
                for first in range(0, kernel.threads, LANES):
                    warp = [column[first : first + LANES] for column in instance.columns]
                    prepare(instance.form, [bool(g) for g in guard[first : first + LANES]], warp)
                    for column, part in zip(instance.columns, warp):
                        column[first : first + LANES] = part
            kernel.add(instance)
        kernels.append(kernel)
    failures = []
    module = gpu.load(module_text(kernels))
    for kernel in kernels:
        inputs = gpu.array(np.stack(kernel.inputs))
        out = gpu.array(np.zeros((len(kernel.results), kernel.threads * 8), dtype=np.uint8))
        module[kernel.name][kernel.threads // BLOCK, BLOCK](inputs, out)
        found = out.numpy()
        for instance, first in kernel.members:
            count = len(instance.form.all_results)
            columns = [
                found[slot].view(f"u{kernel.results[slot]}")[: kernel.threads].tolist()
                for slot in range(first, first + count)
            ]
            rows = list(zip(*columns))
            expected = kernel.expected(instance)
            failures += itertools.islice(
                row_mismatches(instance.form, instance.columns, rows, expected, instance.note), 4
            )
    return failures
