"""Floating-point references against ptxas's constant folding, as test_ptxas_folding.py does for integers.

Only exact forms, and results that are not NaN. Needs ptxas and nvdisasm.
"""

from __future__ import annotations

import pytest
import test_ptxas_folding as folding
from form_harness import forms_of, operand_columns, reference_results

from weft.isa import approximate, convert, floating
from weft.isa.instruction import TABLE, Tolerance

pytestmark = folding.pytestmark
OWN = {module.__name__ for module in (floating, approximate, convert)}
EXACT = (None, Tolerance(nan="any"))
CASES = 12
# opcode -> cases that ptxas 13.5 folds, at least. Fewer would mean that the test has lost its force.
FOLDED = {
    "cvt": 500, "testp": 100, "abs": 40, "neg": 40, "add": 40, "sub": 40, "mul": 40, "min": 25, "max": 25,
}  # fmt: skip


@pytest.mark.parametrize("opcode", FOLDED)
def test_folding(opcode, tmp_path, monkeypatch):
    monkeypatch.setattr(folding, "VERSION", (9, 1))
    monkeypatch.setattr(folding, "TARGET", "sm_100a")
    cases = []
    for entry in TABLE[opcode]:
        if entry.definition.__module__ not in OWN or entry.missing or entry.ptx > (9, 1):
            continue
        for form in forms_of(entry, 24):
            # ptxas wants 8-bit types in registers of other widths.
            if form.tolerance not in EXACT or any(s.bits == 8 for _, s in form.all_sources + form.all_results):
                continue
            columns = operand_columns(form, CASES)
            rows = zip(zip(*columns), reference_results(form, columns))
            cases += [(form, v, r) for v, r in rows if not folding.outside_manual(form, v, r)]
    same = 0
    wrong = []
    for at in range(0, len(cases), 300):
        part = cases[at : at + 300]
        same += len(folding.stored_zeros(part, False, tmp_path))
        for slot in folding.stored_zeros(part, True, tmp_path):
            form, values, result = part[slot]
            wrong.append(f"{form.name} {[hex(v) for v in values]}: ptxas differs from {[hex(v) for v in result]}")
    assert not wrong, "\n".join(wrong[:20])
    assert same >= FOLDED[opcode], f"only {same} of {len(cases)} were folded"
