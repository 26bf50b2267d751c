"""Weft, a software GPU: PTX and CUDA C++ kernels run on the CPU, with a real GPU's memory, limits and errors.

    gpu = weft.Device("h100")
    kernels = gpu.compile(cuda_source)  # or gpu.load(ptx)
    x = gpu.array(numpy_array)
    kernels["saxpy"][grid, block](n, 2.0, x, y)
    y.numpy()
"""

from __future__ import annotations

from weft import errors
from weft.api import Device
from weft.chips import Chip, all_chips, find_chip
from weft.errors import CudaError, WeftError
from weft.frontends.devices import virtual_device
from weft.install import install, is_dry, is_installed
from weft.runtime.array import Array
from weft.runtime.module import Kernel, Program
from weft.runtime.stream import Event, Stream
from weft.runtime.tensormap import TensorMap, im2col_map, tensor_map
from weft.version import __version__

__all__ = [
    "Array",
    "Chip",
    "CudaError",
    "Device",
    "Event",
    "Kernel",
    "Program",
    "Stream",
    "TensorMap",
    "WeftError",
    "__version__",
    "all_chips",
    "errors",
    "find_chip",
    "im2col_map",
    "install",
    "is_dry",
    "is_installed",
    "tensor_map",
    "virtual_device",
]
