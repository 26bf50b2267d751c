"""What the environment and the command line choose: read once, asked for with `current`.

| variable | meaning | default |
|---|---|---|
| WEFT_GPU | chip of a Device made without a name | h100 |
| WEFT_THREADS | worker threads | the cores this process may use |
| WEFT_CACHE_DIR | folder of compiled kernels | $XDG_CACHE_HOME/weft, ~/.cache/weft |
| WEFT_TIME_LIMIT | seconds after which a launch is stopped | none |
| WEFT_TARGET | "avx2" leaves out AVX-512 and newer | what the processor has |
| WEFT_DEFERRED_COPIES | "1": asynchronous copies are made by the waits | they are complete when issued |
| WEFT_TRITON_ARCH | architecture that Triton compiles for, as sm_80 | the chip's |
| WEFT_TORCH_HELPER | "0" leaves out the compiled helper of the PyTorch front end | used where it was built |
| WEFT_DRY | "1": PyTorch's CUDA tensors have shapes but no data | they have data |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from weft.errors import InvalidValueError

MAX_THREADS = 1024


@dataclass(frozen=True)
class Settings:
    """time_limit in seconds, None for no limit. seed 0 keeps the order of blocks and warps; target "" is the host.

    report_dir: the folder into which processes that this one starts put their timelines when they end; "" for none.
    torch_helper: whether the compiled helper is used where there is one.
    dry: CUDA tensors have shapes only; dry_value: the number that stands for those that a dry run does not know, None
    where there is none; dry_limit: whether a dry run ends at the chip's capacity, as a real one does.
    """

    gpu: str
    threads: int
    cache_dir: Path
    time_limit: float | None = None
    target: str = ""
    triton_arch: str = ""
    deterministic: bool = False
    seed: int = 0
    deferred_copies: bool = False
    report_dir: str = ""
    torch_helper: bool = True
    dry: bool = False
    dry_value: float | None = None
    dry_limit: bool = False


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from environment variables. Raises InvalidValueError for a value that makes no sense."""
    home_cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = environment.get("WEFT_TARGET", "")
    if target not in ("", "avx2"):
        raise InvalidValueError(f"WEFT_TARGET: found {target!r}, expected 'avx2' or nothing")
    return Settings(
        gpu=environment.get("WEFT_GPU") or "h100",
        threads=_read_threads(environment.get("WEFT_THREADS", "")),
        cache_dir=Path(environment.get("WEFT_CACHE_DIR") or Path(home_cache) / "weft").expanduser(),
        time_limit=_read_seconds(environment.get("WEFT_TIME_LIMIT", "")),
        target=target,
        triton_arch=environment.get("WEFT_TRITON_ARCH", ""),
        deferred_copies=_read_flag("WEFT_DEFERRED_COPIES", environment.get("WEFT_DEFERRED_COPIES", "")),
        torch_helper=_read_flag("WEFT_TORCH_HELPER", environment.get("WEFT_TORCH_HELPER", "1")),
        dry=_read_flag("WEFT_DRY", environment.get("WEFT_DRY", "")),
    )


def _read_threads(text: str) -> int:
    if not text:
        return min(usable_cores(), MAX_THREADS)
    if not text.strip().isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise InvalidValueError(f"WEFT_THREADS: found {text!r}, expected a number from 1 to {MAX_THREADS}")
    return int(text)


def _read_flag(name: str, text: str) -> bool:
    if text not in ("", "0", "1"):
        raise InvalidValueError(f"{name}: found {text!r}, expected 0 or 1")
    return text == "1"


def _read_seconds(text: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise InvalidValueError(f"WEFT_TIME_LIMIT: found {text!r}, expected a positive number of seconds")
    return seconds


_current: Settings | None = None


def current() -> Settings:
    """The process's settings; the environment is read at the first call."""
    global _current
    if _current is None:
        _current = read_settings(os.environ)
    return _current


def configure(**changes) -> Settings:
    """Replaces settings by name, for Devices made from now on. Raises InvalidValueError for an unknown chip or a value
    that makes no sense, TypeError for an unknown setting."""
    global _current
    if "gpu" in changes:
        from weft.chips import find_chip

        find_chip(changes["gpu"])
    if "cache_dir" in changes:
        changes["cache_dir"] = Path(changes["cache_dir"])
    if not 1 <= changes.get("threads", 1) <= MAX_THREADS:
        raise InvalidValueError(f"threads: found {changes['threads']}, expected a number from 1 to {MAX_THREADS}")
    limit = changes.get("time_limit")
    if limit is not None and not limit > 0:
        raise InvalidValueError(f"time_limit: found {limit}, expected a positive number of seconds")
    _current = replace(current(), **changes)
    return _current
