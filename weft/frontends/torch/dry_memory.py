"""The GPU's memory in a dry run: an allocator in, one that goes on beyond the capacity and notes where, out."""

from __future__ import annotations

from typing import Any

from weft import settings

# What the run's summary says of a dry run, as plain data: the rank that ran and how many there would be, and for each
# device that was too small the place in the program, what was asked for there and what was reserved by then, in bytes,
# and whether it was granted (else PyTorch's OutOfMemoryError was raised).
notes: dict[str, Any] = {"rank": 0, "ranks": 1, "overflows": []}


def prepare_allocator(allocator: Any) -> None:
    """To be called for each GPU of a dry run."""
    allocator._check_host = hold_nothing
    allocator.overflow = note_overflow
    notes["overflows"] = [found for found in notes["overflows"] if found["device"] != allocator.index]


def hold_nothing(requested: int) -> None:
    """Whether the host has room for so many bytes is no question where there are no data."""


def note_overflow(allocator: Any, segment: int) -> bool:
    """A request that the chip would refuse; answers whether the run goes on. The first of each device is noted with the
    program's line."""
    granted = not settings.current().dry_limit
    if any(found["device"] == allocator.index for found in notes["overflows"]):
        return granted
    from weft.frontends.torch.dry_values import find_line

    file, line = find_line()
    notes["overflows"].append({
        "device": allocator.index, "place": f"{file}:{line}" if file else "", "requested": segment,
        "reserved": allocator.reserved.current, "granted": granted,
    })  # fmt: skip
    return granted
