"""Several processes on one clock: collectives start when the last rank has come, messages when both sides have.

Nothing here runs in other processes: timelines are written by hand, as each rank would record its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weft.model.clock import AFTER_RANKS
from weft.model.collectives import estimate_collective
from weft.model.work import KernelLaunch
from weft.report.run import describe_processes, in_order, slowest
from weft.report.trace import write_trace
from weft.timeline import Timeline, align_ranks, spans_of_ranks

MIB = 1 << 20


def kernel(seconds: float) -> KernelLaunch:
    """One that takes about so long on an H100: it moves that much memory."""
    return KernelLaunch(f"kernel {seconds}", 132, 1024, bytes_read=seconds * 3.35e12 * 0.92)


def make_ranks(count: int = 2) -> list[Timeline]:
    ranks = [Timeline("h100", devices=count) for _ in range(count)]
    for place, timeline in enumerate(ranks):
        timeline.rank = place
    return ranks


def reduce_everywhere(ranks: list[Timeline], stream: object = 0, group: str = "all") -> None:
    for place, timeline in enumerate(ranks):
        timeline.collective("all_reduce", 64 * MIB, len(ranks), stream, place, group=group)


def message(timeline: Timeline, sender: int, receiver: int, here: int) -> None:
    """Rank `here` sends or receives, and does not wait for it."""
    stream = f"{sender}->{receiver}"
    timeline.stream_wait(stream, 0, here)
    timeline.collective("p2p", 8 * MIB, 2, stream, here, group="all", pair=(sender, receiver))


def ends(timelines: list[Timeline]) -> list[float]:
    align_ranks(timelines)
    return [timeline.clock.elapsed for timeline in timelines]


def test_a_collective_starts_when_the_last_rank_has_come() -> None:
    ranks = make_ranks()
    ranks[0].kernel(kernel(1e-3), device=0)
    ranks[1].kernel(kernel(4e-3), device=1)
    reduce_everywhere(ranks)
    alone = ranks[0].clock.elapsed
    assert alone < 2e-3, "by itself a process knows nothing of the other"
    first, second = spans_of_ranks(ranks, ranks[0].chip)
    travel = estimate_collective(ranks[0].chip, "all_reduce", 64 * MIB, 2).seconds
    assert first[-1].start == second[-1].start == pytest.approx(second[0].start + second[0].seconds, abs=1e-5)
    assert first[-1].waited_for == AFTER_RANKS and first[-1].waited == pytest.approx(3e-3, rel=0.05)
    assert ends(ranks) == pytest.approx([second[-1].start + travel] * 2)
    assert ranks[0].clock.waits[AFTER_RANKS] == pytest.approx(3e-3, rel=0.05)
    assert AFTER_RANKS not in ranks[1].clock.waits


def test_a_rank_computes_while_it_waits_for_another() -> None:
    """The reduction has a stream of its own; the fast rank's next kernel runs before the slow rank comes."""
    ranks = make_ranks()
    for place, seconds in ((0, 1e-3), (1, 4e-3)):
        ranks[place].kernel(kernel(seconds), device=place)
        ranks[place].stream_wait("nccl", 0, place)
        ranks[place].collective("all_reduce", 64 * MIB, 2, "nccl", place, group="all")
        ranks[place].kernel(kernel(2e-3), device=place)
        ranks[place].stream_wait(0, "nccl", place)
        ranks[place].kernel(kernel(1e-3), device=place)
    spans = spans_of_ranks(ranks, ranks[0].chip)[0]
    reduction = next(span for span in spans if span.kind == "collective")
    one, two, three = (span for span in spans if span.kind == "kernel")
    assert two.start < one.start + one.seconds + 1e-5 < reduction.start
    assert three.start >= reduction.start + reduction.seconds


def test_stages_of_a_pipeline_wait_for_one_another() -> None:
    """Four micro-batches through two stages: the second starts late by one micro-batch, and ends last."""
    ranks = make_ranks()
    for _ in range(4):
        ranks[0].kernel(kernel(1e-3), device=0)
        message(ranks[0], 0, 1, 0)
        message(ranks[1], 0, 1, 1)
        ranks[1].stream_wait(0, "0->1", 1)
        ranks[1].kernel(kernel(1e-3), device=1)
    assert ranks[1].clock.elapsed < 4.4e-3, "by itself it does not know that it has to wait"
    first, second = ends(ranks)
    assert second == pytest.approx(5e-3, rel=0.06) and first < second


def test_receives_before_sends_do_not_block() -> None:
    ranks = make_ranks()
    for here in range(2):
        message(ranks[here], 1 - here, here, here)
        message(ranks[here], here, 1 - here, here)
        ranks[here].stream_wait(0, f"{1 - here}->{here}", here)
        ranks[here].kernel(kernel(1e-3), device=here)
    assert ends(ranks) == pytest.approx([1e-3] * 2, rel=0.2)


def test_the_host_waits_with_its_device() -> None:
    ranks = make_ranks()
    ranks[1].kernel(kernel(5e-3), device=1)
    for place, timeline in enumerate(ranks):
        timeline.stream_wait("nccl", 0, place)
    reduce_everywhere(ranks, "nccl")
    ranks[0].synchronize(0)
    ranks[0].kernel(kernel(1e-3), device=0)
    align_ranks(ranks)
    assert ranks[0].clock.host_time >= 5e-3 and ranks[0].clock.elapsed >= 6e-3


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_of_the_logs_does_not_matter(turned: bool) -> None:
    ranks = make_ranks(3)
    for step in range(5):
        for place, timeline in enumerate(ranks):
            timeline.kernel(kernel(1e-4 * (1 + (place + step) % 3)), device=place)
        reduce_everywhere(ranks)
        if step % 2:
            message(ranks[0], 0, 2, 0)
            message(ranks[2], 0, 2, 2)
    align_ranks(ranks[::-1] if turned else ranks)
    found = [timeline.clock.elapsed for timeline in ranks]
    travel = estimate_collective(ranks[0].chip, "all_reduce", 64 * MIB, 3).seconds
    # In each step somebody takes 0.3 ms.
    assert found[1] == pytest.approx(5 * (3e-4 + travel), rel=0.05)
    assert found == pytest.approx([found[1]] * 3, rel=0.05)


def test_a_rank_that_ended_holds_nobody_up() -> None:
    ranks = make_ranks(3)
    reduce_everywhere(ranks)
    reduce_everywhere(ranks[:2])  # the third has died
    ranks[0].kernel(kernel(1e-3), device=0)
    message(ranks[0], 0, 2, 0)
    ranks[0].stream_wait(0, "0->2", 0)
    ranks[0].kernel(kernel(1e-3), device=0)
    assert ends(ranks)[0] > 2e-3
    assert [timeline.clock.counts.collectives for timeline in ranks] == [3, 2, 1]


def test_groups_are_told_apart() -> None:
    ranks = make_ranks(4)
    for pair, group in ((ranks[:2], "left"), (ranks[2:], "right")):
        for place, timeline in enumerate(pair):
            timeline.kernel(kernel(1e-3 if group == "left" else 3e-3), device=place)
            timeline.collective("all_reduce", MIB, 2, 0, place, group=group)
    first, second, third, fourth = ends(ranks)
    assert first == second < 1.5e-3 and third == fourth > 3e-3


def test_logs_without_their_beginning_keep_their_own_clocks() -> None:
    ranks = make_ranks()
    ranks[1].kernel(kernel(4e-3), device=1)
    reduce_everywhere(ranks)
    ranks[0].dropped = 1
    before = ranks[0].clock.elapsed
    align_ranks(ranks)
    assert ranks[0].clock.elapsed == before
    assert [len(spans) for spans in spans_of_ranks(ranks, ranks[0].chip)] == [1, 2]


def test_alignment_on_another_chip() -> None:
    ranks = make_ranks()
    ranks[1].kernel(kernel(1e-3), device=1)
    reduce_everywhere(ranks)
    from weft.chips import find_chip

    other = find_chip("a10")
    align_ranks(ranks, [other])
    slow = ranks[0].clock_of(other).elapsed
    assert slow > 3 * ranks[0].clock.elapsed and slow == pytest.approx(ranks[1].clock_of(other).elapsed)


def test_report_of_several_ranks(tmp_path: Path) -> None:
    ranks = make_ranks()
    for place in range(2):
        ranks[place].kernel(kernel(1e-3), device=place)
        ranks[place].note_memory(place, (place + 1) << 30, 2 << 30)
    reduce_everywhere(ranks)
    parent = Timeline("h100")
    used = in_order(parent, ranks[::-1])
    assert used == ranks
    align_ranks(used)
    assert slowest(parent, ranks[::-1]) is ranks[0], "ranks that end together are spoken for by the first"
    text = describe_processes(used, ranks[0])
    assert text.startswith("this is rank 0 of 2 processes") and text.endswith("2.15 GB at most on one device")
    path = tmp_path / "trace.json"
    write_trace(used, path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {"rank 0, host (virtual)", "rank 1, host (virtual)"} <= set(names.values())
    reductions = [event for event in events if event["name"] == "all_reduce"]
    assert len({event["pid"] for event in reductions}) == 2
    assert len({(event["ts"], event["dur"]) for event in reductions}) == 1
    assert names[reductions[1]["pid"]].startswith("rank 1, device 1: ")
