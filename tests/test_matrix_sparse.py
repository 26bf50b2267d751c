"""mma.sp and mma.sp::ordered_metadata: every form by compiled code, by the reference, and by NumPy on the dense matrix
that the metadata describe."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from matrix_oracle import Form, expected, random_columns, to_metadata, to_registers
from matrix_runner import device, run_compiled, run_reference
from test_matrix_multiply import SMALL, check, inputs, scale_values, text_of

from weft.errors import PtxError

ORDERED = "sp::ordered_metadata"


def sparse_forms() -> list[Form]:
    forms = []
    for sparse in ("sp", ORDERED):
        for shape in ("m16n8k16", "m16n8k32"):
            forms += [Form(shape, (t, "f16", "f16", t), sparse=sparse) for t in ("f16", "f32")]
            forms.append(Form(shape, ("f32", "bf16", "bf16", "f32"), sparse=sparse))
        forms += [Form(s, ("f32", "tf32", "tf32", "f32"), sparse=sparse) for s in ("m16n8k8", "m16n8k16")]
        forms += [
            Form("m16n8k64", ("f32", a, b, "f32"), sparse=sparse) for a, b in (("e4m3", "e5m2"), ("e5m2", "e4m3"))
        ]
        for types, shapes in ((("s8", "u8"), ("m16n8k32", "m16n8k64")), (("s4", "u4"), ("m16n8k64", "m16n8k128"))):
            for (a, b), shape in itertools.product(itertools.product(types, repeat=2), shapes):
                forms.append(Form(shape, ("s32", a, b, "s32"), sparse=sparse, saturate=a == b))
    forms.append(Form("m16n8k64", ("f16", "e4m3", "e5m2", "f16"), sparse=ORDERED))
    pairs = list(itertools.product(SMALL, repeat=2))[::6]
    forms += [Form("m16n8k64", (t, a, b, t), kind="f8f6f4", sparse=ORDERED)
              for t, (a, b) in zip(itertools.cycle(("f16", "f32")), pairs)]  # fmt: skip
    return forms


def scaled_forms() -> list[Form]:
    forms = [
        Form("m16n8k64", ("f32", a, b, "f32"), kind="mxf8f6f4", scale_type="ue8m0", sparse=ORDERED, scale_vector=vector)
        for (a, b), vector in ((("e4m3", "e2m1"), 0), (("e3m2", "e5m2"), 1))
    ]
    for kind, vector, scale in (("mxf4", 0, "ue8m0"), ("mxf4nvf4", 2, "ue8m0"), ("mxf4nvf4", 4, "ue8m0"),
                                ("mxf4nvf4", 4, "ue4m3")):  # fmt: skip
        forms.append(Form("m16n8k128", ("f32", "e2m1", "e2m1", "f32"), kind=kind, scale_type=scale, scale_vector=vector,
                          sparse=ORDERED))  # fmt: skip
    return forms


def selectors_of(form: Form) -> range:
    """Legal sparsity selectors, as the manual lists them for shapes and types."""
    by_threads = {
        ("m16n8k16", 16): 4, ("m16n8k32", 16): 2, ("m16n8k8", 32): 4, ("m16n8k16", 32): 2, ("m16n8k32", 8): 2,
        ("m16n8k64", 4): 2, ("m16n8k64", 8): 1, ("m16n8k128", 4): 1,
    }  # fmt: skip
    return range(by_threads[form.shape, form.container("a")])


@pytest.mark.parametrize("form", sparse_forms(), ids=lambda form: form.name)
def test_sparse(form):
    rng = np.random.default_rng(zlib.crc32(form.name.encode()))
    for selector in selectors_of(form):
        text, count, width = text_of(form, 1, f", %e0_0, {selector}")
        given = inputs(form, selector == 0)
        columns = random_columns(form, rng)
        sources = [*(to_registers(form, x, given[x]) for x in "abc"), to_metadata(form, columns, selector)]
        wanted = expected(form, *(given[x][0] for x in "abc"), columns)[None]
        check(form, run_compiled(text, sources, count, width), wanted, f"compiled, selector {selector}")
        if selector == 0:
            check(form, run_reference(text, sources, count, width), wanted, "reference")


@pytest.mark.parametrize("form", scaled_forms(), ids=lambda form: form.name)
def test_sparse_block_scaling(form):
    rng = np.random.default_rng(zlib.crc32(form.name.encode()))
    text, count, width = text_of(form, 3, ", %e0_0, 0, %e1_0, {0, 1}, %e2_0, {0, 2}")
    given = inputs(form, True)
    columns = random_columns(form, rng)
    limits = (118, 137) if form.scale_type == "ue8m0" else (0, 127)
    by_row, by_column = rng.integers(*limits, (16, form.blocks)), rng.integers(*limits, (8, form.blocks))
    words = np.zeros((2, 32, 4), np.uint8)
    for g in range(8):
        words[0, 4 * g + 2, : form.blocks] = by_row[g]
        words[0, 4 * g + 3, : form.blocks] = by_row[g + 8]
        words[1, 4 * g + 2, : form.blocks] = by_column[g]
    scales = (scale_values(form.scale_type, by_row), scale_values(form.scale_type, by_column).T)
    sources = [*(to_registers(form, x, given[x]) for x in "abc"), to_metadata(form, columns, 0), words[0], words[1]]
    wanted = expected(form, *(given[x][0] for x in "abc"), columns, scales)[None]
    check(form, run_compiled(text, sources, count, width), wanted, "compiled")
    check(form, run_reference(text, sources, count, width), wanted, "reference")


@pytest.mark.parametrize(
    "selector, reason", [("2", "names threads that do not exist"), ("%lane", "must be a constant")]
)
def test_bad_selector(selector, reason):
    form = Form("m16n8k32", ("f32", "f16", "f16", "f32"), sparse="sp")
    text, _, _ = text_of(form, 1, f", %e0_0, {selector}")
    with pytest.raises(PtxError, match=reason):
        device().load(text)["k"].compile(32)
