"""mbarrier objects out of line: what an operation changes enters, the word as it was leaves.

The object's word is laid out in weft/isa/barrier.py. A block runs on one thread, and so do the blocks of a cluster, so
plain loads and stores do. Misuse stops the launch with an MBARRIER fault.

    i64 weft_mbarrier_update(wk, blk, w, lane, site, i32 address, i64 arrivals, i64 dropped, i64 bytes)
    i64 weft_mbarrier_arrive(the same)      at least one arrival
    i64 weft_mbarrier_hold(the same)        .noComplete: an arrival that must not end the phase
        the word before; 0 after a fault
    void weft_mbarrier_init(wk, blk, w, lane, site, i32 address, i32 count)
    i32 weft_mbarrier_test(wk, blk, w, lane, site, i32 address, i64 phase)      whether that phase is over
    ptr weft_mbarrier_find(wk, blk, w, lane, site, i32 address)     the live object's word, null after a fault
    i1 weft_mbarrier_change(wk, blk, w, lane, site, i32 address, ptr word, i64 arrivals, i64 dropped, i64 bytes)
    ptr weft_shared_block(wk, blk, i32 address)                     the block that owns it; null where none does now
    ptr weft_shared_place(wk, blk, i32 address, i64 size)           shared memory of the cluster; null outside
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from weft.codegen import abi
from weft.codegen.access import CONTEXT, begin, inside
from weft.codegen.irtext import IRFunction, Value, constant
from weft.codegen.jit import Target
from weft.isa.barrier import (
    COUNT_MASK,
    EXPECTED_SHIFT,
    LIVE,
    LIVE_MASK,
    LIVE_SHIFT,
    MISUSE,
    PHASE_SHIFT,
    TX_BITS,
    TX_MASK,
    TX_SHIFT,
)

PLACE = [("i32", "lane"), ("i32", "site")]
_REASON = {text: number for number, text in MISUSE.items()}
NULL = Value("ptr", "null")


def write_shared_place(name: str, target: Target) -> IRFunction:
    f = begin(name, "ptr", [("ptr", "wk"), ("ptr", "blk"), ("i32", "address"), ("i64", "size")], target)
    worker, block, address, size = f.parameters
    launch = f.field(worker, abi.Worker, "launch")
    bytes_ = f.zext(f.field(launch, abi.Launch, "shared_bytes"), "i64")
    offset = f.zext(f.and_(address, abi.CLUSTER_STRIDE - 1), "i64")
    size = f.intrinsic("i64", "llvm.umax.i64", size, constant("i64", 1))
    within = inside(f, offset, constant("i64", 0), bytes_, size)
    owner = f.call("ptr", "weft_shared_block", worker, block, address)
    with f.if_(f.or_(f.not_(within), f.icmp("eq", owner, 0)), unlikely=True):
        f.ret(NULL)
    with f.if_(has_exited(f, block, owner), unlikely=True):
        f.ret(NULL)
    f.ret(f.offset(f.field(owner, abi.BlockHeader, "shared"), offset))
    return f


def has_exited(f: IRFunction, block: Value, owner: Value) -> Value:
    """Whether another block of the cluster is over."""
    over = f.icmp("eq", f.field(owner, abi.BlockHeader, "live_warps"), 0)
    return f.and_(f.icmp("ne", owner, block), over)


def explain_outside(f: IRFunction, address: Value, result: Value | None, size: Value) -> None:
    """The fault for an address that weft_shared_place knows nothing of."""
    named = {value.ref[1:]: value for value in f.parameters}
    worker, block = named["wk"], named["blk"]
    window = f.field(f.field(worker, abi.Worker, "launch"), abi.Launch, "shared_window")
    wide = f.add(window, f.zext(address, "i64"))
    owner = f.call("ptr", "weft_shared_block", worker, block, address)
    kind, reason = f.variable(constant("i32", int(abi.FaultKind.ADDRESS))), f.variable(size)
    with f.if_(f.icmp("ne", owner, 0)):
        with f.if_(has_exited(f, block, owner)):
            f.set(kind, int(abi.FaultKind.CLUSTER))
            f.set(reason, abi.CLUSTER_EXITED)
    f.call("void", "weft_fault", worker, block, named["w"], f.get(kind), named["site"], named["lane"], wide,
           f.get(reason))  # fmt: skip
    f.ret(result)


def write_shared_block(name: str, target: Target) -> IRFunction:
    f = begin(name, "ptr", [("ptr", "wk"), ("ptr", "blk"), ("i32", "address")], target)
    worker, block, address = f.parameters
    place = f.lshr(address, abi.CLUSTER_STRIDE.bit_length() - 1)
    with f.if_(f.icmp("eq", place, 0)):
        f.ret(block)
    rank = f.sub(place, 1)
    size = f.intrinsic("i32", "llvm.umax.i32", f.field(block, abi.BlockHeader, "cluster_size"), constant("i32", 1))
    with f.if_(f.icmp("uge", rank, size), unlikely=True):
        f.ret(NULL)
    away = f.sub(f.zext(rank, "i64"), f.zext(f.field(block, abi.BlockHeader, "cluster_rank"), "i64"))
    other = f.offset(block, f.mul(away, f.field(worker, abi.Worker, "block_stride")))
    with f.if_(f.icmp("eq", f.field(other, abi.BlockHeader, "live_warps"), 0), unlikely=True):
        f.ret(NULL)  # it has exited
    f.ret(other)
    return f


def fail(f: IRFunction, reason: int, address: Value, result: Value | None, kind=abi.FaultKind.MBARRIER) -> None:
    """Records a fault of the function that has the common parameters and returns `result`."""
    named = {value.ref[1:]: value for value in f.parameters}
    wide = f.zext(address, "i64")
    f.call("void", "weft_fault", named["wk"], named["blk"], named["w"], constant("i32", int(kind)), named["site"],
           named["lane"], wide, constant("i32", reason))  # fmt: skip
    f.ret(result)


def common(f: IRFunction) -> tuple[Value, ...]:
    """The parameters that every function here passes on: wk, blk, w, lane, site."""
    return f.parameters[: len(CONTEXT) + len(PLACE)]


def write_find(name: str, target: Target) -> IRFunction:
    f = begin(name, "ptr", [*CONTEXT, *PLACE, ("i32", "address")], target)
    worker, block, _, _, _, address = f.parameters
    with f.if_(f.icmp("ne", f.and_(address, 7), 0), unlikely=True):
        fail(f, 8, address, NULL, abi.FaultKind.MISALIGNED)
    word = f.call("ptr", "weft_shared_place", worker, block, address, constant("i64", 8))
    with f.if_(f.icmp("eq", word, 0), unlikely=True):
        explain_outside(f, address, NULL, constant("i32", 8))
    live = f.and_(f.lshr(f.load("i64", word), LIVE_SHIFT), LIVE_MASK)
    with f.if_(f.icmp("ne", live, LIVE), unlikely=True):
        fail(f, _REASON["not initialised"], address, NULL)
    f.ret(word)
    return f


def write_init(name: str, target: Target) -> IRFunction:
    f = begin(name, "void", [*CONTEXT, *PLACE, ("i32", "address"), ("i32", "count")], target)
    worker, block, _, _, _, address, count = f.parameters
    with f.if_(f.icmp("ne", f.and_(address, 7), 0), unlikely=True):
        fail(f, 8, address, None, abi.FaultKind.MISALIGNED)
    word = f.call("ptr", "weft_shared_place", worker, block, address, constant("i64", 8))
    with f.if_(f.icmp("eq", word, 0), unlikely=True):
        explain_outside(f, address, None, constant("i32", 8))
    with f.if_(f.icmp("ugt", f.sub(count, 1), COUNT_MASK - 1), unlikely=True):
        fail(f, _REASON["count"], address, None)
    wide = f.zext(count, "i64")
    f.store(f.or_(f.or_(wide, f.shl(wide, EXPECTED_SHIFT)), LIVE << LIVE_SHIFT), word)
    f.ret()
    return f


def write_change(name: str, target: Target) -> IRFunction:
    """Applies a change to a live object: arrivals, then the end of the phase where nothing is pending."""
    parameters = [*CONTEXT, *PLACE, ("i32", "address"), ("ptr", "word"), ("i64", "arrivals"), ("i64", "dropped"),
                  ("i64", "bytes")]  # fmt: skip
    f = begin(name, "i1", parameters, target)
    address, place, arrivals, dropped, bytes_ = f.parameters[-5:]
    failed = constant("i1", 0)
    word = f.load("i64", place)
    pending = f.and_(word, COUNT_MASK)
    expected = f.and_(f.lshr(word, EXPECTED_SHIFT), COUNT_MASK)
    spare = 64 - TX_BITS
    tx = f.binary("ashr", f.shl(f.lshr(word, TX_SHIFT), spare), spare)
    tx = f.add(tx, bytes_)
    with f.if_(f.icmp("sgt", arrivals, pending), unlikely=True):
        fail(f, _REASON["arrivals"], address, failed)
    limit = f.icmp("ugt", f.add(tx, COUNT_MASK), 2 * COUNT_MASK)
    with f.if_(limit, unlikely=True):
        fail(f, _REASON["bytes"], address, failed)
    pending = f.sub(pending, arrivals)
    # a phase of which nothing is left over after drops has nobody to wait for
    expected = f.and_(f.sub(expected, dropped), COUNT_MASK)
    phase = f.and_(word, constant("i64", -(1 << PHASE_SHIFT)))
    done = f.icmp("eq", f.or_(pending, tx), 0)
    pending = f.select(done, expected, pending)
    phase = f.select(done, f.xor(phase, -(1 << PHASE_SHIFT)), phase)
    low = f.or_(f.or_(pending, f.shl(expected, EXPECTED_SHIFT)), LIVE << LIVE_SHIFT)
    f.store(f.or_(f.or_(low, f.shl(f.and_(tx, TX_MASK), TX_SHIFT)), phase), place)
    f.ret(constant("i1", 1))
    return f


def write_update(name: str, target: Target, verb: str, first: Callable | None = None) -> IRFunction:
    """verb "update": any change. "arrive", "hold": an arrival, at least one; "hold" must not complete the phase.
    first(f, address, word) is done before (see deferred.py)."""
    parameters = [*CONTEXT, *PLACE, ("i32", "address"), ("i64", "arrivals"), ("i64", "dropped"), ("i64", "bytes")]
    f = begin(name, "i64", parameters, target)
    address, arrivals, dropped, bytes_ = f.parameters[-4:]
    nothing = constant("i64", 0)
    place = f.call("ptr", "weft_mbarrier_find", *common(f), address)
    with f.if_(f.icmp("eq", place, 0), unlikely=True):
        f.ret(nothing)
    if first is not None:
        first(f, address, place)
    before = f.load("i64", place)
    least = int(verb != "update")
    with f.if_(f.icmp("ugt", f.sub(arrivals, least), COUNT_MASK - least), unlikely=True):
        fail(f, _REASON["count"], address, nothing)
    if verb == "hold":
        pending, tx = f.and_(before, COUNT_MASK), f.and_(before, TX_MASK << TX_SHIFT)
        with f.if_(f.and_(f.icmp("eq", pending, arrivals), f.icmp("eq", tx, 0)), unlikely=True):
            fail(f, _REASON["no complete"], address, nothing)
    f.call("i1", "weft_mbarrier_change", *common(f), address, place, arrivals, dropped, bytes_)
    f.ret(before)
    return f


def write_test(name: str, target: Target, first: Callable | None = None) -> IRFunction:
    """Also notes in the warp's record which object it waits for, for the report of a deadlock. first(f, word) is done
    before a test that would fail."""
    f = begin(name, "i32", [*CONTEXT, *PLACE, ("i32", "address"), ("i64", "phase")], target)
    block, warp = f.parameters[1:3]
    address, phase = f.parameters[-2:]
    place = f.call("ptr", "weft_mbarrier_find", *common(f), address)
    with f.if_(f.icmp("eq", place, 0), unlikely=True):
        f.ret(constant("i32", 0))
    if first is not None:
        with f.if_(f.icmp("eq", f.lshr(f.load("i64", place), PHASE_SHIFT), phase)):
            first(f, place)
    now = f.lshr(f.load("i64", place), PHASE_SHIFT)
    over = f.icmp("ne", now, phase)
    records = abi.block_layout(1, 0, 0, 0)["warps"]
    record = f.index(f.offset(block, records), f.zext(warp, "i64"), ctypes.sizeof(abi.WarpRecord))
    f.set_field(record, abi.WarpRecord, "expected", f.select(over, constant("i32", 0), f.sub(-1, address)))
    f.ret(f.zext(over, "i32"))
    return f
