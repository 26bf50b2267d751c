"""Registers and spilled bytes per thread of a kernel: PTX in, numbers out, found only when somebody asks.

ptxas tells them where there is one (Triton's wheel carries it); otherwise they are estimated and say so.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache, total_ordering
from pathlib import Path
from typing import Any

from weft.runtime.module import Kernel

_USED = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_TARGET = re.compile(r"^\s*\.target\s+(\w+)", re.MULTILINE)
_PTXAS_SECONDS = 120


@dataclass(frozen=True)
class Resources:
    """registers per thread, spills in bytes per thread (stores and loads, as Triton counts local memory), and where
    the numbers are from: "ptxas 13.1", or "estimated"."""

    registers: int
    spills: int
    source: str


@lru_cache(maxsize=1024)
def assemble(ptx: str) -> tuple[bytes, str, str] | None:
    """(cubin, ptxas' report, its version) of PTX, None without a ptxas or where it refuses."""
    tool = find_ptxas(ptx)
    if tool is None:
        return None
    path, version = tool
    target = _TARGET.search(ptx)
    with tempfile.TemporaryDirectory(prefix="weft-ptxas-") as folder:
        source, made = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [path, "-v", f"--gpu-name={target[1] if target else 'sm_80'}", str(source), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PTXAS_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        return made.read_bytes(), done.stderr + done.stdout, version


def find_ptxas(ptx: str) -> tuple[str, str] | None:
    """(path, version) of the ptxas that Triton would use for this PTX."""
    from triton import knobs

    target = _TARGET.search(ptx)
    number = int(re.sub(r"\D", "", target[1])) if target else 80
    for name in ("ptxas", "ptxas_blackwell") if number < 90 else ("ptxas_blackwell", "ptxas"):
        try:
            tool = getattr(knobs.nvidia, name)
        except (AttributeError, RuntimeError, OSError):
            continue
        if tool is not None and os.path.exists(tool.path):
            return tool.path, tool.version
    return None


@lru_cache(maxsize=1024)
def _read_report(ptx: str) -> Resources | None:
    made = assemble(ptx)
    if made is None:
        return None
    _, report, version = made
    used, spilled = _USED.search(report), _SPILLS.search(report)
    if used is None:
        return None
    return Resources(int(used[1]), sum(map(int, spilled.groups())) if spilled else 0, f"ptxas {version}")


def find_resources(function: Kernel) -> Resources:
    """A kernel's resources, from ptxas or estimated."""
    found = _read_report(function.program.ptx)
    if found is not None:
        return found
    compiled = function.compile(function._some_block())
    return Resources(function.estimate_registers(compiled), 0, "estimated")


@total_ordering
class ResourceCount:
    """`kernel.n_regs` and `kernel.n_spills`: a number that is found out when it is first used.

    Attributes: source ("ptxas 13.1" or "estimated"). It stands for an int in arithmetic, comparison and formatting.
    """

    def __init__(self, function: Kernel, what: str):
        self._function, self._what = function, what

    @cached_property
    def _resources(self) -> Resources:
        return find_resources(self._function)

    @property
    def source(self) -> str:
        return self._resources.source

    def __int__(self) -> int:
        return getattr(self._resources, self._what)

    __index__ = __int__

    def __float__(self) -> float:
        return float(int(self))

    def __bool__(self) -> bool:
        return bool(int(self))

    def __hash__(self) -> int:
        return hash(int(self))

    def __repr__(self) -> str:
        return repr(int(self))

    def __format__(self, spec: str) -> str:
        return format(int(self), spec)

    def __eq__(self, other: object) -> Any:
        return int(self) == other

    def __lt__(self, other: Any) -> Any:
        return int(self) < other


def _forward(name: str) -> Any:
    def operate(self: ResourceCount, *others: Any) -> Any:
        return getattr(int(self), name)(*[int(o) if isinstance(o, ResourceCount) else o for o in others])

    operate.__name__ = name
    return operate


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "divmod", "pow", "and", "or", "xor", "lshift",
              "rshift"):  # fmt: skip
    for _full in (f"__{_name}__", f"__r{_name}__"):
        setattr(ResourceCount, _full, _forward(_full))
for _name in ("neg", "pos", "abs", "round", "invert"):
    setattr(ResourceCount, f"__{_name}__", _forward(f"__{_name}__"))
