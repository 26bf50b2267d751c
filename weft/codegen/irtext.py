"""A structured writer of LLVM IR text: a Python function that reads as code enters, the text of one function leaves.

    f = IRFunction("count_bits", "i32", [("ptr", "words"), ("i64", "n")])
    words, n = f.parameters
    total = f.variable(f.const("i32", 0))
    with f.for_range(f.const("i64", 0), n) as i:
        word = f.load("i32", f.index(words, i, 4))
        f.set(total, f.add(f.get(total), f.intrinsic("i32", "llvm.ctpop.i32", word)))
    f.ret(f.get(total))
    text = f.text()

Every value carries its LLVM type. Where an operand is a plain Python int it takes the type of the other operand.
Mutable locals are allocas (SROA turns them into registers). Fields of the structures in abi.py go by name: offset and
width come from the ctypes structure. Intrinsics need no declaration (LLVM declares them while parsing).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Value:
    """One SSA value or constant: `type` is LLVM's spelling, `ref` what stands for it in an instruction."""

    type: str
    ref: str

    def __str__(self) -> str:
        return f"{self.type} {self.ref}"


def vector_type(element: str, count: int = 32) -> str:
    """The type of `count` elements."""
    return f"<{count} x {element}>"


@cache
def split_vector(type_: str) -> tuple[int, str]:
    """(count, element) of a vector type; (0, type) of a scalar one."""
    if not type_.startswith("<"):
        return 0, type_
    count, _, element = type_[1:-1].partition(" x ")
    return int(count), element


def with_element(type_: str, element: str) -> str:
    """`type_` with another element type: the result type of a comparison or a conversion."""
    count, _ = split_vector(type_)
    return vector_type(element, count) if count else element


def constant(type_: str, number: int) -> Value:
    """An integer constant; on a vector type the same number in every element; on `ptr` only 0 (null)."""
    count, element = split_vector(type_)
    if type_ == "ptr":
        assert number == 0, number
        return Value("ptr", "null")
    assert element.startswith("i"), f"integer constant of type {type_}"
    if element == "i1":
        number &= 1
    return Value(type_, f"splat ({element} {number})" if count else str(number))


def vector_constant(element: str, numbers: list[int]) -> Value:
    """A vector constant of integers."""
    return Value(vector_type(element, len(numbers)), "<" + ", ".join(f"{element} {n}" for n in numbers) + ">")


_FIELD_TYPES = {4: "i32", 8: "i64"}


@cache
def field_place(structure: type[ctypes.Structure], name: str) -> tuple[int, str]:
    """(offset in bytes, LLVM type) of a field; pointers are `ptr`, structures and arrays `i8`."""
    offset = getattr(structure, name).offset
    kind = {field[0]: field[1] for field in structure._fields_}[name]
    if kind is ctypes.c_void_p:
        return offset, "ptr"
    if issubclass(kind, (ctypes.Structure, ctypes.Array)):
        return offset, "i8"
    return offset, _FIELD_TYPES[ctypes.sizeof(kind)]


class Loop:
    """The loop that encloses the current position."""

    def __init__(self, function: IRFunction, done: str):
        self.function, self.done = function, done

    def break_if(self, condition: Value) -> None:
        """Leaves the loop when `condition` holds."""
        self.function._branch_away(condition, self.done)


class IRFunction:
    """One function under construction. Methods append instructions at the current position and return Values."""

    def __init__(
        self,
        name: str,
        result: str,
        parameters: list[tuple[str, str]],
        *,
        linkage: str = "internal ",
        attributes: str = "nounwind",
    ):
        self.name, self.result = name, result
        self.parameters = tuple(Value(type_, f"%{word}") for type_, word in parameters)
        self.callees: set[str] = set()
        self._head = f"define {linkage}{result} @{name}({', '.join(map(str, self.parameters))}) {attributes} {{"
        self._allocas: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self._terminated = False
        self._after_then: tuple[int, int] | None = None  # lines: the jump out of the last then-part, what followed

    # ---- positions

    def text(self) -> str:
        """The function's IR. The last block must have ended in `ret` (void functions get theirs here)."""
        if not self._terminated:
            assert self.result == "void", f"{self.name} runs off its end"
            self.ret()
        return "\n".join([self._head, "entry:", *self._allocas, *self._lines, "}", ""])

    def _label(self, word: str) -> str:
        self._count += 1
        return f"{word}{self._count}"

    def _emit(self, text: str) -> None:
        assert not self._terminated, f"{self.name}: unreachable {text}"
        self._lines.append("  " + text)

    def _define(self, type_: str, text: str) -> Value:
        self._count += 1
        ref = f"%t{self._count}"
        self._emit(f"{ref} = {text}")
        return Value(type_, ref)

    def _terminate(self, text: str) -> None:
        self._emit(text)
        self._terminated = True

    def _begin(self, label: str) -> None:
        if not self._terminated:
            self._terminate(f"br label %{label}")
        self._lines.append(f"{label}:")
        self._terminated = False

    def _branch_away(self, condition: Value, target: str) -> None:
        stay = self._label("stay")
        self._terminate(f"br {condition}, label %{target}, label %{stay}")
        self._begin(stay)

    # ---- control

    @contextmanager
    def if_(self, condition: Value, *, unlikely: bool = False) -> Iterator[None]:
        """The body runs when `condition` holds. May be followed by `else_`."""
        then, after = self._label("then"), self._label("after")
        hint = ', !prof !{!"branch_weights", i32 1, i32 2000}' if unlikely else ""
        self._terminate(f"br {condition}, label %{then}, label %{after}{hint}")
        self._begin(then)
        yield
        jump = -1
        if not self._terminated:
            self._terminate(f"br label %{after}")
            jump = len(self._lines) - 1
        self._begin(after)
        self._after_then = (jump, len(self._lines))

    @contextmanager
    def else_(self) -> Iterator[None]:
        """The other part of the `if_` that just ended."""
        assert self._after_then is not None and self._after_then[1] == len(self._lines), "else_ without if_"
        jump = self._after_then[0]
        join = self._label("join")
        if jump >= 0:
            self._lines[jump] = f"  br label %{join}"
        yield
        if jump < 0 and self._terminated:
            return
        self._begin(join)

    @contextmanager
    def loop(self) -> Iterator[Loop]:
        """Repeats its body until a break or return."""
        again, done = self._label("again"), self._label("done")
        self._begin(again)
        yield Loop(self, done)
        if not self._terminated:
            self._terminate(f"br label %{again}")
        self._begin(done)

    @contextmanager
    def for_range(self, start: Value, stop: Value | int, step: int = 1) -> Iterator[Value]:
        """Counts from start (inclusive) to stop (exclusive), signed."""
        counter = self.variable(start)
        again, body, done = self._label("for"), self._label("body"), self._label("done")
        self._begin(again)
        i = self.get(counter)
        self._terminate(f"br {self.icmp('slt', i, stop)}, label %{body}, label %{done}")
        self._begin(body)
        yield i
        if not self._terminated:
            self.set(counter, self.add(i, step))
            self._terminate(f"br label %{again}")
        self._begin(done)

    @contextmanager
    def for_bits(self, mask: Value) -> Iterator[Value]:
        """Visits the set bits of an integer from the lowest; gives the bit's number, of the mask's type."""
        left = self.variable(mask)
        again, body, done = self._label("bits"), self._label("body"), self._label("done")
        self._begin(again)
        now = self.get(left)
        self._terminate(f"br {self.icmp('ne', now, 0)}, label %{body}, label %{done}")
        self._begin(body)
        self.set(left, self.and_(now, self.sub(now, 1)))
        yield self.cttz(now)
        if not self._terminated:
            self._terminate(f"br label %{again}")
        self._begin(done)

    def ret(self, value: Value | None = None) -> None:
        """Returns."""
        self._terminate(f"ret {value}" if value is not None else "ret void")

    # ---- constants and variables

    def const(self, type_: str, number: int) -> Value:
        """An integer constant (splat on vectors)."""
        return constant(type_, number)

    def alloca(self, type_: str, align: int = 0) -> Value:
        """Stack memory for one `type_`, made once at entry."""
        self._count += 1
        ref = f"%a{self._count}"
        self._allocas.append(f"  {ref} = alloca {type_}" + (f", align {align}" if align else ""))
        return Value("ptr", ref)

    def variable(self, initial: Value) -> tuple[Value, str]:
        """A mutable local, for `get` and `set`."""
        place = (self.alloca(initial.type), initial.type)
        self.set(place, initial)
        return place

    def get(self, variable: tuple[Value, str]) -> Value:
        """The variable's value now."""
        return self._define(variable[1], f"load {variable[1]}, {variable[0]}")

    def set(self, variable: tuple[Value, str], value: Value | int) -> None:
        """Assigns to a variable."""
        if isinstance(value, int):
            value = constant(variable[1], value)
        assert value.type == variable[1], (value, variable)
        self._emit(f"store {value}, {variable[0]}")

    # ---- arithmetic

    def _pair(self, a: Value | int, b: Value | int) -> tuple[Value, Value]:
        if isinstance(a, int):
            assert isinstance(b, Value)
            return constant(b.type, a), b
        if isinstance(b, int):
            b = constant(a.type, b)
        assert a.type == b.type, f"{self.name}: {a} and {b}"
        return a, b

    def binary(self, opcode: str, a: Value | int, b: Value | int) -> Value:
        """An instruction of two operands of one type, the result's too."""
        a, b = self._pair(a, b)
        return self._define(a.type, f"{opcode} {a}, {b.ref}")

    def add(self, a, b) -> Value:
        return self.binary("add", a, b)

    def sub(self, a, b) -> Value:
        return self.binary("sub", a, b)

    def mul(self, a, b) -> Value:
        return self.binary("mul", a, b)

    def udiv(self, a, b) -> Value:
        return self.binary("udiv", a, b)

    def urem(self, a, b) -> Value:
        return self.binary("urem", a, b)

    def and_(self, a, b) -> Value:
        return self.binary("and", a, b)

    def or_(self, a, b) -> Value:
        return self.binary("or", a, b)

    def xor(self, a, b) -> Value:
        return self.binary("xor", a, b)

    def not_(self, a: Value) -> Value:
        return self.binary("xor", a, -1)

    def shl(self, a, b) -> Value:
        return self.binary("shl", a, b)

    def lshr(self, a, b) -> Value:
        return self.binary("lshr", a, b)

    def icmp(self, condition: str, a, b) -> Value:
        """Integer or pointer comparison."""
        a, b = self._pair(a, b)
        return self._define(with_element(a.type, "i1"), f"icmp {condition} {a}, {b.ref}")

    def fcmp(self, condition: str, a: Value, b: Value) -> Value:
        """Floating comparison."""
        assert a.type == b.type, (a, b)
        return self._define(with_element(a.type, "i1"), f"fcmp {condition} {a}, {b.ref}")

    def select(self, condition: Value, a, b) -> Value:
        """a where the condition holds, else b."""
        a, b = self._pair(a, b)
        return self._define(a.type, f"select {condition}, {a}, {b}")

    def convert(self, opcode: str, value: Value, type_: str) -> Value:
        """zext, sext, trunc, bitcast, fpext, fptrunc, ptrtoint, inttoptr to the whole type `type_`."""
        if value.type == type_ and opcode in ("zext", "sext", "trunc", "bitcast"):
            return value
        return self._define(type_, f"{opcode} {value} to {type_}")

    def zext(self, value: Value, type_: str) -> Value:
        return self.convert("zext", value, type_)

    def trunc(self, value: Value, type_: str) -> Value:
        return self.convert("trunc", value, type_)

    def bitcast(self, value: Value, type_: str) -> Value:
        return self.convert("bitcast", value, type_)

    # ---- vectors

    def extract(self, vector: Value, index: Value | int) -> Value:
        """One element."""
        index = constant("i32", index) if isinstance(index, int) else index
        return self._define(split_vector(vector.type)[1], f"extractelement {vector}, {index}")

    def insert(self, vector: Value, element: Value, index: Value | int) -> Value:
        """The vector with one element replaced."""
        index = constant("i32", index) if isinstance(index, int) else index
        return self._define(vector.type, f"insertelement {vector}, {element}, {index}")

    def shuffle(self, a: Value, b: Value | None, indices: list[int]) -> Value:
        """shufflevector with constant indices; b None: poison."""
        element = split_vector(a.type)[1]
        other = b if b is not None else Value(a.type, "poison")
        pattern = vector_constant("i32", indices)
        return self._define(vector_type(element, len(indices)), f"shufflevector {a}, {other}, {pattern}")

    def splat(self, scalar: Value, count: int = 32) -> Value:
        """A vector with `scalar` in every element."""
        type_ = vector_type(scalar.type, count)
        return self.shuffle(self.insert(Value(type_, "poison"), scalar, 0), None, [0] * count)

    # ---- memory

    def offset(self, pointer: Value, count: Value | int) -> Value:
        """The pointer plus a number of bytes."""
        count = constant("i64", count) if isinstance(count, int) else count
        return self._define("ptr", f"getelementptr i8, {pointer}, {count}")

    def index(self, pointer: Value, i: Value, stride: int) -> Value:
        """The pointer plus i times `stride` bytes; i is taken as signed."""
        return self._define("ptr", f"getelementptr [{stride} x i8], {pointer}, {i}")

    def load(self, type_: str, pointer: Value, *, align: int = 0, order: str = "") -> Value:
        """A load; `order` makes it atomic, `align` (bytes) replaces the type's own alignment."""
        if order:
            return self._define(type_, f"load atomic {type_}, {pointer} {order}, align {align or _natural(type_)}")
        return self._define(type_, f"load {type_}, {pointer}" + (f", align {align}" if align else ""))

    def store(self, value: Value, pointer: Value, *, align: int = 0, order: str = "") -> None:
        """A store; arguments as for `load`."""
        if order:
            self._emit(f"store atomic {value}, {pointer} {order}, align {align or _natural(value.type)}")
        else:
            self._emit(f"store {value}, {pointer}" + (f", align {align}" if align else ""))

    def atomicrmw(self, operation: str, pointer: Value, value: Value, order: str) -> Value:
        """Atomic read-modify-write; gives the old value."""
        return self._define(value.type, f"atomicrmw {operation} {pointer}, {value} {order}")

    def cmpxchg(self, pointer: Value, expected: Value, new: Value, order: str) -> tuple[Value, Value]:
        """(old value, whether it was exchanged). The failure order is the success order without release."""
        failure = {"acq_rel": "acquire", "release": "monotonic"}.get(order, order)
        pair_type = f"{{ {new.type}, i1 }}"
        pair = self._define(pair_type, f"cmpxchg {pointer}, {expected}, {new} {order} {failure}")
        return (
            self._define(new.type, f"extractvalue {pair}, 0"),
            self._define("i1", f"extractvalue {pair}, 1"),
        )

    def field_address(self, pointer: Value, structure: type[ctypes.Structure], name: str) -> Value:
        """Where a field of a structure lies."""
        return self.offset(pointer, field_place(structure, name)[0])

    def field(self, pointer: Value, structure: type[ctypes.Structure], name: str, *, order: str = "") -> Value:
        """Reads a field."""
        type_ = field_place(structure, name)[1]
        return self.load(type_, self.field_address(pointer, structure, name), order=order)

    def set_field(
        self, pointer: Value, structure: type[ctypes.Structure], name: str, value: Value | int, *, order: str = ""
    ) -> None:
        """Writes a field."""
        type_ = field_place(structure, name)[1]
        value = constant(type_, value) if isinstance(value, int) else value
        assert value.type == type_, (structure, name, value)
        self.store(value, self.field_address(pointer, structure, name), order=order)

    # ---- calls

    def call(self, result: str, name: str, *arguments: Value) -> Value:
        """Calls another function of the module; remembered in `callees`."""
        self.callees.add(name)
        return self._call(result, "@" + name, arguments)

    def function_pointer(self, name: str) -> Value:
        """The address of another function of the module; remembered in `callees`."""
        self.callees.add(name)
        return Value("ptr", "@" + name)

    def call_pointer(self, result: str, pointer: Value, *arguments: Value) -> Value:
        """Calls through a pointer."""
        return self._call(result, pointer.ref, arguments)

    def intrinsic(self, result: str, name: str, *arguments: Value) -> Value:
        """Calls an LLVM intrinsic."""
        assert name.startswith("llvm."), name
        return self._call(result, "@" + name, arguments)

    def _call(self, result: str, target: str, arguments: tuple[Value, ...]) -> Value:
        text = f"call {result} {target}({', '.join(map(str, arguments))})"
        if result == "void":
            self._emit(text)
            return Value("void", "")
        return self._define(result, text)

    def cttz(self, value: Value) -> Value:
        """Number of trailing zeros of a non-zero integer."""
        return self._call(value.type, f"@llvm.cttz.{value.type}", (value, Value("i1", "true")))

    def usub_sat(self, a: Value, b: Value | int) -> Value:
        """a - b, or 0 where b is larger (unsigned)."""
        a, b = self._pair(a, b)
        return self._call(a.type, f"@llvm.usub.sat.{_suffix(a.type)}", (a, b))

    def fill_zero(self, pointer: Value, count: Value | int) -> None:
        """Zeroes `count` bytes."""
        count = constant("i64", count) if isinstance(count, int) else count
        self._emit(f"call void @llvm.memset.p0.i64({pointer}, i8 0, {count}, i1 false)")


def _natural(type_: str) -> int:
    if type_ == "ptr":
        return 8
    return {"float": 4, "double": 8}.get(type_) or int(type_[1:]) // 8


def _suffix(type_: str) -> str:
    count, element = split_vector(type_)
    return f"v{count}{element}" if count else element
