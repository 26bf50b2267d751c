"""The caching allocator of one virtual GPU: requests in bytes in, blocks and PyTorch's statistics out.

Host memory holds the data; this decides where they would lie on the GPU. It follows c10/cuda/CUDACachingAllocator.cpp
of PyTorch 2.13 step by step (sizes rounded to 512 bytes; segments of 2 MiB, 20 MiB or multiples of 2 MiB; best fit;
splitting; merging with free neighbours; cached segments given back before an error), so that memory_reserved, the peak,
fragmentation and the point where memory runs out are those of a real GPU.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from weft.frontends.torch.blocks import HOST_CHECK, Pool
from weft.frontends.torch.counters import Counter
from weft.frontends.torch.helper import load_helper
from weft.runtime.hostmemory import available_bytes, format_bytes

helper = load_helper()
if TYPE_CHECKING or helper is None:
    from weft.frontends.torch.blocks import Block, Blocks, Kind
else:
    Block, Blocks, Kind = helper.Block, helper.Blocks, helper.Kind

SMALL_SEGMENT = 2 << 20
LARGE_SEGMENT = 20 << 20
MIN_LARGE_SEGMENT = 10 << 20  # from here on a segment is as large as its first block
ROUND_LARGE = 2 << 20
# Every device's addresses start here; they appear in snapshots only, since tensors lie in host memory.
FIRST_ADDRESS = 0x7F0000000000

POOL_NAMES = ("all", "small_pool", "large_pool")
_FIELDS = ("bytes", "count", "requested", "inactive", "inactive_bytes")  # numbers of a Kind that have a peak


class PrivatePool:
    """Memory set aside for CUDA graphs or a torch.cuda.MemPool: free lists of its own. users: graphs that hold it."""

    __slots__ = ("large", "small", "users")

    def __init__(self) -> None:
        self.small: Pool = {}
        self.large: Pool = {}
        self.users = 1


class uncounted:
    """While it is entered, an allocator gives no blocks: memory that is taken belongs to something else's count."""

    def __init__(self, allocator: CachingAllocator):
        self.allocator = allocator

    def __enter__(self) -> None:
        self.before = self.allocator.suspended
        self.allocator.suspended = True

    def __exit__(self, *error: object) -> None:
        self.allocator.suspended = self.before


class CachingAllocator(Blocks):
    """One GPU's memory.

    capacity in bytes; raise_error makes PyTorch's OutOfMemoryError of a text; other_bytes tells what else on the device
    (arrays of weft itself) takes of the capacity.
    """

    def __init__(self, index: int, capacity: int, raise_error: Callable[[str], Exception],
                 other_bytes: Callable[[], int] = lambda: 0):  # fmt: skip
        super().__init__()
        self.index, self.capacity, self.raise_error, self.other_bytes = index, capacity, raise_error, other_bytes
        self.fraction = 1.0
        self.segments, self.reserved = Counter(), Counter()
        self.retries = self.out_of_memory = self.device_allocations = self.device_frees = 0
        self.private: dict[tuple[int, int], PrivatePool] = {}
        self.observers: list[Callable[..., None]] = []
        # In a dry run, told of a request that does not fit; answers whether it is granted all the same.
        self.overflow: Callable[[Any, int], bool] | None = None
        self._next_address = FIRST_ADDRESS + (index << 40)

    # ------------------------------------------------------------ segments
    def _reserve(self, kind: Kind, size: int, stream: int, free: list, private: Any, requested: int) -> Block:
        """A new segment, as cudaMalloc gives one; cached ones are given back if there is no room."""
        if kind.small:
            segment = SMALL_SEGMENT
        elif size < MIN_LARGE_SEGMENT:
            segment = LARGE_SEGMENT
        else:
            segment = (size + ROUND_LARGE - 1) // ROUND_LARGE * ROUND_LARGE
        if not self._fits(segment):
            self.retries += 1
            self._release_cached()
            if not self._fits(segment):
                self._fail(segment, requested)
        block = Block(self._next_address, segment, stream, kind, free, private)
        self._next_address += segment
        self.heads[block.address] = block
        self.device_allocations += 1
        for counter in (self.segments, kind.segments):
            counter.add(1)
        for counter in (self.reserved, kind.reserved):
            counter.add(segment)
        if self.trace is not None:
            self._trace("segment_alloc", block.address, segment, stream)
        return block

    def limit(self) -> int:
        """Bytes that this process may reserve: set_per_process_memory_fraction of the capacity."""
        return int(self.capacity * self.fraction)

    def _fits(self, segment: int) -> bool:
        reserved = self.reserved.current + segment
        return reserved <= self.limit() and reserved + self.other_bytes() <= self.capacity

    def _release_cached(self) -> None:
        for address, block in list(self.heads.items()):
            if block.allocated or block.next is not None or self._is_held(block):
                continue
            del block.free_list[bisect_left(block.free_list, (block.size, block.address))]
            del self.heads[address]
            self.device_frees += 1
            for counter in (self.segments, block.kind.segments):
                counter.add(-1)
            for counter in (self.reserved, block.kind.reserved):
                counter.add(-block.size)
            if self.trace is not None:
                self._trace("segment_free", address, block.size, block.stream)

    def _is_held(self, block: Block) -> bool:
        pool = self.private.get(block.private) if block.private is not None else None
        return pool is not None and pool.users > 0

    def release_cached(self) -> None:
        """torch.cuda.empty_cache(): segments without a block in use go back to the device."""
        with self._lock:
            self._take_back()
            self._release_cached()

    def free_bytes(self) -> int:
        """What cudaMemGetInfo calls free."""
        return max(0, self.capacity - self.other_bytes() - self.reserved.current)

    def _fail(self, segment: int, requested: int) -> None:
        self.out_of_memory += 1
        if self.overflow is not None and self.overflow(self, segment):
            return
        free = self.free_bytes()
        allocated = self.small.bytes + self.large.bytes
        if self.trace is not None:
            self._trace("oom", free, segment, 0)
        for observer in self.observers:
            observer(self.index, segment, self.capacity, free)
        allowed = "" if self.fraction == 1.0 else f"{_format_size(self.limit())} allowed; "
        raise self.raise_error(
            f"CUDA out of memory. Tried to allocate {_format_size(segment)}. GPU {self.index} has a total capacity of "
            f"{_format_size(self.capacity)} of which {_format_size(free)} is free. Including non-PyTorch memory, this "
            f"process has {_format_size(self.capacity - free)} memory in use. {allowed}Of the allocated memory "
            f"{_format_size(allocated)} is allocated by PyTorch, and {_format_size(self.reserved.current - allocated)} "
            "is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
            "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory "
            "Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html"
            "#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
        )

    def check_room(self, requested: int) -> None:
        """Raises what `allocate` would for a request that cannot fit even with everything cached given back.

        For factories: it is asked before the host memory is taken.
        """
        if requested > self.capacity - self.small.bytes - self.large.bytes:
            self.allocate(requested)
        if requested >= HOST_CHECK:
            self._check_host(requested)

    def _check_host(self, requested: int) -> None:
        available = available_bytes()
        if available is not None and requested > available and requested <= self.free_bytes() + self.cached_bytes():
            raise self.raise_error(
                f"The host of virtual GPU {self.index} is out of memory: {format_bytes(requested)} would fit on the "
                f"GPU, but the data lie in host memory, which has {format_bytes(available)} left. Use a smaller "
                "problem, or --dry, which computes no numbers."
            )

    def cached_bytes(self) -> int:
        return self.reserved.current - self.small.bytes - self.large.bytes

    # ------------------------------------------------------------ private pools
    def _pool_in_capture(self, kind: Kind, stream: int) -> tuple[Pool, Any]:
        assert self.capture is not None
        pool_id, only = self.capture
        if only is not None and only != stream:
            return kind.free, None
        pool = self.private[pool_id]
        return (pool.small if kind.small else pool.large), pool_id

    def begin_pool(self, pool_id: tuple[int, int], stream: int | None) -> None:
        """Allocations (of one stream, or all) come from a private pool from now on."""
        with self._lock:
            pool = self.private.get(pool_id)
            if pool is None:
                self.private[pool_id] = PrivatePool()
            else:
                pool.users += 1
            self.capture = (pool_id, stream)

    def end_pool(self, pool_id: tuple[int, int]) -> None:
        with self._lock:
            self.capture = None

    def release_pool(self, pool_id: tuple[int, int]) -> None:
        """One user of a private pool less; without users its free segments can be given back."""
        pool = self.private.get(pool_id)
        if pool is not None:
            pool.users = max(0, pool.users - 1)

    # ------------------------------------------------------------ statistics
    def statistics(self) -> dict[str, Any]:
        """What torch._C._cuda_memoryStats gives: nested dictionaries of integers."""
        with self._lock:
            self._take_back()
        small, large = self.small, self.large
        names = (
            ("bytes", "allocated_bytes"), ("count", "allocation"), ("requested", "requested_bytes"),
            ("inactive", "inactive_split"), ("inactive_bytes", "inactive_split_bytes"),
        )  # fmt: skip
        result: dict[str, Any] = {}
        for field, name in names:
            parts = [_describe(kind, field) for kind in (small, large)]
            whole = {key: parts[0][key] + parts[1][key] for key in ("current", "allocated", "freed")}
            whole["peak"] = getattr(self, f"{field}_peak")
            result[name] = dict(zip(POOL_NAMES, (whole, *parts)))
        result["active"], result["active_bytes"] = result["allocation"], result["allocated_bytes"]
        for name, counter in (("segment", "segments"), ("reserved_bytes", "reserved")):
            result[name] = {
                pool: getattr(owner, counter).as_dict() for pool, owner in zip(POOL_NAMES, (self, small, large))
            }
        none = dict.fromkeys(("current", "peak", "allocated", "freed"), 0)
        result |= {"oversize_allocations": none, "oversize_segments": dict(none), "reserved_bytes_by_private_pools": {}}
        return result | {
            "num_alloc_retries": self.retries, "num_ooms": self.out_of_memory, "num_sync_all_streams": 0,
            "num_device_alloc": self.device_allocations, "num_device_free": self.device_frees,
            "num_oom_rejections": 0, "max_split_size": -1,
        }  # fmt: skip

    def reset_peaks(self) -> None:
        """torch.cuda.reset_peak_memory_stats()."""
        with self._lock:
            self._take_back()
        for field in _FIELDS:
            small, large = getattr(self.small, field), getattr(self.large, field)
            setattr(self.small, f"{field}_peak", small)
            setattr(self.large, f"{field}_peak", large)
            setattr(self, f"{field}_peak", small + large)
        for counter in self._counters():
            counter.peak = counter.current

    def reset_totals(self) -> None:
        """torch.cuda.reset_accumulated_memory_stats(): increases are counted from the current values on."""
        with self._lock:
            self._take_back()
        for kind in (self.small, self.large):
            for field in _FIELDS:
                setattr(kind, f"{field}_total", getattr(kind, field))
        for counter in self._counters():
            counter.total = counter.current
        self.retries = self.out_of_memory = self.device_allocations = self.device_frees = 0

    def _counters(self) -> Iterator[Counter]:
        for owner in (self, self.small, self.large):
            yield from (owner.segments, owner.reserved)

    def snapshot(self) -> list[dict[str, Any]]:
        """The segments with their blocks, by address, as torch.cuda.memory_snapshot() lists them."""
        with self._lock:
            self._take_back()
            return [self._describe_segment(address, self.heads[address]) for address in sorted(self.heads)]

    def _describe_segment(self, address: int, head: Block) -> dict[str, Any]:
        blocks: list[dict[str, Any]] = []
        block: Block | None = head
        while block is not None:
            blocks.append({
                "address": block.address, "size": block.size, "requested_size": block.requested,
                "state": "active_allocated" if block.allocated else "inactive", "frames": [],
            })  # fmt: skip
            block = block.next
        used = [block for block in blocks if block["state"] != "inactive"]
        allocated = sum(block["size"] for block in used)
        return {
            "device": self.index, "address": address, "total_size": sum(block["size"] for block in blocks),
            "allocated_size": allocated, "active_size": allocated,
            "requested_size": sum(block["requested_size"] for block in used), "stream": head.stream,
            "segment_type": "small" if head.kind.small else "large", "segment_pool_id": head.private or (0, 0),
            "is_expandable": False, "frames": [], "blocks": blocks,
        }  # fmt: skip

    def record_history(self, entries: int | None) -> None:
        """Keeps the last `entries` events for snapshots; None ends it."""
        self.trace = None if entries is None else deque(maxlen=entries)

    def _trace(self, action: str, address: int, size: int, stream: int) -> None:
        import time

        if self.trace is not None:
            self.trace.append({
                "action": action, "addr": address, "size": size, "stream": stream, "frames": [],
                "time_us": time.time_ns() // 1000,
            })  # fmt: skip


def _describe(kind: Kind, field: str) -> dict[str, int]:
    current, total = getattr(kind, field), getattr(kind, f"{field}_total")
    return {
        "current": current, "peak": getattr(kind, f"{field}_peak"), "allocated": total, "freed": total - current,
    }  # fmt: skip


def _format_size(size: int) -> str:
    """As c10's format_size: 512 bytes, 2.00 KiB, 20.00 MiB, 79.10 GiB."""
    if size <= 1024:
        return f"{size} bytes"
    for unit, bits in (("KiB", 10), ("MiB", 20)):
        if size <= 1 << bits + 10:
            return f"{size / (1 << bits):.2f} {unit}"
    return f"{size / (1 << 30):.2f} GiB"


def allocator_settings() -> dict[str, str]:
    """PYTORCH_ALLOC_CONF (or its older name) as a dictionary."""
    text = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    pairs = (entry.partition(":") for entry in text.split(",") if entry)
    return {name.strip(): value.strip() for name, _, value in pairs}
