"""Fused attention: flash, memory-efficient and cuDNN kernels.

The scores are never written: two products forward (Q K^T and P V), five backward, which is 2.5 times the forward's
arithmetic (FlashAttention-2, arXiv 2307.08691, section 4.1). A causal mask halves both.
"""

from __future__ import annotations

from weft.model.families.shapes import matrix_pipe, plain_pipe, total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call, Operand

BACKWARD = 2.5


def _attention(call: Call, q: Operand, k: Operand, v: Operand, causal: bool, *, heads_first: bool, factor: float,
               name: str, bytes_read: float, bytes_written: float) -> Profile:  # fmt: skip
    """heads_first: [batch, heads, length, width]; else [batch, length, heads, width]."""
    batch, heads = q.shape[0], q.shape[1 if heads_first else 2]
    rows, columns = q.shape[2 if heads_first else 1], k.shape[2 if heads_first else 1]
    share = 1.0
    if causal:  # what lies under the diagonal
        share = (columns - (rows - 1) / 2) / columns if columns >= rows else (columns + 1) / 2 / rows
    pairs = batch * heads * rows * columns * share
    flops = factor * 2.0 * pairs * (q.shape[-1] + v.shape[-1])
    pipe = matrix_pipe(q.dtype, call.tf32_matmul)
    special = ("sfu", pairs * (2 if factor > 1 else 1))
    blocks = batch * heads * -(-rows // 128)
    if rows <= 128 and factor == 1.0:  # few queries: the keys are divided too (flash decoding)
        blocks *= -(-columns // 256)
    return Profile(name, "attention", ((pipe, flops), special), bytes_read, bytes_written, blocks=blocks, threads=128)


def _forward(call: Call, causal_at: int, heads_first: bool) -> Profile:
    q, k, v = call.inputs[:3]
    causal = bool(call.argument(causal_at, "is_causal", False))
    return _attention(
        call, q, k, v, causal, heads_first=heads_first, factor=1.0, name="attention",
        bytes_read=total_bytes((q, k, v, call.argument(3, "attn_bias"))), bytes_written=writes(call),
    )  # fmt: skip


@rule("attention", "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu")
def price_flash(call: Call) -> Profile:
    """(q, k, v, dropout_p, is_causal, ...)"""
    return _forward(call, 4, True)


@rule("attention", "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
      "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip
def price_efficient(call: Call) -> Profile:
    """(q, k, v, attn_bias, compute_log_sumexp, dropout_p, is_causal, ...)"""
    base = call.name.rpartition("::")[2].partition(".")[0]
    return _forward(call, 5 if "overrideable" in base else 6, True)


@rule("attention", "scaled_dot_product_attention")
def price_composite(call: Call) -> Profile:
    """scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal)"""
    q, k, v = call.inputs[:3]
    causal = bool(call.argument(5, "is_causal", False))
    return _attention(call, q, k, v, causal, heads_first=True, factor=1.0, name="attention",
                      bytes_read=total_bytes((q, k, v, call.argument(3, "attn_mask"))),
                      bytes_written=writes(call))  # fmt: skip


@rule("attention", "_flash_attention_forward _flash_attention_forward_no_dropout_inplace _efficient_attention_forward "
      "_cudnn_attention_forward")  # fmt: skip
def price_lengths_first(call: Call) -> Profile:
    """The kernels beneath: [batch, length, heads, width]"""
    q, k, v = call.inputs[:3]
    causal = bool(call.kwargs.get("is_causal", False) or call.kwargs.get("custom_mask_type", 0))
    if "flash" in call.name and len(call.inputs) > 8:
        causal = bool(call.inputs[8])
    if len(q.shape) == 3:  # packed lengths: [total, heads, width]
        q, k, v = (Operand((1, *operand.shape), operand.dtype, operand.itemsize) for operand in (q, k, v))
    return _attention(call, q, k, v, causal, heads_first=False, factor=1.0, name="attention",
                      bytes_read=total_bytes((q, k, v)), bytes_written=writes(call))  # fmt: skip


def _backward(call: Call, causal: bool, heads_first: bool) -> list[Profile]:
    """grad, q, k, v come first. A small kernel computes the row sums of grad x out before the large one."""
    grad, q, k, v = call.inputs[:4]
    pipe = plain_pipe(q.dtype)
    first = Profile("attention_row_sums", "attention", ((pipe, 2.0 * grad.count),), 2 * grad.nbytes,
                    4.0 * grad.count / max(grad.shape[-1], 1))  # fmt: skip
    main = _attention(
        call, q, k, v, causal, heads_first=heads_first, factor=BACKWARD, name="attention_backward",
        bytes_read=total_bytes((grad, q, k, v)) + grad.nbytes, bytes_written=total_bytes((q, k, v)),
    )  # fmt: skip
    return [first, main]


@rule("attention", "_scaled_dot_product_flash_attention_backward")
def price_flash_backward(call: Call) -> list[Profile]:
    """(grad, q, k, v, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, ...)"""
    return _backward(call, bool(call.argument(11, "is_causal", False)), True)


@rule("attention", "_scaled_dot_product_flash_attention_for_cpu_backward")
def price_flash_cpu_backward(call: Call) -> list[Profile]:
    """(grad, q, k, v, out, logsumexp, dropout_p, is_causal)"""
    return _backward(call, bool(call.argument(7, "is_causal", False)), True)


@rule("attention", "_scaled_dot_product_efficient_attention_backward")
def price_efficient_backward(call: Call) -> list[Profile]:
    """(grad, q, k, v, attn_bias, out, logsumexp, philox_seed, philox_offset, dropout_p, grad_input_mask, is_causal)"""
    return _backward(call, bool(call.argument(11, "is_causal", False)), True)


@rule("attention", "_scaled_dot_product_cudnn_attention_backward "
      "_scaled_dot_product_fused_attention_overrideable_backward")  # fmt: skip
def price_cudnn_backward(call: Call) -> list[Profile]:
    """(grad, q, k, v, out, logsumexp, philox_seed, philox_offset, attn_bias, ...)"""
    return _backward(call, bool(call.kwargs.get("is_causal", any(value is True for value in call.inputs))), True)


@rule("attention", "_flash_attention_backward _efficient_attention_backward _cudnn_attention_backward")
def price_lengths_first_backward(call: Call) -> list[Profile]:
    """The kernels beneath: [batch, length, heads, width]"""
    return _backward(call, bool(call.kwargs.get("is_causal", any(value is True for value in call.inputs))), False)


@rule("attention", "_transform_bias_rescale_qkv")
def price_rescale(call: Call) -> Profile:
    """Adds the bias, scales q, splits the heads"""
    out = call.results()
    total = sum(operand.count for operand in out)
    return Profile("rescale_qkv", "attention", (("fp32", 2.0 * total),), total_bytes(call.inputs), writes(call))


@rule("attention", "_native_multi_head_attention _triton_multi_head_attention _triton_scaled_dot_attention "
      "_transformer_encoder_layer_fwd")  # fmt: skip
def price_fast_path(call: Call) -> list[Profile]:
    """The inference path of nn.MultiheadAttention and nn.TransformerEncoderLayer: x[batch, length, width], weights.

    Every weight matrix is one product with all rows of x; in between lies attention.
    """
    x = call.inputs[0]
    rows, width = x.shape[0] * x.shape[1], x.shape[-1]
    found = []
    for weight in _matrices(call):
        flops = 2.0 * rows * weight.count
        found.append(
            Profile("gemm", "gemm", ((matrix_pipe(x.dtype, call.tf32_matmul), flops),), weight.nbytes + x.nbytes,
                    rows * weight.shape[0] * x.itemsize, gemm=(1, rows, weight.shape[0], weight.shape[1]))
        )  # fmt: skip
    pairs = float(x.shape[0] * x.shape[1] * x.shape[1])
    found.append(
        Profile("attention", "attention", ((matrix_pipe(x.dtype, call.tf32_matmul), 4.0 * pairs * width),),
                3 * x.nbytes, x.nbytes)
    )  # fmt: skip
    return found


def _matrices(call: Call) -> list[Operand]:
    x = call.inputs[0]
    return [operand for operand in call.tensors()[1:] if len(operand.shape) == 2 and operand.shape != x.shape[1:]]
