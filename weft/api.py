"""What a user sees first: the runtime's Device with the CUDA C++ front end attached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weft.runtime.device import Device as _Device
from weft.runtime.module import FindNames, Program

__all__ = ["Device"]


class Device(_Device):
    __doc__ = _Device.__doc__

    def compile(self, source: str | Path, *, name: str | None = None, compiler: str | None = None,
                arch: str | None = None, std: str = "c++17", defines: Iterable[str] | Mapping[str, object] = (),
                include_dirs: Iterable[str | Path] = (), options: Iterable[str] = (),
                name_expressions: Iterable[str] = (), lineinfo: bool = True) -> Program:  # fmt: skip
        """CUDA C++ (text, or the path of a file) as a program, compiled by NVRTC or clang.

        name: the source's name in messages. compiler: "nvrtc", "clang", or None for what is installed. arch: the PTX
        target, by default the chip's. The other parameters are weft.frontends.cuda_cpp.compile_cuda's. Raises
        CompileError with the compiler's text when it refuses the program.
        """
        from weft.frontends.cuda_cpp import compile_cuda, find_symbol

        self.check_open()
        made = compile_cuda(
            source, arch=arch or self.chip.arch, compiler=compiler or "auto", std=std, defines=defines,
            include_dirs=include_dirs, options=options, name_expressions=name_expressions, lineinfo=lineinfo,
            file_name=name, cache_dir=self.cache_dir if self.cache.usable else None,
        )  # fmt: skip

        def find_names(wanted: str, known: Iterable[str]) -> list[str]:
            return find_symbol(wanted, known, made.names)

        return self.load(made.ptx, made.file, find_names=find_names)

    def load(self, ptx: str | bytes | Path, name: str | None = None, *, find_names: FindNames | None = None) -> Program:
        """PTX text (or the Path of a file) as a program. `name` is the file's in messages.

        C++ kernels are found by their C++ names. Raises PtxSyntaxError, PtxError or UnsupportedError, with the line,
        for text that is wrong.
        """
        return super().load(ptx, name, find_names=find_names or _find_cpp_names)


def _find_cpp_names(wanted: str, known: Iterable[str]) -> Any:
    from weft.frontends.cuda_cpp import find_symbol

    return find_symbol(wanted, known, {})
