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
from typing import Any

import numpy as np

from weft.codegen.irtext import IRFunction, Value, constant, vector_type
from weft.codegen.jit import Target, function_attributes
from weft.isa import rounding
from weft.isa.fragments import LANES, TYPE_BITS, MultiplyForm, fragment, scale_places, sparse_indices
from weft.isa.products import element_value, scale_value

PREFIX = "weft_multiply."
WORKSPACE_BYTES = 16384
_LOOKED_UP = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")


ZERO = constant("i64", 0)
_ROUNDINGS = {"rz": 0, "rn": 1, "rp": 2, "rm": 3}  # of llvm.set.rounding


def _double(exact: rounding.Exact) -> str:
    """A number as a constant of IR; every format here is a subset of f64."""
    return f"0x{rounding.pack('f64', exact):016X}"


def multiply_name(form: MultiplyForm) -> str:
    """The support function of a form."""
    return PREFIX + form_text(form)


def form_text(form: MultiplyForm) -> str:
    """A form as a part of a name."""
    return ".".join(str(getattr(form, field.name)).lower() or "-" for field in fields(form))


def form_named(text: str) -> MultiplyForm:
    """The inverse of `form_text`."""
    found: dict[str, Any] = {}
    for field, word in zip(fields(MultiplyForm), text.split(".")):
        if field.type == "int":
            found[field.name] = int(word)
        elif field.type == "bool":
            found[field.name] = word == "true"
        else:
            found[field.name] = "" if word == "-" else word
    return MultiplyForm(**found)


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

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.tables: list[str] = []

    def table(self, type_: str, items: Sequence[str]) -> Value:
        """A pointer to a constant array."""
        name = f"@{self.name}.table{len(self.tables)}"
        body = ", ".join(f"{type_} {item}" for item in items)
        self.tables.append(f"{name} = internal unnamed_addr constant [{len(items)} x {type_}] [{body}], align 64\n")
        return Value("ptr", name)

    def text(self) -> str:
        return "".join(self.tables) + super().text()


def write_multiply(name: str, target: Target, text: str) -> IRFunction:
    """The support function of the form that `text` names."""
    form = form_named(text)
    attributes = function_attributes(target) + " noinline"
    if form.rounding != "rn":
        attributes += " strictfp"  # the rounding mode changes inside
    return _Writer(Tabled(name, "void", [("ptr", "at")], attributes=attributes), form).write()


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
        meets = self._meets() if form.sparse else None
        scales = (self._scales("a"), self._scales("b")) if form.scale_type else None
        vector = vector_type(self.total, form.n)
        row_bytes = form.n * self.size(self.total)
        self.right_bytes = form.n * self.size(self.element)
        if form.rounding != "rn":
            f.intrinsic("void", "llvm.set.rounding", constant("i32", _ROUNDINGS[form.rounding]))
        with f.for_range(ZERO, form.parts) as part:
            a_part = f.index(left, part, form.m * inner * self.size(self.element))
            b_part = f.index(right, part, form.k * self.right_bytes)
            c_part = f.index(sums, part, form.m * row_bytes)
            with f.for_range(ZERO, form.m) as i:
                a_row = f.index(a_part, i, inner * self.size(self.element))
                c_row = f.index(c_part, i, row_bytes)
                row = f.index(meets, i, 2 * inner) if meets is not None else None
                if scales is not None:
                    total = self._scaled_row(i, a_row, b_part, row, f.load(vector, c_row, align=4), scales)
                else:
                    total = self._row(a_row, b_part, row, (ZERO, inner), f.load(vector, c_row, align=4))
                f.store(total, c_row, align=4)
        if form.rounding != "rn":
            f.intrinsic("void", "llvm.set.rounding", constant("i32", _ROUNDINGS["rn"]))
        self._put_back(sums)
        f.ret()
        return f

    def _row(self, a_row: Value, b_part: Value, meets: Value | None, span: tuple, start: Value) -> Value:
        """start + the products of a row of A with the rows of B, for the elements of `span` (first, last + 1)."""
        f, form = self.f, self.form
        total = f.variable(start)
        with f.for_range(*span) as k:
            x = f.load(self.element, f.index(a_row, k, self.size(self.element)))
            row = k if meets is None else f.zext(f.load("i16", f.index(meets, k, 2)), "i64")
            y = f.load(vector_type(self.element, form.n), f.index(b_part, row, self.right_bytes), align=4)
            f.set(total, self._step(f.splat(x, form.n), y, f.get(total)))
        return f.get(total)

    def _scaled_row(self, i: Value, a_row: Value, b_part: Value, meets, start: Value, scales) -> Value:
        """The same block by block: sums of a block in f64, scaled, and added to the accumulator in f32."""
        f, form = self.f, self.form
        doubles = vector_type("double", form.n)
        step = form.stored_k // form.scale_vector
        by_row, by_column = scales
        total = f.variable(start)
        with f.for_range(ZERO, form.scale_vector) as block:
            first = f.mul(block, step)
            part = self._row(a_row, b_part, meets, (first, f.add(first, step)), Value(doubles, "zeroinitializer"))
            place = f.add(f.mul(i, form.scale_vector), block)
            scale = f.splat(f.load("double", f.index(by_row, place, 8)), form.n)
            column = f.load(doubles, f.index(by_column, block, 8 * form.n), align=8)
            part = f.binary("fmul", part, f.binary("fmul", scale, column))
            wide = f.binary("fadd", f.convert("fpext", f.get(total), doubles), part)
            f.set(total, f.convert("fptrunc", wide, start.type))
        return f.get(total)

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
        if form.rounding != "rn":
            name = f"llvm.experimental.constrained.fma.v{form.n}{letter}"
            how = Value("metadata", '!"round.dynamic"'), Value("metadata", '!"fpexcept.ignore"')
            return f.intrinsic(total.type, name, x, y, total, *how)
        return f.intrinsic(total.type, f"llvm.fma.v{form.n}{letter}", x, y, total)

    # ------------------------------------------------------------ sparsity and scales
    def _meets(self) -> Value:
        """Rows of B, as i16, that A's stored elements meet, [m][stored k]."""
        f, form = self.f, self.form
        layout = sparse_indices(form)
        count = layout.lane.size
        places = (32 * layout.lane + layout.shift).reshape(-1).tolist()
        bases = np.broadcast_to(layout.base, layout.lane.shape).reshape(-1).tolist()
        place_table = f.table("i16", [str(x) for x in places])
        base_table = f.table("i16", [str(x) for x in bases])
        rows = f.alloca(f"[{count * layout.width} x i16]", align=64)
        metadata = f.offset(self.at, self.space.offsets["metadata"])
        with f.for_range(ZERO, count) as i:
            place = f.zext(f.load("i16", f.index(place_table, i, 2)), "i32")
            word = f.load("i32", f.index(metadata, f.zext(f.lshr(place, 5), "i64"), 4))
            index = f.and_(f.lshr(word, f.and_(place, 31)), (1 << layout.bits) - 1)
            base = f.load("i16", f.index(base_table, i, 2))
            row = f.add(base, f.mul(f.trunc(index, "i16"), layout.step))
            for w in range(layout.width):
                f.store(f.add(row, w), f.offset(f.index(rows, i, 2 * layout.width), 2 * w))
        return rows

    def _scales(self, operand: str) -> Value:
        """scale_A as doubles [m][blocks], or scale_B [blocks][n]."""
        f, form = self.f, self.form
        lanes = scale_places(form, operand)[:, None]
        places = 4 * lanes + np.arange(form.scale_vector)
        if operand == "b":
            places = places.T
        values = f.table("double", [_double(scale_value(form.scale_type, x)) for x in range(256)])
        table = f.table("i16", [str(x) for x in places.reshape(-1).tolist()])
        found = f.alloca(f"[{places.size} x double]", align=64)
        words = f.offset(self.at, self.space.offsets[f"scale_{operand}"])
        with f.for_range(ZERO, places.size) as i:
            byte = f.load("i8", f.index(words, f.zext(f.load("i16", f.index(table, i, 2)), "i64"), 1))
            f.store(f.load("double", f.index(values, f.zext(byte, "i64"), 8)), f.index(found, i, 8))
        return found

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
        with f.for_range(ZERO, len(places)) as i:
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
            items.append(_double(element_value(self.form, operand, pattern)))
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
        with f.for_range(ZERO, len(places)) as i:
            f.store(f.load("i32", self._pointer(table, i, 4), align=4), f.index(matrix, i, 4))
        return matrix

    def _put_back(self, sums: Value) -> None:
        """D's elements to their places."""
        f, form = self.f, self.form
        bits = TYPE_BITS[form.d_type]
        places = self._places("d", bits)
        table = f.table("i16", [str(x) for x in places])
        with f.for_range(ZERO, len(places)) as i:
            number = f.load(self.total, f.index(sums, i, self.size(self.total)))
            if form.d_type == "f16":
                number = f.bitcast(f.convert("fptrunc", number, "half"), "i16")
            elif form.saturate:
                low, high = constant("i64", -(1 << 31)), constant("i64", (1 << 31) - 1)
                number = f.intrinsic("i64", "llvm.smin.i64", f.intrinsic("i64", "llvm.smax.i64", number, low), high)
                number = f.trunc(number, "i32")
            f.store(number, self._pointer(table, i, bits // 8), align=bits // 8)
