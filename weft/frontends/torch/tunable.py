"""torch.cuda.tunable: the settings of PyTorch's choice among GEMM kernels, kept as they were given.

A virtual GPU has one implementation of a GEMM, so nothing is tuned and no result is ever found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


class Tuning:
    """What the functions set and get, with PyTorch's defaults. duration in ms; buffer in bytes, -1: as large as L2."""

    enabled = os.environ.get("PYTORCH_TUNABLEOP_ENABLED") == "1"
    tuning = True
    record_untuned = False
    duration = 30
    iterations = 100
    filename = "tunableop_results.csv"
    buffer = -1


def _setter(field: str, kind: type) -> Any:
    def set_value(value: Any) -> None:
        setattr(Tuning, field, kind(value))

    return set_value


def _getter(field: str) -> Any:
    def get_value() -> Any:
        return getattr(Tuning, field)

    return get_value


def set_filename(filename: str, insert_device_ordinal: bool = False) -> None:
    path = Path(filename)
    index = torch._C._accelerator_getDeviceIndex()
    Tuning.filename = str(path.with_name(f"{path.stem}{index}{path.suffix}")) if insert_device_ordinal else filename


def get_results() -> tuple[()]:
    return ()


def get_validators() -> tuple[tuple[str, str], ...]:
    return (("PT_VERSION", torch.__version__.partition("+")[0]),)


def read_file(filename: str | None = None) -> bool:
    """Whether the file could be read; its results are for kernels that are not here."""
    return Path(filename or Tuning.filename).is_file()


def set_tolerances(enable: bool, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    """There is nothing to compare."""


FUNCTIONS = {
    "_cuda_tunableop_enable": _setter("enabled", bool), "_cuda_tunableop_is_enabled": _getter("enabled"),
    "_cuda_tunableop_tuning_enable": _setter("tuning", bool),
    "_cuda_tunableop_tuning_is_enabled": _getter("tuning"),
    "_cuda_record_untuned_enable": _setter("record_untuned", bool),
    "_cuda_record_untuned_is_enabled": _getter("record_untuned"),
    "_cuda_tunableop_set_max_tuning_duration": _setter("duration", int),
    "_cuda_tunableop_get_max_tuning_duration": _getter("duration"),
    "_cuda_tunableop_set_max_tuning_iterations": _setter("iterations", int),
    "_cuda_tunableop_get_max_tuning_iterations": _getter("iterations"),
    "_cuda_tunableop_set_filename": set_filename, "_cuda_tunableop_get_filename": _getter("filename"),
    "_cuda_tunableop_get_results": get_results, "_cuda_tunableop_get_validators": get_validators,
    "_cuda_tunableop_read_file": read_file, "_cuda_tunableop_set_rotating_buffer_size": _setter("buffer", int),
    "_cuda_tunableop_get_rotating_buffer_size": _getter("buffer"),
    "_cuda_tunableop_set_numerical_check_tolerances": set_tolerances,
}  # fmt: skip
