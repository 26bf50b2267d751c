"""The virtual GPUs as PyTorch sees them: settings of the front ends in, one Gpu per device index out."""

from __future__ import annotations

from typing import Any

import torch

from weft import settings
from weft.errors import InvalidValueError
from weft.frontends.devices import virtual_devices
from weft.frontends.torch.hooks import MAX_DEVICES
from weft.frontends.torch.memory import CachingAllocator


class Gpu:
    """One device: index, chip, allocator, and the generator that its random operators use by default.

    device is the weft.Device that kernels run on.
    """

    def __init__(self, index: int, device: Any):
        self.index, self.device, self.chip = index, device, device.chip
        self.allocator = CachingAllocator(index, device.chip.memory_bytes, torch._C.OutOfMemoryError, self._own_bytes)
        self.generator: Any = None
        if settings.current().dry:
            from weft.frontends.torch.dry_memory import prepare_allocator

            prepare_allocator(self.allocator)

    def _own_bytes(self) -> int:
        """Bytes of the capacity that arrays of weft itself take."""
        free, total = self.device.memory_info()
        return total - free


gpus: list[Gpu] = []
# The device guard's own functions; torch.accelerator gets one that returns CUDA streams, one that knows how many
# devices there are.
guard_stream = torch._C._accelerator_getStream
guard_set_device = torch._C._accelerator_setDeviceIndex


class StreamState:
    """used: whether any stream but the default ones was ever made current; until then nothing asks which it is."""

    used = False


def current_stream(index: int) -> int:
    """The id of the calling thread's current stream on a device; 0 is the default stream."""
    if not StreamState.used:
        return 0
    return guard_stream(index).stream_id


def make_gpus() -> list[Gpu]:
    """Fills `gpus` from the virtual devices of this process. Raises InvalidValueError for more than eight."""
    devices = virtual_devices()
    if len(devices) > MAX_DEVICES:
        raise InvalidValueError(
            f"invalid argument: found {len(devices)} virtual GPUs, PyTorch can have at most {MAX_DEVICES} of them"
        )
    gpus[:] = [Gpu(index, device) for index, device in enumerate(devices)]
    return gpus


def find_gpu(index: int | None) -> Gpu:
    """The GPU of an index, the current one for None. Raises torch.AcceleratorError, as CUDA does for others."""
    if index is None or index < 0:
        index = torch._C._accelerator_getDeviceIndex()
    if not 0 <= index < len(gpus):
        raise invalid_ordinal()
    return gpus[index]


class GpuState:
    """forked: whether this process is a forked child of one that had used CUDA."""

    forked = False


def refuse_after_fork(*args: Any) -> None:
    """Raises what PyTorch does for CUDA in a forked child."""
    raise RuntimeError(
        "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the 'spawn' "
        "start method"
    )


def invalid_ordinal() -> Exception:
    """CUDA's error for a device that is not there."""
    return torch.AcceleratorError(
        "CUDA error: invalid device ordinal\n"
        "GPU device may be out of range, do you have enough GPUs?\n"
        "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
        "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    )
