"""Copies, fills, concatenation, padding and the like: no arithmetic, only traffic within the device."""

from __future__ import annotations

from weft.model.families.shapes import main_operand, reads, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call, Operand


def _same_order(a: Operand, b: Operand) -> bool:
    """Whether two tensors run through memory in the same order, so that a copy reads and writes straight on."""
    if a.strides is None or b.strides is None or len(a.shape) != len(b.shape):
        return True
    order = [
        tuple(sorted(range(len(operand.shape)), key=lambda axis, o=operand: (-o.strides[axis], axis)))  # type: ignore[misc]
        for operand in (_without_ones(a), _without_ones(b))
    ]
    return order[0] == order[1]


def _without_ones(operand: Operand) -> Operand:
    """Sides of length one have meaningless strides; sides that are only expanded are read again and again."""
    strides = operand.strides or ()
    kept = [(side, step) for side, step in zip(operand.shape, strides) if side != 1 and step != 0]
    return Operand(tuple(s for s, _ in kept), operand.dtype, operand.itemsize, tuple(step for _, step in kept))


@rule("copy", "copy", strides=True, transfers=True)
@rule(
    "copy",
    "clone contiguous _to_copy to _copy_from _copy_from_and_resize lift_fresh_copy _lazy_clone "
    "_reshape_copy _pin_memory copy_sparse_to_sparse _reshape_alias_copy",
    strides=True,
)
def price_copy(call: Call) -> Profile:
    """copy(to, from) reads the second, the others their first; a change of order costs bandwidth"""
    base = call.name.rpartition("::")[2].partition(".")[0].rstrip("_")
    out = call.results()[0]
    source = call.inputs[1] if base == "copy" and isinstance(call.inputs[1], Operand) else call.inputs[0]
    access = "stream" if _same_order(source, out) else "strided"
    return Profile("copy", "copy", (), source.nbytes, out.nbytes, access=access)


@rule(
    "copy",
    "fill zero zeros ones full zeros_like ones_like full_like new_zeros new_full new_ones eye arange range "
    "linspace logspace scalar_tensor tril_indices triu_indices _efficientzerotensor fill_diagonal bartlett_window "
    "blackman_window hamming_window hann_window kaiser_window fft_fftfreq fft_rfftfreq _fill_mem_eff_dropout_mask_ "
    "_new_zeros_with_same_feature_meta",
    outputs=True,
)
def price_fill(call: Call) -> Profile:
    """Written once"""
    return Profile("fill", "copy", (), 0.0, writes(call))


@rule(
    "copy",
    "cat _cat stack _stack hstack vstack _chunk_cat block_diag cartesian_prod _nested_from_padded "
    "_nested_from_padded_tensor _nested_tensor_from_tensor_list _nested_tensor_from_mask to_padded_tensor "
    "_jagged_to_padded_dense_forward _padded_dense_to_jagged_forward _pack_padded_sequence",
)
def price_gathered_copy(call: Call) -> Profile:
    """Every piece is read and written once"""
    return Profile("concatenate", "copy", (), reads(call), writes(call))


@rule(
    "copy",
    "constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d reflection_pad1d_backward reflection_pad2d_backward "
    "reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward "
    "tril triu repeat tile roll flip rot90 diag_embed narrow_copy slice_copy select_copy expand_copy permute_copy "
    "transpose_copy t_copy view_copy unfold_copy unfold_backward diagonal_copy squeeze_copy unsqueeze_copy "
    "as_strided_copy alias_copy detach_copy view_as_real_copy view_as_complex_copy split_copy "
    "split_with_sizes_copy unbind_copy _conj_copy _neg_view_copy pixel_shuffle pixel_unshuffle channel_shuffle "
    "im2col col2im values_copy indices_copy crow_indices_copy col_indices_copy ccol_indices_copy "
    "row_indices_copy _values_copy _indices_copy _fw_primal_copy _make_dual_copy _mkldnn_reshape "
    "_mkldnn_transpose to_mkldnn _nested_view_from_buffer_copy _nested_view_from_jagged_copy "
    "_nested_get_values_copy _sparse_broadcast_to_copy",
)
def price_rearranged(call: Call) -> Profile:
    """What lands in the result was read once"""
    out = writes(call)
    return Profile("rearrange", "copy", (), min(reads(call), out) or out, out)


@rule("copy", "slice_backward select_backward diagonal_backward _nested_select_backward")
def price_placed(call: Call) -> list[Profile]:
    """Zeros, then the gradient in its place"""
    grad = call.inputs[0]
    return [
        Profile("fill", "copy", (), 0.0, writes(call)),
        Profile("copy", "copy", (), grad.nbytes, grad.nbytes),
    ]


@rule("copy", "slice_scatter select_scatter diagonal_scatter as_strided_scatter slice_inverse")
def price_inserted(call: Call) -> list[Profile]:
    """A copy of the whole, then the piece in its place"""
    whole, piece = call.inputs[0], call.inputs[1]
    return [
        Profile("copy", "copy", (), whole.nbytes, whole.nbytes),
        Profile("copy", "copy", (), piece.nbytes, piece.nbytes),
    ]


@rule("copy", "resize resize_as resize_ resize_as_ _resize_output")
def price_resize(call: Call) -> list[Profile]:
    """Memory only"""
    return []


@rule(
    "copy",
    "_to_dense _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc _coalesce sparse_mask "
    "_sparse_mask_projection _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo _spdiags "
    "_sparse_semi_structured_tile _sparse_semi_structured_apply _sparse_semi_structured_apply_dense "
    "_to_sparse_semi_structured _cslt_compress _convert_weight_to_int4pack _sparse_broadcast_to "
    "_convert_weight_to_int4pack_for_cpu _dyn_quant_pack_4bit_weight _validate_compressed_sparse_indices",
    waits=lambda call: "to_sparse" in call.name or "coalesce" in call.name,
)
def price_conversion(call: Call) -> Profile:
    """A change of layout: read once, written once, in no order"""
    out = total_bytes(call.outputs) or main_operand(call).nbytes
    return Profile("convert_layout", "copy", (), reads(call), out, kernels=2, access="random")
