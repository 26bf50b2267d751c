"""Fused optimisers and foreach operators: one kernel goes over many tensors.

A kernel of multi_tensor_apply takes at most 320 chunks of 65,536 elements and, by how many lists it goes over, at most
110, 64, 48, 36 or 30 tensors (ATen/native/cuda/MultiTensorApply.cuh of PyTorch).
"""

from __future__ import annotations

from weft.model.families.shapes import total_bytes, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call

CHUNK = 65536
CHUNKS_PER_KERNEL = 320
TENSORS_PER_KERNEL = (110, 64, 48, 36, 30)


def launches(sizes: list[int], lists: int) -> int:
    """Kernels that multi_tensor_apply launches for tensors of these element counts in each of so many lists."""
    most = TENSORS_PER_KERNEL[min(max(lists, 1), 5) - 1]
    chunks = sum(-(-size // CHUNK) for size in sizes)
    return max(1, -(-len(sizes) // most), -(-chunks // CHUNKS_PER_KERNEL))


def _lists(call: Call) -> list[tuple]:
    return [value for value in call.inputs if isinstance(value, tuple) and value and hasattr(value[0], "count")]


# Lists that are read and written, operations per element. Adam: parameters, gradients, both moments.
FUSED = {"_fused_adam": (3, 14.0), "_fused_adamw": (3, 14.0), "_fused_sgd": (2, 6.0), "_fused_adagrad": (2, 8.0)}


def _register_fused(name: str, written_lists: int, operations: float) -> None:
    @rule("optimiser", name)
    def price_fused(call: Call) -> Profile:
        """(params, grads, state lists ..., state_steps, ...): everything read, parameters and moments written"""
        lists = [part for part in _lists(call) if part[0].count > 1 or len(part[0].shape) > 0]
        sizes = [operand.count for operand in lists[0]]
        kernels = launches(sizes, len(lists))
        read = total_bytes(lists)
        written = total_bytes([lists[0], *lists[2 : 1 + written_lists]])
        flops = operations * sum(sizes)
        special = 2.0 * sum(sizes) if "adam" in name else 0.0
        arithmetic = (
            (("fp32", flops / kernels), ("sfu", special / kernels)) if special else (("fp32", flops / kernels),)
        )
        return Profile(name.strip("_"), "optimiser", arithmetic, read / kernels, written / kernels, kernels)


for _name, (_written, _operations) in FUSED.items():
    _register_fused(_name, _written, _operations)

FOREACH = """
abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min clone copy cos cosh div erf erfc exp expm1 floor frac
lerp lgamma log log10 log1p log2 max maximum minimum mul neg norm pow powsum reciprocal round rsqrt sigmoid sign sin
sinh sqrt sub tan tanh trunc zero
"""


@rule("optimiser", " ".join(f"_foreach_{name}" for name in FOREACH.split()))
def price_foreach(call: Call) -> Profile:
    """(list, list, ...): every list read, the result (the first list in place) written"""
    lists = _lists(call)
    sizes = [operand.count for operand in lists[0]]
    base = call.name.rpartition("::")[2].partition(".")[0]
    written = writes(call)
    if base.endswith("_"):
        written = total_bytes(lists[0])
    depth = len(lists) + (0 if base.endswith("_") else 1)
    kernels = launches(sizes, depth)
    read = total_bytes(lists[1:] if base.startswith(("_foreach_copy", "_foreach_zero")) else lists)
    if base.startswith(("_foreach_norm", "_foreach_max", "_foreach_powsum")):
        kernels += 1  # partial results are combined
    return Profile("foreach", "optimiser", (("fp32", 2.0 * sum(sizes) / kernels),), read / kernels, written / kernels,
                   kernels)  # fmt: skip
