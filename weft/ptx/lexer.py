"""Text -> tokens. Enters: PTX source text. Leaves: a Lexer, a cursor over the tokens with one token of look-ahead.

Comments, preprocessor lines and `@@DWARF` lines are blanked beforehand with their line breaks kept, so that a
position in the text still tells its line. The lexical rules are those of the PTX manual, "Syntax".
"""

from __future__ import annotations

import re
from typing import NoReturn

from weft.errors import PtxError, PtxSyntaxError, UnsupportedError

IDENTIFIER = r"(?:[A-Za-z][\w$]*|[_$%][\w$]+)"

TOKEN = re.compile(
    r"""\s*(?:
      (?P<name>[A-Za-z][\w$]*|[$%][\w$]+|_[\w$]*)
    | (?P<float>0[fF][0-9a-fA-F]{8}(?![\w$])|0[dD][0-9a-fA-F]{16}(?![\w$])
        |(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w$])|\d+[eE][+-]?\d+(?![\w$]))
    | (?P<int>(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?(?![\w$]))
    | (?P<directive>\.[A-Za-z_]\w*(?:::\w+)*)
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<op><<|>>|&&|\|\||==|!=|<=|>=|[-+*/%<>&|^!~?:;,=@(){}\[\]])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII,
)

_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_SKIPPED_LINE = re.compile(r"^[ \t]*(?:#|@@)[^\n]*", re.MULTILINE)
_UNEXPECTED = re.compile(r"[\w$%.]+|\S", re.ASCII)


def strip_comments(text: str, file: str) -> str:
    """The text with comments and `#` and `@@DWARF` lines blanked. Raises PtxSyntaxError for an open `/*`."""

    def blank(found: re.Match) -> str:
        comment = found.group()
        if comment[0] == '"':
            return comment
        if comment[1] == "/":
            return ""
        if len(comment) < 4 or not comment.endswith("*/"):
            line = text.count("\n", 0, found.start()) + 1
            raise PtxSyntaxError("comment is not closed", file=file, line=line, found="end of file", expected="'*/'")
        return " " + "\n" * comment.count("\n")

    if "//" in text or "/*" in text:
        text = _COMMENT.sub(blank, text)
    if "#" in text or "@@" in text:
        text = _SKIPPED_LINE.sub("", text)
    return text


class Lexer:
    """A cursor over the tokens of `text`.

    `kind` and `value` are the current token (kind: name, float, int, directive, string, op, end), `start` and `end`
    its extent. `advance` steps on; `seek` continues at another position.
    """

    def __init__(self, text: str, file: str):
        self.text, self.file = text, file
        self.kind = self.value = ""
        self.start = self.end = 0
        self._line_position, self._line = 0, 1
        self.seek(0)

    def seek(self, position: int) -> None:
        """Make the token at or after `position` the current one."""
        self.end = position
        self.advance()

    def advance(self) -> str:
        """Step to the next token; returns the value of the one left behind."""
        left = self.value
        found = TOKEN.match(self.text, self.end)
        if found is None:
            self._fail_at(self.end)
        self.kind = found.lastgroup or ""
        self.value = found.group(self.kind)
        self.start, self.end = found.span(self.kind)
        return left

    def _fail_at(self, position: int) -> NoReturn:
        found = _UNEXPECTED.search(self.text, position)
        place = found.start() if found else position
        text = found.group() if found else "end of file"
        if text == '"':
            text = "a string that is not closed"
        line = self.text.count("\n", 0, place) + 1
        raise PtxSyntaxError("not a PTX token", file=self.file, line=line, found=text[:60])

    def line_at(self, position: int) -> int:
        """The 1-based line of a position; cheap for positions that only grow."""
        if position < self._line_position:
            return self.text.count("\n", 0, position) + 1
        self._line += self.text.count("\n", self._line_position, position)
        self._line_position = position
        return self._line

    @property
    def line(self) -> int:
        return self.line_at(self.start)

    @property
    def found(self) -> str:
        """The current token as messages show it."""
        return "end of file" if self.kind == "end" else repr(self.value[:60])

    def fail(self, message: str, expected: str) -> NoReturn:
        """Raise PtxSyntaxError at the current token."""
        raise PtxSyntaxError(message, file=self.file, line=self.line, found=self.found, expected=expected)

    def illegal(self, message: str, *, found: str = "", expected: str = "", line: int = 0) -> NoReturn:
        """Raise PtxError at the current token, or at `line`."""
        raise PtxError(message, file=self.file, line=line or self.line, found=found, expected=expected)

    def unsupported(self, message: str, line: int = 0) -> NoReturn:
        """Raise UnsupportedError at the current token, or at `line`."""
        raise UnsupportedError(message, file=self.file, line=line or self.line)

    def accept(self, value: str) -> bool:
        """Step over the current token if it reads `value`."""
        if self.value == value and self.kind != "string":
            self.advance()
            return True
        return False

    def expect(self, value: str, message: str = "syntax error") -> None:
        """Step over a token that must read `value`."""
        if self.value != value or self.kind == "string":
            self.fail(message, repr(value))
        self.advance()

    def expect_kind(self, kind: str, expected: str, message: str = "syntax error") -> str:
        """Step over a token that must be of `kind`; returns its text."""
        if self.kind != kind:
            self.fail(message, expected)
        return self.advance()

    def identifier(self, expected: str) -> str:
        """Step over an identifier (`_` alone is none); returns it."""
        if self.kind != "name" or self.value == "_":
            self.fail("syntax error", expected)
        return self.advance()

    def unsigned(self, expected: str) -> int:
        """Step over an unsigned integer literal."""
        if self.kind != "int":
            self.fail("syntax error", expected)
        value, _ = integer_literal(self)
        self.advance()
        return value


def integer_literal(lexer: Lexer) -> tuple[int, bool]:
    """(value, whether it is of type .u64) of the current integer token; the token stays current.

    Decimal, hexadecimal, octal or binary with an optional U; a literal without U that exceeds .s64 is .u64
    (manual, "Integer Constants"). Raises PtxSyntaxError for bad octal, PtxError for more than 64 bits.
    """
    text = lexer.value
    unsigned = text.endswith("U")
    digits = text.rstrip("U")
    if len(digits) > 80:
        lexer.illegal("integer constant does not fit in 64 bits", found=text[:40] + "...")
    try:
        if digits[:2] in ("0x", "0X"):
            value = int(digits, 16)
        elif digits[:2] in ("0b", "0B"):
            value = int(digits, 2)
        elif digits[0] == "0" and len(digits) > 1:
            value = int(digits, 8)
        else:
            value = int(digits)
    except ValueError:
        lexer.fail("bad octal constant", "digits 0 to 7 after a leading 0")
    if value >= 1 << 64:
        lexer.illegal("integer constant does not fit in 64 bits", found=text)
    return value, unsigned or value >= 1 << 63
