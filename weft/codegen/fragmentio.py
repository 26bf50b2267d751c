"""Support functions that move whole matrices between memory and the fragments of wmma: a name enters, IR leaves.

    void weft_fragment_load.OPERAND.LAYOUT.FORM(wk, blk, w, ptr at, i64 addr, i64 stride, i32 mask, i32 site, ptr slot)
    void weft_fragment_store.OPERAND.LAYOUT.FORM(same)

`at` is the workspace: the fragment's registers in order, each as 32 words in lane order. `addr` is a generic address
and `stride` counts elements between the lines of the matrix (its rows, or its columns where LAYOUT is col). Each line
is checked and copied as a whole; a table puts its pieces in their places. A line outside of global and shared memory,
or misaligned for its elements, is a fault of the lowest lane of `mask`. Nothing happens when mask is 0.
"""

from __future__ import annotations

import numpy as np

from weft.codegen import abi
from weft.codegen.access import CONTEXT, inside, report_fault
from weft.codegen.irtext import IRFunction, Value, constant, vector_type
from weft.codegen.jit import Target, function_attributes
from weft.codegen.multiply import ZERO, Tabled, form_named, form_text
from weft.isa.fragments import LANES, TYPE_BITS, MultiplyForm, fragment
from weft.isa.wmma import lines_of

PREFIX = "weft_fragment_"


def fragment_name(action: str, form: MultiplyForm, operand: str, layout: str) -> str:
    """The support function that loads or stores ("load", "store") a fragment."""
    return f"{PREFIX}{action}.{operand}.{layout}.{form_text(form)}"


def write_fragment(name: str, target: Target, action: str, operand: str, layout: str, text: str) -> IRFunction:
    """The function that `fragment_name` names."""
    form = form_named(text)
    parameters = [*CONTEXT, ("ptr", "at"), ("i64", "addr"), ("i64", "stride"), ("i32", "mask"), ("i32", "site"),
                  ("ptr", "slot")]  # fmt: skip
    f = Tabled(name, "void", parameters, attributes=function_attributes(target) + " noinline")
    at, mask = f.parameters[3], f.parameters[6]
    with f.if_(f.icmp("eq", mask, 0)):
        f.ret()
    lines, length = lines_of(form, operand, layout)
    line_bytes = length * TYPE_BITS[form.type_of(operand)] // 8
    plain = f.alloca(f"[{lines * line_bytes} x i8]", align=64)
    loading = action == "load"
    places = _byte_places(form, operand, layout, loading)
    if loading:
        _copy_lines(f, form, operand, plain, lines, line_bytes, True)
        _deal(f, places, plain, at)
    else:
        _deal(f, places, at, plain)
        _copy_lines(f, form, operand, plain, lines, line_bytes, False)
    f.ret()
    return f


def _byte_places(form: MultiplyForm, operand: str, layout: str, loading: bool) -> np.ndarray:
    """For each byte of the fragment (loading), or of the matrix line by line (storing), the byte it comes from."""
    piece = fragment(form, operand)
    bits = piece.element_bits
    _, length = lines_of(form, operand, layout)
    # what repeats other elements is left out
    count = min(piece.elements, piece.distinct_registers(form.matrix_shape(operand)) * piece.per_register)
    row, col = piece.row[:, :count], piece.col[:, :count]
    line, inner = (row, col) if layout == "row" else (col, row)
    in_matrix = (line * length + inner) * bits
    element = np.arange(count)[None, :]
    lane = np.arange(LANES)[:, None]
    register, within = element // piece.per_register, element % piece.per_register
    in_fragment = (register * LANES + lane) * piece.register_bits + within * bits
    source, destination = (in_matrix, in_fragment) if loading else (in_fragment, in_matrix)
    source, destination = source.reshape(-1), (destination + 0 * source).reshape(-1)
    if bits < 8:
        # elements of a byte lie side by side on both sides: the first stands for all
        whole = destination % 8 == 0
        source, destination, bits = source[whole], destination[whole], 8
    assert not (source % 8).any() and not (destination % 8).any()
    found = np.full((int(destination.max()) + bits) // 8, -1)
    for i in range(bits // 8):
        found[destination // 8 + i] = source // 8 + i
    assert found.min() >= 0, (form, operand, layout)
    return found


def _deal(f: Tabled, places: np.ndarray, source: Value, destination: Value) -> None:
    """destination[i] = source[places[i]], in the largest pieces that stay whole."""
    size = 16
    while (places.reshape(-1, size) - places[::size, None] != np.arange(size)).any():
        size //= 2
    starts = places[::size]
    table = f.table("i16", [str(x) for x in starts.tolist()])
    type_ = f"i{8 * size}" if size <= 8 else vector_type("i64", 2)
    with f.for_range(ZERO, len(starts)) as i:
        there = f.index(source, f.zext(f.load("i16", f.index(table, i, 2)), "i64"), 1)
        f.store(f.load(type_, there, align=1), f.index(destination, i, size), align=1)


def _copy_lines(f: Tabled, form: MultiplyForm, operand: str, plain: Value, lines: int, size: int, load: bool) -> None:
    """Each line between memory and `plain`, checked."""
    worker, block, _, _, address, stride, mask, _, slot = f.parameters
    bits = TYPE_BITS[form.type_of(operand)]
    launch = f.field(worker, abi.Worker, "launch")
    window = f.field(launch, abi.Launch, "shared_window")
    shared_bytes = f.zext(f.field(launch, abi.Launch, "shared_bytes"), "i64")
    step = f.lshr(f.mul(stride, bits), 3)
    if bits > 8:
        with f.if_(f.icmp("ne", f.and_(f.or_(address, step), bits // 8 - 1), 0), unlikely=True):
            report_fault(f, abi.FaultKind.MISALIGNED, f.cttz(mask), address, bits // 8)
            f.ret()
    type_ = vector_type("i8", size)
    with f.for_range(ZERO, lines) as i:
        line = f.add(address, f.mul(i, step))
        pointer = f.variable(f.convert("inttoptr", line, "ptr"))
        base, extent = f.field(slot, abi.Range, "base"), f.field(slot, abi.Range, "size")
        with f.if_(f.not_(inside(f, line, base, extent, size)), unlikely=True):
            with f.if_(inside(f, line, window, shared_bytes, size)):
                f.set(pointer, f.offset(f.field(block, abi.BlockHeader, "shared"), f.sub(line, window)))
            with f.else_():
                hit = f.call("i1", "weft_find_range", worker, line, constant("i64", size), slot)
                with f.if_(f.not_(hit), unlikely=True):
                    report_fault(f, abi.FaultKind.ADDRESS, f.cttz(mask), line, size)
                    f.ret()
        here = f.index(plain, i, size)
        source, destination = (f.get(pointer), here) if load else (here, f.get(pointer))
        f.store(f.load(type_, source, align=1), destination, align=1)
