"""What a tensor-core multiplication computes, on exact values: matrices of bit patterns enter, a matrix leaves.

This is the reference for every form; docs/numerics.md says why it is what it is. Products are exact. A floating-point
sum starts at C's element and takes the products in ascending k, each added with one rounding to the accumulator's
type (f32, or f64); an f16 accumulator is carried in f32 and rounded once at the end. Integer sums wrap at 32 bits, or
are clamped once at the end with .satfinite. With block scales, the products of one block are summed in f64, scaled
exactly, and added to the f32 accumulator with one rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from weft.isa import rounding
from weft.isa.bits import clamp, to_signed
from weft.isa.fragments import LANES, TYPE_BITS, MultiplyForm, fragment
from weft.isa.rounding import Exact

Matrix = list[list[int]]

ZERO = rounding.exact_integer(0)


def gather_matrix(form: MultiplyForm, operand: str, words: Sequence[Sequence[int]]) -> list[Matrix]:
    """The operand's patterns, one matrix per part, from `words[lane][register]`."""
    piece = fragment(form, operand)
    rows, cols = form.matrix_shape(operand)
    mask = (1 << piece.element_bits) - 1
    found = [[[0] * cols for _ in range(rows)] for _ in range(form.parts)]
    for lane in range(LANES):
        for e in reversed(range(piece.elements)):
            register, within = divmod(e, piece.per_register)
            pattern = words[lane][register] >> (within * piece.element_bits) & mask
            found[piece.part[lane, e]][piece.row[lane, e]][piece.col[lane, e]] = pattern
    return found


def scatter_matrix(form: MultiplyForm, operand: str, matrices: Sequence[Matrix]) -> list[list[int]]:
    """The inverse of `gather_matrix`: words[lane][register]. Elements that are held twice are written twice."""
    piece = fragment(form, operand)
    words = [[0] * piece.registers for _ in range(LANES)]
    for lane in range(LANES):
        for e in range(piece.elements):
            register, within = divmod(e, piece.per_register)
            pattern = int(matrices[piece.part[lane, e]][piece.row[lane, e]][piece.col[lane, e]])
            words[lane][register] |= pattern << (within * piece.element_bits)
    return words


def multiply_matrices(
    form: MultiplyForm, a: Matrix, b: Matrix, c: Matrix,
    columns: Matrix | None = None, scales: tuple[Matrix, Matrix] | None = None,
) -> Matrix:  # fmt: skip
    """D of one part. `columns[i][j]` is the row of B that A's stored element (i, j) meets (sparse forms), `scales` are
    patterns of scale_A [m][blocks] and scale_B [n][blocks] (columns of B)."""
    if columns is None:
        columns = [list(range(form.stored_k))] * form.m
    if form.operation != "multiply":
        return _bitwise(form, a, b, c)
    if form.d_type == "s32":
        return _integers(form, a, b, c, columns)
    if scales is not None:
        return _scaled(form, a, b, c, columns, scales)
    return _floats(form, a, b, c, columns)


def _bitwise(form: MultiplyForm, a: Matrix, b: Matrix, c: Matrix) -> Matrix:
    """A and B hold single bits; the popcount of `and` or `xor` along k is added."""
    total = [[to_signed(x, 32) for x in row] for row in c]
    for i in range(form.m):
        for j in range(form.n):
            pairs = ((a[i][k], b[k][j]) for k in range(form.k))
            total[i][j] += sum((x & y) if form.operation == "and" else (x ^ y) for x, y in pairs)
    return [[x & 0xFFFFFFFF for x in row] for row in total]


def integer_of(type_: str, pattern: int) -> int:
    """The number that a pattern of s4, u4, s8, u8 or s32 stands for."""
    return to_signed(pattern, TYPE_BITS[type_]) if type_[0] == "s" else pattern


def _integers(form: MultiplyForm, a: Matrix, b: Matrix, c: Matrix, columns: Matrix) -> Matrix:
    left = [[integer_of(form.a_type, x) for x in row] for row in a]
    right = [[integer_of(form.b_type, x) for x in row] for row in b]
    result = []
    for i in range(form.m):
        row = []
        for j in range(form.n):
            total = to_signed(c[i][j], 32) + sum(x * right[k][j] for x, k in zip(left[i], columns[i]))
            row.append((clamp(total, 32, True) if form.saturate else total) & 0xFFFFFFFF)
        result.append(row)
    return result


@cache
def _small_value(type_: str, kind: str, pattern: int) -> Exact:
    if kind in ("f8f6f4", "mxf8f6f4"):
        # a container of 8 bits: six-bit types in bits 0 to 5, e2m1 in bits 2 to 5
        pattern = pattern >> 2 & 15 if type_ == "e2m1" else pattern & ((1 << TYPE_BITS[type_]) - 1)
    return rounding.unpack(type_, pattern)


def element_value(form: MultiplyForm, operand: str, pattern: int) -> Exact:
    """The exact value of a pattern of A or B (tf32 without its 13 low bits)."""
    type_ = form.type_of(operand)
    if TYPE_BITS[type_] <= 8:
        return _small_value(type_, form.kind, pattern)
    if type_ == "tf32":
        pattern &= ~0x1FFF  # a NaN that only these bits tell from infinity becomes one
    return rounding.unpack(type_, pattern)


def _floats(form: MultiplyForm, a: Matrix, b: Matrix, c: Matrix, columns: Matrix) -> Matrix:
    mode = form.rounding
    wide = "f64" if form.d_type == "f64" else "f32"
    left = [[element_value(form, "a", x) for x in row] for row in a]
    right = [[element_value(form, "b", x) for x in row] for row in b]
    result = []
    for i in range(form.m):
        row = []
        for j in range(form.n):
            total = rounding.unpack(form.c_type, c[i][j])
            for x, k in zip(left[i], columns[i]):
                total = _rounded(wide, rounding.fused(x, right[k][j], total, mode), mode)
            row.append(rounding.pack(form.d_type, total, mode))
        result.append(row)
    return result


def _rounded(type_: str, exact: Exact, mode: str) -> Exact:
    return rounding.unpack(type_, rounding.pack(type_, exact, mode))


def scale_value(type_: str, pattern: int) -> Exact:
    """The exact value of a scale: ue8m0 a power of two, ue4m3 an e4m3 whose sign bit is not looked at."""
    return rounding.decode_ue8m0(pattern) if type_ == "ue8m0" else rounding.unpack("e4m3", pattern & 0x7F)


def _scaled(form: MultiplyForm, a: Matrix, b: Matrix, c: Matrix, columns: Matrix, scales) -> Matrix:
    left = [[element_value(form, "a", x) for x in row] for row in a]
    right = [[element_value(form, "b", x) for x in row] for row in b]
    by_row, by_column = ([[scale_value(form.scale_type, x) for x in row] for row in matrix] for matrix in scales)
    blocks = form.scale_vector
    step = form.stored_k // blocks
    result = []
    for i in range(form.m):
        row = []
        for j in range(form.n):
            total = rounding.unpack(form.c_type, c[i][j])
            for block in range(blocks):
                part = ZERO
                for x, k in zip(left[i][block * step : (block + 1) * step], columns[i][block * step :]):
                    part = _rounded("f64", rounding.fused(x, right[k][j], part), "rn")
                scale = rounding.multiply(by_row[i][block], by_column[j][block])
                part = _rounded("f64", rounding.multiply(part, scale), "rn")
                total = _rounded("f32", _rounded("f64", rounding.add(total, part), "rn"), "rn")
            row.append(rounding.pack(form.d_type, total))
        result.append(row)
    return result
