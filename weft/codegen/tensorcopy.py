"""Tensor copies out of line: a tensor map's address and coordinates enter, boxes of memory are moved.

A copy is planned, then moved. `weft_tensor_plan` checks the map, clips the box to the tensor, checks that what is left
lies in one live allocation, and fills a TensorPlan; `weft_tensor_load` and `weft_tensor_store` move what a plan
says, `weft_tensor_reduce_OP` combines it with what is in global memory. A box is a list of rows (dimension 0), each a
list of 16-byte chunks; a chunk of row bytes is kept in shared memory at the swizzle of its address.

    i1 weft_tensor_plan(wk, blk, w, lane, site, slots, i64 map, i32 form, ptr coordinates, ptr plan)
        slots: two Ranges, of the map and of the tensor. form: dimensions | mode << 4 (tensormap.TILED ...) | FORM_*.
        coordinates: eight i32. Gives 0 after a fault was recorded.
    void weft_tensor_load(ptr plan)
    void weft_tensor_store(ptr plan)
    i1 weft_tensor_reduce_OP(ptr plan)      0 where the operation is not defined for the map's elements

The plan's `shared` and `offset` are filled in by the caller, once it knows the shared memory.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64

from weft.codegen import abi
from weft.codegen.access import CONTEXT, begin
from weft.codegen.irtext import IRFunction, Value, constant
from weft.codegen.jit import Target
from weft.isa import tensormap as tm

CHUNK = 16
MAX_PIXEL_RANK = 3  # W, H, D
FORM_STORE = 1 << 8  # the copy writes the tensor
FORM_ROWS = 1 << 9  # gather4, scatter4
MODE_SHIFT = 4


class TensorPlan(ctypes.Structure):
    """A copy whose operands have been checked. Counts are in elements along each dimension of the box, and [low, high)
    are those inside the tensor; start is where the box's first element would be."""

    _fields_ = [
        ("shared", c_int64),  # the block's shared memory
        ("offset", c_int64),  # of the box in it
        ("start", c_int64),
        ("step0", c_int64), ("step1", c_int64), ("step2", c_int64), ("step3", c_int64), ("step4", c_int64),
        ("count0", c_int64), ("count1", c_int64), ("count2", c_int64), ("count3", c_int64), ("count4", c_int64),
        ("low0", c_int64), ("low1", c_int64), ("low2", c_int64), ("low3", c_int64), ("low4", c_int64),
        ("high0", c_int64), ("high1", c_int64), ("high2", c_int64), ("high3", c_int64), ("high4", c_int64),
        ("element", c_int64),  # number of the element type
        ("log_bytes", c_int64),  # of an element
        ("total", c_int64),  # bytes of the box
        ("shift", c_int64), ("mask", c_int64), ("flip", c_int64),  # of the swizzle: tensormap.swizzle_rule
        ("fill", c_int64),  # eight bytes of what fills elements outside of the tensor
        ("convert", c_int64),  # CONVERT_* bits
        # im2col: the box's dimension 1 counts pixels; where they are (W, H, D, N), and the tensor around them
        ("pixels", c_int64),  # 0 for a tiled copy
        ("at0", c_int64), ("at1", c_int64), ("at2", c_int64), ("at3", c_int64),
        ("first0", c_int64), ("first1", c_int64), ("first2", c_int64),  # corners of the bounding box
        ("last0", c_int64), ("last1", c_int64), ("last2", c_int64),
        ("move0", c_int64), ("move1", c_int64), ("move2", c_int64),  # traversal strides
        ("shift0", c_int64), ("shift1", c_int64), ("shift2", c_int64),  # im2col offsets
        ("size0", c_int64), ("size1", c_int64), ("size2", c_int64), ("size3", c_int64),
        ("stride0", c_int64), ("stride1", c_int64), ("stride2", c_int64), ("stride3", c_int64),
        ("reserved", c_int64 * 8),
    ]  # fmt: skip


assert ctypes.sizeof(TensorPlan) % 64 == 0, ctypes.sizeof(TensorPlan)
CONVERT_FLUSH, CONVERT_ROUND = 1, 2
PLAN_TYPE = f"[{ctypes.sizeof(TensorPlan)} x i8]"
DIMENSIONS = range(tm.MAX_RANK)
_IR_OF_CODE = {"Q": "i64", "I": "i32", "H": "i16", "h": "i16", "B": "i8"}

# operation -> element types that the reduction takes (PTX ISA, "cp.reduce.async.bulk"), as atomics' (kind, bits).
_INTEGERS = {"u32": ("u", 32), "s32": ("s", 32), "u64": ("u", 64), "s64": ("s", 64)}
_HALVES = {"f16": ("f16", 16), "bf16": ("bf16", 16)}
REDUCTIONS: dict[str, dict[str, tuple[str, int]]] = {
    "add": {**_INTEGERS, **_HALVES, "f32": ("f", 32), "f32.ftz": ("f", 32), "f64": ("f", 64)},
    "min": {**_INTEGERS, **_HALVES}, "max": {**_INTEGERS, **_HALVES},
    "inc": {"u32": ("u", 32)}, "dec": {"u32": ("u", 32)},
    **{op: {name: ("b", bits) for name, (_, bits) in _INTEGERS.items()} for op in ("and", "or", "xor")},
}  # fmt: skip


def plan_field(f: IRFunction, plan: Value, name: str) -> Value:
    return f.field(plan, TensorPlan, name)


def set_plan(f: IRFunction, plan: Value, name: str, value: Value | int) -> None:
    f.set_field(plan, TensorPlan, name, value)


def map_field(f: IRFunction, tensor_map: Value, name: str, index: int = 0) -> Value:
    """A number of a tensor map, widened to 64 bits."""
    offset, code, _ = tm.FIELDS[name]
    type_ = _IR_OF_CODE[code]
    size = int(type_[1:]) // 8
    value = f.load(type_, f.offset(tensor_map, offset + index * size))
    return f.convert("sext" if code == "h" else "zext", value, "i64")


def ceil_divide(f: IRFunction, a: Value, b: Value) -> Value:
    """a / b rounded up; both positive."""
    return f.udiv(f.add(a, f.sub(b, 1)), b)


def smax(f: IRFunction, a: Value, b: Value | int) -> Value:
    return f.intrinsic("i64", "llvm.smax.i64", a, b if isinstance(b, Value) else constant("i64", b))


def smin(f: IRFunction, a: Value, b: Value | int) -> Value:
    return f.intrinsic("i64", "llvm.smin.i64", a, b if isinstance(b, Value) else constant("i64", b))


# ---------------------------------------------------------------- faults
def write_tensor_fault(name: str, target: Target) -> IRFunction:
    """`weft_tensor_fault(wk, blk, w, lane, site, kind, addr, size, map, form, coordinates)`: weft_fault, and what was
    to be copied."""
    parameters = [*CONTEXT, ("i32", "lane"), ("i32", "site"), ("i32", "kind"), ("i64", "addr"), ("i32", "size"),
                  ("i64", "map"), ("i32", "form"), ("ptr", "coordinates")]  # fmt: skip
    f = begin(name, "void", parameters, target, cold=True)
    worker, block, warp, lane, site, kind, address, size, tensor_map, form, coordinates = f.parameters
    launch = f.field(worker, abi.Worker, "launch")
    claimed = f.load("i32", f.field_address(launch, abi.Launch, "fault_claimed"), order="seq_cst")
    f.call("void", "weft_fault", worker, block, warp, kind, site, lane, address, size)
    with f.if_(f.icmp("eq", claimed, 0)):  # two workers that fault at once may mix their words here, nothing worse
        fault = f.field_address(launch, abi.Launch, "fault")
        f.set_field(fault, abi.Fault, "map", tensor_map)
        f.set_field(fault, abi.Fault, "dimensions", form)
        words = "<8 x i32>"
        f.store(f.load(words, coordinates, align=4), f.field_address(fault, abi.Fault, "coordinates"), align=4)
    return f


class _Planner:
    """weft_tensor_plan under construction."""

    def __init__(self, name: str, target: Target):
        parameters = [*CONTEXT, ("i32", "lane"), ("i32", "site"), ("ptr", "slots"), ("i64", "map"), ("i32", "form"),
                      ("ptr", "coordinates"), ("ptr", "plan")]  # fmt: skip
        self.f = begin(name, "i1", parameters, target)
        (self.worker, self.block, self.warp, self.lane, self.site, self.slots, self.map, self.form, self.coordinates,
         self.plan) = self.f.parameters  # fmt: skip

    def fail(self, kind: abi.FaultKind, address: Value, size: int | Value) -> None:
        f = self.f
        size = constant("i32", size) if isinstance(size, int) else size
        f.call("void", "weft_tensor_fault", self.worker, self.block, self.warp, self.lane, self.site,
               constant("i32", int(kind)), address, size, self.map, self.form, self.coordinates)  # fmt: skip
        f.ret(constant("i1", 0))

    def refuse_if(self, condition: Value, reason: int) -> None:
        with self.f.if_(condition, unlikely=True):
            self.fail(abi.FaultKind.TENSOR_MAP, self.map, reason)

    def write(self) -> IRFunction:
        f = self.f
        self.find_map()
        tensor_map = self.pointer = f.convert("inttoptr", self.map, "ptr")
        self.check_map(tensor_map)
        self.describe_elements()
        self.lay_out_box()
        self.check_box()
        with f.if_(f.icmp("eq", self.mode, tm.IM2COL)):
            self.lay_out_pixels()
        f.ret(constant("i1", 1))
        return f

    def find_map(self) -> None:
        f = self.f
        self.refuse_if(f.icmp("ne", f.and_(self.map, tm.ALIGN - 1), 0), 2)
        base, size = f.field(self.slots, abi.Range, "base"), f.field(self.slots, abi.Range, "size")
        last = f.usub_sat(size, tm.BYTES - 1)
        with f.if_(f.icmp("uge", f.sub(self.map, base), last), unlikely=True):
            found = f.call("i1", "weft_find_range", self.worker, self.map, constant("i64", tm.BYTES), self.slots)
            with f.if_(f.not_(found), unlikely=True):
                self.fail(abi.FaultKind.ADDRESS, self.map, tm.BYTES)

    def field(self, name: str, index: int = 0) -> Value:
        return map_field(self.f, self.pointer, name, index)

    def check_map(self, tensor_map: Value) -> None:
        """tensormap.refuse, on the map in memory."""
        f = self.f
        self.refuse_if(f.icmp("ne", self.field("tag"), tm.TAG), 1)
        self.dimensions = f.zext(f.and_(self.form, 15), "i64")
        self.mode = f.zext(f.and_(f.lshr(self.form, MODE_SHIFT), 15), "i64")
        self.rank = f.add(self.field("rank"), 1)
        self.refuse_if(f.icmp("ne", self.rank, self.dimensions), 3)
        self.refuse_if(f.icmp("ne", self.field("mode"), self.mode), 4)
        needed = f.variable(constant("i64", tm.needed_bits(1)))
        for i in range(1, tm.MAX_RANK):
            with f.if_(f.icmp("ugt", self.rank, i)):
                f.set(needed, tm.needed_bits(i + 1))
        self.refuse_if(f.icmp("ne", f.and_(self.field("present"), f.get(needed)), f.get(needed)), 5)
        self.element, self.interleave = self.field("element"), self.field("interleave")
        self.swizzle, atomicity, fill = self.field("swizzle"), self.field("atomicity"), self.field("fill")
        bad = f.icmp("uge", self.element, tm.ELEMENT_NUMBER["b4x16"])
        for value, count in ((self.interleave, len(tm.INTERLEAVE_BYTES)), (self.swizzle, len(tm.SWIZZLE_BYTES)),
                             (atomicity, len(tm.ATOMICITY)), (fill, 2)):  # fmt: skip
            bad = f.or_(bad, f.icmp("uge", value, count))
        bad = f.or_(bad, f.and_(f.icmp("ne", atomicity, 0), f.icmp("ne", self.swizzle, 3)))
        interleaved = self.interleaved = f.icmp("ne", self.interleave, 0)
        bad = f.or_(bad, f.and_(interleaved, f.icmp("ult", self.rank, 3)))
        floats = sum(1 << number for number, (_, _, kind) in enumerate(tm.ELEMENTS) if kind == "f")
        is_float = f.trunc(f.lshr(constant("i64", floats), f.and_(self.element, 63)), "i1")
        self.refuse_if(f.or_(bad, f.and_(f.icmp("ne", fill, 0), f.not_(is_float))), 10)
        self.atomicity, self.fill = atomicity, fill
        rows = f.icmp("ne", f.and_(self.form, FORM_ROWS), 0)
        with f.if_(rows):
            self.refuse_if(f.or_(interleaved, f.icmp("ne", self.field("box", 1), 1)), 13)
        with f.if_(f.icmp("ne", f.and_(self.form, FORM_STORE), 0)):
            self.refuse_if(f.icmp("eq", atomicity, 2), 14)
        wide = f.select(f.icmp("eq", self.interleave, 2), constant("i64", 31), constant("i64", 15))
        self.refuse_if(f.icmp("ne", f.and_(self.field("address"), wide), 0), 6)
        self.slice_mask = wide

    def describe_elements(self) -> None:
        f, plan = self.f, self.plan
        logs = sum((bits // 8).bit_length() - 1 << 4 * number for number, (_, bits, _) in enumerate(tm.ELEMENTS)
                   if bits >= 8)  # fmt: skip
        self.log = f.and_(f.lshr(constant("i64", logs), f.shl(self.element, 2)), 15)
        self.bytes = f.shl(constant("i64", 1), self.log)
        set_plan(f, plan, "element", self.element)
        set_plan(f, plan, "log_bytes", self.log)
        fill, convert = f.variable(constant("i64", 0)), f.variable(constant("i64", 0))
        with f.if_(f.icmp("ne", self.fill, 0)):
            f.set(fill, 0x7FFF_FFFF_7FFF_FFFF)
            for name in ("f16", "bf16"):
                with f.if_(f.icmp("eq", self.element, tm.ELEMENT_NUMBER[name])):
                    f.set(fill, 0x7FFF_7FFF_7FFF_7FFF)
            with f.if_(f.icmp("eq", self.element, tm.ELEMENT_NUMBER["f64"])):
                f.set(fill, (1 << 63) - 1)
        for name in dict.fromkeys((*tm.FLUSHES, *tm.ROUNDS)):
            bits = CONVERT_FLUSH * (name in tm.FLUSHES) | CONVERT_ROUND * (name in tm.ROUNDS)
            with f.if_(f.icmp("eq", self.element, tm.ELEMENT_NUMBER[name])):
                f.set(convert, bits)
        set_plan(f, plan, "fill", f.get(fill))
        set_plan(f, plan, "convert", f.get(convert))
        set_plan(f, plan, "pixels", 0)
        shift, mask, flip = (f.variable(constant("i64", 0)) for _ in range(3))
        for mode in range(1, len(tm.SWIZZLE_BYTES)):
            for atom in range(len(tm.ATOMICITY) if mode == 3 else 1):
                chosen = f.and_(f.icmp("eq", self.swizzle, mode), f.icmp("eq", self.atomicity, atom))
                with f.if_(chosen):
                    for variable, value in zip((shift, mask, flip), tm.swizzle_rule(mode, atom)):
                        f.set(variable, int(value))
        for field, variable in (("shift", shift), ("mask", mask), ("flip", flip)):
            set_plan(f, plan, field, f.get(variable))

    def lay_out_box(self) -> None:
        """Counts, steps and clipping of every dimension; dimensions that the tensor does not have count one element.
        In an im2col map all but dimension 0 are done by lay_out_pixels."""
        f, plan = self.f, self.plan
        one, none = constant("i64", 1), constant("i64", 0)
        start = f.variable(self.field("address"))
        for i in DIMENSIONS:
            names = [f"{what}{i}" for what in ("count", "step", "low", "high")]
            for field, neutral in zip(names, (1, 0, 0, 1)):
                set_plan(f, plan, field, neutral)
            there = f.icmp("ugt", self.rank, i)
            if i:
                there = f.and_(there, f.icmp("eq", self.mode, tm.TILED))
            with f.if_(there):
                box, step = self.field("box", i), self.field("element_strides", i)
                if i == 0:
                    step = f.select(self.interleaved, step, one)
                bad = f.icmp("ugt", f.sub(box, 1), tm.MAX_BOX - 1)
                bad = f.or_(bad, f.icmp("ugt", f.sub(step, 1), tm.MAX_ELEMENT_STRIDE - 1))
                self.refuse_if(bad, 8)
                stride = self.bytes if i == 0 else self.stride(i)
                at = f.convert("sext", f.load("i32", f.offset(self.coordinates, 4 * i)), "i64")
                size = f.add(self.field("sizes", i), 1)
                count = ceil_divide(f, box, step)
                before = smax(f, f.sub(none, at), 0)
                low = ceil_divide(f, before, step)
                left = smax(f, f.sub(size, at), 0)
                high = smin(f, ceil_divide(f, left, step), count)
                f.set(start, f.add(f.get(start), f.mul(at, stride)))
                for field, value in zip(names, (count, f.mul(stride, step), low, high)):
                    set_plan(f, plan, field, value)
        set_plan(f, plan, "start", f.get(start))
        row = f.shl(self.field("box"), self.log)
        limit = f.variable(constant("i64", tm.MAX_BOX * 8))
        for mode, span in enumerate(tm.SWIZZLE_BYTES):
            if span:
                with f.if_(f.icmp("eq", self.swizzle, mode)):
                    f.set(limit, span)
        plain = f.or_(f.icmp("ne", f.and_(row, 15), 0), f.icmp("ugt", row, f.get(limit)))
        sliced = f.icmp("ne", row, f.add(self.slice_mask, 1))
        self.refuse_if(f.select(self.interleaved, sliced, plain), 9)

    def stride(self, i: int) -> Value:
        """Checked stride of dimension i, in bytes."""
        f = self.f
        stride = self.field("strides", i - 1)
        bad = f.or_(f.icmp("ne", f.and_(stride, self.slice_mask), 0), f.icmp("uge", stride, tm.STRIDE_LIMIT))
        self.refuse_if(bad, 7)
        return stride

    def check_box(self) -> None:
        """What is inside the tensor must lie in one allocation. Sets the total; im2col copies check rows later."""
        f, plan = self.f, self.plan
        total = f.shl(constant("i64", 1), self.log)
        first, last = plan_field(f, plan, "start"), plan_field(f, plan, "start")
        some = constant("i1", 1)
        for i in DIMENSIONS:
            count, step, low, high = (plan_field(f, plan, f"{what}{i}") for what in ("count", "step", "low", "high"))
            total = f.mul(total, count)
            some = f.and_(some, f.icmp("slt", low, high))
            first = f.add(first, f.mul(low, step))
            last = f.add(last, f.mul(f.sub(high, 1), step))
        set_plan(f, plan, "total", total)
        tiled = f.icmp("eq", self.mode, tm.TILED)
        with f.if_(f.and_(some, tiled)):
            self.check_range(first, f.add(f.sub(last, first), self.bytes))

    def check_range(self, first: Value, length: Value) -> None:
        f = self.f
        slot = f.offset(self.slots, ctypes.sizeof(abi.Range))
        base, size = f.field(slot, abi.Range, "base"), f.field(slot, abi.Range, "size")
        outside = f.icmp("uge", f.sub(first, base), f.usub_sat(size, f.sub(length, 1)))
        with f.if_(outside, unlikely=True):
            found = f.call("i1", "weft_find_range", self.worker, first, length, slot)
            with f.if_(f.not_(found), unlikely=True):
                most = f.trunc(smin(f, length, (1 << 31) - 1), "i32")
                self.fail(abi.FaultKind.TENSOR, first, most)

    def lay_out_pixels(self) -> None:
        """im2col: the first pixel, the bounding box, and a check of the whole tensor's range."""
        f, plan = self.f, self.plan
        pixels = self.field("pixels")
        set_plan(f, plan, "pixels", pixels)
        set_plan(f, plan, "count1", pixels)
        set_plan(f, plan, "total", f.mul(f.shl(self.field("box"), self.log), pixels))
        images = f.sub(self.rank, 1)  # the dimension of N
        set_plan(f, plan, "start", self.field("address"))
        at = f.convert("sext", f.load("i32", self.coordinates), "i64")
        set_plan(f, plan, "at3", 0)
        last = f.variable(self.field("address"))
        size = f.add(self.field("sizes"), 1)
        f.set(last, f.add(f.get(last), f.shl(size, self.log)))
        set_plan(f, plan, "start", f.add(self.field("address"), f.shl(at, self.log)))
        for i in range(MAX_PIXEL_RANK):
            for field in ("at", "first", "last", "shift"):
                set_plan(f, plan, f"{field}{i}", 0)
            set_plan(f, plan, f"move{i}", 1)
            set_plan(f, plan, f"size{i}", 1)
            set_plan(f, plan, f"stride{i}", 0)
            with f.if_(f.icmp("ugt", images, i + 1)):
                size = f.add(self.field("sizes", i + 1), 1)
                at = f.convert("sext", f.load("i32", f.offset(self.coordinates, 4 * (i + 1))), "i64")
                shift = f.load("i32", f.offset(self.coordinates, 4 * (tm.MAX_RANK + i)))
                step = self.field("element_strides", i + 1)
                self.refuse_if(f.icmp("ugt", f.sub(step, 1), tm.MAX_ELEMENT_STRIDE - 1), 8)
                stride = self.stride(i + 1)
                set_plan(f, plan, f"at{i}", at)
                set_plan(f, plan, f"first{i}", self.field("lower", i))
                set_plan(f, plan, f"last{i}", f.add(f.sub(size, 1), self.field("upper", i)))
                set_plan(f, plan, f"shift{i}", f.zext(shift, "i64"))
                set_plan(f, plan, f"move{i}", step)
                set_plan(f, plan, f"size{i}", size)
                set_plan(f, plan, f"stride{i}", stride)
                f.set(last, f.add(f.get(last), f.mul(f.sub(size, 1), stride)))
        for i in range(2, tm.MAX_RANK):
            with f.if_(f.icmp("eq", images, i)):
                size = f.add(self.field("sizes", i), 1)
                at = f.convert("sext", f.load("i32", f.offset(self.coordinates, 4 * i)), "i64")
                stride = self.stride(i)
                set_plan(f, plan, "at3", at)
                set_plan(f, plan, "size3", size)
                set_plan(f, plan, "stride3", stride)
                f.set(last, f.add(f.get(last), f.mul(f.sub(size, 1), stride)))
        first = self.field("address")
        self.check_range(first, f.sub(f.get(last), first))


def write_tensor_plan(name: str, target: Target) -> IRFunction:
    return _Planner(name, target).write()


# ---------------------------------------------------------------- moving
class _Mover:
    """A function that visits the rows of a plan's box: weft_tensor_load, _store or _reduce_OP."""

    def __init__(self, name: str, target: Target, what: str, operation: str = ""):
        self.what, self.operation = what, operation
        self.f = begin(name, "i1" if what == "reduce" else "void", [("ptr", "plan")], target)
        (self.plan,) = self.f.parameters
        f = self.f
        self.p = {field: plan_field(f, self.plan, field) for field in (
            "shared", "offset", "start", "element", "log_bytes", "shift", "mask", "flip", "fill", "convert",
            *(f"{what}{i}" for what in ("step", "count", "low", "high") for i in DIMENSIONS),
        )}  # fmt: skip
        self.shared = f.convert("inttoptr", self.p["shared"], "ptr")
        self.row_bytes = f.shl(self.p["count0"], self.p["log_bytes"])
        self.one_byte = f.shl(constant("i64", 1), self.p["log_bytes"])
        self.contiguous = f.icmp("eq", self.p["step0"], self.one_byte)

    def write(self) -> IRFunction:
        f, p = self.f, self.p
        if self.what == "reduce":
            self.choose_reduction()
        place = f.variable(p["offset"])
        whole = f.and_(f.icmp("eq", p["low0"], 0), f.icmp("eq", p["high0"], p["count0"]))
        whole = f.and_(whole, self.contiguous)
        whole = f.and_(whole, f.icmp("eq", f.or_(p["flip"], p["convert"]), 0))
        with f.if_(f.icmp("ne", plan_field(f, self.plan, "pixels"), 0)):
            self.visit_pixels(place, whole)
            self.finish()
        with f.else_():
            self.visit_box(place, whole)
        self.finish()
        return f

    def finish(self) -> None:
        if self.what == "reduce":
            self.f.ret(constant("i1", 1))
        else:
            self.f.ret()

    def visit_box(self, place, whole: Value) -> None:
        f, p = self.f, self.p
        zero = constant("i64", 0)

        def loop(i: int, row: Value, inside: Value) -> None:
            with f.for_range(zero, p[f"count{i}"]) as j:
                here = f.add(row, f.mul(j, p[f"step{i}"]))
                within = f.and_(f.icmp("sge", j, p[f"low{i}"]), f.icmp("slt", j, p[f"high{i}"]))
                both = f.and_(inside, within)
                if i > 1:
                    loop(i - 1, here, both)
                else:
                    self.visit_row(here, f.get(place), both, whole)
                    f.set(place, f.add(f.get(place), self.row_bytes))

        loop(4, p["start"], constant("i1", 1))

    def visit_pixels(self, place, whole: Value) -> None:
        """im2col: pixels one after another along W, H, D and N, each within the bounding box."""
        f, plan = self.f, self.plan
        q = {field[0]: plan_field(f, plan, field[0]) for field in TensorPlan._fields_[:-1] if field[0][-1].isdigit()}
        at = [f.variable(q[f"at{i}"]) for i in range(4)]
        with f.for_range(constant("i64", 0), plan_field(f, plan, "pixels")):
            row, inside = self.p["start"], constant("i1", 1)
            for i in range(4):
                where = f.get(at[i])
                if i < MAX_PIXEL_RANK:
                    where = f.add(where, q[f"shift{i}"])
                inside = f.and_(inside, f.icmp("ult", where, q[f"size{i}"]))
                row = f.add(row, f.mul(where, q[f"stride{i}"]))
            self.visit_row(row, f.get(place), inside, whole)
            f.set(place, f.add(f.get(place), self.row_bytes))
            self.advance(at, q, 0)

    def advance(self, at, q, i: int) -> None:
        f = self.f
        if i == MAX_PIXEL_RANK:
            f.set(at[3], f.add(f.get(at[3]), 1))
            return
        f.set(at[i], f.add(f.get(at[i]), q[f"move{i}"]))
        with f.if_(f.icmp("sgt", f.get(at[i]), q[f"last{i}"])):
            f.set(at[i], q[f"first{i}"])
            self.advance(at, q, i + 1)

    # ---- rows
    def visit_row(self, row: Value, place: Value, inside: Value, whole: Value) -> None:
        """The row whose first element is at `row` (global) and at `place` (offset in shared memory, unswizzled)."""
        f, p = self.f, self.p
        if self.what == "reduce":
            with f.if_(inside):
                self.visit_chunks(row, place, self.reduce_chunk)
            return
        with f.if_(f.and_(inside, whole)):
            wide = f.and_(f.icmp("eq", self.row_bytes, 128), f.icmp("eq", p["mask"], 0x70))
            wide = f.and_(wide, f.icmp("eq", f.and_(place, 127), 0))
            with f.if_(wide):
                self.move_line(row, place)
            with f.else_():
                with f.if_(f.icmp("eq", p["mask"], 0)):
                    self.copy(row, f.offset(self.shared, place), self.row_bytes)
                with f.else_():
                    self.visit_chunks(row, place, self.move_chunk)
        with f.else_():
            if self.what == "store":
                with f.if_(inside):
                    self.visit_chunks(row, place, self.store_part)
            else:
                with f.if_(inside):
                    self.visit_chunks(row, place, self.load_part)
                with f.else_():
                    self.visit_chunks(row, place, self.fill_chunk)

    def copy(self, address: Value, shared: Value, size: Value) -> None:
        f = self.f
        pointer = f.convert("inttoptr", address, "ptr")
        source, destination = (pointer, shared) if self.what == "load" else (shared, pointer)
        f.intrinsic("void", "llvm.memcpy.p0.p0.i64", destination, source, size, constant("i1", 0))

    def move_line(self, row: Value, place: Value) -> None:
        """128 bytes at once: the 16-byte chunks of a line change places by one exclusive or."""
        f = self.f
        pointer = f.convert("inttoptr", row, "ptr")
        line = f.offset(self.shared, place)
        turn = f.and_(f.lshr(place, 3), 0x70)
        for k in range(8):
            here, there = f.offset(pointer, CHUNK * k), f.offset(line, f.xor(turn, CHUNK * k))
            self.move(here, there)

    def move(self, pointer: Value, shared: Value) -> None:
        f = self.f
        if self.what == "load":
            f.store(f.load("<2 x i64>", pointer, align=1), shared, align=CHUNK)
        else:
            f.store(f.load("<2 x i64>", shared, align=CHUNK), pointer, align=1)

    def visit_chunks(self, row: Value, place: Value, act) -> None:
        """act(offset in the row, address of the chunk in global memory, place in shared memory, unswizzled place)."""
        f, p = self.f, self.p
        with f.for_range(constant("i64", 0), self.row_bytes, CHUNK) as at:
            here = f.add(place, at)
            turned = f.xor(here, f.and_(f.lshr(here, p["shift"]), p["mask"]))
            act(at, row, f.offset(self.shared, turned), here)

    def move_chunk(self, at: Value, row: Value, shared: Value, place: Value) -> None:
        self.move(self.f.convert("inttoptr", self.f.add(row, at), "ptr"), shared)

    def fill_chunk(self, at: Value, row: Value, shared: Value, place: Value) -> None:
        f = self.f
        f.store(self.p["fill"], shared, align=8)
        f.store(self.p["fill"], f.offset(shared, 8), align=8)

    def inside_bytes(self) -> tuple[Value, Value]:
        """[low, high) of the row's bytes that are inside the tensor."""
        f, p = self.f, self.p
        return f.shl(p["low0"], p["log_bytes"]), f.shl(p["high0"], p["log_bytes"])

    def byte_address(self, row: Value, b: Value) -> Value:
        """Where byte b of a row is in global memory, elements being step0 apart."""
        f, p = self.f, self.p
        element = f.mul(f.lshr(b, p["log_bytes"]), p["step0"])
        return f.convert("inttoptr", f.add(row, f.add(element, f.and_(b, f.sub(self.one_byte, 1)))), "ptr")

    def load_part(self, at: Value, row: Value, shared: Value, place: Value) -> None:
        """A chunk that is partly outside of the tensor, is not contiguous, or is to be converted."""
        f, p = self.f, self.p
        low, high = self.inside_bytes()
        chunk = f.alloca("[16 x i8]", align=16)
        f.store(p["fill"], chunk, align=16)
        f.store(p["fill"], f.offset(chunk, 8), align=8)
        end = f.add(at, CHUNK)
        full = f.and_(self.contiguous, f.and_(f.icmp("sle", low, at), f.icmp("sle", end, high)))
        with f.if_(full):
            source = f.convert("inttoptr", f.add(row, at), "ptr")
            f.store(f.load("<2 x i64>", source, align=1), chunk, align=CHUNK)
        with f.else_():
            first, last = smax(f, at, low), smin(f, end, high)
            with f.for_range(first, last) as b:
                f.store(f.load("i8", self.byte_address(row, b)), f.offset(chunk, f.sub(b, at)))
        with f.if_(f.icmp("ne", p["convert"], 0)):
            self.convert(chunk)
        with f.if_(f.icmp("ne", f.and_(p["flip"], f.lshr(place, 7)), 0)):
            words = f.load("<2 x i64>", chunk, align=CHUNK)
            f.store(f.shuffle(words, None, [1, 0]), chunk, align=CHUNK)
        f.store(f.load("<2 x i64>", chunk, align=CHUNK), shared, align=CHUNK)

    def convert(self, chunk: Value) -> None:
        """f32 elements to what the map's type keeps of them: subnormals flushed, tf32 rounded to nearest even."""
        f, p = self.f, self.p
        for i in range(4):
            place = f.offset(chunk, 4 * i)
            word = f.variable(f.load("i32", place))
            magnitude = f.and_(f.get(word), 0x7FFF_FFFF)
            with f.if_(f.icmp("ne", f.and_(p["convert"], CONVERT_FLUSH), 0)):
                with f.if_(f.icmp("ult", magnitude, 0x0080_0000)):
                    f.set(word, f.and_(f.get(word), -(1 << 31)))
            number = f.icmp("ult", magnitude, 0x7F80_0000)
            with f.if_(f.and_(number, f.icmp("ne", f.and_(p["convert"], CONVERT_ROUND), 0))):
                odd = f.and_(f.lshr(f.get(word), 13), 1)
                f.set(word, f.and_(f.add(f.get(word), f.add(odd, 0xFFF)), -(1 << 13)))
            f.store(f.get(word), place)

    def store_part(self, at: Value, row: Value, shared: Value, place: Value) -> None:
        f = self.f
        low, high = self.inside_bytes()
        end = f.add(at, CHUNK)
        full = f.and_(self.contiguous, f.and_(f.icmp("sle", low, at), f.icmp("sle", end, high)))
        with f.if_(full):
            self.move_chunk(at, row, shared, place)
        with f.else_():
            with f.for_range(smax(f, at, low), smin(f, end, high)) as b:
                f.store(f.load("i8", f.offset(shared, f.sub(b, at))), self.byte_address(row, b))

    # ---- reductions
    def choose_reduction(self) -> None:
        f = self.f
        function = f.variable(Value("ptr", "null"))
        for name, (kind, bits) in REDUCTIONS[self.operation].items():
            with f.if_(f.icmp("eq", self.p["element"], tm.ELEMENT_NUMBER[name])):
                f.set(function, f.function_pointer(f"weft_bulk_{self.operation}_{kind}_i{bits}"))
        self.reduction = f.get(function)
        with f.if_(f.icmp("eq", self.reduction, 0)):
            f.ret(constant("i1", 0))

    def reduce_chunk(self, at: Value, row: Value, shared: Value, place: Value) -> None:
        f, p = self.f, self.p
        low, high = self.inside_bytes()
        first, last = smax(f, at, low), smin(f, f.add(at, CHUNK), high)
        with f.if_(self.contiguous):
            with f.if_(f.icmp("slt", first, last)):
                count = f.lshr(f.sub(last, first), p["log_bytes"])
                source = f.offset(shared, f.sub(first, at))
                f.call_pointer("void", self.reduction, self.byte_address(row, first), source, count)
        with f.else_():
            count = f.lshr(smax(f, f.sub(last, first), 0), p["log_bytes"])
            with f.for_range(constant("i64", 0), count) as i:
                b = f.add(first, f.shl(i, p["log_bytes"]))
                source = f.offset(shared, f.sub(b, at))
                f.call_pointer("void", self.reduction, self.byte_address(row, b), source, constant("i64", 1))


def write_tensor_move(name: str, target: Target, what: str) -> IRFunction:
    return _Mover(name, target, what).write()


def write_tensor_reduce(name: str, target: Target, operation: str) -> IRFunction:
    return _Mover(name, target, "reduce", operation).write()
