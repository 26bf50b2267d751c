"""What one instruction rule may ask beyond arithmetic and memory: other lanes, special registers, operands, traps and
calls to the host."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from weft.codegen import abi
from weft.codegen.loadstore import CONTEXT, Access
from weft.codegen.value import WARP_LANES, Value
from weft.errors import PtxError, UnsupportedError
from weft.isa.operands import (
    Address,
    Discard,
    Immediate,
    Negated,
    Pair,
    Register,
    SpecialRegister,
    Symbol,
    Vector,
)
from weft.types import ScalarType

_REDUCTIONS = {
    "add": ("add", 0), "and": ("and", -1), "or": ("or", 0), "xor": ("xor", 0), "umin": ("umin", -1),
    "umax": ("umax", 0), "smin": ("smin", None), "smax": ("smax", None),
}  # fmt: skip


class WarpOps(Access):
    """Rules see this class. The lowering sets `registers`, `symbols` and the state of the current instruction."""

    # ------------------------------------------------------------ operands
    def read(self, operand, bits: int, type: ScalarType | None = None) -> Value | None:
        """An operand as a value of `bits` bits; None during analysis when a register has no value yet."""
        if isinstance(operand, Register):
            value = self.registers.read(operand.name)
            return None if value is None else self.resize(value, bits, False)
        if isinstance(operand, Immediate):
            return self.const(immediate_bits(operand, bits, type), bits)
        if isinstance(operand, SpecialRegister):
            return self.special(operand.name, bits)
        if isinstance(operand, Negated):
            value = self.read(operand.operand, 1)
            return None if value is None else self.not_(value)
        if isinstance(operand, Symbol):
            return self.resize(self.symbol_address(operand.name, operand.offset), bits, False)
        if isinstance(operand, Vector):
            part = bits // len(operand.items)
            parts = [self.read(item, part, type) for item in operand.items]
            return None if any(p is None for p in parts) else self.pack(parts)
        raise self.error(f"operand {operand!r} cannot be read")

    def write(self, operand, value: Value, bits: int | None = None) -> None:
        """Write a register (or the parts of a vector); a wider register takes the value zero-extended."""
        if isinstance(operand, Discard):
            return
        if isinstance(operand, Vector):
            for item, part in zip(operand.items, self.unpack(value, len(operand.items))):
                self.write(item, part)
            return
        if isinstance(operand, Pair):
            raise self.error("a pair of destinations where one is expected")
        if not isinstance(operand, Register):
            raise self.error(f"{operand!r} is not a destination")
        width = self.registers.bits.get(operand.name)
        if width is None:
            raise self.error(f"register {operand.name} is not declared")
        self.registers.write(operand.name, self.resize(value, width, False), self.blend_mask(operand.name))

    def address(self, operand: Address, space: str) -> Value | None:
        """The address of a bracketed operand: 32 bits for shared memory (also the cluster's), 64 elsewhere."""
        bits = 32 if space in ("shared", "cluster") else 64
        base = operand.base
        if isinstance(base, Symbol):
            value = self.symbol_address(base.name, base.offset + operand.offset)
            return self.resize(value, bits, False)
        value = self.read(base, self.registers.bits[base.name] if isinstance(base, Register) else bits)
        if value is None:
            return None
        value = self.resize(value, bits, False)
        return self.add(value, self.const(operand.offset, bits)) if operand.offset else value

    def error(self, message: str) -> PtxError:
        ins = self.op.ins
        return PtxError(f"{ins.name}: {message}", file=self.file, line=ins.line)

    def symbol_address(self, name: str, offset: int) -> Value:
        """Address of a variable, parameter or function, 64 bits (shared and local: the offset in its window)."""
        if name in self.shared_offsets:
            return self.const(self.shared_offsets[name] + offset, 64)
        if name in self.local_offsets:
            return self.add(self.local_base(), self.const(self.local_offsets[name] + offset, 64))
        if name in self.parameter_offsets:
            base = self.scalar(self.parameter_base, 64)
            return self.add(base, self.const(self.parameter_offsets[name] + offset, 64))
        if name in self.module.functions:
            index = list(self.module.functions).index(name)
            return self.const(abi.function_address(index) + offset, 64)
        if name not in self.module.variables:
            raise self.error(f"symbol {name!r} is not defined")
        index = self.symbol_index.setdefault(name, len(self.symbol_index))
        at = self.t(f"getelementptr i8, ptr %symbols, i64 {8 * index}")
        # module variables lie in the arena, which is aligned to 256 bytes
        base = self.scalar(self.t(f"load i64, ptr {at}, align 8, !invariant.load !1"), 64, nz=(1 << 64) - 256)
        return self.add(base, self.const(offset, 64)) if offset else base

    def window(self, space: str) -> Value:
        """First address of the generic window of shared or local memory, or of the kernel's parameters."""
        if space == "param":
            return self.scalar(self.parameter_base, 64)
        return self.scalar("%shared.window" if space == "shared" else "%local.window", 64, 0, 1 << 47, (1 << 47) - 1)

    # ------------------------------------------------------------ lanes
    def active_mask(self) -> Value:
        """Lanes that execute this instruction, 32 bits, uniform."""
        if self.mask is None:
            return self.const(-1, 32)
        return self.scalar(self.mask_word(), 32)

    def ballot(self, p: Value) -> Value:
        """Bit i: lane i executes this and its predicate holds."""
        if self.mask is None and p.is_uniform:
            return self.sext(p, 32)
        chunks = self.vec(p)
        if self.mask is not None:
            n = self.chunk
            chunks = tuple(self.t(f"and <{n} x i1> {x}, {m}") for x, m in zip(chunks, self.mask))
        return self.scalar(self.mask_bits(chunks), 32)

    def shuffle(self, x: Value, lane: Value) -> Value:
        """Lane i gets x of lane `lane[i] % 32`."""
        if x.is_uniform:
            return x
        if lane.is_known:
            return self._shuffle_known(x, self.known_array(lane) % WARP_LANES)
        bits = x.bits
        if bits == 64:
            low, high = self.unpack(x, 2)
            return self.pack([self.shuffle(low, lane), self.shuffle(high, lane)])
        if bits < 32:
            return self.trunc(self.shuffle(self.zext(x, 32), lane), bits)
        if lane.is_uniform:
            if self.dry:
                return self.scalar("%dry", 32)
            whole = self.join_chunks(self.vec(x), "i32")
            index = self.t(f"and i32 {self.uval(lane)}, 31")
            return self.scalar(self.t(f"extractelement <32 x i32> {whole}, i32 {index}"), 32)
        return self._shuffle_dynamic(x, lane)

    def _shuffle_known(self, x: Value, lanes: np.ndarray) -> Value:
        if x.is_affine and x.table is not None:
            picked = np.take_along_axis(x.table.array, lanes, axis=1)
            return self._affine(x.base, x.offset, self.pool.intern(picked), x.bits, x.lo, x.hi, x.nz)
        if not (lanes == lanes[0]).all():
            table = self.from_array(lanes, 32)
            return self._shuffle_dynamic(x, table) if x.bits == 32 else self.shuffle_parts(x, table)
        if self.dry:
            return self.varying(("%dry",) * self.chunks, x.bits)
        if len(set(lanes[0].tolist())) == 1:
            whole = self.join_chunks(self.vec(x), f"i{x.bits}")
            return self.scalar(self.t(f"extractelement <32 x i{x.bits}> {whole}, i32 {lanes[0, 0]}"), x.bits)
        whole = self.join_chunks(self.vec(x), f"i{x.bits}")
        moved = self.shuffle_constant(whole, None, f"i{x.bits}", WARP_LANES, lanes[0].tolist())
        return self.varying(self.split_chunks(moved, f"i{x.bits}"), x.bits)

    def shuffle_parts(self, x: Value, lane: Value) -> Value:
        if x.bits == 64:
            low, high = self.unpack(x, 2)
            return self.pack([self._shuffle_dynamic(low, lane), self._shuffle_dynamic(high, lane)])
        return self.trunc(self._shuffle_dynamic(self.zext(x, 32), lane), x.bits)

    def _shuffle_dynamic(self, x: Value, lane: Value) -> Value:
        if self.dry:
            return self.varying(("%dry",) * self.chunks, 32)
        if x.is_uniform:
            return x
        n, vtype = self.chunk, self.vtype(32)
        data, index = self.vec(x), self.vec(self.and_(lane, self.const(31, 32)))
        if self.target.has("avx512f") and n == 16:
            # one permute of two registers reaches all 32 lanes
            name = "@llvm.x86.avx512.vpermi2var.d.512"
            self.declare(f"declare {vtype} {name}({vtype}, {vtype}, {vtype})")
            return self.varying(
                [self.t(f"call {vtype} {name}({vtype} {data[0]}, {vtype} {i}, {vtype} {data[1]})") for i in index], 32
            )
        for c, part in enumerate(data):
            self.e(f"store {vtype} {part}, ptr {self._offset('%exchange', c * n * 4)}, align 64")
        found = []
        for part in index:
            pointers = self.t(f"getelementptr i32, ptr %exchange, {vtype} {part}")
            name = f"@llvm.masked.gather.v{n}i32.v{n}p0"
            self.declare(f"declare {vtype} {name}(<{n} x ptr>, <{n} x i1>, {vtype})")
            lanes = self.vector_literal([1] * n, 1)
            found.append(
                self.t(
                    f"call {vtype} {name}(<{n} x ptr> align 4 {pointers}, <{n} x i1> {lanes}, {vtype} zeroinitializer)"
                )
            )
        return self.varying(found, 32)

    def reduce(self, op: str, x: Value, mask: Value) -> Value:
        """`op` over the lanes of `mask` (32 bits, uniform): one uniform value."""
        name, identity = _REDUCTIONS[op]
        bits = x.bits
        if identity is None:
            identity = (1 << (bits - 1)) - 1 if op == "smin" else -(1 << (bits - 1))
        if self.dry:
            return self.scalar("%dry", bits)
        vtype = f"<32 x i{bits}>"
        whole = self.join_chunks(self.vec(x), f"i{bits}")
        lanes = self.t(f"bitcast i32 {self.uval(mask)} to <32 x i1>")
        neutral = self.vector_literal([identity] * WARP_LANES, bits)
        picked = self.t(f"select <32 x i1> {lanes}, {vtype} {whole}, {vtype} {neutral}")
        call = f"@llvm.vector.reduce.{name}.v32i{bits}"
        self.declare(f"declare i{bits} {call}({vtype})")
        return self.scalar(self.t(f"call i{bits} {call}({vtype} {picked})"), bits)

    def match_any(self, x: Value) -> Value:
        """Per lane: the executing lanes that hold the same value."""
        if x.is_uniform:
            return self.active_mask()
        if self.dry:
            return self.varying(("%dry",) * self.chunks, 32)
        name = self._call_support(f"weft_match_any_i{x.bits}")
        whole = self.join_chunks(self.vec(x), f"i{x.bits}")
        found = self.t(f"call <32 x i32> {name}(<32 x i{x.bits}> {whole}, i32 {self.mask_word()})")
        return self.varying(self.split_chunks(found, "i32"), 32)

    # ------------------------------------------------------------ special registers
    def special(self, name: str, bits: int) -> Value:
        """A special register, as the manual's section "Special Registers" defines it."""
        return self.resize(self._special(name), bits, False)

    def _special(self, name: str) -> Value:
        stem, _, axis = name.lstrip("%").partition(".")
        if axis == "w":
            return self.const(0, 32)
        if axis in ("x", "y", "z"):
            index = "xyz".index(axis)
            if stem == "tid":
                return self.thread_coordinate(axis)
            if stem == "ntid":
                return self.const(self.block[index], 32)
            if stem == "ctaid":
                high = self.grid_limit[index] - 1
                return self.scalar(f"%c{axis}", 32, 0, high)
            if stem == "nctaid":
                return self.scalar(self._launch_field(f"grid_{axis}", "i32"), 32, 1, self.grid_limit[index])
            if stem == "cluster_nctaid":
                return self._cluster_extent(axis)
            if stem in ("clusterid", "nclusterid"):
                return self.udiv(self._special(f"%{stem[:-9]}ctaid.{axis}"), self._cluster_extent(axis))
            if stem == "cluster_ctaid":
                return self.urem(self._special(f"%ctaid.{axis}"), self._cluster_extent(axis))
        lanes = np.arange(WARP_LANES, dtype=np.int64)
        rows = np.arange(self.warps, dtype=np.int64)[:, None]
        if stem == "laneid":
            return self.lane()
        if stem == "warpid":
            return self.from_array(np.broadcast_to(rows, (self.warps, WARP_LANES)), 32)
        if stem.startswith("lanemask_"):
            one = np.int64(1) << lanes
            masks = {"eq": one, "lt": one - 1, "le": 2 * one - 1, "gt": ~(2 * one - 1), "ge": ~(one - 1)}
            if stem[9:] in masks:
                return self.from_array(np.broadcast_to(masks[stem[9:]], (self.warps, WARP_LANES)), 32)
        if stem == "WARP_SZ":
            return self.const(WARP_LANES, 32)
        if stem == "nwarpid":
            return self.const(self.warps, 32)
        if stem in ("clock", "clock_hi", "clock64", "globaltimer", "globaltimer_lo", "globaltimer_hi"):
            return self._clock(stem)
        if stem in ("smid", "nsmid"):
            count = self._launch_field("sm_count", "i32")
            if stem == "nsmid":
                return self.scalar(count, 32, 0, 1 << 20)
            at = self.t(f"getelementptr i8, ptr %blk, i64 {abi.BlockHeader.linear.offset}")
            linear = self.t(f"trunc i64 {self.t(f'load i64, ptr {at}')} to i32")
            return self.scalar(self.t(f"urem i32 {linear}, {count}"), 32, 0, 1 << 20)
        if stem == "gridid":
            return self.scalar(self._launch_field("grid_id", "i64"), 64)
        if stem in ("dynamic_smem_size", "total_smem_size"):
            field = "dynamic_shared_bytes" if stem[0] == "d" else "shared_bytes"
            return self.scalar(self._launch_field(field, "i32"), 32, 0, 1 << 24)
        if stem in ("envreg1", "envreg2"):
            # the grid barrier's workspace of cooperative groups: high half in envreg1, low half in envreg2
            word = self.scalar(self._launch_field("grid_workspace", "i64"), 64)
            return self.extract(word, 32 if stem == "envreg1" else 0, 32)
        if stem == "cluster_ctarank":
            return self._linear("cluster_ctaid", "cluster_nctaid")
        if stem == "clusterrank":
            return self._linear("clusterid", "nclusterid")
        if stem == "cluster_nctarank":
            x, y, z = (self._cluster_extent(axis) for axis in "xyz")
            return self.mul(self.mul(x, y), z)
        if stem == "is_explicit_cluster":
            flag = self.scalar(self._launch_field("explicit_cluster", "i32"), 32, 0, 1)
            return self.icmp("ne", flag, self.const(0, 32))
        if stem == "aggr_smem_size":
            return self.scalar(self._launch_field("shared_bytes", "i32"), 32, 0, 1 << 24)
        if stem.startswith(("envreg", "pm", "reserved_smem_")) or stem == "current_graph_exec":
            # no driver sets them, no counter runs, nothing is reserved
            return self.const(0, 64 if stem.endswith("_64") or stem == "current_graph_exec" else 32)
        raise UnsupportedError(f"special register {name} is not supported", file=self.file, line=self.op.ins.line)

    def _cluster_extent(self, axis: str) -> Value:
        """Blocks of a cluster along an axis: 1 without clusters."""
        return self.scalar(self._launch_field(f"cluster_{axis}", "i32"), 32, 1, abi.MAX_CLUSTER_BLOCKS)

    def _linear(self, index: str, extent: str) -> Value:
        """x + nx * (y + ny * z)."""
        x, y, z = (self._special(f"%{index}.{axis}") for axis in "xyz")
        nx, ny = (self._special(f"%{extent}.{axis}") for axis in "xy")
        return self.add(x, self.mul(nx, self.add(y, self.mul(ny, z))))

    def _launch_field(self, name: str, type_: str) -> str:
        at = self.t(f"getelementptr i8, ptr %launch, i64 {getattr(abi.Launch, name).offset}")
        return self.t(f"load {type_}, ptr {at}, !invariant.load !1")

    def _clock(self, stem: str) -> Value:
        if stem.startswith("globaltimer"):
            ticks = self.scalar(self.t(f"call i64 {self._call_support('weft_nanoseconds')}(ptr %wk)"), 64)
        else:
            self.declare("declare i64 @llvm.readcyclecounter()")
            ticks = self.scalar(self.t("call i64 @llvm.readcyclecounter()"), 64)
        if stem in ("clock64", "globaltimer"):
            return ticks
        return self.extract(ticks, 32 if stem.endswith("hi") else 0, 32)

    # ------------------------------------------------------------ traps and host calls
    def trap(self, kind, message: str = "") -> None:
        """Stop the launch: the lowest running lane records a fault of `kind` (abi.FaultKind)."""
        self.fault(kind, self.mask_word())

    def fault(self, kind, word: str) -> None:
        if self.dry:
            return
        name = self._call_support("weft_fault")
        lane = "0"
        if word != "-1":
            self.declare("declare i32 @llvm.cttz.i32(i32, i1)")
            lane = self.t(f"call i32 @llvm.cttz.i32(i32 {word}, i1 false)")
        self.e(
            f"call void {name}(ptr %wk, ptr %blk, i32 %w, i32 {int(kind)}, i32 {self.site}, i32 {lane}, i64 0, i32 0)"
        )
        self.after_slow_call()

    def host_call(self, kind, values: Sequence[Value]) -> Value:
        """Ask the runtime; the 64-bit answer per lane."""
        if self.dry:
            return self.varying(("%dry",) * self.chunks, 64)
        name = self._call_support("weft_host_call")
        padded = [*values, *([self.const(0, 64)] * (5 - len(values)))]
        data = ", ".join(f"<32 x i64> {self.join_chunks(self.vec(self.resize(v, 64, False)), 'i64')}" for v in padded)
        whole = self.t(
            f"call <32 x i64> {name}({CONTEXT}, i32 {int(kind)}, i32 {self.site}, i32 {self.mask_word()}, {data})"
        )
        self.after_slow_call()
        return self.varying(self.split_chunks(whole, "i64"), 64)


def immediate_bits(operand: Immediate, bits: int, type_: ScalarType | None) -> int:
    """The bit pattern of a constant operand for a type: floats are converted to the instruction's format."""
    value = operand.value
    if operand.kind == "int":
        if type_ is not None and type_.kind == "f" and type_.lanes == 1 and bits in (32, 64) and type_.name[0] == "f":
            return _float_bits(float(value), bits)
        return int(value)
    if operand.kind == "f32":
        if bits == 64:
            return _float_bits(struct.unpack("<f", struct.pack("<I", value))[0], 64)
        return int(value)
    if operand.kind == "f64":
        if bits == 32:
            return _float_bits(struct.unpack("<d", struct.pack("<Q", value))[0], 32)
        return int(value)
    return _float_bits(float(value), bits)


def _float_bits(value: float, bits: int) -> int:
    if bits == 64:
        return struct.unpack("<Q", struct.pack("<d", value))[0]
    if bits == 32:
        return struct.unpack("<I", np.float32(value).tobytes())[0]
    return struct.unpack("<H", np.float16(value).tobytes())[0]
