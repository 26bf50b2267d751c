"""What all tests share: a cache folder of their own, Hypothesis without deadlines."""

from __future__ import annotations

import os
import shutil
import tempfile

from hypothesis import settings

# Set before weft is imported, and inherited by child processes. Neither the user's cache is used nor filled.
_given = os.environ.get("WEFT_CACHE_DIR")
if _given is None:
    os.environ["WEFT_CACHE_DIR"] = tempfile.mkdtemp(prefix="weft-test-cache-")

# Test processes share the cores. OpenMP threads that wait for one another spin, so PyTorch's kernels took up to seven
# times as long with two threads in each of two processes as with one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The first example of a kernel compiles it, so a deadline per example means nothing.
settings.register_profile("weft", deadline=None)
settings.load_profile("weft")


def pytest_unconfigure() -> None:
    if _given is None:
        shutil.rmtree(os.environ["WEFT_CACHE_DIR"], ignore_errors=True)
