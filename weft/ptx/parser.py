"""PTX text -> Module. Enters: the text of a PTX file (3.x to 9.x). Leaves: a Module, or an error with its line.

The parser knows the grammar but no instruction: opcodes, modifiers and operands are read as they stand, and
weft/ptx/check.py holds them against the instruction table.
"""

from __future__ import annotations

import re

from weft.ptx.body import BodyParser, skip_file
from weft.ptx.check import check_module
from weft.ptx.debug import DebugStrings, SourceMap, read_files
from weft.ptx.declarations import (
    LINKAGE,
    VARIABLE_SPACES,
    Context,
    parse_align,
    parse_header,
    parse_pragma,
    parse_variables,
)
from weft.ptx.lexer import IDENTIFIER, Lexer, strip_comments
from weft.ptx.module import Function, Module, Variable
from weft.types import TYPES

_VERSION = re.compile(r"\s*(\d{1,3})\.(\d{1,3})(?![\w.])", re.ASCII)
_SECTION = re.compile(r"\.section\s+[\w.$]+\s*\{[\s\w.,:$+\-]*\}", re.ASCII)
# `.visible .global .align 4 .u32 name[4];` and `... name = 5;`: CUDA's C++ library headers bring hundreds of them.
_PLAIN_VARIABLE = re.compile(
    rf"\s*(?:\.(visible|extern|weak|common)\s+)?\.(global|const|shared)\s+(?:\.align\s+([1-9]\d{{0,4}})\s+)?"
    rf"\.([bus]\d\d?)\s+({IDENTIFIER})\s*(?:\[\s*([1-9]\d{{0,8}})\s*\]|=\s*(0|-?[1-9]\d{{0,17}}))?\s*;",
    re.ASCII,
)
_TARGET = re.compile(r"(?:sm|compute)_\d{1,4}[a-z]?")
_TARGET_OPTIONS = ("texmode_unified", "texmode_independent", "debug", "map_f64_to_f32")


def parse_module(text: str, file: str = "<ptx>", check: bool = False) -> Module:
    """Parse a PTX file; `file` names it in messages. With `check`, run check_module on the result.

    Raises PtxSyntaxError for text that does not follow the grammar, PtxError for names that are declared twice or
    not at all and for illegal values, UnsupportedError for what Weft cannot run; each tells the line.
    """
    # The NUL that ends the text of a C library call is no part of it.
    stripped = strip_comments(text.rstrip("\0"), file)
    lexer = Lexer(stripped, file)
    module = Module(file=file, version=(0, 0), target="", text=text)
    module.files = read_files(stripped)
    context = Context(lexer, module, SourceMap(module.files, DebugStrings(stripped)))
    _parse_preamble(context)
    while lexer.kind != "end":
        if not _plain_variables(context):
            _parse_statement(context)
    _resolve_symbols(context)
    if check:
        check_module(module)
    return module


def _parse_preamble(context: Context) -> None:
    """`.version`, `.target` and, from version 2.3 on and mostly there, `.address_size`."""
    lexer, module = context.lexer, context.module
    if lexer.value != ".version":
        lexer.fail("a PTX file begins with .version", "'.version'")
    found = _VERSION.match(lexer.text, lexer.end)
    if found is None:
        lexer.advance()
        lexer.fail("syntax error", "a version such as 8.7")
    module.version = int(found.group(1)), int(found.group(2))
    lexer.seek(found.end())
    lexer.expect(".target", ".version is followed by .target")
    while True:
        line = lexer.line
        name = lexer.identifier("a target such as sm_90")
        if _TARGET.fullmatch(name):
            # A list of targets gives alternatives; the first is the one that counts here.
            module.target = module.target or name
        elif name not in _TARGET_OPTIONS:
            lexer.illegal("unknown target", found=name, expected="sm_NN", line=line)
        if not lexer.accept(","):
            break
    if not module.target:
        lexer.illegal(".target names no architecture", expected="sm_NN")
    if lexer.accept(".address_size"):
        line = lexer.line
        module.address_bits = lexer.unsigned("32 or 64")
        if module.address_bits not in (32, 64):
            lexer.illegal("unknown address size", found=str(module.address_bits), expected="32 or 64", line=line)


def _parse_statement(context: Context) -> None:
    """One declaration or directive at module level."""
    lexer = context.lexer
    word = lexer.value if lexer.kind == "directive" else ""
    if word == ".file":
        skip_file(context)
    elif word == ".section":
        _skip_section(lexer)
    elif word == ".alias":
        _parse_alias(context)
    elif word == ".pragma":
        parse_pragma(lexer)
    elif word in LINKAGE or word in VARIABLE_SPACES or word in (".entry", ".func", ".align"):
        _parse_declaration(context)
    else:
        lexer.fail("syntax error", "a declaration or directive")


def _plain_variables(context: Context) -> bool:
    """Declare the plain variables that follow; whether there were any. They take a quarter of the usual time."""
    lexer = context.lexer
    start = position = lexer.start
    while found := _PLAIN_VARIABLE.match(lexer.text, position):
        linkage, space, align, kind, name, count, init = found.groups()
        element = TYPES.get(kind)
        if element is None or (init and (space == "shared" or linkage == "extern")):
            break
        alignment = int(align) if align else element.bytes
        if alignment & (alignment - 1):
            break
        variable = Variable(
            name, space, element, element.bytes * int(count or 1), alignment,
            (int(init) & element.mask).to_bytes(element.bytes, "little") if init else None,
            linkage=linkage or "", line=lexer.line_at(found.start(2)),
        )  # fmt: skip
        _declare_variable(context, variable)
        position = found.end()
    if position == start:
        return False
    lexer.seek(position)
    return True


def _skip_section(lexer: Lexer) -> None:
    found = _SECTION.match(lexer.text, lexer.start)
    if found is None:
        lexer.advance()
        lexer.expect_kind("directive", "a section name")
        lexer.expect("{")
        while lexer.value in (",", ":", "+", "-") or lexer.kind in ("name", "int", "directive"):
            lexer.advance()
        lexer.fail("syntax error in a section", "'}'")
    lexer.seek(found.end())


def _parse_alias(context: Context) -> None:
    lexer = context.lexer
    lexer.advance()
    line = lexer.line
    alias = lexer.identifier("a function name")
    lexer.expect(",")
    target = lexer.identifier("a function name")
    lexer.expect(";")
    context.use_symbol(target, line)
    context.module.aliases[alias] = target


def _parse_declaration(context: Context) -> None:
    lexer = context.lexer
    linkage = ""
    while lexer.kind == "directive" and lexer.value in LINKAGE:
        if linkage:
            lexer.fail("syntax error", "one linkage directive")
        linkage = lexer.advance()[1:]
    if lexer.value in (".entry", ".func"):
        _parse_function(context, linkage)
        return
    align = parse_align(lexer) if lexer.value == ".align" else 0
    if lexer.kind != "directive" or lexer.value not in VARIABLE_SPACES or lexer.value in (".param", ".local"):
        # A .local at module level is legal in old PTX only; every thread would own one.
        if lexer.value == ".local":
            lexer.unsupported("a .local variable at module level; declare it inside the function")
        lexer.fail("syntax error", "a state space, '.entry' or '.func'")
    space = lexer.advance()[1:]
    for variable, opaque in parse_variables(context, space, linkage, align):
        _declare_variable(context, variable)
        if opaque:
            context.opaque.add(variable.name)


def _declare_variable(context: Context, variable: Variable) -> None:
    module = context.module
    old = module.variables.get(variable.name)
    if variable.name in module.functions or (old is not None and "extern" not in (old.linkage, variable.linkage)):
        context.lexer.illegal(f"{variable.name} is declared twice", line=variable.line)
    if old is None or old.linkage == "extern":
        module.variables[variable.name] = variable


def _parse_function(context: Context, linkage: str) -> None:
    lexer, module = context.lexer, context.module
    function = parse_header(context, linkage)
    old = module.functions.get(function.name)
    if function.name in module.variables or (old is not None and not _agree(old, function)):
        lexer.illegal(f"{function.name} is declared differently before", line=function.line)
    if lexer.value == ";":
        lexer.advance()
        function.is_declaration = True
        if old is None:
            module.functions[function.name] = function
        return
    if old is not None and not old.is_declaration:
        lexer.illegal(f"function {function.name} is defined twice", line=function.line)
    if old is not None:
        function.noreturn = function.noreturn or old.noreturn
    # The body may call itself or take its own address, so the name must be known before it is read. Functions stand
    # in the order of their definitions.
    module.functions.pop(function.name, None)
    module.functions[function.name] = function
    BodyParser(context, function).parse()


def _agree(old: Function, new: Function) -> bool:
    """Whether two declarations of a function have the same shape (names of parameters may differ)."""

    def shape(function: Function) -> tuple:
        params = [[(p.size, p.in_register) for p in part] for part in (function.returns, function.params)]
        return function.is_entry, params

    return shape(old) == shape(new)


def _resolve_symbols(context: Context) -> None:
    """Every name that was used must be declared somewhere in the file."""
    module = context.module
    for name, line in context.symbol_uses.items():
        if name not in module.variables and name not in module.functions and name not in module.aliases:
            context.lexer.illegal(f"{name} is not declared", line=line)
    for alias, target in module.aliases.items():
        if target not in module.functions:
            context.lexer.illegal(f"alias {alias}: {target} is no function", line=context.symbol_uses[target])
