"""Triton's driver for virtual GPUs: what Triton asks about a GPU in, the answers of a weft Device out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from weft import settings
from weft.errors import InvalidValueError, UnsupportedError
from weft.frontends.devices import virtual_device
from weft.frontends.triton.launcher import Launcher
from weft.frontends.triton.resources import ResourceCount
from weft.runtime.module import Kernel, Program
from weft.types import Dim3


class DriverUtils:
    """`driver.active.utils`: what Triton's C module does on a real GPU."""

    def load_binary(self, name: str, kernel: bytes | str, shared: int, device: int) -> tuple[
            Program, Kernel, ResourceCount, ResourceCount, int]:  # fmt: skip
        """(module, function, registers per thread, spilled bytes, most threads per block) of a kernel's PTX."""
        gpu = virtual_device(device)
        ptx = kernel.decode() if isinstance(kernel, bytes) else kernel
        program = gpu.load(ptx, f"{name}.ptx")
        function = program[name]
        most = gpu.chip.capability.max_threads_per_block
        for directive in ("maxntid", "reqntid"):
            if directive in function.directives:
                most = min(most, Dim3(*function.directives[directive]).count)
        return program, function, ResourceCount(function, "registers"), ResourceCount(function, "spills"), most

    def unload_module(self, module: Program) -> None:
        """Nothing: the module goes when nothing refers to it."""

    def get_device_properties(self, device: int | None = None) -> dict[str, int]:
        """Sizes in bytes, clocks in kHz, the bus in bits; 0 for what the catalogue does not know."""
        chip = virtual_device(device).chip
        limits = chip.capability
        clock = int((chip.boost_clock or 0) / 1e3)
        return {
            "max_shared_mem": limits.shared_per_block_optin,
            "max_num_regs": limits.registers_per_block,
            "multiprocessor_count": chip.sm_count,
            "warpSize": limits.warp_size,
            "sm_clock_rate": clock,
            "mem_clock_rate": _memory_clock(chip),
            "mem_bus_width": chip.memory_bus_bits or 0,
        }

    def get_current_device(self) -> int:
        return current_ordinal()

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return virtual_device(device).compute_capability

    def set_printf_fifo_size(self, size: int) -> None:
        """Nothing: what kernels print is not kept in a buffer of fixed size."""

    def is_stream_capturing(self, stream: Any) -> bool:
        """Whether a CUDA graph is being captured: no, launches run at once."""
        return False

    def get_default_stream(self, device: int | None = None) -> int:
        return 0

    def fill_tma_descriptor_tiled(self, address: int, swizzle: int, element_bytes: int, element_type: int,
                                  block: Any, shape: Any, strides: Any, padding: int = 0) -> bytes:  # fmt: skip
        """A tensor map of 128 bytes, outermost dimension first in `block`, `shape` and `strides` (elements)."""
        from weft.frontends.triton.descriptors import fill_tiled

        return fill_tiled(address, swizzle, element_bytes, element_type, block, shape, strides, padding)

    fill_tma_descriptor = fill_tma_descriptor_tiled

    def cuOccupancyMaxActiveClusters(self, function: Kernel, shared: int, cluster: int) -> int:
        """Clusters of `cluster` blocks that the chip holds at once."""
        chip = function.device.chip
        found = function.occupancy(function._some_block(), shared)
        return found.blocks_per_sm * chip.sm_count // max(1, cluster)


def _memory_clock(chip: Any) -> int:
    """kHz at which the bus, with two transfers a clock, reaches the chip's bandwidth, as CUDA states it."""
    if not chip.memory_bandwidth or not chip.memory_bus_bits:
        return 0
    return int(chip.memory_bandwidth / (2 * chip.memory_bus_bits / 8) / 1e3)


def torch_cuda() -> Any:
    """torch.cuda where PyTorch is loaded and has the virtual GPUs, else None."""
    torch: Any = sys.modules.get("torch")
    return torch.cuda if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_available() else None


def torch_binding(name: str) -> Any:
    """A function of torch._C that PyTorch's virtual GPUs bring, None without them. Unlike torch.cuda's functions these
    do not initialise CUDA, which forked processes must not, and they are quick: every launch asks twice."""
    torch: Any = sys.modules.get("torch")
    return getattr(torch._C, name, None) if torch is not None else None


_ordinal = 0


def current_ordinal() -> int:
    """The device that launches go to: PyTorch's current one where it has virtual GPUs."""
    get_device = torch_binding("_cuda_getDevice")
    return get_device() if get_device is not None else _ordinal


def requested_target() -> int | None:
    """The architecture that the user asked for instead of the chip's, as 80 for sm_80."""
    text = settings.current().triton_arch
    if not text:
        return None
    digits = text.lower().removeprefix("sm").removeprefix("_").rstrip("af")
    if not digits.isdecimal():
        raise InvalidValueError(f"WEFT_TRITON_ARCH: found {text!r}, expected an architecture such as sm_80")
    return int(digits)


@cache
def _warn_of_foreign_code(wanted: int, chip: str, own: int) -> None:
    print(
        f"weft: Triton compiles for sm_{wanted}a as asked for; a real {chip} (sm_{own}) would refuse that code",
        file=sys.stderr,
    )


class WeftDriver(DriverBase):
    """`triton.runtime.driver.active` for the virtual GPUs of this process."""

    launcher_cls = Launcher

    def __init__(self) -> None:
        self.utils = DriverUtils()

    @classmethod
    def is_active(cls) -> bool:
        return True

    # ------------------------------------------------------------ devices
    def get_current_device(self) -> int:
        return current_ordinal()

    def set_current_device(self, device: int) -> None:
        """Raises InvalidValueError for an ordinal that there is not."""
        global _ordinal
        virtual_device(device)
        set_device = torch_binding("_cuda_setDevice")
        if set_device is not None:
            set_device(device)
        else:
            _ordinal = device

    def get_current_stream(self, device: int | None = None) -> int:
        get_stream = torch_binding("_cuda_getCurrentRawStream")
        return get_stream(device or 0) if get_stream is not None else 0

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return virtual_device(device).compute_capability

    def get_current_target(self) -> GPUTarget:
        """The chip's architecture, or the one asked for. Raises UnsupportedError for one that the chip cannot run."""
        device = virtual_device(self.get_current_device())
        major, minor = device.compute_capability
        own = 10 * major + minor
        wanted = requested_target() or own
        if wanted > own:
            raise UnsupportedError(
                f"Triton code for sm_{wanted} does not run on {device.chip.name} (sm_{own}): choose another chip with "
                "--gpu, or an older architecture with WEFT_TRITON_ARCH"
            )
        if wanted >= 90 and wanted // 10 != own // 10:
            _warn_of_foreign_code(wanted, device.chip.name, own)
        return GPUTarget("cuda", wanted, 32)

    # ------------------------------------------------------------ frameworks
    def get_active_torch_device(self) -> Any:
        """torch.device("cuda", n) where PyTorch has virtual GPUs, else the CPU, whose tensors kernels use in place."""
        import torch

        if torch_cuda() is not None:
            return torch.device("cuda", self.get_current_device())
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """torch.cuda, or what stands for it where PyTorch has no virtual GPUs."""
        from weft.frontends.triton.interface import DeviceInterface

        return torch_cuda() or DeviceInterface()

    def map_python_to_cpp_type(self, ty: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return ty_to_cpp(ty)

    # ------------------------------------------------------------ memory
    def allocate_default_profile_scratch(self, size: int, alignment: int, stream: Any) -> Any:
        return virtual_device(self.get_current_device()).zeros(size, "u1")

    def assemble_tensormap_to_arg(self, tensormaps_info: Any, args: Any) -> Any:
        return args

    # ------------------------------------------------------------ benchmarks
    def get_benchmarker(self) -> Callable[..., Any]:
        from weft.frontends.triton.benchmark import benchmark_configuration

        return benchmark_configuration

    def get_empty_cache_for_benchmark(self) -> Any:
        """Nothing to clear: the host's caches are not the chip's."""
        from weft.frontends.triton.benchmark import NoCache

        return NoCache()

    def clear_cache(self, cache: Any) -> None:
        cache.zero_()
