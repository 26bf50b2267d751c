"""What a stopped launch left behind in, the exception that the caller gets out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import TYPE_CHECKING

from weft.codegen import abi
from weft.codegen.abi import FaultKind
from weft.codegen.kernel import CompiledKernel, Site
from weft.errors import (
    DeadlockError,
    DeviceAssertError,
    IllegalAddressError,
    IllegalInstructionError,
    KernelFault,
    LaunchTimeoutError,
    MisalignedAddressError,
    StackOverflowError,
    TrapError,
)
from weft.runtime.memory import WINDOW_BYTES, Arena, describe_memory
from weft.types import Dim3

if TYPE_CHECKING:
    from weft.runtime.workers import WorkerState

NULL_BYTES = 64 << 10  # an address below this is a null pointer with an offset
NEAR_BYTES = 64 << 20  # further from every allocation than this an address is not called an overrun
MAX_WAITING_SHOWN = 16

# kind -> exception, CUDA's words for it (cudaGetErrorString).
_KINDS: dict[FaultKind, tuple[type[KernelFault], str]] = {
    FaultKind.ADDRESS: (IllegalAddressError, "an illegal memory access was encountered"),
    FaultKind.MISALIGNED: (MisalignedAddressError, "misaligned address"),
    FaultKind.TRAP: (TrapError, "unspecified launch failure: the kernel executed trap"),
    FaultKind.ASSERT: (DeviceAssertError, "device-side assert triggered"),
    FaultKind.STACK: (StackOverflowError, "hardware stack error: recursion is deeper than the stack"),
    FaultKind.TIMEOUT: (LaunchTimeoutError, "the launch timed out and was terminated"),
    FaultKind.DEADLOCK: (DeadlockError, "deadlock: no warp can go on"),
    FaultKind.INTERRUPT: (KernelFault, "the launch was interrupted"),
    FaultKind.CALL: (KernelFault, "invalid program counter: an indirect call to what is not a function"),
    FaultKind.BARRIER: (KernelFault, "illegal barrier: a bad barrier number or thread count"),
    FaultKind.HOST: (KernelFault, "unspecified launch failure: a call to the host failed"),
    FaultKind.DESCRIPTOR: (KernelFault, "illegal instruction parameter"),
    FaultKind.TENSOR_MAP: (IllegalInstructionError, "an illegal instruction was encountered"),
    FaultKind.TENSOR: (IllegalAddressError, "an illegal memory access was encountered"),
    FaultKind.MBARRIER: (KernelFault, "mbarrier misuse"),
    FaultKind.BULK: (IllegalInstructionError, "an illegal instruction was encountered"),
    FaultKind.PENDING: (KernelFault, "too many asynchronous copies are pending"),
    FaultKind.CLUSTER: (KernelFault, "cluster misuse"),
}


def thread_index(linear: int, block: Dim3) -> tuple[int, int, int]:
    """threadIdx of the n-th thread of a block."""
    return linear % block.x, linear // block.x % block.y, linear // (block.x * block.y)


def block_index(linear: int, grid: Dim3) -> tuple[int, int, int]:
    """blockIdx of the n-th block of a grid."""
    return linear % grid.x, linear // grid.x % grid.y, linear // (grid.x * grid.y)


def make_timeout(kernel: str, seconds: float) -> LaunchTimeoutError:
    _, words = _KINDS[FaultKind.TIMEOUT]
    return LaunchTimeoutError(f"{words}: it ran longer than its time limit of {seconds:g} s", kernel=kernel)


def make_fault(fault: abi.Fault, kernel: CompiledKernel, grid: Dim3, arena: Arena,
               workers: Iterable[WorkerState]) -> KernelFault:  # fmt: skip
    """The exception for a fault that compiled code recorded."""
    kind = FaultKind(fault.kind)
    site = kernel.sites[fault.site] if 0 <= fault.site < len(kernel.sites) else None
    if kind == FaultKind.ADDRESS and site and site.text.partition(".")[0] == "call":
        kind = FaultKind.STACK  # the arguments of a call did not fit the local stack
    exception, message = _KINDS[kind]
    address = None
    if kind in (FaultKind.ADDRESS, FaultKind.MISALIGNED):
        address = fault.address
        message += f": {_describe_access(site, fault.size)} at {address:#x}"
        if kind == FaultKind.MISALIGNED:
            explained = explain_misaligned(address, fault.size)
        else:
            base = {"shared": arena.shared_window, "local": arena.local_window}.get(_space(site), 0)
            explained = explain_address(arena, base + address if address < WINDOW_BYTES else address, fault.size)
        message += f", {explained}"
    elif kind in (FaultKind.TENSOR_MAP, FaultKind.TENSOR):
        address = fault.address
        message += f": {site.text if site else 'a tensor copy'}: {_describe_tensor(kind, fault, arena)}"
    elif kind == FaultKind.MBARRIER:
        address = fault.address
        from weft.isa import barrier as mbarrier

        why = mbarrier.EXPLAINED[mbarrier.MISUSE[fault.size]]
        message += f": {site.text if site else ''}: {_name_shared(kernel, fault.address)}: {why}"
    elif kind == FaultKind.BULK:
        from weft.isa import async_copy

        why = async_copy.EXPLAINED[async_copy.MISUSE[fault.size]].format(fault.address)
        message += f": {site.text if site else 'a bulk copy'}: {why}"
    elif kind == FaultKind.PENDING:
        message += (
            f" (deferred copies keep {fault.size} in a block): {site.text if site else ''}; wait for copies more "
            "often, or run without deferred copies"
        )
    elif kind == FaultKind.DESCRIPTOR:
        message += f": {_describe_descriptor(fault)}"
    elif kind == FaultKind.CLUSTER:
        message += f": {_describe_cluster(arena, fault)}"
        address = fault.address if fault.size == abi.CLUSTER_EXITED else None
    elif kind == FaultKind.DEADLOCK:
        waits = list(describe_waiting(kernel, grid, workers))
        shown = "; ".join(waits[:MAX_WAITING_SHOWN])
        more = len(waits) - MAX_WAITING_SHOWN
        message += f"; {shown}" * bool(shown) + f"; and {more} more warps" * (more > 0)
    return exception(
        message,
        kernel=kernel.name,
        location=site.location if site else None,
        ptx_line=site.ptx_line if site else 0,
        block=block_index(fault.block, grid),
        thread=thread_index(32 * fault.warp + fault.lane, kernel.block),
        address=address,
    )


def _describe_access(site: Site | None, size: int) -> str:
    """"a read of 4 bytes (ld.global.f32)"."""
    text = site.text if site else ""
    opcode, _, rest = text.partition(".")
    verb = {"st": "a write", "ld": "a read", "ldu": "a read", "atom": "an atomic", "red": "an atomic"}.get(opcode)
    bytes_ = f"{size} byte{'s' * (size != 1)}"
    if verb is None:
        return f"an access of {bytes_}" + (f" ({text})" if text else "")
    return f"{verb} of {bytes_} ({opcode}.{rest})"


def _describe_cluster(arena: Arena, fault: abi.Fault) -> str:
    offset = fault.address - arena.shared_window
    return {
        abi.CLUSTER_EXITED: f"an access to shared memory of block {offset // abi.CLUSTER_STRIDE - 1} of the cluster, "
        "which has exited; let no block exit before the others are done (cluster.sync() at the end)",
        abi.CLUSTER_ARRIVED_TWICE: "a thread arrives at the cluster's barrier again without having waited",
        abi.CLUSTER_NOT_ARRIVED: "a thread waits at the cluster's barrier without having arrived",
    }[fault.size]


def _describe_tensor(kind: FaultKind, fault: abi.Fault, arena: Arena) -> str:
    """What is wrong with a tensor copy: its map, its coordinates, where it leaves memory."""
    from weft.isa import tensormap
    from weft.isa.tensor_copy import FORM_ROWS, MODE_SHIFT

    form = fault.dimensions
    count = 5 if form & FORM_ROWS else form & 15
    coordinates = ", ".join(map(str, fault.coordinates[:count]))
    where = f"the tensor map at {fault.map:#x}, coordinates {{{coordinates}}}"
    offsets = ", ".join(map(str, fault.coordinates[5 : 5 + max(0, (form & 15) - 2)]))
    if form >> MODE_SHIFT & 15 == tensormap.IM2COL:
        where += f", offsets {{{offsets}}}"
    if kind == FaultKind.TENSOR_MAP:
        return f"{where}: {tensormap.REASONS[fault.size]}"
    return f"{where}: {fault.size} bytes from {fault.address:#x}, {explain_address(arena, fault.address, fault.size)}"


def _space(site: Site | None) -> str:
    """The state space that an instruction's addresses belong to, "" where it has others too."""
    words = [word.partition("::")[0] for word in site.text.split(".")] if site else []
    found = {word for word in words if word in ("shared", "local", "global")}
    return found.pop() if len(found) == 1 else ""


def _name_shared(kernel: CompiledKernel, address: int) -> str:
    """An mbarrier object by the variable that it is in, where there is one."""
    within = address % abi.CLUSTER_STRIDE
    place = f"shared address {address:#x}"
    if within < kernel.static_shared_bytes:
        for at, name in reversed(kernel.shared_names):
            if at <= within:
                return f"the mbarrier {name}{f' + {within - at}' * (within > at)} ({place})"
    return f"the mbarrier at {place}"


def _describe_descriptor(fault: abi.Fault) -> str:
    from weft.isa.wgmma import MatrixDescriptor

    found = MatrixDescriptor.decode(fault.address)
    words = f"the matrix descriptor {fault.address:#018x} (start {found.start:#x}, leading {found.leading}, "
    words += f"stride {found.stride}, swizzle {found.swizzle if found.swizzle > 16 else 'none'}) "
    return {
        abi.DESCRIPTOR_OUTSIDE: words + "reaches beyond the block's shared memory",
        abi.DESCRIPTOR_TOO_WIDE: words + "has rows wider than its swizzle",
        abi.DESCRIPTOR_LANES: "wgmma needs all 32 threads of each warp of the warpgroup",
    }[fault.size]


def explain_misaligned(address: int, size: int) -> str:
    off = address % size if size else 0
    return f"{off} byte{'s' * (off != 1)} past a multiple of {size}"


def explain_address(arena: Arena, address: int, size: int) -> str:
    """Why an address is not one that a kernel may touch."""
    if address < NULL_BYTES:
        return "a null pointer" + (f" plus {address} bytes" if address else "")
    for name, window in (("shared", arena.shared_window), ("local", arena.local_window)):
        offset = address - window
        if name == "shared" and abi.CLUSTER_STRIDE <= offset < WINDOW_BYTES:
            rank, within = offset // abi.CLUSTER_STRIDE - 1, offset % abi.CLUSTER_STRIDE
            return f"offset {within} of shared memory of block {rank} of the cluster, where no block has any now"
        if 0 <= offset < WINDOW_BYTES:
            return f"offset {offset} of {name} memory, which is beyond what the launch has"
    if abi.FUNCTION_BASE <= address < abi.FUNCTION_BASE + (1 << 40):
        return "the address of a function, not of memory"
    live = arena.find_live(address)
    if live is not None:
        start, length, what = live
        over = address + size - start - length
        return f"{over} byte{'s' * (over != 1)} of it past the end of {describe_memory(what, start, length)}"
    freed = arena.find_freed(address, size)
    if freed is not None:
        start, length, what = freed
        return f"{address - start} bytes into freed memory: {describe_memory(what, start, length)}"
    below, above = arena.neighbours(address)
    after = address - below[0] - below[1] if below else NEAR_BYTES
    before = above[0] - address if above else NEAR_BYTES
    if below and after < NEAR_BYTES and after <= before:
        start, length, what = below
        return f"{after} bytes past the end of {describe_memory(what, start, length)}"
    if above and before < NEAR_BYTES:
        start, length, what = above
        return f"{before} bytes before the start of {describe_memory(what, start, length)}"
    if arena.contains(address):
        return "device memory that is not allocated"
    return "no device memory: a host pointer that is not registered, or not a pointer at all"


def describe_waiting(kernel: CompiledKernel, grid: Dim3, workers: Iterable[WorkerState]) -> Iterable[str]:
    """One text per warp that waits in a suspended block of a stopped launch."""
    layout = abi.block_layout(kernel.warps, kernel.frame_bytes, 0, 0)
    for state in workers:
        worker = state.worker
        for place in range(worker.resident):
            base = worker.blocks + place * worker.block_stride
            header = abi.BlockHeader.from_address(base)
            if not header.live_warps:
                continue
            block = block_index(header.linear, grid)
            for warp in range(kernel.warps):
                record = abi.WarpRecord.from_address(base + layout["warps"] + warp * ctypes.sizeof(abi.WarpRecord))
                if record.status == abi.RECORD_DONE:
                    continue
                wait = _describe_wait(kernel, base + layout["barriers"], record, header.shared)
                yield f"block {block} warp {warp} {wait}"


def _describe_wait(kernel: CompiledKernel, barriers: int, record: abi.WarpRecord, shared: int) -> str:
    where = ""
    if 0 <= record.site < len(kernel.sites):
        site = kernel.sites[record.site]
        where = f" at {site.location or f'PTX line {site.ptx_line}'} ({site.text})"
    if record.status == abi.WARP_CLUSTER:
        return f"waits{where} for the cluster's barrier: not all warps of the cluster have arrived"
    if record.status == abi.WARP_BARRIER:
        barrier = abi.Barrier.from_address(barriers + 64 * record.barrier)
        expected = record.expected or "all"
        return f"waits{where} for barrier {record.barrier}: {barrier.arrived} of {expected} threads have arrived"
    if record.expected < 0:
        from weft.isa.barrier import MbarrierWord

        address = -1 - record.expected
        word = MbarrierWord(ctypes.c_uint64.from_address(shared + address).value)
        return (
            f"waits{where} for {_name_shared(kernel, address)}: phase {word.phase} is not over, {word.pending} of "
            f"{word.expected} arrivals and {word.bytes} bytes are missing"
        )
    return f"spins{where}"
