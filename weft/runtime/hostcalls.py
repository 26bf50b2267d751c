"""What kernels ask of the host while they run: printf, assert, malloc, free.

One C callback serves all launches of the process; Worker.launch tells which launch calls. An exception here becomes the
launch's error.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.codegen import abi
from weft.errors import DeviceAssertError, IllegalAddressError, InvalidValueError, KernelFault
from weft.runtime.faults import block_index, explain_address, thread_index
from weft.runtime.memory import WINDOW_BYTES, Arena
from weft.runtime.printf import argument_bytes, format_printf, parse_format

if TYPE_CHECKING:
    from weft.runtime.launch import PreparedLaunch

HEAP_BYTES = 8 << 20  # cudaLimitMallocHeapSize's default
HEAP_ALIGNMENT = 16
MAX_STRING_BYTES = 1 << 20
_ARGUMENTS_AT = 16  # of the payload
_ARGUMENTS = 5

# Launch address -> the launch that runs with it.
running: dict[int, PreparedLaunch] = {}


class DeviceHeap:
    """Memory that kernels take with malloc: first fit in a fixed piece of device memory."""

    def __init__(self, base: int, size: int):
        self.base, self.size = base, size
        self._free: list[tuple[int, int]] = [(base, size)]  # sorted by address
        self._used: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        """An address, or 0 when there is no room, as malloc in a kernel gives."""
        total = -(-max(size, 1) // HEAP_ALIGNMENT) * HEAP_ALIGNMENT
        for i, (start, length) in enumerate(self._free):
            if length >= total:
                if length == total:
                    del self._free[i]
                else:
                    self._free[i] = (start + total, length - total)
                self._used[start] = total
                return start
        return 0

    def release(self, address: int) -> bool:
        """Frees; false when the address is not one that allocate gave."""
        size = self._used.pop(address, None)
        if size is None:
            return False
        pieces = sorted([*self._free, (address, size)])
        joined: list[tuple[int, int]] = []
        for start, length in pieces:
            if joined and joined[-1][0] + joined[-1][1] == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self._free = joined
        return True


class HostCallContext:
    """One call: which lanes of which warp call, and their arguments."""

    def __init__(self, launch: PreparedLaunch, block: int, payload: int):
        self.launch = launch
        self.arena: Arena = launch.device.arena
        self.header = abi.BlockHeader.from_address(block)
        self.site, self.warp, mask, _ = (ctypes.c_uint32 * 4).from_address(payload)
        self.lanes = [lane for lane in range(32) if mask >> lane & 1]
        raw = (ctypes.c_uint64 * (32 * _ARGUMENTS)).from_address(payload + _ARGUMENTS_AT)
        self.arguments = np.ctypeslib.as_array(raw).reshape(_ARGUMENTS, 32)

    def read(self, lane: int, address: int, size: int) -> bytes:
        """Bytes of generic memory as a lane sees it. Raises IllegalAddressError."""
        arena, raw = self.arena, self.launch.launch
        if size == 0:
            return b""
        if arena.local_window <= address < arena.local_window + WINDOW_BYTES:
            offset = address - arena.local_window
            per_thread = (raw.local_bytes + 3) // 4 * 4
            if offset + size <= per_thread:
                return self._read_local(lane, offset, size, per_thread)
        elif arena.shared_window <= address < arena.shared_window + WINDOW_BYTES:
            offset = address - arena.shared_window
            if offset + size <= raw.shared_bytes:
                return ctypes.string_at(self.header.shared + offset, size)
        else:
            found = arena.ranges.find(address)
            if found and address + size <= found[1]:
                return ctypes.string_at(address, size)
        raise self.fault(lane, address, size)

    def _read_local(self, lane: int, offset: int, size: int, per_thread: int) -> bytes:
        base = self.header.local + self.warp * 32 * per_thread
        first, last = offset // 4, (offset + size + 3) // 4
        words = b"".join(ctypes.string_at(base + 128 * word + 4 * lane, 4) for word in range(first, last))
        return words[offset - 4 * first :][:size]

    def read_string(self, lane: int, address: int) -> bytes:
        """A C string of generic memory; it ends with its range at the latest."""
        found = self.arena.ranges.find(address)
        if found:
            text = ctypes.string_at(address, min(found[1] - address, MAX_STRING_BYTES))
            return text.partition(b"\0")[0]
        out = bytearray()
        while len(out) < MAX_STRING_BYTES:
            byte = self.read(lane, address + len(out), 1)
            if byte == b"\0":
                break
            out += byte
        return bytes(out)

    def place(self, lane: int) -> dict[str, Any]:
        """Keywords for a KernelFault: where a lane is."""
        kernel = self.launch.compiled
        site = kernel.sites[self.site] if self.site < len(kernel.sites) else None
        return {
            "kernel": kernel.name,
            "location": site.location if site else None,
            "ptx_line": site.ptx_line if site else 0,
            "block": block_index(self.header.linear, self.launch.grid),
            "thread": thread_index(32 * self.warp + lane, kernel.block),
        }

    def fault(self, lane: int, address: int, size: int) -> KernelFault:
        return IllegalAddressError(
            f"an illegal memory access was encountered: a host call reads {size} bytes at {address:#x}, "
            f"{explain_address(self.arena, address, size)}",
            address=address,
            **self.place(lane),
        )


def print_formatted(call: HostCallContext) -> None:
    """printf: one text per lane, in lane order, to sys.stdout. The result is the number of conversions."""
    out = []
    formats, buffers = call.arguments[0], call.arguments[1]
    for lane in call.lanes:
        address = int(formats[lane])
        if not address:
            formats[lane] = 0xFFFF_FFFF
            continue
        parts = parse_format(call.read_string(lane, address))
        arguments = call.read(lane, int(buffers[lane]), argument_bytes(parts))

        def read_string(pointer: int, lane: int = lane) -> bytes:
            return call.read_string(lane, pointer)

        out.append(format_printf(parts, arguments, read_string))
        formats[lane] = sum(not isinstance(part, bytes) for part in parts)
    sys.stdout.write(b"".join(out).decode("utf-8", "replace"))


def fail_assertion(call: HostCallContext) -> None:
    """assert: CUDA's line for the first lane that failed, in an exception."""
    lane = call.lanes[0]
    message, file, line, function = (int(row[lane]) for row in call.arguments[:4])
    texts = [call.read_string(lane, pointer).decode("utf-8", "replace") if pointer else "?" for pointer in
             (message, file, function)]  # fmt: skip
    place = call.place(lane)
    block, thread = (",".join(map(str, place[key])) for key in ("block", "thread"))
    more = len(call.lanes) - 1
    source = f"{texts[1]}:{line & 0xFFFFFFFF}: {texts[2]}"
    text = f"{source}: block: [{block}], thread: [{thread}] Assertion `{texts[0]}` failed."
    also = f" (and {more} more thread{'s' * (more != 1)} of the warp)" if more else ""
    raise DeviceAssertError(f"device-side assert triggered: {text}{also}", **place)


def allocate_on_heap(call: HostCallContext) -> None:
    """malloc: addresses written over the sizes."""
    sizes = call.arguments[0]
    for lane in call.lanes:
        sizes[lane] = call.launch.device.heap.allocate(int(sizes[lane]))


def release_on_heap(call: HostCallContext) -> None:
    """free. A pointer that malloc did not give stops the launch."""
    for lane in call.lanes:
        address = int(call.arguments[0][lane])
        if address and not call.launch.device.heap.release(address):
            raise KernelFault(
                f"unspecified launch failure: free of {address:#x}, which malloc did not give or which was freed",
                address=address,
                **call.place(lane),
            )


_SERVICES = {
    abi.HostCall.PRINTF: print_formatted,
    abi.HostCall.ASSERT: fail_assertion,
    abi.HostCall.MALLOC: allocate_on_heap,
    abi.HostCall.FREE: release_on_heap,
}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
def _serve(worker: int, block: int, kind: int, payload: int) -> None:
    # The collector must not run a finaliser that waits for the launch we are in; finalisers here never wait.
    launch = running[abi.Worker.from_address(worker).launch]
    try:
        if kind not in _SERVICES:
            raise InvalidValueError(f"unknown host call {kind}")
        _SERVICES[abi.HostCall(kind)](HostCallContext(launch, block, payload))
    except BaseException as error:
        if launch.error is None:
            launch.error = error
        launch.launch.stop = 1


HOST_CALL_ADDRESS = ctypes.cast(_serve, ctypes.c_void_p).value
CLOCK_ADDRESS = ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value
