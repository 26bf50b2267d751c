"""Triton programs on virtual GPUs: an imported Triton in, its kernels run by Weft.

`attach` gives Triton a compiler whose last stage keeps the PTX (backend.py) and a driver whose GPU is a weft Device
(driver.py). Programs need no change: they launch with CPU tensors, Weft arrays or PyTorch's virtual CUDA tensors.
"""

from __future__ import annotations

import gc
import os
import sys
from types import ModuleType
from typing import Any

from weft import settings
from weft.frontends.triton.versions import check_version, parse_version

__all__ = ["attach", "change_devices", "check_version", "parse_version"]


class _RefusingDriver:
    """Stands in for the driver where Triton cannot be used: says why at the first use of a GPU, not at the import,
    since many programs import Triton and never launch."""

    def __init__(self, error: Exception):
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


def attach(triton: ModuleType) -> None:
    """Lets an imported Triton run its kernels on the virtual GPUs of weft.frontends.devices.

    Of a version that does not work, every use raises UnsupportedError, which names the versions that do.
    """
    from triton.runtime import driver

    try:
        check_version(triton.__version__)
    except Exception as error:
        driver.set_active(_RefusingDriver(error))
        return
    from triton.backends import Backend, backends

    from weft.frontends.triton.backend import WeftBackend
    from weft.frontends.triton.benchmark import replace_in_testing
    from weft.frontends.triton.disassembly import replace_in_compiler
    from weft.frontends.triton.driver import WeftDriver
    from weft.frontends.triton.specialize import take_interfaces

    if "TRITON_CACHE_DIR" not in os.environ:
        triton.knobs.cache.dir = str(settings.current().cache_dir / "triton")
    backends["nvidia"] = Backend(WeftBackend, WeftDriver)
    driver.set_active(WeftDriver())
    replace_in_testing()
    replace_in_compiler()
    take_interfaces()


def change_devices() -> None:
    """Lets kernels that were compiled or loaded for the devices before be made anew for those of now."""
    if "triton.runtime.jit" not in sys.modules:
        return
    from triton.compiler import compiler
    from triton.runtime.jit import JITFunction

    compiler.max_shared_mem.cache_clear()
    for found in gc.get_objects():
        if issubclass(type(found), JITFunction):  # isinstance would ask lazy objects for their __class__
            found.device_caches.clear()
