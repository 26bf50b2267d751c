"""Scaled dot-product attention: which of CUDA's implementations a call gets, and what they compute.

The choice follows aten/src/ATen/native/transformers/cuda/sdp_utils.cpp of PyTorch 2.13: the enabled back ends in order
of priority, the first whose conditions the inputs meet. The numbers come from the CPU's flash attention where it
can (no dropout), otherwise from the formula in float32 with a dropout mask that the saved seed makes again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.recording import record
from weft.frontends.torch.tensors import Tensor, to_cuda, to_host

_C = torch._C
_aten = torch.ops.aten
_flash_cpu = _aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_cpu_backward = _aten._scaled_dot_product_flash_attention_for_cpu_backward.default

MATH, FLASH, EFFICIENT, CUDNN = 0, 1, 2, 3
_LOW = (torch.float16, torch.bfloat16)
_MAX_FLASH_HEAD = 256


# ---------------------------------------------------------------- the choice
def _flash_fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, gqa: bool, major: int) -> bool:
    if major < 8 or mask is not None or query.dtype not in _LOW or query.dim() != 4:
        return False
    if not query.dtype == key.dtype == value.dtype or not query.size(-1) == key.size(-1) == value.size(-1):
        return False
    if query.size(-1) > _MAX_FLASH_HEAD or 0 in (query.size(0), query.size(2), key.size(2)):
        return False
    heads = (query.size(1), key.size(1), value.size(1))
    if heads[0] == heads[1] == heads[2]:
        return all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    return gqa and heads[1] == heads[2] and heads[0] % heads[1] == 0


def _efficient_fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, gqa: bool, major: int) -> bool:
    allowed = (torch.float16, torch.float32) if major < 8 else (torch.float16, torch.bfloat16, torch.float32)
    if query.dtype not in allowed or query.dim() != 4 or not query.dtype == key.dtype == value.dtype:
        return False
    if not query.size(1) == key.size(1) == value.size(1) or query.size(-1) != key.size(-1):
        return False
    if 0 in (query.size(0), query.size(2), key.size(2)):
        return False
    if mask is not None and mask.dtype not in (query.dtype, torch.bool):
        return False
    return all(tensor.stride(-1) == 1 for tensor in (query, key, value))


def add_questions() -> None:
    """torch.backends.cuda.can_use_flash_attention and its like: what `choose_backend` asks, for one back end."""

    def major(params: Any) -> int:
        return gpus[max(params.query.get_device(), 0)].chip.compute_capability[0]

    def can_use_flash(params: Any, debug: bool = False) -> bool:
        return _C._get_flash_sdp_enabled() and _flash_fits(
            params.query, params.key, params.value, params.attn_mask, params.enable_gqa, major(params)
        )

    def can_use_efficient(params: Any, debug: bool = False) -> bool:
        return _C._get_mem_efficient_sdp_enabled() and _efficient_fits(
            params.query, params.key, params.value, params.attn_mask, params.enable_gqa, major(params)
        )

    def can_use_cudnn(params: Any, debug: bool = False) -> bool:
        return _C._get_cudnn_sdp_enabled() and _flash_fits(
            params.query, params.key, params.value, None, params.enable_gqa, major(params)
        )

    def is_available() -> bool:
        return True

    for name, function in {
        "_can_use_flash_attention": can_use_flash, "_can_use_mem_efficient_attention": can_use_efficient,
        "_can_use_cudnn_attention": can_use_cudnn, "_is_flash_attention_available": is_available,
    }.items():  # fmt: skip
        setattr(_C, name, function)


def choose_backend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0,
                   is_causal: bool = False, *, scale: float | None = None,
                   enable_gqa: bool = False) -> int:  # fmt: skip
    """aten::_fused_sdp_choice: the number of an SDPBackend. Raises RuntimeError where none of the enabled ones fits."""
    device = query.get_device()
    major = gpus[device if device >= 0 else 0].chip.compute_capability[0]
    for backend in _C._get_sdp_priority_order():
        if backend == FLASH and _C._get_flash_sdp_enabled():
            if _flash_fits(query, key, value, mask, enable_gqa, major):
                return FLASH
        elif backend == EFFICIENT and _C._get_mem_efficient_sdp_enabled():
            if _efficient_fits(query, key, value, mask, enable_gqa, major):
                return EFFICIENT
        elif backend == CUDNN and _C._get_cudnn_sdp_enabled() and not _C._get_flash_sdp_enabled():
            if _flash_fits(query, key, value, None, enable_gqa, major):
                return CUDNN
        elif backend == MATH and _C._get_math_sdp_enabled():
            return MATH
    raise RuntimeError("No available kernel. Aborting execution.")


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                                 dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
                                 enable_gqa: bool = False) -> Tensor:  # fmt: skip
    """aten::scaled_dot_product_attention, composed of the operator of the back end that is chosen."""
    if is_causal and attn_mask is not None:
        raise RuntimeError("_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True")
    if query.dtype != key.dtype or query.dtype != value.dtype:
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{_name(query)} key.dtype: {_name(key)} and value.dtype: {_name(value)} instead."
        )
    backend = choose_backend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is not None and attn_mask.dtype is torch.bool and backend != MATH:
        zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = zeros.masked_fill_(attn_mask.logical_not(), -math.inf)
    if backend == FLASH:
        return _aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]  # fmt: skip
    if backend == EFFICIENT:
        needed = any(tensor.requires_grad for tensor in (query, key, value))
        return _aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, needed, dropout_p, is_causal, scale=scale
        )[0]
    if backend == CUDNN:
        return _aten._scaled_dot_product_cudnn_attention(
            query, key, value, attn_mask, True, dropout_p, is_causal, False, scale=scale
        )[0]
    return _aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _name(tensor: Tensor) -> str:
    return {"float16": "c10::Half", "bfloat16": "c10::BFloat16", "float32": "float", "float64": "double"}.get(
        str(tensor.dtype).removeprefix("torch."), str(tensor.dtype)
    )


# ---------------------------------------------------------------- the numbers, on host twins
def _expand_heads(query: Tensor, other: Tensor) -> Tensor:
    groups = query.size(1) // other.size(1)
    return other if groups == 1 else other.repeat_interleave(groups, 1)


def _sum_heads(gradient: Tensor, like: Tensor) -> Tensor:
    groups = gradient.size(1) // like.size(1)
    if groups == 1:
        return gradient
    return gradient.unflatten(1, (like.size(1), groups)).sum(2)


def _draw_seed(index: int) -> int:
    return int(torch.randint(0, 2**62, (), generator=gpus[index].generator._host))


def _can_use_cpu_flash(query: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float) -> bool:
    if dropout_p or query.size(-1) != value.size(-1):
        return False
    return mask is None or (mask.dim() in (2, 4) and mask.dtype == query.dtype)


def _scores_bias(mask: Tensor | None, is_causal: bool, rows: int, columns: int, bottom_right: bool) -> Tensor | None:
    if is_causal:
        allowed = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows if bottom_right else 0)
        causal = torch.zeros(rows, columns).masked_fill_(allowed.logical_not(), -math.inf)
        return causal if mask is None else mask.float() + causal
    return mask.float() if mask is not None else None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool,
            scale: float | None, seed: int, bottom_right: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output, log of the sums of exponentials) in float32 arithmetic, of (batch, heads, length, size) tensors."""
    factor = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    wide = torch.float64 if query.dtype is torch.float64 else torch.float32
    scores = torch.matmul(query.to(wide), key.to(wide).transpose(-2, -1)) * factor
    bias = _scores_bias(mask, is_causal, query.size(-2), key.size(-2), bottom_right)
    if bias is not None:
        scores = scores + bias
    sums = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - sums.masked_fill(sums == -math.inf, 0).unsqueeze(-1))
    if dropout_p:
        generator = _C.Generator()
        generator.manual_seed(seed)
        kept = torch.rand(weights.shape, generator=generator) >= dropout_p
        weights = weights * kept / (1 - dropout_p)
    return torch.matmul(weights, value.to(wide)).to(query.dtype), sums


def _forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool,
             scale: float | None, index: int) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """(output, log-sum-exp, seed) on the host."""
    seed = _draw_seed(index) if dropout_p else 0
    key, value = _expand_heads(query, key), _expand_heads(query, value)
    if _can_use_cpu_flash(query, value, mask, dropout_p):
        output, sums = _flash_cpu(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)
    else:
        output, sums = _attend(query, key, value, mask, dropout_p, is_causal, scale, seed)
    return output, sums, seed


def _backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, output: Tensor,
              sums: Tensor, dropout_p: float, is_causal: bool, scale: float | None, seed: int,
              mask_gradient: bool) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of query, key, value and, where asked for, the mask, on the host."""
    wide_key, wide_value = _expand_heads(query, key), _expand_heads(query, value)
    if _can_use_cpu_flash(query, value, mask, dropout_p) and not mask_gradient:
        found = _flash_cpu_backward(
            gradient, query, wide_key, wide_value, output, sums, 0.0, is_causal, attn_mask=mask, scale=scale
        )
        return found[0], _sum_heads(found[1], key), _sum_heads(found[2], value), None
    given = [query, wide_key, wide_value, *([mask] if mask_gradient and mask is not None else [])]
    with with_autograd():
        leaves = [tensor.detach().requires_grad_() for tensor in given]
        bias = leaves[3] if len(leaves) > 3 else mask
        result, _ = _attend(leaves[0], leaves[1], leaves[2], bias, dropout_p, is_causal, scale, seed)
        found = torch.autograd.grad(result, leaves, gradient)
    return found[0], _sum_heads(found[1], key), _sum_heads(found[2], value), found[3] if len(found) > 3 else None


# The dispatch keys that a thread includes and excludes when nothing else has been asked for.
_DEFAULT_KEYS = (_C._dispatch_tls_local_include_set(), _C._dispatch_tls_local_exclude_set())


class with_autograd:
    """Autograd on host tensors inside a kernel, which runs below the autograd of the program."""

    def __init__(self) -> None:
        self._keys = _C._ForceDispatchKeyGuard(*_DEFAULT_KEYS)
        self._grad = torch.enable_grad()

    def __enter__(self) -> None:
        self._keys.__enter__()
        self._grad.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._grad.__exit__(*error)
        self._keys.__exit__(*error)


# ---------------------------------------------------------------- layouts, as torch/_meta_registrations.py has them
def _arrange_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor with the strides that empty_like(like) has."""
    return _copy_into(torch.empty_like(like, dtype=tensor.dtype), tensor)


def _arrange_by_length(tensor: Tensor) -> Tensor:
    """A (batch, heads, length, size) tensor that lies in memory as (batch, length, heads, size)."""
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def _copy_into(place: Tensor, tensor: Tensor) -> Tensor:
    return tensor if tensor.stride() == place.stride() and tensor.shape == place.shape else place.copy_(tensor)


def _pad_sums(sums: Tensor, wanted: bool) -> Tensor:
    """The memory-efficient kernel's log-sum-exp: its length a multiple of 32, or none."""
    batch, heads, length = sums.shape
    padded = sums.new_zeros(batch, heads, -(-length // 32) * 32 if wanted else 0, dtype=torch.float32)
    if wanted:
        padded[..., :length] = sums
    return padded


def _cpu_sums(sums: Tensor, length: int) -> Tensor:
    """A saved log-sum-exp as the CPU's backward kernel has it."""
    return _arrange_by_length(sums[..., :length].unsqueeze(-1)).squeeze(-1)


# ---------------------------------------------------------------- the operators
def _seed_tensors(seed: int, index: int, flash: bool) -> tuple[Tensor, Tensor]:
    """The seed and its offset, which is 0, as CUDA keeps them."""
    if flash:
        host = torch.tensor([seed, 0]).view(torch.uint64), torch.tensor(0).view(torch.uint64)
    else:
        host = torch.tensor(seed), torch.tensor(0)
    return to_cuda(host[0], index), to_cuda(host[1], index)


def _read_seed(tensor: Tensor, dropout_p: float) -> int:
    return int(to_host(tensor).view(torch.int64).flatten()[0]) if dropout_p else 0


def flash_forward(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
                  return_debug_mask: bool = False, *, scale: float | None = None) -> tuple:  # fmt: skip
    index = query.get_device()
    with _C.DisableTorchFunction():
        output, sums, seed = _forward(
            to_host(query), to_host(key), to_host(value), None, dropout_p, is_causal, scale, index
        )
        result = (
            to_cuda(_arrange_like(output, to_host(query)), index), to_cuda(sums.float().contiguous(), index),
            None, None, query.size(2), key.size(2), *_seed_tensors(seed, index, True),
            to_cuda(torch.empty(0, dtype=query.dtype), index),
        )  # fmt: skip
    given = {"scale": scale}
    record("_scaled_dot_product_flash_attention", (query, key, value, dropout_p, is_causal), given, result, index)
    return result


def flash_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
                   cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float, is_causal: bool,
                   philox_seed: Tensor, philox_offset: Tensor, *, scale: float | None = None) -> tuple:  # fmt: skip
    index = query.get_device()
    with _C.DisableTorchFunction():
        found = _backward(
            to_host(grad_out), to_host(query), to_host(key), to_host(value), None, to_host(out),
            _cpu_sums(to_host(logsumexp), query.size(2)), dropout_p, is_causal, scale,
            _read_seed(philox_seed, dropout_p), False,
        )  # fmt: skip
        result = tuple(
            to_cuda(_arrange_like(tensor, to_host(like)), index) for tensor, like in zip(found[:3], (query, key, value))
        )
    record(
        "_scaled_dot_product_flash_attention_backward",
        (grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
         philox_seed, philox_offset), {"scale": scale}, result, index,
    )  # fmt: skip
    return result


def efficient_forward(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, compute_log_sumexp: bool,
                      dropout_p: float = 0.0, is_causal: bool = False, *,
                      scale: float | None = None) -> tuple:  # fmt: skip
    result = _efficient_forward(query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal, scale)
    given = (query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal)
    record("_scaled_dot_product_efficient_attention", given, {"scale": scale}, result, query.get_device())
    return result


def _efficient_forward(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, compute_log_sumexp: bool,
                       dropout_p: float, is_causal: bool, scale: float | None) -> tuple:  # fmt: skip
    index = query.get_device()
    with _C.DisableTorchFunction():
        mask = None if attn_bias is None else to_host(attn_bias)
        output, sums, seed = _forward(
            to_host(query), to_host(key), to_host(value), mask, dropout_p, is_causal, scale, index
        )
        return (
            to_cuda(_arrange_by_length(output), index), to_cuda(_pad_sums(sums, compute_log_sumexp), index),
            *_seed_tensors(seed, index, False),
        )  # fmt: skip


def efficient_backward(grad_out_: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None,
                       out: Tensor, logsumexp: Tensor, philox_seed: Tensor, philox_offset: Tensor, dropout_p: float,
                       grad_input_mask: list[bool], is_causal: bool = False, *,
                       scale: float | None = None) -> tuple:  # fmt: skip
    given = (grad_out_, query, key, value, attn_bias, out, logsumexp, philox_seed, philox_offset, dropout_p,
             grad_input_mask, is_causal)  # fmt: skip
    result = _efficient_backward(*given, scale)
    record("_scaled_dot_product_efficient_attention_backward", given, {"scale": scale}, result, query.get_device())
    return result


def _efficient_backward(grad_out_: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None,
                        out: Tensor, logsumexp: Tensor, philox_seed: Tensor, philox_offset: Tensor, dropout_p: float,
                        grad_input_mask: list[bool], is_causal: bool, scale: float | None) -> tuple:  # fmt: skip
    index = query.get_device()
    if not grad_out_.numel():
        return (None, None, None, None)
    with _C.DisableTorchFunction():
        has_bias = attn_bias is not None and attn_bias.numel() > 0
        mask = to_host(attn_bias) if has_bias and attn_bias is not None else None
        found = _backward(
            to_host(grad_out_), to_host(query), to_host(key), to_host(value), mask, to_host(out),
            _cpu_sums(to_host(logsumexp), query.size(2)), dropout_p, is_causal, scale,
            _read_seed(philox_seed, dropout_p), has_bias and grad_input_mask[3],
        )  # fmt: skip
        arranged = [_arrange_by_length(tensor) for tensor in found[:3] if tensor is not None]
        return tuple(
            to_cuda(tensor, index) if tensor is not None and wanted else None
            for tensor, wanted in zip((*arranged, found[3]), grad_input_mask)
        )


def cudnn_forward(query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, compute_log_sumexp: bool,
                  dropout_p: float = 0.0, is_causal: bool = False, return_debug_mask: bool = False, *,
                  scale: float | None = None) -> tuple:  # fmt: skip
    output, sums, seed, offset = _efficient_forward(
        query, key, value, attn_bias, True, dropout_p, is_causal, scale
    )
    sums = sums[..., : query.size(2)].unsqueeze(-1).contiguous()
    result = (output, sums, None, None, query.size(2), key.size(2), seed, offset, None)
    given = (query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal, return_debug_mask)
    record("_scaled_dot_product_cudnn_attention", given, {"scale": scale}, result, query.get_device())
    return result


def cudnn_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
                   philox_seed: Tensor, philox_offset: Tensor, attn_bias: Tensor, cum_seq_q: Any, cum_seq_k: Any,
                   max_q: int, max_k: int, dropout_p: float, is_causal: bool, *,
                   scale: float | None = None) -> tuple:  # fmt: skip
    result = _efficient_backward(
        grad_out, query, key, value, attn_bias, out, logsumexp.squeeze(-1), philox_seed, philox_offset, dropout_p,
        [True, True, True, False], is_causal, scale,
    )[:3]  # fmt: skip
    given = (grad_out, query, key, value, out, logsumexp, philox_seed, philox_offset, attn_bias, cum_seq_q, cum_seq_k,
             max_q, max_k, dropout_p, is_causal)  # fmt: skip
    record("_scaled_dot_product_cudnn_attention_backward", given, {"scale": scale}, result, query.get_device())
    return result


# ---------------------------------------------------------------- sequences of different lengths, packed
def _split(tensor: Tensor, ends: Tensor | None) -> list[Tensor]:
    """(1, heads, length, size) per sequence of a packed (total, heads, size), or of (batch, length, heads, size)."""
    if ends is None:
        return [part.transpose(0, 1).unsqueeze(0) for part in tensor]
    bounds = ends.tolist()
    return [tensor[start:end].transpose(0, 1).unsqueeze(0) for start, end in zip(bounds, bounds[1:])]


def _join(parts: list[Tensor], packed: bool) -> Tensor:
    whole = [part.squeeze(0).transpose(0, 1) for part in parts]
    return torch.cat(whole) if packed else torch.stack(whole)


def _window_mask(rows: int, columns: int, left: int | None, right: int | None) -> Tensor | None:
    if (left is None or left < 0) and (right is None or right < 0):
        return None
    row = torch.arange(rows).unsqueeze(1) + columns - rows
    column = torch.arange(columns).unsqueeze(0)
    allowed = torch.ones(rows, columns, dtype=torch.bool)
    if left is not None and left >= 0:
        allowed &= column >= row - left
    if right is not None and right >= 0:
        allowed &= column <= row + right
    return torch.zeros(rows, columns).masked_fill_(allowed.logical_not(), -math.inf)


def _attend_packed(query: Tensor, key: Tensor, value: Tensor, ends_q: Tensor | None, ends_k: Tensor | None,
                   dropout_p: float, is_causal: bool, scale: float | None, seed: int,
                   window: tuple) -> tuple[Tensor, Tensor]:  # fmt: skip
    outputs, sums = [], []
    parts = zip(_split(query, ends_q), _split(key, ends_k), _split(value, ends_k))
    for number, (one, its_key, its_value) in enumerate(parts):
        mask = _window_mask(one.size(2), its_key.size(2), *window)
        output, sum_ = _attend(
            one, _expand_heads(one, its_key), _expand_heads(one, its_value), mask, dropout_p, is_causal, scale,
            seed + number, bottom_right=True,
        )  # fmt: skip
        outputs.append(output)
        sums.append(sum_.squeeze(0))
    packed = ends_q is not None
    return _join(outputs, packed), torch.cat(sums, -1) if packed else torch.stack(sums)


def _ends(cumulated: Tensor | None) -> Tensor | None:
    """Where packed sequences end, on the host; None where they are not packed."""
    return None if cumulated is None or not cumulated.numel() else to_host(cumulated)


def _refuse_paged(*values: Any) -> None:
    if any(value is not None for value in values):
        raise RuntimeError(
            "_flash_attention_forward: seqused_k, alibi_slopes and block_table are not supported on a virtual GPU"
        )


def packed_flash_forward(query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor | None,
                         cum_seq_k: Tensor | None, max_q: int, max_k: int, dropout_p: float, is_causal: bool,
                         return_debug_mask: bool, *, scale: float | None = None, window_size_left: int | None = None,
                         window_size_right: int | None = None, seqused_k: Any = None, alibi_slopes: Any = None,
                         block_table: Any = None, num_splits: Any = None) -> tuple:  # fmt: skip
    """aten::_flash_attention_forward: (batch, length, heads, size), or packed with cumulated lengths."""
    _refuse_paged(seqused_k, alibi_slopes, block_table)
    index = query.get_device()
    seed = _draw_seed(index) if dropout_p else 0
    with _C.DisableTorchFunction():
        output, sums = _attend_packed(
            to_host(query), to_host(key), to_host(value), _ends(cum_seq_q), _ends(cum_seq_k), dropout_p, is_causal,
            scale, seed, (window_size_left, window_size_right),
        )  # fmt: skip
        result = (
            to_cuda(_arrange_like(output, to_host(query)), index), to_cuda(sums.float().contiguous(), index),
            *_seed_tensors(seed, index, True), to_cuda(torch.empty(0, dtype=query.dtype), index),
        )  # fmt: skip
    given = (query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask)
    options = {"scale": scale, "window_size_left": window_size_left, "window_size_right": window_size_right}
    record("_flash_attention_forward", given, options, result, index)
    return result


def packed_flash_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
                          cum_seq_q: Tensor | None, cum_seq_k: Tensor | None, max_q: int, max_k: int,
                          dropout_p: float, is_causal: bool, rng_state: Tensor, unused: Tensor, *,
                          scale: float | None = None, window_size_left: int | None = None,
                          window_size_right: int | None = None) -> tuple:  # fmt: skip
    index = query.get_device()
    with _C.DisableTorchFunction():
        seed = _read_seed(rng_state, dropout_p)
        hosts = [to_host(tensor) for tensor in (query, key, value)]
        gradient = to_host(grad_out)
        with with_autograd():
            leaves = [tensor.detach().requires_grad_() for tensor in hosts]
            output, _ = _attend_packed(
                leaves[0], leaves[1], leaves[2], _ends(cum_seq_q), _ends(cum_seq_k), dropout_p, is_causal, scale, seed,
                (window_size_left, window_size_right),
            )  # fmt: skip
            found = torch.autograd.grad(output, leaves, gradient)
        result = tuple(to_cuda(tensor, index) for tensor in found)
    given = (
        grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
        rng_state, unused,
    )  # fmt: skip
    options = {"scale": scale, "window_size_left": window_size_left, "window_size_right": window_size_right}
    record("_flash_attention_backward", given, options, result, index)
    return result


_NO_MASK, _CAUSAL_TOP_LEFT, _CAUSAL_BOTTOM_RIGHT = 0, 1, 2


def packed_efficient_forward(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None,
                             cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, max_seqlen_q: int | None,
                             max_seqlen_k: int | None, dropout_p: float, custom_mask_type: int,
                             compute_log_sumexp: bool = False, *, scale: float | None = None, seqlen_k: Any = None,
                             window_size: int | None = None) -> tuple:  # fmt: skip
    """aten::_efficient_attention_forward of (batch, length, heads, size), or packed as (1, total, heads, size)."""
    if bias is not None or seqlen_k is not None or window_size is not None:
        raise RuntimeError(
            "_efficient_attention_forward: bias, seqlen_k and window_size are not supported on a virtual GPU; "
            "torch.nn.functional.scaled_dot_product_attention takes a bias"
        )
    if cu_seqlens_q is not None:
        query, key, value = query.squeeze(0), key.squeeze(0), value.squeeze(0)
    output, sums, seed, offset, _ = packed_flash_forward(
        query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q or query.size(1), max_seqlen_k or key.size(1),
        dropout_p, custom_mask_type != _NO_MASK, False, scale=scale,
    )  # fmt: skip
    if cu_seqlens_q is not None:
        output = output.unsqueeze(0)
    return output, sums, seed, offset, max_seqlen_q or query.size(1), max_seqlen_k or key.size(1)


def packed_efficient_backward(grad_out_: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None,
                              out: Tensor, cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None,
                              max_seqlen_q: int, max_seqlen_k: int, logsumexp: Tensor, dropout_p: float,
                              philox_seed: Tensor, philox_offset: Tensor, custom_mask_type: int,
                              bias_requires_grad: bool, *, scale: float | None = None, num_splits_key: Any = None,
                              window_size: int | None = None,
                              shared_storage_dqdkdv: bool = False) -> tuple:  # fmt: skip
    packed = cu_seqlens_q is not None
    given = [tensor.squeeze(0) if packed else tensor for tensor in (grad_out_, query, key, value, out)]
    found = packed_flash_backward(
        given[0], given[1], given[2], given[3], given[4], logsumexp, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, dropout_p, custom_mask_type != _NO_MASK, philox_seed, philox_offset, scale=scale,
    )  # fmt: skip
    return (*(tensor.unsqueeze(0) if packed else tensor for tensor in found), None)


KERNELS: dict[str, Callable[..., Any]] = {
    "_fused_sdp_choice": choose_backend,
    "_scaled_dot_product_flash_attention": flash_forward,
    "_scaled_dot_product_flash_attention_backward": flash_backward,
    "_scaled_dot_product_efficient_attention": efficient_forward,
    "_scaled_dot_product_efficient_attention_backward": efficient_backward,
    "_scaled_dot_product_cudnn_attention": cudnn_forward,
    "_scaled_dot_product_cudnn_attention_backward": cudnn_backward,
    "_flash_attention_forward": packed_flash_forward,
    "_flash_attention_backward": packed_flash_backward,
    "_efficient_attention_forward": packed_efficient_forward,
    "_efficient_attention_backward": packed_efficient_backward,
}
# Composed above autograd, for the keys CUDA and AutogradCUDA.
COMPOSITES: dict[str, Callable[..., Any]] = {"scaled_dot_product_attention": scaled_dot_product_attention}
