"""C++ names: mangled symbols in, the names that a programmer writes out, and the way back for look-ups.

Decodes the part of the Itanium C++ ABI's mangling ("External Names (a.k.a. Mangling)") that names of kernels, device
functions and variables use. Expressions in signatures (decltype, requires) are not decoded: such a symbol keeps its
mangled name and can still be asked for by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_BUILTIN = {
    "v": "void", "w": "wchar_t", "b": "bool", "c": "char", "a": "signed char", "h": "unsigned char", "s": "short",
    "t": "unsigned short", "i": "int", "j": "unsigned int", "l": "long", "m": "unsigned long", "x": "long long",
    "y": "unsigned long long", "n": "__int128", "o": "unsigned __int128", "f": "float", "d": "double",
    "e": "long double", "g": "__float128", "z": "...", "Dn": "decltype(nullptr)", "Di": "char32_t", "Ds": "char16_t",
    "Du": "char8_t", "Da": "auto", "DF16_": "_Float16", "DF16b": "__bf16",
}  # fmt: skip
_STANDARD = {"St": "std", "Sa": "std::allocator", "Sb": "std::basic_string", "Ss": "std::string"}
_OPERATORS = {
    "pl": "+", "mi": "-", "ml": "*", "dv": "/", "rm": "%", "eq": "==", "ne": "!=", "lt": "<", "gt": ">", "le": "<=",
    "ge": ">=", "cl": "()", "ix": "[]", "ls": "<<", "rs": ">>", "an": "&", "or": "|", "eo": "^", "aS": "=",
    "pL": "+=", "mI": "-=", "mL": "*=", "dV": "/=", "nw": " new", "dl": " delete", "co": "~", "nt": "!", "de": "*",
    "ad": "&", "ng": "-", "pp": "++", "mm": "--", "pt": "->", "aa": "&&", "oo": "||", "na": " new[]", "da": " delete[]",
}  # fmt: skip
_LITERAL_SUFFIX = {"j": "u", "l": "l", "m": "ul", "x": "ll", "y": "ull"}


class _Undecodable(Exception):
    pass


@dataclass
class _Decoder:
    """One pass over a symbol. `substitutions` and `arguments` are the ABI's tables for S_ and T_."""

    text: str
    at: int = 0
    substitutions: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    is_template: bool = False

    def peek(self, prefix: str) -> bool:
        return self.text.startswith(prefix, self.at)

    def take(self, prefix: str) -> bool:
        if self.peek(prefix):
            self.at += len(prefix)
            return True
        return False

    def match(self, pattern: str) -> str:
        found = re.compile(pattern).match(self.text, self.at)
        if not found:
            raise _Undecodable(self.text[self.at :])
        self.at = found.end()
        return found[0]

    def remember(self, name: str) -> str:
        self.substitutions.append(name)
        return name

    # ------------------------------------------------------------ names
    def encoding(self) -> str:
        """<name> [<function type>]; a template function's first type is its return type, which is left out."""
        name = self.name()
        if self.at >= len(self.text) or self.text[self.at] in ".E":
            return name
        if self.is_template:
            self.type()
        parameters = []
        while self.at < len(self.text) and self.text[self.at] not in ".E":
            parameters.append(self.type())
        return f"{name}({', '.join(p for p in parameters if p != 'void')})"

    def name(self) -> str:
        self.is_template = False
        if self.take("N"):
            return self.nested_name()
        if self.take("Z"):
            outer = self.encoding()
            self.match("E")
            if self.take("s"):
                self.match(r"(?:_\d|__\d+_)?")
                return f"{outer}::string literal"
            inner = self.name()
            self.match(r"(?:_\d|__\d+_)?")
            return f"{outer}::{inner}"
        if self.peek("S") and not self.peek("St"):
            name = self.substitution()
        else:
            name = f"std::{self.unqualified()}" if self.take("St") else self.unqualified()
            if self.peek("I"):
                self.remember(name)
        if self.peek("I"):
            name += self.template_arguments()
            self.is_template = True
        return name

    def nested_name(self) -> str:
        self.match(r"[rVK]*[RO]?")
        name = ""
        while not self.take("E"):
            if self.peek("I"):
                name += self.template_arguments()
                self.is_template = True
            elif self.peek("S") and not self.peek("St"):
                name = self.substitution()
                continue
            elif self.peek("T"):
                name = self.template_parameter()
            elif self.take("St"):
                name = "std"
                continue
            else:
                part = self.unqualified(name.rsplit("::", 1)[-1])
                name = f"{name}::{part}" if name else part
                self.is_template = False
            if not self.peek("E"):
                self.remember(name)
        return name

    def unqualified(self, scope: str = "") -> str:
        self.take("L")  # internal linkage
        if self.text[self.at : self.at + 1].isdigit():
            length = int(self.match(r"\d+"))
            name = self.text[self.at : self.at + length]
            self.at += length
            if len(name) < length:
                raise _Undecodable(self.text)
            if name.startswith("_GLOBAL__N_"):
                name = "(anonymous namespace)"
            while self.take("B"):
                length = int(self.match(r"\d+"))
                self.at += length
            return name
        if self.peek("C") or self.peek("D"):
            kind = self.match(r"[CD]\d")
            plain = re.sub(r"<.*", "", scope)
            return plain if kind[0] == "C" else f"~{plain}"
        if self.take("Ul"):
            parameters = []
            while not self.take("E"):
                parameters.append(self.type())
            number = self.match(r"\d*_")
            shown = ", ".join(p for p in parameters if p != "void")
            return f"{{lambda({shown})#{int(number[:-1] or -1) + 2}}}"
        if self.take("Ut"):
            number = self.match(r"\d*_")
            return f"{{unnamed type#{int(number[:-1] or -1) + 2}}}"
        if self.take("cv"):
            return f"operator {self.type()}"
        symbol = _OPERATORS.get(self.match(r"[a-z][a-zA-Z]"))
        if symbol is None:
            raise _Undecodable(self.text)
        return f"operator{symbol}"

    def substitution(self) -> str:
        for code, name in _STANDARD.items():
            if self.take(code):
                return name
        code = self.match(r"S[0-9A-Z]*_")[1:-1]
        return self._entry(self.substitutions, int(code, 36) + 1 if code else 0)

    def template_parameter(self) -> str:
        code = self.match(r"T\d*_")[1:-1]
        return self._entry(self.arguments, int(code) + 1 if code else 0)

    @staticmethod
    def _entry(table: list[str], index: int) -> str:
        if index >= len(table):
            raise _Undecodable(f"entry {index} of {len(table)}")
        return table[index]

    def template_arguments(self) -> str:
        self.match("I")
        arguments: list[str] = []
        outermost: list[str] = []
        while not self.take("E"):
            if self.take("J"):
                pack = []
                while not self.take("E"):
                    pack.append(self.argument())
                arguments += pack
                outermost.append(", ".join(pack))
            else:
                arguments.append(self.argument())
                outermost.append(arguments[-1])
        self.arguments = outermost
        return f"<{', '.join(arguments)}>"

    def argument(self) -> str:
        if self.take("L"):
            return self.literal()
        if self.peek("X"):
            raise _Undecodable("expression")
        return self.type()

    def literal(self) -> str:
        if self.take("_Z"):
            outer = self.arguments
            name = self.encoding()
            self.arguments = outer
            self.match("E")
            return "&" + name
        code = self.text[self.at]
        kind = self.type()
        value = self.match(r"n?[0-9a-f]*").replace("n", "-")
        self.match("E")
        if code == "b":
            return "true" if value == "1" else "false"
        if code == "i":
            return value
        if code in _LITERAL_SUFFIX:
            return value + _LITERAL_SUFFIX[code]
        return f"({kind}){value}"

    # ------------------------------------------------------------ types
    def type(self) -> str:
        for code in ("DF16_", "DF16b", "Dn", "Di", "Ds", "Du", "Da"):
            if self.take(code):
                return _BUILTIN[code]
        head = self.text[self.at : self.at + 1]
        if head in _BUILTIN:
            self.at += 1
            return _BUILTIN[head]
        if head and head in "PRO":
            self.at += 1
            return self.remember(_wrap(self.type(), {"P": "*", "R": "&", "O": "&&"}[head]))
        if head and head in "rVK":
            qualifiers = self.match(r"[rVK]+")
            words = [word for key, word in (("K", "const"), ("V", "volatile"), ("r", "restrict")) if key in qualifiers]
            return self.remember(" ".join([self.type(), *words]))
        if self.take("A"):
            size = self.match(r"\d*_")[:-1]
            return self.remember(f"{self.type()} [{size}]")
        if self.take("Dv"):
            size = self.match(r"\d+_")[:-1]
            return self.remember(f"{self.type()} __vector({size})")
        if self.take("F"):
            self.take("Y")
            result = self.type()
            parameters = []
            while not self.take("E"):
                parameters.append(self.type())
            return self.remember(f"{result} ({', '.join(p for p in parameters if p != 'void')})")
        if self.take("M"):
            owner = self.type()
            return self.remember(_wrap(self.type(), f"{owner}::*"))
        if self.take("Dp"):
            return self.type()
        if head == "T":
            return self._with_arguments(self.remember(self.template_parameter()))
        if head == "S" and not self.peek("St"):
            return self._with_arguments(self.substitution())
        outer = self.arguments, self.is_template
        name = self.name()
        self.arguments, self.is_template = outer
        return self.remember(name)

    def _with_arguments(self, name: str) -> str:
        if not self.peek("I"):
            return name
        outer = self.arguments
        name += self.template_arguments()
        self.arguments = outer
        return self.remember(name)


def _wrap(inner: str, suffix: str) -> str:
    """Pointer or reference to `inner`: `int (float)` becomes `int (*)(float)`, `int [4]` becomes `int (*) [4]`."""
    function = re.match(r"(.*?) (\(\*+\)|\(&+\))?(\(.*\)|\[\d*\])$", inner)
    if not function:
        return inner + suffix
    result, pointers, rest = function.groups()
    gap = " " if rest.startswith("[") else ""
    return f"{result} ({(pointers or '()')[1:-1]}{suffix}){gap}{rest}"


def demangle(symbol: str) -> str:
    """`_Z5scaleIfEvPT_` becomes `scale<float>(float*)`. A name that is not mangled, or not decodable, is returned as
    it is."""
    if not symbol.startswith("_Z"):
        return symbol
    try:
        decoder = _Decoder(symbol, 2)
        text = decoder.encoding()
    except (_Undecodable, IndexError, RecursionError):
        return symbol
    rest = symbol[decoder.at :]
    return text if not rest or rest.startswith(".") else symbol


def plain_name(demangled: str) -> str:
    """A demangled name without its parameter list: `ns::scale<float>(float*)` gives `ns::scale<float>`."""
    depth = 0
    for index in range(len(demangled) - 1, -1, -1):
        character = demangled[index]
        if character == ")":
            depth += 1
        elif character == "(":
            depth -= 1
            if depth == 0:
                return demangled[:index] if index and demangled.endswith(")") else demangled
    return demangled


def canonical_name(name: str) -> str:
    """A spelling that does not depend on spaces, on `unsigned` or `unsigned int`, on suffixes or casts of literals."""
    text = re.sub(r"\bunsigned(?! *(?:int|char|short|long|__int128))", "unsigned int", name)
    text = re.sub(r"\b(unsigned )?long long int\b|\b(unsigned )?(?:long|short) int\b",
                  lambda found: found[0].removesuffix(" int"), text)  # fmt: skip
    text = re.sub(r"\b(\d+)[uUlL]+\b", r"\1", text)
    text = re.sub(r"\([A-Za-z_][\w: ]*\)(-?\d+)", r"\1", text)
    text = re.sub(r"\bconst ((?:unsigned |signed )?[\w:]+)", r"\1 const", text)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", text.strip()).removeprefix("&")


def _without_arguments(name: str) -> str:
    """`ns::scale<float>` gives `ns::scale`."""
    return name[: name.index("<")] if "<" in name and name.endswith(">") else name


def find_symbol(name: str, symbols: Iterable[str], aliases: dict[str, str]) -> list[str]:
    """The mangled symbols that `name` can mean; one when it is unambiguous, none when it is unknown.

    Tried in this order, the first that finds anything wins: the symbol itself; an alias (a name expression given to
    the compiler); the whole C++ name with or without parameters; the name without template arguments; the last part
    of a qualified name.
    """
    symbols = list(symbols)
    if name in symbols:
        return [name]
    wanted = canonical_name(name)
    for alias, symbol in aliases.items():
        if canonical_name(alias) == wanted and symbol in symbols:
            return [symbol]
    written = {symbol: demangle(symbol) for symbol in symbols}
    spellings = (
        lambda text: canonical_name(text),
        lambda text: canonical_name(plain_name(text)),
        lambda text: _without_arguments(canonical_name(plain_name(text))),
        lambda text: _last_part(canonical_name(plain_name(text))),
        lambda text: _without_arguments(_last_part(canonical_name(plain_name(text)))),
    )
    for spelling in spellings:
        found = [symbol for symbol, text in written.items() if spelling(text) == wanted]
        if found:
            return found
    return []


def _last_part(name: str) -> str:
    """What follows the last `::` outside angle brackets and parentheses."""
    depth = 0
    for index in range(len(name) - 1, 0, -1):
        if name[index] in ">)":
            depth += 1
        elif name[index] in "<(":
            depth -= 1
        elif depth == 0 and name[index - 1 : index + 1] == "::":
            return name[index + 1 :]
    return name
