"""Device memory: an arena of reserved host address space, its allocations, and the table of ranges kernels may touch.

Device addresses are host addresses inside the arena. The address space is larger than the capacity, so that gaps
between allocations and fragments cost nothing: what counts against the capacity is what was asked for.
"""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_left, bisect_right, insort
from collections import deque

from weft.codegen import abi
from weft.errors import InvalidDevicePointerError, InvalidValueError, OutOfMemoryError
from weft.runtime.hostmemory import (
    HOST_MARGIN_BYTES,
    Reservation,
    available_bytes,
    format_bytes,
    resident_bytes,
    round_up,
)

ALIGNMENT = 256  # of every allocation, as cudaMalloc's
GAP = 256  # between allocations, so that a small overrun leaves every range
UNIT = 512  # what an allocation counts for is rounded up to this
WINDOW_BYTES = 16 << 20  # of the shared and of the local window
SMALL_BYTES = 1 << 20  # freed blocks up to this size are kept by size and handed out again first
RELEASE_BYTES = 32 << 20  # larger freed blocks go back to the host: below, faulting them in again costs more
HOST_CHECK_BYTES = 8 << 20  # allocations from this size on are held against the host's free memory
HISTORY = 4096  # freed allocations that error messages remember
# Addresses from here on stand for memory that is not there, in a dry run. No processor has such addresses.
NO_DATA = 0x0D << 56


class RangeTable:
    """Sorted, disjoint ranges as an array of abi.Range. Ranges that overlap are merged while both are there.

    Attributes: address (of the array; changes when it grows), count.
    """

    def __init__(self) -> None:
        self._array = (abi.Range * 256)()
        self.address = ctypes.addressof(self._array)
        self.count = 0
        self._bases: list[int] = []
        self._ends: list[int] = []
        self._merged: dict[int, list[tuple[int, int]]] = {}  # base -> the ranges that were merged there

    def add(self, base: int, size: int) -> None:
        end = base + size
        first = bisect_right(self._ends, base)
        last = bisect_left(self._bases, end)
        if first == last:
            self._insert(first, base, end)
            return
        members = [(base, end)]
        for i in range(first, last):
            start = self._bases[i]
            members += self._merged.pop(start, [(start, self._ends[i])])
        for _ in range(first, last):
            self._delete(first)
        start, stop = min(m[0] for m in members), max(m[1] for m in members)
        self._insert(first, start, stop)
        self._merged[start] = members

    def remove(self, base: int, size: int) -> None:
        """Takes back one add of the same range."""
        i = bisect_right(self._bases, base) - 1
        start = self._bases[i]
        if start not in self._merged:
            assert (start, self._ends[i]) == (base, base + size), (start, self._ends[i], base, size)
            self._delete(i)
            return
        members = self._merged.pop(start)
        members.remove((base, base + size))
        self._delete(i)
        for member_base, member_end in members:
            self.add(member_base, member_end - member_base)

    def _insert(self, i: int, base: int, end: int) -> None:
        if self.count == len(self._array):
            larger = (abi.Range * (2 * self.count))()
            ctypes.memmove(larger, self._array, 16 * self.count)
            self._array, self.address = larger, ctypes.addressof(larger)
        at = self.address + 16 * i
        if i < self.count:
            ctypes.memmove(at + 16, at, 16 * (self.count - i))
        entry = self._array[i]
        entry.base, entry.size = base, end - base
        self._bases.insert(i, base)
        self._ends.insert(i, end)
        self.count += 1

    def _delete(self, i: int) -> None:
        at = self.address + 16 * i
        self.count -= 1
        if i < self.count:
            ctypes.memmove(at, at + 16, 16 * (self.count - i))
        del self._bases[i], self._ends[i]

    def find(self, address: int) -> tuple[int, int] | None:
        """(base, end) of the range that holds the address."""
        i = bisect_right(self._bases, address) - 1
        if i >= 0 and address < self._ends[i]:
            return self._bases[i], self._ends[i]
        return None


class Allocation:
    """A piece of device memory, or a registered piece of host memory; freed when nothing refers to it any more.

    Attributes: address, size (bytes), live (False once freed), what (for messages: a text, or (shape, dtype)).
    NumPy arrays made from it keep it alive.
    """

    __slots__ = ("_keep", "address", "arena", "live", "size", "what", "__weakref__")

    def __init__(self, arena: Arena, address: int, size: int, what: object, keep: object = None):
        self.arena, self.address, self.size, self.what = arena, address, size, what
        self.live = True
        self._keep = keep

    @property
    def __array_interface__(self) -> dict:
        return {"version": 3, "shape": (self.size,), "typestr": "|u1", "data": (self.address, False)}

    def free(self) -> None:
        """Frees the memory now. Raises InvalidDevicePointerError when it is free already."""
        self.arena.free(self)

    def __del__(self) -> None:
        # The collector may run anywhere, even in the middle of a launch: the arena frees at its next own step.
        if self.live:
            self.arena.abandoned.append((self.address, self.size, self.what))

    def describe(self) -> str:
        return describe_memory(self.what, self.address, self.size)


def describe_memory(what: object, address: int, size: int) -> str:
    if isinstance(what, tuple):
        shape, dtype = what
        what = f"array of shape {tuple(shape)}, {dtype},"
    return f"{what or 'allocation'} at {address:#x} ({size} bytes)"


class Arena:
    """Device memory of `capacity` bytes. Not to be used by two threads at once except through `lock`."""

    def __init__(self, capacity: int, name: str = "the device"):
        self.capacity, self.name = capacity, name
        self.lock = threading.RLock()
        tail = 2 * WINDOW_BYTES
        # Twice the capacity, for gaps and fragments; a host that limits address space may give less.
        try:
            self._space = Reservation(2 * capacity + (1 << 30) + tail, huge_pages=True)
        except OutOfMemoryError:
            self._space = Reservation(capacity + capacity // 8 + (64 << 20) + tail, huge_pages=True)
        # Nothing is ever placed in the windows: their addresses mean shared and local memory.
        end = self._space.address + self._space.size
        self.local_window = end - WINDOW_BYTES
        self.shared_window = end - 2 * WINDOW_BYTES
        self._limit = self.shared_window
        self._top = round_up(self._space.address + (1 << 20), 1 << 21)
        self._touched = self._top  # nothing from here on was ever handed out: it reads as zero
        self._by_size: dict[int, list[int]] = {}
        self._free: list[tuple[int, int]] = []  # (size, start), sorted
        self._free_at: dict[int, int] = {}  # start -> size
        self._free_end: dict[int, int] = {}  # end -> start
        self._odd_totals: dict[int, int] = {}  # start -> size, of blocks of unusual alignment
        self.ranges = RangeTable()
        self.used = 0
        self.peak = 0
        self._live: dict[int, tuple[int, object]] = {}  # address -> size, what
        self._starts: list[int] = []  # live addresses, sorted
        self.history: deque[tuple[int, int, object]] = deque(maxlen=HISTORY)
        self.abandoned: deque[tuple[int, int, object]] = deque()
        self._registered: dict[int, list[tuple[int, object]]] = {}
        self._baseline = resident_bytes()

    # ------------------------------------------------------------ allocation
    def allocate(self, size: int, what: object = "", align: int = ALIGNMENT, zero: bool = False) -> Allocation:
        """`size` bytes, all zero if asked for. Raises OutOfMemoryError when the capacity, or the host's memory, is
        used up."""
        if size < 0:
            raise InvalidValueError(f"invalid argument: a negative size, {size} bytes")
        with self.lock:
            if self.abandoned:
                self.collect()
            charge = round_up(max(size, 1), UNIT)
            if self.used + charge > self.capacity:
                raise OutOfMemoryError(
                    f"out of memory: tried to allocate {format_bytes(size)}; {self.name} has a capacity of "
                    f"{format_bytes(self.capacity)}, of which {format_bytes(self.used)} is in use and "
                    f"{format_bytes(self.capacity - self.used)} is free"
                )
            if charge >= HOST_CHECK_BYTES:
                self.check_host(charge)
            untouched = self._touched
            address = self._place(charge + GAP, align)
            if zero and address < untouched:
                ctypes.memset(address, 0, size)
            self.used += charge
            self.peak = max(self.peak, self.used)
            size = max(size, 1)
            self._live[address] = (size, what)
            insort(self._starts, address)
            self.ranges.add(address, size)
            return Allocation(self, address, size, what)

    def check_host(self, size: int) -> None:
        """Raises OutOfMemoryError when the host could not back `size` more bytes besides all that is in use."""
        available = available_bytes()
        if available is None:
            return
        # Memory in use need not have been touched yet; what this process has grown by is what was.
        touched = max(0, min(self.used, resident_bytes() - self._baseline))
        wanted = self.used - touched + size
        if wanted > available - HOST_MARGIN_BYTES:
            raise OutOfMemoryError(
                f"out of memory on the host: {self.name} has {format_bytes(self.capacity - self.used)} free, but "
                f"device memory is backed by the host's, which has {format_bytes(available)} left; tried to allocate "
                f"{format_bytes(size)} with {format_bytes(self.used)} in use. Use a smaller problem, a machine with "
                "more memory, or --dry, which computes shapes and times but no numbers"
            )

    def _place(self, total: int, align: int) -> int:
        if align > ALIGNMENT:
            total += align
        total = round_up(total, ALIGNMENT)
        address = self._take(total)
        if align > ALIGNMENT:
            aligned = round_up(address, align)
            if aligned != address:
                self._put(address, aligned - address)
            self._odd_totals[aligned] = total - (aligned - address)
            return aligned
        return address

    def _take(self, total: int) -> int:
        bin_ = self._by_size.get(total)
        if bin_:
            return bin_.pop()
        address = self._take_free(total)
        if address is not None:
            return address
        if self._top + total > self._limit and self._by_size:
            for size, starts in self._by_size.items():
                for start in starts:
                    self._put(start, size)
            self._by_size.clear()
            address = self._take_free(total)
            if address is not None:
                return address
        if self._top + total > self._limit:
            raise OutOfMemoryError(
                f"out of memory: {self.name} has {format_bytes(self.capacity - self.used)} free, but no piece of "
                f"{format_bytes(total)}"
            )
        address = self._top
        self._top += total
        self._touched = max(self._touched, self._top)
        return address

    def _take_free(self, total: int) -> int | None:
        i = bisect_left(self._free, (total, 0))
        if i == len(self._free):
            return None
        size, start = self._free.pop(i)
        del self._free_at[start], self._free_end[start + size]
        if size > total:
            self._put(start + total, size - total)
        return start

    def _put(self, start: int, size: int) -> None:
        """Adds a piece to the free list, joined with its neighbours."""
        before = self._free_end.pop(start, None)
        if before is not None:
            length = self._free_at.pop(before)
            self._free.pop(bisect_left(self._free, (length, before)))
            start, size = before, size + length
        after = self._free_at.pop(start + size, None)
        if after is not None:
            del self._free_end[start + size + after]
            self._free.pop(bisect_left(self._free, (after, start + size)))
            size += after
        if start + size == self._top:
            self._top = start
            return
        self._free_at[start] = size
        self._free_end[start + size] = start
        insort(self._free, (size, start))

    def free(self, allocation: Allocation) -> None:
        """Frees an allocation. Raises InvalidDevicePointerError when that was done before."""
        with self.lock:
            if not allocation.live:
                raise InvalidDevicePointerError(f"invalid device pointer: {allocation.describe()} was freed before")
            allocation.live = False
            self._free_block(allocation.address, allocation.size, allocation.what)

    def collect(self) -> None:
        """Frees what nothing refers to any more."""
        with self.lock:
            while self.abandoned:
                self._free_block(*self.abandoned.popleft())

    def _free_block(self, address: int, size: int, what: object) -> None:
        if address in self._registered:
            self._unregister(address, size)
            self.history.append((address, size, what))
            return
        self.ranges.remove(address, size)
        del self._live[address]
        del self._starts[bisect_left(self._starts, address)]
        self.history.append((address, size, what))
        charge = round_up(size, UNIT)
        self.used -= charge
        if charge >= RELEASE_BYTES:
            self._space.release(address - self._space.address, charge)
        total = round_up(charge + GAP, ALIGNMENT)
        total = self._odd_totals.pop(address, total)
        if total <= SMALL_BYTES:
            self._by_size.setdefault(total, []).append(address)
        else:
            self._put(address, total)

    # ------------------------------------------------------------ host memory made accessible
    def register(self, address: int, size: int, what: object, keep: object) -> Allocation:
        """Lets kernels reach host memory in place. `keep` is held as long as the registration."""
        if size <= 0:
            raise InvalidValueError("invalid argument: an empty buffer cannot be registered")
        with self.lock:
            self.ranges.add(address, size)
            self._registered.setdefault(address, []).append((size, what))
            return Allocation(self, address, size, what, keep)

    def _unregister(self, address: int, size: int) -> None:
        entries = self._registered[address]
        entries.remove(next(entry for entry in entries if entry[0] == size))
        if not entries:
            del self._registered[address]
        self.ranges.remove(address, size)

    # ------------------------------------------------------------ questions
    def contains(self, address: int) -> bool:
        """Whether the address lies in this arena, allocated or not."""
        return self._space.address <= address < self._space.address + self._space.size

    def find_live(self, address: int) -> tuple[int, int, object] | None:
        """(start, size, what) of the live allocation or registered range that holds the address."""
        i = bisect_right(self._starts, address) - 1
        if i >= 0:
            start = self._starts[i]
            size, what = self._live[start]
            if address < start + size:
                return start, size, what
        for start, entries in self._registered.items():
            for size, what in entries:
                if start <= address < start + size:
                    return start, size, what
        return None

    def find_freed(self, address: int, size: int = 1) -> tuple[int, int, object] | None:
        """The latest freed allocation that the access [address, address + size) touches."""
        for start, length, what in reversed(self.history):
            if start < address + size and address < start + length:
                return start, length, what
        return None

    def neighbours(self, address: int) -> tuple[tuple[int, int, object] | None, tuple[int, int, object] | None]:
        """The live allocations (or registered ranges) below and above an address that none holds."""
        known = [(start, *entry) for start, entries in self._registered.items() for entry in entries]
        i = bisect_right(self._starts, address)
        known += [(start, *self._live[start]) for start in self._starts[max(0, i - 1) : i + 1]]
        below = max((entry for entry in known if entry[0] <= address), default=None, key=lambda e: e[0] + e[1])
        above = min((entry for entry in known if entry[0] > address), default=None, key=lambda e: e[0])
        return below, above
