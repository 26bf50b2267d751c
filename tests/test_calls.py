"""Indirect calls by .callprototype and .calltargets, and vectors of special registers, as compiled code."""

from __future__ import annotations

import numpy as np
import pytest

import weft
from weft.errors import KernelFault

PROGRAM = """
.version 8.3
.target sm_80
.address_size 64
.func (.param .b32 r) twice(.param .b32 p)
{ .reg .b32 %x; ld.param.b32 %x, [p]; add.s32 %x, %x, %x; st.param.b32 [r], %x; ret; }
.func (.param .b32 r) square(.param .b32 p)
{ .reg .b32 %x; ld.param.b32 %x, [p]; mul.lo.s32 %x, %x, %x; st.param.b32 [r], %x; ret; }
.func (.param .b32 r) negative(.param .b32 p)
{ .reg .b32 %x; ld.param.b32 %x, [p]; neg.s32 %x, %x; st.param.b32 [r], %x; ret; }
.visible .entry choose(.param .u64 out, .param .u32 which)
{
    .reg .b64 %a, %f; .reg .b32 %r, %w; .reg .pred %p, %q;
    ld.param.u64 %a, [out]; ld.param.u32 %w, [which];
    mov.u32 %r, %tid.x;
    mad.wide.u32 %a, %r, 4, %a;
    mov.u64 %f, twice;
    setp.eq.u32 %p, %w, 1; @%p mov.u64 %f, square;
    setp.eq.u32 %p, %w, 2; and.b32 %w, %r, 1; setp.eq.and.u32 %q, %w, 1, %p; @%q mov.u64 %f, square;
    ld.param.u32 %w, [which]; setp.eq.u32 %p, %w, 3; @%p mov.u64 %f, negative;
    { .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %r;
      LABEL
      call (r0), %f, (p0), shape; ld.param.b32 %r, [r0]; }
    st.global.u32 [%a], %r;
    ret;
}
"""
TARGETS = "shape: .calltargets twice, square;"
PROTOTYPE = "shape: .callprototype (.param .b32 _) _ (.param .b32 _);"


@pytest.fixture(scope="module")
def gpu() -> weft.Device:
    return weft.Device("a100")


@pytest.mark.parametrize("label", [TARGETS, PROTOTYPE], ids=["calltargets", "callprototype"])
def test_indirect_calls(gpu: weft.Device, label: str) -> None:
    kernel = gpu.load(PROGRAM.replace("LABEL", label))["choose"]
    x = np.arange(32)
    for which, want in ((0, 2 * x), (1, x * x), (2, np.where(x % 2, x * x, 2 * x))):
        out = gpu.zeros(32, np.int32)
        kernel[1, 32](out, which)
        assert out.numpy().tolist() == want.tolist()


def test_functions_that_calltargets_does_not_name(gpu: weft.Device) -> None:
    out = gpu.zeros(32, np.int32)
    with pytest.raises(KernelFault, match="not a function"):
        gpu.load(PROGRAM.replace("LABEL", TARGETS))["choose"][1, 32](out, 3)
    gpu.load(PROGRAM.replace("LABEL", PROTOTYPE))["choose"][1, 32](out, 3)
    assert out.numpy().tolist() == [-i for i in range(32)]


def test_vectors_of_special_registers(gpu: weft.Device) -> None:
    kernel = gpu.load("""
.version 8.3
.target sm_80
.address_size 64
.visible .entry places(.param .u64 out)
{
    .reg .b64 %a; .reg .b32 %r<9>, %n;
    ld.param.u64 %a, [out];
    mov.v4.u32 {%r0, %r1, %r2, %r3}, %tid;
    mov.v4.u32 {%r4, %r5, _, _}, %ctaid;
    mad.lo.u32 %n, %r5, 2, %r4; mad.lo.u32 %n, %n, 4, %r1; mad.lo.u32 %n, %n, 8, %r0;
    mad.wide.u32 %a, %n, 16, %a;
    st.global.v4.u32 [%a], {%r0, %r1, %r3, %n};
    ret;
}
""")["places"]
    out = gpu.full(6 * 32 * 4, -1, np.int32)
    kernel[(2, 3), (8, 4)](out)
    n = np.arange(6 * 32)
    want = np.stack([n % 8, n // 8 % 4, 0 * n, n], axis=1)
    assert np.array_equal(out.numpy().reshape(-1, 4), want)
