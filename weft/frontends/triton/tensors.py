"""Kernel arguments that stand for memory: tensors of all kinds in, addresses that kernels may touch out.

A CPU tensor's whole storage becomes a range that kernels reach in place, once per storage, and stops being one when the
storage dies: a pointer that outlives its tensor is a fault, not a read of whatever lies there now.
"""

from __future__ import annotations

import weakref
from typing import Any

from weft.errors import DryRunError, InvalidDevicePointerError
from weft.runtime.array import Array
from weft.runtime.device import Device
from weft.runtime.memory import NO_DATA, Allocation


class TensorRanges:
    """The host tensors that the kernels of one device have met.

    Attribute: device. CPU tensors are welcome in programs that have no others. Once a kernel was given a tensor of
    PyTorch's virtual GPU, a CPU tensor is the mistake that it is on a real one.
    """

    def __init__(self, device: Device):
        self.device = device
        self._met_cuda = False
        # By the address of the C++ storage object: its memory, size, a weak reference that takes the entry away, and
        # the registration, which ends when the entry goes.
        self._storages: dict[int, tuple[int, int, weakref.ref, Allocation]] = {}

    def address_of(self, value: Any) -> int:
        """The address that a pointer argument stands for: of a tensor, a Weft array, an object with
        __cuda_array_interface__, or an int as it is; 0 for None.

        Raises TypeError for other objects, InvalidDevicePointerError for freed arrays, ValueError for a CPU tensor
        among the GPU's.
        """
        if type(value) is int:
            return value
        if value is None:
            return 0
        if isinstance(value, Array):
            return self.device.pointer_of(value)
        storage_of = getattr(value, "untyped_storage", None)
        if storage_of is not None:
            storage = storage_of()
            known = self._storages.get(storage._cdata)
            if known is None or known[0] != storage.data_ptr() or known[1] != storage.nbytes():
                self._meet(value, storage)
            return value.data_ptr()
        interface = getattr(value, "__cuda_array_interface__", None)
        if interface is not None:
            return self.device.pointer_of(value, interface)
        if hasattr(value, "data_ptr"):
            base = getattr(value, "base", None)  # a TensorWrapper: other words for the same tensor
            if base is not None and hasattr(base, "data_ptr"):
                self.address_of(base)
            return int(value.data_ptr())
        raise TypeError(
            f"expected a tensor, a pointer or None, found {type(value).__module__}.{type(value).__qualname__}"
        )

    def _meet(self, tensor: Any, storage: Any) -> None:
        """Registers a tensor's storage, anew when it was resized."""
        key = storage._cdata
        address, size = storage.data_ptr(), storage.nbytes()
        self._storages.pop(key, None)
        if not address or not size:
            return
        if address >= NO_DATA:
            raise DryRunError(
                f"a kernel was given a tensor {tuple(tensor.shape)} of {tensor.dtype}, which has no data in a dry run: "
                "leave the launch out (weft.is_dry() tells), or run without --dry"
            )
        kind = tensor.device.type
        if kind == "cuda":
            self._met_cuda = True
        elif kind == "cpu" and self._met_cuda and not tensor.is_pinned():
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        arena = self.device.arena
        if arena.contains(address):
            if arena.ranges.find(address) is None:
                raise InvalidDevicePointerError(f"invalid device pointer: {address:#x} was freed")
            return
        what = (tuple(tensor.shape), f"{tensor.dtype} ({kind} tensor)")
        allocation = arena.register(address, size, what, None)
        storages = self._storages

        def forget(_: weakref.ref) -> None:
            storages.pop(key, None)

        self._storages[key] = (address, size, weakref.ref(storage, forget), allocation)


_ranges: weakref.WeakKeyDictionary[Device, TensorRanges] = weakref.WeakKeyDictionary()


def ranges_of(device: Device) -> TensorRanges:
    """The tensors that a device's kernels have met."""
    found = _ranges.get(device)
    if found is None:
        found = _ranges[device] = TensorRanges(device)
    return found
