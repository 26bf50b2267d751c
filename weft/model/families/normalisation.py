"""Layer, group and batch normalisation, forward and backward."""

from __future__ import annotations

from weft.model.families.shapes import plain_pipe, reads, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call


@rule("normalisation", "native_layer_norm _fused_rms_norm rms_norm layer_norm native_norm")
def price_rows(call: Call) -> Profile:
    """One kernel, a row in registers: read once, written once; mean, variance and scaling are eight operations"""
    x = call.inputs[0]
    return Profile("layer_norm", "normalisation", ((plain_pipe(x.dtype), 8.0 * x.count),), reads(call), writes(call))


@rule("normalisation", "native_layer_norm_backward _fused_rms_norm_backward")
def price_rows_backward(call: Call) -> list[Profile]:
    """The gradient of the input, and that of weight and bias over the columns"""
    grad, x = call.inputs[0], call.inputs[1]
    pipe = plain_pipe(x.dtype)
    both = grad.nbytes + x.nbytes
    found = [Profile("layer_norm_grad_input", "normalisation", ((pipe, 12.0 * x.count),), both, x.nbytes)]
    rest = writes(call) - call.results()[0].nbytes if call.results() else 0.0
    if rest > 0:
        found.append(Profile("layer_norm_grad_weight", "normalisation", ((pipe, 4.0 * x.count),), both, rest))
    return found


@rule("normalisation", "native_group_norm group_norm")
def price_groups(call: Call) -> list[Profile]:
    """Moments of each group, then scaling"""
    x = call.inputs[0]
    pipe = plain_pipe(x.dtype)
    small = writes(call) - x.nbytes
    return [
        Profile("group_norm_moments", "normalisation", ((pipe, 4.0 * x.count),), x.nbytes, max(small, 0.0)),
        Profile("group_norm", "normalisation", ((pipe, 2.0 * x.count),), reads(call), x.nbytes),
    ]


@rule("normalisation", "native_group_norm_backward")
def price_groups_backward(call: Call) -> list[Profile]:
    """Sums over each group, then the gradient of the input, then those of weight and bias"""
    grad, x = call.inputs[0], call.inputs[1]
    pipe = plain_pipe(x.dtype)
    both = grad.nbytes + x.nbytes
    channels = 4.0 * x.shape[0] * (x.shape[1] if len(x.shape) > 1 else 1)
    return [
        Profile("group_norm_sums", "normalisation", ((pipe, 4.0 * x.count),), both, 2 * channels),
        Profile("group_norm_grad_input", "normalisation", ((pipe, 6.0 * x.count),), both, x.nbytes),
        Profile("group_norm_grad_weight", "normalisation", (), 2 * channels, channels),
    ]


@rule(
    "normalisation",
    "native_batch_norm cudnn_batch_norm _native_batch_norm_legit _batch_norm_with_update "
    "_native_batch_norm_legit_functional _batch_norm_with_update_functional miopen_batch_norm",
)
def price_batch(call: Call) -> Profile:
    """In training x is read for its moments and again for scaling; in evaluation once"""
    x = call.inputs[0]
    base = call.name.rpartition("::")[2].partition(".")[0]
    training = "with_update" in base or any(value is True for value in call.inputs[3:])
    passes = 2 if training else 1
    flops = ((plain_pipe(x.dtype), 6.0 * x.count if training else 2.0 * x.count),)
    return Profile("batch_norm", "normalisation", flops, reads(call) + (passes - 1) * x.nbytes, writes(call))


@rule("normalisation", "_native_batch_norm_legit_no_training _batch_norm_no_update batch_norm_elemt")
def price_batch_evaluation(call: Call) -> Profile:
    """With given moments: one pass"""
    x = call.inputs[0]
    return Profile("batch_norm", "normalisation", ((plain_pipe(x.dtype), 2.0 * x.count),), reads(call), writes(call))


@rule(
    "normalisation",
    "native_batch_norm_backward cudnn_batch_norm_backward batch_norm_backward miopen_batch_norm_backward",
)
def price_batch_backward(call: Call) -> Profile:
    """x and the gradient are read for the sums and again for the result"""
    first, second = call.inputs[0], call.inputs[1]
    flops = ((plain_pipe(first.dtype), 10.0 * first.count),)
    return Profile("batch_norm_backward", "normalisation", flops, reads(call) + first.nbytes + second.nbytes,
                   writes(call))  # fmt: skip


@rule(
    "normalisation",
    "batch_norm_stats batch_norm_update_stats batch_norm_gather_stats "
    "batch_norm_gather_stats_with_counts batch_norm_backward_reduce batch_norm_backward_elemt",
)
def price_synchronised(call: Call) -> Profile:
    """The parts of SyncBatchNorm: one pass each"""
    x = call.inputs[0]
    return Profile("batch_norm_part", "normalisation", ((plain_pipe(x.dtype), 4.0 * x.count),),
                   total_bytes(call.inputs), writes(call))  # fmt: skip


@rule("normalisation", "renorm embedding_renorm")
def price_renorm(call: Call) -> list[Profile]:
    """Norms of the slices, then scaling"""
    x = call.inputs[0]
    pipe = plain_pipe(x.dtype)
    return [
        Profile("renorm_norms", "normalisation", ((pipe, 2.0 * x.count),), x.nbytes, 0.0),
        Profile("renorm_scale", "normalisation", ((pipe, 1.0 * x.count),), x.nbytes, x.nbytes),
    ]


@rule("normalisation", "_weight_norm_interface")
def price_weight_norm(call: Call) -> Profile:
    """v is read for its norm and again for scaling"""
    v = call.inputs[0]
    return Profile("weight_norm", "normalisation", ((plain_pipe(v.dtype), 4.0 * v.count),), 2 * v.nbytes, writes(call))


@rule("normalisation", "_weight_norm_interface_backward")
def price_weight_norm_backward(call: Call) -> Profile:
    """Gradient and v are read twice"""
    grad, v = call.inputs[0], call.inputs[1]
    flops = ((plain_pipe(v.dtype), 8.0 * v.count),)
    return Profile("weight_norm_backward", "normalisation", flops, 2 * (grad.nbytes + v.nbytes), writes(call))
