"""The layout that compiled kernels and the runtime share. Offsets and sizes are in bytes.

A launch has one `Launch`, read by all workers; each worker thread has one `Worker`. A worker runs blocks in block
memories: one block memory holds all that a resident block owns:

    header (64) | warp records (32 each) | barriers (16 x 64) | frames | queue | shared memory | local memory

The compiled kernel exports `weft_run(Worker*)`, which claims blocks from `Launch.next_block` until none is left or
`Launch.stop` is set. Inside, one function runs one warp:

    i32 @warp(ptr worker, ptr block, ptr frame, ptr shared, ptr local, i32 w, i32 state,
              i32 ctaid_x, i32 ctaid_y, i32 ctaid_z)

`state` 0 starts the warp; the result is `status | next_state << 8` with a status of WARP_*.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum


class Range(ctypes.Structure):
    """One live allocation: [base, base + size). The array is sorted by base."""

    _fields_ = [("base", c_uint64), ("size", c_uint64)]


class Fault(ctypes.Structure):
    """The first fault of a launch. `site` is an instruction's index in the kernel; `block` a linear block index."""

    _fields_ = [
        ("kind", c_int32),
        ("site", c_int32),
        ("lane", c_int32),
        ("warp", c_int32),
        ("block", c_int64),
        ("address", c_uint64),
        ("size", c_int32),
        ("detail", c_int32),
        ("map", c_uint64),  # TENSOR and TENSOR_MAP faults: the map's address,
        ("coordinates", c_int32 * 8),  # the copy's coordinates (and im2col offsets),
        ("dimensions", c_int32),  # how many there are
        ("reserved", c_int32),
    ]


class Launch(ctypes.Structure):
    """State of one launch, shared by its workers. `next_block`, `stop`, `fault_claimed`, `blocks_done` are atomic."""

    _fields_ = [
        ("next_block", c_int64),
        ("total_blocks", c_int64),
        ("chunk", c_int64),  # blocks claimed at a time
        ("grid_x", c_uint32),
        ("grid_y", c_uint32),
        ("grid_z", c_uint32),
        ("seed", c_uint32),  # non-zero: shuffles block and warp order
        ("params", c_void_p),
        ("stop", c_int32),  # non-zero: leave as soon as possible
        ("fault_claimed", c_int32),
        ("ranges", c_void_p),
        ("range_count", c_int64),
        ("symbols", c_void_p),  # array of u64: addresses of module variables and function table, by index
        ("shared_bytes", c_uint32),  # static + dynamic
        ("dynamic_shared_bytes", c_uint32),
        ("local_bytes", c_uint32),  # per thread
        ("cooperative", c_uint32),
        ("shared_window", c_uint64),
        ("local_window", c_uint64),
        ("host_call", c_void_p),  # void (*)(Worker*, Block*, i64 kind, void* payload)
        ("grid_workspace", c_uint64),  # zeroed device memory for grid.sync(): %envreg1/2
        ("blocks_done", c_int64),
        ("start_ns", c_int64),
        ("grid_id", c_uint64),
        ("block_order", c_void_p),  # optional array of i64: launch order -> block index; null for the identity
        ("sm_count", c_uint32),
        ("host_flags", c_uint32),
        ("fault", Fault),
        ("active_workers", c_int32),  # inside weft_run, and of these
        ("idle_workers", c_int32),  # how many have found nothing to do for long
        ("cluster_x", c_uint32),  # shape of a cluster in blocks; 1, 1, 1 without
        ("cluster_y", c_uint32),
        ("cluster_z", c_uint32),
        ("explicit_cluster", c_uint32),  # the launch or the kernel names a cluster shape
        ("clock_gettime", c_void_p),  # int (*)(int clock, struct timespec *), the host's
    ]


class Worker(ctypes.Structure):
    """State of one worker thread. `slots` is an array of Range, one per access site, zeroed at launch."""

    _fields_ = [
        ("launch", c_void_p),
        ("slots", c_void_p),
        ("blocks", c_void_p),  # block memories, each `block_stride` bytes, 64-byte aligned
        ("block_stride", c_int64),
        ("capacity", c_int64),  # how many block memories there are
        ("resident", c_int64),  # how many hold a suspended block
        ("stack_limit", c_uint64),  # device calls fault when the native stack pointer falls below this
        ("index", c_int32),
        ("need_blocks", c_int32),  # set when weft_run returns for want of block memories; the runtime re-enters
        ("scratch", c_void_p),  # 64 KiB for host calls
    ]


class BlockHeader(ctypes.Structure):
    """First 64 bytes of a block memory."""

    _fields_ = [
        ("ctaid_x", c_uint32),
        ("ctaid_y", c_uint32),
        ("ctaid_z", c_uint32),
        ("live_warps", c_int32),  # warps that have not finished; 0: the memory is free
        ("linear", c_int64),  # linear block index
        ("shared", c_void_p),
        ("local", c_void_p),
        # Blocks of a cluster lie side by side. The first one's memory also holds the state of the whole cluster.
        ("cluster_rank", c_int32),  # of this block
        ("cluster_size", c_int32),  # in blocks; 0 in kernels that do not use clusters
        ("cluster_blocks", c_int32),  # first block: blocks of the cluster that have not finished; 0: memory is free
        ("cluster_warps", c_int32),  # first block: warps of the cluster that have not finished
        ("cluster_arrived", c_int32),  # first block: of these, how many have arrived at the cluster's barrier
        ("cluster_phase", c_int32),  # first block: phases that the cluster's barrier has completed
    ]


class WarpRecord(ctypes.Structure):
    """Scheduling state of one warp."""

    _fields_ = [
        ("state", c_int32),
        ("status", c_int32),  # WARP_*
        ("barrier", c_int32),  # barrier it waits at
        ("expected", c_int32),  # threads that complete it; 0: all that have not exited; -1 - a: see mbarrier
        ("site", c_int32),  # instruction index where it waits, for reports
        ("lanes", c_uint32),  # lanes that have not exited
        ("cluster_lanes", c_uint32),  # lanes that have arrived at the cluster's barrier and not waited yet
        ("cluster_token", c_int32),  # the barrier's phase + 1 once the warp counts as arrived, else 0
    ]


class Barrier(ctypes.Structure):
    """One of the 16 named barriers of a block. Counts are in threads."""

    _fields_ = [
        ("arrived", c_int32),
        ("expected", c_int32),
        ("sum_popc", c_int32),  # reductions being gathered
        ("sum_and", c_int32),  # number of lanes whose predicate was false
        ("sum_or", c_int32),  # number of lanes whose predicate was true
        ("result_popc", c_int32),  # reductions of the last completed phase
        ("result_and", c_int32),
        ("result_or", c_int32),
        ("reserved", c_int32 * 8),
    ]


BARRIER_COUNT = 16
FRAME_ALIGN = 64

WARP_RUNNABLE = 0  # in a record: may run. As a result: finished
WARP_DONE = 0
WARP_BARRIER = 1  # waits at record.barrier
WARP_YIELD = 2  # spins; may run again
WARP_STOP = 3  # a fault, or Launch.stop was seen
WARP_CLUSTER = 5  # waits at the cluster's barrier
RECORD_DONE = 4  # in a record: finished


class FaultKind(IntEnum):
    ADDRESS = 1
    MISALIGNED = 2
    TRAP = 3
    ASSERT = 4
    STACK = 5
    TIMEOUT = 6
    DEADLOCK = 7
    INTERRUPT = 8
    CALL = 9  # indirect call to something that is not a function
    BARRIER = 10  # barrier misuse: bad id or count
    HOST = 11  # a host call failed
    DESCRIPTOR = 12  # a matrix descriptor of wgmma (the fault's address) that cannot be used; why is the fault's size
    CLUSTER = 13  # misuse of a cluster: how is the fault's size
    TENSOR_MAP = 14  # a tensor map (the fault's address) that a copy cannot use; why is the fault's size
    TENSOR = 15  # a tensor copy reaches outside of the tensor's allocation
    MBARRIER = 16  # misuse of the mbarrier object at the fault's address; why is the fault's size
    BULK = 17  # operands of a bulk copy that it does not allow; why is the fault's size
    PENDING = 18  # more asynchronous copies are pending than fit the block's queue (deferred copies)


# What went wrong with a cluster: Fault.size of a CLUSTER fault.
CLUSTER_EXITED, CLUSTER_ARRIVED_TWICE, CLUSTER_NOT_ARRIVED = 1, 2, 3
# Why a matrix descriptor cannot be used: Fault.size of a DESCRIPTOR fault.
DESCRIPTOR_OUTSIDE, DESCRIPTOR_TOO_WIDE, DESCRIPTOR_LANES = 1, 2, 3


# Shared memory of the blocks of a cluster. A block's own begins at address 0; what a block of rank r has at address x
# the others (and itself) also find at (r + 1) * CLUSTER_STRIDE + x. Generic addresses: the same behind shared_window.
CLUSTER_STRIDE = 1 << 19
CLUSTER_BYTES = 31 * CLUSTER_STRIDE  # of addresses behind the block's own; with those all of the window
MAX_CLUSTER_BLOCKS = 16  # what hardware allows on request


class HostCall(IntEnum):
    """Kinds of Launch.host_call. The payload starts with the site, warp and lane mask (3 x i32, 1 pad), then
    per kind, arrays of 32 u64 values: the arguments."""

    PRINTF = 1  # format address, argument buffer address (generic local)
    ASSERT = 2  # message, file, line, function, char size
    MALLOC = 3  # size -> result written over the first argument
    FREE = 4  # address


def block_layout(
    warps: int, frame_bytes: int, shared_bytes: int, local_bytes: int, queue_bytes: int = 0
) -> dict[str, int]:
    """Offsets of the parts of a block memory, and its `stride`. local_bytes is per thread, rounded up to 4. The queue
    is that of deferred copies."""

    def align(value: int) -> int:
        return (value + 63) // 64 * 64

    warps_at = ctypes.sizeof(BlockHeader)
    barriers_at = align(warps_at + warps * ctypes.sizeof(WarpRecord))
    frames_at = align(barriers_at + BARRIER_COUNT * ctypes.sizeof(Barrier))
    queue_at = align(frames_at + warps * frame_bytes)
    shared_at = align(queue_at + queue_bytes)
    local_at = align(shared_at + shared_bytes + 64)
    stride = align(local_at + warps * 32 * ((local_bytes + 3) // 4 * 4) + 64)
    return {"warps": warps_at, "barriers": barriers_at, "frames": frames_at, "queue": queue_at, "shared": shared_at,
            "local": local_at, "stride": stride}  # fmt: skip


assert ctypes.sizeof(BlockHeader) == 64
assert ctypes.sizeof(WarpRecord) == 32
assert ctypes.sizeof(Barrier) == 64

# Address of the n-th function of a module (in the order of Module.functions): never the address of memory.
FUNCTION_BASE = 0x0F00_0000_0000_0000


def function_address(index: int) -> int:
    """The value of a device function pointer; the same for every kernel of the module."""
    return FUNCTION_BASE + 16 * index
