"""Reductions, softmax, scans, pooling and losses that sum over classes."""

from __future__ import annotations

from weft.model.families.shapes import main_operand, plain_pipe, reads, streaming, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call

# Elements that a block of the softmax kernels keeps in registers or shared memory: 1024 threads x 24 f32 values.
PERSISTENT = 24 * 1024


@rule(
    "reduction",
    "sum mean prod amax amin max min argmax argmin any all nansum aminmax _aminmax count_nonzero "
    "logsumexp hash_tensor trace",
)
def price_reduction(call: Call) -> Profile:
    """Read once; max(a, b) of two tensors is element by element"""
    x = main_operand(call)
    return Profile("reduce", "reduction", ((plain_pipe(x.dtype), 1.0 * x.count),), reads(call), writes(call))


@rule("reduction", "norm linalg_vector_norm linalg__powsum var std var_mean std_mean dist")
def price_moments(call: Call) -> Profile:
    """Squares and sums"""
    x = main_operand(call)
    return Profile("reduce", "reduction", ((plain_pipe(x.dtype), 4.0 * x.count),), reads(call), writes(call))


@rule("reduction", "equal is_nonzero allclose _is_all_true _is_any_true", waits=True)
def price_question(call: Call) -> list[Profile]:
    """A comparison and a reduction, then the host reads the answer"""
    x = main_operand(call)
    return [Profile("compare", "reduction", ((plain_pipe(x.dtype), 2.0 * x.count),), reads(call), 1.0)]


@rule("reduction", "_softmax _log_softmax softmax log_softmax _safe_softmax _masked_softmax")
def price_softmax(call: Call) -> Profile:
    """Maximum, sum and division of rows that fit on the SM; longer ones are read three times"""
    x = call.inputs[0]
    row = x.shape[-1] if x.shape else 1
    passes = 1.0 if row <= PERSISTENT else 3.0
    return streaming(call, "reduction", "softmax", operations=5.0, special=1.0, passes=passes)


@rule("reduction", "_softmax_backward_data _log_softmax_backward_data _masked_softmax_backward")
def price_softmax_backward(call: Call) -> Profile:
    """Gradient and output of rows that fit on the SM; longer ones are read twice"""
    x = call.inputs[0]
    row = x.shape[-1] if x.shape else 1
    return streaming(call, "reduction", "softmax_backward", operations=5.0, special=1.0,
                     passes=1.0 if row <= PERSISTENT else 2.0)  # fmt: skip


@rule(
    "reduction",
    "_sparse_softmax _sparse_log_softmax _sparse_softmax_backward_data "
    "_sparse_log_softmax_backward_data _sparse_sum _sparse_csr_sum _sparse_csr_prod _sparse_sum_backward "
    "_nested_tensor_softmax_with_shape _nested_sum_backward",
)
def price_sparse(call: Call) -> Profile:
    """What is stored is read once and written once"""
    return streaming(call, "reduction", "sparse_reduce", operations=4.0, access="random")


@rule("reduction", "cumsum cumprod logcumsumexp _logcumsumexp _cummax_helper _cummin_helper cummax cummin")
def price_scan(call: Call) -> Profile:
    """One pass with decoupled look-back"""
    return streaming(call, "reduction", "scan", operations=4.0)


@rule("reduction", "nll_loss_forward nll_loss2d_forward multi_margin_loss multilabel_margin_loss_forward")
def price_class_loss(call: Call) -> Profile:
    """One element per row is read: a sector of 32 bytes and the target's index"""
    x, target = call.inputs[0], call.inputs[1]
    rows = max(target.count, 1)
    return Profile("nll_loss", "reduction", ((plain_pipe(x.dtype), 2.0 * rows),), rows * 32.0 + target.nbytes,
                   writes(call), access="random")  # fmt: skip


@rule("reduction", "nll_loss_backward nll_loss2d_backward multi_margin_loss_backward multilabel_margin_loss_backward")
def price_class_loss_backward(call: Call) -> list[Profile]:
    """Zeros everywhere, then one element per row"""
    grad = call.results()[0]
    target = call.inputs[2]
    return [
        Profile("fill", "copy", (), 0.0, grad.nbytes),
        Profile("nll_loss_backward", "reduction", (), target.nbytes, target.count * 32.0, access="random"),
    ]


@rule("reduction", "_ctc_loss _cudnn_ctc_loss _ctc_loss_backward miopen_ctc_loss", waits=True)
def price_ctc(call: Call) -> Profile:
    """A recursion over time in one kernel: log_probs[time, batch, classes]"""
    log_probs = next(operand for operand in call.tensors() if len(operand.shape) == 3)
    steps = log_probs.shape[0]
    found = streaming(call, "reduction", "ctc_loss", operations=20.0, special=4.0)
    blocks = max(1, log_probs.shape[1])
    return Profile("ctc_loss", "reduction", found.flops, found.bytes_read, found.bytes_written, 1 + steps // 512,
                   blocks=blocks, threads=256)  # fmt: skip


@rule(
    "reduction",
    "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool1d "
    "max_pool2d max_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d "
    "quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d mkldnn_max_pool2d mkldnn_max_pool3d "
    "mkldnn_adaptive_avg_pool2d",
)
def price_pool(call: Call) -> Profile:
    """The input is read once (overlapping windows meet in the cache); kernel size operations per output"""
    out, x = call.results()[0], call.inputs[0]
    window = call.argument(1, "kernel_size")
    size = 1
    if isinstance(window, tuple) and "adaptive" not in call.name:
        for side in window:
            size *= int(side)
    else:
        size = max(1, x.count // max(out.count, 1))
    return Profile("pool", "reduction", ((plain_pipe(x.dtype), float(size * out.count)),), x.nbytes, writes(call))


@rule(
    "reduction",
    "avg_pool2d_backward avg_pool3d_backward max_pool2d_with_indices_backward "
    "max_pool3d_with_indices_backward adaptive_max_pool2d_backward adaptive_max_pool3d_backward max_pool2d_backward "
    "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_avg_pool3d_backward "
    "fractional_max_pool2d_backward fractional_max_pool3d_backward mkldnn_max_pool2d_backward "
    "mkldnn_max_pool3d_backward mkldnn_adaptive_avg_pool2d_backward",
)
def price_pool_backward(call: Call) -> Profile:
    """Gradient (and indices) are read, the input's gradient is written; the input itself is not touched"""
    grad, out = call.inputs[0], call.results()[0]
    indices = sum(operand.nbytes for operand in call.tensors() if operand.dtype == "int64")
    return Profile("pool_backward", "reduction", ((plain_pipe(grad.dtype), 2.0 * out.count),), grad.nbytes + indices,
                   out.nbytes)  # fmt: skip


@rule("reduction", "max_unpool2d max_unpool3d")
def price_unpool(call: Call) -> Profile:
    """Values go to where their indices say; the rest is zeros"""
    return streaming(call, "reduction", "unpool", operations=1.0, access="random")


@rule(
    "reduction",
    "histc bincount histogram _histogramdd_from_bin_cts _histogramdd_from_bin_tensors _histogramdd_bin_edges",
    waits=lambda call: "bincount" in call.name,
)
def price_histogram(call: Call) -> Profile:
    """One pass with counters in shared memory"""
    return streaming(call, "reduction", "histogram", operations=4.0)


@rule("reduction", "segment_reduce _segment_reduce_backward _embedding_bag _embedding_bag_forward_only")
def price_segments(call: Call) -> Profile:
    """Rows are read by index and summed by bag: embedding_bag(weight, indices, offsets, ...)"""
    operands = call.tensors()
    if "embedding_bag" in call.name:
        weight, indices = operands[0], operands[1]
        read = indices.count * weight.shape[-1] * weight.itemsize + total_bytes(operands[1:])
        flops = float(indices.count * weight.shape[-1])
        return Profile("embedding_bag", "gather", ((plain_pipe(weight.dtype), flops),), read, writes(call),
                       access="random")  # fmt: skip
    return streaming(call, "reduction", "segment_reduce", operations=2.0)


@rule("reduction", "_amp_foreach_non_finite_check_and_unscale")
def price_unscale(call: Call) -> Profile:
    """Every gradient is read, checked, scaled and written"""
    size = total_bytes(call.inputs)
    count = sum(operand.count for operand in call.tensors())
    return Profile("amp_unscale", "optimiser", (("fp32", 2.0 * count),), size, size,
                   max(1, len(call.tensors()) // 110))  # fmt: skip


@rule(
    "reduction",
    "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_lanczos2d_aa "
    "upsample_linear1d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward "
    "upsample_trilinear3d_backward upsample_nearest1d_backward upsample_nearest2d_backward "
    "upsample_nearest3d_backward _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward "
    "_upsample_nearest_exact3d_backward _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward "
    "_upsample_lanczos2d_aa_backward",
)
def price_resample(call: Call) -> Profile:
    """Neighbours are read from the cache: input once, output once"""
    return streaming(call, "pointwise", "resample", operations=12.0)


@rule(
    "reduction",
    "grid_sampler_2d grid_sampler_3d cudnn_grid_sampler _grid_sampler_2d_cpu_fallback "
    "grid_sampler_2d_backward grid_sampler_3d_backward cudnn_grid_sampler_backward "
    "_grid_sampler_2d_cpu_fallback_backward affine_grid_generator cudnn_affine_grid_generator "
    "cudnn_affine_grid_generator_backward",
)
def price_sample(call: Call) -> Profile:
    """Four or eight neighbours per output, wherever the grid points"""
    access = "stream" if "affine" in call.name else "random"
    return streaming(call, "gather", "grid_sample", operations=20.0, access=access)
