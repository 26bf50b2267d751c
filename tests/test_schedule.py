"""Schedulers with tiny hand-written @warp functions: claiming, order, barriers, suspension, deadlocks."""

import ctypes
import threading
import time

import numpy as np
import pytest

from weft.codegen import abi
from weft.codegen.irtext import IRFunction, constant
from weft.codegen.jit import Target, function_attributes, link_object, optimise_and_emit
from weft.codegen.schedule import scheduler_ir, scheduler_needs
from weft.codegen.support import support_functions

TARGET = Target.host()
BARRIER, YIELD, DONE = abi.WARP_BARRIER, abi.WARP_YIELD, abi.WARP_DONE


class WarpCode:
    """Writes `@warp` as a chain of `if state == n` parts; `buffer` is Launch.params, an array of i64."""

    def __init__(self):
        words = [("ptr", name) for name in ("worker", "block", "frame", "shared", "local")]
        numbers = [("i32", name) for name in ("w", "state", "x", "y", "z")]
        self.f = IRFunction("warp", "i32", words + numbers, attributes=function_attributes(TARGET))
        (self.worker, self.block, self.frame, self.shared, self.local,
         self.w, self.state, self.x, self.y, self.z) = self.f.parameters  # fmt: skip
        launch = self.f.field(self.worker, abi.Worker, "launch")
        self.launch = launch
        self.buffer = self.f.field(launch, abi.Launch, "params")
        self.linear = self.f.field(self.block, abi.BlockHeader, "linear")

    def in_state(self, number: int):
        return self.f.if_(self.f.icmp("eq", self.state, number))

    def cell(self, index):
        return self.f.index(self.buffer, index if not isinstance(index, int) else constant("i64", index), 8)

    def record(self):
        warps_at = ctypes.sizeof(abi.BlockHeader)
        return self.f.index(self.f.offset(self.block, warps_at), self.f.zext(self.w, "i64"), 32)

    def barrier_at(self, number: int, warps: int):
        return self.f.offset(self.block, abi.block_layout(warps, 64, 0, 0)["barriers"] + 64 * number)

    def arrive(self, number: int, warps: int):
        f = self.f
        barrier = self.barrier_at(number, warps)
        f.set_field(barrier, abi.Barrier, "arrived", f.add(f.field(barrier, abi.Barrier, "arrived"), 32))

    def wait(self, number: int, warps: int, next_state: int, expected: int = 0, site: int = 0):
        """Arrives at a barrier and suspends."""
        f = self.f
        record = self.record()
        self.arrive(number, warps)
        f.set_field(record, abi.WarpRecord, "barrier", number)
        f.set_field(record, abi.WarpRecord, "expected", expected)
        f.set_field(record, abi.WarpRecord, "site", site)
        self.leave(BARRIER, next_state)

    def leave(self, status: int, next_state: int = 0):
        self.f.ret(constant("i32", status | next_state << 8))

    def add(self, index, amount=1):
        value = constant("i64", amount) if isinstance(amount, int) else amount
        self.f.atomicrmw("add", self.cell(index), value, "seq_cst")


class Machine:
    """Launch, workers and block memories around a linked scheduler."""

    def __init__(self, kind, warps, warp: WarpCode, **options):
        text = scheduler_ir(kind, warps, 64, TARGET, **options) + support_functions(scheduler_needs(kind), TARGET)
        code, self.timings = optimise_and_emit(text + warp.f.text(), TARGET, verify=True)
        address, self.handle = link_object(code)
        self.run_worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self.layout = abi.block_layout(warps, 64, 256, 8)

    def launch(self, grid, *, workers=1, chunk=1, capacity=1, cells=4096, grow=0, seconds=20.0, **fields):
        """Runs a grid; gives the cells afterwards. grow: block memories added whenever a worker asks."""
        self.cells = np.zeros(cells, np.int64)
        shape = (*grid, 1, 1)[:3]
        launch = self.state = abi.Launch(
            total_blocks=shape[0] * shape[1] * shape[2], chunk=chunk, grid_x=shape[0], grid_y=shape[1],
            grid_z=shape[2], params=self.cells.ctypes.data, shared_bytes=256, local_bytes=8, **fields,
        )  # fmt: skip
        stride = self.layout["stride"]
        memory = self.memory = np.full((workers, 2048 * stride + 64), 0xAB, np.uint8)  # dirty on purpose
        self.workers = []
        self.requests = 0

        def work(worker):
            while True:
                self.run_worker(ctypes.addressof(worker))
                if not worker.need_blocks or launch.stop:
                    return
                self.requests += 1
                worker.capacity += grow

        threads = []
        for index in range(workers):
            start = memory[index].ctypes.data
            worker = abi.Worker(launch=ctypes.addressof(launch), blocks=start + -start % 64, block_stride=stride,
                                capacity=capacity, index=index)  # fmt: skip
            self.workers.append(worker)
            threads.append(threading.Thread(target=work, args=(worker,)))
        watchdog = threading.Timer(seconds, lambda: setattr(launch, "stop", 1))
        watchdog.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        watchdog.cancel()
        return self.cells


def coordinates_warp(warps: int) -> WarpCode:
    """Adds 1 to cell linear * warps + w; writes ctaid and the pointers' offsets to the cells from 2048."""
    code = WarpCode()
    f = code.f
    place = f.add(f.mul(code.linear, warps), f.zext(code.w, "i64"))
    code.add(place)
    packed = f.or_(f.or_(code.x, f.shl(code.y, 8)), f.shl(code.z, 16))
    f.store(f.zext(packed, "i64"), code.cell(f.add(code.linear, 2048)))
    for number, pointer in enumerate((code.frame, code.shared, code.local)):
        offset = f.sub(f.convert("ptrtoint", pointer, "i64"), f.convert("ptrtoint", code.block, "i64"))
        f.store(offset, code.cell(f.add(f.zext(code.w, "i64"), 3000 + 100 * number)))
    code.leave(DONE)
    return code


@pytest.mark.parametrize("kind", ["plain", "phased", "general"])
@pytest.mark.parametrize("warps", [1, 3])
@pytest.mark.parametrize("workers, chunk, seed", [(1, 1, 0), (2, 7, 0), (1, 1000, 5)])
def test_every_block_once(kind, warps, workers, chunk, seed):
    machine = Machine(kind, warps, coordinates_warp(warps))
    cells = machine.launch((5, 4, 3), workers=workers, chunk=chunk, seed=seed)
    assert (cells[: 60 * warps] == 1).all() and not cells[60 * warps : 2048].any()
    expected = [x | y << 8 | z << 16 for z in range(3) for y in range(4) for x in range(5)]
    assert cells[2048:2108].tolist() == expected
    assert machine.state.blocks_done == 60
    for w in range(warps):
        assert cells[3000 + w] == machine.layout["frames"] + 64 * w
        assert cells[3100 + w] == machine.layout["shared"]
        assert cells[3200 + w] == machine.layout["local"] + 32 * 8 * w
    order = np.random.default_rng(1).permutation(60).astype(np.int64)
    cells = machine.launch((5, 4, 3), workers=workers, chunk=chunk, seed=seed, block_order=order.ctypes.data)
    assert (cells[: 60 * warps] == 1).all() and cells[2048:2108].tolist() == expected


@pytest.mark.parametrize("kind", ["plain", "phased", "general"])
def test_seed_shuffles_warps(kind):
    """Each warp takes a ticket; without a seed warp w takes ticket w."""
    code = WarpCode()
    f = code.f
    ticket = f.atomicrmw("add", code.cell(1000), constant("i64", 1), "seq_cst")
    f.store(f.zext(code.w, "i64"), code.cell(ticket))
    code.leave(DONE)
    machine = Machine(kind, 8, code)
    assert machine.launch((1,))[:8].tolist() == list(range(8))
    orders = {tuple(machine.launch((1,), seed=seed)[:8]) for seed in range(1, 20)}
    assert len(orders) > 12 and all(sorted(order) == list(range(8)) for order in orders)


@pytest.mark.parametrize("kind", ["plain", "phased", "general"])
def test_stop_ends_the_launch(kind):
    code = WarpCode()
    f = code.f
    code.add(0)
    with f.if_(f.icmp("eq", code.linear, 10)):
        f.set_field(code.launch, abi.Launch, "stop", 1, order="seq_cst")
        code.leave(abi.WARP_STOP)
    code.leave(DONE)
    machine = Machine(kind, 2, code)
    assert machine.launch((100,), chunk=4)[0] == 21


@pytest.mark.parametrize("kind", ["phased", "general"])
def test_phases(kind):
    """A warp may pass barrier n only when all warps, including those that have finished, passed barrier n - 1."""
    warps, phases = 5, 20
    code = WarpCode()
    f = code.f
    counter = code.cell(code.linear)
    seen = f.load("i64", counter)
    last = f.sub(phases, f.zext(code.w, "i64"))  # warp w leaves w phases early
    state = f.zext(code.state, "i64")
    # Work of phase n is complete when the counter is at least the sum of what all warps add before it.
    lowest = f.variable(constant("i64", 0))
    for w in range(warps):
        f.set(lowest, f.add(f.get(lowest), f.intrinsic("i64", "llvm.smin.i64", state, constant("i64", phases - w))))
    with f.if_(f.icmp("slt", seen, f.get(lowest))):
        code.add(2000)
    with f.if_(f.icmp("eq", state, last)):
        code.leave(DONE)
    code.add(code.linear)
    record = code.record()
    f.set_field(record, abi.WarpRecord, "barrier", 0)
    f.set_field(record, abi.WarpRecord, "expected", 0)
    code.arrive(0, warps)
    f.ret(f.or_(constant("i32", BARRIER), f.shl(f.add(code.state, 1), 8)))
    for seed in (0, 9):
        cells = Machine(kind, warps, code).launch((100,), workers=2, seed=seed)
        assert cells[2000] == 0
        assert (cells[:100] == sum(phases - w for w in range(warps))).all()


@pytest.mark.parametrize("kind", ["phased", "general"])
def test_reductions(kind):
    """Warp w votes with w lanes; all read the total of the phase before."""
    warps = 4
    code = WarpCode()
    f = code.f
    barrier = code.barrier_at(0, warps)
    with code.in_state(2):
        code.add(1, f.zext(f.field(barrier, abi.Barrier, "result_popc"), "i64"))
        code.leave(DONE)
    with code.in_state(1):
        code.add(0, f.zext(f.field(barrier, abi.Barrier, "result_popc"), "i64"))
        total = f.add(f.field(barrier, abi.Barrier, "sum_popc"), 10)
        f.set_field(barrier, abi.Barrier, "sum_popc", total)
        code.wait(0, warps, 2)
    f.set_field(barrier, abi.Barrier, "sum_popc", f.add(f.field(barrier, abi.Barrier, "sum_popc"), code.w))
    code.wait(0, warps, 1)
    options = {"reductions": (0,)} if kind == "phased" else {}
    cells = Machine(kind, warps, code, **options).launch((3,))
    assert cells[0] == 3 * 4 * 6 and cells[1] == 3 * 4 * 40


def test_named_barriers_producer_and_consumer():
    """Warp 0 fills and arrives at barrier 1 (64 threads) without waiting, then waits at barrier 2; warp 1 waits at
    1, reads, arrives at 2. Ten items pass through one cell; warp 2 takes no part."""
    warps = 3
    code = WarpCode()
    f = code.f
    with f.if_(f.icmp("eq", code.w, 2)):
        code.leave(DONE)
    item = f.load("i64", code.frame)
    with f.if_(f.icmp("eq", code.w, 0)):
        with code.in_state(0):
            f.store(constant("i64", 0), code.frame)
        count = f.load("i64", code.frame)
        with f.if_(f.icmp("eq", count, 10)):
            code.leave(DONE)
        f.store(f.add(count, 1), code.frame)
        f.store(f.add(f.mul(count, 3), 1), code.shared)
        code.arrive(1, warps)
        code.wait(2, warps, 1, expected=64)
    with code.in_state(0):
        f.store(constant("i64", 0), code.frame)
        code.wait(1, warps, 1, expected=64)
    code.add(0, f.load("i64", code.shared))
    f.store(f.add(item, 1), code.frame)
    code.arrive(2, warps)
    with f.if_(f.icmp("eq", item, 9)):
        code.leave(DONE)
    code.wait(1, warps, 1, expected=64)
    machine = Machine("general", warps, code)
    for seed in (0, 3):
        cells = machine.launch((6,), workers=2, seed=seed)
        assert machine.state.stop == 0
        assert cells[0] == 6 * sum(3 * i + 1 for i in range(10))


def test_block_waits_for_a_later_block():
    """Block i waits until block i + 1 has set its flag: all must be resident on the one worker."""
    code = WarpCode()
    f = code.f
    with f.if_(f.icmp("ne", code.linear, 39)):
        flag = f.load("i64", code.cell(f.add(code.linear, 1)), order="acquire")
        with f.if_(f.icmp("eq", flag, 0)):
            code.leave(YIELD)
    f.store(constant("i64", 1), code.cell(code.linear), order="release")
    code.leave(DONE)
    machine = Machine("general", 1, code)
    for cooperative in (0, 1):
        cells = machine.launch((40,), cooperative=cooperative, capacity=1, grow=4)
        assert machine.state.stop == 0 and (cells[:40] == 1).all()
        assert machine.requests == 10 and machine.state.blocks_done == 40


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_grid_barrier(workers):
    """All blocks meet at a counter, twice, with two warps each."""
    warps, blocks = 2, 30
    code = WarpCode()
    f = code.f
    for phase in range(2):
        with code.in_state(2 * phase):
            code.add(phase)
            code.leave(YIELD, 2 * phase + 1)
        with code.in_state(2 * phase + 1):
            arrived = f.load("i64", code.cell(phase), order="acquire")
            with f.if_(f.icmp("slt", arrived, blocks * warps)):
                code.leave(YIELD, 2 * phase + 1)
            with f.if_(f.icmp("ne", f.const("i32", phase), 1)):
                code.leave(YIELD, 2 * phase + 2)
    code.add(10)
    code.leave(DONE)
    machine = Machine("general", warps, code)
    for cooperative in (0, 1):
        cells = machine.launch((blocks,), workers=workers, cooperative=cooperative, capacity=3, grow=3)
        assert machine.state.stop == 0 and cells[10] == blocks * warps and machine.state.blocks_done == blocks
        assert machine.state.active_workers == 0 and machine.state.idle_workers == 0


def test_look_back_needs_no_extra_blocks():
    """Block i waits for block i - 1, as a decoupled look-back scan does: one resident block is enough."""
    code = WarpCode()
    f = code.f
    with f.if_(f.icmp("ne", code.linear, 0)):
        before = f.load("i64", code.cell(f.sub(code.linear, 1)), order="acquire")
        with f.if_(f.icmp("eq", before, 0)):
            code.leave(YIELD)
        f.store(f.add(before, 1), code.cell(code.linear), order="release")
        code.leave(DONE)
    f.store(constant("i64", 1), code.cell(0), order="release")
    code.leave(DONE)
    machine = Machine("general", 1, code)
    assert machine.launch((500,))[:500].tolist() == list(range(1, 501)) and machine.requests == 0
    assert machine.launch((500,), workers=2, grow=8)[:500].tolist() == list(range(1, 501))


def test_block_that_loops_over_barriers_while_it_waits():
    """Block 0 passes barrier after barrier until block 1 has run; there is one worker."""
    code = WarpCode()
    f = code.f
    with f.if_(f.icmp("eq", code.linear, 1)):
        f.store(constant("i64", 1), code.cell(0), order="release")
        code.leave(DONE)
    with f.if_(f.icmp("eq", f.load("i64", code.cell(0), order="acquire"), 0)):
        code.wait(0, 2, 1)
    code.leave(DONE)
    machine = Machine("general", 2, code)
    machine.launch((2,), capacity=2)
    assert machine.state.stop == 0 and machine.state.blocks_done == 2


def test_deadlock_at_barriers():
    """Warp 0 waits at barrier 1 and warp 1 at barrier 2 for both warps; other blocks are fine."""
    code = WarpCode()
    f = code.f
    with f.if_(f.icmp("ne", code.linear, 3)):
        code.leave(DONE)
    with f.if_(f.icmp("eq", code.w, 0)):
        code.wait(1, 2, 1, site=41)
    code.wait(2, 2, 1, site=42)
    machine = Machine("general", 2, code)
    started = time.perf_counter()
    machine.launch((8,))
    assert time.perf_counter() - started < 5
    fault = machine.state.fault
    assert (fault.kind, fault.block, fault.warp, fault.site) == (abi.FaultKind.DEADLOCK, 3, 0, 41)
    assert machine.workers[0].resident == 1
    start = machine.workers[0].blocks
    assert abi.BlockHeader.from_address(start).live_warps == 2
    sites = [abi.WarpRecord.from_address(start + 64 + 32 * w).site for w in range(2)]
    assert sites == [41, 42]


@pytest.mark.parametrize("workers", [1, 2])
def test_deadlock_of_spinning_blocks(workers):
    """All blocks wait for a flag that nobody sets."""
    code = WarpCode()
    f = code.f
    f.set_field(code.record(), abi.WarpRecord, "site", 9)
    with f.if_(f.icmp("eq", f.load("i64", code.cell(0), order="acquire"), 0)):
        code.leave(YIELD)
    code.leave(DONE)
    machine = Machine("general", 1, code, spin_limit=5000)
    machine.launch((6,), workers=workers, capacity=8)
    assert machine.state.fault.kind == abi.FaultKind.DEADLOCK and machine.state.fault.site == 9


def test_waiting_for_a_worker_that_works_is_no_deadlock():
    """Block 1 spins far beyond the limit while block 0, on the other worker, computes."""
    code = WarpCode()
    f = code.f
    with f.if_(f.icmp("eq", code.linear, 0)):
        code.add(1)
        spins = f.variable(constant("i64", 0))
        with f.loop() as loop:
            loop.break_if(f.icmp("sgt", f.get(spins), 100_000_000))
            f.set(spins, f.add(f.get(spins), f.add(f.load("i64", code.cell(500), order="seq_cst"), 1)))
        f.store(constant("i64", 1), code.cell(0), order="release")
        code.leave(DONE)
    with f.if_(f.icmp("eq", f.load("i64", code.cell(0), order="acquire"), 0)):
        code.leave(YIELD)
    code.leave(DONE)
    machine = Machine("general", 1, code, spin_limit=100)
    machine.launch((2,), workers=2, capacity=2)
    assert machine.state.stop == 0 and machine.state.blocks_done == 2
