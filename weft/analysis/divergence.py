"""Which blocks run with part of the warp, in what groups, and which writes there must keep the other lanes' values.

A divergent branch starts a group: every block between it and the point where its lanes meet again. Blocks of a group
run in layout order, each with the mask of lanes that have arrived there, so that lanes reconverge as early as the
graph allows. Blocks outside every group run with all lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.analysis.flow import Block, Flow, Loop


@dataclass(eq=False)
class Group:
    """`blocks` in layout order; `exit` is the block (or the flow's exit) where all lanes meet again."""

    blocks: list[int]
    exit: int
    members: frozenset[int] = field(default_factory=frozenset)


@dataclass(eq=False)
class Divergence:
    groups: list[Group]
    group_of: dict[int, Group]
    waiting: dict[int, int]  # block -> registers (bit set) that lanes waiting elsewhere still need


def find_groups(flow: Flow, divergent: set[int], whole: bool, spinning: list[Loop]) -> Divergence:
    """`divergent`: blocks that end in a branch on which lanes may differ. `whole`: the kernel starts with part of a
    warp, so everything is one group. `spinning`: loops that wait for other lanes or warps; their lanes may wait at the
    header while later blocks run: a lane that has taken a lock must be able to release it behind the loop."""
    spin_headers = {loop.header for loop in spinning}
    stoppers = {b.index for b in flow.blocks if _needs_convergence(b)} if spinning else set()
    regions: list[tuple[set[int], set[int]]] = []
    if whole:
        regions.append((set(flow.order), {flow.exit}))
    else:
        for b in sorted(divergent, key=flow.position.__getitem__):
            meet = flow.reconvergence[b]
            if any(b in loop.blocks for loop in spinning):
                meet = _later_meet(flow, meet, stoppers)
            region = flow.reachable(flow.blocks[b].successors, meet)
            if region:
                regions.append((region, {meet}))
    groups = []
    for region, meets in _merge(flow, regions):
        exits = _exits(flow, region, meets)
        assert len(exits) == 1, f"a divergent region leaves to several blocks: {sorted(exits)}"
        blocks = sorted(region, key=flow.position.__getitem__)
        groups.append(Group(blocks, exits.pop(), frozenset(region)))
    group_of = {b: g for g in groups for b in g.blocks}
    waiting = {b: _waiting(flow, g, b, divergent, spin_headers) for g in groups for b in g.blocks}
    return Divergence(groups, group_of, waiting)


def _needs_convergence(block: Block) -> bool:
    ops = block.ops if block.terminator is None else [*block.ops, block.terminator]
    return any(op.match.entry.effects & {"barrier", "convergence"} for op in ops)


def _later_meet(flow: Flow, meet: int, stoppers: set[int]) -> int:
    """The furthest reconvergence point behind `meet` before which no instruction needs the lanes together."""
    while meet != flow.exit and meet not in stoppers:
        following = flow.reconvergence[meet]
        if flow.reachable([meet], following) & stoppers:
            break
        meet = following
    return meet


def _exits(flow: Flow, region: set[int], meets: set[int]) -> set[int]:
    """Where lanes go from a region: along its edges, or, those that passed it by, to where its branches' lanes meet. A
    region may have no edge out: blocks that end in a trap."""
    return {s for b in region for s in flow.blocks[b].successors if s not in region} | (meets - region)


def _merge(flow: Flow, regions: list[tuple[set[int], set[int]]]) -> list[tuple[set[int], set[int]]]:
    """Unite overlapping regions and extend each until it leaves to one block only. Each comes with the blocks where
    lanes of its branches meet."""
    done: list[tuple[set[int], set[int]]] = []
    for given, met in regions:
        region, meets = set(given), set(met)
        while True:
            overlapping = [pair for pair in done if pair[0] & region]
            if overlapping:
                for pair in overlapping:
                    region |= pair[0]
                    meets |= pair[1]
                    done.remove(pair)
                continue
            exits = _exits(flow, region, meets)
            if len(exits) <= 1:
                break
            common = _common_meet(flow, exits)
            region |= flow.reachable(list(exits), common)
            meets.add(common)
        done.append((region, meets))
    return done


def _common_meet(flow: Flow, blocks: set[int]) -> int:
    """Nearest block that all of `blocks` reach on every way out: common post-dominator, or one of themselves."""
    chains = []
    for b in blocks:
        chain = [b]
        while chain[-1] != flow.exit:
            chain.append(flow.reconvergence[chain[-1]])
        chains.append(chain)
    rest = [set(c) for c in chains[1:]]
    for b in chains[0]:
        if all(b in r for r in rest):
            return b
    return flow.exit


def _waiting(flow: Flow, group: Group, block: int, divergent: set[int], spin_headers: set[int]) -> int:
    """Registers needed by lanes that may wait elsewhere in the group while `block` runs.

    Lanes take an edge p -> other and wait there while `block` runs when
    - p ran before `block` in this pass and `other` comes later, or is the header of a loop around `block`;
    - some loop holds `block` and p but not `other`: those lanes wait while the others go round again;
    - `other` is the header of a spinning loop, whose lanes let later blocks run first.
    """
    at = flow.position[block]
    loops = [loop.blocks for loop in flow.loops if block in loop.blocks]
    own_headers = {loop.header for loop in flow.loops if block in loop.blocks}
    needed = 0
    for other in (*group.blocks, group.exit):
        if other in (block, flow.exit) or flow.live_in[other] | needed == needed:
            continue
        if other in spin_headers or _may_wait(flow, group, at, loops, own_headers, other, divergent):
            needed |= flow.live_in[other]
    return needed


def _may_wait(flow: Flow, group: Group, at: int, loops, own_headers, other: int, divergent: set[int]) -> bool:
    later = other == group.exit or flow.position[other] > at
    for p in flow.predecessors[other]:
        if p not in group.members:
            if p in divergent and later:
                return True
            continue
        if flow.position[p] < at and (later or other in own_headers):
            return True
        if any(p in blocks and other not in blocks for blocks in loops):
            return True
    return False
