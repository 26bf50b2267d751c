"""mma.sp: multiplication by a matrix A of which half of the elements are stored.

The metadata operand says which elements of A the stored ones are; isa/fragments.py has its layout. Metadata that the
manual calls undefined (two equal or unordered indices) are taken at their word: each stored element meets the row of B
that its index names. Section: PTX ISA, "Matrix multiply-accumulate operation using mma.sp instruction".
"""

from __future__ import annotations

from weft.isa.fragments import MultiplyForm, sparse_indices
from weft.isa.instruction import Match, instruction
from weft.isa.matrix import (
    OPERAND_TYPES,
    SCALE_OPERANDS,
    SCALE_TYPES,
    SMALL_TYPES,
    check_counts,
    check_selectors,
    emit_scale,
    form_of,
    in_written_order,
    read_matrices,
    read_words,
    same_accumulators,
    scale_matrix,
    scale_words,
    write_result,
)
from weft.isa.memory import elements
from weft.isa.operands import Immediate, Instruction
from weft.isa.products import multiply_matrices


def sparse_form(m: Match, ins: Instruction) -> MultiplyForm:
    """The form with the sparsity selector, which must be a constant. Raises ValueError for one that is none, or that
    names threads that do not exist."""
    selector = ins.operands[5]
    if not isinstance(selector, Immediate):
        raise ValueError("the sparsity selector must be a constant")
    form = form_of(m, int(selector.value))
    if not 0 <= form.selector < 4 or int(sparse_indices(form).lane.max()) > 31:
        raise ValueError(f"sparsity selector {selector.value} names threads that do not exist")
    return form


class MultiplySparse:
    """D = A * B + C with half of A's elements stored."""

    @staticmethod
    def reference(threads, m, ins):
        form = sparse_form(m, ins)
        a, b, c = (read_matrices(threads, form, name, x)[0] for name, x in zip("abc", ins.operands[1:4]))
        metadata = [row[0] for row in read_words(threads, ins.operands[4], 32)]
        scales = None
        if form.scale_type:
            scale_a, select_a, scale_b, select_b = ins.operands[6:]
            by_row = scale_matrix(form, "a", scale_words(threads, scale_a, select_a, True))
            scales = by_row, scale_matrix(form, "b", scale_words(threads, scale_b, select_b, False))
        columns = sparse_indices(form).rows(metadata)
        write_result(threads, form, ins, [multiply_matrices(form, a, b, c, columns, scales)])

    @staticmethod
    def emit(b, m, ins):
        try:
            form = sparse_form(m, ins)
        except ValueError as wrong:
            raise b.error(str(wrong)) from None
        check_counts(b, form, ins.operands)
        more = {"metadata": ins.operands[4]}
        if form.scale_type:
            check_selectors(b, ins)
            scale_a, select_a, scale_b, select_b = ins.operands[6:]
            more["scales"] = emit_scale(b, scale_a, select_a, True), emit_scale(b, scale_b, select_b, False)
        b.multiply(form, *(elements(operand) for operand in ins.operands[:4]), **more)


_OPERANDS = {**OPERAND_TYPES, "e": "b32", "f": "b32"}
_COMMON = {
    "operands": _OPERANDS, "raw": True, "collective": True, "pipe": "tensor",
    "effects": ("convergence",), "section": "9.7.15.6.3",
}  # fmt: skip
_HALVES = ("f16", "f32")
_F32 = {"dtype": ("f32",), "ctype": ("f32",), "where": in_written_order}
_S32 = {"dtype": ("s32",), "ctype": ("s32",), "where": in_written_order}
_TYPED = "mma.sparse.sync.aligned.shape.row.col.dtype.atype.btype.ctype d, a, b, c, e, f"
_INTEGERS = "mma.sparse.sync.aligned.shape.row.col{.satfinite}.dtype.atype.btype.ctype d, a, b, c, e, f"
_EIGHTS = SMALL_TYPES[:2]


def _define(sparse: str, ptx: str, ptx_small: str):
    """The entries that mma.sp and mma.sp::ordered_metadata have in common."""
    sparse_ = {"sparse": (sparse,)}

    def define(definition: type) -> type:
        for signature, shapes, types, more, version, sm in (
            (_TYPED, ("m16n8k16", "m16n8k32"), ("f16",),
             {"dtype": _HALVES, "ctype": _HALVES, "where": same_accumulators}, ptx, 80),
            (_TYPED, ("m16n8k16", "m16n8k32"), ("bf16",), _F32, ptx, 80),
            (_TYPED, ("m16n8k8", "m16n8k16"), ("tf32",), _F32, ptx, 80),
            (_TYPED, ("m16n8k64",), _EIGHTS, _F32, ptx_small, 89),
            (_INTEGERS, ("m16n8k32", "m16n8k64"), ("s8", "u8"), _S32, ptx, 80),
            (_INTEGERS, ("m16n8k64", "m16n8k128"), ("s4", "u4"), _S32, ptx, 80),
        ):  # fmt: skip
            instruction(
                signature, shape=shapes, atype=types, btype=types, ptx=version, sm=sm, **sparse_, **more, **_COMMON
            )(definition)
        return definition

    return define


@_define("sp", "7.1", "8.4")
@_define("sp::ordered_metadata", "8.5", "8.5")
class MultiplySparseTypes(MultiplySparse):
    """Types that both kinds of metadata admit."""


_ORDERED = {"sparse": ("sp::ordered_metadata",)}
_KIND = "mma.sparse.sync.aligned.shape.row.col.kind.dtype.atype.btype.ctype d, a, b, c, e, f"


@instruction(_TYPED, shape=("m16n8k64",), dtype=("f16",), atype=_EIGHTS, btype=_EIGHTS, ctype=("f16",), ptx="8.7",
             sm=120, where=in_written_order, **_ORDERED, **_COMMON)  # fmt: skip
@instruction(_KIND, shape=("m16n8k64",), kind=("kind::f8f6f4",), dtype=_HALVES, atype=SMALL_TYPES, btype=SMALL_TYPES,
             ctype=_HALVES, ptx="8.7", sm=120, where=same_accumulators, **_ORDERED, **_COMMON)  # fmt: skip
class MultiplySparseSmall(MultiplySparse):
    """Elements of 8, 6 and 4 bits, each in a byte."""


_SCALED_COMMON = {**_COMMON, "operands": {**_OPERANDS, **SCALE_TYPES}, **_ORDERED}
_SCALED = ("mma.sparse.sync.aligned.shape.row.col.kind.block_scale{.scale_vec}.dtype.atype.btype.ctype.stype "
           "d, a, b, c, e, f, " + SCALE_OPERANDS)  # fmt: skip
_MANDATORY = _SCALED.replace("{.scale_vec}", ".scale_vec")
_FOURS = {**_F32, "shape": ("m16n8k128",), "atype": ("e2m1",), "btype": ("e2m1",)}


@instruction(_SCALED, shape=("m16n8k64",), kind=("kind::mxf8f6f4",), scale_vec=("scale_vec::1X",), atype=SMALL_TYPES,
             btype=SMALL_TYPES, stype=("ue8m0",), ptx="8.7", sm=120, **_F32, **_SCALED_COMMON)  # fmt: skip
@instruction(_SCALED, kind=("kind::mxf4",), scale_vec=("scale_vec::2X",), stype=("ue8m0",), ptx="8.7", sm=120,
             **_FOURS, **_SCALED_COMMON)  # fmt: skip
@instruction(_MANDATORY, kind=("kind::mxf4nvf4",), scale_vec=("scale_vec::2X",), stype=("ue8m0",), ptx="8.7", sm=120,
             **_FOURS, **_SCALED_COMMON)  # fmt: skip
@instruction(_MANDATORY, kind=("kind::mxf4nvf4",), scale_vec=("scale_vec::4X",), stype=("ue4m3",), ptx="8.7", sm=120,
             **_FOURS, **_SCALED_COMMON)  # fmt: skip
@instruction(_MANDATORY, kind=("kind::mxf4nvf4",), scale_vec=("scale_vec::4X",), stype=("ue8m0",), ptx="9.1", sm=120,
             **_FOURS, **_SCALED_COMMON)  # fmt: skip
class MultiplySparseBlocks(MultiplySparse):
    """Block scaling of a sparse matrix."""
