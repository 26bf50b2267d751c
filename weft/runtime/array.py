"""Arrays in device memory. What enters are shapes and NumPy dtypes, or host data; kernels get the address.

An Array's memory is host memory inside the device's arena, so that NumPy sees it without a copy (`host_view`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from weft.errors import InvalidDevicePointerError, InvalidValueError

if TYPE_CHECKING:
    from weft.runtime.device import Device
    from weft.runtime.memory import Allocation
    from weft.runtime.stream import Stream


class Array:
    """An n-dimensional array in the memory of `device`.

    Attributes: device, shape, dtype (NumPy's), strides (bytes), ptr (device address; 0 when empty). Slices with
    integers, ranges, ... and None are views; anything else is computed on the host: `x.numpy()`.
    """

    __slots__ = ("_allocation", "_host", "device", "ptr")

    # NumPy functions must not take device arrays for host arrays by accident: x + numpy_array raises TypeError.
    __array_ufunc__ = None

    def __init__(self, device: Device, allocation: Allocation | None, host: np.ndarray):
        self.device = device
        self._allocation = allocation
        self._host = host
        self.ptr = host.__array_interface__["data"][0] if allocation is not None and host.size else 0

    # ------------------------------------------------------------ shape
    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def dtype(self) -> np.dtype:
        return self._host.dtype

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    def data_ptr(self) -> int:
        """The device address, as PyTorch names it: what Triton asks of an argument."""
        return self.ptr

    @property
    def is_contiguous(self) -> bool:
        return self._host.flags.c_contiguous

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        state = "" if self._allocation is None or self._allocation.live else ", freed"
        return f"<weft.Array shape={self.shape} dtype={self.dtype} on {self.device.name} at {self.ptr:#x}{state}>"

    @property
    def T(self) -> Array:
        return self._view(self._host.T)

    def reshape(self, *shape: Any) -> Array:
        """The same elements in another shape, without a copy. Raises InvalidValueError where that needs one."""
        view = self._host.reshape(*shape)
        if view.size and not np.may_share_memory(view, self._host):
            raise InvalidValueError(f"invalid argument: an array of strides {self.strides} cannot be reshaped in place")
        return self._view(view)

    def ravel(self) -> Array:
        return self.reshape(-1)

    def view(self, dtype: Any) -> Array:
        """The same bytes as elements of another dtype."""
        return self._view(self._host.view(dtype))

    def __getitem__(self, key: Any) -> Any:
        """A view, or the element (a copy) when every index is an integer."""
        if not _is_basic(key):
            raise TypeError(
                f"a device array is indexed with integers and slices, found {key!r}; gather in a kernel, or on the "
                "host with .numpy()"
            )
        self._check_live()
        found = self._host[key]
        return self._view(found) if isinstance(found, np.ndarray) else found

    def __setitem__(self, key: Any, value: Any) -> None:
        """Copies host data, a device array or a scalar into the elements."""
        if not _is_basic(key):
            raise TypeError(f"a device array is indexed with integers and slices, found {key!r}")
        self._check_live()
        self._host[key] = value.host_view() if isinstance(value, Array) else value

    def _view(self, host: np.ndarray) -> Array:
        return Array(self.device, self._allocation, host)

    def _check_live(self) -> None:
        if self._allocation is not None and not self._allocation.live:
            raise InvalidDevicePointerError(f"invalid device pointer: {self!r} was freed")

    # ------------------------------------------------------------ host
    def numpy(self) -> np.ndarray:
        """A copy in host memory."""
        self._check_live()
        return self._host.copy()

    def host_view(self) -> np.ndarray:
        """A NumPy array on the same memory. It keeps the memory from being freed while it is referred to, except by
        free()."""
        self._check_live()
        return self._host

    def copy_from(self, source: Any, stream: Stream | None = None) -> Array:
        """Copies an array of the same shape (NumPy's, this or another device's, anything with __array__) into this
        one; dtypes must agree. Raises InvalidValueError where they do not."""
        self._check_live()
        data = source.host_view() if isinstance(source, Array) else np.asarray(source)
        if data.shape != self.shape or (data.dtype != self.dtype and not np.can_cast(data.dtype, self.dtype, "equiv")):
            raise InvalidValueError(
                f"invalid argument: cannot copy {data.dtype} of shape {data.shape} into {self.dtype} of shape "
                f"{self.shape}"
            )
        with self.device.issue(stream):
            np.copyto(self._host, data)
        return self

    def copy_to(self, target: Any, stream: Stream | None = None) -> Any:
        """Copies this array into a host array or another device array of the same shape and dtype; returns it."""
        self._check_live()
        if isinstance(target, Array):
            return target.copy_from(self, stream)
        if not isinstance(target, np.ndarray) or target.shape != self.shape or target.dtype != self.dtype:
            found = f"{target.dtype} of shape {target.shape}" if isinstance(target, np.ndarray) else type(target)
            raise InvalidValueError(
                f"invalid argument: cannot copy {self.dtype} of shape {self.shape} into {found}"
            )
        with self.device.issue(stream):
            np.copyto(target, self._host)
        return target

    def fill(self, value: Any, stream: Stream | None = None) -> Array:
        """Sets every element."""
        self._check_live()
        with self.device.issue(stream):
            self._host.fill(value)
        return self

    def copy(self) -> Array:
        """A contiguous copy on the same device."""
        return self.device.empty(self.shape, self.dtype).copy_from(self)

    def free(self) -> None:
        """Frees the memory now rather than when nothing refers to it. All views of it become invalid."""
        if self._allocation is None:
            return
        if self.ptr != self._allocation.address:
            raise InvalidDevicePointerError(
                f"invalid device pointer: {self.ptr:#x} is not the start of {self._allocation.describe()}"
            )
        self._allocation.free()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("device memory is copied to the host: np.array(x), or x.host_view() for a view")
        host = self.numpy()
        return host if dtype is None else host.astype(dtype, copy=False)

    # ------------------------------------------------------------ exchange
    @property
    def __cuda_array_interface__(self) -> dict:
        """Version 3 (Numba's "CUDA Array Interface"). The address is one of this virtual device."""
        self._check_live()
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.ptr, not self._host.flags.writeable),
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "stream": None,  # launches and copies are finished when they return
        }

    def __dlpack__(self, **options: Any) -> Any:
        """A capsule on the same memory, which is the host's (kDLCPU): np.from_dlpack(x), torch.from_dlpack(x)."""
        self._check_live()
        if options.get("stream") is not None:
            options = {**options, "stream": None}
        return self._host.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._host.__dlpack_device__()


def _is_basic(key: Any) -> bool:
    """Whether NumPy's indexing with this key gives a view."""
    for part in key if isinstance(key, tuple) else (key,):
        if part is None or part is Ellipsis or isinstance(part, slice):
            continue
        if isinstance(part, (bool, np.bool_)) or not hasattr(part, "__index__") or isinstance(part, np.ndarray):
            return False
    return True
