"""Which tensor-core instructions exist: Weft's table against ptxas, over all shapes, types and modifiers that one might
write, and each entry's own minimum version and target."""

from __future__ import annotations

import itertools
import re

import pytest
from form_harness import modifier_choices
from test_acceptance import PTXAS, TARGET_VERSION, VERSIONS, ask_ptxas, header_of, newest_version

from weft.errors import PtxError, UnsupportedError
from weft.isa.fragments import MultiplyForm, fragment
from weft.isa.instruction import TABLE, Entry, Match, match
from weft.isa.matrix import form_of
from weft.isa.operands import Address, Immediate, Instruction, Register, Vector
from weft.isa.wmma import moved_form

pytestmark = pytest.mark.skipif(PTXAS is None, reason="no ptxas: pip install 'weft[acceptance]'")
OPCODES = ("mma", "wmma", "ldmatrix", "stmatrix", "movmatrix")
TARGETS = ("sm_120a", "sm_100a", "sm_90a", "sm_80")
# What ptxas reads and the manual does not name.
KNOWN_DIFFERENCES = r"wmma\.(load\.c|store\.d)\.sync\.aligned\.(row|col)\.m8n8k(32|128)(\.global)?\.f32 "


def vector(count: int, bits: int, first: int = 0) -> str:
    kind = "d" if bits == 64 else "r"
    return "{" + ", ".join(f"%{kind}{(first + i) % 9}" for i in range(count)) + "}"


def multiply_line(shape, d, a, b, c, layouts="row.col", front="", behind="", sparse="", kind="", scale="", vec=""):
    """A line of mma with the registers that such a form would have; "" where that cannot be said."""
    m, n, k = (int(x) for x in shape[1:].replace("n", " ").replace("k", " ").split())
    left, right = layouts.split(".")
    form = MultiplyForm(m, n, k, a, b, c, d, a_layout=left, b_layout=right, sparse=sparse, kind=kind, scale_type=scale)
    try:
        operands = [_registers(form, x, i) for i, x in enumerate("dabc")]
    except (AssertionError, ValueError, ZeroDivisionError):
        return ""
    words = ["mma" + (f".{sparse}" if sparse else ""), "sync.aligned", shape, layouts]
    words += [f"kind::{kind}"] if kind else []
    words += ["block_scale"] if scale else []
    words += [vec] if vec else []
    words += [x for x in (front, d, a, b, c, scale, behind) if x]
    operands += ["%r0", "0"] if sparse else []
    operands += ["%r1", "{0, 0}", "%r2", "{0, 0}"] if scale else []
    return f"{'.'.join(words)} {', '.join(operands)};"


def _registers(form: MultiplyForm, operand: str, first: int) -> str:
    piece = fragment(form, operand)
    return vector(piece.registers, piece.register_bits, first)


def universe() -> list[str]:
    """Everything that one might think of."""
    shapes = ["m8n8k4", "m8n8k16", "m8n8k32", "m8n8k128", "m16n8k4", "m16n8k8", "m16n8k16", "m16n8k32", "m16n8k64",
              "m16n8k128", "m16n8k256"]  # fmt: skip
    lines = []
    for sparse in ("", "sp", "sp::ordered_metadata"):
        for shape in shapes[4 if sparse else 0 :]:
            more = {"sparse": sparse}
            for d, c in itertools.product(("f16", "f32"), repeat=2):
                for a, b in (("f16", "f16"), ("bf16", "bf16"), ("tf32", "tf32"), ("e4m3", "e5m2"), ("f16", "bf16"),
                             ("e3m2", "e3m2")):  # fmt: skip
                    lines.append(multiply_line(shape, d, a, b, c, **more))
                for a, b in (("e4m3", "e4m3"), ("e3m2", "e2m1"), ("e2m3", "e5m2"), ("e2m1", "e2m1")):
                    lines.append(multiply_line(shape, d, a, b, c, kind="f8f6f4", **more))
                for layouts in ("row.row", "col.col", "col.row"):
                    lines.append(multiply_line(shape, d, "f16", "f16", c, layouts, **more))
            for behind in ("", "rn", "rz", "rm", "rp"):
                lines.append(multiply_line(shape, "f64", "f64", "f64", "f64", behind=behind, **more))
            for a, b in (("s8", "u8"), ("u8", "u8"), ("s4", "u4"), ("u4", "s4"), ("s8", "s4")):
                for front in ("", "satfinite"):
                    lines.append(multiply_line(shape, "s32", a, b, "s32", front=front, **more))
            for operation in ("xor", "and"):
                lines.append(multiply_line(shape, "s32", "b1", "b1", "s32", behind=f"{operation}.popc", **more))
            vectors = ("", "scale_vec::1X", "scale_vec::2X", "scale_vec::4X")
            kinds = ("mxf8f6f4", "mxf4", "mxf4nvf4")
            for kind, scale, vec in itertools.product(kinds, ("ue8m0", "ue4m3"), vectors):
                for a, b in (("e4m3", "e3m2"), ("e2m1", "e2m1")):
                    lines.append(multiply_line(shape, "f32", a, b, "f32", kind=kind, scale=scale, vec=vec, **more))
    for num, trans in itertools.product(("x1", "x2", "x4"), ("", ".trans")):
        for shape, kind in itertools.product(("m8n8", "m16n16", "m8n16", "m16n8"),
                                             ("b16", "b8", "b8x16.b6x16_p32", "b8x16.b4x16_p64")):  # fmt: skip
            count = int(num[1]) * (2 if shape == "m16n16" else 1)
            if count <= 4:
                lines.append(f"ldmatrix.sync.aligned.{shape}.{num}{trans}.shared.{kind} {vector(count, 32)}, [%r8];")
            lines.append(f"stmatrix.sync.aligned.{shape}.{num}{trans}.shared.{kind} [%r8], {vector(int(num[1]), 32)};")
    lines += fragment_lines()
    lines += [f"movmatrix.sync.aligned.{x} %r0, %r1;" for x in ("m8n8.trans.b16", "m8n8.b16", "m8n8.trans.b8")]
    return [line for line in dict.fromkeys(lines) if line]


WMMA_TYPES = (("f16", "f16"), ("f16", "f32"), ("bf16", "f32"), ("bf16", "bf16"), ("tf32", "f32"), ("f64", "f64"),
              ("s8", "s32"), ("u8", "s32"), ("s4", "s32"), ("u4", "s32"), ("b1", "s32"))  # fmt: skip


def is_misread(shape: str, inner: str, total: str) -> bool:
    """Illegal pairs of shape and type of which ptxas complains at the wrong line."""
    if shape == "m16n16k8" and total == "s32":
        return True
    wrong = {"f64": ("m16n16k16", "m8n32k16", "m32n8k16", "m16n16k8"), "f16": ("m16n16k8", "m8n8k32", "m8n8k128")}
    return shape in wrong.get(inner, ())


def fragment_lines(misread: bool = False) -> list[str]:
    """Loads, stores and multiplications of wmma, of all shapes with all types."""
    lines = []
    shapes = ("m16n16k16", "m8n32k16", "m32n8k16", "m16n16k8", "m8n8k4", "m8n8k32", "m8n8k128")
    for shape, (inner, total) in itertools.product(shapes, WMMA_TYPES):
        if is_misread(shape, inner, total) != misread:
            continue
        m, n, k = (int(x) for x in shape[1:].replace("n", " ").replace("k", " ").split())
        form = MultiplyForm(m, n, k, inner, inner, total, total, family="wmma")
        try:
            a, b, c, d = (_registers(form, x, i) for i, x in enumerate("abcd"))
        except (AssertionError, ValueError, ZeroDivisionError):
            continue
        for layout, space in itertools.product(("row", "col"), ("", ".global", ".local")):
            for name, type_, registers in (("a", inner, a), ("b", inner, b), ("c", total, c)):
                head = f"wmma.load.{name}.sync.aligned.{layout}.{shape}{space}.{type_}"
                lines += [f"{head} {registers}, [%d8];", f"{head} {registers}, [%d8], %r8;"]
            lines.append(f"wmma.store.d.sync.aligned.{layout}.{shape}{space}.{total} [%d8], {d}, 32;")
        for layouts in ("row.row", "row.col", "col.row", "col.col"):
            types = f"{total}.{total}" if inner == "f16" else f"{total}.{inner}.{inner}.{total}"
            for front, behind in (("", ""), ("", ".satfinite"), ("", ".rn"), ("", ".rp"), (".xor.popc", ""),
                                  (".and.popc", "")):  # fmt: skip
                head = f"wmma.mma{front}.sync.aligned.{layouts}.{shape}.{types}{behind}"
                lines.append(f"{head} {d}, {a}, {b}, {c};")
    return lines


def accepted(line: str) -> bool:
    """Whether Weft's table has the form of a line."""
    name, _, tail = line.rstrip(";").partition(" ")
    opcode, *tokens = name.split(".")
    operands = []
    for part in _split(tail):
        if part[0] == "{":
            operands.append(Vector(tuple(Register(x.strip()) for x in part[1:-1].split(","))))
        elif part[0] == "[":
            operands.append(Address(Register(part[1:-1])))
        else:
            operands.append(Register(part) if part[0] == "%" else Immediate(int(part)))
    try:
        match(Instruction(opcode, tuple(tokens), tuple(operands)))
    except UnsupportedError:
        return False
    except PtxError:
        return False
    return True


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def test_every_form(tmp_path):
    lines = universe()
    refused = set(lines)
    reasons = {}
    for target in TARGETS:
        pending = [line for line in lines if line in refused]
        wrong = ask_ptxas(pending, newest_version(), target, tmp_path)
        refused = {pending[i] for i in wrong}
        reasons.update({pending[i]: text for i, text in wrong.items()})
    problems = []
    for line in lines:
        if accepted(line) == (line in refused) and not re.match(KNOWN_DIFFERENCES, line):
            who = "Weft" if line in refused else "ptxas"
            problems.append(f"{line} accepted by {who} alone {reasons.get(line, '')}")
    assert 150 < len(lines) - len(refused) < len(lines) / 2
    assert not problems, f"{len(problems)}\n" + "\n".join(problems[:60])


def test_what_ptxas_misreads():
    inner = ("f16", "f64", "s8", "u8", "s4", "u4", "b1")
    lines = [x for x in fragment_lines(misread=True) if any(f".{t}" in x for t in inner) and ".c." not in x]
    lines = [x for x in lines if "wmma.store" not in x or ".f64" in x]
    assert lines and not [line for line in lines if accepted(line)]


# ---------------------------------------------------------------- entries
def entry_lines(entry: Entry, limit: int = 12) -> list[str]:
    """Some lines of an entry."""
    lines = []
    for tokens in itertools.islice(modifier_choices(entry), 400):
        values = _values(entry, tokens)
        if values is None or "shared::cta" in tokens:
            continue  # ::cta needs a version of its own
        lines.append(f"{'.'.join((entry.opcode, *tokens))} {_operands(entry, values)};")
    step = max(1, len(lines) // limit)
    return lines[::step]


def _values(entry: Entry, tokens: tuple[str, ...]) -> Match | None:
    operands = tuple(
        Address(Register("%a")) if x.is_address else Register("%a") for x in entry.operands if not x.optional
    )
    try:
        found = match(Instruction(entry.opcode, tokens, operands))
    except PtxError:
        return None
    return found if found.entry is entry else None


def _operands(entry: Entry, m: Match) -> str:
    texts = []
    for i, spec in enumerate(entry.operands):
        if spec.optional:
            continue
        if spec.is_address:
            texts.append("[%d8]")
        elif entry.opcode == "movmatrix" or spec.name in ("e", "scale_a", "scale_b"):
            texts.append(f"%r{i}")
        elif spec.name in ("select_a", "select_b"):
            texts.append("{0, 0}")
        elif spec.name == "f":
            texts.append("0")
        elif entry.opcode in ("ldmatrix", "stmatrix"):
            texts.append(vector(int(m.num[1]) * (2 if m.shape == "m16n16" else 1), 32))
        elif entry.opcode == "wmma" and "mma" not in m.tokens:
            texts.append(_registers(*moved_form(m), 0))
        else:
            texts.append(_registers(form_of(m), spec.name, i))
    return ", ".join(texts)


def test_entries_at_their_minimum(tmp_path):
    """Every line of an entry is legal at the entry's version and target, and none is below them."""
    asked: dict[tuple, list[str]] = {}
    below: dict[tuple, list[str]] = {}
    for entry in (entry for opcode in OPCODES for entry in TABLE[opcode]):
        if entry.ptx > newest_version():
            continue
        lines = entry_lines(entry)
        assert lines, entry.signature
        version, sm = header_of(entry.ptx, entry.sm)
        asked.setdefault((version, sm), []).extend(lines)
        earlier = VERSIONS[VERSIONS.index(entry.ptx) - 1]
        if version == entry.ptx and earlier >= TARGET_VERSION[sm]:
            below.setdefault((earlier, f"sm_{sm}"), []).extend(lines)
        lower = max((known for known in TARGET_VERSION if known < entry.sm), default=0)
        if sm == entry.sm and lower >= 80:
            below.setdefault((max(version, TARGET_VERSION[lower]), f"sm_{lower}"), []).extend(lines)
    problems = []
    for (version, sm), lines in asked.items():
        # forms of one architecture (sm_120a) have no suffix in the table
        target = f"sm_{sm}a" if sm >= 90 else f"sm_{sm}"
        wrong = ask_ptxas(lines, max(version, (8, 0)) if sm >= 90 else version, target, tmp_path)
        problems += [f"{lines[i]} refused at {version}, {target}: {text}" for i, text in wrong.items()]
    for (version, target), lines in below.items():
        wrong = ask_ptxas(lines, version, target, tmp_path)
        problems += [f"{x} accepted at {version}, {target}" for i, x in enumerate(lines) if i not in wrong]
    assert not problems, f"{len(problems)}\n" + "\n".join(problems[:60])
