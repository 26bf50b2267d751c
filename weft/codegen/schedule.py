"""Scheduler of one worker: a kernel's shape enters, the IR of `void @weft_run(ptr worker)` leaves.

It calls the kernel's `@warp` (signature in abi.py), which the code generator writes. Three kinds, by what can suspend
a warp:

- "plain": nothing. Blocks run one after another, each warp to its end.
- "phased": only barriers that all warps of the block reach. All warps run to the barrier, again and again.
- "ganged": grid-stride loops without barriers. Launch.chunk blocks (at most Worker.capacity) run side by side, and all
  their warps take turns, one round of the loop each, so that together they go through memory in order.
- "general": barriers with counts, `bar.arrive`, loops that wait for other warps. A block that cannot go on stays in
  its block memory while others run on the same worker.

How a general block is suspended and found again: `header.live_warps` is non-zero in an occupied block memory, and each
warp's record says where it goes on. A warp that waits has set record.barrier, .expected and .site, added its threads
to Barrier.arrived (32 for every warp, also a partial one) and its votes to the sums, and returned WARP_BARRIER.
`bar.arrive` adds its threads and goes on. A spinning warp returns WARP_YIELD; when it yields in another state than the
last time it counts as moving.

After weft_run returns with Launch.stop set, Worker.resident is the number of block memories that may hold a suspended
block (those with live_warps != 0 do), so that a report can list where each warp waits. The runtime sets it to 0 before
the next launch.
"""

from __future__ import annotations

from weft.codegen import abi
from weft.codegen.irtext import IRFunction, Value, constant
from weft.codegen.jit import Target, function_attributes

KINDS = ("plain", "phased", "ganged", "general")

# Sweeps over all resident blocks without any progress before a worker counts as idle; a deadlock is reported when
# all workers are. About a third of a second with one waiting block: long enough for loops that yield in every round
# though they work (queues served by persistent blocks).
SPIN_LIMIT = 1 << 22
# Sweeps for which all workers must have been idle at once.
ALL_IDLE_SWEEPS = 1 << 10
# Rounds for which a block that makes progress keeps the worker; then other resident blocks get their turn.
ROUND_BUDGET = 64
# Visits of waiting blocks before one more block is made resident: this many, plus this many per resident block. One
# visit takes about 50 ns; a predecessor on another worker should get the chance to finish, for the sake of memory
# and caches, but a hand-written grid barrier needs all blocks.
VISITS_BEFORE_NEW = 256
VISITS_PER_RESIDENT = 16
# The same where blocks make progress but none finishes: a block may loop over a barrier while it waits for another.
TURNS_BEFORE_NEW = 1024

_BLOCK_FINISHED, _BLOCK_WAITS, _BLOCK_MOVES, _BLOCK_STOPPED = range(4)


def scheduler_needs(kind: str) -> set[str]:
    """Names of the support functions that the scheduler calls."""
    return {"weft_fault"} if kind == "general" else set()


def scheduler_ir(
    kind: str,
    warps: int,
    frame_bytes: int,
    target: Target,
    *,
    threads: int | None = None,
    reductions: tuple[int, ...] = (),
    clusters: bool = False,
    queue: tuple[int, int] = (0, 0),
    spin_limit: int = SPIN_LIMIT,
) -> str:
    """IR of `weft_run` for blocks of `warps` warps whose frames take `frame_bytes` each (a multiple of 64).

    threads (default 32 * warps) gives the last warp's first lane mask in its record. reductions: for "phased", the
    numbers of the barriers whose reductions must be handed on. clusters (kind "general" only): the blocks of a cluster
    are claimed, and kept, together. queue: bytes of a block's queue of deferred copies, and how many of them must be
    zero when a block starts. Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"scheduler kind must be one of {', '.join(KINDS)}, found {kind!r}")
    assert warps > 0 and frame_bytes % abi.FRAME_ALIGN == 0, (warps, frame_bytes)
    assert kind == "general" or not clusters, kind
    shape = _Shape(kind, warps, frame_bytes, target, threads or 32 * warps, reductions, clusters, queue, spin_limit)
    if kind == "general":
        return shape.shuffle_function() + shape.block_function() + shape.general_run()
    if kind == "ganged":
        return shape.shuffle_function() + shape.ganged_run()
    return shape.shuffle_function() + shape.claiming_run()


class _Shape:
    """What all parts of a scheduler know of the kernel."""

    def __init__(self, kind, warps, frame_bytes, target, threads, reductions, clusters, queue, spin_limit):
        self.kind, self.warps, self.frame_bytes, self.target = kind, warps, frame_bytes, target
        self.threads, self.reductions, self.spin_limit = threads, reductions, spin_limit
        self.clusters = clusters
        layout = abi.block_layout(warps, frame_bytes, 0, 0, queue[0])
        self.queue_at, self.queue_head = layout["queue"], queue[1]
        self.records_at, self.barriers_at, self.frames_at = layout["warps"], layout["barriers"], layout["frames"]
        self.shared_at = layout["shared"]
        self.attributes = function_attributes(target)

    # ---- pieces

    def local_offset(self, f: IRFunction, launch: Value) -> Value:
        """Offset of local memory in a block memory, as in abi.block_layout."""
        shared = f.zext(f.field(launch, abi.Launch, "shared_bytes"), "i64")
        return f.and_(f.add(shared, self.shared_at + 64 + 63), -64)

    def local_stride(self, f: IRFunction, launch: Value) -> Value:
        """Bytes of local memory of one warp."""
        local = f.zext(f.field(launch, abi.Launch, "local_bytes"), "i64")
        return f.shl(f.and_(f.add(local, 3), -4), 5)

    def place_block(self, f: IRFunction, launch: Value, block: Value) -> None:
        """Writes the pointers of the header, which depend on the block memory only."""
        f.set_field(block, abi.BlockHeader, "shared", f.offset(block, self.shared_at))
        f.set_field(block, abi.BlockHeader, "local", f.offset(block, self.local_offset(f, launch)))

    def decompose(self, f: IRFunction, launch: Value, linear: Value) -> tuple[Value, Value, Value]:
        """ctaid of a linear block index."""
        grid_x = f.zext(f.field(launch, abi.Launch, "grid_x"), "i64")
        grid_y = f.zext(f.field(launch, abi.Launch, "grid_y"), "i64")
        row = f.udiv(linear, grid_x)
        x = f.sub(linear, f.mul(row, grid_x))
        z = f.udiv(row, grid_y)
        y = f.sub(row, f.mul(z, grid_y))
        return f.trunc(x, "i32"), f.trunc(y, "i32"), f.trunc(z, "i32")

    def write_header(self, f: IRFunction, block: Value, linear: Value, ctaid: tuple[Value, Value, Value]) -> None:
        for axis, index in zip("xyz", ctaid):
            f.set_field(block, abi.BlockHeader, f"ctaid_{axis}", index)
        f.set_field(block, abi.BlockHeader, "linear", linear)
        if not self.clusters:
            f.set_field(block, abi.BlockHeader, "cluster_rank", 0)
            f.set_field(block, abi.BlockHeader, "cluster_size", 0)
        if self.queue_head:
            f.fill_zero(f.offset(block, self.queue_at), self.queue_head)

    def order_array(self, f: IRFunction) -> Value:
        """The order in which warps run: i32 numbers, at first 0, 1, 2 ..."""
        order = f.alloca(f"[{self.warps} x i32]", align=64)
        with f.for_range(f.const("i64", 0), self.warps) as i:
            f.store(f.trunc(i, "i32"), f.index(order, i, 4))
        return order

    def shuffle_when_seeded(self, f: IRFunction, seed: Value, order: Value, salt: Value) -> None:
        if self.warps > 1:
            with f.if_(f.icmp("ne", seed, 0), unlikely=True):
                f.call("void", "weft_shuffle_warps", order, f.add(seed, f.mul(salt, 0x9E3779B1)))

    def call_warp(self, f, worker, block, w: Value, state: Value, local_stride: Value, ctaid) -> tuple[Value, Value]:
        """Runs a warp: (status, next state)."""
        wide = f.zext(w, "i64")
        frame = f.offset(block, f.add(f.mul(wide, self.frame_bytes), self.frames_at))
        shared = f.offset(block, self.shared_at)
        local = f.offset(f.field(block, abi.BlockHeader, "local"), f.mul(wide, local_stride))
        result = f.call("i32", "warp", worker, block, frame, shared, local, w, state, *ctaid)
        return f.and_(result, 255), f.lshr(result, 8)

    def record(self, f: IRFunction, block: Value, w: Value) -> Value:
        return f.index(f.offset(block, self.records_at), f.zext(w, "i64"), 32)

    def barrier(self, f: IRFunction, block: Value, number: Value) -> Value:
        return f.index(f.offset(block, self.barriers_at), f.zext(number, "i64"), 64)

    def publish_reductions(self, f: IRFunction, barrier: Value) -> None:
        """Hands the gathered votes of a completed barrier to its readers."""
        for name in ("popc", "and", "or"):
            f.set_field(barrier, abi.Barrier, f"result_{name}", f.field(barrier, abi.Barrier, f"sum_{name}"))
            f.set_field(barrier, abi.Barrier, f"sum_{name}", 0)

    def clear_records(self, f: IRFunction, block: Value) -> None:
        if self.kind == "general" or self.reductions:
            f.fill_zero(f.offset(block, self.records_at), self.frames_at - self.records_at)
        else:
            f.fill_zero(f.offset(block, self.records_at), 32 * self.warps)
        f.set_field(block, abi.BlockHeader, "live_warps", self.warps)

    def set_first_lanes(self, f: IRFunction, block: Value) -> None:
        """Which lanes of each warp exist."""
        with f.for_range(f.const("i32", 0), self.warps) as w:
            f.set_field(self.record(f, block, w), abi.WarpRecord, "lanes", -1)
        last = self.record(f, block, f.const("i32", self.warps - 1))
        tail = self.threads - 32 * (self.warps - 1)
        f.set_field(last, abi.WarpRecord, "lanes", (1 << tail) - 1)

    def shuffle_function(self) -> str:
        """`weft_shuffle_warps(order, state)`: Fisher-Yates over the array `order`, random numbers from `state`."""
        if self.warps == 1:
            return ""
        f = IRFunction(
            "weft_shuffle_warps",
            "void",
            [("ptr", "order"), ("i32", "seed")],
            attributes=function_attributes(self.target, cold=True),
        )
        order, seed = f.parameters
        # Spread small seeds over all bits (the finaliser of MurmurHash3); xorshift must not start at 0.
        mixed = f.mul(f.xor(seed, f.lshr(seed, 16)), 0x85EBCA6B)
        mixed = f.mul(f.xor(mixed, f.lshr(mixed, 13)), 0xC2B2AE35)
        mixed = f.xor(mixed, f.lshr(mixed, 16))
        random = f.variable(f.select(f.icmp("eq", mixed, 0), 1, mixed))
        with f.for_range(f.const("i32", 1), self.warps) as i:
            # Xorshift32 (Marsaglia, "Xorshift RNGs", 2003).
            x = f.get(random)
            x = f.xor(x, f.shl(x, 13))
            x = f.xor(x, f.lshr(x, 17))
            x = f.xor(x, f.shl(x, 5))
            f.set(random, x)
            here = f.index(order, f.zext(i, "i64"), 4)
            there = f.index(order, f.zext(f.urem(x, f.add(i, 1)), "i64"), 4)
            first, second = f.load("i32", here), f.load("i32", there)
            f.store(second, here)
            f.store(first, there)
        return f.text()

    # ---- plain and phased

    def claiming_run(self) -> str:
        """One block memory; blocks are claimed in chunks and each runs to its end."""
        f = IRFunction("weft_run", "void", [("ptr", "worker")], linkage="", attributes=self.attributes)
        (worker,) = f.parameters
        launch = f.field(worker, abi.Worker, "launch")
        block = f.field(worker, abi.Worker, "blocks")
        self.place_block(f, launch, block)
        local_stride = self.local_stride(f, launch)
        chunk, total = f.field(launch, abi.Launch, "chunk"), f.field(launch, abi.Launch, "total_blocks")
        grid_x, grid_y = f.field(launch, abi.Launch, "grid_x"), f.field(launch, abi.Launch, "grid_y")
        block_order = f.field(launch, abi.Launch, "block_order")
        reordered = f.icmp("ne", block_order, 0)
        seed = f.field(launch, abi.Launch, "seed")
        order = self.order_array(f)
        zero = f.const("i32", 0)
        x, y, z = f.variable(zero), f.variable(zero), f.variable(zero)
        linear = f.variable(f.const("i64", 0))
        next_block = f.field_address(launch, abi.Launch, "next_block")
        with f.loop() as claims:
            first = f.atomicrmw("add", next_block, chunk, "monotonic")
            claims.break_if(f.icmp("sge", first, total))
            last = f.intrinsic("i64", "llvm.smin.i64", f.add(first, chunk), total)
            for variable, index in zip((x, y, z), self.decompose(f, launch, first)):
                f.set(variable, index)
            with f.for_range(first, last) as position:
                stop = f.field(launch, abi.Launch, "stop", order="monotonic")
                with f.if_(f.icmp("ne", stop, 0), unlikely=True):
                    f.ret()
                f.set(linear, position)
                with f.if_(reordered, unlikely=True):
                    f.set(linear, f.load("i64", f.index(block_order, position, 8)))
                    for variable, index in zip((x, y, z), self.decompose(f, launch, f.get(linear))):
                        f.set(variable, index)
                ctaid = (f.get(x), f.get(y), f.get(z))
                self.write_header(f, block, f.get(linear), ctaid)
                salt = f.trunc(position, "i32")
                if self.kind == "plain":
                    self.shuffle_when_seeded(f, seed, order, salt)
                    self._run_plain_block(f, worker, block, order, local_stride, ctaid)
                else:
                    self._run_phased_block(f, worker, block, order, local_stride, ctaid, seed, salt)
                self._step_ctaid(f, x, y, z, grid_x, grid_y)
            done = f.field_address(launch, abi.Launch, "blocks_done")
            f.atomicrmw("add", done, f.sub(last, first), "monotonic")
        return f.text()

    def _step_ctaid(self, f, x, y, z, grid_x, grid_y) -> None:
        f.set(x, f.add(f.get(x), 1))
        with f.if_(f.icmp("eq", f.get(x), grid_x)):
            f.set(x, 0)
            f.set(y, f.add(f.get(y), 1))
            with f.if_(f.icmp("eq", f.get(y), grid_y)):
                f.set(y, 0)
                f.set(z, f.add(f.get(z), 1))

    def _run_plain_block(self, f, worker, block, order, local_stride, ctaid) -> None:
        with f.for_range(f.const("i64", 0), self.warps) as i:
            w = f.load("i32", f.index(order, i, 4)) if self.warps > 1 else f.const("i32", 0)
            status, _ = self.call_warp(f, worker, block, w, f.const("i32", 0), local_stride, ctaid)
            with f.if_(f.icmp("eq", status, abi.WARP_STOP), unlikely=True):
                f.ret()

    def _run_phased_block(self, f, worker, block, order, local_stride, ctaid, seed, salt) -> None:
        self.clear_records(f, block)
        live = f.variable(f.const("i32", self.warps))
        with f.loop() as phases:
            self.shuffle_when_seeded(f, seed, order, f.add(salt, f.get(live)))
            with f.for_range(f.const("i64", 0), self.warps) as i:
                w = f.load("i32", f.index(order, i, 4)) if self.warps > 1 else f.const("i32", 0)
                record = self.record(f, block, w)
                with f.if_(f.icmp("ne", f.field(record, abi.WarpRecord, "status"), abi.RECORD_DONE)):
                    state = f.field(record, abi.WarpRecord, "state")
                    status, after = self.call_warp(f, worker, block, w, state, local_stride, ctaid)
                    f.set_field(record, abi.WarpRecord, "state", after)
                    with f.if_(f.icmp("ne", status, abi.WARP_BARRIER)):
                        with f.if_(f.icmp("eq", status, abi.WARP_STOP), unlikely=True):
                            f.ret()
                        f.set_field(record, abi.WarpRecord, "status", abi.RECORD_DONE)
                        f.set(live, f.sub(f.get(live), 1))
            for number in self.reductions:
                self.publish_reductions(f, self.barrier(f, block, constant("i32", number)))
            phases.break_if(f.icmp("eq", f.get(live), 0))
            # A phase may be short and the kernel's loop long: a launch that was stopped must not finish its block.
            stop = f.field(f.field(worker, abi.Worker, "launch"), abi.Launch, "stop", order="monotonic")
            with f.if_(f.icmp("ne", stop, 0), unlikely=True):
                f.ret()
        f.set_field(block, abi.BlockHeader, "live_warps", 0)

    # ---- ganged

    def ganged_run(self) -> str:
        """Claims as many blocks as run together, and runs all their warps in turns until every one has finished."""
        f = IRFunction("weft_run", "void", [("ptr", "worker")], linkage="", attributes=self.attributes)
        (worker,) = f.parameters
        launch = f.field(worker, abi.Worker, "launch")
        blocks = f.field(worker, abi.Worker, "blocks")
        stride = f.field(worker, abi.Worker, "block_stride")
        chunk = f.field(launch, abi.Launch, "chunk")
        size = f.intrinsic("i64", "llvm.smin.i64", chunk, f.field(worker, abi.Worker, "capacity"))
        total = f.field(launch, abi.Launch, "total_blocks")
        local_stride = self.local_stride(f, launch)
        seed = f.field(launch, abi.Launch, "seed")
        order = self.order_array(f)
        live, salt = f.variable(f.const("i64", 0)), f.variable(f.const("i32", 0))
        with f.loop() as claims:
            first = f.atomicrmw("add", f.field_address(launch, abi.Launch, "next_block"), size, "monotonic")
            claims.break_if(f.icmp("sge", first, total))
            count = f.sub(f.intrinsic("i64", "llvm.smin.i64", f.add(first, size), total), first)
            with f.for_range(f.const("i64", 0), count) as i:
                self._admit(f, launch, f.offset(blocks, f.mul(i, stride)), f.add(first, i))
            f.set(live, f.mul(count, self.warps))
            with f.loop() as rounds:
                rounds.break_if(f.icmp("eq", f.get(live), 0))
                stop = f.field(launch, abi.Launch, "stop", order="monotonic")
                with f.if_(f.icmp("ne", stop, 0), unlikely=True):
                    f.ret()
                f.set(salt, f.add(f.get(salt), 1))
                self.shuffle_when_seeded(f, seed, order, f.get(salt))
                with f.for_range(f.const("i64", 0), count) as i:
                    block = f.offset(blocks, f.mul(i, stride))
                    self._round(f, worker, block, order, local_stride, live)
            done = f.field_address(launch, abi.Launch, "blocks_done")
            f.atomicrmw("add", done, count, "monotonic")
        return f.text()

    def _admit(self, f, launch: Value, block: Value, position: Value) -> None:
        """Makes a block memory ready for the block at `position` of the launch order."""
        self.place_block(f, launch, block)
        linear = f.variable(position)
        block_order = f.field(launch, abi.Launch, "block_order")
        with f.if_(f.icmp("ne", block_order, 0), unlikely=True):
            f.set(linear, f.load("i64", f.index(block_order, position, 8)))
        self.write_header(f, block, f.get(linear), self.decompose(f, launch, f.get(linear)))
        self.clear_records(f, block)

    def _round(self, f, worker, block: Value, order: Value, local_stride: Value, live) -> None:
        """Every unfinished warp of one block once."""
        ctaid = tuple(f.field(block, abi.BlockHeader, f"ctaid_{axis}") for axis in "xyz")
        with f.for_range(f.const("i64", 0), self.warps) as i:
            w = f.load("i32", f.index(order, i, 4)) if self.warps > 1 else f.const("i32", 0)
            record = self.record(f, block, w)
            with f.if_(f.icmp("ne", f.field(record, abi.WarpRecord, "status"), abi.RECORD_DONE)):
                state = f.field(record, abi.WarpRecord, "state")
                status, after = self.call_warp(f, worker, block, w, state, local_stride, ctaid)
                f.set_field(record, abi.WarpRecord, "state", after)
                with f.if_(f.icmp("ne", status, abi.WARP_YIELD)):
                    with f.if_(f.icmp("eq", status, abi.WARP_STOP), unlikely=True):
                        f.ret()
                    f.set_field(record, abi.WarpRecord, "status", abi.RECORD_DONE)
                    f.set(live, f.sub(f.get(live), 1))
                    left = f.sub(f.field(block, abi.BlockHeader, "live_warps"), 1)
                    f.set_field(block, abi.BlockHeader, "live_warps", left)

    # ---- general

    def block_function(self) -> str:
        """`i32 weft_run_block(worker, launch, block, order)`: rounds over the warps of a resident block, as long as
        one moves and the budget lasts. Gives _BLOCK_*."""
        f = IRFunction(
            "weft_run_block",
            "i32",
            [("ptr", "worker"), ("ptr", "launch"), ("ptr", "block"), ("ptr", "order")],
            attributes=self.attributes + " noinline",
        )
        worker, launch, block, order = f.parameters
        ctaid = tuple(f.field(block, abi.BlockHeader, f"ctaid_{axis}") for axis in "xyz")
        local_stride = self.local_stride(f, launch)
        seed = f.field(launch, abi.Launch, "seed")
        salt = f.trunc(f.field(block, abi.BlockHeader, "linear"), "i32")
        no, yes = f.const("i1", 0), f.const("i1", 1)
        leader = self.cluster_leader(f, worker, block) if self.clusters else None
        live = f.variable(f.field(block, abi.BlockHeader, "live_warps"))
        moved, yielded = f.variable(no), f.variable(no)
        with f.for_range(f.const("i32", 0), ROUND_BUDGET) as round_:
            stop = f.field(launch, abi.Launch, "stop", order="monotonic")
            with f.if_(f.icmp("ne", stop, 0), unlikely=True):
                f.ret(f.const("i32", _BLOCK_STOPPED))
            f.set(moved, 0)
            f.set(yielded, 0)
            self.shuffle_when_seeded(f, seed, order, f.add(salt, round_))
            with f.for_range(f.const("i64", 0), self.warps) as i:
                w = f.load("i32", f.index(order, i, 4)) if self.warps > 1 else f.const("i32", 0)
                record = self.record(f, block, w)
                ready = f.variable(f.icmp("ne", f.field(record, abi.WarpRecord, "status"), abi.RECORD_DONE))
                with f.if_(f.icmp("eq", f.field(record, abi.WarpRecord, "status"), abi.WARP_BARRIER)):
                    f.set(ready, self._complete_barrier(f, block, record, f.get(live)))
                if leader is not None:
                    with f.if_(f.icmp("eq", f.field(record, abi.WarpRecord, "status"), abi.WARP_CLUSTER)):
                        f.set(ready, self._complete_cluster_barrier(f, leader, record))
                        f.set(yielded, f.or_(f.get(yielded), f.not_(f.get(ready))))
                with f.if_(f.get(ready)):
                    before = f.field(record, abi.WarpRecord, "state")
                    status, after = self.call_warp(f, worker, block, w, before, local_stride, ctaid)
                    with f.if_(f.icmp("eq", status, abi.WARP_STOP), unlikely=True):
                        f.ret(f.const("i32", _BLOCK_STOPPED))
                    f.set_field(record, abi.WarpRecord, "state", after)
                    with f.if_(f.icmp("eq", status, abi.WARP_DONE)):
                        f.set_field(record, abi.WarpRecord, "status", abi.RECORD_DONE)
                        f.set(live, f.sub(f.get(live), 1))
                        f.set_field(block, abi.BlockHeader, "live_warps", f.get(live))
                        if leader is not None:
                            self._leave_cluster(f, leader, record)
                        f.set(moved, yes)
                    with f.else_():
                        f.set_field(record, abi.WarpRecord, "status", status)
                        spins = f.icmp("eq", status, abi.WARP_YIELD)
                        f.set(yielded, f.or_(f.get(yielded), spins))
                        stays = f.and_(spins, f.icmp("eq", before, after))
                        f.set(moved, f.or_(f.get(moved), f.not_(stays)))
            with f.if_(f.icmp("eq", f.get(live), 0)):
                f.ret(f.const("i32", _BLOCK_FINISHED))
            with f.if_(f.not_(f.get(moved))):
                with f.if_(f.get(yielded)):
                    f.ret(f.const("i32", _BLOCK_WAITS))
                self._report_deadlock(f, worker, block)
                f.ret(f.const("i32", _BLOCK_STOPPED))
        f.ret(f.const("i32", _BLOCK_MOVES))
        return f.text()

    def _complete_barrier(self, f: IRFunction, block: Value, record: Value, live: Value) -> Value:
        """Whether the barrier at which the record's warp waits is complete; if so all that wait there may run."""
        number = f.field(record, abi.WarpRecord, "barrier")
        barrier = self.barrier(f, block, number)
        asked = f.field(record, abi.WarpRecord, "expected")
        expected = f.select(f.icmp("eq", asked, 0), f.shl(live, 5), asked)
        arrived = f.field(barrier, abi.Barrier, "arrived")
        complete = f.icmp("sge", arrived, expected)
        with f.if_(complete):
            f.set_field(barrier, abi.Barrier, "arrived", f.sub(arrived, expected))
            self.publish_reductions(f, barrier)
            with f.for_range(f.const("i32", 0), self.warps) as w:
                other = self.record(f, block, w)
                waits = f.icmp("eq", f.field(other, abi.WarpRecord, "status"), abi.WARP_BARRIER)
                here = f.icmp("eq", f.field(other, abi.WarpRecord, "barrier"), number)
                with f.if_(f.and_(waits, here)):
                    f.set_field(other, abi.WarpRecord, "status", abi.WARP_RUNNABLE)
        return complete

    def cluster_leader(self, f: IRFunction, worker: Value, block: Value) -> Value:
        """The memory of the first block of the block's cluster."""
        rank = f.zext(f.field(block, abi.BlockHeader, "cluster_rank"), "i64")
        stride = f.field(worker, abi.Worker, "block_stride")
        return f.offset(block, f.sub(f.const("i64", 0), f.mul(rank, stride)))

    def _complete_cluster_barrier(self, f: IRFunction, leader: Value, record: Value) -> Value:
        """Whether a warp that waits at its cluster's barrier may go on: the phase in which it arrived is over, or all
        warps of the cluster that have not finished have arrived, which ends it."""
        phase = f.field(leader, abi.BlockHeader, "cluster_phase")
        ready = f.variable(f.icmp("ne", f.field(record, abi.WarpRecord, "cluster_token"), f.add(phase, 1)))
        with f.if_(f.not_(f.get(ready))):
            arrived = f.field(leader, abi.BlockHeader, "cluster_arrived")
            with f.if_(f.icmp("sge", arrived, f.field(leader, abi.BlockHeader, "cluster_warps"))):
                f.set_field(leader, abi.BlockHeader, "cluster_phase", f.add(phase, 1))
                f.set_field(leader, abi.BlockHeader, "cluster_arrived", 0)
                f.set(ready, 1)
        with f.if_(f.get(ready)):
            f.set_field(record, abi.WarpRecord, "cluster_lanes", 0)
            f.set_field(record, abi.WarpRecord, "cluster_token", 0)
        return f.get(ready)

    def _leave_cluster(self, f: IRFunction, leader: Value, record: Value) -> None:
        """A warp has finished: the cluster's barrier does not wait for it any more."""
        left = f.sub(f.field(leader, abi.BlockHeader, "cluster_warps"), 1)
        f.set_field(leader, abi.BlockHeader, "cluster_warps", left)
        now = f.add(f.field(leader, abi.BlockHeader, "cluster_phase"), 1)
        with f.if_(f.icmp("eq", f.field(record, abi.WarpRecord, "cluster_token"), now)):
            arrived = f.sub(f.field(leader, abi.BlockHeader, "cluster_arrived"), 1)
            f.set_field(leader, abi.BlockHeader, "cluster_arrived", arrived)

    def _report_deadlock(self, f: IRFunction, worker: Value, block: Value) -> None:
        """Records the fault at the first warp of the block that has not finished."""
        with f.for_range(f.const("i32", 0), self.warps) as w:
            record = self.record(f, block, w)
            with f.if_(f.icmp("ne", f.field(record, abi.WarpRecord, "status"), abi.RECORD_DONE)):
                site = f.field(record, abi.WarpRecord, "site")
                kind = f.const("i32", int(abi.FaultKind.DEADLOCK))
                zero = f.const("i32", 0)
                f.call("void", "weft_fault", worker, block, w, kind, site, zero, f.const("i64", 0), zero)

    def _pause(self, f: IRFunction, sweep: Value) -> None:
        """Lets the other hardware thread, and now and then other threads of the system, run."""
        if self.target.is_x86:
            f.intrinsic("void", "llvm.x86.sse2.pause")
        elif self.target.triple.startswith(("aarch64", "arm64")):
            f.intrinsic("void", "llvm.aarch64.hint", f.const("i32", 1))
        if "windows" not in self.target.triple:
            with f.if_(f.icmp("eq", f.and_(sweep, 255), 255)):
                f.call("i32", "sched_yield")

    def general_run(self) -> str:
        """Sweeps over the resident blocks; makes more resident when those wait."""
        f = IRFunction("weft_run", "void", [("ptr", "worker")], linkage="", attributes=self.attributes)
        (worker,) = f.parameters
        launch = f.field(worker, abi.Worker, "launch")
        blocks = f.field(worker, abi.Worker, "blocks")
        stride = f.field(worker, abi.Worker, "block_stride")
        cooperative = f.icmp("ne", f.field(launch, abi.Launch, "cooperative"), 0)
        active = f.field_address(launch, abi.Launch, "active_workers")
        idle = f.field_address(launch, abi.Launch, "idle_workers")
        one, minus_one, none = f.const("i32", 1), f.const("i32", -1), f.const("i64", 0)
        order = self.order_array(f)
        # Memories [0, used) may be occupied. A worker that comes back with more memories left because all were.
        used = f.variable(f.field(worker, abi.Worker, "resident"))
        resident = f.variable(f.get(used))
        if self.clusters:  # of a cluster that is left, some blocks may have finished
            f.set(resident, none)
            with f.for_range(none, f.get(used)) as k:
                live = f.field(f.offset(blocks, f.mul(k, stride)), abi.BlockHeader, "live_warps")
                f.set(resident, f.add(f.get(resident), f.zext(f.icmp("ne", live, 0), "i64")))
        f.set_field(worker, abi.Worker, "need_blocks", 0)
        with f.if_(f.icmp("eq", f.get(used), 0)):
            f.atomicrmw("add", active, one, "seq_cst")
        exhausted = f.variable(f.const("i1", 0))
        moved, finished, start = (f.variable(f.const("i1", 0)) for _ in range(3))
        sweeps, visits, all_idle = f.variable(none), f.variable(none), f.variable(none)
        counted_idle = f.variable(f.const("i1", 0))
        with f.loop() as outer:
            f.set(moved, 0)
            f.set(finished, 0)
            with f.for_range(none, f.get(used)) as k:
                block = f.offset(blocks, f.mul(k, stride))
                with f.if_(f.icmp("ne", f.field(block, abi.BlockHeader, "live_warps"), 0)):
                    result = f.call("i32", "weft_run_block", worker, launch, block, order)
                    with f.if_(f.icmp("eq", result, _BLOCK_STOPPED), unlikely=True):
                        f.set_field(worker, abi.Worker, "resident", f.get(used))
                        f.ret()
                    with f.if_(f.icmp("eq", result, _BLOCK_FINISHED)):
                        f.atomicrmw("add", f.field_address(launch, abi.Launch, "blocks_done"), f.const("i64", 1),
                                    "seq_cst")  # fmt: skip
                        f.set(resident, f.sub(f.get(resident), 1))
                        f.set(finished, 1)
                        if self.clusters:
                            leader = self.cluster_leader(f, worker, block)
                            left = f.sub(f.field(leader, abi.BlockHeader, "cluster_blocks"), 1)
                            f.set_field(leader, abi.BlockHeader, "cluster_blocks", left)
                    f.set(moved, f.or_(f.get(moved), f.icmp("ne", result, _BLOCK_WAITS)))
            self._decide_start(f, worker, launch, blocks, cooperative, active, idle, resident, moved, finished, start,
                               sweeps, visits, all_idle, counted_idle, exhausted)  # fmt: skip
            with f.if_(f.and_(f.get(start), f.not_(f.get(exhausted)))):
                if self.clusters:
                    self._start_cluster(f, worker, launch, blocks, stride, used, resident, exhausted)
                else:
                    self._start_block(f, worker, launch, blocks, stride, used, resident, exhausted)
                f.set(visits, 0)
            outer.break_if(f.and_(f.get(exhausted), f.icmp("eq", f.get(resident), 0)))
        with f.if_(f.get(counted_idle)):
            f.atomicrmw("add", idle, minus_one, "seq_cst")
        f.atomicrmw("add", active, minus_one, "seq_cst")
        f.set_field(worker, abi.Worker, "resident", 0)
        return "declare i32 @sched_yield()\n" * ("windows" not in self.target.triple) + f.text()

    def _decide_start(self, f, worker, launch, blocks, cooperative, active, idle, resident, moved, finished, start,
                      sweeps, visits, all_idle, counted_idle, exhausted) -> None:  # fmt: skip
        """After a sweep: whether to make another block resident; keeps the books of idle workers."""
        alone = f.icmp("eq", f.get(resident), 0)
        f.set(visits, f.add(f.get(visits), f.get(resident)))
        with f.if_(f.get(moved)):
            f.set(sweeps, 0)
            f.set(all_idle, 0)
            with f.if_(f.get(counted_idle)):
                f.atomicrmw("add", idle, f.const("i32", -1), "seq_cst")
                f.set(counted_idle, 0)
            patience = f.add(f.mul(f.get(resident), VISITS_PER_RESIDENT), TURNS_BEFORE_NEW)
            f.set(start, f.icmp("uge", f.get(visits), patience))
        with f.else_():
            f.set(sweeps, f.add(f.get(sweeps), 1))
            patience = f.add(f.mul(f.get(resident), VISITS_PER_RESIDENT), VISITS_BEFORE_NEW)
            f.set(start, f.icmp("uge", f.get(visits), patience))
            with f.if_(f.get(exhausted)):
                self._pause(f, f.get(sweeps))
                with f.if_(f.icmp("sge", f.get(sweeps), self.spin_limit), unlikely=True):
                    self._count_idle(f, worker, launch, blocks, active, idle, all_idle, counted_idle)
        f.set(start, f.or_(f.get(start), f.or_(alone, f.or_(f.get(finished), cooperative))))

    def _count_idle(self, f, worker, launch, blocks, active, idle, all_idle, counted_idle) -> None:
        """This worker has waited for long: reports a deadlock when all workers have."""
        with f.if_(f.not_(f.get(counted_idle))):
            f.atomicrmw("add", idle, f.const("i32", 1), "seq_cst")
            f.set(counted_idle, 1)
        now_idle, now_active = f.load("i32", idle, order="seq_cst"), f.load("i32", active, order="seq_cst")
        f.set(all_idle, f.add(f.get(all_idle), 1))
        with f.if_(f.icmp("ne", now_idle, now_active)):
            f.set(all_idle, 0)
        with f.if_(f.icmp("sge", f.get(all_idle), ALL_IDLE_SWEEPS)):
            place = f.variable(f.const("i64", 0))
            stride = f.field(worker, abi.Worker, "block_stride")
            with f.loop() as search:
                block = f.offset(blocks, f.mul(f.get(place), stride))
                search.break_if(f.icmp("ne", f.field(block, abi.BlockHeader, "live_warps"), 0))
                f.set(place, f.add(f.get(place), 1))
            self._report_deadlock(f, worker, f.offset(blocks, f.mul(f.get(place), stride)))

    def _start_block(self, f, worker, launch, blocks, stride, used, resident, exhausted) -> None:
        """Claims the next block and lays it out in a free block memory; asks for more memories when none is free."""
        next_block = f.field_address(launch, abi.Launch, "next_block")
        total = f.field(launch, abi.Launch, "total_blocks")
        with f.if_(f.icmp("sge", f.load("i64", next_block, order="monotonic"), total)):
            f.set(exhausted, 1)
        with f.else_():
            place = f.variable(f.const("i64", 0))
            with f.loop() as search:
                search.break_if(f.icmp("sge", f.get(place), f.get(used)))
                header = f.offset(blocks, f.mul(f.get(place), stride))
                search.break_if(f.icmp("eq", f.field(header, abi.BlockHeader, "live_warps"), 0))
                f.set(place, f.add(f.get(place), 1))
            with f.if_(f.icmp("sge", f.get(place), f.field(worker, abi.Worker, "capacity"))):
                f.set_field(worker, abi.Worker, "need_blocks", 1)
                f.set_field(worker, abi.Worker, "resident", f.get(used))
                f.ret()
            position = f.atomicrmw("add", next_block, f.const("i64", 1), "monotonic")
            with f.if_(f.icmp("sge", position, total)):
                f.set(exhausted, 1)
            with f.else_():
                linear = f.variable(position)
                block_order = f.field(launch, abi.Launch, "block_order")
                with f.if_(f.icmp("ne", block_order, 0), unlikely=True):
                    f.set(linear, f.load("i64", f.index(block_order, position, 8)))
                block = f.offset(blocks, f.mul(f.get(place), stride))
                self.place_block(f, launch, block)
                self.write_header(f, block, f.get(linear), self.decompose(f, launch, f.get(linear)))
                self.clear_records(f, block)
                self.set_first_lanes(f, block)
                f.set(resident, f.add(f.get(resident), 1))
                above = f.add(f.get(place), 1)
                f.set(used, f.intrinsic("i64", "llvm.smax.i64", f.get(used), above))

    def _start_cluster(self, f, worker, launch, blocks, stride, used, resident, exhausted) -> None:
        """The same for all blocks of the next cluster. Launch.block_order is an order of clusters here."""
        next_block = f.field_address(launch, abi.Launch, "next_block")
        total = f.field(launch, abi.Launch, "total_blocks")
        shape = [f.zext(f.field(launch, abi.Launch, f"cluster_{axis}"), "i64") for axis in "xyz"]
        size = f.mul(f.mul(shape[0], shape[1]), shape[2])
        with f.if_(f.icmp("sge", f.load("i64", next_block, order="monotonic"), total)):
            f.set(exhausted, 1)
        with f.else_():
            place = f.variable(f.const("i64", 0))
            with f.loop() as search:
                search.break_if(f.icmp("sge", f.get(place), f.get(used)))
                header = f.offset(blocks, f.mul(f.get(place), stride))
                search.break_if(f.icmp("eq", f.field(header, abi.BlockHeader, "cluster_blocks"), 0))
                f.set(place, f.add(f.get(place), size))
            above = f.add(f.get(place), size)
            with f.if_(f.icmp("sgt", above, f.field(worker, abi.Worker, "capacity"))):
                f.set_field(worker, abi.Worker, "need_blocks", 1)
                f.set_field(worker, abi.Worker, "resident", f.get(used))
                f.ret()
            position = f.atomicrmw("add", next_block, size, "monotonic")
            with f.if_(f.icmp("sge", position, total)):
                f.set(exhausted, 1)
            with f.else_():
                leader = f.offset(blocks, f.mul(f.get(place), stride))
                self._admit_cluster(f, launch, leader, stride, f.udiv(position, size), shape, size)
                f.set(resident, f.add(f.get(resident), size))
                f.set(used, f.intrinsic("i64", "llvm.smax.i64", f.get(used), above))

    def _admit_cluster(self, f, launch, leader: Value, stride: Value, position: Value, shape, size: Value) -> None:
        """Lays out the blocks of the cluster at `position` of the launch order, side by side."""
        cluster = f.variable(position)
        block_order = f.field(launch, abi.Launch, "block_order")
        with f.if_(f.icmp("ne", block_order, 0), unlikely=True):
            f.set(cluster, f.load("i64", f.index(block_order, position, 8)))
        grid = [f.zext(f.field(launch, abi.Launch, f"grid_{axis}"), "i64") for axis in "xyz"]
        clusters_x, clusters_y = f.udiv(grid[0], shape[0]), f.udiv(grid[1], shape[1])
        row = f.udiv(f.get(cluster), clusters_x)
        first = [
            f.mul(f.urem(f.get(cluster), clusters_x), shape[0]),
            f.mul(f.urem(row, clusters_y), shape[1]),
            f.mul(f.udiv(row, clusters_y), shape[2]),
        ]
        with f.for_range(f.const("i64", 0), size) as rank:
            block = f.offset(leader, f.mul(rank, stride))
            line = f.udiv(rank, shape[0])
            x = f.add(first[0], f.urem(rank, shape[0]))
            y = f.add(first[1], f.urem(line, shape[1]))
            z = f.add(first[2], f.udiv(line, shape[1]))
            linear = f.add(x, f.mul(grid[0], f.add(y, f.mul(grid[1], z))))
            self.place_block(f, launch, block)
            self.write_header(f, block, linear, tuple(f.trunc(i, "i32") for i in (x, y, z)))
            f.set_field(block, abi.BlockHeader, "cluster_rank", f.trunc(rank, "i32"))
            f.set_field(block, abi.BlockHeader, "cluster_size", f.trunc(size, "i32"))
            self.clear_records(f, block)
            self.set_first_lanes(f, block)
        blocks = f.trunc(size, "i32")
        f.set_field(leader, abi.BlockHeader, "cluster_blocks", blocks)
        f.set_field(leader, abi.BlockHeader, "cluster_warps", f.mul(blocks, self.warps))
        f.set_field(leader, abi.BlockHeader, "cluster_arrived", 0)
        f.set_field(leader, abi.BlockHeader, "cluster_phase", 0)
