"""Hugging Face models on the virtual GPU against the CPU: forward, training, generate, saving and loading."""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from typing import Any

import torch
from nightly_checks import Checks, compare, gradients, move, on_gpu, train
from nightly_models import FAMILIES, WORDS, Family

CHECKS = Checks("transformers")
# Families whose checks are part of every change's tests.
LIGHT = ("bert", "llama")
COMPILED = ("gpt2", "llama")


def forward(family: Family, attention: str) -> str:
    here = family.make(attention)
    there = copy.deepcopy(here).cuda()
    inputs = family.inputs()
    with torch.no_grad():
        expected, found = here(**inputs), there(**move(inputs, "cuda"))
    assert on_gpu(found.logits)
    return f"{compare([found.loss, found.logits], [expected.loss, expected.logits], 1e-4, 'logits'):.0e}"


def training(family: Family) -> str:
    here = family.make("sdpa").train()
    there = copy.deepcopy(here).cuda()
    inputs = family.inputs()
    inputs_there = move(inputs, "cuda")
    expected = train(here, lambda: here(**inputs).loss)
    found = train(there, lambda: there(**inputs_there).loss)
    compare([torch.tensor(found)], [torch.tensor(expected)], 1e-4, "losses")
    assert found[-1] < found[0], found
    return f"{compare(there.parameters(), here.parameters(), 2e-3, 'parameters'):.0e}"


def half(family: Family, dtype: torch.dtype) -> str:
    """A model in half precision against the same one in float32; and a backward pass."""
    here = family.make("sdpa")
    there = copy.deepcopy(here).to("cuda", dtype)
    inputs = {
        name: value.to("cuda", dtype) if value.is_floating_point() else value.cuda()
        for name, value in family.inputs().items()
    }
    found = there(**inputs)
    assert found.logits.dtype is dtype
    found.loss.backward()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(there))
    expected = here(**family.inputs())
    return f"{compare([found.logits], [expected.logits], 0.03, 'logits'):.0e}"


def checkpointing(family: Family) -> str:
    """Gradients with activations computed again against gradients without."""
    plain = family.make("sdpa").train()
    there = copy.deepcopy(plain).cuda()
    there.gradient_checkpointing_enable()
    assert there.is_gradient_checkpointing
    plain(**family.inputs()).loss.backward()
    there(**move(family.inputs(), "cuda")).loss.backward()
    return f"{compare(gradients(there), gradients(plain), 1e-3, 'gradients'):.0e}"


def saving(family: Family) -> str:
    """Saves a model of the GPU, loads it by device_map and dtype."""
    from transformers import AutoModel

    there = family.make("sdpa").cuda()
    inputs = move(family.inputs(), "cuda")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        there.save_pretrained(folder)
        expected = there(**inputs).logits
        for options in ({"device_map": "cuda"}, {"device_map": "auto"}, {"device_map": {"": 0}}):
            loaded = type(there).from_pretrained(folder, **options)
            assert on_gpu(loaded), options
            compare([loaded(**inputs).logits], [expected], 1e-5, str(options))
        loaded = type(there).from_pretrained(folder, device_map="cuda", dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in loaded.parameters()} <= {torch.bfloat16, torch.float32}
        compare(loaded.parameters(), there.parameters(), 5e-3, "parameters in bfloat16")
        base = AutoModel.from_pretrained(folder).to("cuda")
        assert on_gpu(base)
    return "cuda, auto, a map, bfloat16"


GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "static": {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
    "compiled": {"do_sample": False, "cache_implementation": "static"},
    "sampling": {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 0.7},
}


def generate(family: Family, attention: str, mode: str) -> str:
    here = family.make(attention)
    there = copy.deepcopy(here).cuda()
    assert family.prompt is not None
    prompt = family.prompt()
    options = {**GENERATIONS[mode], "max_new_tokens": 8, "min_new_tokens": 4}
    options_here = {**options, "disable_compile": True} if "cache_implementation" in options else options
    if mode != "sampling":
        expected, found = here.generate(**prompt, **options_here), there.generate(**move(prompt, "cuda"), **options)
        assert on_gpu(found)
        assert found.tolist() == expected.tolist(), (found.tolist(), expected.tolist())
        return f"{found.shape[1]} words"
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(there.generate(**move(prompt, "cuda"), **options).tolist())
    assert results[0] == results[1] != results[2]
    assert all(0 <= word < WORDS for row in results[0] for word in row)
    return "repeatable"


for _name, _family in FAMILIES.items():
    _light = _name in LIGHT
    for _attention in ("sdpa", "eager"):
        CHECKS.add(f"{_name} forward {_attention}", light=True)(partial(forward, _family, _attention))
    CHECKS.add(f"{_name} training", light=True)(partial(training, _family))
    CHECKS.add(f"{_name} float16", light=_light)(partial(half, _family, torch.float16))
    CHECKS.add(f"{_name} bfloat16", light=_light)(partial(half, _family, torch.bfloat16))
    CHECKS.add(f"{_name} checkpointing", light=_light)(partial(checkpointing, _family))
    CHECKS.add(f"{_name} saving", "accelerate", light=_light)(partial(saving, _family))
    for _mode in GENERATIONS if _family.prompt is not None else ():
        # Compilation takes seconds each time.
        if _mode == "compiled" and _name not in COMPILED:
            continue
        for _attention in ("sdpa",) if _mode == "compiled" else ("sdpa", "eager"):
            _few = _attention == "sdpa" and (_mode == "greedy" or (_light and _mode != "compiled"))
            CHECKS.add(f"{_name} generate {_mode} {_attention}", light=_few)(
                partial(generate, _family, _attention, _mode)
            )
