"""Runs one tensor-core instruction on a device and on the reference interpreter: registers in, registers out."""

from __future__ import annotations

import functools
import struct

import numpy as np

import weft
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel


@functools.cache
def device():
    return weft.Device("h100")


def kernel_text(name: str, d: int, sources: list[tuple[int, int]], width: int, tail: str, target: str) -> str:
    """A kernel of one warp that loads the sources' registers, executes `name` once and stores d registers.

    sources: (registers, bits) each; `tail` follows the source vectors and may name %e0, %e1 ...: the first register
    of further inputs, which come after the vectors. width: bits of D's registers.
    """
    vectors = sources[:3]
    extras = sources[3:]
    lines = [
        f".version 9.1\n.target {target}\n.address_size 64\n.visible .entry k(.param .u64 p_d, .param .u64 p_s) {{",
        ".reg .b64 %base, %at, %lane64; .reg .b32 %lane;",
        f".reg .b{width} %d<{d}>;",
        "mov.u32 %lane, %tid.x; cvt.u64.u32 %lane64, %lane;",
        "ld.param.u64 %base, [p_s];",
    ]
    offset = 0
    names = []
    for letter, (count, bits) in zip([*"abc", *[f"e{i}_" for i in range(len(extras))]], sources):
        lines.append(f".reg .b{bits} %{letter}<{count}>;")
        size = bits // 8
        lines.append(f"mad.lo.u64 %at, %lane64, {count * size}, %base;")
        lines += [f"ld.global.b{bits} %{letter}{i}, [%at+{offset + i * size}];" for i in range(count)]
        offset += 32 * count * size
        names.append("{" + ", ".join(f"%{letter}{i}" for i in range(count)) + "}")
    operands = ["{" + ", ".join(f"%d{i}" for i in range(d)) + "}", *names[: len(vectors)]]
    lines.append(f"{name} {', '.join(operands)}{tail};")
    lines.append(f"ld.param.u64 %base, [p_d]; mad.lo.u64 %at, %lane64, {d * width // 8}, %base;")
    lines += [f"st.global.b{width} [%at+{i * width // 8}], %d{i};" for i in range(d)]
    return "\n".join([*lines, "ret;\n}\n"])


def run_compiled(
    text: str, sources: list[np.ndarray], d: int, width: int, gpu: weft.Device | None = None
) -> np.ndarray:
    """D's registers [32, d] by compiled code."""
    packed = np.concatenate([np.ascontiguousarray(s).reshape(-1).view(np.uint8) for s in sources])
    gpu = gpu or device()
    out = gpu.array(np.zeros((32, d), f"u{width // 8}"))
    gpu.load(text)["k"][1, 32](out, gpu.array(packed))
    return out.numpy()


def run_reference(text: str, sources: list[np.ndarray], d: int, width: int) -> np.ndarray:
    """The same by the reference interpreter."""
    packed = b"".join(np.ascontiguousarray(s).tobytes() for s in sources)
    memory = ReferenceMemory()
    given, out = memory.allocate(len(packed)), memory.allocate(32 * d * width // 8)
    memory.write(given, packed)
    run_kernel(parse_module(text), "k", 1, 32, [struct.pack("<Q", out), struct.pack("<Q", given)], memory)
    return np.frombuffer(memory.read(out, 32 * d * width // 8), f"u{width // 8}").reshape(32, d)
