"""Triton's compiler for virtual GPUs: its own CUDA compiler, with PTX text in place of the machine code.

Triton's last stage hands PTX to ptxas; here the PTX is what is loaded. `hash` is part of Triton's cache key, so that
its cached kernels for a real GPU are never taken for these.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from triton.backends.nvidia.compiler import CUDABackend

KEY = "weft-ptx-1"


def keep_ptx(source: str | bytes, metadata: dict) -> bytes:
    """The last stage: PTX in, the same PTX as the "binary" out."""
    return source.encode() if isinstance(source, str) else source


class WeftBackend(CUDABackend):
    """CUDABackend whose stage "cubin" keeps the PTX."""

    def add_stages(self, stages: dict, options: Any, *rest: Any) -> None:
        super().add_stages(stages, options, *rest)
        stages["cubin"] = keep_ptx

    @lru_cache  # noqa: B019 - as in Triton: backends live as long as the process
    def hash(self) -> str:
        return f"{KEY}-{super().hash()}"
