"""NVIDIA's run-time compiler, called through ctypes: CUDA C++ text in, PTX text, lowered names and a log out.

Follows the NVRTC documentation (docs.nvidia.com/cuda/nvrtc), "User Interface".
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from weft.errors import CompileError
from weft.frontends.cuda_cpp.toolkit import NVRTC_SHIMS, Toolkit

_SUCCESS = 0
_COMPILATION_FAILED = 6
_NAME_EXPRESSION_NOT_VALID = 10


@dataclass(frozen=True)
class Compilation:
    """What a compiler made: PTX text, mangled name by name expression, and its log (warnings)."""

    ptx: str
    names: dict[str, str]
    log: str


class Nvrtc:
    """One loaded NVRTC library. Safe to use from several threads."""

    def __init__(self, toolkit: Toolkit):
        """Raises CompileError when the library cannot be loaded."""
        self.toolkit = toolkit
        try:
            self._library = ctypes.CDLL(str(toolkit.library))
        except OSError as error:
            raise CompileError(f"cannot load NVRTC: {error}") from error
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        archs = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(archs))
        self.archs = tuple(sorted(archs))

    @property
    def name(self) -> str:
        return "NVRTC {}.{}".format(*self.version)

    def include_dirs(self) -> list[str]:
        """The folders searched after the user's own: Weft's additions, then NVIDIA's headers."""
        return [str(NVRTC_SHIMS), *map(str, self.toolkit.include_dirs)]

    def compile(self, source: str, file: str, arch: str, std: str, options: Sequence[str],
                name_expressions: Sequence[str]) -> Compilation:  # fmt: skip
        """Compiles `source`, which messages and line tables call `file`, for `arch` ("sm_90", "sm_90a").

        Raises CompileError with NVRTC's log when the program, an option or a name expression is refused.
        """
        capability = self._capability(arch)
        arguments = [f"--gpu-architecture=compute_{capability}", f"--std={std}", *options]
        arguments.append(f"--pre-include={NVRTC_SHIMS / 'weft_nvrtc.h'}")
        arguments += [f"--include-path={folder}" for folder in self.include_dirs()]
        program = ctypes.c_void_p()
        library = self._library
        text = source.encode()
        self._check(library.nvrtcCreateProgram(ctypes.byref(program), text, file.encode(), 0, None, None))
        try:
            for expression in name_expressions:
                self._check(library.nvrtcAddNameExpression(program, expression.encode()))
            array = (ctypes.c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
            status = library.nvrtcCompileProgram(program, len(arguments), array)
            log = self._text(program, "ProgramLog").strip()
            if status != _SUCCESS:
                raise CompileError(self._summary(status, file, log), log + self._advice(log))
            names = {expression: self._lowered_name(program, expression) for expression in name_expressions}
            return Compilation(self._text(program, "PTX"), names, log)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _capability(self, arch: str) -> str:
        match = re.fullmatch(r"(?:sm|compute)_(\d+)([af]?)", arch)
        if not match:
            raise CompileError(f"architecture: found {arch!r}, expected sm_NN such as sm_90 or sm_90a")
        if int(match[1]) not in self.archs:
            known = ", ".join(f"sm_{number}" for number in self.archs)
            raise CompileError(
                f"{self.name} does not compile for {arch}; it knows {known} (compiler='clang' knows more)"
            )
        return match[1] + match[2]

    def _summary(self, status: int, file: str, log: str) -> str:
        if status == _COMPILATION_FAILED:
            count = len(re.findall(r"\berror:|\berror #|: catastrophic error", log))
            return f"{self.name} refused {file} ({count} error{'' if count == 1 else 's'})"
        return f"{self.name} refused {file}: {self._library.nvrtcGetErrorString(status).decode()}"

    def _advice(self, log: str) -> str:
        missing = re.search(r"(?:cannot|could not) open source file \"([^\"]+)\"", log)
        if missing and re.match(r"cuda|cub/|thrust/|nv/|cooperative_groups|crt/|mma\.h", missing[1]):
            return f"\n{missing[1]} is one of NVIDIA's headers: pip install weft[cuda] installs them"
        return ""

    def _lowered_name(self, program: ctypes.c_void_p, expression: str) -> str:
        name = ctypes.c_char_p()
        status = self._library.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name))
        if status == _NAME_EXPRESSION_NOT_VALID:
            raise CompileError(f"{self.name}: name expression {expression!r} names no kernel or variable")
        self._check(status)
        assert name.value is not None
        return name.value.decode()

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.value.decode(errors="replace")

    def _check(self, status: int) -> None:
        if status != _SUCCESS:
            raise CompileError(f"NVRTC: {self._library.nvrtcGetErrorString(status).decode()}")


@cache
def load_nvrtc(toolkit: Toolkit) -> Nvrtc:
    """The library of `toolkit`, loaded once per process."""
    return Nvrtc(toolkit)
