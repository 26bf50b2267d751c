"""The compiled helper: C++ sources and a compiler in, a module that takes over the plain case of most operators out.

Without it everything works the same, with five microseconds more per operator. `weft helper build` compiles it, which
takes half a minute and a C++ compiler, and puts it into the cache; from then on every process with this PyTorch, this
Python and these sources loads it. Nothing is ever compiled at import. WEFT_TORCH_HELPER=0 leaves it out.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from importlib.machinery import ExtensionFileLoader
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from weft import settings
from weft.errors import UnsupportedError

NAME = "weft_torch_helper"
SOURCES = ("blocks.cpp", "kernels.cpp")
_FOLDER = Path(__file__).parent / "native"
_OPTIONS = ("-O2", "-fPIC", "-std=c++20", "-fvisibility=hidden")
# As the helper has them: which Python kernels it replaces, and who listens to operators.
VIEW, FACTORY, UNRECORDED, SAME_DEVICE, NO_INTEGERS, NO_HALF = 1, 2, 4, 8, 16, 32
OFF, SILENT, RECORDING = 0, 1, 2
FREE, STRIDES, OUTPUTS, MULTIPLIES, PYTHON = 1, 2, 4, 8, 16


def helper_path() -> Path:
    """Where the helper for this process's Python and PyTorch lies, or would lie."""
    digest = hashlib.sha256()
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        torch_version = "none"
    for text in (torch_version, sys.implementation.cache_tag or sys.version, platform.machine(), *_OPTIONS):
        digest.update(text.encode() + b"\0")
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.read_bytes())
    return settings.current().cache_dir / "helper" / digest.hexdigest()[:24] / f"{NAME}.so"


def find_compiler() -> str | None:
    """The C++ compiler that $CXX names, or the first of g++, clang++ and c++ that there is."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["g++", "clang++", "c++"]:
        found = shutil.which(name.split()[0])
        if found:
            return found
    return None


def describe_helper() -> str:
    """One line: where the helper lies, or what to do to get it."""
    path = helper_path()
    if not settings.current().torch_helper:
        return "switched off by WEFT_TORCH_HELPER=0"
    if path.exists():
        return f"{path}: programs use it"
    return "not built for this Python and this PyTorch: weft helper build"


def _torch_folder() -> Path:
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedError('the helper needs PyTorch: pip install "weft[torch]"')
    return Path(spec.submodule_search_locations[0])


def build_helper() -> Path:
    """Compiles the helper into the cache, whole or not at all. Returns its path; one that is there is kept.

    Raises UnsupportedError where there is no compiler, no header of Python's, or where the compiler refuses.
    """
    path = helper_path()
    if path.exists():
        return path
    compiler = find_compiler()
    if compiler is None:
        raise UnsupportedError("the helper needs a C++ compiler: apt-get install g++, or let CXX name one")
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        raise UnsupportedError(f"the helper needs Python's headers, none in {headers}: apt-get install python3-dev")
    torch = _torch_folder()
    includes = [headers, torch / "include", torch / "include/torch/csrc/api/include"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="new-", suffix=".tmp") as folder:
        made = Path(folder) / path.name
        libraries = ["-ltorch_python", "-ltorch_cpu", "-lc10"]
        _compile([
            compiler, *_OPTIONS, "-shared", *(str(_FOLDER / name) for name in SOURCES), *(f"-I{i}" for i in includes),
            f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", *libraries, "-o", str(made),
        ])  # fmt: skip
        made.replace(path)
    return path


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line][:5] or done.stderr.splitlines()[-5:]
        raise UnsupportedError(f"{command[0]} does not compile the helper:\n" + "\n".join(lines))


class _Loaded:
    """module: the helper, None where it is not in use; tried: whether this process has looked for it."""

    module: Any = None
    tried = False


def load_helper() -> Any:
    """The helper's module, None where there is none or where it is switched off. PyTorch's C++ part must be loaded."""
    if _Loaded.tried:
        return _Loaded.module
    _Loaded.tried = True
    chosen = settings.current()
    if not chosen.torch_helper or chosen.dry:
        return None
    path = helper_path()
    if not path.exists():
        return None
    spec = spec_from_file_location(NAME, path, loader=ExtensionFileLoader(NAME, str(path)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    _Loaded.module = module
    return module


def needs_as_bits(name: str) -> int:
    """What the helper must know of an operator: what the timeline needs of it (weft.model.operators), and whether only
    the Python kernel does what CUDA's does with PyTorch's switches as they are."""
    from weft.frontends.torch.dispatch import LAZY_RESULTS
    from weft.frontends.torch.operators import alerts, precision, refusals
    from weft.model.operators import MULTIPLYING, needs_of

    needs = needs_of(name)
    bits = FREE * needs.free | STRIDES * needs.strides | OUTPUTS * needs.outputs
    own = name not in precision.OF_HALF and precision.choose_function(name) is not None
    own |= refusals.key_of(name) not in refusals.REFUSED and bool(refusals.check_lines(name, "a0"))
    own |= bool(alerts.check_lines(name)) or name in LAZY_RESULTS
    return bits | MULTIPLIES * (needs.family in MULTIPLYING) | PYTHON * own


def choose_operators(entries: Iterable[str], views: Iterable[str]) -> list[tuple[str, int]]:
    """The operators that the helper takes over, with its flags: those without generators, devices and
    out= arguments."""
    from weft.frontends.torch.dispatch import find_operator
    from weft.frontends.torch.operators import precision, refusals

    chosen = [(name, VIEW) for name in views]
    for name in entries:
        refused = refusals.key_of(name)
        flags = NO_HALF * (name in precision.OF_HALF or refused in refusals.HALF_REFUSED)
        flags |= NO_INTEGERS * (refused in refusals.INTEGERS_REFUSED)
        arguments = find_operator(name)._schema.arguments
        if not any(argument.is_out or _is_special(str(argument.type)) for argument in arguments):
            chosen.append((name, flags))
    chosen += [("empty.memory_format", FACTORY | UNRECORDED), ("empty_strided", FACTORY | UNRECORDED)]
    return [*chosen, ("copy_", SAME_DEVICE)]


def _is_special(kind: str) -> bool:
    return any(word in kind for word in ("Generator", "Device", "device", "Storage", "Stream", "Dimname"))
