"""weft.install: makes this process's programs find virtual GPUs. What enters is a chip; what leaves is the device.

Each framework has a front end, which attaches to it when the program imports it, or at once where that has happened.
Child processes, forked or started anew, get the same through the environment (weft/startup/sitecustomize.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from weft import settings

STARTUP = Path(__file__).parent / "startup"
# What child processes read: JSON of the settings, and of the modules to watch for.
VARIABLE = "WEFT_INSTALL"
_REAL_DEVICES = re.compile(r"nvidia\d+")


@dataclass(frozen=True)
class FrontEnd:
    """What attaches Weft to a framework.

    name: for messages. module: the import that it waits for. before, after: functions, as "module:name", that are
    called just before and just after that module's code has run; `after` gets the module. changed: one that is called
    when the process's devices are others from now on.
    """

    name: str
    module: str
    after: str = ""
    before: str = ""
    changed: str = ""

    def call_changed(self) -> None:
        if self.changed and self.module in sys.modules:
            _find_function(self.changed)()

    def call_before(self) -> None:
        if self.before:
            _find_function(self.before)()

    def call_after(self, module: ModuleType) -> None:
        if self.after:
            _find_function(self.after)(module)


FRONT_ENDS: tuple[FrontEnd, ...] = (
    FrontEnd("Triton", "triton", after="weft.frontends.triton:attach", changed="weft.frontends.triton:change_devices"),
    FrontEnd(
        "PyTorch",
        "torch",
        before="weft.frontends.torch:arm",
        after="weft.frontends.torch:attach",
        changed="weft.frontends.torch:change_devices",
    ),  # fmt: skip
)


def _find_function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


# ---------------------------------------------------------------- the import hook
class _AttachingLoader(Loader):
    """Runs a module with its own loader, and a front end before and after."""

    def __init__(self, loader: Loader, front_end: FrontEnd):
        self._loader, self._front_end = loader, front_end

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module shall look as if it had been found without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._front_end.call_before()
        self._loader.exec_module(module)
        self._front_end.call_after(module)


class ImportHook(MetaPathFinder):
    """Finds nothing of its own: it lets the other finders find a framework, and puts its front end around it."""

    def __init__(self, front_ends: Sequence[FrontEnd]):
        self._waiting = {front_end.module: front_end for front_end in front_ends}
        self._asked = threading.local()  # .names: what the other finders are being asked for

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        front_end = self._waiting.get(fullname)
        names = self._asked.__dict__.setdefault("names", set())
        if front_end is None or fullname in names:
            return None
        names.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            names.discard(fullname)
        # A program may only ask whether the framework is there: the front end waits until its code runs.
        if spec is not None and spec.loader is not None:
            spec.loader = _AttachingLoader(spec.loader, front_end)
        return spec


_hook: ImportHook | None = None


def install(gpu: Any = None, *, count: int = 1, children: bool = True, **options: Any) -> Any:
    """Lets Triton, and whatever else Weft has a front end for, find virtual GPUs in this process; returns the first.

    gpu: a chip's name or a Chip (WEFT_GPU, or the default). count: how many such GPUs there are. children: whether
    processes that this one starts find them too. options: further settings by name (threads, time_limit, seed,
    deterministic, triton_arch; dry=True: shapes and costs, but no numbers). Called again, it changes what the process's
    devices are; kernels that are compiled and arrays that exist stay with the devices that they had. Raises
    InvalidValueError for an unknown chip.
    """
    from weft.frontends.devices import virtual_device

    attach_front_ends(gpu, count=count, children=children, **options)
    return virtual_device(0)


def is_installed() -> bool:
    """Whether this process's programs find virtual GPUs, by `install` or under `weft run`."""
    return _hook is not None


def is_dry() -> bool:
    """Whether CUDA tensors of this process have shapes but no data: `weft run --dry`, or install(dry=True)."""
    return settings.current().dry


def attach_front_ends(gpu: Any = None, *, count: int = 1, children: bool = True, **options: Any) -> None:
    """As `install`, except that the devices are made only when the program first uses one."""
    from weft.api import Device
    from weft.frontends.devices import offer_devices

    global _hook
    if gpu is not None:
        options["gpu"] = gpu if isinstance(gpu, str) else gpu.name
    if options:
        settings.configure(**options)
    chip = None if isinstance(gpu, str) else gpu
    if settings.current().dry and count > 1:
        play_first_rank(count)
    offer_devices([partial(Device, chip)] * count)
    if _hook is None:
        missing = [front_end for front_end in FRONT_ENDS if front_end.module not in sys.modules]
        for front_end in FRONT_ENDS:
            if front_end not in missing:
                front_end.call_before()
                front_end.call_after(sys.modules[front_end.module])
        _hook = ImportHook(missing)
        sys.meta_path.insert(0, _hook)
    else:
        for front_end in FRONT_ENDS:
            front_end.call_changed()
    if children:
        tell_children(count)


def play_first_rank(count: int) -> None:
    """Puts into the environment what torchrun gives the first of `count` processes, unless it says already who this is.

    A dry run of a distributed program is this one rank; the others would do the same.
    """
    if "WORLD_SIZE" in os.environ or "RANK" in os.environ:
        return
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip


# ---------------------------------------------------------------- child processes
def tell_children(count: int) -> None:
    """Puts into the environment what Python processes started from here need to install the same."""
    chosen = {key: value for key, value in asdict(settings.current()).items() if key != "cache_dir"}
    modules = [front_end.module for front_end in FRONT_ENDS]
    os.environ[VARIABLE] = json.dumps({"count": count, "modules": modules, "settings": chosen})
    os.environ["WEFT_CACHE_DIR"] = str(settings.current().cache_dir)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(STARTUP) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(STARTUP), *filter(None, paths)])


def install_from_environment(text: str) -> None:
    """install with what a parent process put into the environment."""
    wanted = json.loads(text)
    attach_front_ends(count=wanted["count"], **wanted["settings"])


# ---------------------------------------------------------------- real GPUs
def find_real_gpus() -> list[str]:
    """The device files of real NVIDIA GPUs that this process may use. Nothing is initialised: that would keep forked
    children from using CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return []
    devices = Path("/dev")
    found = [path for path in devices.glob("nvidia*") if _REAL_DEVICES.fullmatch(path.name)]
    return [str(path) for path in sorted(found) if os.access(path, os.R_OK | os.W_OK)]
