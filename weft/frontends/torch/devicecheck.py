"""Which device an operator runs on: its arguments in, a device index or PyTorch's error for mixed devices out."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from weft.frontends.torch.gpus import GpuState, gpus, invalid_ordinal, refuse_after_fork
from weft.frontends.torch.tensors import Tensor, make_twin

# Operators that take CPU tensors beside CUDA ones: indices may be on the host.
_HOST_INDICES = frozenset(("index.Tensor", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index.Tensor"))


@cache
def _checked_by_iterator() -> frozenset[str]:
    """Operators whose devices the tensor iterator checks (device_check: NoCheck in native_functions.yaml, which
    PyTorch ships): they take CPU scalars of no dimension, and their error names no argument."""
    import torchgen

    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text()
    found = set()
    for part in text.split("\n- func: ")[1:]:
        if re.search(r"^\s+device_check:\s*NoCheck\s+#\s*TensorIterator", part, re.MULTILINE):
            found.add(part.partition("(")[0])
    return frozenset(found)


@cache
def _structured() -> frozenset[str]:
    """Operators that PyTorch makes of a structured kernel, by the same file."""
    import torchgen

    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text()
    parts = text.split("\n- func: ")[1:]
    return frozenset(part.partition("(")[0] for part in parts if re.search(r"^\s+structured(_delegate)?:", part, re.M))


def _wrapper_name(operator: str) -> str:
    """The C++ function of a CUDA operator, as torchgen/dest/register_dispatch_key.py names it."""
    name, _, overload = operator.partition(".")
    if operator not in _structured():
        return f"wrapper_CUDA_{overload}_{name}"
    out = "_out" if overload.endswith("out") else ""
    return f"wrapper_CUDA_{name}{out}{'_' * bool(overload)}{overload}"


def host_of(value: Any, operator: str, argument: str, tensors: Any) -> Any:
    """The host twin of a tensor argument that has none yet; a number or a CPU scalar as it is.

    Raises RuntimeError, in PyTorch's words, for another CPU tensor.
    """
    if not isinstance(value, Tensor):
        return value
    if value.is_cuda:
        return make_twin(value)
    if value.device.type != "cpu":
        raise refuse_mixed(operator, argument, value, tensors)
    if value.dim() == 0 and (operator in _checked_by_iterator() or operator.partition(".")[0].startswith("_foreach")):
        return value
    if operator in _HOST_INDICES and argument != "values":
        if argument == "self":
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        return value
    if not any(isinstance(tensor, Tensor) and tensor.is_cuda for tensor in _flatten(tensors)):
        # Nothing but a generator can have led CPU tensors to a CUDA kernel.
        raise RuntimeError("Expected a 'cpu' device type for generator but found 'cuda'")
    raise refuse_mixed(operator, argument, value, tensors)


def hosts_of(values: Any, operator: str, argument: str, tensors: Any) -> list[Any]:
    """host_of for a list of tensors; None stays None."""
    try:
        return [value._weft for value in values]
    except AttributeError:
        return [
            value._weft if hasattr(value, "_weft") else host_of(value, operator, argument, tensors) for value in values
        ]


def _flatten(values: Any) -> list[Any]:
    found = []
    for value in values:
        if type(value) in (list, tuple):
            found.extend(_flatten(value))
        else:
            found.append(value)
    return found


def refuse_mixed(operator: str, argument: str, other: Tensor, tensors: Any) -> RuntimeError:
    """PyTorch's error for tensors of several devices."""
    first = next((t.device for t in _flatten(tensors) if isinstance(t, Tensor) and t.device != other.device), None)
    if operator.startswith("masked_fill") and argument == "self":
        return RuntimeError("masked_fill_: Expected inputs to be on same device")
    if operator == "convolution" and len(_flatten(tensors)) > 1 and argument != "bias":
        data, weight = _flatten(tensors)[:2]
        if data.type() != weight.type():
            return RuntimeError(f"Input type ({data.type()}) and weight type ({weight.type()}) should be the same")
    if operator in _checked_by_iterator():
        devices = [t.device for t in _flatten(tensors) if isinstance(t, Tensor)]
        pair = list(dict.fromkeys(str(device) for device in devices))[:2]
        return RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {' and '.join(pair)}!"
        )
    return RuntimeError(
        f"Expected all tensors to be on the same device, but got {argument} is on {other.device}, different from other "
        f"tensors on {first} (when checking argument in method {_wrapper_name(operator)})"
    )


def check_same_device(operator: str, tensors: Any) -> int:
    """The index of the device that all CUDA tensors of a call are on. Raises RuntimeError where there are several."""
    index = -1
    for tensor in _flatten(tensors):
        if isinstance(tensor, Tensor):
            found = tensor.get_device()
            if found >= 0 and found != index:
                if index >= 0:
                    raise refuse_mixed(operator, _argument_name(operator, tensor, tensors), tensor, tensors)
                index = found
    return index if index >= 0 else torch._C._accelerator_getDeviceIndex()


def _argument_name(operator: str, tensor: Tensor, tensors: Any) -> str:
    from weft.frontends.torch.dispatch import find_operator

    names = [argument.name for argument in find_operator(operator)._schema.arguments if "Tensor" in str(argument.type)]
    place = next((place for place, value in enumerate(tensors) if value is tensor), None)
    return "tensors" if place is None or place >= len(names) else names[place]


def factory_device(device: Any, tensors: Any) -> int:
    """The index of the device that a factory's result goes to. Raises torch.AcceleratorError for one not there."""
    if GpuState.forked:
        refuse_after_fork()
    if device is not None:
        index = device.index
        if index is not None and index < len(gpus):
            return index
    else:
        for tensor in _flatten(tensors):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                return tensor.get_device()
    index = device.index if device is not None else None
    if index is None:
        index = torch._C._accelerator_getDeviceIndex()
    if index >= len(gpus):
        raise invalid_ordinal()
    return index


def without_modes(kernel: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Calls a kernel so that TorchFunctionModes of the program (a default device, for one) do not see its insides."""
    with torch._C.DisableTorchFunction():
        return kernel(*args, **kwargs)
