"""The order in which a block's instructions are emitted.

Unrolled kernels come with hundreds of independent chains side by side (64 accumulators, each added to in every step).
In program order every chain leaves the vector registers between two of its steps. Here chains are emitted a few at a
time, each group from its first step to its last: the partial results of a group stay in registers.
"""

from __future__ import annotations

from weft.analysis.flow import Op

GROUP = 8  # chains emitted together: 8 results of 32 lanes are 16 of the 32 vector registers
SMALLEST = 48  # shorter stretches fit as they are
_KEEPS_PLACE = {"bar", "barrier", "call", "trap", "fence", "membar", "mbarrier", "atom", "red", "st", "nanosleep"}


def ordered_ops(ops: list[Op]) -> list[Op]:
    """The same instructions in an order that respects every register and memory dependence."""
    if len(ops) < SMALLEST:
        return ops
    result: list[Op] = []
    stretch: list[Op] = []
    for op in ops:
        if _is_fixed(op):
            result += _by_chains(stretch)
            stretch = []
            result.append(op)
        else:
            stretch.append(op)
    return result + _by_chains(stretch)


def _is_fixed(op: Op) -> bool:
    effects = op.match.entry.effects
    if op.opcode == "ld":
        return "volatile" in op.ins.modifiers or "acquire" in op.ins.modifiers or "relaxed" in op.ins.modifiers
    return op.opcode in _KEEPS_PLACE or bool(effects & {"memory", "barrier", "control", "convergence", "spin"})


def _by_chains(ops: list[Op]) -> list[Op]:
    if len(ops) < SMALLEST:
        return ops
    needs, used = _dependences(ops)
    roots = [i for i in range(len(ops)) if not used[i]]
    done = [False] * len(ops)
    result: list[Op] = []
    for at in range(0, len(roots), GROUP):
        wanted: list[int] = []
        stack = roots[at : at + GROUP]
        while stack:
            i = stack.pop()
            if done[i]:
                continue
            done[i] = True
            wanted.append(i)
            stack += needs[i]
        result += [ops[i] for i in sorted(wanted)]
    return result


def _dependences(ops: list[Op]) -> tuple[list[list[int]], list[bool]]:
    """What each instruction must follow, and whether its result is used in the stretch."""
    needs: list[list[int]] = [[] for _ in ops]
    used = [False] * len(ops)
    last_write: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    for i, op in enumerate(ops):
        for name in op.reads:
            writer = last_write.get(name)
            if writer is not None:
                needs[i].append(writer)
                used[writer] = True
            readers.setdefault(name, []).append(i)
        for name in op.writes:
            writer = last_write.get(name)
            if writer is not None:
                needs[i].append(writer)
            needs[i] += [r for r in readers.get(name, ()) if r != i]
            last_write[name] = i
            readers[name] = []
    return needs, used
