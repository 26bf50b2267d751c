"""The virtual device: a chip's name in, memory, streams and programs out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from weft import settings
from weft.chips import Chip, find_chip
from weft.errors import InvalidDevicePointerError, InvalidValueError
from weft.runtime.arguments import find_address
from weft.runtime.array import Array
from weft.runtime.hostcalls import HEAP_BYTES, DeviceHeap
from weft.runtime.launch import WORKSPACE_BYTES
from weft.runtime.memory import Arena
from weft.runtime.module import FindNames, KernelCache, Program
from weft.runtime.stream import Event, Stream
from weft.runtime.workers import WorkerState

PARAMETER_BYTES = 64 << 10  # more than any kernel may take


class Device:
    """A virtual GPU with the limits and the memory of a real one.

    chip: a name of the catalogue or a Chip; the default is WEFT_GPU or "h100". threads: worker threads (WEFT_THREADS,
    all cores). deterministic: run blocks in order on one thread. seed: not 0, shuffles the order of blocks and warps.
    time_limit: seconds after which a launch is stopped (WEFT_TIME_LIMIT, none). heap_bytes: for malloc in kernels.
    deferred_copies: asynchronous copies (cp.async, bulk and tensor copies) are made by the waits that the program must
    perform (WEFT_DEFERRED_COPIES); a program that forgets one computes with old data.

    Everything is done when the call that asks for it returns. Devices are independent of each other; one may be used
    from several threads, which then take turns.

    ordinal: its number among the process's devices that frameworks find, 0 for others.
    """

    ordinal = 0

    def __init__(self, chip: str | Chip | None = None, *, threads: int | None = None, deterministic: bool | None = None,
                 seed: int | None = None, time_limit: float | None = None, heap_bytes: int = HEAP_BYTES,
                 cache_dir: str | Path | None = None, deferred_copies: bool | None = None):  # fmt: skip
        chosen = settings.current()
        self.chip: Chip = chip if isinstance(chip, Chip) else find_chip(chip or chosen.gpu)
        self.chip.check_runs_kernels()
        self.deterministic = chosen.deterministic if deterministic is None else deterministic
        self.seed = chosen.seed if seed is None else seed
        self.time_limit = chosen.time_limit if time_limit is None else time_limit
        self.threads = 1 if self.deterministic else chosen.threads if threads is None else threads
        if not 1 <= self.threads <= settings.MAX_THREADS:
            raise InvalidValueError(f"threads: found {self.threads}, expected 1 to {settings.MAX_THREADS}")
        if not 0 <= self.seed < 1 << 32:
            raise InvalidValueError(f"seed: found {self.seed}, expected 0 to 2**32 - 1")
        if self.time_limit is not None and not self.time_limit > 0:
            raise InvalidValueError(f"time_limit: found {self.time_limit}, expected a positive number of seconds")
        self.cache_dir = Path(cache_dir) if cache_dir else chosen.cache_dir
        self.deferred_copies = chosen.deferred_copies if deferred_copies is None else deferred_copies
        self.arena = Arena(self.chip.memory_bytes, self.chip.name)
        self.lock: threading.RLock = self.arena.lock
        # The system's own memory: it counts as in use, as a CUDA context does.
        self._parameters = self.arena.allocate(PARAMETER_BYTES, "kernel parameters")
        self.parameter_address = self._parameters.address
        self.parameter_view = np.asarray(self._parameters).data
        self._workspace = self.arena.allocate(WORKSPACE_BYTES, "grid barrier")
        self.workspace_address = self._workspace.address
        self._heap_memory = self.arena.allocate(heap_bytes, "heap of malloc")
        self.heap = DeviceHeap(self._heap_memory.address, self._heap_memory.size)
        self.direct_worker = WorkerState(0)
        self.default_stream = Stream(self)
        self.closed = False

    def __repr__(self) -> str:
        return f"<weft.Device {self.name}, {self.threads} threads{', closed' * self.closed}>"

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What CUDA calls the chip: "NVIDIA H100 80GB HBM3"."""
        return self.chip.full_name

    @cached_property
    def target(self) -> Any:
        """What kernels are compiled for."""
        from weft.codegen.jit import Target

        return Target.host(settings.current().target)

    @cached_property
    def cache(self) -> KernelCache:
        """Where compiled kernels are kept."""
        return KernelCache(self.cache_dir / "kernels")

    def check_open(self) -> None:
        if self.closed:
            raise InvalidValueError(f"invalid argument: {self!r} is used after close()")

    def close(self) -> None:
        """Ends the device: its arrays and programs cannot be used any more, its memory goes back to the host once
        nothing refers to it."""
        with self.lock:
            self.closed = True

    # ------------------------------------------------------------ memory
    def array(self, data: Any, dtype: Any = None) -> Array:
        """A copy of host data (anything np.asarray takes) or of a device array, contiguous in device memory.

        Raises OutOfMemoryError.
        """
        if isinstance(data, Array):
            data = data.host_view()
        elif hasattr(data, "__cuda_array_interface__"):
            data = self._view_of(data)
        host = np.asarray(data, dtype)
        if host.dtype.hasobject:
            raise TypeError(f"Python objects cannot be put in device memory: found dtype {host.dtype}")
        made = self.empty(host.shape, host.dtype)
        np.copyto(made.host_view(), host)
        return made

    def empty(self, shape: Any, dtype: Any = np.float32) -> Array:
        """An array of undefined contents. shape: an int or several; dtype: NumPy's, float32 by default."""
        return self._make(shape, dtype, False)

    def zeros(self, shape: Any, dtype: Any = np.float32) -> Array:
        """An array of zeros."""
        return self._make(shape, dtype, True)

    def ones(self, shape: Any, dtype: Any = np.float32) -> Array:
        """An array of ones."""
        return self.full(shape, 1, dtype)

    def full(self, shape: Any, value: Any, dtype: Any = np.float32) -> Array:
        """An array whose elements all have one value."""
        return self.empty(shape, dtype).fill(value)

    def empty_like(self, other: Any) -> Array:
        """An array of the same shape and dtype as another, device's or host's."""
        return self.empty(other.shape, other.dtype)

    def zeros_like(self, other: Any) -> Array:
        """Zeros of the same shape and dtype as another array, device's or host's."""
        return self.zeros(other.shape, other.dtype)

    def _make(self, shape: Any, dtype: Any, zero: bool) -> Array:
        self.check_open()
        kind = np.dtype(dtype)
        sides = (shape.__index__(),) if hasattr(shape, "__index__") else tuple(side.__index__() for side in shape)
        if kind.hasobject:
            raise TypeError(f"Python objects cannot be put in device memory: found dtype {kind}")
        if any(side < 0 for side in sides):
            raise InvalidValueError(f"invalid argument: a negative side in shape {sides}")
        size = kind.itemsize
        for side in sides:
            size *= side
        if size == 0:
            return Array(self, None, np.empty(sides, kind))
        allocation = self.arena.allocate(size, (sides, kind), zero=zero)
        return Array(self, allocation, np.asarray(allocation).view(kind).reshape(sides))

    def register(self, buffer: Any) -> Array:
        """Host memory that kernels may reach in place: a NumPy array or anything with the buffer protocol or DLPack.

        The result is an array on the same memory; kernels may touch it for as long as that array lives. Raises
        InvalidValueError for an empty buffer.
        """
        self.check_open()
        host = buffer if isinstance(buffer, np.ndarray) else _as_host_array(buffer)
        low, high = np.lib.array_utils.byte_bounds(host)
        what = (host.shape, f"{host.dtype} (registered host memory)")
        return Array(self, self.arena.register(low, high - low, what, host), host)

    def from_dlpack(self, source: Any) -> Array:
        """An array on the memory of a DLPack producer, without a copy: host memory is registered, memory of this device
        (a CUDA tensor of PyTorch) taken as it is."""
        if hasattr(source, "__cuda_array_interface__") and not isinstance(source, Array):
            return self.register(self._view_of(source))
        return self.register(np.from_dlpack(source))

    def _view_of(self, source: Any) -> np.ndarray:
        """A NumPy array on the memory of an object with __cuda_array_interface__, which it keeps alive."""
        return np.asarray(_InterfaceView(source, self.pointer_of(source)))

    def pointer_of(self, value: Any, interface: dict | None = None) -> int:
        """The device address of an array, or of an object with that __cuda_array_interface__.

        Raises InvalidDevicePointerError when the memory was freed or is not this device's.
        """
        if isinstance(value, Array):
            if value.device is not self:
                raise InvalidDevicePointerError(
                    f"invalid device pointer: {value!r} belongs to another device; gpu.array(x) copies it"
                )
            value._check_live()
            return value.ptr
        known = find_address(self, value)
        if known is not None:
            return known
        found = interface or getattr(value, "__cuda_array_interface__", None)
        if found is None:
            raise TypeError(f"expected a device array, found {type(value).__name__}")
        address = int(found["data"][0])
        if address and self.arena.ranges.find(address) is None:
            raise InvalidDevicePointerError(
                f"invalid device pointer: {type(value).__name__} at {address:#x} is no live memory of {self.name}"
            )
        return address

    def memory_info(self) -> tuple[int, int]:
        """(free, total) bytes of device memory, as cudaMemGetInfo."""
        self.arena.collect()
        return self.arena.capacity - self.arena.used, self.arena.capacity

    @property
    def peak_memory(self) -> int:
        """The most bytes that were in use at once."""
        return self.arena.peak

    # ------------------------------------------------------------ streams
    def stream(self, priority: int = 0, non_blocking: bool = False) -> Stream:
        """A new stream."""
        self.check_open()
        return Stream(self, priority, non_blocking)

    def event(self, enable_timing: bool = True) -> Event:
        """A new event."""
        self.check_open()
        return Event(self, enable_timing)

    def synchronize(self) -> None:
        """Waits for the device's work. Only another thread's can be under way."""
        self.check_open()
        with self.lock:
            pass

    def issue(self, stream: Any = None) -> AbstractContextManager:
        """Holds the device for one piece of work on a stream. Raises InvalidValueError for another device's stream."""
        self.check_open()
        if isinstance(stream, Stream) and stream.device is not self:
            raise InvalidValueError("invalid argument: the stream belongs to another device")
        return self.lock

    # ------------------------------------------------------------ programs
    def load(self, ptx: str | bytes | Path, name: str | None = None, *, find_names: FindNames | None = None) -> Program:
        """PTX text (or the Path of a file) as a program. `name` is the file's in messages.

        Raises PtxSyntaxError, PtxError or UnsupportedError, with the line, for text that is wrong.
        """
        self.check_open()
        if isinstance(ptx, Path):
            name = name or str(ptx)
            ptx = ptx.read_bytes()
        if isinstance(ptx, bytes):
            ptx = ptx.decode("utf-8", "surrogateescape")
        return Program(self, ptx, name or "<ptx>", find_names)

    # ------------------------------------------------------------ questions
    @property
    def compute_capability(self) -> tuple[int, int]:
        return self.chip.compute_capability

    @property
    def attributes(self) -> dict[str, Any]:
        """cudaDeviceProp by CUDA's names, of what the catalogue knows: sizes in bytes, clocks in kHz."""
        chip, limits = self.chip, self.chip.capability
        known: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "clockRate": (chip.boost_clock, lambda hertz: int(hertz / 1e3)),
            "memoryBusWidth": (chip.memory_bus_bits, int),
            "l2CacheSize": (chip.l2_bytes, int),
        }
        return {
            "name": chip.full_name,
            "totalGlobalMem": chip.memory_bytes,
            "major": limits.version[0],
            "minor": limits.version[1],
            "multiProcessorCount": chip.sm_count,
            "warpSize": limits.warp_size,
            "maxThreadsPerBlock": limits.max_threads_per_block,
            "maxThreadsDim": limits.max_block_dim,
            "maxGridSize": limits.max_grid_dim,
            "maxThreadsPerMultiProcessor": limits.threads_per_sm,
            "maxBlocksPerMultiProcessor": limits.blocks_per_sm,
            "sharedMemPerBlock": limits.shared_per_block,
            "sharedMemPerBlockOptin": limits.shared_per_block_optin,
            "sharedMemPerMultiprocessor": limits.shared_per_sm,
            "reservedSharedMemPerBlock": limits.shared_reserved,
            "regsPerBlock": limits.registers_per_block,
            "regsPerMultiprocessor": limits.registers_per_sm,
            "totalConstMem": limits.constant_bytes,
            "integrated": bool(chip.integrated),
            "cooperativeLaunch": True,
            "unifiedAddressing": True,
            **{name: convert(value) for name, (value, convert) in known.items() if value is not None},
        }


class _InterfaceView:
    """An object's __cuda_array_interface__ as NumPy's __array_interface__: device memory is host memory."""

    def __init__(self, source: Any, address: int):
        self.source = source
        interface = source.__cuda_array_interface__
        self.__array_interface__ = {
            "version": 3, "shape": interface["shape"], "typestr": interface["typestr"],
            "strides": interface.get("strides"), "data": (address, interface["data"][1]),
        }  # fmt: skip


def _as_host_array(buffer: Any) -> np.ndarray:
    if isinstance(buffer, Array):
        raise TypeError("a device array needs no registering")
    try:
        return np.frombuffer(buffer, np.uint8)
    except (TypeError, ValueError):
        pass
    if hasattr(buffer, "__dlpack__"):
        return np.from_dlpack(buffer)
    raise TypeError(f"expected host memory (a NumPy array, a buffer, a DLPack producer), found {type(buffer).__name__}")
