"""Shapes of a dry run over PyTorch's operator database, against what the CPU computes: `python torch_dry_sweep.py`.

Inputs are float32 and int64, all their values unknown. Prints JSON: how many samples agree in shape, type and stride;
operators that a dry run refused by DryRunError; and the others that do not agree, with the first reason.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map

import weft

SAMPLES = 1


def move(value: object) -> object:
    from weft.frontends.torch.dry import forget_values

    if isinstance(value, torch.device) or value == "cpu" and isinstance(value, str):
        return torch.device("cuda")
    if not isinstance(value, torch.Tensor):
        return value
    moved = value.detach().cuda()
    if moved.layout is torch.strided:
        forget_values(moved)
    return moved


def describe(value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    strides = tuple(value.stride()) if value.layout is torch.strided else None
    return tuple(value.shape), str(value.dtype), strides


def main() -> None:
    weft.install("h100", dry=True)
    warnings.simplefilter("ignore")
    agree = 0
    refused: Counter[str] = Counter()
    differ: dict[str, str] = {}
    for info in op_db:
        for dtype in (torch.float32, torch.int64):
            if dtype not in info.dtypes:
                continue
            for _, sample in zip(range(SAMPLES), info.sample_inputs("cpu", dtype, requires_grad=False)):
                try:
                    expected = info.op(sample.input, *sample.args, **sample.kwargs)
                except Exception:
                    continue  # samples that the CPU itself refuses
                try:
                    first, args, kwargs = tree_map(move, (sample.input, list(sample.args), dict(sample.kwargs)))
                    found = info.op(first, *args, **kwargs)
                except weft.errors.DryRunError:
                    refused[info.name] += 1
                    continue
                except Exception as error:
                    differ.setdefault(info.name, f"{type(error).__name__}: {str(error)[:200]}")
                    continue
                pair = [[describe(leaf) for leaf in tree_leaves(result)] for result in (expected, found)]
                if pair[0] == pair[1]:
                    agree += 1
                else:
                    differ.setdefault(info.name, f"expected {pair[0]}, found {pair[1]}"[:300])
    print(json.dumps({"agree": agree, "refused": sorted(refused), "differ": differ}))


if __name__ == "__main__":
    main()
