"""Device memory: the arena, the range table, host limits, arrays and their exchange with NumPy."""

from __future__ import annotations

import ctypes
import gc
import random
import warnings

import numpy as np
import pytest

import weft
from weft.errors import InvalidDevicePointerError, InvalidValueError, OutOfMemoryError
from weft.runtime import memory
from weft.runtime.faults import explain_address, explain_misaligned
from weft.runtime.hostmemory import Reservation, available_bytes
from weft.runtime.memory import Arena, RangeTable


def listed(table: RangeTable) -> list[tuple[int, int]]:
    raw = (ctypes.c_uint64 * (2 * table.count)).from_address(table.address) if table.count else []
    return [(raw[2 * i], raw[2 * i + 1]) for i in range(table.count)]


# ---------------------------------------------------------------- ranges
def test_ranges_stay_sorted_and_grow() -> None:
    table = RangeTable()
    bases = list(range(0x1000, 0x1000 + 1000 * 64, 64))
    random.Random(1).shuffle(bases)
    for base in bases:
        table.add(base, 16)
    assert listed(table) == [(base, 16) for base in sorted(bases)]
    for base in bases[:700]:
        table.remove(base, 16)
    assert listed(table) == [(base, 16) for base in sorted(bases[700:])]
    assert table.find(sorted(bases[700:])[5] + 15) and table.find(sorted(bases[700:])[5] + 16) is None


def test_overlapping_ranges_are_merged_while_both_are_there() -> None:
    table = RangeTable()
    table.add(100, 50)
    table.add(200, 50)
    table.add(140, 70)  # touches both
    assert listed(table) == [(100, 150)]
    table.add(100, 50)
    table.remove(140, 70)
    assert listed(table) == [(100, 50), (200, 50)]
    table.remove(100, 50)
    assert listed(table) == [(100, 50), (200, 50)]
    table.remove(100, 50)
    assert listed(table) == [(200, 50)]


def test_neighbouring_ranges_are_not_merged() -> None:
    table = RangeTable()
    table.add(100, 50)
    table.add(150, 50)
    assert listed(table) == [(100, 50), (150, 50)]


def test_ranges_against_a_list_of_bytes() -> None:
    rng = random.Random(7)
    table, members = RangeTable(), []
    for _ in range(600):
        if members and rng.random() < 0.45:
            table.remove(*members.pop(rng.randrange(len(members))))
        else:
            member = (rng.randrange(1, 400), rng.randrange(1, 40))
            members.append(member)
            table.add(*member)
        covered = {byte for base, size in members for byte in range(base, base + size)}
        found = listed(table)
        assert {byte for base, size in found for byte in range(base, base + size)} == covered
        assert all(a[0] + a[1] <= b[0] for a, b in zip(found, found[1:]))


# ---------------------------------------------------------------- arena
def test_allocations_are_aligned_apart_and_accounted() -> None:
    arena = Arena(1 << 30)
    made = [arena.allocate(size) for size in (1, 255, 256, 257, 5000, 1 << 20)]
    ends = 0
    for allocation in made:
        assert allocation.address % 256 == 0
        assert allocation.address - ends >= 256
        ends = allocation.address + allocation.size
    assert listed(arena.ranges) == [(a.address, a.size) for a in made]
    assert arena.used == sum(-(-a.size // 512) * 512 for a in made)
    for allocation in made:
        allocation.free()
    assert arena.used == 0 and arena.ranges.count == 0 and arena.peak > 1 << 20


def test_alignment_beyond_the_usual() -> None:
    arena = Arena(1 << 28)
    made = [arena.allocate(100, align=4096) for _ in range(5)]
    assert all(a.address % 4096 == 0 for a in made)
    for allocation in made:
        allocation.free()
    assert arena.ranges.count == 0


def test_freed_memory_is_used_again() -> None:
    arena = Arena(64 << 20)
    for size in (1000, 3 << 20, 40 << 20):
        for _ in range(50):
            arena.allocate(size).free()
    # Pieces of all sizes join again: the whole capacity can be had at once.
    pieces = [arena.allocate(1 << 20) for _ in range(60)]
    for piece in pieces[::2] + pieces[1::2]:
        piece.free()
    arena.allocate(64 << 20).free()


def test_random_allocations_never_overlap() -> None:
    rng = random.Random(3)
    arena, live = Arena(256 << 20), []
    for _ in range(3000):
        if live and (rng.random() < 0.5 or arena.used > 200 << 20):
            live.pop(rng.randrange(len(live))).free()
        else:
            live.append(arena.allocate(int(2 ** rng.uniform(0, 24)), align=rng.choice((256, 256, 256, 1024))))
    spans = sorted((a.address, a.address + a.size) for a in live)
    assert all(end + 256 <= start for (_, end), (start, _) in zip(spans, spans[1:]))
    assert listed(arena.ranges) == [(start, end - start) for start, end in spans]


def test_zeroed_memory_is_zero_after_reuse() -> None:
    arena = Arena(1 << 30)
    for size in (100, 5 << 20, 48 << 20):
        first = arena.allocate(size)
        ctypes.memset(first.address, 0xAB, size)
        first.free()
        again = arena.allocate(size, zero=True)
        assert not np.asarray(again).any()
        again.free()


def test_capacity_is_the_chips() -> None:
    arena = Arena(1 << 20, "test chip")
    kept = arena.allocate(512 << 10)
    with pytest.raises(OutOfMemoryError, match="tried to allocate 600.0 KiB; test chip has a capacity of 1.0 MiB"):
        arena.allocate(600 << 10)
    kept.free()
    arena.allocate(600 << 10)


def test_the_hosts_memory_is_a_limit_too(monkeypatch) -> None:
    arena = Arena(80 << 30, "test chip")
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 30)
    with pytest.raises(OutOfMemoryError, match="on the host.*--dry"):
        arena.allocate(2 << 30)
    # Untouched allocations count: they will need their memory.
    kept = arena.allocate(500 << 20)
    with pytest.raises(OutOfMemoryError, match="on the host"):
        arena.allocate(500 << 20)
    assert arena.used == kept.size


def test_more_than_the_host_has() -> None:
    available = available_bytes()
    gpu = weft.Device("h100")
    if available is None or available > 70 << 30:
        pytest.skip("this host has more memory than the chip")
    with pytest.raises(OutOfMemoryError, match="--dry"):
        gpu.empty(79 << 30, np.uint8)
    gpu.array([1]).numpy()


def test_untouched_memory_costs_nothing() -> None:
    from weft.runtime.hostmemory import resident_bytes

    before = resident_bytes()
    arena = Arena(80 << 30)
    kept = arena.allocate(1 << 30, zero=True)
    assert resident_bytes() - before < 64 << 20
    kept.free()


def test_double_free() -> None:
    arena = Arena(1 << 20)
    allocation = arena.allocate(100, "scratch")
    allocation.free()
    with pytest.raises(InvalidDevicePointerError, match="scratch at .* was freed before"):
        allocation.free()


def test_what_nothing_refers_to_is_freed() -> None:
    arena = Arena(1 << 20)
    for _ in range(100):
        arena.allocate(100 << 10)  # would not fit if it stayed
    gc.collect()
    arena.collect()
    assert arena.used == 0


def test_reservation_gives_pages_back() -> None:
    space = Reservation(1 << 20)
    ctypes.memset(space.address, 1, 1 << 20)
    space.release(100, (1 << 20) - 100)
    raw = (ctypes.c_uint8 * (1 << 20)).from_address(space.address)
    assert raw[50] == 1 and raw[4096] in (0, 1) and raw[99] == 1


# ---------------------------------------------------------------- explanations
def test_explanations_of_addresses() -> None:
    arena = Arena(1 << 30)
    first, second = arena.allocate(1000, "first"), arena.allocate(1000, ((250,), np.dtype("f4")))
    assert explain_address(arena, 0, 4) == "a null pointer"
    assert explain_address(arena, 16, 4) == "a null pointer plus 16 bytes"
    assert explain_address(arena, first.address + 1000, 4).startswith("0 bytes past the end of first at")
    assert explain_address(arena, first.address + 1004, 4).startswith("4 bytes past the end of first at")
    assert explain_address(arena, first.address + 998, 4).startswith("2 bytes of it past the end of first")
    assert "before the start of array of shape (250,), float32" in explain_address(arena, second.address - 8, 4)
    assert "shared memory" in explain_address(arena, arena.shared_window + 10, 4)
    assert "local memory" in explain_address(arena, arena.local_window, 4)
    assert "host pointer" in explain_address(arena, 0x7000_0000_0000_0000 >> 8, 4)
    second.free()
    assert "8 bytes into freed memory: array of shape (250,)" in explain_address(arena, second.address + 8, 4)
    assert explain_misaligned(0x1001, 4) == "1 byte past a multiple of 4"


# ---------------------------------------------------------------- arrays
@pytest.fixture(scope="module")
def gpu() -> weft.Device:
    return weft.Device("h100")


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", "c8", "f2", "?", "i8", [("a", "i4"), ("b", "f8")]])
def test_round_trip(gpu: weft.Device, dtype) -> None:
    host = np.arange(24).astype(np.dtype(dtype)) if isinstance(dtype, str) else np.zeros(24, dtype)
    for data in (host, host.reshape(2, 3, 4), host.reshape(4, 6).T, host[::2], host[:1].reshape(())):
        x = gpu.array(data)
        assert x.shape == data.shape and x.dtype == data.dtype and x.is_contiguous
        assert np.array_equal(x.numpy(), data) and np.array_equal(np.asarray(x), data)
        assert x.ptr % 256 == 0


def test_makers(gpu: weft.Device) -> None:
    assert gpu.zeros((2, 3)).numpy().tolist() == [[0, 0, 0], [0, 0, 0]]
    assert gpu.ones(3, np.int32).numpy().tolist() == [1, 1, 1]
    assert gpu.full((2,), 2.5).numpy().tolist() == [2.5, 2.5]
    x = gpu.zeros((4, 2), np.int16)
    assert gpu.empty_like(x).shape == (4, 2) and gpu.zeros_like(np.zeros(3)).dtype == np.float64
    assert (x.size, x.nbytes, x.ndim, x.itemsize, len(x)) == (8, 16, 2, 2, 4)
    assert gpu.array([1, 2, 3], np.float32).dtype == np.float32
    assert gpu.array(x).ptr != x.ptr


def test_empty_arrays(gpu: weft.Device) -> None:
    x = gpu.zeros((0, 5))
    assert x.shape == (0, 5) and x.ptr == 0 and x.numpy().shape == (0, 5)
    x.free()


def test_views_share_memory(gpu: weft.Device) -> None:
    x = gpu.array(np.arange(12, dtype=np.int32))
    part = x[4:8]
    assert part.ptr == x.ptr + 16 and part.numpy().tolist() == [4, 5, 6, 7]
    part[0] = 100
    part[1:3] = np.array([7, 8], np.int32)
    assert x.numpy()[4:8].tolist() == [100, 7, 8, 7]
    table = x.reshape(3, 4)
    assert table[1, 0] == 100 and table[:, 1].strides == (16,) and not table.T.is_contiguous
    assert x.view(np.int16).shape == (24,)
    assert x.ravel().ptr == x.ptr
    with pytest.raises(InvalidValueError, match="cannot be reshaped in place"):
        table.T.reshape(-1)
    with pytest.raises(TypeError, match="integers and slices"):
        x[np.array([1, 2])]
    with pytest.raises(TypeError, match="integers and slices"):
        x[x.numpy() > 3]
    with pytest.raises(IndexError):
        x[12]


def test_a_view_keeps_the_memory(gpu: weft.Device) -> None:
    part = gpu.array(np.arange(1000))[10:20]
    gc.collect()
    gpu.zeros(1000, np.int64)
    assert part.numpy().tolist() == list(range(10, 20))


def test_free_invalidates_views(gpu: weft.Device) -> None:
    x = gpu.array(np.arange(10))
    part = x[2:]
    with pytest.raises(InvalidDevicePointerError, match="not the start"):
        part.free()
    x.free()
    for use in (x.numpy, part.numpy, lambda: x[0], lambda: x.copy_from(np.arange(10)), lambda: np.asarray(x)):
        with pytest.raises(InvalidDevicePointerError, match="freed"):
            use()
    with pytest.raises(InvalidDevicePointerError, match="freed before"):
        x.free()
    assert "freed" in repr(x)


def test_copies(gpu: weft.Device) -> None:
    other = weft.Device("rtx3060")
    stream = gpu.stream()
    x = gpu.zeros((2, 2), np.float32)
    host = np.array([[1, 2], [3, 4]], np.float32)
    assert x.copy_from(host, stream) is x
    target = np.empty_like(host)
    x.copy_to(target, stream)
    assert np.array_equal(target, host)
    there = other.empty((2, 2)).copy_from(x)
    assert np.array_equal(there.numpy(), host)
    assert np.array_equal(x.T.copy().numpy(), host.T)
    for bad in (np.zeros(4, np.float32), np.zeros((2, 2), np.float64)):
        with pytest.raises(InvalidValueError, match="cannot copy"):
            x.copy_from(bad)
        with pytest.raises(InvalidValueError, match="cannot copy"):
            x.copy_to(bad)
    with pytest.raises(InvalidValueError, match="another device"):
        x.copy_from(host, other.stream())


def test_arithmetic_is_not_done_by_accident(gpu: weft.Device) -> None:
    with pytest.raises(TypeError):
        gpu.zeros(3) + np.zeros(3)
    with pytest.raises(TypeError, match="Python objects"):
        gpu.array([object()])
    with pytest.raises(InvalidValueError, match="negative"):
        gpu.zeros(-1)


def test_cuda_array_interface(gpu: weft.Device) -> None:
    x = gpu.array(np.arange(6, dtype=np.float32).reshape(2, 3))
    interface = x.__cuda_array_interface__
    assert interface["shape"] == (2, 3) and interface["typestr"] == "<f4" and interface["data"] == (x.ptr, False)
    assert interface["strides"] is None and interface["version"] == 3
    assert x.T.__cuda_array_interface__["strides"] == (4, 12)


def test_dlpack_both_ways(gpu: weft.Device) -> None:
    x = gpu.array(np.arange(6, dtype=np.float32))
    host = np.from_dlpack(x)
    host[0] = 42
    assert x.numpy()[0] == 42
    del x
    gc.collect()
    gpu.array(np.zeros(6, np.float32))
    assert host[0] == 42, "memory that a DLPack consumer holds was used again"
    source = np.arange(4, dtype=np.int32)
    y = gpu.from_dlpack(source)
    source[1] = 17
    assert y.numpy().tolist() == [0, 17, 2, 3]


def test_dlpack_with_torch(gpu: weft.Device) -> None:
    torch = pytest.importorskip("torch")
    x = gpu.array(np.arange(6, dtype=np.float32))
    tensor = torch.from_dlpack(x)
    tensor += 1
    assert x.numpy().tolist() == [1, 2, 3, 4, 5, 6]
    back = gpu.from_dlpack(torch.arange(3))
    assert back.numpy().tolist() == [0, 1, 2]


def test_registered_memory(gpu: weft.Device) -> None:
    before = gpu.memory_info()
    host = np.arange(10, dtype=np.int32)
    count = gpu.arena.ranges.count
    x = gpu.register(host)
    assert x.ptr == host.ctypes.data and gpu.arena.ranges.find(x.ptr) == (x.ptr, x.ptr + 40)
    part = gpu.register(host[2:4])
    assert gpu.arena.ranges.count == count + 1
    del x, part
    gc.collect()
    assert gpu.memory_info() == before and gpu.arena.ranges.count == count
    raw = bytearray(16)
    gpu.register(raw)[3] = 9
    assert raw[3] == 9
    for empty in (np.zeros(0), b""):
        with pytest.raises((InvalidValueError, ValueError, TypeError)):
            gpu.register(empty)
    with pytest.raises(TypeError, match="expected host memory"):
        gpu.register(object())
    with pytest.raises(TypeError, match="needs no registering"):
        gpu.register(gpu.zeros(3))


def test_registering_a_view_of_device_memory(gpu: weft.Device) -> None:
    x = gpu.zeros(10, np.int32)
    y = gpu.from_dlpack(x[2:5])
    assert y.ptr == x.ptr + 8
    address = x.ptr
    del x
    gc.collect()
    gpu.arena.collect()
    assert gpu.arena.ranges.find(address) == (address, address + 40), "the view must keep the memory"
    del y
    gc.collect()
    gpu.arena.collect()
    assert gpu.arena.ranges.find(address) is None


def test_memory_info(gpu: weft.Device) -> None:
    gc.collect()
    free, total = gpu.memory_info()
    assert total == gpu.chip.memory_bytes and free > total - (64 << 20)
    x = gpu.empty(1 << 20, np.uint8)
    assert gpu.memory_info()[0] == free - (1 << 20) and gpu.peak_memory >= 1 << 20
    del x
    assert gpu.memory_info()[0] == free


def test_no_warnings_from_numpy_two(gpu: weft.Device) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.array(gpu.zeros(3), copy=True)
        np.asarray(gpu.zeros(3), dtype=np.float64)
