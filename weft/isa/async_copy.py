"""Asynchronous copies without a tensor map: cp.async, cp.async.bulk, cp.reduce.async.bulk, st.bulk.

A copy is complete when it was issued, which programs that wait as they must cannot tell from later. Programs that
forget to wait can be found with deferred copies (weft/codegen/deferred.py), where nothing is visible before the wait.
Sections: PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".
"""

from __future__ import annotations

from weft.errors import IllegalAddressError, KernelFault
from weft.isa.atomic import combined
from weft.isa.barrier import CTA, mbarrier_address, shared_offset, update_reference
from weft.isa.instruction import instruction
from weft.isa.memory import PREFETCH_SIZES
from weft.isa.operands import Immediate, Negated, Register
from weft.types import TYPES, ScalarType

# Operands that a bulk copy refuses: Fault.size of a BULK fault.
MISUSE = {1: "multiple of 16", 2: "multiple of 8", 3: "no such block"}
EXPLAINED = {
    "multiple of 16": "addresses and the size of a bulk copy must be multiples of 16, found {:#x}",
    "multiple of 8": "the address and the size of st.bulk must be multiples of 8, found address {:#x}",
    "no such block": "the mask {:#x} names blocks that the cluster does not have",
}
EVERY_BYTE = 0xFFFF
ALONE = 0xFFFFFFFF  # in the place of a mask of blocks: the destination as written


def check(t, wrong: bool, why: str, address: int) -> None:
    if wrong:
        raise t.fault(KernelFault, EXPLAINED[why].format(address), address)


def load_bytes(t, space: str, address: int, size: int) -> bytes:
    """`size` bytes of memory, whatever its alignment."""
    if size % 16 == 0 and address % 16 == 0:
        return b"".join(t.load(space, address + i, 16).to_bytes(16, "little") for i in range(0, size, 16))
    return bytes(t.load(space, address + i, 1) for i in range(size))


def store_bytes(t, space: str, address: int, data: bytes) -> None:
    if len(data) % 16 == 0 and address % 16 == 0:
        for i in range(0, len(data), 16):
            t.store(space, address + i, 16, int.from_bytes(data[i : i + 16], "little"))
        return
    for i, byte in enumerate(data):
        t.store(space, address + i, 1, byte)


# ---------------------------------------------------------------- cp.async
_COPY = {"raw": True, "pipe": "lsu", "effects": ("memory",), "ptx": "7.0", "sm": 80, "section": "9.7.9.25"}


@instruction("cp.async.cop.dst.global{.L2::cache_hint}{.size} [a], [b], c{, e}{, f}", cop=("ca", "cg"), dst=CTA,
             size=PREFETCH_SIZES, operands={"c": "u32", "e": "u32", "f": "b64"}, **_COPY)  # fmt: skip
class CopyAsync:
    """4, 8 or 16 bytes from global to shared memory; bytes beyond the source size, or all if the predicate of
    ignore-src holds, are zero."""

    @staticmethod
    def reference(t, m, ins):
        size, limit = ins.operands[2].value, _limit(m, ins)
        destination, source = t.address(ins.operands[0]), t.address(ins.operands[1])
        count = size if limit is None else min(size, _count_reference(t, limit, size))
        data = 0
        if count:
            data = t.load("global", source, size) if count == size else _load_some(t, source, count)
        t.store("shared", destination, size, data)

    @staticmethod
    def emit(b, m, ins):
        size, limit = ins.operands[2].value, _limit(m, ins)
        destination, source = b.address(ins.operands[0], "shared"), b.address(ins.operands[1], "global")
        count = None if limit is None else _count(b, limit, size)
        b.copy_to_shared(destination, source, size, count)

    @staticmethod
    def check(m, ins):
        sizes = (16,) if m.cop == "cg" else (4, 8, 16)
        if getattr(ins.operands[2], "value", None) not in sizes:
            return f"the size must be {' or '.join(map(str, sizes))}"
        return ""


def _limit(m, ins):
    """The operand that limits the bytes: a source size or a predicate. The last one of a copy with a cache hint is the
    cache policy."""
    rest = ins.operands[3 : len(ins.operands) - bool(m.get("L2::cache_hint"))]
    return rest[0] if rest else None


def _count_reference(t, operand, size: int) -> int:
    register = operand.operand if isinstance(operand, Negated) else operand
    if isinstance(register, Register) and t.register_type(register).bits == 1:
        return 0 if t.read(operand, TYPES["pred"]) else size
    return t.read(operand, TYPES["u32"])


def _load_some(t, source: int, count: int) -> int:
    return sum(t.load("global", source + i, 1) << (8 * i) for i in range(count))


def _count(b, operand, size: int):
    """Bytes to copy, per lane: the source size, or none under ignore-src."""
    register = operand.operand if isinstance(operand, Negated) else operand
    if isinstance(register, Register) and b.registers.bits.get(register.name) == 1:
        return b.select(b.read(operand, 1), b.const(0, 32), b.const(size, 32))
    return b.umin(b.read(operand, 32), b.const(size, 32))


class _Done:
    @staticmethod
    def reference(t, m, ins):
        return None

    @staticmethod
    def emit(b, m, ins):
        return None


class _Group(_Done):
    bulk = False

    @classmethod
    def emit(cls, b, m, ins):
        verb = next(token for token in m.tokens if token in ("commit_group", "wait_group", "wait_all"))
        b.copy_groups(verb, cls.bulk, int(ins.operands[0].value) if ins.operands else 0)

    @staticmethod
    def check(m, ins):
        return "" if not ins.operands or isinstance(ins.operands[0], Immediate) else "the number must be a constant"


@instruction("cp.async.commit_group", **_COPY)
@instruction("cp.async.wait_group a", operands={"a": "u32"}, **_COPY)
@instruction("cp.async.wait_all", **_COPY)
class CopyAsyncGroup(_Group):
    """Copies have completed when they were issued, unless they are deferred."""


@instruction("cp.async.mbarrier.arrive{.noinc}{.space}.b64 [a]", space=CTA, raw=True, pipe="lsu", effects=("memory",),
             ptx="7.0", sm=80, section="9.7.13.15")  # fmt: skip
class CopyAsyncArrive:
    """An arrival once this thread's copies are done. Without .noinc the pending count is first raised by one, which
    the arrival then takes back."""

    @staticmethod
    def reference(t, m, ins):
        space = "shared" if m.get("space") else "generic"
        update_reference(t, space, t.address(ins.operands[0]), arrivals=int(m.noinc))

    @staticmethod
    def emit(b, m, ins):
        b.arrive_after_copies(mbarrier_address(b, ins.operands[0], m), bool(m.noinc))


# ---------------------------------------------------------------- cp.async.bulk
_BULK = {"raw": True, "pipe": "lsu", "effects": ("memory",), "ptx": "8.0", "sm": 90, "section": "9.7.9.25.4"}
HINT = (False, True)


def hinted(head: str, hint: bool, operands: str) -> str:
    """A signature with or without a cache hint and its policy operand."""
    return f"{head}{'.L2::cache_hint' * hint} {operands}{', h' * hint}"


def directed(m) -> str:
    """The destination is written before the source."""
    spaces = [token for token in m.tokens if token in ("global", "shared::cta", "shared::cluster")]
    if "mbarrier::complete_tx::bytes" in m.tokens:
        legal = spaces[0] != "global" and spaces != ["shared::cta", "shared::cluster"]
    else:
        legal = spaces[0] == "global"
    return "" if legal else f"found .{spaces[0]}.{spaces[1]}, expected the destination's space, then the source's"


def mask_of_blocks(b, operand):
    return b.const(ALONE, 32) if operand is None else b.zext(b.read(operand, 16), 32)


class _BulkLoad:
    """Global to shared memory; the mbarrier is told the bytes."""

    multicast = False

    @classmethod
    def reference(cls, t, m, ins):
        destination, source, bar = (t.address(ins.operands[i]) for i in (0, 1, 3))
        size = t.read(ins.operands[2], TYPES["u32"])
        for value in (source, destination, size):
            check(t, value % 16 != 0, "multiple of 16", value)
        data = load_bytes(t, "global", source, size)
        for base in destinations(t, t.read(ins.operands[4], TYPES["u16"]) if cls.multicast else None):
            store_bytes(t, "cluster", base(destination), data)
            update_reference(t, "cluster", base(bar), bytes_=-size)

    @classmethod
    def emit(cls, b, m, ins):
        destination, bar = (b.address(ins.operands[i], "shared") for i in (0, 3))
        operands = [b.address(ins.operands[1], "global"), destination, b.read(ins.operands[2], 32), bar]
        blocks = mask_of_blocks(b, ins.operands[4] if cls.multicast else None)
        b.bulk_call("weft_bulk_load", [*operands, blocks], slots=1)


class _BulkLoadMany(_BulkLoad):
    __doc__ = _BulkLoad.__doc__
    multicast = True


def destinations(t, blocks: int | None):
    """For each block that gets a copy: what turns an address into that block's."""
    if blocks is None:
        return [lambda address: address]
    size = t.special("%cluster_nctarank")
    check(t, blocks >> size != 0, "no such block", blocks)
    return [lambda address, rank=rank: t.map_to_rank(address, rank) for rank in range(size) if blocks >> rank & 1]


for _hint in HINT:
    for _dst in ("shared::cta", "shared::cluster"):
        _head = f"cp.async.bulk.{_dst}.global.mbarrier::complete_tx::bytes"
        _types = {"c": "u32", "h": "b64"}
        _since = {**_BULK, "ptx": "8.6" if _dst == "shared::cta" else "8.0"}
        instruction(hinted(_head, _hint, "[a], [b], c, [e]"), operands=_types, where=directed, **_since)(_BulkLoad)
    instruction(
        hinted(f"{_head}.multicast::cluster", _hint, "[a], [b], c, [e], f"), operands={**_types, "f": "u16"},
        where=directed, **_BULK,
    )(_BulkLoadMany)  # fmt: skip


class _BulkStore:
    """Shared to global memory, into the thread's bulk group; with .cp_mask only the bytes of every 16 whose bit is
    set."""

    @staticmethod
    def reference(t, m, ins):
        destination, source = t.address(ins.operands[0]), t.address(ins.operands[1])
        size = t.read(ins.operands[2], TYPES["u32"])
        mask = t.read(ins.operands[-1], TYPES["u16"]) if m.get("cp_mask") else EVERY_BYTE
        for value in (destination, source, size):
            check(t, value % 16 != 0, "multiple of 16", value)
        data = load_bytes(t, "shared", source, size)
        if mask == EVERY_BYTE:
            store_bytes(t, "global", destination, data)
            return
        load_bytes(t, "global", destination, size)
        for i, byte in enumerate(data):
            if mask >> (i & 15) & 1:
                t.store("global", destination + i, 1, byte)

    @staticmethod
    def emit(b, m, ins):
        operands = [b.address(ins.operands[0], "global"), b.address(ins.operands[1], "shared")]
        mask = b.zext(b.read(ins.operands[-1], 16), 32) if m.get("cp_mask") else b.const(EVERY_BYTE, 32)
        b.bulk_call("weft_bulk_store", [*operands, b.read(ins.operands[2], 32), mask], slots=1)


for _hint in HINT:
    _head = "cp.async.bulk.global.shared::cta.bulk_group"
    instruction(
        hinted(_head, _hint, "[a], [b], c"), operands={"c": "u32", "h": "b64"}, where=directed, **_BULK
    )(_BulkStore)  # fmt: skip
    instruction(
        hinted(_head, _hint, "[a], [b], c").replace(" ", ".cp_mask ", 1) + ", f",
        operands={"c": "u32", "h": "b64", "f": "u16"}, where=directed, **{**_BULK, "ptx": "8.6", "sm": 100},
    )(_BulkStore)  # fmt: skip


@instruction("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [a], [b], c, [e]",
             operands={"c": "u32"}, where=directed, **_BULK)  # fmt: skip
class BulkShared:
    """From this block's shared memory to that of a block of the cluster, whose mbarrier is told the bytes."""

    @staticmethod
    def reference(t, m, ins):
        destination, source, bar = (t.address(ins.operands[i]) for i in (0, 1, 3))
        size = t.read(ins.operands[2], TYPES["u32"])
        for value in (destination, source, size):
            check(t, value % 16 != 0, "multiple of 16", value)
        store_bytes(t, "cluster", destination, load_bytes(t, "shared", source, size))
        update_reference(t, "cluster", bar, bytes_=-size)

    @staticmethod
    def emit(b, m, ins):
        destination, source, bar = (b.address(ins.operands[i], "shared") for i in (0, 1, 3))
        b.bulk_call("weft_bulk_shared", [destination, source, b.read(ins.operands[2], 32), bar])


@instruction("cp.async.bulk.prefetch.L2.global [a], c", operands={"c": "u32"}, **_BULK)
@instruction("cp.async.bulk.prefetch.L2.global.L2::cache_hint [a], c, h", operands={"c": "u32", "h": "b64"}, **_BULK)
class BulkPrefetch(_Done):
    """A hint."""


@instruction("cp.async.bulk.commit_group", **_BULK)
@instruction("cp.async.bulk.wait_group{.read} a", operands={"a": "u32"}, **_BULK)
class BulkGroup(_Group):
    """Copies have completed when they were issued, unless they are deferred."""

    bulk = True


# ---------------------------------------------------------------- cp.reduce.async.bulk
_INTEGERS = ("u32", "s32", "u64", "s64")
# operation -> types, as the kind and width of the atomic operation (PTX ISA, "cp.reduce.async.bulk").
KINDS = {
    "u32": ("u", 32), "s32": ("s", 32), "u64": ("u", 64), "s64": ("s", 64), "b32": ("b", 32), "b64": ("b", 64),
    "f16": ("f16", 16), "bf16": ("bf16", 16), "f32": ("f", 32), "f64": ("f", 64),
}  # fmt: skip
GLOBAL_TYPES = {
    "add": ("u32", "s32", "u64", "f32", "f64"), "min": (*_INTEGERS, "f16", "bf16"), "max": (*_INTEGERS, "f16", "bf16"),
    "inc": ("u32",), "dec": ("u32",), "and": ("b32", "b64"), "or": ("b32", "b64"), "xor": ("b32", "b64"),
}  # fmt: skip
SHARED_TYPES = {
    "add": ("u32", "s32", "u64"), "min": ("u32", "s32"), "max": ("u32", "s32"), "inc": ("u32",), "dec": ("u32",),
    "and": ("b32",), "or": ("b32",), "xor": ("b32",),
}  # fmt: skip


def reduce_bytes(operation: str, type_: ScalarType, old: bytes, new: bytes, space: str = "global") -> bytes:
    """Element after element combined. Sums of f32 in global memory flush subnormals."""
    size = type_.bytes

    def element(data: bytes, i: int) -> int:
        return int.from_bytes(data[i : i + size], "little")

    return b"".join(
        combined(operation, type_, element(old, i), element(new, i), space).to_bytes(size, "little")
        for i in range(0, len(new), size)
    )


def _define_reduction(operation: str, type_: str, shared: bool, noftz: bool) -> None:
    kind, bits = KINDS[type_]
    keeps = noftz and type_ == "f32"

    class Reduce:
        @staticmethod
        def reference(t, m, ins):
            destination, source = t.address(ins.operands[0]), t.address(ins.operands[1])
            size = t.read(ins.operands[2], TYPES["u32"])
            for value in (destination, source, size):
                check(t, value % 16 != 0, "multiple of 16", value)
            space = "cluster" if shared else "global"
            old, new = load_bytes(t, space, destination, size), load_bytes(t, "shared", source, size)
            reduced = reduce_bytes(operation, TYPES[type_], old, new, "shared" if keeps else "global")
            store_bytes(t, space, destination, reduced)
            if shared:
                update_reference(t, "cluster", t.address(ins.operands[3]), bytes_=-size)

        @staticmethod
        def emit(b, m, ins):
            destination = b.address(ins.operands[0], "shared" if shared else "global")
            operands = [destination, b.address(ins.operands[1], "shared"), b.read(ins.operands[2], 32)]
            if shared:
                operands.append(b.address(ins.operands[3], "shared"))
            where = "shared_" if shared else ""
            name = f"weft_bulk_reduce_{where}{operation}_{'n' if keeps else kind}_i{bits}"
            b.bulk_call(name, operands, slots=int(not shared))

    Reduce.__doc__ = "Elements of shared memory are added to those of the destination (or min, max, and ... taken)."
    tail = f"{operation}{'.noftz' * noftz}.{type_}"
    if shared:
        head = "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
        instruction(f"{head}.{tail} [a], [b], c, [e]", operands={"c": "u32"}, **_BULK)(Reduce)
        return
    for hint in HINT:
        head = f"cp.reduce.async.bulk.global.shared::cta.bulk_group{'.L2::cache_hint' * hint}.{tail}"
        instruction(f"{head} [a], [b], c{', h' * hint}", operands={"c": "u32", "h": "b64"}, **_BULK)(Reduce)


for _operation, _names in GLOBAL_TYPES.items():
    for _name in _names:
        _define_reduction(_operation, _name, False, False)
for _name in ("f16", "bf16", "f32"):
    _define_reduction("add", _name, False, True)
for _operation, _names in SHARED_TYPES.items():
    for _name in _names:
        _define_reduction(_operation, _name, True, False)


# ---------------------------------------------------------------- st.bulk
@instruction("st.bulk{.weak}{.space} [a], b, c", space=("shared::cta",), operands={"b": "u64", "c": "u64"},
             raw=True, pipe="lsu", effects=("memory",), ptx="8.6", sm=100, section="9.7.9.13")  # fmt: skip
class StoreBulk:
    """Zeroes b bytes of shared memory; the third operand can only be 0."""

    @staticmethod
    def reference(t, m, ins):
        address, size = t.address(ins.operands[0]), t.read(ins.operands[1], TYPES["u64"])
        if not m.get("space"):
            if t.space_of(address) != "shared":
                raise t.fault(IllegalAddressError, f"st.bulk at {address:#x}, which is not shared memory", address)
            address -= t.window("shared")
        check(t, address % 8 != 0 or size % 8 != 0, "multiple of 8", address)
        for i in range(0, size, 8):
            t.store("shared", address + i, 8, 0)

    @staticmethod
    def emit(b, m, ins):
        address = b.address(ins.operands[0], "shared" if m.get("space") else "generic")
        if not m.get("space"):
            address = shared_offset(b, address)
        b.bulk_call("weft_bulk_zero", [address, b.read(ins.operands[1], 64)])

    @staticmethod
    def check(m, ins):
        return "" if getattr(ins.operands[2], "value", None) == 0 else "the value stored must be 0"
