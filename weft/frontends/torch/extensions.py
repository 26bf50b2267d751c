"""torch.utils.cpp_extension.load and load_inline with CUDA sources: .cu files in, a loaded module out, without nvcc.

Each .cu file, and each of the program's own headers, is cut in two (cuda_sources.py). The host's half goes through
PyTorch's own build with the C++ compiler, the device's half through NVRTC once it is known which templates the host's
half uses. Launches and calls of the CUDA runtime come to launches.py.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weft.errors import CompileError, UnsupportedError
from weft.frontends.cuda_cpp.toolkit import NVRTC_SHIMS, find_toolkit
from weft.frontends.torch.cuda_sources import find_qualifiers, split_source

HEADERS = Path(__file__).parent / "include"
MANIFEST = ".weft.json"
_CUDA_SUFFIXES = (".cu", ".cuh")
_TORCH_HEADERS = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/")
# Of no use to a C++ compiler.
_DEVICE_HEADERS = re.compile(
    r"(cub|thrust|nv|cooperative_groups)/.*|cooperative_groups\.h|mma\.h|cuda_pipeline\w*\.h|curand_kernel\.h"
    r"|cuda/(barrier|pipeline|atomic|semaphore|latch|ptx)|sm_\d+_.*|device_functions\.h|crt/.*"
)
_HOST_FLAGS = ("-Wno-attributes", "-Wno-unknown-pragmas", "-Wno-unused-function")
_STANDARD = re.compile(r"-{1,2}std[= ](?:c|gnu)\+\+(\d\w)")
# Options of nvcc that NVRTC takes.
_DEVICE_FLAGS = re.compile(
    r"-D.*|-U.*|--?(?:use_fast_math|fmad=|ftz=|prec-div=|prec-sqrt=|maxrregcount=|extra-device-vectorization).*"
)


def find_compiler() -> str:
    """The C++ compiler that PyTorch's build would call. Raises CompileError where there is none."""
    name = os.environ.get("CXX", "c++")
    if shutil.which(name.split()[0]) is None:
        raise CompileError(
            f"no C++ compiler was found ({name}): extensions need one for their host code: apt-get install g++, or "
            "name one in CXX"
        )
    return name


class SourceTree:
    """Writes the two halves of an extension's sources and headers into `folder`.

    include_dirs: where the program's own headers are.
    """

    def __init__(self, folder: Path, include_dirs: Iterable[str]):
        self.folder = folder
        self.include_dirs = [Path(item) for item in include_dirs]
        toolkit = find_toolkit(os.environ)
        if toolkit is None:
            raise CompileError("CUDA sources need NVRTC and NVIDIA's headers: pip install weft[cuda]")
        self.device_dirs = [NVRTC_SHIMS, *toolkit.include_dirs]
        self.toolkit_dirs = list(map(str, toolkit.include_dirs))
        self._headers: dict[Path, tuple[Path, Path]] = {}
        self._qualifiers = find_qualifiers("")

    def split(self, path: Path, stem: str) -> tuple[Path, Path]:
        """The files with the halves of a source: (host, device)."""
        text = path.read_text()
        # Macros of headers first: they may stand for __device__.
        halves = split_source(
            text, str(path), lambda name, quoted: self._include(name, quoted, path.parent), self._learn(text, path)
        )
        host, device = self.folder / f"{stem}_host.cpp", self.folder / f"{stem}_device.cu"
        _write(host, f'#include "weft_extension.h"\n#line 1 "{path}"\n{halves.host}')
        _write(device, f'#include "weft_torch_device.h"\n#line 1 "{path}"\n{halves.device}')
        return host, device

    def _learn(self, text: str, path: Path) -> dict[str, frozenset[str]]:
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"\n]+)[>"]', text, re.MULTILINE):
            found = self._find_own(name, True, path.parent)
            if found is not None and found not in self._headers:
                self._qualifiers = find_qualifiers(found.read_text(), self._qualifiers)
        self._qualifiers = find_qualifiers(text, self._qualifiers)
        return self._qualifiers

    def _find_own(self, name: str, quoted: bool, folder: Path) -> Path | None:
        for place in [folder, *self.include_dirs] if quoted else self.include_dirs:
            if (place / name).is_file():
                return (place / name).resolve()
        return None

    def _include(self, name: str, quoted: bool, folder: Path) -> tuple[str | None, str | None]:
        own = self._find_own(name, quoted, folder)
        if own is not None:
            if own not in self._headers:
                stem = f"{own.stem}_{len(self._headers)}"
                self._headers[own] = (self.folder / f"{stem}_host.h", self.folder / f"{stem}_device.h")
                # A header in place of a source.
                for made, wanted in zip(self.split(own, stem), self._headers[own]):
                    guarded = "#pragma once\n" if "#pragma once" in own.read_text() else ""
                    _write(wanted, guarded + made.read_text())
                    made.unlink()
            files = self._headers[own]
            return f'"{files[0].name}"', f'"{files[1].name}"'
        host = f'"{name}"' if quoted else f"<{name}>"
        if _TORCH_HEADERS.match(name):
            return host, None
        known = any((place / name).is_file() for place in self.device_dirs)
        return None if _DEVICE_HEADERS.fullmatch(name) else host, host if known else None


def _write(path: Path, text: str) -> None:
    """Writes a file where it would change."""
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def split_flags(flags: Iterable[str]) -> tuple[list[str], list[str], str]:
    """nvcc's options as (for the host's compiler, for NVRTC, the language)."""
    host: list[str] = []
    device: list[str] = []
    standard = "c++20"
    for flag in flags:
        found = _STANDARD.fullmatch(flag)
        if found:
            standard = f"c++{found[1]}"
        elif _DEVICE_FLAGS.fullmatch(flag):
            device.append(flag)
            if flag.startswith(("-D", "-U")):
                host.append(flag)
    return host, device, standard


def build_library(original: Any, *, name: str, sources: list[str], extra_cflags: list[str],
                  extra_cuda_cflags: list[str], extra_include_paths: list[str], build_directory: str,
                  with_cuda: bool | None, **options: Any) -> Any:  # fmt: skip
    """cpp_extension._write_ninja_file_and_build_library: CUDA sources become C++ ones first."""
    if with_cuda is None:
        with_cuda = any(source.endswith(_CUDA_SUFFIXES) for source in sources)
    if not with_cuda:
        return original(
            name=name, sources=sources, extra_cflags=extra_cflags, extra_cuda_cflags=extra_cuda_cflags,
            extra_include_paths=extra_include_paths, build_directory=build_directory, with_cuda=False, **options,
        )  # fmt: skip
    find_compiler()
    folder = Path(build_directory) / "weft"
    folder.mkdir(exist_ok=True)
    tree = SourceTree(folder, extra_include_paths)
    host_flags, device_flags, standard = split_flags(extra_cuda_cflags)
    built: list[str] = []
    described: list[dict[str, Any]] = []
    for source in sources:
        if not source.endswith(_CUDA_SUFFIXES):
            built.append(source)
            continue
        path = Path(source).resolve()
        host, device = tree.split(path, path.stem)
        built.append(str(host))
        described.append({
            "path": str(device), "object": str(Path(build_directory) / f"{host.stem}.o"), "name": str(path),
            "options": ["-default-device", *device_flags], "std": standard,
            "include_dirs": [str(folder), str(HEADERS / "device"), *extra_include_paths],
        })  # fmt: skip
    built.append(str(HEADERS / "host" / "weft_runtime.cpp"))
    result = original(
        name=name, sources=built, extra_cflags=[*extra_cflags, *host_flags, *_HOST_FLAGS], extra_cuda_cflags=[],
        extra_include_paths=[str(folder), *extra_include_paths, str(HEADERS / "host"), *tree.toolkit_dirs],
        build_directory=build_directory, with_cuda=False, **options,
    )  # fmt: skip
    _write(Path(build_directory) / f"{name}{MANIFEST}", json.dumps(described))
    return result


def import_library(original: Any, module_name: str, path: str, is_python_module: bool) -> Any:
    """cpp_extension._import_module_from_library: the device code is compiled before the host code is loaded."""
    from torch.utils.cpp_extension import LIB_EXT

    from weft.frontends.torch.launches import load_manifest

    manifest = Path(path) / f"{module_name}{MANIFEST}"
    if manifest.is_file():
        load_manifest(manifest, str(Path(path) / f"{module_name}{LIB_EXT}"))
    try:
        return original(module_name, path, is_python_module)
    except (ImportError, OSError) as error:
        missing = re.search(r"undefined symbol: (cu\w+|_ZN(?:K?2at4cuda|K?3c104cuda|\dthrust)\w+)", str(error))
        if missing and manifest.is_file():
            raise UnsupportedError(
                f"extension {module_name} calls {missing[1]}, which Weft's virtual GPUs do not have; docs/pytorch.md "
                "lists what extensions may call"
            ) from error
        raise


def refuse_ahead_of_time(*args: Any, **kwargs: Any) -> Any:
    """cpp_extension.CUDAExtension: what setup.py calls."""
    raise UnsupportedError(
        "CUDAExtension builds machine code with nvcc, which a virtual GPU cannot run: load the sources with "
        "torch.utils.cpp_extension.load or load_inline"
    )


def connect_extensions(cpp_extension: Any) -> None:
    """Puts Weft's build in place, when torch.utils.cpp_extension is imported."""
    cpp_extension._write_ninja_file_and_build_library = functools.partial(
        build_library, cpp_extension._write_ninja_file_and_build_library
    )
    cpp_extension._import_module_from_library = functools.partial(
        import_library, cpp_extension._import_module_from_library
    )
    cpp_extension.CUDAExtension = refuse_ahead_of_time
