"""PyTorch's own database of operators (OpInfo), run on a virtual GPU and held against the CPU's results.

    weft run tests/torch_opinfo.py [--dtypes float32,bfloat16] [--ops PATTERN] [--samples 4] [--backward] [--json FILE]

Every sample input is computed on the CPU and on the GPU, in place and out of place, forward and (for types that have
gradients) backward. Operators listed in tests/torch_opinfo_exceptions.txt may fail, each for the reason given there;
one that is listed and passes is reported too.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import json
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

EXCEPTIONS = Path(__file__).with_name("torch_opinfo_exceptions.txt")


def read_exceptions() -> dict[str, str]:
    """operator (or operator:dtype) -> reason."""
    found = {}
    for line in EXCEPTIONS.read_text().splitlines() if EXCEPTIONS.exists() else ():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition(" ")
            assert reason.strip(), f"{EXCEPTIONS.name}: {name} has no reason"
            found[name] = reason.strip()
    return found


def to_device(value: Any, device: str) -> Any:
    """A copy of a sample's value on a device; tensors keep their strides' order, requires_grad and laziness."""
    import torch

    if isinstance(value, torch.Tensor):
        moved = value.detach().to(device)
        if not moved.is_nested and moved.layout is torch.strided and value.device.type == device:
            moved = moved.clone()
        return moved.requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(to_device(entry, device) for entry in value)
    if isinstance(value, dict):
        return {key: to_device(entry, device) for key, entry in value.items()}
    if isinstance(value, torch.device) or value == "cpu":
        return torch.device(device)
    return value


def tensors_in(value: Any) -> list[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for entry in value for tensor in tensors_in(entry)]
    if isinstance(value, dict):
        return tensors_in(list(value.values()))
    return []


def run_sample(op: Any, sample: Any, device: str, backward: bool) -> tuple[Any, list[Any]]:
    """(output, gradients of the inputs) of one sample on a device."""
    import torch

    torch.manual_seed(0)
    moved = [to_device(value, device) for value in (sample.input, sample.args, sample.kwargs)]
    output = op(moved[0], *moved[1], **moved[2])
    if sample.output_process_fn_grad is not None:
        processed = sample.output_process_fn_grad(output)
    else:
        processed = output
    if not backward:
        return output, []
    inputs = [tensor for tensor in tensors_in(moved) if tensor.requires_grad and tensor.is_leaf]
    results = [tensor for tensor in tensors_in(processed) if tensor.requires_grad]
    if not inputs or not results:
        return output, []
    torch.manual_seed(1)
    weights = [torch.randn(result.shape, dtype=torch.float64).to(result.dtype).to(device) for result in results]
    gradients = torch.autograd.grad(results, inputs, weights, allow_unused=True)
    return output, [gradient for gradient in gradients if gradient is not None]


def compare(name: str, expected: Any, found: Any, dtype: Any) -> None:
    """Raises AssertionError where results differ by more than rounding."""
    import torch

    wanted, got = tensors_in(expected), tensors_in(found)
    assert len(wanted) == len(got), f"{name}: {len(got)} results, expected {len(wanted)}"
    loose = {torch.float16: 2e-2, torch.bfloat16: 6e-2}.get(dtype, 1e-4)
    for one, other in zip(wanted, got):
        assert other.device.type == "cuda", f"{name}: a result is on {other.device}"
        assert one.dtype == other.dtype, f"{name}: {other.dtype}, expected {one.dtype}"
        torch.testing.assert_close(
            other.detach().cpu(), one.detach(), rtol=loose, atol=loose, equal_nan=True, check_stride=False
        )


def unpredictable(op: Any) -> bool:
    """Operators with random or uninitialised results: only shapes and types can be compared."""
    names = ("empty", "rand", "bernoulli", "multinomial", "normal", "dropout", "uniform", "exponential", "cauchy",
             "geometric", "log_normal", "fractional_max_pool", "rrelu", "svd_lowrank", "pca_lowrank", "poisson",
             "gumbel_softmax", "new_empty", "scaled_dot_product_attention_dropout")  # fmt: skip
    return any(name in op.name for name in names)


def sweep_operator(op: Any, dtype: Any, samples: int, backward: bool) -> tuple[int, int]:
    """(forward samples, backward samples) that passed. Raises at the first that fails."""
    import torch

    passed = [0, 0]
    generator = op.sample_inputs("cpu", dtype, requires_grad=backward)
    for number, sample in enumerate(generator):
        if number >= samples:
            break
        try:
            expected, wanted = run_sample(op, sample, "cpu", backward)
        except Exception:
            continue  # what the CPU cannot do is not asked of the GPU
        found, got = run_sample(op, sample, "cuda", backward)
        if unpredictable(op):
            shapes = [[(t.shape, t.dtype) for t in tensors_in(value)] for value in (expected, found)]
            assert shapes[0] == shapes[1], f"{shapes[1]}, expected {shapes[0]}"
        else:
            compare("forward", expected, found, dtype)
            compare("backward", wanted, got, dtype)
        passed[0] += 1
        passed[1] += bool(wanted)
    del torch
    return passed[0], passed[1]


def main() -> int:
    import numpy
    import torch

    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtypes", default="float32,bfloat16,float16,int64,bool,complex64")
    parser.add_argument("--ops", default="*")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    from torch.testing._internal.common_methods_invocations import op_db

    assert torch.cuda.is_available(), "run under `weft run`"
    exceptions = read_exceptions()
    part, parts = (int(number) for number in options.shard.split("/"))
    counts: collections.Counter = collections.Counter()
    failed: dict[str, str] = {}
    names = set()
    began = time.time()
    for place, op in enumerate(op_db):
        name = op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")
        if place % parts != part or not fnmatch.fnmatch(name, options.ops):
            continue
        for text in options.dtypes.split(","):
            dtype = getattr(torch, text)
            if dtype not in op.supported_dtypes("cpu"):
                continue
            backward = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
            random.seed(0)
            numpy.random.seed(0)
            torch.manual_seed(0)
            key = f"{name}:{text}"
            names.add(key)
            try:
                forwards, backwards = sweep_operator(op, dtype, options.samples, backward)
                counts["forward"] += forwards
                counts["backward"] += backwards
            except Exception as error:
                failed[key] = f"{type(error).__name__}: {str(error)[:300]}"
                if options.verbose:
                    print(key, failed[key].splitlines()[0], flush=True)
    surprising = {key: why for key, why in failed.items() if not {key, key.partition(":")[0]} & exceptions.keys()}
    total = len(names)
    print(
        f"{total} operators x types, {total - len(failed)} pass ({100 * (1 - len(failed) / max(total, 1)):.1f} %): "
        f"{counts['forward']} forward and {counts['backward']} backward samples; {len(failed)} fail, "
        f"{len(surprising)} of them without a reason; {time.time() - began:.0f} s"
    )
    for key, why in sorted(surprising.items()):
        print("FAIL", key, why.splitlines()[0] if why.splitlines() else "")
    if options.json:
        Path(options.json).write_text(json.dumps({"total": total, "failed": failed, "counts": counts}, indent=1))
    return 1 if surprising else 0


if __name__ == "__main__":
    sys.exit(main())
