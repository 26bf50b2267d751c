"""The oracle of the tests: runs a kernel one thread at a time, in plain Python, from the instruction table.

What enters: a Module, a kernel's name, the launch shape, parameters as bytes, and a ReferenceMemory. What leaves: the
memory as the kernel left it, and a Run: exact instruction counts and what was printed.

Each thread runs by itself until it must wait: at a barrier of its block, or at an instruction that the lanes of its
warp execute together (shfl.sync, vote.sync ...), which happens when all its members that have not exited have arrived
(PTX ISA, "Parallel Synchronization and Communication Instructions"). Forms without a member mask take the lanes that
wait at the same instruction once the rest of the warp can go no further. Divergence needs no masks and no
reconvergence here, which is what makes this an oracle for code that does. Threads that spin give way after SLICE
instructions, blocks that do not finish let later blocks start.

The blocks of a cluster are resident together.

Its parts: addresses.py, memory.py, code.py, decode.py, thread.py, block.py, hostcalls.py, interpreter.py.
"""

from __future__ import annotations

from weft.reference.addresses import (
    ALLOCATION_ALIGN,
    CLUSTER_STRIDE,
    FUNCTION_BASE,
    GUARD_BYTES,
    LOCAL_WINDOW,
    MEMORY_BASE,
    SHARED_WINDOW,
    WINDOW_BYTES,
    function_address,
    place_shared,
)
from weft.reference.block import BARRIERS, SLICE, Block, Cluster, NamedBarrier
from weft.reference.code import U32, U64, WARP_LANES, Code, Frame, Step, Wait, extended, immediate_pattern
from weft.reference.hostcalls import HOST_FUNCTIONS
from weft.reference.interpreter import ROUNDS, Interpreter, Run, run_kernel
from weft.reference.memory import ReferenceMemory
from weft.reference.thread import STACK_LIMIT, Thread, delinearise

__all__ = [
    "ALLOCATION_ALIGN", "BARRIERS", "CLUSTER_STRIDE", "FUNCTION_BASE", "GUARD_BYTES", "HOST_FUNCTIONS", "LOCAL_WINDOW",
    "MEMORY_BASE", "ROUNDS", "SHARED_WINDOW", "SLICE", "STACK_LIMIT", "U32", "U64", "WARP_LANES", "WINDOW_BYTES",
    "Block", "Cluster", "Code", "Frame", "Interpreter", "NamedBarrier", "ReferenceMemory", "Run", "Step", "Thread",
    "Wait", "delinearise", "extended", "function_address", "immediate_pattern", "place_shared", "run_kernel",
]  # fmt: skip
