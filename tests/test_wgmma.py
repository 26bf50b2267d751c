"""wgmma against NumPy on numbers whose sums are exact, and against the interpreter bit for bit on others: every type,
layout and swizzle; descriptors that reach too far; grouped multiplications; the register-level bookkeeping around."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from cuda_cases import device, kernels
from test_acceptance import PTXAS, ask_ptxas, newest_version
from wgmma_cases import BITS, THREADS, Case, Layout, k_major, mn_major

import weft
from weft.codegen.jit import Target
from weft.errors import KernelFault, PtxError
from weft.isa.instruction import TABLE, match
from weft.isa.operands import Immediate, Instruction, Register, Vector
from weft.isa.wgmma import MatrixDescriptor, read_form
from weft.ptx.parser import parse_module

TYPES = [("f16", "f16", "f32"), ("f16", "f16", "f16"), ("bf16", "bf16", "f32"), ("tf32", "tf32", "f32"),
         ("e4m3", "e4m3", "f32"), ("e5m2", "e4m3", "f32"), ("e4m3", "e5m2", "f16"), ("e5m2", "e5m2", "f32"),
         ("s8", "s8", "s32"), ("u8", "s8", "s32"), ("s8", "u8", "s32"), ("u8", "u8", "s32"),
         ("b1", "b1", "s32")]  # fmt: skip
ONE_OF_EACH = [TYPES[i] for i in (0, 1, 2, 3, 4, 6, 9, 12)]


@pytest.fixture(scope="module")
def gpu() -> weft.Device:
    return weft.Device("h100", threads=1)


@pytest.fixture(scope="module")
def narrow() -> weft.Device:
    """A device that does without AVX-512."""
    device = weft.Device("h100", threads=1)
    device.target = Target.host("avx2")
    return device


def check(on: weft.Device, case: Case) -> None:
    case.prepare()
    found = case.from_fragments(case.run(on))
    assert np.array_equal(found, case.expected())


# ---------------------------------------------------------------- types and layouts
@pytest.mark.parametrize("types, width", [(t, 16 << i % 4) for i, t in enumerate(TYPES * 2)][::2] + [
    (t, w) for t in (TYPES[0], TYPES[3], TYPES[4]) for w in (16, 32, 64, 128)
])  # fmt: skip
def test_k_major(gpu, types, width: int) -> None:
    n = 24 if width == 64 else 16
    a = k_major(64, width, start=n // 8 * 2048, along=width // 2 if width > 32 else 0)
    check(gpu, Case(n, *types, k_major(n, width, gap=width // 64 * 1024), a, seed=width))


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("types", [TYPES[0], TYPES[3], TYPES[5]], ids="-".join)
def test_k_major_without_avx512(narrow, types, width: int) -> None:
    check(narrow, Case(16, *types, k_major(16, width), k_major(64, width, start=4096), seed=width))


@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_a_in_registers(gpu, types) -> None:
    check(gpu, Case(8, *types, k_major(8, 64, along=32), seed=1))


@pytest.mark.parametrize("types", ONE_OF_EACH[::3], ids="-".join)
def test_a_in_registers_without_avx512(narrow, types) -> None:
    check(narrow, Case(8, *types, k_major(8, 32), seed=1))


@pytest.mark.parametrize("width", [16, 32, 64, 128])
@pytest.mark.parametrize("majors", ["mn mn", "k mn", "mn k"])
def test_mn_major(gpu, majors: str, width: int) -> None:
    n, type_ = (72, "bf16") if width == 128 else (40, "f16")
    make = {"k": k_major, "mn": mn_major}
    first, second = majors.split()
    a = make[first](64, width, start=48 * 1024)
    check(gpu, Case(n, type_, type_, "f32", make[second](n, width), a, seed=width))


@pytest.mark.parametrize("width", [16, 64])
def test_mn_major_without_avx512(narrow, width: int) -> None:
    check(narrow, Case(40, "f16", "f16", "f16", mn_major(40, width), mn_major(64, width, start=32768), seed=width))


@pytest.mark.parametrize("n", [96, 200, 256])
def test_widths_of_b(gpu, n: int) -> None:
    check(gpu, Case(n, "f16", "f16", "f16", mn_major(n, 128, deep=2), seed=n))


@pytest.mark.parametrize("line", [1, 3, 6])
def test_base_offset(gpu, line: int) -> None:
    """The swizzle's pattern begins at the 128-byte line that the descriptor names."""
    b = k_major(24, 128, along=64, line=line)
    check(gpu, Case(24, "f16", "f16", "f32", b, mn_major(64, 128, start=8192, line=line), seed=line))


def test_descriptor_fields() -> None:
    found = MatrixDescriptor.decode(0x4000_0040_0001_0123)
    assert found == MatrixDescriptor(start=0x1230, leading=16, stride=1024, base=0, swizzle=128)
    assert found.encode() == 0x4000_0040_0001_0123
    layout = Layout(64, "mn", 1024, stride=512, leading=2048, line=5)
    assert MatrixDescriptor.decode(layout.descriptor) == MatrixDescriptor(1024 + 640, 2048, 512, 5, 64)


# ---------------------------------------------------------------- modifiers
@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("types", ONE_OF_EACH[1:6:2], ids="-".join)
def test_signs(gpu, types, signs) -> None:
    check(gpu, Case(8, *types, k_major(8, 32), signs=signs, seed=3))


@pytest.mark.parametrize("scale, keep", [("%p1", False), ("0", False), ("1", True), ("!%p1", True)])
@pytest.mark.parametrize("types", ONE_OF_EACH[::2], ids="-".join)
def test_scale_d(gpu, types, scale: str, keep: bool) -> None:
    case = Case(8, *types, k_major(8, 32), scale=scale, keep=keep, seed=4)
    case.prepare()
    if scale == "!%p1":
        found = replace(case, keep=False, words=case.words).run(gpu)
    else:
        found = case.run(gpu)
    assert np.array_equal(case.from_fragments(found), case.expected())


@pytest.mark.parametrize("types", [t for t in TYPES if t[0] in ("s8", "u8")], ids="-".join)
def test_saturation(gpu, types) -> None:
    case = Case(16, *types, k_major(16, 128), saturate=True, seed=5)
    check(gpu, case)
    assert (np.abs(case.expected()) >= 2**31 - 1).any()


def test_integers_wrap(gpu) -> None:
    case = Case(16, "s8", "s8", "s32", k_major(16, 128), seed=6)
    case.prepare()
    case.words["d"] = np.full((64, 16), 2**31 - 5)
    case.words["accumulators"] = case.to_fragments(case.words["d"])
    expected = (case.expected() + 2**31) % 2**32 - 2**31
    assert np.array_equal(case.from_fragments(case.run(gpu)), expected)


SPARSE = [("f16", "f16", "f32"), ("f16", "f16", "f16"), ("bf16", "bf16", "f32"), ("tf32", "tf32", "f32"),
          ("e4m3", "e5m2", "f32"), ("e5m2", "e5m2", "f16"), ("s8", "u8", "s32"), ("u8", "u8", "s32")]  # fmt: skip


@pytest.mark.parametrize("types, selector", [(t, s) for t in SPARSE for s in (0, 1) if s == 0 or BITS[t[0]] > 8])
def test_sparse(gpu, types, selector: int) -> None:
    a = None if selector else k_major(64, 64, start=16384)
    case = Case(16, *types, k_major(16, 128), a, sparse=True, selector=selector, seed=7)
    check(gpu, case)
    assert np.array_equal(case.from_fragments(case.interpret()), case.expected())


def test_sparse_mn_major(gpu, narrow) -> None:
    for either in (gpu, narrow):
        a, b = mn_major(64, 128, start=32768), mn_major(40, 64, deep=4)
        check(either, Case(40, "f16", "f16", "f32", b, a, sparse=True, signs=(-1, 1), seed=8))


# ---------------------------------------------------------------- engine and interpreter
@pytest.mark.parametrize("types, sparse", [(t, s) for t in TYPES for s in (False, True) if t[0] != "b1" or not s])
def test_interpreter_agrees(gpu, narrow, types, sparse: bool) -> None:
    """Bit for bit, also where sums are rounded."""
    case = Case(8, *types, k_major(8, 128), k_major(64, 128, start=1024), sparse=sparse, seed=9)
    case.prepare("random")
    expected = case.interpret()
    assert np.array_equal(case.run(gpu), expected)
    assert np.array_equal(case.run(narrow), expected)


@pytest.mark.parametrize("types", [TYPES[0], TYPES[2], TYPES[3], TYPES[4], TYPES[7], TYPES[1]], ids="-".join)
def test_special_values(gpu, types) -> None:
    """Infinities, NaN, subnormals and the largest numbers."""
    case = Case(16, *types, k_major(16, 128), seed=10)
    case.prepare("random")
    rng = np.random.default_rng(1)
    bits = BITS[types[0]]
    for name in ("a_bits", "b_bits"):
        patterns = case.words[name]
        special = rng.integers(0, 2**bits, patterns.shape).astype(patterns.dtype)
        case.words[name] = np.where(rng.random(patterns.shape) < 0.02, special, patterns)
    case._lay_out()
    expected, found = case.from_fragments(case.interpret()), case.from_fragments(case.run(gpu))
    assert np.array_equal(found, expected, equal_nan=True)
    assert np.isfinite(expected).any()


# ---------------------------------------------------------------- several multiplications
def kernel(body: str, registers: int = 64) -> str:
    """k(image, out): 16 KiB of shared memory from `image`; %d registers go to out[register][thread]."""
    return f"""
.version 8.4
.target sm_90a
.address_size 64
.shared .align 1024 .b8 memory[16384];
.visible .entry k(.param .u64 image, .param .u64 out)
{{
.reg .b32 %r<9>; .reg .b64 %rd<20>; .reg .pred %p<4>; .reg .b32 %d<{registers}>;
ld.param.u64 %rd0, [image]; ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x;
mov.u32 %r8, memory;
mul.wide.u32 %rd4, %r0, 4; add.u64 %rd1, %rd1, %rd4; shl.b32 %r1, %r0, 4; cvt.u64.u32 %rd4, %r1;
add.u64 %rd0, %rd0, %rd4; add.u32 %r8, %r8, %r1; mov.u32 %r2, 0;
COPY:
ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd0]; st.shared.v4.b32 [%r8], {{%r4, %r5, %r6, %r7}};
add.u32 %r8, %r8, {16 * THREADS}; add.u64 %rd0, %rd0, {16 * THREADS}; add.u32 %r2, %r2, 1;
setp.lt.u32 %p0, %r2, 8; @%p0 bra COPY;
bar.sync 0; wgmma.fence.sync.aligned; setp.ge.u32 %p1, %r0, 0; setp.lt.u32 %p2, %r0, 0;
{"".join(f"mov.b32 %d{i}, 0;" for i in range(registers))}
{body}
{"".join(f"st.global.b32 [%rd1+{4 * THREADS * i}], %d{i};" for i in range(registers))}
ret;
}}
"""


def wgmma(first: int, a: Layout, b: Layout, scale: str = "1", order=range(4)) -> str:
    d = ", ".join(f"%d{first + i}" for i in order)
    return (
        f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{{d}}}, {a.descriptor:#x}, {b.descriptor:#x}, {scale}, "
        "1, 1, 0, 0;\n"
    )


WAIT = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\n"
A_STEPS = [k_major(64, 128, along=32 * i) for i in range(4)]
B_STEPS = [k_major(8, 128, start=8192, along=32 * i) for i in range(4)]


@pytest.fixture(scope="module")
def matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with A [64, 64] at 0 and B [8, 64] at 8192, both K-major in rows of 128 bytes; A and B as numbers."""
    rng = np.random.default_rng(11)
    a, b = rng.integers(-4, 5, (64, 64)).astype(np.float64), rng.integers(-4, 5, (8, 64)).astype(np.float64)
    image = bytearray(16384)
    A_STEPS[0].fill(image, a.astype(np.float16).view(np.uint16), 16)
    B_STEPS[0].fill(image, b.astype(np.float16).view(np.uint16), 16)
    return np.frombuffer(bytes(image), np.uint8), a, b


def run_kernel(device: weft.Device, body: str, image: np.ndarray, registers: int, **options) -> list[np.ndarray]:
    """D [64, 8] of each four registers."""
    out = device.zeros((registers, THREADS), np.uint32)
    device.load(kernel(body, registers), "k.ptx")["k"][1, THREADS](device.array(image), out, **options)
    case = Case(8, "f16", "f16", "f32", B_STEPS[0])
    return [case.from_fragments(out.numpy()[i : i + 4]) for i in range(0, registers, 4)]


def test_steps_of_k(gpu, matrices) -> None:
    image, a, b = matrices
    body = "".join(wgmma(0, x, y, "%p2" if i == 0 else "%p1") for i, (x, y) in enumerate(zip(A_STEPS, B_STEPS))) + WAIT
    (found,) = run_kernel(gpu, body, image, 4)
    assert np.array_equal(found, a @ b.T)


def test_interleaved_accumulators(gpu, matrices) -> None:
    image, a, b = matrices
    body = "".join(wgmma(0, x, y) + wgmma(4, x, B_STEPS[0]) for x, y in zip(A_STEPS, B_STEPS)) + WAIT
    first, second = run_kernel(gpu, body, image, 8)
    assert np.array_equal(first, a @ b.T)
    assert np.array_equal(second, sum(a[:, 16 * i : 16 * i + 16] for i in range(4)) @ b[:, :16].T)


def test_a_restart_in_the_middle(gpu, matrices) -> None:
    """scale-d false throws away what came before, also within a group."""
    image, a, b = matrices
    steps = list(zip(A_STEPS, B_STEPS))
    body = "".join(wgmma(0, x, y, "0" if i == 2 else "1") for i, (x, y) in enumerate(steps)) + WAIT
    (found,) = run_kernel(gpu, body, image, 4)
    assert np.array_equal(found, a[:, 32:] @ b[:, 32:].T)


def test_accumulators_in_another_order(gpu, matrices) -> None:
    """The same registers as accumulators in two orders: the second tuple does not lie side by side."""
    image, a, b = matrices
    body = wgmma(0, A_STEPS[0], B_STEPS[0]) + WAIT + wgmma(0, A_STEPS[1], B_STEPS[1], order=(2, 3, 0, 1)) + WAIT
    (found,) = run_kernel(gpu, body, image, 4)
    first, second = a[:, :16] @ b[:, :16].T, a[:, 16:32] @ b[:, 16:32].T
    swapped = second.reshape(4, 2, 8, 8)[:, ::-1].reshape(64, 8)
    assert np.array_equal(found, first + swapped)


def test_accumulators_that_overlap_without_a_wait_in_between(gpu, matrices) -> None:
    image, a, b = matrices
    body = wgmma(0, A_STEPS[0], B_STEPS[0]) + wgmma(0, A_STEPS[1], B_STEPS[1], order=(2, 3, 0, 1)) + WAIT
    (found,) = run_kernel(gpu, body, image, 4)
    swapped = (a[:, 16:32] @ b[:, 16:32].T).reshape(4, 2, 8, 8)[:, ::-1].reshape(64, 8)
    assert np.array_equal(found, a[:, :16] @ b[:, :16].T + swapped)


def test_registers_are_read_and_written_around(gpu, matrices) -> None:
    """Copies of accumulators, and new values for them, in the block of the multiplication."""
    image, a, b = matrices
    body = wgmma(0, A_STEPS[0], B_STEPS[0]) + "".join(f"mov.b32 %d{4 + i}, %d{i};" for i in range(4))
    body += "".join(f"mov.f32 %d{i}, 0f3f800000;" for i in range(4)) + wgmma(0, A_STEPS[1], B_STEPS[1]) + WAIT
    later, earlier = run_kernel(gpu, body, image, 8)
    assert np.array_equal(earlier, a[:, :16] @ b[:, :16].T)
    assert np.array_equal(later, a[:, 16:32] @ b[:, 16:32].T + 1)


@pytest.mark.parametrize("barrier", ["bar.sync 0;", ""])
def test_a_loop(gpu, matrices, barrier: str) -> None:
    """Accumulators live across suspensions; descriptors are computed. Without a barrier warps run ahead."""
    image, a, b = matrices
    body = f"""
mov.b64 %rd10, {A_STEPS[0].descriptor:#x}; mov.b64 %rd11, {B_STEPS[0].descriptor:#x}; mov.u32 %r2, 0;
LOOP:
wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%d0, %d1, %d2, %d3}}, %rd10, %rd11, %p1, 1, 1, 0, 0;
{WAIT} {barrier}
add.s64 %rd10, %rd10, 2; add.s64 %rd11, %rd11, 2; add.u32 %r2, %r2, 1; setp.lt.u32 %p0, %r2, 4; @%p0 bra LOOP;
"""
    (found,) = run_kernel(gpu, body, image, 4)
    assert np.array_equal(found, a @ b.T)


def test_many_matrices(gpu, matrices) -> None:
    """More matrices B than are kept apart, of different sizes."""
    image, a, b = matrices
    body = ""
    for i in range(12):
        body += wgmma(4 * i, A_STEPS[i % 4], B_STEPS[i % 4]) + (wgmma(4 * i, A_STEPS[0], B_STEPS[0]) if i % 3 else "")
        body += WAIT + "bar.sync 0;" * (i % 2)
    steps = [a[:, 16 * i : 16 * i + 16] @ b[:, 16 * i : 16 * i + 16].T for i in range(4)]
    for seed in (0, 1, 2):
        for i, found in enumerate(run_kernel(gpu, body, image, 48, seed=seed)):
            assert np.array_equal(found, steps[i % 4] + (steps[0] if i % 3 else 0))


@pytest.mark.parametrize("guard, runs", [("@%p1", True), ("@!%p1", False), ("@%p2", False)])
def test_guards(gpu, matrices, guard: str, runs: bool) -> None:
    image, a, b = matrices
    body = guard + " " + wgmma(0, A_STEPS[0], B_STEPS[0]) + WAIT
    (found,) = run_kernel(gpu, body, image, 4)
    assert np.array_equal(found, a[:, :16] @ b[:, :16].T * runs)


def test_one_warpgroup_of_two(gpu, matrices) -> None:
    """Which rows a warp takes depends on its place in its warpgroup; the branch is the same for whole warps."""
    image, a, b = matrices
    text = kernel(
        "setp.lt.u32 %p3, %r0, 128; @%p3 bra DONE;\n" + wgmma(0, A_STEPS[0], B_STEPS[0]) + WAIT + "DONE:\n", 4
    )
    text = text.replace("setp.lt.u32 %p0, %r2, 8;", "setp.lt.u32 %p0, %r2, 4;").replace("2048", "4096")
    text = text.replace("add.u64 %rd1, %rd1, %rd4;", "add.u64 %rd1, %rd1, %rd4;", 1)
    text = text.replace(f"[%rd1+{4 * THREADS}]", f"[%rd1+{8 * THREADS}]")
    for i in (3, 2):
        text = text.replace(f"[%rd1+{4 * THREADS * i}], %d{i}", f"[%rd1+{8 * THREADS * i}], %d{i}")
    out = gpu.zeros((4, 256), np.uint32)
    gpu.load(text, "k.ptx")["k"][1, 256](gpu.array(image), out)
    case = Case(8, "f16", "f16", "f32", B_STEPS[0])
    assert np.array_equal(case.from_fragments(out.numpy()[:, 128:].copy()), a[:, :16] @ b[:, :16].T)
    assert not out.numpy()[:, :128].any()


# ---------------------------------------------------------------- faults
@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_matrix_beyond_shared_memory(gpu, matrices, broken: str) -> None:
    image, _, _ = matrices
    a, b = A_STEPS[0], B_STEPS[0]
    if broken == "a":
        a = replace(a, start=16384 - 7 * 1024)
    else:
        b = replace(b, start=16384 - 512)
    with pytest.raises(KernelFault, match=r"matrix descriptor 0x4\w+ .*reaches beyond the block's shared memory") as e:
        run_kernel(gpu, wgmma(0, a, b) + WAIT, image, 4)
    assert "wgmma.mma_async" in kernel(wgmma(0, a, b)).splitlines()[e.value.ptx_line - 1]


def test_the_last_matrix_that_fits(gpu, matrices) -> None:
    image, _, _ = matrices
    run_kernel(gpu, wgmma(0, replace(A_STEPS[3], start=8192), replace(B_STEPS[3], start=15360)) + WAIT, image, 4)


def test_rows_wider_than_the_swizzle(gpu) -> None:
    case = Case(8, "f16", "f16", "f32", k_major(8, 128), sparse=True)
    case.prepare()
    case.b = k_major(8, 32)
    with pytest.raises(KernelFault, match="rows wider than its swizzle"):
        case.run(gpu)
    with pytest.raises(KernelFault, match="does not fit a swizzle of 32 bytes"):
        case.interpret()


def test_part_of_a_warp(gpu, matrices) -> None:
    image, _, _ = matrices
    body = "setp.eq.u32 %p3, %r0, 40; @%p3 bra SKIP;\n" + wgmma(0, A_STEPS[0], B_STEPS[0]) + WAIT + "SKIP:\n"
    with pytest.raises(KernelFault, match="all 32 threads of each warp"):
        run_kernel(gpu, body, image, 4)


# ---------------------------------------------------------------- legality
def all_forms():
    """The modifiers of every shape of every entry, and every choice of the other modifiers."""
    for entry in TABLE["wgmma"]:
        slots = [[(c,) for c in slot.choices] + [()] * slot.optional for slot in entry.modifiers]
        shapes = next((i for i, slot in enumerate(entry.modifiers) if slot.name == "shape"), None)
        rng = random.Random(len(slots))
        if shapes is None:
            yield tuple(t for slot in slots for t in slot[0])
            continue
        for shape in slots[shapes]:
            choice = [shape if i == shapes else rng.choice(slot) for i, slot in enumerate(slots)]
            yield tuple(t for slot in choice for t in slot)
        for i, slot in enumerate(slots):
            for value in slot if i != shapes else ():
                choice = [value if j == i else other[0] for j, other in enumerate(slots)]
                yield tuple(t for part in choice for t in part)


def line_of(tokens: tuple[str, ...], in_registers: bool) -> str:
    name = ".".join(("wgmma", *tokens))
    if "mma_async" not in tokens:
        return f"{name} 1;" if "wait_group" in tokens else f"{name};"
    shape = next(t for t in tokens if t.startswith("m64"))
    half, integer = "f16" in tokens[:-2] and tokens.index("f16") < len(tokens) - 2, "s32" in tokens
    n = int(shape[4:].split("k")[0])
    d = ", ".join(f"%r{i}" for i in range(n // 4 if half else n // 2))
    a = "{%r0, %r1, %r2, %r3}" if in_registers else "%d0"
    tail = ", %r5, 0, %p1" if "sp" in tokens else ", %p1"
    if not integer:
        tail += ", 1, -1"
        if {"f16", "bf16"} & set(tokens[-2:]):
            tail += ", 1" if in_registers else ", 0, 1"
    return f"{name} {{{d}}}, {a}, %d1{tail};"


def parses(line: str) -> bool:
    body = f".reg .pred %p<9>; .reg .b32 %r<140>; .reg .b64 %d<9>;\n{line}\nret;"
    try:
        module = parse_module(f".version 8.4\n.target sm_90a\n.address_size 64\n.visible .entry k() {{\n{body}\n}}\n",
                              "k.ptx", check=True)  # fmt: skip
        for item in module.kernels["k"].body:
            if isinstance(item, Instruction) and "mma_async" in item.modifiers:
                read_form(match(item, "k.ptx"), item, "k.ptx")
    except PtxError:
        return False
    return True


@pytest.mark.skipif(PTXAS is None, reason="no ptxas: pip install 'weft[acceptance]'")
def test_ptxas_accepts_every_form(tmp_path) -> None:
    lines = list(dict.fromkeys(line_of(tokens, i % 3 == 0) for i, tokens in enumerate(all_forms())))
    assert len(lines) > 250
    assert [line for line in lines if not parses(line)] == []
    major, minor = newest_version()
    parts = [f".version {major}.{minor}", ".target sm_90a", ".address_size 64"]
    for i, line in enumerate(lines):
        head = f".visible .entry k{i}() {{ .reg .pred %p<9>; .reg .b32 %r<140>; .reg .b64 %d<9>;"
        parts.append(f"{head} wgmma.fence.sync.aligned; {line} wgmma.commit_group.sync.aligned; ret; }}")
    source = tmp_path / "forms.ptx"
    source.write_text("\n".join(parts) + "\n")
    run = subprocess.run(
        [PTXAS, "-arch", "sm_90a", "-O1", "-o", "/dev/null", str(source)], capture_output=True, text=True
    )
    assert run.returncode == 0, [text for text in run.stderr.splitlines() if "error" in text][:5]


WRONG = [
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r0,%r1,%r2,%r3}, {%r4,%r5,%r6,%r7}, %d1, %p1, 1, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1, 1, 1, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r0,%r1,%r2}, %d0, %d1, %p1, 1, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1, 2, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1, 1, 1, 0, 2;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.f16 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1, 1, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k16.f16.bf16.bf16 {%r0,%r1}, %d0, %d1, %p1, 1, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n12k16.f32.f16.f16 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1, 1, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k8.f32.f16.f16 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1, 1, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1, 1, 1, 0, 0;",
    "wgmma.mma_async.sync.aligned.m64n8k256.s32.b1.b1.xor.popc {%r0,%r1,%r2,%r3}, %d0, %d1, %p1;",
    "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%r0,%r1,%r2,%r3}, %d0, %d1, %p1, 1, 1;",
    "wgmma.mma_async.sp.sync.aligned.m64n8k16.f32.tf32.tf32 {%r0,%r1,%r2,%r3}, %d0, %d1, %r4, 2, %p1, 1, 1;",
    "wgmma.mma_async.sp.sync.aligned.m64n8k64.s32.s8.s8 {%r0,%r1,%r2,%r3}, %d0, %d1, %r4, 1, %p1;",
]


@pytest.mark.skipif(PTXAS is None, reason="no ptxas: pip install 'weft[acceptance]'")
def test_wrong_forms_are_refused_as_by_ptxas(tmp_path) -> None:
    wrong = ask_ptxas(["{.reg .b32 %r<20>;" + line + "}" for line in WRONG], newest_version(), "sm_90a", tmp_path)
    assert sorted(wrong) == list(range(len(WRONG)))
    assert [line for line in WRONG if parses(line)] == []


def test_messages_name_form_and_line() -> None:
    ins = Instruction(
        "wgmma", ("mma_async", "sync", "aligned", "m64n8k16", "f32", "f16", "f16"),
        (Vector(tuple(Register(f"%r{i}") for i in range(3))), Register("%d0"), Register("%d1"), Register("%p1"),
         Immediate(1), Immediate(1), Immediate(0), Immediate(0)), None, 7, None,
    )  # fmt: skip
    with pytest.raises(PtxError, match=r"k\.ptx:7: wgmma\.mma_async\.\S+: D has 3 registers, expected 4"):
        read_form(match(ins, "k.ptx"), ins, "k.ptx")


# ---------------------------------------------------------------- CUDA C++
def test_product_in_cuda_cpp() -> None:
    program, gpu = kernels("wgmma.cu", "nvrtc", arch="sm_90a"), device()
    m, n, k = 128, 192, 256
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, shape).astype(np.float16) for shape in ((m, k), (n, k)))
    c = gpu.zeros((m, n), np.float32)
    program["product"][(n // 64, m // 64), 128](gpu.array(a), gpu.array(b), c, n, k)
    assert np.array_equal(c.numpy(), a.astype(np.float32) @ b.astype(np.float32).T)
