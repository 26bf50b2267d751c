"""PyTorch's own database of operators (OpInfo) on a virtual GPU: one operator and data type in, an Outcome out.

For each sample input the operator runs on the CPU and on the GPU and the two are compared: results and gradients, the
same with tensors that are not contiguous, the in-place form, the out= form (right shape, empty, other strides), whether
the result is a view, and the errors that the database asks for. tests/test_torch_operators.py runs a part of it,
tools/torch_sweep.py all. Operators in tests/torch_opinfo_exceptions.txt may fail, each for the reason given there.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

EXCEPTIONS = Path(__file__).with_name("torch_opinfo_exceptions.txt")
DTYPES = ("float32", "bfloat16", "float16", "int64", "bool", "complex64")
# "refused": samples of types that CUDA does not take by the database, and that are refused here too.
ASPECTS = ("forward", "backward", "strided", "inplace", "out", "errors", "refused")
DEVICE = "cuda"

# Relative and absolute error of results that were rounded to a type; gradients pass through more roundings.
_LOOSE = {torch.float16: 2e-2, torch.bfloat16: 6e-2}
_CLOSE = 1e-4
_NO_KERNEL = re.compile("not implemented for|Could not run 'aten::")

# Their results are whatever the memory held.
_UNINITIALISED = frozenset("""
    empty empty_like empty_permuted empty_strided new_empty new_empty_strided resize_ resize_as_
""".split())  # fmt: skip
# Their results are drawn: the two devices have generators of their own.
RANDOM = frozenset("""
    bernoulli multinomial normal rand_like randint randint_like randn randn_like uniform exponential cauchy geometric
    log_normal nn.functional.dropout nn.functional.dropout2d nn.functional.dropout3d nn.functional.alpha_dropout
    nn.functional.feature_alpha_dropout nn.functional.fractional_max_pool2d nn.functional.fractional_max_pool3d
    nn.functional.rrelu nn.functional.gumbel_softmax nn.functional.multi_head_attention_forward
    nn.functional.scaled_dot_product_attention svd_lowrank pca_lowrank
""".split())  # fmt: skip
# Their tensors of indices stay on the host, as PyTorch demands.
_HOST_INDICES = frozenset(("tensor_split",))


@dataclass
class Outcome:
    """What one operator did for one data type.

    passed: samples per aspect. failures: aspect -> the first error. refused: samples that the CPU itself refuses.
    """

    name: str
    dtype: str
    passed: Counter = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    refused: int = 0

    @property
    def key(self) -> str:
        return f"{self.name}:{self.dtype}"

    def keys(self) -> set[str]:
        """The names under which this outcome's failures may be listed."""
        return {self.name, self.key} | {f"{self.key}:{aspect}" for aspect in self.failures}

    def is_excused(self, exceptions: dict[str, str]) -> bool:
        """Whether every failure has a reason in the list."""
        if self.name in exceptions or self.key in exceptions:
            return True
        return all(f"{self.key}:{aspect}" in exceptions for aspect in self.failures)


def read_exceptions() -> dict[str, str]:
    """operator, operator:type or operator:type:aspect -> reason. Asserts that each has one."""
    found: dict[str, str] = {}
    for line in EXCEPTIONS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition(" ")
            assert reason.strip(), f"{EXCEPTIONS.name}: {name} has no reason"
            assert name not in found, f"{EXCEPTIONS.name}: {name} stands there twice"
            found[name] = reason.strip()
    return found


def operators() -> list[Any]:
    """The database."""
    from torch.testing._internal.common_methods_invocations import op_db

    allow_switches()
    return list(op_db)


def allow_switches() -> None:
    """Undoes what the database's import does: PyTorch refuses then to set switches of torch.backends."""
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True


def name_of(op: Any) -> str:
    return op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")


def dtypes_of(op: Any, among: tuple[str, ...] = DTYPES) -> list[str]:
    """Those of the types that the CPU supports for an operator."""
    supported = op.supported_dtypes("cpu")
    return [text for text in among if getattr(torch, text) in supported]


# ---------------------------------------------------------------- samples
def seed_everything() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


def move(value: Any, device: str) -> Any:
    """A copy of a sample's value on a device; tensors keep requires_grad."""
    if isinstance(value, torch.Tensor):
        moved = value.detach().to(device)
        if not moved.is_nested and moved.layout is torch.strided and value.device.type == device:
            moved = moved.clone()
        return moved.requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(move(entry, device) for entry in value)
    if isinstance(value, dict):
        return {key: move(entry, device) for key, entry in value.items()}
    if isinstance(value, torch.device) or value == "cpu":
        return torch.device(device)
    return value


def spread(value: Any) -> Any:
    """The same values in tensors that are not contiguous; as `value` lies on its device."""
    from torch.testing._internal.common_utils import noncontiguous_like

    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested or not value.numel():
            return value
        return noncontiguous_like(value.detach()).requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(spread(entry) for entry in value)
    if isinstance(value, dict):
        return {key: spread(entry) for key, entry in value.items()}
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for entry in value for tensor in tensors_in(entry)]
    if isinstance(value, dict):
        return tensors_in(list(value.values()))
    return []


def compare(expected: Any, found: Any, dtype: torch.dtype, values: bool = True, views: bool = False) -> None:
    """Raises AssertionError where results differ by more than rounding, or lie on the wrong device."""
    wanted, got = tensors_in(expected), tensors_in(found)
    assert len(wanted) == len(got), f"{len(got)} results, expected {len(wanted)}"
    loose = _LOOSE.get(dtype, _CLOSE)
    for one, other in zip(wanted, got):
        assert other.device.type == DEVICE, f"a result is on {other.device}"
        assert one.dtype == other.dtype, f"{other.dtype}, expected {one.dtype}"
        assert one.shape == other.shape, f"{tuple(other.shape)}, expected {tuple(one.shape)}"
        assert one.layout == other.layout, f"{other.layout}, expected {one.layout}"
        if views:
            assert one._is_view() == other._is_view(), f"view: {other._is_view()}, expected {one._is_view()}"
        if values:
            torch.testing.assert_close(
                other.detach().cpu(), one.detach(), rtol=loose, atol=loose, equal_nan=True, check_stride=False
            )
    plain = (bool, int, float, complex)
    if not wanted and isinstance(expected, plain) and values:
        assert type(expected) is type(found), f"{type(found)}, expected {type(expected)}"
        assert found == expected or found != found or abs(found - expected) < loose * max(1, abs(expected))


# ---------------------------------------------------------------- one sample
def _move_sample(op: Any, sample: Any, device: str) -> list[Any]:
    """[input, args, kwargs] on a device."""
    others = "cpu" if op.name in _HOST_INDICES else device
    return [move(sample.input, device), move(sample.args, others), move(sample.kwargs, others)]


def _run(op: Any, sample: Any, device: str, backward: bool, strided: bool) -> tuple[Any, list[Any]]:
    """(output, gradients of the inputs) of one sample on a device."""
    torch.manual_seed(0)
    moved = _move_sample(op, sample, device)
    if strided:
        moved = [spread(value) for value in moved]
    output = op(moved[0], *moved[1], **moved[2])
    if not backward:
        return output, []
    process = sample.output_process_fn_grad
    inputs = [tensor for tensor in tensors_in(moved) if tensor.requires_grad and tensor.is_leaf]
    results = [tensor for tensor in tensors_in(output if process is None else process(output)) if tensor.requires_grad]
    if not inputs or not results:
        return output, []
    torch.manual_seed(1)
    weights = [torch.randn(result.shape, dtype=torch.float64).to(result.dtype).to(device) for result in results]
    gradients = torch.autograd.grad(results, inputs, weights, allow_unused=True)
    return output, [gradient for gradient in gradients if gradient is not None]


def _run_in_place(op: Any, sample: Any, device: str) -> Any:
    torch.manual_seed(0)
    given, args, kwargs = _move_sample(op, sample, device)
    with torch.no_grad():
        result = op.inplace_variant(given, *args, **kwargs)
        assert result is given, "the in-place form returns another tensor"
    return result


def _out_arguments(expected: Any, device: str, form: str) -> Any:
    """out= arguments for a result: of its shape ("full"), without elements ("empty"), or with other strides."""
    if isinstance(expected, torch.Tensor):
        if form == "empty":
            return torch.empty(0, dtype=expected.dtype, device=device)
        if form == "full":
            return torch.zeros(expected.shape, dtype=expected.dtype, device=device)
        return torch.zeros(expected.shape[::-1], dtype=expected.dtype, device=device).permute(
            *range(expected.dim() - 1, -1, -1)
        )
    return tuple(_out_arguments(entry, device, form) for entry in expected)


def _run_out(op: Any, sample: Any, device: str, expected: Any, form: str) -> Any:
    torch.manual_seed(0)
    given, args, kwargs = _move_sample(op, sample, device)
    out = _out_arguments(expected, device, form)
    before = [(tensor.data_ptr(), tensor.stride()) for tensor in tensors_in(out)]
    with torch.no_grad():
        op(given, *args, **kwargs, out=out)
    after = [(tensor.data_ptr(), tensor.stride()) for tensor in tensors_in(out)]
    assert form == "empty" or before == after, f"out= tensors have moved: {after}, before {before}"
    return out


def _attempt(work: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
    """(whether it went well, result): for the CPU, which decides what is asked of the GPU."""
    try:
        return True, work(*args)
    except Exception:
        return False, None


class Checker:
    """Checks one operator for one data type, with `samples` samples at most (None: all)."""

    def __init__(self, op: Any, dtype: str, samples: int | None, aspects: tuple[str, ...] = ASPECTS):
        self.op, self.dtype, self.samples, self.aspects = op, getattr(torch, dtype), samples, aspects
        self.outcome = Outcome(name_of(op), dtype)
        self.values = op.name not in _UNINITIALISED and op.name not in RANDOM
        self.on_cuda = self.dtype in op.supported_dtypes(DEVICE)
        self.backward = op.supports_autograd and self.dtype in op.supported_backward_dtypes("cpu")

    def run(self) -> Outcome:
        for sample in self._samples():
            self._check_results(sample, "forward")
            if "strided" in self.aspects:
                self._check_results(sample, "strided")
            if "inplace" in self.aspects and self.op.inplace_variant and not sample.broadcasts_input:
                self._check_in_place(sample)
            if "out" in self.aspects and self.op.supports_out:
                self._check_out(sample)
        return self.outcome

    def run_errors(self) -> Outcome:
        """Checks the errors that the database asks for; they do not depend on the type."""
        if self.op.error_inputs_func is None:
            return self.outcome
        seed_everything()
        for entry in self.op.error_inputs(DEVICE):
            sample = entry.sample_input
            text = f"no error, expected {entry.error_type.__name__}: {entry.error_regex!r}"
            try:
                self.op(sample.input, *sample.args, **sample.kwargs)
            except Exception as error:
                text = f"{type(error).__name__}: {str(error)[:160]!r}, expected {entry.error_regex!r}"
                if isinstance(error, entry.error_type) and re.search(entry.error_regex, str(error)):
                    self.outcome.passed["errors"] += 1
                    continue
            if entry.error_regex == "":
                continue  # asked of Python's references alone
            self.outcome.failures.setdefault("errors", text)
        return self.outcome

    def _samples(self) -> Iterator[Any]:
        seed_everything()
        found = self.op.sample_inputs("cpu", self.dtype, requires_grad=self.backward)
        return itertools.islice(found, self.samples)

    def _watching(self, aspect: str) -> _Watch:
        return _Watch(self.outcome, aspect)

    def _check_results(self, sample: Any, aspect: str) -> None:
        strided = aspect == "strided"
        gradients = self.backward and (strided or "backward" in self.aspects)
        fine, results = _attempt(_run, self.op, sample, "cpu", gradients, strided)
        if not fine and gradients:
            gradients = False
            fine, results = _attempt(_run, self.op, sample, "cpu", False, strided)
        if not fine:
            self.outcome.refused += 1
            return  # what the CPU cannot do is not asked of the GPU
        expected, wanted = results
        with self._watching(aspect):
            try:
                found, got = _run(self.op, sample, DEVICE, gradients, strided)
            except NotImplementedError as error:
                if self.on_cuda or not _NO_KERNEL.search(str(error)):
                    raise
                self.outcome.passed["refused"] += 1  # as the database says of CUDA
                return
            compare(expected, found, self.dtype, self.values, views=True)
            self.outcome.passed[aspect] += 1
            if wanted or got:
                with self._watching(aspect if strided else "backward"):
                    compare(wanted, got, self.dtype, self.values)
                    self.outcome.passed["backward"] += not strided

    def _check_in_place(self, sample: Any) -> None:
        fine, expected = _attempt(_run_in_place, self.op, sample, "cpu")
        if fine and self.on_cuda:
            with self._watching("inplace"):
                compare(expected, _run_in_place(self.op, sample, DEVICE), self.dtype, self.values)
                self.outcome.passed["inplace"] += 1

    def _check_out(self, sample: Any) -> None:
        fine, results = _attempt(_run, self.op, sample, "cpu", False, False)
        if not fine or not self.on_cuda or not tensors_in(results[0]):
            return
        for form in ("full", "empty", "strided"):
            fine, expected = _attempt(_run_out, self.op, sample, "cpu", results[0], form)
            if fine:
                with self._watching("out"):
                    found = _run_out(self.op, sample, DEVICE, results[0], form)
                    compare(expected, found, self.dtype, self.values)
                    self.outcome.passed["out"] += 1


class _Watch:
    """Turns the errors of a block into a failure of an aspect."""

    def __init__(self, outcome: Outcome, aspect: str):
        self.outcome, self.aspect = outcome, aspect

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        text = " ".join(str(error).split())
        self.outcome.failures.setdefault(self.aspect, f"{kind.__name__}: {text[:400]}")
        return True


def check_operator(op: Any, dtype: str, samples: int | None = None, aspects: tuple[str, ...] = ASPECTS) -> Outcome:
    """Runs an operator's samples for a type, and for its first type the errors that it must raise."""
    checker = Checker(op, dtype, samples, aspects)
    checker.run()
    if "errors" in aspects and dtypes_of(op)[0] == dtype:
        checker.run_errors()
    return checker.outcome
