"""Cases of tools/published_kernels.py: the operators of liger-kernel and plain PyTorch that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from published_cases import Case, first, normal

ROWS, WIDTH, WORDS = 70, 200, 1000


def apply(function: Any, *fixed: Any) -> Callable[..., Any]:
    """A torch.autograd.Function as a function of its tensors, with the other arguments fixed."""

    def call(**inputs: Any) -> Any:
        return function.apply(*inputs.values(), *fixed)

    return call


def rows(*names: str) -> Callable[[], dict[str, Any]]:
    """Inputs of one shape by these names."""
    return lambda: {name: normal(ROWS, WIDTH) for name in names}


def rms(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


def make_cases() -> list[Case]:
    """All cases. Imports the package."""
    import liger_kernel.ops as ops

    return [*pointwise_cases(ops), *norm_cases(ops), *rotary_cases(ops), *loss_cases(ops), *other_cases(ops)]


def pointwise_cases(ops: Any) -> list[Case]:
    def dyt_inputs() -> dict[str, Any]:
        return {"x": normal(ROWS, WIDTH), "alpha": torch.full((1,), 0.7), "gamma": torch.randn(WIDTH),
                "beta": torch.randn(WIDTH)}  # fmt: skip

    return [
        Case("swiglu", rows("a", "b"), apply(ops.LigerSiLUMulFunction), lambda a, b: F.silu(a) * b),
        Case("geglu", rows("a", "b"), apply(ops.LigerGELUMulFunction), lambda a, b: F.gelu(a, approximate="tanh") * b),
        Case("relu_squared", rows("x"), apply(ops.LigerReLUSquaredFunction), lambda x: F.relu(x).square()),
        Case("softmax", rows("x"), apply(ops.LigerSoftmaxFunction), lambda x: x.softmax(-1)),
        Case("softmax wide", lambda: {"x": normal(3, 40_000)}, apply(ops.LigerSoftmaxFunction),
             lambda x: x.softmax(-1)),
        Case("sparsemax", lambda: {"x": torch.randn(ROWS, WIDTH)}, apply(ops.LigerSparsemaxFunction, -1), sparsemax),
        Case("dyt", dyt_inputs, apply(ops.LigerDyTFunction),
             lambda x, alpha, gamma, beta: (alpha * x).tanh() * gamma + beta),
    ]  # fmt: skip


def sparsemax(x: Any) -> Any:
    """Martins and Astudillo, "From Softmax to Sparsemax", 2016, algorithm 1."""
    ordered, _ = x.sort(-1, descending=True)
    sums = ordered.cumsum(-1)
    count = torch.arange(1, x.shape[-1] + 1)
    support = (1 + count * ordered > sums).sum(-1, keepdim=True)
    threshold = (sums.gather(-1, support - 1) - 1) / support
    return (x - threshold).clamp(min=0)


def norm_cases(ops: Any) -> list[Case]:
    eps = 1e-6

    def affine() -> dict[str, Any]:
        return {"x": normal(ROWS, WIDTH), "weight": torch.randn(WIDTH), "bias": torch.randn(WIDTH)}

    def scaled() -> dict[str, Any]:
        return {"x": normal(ROWS, WIDTH), "weight": torch.randn(WIDTH)}

    def modulated() -> dict[str, Any]:
        return {"x": normal(2, 35, WIDTH, dtype=torch.float32), "weight": torch.randn(WIDTH),
                "scale": torch.randn(2, 1, WIDTH), "shift": torch.randn(2, 1, WIDTH)}  # fmt: skip

    def added() -> dict[str, Any]:
        return {"x": normal(ROWS, WIDTH), "residual": normal(ROWS, WIDTH), "weight": torch.randn(WIDTH)}

    def groups() -> dict[str, Any]:
        return {"x": normal(3, 12, 50, dtype=torch.float32), "weight": torch.randn(12), "bias": torch.randn(12)}

    def polynomial() -> dict[str, Any]:
        return {"x": normal(ROWS, WIDTH), "weight": torch.randn(3), "bias": torch.randn(())}

    def add_rms(x: Any, residual: Any, weight: Any) -> Any:
        total = x + residual
        return rms(total, weight), total

    def polynomial_norm(x: Any, weight: Any, bias: Any) -> Any:
        return sum(weight[2 - i] * rms(x ** (i + 1), None) for i in range(3)) + bias

    return [
        Case("layer_norm", affine, apply(ops.LigerLayerNormFunction, eps),
             lambda x, weight, bias: F.layer_norm(x, (WIDTH,), weight, bias, eps)),
        Case("rms_norm", scaled, apply(ops.LigerRMSNormFunction, eps, 0.0, "llama", False), rms),
        Case("rms_norm gemma", scaled, apply(ops.LigerRMSNormFunction, eps, 1.0, "gemma", False),
             lambda x, weight: rms(x, weight + 1)),
        Case("fused_add_rms_norm", added, apply(ops.LigerFusedAddRMSNormFunction, eps, 0.0, "llama", False), add_rms),
        Case("modulated_rms_norm", modulated, apply(ops.LigerModulatedRMSNormFunction, eps, 0.0, "llama", False),
             lambda x, weight, scale, shift: rms(x, weight) * (1 + scale) + shift),
        Case("group_norm", groups, apply(ops.LigerGroupNormFunction, 12, 4, eps),
             lambda x, weight, bias: F.group_norm(x, 4, weight, bias, eps)),
        Case("poly_norm", polynomial, apply(ops.LigerPolyNormFunction, eps, False), polynomial_norm),
    ]  # fmt: skip


def rotary_cases(ops: Any) -> list[Case]:
    time, heads, size = 37, 4, 32

    def angles(*shape: int) -> tuple[Any, Any]:
        half = torch.rand(*shape, size // 2) * 6
        both = torch.cat([half, half], -1)
        return both.cos(), both.sin()

    def queries(**more: Any) -> dict[str, Any]:
        return {"q": torch.randn(2, heads, time, size), "k": torch.randn(2, 2, time, size),
                **more}  # fmt: skip

    def rope_inputs() -> dict[str, Any]:
        cos, sin = angles(1, time)
        return {**queries(), "cos": cos, "sin": sin}

    def mrope_inputs() -> dict[str, Any]:
        cos, sin = angles(3, 2, time)
        return {**queries(), "cos": cos, "sin": sin}

    def llama4_inputs() -> dict[str, Any]:
        return {"q": torch.randn(2, time, heads, size), "k": torch.randn(2, time, 2, size),
                "angles": torch.rand(time, size // 2) * 6}  # fmt: skip

    def detached(function: Any, *fixed: Any) -> Callable[..., Any]:
        return lambda q, k, cos, sin: function.apply(q, k, cos.detach(), sin.detach(), *fixed)

    def rope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        cos, sin = cos.detach()[:, None], sin.detach()[:, None]
        return rotate(q, cos, sin), rotate(k, cos, sin)

    sections = [4, 6, 6]

    def mrope(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        def choose(table: Any) -> Any:
            parts = table.detach().split(sections * 2, -1)
            return torch.cat([part[i % 3] for i, part in enumerate(parts)], -1)[:, None]

        return rotate(q, choose(cos), choose(sin)), rotate(k, choose(cos), choose(sin))

    def llama4(q: Any, k: Any, angles: Any) -> Any:
        return ops.LigerLlama4RopeFunction.apply(q, k, torch.polar(torch.ones_like(angles), angles.detach()))

    def llama4_reference(q: Any, k: Any, angles: Any) -> Any:
        turn = torch.polar(torch.ones_like(angles), angles.detach())[None, :, None]
        return tuple(
            torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2) for x in (q, k)
        )

    return [
        Case("rope", rope_inputs, detached(ops.LigerRopeFunction), rope),
        Case("qwen2vl_mrope", mrope_inputs, detached(ops.LigerQwen2VLMRopeFunction, sections), mrope),
        Case("llama4_rope", llama4_inputs, llama4, llama4_reference),
    ]


def loss_cases(ops: Any) -> list[Case]:
    def logits() -> dict[str, Any]:
        target = torch.randint(0, WORDS, (ROWS,))
        target[::7] = -100
        return {"x": normal(ROWS, WORDS), "target": target}

    def linear() -> dict[str, Any]:
        return {"x": normal(ROWS, WIDTH), "weight": normal(WORDS, WIDTH, scale=0.1), "target": logits()["target"]}

    def distributions() -> dict[str, Any]:
        return {"x": torch.randn(ROWS, WORDS).log_softmax(-1), "y": torch.randn(ROWS, WORDS).softmax(-1)}

    def log_distributions() -> dict[str, Any]:
        return {"x": torch.randn(ROWS, WORDS).log_softmax(-1), "y": torch.randn(ROWS, WORDS).log_softmax(-1)}

    def two_distributions() -> dict[str, Any]:
        return {"x": torch.randn(ROWS, WORDS).softmax(-1), "y": torch.randn(ROWS, WORDS).softmax(-1)}

    def students() -> dict[str, Any]:
        return {"x": normal(ROWS, WIDTH), "weight": normal(WORDS, WIDTH, scale=0.1), "y": normal(ROWS, WIDTH),
                "other": normal(WORDS, WIDTH, scale=0.1)}  # fmt: skip

    def tvd_inputs() -> dict[str, Any]:
        return {"x": normal(ROWS, WORDS), "y": normal(ROWS, WORDS), "target": logits()["target"]}

    def jsd(x: Any, y: Any) -> Any:
        p, q = x.exp(), y.detach().exp()
        mean = 0.5 * (p + q)
        return 0.5 * (p * (x - mean.log()) + q * (y.detach() - mean.log())).sum() / ROWS

    def linear_jsd(x: Any, weight: Any, y: Any, other: Any) -> Any:
        student, teacher = F.linear(x, weight).log_softmax(-1), F.linear(y, other).detach().log_softmax(-1)
        return jsd(student, teacher)

    def ce_tvd(x: Any, y: Any, target: Any) -> Any:
        valid = target != -100
        loss = F.cross_entropy(x, target, reduction="none")
        distance = 0.5 * (x.softmax(-1) - y.detach().softmax(-1)).abs().sum(-1) * valid
        return loss, distance

    def cross_entropy(**inputs: Any) -> Any:
        return ops.LigerCrossEntropyFunction.apply(inputs["x"], inputs["target"], None, -100, 1e-4, 0.1, "mean", 30.0)[
            0
        ]

    def cross_entropy_reference(x: Any, target: Any) -> Any:
        x = 30.0 * torch.tanh(x / 30.0)
        valid = target != -100
        z = 1e-4 * (x.logsumexp(-1).square() * valid).sum() / valid.sum()
        return F.cross_entropy(x, target, label_smoothing=0.1) + z

    def linear_ce(x: Any, weight: Any, target: Any) -> Any:
        return ops.LigerFusedLinearCrossEntropyFunction.apply(x, weight, target)[0]

    return [
        Case("cross_entropy", logits, cross_entropy, cross_entropy_reference),
        Case("fused_linear_cross_entropy", linear, linear_ce,
             lambda x, weight, target: F.cross_entropy(F.linear(x, weight), target), tolerance=0.02),
        Case("kl_div", distributions, lambda x, y: ops.LigerKLDivLossFunction.apply(x, y.detach(), "batchmean"),
             lambda x, y: F.kl_div(x, y.detach(), reduction="batchmean")),
        Case("jsd", log_distributions, lambda x, y: ops.LigerJSDFunction.apply(x, y.detach(), None, 0.5), jsd),
        Case("tvd", two_distributions, lambda x, y: ops.LigerTVDLossFunction.apply(x, y.detach(), None, "batchmean"),
             lambda x, y: 0.5 * (x - y.detach()).abs().sum() / ROWS),
        Case("fused_linear_jsd", students, lambda x, weight, y, other: ops.LigerFusedLinearJSDFunction.apply(
             x, weight, y.detach(), other.detach(), None, 0.5), linear_jsd, tolerance=0.02),
        Case("fused_ce_tvd", tvd_inputs,
             lambda x, y, target: ops.LigerFusedCETVDFunction.apply(x, y.detach(), target), ce_tvd, tolerance=0.02),
    ]  # fmt: skip


def other_cases(ops: Any) -> list[Case]:
    def residuals() -> dict[str, Any]:
        return {"x": normal(5, 2, 35, WIDTH), "query": normal(WIDTH, scale=0.1), "weight": normal(WIDTH)}

    def attention_residual(x: Any, query: Any, weight: Any) -> Any:
        scores = torch.einsum("nbtd,d->nbt", rms(x, weight), query)
        return torch.einsum("nbt,nbtd->btd", scores.softmax(0), x)

    def table() -> dict[str, Any]:
        return {"table": torch.randn(WORDS, WIDTH), "index": torch.randint(0, WORDS, (4, 30))}

    def scores() -> dict[str, Any]:
        return {"x": torch.randn(2, 4, 40, 40), "weight": torch.randn(4, 4, 3, 3) * 0.2, "bias": torch.randn(4)}

    def multi_token(x: Any, weight: Any, bias: Any) -> Any:
        hidden = torch.ones(40, 40, dtype=torch.bool).triu(1)
        mixed = F.conv2d(x.masked_fill(hidden, -1e9).softmax(-1), weight, bias, padding=1)
        return mixed.masked_fill(hidden, 0.0)

    def neighbours() -> dict[str, Any]:
        return {name: torch.randn(2, 2, 48, 32) for name in ("q", "k", "v")}

    def neighbourhood(q: Any, k: Any, v: Any) -> Any:
        place = torch.arange(48)
        far = (place[:, None] - place[None, :]).abs() > 3
        weights = (torch.einsum("bhtd,bhsd->bhts", q, k) * 32**-0.5).masked_fill(far, float("-inf")).softmax(-1)
        return torch.einsum("bhts,bhsd->bhtd", weights, v)

    def experts() -> dict[str, Any]:
        choice = torch.stack([torch.randperm(4)[:2] for _ in range(ROWS)])
        return {"x": normal(ROWS, 64), "up": normal(4, 2 * 96, 64, scale=0.1), "down": normal(4, 64, 96, scale=0.1),
                "index": choice.to(torch.int32), "weights": torch.rand(ROWS, 2)}  # fmt: skip

    def mixture(x: Any, up: Any, down: Any, index: Any, weights: Any) -> Any:
        total = torch.zeros_like(x)
        for slot in range(2):
            gate, value = torch.einsum("th,tih->ti", x, up[index[:, slot].long()]).chunk(2, -1)
            made = torch.einsum("ti,thi->th", F.silu(gate) * value, down[index[:, slot].long()])
            total = total + made * weights[:, slot, None]
        return total

    return [
        Case("attn_res", residuals, apply(ops.LigerAttnResFunction, 1e-6), attention_residual, tolerance=0.02),
        Case("embedding", table, apply(ops.LigerEmbeddingFunction), lambda table, index: F.embedding(index, table)),
        Case("multi_token_attention", scores, apply(ops.LigerMultiTokenAttentionFunction, 1, 1, 1, 1, False),
             multi_token, tolerance=0.02),
        Case("fused_neighborhood_attention", neighbours, apply(ops.LigerFusedNeighborhoodAttentionFunction, 7, 1),
             first(neighbourhood), tolerance=0.02),
        Case("fused_moe", experts, apply(ops.LigerFusedMoEFunction), mixture, tolerance=0.02),
    ]  # fmt: skip
