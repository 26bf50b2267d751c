"""The tensor map: what a 128-byte map describes enters, its bytes leave, and back.

A tensor map is opaque to programs; this layout is Weft's own. It is read by the instructions (weft/codegen/bulk.py and
the reference rules), written by the encoder (weft/runtime/tensormap.py) and by tensormap.replace. Numbers of element
types, swizzles, interleaves and fills are those of tensormap.replace (PTX ISA, "tensormap.replace"). Dimensions run
from the innermost; sizes and the rank are kept less one, so that memory of zeros is a map of one element.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

BYTES = 128
ALIGN = 64  # of a map in memory
MAX_RANK = 5
TAG = 0x50414D54  # "TMAP": the last word of every map that was encoded or made by tensormap.replace
MAX_BOX, MAX_ELEMENT_STRIDE = 256, 8
STRIDE_LIMIT = 1 << 40
ADDRESS_ALIGN = 16
SHARED_ALIGN = 128  # of the shared memory that a tensor copy uses

# name, bits, kind: u, s or f. The place in the table is the number that tensormap.replace takes.
ELEMENTS = (
    ("u8", 8, "u"), ("u16", 16, "u"), ("u32", 32, "u"), ("s32", 32, "s"), ("u64", 64, "u"), ("s64", 64, "s"),
    ("f16", 16, "f"), ("f32", 32, "f"), ("f32.ftz", 32, "f"), ("f64", 64, "f"), ("bf16", 16, "f"), ("tf32", 32, "f"),
    ("tf32.ftz", 32, "f"), ("b4x16", 4, "b"), ("b4x16_p64", 4, "b"), ("b6x16_p32", 6, "b"),
)  # fmt: skip
ELEMENT_NUMBER = {name: number for number, (name, _, _) in enumerate(ELEMENTS)}
# What fills elements outside of the tensor under the NaN mode: a quiet NaN of the type with all payload bits set.
NAN_FILL = {"f16": 0x7FFF, "bf16": 0x7FFF, "f64": (1 << 63) - 1}
FLUSHES = ("f32.ftz", "tf32.ftz")
ROUNDS = ("tf32", "tf32.ftz")

INTERLEAVE_BYTES = (0, 16, 32)
SWIZZLE_BYTES = (0, 32, 64, 128, 96)  # swizzle mode -> longest row of a box, in bytes; 0 is no swizzle
ATOMICITY = ("16B", "32B", "32B+8B flip", "64B")
TILED, IM2COL = 0, 1

# field -> (offset, struct code of one element, number of elements)
FIELDS: dict[str, tuple[int, str, int]] = {
    "address": (0, "Q", 1),
    "strides": (8, "Q", 4),  # in bytes, of dimensions 1 to 4
    "sizes": (40, "I", 5),  # in elements, less one
    "box": (60, "H", 5),  # in elements; im2col: [0] channels per pixel
    "element_strides": (70, "B", 5),
    "rank": (75, "B", 1),  # less one
    "element": (76, "B", 1),
    "interleave": (77, "B", 1),
    "swizzle": (78, "B", 1),
    "atomicity": (79, "B", 1),
    "fill": (80, "B", 1),  # 1: NaN
    "mode": (81, "B", 1),  # TILED or IM2COL
    "pixels": (82, "H", 1),  # im2col: pixels per column
    "lower": (84, "h", 3),  # im2col: bounding box, W H D
    "upper": (90, "h", 3),
    "present": (120, "I", 1),  # bit per field that has been given a value: see `field_bit`
    "tag": (124, "I", 1),
}

# tensormap.replace's fields -> (field here, what is taken off the value)
REPLACED = {
    "global_address": ("address", 0), "rank": ("rank", 1), "box_dim": ("box", 0), "global_dim": ("sizes", 1),
    "global_stride": ("strides", 0), "element_stride": ("element_strides", 0), "elemtype": ("element", 0),
    "interleave_layout": ("interleave", 0), "swizzle_mode": ("swizzle", 0), "swizzle_atomicity": ("atomicity", 0),
    "fill_mode": ("fill", 0),
}  # fmt: skip
REPLACED["rank"] = ("rank", 0)  # the manual's operand is the rank less one already
_PRESENT_FIRST = {"address": 0, "strides": 1, "sizes": 5, "box": 10, "element_strides": 15}
ALL_PRESENT = (1 << 20) - 1

# Why a map or a copy is refused: Fault.size of a TENSOR_MAP fault.
REASONS = {
    1: "it is not a tensor map: encode it with weft.tensor_map, cuTensorMapEncode or tensormap.replace",
    2: "a tensor map must lie at a multiple of 64 bytes",
    3: "the instruction's dimensions are not the map's rank",
    4: "the map's mode (tiled or im2col) is not the instruction's",
    5: "a field that the copy needs has not been set by tensormap.replace",
    6: "the tensor's address is not a multiple of 16 (32 with 32-byte interleave)",
    7: "a stride is not a multiple of 16 (32 with 32-byte interleave) or not below 2**40",
    8: "a box side must be 1 to 256 and an element stride 1 to 8",
    9: "the box's rows must be a multiple of 16 bytes and fit the swizzle (with interleave: be one slice)",
    10: "the element type, interleave, swizzle, atomicity or fill is not one that exists, or they do not go together",
    11: "the shared memory address is not a multiple of 128",
    12: "the reduction is not defined for the map's element type",
    13: "gather4 and scatter4 need a tensor of two dimensions whose box has one row, without interleave",
    14: "stores cannot undo the swizzle with 8-byte flip",
    15: "the box does not fit in the block's shared memory",
    16: "the tensor map must be in global, constant or parameter memory",
}  # fmt: skip


def field_bit(field: str, index: int = 0) -> int:
    """The bit of `present` for a field; 0 for one whose zero is a value like any other."""
    first = _PRESENT_FIRST.get(field)
    return 0 if first is None else 1 << (first + index)


def needed_bits(rank: int) -> int:
    """The bits of `present` that a copy of a tensor of `rank` dimensions wants set."""
    bits = field_bit("address")
    for i in range(rank):
        bits |= field_bit("sizes", i) | field_bit("box", i) | field_bit("element_strides", i)
        if i:
            bits |= field_bit("strides", i - 1)
    return bits


@dataclass(frozen=True)
class TensorMap:
    """What a tensor map says. Tuples have `rank` entries (strides one less), innermost dimension first.

    address: of the tensor's first element. strides: in bytes. swizzle: a mode of SWIZZLE_BYTES; atomicity: of
    ATOMICITY. lower, upper: corners of the im2col bounding box, W first; pixels: pixels per column.
    """

    address: int
    element: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    interleave: int = 0
    swizzle: int = 0
    atomicity: int = 0
    fill: int = 0
    mode: int = TILED
    pixels: int = 0
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    present: int = ALL_PRESENT

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def element_bits(self) -> int:
        return ELEMENTS[self.element][1]

    @property
    def element_name(self) -> str:
        return ELEMENTS[self.element][0]

    def encode(self) -> bytes:
        """The 128 bytes."""
        values = {
            "address": (self.address,), "strides": self.strides, "sizes": tuple(n - 1 & 0xFFFFFFFF for n in self.sizes),
            "box": self.box, "element_strides": self.element_strides, "rank": (self.rank - 1,),
            "element": (self.element,), "interleave": (self.interleave,), "swizzle": (self.swizzle,),
            "atomicity": (self.atomicity,), "fill": (self.fill,), "mode": (self.mode,), "pixels": (self.pixels,),
            "lower": self.lower, "upper": self.upper, "present": (self.present,), "tag": (TAG,),
        }  # fmt: skip
        data = bytearray(BYTES)
        for name, (offset, code, count) in FIELDS.items():
            padded = (*values[name], *(0,) * count)[:count]
            struct.pack_into(f"<{count}{code}", data, offset, *padded)
        return bytes(data)

    def with_address(self, address: int) -> TensorMap:
        """The same map of another tensor of the same shape."""
        return replace(self, address=address)


def read_field(data: bytes, name: str) -> tuple[int, ...]:
    """The numbers of one field as they are kept."""
    offset, code, count = FIELDS[name]
    return struct.unpack_from(f"<{count}{code}", data, offset)


def decode(data: bytes) -> TensorMap | None:
    """What the 128 bytes of a map say; None when they are no tensor map."""
    (tag,), (rank,) = read_field(data, "tag"), read_field(data, "rank")
    if tag != TAG or rank >= MAX_RANK:
        return None
    rank += 1

    def one(name: str) -> int:
        return read_field(data, name)[0]

    return TensorMap(
        one("address"), one("element"), tuple(n + 1 for n in read_field(data, "sizes")[:rank]),
        read_field(data, "strides")[: rank - 1], read_field(data, "box")[:rank],
        read_field(data, "element_strides")[:rank], one("interleave"), one("swizzle"), one("atomicity"), one("fill"),
        one("mode"), one("pixels"), read_field(data, "lower")[: max(0, rank - 2)],
        read_field(data, "upper")[: max(0, rank - 2)], one("present"),
    )  # fmt: skip


def swizzle_rule(swizzle: int, atomicity: int) -> tuple[int, int, bool]:
    """(shift, mask, flip): byte `a` of shared memory is kept at `a ^ (a >> shift & mask)`; with `flip`, the 8-byte
    halves of every 16 bytes are exchanged where bit 7 of the address is set. PTX ISA, "Swizzling Modes"."""
    if swizzle == 0:
        return 0, 0, False
    if swizzle == 3 and atomicity:
        return {1: (2, 0x60, False), 2: (2, 0x60, True), 3: (1, 0x40, False)}[atomicity]
    return 3, {1: 0x10, 2: 0x30, 3: 0x70, 4: 0x10}[swizzle], False


def refuse(m: TensorMap, dimensions: int, mode: int) -> int:
    """0, or the number in REASONS why an instruction of `dimensions` and `mode` cannot use the map."""
    slice_bytes = INTERLEAVE_BYTES[m.interleave] if m.interleave < len(INTERLEAVE_BYTES) else 0
    wide = 32 if slice_bytes == 32 else 16
    used = range(1 if not m.interleave else 0, m.rank)
    if m.rank != dimensions:
        return 3
    if m.mode != mode:
        return 4
    if m.present & needed_bits(m.rank) != needed_bits(m.rank):
        return 5
    if (
        m.element >= len(ELEMENTS) or m.interleave >= len(INTERLEAVE_BYTES) or m.swizzle >= len(SWIZZLE_BYTES)
        or m.atomicity >= len(ATOMICITY) or m.fill > 1 or (m.atomicity and m.swizzle != 3)
        or (slice_bytes and m.rank < 3) or m.element_bits < 8 or (m.fill and ELEMENTS[m.element][2] != "f")
    ):  # fmt: skip
        return 10
    if m.address % wide:
        return 6
    if any(stride % wide or stride >= STRIDE_LIMIT for stride in m.strides):
        return 7
    sides = m.box if mode == TILED else m.box[:1]
    if not all(1 <= n <= MAX_BOX for n in sides) or not all(1 <= m.element_strides[i] <= 8 for i in used):
        return 8
    row = m.box[0] * m.element_bits // 8
    if slice_bytes:
        return 9 if row != slice_bytes else 0
    if row % 16 or (m.swizzle and row > SWIZZLE_BYTES[m.swizzle]):
        return 9
    return 0
