"""CUDA C++ to PTX: `compile_cuda` takes source text or a path and returns a CudaProgram.

Two compilers: NVIDIA's NVRTC from its wheel (`pip install weft[cuda]`), which takes everything that nvcc takes on the
device side, and clang 16 or newer with Weft's own headers, which needs nothing of NVIDIA's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from weft.errors import CompileError, NoSuchKernelError
from weft.frontends.cuda_cpp.cache import PtxCache, cache_key
from weft.frontends.cuda_cpp.clang import Clang, find_clang
from weft.frontends.cuda_cpp.headers import folder_stamp, include_fingerprint
from weft.frontends.cuda_cpp.names import demangle, find_symbol, plain_name
from weft.frontends.cuda_cpp.nvrtc import Nvrtc, load_nvrtc
from weft.frontends.cuda_cpp.toolkit import find_toolkit
from weft.version import __version__

__all__ = ["CudaProgram", "compile_cuda", "demangle", "find_compiler", "find_symbol"]

_ENTRY = re.compile(r"^\s*(?:\.(?:visible|weak)\s+)?\.entry\s+([\w$]+)", re.MULTILINE)

# How nvcc's floating-point options are spelled for clang.
_CLANG_SPELLING = {
    "fmad=false": ("-ffp-contract=off",),
    "fmad=true": ("-ffp-contract=fast",),
    "ftz=true": ("-fgpu-flush-denormals-to-zero",),
    "ftz=false": ("-fno-gpu-flush-denormals-to-zero",),
    "prec-div=true": (),
    "prec-sqrt=true": (),
    "extra-device-vectorization": (),
}


@dataclass(frozen=True)
class CudaProgram:
    """One compiled source.

    names: mangled name by name expression, as given to compile_cuda. log: the compiler's warnings. compiler: its name
    and version.
    """

    ptx: str
    names: dict[str, str]
    log: str
    file: str
    compiler: str

    @property
    def entries(self) -> tuple[str, ...]:
        """Mangled names of the kernels, in the order of the PTX."""
        return tuple(dict.fromkeys(_ENTRY.findall(self.ptx)))

    @property
    def kernels(self) -> dict[str, str]:
        """Mangled name by C++ name without parameters (with them where kernels are overloaded)."""
        plain = {symbol: plain_name(demangle(symbol)) for symbol in self.entries}
        written = list(plain.values())
        return {demangle(s) if written.count(name) > 1 else name: s for s, name in plain.items()}

    def find(self, name: str) -> str:
        """The mangled name of the kernel that `name` means: a mangled name, a name expression, or a C++ name, whose
        parameters, template arguments and namespace may be left out where that is unambiguous.

        Raises NoSuchKernelError, which lists the kernels there are, or those between which `name` does not decide.
        """
        found = find_symbol(name, self.entries, self.names)
        if len(found) == 1:
            return found[0]
        if found:
            meant = ", ".join(demangle(symbol) for symbol in found)
            raise NoSuchKernelError(f"{name!r} is ambiguous in {self.file}: it can mean {meant}")
        known = ", ".join(self.kernels) or "none"
        hint = "; name a template's instances when compiling: name_expressions=[...]" if "<" in name else ""
        raise NoSuchKernelError(f"no kernel {name!r} in {self.file}; found: {known}{hint}")


def find_compiler(compiler: str = "auto", environment: Mapping[str, str] | None = None) -> Nvrtc | Clang:
    """NVRTC or clang. "auto" takes NVRTC where it is installed, else clang.

    `environment` (default: os.environ) may hold WEFT_CLANG, the clang to use, CUDA_HOME or CUDA_PATH. Raises
    CompileError, saying what to install, when the compiler asked for is not there.
    """
    environment = os.environ if environment is None else environment
    if compiler not in ("auto", "nvrtc", "clang"):
        raise CompileError(f"compiler: found {compiler!r}, expected 'nvrtc', 'clang' or 'auto'")
    if compiler in ("auto", "nvrtc"):
        toolkit = find_toolkit(environment)
        if toolkit is not None:
            return load_nvrtc(toolkit)
    if compiler in ("auto", "clang"):
        clang = find_clang(environment)
        if clang is not None:
            return clang
    raise CompileError(
        {
            "nvrtc": "NVRTC is not installed: pip install weft[cuda], or use clang with compiler='clang'",
            "clang": "no clang 16 or newer was found on PATH: install one (apt-get install clang-16), or name it in "
            "WEFT_CLANG, or pip install weft[cuda] for NVRTC",
            "auto": "no CUDA C++ compiler was found: pip install weft[cuda] for NVRTC, or install clang 16 or newer",
        }[compiler]
    )


def compile_cuda(source: str | Path, *, arch: str = "sm_90", compiler: str = "auto", std: str = "c++17",
                 defines: Iterable[str] | Mapping[str, object] = (), include_dirs: Iterable[str | Path] = (),
                 options: Iterable[str] = (), name_expressions: Iterable[str] = (), lineinfo: bool = True,
                 file_name: str | None = None, cache_dir: str | Path | None = None) -> CudaProgram:  # fmt: skip
    """Compiles CUDA C++ to PTX.

    source: text, or the path of a file (a Path, or a str with no line break that ends in .cu, .cuh, .cpp, .cc, .h or
        .hpp).
    arch: "sm_90", "sm_90a" ...; the PTX is for that virtual architecture.
    defines: macros, as {"N": 4} or ["N=4", "DEBUG"].
    include_dirs: folders searched before the compiler's own; the source file's folder comes first.
    options: passed on as they are (nvcc's --fmad, --ftz, --use_fast_math are translated for clang).
    name_expressions: templates to instantiate and names to look up: "scale<float>", "ns::f<4>", "&counter".
    lineinfo: keep source lines in the PTX (.loc), which faults and reports need.
    file_name: what messages call the source when it is text.
    cache_dir: where compiled PTX is kept; None keeps nothing.

    Defaults of floating-point are nvcc's: contraction to fma on, denormals kept, division and square root rounded to
    nearest. Raises CompileError with the compiler's text when it refuses the program; CacheError when cache_dir can't
    be written; FileNotFoundError when there is no such source file.
    """
    text, file, folder = _read_source(source, file_name)
    tool = find_compiler(compiler)
    expressions = tuple(dict.fromkeys(name_expressions))
    user_dirs = [str(folder), *(str(Path(item)) for item in include_dirs)]
    items = [f"{key}={_macro(value)}" for key, value in defines.items()] if isinstance(defines, Mapping) else defines
    arguments = [f"-D{item}" for item in items]
    arguments += [f"-I{item}" for item in user_dirs]
    if isinstance(tool, Nvrtc):
        arguments += ["--generate-line-info"] if lineinfo else []
        arguments += options
    else:
        arguments += ["-gline-tables-only"] if lineinfo else []
        arguments += _clang_options(options)

    cache, key = None, ""
    if cache_dir is not None:
        headers = include_fingerprint(text, folder, user_dirs, arguments)
        if headers is not None:
            cache = PtxCache(cache_dir)
            key = cache_key((__version__, tool.name, folder_stamp(tool.include_dirs()), headers, arch, std, file, text,
                             *arguments, "names", *expressions))  # fmt: skip
            entry = cache.get(key)
            if entry is not None:
                return CudaProgram(entry.ptx, entry.names, entry.log, file, tool.name)
    made = tool.compile(text, file, arch, std, arguments, expressions)
    if cache is not None:
        cache.put(key, made)
    return CudaProgram(made.ptx, made.names, made.log, file, tool.name)


def _read_source(source: str | Path, file_name: str | None) -> tuple[str, str, Path]:
    """Text, name for messages, and the folder against which #include "..." is resolved."""
    if isinstance(source, str) and ("\n" in source or not re.search(r"\.(cuh?|cpp|cc|h|hpp)$", source)):
        return source, file_name or "kernel.cu", Path.cwd()
    path = Path(source)
    return path.read_text(), file_name or str(path), path.resolve().parent


def _macro(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _clang_options(options: Iterable[str]) -> list[str]:
    result: list[str] = []
    for option in options:
        name = option.lstrip("-")
        if name in ("use_fast_math", "use-fast-math"):
            result += ["-ffast-math", "-fgpu-flush-denormals-to-zero"]
        else:
            result += _CLANG_SPELLING.get(name, (option,))
    return result
