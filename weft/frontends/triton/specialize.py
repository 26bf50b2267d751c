"""Arguments that Triton does not know as memory: objects with only __cuda_array_interface__ in, pointers for it out.

Triton takes what has `data_ptr()` and `dtype`. CuPy's and Numba's arrays have neither `data_ptr` nor another way in, so
where Triton refuses an argument, those are wrapped and it is asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from triton.runtime import jit


class InterfaceArray:
    """An object with __cuda_array_interface__ as Triton wants memory: `data_ptr()`, `dtype`, `shape`.

    It keeps the object alive.
    """

    def __init__(self, source: Any):
        self.source = source
        interface = source.__cuda_array_interface__
        self.dtype = np.dtype(interface["typestr"])
        self.shape = tuple(interface["shape"])
        self.__cuda_array_interface__ = interface

    def data_ptr(self) -> int:
        return int(self.__cuda_array_interface__["data"][0])


def _wrap(value: Any) -> Any:
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_wrap, value))
    if hasattr(value, "data_ptr") or not hasattr(value, "__cuda_array_interface__"):
        return value
    return InterfaceArray(value)


def take_interfaces() -> None:
    """Lets kernels that are compiled from now on take objects with __cuda_array_interface__."""
    make_binder = jit.create_function_from_signature
    if getattr(make_binder, "takes_interfaces", False):
        return

    def create_function_from_signature(*args: Any) -> Callable[..., Any]:
        bind = make_binder(*args)

        def bind_interfaces(*values: Any, **options: Any) -> Any:
            try:
                return bind(*values, **options)
            except (TypeError, AttributeError):
                wrapped = tuple(map(_wrap, values))
                named = {name: _wrap(value) for name, value in options.items()}
                if all(map(_same, wrapped, values)) and all(map(_same, named.values(), options.values())):
                    raise
                return bind(*wrapped, **named)

        return bind_interfaces

    create_function_from_signature.takes_interfaces = True  # type: ignore[attr-defined]
    jit.create_function_from_signature = create_function_from_signature


def _same(a: Any, b: Any) -> bool:
    return a is b or isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) and all(map(_same, a, b))
