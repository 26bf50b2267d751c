"""Published Triton packages on the virtual GPU: their operators against PyTorch, forward and backward.

    python tools/published_kernels.py [--gpu h100] [--arch sm_80] [--package fla] [--only TEXT] [--json FILE]

Installs nothing: `pip install --no-deps fla-core liger-kernel einops` brings the packages. Every operator runs with
inputs of its kind, in half precision where it is made for that; its outputs and the gradients of its inputs are held
against the package's own plain PyTorch version, or one written here, in float32. An operator agrees when the root mean
square of the difference is below its tolerance times that of the reference, the measure that the packages' own tests
use. Operators run one after the other in a child process, which is replaced when it dies or takes too long.

Each kernel's list of configurations to choose from is cut to its first (--configs N keeps N): the choice changes the
speed only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

PACKAGES = {"fla": "published_fla", "liger": "published_liger"}
SECONDS = 900.0  # for one operator, compilation included


def stand_in_for_cuda(torch: Any, device: Any) -> None:
    """Answers torch.cuda's questions about the device where PyTorch itself has no virtual GPU: the packages ask them at
    import even when their tensors are the CPU's."""
    limits = device.chip.capability
    properties = argparse.Namespace(
        name=device.name, major=limits.version[0], minor=limits.version[1],
        multi_processor_count=device.chip.sm_count, shared_memory_per_block=limits.shared_per_block,
        shared_memory_per_block_optin=limits.shared_per_block_optin, total_memory=device.chip.memory_bytes,
        max_threads_per_multi_processor=limits.threads_per_sm, warp_size=32,
    )  # fmt: skip
    answers: dict[str, Any] = {
        "get_device_capability": lambda *_: limits.version,
        "get_device_name": lambda *_: device.name,
        "get_device_properties": lambda *_: properties,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "device": lambda *_: contextlib.nullcontext(),
        "synchronize": lambda *_: None,
        "current_stream": lambda *_: argparse.Namespace(cuda_stream=0),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)


def keep_configurations(count: int) -> None:
    """Lets every autotuned kernel choose among its first `count` configurations only."""
    from triton.runtime import autotuner

    make = autotuner.Autotuner.__init__

    def __init__(self: Any, fn: Any, arg_names: Any, configs: Any, *rest: Any, **options: Any) -> None:
        make(self, fn, arg_names, configs[:count], *rest, **options)

    autotuner.Autotuner.__init__ = __init__


def prepare(options: argparse.Namespace) -> str:
    """Attaches Weft; returns the device of the tensors."""
    import weft

    device = weft.install(options.gpu, triton_arch=options.arch, children=False)
    import torch
    import triton  # noqa: F401 - attaches

    torch.manual_seed(0)
    keep_configurations(options.configs)
    if torch.cuda.is_available():
        return "cuda"
    stand_in_for_cuda(torch, device)
    return "cpu"


# ---------------------------------------------------------------- one operator
def error_ratio(found: Any, wanted: Any) -> float:
    """Root mean square of the difference over that of the reference."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    if found.shape != wanted.shape:
        return float("inf")
    if not bool(found.isfinite().all()) and bool(wanted.isfinite().all()):
        return float("nan")
    difference = (found - wanted).square().mean().sqrt()
    return float(difference / (wanted.square().mean().sqrt() + 1e-8))


def check_case(case: Any, device: str) -> dict[str, float]:
    """Runs a case: {name of an output or gradient: error ratio}."""
    import torch

    torch.manual_seed(1)
    inputs = case.make_inputs()
    found = run_side(case.operator, {k: _moved(v, device) for k, v in inputs.items()}, case.gradients)
    wanted = run_side(case.reference, inputs, case.gradients, torch.float32)
    assert found.keys() == wanted.keys(), (found.keys(), wanted.keys())
    return {name: error_ratio(found[name], wanted[name]) for name in wanted}


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(part, device) for part in value)
    return value.detach().to(device).clone() if hasattr(value, "detach") else value


def _leaf(value: Any, dtype: Any, gradients: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_leaf(part, dtype, gradients) for part in value)
    if not hasattr(value, "detach") or not value.is_floating_point():
        return value
    value = value.detach().clone() if dtype is None else value.detach().to(dtype).clone()
    return value.requires_grad_(gradients)


def _tensors(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, (list, tuple)):
        return [found for i, part in enumerate(value) for found in _tensors(part, f"{name}{i}")]
    return [(name, value)] if hasattr(value, "detach") else []


def run_side(function: Any, inputs: dict[str, Any], gradients: bool, dtype: Any = None) -> dict[str, Any]:
    """Outputs, and gradients of the floating inputs for one fixed random cotangent."""
    import torch

    leaves = {name: _leaf(value, dtype, gradients) for name, value in inputs.items()}
    outputs = _tensors(function(**leaves), "out")
    result = dict(outputs)
    if not gradients:
        return result
    generator = torch.Generator().manual_seed(7)
    loss = 0
    for _, output in outputs:
        if output.requires_grad:
            weight = torch.randn(output.shape, generator=generator).to(output.device)
            loss = loss + (output.float() * weight).sum()
    loss.backward()
    for name, value in leaves.items():
        for place, leaf in _tensors(value, f"d{name}"):
            if leaf.grad is not None:
                result[place] = leaf.grad
    return result


# ---------------------------------------------------------------- the child
def serve(options: argparse.Namespace, requests: Any, replies: Any) -> None:
    """Runs the operators whose names arrive, and sends back what came of each."""
    device = prepare(options)
    modules: dict[str, dict[str, Any]] = {}
    while (request := requests.get()) is not None:
        package, name = request
        start = time.perf_counter()
        try:
            if package not in modules:
                module = importlib.import_module(PACKAGES[package])
                modules[package] = {case.name: case for case in module.make_cases()}
            if name is None:
                replies.put((list(modules[package]), "", 0.0))
                continue
            case = modules[package][name]
            errors = check_case(case, device)
            replies.put((errors, case.tolerance, time.perf_counter() - start))
        except BaseException as error:
            if options.verbose:
                traceback.print_exc()
            text = f"{type(error).__name__}: {error}".strip()
            replies.put((None, text, time.perf_counter() - start))


class Child:
    """A process that runs operators, replaced when it dies."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.process: Any = None

    def ask(self, package: str, name: str | None) -> tuple[Any, Any, float]:
        context = multiprocessing.get_context("spawn")
        if self.process is None:
            self.requests, self.replies = context.Queue(), context.Queue()
            self.process = context.Process(target=serve, args=(self.options, self.requests, self.replies), daemon=True)
            self.process.start()
        self.requests.put((package, name))
        start = time.perf_counter()
        while True:
            with contextlib.suppress(Exception):
                return self.replies.get(timeout=0.5)
            seconds = time.perf_counter() - start
            if not self.process.is_alive():
                code, self.process = self.process.exitcode, None
                return None, f"the process died with exit code {code}", seconds
            if seconds > SECONDS:
                self.stop()
                return None, f"stopped after {SECONDS:.0f} s", seconds

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="h100", help="chip (default: h100)")
    parser.add_argument("--arch", default="", help="what Triton compiles for, as sm_80 (default: the chip's)")
    parser.add_argument("--package", choices=sorted(PACKAGES), action="append", help="only this package")
    parser.add_argument("--only", default="", help="only operators whose name contains this")
    parser.add_argument("--configs", type=int, default=1, help="configurations per autotuned kernel (default: 1)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks")
    options = parser.parse_args()
    child = Child(options)
    rows = []
    for package in options.package or sorted(PACKAGES):
        names, text, _ = child.ask(package, None)
        if names is None:
            print(f"{package}: cannot be loaded: {text}")
            continue
        print(f"{package}: {len(names)} operators")
        for name in names:
            if options.only not in name:
                continue
            errors, detail, seconds = child.ask(package, name)
            row: dict[str, Any] = {"package": package, "operator": name, "seconds": round(seconds, 1)}
            if errors is None:
                row |= {"state": "fails", "detail": detail}
                shown = detail.replace("\n", " ")[:240]
            else:
                worst = max(errors, key=lambda key: float("inf") if errors[key] != errors[key] else errors[key])
                agrees = all(value <= detail for value in errors.values())
                row |= {"state": "agrees" if agrees else "differs", "worst": worst, "error": errors[worst]}
                row |= {"tolerance": detail, "compared": len(errors)}
                shown = f"{len(errors)} compared, worst {worst} {errors[worst]:.2g} of {detail:g}"
            rows.append(row)
            print(f"  {row['state']:8} {name:44} {seconds:7.1f} s  {shown}", flush=True)
            if options.verbose and errors is not None:
                print("".join(f"    {key}: {value:.2g}\n" for key, value in errors.items()), end="")
        mine = [row for row in rows if row["package"] == package]
        run = sum(row["state"] != "fails" for row in mine)
        agree = sum(row["state"] == "agrees" for row in mine)
        print(f"{package}: {run} of {len(mine)} operators run, {agree} agree", flush=True)
    child.stop()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(row["state"] != "agrees" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
