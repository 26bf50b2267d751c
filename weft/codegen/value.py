"""The forms in which a compiled kernel keeps a value of 32 lanes.

- affine: `base + offset + table[warp][lane]`, base one scalar for the warp (or absent), offset a constant, the table
  known when compiling because the block shape is. Without a table the value is uniform; without a base it is known.
- wide: affine plus `scale * extend(base32 + table32)`, a 32-bit index not yet proved free of wrap-around when it was
  extended to 64 bits. Cheap where a run-time check shows that no lane wraps, exact in any case.
- varying: a vector, held as a tuple of chunks.

`nz` are the bits of base that may be set, `lo`..`hi` its signed range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WARP_LANES = 32


class Table:
    """An interned [warps, 32] array of int64, with the properties that the builder asks for again and again."""

    __slots__ = ("array", "key", "low", "high", "row_uniform", "rows_alike", "nz", "__weakref__")

    def __init__(self, array: np.ndarray, key: bytes):
        self.array = array
        self.key = key
        self.low = int(array.min())
        self.high = int(array.max())
        self.row_uniform = bool((array == array[:, :1]).all())
        relative = array - array[:, :1]
        self.rows_alike = bool((relative == relative[0]).all())
        self.nz = int(np.bitwise_or.reduce(array, axis=None)) & 0xFFFFFFFFFFFFFFFF if self.low >= 0 else -1


class TablePool:
    """Interns tables, so that equal tables are one object, and remembers operations on them."""

    def __init__(self) -> None:
        self.tables: dict[bytes, Table] = {}
        self.results: dict[tuple, Table | None] = {}
        self.possible: dict[tuple, bool] = {}  # access patterns: whether one can do without a gather

    def intern(self, array: np.ndarray) -> Table:
        array = np.ascontiguousarray(array, dtype=np.int64)
        key = array.tobytes()
        table = self.tables.get(key)
        if table is None:
            table = self.tables[key] = Table(array, key)
        return table

    def apply(self, name: str, function, *args) -> Table:
        """`function` of tables' arrays and ints, as a table; remembered by name and arguments."""
        memo = (name, *args)
        found = self.results.get(memo)
        if found is None:
            with np.errstate(over="ignore"):
                arrays = [a.array if isinstance(a, Table) else a for a in args]
                found = self.results[memo] = self.intern(function(*arrays))
        return found


def full_range(bits: int) -> tuple[int, int]:
    """Signed range of `bits` bits."""
    half = 1 << (bits - 1)
    return -half, half - 1


def mask_of(bits: int) -> int:
    return (1 << bits) - 1


def to_signed(value: int, bits: int) -> int:
    value &= mask_of(bits)
    return value - (1 << bits) if bits > 1 and value >> (bits - 1) else value


def trailing_zeros(mask: int, bits: int) -> int:
    return bits if mask == 0 else min(bits, (mask & -mask).bit_length() - 1)


@dataclass(frozen=True)
class Wide:
    """`scale * extend(base + table)`: base a 32-bit scalar, table a Table that includes any constant offset."""

    base: str
    table: Table
    scale: int
    signed: bool


class Value:
    """One value; see the module's docstring. Immutable by convention; `cached` remembers its vector chunks."""

    __slots__ = ("bits", "base", "offset", "table", "nz", "lo", "hi", "vec", "wide", "cached")

    def __init__(self, bits: int):
        self.bits = bits
        self.base: str | None = None
        self.offset = 0
        self.table: Table | None = None
        self.nz = 0
        self.lo = 0
        self.hi = 0
        self.vec: tuple[str, ...] | None = None
        self.wide: Wide | None = None
        self.cached: tuple[str, ...] | None = None

    @property
    def is_varying(self) -> bool:
        return self.vec is not None

    @property
    def is_affine(self) -> bool:
        return self.vec is None and self.wide is None

    @property
    def is_uniform(self) -> bool:
        return self.vec is None and self.wide is None and (self.table is None or self.table.row_uniform)

    @property
    def is_known(self) -> bool:
        """Every lane of every warp is known when compiling."""
        return self.vec is None and self.base is None and self.wide is None

    @property
    def constant(self) -> int | None:
        """The one value of all lanes of all warps as a bit pattern, if known."""
        if self.is_known and self.table is None:
            return self.offset & mask_of(self.bits)
        return None

    @property
    def low(self) -> int:
        """Lower bound of the affine value as an exact integer (before it wraps to `bits`)."""
        return self.lo + self.offset + (self.table.low if self.table else 0)

    @property
    def high(self) -> int:
        return self.hi + self.offset + (self.table.high if self.table else 0)

    @property
    def exact_signed(self) -> bool:
        """No lane wraps when the affine value is read as a signed integer."""
        low, high = full_range(self.bits)
        return self.low >= low and self.high <= high

    @property
    def exact_unsigned(self) -> bool:
        return self.low >= 0 and self.high <= mask_of(self.bits)

    @property
    def known_nz(self) -> int:
        """Bits that may be set in any lane, as an unsigned mask of `bits` bits."""
        everything = mask_of(self.bits)
        if self.vec is not None or self.wide is not None:
            return everything
        if self.table is None:
            if self.base is None:
                return self.offset & everything
            if self.offset == 0:
                return self.nz
        elif self.base is None and self.table.nz >= 0 and self.offset == 0:
            return self.table.nz & everything
        if self.exact_unsigned:
            zeros = trailing_zeros(self.nz if self.base else 0, 64)
            zeros = min(zeros, trailing_zeros(self.offset & mask_of(64), 64))
            if self.table is not None:
                zeros = min(zeros, trailing_zeros(self.table.nz, 64) if self.table.nz >= 0 else 0)
            return mask_of(max(1, self.high.bit_length())) & ~mask_of(zeros) & everything
        return everything


def shape_key(value: Value) -> tuple:
    """What two values must share to be kept in the same form of storage."""
    if value.vec is not None:
        return ("varying",)
    if value.wide is not None:
        w = value.wide
        return ("wide", value.table, w.table, w.scale, w.signed)
    return ("affine", value.table)
