"""The virtual GPUs of this process, which every front end shares: settings in, weft Devices by ordinal out.

A program that asks for a GPU without naming one (Triton, PyTorch) gets these. They are made at the first question, so
that attaching a front end costs nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from weft.errors import InvalidValueError
from weft.runtime.device import Device

_lock = threading.Lock()
_devices: list[Device] = []
_makers: tuple[Callable[[], Device], ...] = (Device,)


class LaunchCapture:
    """note: while a CUDA graph of PyTorch's is captured, what is told of each launch: a function that makes it again,
    and its arguments. None otherwise.

    skip: in a dry run, asked with a kernel's name and arguments whether a launch is left out. None otherwise."""

    note: Callable[[Callable[..., None], tuple], None] | None = None
    skip: Callable[[str, tuple], bool] | None = None


def offer_devices(makers: Sequence[Callable[[], Device]]) -> None:
    """What the process's devices are: one function per ordinal, called at the first question for a device.

    Devices that were made before stay with those who hold them. Raises InvalidValueError for an empty sequence.
    """
    global _makers
    if not makers:
        raise InvalidValueError("invalid argument: a process needs at least one virtual GPU")
    with _lock:
        _makers = tuple(makers)
        _devices.clear()


def virtual_devices() -> list[Device]:
    """The devices, by ordinal."""
    if not _devices:
        with _lock:
            if not _devices:
                _devices.extend([make() for make in _makers])
                for ordinal, device in enumerate(_devices):
                    device.ordinal = ordinal
    return _devices


def virtual_device(ordinal: int | None = None) -> Device:
    """The device of that ordinal, 0 by default. Raises InvalidValueError for one that there is not."""
    found = virtual_devices()
    index = ordinal or 0
    if not 0 <= index < len(found):
        raise InvalidValueError(
            f"invalid device ordinal: found {index}, there {'is' if len(found) == 1 else 'are'} {len(found)} device"
            f"{'s' * (len(found) != 1)}"
        )
    return found[index]
