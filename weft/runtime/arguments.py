"""Kernel arguments: Python values in, the bytes of the kernel's parameter buffer out.

PTX says how wide a parameter is, and sometimes whether it is a float. So: a Python int goes into any integer or untyped
parameter that holds it, a float into .f32, .f64, .b32 and .b64, an Array or a pointer into any 64-bit parameter that is
no float, bytes, a ctypes structure or a NumPy structured scalar into a structure of the same size.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.errors import InvalidDevicePointerError
from weft.ptx.module import Param
from weft.runtime.array import Array

if TYPE_CHECKING:
    from weft.runtime.device import Device

Converter = Callable[[Any], Any]

# What front ends know of objects that stand for memory: asked with the device and the object, each gives an address
# that the device's kernels may use from then on, or None for what it does not know. Raises InvalidDevicePointerError
# for memory of another device.
address_sources: list[Callable[[Any, Any], int | None]] = []


def find_address(device: Device, value: Any) -> int | None:
    """The address of an object that a front end knows (a CUDA tensor of PyTorch), None for others."""
    for source in address_sources:
        address = source(device, value)
        if address is not None:
            return address
    return None


_CODES = {8: "B", 16: "H", 32: "I", 64: "Q"}
_MAX_F32 = 3.4028234663852886e38


class ArgumentPacker:
    """The parameters of one kernel. `pack` writes arguments to memory.

    Attributes: count, size (bytes of the parameter buffer).
    """

    def __init__(self, kernel: str, params: Sequence[Param], device: Device):
        self.kernel, self.params = kernel, tuple(params)
        self.count = len(params)
        layout, at = "<", 0
        self.converters: list[Converter] = []
        for param in params:
            code, converter = make_converter(param, device)
            layout += f"{param.offset - at}x" if param.offset > at else ""
            layout += code
            at = param.offset + param.size
            self.converters.append(converter)
        self._struct = struct.Struct(layout)
        self.size = self._struct.size
        self._pack_into = self._struct.pack_into

    def pack(self, buffer: memoryview, args: tuple) -> None:
        """Writes the arguments. Raises TypeError for a wrong number or kind, OverflowError for an int that does not
        fit, InvalidDevicePointerError for memory that is not live on this device."""
        if len(args) != self.count:
            raise TypeError(
                f"kernel {self.kernel} takes {self.count} argument{'s' * (self.count != 1)} ({self.describe()}), "
                f"found {len(args)}"
            )
        try:
            values = [convert(value) for convert, value in zip(self.converters, args)]
        except (TypeError, OverflowError, InvalidDevicePointerError) as error:
            raise self._locate(args, error) from None
        self._pack_into(buffer, 0, *values)

    def _locate(self, args: tuple, error: Exception) -> Exception:
        """The same error with the argument's place in front."""
        for index, (convert, value, param) in enumerate(zip(self.converters, args, self.params)):
            try:
                convert(value)
            except (TypeError, OverflowError, InvalidDevicePointerError) as found:
                text = str(found).removeprefix(f"{InvalidDevicePointerError.name}: ")
                place = f"kernel {self.kernel}, argument {index} ({param.name}: {describe_param(param)})"
                return type(found)(f"{place}: {text}")
        return error

    def describe(self) -> str:
        return ", ".join(describe_param(param) for param in self.params)


class RawArguments:
    """The parameters of a kernel whose launcher has laid them out already: `pack` takes the bytes of the buffer."""

    def __init__(self, kernel: str, params: Sequence[Param]):
        self.kernel, self.params, self.count = kernel, tuple(params), len(params)
        self.size = max((param.offset + param.size for param in params), default=0)

    def pack(self, buffer: memoryview, args: tuple) -> None:
        (data,) = args
        assert len(data) == self.size, (self.kernel, len(data), self.size)
        buffer[: self.size] = data

    def describe(self) -> str:
        return ", ".join(describe_param(param) for param in self.params)


def describe_param(param: Param) -> str:
    """u32, f32, structure of 24 bytes."""
    if param.is_array:
        return f"structure of {param.size} bytes"
    return f".{param.type}" + (f" pointer to {param.pointer_space}" if param.pointer_space else "")


def make_converter(param: Param, device: Device) -> tuple[str, Converter]:
    """A struct code, and the function that makes what struct packs from an argument."""
    type_ = param.type
    if param.is_array or type_.bits > 64:
        return f"{param.size}s", _structure_converter(param.size)
    if type_.kind == "f" and type_.name in ("f32", "f64"):
        return ("f", _convert_f32) if type_.bits == 32 else ("d", _convert_f64)
    if type_.bits == 64:
        return "Q", _word_converter(device, floats=type_.kind == "b")
    return _CODES[type_.bits], _integer_converter(type_.bits, floats=type_.kind in "bf")


# ---------------------------------------------------------------- floats
def _as_float(value: Any) -> float:
    if isinstance(value, ctypes._SimpleCData):
        value = value.value
    if isinstance(value, (bool, int, float, np.floating, np.integer, np.bool_)):
        return float(value)
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiub":
        return float(value)
    if isinstance(value, np.generic) and value.dtype.kind == "V" and value.dtype.names is None:
        return float(value)  # bfloat16 and the like
    raise TypeError(f"expected a number, found {_describe(value)}")


def _convert_f64(value: Any) -> float:
    return value if type(value) is float else _as_float(value)


def _convert_f32(value: Any) -> float:
    number = value if type(value) is float else _as_float(value)
    if -_MAX_F32 <= number <= _MAX_F32:
        return number
    return ctypes.c_float(number).value  # inf, NaN, and what rounds to inf


# ---------------------------------------------------------------- integers
def _as_index(value: Any) -> int:
    if isinstance(value, ctypes._SimpleCData):
        value = value.value
    if isinstance(value, np.bool_):
        return int(value)
    if isinstance(value, np.ndarray) and (value.ndim or value.dtype.kind not in "iub"):
        raise TypeError(f"expected an integer, found {_describe(value)}")
    try:
        return value.__index__()
    except AttributeError:
        raise TypeError(f"expected an integer, found {_describe(value)}") from None


def _integer_converter(bits: int, floats: bool) -> Converter:
    """For parameters of up to 32 bits. PTX often calls signed parameters unsigned, so both ranges are taken."""
    low, high, mask = -(1 << bits - 1), (1 << bits) - 1, (1 << bits) - 1

    def slow(value: Any) -> int:
        if isinstance(value, np.generic) and value.dtype.kind in "fV" and value.dtype.names is None and floats:
            if value.dtype.itemsize * 8 == bits:
                return int.from_bytes(value.tobytes(), "little")
            value = float(value)
        if isinstance(value, ctypes._SimpleCData):
            value = value.value
        if isinstance(value, float):
            if floats and bits == 32:
                return struct.unpack("<I", struct.pack("<f", _convert_f32(value)))[0]
            hint = "; give np.float16(x) or another 16-bit NumPy scalar" if floats and bits == 16 else ""
            raise TypeError(f"expected an integer, found float {value!r}{hint}")
        number = _as_index(value)
        if not low <= number <= high:
            raise OverflowError(f"{number} does not fit {bits} bits")
        return number & mask

    def convert(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value & mask
        return slow(value)

    return convert


def _word_converter(device: Device, floats: bool) -> Converter:
    """For 64-bit parameters: pointers, integers, and (untyped ones) doubles."""

    def slow(value: Any) -> int:
        if value is None:
            return 0
        if isinstance(value, Array):
            return device.pointer_of(value)
        if isinstance(value, (ctypes._SimpleCData, ctypes._Pointer)):
            value = _ctypes_address(value)
        if isinstance(value, np.generic) and value.dtype.kind == "f" or isinstance(value, float):
            if not floats:
                raise TypeError(f"expected a device array, a pointer or an integer, found {_describe(value)}")
            return struct.unpack("<Q", struct.pack("<d", float(value)))[0]
        address = find_address(device, value)
        if address is not None:
            return address
        interface = getattr(value, "__cuda_array_interface__", None)
        if interface is not None:
            return device.pointer_of(value, interface)
        if isinstance(value, np.ndarray) and value.ndim or isinstance(value, (bytes, bytearray, memoryview)) or hasattr(
            value, "data_ptr"
        ):
            raise TypeError(
                f"expected device memory, found {_describe(value)}, which is in host memory; gpu.array(x) copies it to "
                "the device, gpu.register(x) lets kernels reach it in place"
            )
        number = _as_index(value)
        if not -(1 << 63) <= number < 1 << 64:
            raise OverflowError(f"{number} does not fit 64 bits")
        return number & 0xFFFF_FFFF_FFFF_FFFF

    def convert(value: Any) -> int:
        if type(value) is Array and value.device is device:
            allocation = value._allocation
            if allocation is None or allocation.live:
                return value.ptr
        elif type(value) is int and 0 <= value < 1 << 63:
            return value
        return slow(value)

    return convert


def _ctypes_address(value: Any) -> Any:
    if isinstance(value, ctypes._Pointer):
        raise TypeError(f"expected device memory, found {_describe(value)}, which points into host memory")
    return value.value or 0


# ---------------------------------------------------------------- structures
def _structure_converter(size: int) -> Converter:
    def convert(value: Any) -> bytes:
        if isinstance(value, Array):
            raise TypeError(f"expected a structure of {size} bytes, found {_describe(value)}")
        if isinstance(value, (ctypes.Structure, ctypes.Union, ctypes.Array, bytes, bytearray, memoryview)):
            data = bytes(value)
        elif isinstance(value, (np.generic, np.ndarray)):
            data = value.tobytes()
        else:
            raise TypeError(
                f"expected a structure of {size} bytes (bytes, a ctypes structure or a NumPy structured scalar), found "
                f"{_describe(value)}"
            )
        if len(data) != size:
            raise TypeError(f"expected a structure of {size} bytes, found {_describe(value)} of {len(data)} bytes")
        return data

    return convert


def _describe(value: Any) -> str:
    if isinstance(value, Array):
        return f"a device array of {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of {value.dtype}, shape {value.shape}"
    if isinstance(value, (int, float, str, bool)):
        return f"{type(value).__name__} {value!r}"[:80]
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
