"""What tensor copies should do, in NumPy, and kernels that do one of them. Written from the manual's figures, apart
from Weft's own rules: arrays and coordinates enter in NumPy's order, the bytes of shared memory leave."""

from __future__ import annotations

import itertools

import numpy as np

SHARED_BYTES = 32768
SENTINEL = 0xA5

# 16-byte chunks of 128-byte lines: the manual's tables, as the chunk that is kept at each place of line after line.
TABLES = {
    "none": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "32B": [[0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6]],
    "64B": [[0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6], [2, 3, 0, 1, 6, 7, 4, 5], [3, 2, 1, 0, 7, 6, 5, 4]],
    "128B": [[k ^ line for k in range(8)] for line in range(8)],
    "128B_atom_32B": [[0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 0, 1, 6, 7, 4, 5], [4, 5, 6, 7, 0, 1, 2, 3],
                      [6, 7, 4, 5, 2, 3, 0, 1]],
    "128B_atom_64B": [[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3]],
}  # fmt: skip
TABLES["128B_atom_32B_flip_8B"] = TABLES["128B_atom_32B"]


def swizzle(data: bytes, name: str, offset: int = 0) -> bytes:
    """Bytes as they are kept in shared memory from `offset` (a multiple of 128) on."""
    table = TABLES[name]
    lines = -(-len(data) // 128)
    padded = data.ljust(128 * lines, bytes([SENTINEL]))
    out = bytearray(padded)
    for line in range(lines):
        row = table[(offset // 128 + line) % len(table)]
        for place, chunk in enumerate(row):
            piece = padded[128 * line + 16 * chunk :][:16]
            if name.endswith("flip_8B") and (offset // 128 + line) % 2:
                piece = piece[8:] + piece[:8]
            out[128 * line + 16 * place : 128 * line + 16 * place + 16] = piece
    return bytes(out)


def box_of(array: np.ndarray, at: tuple[int, ...], box: tuple[int, ...], steps=None, fill: float = 0) -> np.ndarray:
    """The box at `at` with elements `steps` apart; `fill` outside of the array."""
    steps = steps or (1,) * array.ndim
    places = [range(x, x + n, step) for x, n, step in zip(at, box, steps)]
    out = np.full([len(p) for p in places], fill, array.dtype)
    for index in itertools.product(*(range(len(p)) for p in places)):
        where = tuple(p[i] for p, i in zip(places, index))
        if all(0 <= x < n for x, n in zip(where, array.shape)):
            out[index] = array[where]
    return out


def pixels_of(shape, at, lower, upper, pixels: int, offsets, steps):
    """Coordinates (N, ..., W) of im2col pixels of an N..WC array of `shape`: the loops of a convolution."""
    spatial = shape[1:-1]
    n, *start = at[:-1]
    first = list(lower)
    last = [size - 1 + high for size, high in zip(spatial, upper)]
    where = list(start)
    out = []
    while len(out) < pixels:
        out.append((n, *(x + o for x, o in zip(where, offsets))))
        axis = len(where) - 1
        while axis >= 0:
            where[axis] += steps[axis]
            if where[axis] <= last[axis]:
                break
            where[axis] = first[axis]
            axis -= 1
        if axis < 0:
            n += 1
    return out


def im2col_of(array, at, lower, upper, channels, pixels, offsets, steps=None, fill: float = 0) -> np.ndarray:
    out = np.full((pixels, channels), fill, array.dtype)
    steps = steps or (1,) * (array.ndim - 2)
    for row, where in enumerate(pixels_of(array.shape, at, lower, upper, pixels, offsets, steps)):
        if not all(0 <= x < n for x, n in zip(where, array.shape)):
            continue
        line = array[where]
        for j in range(channels):
            if 0 <= at[-1] + j < array.shape[-1]:
                out[row, j] = line[at[-1] + j]
    return out


HEAD = ".version 8.6\n.target sm_100a\n.address_size 64\n"
_PARAMS = ", ".join(f".param .u32 c{i}" for i in range(8))


def _kernel(body: str) -> str:
    """A kernel with a tensor map, a buffer that shared memory starts from, one that it is copied to, 8 numbers, and
    the offset in shared memory."""
    loads = "\n".join(f"ld.param.u32 %r{i + 1}, [c{i}];" for i in range(8))
    halves = "\n".join(f"cvt.u16.u32 %h{i + 1}, %r{i + 6};" for i in range(3))
    return f"""{HEAD}
.visible .entry k(.param .align 64 .b8 map[128], .param .u64 before, .param .u64 after, {_PARAMS}, .param .u32 place,
    .param .u32 bytes) {{
.reg .b32 %r<40>; .reg .b64 %rd<20>; .reg .b16 %h<9>; .reg .pred %p<9>;
.shared .align 1024 .b8 buffer[{SHARED_BYTES}];
.shared .align 8 .b64 bar;
mov.b64 %rd1, map; cvta.param.u64 %rd1, %rd1;
ld.param.u64 %rd2, [before]; ld.param.u64 %rd3, [after];
{loads}
{halves}
ld.param.u32 %r20, [place]; ld.param.u32 %r21, [bytes];
mov.u32 %r22, buffer; add.u32 %r20, %r20, %r22; mov.u32 %r23, bar;
mov.u32 %r24, %tid.x; setp.eq.u32 %p1, %r24, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r23], 1;
shl.b32 %r25, %r24, 2;
fill: add.u32 %r26, %r22, %r25; cvt.u64.u32 %rd4, %r25; add.u64 %rd5, %rd2, %rd4;
ld.global.u32 %r27, [%rd5]; st.shared.u32 [%r26], %r27;
add.u32 %r25, %r25, 128; setp.lt.u32 %p2, %r25, {SHARED_BYTES}; @%p2 bra fill;
fence.proxy.async.shared::cta; bar.sync 0;
{body}
bar.sync 0;
shl.b32 %r25, %r24, 2;
give: add.u32 %r26, %r22, %r25; cvt.u64.u32 %rd4, %r25; add.u64 %rd5, %rd3, %rd4;
ld.shared.u32 %r27, [%r26]; st.global.u32 [%rd5], %r27;
add.u32 %r25, %r25, 128; setp.lt.u32 %p2, %r25, {SHARED_BYTES}; @%p2 bra give;
ret;
}}
"""


def _vector(count: int, letter: str = "r", first: int = 1) -> str:
    return "{" + ", ".join(f"%{letter}{first + i}" for i in range(count)) + "}"


def _operand(dimensions: int, mode: str) -> str:
    return f"[%rd1, {_vector(5 if mode.endswith(('gather4', 'scatter4')) else dimensions)}]"


def load_kernel(dimensions: int, mode: str = "", space: str = "shared::cta") -> str:
    """Loads a box and waits for it."""
    head = f"cp.async.bulk.tensor.{dimensions}d.{space}.global{'.' * bool(mode)}{mode}.mbarrier::complete_tx::bytes"
    offsets = f", {_vector(dimensions - 2, 'h')}" if mode == "im2col" else ""
    return _kernel(f"""
@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r23], %r21;
@%p1 {head} [%r20], {_operand(dimensions, mode)}, [%r23]{offsets};
wait: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r23], 0;
@!%p3 bra wait;""")


def store_kernel(dimensions: int, mode: str = "", operation: str = "") -> str:
    """Stores or reduces a box."""
    opcode = "cp.reduce.async.bulk" if operation else "cp.async.bulk"
    words = [operation, mode, "bulk_group"]
    head = f"{opcode}.tensor.{dimensions}d.global.shared::cta." + ".".join(word for word in words if word)
    return _kernel(f"""
@%p1 {head} {_operand(dimensions, mode)}, [%r20];
@%p1 cp.async.bulk.commit_group;
@%p1 cp.async.bulk.wait_group 0;""")
