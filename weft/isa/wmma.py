"""wmma: matrices loaded from memory into fragments, multiplied, and stored.

A fragment's layout is the same for row-major and column-major matrices (isa/fragments.py), so the layouts that
wmma.mma names say nothing new. All lanes give the same address and stride; the first lane's count. A row of the matrix
as it lies in memory is read or written as a whole, and the elements must be at multiples of their size.
Section: PTX ISA, "Matrix multiply-accumulate operation using wmma instructions".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from weft.errors import IllegalAddressError, MisalignedAddressError
from weft.isa.fragments import TYPE_BITS, MultiplyForm, fragment
from weft.isa.instruction import Match, instruction
from weft.isa.matrix import (
    ELEMENT_TYPES,
    OPERAND_TYPES,
    Multiply,
    in_written_order,
    read_words,
    write_words,
)
from weft.isa.memory import SPACES, elements
from weft.isa.products import Matrix, gather_matrix, scatter_matrix
from weft.types import TYPES

_ACCUMULATORS = {"s8": "s32", "u8": "s32", "s4": "s32", "u4": "s32", "b1": "s32", "f64": "f64"}


def moved_form(m: Match) -> tuple[MultiplyForm, str]:
    """(form, operand) of a load or store: a form that has this fragment."""
    type_ = next(token for token in m.tokens if token in ELEMENT_TYPES)
    m_size, n_size, k_size = map(int, re.findall(r"\d+", m.shape))
    operand = next(token for token in m.tokens if token in ("a", "b", "c", "d"))
    if operand in ("a", "b"):
        total = _ACCUMULATORS.get(type_, "f32")
        return MultiplyForm(m_size, n_size, k_size, type_, type_, total, total, family="wmma"), operand
    inner = {"f64": "f64", "s32": "s8"}.get(type_, "f16")
    return MultiplyForm(m_size, n_size, k_size, inner, inner, type_, type_, family="wmma"), operand


def lines_of(form: MultiplyForm, operand: str, layout: str) -> tuple[int, int]:
    """(lines, elements in a line) of a matrix as it lies in memory: its rows, or its columns."""
    rows, columns = form.matrix_shape(operand)
    return (rows, columns) if layout == "row" else (columns, rows)


def _space(m: Match) -> str:
    return SPACES[m.ss] if m.ss else "generic"


def _line_bytes(t, m: Match, address: int, stride: int, line: int, bits: int, length: int) -> tuple[str, int, int]:
    """(space, address, bytes) of a line. Raises the fault of a misaligned or local address."""
    space = _space(m)
    start = address + line * (stride * bits // 8)
    if start % max(1, bits // 8):
        raise t.fault(MisalignedAddressError, f"{bits // 8} bytes at {space} address {start:#x}", start)
    if space == "generic":
        space = t.space_of(start)
        if space == "local":
            raise t.fault(IllegalAddressError, f"address {start:#x} is in local memory", start)
        start -= t.window("shared") if space == "shared" else 0
    return space, start, length * bits // 8


def _first(threads: Sequence):
    return next(t for t in threads if t is not None)


def _stride(t, m: Match, operand, length: int) -> int:
    return length if operand is None else t.read(operand, TYPES["u32"])


class Load:
    """A matrix from memory into a fragment."""

    @staticmethod
    def reference(threads, m, ins):
        form, operand = moved_form(m)
        d, address, *rest = ins.operands
        t = _first(threads)
        bits = TYPE_BITS[form.type_of(operand)]
        lines, length = lines_of(form, operand, m.layout)
        stride = _stride(t, m, rest[0] if rest else None, length)
        base = t.address(address)
        found: Matrix = []
        for line in range(lines):
            space, start, size = _line_bytes(t, m, base, stride, line, bits, length)
            data = sum(t.load(space, start + i, 1) << 8 * i for i in range(size))
            found.append([data >> (i * bits) & ((1 << bits) - 1) for i in range(length)])
        if m.layout == "col":
            found = [list(row) for row in zip(*found)]
        write_words(threads, d, fragment(form, operand).register_bits, scatter_matrix(form, operand, [found]))

    @staticmethod
    def emit(b, m, ins):
        form, operand = moved_form(m)
        d, address, *rest = ins.operands
        _check_count(b, form, operand, d)
        b.load_fragment(form, operand, elements(d), address, _space(m), m.layout, rest[0] if rest else None)


class Store:
    """A fragment to memory."""

    @staticmethod
    def reference(threads, m, ins):
        form, operand = moved_form(m)
        address, source, *rest = ins.operands
        t = _first(threads)
        bits = TYPE_BITS[form.type_of(operand)]
        lines, length = lines_of(form, operand, m.layout)
        stride = _stride(t, m, rest[0] if rest else None, length)
        base = t.address(address)
        words = read_words(threads, source, fragment(form, operand).register_bits)
        (matrix,) = gather_matrix(form, operand, words)
        if m.layout == "col":
            matrix = [list(row) for row in zip(*matrix)]
        for line in range(lines):
            space, start, size = _line_bytes(t, m, base, stride, line, bits, length)
            data = sum(x << (i * bits) for i, x in enumerate(matrix[line]))
            for i in range(size):
                t.store(space, start + i, 1, data >> 8 * i & 0xFF)

    @staticmethod
    def emit(b, m, ins):
        form, operand = moved_form(m)
        address, source, *rest = ins.operands
        _check_count(b, form, operand, source)
        b.store_fragment(form, operand, elements(source), address, _space(m), m.layout, rest[0] if rest else None)


def _check_count(b, form: MultiplyForm, operand: str, registers) -> None:
    wanted, found = fragment(form, operand).registers, len(elements(registers))
    if wanted != found:
        raise b.error(f"a fragment of {form.shape} has {wanted} registers, found {found}")


def _moved_type(m: Match):
    form, operand = moved_form(m)
    return TYPES["b64" if fragment(form, operand).register_bits == 64 else "b32"]


# ---------------------------------------------------------------- loads and stores
_MOVES = {"raw": True, "collective": True, "pipe": "lsu", "effects": ("memory", "convergence")}
_SS = ("global", "shared", "shared::cta")
_LOAD = {"operands": {"d": _moved_type, "s": "b32"}, "section": "9.7.15.4.3", "ss": _SS, **_MOVES}
_STORE = {"operands": {"b": _moved_type, "s": "b32"}, "section": "9.7.15.4.4", "ss": _SS, **_MOVES}
_BOTH = ("row", "col")
_SQUARE, _OBLONG = ("m16n16k16",), ("m8n32k16", "m32n8k16")
_OPERANDS = "wmma.load.matrix.sync.aligned.layout.shape{.ss}.type d, [a]{, s}"


@instruction(_OPERANDS, matrix=("a", "b"), layout=_BOTH, shape=_SQUARE, type=("f16",), ptx="6.0", sm=70, **_LOAD)
@instruction(_OPERANDS, matrix=("a", "b"), layout=_BOTH, shape=_OBLONG, type=("f16",), ptx="6.1", sm=70, **_LOAD)
@instruction(_OPERANDS, matrix=("a", "b"), layout=_BOTH, shape=(*_SQUARE, *_OBLONG), type=("s8", "u8"), ptx="6.3",
             sm=72, **_LOAD)  # fmt: skip
@instruction(_OPERANDS, matrix=("a", "b"), layout=_BOTH, shape=(*_SQUARE, *_OBLONG), type=("bf16",), ptx="7.0", sm=80,
             **_LOAD)  # fmt: skip
@instruction(_OPERANDS, matrix=("a", "b"), layout=_BOTH, shape=("m16n16k8",), type=("tf32",), ptx="7.0", sm=80, **_LOAD)
@instruction(_OPERANDS, matrix=("a", "b"), layout=_BOTH, shape=("m8n8k4",), type=("f64",), ptx="7.0", sm=80, **_LOAD)
@instruction(_OPERANDS, matrix=("a",), layout=("row",), shape=("m8n8k32",), type=("s4", "u4"), ptx="6.3", sm=75,
             **_LOAD)  # fmt: skip
@instruction(_OPERANDS, matrix=("b",), layout=("col",), shape=("m8n8k32",), type=("s4", "u4"), ptx="6.3", sm=75,
             **_LOAD)  # fmt: skip
@instruction(_OPERANDS, matrix=("a",), layout=("row",), shape=("m8n8k128",), type=("b1",), ptx="6.3", sm=75, **_LOAD)
@instruction(_OPERANDS, matrix=("b",), layout=("col",), shape=("m8n8k128",), type=("b1",), ptx="6.3", sm=75, **_LOAD)
@instruction(_OPERANDS, matrix=("c",), layout=_BOTH, shape=_SQUARE, type=("f16", "f32"), ptx="6.0", sm=70, **_LOAD)
@instruction(_OPERANDS, matrix=("c",), layout=_BOTH, shape=_OBLONG, type=("f16", "f32"), ptx="6.1", sm=70, **_LOAD)
@instruction(_OPERANDS, matrix=("c",), layout=_BOTH, shape=(*_SQUARE, *_OBLONG), type=("s32",), ptx="6.3", sm=72,
             **_LOAD)  # fmt: skip
@instruction(_OPERANDS, matrix=("c",), layout=_BOTH, shape=("m8n8k32", "m8n8k128"), type=("s32",), ptx="6.3", sm=75,
             **_LOAD)  # fmt: skip
@instruction(_OPERANDS, matrix=("c",), layout=_BOTH, shape=("m16n16k8",), type=("f32",), ptx="7.0", sm=80, **_LOAD)
@instruction(_OPERANDS, matrix=("c",), layout=_BOTH, shape=("m8n8k4",), type=("f64",), ptx="7.0", sm=80, **_LOAD)
class LoadFragment(Load):
    """wmma.load."""


_RESULT = "wmma.store.d.sync.aligned.layout.shape{.ss}.type [a], b{, s}"


@instruction(_RESULT, layout=_BOTH, shape=_SQUARE, type=("f16", "f32"), ptx="6.0", sm=70, **_STORE)
@instruction(_RESULT, layout=_BOTH, shape=_OBLONG, type=("f16", "f32"), ptx="6.1", sm=70, **_STORE)
@instruction(_RESULT, layout=_BOTH, shape=(*_SQUARE, *_OBLONG), type=("s32",), ptx="6.3", sm=72, **_STORE)
@instruction(_RESULT, layout=_BOTH, shape=("m8n8k32", "m8n8k128"), type=("s32",), ptx="6.3", sm=75, **_STORE)
@instruction(_RESULT, layout=_BOTH, shape=("m16n16k8",), type=("f32",), ptx="7.0", sm=80, **_STORE)
@instruction(_RESULT, layout=_BOTH, shape=("m8n8k4",), type=("f64",), ptx="7.0", sm=80, **_STORE)
class StoreFragment(Store):
    """wmma.store."""


# ---------------------------------------------------------------- multiplication
def same_integers(m: Match) -> str:
    """A `where`: A and B are of one type."""
    if str(m.atype) != str(m.btype):
        return f"the types of a and b must be the same, found {m.atype} and {m.btype}"
    return in_written_order(m)


_COMMON = {
    "operands": OPERAND_TYPES, "raw": True, "collective": True, "pipe": "tensor", "effects": ("convergence",),
    "section": "9.7.15.4.5",
}  # fmt: skip
_LAYOUTS = {"alayout": _BOTH, "blayout": _BOTH}
_S32 = {"dtype": ("s32",), "ctype": ("s32",), "where": same_integers}
_HALF = "wmma.mma.sync.aligned.alayout.blayout.shape.dtype.ctype d, a, b, c"
_TYPED = "wmma.mma.sync.aligned.alayout.blayout.shape.dtype.atype.btype.ctype"
_INTEGERS = "wmma.mma.sync.aligned.alayout.blayout.shape.dtype.atype.btype.ctype{.satfinite} d, a, b, c"
_FIXED = "wmma.mma.sync.aligned.row.col.shape.dtype.atype.btype.ctype{.satfinite} d, a, b, c"
_BITS = "wmma.mma.op.popc.sync.aligned.row.col.shape.dtype.atype.btype.ctype d, a, b, c"
_F32 = {"dtype": ("f32",), "ctype": ("f32",), "where": in_written_order}


@instruction(_HALF, shape=_SQUARE, dtype=("f16", "f32"), ctype=("f16", "f32"), ptx="6.0", sm=70, **_LAYOUTS, **_COMMON)
@instruction(_HALF, shape=_OBLONG, dtype=("f16", "f32"), ctype=("f16", "f32"), ptx="6.1", sm=70, **_LAYOUTS, **_COMMON)
@instruction(_TYPED + " d, a, b, c", shape=(*_SQUARE, *_OBLONG), atype=("bf16",), btype=("bf16",), ptx="7.0", sm=80,
             **_F32, **_LAYOUTS, **_COMMON)  # fmt: skip
@instruction(_TYPED + " d, a, b, c", shape=("m16n16k8",), atype=("tf32",), btype=("tf32",), ptx="7.0", sm=80, **_F32,
             **_LAYOUTS, **_COMMON)  # fmt: skip
@instruction(_TYPED + "{.rnd} d, a, b, c", shape=("m8n8k4",), dtype=("f64",), atype=("f64",), btype=("f64",),
             ctype=("f64",), rnd=("rn", "rz", "rm", "rp"), ptx="7.0", sm=80, where=in_written_order, **_LAYOUTS,
             **_COMMON)  # fmt: skip
@instruction(_INTEGERS, shape=(*_SQUARE, *_OBLONG), atype=("s8", "u8"), btype=("s8", "u8"), ptx="6.3", sm=72, **_S32,
             **_LAYOUTS, **_COMMON)  # fmt: skip
@instruction(_FIXED, shape=("m8n8k32",), atype=("s4", "u4"), btype=("s4", "u4"), ptx="6.3", sm=75, **_S32, **_COMMON)
@instruction(_BITS, shape=("m8n8k128",), op=("xor",), atype=("b1",), btype=("b1",), ptx="6.3", sm=75, **_S32, **_COMMON)
@instruction(_BITS, shape=("m8n8k128",), op=("and",), atype=("b1",), btype=("b1",), ptx="7.1", sm=80, **_S32, **_COMMON)
class MultiplyFragments(Multiply):
    """wmma.mma: D = A * B + C."""
