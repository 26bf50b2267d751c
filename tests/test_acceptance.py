"""Does Weft accept exactly the forms that ptxas accepts?

Every form that the table expands to is given to ptxas (from NVIDIA's nvcc wheel, Triton's wheel or the PATH), at the
newest versions and at the entry's own minimum; mutated forms must be refused by both or by neither.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import random
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from form_harness import IMMEDIATE_OPERANDS, forms_of

import weft.isa  # noqa: F401  fills TABLE
from weft.errors import PtxError, SourceError, UnsupportedError
from weft.isa.instruction import TABLE, Entry, Match, match
from weft.isa.operands import Address, Immediate, Instruction, Pair, Register
from weft.ptx.parser import parse_module
from weft.types import TYPES, ScalarType

# The PTX version that brought each target, for the lower bounds of a header.
TARGET_VERSION = {50: (4, 0), 53: (4, 2), 60: (5, 0), 61: (5, 0), 70: (6, 0), 75: (6, 3), 80: (7, 0), 86: (7, 1),
                  87: (7, 4), 89: (7, 8), 90: (7, 8), 100: (8, 6), 103: (8, 8), 120: (8, 7), 121: (8, 8)}  # fmt: skip
VERSIONS = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0), (3, 1), (3, 2),
            (4, 0), (4, 1), (4, 2), (4, 3), (5, 0), (6, 0), (6, 1), (6, 2), (6, 3), (6, 4), (6, 5),
            *((7, n) for n in range(9)), *((8, n) for n in range(9)), *((9, n) for n in range(10))]  # fmt: skip
# Legal in headers older than any that this ptxas reads.
OLD_FORMS = r"(shfl|vote)\.(?!sync)"
FORMS_PER_ENTRY = 60
MUTANTS_PER_OPCODE = 40


def find_tool(name: str) -> str | None:
    """The path of ptxas or nvdisasm, or None."""
    for package, inside in (("nvidia", f"cu*/bin/{name}"), ("triton", f"backends/nvidia/bin/{name}")):
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            found = sorted(Path(folder).glob(inside))
            if found:
                return str(found[-1])
    return shutil.which(name)


PTXAS = find_tool("ptxas")
pytestmark = pytest.mark.skipif(PTXAS is None, reason="no ptxas: pip install 'weft[acceptance]'")
REGISTERS = {1: "p", 8: "b", 16: "h", 32: "r", 64: "d", 128: "q"}


# Registers of every width, and variables of every space, for the lines that ptxas and Weft are asked about.
def header_lines(version: tuple[int, int], target: str) -> list[str]:
    return [
        f".version {version[0]}.{version[1]}", f".target {target}", ".address_size 64",
        ".global .align 8 .b8 global_variable[64];", ".shared .align 8 .b8 shared_variable[64];",
        ".visible .entry k() {", ".reg .pred %p<9>;", ".reg .b8 %b<9>;", ".reg .b16 %h<9>;", ".reg .b32 %r<9>;",
        ".reg .b64 %d<9>;", ".local .align 8 .b8 local_variable[64];",
        *([".reg .b128 %q<9>;"] if version >= (8, 3) and int(re.search(r"\d+", target).group()) >= 70 else []),
    ]  # fmt: skip


def ask_ptxas(lines: list[str], version: tuple[int, int], target: str, folder: Path) -> dict[int, str]:
    """Line index -> what ptxas says is wrong with it."""
    head = header_lines(version, target)
    source = folder / "k.ptx"
    wrong: dict[int, str] = {}
    while True:
        # ptxas stops after some number of errors, and at a syntax error before it checks anything else: what it
        # refused is taken out, and the rest asked again.
        kept = ["" if i in wrong else line for i, line in enumerate(lines)]
        source.write_text("\n".join([*head, *kept, "ret;", "}", ""]))
        run = subprocess.run(
            [PTXAS, "-arch", target, "-O0", "-o", "/dev/null", str(source)], capture_output=True, text=True
        )
        found = re.findall(r"line (\d+);\s*(?:error|fatal)\s*: (.*)", run.stdout + run.stderr)
        if not found:
            assert run.returncode == 0, run.stderr
            return wrong
        for number, text in found:
            index = int(number) - len(head) - 1
            assert 0 <= index < len(lines) and kept[index], (index, text)
            wrong[index] = text


@functools.cache
def newest_version() -> tuple[int, int]:
    """The newest PTX version that this ptxas reads."""
    text = subprocess.run([PTXAS, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    major, minor = int(release[1]), int(release[2])
    # CUDA 13.x reads PTX 9.x; CUDA 12.9 reads 8.8, 12.8 8.7, and so on.
    return (9, minor) if major >= 13 else (8, max(0, minor - 1))


@functools.cache
def oldest_target() -> int:
    text = subprocess.run([PTXAS, "--help"], capture_output=True, text=True).stdout
    return min(int(n) for n in re.findall(r"'sm_(\d+)'", text))


# ---------------------------------------------------------------- text of a form
def operand_text(entry: Entry, found: Match, paired: bool, sources: int) -> str | None:
    """Registers of the right widths for an entry's operands; None where a type has no register."""
    texts = []
    counter = itertools.count()

    def register(scalar: ScalarType) -> str:
        return f"%{REGISTERS[scalar.bits]}{next(counter)}"

    remaining = sources
    for spec in entry.operands:
        if spec.is_address:
            texts.append("[%d8]")
        elif spec.is_destination:
            text = register(found.operand_type(spec.name))
            if spec.pair and (paired or not spec.pair_optional):
                text += "|" + register(found.operand_type(spec.pair))
            texts.append(text)
        elif remaining:
            remaining -= 1
            constant = (entry.opcode, spec.name) in IMMEDIATE_OPERANDS
            texts.append("96" if constant else register(found.operand_type(spec.name)))
    return ", ".join(texts)


def value_entries() -> list[Entry]:
    """Entries whose operands are plain values, so that their text follows from the signature."""
    return [
        entry for rows in TABLE.values() for entry in rows
        if not entry.raw and not entry.effects & {"control", "barrier"} and entry.reference is not None
        and entry.operands
    ]  # fmt: skip


def form_lines(entry: Entry) -> list[str]:
    if entry.missing:
        return []
    seen = {}
    for form in forms_of(entry, FORMS_PER_ENTRY):
        text = f"{form.opcode} {operand_text(entry, form.match, form.paired, form.source_count)};"
        seen[text] = None
    return list(seen)


# ---------------------------------------------------------------- tests
def test_newest(tmp_path):
    lines = [
        line for entry in value_entries() if entry.ptx <= newest_version() for line in form_lines(entry)
        if not re.match(OLD_FORMS, line)
    ]  # fmt: skip
    assert lines
    for target in ("sm_120a", "sm_100a", "sm_90a"):
        wrong = ask_ptxas(lines, newest_version(), target, tmp_path)
        refused = [f"{lines[i]} {text}" for i, text in wrong.items()]
        lines = [lines[i] for i in wrong]
    assert not refused, "\n".join(refused[:40])


def header_of(ptx: tuple[int, int], sm: int) -> tuple[tuple[int, int], int]:
    """The lowest header for a feature that this ptxas can be asked about."""
    sm = min((known for known in TARGET_VERSION if known >= max(sm, oldest_target())), default=sm)
    return max(ptx, TARGET_VERSION.get(sm, ptx)), sm


def test_minimum(tmp_path):
    """Some form of each entry is accepted at the entry's minimum (modifiers may ask for more), and none below it."""
    at_minimum: dict[tuple, dict[str, Entry]] = {}
    below: dict[tuple, list[str]] = {}
    for entry in value_entries():
        if entry.ptx > newest_version():
            continue
        lines = form_lines(entry)
        version, sm = header_of(entry.ptx, entry.sm)
        at_minimum.setdefault((version, sm), {}).update(dict.fromkeys(lines, entry))
        earlier = VERSIONS[VERSIONS.index(entry.ptx) - 1]
        if version == entry.ptx and earlier >= TARGET_VERSION[sm]:
            below.setdefault((earlier, sm), []).extend(lines)
        lower = max((known for known in TARGET_VERSION if known < entry.sm), default=0)
        if sm == entry.sm and lower >= oldest_target():
            below.setdefault((max(version, TARGET_VERSION[lower]), lower), []).extend(lines)
    problems = []
    for (version, sm), entries in at_minimum.items():
        lines = list(entries)
        wrong = ask_ptxas(lines, version, f"sm_{sm}", tmp_path)
        accepted = {id(entries[line]) for i, line in enumerate(lines) if i not in wrong}
        if sm >= 90:
            # Features of one architecture (`sm_90a`) have no suffix in the table.
            again = ask_ptxas(lines, max(version, (8, 0)), f"sm_{sm}a", tmp_path)
            accepted |= {id(entries[line]) for i, line in enumerate(lines) if i not in again}
        reasons = {
            id(entries[lines[i]]): f"{lines[i]} refused at {version}, sm_{sm}: {text}" for i, text in wrong.items()
        }
        problems += [text for entry, text in reasons.items() if entry not in accepted]
    for (version, sm), lines in below.items():
        wrong = ask_ptxas(lines, version, f"sm_{sm}", tmp_path)
        problems += [f"{line} accepted below its minimum: {version}, sm_{sm}"
                     for i, line in enumerate(lines) if i not in wrong]  # fmt: skip
    assert not problems, "\n".join(problems[:60])


def mutants(opcode: str) -> dict[str, bool]:
    """Text of changed forms of an opcode -> whether Weft accepts it."""
    rows = [entry for entry in value_entries() if entry.opcode == opcode]
    pool = sorted({"sat", "ftz", "relu"}.union(*(slot.choices for entry in rows for slot in entry.modifiers)))
    type_names = [name for name in TYPES if TYPES[name].bits in REGISTERS and TYPES[name].bits > 1 and name != "tf32"]
    rng = random.Random(zlib.crc32(opcode.encode()))
    found: dict[str, bool] = {}
    for _ in range(MUTANTS_PER_OPCODE * 4):
        entry = rng.choice(rows)
        tokens: list[str] = []
        values = {}
        victim = rng.choice(entry.modifiers) if entry.modifiers else None
        for slot in entry.modifiers:
            choice = rng.choice(slot.choices) if not slot.optional or rng.random() < 0.5 else ""
            if slot is victim:
                choice = rng.choice(type_names if set(slot.choices) & set(TYPES) else [*pool, ""])
            values[slot.name] = TYPES.get(choice, choice)
            tokens += [choice] if choice else []
        spec_count = sum(not s.is_destination and not s.is_address for s in entry.operands)
        words = [token for token in tokens if token not in TYPES]
        if len(words) != len(set(words)):
            continue  # ptxas reads a modifier that is written twice
        changed = Match(entry, values, tuple(tokens))
        try:
            text = operand_text(entry, changed, True, spec_count)
        except (AssertionError, KeyError, AttributeError):
            continue
        operands = tuple(_operand(part) for part in text.split(", "))
        accepted = True
        try:
            own = match(Instruction(opcode, tuple(tokens), operands))
            # The change may have made another entry's form, with operands of other widths.
            text = operand_text(own.entry, own, True, spec_count)
        except UnsupportedError:
            pass
        except PtxError:
            accepted = False
        found[f"{'.'.join((opcode, *tokens))} {text};"] = accepted
        if len(found) >= MUTANTS_PER_OPCODE:
            break
    return found


def _operand(text: str):
    if text.startswith("["):
        return Address(Register(text[1:-1]))
    if "|" in text:
        return Pair(*(Register(part) for part in text.split("|")))
    return Register(text) if text.startswith("%") else Immediate(int(text))


# Instructions whose operands are more than values: each line must be read by both.
ACCEPTED_LINES = """
mov.b16 {%b0, %b1}, %h1;
mov.b32 {%b0, %b1, %b2, %b3}, %r1;
mov.b32 {%h0, _}, %r1;
mov.b32 %r1, {%h0, 5};
mov.b64 %d1, {%r0, 0f3f800000};
mov.b64 {%h0, %h1, %h2, %h3}, %d1;
mov.b128 %q0, {%d0, %d1};
mov.b128 {%r0, %r1, %r2, %r3}, %q0;
mov.b128 %q0, %q1;
mov.v2.u32 {%r0, %r1}, {%r2, %r3};
mov.u64 %d0, global_variable;
mov.u64 %d0, global_variable+4;
mov.u32 %r0, shared_variable+4;
mov.u64 %d0, local_variable;
mov.u64 %d0, k;
mov.u32 %r0, %tid.x;
mov.u32 %r0, %laneid;
mov.u64 %d0, %clock64;
mov.u32 %r0, WARP_SZ;
mov.u32 %r0, 128U;
mov.s32 %r0, -5;
mov.s16 %h0, -5;
mov.f32 %r0, 1.5;
mov.f64 %d0, 0d3ff8000000000000;
mov.b32 %r0, 0f3f800000;
mov.pred %p0, -1;
mov.pred %p0, %p1;
cvta.global.u64 %d0, global_variable+4;
cvta.shared.u64 %d0, shared_variable;
cvta.shared::cta.u64 %d0, shared_variable;
cvta.shared::cluster.u64 %d0, %d1;
cvta.local.u64 %d0, local_variable;
cvta.param.u64 %d0, %d1;
cvta.const.u64 %d0, %d1;
cvta.to.global.u64 %d0, %d1;
cvta.to.param.u64 %d0, %d1;
cvta.to.shared.u64 %d0, %d1;
cvta.to.local.u64 %d0, %d1;
isspacep.shared %p0, %d1;
isspacep.shared::cluster %p0, %d1;
isspacep.global %p0, %d1;
isspacep.local %p0, %d1;
setp.gt.s32 _|%p1, %r1, %r2;
setp.gt.s32 %p0|_, %r1, %r2;
setp.gt.and.f16x2 %p0|%p1, %r1, %r2, !%p2;
lop3.or.b32 _|%p0, %r1, %r2, %r3, 0x80, %p1;
lop3.and.b32 %r0|%p0, %r1, %r2, %r3, 0x80, !%p1;
selp.b32 %r0, 1, 0, %p0;
prmt.b32 %r0, %r1, 0, 0x4140U;
"""
REFUSED_LINES = """
mov.f16 %h0, %h1;
mov.b8 %b0, %b1;
mov.f16x2 %r0, %r1;
cvta.global %d0, %d1;
cvta.register.u64 %d0, %d1;
isspacep.u64 %p0, %d1;
setp.gt.s32 %p0, %r1, %r2, %p1;
setp.gt.and.s32 %p0, %r1, %r2;
setp.gt.f16 %p0|%p1, %h1, %h2;
lop3.b32 %r0|%p0, %r1, %r2, %r3, 0x80;
lop3.or.b32 %r0, %r1, %r2, %r3, 0x80, %p1;
add.s32 %r0, %r1;
add.s32 %r0, [%d1], %r2;
selp.b32 %r0|%r1, %r2, %r3, %p0;
"""


def weft_accepts(line: str) -> bool:
    """Whether the parser and the table read a line."""
    text = "\n".join([*header_lines((9, 0), "sm_90a"), line, "ret;", "}", ""])
    try:
        for ins in parse_module(text).functions["k"].body:
            if isinstance(ins, Instruction) and ins.opcode != "ret":
                match(ins)
    except UnsupportedError:
        return True
    except SourceError:
        return False
    return True


@pytest.mark.parametrize("lines, accepted", [(ACCEPTED_LINES, True), (REFUSED_LINES, False)], ids=["legal", "illegal"])
def test_lines(lines, accepted, tmp_path):
    asked = lines.split("\n")[1:-1]
    wrong = ask_ptxas(asked, (9, 0) if newest_version() >= (9, 0) else newest_version(), "sm_90a", tmp_path)
    assert [line for i, line in enumerate(asked) if (i not in wrong) != accepted] == []
    assert [line for line in asked if weft_accepts(line) != accepted] == []


# Forms on which ptxas and the PTX manual differ, or which ptxas reads without the manual naming them; each with why
# Weft does what it does.
KNOWN_DIFFERENCES: dict[str, str] = {
    r"(addc|subc)\.(cc\.)?sat\.s32": "not in the manual, and no compiler writes it",
    r"fma\.r[zmp]\.(relu\.)?bf16": "not in the manual: .rn alone rounds these",
    r"rcp\.r[nzmp]\.ftz\.f64": "not in the manual: .ftz is of .approx alone",
    r"testp\.f(32|64) ": "not in the manual: the property must be named",
}


def test_mutants(tmp_path):
    """A changed form is accepted by both or refused by both."""
    judged = {line: accepted for opcode in sorted({entry.opcode for entry in value_entries()})
              for line, accepted in mutants(opcode).items()}  # fmt: skip
    lines = list(judged)
    refused = set(lines)
    reasons = {}
    for target in ("sm_120a", "sm_100a", "sm_90a"):
        pending = [line for line in lines if line in refused]
        wrong = ask_ptxas(pending, newest_version(), target, tmp_path)
        reasons.update({pending[i]: text for i, text in wrong.items()})
        refused = {pending[i] for i in wrong}
    problems = []
    for line in lines:
        if judged[line] == (line not in refused):
            continue
        if any(re.match(pattern, line) for pattern in (*KNOWN_DIFFERENCES, OLD_FORMS)):
            continue
        problems.append(f"{line} accepted by {'Weft' if judged[line] else 'ptxas'} alone"
                        + (f": {reasons[line]}" if judged[line] else ""))  # fmt: skip
    # A sample in which ptxas refuses nothing, or everything, would test nothing.
    assert 0.1 < len(refused) / len(lines) < 0.95
    assert not problems, f"{len(problems)} of {len(lines)}\n" + "\n".join(problems[:80])
