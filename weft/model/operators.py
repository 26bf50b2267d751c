"""What each operator of PyTorch would launch on a GPU: a Call in, Profiles out, through one registry.

The rules stand in weft/model/families, one file per group of families, and register themselves by the operators' base
names ("mm" stands for aten::mm, mm.default and mm.out). A rule sees plain data only (weft.model.work.Call), so meta
tensors and shapes from a file do as well as tensors. An operator without a rule is priced by its bytes, as family
"unknown" with basis "bytes only", and the summary counts it: nothing is silently free.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from weft.model.profile import Profile
from weft.model.work import Call

Pricing = Callable[[Call], "Profile | list[Profile]"]


@dataclass(frozen=True)
class Rule:
    """How one operator is priced.

    family: that of its main kernel. price: Call -> Profiles. free: it launches nothing (views, allocations, questions).
    strides: the order in memory matters. outputs: shapes of results do not follow from the arguments (they depend on
    data, or on defaults). waits: the host needs a result (a count, a truth value) and waits for the device. transfers:
    its first two arguments may lie on different devices.
    """

    family: str
    price: Pricing
    free: bool = False
    strides: bool = False
    outputs: bool = False
    waits: Callable[[Call], bool] | bool = False
    transfers: bool = False
    doc: str = ""


# Families whose f32 kernels may run on tensor cores.
MULTIPLYING = ("gemm", "convolution", "attention", "rnn")
RULES: dict[str, Rule] = {}

# Modules that register rules when they are imported.
_FAMILY_MODULES = ("matrix", "convolution", "attention", "normalisation", "elementwise", "reductions", "movement",
                   "indexing", "recurrent", "ordering", "transforms", "optimisers", "quantised", "free")  # fmt: skip


def rule(family: str, names: Iterable[str] | str, *, strides: bool = False, outputs: bool = False,
         waits: Callable[[Call], bool] | bool = False,
         transfers: bool = False) -> Callable[[Pricing], Pricing]:  # fmt: skip
    """Registers a function as the rule of operators; names may be one text, separated by spaces.

    Fields as in Rule; where the host waits, or strides matter, the results' shapes do too.
    """
    outputs = outputs or strides or waits is not False

    def register(function: Pricing) -> Pricing:
        for name in names.split() if isinstance(names, str) else names:
            assert name not in RULES, f"two rules for {name}"
            doc = (function.__doc__ or "").strip()
            RULES[name] = Rule(family, function, False, strides, outputs, waits, transfers, doc)
        return function

    return register


def launch_nothing(names: str) -> None:
    """Registers operators that launch no kernel."""
    for name in names.split():
        assert name not in RULES, f"two rules for {name}"
        RULES[name] = Rule("copy", lambda call: [], free=True)


def base_name(name: str) -> str:
    """The name without overload, in-place forms' underscore, and the namespace aten: "aten::add_.Tensor" -> "add".

    A name that is registered with its underscore keeps it; operators of other libraries keep their namespace.
    """
    _load()
    space, _, rest = name.rpartition("::")
    base = rest.partition(".")[0]
    prefix = "" if space in ("", "aten") else f"{space}::"
    if prefix + base in RULES:
        return prefix + base
    if base.endswith("_out"):
        base = base[: -len("_out")]
    elif base.endswith("_") and not base.endswith("__"):
        base = base[:-1]
    return prefix + base


_loaded = False


def _load() -> None:
    global _loaded
    if not _loaded:
        _loaded = True
        for name in _FAMILY_MODULES:
            importlib.import_module(f"weft.model.families.{name}")


def price_by_bytes(call: Call) -> list[Profile]:
    """For operators without a rule: every tensor among the arguments is read once, every result written once."""
    reads = sum(operand.nbytes for operand in call.tensors())
    writes = sum(operand.nbytes for operand in call.results())
    return [Profile(call.name, "unknown", bytes_read=reads, bytes_written=writes, basis="bytes only")]


UNKNOWN = Rule("unknown", price_by_bytes, outputs=True)


@cache
def needs_of(name: str) -> Rule:
    """The rule of an operator's name, UNKNOWN where there is none."""
    return RULES.get(base_name(name), UNKNOWN)


def profiles_of(call: Call) -> list[Profile]:
    """What an operator launches. Empty for views and the like; never raises for odd arguments of a known operator: they
    are priced by bytes."""
    found = needs_of(call.name)
    if found.free:
        return []
    try:
        result = found.price(call)
    except (IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return price_by_bytes(call)
    return [result] if isinstance(result, Profile) else result


def waits_for_device(call: Call) -> bool:
    """Whether the host waits for the operator's result before it goes on."""
    found = needs_of(call.name).waits
    return found(call) if callable(found) else found


def covered(name: str) -> bool:
    """Whether an operator has a rule."""
    return needs_of(name) is not UNKNOWN
