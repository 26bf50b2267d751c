"""Integer and data-movement instructions: every form against its reference, at three depths.

1. the emission rule evaluated on arrays (no compiler);
2. the rule compiled by the vector builder, with every way of holding operands;
3. whole kernels on a device, under masks.
The references themselves are held against NumPy and numbers from the PTX manual here, and against ptxas's constant
folding in test_ptxas_folding.py.
"""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
from builder_harness import check_on_builder
from form_harness import Form, check_emission, check_on_device, forms_of, instances_of

import weft
import weft.isa
from weft.codegen.jit import Target
from weft.errors import PtxError, UnsupportedError
from weft.isa import carry, compare, integer, logic, move, video
from weft.isa.instruction import TABLE, Entry, match
from weft.isa.operands import Immediate, Instruction, Register

MODULES = (integer, carry, logic, compare, move, video)
TARGETS = {"host": Target.host(), "avx2": Target.host("avx2")}
# Forms of one entry that are tested at each depth (the rest differ in a comparison or a type alone).
EMITTED, BUILT, RUN, RUN_THOROUGH = 24, 4, 1, 8


def own_entries(opcode: str) -> list[Entry]:
    """The entries of an opcode that these modules define and that compute values."""
    names = {module.__name__ for module in MODULES}
    return [
        entry for entry in TABLE[opcode]
        if entry.definition.__module__ in names and not (entry.raw or entry.missing or entry.collective)
    ]  # fmt: skip


OPCODES = sorted(opcode for opcode in TABLE if own_entries(opcode))


def pick(opcode: str, limit: int) -> list[Form]:
    return [form for entry in own_entries(opcode) for form in forms_of(entry, limit)]


@pytest.mark.parametrize("opcode", OPCODES)
def test_emission(opcode):
    wrong = [text for form in pick(opcode, EMITTED) for text in check_emission(form, 128)]
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opcode", OPCODES)
def test_builder(opcode, target):
    limit = 1 if len(own_entries(opcode)) > 8 or target != "host" else BUILT
    instances = {}
    for form in pick(opcode, limit):
        for instance in instances_of(form, thorough=True):
            instances.setdefault((form.name, instance.kinds), instance)
    wrong = []
    chosen = list(instances.values())
    for at in range(0, len(chosen), 150):
        wrong += check_on_builder(chosen[at : at + 150], TARGETS[target])
    assert not wrong, "\n".join(wrong[:20])


@functools.cache
def device():
    return weft.Device("h100")


@pytest.mark.parametrize("opcode", OPCODES)
def test_device(opcode):
    instances = [instance for form in pick(opcode, RUN) for instance in instances_of(form)]
    wrong = check_on_device(device(), instances)
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.thorough
@pytest.mark.parametrize("opcode", OPCODES)
def test_device_thorough(opcode):
    limit = RUN if len(own_entries(opcode)) > 8 else RUN_THOROUGH
    instances = [instance for form in pick(opcode, limit) for instance in instances_of(form, thorough=True)]
    wrong = check_on_device(device(), instances)
    assert not wrong, "\n".join(wrong[:20])


# ---------------------------------------------------------------- references against other sources
def evaluate(text: str, *values: int) -> tuple[int, ...]:
    """Results of `opcode.modifiers` on patterns, masked to their widths."""
    opcode, *tokens = text.split(".")
    for entry in TABLE[opcode]:
        for form in forms_of(entry):
            if form.tokens == tuple(tokens) and len(form.all_sources) == len(values):
                result = entry.reference(form.match, *values)
                given = result if isinstance(result, tuple) else (result,)
                return tuple(int(v) & ((1 << s.bits) - 1) for v, (_, s) in zip(given, form.all_results))
    raise AssertionError(f"no form {text} with {len(values)} sources")


NUMPY = {
    "add": np.add, "sub": np.subtract, "mul.lo": np.multiply, "min": np.minimum, "max": np.maximum,
}  # fmt: skip


@pytest.mark.parametrize("name", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("operation", NUMPY)
def test_arithmetic_as_numpy(operation, name):
    bits = int(name[1:])
    dtype = np.dtype(f"{'int' if name[0] == 's' else 'uint'}{bits}")
    rng = random.Random(bits)
    pairs = [(rng.getrandbits(bits), rng.getrandbits(bits)) for _ in range(50)]
    pairs += [(0, (1 << bits) - 1), (1 << bits - 1, 1)]
    x, y = (np.array(column, dtype=f"uint{bits}").view(dtype) for column in zip(*pairs))
    with np.errstate(over="ignore"):
        expected = NUMPY[operation](x, y).view(f"uint{bits}")
    found = [evaluate(f"{operation}.{name}", a, b)[0] for a, b in pairs]
    assert found == expected.tolist()


# (form, operands, results): from the manual's tables and definitions, worked out by hand.
KNOWN = [
    ("div.s32", (7, 0), (0xFFFFFFFF,)),
    ("rem.s32", (7, 0), (7,)),
    ("div.u16", (7, 0), (0xFFFF,)),
    ("rem.u64", (9, 0), (9,)),
    ("div.s32", (0x80000000, 0xFFFFFFFF), (0x80000000,)),
    ("rem.s32", (0x80000000, 0xFFFFFFFF), (0,)),
    ("div.s32", (-7 & 0xFFFFFFFF, 2), (-3 & 0xFFFFFFFF,)),
    ("rem.s32", (-7 & 0xFFFFFFFF, 2), (-1 & 0xFFFFFFFF,)),
    ("abs.s16", (0x8000,), (0x8000,)),
    ("add.sat.s32", (0x7FFFFFFF, 1), (0x7FFFFFFF,)),
    ("sub.sat.s32", (0x80000000, 1), (0x80000000,)),
    ("mad.hi.sat.s32", (0x7FFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF), (0x7FFFFFFF,)),
    ("mul.wide.s16", (0x8000, 0x8000), (0x40000000,)),
    ("mul24.hi.s32", (0x800000, 0x800000), (0x40000000,)),
    ("bfe.s32", (0x000000F0, 4, 4), (0xFFFFFFFF,)),
    ("bfe.u32", (0xFFFFFFFF, 28, 8), (0xF,)),
    ("bfe.s32", (0x80000000, 40, 3), (0xFFFFFFFF,)),
    ("bfi.b32", (0xFF, 0x12345678, 8, 8), (0x1234FF78,)),
    ("bfind.u32", (0,), (0xFFFFFFFF,)),
    ("bfind.shiftamt.s32", (0xFFFF0000,), (16,)),
    ("fns.b32", (0x8421, 4, 2), (10,)),
    ("fns.b32", (0x8421, 10, -2 & 0xFFFFFFFF), (5,)),
    ("bmsk.clamp.b32", (30, 40), (0xC0000000,)),
    ("bmsk.wrap.b32", (30, 40), (0xC0000000,)),
    ("bmsk.wrap.b32", (36, 1), (0x10,)),
    ("szext.wrap.s32", (0x18, 37), (0xFFFFFFF8,)),
    ("dp4a.s32.u32", (0xFF, 0xFF, 0), (-255 & 0xFFFFFFFF,)),
    ("dp2a.hi.u32.u32", (0x00020003, 0x05070000, 1), (3 * 7 + 2 * 5 + 1,)),
    ("prmt.b32", (0x33221100, 0x77665544, 0x0123), (0x00112233,)),
    ("prmt.b32", (0x80, 0, 0x8888), (0xFFFFFFFF,)),
    ("prmt.b32.b4e", (0x33221100, 0x77665544, 1), (0x66770011,)),
    ("prmt.b32.ecl", (0x33221100, 0, 2), (0x33222222,)),
    ("prmt.b32.ecr", (0x33221100, 0, 1), (0x11111100,)),
    ("prmt.b32.rc16", (0x33221100, 0, 3), (0x33223322,)),
    ("shf.l.clamp.b32", (0x12345678, 0x9ABCDEF0, 40), (0x12345678,)),
    ("shf.r.wrap.b32", (0x12345678, 0x9ABCDEF0, 36), (0x01234567,)),
    ("shl.b32", (1, 32), (0,)),
    ("shr.s32", (0x80000000, 99), (0xFFFFFFFF,)),
    ("add.cc.u32", (0xFFFFFFFF, 1), (0, 1)),
    ("sub.cc.u32", (0, 1), (0xFFFFFFFF, 0)),  # a borrow clears the flag
    ("subc.u32", (5, 3, 1), (2,)),
    ("subc.u32", (5, 3, 0), (1,)),
    ("madc.hi.u32", (0xFFFFFFFF, 0xFFFFFFFF, 0, 1), (0xFFFFFFFF,)),
    ("setp.lt.f32", (0x7FC00000, 0), (0, 1)),
    ("setp.ltu.f32", (0x7FC00000, 0), (1, 0)),
    ("setp.eq.f16", (0x8000, 0), (1,)),
    ("setp.gt.ftz.f16", (1, 0), (0,)),
    ("setp.gt.f16x2", (0x3C000000, 0x00003C00), (0, 1)),
    ("setp.ne.and.bf16x2", (0x3F803F80, 0x3F800000, 1), (1, 0)),
    ("set.nan.f16x2.f16x2", (0x7E003C00, 0), (0x3C000000,)),
    ("set.eq.u32.f16x2", (0x3C003C00, 0x00003C00), (0x0000FFFF,)),
    ("slct.u32.f32", (1, 2, 0x80000000), (1,)),
    ("slct.u32.f32", (1, 2, 0x7FC00000), (2,)),
    ("vabsdiff4.u32.u32.u32.add", (0x01020304, 0x04030201, 10), (18,)),
    ("vavrg2.s32.s32.s32", (0xFFFF0001, 0x00000002, 0), (0xFFFF0002,)),
    ("vadd4.u32.u32.u32.sat", (0xFF010203, 0x02010101, 0), (0xFF020304,)),
    ("vset4.u32.u32.lt.add", (0x01020304, 0x02020505, 7), (10,)),
]  # fmt: skip


@pytest.mark.parametrize("text, values, expected", KNOWN, ids=[f"{k[0]}-{i}" for i, k in enumerate(KNOWN)])
def test_known(text, values, expected):
    assert evaluate(text, *values)[: len(expected)] == expected


def test_look_up_tables():
    # The manual's way to make a table: apply the function to these three constants.
    a, b, c = 0xF0, 0xCC, 0xAA
    for function in (lambda x, y, z: x & y & z, lambda x, y, z: (x & y) | z, lambda x, y, z: x ^ y ^ z,
                     lambda x, y, z: (x & y) | (~x & z)):  # fmt: skip
        table = function(a, b, c) & 0xFF
        x, y, z = 0xDEADBEEF, 0x12345678, 0x0F0FF0F0
        assert logic.Lop3.reference(None, x, y, z, table) == function(x, y, z) & 0xFFFFFFFF


# ---------------------------------------------------------------- refusals
REFUSED = [
    ("shl.b8", 3, "found .b8, expected one of .b16, .b32, .b64"),
    ("setp.lo.s32", 3, "found .s32, expected one of .u16, .u32, .u64"),
    ("setp.lt.b32", 3, ""),
    ("setp.gt.ftz.f64", 3, ""),
    ("add.sat.s16", 3, ""),
    ("mul.wide.u64", 3, ""),
    ("min.relu.u32", 3, ""),
    ("set.eq.f16.bf16", 3, ""),
    ("and.u32", 3, ""),
    ("mov.f16", 2, ""),
    ("lop3.xor.b32", 6, ""),
]


@pytest.mark.parametrize("text, operands, message", REFUSED)
def test_refused(text, operands, message):
    opcode, *tokens = text.split(".")
    ins = Instruction(opcode, tuple(tokens), tuple(Register(f"%r{i}") for i in range(operands)), line=41)
    with pytest.raises(PtxError, match=r"k\.ptx:41: " + text) as caught:
        match(ins, "k.ptx")
    assert message in str(caught.value)


def test_untold_spaces():
    ins = Instruction("isspacep", ("const",), (Register("%p"), Register("%rd")), line=3)
    with pytest.raises(UnsupportedError, match="k.ptx:3"):
        match(ins, "k.ptx")


def test_types_keep_their_order():
    operands = (Register("%d"), Register("%a"), Register("%b"))
    assert match(Instruction("set", ("eq", "u16", "f16"), operands)).dtype.name == "u16"
    assert match(Instruction("set", ("f16", "eq", "u16"), operands)).dtype.name == "f16"


# ---------------------------------------------------------------- moves and addresses, on a device
MOVES = """
.version 8.3
.target sm_90
.address_size 64
.global .align 8 .b32 table[4] = {10, 20, 30, 40};
.visible .entry moves(.param .u64 p_out)
{
    .reg .b64 %out, %a, %b, %c;
    .reg .b32 %r<8>;
    .reg .b16 %h<8>;
    .reg .b128 %q;
    .reg .f32 %f;
    .reg .f64 %d;
    .reg .pred %p, %pq;
    .shared .align 8 .b32 cell[64];
    .local .align 8 .b32 slot[4];
    ld.param.u64 %out, [p_out];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %a, %r0, 8;
    add.u64 %out, %out, %a;
    // 0: pack and unpack
    mov.b64 %a, {%r0, 7};
    st.global.b64 [%out], %a;
    mov.b64 {%h0, %h1, %h2, %h3}, %a;
    mov.b32 %r1, {%h2, %h0};
    st.global.b32 [%out+512], %r1;
    mov.b32 {%h4, _}, %r1;
    cvt.u32.u16 %r2, %h4;
    st.global.b32 [%out+1024], %r2;
    // 3: swap through overlapping vectors
    mov.b64 %b, 0x1111111122222222;
    mov.b64 {%r3, %r4}, %b;
    mov.b64 %b, {%r4, %r3};
    st.global.b64 [%out+1536], %b;
    // 4: 128 bits
    mov.b128 %q, {%a, %b};
    mov.b128 {%b, %c}, %q;
    st.global.b64 [%out+2048], %c;
    // 5: float immediates
    mov.f32 %f, 0f3FC00000;
    st.global.f32 [%out+2560], %f;
    mov.f64 %d, 0d3FF8000000000000;
    st.global.f64 [%out+3072], %d;
    mov.f32 %f, 1.5;
    st.global.f32 [%out+3584], %f;
    // 8: the address of a variable, with an offset
    mov.u64 %a, table+8;
    ld.global.b32 %r5, [%a];
    st.global.b32 [%out+4096], %r5;
    // 9: shared memory through a generic address
    mov.u32 %r6, cell;
    shl.b32 %r7, %r0, 2;
    add.u32 %r6, %r6, %r7;
    st.shared.b32 [%r6], %r0;
    cvt.u64.u32 %a, %r6;
    cvta.shared.u64 %a, %a;
    ld.b32 %r5, [%a];
    st.global.b32 [%out+4608], %r5;
    cvta.to.shared.u64 %b, %a;
    cvt.u32.u64 %r5, %b;
    sub.u32 %r5, %r5, %r6;
    st.global.b32 [%out+5120], %r5;
    isspacep.shared %p, %a;
    isspacep.global %pq, %a;
    selp.b32 %r5, 1, 0, %p;
    selp.b32 %r1, 2, 0, %pq;
    isspacep.local %p, %a;
    selp.b32 %r2, 4, 0, %p;
    or.b32 %r5, %r5, %r1;
    or.b32 %r5, %r5, %r2;
    st.global.b32 [%out+5632], %r5;
    // 12: local memory through a generic address
    mov.u64 %a, slot;
    cvta.local.u64 %a, %a;
    st.local.b32 [slot+4], %r0;
    ld.b32 %r5, [%a+4];
    st.global.b32 [%out+6144], %r5;
    isspacep.local %p, %a;
    isspacep.shared::cta %pq, %a;
    selp.b32 %r5, 1, 0, %p;
    selp.b32 %r1, 2, 0, %pq;
    cvta.to.global.u64 %b, %out;
    isspacep.global %p, %b;
    selp.b32 %r2, 4, 0, %p;
    or.b32 %r5, %r5, %r1;
    or.b32 %r5, %r5, %r2;
    st.global.b32 [%out+6656], %r5;
    // 14: predicates
    mov.pred %p, -1;
    mov.pred %pq, 0;
    xor.pred %p, %p, %pq;
    selp.b32 %r5, 1, 0, %p;
    st.global.b32 [%out+7168], %r5;
    ret;
}
"""


def test_moves():
    gpu = device()
    out = gpu.array(np.zeros((15, 64), dtype=np.uint64))
    gpu.load(MOVES)["moves"][1, 64](out)
    found = out.numpy()
    tid = np.arange(64, dtype=np.uint64)
    expected = np.zeros((15, 64), dtype=np.uint64)
    expected[0] = tid | np.uint64(7 << 32)
    expected[1] = tid << np.uint64(16) | np.uint64(7)
    expected[2] = 7
    expected[3] = 0x2222222211111111
    expected[4] = 0x2222222211111111
    expected[5] = expected[7] = 0x3FC00000
    expected[6] = 0x3FF8000000000000
    expected[8] = 30
    expected[9] = tid
    expected[10] = 0
    expected[11] = 1
    expected[12] = tid
    expected[13] = 5
    expected[14] = 1
    for row, (x, y) in enumerate(zip(found, expected)):
        assert x.tolist() == y.tolist(), row


def test_table_must_be_constant():
    ins = Instruction("lop3", ("b32",), (*(Register(f"%r{i}") for i in range(4)), Immediate(0x80)))
    assert match(ins).operand_type("lut").name == "b32"


EXTENDED = """
.version 8.3
.target sm_90
.address_size 64
.visible .entry extended(.param .u64 p_out)
{
    .reg .b64 %out, %a;
    .reg .b32 %r, %d;
    .reg .b16 %h;
    ld.param.u64 %out, [p_out];
    mov.u32 %r, %tid.x;
    mul.wide.u32 %a, %r, 16;
    add.u64 %out, %out, %a;
    shl.b32 %r, %r, 3;
    cvt.s8.s32 %h, %r;
    cvt.s32.s16 %d, %h;
    st.global.b32 [%out], %d;
    cvt.u8.s32 %h, %r;
    cvt.s32.s16 %d, %h;
    st.global.b32 [%out+4], %d;
    cvt.s8.s32 %a, %r;
    st.global.b64 [%out+8], %a;
    ret;
}
"""


def test_results_fill_wider_registers():
    # PTX manual, cvt: a register wider than the destination's type takes the result extended by the type's sign.
    gpu = device()
    out = gpu.zeros((32, 4), dtype=np.int32)
    gpu.load(EXTENDED)["extended"][1, 32](out)
    signed = (np.arange(32) * 8).astype(np.int8).astype(np.int64)
    assert out.numpy()[:, 0].tolist() == signed.tolist()
    assert out.numpy()[:, 1].tolist() == (signed % 256).tolist()
    assert out.numpy()[:, 2:].copy().view(np.int64)[:, 0].tolist() == signed.tolist()
