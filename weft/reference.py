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

Addresses: global memory begins at MEMORY_BASE; every allocation has guard bytes behind it. Shared and local addresses
are offsets, with generic forms in two windows that no allocation reaches.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import weft.isa  # noqa: F401  (fills the instruction table)
from weft.errors import (
    DeadlockError,
    DeviceAssertError,
    IllegalAddressError,
    InvalidSymbolError,
    InvalidValueError,
    KernelFault,
    LaunchTimeoutError,
    MisalignedAddressError,
    NoSuchKernelError,
    PtxError,
    StackOverflowError,
    TrapError,
)
from weft.isa.instruction import Match, match
from weft.isa.operands import (
    Address,
    CallTarget,
    Discard,
    Immediate,
    Instruction,
    LabelRef,
    Negated,
    Pair,
    Register,
    SpecialRegister,
    Symbol,
    Vector,
)
from weft.isa.special import special_register
from weft.ptx.module import Function, Label, Module, Param
from weft.types import TYPES, Dim3, ScalarType, as_dim3

WARP_LANES = 32
BARRIERS = 16
MEMORY_BASE = 0x7A00_0000_0000
SHARED_WINDOW = 0x6A00_0000_0000
LOCAL_WINDOW = 0x6B00_0000_0000
WINDOW_BYTES = 1 << 24
# In the shared window: a block's own shared memory at 0, that of the cluster's block of rank r at (r + 1) times this.
CLUSTER_STRIDE = 1 << 19
FUNCTION_BASE = 0x0F00_0000_0000_0000  # the n-th function's address is FUNCTION_BASE + 16 * n
ALLOCATION_ALIGN = 256
GUARD_BYTES = 256
STACK_LIMIT = 512 * 1024  # bytes of local memory per thread, CUDA's own limit
SLICE = 1000  # instructions that a thread runs before others get a turn
ROUNDS = 40  # turns that a block gets before the next block runs too
HOST_FUNCTIONS = ("vprintf", "__assertfail", "malloc", "free")
U32, U64 = TYPES["u32"], TYPES["u64"]


# ---------------------------------------------------------------- memory
class ReferenceMemory:
    """Device memory with exact bounds: what lies between allocations faults."""

    def __init__(self) -> None:
        self._next = MEMORY_BASE
        self._bases: list[int] = []
        self._buffers: dict[int, bytearray] = {}
        self._modules: dict[int, tuple[Module, dict[str, int]]] = {}

    def allocate(self, size: int) -> int:
        """The address of `size` new bytes, zeroed, aligned to 256."""
        base = self._next
        self._next += -(-(size + GUARD_BYTES) // ALLOCATION_ALIGN) * ALLOCATION_ALIGN
        self._bases.append(base)
        self._buffers[base] = bytearray(size)
        return base

    def free(self, address: int) -> None:
        """Raises InvalidValueError for an address that `allocate` did not give."""
        if address not in self._buffers:
            raise InvalidValueError(f"{address:#x} was not allocated")
        del self._buffers[address]
        self._bases.remove(address)

    def find(self, address: int, size: int) -> tuple[bytearray, int] | None:
        """(buffer, offset) of an access, None where it is not inside one allocation."""
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return None
        base = self._bases[at]
        buffer = self._buffers[base]
        offset = address - base
        return (buffer, offset) if offset + size <= len(buffer) else None

    def read(self, address: int, size: int) -> bytes:
        """Bytes of one allocation. Raises InvalidValueError outside."""
        found = self.find(address, size)
        if found is None:
            raise InvalidValueError(f"{size} bytes at {address:#x} are not allocated")
        buffer, offset = found
        return bytes(buffer[offset : offset + size])

    def write(self, address: int, data: bytes) -> None:
        """Raises InvalidValueError outside one allocation."""
        found = self.find(address, len(data))
        if found is None:
            raise InvalidValueError(f"{len(data)} bytes at {address:#x} are not allocated")
        buffer, offset = found
        buffer[offset : offset + len(data)] = data

    def symbols(self, module: Module) -> dict[str, int]:
        """Addresses of a module's global and constant variables, placed and initialised on first use."""
        found = self._modules.get(id(module))
        if found is None:
            addresses = {}
            for variable in module.variables.values():
                if variable.space in ("global", "const"):
                    addresses[variable.name] = self.allocate(variable.size)
                    if variable.init is not None:
                        self.write(addresses[variable.name], variable.init)
            found = self._modules[id(module)] = (module, addresses)
            for variable in module.variables.values():
                for relocation in variable.relocations:
                    self._relocate(module, addresses, variable.name, relocation)
        return found[1]

    def _relocate(self, module: Module, addresses: dict[str, int], name: str, relocation) -> None:
        symbol = module.aliases.get(relocation.symbol, relocation.symbol)
        if symbol in addresses:
            value = addresses[symbol]
        elif symbol in module.functions:
            value = function_address(module, symbol)
        else:
            raise InvalidSymbolError(f"initialiser of {name}: no variable or function {symbol!r}")
        value = (value + relocation.addend) >> relocation.shift
        data = (value & ((1 << 8 * relocation.bytes) - 1)).to_bytes(relocation.bytes, "little")
        self.write(addresses[name] + relocation.offset, data)

    def address_of(self, module: Module, name: str) -> int:
        """Address of a module variable. Raises InvalidSymbolError for an unknown one."""
        addresses = self.symbols(module)
        if name not in addresses:
            raise InvalidSymbolError(f"no global or constant variable {name!r}")
        return addresses[name]


def function_address(module: Module, name: str) -> int:
    return FUNCTION_BASE + 16 * list(module.functions).index(name)


@dataclass
class Run:
    """What a launch did. An instruction counts when its guard holds (or it has none); a call counts once, as `call`.

    by_opcode and by_line count thread-instructions, by_thread the same per thread, keyed by (linear block index,
    linear thread index). printed is what printf wrote, thread by thread in the order it happened.
    """

    by_opcode: Counter[str] = field(default_factory=Counter)
    by_line: Counter[int] = field(default_factory=Counter)
    by_thread: dict[tuple[int, int], int] = field(default_factory=dict)
    printed: str = ""

    @property
    def total(self) -> int:
        return sum(self.by_opcode.values())


# ---------------------------------------------------------------- decoded code
class Step(NamedTuple):
    """One decoded instruction. run(thread) gives None to go on, or a Wait."""

    run: Callable[[Thread], Wait | None]
    guard: int  # register index, -1 without a guard
    negated: bool
    index: int  # type: ignore[assignment]  # into Interpreter.executed; nobody calls tuple.index
    ins: Instruction


@dataclass
class Code:
    """A decoded function."""

    function: Function
    steps: list[Step]
    index: dict[str, int]  # register name -> place in Frame.values
    types: dict[str, ScalarType]
    places: dict[str, tuple[int, int]]  # .local and .param variables, parameters and returns: (frame offset, size)
    frame_bytes: int


@dataclass
class Wait:
    """Why a thread stands still. kind: warp (lanes of `mask`, or all that come, when None), barrier."""

    kind: str
    step: Step
    key: Any = None
    mask: int | None = None
    sources: tuple = ()
    finish: Callable[[list[Thread]], None] | None = None
    expected: int | None = None  # barrier: threads, None for all of the block


class Frame:
    """One activation of a function."""

    __slots__ = ("code", "values", "pc", "base", "call", "carry")

    def __init__(self, code: Code, base: int, call: CallTarget | None):
        self.code, self.base, self.call = code, base, call
        self.values = [0] * len(code.index)
        self.pc = 0
        self.carry = 0


class Thread:
    """One thread; raw reference rules see it as `t`."""

    def __init__(self, block: Block, index: int):
        self.block, self.index = block, index
        self.interpreter = block.interpreter
        shape = self.interpreter.block
        self.tid = Dim3(index % shape.x, index // shape.x % shape.y, index // (shape.x * shape.y))
        self.lane = index % WARP_LANES
        self.warp = index // WARP_LANES
        self.local = bytearray()
        self.frames: list[Frame] = []
        self.frame: Frame | None = None
        self.step: Step | None = None
        self.wait: Wait | None = None
        self.cluster_phase: int | None = None  # of the cluster's barrier, between arriving and waiting
        self.done = False
        self.count = 0
        self.enter(self.interpreter.entry, None)

    # ------------------------------------------------------------ running
    def run(self, limit: int) -> None:
        """Run until the thread waits, ends, or has executed `limit` instructions."""
        executed = self.interpreter.executed
        left = limit
        while left > 0 and not self.done:
            frame = self.frame
            steps, values = frame.code.steps, frame.values
            while left > 0:
                pc = frame.pc
                if pc >= len(steps):
                    self.leave()
                    break
                step = steps[pc]
                frame.pc = pc + 1
                left -= 1
                if step.guard >= 0 and bool(values[step.guard]) == step.negated:
                    continue
                executed[step.index] += 1
                self.count += 1
                self.step = step
                wait = step.run(self)
                if wait is not None:
                    self.wait = wait
                    self.interpreter.spend(limit - left)
                    return
                if self.done or self.frame is not frame:
                    break
        self.interpreter.spend(limit - left)

    def enter(self, code: Code, call: CallTarget | None) -> Frame:
        base = -(-len(self.local) // 16) * 16
        if base + code.frame_bytes > STACK_LIMIT:
            raise self.fault(StackOverflowError, f"the stack of {STACK_LIMIT} bytes is used up")
        self.local.extend(bytes(base + code.frame_bytes - len(self.local)))
        frame = Frame(code, base, call)
        self.frames.append(frame)
        self.frame = frame
        return frame

    def leave(self) -> None:
        """Return from the function: copy its return values to the caller's."""
        inner = self.frames.pop()
        if not self.frames:
            self.done = True
            return
        outer = self.frame = self.frames[-1]
        for formal, actual in zip(inner.code.function.returns, inner.call.returns):
            if isinstance(actual, Discard):
                continue
            if formal.in_register:
                data = inner.values[inner.code.index[formal.name]].to_bytes(formal.type.bytes, "little")
            else:
                at = inner.base + inner.code.places[formal.name][0]
                data = bytes(self.local[at : at + formal.size])
            if isinstance(actual, Symbol):
                at = outer.base + outer.code.places[actual.name][0] + actual.offset
                self.local[at : at + len(data)] = data
            else:
                self.write(actual, formal.type, int.from_bytes(data, "little"))
        del self.local[inner.base :]

    def call(self, target: CallTarget, code: Code) -> None:
        function = code.function
        arguments = [self._argument(actual, formal) for actual, formal in zip(target.arguments, function.params)]
        frame = self.enter(code, target)
        for formal, data in zip(function.params, arguments):
            if formal.in_register:
                frame.values[code.index[formal.name]] = int.from_bytes(data, "little") & formal.type.mask
            else:
                at = frame.base + code.places[formal.name][0]
                self.local[at : at + len(data)] = data

    def _argument(self, actual, formal: Param) -> bytes:
        if isinstance(actual, Symbol) and actual.name in self.frame.code.places:
            offset, size = self.frame.code.places[actual.name]
            at = self.frame.base + offset + actual.offset
            return bytes(self.local[at : at + min(size, formal.size or size)])
        return self.read(actual, formal.type).to_bytes(formal.type.bytes, "little")

    def fault(self, kind: type[KernelFault], message: str, address: int | None = None) -> KernelFault:
        """An error that says where this thread is."""
        ins = self.step.ins if self.step is not None else None
        return kind(
            message + (f" ({ins.name})" if ins is not None else ""), kernel=self.interpreter.name,
            location=ins.location if ins else None, ptx_line=ins.line if ins else 0,
            block=self.block.ctaid, thread=self.tid, address=address,
        )  # fmt: skip

    # ------------------------------------------------------------ operands
    def read(self, operand, type: ScalarType) -> int:
        """The bit pattern of an operand, as wide as `type`."""
        if isinstance(operand, Register):
            frame = self.frame
            return frame.values[frame.code.index[operand.name]] & type.mask
        if isinstance(operand, Immediate):
            return immediate_pattern(operand, type)
        if isinstance(operand, SpecialRegister):
            return self.special(operand.name) & type.mask
        if isinstance(operand, Negated):
            return self.read(operand.operand, type) ^ 1
        if isinstance(operand, Symbol):
            return self.symbol(operand.name, operand.offset) & type.mask
        if isinstance(operand, Vector):
            part = TYPES[f"b{type.bits // len(operand.items)}"]
            return sum(self.read(item, part) << (i * part.bits) for i, item in enumerate(operand.items))
        raise AssertionError(f"operand {operand!r} cannot be read")

    def write(self, operand, type: ScalarType, value: int) -> None:
        """Write a result: a wider register takes it extended by the type's sign."""
        if isinstance(operand, Discard):
            return
        if isinstance(operand, Vector):
            part = TYPES[f"b{type.bits // len(operand.items)}"]
            for i, item in enumerate(operand.items):
                self.write(item, part, value >> (i * part.bits))
            return
        frame = self.frame
        frame.values[frame.code.index[operand.name]] = extended(value, type, frame.code.types[operand.name])

    def register_type(self, operand: Register) -> ScalarType:
        return self.frame.code.types[operand.name]

    def address(self, operand: Address) -> int:
        """Base plus offset of a bracketed operand, modulo 2**64."""
        base = operand.base
        if isinstance(base, Symbol):
            return self.symbol(base.name, base.offset + operand.offset)
        return (self.read(base, U64) + operand.offset) & U64.mask

    def symbol(self, name: str, offset: int) -> int:
        """The address of a variable in its own state space (parameters: a generic address), or of a function."""
        places = self.frame.code.places
        if name in places:
            variable = self.frame.code.function.variables.get(name)
            at = self.frame.base + places[name][0] + offset
            return at if variable is not None and variable.space == "local" else LOCAL_WINDOW + at
        return self.interpreter.symbol(self.frame.code.function, name) + offset

    def stack_top(self) -> int:
        """End of the local memory in use."""
        return len(self.local)

    def allocate_stack(self, size: int, align: int) -> int:
        """alloca: the offset of `size` new bytes of local memory."""
        at = -(-len(self.local) // align) * align
        if at + size > STACK_LIMIT:
            raise self.fault(StackOverflowError, f"alloca of {size} bytes with {at} bytes of local memory in use")
        self.local.extend(bytes(at + size - len(self.local)))
        return at

    def restore_stack(self, top: int) -> None:
        """stackrestore: frees what lies above `top`."""
        del self.local[top:]

    def window(self, space: str) -> int:
        """First address of the generic window of shared or local memory, or of the kernel's parameters."""
        if space == "param":
            return min(self.interpreter.entry_parameters.values(), default=0)
        return {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}[space]

    def space_of(self, address: int) -> str:
        """The state space of a generic address."""
        if 0 <= address - SHARED_WINDOW < WINDOW_BYTES:
            return "shared"
        return "local" if 0 <= address - LOCAL_WINDOW < WINDOW_BYTES else "global"

    def map_to_rank(self, address: int, rank: int) -> int:
        """mapa: where the block of that rank has what this block has at a shared address."""
        return (min(rank, WINDOW_BYTES // CLUSTER_STRIDE - 2) + 1) * CLUSTER_STRIDE + address % CLUSTER_STRIDE

    def rank_of(self, address: int) -> int:
        """The rank of the block that a shared::cluster address belongs to."""
        place = address // CLUSTER_STRIDE
        return place - 1 if place else self.block.rank

    # ------------------------------------------------------------ memory
    def _cluster_memory(self, address: int) -> tuple[bytearray, int]:
        """(a block's shared memory, offset in it) for an address of the cluster's shared memory."""
        rank = self.rank_of(address)
        blocks = self.block.cluster.blocks
        if rank >= len(blocks):
            return bytearray(), address
        if all(t.done for t in blocks[rank].threads):
            raise self.fault(KernelFault, f"shared memory of block {rank} of the cluster, which has exited", address)
        return blocks[rank].shared, address % CLUSTER_STRIDE

    def _find(self, space: str, address: int, size: int) -> tuple[bytearray, int]:
        if space in ("generic", "param"):
            space = self.space_of(address)
            address -= {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": 0}[space]
            space = "cluster" if space == "shared" else space
        elif space in ("shared", "local", "cluster"):
            address &= U32.mask
        if address % size:
            raise self.fault(MisalignedAddressError, f"{size} bytes at {space} address {address:#x}", address)
        if space == "cluster":
            buffer, offset = self._cluster_memory(address)
            if offset + size <= len(buffer):
                return buffer, offset
        elif space in ("shared", "local"):
            buffer = self.block.shared if space == "shared" else self.local
            if address + size <= len(buffer):
                return buffer, address
        else:
            found = self.interpreter.memory.find(address, size)
            if found is not None:
                return found
        raise self.fault(IllegalAddressError, f"{size} bytes at {space} address {address:#x}", address)

    def load(self, space: str, address: int, size: int) -> int:
        """`size` bytes as an unsigned integer. Raises KernelFault for a bad or misaligned address."""
        buffer, offset = self._find(space, address, size)
        return int.from_bytes(buffer[offset : offset + size], "little")

    def store(self, space: str, address: int, size: int, value: int) -> None:
        buffer, offset = self._find(space, address, size)
        buffer[offset : offset + size] = value.to_bytes(size, "little")

    def atomic(self, space: str, address: int, size: int, function: Callable[[int], int]) -> int:
        """Replace the word by function(word); gives the old one."""
        if space == "generic" and self.space_of(address) == "local" or space == "local":
            raise self.fault(IllegalAddressError, "an atomic operation on local memory", address)
        buffer, offset = self._find(space, address, size)
        old = int.from_bytes(buffer[offset : offset + size], "little")
        new = function(old) & ((1 << 8 * size) - 1)
        buffer[offset : offset + size] = new.to_bytes(size, "little")
        return old

    def load_string(self, address: int) -> bytes:
        found = bytearray()
        while byte := self.load("generic", address + len(found), 1):
            found.append(byte)
        return bytes(found)

    # ------------------------------------------------------------ special registers
    def special(self, name: str) -> int:
        """A special register (PTX ISA, "Special Registers")."""
        known = special_register(name)
        stem, _, axis = name.lstrip("%").partition(".")
        interpreter, block = self.interpreter, self.block
        if axis == "w":
            return 0
        if axis:
            vectors = {
                "tid": self.tid, "ntid": interpreter.block, "ctaid": block.ctaid, "nctaid": interpreter.grid,
                "clusterid": block.cluster.index, "nclusterid": interpreter.clusters,
                "cluster_ctaid": delinearise(block.rank, interpreter.cluster), "cluster_nctaid": interpreter.cluster,
            }  # fmt: skip
            return vectors[stem]["xyz".index(axis)]
        bit = 1 << self.lane
        values = {
            "laneid": self.lane, "warpid": self.warp, "nwarpid": -(-interpreter.block.count // WARP_LANES),
            "WARP_SZ": WARP_LANES, "lanemask_eq": bit, "lanemask_lt": bit - 1, "lanemask_le": 2 * bit - 1,
            "lanemask_gt": ~(2 * bit - 1), "lanemask_ge": ~(bit - 1), "smid": 0, "nsmid": 1, "gridid": 1,
            "dynamic_smem_size": interpreter.dynamic_shared, "total_smem_size": len(block.shared),
            "aggr_smem_size": len(block.shared), "cluster_nctarank": interpreter.cluster.count,
            "cluster_ctarank": block.rank, "clusterrank": block.cluster.linear,
            "is_explicit_cluster": int(interpreter.explicit_cluster),
        }  # fmt: skip
        if stem in values:
            return values[stem] & known.type.mask
        if stem.startswith(("clock", "globaltimer")):
            ticks = interpreter.spent + self.count
            return ticks >> 32 if stem.endswith("_hi") else ticks & known.type.mask
        return 0  # environment, performance and reserved registers


def immediate_pattern(operand: Immediate, type: ScalarType) -> int:
    """The bit pattern of a constant in a type."""
    value = operand.value
    if operand.kind == "int":
        return int(value) & type.mask
    if operand.kind in ("f32", "f64"):
        width = 32 if operand.kind == "f32" else 64
        if type.bits == width or type.kind != "f":
            return int(value) & type.mask
        code = "<f" if width == 32 else "<d"
        value = struct.unpack(code, int(value).to_bytes(width // 8, "little"))[0]
    if type.bits == 64:
        return struct.unpack("<Q", struct.pack("<d", value))[0]
    if type.bits == 32:
        return struct.unpack("<I", struct.pack("<f", value))[0]
    raise AssertionError(f"a floating constant as {type}")


def extended(value: int, type: ScalarType, register: ScalarType) -> int:
    """What a register holds after a result of `type` was written to it."""
    value &= type.mask
    if type.signed and register.bits > type.bits and value >> (type.bits - 1):
        value |= register.mask & ~type.mask
    return value & register.mask


# ---------------------------------------------------------------- blocks
class NamedBarrier:
    """One of the 16 barriers of a block: who has arrived in this phase."""

    def __init__(self) -> None:
        self.arrived: set[Thread] = set()
        self.expected: int | None = None


def delinearise(index: int, shape: Dim3) -> Dim3:
    return Dim3(index % shape.x, index // shape.x % shape.y, index // (shape.x * shape.y))


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


# ---------------------------------------------------------------- the interpreter
class Interpreter:
    """One launch."""

    def __init__(self, module: Module, name: str, grid: Dim3, block: Dim3, memory: ReferenceMemory,
                 dynamic_shared: int, step_limit: int, cluster: Dim3 | None):  # fmt: skip
        function = module.kernels.get(name)
        if function is None:
            raise NoSuchKernelError(f"no kernel {name!r}; there are {', '.join(module.kernels) or 'none'}")
        self.module, self.name, self.grid, self.block, self.memory = module, name, grid, block, memory
        self.dynamic_shared, self.step_limit = dynamic_shared, step_limit
        declared = function.directives.get("reqnctapercluster")
        if cluster is None and declared:
            cluster = as_dim3(declared)
        self.explicit_cluster = cluster is not None
        self.cluster = cluster or Dim3()
        if any(n % c for n, c in zip(grid, self.cluster)):
            raise InvalidValueError(f"a grid of {tuple(grid)} is not made of clusters of {tuple(self.cluster)}")
        self.clusters = Dim3(*(n // c for n, c in zip(grid, self.cluster)))
        self.moves = 0
        self.globals = memory.symbols(module)
        self.spent = 0
        self.executed: list[int] = []
        self.sites: list[Instruction] = []
        self.codes: dict[str, Code] = {}
        self.printed: list[str] = []
        self.entry_parameters: dict[str, int] = {}
        self.shared_offsets, self.shared_bytes = place_shared(module, dynamic_shared)
        self.entry = self.decode(function)

    def spend(self, steps: int) -> None:
        self.spent += steps
        if self.spent > self.step_limit:
            raise LaunchTimeoutError(f"more than {self.step_limit} instructions", kernel=self.name)

    def symbol(self, function: Function, name: str) -> int:
        if function.is_entry and name in self.entry_parameters:
            return self.entry_parameters[name]
        for key in (f"{function.name} {name}", name):
            if key in self.shared_offsets:
                return self.shared_offsets[key]
        if name in self.globals:
            return self.globals[name]
        name = self.module.aliases.get(name, name)
        if name in self.module.functions:
            return function_address(self.module, name)
        raise PtxError(f"symbol {name!r} is not defined", file=self.module.file)

    def code_of(self, name: str) -> Code:
        """The decoded function of a name."""
        name = self.module.aliases.get(name, name)
        found = self.codes.get(name)
        if found is None:
            function = self.module.functions.get(name)
            if function is None or function.is_declaration:
                raise PtxError(f"call of {name}: the function has no body in this module", file=self.module.file)
            found = self.decode(function)
        return found

    def decode(self, function: Function) -> Code:
        index = {name: i for i, name in enumerate(function.registers)}
        types = dict(function.registers)
        for param in (*function.params, *function.returns):
            if param.in_register and param.name not in index:
                index[param.name] = len(index)
                types[param.name] = param.type
        places: dict[str, tuple[int, int]] = {}
        at = 0
        framed: list[Any] = [v for v in function.variables.values() if v.space in ("local", "param")]
        if not function.is_entry:
            framed += [p for p in (*function.params, *function.returns) if not p.in_register]
        for variable in framed:
            align = max(8, variable.align)
            at = -(-at // align) * align
            places[variable.name] = (at, variable.size)
            at += variable.size
        code = Code(function, [], index, types, places, at)
        self.codes[function.name] = code
        labels: dict[str, int] = {}
        body: list[Instruction] = []
        for item in function.body:
            if isinstance(item, Label):
                labels[item.name] = len(body)
            else:
                body.append(item)
        for ins in body:
            code.steps.append(self._decode_instruction(code, labels, ins))
        return code

    def _decode_instruction(self, code: Code, labels: dict[str, int], ins: Instruction) -> Step:
        m = match(ins, self.module.file)
        guard, negated = -1, False
        if ins.guard is not None:
            guard, negated = code.index[ins.guard.register], ins.guard.negated
        site = len(self.executed)
        self.executed.append(0)
        self.sites.append(ins)
        slot: list[Step] = []
        if m.entry.effects & {"control", "barrier"} and not m.entry.raw:
            run = _decode_control(self, code, labels, m, ins, slot)
        elif m.entry.raw and m.entry.collective:
            run = _decode_warp(m, ins, slot)
        elif m.entry.raw:
            run = _decode_raw(m, ins)
        elif m.entry.collective:
            run = _decode_collective(code, m, ins, slot)
        else:
            run = _decode_value(code, m, ins)
        step = Step(run, guard, negated, site, ins)
        slot.append(step)
        return step

    def run(self) -> Run:
        """All blocks, in order; a block that does not finish in its turns lets the next one start."""
        result = Run()
        resident: list[Block] = []
        following = 0
        total = self.clusters.count
        while following < total or resident:
            before = self.moves
            if following < total:
                resident += Cluster(self, following).blocks
                following += 1
                before = -1
            remaining = []
            for block in resident:
                if block.run(ROUNDS):
                    for thread in block.threads:
                        result.by_thread[block.linear, thread.index] = thread.count
                else:
                    remaining.append(block)
            if self.moves == before and remaining:
                raise remaining[0].deadlock()
            resident = remaining
        for ins, count in zip(self.sites, self.executed):
            if count:
                result.by_opcode[ins.opcode] += count
                result.by_line[ins.line] += count
        result.printed = "".join(self.printed)
        return result


def place_shared(module: Module, dynamic_shared: int) -> tuple[dict[str, int], int]:
    """Offsets of the shared variables ("function name" for those of a function) and the block's bytes. `.extern`
    variables without a size begin behind the others."""
    named = [(v.name, v) for v in module.variables.values() if v.space == "shared"]
    for function in module.functions.values():
        named += [(f"{function.name} {v.name}", v) for v in function.variables.values() if v.space == "shared"]
    offsets: dict[str, int] = {}
    at = 0
    for name, variable in named:
        if not variable.unsized:
            at = -(-at // max(1, variable.align)) * max(1, variable.align)
            offsets[name] = at
            at += variable.size
    unsized = [(name, v) for name, v in named if v.unsized]
    if unsized:
        align = max(16, *(v.align for _, v in unsized))
        at = -(-at // align) * align
        offsets.update((name, at) for name, _ in unsized)
    return offsets, at + dynamic_shared


# ---------------------------------------------------------------- decoding
def _getter(code: Code, operand, type: ScalarType) -> Callable[[Thread], int]:
    mask = type.mask
    if isinstance(operand, Register):
        i = code.index[operand.name]
        if code.types[operand.name].bits <= type.bits:
            return lambda t: t.frame.values[i]
        return lambda t: t.frame.values[i] & mask
    if isinstance(operand, Immediate):
        pattern = immediate_pattern(operand, type)
        return lambda t: pattern
    return lambda t: t.read(operand, type)


def _setter(code: Code, operand, type: ScalarType) -> Callable[[Thread, int], None]:
    if isinstance(operand, Discard):
        return lambda t, value: None
    if isinstance(operand, Vector):
        return lambda t, value: t.write(operand, type, value)
    register = code.types[operand.name]
    i = code.index[operand.name]
    if type.signed and register.bits > type.bits:

        def write_extended(t: Thread, value: int) -> None:
            t.frame.values[i] = extended(value, type, register)

        return write_extended
    mask = type.mask & register.mask

    def write(t: Thread, value: int) -> None:
        t.frame.values[i] = value & mask

    return write


def _decode_operands(code: Code, m: Match, ins: Instruction):
    """(getters of the sources, None where one is absent; setters of the destinations)."""
    getters: list[Callable | None] = []
    setters = []
    operands = list(ins.operands) + [None] * (len(m.entry.operands) - len(ins.operands))
    for spec, operand in zip(m.entry.operands, operands):
        if not spec.is_destination:
            if not spec.is_address:
                getters.append(None if operand is None else _getter(code, operand, m.operand_type(spec.name)))
        elif isinstance(operand, Pair):
            setters.append(_setter(code, operand.first, m.operand_type(spec.name)))
            setters.append(_setter(code, operand.second, m.operand_type(spec.pair)))
        else:
            setters.append(_setter(code, operand, m.operand_type(spec.name)))
            if spec.pair:
                setters.append(_setter(code, Discard(), TYPES["pred"]))
    return getters, setters


def _decode_raw(m: Match, ins: Instruction) -> Callable[[Thread], Any]:
    reference = m.entry.reference

    def run(t: Thread) -> None:
        reference(t, m, ins)

    return run


def _decode_warp(m: Match, ins: Instruction, slot: list[Step]) -> Callable[[Thread], Wait]:
    """A warp-wide instruction that reads and writes the lanes' operands itself: reference(threads, m, ins) sees a list
    of 32 threads, None for a lane that is not there."""
    reference = m.entry.reference

    def finish(group: list[Thread]) -> None:
        threads: list[Thread | None] = [None] * WARP_LANES
        for thread in group:
            threads[thread.lane] = thread
        reference(threads, m, ins)

    def run(t: Thread) -> Wait:
        return Wait("warp", slot[0], slot[0].index, None, (), finish)

    return run


def _decode_value(code: Code, m: Match, ins: Instruction) -> Callable[[Thread], None]:
    reference = m.entry.reference
    getters, setters = _decode_operands(code, m, ins)
    carry_in = "carry_in" in m.entry.effects
    carry_out = "carry_out" in m.entry.effects
    # A form whose second destination was left out may compute it all the same: the rest is dropped.
    if len(setters) == 1 and not carry_in and not carry_out and None not in getters:
        write = setters[0]
        if len(getters) == 2:
            first, second = getters

            def run_binary(t: Thread) -> None:
                value = reference(m, first(t), second(t))
                write(t, value[0] if type(value) is tuple else value)

            return run_binary

        def run_simple(t: Thread) -> None:
            value = reference(m, *[get(t) for get in getters])
            write(t, value[0] if type(value) is tuple else value)

        return run_simple

    def run(t: Thread) -> None:
        sources = [None if get is None else get(t) for get in getters]
        if carry_in:
            sources.append(t.frame.carry)
        results = reference(m, *sources)
        if not isinstance(results, tuple):
            results = (results,)
        if carry_out:
            t.frame.carry = results[-1] & 1
            results = results[:-1]
        for write, value in zip(setters, results):
            write(t, value)

    return run


def _decode_collective(code: Code, m: Match, ins: Instruction, slot: list[Step]) -> Callable[[Thread], Wait]:
    """Lanes meet here. Those that name the same instruction form and the same mask execute together; each writes to
    its own destination (they may come from different places)."""
    getters, setters = _decode_operands(code, m, ins)
    reference = m.entry.reference
    # .aligned forms have no member mask: all lanes of the warp take part
    synchronises = "sync" in ins.modifiers and "aligned" not in ins.modifiers

    def finish(group: list[Thread]) -> None:
        active = [False] * WARP_LANES
        columns: list[list[int] | None] = [None if get is None else [0] * WARP_LANES for get in getters]
        for thread in group:
            active[thread.lane] = True
            for column, value in zip(columns, thread.wait.sources[0]):
                if column is not None:
                    column[thread.lane] = value
        results = reference(m, active, *columns)
        if not isinstance(results, tuple):
            results = (results,)
        for thread in group:
            for write, row in zip(thread.wait.sources[1], results):
                write(thread, row[thread.lane])

    def run(t: Thread) -> Wait:
        values = [None if get is None else get(t) for get in getters]
        mask = values[-1] if synchronises else None
        key = (ins.opcode, ins.modifiers, mask) if synchronises else slot[0].index
        return Wait("warp", slot[0], key, mask, (values, setters), finish)

    return run


# ---------------------------------------------------------------- control flow and barriers
def _decode_control(interpreter: Interpreter, code: Code, labels: dict[str, int], m: Match, ins: Instruction,
                    slot: list[Step]) -> Callable[[Thread], Wait | None]:  # fmt: skip
    opcode = ins.opcode
    if opcode == "bra":
        return _jump(_target(interpreter, labels, ins.operands[0], ins))
    if opcode == "brx":
        return _decode_switch(interpreter, code, labels, ins)
    if opcode == "call":
        return _decode_call(interpreter, code, ins)
    if opcode in ("bar", "barrier"):
        return _decode_barrier(code, m, ins, slot)
    runs = {"ret": Thread.leave, "exit": _exit, "trap": _trap}
    return runs[opcode]


def _target(interpreter: Interpreter, labels: dict[str, int], operand, ins: Instruction) -> int:
    name = operand.name if isinstance(operand, (LabelRef, Symbol)) else operand
    if name not in labels:
        raise PtxError(f"{ins.name}: no label {name!r} in this function", file=interpreter.module.file, line=ins.line)
    return labels[name]


def _jump(target: int) -> Callable[[Thread], None]:
    def run(t: Thread) -> None:
        t.frame.pc = target

    return run


def _exit(t: Thread) -> None:
    t.frames.clear()
    t.done = True
    t.frame = None


def _trap(t: Thread) -> None:
    raise t.fault(TrapError, "the kernel executed a trap")


def _decode_switch(interpreter: Interpreter, code: Code, labels: dict[str, int], ins: Instruction):
    index = _getter(code, ins.operands[0], U32)
    names = code.function.branch_targets[ins.operands[1].name]
    targets = [_target(interpreter, labels, name, ins) for name in names]

    def run(t: Thread) -> None:
        chosen = index(t)
        if chosen >= len(targets):
            raise t.fault(KernelFault, f"label number {chosen} of {len(targets)}")
        t.frame.pc = targets[chosen]

    return run


def _decode_call(interpreter: Interpreter, code: Code, ins: Instruction) -> Callable[[Thread], None]:
    target = ins.operands[0]
    if isinstance(target.target, Symbol):
        name = target.target.name
        if name in HOST_FUNCTIONS:
            return lambda t: _HOST[name](t, target)
        return lambda t: t.call(target, interpreter.code_of(name))
    names = list(interpreter.module.functions)

    def run(t: Thread) -> None:
        address = t.read(target.target, U64)
        index, rest = divmod(address - FUNCTION_BASE, 16)
        if rest or not 0 <= index < len(names):
            raise t.fault(KernelFault, f"call of {address:#x}, which is no function", address)
        t.call(target, interpreter.code_of(names[index]))

    return run


def _decode_barrier(code: Code, m: Match, ins: Instruction, slot: list[Step]) -> Callable[[Thread], Wait | None]:
    modifiers = ins.modifiers
    operands = list(ins.operands)
    if "warp" in modifiers:
        members = _getter(code, operands[0], U32)

        def run_warp(t: Thread) -> Wait:
            mask = members(t)
            return Wait("warp", slot[0], ("bar.warp.sync", mask), mask, (), lambda group: None)

        return run_warp
    write = predicate = None
    if "red" in modifiers:
        write = _setter(code, operands.pop(0), TYPES["u32" if "popc" in modifiers else "pred"])
        predicate = _getter(code, operands.pop(), TYPES["pred"])
    number = _getter(code, operands[0], U32) if operands else lambda t: 0
    count = _getter(code, operands[1], U32) if len(operands) > 1 else None
    arrives = "arrive" in modifiers
    if "cluster" in modifiers:
        return _arrive_at_cluster if arrives else lambda t: _await_cluster(t, slot[0])
    reduction = next((k for k in ("popc", "and", "or") if k in modifiers), "")

    def finish(group: list[Thread]) -> None:
        votes = [t.wait.sources[1] for t in group if t.wait.sources]
        results = {"popc": sum(votes), "and": int(all(votes)), "or": int(any(votes)), "": 0}
        for thread in group:
            if thread.wait.sources:
                kind, _, setter = thread.wait.sources
                setter(thread, results[kind])

    def run(t: Thread) -> Wait | None:
        at = number(t)
        expected = count(t) if count is not None else None
        t.block.arrive(t, at, expected)
        if arrives:
            return None
        sources = (reduction, predicate(t), write) if write is not None else ()
        return Wait("barrier", slot[0], at, None, sources, finish, expected)

    return run


def _arrive_at_cluster(t: Thread) -> None:
    cluster = t.block.cluster
    if t in cluster.arrived or t.cluster_phase is not None:
        raise t.fault(KernelFault, "the thread has arrived at the cluster's barrier already and not waited")
    cluster.arrived.add(t)
    t.cluster_phase = cluster.phase


def _await_cluster(t: Thread, step: Step) -> Wait:
    if t.cluster_phase is None:
        raise t.fault(KernelFault, "the thread waits at the cluster's barrier without having arrived")
    phase, t.cluster_phase = t.cluster_phase, None
    return Wait("cluster", step, phase)


# ---------------------------------------------------------------- calls to the host
def _host_arguments(t: Thread, target: CallTarget, sizes: Iterable[int]) -> list[int]:
    found = []
    for actual, size in zip(target.arguments, sizes):
        found.append(t.load("generic", t.symbol(actual.name, actual.offset), size) if isinstance(actual, Symbol) else
                     t.read(actual, TYPES[f"b{8 * size}"]))  # fmt: skip
    return found


def _host_result(t: Thread, target: CallTarget, size: int, value: int) -> None:
    if target.returns:
        actual = target.returns[0]
        if isinstance(actual, Symbol):
            t.store("generic", t.symbol(actual.name, actual.offset), size, value)
        else:
            t.write(actual, TYPES[f"b{8 * size}"], value)


_CONVERSION = re.compile(rb"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d*))?(hh|h|ll|l|j|z|t|L)?([diouxXeEfFgGaAcsp%])")


def _print(t: Thread, target: CallTarget) -> None:
    """vprintf(format, arguments): the arguments lie at their natural alignment."""
    format_at, arguments = _host_arguments(t, target, (8, 8))
    at = 0
    converted = 0

    def take(size: int) -> int:
        nonlocal at
        at = -(-at // size) * size
        value = t.load("generic", arguments + at, size)
        at += size
        return value

    def convert(found: re.Match) -> bytes:
        nonlocal converted
        flags, width, precision, length, letter = (part or b"" for part in found.groups())
        if letter == b"%":
            return b"%"
        converted += 1
        stars = tuple(_signed(take(4), 32) for part in (width, precision) if part == b"*")
        shape = b"%" + flags + width + (b"." + precision if found[3] is not None else b"")
        size = 8 if letter in b"eEfFgGaAsp" or length in (b"ll", b"l", b"j", b"z", b"t") else 4
        raw = take(size)
        if letter in b"eEfFgGaA":
            value: Any = struct.unpack("<d", raw.to_bytes(8, "little"))[0]
        elif letter == b"s":
            value = t.load_string(raw)
        elif letter == b"p":
            return b"0x%x" % raw
        elif letter == b"c":
            value = raw & 0xFF
        else:
            bits = {b"h": 16, b"hh": 8}.get(length, 8 * size)
            value = _signed(raw, bits) if letter in b"di" else raw & ((1 << bits) - 1)
        return (shape + letter) % (*stars, value)

    text = _CONVERSION.sub(convert, t.load_string(format_at))
    t.interpreter.printed.append(text.decode("utf-8", "replace"))
    _host_result(t, target, 4, converted)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _assert_failed(t: Thread, target: CallTarget) -> None:
    message, file, line, function, _ = _host_arguments(t, target, (8, 8, 4, 8, 8))
    texts = [t.load_string(a).decode("utf-8", "replace") if a else "?" for a in (file, function, message)]
    raise t.fault(DeviceAssertError, f"{texts[0]}:{line}: {texts[1]}: Assertion `{texts[2]}` failed.")


def _allocate(t: Thread, target: CallTarget) -> None:
    (size,) = _host_arguments(t, target, (8,))
    _host_result(t, target, 8, t.interpreter.memory.allocate(size))


def _release(t: Thread, target: CallTarget) -> None:
    (address,) = _host_arguments(t, target, (8,))
    if address:
        try:
            t.interpreter.memory.free(address)
        except InvalidValueError:
            raise t.fault(KernelFault, f"free of {address:#x}, which malloc did not give", address) from None


_HOST = {"vprintf": _print, "__assertfail": _assert_failed, "malloc": _allocate, "free": _release}


# ---------------------------------------------------------------- the entry point
def run_kernel(
    module: Module,
    name: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    params: Sequence[bytes] | bytes,
    memory: ReferenceMemory,
    dynamic_shared: int = 0,
    step_limit: int = 50_000_000,
    cluster: int | Sequence[int] | None = None,
) -> Run:
    """Run one launch to its end.

    params: the parameter buffer, or one bytes per parameter. dynamic_shared: bytes. cluster: the shape of a cluster in
    blocks (default: what the kernel declares, else none). step_limit: instructions of all
    threads together. Raises what the kernel's faults are (weft.errors.KernelFault and its kinds), DeadlockError when
    the threads of a block wait for each other, LaunchTimeoutError past the limit, PtxError for a form that the table
    does not have.
    """
    shape = None if cluster is None else as_dim3(cluster)
    interpreter = Interpreter(module, name, as_dim3(grid), as_dim3(block), memory, dynamic_shared, step_limit, shape)
    function = module.kernels[name]
    buffer = bytearray(max(function.param_bytes, 1))
    if isinstance(params, (bytes, bytearray)):
        if len(params) > len(buffer):
            raise InvalidValueError(f"{name} takes {function.param_bytes} bytes of parameters, found {len(params)}")
        buffer[: len(params)] = params
    else:
        if len(params) != len(function.params):
            raise InvalidValueError(f"{name} takes {len(function.params)} parameters, found {len(params)}")
        for param, data in zip(function.params, params):
            if len(data) != param.size:
                raise InvalidValueError(f"{name}: parameter {param.name} has {param.size} bytes, found {len(data)}")
            buffer[param.offset : param.offset + param.size] = data
    base = memory.allocate(len(buffer))
    memory.write(base, bytes(buffer))
    interpreter.entry_parameters = {p.name: base + p.offset for p in function.params}
    try:
        return interpreter.run()
    finally:
        memory.free(base)
