"""Where things lie on the reference: windows and bases of the state spaces, functions, shared variables.

Global memory begins at MEMORY_BASE; every allocation has guard bytes behind it. Shared and local addresses are offsets,
with generic forms in two windows that no allocation reaches.
"""

from __future__ import annotations

from weft.ptx.module import Module

MEMORY_BASE = 0x7A00_0000_0000
SHARED_WINDOW = 0x6A00_0000_0000
LOCAL_WINDOW = 0x6B00_0000_0000
WINDOW_BYTES = 1 << 24
# In the shared window: a block's own shared memory at 0, that of the cluster's block of rank r at (r + 1) times this.
CLUSTER_STRIDE = 1 << 19
FUNCTION_BASE = 0x0F00_0000_0000_0000  # the n-th function's address is FUNCTION_BASE + 16 * n
ALLOCATION_ALIGN = 256
GUARD_BYTES = 256


def function_address(module: Module, name: str) -> int:
    return FUNCTION_BASE + 16 * list(module.functions).index(name)


def place_shared(module: Module, dynamic_shared: int) -> tuple[dict[str, int], int]:
    """Offsets of the shared variables ("function name" for those of a function) and the block's bytes. `.extern`
    variables without a size begin behind the others."""
    named = [(v.name, v) for v in module.variables.values() if v.space == "shared"]
    for function in module.functions.values():
        named += [(f"{function.name} {v.name}", v) for v in function.variables.values() if v.space == "shared"]
    offsets: dict[str, int] = {}
    at = 0
    for name, variable in named:
        if not variable.unsized:
            at = -(-at // max(1, variable.align)) * max(1, variable.align)
            offsets[name] = at
            at += variable.size
    unsized = [(name, v) for name, v in named if v.unsized]
    if unsized:
        align = max(16, *(v.align for _, v in unsized))
        at = -(-at // align) * align
        offsets.update((name, at) for name, _ in unsized)
    return offsets, at + dynamic_shared
