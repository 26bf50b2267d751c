"""Atomic operations: atom gives the old value back, red does not. Lanes that hit one address do so one after another.

Every memory order is at least as strong here as it was asked for. Sections: PTX ISA, "Parallel Synchronization and
Communication Instructions".
"""

from __future__ import annotations

from types import SimpleNamespace

from weft.isa.floating import exact_extreme, map_patterns
from weft.isa.instruction import instruction
from weft.isa.memory import SCOPES, elements, space_of
from weft.isa.operands import Discard
from weft.isa.rounding import add, flush, pack, unpack
from weft.types import ScalarType

SPACES = ("global", "shared", "shared::cta", "shared::cluster")
ORDERS = ("relaxed", "acquire", "release", "acq_rel")
_COMMON = {"sem": ORDERS, "scope": SCOPES, "space": SPACES}
_HEAD = "{.sem}{.scope}{.space}"
_LOGIC = ("and", "or", "xor")


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _float_sum(fmt: str, x: int, y: int, ftz: bool) -> int:
    if ftz:
        return flush(fmt, pack(fmt, add(unpack(fmt, flush(fmt, x)), unpack(fmt, flush(fmt, y)))))
    return pack(fmt, add(unpack(fmt, x), unpack(fmt, y)))


def _updated(m, old: int, operands: list[int], type_, space: str) -> int:
    """The new value in memory: the manual's table of operations."""
    op, bits, mask = m.op, type_.bits, type_.mask
    b = operands[0]
    if op == "exch":
        return b
    if op == "cas":
        return operands[1] if old == b else old
    if op in _LOGIC:
        return {"and": old & b, "or": old | b, "xor": old ^ b}[op]
    if op == "inc":
        return 0 if old >= b else old + 1
    if op == "dec":
        return b if old == 0 or old > b else old - 1
    if op in ("min", "max") and type_.kind == "f":
        name = type_.name.removesuffix("x2")
        return map_patterns(lambda x, y: exact_extreme(name, op == "max", x, y, False), type_, old, b)
    if op in ("min", "max"):
        pick = min if op == "min" else max
        if type_.kind == "s":
            return pick(old, b, key=lambda v: _signed(v, bits))
        return pick(old, b)
    if type_.kind == "f":
        lanes = type_.lanes
        width = bits // lanes
        name = type_.name[:-2] if lanes == 2 else type_.name
        part = (1 << width) - 1
        ftz = name == "f32" and space not in ("shared", "cluster")  # atom.add.f32 on global memory flushes subnormals
        return sum(
            _float_sum(name, old >> (i * width) & part, b >> (i * width) & part, ftz) << (i * width)
            for i in range(lanes)
        )
    return (old + b) & mask


def combined(op: str, type_: ScalarType, old: int, value: int, space: str = "global") -> int:
    """What `old` in memory becomes under an operation of two operands."""
    return _updated(SimpleNamespace(op=op), old, [value], type_, space)


class _Atomic:
    returns = True

    @classmethod
    def reference(cls, t, m, ins):
        operands = list(ins.operands)
        destination = operands.pop(0) if cls.returns else None
        space = space_of(m)
        address = t.address(operands[0])
        type_ = m.operand_type("b")
        parts = [elements(o) for o in operands[1 : 3 if m.op == "cas" else 2]]
        for i in range(len(parts[0])):
            values = [t.read(p[i], type_) for p in parts]
            old = t.atomic(
                space, address + i * type_.bytes, type_.bytes, lambda x, v=values: _updated(m, x, v, type_, space)
            )
            if destination is not None:
                target = elements(destination)[i]
                if not isinstance(target, Discard):
                    t.write(target, type_, old)

    @classmethod
    def emit(cls, b, m, ins):
        operands = list(ins.operands)
        destination = operands.pop(0) if cls.returns else None
        if isinstance(destination, Discard):
            destination = None
        space = space_of(m)
        address = b.address(operands[0], space)
        type_ = m.operand_type("b")
        parts = [elements(o) for o in operands[1 : 3 if m.op == "cas" else 2]]
        kind = type_.name if type_.bits < 32 or type_.lanes == 2 else type_.kind
        if type_.bits == 16 and type_.kind == "b":
            kind = "b"
        for i in range(len(parts[0])):
            values = [b.read(p[i], type_.bits, type_) for p in parts]
            at = b.add(address, b.const(i * type_.bytes, address.bits)) if i else address
            old = b.atomic(space, at, m.op, kind, type_.bits, values, returns=destination is not None)
            if destination is not None and not isinstance(elements(destination)[i], Discard):
                b.write(elements(destination)[i], old, type_.bits)


class _Reduction(_Atomic):
    returns = False


def _fits_vector(m) -> str:
    width = int(m.vec[1]) * m.type.bits
    return f"a vector of {m.vec[1]} x {m.type} is wider than 128 bits" if width > 128 else ""


def _define(opcode: str, head: str, definition: type) -> None:
    """Both families share their forms; red has no exch and no cas."""
    address = "[a], b" if opcode == "red" else "d, [a], b"
    common = {**_COMMON, "raw": True, "pipe": "lsu", "effects": ("memory", "spin")}
    if opcode == "red":
        common["sem"] = ("relaxed", "release")
        common["effects"] = ("memory",)
    section = "9.7.13.5" if opcode == "atom" else "9.7.13.6"

    def form(tail: str, more: str = "", *, ptx: str = "1.1", sm: int = 20, **choices) -> None:
        signature = f"{opcode}{head}{tail} {address}{more}"
        instruction(signature, ptx=ptx, sm=sm, section=section, operands={"e": "b64"}, **choices, **common)(definition)

    hint = "{.L2::cache_hint}"
    integers = ("u32", "s32", "u64", "s64")
    halves = ("f16", "f16x2", "bf16", "bf16x2")
    form(f".op{hint}.type", "{, e}", op=_LOGIC, type=("b32", "b64"))
    form(f".op{hint}.type", "{, e}", op=("inc", "dec"), type=("u32",))
    form(f".op{hint}.type", "{, e}", op=("min", "max"), type=integers)
    form(f".op{hint}.type", "{, e}", op=("add",), type=(*integers, "f32", "f64"))
    form(f".op.noftz{hint}.type", "{, e}", op=("add",), type=halves, ptx="6.2", sm=70)
    form(f".op{hint}.vec.type", "{, e}", op=("add",), vec=("v2", "v4"), type=("f32",), ptx="8.1", sm=90)
    form(f".op.noftz{hint}.vec.type", "{, e}", op=("add", "min", "max"), vec=("v2", "v4", "v8"), type=halves, ptx="8.1",
         sm=90, where=_fits_vector)  # fmt: skip
    if opcode == "atom":
        form(f".op{hint}.type", "{, e}", op=("exch",), type=("b32", "b64"))
        form(f".op{hint}.type", ", c{, e}", op=("cas",), type=("b16", "b32", "b64"))
        form(f".op{hint}.b128", "{, e}", op=("exch",), ptx="8.3", sm=90)
        form(f".op{hint}.b128", ", c{, e}", op=("cas",), ptx="8.3", sm=90)


_define("atom", _HEAD, _Atomic)
_define("red", _HEAD, _Reduction)
