"""Barriers, fences and mbarrier objects.

bar and barrier suspend a warp: the lowering and the interpreter treat them by their opcode.

An mbarrier object is the 64-bit word that mbarrier.init writes. Ours holds, from bit 0: pending arrivals (20 bits), the
expected count (20 bits), transaction bytes still to come (21 bits, two's complement), a mark of live objects (2 bits)
and the phase (bit 63). A phase completes when pending arrivals and bytes are both zero: the phase bit flips and pending
is the expected count again. A state token is the word as it was before the arrival. Operations on a word without the
mark, more arrivals than are pending, and counts out of range are reported as misuse. Sections: PTX ISA,
"Parallel Synchronization and Communication Instructions: mbarrier".
"""

from __future__ import annotations

from weft.errors import KernelFault
from weft.isa.instruction import instruction
from weft.isa.memory import SCOPES, SPACES
from weft.isa.operands import Discard

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
COUNT_MASK = (1 << PENDING_BITS) - 1  # also the largest count and the largest transaction count
EXPECTED_SHIFT = 20
TX_SHIFT = 40
TX_BITS = 21
TX_MASK = (1 << TX_BITS) - 1
LIVE_SHIFT, LIVE_MASK, LIVE = 61, 3, 2
PHASE_SHIFT = 63

# What went wrong with an mbarrier object: Fault.size of an MBARRIER fault.
MISUSE = {
    1: "not initialised", 2: "count", 3: "arrivals", 4: "bytes", 5: "no complete",
}  # fmt: skip
EXPLAINED = {
    "not initialised": "it is not initialised, or was invalidated: use mbarrier.init first",
    "count": f"its count must be 1 to {COUNT_MASK}",
    "arrivals": "more arrivals than the phase has pending",
    "bytes": f"its transaction count leaves the range of {COUNT_MASK} bytes either way",
    "no complete": "an arrival with .noComplete would complete the phase",
}


class MbarrierWord:
    """What the word of an mbarrier object says."""

    def __init__(self, word: int):
        self.live = word >> LIVE_SHIFT & LIVE_MASK == LIVE
        self.pending = word & COUNT_MASK
        self.expected = word >> EXPECTED_SHIFT & COUNT_MASK
        self.phase = word >> PHASE_SHIFT
        tx = word >> TX_SHIFT & TX_MASK
        self.bytes = tx - (1 << TX_BITS) if tx >> (TX_BITS - 1) else tx

    def encode(self) -> int:
        low = self.pending | self.expected << EXPECTED_SHIFT | (self.bytes & TX_MASK) << TX_SHIFT
        return low | LIVE << LIVE_SHIFT | self.phase << PHASE_SHIFT


def _misuse(t, address: int, why: str) -> KernelFault:
    return t.fault(KernelFault, f"mbarrier object at {address:#x}: {EXPLAINED[why]}", address)


def update_reference(t, space: str, address: int, arrivals: int = 0, dropped: int = 0, bytes_: int = 0) -> int:
    """Changes a live object; gives the word before."""

    def change(old: int) -> int:
        now = MbarrierWord(old)
        now.bytes += bytes_
        for wrong, why in (
            (not now.live, "not initialised"), (arrivals > COUNT_MASK, "count"), (arrivals > now.pending, "arrivals"),
            (abs(now.bytes) > COUNT_MASK, "bytes"),
        ):  # fmt: skip
            if wrong:
                raise _misuse(t, address, why)
        now.pending -= arrivals
        now.expected = now.expected - dropped & COUNT_MASK
        if now.pending == 0 and now.bytes == 0:
            now.phase ^= 1
            now.pending = now.expected
        return now.encode()

    return t.atomic(space, address, 8, change)


def mbarrier_address(b, operand, m):
    """The address of an mbarrier object in the cluster's shared memory, 32 bits; a generic address outside of it
    becomes one that no object has."""
    if m.get("space"):
        return b.address(operand, "shared")
    return shared_offset(b, b.address(operand, "generic"))


def shared_offset(b, address):
    """The address in the cluster's shared memory of a generic one, 32 bits; one that no memory has outside of it."""
    return b.trunc(b.umin(b.sub(address, b.window("shared")), b.const(0xFFFFFFF8, 64)), 32)


def _space(m) -> str:
    return SPACES[m.space] if m.get("space") else "generic"


def _scoped(m) -> str:
    """An order and a scope go together."""
    if bool(m.get("sem")) != bool(m.get("scope")):
        return f".{m.sem or m.scope} needs {'a scope: .cta or .cluster' if m.sem else 'an order'}"
    return ""


_MBARRIER = {"raw": True, "pipe": "lsu", "ptx": "7.0", "sm": 80, "section": "9.7.13.15"}


@instruction("mbarrier.init{.space}.b64 [a], b", space=CTA, operands={"b": "u32"}, effects=("memory",), **_MBARRIER)
class MbarrierInit:
    """Phase 0, b arrivals expected."""

    @staticmethod
    def reference(t, m, ins):
        address, word = t.address(ins.operands[0]), MbarrierWord(0)
        word.pending = word.expected = t.read(ins.operands[1], m.operand_type("b"))
        if not 1 <= word.pending <= COUNT_MASK:
            raise _misuse(t, address, "count")
        t.store(_space(m), address, 8, word.encode())

    @staticmethod
    def emit(b, m, ins):
        b.bulk_call("weft_mbarrier_init", [mbarrier_address(b, ins.operands[0], m), b.read(ins.operands[1], 32)])


@instruction("mbarrier.inval{.space}.b64 [a]", space=CTA, effects=("memory",), **_MBARRIER)
class MbarrierInval:
    """The memory may be used for something else."""

    @staticmethod
    def reference(t, m, ins):
        t.store(_space(m), t.address(ins.operands[0]), 8, 0)

    @staticmethod
    def emit(b, m, ins):
        b.store(_space(m), b.address(ins.operands[0], _space(m)), [b.const(0, 64)])


def _define_arrivals(verb: str, variant: str) -> None:
    """mbarrier.arrive and arrive_drop; variant "", "expect_tx" or "noComplete"."""
    drop = verb == "arrive_drop"

    class Arrive:
        @staticmethod
        def reference(t, m, ins):
            destination, address, *count = ins.operands
            at, space = t.address(address), _space(m)
            amount = t.read(count[0], m.operand_type("b")) if count else 1
            arrivals, bytes_ = (1, amount) if variant == "expect_tx" else (amount, 0)
            if arrivals == 0:
                raise _misuse(t, at, "count")
            if variant == "noComplete":
                now = MbarrierWord(t.load(space, at, 8))
                if now.live and now.pending == arrivals and now.bytes == 0:
                    raise _misuse(t, at, "no complete")
            old = 0
            if bytes_:
                old = update_reference(t, space, at, bytes_=bytes_)
            before = update_reference(t, space, at, arrivals, arrivals if drop else 0)
            t.write(destination, m.operand_type("d"), old or before)

        @staticmethod
        def emit(b, m, ins):
            destination, address, *count = ins.operands
            one, none = b.const(1, 64), b.const(0, 64)
            amount = b.zext(b.read(count[0], 32), 64) if count else one
            arrivals, bytes_ = (one, amount) if variant == "expect_tx" else (amount, none)
            name = "weft_mbarrier_hold" if variant == "noComplete" else "weft_mbarrier_arrive"
            operands = [mbarrier_address(b, address, m), arrivals, arrivals if drop else none, bytes_]
            old = b.bulk_call(name, operands, result=64)
            if not isinstance(destination, Discard):
                b.write(destination, old, 64)

        @staticmethod
        def check(m, ins):
            if m.get("space") == "shared::cluster" and not isinstance(ins.operands[0], Discard):
                return "an arrival at another block's object gives no state: write _"
            return ""

    Arrive.__doc__ = "An arrival; gives the state before it."
    choices = {
        "space": (*CTA, "shared::cluster"), "sem": ("release", "relaxed"), "scope": ("cta", "cluster"),
    } if variant != "noComplete" else {"space": CTA, "sem": ("release",), "scope": ("cta",)}  # fmt: skip
    head = ".".join(["mbarrier", verb, variant]).rstrip(".")
    instruction(
        f"{head}{{.sem}}{{.scope}}{{.space}}.b64 d, [a]{{, b}}" if not variant else
        f"{head}{{.sem}}{{.scope}}{{.space}}.b64 d, [a], b",
        operands={"d": "b64", "b": "u32"}, where=_scoped, effects=("memory",), **choices,
        **{**_MBARRIER, **({"ptx": "8.0", "sm": 90} if variant == "expect_tx" else {})},
    )(Arrive)  # fmt: skip


for _verb in ("arrive", "arrive_drop"):
    for _variant in ("", "expect_tx", "noComplete"):
        _define_arrivals(_verb, _variant)


@instruction("mbarrier.what{.sem}{.scope}{.space}.b64 [a], b", what=("expect_tx", "complete_tx"), sem=("relaxed",),
             scope=("cta", "cluster"), space=(*CTA, "shared::cluster"), operands={"b": "u32"}, effects=("memory",),
             raw=True, pipe="lsu", ptx="8.0", sm=90, section="9.7.13.15", where=_scoped)  # fmt: skip
class MbarrierTransaction:
    """More bytes to come, or bytes that have come."""

    @staticmethod
    def reference(t, m, ins):
        amount = t.read(ins.operands[1], m.operand_type("b"))
        signed = amount if m.what == "expect_tx" else -amount
        update_reference(t, _space(m), t.address(ins.operands[0]), bytes_=signed)

    @staticmethod
    def emit(b, m, ins):
        amount = b.zext(b.read(ins.operands[1], 32), 64)
        if m.what == "complete_tx":
            amount = b.neg(amount)
        none = b.const(0, 64)
        b.bulk_call("weft_mbarrier_update", [mbarrier_address(b, ins.operands[0], m), none, none, amount], result=64)


_WAIT = {
    "sem": ("acquire", "relaxed"), "scope": ("cta", "cluster"), "space": CTA, "effects": ("memory", "spin"),
    "where": _scoped, **_MBARRIER,
}  # fmt: skip


@instruction("mbarrier.test_wait{.sem}{.scope}{.space}.b64 p, [a], b", operands={"b": "b64"}, **_WAIT)
@instruction("mbarrier.test_wait.parity{.sem}{.scope}{.space}.b64 p, [a], b", operands={"b": "u32"},
             **{**_WAIT, "ptx": "7.1"})  # fmt: skip
@instruction("mbarrier.try_wait{.sem}{.scope}{.space}.b64 p, [a], b{, c}", operands={"b": "b64", "c": "u32"},
             **{**_WAIT, "ptx": "7.8", "sm": 90})  # fmt: skip
@instruction("mbarrier.try_wait.parity{.sem}{.scope}{.space}.b64 p, [a], b{, c}", operands={"b": "u32", "c": "u32"},
             **{**_WAIT, "ptx": "7.8", "sm": 90})  # fmt: skip
class MbarrierWait:
    """Whether the phase of a state token, or of a parity, has completed. try_wait may also wait, for as long as its
    hint says; here it does not: a loop around it gives way to other warps."""

    @staticmethod
    def reference(t, m, ins):
        address = t.address(ins.operands[1])
        word = MbarrierWord(t.load(_space(m), address, 8))
        if not word.live:
            raise _misuse(t, address, "not initialised")
        token = t.read(ins.operands[2], m.operand_type("b"))
        phase = token & 1 if m.get("parity") else token >> PHASE_SHIFT
        t.write(ins.operands[0], m.operand_type("p"), int(word.phase != phase))

    @staticmethod
    def emit(b, m, ins):
        if m.get("parity"):
            phase = b.zext(b.and_(b.read(ins.operands[2], 32), b.const(1, 32)), 64)
        else:
            phase = b.lshr(b.read(ins.operands[2], 64), b.const(PHASE_SHIFT, 32))
        operands = [mbarrier_address(b, ins.operands[1], m), phase]
        over = b.bulk_call("weft_mbarrier_test", operands, result=32, once=True)
        b.write(ins.operands[0], b.icmp("ne", over, b.const(0, 32)), 1)


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
