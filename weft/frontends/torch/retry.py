"""CPU kernels that refuse what CUDA's accept: an operator's error in, its result by another way out, or the error.

Data types: where the CPU has no kernel for half precision, the operator is computed in float32 and rounded, as most
CUDA kernels do it. Memory: the CPU allocator's error becomes CUDA's.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import torch

from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.tensors import Tensor

_NO_MEMORY = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
_NO_KERNEL = re.compile(r"not implemented for '(Half|BFloat16|ComplexHalf)'|not implemented for.*(Half|BFloat16)")
_NUMBER = re.compile(r"Expected a value of type 'Tensor' for argument '\w+' but instead found type '[ifbc]")
_HALF_FFT = "MKL FFT doesn't support tensors of type"
_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}


def retry(error: RuntimeError, operator: Any, index: int, *args: Any, **kwargs: Any) -> Any:
    """The operator's result by a wider type where that helps; raises the error, or what CUDA would raise, else."""
    text = str(error)
    found = _NO_MEMORY.search(text)
    if found:
        refuse_memory(int(found[1]), index, error)
    if _NUMBER.search(text):
        # A number in a tensor's place: the operator's other overloads take it.
        return getattr(torch.ops.aten, operator._schema.name.partition("::")[2])(*args, **kwargs)
    if "Trying to resize storage that is not resizable" in text:
        return _resize_outputs(error, operator, args, kwargs)
    name = operator._schema.name.partition("::")[2]
    if _HALF_FFT in text:
        _check_fft_sizes(name, *args)
    if name in _OTHERWISE and _OTHERWISE[name][0] in text:
        return _OTHERWISE[name][1](*args, **kwargs)
    if not _NO_KERNEL.search(text) and _HALF_FFT not in text:
        raise error
    narrow = next((value.dtype for value in _tensors((*args, *kwargs.values())) if value.dtype in _WIDER), None)
    if narrow is None:
        raise error
    wide_args = [_widen(value) for value in args]
    wide_kwargs = {name: _widen(value) for name, value in kwargs.items()}
    result = operator(*wide_args, **wide_kwargs)
    return _write_back(operator, (args, kwargs), (wide_args, wide_kwargs), result, narrow)


def _resize_outputs(error: RuntimeError, operator: Any, args: tuple, kwargs: dict) -> Any:
    """For out= twins of another size, which lie in memory that belongs to CUDA tensors: memory that can grow, for the
    tensors to adopt."""
    outputs = [kwargs[argument.name] for argument in operator._schema.arguments if argument.is_out]
    before = [(out, out.untyped_storage(), out.storage_offset(), out.shape, out.stride()) for out in _tensors(outputs)]
    if not before:
        raise error
    for out, *_ in before:
        out.set_(torch.empty_like(out))
    try:
        return operator(*args, **kwargs)
    except Exception:
        for out, *memory in before:
            out.set_(*memory)
        raise


def refuse_memory(size: int, index: int, error: Exception) -> NoReturn:
    """Raises torch.OutOfMemoryError for a request that the host refused: CUDA's where the GPU would refuse it too."""
    gpus[index].allocator.check_room(size)
    raise torch.OutOfMemoryError(
        f"The host of virtual GPU {index} refused {size / 2**30:.2f} GiB, which would fit on the GPU. Use a smaller "
        "problem, or --dry, which computes no numbers."
    ) from error


def _check_fft_sizes(name: str, data: Tensor, dims: Any, normalization: int, last: Any, *rest: Any) -> None:
    """Raises RuntimeError as cuFFT does for half precision (ATen/native/cuda/CuFFTPlanCache.h)."""
    sizes = [data.size(dim) for dim in dims]
    if name == "_fft_c2r":
        sizes[-1] = int(last)  # of the result; the input has half of it
    if any(size & (size - 1) for size in sizes):
        raise RuntimeError(
            "cuFFT only supports dimensions whose sizes are powers of two when computing in half precision, but got a "
            f"signal size of{sizes}"
        )


# ---------------------------------------------------------------- types that CUDA's kernels take and the CPU's do not
def _abs_of_bool(data: Tensor, out: Tensor | None = None) -> Tensor:
    return data.clone() if out is None else out.resize_(data.shape).copy_(data)


def _trace_of_bool(data: Tensor) -> Tensor:
    return torch.trace(data.long())


def _nansum_of_complex(data: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None,
                       out: Tensor | None = None) -> Tensor:  # fmt: skip
    known = torch.where(data.isnan(), torch.zeros((), dtype=data.dtype), data)
    found = torch.sum(known, list(range(data.dim())) if dim is None else dim, keepdim, dtype=dtype)
    return found if out is None else out.resize_(found.shape).copy_(found)


def _softmax_gradient(name: str) -> Any:
    """Where softmax gave float32 for half inputs: the gradient in float32, rounded to the inputs' type."""

    def gradient(grad_output: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
        return getattr(torch.ops.aten, name)(grad_output, output, dim, output.dtype).to(input_dtype)

    return gradient


# operator -> (part of the CPU's error, function of host twins)
_OTHERWISE: dict[str, tuple[str, Any]] = {
    "_softmax_backward_data": ("expected scalar type", _softmax_gradient("_softmax_backward_data")),
    "_log_softmax_backward_data": ("expected scalar type", _softmax_gradient("_log_softmax_backward_data")),
    "abs": ("not implemented for 'Bool'", _abs_of_bool),
    "trace": ("not implemented for 'Bool'", _trace_of_bool),
    "nansum": ("does not support complex inputs", _nansum_of_complex),
}


def _tensors(values: Any) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) in (list, tuple):
            found.extend(_tensors(value))
    return found


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(_WIDER[value.dtype]) if value.dtype in _WIDER else value
    if type(value) in (list, tuple):
        return type(value)(_widen(entry) for entry in value)
    if isinstance(value, torch.dtype):
        return _WIDER.get(value, value)
    return value


_NARROWER = {
    torch.float16: {torch.float32: torch.float16, torch.complex64: torch.complex32},
    torch.bfloat16: {torch.float32: torch.bfloat16},
    torch.complex32: {torch.float32: torch.float16, torch.complex64: torch.complex32},
}


def _narrow(value: Any, narrow: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(_NARROWER[narrow].get(value.dtype, value.dtype))
    if isinstance(value, (list, tuple)):
        return tuple(_narrow(entry, narrow) for entry in value)
    return value


def _write_back(operator: Any, given: Any, wide: Any, result: Any, narrow: torch.dtype) -> Any:
    """Rounds new results, and copies what the operator wrote into its arguments."""
    written = False
    for place, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        if place < len(given[0]):
            target, source = given[0][place], wide[0][place]
        else:
            target, source = given[1].get(argument.name), wide[1].get(argument.name)
        for one, other in zip(_tensors((target,)), _tensors((source,))):
            written = True
            if one is not other:
                if one.shape != other.shape:
                    one.resize_(other.shape)
                one.copy_(other)
    returns = operator._schema.returns
    if written and len(returns) == 1 and returns[0].alias_info is not None:
        return None  # the kernel returns its argument
    return _narrow(result, narrow)
