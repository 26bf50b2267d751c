"""Function bodies. Enters: a Context and a Function whose `{` is the current token. Leaves: the Function filled.

Statements are cut out by one regular expression; operands of the usual shapes are looked up by their text, and
whatever is not of a usual shape goes through the token parser, which knows the whole grammar and words the errors.
Registers enter `Function.registers` when they are first used: `.reg .b32 %r<4000>` alone makes none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NoReturn

from weft.isa.operands import (
    Address,
    CallTarget,
    Discard,
    Guard,
    Immediate,
    Instruction,
    LabelRef,
    Negated,
    Operand,
    Pair,
    Register,
    SpecialRegister,
    Symbol,
    Vector,
)
from weft.ptx.debug import LOC
from weft.ptx.declarations import (
    LINKAGE,
    VARIABLE_SPACES,
    Context,
    Qualifiers,
    parse_pragma,
    parse_prototype,
    parse_qualifiers,
    parse_variables,
)
from weft.ptx.expressions import parse_constant, parse_integer
from weft.ptx.lexer import IDENTIFIER
from weft.ptx.module import Function, Label, Variable
from weft.ptx.scopes import NotPlainError, OperandCache, Scope
from weft.types import TYPES

STATEMENT = re.compile(
    r"""\s*+(?:
      (?:@\s*+(!?+)\s*+([\w$%]++)\s*+)?+                          # 1 2  guard
      ([A-Za-z_]\w*+(?:\s*+\.\s*+\w++(?:::\w++)*+)*+)             # 3    opcode and modifiers
      (?!\$|\s*+:) \s*+([^;]*+);                                  # 4    operands
    | ([A-Za-z_$%][\w$]*+)\s*+:(?!:)\s*+                          # 5    label
      (\.callprototype|\.branchtargets|\.calltargets)?+           # 6    what the label names
    | (\{) | (\})                                                 # 7 8
    | (\.\w++)                                                    # 9    directive
    )""",
    re.VERBOSE | re.ASCII,
)
_LABEL, _TABLE, _OPEN, _CLOSE, _DIRECTIVE = 5, 6, 7, 8, 9

_REG = re.compile(r"\.reg\s*\.(\w+)\s+([\w$%<>,\s]+);", re.ASCII)
_REG_NAME = re.compile(rf"\s*({IDENTIFIER})\s*(?:<\s*(0|[1-9]\d{{0,17}})\s*>)?\s*", re.ASCII)
_ATOM = re.compile(r"[A-Za-z_$%][\w$]*(?:\.[a-z]\d?)?", re.ASCII)
_ADDRESS = re.compile(r"\[\s*([A-Za-z_$%][\w$]*)\s*(?:\+\s*(0|-?[1-9]\d{0,17}))?\s*\]", re.ASCII)
_DECIMAL = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)
_HEXADECIMAL = re.compile(r"0[xX][0-9a-fA-F]{1,16}", re.ASCII)
_FLOAT_BITS = re.compile(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", re.ASCII)
_PIECE = re.compile(r"(?:[^,{}\[\]]|\{[^{}]*\}|\[[^\[\]]*\])+")
_ELEMENTS = {"x": 0, "y": 1, "z": 2, "w": 3, "r": 0, "g": 1, "b": 2, "a": 3}

# PTX manual, "Special Registers".
SPECIAL_REGISTERS = re.compile(
    r"%(?:(?:tid|ntid|ctaid|nctaid|clusterid|nclusterid|cluster_ctaid|cluster_nctaid)(?:\.[xyzw])?"
    r"|laneid|warpid|nwarpid|smid|nsmid|gridid|is_explicit_cluster|cluster_ctarank|cluster_nctarank"
    r"|lanemask_(?:eq|le|lt|ge|gt)|clock|clock_hi|clock64|pm[0-7](?:_64)?"
    r"|envreg(?:[0-9]|[12][0-9]|3[01])|globaltimer(?:_lo|_hi)?"
    r"|reserved_smem_offset_(?:begin|end|cap|[01])|total_smem_size|aggr_smem_size|dynamic_smem_size"
    r"|current_graph_exec)"
)
_ACCESSES = ("ld", "ldu", "st", "atom", "red")
_DISCARD = Discard()
_WARP_SIZE = SpecialRegister("WARP_SZ")


class BodyParser:
    """Parses one function body."""

    def __init__(self, context: Context, function: Function):
        self.context, self.function, self.lexer = context, function, context.lexer
        self.file = context.module.file
        self.used: set[str] = set()
        self.scope = self._enter(None)
        self.label_refs: list[tuple[int, Scope]] = []
        self.target_lists: list[tuple[str, Scope, int]] = []
        self.guards: dict[str, Guard] = {}  # by `p` and `!p`, in the innermost scope
        self.line = 0
        self.opcode = ""
        for param in (*function.returns, *function.params):
            self.used.add(param.name)
            if param.in_register:
                function.registers[param.name] = param.type
                self.scope.names[param.name] = Register(param.name)
            else:
                self.scope.names[param.name] = Symbol(param.name)

    def _enter(self, parent: Scope | None) -> Scope:
        return Scope(parent, self._make_operand, self.used, self.function.registers)

    def parse(self) -> None:
        """Parse from `{` to the `}` that closes it; the token behind becomes current."""
        lexer = self.lexer
        self.context.sources.start_function()
        self.line = lexer.line
        end = self._statements(lexer.end)
        self._resolve_labels()
        lexer.seek(end)

    def _statements(self, position: int) -> int:
        text, match, body = self.lexer.text, STATEMENT.match, self.function.body
        heads: dict[str, tuple[str, tuple[str, ...]]] = {}
        count, append, new = text.count, body.append, object.__new__
        scope = self.scope
        cache, guards = scope.cache, self.guards
        line, counted = self.line, position
        location = None
        pragmas: tuple[str, ...] = ()
        while True:
            found = match(text, position)
            if found is None:
                self._bad_statement(position)
            position = found.end()
            kind = found.lastindex or 0
            start = found.start(3 if kind == 4 else kind)
            line += count("\n", counted, start)
            counted = start
            self.line = line
            if kind == 4:
                negated, guard, head, operands = found.group(1, 2, 3, 4)
                parts = heads.get(head)
                if parts is None:
                    first, *rest = head.split(".")
                    parts = heads[head] = (first.strip(), tuple(part.strip() for part in rest))
                opcode, modifiers = parts
                self.opcode = opcode
                if guard is not None:
                    guard = guards.get(negated + guard) or self._guard(negated, guard)
                if opcode in ("bra", "brx", "call"):
                    values = self._control(opcode, operands, found.start(4), position - 1)
                else:
                    try:
                        if "{" in operands:
                            pieces = _PIECE.findall(operands)
                            if sum(map(len, pieces)) + len(pieces) - 1 != len(operands):
                                raise NotPlainError
                            values = tuple([cache[piece] for piece in pieces])
                        elif operands:
                            values = tuple([cache[piece] for piece in operands.split(",")])
                        else:
                            values = ()
                    except NotPlainError:
                        values = None
                    if values is None:
                        values = self._operands(found.start(4), position - 1)
                    if "{" in operands and opcode in _ACCESSES:
                        values = _without_braces(modifiers, values)
                # Instruction(...), without the constructor of a frozen dataclass: it costs a sixth of the parse.
                instruction = new(Instruction)
                instruction.__dict__.update(
                    opcode=opcode, modifiers=modifiers, operands=values, guard=guard, line=line, location=location,
                    pragmas=pragmas,
                )  # fmt: skip
                append(instruction)
                pragmas = ()
            elif kind == _LABEL:
                self._label(found.group(5))
            elif kind == _OPEN:
                self.scope = scope = self._enter(scope)
                cache = scope.cache
                guards.clear()
            elif kind == _CLOSE:
                if scope.parent is None:
                    return position
                self.scope = scope = scope.parent
                cache = scope.cache
                guards.clear()
            elif kind == _TABLE:
                position = self._table(found.group(5), found.group(6), start)
            else:
                directive = found.group(9)
                if directive == ".loc":
                    loc = LOC.match(text, start)
                    if loc is None:
                        self.lexer.seek(start)
                        self.lexer.fail("syntax error", ".loc FILE LINE COLUMN")
                    location = self.context.sources.locate(loc)
                    position = loc.end()
                elif directive == ".pragma":
                    self.lexer.seek(start)
                    pragmas += parse_pragma(self.lexer)
                    position = self.lexer.start
                else:
                    position = self._declaration(directive, start)
                    cache.clear()
                    guards.clear()

    # ------------------------------------------------------------ statements
    def _bad_statement(self, position: int) -> NoReturn:
        lexer = self.lexer
        lexer.seek(position)
        if lexer.kind == "end":
            lexer.fail(f"the body of {self.function.name} is not closed", "'}'")
        if lexer.value == "@":
            lexer.advance()
            lexer.accept("!")
            lexer.identifier("a predicate")
        if lexer.kind == "name" and not lexer.value.startswith(("$", "%")):
            self.opcode = lexer.advance()
            while lexer.kind == "directive":
                lexer.advance()
            if lexer.kind in ("name", "int", "float") or lexer.value in ("{", "[", "(", "!", "-"):
                self._operand_list()
            lexer.fail("syntax error", "';'")
        lexer.fail("syntax error", "an instruction, a label or a declaration")

    def _label(self, name: str) -> None:
        if name in self.scope.labels or name in self.scope.tables:
            self._illegal(f"label {name} is defined twice")
        final = self._unique(name)
        self.scope.labels[name] = final
        self.function.body.append(Label(final, self.line))

    def _table(self, name: str, directive: str, start: int) -> int:
        """`name: .callprototype ...`, `.calltargets`, `.branchtargets`; returns the position behind it."""
        lexer, scope = self.lexer, self.scope
        if name in scope.labels or name in scope.tables:
            self._illegal(f"label {name} is defined twice")
        final = self._unique(name)
        scope.tables[name] = final
        lexer.seek(start)
        if directive == ".callprototype":
            self.function.prototypes[final] = parse_prototype(self.context)
            return lexer.start
        lexer.advance()
        names = [lexer.identifier("a name")]
        while lexer.accept(","):
            names.append(lexer.identifier("a name"))
        lexer.expect(";")
        if directive == ".calltargets":
            self.function.call_targets[final] = tuple(names)
            for function in names:
                self.context.use_symbol(function, self.line)
        else:
            self.function.branch_targets[final] = tuple(names)
            self.target_lists.append((final, scope, self.line))
        return lexer.start

    def _declaration(self, directive: str, start: int) -> int:
        """A declaration in the body; returns the position behind it."""
        lexer = self.lexer
        if directive == ".reg":
            found = _REG.match(lexer.text, start)
            if found is not None and found.group(1) in TYPES and self._registers(found):
                return found.end()
            lexer.seek(start)
            self._register_declaration()
            return lexer.start
        lexer.seek(start)
        linkage = lexer.advance()[1:] if directive in LINKAGE else ""
        if lexer.value in VARIABLE_SPACES:
            space = lexer.advance()[1:]
            for variable, opaque in parse_variables(self.context, space, linkage):
                self._declare_variable(variable, opaque)
            return lexer.start
        if directive == ".file":
            skip_file(self.context)
            return lexer.start
        return lexer.fail("syntax error", "an instruction, a label or a declaration")

    def _registers(self, found: re.Match) -> bool:
        """The usual `.reg .b32 a, %b<4>;`; False when it takes the token parser."""
        names = []
        for part in found.group(2).split(","):
            name = _REG_NAME.fullmatch(part)
            if name is None:
                return False
            names.append(name.groups())
        qualifiers = Qualifiers(TYPES[found.group(1)], 0)
        for text, count in names:
            self._declare_register(text, count, qualifiers)
        return True

    def _register_declaration(self) -> None:
        lexer = self.lexer
        lexer.expect(".reg")
        qualifiers = parse_qualifiers(lexer)
        if qualifiers.opaque:
            lexer.fail("syntax error", "a register type")
        while True:
            name = lexer.identifier("a register name")
            count = None
            if lexer.accept("<"):
                count = str(lexer.unsigned("a number of registers"))
                lexer.expect(">")
            self._declare_register(name, count, qualifiers)
            if not lexer.accept(","):
                break
        lexer.expect(";")

    def _declare_register(self, name: str, count: str | None, qualifiers: Qualifiers) -> None:
        scope = self.scope
        if count is not None:
            if name in scope.ranges:
                self._illegal(f"registers {name}<> are declared twice")
            scope.ranges[name] = (int(count), qualifiers)
            if scope.parent is None and qualifiers.vector == 1:
                scope.cache.ranges[name] = scope.ranges[name]
            return
        if name in scope.names:
            self._illegal(f"{name} is declared twice")
        self._new_register(scope, name, qualifiers)

    def _declare_variable(self, variable: Variable, opaque: bool) -> None:
        scope, module = self.scope, self.context.module
        name = variable.name
        if name in scope.names:
            self._illegal(f"{name} is declared twice", line=variable.line)
        if opaque:
            self.context.opaque.add(name)
        if variable.space in ("global", "const"):
            # Variables of these spaces live as long as the module, whatever scope names them.
            final, number = name, 1
            while final in module.variables or final in module.functions or final in self.used:
                number += 1
                final = f"{name}${number}"
            module.variables[final] = replace(variable, name=final)
        else:
            final = self._unique(name, taken=scope.parent is not None and self._in_module(name))
            self.function.variables[final] = replace(variable, name=final)
        scope.names[name] = Symbol(final)

    # ------------------------------------------------------------ names
    def _in_module(self, name: str) -> bool:
        return name in self.context.module.variables or name in self.context.module.functions

    def _module_symbol(self, name: str) -> Symbol:
        """A name that no scope declares; one that is declared later in the function gets another name."""
        self.context.use_symbol(name, self.line)
        self.used.add(name)
        return Symbol(name)

    def _unique(self, name: str, taken: bool = False) -> str:
        final, number = name, 1
        while taken or final in self.used:
            number += 1
            final = f"{name}${number}"
            taken = False
        self.used.add(final)
        return final

    def _new_register(self, scope: Scope, name: str, qualifiers: Qualifiers) -> Operand:
        """Make the register (or the vector of registers) that `scope` declares as `name`."""
        outer = scope.parent
        if outer is None and name not in self.used:
            final = name
            self.used.add(name)
        else:
            taken = outer is not None and self._in_module(name)
            while outer is not None and not taken:
                taken = outer.declares(name)
                outer = outer.parent
            final = self._unique(name, taken=taken)
        if qualifiers.vector == 1:
            operand: Operand = Register(final)
            self.function.registers[final] = qualifiers.type
        else:
            names = [self._unique(f"{final}${element}") for element in "xyzwabcd"[: qualifiers.vector]]
            self.function.registers.update(dict.fromkeys(names, qualifiers.type))
            operand = Vector(tuple(Register(element) for element in names))
        scope.names[name] = operand
        return operand

    def _find(self, name: str) -> Operand | None:
        """What the function's scopes know as `name`: a Register, Vector or Symbol."""
        scope: Scope | None = self.scope
        while scope is not None:
            operand = scope.names.get(name)
            if operand is not None:
                return operand
            if scope.ranges:
                qualifiers = scope.range_of(name)
                if qualifiers is not None:
                    return self._new_register(scope, name, qualifiers)
            scope = scope.parent
        return None

    def _atom(self, text: str) -> Operand:
        """The operand that a name stands for, with an element behind a dot or without: `%r1`, `V.x`, `%tid.x`."""
        operand = self._find(text)
        if operand is not None:
            if isinstance(operand, Symbol) and text in self.context.opaque:
                self._refuse_texture(text)
            return operand
        if text == "_":
            return _DISCARD
        if text[0] == "%" and SPECIAL_REGISTERS.fullmatch(text):
            return SpecialRegister(text)
        name, dot, element = text.partition(".")
        if dot:
            return self._element(name, element)
        if text == "WARP_SZ":
            return _WARP_SIZE
        if text[0] == "%" and not self._in_module(text):
            self._illegal(f"register {text} is not declared")
        if text in self.context.opaque:
            self._refuse_texture(text)
        return self._module_symbol(text)

    def _element(self, name: str, element: str) -> Operand:
        operand = self._find(name)
        if isinstance(operand, Vector) and _ELEMENTS.get(element, len(operand.items)) < len(operand.items):
            return operand.items[_ELEMENTS[element]]
        if isinstance(operand, Register) and re.fullmatch(r"[bh]\d+", element):
            self.lexer.unsupported(
                f"{self.opcode}: byte and half-word selectors ({name}.{element}) are not supported; "
                "extract the part with bfe or prmt",
                line=self.line,
            )
        if operand is None and name[0] == "%":
            self._illegal(f"register {name}.{element} is not declared")
        return self._illegal(f"{name} has no element .{element}")

    def _refuse_texture(self, name: str) -> NoReturn:
        self.lexer.unsupported(
            f"{self.opcode} {name}: textures, samplers and surfaces are not supported; read global memory instead",
            line=self.line,
        )

    def _guard(self, negated: str, name: str) -> Guard:
        operand = self._find(name)
        if operand is None and name[0] in "$%" or isinstance(operand, Vector):
            self._illegal(f"guard @{negated}{name} is not a declared register")
        kind = self.function.registers.get(operand.name) if isinstance(operand, Register) else None
        if not isinstance(operand, Register) or kind is None or kind.kind != "pred":
            self._illegal(f"guard @{negated}{name}", found=f".{kind}" if kind else "no register", expected=".pred")
        guard = Guard(operand.name, bool(negated))
        self.guards[negated + name] = guard
        return guard

    def _illegal(self, message: str, *, found: str = "", expected: str = "", line: int = 0) -> NoReturn:
        self.lexer.illegal(message, found=found, expected=expected, line=line or self.line)

    # ------------------------------------------------------------ operands by their text
    def _make_operand(self, piece: str, cache: OperandCache) -> Operand:
        """The operand of a usual shape that `piece` spells, into the cache. Raises NotPlainError for other shapes."""
        text = piece.strip()
        value: Operand
        if text in cache:
            value = cache[piece] = cache[text]
            return value
        first = text[:1]
        if first == "[":
            found = _ADDRESS.fullmatch(text)
            if found is None:
                raise NotPlainError
            name, offset = found.groups()
            base = cache[name]
            if not isinstance(base, (Register, Symbol)):
                raise NotPlainError
            value = Address(base, int(offset) if offset else 0)
        elif first == "-" or first.isdigit():
            value = self._plain_number(text)
        elif first == "{" and text[-1] == "}":
            items = tuple([cache[part] for part in text[1:-1].split(",")])
            if any(isinstance(item, (Vector, Address, Pair)) for item in items):
                raise NotPlainError
            value = Vector(items)
        elif _ATOM.fullmatch(text):
            value = self._atom(text)
            cache[" " + text] = value
        elif text.count("|") == 1:
            left, right = (cache[part] for part in text.split("|"))
            if not isinstance(left, (Register, Discard)) or not isinstance(right, (Register, Discard)):
                raise NotPlainError
            value = Pair(left, right)
        else:
            raise NotPlainError
        cache[text] = cache[piece] = value
        return value

    def _plain_number(self, text: str) -> Immediate:
        if _DECIMAL.fullmatch(text):
            return Immediate(int(text))
        if _FLOAT_BITS.fullmatch(text):
            return Immediate(int(text[2:], 16), "f32" if text[1] in "fF" else "f64")
        if _HEXADECIMAL.fullmatch(text):
            return Immediate(int(text, 16))
        raise NotPlainError

    # ------------------------------------------------------------ operands by tokens
    def _operands(self, start: int, end: int) -> tuple:
        """The operands of any statement from `start` to its `;` at `end`. Raises PtxSyntaxError."""
        lexer = self.lexer
        lexer.seek(start)
        values = self._operand_list()
        if lexer.start != end:
            lexer.fail("syntax error", "',' or ';'")
        return tuple(values)

    def _operand_list(self) -> list[Operand]:
        values = [self._operand()]
        while self.lexer.accept(","):
            values.append(self._operand())
        return values

    def _operand(self, *, in_vector: bool = False) -> Operand:
        lexer = self.lexer
        if lexer.kind == "op" and lexer.value == "{" and not in_vector:
            operand: Operand = self._vector()
        elif lexer.kind == "op" and lexer.value == "[" and not in_vector:
            return self._address()
        elif lexer.kind == "op" and lexer.value == "!":
            start = lexer.start
            lexer.advance()
            if lexer.kind != "name" or lexer.value == "WARP_SZ":
                lexer.seek(start)
                return parse_constant(lexer).immediate()
            name = lexer.value
            operand = self._name()
            if not isinstance(operand, Register):
                self._illegal(f"!{name} is not a register")
            return Negated(operand)
        elif lexer.kind == "name":
            operand = self._name()
        else:
            return parse_constant(lexer).immediate()
        if lexer.value == "|" and not in_vector:
            lexer.advance()
            second = self._operand(in_vector=True)
            if not isinstance(operand, (Register, Discard, Vector)) or not isinstance(second, (Register, Discard)):
                lexer.fail("syntax error", "two registers around '|'")
            return Pair(operand, second)
        return operand

    def _name(self) -> Operand:
        """A register, special register, symbol with offset or index, `_`, or an expression with WARP_SZ."""
        lexer = self.lexer
        start = lexer.start
        text = lexer.advance()
        if text == "WARP_SZ":
            if lexer.kind == "op" and lexer.value not in (",", ";", "]", "}", ")"):
                lexer.seek(start)
                return parse_constant(lexer).immediate()
            return _WARP_SIZE
        if lexer.kind == "directive":
            text += lexer.advance()
        operand = self._atom(text)
        if not isinstance(operand, Symbol):
            return operand
        if lexer.accept("+"):
            return Symbol(operand.name, parse_integer(lexer, "offset"))
        if lexer.accept("["):
            return self._indexed(operand)
        return operand

    def _indexed(self, symbol: Symbol) -> Operand:
        """`array[3]`: the address of an element, or the access to it where the instruction takes an address."""
        lexer = self.lexer
        if lexer.kind == "name" and lexer.value != "WARP_SZ":
            lexer.unsupported(f"{symbol.name}[{lexer.value}]: a register cannot index a variable here; add it to its "
                              "address")  # fmt: skip
        index = parse_integer(lexer, "array index")
        lexer.expect("]")
        variable = self.function.variables.get(symbol.name) or self.context.module.variables.get(symbol.name)
        if variable is None:
            self._illegal(f"{symbol.name} is no variable that could be indexed")
        offset = index * variable.type.bytes
        if self.opcode in ("mov", "cvta"):
            return Symbol(symbol.name, offset)
        return Address(symbol, offset)

    def _vector(self) -> Vector:
        lexer = self.lexer
        lexer.expect("{")
        items = [self._operand(in_vector=True)]
        while lexer.accept(","):
            items.append(self._operand(in_vector=True))
        lexer.expect("}")
        return Vector(tuple(items))

    def _address(self) -> Address:
        lexer = self.lexer
        lexer.expect("[")
        offset = 0
        if lexer.kind == "name" and lexer.value != "WARP_SZ":
            text = lexer.advance()
            if lexer.kind == "directive":
                text += lexer.advance()
            base = self._atom(text)
            if not isinstance(base, (Register, Symbol)):
                self._illegal(f"{text} is no address", expected="a register, a variable or a constant")
            if lexer.accept("+"):
                offset = parse_integer(lexer, "offset")
        else:
            base = Immediate(parse_integer(lexer, "address"))
        if not lexer.accept(","):
            lexer.expect("]")
            return Address(base, offset)
        items = self._operand_list()
        first = items[0]
        lexer.expect("]")
        return Address(base, offset, first if len(items) == 1 and isinstance(first, Vector) else Vector(tuple(items)))

    # ------------------------------------------------------------ control flow
    def _control(self, opcode: str, text: str, start: int, end: int) -> tuple:
        """Operands of bra, brx and call."""
        if opcode == "bra":
            name = text.strip()
            if not _ATOM.fullmatch(name) or "." in name:
                self.lexer.seek(start)
                self.lexer.identifier("a label")
                self.lexer.fail("syntax error", "';'")
            self.label_refs.append((len(self.function.body), self.scope))
            return (LabelRef(name),)
        lexer = self.lexer
        lexer.seek(start)
        if opcode == "brx":
            index = self._operand()
            lexer.expect(",")
            line = lexer.line
            table = LabelRef(self._find_table(lexer.identifier("a .branchtargets label"), line, "branch_targets"))
            operands: tuple = (index, table)
        else:
            operands = (self._call(),)
        if lexer.start != end:
            lexer.fail("syntax error", "',' or ';'")
        return operands

    def _find_table(self, name: str, line: int, *kinds: str) -> str:
        """The Function's name of a label that an earlier directive of one of `kinds` (Function fields) defined."""
        scope: Scope | None = self.scope
        while scope is not None and name not in scope.tables:
            scope = scope.parent
        final = scope.tables[name] if scope is not None else ""
        if not any(final in getattr(self.function, kind) for kind in kinds):
            words = " or ".join("." + kind.replace("_", "").replace("prototypes", "callprototype") for kind in kinds)
            self._illegal(f"{name} is not declared", expected=f"a {words} label", line=line)
        return final

    def _call(self) -> CallTarget:
        lexer = self.lexer
        returns: tuple = ()
        if lexer.value == "(":
            returns = self._call_list()
            lexer.expect(",")
        name = lexer.identifier("a function")
        target = self._find(name)
        if isinstance(target, Register):
            pass
        elif target is None:
            target = self._module_symbol(name)
        else:
            self._illegal(f"call: {name} is no function")
        arguments: tuple = ()
        prototype = ""
        if lexer.accept(","):
            if lexer.value == "(":
                arguments = self._call_list()
                if lexer.accept(","):
                    line = lexer.line
                    label = lexer.identifier("a .callprototype label")
                    prototype = self._find_table(label, line, "prototypes", "call_targets")
            elif isinstance(target, Register):
                line = lexer.line
                label = lexer.identifier("'(' or a .callprototype label")
                prototype = self._find_table(label, line, "prototypes", "call_targets")
            else:
                lexer.fail("syntax error", "'('")
        if isinstance(target, Register) and not prototype:
            self._illegal(f"call {name}: an indirect call needs a .callprototype or .calltargets label")
        return CallTarget(target, returns, arguments, prototype)

    def _call_list(self) -> tuple:
        lexer = self.lexer
        lexer.expect("(")
        if lexer.accept(")"):
            return ()
        items = [self._operand(in_vector=True)]
        while lexer.accept(","):
            items.append(self._operand(in_vector=True))
        lexer.expect(")")
        return tuple(items)

    def _resolve_labels(self) -> None:
        """Give branches the names that their labels have in the Function, where scopes repeat labels."""
        body = self.function.body
        for index, scope in self.label_refs:
            branch = body[index]
            name = branch.operands[0].name
            final = self._visible_label(name, scope, branch.line)
            if final != name:
                body[index] = replace(branch, operands=(LabelRef(final),))
        targets = self.function.branch_targets
        for table, scope, line in self.target_lists:
            targets[table] = tuple(self._visible_label(name, scope, line) for name in targets[table])

    def _visible_label(self, name: str, scope: Scope | None, line: int) -> str:
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.parent
        return self._illegal(f"label {name} is not defined in {self.function.name}, or not in this scope", line=line)


def _without_braces(modifiers: tuple[str, ...], values: tuple) -> tuple:
    """Triton writes `ld.global.b32 { %r1 }, [...]`: braces around one operand of a scalar access mean nothing."""
    if any(isinstance(value, Vector) and len(value.items) == 1 for value in values) and not any(
        modifier in ("v2", "v4", "v8") for modifier in modifiers
    ):
        return tuple([v.items[0] if isinstance(v, Vector) and len(v.items) == 1 else v for v in values])
    return values


def skip_file(context: Context) -> None:
    """Step over `.file N "path"[, timestamp, size]`; the table was read beforehand."""
    lexer = context.lexer
    lexer.expect(".file")
    lexer.unsigned("a file index")
    lexer.expect_kind("string", "a file name")
    while lexer.accept(","):
        lexer.unsigned("a time stamp or a file size")
