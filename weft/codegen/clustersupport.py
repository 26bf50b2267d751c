"""Support functions of clusters: names enter (see weft.codegen.support), IR functions leave.

ptr weft_cluster_pointer(wk, blk, w, i64 distance, i64 size, i32 lane, i32 site)
    Where `size` bytes (a power of two) are that lie `distance` behind the shared window: in this block's shared
    memory or in that of another block of its cluster. Null after a fault.
void weft_cluster_arrive(wk, blk, w, i32 mask, i32 live, i32 site)
    The lanes of `mask` arrive at the cluster's barrier; `live` are the lanes that have not exited. The warp counts
    as arrived when all of them have.
void weft_cluster_wait(wk, blk, w, i32 mask, i32 site)
    Checks, and counts if that is still to be done, before the warp waits there; all its live lanes are in `mask`.
void weft_store_async_C_iN(wk, blk, w, lane, site, i32 address, i32 mbarrier, C values of iN)
void weft_red_async_OP_KIND_iN(wk, blk, w, lane, site, i32 address, i32 mbarrier, iN value)
    st.async and red.async of one lane.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from weft.codegen import abi
from weft.codegen.access import CONTEXT, begin, inside
from weft.codegen.atomics import Atomic
from weft.codegen.irtext import IRFunction, Value, constant
from weft.codegen.jit import Target
from weft.codegen.mbarriers import PLACE, common


def _fault(f: IRFunction, kind: abi.FaultKind, site: Value, lane: Value, address: Value, size: Value | int) -> None:
    worker, block, warp = f.parameters[:3]
    size = constant("i32", size) if isinstance(size, int) else size
    f.call("void", "weft_fault", worker, block, warp, constant("i32", int(kind)), site, lane, address, size)


def _leader(f: IRFunction, worker: Value, block: Value) -> Value:
    rank = f.zext(f.field(block, abi.BlockHeader, "cluster_rank"), "i64")
    return f.offset(block, f.sub(f.const("i64", 0), f.mul(rank, f.field(worker, abi.Worker, "block_stride"))))


def write_cluster_pointer(name: str, target: Target) -> IRFunction:
    parameters = [*CONTEXT, ("i64", "distance"), ("i64", "size"), ("i32", "lane"), ("i32", "site")]
    f = begin(name, "ptr", parameters, target)
    worker, block, _, distance, size, lane, site = f.parameters
    launch = f.field(worker, abi.Worker, "launch")
    shared_bytes = f.zext(f.field(launch, abi.Launch, "shared_bytes"), "i64")
    address = f.add(distance, f.field(launch, abi.Launch, "shared_window"))
    size32 = f.trunc(size, "i32")
    null = Value("ptr", "null")
    with f.if_(f.icmp("ne", f.and_(address, f.sub(size, 1)), 0), unlikely=True):
        _fault(f, abi.FaultKind.MISALIGNED, site, lane, address, size32)
        f.ret(null)
    place = f.lshr(distance, abi.CLUSTER_STRIDE.bit_length() - 1)
    within = f.and_(distance, abi.CLUSTER_STRIDE - 1)
    good = inside(f, within, f.const("i64", 0), shared_bytes, size)
    with f.if_(f.and_(good, f.icmp("eq", place, 0))):
        f.ret(f.offset(f.field(block, abi.BlockHeader, "shared"), within))
    ranks = f.zext(f.field(block, abi.BlockHeader, "cluster_size"), "i64")
    with f.if_(f.not_(f.and_(good, f.icmp("ule", place, ranks))), unlikely=True):
        _fault(f, abi.FaultKind.ADDRESS, site, lane, address, size32)
        f.ret(null)
    stride = f.field(worker, abi.Worker, "block_stride")
    other = f.offset(_leader(f, worker, block), f.mul(f.sub(place, 1), stride))
    with f.if_(f.icmp("eq", f.field(other, abi.BlockHeader, "live_warps"), 0), unlikely=True):
        _fault(f, abi.FaultKind.CLUSTER, site, lane, address, abi.CLUSTER_EXITED)
        f.ret(null)
    f.ret(f.offset(f.field(other, abi.BlockHeader, "shared"), within))
    return f


def _record(f: IRFunction, block: Value, warp: Value) -> Value:
    return f.index(f.offset(block, abi.block_layout(1, 0, 0, 0)["warps"]), f.zext(warp, "i64"), 32)


def _count(f: IRFunction, leader: Value, record: Value) -> None:
    """The warp counts as arrived, if it does not yet."""
    with f.if_(f.icmp("eq", f.field(record, abi.WarpRecord, "cluster_token"), 0)):
        phase = f.field(leader, abi.BlockHeader, "cluster_phase")
        f.set_field(record, abi.WarpRecord, "cluster_token", f.add(phase, 1))
        arrived = f.add(f.field(leader, abi.BlockHeader, "cluster_arrived"), 1)
        f.set_field(leader, abi.BlockHeader, "cluster_arrived", arrived)


def write_cluster_arrive(name: str, target: Target) -> IRFunction:
    f = begin(name, "void", [*CONTEXT, ("i32", "mask"), ("i32", "live"), ("i32", "site")], target)
    worker, block, warp, mask, live, site = f.parameters
    record = _record(f, block, warp)
    before = f.field(record, abi.WarpRecord, "cluster_lanes")
    again = f.and_(before, mask)
    with f.if_(f.icmp("ne", again, 0), unlikely=True):
        _fault(f, abi.FaultKind.CLUSTER, site, f.cttz(again), f.const("i64", 0), abi.CLUSTER_ARRIVED_TWICE)
        f.ret()
    lanes = f.or_(before, mask)
    f.set_field(record, abi.WarpRecord, "cluster_lanes", lanes)
    wanted = f.and_(live, f.field(record, abi.WarpRecord, "lanes"))
    with f.if_(f.icmp("eq", f.and_(wanted, f.not_(lanes)), 0)):
        _count(f, _leader(f, worker, block), record)
    return f


def write_cluster_wait(name: str, target: Target) -> IRFunction:
    f = begin(name, "void", [*CONTEXT, ("i32", "mask"), ("i32", "site")], target)
    worker, block, warp, mask, site = f.parameters
    record = _record(f, block, warp)
    there = f.and_(mask, f.field(record, abi.WarpRecord, "lanes"))
    missing = f.and_(there, f.not_(f.field(record, abi.WarpRecord, "cluster_lanes")))
    with f.if_(f.icmp("ne", missing, 0), unlikely=True):
        _fault(f, abi.FaultKind.CLUSTER, site, f.cttz(missing), f.const("i64", 0), abi.CLUSTER_NOT_ARRIVED)
        f.ret()
    _count(f, _leader(f, worker, block), record)
    return f


# ---------------------------------------------------------------- st.async, red.async
def _async_places(f: IRFunction, address: Value, bar: Value, size: int) -> tuple[Value, Value]:
    """Where the data goes and where the live mbarrier object is; returns from the function where one is not usable."""
    *context, lane, site = common(f)
    place = f.call("ptr", "weft_cluster_pointer", *context, f.zext(address, "i64"), f.const("i64", size), lane, site)
    with f.if_(f.icmp("eq", place, 0), unlikely=True):
        f.ret()
    word = f.call("ptr", "weft_mbarrier_find", *common(f), bar)
    with f.if_(f.icmp("eq", word, 0), unlikely=True):
        f.ret()
    return place, word


def _complete(f: IRFunction, bar: Value, word: Value, size: int) -> None:
    none = f.const("i64", 0)
    f.call("i1", "weft_mbarrier_change", *common(f), bar, word, none, none, f.const("i64", -size))


def write_store_async(name: str, target: Target, count: str, bits: str) -> IRFunction:
    values = [(f"i{bits}", f"v{i}") for i in range(int(count))]
    f = begin(name, "void", [*CONTEXT, *PLACE, ("i32", "address"), ("i32", "bar"), *values], target)
    address, bar = f.parameters[len(CONTEXT) + len(PLACE) :][:2]
    step = int(bits) // 8
    place, word = _async_places(f, address, bar, step * int(count))
    for i, value in enumerate(f.parameters[-int(count) :]):
        f.store(value, f.offset(place, step * i))
    _complete(f, bar, word, step * int(count))
    return f


def write_red_async(name: str, target: Target, operation: str, kind: str, bits: str) -> IRFunction:
    element = f"i{bits}"
    f = begin(name, "void", [*CONTEXT, *PLACE, ("i32", "address"), ("i32", "bar"), (element, "value")], target)
    address, bar, value = f.parameters[-3:]
    place, word = _async_places(f, address, bar, int(bits) // 8)
    atomic = Atomic(operation, kind, int(bits), True, False)
    f.store(atomic.combine(f, f.load(element, place), value, None, in_shared=True), place)
    _complete(f, bar, word, int(bits) // 8)
    return f


CLUSTER_WRITERS: list[tuple[re.Pattern, Callable[..., IRFunction]]] = [
    (re.compile("weft_cluster_pointer"), write_cluster_pointer),
    (re.compile("weft_cluster_arrive"), write_cluster_arrive),
    (re.compile("weft_cluster_wait"), write_cluster_wait),
    (re.compile("weft_store_async_([124])_i(32|64)"), write_store_async),
    (re.compile("weft_red_async_([a-z]+)_([usb])_i(32|64)"), write_red_async),
]
