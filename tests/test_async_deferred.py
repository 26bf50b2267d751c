"""Deferred copies: kernels that forget a wait see old data, their correct twins do not; and without deferral neither
does. Groups, mbarrier objects, bulk and tensor copies, suspension between issue and wait, and a queue that is full."""

from __future__ import annotations

import numpy as np
import pytest
from async_oracle import SHARED_BYTES, load_kernel

import weft
from weft import settings
from weft.codegen.deferred import CAPACITY
from weft.errors import InvalidValueError, KernelFault

OLD = 7


@pytest.fixture(scope="module", params=[True, False], ids=["deferred", "at issue"])
def gpu(request):
    return weft.Device("h100", threads=1, deferred_copies=request.param)


def kernel(body: str, declarations: str = "") -> str:
    """Each of 64 threads has a word of `tile` (first OLD) and of x and y; the body ends with what y gets in %r9."""
    return f"""
.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 y) {{
.reg .b32 %r<30>; .reg .b64 %rd<20>; .reg .pred %p<9>;
.shared .align 128 .b8 tile[1024];
.shared .align 8 .b64 bar; {declarations}
ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y];
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 2; cvt.u64.u32 %rd3, %r2; add.u64 %rd4, %rd1, %rd3; add.u64 %rd5, %rd2, %rd3;
mov.u32 %r3, tile; add.u32 %r4, %r3, %r2; mov.u32 %r5, bar;
setp.eq.u32 %p1, %r1, 0; setp.lt.u32 %p2, %r1, 20;
mov.u32 %r6, {OLD}; st.shared.u32 [%r4], %r6; st.shared.u32 [%r4+256], %r6; st.shared.u32 [%r4+512], %r6;
{body}
st.global.u32 [%rd5], %r9;
ret;
}}
"""


def run(gpu, body: str, declarations: str = "", words: int = 64):
    x = np.arange(100, 100 + words, dtype=np.uint32)
    device, out = gpu.array(x), gpu.zeros(words, np.uint32)
    gpu.load(kernel(body, declarations))["k"][1, 64](device, out)
    return x, out.numpy()


def expect(gpu, found, visible, deferred: bool):
    """Where copies are deferred a forgotten wait shows: `deferred` says whether the wait is missing."""
    expected = np.full(64, OLD, np.uint32) if deferred and gpu.deferred_copies else visible[:64]
    np.testing.assert_array_equal(found[:64], expected)


COPY = "cp.async.ca.shared.global [%r4], [%rd4], 4;"
READ = "ld.shared.u32 %r9, [%r4];"


@pytest.mark.parametrize("wait,forgotten", [
    ("", True), ("cp.async.commit_group;", True), ("cp.async.wait_group 0;", True), ("cp.async.wait_all;", False),
    ("cp.async.commit_group; cp.async.wait_group 1;", True), ("cp.async.commit_group; cp.async.wait_group 0;", False),
    ("cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;", False), ("bar.sync 0;", True),
    ("cp.async.commit_group; bar.sync 0; cp.async.wait_group 0;", False), ("membar.gl;", True),
])  # fmt: skip
def test_groups(gpu, wait, forgotten):
    x, found = run(gpu, f"{COPY} {wait} {READ}")
    expect(gpu, found, x, forgotten)


def test_groups_are_the_threads_own(gpu):
    """Twenty threads commit and wait, the others do not."""
    x, found = run(gpu, f"{COPY} @%p2 cp.async.commit_group; @%p2 cp.async.wait_group 0; {READ}")
    if gpu.deferred_copies:
        x[20:] = OLD
    np.testing.assert_array_equal(found, x)


def test_groups_of_lanes_that_differ(gpu):
    """Lanes whose group numbers differ issue one copy together."""
    body = f"@%p2 cp.async.commit_group; {COPY} cp.async.commit_group; @%p2 cp.async.wait_group 0; {READ}"
    x, found = run(gpu, body)
    if gpu.deferred_copies:
        x[20:] = OLD
    np.testing.assert_array_equal(found, x)


def test_only_older_groups(gpu):
    """A pipeline of two stages: the wait leaves the newest group pending."""
    body = """
    cp.async.ca.shared.global [%r4], [%rd4], 4; cp.async.commit_group;
    cp.async.ca.shared.global [%r4+256], [%rd4], 4; cp.async.commit_group;
    cp.async.wait_group 1; ld.shared.u32 %r10, [%r4]; ld.shared.u32 %r11, [%r4+256];
    shl.b32 %r11, %r11, 16; or.b32 %r9, %r10, %r11;"""
    x, found = run(gpu, body)
    second = np.uint32(OLD) if gpu.deferred_copies else x
    np.testing.assert_array_equal(found, x | second << 16)


def test_partial_copies_and_late_source(gpu):
    """The bytes beyond the source size are zero; the source is read at the wait."""
    body = """mov.u32 %r7, 2; cp.async.ca.shared.global [%r4], [%rd4], 4, %r7;
    mov.u32 %r8, 5; st.global.u32 [%rd4], %r8; cp.async.wait_all; ld.shared.u32 %r9, [%r4];"""
    x, found = run(gpu, body)
    np.testing.assert_array_equal(found, 5 if gpu.deferred_copies else x & 0xFFFF)


ARRIVE = f"""@%p1 mbarrier.init.shared::cta.b64 [%r5], 64; bar.sync 0; {COPY}
cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r5];"""
WAIT = "wait: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r5], 0; @!%p3 bra wait;"


def test_small_copies_and_an_mbarrier(gpu):
    x, found = run(gpu, f"{ARRIVE} {WAIT} {READ}")
    np.testing.assert_array_equal(found, x)
    x, found = run(gpu, f"{ARRIVE} bar.sync 0; {READ}")
    expect(gpu, found, x, True)


def test_small_copies_add_to_the_count(gpu):
    """Without .noinc the arrival is one more than the count says."""
    body = f"""@%p1 mbarrier.init.shared::cta.b64 [%r5], 64; bar.sync 0; {COPY}
    cp.async.mbarrier.arrive.shared::cta.b64 [%r5]; mbarrier.arrive.shared::cta.b64 _, [%r5]; {WAIT} {READ}"""
    x, found = run(gpu, body)
    np.testing.assert_array_equal(found, x)


LOAD = """@%p1 mbarrier.init.shared::cta.b64 [%r5], 1; bar.sync 0;
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 256;
@%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd1], 256, [%r5];"""


def test_bulk_load(gpu):
    x, found = run(gpu, f"{LOAD} {WAIT} {READ}")
    np.testing.assert_array_equal(found, x)
    x, found = run(gpu, f"{LOAD} bar.sync 0; {READ}")
    expect(gpu, found, x, True)


def test_bulk_load_before_the_expectation(gpu):
    """The copy is issued before its bytes are expected."""
    lines = LOAD.splitlines()
    x, found = run(gpu, "\n".join([lines[0], lines[2], "bar.sync 0;", lines[1], WAIT, READ]))
    np.testing.assert_array_equal(found, x)


def test_waits_for_another_phase_show_nothing(gpu):
    """A test that the phase before is over is true at once, and no wait for the copy."""
    body = f"{LOAD} mbarrier.test_wait.parity.shared::cta.b64 %p3, [%r5], 1; selp.u32 %r9, 0, 1000, %p3;"
    _, found = run(gpu, f"{body} ld.shared.u32 %r10, [%r4]; add.u32 %r9, %r9, %r10;")
    first = OLD if gpu.deferred_copies else None
    if first is not None:
        np.testing.assert_array_equal(found, OLD)


def test_phases_in_a_ring(gpu):
    """Eight copies through two stages, each waited for before its stage is used again."""
    body = """
    .shared .align 8 .b64 bars[2];
    @%p1 mbarrier.init.shared::cta.b64 [bars], 1; @%p1 mbarrier.init.shared::cta.b64 [bars+8], 1; bar.sync 0;
    mov.u32 %r9, 0; mov.u32 %r10, 0;
    loop:
    and.b32 %r11, %r10, 1; shl.b32 %r12, %r11, 8; add.u32 %r12, %r12, %r3; shl.b32 %r13, %r11, 3; mov.u32 %r14, bars;
    add.u32 %r13, %r13, %r14; shr.u32 %r15, %r10, 1; and.b32 %r15, %r15, 1;
    mul.wide.u32 %rd6, %r10, 256; add.u64 %rd6, %rd6, %rd1;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r13], 256;
    @%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r12], [%rd6], 256, [%r13];
    again: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r13], %r15; @!%p3 bra again;
    add.u32 %r16, %r12, %r2; ld.shared.u32 %r17, [%r16]; add.u32 %r9, %r9, %r17;
    bar.sync 0;
    add.u32 %r10, %r10, 1; setp.lt.u32 %p4, %r10, 8; @%p4 bra loop;"""
    x, found = run(gpu, body, words=512)
    np.testing.assert_array_equal(found[:64], x.reshape(8, 64).sum(0))


STORE = """st.shared.u32 [%r4], %r1; fence.proxy.async.shared::cta; bar.sync 0;
@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r3], 256; @%p1 cp.async.bulk.commit_group;"""
OVERWRITE = "bar.sync 0; mov.u32 %r7, 99; st.shared.u32 [%r4], %r7; mov.u32 %r9, 0; bar.sync 0;"


@pytest.mark.parametrize("wait,late", [("cp.async.bulk.wait_group.read 0;", False), ("cp.async.bulk.wait_group 0;", False),
                                       ("", True), ("cp.async.bulk.wait_group.read 1;", True)])  # fmt: skip
def test_bulk_store_reads_its_source_at_the_wait(gpu, wait, late):
    """Overwriting the source too early shows in what was stored."""
    device, out = gpu.zeros(64, np.uint32), gpu.zeros(64, np.uint32)
    text = kernel(f"{STORE} {'@%p1 ' + wait if wait else ''} {OVERWRITE}")
    gpu.load(text)["k"][1, 64](device, out)
    expected = np.full(64, 99) if late and gpu.deferred_copies else np.arange(64)
    np.testing.assert_array_equal(device.numpy(), expected)


def test_stores_are_made_by_the_end(gpu):
    """Also with no wait at all."""
    device, out = gpu.zeros(64, np.uint32), gpu.zeros(64, np.uint32)
    gpu.load(kernel(f"{STORE} mov.u32 %r9, 1;"))["k"][1, 64](device, out)
    np.testing.assert_array_equal(device.numpy(), np.arange(64))


def test_reductions(gpu):
    body = """st.shared.u32 [%r4], %r1; bar.sync 0;
    @%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd1], [%r3], 256;
    @%p1 cp.async.bulk.commit_group; ld.global.u32 %r9, [%rd4]; bar.sync 0; @%p1 cp.async.bulk.wait_group 0;"""
    device, out = gpu.full(64, 5, np.uint32), gpu.zeros(64, np.uint32)
    gpu.load(kernel(body))["k"][1, 64](device, out)
    np.testing.assert_array_equal(device.numpy(), 5 + np.arange(64))
    np.testing.assert_array_equal(out.numpy(), 5 if gpu.deferred_copies else 5 + np.arange(64))


@pytest.mark.parametrize("forgotten", [False, True])
def test_tensor_load(gpu, forgotten):
    text = load_kernel(2).replace("sm_100a", "sm_90a")
    if forgotten:
        text = text.replace("@!%p3 bra wait;", "").replace(
            "wait: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r23], 0;", ""
        )
    array = np.arange(16 * 32, dtype=np.uint32).reshape(16, 32)
    before, after = gpu.full(SHARED_BYTES, 3, np.uint8), gpu.zeros(SHARED_BYTES, np.uint8)
    made = weft.tensor_map(gpu.array(array), (16, 32))
    gpu.load(text)["k"][1, 32](made, before, after, *(0,) * 8, 0, array.nbytes)
    found = after.numpy()[: array.nbytes]
    expected = np.full(array.nbytes, 3) if forgotten and gpu.deferred_copies else array.view(np.uint8).ravel()
    np.testing.assert_array_equal(found, expected)


# ---------------------------------------------------------------- the mode itself
def test_full_queue():
    deferred = weft.Device("h100", threads=1, deferred_copies=True)
    body = f"""mov.u32 %r10, 0; loop: {COPY} add.u32 %r10, %r10, 1; setp.lt.u32 %p3, %r10, {CAPACITY + 1};
    @%p3 bra loop; {READ}"""
    with pytest.raises(KernelFault, match=f"keep {CAPACITY} in a block.*cp.async.*wait for copies more often"):
        run(deferred, body)
    emptied = body.replace("@%p3 bra loop;", "cp.async.wait_all; @%p3 bra loop;")
    x, found = run(deferred, emptied)
    np.testing.assert_array_equal(found, x)


def test_every_block_starts_with_an_empty_queue():
    deferred = weft.Device("h100", threads=1, deferred_copies=True)
    x, out = deferred.array(np.arange(64, dtype=np.uint32)), deferred.zeros(64, np.uint32)
    many = deferred.load(kernel(f"{COPY} {READ}"))["k"]
    many[CAPACITY, 64](x, out)
    np.testing.assert_array_equal(out.numpy(), OLD)


def test_setting():
    base = {"WEFT_CACHE_DIR": "/tmp/x"}
    assert not settings.read_settings(base).deferred_copies
    assert settings.read_settings({**base, "WEFT_DEFERRED_COPIES": "1"}).deferred_copies
    with pytest.raises(InvalidValueError, match="WEFT_DEFERRED_COPIES"):
        settings.read_settings({**base, "WEFT_DEFERRED_COPIES": "yes"})


def test_both_modes_have_their_own_code(tmp_path):
    """The object cache keeps them apart."""
    text = kernel(f"{COPY} {READ}")
    for _ in range(2):
        for flag in (False, True):
            device = weft.Device("h100", threads=1, deferred_copies=flag, cache_dir=tmp_path)
            x, out = device.array(np.arange(64, dtype=np.uint32)), device.zeros(64, np.uint32)
            device.load(text)["k"][1, 64](x, out)
            np.testing.assert_array_equal(out.numpy(), OLD if flag else np.arange(64))
