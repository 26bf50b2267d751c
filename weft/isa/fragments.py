"""Which lane holds which element of a matrix, for tensor-core instructions: a form and an operand enter, tables leave.

The tables follow the figures of the PTX manual, sections "Warp Level Matrix Multiply-Accumulate Instructions" (mma,
mma.sp) and "Asynchronous Warpgroup Level Matrix Instructions" (a wgmma of one warp is a form with m = 16). The manual
leaves the fragments of wmma open. Here they are made of the fragments of mma with m = 16 and n = 8, as they are on
sm_80 and later, so that wmma and mma share their arithmetic.

With g = lane / 4 and t = lane % 4, and `per` elements in a register, nearly all of mma's figures are one rule:

    A: register r holds row g + 8 (r odd), columns t * per ... + 4 * per * (r / 2)      (r / 1 where m is 8)
    B: register r holds column g, rows t * per ... + 4 * per * r
    C, D: elements 2 i and 2 i + 1 hold row g + 8 i, columns 2 t and 2 t + 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LANES = 32
OPERANDS = ("a", "b", "c", "d")

# Bits of one number of each element type.
TYPE_BITS = {
    "b1": 1, "s4": 4, "u4": 4, "e2m1": 4, "e2m3": 6, "e3m2": 6, "s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8, "f16": 16,
    "bf16": 16, "tf32": 32, "f32": 32, "s32": 32, "f64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class MultiplyForm:
    """D = A * B + C of one warp: A is m x k, B is k x n, C and D are m x n.

    Types are PTX names. `a_layout` and `b_layout` matter for the fragments of m8n8k4 with f16 only. `operation` is
    "multiply", or "and" or "xor" for single bits (their popcount is added). `sparse` is "", "standard" or "ordered":
    of A, half of the columns are stored. `kind` is "" or the .kind of the form (f8f6f4, mxf8f6f4, mxf4, mxf4nvf4);
    `scale_type` (ue8m0, ue4m3) and `scale_vector` (1, 2 or 4 scales for a row of A) belong to block scaling,
    `selector` (which threads hold the metadata) to sparse forms, `rounding` (rn, rz, rm, rp) to f64. `family` is "mma"
    or "wmma".
    """

    m: int
    n: int
    k: int
    a_type: str
    b_type: str
    c_type: str
    d_type: str
    saturate: bool = False
    a_layout: str = "row"
    b_layout: str = "col"
    operation: str = "multiply"
    sparse: str = ""
    kind: str = ""
    scale_type: str = ""
    scale_vector: int = 0
    selector: int = 0
    rounding: str = "rn"
    family: str = "mma"

    @property
    def shape(self) -> str:
        return f"m{self.m}n{self.n}k{self.k}"

    @property
    def parts(self) -> int:
        """Independent multiplications that one instruction does: 4 for m8n8k4 with f16, else 1."""
        return 4 if self.family == "mma" and self.shape == "m8n8k4" and self.a_type == "f16" else 1

    @property
    def stored_k(self) -> int:
        """Columns of A that are in registers."""
        return self.k // 2 if self.sparse else self.k

    def type_of(self, operand: str) -> str:
        return {"a": self.a_type, "b": self.b_type, "c": self.c_type, "d": self.d_type}[operand]

    def container_bits(self, operand: str) -> int:
        """Bits that one element of an operand takes in its register."""
        bits = TYPE_BITS[self.type_of(operand)]
        return 8 if self.kind in ("f8f6f4", "mxf8f6f4") and operand in ("a", "b") else bits

    def matrix_shape(self, operand: str) -> tuple[int, int]:
        """(rows, columns) of the operand as stored in registers."""
        return {"a": (self.m, self.stored_k), "b": (self.k, self.n)}.get(operand, (self.m, self.n))


@dataclass(frozen=True, eq=False)
class Fragment:
    """Where the elements of one operand are.

    row, col, part: int arrays [32 lanes, elements per lane]; part numbers the multiplication (all 0 but for m8n8k4
    with f16). Element e lies in register e // per_register, at bit (e % per_register) * element_bits. wmma fragments
    of f16 may hold an element more than once: its first place counts.
    """

    row: np.ndarray
    col: np.ndarray
    part: np.ndarray
    element_bits: int
    register_bits: int

    @property
    def elements(self) -> int:
        """Elements per lane."""
        return self.row.shape[1]

    @property
    def per_register(self) -> int:
        return self.register_bits // self.element_bits

    @property
    def registers(self) -> int:
        """Registers per lane."""
        return -(-self.elements // self.per_register)

    def distinct_registers(self, shape: tuple[int, int], parts: int = 1) -> int:
        """Registers that hold the whole matrix: the others repeat them (wmma with f16)."""
        return max(1, min(self.registers, shape[0] * shape[1] * parts // LANES // self.per_register))

    def place(self, shape: tuple[int, int], parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(lane, element) arrays [parts, rows, columns]: the first place of each element of the matrix."""
        lane = np.full((parts, *shape), -1)
        element = np.full((parts, *shape), -1)
        for e in reversed(range(self.elements)):
            for w in range(LANES):
                at = self.part[w, e], self.row[w, e], self.col[w, e]
                lane[at], element[at] = w, e
        assert lane.min() >= 0, "an element has no place"
        return lane, element


@cache
def fragment(form: MultiplyForm, operand: str) -> Fragment:
    """The fragment of operand "a", "b", "c" or "d" of a form."""
    bits = form.container_bits(operand)
    register_bits = 64 if bits == 64 else 32
    if bits == 32 and form.type_of(operand) in ("f32", "s32", "tf32"):
        register_bits = 32
    if form.parts == 4:
        row, col = _volta(form, operand)
        part = np.repeat((np.arange(LANES) >> 2 & 3)[:, None], row.shape[1], axis=1)
        return Fragment(row, col, part, bits, register_bits)
    if form.family == "wmma":
        row, col = _wmma(form, operand, register_bits // bits)
    else:
        row, col = _tile(*form.matrix_shape(operand), operand, register_bits // bits)
    return Fragment(row, col, np.zeros_like(row), bits, register_bits)


def registers(form: MultiplyForm, operand: str) -> int:
    """Registers per lane of an operand."""
    return fragment(form, operand).registers


def _tile(rows: int, cols: int, operand: str, per: int) -> tuple[np.ndarray, np.ndarray]:
    """The fragment of mma: A of 8 or 16 rows, B of 8 columns, C and D of 8 or 16 rows and any multiple of 8 columns
    (neighbouring tiles of 8 columns one after another, as wgmma has them)."""
    lane = np.arange(LANES)[:, None]
    g, t = lane >> 2, lane & 3
    if operand in ("c", "d"):
        per = 2
    count = rows * cols // LANES
    element = np.arange(count)[None, :]
    register, within = element // per, element % per
    if operand == "a":
        high = rows // 8
        return g + 8 * (register % high), 4 * per * (register // high) + t * per + within
    if operand == "b":
        assert cols == 8, cols
        return 4 * per * register + t * per + within, g + 0 * register
    high = rows // 8
    return g + 8 * (register % high), 8 * (register // high) + 2 * t + within


def _wmma(form: MultiplyForm, operand: str, per: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles of mma side by side; the number of registers is the manual's, so f16 operands repeat themselves."""
    rows, cols = form.matrix_shape(operand)
    if operand == "b":
        parts = [_tile(rows, 8, "b", per) for _ in range(cols // 8)]
        row = np.concatenate([r for r, _ in parts], axis=1)
        col = np.concatenate([c + 8 * i for i, (_, c) in enumerate(parts)], axis=1)
    else:
        height = min(rows, 16)
        parts = [_tile(height, cols, operand, per) for _ in range(rows // height)]
        row = np.concatenate([r + 16 * i for i, (r, _) in enumerate(parts)], axis=1)
        col = np.concatenate([c for _, c in parts], axis=1)
    if form.a_type == "f16" and operand in ("a", "b"):
        times = 16 // row.shape[1]
        row, col = np.tile(row, (1, times)), np.tile(col, (1, times))
    return row, col


def _volta(form: MultiplyForm, operand: str) -> tuple[np.ndarray, np.ndarray]:
    """m8n8k4 with f16: lanes 4 i to 4 i + 3 and 16 more do the multiplication i."""
    lane = np.arange(LANES)[:, None]
    quad, upper = lane & 3, 4 * (lane >> 4)
    if operand in ("a", "b"):
        i = np.arange(4)[None, :]
        if (operand, form.a_layout if operand == "a" else form.b_layout) in (("a", "row"), ("b", "col")):
            major, minor = quad + upper + 0 * i, i + 0 * lane
        else:
            major, minor = i + upper, quad + 0 * i
        return (major, minor) if operand == "a" else (minor, major)
    i = np.arange(8)[None, :]
    if form.type_of(operand) == "f16":
        return quad + upper + 0 * i, i + 0 * lane
    return (lane & 1) + (i & 2) + upper, (i & 4) + (lane & 2) + (i & 1)


@dataclass(frozen=True, eq=False)
class SparseIndices:
    """Which rows of B the stored elements of a sparse A meet.

    lane, shift: int arrays [m, units], the lane whose metadata register holds the index of a unit, and its lowest bit.
    An index has `bits` bits. Unit u covers `width` stored elements, which meet the rows base[u] + step * index of B
    and those that follow.
    """

    lane: np.ndarray
    shift: np.ndarray
    base: np.ndarray
    bits: int
    step: int
    width: int

    def rows(self, metadata: Sequence[int]) -> list[list[int]]:
        """Rows of B for each stored element [m][stored k], from the 32 lanes' metadata."""
        found = []
        for lanes, shifts in zip(self.lane.tolist(), self.shift.tolist()):
            row: list[int] = []
            for lane, shift, base in zip(lanes, shifts, self.base.tolist()):
                first = base + self.step * (metadata[lane] >> shift & ((1 << self.bits) - 1))
                row += range(first, first + self.width)
            found.append(row)
        return found


@cache
def sparse_indices(form: MultiplyForm) -> SparseIndices:
    """Layout of the sparsity metadata (PTX ISA, "Sparse matrix storage" and the figures of the metadata).

    With elements of 16 bits or more, half a register holds 16 bits of a row: the low half of row g, the high half of
    row g + 8; threads follow along k. With smaller elements a register holds 32 bits of one row: even threads have
    row g, odd ones row g + 8, and the upper two threads the second half of k.
    """
    bits = form.container_bits("a")
    pairs = bits == 4
    if form.a_type == "tf32":
        units = np.arange(form.stored_k)
        # a nibble is 0b0100 for the first element of two and 0b1110 for the second: its bit 1 tells
        at, base, index_bits, step, width = 4 * units + 1, 2 * units, 1, 1, 1
        row_bits = 4 * form.stored_k
    else:
        step = width = 2 if pairs else 1
        units = np.arange(form.stored_k // width)
        at, base, index_bits = 2 * units, 4 * step * (units // 2), 2
        row_bits = 2 * len(units)
    row = np.arange(form.m)[:, None]
    high = row // 8
    if bits >= 16:
        threads = row_bits // 16
        thread, shift = at // 16, at % 16 + 16 * high
    else:
        threads = 2 * (row_bits // 32)
        thread, shift = high + 2 * (at // 32), at % 32 + 0 * high
    lane = 4 * (row % 8) + threads * form.selector + thread
    return SparseIndices(lane + 0 * shift, shift + 0 * lane, base, index_bits, step, width)


def scale_places(form: MultiplyForm, operand: str) -> np.ndarray:
    """Lane that holds the scales of a row of A, or of a column of B, with both thread selectors 0 (PTX ISA, "Block
    Scaling for mma.sync"): the lowest byte belongs to the first block along k."""
    number = np.arange(form.m if operand == "a" else form.n)
    return 4 * (number % 8) + number // 8
