"""A kernel, a launch shape and arguments in; the kernel's work done.

`PreparedLaunch` holds everything about a launch that does not change from one call to the next (checked shape, compiled
code, filled-in abi.Launch), so that a repeated launch only packs its arguments.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.chips import Chip
from weft.codegen import abi
from weft.errors import (
    CooperativeLaunchError,
    InvalidClusterSizeError,
    InvalidConfigurationError,
    KernelFault,
    LaunchResourcesError,
)
from weft.runtime.faults import make_fault, make_timeout
from weft.runtime.hostcalls import CLOCK_ADDRESS, HOST_CALL_ADDRESS, running
from weft.runtime.occupancy import compute_occupancy
from weft.runtime.workers import WorkerState, stack_limit, worker_pool
from weft.types import Dim3

if TYPE_CHECKING:
    from weft.codegen.kernel import CompiledKernel
    from weft.runtime.device import Device
    from weft.runtime.module import Kernel

# Launches of at most this many warps of straight-line code run in the calling thread: handing over to a worker costs
# about 20 us, a warp of such code well under one.
DIRECT_WARPS = 128
# Up to so many the calling thread takes part, and does not wait for workers that wake up late; Ctrl-C takes effect at
# the end of the launch.
SHORT_WARPS = 1 << 15
PORTABLE_CLUSTER_BLOCKS = 8  # of a cluster that runs on every chip with clusters
MAX_CHUNK = 64  # blocks that a worker claims at a time, at most
CLAIMS_PER_WORKER = 32  # at least so many claims each, for balance
FIRST_RESIDENT = 8  # block memories to begin with where blocks can be suspended
WORKSPACE_BYTES = 4096  # of the grid barrier in cooperative launches

# Called after every launch, where there is one: weft.timeline puts itself here while it records.
observer: Callable[[PreparedLaunch], None] | None = None
# Called before every launch with its arguments and options, while a front end captures a graph of launches; what it
# returns is called after the launch.
capture: Callable[[PreparedLaunch, tuple, dict[str, Any]], Callable[[], None]] | None = None

_RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_LAUNCH_BYTES = ctypes.sizeof(abi.Launch)
_grid_ids = itertools.count(1)
_idents = itertools.count(1)


def check_shape(chip: Chip, kernel: str, grid: Dim3, block: Dim3) -> None:
    """Raises InvalidConfigurationError for a grid or block that the chip does not allow."""
    limits = chip.capability
    for what, shape, allowed in (("grid", grid, limits.max_grid_dim), ("block", block, limits.max_block_dim)):
        for axis, found, most in zip("xyz", shape, allowed):
            if not 1 <= found <= most:
                raise InvalidConfigurationError(
                    f"invalid configuration argument: kernel {kernel}, {what} {tuple(shape)}: {axis} is {found}, "
                    f"{chip.name} allows 1 to {most}"
                )
    if block.count > limits.max_threads_per_block:
        raise InvalidConfigurationError(
            f"invalid configuration argument: kernel {kernel}, block {tuple(block)} has {block.count} threads, "
            f"{chip.name} allows {limits.max_threads_per_block}"
        )


def check_directives(kernel: str, directives: dict[str, tuple], block: Dim3) -> None:
    """Raises LaunchResourcesError or InvalidConfigurationError where the block breaks what the kernel declares."""
    if "reqntid" in directives:
        wanted = Dim3(*directives["reqntid"])
        if block != wanted:
            raise InvalidConfigurationError(
                f"invalid configuration argument: kernel {kernel} was compiled for blocks of {tuple(wanted)} "
                f"(.reqntid), found {tuple(block)}"
            )
    if "maxntid" in directives:
        most = Dim3(*directives["maxntid"]).count
        if block.count > most:
            raise LaunchResourcesError(
                f"too many resources requested for launch: kernel {kernel} was compiled for at most {most} threads per "
                f"block (__launch_bounds__, .maxntid), found {block.count}"
            )


def find_cluster(chip: Chip, kernel: Kernel, grid: Dim3, asked: Dim3 | None) -> Dim3 | None:
    """The shape of a launch's clusters in blocks: what was asked for or what the kernel declares, None for neither.

    Raises InvalidClusterSizeError or InvalidConfigurationError for a shape that the chip, the kernel or the grid does
    not allow (CUDA Programming Guide, "Thread Block Clusters"; PTX ISA, "Cluster Dimension Directives").
    """
    directives = kernel.directives
    declared = Dim3(*directives["reqnctapercluster"]) if directives.get("reqnctapercluster") else None
    if asked is not None and declared is not None and asked != declared:
        raise InvalidClusterSizeError(
            f"invalid cluster size: kernel {kernel.name} was compiled for clusters of {tuple(declared)} "
            f"(__cluster_dims__, .reqnctapercluster), found {tuple(asked)}"
        )
    cluster = asked if asked is not None else declared
    if cluster is None:
        if "explicitcluster" in directives:
            raise InvalidClusterSizeError(
                f"invalid cluster size: kernel {kernel.name} must be launched with a cluster shape (.explicitcluster): "
                "pass cluster=(x, y, z)"
            )
        return None
    if min(cluster) < 1:
        raise InvalidClusterSizeError(f"invalid cluster size: kernel {kernel.name}: cluster {tuple(cluster)}")
    if chip.capability.version < (9, 0):
        raise InvalidClusterSizeError(
            f"invalid cluster size: kernel {kernel.name}: {chip.name} (compute capability {chip.capability}) has no "
            "clusters; they came with 9.0"
        )
    most = abi.MAX_CLUSTER_BLOCKS if kernel.non_portable_cluster_size_allowed else PORTABLE_CLUSTER_BLOCKS
    limit, why = most, ""
    if directives.get("maxclusterrank"):
        limit, why = min(most, directives["maxclusterrank"][0]), " (.maxclusterrank)"
    if cluster.count > limit:
        hint = ""
        if limit == PORTABLE_CLUSTER_BLOCKS and not why:
            hint = f"; up to {abi.MAX_CLUSTER_BLOCKS} with kernel.non_portable_cluster_size_allowed = True"
        raise InvalidClusterSizeError(
            f"invalid cluster size: kernel {kernel.name}: clusters of {tuple(cluster)} have {cluster.count} blocks, "
            f"{limit} are allowed{why}{hint}"
        )
    if any(n % c for n, c in zip(grid, cluster)):
        raise InvalidConfigurationError(
            f"invalid configuration argument: kernel {kernel.name}: a grid of {tuple(grid)} blocks is not made of "
            f"whole clusters of {tuple(cluster)}"
        )
    return cluster


class PreparedLaunch:
    """A kernel with its launch shape: `kernel[grid, block]`. Call it with the kernel's arguments.

    Attributes: kernel, device, grid, block, shared_bytes (dynamic), cooperative, cluster (blocks, or None).
    """

    def __init__(
        self, kernel: Kernel, grid: Dim3, block: Dim3, stream: Any, shared_bytes: int, cooperative: bool,
        cluster: Dim3 | None = None,
    ):  # fmt: skip
        self.kernel, self.device = kernel, kernel.device
        self.grid, self.block = grid, block
        self.stream, self.shared_bytes, self.cooperative = stream, shared_bytes, cooperative
        self.asked_cluster = cluster
        check_shape(self.device.chip, kernel.name, grid, block)
        check_directives(kernel.name, kernel.directives, block)
        self.cluster = find_cluster(self.device.chip, kernel, grid, cluster)
        self._check_shared(0)
        self._ready = False
        self._lock = self.device.lock
        self._packer = kernel.packer
        self.ident = next(_idents)
        self.error: BaseException | None = None
        self.launch = abi.Launch()
        self.launch_address = ctypes.addressof(self.launch)
        self._template = abi.Launch()
        self._template_address = ctypes.addressof(self._template)
        self._order: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"<weft launch {self.kernel.name}[{tuple(self.grid)}, {tuple(self.block)}]>"

    # ------------------------------------------------------------ preparing
    def _check_shared(self, static: int) -> None:
        limit = self.kernel.dynamic_shared_limit(static)
        if self.shared_bytes > limit:
            chip = self.device.chip
            with_static = f" beside {static} bytes of static shared memory" if static else ""
            raise LaunchResourcesError(
                f"too many resources requested for launch: kernel {self.kernel.name} asks for {self.shared_bytes} "
                f"bytes of dynamic shared memory{with_static}; {limit} bytes are allowed on {chip.name} "
                f"({chip.capability.shared_per_block_optin} per block)"
            )

    def prepare(self) -> CompiledKernel:
        """Compiles the kernel for this shape, or takes it from the cache; the first call does it anyway."""
        with self._lock:
            if not self._ready:
                self._prepare()
            return self.compiled

    def _prepare(self) -> None:
        device, grid = self.device, self.grid
        compiled = self.compiled = self.kernel.compiled_for(self.block, grid.x * self.block.x < 1 << 31)
        self._check_shared(compiled.static_shared_bytes)
        shared = compiled.static_shared_bytes + self.shared_bytes
        if self.cooperative:
            self._check_cooperative(compiled, shared)
        total = grid.count
        self.run = _RUN(compiled.entry)
        self.slot_count = compiled.slot_count
        self.stride = abi.block_layout(
            compiled.warps, compiled.frame_bytes, shared, compiled.local_bytes, compiled.queue_bytes
        )["stride"]
        suspends = compiled.has_barriers or compiled.may_spin
        self.max_blocks = total if suspends else 1
        cluster = self.cluster or Dim3()
        resident = max(FIRST_RESIDENT, compiled.gang, cluster.count)
        self.first_capacity = total if self.cooperative else min(self.max_blocks, resident)
        finite = not compiled.has_loops and not compiled.may_spin
        self._direct = finite and total * compiled.warps <= DIRECT_WARPS
        self._short = finite and total * compiled.warps <= SHORT_WARPS
        self._symbols = self.kernel.program.symbol_addresses(compiled.symbols)
        t = self._template
        t.total_blocks = total
        t.grid_x, t.grid_y, t.grid_z = grid
        t.params = device.parameter_address
        t.symbols = ctypes.addressof(self._symbols)
        t.shared_bytes, t.dynamic_shared_bytes = shared, self.shared_bytes
        t.local_bytes = compiled.local_bytes
        t.cooperative = self.cooperative
        t.shared_window, t.local_window = device.arena.shared_window, device.arena.local_window
        t.host_call = HOST_CALL_ADDRESS
        t.clock_gettime = CLOCK_ADDRESS
        t.grid_workspace = device.workspace_address if self.cooperative else 0
        t.sm_count = device.chip.sm_count
        t.cluster_x, t.cluster_y, t.cluster_z = cluster
        t.explicit_cluster = self.cluster is not None
        self._divide(device.threads, device.seed)
        self._ready = True

    def _divide(self, workers: int, seed: int) -> None:
        """How the blocks are shared out among at most `workers` workers, in what order."""
        total = self.grid.count
        if self.compiled.uses_clusters and self.cluster is not None:
            total //= self.cluster.count  # whole clusters are claimed, and put in order
        if self.compiled.gang > 1:
            chunk = min(self.compiled.gang, -(-total // workers))
        else:
            chunk = max(1, min(MAX_CHUNK, total // (workers * CLAIMS_PER_WORKER)))
        self._worker_count = min(workers, -(-total // chunk))
        t = self._template
        t.chunk, t.seed = chunk, seed
        self._order = None
        t.block_order = 0
        if seed:
            self._order = np.random.default_rng(seed).permutation(total).astype(np.int64)
            t.block_order = self._order.ctypes.data

    def _check_cooperative(self, compiled: CompiledKernel, shared: int) -> None:
        chip = self.device.chip
        registers = self.kernel.estimate_registers(compiled)
        found = compute_occupancy(chip.capability, self.block.count, registers, shared, estimated=True)
        most = found.blocks_per_sm * chip.sm_count
        if self.grid.count > most:
            raise CooperativeLaunchError(
                f"too many blocks in cooperative launch: kernel {self.kernel.name}, {self.grid.count} blocks; "
                f"{chip.name} holds {most} at once ({found.blocks_per_sm} on each of {chip.sm_count} SMs, limited by "
                f"{found.limiter})"
            )

    # ------------------------------------------------------------ running
    def __call__(self, *args: Any, **options: Any) -> None:
        """Runs the kernel and waits for it.

        Options: stream, shared_bytes, cooperative, cluster (a shape in blocks), time_limit (seconds), deterministic,
        seed. Raises what
        ArgumentPacker.pack raises for bad arguments, the errors of weft.errors for a shape that the chip refuses or a
        fault in the kernel, KeyboardInterrupt after Ctrl-C. The device works afterwards in every case.
        """
        captured = None if capture is None else capture(self, args, options)
        if options:
            self._launch_with(args, options)
        else:
            device = self.device
            with self._lock:
                if device.closed:
                    device.check_open()
                if device.arena.abandoned:
                    device.arena.collect()
                if not self._ready:
                    self._prepare()
                self._packer.pack(device.parameter_view, args)
                self._execute(device.time_limit)
        if captured is not None:
            captured()

    def _launch_with(self, args: tuple, options: dict[str, Any]) -> None:
        unknown = options.keys() - {
            "stream", "shared_bytes", "cooperative", "cluster", "time_limit", "deterministic", "seed",
        }  # fmt: skip
        if unknown:
            raise TypeError(
                f"kernel {self.kernel.name}: unknown launch option {', '.join(sorted(unknown))}; a kernel's arguments "
                "are given by position"
            )
        device = self.device
        device.check_open()
        other = self.kernel.prepared(
            self.grid, self.block, options.get("stream", self.stream), options.get("shared_bytes", self.shared_bytes),
            bool(options.get("cooperative", self.cooperative)), options.get("cluster", self.asked_cluster),
        )  # fmt: skip
        limit = options.get("time_limit", device.time_limit)
        if limit is not None and not limit > 0:
            raise InvalidConfigurationError(f"invalid configuration argument: a time limit of {limit} seconds")
        seed = options.get("seed", device.seed) or 0
        workers = 1 if options.get("deterministic", False) else device.threads
        with self._lock:
            device.arena.collect()
            if not other._ready:
                other._prepare()
            other._packer.pack(device.parameter_view, args)
            other._divide(workers, seed)
            try:
                other._execute(limit)
            finally:
                other._divide(device.threads, device.seed)

    def _execute(self, time_limit: float | None) -> None:
        device, raw = self.device, self.launch
        ctypes.memmove(self.launch_address, self._template_address, _LAUNCH_BYTES)
        ranges = device.arena.ranges
        raw.ranges, raw.range_count = ranges.address, ranges.count
        raw.grid_id = next(_grid_ids)
        if self.cooperative:
            ctypes.memset(device.workspace_address, 0, WORKSPACE_BYTES)
        self.error = None
        in_time = True
        running[self.launch_address] = self
        try:
            if self._direct:
                direct_state(device).execute(self)
            elif self._short and self._worker_count > 1:
                worker_pool().run(self, self._worker_count - 1, own=direct_state(device))
            else:
                in_time = worker_pool().run(self, self._worker_count, time_limit)
        finally:
            del running[self.launch_address]
        if raw.stop:
            raise self._failure(time_limit if not in_time else None)
        if observer is not None:
            observer(self)

    def _failure(self, exceeded: float | None) -> BaseException:
        """The exception for a launch that was stopped."""
        if self.error is not None:
            return self.error
        if not self.launch.fault_claimed:
            assert exceeded is not None, f"launch of {self.kernel.name} stopped without a reason"
            return make_timeout(self.kernel.name, exceeded)
        states = [direct_state(self.device), *(worker.state for worker in worker_pool().threads(self._worker_count))]
        states = [state for state in states if state.bound == self.ident]
        fault: KernelFault = make_fault(self.launch.fault, self.compiled, self.grid, self.device.arena, states)
        for state in states:
            state.worker.resident = 0
        return fault


def direct_state(device: Device) -> WorkerState:
    """The state in which a device's small launches run, with the stack of the calling thread."""
    state, thread = device.direct_worker, threading.get_ident()
    if state.thread != thread:
        state.worker.stack_limit = stack_limit()
        state.thread = thread
    return state
