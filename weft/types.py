"""PTX scalar types, state spaces and launch shapes. Sizes are in bits unless a name says bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class ScalarType:
    """One PTX type. `kind` is b (untyped), u, s, f, or pred; `lanes` is 2 for packed pairs (f16x2), 4 for u8x4."""

    name: str
    bits: int
    kind: str
    lanes: int = 1

    @property
    def bytes(self) -> int:
        """Size in memory, in bytes (a predicate counts as one)."""
        return max(1, self.bits // 8)

    @property
    def signed(self) -> bool:
        return self.kind == "s"

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1

    def __str__(self) -> str:
        return self.name


# PTX ISA, "Fundamental Types" and "Alternate Floating-Point Data Formats", "Packed Data Types".
TYPES: dict[str, ScalarType] = {
    t.name: t
    for t in (
        ScalarType("pred", 1, "pred"),
        *(ScalarType(f"b{n}", n, "b") for n in (8, 16, 32, 64, 128)),
        *(ScalarType(f"u{n}", n, "u") for n in (8, 16, 32, 64)),
        *(ScalarType(f"s{n}", n, "s") for n in (8, 16, 32, 64)),
        *(ScalarType(f"f{n}", n, "f") for n in (16, 32, 64)),
        ScalarType("bf16", 16, "f"),
        ScalarType("tf32", 32, "f"),
        ScalarType("e4m3", 8, "f"),
        ScalarType("e5m2", 8, "f"),
        ScalarType("f16x2", 32, "f", 2),
        ScalarType("bf16x2", 32, "f", 2),
        ScalarType("f32x2", 64, "f", 2),
        ScalarType("u16x2", 32, "u", 2),
        ScalarType("s16x2", 32, "s", 2),
        ScalarType("u8x4", 32, "u", 4),
        ScalarType("s8x4", 32, "s", 4),
        ScalarType("e4m3x2", 16, "f", 2),
        ScalarType("e5m2x2", 16, "f", 2),
        ScalarType("e2m1x2", 8, "f", 2),
    )
}

# "generic" is the space of an access that names none.
STATE_SPACES = ("reg", "sreg", "const", "global", "local", "param", "shared", "generic")


class Dim3(NamedTuple):
    """A grid or block shape, or an index into one."""

    x: int = 1
    y: int = 1
    z: int = 1

    @property
    def count(self) -> int:  # type: ignore[override]  # a shape has no use for tuple.count
        return self.x * self.y * self.z


def as_dim3(value) -> Dim3:
    """An int or a sequence of one to three ints as a Dim3. Raises TypeError for anything else."""
    if isinstance(value, Dim3):
        return value
    if hasattr(value, "__index__"):
        return Dim3(value.__index__())
    parts = tuple(part.__index__() for part in value)
    if not 1 <= len(parts) <= 3:
        raise TypeError(f"a grid or block shape has one to three numbers, found {len(parts)}: {value!r}")
    return Dim3(*parts)


@dataclass(frozen=True)
class SourceLocation:
    """A place in the user's source, from `.loc`. `inlined_at` is the call site when the code was inlined."""

    file: str
    line: int
    column: int = 0
    function: str = ""
    inlined_at: SourceLocation | None = None

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}"
        return f"{text} (inlined at {self.inlined_at})" if self.inlined_at else text
