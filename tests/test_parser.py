"""The parser and printer of PTX. The files in tests/ptx are small programs of our own; ptxas, where it is installed,
says whether they and what the printer makes of them are legal."""

from __future__ import annotations

import glob
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.errors import PtxError, PtxSyntaxError, UnsupportedError
from weft.isa.operands import (
    Address,
    CallTarget,
    Discard,
    Guard,
    Immediate,
    LabelRef,
    Negated,
    Pair,
    Register,
    SpecialRegister,
    Symbol,
    Vector,
)
from weft.ptx.check import fits
from weft.ptx.module import Label, Module, Relocation
from weft.ptx.parser import parse_module
from weft.ptx.printer import format_module
from weft.types import TYPES

FOLDER = Path(__file__).parent / "ptx"
FILES = ("operands", "scopes", "variables", "calls", "headers", "branch_table", "asynchronous", "locations")
HEADER = ".version 8.6\n.target sm_90\n.address_size 64\n"
ENTRY = """.global .u32 array[8]; .global .b32 word;
.func (.param .b32 r) function(.param .b32 x) { ret; }
.visible .entry k(.param .u64 p) { .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<4>; .reg .f32 %f<4>;
"""
FIRST_LINE = (HEADER + ENTRY).count("\n") + 1


def read(name: str) -> Module:
    return parse_module((FOLDER / f"{name}.ptx").read_text(), f"{name}.ptx")


def parse_body(text: str, name: str = "k"):
    """The function that `text` is the body of; its first line is FIRST_LINE."""
    return parse_module(HEADER + ENTRY + text + "\nret; }").functions[name]


def operands(text: str):
    """The operands of the one instruction `text`."""
    return parse_body(text).body[0].operands


def structure(module: Module):
    """All of a module that printing and reading again must keep: everything but lines, file name and text."""
    functions = {}
    for name, function in module.functions.items():
        body = [
            ("label", statement.name)
            if isinstance(statement, Label)
            else (statement.name, statement.operands, statement.guard, statement.location, statement.pragmas)
            for statement in function.body
        ]
        variables = {key: replace(variable, line=0) for key, variable in function.variables.items()}
        functions[name] = {**function.__dict__, "line": 0, "body": body, "variables": variables}
    variables = {name: replace(variable, line=0) for name, variable in module.variables.items()}
    rest = (module.version, module.target, module.address_bits, module.aliases)
    return functions, variables, rest


def find_ptxas() -> str | None:
    found = shutil.which("ptxas")
    for pattern in ("nvidia/*/bin/ptxas", "triton/backends/nvidia/bin/ptxas"):
        for folder in sys.path:
            found = found or next(iter(glob.glob(f"{folder}/{pattern}")), None)
    return found


PTXAS = find_ptxas()


def assert_legal(text: str, folder: Path) -> None:
    path = folder / "case.ptx"
    path.write_text(text)
    target = re.search(r"\.target\s+(\w+)", text).group(1)
    command = [PTXAS, f"-arch={target}", "-c", "-O0", str(path), "-o", str(folder / "case.cubin")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr + text


# ---------------------------------------------------------------- whole files
@pytest.mark.parametrize("name", FILES)
def test_print_and_parse_again(name):
    module = read(name)
    text = format_module(module)
    again = parse_module(text)
    assert structure(again) == structure(module)
    assert format_module(again) == text


@pytest.mark.skipif(PTXAS is None, reason="ptxas is not installed")
@pytest.mark.parametrize("name", FILES)
def test_files_and_printed_files_are_legal(name, tmp_path):
    module = read(name)
    assert_legal(module.text, tmp_path)
    assert_legal(format_module(module), tmp_path)


def test_module_header():
    module = parse_module(".version 7.8\n.target compute_80, debug\n.address_size 32\n")
    assert (module.version, module.target, module.address_bits) == ((7, 8), "compute_80", 32)
    assert parse_module(".version 3.1 .target sm_20").address_bits == 64


def test_function_headers():
    module = read("headers")
    bounds = module.functions["bounds"]
    assert bounds.linkage == "visible"
    assert bounds.directives == {"maxntid": (128, 2), "minnctapersm": (3,), "maxnreg": (64,)}
    assert [(p.name, p.offset, p.size) for p in bounds.params] == [
        ("a", 0, 1),
        ("b", 8, 8),
        ("c", 16, 20),
        ("d", 36, 2),
    ]
    assert bounds.param_bytes == 38
    cluster = module.functions["cluster"]
    assert cluster.directives == {
        "reqntid": (256, 1, 1), "explicitcluster": (), "reqnctapercluster": (2, 1, 1), "pragma": ("nounroll",),
    }  # fmt: skip
    assert cluster.body[0].pragmas == ("nounroll", "used_bytes_mask 15")
    assert module.functions["large"].linkage == "weak"
    assert module.functions["large"].param_bytes == 8000
    assert list(module.kernels) == ["bounds", "cluster", "large", "rank"]


# ---------------------------------------------------------------- operands
@pytest.mark.parametrize(
    "text, expected",
    [
        ("mov.u32 %r1, %tid.x;", (Register("%r1"), SpecialRegister("%tid.x"))),
        ("mov .u32 %r1 , %laneid ;", (Register("%r1"), SpecialRegister("%laneid"))),
        ("mov.u32 %r1, WARP_SZ;", (Register("%r1"), SpecialRegister("WARP_SZ"))),
        ("mov.u32 %r1, WARP_SZ-1;", (Register("%r1"), Immediate(31))),
        ("mov.u32 %r1, -WARP_SZ;", (Register("%r1"), Immediate((1 << 64) - 32))),
        ("mov.u64 %rd1, array;", (Register("%rd1"), Symbol("array"))),
        ("mov.u64 %rd1, array+8;", (Register("%rd1"), Symbol("array", 8))),
        ("mov.u64 %rd1, array[2];", (Register("%rd1"), Symbol("array", 8))),
        ("ld.global.u32 %r1, array[2];", (Register("%r1"), Address(Symbol("array"), 8))),
        ("ld.global.u32 %r1, [array];", (Register("%r1"), Address(Symbol("array"), 0))),
        ("ld.global.u32 %r1, [array+4];", (Register("%r1"), Address(Symbol("array"), 4))),
        ("ld.global.u32 %r1, [ %rd1 + 0 ];", (Register("%r1"), Address(Register("%rd1"), 0))),
        ("ld.global.u32 %r1, [%rd1+-8];", (Register("%r1"), Address(Register("%rd1"), -8))),
        ("ld.global.u32 %r1, [%rd1+0x10];", (Register("%r1"), Address(Register("%rd1"), 16))),
        ("ld.local.u32 %r1, [16];", (Register("%r1"), Address(Immediate(16), 0))),
        ("ld.global.u32 { %r1 }, [ %rd1 ];", (Register("%r1"), Address(Register("%rd1"), 0))),
        ("mov.b64 {_, %r1}, %rd1;", (Vector((Discard(), Register("%r1"))), Register("%rd1"))),
        ("mov.b64 %rd1, {0,%r1};", (Register("%rd1"), Vector((Immediate(0), Register("%r1"))))),
        ("elect.sync _|%p1, -1;", (Pair(Discard(), Register("%p1")), Immediate(-1))),
        ("shfl.x %r1 | %p1, %r2;", (Pair(Register("%r1"), Register("%p1")), Register("%r2"))),
        ("and.pred %p1, %p2, !%p3;", (Register("%p1"), Register("%p2"), Negated(Register("%p3")))),
        ("mov.f32 %f1, 0f3F800000;", (Register("%f1"), Immediate(0x3F800000, "f32"))),
        ("mov.f64 %f1, 0D3FF0000000000000;", (Register("%f1"), Immediate(0x3FF0000000000000, "f64"))),
        ("mov.f32 %f1, 1e3;", (Register("%f1"), Immediate(1000.0, "float"))),
        ("mov.f32 %f1, -1.5;", (Register("%f1"), Immediate(-1.5, "float"))),
        ("bra.uni END; END:", (LabelRef("END"),)),
        ("call (%r1), function, (%r2);", (CallTarget(Symbol("function"), (Register("%r1"),), (Register("%r2"),)),)),
        (
            "cp.x [%r1], [%rd1, {%r2, %r3}], [%r4];",
            (
                Address(Register("%r1")),
                Address(Register("%rd1"), 0, Vector((Register("%r2"), Register("%r3")))),
                Address(Register("%r4")),
            ),
        ),
        (
            "tex.x %r1, [%rd1, %rd2, {%f1}];",
            (Register("%r1"), Address(Register("%rd1"), 0, Vector((Register("%rd2"), Vector((Register("%f1"),)))))),
        ),
        ("ret;", ()),
    ],
)
def test_operand(text, expected):
    found = operands(text)
    assert found == expected
    assert [type(getattr(o, "value", 0)) for o in found] == [type(getattr(o, "value", 0)) for o in expected]


@pytest.mark.parametrize(
    "expression, value",
    [
        ("0xFFFFFFFFFFFFFFFF", (1 << 64) - 1), ("-1", -1), ("-1U", (1 << 64) - 1), ("017", 15), ("0b101U", 5),
        ("1+2*3", 7), ("(1+2)*3", 9), ("7 % 4", 3), ("-7 / 2", -3), ("-7 % 2", -1),
        ("(.u64)-1 / 3", 6148914691236517205),
        ("(.s64)0xFFFFFFFFFFFFFFFF", -1), ("1 << 63", -(1 << 63)), ("1 << 64", 0), ("-8 >> 1", -4),
        ("~0", -1), ("!5", 0), ("!0", 1), ("6 & 3 | 8 ^ 1", 11), ("3 > 2 && 0 || 1", 1), ("2 >= 3", 0), ("1 == 1", 1),
        ("1 ? 2 : 3", 2), ("0 ? 2 : 1 ? 4 : 5", 4), ("1 != 1", 0), ("+5", 5),
    ],
)  # fmt: skip
def test_constant_expression(expression, value):
    assert operands(f"mov.u64 %rd1, {expression};")[1] == Immediate(value)


def test_modifiers_and_guards():
    body = parse_body("@!%p1 ld.global.L1::no_allocate.L2::128B.v2.u32 {%r1, %r2}, [%rd1];\n@ %p2 exit;").body
    assert body[0].name == "ld.global.L1::no_allocate.L2::128B.v2.u32"
    assert body[0].modifiers == ("global", "L1::no_allocate", "L2::128B", "v2", "u32")
    assert [ins.guard for ins in body] == [Guard("%p1", True), Guard("%p2"), None]
    assert [ins.line for ins in body] == [FIRST_LINE, FIRST_LINE + 1, FIRST_LINE + 2]


def test_vector_registers_become_scalars():
    function = read("operands").functions["operands"]
    assert function.registers["quad$x"] == TYPES["f32"]
    moves = [ins for ins in function.body if Register("quad$w") in ins.operands]
    assert moves[0].operands == (Register("quad$w"), Register("%f3"))
    load = next(ins for ins in function.body if ins.name == "ld.global.v4.f32")
    assert load.operands[0] == Vector(tuple(Register(f"quad${element}") for element in "xyzw"))


def test_only_used_registers_are_listed():
    function = parse_body(".reg .b32 %many<1000000>; mov.b32 %many999999, %many0;")
    assert [name for name in function.registers if name.startswith("%many")] == ["%many999999", "%many0"]


def test_digits_of_register_prefixes():
    function = parse_body(".reg .b16 %x1<3>; .reg .b64 %x<5>; mov.b16 %x12, %x3;")
    assert function.registers["%x12"] == TYPES["b16"]
    assert function.registers["%x3"] == TYPES["b64"]


# ---------------------------------------------------------------- scopes
def test_scopes_rename():
    function = read("scopes").functions["scopes"]
    assert function.registers["%r1"] == TYPES["b32"]
    assert function.registers["%r1$2"] == TYPES["b64"]
    labels = [statement.name for statement in function.body if isinstance(statement, Label)]
    assert labels == ["DONE", "DONE$2", "OUTER"]
    branches = [s.operands[0].name for s in function.body if not isinstance(s, Label) and s.opcode == "bra"]
    assert branches == ["DONE", "DONE$2", "OUTER", "OUTER"]
    texts = [s.operands for s in function.body if not isinstance(s, Label) and s.opcode == "mov"]
    assert texts[1] == (Register("%r1$2"), Symbol("shared_name"))
    assert texts[2] == (Register("%r2"), Symbol("shared_name$2"))
    assert function.variables["shared_name$2"].space == "shared"


@pytest.mark.parametrize(
    "text",
    [
        "mov.u64 %rd1, array; { .reg .b64 array; mov.u64 array, 1; } mov.u64 %rd2, array;",
        "mov.u64 %rd1, array; .reg .b64 array; mov.u64 %rd2, array;",
        "{ .shared .b64 array; mov.u64 %rd1, array; } mov.u64 %rd2, array;",
        "{ .reg .b32 %r1; mov.u32 %r1, 1; } mov.u32 %r1, 2;",
        "{ .reg .v2 .f32 v; mov.f32 v.x, 1.0; } { .reg .v2 .f32 v; mov.f32 v.y, 1.0; }",
    ],
)
def test_shadowing_survives_flat_printing(text):
    module = parse_module(HEADER + ENTRY + text + "\nret; }")
    assert structure(parse_module(format_module(module))) == structure(module)
    named = [operand for ins in module.functions["k"].body for operand in ins.operands[:2]]
    assert len(set(named)) >= 3


def test_call_parameters_of_every_scope_are_kept_apart():
    function = read("calls").functions["calls"]
    assert {"param0", "param0$2", "param0$3", "param0$4"} <= set(function.variables)
    calls = [ins.operands[0] for ins in function.body if ins.opcode == "call"]
    assert calls[0] == CallTarget(Symbol("add_registers"), (Register("%r1"),), (Register("%r2"), Immediate(4)))
    assert calls[1].returns == (Discard(),)
    assert calls[2] == CallTarget(Symbol("no_arguments"))
    assert calls[3] == CallTarget(Symbol("make_pair"), (Symbol("retval0"),), (Symbol("param0"),))
    assert calls[4] == CallTarget(Register("%rd4"), (Symbol("retval0$2"),), (Symbol("param0$2"),), "prototype_1")
    assert function.prototypes["prototype_1"].params[0].size == 4
    assert function.call_targets[calls[5].prototype] == ("increment",)
    functions = read("calls").functions
    assert functions["vprintf"].is_declaration
    assert functions["no_arguments"].noreturn
    assert functions["add_registers"].params[1].in_register
    assert functions["add_registers"].registers == dict.fromkeys(("sum", "a", "b"), TYPES["u32"])


def test_branch_targets():
    function = read("branch_table").functions["branch_table"]
    assert function.branch_targets == {"$table": ("$L0", "$L1", "$L0")}
    assert function.body[1].operands == (Register("%r1"), LabelRef("$table"))


# ---------------------------------------------------------------- variables
def test_variables():
    variables = read("variables").variables
    number = {name: v.init and int.from_bytes(v.init, "little") for name, v in variables.items()}
    assert variables["bytes"].init == bytes([1, 2, 255, 255, 0, 0, 0, 0])
    assert variables["floats"].init.hex() == "0000803f0000004000004040"
    assert number["real"] == 0xC004000000000000
    assert (number["scalar"], number["negative"], number["first"], number["managed"]) == (7, 0xFFFE, 1, 3)
    assert variables["open"].size == 12
    assert variables["grid"].init == b"".join(n.to_bytes(4, "little") for n in (1, 2, 0, 4, 0, 0))
    assert (variables["vector"].size, variables["vector"].align) == (16, 16)
    assert (variables["vectors"].size, variables["vectors"].align) == (16, 8)
    assert variables["pointers"].relocations == (
        Relocation(0, "scalar"), Relocation(8, "scalar", 4), Relocation(16, "bytes", 8, generic=True),
        Relocation(24, "twice"),
    )  # fmt: skip
    assert variables["split"].relocations == (
        Relocation(0, "scalar", 0, 1, shift=0), Relocation(1, "scalar", 4, 1, shift=8),
        Relocation(2, "scalar", 0, 1, generic=True, shift=16),
    )  # fmt: skip
    assert variables["split"].init == bytes([0, 0, 0, (1546 >> 8) & 255, 3])
    assert variables["dynamic"].unsized and variables["dynamic"].linkage == "extern"
    assert variables["dynamic"].init is None and variables["second"].init is None
    assert variables["common_one"].linkage == "common" and variables["common_one"].align == 16
    # A global that a function declares lives as long as the module.
    assert variables["inside"].init == (5).to_bytes(4, "little")


def test_local_and_shared_variables_of_a_function():
    depot = read("variables").functions["twice"].variables["depot"]
    assert (depot.space, depot.size, depot.align) == ("local", 16, 8)


def test_definition_replaces_declaration():
    module = parse_module(HEADER + ".extern .global .u32 x; .visible .global .u32 x = 4; .extern .global .u32 x;")
    assert module.variables["x"].linkage == "visible"


def test_pointer_parameters():
    text = ".entry f(.param .u64 .ptr .global .align 16 a, .param .u64 .ptr .align 1 b, .param .u64 c) { ret; }"
    params = parse_module(HEADER + text).functions["f"].params
    assert [p.pointer_space for p in params] == ["global", "generic", ""]
    assert [p.offset for p in params] == [0, 8, 16]


def test_alias():
    text = ".func f { ret; }\n.func g;\n.alias g, f;\n.entry k { call g; ret; }"
    assert parse_module(HEADER + text).aliases == {"g": "f"}


# ---------------------------------------------------------------- source locations
def test_locations_with_inlining():
    body = read("locations").functions["locations"].body
    assert [str(ins.location) for ins in body] == [
        "/src/kernel.cu:10",
        "/src/device.h:20 (inlined at /src/kernel.cu:10)",
        "/src/device.h:30 (inlined at /src/device.h:20 (inlined at /src/kernel.cu:10))",
        "/src/kernel.cu:11",
    ]
    assert [ins.location.function for ins in body] == ["", "square_two", "_two", ""]
    assert body[2].location.column == 7


def test_location_without_file():
    assert parse_body(".loc 7 3 1\nmov.u32 %r1, 1;").body[0].location.file == "<file 7>"


def test_comments_and_preprocessor_lines_keep_line_numbers():
    text = '/* one\n two */ // three " \n# 5 "x"\n@@DWARF .section .x\nmov.u32 %r1, 1; // end'
    assert parse_body(text).body[0].line == FIRST_LINE + 4


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "text, error, line, message",
    [
        ("add.s32 %r1, %r2, %r3\nmov.u32 %r1, 2;", PtxSyntaxError, 1, "found 'mov', expected ',' or ';'"),
        ("\nadd.s32 %r1, , %r3;", PtxSyntaxError, 1, "found ',', expected a constant"),
        ("add.s32 %r1, %r2,;", PtxSyntaxError, 0, "found ';', expected a constant"),
        ("mov.u32 %r1, 09;", PtxSyntaxError, 0, "bad octal constant: found '09'"),
        ("mov.f32 %f1, 0f3F80;", PtxSyntaxError, 0, "not a PTX token: found 0f3F80"),
        ("ld.global.u32 %r1, [%rd1;", PtxSyntaxError, 0, "found ';', expected ']'"),
        ("ld.global.u32 %r1, [%rd1-8];", PtxSyntaxError, 0, "found '-', expected ']'"),
        ("mov.b64 {%r1, %r2, %rd1;", PtxSyntaxError, 0, "found ';', expected '}'"),
        ("; ret;", PtxSyntaxError, 0, "found ';', expected an instruction, a label or a declaration"),
        ("bra 5;", PtxSyntaxError, 0, "found '5', expected a label"),
        (".loc 1", PtxSyntaxError, 0, "expected .loc FILE LINE COLUMN"),
        (".reg .b31 %x;", PtxSyntaxError, 0, "found '.b31', expected a type"),
        (".frob 3;", PtxSyntaxError, 0, "found '.frob'"),
        ("mov.u32 %r1, é;", PtxSyntaxError, 0, "not a PTX token: found é"),
        ("\n\n/* open", PtxSyntaxError, 2, "comment is not closed"),
        ('.pragma "open;\n', PtxSyntaxError, 0, "a string that is not closed"),
        ("{ ret;", PtxSyntaxError, 0, "the body of k is not closed: found end of file, expected '}'"),
        ("mov.u32 %r1, " + "(" * 100 + "1" + ")" * 100 + ";", PtxSyntaxError, 0, "nested too deeply"),
        ("call (%r1) function;", PtxSyntaxError, 0, "found 'function', expected ','"),
        ("mov.u32 %r9, 1;", PtxError, 0, "register %r9 is not declared"),
        ("mov.u32 %r01, 1;", PtxError, 0, "register %r01 is not declared"),
        ("\n\nmov.u64 %rd1, nowhere;", PtxError, 2, "nowhere is not declared"),
        ("@%r1 ret;", PtxError, 0, "guard @%r1: found .b32, expected .pred"),
        ("@p9 ret;", PtxError, 0, "guard @p9: found no register, expected .pred"),
        ("bra AWAY;", PtxError, 0, "label AWAY is not defined in k, or not in this scope"),
        ("bra IN; { IN: }", PtxError, 0, "label IN is not defined in k, or not in this scope"),
        ("L: L:", PtxError, 0, "label L is defined twice"),
        (".reg .b32 x, x;", PtxError, 0, "x is declared twice"),
        (".reg .b32 p;", PtxError, 0, "p is declared twice"),
        ("mov.u32 %r1, 5 / 0;", PtxError, 0, "constant expression divides by zero"),
        ("mov.u32 %r1, 99999999999999999999;", PtxError, 0, "integer constant does not fit in 64 bits"),
        ("mov.u32 %r1, " + "9" * 5000 + ";", PtxError, 0, "integer constant does not fit in 64 bits"),
        ("mov.f32 %f1, ~1.0;", PtxError, 0, "operator ~ needs an integer"),
        ("mov.f32 %f1, %f2.x;", PtxError, 0, "%f2 has no element .x"),
        ("brx.idx %r1, nothing;", PtxError, 0, "nothing is not declared: expected a .branchtargets label"),
        ("call (%r1), %rd1, (%r2);", PtxError, 0, "an indirect call needs a .callprototype or .calltargets label"),
        ("vadd.u32.u32.u32 %r1, %r2.b0, %r3.h1, %r1;", UnsupportedError, 0, "selectors (%r2.b0) are not supported"),
        ("ld.global.u32 %r1, array[%r2];", UnsupportedError, 0, "a register cannot index a variable"),
    ],
)
def test_error_in_a_body(text, error, line, message):
    with pytest.raises(error) as caught:
        parse_module(HEADER + ENTRY + text + ("" if "open" in text or "{ ret" in text else "\nret; }"), "k.ptx")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"k.ptx:{FIRST_LINE + line}: ")
    assert caught.value.line == FIRST_LINE + line


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("", PtxSyntaxError, "found end of file, expected '.version'"),
        ("int main() {}", PtxSyntaxError, "found 'int', expected '.version'"),
        (".version x", PtxSyntaxError, "found 'x', expected a version such as 8.7"),
        (".version 8.0\n.entry k", PtxSyntaxError, "found '.entry', expected '.target'"),
        (".version 8.0 .target gfx90a", PtxError, "unknown target: found gfx90a"),
        (HEADER + "ret;", PtxSyntaxError, "found 'ret', expected a declaration or directive"),
        (HEADER + ".global .u32 x", PtxSyntaxError, "found end of file, expected ';'"),
        (HEADER + ".global .u32 x; .global .u32 x;", PtxError, "x is declared twice"),
        (HEADER + ".global .u32 x[2] = {1, 2, 3};", PtxError, "too many values: expected at most 2"),
        (HEADER + ".global .u32 x = 1.5;", PtxError, "initialiser of .u32 x: found a float, expected an integer"),
        (HEADER + ".global .f32 x = 1;", PtxError, "initialiser of .f32 x: found an integer, expected a float"),
        (HEADER + ".global .f16 x = 1.0;", PtxError, "no initial value is allowed for .f16 x"),
        (HEADER + ".shared .u32 x = 1;", PtxError, "no initial value is allowed for x in .shared"),
        (HEADER + ".global .u32 x[];", PtxError, "variable x has no size"),
        (HEADER + ".global .align 3 .u32 x;", PtxError, "alignment must be a power of two: found 3"),
        (HEADER + ".global .pred x;", PtxError, "predicate variable x must be a register"),
        (HEADER + ".global .u64 x = y;", PtxError, "y is not declared"),
        (HEADER + ".global .u16 x = x;", PtxError, "an address does not fit .u16 x"),
        (HEADER + ".global .u8 x = 0xfe(x);", PtxError, "mask must select one byte: found 0xfe"),
        (HEADER + ".global .b8 x[9999999999999999];", PtxError, "out of range"),
        (HEADER + ".global .b8 x[9999999999] = {1};", PtxError, "too large"),
        (HEADER + ".func f { ret; } .func f { ret; }", PtxError, "function f is defined twice"),
        (HEADER + ".func f(.param .b32 a); .func f { ret; }", PtxError, "f is declared differently before"),
        (HEADER + ".entry f(.param .b32 a, .param .b32 a) { }", PtxError, "parameter a is declared twice"),
        (HEADER + ".entry f(.reg .b32 a) { }", PtxSyntaxError, "found '.reg', expected '.param'"),
        (HEADER + ".entry f .frob 3 { }", PtxSyntaxError, "found '.frob', expected '{', ';' or a performance"),
        (HEADER + ".section .x { (", PtxSyntaxError, "found '(', expected '}'"),
        (HEADER + ".local .u32 x;", UnsupportedError, ".local variable at module level"),
        (
            HEADER + ".global .texref t; .entry f { .reg .f32 %f<5>; tex.1d {%f1, %f2, %f3, %f4}, [t, {%f0}]; }",
            UnsupportedError,
            "textures, samplers and surfaces are not supported",
        ),
    ],
)  # fmt: skip
def test_error_in_a_module(text, error, message):
    with pytest.raises(error) as caught:
        parse_module(text, "k.ptx")
    assert message in str(caught.value)
    assert str(caught.value).startswith("k.ptx:")


# ---------------------------------------------------------------- check
@pytest.mark.parametrize(
    "register, wanted, widening, expected",
    [
        ("b32", "f32", False, True), ("s32", "u32", False, True), ("u32", "f32", False, False),
        ("f32", "s32", False, False), ("f32", "b32", False, True), ("b64", "b32", False, False),
        ("b64", "u32", True, True), ("b64", "f32", True, True), ("f64", "f32", True, False),
        ("pred", "b32", False, False),
        ("pred", "pred", False, True), ("b32", "f16x2", False, True), ("u16", "f16", False, False),
        ("b16", "b32", True, False),
    ],
)  # fmt: skip
def test_register_types(register, wanted, widening, expected):
    assert fits(TYPES[register], TYPES[wanted], widening) == expected


def check_text(text: str) -> None:
    registers = ".reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<4>; .reg .f32 %f<4>;"
    parse_module(HEADER + ".visible .entry k() { " + registers + text + "\n}", "k.ptx", check=True)


def test_check_accepts():
    check_text("mov.u32 %r1, %tid.x; add.s32 %r1, %r2, -1; xor.b32 %f1, %f1, %f2; mov.b64 %rd1, {%r1, %r2};")


@pytest.mark.parametrize(
    "text, message",
    [
        ("frob.u32 %r1, 1;", "frob.u32: unknown instruction 'frob'"),
        ("shl.b8 %r1, %r2, 1;", "shl.b8: found .b8"),
        ("add.s32 %r1, %r2;", "found 2 operands, expected 3"),
        ("add.s32 %rd1, %r2, %r3;", "add.s32: register %rd1: found .b64, expected .s32"),
        ("add.s32 %r1, %f1, %r3;", "add.s32: register %f1: found .f32, expected .s32"),
        ("add.s32 %r1, %r2, 1.5;", "add.s32: constant: found a float, expected .s32"),
        ("selp.b32 %r1, %r2, %r3, %r4;", "selp.b32: register %r4: found .b32, expected .pred"),
        ("mov.b64 %rd1, {%rd2, %r1};", "mov.b64: register %rd2: found .b64, expected .b32"),
    ],
)
def test_check_refuses(text, message):
    with pytest.raises(PtxError) as caught:
        check_text("\n" + text)
    assert message in str(caught.value)
    assert caught.value.line == HEADER.count("\n") + 2


# ---------------------------------------------------------------- fuzzing
CORPUS = [(FOLDER / f"{name}.ptx").read_text() for name in FILES]
PIECES = sorted({piece for text in CORPUS for piece in re.findall(r"[\w$%.]+|[^\w\s]", text)})


def mutate(text: str, random_numbers: random.Random) -> str:
    """`text` with a few pieces cut, doubled, exchanged or replaced."""
    pieces = re.findall(r"[\w$%.]+|\s+|.", text)
    for _ in range(random_numbers.randint(1, 4)):
        at = random_numbers.randrange(len(pieces))
        length = random_numbers.choice((1, 1, 1, 3, 20))
        kind = random_numbers.randrange(6)
        if kind == 0:
            del pieces[at : at + length]
        elif kind == 1:
            pieces[at:at] = pieces[at : at + length]
        elif kind == 2:
            pieces[at] = random_numbers.choice(PIECES)
        elif kind == 3:
            pieces.insert(at, random_numbers.choice(PIECES))
        elif kind == 4:
            pieces.insert(at, chr(random_numbers.choice((0, 9, 34, 35, 39, 47, 92, 96, 123, 125, 233, 0x1F600))))
        else:
            other = random_numbers.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        if not pieces:
            break
    return "".join(pieces)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(CORPUS), st.randoms(use_true_random=False))
def test_mutated_text_raises_only_our_errors(text, random_numbers):
    mutated = mutate(text, random_numbers)
    try:
        module = parse_module(mutated)
    except (PtxSyntaxError, PtxError, UnsupportedError) as error:
        assert 1 <= error.line <= mutated.count("\n") + 1
        return
    again = parse_module(format_module(module))
    assert structure(again) == structure(module)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=80))
def test_noise_raises_only_our_errors(noise):
    for text in (noise, HEADER + noise, HEADER + ENTRY + noise):
        try:
            parse_module(text)
        except (PtxSyntaxError, PtxError, UnsupportedError):
            pass


def test_time_grows_linearly():
    """Sixteen times the text takes about sixteen times as long, also where the last `;` is missing."""

    def seconds(count: int) -> float:
        body = "\n".join(f"add.s32 %r{i % 9}, %r1, {i};" for i in range(count))
        times = []
        for _ in range(3):
            start = perf_counter()
            parse_body(body)
            with pytest.raises(PtxSyntaxError):
                parse_module(HEADER + ENTRY + body + "mov.u32 %r1, 2")
            times.append(perf_counter() - start)
        return min(times)

    # Quadratic growth would give 256; the collector of a test run with a large heap costs some.
    assert seconds(32000) < 80 * seconds(2000)
