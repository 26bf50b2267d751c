"""Asynchronous copies: operands of single lanes enter, calls of out-of-line functions leave; and those functions.

Mostly one elected thread issues a copy, so these functions work for one lane; `bulk_call` calls them for every lane
that runs. Copies are complete when they were issued (see deferred.py for the other mode). An mbarrier's transaction
count is brought down at once.

    void weft_bulk_load(wk, blk, w, lane, site, slot, i64 source, i32 destination, i32 size, i32 mbarrier, i32 blocks)
        global to shared; blocks: mask of the cluster's blocks that get a copy, -1 for the destination alone
    void weft_bulk_store(wk, blk, w, lane, site, slot, i64 destination, i32 source, i32 size, i32 bytes)
        bytes: which bytes of every 16 are written
    void weft_bulk_shared(wk, blk, w, lane, site, i32 destination, i32 source, i32 size, i32 mbarrier)
    void weft_bulk_reduce_OP_KIND_iN(as weft_bulk_store, without bytes)
    void weft_bulk_reduce_shared_OP_KIND_iN(as weft_bulk_shared)
    void weft_bulk_OP_KIND_iN(ptr destination, ptr source, i64 count)       elements, atomically; KIND as in
        atomics.py, and n: f32 with its subnormals
    void weft_bulk_zero(wk, blk, w, lane, site, i32 destination, i64 size)                  st.bulk
    void weft_tensor_copy_in(wk, blk, w, lane, site, slots, i64 map, i32 form, 8 x i32 coordinates, i32 destination,
                             i32 mbarrier, i32 blocks)
    void weft_tensor_copy_out(wk, blk, w, lane, site, slots, i64 map, i32 form, 8 x i32 coordinates, i32 source)
    void weft_tensor_copy_OP(the same)
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence

from weft.codegen import abi, deferred, mbarriers
from weft.codegen.access import CONTEXT, begin
from weft.codegen.atomics import Atomic
from weft.codegen.irtext import IRFunction, Value, constant
from weft.codegen.jit import Target
from weft.codegen.mbarriers import PLACE, common
from weft.codegen.tensorcopy import (
    FORM_ROWS,
    PLAN_TYPE,
    plan_field,
    set_plan,
    write_tensor_fault,
    write_tensor_move,
    write_tensor_plan,
    write_tensor_reduce,
)
from weft.codegen.value import WARP_LANES
from weft.codegen.value import Value as LaneValue
from weft.isa import tensormap as tm
from weft.isa.async_copy import MISUSE

_CONTEXT = ", ".join(f"{type_} %{name}" for type_, name in CONTEXT)
_REASON = {text: number for number, text in MISUSE.items()}
SLOT = [("ptr", "slot")]
COORDINATES = 8
RANGE_BYTES = ctypes.sizeof(abi.Range)


_PUT_OFF = re.compile("weft_(bulk_(load|store|shared|reduce_.*)|tensor_copy_.*|mbarrier_(update|arrive|hold|test))")


class BulkOps:
    """What instruction rules ask for: part of Lowering."""

    deferred = False  # copies are made by the waits: see deferred.py

    def put_off(self, name: str) -> str:
        """The support function to call instead where copies are deferred."""
        if self.deferred and _PUT_OFF.fullmatch(name):
            return name.replace("weft_", "weft_late_", 1)
        return name

    def copy_groups(self, verb: str, bulk: bool, count: int = 0) -> None:
        """commit_group, wait_group (`count` groups may be pending) and wait_all of cp.async or bulk copies. There is
        nothing to do unless copies are deferred."""
        if not self.deferred or self.dry:
            return
        kind = deferred.BULK if bulk else deferred.SMALL
        keep = {"commit_group": "", "wait_group": f", i32 {min(count, 1 << 30)}", "wait_all": ", i32 -1"}[verb]
        name = self._call_support("weft_late_commit" if verb == "commit_group" else "weft_late_wait")
        self.e(f"call void {name}({_CONTEXT}, i32 {self.mask_word()}, i32 {kind}{keep})")
        self.after_slow_call()

    def finish_copies(self) -> list[str]:
        """At a warp's end: what its deferred stores need."""
        if self.is_function or not any(name.startswith("weft_late_") for name in self.support):
            return []
        self.support.add("weft_late_finish")
        return [f"  call void @weft_late_finish({_CONTEXT})"]

    def arrive_after_copies(self, address: LaneValue, noinc: bool) -> None:
        """cp.async.mbarrier.arrive, `address` in the cluster's shared memory."""
        if not self.deferred:
            none = self.const(0, 64)
            operands = [address, self.const(int(noinc), 64), none, none]
            self.bulk_call("weft_mbarrier_update", operands, result=64)
            return
        own = self.shl(self.const(1, 32), self.lane())
        lanes = self.active_mask() if address.is_uniform else own
        self.bulk_call("weft_late_arrival", [address, lanes, self.const(int(noinc), 32)], once=True)

    def bulk_slots(self, count: int) -> str:
        """Pointer to `count` range slots of this instruction, side by side."""
        first = self.slot_of.get((self.site, "bulk", 0))
        if first is None:
            first = len(self.slot_of)
            for i in range(count):
                self.slot_of[(self.site, "bulk", i)] = first + i
        return self.t(f"getelementptr i8, ptr %slots, i64 {first * RANGE_BYTES}")

    def bulk_call(
        self, name: str, operands: Sequence[LaneValue], slots: int = 0, result: int = 0, once: bool = False
    ) -> LaneValue | None:
        """Call a support function for one running lane after the other: context, lane, site, slots, operands. Gives
        the lanes' results of `result` bits. once: what a lane does the next need not do again; operands that are the
        same in all lanes make one call and one result."""
        once = once and all(v.is_uniform for v in operands)
        if self.dry:
            if not result:
                return None
            return self.scalar("%dry", result) if once else self.varying(("%dry",) * self.chunks, result)
        symbol = self._call_support(self.put_off(name))
        if once:
            return self._call_once(symbol, operands, slots, result)
        slot = f", ptr {self.bulk_slots(slots)}" if slots else ""
        fixed = [self.uval(v) if v.is_uniform else "" for v in operands]
        wholes = ["" if x else self.join_chunks(self.vec(v), f"i{v.bits}") for v, x in zip(operands, fixed)]
        self.declare("declare i32 @llvm.cttz.i32(i32, i1)")
        head, body, end = (self.new_label(stem) for stem in ("lanes", "lane", "copied"))
        mask, start = self.mask_word(), self.current_label
        vector = f"<{WARP_LANES} x i{result}>"
        self.e(f"br label %{head}")
        self.depth += 1
        self.label(head)
        self.counter += 1
        left, following, found, results = (f"%{stem}.{self.counter}" for stem in ("left", "left.n", "got", "got.n"))
        self.e(f"{left} = phi i32 [ {mask}, %{start} ], [ {following}, %{body} ]")
        if result:
            self.e(f"{found} = phi {vector} [ zeroinitializer, %{start} ], [ {results}, %{body} ]")
        self.e(f"br i1 {self.t(f'icmp eq i32 {left}, 0')}, label %{end}, label %{body}")
        self.label(body)
        lane = self.t(f"call i32 @llvm.cttz.i32(i32 {left}, i1 false)")
        arguments = ""
        for v, x, whole in zip(operands, fixed, wholes):
            x = x or self.t(f"extractelement <{WARP_LANES} x i{v.bits}> {whole}, i32 {lane}")
            arguments += f", i{v.bits} {x}"
        call = f"{symbol}({_CONTEXT}, i32 {lane}, i32 {self.site}{slot}{arguments})"
        if result:
            value = self.t(f"call i{result} {call}")
            self.e(f"{results} = insertelement {vector} {found}, i{result} {value}, i32 {lane}")
        else:
            self.e(f"call void {call}")
        self.e(f"{following} = and i32 {left}, {self.t(f'sub i32 {left}, 1')}")
        self.e(f"br label %{head}")
        self.depth -= 1
        self.label(end)
        self.after_slow_call()
        return self.varying(self.split_chunks(found, f"i{result}"), result) if result else None

    def _call_once(self, symbol: str, operands: Sequence[LaneValue], slots: int, result: int) -> LaneValue | None:
        slot = f", ptr {self.bulk_slots(slots)}" if slots else ""
        lane = "0"
        if self.mask is not None:
            self.declare("declare i32 @llvm.cttz.i32(i32, i1)")
            lane = self.t(f"call i32 @llvm.cttz.i32(i32 {self.mask_word()}, i1 false)")
        arguments = "".join(f", i{v.bits} {self.uval(v)}" for v in operands)
        call = f"{symbol}({_CONTEXT}, i32 {lane}, i32 {self.site}{slot}{arguments})"
        if not result:
            self.e(f"call void {call}")
            self.after_slow_call()
            return None
        value = self.t(f"call i{result} {call}")
        self.after_slow_call()
        return self.scalar(value, result)


# ---------------------------------------------------------------- pieces
def named(f: IRFunction) -> dict[str, Value]:
    return {value.ref[1:]: value for value in f.parameters}


def refuse(f: IRFunction, condition: Value, why: str, address: Value) -> None:
    """A BULK fault where `condition` holds."""
    p = named(f)
    with f.if_(condition, unlikely=True):
        kind = constant("i32", int(abi.FaultKind.BULK))
        f.call("void", "weft_fault", p["wk"], p["blk"], p["w"], kind, p["site"], p["lane"], f.zext(address, "i64"),
               constant("i32", _REASON[why]))  # fmt: skip
        f.ret()


def fault(f: IRFunction, kind: abi.FaultKind, address: Value, size: Value) -> None:
    p = named(f)
    f.call("void", "weft_fault", p["wk"], p["blk"], p["w"], constant("i32", int(kind)), p["site"], p["lane"],
           f.zext(address, "i64"), size)  # fmt: skip
    f.ret()


def check_sixteen(f: IRFunction, *values: Value) -> None:
    """Addresses and sizes of bulk copies are multiples of 16."""
    for value in values:
        refuse(f, f.icmp("ne", f.and_(value, 15), 0), "multiple of 16", value)


def global_place(f: IRFunction, address: Value, size: Value) -> Value:
    """Pointer to `size` (i32) bytes of one live allocation, checked."""
    p = named(f)
    slot = p["slot"]
    length = f.intrinsic("i64", "llvm.umax.i64", f.zext(size, "i64"), constant("i64", 1))
    base, bytes_ = f.field(slot, abi.Range, "base"), f.field(slot, abi.Range, "size")
    outside = f.icmp("uge", f.sub(address, base), f.usub_sat(bytes_, f.sub(length, 1)))
    with f.if_(outside, unlikely=True):
        found = f.call("i1", "weft_find_range", p["wk"], address, length, slot)
        with f.if_(f.not_(found), unlikely=True):
            fault(f, abi.FaultKind.ADDRESS, address, size)
    return f.convert("inttoptr", address, "ptr")


def shared_place(f: IRFunction, address: Value, size: Value) -> Value:
    """Pointer to `size` (i32) bytes of the cluster's shared memory, checked."""
    p = named(f)
    place = f.call("ptr", "weft_shared_place", p["wk"], p["blk"], address, f.zext(size, "i64"))
    with f.if_(f.icmp("eq", place, 0), unlikely=True):
        mbarriers.explain_outside(f, address, None, size)
    return place


def find_mbarrier(f: IRFunction, address: Value) -> Value:
    word = f.call("ptr", "weft_mbarrier_find", *common(f), address)
    with f.if_(f.icmp("eq", word, 0), unlikely=True):
        f.ret()
    return word


def complete_bytes(f: IRFunction, address: Value, word: Value, size: Value) -> None:
    none = constant("i64", 0)
    wide = f.zext(size, "i64")
    f.call("i1", "weft_mbarrier_change", *common(f), address, word, none, none, f.sub(0, wide))


def copy(f: IRFunction, destination: Value, source: Value, size: Value) -> None:
    f.intrinsic("void", "llvm.memmove.p0.p0.i64", destination, source, f.zext(size, "i64"), constant("i1", 0))


def each_destination(f: IRFunction, blocks: Value, act: Callable[[Value], None]) -> None:
    """act(base) for every block that gets a copy; base is what the block's addresses are behind: 0 for the
    destination as it was written."""
    p = named(f)
    with f.if_(f.icmp("eq", blocks, -1)):
        act(constant("i32", 0))
    with f.else_():
        size = f.intrinsic("i32", "llvm.umax.i32", f.field(p["blk"], abi.BlockHeader, "cluster_size"),
                           constant("i32", 1))  # fmt: skip
        refuse(f, f.icmp("ne", f.lshr(f.and_(blocks, 0xFFFF), size), 0), "no such block", blocks)
        with f.for_bits(f.and_(blocks, 0xFFFF)) as rank:
            act(f.mul(f.add(rank, 1), abi.CLUSTER_STRIDE))


def rebased(f: IRFunction, address: Value, base: Value) -> Value:
    """The address in another block: the same offset behind `base`, or as it is where base is 0."""
    other = f.or_(f.and_(address, abi.CLUSTER_STRIDE - 1), base)
    return f.select(f.icmp("eq", base, 0), address, other)


# ---------------------------------------------------------------- copies without a map
def write_bulk_load(name: str, target: Target) -> IRFunction:
    parameters = [*CONTEXT, *PLACE, *SLOT, ("i64", "source"), ("i32", "destination"), ("i32", "size"),
                  ("i32", "mbarrier"), ("i32", "blocks")]  # fmt: skip
    f = begin(name, "void", parameters, target)
    source, destination, size, mbarrier, blocks = f.parameters[-5:]
    check_sixteen(f, source, destination, size)
    pointer = global_place(f, source, size)

    def act(base: Value) -> None:
        place = shared_place(f, rebased(f, destination, base), size)
        bar = rebased(f, mbarrier, base)
        word = find_mbarrier(f, bar)
        copy(f, place, pointer, size)
        complete_bytes(f, bar, word, size)

    each_destination(f, blocks, act)
    return f


def write_bulk_store(name: str, target: Target) -> IRFunction:
    parameters = [*CONTEXT, *PLACE, *SLOT, ("i64", "destination"), ("i32", "source"), ("i32", "size"),
                  ("i32", "bytes")]  # fmt: skip
    f = begin(name, "void", parameters, target)
    destination, source, size, bytes_ = f.parameters[-4:]
    check_sixteen(f, destination, source, size)
    pointer = global_place(f, destination, size)
    place = shared_place(f, source, size)
    with f.if_(f.icmp("eq", f.and_(bytes_, 0xFFFF), 0xFFFF)):
        copy(f, pointer, place, size)
    with f.else_():
        with f.for_range(constant("i64", 0), f.zext(size, "i64")) as i:
            bit = f.and_(f.lshr(bytes_, f.trunc(f.and_(i, 15), "i32")), 1)
            with f.if_(f.icmp("ne", bit, 0)):
                f.store(f.load("i8", f.offset(place, i)), f.offset(pointer, i))
    return f


_SHARED = [*CONTEXT, *PLACE, ("i32", "destination"), ("i32", "source"), ("i32", "size"), ("i32", "mbarrier")]


def _check_shared_copy(f: IRFunction) -> tuple[Value, Value, Value]:
    destination, source, size, mbarrier = f.parameters[-4:]
    check_sixteen(f, destination, source, size)
    return shared_place(f, destination, size), shared_place(f, source, size), find_mbarrier(f, mbarrier)


def write_bulk_shared(name: str, target: Target) -> IRFunction:
    f = begin(name, "void", _SHARED, target)
    to, place, word = _check_shared_copy(f)
    size, mbarrier = f.parameters[-2:]
    copy(f, to, place, size)
    complete_bytes(f, mbarrier, word, size)
    return f


def write_bulk_reduce(name: str, target: Target, shared: str | None, reduction: str) -> IRFunction:
    tail = [("i32", "size")] + [("i32", "mbarrier")] * bool(shared)
    slot = [] if shared else SLOT
    to = ("i32" if shared else "i64", "destination")
    f = begin(name, "void", [*CONTEXT, *PLACE, *slot, to, ("i32", "source"), *tail], target)
    bytes_ = int(reduction.rpartition("i")[2]) // 8
    if shared:
        pointer, place, word = _check_shared_copy(f)
    else:
        destination, source, size = f.parameters[-3:]
        check_sixteen(f, destination, source, size)
        pointer, place = global_place(f, destination, size), shared_place(f, source, size)
    size = named(f)["size"]
    count = f.lshr(f.zext(size, "i64"), bytes_.bit_length() - 1)
    f.call("void", f"weft_bulk_{reduction}", pointer, place, count)
    if shared:
        complete_bytes(f, named(f)["mbarrier"], word, size)
    return f


def write_combine(name: str, target: Target, operation: str, kind: str, bits: str) -> IRFunction:
    """Element after element of `destination` is combined with one of `source`, atomically."""
    f = begin(name, "void", [("ptr", "destination"), ("ptr", "source"), ("i64", "count")], target)
    destination, source, count = f.parameters
    keeps = kind == "n"  # f32 with its subnormals
    atomic = Atomic(operation, "f" if keeps else kind, int(bits), False, False)
    size, element = int(bits) // 8, f"i{bits}"
    with f.for_range(constant("i64", 0), count) as i:
        place = f.index(destination, i, size)
        value = f.load(element, f.index(source, i, size))
        if atomic.direct:
            f.atomicrmw(atomic.direct, place, value, "monotonic")
        else:
            seen = f.variable(f.load(element, place, order="monotonic"))
            with f.loop() as tries:
                before = f.get(seen)
                old, done = f.cmpxchg(place, before, atomic.combine(f, before, value, None, keeps), "seq_cst")
                f.set(seen, old)
                tries.break_if(done)
    return f


def write_bulk_zero(name: str, target: Target) -> IRFunction:
    f = begin(name, "void", [*CONTEXT, *PLACE, ("i32", "destination"), ("i64", "size")], target)
    destination, size = f.parameters[-2:]
    refuse(f, f.icmp("ne", f.and_(f.or_(f.zext(destination, "i64"), size), 7), 0), "multiple of 8", destination)
    most = f.trunc(f.intrinsic("i64", "llvm.umin.i64", size, constant("i64", (1 << 31) - 1)), "i32")
    f.fill_zero(shared_place(f, destination, most), size)
    return f


# ---------------------------------------------------------------- tensor copies
_TENSOR = [*CONTEXT, *PLACE, ("ptr", "slots"), ("i64", "map"), ("i32", "form"),
           *((("i32", f"c{i}")) for i in range(COORDINATES))]  # fmt: skip


class _TensorCopy:
    """An entry point of tensor copies under construction: plans, finds the shared memory, moves."""

    def __init__(self, name: str, target: Target, tail: list[tuple[str, str]]):
        self.f = begin(name, "void", [*_TENSOR, *tail], target)
        self.p = named(self.f)
        f = self.f
        self.coordinates = f.alloca("[8 x i32]", align=16)
        for i in range(COORDINATES):
            f.store(self.p[f"c{i}"], f.offset(self.coordinates, 4 * i))
        self.plan = f.alloca(PLAN_TYPE, align=64)

    def each_part(self, act: Callable[[Value], None]) -> None:
        """Plans the box, or each of the four rows of gather4 and scatter4, and calls act(offset of the part)."""
        f = self.f
        rows = f.icmp("ne", f.and_(self.p["form"], FORM_ROWS), 0)
        parts = f.select(rows, constant("i64", 4), constant("i64", 1))
        done = f.variable(constant("i64", 0))
        with f.for_range(constant("i64", 0), parts) as part:
            with f.if_(rows):
                row = f.load("i32", f.index(self.coordinates, f.add(part, 1), 4))
                f.store(row, f.offset(self.coordinates, 4))
                # the next rows come after this one: the first coordinate pair is used up
            self.make_plan()
            act(f.get(done))
            f.set(done, f.add(f.get(done), plan_field(f, self.plan, "total")))

    def make_plan(self) -> None:
        f, p = self.f, self.p
        ok = f.call("i1", "weft_tensor_plan", *common(f), p["slots"], p["map"], p["form"], self.coordinates, self.plan)
        with f.if_(f.not_(ok), unlikely=True):
            f.ret()

    def refuse(self, condition: Value, reason: int) -> None:
        f, p = self.f, self.p
        with f.if_(condition, unlikely=True):
            kind = constant("i32", int(abi.FaultKind.TENSOR_MAP))
            f.call("void", "weft_tensor_fault", *common(f), kind, p["map"], constant("i32", reason), p["map"],
                   p["form"], self.coordinates)  # fmt: skip
            f.ret()

    def place(self, address: Value, offset: Value) -> None:
        """Sets the plan's shared memory: the box at `offset` behind `address`."""
        f, p = self.f, self.p
        self.refuse(f.icmp("ne", f.and_(address, tm.SHARED_ALIGN - 1), 0), 11)
        end = f.add(offset, plan_field(f, self.plan, "total"))
        found = f.call("ptr", "weft_shared_place", p["wk"], p["blk"], address, end)
        self.refuse(f.icmp("eq", found, 0), 15)
        owner = f.call("ptr", "weft_shared_block", p["wk"], p["blk"], address)
        base = f.field(owner, abi.BlockHeader, "shared")
        set_plan(f, self.plan, "shared", f.convert("ptrtoint", base, "i64"))
        at = f.zext(f.and_(address, abi.CLUSTER_STRIDE - 1), "i64")
        set_plan(f, self.plan, "offset", f.add(at, offset))


def write_tensor_in(name: str, target: Target) -> IRFunction:
    copy_ = _TensorCopy(name, target, [("i32", "destination"), ("i32", "mbarrier"), ("i32", "blocks")])
    f, p, plan = copy_.f, copy_.p, copy_.plan

    def part(offset: Value) -> None:
        def act(base: Value) -> None:
            bar = rebased(f, p["mbarrier"], base)
            word = find_mbarrier(f, bar)
            copy_.place(rebased(f, p["destination"], base), offset)
            f.call("void", "weft_tensor_load", plan)
            complete_bytes(f, bar, word, f.trunc(plan_field(f, plan, "total"), "i32"))

        each_destination(f, p["blocks"], act)

    copy_.each_part(part)
    return f


def write_tensor_out(name: str, target: Target, operation: str) -> IRFunction:
    copy_ = _TensorCopy(name, target, [("i32", "source")])
    f, p = copy_.f, copy_.p

    def part(offset: Value) -> None:
        copy_.place(p["source"], offset)
        if operation == "out":
            f.call("void", "weft_tensor_store", copy_.plan)
            return
        defined = f.call("i1", f"weft_tensor_reduce_{operation}", copy_.plan)
        copy_.refuse(f.not_(defined), 12)

    copy_.each_part(part)
    return f


# ---------------------------------------------------------------- deferred copies
_BULK_LOAD = [*SLOT, ("i64", "source"), ("i32", "destination"), ("i32", "size"), ("i32", "mbarrier"), ("i32", "blocks")]
_BULK_STORE = [*SLOT, ("i64", "destination"), ("i32", "source"), ("i32", "size"), ("i32", "bytes")]
_BULK_REDUCE = _BULK_STORE[:-1]
_BULK_SHARED = _SHARED[len(CONTEXT) + len(PLACE) :]
_TENSOR_OUT = [*_TENSOR[len(CONTEXT) + len(PLACE) :], ("i32", "source")]
_TENSOR_IN = [*_TENSOR_OUT[:-1], ("i32", "destination"), ("i32", "mbarrier"), ("i32", "blocks")]


def late_parameters(what: str) -> list[tuple[str, str]]:
    """Parameters of weft_WHAT behind the common ones."""
    for pattern, parameters in (
        ("bulk_load", _BULK_LOAD), ("bulk_store", _BULK_STORE), ("bulk_shared|bulk_reduce_shared_.*", _BULK_SHARED),
        ("bulk_reduce_.*", _BULK_REDUCE), ("tensor_copy_in", _TENSOR_IN), ("tensor_copy_.*", _TENSOR_OUT),
    ):  # fmt: skip
        if re.fullmatch(pattern, what):
            return parameters
    raise ValueError(what)


def write_late_copy(name: str, target: Target, what: str) -> IRFunction:
    """Queues a bulk or tensor copy."""
    parameters = late_parameters(what)
    if "mbarrier" not in dict(map(reversed, parameters)):
        return deferred.write_late_group(name, target, what, parameters)
    if what == "tensor_copy_in":
        copy_ = _TensorCopy(name, target, _TENSOR_IN[-3:])
        f, total = copy_.f, copy_.f.variable(constant("i64", 0))
        copy_.each_part(lambda offset: f.set(total, f.add(offset, plan_field(f, copy_.plan, "total"))))
        bytes_ = f.get(total)
    else:
        f = begin(name, "void", [*CONTEXT, *PLACE, *parameters], target)
        bytes_ = f.zext(named(f)["size"], "i64")
    p, given = named(f), f.parameters[len(CONTEXT) + len(PLACE) :]
    if "blocks" not in p:
        deferred.write_late_signal(f, what, p["mbarrier"], bytes_, list(given))
        return f

    def act(base: Value) -> None:
        # each block's copy waits for that block's object: one call each
        rank = f.sub(f.lshr(base, abi.CLUSTER_STRIDE.bit_length() - 1), 1)
        alone = f.select(f.icmp("eq", base, 0), constant("i32", -1), f.shl(1, f.and_(rank, 15)))
        values = [alone if value is p["blocks"] else value for value in given]
        deferred.write_late_signal(f, what, rebased(f, p["mbarrier"], base), bytes_, values)

    each_destination(f, p["blocks"], act)
    return f


def write_replay_copy(name: str, target: Target, what: str) -> IRFunction:
    return deferred.write_replay(name, target, what, [type_ for type_, _ in late_parameters(what)])


_OPERATIONS = "(add|min|max|inc|dec|and|or|xor)"
BULK_WRITERS: list[tuple[re.Pattern, Callable[..., IRFunction]]] = [
    (re.compile("weft_shared_block"), mbarriers.write_shared_block),
    (re.compile("weft_shared_place"), mbarriers.write_shared_place),
    (re.compile("weft_mbarrier_find"), mbarriers.write_find),
    (re.compile("weft_mbarrier_init"), mbarriers.write_init),
    (re.compile("weft_mbarrier_change"), mbarriers.write_change),
    (re.compile("weft_mbarrier_(update|arrive|hold)"), mbarriers.write_update),
    (re.compile("weft_mbarrier_test"), mbarriers.write_test),
    (re.compile("weft_tensor_fault"), write_tensor_fault),
    (re.compile("weft_tensor_plan"), write_tensor_plan),
    (re.compile("weft_tensor_(load|store)"), write_tensor_move),
    (re.compile(f"weft_tensor_reduce_{_OPERATIONS}"), write_tensor_reduce),
    (re.compile("weft_tensor_copy_in"), write_tensor_in),
    (re.compile(f"weft_tensor_copy_(out|{_OPERATIONS[1:-1]})"), write_tensor_out),
    (re.compile("weft_bulk_load"), write_bulk_load),
    (re.compile("weft_bulk_store"), write_bulk_store),
    (re.compile("weft_bulk_shared"), write_bulk_shared),
    (re.compile("weft_bulk_zero"), write_bulk_zero),
    (re.compile(rf"weft_bulk_reduce_(shared_)?({_OPERATIONS[1:-1]})_(\w+_i\d+)"),
     lambda name, target, shared, operation, rest: write_bulk_reduce(name, target, shared, f"{operation}_{rest}")),
    (re.compile(rf"weft_bulk_{_OPERATIONS}_(u|s|b|f|n|f16|bf16)_i(16|32|64)"), write_combine),
    *deferred.DEFERRED_WRITERS,
    (re.compile(r"weft_late_((?:bulk|tensor)_\w+)"), write_late_copy),
    (re.compile(r"weft_replay_((?:bulk|tensor)_\w+)"), write_replay_copy),
]  # fmt: skip
