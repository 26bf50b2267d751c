"""A statistic of the caching allocator: changes in, current value, peak and total out."""

from __future__ import annotations


class Counter:
    """A statistic: current value, its peak, and the sum of all increases."""

    __slots__ = ("current", "peak", "total")

    def __init__(self) -> None:
        self.current = self.peak = self.total = 0

    def add(self, amount: int) -> None:
        self.current += amount
        if amount > 0:
            self.total += amount
            if self.current > self.peak:
                self.peak = self.current

    def as_dict(self) -> dict[str, int]:
        return {
            "current": self.current, "peak": self.peak, "allocated": self.total, "freed": self.total - self.current,
        }  # fmt: skip
