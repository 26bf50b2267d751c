"""PTX registers during analysis and emission: their forms, their storage, reads and masked writes.

Each register has one form for the whole function: the join of all that is written to it. Storage is a stack slot
that LLVM turns into SSA values, or a place in the warp's frame for registers that live across a suspension.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.codegen.builder import Builder
from weft.codegen.value import Value, Wide, full_range, mask_of, shape_key

WIDEN_AFTER = 3  # changes of a range before it is taken as unknown; keeps the analysis short


@dataclass
class Storage:
    """Where a register lives: `scalars` for affine and wide forms, `chunks` for varying ones (pointers)."""

    scalars: list[str] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)


class RegisterFile:
    """Forms and storage of all registers of one function."""

    def __init__(self, builder: Builder, bits: dict[str, int]):
        self.builder = builder
        self.bits = bits
        self.forms: dict[str, Value] = {}
        self.changes: dict[str, int] = {}
        self.changed = False
        self.storage: dict[str, Storage] = {}
        self.current: dict[str, Value] = {}  # values known in this block
        self.dirty: set[str] = set()  # registers whose value is newer than their storage
        self.allocas: list[str] = []
        self.frame_bytes = 0
        self.bounds: dict[str, tuple[int, int, int]] = {}  # lo, hi, nz of affine registers, from an earlier pass
        self.runs: list[tuple[str, ...]] = []  # 32-bit registers to be placed side by side, in this order
        self.run_pointers: dict[tuple[str, ...], str] = {}
        self.regions: dict[str, tuple[str, int]] = {}  # registers placed so: where, and how many bytes behind its start

    # ------------------------------------------------------------ analysis
    def join(self, name: str, value: Value) -> None:
        """Widen the register's form to hold `value` too."""
        old = self.forms.get(name)
        new = self._joined(name, old, value)
        if new is not old:
            self.forms[name] = new
            self.changed = True

    def _joined(self, name: str, old: Value | None, value: Value) -> Value:
        if old is None:
            return self._folded(name, value)
        if old.vec is not None:
            return old
        if shape_key(old) != shape_key(value):
            if value.bits == 1 and old.is_uniform and value.is_uniform:
                return self.builder.scalar("%dry", 1)
            return self.builder.varying(("%dry",) * self.builder.chunks, value.bits)
        if old.wide is not None:
            return old
        bits = value.bits
        if bits == 1:
            if old.base is not None or (value.base is None and old.offset == value.offset):
                return old
            return self.builder.scalar("%dry", 1)
        if old.base is None and value.base is None and old.offset == value.offset:
            return old
        lo, hi, nz = _bounds(old)
        lo2, hi2, nz2 = _bounds(value)
        if old.base is not None and lo2 >= lo and hi2 <= hi and nz | nz2 == nz:
            return old
        changes = self.changes[name] = self.changes.get(name, 0) + 1
        lo, hi, nz = min(lo, lo2), max(hi, hi2), nz | nz2
        if changes > WIDEN_AFTER:
            lo, hi = full_range(bits)
            nz = mask_of(bits) & ~mask_of((nz & -nz).bit_length() - 1) if nz else 0
        new = Value(bits)
        new.base, new.table = "%dry", old.table
        new.lo, new.hi, new.nz = lo, hi, nz
        return new

    def _folded(self, name: str, value: Value) -> Value:
        """The first form of a register, as it is stored: a constant offset is part of the base, and the range is at
        least what an earlier pass has found."""
        bounds = self.bounds.get(name)
        if value.vec is not None or value.bits == 1:
            return value
        if value.wide is None and value.base is None and bounds is None:
            return value
        form = Value(value.bits)
        form.base, form.table, form.wide = "%dry", value.table, value.wide
        if value.wide is not None:
            form.lo, form.hi = full_range(64)
            form.nz = mask_of(64)
            return form
        form.lo, form.hi, form.nz = _bounds(value)
        if bounds is not None:
            form.lo, form.hi = min(form.lo, bounds[0]), max(form.hi, bounds[1])
            form.nz |= bounds[2]
        return form

    def restart(self) -> None:
        """Forget all forms but remember the ranges: a register that was first thought constant, or its range small,
        has left narrower forms behind in what is computed from it."""
        for name, form in self.forms.items():
            if form.is_affine and form.base is not None and form.bits > 1:
                self.bounds[name] = (form.lo, form.hi, form.nz)
        self.forms.clear()
        self.changes.clear()

    # ------------------------------------------------------------ storage
    def place(self, frame_registers: set[str]) -> None:
        """Give every register its storage; those in `frame_registers` live in the warp's frame."""
        b = self.builder
        b.dry = False
        sized = []
        for run in self.runs:
            self._place_run(run, frame_registers)
        for name, form in self.forms.items():
            if form.is_known or name in self.storage:
                continue
            sized.append((self._bytes(form), name))
        sized.sort(key=lambda item: (-item[0], item[1]))
        for index, (_, name) in enumerate(sized):
            form = self.forms[name]
            storage = self.storage[name] = Storage()
            if form.vec is not None:
                for c in range(b.chunks):
                    storage.chunks.append(self._slot(f"%R{index}.{c}", b.vtype(form.bits), name in frame_registers))
            elif form.wide is not None:
                storage.scalars.append(self._slot(f"%R{index}.a", "i64", name in frame_registers))
                storage.scalars.append(self._slot(f"%R{index}.b", "i32", name in frame_registers))
            else:
                storage.scalars.append(self._slot(f"%R{index}", f"i{form.bits}", name in frame_registers))

    def _place_run(self, run: tuple[str, ...], frame_registers: set[str]) -> None:
        """Storage for registers side by side, 128 bytes each, if all are kept as vectors and none has a place yet."""
        b = self.builder
        forms = [self.forms.get(name) for name in run]
        if any(form is None or form.vec is None or form.bits != 32 for form in forms) or len(set(run)) < len(run):
            return
        if any(name in self.storage for name in run):
            return
        base, size = f"%run{len(self.run_pointers)}", 128 * len(run)
        if not frame_registers.isdisjoint(run):
            self.frame_bytes = (self.frame_bytes + 63) // 64 * 64
            self.allocas.append(f"  {base} = getelementptr i8, ptr %frame, i64 {self.frame_bytes}")
            self.frame_bytes += size
        else:
            self.allocas.append(f"  {base} = alloca [{size} x i8], align 64")
        width = 4 * b.chunk
        for r, name in enumerate(run):
            storage = self.storage[name] = Storage()
            self.regions[name] = (base, 128 * r)
            for c in range(b.chunks):
                slot = f"{base}.{r}.{c}"
                self.allocas.append(f"  {slot} = getelementptr i8, ptr {base}, i64 {128 * r + width * c}")
                storage.chunks.append(slot)
        self.run_pointers[run] = base

    def run_pointer(self, run: tuple[str, ...]) -> str | None:
        """Where these registers lie side by side; None where they do not."""
        return self.run_pointers.get(run)

    def _bytes(self, form: Value) -> int:
        return 32 * max(8, form.bits) // 8 if form.vec is not None else max(8, form.bits) // 8

    def _slot(self, name: str, type_: str, in_frame: bool) -> str:
        if in_frame:
            return self.frame_slot(name, type_)
        self.allocas.append(f"  {name} = alloca {type_}")
        return name

    def frame_slot(self, name: str, type_: str) -> str:
        """A place in the warp's frame, named `name` in the function's prologue."""
        size = _type_bytes(type_)
        align = min(64, 1 << (size - 1).bit_length()) if size > 1 else 1
        self.frame_bytes = (self.frame_bytes + align - 1) // align * align
        self.allocas.append(f"  {name} = getelementptr i8, ptr %frame, i64 {self.frame_bytes}")
        self.frame_bytes += size
        return name

    # ------------------------------------------------------------ reads and writes
    def begin_block(self) -> None:
        self.current.clear()
        self.dirty.clear()

    def forget(self, names) -> None:
        for name in names:
            self.current.pop(name, None)

    def flush(self, needed: int, numbers: dict[str, int]) -> None:
        """Store what this block has written and what is still needed (a bit set of registers)."""
        for name in sorted(self.dirty):
            bit = numbers.get(name)
            if bit is None or needed >> bit & 1:
                self._store(name, self.current[name])
        self.dirty.clear()

    def stored(self, names) -> None:
        """The storage of some registers has been written by other means."""
        for name in names:
            self.current.pop(name, None)
            self.dirty.discard(name)

    def spill(self, names) -> None:
        """Bring the storage of some registers up to date, because code that may not run will write them."""
        for name in names:
            if name in self.dirty:
                self._store(name, self.current[name])
                self.dirty.discard(name)

    def read(self, name: str) -> Value | None:
        """The register's value; None during analysis when nothing has been written to it yet."""
        b = self.builder
        found = self.current.get(name)
        if found is not None:
            return found
        form = self.forms.get(name)
        if b.dry:
            return form
        if form is None:  # read and never written: no program can depend on it
            return b.const(0, self.bits[name])
        value = Value(form.bits)
        if form.is_known:
            # a copy: what a block remembers of a value must not reach other blocks
            value.offset, value.table = form.offset, form.table
            if b.depth == 0:
                self.current[name] = value
            return value
        storage = self.storage[name]
        if form.vec is not None:
            value.vec = tuple(b.t(f"load {b.vtype(form.bits)}, ptr {p}") for p in storage.chunks)
        elif form.wide is not None:
            w = form.wide
            value.base = b.t(f"load i64, ptr {storage.scalars[0]}")
            value.table = form.table
            value.lo, value.hi = full_range(64)
            value.nz = mask_of(64)
            value.wide = Wide(b.t(f"load i32, ptr {storage.scalars[1]}"), w.table, w.scale, w.signed)
        else:
            value.base = b.t(f"load i{form.bits}, ptr {storage.scalars[0]}")
            value.table, value.lo, value.hi, value.nz = form.table, form.lo, form.hi, form.nz
        if b.depth == 0:
            self.current[name] = value
        return value

    def write(self, name: str, value: Value, blend: tuple[str, ...] | None) -> None:
        """Write a register. `blend`: predicate chunks of the lanes that take the value; None for all."""
        b = self.builder
        if b.dry:
            if blend is not None:
                value = b.varying(("%dry",) * b.chunks, value.bits)
            self.join(name, value)
            return
        form = self.forms[name]
        if form.is_known:
            return
        if form.vec is not None:
            value = self._blended(name, form, value, blend)
        else:
            assert blend is None, ("a masked write to a register kept as a scalar", name)
            if form.bits == 1 and form.table is None and value.is_uniform and value.table is not None:
                value = b.scalar(b.uval(value), 1)  # a table that differs between warps only
            assert shape_key(value) == shape_key(form), ("form changed", name)
            value = self._as_stored(form, value)
        if b.depth:
            self._store(name, value)
            self.current.pop(name, None)
        else:
            self.current[name] = value
            self.dirty.add(name)

    def _blended(self, name: str, form: Value, value: Value, blend: tuple[str, ...] | None) -> Value:
        b = self.builder
        chunks = b.vec(value)
        if blend is not None:
            vtype = b.vtype(form.bits)
            old = self.current.get(name)
            before = old.vec if old is not None else [b.t(f"load {vtype}, ptr {p}") for p in self.storage[name].chunks]
            chunks = tuple(
                b.t(f"select <{b.chunk} x i1> {m}, {vtype} {x}, {vtype} {y}") for m, x, y in zip(blend, chunks, before)
            )
        return b.varying(chunks, form.bits)

    def _as_stored(self, form: Value, value: Value) -> Value:
        """The value in the register's own form: one scalar base, the form's table and ranges."""
        plain = Value(value.bits)
        plain.base, plain.offset = value.base, value.offset
        stored = Value(form.bits)
        stored.base = self.builder.uval(plain)
        stored.table = form.table
        if form.wide is not None:
            stored.wide = value.wide
            stored.lo, stored.hi = full_range(64)
            stored.nz = mask_of(64)
        else:
            stored.lo, stored.hi, stored.nz = form.lo, form.hi, form.nz
        return stored

    def _store(self, name: str, value: Value) -> None:
        b = self.builder
        storage = self.storage[name]
        if value.vec is not None:
            for x, p in zip(value.vec, storage.chunks):
                b.e(f"store {b.vtype(value.bits)} {x}, ptr {p}")
            return
        b.e(f"store i{value.bits} {value.base}, ptr {storage.scalars[0]}")
        if value.wide is not None:
            b.e(f"store i32 {value.wide.base}, ptr {storage.scalars[1]}")


def _bounds(value: Value) -> tuple[int, int, int]:
    """Signed range and possible bits of base + offset."""
    plain = Value(value.bits)
    plain.base, plain.offset, plain.lo, plain.hi, plain.nz = value.base, value.offset, value.lo, value.hi, value.nz
    if not plain.exact_signed:
        lo, hi = full_range(value.bits)
        return lo, hi, mask_of(value.bits)
    return plain.low, plain.high, plain.known_nz


def _type_bytes(type_: str) -> int:
    if type_.startswith("<"):
        lanes, element = type_[1:-1].split(" x ")
        return max(1, int(lanes) * int(element[1:]) // 8)
    return max(1, int(type_[1:]) // 8)
