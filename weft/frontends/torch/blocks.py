"""Blocks of a virtual GPU's memory: requests in bytes in, places in segments and counts out; the allocator's hot path.

The best fit, the splitting and the merging of c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.13. An operator takes and
gives back a block each time it makes a tensor, so that both are written out in one piece each: 2 microseconds together,
against 3 in parts. The compiled helper (native/) has the same in C++, on the same lists and with the same names.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import deque
from typing import Any

from weft.frontends.torch.counters import Counter

MIN_BLOCK = 512
SMALL = 1 << 20  # the largest size that comes from small segments
# A request from here on is first held against what the host has left.
HOST_CHECK = 64 << 20

Pool = dict[int, list[tuple[int, int, "Block"]]]  # stream -> free blocks, sorted by size and address


class Block:
    """A piece of a segment. address and sizes in bytes; requested is what was asked for, size what it was rounded to.

    stream: the one it belongs to; previous, next: its neighbours in the segment; allocated: whether it is in use.
    """

    __slots__ = (
        "address", "allocated", "free_list", "kind", "next", "previous", "private", "requested", "size", "stream",
    )  # fmt: skip

    def __init__(self, address: int, size: int, stream: int, kind: Kind, free_list: list, private: Any):
        self.address, self.size, self.stream, self.kind = address, size, stream, kind
        self.free_list, self.private = free_list, private
        self.previous: Block | None = None
        self.next: Block | None = None
        self.allocated = False
        self.requested = 0


class Kind:
    """The small or the large blocks of one allocator.

    Statistics that change with every allocation are plain numbers: bytes, count, requested, inactive, inactive_bytes
    as they are, each with its peak and the total of its increases.
    """

    __slots__ = (
        "bytes", "bytes_peak", "bytes_total", "count", "count_peak", "count_total", "free", "inactive",
        "inactive_bytes", "inactive_bytes_peak", "inactive_bytes_total", "inactive_peak", "inactive_total",
        "requested", "requested_peak", "requested_total", "reserved", "segments", "small",
    )  # fmt: skip

    def __init__(self, small: bool):
        self.small = small
        self.free: Pool = {}
        self.bytes = self.bytes_peak = self.bytes_total = 0
        self.count = self.count_peak = self.count_total = 0
        self.requested = self.requested_peak = self.requested_total = 0
        self.inactive = self.inactive_peak = self.inactive_total = 0
        self.inactive_bytes = self.inactive_bytes_peak = self.inactive_bytes_total = 0
        self.segments, self.reserved = Counter(), Counter()


class Allocation:
    """Holds a block for as long as it lives; sits on the storage that owns the host memory."""

    __slots__ = ("allocator", "block")

    def __init__(self, allocator: Blocks, block: Block):
        self.allocator, self.block = allocator, block

    def __del__(self) -> None:
        """May run at any moment, in the middle of `allocate` too (by the collector)."""
        allocator = self.allocator
        if not allocator._acquire(False):
            allocator._returned.append(self.block)
            return
        allocator._free(self.block)
        if allocator._returned:
            allocator._take_back()
        allocator._release()


class Blocks:
    """The blocks of one GPU, small and large, and how many of them there are.

    A class above it says where segments come from (`_reserve`), which pools a capture uses and what is traced.
    """

    def __init__(self) -> None:
        self.suspended = False
        self.small, self.large = Kind(True), Kind(False)
        self.bytes_peak = self.count_peak = self.requested_peak = self.inactive_peak = self.inactive_bytes_peak = 0
        self.heads: dict[int, Block] = {}  # address of a segment -> its first block
        self.capture: tuple[tuple[int, int], int | None] | None = None  # pool and stream (None: every one) in use
        self.trace: deque | None = None  # recorded events, while history is on
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._returned: deque[Block] = deque()

    def allocate(self, requested: int, stream: int = 0) -> Allocation | None:
        """A block for `requested` bytes (more than 0), held by what is returned. Raises PyTorch's OutOfMemoryError."""
        if self.suspended:
            return None
        size = (requested + 511) & -512
        small, large = self.small, self.large
        kind = small if size <= SMALL else large
        if requested >= HOST_CHECK:
            self._check_host(requested)
        self._acquire()
        try:
            if self._returned:
                self._take_back()
            if self.capture is None:
                free_lists, private = kind.free, None
            else:
                free_lists, private = self._pool_in_capture(kind, stream)
            free = free_lists.get(stream)
            if free is None:
                free = free_lists[stream] = []
            place = bisect_left(free, (size,))
            if place < len(free):
                block = free.pop(place)[2]
            else:
                block = self._reserve(kind, size, stream, free, private, requested)
            had = block.size
            rest = had - size
            following = block.next
            if rest >= MIN_BLOCK if kind is small else rest > SMALL:
                address = block.address + size
                other = Block(address, rest, stream, kind, free, private)
                other.previous = block
                block.next = other
                block.size = size
                insort(free, (rest, address, other))
                if following is not None:
                    other.next = following
                    following.previous = other
                    kind.inactive_bytes -= size
                elif block.previous is not None:
                    kind.inactive_bytes -= size
                else:
                    self._count_inactive(kind, 1, rest)
            else:
                size = had
                if following is not None or block.previous is not None:
                    kind.inactive -= 1
                    kind.inactive_bytes -= size
            block.allocated = True
            block.requested = requested
            # PyTorch's "active" equals "allocated" here, since no block waits for an event of another stream.
            kind.bytes_total += size
            kind.count_total += 1
            kind.requested_total += requested
            kind.bytes = now = kind.bytes + size
            if now > kind.bytes_peak:
                kind.bytes_peak = now
            kind.count = now = kind.count + 1
            if now > kind.count_peak:
                kind.count_peak = now
            kind.requested = now = kind.requested + requested
            if now > kind.requested_peak:
                kind.requested_peak = now
            now = small.bytes + large.bytes
            if now > self.bytes_peak:
                self.bytes_peak = now
            now = small.count + large.count
            if now > self.count_peak:
                self.count_peak = now
            now = small.requested + large.requested
            if now > self.requested_peak:
                self.requested_peak = now
        finally:
            self._release()
        if self.trace is not None:
            self._trace("alloc", block.address, requested, stream)
        return Allocation(self, block)

    def _free(self, block: Block) -> None:
        kind = block.kind
        free = block.free_list
        size = block.size
        kind.bytes -= size
        kind.count -= 1
        kind.requested -= block.requested
        block.allocated = False
        if self.trace is not None:
            self._trace("free_completed", block.address, block.requested, block.stream)
        previous, following = block.previous, block.next
        address = block.address
        if previous is not None or following is not None:
            blocks, merged = 1, size
            if previous is not None and not previous.allocated:
                # The free neighbour goes; what it counted as inactive is in the merged block.
                had, address = previous.size, previous.address
                del free[bisect_left(free, (had, address))]
                blocks = 0
                block.address = address
                size += had
                previous = block.previous = previous.previous
                if previous is not None:
                    previous.next = block
                else:
                    self.heads[address] = block
            if following is not None and not following.allocated:
                had = following.size
                del free[bisect_left(free, (had, following.address))]
                blocks -= 1
                size += had
                following = block.next = following.next
                if following is not None:
                    following.previous = block
            block.size = size
            if previous is None and following is None:  # the segment is whole again
                blocks -= 1
                merged -= size
            self._count_inactive(kind, blocks, merged)
        insort(free, (size, address, block))

    def _take_back(self) -> None:
        while self._returned:
            self._free(self._returned.popleft())

    def _count_inactive(self, kind: Kind, blocks: int, size: int) -> None:
        """Free pieces of segments that are partly in use have changed by that many blocks and bytes."""
        kind.inactive = now = kind.inactive + blocks
        if blocks > 0:
            kind.inactive_total += blocks
            if now > kind.inactive_peak:
                kind.inactive_peak = now
            now = self.small.inactive + self.large.inactive
            if now > self.inactive_peak:
                self.inactive_peak = now
        kind.inactive_bytes = now = kind.inactive_bytes + size
        if size > 0:
            kind.inactive_bytes_total += size
            if now > kind.inactive_bytes_peak:
                kind.inactive_bytes_peak = now
            now = self.small.inactive_bytes + self.large.inactive_bytes
            if now > self.inactive_bytes_peak:
                self.inactive_bytes_peak = now

    # ------------------------------------------------------------ what the class above it adds
    def _reserve(self, kind: Kind, size: int, stream: int, free: list, private: Any, requested: int) -> Block:
        raise NotImplementedError

    def _pool_in_capture(self, kind: Kind, stream: int) -> tuple[Pool, Any]:
        raise NotImplementedError

    def _check_host(self, requested: int) -> None:
        raise NotImplementedError

    def _trace(self, action: str, address: int, size: int, stream: int) -> None:
        raise NotImplementedError
