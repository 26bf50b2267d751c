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


def transposed(rows: list[int], bits: int) -> list[int]:
    """A matrix whose rows are integers of elements of `bits` bits, 16 bytes long; the rows of the transposed one."""
    mask = (1 << bits) - 1
    columns = range(0, 8 * ROW_BYTES, bits)
    return [sum((row >> c & mask) << (r * bits) for r, row in enumerate(rows)) for c in columns]


def unpacked(row: int, bits: int) -> int:
    """16 elements of 4 or 6 bits, the first lowest, each in a byte of its own."""
    return sum((row >> (i * bits) & ((1 << bits) - 1)) << 8 * i for i in range(ROW_BYTES))


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


def _check_registers(b, registers, wanted: int) -> None:
    if len(registers) != wanted:
        raise b.error(f"{wanted} registers expected, found {len(registers)}")


_SHARED = ("shared", "shared::cta")
_COMMON = {"raw": True, "collective": True, "pipe": "lsu", "effects": ("memory", "convergence"), "ss": _SHARED}
_LOAD = {"operands": {"d": "b32"}, "section": "9.7.15.5.15", **_COMMON}
_STORE = {"operands": {"b": "b32"}, "section": "9.7.15.5.16", **_COMMON}
_NUM = ("x1", "x2", "x4")
_PACKED = {"b6x16_p32": 6, "b4x16_p64": 4}


class _Load:
    """Rows are loaded, 4-bit and 6-bit elements unpacked, matrices transposed; each register takes 8 rows."""

    @staticmethod
    def reference(threads, m, ins):
        d, address = ins.operands
        registers = elements(d)
        rows = [0] * LANES
        for lane in range(8 * len(registers)):
            t = threads[lane]
            if t is not None:
                rows[lane] = t.load(_space(m), _row_address(t, address, _space(m)), ROW_BYTES)
        if m.get("packed"):
            rows = [unpacked(row, _PACKED[m.packed]) for row in rows]
        if m.get("trans"):
            height, bits = (16, 8) if m.shape == "m16n16" else (8, 16)
            rows = [row for i in range(0, LANES, height) for row in transposed(rows[i : i + height], bits)]
        for i, register in enumerate(registers):
            for lane, t in enumerate(threads):
                if t is not None:
                    t.write(register, _B32, rows[8 * i + (lane >> 2)] >> (lane & 3) * 32 & 0xFFFFFFFF)

    @staticmethod
    def emit(b, m, ins):
        d, address = ins.operands
        registers = elements(d)
        wide = m.shape == "m16n16"
        _check_registers(b, registers, 2 * _count(m) if wide else _count(m))
        found = b.load_matrices(address, _space(m), len(registers))
        if found is None:
            return
        if m.get("packed"):
            found = [_emit_unpacked(b, value, _PACKED[m.packed]) for value in found]
        if m.get("trans") and wide:
            found = [x for i in range(0, len(found), 2) for x in b.transpose_bytes(found[i], found[i + 1])]
        elif m.get("trans"):
            found = [b.transpose_halves(value) for value in found]
        for register, value in zip(registers, found):
            b.write(register, value)


def _emit_unpacked(b, value, bits: int):
    """Each lane has four elements of its row to unpack: 4 * bits bits, which lie in one or two words of the row."""
    lane = b.lane()
    column = b.and_(lane, b.const(3, 32))
    first_bit = b.mul(column, b.const(4 * bits, 32))
    word = b.lshr(first_bit, b.const(5, 32))
    start = b.sub(lane, column)
    low = b.shuffle(value, b.add(start, word))
    high = b.shuffle(value, b.add(start, b.and_(b.add(word, b.const(1, 32)), b.const(3, 32))))
    packed = b.fshr(high, low, b.and_(first_bit, b.const(31, 32)))
    parts = [b.and_(b.lshr(packed, b.const(i * bits, 32)), b.const((1 << bits) - 1, 32)) for i in range(4)]
    return b.pack([b.trunc(part, 8) for part in parts])


@instruction("ldmatrix.sync.aligned.shape.num{.trans}{.ss}.b16 d, [a]", shape=("m8n8",), num=_NUM, ptx="6.5", sm=75,
             **_LOAD)  # fmt: skip
@instruction("ldmatrix.sync.aligned.shape.num.trans{.ss}.b8 d, [a]", shape=("m16n16",), num=_NUM[:2], ptx="8.6",
             sm=100, **_LOAD)  # fmt: skip
@instruction("ldmatrix.sync.aligned.shape.num.trans{.ss}.b8x16.packed d, [a]", shape=("m16n16",), num=_NUM[:2],
             packed=tuple(_PACKED), ptx="8.6", sm=100, **_LOAD)  # fmt: skip
class LoadMatrix(_Load):
    """Matrices of 8 x 8 elements of 16 bits, or of 16 x 16 elements of 8 bits."""


@instruction("ldmatrix.sync.aligned.shape.num{.ss}.b8x16.packed d, [a]", shape=("m8n16",), num=_NUM,
             packed=tuple(_PACKED), ptx="8.6", sm=100, **_LOAD)  # fmt: skip
class LoadPacked(_Load):
    """Matrices of 8 x 16 elements of 6 or 4 bits."""


@instruction("stmatrix.sync.aligned.shape.num{.trans}{.ss}.b16 [a], b", shape=("m8n8",), num=_NUM, ptx="7.8", sm=90,
             **_STORE)  # fmt: skip
@instruction("stmatrix.sync.aligned.shape.num.trans{.ss}.b8 [a], b", shape=("m16n8",), num=_NUM, ptx="8.6", sm=100,
             **_STORE)  # fmt: skip
class StoreMatrix:
    """Matrices of 8 x 8 elements of 16 bits, or of 16 x 8 elements of 8 bits, these by columns: a lane holds rows
    lane / 4 and lane / 4 + 8 of two columns, as it does of an accumulator."""

    @staticmethod
    def reference(threads, m, ins):
        address, b = ins.operands
        for i, register in enumerate(elements(b)):
            rows = [0] * 8
            for lane, t in enumerate(threads):
                word = 0 if t is None else t.read(register, _B32)
                if m.shape == "m16n8":
                    for byte in range(4):
                        at = 8 * ((lane >> 2) + 8 * (byte >> 1))
                        rows[2 * (lane & 3) + (byte & 1)] |= (word >> 8 * byte & 0xFF) << at
                else:
                    rows[lane >> 2] |= word << (lane & 3) * 32
            if m.trans and m.shape == "m8n8":
                rows = transposed(rows, 16)
            for row, data in enumerate(rows):
                t = threads[8 * i + row]
                if t is not None:
                    t.store(_space(m), _row_address(t, address, _space(m)), ROW_BYTES, data)

    @staticmethod
    def emit(b, m, ins):
        address, source = ins.operands
        registers = elements(source)
        _check_registers(b, registers, _count(m))
        values = [b.read(register, 32) for register in registers]
        if any(v is None for v in values):
            return
        if m.shape == "m16n8":
            values = [b.columns_of_bytes(v) for v in values]
        elif m.trans:
            values = [b.transpose_halves(v) for v in values]
        b.store_matrices(address, _space(m), values)


@instruction("movmatrix.sync.aligned.m8n8.trans.b16 d, a", operands={"d": "b32", "a": "b32"}, collective=True,
             pipe="alu", effects=("convergence",), ptx="7.8", sm=75, section="9.7.15.5.17")  # fmt: skip
class MoveMatrix:
    """Transposes a matrix of 8 x 8 elements of 16 bits that is spread over a warp."""

    @staticmethod
    def reference(m, active, a):
        words = [sum(a[4 * r + i] << 32 * i for i in range(4)) for r in range(8)]
        found = transposed(words, 16)
        return [found[lane >> 2] >> (lane & 3) * 32 & 0xFFFFFFFF for lane in range(LANES)]

    @staticmethod
    def emit(b, m, a):
        return b.transpose_halves(a)
