"""Weft's version: the one place that states it. With the state of the source files it is part of every cache key."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__version__ = "0.1.0"


@cache
def build_stamp() -> str:
    """Names the code that makes cached objects: the version, and the sizes and times of the package's files, so that
    a changed checkout does not load what the code before it compiled. About a millisecond, once per process."""
    root = Path(__file__).parent
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(root.rglob("*.py")):
        state = path.stat()
        digest.update(f"{path.relative_to(root)}:{state.st_size}:{state.st_mtime_ns};".encode())
    return f"{__version__}+{digest.hexdigest()[:16]}"
