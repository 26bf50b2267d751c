"""wmma: loads, stores and multiplications of every shape, type and layout, by compiled code and by the reference, held
against NumPy on whole matrices in memory. The manual leaves the fragments' layout open, so only memory is looked at."""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from matrix_oracle import BITS, expected, random_patterns, same
from matrix_oracle import Form as MmaForm
from matrix_runner import device

from weft.errors import IllegalAddressError, MisalignedAddressError, PtxError
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel

SHAPES = ("m16n16k16", "m8n32k16", "m32n8k16")


@dataclass(frozen=True)
class Form:
    shape: str
    types: tuple[str, str, str, str]  # d, a, b, c
    layouts: tuple[str, str] = ("row", "col")
    memory: tuple[str, str] = ("row", "row")  # layouts of C and D in memory
    saturate: bool = False
    operation: str = ""
    rounding: str = ""

    @property
    def as_mma(self) -> MmaForm:
        return MmaForm(self.shape, self.types, saturate=self.saturate, operation=self.operation)

    @property
    def name(self) -> str:
        d, a, b, c = self.types
        types = f"{d}.{c}" if a == "f16" else ".".join(self.types)
        head = f"wmma.mma.{self.operation}.popc" if self.operation else "wmma.mma"
        tail = (".satfinite" if self.saturate else "") + (f".{self.rounding}" if self.rounding else "")
        return f"{head}.sync.aligned.{'.'.join(self.layouts)}.{self.shape}.{types}{tail}"

    def registers(self, operand: str) -> tuple[int, int]:
        """(count, bits): the table of the manual, "Matrix Fragments for WMMA"."""
        m, n, k = self.as_mma.sizes
        type_ = dict(zip("dabc", self.types))[operand]
        if type_ == "f16":
            return (8, 32) if operand in "ab" else (4, 32)
        elements = {"a": m * k, "b": k * n}.get(operand, m * n) // 32
        return (elements, 64) if type_ == "f64" else (max(1, elements * BITS[type_] // 32), 32)


def forms() -> list[Form]:
    both = list(itertools.product(("row", "col"), repeat=2))
    found = []
    for i, (shape, d, c) in enumerate(itertools.product(SHAPES, ("f16", "f32"), ("f16", "f32"))):
        for j, layouts in enumerate(both):
            found.append(Form(shape, (d, "f16", "f16", c), layouts, both[(i + j) % 4]))
    for i, (shape, layouts) in enumerate(itertools.product(SHAPES, both)):
        found.append(Form(shape, ("f32", "bf16", "bf16", "f32"), layouts, both[i % 4]))
        found.append(Form(shape, ("s32", "s8", "s8", "s32"), layouts, both[i % 4], saturate=i % 2 == 0))
        found.append(Form(shape, ("s32", "u8", "u8", "s32"), layouts, both[i % 4], saturate=i % 2 == 1))
    for i, layouts in enumerate(both):
        found.append(Form("m16n16k8", ("f32", "tf32", "tf32", "f32"), layouts, both[i]))
        found.append(Form("m8n8k4", ("f64",) * 4, layouts, both[i], rounding=("", "rn", "", "rn")[i]))
    for type_, saturate in itertools.product(("s4", "u4"), (False, True)):
        found.append(Form("m8n8k32", ("s32", type_, type_, "s32"), memory=both[2 * saturate], saturate=saturate))
    for operation in ("xor", "and"):
        found.append(Form("m8n8k128", ("s32", "b1", "b1", "s32"), operation=operation))
    return found


class Memory:
    """A matrix of patterns as it lies in memory: bytes with a stride, filled up with rubbish."""

    def __init__(self, patterns: np.ndarray, layout: str, bits: int, extra: int, rng: np.random.Generator):
        self.layout, self.bits = layout, bits
        lines = patterns if layout == "row" else patterns.T
        self.lines, self.length = lines.shape
        self.stride = self.length + extra
        self.bytes = rng.integers(0, 256, self.lines * self.stride * bits // 8, dtype=np.uint8)
        for i, line in enumerate(lines):
            number = sum(int(x) << (j * bits) for j, x in enumerate(line))
            start = i * self.stride * bits // 8
            self.bytes[start : start + self.length * bits // 8] = np.frombuffer(
                number.to_bytes(self.length * bits // 8, "little"), np.uint8
            )

    def patterns(self, data: np.ndarray) -> np.ndarray:
        """The matrix that `data` holds in this arrangement."""
        found = []
        for i in range(self.lines):
            start = i * self.stride * self.bits // 8
            number = int.from_bytes(data[start : start + self.length * self.bits // 8].tobytes(), "little")
            found.append([number >> (j * self.bits) & ((1 << self.bits) - 1) for j in range(self.length)])
        array = np.array(found, np.uint64)
        return array if self.layout == "row" else array.T


def kernel_text(form: Form, strides: dict[str, int | None], space: str) -> str:
    """Loads A, B and C, multiplies, stores D. space: "global", "" (generic), or "shared": all matrices pass through
    shared memory, which the kernel fills and empties byte by byte."""
    lines = [".version 8.3\n.target sm_80\n.address_size 64"]
    if space == "shared":
        lines.append(".extern .shared .align 16 .b8 pool[];")
    lines += [
        ".visible .entry k(.param .u64 p_a, .param .u64 p_b, .param .u64 p_c, .param .u64 p_d, .param .u32 n) {",
        ".reg .b64 %at<4>; .reg .b32 %s<4>, %n, %i, %x, %y; .reg .pred %p; .reg .b64 %g, %h, %i64;",
        *[f"ld.param.u64 %at{i}, [p_{x}];" for i, x in enumerate("abcd")],
        "ld.param.u32 %n, [n];",
    ]
    suffix = f".{space}" if space else ""
    where = {x: f"%at{i}" for i, x in enumerate("abcd")}
    if space == "shared":
        for i in range(4):
            lines.append(_copy(i, True))
            lines.append(f"mov.u32 %s{i}, pool; mad.lo.u32 %s{i}, %n, {i}, %s{i};")
        where = {x: f"%s{i}" for i, x in enumerate("abcd")}
        lines.append("bar.sync 0;")
    for x in "abcd":
        count, bits = form.registers(x)
        lines.append(f".reg .b{bits} %{x}<{count}>;")
    types = dict(zip("dabc", form.types))
    layouts = {"a": form.layouts[0], "b": form.layouts[1], "c": form.memory[0], "d": form.memory[1]}
    for x in "abc":
        stride = "" if strides[x] is None else f", {strides[x]}"
        lines.append(f"wmma.load.{x}.sync.aligned.{layouts[x]}.{form.shape}{suffix}.{types[x]} {_vector(form, x)}, "
                     f"[{where[x]}]{stride};")  # fmt: skip
    lines.append(f"{form.name} {', '.join(_vector(form, x) for x in 'dabc')};")
    stride = "" if strides["d"] is None else f", {strides['d']}"
    lines.append(f"wmma.store.d.sync.aligned.{layouts['d']}.{form.shape}{suffix}.{types['d']} [{where['d']}], "
                 f"{_vector(form, 'd')}{stride};")  # fmt: skip
    if space == "shared":
        lines += ["bar.sync 0;", _copy(3, False)]
    return "\n".join([*lines, "ret; }", ""])


def _copy(i: int, into_shared: bool) -> str:
    """n bytes between array i and its part of shared memory."""
    label = f"L{i}_{int(into_shared)}"
    move = (
        "ld.global.u8 %x, [%g]; st.shared.u8 [%y], %x;"
        if into_shared
        else "ld.shared.u8 %x, [%y]; st.global.u8 [%g], %x;"
    )
    return (
        f"mov.u32 %i, %tid.x;\n{label}: cvt.u64.u32 %i64, %i; add.u64 %g, %at{i}, %i64; mov.u32 %y, pool; "
        f"mad.lo.u32 %y, %n, {i}, %y; add.u32 %y, %y, %i; {move} add.u32 %i, %i, 32; setp.lt.u32 %p, %i, %n; "
        f"@%p bra {label};"
    )


def _vector(form: Form, operand: str) -> str:
    return "{" + ", ".join(f"%{operand}{i}" for i in range(form.registers(operand)[0])) + "}"


def prepare(form: Form, padded: bool):
    """(matrices in memory, strides, expected patterns of D)."""
    rng = np.random.default_rng(zlib.crc32(f"{form} {padded}".encode()))
    m, n, k = form.as_mma.sizes
    types = dict(zip("dabc", form.types))
    shapes = {"a": (m, k), "b": (k, n), "c": (m, n), "d": (m, n)}
    layouts = {"a": form.layouts[0], "b": form.layouts[1], "c": form.memory[0], "d": form.memory[1]}
    patterns = {x: random_patterns(types[x], shapes[x], rng, padded) for x in "abc"}
    patterns["d"] = np.zeros(shapes["d"], np.uint64)
    extra = {1: 128, 4: 32}
    memory = {
        x: Memory(patterns[x], layouts[x], BITS[types[x]], extra.get(BITS[types[x]], 16) if padded else 0, rng)
        for x in "abcd"
    }
    wanted = expected(form.as_mma, *(patterns[x] for x in "abc"))
    return memory, {x: memory[x].stride if padded else None for x in "abcd"}, wanted


def run_compiled(form: Form, memory, strides, space: str) -> np.ndarray:
    size = max(item.bytes.size for item in memory.values()) if space == "shared" else 0
    size = -(-size // 16) * 16
    arrays = []
    for item in memory.values():
        data = np.zeros(max(size, item.bytes.size), np.uint8)
        data[: item.bytes.size] = item.bytes
        arrays.append(device().array(data))
    kernel = device().load(kernel_text(form, strides, space))["k"]
    kernel[1, 32](*arrays, size, shared_bytes=4 * size)
    return arrays[3].numpy()[: memory["d"].bytes.size]


def run_reference(form: Form, memory, strides) -> np.ndarray:
    store = ReferenceMemory()
    places = []
    for item in memory.values():
        places.append(store.allocate(item.bytes.size))
        store.write(places[-1], item.bytes.tobytes())
    params = [*(struct.pack("<Q", p) for p in places), struct.pack("<I", 0)]
    run_kernel(parse_module(kernel_text(form, strides, "")), "k", 1, 32, params, store)
    return np.frombuffer(store.read(places[3], memory["d"].bytes.size), np.uint8)


@pytest.mark.parametrize("form", forms(), ids=lambda form: f"{form.name}-{'.'.join(form.memory)}")
def test_wmma(form):
    for padded, space in ((False, "global"), (True, ("", "shared")[len(form.name) % 2])):
        memory, strides, wanted = prepare(form, padded)
        found = run_compiled(form, memory, strides, space)
        got = memory["d"].patterns(found)
        good = same(form.types[0], got.astype(wanted.dtype), wanted)
        assert good.all(), f"{form.name} {space}: {(~good).sum()} wrong"
        # what lies between the lines stays
        kept = Memory(got, form.memory[1], BITS[form.types[0]], 0, np.random.default_rng(0))
        assert kept.bytes.size <= found.size
        if padded:
            assert _between(memory["d"], found) == _between(memory["d"], memory["d"].bytes)
            assert (run_reference(form, memory, strides) == found).all() or _only_nan_differs(
                form, memory, strides, got
            )


def _between(arrangement: Memory, data: np.ndarray) -> bytes:
    size = arrangement.stride * arrangement.bits // 8
    used = arrangement.length * arrangement.bits // 8
    return data.reshape(arrangement.lines, size)[:, used:].tobytes()


def _only_nan_differs(form: Form, memory, strides, got: np.ndarray) -> bool:
    reference = memory["d"].patterns(run_reference(form, memory, strides))
    kind = f"u{max(8, BITS[form.types[0]]) // 8}"
    return bool(same(form.types[0], got.astype(kind), reference.astype(kind)).all())


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_rounding(mode):
    form = Form("m8n8k4", ("f64",) * 4, rounding=mode)
    memory, strides, nearest = prepare(form, False)
    found = run_compiled(form, memory, strides, "global")
    assert (found == run_reference(form, memory, strides)).all()
    assert (memory["d"].patterns(found) != nearest).any()


FAULT = """.version 8.3
.target sm_80
.address_size 64
.visible .entry k(.param .u64 p_a, .param .u32 n) {{
.reg .b64 %at; .reg .b32 %n, %a<8>;
ld.param.u64 %at, [p_a];
ld.param.u32 %n, [n];
wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {registers}, [%at+{offset}], %n;
wmma.store.d.sync.aligned.row.m16n16k16.global.f16 [%at], {{%a0, %a1, %a2, %a3}}, 16;
ret; }}
"""
ALL = "{%a0, %a1, %a2, %a3, %a4, %a5, %a6, %a7}"


def test_faults():
    array = device().array(np.zeros((16, 16), np.float16))
    with pytest.raises(IllegalAddressError, match=r"32 bytes .*wmma\.load.*PTX line 8"):
        device().load(FAULT.format(registers=ALL, offset=0))["k"][1, 32](array, 24)
    with pytest.raises(MisalignedAddressError, match="wmma.load"):
        device().load(FAULT.format(registers=ALL, offset=1))["k"][1, 32](array, 16)
    with pytest.raises(PtxError, match="8 registers, found 2"):
        device().load(FAULT.format(registers="{%a0, %a1}", offset=0))["k"].compile(32)
