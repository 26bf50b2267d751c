"""Groups of mma as calls of micro-kernels: analysis/tiles.py finds the groups, microkernels.py has the functions.

Accumulators that a strip adds to lie side by side in memory (`tile_places`), so that one call does the strip. They stay
in fragment order: other instructions read and write them like any register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.analysis.flow import Op
from weft.analysis.tiles import Group, Multiply, Strip, group_multiplies
from weft.codegen.matrix import MatrixOps
from weft.codegen.microkernels import BYTES, FLOATS, Kind
from weft.codegen.multiply import WORKSPACE_BYTES
from weft.isa.matrix import form_of

# Columns of a strip: half of a first-level cache of 32 KB, so that rows and accumulators fit beside them.
COLUMN_BYTES = 16384
MAX_STRIP = WORKSPACE_BYTES // 512  # tiles that a strip has at most: they may have to go through the workspace


def kind_of(op: Op) -> Kind | None:
    """The micro-kernels that do an mma, if there are any."""
    modifiers = op.ins.modifiers
    if (
        not any(word.startswith("m16n8k") for word in modifiers)
        or "sp" in modifiers
        or "sp::ordered_metadata" in modifiers
    ):
        return None
    form = form_of(op.match)
    if (form.m, form.n) != (16, 8) or form.c_type != form.d_type or form.sparse or form.kind:
        return None
    if form.a_type in BYTES and form.b_type in BYTES and form.operation == "multiply":
        return Kind(form.a_type, form.b_type, form.k, "s32", form.saturate)
    if FLOATS.get(form.a_type) == FLOATS.get(form.b_type, 0) and form.d_type in ("f32", "f16"):
        return Kind(form.a_type, form.b_type, form.k, form.d_type)
    return None


class TileOps(MatrixOps):
    """Emission of groups of multiplications."""

    column_bytes = 0  # of the largest strip
    row_bytes = 0

    if TYPE_CHECKING:  # the lowering's

        def blend_mask(self, name: str) -> tuple[str, ...] | None: ...

    def plan_groups(self, ops: list[Op]) -> list[Op | Group]:
        """A block's instructions with multiplications grouped."""

        def usable(op: Op) -> Kind | None:
            kind = kind_of(op)
            return kind if kind is not None and kind.fits(self.target) else None

        return group_multiplies(ops, usable)

    def tile_places(self, groups: list[Group]) -> list[tuple[str, ...]]:
        """Accumulators that should lie side by side: lists of registers, each register in at most one."""
        found: list[tuple[str, ...]] = []
        taken: set[str] = set()
        for group in groups:
            for strip in group.strips(1):
                for fragments in ([x.d for x in strip.tiles], [x.c for x in strip.tiles if x.c != x.d]):
                    row: list[str] = []
                    for names in fragments:
                        if taken.isdisjoint(names) and all(self.is_stored(name) for name in names):
                            taken.update(names)
                            row += names
                    if row:
                        found.append(tuple(row))
        return found

    def is_stored(self, name: str) -> bool:
        """The register is kept as a vector of 32-bit lanes."""
        form = self.registers.forms.get(name)
        return form is not None and form.vec is not None and form.bits == 32

    # ------------------------------------------------------------ emission
    def emit_group(self, group: Group) -> None:
        """All multiplications of a group, strip by strip."""
        assert not self.dry and self.depth == 0
        self.op, self.site = group.items[0].op, group.items[0].op.site
        kind = group.kind
        columns = None
        for strip in group.strips(COLUMN_BYTES // kind.column_bytes):
            if strip.b != columns:
                columns = strip.b
                self._make_columns(kind, strip)
            self._emit_strip(kind, strip)

    def strip_lines(self) -> list[str]:
        """The memory for rows and columns, for the function's head."""
        sizes = {"columns": self.column_bytes, "rows": self.row_bytes}
        return [f"  %{name} = alloca [{size} x i8], align 64" for name, size in sizes.items() if size]

    def _fragment(self, names: tuple[str, ...]) -> str:
        """A fragment's chunks as call arguments."""
        return ", ".join(f"{self.vtype(32)} {x}" for name in names for x in self.vec(self.registers.read(name)))

    def _make_columns(self, kind: Kind, strip: Strip) -> None:
        steps = len(strip.steps)
        name = self._call_support(kind.columns)
        self.column_bytes = max(self.column_bytes, steps * len(strip.tiles) * kind.column_bytes)
        for s, fragments in enumerate(strip.b):
            for j, b in enumerate(fragments):
                place = self._offset("%columns", (j * steps + s) * kind.column_bytes)
                self.e(f"call void {name}({self._fragment(b)}, ptr {place})")

    def _emit_strip(self, kind: Kind, strip: Strip) -> None:
        name = self._call_support(kind.rows)
        self.row_bytes = max(self.row_bytes, len(strip.steps) * kind.row_bytes)
        for s, a in enumerate(strip.a):
            place = self._offset("%rows", s * kind.row_bytes)
            self.e(f"call void {name}({self._fragment(a)}, ptr {place})")
        at = 0
        while at < len(strip.tiles):
            count = 1
            while at + count < len(strip.tiles) and count < MAX_STRIP:
                if not self._follow(kind, strip.tiles[at + count - 1], strip.tiles[at + count]):
                    break
                count += 1
            self._call_strip(kind, strip.tiles[at : at + count], at, len(strip.steps))
            at += count

    def _follow(self, kind: Kind, first: Multiply, second: Multiply) -> bool:
        """The second's accumulators lie right behind the first's."""
        for x, y in ((first.d, second.d), (first.c, second.c)):
            before, after = self._tile_at(x), self._tile_at(y)
            if before is None or after is None or after != (before[0], before[1] + kind.tile_bytes):
                return False
        return True

    def _tile_at(self, names: tuple[str, ...]) -> tuple[str, int] | None:
        """(region, offset) of an accumulator fragment whose registers follow each other in memory."""
        places = [self.registers.regions.get(name) for name in names]
        first = places[0]
        if first is None or any(p != (first[0], first[1] + 128 * i) for i, p in enumerate(places)):
            return None
        return first

    def _call_strip(self, kind: Kind, items: list[Multiply], first: int, steps: int) -> None:
        """The tiles `items`, whose columns begin at tile `first`."""
        names_of = {which: [name for item in items for name in getattr(item, which)] for which in "cd"}
        columns = self._offset("%columns", first * steps * kind.column_bytes)
        blended = any(self.blend_mask(name) is not None for name in names_of["d"])
        c, d = self._tile_at(items[0].c), self._tile_at(items[0].d)
        into = None if d is None or blended else self._offset(d[0], d[1])
        if c is not None:
            self.registers.spill(names_of["c"])
            out_of = self._offset(c[0], c[1])
        else:
            out_of = into or self.workspace()
            self._store_tiles(names_of["c"], out_of)
        target = into or self.workspace()
        name = self._call_support(kind.strip)
        places = f"ptr %rows, ptr {columns}, ptr {out_of}, ptr {target}"
        self.e(f"call void {name}({places}, i32 {len(items)}, i32 {steps})")
        if into is not None:
            self.registers.stored(names_of["d"])
            return
        for i, register in enumerate(names_of["d"]):
            chunks = [
                self.t(f"load {self.vtype(32)}, ptr {self._offset(target, 128 * i + 4 * self.chunk * c)}")
                for c in range(self.chunks)
            ]
            self.registers.write(register, self.varying(chunks, 32), self.blend_mask(register))

    def _store_tiles(self, names: list[str], pointer: str) -> None:
        for i, name in enumerate(names):
            for c, x in enumerate(self.vec(self.registers.read(name))):
                self.e(f"store {self.vtype(32)} {x}, ptr {self._offset(pointer, 128 * i + 4 * self.chunk * c)}")
