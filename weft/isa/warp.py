"""What the lanes of a warp do together: shfl, vote, match, redux, activemask, elect.

Lanes that run together execute one of these as one; a lane of the member mask that is elsewhere contributes nothing.
Reading the register of a lane that does not take part gives an undefined value on the hardware; here it gives that
lane's value. Sections: PTX ISA, "Data Movement" (shfl) and "Parallel Synchronization and Communication".
"""

from __future__ import annotations

from weft.isa.instruction import instruction

LANES = 32
FULL = 0xFFFFFFFF


def _members(active, mask) -> list[int]:
    """Lanes that take part: active and named by their own mask."""
    return [i for i in range(LANES) if active[i] and (mask is None or mask[i] >> i & 1)]


# ---------------------------------------------------------------- shfl
_MODES = ("up", "down", "bfly", "idx")


def _source_lane(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """(source lane, whether it is in range): the pseudocode of the manual's section on shfl."""
    b &= 31
    bound, segment = c & 31, c >> 8 & 31
    highest = (lane & segment) | (bound & ~segment & 31)
    lowest = lane & segment
    if mode == "up":
        j = lane - b
        ok = j >= highest
    elif mode == "down":
        j = lane + b
        ok = j <= highest
    elif mode == "bfly":
        j = lane ^ b
        ok = j <= highest
    else:
        j = lowest | (b & ~segment & 31)
        ok = j <= highest
    return (j if ok else lane), ok


class _Shuffle:
    @staticmethod
    def reference(m, active, a, b, c, mask=None):
        values, in_range = [0] * LANES, [0] * LANES
        for lane in range(LANES):
            if active[lane]:
                source, ok = _source_lane(m.mode, lane, b[lane], c[lane])
                values[lane], in_range[lane] = a[source & 31], int(ok)
        return values, in_range

    @staticmethod
    def emit(e, m, a, b, c, mask=None):
        low = e.const(31, 32)
        lane = e.lane()
        b = e.and_(b, low)
        bound, segment = e.and_(c, low), e.and_(e.lshr(c, e.const(8, 32)), low)
        outside = e.xor(segment, low)
        lowest = e.and_(lane, segment)
        highest = e.or_(lowest, e.and_(bound, outside))
        if m.mode == "up":
            j = e.sub(lane, b)
            ok = e.icmp("sge", j, highest)
        elif m.mode == "down":
            j = e.add(lane, b)
            ok = e.icmp("sle", j, highest)
        elif m.mode == "bfly":
            j = e.xor(lane, b)
            ok = e.icmp("sle", j, highest)
        else:
            j = e.or_(lowest, e.and_(b, outside))
            ok = e.icmp("sle", j, highest)
        return e.shuffle(a, e.select(ok, j, lane)), ok


@instruction("shfl.sync.mode.b32 d{|p}, a, b, c, e", mode=_MODES, operands={"b": "b32", "c": "b32", "e": "b32"},
             collective=True, pipe="lsu", effects=("convergence",), ptx="6.0", sm=30, section="9.7.9.6")  # fmt: skip
class ShuffleSync(_Shuffle):
    """Each lane reads a register of another lane."""


@instruction("shfl.mode.b32 d{|p}, a, b, c", mode=_MODES, operands={"b": "b32", "c": "b32"}, collective=True,
             pipe="lsu", effects=("convergence",), ptx="3.0", sm=30, section="9.7.9.5")  # fmt: skip
class Shuffle(_Shuffle):
    """The form without a member mask."""


# ---------------------------------------------------------------- vote
class _Vote:
    @staticmethod
    def reference(m, active, a, mask=None):
        lanes = _members(active, mask)
        votes = [a[i] for i in lanes]
        if m.get("ballot"):
            word = sum(1 << i for i in lanes if a[i])
            return [word] * LANES
        result = {"all": all(votes), "any": any(votes), "uni": len(set(votes)) < 2}[m.mode]
        return [int(result)] * LANES

    @staticmethod
    def emit(b, m, a, mask=None):
        ballot = b.ballot(a)
        here = b.active_mask()
        if mask is not None:
            ballot, here = b.and_(ballot, mask), b.and_(here, mask)
        if m.get("ballot"):
            return ballot
        none = b.icmp("eq", ballot, b.const(0, 32))
        every = b.icmp("eq", ballot, here)
        if m.mode == "any":
            return b.not_(none)
        return every if m.mode == "all" else b.or_(none, every)


@instruction("vote.sync.mode.pred d, a, b", mode=("all", "any", "uni"), operands={"a": "pred", "b": "b32"},
             collective=True, pipe="alu", effects=("convergence",), ptx="6.0", sm=30, section="9.7.13.8")  # fmt: skip
class VoteSync(_Vote):
    """all, any or uni of a predicate over the member lanes."""


@instruction("vote.sync.ballot.b32 d, a, b", operands={"a": "pred", "b": "b32"}, collective=True, pipe="alu",
             effects=("convergence",), ptx="6.0", sm=30, section="9.7.13.8")  # fmt: skip
class BallotSync(_Vote):
    """One bit per member lane."""


@instruction("vote.mode.pred d, a", mode=("all", "any", "uni"), operands={"a": "pred"}, collective=True, pipe="alu",
             effects=("convergence",), ptx="1.2", sm=12, section="9.7.13.7")  # fmt: skip
class Vote(_Vote):
    """The form without a member mask."""


@instruction("vote.ballot.b32 d, a", operands={"a": "pred"}, collective=True, pipe="alu", effects=("convergence",),
             ptx="2.0", sm=20, section="9.7.13.7")  # fmt: skip
class Ballot(_Vote):
    """The form without a member mask."""


# ---------------------------------------------------------------- match
@instruction("match.any.sync.type d, a, b", type=("b32", "b64"), operands={"d": "b32", "b": "b32"}, collective=True,
             pipe="alu", effects=("convergence",), ptx="6.0", sm=70, section="9.7.13.9")  # fmt: skip
class MatchAny:
    """The member lanes that hold the same value."""

    @staticmethod
    def reference(m, active, a, mask):
        lanes = _members(active, mask)
        return [sum(1 << j for j in lanes if a[j] == a[i]) if active[i] else 0 for i in range(LANES)]

    @staticmethod
    def emit(b, m, a, mask):
        return b.and_(b.match_any(a), mask)


@instruction("match.all.sync.type d{|p}, a, b", type=("b32", "b64"), operands={"d": "b32", "b": "b32"},
             collective=True, pipe="alu", effects=("convergence",), ptx="6.0", sm=70, section="9.7.13.9")  # fmt: skip
class MatchAll:
    """The member mask when all member lanes hold the same value, else 0."""

    @staticmethod
    def reference(m, active, a, mask):
        lanes = _members(active, mask)
        same = len({a[i] for i in lanes}) < 2
        word = sum(1 << i for i in lanes) if same else 0
        return [word] * LANES, [int(same)] * LANES

    @staticmethod
    def emit(b, m, a, mask):
        here = b.and_(b.active_mask(), mask)
        first = b.shuffle(a, b.cttz(here))
        differs = b.and_(b.ballot(b.icmp("ne", a, first)), here)
        same = b.icmp("eq", differs, b.const(0, 32))
        return b.select(same, here, b.const(0, 32)), same


# ---------------------------------------------------------------- redux

def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _reduce_integers(op: str, kind: str, values: list[int]) -> int:
    if op == "add":
        return sum(values) & FULL
    if op in ("min", "max"):
        pick = min if op == "min" else max
        return pick(values, key=_signed if kind == "s" else int)
    result = values[0]
    for x in values[1:]:
        result = {"and": result & x, "or": result | x, "xor": result ^ x}[op]
    return result


@instruction("redux.sync.op.type d, a, b", op=("add", "min", "max"), type=("u32", "s32"), operands={"b": "b32"},
             collective=True, pipe="alu", effects=("convergence",), ptx="7.0", sm=80, section="9.7.13.11")  # fmt: skip
@instruction("redux.sync.op.b32 d, a, b", op=("and", "or", "xor"), operands={"b": "b32"}, collective=True, pipe="alu",
             effects=("convergence",), ptx="7.0", sm=80, section="9.7.13.11")  # fmt: skip
class Redux:
    """A reduction over the member lanes."""

    @staticmethod
    def reference(m, active, a, mask):
        lanes = _members(active, mask)
        kind = m.operand_type("a").kind
        return [_reduce_integers(m.op, kind, [a[i] for i in lanes]) if lanes else 0] * LANES

    @staticmethod
    def emit(b, m, a, mask):
        op = m.op
        if op in ("min", "max"):
            op = ("s" if m.operand_type("a").signed else "u") + op
        return b.reduce(op, a, b.and_(b.active_mask(), mask))


def _float_key(bits: int) -> int:
    """Orders f32 bit patterns as numbers: an unsigned key, -0 below +0."""
    return bits ^ FULL if bits >> 31 else bits | 0x80000000


@instruction("redux.sync.op{.abs}{.NaN}.f32 d, a, b", op=("min", "max"), operands={"b": "b32"}, collective=True,
             pipe="alu", effects=("convergence",), ptx="8.6", sm=100, section="9.7.13.11")  # fmt: skip
class ReduxFloat:
    """min or max of floats; a NaN is left out, or taken over with .NaN."""

    @staticmethod
    def reference(m, active, a, mask):
        values = [a[i] & 0x7FFFFFFF if m.abs else a[i] for i in _members(active, mask)]
        nans = [v for v in values if v & 0x7FFFFFFF > 0x7F800000]
        numbers = [v for v in values if v & 0x7FFFFFFF <= 0x7F800000]
        if not numbers or (m.NaN and nans):
            return [0x7FFFFFFF] * LANES
        return [(min if m.op == "min" else max)(numbers, key=_float_key)] * LANES

    @staticmethod
    def emit(b, m, a, mask):
        if m.abs:
            a = b.fabs("f32", a)
        here = b.and_(b.active_mask(), mask)
        nan = b.fcmp("uno", "f32", a, a)
        sign = b.icmp("slt", a, b.const(0, 32))
        key = b.select(sign, b.not_(a), b.or_(a, b.const(0x80000000, 32)))
        neutral = FULL if m.op == "min" else 0
        key = b.select(nan, b.const(neutral, 32), key)
        best = b.reduce("u" + m.op, key, here)
        back = b.select(b.icmp("slt", best, b.const(0, 32)), b.and_(best, b.const(0x7FFFFFFF, 32)), b.not_(best))
        nans = b.and_(b.ballot(nan), here)
        lost = b.icmp("ne", nans, b.const(0, 32)) if m.NaN else b.icmp("eq", nans, here)
        return b.select(lost, b.const(0x7FFFFFFF, 32), back)


# ---------------------------------------------------------------- activemask, elect
@instruction("activemask.b32 d", collective=True, pipe="alu", effects=("convergence",), ptx="6.2", sm=30,
             section="9.7.13.10")  # fmt: skip
class ActiveMask:
    """The lanes that execute this together."""

    @staticmethod
    def reference(m, active):
        return [sum(1 << i for i in range(LANES) if active[i])] * LANES

    @staticmethod
    def emit(b, m):
        return b.active_mask()


@instruction("elect.sync d|p, a", operands={"d": "b32", "a": "b32"}, collective=True, pipe="alu",
             effects=("convergence",), ptx="8.0", sm=90, section="9.7.13.12")  # fmt: skip
class Elect:
    """The lowest member lane is the leader: its number in all lanes, and a predicate that holds in it."""

    @staticmethod
    def reference(m, active, mask):
        lanes = _members(active, mask)
        leader = lanes[0] if lanes else 0
        return [leader] * LANES, [int(i == leader) for i in range(LANES)]

    @staticmethod
    def emit(b, m, mask):
        leader = b.cttz(b.and_(b.active_mask(), mask))
        return leader, b.icmp("eq", b.lane(), leader)


