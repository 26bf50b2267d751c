"""Declarations: variables with their initialisers, parameters, function headers, call prototypes.

Enters: a Context whose lexer stands at the declaration. Leaves: Variable, Param, Function, Prototype.
Source: PTX manual, "State Spaces, Types, and Variables" and "Directives".
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from weft.ptx.debug import SourceMap
from weft.ptx.expressions import MAX_NESTING, float_bits, parse_constant, parse_integer
from weft.ptx.lexer import Lexer
from weft.ptx.module import Function, Module, Param, Prototype, Relocation, Variable
from weft.types import TYPES, ScalarType

LINKAGE = (".visible", ".extern", ".weak", ".common")
VARIABLE_SPACES = (".global", ".const", ".shared", ".local", ".param", ".tex")
OPAQUE_TYPES = (".texref", ".samplerref", ".surfref")
VECTORS = {".v2": 2, ".v4": 4, ".v8": 8}
MAX_BYTES = 1 << 48
# An initialiser is held in memory whole; ptxas stops far earlier.
MAX_INITIALIZED_BYTES = 1 << 30

# name -> (fewest, most) integers behind it
DIRECTIVES = {
    ".maxntid": (1, 3), ".reqntid": (1, 3), ".reqnctapercluster": (1, 3), ".minnctapersm": (1, 1),
    ".maxnctapersm": (1, 1), ".maxnreg": (1, 1), ".maxclusterrank": (1, 1), ".explicitcluster": (0, 0),
    ".blocksareclusters": (0, 0), ".abi_preserve": (1, 1), ".abi_preserve_control": (1, 1),
}  # fmt: skip

_PLAIN_LIST = re.compile(r"\{([\s\d,-]*)\}", re.ASCII)
_OCTAL = re.compile(r"\b0\d", re.ASCII)


@dataclass
class Context:
    """What the parsers of one file share."""

    lexer: Lexer
    module: Module
    sources: SourceMap
    symbol_uses: dict[str, int] = field(default_factory=dict)  # module-level name -> line of its first use
    opaque: set[str] = field(default_factory=set)  # textures, samplers, surfaces: their use is refused

    def use_symbol(self, name: str, line: int) -> None:
        """Note the use of a module-level name; it is looked up when the whole file is read."""
        self.symbol_uses.setdefault(name, line)


@dataclass
class Qualifiers:
    """What stands before a name: `.align 16 .v4 .f32`."""

    type: ScalarType
    align: int  # 0: none was written
    vector: int = 1
    opaque: bool = False
    pointer_space: str = ""

    @property
    def natural_align(self) -> int:
        return self.align or self.type.bytes * self.vector


def parse_align(lexer: Lexer) -> int:
    """Parse `.align N`."""
    lexer.expect(".align")
    line = lexer.line
    align = lexer.unsigned("an alignment in bytes")
    if align <= 0 or align & (align - 1) or align > 1 << 30:
        lexer.illegal("alignment must be a power of two", found=str(align), line=line)
    return align


def skip_parenthesised(lexer: Lexer) -> None:
    """Step over `( ... )`."""
    lexer.expect("(")
    while lexer.value != ")":
        if lexer.kind == "end" or lexer.value in ("{", "}", ";"):
            lexer.fail("syntax error", "')'")
        lexer.advance()
    lexer.advance()


def parse_qualifiers(lexer: Lexer, align: int = 0) -> Qualifiers:
    """Parse `.align`, `.attribute`, a vector width and the type. Raises PtxSyntaxError without a type."""
    vector = 1
    while True:
        word = lexer.value if lexer.kind == "directive" else ""
        if word == ".align":
            align = parse_align(lexer)
        elif word == ".attribute":
            lexer.advance()
            skip_parenthesised(lexer)
        elif word in VECTORS:
            vector = VECTORS[word]
            lexer.advance()
        elif word[1:] in TYPES:
            lexer.advance()
            return Qualifiers(TYPES[word[1:]], align, vector)
        elif word in OPAQUE_TYPES:
            lexer.advance()
            return Qualifiers(TYPES["b64"], align, vector, opaque=True)
        else:
            lexer.fail("syntax error", "a type")


def parse_dimensions(lexer: Lexer) -> list[int | None]:
    """Parse `[4][]...`; None stands for an open first dimension."""
    dimensions: list[int | None] = []
    while lexer.accept("["):
        if not dimensions and lexer.accept("]"):
            dimensions.append(None)
            continue
        line = lexer.line
        size = parse_integer(lexer, "array size")
        if not 0 <= size < MAX_BYTES:
            lexer.illegal("array size is out of range", found=str(size), line=line)
        dimensions.append(size)
        lexer.expect("]")
        if len(dimensions) > MAX_NESTING:
            lexer.fail("too many dimensions", f"at most {MAX_NESTING}")
    return dimensions


# ---------------------------------------------------------------- variables
def parse_variables(context: Context, space: str, linkage: str, align: int = 0) -> list[tuple[Variable, bool]]:
    """Parse the rest of a variable declaration behind its state space, up to and with `;`.

    Returns (variable, whether it is a texture, sampler or surface reference) for each name.
    """
    lexer = context.lexer
    if space == "tex":
        # `.tex .u32 name` is the old spelling of `.global .texref name`.
        space, old_texture = "global", True
    else:
        old_texture = False
    if space == "const" and lexer.accept("["):
        parse_integer(lexer, "constant bank")
        lexer.expect("]")
    qualifiers = parse_qualifiers(lexer, align)
    found = []
    while True:
        opaque = qualifiers.opaque or old_texture
        found.append((_parse_variable(context, space, linkage, qualifiers, opaque), opaque))
        if not lexer.accept(","):
            break
    lexer.expect(";")
    return found


def _parse_variable(context: Context, space: str, linkage: str, qualifiers: Qualifiers, opaque: bool) -> Variable:
    lexer, element = context.lexer, qualifiers.type
    line = lexer.line
    name = lexer.identifier("a variable name")
    if element.kind == "pred":
        lexer.illegal(f"predicate variable {name} must be a register", line=line)
    dimensions = parse_dimensions(lexer)
    is_open = bool(dimensions) and dimensions[0] is None
    if is_open and linkage != "extern" and lexer.value != "=":
        lexer.illegal(f"variable {name} has no size", expected="an initialiser or .extern", line=line)
    shape = [1 if size is None else size for size in dimensions] + [qualifiers.vector]
    size = element.bytes * math.prod(shape)
    if size >= MAX_BYTES:
        lexer.illegal(f"variable {name} is too large", found=f"{size} bytes", line=line)
    init: bytes | None = None
    relocations: list[Relocation] = []
    if lexer.value == "=":
        if space not in ("global", "const") or linkage == "extern":
            lexer.illegal(f"no initial value is allowed for {name} in .{linkage or space}", line=line)
        lexer.advance()
        if opaque:
            _skip_braces(lexer)
        else:
            levels = [None if is_open else dimensions[0], *dimensions[1:]] if dimensions else []
            levels += [qualifiers.vector] if qualifiers.vector > 1 else []
            init, relocations = Initializer(context, element, levels, name).parse()
            size = len(init)
    return Variable(
        name=name, space=space, type=element, size=0 if is_open and init is None else size,
        align=qualifiers.natural_align, init=init, relocations=tuple(relocations), linkage=linkage,
        unsized=is_open and init is None, line=line,
    )  # fmt: skip


def _skip_braces(lexer: Lexer) -> None:
    lexer.expect("{")
    while lexer.value != "}":
        if lexer.kind == "end" or lexer.value in (";", "{"):
            lexer.fail("syntax error", "'}'")
        lexer.advance()
    lexer.advance()


class Initializer:
    """Parses the right side of `=`. `levels` are the sizes of the nested braces, None an open first one."""

    def __init__(self, context: Context, element: ScalarType, levels: list[int | None], name: str):
        self.context, self.lexer, self.element, self.name = context, context.lexer, element, name
        self.levels = levels
        self.data = bytearray()
        self.relocations: list[Relocation] = []

    def parse(self) -> tuple[bytes, list[Relocation]]:
        """(bytes, relocations); what the text leaves out is zero."""
        if not self.levels:
            self._scalar(0)
            return bytes(self.data.ljust(self.element.bytes, b"\0")), self.relocations
        inner = math.prod(size for size in self.levels[1:] if size is not None) * self.element.bytes
        if inner * (self.levels[0] or 1) > MAX_INITIALIZED_BYTES:
            self.lexer.illegal(f"initialised variable {self.name} is too large", expected="at most 1 GiB")
        count = self._plain_list() if len(self.levels) == 1 else None
        if count is None:
            count = self._braces(0, 0)
        total = (count if self.levels[0] is None else self.levels[0]) * inner
        return bytes(self.data.ljust(total, b"\0")), self.relocations

    def _plain_list(self) -> int | None:
        """Integers only, the usual case of a long table; None when it is something else."""
        lexer, element = self.lexer, self.element
        found = _PLAIN_LIST.match(lexer.text, lexer.start)
        if found is None or element.kind == "f" or _OCTAL.search(found.group(1)):
            return None
        try:
            values = [int(text) for text in found.group(1).split(",")]
        except ValueError:
            return None
        if self.levels[0] is not None and len(values) > self.levels[0]:
            return None
        if max(values) >> 64 or min(values) < -(1 << 63):
            return None
        mask, size = element.mask, element.bytes
        self.data = bytearray(b"".join((value & mask).to_bytes(size, "little") for value in values))
        lexer.seek(found.end())
        return len(values)

    def _braces(self, level: int, offset: int) -> int:
        lexer = self.lexer
        limit = self.levels[level]
        is_last = level == len(self.levels) - 1
        sizes = [size for size in self.levels[level + 1 :] if size is not None]
        stride = math.prod(sizes) * self.element.bytes
        lexer.expect("{")
        count = 0
        while lexer.value != "}":
            if count:
                lexer.expect(",")
            if limit is not None and count >= limit:
                lexer.illegal(f"initialiser of {self.name} has too many values", expected=f"at most {limit}")
            if is_last:
                self._scalar(offset + count * stride)
            else:
                self._braces(level + 1, offset + count * stride)
            count += 1
            if count * stride > MAX_INITIALIZED_BYTES:
                lexer.illegal(f"initialised variable {self.name} is too large", expected="at most 1 GiB")
        lexer.advance()
        return count

    def _scalar(self, offset: int) -> None:
        lexer, element = self.lexer, self.element
        line = lexer.line
        value = 0
        if lexer.kind == "name" and lexer.value != "WARP_SZ":
            if lexer.value == "mask":
                lexer.advance()
                lexer.expect("(")
                mask = parse_integer(lexer, "mask")
                lexer.expect(",")
                value = self._masked(offset, mask, line)
            else:
                self._address(offset, element.bytes, line)
        else:
            constant = parse_constant(lexer)
            if lexer.value == "(" and not constant.is_float:
                lexer.advance()
                value = self._masked(offset, constant.integer, line)
            elif element.kind == "f" and element.name not in ("f32", "f64"):
                lexer.illegal(f"no initial value is allowed for .{element} {self.name}", line=line)
            elif constant.is_float != (element.kind == "f"):
                found, expected = ("a float", "an integer") if constant.is_float else ("an integer", "a float")
                place = f"initialiser of .{element} {self.name}"
                lexer.illegal(place, found=found, expected=expected, line=line)
            elif constant.is_float and constant.kind != element.name:
                value = float_bits(constant.number(), element.name)
            else:
                value = constant.integer
        self.data.extend(b"\0" * (offset - len(self.data)))
        self.data.extend((value & element.mask).to_bytes(element.bytes, "little"))

    def _masked(self, offset: int, mask: int, line: int) -> int:
        """`0xff00(x)`: one byte of an address, or of a constant (whose value is returned)."""
        lexer = self.lexer
        shift = (mask & -mask).bit_length() - 1
        if mask <= 0 or shift % 8 or mask >> shift != 0xFF or shift > 56:
            lexer.illegal("mask must select one byte", found=hex(mask), expected="0xff, 0xff00, ...", line=line)
        if self.element.bytes != 1:
            lexer.illegal(f"a mask initialises bytes, {self.name} is .{self.element}", line=line)
        if lexer.kind == "name" and lexer.value != "WARP_SZ":
            self._address(offset, 1, line, shift=shift, is_masked=True)
            lexer.expect(")")
            return 0
        value = parse_integer(lexer, "masked constant")
        lexer.expect(")")
        return (value & mask) >> shift

    def _address(self, offset: int, size: int, line: int, *, shift: int = 0, is_masked: bool = False) -> None:
        lexer = self.lexer
        if not is_masked and (size not in (4, 8) or self.element.kind == "f"):
            lexer.illegal(f"an address does not fit .{self.element} {self.name}", line=line)
        generic = lexer.value == "generic"
        addend = 0
        if generic:
            lexer.advance()
            lexer.expect("(")
        symbol = lexer.identifier("a variable or function")
        if lexer.accept("+"):
            addend += parse_integer(lexer, "address offset")
        if generic:
            lexer.expect(")")
            if lexer.accept("+"):
                addend += parse_integer(lexer, "address offset")
        self.context.use_symbol(symbol, line)
        self.relocations.append(Relocation(offset, symbol, addend, size, generic, shift))


# ---------------------------------------------------------------- parameters
def parse_params(context: Context, *, entry: bool, prototype: bool = False) -> list[Param]:
    """Parse `( .param ..., ... )`. Offsets are laid out in order, each at its alignment."""
    lexer = context.lexer
    lexer.expect("(")
    params: list[Param] = []
    names: set[str] = set()
    offset = 0
    while lexer.value != ")":
        if params:
            lexer.expect(",")
        line = lexer.line
        param, opaque = _parse_param(lexer, entry=entry, prototype=prototype)
        offset = -(-offset // param.align) * param.align
        params.append(Param(**{**param.__dict__, "offset": offset}))
        offset += param.size
        if offset >= MAX_BYTES:
            lexer.illegal("parameters are too large", found=f"{offset} bytes", line=line)
        if param.name in names and param.name != "_":
            lexer.illegal(f"parameter {param.name} is declared twice", line=line)
        names.add(param.name)
        if opaque:
            context.opaque.add(param.name)
    lexer.advance()
    return params


def _parse_param(lexer: Lexer, *, entry: bool, prototype: bool) -> tuple[Param, bool]:
    in_register = lexer.value == ".reg"
    if lexer.value not in (".param", ".reg") or (in_register and entry):
        lexer.fail("syntax error", "'.param'" if entry else "'.param' or '.reg'")
    lexer.advance()
    qualifiers = parse_qualifiers(lexer)
    element = qualifiers.type
    if element.kind == "pred" and not in_register:
        lexer.illegal("a predicate cannot be a .param")
    pointer_space = ""
    if lexer.accept(".ptr"):
        pointer_space = "generic"
        if lexer.value in (".global", ".shared", ".local", ".const"):
            pointer_space = lexer.advance()[1:]
        if lexer.value == ".align":
            parse_align(lexer)
    if prototype and lexer.accept("_"):
        name = "_"
    else:
        name = lexer.identifier("a parameter name")
    dimensions = parse_dimensions(lexer)
    count = math.prod(0 if size is None else size for size in dimensions) * qualifiers.vector
    if in_register and (dimensions or qualifiers.vector > 1):
        lexer.illegal(f"register parameter {name} must be a scalar")
    is_array = bool(dimensions) or qualifiers.vector > 1
    param = Param(
        name=name, type=element, size=element.bytes * count, align=qualifiers.natural_align, in_register=in_register,
        pointer_space=pointer_space, is_array=is_array,
    )  # fmt: skip
    return param, qualifiers.opaque


# ---------------------------------------------------------------- functions
def parse_header(context: Context, linkage: str) -> Function:
    """Parse `.entry` or `.func` up to its `{` or `;`, which stays the current token."""
    lexer = context.lexer
    line = lexer.line
    is_entry = lexer.advance() == ".entry"
    function = Function(name="", is_entry=is_entry, linkage=linkage, line=line)
    while lexer.kind == "directive" and not is_entry:
        if lexer.value == ".attribute":
            lexer.advance()
            skip_parenthesised(lexer)
        elif lexer.value == ".noreturn":
            lexer.advance()
            function.noreturn = True
        else:
            lexer.fail("syntax error", "a function name")
    if not is_entry and lexer.value == "(":
        function.returns = parse_params(context, entry=False)
    function.name = lexer.identifier("a function name")
    if lexer.value == "(":
        function.params = parse_params(context, entry=is_entry)
    clash = {p.name for p in function.returns} & {p.name for p in function.params}
    if clash:
        lexer.illegal(f"parameter {min(clash)} is declared twice", line=line)
    while lexer.value not in ("{", ";"):
        _parse_directive(lexer, function)
    return function


def _parse_directive(lexer: Lexer, function: Function) -> None:
    word = lexer.value
    if word == ".noreturn":
        function.noreturn = True
        lexer.advance()
    elif word == ".pragma":
        function.directives["pragma"] = function.directives.get("pragma", ()) + parse_pragma(lexer)
    elif lexer.kind == "directive" and word in DIRECTIVES:
        lexer.advance()
        fewest, most = DIRECTIVES[word]
        values: list[int] = []
        while len(values) < most:
            if values and not lexer.accept(","):
                break
            values.append(parse_integer(lexer, word))
        if any(value < 0 for value in values) or len(values) < fewest:
            lexer.illegal(f"{word} must not be negative", found=", ".join(map(str, values)))
        function.directives[word[1:]] = tuple(values)
    else:
        lexer.fail("syntax error in a function header", "'{', ';' or a performance directive")


def parse_pragma(lexer: Lexer) -> tuple[str, ...]:
    """Parse `.pragma "a", "b";`."""
    lexer.expect(".pragma")
    texts = [lexer.expect_kind("string", "a string")[1:-1]]
    while lexer.accept(","):
        texts.append(lexer.expect_kind("string", "a string")[1:-1])
    lexer.expect(";")
    return tuple(texts)


def parse_prototype(context: Context) -> Prototype:
    """Parse `.callprototype (returns) _ (params) ... ;`, the whole statement."""
    lexer = context.lexer
    lexer.expect(".callprototype")
    returns = parse_params(context, entry=False, prototype=True) if lexer.value == "(" else []
    lexer.expect_kind("name", "'_'")
    params = parse_params(context, entry=False, prototype=True) if lexer.value == "(" else []
    while lexer.kind == "directive" and lexer.value in (".noreturn", ".abi_preserve", ".abi_preserve_control"):
        if lexer.advance() != ".noreturn":
            lexer.unsigned("a number of registers")
    lexer.expect(";")
    return Prototype(tuple(returns), tuple(params))
