"""One thread: its registers, stack and position. Decoded steps enter; changed memory, a Wait or a fault leaves.

Rules of the instruction table that do more than compute a value (loads, atomics, copies ...) see it as `t`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from weft.errors import IllegalAddressError, KernelFault, MisalignedAddressError, StackOverflowError
from weft.isa.operands import (
    Address,
    CallTarget,
    Discard,
    Immediate,
    Negated,
    Register,
    SpecialRegister,
    Symbol,
    Vector,
)
from weft.isa.special import special_register
from weft.ptx.module import Param
from weft.reference.addresses import CLUSTER_STRIDE, LOCAL_WINDOW, SHARED_WINDOW, WINDOW_BYTES
from weft.reference.code import U32, U64, WARP_LANES, Code, Frame, Step, Wait, extended, immediate_pattern
from weft.types import TYPES, Dim3, ScalarType

if TYPE_CHECKING:
    from weft.reference.block import Block

STACK_LIMIT = 512 * 1024  # bytes of local memory per thread, CUDA's own limit


def delinearise(index: int, shape: Dim3) -> Dim3:
    return Dim3(index % shape.x, index // shape.x % shape.y, index // (shape.x * shape.y))


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
