"""Counts of a compiled kernel, first and rough ones: a module, a kernel and its launch in, arithmetic and traffic out.

One thread's way is followed (weft.model.scalar) and multiplied by the number of threads. Loads and stores count every
byte that they ask for.
"""

from __future__ import annotations

import re

from weft.analysis.inline import flatten_function
from weft.errors import WeftError
from weft.isa.instruction import match
from weft.isa.operands import Immediate, Instruction, Vector
from weft.model.scalar import follow_thread
from weft.ptx.module import Module
from weft.types import TYPES, Dim3

# The table's pipes -> the model's units, and what one instruction of one thread counts there: a multiply-add is two.
PIPES = {"fma": ("fp32", 2.0), "alu": ("int32", 1.0), "fp64": ("fp64", 2.0), "fp16": ("fp16", 4.0), "xu": ("sfu", 1.0)}
MULTIPLY_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)")
MULTIPLY_TYPES = {
    "f16": "tc_fp16", "bf16": "tc_bf16", "tf32": "tc_tf32", "f64": "tc_fp64", "e4m3": "tc_fp8", "e5m2": "tc_fp8",
    "s8": "tc_int8", "u8": "tc_int8", "s4": "tc_int8", "u4": "tc_int8", "e2m1": "tc_fp4", "b1": "tc_int8",
    "e3m2": "tc_fp8", "e2m3": "tc_fp8",
}  # fmt: skip
WARP, WARP_GROUP = 32, 128
OTHER_SPACES = ("shared", "shared::cta", "shared::cluster", "local", "param", "param::entry", "param::func")


def count_launch(module: Module, kernel: str, parameters: bytes, grid: Dim3,
                 block: Dim3) -> tuple[dict[str, float], float, float, float]:  # fmt: skip
    """(operations by unit, warp instructions, bytes read, bytes written) of all threads of a launch."""
    flat = flatten_function(module, kernel)
    path = follow_thread(flat, parameters, grid, block)
    threads = float(grid.count * block.count)
    flops: dict[str, float] = {}
    instructions = read = written = 0.0
    for at, count in path.counts.items():
        ins = flat.body[at]
        instructions += count * threads / WARP
        product = _multiply(ins)
        if product is not None:
            unit, operations, lanes = product
            flops[unit] = flops.get(unit, 0.0) + operations * count * threads / lanes
            continue
        loads, stores = _traffic(ins, path.sizes.get(at, 0))
        read += loads * count * threads
        written += stores * count * threads
        if loads or stores:
            continue
        unit, each = PIPES.get(_pipe(ins), ("", 0.0))
        if unit:
            flops[unit] = flops.get(unit, 0.0) + each * count * threads
    return flops, instructions, read, written


def _pipe(ins: Instruction) -> str:
    try:
        pipe = match(ins, "").entry.pipe
    except WeftError:
        return ""
    # The table puts f32 arithmetic on "fma" or "alu"; what works on f32 is counted as such.
    if pipe == "alu" and "f32" in ins.modifiers and ins.opcode in ("add", "sub", "mul", "fma", "mad", "min", "max"):
        return "fma"
    return pipe


def _multiply(ins: Instruction) -> tuple[str, float, int] | None:
    """(unit, operations, threads that do them together) of a tensor-core instruction."""
    if ins.opcode not in ("mma", "wmma", "wgmma"):
        return None
    shape = next((found for token in ins.modifiers if (found := MULTIPLY_SHAPE.fullmatch(token))), None)
    if shape is None or (ins.opcode == "wmma" and "mma" not in ins.modifiers) or "wait_group" in ins.modifiers:
        return None
    m, n, k = (int(number) for number in shape.groups())
    types = [token for token in ins.modifiers if token in MULTIPLY_TYPES]
    unit = MULTIPLY_TYPES[types[0] if len(types) == 1 else types[1]] if types else "tc_fp16"
    return unit, 2.0 * m * n * k, WARP_GROUP if ins.opcode == "wgmma" else WARP


def _traffic(ins: Instruction, bulk: int) -> tuple[float, float]:
    """Bytes that one thread reads from and writes to device memory."""
    modifiers = ins.modifiers
    if ins.opcode == "cp":
        if "bulk" in modifiers:  # one thread of the block copies
            share = bulk / WARP_GROUP
            return (0.0, share) if modifiers and modifiers[-1] == "bulk_group" else (share, 0.0)
        sizes = [operand.value for operand in ins.operands[2:] if isinstance(operand, Immediate)]
        return (float(sizes[0]), 0.0) if sizes else (0.0, 0.0)
    if ins.opcode not in ("ld", "ldu", "st", "atom", "red"):
        return 0.0, 0.0
    if any(space in modifiers for space in OTHER_SPACES) or "const" in modifiers:
        return 0.0, 0.0
    bits = next((TYPES[token].bits for token in reversed(modifiers) if token in TYPES), 32)
    count = next((len(operand.items) for operand in ins.operands if isinstance(operand, Vector)), 1)
    size = bits / 8 * count
    if ins.opcode in ("ld", "ldu"):
        return size, 0.0
    return (0.0, size) if ins.opcode == "st" else (size, size)
