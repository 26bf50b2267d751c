"""The interpreter against expectations worked out by hand: barriers, warps, atomics, calls, memory, faults, counts."""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
import pytest

import weft
from weft.errors import (
    DeadlockError,
    DeviceAssertError,
    IllegalAddressError,
    InvalidValueError,
    KernelFault,
    LaunchTimeoutError,
    MisalignedAddressError,
    NoSuchKernelError,
    StackOverflowError,
    TrapError,
)
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, Run, run_kernel

HEAD = ".version 8.6\n.target sm_100a\n.address_size 64\n"
REGISTERS = """
    .reg .b16 %h<10>; .reg .b32 %r<20>; .reg .b64 %rd<20>; .reg .f32 %f<10>; .reg .f64 %fd<4>; .reg .pred %p<10>;
"""
# %rd0 is the address of this thread's word of `out`, %r0 the thread's index in the block, %r1 in the grid.
PROLOGUE = """
    ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;
    mad.lo.u32 %r1, %r1, %r2, %r0; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd0, %rd1, %rd2;
"""


@cache
def device() -> weft.Device:
    return weft.Device()


def run(body: str, *, threads: int = 32, blocks: int = 1, out=None, before: str = "", engine: bool = True,
        in_order: bool = True, **launch) -> tuple[np.ndarray, Run]:  # fmt: skip
    """Run a kernel k(out) whose body is given; the words of `out` after it.

    The compiled engine must leave the same words, but for their order without `in_order`."""
    text = f"{HEAD}{before}\n.visible .entry k(.param .u64 out)\n{{{REGISTERS}{PROLOGUE}{body}\nret;\n}}\n"
    module = parse_module(text, "case.ptx", check=True)
    memory = ReferenceMemory()
    words = np.zeros(threads * blocks, np.uint32) if out is None else np.asarray(out, np.uint32)
    address = memory.allocate(words.nbytes)
    memory.write(address, words.tobytes())
    done = run_kernel(module, "k", blocks, threads, [struct.pack("<Q", address)], memory, **launch)
    expected = np.frombuffer(memory.read(address, words.nbytes), np.uint32)
    if engine:
        array = device().array(words)
        shared = launch.get("dynamic_shared", 0)
        device().load(text, "case.ptx")["k"][blocks, threads, None, shared](array)
        found = array.numpy()
        if in_order:
            assert (found == expected).all(), f"compiled: {found}, reference: {expected}"
        else:
            assert sorted(found) == sorted(expected)
    return expected, done


STORE = "st.global.u32 [%rd0], %r9;"
LANES = np.arange(32, dtype=np.uint32)


# ---------------------------------------------------------------- registers and memory
@pytest.mark.parametrize(
    ("load", "register", "expected"),
    [
        ("ld.global.s8", "%rd3", 0xFFFFFFFFFFFFFF80),
        ("ld.global.u8", "%rd3", 0x80),
        ("ld.global.s32", "%rd3", 0xFFFFFFFF88888880),
        ("ld.global.u32", "%rd3", 0x88888880),
        ("ld.global.s8", "%r9", 0xFFFFFF80),
        ("ld.global.s16", "%r9", 0xFFFF8880),
        ("ld.global.b16", "%r9", 0x8880),
        ("ld.global.s8", "%h0", 0xFF80),
        ("ld.global.u8", "%h0", 0x80),
    ],
)
def test_a_load_extends_to_its_register(load: str, register: str, expected: int) -> None:
    pack = {"%rd3": "", "%r9": "cvt.u64.u32 %rd3, %r9;", "%h0": "cvt.u64.u16 %rd3, %h0;"}[register]
    body = f"{load} {register}, [%rd1]; {pack} st.global.u64 [%rd1], %rd3;"
    words, _ = run(body, threads=1, out=[0x88888880, 0])
    assert int(words[0]) | int(words[1]) << 32 == expected


def test_vectors_and_sinks() -> None:
    body = """
    ld.global.v4.u32 {%r3, _, %r4, %r5}, [%rd1];
    st.global.v2.u32 [%rd1+8], {%r5, %r3};
    ld.global.v4.u8 {%r6, %r7, %r8, %r9}, [%rd1];
    st.global.u32 [%rd1], %r7;
    """
    words, _ = run(body, threads=1, out=[0x44332211, 2, 3, 4])
    assert words.tolist() == [0x22, 2, 4, 0x44332211]


def test_generic_addresses_reach_every_space() -> None:
    body = """
    .shared .align 8 .b8 s[8]; .local .align 8 .b8 l[8];
    mov.u64 %rd3, s; cvta.shared.u64 %rd3, %rd3; st.u32 [%rd3], 7; ld.shared.u32 %r3, [s];
    mov.u64 %rd4, l; cvta.local.u64 %rd4, %rd4; st.u32 [%rd4+4], 9; ld.local.u32 %r4, [l+4];
    mad.lo.u32 %r9, %r3, 100, %r4;
    isspacep.shared %p0, %rd3; isspacep.local %p1, %rd4; isspacep.global %p2, %rd1;
    @%p0 add.u32 %r9, %r9, 1000; @%p1 add.u32 %r9, %r9, 2000; @%p2 add.u32 %r9, %r9, 4000;
    st.u32 [%rd0], %r9;
    """
    assert run(body, threads=1)[0].tolist() == [7709]


def test_local_memory_is_private() -> None:
    body = (
        """
    .local .align 4 .b8 l[128];
    mov.u64 %rd3, l; mul.wide.u32 %rd4, %r0, 4; add.u64 %rd3, %rd3, %rd4; st.local.u32 [%rd3], %r0;
    ld.local.u32 %r9, [l+8];
    """
        + STORE
    )
    words, _ = run(body)
    assert words[2] == 2
    assert words.sum() == 2


def test_module_variables() -> None:
    before = """
    .global .u32 counter = 5;
    .const .align 4 .b8 table[8] = {1, 0, 0, 0, 2, 0, 0, 0};
    .global .u64 pointer = table+4;
    """
    body = (
        """
    ld.global.u64 %rd3, [pointer]; ld.u32 %r3, [%rd3]; ld.const.u32 %r4, [table]; ld.global.u32 %r5, [counter];
    mad.lo.u32 %r9, %r3, 10, %r4; mad.lo.u32 %r9, %r9, 10, %r5;
    """
        + STORE
    )
    assert run(body, threads=1, before=before)[0].tolist() == [215]


def test_dynamic_shared_memory_lies_behind_the_static() -> None:
    before = ".extern .shared .align 16 .b8 dynamic[];"
    body = (
        """
    .shared .align 4 .b8 fixed[20];
    mov.u32 %r3, dynamic; mov.u32 %r4, fixed; sub.u32 %r9, %r3, %r4; mov.u32 %r5, %dynamic_smem_size;
    mad.lo.u32 %r9, %r5, 100, %r9; st.shared.u32 [%r3+60], %r9; ld.shared.u32 %r9, [%r3+60];
    """
        + STORE
    )
    assert run(body, threads=1, before=before, dynamic_shared=64)[0].tolist() == [6432]
    with pytest.raises(IllegalAddressError):
        run(body, threads=1, before=before, dynamic_shared=60)


def test_carry_chains() -> None:
    body = (
        """
    mov.u32 %r3, 0xffffffff; mov.u32 %r4, 1;
    add.cc.u32 %r5, %r3, %r4; addc.cc.u32 %r6, %r3, 0; addc.u32 %r9, 5, 0;
    """
        + STORE
    )
    assert run(body, threads=1)[0].tolist() == [6]


# ---------------------------------------------------------------- control flow
def test_loops_guards_and_counts() -> None:
    body = (
        """
    mov.u32 %r9, 0; mov.u32 %r3, 0;
    top: setp.ge.u32 %p0, %r3, %r0; @%p0 bra done;
    add.u32 %r9, %r9, %r3; add.u32 %r3, %r3, 1; bra top;
    done: setp.eq.u32 %p1, %r0, 3; @!%p1 add.u32 %r9, %r9, 100;
    """
        + STORE
    )
    words, done = run(body, threads=5)
    assert words.tolist() == [100, 100, 101, 3, 106]
    # A loop of n rounds: n + 1 tests, n back jumps and one out, 2n additions; a guarded one in four of five threads.
    assert done.by_opcode["setp"] == 15 + 5
    assert done.by_opcode["bra"] == 10 + 5
    assert done.by_opcode["add"] == 5 + 20 + 4
    assert done.total == sum(done.by_thread.values())
    assert done.by_thread[0, 4] - done.by_thread[0, 2] == 2 * 4


def test_branch_by_index() -> None:
    body = (
        """
    and.b32 %r3, %r0, 3;
    table: .branchtargets a, b, a, c;
    brx.idx %r3, table;
    a: mov.u32 %r9, 10; bra end;
    b: mov.u32 %r9, 20; bra end;
    c: mov.u32 %r9, 30;
    end:
    """
        + STORE
    )
    assert run(body, threads=4)[0].tolist() == [10, 20, 10, 30]


CALLS = """
.func (.param .b32 result) twice(.param .b32 a)
{
    .reg .b32 %x; ld.param.b32 %x, [a]; shl.b32 %x, %x, 1; st.param.b32 [result], %x; ret;
}
.func (.reg .b32 %res) plus(.reg .b32 %a, .reg .b32 %b) { add.u32 %res, %a, %b; ret; }
.func (.param .b32 result) factorial(.param .b32 a)
{
    .reg .b32 %x, %y; .reg .pred %q;
    ld.param.b32 %x, [a]; setp.lt.u32 %q, %x, 2; @%q bra one;
    sub.u32 %y, %x, 1;
    { .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %y; call.uni (r0), factorial, (p0); ld.param.b32 %y, [r0]; }
    mul.lo.u32 %y, %x, %y; st.param.b32 [result], %y; ret;
    one: st.param.b32 [result], 1; ret;
}
"""


def test_calls() -> None:
    body = (
        """
    { .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %r0; call.uni (r0), twice, (p0); ld.param.b32 %r3, [r0]; }
    call.uni (%r4), plus, (%r3, 100);
    { .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %r0; call.uni (r0), factorial, (p0); ld.param.b32 %r5, [r0]; }
    add.u32 %r9, %r4, %r5;
    """
        + STORE
    )
    words, done = run(body, threads=6, before=CALLS)
    assert words.tolist() == [101, 103, 106, 112, 132, 230]
    assert done.by_opcode["call"] == 6 * 3 + (1 + 2 + 3 + 4)


def test_indirect_call() -> None:
    body = (
        """
    mov.u64 %rd3, twice;
    { .param .b32 p0; .param .b32 r0; st.param.b32 [p0], %r0;
      shape: .callprototype (.param .b32 _) _ (.param .b32 _);
      call (r0), %rd3, (p0), shape; ld.param.b32 %r9, [r0]; }
    """
        + STORE
    )
    assert run(body, threads=3, before=CALLS)[0].tolist() == [0, 2, 4]
    with pytest.raises(KernelFault, match="no function"):
        run(body.replace("mov.u64 %rd3, twice", "mov.u64 %rd3, %rd1"), before=CALLS)


def test_endless_recursion_overflows_the_stack() -> None:
    before = """
    .func down() { .local .align 8 .b8 l[1024]; .reg .b32 %x; ld.local.u32 %x, [l]; call down; ret; }
    """
    with pytest.raises(StackOverflowError):
        run("call down;", threads=1, before=before)


# ---------------------------------------------------------------- barriers
def test_barrier_orders_shared_memory() -> None:
    body = (
        """
    .shared .align 4 .b8 s[512];
    mov.u32 %r3, s; shl.b32 %r4, %r0, 2; add.u32 %r5, %r3, %r4; st.shared.u32 [%r5], %r0;
    bar.sync 0;
    sub.u32 %r6, %r2, %r0; shl.b32 %r6, %r6, 2; add.u32 %r6, %r6, %r3; ld.shared.u32 %r9, [%r6+-4];
    """
        + STORE
    )
    assert run(body, threads=100)[0].tolist() == list(range(99, -1, -1))


def test_exited_threads_do_not_hold_up_a_barrier() -> None:
    body = "setp.gt.u32 %p0, %r0, 10; @%p0 exit; bar.sync 0; mov.u32 %r9, 1;" + STORE
    assert run(body, threads=64)[0].sum() == 11


def test_producer_and_consumer_warps() -> None:
    """Warp 0 arrives at barrier 1 and goes on, warp 1 waits there; the answer comes back through barrier 2."""
    body = (
        """
    .shared .align 4 .b8 s[8];
    setp.ge.u32 %p0, %r0, 32; @%p0 bra consumer;
    st.shared.u32 [s], 41; bar.arrive 1, 64; bar.sync 2, 64; ld.shared.u32 %r9, [s+4]; bra end;
    consumer: bar.sync 1, 64; ld.shared.u32 %r9, [s]; add.u32 %r3, %r9, 1; st.shared.u32 [s+4], %r3; bar.arrive 2, 64;
    end:
    """
        + STORE
    )
    words, _ = run(body, threads=64)
    assert words[:32].tolist() == [42] * 32
    assert words[32:].tolist() == [41] * 32


def test_barrier_reductions() -> None:
    body = (
        """
    setp.lt.u32 %p0, %r0, 40; bar.red.popc.u32 %r3, 0, %p0; bar.red.popc.u32 %r4, 0, !%p0;
    bar.red.and.pred %p1, 0, %p0; bar.red.or.pred %p2, 1, 64, %p0; selp.u32 %r5, 1, 0, %p1; selp.u32 %r6, 1, 0, %p2;
    mad.lo.u32 %r9, %r3, 1000, %r4; mad.lo.u32 %r9, %r9, 10, %r5; mad.lo.u32 %r9, %r9, 10, %r6;
    """
        + STORE
    )
    assert set(run(body, threads=64)[0].tolist()) == {4002401}


def test_deadlock_names_the_lines() -> None:
    body = "\nsetp.lt.u32 %p0, %r0, 32;\n@%p0 bar.sync 1;\n@!%p0 bar.sync 2;\n"
    with pytest.raises(DeadlockError, match=r"32 threads from \(0, 0, 0\) at PTX line \d+ \(bar.sync\); 32 threads"):
        run(body, threads=64)


def test_wrong_barriers() -> None:
    with pytest.raises(KernelFault, match="barrier 16 does not exist"):
        run("mov.u32 %r3, 16; bar.sync %r3;")
    with pytest.raises(KernelFault, match="multiple of 32"):
        run("mov.u32 %r3, 33; bar.sync 0, %r3;", threads=64)


# ---------------------------------------------------------------- warps
@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("shfl.sync.bfly.b32 %r9, %r0, 5, 31, -1;", LANES ^ 5),
        ("shfl.sync.up.b32 %r9, %r0, 3, 0, -1;", np.where(LANES >= 3, LANES - 3, LANES)),
        ("shfl.sync.down.b32 %r9, %r0, 3, 31, -1;", np.where(LANES <= 28, LANES + 3, LANES)),
        ("shfl.sync.idx.b32 %r9, %r0, 7, 31, -1;", LANES * 0 + 7),
        # Segments of 8 lanes: c = (32 - 8) << 8 | 7
        ("shfl.sync.down.b32 %r9, %r0, 2, 0x1807, -1;", np.where(LANES % 8 < 6, LANES + 2, LANES)),
        ("shfl.sync.idx.b32 %r9, %r0, 2, 0x1807, -1;", LANES // 8 * 8 + 2),
        ("vote.sync.ballot.b32 %r9, %p0, -1;", LANES * 0 + 0x000003FF),
        ("redux.sync.add.u32 %r9, %r0, -1;", LANES * 0 + 496),
        ("redux.sync.min.s32 %r9, %r3, -1;", LANES * 0 + np.uint32(-16 & 0xFFFFFFFF)),
        ("redux.sync.max.u32 %r9, %r3, -1;", LANES * 0 + np.uint32(0xFFFFFFFF)),
        ("redux.sync.or.b32 %r9, %r0, -1;", LANES * 0 + 31),
        ("match.any.sync.b32 %r9, %r4, -1;", np.uint32(0x11111111) << LANES % 4),
        ("match.all.sync.b32 %r9, %r2, -1;", LANES * 0 + np.uint32(0xFFFFFFFF)),
        ("match.all.sync.b32 %r9, %r0, -1;", LANES * 0),
        ("activemask.b32 %r9;", LANES * 0 + np.uint32(0xFFFFFFFF)),
        ("elect.sync %r9|%p1, 0xfff0; @%p1 add.u32 %r9, %r9, 100;", np.where(LANES == 4, 104, 4)),
    ],
)
def test_warp_instructions(instruction: str, expected: np.ndarray) -> None:
    body = "setp.lt.u32 %p0, %r0, 10; sub.u32 %r3, %r0, 16; and.b32 %r4, %r0, 3;"
    members = LANES >= 4 if "elect" in instruction else LANES >= 0
    if "elect" in instruction:
        body += "mov.u32 %r9, 4; setp.lt.u32 %p3, %r0, 4; @%p3 bra end; setp.gt.u32 %p3, %r0, 15; @%p3 bra end;"
    words, _ = run(body + instruction + "end:" + STORE)
    assert (words == expected)[members].all()


def test_lanes_meet_from_different_places() -> None:
    """Both sides of a branch hold a shuffle of their own; with one mask they are one operation."""
    body = (
        """
    and.b32 %r3, %r0, 1; setp.eq.u32 %p0, %r3, 0; @%p0 bra even;
    shfl.sync.bfly.b32 %r9, %r0, 1, 31, -1; bra end;
    even: mov.u32 %r4, 100; shfl.sync.bfly.b32 %r9, %r4, 1, 31, -1;
    end:
    """
        + STORE
    )
    # Compiled code runs the two sides one after the other, so there the lanes do not meet.
    assert run(body, engine=False)[0].tolist() == [i + 1 if i % 2 == 0 else 100 for i in range(32)]


def test_members_only() -> None:
    """A vote among the odd lanes does not wait for the even ones, which wait for it in bar.warp.sync."""
    body = (
        """
    and.b32 %r3, %r0, 1; setp.eq.u32 %p0, %r3, 0; @%p0 bra meet;
    setp.gt.u32 %p1, %r0, 7; vote.sync.ballot.b32 %r9, %p1, 0xaaaaaaaa;
    meet: bar.warp.sync -1;
    """
        + STORE
    )
    assert run(body)[0].tolist() == [0xAAAAAA00 if i % 2 else 0 for i in range(32)]


def test_old_forms_take_the_lanes_that_are_there() -> None:
    body = (
        """
    setp.lt.u32 %p0, %r0, 8; @!%p0 bra end;
    vote.ballot.b32 %r9, %p0; activemask.b32 %r3; xor.b32 %r3, %r3, 0xff; add.u32 %r9, %r9, %r3;
    end:
    """
        + STORE
    )
    assert run(body)[0].tolist() == [255] * 8 + [0] * 24


def test_lanes_that_never_come_are_a_deadlock() -> None:
    body = """
    setp.lt.u32 %p0, %r0, 8; @%p0 bra end; shfl.sync.idx.b32 %r9, %r0, 9, 31, -1; exit;
    end: bar.sync 1;
    """
    with pytest.raises(DeadlockError, match="shfl.sync.idx.b32"):
        run(body)


# ---------------------------------------------------------------- atomics
@pytest.mark.parametrize(
    ("operation", "start", "expected"),
    [
        ("add.u32", 5, 501),
        ("min.u32", 9, 0),
        ("max.s32", 0xFFFFFFF0, 31),
        ("and.b32", 0xFF, 0),
        ("or.b32", 64, 95),
        ("xor.b32", 7, 7),
        ("exch.b32", 5, 31),
        ("inc.u32", 0, None),
    ],
)
def test_atomics(operation: str, start: int, expected: int | None) -> None:
    if expected is None:
        # 32 steps of 0, 1, ..., 6, 0, ...
        body, expected = "atom.global.inc.u32 %r9, [%rd1], 6;", 32 % 7
    else:
        body = f"atom.global.{operation} %r9, [%rd1], %r0;"
    words, _ = run(body, out=[start])
    assert words.tolist() == [expected]


def test_atomic_old_values_and_cas() -> None:
    body = (
        """
    .shared .align 4 .b8 s[4];
    setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [s], 0; bar.sync 0;
    again: ld.volatile.shared.u32 %r3, [s]; add.u32 %r4, %r3, 3; atom.shared.cas.b32 %r5, [s], %r3, %r4;
    setp.ne.u32 %p1, %r5, %r3; @%p1 bra again;
    div.u32 %r9, %r3, 3;
    """
        + STORE
    )
    assert sorted(run(body, threads=64, in_order=False)[0].tolist()) == list(range(64))


def test_atomic_floats() -> None:
    body = """
    atom.global.add.f32 %f0, [%rd1], 0f3F800000;
    red.global.add.noftz.f16x2 [%rd1+4], %r3; red.global.dec.u32 [%rd1+8], 3;
    """
    words, _ = run("mov.b32 %r3, 0x3C003800;" + body, threads=4, out=[0x40000000, 0, 2])
    assert words[0] == 0x40C00000  # 2 + 4
    assert words[1] == 0x44004000  # 4 * (1, 0.5)
    assert words[2] == 2  # 1, 0, 3, 2


# ---------------------------------------------------------------- between blocks
def test_a_block_waits_for_a_later_one() -> None:
    before = ".global .u32 flag;"
    body = (
        """
    setp.eq.u32 %p0, %r1, 1; @%p0 bra signal;
    spin: ld.acquire.gpu.global.u32 %r9, [flag]; setp.eq.u32 %p1, %r9, 0; @%p1 bra spin; bra end;
    signal: mov.u32 %r9, 7; st.release.gpu.global.u32 [flag], 9;
    end:
    """
        + STORE
    )
    assert run(body, threads=1, blocks=2, before=before)[0].tolist() == [9, 7]


def test_endless_loops_end() -> None:
    with pytest.raises(LaunchTimeoutError, match="more than 10000 instructions"):
        run("top: bra top;", step_limit=10_000)


# ---------------------------------------------------------------- mbarrier and cp.async
MBARRIER = """
    .shared .align 8 .b8 bar[8]; .shared .align 4 .b8 s[256];
    setp.eq.u32 %p0, %r0, 0; @%p0 mbarrier.init.shared::cta.b64 [bar], 2; bar.sync 0;
"""


def test_mbarrier_phases() -> None:
    """Two arrivals complete a phase; the parity waits see each phase in turn."""
    body = (
        MBARRIER
        + """
    mov.u32 %r3, s; shl.b32 %r4, %r0, 2; add.u32 %r4, %r4, %r3; mov.u32 %r5, 0; mov.u32 %r9, 0;
    top:
    add.u32 %r6, %r0, %r5; st.shared.u32 [%r4], %r6;
    mbarrier.arrive.shared::cta.b64 %rd5, [bar];
    and.b32 %r7, %r5, 1;
    wait: mbarrier.try_wait.parity.shared::cta.b64 %p1, [bar], %r7; @!%p1 bra wait;
    xor.b32 %r8, %r0, 1; shl.b32 %r8, %r8, 2; add.u32 %r8, %r8, %r3; ld.shared.u32 %r8, [%r8];
    mad.lo.u32 %r9, %r9, 10, %r8; bar.sync 0;
    add.u32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, 3; @%p2 bra top;
    """
        + STORE
    )
    assert run(body, threads=2)[0].tolist() == [123, 12]


def test_mbarrier_tokens_counts_and_transactions() -> None:
    body = (
        MBARRIER
        + """
    mbarrier.arrive.shared::cta.b64 %rd5, [bar]; mbarrier.pending_count.b64 %r3, %rd5;
    mbarrier.test_wait.shared::cta.b64 %p1, [bar], %rd5; selp.u32 %r4, 1, 0, %p1;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 64;
    mbarrier.test_wait.shared::cta.b64 %p1, [bar], %rd5; selp.u32 %r5, 1, 0, %p1;
    mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 60;
    mbarrier.test_wait.shared::cta.b64 %p1, [bar], %rd5; selp.u32 %r6, 1, 0, %p1;
    mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 4;
    mbarrier.test_wait.shared::cta.b64 %p1, [bar], %rd5; selp.u32 %r7, 1, 0, %p1;
    mad.lo.u32 %r9, %r3, 10, %r4; mad.lo.u32 %r9, %r9, 10, %r5; mad.lo.u32 %r9, %r9, 10, %r6;
    mad.lo.u32 %r9, %r9, 10, %r7;
    """
        + STORE
    )
    assert run(body, threads=1)[0].tolist() == [20001]


def test_mbarrier_arrive_drop() -> None:
    """After a drop the next phases need one arrival less."""
    body = (
        MBARRIER
        + """
    mbarrier.arrive_drop.shared::cta.b64 _, [bar]; mbarrier.arrive.shared::cta.b64 %rd5, [bar];
    mbarrier.arrive.shared::cta.b64 %rd6, [bar]; mbarrier.test_wait.shared::cta.b64 %p1, [bar], %rd6;
    selp.u32 %r9, 1, 0, %p1;
    """
        + STORE
    )
    assert run(body, threads=1)[0].tolist() == [1]


def test_cp_async() -> None:
    body = """
    .shared .align 16 .b8 s[32];
    mov.u32 %r3, s; st.shared.u32 [s+12], 99;
    cp.async.cg.shared.global [%r3], [%rd1], 16, 10; cp.async.ca.shared.global [%r3+16], [%rd1], 4;
    setp.eq.u32 %p0, %r0, 0; cp.async.ca.shared.global [%r3+24], [%rd1], 8, %p0;
    cp.async.commit_group; cp.async.wait_group 0; cp.async.wait_all;
    ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [s]; ld.shared.u32 %r8, [s+16]; ld.shared.u32 %r9, [s+24];
    st.global.v4.u32 [%rd1], {%r5, %r6, %r7, %r8}; st.global.u32 [%rd1+16], %r9;
    """
    words, _ = run(body, threads=1, out=[0x11111111, 0x22222222, 0x33333333, 4, 5])
    assert words.tolist() == [0x22222222, 0x3333, 0, 0x11111111, 0]


# ---------------------------------------------------------------- faults
@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("ld.global.u32 %r9, [%rd1+128];", IllegalAddressError, "4 bytes at global address"),
        ("ld.global.u32 %r9, [%rd1+-4];", IllegalAddressError, "4 bytes at global address"),
        ("st.global.v2.u32 [%rd1+4], {%r0, %r0};", MisalignedAddressError, "8 bytes at global address"),
        ("mov.u64 %rd3, 0; ld.u8 %r9, [%rd3];", IllegalAddressError, "1 bytes at global address 0x0"),
        ("mov.u32 %r3, 0; ld.shared.u32 %r9, [%r3];", IllegalAddressError, "shared address 0x0"),
        ("mov.u64 %rd3, 0; atom.add.u32 %r9, [%rd3], 1;", IllegalAddressError, "atom.add.u32"),
        ("trap;", TrapError, "trap"),
    ],
)
def test_faults_say_where(body: str, error: type, text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        run(f"setp.ne.u32 %p0, %r1, 5; @%p0 bra end;\n{body}\nend:", threads=4, blocks=2, out=[0] * 32)
    fault = caught.value
    assert fault.kernel == "k"
    assert fault.ptx_line > 3
    assert (tuple(fault.block), tuple(fault.thread)) == ((1, 0, 0), (1, 0, 0))


def test_launch_mistakes() -> None:
    module = parse_module(f"{HEAD}.visible .entry k(.param .u32 a) {{ ret; }}")
    memory = ReferenceMemory()
    with pytest.raises(NoSuchKernelError):
        run_kernel(module, "j", 1, 1, [], memory)
    with pytest.raises(InvalidValueError, match="1 parameters, found 0"):
        run_kernel(module, "k", 1, 1, [], memory)
    with pytest.raises(InvalidValueError, match="4 bytes, found 8"):
        run_kernel(module, "k", 1, 1, [bytes(8)], memory)


# ---------------------------------------------------------------- the host
HOST = """
.extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);
.extern .func __assertfail(.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 u, .param .b64 c);
.extern .func (.param .b64 r) malloc(.param .b64 s);
.extern .func free(.param .b64 p);
.global .align 1 .b8 format[20] = {116, 37, 100, 32, 37, 46, 50, 102, 32, 37,
    115, 32, 37, 108, 108, 117, 37, 37, 10, 0};
.global .align 1 .b8 word[3] = {104, 105, 0};
"""


def test_printf() -> None:
    body = (
        """
    .local .align 8 .b8 a[32]; mov.u64 %rd3, a; cvta.local.u64 %rd4, %rd3;
    st.local.u32 [%rd3], -5; mov.f64 %fd0, 0d400921FB54442D18; st.local.f64 [%rd3+8], %fd0;
    mov.u64 %rd5, word; st.local.u64 [%rd3+16], %rd5; st.local.u64 [%rd3+24], 12345678901;
    mov.u64 %rd6, format;
    { .param .b64 p0; .param .b64 p1; .param .b32 r0; st.param.b64 [p0], %rd6; st.param.b64 [p1], %rd4;
      call.uni (r0), vprintf, (p0, p1); ld.param.b32 %r9, [r0]; }
    """
        + STORE
    )
    words, done = run(body, threads=1, before=HOST)
    assert done.printed == "t-5 3.14 hi 12345678901%\n"
    assert words.tolist() == [4]


def test_assert() -> None:
    body = """
    mov.u64 %rd3, word;
    { .param .b64 p0; .param .b64 p1; .param .b32 p2; .param .b64 p3; .param .b64 p4;
      st.param.b64 [p0], %rd3; st.param.b64 [p1], %rd3; st.param.b32 [p2], 12; st.param.b64 [p3], %rd3;
      st.param.b64 [p4], 1;
      call.uni __assertfail, (p0, p1, p2, p3, p4); }
    """
    with pytest.raises(DeviceAssertError, match="hi:12: hi: Assertion `hi` failed"):
        run(body, before=HOST)


def test_malloc_and_free() -> None:
    body = (
        """
    { .param .b64 p0; .param .b64 r0; st.param.b64 [p0], 16; call.uni (r0), malloc, (p0); ld.param.b64 %rd3, [r0]; }
    st.u32 [%rd3+12], 5; ld.u32 %r9, [%rd3+12];
    { .param .b64 p0; st.param.b64 [p0], %rd3; call.uni free, (p0); }
    """
        + STORE
    )
    assert run(body, threads=2, before=HOST)[0].tolist() == [5, 5]
    with pytest.raises(IllegalAddressError):
        run(body + "ld.u32 %r9, [%rd3];", threads=1, before=HOST)
