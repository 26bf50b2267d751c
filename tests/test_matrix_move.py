"""ldmatrix, stmatrix and movmatrix: by compiled code and by the reference, held against NumPy on whole matrices, for
addresses that the compiler knows, knows in part, and does not know."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
from matrix_runner import device

import weft
from weft import settings
from weft.errors import IllegalAddressError, MisalignedAddressError
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel

POOL = 4096
# How a lane's offset in shared memory comes about: in PTX, and in NumPy.
ADDRESSES = {
    "contiguous": ("shl.b32 %o, %l, 4;", lambda lane, given: lane * 16),
    "padded": ("mul.lo.u32 %o, %l, 48;", lambda lane, given: lane * 48),
    "swizzled": (
        "shl.b32 %o, %l, 6; and.b32 %x, %l, 3; shl.b32 %x, %x, 4; xor.b32 %o, %o, %x;",
        lambda lane, given: lane * 64 ^ (lane & 3) * 16,
    ),
    "uniform plus lane": (
        "ld.global.b32 %x, [%given0]; and.b32 %x, %x, 0x30; mad.lo.u32 %o, %l, 80, %x;",
        lambda lane, given: lane * 80 + (given[0] & 0x30),
    ),
    "unknown": ("ld.global.b32 %o, [%given];", lambda lane, given: given),
}
HEAD = """.version 8.6
.target sm_100a
.address_size 64
.shared .align 16 .b8 pool[4096];
.visible .entry k(.param .u64 p_pool, .param .u64 p_given, .param .u64 p_data) {
.reg .b64 %pool, %given, %given0, %data, %g; .reg .b32 %l, %o, %x, %i, %b, %r<4>; .reg .pred %p;
ld.param.u64 %pool, [p_pool]; ld.param.u64 %given0, [p_given]; ld.param.u64 %data, [p_data];
mov.u32 %l, %tid.x; mul.wide.u32 %g, %l, 4; add.u64 %given, %given0, %g;
mul.wide.u32 %g, %l, 16; add.u64 %data, %data, %g;
mov.u32 %b, pool; shl.b32 %i, %l, 4;
IN: cvt.u64.u32 %g, %i; add.u64 %g, %g, %pool; ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%g];
add.u32 %o, %b, %i; st.shared.v4.b32 [%o], {%r0, %r1, %r2, %r3};
add.u32 %i, %i, 512; setp.lt.u32 %p, %i, 4096; @%p bra IN;
bar.warp.sync -1;
ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%data];
"""
TAIL = """
st.global.v4.b32 [%data], {%r0, %r1, %r2, %r3};
bar.warp.sync -1;
shl.b32 %i, %l, 4;
OUT: cvt.u64.u32 %g, %i; add.u64 %g, %g, %pool; add.u32 %o, %b, %i; ld.shared.v4.b32 {%r0, %r1, %r2, %r3}, [%o];
st.global.v4.b32 [%g], {%r0, %r1, %r2, %r3};
add.u32 %i, %i, 512; setp.lt.u32 %p, %i, 4096; @%p bra OUT;
ret; }
"""


def kernel_text(name: str, registers: int, address: str, generic: bool, guard: str = "") -> str:
    vector = "{" + ", ".join(f"%r{i}" for i in range(registers)) + "}"
    lines = [ADDRESSES[address][0], "add.u32 %o, %o, %b;"]
    where = "[%o]"
    if generic:
        lines.append("cvt.u64.u32 %g, %o; cvta.shared.u64 %g, %g;")
        where = "[%g]"
        name = name.replace(".shared", "")
    operands = f"{where}, {vector}" if name.startswith("stmatrix") else f"{vector}, {where}"
    return HEAD + "\n".join([*lines, f"{guard}{name} {operands};"]) + TAIL


def run_both(text: str, pool: np.ndarray, given: np.ndarray, data: np.ndarray, gpu: weft.Device | None = None):
    """(pool, data) after the kernel, by compiled code; the reference must agree."""
    gpu = gpu or device()
    arrays = [gpu.array(x) for x in (pool, given, data)]
    gpu.load(text)["k"][1, 32](*arrays)
    memory = ReferenceMemory()
    places = []
    for x in (pool, given, data):
        places.append(memory.allocate(x.nbytes))
        memory.write(places[-1], x.tobytes())
    run_kernel(parse_module(text), "k", 1, 32, [struct.pack("<Q", p) for p in places], memory)
    after = arrays[0].numpy(), arrays[2].numpy()
    for array, place in zip(after, (places[0], places[2])):
        wanted = np.frombuffer(memory.read(place, array.nbytes), array.dtype).reshape(array.shape)
        assert (array == wanted).all()
    return after


def offsets_of(address: str, rng: np.random.Generator, used: int) -> tuple[np.ndarray, np.ndarray]:
    """(what the kernel is given, the lanes' offsets). Lanes whose address is not used are given nonsense."""
    given = rng.permutation(POOL // 16)[:32].astype(np.uint32) * 16
    if address == "unknown":
        given[used:] = 0xFFFF_FFF1
    return given, np.asarray(ADDRESSES[address][1](np.arange(32), given), np.int64)


def rows_at(pool: np.ndarray, offsets: np.ndarray, count: int) -> np.ndarray:
    """[count, 16] bytes."""
    return np.stack([pool[o : o + 16] for o in offsets[:count]])


def unpacked(rows: np.ndarray, bits: int) -> np.ndarray:
    """The 16 elements of each row, a byte each."""
    stream = np.unpackbits(rows, axis=1, bitorder="little")[:, : 16 * bits].reshape(len(rows), 16, bits)
    return (stream * (1 << np.arange(bits))).sum(axis=2).astype(np.uint8)


LOADS = [
    *((f"ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16", n, n) for n in (1, 2, 4) for trans in ("", ".trans")),
    *((f"ldmatrix.sync.aligned.m16n16.x{n}.trans.shared.{kind}", n, 2 * n)
      for n in (1, 2) for kind in ("b8", "b8x16.b6x16_p32", "b8x16.b4x16_p64")),
    *((f"ldmatrix.sync.aligned.m8n16.x{n}.shared.b8x16.{kind}", n, n)
      for n in (1, 2, 4) for kind in ("b6x16_p32", "b4x16_p64")),
]  # fmt: skip
STORES = [
    *((f"stmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16", n) for n in (1, 2, 4) for trans in ("", ".trans")),
    *((f"stmatrix.sync.aligned.m16n8.x{n}.trans.shared.b8", n) for n in (1, 2, 4)),
]


@pytest.mark.parametrize("name, number, registers", LOADS, ids=[load[0] for load in LOADS])
def test_load(name, number, registers):
    rng = np.random.default_rng(registers)
    pool = rng.integers(0, 256, POOL, dtype=np.uint8)
    data = rng.integers(0, 2**32, (32, 4), dtype=np.uint32)
    used = 8 * registers
    for i, address in enumerate(ADDRESSES):
        generic = (i + len(name)) % 2 == 0
        given, offsets = offsets_of(address, rng, used)
        _, found = run_both(kernel_text(name, registers, address, generic), pool, given, data)
        rows = rows_at(pool, offsets, used)
        for kind, bits in (("b6x16_p32", 6), ("b4x16_p64", 4)):
            if kind in name:
                rows = unpacked(rows, bits)
        wanted = data.copy()
        if "m16n16" in name:
            turned = [rows[16 * i : 16 * i + 16].T for i in range(number)]
            rows = np.concatenate(turned)
        for i in range(registers):
            part = np.ascontiguousarray(rows[8 * i : 8 * i + 8])
            if ".m8n8" in name and ".trans" in name:
                part = np.ascontiguousarray(part.view(np.uint16).T).view(np.uint8)
            # lane l: row l / 4, four bytes from column 4 (l % 4)
            wanted[:, i] = part.reshape(8, 4, 4).reshape(32, 4).copy().view(np.uint32)[:, 0]
        assert (found == wanted).all(), (address, generic)


@pytest.mark.parametrize("name, registers", STORES, ids=[store[0] for store in STORES])
def test_store(name, registers):
    rng = np.random.default_rng(registers)
    pool = rng.integers(0, 256, POOL, dtype=np.uint8)
    data = rng.integers(0, 2**32, (32, 4), dtype=np.uint32)
    for turn, address in enumerate(ADDRESSES):
        generic = (turn + registers) % 2 == 0
        given, offsets = offsets_of(address, rng, 8 * registers)
        found, _ = run_both(kernel_text(name, registers, address, generic), pool, given, data)
        wanted = pool.copy()
        for i in range(registers):
            if "m16n8" in name:
                # the accumulator's fragment, by columns
                matrix = np.zeros((16, 8), np.uint8)
                for lane, byte in itertools.product(range(32), range(4)):
                    value = data[lane, i] >> 8 * byte & 0xFF
                    matrix[(lane >> 2) + 8 * (byte >> 1), 2 * (lane % 4) + (byte & 1)] = value
                rows = matrix.T
            else:
                halves = data[:, i].copy().view(np.uint16).reshape(8, 8)
                rows = np.ascontiguousarray(halves.T if ".trans" in name else halves).view(np.uint8)
            for row, offset in zip(rows, offsets[8 * i : 8 * i + 8]):
                wanted[offset : offset + 16] = row
        assert (found == wanted).all(), (address, generic)


@pytest.mark.parametrize("address", ["swizzled", "unknown"])
def test_without_wide_vectors(address):
    """The same on a target whose vectors are half as wide."""
    before = settings.current().target
    rng = np.random.default_rng(1)
    pool = rng.integers(0, 256, POOL, dtype=np.uint8)
    data = rng.integers(0, 2**32, (32, 4), dtype=np.uint32)
    given, _ = offsets_of(address, rng, 32)
    settings.configure(target="avx2")
    try:
        for name in ("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "stmatrix.sync.aligned.m8n8.x4.shared.b16"):
            run_both(kernel_text(name, 4, address, False), pool, given, data, weft.Device("h100"))
    finally:
        settings.configure(target=before)


@pytest.mark.parametrize(
    "name", ["ldmatrix.sync.aligned.m8n8.x2.shared.b16", "stmatrix.sync.aligned.m8n8.x2.shared.b16"]
)
@pytest.mark.parametrize("generic", [False, True])
def test_faults_name_the_lane(name, generic):
    pool, data = np.zeros(POOL, np.uint8), np.zeros((32, 4), np.uint32)
    for lane, offset, kind in (
        (5, POOL, IllegalAddressError),
        (11, 24, MisalignedAddressError),
        (3, -16, IllegalAddressError),
    ):
        given = (np.arange(32) * 16).astype(np.uint32)
        given[lane] = offset & 0xFFFFFFFF
        text = kernel_text(name, 2, "unknown", generic)
        arrays = [device().array(x) for x in (pool, given, data)]
        with pytest.raises(kind, match=rf"16 bytes .*{name[:8]}.*thread \({lane}, 0, 0\)"):
            device().load(text)["k"][1, 32](*arrays)


def test_uniform_guard():
    """A guard that no lane passes touches nothing, not even a bad address."""
    pool, data = np.zeros(POOL, np.uint8), np.arange(128, dtype=np.uint32).reshape(32, 4)
    given = np.full(32, 0xFFFF_FFF0, np.uint32)
    text = kernel_text("ldmatrix.sync.aligned.m8n8.x4.shared.b16", 4, "unknown", False, "@%p ")
    _, found = run_both(text, pool, given, data)
    assert (found == data).all()


def test_global_address_is_no_shared_memory():
    pool, data = np.zeros(POOL, np.uint8), np.zeros((32, 4), np.uint32)
    text = kernel_text("ldmatrix.sync.aligned.m8n8.x1.shared.b16", 1, "contiguous", True)
    text = text.replace("{%r0}, [%g]", "{%r0}, [%pool]")
    with pytest.raises(IllegalAddressError, match="ldmatrix"):
        device().load(text)["k"][1, 32](*(device().array(x) for x in (pool, np.zeros(32, np.uint32), data)))


def test_movmatrix():
    text = kernel_text("ldmatrix.sync.aligned.m8n8.x1.shared.b16", 1, "contiguous", False)
    text = text.replace("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [%o];",
                        "movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0;")  # fmt: skip
    data = np.random.default_rng(2).integers(0, 2**32, (32, 4), dtype=np.uint32)
    _, found = run_both(text, np.zeros(POOL, np.uint8), np.zeros(32, np.uint32), data)
    halves = data[:, 0].copy().view(np.uint16).reshape(8, 8)
    wanted = data.copy()
    wanted[:, 1] = np.ascontiguousarray(halves.T).view(np.uint32).reshape(-1)
    assert (found == wanted).all()
