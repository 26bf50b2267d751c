"""Tensor maps on the host: a tensor's memory and the box to copy enter, the 128 bytes that kernels take leave.

`encode_tiled` and `encode_im2col` check what cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col check (CUDA driver API,
"Tensor Map Object Management") and raise InvalidValueError with what is wrong. `tensor_map` and `im2col_map` are the
same for arrays, in the array's own order of dimensions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from weft.errors import InvalidValueError, UnsupportedError

# CUtensorMapDataType by number: our names of element types.
DATA_TYPES = (
    "u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16", "f32.ftz", "tf32", "tf32.ftz", "b4x16",
    "b4x16_p64", "b6x16_p32",
)  # fmt: skip
# CUtensorMapSwizzle by number (and one of tensormap.replace alone) -> (swizzle mode, atomicity).
SWIZZLES = {
    "none": (0, 0), "32B": (1, 0), "64B": (2, 0), "128B": (3, 0), "128B_atom_32B": (3, 1),
    "128B_atom_32B_flip_8B": (3, 2), "128B_atom_64B": (3, 3), "96B": (4, 0),
}  # fmt: skip
INTERLEAVES = ("none", "16B", "32B")
FILLS = ("zero", "nan")
_OF_DTYPE = {
    "bool": "u8", "uint8": "u8", "int8": "u8", "uint16": "u16", "int16": "u16", "uint32": "u32", "int32": "s32",
    "uint64": "u64", "int64": "s64", "float16": "f16", "float32": "f32", "float64": "f64", "bfloat16": "bf16",
    "float8_e4m3fn": "u8", "float8_e5m2": "u8",
}  # fmt: skip
_CORNERS = {3: (-32768, 32767), 4: (-128, 127), 5: (-16, 15)}  # rank -> range of the im2col corners
MAX_SIZE = 1 << 32
MAX_PIXELS, MAX_CHANNELS = 1024, 256


class TensorMap(ctypes.Structure):
    """An encoded tensor map: pass it to a kernel whose parameter is a CUtensorMap (`const __grid_constant__
    CUtensorMap`, `.param .align 64 .b8[128]`), or copy its bytes to device memory. Keeps its array alive.

    Attributes: array (or None).
    """

    _fields_ = [("words", ctypes.c_uint64 * 16)]
    array: Any = None

    @classmethod
    def from_bytes(cls, data: bytes, array: Any = None) -> TensorMap:
        made = cls.from_buffer_copy(data)
        made.array = array
        return made

    def __repr__(self) -> str:
        from weft.isa.tensormap import decode

        found = decode(bytes(self))
        if found is None:
            return "<weft.TensorMap, not encoded>"
        return f"<weft.TensorMap of {found.sizes} {found.element_name}, box {found.box}>"


def _fail(message: str) -> InvalidValueError:
    return InvalidValueError(f"invalid argument: tensor map: {message}")


def _choice(what: str, value: Any, choices: Sequence[str]) -> str:
    name = {None: "none", 0: "none"}.get(value, value) if not isinstance(value, str) else value
    if isinstance(name, int):
        name = f"{name}B"
    if name not in choices:
        raise _fail(f"{what}: found {value!r}, expected one of {', '.join(choices)}")
    return str(name)


def _element(name: str) -> tuple[int, int, bool]:
    """(number, bytes, is a float) of an element type."""
    from weft.isa.tensormap import ELEMENT_NUMBER, ELEMENTS

    if name not in ELEMENT_NUMBER:
        raise _fail(f"element type: found {name!r}, expected one of {', '.join(ELEMENT_NUMBER)}")
    number = ELEMENT_NUMBER[name]
    _, bits, kind = ELEMENTS[number]
    if bits < 8:
        raise UnsupportedError(
            f"tensor map: element type {name} (of tcgen05, the tensor core of sm_100) is not supported; copy bytes (u8)"
        )
    return number, bits // 8, kind == "f"


def _integers(what: str, values: Sequence[int], count: int) -> tuple[int, ...]:
    found = tuple(int(value) for value in values)
    if len(found) != count:
        raise _fail(f"{what}: found {len(found)} numbers, expected {count}")
    return found


def _common(element: str, address: int, sizes: Sequence[int], strides: Sequence[int], element_strides, interleave: Any,
            swizzle: Any, fill: str) -> dict[str, Any]:  # fmt: skip
    """Checks that both modes share; fields of isa.tensormap.TensorMap."""
    from weft.isa.tensormap import INTERLEAVE_BYTES, MAX_ELEMENT_STRIDE, MAX_RANK, STRIDE_LIMIT

    number, size, is_float = _element(element)
    rank = len(sizes)
    interleave, swizzle = _choice("interleave", interleave, INTERLEAVES), _choice("swizzle", swizzle, tuple(SWIZZLES))
    wide = INTERLEAVE_BYTES[INTERLEAVES.index(interleave)]
    align = 32 if wide == 32 else 16
    if not 1 <= rank <= MAX_RANK:
        raise _fail(f"rank: found {rank} dimensions, expected 1 to {MAX_RANK}")
    if wide and rank < 3:
        raise _fail(f"interleave {interleave} needs at least 3 dimensions, found {rank}")
    if wide == 32 and swizzle != "32B":
        raise _fail(f"interleave 32B needs swizzle 32B, found {swizzle}")
    if address % align:
        raise _fail(f"the tensor's address must be a multiple of {align}, found {address:#x}")
    sizes, strides = _integers("sizes", sizes, rank), _integers("strides", strides, rank - 1)
    for n in sizes:
        if not 1 <= n <= MAX_SIZE:
            raise _fail(f"a dimension's size must be 1 to 2**32, found {n} in {sizes}")
    for stride in strides:
        if stride % align or not 0 <= stride < STRIDE_LIMIT:
            raise _fail(f"strides are in bytes, multiples of {align} and below 2**40, found {stride} in {strides}")
    steps = _integers("element strides", element_strides or (1,) * rank, rank)
    for step in steps:
        if not 1 <= step <= MAX_ELEMENT_STRIDE:
            raise _fail(f"element strides must be 1 to {MAX_ELEMENT_STRIDE}, found {step} in {steps}")
    if fill not in FILLS:
        raise _fail(f"fill: found {fill!r}, expected zero or nan")
    if fill == "nan" and not is_float:
        raise _fail(f"fill nan needs a floating type, found {element}")
    mode, atomicity = SWIZZLES[swizzle]
    return {
        "address": address, "element": number, "sizes": sizes, "strides": strides, "element_strides": steps,
        "interleave": INTERLEAVES.index(interleave), "swizzle": mode, "atomicity": atomicity, "fill": FILLS.index(fill),
        "_bytes": size, "_slice": wide,
    }  # fmt: skip


def _check_row(what: str, elements: int, size: int, wide: int, swizzle: int) -> None:
    """The innermost side of a box, in elements of `size` bytes."""
    from weft.isa.tensormap import SWIZZLE_BYTES

    row = elements * size
    if wide:
        if row != wide:
            raise _fail(f"with interleave {wide}B {what} must be one slice of {wide} bytes, found {row}")
        return
    if row % 16:
        raise _fail(f"{what} must be a multiple of 16 bytes, found {elements} elements of {size} bytes")
    if swizzle and row > SWIZZLE_BYTES[swizzle]:
        raise _fail(f"{what} must not be wider than the swizzle ({SWIZZLE_BYTES[swizzle]} bytes), found {row} bytes")


def encode_tiled(element: str, address: int, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int],
                 element_strides: Sequence[int] | None = None, *, interleave: Any = "none", swizzle: Any = "none",
                 l2_promotion: Any = None, fill: str = "zero") -> bytes:  # fmt: skip
    """The bytes of a tiled tensor map, as cuTensorMapEncodeTiled makes one.

    element: a name of DATA_TYPES. Dimensions run from the innermost: sizes and box in elements, strides in bytes from
    dimension 1 on. swizzle: a name of SWIZZLES, or its bytes (32, 64, 128). interleave: "none", "16B" or "32B": the
    innermost dimension is then one slice of so many bytes. fill: of elements outside of the tensor, "zero" or "nan".
    l2_promotion is a hint and ignored. Raises InvalidValueError, UnsupportedError for types of less than a byte.
    """
    from weft.isa.tensormap import MAX_BOX, TensorMap

    fields = _common(element, address, sizes, strides, element_strides, interleave, swizzle, fill)
    size, wide = fields.pop("_bytes"), fields.pop("_slice")
    box = _integers("box", box, len(fields["sizes"]))
    for side in box:
        if not 1 <= side <= MAX_BOX:
            raise _fail(f"sides of the box must be 1 to {MAX_BOX}, found {side} in {box}")
    _check_row("the box's innermost side", box[0], size, wide, fields["swizzle"])
    return TensorMap(box=box, **fields).encode()


def encode_im2col(element: str, address: int, sizes: Sequence[int], strides: Sequence[int], lower: Sequence[int],
                  upper: Sequence[int], channels: int, pixels: int, element_strides: Sequence[int] | None = None, *,
                  interleave: Any = "none", swizzle: Any = "none", l2_promotion: Any = None,
                  fill: str = "zero") -> bytes:  # fmt: skip
    """The bytes of an im2col tensor map, as cuTensorMapEncodeIm2col makes one.

    The tensor is NWC, NHWC or NDHWC; sizes run from C to N. lower, upper: the bounding box's corners as offsets from
    the image's corners, W first (the driver's arrays are D, H, W). channels: per pixel. pixels: per column. The rest
    is as in encode_tiled. Raises InvalidValueError, UnsupportedError.
    """
    from weft.isa.tensormap import IM2COL, TensorMap

    fields = _common(element, address, sizes, strides, element_strides, interleave, swizzle, fill)
    size, wide = fields.pop("_bytes"), fields.pop("_slice")
    rank = len(fields["sizes"])
    if rank not in _CORNERS:
        raise _fail(f"im2col needs 3, 4 or 5 dimensions, found {rank}")
    low, high = _CORNERS[rank]
    lower, upper = _integers("lower corner", lower, rank - 2), _integers("upper corner", upper, rank - 2)
    for value in (*lower, *upper):
        if not low <= value <= high:
            raise _fail(f"corners of a tensor of {rank} dimensions must be {low} to {high}, found {value}")
    for axis, (a, b, n) in enumerate(zip(lower, upper, fields["sizes"][1:])):
        if a > n - 1 + b:
            raise _fail(f"the bounding box is empty along {'WHD'[axis]}: from {a} to {n - 1 + b}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise _fail(f"channels per pixel must be 1 to {MAX_CHANNELS}, found {channels}")
    if not 1 <= pixels <= MAX_PIXELS:
        raise _fail(f"pixels per column must be 1 to {MAX_PIXELS}, found {pixels}")
    _check_row("a pixel's channels", channels, size, wide, fields["swizzle"])
    box = (channels, *(1,) * (rank - 1))
    return TensorMap(box=box, mode=IM2COL, pixels=pixels, lower=lower, upper=upper, **fields).encode()


# ---------------------------------------------------------------- maps of arrays
def _describe(array: Any, element: str | None) -> tuple[str, int, tuple[int, ...], tuple[int, ...]]:
    """(element, address, sizes, strides) of a device array, innermost dimension first."""
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise TypeError(f"expected a device array, found {type(array).__name__}; copy it with gpu.array(x)")
    dtype = np.dtype(getattr(array, "dtype", interface["typestr"]))
    if element is None:
        element = _OF_DTYPE.get(dtype.name)
        if element is None:
            raise TypeError(f"no tensor map element type for dtype {dtype}; give element=")
    if _element(element)[1] != dtype.itemsize:
        raise TypeError(f"element {element} has {_element(element)[1]} bytes, dtype {dtype} has {dtype.itemsize}")
    shape = tuple(int(n) for n in interface["shape"])
    strides = interface.get("strides")
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=np.int64)) * dtype.itemsize for i in range(len(shape)))
    if shape and strides[-1] != dtype.itemsize and shape[-1] != 1:
        raise _fail(f"the last dimension must be contiguous, found a stride of {strides[-1]} bytes")
    return element, int(interface["data"][0]), shape[::-1], tuple(int(s) for s in strides[:-1])[::-1]


def tensor_map(array: Any, box: Sequence[int], *, swizzle: Any = "none", interleave: Any = "none",
               element_strides: Sequence[int] | None = None, fill: str = "zero",
               element: str | None = None) -> TensorMap:  # fmt: skip
    """A tensor map of a device array for cp.async.bulk.tensor: the array's shape and strides, and the box to copy.

    box and element_strides are in the array's order of dimensions (the last is contiguous). element: when the dtype
    does not say it ("tf32", "f32.ftz"). The rest is as in encode_tiled. Kernels get the result by value, as a
    CUtensorMap. Raises TypeError for what is no device array, InvalidValueError.
    """
    name, address, sizes, strides = _describe(array, element)
    steps = None if element_strides is None else tuple(element_strides)[::-1]
    data = encode_tiled(name, address, sizes, strides, tuple(box)[::-1], steps, swizzle=swizzle, interleave=interleave,
                        fill=fill)  # fmt: skip
    return TensorMap.from_bytes(data, array)


def im2col_map(array: Any, lower: Sequence[int], upper: Sequence[int], channels: int, pixels: int, *,
               swizzle: Any = "none", interleave: Any = "none", element_strides: Sequence[int] | None = None,
               fill: str = "zero", element: str | None = None) -> TensorMap:  # fmt: skip
    """A tensor map of an NWC, NHWC or NDHWC array for im2col copies. lower, upper: corners of the bounding box, in the
    array's order (D, H, W); the rest is as in encode_im2col and tensor_map."""
    name, address, sizes, strides = _describe(array, element)
    steps = None if element_strides is None else tuple(element_strides)[::-1]
    data = encode_im2col(name, address, sizes, strides, tuple(lower)[::-1], tuple(upper)[::-1], channels, pixels, steps,
                         swizzle=swizzle, interleave=interleave, fill=fill)  # fmt: skip
    return TensorMap.from_bytes(data, array)
