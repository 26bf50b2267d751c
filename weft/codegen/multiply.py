"""Support functions that multiply the matrices of a warp: the form enters in the function's name, an IRFunction leaves.

    void weft_multiply.FORM(ptr at)

`at` is a workspace laid out by `Workspace`: the registers of A, B and C (and of the sparsity metadata and the scales),
each as 32 words in lane order; the registers of D are written behind them. The function puts the matrices in row-major
order, in pieces that lie in the registers as they do in the matrix, multiplies, and puts D's elements back. It is the
path of every form; groups of the most common ones run through codegen/microkernels.py instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from weft.codegen.irtext import IRFunction, Value, constant, split_vector, vector_type
from weft.codegen.jit import Target, function_attributes
from weft.isa import rounding
from weft.isa.fragments import LANES, TYPE_BITS, MultiplyForm, fragment, scale_places, sparse_indices
from weft.isa.products import scale_value

PREFIX = "weft_multiply."
WORKSPACE_BYTES = 16384
_SMALL = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")


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
        self.by_floats = form.d_type == "s32" and not self.bits
        if self.bits:
            self.element = "i32"
        elif form.d_type == "f64" or form.scale_type:
            self.element = "double"
        else:
            self.element = "float"
        # Accumulators of 32 bits hold even and odd columns in different registers: the work is done in that order.
        order = np.arange(form.n)
        if TYPE_BITS[form.d_type] == 32:
            order = order.reshape(-1, 4, 2).transpose(0, 2, 1).reshape(-1)
        self.order = order
        self.total = self.element
        if form.d_type == "s32":
            self.total = "i64" if form.saturate else "i32"
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
        # rows that share the loads of B, and hide the latency of each other's sums
        together = 1 if form.sparse or form.scale_type else max(1, 64 // form.n)
        if form.rounding != "rn":
            f.intrinsic("void", "llvm.set.rounding", constant("i32", _ROUNDINGS[form.rounding]))
        with f.for_range(ZERO, form.parts) as part:
            a_part = f.index(left, part, form.m * inner * self.size(self.element))
            b_part = f.index(right, part, form.k * self.right_bytes)
            c_part = f.index(sums, part, form.m * row_bytes)
            with f.for_range(ZERO, form.m, together) as i:
                a_row = f.index(a_part, i, inner * self.size(self.element))
                c_rows = [f.offset(f.index(c_part, i, row_bytes), r * row_bytes) for r in range(together)]
                row = f.index(meets, i, 2 * inner) if meets is not None else None
                totals = [f.load(vector, c_row, align=4) for c_row in c_rows]
                if scales is not None:
                    totals = [self._scaled_row(i, a_row, b_part, row, totals[0], scales)]
                elif self.by_floats:
                    zero = Value(vector_type("float", form.n), "zeroinitializer")
                    parts = self._rows(a_row, b_part, row, (ZERO, inner), [zero] * together, inner)
                    totals = [self._add_integers(total, x) for total, x in zip(totals, parts)]
                else:
                    totals = self._rows(a_row, b_part, row, (ZERO, inner), totals, inner)
                for total, c_row in zip(totals, c_rows):
                    f.store(total, c_row, align=4)
        if form.rounding != "rn":
            f.intrinsic("void", "llvm.set.rounding", constant("i32", _ROUNDINGS["rn"]))
        self._put_back(sums)
        f.ret()
        return f

    def _rows(
        self, a_row: Value, b_part: Value, meets: Value | None, span: tuple, starts: list[Value], inner: int
    ) -> list[Value]:
        """start + the products of a row of A with the rows of B, for the elements of `span` (first, last + 1), for
        as many rows of A as there are starts."""
        f, form = self.f, self.form
        totals = [f.variable(start) for start in starts]
        with f.for_range(*span) as k:
            row = k if meets is None else f.zext(f.load("i16", f.index(meets, k, 2)), "i64")
            y = f.load(vector_type(self.element, form.n), f.index(b_part, row, self.right_bytes), align=4)
            at = f.index(a_row, k, self.size(self.element))
            for r, total in enumerate(totals):
                x = f.load(self.element, f.offset(at, r * inner * self.size(self.element)))
                f.set(total, self._step(f.splat(x, form.n), y, f.get(total)))
        return [f.get(total) for total in totals]

    def _add_integers(self, total: Value, part: Value) -> Value:
        """total + a sum of integers that was made in f32, exactly: below 2^24 all sums are."""
        f, form = self.f, self.form
        assert form.stored_k * 4 ** TYPE_BITS[form.a_type] <= 1 << 24, form
        number = f.convert("fptosi", part, vector_type("i32", form.n))
        return f.add(total, f.convert("sext", number, total.type))

    def _scaled_row(self, i: Value, a_row: Value, b_part: Value, meets, start: Value, scales) -> Value:
        """The same block by block: sums of a block in f64, scaled, and added to the accumulator in f32."""
        f, form = self.f, self.form
        doubles = vector_type("double", form.n)
        step = form.stored_k // form.scale_vector
        by_row, by_column = scales
        total = f.variable(start)
        with f.for_range(ZERO, form.scale_vector) as block:
            first = f.mul(block, step)
            zero = Value(doubles, "zeroinitializer")
            (part,) = self._rows(a_row, b_part, meets, (first, f.add(first, step)), [zero], form.stored_k)
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
            places = places[self.order].T
        values = f.table("double", [_double(scale_value(form.scale_type, x)) for x in range(256)])
        table = f.table("i16", [str(x) for x in places.reshape(-1).tolist()])
        found = f.alloca(f"[{places.size} x double]", align=64)
        words = f.offset(self.at, self.space.offsets[f"scale_{operand}"])
        with f.for_range(ZERO, places.size) as i:
            byte = f.load("i8", f.index(words, f.zext(f.load("i16", f.index(table, i, 2)), "i64"), 1))
            f.store(f.load("double", f.index(values, f.zext(byte, "i64"), 8)), f.index(found, i, 8))
        return found

    # ------------------------------------------------------------ in and out
    def _places(self, operand: str) -> np.ndarray:
        """Bit of the workspace at which each element lies, [parts, rows, columns]. Columns of B, C and D come in the
        order of `self.order`; B is turned round: [parts, columns, rows]."""
        piece = fragment(self.form, operand)
        lane, element = piece.place(self.form.matrix_shape(operand), self.form.parts)
        register, within = element // piece.per_register, element % piece.per_register
        at = 8 * self.space.offsets[operand] + 8 * register * self.space.bytes_of(operand)
        at = at + lane * piece.register_bits + within * piece.element_bits
        if operand == "a":
            return at
        at = at[..., self.order]
        return at.transpose(0, 2, 1) if operand == "b" else at

    def _pieces(self, places: np.ndarray, bits: int) -> tuple[int, Value]:
        """(elements in a piece, table of the pieces' places in bytes, or half bytes for single elements of 4 bits):
        pieces lie in the workspace as they do in the matrix."""
        flat = places.reshape(-1, places.shape[-1])
        count = 32
        while count > 1:
            if flat.shape[1] % count == 0 and count * bits >= 32:
                steps = flat.reshape(-1, count)
                if (steps - steps[:, :1] == bits * np.arange(count)).all():
                    break
            count //= 2
        unit = 4 if count == 1 and bits == 4 else 8
        starts = flat.reshape(-1, count)[:, 0]
        assert not (starts % unit).any()
        return count, self.f.table("i16", [str(x) for x in (starts // unit).tolist()])

    def _pointer(self, table: Value, i: Value) -> Value:
        return self.f.index(self.at, self.f.zext(self.f.load("i16", self.f.index(table, i, 2)), "i64"), 1)

    def _unpack(self, operand: str) -> Value:
        """The matrix as numbers, row by row (B: row k holds all columns)."""
        f, form = self.f, self.form
        element = self.total if operand == "c" else self.element
        bits = form.container_bits(operand)
        places = self._places(operand)
        count, table = self._pieces(places, bits)
        matrix = f.alloca(f"[{places.size} x {element}]", align=64)
        with f.for_range(ZERO, places.size // count) as i:
            if count == 1 and bits == 4:
                place = f.load("i16", f.index(table, i, 2))
                byte = f.load("i8", f.index(self.at, f.zext(f.lshr(place, 1), "i64"), 1))
                pattern = f.lshr(byte, f.trunc(f.shl(f.and_(place, 1), 2), "i8"))
                pattern = f.bitcast(f.trunc(pattern, "i4"), vector_type("i4", 1))
            else:
                pattern = f.load(f"i{bits * count}", self._pointer(table, i), align=max(1, bits // 8))
                pattern = f.bitcast(pattern, vector_type(f"i{bits}", count))
            number = self._numbers(operand, pattern, element)
            f.store(number, f.index(matrix, i, count * self.size(element)), align=self.size(element))
        return self._turn(matrix, element) if operand == "b" else matrix

    def _turn(self, matrix: Value, element: str) -> Value:
        """B from columns to rows, 8 x 4 elements at a time."""
        f, form = self.f, self.form
        size = self.size(element)
        turned = f.alloca(f"[{form.parts * form.k * form.n} x {element}]", align=64)
        with f.for_range(ZERO, form.parts * form.n // 8) as block:
            part, column = f.udiv(block, form.n // 8), f.urem(block, form.n // 8)
            with f.for_range(ZERO, form.k // 4) as k:
                rows = []
                for n in range(8):
                    line = f.add(f.mul(block, 8), n)
                    at = f.add(f.mul(line, form.k), f.mul(k, 4))
                    rows.append(f.load(vector_type(element, 4), f.index(matrix, at, size), align=size))
                lanes = 4
                while len(rows) > 1:
                    rows = [f.shuffle(x, y, list(range(2 * lanes))) for x, y in zip(rows[::2], rows[1::2])]
                    lanes *= 2
                for j in range(4):
                    line = f.add(f.add(f.mul(part, form.k), f.mul(k, 4)), j)
                    at = f.add(f.mul(line, form.n), f.mul(column, 8))
                    picked = f.shuffle(rows[0], None, [4 * n + j for n in range(8)])
                    f.store(picked, f.index(turned, at, size), align=size)
        return turned

    def _numbers(self, operand: str, pattern: Value, element: str) -> Value:
        """Patterns as numbers, vectors both."""
        f, form = self.f, self.form
        type_ = form.type_of(operand)
        count = split_vector(pattern.type)[0]
        words, floats = vector_type("i32", count), vector_type("float", count)
        result = vector_type(element, count)
        if type_ == "s32":
            return f.convert("sext", pattern, result)
        if type_ in ("s8", "s4", "u8", "u4"):
            wide = f.convert("sext" if type_[0] == "s" else "zext", pattern, words)
            return f.convert("sitofp", wide, result)
        if type_ == "f64":
            return f.bitcast(pattern, result)
        if type_ in _SMALL:
            number = self._small(type_, pattern, words, floats)
        elif type_ == "f16":
            number = f.convert("fpext", f.bitcast(pattern, vector_type("half", count)), floats)
        elif type_ == "bf16":
            number = f.bitcast(f.shl(f.zext(pattern, words), 16), floats)
        elif type_ == "tf32":
            number = f.bitcast(f.and_(pattern, -(1 << 13)), floats)
        else:
            assert type_ == "f32", type_
            number = f.bitcast(pattern, floats)
        return number if element == "float" else f.convert("fpext", number, result)

    def _small(self, type_: str, pattern: Value, words: str, floats: str) -> Value:
        """Numbers of 8, 6 and 4 bits: exponent and fraction move to their places in an f32, and a factor mends the
        bias (subnormals too)."""
        f = self.f
        count = split_vector(words)[0]
        word = f.zext(pattern, words)
        if type_ == "e2m1" and self.form.kind in ("f8f6f4", "mxf8f6f4"):
            word = f.lshr(word, 2)
        if type_ == "e5m2":  # the upper half of an f16
            halves = f.trunc(f.shl(word, 8), vector_type("i16", count))
            return f.convert("fpext", f.bitcast(halves, vector_type("half", count)), floats)
        kind = rounding.FORMATS[type_]
        magnitude = f.and_(word, kind.sign_bit - 1)
        factor = _double(rounding.from_float(2.0 ** (127 - kind.bias)))
        scale = Value(floats, f"splat (float {factor})")
        number = f.binary("fmul", f.bitcast(f.shl(magnitude, 23 - kind.fraction_bits), floats), scale)
        sign = f.shl(f.and_(word, kind.sign_bit), 32 - kind.bits)
        signed = f.or_(f.bitcast(number, words), sign)
        if type_ == "e4m3":
            signed = f.select(f.icmp("eq", magnitude, 0x7F), f.const(words, 0x7FC00000), signed)
        return f.bitcast(signed, floats)

    def _words(self, operand: str) -> Value:
        """Single bits, 32 of a row of A (or of a column of B) to a word; B with its words in rows."""
        f, form = self.f, self.form
        piece = fragment(form, operand)
        lane, element = piece.place(form.matrix_shape(operand))
        along = (slice(None), slice(None), slice(0, None, 32)) if operand == "a" else (slice(None), slice(0, None, 32))
        lane, element = lane[along], element[along]
        assert not (element % 32).any()
        at = self.space.offsets[operand] + 4 * (element // 32 * LANES + lane)
        if operand == "b":
            at = at[..., self.order]
        places = np.asarray(at).reshape(-1).tolist()
        table = f.table("i16", [str(x) for x in places])
        matrix = f.alloca(f"[{len(places)} x i32]", align=64)
        with f.for_range(ZERO, len(places)) as i:
            f.store(f.load("i32", self._pointer(table, i), align=4), f.index(matrix, i, 4))
        return matrix

    def _put_back(self, sums: Value) -> None:
        """D's elements to their places."""
        f, form = self.f, self.form
        bits = TYPE_BITS[form.d_type]
        places = self._places("d")
        count, table = self._pieces(places, bits)
        with f.for_range(ZERO, places.size // count) as i:
            total = vector_type(self.total, count)
            size = self.size(self.total)
            number = f.load(total, f.index(sums, i, count * size), align=size)
            if form.d_type == "f16":
                number = f.convert("fptrunc", number, vector_type("half", count))
            elif form.saturate:
                low, high = f.const(total, -(1 << 31)), f.const(total, (1 << 31) - 1)
                number = f.select(f.icmp("sgt", number, low), number, low)
                number = f.select(f.icmp("slt", number, high), number, high)
                number = f.trunc(number, vector_type("i32", count))
            f.store(number, self._pointer(table, i), align=bits // 8)
