"""Where a warp stops running: suspension, and the barriers of a block.

A bar or barrier instruction enters; what it writes into the warp's record and the barrier's counts leaves (abi.py), and
the return to the scheduler (schedule.py) with the number of the place to go on at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.analysis.flow import Op
from weft.codegen import abi
from weft.codegen.masks import Masks
from weft.codegen.value import WARP_LANES, Value
from weft.errors import PtxError


class Barriers(Masks):
    """Arrivals, waits and what they give."""

    if TYPE_CHECKING:  # the lowering's
        file: str
        op: Op | None
        simple_barriers: bool
        resume_points: list[tuple[int, str]]
        _barrier_lane_slots: list[str]

        def arrive_at_cluster(self) -> None: ...
        def await_cluster(self) -> None: ...

    # ------------------------------------------------------------ suspension
    def _suspend(self, status: int, label: str) -> None:
        """Return to the scheduler; go on at `label` when the warp runs again."""
        state = len(self.resume_points) + 1
        self.resume_points.append((state, label))
        if not self.simple_barriers:
            self._record("site", self.site)
        self.e(f"ret i32 {status | state << 8}")

    def _record_pointer(self, field: str) -> str:
        at = self.t(f"mul i32 %w, {32}")
        offset = 64 + getattr(abi.WarpRecord, field).offset
        record = self.t(f"getelementptr i8, ptr %blk, i32 {at}")
        return self.t(f"getelementptr i8, ptr {record}, i64 {offset}")

    def _record(self, field: str, value: str | int) -> None:
        self.e(f"store i32 {value}, ptr {self._record_pointer(field)}")

    # ------------------------------------------------------------ barriers
    def _barrier_operands(self, op: Op) -> tuple[Value, Value | None, Value | None]:
        """(number, thread count or None, predicate or None) of a bar or barrier instruction."""
        operands = list(op.ins.operands)
        predicate = None
        if "red" in op.ins.modifiers:
            predicate = self.read(operands[-1], 1)
            operands = operands[1:-1]
        number = self.read(operands[0], 32) if operands else self.const(0, 32)
        count = self.read(operands[1], 32) if len(operands) > 1 else None
        for v in (number, count):
            if v is not None and not v.is_uniform:
                raise PtxError(f"{op.ins.name}: the barrier's number and count must be the same in all lanes of a warp",
                               file=self.file, line=op.ins.line)  # fmt: skip
        return number, count, predicate

    def _barrier_field(self, number: Value, field: str) -> str:
        index = self.uval(number)
        at = self.t(f"mul i32 {index}, 64")
        first = abi.block_layout(self.warps, 0, 0, 0)["barriers"]
        base = self.t(f"getelementptr i8, ptr %blk, i32 {at}")
        return self.t(f"getelementptr i8, ptr {base}, i64 {first + getattr(abi.Barrier, field).offset}")

    def _add_to(self, pointer: str, amount: str | int) -> None:
        before = self.t(f"load i32, ptr {pointer}")
        self.e(f"store i32 {self.t(f'add i32 {before}, {amount}')}, ptr {pointer}")

    def _check_barrier(self, number: Value) -> None:
        c = number.constant
        if c is not None and c < abi.BARRIER_COUNT:
            return
        bad = self.t(f"icmp uge i32 {self.uval(number)}, {abi.BARRIER_COUNT}")
        wrong, fine = self.new_label("badbar"), self.new_label("bar")
        self.e(f"br i1 {bad}, label %{wrong}, label %{fine}")
        self.label(wrong)
        self.fault(abi.FaultKind.BARRIER, self.mask_word())
        self.e("br label %stopped")
        self.label(fine)

    def _emit_arrival(self, op: Op) -> None:
        """bar.arrive: counts the warp and goes on. bar.warp.sync: lanes run in lockstep already."""
        if "warp" in op.ins.modifiers:
            return
        if "cluster" in op.ins.modifiers:
            self.arrive_at_cluster()
            return
        number, count, _ = self._barrier_operands(op)
        if self.dry:
            return
        self._check_barrier(number)
        self._add_to(self._barrier_field(number, "arrived"), WARP_LANES)
        if count is not None:
            self.e(f"store i32 {self.uval(count)}, ptr {self._barrier_field(number, 'expected')}")

    def _arrive(self, op: Op) -> None:
        """Fill in the warp's record and the barrier's counts before the warp suspends."""
        if self.simple_barriers:
            return
        if "cluster" in op.ins.modifiers:
            self.await_cluster()
            return
        number, count, predicate = self._barrier_operands(op)
        self._check_barrier(number)
        self._record("barrier", self.uval(number))
        self._record("expected", self.uval(count) if count is not None else 0)
        self._add_to(self._barrier_field(number, "arrived"), WARP_LANES)
        if predicate is not None:
            self.declare("declare i32 @llvm.ctpop.i32(i32)")
            true = self.uval(self.popc(self.ballot(predicate)))
            false = self.uval(self.popc(self.ballot(self.not_(predicate))))
            self._add_to(self._barrier_field(number, "sum_popc"), true)
            self._add_to(self._barrier_field(number, "sum_or"), true)
            self._add_to(self._barrier_field(number, "sum_and"), false)

    def _barrier_result(self, op: Op) -> None:
        """After the barrier: write the destination of bar.red."""
        if "red" not in op.ins.modifiers:
            return
        self.site, self.op = op.site, op
        number, _, _ = self._barrier_operands(op)
        kind = next(k for k in ("popc", "and", "or") if k in op.ins.modifiers)
        word = self.t(f"load i32, ptr {self._barrier_field(number, f'result_{kind}')}")
        if kind == "popc":
            self.write(op.ins.operands[0], self.scalar(word, 32))
        else:
            test = self.t(f"icmp {'eq' if kind == 'and' else 'ne'} i32 {word}, 0")
            self.write(op.ins.operands[0], self.scalar(test, 1))

    def _barrier_lanes(self) -> list[str]:
        if not hasattr(self, "_barrier_lane_slots"):
            self._barrier_lane_slots = self._mask_slot("%reduced", True)
        return self._barrier_lane_slots
