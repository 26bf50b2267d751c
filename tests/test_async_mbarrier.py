"""mbarrier objects: phases, counts, drops, transactions and tokens against a model; misuse; what a deadlock says; objects
of other blocks; and how warps that wait give way."""

from __future__ import annotations

import random
import re
import struct

import numpy as np
import pytest

import weft
from weft.errors import DeadlockError, IllegalAddressError, KernelFault, MisalignedAddressError
from weft.isa.barrier import COUNT_MASK
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel


@pytest.fixture(scope="module")
def gpu():
    return weft.Device("h100", threads=1, time_limit=30)


def kernel(body: str, cluster: str = "") -> str:
    """%r3 is the address of `bar`, %rd3 that of the thread's 8 bytes of `out`, %p1 chooses thread 0."""
    return f"""
.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out) {cluster} {{
.reg .b32 %r<30>; .reg .b64 %rd<30>; .reg .pred %p<9>;
.shared .align 8 .b64 other; .shared .align 8 .b64 bar;
ld.param.u64 %rd1, [out];
mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r4, %ntid.x; mad.lo.u32 %r5, %r2, %r4, %r1;
mul.wide.u32 %rd2, %r5, 8; add.u64 %rd3, %rd1, %rd2; mov.u32 %r3, bar; setp.eq.u32 %p1, %r1, 0;
{body}
ret;
}}
"""


def run(gpu, body: str, threads: int = 32, blocks: int = 1, cluster: str = "", interpreter: bool = True) -> np.ndarray:
    """out afterwards; the interpreter must leave the same."""
    text = kernel(body, cluster)
    out = gpu.zeros(threads * blocks, np.uint64)
    gpu.load(text, "k.ptx")["k"][blocks, threads](out)
    if interpreter:
        memory = ReferenceMemory()
        address = memory.allocate(out.nbytes)
        run_kernel(parse_module(text), "k", blocks, threads, struct.pack("<Q", address), memory)
        np.testing.assert_array_equal(out.numpy(), np.frombuffer(memory.read(address, out.nbytes), np.uint64))
    return out.numpy()


class Model:
    """An mbarrier object as the manual describes it."""

    def __init__(self, count: int):
        self.expected = self.pending = count
        self.tx = self.phase = 0

    def change(self, arrivals: int = 0, dropped: int = 0, tx: int = 0) -> None:
        self.tx += tx
        self.pending -= arrivals
        self.expected -= dropped
        if self.pending == 0 and self.tx == 0:
            self.phase += 1
            self.pending = self.expected


@pytest.mark.parametrize("seed", range(12))
def test_random_operations(gpu, seed):
    """One thread does legal operations at random; after each it notes whether the phases 0 and 1 are over."""
    rng = random.Random(seed)
    count = rng.choice((1, 3, 1000, COUNT_MASK))
    model, lines, expected = Model(count), [f"mbarrier.init.shared::cta.b64 [%r3], {count};"], []
    for step in range(40):
        free = model.pending
        kind = rng.choice(("arrive", "arrive", "count", "drop", "expect_tx", "tx", "complete", "generic"))
        amount = rng.randint(1, max(1, min(free, 40))) if rng.random() < 0.5 else free
        if kind == "complete" and model.tx > 0 and free:
            done = rng.randint(1, model.tx)
            lines.append(f"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r3], {done};")
            model.change(tx=-done)
        elif kind == "tx" and free and model.tx < 5000:
            lines.append("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r3], 640;")
            model.change(tx=640)
        elif kind == "expect_tx" and free and model.tx < 5000:
            lines.append("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r3], 128;")
            model.change(1, tx=128)
        elif kind == "drop" and model.expected > 2 and free:
            lines.append("mbarrier.arrive_drop.shared::cta.b64 %rd5, [%r3];")
            model.change(1, 1)
        elif kind == "count" and free:
            lines.append(f"mbarrier.arrive.release.cta.shared::cta.b64 %rd5, [%r3], {amount};")
            model.change(amount)
        elif kind == "generic" and free:
            lines.append("cvt.u64.u32 %rd6, %r3; cvta.shared.u64 %rd6, %rd6; mbarrier.arrive.b64 %rd5, [%rd6];")
            model.change(1)
        elif free:
            lines.append("mbarrier.arrive.shared.b64 _, [%r3];")
            model.change(1)
        if model.pending == 0 and model.tx:  # nothing but the bytes is missing
            lines.append(f"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r3], {model.tx};")
            model.change(tx=-model.tx)
        lines += [f"mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 %p{i + 2}, [%r3], {i};" for i in (0, 1)]
        lines.append(f"selp.u32 %r{6 + step % 2}, 1, 0, %p2; selp.u32 %r8, 2, 0, %p3;")
        lines.append(f"add.u32 %r8, %r8, %r{6 + step % 2}; mul.lo.u64 %rd7, %rd7, 3; cvt.u64.u32 %rd8, %r8;")
        lines.append("add.u64 %rd7, %rd7, %rd8;")
        expected.append(1 if model.phase % 2 == 1 else 2)
    found = run(gpu, "mov.u64 %rd7, 0;" + "\n".join(lines) + "st.global.u64 [%rd3], %rd7;", threads=1)
    total = 0
    for value in expected:
        total = (total * 3 + value) % (1 << 64)
    assert found[0] == total


def test_tokens(gpu):
    """A token says whether its own phase is over, and the pending count before the arrival."""
    body = """
    mbarrier.init.shared::cta.b64 [%r3], 5;
    mbarrier.arrive.noComplete.release.cta.shared::cta.b64 %rd4, [%r3], 3; mbarrier.pending_count.b64 %r6, %rd4;
    mbarrier.arrive_drop.noComplete.shared::cta.b64 %rd5, [%r3], 1; mbarrier.pending_count.b64 %r7, %rd5;
    mbarrier.test_wait.shared::cta.b64 %p2, [%r3], %rd4; selp.u32 %r8, 1, 0, %p2;
    mbarrier.arrive.shared::cta.b64 %rd6, [%r3]; mbarrier.try_wait.shared::cta.b64 %p3, [%r3], %rd4, 100;
    selp.u32 %r9, 1, 0, %p3; mbarrier.arrive.shared::cta.b64 %rd7, [%r3]; mbarrier.pending_count.b64 %r10, %rd7;
    mbarrier.test_wait.shared::cta.b64 %p4, [%r3], %rd7; selp.u32 %r11, 1, 0, %p4;
    mad.lo.u32 %r6, %r6, 10, %r7; mad.lo.u32 %r6, %r6, 10, %r8; mad.lo.u32 %r6, %r6, 10, %r9;
    mad.lo.u32 %r6, %r6, 10, %r10; mad.lo.u32 %r6, %r6, 10, %r11; cvt.u64.u32 %rd8, %r6; st.global.u64 [%rd3], %rd8;"""
    assert run(gpu, body, threads=1)[0] == 520140


def test_lanes_arrive_one_by_one(gpu):
    """Lanes with addresses and counts of their own; each gets the state before its arrival."""
    body = """
    @%p1 mbarrier.init.shared::cta.b64 [%r3], 800; mov.u32 %r6, other; @%p1 mbarrier.init.shared::cta.b64 [%r6], 800;
    bar.sync 0; and.b32 %r7, %r1, 1; setp.eq.u32 %p2, %r7, 1; selp.u32 %r8, %r3, %r6, %p2; add.u32 %r9, %r1, 1;
    mbarrier.arrive.shared::cta.b64 %rd4, [%r8], %r9; mbarrier.pending_count.b64 %r10, %rd4; cvt.u64.u32 %rd5, %r10;
    st.global.u64 [%rd3], %rd5;"""
    found = run(gpu, body)
    for parity in (0, 1):
        counts = np.arange(parity, 32, 2) + 1
        before = 800 - np.concatenate([[0], np.cumsum(counts)[:-1]])
        np.testing.assert_array_equal(found[parity::2], before)


@pytest.mark.parametrize("threads", [32, 96, 1000])
def test_phases_among_warps(gpu, threads):
    """Every thread arrives and waits ten times; in each phase it reads what its neighbour wrote in the one before."""
    body = f"""
    .shared .align 8 .b64 slots[1024];
    @%p1 mbarrier.init.shared::cta.b64 [%r3], {threads}; bar.sync 0; mov.u32 %r6, 0; mov.u64 %rd4, 0;
    mov.u32 %r7, slots; shl.b32 %r8, %r1, 3; add.u32 %r9, %r7, %r8; add.u32 %r10, %r1, 1;
    rem.u32 %r10, %r10, {threads}; shl.b32 %r10, %r10, 3; add.u32 %r10, %r10, %r7;
    loop: mul.lo.u32 %r11, %r1, 7; add.u32 %r11, %r11, %r6; cvt.u64.u32 %rd5, %r11; st.shared.u64 [%r9], %rd5;
    mbarrier.arrive.shared::cta.b64 %rd6, [%r3];
    wait: mbarrier.try_wait.shared::cta.b64 %p2, [%r3], %rd6; @!%p2 bra wait;
    ld.shared.u64 %rd7, [%r10]; add.u64 %rd4, %rd4, %rd7;
    mbarrier.arrive.shared::cta.b64 %rd6, [%r3];
    again: mbarrier.test_wait.shared::cta.b64 %p2, [%r3], %rd6; @!%p2 bra again;
    add.u32 %r6, %r6, 1; setp.lt.u32 %p3, %r6, 10; @%p3 bra loop;
    st.global.u64 [%rd3], %rd4;"""
    found = run(gpu, body, threads, interpreter=threads == 32)
    neighbour = (np.arange(threads) + 1) % threads
    np.testing.assert_array_equal(found, 10 * 7 * neighbour + 45)


def test_other_blocks_of_the_cluster(gpu):
    """Each block's threads arrive at the next block's object, half of them with mapa's address, half through generic
    addresses; each waits for its own."""
    body = """
    @%p1 mbarrier.init.shared::cta.b64 [%r3], 64; barrier.cluster.arrive; barrier.cluster.wait;
    mov.u32 %r6, %cluster_ctarank; add.u32 %r6, %r6, 1; and.b32 %r6, %r6, 3;
    mapa.shared::cluster.u32 %r7, %r3, %r6; setp.lt.u32 %p2, %r1, 32;
    @%p2 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r7];
    @!%p2 mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%r7], 32;
    @!%p2 mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%r7], 32;
    barrier.cluster.arrive; barrier.cluster.wait;
    wait: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p3, [%r3], 0; @!%p3 bra wait;
    mov.u64 %rd4, 1; st.global.u64 [%rd3], %rd4; barrier.cluster.arrive; barrier.cluster.wait;"""
    found = run(gpu, body, 64, 4, ".reqnctapercluster 4, 1, 1")
    np.testing.assert_array_equal(found, 1)


# ---------------------------------------------------------------- misuse
@pytest.mark.parametrize("body,error,why", [
    ("mbarrier.arrive.shared::cta.b64 _, [%r3];", KernelFault, "the mbarrier bar .*is not initialised"),
    ("mbarrier.init.shared::cta.b64 [%r3], 1; mbarrier.inval.shared::cta.b64 [%r3]; "
     "mbarrier.test_wait.parity.shared::cta.b64 %p2, [%r3], 0;", KernelFault, "is not initialised, or was invalidated"),
    ("mbarrier.init.shared::cta.b64 [%r3], 0;", KernelFault, "its count must be 1 to 1048575"),
    ("mbarrier.init.shared::cta.b64 [%r3], 1048576;", KernelFault, "its count must be 1 to 1048575"),
    ("mbarrier.init.shared::cta.b64 [%r3], 2; mbarrier.arrive.shared::cta.b64 _, [%r3], 3;", KernelFault,
     "more arrivals than the phase has pending"),
    ("mbarrier.init.shared::cta.b64 [%r3], 2; mbarrier.arrive.shared::cta.b64 _, [%r3], 0;", KernelFault, "count must be"),
    ("mbarrier.init.shared::cta.b64 [%r3], 2; mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r3], 1048576;", KernelFault,
     "transaction count leaves the range"),
    ("mbarrier.init.shared::cta.b64 [%r3], 2; mbarrier.arrive.noComplete.shared::cta.b64 %rd4, [%r3], 2;", KernelFault,
     "with .noComplete would complete the phase"),
    ("mbarrier.init.shared::cta.b64 [%r3+4], 2;", MisalignedAddressError, "4 bytes past a multiple of 8"),
    ("mbarrier.init.shared::cta.b64 [%r3+65536], 2;", IllegalAddressError, "beyond what the launch has"),
    ("mov.u64 %rd4, 4096; mbarrier.init.b64 [%rd4], 2;", IllegalAddressError, "illegal memory access"),
])  # fmt: skip
def test_misuse(gpu, body, error, why):
    with pytest.raises(error, match=why) as caught:
        run(gpu, body, threads=1, interpreter=False)
    assert caught.value.ptx_line
    with pytest.raises(KernelFault):
        memory = ReferenceMemory()
        run_kernel(parse_module(kernel(body)), "k", 1, 1, struct.pack("<Q", memory.allocate(8)), memory)


def test_deadlock_names_the_object(gpu):
    body = """
    @%p1 mbarrier.init.shared::cta.b64 [%r3], 3; bar.sync 0;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 96;
    wait: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;
    @!%p2 bra wait;"""
    with pytest.raises(DeadlockError) as caught:
        run(gpu, body, threads=64, interpreter=False)
    text = str(caught.value)
    assert "block (0, 0, 0) warp 0 waits at PTX line" in text and "warp 1 waits" in text
    words = (
        r"for the mbarrier bar \(shared address 0x\d\): phase 0 is not over, 2 of 3 arrivals and 96 bytes are missing"
    )
    assert len(re.findall(words, text)) == 2


def test_spinning_on_memory_is_no_wait_for_an_object(gpu):
    """The report keeps the two apart."""
    body = """
    @%p1 mbarrier.init.shared::cta.b64 [%r3], 1; bar.sync 0; @%p1 mbarrier.arrive.shared::cta.b64 _, [%r3];
    wait: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0; @!%p2 bra wait;
    spin: ld.volatile.global.u64 %rd4, [%rd1]; setp.eq.u64 %p3, %rd4, 0; @%p3 bra spin;"""
    with pytest.raises(DeadlockError, match="warp 0 spins at PTX line"):
        run(gpu, body, interpreter=False)
