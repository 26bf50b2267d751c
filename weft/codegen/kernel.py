"""A compiled kernel and what the runtime must know to launch it."""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.types import Dim3, SourceLocation


@dataclass(frozen=True)
class Site:
    """One instruction that may fault or wait: its PTX line, the user's source, its text."""

    ptx_line: int
    location: SourceLocation | None
    text: str


@dataclass
class CompiledKernel:
    """Machine code of one entry function for one block shape.

    symbols lists the names whose addresses fill Launch.symbols, in order: module variables of the global and const
    spaces. local_bytes is per thread. frame_bytes is per warp. `entry` is the address of weft_run(Worker*), `handle`
    whatever keeps the code in memory.
    """

    name: str
    block: Dim3
    warps: int
    frame_bytes: int
    static_shared_bytes: int
    local_bytes: int
    slot_count: int
    symbols: tuple[str, ...]
    sites: tuple[Site, ...]
    has_barriers: bool
    may_spin: bool  # some loop waits for other warps: blocks may have to be suspended and run side by side
    registers: int  # estimate per thread, for occupancy
    uses_clusters: bool = False  # its blocks may work with other blocks of their cluster
    has_loops: bool = True  # loops or calls: the launch may have to be stopped from another thread
    gang: int = 1  # blocks that a worker should run side by side: its capacity, and Launch.chunk
    queue_bytes: int = 0  # of deferred copies, per block
    shared_names: tuple[tuple[int, str], ...] = ()  # (offset, name) of the static shared variables, sorted
    entry: int = 0
    handle: object = field(default=None, repr=False)
    timings: dict = field(default_factory=dict, repr=False)  # seconds by stage: parse, analyse, emit, optimise, codegen
