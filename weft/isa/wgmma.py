"""wgmma: matrix multiplication of a warpgroup (four warps) with B, and A if wished, in shared memory.

Each warp computes its own 16 rows of the 64: an m16 x N x k multiplication whose accumulators are those of N / 8
neighbouring m16n8 tiles. The multiplication happens where it is issued. That is legal: a program may not look at the
accumulators, or write to the matrices, before it has waited. `wgmma.fence`, `commit_group` and `wait_group` therefore
only order.

A matrix in shared memory is described by a 64-bit descriptor (`MatrixDescriptor`). Whatever the type, a row of A takes
32 bytes along k, two chunks of 16 bytes; descriptors say where each chunk lies.

Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions" (9.7.15).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.errors import KernelFault, PtxError
from weft.isa.fragments import MultiplyForm, sparse_indices
from weft.isa.instruction import Match, instruction
from weft.isa.operands import Immediate, Instruction, Negated, Vector
from weft.types import TYPES

WARPGROUP_WARPS = 4
WARP_ROWS = 16
ROWS = 64
CHUNK_BYTES = 16

ELEMENT_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "b1": 1}
SWIZZLE_BYTES = (16, 128, 64, 32)  # by the descriptor's mode; 16: none


@dataclass(frozen=True)
class MatrixDescriptor:
    """Where a matrix lies in shared memory. All in bytes; `swizzle` is the width of a swizzled row, 16 without
    swizzling, `base` the number of the 128-byte line at which the pattern of eight rows begins.

    Section 9.7.15.5.1.2, "Canonical Layouts": a "line" here is a row (K-major) or a value of k (MN-major), a chunk the
    16 bytes at a place along the other dimension.
    """

    start: int
    leading: int
    stride: int
    base: int
    swizzle: int

    @staticmethod
    def decode(word: int) -> MatrixDescriptor:
        """The fields of a descriptor's 64 bits (section 9.7.15.5.1.2.2)."""
        return MatrixDescriptor(
            (word & 0x3FFF) << 4, (word >> 16 & 0x3FFF) << 4, (word >> 32 & 0x3FFF) << 4, word >> 49 & 7,
            SWIZZLE_BYTES[word >> 62 & 3],
        )  # fmt: skip

    def encode(self) -> int:
        """The descriptor's 64 bits."""
        mode = SWIZZLE_BYTES.index(self.swizzle)
        return self.start >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32 | self.base << 49 | mode << 62

    def chunk_address(self, line: int, chunk: int, mn_major: bool) -> int:
        """The shared address of 16 bytes: K-major, chunk `chunk` along k of row `line`; MN-major, rows 8 * chunk to
        8 * chunk + 7 at k = line."""
        wide = self.swizzle // CHUNK_BYTES
        atom, row = divmod(line, 8)
        if not mn_major:
            step = self.leading if wide == 1 else CHUNK_BYTES
            address = self.start + row * self.swizzle + atom * self.stride + chunk * step
        elif wide == 1:
            address = self.start + row * CHUNK_BYTES + atom * self.leading + chunk * self.stride
        else:
            across, within = divmod(chunk, wide)
            address = (
                self.start + row * self.swizzle + atom * self.stride + across * self.leading + within * CHUNK_BYTES
            )
        return address ^ ((address >> 7) - self.base & wide - 1) << 4

    def end(self, lines: int, chunks: int, mn_major: bool) -> int:
        """The first address behind a matrix of so many lines and chunks (both at least 1), a swizzled row counted
        whole."""
        wide = self.swizzle // CHUNK_BYTES
        atoms, rows = (lines - 1) // 8, min(lines, 8) - 1
        last = self.start + rows * self.swizzle
        if not mn_major:
            last += atoms * self.stride + (chunks - 1) * (self.leading if wide == 1 else CHUNK_BYTES)
        elif wide == 1:
            last += atoms * self.leading + (chunks - 1) * self.stride
        else:
            across = (chunks - 1) // wide
            last += atoms * self.stride + across * self.leading + (min(chunks, wide) - 1) * CHUNK_BYTES
        return (last | self.swizzle - 1) + 1

    def problem(self, lines: int, chunks: int, mn_major: bool, shared_bytes: int) -> str:
        """What makes the descriptor unusable; "" for nothing. A K-major row must fit the swizzled row."""
        if not mn_major and self.swizzle > CHUNK_BYTES and chunks * CHUNK_BYTES > self.swizzle:
            return f"a row of {chunks * CHUNK_BYTES} bytes does not fit a swizzle of {self.swizzle} bytes"
        end = self.end(lines, chunks, mn_major)
        if end > shared_bytes:
            return f"the matrix at {self.start:#x} ends at {end:#x}, shared memory at {shared_bytes:#x}"
        return ""


@dataclass(frozen=True)
class WgmmaForm:
    """One form of wgmma.mma_async as a warp sees it: D (16 x n) = A (16 x k) * B (k x n) + D.

    a_major and b_major are "k" or "mn"; a_major is "" where A is in registers. `negate` flips the sign of the
    products. `selector` is the sparsity selector, None where A is dense; then half of A's columns are stored.
    """

    n: int
    k: int
    a_type: str
    b_type: str
    d_type: str
    a_major: str
    b_major: str
    negate: bool = False
    saturate: bool = False
    selector: int | None = None

    @property
    def stored_k(self) -> int:
        """Columns of A that are stored."""
        return self.k if self.selector is None else self.k // 2

    @property
    def accumulators(self) -> int:
        """Registers of D per thread."""
        return self.n // 4 if self.d_type == "f16" else self.n // 2

    def lines_and_chunks(self, operand: str) -> tuple[int, int]:
        """The lines and 16-byte chunks of a matrix in shared memory: all 64 rows of A, all of B."""
        major, rows = (self.a_major, ROWS) if operand == "a" else (self.b_major, self.n)
        depth = self.stored_k if operand == "a" else self.k
        bits = ELEMENT_BITS[self.a_type if operand == "a" else self.b_type]
        if major == "mn":
            return depth, rows * bits // 8 // CHUNK_BYTES
        return rows, depth * bits // 8 // CHUNK_BYTES


@dataclass(frozen=True)
class WgmmaOperands:
    """The operands of one instruction. `a` is a Vector of registers or a descriptor."""

    d: Vector
    a: Any
    b: Any
    scale_d: Any
    metadata: Any = None


def read_form(m: Match, ins: Instruction, file: str = "") -> tuple[WgmmaForm, WgmmaOperands]:
    """Raises PtxError for operands that do not go together: a fragment of the wrong size, constants that are out of
    range."""

    def wrong(text: str) -> PtxError:
        return PtxError(f"{ins.name}: {text}", file=file, line=ins.line)

    def constant(operand: object, what: str, allowed: tuple[int, ...]) -> int:
        value = operand.value if isinstance(operand, Immediate) else None
        if value not in allowed:
            raise wrong(f"{what} must be a constant, one of {', '.join(map(str, allowed))}")
        return int(value)

    operands = list(ins.operands)
    n, k = (int(x) for x in m.shape[4:].split("k"))
    a_type, b_type, d_type = str(m.atype), str(m.btype), str(m.dtype)
    d, a, b = operands[:3]
    rest = operands[3:]
    metadata = selector = None
    if m.get("sp"):
        metadata = rest[0]
        allowed = (0, 1) if ELEMENT_BITS[a_type] >= 16 else (0,)
        selector = constant(rest[1], "the sparsity selector", allowed)
        rest = rest[2:]
    scale_d, rest = rest[0], rest[1:]
    in_registers = isinstance(a, Vector)
    negate, majors = False, ["k", "k"]
    if d_type != "s32":
        signs = [constant(rest[i], f"imm-scale-{'ab'[i]}", (-1, 1)) for i in (0, 1)]
        negate = signs[0] != signs[1]
        rest = rest[2:]
        if ELEMENT_BITS[a_type] == 16:
            expected = 1 if in_registers else 2
            if len(rest) != expected:
                raise wrong(
                    f"A in {'registers' if in_registers else 'shared memory'} goes with "
                    f"{'imm-trans-b alone' if in_registers else 'imm-trans-a and imm-trans-b'}"
                )
            flags = [constant(operand, "imm-trans", (0, 1)) for operand in rest]
            majors = ["mn" if flag else "k" for flag in (flags if len(flags) == 2 else [0, *flags])]
    form = WgmmaForm(
        n, k, a_type, b_type, d_type, "" if in_registers else majors[0], majors[1], negate, bool(m.get("satfinite")),
        selector,
    )  # fmt: skip
    if not isinstance(d, Vector) or len(d.items) != form.accumulators:
        found = len(d.items) if isinstance(d, Vector) else 1
        raise wrong(f"D has {found} registers, expected {form.accumulators}")
    if in_registers and len(a.items) != 4:
        raise wrong(f"A has {len(a.items)} registers, expected 4")
    return form, WgmmaOperands(d, a, b, scale_d, metadata)


# ---------------------------------------------------------------- reference
def _values(words: np.ndarray, type_: str) -> np.ndarray:
    """16-byte chunks (uint8 [..., 16]) as numbers [..., elements]: float64, or int64 for integers and words of bits."""
    if type_ == "b1":
        return words.view(np.uint32).astype(np.int64)
    if type_ in ("s8", "u8"):
        return words.view(np.int8 if type_ == "s8" else np.uint8).astype(np.int64)
    if type_ == "f16":
        return words.view(np.float16).astype(np.float64)
    if type_ == "bf16":
        return (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if type_ == "tf32":
        return (words.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if type_ == "e5m2":
        return (words.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    sign = np.where(words & 0x80, -1.0, 1.0)
    exponent, fraction = (words >> 3 & 15).astype(np.int64), (words & 7).astype(np.float64)
    normal = np.ldexp(8 + fraction, exponent - 10)
    value = sign * np.where(exponent == 0, np.ldexp(fraction, -9), normal)
    return np.where(words & 0x7F == 0x7F, np.nan, value)


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once to float32; the products of a and b are exact in float64.

    The sum in float64 is made odd where it is inexact (Boldo and Melquiond, "Emulation of FMA and correctly rounded
    sums"), so that the second rounding sees all it must.
    """
    with np.errstate(all="ignore"):
        product = a * b
        total = product + c
        back = total - product
        error = (product - (total - back)) + (c - back)
        bits = total.view(np.int64)
        towards = np.where((error > 0) == (total > 0), 1, -1)
        odd = np.where((error != 0) & np.isfinite(total) & (bits & 1 == 0), bits + np.where(towards > 0, 1, -1), bits)
        return odd.view(np.float64).astype(np.float32)


def multiply_rows(
    form: WgmmaForm, d: np.ndarray, a: np.ndarray, b: np.ndarray, places: np.ndarray | None
) -> np.ndarray:
    """D of one warp: d [16, n] (float32, float16 or int64), a [16, stored_k], b [k, n] as `_values` gives them.

    places [16, stored_k]: the k of each stored element of a sparse A, None for a dense one. Products are added in
    ascending k by fused multiply-add in float32; f16 accumulators are rounded once, at the end; integers wrap or
    saturate.
    """
    depth = a.shape[1]
    if form.d_type == "s32":
        total = np.zeros(d.shape, np.int64)
        for i in range(depth):
            rows = b[i][None, :] if places is None else b[places[:, i]]
            if form.a_type == "b1":
                total += np.bitwise_count((a[:, i : i + 1] & rows).astype(np.uint32))
            else:
                total += a[:, i : i + 1] * rows
        total += d
        if form.saturate:
            return np.clip(total, -(2**31), 2**31 - 1)
        return (total + 2**31) % 2**32 - 2**31
    sign = -1.0 if form.negate else 1.0
    total = d.astype(np.float64)
    for i in range(depth):
        rows = b[i][None, :] if places is None else b[places[:, i]]
        total = _fused(sign * a[:, i : i + 1], rows, total).astype(np.float64)
    with np.errstate(over="ignore"):
        return total.astype(np.float16) if form.d_type == "f16" else total.astype(np.float32)


def stored_places(form: WgmmaForm, metadata: list[int]) -> np.ndarray:
    """[16, stored_k]: the k of each stored element of a sparse A, from the metadata of the 32 lanes, which are laid out
    as those of mma.sp with 16 rows (section 9.7.15.6.1)."""
    tile = MultiplyForm(
        WARP_ROWS, 8, form.k, form.a_type, form.b_type, form.d_type, form.d_type, sparse="standard",
        selector=form.selector,
    )  # fmt: skip
    return np.array(sparse_indices(tile).rows(metadata))


def _shared_matrix(form: WgmmaForm, operand: str, thread, word: int, rows: range) -> np.ndarray:
    """Rows of a matrix in shared memory, as numbers [rows, k]."""
    descriptor = MatrixDescriptor.decode(word)
    major = form.a_major if operand == "a" else form.b_major
    lines, chunks = form.lines_and_chunks(operand)
    wrong = descriptor.problem(lines, chunks, major == "mn", thread.interpreter.shared_bytes)
    if wrong:
        raise thread.fault(KernelFault, f"matrix descriptor {word:#018x}: {wrong}")

    def chunk(line: int, at: int) -> np.ndarray:
        data = thread.load("shared", descriptor.chunk_address(line, at, major == "mn"), CHUNK_BYTES)
        return np.frombuffer(data.to_bytes(CHUNK_BYTES, "little"), np.uint8)

    type_ = form.a_type if operand == "a" else form.b_type
    if major == "k":
        return np.stack([np.concatenate([_values(chunk(r, c), type_) for c in range(chunks)]) for r in rows])
    whole = [[_values(chunk(k, c), type_) for k in range(lines)] for c in range(rows.start // 8, rows.stop // 8)]
    return np.concatenate([np.stack(part, axis=1) for part in whole])


def _register_matrix(form: WgmmaForm, threads: dict, items: tuple) -> np.ndarray:
    """A from registers, as numbers [16, stored_k]: register r holds rows 0 to 7 (even r) or 8 to 15 of chunk r // 2,
    four lanes the 16 bytes of a row."""
    found = []
    for row in range(WARP_ROWS):
        data = b""
        for c in (0, 1):
            item = items[2 * c + row // 8]
            lanes = range(4 * (row % 8), 4 * (row % 8) + 4)
            data += b"".join(threads[lane].read(item, TYPES["b32"]).to_bytes(4, "little") for lane in lanes)
        found.append(_values(np.frombuffer(data, np.uint8), form.a_type))
    return np.stack(found)


def _fragment_places(form: WgmmaForm):
    """(register, lane, shift, row, column) of every accumulator."""
    for column in range(form.n):
        for row in range(WARP_ROWS):
            lane = 4 * (row % 8) + column % 8 // 2
            element = column // 8 * 4 + 2 * (row // 8) + column % 2
            if form.d_type == "f16":
                yield element // 2, lane, 16 * (element % 2), row, column
            else:
                yield element, lane, 0, row, column


def multiply_reference(lanes: list, m: Match, ins: Instruction) -> None:
    """One warp's part of wgmma.mma_async, for the interpreter's 32 threads of that warp (None: not there)."""
    group = [t for t in lanes if t is not None]
    thread = group[0]
    form, operands = read_form(m, ins)
    if len(group) != 32:
        raise thread.fault(KernelFault, f"{len(group)} of 32 threads of the warp execute the instruction together")
    threads = {t.lane: t for t in group}
    rank = thread.warp % WARPGROUP_WARPS
    if form.a_major:
        rows = range(WARP_ROWS * rank, WARP_ROWS * (rank + 1))
        a = _shared_matrix(form, "a", thread, thread.read(operands.a, TYPES["b64"]), rows)
    else:
        a = _register_matrix(form, threads, operands.a.items)
    b = _shared_matrix(form, "b", thread, thread.read(operands.b, TYPES["b64"]), range(form.n)).T
    places = None
    if form.selector is not None:
        places = stored_places(form, [threads[lane].read(operands.metadata, TYPES["b32"]) for lane in range(32)])
    keep = thread.read(operands.scale_d, TYPES["pred"])
    words = np.zeros((form.accumulators, 32), np.int64)
    if keep:
        for r, item in enumerate(operands.d.items):
            words[r] = [threads[lane].read(item, TYPES["b32"]) for lane in range(32)]
    spots = list(_fragment_places(form))
    bits = 16 if form.d_type == "f16" else 32
    raw = np.zeros((WARP_ROWS, form.n), np.uint16 if bits == 16 else np.uint32)
    for r, lane, shift, row, column in spots:
        raw[row, column] = words[r, lane] >> shift & (1 << bits) - 1
    d = raw.view(np.int32).astype(np.int64) if form.d_type == "s32" else raw.view(f"f{bits // 8}")
    result = multiply_rows(form, d, a, b, places)
    if form.d_type == "s32":
        result = result.astype(np.int32)
    out = np.ascontiguousarray(result).view(raw.dtype)
    words[:] = 0
    for r, lane, shift, row, column in spots:
        words[r, lane] |= int(out[row, column]) << shift
    for r, item in enumerate(operands.d.items):
        for lane in range(32):
            threads[lane].write(item, TYPES["b32"], int(words[r, lane]))


# ---------------------------------------------------------------- entries
_FLOAT_N = tuple(range(8, 257, 8))
_INTEGER_N = (8, 16, 24, 32, *range(48, 257, 16))


def _shapes(sizes: tuple[int, ...], k: int) -> tuple[str, ...]:
    return tuple(f"m64n{n}k{k}" for n in sizes)


class _Multiply:
    """D = A * B + D, or A * B where scale-d is false."""

    @staticmethod
    def reference(threads, m, ins):
        multiply_reference(threads, m, ins)

    @staticmethod
    def emit(b, m, ins):
        form, operands = read_form(m, ins, b.file)
        b.wgmma(form, operands)


def _same_types(m: Match) -> str:
    return "" if m.atype == m.btype else f"A and B must be of one type, found {m.atype} and {m.btype}"


def _define(sparse: bool) -> None:
    head = "wgmma.mma_async{sp}.sync.aligned.shape".format(sp=".sp" if sparse else "")
    tail = " d, a, b, e, s, f" if sparse else " d, a, b, f"
    common = {
        "raw": True, "collective": True, "pipe": "tensor", "sm": 90, "ptx": "8.2" if sparse else "8.0",
        "effects": ("accumulates", "convergence"), "section": "9.7.15.6.3" if sparse else "9.7.15.5.2",
    }  # fmt: skip
    fold = 2 if sparse else 1
    for types, dtypes in ((("f16",), ("f16", "f32")), (("bf16",), ("f32",))):
        instruction(
            f"{head}.dtype.atype.btype{tail}, i, j, t{{, u}}", shape=_shapes(_FLOAT_N, 16 * fold), dtype=dtypes,
            atype=types, btype=types, **common,
        )(_Multiply)  # fmt: skip
    instruction(
        f"{head}.dtype.atype.btype{tail}, i, j", shape=_shapes(_FLOAT_N, 8 * fold), dtype=("f32",), atype=("tf32",),
        btype=("tf32",), **common,
    )(_Multiply)  # fmt: skip
    eight = ("e4m3", "e5m2")
    instruction(
        f"{head}.dtype.atype.btype{tail}, i, j", shape=_shapes(_FLOAT_N, 32 * fold), dtype=("f16", "f32"),
        atype=eight, btype=eight, **common,
    )(_Multiply)  # fmt: skip
    instruction(
        f"{head}{{.satfinite}}.dtype.atype.btype{tail}", shape=_shapes(_INTEGER_N, 32 * fold), dtype=("s32",),
        atype=("s8", "u8"), btype=("s8", "u8"), **common,
    )(_Multiply)  # fmt: skip
    if not sparse:
        instruction(
            f"{head}.dtype.atype.btype.and.popc{tail}", shape=_shapes(_INTEGER_N, 256), dtype=("s32",),
            atype=("b1",), btype=("b1",), **common,
        )(_Multiply)  # fmt: skip


for _sparse in (False, True):
    _define(_sparse)


class _Order:
    """Multiplications have happened when they were issued."""

    @staticmethod
    def reference(t, m, ins):
        return None

    @staticmethod
    def emit(b, m, ins):
        if "wait_group" in ins.modifiers:
            b.finish_wgmma()


_ORDER = {"raw": True, "pipe": "tensor", "effects": ("convergence",), "ptx": "8.0", "sm": 90}


@instruction("wgmma.fence.sync.aligned", section="9.7.15.7.1", **_ORDER)
@instruction("wgmma.commit_group.sync.aligned", section="9.7.15.7.2", **_ORDER)
@instruction("wgmma.wait_group.sync.aligned a", operands={"a": "u32"}, section="9.7.15.7.3", **_ORDER)
class WgmmaOrder(_Order):
    """Fences, groups and waits."""


def scale_is_constant(operand: object) -> bool | None:
    """Whether scale-d is known from the text: its value, or None."""
    if isinstance(operand, Immediate):
        return bool(operand.value)
    if isinstance(operand, Negated) and isinstance(operand.operand, Immediate):
        return not operand.operand.value
    return None
