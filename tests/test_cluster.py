"""Thread-block clusters: registers, the cluster's barrier, other blocks' shared memory, st.async and red.async; held
against NumPy, the interpreter and ptxas."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
from test_acceptance import PTXAS, ask_ptxas, newest_version

import weft
from weft.errors import (
    DeadlockError,
    IllegalAddressError,
    InvalidClusterSizeError,
    InvalidConfigurationError,
    KernelFault,
    MisalignedAddressError,
    PtxError,
    UnsupportedError,
)
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel

HEAD = ".version 8.6\n.target sm_90a\n.address_size 64\n.shared .align 16 .b8 words[4096];\n"
REGISTERS = (
    ".reg .b16 %h<4>; .reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .f32 %f<8>; .reg .pred %p<8>; .reg .b64 %bar<4>;"
)
# %rd0 is the address of this thread's word of `out`, %r0 the thread's index in the block, %r1 in the grid; %r10 the
# block's rank, %r11 the blocks of a cluster, %r12 the shared address of this thread's word.
PROLOGUE = """
    ld.param.u64 %rd1, [out]; mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %ctaid.y; mov.u32 %r4, %nctaid.x; mad.lo.u32 %r1, %r3, %r4, %r1;
    mad.lo.u32 %r1, %r1, %r2, %r0; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd0, %rd1, %rd2;
    mov.u32 %r10, %cluster_ctarank; mov.u32 %r11, %cluster_nctarank; mov.u32 %r12, words; mad.lo.u32 %r12, %r0, 4, %r12;
"""
SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


@pytest.fixture(scope="module")
def gpu() -> weft.Device:
    return weft.Device("h100", threads=2)


def kernel_text(body: str, directives: str = "") -> str:
    return f"{HEAD}.visible .entry k(.param .u64 out)\n{directives}\n{{{REGISTERS}{PROLOGUE}{body}\nret;\n}}\n"


def run(gpu, body: str, grid=8, block=64, cluster=4, *, directives: str = "", words: int = 0, interpreter: bool = True,
        **options) -> np.ndarray:  # fmt: skip
    """The words that k(out) leaves; the interpreter must leave the same."""
    text = kernel_text(body, directives)
    shape = grid if isinstance(grid, tuple) else (grid,)
    count = words or int(np.prod(shape)) * block
    out = gpu.zeros(count, np.uint32)
    gpu.load(text, "k.ptx")["k"][grid, block](out, cluster=cluster, **options)
    if interpreter:
        assert np.array_equal(interpret(text, grid, block, cluster, count), out.numpy())
    return out.numpy()


def interpret(text: str, grid, block, cluster, count: int) -> np.ndarray:
    memory = ReferenceMemory()
    address = memory.allocate(4 * count)
    module = parse_module(text, "k.ptx", check=True)
    run_kernel(module, "k", grid, block, [struct.pack("<Q", address)], memory, cluster=cluster)
    return np.frombuffer(memory.read(address, 4 * count), np.uint32)


# ---------------------------------------------------------------- registers and launch shapes
@pytest.mark.parametrize(
    "grid, cluster", [((8,), 4), ((6, 4), (3, 2)), ((4, 4, 2), (2, 2, 2)), ((5,), 1), ((7,), 7), ((3, 3), None)]
)
def test_registers(gpu, grid, cluster) -> None:
    names = [f"%{stem}.{axis}" for stem in ("clusterid", "nclusterid", "cluster_ctaid", "cluster_nctaid", "ctaid")
             for axis in "xyz"] + ["%cluster_ctarank", "%cluster_nctarank"]  # fmt: skip
    body = """
    mov.u32 %r5, %ctaid.z; mov.u32 %r6, %nctaid.y; mad.lo.u32 %r5, %r5, %r6, %r3; mov.u32 %r6, %ctaid.x;
    mad.lo.u32 %r5, %r5, %r4, %r6; mul.lo.u32 %r5, %r5, 72; cvt.u64.u32 %rd3, %r5; add.u64 %rd3, %rd1, %rd3;
    """
    body += "".join(f"mov.u32 %r7, {name}; st.global.u32 [%rd3+{4 * i}], %r7;" for i, name in enumerate(names))
    body += "mov.pred %p1, %is_explicit_cluster; selp.u32 %r7, 1, 0, %p1; st.global.u32 [%rd3+68], %r7;"
    shape = (*grid, 1, 1)[:3]
    extent = (1, 1, 1) if cluster is None else (*((cluster,) if isinstance(cluster, int) else cluster), 1, 1)[:3]
    found = run(gpu, body, grid, 1, cluster, words=18 * int(np.prod(shape))).reshape(-1, 18)
    for linear, (z, y, x) in enumerate(itertools.product(*(range(n) for n in shape[::-1]))):
        index = (x, y, z)
        within = [i % c for i, c in zip(index, extent)]
        rank = within[0] + extent[0] * (within[1] + extent[1] * within[2])
        cluster_index, clusters = ([i // c for i, c in zip(what, extent)] for what in (index, shape))
        size = int(np.prod(extent))
        expected = [*cluster_index, *clusters, *within, *extent, *index, rank, size, cluster is not None]
        assert found[linear].tolist() == expected


def test_the_kernel_declares_its_clusters(gpu) -> None:
    body = "st.global.u32 [%rd0], %r10;"
    text = kernel_text(body, ".explicitcluster\n.reqnctapercluster 2, 2, 1")
    out = gpu.zeros(16, np.uint32)
    gpu.load(text, "k.ptx")["k"][(4, 4), 1](out)
    assert out.numpy().reshape(4, 4).tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]] * 2
    assert np.array_equal(interpret(text, (4, 4), 1, None, 16), out.numpy())
    with pytest.raises(InvalidClusterSizeError, match=r"compiled for clusters of \(2, 2, 1\).*found \(4, 1, 1\)"):
        gpu.load(text, "k.ptx")["k"][(4, 4), 1](out, cluster=4)


LAUNCHES = [
    ("", 9, 4, InvalidConfigurationError, r"a grid of \(9, 1, 1\) blocks is not made of whole clusters of \(4, 1, 1\)"),
    ("", (4, 3), (2, 2), InvalidConfigurationError, r"not made of whole clusters"),
    ("", 9, 9, InvalidClusterSizeError, "have 9 blocks, 8 are allowed; up to 16 with kernel.non_portable_cluster_size"),
    ("", 8, 0, InvalidClusterSizeError, r"cluster \(0, 1, 1\)"),
    (".explicitcluster", 8, None, InvalidClusterSizeError, "must be launched with a cluster shape"),
    (".maxclusterrank 4", 8, 8, InvalidClusterSizeError, r"have 8 blocks, 4 are allowed \(.maxclusterrank\)"),
    (".reqnctapercluster 2", 7, None, InvalidConfigurationError, "not made of whole clusters"),
]  # fmt: skip


@pytest.mark.parametrize("directives, grid, cluster, error, message", LAUNCHES)
def test_bad_launches(gpu, directives, grid, cluster, error, message) -> None:
    kernel = gpu.load(kernel_text("", directives), "k.ptx")["k"]
    with pytest.raises(error, match=message):
        kernel[grid, 32](gpu.zeros(4096, np.uint32), **({} if cluster is None else {"cluster": cluster}))


def test_sixteen_blocks_on_request(gpu) -> None:
    kernel = gpu.load(kernel_text(f"{SYNC} st.global.u32 [%rd0], %r10;"), "k.ptx")["k"]
    kernel.non_portable_cluster_size_allowed = True
    out = gpu.zeros(32, np.uint32)
    kernel[32, 1](out, cluster=16)
    assert out.numpy().tolist() == [*range(16)] * 2
    with pytest.raises(InvalidClusterSizeError, match="have 17 blocks, 16 are allowed$"):
        kernel[34, 1](out, cluster=17)


def test_chips_without_clusters() -> None:
    old = weft.Device("a100", threads=1)
    text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out)\n{\nret;\n}\n"
    kernel = old.load(text, "k.ptx")["k"]
    with pytest.raises(InvalidClusterSizeError, match="compute capability 8.0.* has no clusters"):
        kernel[4, 32](old.zeros(128, np.uint32), cluster=2)


# ---------------------------------------------------------------- other blocks' shared memory
# Each thread's word is its index in the grid, then all blocks of the cluster have theirs.
FILL = f"st.shared.u32 [%r12], %r1; {SYNC}"
NEXT = "add.u32 %r13, %r10, 1; rem.u32 %r13, %r13, %r11;"


def neighbour(grid: int, block: int, cluster: int) -> np.ndarray:
    blocks = np.arange(grid).reshape(-1, cluster)
    following = np.roll(blocks, -1, axis=1).reshape(-1)
    return (following[:, None] * block + np.arange(block)).reshape(-1)


READS = {
    "shared": "mapa.shared::cluster.u32 %r14, %r12, %r13; ld.shared::cluster.u32 %r15, [%r14];",
    "shared 64": "cvt.u64.u32 %rd4, %r12; mapa.shared::cluster.u64 %rd5, %rd4, %r13; cvt.u32.u64 %r14, %rd5; "
    "ld.shared::cluster.u32 %r15, [%r14];",
    "generic": "cvt.u64.u32 %rd4, %r12; cvta.shared.u64 %rd4, %rd4; mapa.u64 %rd5, %rd4, %r13; ld.u32 %r15, [%rd5];",
    "volatile": "cvt.u64.u32 %rd4, %r12; cvta.shared.u64 %rd4, %rd4; mapa.u64 %rd5, %rd4, %r13; "
    "ld.volatile.u32 %r15, [%rd5];",
    "to generic": "mapa.shared::cluster.u32 %r14, %r12, %r13; cvt.u64.u32 %rd4, %r14; "
    "cvta.shared::cluster.u64 %rd5, %rd4; ld.u32 %r15, [%rd5];",
    "from generic": "cvt.u64.u32 %rd4, %r12; cvta.shared.u64 %rd4, %rd4; mapa.u64 %rd5, %rd4, %r13; "
    "cvta.to.shared::cluster.u64 %rd5, %rd5; cvt.u32.u64 %r14, %rd5; ld.shared::cluster.u32 %r15, [%r14];",
    "exchange": "mapa.shared::cluster.u32 %r14, %r12, %r13; atom.shared::cluster.exch.b32 %r15, [%r14], 7;",
}  # fmt: skip


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("grid, block, cluster", [(8, 64, 4), (6, 40, 3), (5, 32, 1)])
def test_ring(gpu, read: str, grid: int, block: int, cluster: int) -> None:
    body = FILL + NEXT + READS[read] + f"st.global.u32 [%rd0], %r15; {SYNC}"
    assert np.array_equal(run(gpu, body, grid, block, cluster), neighbour(grid, block, cluster))


def test_own_shared_memory_by_either_address(gpu) -> None:
    """A plain shared address and the one that mapa gives for the own rank are the same memory."""
    body = FILL + """
    mapa.shared::cluster.u32 %r14, %r12, %r10; ld.shared::cluster.u32 %r15, [%r14];
    ld.shared::cluster.u32 %r16, [%r12]; sub.u32 %r16, %r16, %r15;
    add.u32 %r15, %r15, 5; st.shared::cluster.u32 [%r14], %r15; ld.shared.u32 %r15, [%r12]; add.u32 %r15, %r15, %r16;
    st.global.u32 [%rd0], %r15;
    """ + SYNC  # fmt: skip
    assert np.array_equal(run(gpu, body), np.arange(512) + 5)


def test_every_lane_its_own_rank(gpu) -> None:
    body = FILL + "rem.u32 %r13, %r0, %r11;" + READS["shared"] + f"st.global.u32 [%rd0], %r15; {SYNC}"
    found = run(gpu, body).reshape(2, 4, 64)
    threads = np.arange(64)
    for c, b in itertools.product(range(2), range(4)):
        assert np.array_equal(found[c, b], (4 * c + threads % 4) * 64 + threads)


@pytest.mark.parametrize("type_, vector, registers", [
    ("b32", "v4", ["%r20", "%r21", "%r22", "%r23"]), ("b64", "v2", ["%rd6", "%rd7"]), ("b64", "", ["%rd6"]),
    ("u16", "", ["%h1"]), ("b8", "", ["%r20"]),
])  # fmt: skip
def test_widths(gpu, type_: str, vector: str, registers: list[str]) -> None:
    """Copies a stretch of the next block's memory to another place there with wide loads and stores."""
    size = int(type_[1:]) // 8 * len(registers)
    copied = min(128, 64 * size)
    listed = "{" + ", ".join(registers) + "}" if vector else registers[0]
    dot = f".{vector}" if vector else ""
    body = FILL + NEXT + f"""
    mov.u32 %r17, words; mad.lo.u32 %r18, %r0, {size}, %r17; mapa.shared::cluster.u32 %r14, %r18, %r13;
    add.u32 %r19, %r14, 2048; setp.ge.u32 %p1, %r0, {copied // size}; @%p1 bra SKIP;
    ld.shared::cluster{dot}.{type_} {listed}, [%r14]; st.shared::cluster{dot}.{type_} [%r19], {listed};
    SKIP: {SYNC} ld.shared.u32 %r15, [%r12+2048]; setp.lt.u32 %p1, %r0, {copied // 4}; selp.u32 %r15, %r15, 0, %p1;
    st.global.u32 [%rd0], %r15; {SYNC}
    """  # fmt: skip
    found = run(gpu, body).reshape(8, 64)
    assert np.array_equal(found[:, : copied // 4], np.arange(512).reshape(8, 64)[:, : copied // 4])


@pytest.mark.parametrize("op, expected", [("add", 64 * 6), ("max", 66), ("or", 67)])
def test_atomics(gpu, op: str, expected: int) -> None:
    """All threads of the cluster update one word of block 1."""
    body = f"""
    mov.u32 %r17, words; st.shared.u32 [%r17+16], 0; {SYNC} mapa.shared::cluster.u32 %r14, %r17, 1;
    add.u32 %r15, %r10, {0 if op == "add" else 64};
    red.shared::cluster.{op}.{"b32" if op == "or" else "u32"} [%r14+16], %r15;
    {SYNC} ld.shared.u32 %r15, [%r17+16]; st.global.u32 [%rd0], %r15;
    """
    found = run(gpu, body).reshape(2, 4, 64)
    if op == "max":
        expected = 67
    assert (found[:, 1] == expected).all()
    assert (found[:, [0, 2, 3]] == 0).all()


def test_rank_of_an_address(gpu) -> None:
    body = FILL + NEXT + """
    mapa.shared::cluster.u32 %r14, %r12, %r13; getctarank.shared::cluster.u32 %r15, %r14;
    getctarank.shared::cluster.u32 %r16, %r12; mad.lo.u32 %r15, %r16, 16, %r15;
    cvt.u64.u32 %rd4, %r12; cvta.shared.u64 %rd4, %rd4; mapa.u64 %rd5, %rd4, 2; getctarank.u64 %r16, %rd5;
    mad.lo.u32 %r15, %r16, 256, %r15; getctarank.u64 %r16, %rd4; mad.lo.u32 %r15, %r16, 4096, %r15;
    isspacep.shared::cta %p1, %rd4; selp.u32 %r16, 65536, 0, %p1; add.u32 %r15, %r15, %r16;
    isspacep.shared::cta %p1, %rd5; selp.u32 %r16, 131072, 0, %p1; add.u32 %r15, %r15, %r16;
    isspacep.shared::cluster %p1, %rd5; selp.u32 %r16, 262144, 0, %p1; add.u32 %r15, %r15, %r16;
    isspacep.global %p1, %rd5; selp.u32 %r16, 524288, 0, %p1; add.u32 %r15, %r15, %r16;
    st.global.u32 [%rd0], %r15;
    """  # fmt: skip
    found = run(gpu, body).reshape(2, 4, 64)
    for rank in range(4):
        expected = (rank + 1) % 4 + 16 * rank + 256 * 2 + 4096 * rank + 65536 + 131072 * (rank == 2) + 262144
        assert (found[:, rank] == expected).all()


# ---------------------------------------------------------------- the barrier
def test_phases(gpu) -> None:
    """A value goes once around the cluster, a block further at each phase."""
    body = f"""
    st.shared.u32 [%r12], %r1; mov.u32 %r20, 0; {NEXT} mapa.shared::cluster.u32 %r14, %r12, %r13;
    LOOP: {SYNC} ld.shared.u32 %r15, [%r12]; barrier.cluster.arrive.release; barrier.cluster.wait.acquire;
    st.shared::cluster.u32 [%r14], %r15; add.u32 %r20, %r20, 1; setp.lt.u32 %p1, %r20, 3; @%p1 bra LOOP;
    {SYNC} ld.shared.u32 %r15, [%r12]; st.global.u32 [%rd0], %r15;
    """
    found = run(gpu, body).reshape(2, 4, 64)
    start = np.arange(512).reshape(2, 4, 64)
    assert np.array_equal(found, np.roll(start, 3, axis=1))


def test_work_between_arriving_and_waiting(gpu) -> None:
    body = f"""
    st.shared.u32 [%r12], %r1; barrier.cluster.arrive; mul.lo.u32 %r20, %r1, 3; bar.sync 0;
    barrier.cluster.wait; {NEXT} {READS["shared"]} add.u32 %r15, %r15, %r20; st.global.u32 [%rd0], %r15; {SYNC}
    """
    assert np.array_equal(run(gpu, body), neighbour(8, 64, 4) + 3 * np.arange(512))


@pytest.mark.parametrize("leaves", ["setp.ge.u32 %p1, %r0, 40; @%p1 ret;", "setp.eq.u32 %p1, %r10, 2; @%p1 ret;",
                                    "and.b32 %r5, %r0, 1; setp.eq.u32 %p1, %r5, 0; @%p1 ret;"])  # fmt: skip
def test_threads_that_have_exited_are_not_waited_for(gpu, leaves: str) -> None:
    body = leaves + SYNC + SYNC + "add.u32 %r5, %r1, 1; st.global.u32 [%rd0], %r5;"
    found = run(gpu, body)
    assert 0 < np.count_nonzero(found) < 512


def test_arrivals_of_parts_of_a_warp(gpu) -> None:
    """The lanes of a warp arrive in two branches and wait together."""
    body = f"""
    st.shared.u32 [%r12], %r1; and.b32 %r5, %r0, 1; setp.eq.u32 %p1, %r5, 0; @%p1 bra EVEN;
    barrier.cluster.arrive; bra JOIN;
    EVEN: st.shared.u32 [%r12], 77; barrier.cluster.arrive;
    JOIN: barrier.cluster.wait; {NEXT} {READS["shared"]} st.global.u32 [%rd0], %r15; {SYNC}
    """
    expected = neighbour(8, 64, 4)
    assert np.array_equal(run(gpu, body), np.where(np.arange(512) % 2 == 0, 77, expected))


def test_barriers_of_block_and_cluster_mix(gpu) -> None:
    body = f"""
    mov.u32 %r20, 0; mov.u32 %r21, words; st.shared.u32 [%r21], 0; st.shared.u32 [%r21+4], 0; {SYNC}
    LOOP: mapa.shared::cluster.u32 %r14, %r21, 0; atom.shared::cluster.add.u32 %r15, [%r14], 1; bar.sync 0;
    bar.red.popc.u32 %r22, 0, %p0; atom.shared.add.u32 %r15, [%r21+4], 1; {SYNC}
    add.u32 %r20, %r20, 1; setp.lt.u32 %p1, %r20, 5; @%p1 bra LOOP;
    ld.shared::cluster.u32 %r15, [%r14]; ld.shared.u32 %r16, [%r21+4]; mad.lo.u32 %r15, %r16, 65536, %r15;
    st.global.u32 [%rd0], %r15; {SYNC}
    """
    assert (run(gpu, body) == 5 * 64 * 65536 + 5 * 256).all()


def test_more_clusters_than_memories(gpu) -> None:
    body = FILL + NEXT + READS["shared"] + f"st.global.u32 [%rd0], %r15; {SYNC}"
    assert np.array_equal(run(gpu, body, 300, 32, 3, interpreter=False), neighbour(300, 32, 3))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_order_of_clusters_and_blocks(gpu, seed: int) -> None:
    body = FILL + NEXT + READS["generic"] + f"st.global.u32 [%rd0], %r15; {SYNC}"
    assert np.array_equal(run(gpu, body, 24, 96, 4, interpreter=False, seed=seed), neighbour(24, 96, 4))
    found = run(gpu, body, 24, 96, 4, interpreter=False, seed=seed, deterministic=True)
    assert np.array_equal(found, neighbour(24, 96, 4))


def test_cluster_code_without_clusters(gpu) -> None:
    body = FILL + NEXT + READS["generic"] + f"st.global.u32 [%rd0], %r15; {SYNC}"
    assert np.array_equal(run(gpu, body, 5, 64, None), np.arange(320))


# ---------------------------------------------------------------- stores that count at an mbarrier
RECEIVE = f"""
    mov.u32 %r17, words; add.u32 %r30, %r17, 4088; setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r30], 1; fence.mbarrier_init.release.cluster; {SYNC}
    {NEXT} mapa.shared::cluster.u32 %r14, %r12, %r13; mapa.shared::cluster.u32 %r31, %r30, %r13;
"""
# One thread waits, for the interpreter's sake.
WAIT = """@!%p1 bra OVER; AGAIN: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r30], 0;
    @!%p2 bra AGAIN; OVER: bar.sync 0;"""
STORES = {
    "u32": (4, "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r14], %r1, [%r31];", 1, 0),
    "weak": (4, "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r14], %r1, [%r31];", 1, 0),
    "add": (4, "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r14], %r1, [%r31];",
            1, 100),
    "xor": (4, "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.xor.b32 [%r14], 0, [%r31];",
            0, 100),
    "min": (4, "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.min.s32 [%r14], -5, [%r31];",
            0, -5),
    "inc": (4, "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.inc.u32 [%r14], 100, [%r31];",
            0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", STORES)
def test_store_async(gpu, name: str) -> None:
    """Every thread sends its index to the next block, which waits for the bytes."""
    size, store, factor, base = STORES[name]
    body = RECEIVE + f"""
    st.shared.u32 [%r12], 100; bar.sync 0; @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 %rd9, [%r30], {64 * size};
    {SYNC} {store} {WAIT} ld.shared.u32 %r15, [%r12]; st.global.u32 [%rd0], %r15; {SYNC}
    """  # fmt: skip
    found = run(gpu, body)
    before = np.roll(np.arange(8).reshape(2, 4), 1, axis=1).reshape(-1)
    sent = (before[:, None] * 64 + np.arange(64)).reshape(-1)
    assert np.array_equal(found.astype(np.int32), factor * sent + base)


@pytest.mark.parametrize("type_, registers", [("v4.b32", "{%r1, %r0, %r10, %r11}"), ("v2.u64", "{%rd3, %rd4}"),
                                              ("v2.f32", "{%f1, %f2}"), ("s64", "%rd3")])  # fmt: skip
def test_store_async_vectors(gpu, type_: str, registers: str) -> None:
    size = {"v4.b32": 16, "v2.u64": 16, "v2.f32": 8, "s64": 8}[type_]
    body = RECEIVE + f"""
    cvt.u64.u32 %rd3, %r1; add.u64 %rd4, %rd3, 7; mov.b32 %f1, %r1; mov.b32 %f2, %r0;
    mad.lo.u32 %r18, %r0, {size}, %r17; mapa.shared::cluster.u32 %r14, %r18, %r13;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 %rd9, [%r30], {64 * size}; {SYNC}
    st.async.shared::cluster.mbarrier::complete_tx::bytes.{type_} [%r14], {registers}, [%r31];
    {WAIT} ld.shared.u32 %r15, [%r18]; ld.shared.u32 %r16, [%r18+{size - 4}]; mad.lo.u32 %r15, %r16, 4096, %r15;
    st.global.u32 [%rd0], %r15; {SYNC}
    """  # fmt: skip
    found = run(gpu, body)
    before = np.roll(np.arange(8).reshape(2, 4), 1, axis=1).reshape(-1)[:, None]
    threads = np.arange(64)
    first = before * 64 + threads
    last = {"v4.b32": 4 + 0 * first, "v2.u64": 0 * first, "v2.f32": threads + 0 * first, "s64": 0 * first}[type_]
    assert np.array_equal(found, (first + 4096 * last).reshape(-1))


def test_store_async_to_generic_addresses(gpu) -> None:
    body = (
        RECEIVE
        + f"""
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 %rd9, [%r30], 256; {SYNC}
    cvt.u64.u32 %rd3, %r14; cvta.shared::cluster.u64 %rd3, %rd3;
    cvt.u64.u32 %rd4, %r31; cvta.shared::cluster.u64 %rd4, %rd4;
    st.async.mbarrier::complete_tx::bytes.u32 [%rd3], %r1, [%rd4];
    {WAIT} ld.shared.u32 %r15, [%r12]; st.global.u32 [%rd0], %r15; {SYNC}
    """
    )
    before = np.roll(np.arange(8).reshape(2, 4), 1, axis=1).reshape(-1)
    assert np.array_equal(run(gpu, body), (before[:, None] * 64 + np.arange(64)).reshape(-1))


def test_arrivals_at_another_blocks_mbarrier(gpu) -> None:
    body = f"""
    mov.u32 %r17, words; add.u32 %r30, %r17, 4088; setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r30], 64; fence.mbarrier_init.release.cluster; {SYNC}
    {NEXT} mapa.shared::cluster.u32 %r14, %r12, %r13; mapa.shared::cluster.u32 %r31, %r30, %r13;
    st.shared::cluster.u32 [%r14], %r1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r31];
    {WAIT} ld.shared.u32 %r15, [%r12]; st.global.u32 [%rd0], %r15; {SYNC}
    """
    before = np.roll(np.arange(8).reshape(2, 4), 1, axis=1).reshape(-1)
    assert np.array_equal(run(gpu, body), (before[:, None] * 64 + np.arange(64)).reshape(-1))


# ---------------------------------------------------------------- faults
FAULTS = {
    "exited": ("setp.eq.u32 %p1, %r10, 1; @%p1 ret; mov.u32 %r20, 0; L: add.u32 %r20, %r20, 1; "
               "setp.lt.u32 %p1, %r20, 3; bar.sync 0; @%p1 bra L; barrier.cluster.arrive; barrier.cluster.wait; "
               "mapa.shared::cluster.u32 %r14, %r12, 1; ld.shared::cluster.u32 %r15, [%r14];",
               KernelFault, "shared memory of block 1 of the cluster, which has exited"),
    "no such rank": (FILL + "mapa.shared::cluster.u32 %r14, %r12, 4; ld.shared::cluster.u32 %r15, [%r14];",
                     IllegalAddressError, "4 bytes"),
    "far rank": (FILL + "mapa.shared::cluster.u32 %r14, %r12, 1000000; st.shared::cluster.u32 [%r14], 1;",
                 IllegalAddressError, "4 bytes"),
    "beyond": (FILL + "mapa.shared::cluster.u32 %r14, %r12, 1; ld.shared::cluster.u32 %r15, [%r14+4096];",
               IllegalAddressError, "4 bytes.*(offset 4096 of shared memory of block 1|)"),
    "misaligned": (FILL + "mapa.shared::cluster.u32 %r14, %r12, 1; ld.shared::cluster.u32 %r15, [%r14+2];",
                   MisalignedAddressError, "4 bytes"),
    "atomic beyond": (FILL + "mapa.shared::cluster.u32 %r14, %r12, 1; red.shared::cluster.add.u32 [%r14+4096], 1;",
                      IllegalAddressError, "4 bytes"),
    "twice": ("barrier.cluster.arrive; barrier.cluster.arrive; barrier.cluster.wait;", KernelFault,
              "without having waited|already and not waited"),
    "not arrived": ("barrier.cluster.wait;", KernelFault, "without having arrived"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults(gpu, name: str) -> None:
    body, error, message = FAULTS[name]
    body += f"st.global.u32 [%rd0], %r15; {SYNC}"
    text = kernel_text(body)
    with pytest.raises(error, match=message) as caught:
        gpu.load(text, "k.ptx")["k"][8, 64](gpu.zeros(512, np.uint32), cluster=4)
    assert caught.value.ptx_line and caught.value.block is not None
    with pytest.raises(error, match=message):
        interpret(text, 8, 64, 4, 512)


@pytest.mark.parametrize("store", [
    "mbarrier.arrive.shared::cluster.b64 _, [%r31];", STORES["u32"][1],
    "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r31], 1;",
])  # fmt: skip
def test_mbarriers_of_a_block_that_has_exited(gpu, store: str) -> None:
    body = (
        RECEIVE
        + f"""
    {SYNC} setp.eq.u32 %p1, %r10, 1; @%p1 ret; mov.u32 %r20, 0;
    L: bar.sync 0; add.u32 %r20, %r20, 1; setp.lt.u32 %p1, %r20, 200; @%p1 bra L;
    setp.ne.u32 %p1, %r13, 1; @%p1 bra DONE; {store}
    DONE: barrier.cluster.arrive; barrier.cluster.wait;
    """
    )
    with pytest.raises(KernelFault, match="shared memory of block 1 of the cluster, (which has exited|where no block)"):
        gpu.load(kernel_text(body), "k.ptx")["k"][4, 32](gpu.zeros(512, np.uint32), cluster=2)


def test_a_block_that_never_arrives_is_a_deadlock(gpu) -> None:
    """Block 2 waits for a barrier that nobody else comes to, the others for the cluster's."""
    body = """
    setp.eq.u32 %p1, %r10, 2; @%p1 bra LOST; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; ret;
    LOST: bar.sync 1, 128;
    """
    text = kernel_text(body)
    with pytest.raises(DeadlockError) as caught:
        gpu.load(text, "k.ptx")["k"][4, 64](gpu.zeros(256, np.uint32), cluster=4)
    assert "waits" in str(caught.value) and "barrier" in str(caught.value)
    with pytest.raises(DeadlockError):
        interpret(text, 4, 64, 4, 256)


def test_a_deadlock_at_the_clusters_barrier_says_so(gpu) -> None:
    body = """
    setp.ne.u32 %p1, %r10, 2; @%p1 bra MOST; mov.u32 %r20, words; st.shared.u32 [%r20], 0;
    L: ld.volatile.shared.u32 %r21, [%r20]; setp.eq.u32 %p2, %r21, 0; @%p2 bra L;
    MOST: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    """
    with pytest.raises(DeadlockError, match="for the cluster's barrier: not all warps of the cluster have arrived"):
        gpu.load(kernel_text(body), "k.ptx")["k"][4, 32](gpu.zeros(256, np.uint32), cluster=4)


def test_the_device_works_after_a_fault(gpu) -> None:
    with pytest.raises(KernelFault):
        gpu.load(kernel_text("barrier.cluster.wait;"), "k.ptx")["k"][8, 64](gpu.zeros(512, np.uint32), cluster=4)
    test_ring(gpu, "generic", 8, 64, 4)


def test_cluster_launch_control_is_refused(gpu) -> None:
    line = "clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.b128 [%r0], [%r1];"
    with pytest.raises(
        UnsupportedError, match=r"k\.ptx:\d+: clusterlaunchcontrol\S+ clusterlaunchcontrol came with sm_"
    ):
        gpu.load(kernel_text(line), "k.ptx")["k"][1, 32](gpu.zeros(32, np.uint32))


# ---------------------------------------------------------------- legality
LEGAL = [
    "barrier.cluster.arrive;", "barrier.cluster.arrive.aligned;", "barrier.cluster.arrive.release;",
    "barrier.cluster.arrive.relaxed.aligned;", "barrier.cluster.wait;", "barrier.cluster.wait.acquire.aligned;",
    "mapa.u32 %r1, %r2, %r3;", "mapa.u64 %d1, %d2, 3;", "mapa.shared::cluster.u32 %r1, shared_variable, %r3;",
    "mapa.shared::cluster.u64 %d1, %d2, %r3;", "getctarank.u64 %r1, %d2;", "getctarank.shared::cluster.u32 %r1, %r2;",
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r1], %r2, [%r3];",
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 [%r1], {%d2, %d3}, [%r3];",
    "st.async.mbarrier::complete_tx::bytes.v4.s32 [%d1], {%r2, %r3, %r4, %r5}, [%d3];",
    "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u64 [%r1], %d2, [%r3];",
    "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.dec.u32 [%r1], %r2, [%r3];",
    "atom.shared::cluster.add.u32 %r1, [%r2], %r3;", "ld.shared::cluster.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];",
    "isspacep.shared::cluster %p1, %d2;", "cvta.to.shared::cluster.u64 %d1, %d2;",
    "mov.pred %p1, %is_explicit_cluster;", "mov.u32 %r1, %clusterid.y;",
]  # fmt: skip
ILLEGAL = [
    "barrier.cluster.arrive.acquire;", "barrier.cluster.wait.relaxed;", "barrier.cluster.arrive 0;",
    "mapa.u32 %d1, %d2, %r3;", "mapa.shared::cta.u32 %r1, %r2, %r3;", "getctarank.u64 %d1, %d2;",
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u64 [%r1], {%d2, %d3, %d4, %d5}, [%r3];",
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.b16 [%r1], %h2, [%r3];",
    "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.min.u64 [%r1], %d2, [%r3];",
    "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.xor.b64 [%r1], %d2, [%r3];",
    "red.async.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r1], %r2, [%r3];",
]  # fmt: skip


def parses(line: str) -> bool:
    body = f".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>;\n{line}\nret;"
    head = HEAD.replace("words", "shared_variable")
    try:
        parse_module(f"{head}.visible .entry k() {{\n{body}\n}}\n", "k.ptx", check=True)
    except PtxError:
        return False
    return True


@pytest.mark.skipif(PTXAS is None, reason="no ptxas: pip install 'weft[acceptance]'")
def test_forms_as_ptxas_has_them(tmp_path) -> None:
    wrong = ask_ptxas(LEGAL + ILLEGAL, newest_version(), "sm_90a", tmp_path)
    assert sorted(wrong) == list(range(len(LEGAL), len(LEGAL) + len(ILLEGAL)))
    assert [line for line in LEGAL if not parses(line)] == []
    assert [line for line in ILLEGAL if parses(line)] == []
