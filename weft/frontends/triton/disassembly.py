"""`kernel.asm["sass"]`: PTX in, a real GPU's machine code as text out, where the tools for it are installed."""

from __future__ import annotations

from typing import Any

from triton.compiler import compiler
from triton.tools import disasm

from weft.errors import UnsupportedError
from weft.frontends.triton.resources import assemble

_ELF = b"\x7fELF"


def get_sass(binary: bytes, fun: str | None = None) -> Any:
    """What triton.tools.disasm.get_sass gives, of PTX too. Raises UnsupportedError where ptxas is missing or refuses
    the PTX."""
    if binary[:4] != _ELF:
        made = assemble(binary.decode())
        if made is None:
            raise UnsupportedError(
                "SASS needs ptxas, which comes with Triton's wheel and is not there or refuses this kernel; Weft runs "
                'the PTX: kernel.asm["ptx"]'
            )
        binary = made[0]
    return disasm.get_sass(binary, fun)


def replace_in_compiler() -> None:
    """Makes Triton's compiler use this one."""
    compiler.get_sass = get_sass
