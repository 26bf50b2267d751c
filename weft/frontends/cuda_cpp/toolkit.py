"""Where NVIDIA's compiler library and headers lie: the environment in, a Toolkit out. Nothing is loaded or compiled.

NVIDIA publishes them as wheels, so no CUDA installation is needed (`pip install weft[cuda]`):

    nvidia-cuda-nvrtc     libnvrtc, the compiler
    nvidia-cuda-runtime   cuda_fp16.h, cuda_bf16.h, cooperative_groups.h, cuda_pipeline.h, mma.h ...
    nvidia-cuda-crt       crt/, which those headers include (version 13; version 12 has no wheel for crt/mma.h)
    nvidia-cuda-cccl      <cuda/std/...>, <cuda/barrier>, <cub/...>, <thrust/...>

Version 13 wheels share one folder, `nvidia/cu13/{lib,include}`, with CCCL in `include/cccl`; version 12 wheels have one
each, `nvidia/cuda_nvrtc`, `nvidia/cuda_runtime`, `nvidia/cuda_cccl`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Headers that Weft adds to NVIDIA's: the C and C++ standard headers that NVRTC lacks, and <cub/cub.cuh>.
NVRTC_SHIMS = Path(__file__).parent / "include" / "nvrtc"

# Where CUDA's own installer puts it.
INSTALLATION = Path("/usr/local/cuda")

# One header per include root, in the order in which the compiler should search them.
_MARKERS = ("cuda_runtime.h", "cub/version.cuh", "crt/host_config.h")


@dataclass(frozen=True)
class Toolkit:
    """NVRTC's library and the folders with CUDA's headers, in search order. `version` is the library's major number."""

    library: Path
    version: int
    include_dirs: tuple[Path, ...]


def wheel_roots(search_path: Iterable[str]) -> list[Path]:
    """The folders of NVIDIA's wheels (`nvidia/cu13`, `nvidia/cuda_nvrtc`, ...) below the entries of a Python path."""
    roots: list[Path] = []
    for entry in search_path:
        namespace = Path(entry or ".") / "nvidia"
        if namespace.is_dir():
            roots.extend(sorted(folder for folder in namespace.iterdir() if folder.is_dir()))
    return roots


def find_toolkit(environment: Mapping[str, str], search_path: Iterable[str] | None = None) -> Toolkit | None:
    """The newest NVRTC with its headers, or None when there is none.

    Wheels on `search_path` (default: sys.path) come first, then the CUDA installation that `CUDA_HOME` or `CUDA_PATH`
    in `environment` names, then /usr/local/cuda.
    """
    groups = [wheel_roots(sys.path if search_path is None else search_path)]
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environment.get(name):
            groups.append([Path(environment[name])])
    groups.append([INSTALLATION])
    for roots in groups:
        found = [(version, path) for root in roots for version, path in _libraries(root)]
        if found:
            version, library = max(found, key=lambda pair: pair[0])
            return Toolkit(library, version, _include_dirs(roots, version))
    return None


def _libraries(root: Path) -> list[tuple[int, Path]]:
    found = []
    for folder in ("lib", "lib64"):
        for path in sorted((root / folder).glob("libnvrtc.so.*")):
            match = re.fullmatch(r"libnvrtc\.so\.(\d+)(?:\.\d+)*", path.name)
            if match:
                found.append((int(match[1]), path))
    return found


def _include_dirs(roots: Iterable[Path], version: int) -> tuple[Path, ...]:
    """Header folders of the same major version, the first that holds each marker."""
    candidates: list[Path] = []
    for root in roots:
        named = re.fullmatch(r"cu(\d+)", root.name)
        if named and int(named[1]) != version:
            continue
        candidates += [root / "include", root / "include" / "cccl"]
    found = (next((folder for folder in candidates if (folder / marker).is_file()), None) for marker in _MARKERS)
    return tuple(dict.fromkeys(folder for folder in found if folder is not None))
