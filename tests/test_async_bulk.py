"""cp.async.bulk, cp.reduce.async.bulk and st.bulk against NumPy and the reference interpreter: sizes, byte masks, every
reduction and type, copies within and between the blocks of a cluster, multicast, and what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest

import weft
from weft.errors import IllegalAddressError, IllegalInstructionError
from weft.isa.async_copy import GLOBAL_TYPES, SHARED_TYPES
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel

RNG = np.random.default_rng(11)
SHARED = 4096
DTYPES = {
    "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64, "b32": np.uint32, "b64": np.uint64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip


@pytest.fixture(scope="module")
def gpu():
    return weft.Device("b200", threads=1)


def kernel(body: str, cluster: str = "") -> str:
    """Thread 0 has addresses of x (%rd1), y (%rd2), of 4096 bytes of shared memory that begin as x (%r2), of an mbarrier
    object for one arrival (%r3), and a number n (%r4). Shared memory ends in z."""
    return f"""
.version 8.6
.target sm_100a
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 y, .param .u64 z, .param .u32 n) {cluster} {{
.reg .b32 %r<30>; .reg .b64 %rd<20>; .reg .b16 %h<9>; .reg .pred %p<9>;
.shared .align 128 .b8 buffer[{SHARED}];
.shared .align 8 .b64 bar;
ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; ld.param.u64 %rd3, [z]; ld.param.u32 %r4, [n];
mov.u32 %r2, buffer; mov.u32 %r3, bar; mov.u32 %r1, %tid.x; setp.eq.u32 %p1, %r1, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r3], 1;
mov.u32 %r5, %ctaid.x; mul.wide.u32 %rd4, %r5, {SHARED}; add.u64 %rd3, %rd3, %rd4; add.u64 %rd10, %rd1, %rd4;
shl.b32 %r6, %r1, 2;
fill: cvt.u64.u32 %rd5, %r6; add.u64 %rd6, %rd10, %rd5; add.u32 %r7, %r2, %r6;
ld.global.u32 %r8, [%rd6]; st.shared.u32 [%r7], %r8;
add.u32 %r6, %r6, 128; setp.lt.u32 %p2, %r6, {SHARED}; @%p2 bra fill;
fence.proxy.async.shared::cta; bar.sync 0;
{body}
bar.sync 0;
shl.b32 %r6, %r1, 2;
give: cvt.u64.u32 %rd5, %r6; add.u64 %rd6, %rd3, %rd5; add.u32 %r7, %r2, %r6;
ld.shared.u32 %r8, [%r7]; st.global.u32 [%rd6], %r8;
add.u32 %r6, %r6, 128; setp.lt.u32 %p2, %r6, {SHARED}; @%p2 bra give;
ret;
}}
"""


WAIT = "wait: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r3], 0; @!%p3 bra wait;"
LOAD = f"""@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], %r4;
@%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r2+256], [%rd2], %r4, [%r3]; {WAIT}"""
STORED = "@%p1 cp.async.bulk.commit_group; @%p1 cp.async.bulk.wait_group 0;"


def run(gpu, text: str, x: np.ndarray, y: np.ndarray, n: int = 0, blocks: int = 1):
    """(y, z) afterwards, from the device; the reference interpreter must leave the same."""
    device, z = gpu.array(y), gpu.zeros(SHARED * blocks, np.uint8)
    gpu.load(text)["k"][blocks, 32](gpu.array(x), device, z, n)
    memory = ReferenceMemory()
    places = [memory.allocate(size) for size in (x.nbytes, y.nbytes, z.nbytes)]
    memory.write(places[0], x.tobytes())
    memory.write(places[1], y.tobytes())
    run_kernel(parse_module(text), "k", blocks, 32, struct.pack("<3QI", *places, n), memory)
    for address, found in zip(places[1:], (device.numpy(), z.numpy())):
        expected = np.frombuffer(memory.read(address, found.nbytes), np.uint8)
        np.testing.assert_array_equal(found.view(np.uint8), expected)
    return device.numpy(), z.numpy()


def some_bytes(count: int) -> np.ndarray:
    return RNG.integers(0, 256, count, np.uint8)


@pytest.mark.parametrize("size", [0, 16, 48, 1024, SHARED - 256])
def test_load(gpu, size):
    x, y = some_bytes(SHARED), some_bytes(SHARED)
    _, z = run(gpu, kernel(LOAD), x, y, size)
    x[256 : 256 + size] = y[:size]
    np.testing.assert_array_equal(z, x)


@pytest.mark.parametrize("size", [0, 16, 4096])
def test_store(gpu, size):
    x, y = some_bytes(SHARED), some_bytes(SHARED)
    found, _ = run(
        gpu, kernel(f"@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r2], %r4; {STORED}"), x, y, size
    )
    y[:size] = x[:size]
    np.testing.assert_array_equal(found, y)


@pytest.mark.parametrize("mask", [0, 1, 0x8000, 0xA5F0, 0xFFFF])
def test_store_some_bytes(gpu, mask):
    x, y = some_bytes(SHARED), some_bytes(SHARED)
    body = f"mov.u16 %h1, {mask}; @%p1 cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%rd2], [%r2], 512, %h1; {STORED}"
    found, _ = run(gpu, kernel(body), x, y)
    chosen = np.tile([mask >> i & 1 for i in range(16)], 32).astype(bool)
    y[:512][chosen] = x[:512][chosen]
    np.testing.assert_array_equal(found, y)


def test_within_shared_memory(gpu):
    x = some_bytes(SHARED)
    body = f"""@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 512;
    @%p1 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r2+2048], [%r2+16], 512, [%r3]; {WAIT}"""
    _, z = run(gpu, kernel(body), x, x)
    expected = x.copy()
    expected[2048:2560] = x[16:528]
    np.testing.assert_array_equal(z, expected)


# ---------------------------------------------------------------- reductions
def numbers(name: str, count: int, operation: str) -> np.ndarray:
    kind = np.dtype(DTYPES[name])
    if kind.kind == "f":
        return RNG.standard_normal(count).astype(kind)
    if operation in ("inc", "dec"):
        return RNG.integers(0, 9, count).astype(kind)
    info = np.iinfo(kind)
    return RNG.integers(info.min, info.max, count, kind, endpoint=True)


def reduced(operation: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    one = old.dtype.type(1)
    with np.errstate(over="ignore"):
        return {
            "add": lambda: old + new, "min": lambda: np.minimum(old, new), "max": lambda: np.maximum(old, new),
            "and": lambda: old & new, "or": lambda: old | new, "xor": lambda: old ^ new,
            "inc": lambda: np.where(old >= new, 0, old + one),
            "dec": lambda: np.where((old == 0) | (old > new), new, old - one),
        }[operation]()  # fmt: skip


GLOBAL = [(op, name) for op, names in GLOBAL_TYPES.items() for name in names if name != "bf16"]


@pytest.mark.parametrize("operation,name", [*GLOBAL, ("add.noftz", "f16"), ("add.noftz", "f32")])
def test_reduce_global(gpu, operation, name):
    verb = operation.partition(".")[0]
    x, y = (numbers(name, SHARED // np.dtype(DTYPES[name]).itemsize, verb) for _ in range(2))
    body = f"@%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}.{name} [%rd2], [%r2], 1024; {STORED}"
    found, _ = run(gpu, kernel(body), x, y)
    count = 1024 // x.itemsize
    expected = y.copy()
    expected[:count] = reduced(verb, y[:count], x[:count])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("operation,name", [(op, name) for op, names in SHARED_TYPES.items() for name in names])
def test_reduce_shared(gpu, operation, name):
    x = numbers(name, SHARED // np.dtype(DTYPES[name]).itemsize, operation)
    head = "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
    body = f"""@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 512;
    @%p1 {head}.{operation}.{name} [%r2+2048], [%r2], 512, [%r3]; {WAIT}"""
    _, z = run(gpu, kernel(body), x, x)
    expected, count, middle = x.copy(), 512 // x.itemsize, 2048 // x.itemsize
    expected[middle : middle + count] = reduced(operation, x[middle : middle + count], x[:count])
    np.testing.assert_array_equal(z.view(x.dtype), expected)


@pytest.mark.parametrize("operation,keeps", [("add", False), ("add.noftz", True)])
def test_subnormal_sums(gpu, operation, keeps):
    x = np.full(SHARED // 4, 1e-40, np.float32)
    body = f"@%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}.f32 [%rd2], [%r2], 64; {STORED}"
    found, _ = run(gpu, kernel(body), x, x)
    np.testing.assert_array_equal(found[:16], x[:16] + x[:16] if keeps else 0)


def test_bfloat16(gpu):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, y = (RNG.standard_normal(SHARED // 2).astype(ml_dtypes.bfloat16) for _ in range(2))
    for operation in ("add.noftz", "min", "max"):
        body = f"@%p1 cp.reduce.async.bulk.global.shared::cta.bulk_group.{operation}.bf16 [%rd2], [%r2], 1024; {STORED}"
        found, _ = run(gpu, kernel(body), x.view(np.uint16), y.view(np.uint16))
        expected = y.copy()
        expected[:512] = reduced(operation.partition(".")[0], y[:512], x[:512])
        np.testing.assert_array_equal(found, expected.view(np.uint16))


def test_zero(gpu):
    x = some_bytes(SHARED)
    body = """mov.u64 %rd7, 264; @%p1 st.bulk.shared::cta [%r2+8], %rd7, 0;
    cvt.u64.u32 %rd8, %r2; cvta.shared.u64 %rd8, %rd8; @%p1 st.bulk.weak [%rd8+1024], 16, 0;"""
    _, z = run(gpu, kernel(body), x, x)
    x[8:272] = 0
    x[1024:1040] = 0
    np.testing.assert_array_equal(z, x)


# ---------------------------------------------------------------- clusters
def test_multicast(gpu):
    """Block 0 loads for blocks 0, 2 and 3; each waits for its own object."""
    x, y = some_bytes(4 * SHARED), some_bytes(SHARED)
    body = f"""mov.u32 %r9, %cluster_ctarank; setp.eq.and.u32 %p4, %r9, 0, %p1; setp.ne.u32 %p5, %r9, 1; mov.u16 %h1, 13;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 1024;
    barrier.cluster.arrive; barrier.cluster.wait;
    @%p4 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
        [%r2+512], [%rd2], 1024, [%r3], %h1;
    @!%p5 bra done; {WAIT} done: barrier.cluster.arrive; barrier.cluster.wait;"""
    _, z = run(gpu, kernel(body, ".reqnctapercluster 4, 1, 1"), x, y, blocks=4)
    expected = x.copy()
    for rank in (0, 2, 3):
        expected[SHARED * rank + 512 : SHARED * rank + 1536] = y[:1024]
    np.testing.assert_array_equal(z, expected)


@pytest.mark.parametrize("deferred", [False, True])
def test_to_the_next_block(deferred):
    """Each block sends its memory to the next one of the cluster and waits for what it gets."""
    gpu = weft.Device("b200", threads=1, deferred_copies=deferred)
    x = some_bytes(4 * SHARED)
    body = f"""mov.u32 %r9, %cluster_ctarank; add.u32 %r9, %r9, 1; and.b32 %r9, %r9, 3;
    mapa.shared::cluster.u32 %r10, %r2, %r9; mapa.shared::cluster.u32 %r11, %r3, %r9;
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 1024;
    barrier.cluster.arrive; barrier.cluster.wait;
    @%p1 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r10+2048], [%r2], 1024, [%r11];
    {WAIT} barrier.cluster.arrive; barrier.cluster.wait;"""
    _, z = run(gpu, kernel(body, ".reqnctapercluster 4, 1, 1"), x, x, blocks=4)
    expected = x.reshape(4, SHARED).copy()
    expected[:, 2048:3072] = np.roll(x.reshape(4, SHARED)[:, :1024], 1, 0)
    np.testing.assert_array_equal(z, expected.ravel())


def test_multicast_to_blocks_that_are_not_there(gpu):
    body = """mov.u16 %h1, 5; @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
        [%r2], [%rd2], 16, [%r3], %h1;"""
    with pytest.raises(IllegalInstructionError, match="the mask 0x5 names blocks that the cluster does not have"):
        run(gpu, kernel(body), some_bytes(SHARED), some_bytes(SHARED))


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize("operands,found", [
    ("[%r2+8], [%rd2], 16, [%r3]", "0x8"), ("[%r2], [%rd2+4], 16, [%r3]", "4"), ("[%r2], [%rd2], 24, [%r3]", "0x18"),
])  # fmt: skip
def test_multiples_of_16(gpu, operands, found):
    body = f"@%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes {operands};"
    with pytest.raises(IllegalInstructionError, match=f"must be multiples of 16, found 0x.*{found[-1]}"):
        run(gpu, kernel(body), some_bytes(SHARED), some_bytes(SHARED))


def test_outside(gpu):
    x = some_bytes(SHARED)
    head = "@%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes"
    with pytest.raises(IllegalAddressError, match="16 bytes of it past the end of array"):
        run(gpu, kernel(f"{head} [%r2], [%rd2+4080], 32, [%r3];"), x, x)
    with pytest.raises(IllegalAddressError, match="offset 4080 of shared memory"):
        run(gpu, kernel(f"{head} [%r2+4080], [%rd2], 48, [%r3];"), x, x)
    with pytest.raises(IllegalInstructionError, match="st.bulk must be multiples of 8"):
        run(gpu, kernel("mov.u64 %rd7, 12; @%p1 st.bulk.shared::cta [%r2], %rd7, 0;"), x, x)
