"""Memory of the host: reservations of address space that are committed when touched, and how much the host has left."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

from weft.errors import OutOfMemoryError

PAGE = mmap.PAGESIZE
# Python names the constant from 3.13 on only.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", {"linux": 0x4000, "darwin": 0x40}.get(sys.platform, 0))
# What a host needs for itself: below this it begins to swap or to kill.
HOST_MARGIN_BYTES = 256 << 20


class Reservation:
    """Address space for `size` bytes. Pages read as zero and take memory only once they are touched.

    Attributes: address (int), size (bytes). The memory lives as long as this object. Raises OutOfMemoryError where
    the host does not even give the address space.
    """

    def __init__(self, size: int, huge_pages: bool = False):
        size = round_up(size, PAGE)
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
            self._map = mmap.mmap(-1, size, flags=flags)
        except (OSError, ValueError) as error:
            raise OutOfMemoryError(
                f"the host gives no address space of {format_bytes(size)} ({error}); "
                "a limit of virtual memory (ulimit -v) or vm.overcommit_memory=2 forbids it"
            ) from error
        self.size = size
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._map.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without huge pages

    def release(self, offset: int, size: int) -> None:
        """Gives the whole pages of [offset, offset + size) back to the host; on Linux they read as zero afterwards."""
        start = round_up(offset, PAGE)
        length = (offset + size) // PAGE * PAGE - start
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, length)

    def view(self, offset: int, size: int) -> memoryview:
        """The bytes [offset, offset + size), writable."""
        return memoryview(self._map)[offset : offset + size]


def round_up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit


def format_bytes(size: float) -> str:
    """12 B, 3.5 KiB, 2.00 GiB."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1)):
        if abs(size) < 1024:
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _read_number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _cgroup_available() -> int | None:
    """Bytes left under the memory limit of this process's control group, None without a limit (or not on Linux)."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        maximum, current = _read_number(limit), _read_number(used)
        if maximum is not None and current is not None and maximum < 1 << 60:
            return max(0, maximum - current)
    return None


def available_bytes() -> int | None:
    """Memory that the host can still give to this process without swapping, in bytes; None where unknown."""
    available = None
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    available = int(line.split()[1]) * 1024
                    break
    except OSError:
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            available = os.sysconf("SC_AVPHYS_PAGES") * PAGE
    group = _cgroup_available()
    if available is None or group is None:
        return available if group is None else group
    return min(available, group)


def resident_bytes() -> int:
    """Host memory that this process has touched, in bytes; 0 where unknown."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0
