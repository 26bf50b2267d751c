"""Masks in memory: which lanes wait for which block of a divergent group. Predicate chunks enter and leave.

Masks are kept as bits where the host has mask registers, else as one word of ones or zeros per lane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.codegen.registers import RegisterFile
from weft.codegen.warpops import WarpOps


class Masks(WarpOps):
    """Slots of masks, one for each chunk, and what control flow does with them."""

    if TYPE_CHECKING:  # the lowering's
        registers: RegisterFile
        has_mask_registers: bool
        mask_slots: dict[int, list[str]]

    def _mask_type(self) -> str:
        return f"i{self.chunk}" if self.has_mask_registers else self.vtype(32)

    def _mask_slot(self, name: str, in_frame: bool) -> list[str]:
        slots = []
        for c in range(self.chunks):
            slot = f"{name}.{c}"
            if in_frame:
                self.registers.frame_slot(slot, self._mask_type())
            else:
                self.registers.allocas.append(f"  {slot} = alloca {self._mask_type()}")
            slots.append(slot)
        return slots

    def _mask_out(self, x: str) -> str:
        """A predicate chunk as it is kept."""
        n = self.chunk
        if self.has_mask_registers:
            return self.t(f"bitcast <{n} x i1> {x} to i{n}")
        return self.t(f"sext <{n} x i1> {x} to {self.vtype(32)}")

    def _mask_word(self, slot: str) -> str:
        return self.t(f"load {self._mask_type()}, ptr {slot}")

    def _not_word(self, word: str) -> str:
        ones = "-1" if self.has_mask_registers else self.vector_literal([-1] * self.chunk, 32)
        return self.t(f"xor {self._mask_type()} {word}, {ones}")

    def _any_word(self, word: str) -> str:
        """i1: some lane of a kept mask is set."""
        n = self.chunk
        if self.has_mask_registers:
            return self.t(f"icmp ne i{n} {word}, 0")
        lanes = self.t(f"icmp slt {self.vtype(32)} {word}, zeroinitializer")
        return self.t(f"icmp ne i{n} {self.t(f'bitcast <{n} x i1> {lanes} to i{n}')}, 0")

    def _load_mask(self, slots: list[str]) -> tuple[str, ...]:
        n = self.chunk
        words = [self._mask_word(p) for p in slots]
        if self.has_mask_registers:
            return tuple(self.t(f"bitcast i{n} {w} to <{n} x i1>") for w in words)
        return tuple(self.t(f"icmp slt {self.vtype(32)} {w}, zeroinitializer") for w in words)

    def _store_mask(self, slots: list[str], chunks) -> None:
        for p, x in zip(slots, chunks):
            self.e(f"store {self._mask_type()} {self._mask_out(x)}, ptr {p}")

    def _clear_mask(self, slots: list[str]) -> None:
        zero = "0" if self.has_mask_registers else "zeroinitializer"
        for p in slots:
            self.e(f"store {self._mask_type()} {zero}, ptr {p}")

    def _fill_mask(self, slots: list[str]) -> None:
        ones = "-1" if self.has_mask_registers else self.vector_literal([-1] * self.chunk, 32)
        for p in slots:
            self.e(f"store {self._mask_type()} {ones}, ptr {p}")

    def _add_lanes(self, target: int, chunks) -> None:
        for p, x in zip(self.mask_slots[target], chunks):
            total = self.t(f"or {self._mask_type()} {self._mask_word(p)}, {self._mask_out(x)}")
            self.e(f"store {self._mask_type()} {total}, ptr {p}")

    def _any_waiting(self, slots: list[str]) -> str:
        total = None
        for p in slots:
            x = self._mask_word(p)
            total = x if total is None else self.t(f"or {self._mask_type()} {total}, {x}")
        return self._any_word(total)
