"""Support functions for atomics: a name such as weft_atom_add_f_i32 enters, an IRFunction leaves.

    weft_{atom|red}_[shared_]OP_KIND_iN        signatures in support.py

OP: add exch cas min max inc dec and or xor. KIND: u and b (no sign), s, f (f32, f64), f16, bf16 (N = 16), f16x2, bf16x2
(N = 32). N: 8 16 32 64; exch and cas also 128. Floating kinds have add, and the half kinds min and max too
(PTX ISA, "atom" and "red"). `red` gives nothing back.

Numbers: f32 add to global memory flushes subnormal operands and results to signed zero, to shared memory it does not
(PTX ISA, "atom"); the half kinds keep subnormals and round each element to nearest even. NaN results are 0x7fffffff
(f32) and 0x7fff (halves).

Lanes act one after another from the lowest. Global memory is changed with the host's atomics, one lane at a time,
except that lanes with one common address act on it in a single step. A block runs on one host thread, so shared memory
needs no atomic instructions. Local memory faults.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from weft.codegen import abi
from weft.codegen.access import (
    ADDRESSES,
    CONTEXT,
    OFFSETS,
    begin,
    check_offsets,
    inside,
    lane_bits,
    lane_vector,
    resolve,
    spill,
    zeroed,
)
from weft.codegen.irtext import IRFunction, Value, constant, vector_type
from weft.codegen.jit import Target

ATOMIC_NAME = re.compile(
    "weft_(atom|red)_(shared_)?(add|exch|cas|min|max|inc|dec|and|or|xor)_(u|b|s|f|f16|bf16|f16x2|bf16x2)_i(8|16|32|64|128)"
)
_HALF_KINDS = {"f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32}
# The host's instruction for an integer operation.
_DIRECT = {"add": "add", "exch": "xchg", "and": "and", "or": "or", "xor": "xor", "inc": "uinc_wrap", "dec": "udec_wrap"}
# Operations whose operands can be combined first: the identity that stands for inactive lanes.
_REDUCIBLE = {"add": 0, "or": 0, "xor": 0, "and": -1}


@dataclass(frozen=True)
class Atomic:
    """One atomic operation on one kind of value."""

    operation: str
    kind: str
    bits: int
    shared: bool
    returns: bool

    @property
    def floating(self) -> bool:
        return self.kind in ("f", *_HALF_KINDS)

    @property
    def direct(self) -> str:
        """LLVM's atomicrmw operation, or "" where a compare-and-swap loop is needed."""
        if self.floating or self.bits == 128 or self.operation == "cas":
            return ""
        if self.operation in ("min", "max"):
            return ("" if self.kind == "s" else "u") + self.operation
        return _DIRECT[self.operation]

    def combine(self, f: IRFunction, old: Value, b: Value, c: Value | None, in_shared: bool) -> Value:
        """The new value of memory for one lane."""
        if self.floating:
            return _combine_float(f, self, old, b, in_shared)
        operation = self.operation
        if operation in ("add", "and", "or", "xor"):
            return f.binary(operation, old, b)
        if operation in ("min", "max"):
            sign = "s" if self.kind == "s" else "u"
            return f.intrinsic(old.type, f"llvm.{sign}{operation}.{old.type}", old, b)
        if operation == "exch":
            return b
        if operation == "cas":
            assert c is not None
            return f.select(f.icmp("eq", old, b), c, old)
        if operation == "inc":
            return f.select(f.icmp("uge", old, b), 0, f.add(old, 1))
        wraps = f.or_(f.icmp("eq", old, 0), f.icmp("ugt", old, b))
        return f.select(wraps, b, f.sub(old, 1))


# ---- floating operations on bit patterns

_NAN_F32 = Value("float", "0x7FFFFFFFE0000000")  # 0x7fffffff; LLVM writes floats as doubles


def _flush(f: IRFunction, x: Value) -> Value:
    """An f32 with subnormals replaced by zero of the same sign. Stays in floating registers: it is on the path from
    one lane's sum to the next."""
    tiny = f.fcmp("olt", f.intrinsic("float", "llvm.fabs.f32", x), Value("float", "0x3810000000000000"))  # 2 ** -126
    return f.select(tiny, f.intrinsic("float", "llvm.copysign.f32", Value("float", "0.0"), x), x)


def _add_f32(f: IRFunction, a: Value, b: Value, flush: bool) -> Value:
    x, y = f.bitcast(a, "float"), f.bitcast(b, "float")
    if flush:
        x, y = _flush(f, x), _flush(f, y)
    total = f.binary("fadd", x, y)
    if flush:
        total = _flush(f, total)
    return f.bitcast(f.select(f.fcmp("uno", total, total), _NAN_F32, total), "i32")


def _widen_half(f: IRFunction, bits: Value, bf16: bool) -> Value:
    if bf16:
        return f.bitcast(f.shl(f.zext(bits, "i32"), 16), "float")
    return f.convert("fpext", f.bitcast(bits, "half"), "float")


def _add_half(f: IRFunction, a: Value, b: Value, bf16: bool) -> Value:
    """Sum of two halves, rounded once more from f32: f32 has more than twice their precision plus two bits, so
    rounding twice gives what rounding once would."""
    total = f.binary("fadd", _widen_half(f, a, bf16), _widen_half(f, b, bf16))
    if bf16:
        bits = f.bitcast(total, "i32")
        # Round to nearest even in integers: conversions to bf16 may be calls or flush subnormals.
        odd = f.and_(f.lshr(bits, 16), 1)
        rounded = f.trunc(f.lshr(f.add(bits, f.add(odd, 0x7FFF)), 16), "i16")
    else:
        rounded = f.bitcast(f.convert("fptrunc", total, "half"), "i16")
    return f.select(f.fcmp("uno", total, total), 0x7FFF, rounded)


def _extreme_half(f: IRFunction, a: Value, b: Value, bf16: bool, largest: bool) -> Value:
    """min or max of two halves: -0 below +0, a NaN gives the other operand, two give 0x7fff."""
    infinity = 0x7F80 if bf16 else 0x7C00
    a_nan = f.icmp("ugt", f.and_(a, 0x7FFF), infinity)
    b_nan = f.icmp("ugt", f.and_(b, 0x7FFF), infinity)

    def key(x: Value) -> Value:  # orders patterns like the numbers, as unsigned integers
        negative = f.icmp("slt", x, 0)
        return f.select(negative, f.not_(x), f.or_(x, 0x8000))

    pick = f.select(f.icmp("ugt" if largest else "ult", key(a), key(b)), a, b)
    pick = f.select(b_nan, a, f.select(a_nan, b, pick))
    return f.select(f.and_(a_nan, b_nan), 0x7FFF, pick)


def _combine_float(f: IRFunction, atomic: Atomic, old: Value, b: Value, in_shared: bool) -> Value:
    if atomic.kind == "f":
        if atomic.bits == 32:
            return _add_f32(f, old, b, flush=not in_shared)
        total = f.binary("fadd", f.bitcast(old, "double"), f.bitcast(b, "double"))
        return f.bitcast(total, "i64")
    bf16 = atomic.kind.startswith("bf16")

    def one(x: Value, y: Value) -> Value:
        if atomic.operation == "add":
            return _add_half(f, x, y, bf16)
        return _extreme_half(f, x, y, bf16, atomic.operation == "max")

    if atomic.bits == 16:
        return one(old, b)
    low = one(f.trunc(old, "i16"), f.trunc(b, "i16"))
    high = one(f.trunc(f.lshr(old, 16), "i16"), f.trunc(f.lshr(b, 16), "i16"))
    return f.or_(f.zext(low, "i32"), f.shl(f.zext(high, "i32"), 16))


# ---- one function


class _Writer:
    """The function under construction with what its parts share."""

    def __init__(self, name: str, target: Target, atomic: Atomic):
        self.atomic, self.bits, self.bytes = atomic, atomic.bits, atomic.bits // 8
        self.element = f"i{atomic.bits}"
        self.vector = lane_vector(atomic.bits)
        where = (OFFSETS, "offset") if atomic.shared else (ADDRESSES, "addr")
        third = [(self.vector, "c")] if atomic.operation == "cas" else []
        slot = [] if atomic.shared else [("ptr", "slot")]
        parameters = [*CONTEXT, where, (self.vector, "b"), *third, ("i32", "mask"), ("i32", "site"), *slot]
        self.f = begin(name, self.vector if atomic.returns else "void", parameters, target)
        named = {value.ref[1:]: value for value in self.f.parameters}
        self.worker, self.block, self.mask = named["wk"], named["blk"], named["mask"]
        self.where, self.b, self.slot = named["offset" if atomic.shared else "addr"], named["b"], named.get("slot")
        self.b_place = spill(self.f, named["b"])
        self.c_place = spill(self.f, named["c"]) if third else None
        self.results = zeroed(self.f, self.vector) if atomic.returns else None

    def operands(self, lane: Value) -> tuple[Value, Value | None]:
        b = self.f.load(self.element, self.f.index(self.b_place, lane, self.bytes))
        if self.c_place is None:
            return b, None
        return b, self.f.load(self.element, self.f.index(self.c_place, lane, self.bytes))

    def keep(self, lane: Value, old: Value) -> None:
        """Remembers what a lane gets back."""
        if self.results is not None:
            self.f.store(old, self.f.index(self.results, lane, self.bytes))

    def finish(self) -> None:
        if self.results is None:
            self.f.ret()
        else:
            self.f.ret(self.f.load(self.vector, self.results, align=64))

    def step_plain(self, pointer: Value, lane: Value) -> None:
        """One lane, by an ordinary load and store (shared memory)."""
        f = self.f
        b, c = self.operands(lane)
        old = f.load(self.element, pointer, align=self.bytes)
        f.store(self.atomic.combine(f, old, b, c, in_shared=True), pointer, align=self.bytes)
        self.keep(lane, old)

    def step_atomic(self, pointer: Value, lane: Value) -> None:
        """One lane, by the host's atomics."""
        f, atomic = self.f, self.atomic
        b, c = self.operands(lane)
        if atomic.direct:
            order = "seq_cst" if atomic.returns else "monotonic"
            self.keep(lane, f.atomicrmw(atomic.direct, pointer, b, order))
        elif atomic.operation == "cas":
            old, _ = f.cmpxchg(pointer, b, c, "seq_cst")
            self.keep(lane, old)
        else:
            self.keep(lane, self.exchange_loop(pointer, lambda old: atomic.combine(f, old, b, c, in_shared=False)))

    def exchange_loop(self, pointer: Value, change) -> Value:
        """Replaces the value at `pointer` by change(value), atomically; gives the old value."""
        f = self.f
        if self.bits == 128:  # there is no plain 128-bit atomic load; a torn value only costs another round
            low = f.zext(f.load("i64", pointer), "i128")
            high = f.zext(f.load("i64", f.offset(pointer, 8)), "i128")
            seen = f.variable(f.or_(low, f.shl(high, 64)))
        else:
            seen = f.variable(f.load(self.element, pointer, order="monotonic"))
        with f.loop() as tries:
            before = f.get(seen)
            old, done = f.cmpxchg(pointer, before, change(before), "seq_cst")
            f.set(seen, old)
            tries.break_if(done)
        return f.get(seen)

    # ---- shared memory

    def write_shared(self) -> IRFunction:
        f = self.f
        limit = f.field(f.field(self.worker, abi.Worker, "launch"), abi.Launch, "shared_bytes")
        failed = Value(self.vector, "zeroinitializer") if self.atomic.returns else None
        check_offsets(f, self.where, self.mask, limit, self.bytes, failed)
        places = spill(f, self.where)
        base = f.field(self.block, abi.BlockHeader, "shared")

        if self.atomic.floating:
            # A sum in one place: 32 additions in a register instead of 32 trips through memory (138 -> 45 ns).
            first = f.extract(self.where, f.and_(f.cttz(f.or_(self.mask, 1 << 31)), 31))
            with f.if_(self.same_place(first)):
                pointer = f.offset(base, f.zext(first, "i64"))
                old = f.load(self.element, pointer, align=self.bytes)
                f.store(self.fold(old, in_shared=True), pointer, align=self.bytes)
                self.finish()
        # Integers take 20 ns for 32 lanes; unrolling gains a tenth of that.
        with f.for_bits(self.mask) as lane:
            offset = f.zext(f.load("i32", f.index(places, lane, 4)), "i64")
            self.step_plain(f.offset(base, offset), lane)
        self.finish()
        return f

    def same_place(self, first: Value) -> Value:
        """Whether at least two lanes execute and all of them have the address `first`."""
        f = self.f
        same = lane_bits(f, f.icmp("eq", self.where, f.splat(first)))
        several = f.icmp("ne", f.and_(self.mask, f.sub(self.mask, 1)), 0)
        return f.and_(several, f.icmp("eq", f.and_(self.mask, f.not_(same)), 0))

    # ---- generic addresses

    def write_generic(self) -> IRFunction:
        f = self.f
        with f.if_(f.icmp("eq", self.mask, 0)):
            self.finish()
        base, size = (f.field(self.slot, abi.Range, name) for name in ("base", "size"))
        within = inside(f, self.where, f.splat(base), f.splat(size), self.bytes)
        aligned = f.icmp("eq", f.and_(self.where, self.bytes - 1), 0)
        good = lane_bits(f, f.and_(within, aligned))
        pointers = spill(f, self.where)
        allowed, shared = f.variable(self.mask), f.variable(constant("i32", 0))
        with f.if_(f.icmp("ne", f.and_(self.mask, f.not_(good)), 0), unlikely=True):
            lanes, special = resolve(f, pointers, self.mask, self.bytes, atomic=True)
            f.set(allowed, lanes)
            f.set(shared, special)
        with f.else_():
            first = f.load("i64", f.index(pointers, f.cttz(self.mask), 8))
            with f.if_(self.same_place(first)):
                self.change_together(f.convert("inttoptr", first, "ptr"))
                self.finish()
        with f.for_bits(f.get(allowed)) as lane:
            pointer = f.load("ptr", f.index(pointers, lane, 8))
            with f.if_(f.icmp("ne", f.and_(f.lshr(f.get(shared), lane), 1), 0)):
                self.step_plain(pointer, lane)
            with f.else_():
                self.step_atomic(pointer, lane)
        self.finish()
        return f

    def change_together(self, pointer: Value) -> None:
        """All lanes act on one address: one atomic instruction instead of up to 32."""
        f, atomic = self.f, self.atomic
        if atomic.direct and atomic.operation in _REDUCIBLE and self.bits >= 8:
            identity = constant(self.vector, _REDUCIBLE[atomic.operation])
            chosen = f.select(f.bitcast(self.mask, vector_type("i1")), self.b, identity)
            name = f"llvm.vector.reduce.{atomic.operation}.v32i{self.bits}"
            total = f.intrinsic(self.element, name, chosen)
            old = f.atomicrmw(atomic.direct, pointer, total, "seq_cst" if atomic.returns else "monotonic")
            if atomic.returns:
                self.fold(old, in_shared=False)
            return
        self.exchange_loop(pointer, partial(self.fold, in_shared=False))

    def fold(self, old: Value, in_shared: bool) -> Value:
        """What all lanes make of a value, one after another; each keeps what it found."""
        f = self.f
        if self.atomic.kind == "f" and self.bits == 32:
            return self.fold_f32(old, flush=not in_shared)
        value = f.variable(old)
        with f.for_bits(self.mask) as lane:
            found = f.get(value)
            self.keep(lane, found)
            f.set(value, self.atomic.combine(f, found, *self.operands(lane), in_shared=in_shared))
        return f.get(value)

    def fold_f32(self, old: Value, flush: bool) -> Value:
        """`fold` for f32 sums with as little as possible between two additions: NaNs, which stay NaNs, are made
        canonical off that path (global: 182 -> 85 ns for 32 lanes)."""
        f = self.f

        def canonical(x: Value) -> Value:
            return f.bitcast(f.select(f.fcmp("uno", x, x), _NAN_F32, x), "i32")

        start = f.bitcast(old, "float")
        value, kept = f.variable(_flush(f, start) if flush else start), f.variable(old)
        with f.for_bits(self.mask) as lane:
            self.keep(lane, f.get(kept))
            addend = f.bitcast(self.operands(lane)[0], "float")
            total = f.binary("fadd", f.get(value), _flush(f, addend) if flush else addend)
            total = _flush(f, total) if flush else total
            f.set(value, total)
            f.set(kept, canonical(total))
        return f.get(kept)


def write_atomic(
    name: str, target: Target, style: str, shared: str | None, operation: str, kind: str, bits: str
) -> IRFunction:
    """The function of an atomic, from the parts of its name. Raises ValueError where PTX has no such operation."""
    atomic = Atomic(operation, kind, int(bits), bool(shared), style == "atom")
    if kind in _HALF_KINDS:
        legal = atomic.bits == _HALF_KINDS[kind] and operation in ("add", "min", "max")
    elif kind == "f":
        legal = atomic.bits in (32, 64) and operation == "add"
    else:
        legal = atomic.bits <= 64 or operation in ("exch", "cas")
    if not legal:
        raise ValueError(f"no atomic operation {name}")
    writer = _Writer(name, target, atomic)
    return writer.write_shared() if atomic.shared else writer.write_generic()
