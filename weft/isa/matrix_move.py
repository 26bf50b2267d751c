"""ldmatrix, stmatrix and movmatrix: matrices between shared memory and the registers of a warp, and transposition.

A matrix of 8 x 8 elements of 16 bits takes one register: lane l holds row l / 4, elements 2 (l % 4) and the next. With
.trans it holds the transposed matrix. Lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i; a row is 16
bytes, at a multiple of 16. The forms with elements of 8 bits have rows of 16 elements: two registers for a matrix of
16 x 16, one for 8 x 16. 4-bit and 6-bit elements are unpacked to bytes on the way.
Section: PTX ISA, "Warp-level matrix load instruction: ldmatrix", and the two that follow.
"""

from __future__ import annotations

from weft.errors import IllegalAddressError
from weft.isa.fragments import LANES
from weft.isa.instruction import instruction
from weft.isa.memory import elements
from weft.types import TYPES

ROW_BYTES = 16
_B32 = TYPES["b32"]


def transposed(words: list[int], rows: int, bits: int) -> list[int]:
    """A matrix of `rows` x 16 / (bits / 8) elements, its rows as 16-byte integers; the transposed one likewise."""
    columns = 8 * ROW_BYTES // bits
    mask = (1 << bits) - 1
    return [sum((words[r] >> (c * bits) & mask) << (r * bits) for r in range(rows)) for c in range(columns)]


def _row_address(t, ins_operand, space: str) -> int:
    """Address of a lane's row, in `space`; a generic one must be in the shared window."""
    address = t.address(ins_operand)
    if space == "generic" and t.space_of(address) != "shared":
        raise t.fault(IllegalAddressError, f"address {address:#x} is not in shared memory", address)
    return address


def _space(m) -> str:
    return "shared" if m.ss else "generic"


def _count(m) -> int:
    return int(m.num[1])


_SHARED = ("shared", "shared::cta")
_COMMON = {"raw": True, "collective": True, "pipe": "lsu", "effects": ("memory", "convergence")}


@instruction("ldmatrix.sync.aligned.m8n8.num{.trans}{.ss}.b16 d, [a]", num=("x1", "x2", "x4"), ss=_SHARED,
             operands={"d": "b32"}, ptx="6.5", sm=75, section="9.7.15.5.15", **_COMMON)  # fmt: skip
class LoadMatrix:
    """One, two or four matrices of 8 x 8 elements of 16 bits."""

    @staticmethod
    def reference(threads, m, ins):
        d, address = ins.operands
        rows = [0] * LANES
        for lane in range(8 * _count(m)):
            t = threads[lane]
            if t is not None:
                rows[lane] = t.load(_space(m), _row_address(t, address, _space(m)), ROW_BYTES)
        for i, register in enumerate(elements(d)):
            words = rows[8 * i : 8 * i + 8]
            if m.trans:
                words = transposed(words, 8, 16)
            for lane, t in enumerate(threads):
                if t is not None:
                    t.write(register, _B32, words[lane >> 2] >> (lane & 3) * 32 & 0xFFFFFFFF)

    @staticmethod
    def emit(b, m, ins):
        d, address = ins.operands
        registers = elements(d)
        if len(registers) != _count(m):
            raise b.error(f"operand d must have {_count(m)} registers, found {len(registers)}")
        found = b.load_matrices(address, _space(m), _count(m))
        if found is not None:
            for register, value in zip(registers, found):
                b.write(register, b.transpose_halves(value) if m.trans else value)


@instruction("stmatrix.sync.aligned.m8n8.num{.trans}{.ss}.b16 [a], b", num=("x1", "x2", "x4"), ss=_SHARED,
             operands={"b": "b32"}, ptx="7.8", sm=90, section="9.7.15.5.16", **_COMMON)  # fmt: skip
class StoreMatrix:
    """One, two or four matrices of 8 x 8 elements of 16 bits."""

    @staticmethod
    def reference(threads, m, ins):
        address, b = ins.operands
        for i, register in enumerate(elements(b)):
            words = [0] * 8
            for lane, t in enumerate(threads):
                if t is not None:
                    words[lane >> 2] |= t.read(register, _B32) << (lane & 3) * 32
            if m.trans:
                words = transposed(words, 8, 16)
            for row, word in enumerate(words):
                t = threads[8 * i + row]
                if t is not None:
                    t.store(_space(m), _row_address(t, address, _space(m)), ROW_BYTES, word)

    @staticmethod
    def emit(b, m, ins):
        address, source = ins.operands
        registers = elements(source)
        if len(registers) != _count(m):
            raise b.error(f"operand b must have {_count(m)} registers, found {len(registers)}")
        values = [b.read(register, 32) for register in registers]
        if any(v is None for v in values):
            return
        b.store_matrices(address, _space(m), [b.transpose_halves(v) if m.trans else v for v in values])


@instruction("movmatrix.sync.aligned.m8n8.trans.b16 d, a", operands={"d": "b32", "a": "b32"}, collective=True,
             pipe="alu", effects=("convergence",), ptx="7.8", sm=75, section="9.7.15.5.17")  # fmt: skip
class MoveMatrix:
    """Transposes a matrix of 8 x 8 elements of 16 bits that is spread over a warp."""

    @staticmethod
    def reference(m, active, a):
        words = [sum(a[4 * r + i] << 32 * i for i in range(4)) for r in range(8)]
        found = transposed(words, 8, 16)
        return [found[lane >> 2] >> (lane & 3) * 32 & 0xFFFFFFFF for lane in range(LANES)]

    @staticmethod
    def emit(b, m, a):
        return b.transpose_halves(a)
