"""A Triton kernel's arguments: its signature and PTX parameters in, the bytes of the parameter buffer out.

Triton's own launcher is C code that it compiles for CUDA; this does the same by its rules: constexpr arguments are left
out, tuples laid out flat, numbers narrowed to the signature's types, tensor descriptors expanded into a tensor map (or
a base pointer) with sizes and strides, and two pointers to scratch memory put at the end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from weft.errors import WeftError
from weft.frontends.triton.tensors import TensorRanges
from weft.ptx.module import Param
from weft.runtime.arguments import describe_param

Converter = Callable[[Any], Any]

# Triton's scalar types -> code of struct.
_CODES = {
    "i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q",
    "u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q",
    "fp16": "H", "bf16": "H", "fp32": "I", "f32": "I", "fp64": "d",
}  # fmt: skip
TENSOR_MAP = "nvTmaDesc"
_TENSOR_MAP_BYTES = 128
_DESCRIPTOR = re.compile(r"tensordesc(?:_im2col)?<([^\[>]*)\[([^\]]*)\]")
_DESCRIPTOR_RANK = re.compile(r",input_rank=(\d+)")


# ---------------------------------------------------------------- numbers
def _pack_f32(value: Any) -> int:
    with np.errstate(over="ignore"):
        return int(np.float32(value).view(np.uint32))


def _pack_f16(value: Any) -> int:
    return struct.unpack("<H", struct.pack("<e", float(value)))[0]


def _pack_bf16(value: Any) -> int:
    # Triton drops the low half of the f32 instead of rounding.
    return _pack_f32(value) >> 16


_NUMBERS: dict[str, Converter] = {
    "fp16": _pack_f16, "bf16": _pack_bf16, "fp32": _pack_f32, "f32": _pack_f32, "fp64": float,
}  # fmt: skip


def _identity(value: Any) -> Any:
    return value


# ---------------------------------------------------------------- signatures
def parse_descriptor(text: str) -> tuple[str, int]:
    """(element type, rank of the tensor) of a descriptor's type such as "tensordesc<fp16[64, 32]>"."""
    found = _DESCRIPTOR.match(text)
    assert found, f"malformed tensor descriptor type {text}"
    rank = _DESCRIPTOR_RANK.search(text)
    return found[1], int(rank[1]) if rank else found[2].count(",") + 1


def is_descriptor(kind: Any) -> bool:
    """Whether a signature's entry is a tensor descriptor that the host makes."""
    return isinstance(kind, str) and kind.startswith("tensordesc")


def flatten(kinds: Sequence[Any], values: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[str, Any, str]]:
    """(type, value, name) of every argument that the kernel takes, tuples laid out flat."""
    for kind, value, name in zip(kinds, values, names):
        if isinstance(kind, tuple):
            yield from flatten(kind, value, [f"{name}[{i}]" for i in range(len(kind))])
        elif kind != "constexpr":
            yield kind, value, name


def flat_kinds(kinds: Sequence[Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """(type, name) of every argument that the kernel takes."""
    found: list[tuple[str, str]] = []
    for kind, name in zip(kinds, names):
        if isinstance(kind, tuple):
            found += flat_kinds(kind, [f"{name}[{i}]" for i in range(len(kind))])
        elif kind != "constexpr":
            found.append((kind, name))
    return found


class TritonArguments:
    """What PreparedLaunch needs of a packer (`pack`), for one compiled Triton kernel.

    kinds: the signature's types in order, "constexpr" among them, tuples nested. descriptors: Triton's metadata of the
    tensor descriptors, one per descriptor, or nothing where they are taken apart into a pointer and numbers.
    """

    def __init__(self, kernel: str, params: Sequence[Param], kinds: Sequence[Any], names: Sequence[str],
                 descriptors: Sequence[dict] | None, ranges: TensorRanges):  # fmt: skip
        self.kernel, self.params, self.ranges = kernel, tuple(params), ranges
        self.kinds, self.names = tuple(kinds), tuple(names)
        self.descriptors = list(descriptors or ())
        self.count = len(params)
        self.scratch = (0, 0)
        self._flags = 0
        self._nested = any(isinstance(kind, tuple) or is_descriptor(kind) for kind in self.kinds)
        parts = self._expanded_kinds()
        self._converters = [self._converter(kind) for kind, _ in parts]
        self._part_names = [name for _, name in parts]
        self._taken = [i for i, kind in enumerate(self.kinds) if kind != "constexpr"]
        self._scratch_count = self.count - len(parts)
        assert 0 <= self._scratch_count <= 2, (kernel, [str(p.type) for p in params], parts)
        layout, at = "<", 0
        for param, (kind, _) in zip(self.params, [*parts, ("*i8", ""), ("*i8", "")]):
            code = "Q" if kind[0] == "*" else f"{_TENSOR_MAP_BYTES}s" if kind == TENSOR_MAP else _CODES[kind]
            assert struct.calcsize(f"<{code}") == param.size, (kernel, param, kind)
            layout += f"{param.offset - at}x" if param.offset > at else ""
            layout += code
            at = param.offset + param.size
        self._struct = struct.Struct(layout)
        self._pack_into = self._struct.pack_into
        self.size = self._struct.size

    def describe(self) -> str:
        return ", ".join(describe_param(param) for param in self.params)

    def _expanded_kinds(self) -> list[tuple[str, str]]:
        parts: list[tuple[str, str]] = []
        for kind, name in flat_kinds(self.kinds, self.names):
            if not is_descriptor(kind):
                parts.append((kind, name))
                continue
            element, rank = parse_descriptor(kind)
            if self.descriptors:
                parts.append((TENSOR_MAP, name))
            else:
                flags = self._flags = self._flag_count()
                parts += [(f"*{element}", name), *[("i64", name)] * (2 * rank), *[("i1", name)] * flags]
            parts += [("i32", name)] * rank + [("i64", name)] * rank
        return parts

    def _flag_count(self) -> int:
        """How many flags (padding with NaN, rounding to tf32) follow the strides of a descriptor that is taken apart:
        Triton has added them one by one, and only the number of its one-byte parameters tells."""
        kinds = [kind for kind, _ in flat_kinds(self.kinds, self.names)]
        count = sum(map(is_descriptor, kinds))
        flags = sum(param.size == 1 for param in self.params) - sum(_CODES.get(kind) in ("b", "B") for kind in kinds)
        assert flags % count == 0, (self.kernel, kinds, self.params)
        return flags // count

    def _converter(self, kind: str) -> Converter:
        if kind[0] == "*":
            return self.ranges.address_of
        return _NUMBERS.get(kind, _identity)

    # ------------------------------------------------------------ packing
    def pack(self, buffer: memoryview, args: tuple) -> None:
        """Writes the arguments of one launch, as Triton hands them over, constexpr ones among them.

        Raises TypeError, OverflowError, ValueError or InvalidDevicePointerError with the argument's name.
        """
        if self._nested:
            args = tuple(self._expanded(args))
        else:
            args = tuple([args[i] for i in self._taken])
        try:
            values = [convert(value) for convert, value in zip(self._converters, args)]
            self._pack_into(buffer, 0, *values, *self.scratch[: self._scratch_count])
        except (TypeError, OverflowError, ValueError, struct.error, WeftError) as error:
            raise self._locate(args, error) from None

    def _expanded(self, args: tuple) -> Iterator[Any]:
        made = 0
        for kind, value, _ in flatten(self.kinds, args, self.names):
            if not is_descriptor(kind):
                yield value
                continue
            if self.descriptors:
                yield self._tensor_map(value, self.descriptors[made])
                made += 1
            else:
                flags = (getattr(value, "padding", "zero") == "nan", bool(getattr(value, "round_f32_to_tf32", False)))
                yield from (value.base, *value.shape, *value.strides, *flags[: self._flags])
            yield from (*value.shape, *value.strides)

    def _tensor_map(self, descriptor: Any, metadata: dict) -> bytes:
        from weft.frontends.triton.descriptors import make_tensor_map

        return make_tensor_map(descriptor, metadata, self.ranges.address_of(descriptor.base))

    def _locate(self, args: tuple, error: Exception) -> Exception:
        """The same error with the argument's name in front."""
        for convert, value, name, param in zip(self._converters, args, self._part_names, self.params):
            try:
                number, bits = convert(value), 8 * param.size
                if not isinstance(number, (int, float, bytes)) and not hasattr(number, "__index__"):
                    raise TypeError(f"expected a number, found {type(value).__name__} {value!r}"[:120])
                if isinstance(number, int) and not -(1 << bits - 1) <= number < 1 << bits:
                    raise OverflowError(f"{number} does not fit {bits} bits")
            except WeftError as found:
                text = str(found).removeprefix(f"{getattr(found, 'name', '')}: ")
                return type(found)(f"kernel {self.kernel}, argument {name}: {text}")
            except (TypeError, OverflowError, ValueError) as found:
                return type(found)(f"kernel {self.kernel}, argument {name}: {found}")
        if isinstance(error, struct.error):
            return OverflowError(f"kernel {self.kernel}: {error}")
        return error
