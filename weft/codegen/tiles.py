"""Groups of mma as calls of micro-kernels: analysis/tiles.py finds the groups, codegen/microkernels.py has the functions.

Accumulators that a strip adds to lie side by side in memory (`tile_places`), so that one call does the strip. They stay
in fragment order: other instructions read and write them like any register.
"""

from __future__ import annotations

from weft.analysis.flow import Op
from weft.analysis.tiles import Group, Multiply, Strip, group_multiplies
from weft.codegen.matrix import MatrixOps
from weft.codegen.microkernels import TILE_BYTES, Kind
from weft.codegen.multiply import WORKSPACE_BYTES
from weft.isa.matrix import form_of

MAX_STRIP = WORKSPACE_BYTES // TILE_BYTES  # tiles that a strip has at most: they may have to go through the workspace


def kind_of(op: Op) -> Kind | None:
    """The micro-kernels that do an mma, if there are any."""
    modifiers = op.ins.modifiers
    if "sp" in modifiers or "sp::ordered_metadata" in modifiers or "m16n8k" not in " ".join(modifiers):
        return None
    form = form_of(op.match)
    if (form.m, form.n) != (16, 8) or form.c_type != "f32" or form.d_type != "f32" or form.a_type != form.b_type:
        return None
    if form.sparse or form.kind or form.a_type not in ("f16", "bf16", "tf32"):
        return None
    return Kind(form.a_type, form.k)


class TileOps(MatrixOps):
    """Emission of groups of multiplications."""

    column_bytes = 0  # of the largest step

    def plan_groups(self, ops: list[Op]) -> list[Op | Group]:
        """A block's instructions with multiplications grouped."""
        return group_multiplies(ops, kind_of) if any(op.opcode == "mma" for op in ops) else ops

    def tile_places(self, groups: list[Group]) -> list[tuple[str, ...]]:
        """Accumulators that should lie side by side: lists of registers, each register in at most one."""
        found: list[tuple[str, ...]] = []
        taken: set[str] = set()
        for group in groups:
            for step in group.steps():
                for strip in step:
                    for fragments in ([x.d for x in strip.items], [x.c for x in strip.items if x.c != x.d]):
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
        """All multiplications of a group, step by step."""
        assert not self.dry and self.depth == 0
        self.op, self.site = group.items[0].op, group.items[0].op.site
        kind = group.kind
        for step in group.steps():
            slots: dict[tuple[str, ...], int] = {}
            for strip in step:
                for item in strip.items:
                    if item.b not in slots:
                        slots[item.b] = len(slots)
                        self._make_columns(kind, item.b, slots[item.b])
            for strip in step:
                self._emit_strip(kind, strip, slots)

    def _columns_at(self, kind: Kind, slot: int) -> str:
        self.column_bytes = max(self.column_bytes, (slot + 1) * kind.column_bytes)
        return self._offset("%columns", slot * kind.column_bytes)

    def column_lines(self) -> list[str]:
        """The memory for columns, for the function's head."""
        return [f"  %columns = alloca [{self.column_bytes} x i8], align 64"] if self.column_bytes else []

    def _fragment(self, names: tuple[str, ...]) -> str:
        """A fragment's chunks as call arguments."""
        return ", ".join(f"{self.vtype(32)} {x}" for name in names for x in self.vec(self.registers.read(name)))

    def _make_columns(self, kind: Kind, b: tuple[str, ...], slot: int) -> None:
        place = self._columns_at(kind, slot)
        self.e(f"call void {self._call_support(kind.columns)}({self._fragment(b)}, ptr {place})")

    def _emit_strip(self, kind: Kind, strip: Strip, slots: dict[tuple[str, ...], int]) -> None:
        items = sorted(strip.items, key=lambda item: slots[item.b])
        a = self._fragment(strip.a)
        at = 0
        while at < len(items):
            count = 1
            while at + count < len(items) and count < MAX_STRIP and self._follow(items[at + count - 1], items[at + count], slots):
                count += 1
            self._call_strip(kind, a, items[at : at + count], slots[items[at].b])
            at += count

    def _follow(self, first: Multiply, second: Multiply, slots: dict[tuple[str, ...], int]) -> bool:
        """The second's columns and accumulators lie right behind the first's."""
        if slots[second.b] != slots[first.b] + 1:
            return False
        for x, y in ((first.d, second.d), (first.c, second.c)):
            before, after = self._tile_at(x), self._tile_at(y)
            if before is None or after is None or after != (before[0], before[1] + TILE_BYTES):
                return False
        return True

    def _tile_at(self, names: tuple[str, ...]) -> tuple[str, int] | None:
        """(region, offset) of an accumulator fragment whose registers follow each other in memory."""
        places = [self.registers.regions.get(name) for name in names]
        first = places[0]
        if first is None or any(p != (first[0], first[1] + 128 * i) for i, p in enumerate(places)):
            return None
        return first

    def _call_strip(self, kind: Kind, a: str, items: list[Multiply], slot: int) -> None:
        names_of = {which: [name for item in items for name in getattr(item, which)] for which in "cd"}
        columns = self._columns_at(kind, slot)
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
        self.e(f"call void {name}({a}, ptr {columns}, ptr {out_of}, ptr {target}, i32 {len(items)})")
        if into is not None:
            self.registers.stored(names_of["d"])
            return
        for i, register in enumerate(names_of["d"]):
            chunks = [
                self.t(f"load {self.vtype(32)}, ptr {self._offset(target, 128 * i + 4 * self.chunk * c)}, align 64")
                for c in range(self.chunks)
            ]
            self.registers.write(register, self.varying(chunks, 32), self.blend_mask(register))

    def _store_tiles(self, names: list[str], pointer: str) -> None:
        for i, name in enumerate(names):
            for c, x in enumerate(self.vec(self.registers.read(name))):
                self.e(f"store {self.vtype(32)} {x}, ptr {self._offset(pointer, 128 * i + 4 * self.chunk * c)}")
