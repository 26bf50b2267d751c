"""Tensor copies: cp.async.bulk.tensor, cp.reduce.async.bulk.tensor, prefetches of both, and tensormap.replace.

The instruction names a tensor map and coordinates; the map (weft/isa/tensormap.py) says what is copied. The reference
rules below go element by element; compiled code goes row by row (weft/codegen/tensorcopy.py). Like all asynchronous
copies these are complete when they were issued. Sections: PTX ISA, "Tensors" and "cp.async.bulk.tensor".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from weft.errors import IllegalAddressError, KernelFault
from weft.isa import tensormap as tm
from weft.isa.async_copy import combined, destinations, directed, mask_of_blocks
from weft.isa.barrier import update_reference
from weft.isa.instruction import instruction
from weft.isa.memory import SCOPES
from weft.types import TYPES

DIMENSIONS = ("1d", "2d", "3d", "4d", "5d")
_TENSOR = {"raw": True, "pipe": "lsu", "effects": ("memory",), "ptx": "8.0", "sm": 90, "section": "9.7.9.25.5"}
FORM_STORE, FORM_ROWS, MODE_SHIFT = 1 << 8, 1 << 9, 4  # of the number that compiled code takes for the form
_NAN_BITS = {16: 0x7FFF, 32: 0x7FFF_FFFF, 64: (1 << 63) - 1}


# ---------------------------------------------------------------- reference
class TensorBox:
    """A copy's box: its map, checked, and the coordinates. `elements` visits it in the order of shared memory."""

    def __init__(self, t, m, ins, map_operand, offsets=()):
        self.t, self.dimensions = t, int(m["dim"][0])
        self.address = t.address(map_operand)
        self.coordinates = [_signed(t.read(item, TYPES["s32"])) for item in map_operand.coordinates.items]
        self.offsets = [t.read(item, TYPES["u16"]) for item in offsets]
        mode = m.get("mode") or "tile"
        self.rows = mode in ("tile::gather4", "tile::scatter4")
        self.stores = not offsets and m.get("direction") == "store"
        self.map = self._read_map(tm.IM2COL if mode.startswith("im2col") else tm.TILED)

    def refuse(self, reason: int) -> KernelFault:
        return self.t.fault(KernelFault, f"tensor map at {self.address:#x}: {tm.REASONS[reason]}", self.address)

    def _read_map(self, mode: int) -> tm.TensorMap:
        if self.address % tm.ALIGN:
            raise self.refuse(2)
        if self.t.space_of(self.address) != "global":
            raise self.t.fault(IllegalAddressError, f"{tm.BYTES} bytes at {self.address:#x}", self.address)
        data = b"".join(
            self.t.load("generic", self.address + i, 16).to_bytes(16, "little") for i in range(0, tm.BYTES, 16)
        )
        found = tm.decode(data)
        if found is None:
            raise self.refuse(1)
        reason = tm.refuse(found, self.dimensions, mode)
        if not reason and self.rows and (found.interleave or found.box[1] != 1):
            reason = 13
        if reason:
            raise self.refuse(reason)
        return found

    def pixels(self) -> Iterator[tuple[int, ...]]:
        """Coordinates of the im2col pixels, offsets included, N last."""
        m = self.map
        spatial = m.rank - 2
        at = self.coordinates[1:]
        last = [m.sizes[i + 1] - 1 + m.upper[i] for i in range(spatial)]
        offsets = [*self.offsets, *(0,) * spatial][:spatial]
        for _ in range(m.pixels):
            yield (*(x + o for x, o in zip(at, offsets)), at[-1])
            for i in range(spatial):
                at[i] += m.element_strides[i + 1]
                if at[i] <= last[i]:
                    break
                at[i] = m.lower[i]
            else:
                at[-1] += 1

    def rows_of_box(self) -> Iterator[tuple[int, ...]]:
        """Coordinates of dimensions 1 and up of every row."""
        m, at = self.map, self.coordinates
        if m.mode == tm.IM2COL:
            yield from self.pixels()
        elif self.rows:
            yield from ((row,) for row in at[1:])
        else:
            sides = [
                [at[i] + step for step in range(0, m.box[i], m.element_strides[i])] for i in range(m.rank - 1, 0, -1)
            ]
            yield from (row[::-1] for row in itertools.product(*sides))

    def elements(self) -> Iterator[tuple[int | None, int]]:
        """(global address or None outside of the tensor, offset in the box's shared memory before the swizzle)."""
        m = self.map
        size = m.element_bits // 8
        step = m.element_strides[0] if m.interleave else 1
        place = 0
        for row in self.rows_of_box():
            inside = all(0 <= x < n for x, n in zip(row, m.sizes[1:]))
            base = m.address + sum(x * stride for x, stride in zip(row, m.strides))
            for j in range(0, m.box[0], step):
                x = self.coordinates[0] + j
                yield (base + x * size if inside and 0 <= x < m.sizes[0] else None), place
                place += size

    @property
    def total(self) -> int:
        return sum(1 for _ in self.elements()) * self.map.element_bits // 8

    def swizzled(self, address: int) -> int:
        """Where a byte of shared memory is kept."""
        shift, mask, flip = tm.swizzle_rule(self.map.swizzle, self.map.atomicity)
        kept = address ^ (address >> shift & mask)
        return kept ^ 8 if flip and address >> 7 & 1 else kept

    def load(self, destination: int) -> int:
        """Fills the box in shared memory; gives its bytes."""
        t, m, size = self.t, self.map, self.map.element_bits // 8
        if destination % tm.SHARED_ALIGN:
            raise self.refuse(11)
        fill = _NAN_BITS[8 * size] if m.fill else 0
        total = 0
        for source, place in self.elements():
            value = fill if source is None else t.load("global", source, size)
            t.store("cluster", self.swizzled(destination + place), size, converted(m.element_name, value))
            total = place + size
        return total

    def store(self, source: int, operation: str = "") -> None:
        """Writes, or reduces, what of the box is inside the tensor."""
        t, m, size = self.t, self.map, self.map.element_bits // 8
        if m.atomicity == 2:
            raise self.refuse(14)
        if source % tm.SHARED_ALIGN:
            raise self.refuse(11)
        type_ = None
        if operation:
            type_ = TYPES[reduction_type(operation, m.element_name) or "pred"]
            if type_.name == "pred":
                raise self.refuse(12)
        for address, place in self.elements():
            value = t.load("shared", self.swizzled(source + place), size)
            if address is None:
                continue
            if type_ is not None:
                value = combined(operation, type_, t.load("global", address, size), value)
            t.store("global", address, size, value)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def converted(element: str, value: int) -> int:
    """What a load keeps of an f32 element: .ftz flushes subnormals, tf32 rounds to nearest even."""
    magnitude = value & 0x7FFF_FFFF
    if element in tm.FLUSHES and magnitude < 0x0080_0000:
        value &= 0x8000_0000
    if element in tm.ROUNDS and magnitude < 0x7F80_0000:
        value = (value + 0xFFF + (value >> 13 & 1)) & ~0x1FFF
    return value


def reduction_type(operation: str, element: str) -> str | None:
    """The type in which a tensor reduction is done, None where it is not defined."""
    integers = ("u32", "s32", "u64", "s64")
    if operation in ("and", "or", "xor"):
        return "b" + element[1:] if element in integers else None
    if operation in ("inc", "dec"):
        return element if element == "u32" else None
    if operation == "add":
        allowed = {**{x: x for x in (*integers, "f16", "bf16", "f32", "f64")}, "f32.ftz": "f32"}
        return allowed.get(element)
    return element if element in (*integers, "f16", "bf16") else None


# ---------------------------------------------------------------- cp.async.bulk.tensor
_MODES = {"tile": tm.TILED, "tile::gather4": tm.TILED, "tile::scatter4": tm.TILED, "im2col": tm.IM2COL,
          "im2col_no_offs": tm.IM2COL}  # fmt: skip


def _coordinates(b, ins, operand, offsets) -> list:
    """Eight numbers: the coordinates, then (from the sixth) the im2col offsets."""
    items = [b.read(item, 32, TYPES["s32"]) for item in operand.coordinates.items]
    items += [b.const(0, 32)] * (tm.MAX_RANK - len(items))
    shifts = [b.zext(b.read(item, 16), 32) for item in offsets]
    return [*items, *shifts, *[b.const(0, 32)] * (3 - len(shifts))]


def _check_vectors(m, operand, offsets) -> str:
    """The vectors must have the lengths that the form asks for."""
    dimensions, mode = int(m["dim"][0]), m.get("mode") or "tile"
    wanted = 5 if mode in ("tile::gather4", "tile::scatter4") else dimensions
    found = len(operand.coordinates.items) if operand.coordinates is not None else 0
    if found != wanted:
        return f"found {found} coordinates, expected {wanted}"
    if mode == "im2col" and len(offsets) != dimensions - 2:
        return f"found {len(offsets)} im2col offsets, expected {dimensions - 2}"
    return ""


def _form(m, stores: bool) -> int:
    mode = m.get("mode") or "tile"
    rows = FORM_ROWS * (mode in ("tile::gather4", "tile::scatter4"))
    return int(m["dim"][0]) | _MODES[mode] << MODE_SHIFT | FORM_STORE * stores | rows


def _offsets(m, ins, at: int) -> tuple:
    return ins.operands[at].items if m.get("mode") == "im2col" else ()


def _fits_mode(m) -> str:
    if "prefetch" not in m.tokens and (wrong := directed(m)):
        return wrong
    mode, dimensions = m.get("mode") or "tile", int(m["dim"][0])
    if mode in ("tile::gather4", "tile::scatter4") and dimensions != 2:
        return f".{mode} is for .2d, found .{m['dim']}"
    if mode.startswith("im2col") and dimensions < 3:
        return f".{mode} needs .3d, .4d or .5d, found .{m['dim']}"
    return ""


def _define_load(space: str, mode: tuple[str, ...], multicast: bool, hint: bool) -> None:
    class Load:
        """A box of a tensor into shared memory; the mbarrier is told its bytes."""

        @staticmethod
        def reference(t, m, ins):
            offsets = _offsets(m, ins, 3)
            box = TensorBox(t, m, ins, ins.operands[1], offsets)
            destination, bar = t.address(ins.operands[0]), t.address(ins.operands[2])
            blocks = t.read(ins.operands[3 + bool(offsets)], TYPES["u16"]) if multicast else None
            for base in destinations(t, blocks):
                update_reference(t, "cluster", base(bar), bytes_=-box.load(base(destination)))
                box.coordinates = TensorBox(t, m, ins, ins.operands[1], offsets).coordinates

        @staticmethod
        def emit(b, m, ins):
            offsets = _offsets(m, ins, 3)
            blocks = mask_of_blocks(b, ins.operands[3 + bool(offsets)] if multicast else None)
            operands = [
                b.address(ins.operands[1], "generic"), b.const(_form(m, False), 32),
                *_coordinates(b, ins, ins.operands[1], offsets), b.address(ins.operands[0], "shared"),
                b.address(ins.operands[2], "shared"), blocks,
            ]  # fmt: skip
            b.bulk_call("weft_tensor_copy_in", operands, slots=2)

        @staticmethod
        def check(m, ins):
            return _check_vectors(m, ins.operands[1], _offsets(m, ins, 3))

    im2col = mode == ("im2col",)
    head = f"cp.async.bulk.tensor.dim.{space}.global"
    head += ".mode" if im2col else "{.mode}"
    head += f".mbarrier::complete_tx::bytes{'.multicast::cluster' * multicast}{'.L2::cache_hint' * hint}"
    tail = f"[a], [b], [c]{', e' * im2col}{', f' * multicast}{', h' * hint}"
    since = {**_TENSOR, "ptx": "8.6"} if space == "shared::cta" else _TENSOR
    types = {"e": "u16", "f": "u16", "h": "b64"}
    instruction(f"{head} {tail}", dim=DIMENSIONS, mode=mode, operands=types, where=_fits_mode, **since)(Load)


for _space, _many in (("shared::cta", False), ("shared::cluster", False), ("shared::cluster", True)):
    for _hint in (False, True):
        _define_load(_space, ("tile", "tile::gather4"), _many, _hint)
        _define_load(_space, ("im2col",), _many, _hint)


def _define_store(operation: str, hint: bool) -> None:
    class Store:
        @staticmethod
        def reference(t, m, ins):
            TensorBox(t, m, ins, ins.operands[0]).store(t.address(ins.operands[1]), operation)

        @staticmethod
        def emit(b, m, ins):
            operands = [
                b.address(ins.operands[0], "generic"), b.const(_form(m, True), 32),
                *_coordinates(b, ins, ins.operands[0], ()), b.address(ins.operands[1], "shared"),
            ]  # fmt: skip
            b.bulk_call(f"weft_tensor_copy_{operation or 'out'}", operands, slots=2)

        @staticmethod
        def check(m, ins):
            return _check_vectors(m, ins.operands[0], ())

    Store.__doc__ = (
        "Elements of shared memory are added to those of the tensor (or min, max, and ... taken)." if operation else
        "A box of shared memory into a tensor; what would be outside of the tensor is left out."
    )  # fmt: skip
    opcode = "cp.reduce.async.bulk" if operation else "cp.async.bulk"
    head = f"{opcode}.tensor.dim.global.shared::cta{('.' + operation) * bool(operation)}{{.mode}}.bulk_group"
    modes = ("tile", "tile::scatter4", "im2col_no_offs")
    instruction(
        f"{head}{'.L2::cache_hint' * hint} [a], [b]{', h' * hint}", dim=DIMENSIONS, mode=modes,
        operands={"h": "b64"}, where=_fits_mode, **_TENSOR,
    )(Store)  # fmt: skip


for _operation in ("", "add", "min", "max", "inc", "dec", "and", "or", "xor"):
    for _hint in (False, True):
        _define_store(_operation, _hint)


class _Prefetch:
    """A hint."""

    @staticmethod
    def reference(t, m, ins):
        return None

    @staticmethod
    def emit(b, m, ins):
        return None


for _hint in (False, True):
    _end = ", h" * _hint
    _level = ".L2::cache_hint" * _hint
    instruction(f"cp.async.bulk.prefetch.tensor.dim.L2.global{{.mode}}{_level} [a]{_end}", dim=DIMENSIONS,
                mode=("tile", "tile::gather4"), operands={"h": "b64"}, where=_fits_mode,
                **_TENSOR)(_Prefetch)  # fmt: skip
    instruction(f"cp.async.bulk.prefetch.tensor.dim.L2.global.mode{_level} [a], e{_end}", dim=DIMENSIONS,
                mode=("im2col",), operands={"e": "u16", "h": "b64"}, where=_fits_mode,
                **_TENSOR)(_Prefetch)  # fmt: skip


# ---------------------------------------------------------------- forms of sm_100 that are refused
_PAIRS = "pairs of blocks (.cta_group) belong to tcgen05, the tensor core of sm_100, which does not run; leave it out"
_WIDE = "im2col::w is not supported; use im2col, whose boxes reach over rows"
_MULTICAST = "{.multicast::cluster}{.L2::cache_hint}"
for _space in ("shared::cta", "shared::cluster"):
    _head = f"cp.async.bulk.tensor.dim.{_space}.global"
    _done = f".mbarrier::complete_tx::bytes{_MULTICAST}"
    instruction(f"{_head}{{.mode}}{_done}.group [a], [b], [c]{{, e, f, h}}", dim=DIMENSIONS,
                group=("cta_group::1", "cta_group::2"),
                mode=("tile", "tile::gather4", "im2col", "im2col::w", "im2col::w::128"), missing=_PAIRS,
                operands={"e": "b16", "f": "u16", "h": "b64"}, **_TENSOR)(_Prefetch)  # fmt: skip
    instruction(f"{_head}.mode{_done} [a], [b], [c], e{{, f, h}}", dim=DIMENSIONS, mode=("im2col::w", "im2col::w::128"),
                missing=_WIDE, operands={"e": "b16", "f": "u16", "h": "b64"}, **_TENSOR)(_Prefetch)  # fmt: skip
instruction("cp.async.bulk.prefetch.tensor.dim.L2.global.mode{.L2::cache_hint} [a], e{, h}", dim=DIMENSIONS,
            mode=("im2col::w", "im2col::w::128"), missing=_WIDE, operands={"e": "b16", "h": "b64"},
            **_TENSOR)(_Prefetch)  # fmt: skip


# ---------------------------------------------------------------- tensormap
_SPACES = {"global": "global", "shared::cta": "shared", None: "generic"}
_REPLACE = {"raw": True, "pipe": "lsu", "effects": ("memory",), "ptx": "8.3", "sm": 90, "section": "9.7.9.28"}
_CODE_BITS = {"Q": 64, "I": 32, "H": 16, "B": 8}
_INDEXED = ("box_dim", "global_dim", "global_stride", "element_stride")
# Fields whose values are constants of the text -> the largest.
_CONSTANT = {
    "elemtype": len(tm.ELEMENTS) - 1, "interleave_layout": len(tm.INTERLEAVE_BYTES) - 1,
    "swizzle_mode": len(tm.SWIZZLE_BYTES) - 1, "swizzle_atomicity": len(tm.ATOMICITY) - 1, "fill_mode": 1,
}  # fmt: skip


def _replaced(m, ins) -> tuple[str, int, int, int, object]:
    """(field, index, its offset, its bits, operand of the value)."""
    field, _ = tm.REPLACED[m.field]
    offset, code, _ = tm.FIELDS[field]
    bits = _CODE_BITS[code]
    index = int(ins.operands[1].value) if m.field in _INDEXED else 0
    return field, index, offset + index * bits // 8, bits, ins.operands[-1]


class TensorMapReplace:
    """Gives a field of a tensor map in memory a new value. Memory that is no tensor map becomes one of which the other
    fields have not been set; zeros there count as values for all but the address, sizes, strides and box."""

    @staticmethod
    def reference(t, m, ins):
        space, address = _SPACES[m.get("space")], t.address(ins.operands[0])
        field, index, offset, bits, operand = _replaced(m, ins)
        value = t.read(operand, m.type) - tm.REPLACED[m.field][1]
        value &= (1 << m.type.bits) - 1
        t.store(space, address + offset, bits // 8, min(value, (1 << bits) - 1))
        tag, present = (address + tm.FIELDS[name][0] for name in ("tag", "present"))
        kept = t.load(space, present, 4) if t.load(space, tag, 4) == tm.TAG else 0
        t.store(space, present, 4, kept | tm.field_bit(field, index))
        t.store(space, tag, 4, tm.TAG)

    @staticmethod
    def check(m, ins):
        if m.field in _INDEXED:
            count = tm.FIELDS[tm.REPLACED[m.field][0]][2]
            number = getattr(ins.operands[1], "value", None)
            if number is None or not 0 <= number < count:
                return f"the dimension must be a constant, 0 to {count - 1}"
        most = _CONSTANT.get(m.field)
        number = getattr(ins.operands[-1], "value", None)
        if most is not None and (number is None or not 0 <= number <= most):
            return f"the value must be a constant, 0 to {most}"
        return ""

    @staticmethod
    def emit(b, m, ins):
        space = _SPACES[m.get("space")]
        address = b.address(ins.operands[0], space)
        field, index, offset, bits, operand = _replaced(m, ins)

        def at(place: int):
            return b.add(address, b.const(place, address.bits))

        value = b.read(operand, m.type.bits)
        if tm.REPLACED[m.field][1]:
            value = b.sub(value, b.const(tm.REPLACED[m.field][1], m.type.bits))
        if bits < m.type.bits:
            value = b.trunc(b.umin(value, b.const((1 << bits) - 1, m.type.bits)), bits)
        b.store(space, at(offset), [value])
        present, tag = (at(tm.FIELDS[name][0]) for name in ("present", "tag"))
        is_map = b.icmp("eq", b.load(space, tag, 32, volatile=True)[0], b.const(tm.TAG, 32))
        kept = b.select(is_map, b.load(space, present, 32, volatile=True)[0], b.const(0, 32))
        b.store(space, present, [b.or_(kept, b.const(tm.field_bit(field, index), 32))])
        b.store(space, tag, [b.const(tm.TAG, 32)])


_SPACE = ("global", "shared::cta")
for _fields, _type, _tail in (
    (("global_address",), "b64", "b"), (("rank",), "b32", "b"),
    (("box_dim", "global_dim", "element_stride"), "b32", "c, b"),
    (("global_stride",), "b64", "c, b"),
    (("elemtype", "interleave_layout", "swizzle_mode", "swizzle_atomicity", "fill_mode"), "b32", "b"),
):  # fmt: skip
    instruction(f"tensormap.replace.tile.field{{.space}}.b1024.type [a], {_tail}", field=_fields, space=_SPACE,
                type=(_type,), operands={"b": "type", "c": "u32"}, **_REPLACE)(TensorMapReplace)  # fmt: skip


@instruction("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.scope.sync.aligned [a], [b], c",
             scope=SCOPES, operands={"c": "u32"}, **_REPLACE)  # fmt: skip
class TensorMapPublish:
    """Copies a tensor map of 128 bytes from shared to global memory."""

    @staticmethod
    def reference(t, m, ins):
        destination, source = t.address(ins.operands[0]), t.address(ins.operands[1])
        for i in range(0, tm.BYTES, 16):
            t.store("global", destination + i, 16, t.load("shared", source + i, 16))

    @staticmethod
    def emit(b, m, ins):
        destination, source = b.address(ins.operands[0], "global"), b.address(ins.operands[1], "shared")
        for i in range(0, tm.BYTES, 16):
            words = b.load("shared", b.add(source, b.const(i, 32)), 64, 2)
            b.store("global", b.add(destination, b.const(i, 64)), words)
        b.fence()
