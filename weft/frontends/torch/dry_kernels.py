"""Kernels of a dry run: an operator's schema in, a Python function out that makes its results' shapes.

An operator whose CUDA arguments all are known, and whose results are small, is computed on the host as in an ordinary
run. Any other runs on meta tensors; its results are unknown, and so is what it writes into. Both charge the GPU's
memory and tell the recorder as the kernels of dispatch.py do. Operators of which PyTorch does not know the shapes
without data run on zeros where they are small; those whose shapes depend on values raise DryRunError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from weft.errors import DryRunError
from weft.frontends.torch import dry, dry_values
from weft.frontends.torch.bindings import BindingState, warn_of_synchronising
from weft.frontends.torch.devicecheck import check_same_device, factory_device, host_of
from weft.frontends.torch.dispatch import find_operator
from weft.frontends.torch.dry import forget_values, is_unknown, may_be_known, meta_device, shapes_only
from weft.frontends.torch.gpus import StreamState, current_stream, gpus
from weft.frontends.torch.graphs import refuse_while_capturing
from weft.frontends.torch.random import host_generator
from weft.frontends.torch.recording import record, recorder
from weft.frontends.torch.retry import retry
from weft.frontends.torch.tensors import Tensor, cpu_device, find_devices

_C = torch._C
_functions = _C._VariableFunctions
_copy = _C.TensorBase.copy_
_DYNAMIC = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
# The most bytes that an operator without shape rules may touch, to be run on zeros.
_MOST_ZEROS = 64 << 20
FIXED_SHAPES = (
    "Leave this part out of the dry run (weft.is_dry() tells), or write it with shapes that are fixed: torch.where, or "
    "a product with the mask"
)
# Batch statistics, which operators update without saying so in their schemas.
_UPDATED = frozenset(("running_mean", "running_var"))


def _flatten(values: Any) -> list[Any]:
    found = []
    for value in values:
        if type(value) in (list, tuple):
            found.extend(_flatten(value))
        else:
            found.append(value)
    return found


# Batch normalisation returns no statistics where it does not train, whatever its shape rule says.
_STATISTICS = frozenset(("native_batch_norm", "_native_batch_norm_legit"))


class _Argument:
    """What a kernel must know of an argument. written: whether the operator changes it."""

    __slots__ = ("kind", "name", "out", "written")

    def __init__(self, argument: Any):
        text = str(argument.type)
        self.name = argument.name
        self.out = bool(argument.is_out)
        self.written = argument.alias_info is not None and argument.alias_info.is_write or argument.name in _UPDATED
        self.kind = ""
        if "Tensor" in text:
            self.kind = "tensor"
        elif "evice" in text:
            self.kind = "device"
        elif "Generator" in text:
            self.kind = "generator"
        elif argument.name == "pin_memory":
            self.kind = "pinned"


class DryKernel:
    """One operator's kernel. name: as "add.Tensor"."""

    def __init__(self, name: str):
        self.name = name
        self.ready = False

    def prepare(self) -> None:
        """Reads the schema, at the first call."""
        operator: Any = find_operator(self.name)
        schema = operator._schema
        self.operator = operator
        self.call = operator._op
        self.arguments = [_Argument(argument) for argument in schema.arguments]
        self.by_name = {argument.name: argument for argument in self.arguments}
        self.makes = any(argument.kind == "device" for argument in self.arguments)
        self.draws = any(argument.kind == "generator" for argument in self.arguments)
        self.dynamic = any(tag in operator.tags for tag in _DYNAMIC)
        self.indexes = self.name.partition(".")[0] in ("index", "_unsafe_index")
        self.targets = [self._returned_argument(schema, result) for result in schema.returns]
        # Operators that change their arguments and return them, or nothing, need no shapes.
        self.changes_only = all(target is not None for target in self.targets) and not any(
            argument.out for argument in self.arguments
        )
        self.quiet = self.changes_only and self.name.startswith(("_foreach", "_fused"))
        self.ready = True

    @staticmethod
    def _returned_argument(schema: Any, result: Any) -> int | None:
        alias = result.alias_info
        if alias is None or not alias.is_write:
            return None
        for place, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.before_set == alias.before_set:
                return place
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.ready:
            self.prepare()
        with _C.DisableTorchFunction():
            return self.run(args, kwargs)

    def run(self, args: tuple, kwargs: dict) -> Any:
        tensors = _flatten([*args, *kwargs.values()])
        if self.makes:
            index = factory_device(self._value("device", args, kwargs), tensors)
        elif len(gpus) > 1:
            index = check_same_device(self.name, self._tensor_arguments(args, kwargs))
        else:
            index = 0
        known = True
        for value in tensors:
            if isinstance(value, Tensor) and value.is_cuda and value.layout is torch.strided and is_unknown(value):
                known = False
                break
        if known:
            result = self._compute(args, kwargs, index)
            if result is NotImplemented:
                known = False
        if not known:
            result = self._make_shapes(args, kwargs, index)
        if recorder.sink is not None:
            stream = current_stream(index) if StreamState.used else 0
            recorder.sink(self.name, args, result, kwargs, stream, index)
        return result

    def _value(self, name: str, args: tuple, kwargs: dict) -> Any:
        if name in kwargs:
            return kwargs[name]
        for argument, value in zip(self.arguments, args):
            if argument.name == name:
                return value
        return None

    def _tensor_arguments(self, args: tuple, kwargs: dict) -> list[Any]:
        found = [value for argument, value in zip(self.arguments, args) if argument.kind == "tensor"]
        return found + [value for name, value in kwargs.items() if self.by_name[name].kind == "tensor"]

    # ------------------------------------------------------------ arguments
    def _hosts(self, args: tuple, kwargs: dict, index: int, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """The arguments on the host, or as shapes."""
        seen = self._tensor_arguments(args, kwargs)
        hosts = [self._host(argument, value, seen, index, device) for argument, value in zip(self.arguments, args)]
        named = {name: self._host(self.by_name[name], value, seen, index, device) for name, value in kwargs.items()}
        if self.makes and "device" not in named and len(args) <= self._place("device"):
            named["device"] = device
        if self.draws and device is cpu_device and "generator" not in named and len(args) <= self._place("generator"):
            named["generator"] = host_generator(None, index)
        return hosts, named

    def _place(self, name: str) -> int:
        return next(place for place, argument in enumerate(self.arguments) if argument.name == name)

    def _host(self, argument: _Argument, value: Any, seen: list[Any], index: int, device: torch.device) -> Any:
        kind = argument.kind
        if kind == "tensor":
            if type(value) in (list, tuple):
                return [self._host(argument, entry, seen, index, device) for entry in value]
            if not isinstance(value, Tensor):
                return value
            if argument.out and value.is_cuda:
                return dry.out_twin(value)
            if value.is_cuda:
                return dry.make_twin(value)
            host = host_of(value, self.name, argument.name, seen)
            return host if device is cpu_device else host.to(meta_device)
        if kind == "device":
            return device
        if kind == "generator":
            return host_generator(value, index) if device is cpu_device else None
        if kind == "pinned":
            return False
        return value

    # ------------------------------------------------------------ known
    def _compute(self, args: tuple, kwargs: dict, index: int) -> Any:
        """The result by the CPU's kernel; NotImplemented where it would be too large to be known."""
        if not self.changes_only and not self.dynamic and not self._is_small(args, kwargs, index):
            return NotImplemented
        hosts, named = self._hosts(args, kwargs, index, cpu_device)
        try:
            made = self.call(*hosts, **named)
        except RuntimeError as error:
            made = retry(error, self.operator, index, *hosts, **named)
        return self._adopt(made, args, kwargs, hosts, named, index)

    def _is_small(self, args: tuple, kwargs: dict, index: int) -> bool:
        before, shapes_only.active = shapes_only.active, True
        try:
            hosts, named = self._hosts(args, kwargs, index, meta_device)
            made = self.call(*hosts, **named)
        except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):
            # Wrong arguments fail again on the CPU, in its words; what has no shape rule is as small as its arguments.
            return True
        finally:
            shapes_only.active = before
        return all(
            may_be_known(tensor.dtype, tensor.nbytes) for tensor in _flatten([made]) if isinstance(tensor, Tensor)
        )

    # ------------------------------------------------------------ unknown
    def _make_shapes(self, args: tuple, kwargs: dict, index: int) -> Any:
        """The result by the operator on meta tensors."""
        if self.indexes:
            args = self._with_positions(args)
        elif self.dynamic:
            raise dry_values.refuse(f"aten::{self.name}", "its result's shape depends on values", FIXED_SHAPES)
        before, shapes_only.active = shapes_only.active, True
        try:
            made: Any = None
            hosts: list[Any] = []
            named: dict[str, Any] = {}
            if not self.quiet:
                hosts, named = self._hosts(args, kwargs, index, meta_device)
                made = self._call_meta(hosts, named)
            result = self._adopt(made, args, kwargs, hosts, named, index)
        finally:
            shapes_only.active = before
        for argument, value in zip(self.arguments, args):
            if argument.written:
                self._forget(value)
        for name, value in kwargs.items():
            if self.by_name[name].written:
                self._forget(value)
        return result

    def _forget(self, value: Any) -> None:
        for tensor in _flatten([value]):
            if isinstance(tensor, Tensor) and tensor.is_cuda:
                forget_values(tensor)

    def _call_meta(self, hosts: list[Any], named: dict[str, Any]) -> Any:
        try:
            if self.name == "_grouped_mm" and hosts[0].dtype is not torch.bfloat16:
                # The rule knows one type only.
                wide = hosts[0].dtype
                return self.call(*(host.to(torch.bfloat16) for host in hosts[:2]), *hosts[2:], **named).to(wide)
            made = self.call(*hosts, **named)
            if self.name in _STATISTICS and not hosts[5]:
                return (made[0], *(statistic.new_empty(0) for statistic in made[1:]))
            return _arrange(made, hosts[:2]) if self.name == "convolution" else made
        except NotImplementedError as error:
            if self.changes_only:
                return None
            if _bytes_of(hosts, named) > _MOST_ZEROS:
                raise dry_values.refuse(f"aten::{self.name}", "PyTorch knows its shapes only from data") from error
            return self._call_on_zeros(hosts, named)
        except RuntimeError as error:
            try:
                return retry(error, self.operator, 0, *hosts, **named)
            except RuntimeError:
                if _bytes_of(hosts, named) > _MOST_ZEROS:
                    raise
            # The CPU's kernel refuses wrong arguments in the words that programs know.
            return self._call_on_zeros(hosts, named)

    def _call_on_zeros(self, hosts: list[Any], named: dict[str, Any]) -> Any:
        """The shapes of an operator by its CPU kernel on zeros."""
        hosts, named = _to_zeros(hosts), {name: _to_zeros(value) for name, value in named.items()}
        try:
            made = self.call(*hosts, **named)
        except RuntimeError as other:
            made = retry(other, self.operator, 0, *hosts, **named)
        if any(isinstance(value, Tensor) and value.layout is not torch.strided for value in _flatten([made])):
            raise dry_values.refuse(f"aten::{self.name}", "a sparse tensor's shape depends on values", FIXED_SHAPES)
        return _to_meta(made)

    def _with_positions(self, args: tuple) -> tuple:
        """The arguments of an indexing with the positions of known masks; masks that are unknown raise DryRunError."""
        indices: list[Any] = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                if index.is_cuda and is_unknown(index):
                    raise dry_values.refuse(
                        f"aten::{self.name}", "a mask that depends on values picks elements", FIXED_SHAPES
                    )
                host = index if not index.is_cuda else dry.make_twin(index)
                indices.extend(host.nonzero().unbind(1))
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])

    # ------------------------------------------------------------ results
    def _adopt(self, made: Any, args: tuple, kwargs: dict, hosts: list[Any], named: dict[str, Any],
               index: int) -> Any:  # fmt: skip
        """CUDA tensors for what the operator returned; arguments that it changed stand for themselves."""
        for argument in self.arguments:
            if argument.out:
                given = self._value(argument.name, args, kwargs)
                host = named[argument.name] if argument.name in named else hosts[self._place(argument.name)]
                for target, twin in zip(_flatten([given]), _flatten([host])):
                    if isinstance(target, Tensor) and target.shape != twin.shape:
                        dry.adopt_result(target, twin)
        if not self.targets:
            return None
        single = len(self.targets) == 1
        values = (made,) if single or made is None else made
        results = []
        for place, target in enumerate(self.targets):
            if target is None:
                results.append(_to_cuda_anything(values[place], index))
            else:
                results.append(self._value(self.arguments[target].name, args, kwargs))
        return results[0] if single else tuple(results)


def _arrange(made: Tensor, given: list[Tensor]) -> Tensor:
    """A convolution's result with channels last, where the data or the weights have them so."""
    for tensor in given:
        found = suggest_memory_format(tensor)
        if found is not torch.contiguous_format:
            return _functions.empty_like(made, memory_format=found)
    return made


def _to_cuda_anything(value: Any, index: int) -> Any:
    if isinstance(value, Tensor):
        return dry.to_cuda(value, index)
    if isinstance(value, (list, tuple)):
        return tuple(_to_cuda_anything(entry, index) for entry in value)
    return value


def _bytes_of(hosts: list[Any], named: dict[str, Any]) -> int:
    return sum(value.nbytes for value in _flatten([*hosts, *named.values()]) if isinstance(value, Tensor))


def _to_zeros(value: Any) -> Any:
    if isinstance(value, Tensor):
        made = _functions.empty_strided(value.shape, value.stride(), dtype=value.dtype)
        return made.zero_()
    if type(value) in (list, tuple):
        return type(value)(_to_zeros(entry) for entry in value)
    return cpu_device if isinstance(value, torch.device) else value


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _functions.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=meta_device)
    if isinstance(value, (list, tuple)):
        return tuple(_to_meta(entry) for entry in value)
    return value


def make_entry(name: str) -> Callable[..., Any]:
    """The function to register for an operator."""
    kernel = DryKernel(name)

    def dry_kernel(*args: Any, **kwargs: Any) -> Any:
        return kernel(*args, **kwargs)

    return dry_kernel


# ---------------------------------------------------------------- kernels written for CUDA
def has_shape_rule(name: str) -> bool:
    """Whether PyTorch can run an operator on meta tensors."""
    full = f"aten::{name}"
    has = _C._dispatch_has_kernel_for_dispatch_key
    return has(full, "Meta") or has(full, "CompositeExplicitAutograd") or has(full, "CompositeImplicitAutograd")


# PyTorch's rules for these leave out results that their backward passes ask for.
_BY_FUNCTION = frozenset(("_cudnn_rnn", "_cudnn_rnn_backward"))


def make_special(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of an operator that an ordinary run computes by a function of its own.

    Known arguments go to that function; with unknown ones the operator's own rule is used, or the function on shapes.
    """
    by_rule = make_entry(name) if has_shape_rule(name) and name not in _BY_FUNCTION else None

    def special_kernel(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in _flatten([*args, *kwargs.values()]) if isinstance(value, Tensor)]
        if not any(tensor.is_cuda and is_unknown(tensor) for tensor in tensors):
            return function(*args, **kwargs)
        if by_rule is not None:
            return by_rule(*args, **kwargs)
        before, shapes_only.active = shapes_only.active, True
        try:
            return function(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, DryRunError):
                raise
            raise dry_values.refuse(f"aten::{name}", f"its rule asks for values ({error})") from error
        finally:
            shapes_only.active = before

    return special_kernel


# ---------------------------------------------------------------- memory
def empty(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: bool | None = None,
          memory_format: Any = None) -> Tensor:  # fmt: skip
    """aten::empty.memory_format."""
    if pin_memory:
        raise RuntimeError("Only dense CPU tensors can be pinned")
    with _C.DisableTorchFunction():
        index = factory_device(device, ())
        dtype = torch.get_default_dtype() if dtype is None else dtype
        shape = _functions.empty(size, dtype=dtype, memory_format=memory_format, device=meta_device)
        return _make_empty(shape.shape, shape.stride(), dtype, index)


def empty_strided(size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
                  pin_memory: bool | None = None) -> Tensor:  # fmt: skip
    """aten::empty_strided."""
    if pin_memory:
        raise RuntimeError("Only dense CPU tensors can be pinned")
    with _C.DisableTorchFunction():
        index = factory_device(device, ())
        return _make_empty(size, stride, torch.get_default_dtype() if dtype is None else dtype, index)


def _make_empty(size: Any, stride: Any, dtype: torch.dtype, index: int) -> Tensor:
    if may_be_known(dtype, dry.extent(size, stride) * dtype.itemsize):
        return dry.to_cuda(_functions.empty_strided(size, stride, dtype=dtype), index)
    return dry.make_unknown(size, stride, dtype, index)


def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """aten::copy_ between devices, and between host and device."""
    with _C.DisableTorchFunction():
        unknown = [tensor.is_cuda and is_unknown(tensor) or tensor.is_meta for tensor in (target, source)]
        if not any(unknown):
            _copy(dry.to_host(target), dry.to_host(source))
        else:
            # Shapes that do not fit raise here.
            _copy(_shape_of(target), _shape_of(source))
            if target.is_cuda:
                forget_values(target)
            elif target.device.type == "cpu":
                dry_values.fill_host(target, source)
    device = target.get_device() if target.is_cuda else source.get_device()
    if not target.is_cuda and not non_blocking:
        refuse_while_capturing()
        if BindingState.sync_debug_mode:
            warn_of_synchronising()
    record("copy_", (target, source, non_blocking), {}, target, device)
    return target


def _shape_of(tensor: Tensor) -> Tensor:
    return _functions.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=meta_device)


def local_scalar_dense(tensor: Tensor) -> Any:
    """What .item() asks for."""
    refuse_while_capturing()
    if BindingState.sync_debug_mode:
        warn_of_synchronising()
    with _C.DisableTorchFunction():
        value = dry_values.scalar_of(tensor) if is_unknown(tensor) else dry.make_twin(tensor).item()
    record("_local_scalar_dense", (tensor,), {}, None, tensor.get_device())
    return value


def is_nonzero(tensor: Tensor) -> bool:
    """aten::is_nonzero, which CUDA composes of item."""
    if tensor.numel() == 1 and is_unknown(tensor):
        return dry_values.is_nonzero(tensor)
    if tensor.numel() == 0:
        raise RuntimeError("Boolean value of Tensor with no values is ambiguous")
    if tensor.numel() > 1:
        raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")
    return bool(torch.ops.aten._local_scalar_dense(tensor))


# ---------------------------------------------------------------- values that may be taken for granted
def _healthy(name: str, answer: bool) -> Callable[..., Any]:
    """isnan and its kin: a dry run takes its numbers for finite ones."""
    general = make_entry(name) if name != "isfinite" else None

    def kernel(tensor: Tensor) -> Any:
        unknown = tensor.is_cuda and is_unknown(tensor)
        if general is not None and (not unknown or not may_be_known(torch.bool, tensor.numel())):
            return general(tensor)
        if general is None and not unknown:
            return torch.ops.aten.isfinite.default.decompose(tensor)
        index = tensor.get_device()
        host = _functions.full(tensor.shape, answer, dtype=torch.bool)
        result = dry.to_cuda(host, index)
        record(name if general is not None else "isnan", (tensor,), {}, result, index)
        return result

    return kernel


def check_errors(info: Tensor, api_name: str, *, is_matrix: bool) -> None:
    """aten::_linalg_check_errors: a decomposition of unknown numbers is taken to succeed."""
    if is_unknown(info):
        return
    torch.ops.aten._linalg_check_errors.default.redispatch(
        _C.DispatchKeySet(_C.DispatchKey.CompositeExplicitAutograd), info, api_name, is_matrix=is_matrix
    )


def check_and_unscale(grads: Any, found_inf: Tensor, inv_scale: Tensor) -> None:
    """aten::_amp_foreach_non_finite_check_and_unscale_: nothing infinite is found."""
    index = grads[0].get_device() if len(grads) else 0
    for tensor in grads:
        forget_values(tensor)
    record("_amp_foreach_non_finite_check_and_unscale_", (grads, found_inf, inv_scale), {}, None, index)


def find_differing(name: str) -> Callable[..., Any]:
    """equal: whether two tensors are the same, which only values tell."""
    general = make_entry(name)

    def kernel(first: Tensor, second: Tensor) -> Any:
        if find_devices((first, second)) and any(tensor.is_cuda and is_unknown(tensor) for tensor in (first, second)):
            value = dry_values.substitute()
            if value is None:
                raise dry_values.refuse(f"aten::{name}", "the program compares tensors by value")
            return bool(value)
        return general(first, second)

    return kernel


KERNELS: dict[str, Callable[..., Any]] = {
    "empty.memory_format": empty,
    "empty_strided": empty_strided,
    "copy_": copy_,
    "_local_scalar_dense": local_scalar_dense,
    "is_nonzero": is_nonzero,
    "isnan": _healthy("isnan", False),
    "isinf": _healthy("isinf", False),
    "isfinite": _healthy("isfinite", True),
    "equal": find_differing("equal"),
    "_linalg_check_errors": check_errors,
    "_amp_foreach_non_finite_check_and_unscale_": check_and_unscale,
}
# Kernels of operators that PyTorch composes of others, registered above autograd.
COMPOSITES = ("is_nonzero", "isfinite")
# Operators of the storage family that look at sizes only and do as in an ordinary run.
AS_EVER = frozenset(("as_strided_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor",
                     "set_", "resize_", "_efficientzerotensor", "record_stream", "_use_cudnn_ctc_loss",
                     "_use_cudnn_ctc_loss.Tensor", "_use_miopen_ctc_loss", "_use_miopen_ctc_loss.Tensor",
                     "_cudnn_rnn_flatten_weight", "_cudnn_init_dropout_state"))  # fmt: skip
