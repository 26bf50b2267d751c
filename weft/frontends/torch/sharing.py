"""CUDA tensors in several processes: a storage in, the handle that torch.multiprocessing sends out, and back.

What cudaIpcMemHandle_t is on a GPU is an anonymous file here, which the storage's memory moves into when it is first
sent; the receiver maps the same pages. A receiver counts itself off in a word behind the data, and the sender keeps the
file open until all have, so that it may let go of its tensor before they open it, as PyTorch's own sender does.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import weakref
from typing import Any

import torch

from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.layout import storage_at
from weft.frontends.torch.memory import uncounted
from weft.frontends.torch.tensors import adopt_memory, to_cuda

_Storage = torch.UntypedStorage
_WORD = 8  # the count of receivers


class SharedMemory:
    """The file of one storage. size: bytes of data; sent: handles that were given out."""

    def __init__(self, size: int):
        self.size, self.sent = size, 0
        self.file = os.memfd_create("weft-cuda-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.file, size + _WORD)
        self.pages = mmap.mmap(self.file, size + _WORD)

    def handle(self) -> bytes:
        """64 bytes, as CUDA's: the process, the file, the device and inode that tell it from others."""
        status = os.fstat(self.file)
        return struct.pack("<QQQQ", os.getpid(), self.file, status.st_dev, status.st_ino).ljust(64, b"\0")

    def is_received(self) -> bool:
        """Whether every handle was opened."""
        return struct.unpack_from("<q", self.pages, self.size)[0] >= self.sent

    def close(self) -> None:
        """Lets go of the file; the pages live as long as tensors on them."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


_by_storage: dict[int, SharedMemory] = {}  # by the storage's address
_let_go: list[SharedMemory] = []  # the storage is dead, a receiver may still come


def collect() -> None:
    """torch.cuda.ipc_collect(): closes the files that nobody will open any more."""
    for memory in [memory for memory in _let_go if memory.is_received()]:
        _let_go.remove(memory)
        memory.close()


def _release(address: int) -> None:
    memory = _by_storage.pop(address, None)
    if memory is not None:
        _let_go.append(memory)
        collect()


def share_cuda(self: Any) -> tuple[Any, ...]:
    """UntypedStorage._share_cuda_: (device, handle, bytes, offset, reference counter and its offset, event, whether to
    wait for it). Raises RuntimeError where the system has no anonymous files."""
    collect()
    index, size = self.device.index, self.nbytes()
    if size == 0:
        return (index, None, 0, 0, b"", 0, b"", False)
    if not hasattr(os, "memfd_create"):
        raise RuntimeError(
            "CUDA tensors of a virtual GPU can be sent to other processes on Linux only: send tensor.cpu() instead"
        )
    memory = _by_storage.get(self._cdata)
    if memory is None or memory.size != size:
        memory = _by_storage[self._cdata] = SharedMemory(size)
        pages = torch.frombuffer(memory.pages, dtype=torch.uint8, count=size)
        adopt_memory(self, storage_at(self._cdata), pages.untyped_storage())
        weakref.finalize(self, _release, self._cdata).atexit = False
    memory.sent += 1
    return (index, memory.handle(), size, 0, memory.handle(), 0, b"", False)


def _open(handle: bytes) -> int:
    process, file, *wanted = struct.unpack_from("<QQQQ", handle)
    try:
        found = os.open(f"/proc/{process}/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise RuntimeError(
            f"CUDA error: invalid resource handle: process {process}, which sent the tensor, has ended or let go of it"
        ) from error
    status = os.fstat(found)
    if [status.st_dev, status.st_ino] != wanted:
        os.close(found)
        raise RuntimeError(f"CUDA error: invalid resource handle: process {process} no longer has the tensor")
    return found


def _count_off(file: int) -> None:
    fcntl.flock(file, fcntl.LOCK_EX)
    place = os.fstat(file).st_size - _WORD
    os.pwrite(file, struct.pack("<q", struct.unpack("<q", os.pread(file, _WORD, place))[0] + 1), place)
    fcntl.flock(file, fcntl.LOCK_UN)


def new_shared_cuda(index: int, handle: bytes, size: int, offset: int, counter: bytes, counter_offset: int,
                    event: bytes, event_sync_required: bool) -> Any:  # fmt: skip
    """UntypedStorage._new_shared_cuda: a storage on the sender's memory, which this process's GPU does not count."""
    file = _open(handle)
    try:
        pages = mmap.mmap(file, size + _WORD)
        _count_off(file)
    finally:
        os.close(file)
    with uncounted(gpus[index].allocator):
        return to_cuda(torch.frombuffer(pages, dtype=torch.uint8, count=size), index).untyped_storage()


def release_counter(counter: bytes, offset: int, device: Any = None) -> None:
    """UntypedStorage._release_ipc_counter_cuda: a handle came again, for memory that this process has open."""
    file = _open(counter)
    try:
        _count_off(file)
    finally:
        os.close(file)


def share_storages() -> None:
    """Puts the functions in place."""
    _Storage._share_cuda_ = share_cuda
    _Storage._new_shared_cuda = staticmethod(new_shared_cuda)
    _Storage._release_ipc_counter_cuda = staticmethod(release_counter)
    torch._C._cuda_ipc_collect = collect
