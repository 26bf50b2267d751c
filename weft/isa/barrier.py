"""Barriers, fences, mbarrier objects and asynchronous copies.

bar and barrier suspend a warp: the lowering and the interpreter treat them by their opcode.

An mbarrier object is the 64-bit word that mbarrier.init writes. Ours holds, from bit 0: pending arrivals (20 bits), the
expected count (20 bits), transaction bytes still to come (23 bits, two's complement), and the phase (bit 63). A phase
completes when pending arrivals and bytes are both zero: the phase bit flips and pending is the expected count again. A
state token is the word as it was before the arrival. cp.async completes at once, which every program that waits as it
must can not tell from later. Sections: PTX ISA, "Parallel Synchronization and Communication Instructions".
"""

from __future__ import annotations

from weft.isa.instruction import instruction
from weft.isa.memory import PREFETCH_SIZES, SCOPES
from weft.isa.operands import Discard, Negated, Register
from weft.types import TYPES

CTA = ("shared", "shared::cta")


# ---------------------------------------------------------------- bar, barrier
_BARRIER = {"pipe": "adu", "effects": ("barrier",)}


@instruction("bar{.cta}.sync a{, b}", operands={"a": "u32", "b": "u32"}, section="9.7.13.1", **_BARRIER)
@instruction("barrier{.cta}.sync{.aligned} a{, b}", operands={"a": "u32", "b": "u32"}, ptx="6.0", sm=30,
             section="9.7.13.1", **_BARRIER)  # fmt: skip
class BarrierSync:
    """Wait until all threads (or b of them) have arrived at barrier a."""


@instruction("bar{.cta}.arrive a, b", operands={"a": "u32", "b": "u32"}, section="9.7.13.1", **_BARRIER)
@instruction("barrier{.cta}.arrive{.aligned} a, b", operands={"a": "u32", "b": "u32"}, ptx="6.0", sm=30,
             section="9.7.13.1", **_BARRIER)  # fmt: skip
class BarrierArrive:
    """Count towards barrier a and go on."""


@instruction("bar{.cta}.red.popc.u32 d, a, c", operands={"a": "u32", "c": "pred"}, ptx="2.0", sm=20,
             section="9.7.13.1", **_BARRIER)  # fmt: skip
@instruction("barrier{.cta}.red.popc{.aligned}.u32 d, a, c", operands={"a": "u32", "c": "pred"}, ptx="6.0", sm=30,
             section="9.7.13.1", **_BARRIER)  # fmt: skip
@instruction("bar{.cta}.red.popc.u32 d, a, b, c", operands={"a": "u32", "b": "u32", "c": "pred"}, ptx="2.0", sm=20,
             section="9.7.13.1", **_BARRIER)  # fmt: skip
@instruction("barrier{.cta}.red.popc{.aligned}.u32 d, a, b, c", operands={"a": "u32", "b": "u32", "c": "pred"},
             ptx="6.0", sm=30, section="9.7.13.1", **_BARRIER)  # fmt: skip
class BarrierPopc:
    """Wait, and count the threads whose predicate holds."""


@instruction("bar{.cta}.red.op.pred p, a, c", op=("and", "or"), operands={"a": "u32", "c": "pred"}, ptx="2.0",
             sm=20, section="9.7.13.1", **_BARRIER)  # fmt: skip
@instruction("barrier{.cta}.red.op{.aligned}.pred p, a, c", op=("and", "or"), operands={"a": "u32", "c": "pred"},
             ptx="6.0", sm=30, section="9.7.13.1", **_BARRIER)  # fmt: skip
@instruction("bar{.cta}.red.op.pred p, a, b, c", op=("and", "or"), operands={"a": "u32", "b": "u32", "c": "pred"},
             ptx="2.0", sm=20, section="9.7.13.1", **_BARRIER)  # fmt: skip
@instruction("barrier{.cta}.red.op{.aligned}.pred p, a, b, c", op=("and", "or"),
             operands={"a": "u32", "b": "u32", "c": "pred"}, ptx="6.0", sm=30, section="9.7.13.1",
             **_BARRIER)  # fmt: skip
class BarrierVote:
    """Wait, and combine the threads' predicates."""


@instruction("bar.warp.sync a", operands={"a": "b32"}, ptx="6.0", sm=30, section="9.7.13.2", **_BARRIER)
class WarpSync:
    """The lanes of a warp meet."""


# ---------------------------------------------------------------- fences
class _Fence:
    @staticmethod
    def reference(t, m, ins):
        return None

    @staticmethod
    def emit(b, m, ins):
        b.fence()


_FENCE = {"raw": True, "pipe": "lsu", "effects": ("memory",), "section": "9.7.13.4"}


@instruction("membar.level", level=("cta", "gl", "sys"), **_FENCE)
@instruction("fence{.sem}.scope", sem=("sc", "acq_rel", "acquire", "release"), scope=SCOPES, ptx="6.0", sm=70, **_FENCE)
@instruction("fence.mbarrier_init.release.cluster", ptx="8.0", sm=90, **_FENCE)
@instruction("fence.proxy.kind{.space}", kind=("alias", "async"),
             space=("global", "shared::cta", "shared::cluster"), ptx="7.5", sm=70, **_FENCE)  # fmt: skip
@instruction("membar.proxy.kind{.space}", kind=("alias", "async"),
             space=("global", "shared::cta", "shared::cluster"), ptx="7.5", sm=70, **_FENCE)  # fmt: skip
@instruction("fence.acquire.sync_restrict::shared::cluster.cluster", ptx="8.6", sm=90, **_FENCE)
@instruction("fence.release.sync_restrict::shared::cta.cluster", ptx="8.6", sm=90, **_FENCE)
@instruction("fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster", ptx="8.6", sm=90, **_FENCE)
@instruction("fence.proxy.async::generic.release.sync_restrict::shared::cta.cluster", ptx="8.6", sm=90, **_FENCE)
class Fence(_Fence):
    """Order this thread's memory accesses: always as strong as the strongest form."""


@instruction("fence.proxy.tensormap::generic.release.scope", scope=SCOPES, ptx="8.3", sm=90, **_FENCE)
@instruction("fence.proxy.tensormap::generic.acquire.scope [a], b", scope=SCOPES, operands={"b": "b32"}, ptx="8.3",
             sm=90, **_FENCE)  # fmt: skip
class FenceTensorMap(_Fence):
    """There is one proxy here, so a fence is all that is needed."""


# ---------------------------------------------------------------- mbarrier
PENDING_BITS = 20
COUNT_MASK = (1 << PENDING_BITS) - 1
EXPECTED_SHIFT = 20
TX_SHIFT = 40
TX_BITS = 23
TX_MASK = (1 << TX_BITS) - 1
PHASE_SHIFT = 63


def _settled(word: int) -> int:
    """The word after a change: a completed phase gives way to the next."""
    if word & COUNT_MASK or word >> TX_SHIFT & TX_MASK:
        return word
    expected = word >> EXPECTED_SHIFT & COUNT_MASK
    return (word ^ 1 << PHASE_SHIFT) | expected


def _changed(word: int, arrivals: int = 0, dropped: int = 0, bytes_: int = 0) -> int:
    pending = (word & COUNT_MASK) - arrivals & COUNT_MASK
    expected = (word >> EXPECTED_SHIFT & COUNT_MASK) - dropped & COUNT_MASK
    tx = (word >> TX_SHIFT & TX_MASK) + bytes_ & TX_MASK
    return _settled(pending | expected << EXPECTED_SHIFT | tx << TX_SHIFT | word >> PHASE_SHIFT << PHASE_SHIFT)


def _emit_changed(b, word, arrivals=None, dropped=None, bytes_=None):
    """_changed on builder Values."""
    c = b.const
    count_mask = c(COUNT_MASK, 64)
    pending = b.and_(word, count_mask)
    expected = b.and_(b.lshr(word, c(EXPECTED_SHIFT, 32)), count_mask)
    tx = b.and_(b.lshr(word, c(TX_SHIFT, 32)), c(TX_MASK, 64))
    if arrivals is not None:
        pending = b.and_(b.sub(pending, arrivals), count_mask)
    if dropped is not None:
        expected = b.and_(b.sub(expected, dropped), count_mask)
    if bytes_ is not None:
        tx = b.and_(b.add(tx, bytes_), c(TX_MASK, 64))
    phase = b.and_(word, c(1 << PHASE_SHIFT, 64))
    done = b.icmp("eq", b.or_(pending, tx), c(0, 64))
    pending = b.select(done, expected, pending)
    phase = b.select(done, b.xor(phase, c(1 << PHASE_SHIFT, 64)), phase)
    low = b.or_(pending, b.shl(expected, c(EXPECTED_SHIFT, 32)))
    return b.or_(b.or_(low, b.shl(tx, c(TX_SHIFT, 32))), phase)


_MBARRIER = {"raw": True, "pipe": "lsu", "ptx": "7.0", "sm": 80, "section": "9.7.13.15"}


@instruction("mbarrier.init{.space}.b64 [a], b", space=CTA, operands={"b": "u32"}, effects=("memory",), **_MBARRIER)
class MbarrierInit:
    """Phase 0, b arrivals expected."""

    @staticmethod
    def reference(t, m, ins):
        count = t.read(ins.operands[1], m.operand_type("b")) & COUNT_MASK
        t.store(_space(m), t.address(ins.operands[0]), 8, count | count << EXPECTED_SHIFT)

    @staticmethod
    def emit(b, m, ins):
        count = b.and_(b.zext(b.read(ins.operands[1], 32), 64), b.const(COUNT_MASK, 64))
        word = b.or_(count, b.shl(count, b.const(EXPECTED_SHIFT, 32)))
        b.store(_space(m), b.address(ins.operands[0], _space(m)), [word])


@instruction("mbarrier.inval{.space}.b64 [a]", space=CTA, effects=("memory",), **_MBARRIER)
class MbarrierInval:
    """The memory may be used for something else."""

    @staticmethod
    def reference(t, m, ins):
        t.store(_space(m), t.address(ins.operands[0]), 8, 0)

    @staticmethod
    def emit(b, m, ins):
        b.store(_space(m), b.address(ins.operands[0], _space(m)), [b.const(0, 64)])


def _space(m) -> str:
    return "shared" if m.get("space") else "generic"


def _reference_update(t, m, address: int, **changes) -> int:
    return t.atomic(_space(m), address, 8, lambda old: _changed(old, **changes))


def _define_arrivals(opcode_tail: str, drop: bool, expect: bool) -> None:
    where = {"space": (*CTA, "shared::cluster"), "sem": ("release", "relaxed"), "scope": ("cta", "cluster")}
    common = {**_MBARRIER, "effects": ("memory", "spin"), **where}

    class Arrive:
        @staticmethod
        def reference(t, m, ins):
            destination, address, count = _arrival_operands(ins)
            amount = 1 if count is None else t.read(count, m.operand_type("b"))
            changes = {"arrivals": amount}
            if expect:
                changes = {"arrivals": 1, "bytes_": amount}
            if drop:
                changes["dropped"] = changes["arrivals"]
            old = _reference_update(t, m, t.address(address), **changes)
            if destination is not None and not isinstance(destination, Discard):
                t.write(destination, m.operand_type("d"), old)

        @staticmethod
        def emit(b, m, ins):
            destination, address, count = _arrival_operands(ins)
            one = b.const(1, 64)
            amount = one if count is None else b.zext(b.read(count, 32), 64)
            arrivals, bytes_ = (one, amount) if expect else (amount, None)
            old = b.mbarrier(
                _space(m), b.address(address, _space(m)),
                lambda word, n, tx: _emit_changed(b, word, n, n if drop else None, tx), arrivals, bytes_,
            )  # fmt: skip
            if destination is not None and not isinstance(destination, Discard):
                b.write(destination, old, 64)

    Arrive.__doc__ = "An arrival; gives the state before it."
    operand = ", b" if expect else "{, b}"
    head = f"mbarrier.{opcode_tail}{{.sem}}{{.scope}}{{.space}}.b64"
    types = {"d": "b64", "b": "u32"}
    instruction(f"{head} d, [a]{operand}", operands=types, **common)(Arrive)
    if not expect:
        head = f"mbarrier.{opcode_tail}.noComplete{{.sem}}{{.scope}}{{.space}}.b64"
        instruction(f"{head} d, [a], b", operands=types, **common)(Arrive)


def _arrival_operands(ins):
    operands = list(ins.operands)
    return operands[0], operands[1], operands[2] if len(operands) > 2 else None


for _tail, _drop, _expect in (
    ("arrive", False, False), ("arrive_drop", True, False), ("arrive.expect_tx", False, True),
    ("arrive_drop.expect_tx", True, True),
):  # fmt: skip
    _define_arrivals(_tail, _drop, _expect)


@instruction("mbarrier.what{.sem}{.scope}{.space}.b64 [a], b", what=("expect_tx", "complete_tx"), sem=("relaxed",),
             scope=("cta", "cluster"), space=(*CTA, "shared::cluster"), operands={"b": "u32"}, effects=("memory",),
             raw=True, pipe="lsu", ptx="8.0", sm=90, section="9.7.13.15")  # fmt: skip
class MbarrierTransaction:
    """More bytes to come, or bytes that have come."""

    @staticmethod
    def reference(t, m, ins):
        amount = t.read(ins.operands[1], m.operand_type("b"))
        _reference_update(t, m, t.address(ins.operands[0]), bytes_=amount if m.what == "expect_tx" else -amount)

    @staticmethod
    def emit(b, m, ins):
        amount = b.zext(b.read(ins.operands[1], 32), 64)
        if m.what == "complete_tx":
            amount = b.neg(amount)
        b.mbarrier(
            _space(m), b.address(ins.operands[0], _space(m)),
            lambda word, n, tx: _emit_changed(b, word, None, None, tx), None, amount,
        )  # fmt: skip


_WAIT = {"what": ("test_wait", "try_wait"), "sem": ("acquire", "relaxed"), "scope": ("cta", "cluster"), "space": CTA}


@instruction("mbarrier.what{.sem}{.scope}{.space}.b64 p, [a], b{, c}", operands={"b": "b64", "c": "u32"},
             effects=("memory", "spin"), **_WAIT, **_MBARRIER)  # fmt: skip
@instruction("mbarrier.what.parity{.sem}{.scope}{.space}.b64 p, [a], b{, c}", operands={"b": "u32", "c": "u32"},
             effects=("memory", "spin"), **_WAIT, **_MBARRIER)  # fmt: skip
class MbarrierWait:
    """Whether the phase of a state token, or of a parity, has completed. try_wait may also wait; here it does not:
    a loop around it gives way to other warps."""

    @staticmethod
    def reference(t, m, ins):
        word = t.load(_space(m), t.address(ins.operands[1]), 8)
        token = t.read(ins.operands[2], m.operand_type("b"))
        phase = token & 1 if m.get("parity") else token >> PHASE_SHIFT
        t.write(ins.operands[0], m.operand_type("p"), int(word >> PHASE_SHIFT != phase))

    @staticmethod
    def emit(b, m, ins):
        word = b.load(_space(m), b.address(ins.operands[1], _space(m)), 64, volatile=True)[0]
        now = b.lshr(word, b.const(PHASE_SHIFT, 32))
        if m.get("parity"):
            phase = b.zext(b.and_(b.read(ins.operands[2], 32), b.const(1, 32)), 64)
        else:
            phase = b.lshr(b.read(ins.operands[2], 64), b.const(PHASE_SHIFT, 32))
        b.write(ins.operands[0], b.icmp("ne", now, phase), 1)


@instruction("mbarrier.pending_count.b64 d, a", operands={"d": "u32", "a": "b64"}, pipe="alu", ptx="7.0", sm=80,
             section="9.7.13.15")  # fmt: skip
class MbarrierPendingCount:
    """Pending arrivals in a state token."""

    @staticmethod
    def reference(m, a):
        return a & COUNT_MASK

    @staticmethod
    def emit(b, m, a):
        return b.trunc(b.and_(a, b.const(COUNT_MASK, 64)), 32)


# ---------------------------------------------------------------- cp.async
_COPY = {"raw": True, "pipe": "lsu", "effects": ("memory",), "ptx": "7.0", "sm": 80, "section": "9.7.9.25"}


@instruction("cp.async.cop.dst.global{.L2::cache_hint}{.size} [a], [b], c{, e}{, f}", cop=("ca", "cg"), dst=CTA,
             size=PREFETCH_SIZES, operands={"c": "u32", "e": "u32", "f": "b64"}, **_COPY)  # fmt: skip
class CopyAsync:
    """4, 8 or 16 bytes from global to shared memory; bytes beyond the source size, or all if the predicate of
    ignore-src holds, are zero."""

    @staticmethod
    def reference(t, m, ins):
        size = ins.operands[2].value
        destination, source = t.address(ins.operands[0]), t.address(ins.operands[1])
        count = size
        if len(ins.operands) > 3:
            count = min(size, _copy_count_reference(t, m, ins, size))
        data = 0
        if count:
            data = t.load("global", source, size) if count == size else _load_bytes(t, source, count)
        t.store("shared", destination, size, data)

    @staticmethod
    def emit(b, m, ins):
        size = ins.operands[2].value
        destination, source = b.address(ins.operands[0], "shared"), b.address(ins.operands[1], "global")
        count = _copy_count(b, ins, size) if len(ins.operands) > 3 else None
        b.copy_to_shared(destination, source, size, count)


def _copy_count_reference(t, m, ins, size: int) -> int:
    operand = ins.operands[3]
    register = operand.operand if isinstance(operand, Negated) else operand
    if isinstance(register, Register) and t.register_type(register).bits == 1:
        return 0 if t.read(operand, TYPES["pred"]) else size
    return t.read(operand, m.operand_type("e"))


def _load_bytes(t, source: int, count: int) -> int:
    return sum(t.load("global", source + i, 1) << (8 * i) for i in range(count))


def _copy_count(b, ins, size: int):
    """Bytes to copy, per lane: the source size, or none under ignore-src."""
    operand = ins.operands[3]
    register = operand.operand if isinstance(operand, Negated) else operand
    if isinstance(register, Register) and b.registers.bits.get(register.name) == 1:
        return b.select(b.read(operand, 1), b.const(0, 32), b.const(size, 32))
    return b.umin(b.read(operand, 32), b.const(size, 32))


class _Done:
    @staticmethod
    def reference(t, m, ins):
        return None

    @staticmethod
    def emit(b, m, ins):
        return None


@instruction("cp.async.commit_group", **_COPY)
@instruction("cp.async.wait_group a", operands={"a": "u32"}, **_COPY)
@instruction("cp.async.wait_all", **_COPY)
class CopyAsyncGroup(_Done):
    """Copies have completed when they were issued."""


@instruction("cp.async.mbarrier.arrive{.noinc}{.space}.b64 [a]", space=CTA, raw=True, pipe="lsu", effects=("memory",),
             ptx="7.0", sm=80, section="9.7.13.15")  # fmt: skip
class CopyAsyncArrive:
    """An arrival once this thread's copies are done. Without .noinc the pending count is first raised by one, which
    the arrival then takes back."""

    @staticmethod
    def reference(t, m, ins):
        if m.noinc:
            _reference_update(t, m, t.address(ins.operands[0]), arrivals=1)

    @staticmethod
    def emit(b, m, ins):
        if m.noinc:
            b.mbarrier(
                _space(m), b.address(ins.operands[0], _space(m)),
                lambda word, n, tx: _emit_changed(b, word, n, None, None), b.const(1, 64), None,
            )  # fmt: skip
