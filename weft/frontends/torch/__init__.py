"""PyTorch programs on virtual GPUs: an imported torch (its CPU build) in, one whose device="cuda" works out.

`arm` runs before torch is imported and lets torch.cuda find its bindings (bindings.py); `attach` runs after and does
the rest: kernels (registration.py) on tensors that lie in host memory (tensors.py). Programs need no change.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from weft.frontends.torch.versions import check_installed, check_version

__all__ = ["arm", "attach", "change_devices", "check_version"]


class _FillingLoader(Loader):
    """Runs torch.cuda with its own loader, after torch._C has the bindings."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        prepare(sys.modules["torch"])
        self._loader.exec_module(module)


class _CudaFinder(MetaPathFinder):
    """Lets the other finders find torch.cuda and puts the filling loader around it."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "torch.cuda":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _FillingLoader(spec.loader)
        return spec


def arm() -> None:
    """Waits for the import of torch.cuda, which comes in the middle of torch's.

    Raises UnsupportedError, before any of torch is loaded, for a version or a build that was not tried.
    """
    if "torch.cuda" not in sys.modules:
        check_installed()
        sys.meta_path.insert(0, _CudaFinder())


class _Progress:
    """prepared, attached: which steps this process has behind it."""

    prepared = False
    attached = False


def prepare(torch: ModuleType) -> None:
    """Guard, hooks, devices and bindings, as soon as torch's C++ part is loaded.

    Raises UnsupportedError for a version or a build that was not tried.
    """
    from importlib.metadata import version

    from torch.torch_version import __version__ as own_version

    check_version(str(own_version or version("torch")), torch.version.cuda)
    from weft.frontends.torch.gpus import make_gpus
    from weft.frontends.torch.hooks import install_guard, install_hooks

    install_guard(torch)

    install_hooks(torch, len(make_gpus()))
    from weft.frontends.torch.bindings import fill_bindings

    fill_bindings()
    _Progress.prepared = True


def reload_cuda(torch: ModuleType) -> None:
    """Lets torch.cuda look for its bindings again, in a process that imported torch before Weft was asked for."""
    for name in ("streams", "graphs", "memory", "nvtx", "random"):
        importlib.reload(sys.modules[f"torch.cuda.{name}"])
    importlib.reload(torch.cuda)
    del sys.modules["torch.backends.cudnn"]
    torch.backends.cudnn = importlib.import_module("torch.backends.cudnn")
    if "torch._dynamo.device_interface" in sys.modules:
        _renew_interface(sys.modules["torch._dynamo.device_interface"].CudaInterface, torch)


def _renew_interface(interface: type, torch: ModuleType) -> None:
    """Gives Dynamo, where it took functions and classes from torch.cuda before, those that are there now."""
    for name, value in list(vars(interface).items()):
        held = value.__func__ if isinstance(value, staticmethod) else value
        if str(getattr(held, "__module__", "")).startswith("torch.cuda"):
            new = getattr(torch.cuda, held.__name__)
            setattr(interface, name, staticmethod(new) if isinstance(value, staticmethod) else new)
    interface.get_raw_stream = staticmethod(torch._C._cuda_getCurrentRawStream)  # type: ignore[attr-defined]


def attach(torch: ModuleType) -> None:
    """Registers the kernels and puts right what a CPU build says of itself, once torch is imported."""
    if _Progress.attached:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        late = not _Progress.prepared
        if late:
            prepare(torch)
            reload_cuda(torch)
        from weft.frontends.torch.layout import check_layout

        check_layout(torch)
        from weft.frontends.torch.dry_start import before_start, is_dry

        if is_dry():
            before_start()
        from weft.frontends.torch.start import start

        start(late)
    _Progress.attached = True


def change_devices() -> None:
    """Takes the process's devices as they are now; tensors that exist keep the GPU that they were made on.

    Raises InvalidValueError where a dry run would become an ordinary one, or the other way.
    """
    if _Progress.attached:
        from weft.frontends.torch.dry_start import check_unchanged

        check_unchanged()
        from weft.frontends.torch.start import change_gpus

        change_gpus()
