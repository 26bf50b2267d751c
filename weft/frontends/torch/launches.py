"""The CUDA runtime of C++ extensions: calls of include/host/weft_runtime.cpp in, work on the virtual GPU done.

Functions with an error code answer with CUDA's numbers; what has no number in CUDA is raised and passes through the
extension to the program. Addresses are plain integers; a stream's handle is its id, an event's its number on the
timeline.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from weft.errors import OutOfMemoryError, UnsupportedError
from weft.frontends.cuda_cpp import compile_cuda
from weft.frontends.devices import LaunchCapture
from weft.frontends.torch import streams
from weft.frontends.torch.gpus import find_gpu, gpus
from weft.frontends.torch.graphs import refuse_while_capturing
from weft.frontends.torch.pointers import meet_addresses, storages
from weft.frontends.torch.recording import current_timeline
from weft.runtime.arguments import RawArguments
from weft.types import Dim3

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_DEVICE = 0, 1, 2, 101
_SLOT_NAME = "weft_slot"
_SLOT_END = f"E{len(_SLOT_NAME)}{_SLOT_NAME}"
_KINDS = {0: "", 1: "h2d", 2: "d2h", 3: "d2d", 4: "default"}  # cudaMemcpyKind

# cudaDeviceAttr -> name in Device.attributes, and the place where that is a tuple.
_ATTRIBUTES: dict[int, tuple[str, int | None]] = {
    1: ("maxThreadsPerBlock", None), 2: ("maxThreadsDim", 0), 3: ("maxThreadsDim", 1), 4: ("maxThreadsDim", 2),
    5: ("maxGridSize", 0), 6: ("maxGridSize", 1), 7: ("maxGridSize", 2), 8: ("sharedMemPerBlock", None),
    9: ("totalConstMem", None), 10: ("warpSize", None), 12: ("regsPerBlock", None), 13: ("clockRate", None),
    16: ("multiProcessorCount", None), 18: ("integrated", None), 37: ("memoryBusWidth", None),
    38: ("l2CacheSize", None), 39: ("maxThreadsPerMultiProcessor", None), 41: ("unifiedAddressing", None),
    75: ("major", None), 76: ("minor", None), 81: ("sharedMemPerMultiprocessor", None),
    82: ("regsPerMultiprocessor", None), 95: ("cooperativeLaunch", None), 97: ("sharedMemPerBlockOptin", None),
    106: ("maxBlocksPerMultiProcessor", None), 111: ("reservedSharedMemPerBlock", None),
}  # fmt: skip
_MAX_DYNAMIC_SHARED, _NON_PORTABLE_CLUSTER = 8, 13  # cudaFuncAttribute


# ---------------------------------------------------------------- loaded extensions
@dataclass
class DeviceSource:
    """One .cu file: its device half, the object file of its host half, and how it is compiled."""

    path: str
    object: str
    name: str
    options: list[str]
    std: str
    include_dirs: list[str]
    ptx: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)  # by architecture: PTX, lowered names
    programs: dict[int, Any] = field(default_factory=dict)  # by device index
    expressions: list[str] = field(default_factory=list)


@dataclass
class Extension:
    """A loaded library. kernels: mangled name -> (source, name expression); symbols: address in the library ->
    (mangled name, demangled name); base: where the library lies."""

    path: str
    sources: list[DeviceSource]
    kernels: dict[str, tuple[DeviceSource, str]] = field(default_factory=dict)
    slots: dict[int, tuple[DeviceSource, str]] = field(default_factory=dict)
    symbols: dict[int, tuple[str, str]] = field(default_factory=dict)
    found: dict[tuple[int, int], Any] = field(default_factory=dict)


extensions: dict[str, Extension] = {}


def list_symbols(path: str) -> list[tuple[int, str, str]]:
    """(address, mangled, demangled) of what an object file or library defines, in the order of its table."""
    lists = []
    for option in ("-p", "-pC"):
        command = ["nm", option, "--defined-only", path]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UnsupportedError(f"{path}: nm, which comes with the C++ compiler, cannot read it: {error}") from None
        lists.append([line.split(" ", 2) for line in done.stdout.splitlines() if line[:1] != " "])
    return [(int(a[0], 16), a[2], b[2]) for a, b in zip(*lists) if len(a) == 3]


def name_expression(demangled: str) -> str:
    """What NVRTC calls a kernel: `void ns::scale<float>(float*)::weft_slot` is `ns::scale<float>`."""
    text = demangled.removesuffix(f"::{_SLOT_NAME}").replace("(anonymous namespace)::", "")
    depth = 0
    for place, letter in enumerate(text):
        if letter == "<":
            depth += 1
        elif letter == ">":
            depth -= 1
        elif letter == "(" and depth == 0:
            text = text[:place]
            break
    return text.removeprefix("void ").strip()


def load_manifest(manifest: Path, library: str) -> None:
    """Compiles the device code of an extension that was just built, for the chip in use, and remembers it.

    Raises CompileError with NVRTC's text.
    """
    described = json.loads(manifest.read_text())
    extension = Extension(os.path.realpath(library), [DeviceSource(**source) for source in described])
    owners: dict[str, list[tuple[DeviceSource, str]]] = {}
    for source in extension.sources:
        for _, mangled, demangled in list_symbols(source.object):
            if not mangled.endswith(_SLOT_END):
                continue
            expression = name_expression(demangled)
            if "{lambda" in expression or "'lambda" in expression:
                raise UnsupportedError(
                    f"{source.name}: kernel {expression} is instantiated with a lambda of the host's code, which "
                    "cannot be named for the device: use a functor (a struct with operator())"
                )
            owners.setdefault(mangled, []).append((source, expression))
            source.expressions.append(expression)
    for address, mangled, demangled in list_symbols(library):
        if mangled in owners:
            waiting = owners[mangled]
            owner = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            extension.slots[address] = owner
            extension.kernels["_Z" + mangled.removeprefix("_ZZ").removesuffix(_SLOT_END)] = owner
        extension.symbols[address] = (mangled, demangled)
    for source in extension.sources:
        compile_source(source, gpus[0].chip.arch)
    extensions[extension.path] = extension
    storages.listen()


def compile_source(source: DeviceSource, arch: str) -> tuple[str, dict[str, str]]:
    """(PTX, lowered names) of a source for an architecture."""
    found = source.ptx.get(arch)
    if found is None:
        device = gpus[0].device
        made = compile_cuda(
            Path(source.path), arch=arch, compiler="nvrtc", std=source.std, include_dirs=source.include_dirs,
            options=source.options, name_expressions=source.expressions, file_name=source.name,
            cache_dir=device.cache_dir if device.cache.usable else None,
        )  # fmt: skip
        found = source.ptx[arch] = (made.ptx, made.names)
    return found


def program_of(source: DeviceSource, index: int) -> Any:
    """The source's Program on a GPU."""
    program = source.programs.get(index)
    if program is None:
        device = gpus[index].device
        program = source.programs[index] = device.load(compile_source(source, device.chip.arch)[0], source.name)
    return program


class _Place(ctypes.Structure):
    """Dl_info of dladdr."""

    _fields_ = (("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p),
                ("address", ctypes.c_void_p))  # fmt: skip


def find_extension(address: int) -> tuple[Extension, int]:
    """The extension whose library holds an address, and the address within the library."""
    place = _Place()
    known = ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(place))
    path = os.path.realpath(place.file.decode()) if known and place.file else ""
    if path not in extensions:
        raise UnsupportedError(f"{path or hex(address)}: no extension that was built under Weft")
    return extensions[path], address - (place.base or 0)


def find_kernel(address: int, index: int) -> Any:
    """The kernel that a stub's slot, or the stub itself, stands for."""
    extension, offset = find_extension(address)
    kernel = extension.found.get((offset, index))
    if kernel is None:
        owner = extension.slots.get(offset)
        if owner is None:
            mangled = extension.symbols.get(offset, ("", ""))[0]
            owner = extension.kernels.get(mangled if mangled.startswith("_Z") else f"_Z{len(mangled)}{mangled}")
        if owner is None:
            raise UnsupportedError(f"{extension.path}: no kernel at {address:#x}")
        source, expression = owner
        names = compile_source(source, gpus[index].chip.arch)[1]
        kernel = program_of(source, index)[names[expression]]
        kernel.packer = RawArguments(kernel.name, kernel.params)
        extension.found[offset, index] = kernel
    return kernel


# ---------------------------------------------------------------- launches
def launch(address: int, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int, stream: int,
           arguments: int, cooperative: bool) -> None:  # fmt: skip
    """Runs a kernel on the current device. arguments: address of an array of pointers to its parameters."""
    index = get_device()[1]
    kernel = find_kernel(address, index)
    data = bytearray(kernel.packer.size)
    for number, param in enumerate(kernel.params):
        pointer = ctypes.c_uint64.from_address(arguments + 8 * number).value
        data[param.offset : param.offset + param.size] = ctypes.string_at(pointer, param.size)
    whole = len(data) & ~7
    meet_addresses(gpus[index].device, memoryview(data)[:whole].cast("Q").tolist())
    prepared = kernel.prepared(Dim3(*grid), Dim3(*block), None, shared_bytes, cooperative)
    timeline = current_timeline()
    if timeline is None or stream == streams.current_raw_stream(index):
        prepared(bytes(data))
        return
    before, timeline.current_stream = timeline.current_stream, lambda device: stream
    try:
        prepared(bytes(data))
    finally:
        timeline.current_stream = before


def set_attribute(address: int, attribute: int, value: int) -> int:
    """cudaFuncSetAttribute."""
    kernel = find_kernel(address, get_device()[1])
    if attribute == _MAX_DYNAMIC_SHARED:
        if value > kernel.device.chip.capability.shared_per_block_optin:
            return INVALID_VALUE
    elif attribute == _NON_PORTABLE_CLUSTER:
        kernel.non_portable_cluster_size_allowed = bool(value)
    return SUCCESS


def get_attributes(address: int) -> dict[str, int]:
    return find_kernel(address, get_device()[1]).attributes


def count_blocks(address: int, threads: int, shared_bytes: int) -> tuple[int, int]:
    """cudaOccupancyMaxActiveBlocksPerMultiprocessor."""
    found = find_kernel(address, get_device()[1]).occupancy(threads, shared_bytes)
    return SUCCESS, found.blocks_per_sm


# ---------------------------------------------------------------- variables
def _find_variable(address: int) -> Any:
    extension, offset = find_extension(address)
    name = extension.symbols.get(offset, ("", ""))[1].replace("(anonymous namespace)::", "")
    for source in extension.sources:
        program = program_of(source, get_device()[1])
        known = [key for key, variable in program.info.variables.items() if variable.space in ("global", "const")]
        for key in known:
            if key == name or name and key in (extension.symbols[offset][0], name):
                return program.symbol(key)
        try:
            return program.symbol(name)
        except Exception:  # another source's
            continue
    raise UnsupportedError(f"{extension.path}: no __device__ or __constant__ variable {name or hex(address)}")


def copy_symbol(address: int, host: int, size: int, offset: int, to_device: bool) -> int:
    """cudaMemcpyToSymbol and cudaMemcpyFromSymbol."""
    variable = _find_variable(address)
    if offset + size > variable.nbytes:
        return INVALID_VALUE
    target, source = (variable.ptr + offset, host) if to_device else (host, variable.ptr + offset)
    ctypes.memmove(target, source, size)
    _note_copy("h2d" if to_device else "d2h", size, 0, True)
    return SUCCESS


def find_symbol_address(address: int) -> tuple[int, int]:
    return SUCCESS, _find_variable(address).ptr


# ---------------------------------------------------------------- devices
def get_device() -> tuple[int, int]:
    return SUCCESS, int(torch._C._cuda_getDevice())


def set_device(index: int) -> int:
    if not 0 <= index < len(gpus):
        return INVALID_DEVICE
    torch._C._cuda_setDevice(index)
    return SUCCESS


def get_device_count() -> tuple[int, int]:
    return SUCCESS, len(gpus)


def synchronize_device() -> int:
    streams.synchronize_device()
    return SUCCESS


def get_device_attribute(attribute: int, index: int) -> tuple[int, int]:
    """cudaDeviceGetAttribute."""
    if not 0 <= index < len(gpus):
        return INVALID_DEVICE, 0
    if attribute not in _ATTRIBUTES:
        raise UnsupportedError(f"cudaDeviceGetAttribute: attribute {attribute} is not known of a virtual GPU")
    name, place = _ATTRIBUTES[attribute]
    known = {"unifiedAddressing": 1, **get_device_properties(index)}
    value = known[name]
    return SUCCESS, int(value if place is None else value[place])


def get_device_properties(index: int) -> dict[str, Any]:
    """cudaDeviceProp by name; what the catalogue does not know is 0."""
    gpu = find_gpu(index)
    found = {"clockRate": 0, "memoryBusWidth": 0, "l2CacheSize": 0, **gpu.device.attributes}
    for name in ("maxThreadsDim", "maxGridSize"):
        found[name] = tuple(found[name])
    return found


def get_free_memory() -> tuple[int, int]:
    return SUCCESS, find_gpu(None).allocator.free_bytes()


def get_total_memory() -> tuple[int, int]:
    return SUCCESS, find_gpu(None).chip.memory_bytes


# ---------------------------------------------------------------- memory
_allocated: dict[int, Any] = {}


def allocate(size: int) -> tuple[int, int]:
    """cudaMalloc; memory of the host is allocated alike, so that kernels reach it."""
    try:
        made = find_gpu(None).device.empty(max(size, 1), "u1")
    except OutOfMemoryError:
        return OUT_OF_MEMORY, 0
    _allocated[made.ptr] = made
    return SUCCESS, made.ptr


def release(address: int) -> int:
    if not address:
        return SUCCESS
    return SUCCESS if _allocated.pop(address, None) is not None else INVALID_VALUE


def _is_device_memory(address: int) -> bool:
    device = find_gpu(None).device
    meet_addresses(device, [address])
    return device.arena.ranges.find(address) is not None


def _note_copy(kind: str, size: int, stream: int, blocking: bool) -> None:
    timeline = current_timeline()
    if timeline is not None:
        timeline.copy(kind, size, stream, get_device()[1], blocking=blocking)


def _move(function: Any, *args: int) -> None:
    """Calls memmove or memset, and notes the call for the replays of a graph that is being captured."""
    function(*args)
    if LaunchCapture.note is not None:
        LaunchCapture.note(function, args)


def copy(target: int, source: int, size: int, kind: int, stream: int, blocking: bool) -> int:
    """cudaMemcpy and cudaMemcpyAsync. Raises what CUDA does for the former while a graph is captured."""
    if blocking:
        refuse_while_capturing()
    to, of = _is_device_memory(target), _is_device_memory(source)
    wanted = _KINDS.get(kind)
    found = {(True, True): "d2d", (True, False): "h2d", (False, True): "d2h", (False, False): ""}[to, of]
    if wanted is None or (wanted[:1] == "d" and wanted != "default" and not of) or (wanted[-1:] == "d" and not to):
        return INVALID_VALUE
    _move(ctypes.memmove, target, source, size)
    if found:
        _note_copy(found, size, stream, blocking and found != "d2d")
    return SUCCESS


def fill(target: int, value: int, size: int, stream: int) -> int:
    """cudaMemset and cudaMemsetAsync."""
    if size and not _is_device_memory(target):
        return INVALID_VALUE
    _move(ctypes.memset, target, value & 255, size)
    _note_copy("d2d", size // 2, stream, False)  # it writes without reading
    return SUCCESS


# ---------------------------------------------------------------- streams and events
def create_stream(priority: int) -> tuple[int, int]:
    return SUCCESS, torch.cuda.Stream(priority=priority).cuda_stream


def synchronize_stream(stream: int) -> int:
    timeline = current_timeline()
    if timeline is not None:
        timeline.synchronize(get_device()[1], stream=stream)
    return SUCCESS


def create_event() -> tuple[int, int]:
    return SUCCESS, next(streams._event_numbers)


def record_event(event: int, stream: int) -> int:
    timeline = current_timeline()
    if timeline is not None:
        timeline.record_event(event, stream, get_device()[1])
    return SUCCESS


def wait_event(stream: int, event: int) -> int:
    timeline = current_timeline()
    if timeline is not None:
        timeline.wait_event(event, stream, get_device()[1])
    return SUCCESS


def synchronize_event(event: int) -> int:
    timeline = current_timeline()
    if timeline is not None:
        timeline.synchronize(get_device()[1], event=event)
    return SUCCESS


def elapsed_time(start: int, end: int) -> float:
    """Milliseconds on the device's clock."""
    timeline = current_timeline()
    return timeline.elapsed(start, end) if timeline is not None else 0.0
