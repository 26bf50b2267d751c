"""torch.cuda.FloatTensor and its kin: types of old programs, which stand for a data type on the current GPU."""

from __future__ import annotations

from typing import Any

import torch

_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
    "Bool": torch.bool,
}  # fmt: skip


class _TensorType(type):
    """The class of these types: isinstance looks at device and data type."""

    dtype: Any

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, torch.Tensor) and instance.is_cuda and instance.dtype is cls.dtype

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """A tensor of sizes (uninitialised), of a sequence, or of another tensor."""
        device = kwargs.pop("device", "cuda")
        if not args:
            return torch.empty(0, dtype=cls.dtype, device=device)
        if isinstance(args[0], (int, torch.Size)):
            return torch.empty(*args, dtype=cls.dtype, device=device)
        if isinstance(args[0], torch.Tensor):
            return args[0].to(device=device, dtype=cls.dtype)
        return torch.tensor(args[0], dtype=cls.dtype, device=device)


def _make_type(name: str, dtype: Any) -> Any:
    full = f"torch.cuda.{name}Tensor"
    return _TensorType(full, (), {
        "dtype": dtype, "is_cuda": True, "is_sparse": False, "layout": torch.strided, "__module__": "torch.cuda",
    })  # fmt: skip


def add_tensor_types() -> None:
    """Puts the types into torch.cuda."""
    for name, dtype in _DTYPES.items():
        made = _make_type(name, dtype)
        setattr(torch.cuda, f"{name}Tensor", made)
        torch._tensor_classes.add(made)
