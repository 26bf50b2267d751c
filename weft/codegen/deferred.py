"""Deferred copies: an asynchronous copy enters a queue of its block when it is issued, and is made by the wait that the
program must perform. So a program that forgets the wait sees old data.

A queue is a list of calls that have been put off. It lies in the block memory behind the frames (abi.block_layout):

    count (64 bytes) | per warp: open group of each lane, cp.async then bulk | PendingCall ...

What a copy completes decides when it is made:
- cp.async and bulk stores belong to the issuing thread's groups: wait_group and wait_all make those that they cover,
  the warp's end what is left of the stores;
- copies that signal an mbarrier object stand in the queue of the object's block. They are made by the first test of the
  object that finds that, with them, its phase is over (or by an arrival that needs it to be over);
- cp.async.mbarrier.arrive stands there too, and first makes the thread's earlier cp.async.

    void weft_late_NAME(as weft_NAME)        queues a call of weft_NAME (bulk.py, access.py)
    void weft_replay_NAME(wk, ptr call, i32 mask)        makes it
    void weft_late_commit(wk, blk, w, i32 mask, i32 kind)
    void weft_late_wait(wk, blk, w, i32 mask, i32 kind, i32 keep)       keep: groups that may be pending; -1 not even
        the open one. Kinds: SMALL (cp.async), BULK
    void weft_late_finish(wk, blk, w)
    i1 weft_late_settle(wk, blk, ptr word)       whether queued calls end the phase of an object of this block
    void weft_late_arrival(wk, blk, w, lane, site, i32 address, i32 mask, i32 noinc)
    ptr weft_late_push(wk, blk, w, lane, site, ptr owner)        a new call of the owner's queue; null after a fault
    weft_late_mbarrier_update, _arrive, _hold, _test        as without late, but settle the object first
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_void_p

from weft.codegen import abi
from weft.codegen.access import ADDRESSES, CONTEXT, OFFSETS, begin
from weft.codegen.irtext import IRFunction, Value, constant
from weft.codegen.jit import Target
from weft.codegen.mbarriers import NULL, PLACE, common, write_test, write_update
from weft.isa.barrier import COUNT_MASK, TX_BITS, TX_SHIFT

CAPACITY = 4096  # calls that a block's queue holds
SMALL, BULK = 0, 1  # kinds of groups
LANES = 32
GROUP_BYTES = 4 * LANES  # of one kind of one warp
PAYLOAD_BYTES = 576
QUEUE_AT = "weft.queue.at"  # the module's constant: offset of the queue in a block memory


class PendingCall(ctypes.Structure):
    """One call of a queue; what it is called with follows. `run` is 0 once it was made."""

    _fields_ = [
        ("run", c_void_p),  # weft_replay_NAME
        ("block", c_void_p),  # of the issuing thread
        ("word", c_void_p),  # the mbarrier object that it signals; null for a thread's groups
        ("bytes", c_int64),  # of the object's transaction count
        ("warp", c_int32),
        ("lane", c_int32),
        ("site", c_int32),
        ("mask", c_int32),  # lanes that it is still to be made for
        ("kind", c_int32),
        ("group", c_int32),
        ("arrivals", c_int32),  # that the object gets
        ("reserved", c_int32),
    ]


HEADER_BYTES = 64
CALL_BYTES = ctypes.sizeof(PendingCall) + PAYLOAD_BYTES
assert ctypes.sizeof(PendingCall) == 64
_SIZES = {"i32": 4, "i64": 8, "ptr": 8, ADDRESSES: 256, OFFSETS: 128}


def queue_of(warps: int) -> tuple[int, int]:
    """Bytes of a block's queue, and of these how many have to be zero when the block starts."""
    head = HEADER_BYTES + warps * 2 * GROUP_BYTES
    return head + CAPACITY * CALL_BYTES, head


def queue_ir(warps: int, frame_bytes: int) -> str:
    """Where the queue of a block is, for the functions below."""
    at = abi.block_layout(warps, frame_bytes, 0, 0)["queue"]
    return f"@{QUEUE_AT} = internal constant i64 {at}\n@{QUEUE_AT}.warps = internal constant i64 {warps}\n"


class _Queue:
    """The queue of a block, in a function under construction."""

    def __init__(self, f: IRFunction, block: Value):
        self.f = f
        at = f.load("i64", Value("ptr", "@" + QUEUE_AT))
        self.place = f.offset(block, at)
        warps = f.load("i64", Value("ptr", f"@{QUEUE_AT}.warps"))
        self.calls = f.offset(self.place, f.add(f.mul(warps, 2 * GROUP_BYTES), HEADER_BYTES))

    @property
    def count(self) -> Value:
        return self.f.load("i64", self.place)

    def set_count(self, count: Value) -> None:
        self.f.store(count, self.place)

    def call(self, i: Value) -> Value:
        return self.f.index(self.calls, i, CALL_BYTES)

    def group(self, warp: Value, kind: Value, lane: Value) -> Value:
        """Where the number of a lane's open group is."""
        f = self.f
        row = f.add(f.mul(f.zext(warp, "i64"), 2), f.zext(kind, "i64"))
        return f.offset(self.place, f.add(f.mul(row, GROUP_BYTES), f.add(f.shl(f.zext(lane, "i64"), 2), HEADER_BYTES)))

    def each(self, act: Callable[[Value], None]) -> None:
        f = self.f
        with f.for_range(constant("i64", 0), self.count) as i:
            act(self.call(i))

    def make(self, worker: Value, call: Value, lanes: Value) -> None:
        """Makes a call for some lanes; a call that was made for all is empty."""
        f = self.f
        run = get(f, call, "run")
        left = f.and_(get(f, call, "mask"), f.not_(lanes))
        put(f, call, "mask", left)
        with f.if_(f.icmp("eq", left, 0)):
            f.store(NULL, f.field_address(call, PendingCall, "run"))
        f.call_pointer("void", run, worker, call, lanes)

    def pack(self) -> None:
        """Closes the gaps of calls that were made."""
        f = self.f
        kept = f.variable(constant("i64", 0))
        with f.for_range(constant("i64", 0), self.count) as i:
            call = self.call(i)
            with f.if_(f.icmp("ne", get(f, call, "run"), 0)):
                with f.if_(f.icmp("ne", f.get(kept), i)):
                    size = constant("i64", CALL_BYTES)
                    to = self.call(f.get(kept))
                    f.intrinsic("void", "llvm.memcpy.p0.p0.i64", to, call, size, constant("i1", 0))
                f.set(kept, f.add(f.get(kept), 1))
        self.set_count(f.get(kept))


def get(f: IRFunction, call: Value, name: str) -> Value:
    return f.field(call, PendingCall, name)


def put(f: IRFunction, call: Value, name: str, value: Value | int) -> None:
    f.set_field(call, PendingCall, name, value)


def payload(f: IRFunction, call: Value) -> Value:
    return f.offset(call, ctypes.sizeof(PendingCall))


def save(f: IRFunction, call: Value, values: list[Value]) -> None:
    at = 0
    for value in values:
        f.store(value, f.offset(payload(f, call), at), align=4)
        at += _SIZES[value.type]
    assert at <= PAYLOAD_BYTES, at


def restore(f: IRFunction, call: Value, types: list[str]) -> list[Value]:
    at, found = 0, []
    for type_ in types:
        found.append(f.load(type_, f.offset(payload(f, call), at), align=4))
        at += _SIZES[type_]
    return found


# ---------------------------------------------------------------- the queue
def write_push(name: str, target: Target) -> IRFunction:
    f = begin(name, "ptr", [*CONTEXT, *PLACE, ("ptr", "owner")], target)
    worker, block, warp, lane, site, owner = f.parameters
    queue = _Queue(f, owner)
    count = queue.count
    with f.if_(f.icmp("uge", count, CAPACITY), unlikely=True):
        kind = constant("i32", int(abi.FaultKind.PENDING))
        nowhere, capacity = constant("i64", 0), constant("i32", CAPACITY)
        f.call("void", "weft_fault", worker, block, warp, kind, site, lane, nowhere, capacity)
        f.ret(NULL)
    call = queue.call(count)
    queue.set_count(f.add(count, 1))
    f.store(NULL, f.field_address(call, PendingCall, "word"))
    f.store(block, f.field_address(call, PendingCall, "block"))
    put(f, call, "bytes", 0)
    for field, value in (("warp", warp), ("lane", lane), ("site", site), ("mask", f.shl(1, lane)), ("kind", -1),
                         ("group", 0), ("arrivals", 0)):  # fmt: skip
        put(f, call, field, value)
    f.ret(call)
    return f


def write_commit(name: str, target: Target) -> IRFunction:
    f = begin(name, "void", [*CONTEXT, ("i32", "mask"), ("i32", "kind")], target)
    _, block, warp, mask, kind = f.parameters
    queue = _Queue(f, block)
    with f.for_bits(mask) as lane:
        place = queue.group(warp, kind, lane)
        f.store(f.add(f.load("i32", place), 1), place)
    return f


def write_wait(name: str, target: Target) -> IRFunction:
    f = begin(name, "void", [*CONTEXT, ("i32", "mask"), ("i32", "kind"), ("i32", "keep")], target)
    worker, block, warp, mask, kind, keep = f.parameters
    queue = _Queue(f, block)

    def act(call: Value) -> None:
        mine = f.and_(f.icmp("eq", get(f, call, "warp"), warp), f.icmp("eq", get(f, call, "kind"), kind))
        mine = f.and_(mine, f.icmp("eq", f.load("ptr", f.field_address(call, PendingCall, "block")), block))
        with f.if_(mine):
            lanes = f.variable(constant("i32", 0))
            with f.for_bits(f.and_(get(f, call, "mask"), mask)) as lane:
                open_group = f.load("i32", queue.group(warp, kind, lane))
                over = f.icmp("slt", f.add(get(f, call, "group"), keep), open_group)
                bit = f.shl(1, lane)
                f.set(lanes, f.or_(f.get(lanes), f.select(over, bit, 0)))
            with f.if_(f.icmp("ne", f.get(lanes), 0)):
                queue.make(worker, call, f.get(lanes))

    queue.each(act)
    queue.pack()
    return f


def write_finish(name: str, target: Target) -> IRFunction:
    """A warp has finished: its stores are made, its loads are seen by nobody."""
    f = begin(name, "void", [*CONTEXT], target)
    worker, block, warp = f.parameters
    queue = _Queue(f, block)

    def act(call: Value) -> None:
        mine = f.icmp("eq", get(f, call, "warp"), warp)
        mine = f.and_(mine, f.icmp("eq", f.load("ptr", f.field_address(call, PendingCall, "block")), block))
        kind = get(f, call, "kind")
        with f.if_(f.and_(mine, f.icmp("eq", kind, BULK))):
            queue.make(worker, call, get(f, call, "mask"))
        with f.if_(f.and_(mine, f.icmp("eq", kind, SMALL))):
            f.store(NULL, f.field_address(call, PendingCall, "run"))

    queue.each(act)
    queue.pack()
    return f


def write_settle(name: str, target: Target) -> IRFunction:
    f = begin(name, "i1", [("ptr", "wk"), ("ptr", "blk"), ("ptr", "word")], target)
    worker, block, word = f.parameters
    queue = _Queue(f, block)
    zero = constant("i64", 0)
    arrivals, bytes_, found = f.variable(zero), f.variable(zero), f.variable(zero)

    def signals(call: Value) -> Value:
        return f.icmp("eq", f.load("ptr", f.field_address(call, PendingCall, "word")), word)

    def add_up(call: Value) -> None:
        with f.if_(signals(call)):
            f.set(arrivals, f.add(f.get(arrivals), f.zext(get(f, call, "arrivals"), "i64")))
            f.set(bytes_, f.add(f.get(bytes_), get(f, call, "bytes")))
            f.set(found, f.add(f.get(found), 1))

    queue.each(add_up)
    now = f.load("i64", word)
    tx = f.binary("ashr", f.shl(f.lshr(now, TX_SHIFT), 64 - TX_BITS), 64 - TX_BITS)
    over = f.and_(f.icmp("eq", f.and_(now, COUNT_MASK), f.get(arrivals)), f.icmp("eq", tx, f.get(bytes_)))
    over = f.and_(over, f.icmp("ne", f.get(found), 0))
    with f.if_(f.not_(over)):
        f.ret(constant("i1", 0))

    def act(call: Value) -> None:
        with f.if_(signals(call)):
            queue.make(worker, call, get(f, call, "mask"))

    queue.each(act)
    queue.pack()
    f.ret(constant("i1", 1))
    return f


# ---------------------------------------------------------------- mbarrier objects
def settle_first(f: IRFunction, address: Value, place: Value) -> None:
    """Before an operation on a live object: ends its phase if only queued calls are missing."""
    named = {value.ref[1:]: value for value in f.parameters}
    owner = f.call("ptr", "weft_shared_block", named["wk"], named["blk"], address)
    with f.if_(f.icmp("eq", f.and_(f.load("i64", place), COUNT_MASK), 0)):
        f.call("i1", "weft_late_settle", named["wk"], owner, place)


def settle_for_test(f: IRFunction, place: Value) -> None:
    f.call("i1", "weft_late_settle", f.parameters[0], f.parameters[1], place)


def write_late_update(name: str, target: Target, verb: str) -> IRFunction:
    return write_update(name, target, verb, settle_first)


def write_late_test(name: str, target: Target) -> IRFunction:
    return write_test(name, target, settle_for_test)


def write_late_arrival(name: str, target: Target) -> IRFunction:
    """cp.async.mbarrier.arrive of the lanes of a mask. Without noinc each first adds one to what is pending."""
    parameters = [*CONTEXT, *PLACE, ("i32", "address"), ("i32", "mask"), ("i32", "noinc")]
    f = begin(name, "void", parameters, target)
    block = f.parameters[1]
    address, mask, noinc = f.parameters[-3:]
    place = f.call("ptr", "weft_mbarrier_find", *common(f), address)
    with f.if_(f.icmp("eq", place, 0), unlikely=True):
        f.ret()
    count = f.intrinsic("i32", "llvm.ctpop.i32", mask)
    with f.if_(f.icmp("eq", noinc, 0)):
        f.store(f.add(f.load("i64", place), f.zext(count, "i64")), place)
    call = f.call("ptr", "weft_late_push", *common(f), block)
    with f.if_(f.icmp("eq", call, 0), unlikely=True):
        f.ret()
    f.store(place, f.field_address(call, PendingCall, "word"))
    put(f, call, "mask", mask)
    put(f, call, "arrivals", count)
    f.store(f.function_pointer("weft_replay_arrival"), f.field_address(call, PendingCall, "run"))
    save(f, call, [address])
    return f


_REPLAY = [("ptr", "wk"), ("ptr", "call"), ("i32", "mask")]


def _issuer(f: IRFunction, call: Value) -> tuple[Value, ...]:
    """blk, w, lane, site of the thread that issued a call."""
    block = f.load("ptr", f.field_address(call, PendingCall, "block"))
    return block, get(f, call, "warp"), get(f, call, "lane"), get(f, call, "site")


def write_replay_arrival(name: str, target: Target) -> IRFunction:
    f = begin(name, "void", _REPLAY, target)
    worker, call, mask = f.parameters
    block, warp, lane, site = _issuer(f, call)
    queue = _Queue(f, block)
    last = queue.count

    with f.for_range(constant("i64", 0), last) as i:
        other = queue.call(i)
        earlier = f.icmp("ult", other, call)
        copies = f.and_(f.icmp("eq", get(f, other, "warp"), warp), f.icmp("eq", get(f, other, "kind"), SMALL))
        with f.if_(f.and_(earlier, copies)):
            lanes = f.and_(get(f, other, "mask"), mask)
            with f.if_(f.icmp("ne", lanes, 0)):
                queue.make(worker, other, lanes)
    (address,) = restore(f, call, ["i32"])
    word = f.load("ptr", f.field_address(call, PendingCall, "word"))
    none, count = constant("i64", 0), f.zext(get(f, call, "arrivals"), "i64")
    f.call("i1", "weft_mbarrier_change", worker, block, warp, lane, site, address, word, count, none, none)
    return f


# ---------------------------------------------------------------- copies
def write_late_small(name: str, target: Target, bytes_: str) -> IRFunction:
    """cp.async: lanes whose open groups have the same number stand in one call."""
    parameters = [*CONTEXT, (ADDRESSES, "addr"), (OFFSETS, "offset"), (OFFSETS, "count"), ("i32", "mask"),
                  ("i32", "site"), ("ptr", "slot")]  # fmt: skip
    f = begin(name, "void", parameters, target)
    worker, block, warp, addresses, offsets, counts, mask, site, slot = f.parameters
    queue = _Queue(f, block)
    kind = constant("i32", SMALL)
    left = f.variable(mask)
    with f.loop() as groups:
        groups.break_if(f.icmp("eq", f.get(left), 0))
        first = f.cttz(f.get(left))
        number = f.load("i32", queue.group(warp, kind, first))
        same = f.variable(constant("i32", 0))
        with f.for_bits(f.get(left)) as lane:
            alike = f.icmp("eq", f.load("i32", queue.group(warp, kind, lane)), number)
            f.set(same, f.or_(f.get(same), f.select(alike, f.shl(1, lane), 0)))
        f.set(left, f.and_(f.get(left), f.not_(f.get(same))))
        call = f.call("ptr", "weft_late_push", worker, block, warp, first, site, block)
        with f.if_(f.icmp("eq", call, 0), unlikely=True):
            f.ret()
        put(f, call, "mask", f.get(same))
        put(f, call, "kind", SMALL)
        put(f, call, "group", number)
        f.store(f.function_pointer(f"weft_replay_copy_{bytes_}"), f.field_address(call, PendingCall, "run"))
        save(f, call, [addresses, offsets, counts, slot])
    return f


def write_replay_small(name: str, target: Target, bytes_: str) -> IRFunction:
    f = begin(name, "void", _REPLAY, target)
    worker, call, mask = f.parameters
    block, warp, _, site = _issuer(f, call)
    addresses, offsets, counts, slot = restore(f, call, [ADDRESSES, OFFSETS, OFFSETS, "ptr"])
    f.call("void", f"weft_copy_{bytes_}", worker, block, warp, addresses, offsets, counts, mask, site, slot)
    return f


def write_late_group(name: str, target: Target, what: str, parameters: list[tuple[str, str]]) -> IRFunction:
    """A bulk store or reduction: belongs to the open group of the lane."""
    f = begin(name, "void", [*CONTEXT, *PLACE, *parameters], target)
    _, block, warp, lane, _ = common(f)
    call = f.call("ptr", "weft_late_push", *common(f), block)
    with f.if_(f.icmp("eq", call, 0), unlikely=True):
        f.ret()
    kind = constant("i32", BULK)
    put(f, call, "kind", BULK)
    put(f, call, "group", f.load("i32", _Queue(f, block).group(warp, kind, lane)))
    f.store(f.function_pointer(f"weft_replay_{what}"), f.field_address(call, PendingCall, "run"))
    save(f, call, list(f.parameters[len(CONTEXT) + len(PLACE) :]))
    return f


def write_late_signal(f: IRFunction, what: str, mbarrier: Value, bytes_: Value, values: list[Value]) -> None:
    """Queues a copy that signals an mbarrier object, in the queue of the object's block."""
    worker, block = f.parameters[:2]
    word = f.call("ptr", "weft_mbarrier_find", *common(f), mbarrier)
    with f.if_(f.icmp("eq", word, 0), unlikely=True):
        f.ret()
    owner = f.call("ptr", "weft_shared_block", worker, block, mbarrier)
    call = f.call("ptr", "weft_late_push", *common(f), owner)
    with f.if_(f.icmp("eq", call, 0), unlikely=True):
        f.ret()
    f.store(word, f.field_address(call, PendingCall, "word"))
    put(f, call, "bytes", bytes_)
    f.store(f.function_pointer(f"weft_replay_{what}"), f.field_address(call, PendingCall, "run"))
    save(f, call, values)


def write_replay(name: str, target: Target, what: str, types: list[str]) -> IRFunction:
    """Makes a call of weft_WHAT as the thread that issued it."""
    f = begin(name, "void", _REPLAY, target)
    worker, call, _ = f.parameters
    block, warp, lane, site = _issuer(f, call)
    f.call("void", f"weft_{what}", worker, block, warp, lane, site, *restore(f, call, types))
    return f


DEFERRED_WRITERS: list[tuple[re.Pattern, Callable[..., IRFunction]]] = [
    (re.compile("weft_late_push"), write_push),
    (re.compile("weft_late_commit"), write_commit),
    (re.compile("weft_late_wait"), write_wait),
    (re.compile("weft_late_finish"), write_finish),
    (re.compile("weft_late_settle"), write_settle),
    (re.compile("weft_late_arrival"), write_late_arrival),
    (re.compile("weft_replay_arrival"), write_replay_arrival),
    (re.compile("weft_late_mbarrier_(update|arrive|hold)"), write_late_update),
    (re.compile("weft_late_mbarrier_test"), write_late_test),
    (re.compile("weft_late_copy_(4|8|16)"), write_late_small),
    (re.compile("weft_replay_copy_(4|8|16)"), write_replay_small),
]
