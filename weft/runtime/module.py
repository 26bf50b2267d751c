"""Loaded PTX: text in, a Program whose kernels can be launched and whose variables can be read and written.

Loading is lazy: what a launch must know of a module (ModuleInfo) is kept in the cache beside the compiled kernels, so
that PTX that was seen before is not parsed again.
"""

from __future__ import annotations

import ctypes
import hashlib
import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from weft.codegen import abi
from weft.errors import CacheError, InvalidSymbolError, InvalidValueError, NoSuchKernelError, PtxError
from weft.ptx.module import Module, Param, Variable
from weft.runtime.arguments import ArgumentPacker
from weft.runtime.array import Array
from weft.runtime.hostmemory import round_up
from weft.runtime.launch import PreparedLaunch
from weft.runtime.memory import ALIGNMENT, Allocation
from weft.runtime.occupancy import Occupancy, compute_occupancy
from weft.runtime.stream import Stream
from weft.types import Dim3, as_dim3
from weft.version import build_stamp

if TYPE_CHECKING:
    from weft.codegen.jit import ObjectCache
    from weft.codegen.kernel import CompiledKernel
    from weft.runtime.device import Device

MAX_PREPARED = 1024  # launch shapes that a kernel remembers

# (name, the names there are) -> those that can be meant.
FindNames = Callable[[str, Iterable[str]], Sequence[str]]

_DTYPES = {"f16": "f2", "f32": "f4", "f64": "f8"}


# ---------------------------------------------------------------- what is kept of a module
@dataclass(frozen=True)
class KernelInfo:
    """An entry function without its body."""

    name: str
    params: tuple[Param, ...]
    directives: dict[str, tuple]
    line: int


@dataclass(frozen=True)
class ModuleInfo:
    """A module without bodies. `functions` is the order that abi.function_address counts in."""

    file: str
    version: tuple[int, int]
    target: str
    kernels: dict[str, KernelInfo]
    variables: dict[str, Variable]
    functions: tuple[str, ...]


def describe_module(module: Module) -> ModuleInfo:
    """What a launch must know of a parsed module."""
    kernels = {
        name: KernelInfo(name, tuple(function.params), dict(function.directives), function.line)
        for name, function in module.kernels.items()
    }
    return ModuleInfo(
        module.file, module.version, module.target, kernels, dict(module.variables), tuple(module.functions)
    )


class KernelCache:
    """The object cache, or nothing where its folder cannot be used: that is said once, as a warning."""

    def __init__(self, directory: Path):
        self._cache: ObjectCache | None = None
        try:
            from weft.codegen.jit import ObjectCache

            self._cache = ObjectCache(directory)
        except CacheError as error:
            self._give_up(error)

    @property
    def usable(self) -> bool:
        """Whether anything is kept."""
        return self._cache is not None

    def _give_up(self, error: CacheError) -> None:
        self._cache = None
        warnings.warn(f"compiled kernels are not kept: {error}. WEFT_CACHE_DIR names another folder", stacklevel=2)

    def get(self, key: str) -> tuple[bytes, bytes] | None:
        """(metadata, object) of an entry, or None."""
        try:
            return self._cache.get(key) if self._cache else None
        except CacheError as error:
            self._give_up(error)
            return None

    def put(self, key: str, meta: bytes, code: bytes) -> None:
        """Stores an entry."""
        try:
            if self._cache:
                self._cache.put(key, meta, code)
        except CacheError as error:
            self._give_up(error)


# ---------------------------------------------------------------- programs
class Program:
    """PTX loaded on a device. `program["name"]` is a kernel, `program.symbol("name")` a global or constant variable.

    Attributes: device, ptx (text), file (its name in messages). Raises PtxSyntaxError or PtxError, with the line, for
    text that is wrong.
    """

    def __init__(self, device: Device, ptx: str, file: str = "<ptx>", find_names: FindNames | None = None):
        self.device, self.ptx, self.file = device, ptx, file
        self.key = hashlib.sha256(ptx.encode()).hexdigest()
        self._find_names = find_names
        self._kernels: dict[str, Kernel] = {}
        self._allocations: dict[str, Allocation] = {}
        self._compiled: dict[tuple, CompiledKernel] = {}
        self.info = self._load_info()

    def __repr__(self) -> str:
        return f"<weft.Program {self.file}: {', '.join(self.info.kernels) or 'no kernels'}>"

    def _load_info(self) -> ModuleInfo:
        key = f"module:{build_stamp()}:{self.file}:{self.key}"
        cache = self.device.cache
        found = cache.get(key)
        if found is not None:
            try:
                return pickle.loads(found[0])
            except Exception:  # of another state of Weft's sources: made again
                pass
        info = describe_module(self.module)
        cache.put(key, pickle.dumps(info), b"")
        return info

    @cached_property
    def module(self) -> Module:
        """The parsed PTX."""
        from weft.ptx.parser import parse_module

        return parse_module(self.ptx, self.file)

    # ------------------------------------------------------------ kernels
    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels, as PTX has them."""
        return tuple(self.info.kernels)

    def __iter__(self):
        return iter(self.info.kernels)

    def __contains__(self, name: object) -> bool:
        return name in self.info.kernels

    def __getitem__(self, name: str) -> Kernel:
        """The kernel of that name; C++ names may leave out what is not needed to tell them apart.

        Raises NoSuchKernelError that lists what there is.
        """
        kernel = self._kernels.get(name)
        if kernel is None:
            kernel = self._kernels[name] = self._find_kernel(name)
        return kernel

    def _find_kernel(self, name: str) -> Kernel:
        if not isinstance(name, str):
            raise TypeError(f"a kernel is asked for by its name, found {name!r}")
        found = self._resolve(name, self.info.kernels)
        if len(found) == 1:
            if found[0] != name:
                return self[found[0]]
            return Kernel(self, self.info.kernels[name])
        if found:
            raise NoSuchKernelError(f"invalid device function: {name!r} can mean {', '.join(found)} in {self.file}")
        known = ", ".join(self.info.kernels) or "none"
        raise NoSuchKernelError(f"invalid device function: no kernel {name!r} in {self.file}; it has: {known}")

    def _resolve(self, name: str, known: Iterable[str]) -> Sequence[str]:
        if name in known:
            return [name]
        return self._find_names(name, known) if self._find_names else []

    def compiled_for(self, name: str, block: Dim3, small_grid: bool) -> CompiledKernel:
        """Machine code of a kernel for a block shape, from memory, from the cache, or made now."""
        key = (name, block, small_grid)
        found = self._compiled.get(key)
        if found is None:
            from weft.codegen.compile import CompileOptions, compile_kernel

            options = CompileOptions(
                target=self.device.target, small_grid=small_grid, cache=cast("ObjectCache", self.device.cache),
                ptx_key=self.key, deferred_copies=self.device.deferred_copies,
            )
            found = self._compiled[key] = compile_kernel(lambda: self.module, name, block, options)
        return found

    # ------------------------------------------------------------ variables
    def symbol(self, name: str) -> Array:
        """A global or constant variable as an array on the device: x.numpy() reads it, x.copy_from(...) writes it.

        PTX keeps the element type of single numbers; arrays and structures are often plain bytes: `.view(dtype)`.
        Raises InvalidSymbolError that lists what there is.
        """
        with self.device.lock:
            variable = self.info.variables[self._find_variable(name)]
            allocation = self._address_variable(variable.name)
            dtype = np.dtype(_DTYPES.get(variable.type.name) or {"s": "i"}.get(variable.type.kind, "u") + str(
                variable.type.bytes if variable.type.bits <= 64 else 1
            ))
            host = np.asarray(allocation)[: variable.size // dtype.itemsize * dtype.itemsize].view(dtype)
            return Array(self.device, allocation, host.reshape(()) if len(host) == 1 else host)

    def get_symbol(self, name: str, dtype: Any = None) -> np.ndarray:
        """A copy of a variable's value, as `dtype` (PTX's type by default)."""
        value = self.symbol(name).numpy()
        return value if dtype is None else np.atleast_1d(value).view(dtype)

    def set_symbol(self, name: str, value: Any, offset: int = 0) -> None:
        """Copies a NumPy array, bytes, or a number of the variable's type into a variable, at `offset` bytes.

        Raises InvalidValueError when it does not fit.
        """
        target = self.symbol(name)
        if isinstance(value, (bytes, bytearray, memoryview)):
            data = np.frombuffer(value, np.uint8)
        elif isinstance(value, (np.ndarray, np.generic)):
            data = np.frombuffer(value.tobytes(), np.uint8)
        else:
            data = np.frombuffer(np.asarray(value, target.dtype).tobytes(), np.uint8)
        raw = np.atleast_1d(target.host_view()).view(np.uint8)
        if offset < 0 or offset + len(data) > len(raw):
            raise InvalidValueError(
                f"invalid argument: {len(data)} bytes at offset {offset} do not fit {name}, which has {len(raw)} bytes"
            )
        with self.device.lock:
            raw[offset : offset + len(data)] = data

    def _find_variable(self, name: str) -> str:
        known = [variable.name for variable in self.info.variables.values() if variable.space in ("global", "const")]
        found = self._resolve(name, known)
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidSymbolError(f"invalid device symbol: {name!r} can mean {', '.join(found)} in {self.file}")
        raise InvalidSymbolError(
            f"invalid device symbol: no variable {name!r} in {self.file}; it has: {', '.join(known) or 'none'}"
        )

    def symbol_addresses(self, names: Sequence[str]) -> ctypes.Array:
        """Addresses of module variables, as Launch.symbols wants them."""
        return (ctypes.c_uint64 * max(1, len(names)))(*(self._address_of(name) for name in names))

    def _address_of(self, name: str) -> int:
        if name in self.info.variables:
            return self._address_variable(name).address
        if name in self.info.functions:
            return abi.function_address(self.info.functions.index(name))
        raise PtxError(f"unknown symbol {name}", file=self.file)

    def _address_variable(self, name: str) -> Allocation:
        """The memory of a variable; all of the module's variables are placed and initialised at the first request."""
        if not self._allocations:
            self._place_variables()
        found = self._allocations.get(name)
        if found is None:
            variable = self.info.variables[name]
            raise PtxError(f".extern variable {name} is defined in no module", file=self.file, line=variable.line)
        return found

    def _place_variables(self) -> None:
        placed = {}
        for variable in self.info.variables.values():
            if variable.space in ("global", "const") and not (variable.linkage == "extern" or variable.unsized):
                what = f"variable {variable.name}"
                placed[variable.name] = self.device.arena.allocate(
                    variable.size, what, max(ALIGNMENT, variable.align), zero=True
                )
        self._allocations = placed
        for name, allocation in placed.items():
            self._initialise(self.info.variables[name], allocation)

    def _initialise(self, variable: Variable, allocation: Allocation) -> None:
        data = bytearray(variable.init or b"")
        for place in variable.relocations:
            address = self._address_of(place.symbol) + place.addend >> place.shift
            part = (address & (1 << 8 * place.bytes) - 1).to_bytes(place.bytes, "little")
            data[len(data) :] = bytes(max(0, place.offset + place.bytes - len(data)))
            data[place.offset : place.offset + place.bytes] = part
        assert len(data) <= allocation.size, (variable.name, len(data), allocation.size)
        ctypes.memmove(allocation.address, bytes(data), len(data))


class Kernel:
    """One kernel of a program. `kernel[grid, block](*args)` launches it; also [grid, block, stream, shared_bytes].

    Attributes: name, params, device, program, max_dynamic_shared_bytes (None: whatever the chip allows; a number is a
    stricter limit, as cudaFuncSetAttribute's), non_portable_cluster_size_allowed (clusters of up to 16 blocks instead
    of 8, as cudaFuncAttributeNonPortableClusterSizeAllowed).
    """

    def __init__(self, program: Program, info: KernelInfo):
        self.program, self.device, self.info = program, program.device, info
        self.name, self.params, self.directives = info.name, info.params, info.directives
        self.packer = ArgumentPacker(info.name, info.params, self.device)
        self.max_dynamic_shared_bytes: int | None = None
        self.non_portable_cluster_size_allowed = False
        self._prepared: dict[Any, PreparedLaunch] = {}
        self._last_block: Dim3 | None = None

    def __repr__(self) -> str:
        return f"<weft.Kernel {self.name}({self.packer.describe()})>"

    def __call__(self, *args: Any, **options: Any) -> None:
        raise TypeError(f"kernel {self.name} needs a launch shape: kernels[{self.name!r}][grid, block](...)")

    def __getitem__(self, config: tuple) -> PreparedLaunch:
        """The kernel with a launch shape: [grid, block], [grid, block, stream] or [grid, block, stream, shared_bytes].

        grid and block are an int or up to three. Raises InvalidConfigurationError or LaunchResourcesError for a shape
        that the chip refuses.
        """
        try:
            return self._prepared[config]
        except (KeyError, TypeError):
            pass
        if not isinstance(config, tuple) or not 2 <= len(config) <= 4:
            raise TypeError(
                f"kernel {self.name}: expected [grid, block], [grid, block, stream] or [grid, block, stream, "
                f"shared_bytes], found {config!r}"
            )
        stream = config[2] if len(config) > 2 else None
        shared_bytes = config[3] if len(config) > 3 else 0
        made = self.prepared(self._shape("grid", config[0]), self._shape("block", config[1]), stream, shared_bytes)
        try:
            self._prepared[config] = made
        except TypeError:
            pass  # a list in the shape: found by its numbers the next time
        return made

    def _shape(self, what: str, value: Any) -> Dim3:
        try:
            return as_dim3(value)
        except (TypeError, AttributeError):
            raise TypeError(f"kernel {self.name}: bad {what} {value!r}: expected an int or up to three") from None

    def prepared(self, grid: Dim3, block: Dim3, stream: Any = None, shared_bytes: int = 0,
                 cooperative: bool = False, cluster: Any = None) -> PreparedLaunch:  # fmt: skip
        """The launch of that shape, from memory or made now."""
        if not (stream is None or stream == 0 or (isinstance(stream, Stream) and stream.device is self.device)):
            other = "a stream of another device" if isinstance(stream, Stream) else repr(stream)
            raise InvalidValueError(
                f"invalid argument: kernel {self.name}: found {other}, expected a stream of this device"
            )
        shared = shared_bytes.__index__()
        if shared < 0:
            raise InvalidValueError(f"invalid argument: kernel {self.name}: {shared} bytes of dynamic shared memory")
        shape = None if cluster is None else self._shape("cluster", cluster)
        key = ("shape", grid, block, shared, cooperative, self.max_dynamic_shared_bytes, shape, stream or None,
               self.non_portable_cluster_size_allowed)  # fmt: skip
        found = self._prepared.get(key)
        if found is None:
            if len(self._prepared) >= MAX_PREPARED:
                self._prepared.clear()
            found = self._prepared[key] = PreparedLaunch(
                self, grid, block, stream, shared, cooperative, shape
            )
        return found

    def compiled_for(self, block: Dim3, small_grid: bool = True) -> CompiledKernel:
        """Machine code for a block shape."""
        self._last_block = block
        return self.program.compiled_for(self.name, block, small_grid)

    def compile(self, block: Any) -> CompiledKernel:
        """Compiles the kernel for blocks of that shape ahead of its first launch."""
        with self.device.lock:
            return self.compiled_for(self._shape("block", block))

    def dynamic_shared_limit(self, static: int) -> int:
        """Bytes of dynamic shared memory that a launch may ask for beside `static` bytes."""
        limit = self.device.chip.capability.shared_per_block_optin - static
        return limit if self.max_dynamic_shared_bytes is None else min(limit, self.max_dynamic_shared_bytes)

    def estimate_registers(self, compiled: CompiledKernel) -> int:
        """Registers per thread, cut off where ptxas would spill: at .maxnreg, at what a thread may have, and at what
        lets one block fit."""
        limits = self.device.chip.capability
        warps = round_up(compiled.warps, limits.warp_unit)
        fitting = limits.registers_per_sm // (warps * limits.warp_size) // 8 * 8
        declared = self.directives.get("maxnreg", (limits.max_registers_per_thread,))[0]
        return min(compiled.registers, declared, fitting, limits.max_registers_per_thread)

    def _some_block(self) -> Dim3:
        if "reqntid" in self.directives:
            return Dim3(*self.directives["reqntid"])
        if self._last_block:
            return self._last_block
        most = Dim3(*self.directives["maxntid"]).count if "maxntid" in self.directives else 256
        return Dim3(min(256, most))

    @property
    def attributes(self) -> dict[str, int]:
        """cudaFuncAttributes by CUDA's names. numRegs is an estimate: only ptxas knows the real number."""
        compiled = self.compile(self._some_block())
        limits = self.device.chip.capability
        most = limits.max_threads_per_block
        for directive in ("maxntid", "reqntid"):
            if directive in self.directives:
                most = min(most, Dim3(*self.directives[directive]).count)
        major, minor = self.program.info.version
        return {
            "sharedSizeBytes": compiled.static_shared_bytes,
            "constSizeBytes": sum(v.size for v in self.program.info.variables.values() if v.space == "const"),
            "localSizeBytes": compiled.local_bytes,
            "maxThreadsPerBlock": most,
            "numRegs": self.estimate_registers(compiled),
            "ptxVersion": 10 * major + minor,
            "binaryVersion": 10 * limits.version[0] + limits.version[1],
            "maxDynamicSharedSizeBytes": self.dynamic_shared_limit(compiled.static_shared_bytes),
        }

    def occupancy(self, block: Any, shared_bytes: int = 0) -> Occupancy:
        """Resident blocks per SM for blocks of that shape with so much dynamic shared memory; the register count is an
        estimate."""
        shape = self._shape("block", block)
        compiled = self.compile(shape)
        shared = compiled.static_shared_bytes + shared_bytes
        return compute_occupancy(
            self.device.chip.capability, shape.count, self.estimate_registers(compiled), shared, estimated=True
        )
