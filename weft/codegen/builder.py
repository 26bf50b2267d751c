"""The vector builder: instruction rules call it with Values, it writes LLVM IR for one warp of 32 lanes.

The same calls run "dry" during analysis (no text is written, placeholders stand for SSA names), so that the forms
found by the analysis are the forms that emission makes. Masks are the builder's business: rules read as scalar code.

Its parts: vectors.py (text, values, chunks), integers.py, integerfunctions.py and floats.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.codegen.floats import Floats
from weft.codegen.integerfunctions import IntegerFunctions
from weft.codegen.value import Value


class Builder(IntegerFunctions, Floats):
    """Writes the body of one warp function. `lines` is the text so far; `dry` turns writing off."""

    def pack(self, parts: Sequence[Value]) -> Value:
        """Concatenate values, low first."""
        total = sum(p.bits for p in parts)
        result = None
        at = 0
        for part in parts:
            wide = self.zext(part, total)
            if at:
                wide = self.shl(wide, self.const(at, 32)) if total <= 64 else self._shift_constant("shl", wide, at)
            result = (
                wide
                if result is None
                else (self.or_(result, wide) if total <= 64 else self._binary("or", result, wide))
            )
            at += part.bits
        return result

    def unpack(self, x: Value, parts: int) -> tuple[Value, ...]:
        bits = x.bits // parts
        return tuple(self.extract(x, i * bits, bits) for i in range(parts))

    def extract(self, x: Value, low_bit: int, bits: int) -> Value:
        if low_bit:
            x = self.lshr(x, self.const(low_bit, 32)) if x.bits <= 64 else self._shift_constant("lshr", x, low_bit)
        return self.trunc(x, bits)
