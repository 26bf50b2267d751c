"""Clang as a CUDA compiler, without NVIDIA's headers or libraries: CUDA C++ text in, PTX text and names out.

Weft's own device header, include/clang/weft_device.cuh, is included before the program and gives it the CUDA language's
built-in names. `include/clang` also answers to the usual headers (cuda_runtime.h, cuda_fp16.h, stdint.h ...).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from weft.errors import CompileError
from weft.frontends.cuda_cpp.nvrtc import Compilation

CLANG_HEADERS = Path(__file__).parent / "include" / "clang"
OLDEST = 16
NEWEST = 24  # the newest version number looked for by name; a plain `clang` of any version from OLDEST on will do

_PROBE = "__weft_name_"


@dataclass(frozen=True)
class Clang:
    """A clang executable; `version` is its own text, such as "22.1.8"."""

    path: str
    version: str

    @property
    def name(self) -> str:
        return f"clang {self.version}"

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def include_dirs(self) -> list[str]:
        return [str(CLANG_HEADERS)]

    def compile(self, source: str, file: str, arch: str, std: str, options: Sequence[str],
                name_expressions: Sequence[str]) -> Compilation:  # fmt: skip
        """Compiles `source`, which messages and line tables call `file`, for `arch` ("sm_90", "sm_90a").

        Raises CompileError with clang's own text when the program, an option or a name expression is refused.
        """
        if not re.fullmatch(r"sm_\d+[af]?", arch):
            raise CompileError(f"architecture: found {arch!r}, expected sm_NN such as sm_90 or sm_90a")
        arguments = [
            self.path, "-x", "cuda", "--cuda-device-only", "-nocudainc", "-nocudalib", "-nostdlibinc",
            f"--cuda-gpu-arch={arch}", f"-std={std}", "-O3", "-S", "-o", "-",
            "-Wno-unknown-cuda-version", "-fno-color-diagnostics", "-fno-verbose-asm", "-fdiagnostics-absolute-paths",
            *(option for option in options if not option.startswith("-ffp-contract=")),
        ]  # fmt: skip
        # As nvcc does, products and sums are fused unless the user says otherwise; but not inside Weft's own
        # mathematical functions, which switch it off with a pragma: pragmas must count, and the header must know what
        # to go back to.
        contraction = next((o.partition("=")[2] for o in reversed(options) if o.startswith("-ffp-contract=")), "fast")
        mode = "fast-honor-pragmas" if contraction == "fast" else contraction
        arguments += ["-Xclang", f"-ffp-contract={mode}", f"-D__WEFT_CONTRACT__={contraction}"]
        arguments += [f"-isystem{folder}" for folder in self.include_dirs()]
        arguments += ["-include", str(CLANG_HEADERS / "weft_device.cuh")]
        with tempfile.TemporaryDirectory(prefix="weft-clang-") as scratch:
            # A #line directive gives the user's file name; the text itself goes through a file of the scratch folder,
            # because clang names a program read from standard input `-` in line tables.
            text = f'#line 1 "{_quoted(file)}"\n{source}\n{_name_probes(name_expressions)}'
            program = Path(scratch) / "program.cu"
            program.write_text(text)
            done = subprocess.run([*arguments, str(program)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        log = done.stderr.strip()
        if done.returncode != 0:
            expression = _refused_expression(log, name_expressions)
            if expression is not None:
                raise CompileError(f"{self.name}: name expression {expression!r} names no kernel or variable", log)
            if re.search(r"error: unsupported CUDA gpu architecture", log):
                raise CompileError(f"{self.name} does not know {arch}: use a newer clang, NVRTC, or an older arch", log)
            count = len(re.findall(r"\berror: ", log))
            raise CompileError(f"{self.name} refused {file} ({count} error{'' if count == 1 else 's'})", log)
        ptx, names = _take_probes(done.stdout, name_expressions)
        return Compilation(ptx, names, log)


def find_clang(environment: Mapping[str, str]) -> Clang | None:
    """The clang that `WEFT_CLANG` in `environment` names, else the newest clang-NN on its PATH, else `clang`; None when
    there is none of version 16 or newer. Raises CompileError when WEFT_CLANG names something else."""
    chosen = environment.get("WEFT_CLANG", "")
    path = environment.get("PATH")
    if chosen:
        executable = shutil.which(chosen, path=path)
        clang = probe_clang(executable) if executable else None
        if clang is None or clang.major < OLDEST:
            found = f"clang {clang.version}" if clang else "no clang"
            raise CompileError(f"WEFT_CLANG={chosen}: found {found}, expected clang {OLDEST} or newer")
        return clang
    for name in (*(f"clang-{number}" for number in range(NEWEST, OLDEST - 1, -1)), "clang"):
        executable = shutil.which(name, path=path)
        clang = probe_clang(executable) if executable else None
        if clang is not None and clang.major >= OLDEST:
            return clang
    return None


@cache
def probe_clang(executable: str) -> Clang | None:
    """Asks an executable for its version; None when it is not clang."""
    try:
        done = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"clang version (\d+(?:\.\d+)*)", done.stdout)
    return Clang(executable, match[1]) if match else None


# ---------------------------------------------------------------- name expressions
def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _name_probes(expressions: Sequence[str]) -> str:
    """Variables whose initialisers are the addresses asked for: they instantiate templates, and the PTX tells their
    mangled names. A #line directive per probe lets an error be traced to its expression."""
    lines = []
    for index, expression in enumerate(expressions):
        target = expression.strip().removeprefix("&")
        lines.append(f'#line 1 "{_PROBE}{index}"')
        lines.append(
            f'extern "C" __device__ __attribute__((used)) const void *{_PROBE}{index} = (const void *)&{target};'
        )
    return "\n".join(lines) + "\n"


def _refused_expression(log: str, expressions: Sequence[str]) -> str | None:
    match = re.search(rf"{_PROBE}(\d+):\d+:\d+: error: ", log)
    return expressions[int(match[1])] if match else None


def _take_probes(ptx: str, expressions: Sequence[str]) -> tuple[str, dict[str, str]]:
    """PTX without the probes, and the mangled name of each expression."""
    names = {}
    pattern = re.compile(
        rf"^\.visible \.global [^\n]*\b{_PROBE}(\d+)(?:\[\d+\])?[ \t]*=[ \t]*(?:generic\()?([\w$]+)\)?[^\n]*;[ \t]*\n",
        re.MULTILINE,
    )
    for match in pattern.finditer(ptx):
        names[expressions[int(match[1])]] = match[2]
    assert len(names) == len(set(expressions)), (names, expressions)
    return pattern.sub("", ptx), names
