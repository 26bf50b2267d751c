"""What PyTorch's C++ asks of a CUDA build: a loaded libtorch in, one with a device guard and hooks for CUDA out.

The guard: torch carries a complete one for tests (FakeGuardImpl: eight devices, current device and stream per thread),
and installs it where a guard without devices stands in the registry. The hooks: the default object's table of virtual
functions is copied and a few entries changed. Source: ATen/detail/CUDAHooksInterface.h and
c10/core/impl/FakeGuardImpl.h of PyTorch 2.13; the numbers of the entries are their places in the declaration, after
the two destructors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.errors import UnsupportedError
from weft.frontends.torch.layout import CUDA, device_code
from weft.frontends.torch.versions import CUDA_VERSION, CUDNN_VERSION, RANGE

MAX_DEVICES = 8  # of FakeGuardImpl

_TABLE_ENTRIES = 48
_IS_BUILT, _IS_AVAILABLE, _HAS_PRIMARY_CONTEXT, _INIT, _DEVICE_COUNT = 2, 3, 4, 5, 6
_PINNED_ALLOCATOR, _HAS_CUDA, _CUDA_RUNTIME, _DEVICE_ALLOCATOR, _GPU_COUNT, _SYNCHRONIZE = 12, 16, 17, 27, 46, 47
_DEVICE_OF_POINTER = 13
_HAS_CUSOLVER, _HAS_CUBLASLT, _RUNTIME_VERSION, _SHOW_CONFIG = 20, 21, 39, 40
_FFT_MAX_SIZE, _FFT_SET_MAX_SIZE, _FFT_SIZE, _FFT_CLEAR = 42, 43, 44, 45

# What C++ points to from now on must live as long as the process.
_kept: list[Any] = []


class HooksState:
    """What the hooks answer. device_count; pinned_allocator: the address that marks pinned storages; device_of_pointer:
    a function from an address to the index of the device whose memory it is."""

    device_count = 1
    pinned_allocator = 0
    device_of_pointer: Callable[[int], int] = staticmethod(int)


def _library(torch: Any, name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


def install_guard(torch: Any) -> None:
    """Registers torch's own test guard for CUDA."""
    core = _library(torch, "libc10.so")
    registry = (ctypes.c_void_p * 32).in_dll(core, "_ZN3c104impl26device_guard_impl_registryE")
    if registry[CUDA]:
        return
    no_devices = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(lambda this: 0)
    table = (ctypes.c_void_p * 96)(*[ctypes.cast(no_devices, ctypes.c_void_p).value] * 96)
    guard = (ctypes.c_void_p * 1)(ctypes.addressof(table))
    address = ctypes.addressof(guard)
    registry[CUDA] = address
    torch._C._ensureCUDADeviceGuardSet()
    if registry[CUDA] == address:
        registry[CUDA] = None
        raise UnsupportedError(f"this build of PyTorch carries no device guard for CUDA; Weft needs {RANGE}")


def start_device_threads(torch: Any) -> None:
    """Lets autograd's engine make the threads and queues of its devices once more.

    For an engine whose first backward pass was over before the guard was there: it then has no device threads, and
    nobody but it calls this function. Source: torch/csrc/autograd/engine.cpp of PyTorch 2.13, which has the two
    functions among its exported ones. Raises UnsupportedError where they are not.
    """
    library = _library(torch, "libtorch_cpu.so")
    try:
        find_engine = library._ZN5torch8autograd6Engine18get_default_engineEv
        start = library._ZN5torch8autograd6Engine20start_device_threadsEv
    except AttributeError:
        raise UnsupportedError(
            "a backward pass ran before Weft was installed, and this build of PyTorch cannot start its engine again: "
            "call weft.install() before the first backward pass, or start the program with `weft run`"
        ) from None
    find_engine.restype = ctypes.c_void_p
    start.argtypes = [ctypes.c_void_p]
    start(find_engine())


def _make_pinned_allocator(core: ctypes.CDLL) -> int:
    """A second object of the CPU allocator's class, which has no members: storages that it makes can be told apart."""
    get = core._ZN3c1015GetCPUAllocatorEv
    get.restype = ctypes.c_void_p
    table = ctypes.c_void_p.from_address(get()).value
    allocator = (ctypes.c_void_p * 8)(table)
    _kept.append(allocator)
    return ctypes.addressof(allocator)


class _String(ctypes.Structure):
    """std::string of libstdc++, for texts that do not fit into the object."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("room", ctypes.c_size_t * 2)]


# No FFT keeps a plan, so a cache of them has a limit only: by device index, cuFFT's own to begin with.
_plan_limits: dict[int, int] = {}
_MAX_PLANS = 4096


def _add_descriptions(own: Any) -> None:
    """The entries that tell versions, the build and the cache of FFT plans."""
    c_library = ctypes.CDLL(None)
    c_library.malloc.restype, c_library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    text = (
        f"  - CUDA Runtime {CUDA_VERSION // 1000}.{CUDA_VERSION % 1000 // 10}\n"
        f"  - CuDNN {CUDNN_VERSION // 10000}.{CUDNN_VERSION // 100 % 100}.{CUDNN_VERSION % 100}\n"
        "  - Virtual GPUs by Weft\n"
    ).encode()

    def write_config(result: int, this: int) -> int:
        data = c_library.malloc(len(text) + 1)  # which the string's owner frees
        ctypes.memmove(data, text, len(text) + 1)
        string = _String.from_address(result)
        string.data, string.size, string.room[0] = data, len(text), len(text)
        return result

    def set_limit(this: int, index: int, size: int) -> None:
        _plan_limits[index] = size

    pointer, whole, short = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int8
    for entry, function in {
        _RUNTIME_VERSION: ctypes.CFUNCTYPE(whole, pointer)(lambda this: CUDA_VERSION),
        _SHOW_CONFIG: ctypes.CFUNCTYPE(pointer, pointer, pointer)(write_config),
        _FFT_MAX_SIZE: ctypes.CFUNCTYPE(whole, pointer, short)(lambda this, at: _plan_limits.get(at, _MAX_PLANS)),
        _FFT_SET_MAX_SIZE: ctypes.CFUNCTYPE(None, pointer, short, whole)(set_limit),
        _FFT_SIZE: ctypes.CFUNCTYPE(whole, pointer, short)(lambda this, at: 0),
        _FFT_CLEAR: ctypes.CFUNCTYPE(None, pointer, short)(lambda this, at: None),
    }.items():
        own[entry + 2] = ctypes.cast(function, ctypes.c_void_p).value
        _kept.append(function)


def install_hooks(torch: Any, device_count: int) -> None:
    """Makes at::globalContext() report CUDA. Raises UnsupportedError where it still does not afterwards."""
    HooksState.device_count = device_count
    library = _library(torch, "libtorch_cpu.so")
    core = _library(torch, "libc10.so")
    get = library._ZN2at6detail12getCUDAHooksEv
    get.restype = ctypes.c_void_p
    pointer = ctypes.c_void_p.from_address(get())
    default = ctypes.addressof(ctypes.c_char.in_dll(library, "_ZTVN2at18CUDAHooksInterfaceE")) + 16
    if pointer.value != default:
        raise UnsupportedError(
            "PyTorch's CUDA hooks are taken already: a CUDA build, or another program that provides CUDA"
        )
    HooksState.pinned_allocator = _make_pinned_allocator(core)
    get_cpu_allocator = core._ZN3c1015GetCPUAllocatorEv
    get_cpu_allocator.restype = ctypes.c_void_p
    table = (ctypes.c_void_p * (_TABLE_ENTRIES + 2)).from_address(default - 16)
    own = (ctypes.c_void_p * (_TABLE_ENTRIES + 2))(*table)
    # Always answers 1 and takes no argument that matters; needs no interpreter lock.
    yes = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value
    for entry in (_IS_BUILT, _IS_AVAILABLE, _HAS_PRIMARY_CONTEXT, _INIT, _HAS_CUDA, _CUDA_RUNTIME, _SYNCHRONIZE,
                  _HAS_CUSOLVER, _HAS_CUBLASLT):  # fmt: skip
        own[entry + 2] = yes
    own[_DEVICE_ALLOCATOR + 2] = ctypes.cast(get_cpu_allocator, ctypes.c_void_p).value
    count = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(lambda this: HooksState.device_count)
    pinned = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda this: HooksState.pinned_allocator)
    for entry in (_DEVICE_COUNT, _GPU_COUNT):
        own[entry + 2] = ctypes.cast(count, ctypes.c_void_p).value
    own[_PINNED_ALLOCATOR + 2] = ctypes.cast(pinned, ctypes.c_void_p).value
    owner = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p, ctypes.c_void_p)(
        lambda this, address: device_code(HooksState.device_of_pointer(address or 0))
    )
    own[_DEVICE_OF_POINTER + 2] = ctypes.cast(owner, ctypes.c_void_p).value
    _kept.extend((own, count, pinned, owner))
    _add_descriptions(own)
    pointer.value = ctypes.addressof(own) + 16
    accelerator = torch._C._accelerator_getAccelerator()
    if accelerator is None or accelerator.type != "cuda":
        pointer.value = default
        raise UnsupportedError(f"this build of PyTorch does not take the CUDA hooks; Weft needs {RANGE}")
