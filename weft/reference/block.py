"""Blocks and clusters: what their threads share, whose turn it is, and who waits for whom.

Threads enter, made by their block; they are run until all have ended or none can go on, which leaves as a
DeadlockError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weft.errors import DeadlockError, KernelFault
from weft.reference.code import WARP_LANES
from weft.reference.thread import Thread, delinearise
from weft.types import Dim3

if TYPE_CHECKING:
    from weft.reference.interpreter import Interpreter

BARRIERS = 16
SLICE = 1000  # instructions that a thread runs before others get a turn


class NamedBarrier:
    """One of the 16 barriers of a block: who has arrived in this phase."""

    def __init__(self) -> None:
        self.arrived: set[Thread] = set()
        self.expected: int | None = None


class Cluster:
    """The blocks of a cluster and their barrier: who has arrived in this phase."""

    def __init__(self, interpreter: Interpreter, linear: int):
        self.linear = linear
        self.index = delinearise(linear, interpreter.clusters)
        self.arrived: set[Thread] = set()
        self.phase = 0
        self.blocks: list[Block] = []
        for rank in range(interpreter.cluster.count):
            within = delinearise(rank, interpreter.cluster)
            ctaid = Dim3(*(i * n + w for i, n, w in zip(self.index, interpreter.cluster, within)))
            self.blocks.append(Block(interpreter, ctaid, self, rank))

    def complete(self) -> bool:
        """End the phase when all threads that have not exited have arrived."""
        if not all(t.done or t in self.arrived for block in self.blocks for t in block.threads):
            return False
        self.phase += 1
        self.arrived.clear()
        return True


class Block:
    """A running block: its threads, shared memory and barriers, and its cluster."""

    def __init__(self, interpreter: Interpreter, ctaid: Dim3, cluster: Cluster, rank: int):
        self.interpreter, self.ctaid, self.cluster, self.rank = interpreter, ctaid, cluster, rank
        grid = interpreter.grid
        self.linear = ctaid.x + grid.x * (ctaid.y + grid.y * ctaid.z)
        self.shared = bytearray(interpreter.shared_bytes)
        self.barriers = [NamedBarrier() for _ in range(BARRIERS)]
        self.threads = [Thread(self, i) for i in range(interpreter.block.count)]
        self.warps = [self.threads[i : i + WARP_LANES] for i in range(0, len(self.threads), WARP_LANES)]

    def run(self, rounds: int) -> bool:
        """Give every thread up to `rounds` turns. True when all have ended."""
        for _ in range(rounds):
            ran = False
            for thread in self.threads:
                if not thread.done and thread.wait is None:
                    thread.run(SLICE)
                    ran = True
            if all(thread.done for thread in self.threads):
                return True
            released = self._release()
            self.interpreter.moves += ran or released
            if not ran and not released:
                if any(t.wait is not None and t.wait.kind == "cluster" for t in self.threads):
                    return False  # other blocks may help
                raise self.deadlock()
        return False

    def _release(self) -> bool:
        released = False
        for warp in self.warps:
            released |= self._release_warp(warp)
        for number, barrier in enumerate(self.barriers):
            if barrier.arrived:
                released |= self._release_barrier(number, barrier)
        waiting = [t for t in self.threads if t.wait is not None and t.wait.kind == "cluster"]
        if any(t.wait.key == self.cluster.phase for t in waiting):
            self.cluster.complete()
        for thread in waiting:
            if thread.wait.key != self.cluster.phase:
                thread.wait = None
                released = True
        return released

    def _release_warp(self, warp: list[Thread]) -> bool:
        waiting = [t for t in warp if t.wait is not None and t.wait.kind == "warp"]
        if not waiting:
            return False
        alive = sum(1 << t.lane for t in warp if not t.done)
        stuck = all(t.done or t.wait is not None for t in warp)
        groups: dict[Any, list[Thread]] = {}
        for thread in waiting:
            groups.setdefault(thread.wait.key, []).append(thread)
        released = False
        for group in groups.values():
            wait = group[0].wait
            if wait.mask is None:
                complete = stuck
            else:
                arrived = sum(1 << t.lane for t in group)
                complete = wait.mask & alive & ~arrived == 0
            if complete:
                for thread in group:
                    thread.step = thread.wait.step
                wait.finish(group)
                for thread in group:
                    thread.wait = None
                released = True
                if wait.mask is None:
                    break  # the released lanes may join the next group
        return released

    def _release_barrier(self, number: int, barrier: NamedBarrier) -> bool:
        if barrier.expected is None:
            complete = all(t.done or t in barrier.arrived for t in self.threads)
        else:
            # A warp whose live lanes have all arrived counts whole, as bar does on the hardware.
            count = 0
            for warp in self.warps:
                here = sum(t in barrier.arrived for t in warp)
                if here:
                    whole = all(t.done or t in barrier.arrived for t in warp)
                    count += WARP_LANES if whole else here
            complete = count >= barrier.expected
        if not complete:
            return False
        group = [t for t in self.threads if t.wait is not None and t.wait.kind == "barrier" and t.wait.key == number]
        barrier.arrived = set()
        barrier.expected = None
        if group:
            for thread in group:
                thread.step = thread.wait.step
            group[0].wait.finish(group)
        for thread in group:
            thread.wait = None
        return True

    def arrive(self, thread: Thread, number: int, expected: int | None) -> None:
        """Count a thread in. Raises KernelFault for barrier numbers and counts that do not fit."""
        if not 0 <= number < BARRIERS:
            raise thread.fault(KernelFault, f"barrier {number} does not exist, there are {BARRIERS}")
        if expected is not None and (expected == 0 or expected % WARP_LANES):
            raise thread.fault(KernelFault, f"a barrier's thread count must be a multiple of 32, found {expected}")
        barrier = self.barriers[number]
        if barrier.arrived and barrier.expected != expected:
            raise thread.fault(KernelFault, f"barrier {number}: thread counts {barrier.expected} and {expected} mix")
        if thread in barrier.arrived:
            raise thread.fault(KernelFault, f"barrier {number}: the thread has arrived already")
        barrier.expected = expected
        barrier.arrived.add(thread)

    def deadlock(self) -> DeadlockError:
        places: dict[tuple[int, str], list[Thread]] = {}
        for thread in self.threads:
            if thread.wait is not None:
                ins = thread.wait.step.ins
                places.setdefault((ins.line, ins.name), []).append(thread)
        lines = [
            f"{len(threads)} threads from {tuple(threads[0].tid)} at PTX line {line} ({name})"
            for (line, name), threads in sorted(places.items())
        ]
        exited = sum(t.done for t in self.threads)
        if exited:
            lines.append(f"{exited} threads have exited")
        first = min(places)
        return DeadlockError(
            "deadlock: " + "; ".join(lines), kernel=self.interpreter.name, ptx_line=first[0], block=self.ctaid
        )
