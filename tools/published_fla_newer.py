"""Further cases of tools/published_kernels.py: the newer operators of fla-core."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from published_cases import B, Case, D, H, T, first, fraction, gate, normal, qkv, qkv_unit, unit


def newer_cases(ops: Any) -> list[Case]:
    """Delta rules with preconditioning and products; GDN-2; residual, wall and sparse attention."""
    return [*delta_rules(ops), *attention(ops)]


def delta_rules(ops: Any) -> list[Case]:
    from fla.ops.gated_delta_product import chunk_gated_delta_product
    from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
    from fla.ops.gdn2 import chunk_gdn2, fused_recurrent_gdn2, naive_recurrent_gdn2
    from fla.ops.precond_gated_delta_rule.naive import naive_recurrent_precond_gated_delta_rule
    from fla.ops.precond_kda.naive import naive_recurrent_precond_kda

    def preconditioned() -> dict[str, Any]:
        return {**qkv_unit(), "q": unit(B, T, H, D), "g_atk": gate(B, T, H), "g": gate(B, T, H),
                "beta_atk": fraction(B, T, H), "beta": fraction(B, T, H)}  # fmt: skip

    def preconditioned_kda() -> dict[str, Any]:
        return {**preconditioned(), "g": gate(B, T, H, D)}

    def gdn2() -> dict[str, Any]:
        return {**qkv_unit(), "g": gate(B, T, H, D), "b": fraction(B, T, H, D), "w": fraction(B, T, H, D)}

    def product() -> dict[str, Any]:
        return {"q": unit(B, T, H, D), "k": unit(B, 2 * T, H, D), "v": normal(B, 2 * T, H, D), "g": gate(B, T, H),
                "beta": fraction(B, 2 * T, H)}  # fmt: skip

    precond = normalised(naive_recurrent_precond_gated_delta_rule)
    precond_kda = normalised(naive_recurrent_precond_kda)
    gdn2_reference = first(naive_recurrent_gdn2)
    return [
        Case("chunk_precond_gated_delta_rule", preconditioned, first(ops.chunk_precond_gated_delta_rule),
             precond, tolerance=0.02),
        Case("fused_recurrent_precond_gated_delta_rule", preconditioned,
             first(ops.fused_recurrent_precond_gated_delta_rule), precond, False),
        Case("chunk_precond_kda", preconditioned_kda, first(ops.chunk_precond_kda), precond_kda, tolerance=0.02),
        Case("fused_recurrent_precond_kda", preconditioned_kda, first(ops.fused_recurrent_precond_kda),
             precond_kda, False),
        Case("chunk_gdn2", gdn2, first(chunk_gdn2), gdn2_reference),
        Case("fused_recurrent_gdn2", gdn2, first(fused_recurrent_gdn2), gdn2_reference, False),
        Case("chunk_gated_delta_product", product, first(chunk_gated_delta_product, num_householder=2),
             first(naive_recurrent_gated_delta_product, scale=D**-0.5, num_householder=2), tolerance=0.02),
    ]  # fmt: skip


def normalised(function: Any) -> Any:
    """The first result of a plain version, of queries and keys brought to length one, as the operators do."""

    def call(q, k, **inputs):
        return function(q=F.normalize(q, dim=-1), k=F.normalize(k, dim=-1), **inputs)[0]

    return call


def attention(ops: Any) -> list[Case]:
    from fla.ops.attnres.naive import naive_attnres
    from fla.ops.cyfa.naive import naive_recurrent_cyfa
    from fla.ops.utils.sinkhorn import naive_sinkhorn, sinkhorn

    def residuals() -> dict[str, Any]:
        return {"query": normal(192, scale=0.1), "residuals": [normal(B, T, 192) for _ in range(4)],
                "rms_weight": normal(192)}  # fmt: skip

    def wall() -> dict[str, Any]:
        return {**qkv(), "g": gate(B, T, H, D, scale=64)}

    def blocks() -> dict[str, Any]:
        time, size, count = 128, 32, 2
        chosen = torch.full((1, time, 1, count), time // size, dtype=torch.long)
        for t in range(time):
            there = torch.randperm(t // size + 1)[:count]
            chosen[0, t, 0, : len(there)] = there.sort()[0]
        return {"q": normal(1, time, 16, D), "k": normal(1, time, 1, D), "v": normal(1, time, 1, D),
                "g_slc": torch.rand(1, time, 16), "block_indices": chosen}  # fmt: skip

    def cyclic() -> dict[str, Any]:
        return {**qkv(), "g": gate(B, T, H), "delta": torch.randn(B, T, H) * 0.1, "beta": fraction(B, T, H),
                "readout": torch.randn(H, 15, 15) * 0.2, "q_norm_weight": torch.rand(D) + 0.5,
                "k_norm_weight": torch.rand(D) + 0.5}  # fmt: skip

    norms = {"q_norm_eps": 1e-6, "k_norm_eps": 1e-6}
    sparse = {"block_counts": 2, "block_size": 32, "window_size": 0}
    return [
        Case("fused_attnres", residuals, ops.fused_attnres, naive_attnres, tolerance=0.02),
        Case("parallel_wall_attn", wall, first(ops.parallel_wall_attn), wall_attention),
        Case("parallel_nsa", blocks, first(ops.parallel_nsa, **sparse), selected_attention),
        Case("chunk_cyfa", cyclic, first(ops.chunk_cyfa, **norms), first(naive_recurrent_cyfa, **norms),
             tolerance=0.02),
        Case("fused_recurrent_cyfa", cyclic, first(ops.fused_recurrent_cyfa, **norms),
             first(naive_recurrent_cyfa, **norms), False),
        Case("sinkhorn", lambda: {"logits": torch.randn(B, T, 5, 5)}, sinkhorn, naive_sinkhorn),
    ]  # fmt: skip


def selected_attention(q, k, v, g_slc, block_indices):
    """Attention of every query to the keys of its chosen blocks of 32 that are not later than itself, times a gate."""
    time = q.shape[1]
    place = torch.arange(time)
    chosen = (place[None, None, :, None] // 32 == block_indices[:, :, 0, None, :]).any(-1)
    seen = chosen & (place[None, None, :] <= place[None, :, None])
    scores = torch.einsum("bihd,bjd->bhij", q, k[:, :, 0]) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhij,bjd->bihd", weights, v[:, :, 0]) * g_slc[..., None]


def wall_attention(q, k, v, g):
    """Attention whose scores decay channel by channel: sum over n of q_in k_jn exp(G_in - G_jn), G the running sum."""
    total = g.cumsum(1)
    decay = (total[:, :, None] - total[:, None, :]).exp()
    scores = torch.einsum("bihn,bjhn,bijhn->bhij", q, k, decay) * q.shape[-1] ** -0.5
    hidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    return torch.einsum("bhij,bjhn->bihn", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)
