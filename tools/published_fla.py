"""Cases of tools/published_kernels.py: the operators of fla-core (flash-linear-attention) and their plain versions.

Layouts are the package's: q, k, v of shape [batch, time, heads, head size].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from published_cases import B, Case, D, H, T, first, fraction, gate, head_first, normal, qkv, qkv_unit, unit


def make_cases() -> list[Case]:
    """All cases. Imports the package."""
    import fla.ops as ops
    from published_fla_newer import newer_cases

    return [
        *simple_cases(ops),
        *delta_cases(ops),
        *attention_cases(ops),
        *recurrent_cases(ops),
        *newer_cases(ops),
        *module_cases(),
    ]


def simple_cases(ops: Any) -> list[Case]:
    from fla.ops.based.naive import naive_parallel_based
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.hgrn.naive import naive_recurrent_hgrn
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
    from fla.ops.rebased.naive import naive_parallel_rebased
    from fla.ops.retention.naive import naive_retention
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    def gla_inputs() -> dict[str, Any]:
        return {**qkv(), "g": gate(B, T, H, D)}

    def gla_reference(q, k, v, g):
        return naive_recurrent_gla(q, k, v, g)[0]

    def simple_inputs() -> dict[str, Any]:
        return {**qkv(), "g": gate(B, T, H)}

    def recurrent_gla(q, k, v, g):
        return ops.fused_recurrent_gla(q, k, v, gk=g)[0]

    retention = head_first(naive_retention)
    linear = first(naive_recurrent_linear_attn)
    simple = first(naive_recurrent_simple_gla)
    hgrn = {"x": lambda: normal(B, T, 128), "g": lambda: gate(B, T, 128, dtype=torch.bfloat16, scale=1)}
    based = lambda: {name: normal(B, T, H, 16, scale=0.3) for name in "qk"} | {"v": normal(B, T, H, D)}  # noqa: E731
    return [
        Case("chunk_gla", gla_inputs, first(ops.chunk_gla), gla_reference),
        Case("fused_recurrent_gla", gla_inputs, recurrent_gla, gla_reference),
        Case("chunk_simple_gla", simple_inputs, first(ops.chunk_simple_gla), simple),
        Case("fused_chunk_simple_gla", simple_inputs, first(ops.fused_chunk_simple_gla), simple),
        Case("fused_recurrent_simple_gla", simple_inputs, first(ops.fused_recurrent_simple_gla), simple),
        Case("parallel_simple_gla", simple_inputs, first(ops.parallel_simple_gla), simple),
        Case("chunk_retention", qkv, first(ops.chunk_retention), retention),
        Case("fused_chunk_retention", qkv, first(ops.fused_chunk_retention), retention),
        Case("fused_recurrent_retention", qkv, first(ops.fused_recurrent_retention), retention),
        Case("parallel_retention", qkv, first(ops.parallel_retention), retention),
        Case("chunk_linear_attn", qkv, first(ops.chunk_linear_attn, normalize=False), linear),
        Case("fused_chunk_linear_attn", qkv, first(ops.fused_chunk_linear_attn, normalize=False), linear),
        Case("fused_recurrent_linear_attn", qkv, first(ops.fused_recurrent_linear_attn, normalize=False), linear),
        Case("fused_recurrent_hgrn", lambda: {n: make() for n, make in hgrn.items()}, first(ops.fused_recurrent_hgrn),
             first(naive_recurrent_hgrn)),
        Case("parallel_based", based, first(ops.parallel_based, use_norm=True),
             head_first(naive_parallel_based, use_norm=True)),
        Case("fused_chunk_based", based, first(ops.fused_chunk_based, use_norm=True),
             head_first(naive_parallel_based, use_norm=True)),
        Case("parallel_rebased", based, first(_rebased(), eps=1e-6), head_first(naive_parallel_rebased, use_norm=True)),
    ]  # fmt: skip


def _rebased() -> Callable[..., Any]:
    from fla.ops.rebased import parallel_rebased

    return parallel_rebased


def delta_cases(ops: Any) -> list[Case]:
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
    from fla.ops.generalized_delta_rule.iplr.naive import iplr_recurrence
    from fla.ops.kda.naive import naive_recurrent_kda

    def delta_inputs() -> dict[str, Any]:
        return {**qkv_unit(), "beta": fraction(B, T, H)}

    def gated_inputs() -> dict[str, Any]:
        return {**delta_inputs(), "g": gate(B, T, H)}

    def kda_inputs() -> dict[str, Any]:
        return {**qkv_unit(), "g": gate(B, T, H, D), "beta": fraction(B, T, H)}

    def comba_inputs() -> dict[str, Any]:
        return {**gated_inputs(), "p": unit(B, T, H, D)}

    def low_rank_inputs() -> dict[str, Any]:
        a = unit(B, T, H, D)
        return {**qkv(), "a": a, "b": -(a * 0.5)}

    def dplr_inputs() -> dict[str, Any]:
        return {**low_rank_inputs(), "gk": gate(B, T, H, D)}

    def delta(q, k, v, beta):
        return head_first(delta_rule_recurrence)(q=q, k=k, v=v, beta=beta)

    def iplr(q, k, v, a, b):
        return head_first(iplr_recurrence)(q=q, k=k, v=v, alpha=a, beta=b)

    def dplr(q, k, v, a, b, gk):
        return head_first(dplr_recurrence)(q=q, k=k, v=v, alpha=a, beta=b, gk=gk)

    gated = first(naive_recurrent_gated_delta_rule)
    kda = first(naive_recurrent_kda)
    return [
        Case("chunk_delta_rule", delta_inputs, first(ops.chunk_delta_rule), delta),
        Case("fused_recurrent_delta_rule", delta_inputs, first(ops.fused_recurrent_delta_rule), delta),
        Case("chunk_gated_delta_rule", gated_inputs, first(ops.chunk_gated_delta_rule), gated),
        Case("fused_recurrent_gated_delta_rule", gated_inputs, first(ops.fused_recurrent_gated_delta_rule), gated,
             False),
        Case("chunk_kda", kda_inputs, first(ops.chunk_kda), kda),
        Case("fused_recurrent_kda", kda_inputs, first(ops.fused_recurrent_kda), kda, False),
        Case("chunk_comba", comba_inputs, first(ops.chunk_comba), comba),
        Case("fused_recurrent_comba", comba_inputs, first(ops.fused_recurrent_comba), comba, False),
        Case("chunk_iplr_delta_rule", low_rank_inputs, first(ops.chunk_iplr_delta_rule), iplr, False),
        Case("fused_recurrent_iplr_delta_rule", low_rank_inputs, first(ops.fused_recurrent_iplr_delta_rule), iplr),
        Case("chunk_dplr_delta_rule", dplr_inputs, first(ops.chunk_dplr_delta_rule), dplr),
        Case("fused_recurrent_dplr_delta_rule", dplr_inputs, first(ops.fused_recurrent_dplr_delta_rule), dplr, False),
    ]  # fmt: skip


def comba(q, k, v, p, g, beta):
    """S = exp(g_t) S + k_t beta_t (v_t - p_t S), the state as it was before this step's decay in the bracket, as the
    package's kernels have it; its own plain version decays first."""
    state = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for t in range(q.shape[1]):
        change = (v[:, t] - torch.einsum("bhk,bhkv->bhv", p[:, t], state)) * beta[:, t, :, None]
        state = state * g[:, t].exp()[..., None, None] + k[:, t, :, :, None] * change[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state) * q.shape[-1] ** -0.5)
    return torch.stack(outputs, 1)


def attention_cases(ops: Any) -> list[Case]:
    from fla.ops.attn.naive import naive_parallel_attn
    from fla.ops.forgetting_attn.naive import naive_forgetting_attn
    from fla.ops.parallax.naive import naive_parallax
    from fla.ops.path_attn.naive import naive_path_attn
    from fla.ops.stickbreaking_attn.naive import naive_stickbreaking_attn

    def grouped() -> dict[str, Any]:
        return {"q": normal(B, T, 2 * H, D), "k": normal(B, T, H, D), "v": normal(B, T, H, D)}

    def forgetting_inputs() -> dict[str, Any]:
        return {**grouped(), "g": gate(B, T, 2 * H, scale=1)}

    def parallax_inputs() -> dict[str, Any]:
        return {**grouped(), "r": normal(B, T, 2 * H, D, scale=0.1)}

    def path_inputs() -> dict[str, Any]:
        weights = {"w": unit(B, 128, H, D, dtype=torch.float32), "beta": 2 * fraction(B, 128, H, dtype=torch.float32)}
        return {**qkv(time=128), **weights, "g": gate(B, 128, H, scale=1)}

    scale = D**-0.5
    return [
        Case("parallel_attn", grouped, first(ops.parallel_attn), first(naive_parallel_attn)),
        Case("parallel_attn window", grouped, first(ops.parallel_attn, window_size=40),
             first(naive_parallel_attn, window_size=40)),
        Case("parallel_forgetting_attn", forgetting_inputs, first(ops.parallel_forgetting_attn),
             first(naive_forgetting_attn)),
        Case("parallel_stickbreaking_attn", qkv, first(ops.parallel_stickbreaking_attn),
             first(naive_stickbreaking_attn)),
        Case("parallel_parallax", parallax_inputs, first(ops.parallel_parallax), first(naive_parallax)),
        Case("parallel_path_attn", path_inputs, first(ops.parallel_path_attn, scale=scale),
             first(naive_path_attn, scale=scale), tolerance=0.02),
    ]  # fmt: skip


def recurrent_cases(ops: Any) -> list[Case]:
    from fla.ops.abc.naive import naive_recurrent_abc
    from fla.ops.gsa.naive import naive_recurrent_gsa
    from fla.ops.log_linear_attn.naive import naive_log_linear_attn
    from fla.ops.mesa_net.naive import naive_mesa_net_exact

    def gsa_inputs() -> dict[str, Any]:
        g = gate(B, T, H, 32, scale=8)
        return {**qkv(torch.float32), "s": (1 - g.exp()), "g": g}

    def mesa_inputs() -> dict[str, Any]:
        lamb = torch.rand(H, D) * 0.75 + 0.25
        return {"q": unit(B, T, H, D), "k": unit(B, T, H, D), "v": normal(B, T, H, D), "g": gate(B, T, H),
                "beta": fraction(B, T, H), "lamb": lamb}  # fmt: skip

    def log_linear_inputs() -> dict[str, Any]:
        time = 128
        return {**{n: normal(1, time, H, D, scale=0.3) for n in "qkv"}, "g": gate(1, time, H),
                "level_scales": torch.rand(1, time, H, 8).bfloat16()}  # fmt: skip

    def rwkv6_inputs() -> dict[str, Any]:
        return {"r": normal(B, T, H, D), "k": normal(B, T, H, D), "v": normal(B, T, H, D), "w": gate(B, T, H, D),
                "u": normal(H, D, dtype=torch.float32)}  # fmt: skip

    def rwkv7_inputs() -> dict[str, Any]:
        a = unit(B, T, H, D)
        return {"r": normal(B, T, H, D), "w": gate(B, T, H, D), "k": normal(B, T, H, D), "v": normal(B, T, H, D),
                "a": a, "b": -(a * 0.5)}  # fmt: skip

    def rwkv7(r, w, k, v, a, b):
        from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

        found = head_first(dplr_recurrence)(q=r, k=k, v=v, alpha=a, beta=b, gk=w)
        return found * D**0.5  # RWKV-7 does not scale

    lightning = {"layer_idx": 1, "num_layers": 4}
    return [
        Case("chunk_gsa", gsa_inputs, first(ops.chunk_gsa), first(naive_recurrent_gsa)),
        Case("fused_recurrent_gsa", gsa_inputs, first(ops.fused_recurrent_gsa), first(naive_recurrent_gsa)),
        Case("chunk_mesa_net", mesa_inputs, first(ops.chunk_mesa_net), first(naive_mesa_net_exact), tolerance=0.02),
        Case("chunk_log_linear_attn", log_linear_inputs, first(ops.chunk_log_linear_attn),
             first(naive_log_linear_attn), False),
        Case("chunk_rwkv6", rwkv6_inputs, first(ops.chunk_rwkv6), rwkv6),
        Case("fused_recurrent_rwkv6", rwkv6_inputs, first(ops.fused_recurrent_rwkv6), rwkv6),
        Case("chunk_rwkv7", rwkv7_inputs, first(ops.chunk_rwkv7), rwkv7),
        Case("fused_recurrent_rwkv7", rwkv7_inputs, first(ops.fused_recurrent_rwkv7, scale=1.0), rwkv7, False),
        Case("chunk_lightning_attn", qkv, first(ops.chunk_lightning_attn, **lightning), lightning_attn),
        Case("fused_recurrent_lightning_attn", qkv, first(ops.fused_recurrent_lightning_attn, **lightning),
             lightning_attn),
        Case("chunk_abc", lambda: {**qkv(), "s": normal(B, T, H, 32)}, first(ops.chunk_abc),
             head_first(naive_recurrent_abc), tolerance=0.02),
    ]  # fmt: skip


def rwkv6(r, k, v, w, u):
    """o_t = r_t (S_{t-1} + diag(u) k_t v_t), S_t = diag(exp w_t) S_{t-1} + k_t v_t, scaled by D**-0.5."""
    r, k, v, w = (x.transpose(1, 2).float() for x in (r, k, v, w))
    state = torch.zeros(*r.shape[:2], r.shape[-1], v.shape[-1])
    outputs = []
    for t in range(r.shape[2]):
        kv = k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(((state + u[None, :, :, None] * kv) * r[:, :, t, :, None]).sum(-2))
        state = state * w[:, :, t].exp()[..., None] + kv
    return torch.stack(outputs, 1) * r.shape[-1] ** -0.5


def lightning_attn(q, k, v):
    """Linear attention whose decay depends on the head and the layer only (layer 1 of 4)."""
    heads = q.shape[2]
    slope = -(8 / heads * (1 - 1 / 4)) * torch.arange(heads, dtype=torch.float32)
    time = torch.arange(q.shape[1], dtype=torch.float32)
    distance = time[:, None] - time[None, :]
    decay = torch.where(distance >= 0, (slope[:, None, None] * distance).exp(), torch.zeros(()))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5 * decay
    return torch.einsum("bhts,bshd->bthd", scores, v)


def module_cases() -> list[Case]:
    """The building blocks in fla.modules and fla.ops.utils."""
    from fla.modules.activations import logsigmoid, sigmoid, sqrelu, swiglu, swish
    from fla.modules.causal_conv1d import causal_conv1d
    from fla.modules.norm.fused_norm_gate import rms_norm_gated
    from fla.modules.norm.l2norm import l2norm
    from fla.modules.norm.layernorm import group_norm, layer_norm, rms_norm
    from fla.ops.utils import chunk_global_cumsum, chunk_local_cumsum, mean_pooling, softmax_bwd, softmax_fwd

    def x_inputs() -> dict[str, Any]:
        return {"x": normal(B, T, 192)}

    def norm_inputs() -> dict[str, Any]:
        return {"x": normal(B, T, 192), "weight": torch.randn(192), "bias": torch.randn(192)}

    def conv_inputs() -> dict[str, Any]:
        return {"x": normal(B, T, 192), "weight": normal(192, 4)}

    def conv_reference(x, weight):
        padded = F.pad(x.transpose(1, 2), (3, 0))
        return F.silu(F.conv1d(padded, weight[:, None], groups=192)).transpose(1, 2)

    def softmax_grad(x, y):
        p = softmax_fwd(x.detach())
        return p, softmax_bwd(p, y.detach())

    def softmax_grad_reference(x, y):
        p = x.softmax(-1)
        return p, p * (y - (p * y).sum(-1, keepdim=True))

    def local_cumsum(x):
        return chunk_local_cumsum(x, 64)

    def local_cumsum_reference(x):
        return torch.cat([part.cumsum(1) for part in x.split(64, 1)], 1)

    def pooled(x):
        return torch.stack([part.mean(1) for part in x.split(64, 1)], 1)

    return [
        Case("layer_norm", norm_inputs, layer_norm, lambda x, weight, bias: F.layer_norm(x, (192,), weight, bias)),
        Case("rms_norm", norm_inputs, rms_norm, lambda x, weight, bias: F.rms_norm(x, (192,), weight, 1e-5) + bias),
        Case("group_norm", norm_inputs, first(group_norm, num_groups=4),
             lambda x, weight, bias: F.layer_norm(x.unflatten(-1, (4, 48)), (48,)).flatten(-2) * weight + bias),
        Case("l2norm", x_inputs, l2norm, lambda x: x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()),
        Case("rms_norm_gated", lambda: {**norm_inputs(), "g": normal(B, T, 192)}, rms_norm_gated,
             lambda x, weight, bias, g: (F.rms_norm(x, (192,), weight, 1e-5) + bias) * F.silu(g)),
        Case("causal_conv1d", conv_inputs, first(causal_conv1d, activation="silu"), conv_reference),
        Case("swish", x_inputs, lambda x: swish(x), lambda x: F.silu(x)),
        Case("sigmoid", x_inputs, lambda x: sigmoid(x), lambda x: x.sigmoid()),
        Case("logsigmoid", x_inputs, logsigmoid, lambda x: F.logsigmoid(x)),
        Case("sqrelu", x_inputs, lambda x: sqrelu(x), lambda x: F.relu(x).square()),
        Case("swiglu", lambda: {"x": normal(B, T, 192), "y": normal(B, T, 192)},
             lambda x, y: swiglu(x, y), lambda x, y: F.silu(x) * y),
        Case("softmax", lambda: {"x": normal(B, T, 192), "y": normal(B, T, 192)}, softmax_grad, softmax_grad_reference,
             False),
        Case("chunk_local_cumsum", lambda: {"x": gate(B, T, H)}, local_cumsum, local_cumsum_reference, False),
        Case("chunk_global_cumsum", lambda: {"x": gate(B, T, H, D)}, lambda x: chunk_global_cumsum(x),
             lambda x: x.cumsum(1), False),
        Case("mean_pooling", lambda: {"x": normal(B, T, H, D)}, lambda x: mean_pooling(x, 64), pooled),
    ]  # fmt: skip
