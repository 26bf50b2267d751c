"""A CUDA C++ source with host and device code in, two sources out: one for the host's compiler, one for NVRTC.

nvcc does this in its front end. Here the text is cut at the level of declarations: the host's half keeps host functions
as they are, with `kernel<<<grid, block>>>(...)` turned into a call; a kernel becomes a stub that hands its arguments to
Weft; device functions lose their bodies. The device's half keeps kernels, device functions, types and constants.
Lines keep their numbers, so that compilers' messages point into the program's own file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from weft.errors import UnsupportedError

_TOKEN = re.compile(
    r"""
    (?P<comment>//(?:[^\n\\]|\\.|\\\n)*|/\*.*?\*/)
  | (?P<string>(?:u8|[uUL])?R"(?P<delimiter>[^()\s\\]{0,16})\(.*?\)(?P=delimiter)"
      |(?:u8|[uUL])?"(?:\\.|[^"\\\n])*"|(?:u8|[uUL])?'(?:\\.|[^'\\\n])+')
  | (?P<number>\.?\d(?:[eEpP][+-]|'\w|[\w.])*)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<mark><<<|>>>|::|->|\.\.\.|<<=|>>=|<=|>=|<<|>>|==|!=|&&|\|\||.)
    """,
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"(?:\s|\\\n)+")
_DIRECTIVE = re.compile(r"[ \t]*\#(?:[^\n\\/]|\\\n|\\.|/\*.*?\*/|//[^\n]*|/)*", re.DOTALL)
_INCLUDE = re.compile(r'(\s*#\s*include\s*)(?:<([^>\n]+)>|"([^"\n]+)")')
_DEFINE = re.compile(r"(\s*#\s*define\s+)([A-Za-z_]\w*)(\([^)]*\))?")

# What PyTorch's and CUDA's macros stand for.
_QUALIFIERS: dict[str, frozenset[str]] = {
    "__global__": frozenset({"global"}), "__device__": frozenset({"device"}), "__host__": frozenset({"host"}),
    "__constant__": frozenset({"variable"}), "__shared__": frozenset({"variable"}),
    "__managed__": frozenset({"variable"}), "C10_DEVICE": frozenset({"device"}), "C10_HOST": frozenset({"host"}),
    "C10_HOST_DEVICE": frozenset({"host", "device"}), "GPU_LAMBDA": frozenset({"host", "device"}),
    "__HOST_DEVICE__": frozenset({"host", "device"}),
}  # fmt: skip
# Types and functions that only the host has; a declaration that names one is left out for the device.
_HOST_ONLY = frozenset("""
    Tensor TensorList TensorOptions ITensorListRef vector string string_view ostream istream shared_ptr unique_ptr map
    unordered_map set unordered_set function mutex thread runtime_error exception IValue Dict List ArrayRef IntArrayRef
    intrusive_ptr cudaStream_t cudaEvent_t CUDAStream CUDAGuard OptionalCUDAGuard cudaError_t py pybind11 indexing
    cublasHandle_t cusparseHandle_t autograd
""".split())  # fmt: skip
_DEVICE_NAMESPACES = frozenset(
    "at torch c10 std cooperative_groups cg nvcuda wmma cub cuda thrust nv experimental".split()
)
# Namespaces that only the device's headers fill. The host knows them as empty.
_DEVICE_ONLY = frozenset("cub cooperative_groups cg wmma nvcuda thrust".split())
# NVRTC takes lambdas without qualifiers only, and compiles them for the device.
_LAMBDA_QUALIFIERS = re.compile(r"(\][ \t]*)(?:(?:__host__|__device__)\s*)+(?=[({])")
_CLASS_WORDS = frozenset(("struct", "class", "union", "enum"))
_ATTRIBUTE_MACROS = frozenset(
    ("__align__", "alignas", "__attribute__", "__declspec", "__launch_bounds__", "C10_LAUNCH_BOUNDS", "noexcept",
     "C10_LAUNCH_BOUNDS_0", "C10_LAUNCH_BOUNDS_1", "C10_LAUNCH_BOUNDS_2", "decltype", "__cluster_dims__",
     "__maxnreg__", "__block_size__")
)  # fmt: skip
_TYPE_WORDS = frozenset("""
    void bool char short int long float double signed unsigned half half2 auto const volatile __half __half2
    __nv_bfloat16 __nv_bfloat162 int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t size_t
""".split())  # fmt: skip
_SLOT = "weft_slot"


class Token(NamedTuple):
    """kind: space, comment, directive, string, number, name or mark."""

    kind: str
    text: str


@dataclass(frozen=True)
class SplitSource:
    """The two halves of a source. kernels: names of the `__global__` functions that it defines."""

    host: str
    device: str
    kernels: frozenset[str]


def tokenize(text: str) -> list[Token]:
    """The pieces of C++ text; joined they are the text again."""
    tokens: list[Token] = []
    at, line_start = 0, True
    while at < len(text):
        directive = _DIRECTIVE.match(text, at) if line_start else None
        if directive:
            tokens.append(Token("directive", directive[0]))
            at = directive.end()
            line_start = False
            continue
        space = _SPACE.match(text, at)
        if space:
            tokens.append(Token("space", space[0]))
            line_start = line_start or "\n" in space[0]
            # A directive's own indentation belongs to it or not: either way it begins a line.
            at = space.end()
            continue
        found = _TOKEN.match(text, at)
        assert found is not None, text[at : at + 40]
        kind = found.lastgroup if found.lastgroup != "delimiter" else "string"
        tokens.append(Token(str(kind), found[0]))
        line_start = kind == "comment" and line_start
        at = found.end()
    return tokens


def blank(text: str) -> str:
    """The text's line breaks."""
    return "\n" * text.count("\n")


@dataclass
class _Declaration:
    """A piece of a source from token `first` to before `stop`. body: the token of its `{`, or None; words: names
    outside of brackets before the body; cut: where a function's head ends (before a constructor's initialisers)."""

    first: int
    stop: int
    body: int | None
    words: list[str]
    cut: int
    kind: str  # "function", "class", "variable", "macro", "other"
    parameters: int | None = None  # the token of the `(` of a function's parameters


@dataclass
class _Splitter:
    """Cuts one text. `include` is asked for each #include: (name, quoted) -> (directive for the host, for the device);
    None leaves it out."""

    tokens: list[Token]
    include: Callable[[str, bool], tuple[str | None, str | None]]
    qualifiers: dict[str, frozenset[str]]
    file: str
    host: list[str] = field(default_factory=list)
    device: list[str] = field(default_factory=list)
    kernels: set[str] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    partner: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stack: list[int] = []
        opening = {")": "(", "]": "[", "}": "{"}
        for place, token in enumerate(self.tokens):
            if token.kind != "mark":
                continue
            if token.text in ("(", "[", "{"):
                stack.append(place)
            elif token.text in opening:
                while stack and self.tokens[stack[-1]].text != opening[token.text]:
                    stack.pop()
                if stack:
                    self.partner[stack[-1]] = place
                    self.partner[place] = stack.pop()

    # ------------------------------------------------------------ text
    def text(self, first: int, stop: int) -> str:
        return "".join(token.text for token in self.tokens[first:stop])

    def skip(self, place: int, step: int = 1) -> int:
        """The next place that holds no space, comment or directive."""
        while 0 <= place < len(self.tokens) and self.tokens[place].kind in ("space", "comment", "directive"):
            place += step
        return place

    def is_mark(self, place: int, text: str) -> bool:
        return place < len(self.tokens) and self.tokens[place] == ("mark", text)

    def close(self, place: int) -> int:
        """The partner of a bracket; the end of the text where there is none."""
        return self.partner.get(place, len(self.tokens) - 1)

    def close_angle(self, place: int) -> int:
        """The last token of a template's list that opens at `place`."""
        depth = 0
        while place < len(self.tokens):
            text = self.tokens[place].text if self.tokens[place].kind == "mark" else ""
            if text in ("(", "[", "{"):
                place = self.close(place)
            elif text == "<":
                depth += 1
            elif text in (">", ">>", ">>>"):
                depth -= len(text)
                if depth <= 0:
                    return place
            elif text == ";":
                break
            place += 1
        return place

    # ------------------------------------------------------------ declarations
    def find_declaration(self, first: int, end: int) -> _Declaration:
        words: list[str] = []
        place, seen_round, seen_equal, initialisers = first, -1, False, -1
        start = self.skip(first)
        while place < end:
            token = self.tokens[place]
            if token.kind == "name":
                words.append(token.text)
                if token.text == "template" and self.is_mark(self.skip(place + 1), "<"):
                    place = self.close_angle(self.skip(place + 1))
                elif token.text == "operator":
                    # operator() and operator< open no list.
                    place = self.skip(place + 1)
                    if self.is_mark(place, "(") or self.is_mark(place, "["):
                        place = self.close(place)
            elif token.kind == "mark" and token.text == "(":
                before = self.tokens[self.skip(place - 1, -1)].text
                stop = self.close(place)
                if before not in _ATTRIBUTE_MACROS and not seen_equal and initialisers < 0:
                    seen_round = place
                if self.is_macro_call(start, place, stop, end):
                    following = self.skip(stop + 1)
                    last = following + 1 if self.is_mark(following, ";") else stop + 1
                    return _Declaration(first, last, None, words, last, "macro")
                place = stop
            elif token.kind == "mark" and token.text == "[":
                place = self.close(place)
            elif token.kind == "mark" and token.text == "=" and initialisers < 0:
                seen_equal = True
            elif token.kind == "mark" and token.text == ":" and seen_round >= 0 and not seen_equal:
                initialisers = place
            elif token.kind == "mark" and token.text == ";":
                kind = "variable" if seen_equal or seen_round < 0 else "function"
                if words and words[0] in ("using", "typedef", "static_assert", "friend", "namespace"):
                    kind = "other"
                return _Declaration(first, place + 1, None, words, place, kind)
            elif token.kind == "mark" and token.text == "{":
                closing = self.close(place)
                if _CLASS_WORDS.intersection(words) and seen_round < 0 and not seen_equal:
                    last = closing + 1
                    while last < end and not self.is_mark(last, ";"):
                        last += 1
                    return _Declaration(first, min(last + 1, end), place, words, place, "class")
                member = initialisers >= 0 and self.tokens[self.skip(place - 1, -1)].kind == "name"
                following = self.skip(closing + 1)
                if (
                    seen_equal
                    or seen_round < 0
                    or (member and (self.is_mark(following, ",") or self.is_mark(following, "{")))
                ):
                    place = closing
                else:
                    cut = initialisers if initialisers >= 0 else place
                    last = following + 1 if self.is_mark(following, ";") else closing + 1
                    return _Declaration(first, last, place, words, cut, "function", seen_round)
            place += 1
        return _Declaration(first, end, None, words, end, "other")

    def is_macro_call(self, start: int, opening: int, closing: int, end: int) -> bool:
        """Whether NAME(...) stands alone on its lines, with no body."""
        if self.skip(start + 1) != opening or self.tokens[start].kind != "name" or closing >= end - 1:
            return False
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.tokens[start].text):
            return False
        following = self.skip(closing + 1)
        if following >= end:
            return True
        broken = any("\n" in token.text for token in self.tokens[closing + 1 : following])
        return self.is_mark(following, ";") or (broken and self.tokens[following].text not in ("{", ":", "->"))

    def qualify(self, words: Iterable[str]) -> set[str]:
        """global, device, host, variable: what a declaration's words say."""
        found: set[str] = set()
        for word in words:
            found |= self.qualifiers.get(word, frozenset())
        return found

    def names_in(self, first: int, stop: int) -> set[str]:
        return {token.text for token in self.tokens[first:stop] if token.kind == "name"}

    # ------------------------------------------------------------ cutting
    def run(self, first: int, end: int, in_class: bool = False) -> None:
        """Cuts the declarations between two places."""
        place = first
        while place < end:
            token = self.tokens[place]
            if token.kind in ("space", "comment"):
                self.both(token.text)
                place += 1
            elif token.kind == "directive":
                self.cut_directive(token.text)
                place += 1
            elif token.text in (";", "}"):
                self.both(token.text)
                place += 1
            elif in_class and token.text in ("public", "private", "protected"):
                stop = self.skip(place + 1) + 1
                self.both(self.text(place, stop))
                place = stop
            else:
                opened = self.find_scope(place, end)
                if opened is not None:
                    self.both(self.text(place, opened + 1))
                    closing = self.close(opened)
                    self.run(opened + 1, closing)
                    self.both(self.text(closing, closing + 1))
                    place = closing + 1
                else:
                    found = self.find_declaration(place, end)
                    self.cut(found, in_class)
                    place = max(found.stop, place + 1)

    def find_scope(self, place: int, end: int) -> int | None:
        """The `{` of a namespace or of extern "C", None for anything else."""
        first = self.tokens[place].text
        if first == "inline":
            first = self.tokens[self.skip(place + 1)].text
        if first not in ("namespace", "extern"):
            return None
        here = place
        while here < end and self.tokens[here].text not in ("{", ";", "=", "("):
            if first == "extern" and self.tokens[here].kind == "name" and self.tokens[here].text != "extern":
                return None
            if first == "namespace" and self.tokens[here].kind == "name":
                self.namespaces.add(self.tokens[here].text)
            here += 1
        return here if self.is_mark(here, "{") else None

    def both(self, text: str) -> None:
        self.host.append(text)
        self.device.append(text)

    def cut_directive(self, text: str) -> None:
        include = _INCLUDE.match(text)
        if include:
            host, device = self.include(include[2] or include[3], include[3] is not None)
            self.host.append(blank(text) if host is None else f"#include {host}")
            self.device.append(blank(text) if device is None else f"#include {device}")
            return
        define = _DEFINE.match(text)
        if define and ("<<<" in text or "__global__" in text):
            body = text[define.end() :].replace("\\\n", "\n")
            inner = split_source(body, self.file, self.include, self.qualifiers)
            self.kernels |= inner.kernels
            self.host.append(define[0] + inner.host.replace("\n", "\\\n"))
        else:
            self.host.append(text)
        self.device.append(text)

    def cut(self, found: _Declaration, in_class: bool) -> None:
        found_text = self.text(found.first, found.stop)
        meant = self.qualify(found.words)
        if found.kind == "macro":
            self.host.append(self.rewrite(found.first, found.stop))
            self.device.append(found_text if meant else blank(found_text))
        elif found.kind == "class":
            self.cut_class(found)
        elif "global" in meant and found.body is not None and found.kind == "function":
            self.host.append(self.make_stub(found))
            self.device.append(found_text)
        elif meant & {"device", "global", "variable"}:
            function = found.kind == "function" and found.body is not None
            if "host" not in meant and self.names_in(found.first, found.cut) & _DEVICE_ONLY:
                self.host.append(blank(found_text))
            elif function and "host" not in meant and "constexpr" not in found.words:
                # A body, since functions for both sides may call it; none for a constructor with initialisers.
                body = " { __builtin_trap(); }" if found.cut == found.body else ";"
                self.host.append(self.text(found.first, found.cut).rstrip() + body)
                self.host.append(blank(self.text(found.cut, found.stop)))
            else:
                self.host.append(self.rewrite(found.first, found.stop))
            self.device.append(found_text)
        else:
            for_device = self.is_for_device(found, in_class)
            if found.kind == "function" and not for_device:
                self.refuse_device_wide(found)
            device_only = found.kind != "function" and found.words[:1] != ["namespace"] and found.words[:2] != [
                "using", "namespace"
            ] and bool(self.names_in(found.first, found.stop) & _DEVICE_ONLY)  # fmt: skip
            self.host.append(blank(found_text) if device_only else self.rewrite(found.first, found.stop))
            self.device.append(found_text if for_device else blank(found_text))

    def refuse_device_wide(self, found: _Declaration) -> None:
        """Raises UnsupportedError for host code that calls algorithms which launch kernels of their own."""
        for place in range(found.first, found.stop):
            name = self.tokens[place].text
            if name not in ("thrust", "cub") or not self.is_mark(self.skip(place + 1), "::"):
                continue
            member = self.tokens[self.skip(self.skip(place + 1) + 1)].text
            if name == "thrust" or member.startswith("Device"):
                line = self.text(0, place).count("\n") + 1
                raise UnsupportedError(
                    f"{self.file}:{line}: {name}::{member} in host code launches kernels that only nvcc can build: use "
                    "PyTorch's operators (sort, cumsum, unique ...), or CUB's block-wide parts inside a kernel"
                )

    def cut_class(self, found: _Declaration) -> None:
        assert found.body is not None
        closing = self.close(found.body)
        names = self.names_in(found.first, found.stop)
        if names & _DEVICE_ONLY and "global" not in self.qualify(names):
            self.host.append(blank(self.text(found.first, found.stop)))
            self.device.append(self.text(found.first, found.stop))
            return
        if found.words and "enum" in found.words:
            self.both(self.text(found.first, found.stop))
            return
        before = len(self.device)
        self.both(self.text(found.first, found.body + 1))
        self.run(found.body + 1, closing, in_class=True)
        self.both(self.text(closing, found.stop))
        if names & _HOST_ONLY and not self.qualify(names):
            dropped = "".join(self.device[before:])
            del self.device[before:]
            self.device.append(blank(dropped))

    def is_for_device(self, found: _Declaration, in_class: bool) -> bool:
        """Whether a declaration without qualifiers is of use to the device."""
        names = self.names_in(found.first, found.stop)
        words = found.words
        if names & _HOST_ONLY:
            return False
        if found.kind == "function":
            return in_class or "constexpr" in words
        if words[:1] == ["using"] and words[1:2] == ["namespace"]:
            return words[2] in _DEVICE_NAMESPACES or words[2] in self.namespaces
        if words[:1] == ["namespace"]:
            return bool(words[2:]) and words[2] in _DEVICE_NAMESPACES - {"torch", "at"}
        if found.kind == "variable" and not in_class:
            return bool({"const", "constexpr"} & set(words)) or bool(_CLASS_WORDS & set(words))
        return True

    # ------------------------------------------------------------ kernels
    def make_stub(self, found: _Declaration) -> str:
        """A kernel for the host: the same function, whose body hands the arguments to Weft."""
        opening = found.parameters
        assert opening is not None and found.body is not None
        closing = self.close(opening)
        name = self.tokens[self.skip(opening - 1, -1)].text
        self.kernels.add(name)
        parameters, arguments = self.name_parameters(opening + 1, closing)
        head = self.text(found.first, opening + 1) + parameters + self.text(closing, found.body)
        listed = "".join(f", (void*)&{argument}" for argument in arguments)
        stub = (
            f"{{ static char {_SLOT}; void* weft_arguments[] = {{nullptr{listed}}}; "
            f"::weft::launch(&{_SLOT}, weft_arguments + 1); }}"
        )
        return head + stub + blank(self.text(found.body, found.stop))

    def name_parameters(self, first: int, stop: int) -> tuple[str, list[str]]:
        """The text of a parameter list in which every parameter has a name, and the names."""
        pieces: list[str] = []
        names: list[str] = []
        start = place = first
        while place <= stop:
            text = self.tokens[place].text if place < stop and self.tokens[place].kind == "mark" else ""
            if text in ("(", "[", "{"):
                place = self.close(place)
            elif text == "<":
                place = self.close_angle(place)
            elif text == "," or place == stop:
                piece, name = self.name_parameter(start, place, len(names))
                pieces.append(piece)
                if name:
                    names.append(name)
                start = place + 1
            place += 1
        return ",".join(pieces), names

    def name_parameter(self, first: int, stop: int, number: int) -> tuple[str, str]:
        text = self.text(first, stop)
        end = first
        found: list[int] = []
        pack = ""
        while end < stop:
            token = self.tokens[end]
            if token == ("mark", "="):
                break
            if token == ("mark", "<"):
                end = self.close_angle(end)
            elif token == ("mark", "("):
                inner = self.skip(end + 1)
                if self.is_mark(inner, "*") or self.is_mark(inner, "&"):  # a pointer to a function or an array
                    return text, self.tokens[self.skip(inner + 1)].text
                end = self.close(end)
            elif token == ("mark", "["):
                end = self.close(end)
            elif token == ("mark", "..."):
                pack = "..."
            elif token.kind == "name":
                found.append(end)
            end += 1
        words = [self.tokens[place].text for place in found]
        if not words or words == ["void"]:
            return text, ""
        last = found[-1]
        before, after = self.skip(last - 1, -1), self.skip(last + 1)
        is_type = words[-1] in _TYPE_WORDS or words[-1] in ("__restrict__", "__restrict") or len(words) == 1
        continues = after < stop and self.tokens[after].text in ("*", "&", "&&", "<", "::", "...")
        if is_type and not self.is_mark(before, ">") or continues or self.is_mark(before, "::"):
            name = f"weft_parameter_{number}"
            return f"{self.text(first, end).rstrip()} {name}{self.text(end, stop)}", name + pack
        return text, words[-1] + pack

    # ------------------------------------------------------------ launches
    def rewrite(self, first: int, stop: int) -> str:
        """Host code with `kernel<<<...>>>(...)` as a call."""
        marks = [place for place in range(first, stop) if self.is_mark(place, "<<<")]
        edits: dict[int, str] = {}
        for place in marks:
            begin = self.find_callee(place, first)
            close = self.find_close(place, stop)
            opening = self.skip(close + 1) if close is not None else stop
            if close is None or begin is None or not self.is_mark(opening, "("):
                line = self.text(0, place).count("\n") + 1
                raise UnsupportedError(f"{self.file}:{line}: found a launch <<<...>>> that is none of a kernel by name")
            configuration = self.text(place + 1, close)
            edits[begin] = f"(::weft::configure({configuration}), " + edits.get(begin, "")
            for inside in range(place, close + 1):
                edits[inside] = "\0"
            ending = self.close(opening)
            edits[ending] = edits.get(ending, "") + "\1"
        out: list[str] = []
        for place in range(first, stop):
            token, edit = self.tokens[place], edits.get(place)
            if token.kind == "directive":
                include = "<<<" in token.text
                out.append(self.rewrite_directive(token.text) if include else token.text)
            elif edit is None:
                out.append(token.text)
            elif edit == "\0":
                continue
            elif edit.endswith("\1"):
                out.append(edit[:-1] + token.text + ")")
            else:
                out.append(edit + token.text)
        return "".join(out)

    def rewrite_directive(self, text: str) -> str:
        inner = split_source(text.replace("\\\n", "\n"), self.file, self.include, self.qualifiers)
        return inner.host.replace("\n", "\\\n")

    def find_callee(self, place: int, first: int) -> int | None:
        """Where the name before <<< begins: `ns::kernel<float, 4>`, `(*pointer)`."""
        here = self.skip(place - 1, -1)
        begin = None
        while here >= first:
            text = self.tokens[here].text
            if text in (">", ">>", ">>>"):
                here = self.open_angle(here, first)
                begin = here
            elif text == ")" and begin is None:
                return self.partner.get(here)
            elif self.tokens[here].kind == "name":
                begin = here
                before = self.skip(here - 1, -1)
                if not (before >= first and self.tokens[before].text in ("::", ".", "->", "template")):
                    return begin
                here = before
                continue
            elif text in ("::", ".", "->"):
                begin = here
                before = self.skip(here - 1, -1)
                if not (before >= first and (self.tokens[before].kind == "name" or self.is_mark(before, ">"))):
                    return begin
                if self.tokens[before].text in ("return", "else", "do"):
                    return begin
                here = before
                continue
            else:
                return begin
            here = self.skip(here - 1, -1)
        return begin

    def open_angle(self, place: int, first: int) -> int:
        depth = 0
        while place >= first:
            text = self.tokens[place].text if self.tokens[place].kind == "mark" else ""
            if text in (")", "]", "}"):
                place = self.partner.get(place, first)
            elif text in (">", ">>", ">>>"):
                depth += len(text)
            elif text == "<":
                depth -= 1
                if depth <= 0:
                    return place
            place -= 1
        return first

    def find_close(self, place: int, stop: int) -> int | None:
        """The >>> that ends a launch's configuration."""
        place += 1
        while place < stop:
            text = self.tokens[place].text if self.tokens[place].kind == "mark" else ""
            if text in ("(", "[", "{"):
                place = self.close(place)
            elif text == ">>>":
                return place
            place += 1
        return None


def _keep_include(name: str, quoted: bool) -> tuple[str | None, str | None]:
    directive = f'"{name}"' if quoted else f"<{name}>"
    return directive, directive


def find_qualifiers(text: str, known: dict[str, frozenset[str]] | None = None) -> dict[str, frozenset[str]]:
    """What macros of a source say of a declaration that uses them: `#define HD __host__ __device__`."""
    found = dict(_QUALIFIERS if known is None else known)
    joined = text.replace("\\\n", " ")
    for _ in range(2):  # macros of macros
        for define in re.finditer(r"^\s*#\s*define\s+([A-Za-z_]\w*)(\([^)]*\))?(.*)$", joined, re.MULTILINE):
            words = set(re.findall(r"[A-Za-z_]\w*", define[3]))
            meant = frozenset().union(*(found[word] for word in words if word in found))
            if meant:
                found[define[1]] = found.get(define[1], frozenset()) | meant
    return found


def split_source(text: str, file: str, include: Callable[[str, bool], tuple[str | None, str | None]] = _keep_include,
                 qualifiers: dict[str, frozenset[str]] | None = None) -> SplitSource:  # fmt: skip
    """Cuts a source, which messages call `file`, in two.

    include: what an #include becomes, given its name and whether it is quoted: (for the host, for the device), None
    for nothing. Raises UnsupportedError for a launch of something other than a named kernel.
    """
    splitter = _Splitter(tokenize(text), include, find_qualifiers(text, qualifiers), file)
    splitter.run(0, len(splitter.tokens))
    device = _LAMBDA_QUALIFIERS.sub(r"\1", "".join(splitter.device))
    return SplitSource("".join(splitter.host), device, frozenset(splitter.kernels))
