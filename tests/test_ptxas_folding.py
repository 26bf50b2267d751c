"""References against ptxas's own constant folding: an oracle for what the hardware computes.

Each case is an instruction on constants, a comparison of its result with the reference's, and a store of the outcome.
Where ptxas folds the instruction, the store is of a constant zero, or of a constant one if ptxas computes something
else; where it does not, the case says nothing (the test counts those). Needs ptxas and nvdisasm.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from form_harness import Form, forms_of, is_nan, operand_columns, reference_results, register_type
from test_acceptance import PTXAS, find_tool

import weft.isa  # noqa: F401  fills TABLE
from weft.isa.instruction import TABLE

NVDISASM = find_tool("nvdisasm")
pytestmark = pytest.mark.skipif(
    PTXAS is None or NVDISASM is None, reason="no ptxas or nvdisasm: pip install 'weft[acceptance]'"
)
VERSION, TARGET = (8, 6), "sm_90a"
CASES = 8
# opcode -> part of its cases that ptxas 13.5 folds, at least. Fewer would mean that the test has lost its force.
FOLDED = {
    "add": 0.5, "sub": 0.5, "addc": 0.2, "subc": 0.2, "mul": 0.8, "mad": 0.4, "mul24": 1.0, "mad24": 1.0, "abs": 1.0,
    "neg": 1.0, "min": 0.5, "max": 0.5, "popc": 1.0, "clz": 1.0, "bfind": 1.0, "fns": 1.0, "brev": 1.0, "bfe": 0.7,
    "bfi": 0.8, "and": 0.5, "or": 0.5, "xor": 0.5, "not": 0.5, "cnot": 1.0, "shf": 1.0, "shl": 1.0, "shr": 1.0,
    "setp": 0.4, "set": 0.3, "selp": 1.0, "slct": 1.0,
}  # fmt: skip


def outside_manual(form: Form, values: tuple[int, ...], results: tuple[int, ...]) -> bool:
    """Operands for which the manual leaves the result open: ptxas folds some otherwise than it computes them."""
    if any(scalar.kind == "f" and is_nan(value, scalar) for value, (_, scalar) in zip(results, form.all_results)):
        return True
    if form.entry.opcode in ("bfe", "bfi"):
        return any(value > 255 for value in values[-2:])
    if form.entry.opcode == "fns":
        return values[1] > 31
    return False


def case_lines(form: Form, values: tuple[int, ...], expected: tuple[int, ...], slot: int, inverted: bool) -> list[str]:
    lines = ["{", ".reg .pred %bad, %any;", ".reg .b32 %word;", "mov.pred %any, 0;"]
    names = []
    constants = dict(form.immediates)
    for index, ((name, scalar), value) in enumerate(zip(form.all_sources, values)):
        if name in constants:
            names.append(str(value))
            continue
        names.append(f"%s{index}")
        lines.append(f".reg .{register_type(scalar)} %s{index};")
        lines.append(f"mov.{'pred' if scalar.kind == 'pred' else f'b{scalar.bits}'} %s{index}, {value:#x};")
    operands, results = [], []
    sources = iter(names[: form.source_count])
    for spec in form.entry.operands:
        if not spec.is_destination:
            operands.append(next(sources, None))
            continue
        pair = [spec.name, spec.pair] if spec.pair and (form.paired or not spec.pair_optional) else [spec.name]
        for name in pair:
            scalar = form.match.operand_type(name)
            lines.append(f".reg .{register_type(scalar)} %o_{name};")
            results.append((f"%o_{name}", scalar.bits))
        operands.append("|".join(f"%o_{name}" for name in pair))
    if form.carry_in:
        lines.append(f"add.cc.u32 %word, {values[-1]}, 0xffffffff;")
    lines.append(f"{form.opcode} {', '.join(o for o in operands if o is not None)};")
    if form.carry_out:
        lines += [".reg .b32 %carry;", "addc.u32 %carry, 0, 0;"]
        results.append(("%carry", 32))
    for (register, bits), value in zip(results, expected):
        if bits == 1:
            lines += [f"selp.b32 %word, 1, 0, {register};", f"setp.ne.u32 %bad, %word, {value};"]
        else:
            lines.append(f"setp.ne.b{bits} %bad, {register}, {value:#x};")
        lines.append("or.pred %any, %any, %bad;")
    right, wrong = (1, 0) if inverted else (0, 1)
    return [*lines, f"selp.b32 %word, {wrong}, {right}, %any;", f"st.global.b32 [%out+{8 * slot + 8}], %word;", "}"]


def stored_zeros(cases: list, inverted: bool, folder: Path) -> set[int]:
    """The cases whose compiled code stores the constant zero."""
    lines = [f".version {VERSION[0]}.{VERSION[1]}", f".target {TARGET}", ".address_size 64",
             ".visible .entry k(.param .u64 p) {", ".reg .b64 %out;", "ld.param.u64 %out, [p];"]  # fmt: skip
    for slot, (form, values, expected) in enumerate(cases):
        lines += case_lines(form, values, expected, slot, inverted)
    source, binary = folder / "k.ptx", folder / "k.cubin"
    source.write_text("\n".join([*lines, "ret;", "}", ""]))
    subprocess.run([PTXAS, "-arch", TARGET, "-O3", "-o", str(binary), str(source)], check=True, capture_output=True)
    text = subprocess.run([NVDISASM, "-c", str(binary)], check=True, capture_output=True, text=True).stdout
    stores = dict(re.findall(r"STG\.E\S* .*?\+0x([0-9a-f]+)\], (\w+)", text))
    assert len(stores) == len(cases), (len(stores), len(cases))
    return {int(offset, 16) // 8 - 1 for offset, register in stores.items() if register == "RZ"}


@pytest.mark.parametrize("opcode", FOLDED)
def test_folding(opcode, tmp_path):
    cases = []
    for entry in TABLE[opcode]:
        if entry.raw or entry.missing or entry.tolerance or entry.sm > 90 or entry.ptx > VERSION:
            continue
        for form in forms_of(entry, 6 if opcode in ("set", "setp") else 12):
            if any(scalar.kind == "f" and scalar.name != "f32" for _, scalar in form.destinations):
                continue
            columns = operand_columns(form, CASES)
            rows = zip(zip(*columns), reference_results(form, columns))
            cases += [(form, values, result) for values, result in rows if not outside_manual(form, values, result)]
    same = different = 0
    wrong = []
    for at in range(0, len(cases), 300):
        part = cases[at : at + 300]
        same += len(stored_zeros(part, False, tmp_path))
        for slot in stored_zeros(part, True, tmp_path):
            form, values, result = part[slot]
            different += 1
            wrong.append(f"{form.name} {[hex(v) for v in values]}: ptxas differs from {[hex(v) for v in result]}")
    assert not wrong, "\n".join(wrong[:20])
    assert same >= 0.9 * FOLDED[opcode] * len(cases), f"only {same} of {len(cases)} were folded"
