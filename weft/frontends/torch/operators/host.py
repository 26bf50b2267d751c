"""Kernels written as functions of CPU tensors: such a function in, a kernel for CUDA tensors out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from weft.frontends.torch.devicecheck import check_same_device
from weft.frontends.torch.recording import record
from weft.frontends.torch.tensors import to_cuda_anything, to_host_anything

_C = torch._C


def host_kernel(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of an operator that is computed by a function on host twins.

    The function may write into its arguments, which share memory with the CUDA tensors; what it returns is new.
    """

    def kernel(*args: Any, **kwargs: Any) -> Any:
        index = check_same_device(name, (*args, *kwargs.values()))
        with _C.DisableTorchFunction():
            hosts = [to_host_anything(value) for value in args]
            result = function(*hosts, **{option: to_host_anything(value) for option, value in kwargs.items()})
            moved = to_cuda_anything(result, index)
        record(name, args, kwargs, moved, index)
        return moved

    kernel.__name__ = f"{name.replace('.', '_')}_kernel"
    return kernel
