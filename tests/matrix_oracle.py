"""An oracle for tensor-core instructions that shares nothing with the package: layouts from the PTX manual's formulas,
arithmetic in NumPy.

What enters: a form as text (`Form`) and matrices of bit patterns; what leaves: registers of the lanes, or the expected
result. The layouts are written out shape by shape, as the manual's sections "Matrix Fragments for mma.m..." have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np

BITS = {"b1": 1, "s4": 4, "u4": 4, "e2m1": 4, "e2m3": 6, "e3m2": 6, "s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8, "f16": 16,
        "bf16": 16, "tf32": 32, "f32": 32, "s32": 32, "f64": 64}  # fmt: skip
SMALL = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e2m3": ml_dtypes.float6_e2m3fn,
         "e3m2": ml_dtypes.float6_e3m2fn, "e2m1": ml_dtypes.float4_e2m1fn}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """One instruction. `suffix` is what follows the types, `prefix` what stands before them."""

    shape: str
    types: tuple[str, str, str, str]  # d, a, b, c
    layouts: str = "row.col"
    kind: str = ""
    saturate: bool = False
    operation: str = ""
    rounding: str = ""
    sparse: str = ""
    scale_type: str = ""
    scale_vector: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        m, _, rest = self.shape[1:].partition("n")
        n, _, k = rest.partition("k")
        return int(m), int(n), int(k)

    @property
    def name(self) -> str:
        words = ["mma" + (f".{self.sparse}" if self.sparse else ""), "sync.aligned", self.shape, self.layouts]
        if self.kind:
            words.append(f"kind::{self.kind}")
        if self.scale_type:
            words.append("block_scale" + (f".scale_vec::{self.scale_vector}X" if self.scale_vector else ""))
        if self.saturate:
            words.append("satfinite")
        words += self.types
        words += [x for x in (self.scale_type, f"{self.operation}.popc" if self.operation else "", self.rounding) if x]
        return ".".join(words)

    @property
    def parts(self) -> int:
        return 4 if self.shape == "m8n8k4" and self.types[1] == "f16" else 1

    @property
    def blocks(self) -> int:
        """Scales along k."""
        return self.scale_vector or {"mxf8f6f4": 1, "mxf4": 2}[self.kind]

    def container(self, operand: str) -> int:
        type_ = dict(zip("dabc", self.types))[operand]
        return 8 if self.kind in ("f8f6f4", "mxf8f6f4") and operand in "ab" else BITS[type_]


# ---------------------------------------------------------------- layouts, from the manual
def _by_parts(form: Form, operand: str, lane: int, i: int) -> tuple[int, int]:
    """mma.m8n8k4 with .f16."""
    low = lane % 4 if lane < 16 else lane % 4 + 4
    a_layout, b_layout = form.layouts.split(".")
    if operand == "a":
        return (low, i) if a_layout == "row" else (i % 4 if lane < 16 else i % 4 + 4, lane % 4)
    if operand == "b":
        return (lane % 4, i if lane < 16 else i + 4) if b_layout == "row" else (i, low)
    if form.types["d_abc".index(operand) and 3 if operand == "c" else 0] == "f16":
        return low, i
    x = (lane & 1) + (i & 2)
    return (x if lane < 16 else x + 4), (i & 4) + (lane & 2) + (i & 1)


A_LAYOUTS: dict[tuple[str, int], Callable[[int, int, int], tuple[int, int]]] = {
    # (shape with stored k, bits of a container): g, t, i -> row, column
    ("m8k4", 64): lambda g, t, i: (g, t),
    ("m8k16", 8): lambda g, t, i: (g, t * 4 + i),
    ("m8k32", 4): lambda g, t, i: (g, t * 8 + i),
    ("m8k128", 1): lambda g, t, i: (g, t * 32 + i),
    ("m16k4", 32): lambda g, t, i: (g if i == 0 else g + 8, t),
    ("m16k4", 64): lambda g, t, i: (g if i == 0 else g + 8, t),
    ("m16k8", 16): lambda g, t, i: (g if i < 2 else g + 8, t * 2 + (i & 1)),
    ("m16k8", 32): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    ("m16k8", 64): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    ("m16k16", 16): lambda g, t, i: (g if i < 2 or 4 <= i < 6 else g + 8, t * 2 + (i & 1) + (0 if i < 4 else 8)),
    ("m16k16", 64): lambda g, t, i: (g if i % 2 == 0 else g + 8, (i * 2) + t if i % 2 == 0 else (i * 2) - 2 + t),
    ("m16k16", 8): lambda g, t, i: (g if i < 4 else g + 8, t * 4 + (i & 3)),
    ("m16k32", 4): lambda g, t, i: (g if i < 8 else g + 8, t * 8 + (i & 7)),
    ("m16k32", 8): lambda g, t, i: (g if i < 4 or 8 <= i < 12 else g + 8, t * 4 + (i & 3) + (0 if i < 8 else 16)),
    ("m16k64", 4): lambda g, t, i: (g if i < 8 or 16 <= i < 24 else g + 8, t * 8 + (i & 7) + (0 if i < 16 else 32)),
    ("m16k128", 1): lambda g, t, i: (g if i < 32 else g + 8, t * 32 + (i & 31)),
    ("m16k256", 1): lambda g, t, i: (g if i < 32 or 64 <= i < 96 else g + 8,
                                      t * 32 + (i & 31) + (0 if i < 64 else 128)),
}  # fmt: skip
B_LAYOUTS: dict[tuple[int, int], Callable[[int, int, int], tuple[int, int]]] = {
    # (k, bits of a container)
    (4, 64): lambda g, t, i: (t, g),
    (8, 64): lambda g, t, i: (t if i == 0 else t + 4, g),
    (16, 64): lambda g, t, i: (t + i * 4, g),
    (4, 32): lambda g, t, i: (t, g),
    (8, 32): lambda g, t, i: (t if i == 0 else t + 4, g),
    (16, 32): lambda g, t, i: (t + i * 4, g),
    (8, 16): lambda g, t, i: (t * 2 + i, g),
    (16, 16): lambda g, t, i: (t * 2 + (i & 1) + (0 if i < 2 else 8), g),
    (32, 16): lambda g, t, i: (t * 2 + (i & 1) + 8 * (i // 2), g),
    (16, 8): lambda g, t, i: (t * 4 + i, g),
    (32, 8): lambda g, t, i: (t * 4 + (i & 3) + (0 if i < 4 else 16), g),
    (64, 8): lambda g, t, i: (t * 4 + (i & 3) + 16 * (i // 4), g),
    (32, 4): lambda g, t, i: (t * 8 + i, g),
    (64, 4): lambda g, t, i: (t * 8 + (i & 7) + (0 if i < 8 else 32), g),
    (128, 4): lambda g, t, i: (t * 8 + (i & 7) + 32 * (i // 8), g),
    (128, 1): lambda g, t, i: (t * 32 + (i & 31), g),
    (256, 1): lambda g, t, i: (t * 32 + (i & 31) + (0 if i < 32 else 128), g),
}


def place(form: Form, operand: str, lane: int, i: int) -> tuple[int, int]:
    """(row, column) of element i of a lane."""
    if form.parts == 4:
        return _by_parts(form, operand, lane, i)
    m, _, k = form.sizes
    g, t = lane >> 2, lane % 4
    bits = form.container(operand)
    if operand == "a":
        return A_LAYOUTS[f"m{m}k{k // 2 if form.sparse else k}", bits](g, t, i)
    if operand == "b":
        # the single bits of m8n8k128 and m16n8k128 are alike
        return B_LAYOUTS[k, bits](g, t, i)
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def shape_of(form: Form, operand: str) -> tuple[int, int]:
    m, n, k = form.sizes
    return {"a": (m, k // 2 if form.sparse else k), "b": (k, n)}.get(operand, (m, n))


def element_count(form: Form, operand: str) -> int:
    rows, columns = shape_of(form, operand)
    return rows * columns * form.parts // 32


def to_registers(form: Form, operand: str, matrices: np.ndarray) -> np.ndarray:
    """Registers [32, count] of an operand from patterns [parts, rows, columns]."""
    bits = form.container(operand)
    width = 64 if bits == 64 else 32
    per = width // bits
    count = element_count(form, operand)
    words = np.zeros((32, -(-count // per)), np.uint64)
    for lane in range(32):
        part = (lane >> 2) % 4 if form.parts == 4 else 0
        for i in range(count):
            row, column = place(form, operand, lane, i)
            words[lane, i // per] |= np.uint64(int(matrices[part, row, column]) << (i % per * bits))
    return words.astype(f"u{width // 8}")


def from_registers(form: Form, operand: str, words: np.ndarray) -> np.ndarray:
    """The inverse of `to_registers`."""
    bits = form.container(operand)
    per = words.dtype.itemsize * 8 // bits
    found = np.zeros((form.parts, *shape_of(form, operand)), f"u{max(bits, 8) // 8}")
    for lane in range(32):
        part = (lane >> 2) % 4 if form.parts == 4 else 0
        for i in range(element_count(form, operand)):
            row, column = place(form, operand, lane, i)
            pattern = int(words[lane, i // per]) >> (i % per * bits) & ((1 << bits) - 1)
            found[part, row, column] = pattern
    return found


# ---------------------------------------------------------------- sparsity, from measured and published layouts
def random_columns(form: Form, rng: np.random.Generator) -> np.ndarray:
    """For each stored element of A, its column: a random legal pattern [m, k / 2]."""
    m, _, k = form.sizes
    bits = form.container("a")
    width, keep, unit = (2, 1, 1) if form.types[1] == "tf32" else (8, 2, 2) if bits == 4 else (4, 2, 1)
    rows = []
    for _ in range(m):
        row = []
        for chunk in range(k // width):
            for pick in sorted(rng.choice(width // unit, keep, replace=False)):
                row += [chunk * width + int(pick) * unit + i for i in range(unit)]
        rows.append(row)
    return np.array(rows)


def to_metadata(form: Form, columns: np.ndarray, selector: int) -> np.ndarray:
    """Metadata words of the 32 lanes; lanes that contribute none hold rubbish."""
    m, _, k = form.sizes
    type_, bits = form.types[1], form.container("a")
    # 16 bits of metadata ("E") cover four chunks of a row
    halves = []
    for row in columns.tolist():
        nibbles = []
        if type_ == "tf32":
            nibbles = [0b1110 if column % 2 else 0b0100 for column in row]
        else:
            unit = 2 if bits == 4 else 1
            indices = [column // unit % 4 for column in row[::unit]]
            nibbles = [low | high << 2 for low, high in zip(indices[::2], indices[1::2])]
        halves.append([sum(n << 4 * i for i, n in enumerate(nibbles[at : at + 4])) for at in range(0, len(nibbles), 4)])
    e = np.array(halves)
    words = np.full(32, 0xDEADBEEF, np.uint32)
    for lane in range(32):
        g, t = lane >> 2, lane % 4
        if bits >= 16:
            threads = e.shape[1]  # one or two of a quad
            if t // threads == selector:
                words[lane] = e[g, t % threads] | e[g + 8, t % threads] << 16
        else:
            threads = 2 * (e.shape[1] // 2)
            if threads == 4 or t // 2 == selector:
                at = 2 * (t >> 1) if threads == 4 else 0
                row = g + 8 * (t & 1)
                words[lane] = e[row, at] | e[row, at + 1] << 16
    return words


# ---------------------------------------------------------------- numbers
def values_of(type_: str, patterns: np.ndarray, kind: str = "") -> np.ndarray:
    """Patterns as float64 (all formats fit), integers as int64."""
    with np.errstate(invalid="ignore"):
        return _values_of(type_, np.asarray(patterns), kind)


def _values_of(type_: str, p: np.ndarray, kind: str) -> np.ndarray:
    if type_ in ("s8", "s4", "s32"):
        half = 1 << (BITS[type_] - 1)
        return (p.astype(np.int64) ^ half) - half
    if type_ in ("u8", "u4", "b1"):
        return p.astype(np.int64)
    if type_ == "f16":
        return p.astype(np.uint16).view(np.float16).astype(np.float64)
    if type_ == "bf16":
        return p.astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    if type_ == "tf32":
        return (p.astype(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if type_ == "f32":
        return p.astype(np.uint32).view(np.float32).astype(np.float64)
    if type_ == "f64":
        return p.astype(np.uint64).view(np.float64)
    if kind in ("f8f6f4", "mxf8f6f4"):
        p = p >> 2 & 15 if type_ == "e2m1" else p & ((1 << BITS[type_]) - 1)
    return p.astype(np.uint8).view(SMALL[type_]).astype(np.float64)


def fused_f32(product: np.ndarray, total: np.ndarray) -> np.ndarray:
    """float32(product + total) rounded once; product is exact in float64, total an f32.

    The sum is rounded to odd in float64 first, so that the second rounding does no harm (Boldo and Melquiond).
    """
    total = total.astype(np.float64)
    with np.errstate(all="ignore"):
        s = product + total
        back = s - product
        rest = (product - (s - back)) + (total - back)
        bits = s.view(np.int64).copy()
        inexact = np.isfinite(s) & np.isfinite(rest) & (rest != 0) & (bits & 1 == 0)
        bits += np.where(inexact, np.where((rest > 0) == (s > 0), 1, -1), 0)
        return bits.view(np.float64).astype(np.float32)


def expected(form: Form, a, b, c, columns=None, scales=None) -> np.ndarray:
    """Patterns of D for one part; NaN as any NaN pattern. `scales` are float64 [m, blocks] and [blocks, n]."""
    m, n, k = form.sizes
    type_d, type_a, type_b, type_c = form.types
    if columns is None:
        columns = np.tile(np.arange(k), (m, 1))
    x, y = values_of(type_a, a, form.kind), values_of(type_b, b, form.kind)
    steps = columns.shape[1]
    if form.operation:
        pairs = a[:, :, None] & b[None] if form.operation == "and" else a[:, :, None] ^ b[None]
        return (values_of("s32", c) + pairs.astype(np.int64).sum(axis=1)).astype(np.uint32)
    if type_d == "s32":
        total = values_of("s32", c)
        for j in range(steps):
            total = total + x[:, j, None] * y[columns[:, j]]
        return np.clip(total, -(2**31), 2**31 - 1).astype(np.int32).view(np.uint32) if form.saturate else total.astype(
            np.uint32)  # fmt: skip
    if type_d == "f64":
        return _doubles(x, y, values_of("f64", c))
    with np.errstate(all="ignore"):
        total = values_of(type_c, c).astype(np.float32)
        if scales is not None:
            step = steps // form.blocks
            for block in range(form.blocks):
                part = np.zeros((m, n))
                for j in range(block * step, (block + 1) * step):
                    part = _fused_f64(x[:, j, None] * y[columns[:, j]], part)
                part = part * (scales[0][:, block, None] * scales[1][None, block])
                total = (total.astype(np.float64) + part).astype(np.float32)
        else:
            for j in range(steps):
                total = fused_f32(x[:, j, None] * y[columns[:, j]], total)
        if type_d == "f16":
            return total.astype(np.float16).view(np.uint16)
    return total.view(np.uint32)


def _fused_f64(product: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Products of the small types are exact in float64, so a plain sum is the fused one."""
    return product + total


def _doubles(x: np.ndarray, y: np.ndarray, c: np.ndarray) -> np.ndarray:
    """By exact fractions where all is finite; Python rounds a quotient of integers correctly."""
    found = np.zeros(c.shape)
    for i, j in np.ndindex(*c.shape):
        total = float(c[i, j])
        for left, right in zip(x[i].tolist(), y[:, j].tolist()):
            if not all(map(math.isfinite, (left, right, total))):
                if not (math.isfinite(left) and math.isfinite(right)):
                    total = left * right + total
                continue  # a finite product leaves infinity and NaN as they are
            exact = Fraction(left) * Fraction(right) + Fraction(total)
            try:
                total = exact.numerator / exact.denominator if exact else left * right + total
            except OverflowError:
                total = math.inf if exact > 0 else -math.inf
        found[i, j] = total
    return found.view(np.uint64)


def same(type_: str, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Elementwise: the same pattern, or NaN both."""
    equal = found == wanted
    if type_ in ("f16", "f32", "f64"):
        equal |= np.isnan(values_of(type_, found)) & np.isnan(values_of(type_, wanted))
    return equal


def random_patterns(type_: str, shape, rng: np.random.Generator, edges: bool, kind: str = "") -> np.ndarray:
    """Bit patterns of a type: numbers of moderate size, or (edges) extremes, subnormals, infinities and NaN too."""
    bits = 8 if kind in ("f8f6f4", "mxf8f6f4") else BITS[type_]
    raw = rng.integers(0, 2**bits, shape, dtype=np.uint64)
    if type_ in ("f64", "f32", "tf32", "f16", "bf16"):
        normal = rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 3, shape)
        if type_ == "f64":
            plain = normal.view(np.uint64)
        elif type_ in ("f32", "tf32"):
            plain = normal.astype(np.float32).view(np.uint32).astype(np.uint64)
        else:
            dtype = np.float16 if type_ == "f16" else ml_dtypes.bfloat16
            plain = normal.astype(dtype).view(np.uint16).astype(np.uint64)
        if not edges:
            return plain
        width = {"f64": 52, "f32": 23, "tf32": 23, "f16": 10, "bf16": 7}[type_]
        exponents = {"f64": 11, "f32": 8, "tf32": 8, "f16": 5, "bf16": 8}[type_]
        infinity = ((1 << exponents) - 1) << width
        special = [0, 1, 3, (1 << width) - 1, 1 << width, infinity - 1]
        if type_ != "f64":
            special += [infinity, infinity + 1]
        sign = 1 << (bits - 1)
        table = np.array([*special[:6] * 6, *special, *(p | sign for p in special[:6] * 6)], np.uint64)
        picked = table[rng.integers(0, len(table), shape)]
        choice = rng.random(shape)
        # a few infinities and NaN go a long way: most of D would be NaN
        return np.where(choice < 0.7, plain, np.where(choice < 0.97, picked & ~np.uint64(0), plain))
    return raw
