"""CUDA graphs: operators captured once, run again on the same memory at each replay."""

from __future__ import annotations

import itertools
from typing import Any

_handles = itertools.count(1)


class CaptureState:
    """graph: the one that is being captured, or None."""

    graph: Any = None


def is_capturing() -> bool:
    return CaptureState.graph is not None


def graph_pool_handle() -> tuple[int, int]:
    """A new id of a private pool."""
    return (0, next(_handles))


class CudaGraph:
    """torch._C._CUDAGraph."""
