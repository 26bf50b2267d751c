"""mma.sync: multiplication of small matrices whose elements are spread over the registers of a warp.

All lanes of a warp execute these together; what a missing lane holds is undefined. `form_of` makes the MultiplyForm of
a matched instruction, isa/fragments.py says which lane holds what, isa/products.py what is computed.
Section: PTX ISA, "Matrix multiply-accumulate operation using mma instruction".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from weft.isa.fragments import LANES, MultiplyForm, fragment, registers, scale_places
from weft.isa.instruction import Match, instruction
from weft.isa.memory import elements
from weft.isa.operands import Immediate, Instruction
from weft.isa.products import Matrix, gather_matrix, multiply_matrices, scatter_matrix
from weft.types import TYPES, ScalarType

SECTION = "9.7.15.5.14"
ELEMENT_TYPES = ("f16", "bf16", "tf32", "f32", "f64", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "s8", "u8", "s4", "u4",
                 "b1", "s32")  # fmt: skip


def written_types(m: Match) -> list[str]:
    """The element types of an instruction in the order written."""
    return [token for token in m.tokens if token in ELEMENT_TYPES]


def form_of(m: Match, selector: int = 0) -> MultiplyForm:
    """The multiplication that an mma.sync (dense or sparse) or wmma.mma does; `selector` as in the instruction."""
    types = written_types(m)
    # wmma.mma on f16 names D and C alone
    d, a, b, c = types if len(types) == 4 else (types[0], "f16", "f16", types[1])
    m_size, n_size, k_size = map(int, re.findall(r"\d+", m.shape))
    layouts = [token for token in m.tokens if token in ("row", "col")]
    kind = m.get("kind")
    scale_type = m.get("stype") or ""
    vector = m.get("scale_vec")
    return MultiplyForm(
        m_size, n_size, k_size, a, b, c, d,
        saturate="satfinite" in m.tokens, a_layout=layouts[0], b_layout=layouts[1],
        operation=next((word for word in ("and", "xor") if word in m.tokens), "multiply"),
        sparse={"sp": "standard", "sp::ordered_metadata": "ordered"}[m["sparse"]] if m.get("sparse") else "",
        kind=kind.removeprefix("kind::") if kind else "",
        scale_type=scale_type,
        scale_vector=int(vector[-2]) if vector else _DEFAULT_SCALES[kind] if scale_type else 0,
        selector=selector,
        rounding=next((word for word in ("rz", "rm", "rp") if word in m.tokens), "rn"),
        family=m.entry.opcode,
    )  # fmt: skip


_DEFAULT_SCALES = {"kind::mxf8f6f4": 1, "kind::mxf4": 2}


def register_type(operand: str):
    """The type of one register of an operand, for instructions that write it without braces."""

    def of(m: Match) -> ScalarType:
        piece = fragment(form_of(m), operand)
        return TYPES["b64" if piece.register_bits == 64 else "b32"]

    return of


OPERAND_TYPES = {name: register_type(name) for name in ("d", "a", "b", "c")}


def check_counts(b, form: MultiplyForm, operands: Sequence) -> None:
    """Raises PtxError when d, a, b or c has not the registers that the form has."""
    for name, operand in zip("dabc", operands):
        wanted, found = registers(form, name), len(elements(operand))
        if wanted != found:
            raise b.error(f"operand {name} must have {wanted} registers, found {found}")


def read_matrices(threads: Sequence, form: MultiplyForm, name: str, operand) -> list[Matrix]:
    """An operand's matrices of patterns, one per part."""
    return gather_matrix(form, name, read_words(threads, operand, fragment(form, name).register_bits))


def write_result(threads: Sequence, form: MultiplyForm, ins: Instruction, results: Sequence[Matrix]) -> None:
    words = scatter_matrix(form, "d", results)
    write_words(threads, ins.operands[0], fragment(form, "d").register_bits, words)


def read_words(threads: Sequence, operand, bits: int) -> list[list[int]]:
    """words[lane][register] of an operand; a lane that is not there holds zeros."""
    type_ = TYPES[f"b{bits}"]
    parts = elements(operand)
    return [[0] * len(parts) if t is None else [t.read(x, type_) for x in parts] for t in threads]


def write_words(threads: Sequence, operand, bits: int, words: Sequence[Sequence[int]]) -> None:
    type_ = TYPES[f"b{bits}"]
    for t, row in zip(threads, words):
        if t is not None:
            for x, word in zip(elements(operand), row):
                t.write(x, type_, word)


def in_written_order(m: Match) -> str:
    """A `where`: the types are those of d, a, b and c in this order, and A's layout stands before B's."""
    if m.get("row") and m.tokens.index("row") > m.tokens.index("col"):
        return f"the layouts must be .row.col, found {m.text}"
    names = [str(m.get(slot)) for slot in ("dtype", "atype", "btype", "ctype")]
    return "" if written_types(m) == names else f"the types must be written in the order d, a, b, c, found {m.text}"


def same_accumulators(m: Match) -> str:
    """A `where`: C and D are of one type."""
    if str(m.dtype) != str(m.ctype):
        return f"the types of c and d must be the same, found {m.ctype} and {m.dtype}"
    return in_written_order(m)


def _not_narrower(m: Match) -> str:
    """A `where` of m8n8k4: D is f32 where C is."""
    if str(m.ctype) == "f32" and str(m.dtype) != "f32":
        return "the type of d must be f32 where that of c is"
    return in_written_order(m)


class Multiply:
    """D = A * B + C."""

    @staticmethod
    def reference(threads, m, ins):
        form = form_of(m)
        matrices = [read_matrices(threads, form, name, operand) for name, operand in zip("abc", ins.operands[1:])]
        write_result(threads, form, ins, [multiply_matrices(form, *parts) for parts in zip(*matrices)])

    @staticmethod
    def emit(b, m, ins):
        form = form_of(m)
        check_counts(b, form, ins.operands)
        b.multiply(form, *(elements(operand) for operand in ins.operands[:4]))


_COMMON = {
    "operands": OPERAND_TYPES, "raw": True, "collective": True, "pipe": "tensor", "effects": ("convergence",),
    "section": SECTION,
}  # fmt: skip
_HALVES = ("f16", "f32")
_F64 = {
    "dtype": ("f64",), "atype": ("f64",), "btype": ("f64",), "ctype": ("f64",), "rnd": ("rn", "rz", "rm", "rp"),
    "where": in_written_order,
}  # fmt: skip
_DOUBLES = "mma.sync.aligned.shape.row.col.dtype.atype.btype.ctype{.rnd} d, a, b, c"
_TYPED = "mma.sync.aligned.shape.row.col.dtype.atype.btype.ctype d, a, b, c"


@instruction(
    "mma.sync.aligned.shape.alayout.blayout.dtype.atype.btype.ctype d, a, b, c", shape=("m8n8k4",),
    alayout=("row", "col"), blayout=("row", "col"), dtype=_HALVES, atype=("f16",), btype=("f16",), ctype=_HALVES,
    ptx="6.4", sm=70, where=_not_narrower, **_COMMON,
)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k8",), dtype=_HALVES, atype=("f16",), btype=("f16",), ctype=_HALVES, ptx="6.5",
             sm=75, where=same_accumulators, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k16",), dtype=_HALVES, atype=("f16",), btype=("f16",), ctype=_HALVES, ptx="7.0",
             sm=80, where=same_accumulators, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k8", "m16n8k16"), dtype=("f32",), atype=("bf16",), btype=("bf16",), ctype=("f32",),
             ptx="7.0", sm=80, where=in_written_order, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k4", "m16n8k8"), dtype=("f32",), atype=("tf32",), btype=("tf32",), ctype=("f32",),
             ptx="7.0", sm=80, where=in_written_order, **_COMMON)  # fmt: skip
@instruction(_DOUBLES, shape=("m8n8k4",), ptx="7.0", sm=80, **_F64, **_COMMON)
@instruction(_DOUBLES, shape=("m16n8k4", "m16n8k8", "m16n8k16"), ptx="7.8", sm=90, **_F64, **_COMMON)
@instruction(_TYPED, shape=("m16n8k32",), dtype=("f32",), atype=("e4m3", "e5m2"), btype=("e4m3", "e5m2"),
             ctype=("f32",), ptx="8.4", sm=89, where=in_written_order, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k32",), dtype=("f16",), atype=("e4m3", "e5m2"), btype=("e4m3", "e5m2"),
             ctype=("f16",), ptx="8.7", sm=89, where=in_written_order, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k16",), dtype=_HALVES, atype=("e4m3", "e5m2"), btype=("e4m3", "e5m2"),
             ctype=_HALVES, ptx="8.7", sm=89, where=same_accumulators, **_COMMON)  # fmt: skip
class MultiplyFloats(Multiply):
    """D = A * B + C on floating-point types."""


_INTEGERS = "mma.sync.aligned.shape.row.col{.satfinite}.dtype.atype.btype.ctype d, a, b, c"
_S32 = {"dtype": ("s32",), "ctype": ("s32",), "where": in_written_order}


@instruction(_INTEGERS, shape=("m8n8k16",), atype=("s8", "u8"), btype=("s8", "u8"), ptx="6.5", sm=75, **_S32, **_COMMON)
@instruction(_INTEGERS, shape=("m16n8k16", "m16n8k32"), atype=("s8", "u8"), btype=("s8", "u8"), ptx="7.0", sm=80,
             **_S32, **_COMMON)  # fmt: skip
@instruction(_INTEGERS, shape=("m8n8k32",), atype=("s4", "u4"), btype=("s4", "u4"), ptx="6.5", sm=75, **_S32, **_COMMON)
@instruction(_INTEGERS, shape=("m16n8k32", "m16n8k64"), atype=("s4", "u4"), btype=("s4", "u4"), ptx="7.0", sm=80,
             **_S32, **_COMMON)  # fmt: skip
class MultiplyIntegers(Multiply):
    """D = A * B + C on integers; sums wrap, or saturate with .satfinite."""


_BITS = "mma.sync.aligned.shape.row.col.dtype.atype.btype.ctype.op.popc d, a, b, c"
_B1 = {"atype": ("b1",), "btype": ("b1",)}


@instruction(_BITS, shape=("m8n8k128",), op=("xor",), ptx="7.0", sm=75, **_B1, **_S32, **_COMMON)
@instruction(_BITS, shape=("m8n8k128",), op=("and",), ptx="7.1", sm=80, **_B1, **_S32, **_COMMON)
@instruction(_BITS, shape=("m16n8k128", "m16n8k256"), op=("xor",), ptx="7.0", sm=80, **_B1, **_S32, **_COMMON)
@instruction(_BITS, shape=("m16n8k128", "m16n8k256"), op=("and",), ptx="7.1", sm=80, **_B1, **_S32, **_COMMON)
class MultiplyBits(Multiply):
    """D = popcount(A op B) + C on single bits."""


# ---------------------------------------------------------------- types of 8, 6 and 4 bits; block scaling
SMALL_TYPES = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
_KIND = "mma.sync.aligned.shape.row.col.kind.dtype.atype.btype.ctype d, a, b, c"


@instruction(_KIND, shape=("m16n8k32",), kind=("kind::f8f6f4",), dtype=_HALVES, atype=SMALL_TYPES, btype=SMALL_TYPES,
             ctype=_HALVES, ptx="8.7", sm=120, where=same_accumulators, **_COMMON)  # fmt: skip
@instruction(_KIND, shape=("m16n8k16",), kind=("kind::f8f6f4",), dtype=_HALVES, atype=SMALL_TYPES[:2],
             btype=SMALL_TYPES[:2], ctype=_HALVES, ptx="8.7", sm=120, where=same_accumulators, **_COMMON)  # fmt: skip
class MultiplySmall(Multiply):
    """D = A * B + C on elements of 8, 6 and 4 bits, each in a byte: 6 bits in its low bits, 4 in bits 2 to 5."""


def scale_words(threads: Sequence, operand, select, wide: bool) -> list[int]:
    """A scale operand as the multiplication takes it: the bytes chosen by byte-id at the bottom, and in the lanes
    that thread-id 0 would choose."""
    byte_id, thread_id = select.items
    words = [0] * LANES
    for lane in range(LANES):
        t = threads[lane]
        if t is not None:
            thread = t.read(thread_id, TYPES["u16"])
            member = 2 * thread + (lane & 1) if wide else thread
            source = threads[(lane & ~3) + (member & 3)]
            if source is not None:
                words[lane] = source.read(operand, TYPES["b32"]) >> 8 * (t.read(byte_id, TYPES["u16"]) & 3)
    return words


def scale_matrix(form: MultiplyForm, name: str, words: Sequence[int]) -> Matrix:
    """Patterns of scale_A [m][blocks] or of scale_B [n][blocks]."""
    lanes = scale_places(form, name).tolist()
    return [[words[lane] >> (8 * block) & 0xFF for block in range(form.scale_vector)] for lane in lanes]


def emit_scale(b, operand, select, wide: bool):
    """The Value that `scale_words` describes; None during analysis."""
    byte_id, thread_id = (b.read(x, 16) for x in select.items)
    word = b.read(operand, 32)
    if word is None or byte_id is None or thread_id is None:
        return None
    shift = b.shl(b.and_(b.zext(byte_id, 32), b.const(3, 32)), b.const(3, 32))
    thread = b.zext(thread_id, 32)
    if wide:
        thread = b.or_(b.shl(thread, b.const(1, 32)), b.and_(b.lane(), b.const(1, 32)))
    source = b.or_(b.and_(b.lane(), b.const(~3, 32)), b.and_(thread, b.const(3, 32)))
    return b.shuffle(b.lshr(word, shift), source)


SCALE_TYPES = {"scale_a": "b32", "select_a": "b16", "scale_b": "b32", "select_b": "b16"}
SCALE_OPERANDS = "scale_a, select_a, scale_b, select_b"


def check_selectors(b, ins: Instruction) -> None:
    """Raises PtxError for a constant selector that names no thread or byte."""
    for which, operand in (("a", ins.operands[-3]), ("b", ins.operands[-1])):
        limits = {"byte": 4, "thread": 2 if which == "a" else 4}
        for (what, limit), item in zip(limits.items(), elements(operand)):
            if isinstance(item, Immediate) and not 0 <= item.value < limit:
                raise b.error(f"{what}-id-{which} must be from 0 to {limit - 1}, found {item.value}")


class MultiplyScaled:
    """D = (A * scale_A) * (B * scale_B) + C: one scale for each block along k of a row of A, or a column of B."""

    @staticmethod
    def reference(threads, m, ins):
        form = form_of(m)
        a, b, c = (read_matrices(threads, form, name, x)[0] for name, x in zip("abc", ins.operands[1:4]))
        scale_a, select_a, scale_b, select_b = ins.operands[4:]
        by_row = scale_matrix(form, "a", scale_words(threads, scale_a, select_a, True))
        by_column = scale_matrix(form, "b", scale_words(threads, scale_b, select_b, False))
        write_result(threads, form, ins, [multiply_matrices(form, a, b, c, scales=(by_row, by_column))])

    @staticmethod
    def emit(b, m, ins):
        form = form_of(m)
        check_counts(b, form, ins.operands)
        check_selectors(b, ins)
        scale_a, select_a, scale_b, select_b = ins.operands[4:]
        scales = emit_scale(b, scale_a, select_a, True), emit_scale(b, scale_b, select_b, False)
        b.multiply(form, *(elements(operand) for operand in ins.operands[:4]), scales=scales)


_SCALED_COMMON = {**_COMMON, "operands": {**OPERAND_TYPES, **SCALE_TYPES}, "where": in_written_order}
_SCALED = ("mma.sync.aligned.shape.row.col.kind.block_scale{.scale_vec}.dtype.atype.btype.ctype.stype d, a, b, c, "
           + SCALE_OPERANDS)  # fmt: skip
_MANDATORY = _SCALED.replace("{.scale_vec}", ".scale_vec")
_F32 = {"dtype": ("f32",), "ctype": ("f32",)}
_FOURS = {**_F32, "shape": ("m16n8k64",), "atype": ("e2m1",), "btype": ("e2m1",)}


@instruction(_SCALED, shape=("m16n8k32",), kind=("kind::mxf8f6f4",), scale_vec=("scale_vec::1X",), atype=SMALL_TYPES,
             btype=SMALL_TYPES, stype=("ue8m0",), ptx="8.7", sm=120, **_F32, **_SCALED_COMMON)  # fmt: skip
@instruction(_SCALED, kind=("kind::mxf4",), scale_vec=("scale_vec::2X",), stype=("ue8m0",), ptx="8.7", sm=120,
             **_FOURS, **_SCALED_COMMON)  # fmt: skip
@instruction(_MANDATORY, kind=("kind::mxf4nvf4",), scale_vec=("scale_vec::2X",), stype=("ue8m0",), ptx="8.7", sm=120,
             **_FOURS, **_SCALED_COMMON)  # fmt: skip
@instruction(_MANDATORY, kind=("kind::mxf4nvf4",), scale_vec=("scale_vec::4X",), stype=("ue4m3",), ptx="8.7", sm=120,
             **_FOURS, **_SCALED_COMMON)  # fmt: skip
@instruction(_MANDATORY, kind=("kind::mxf4nvf4",), scale_vec=("scale_vec::4X",), stype=("ue8m0",), ptx="9.1", sm=120,
             **_FOURS, **_SCALED_COMMON)  # fmt: skip
class MultiplyBlocks(MultiplyScaled):
    """Block scaling; isa/products.py says in which order is summed and rounded."""
