"""Scratch memory that a kernel asks for at its launch: sizes per block in, buffers out.

Triton lets the program say where it comes from (triton.set_allocator); profile scratch has a default.
"""

from __future__ import annotations

from typing import Any

from weft.runtime.device import Device

_MIN_ALIGNMENT = 256  # of every Weft allocation


def allocate(device: Device, blocks: int, global_scratch: tuple[int, int], profile_scratch: tuple[int, int],
             stream: Any) -> tuple[Any, Any]:  # fmt: skip
    """The buffers of one launch, None where the kernel takes none. Each size is (bytes per block, alignment).

    Raises RuntimeError, which Triton's own allocator does, where the program has set none.
    """
    from triton.runtime import _allocation

    buffers: list[Any] = [None, None]
    if global_scratch[0]:
        # A ContextVar from Triton 3.5 on, before that the function itself.
        allocator = _allocation._allocator
        allocator = allocator.get() if hasattr(allocator, "get") else allocator
        buffers[0] = allocator(blocks * global_scratch[0], global_scratch[1], stream)
    if profile_scratch[0]:
        own = getattr(_allocation, "has_profile_allocator", None)
        if own is not None and own():
            buffers[1] = _allocation._profile_allocator.get()(blocks * profile_scratch[0], profile_scratch[1], stream)
        else:
            buffers[1] = device.zeros(blocks * profile_scratch[0], "u1")
    return buffers[0], buffers[1]
