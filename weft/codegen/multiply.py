"""Support functions that multiply the matrices of a warp: the form enters in the function's name, an IRFunction leaves.

    void weft_multiply.FORM(ptr at)

`at` is a workspace laid out by `Workspace`: the registers of A, B and C (and of the sparsity metadata and the scales),
each as 32 words in lane order; the registers of D are written behind them. The function puts the matrices in row-major
order by tables of places, multiplies, and puts D's elements back. It is the simple path: correct for every form. What
is common runs through codegen/microkernels.py instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from weft.codegen.access import begin
from weft.codegen.irtext import IRFunction, Value, constant, vector_type
from weft.codegen.jit import Target
from weft.isa import rounding
from weft.isa.fragments import LANES, TYPE_BITS, MultiplyForm, fragment
from weft.isa.products import element_value

PREFIX = "weft_multiply."
WORKSPACE_BYTES = 16384
_LOOKED_UP = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")


def multiply_name(form: MultiplyForm) -> str:
    """The support function of a form."""
    return PREFIX + ".".join(str(getattr(form, field.name)).lower() or "-" for field in fields(form))


def form_named(text: str) -> MultiplyForm:
    """The inverse of `multiply_name`, without its prefix."""
    readers = {"int": int, "bool": lambda word: word == "true", "str": lambda word: "" if word == "-" else word}
    words = text.split(".")
    return MultiplyForm(**{f.name: readers[str(f.type)](word) for f, word in zip(fields(MultiplyForm), words)})


@dataclass(frozen=True)
class Workspace:
    """Where a form's registers lie in the workspace, in bytes."""

    form: MultiplyForm

    def bytes_of(self, operand: str) -> int:
        """Bytes of one register of an operand (32 lanes)."""
        if operand in ("metadata", "scale_a", "scale_b"):
            return 4 * LANES
        return fragment(self.form, operand).register_bits // 8 * LANES

    @cached_property
    def offsets(self) -> dict[str, int]:
        """First byte of each operand."""
        found = {}
        at = 0
        names = ["a", "b", "c"]
        if self.form.sparse:
            names.append("metadata")
        if self.form.scale_type:
            names += ["scale_a", "scale_b"]
        for name in (*names, "d"):
            found[name] = at
            count = fragment(self.form, name).registers if name in ("a", "b", "c", "d") else 1
            at += count * self.bytes_of(name)
        assert at <= WORKSPACE_BYTES, (self.form, at)
        return found


class Tabled(IRFunction):
    """A function with constant tables of its own."""

    def __init__(self, function: IRFunction):
        self.__dict__ = function.__dict__
        self.tables: list[str] = []

    def table(self, type_: str, items: Sequence[str]) -> Value:
        """A pointer to a constant array."""
        name = f"@{self.name}.table{len(self.tables)}"
        body = ", ".join(f"{type_} {item}" for item in items)
        self.tables.append(f"{name} = internal unnamed_addr constant [{len(items)} x {type_}] [{body}], align 64\n")
        return Value("ptr", name)

    def text(self) -> str:
        return "".join(self.tables) + super().text()

    def store_vector(self, value: Value, pointer: Value, align: int) -> None:
        self.store(value, pointer, align=align)


def write_multiply(name: str, target: Target, text: str) -> IRFunction:
    """The support function of the form that `text` names."""
    return _Writer(Tabled(begin(name, "void", [("ptr", "at")], target)), form_named(text)).write()


class _Writer:
    """Writes one function. Element types in memory: float, double or i32, row by row."""

    def __init__(self, function: Tabled, form: MultiplyForm):
        self.f, self.form = function, form
        self.at = function.parameters[0]
        self.space = Workspace(form)
        self.bits = form.operation != "multiply"
        if form.d_type == "s32":
            self.element = "i32"
        elif form.d_type == "f64" or form.scale_type:
            self.element = "double"
        else:
            self.element = "float"
        self.total = "i64" if form.saturate else self.element
        if form.scale_type:
            self.total = "float"

    @staticmethod
    def size(type_: str) -> int:
        return {"float": 4, "double": 8, "i32": 4, "i64": 8}[type_]

    def write(self) -> IRFunction:
        f, form = self.f, self.form
        if self.bits:
            left, right = self._words("a"), self._words("b")
            inner = form.k // 32
        else:
            left, right = self._unpack("a"), self._unpack("b")
            inner = form.stored_k
        sums = self._unpack("c")
        vector = vector_type(self.total, form.n)
        row_bytes = form.n * self.size(self.total)
        brow_bytes = form.n * self.size(self.element)
        zero = constant("i64", 0)
        with f.for_range(zero, form.parts) as part:
            a_part = f.index(left, part, form.m * inner * self.size(self.element))
            b_part = f.index(right, part, form.k * brow_bytes)
            c_part = f.index(sums, part, form.m * row_bytes)
            with f.for_range(zero, form.m) as i:
                a_row = f.index(a_part, i, inner * self.size(self.element))
                c_row = f.index(c_part, i, row_bytes)
                total = f.variable(f.load(vector, c_row, align=4))
                with f.for_range(zero, inner) as k:
                    x = f.load(self.element, f.index(a_row, k, self.size(self.element)))
                    y = f.load(vector_type(self.element, form.n), f.index(b_part, k, brow_bytes), align=4)
                    f.set(total, self._step(f.splat(x, form.n), y, f.get(total)))
                f.store(f.get(total), c_row, align=4)
        self._put_back(sums)
        f.ret()
        return f

    def _step(self, x: Value, y: Value, total: Value) -> Value:
        """total + x * y for a row of n columns."""
        f, form = self.f, self.form
        if self.bits:
            both = f.and_(x, y) if form.operation == "and" else f.xor(x, y)
            count = f.intrinsic(both.type, f"llvm.ctpop.v{form.n}i32", both)
            return f.add(total, count)
        if self.element == "i32":
            product = f.mul(x, y)
            if form.saturate:
                product = f.convert("sext", product, total.type)
            return f.add(total, product)
        letter = "f64" if self.element == "double" else "f32"
        return f.intrinsic(total.type, f"llvm.fma.v{form.n}{letter}", x, y, total)

    # ------------------------------------------------------------ in and out
    def _places(self, operand: str, unit: int) -> list[int]:
        """For each element in row-major order (part, row, column), its place in the workspace in units of bits."""
        piece = fragment(self.form, operand)
        lane, element = piece.place(self.form.matrix_shape(operand), self.form.parts)
        register, within = element // piece.per_register, element % piece.per_register
        at = 8 * self.space.offsets[operand] + 8 * register * self.space.bytes_of(operand)
        at = at + lane * piece.register_bits + within * piece.element_bits
        assert not (at % unit).any()
        return (at // unit).reshape(-1).tolist()

    def _pointer(self, table: Value, i: Value, stride: int) -> Value:
        place = self.f.load("i16", self.f.index(table, i, 2))
        return self.f.index(self.at, self.f.zext(place, "i64"), stride)

    def _unpack(self, operand: str) -> Value:
        """The matrix as numbers, row by row."""
        f, form = self.f, self.form
        type_ = form.type_of(operand)
        element = self.total if operand == "c" else self.element
        bits = form.container_bits(operand)
        unit = min(bits, 8) if bits < 8 else bits
        places = self._places(operand, unit)
        table = f.table("i16", [str(x) for x in places])
        matrix = f.alloca(f"[{len(places)} x {element}]", align=64)
        values = self._value_table(operand, element) if type_ in _LOOKED_UP else None
        with f.for_range(constant("i64", 0), len(places)) as i:
            if bits == 4:
                place = f.load("i16", f.index(table, i, 2))
                byte = f.load("i8", f.index(self.at, f.zext(f.lshr(place, 1), "i64"), 1))
                pattern = f.and_(f.lshr(byte, f.trunc(f.shl(f.and_(place, 1), 2), "i8")), 15)
            else:
                pattern = f.load(f"i{bits}", self._pointer(table, i, bits // 8), align=bits // 8)
            if values is not None:
                number = f.load(element, f.index(values, f.zext(pattern, "i64"), self.size(element)))
            else:
                number = self._number(type_, pattern, element)
            f.store(number, f.index(matrix, i, self.size(element)))
        return matrix

    def _value_table(self, operand: str, element: str) -> Value:
        """Numbers of all patterns of a small floating-point type."""
        bits = self.form.container_bits(operand)
        items = []
        for pattern in range(1 << bits):
            exact = element_value(self.form, operand, pattern)
            items.append(f"0x{rounding.pack('f64', exact):016X}")
        return self.f.table(element, items)

    def _number(self, type_: str, pattern: Value, element: str) -> Value:
        f = self.f
        if type_ in ("s8", "s4", "u8", "u4", "s32"):
            if type_ == "s4":
                wide = f.shl(f.zext(pattern, element), 28)
                return f.binary("ashr", wide, 28)
            return f.convert("sext" if type_[0] == "s" else "zext", pattern, element)
        if type_ == "f64":
            return f.bitcast(pattern, "double")
        if type_ == "f16":
            number = f.convert("fpext", f.bitcast(pattern, "half"), "float")
        elif type_ == "bf16":
            number = f.bitcast(f.shl(f.zext(pattern, "i32"), 16), "float")
        elif type_ == "tf32":
            number = f.bitcast(f.and_(pattern, -(1 << 13)), "float")
        else:
            assert type_ == "f32", type_
            number = f.bitcast(pattern, "float")
        return number if element == "float" else f.convert("fpext", number, element)

    def _words(self, operand: str) -> Value:
        """Single bits, 32 of a row of A (or of a column of B) to a word; B with its words in rows."""
        f, form = self.f, self.form
        piece = fragment(form, operand)
        lane, element = piece.place(form.matrix_shape(operand))
        along = (slice(None), slice(None), slice(0, None, 32)) if operand == "a" else (slice(None), slice(0, None, 32))
        lane, element = lane[along], element[along]
        assert not (element % 32).any()
        at = self.space.offsets[operand] // 4 + element // 32 * LANES + lane
        places = np.asarray(at).reshape(-1).tolist()
        table = f.table("i16", [str(x) for x in places])
        matrix = f.alloca(f"[{len(places)} x i32]", align=64)
        with f.for_range(constant("i64", 0), len(places)) as i:
            f.store(f.load("i32", self._pointer(table, i, 4), align=4), f.index(matrix, i, 4))
        return matrix

    def _put_back(self, sums: Value) -> None:
        """D's elements to their places."""
        f, form = self.f, self.form
        bits = TYPE_BITS[form.d_type]
        places = self._places("d", bits)
        table = f.table("i16", [str(x) for x in places])
        with f.for_range(constant("i64", 0), len(places)) as i:
            number = f.load(self.total, f.index(sums, i, self.size(self.total)))
            if form.d_type == "f16":
                number = f.bitcast(f.convert("fptrunc", number, "half"), "i16")
            elif form.saturate:
                low, high = constant("i64", -(1 << 31)), constant("i64", (1 << 31) - 1)
                number = f.intrinsic("i64", "llvm.smin.i64", f.intrinsic("i64", "llvm.smax.i64", number, low), high)
                number = f.trunc(number, "i32")
            f.store(number, self._pointer(table, i, bits // 8), align=bits // 8)
