"""Tensors that are made of other tensors: sparse layouts, nested tensors. Parts on the host in, the whole on CUDA out,
and back.

Such a tensor has no memory of its own, so its twin is put together anew from the twins of its parts at each use.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.frontends.torch.recording import record
from weft.frontends.torch.tensors import Tensor, cpu_device, find_devices, to_cuda, to_cuda_anything, to_host
from weft.model.operators import needs_of

_C = torch._C
_KEYS = {
    name: _C.DispatchKeySet(getattr(_C.DispatchKey, name))
    for name in ("SparseCPU", "SparseCsrCPU", "QuantizedCPU", "NestedTensorCPU", "CPU")
}
_make_coo = torch.ops.aten._sparse_coo_tensor_with_dims_and_tensors.default._handle.redispatch_boxed
_copy_sparse = torch.ops.aten.copy_sparse_to_sparse_.default._handle.redispatch_boxed
_make_nested = torch.ops.aten._nested_view_from_buffer.default._handle.redispatch_boxed
_make_compressed = torch.ops.aten._sparse_compressed_tensor_unsafe.default
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices"), torch.sparse_bsr: ("crow_indices", "col_indices"),
    torch.sparse_csc: ("ccol_indices", "row_indices"), torch.sparse_bsc: ("ccol_indices", "row_indices"),
}  # fmt: skip


def _parts(tensor: Tensor, key: str, names: tuple[str, ...]) -> list[Tensor]:
    """Parts of a sparse tensor by the CPU's kernels, which only read pointers."""
    if tensor.device.type == "cpu":
        return [getattr(tensor, name)() for name in names]
    return [getattr(torch.ops.aten, name).default._handle.redispatch_boxed(_KEYS[key], tensor) for name in names]


def assemble_on_cuda(host: Tensor, index: int) -> Tensor:
    """A CUDA tensor of the same layout on the memory of a CPU tensor's parts."""
    if host.is_quantized:
        return _assemble_quantised(host, torch.device("cuda", index))
    if host.is_nested:
        buffer, *shape = _parts_of_nested(host)
        return _make_nested(_KEYS["CPU"], to_cuda(buffer, index), *shape)
    device = torch.device("cuda", index)
    if host.layout is torch.sparse_coo:
        indices, values = (to_cuda(part, index) for part in _parts(host, "SparseCPU", ("_indices", "_values")))
        return _assemble_coo(host, indices, values, device)
    indices = [to_cuda(part, index) for part in _parts(host, "SparseCsrCPU", _COMPRESSED[host.layout])]
    values = to_cuda(host.values(), index)
    return _make_compressed(
        *indices, values, list(host.shape), dtype=host.dtype, layout=host.layout, device=device
    )


def assemble_on_host(tensor: Tensor) -> Tensor:
    """The CPU tensor of the same layout whose parts are the twins of a CUDA tensor's."""
    if tensor.is_quantized:
        return _assemble_quantised(tensor, cpu_device)
    if tensor.is_nested:
        buffer, *shape = _parts_of_nested(tensor)
        return _make_nested(_KEYS["CPU"], to_host(buffer), *shape)
    if tensor.layout is torch.sparse_coo:
        indices, values = (to_host(part) for part in _parts(tensor, "SparseCPU", ("_indices", "_values")))
        return _assemble_coo(tensor, indices, values, cpu_device)
    names = (*_COMPRESSED[tensor.layout], "values")
    *indices, values = (to_host(part) for part in _parts(tensor, "SparseCsrCPU", names))
    return _make_compressed(
        *indices, values, list(tensor.shape), dtype=tensor.dtype, layout=tensor.layout, device=cpu_device
    )


def _assemble_coo(like: Tensor, indices: Tensor, values: Tensor, device: Any) -> Tensor:
    dims = (_parts_number(like, "sparse_dim"), _parts_number(like, "dense_dim"))
    coalesced = bool(_parts_number(like, "is_coalesced"))
    return _make_coo(
        _KEYS["SparseCPU"], *dims, list(like.shape), indices, values, dtype=like.dtype, layout=torch.sparse_coo,
        device=device, is_coalesced=coalesced,
    )  # fmt: skip


def _parts_number(tensor: Tensor, name: str) -> Any:
    return getattr(torch.ops.aten, name).default._handle.redispatch_boxed(_KEYS["SparseCPU"], tensor)


def _parts_of_nested(tensor: Tensor) -> list[Tensor]:
    """[buffer, sizes, strides, offsets] of a nested tensor of strided layout; all but the buffer lie on the host."""
    names = ("values", "_nested_tensor_size", "_nested_tensor_strides", "_nested_tensor_storage_offsets")
    return [
        getattr(torch.ops.aten, name).default._handle.redispatch_boxed(_KEYS["NestedTensorCPU"], tensor)
        for name in names
    ]


def _assemble_quantised(tensor: Tensor, device: Any) -> Tensor:
    raise NotImplementedError(
        "quantised tensors cannot be moved to a virtual GPU: quantise on the CPU, or use torch.ao's fake quantisation"
    )


# ---------------------------------------------------------------- kernels of the sparse dispatch keys
# Operators that only read or exchange the parts: the CPU's kernel works on the CUDA tensor itself.
_ON_PARTS = frozenset("""
    _indices _values indices values crow_indices col_indices ccol_indices row_indices sparse_dim dense_dim _nnz _dimI
    _dimV is_coalesced _coalesced_ _sparse_coo_tensor_with_dims_and_tensors _sparse_coo_tensor_with_dims
    sparse_resize_ sparse_resize_and_clear_ copy_sparse_to_sparse_ resize_as_sparse_ empty.memory_format
    _sparse_compressed_tensor_with_dims _sparse_compressed_tensor_unsafe unsqueeze select.int permute
""".split())
# The same of nested tensors.
_ON_NESTED_PARTS = frozenset("""
    values _nested_tensor_size _nested_tensor_strides _nested_tensor_storage_offsets detach alias unbind.int select.int
    transpose.int squeeze squeeze.dim unsqueeze view narrow chunk split_with_sizes is_same_size copy_
""".split())


# Operators that CUDA does not have.
_CPU_ONLY = frozenset(("_sparse_mm_reduce_impl", "_sparse_mm_reduce_impl_backward"))


def make_sparse_kernel(name: str, operator: Any, key: str) -> Any:
    """The kernel of an operator for SparseCUDA, SparseCsrCUDA or NestedTensorCUDA, from the CPU's for `key`."""
    if name in (_ON_NESTED_PARTS if key == "NestedTensorCPU" else _ON_PARTS):
        redispatch = operator._handle.redispatch_boxed
        keys = _KEYS[key]

        def on_parts(*args: Any, **kwargs: Any) -> Any:
            return redispatch(keys, *args, **kwargs)

        return on_parts
    if key == "NestedTensorCPU" and name == "_to_copy":
        return _copy_nested
    schema = operator._schema
    written = [
        argument for argument in schema.arguments if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def on_host(*args: Any, **kwargs: Any) -> Any:
        found = find_devices((*args, *kwargs.values()))
        index = found[0] if found else _device_in(kwargs)
        host_args = [_to_host_whole(value) for value in args]
        host_kwargs = {option: _to_host_whole(value) for option, value in kwargs.items()}
        try:
            result = operator(*host_args, **host_kwargs)
        except RuntimeError as error:
            result = _multiply_dense(error, operator, host_args, host_kwargs)
        targets = [_argument(argument, schema, args, kwargs) for argument in written]
        sources = [_argument(argument, schema, host_args, host_kwargs) for argument in written]
        for target, source in zip(targets, sources):
            if isinstance(target, Tensor) and target.is_cuda:
                _replace(target, source, index)
        if targets and len(schema.returns) == len(targets):
            final = targets[0] if len(targets) == 1 else tuple(targets)
        else:
            final = to_cuda_anything(result, index)
        if key == "NestedTensorCPU" or needs_of(name).strides:
            record(name, tuple(_flat(value) for value in args), {}, _flat(final), index)
        else:
            record(name, args, kwargs, final, index)
        return final

    return on_host


# What the CPU's libraries say of sparse products that CUDA's can do.
_NO_PRODUCT = ("MKL Sparse doesn't support", "Strided + Strided @ SparseBsr", "Strided + SparseBsr @ Strided")


def _multiply_dense(error: RuntimeError, operator: Any, args: Any, kwargs: Any) -> Any:
    """A product with block-sparse matrices, by dense ones; raises the error for what CUDA does not do either."""
    text = str(error)
    if not any(part in text for part in _NO_PRODUCT):
        raise RuntimeError(text.replace("computation on CPU", "computation on CUDA")) from None
    return operator(*(_to_dense(value) for value in args), **kwargs)


def _to_dense(value: Any) -> Any:
    return value.to_dense() if isinstance(value, Tensor) and value.layout is not torch.strided else value


def _make_dense_product(name: str) -> Any:
    """The kernel of a product of batches with a compressed sparse factor, which the CPU build lacks."""
    operator = getattr(torch.ops.aten, name.partition(".")[0])

    def product(*args: Any, out: Tensor | None = None, **kwargs: Any) -> Tensor:
        index = find_devices(args)[0]
        with _C.DisableTorchFunction():
            made = operator(*(_to_dense(_to_host_whole(value)) for value in args), **kwargs)
            result = to_cuda(made, index)
            if out is not None:
                result = out.resize_(made.shape).copy_(result)
        record(name, args, kwargs, result, index)
        return result

    return product


def _copy_nested(tensor: Tensor, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
                 non_blocking: bool = False, memory_format: Any = None) -> Tensor:  # fmt: skip
    """aten::_to_copy of a nested CUDA tensor."""
    buffer, *shape = _parts_of_nested(tensor)
    copy = torch.ops.aten._to_copy(buffer, dtype=dtype, device=device, pin_memory=pin_memory, non_blocking=non_blocking)
    return _make_nested(_KEYS["CPU"], copy, *shape)


def _make_factory(name: str) -> Any:
    """The kernel of an operator for plain CUDA tensors whose result is nested; shapes may come on the host."""
    operator = getattr(torch.ops.aten, name).default

    def factory(*args: Any, **kwargs: Any) -> Tensor:
        index = find_devices((*args, *kwargs.values()))[0]
        with _C.DisableTorchFunction():
            made = operator(*map(_to_host_whole, args), **{key: _to_host_whole(kwargs[key]) for key in kwargs})
            result = to_cuda_anything(made, index)
        record(name, args, {}, _flat(result), index)
        return result

    return factory


# For the dispatch key CUDA.
KERNELS = {name: _make_factory(name) for name in ("_nested_from_padded", "_nested_tensor_from_mask")}


def _flat(value: Any) -> Any:
    """A tensor's memory as one dense tensor, which has a shape and strides: a nested tensor's buffer, a sparse one's
    values; other values as they are."""
    if not isinstance(value, Tensor):
        return tuple(_flat(entry) for entry in value) if type(value) in (list, tuple) else value
    if value.is_nested:
        return _parts_of_nested(value)[0]
    if value.layout is torch.sparse_coo:
        return _parts(value, "SparseCPU", ("_values",))[0]
    return value if value.layout is torch.strided else _parts(value, "SparseCsrCPU", ("values",))[0]


def _device_in(kwargs: dict) -> int:
    device = kwargs.get("device")
    if device is not None and device.index is not None:
        return device.index
    return _C._accelerator_getDeviceIndex()


def _argument(argument: Any, schema: Any, args: Any, kwargs: Any) -> Any:
    if argument.name in kwargs:
        return kwargs[argument.name]
    place = next(place for place, other in enumerate(schema.arguments) if other.name == argument.name)
    return args[place] if place < len(args) else None


def _to_host_whole(value: Any) -> Any:
    if isinstance(value, Tensor):
        return to_host(value)
    if type(value) in (list, tuple):
        return type(value)(_to_host_whole(entry) for entry in value)
    if isinstance(value, torch.device):
        return cpu_device
    return value


def _replace(target: Tensor, source: Tensor, index: int) -> None:
    """Gives a CUDA tensor what a CPU kernel wrote into its twin."""
    if target.layout is torch.sparse_coo:
        _copy_sparse(_KEYS["SparseCPU"], target, assemble_on_cuda(source, index), False)
    elif target.layout is not torch.strided:
        # Values share memory with the twin's unless the kernel replaced them.
        new = assemble_on_cuda(source, index)
        torch.ops.aten.resize_as_sparse_(target, new)
        target.copy_(new)
    elif target.shape != source.shape:
        target.resize_(source.shape)
        target.copy_(to_cuda(source, index))


_PAIRS = (
    ("SparseCUDA", "SparseCPU"), ("SparseCsrCUDA", "SparseCsrCPU"), ("NestedTensorCUDA", "NestedTensorCPU"),
)  # fmt: skip


def register_sparse_kernels(libraries: list[Any]) -> int:
    """Registers kernels for every operator that the CPU build has for sparse or nested tensors; returns how many."""
    from weft.frontends.torch.dispatch import find_operator

    count = 0
    for cuda_key, key in _PAIRS:
        library = _C._dispatch_library("IMPL", "aten", cuda_key, "", 0)
        libraries.append(library)
        for full in _C._dispatch_get_all_op_names():
            space, _, name = full.partition("::")
            if space != "aten" or name in _CPU_ONLY or not _C._dispatch_has_kernel_for_dispatch_key(full, key):
                continue
            library.impl(name, cuda_key, _LazyKernel(name, key, find_operator), False)
            count += 1
        if cuda_key == "SparseCsrCUDA":
            for name in ("bmm", "bmm.out", "baddbmm", "baddbmm.out"):
                library.impl(name, cuda_key, _make_dense_product(name), False)
    return count


class _LazyKernel:
    """A sparse kernel that is made when it is first called."""

    __slots__ = ("find", "function", "key", "name")

    def __init__(self, name: str, key: str, find: Any):
        self.name, self.key, self.find = name, key, find
        self.function: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.function is None:
            self.function = make_sparse_kernel(self.name, self.find(self.name), self.key)
        with _C.DisableTorchFunction():
            return self.function(*args, **kwargs)
