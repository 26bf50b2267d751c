"""The worker threads of this process: a prepared launch in, its blocks run.

Threads are made once and wait between launches. A job handed to them has: `launch` (abi.Launch), `launch_address`,
`run` (weft_run as a ctypes function), `stride` and `first_capacity` (block memories: bytes each, how many to begin
with), `max_blocks` (how many can ever be needed), `slot_count`, `ident` (a number of its own), and `error`, which takes
an exception.
"""

from __future__ import annotations

import ctypes
import operator
import os
import sys
import threading
import time
from collections import deque
from functools import partial
from typing import Any

from weft.codegen import abi
from weft.errors import OutOfMemoryError
from weft.runtime.hostmemory import HOST_MARGIN_BYTES, Reservation, available_bytes, format_bytes

STACK_BYTES = 256 << 20  # of a worker thread; address space, committed as used
SCRATCH_BYTES = 64 << 10
# Address space for one worker's block memories. Only what blocks touch takes memory.
FIRST_BLOCK_SPACE = 256 << 20
MAX_BLOCK_SPACE = 64 << 30
# Touched block memory beyond this is given back when another kernel comes.
KEEP_BLOCK_BYTES = 64 << 20


def stack_limit() -> int:
    """The address below which this thread's native stack must not grow, 0 where that cannot be found out."""
    libc = ctypes.CDLL(None)
    if sys.platform == "darwin":
        thread = ctypes.c_void_p(threading.get_ident())
        libc.pthread_get_stackaddr_np.restype = ctypes.c_void_p
        libc.pthread_get_stacksize_np.restype = ctypes.c_size_t
        size = libc.pthread_get_stacksize_np(thread)
        lowest = (libc.pthread_get_stackaddr_np(thread) or 0) - size
    elif hasattr(libc, "pthread_getattr_np"):
        attributes = (ctypes.c_char * 256)()  # pthread_attr_t has 56 bytes with glibc
        lowest_out, size_out = ctypes.c_void_p(), ctypes.c_size_t()
        if libc.pthread_getattr_np(ctypes.c_void_p(threading.get_ident()), attributes):
            return 0
        libc.pthread_attr_getstack(attributes, ctypes.byref(lowest_out), ctypes.byref(size_out))
        libc.pthread_attr_destroy(attributes)
        lowest, size = lowest_out.value or 0, size_out.value
    else:
        return 0
    if lowest <= 0:
        return 0
    # Room for the frame of one more device function, and for a host call's Python code.
    return lowest + max(512 << 10, size // 64)


class WorkerState:
    """What one thread that runs blocks owns: its abi.Worker, access slots, block memories, scratch."""

    def __init__(self, index: int):
        self.worker = abi.Worker()
        self.address = ctypes.addressof(self.worker)
        self.worker.index = index
        self._scratch = ctypes.create_string_buffer(SCRATCH_BYTES)
        self.worker.scratch = ctypes.addressof(self._scratch)
        self._slots = ctypes.create_string_buffer(0)
        self._slot_bytes = 0
        self._slots_address = 0
        self._space: Reservation | None = None
        self._high = 0  # bytes of block memory that may have been touched
        self.bound = 0  # ident of the job that the state is fitted to
        self.thread = 0  # whose stack worker.stack_limit is of, where that changes

    def bind(self, job: Any) -> None:
        """Fits the state to a job. Raises OutOfMemoryError when the host has no room for its blocks."""
        self.bound = 0
        worker = self.worker
        size = 16 * max(1, job.slot_count)
        if size > len(self._slots):
            self._slots = ctypes.create_string_buffer(2 * size)
        self._slot_bytes, self._slots_address = size, ctypes.addressof(self._slots)
        worker.slots = self._slots_address
        wanted = min(MAX_BLOCK_SPACE, max(FIRST_BLOCK_SPACE, job.stride * job.max_blocks))
        wanted = max(wanted, job.stride)
        if self._space is None or self._space.size < wanted:
            self._space = None
            self._space = Reservation(1 << (wanted - 1).bit_length())
            self._high = 0
        elif self._high > KEEP_BLOCK_BYTES:
            self._space.release(0, self._high)
            self._high = 0
        worker.launch = job.launch_address
        worker.blocks = self._space.address
        worker.block_stride = job.stride
        worker.capacity = 0
        self._grant(min(job.first_capacity, self._space.size // job.stride))
        self.bound = job.ident

    def _grant(self, capacity: int) -> None:
        added = (capacity - self.worker.capacity) * self.worker.block_stride
        if added > KEEP_BLOCK_BYTES:
            available = available_bytes()
            if available is not None and added > available - HOST_MARGIN_BYTES:
                raise OutOfMemoryError(
                    f"out of memory on the host: the blocks that must be resident at once need another "
                    f"{format_bytes(added)}, of {format_bytes(available)} that the host has left"
                )
        self.worker.capacity = capacity
        self._high = max(self._high, capacity * self.worker.block_stride)

    def grow(self) -> None:
        """Grants more block memories to a launch that asked for them."""
        worker = self.worker
        most = self._space.size // worker.block_stride  # type: ignore[union-attr]
        if worker.capacity >= most:
            raise OutOfMemoryError(
                f"out of memory on the host: {worker.capacity} blocks of {format_bytes(worker.block_stride)} wait at "
                "once on one worker"
            )
        self._grant(min(most, 2 * worker.capacity))

    def execute(self, job: Any) -> None:
        """Runs blocks until none is left or the launch is stopped. An exception ends up in job.error."""
        try:
            if self.bound != job.ident:
                self.bind(job)
            worker = self.worker
            if self._slot_bytes:
                ctypes.memset(self._slots_address, 0, self._slot_bytes)
            worker.resident = 0
            worker.need_blocks = 0
            job.run(self.address)
            while worker.need_blocks and not job.launch.stop:
                self.grow()
                worker.need_blocks = 0
                job.run(self.address)
        except BaseException as error:
            job.launch.stop = 1
            if job.error is None:
                job.error = error


_TRY_ACQUIRE = operator.methodcaller("acquire", False)


class _WorkerThread:
    """A thread that waits for jobs. `finished` is the serial number of the last job that it has done."""

    def __init__(self, pool: WorkerPool, index: int):
        self.pool = pool
        self.go = threading.Lock()
        self.go.acquire()
        self.done = threading.Lock()
        self.done.acquire()
        self.finished = 0
        self.state = WorkerState(index)
        self.thread = threading.Thread(target=self._loop, name=f"weft-worker-{index}", daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        self.state.worker.stack_limit = stack_limit()
        pool, state, go = self.pool, self.state, self.go
        while True:
            go.acquire()
            done, serial, job = self.done, pool.serial, pool.job
            state.execute(job)
            del job
            self.finished = serial
            done.release()


class WorkerPool:
    """All worker threads; runs one job at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.serial = 0
        self.job: Any = None  # the job that workers may be in
        self.workers: list[_WorkerThread] = []  # who was called for it
        self._threads: list[_WorkerThread] = []
        self._started: list[bool] = []
        self._called_off: list[bool] = []  # per worker: it had not woken up and does not take part

    def threads(self, count: int) -> list[_WorkerThread]:
        """The first `count` workers, made where they are missing."""
        while len(self._threads) < count:
            before = threading.stack_size(STACK_BYTES)
            try:
                self._threads.append(_WorkerThread(self, len(self._threads)))
            finally:
                threading.stack_size(before)
        return self._threads if len(self._threads) == count else self._threads[:count]

    def run(self, job: Any, count: int, time_limit: float | None = None, own: WorkerState | None = None) -> bool:
        """Runs a job on `count` workers and waits. False when it was stopped for its time limit (seconds).

        With `own` the calling thread takes part in that state, and workers that have not woken up when no block is
        left are not waited for: for jobs that end soon. Ctrl-C stops the job, waits for the workers and raises
        KeyboardInterrupt.
        """
        with self.lock:
            if self.job is not None:
                self._settle()  # a second Ctrl-C hit the handling of the first
            workers = self.threads(count)
            started, called_off = self._started, self._called_off
            started.clear()
            called_off.clear()
            self.serial += 1
            self.workers, self.job = workers, job
            # One call into C, which no signal handler can interrupt: all workers are started, or none is.
            calls = [worker.go.release for worker in workers]
            calls.append(partial(started.append, True))
            in_time = True
            try:
                deque(map(operator.call, calls), maxlen=0)
                if own is not None:
                    own.execute(job)
                    called_off.extend(map(_TRY_ACQUIRE, [worker.go for worker in workers]))
                    for worker, off in zip(workers, called_off):
                        if not off:
                            worker.done.acquire()
                elif time_limit is None:
                    for worker in workers:
                        worker.done.acquire()
                else:
                    in_time = self._wait_until(workers, job, time.monotonic() + time_limit)
            except BaseException:
                self._settle()
                raise
            self.job = None
            return in_time

    def _wait_until(self, workers: list[_WorkerThread], job: Any, deadline: float) -> bool:
        in_time = True
        for worker in workers:
            if in_time and not worker.done.acquire(timeout=max(0.0, deadline - time.monotonic())):
                in_time = False
                job.launch.stop = 1
            elif in_time:
                continue
            worker.done.acquire()
        return in_time

    def _settle(self) -> None:
        """After an interruption: stops the job, waits until no worker is in it, makes the locks new."""
        while self.job is not None:
            try:
                self.job.launch.stop = 1
                if not self._started:
                    self.job = None
                    return
                if not self._called_off:
                    self._called_off.extend(map(_TRY_ACQUIRE, [worker.go for worker in self.workers]))
                at_work = [worker for worker, off in zip(self.workers, self._called_off) if not off]
                while any(worker.finished != self.serial for worker in at_work):
                    time.sleep(0.0005)
                for worker in at_work:
                    done = threading.Lock()
                    done.acquire()
                    worker.done = done
                self.job = None
            except KeyboardInterrupt:
                continue


_pool: WorkerPool | None = None
_pool_lock = threading.Lock()


def worker_pool() -> WorkerPool:
    """The pool of this process."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = WorkerPool()
        return _pool


def _forget_pool() -> None:
    # Threads do not survive a fork.
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)

