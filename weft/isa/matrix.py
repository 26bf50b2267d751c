"""mma.sync: multiplication of small matrices whose elements are spread over the registers of a warp.

All lanes of a warp execute these together; what a missing lane holds is undefined. `form_of` makes the MultiplyForm of
a matched instruction, isa/fragments.py says which lane holds what, isa/products.py what is computed.
Section: PTX ISA, "Matrix multiply-accumulate operation using mma instruction".
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.isa.fragments import MultiplyForm, fragment, registers
from weft.isa.instruction import Match, instruction
from weft.isa.memory import elements
from weft.isa.products import gather_matrix, multiply_matrices, scatter_matrix
from weft.types import TYPES, ScalarType

SECTION = "9.7.15.5.14"
ELEMENT_TYPES = ("f16", "bf16", "tf32", "f32", "f64", "e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "s8", "u8", "s4", "u4",
                 "b1", "s32")  # fmt: skip


def written_types(m: Match) -> list[str]:
    """The element types of an instruction in the order written."""
    return [token for token in m.tokens if token in ELEMENT_TYPES]


def form_of(m: Match) -> MultiplyForm:
    """The multiplication that an mma.sync (dense or sparse) or wmma.mma does."""
    d, a, b, c = written_types(m)
    sizes = m.shape.replace("n", " ").replace("k", " ").lstrip("m").split()
    operation = next((word for word in ("and", "xor") if word in m.tokens), "multiply")
    layouts = [token for token in m.tokens if token in ("row", "col")]
    return MultiplyForm(
        *map(int, sizes), a, b, c, d, saturate="satfinite" in m.tokens, a_layout=layouts[0], b_layout=layouts[1],
        operation=operation,
    )  # fmt: skip


def register_type(operand: str):
    """The type of one register of an operand, for instructions that write it without braces."""

    def of(m: Match) -> ScalarType:
        piece = fragment(form_of(m), operand)
        return TYPES["b64" if piece.register_bits == 64 else "b32"]

    return of


OPERAND_TYPES = {name: register_type(name) for name in ("d", "a", "b", "c")}


def check_counts(form: MultiplyForm, operands: Sequence) -> str:
    """"" or what is wrong with the number of registers of d, a, b, c."""
    for name, operand in zip("dabc", operands):
        wanted, found = registers(form, name), len(elements(operand))
        if wanted != found:
            return f"operand {name} must have {wanted} registers, found {found}"
    return ""


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
    """A `where`: the types are those of d, a, b and c in this order."""
    names = [str(m.get(slot)) for slot in ("dtype", "atype", "btype", "ctype")]
    return "" if written_types(m) == names else f"the types must be written in the order d, a, b, c, found {m.text}"


def same_accumulators(m: Match) -> str:
    """A `where`: C and D are of one type."""
    if str(m.dtype) != str(m.ctype):
        return f"the types of c and d must be the same, found {m.ctype} and {m.dtype}"
    return in_written_order(m)


class Multiply:
    """D = A * B + C."""

    @staticmethod
    def reference(threads, m, ins):
        form = form_of(m)
        d, *sources = ins.operands
        matrices = []
        for name, operand in zip("abc", sources):
            words = read_words(threads, operand, fragment(form, name).register_bits)
            matrices.append(gather_matrix(form, name, words))
        results = [multiply_matrices(form, *parts) for parts in zip(*matrices)]
        write_words(threads, d, fragment(form, "d").register_bits, scatter_matrix(form, "d", results))

    @staticmethod
    def emit(b, m, ins):
        form = form_of(m)
        wrong = check_counts(form, ins.operands)
        if wrong:
            raise b.error(wrong)
        b.multiply(form, *(elements(operand) for operand in ins.operands))


_COMMON = {
    "operands": OPERAND_TYPES, "raw": True, "collective": True, "pipe": "tensor", "effects": ("convergence",),
    "section": SECTION,
}  # fmt: skip
_HALVES = ("f16", "f32")
_TYPED = "mma.sync.aligned.shape.row.col.dtype.atype.btype.ctype d, a, b, c"


@instruction(
    "mma.sync.aligned.shape.alayout.blayout.dtype.atype.btype.ctype d, a, b, c", shape=("m8n8k4",),
    alayout=("row", "col"), blayout=("row", "col"), dtype=_HALVES, atype=("f16",), btype=("f16",), ctype=_HALVES,
    ptx="6.4", sm=70, where=in_written_order, **_COMMON,
)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k8",), dtype=_HALVES, atype=("f16",), btype=("f16",), ctype=_HALVES, ptx="6.5",
             sm=75, where=same_accumulators, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k16",), dtype=_HALVES, atype=("f16",), btype=("f16",), ctype=_HALVES, ptx="7.0",
             sm=80, where=same_accumulators, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k8", "m16n8k16"), dtype=("f32",), atype=("bf16",), btype=("bf16",), ctype=("f32",),
             ptx="7.0", sm=80, where=in_written_order, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k4", "m16n8k8"), dtype=("f32",), atype=("tf32",), btype=("tf32",), ctype=("f32",),
             ptx="7.0", sm=80, where=in_written_order, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m8n8k4",), dtype=("f64",), atype=("f64",), btype=("f64",), ctype=("f64",), ptx="7.0",
             sm=80, where=in_written_order, **_COMMON)  # fmt: skip
@instruction(_TYPED, shape=("m16n8k4", "m16n8k8", "m16n8k16"), dtype=("f64",), atype=("f64",), btype=("f64",),
             ctype=("f64",), ptx="7.8", sm=90, where=in_written_order, **_COMMON)  # fmt: skip
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
