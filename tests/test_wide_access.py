"""Accesses of several components a lane whose addresses form no simple pattern, and accesses that are fetched ahead:
their values, under masks too, and their faults."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import weft
from weft import settings
from weft.errors import IllegalAddressError, MisalignedAddressError

HEAD = """.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 out, .param .u64 data, .param .u64 places, .param .u32 lanes) {
.reg .b64 %out, %data, %at, %place; .reg .b32 %lane, %lanes, %index, %row, %s, %v<8>; .reg .b64 %w<4>; .reg .pred %p;
.shared .align 16 .b8 memory[8192];
mov.u32 %lane, %tid.x; ld.param.u64 %out, [out]; ld.param.u64 %data, [data]; ld.param.u64 %place, [places];
ld.param.u32 %lanes, [lanes]; setp.lt.u32 %p, %lane, %lanes; mov.u32 %row, memory;
mul.wide.u32 %at, %lane, 4; add.s64 %at, %at, %place; ld.global.u32 %index, [%at];
"""
# How many components of how many bits; in bytes 8 or 16 a lane.
SHAPES = [(4, 32), (2, 64), (2, 32), (4, 16), (1, 64)]


@pytest.fixture(autouse=True, scope="module", params=["host", "avx2"])
def target(request):
    """With all of the processor's vector instructions, and with those of AVX2 only."""
    before = settings.current().target
    if request.param == "avx2":
        settings.configure(target="avx2")
    device.cache_clear()
    yield request.param
    settings.configure(target=before)
    device.cache_clear()


@functools.cache
def device() -> weft.Device:
    return weft.Device("a100")


def names(count: int, bits: int) -> str:
    if bits == 16:
        return "{" + ", ".join(f"%h{i}" for i in range(count)) + "}"
    letter = "w" if bits == 64 else "v"
    return "{" + ", ".join(f"%{letter}{i}" for i in range(count)) + "}" if count > 1 else f"%{letter}0"


def vector(count: int, bits: int) -> str:
    return (f"v{count}." if count > 1 else "") + f"b{bits}"


def run(body: str, data: np.ndarray, places: np.ndarray, size: int, lanes: int = 32, threads: int = 32) -> np.ndarray:
    """The body writes to %out; it finds `data` at %data and places[lane] in %index."""
    out = device().zeros(size, np.uint8)
    text = HEAD + ".reg .b16 %h<4>;\n" + body + "\nret;\n}\n"
    arguments = (out, device().array(data), device().array(places.astype(np.uint32)), lanes)
    device().load(text)["k"][1, threads](*arguments)
    return out.numpy()


def rows_at(data: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    return np.array([data[at : at + size] for at in places], np.uint8).reshape(-1, size)


@pytest.mark.parametrize("count, bits", SHAPES)
@pytest.mark.parametrize("lanes", [32, 13, 0])
def test_global_load(count: int, bits: int, lanes: int) -> None:
    """Unrelated addresses; lanes that do not load keep what they had."""
    size = count * bits // 8
    rng = np.random.default_rng(bits + lanes)
    data = rng.integers(0, 256, 4096, dtype=np.uint8)
    places = rng.integers(0, 4096 // size, 32) * size
    if lanes < 32:
        places[lanes:] = 1 << 30  # nothing is there
    kept = "".join(
        f"mov.b{bits} %{'h' if bits == 16 else 'w' if bits == 64 else 'v'}{i}, {i + 1};" for i in range(count)
    )
    body = f"""{kept}
    mul.wide.u32 %at, %index, 1; add.s64 %at, %at, %data;
    @%p ld.global.{vector(count, bits)} {names(count, bits)}, [%at];
    mul.wide.u32 %at, %lane, {size}; add.s64 %at, %at, %out;
    st.global.{vector(count, bits)} [%at], {names(count, bits)};"""
    found = run(body, data, places, 32 * size, lanes).reshape(32, size)
    wanted = np.tile(np.arange(1, count + 1, dtype=f"u{bits // 8}").view(np.uint8), (32, 1))
    wanted[:lanes] = rows_at(data, places[:lanes], size)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("count, bits", SHAPES)
@pytest.mark.parametrize("lanes", [32, 13, 0])
def test_global_store(count: int, bits: int, lanes: int) -> None:
    """Unrelated addresses; of lanes that store to one place the last stays."""
    size = count * bits // 8
    rng = np.random.default_rng(bits + lanes)
    data = rng.integers(0, 256, 32 * size, dtype=np.uint8)
    places = rng.integers(0, 40, 32) * size
    if lanes < 32:
        places[lanes:] = 1 << 30
    body = f"""mul.wide.u32 %at, %lane, {size}; add.s64 %at, %at, %data;
    ld.global.{vector(count, bits)} {names(count, bits)}, [%at];
    mul.wide.u32 %at, %index, 1; add.s64 %at, %at, %out;
    @%p st.global.{vector(count, bits)} [%at], {names(count, bits)};"""
    found = run(body, data, places, 40 * size, lanes)
    wanted = np.zeros(40 * size, np.uint8)
    for lane in range(lanes):
        wanted[places[lane] : places[lane] + size] = data[lane * size : (lane + 1) * size]
    np.testing.assert_array_equal(found, wanted)


# How a lane's row of shared memory is computed: known when compiling but for the first, and irregular.
ORDERS = {
    "unknown": "mov.b32 %s, %index;",
    "swizzled": "shr.u32 %s, %lane, 2; xor.b32 %s, %s, %lane; and.b32 %s, %s, 31;",
    "reversed": "sub.u32 %s, 31, %lane;",
    "padded": "shr.u32 %s, %lane, 3; add.u32 %s, %s, %lane;",
}


def order_of(order: str, places: np.ndarray) -> np.ndarray:
    lane = np.arange(32)
    known = {"swizzled": (lane >> 2 ^ lane) & 31, "reversed": 31 - lane, "padded": (lane >> 3) + lane}
    return known.get(order, places)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count, bits", SHAPES)
@pytest.mark.parametrize("lanes", [32, 13])
def test_shared(order: str, count: int, bits: int, lanes: int) -> None:
    """Stored in one order, loaded in the same one."""
    size = count * bits // 8
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, 64 * size, dtype=np.uint8)
    permutation = rng.permutation(32)
    rows = order_of(order, permutation)
    fill = "".join(f"add.u32 %s, %row, {at}; st.shared.b32 [%s], {7 + at};\n" for at in range(0, 64 * size, 4))
    own = f"{ORDERS[order]} mad.lo.u32 %s, %s, {size}, %row;"
    body = f"""{fill}
    mul.wide.u32 %at, %lane, {size}; add.s64 %at, %at, %data;
    ld.global.{vector(count, bits)} {names(count, bits)}, [%at];
    {own} @%p st.shared.{vector(count, bits)} [%s], {names(count, bits)};
    {own} ld.shared.{vector(count, bits)} {names(count, bits)}, [%s];
    mul.wide.u32 %at, %lane, {size}; add.s64 %at, %at, %out;
    st.global.{vector(count, bits)} [%at], {names(count, bits)};"""
    found = run(body, data, permutation, 32 * size, lanes).reshape(32, size)
    memory = (np.arange(0, 64 * size, 4) + 7).astype(np.uint32).view(np.uint8).copy()
    for lane in range(lanes):
        memory[rows[lane] * size : (rows[lane] + 1) * size] = data[lane * size : (lane + 1) * size]
    np.testing.assert_array_equal(found, rows_at(memory, rows * size, size))


@pytest.mark.parametrize("instruction", ["ld.shared.v4.b32 {%v0, %v1, %v2, %v3}, [%s];",
                                         "st.shared.v4.b32 [%s], {%lane, %lane, %lane, %lane};",
                                         "ld.shared.b64 %w0, [%s];", "st.shared.b32 [%s], %lane;"])  # fmt: skip
@pytest.mark.parametrize("order", ORDERS)
def test_shared_faults(instruction: str, order: str) -> None:
    """One lane outside of shared memory, or misaligned, is found and named; the next kernel runs."""
    places = np.arange(32)
    wrong = f"{ORDERS[order]} mad.lo.u32 %s, %s, 16, %row; "
    out_of_bounds = f"{wrong} add.u32 %s, %s, {8192 - 31 * 16};"
    with pytest.raises(IllegalAddressError):
        run(f"{out_of_bounds} {instruction}", np.zeros(4), places, 4)
    crooked = f"{wrong} add.u32 %s, %s, 2;"
    with pytest.raises(MisalignedAddressError):
        run(f"{crooked} {instruction}", np.zeros(4), places, 4)
    assert run("mov.u32 %v0, 5; st.global.u32 [%out], %v0;", np.zeros(4), places, 4)[0] == 5


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("order", ["unknown", "padded"])
def test_copies(size: int, order: str) -> None:
    """cp.async from unrelated addresses, of whole and of smaller sizes, against NumPy."""
    rng = np.random.default_rng(size)
    data = rng.integers(0, 256, 8192, dtype=np.uint8)
    permutation = rng.permutation(32)
    rows = order_of(order, permutation)
    kind = "cg" if size == 16 else "ca"
    for limit in ("", f", {size}", ", %v4"):
        body = f"""mad.lo.u32 %s, %index, {2 * size}, 0; cvt.u64.u32 %at, %s; add.s64 %at, %at, %data;
        {ORDERS[order]} mad.lo.u32 %s, %s, {size}, %row;
        rem.u32 %v4, %lane, {size + 2}; cp.async.{kind}.shared.global [%s], [%at], {size}{limit};
        cp.async.wait_all; bar.sync 0;
        mov.u32 %v0, 0; mul.wide.u32 %at, %lane, {size}; add.s64 %at, %at, %out; mov.b32 %v1, %s;
        """ + "".join(f"ld.shared.b32 %v2, [%v1+{i}]; st.global.b32 [%at+{i}], %v2;\n" for i in range(0, size, 4))
        found = run(body, data, permutation, 32 * size).reshape(32, size)
        wanted = rows_at(data, permutation * 2 * size, size)
        if limit == ", %v4":
            for lane in range(32):
                wanted[lane, lane % (size + 2) :] = 0
        np.testing.assert_array_equal(found, wanted, err_msg=f"limit {limit!r}")
    assert len(set(rows.tolist())) == 32


def test_copy_faults() -> None:
    """A source outside of memory, one that is misaligned, and a destination outside."""
    places = np.arange(32)
    copy = "cp.async.cg.shared.global [%s], [%at], 16;"
    start = "mul.wide.u32 %at, %lane, 16; add.s64 %at, %at, %data; mad.lo.u32 %s, %lane, 16, %row; "
    run(f"{start} {copy}", np.zeros(64), places, 4)
    with pytest.raises(IllegalAddressError):
        run(f"{start} add.s64 %at, %at, 16; {copy}", np.zeros(64), places, 4)
    with pytest.raises(MisalignedAddressError):
        run(f"{start} add.s64 %at, %at, 4; {copy}", np.zeros(128), places, 4)
    with pytest.raises(IllegalAddressError):
        run(f"{start} add.u32 %s, %s, {8192 - 31 * 16}; {copy}", np.zeros(64), places, 4)
    # of a lane that copies nothing, nothing is read
    run(f"{start} add.s64 %at, %at, 1024000; cp.async.cg.shared.global [%s], [%at], 16, 0;", np.zeros(64), places, 4)


@pytest.mark.parametrize("threads", [32, 96, 128])
def test_blocks_one_after_another(threads: int) -> None:
    """Wide accesses outside loops remember where they were: many blocks, the last of them not whole."""
    text = """.version 8.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 x, .param .u64 y, .param .u32 n) {
.reg .b64 %x, %y, %at; .reg .b32 %i, %t, %b, %n; .reg .f32 %f<8>; .reg .pred %p;
ld.param.u64 %x, [x]; ld.param.u64 %y, [y]; ld.param.u32 %n, [n];
mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x; mov.u32 %i, %ntid.x; mad.lo.u32 %i, %b, %i, %t; shl.b32 %i, %i, 2;
setp.lt.s32 %p, %i, %n; mul.wide.s32 %at, %i, 4; add.s64 %x, %x, %at; add.s64 %y, %y, %at;
mov.b32 %f0, 0; mov.b32 %f1, 0; mov.b32 %f2, 0; mov.b32 %f3, 0;
@%p ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%x];
@%p ld.global.v4.f32 {%f4, %f5, %f6, %f7}, [%y];
add.f32 %f0, %f0, %f4; add.f32 %f1, %f1, %f5; add.f32 %f2, %f2, %f6; add.f32 %f3, %f3, %f7;
@%p st.global.v4.f32 [%y], {%f0, %f1, %f2, %f3};
ret;
}
"""
    n = 4 * 12345
    rng = np.random.default_rng(0)
    x, y = rng.random(n, dtype=np.float32), rng.random(n, dtype=np.float32)
    on_device = device().array(x), device().array(y)
    device().load(text)["add"][-(-n // (4 * threads)), threads](*on_device, n)
    np.testing.assert_array_equal(on_device[1].numpy(), x + y)
