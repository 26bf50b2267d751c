"""mma.sync, dense: every form by compiled code, by the reference, and by an oracle of its own in NumPy."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from matrix_oracle import (
    BITS,
    Form,
    element_count,
    expected,
    from_registers,
    random_patterns,
    same,
    shape_of,
    to_registers,
    values_of,
)
from matrix_runner import device, kernel_text, run_compiled, run_reference

import weft
from weft import settings
from weft.errors import PtxError

HALVES = ("f16", "f32")
SMALL = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")


def dense_forms() -> list[Form]:
    """All forms, but a sample of the pairs of small types."""
    forms = []
    for layouts in ("row.row", "row.col", "col.row", "col.col"):
        for d, c in (("f16", "f16"), ("f32", "f16"), ("f32", "f32")):
            forms.append(Form("m8n8k4", (d, "f16", "f16", c), layouts))
    for shape in ("m16n8k8", "m16n8k16"):
        forms += [Form(shape, (t, "f16", "f16", t)) for t in HALVES]
        forms.append(Form(shape, ("f32", "bf16", "bf16", "f32")))
    forms += [Form(shape, ("f32", "tf32", "tf32", "f32")) for shape in ("m16n8k4", "m16n8k8")]
    for shape in ("m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"):
        forms.append(Form(shape, ("f64",) * 4))
    for shape, t, (a, b) in itertools.product(
        ("m16n8k16", "m16n8k32"), HALVES, itertools.product(("e4m3", "e5m2"), repeat=2)
    ):
        forms.append(Form(shape, (t, a, b, t)))
    for types, shapes in ((("s8", "u8"), ("m8n8k16", "m16n8k16", "m16n8k32")),
                          (("s4", "u4"), ("m8n8k32", "m16n8k32", "m16n8k64"))):  # fmt: skip
        for (a, b), shape, saturate in itertools.product(itertools.product(types, repeat=2), shapes, (False, True)):
            forms.append(Form(shape, ("s32", a, b, "s32"), saturate=saturate))
    for shape, operation in itertools.product(("m8n8k128", "m16n8k128", "m16n8k256"), ("xor", "and")):
        forms.append(Form(shape, ("s32", "b1", "b1", "s32"), operation=operation))
    pairs = list(itertools.product(SMALL, repeat=2))[::4]
    forms += [Form("m16n8k32", (t, a, b, t), kind="f8f6f4") for t, (a, b) in zip(itertools.cycle(HALVES), pairs)]
    forms.append(Form("m16n8k16", ("f32", "e4m3", "e5m2", "f32"), kind="f8f6f4"))
    return forms


def scaled_forms() -> list[Form]:
    forms = [
        Form("m16n8k32", ("f32", a, b, "f32"), kind="mxf8f6f4", scale_type="ue8m0", scale_vector=vector)
        for vector, (a, b) in zip(itertools.cycle((0, 1)), list(itertools.product(SMALL, repeat=2))[::3])
    ]
    for kind, vector, scale in (("mxf4", 0, "ue8m0"), ("mxf4", 2, "ue8m0"), ("mxf4nvf4", 2, "ue8m0"),
                                ("mxf4nvf4", 4, "ue8m0"), ("mxf4nvf4", 4, "ue4m3")):  # fmt: skip
        forms.append(Form("m16n8k64", ("f32", "e2m1", "e2m1", "f32"), kind=kind, scale_type=scale, scale_vector=vector))
    return forms


def text_of(form: Form, extras: int = 0, tail: str = "") -> tuple[str, int, int]:
    """(kernel, registers of D, their bits)."""
    sources = []
    for operand in "abc":
        bits = form.container(operand)
        width = 64 if bits == 64 else 32
        sources.append((-(-element_count(form, operand) * bits // width), width))
    width = 64 if form.types[0] == "f64" else 32
    count = -(-element_count(form, "d") * BITS[form.types[0]] // width)
    return kernel_text(form.name, count, [*sources, *[(1, 32)] * extras], width, tail, "sm_120a"), count, width


def inputs(form: Form, edges: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(zlib.crc32(f"{form.name} {edges}".encode()))
    types = dict(zip("dabc", form.types))
    return {
        x: random_patterns(types[x], (form.parts, *shape_of(form, x)), rng, edges, form.kind if x in "ab" else "")
        for x in "abc"
    }


def check(form: Form, found: np.ndarray, wanted: np.ndarray, what: str) -> None:
    got = from_registers(form, "d", found)
    good = same(form.types[0], got, wanted.astype(got.dtype))
    if not good.all():
        at = tuple(np.argwhere(~good)[0])
        raise AssertionError(f"{form.name}, {what}: {(~good).sum()} wrong, at {at}: {got[at]:#x}, not {wanted[at]:#x}")


@pytest.mark.parametrize("form", dense_forms(), ids=lambda form: form.name)
def test_dense(form):
    text, count, width = text_of(form)
    for edges in (False, True):
        given = inputs(form, edges)
        sources = [to_registers(form, x, given[x]) for x in "abc"]
        wanted = np.stack([expected(form, *(given[x][part] for x in "abc")) for part in range(form.parts)])
        check(form, run_compiled(text, sources, count, width), wanted, f"compiled, edges {edges}")
        if edges or form.types[0] == "f64":
            check(form, run_reference(text, sources, count, width), wanted, f"reference, edges {edges}")


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("shape", ["m8n8k4", "m16n8k16"])
def test_rounding_of_doubles(shape, mode):
    form = Form(shape, ("f64",) * 4, rounding=mode)
    text, count, width = text_of(form)
    given = inputs(form, False)
    sources = [to_registers(form, x, given[x]) for x in "abc"]
    found = run_compiled(text, sources, count, width)
    assert (found == run_reference(text, sources, count, width)).all()
    exact = values_of("f64", given["a"][0]).astype(np.longdouble) @ values_of("f64", given["b"][0]).astype(
        np.longdouble
    )
    exact += values_of("f64", given["c"][0])
    error = from_registers(form, "d", found)[0].view(np.float64) - exact
    towards = {"rm": (error <= 1e-17).all(), "rp": (error >= -1e-17).all()}
    assert towards.get(mode, np.abs(error).max() < 1e-13)


def scale_values(scale: str, patterns: np.ndarray) -> np.ndarray:
    if scale == "ue8m0":
        return np.where(patterns == 255, np.nan, 2.0 ** (patterns.astype(np.float64) - 127))
    return values_of("e4m3", patterns & 0x7F)


@pytest.mark.parametrize("form", scaled_forms(), ids=lambda form: form.name)
def test_block_scaling(form):
    rng = np.random.default_rng(zlib.crc32(form.name.encode()))
    blocks = form.blocks
    for byte_a, thread_a, byte_b, thread_b in ((0, 0, 0, 0), (4 - blocks, 1, 0, 3), (0, 1, 4 - blocks, 2)):
        registers = byte_b == 0  # selectors in registers are legal too
        tail = f", %e0_0, {{{byte_a}, {thread_a}}}, %e1_0, {{{byte_b}, {thread_b}}}"
        if registers:
            tail = ", %e0_0, {%sel0, %sel1}, %e1_0, {%sel2, %sel3}"
        text, count, width = text_of(form, 2, tail)
        if registers:
            chosen = enumerate((byte_a, thread_a, byte_b, thread_b))
            selectors = " ".join(f"mov.b16 %sel{i}, {x};" for i, x in chosen)
            text = text.replace("mov.u32 %lane", f".reg .b16 %sel<4>; {selectors} mov.u32 %lane", 1)
        given = inputs(form, True)
        limits = (118, 137) if form.scale_type == "ue8m0" else (0, 127)
        by_row = rng.integers(*limits, (16, blocks))
        by_column = rng.integers(*limits, (8, blocks))
        if byte_a == 0 and form.scale_type == "ue8m0":
            by_row[3, 0] = 255
        words = [rng.integers(0, 2**32, 32, dtype=np.uint32) for _ in range(2)]
        # who holds which scale: measured on sm_120, and the manual's figures
        for lane in range(32):
            g, t = lane >> 2, lane % 4
            for block in range(blocks):
                if t // 2 == thread_a:
                    _set_byte(words[0], lane, byte_a + block, by_row[g + 8 * (t % 2), block])
                if t == thread_b:
                    _set_byte(words[1], lane, byte_b + block, by_column[g, block])
        scales = (scale_values(form.scale_type, by_row), scale_values(form.scale_type, by_column).T)
        sources = [*(to_registers(form, x, given[x]) for x in "abc"), *words]
        wanted = expected(form, *(given[x][0] for x in "abc"), scales=scales)[None]
        check(form, run_compiled(text, sources, count, width), wanted, f"compiled {byte_a} {thread_a} {thread_b}")
        check(form, run_reference(text, sources, count, width), wanted, f"reference {byte_a} {thread_a} {thread_b}")


def _set_byte(words: np.ndarray, lane: int, byte: int, value: int) -> None:
    word = int(words[lane]) & ~(0xFF << 8 * byte)
    words[lane] = word | int(value) << 8 * byte


@pytest.mark.parametrize(
    "form",
    [
        Form("m16n8k16", ("f32", "f16", "f16", "f32")),
        Form("m16n8k8", ("f32", "tf32", "tf32", "f32")),
        Form("m16n8k16", ("f64",) * 4),
        Form("m16n8k32", ("s32", "s8", "u8", "s32"), saturate=True),
        Form("m16n8k256", ("s32", "b1", "b1", "s32"), operation="and"),
    ],
    ids=lambda form: form.name,
)
def test_without_wide_vectors(form):
    """The same on a target whose vectors are half as wide."""
    before = settings.current().target
    settings.configure(target="avx2")
    try:
        gpu = weft.Device("h100")
        text, count, width = text_of(form)
        given = inputs(form, True)
        wanted = expected(form, *(given[x][0] for x in "abc"))[None]
        found = run_compiled(text, [to_registers(form, x, given[x]) for x in "abc"], count, width, gpu)
    finally:
        settings.configure(target=before)
    check(form, found, wanted, "avx2")


def test_wrong_number_of_registers():
    text, _, _ = text_of(Form("m16n8k16", ("f32", "f16", "f16", "f32")))
    with pytest.raises(PtxError, match="operand b must have 2 registers, found 1"):
        device().load(text.replace("{%b0, %b1}", "{%b0}"))["k"].compile(32)


def test_many_in_a_row():
    """A chain of accumulations in a loop, with the result of one as the next one's C."""
    form = Form("m16n8k16", ("f32", "f16", "f16", "f32"))
    text, count, width = text_of(form)
    line = next(x for x in text.splitlines() if x.startswith("mma."))
    chained = line.replace("{%c0, %c1, %c2, %c3}", "{%d0, %d1, %d2, %d3}")
    body = f"{line}\nmov.u32 %lane, 5;\nL: {chained}\nsub.u32 %lane, %lane, 1; setp.ne.u32 %p, %lane, 0; @%p bra L;"
    text = text.replace(line, body).replace(".reg .b32 %lane;", ".reg .b32 %lane; .reg .pred %p;")
    given = inputs(form, False)
    total = given["c"][0]
    for _ in range(6):
        total = expected(form, given["a"][0], given["b"][0], total)
    found = run_compiled(text, [to_registers(form, x, given[x]) for x in "abc"], count, width)
    check(form, found, total[None], "compiled")
