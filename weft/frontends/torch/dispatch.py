"""Kernels for the CUDA dispatch key: an operator's schema in, a Python function out that computes it with CPU kernels.

A function is written as source text for its schema when the operator is first called: host twins of the arguments,
the CPU operator, CUDA tensors on the memory of the results, a word to the recorder. Written out like this it takes
three to four microseconds, a tenth of what a general function needs that looks at each argument.
"""

from __future__ import annotations

import keyword
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from weft.frontends.torch import gpus as gpus_module
from weft.frontends.torch.devicecheck import check_same_device, host_of, hosts_of, refuse_mixed, without_modes
from weft.frontends.torch.gpus import StreamState, current_stream
from weft.frontends.torch.layout import dlpack_cuda, word_at
from weft.frontends.torch.operators import alerts, precision, refusals
from weft.frontends.torch.operators.modes import refresh
from weft.frontends.torch.operators.overlap import WHOLE, refuse_overlap
from weft.frontends.torch.recording import recorder
from weft.frontends.torch.retry import retry
from weft.frontends.torch.tensors import (
    adopt_result,
    cpu_device,
    export,
    out_twin,
    settle_conjugate,
    take_in,
    to_cuda,
    to_cuda_anything,
)
from weft.model.operators import MULTIPLYING, needs_of
from weft.timeline import KEPT_RECORDS

_C = torch._C

# Python's own bindings parse arguments faster than the operator objects do, by half a microsecond. The signatures of
# these are the operators'; the sweep over PyTorch's database (tests/torch_opinfo.py) runs them all.
_QUICK: tuple[tuple[Any, frozenset[str]], ...] = (
    (_C._VariableFunctions, frozenset("""
        add.Tensor sub.Tensor mul.Tensor div.Tensor mm bmm addmm baddbmm dot mv relu sigmoid tanh exp log sqrt rsqrt neg
        abs sin cos erf floor ceil sign log2 log1p expm1 reciprocal eq.Tensor ne.Tensor lt.Tensor gt.Tensor le.Tensor
        ge.Tensor eq.Scalar ne.Scalar lt.Scalar gt.Scalar le.Scalar ge.Scalar pow.Tensor_Scalar pow.Tensor_Tensor
        where.self maximum minimum logical_not isnan _softmax _log_softmax _softmax_backward_data
        _log_softmax_backward_data native_layer_norm embedding convolution native_batch_norm cat sum.dim_IntList sum
        mean mean.dim index_select gather cumsum argmax masked_fill.Scalar clamp clamp_min any all tril triu index_put_
        floor_divide remainder.Tensor bitwise_and.Tensor bitwise_or.Tensor bitwise_not logical_and zero_ fill_.Scalar
        sqrt_ clamp_ relu_ neg_
    """.split())),
    (_C._nn, frozenset("gelu silu hardtanh leaky_relu elu softplus".split())),
    (_C.TensorBase, frozenset("""
        add_.Tensor sub_.Tensor mul_.Tensor div_.Tensor addcmul_ addcdiv_ lerp_.Scalar masked_fill_.Scalar pow_.Scalar
        normal_ uniform_ scatter_add_ index_add_
    """.split())),
)  # fmt: skip

# Their results on the CPU may be conjugate views, which DLPack would take for plain memory.
LAZY_RESULTS = frozenset(("linalg_lu_solve", "linalg_lu_solve.out"))

_TENSOR_KINDS = {
    "Tensor": "one", "Optional[Tensor]": "optional", "List[Tensor]": "many", "List[Optional[Tensor]]": "many",
}  # fmt: skip


class Entry:
    """An operator with a kernel of ours: name as "add.Tensor", and the function that the dispatcher calls."""

    __slots__ = ("function", "name", "number", "source")

    def __init__(self, name: str, number: int):
        self.name, self.number = name, number
        self.function: Any = None
        self.source = ""


entries: dict[str, Entry] = {}


def find_operator(name: str, library: str = "aten") -> Any:
    """The OpOverload of a name such as "add.Tensor" or "relu"."""
    base, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, library), base), overload or "default")


def _choose_function(name: str, operator: Any) -> Any:
    own = precision.choose_function(name)
    if own is not None:
        return own
    base = name.partition(".")[0]
    for owner, names in _QUICK:
        if name in names:
            return getattr(owner, base)
    return operator._op


# ---------------------------------------------------------------- the source of a kernel
class _Writer:
    """Collects the lines of one function, and the objects that it needs under names of its own."""

    def __init__(self, entry: Entry, namespace: dict[str, Any]):
        self.suffix, self.namespace = f"_{entry.number}", namespace
        self.lines: list[str] = []

    def constant(self, name: str, value: Any) -> str:
        self.namespace[name + self.suffix] = value
        return name + self.suffix

    def write(self, *lines: str) -> None:
        self.lines.extend("    " + line for line in lines)


def _kind_of(argument: Any) -> str:
    text = str(argument.type)
    if text in _TENSOR_KINDS:
        return _TENSOR_KINDS[text]
    if text in ("Device", "Optional[Device]", "device", "Optional[device]"):
        return "device"
    if "Generator" in text:
        return "generator"
    if argument.name == "pin_memory":
        return "pinned"
    return ""


def _returned_argument(schema: Any, result: Any) -> Any:
    """The argument that a result is (in place and out= forms), None for a new tensor."""
    alias = result.alias_info
    if alias is None or not alias.is_write:
        return None
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.before_set == alias.before_set:
            return argument
    return None


def write_kernel(entry: Entry, operator: Any, namespace: dict[str, Any], devices: int) -> str:
    """The source of an operator's kernel. Its constants go into `namespace`.

    devices: how many GPUs there are; with one, nothing asks which a tensor is on.
    """
    schema = operator._schema
    out = _Writer(entry, namespace)
    name = repr(entry.name)
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    special = [place for place, argument in enumerate(positional) if _kind_of(argument)]
    named = positional[: special[-1] + 1] if special else []
    extra = len(positional) > len(named)
    keywords = [argument for argument in schema.arguments if argument.kwarg_only]
    others = [argument for argument in keywords if not _kind_of(argument)]
    own = [argument for argument in keywords if _kind_of(argument)]

    variable = {argument.name: f"a{place}" for place, argument in enumerate(named)}
    for argument in own:
        variable[argument.name] = argument.name + ("_" if keyword.iskeyword(argument.name) else "")
    parameters: list[str] = []
    for argument in named:
        default = ""
        if argument.has_default_value():
            default = "=" + out.constant(f"D{len(parameters)}", argument.default_value)
        parameters.append(variable[argument.name] + default)
    if extra:
        parameters.append("*rest")
    elif own:
        parameters.append("*")
    for argument in own:
        parameters.append(variable[argument.name] + ("=None" if argument.has_default_value() else ""))
    if others:
        parameters.append("**kw")
    tensors = [argument for argument in (*named, *own) if _kind_of(argument) in ("one", "optional", "many")]
    seen = "(" + "".join(f"{variable[argument.name]}, " for argument in tensors) + ")"
    recorded = "(" + "".join(f"{variable[argument.name]}, " for argument in named) + ("*rest,)" if extra else ")")
    keyword_values = "{" + "".join(f"{argument.name!r}: {variable[argument.name]}, " for argument in own)
    keyword_values += "**kw}" if others else "}"
    function = f"kernel{out.suffix}"
    out.write("if depth():", f"    return without_modes({function}, {recorded}, {keyword_values})")

    device_argument = next((argument for argument in (*named, *own) if _kind_of(argument) == "device"), None)
    if device_argument is not None:
        out.write(f"d = factory_device({variable[device_argument.name]}, {seen})")
    elif devices > 1:
        out.write(f"d = check_same_device({name}, {seen})")
    index = "d" if devices > 1 or device_argument is not None else "0"

    if tensors:
        out.write(*refusals.check_lines(entry.name, variable[tensors[0].name]))
    out.write(*alerts.check_lines(entry.name))
    inputs = "(" + "".join(f"{variable[argument.name]}, " for argument in tensors if not argument.is_out) + ")"
    whole = entry.name.partition(".")[0] in WHOLE

    call = []
    for argument in (*named, *own):
        kind, var = _kind_of(argument), variable[argument.name]
        label = f"{argument.name}=" if argument.kwarg_only else ""
        host = f"h_{var}"
        if argument.is_out and kind == "one":
            out.write(f"refuse_overlap({var}, {inputs}, {whole})", f"{host} = out_twin({var})")
        elif argument.is_out and kind == "many":
            out.write(f"for t in {var}:", f"    refuse_overlap(t, {inputs}, {whole})")
            out.write(f"{host} = [out_twin(t) for t in {var}]")
        elif kind == "one" and argument.name == "other":
            # Numbers arrive as they are.
            out.write(f"if type({var}) is float or type({var}) is int:", f"    {host} = {var}", "else:")
            out.write(f"    {host} = getattr({var}, '_weft', None)", f"    if {host} is None:")
            out.write(f"        {host} = host_of({var}, {name}, {argument.name!r}, {seen})")
        elif kind == "one":
            # Views have no twin yet, and an AttributeError takes eight times as long as this answer.
            out.write(f"{host} = getattr({var}, '_weft', None)", f"if {host} is None:")
            out.write(f"    {host} = host_of({var}, {name}, {argument.name!r}, {seen})")
        elif kind == "optional":
            out.write(f"{host} = getattr({var}, '_weft', None)", f"if {host} is None and {var} is not None:")
            out.write(f"    {host} = host_of({var}, {name}, {argument.name!r}, {seen})")
        elif kind == "many":
            out.write(f"{host} = hosts_of({var}, {name}, {argument.name!r}, {seen})")
        elif kind == "device":
            host = "cpu_device"
        elif kind == "pinned":
            host = "False"
        elif kind == "generator":
            out.write(f"{host} = host_generator({var}, {index})")
        else:
            host = var
        call.append(label + host)
    if extra:
        place = sum(1 for text in call if "=" not in text)
        call.insert(place, "*rest")
    if others:
        call.append("**kw")
    cpu = out.constant("F", _choose_function(entry.name, operator))
    arguments = ", ".join(call)
    out.write("try:", f"    r = {cpu}({arguments})", "except RuntimeError as error:")
    out.write(f"    r = retry(error, {out.constant('O', operator)}, {index}, {arguments})")

    targets = [_returned_argument(schema, result) for result in schema.returns]
    if not targets:
        _write_in_place(out, tensors, variable)
        out.write("e = None")
    elif len(targets) == 1 and targets[0] is not None:
        var = variable[targets[0].name]
        if targets[0].is_out:
            out.write(f"if h_{var}.shape != {var}.shape:", f"    adopt_result({var}, h_{var})")
        if entry.name in LAZY_RESULTS:
            out.write(f"settle_conjugate({var}, h_{var})")
        out.write(f"e = {var}")
    elif entry.name in LAZY_RESULTS and targets[0] is None:
        out.write(f"e = to_cuda(r, {index})")
    elif len(targets) == 1 and str(schema.returns[0].type) == "Tensor":
        _write_adoption(out, index, devices)
    elif len(targets) == 1:
        out.write(f"e = to_cuda_anything(r, {index})")
    else:
        parts = []
        for place, target in enumerate(targets):
            if target is None:
                parts.append(f"to_cuda_anything(r[{place}], {index})")
            else:
                var = variable[target.name]
                if target.is_out:
                    out.write(f"if h_{var}.shape != {var}.shape:", f"    adopt_result({var}, h_{var})")
                parts.append(var)
        out.write(f"e = ({', '.join(parts)})")
    _write_record(out, entry, (*named, *own), variable, f"{recorded}, e, {keyword_values}", index, extra, bool(others))
    out.write("return e")
    return f"def {function}({', '.join(parameters)}):\n" + "\n".join(out.lines) + "\n"


def _write_in_place(out: _Writer, tensors: list[Any], variable: dict[str, str]) -> None:
    """For operators that return nothing: out= lists may have been resized."""
    for argument in tensors:
        if argument.is_out and _kind_of(argument) == "many":
            var = variable[argument.name]
            out.write(f"for t, h in zip({var}, h_{var}):")
            out.write("    if t.shape != h.shape:", "        adopt_result(t, h)")


def _write_adoption(out: _Writer, index: str, devices: int) -> None:
    """What to_cuda does, in line."""
    device = str(dlpack_cuda(0)) if index == "0" else "dlpack_cuda(d)"
    allocate = "allocate_0" if index == "0" else "gpus[d].allocator.allocate"
    out.write(
        "try:",
        "    c = export(r)",
        "except Exception:",
        f"    e = to_cuda(r, {index})",
        "else:",
        f"    word_at(word_at(id(c) + 16).value + 8).value = {device}",
        "    e = take_in(c)",
        "    s = e.untyped_storage()",
        "    n = s.nbytes()",
        "    if n:",
        f"        s._weft = {allocate}(n, current_stream({index})) if StreamState.used else {allocate}(n)",
        "    e._weft = r",
    )


def _write_record(out: _Writer, entry: Entry, arguments: tuple, variable: dict[str, str], told: str, index: str,
                  extra: bool, others: bool) -> None:  # fmt: skip
    """A word to the recorder. Where only the timeline listens and shapes and data types of tensors say all, the kernel
    looks up by them what it has to append to the log: half a microsecond instead of more than one."""
    stream = f"current_stream({index}) if StreamState.used else 0"
    tell = f"recorder.sink({entry.name!r}, {told}, {stream}, {index})"
    needs = needs_of(entry.name)
    kinds = [_kind_of(argument) for argument in arguments]
    plain = index == "0" and set(kinds) == {"one"} and not (needs.outputs or needs.strides or needs.transfers)
    if not plain or (needs.family in MULTIPLYING and needs.family != "gemm"):
        out.write("if recorder.sink is not None:", f"    {tell}")
        return
    unusual = ["t is None", "StreamState.used", *["rest"] * extra, *["kw"] * others]
    other = next((variable[argument.name] for argument in arguments if argument.name == "other"), None)
    if other is not None:
        unusual.append(f"type({other}) is int")
    out.write("t = recorder.timeline", f"if {' or '.join(unusual)}:")
    out.write("    if recorder.sink is not None:", f"        {tell}")
    if needs.free:
        return
    parts = [str(entry.number)]
    for argument in arguments:
        parts += [f"{variable[argument.name]}.{part}" for part in ("shape", "dtype")]
    if needs.family == "gemm":
        parts.append("precision_of('cuda', 'matmul')")
    key = f"k = ({', '.join(parts)})"
    if other is not None:
        # Floating-point numbers cost nothing, whichever they are.
        without = ", ".join(part for part in parts if not part.startswith(f"{other}."))
        key = f"k = ({without}, float) if type({other}) is float else ({', '.join(parts)})"
    out.write("else:", "    try:", f"        {key}", "    except AttributeError:  # a number in a tensor's place")
    out.write(f"        {tell}", "    else:", "        n = t.records.get(k)", "        if n is None:")
    out.write(f"            n = t.remember(k, {entry.name!r}, {told})", "        t._append(n)")
    out.write("        if len(t._log) > KEPT_RECORDS:", "            t.settle()")


# ---------------------------------------------------------------- kernels that are written when they are first called
def _specialise(*args: Any, _entry: Entry, **kwargs: Any) -> Any:
    """Stands in for every kernel until its first call, then becomes it."""
    specialise_entry(_entry)
    return _entry.function(*args, **kwargs)


def specialise_entry(entry: Entry) -> None:
    """Writes an operator's kernel and puts its code into the function that the dispatcher has."""
    operator = find_operator(entry.name)
    entry.source = write_kernel(entry, operator, namespace, len(gpus_module.gpus))
    # A file name below the package, so that Dynamo leaves the kernel alone.
    exec(compile(entry.source, str(Path(__file__).parent / "kernels" / entry.name), "exec"), namespace)
    written = namespace[f"kernel_{entry.number}"]
    function = entry.function
    function.__defaults__, function.__kwdefaults__ = written.__defaults__, written.__kwdefaults__
    function.__code__ = written.__code__


def forget_kernels(names: Iterable[str] | None = None) -> None:
    """Lets kernels (all, or those of some operators) be written again at their next call, for the GPUs and the switches
    that there are now."""
    namespace["allocate_0"] = gpus_module.gpus[0].allocator.allocate
    if names is None:
        refresh()
    for entry in entries.values() if names is None else [entries[name] for name in names if name in entries]:
        function = entry.function
        function.__defaults__, function.__kwdefaults__ = None, {"_entry": entry}
        function.__code__ = _specialise.__code__


namespace: dict[str, Any] = {
    "specialise_entry": specialise_entry, "without_modes": without_modes, "depth": _C._len_torch_function_stack,
    "export": export, "take_in": take_in, "word_at": word_at, "dlpack_cuda": dlpack_cuda, "to_cuda": to_cuda,
    "StreamState": StreamState, "current_stream": current_stream, "recorder": recorder, "adopt_result": adopt_result,
    "to_cuda_anything": to_cuda_anything, "cpu_device": cpu_device, "out_twin": out_twin,
    "host_of": host_of, "hosts_of": hosts_of, "check_same_device": check_same_device, "retry": retry,
    "gpus": gpus_module.gpus, "refuse_mixed": refuse_mixed, "refused_types": refusals.REFUSED,
    "KEPT_RECORDS": KEPT_RECORDS,
    "precision_of": _C._get_fp32_precision_getter,
    "refuse_type": refusals.refuse_type, "refuse_dims": refusals.refuse_dims, "raise_alert": alerts.raise_alert,
    "refuse_overlap": refuse_overlap, "settle_conjugate": settle_conjugate,
}  # fmt: skip


def make_entry(name: str) -> Any:
    """The function to register for an operator; its kernel is written when it is first called."""
    entry = entries[name] = Entry(name, len(entries))
    function = types.FunctionType(_specialise.__code__, namespace, f"kernel_{entry.number}")
    function.__kwdefaults__ = {"_entry": entry}
    entry.function = function
    return function
