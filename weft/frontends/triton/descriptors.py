"""Tensor descriptors that the host makes: Triton's TensorDescriptor and its compiler's metadata in, a tensor map out.

On sm_90 such a descriptor reaches the kernel as a tensor map of 128 bytes. Triton gives sizes outermost dimension first
and strides in elements; a map has both innermost first, and bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weft.errors import InvalidValueError
from weft.isa.tensormap import ELEMENTS
from weft.runtime.tensormap import DATA_TYPES, encode_im2col, encode_tiled

# Swizzle modes by number, as Triton's metadata and the driver API count them.
_SWIZZLES = ("none", "32B", "64B", "128B")


def make_tensor_map(descriptor: Any, metadata: dict, address: int) -> bytes:
    """The map of a descriptor whose tensor begins at `address`. metadata: what Triton's compiler says of it (swizzle,
    elem_size in bytes, elem_type as tensormap.replace counts, block_size, fp4_padded, is_im2col).

    Raises RuntimeError, as Triton's launcher does, for a descriptor that the hardware would refuse.
    """
    shape = list(descriptor.shape)
    if metadata.get("fp4_padded"):
        shape[-1] *= 2
    element = "tf32" if getattr(descriptor, "round_f32_to_tf32", False) else ELEMENTS[metadata["elem_type"]][0]
    fill = getattr(descriptor, "padding", "zero")
    swizzle, size, block = metadata["swizzle"], metadata["elem_size"], metadata["block_size"]
    if not metadata.get("is_im2col", False):
        return _encode(element, address, swizzle, size, block, shape, descriptor.strides, fill)
    boxes = {
        "lower": _inner_first(descriptor.pixel_box_lower_corner),
        "upper": _inner_first(descriptor.pixel_box_upper_corner),
        "element_strides": _inner_first(getattr(descriptor, "element_strides", None) or [1] * len(shape)),
    }
    return _encode(element, address, swizzle, size, block, shape, descriptor.strides, fill, boxes)


def fill_tiled(address: int, swizzle: int, element_bytes: int, element_type: int, block: Sequence[int],
               shape: Sequence[int], strides: Sequence[int], padding: int = 0) -> bytes:  # fmt: skip
    """The map of a tensor, for programs that call the driver's fill_tma_descriptor themselves. element_type is a
    CUtensorMapDataType; the rest is as in make_tensor_map."""
    fill = "nan" if padding else "zero"
    return _encode(DATA_TYPES[element_type], address, swizzle, element_bytes, block, shape, strides, fill)


def _inner_first(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in reversed(list(values)))


def _encode(element: str, address: int, swizzle: int, element_bytes: int, block: Sequence[int], shape: Sequence[int],
            strides: Sequence[int], fill: str, im2col: dict[str, Any] | None = None) -> bytes:  # fmt: skip
    sizes, box = _inner_first(shape), _inner_first(block)
    distances = tuple(element_bytes * stride for stride in _inner_first(strides)[1:])
    common: dict[str, Any] = {"swizzle": _SWIZZLES[swizzle], "fill": fill}
    try:
        if im2col is None:
            return encode_tiled(element, address, sizes, distances, box, **common)
        # The block of an im2col descriptor is (pixels per column, channels per pixel).
        return encode_im2col(element, address, sizes, distances, channels=box[0], pixels=box[1], **im2col, **common)
    except InvalidValueError as error:
        kind = "tensor map" if im2col is None else "im2col tensor map"
        text = str(error).removeprefix(f"{error.name}: ")
        raise RuntimeError(f"Triton Error [CUDA]: Failed to create {kind} descriptor: {text}") from error
