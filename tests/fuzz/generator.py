"""Random PTX kernels, the same for the same seed.

`generate(seed)` gives a Program: a tree of statements and a launch shape. `render(program)` is its PTX. The kernels are
free of races and of undefined behaviour by construction, so every correct machine computes the same bytes:
- `input` is only read, at clamped indices; `scratch` and local memory are private to a thread;
- `acc` and the shared accumulators see atomics that commute, one operation per word, whose old value is not used;
- the shared exchange area is written and read between barriers, in uniform flow only;
- shuffles read lanes that take part: full warps before any early exit, or a lane of the ballot that guards the branch.

Registers: %v 32-bit, %w 64-bit, %h 16-bit, %f f32, %g f64, %p predicates; %t, %u, %x are scratch of one statement.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

VARIABLES = {"v": 8, "w": 3, "h": 3, "f": 4, "g": 2, "p": 4}
REGISTER_TYPES = {
    "v": "b32",
    "w": "b64",
    "h": "b16",
    "f": "f32",
    "g": "f64",
    "p": "pred",
    "t": "b32",
    "u": "b64",
    "x": "b16",
    "q": "pred",
}
INPUT_BYTES = 1024
SCRATCH_BYTES = 64  # per thread
ACC_WORDS = 16
ACC_OPERATIONS = ("add.u32", "min.s32", "max.s32", "min.u32", "max.u32", "and.b32", "or.b32", "xor.b32", "inc.u32")
EXCHANGE_WORDS = 256
OUT_WORDS = sum(count * (2 if kind in "wg" else 1) for kind, count in VARIABLES.items()) + 1
SHAPES = ((32,), (64,), (96,), (128,), (40,), (7,), (1,), (33,), (8, 8), (16, 4, 2), (5, 3, 2), (32, 2))
INTERESTING = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    256,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x55555555,
    0x12345678,
)


# ---------------------------------------------------------------- statements
@dataclass(frozen=True)
class Line:
    """Instructions that belong together. guard: "@%p1 " before each, or ""."""

    texts: tuple[str, ...]
    guard: str = ""


@dataclass(frozen=True)
class If:
    label: int
    setup: tuple[str, ...]  # leaves the condition in `predicate`
    predicate: str
    then: tuple = ()
    other: tuple = ()


@dataclass(frozen=True)
class Loop:
    """Runs the body `count` times (an operand, clamped by setup); `leave` is a predicate that breaks, tested first;
    `skip` one that continues, tested before the last statement."""

    label: int
    setup: tuple[str, ...]
    body: tuple = ()
    leave: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Switch:
    label: int
    selector: str
    arms: tuple = ()


@dataclass(frozen=True)
class Irreducible:
    """A loop with two entries."""

    label: int
    setup: tuple[str, ...]
    first: tuple = ()
    second: tuple = ()


@dataclass(frozen=True)
class Exit:
    """Threads whose predicate holds store their state and leave."""

    label: int
    setup: tuple[str, ...]
    predicate: str


@dataclass(frozen=True)
class Program:
    seed: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    n: int
    body: tuple = ()
    functions: tuple[str, ...] = ()
    loops: tuple[int, ...] = field(default=())

    @property
    def threads(self) -> int:
        count = 1
        for size in (*self.grid, *self.block):
            count *= size
        return count


# ---------------------------------------------------------------- straight-line templates
# Upper case writes, lower case reads; a trailing i admits a constant; <a, b> is a vector; ~ parts instructions.
INTEGER = (
    "add.u32 {V}, {v}, {vi};",
    "add.s32 {V}, {v}, {vi};",
    "sub.u32 {V}, {vi}, {v};",
    "mul.lo.u32 {V}, {v}, {vi};",
    "mul.hi.u32 {V}, {v}, {vi};",
    "mul.hi.s32 {V}, {v}, {vi};",
    "mad.lo.s32 {V}, {v}, {vi}, {v};",
    "mul24.lo.u32 {V}, {v}, {v};",
    "and.b32 {V}, {v}, {vi};",
    "or.b32 {V}, {v}, {vi};",
    "xor.b32 {V}, {v}, {vi};",
    "not.b32 {V}, {v};",
    "neg.s32 {V}, {v};",
    "abs.s32 {V}, {v};",
    "shl.b32 {V}, {v}, {vi};",
    "shr.u32 {V}, {v}, {vi};",
    "shr.s32 {V}, {v}, {vi};",
    "min.s32 {V}, {v}, {vi};",
    "max.u32 {V}, {v}, {vi};",
    "popc.b32 {V}, {v};",
    "clz.b32 {V}, {v};",
    "brev.b32 {V}, {v};",
    "bfind.u32 {V}, {v};",
    "cnot.b32 {V}, {v};",
    "bfe.u32 {V}, {v}, {vi}, {vi};",
    "bfe.s32 {V}, {v}, {vi}, {vi};",
    "bfi.b32 {V}, {v}, {v}, {vi}, {vi};",
    "prmt.b32 {V}, {v}, {v}, {vi};",
    "lop3.b32 {V}, {v}, {v}, {v}, {lut};",
    "shf.l.wrap.b32 {V}, {v}, {v}, {vi};",
    "shf.r.clamp.b32 {V}, {v}, {v}, {vi};",
    "sad.u32 {V}, {v}, {v}, {v};",
    "dp4a.s32.u32 {V}, {v}, {v}, {v};",
    "div.u32 {V}, {v}, {vi};",
    "div.s32 {V}, {v}, {vi};",
    "rem.u32 {V}, {v}, {vi};",
    "rem.s32 {V}, {v}, {vi};",
    "selp.b32 {V}, {v}, {vi}, {p};",
    "slct.u32.s32 {V}, {v}, {v}, {v};",
    "mov.u32 {V}, {vi};",
    "mov.u32 {V}, %laneid;",
    "mov.u32 {V}, %ctaid.x;",
    "mov.u32 {V}, %tid.x;",
    "mov.u32 {V}, %tid.y;",
    "mov.u32 {V}, %lanemask_lt;",
    "add.cc.u32 %t0, {v}, {v};~addc.u32 {V}, {v}, {v};",
    "sub.cc.u32 %t0, {v}, {v};~subc.u32 {V}, {v}, {v};",
    "cvt.u32.u8 {V}, {v};",
    "cvt.s32.s8 {V}, {v};",
    "cvt.s32.s16 {V}, {h};",
    "cvt.u32.u16 {V}, {h};",
    "cvt.u32.u64 {V}, {w};",
    "mov.b64 <{V}, %t0>, {w};",
    "mov.b32 {V}, <{h}, {h}>;",
    "add.u64 {W}, {w}, {wi};",
    "sub.s64 {W}, {w}, {w};",
    "mul.lo.u64 {W}, {w}, {w};",
    "mul.wide.u32 {W}, {v}, {vi};",
    "mul.wide.s32 {W}, {v}, {vi};",
    "mad.wide.u32 {W}, {v}, {v}, {w};",
    "shl.b64 {W}, {w}, {vi};",
    "shr.u64 {W}, {w}, {vi};",
    "shr.s64 {W}, {w}, {vi};",
    "xor.b64 {W}, {w}, {w};",
    "and.b64 {W}, {w}, {wi};",
    "min.u64 {W}, {w}, {w};",
    "max.s64 {W}, {w}, {w};",
    "cvt.u64.u32 {W}, {v};",
    "cvt.s64.s32 {W}, {v};",
    "mov.b64 {W}, <{v}, {v}>;",
    "div.u64 {W}, {w}, {w};",
    "rem.s64 {W}, {w}, {w};",
    "selp.b64 {W}, {w}, {w}, {p};",
    "add.s16 {H}, {h}, {h};",
    "mul.lo.u16 {H}, {h}, {h};",
    "sub.u16 {H}, {h}, {h};",
    "cvt.u16.u32 {H}, {v};",
    "shl.b16 {H}, {h}, {vi};",
    "max.s16 {H}, {h}, {h};",
    "mov.b32 <{H}, %x0>, {v};",
    "xor.b16 {H}, {h}, {h};",
    "shr.s16 {H}, {h}, {vi};",
    "mul.wide.s16 {V}, {h}, {h};",
)
# Instructions may give any NaN (isa/floating.py), so `?f32` behind a template replaces a NaN result by one of our own.
FLOAT = (
    "add.f32 {F}, {f}, {fi};?f32",
    "sub.f32 {F}, {f}, {f};?f32",
    "mul.f32 {F}, {f}, {fi};?f32",
    "fma.rn.f32 {F}, {f}, {f}, {fi};?f32",
    "mul.rn.ftz.f32 {F}, {f}, {f};?f32",
    "add.rz.f32 {F}, {f}, {f};?f32",
    "fma.rm.f32 {F}, {f}, {f}, {f};?f32",
    "min.f32 {F}, {f}, {f};?f32",
    "max.NaN.f32 {F}, {f}, {f};?f32",
    "neg.f32 {F}, {f};?f32",
    "abs.f32 {F}, {f};?f32",
    "div.rn.f32 {F}, {f}, {f};?f32",
    "sqrt.rn.f32 {F}, {f};?f32",
    "add.sat.f32 {F}, {f}, {f};?f32",
    "copysign.f32 {F}, {f}, {f};?f32",
    "cvt.rn.f32.s32 {F}, {v};",
    "cvt.rn.f32.u32 {F}, {v};",
    "cvt.rzi.s32.f32 {V}, {f};",
    "cvt.rni.u32.f32 {V}, {f};",
    "selp.f32 {F}, {f}, {f}, {p};",
    "mov.b32 {F}, {v};?f32",
    "mov.b32 {V}, {f};",
    "cvt.f64.f32 {G}, {f};?f64",
    "cvt.rn.f32.f64 {F}, {g};?f32",
    "add.f64 {G}, {g}, {g};?f64",
    "mul.f64 {G}, {g}, {g};?f64",
    "fma.rn.f64 {G}, {g}, {g}, {g};?f64",
    "cvt.rn.f64.s32 {G}, {v};",
    "cvt.rn.f16.f32 {H}, {f};?f16",
    "cvt.f32.f16 {F}, {h};?f32",
)
OWN_NAN = {"f32": ("0f7FC00001", "f32"), "f64": ("0d7FF8000000000001", "f64"), "f16": ("0x7E01", "b16")}
PREDICATE = (
    "setp.{cmp}.s32 {P}, {v}, {vi};",
    "setp.{cmpu}.u32 {P}, {v}, {vi};",
    "setp.{cmpf}.f32 {P}, {f}, {f};",
    "setp.{cmp}.s64 {P}, {w}, {w};",
    "setp.{cmp}.s16 {P}, {h}, {h};",
    "setp.{cmp}.and.s32 {P}, {v}, {v}, {p};",
    "and.pred {P}, {p}, {p};",
    "or.pred {P}, {p}, {p};",
    "xor.pred {P}, {p}, {p};",
    "not.pred {P}, {p};",
    "setp.{cmp}.s32 {P}|%q0, {v}, {v};~not.pred %q0, %q0;",
    "set.{cmp}.u32.s32 {V}, {v}, {v};",
)
COMPARISONS = {
    "cmp": ("eq", "ne", "lt", "le", "gt", "ge"),
    "cmpu": ("eq", "ne", "lo", "ls", "hi", "hs"),
    "cmpf": ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "geu", "num", "nan"),
}
LOADS = (
    ("u8", "v", 1),
    ("s8", "v", 1),
    ("u16", "v", 2),
    ("s16", "v", 2),
    ("u32", "v", 4),
    ("u64", "w", 8),
    ("f32", "f", 4),
    ("s32", "w", 4),
    ("u16", "h", 2),
    ("f64", "g", 8),
)
VECTOR_LOADS = (
    ("v2.u32", "v", 2, 8),
    ("v4.u32", "v", 4, 16),
    ("v2.f32", "f", 2, 8),
    ("v4.u8", "v", 4, 4),
    ("v2.u64", "w", 2, 16),
    ("v4.f32", "f", 4, 16),
)


class Generator:
    """Makes one Program. `uniform`: every thread of the block that has not exited is here. `whole`: no thread has."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.seed = seed
        self.labels = 0
        self.loops: list[int] = []
        self.whole = True
        self.budget = 0
        self.calls = False

    def program(self) -> Program:
        rng = self.rng
        block = rng.choice(SHAPES)
        grid = rng.choice(((1,), (2,), (3,), (2, 2)))
        self.full_warps = _product(block) % 32 == 0
        self.functions = self._functions() if rng.random() < 0.3 else ()
        self.budget = rng.choice((8, 15, 30, 60))
        body = self.block(0, True)
        return Program(self.seed, grid, block, rng.choice((0, 1, 7, 100)), body, self.functions, tuple(self.loops))

    # ------------------------------------------------------------ pieces
    def new_label(self) -> int:
        self.labels += 1
        return self.labels

    def variable(self, kind: str) -> str:
        return f"%{kind}{self.rng.randrange(VARIABLES[kind])}"

    def constant(self) -> int:
        rng = self.rng
        return rng.choice(INTERESTING) if rng.random() < 0.7 else rng.getrandbits(32)

    def fill(self, template: str) -> tuple[str, ...]:
        def slot(found: re.Match) -> str:
            name = found[1]
            if name in COMPARISONS:
                return self.rng.choice(COMPARISONS[name])
            if name == "lut":
                return str(self.rng.randrange(256))
            kind = name[0].lower()
            if name.endswith("i") and self.rng.random() < 0.5:
                if kind == "f":
                    return self.rng.choice(("0f3F800000", "0f40490FDB", "0fBF000000", "0f00000001", "0f7F800000"))
                value = self.constant()
                return str(value - (1 << 32) if kind == "v" and value >> 31 and self.rng.random() < 0.5 else value)
            return self.variable(kind)

        template, _, nan = template.partition("?")
        text = re.sub(r"\{(\w+)\}", slot, template)
        if nan:
            target = text.split()[1].rstrip(",")
            pattern, type_ = OWN_NAN[nan]
            text += f"~setp.nan.{nan} %q2, {target}, {target};~selp.{type_} {target}, {pattern}, {target}, %q2;"
        return tuple(text.replace("<", "{").replace(">", "}").split("~"))

    def straight(self) -> Line:
        rng = self.rng
        template = rng.choice(rng.choice((INTEGER, INTEGER, INTEGER, FLOAT, PREDICATE)))
        texts = self.fill(template)
        guard = ""
        if rng.random() < 0.25:
            guard = f"@{rng.choice(('', '!'))}{self.variable('p')} "
        return Line(texts, guard)

    def condition(self) -> tuple[tuple[str, ...], str]:
        """(setup, predicate register) of a condition that lanes may disagree on."""
        rng = self.rng
        if rng.random() < 0.3:
            return (), self.variable("p")
        form = rng.choice(
            (
                "setp.{cmp}.s32 %q1, {v}, {vi};",
                "and.b32 %t0, {v}, 1;~setp.eq.u32 %q1, %t0, 0;",
                "mov.u32 %t0, %laneid;~setp.lt.u32 %q1, %t0, 11;",
                "and.b32 %t0, {v}, 7;~setp.lt.u32 %q1, %t0, 3;",
                "setp.{cmpf}.f32 %q1, {f}, {f};",
                "setp.lt.u32 %q1, %lin, 20;",
            )
        )
        return self.fill(form), "%q1"

    def index(self, limit: int, scale: int, register: str) -> list[str]:
        """Instructions that leave a byte offset below limit * scale, a multiple of scale, in %t0."""
        rng = self.rng
        form = rng.randrange(6)
        start = {
            0: ["mov.u32 %t0, %lin;"],
            1: [f"add.u32 %t0, %lin, {rng.randrange(64)};"],
            2: [f"mul.lo.u32 %t0, %lin, {rng.choice((2, 3, 5, 7))};"],
            3: [f"xor.b32 %t0, %lin, {rng.choice((1, 2, 5, 16, 31))};"],
            4: [f"mov.u32 %t0, {register};"],
            5: [f"add.u32 %t0, %lin, {register};"],
        }[form]
        return [*start, f"and.b32 %t0, %t0, {limit - 1};", f"mul.lo.u32 %t0, %t0, {scale};"]

    def memory(self) -> Line:
        rng = self.rng
        where = rng.choice(("input", "input", "scratch", "scratch", "local"))
        size = INPUT_BYTES if where == "input" else SCRATCH_BYTES
        base = {"input": "%pin", "scratch": "%pscratch", "local": "%plocal"}[where]
        space = "local" if where == "local" else rng.choice((".global", ".global", ""))[1:]
        dot = f".{space}" if space else ""
        store = where != "input" and rng.random() < 0.5
        if rng.random() < 0.25:
            type_, kind, count, width = rng.choice(VECTOR_LOADS)
            names = rng.sample([f"%{kind}{i}" for i in range(VARIABLES[kind])], min(count, VARIABLES[kind]))
            if len(names) < count:
                type_, kind, count, width = "v2.u32", "v", 2, 8
                names = ["%v0", "%v5"]
            data = "{" + ", ".join(names) + "}"
        else:
            type_, kind, width = rng.choice(LOADS)
            data = self.variable(kind)
        if store:
            type_ = type_.replace("s8", "u8").replace("s16", "u16").replace("s32", "u32")
            if kind == "w" and type_ == "u32":
                type_ = "u64"
                width = 8
        texts = self.index(size // width, width, self.variable("v"))
        texts += ["cvt.u64.u32 %u0, %t0;", f"add.u64 %u0, {base}, %u0;"]
        texts.append(f"st{dot}.{type_} [%u0], {data};" if store else f"ld{dot}.{type_} {data}, [%u0];")
        guard = f"@{rng.choice(('', '!'))}{self.variable('p')} " if rng.random() < 0.25 else ""
        return Line(tuple(texts), guard)

    def atomic(self) -> Line:
        rng = self.rng
        number = rng.randrange(len(ACC_OPERATIONS))
        operation = ACC_OPERATIONS[number]
        value = "9" if operation.startswith("inc") else self.variable("v")
        texts = self.index(ACC_WORDS, 4, self.variable("v"))
        texts.append(f"add.u32 %t0, %t0, {number * ACC_WORDS * 4};")
        if rng.random() < 0.4:
            texts += ["add.u32 %t1, %sacc, %t0;"]
            address, space = "%t1", "shared"
        else:
            texts += ["cvt.u64.u32 %u0, %t0;", "add.u64 %u0, %pacc, %u0;"]
            address, space = "%u0", "global"
        if rng.random() < 0.5:
            texts.append(f"atom.{space}.{operation} %t2, [{address}], {value};")
        else:
            texts.append(f"red.{space}.{operation} [{address}], {value};")
        guard = f"@{self.variable('p')} " if rng.random() < 0.2 else ""
        return Line(tuple(texts), guard)

    def exchange(self) -> Line:
        """Every thread writes a word of shared memory and reads another's."""
        rng = self.rng
        barrier = rng.choice(("bar.sync 0;", "barrier.sync 1;", "bar.sync 2;"))
        texts = ["shl.b32 %t0, %lin, 2;", "add.u32 %t0, %sexchange, %t0;"]
        if rng.random() < 0.7:
            texts.append(f"st.shared.u32 [%t0], {self.variable('v')};")
        else:
            size = rng.choice(("", ", 4", ", 2", f", {self.variable('v')}", f", {self.variable('p')}"))
            texts += [
                f"and.b32 %t1, {self.variable('v')}, 252;",
                "cvt.u64.u32 %u0, %t1;",
                "add.u64 %u0, %pin, %u0;",
                f"cp.async.ca.shared.global [%t0], [%u0], 4{size};",
                "cp.async.commit_group;",
                "cp.async.wait_group 0;",
            ]
        texts.append(barrier)
        width, data = rng.choice(((4, "u32"), (8, "v2.u32"), (16, "v4.u32"), (1, "u8"), (4, "f32")))
        texts += self.index(EXCHANGE_WORDS * 4 // width, width, self.variable("v"))
        names = {
            "u32": self.variable("v"),
            "v2.u32": "{%v1, %v2}",
            "v4.u32": "{%v3, %v1, %v0, %v6}",
            "u8": self.variable("v"),
            "f32": self.variable("f"),
        }
        texts += ["add.u32 %t0, %sexchange, %t0;", f"ld.shared.{data} {names[data]}, [%t0];", barrier]
        return Line(tuple(texts))

    def reduction(self) -> Line:
        rng = self.rng
        kind = rng.choice(("popc", "and", "or"))
        source = f"{rng.choice(('', '!'))}{self.variable('p')}"
        if kind == "popc":
            return Line((f"bar.red.popc.u32 {self.variable('v')}, 0, {source};",))
        return Line((f"bar.red.{kind}.pred {self.variable('p')}, 0, {source};",))

    def vote(self, mask: str) -> Line:
        """Votes, matches and reductions over the lanes of `mask`, which are all here."""
        v, p = self.variable, self.variable("p")
        forms = [
            f"vote.sync.ballot.b32 {v('v')}, {v('p')}, {mask};",
            f"vote.sync.any.pred {p}, {v('p')}, {mask};",
            f"vote.sync.all.pred {p}, !{v('p')}, {mask};",
            f"vote.sync.uni.pred {p}, {v('p')}, {mask};",
            f"redux.sync.add.u32 {v('v')}, {v('v')}, {mask};",
            f"redux.sync.min.s32 {v('v')}, {v('v')}, {mask};",
            f"redux.sync.max.u32 {v('v')}, {v('v')}, {mask};",
            f"redux.sync.xor.b32 {v('v')}, {v('v')}, {mask};",
            f"redux.sync.and.b32 {v('v')}, {v('v')}, {mask};",
            f"match.any.sync.b32 {v('v')}, {v('v')}, {mask};",
            f"match.any.sync.b64 {v('v')}, {v('w')}, {mask};",
            f"match.all.sync.b32 {v('v')}|{p}, {v('v')}, {mask};",
            f"bar.warp.sync {mask};",
        ]
        return Line((self.rng.choice(forms),))

    def shuffle(self) -> Line:
        rng = self.rng
        mode = rng.choice(("up", "down", "bfly", "idx"))
        source = rng.choice((str(rng.randrange(34)), self.variable("v")))
        clamp = rng.choice((0, 0x1C00, 0x1800, 0x1000)) if mode == "up" else rng.choice((31, 0x1C1F, 0x181F, 0x101F, 7))
        data = self.variable(rng.choice("vf"))
        target = self.variable(data[1])
        if rng.random() < 0.5:
            target += f"|{self.variable('p')}"
        return Line((f"shfl.sync.{mode}.b32 {target}, {data}, {source}, {clamp}, -1;",))

    def call(self) -> Line:
        rng = self.rng
        number = rng.randrange(len(self.functions))
        a, b, target = self.variable("v"), self.variable("v"), self.variable("v")
        if "(.reg" in self.functions[number].split("\n")[0]:
            return Line((f"call.uni ({target}), fun{number}, ({a}, {b});",))
        return Line(
            (
                "{",
                ".param .b32 a0;",
                ".param .b32 a1;",
                ".param .b32 r0;",
                f"st.param.b32 [a0], {a};",
                f"st.param.b32 [a1], {b};",
                f"call.uni (r0), fun{number}, (a0, a1);",
                f"ld.param.b32 {target}, [r0];",
                "}",
            )
        )

    def _functions(self) -> tuple[str, ...]:
        """Device functions of two words; some branch, one may call itself."""
        made = []
        for number in range(self.rng.randrange(1, 3)):
            registers = self.rng.random() < 0.5
            recursive = not registers and self.rng.random() < 0.4
            head = (
                f".func (.reg .b32 %res) fun{number}(.reg .b32 %a, .reg .b32 %b)"
                if registers
                else f".func (.param .b32 res) fun{number}(.param .b32 pa, .param .b32 pb)"
            )
            lines = ["{", ".reg .b32 %y<4>;", ".reg .pred %z;"]
            if not registers:
                lines += [
                    ".reg .b32 %a; .reg .b32 %b; .reg .b32 %res;",
                    "ld.param.b32 %a, [pa];",
                    "ld.param.b32 %b, [pb];",
                ]
            lines += ["mad.lo.u32 %res, %a, 3, %b;"]
            if recursive:
                lines += [
                    "and.b32 %y0, %a, 3;",
                    "setp.eq.u32 %z, %y0, 0;",
                    "@%z bra done;",
                    "sub.u32 %y0, %y0, 1;",
                    "xor.b32 %y1, %b, %a;",
                ]
                if registers:
                    lines.append(f"call.uni (%y2), fun{number}, (%y0, %y1);")
                else:
                    lines += [
                        "{",
                        ".param .b32 a0; .param .b32 a1; .param .b32 r0;",
                        "st.param.b32 [a0], %y0;",
                        "st.param.b32 [a1], %y1;",
                        f"call.uni (r0), fun{number}, (a0, a1);",
                        "ld.param.b32 %y2, [r0];",
                        "}",
                    ]
                lines += ["add.u32 %res, %res, %y2;", "done:"]
            else:
                lines += ["setp.gt.s32 %z, %a, %b;", "@%z bra other;", "xor.b32 %res, %res, 0x55;"]
                lines += (
                    ["bra.uni join;"] if registers or self.rng.random() < 0.5 else ["st.param.b32 [res], %res;", "ret;"]
                )
                lines += ["other:", "shl.b32 %res, %b, 1;", "join:"]
            if not registers:
                lines.append("st.param.b32 [res], %res;")
            made.append("\n".join((head, *lines, "ret;", "}")))
        return tuple(made)

    # ------------------------------------------------------------ structure
    def block(self, depth: int, uniform: bool, length: int | None = None) -> tuple:
        rng = self.rng
        count = length or rng.randrange(2, 8)
        found = []
        for _ in range(count):
            if self.budget <= 0 and found:
                break
            self.budget -= 1
            found.append(self.statement(depth, uniform))
        return tuple(found)

    def statement(self, depth: int, uniform: bool):
        rng = self.rng
        choices = [(self.straight, 10), (self.memory, 4), (self.atomic, 2)]
        if self.functions:
            choices.append((self.call, 2))
        if uniform:
            choices += [(self.exchange, 2), (self.reduction, 1), (lambda: self.vote("-1"), 2)]
            if self.whole and self.full_warps:
                choices.append((self.shuffle, 3))
            if depth == 0:
                choices.append((self.early_exit, 1))
        if depth < 3:
            choices += [
                (lambda: self.branch(depth), 3),
                (lambda: self.loop(depth, uniform), 3),
                (lambda: self.switch(depth), 1),
                (lambda: self.irreducible(depth), 1),
            ]
            if uniform:
                choices.append((lambda: self.uniform_branch(depth), 1))
        makers, weights = zip(*choices)
        return rng.choices(makers, weights)[0]()

    def branch(self, depth: int) -> If:
        label = self.new_label()
        setup, predicate = self.condition()
        then = self.block(depth + 1, False)
        other = self.block(depth + 1, False) if self.rng.random() < 0.5 else ()
        if depth == 0 and self.rng.random() < 0.4:
            # The lanes that go one way are known before they part, and meet in operations of their own.
            setup = (*setup, f"vote.sync.ballot.b32 %m{label}, {predicate}, -1;")
            extra = [self.vote(f"%m{label}")]
            if self.full_warps:
                source, target = self.variable("v"), self.variable("v")
                leader = (f"bfind.u32 %t0, %m{label};", f"shfl.sync.idx.b32 {target}, {source}, %t0, 31, %m{label};")
                extra.append(Line(leader))
            then = (*extra, *then)
            self.loops.append(-label)
        return If(label, setup, predicate, then, other)

    def uniform_branch(self, depth: int) -> If:
        form = self.rng.choice(
            (
                "mov.u32 %t0, %ctaid.x;~setp.eq.u32 %q1, %t0, 1;",
                "setp.gt.u32 %q1, %n, 5;",
                "bar.red.or.pred %q1, 0, {p};",
            )
        )
        label = self.new_label()
        setup = self.fill(form)
        return If(label, setup, "%q1", self.block(depth + 1, True), self.block(depth + 1, True))

    def loop(self, depth: int, uniform: bool) -> Loop:
        rng = self.rng
        label = self.new_label()
        self.loops.append(label)
        uniform = uniform and rng.random() < 0.5
        if uniform:
            setup = rng.choice(((f"mov.u32 %c{label}, {rng.randrange(1, 5)};",), (f"and.b32 %c{label}, %n, 3;",)))
        else:
            setup = (f"and.b32 %c{label}, {self.variable('v')}, {rng.choice((1, 3, 7))};",)
        leave = skip = ()
        if not uniform and rng.random() < 0.3:
            first, predicate = self.condition()
            leave = (*first, predicate)
        if not uniform and rng.random() < 0.3:
            first, predicate = self.condition()
            skip = (*first, predicate)
        return Loop(label, setup, self.block(depth + 1, uniform, rng.randrange(1, 5)), leave, skip)

    def switch(self, depth: int) -> Switch:
        arms = tuple(self.block(depth + 1, False, self.rng.randrange(1, 3)) for _ in range(4))
        return Switch(self.new_label(), self.variable("v"), arms)

    def irreducible(self, depth: int) -> Irreducible:
        label = self.new_label()
        self.loops.append(label)
        setup, predicate = self.condition()
        setup = (f"and.b32 %c{label}, {self.variable('v')}, 3;", *setup, predicate)
        return Irreducible(label, setup, self.block(depth + 1, False, 2), self.block(depth + 1, False, 2))

    def early_exit(self) -> Exit:
        self.whole = False
        setup, predicate = self.condition()
        return Exit(self.new_label(), setup, predicate)


def _product(shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def generate(seed: int) -> Program:
    """The kernel of a seed."""
    return Generator(seed).program()


# ---------------------------------------------------------------- text
def render(program: Program) -> str:
    """The program's PTX: one kernel `k(input, out, scratch, acc, n)`."""
    lines = [".version 8.6", ".target sm_100a", ".address_size 64"]
    for number in range(len(program.functions)):
        lines.append(program.functions[number].split("\n")[0] + ";")
    lines += program.functions
    lines += [
        ".visible .entry k(.param .u64 input, .param .u64 out, .param .u64 scratch, .param .u64 acc, .param .u32 n)",
        "{",
    ]
    for kind, type_ in REGISTER_TYPES.items():
        lines.append(f".reg .{type_} %{kind}<{VARIABLES.get(kind, 4)}>;")
    lines.append(".reg .b32 %lin, %gid, %n, %sacc, %sexchange;")
    lines.append(".reg .b64 %pin, %pout, %pscratch, %pacc, %plocal;")
    for label in program.loops:
        lines.append(f".reg .b32 %{'c' if label > 0 else 'm'}{abs(label)};")
    lines += _prologue()
    lines += _statements(program.body)
    lines += _epilogue()
    lines += ["ret;", "}"]
    return "\n".join(lines) + "\n"


def _prologue() -> Iterator[str]:
    accumulators = ACC_WORDS * len(ACC_OPERATIONS)
    yield f".shared .align 16 .b8 exchange[{EXCHANGE_WORDS * 4}];"
    yield f".shared .align 16 .b8 sharedacc[{accumulators * 4}];"
    yield f".local .align 16 .b8 private[{SCRATCH_BYTES}];"
    for name, register in (("input", "%pin"), ("out", "%pout"), ("scratch", "%pscratch"), ("acc", "%pacc")):
        yield f"ld.param.u64 {register}, [{name}];"
    yield "ld.param.u32 %n, [n];"
    yield "mov.u32 %sexchange, exchange;"
    yield "mov.u32 %sacc, sharedacc;"
    yield "mov.u64 %plocal, private;"
    yield "mov.u32 %t0, %tid.z; mov.u32 %t1, %ntid.y; mov.u32 %t2, %tid.y; mad.lo.u32 %t0, %t0, %t1, %t2;"
    yield "mov.u32 %t1, %ntid.x; mov.u32 %t2, %tid.x; mad.lo.u32 %lin, %t0, %t1, %t2;"
    yield "mov.u32 %t2, %ntid.y; mul.lo.u32 %t1, %t1, %t2; mov.u32 %t2, %ntid.z; mul.lo.u32 %t1, %t1, %t2;"
    yield "mov.u32 %t0, %ctaid.y; mov.u32 %t2, %nctaid.x; mov.u32 %t3, %ctaid.x; mad.lo.u32 %t0, %t0, %t2, %t3;"
    yield "mad.lo.u32 %gid, %t0, %t1, %lin;"
    yield f"mul.wide.u32 %u0, %gid, {SCRATCH_BYTES}; add.u64 %pscratch, %pscratch, %u0;"
    yield f"mul.wide.u32 %u0, %gid, {OUT_WORDS * 4}; add.u64 %pout, %pout, %u0;"
    # Shared and local memory start as zeros.
    yield "mov.u32 %t0, %lin;"
    yield "zero:"
    yield f"setp.ge.u32 %q0, %t0, {EXCHANGE_WORDS}; @%q0 bra zeroed;"
    yield "shl.b32 %t2, %t0, 2; add.u32 %t3, %sexchange, %t2; st.shared.u32 [%t3], 0;"
    yield f"setp.lt.u32 %q0, %t0, {accumulators}; add.u32 %t3, %sacc, %t2; @%q0 st.shared.u32 [%t3], 0;"
    yield "add.u32 %t0, %t0, %t1; bra zero;"
    yield "zeroed: bar.sync 0;"
    for offset in range(0, SCRATCH_BYTES, 4):
        yield f"st.local.u32 [private+{offset}], %gid;"
    yield "cvt.u64.u32 %u0, %gid; and.b64 %u0, %u0, 63; shl.b64 %u0, %u0, 2; add.u64 %u0, %pin, %u0;"
    for i in range(VARIABLES["v"]):
        yield f"ld.global.u32 %v{i}, [%u0+{i * 16}];" if i % 2 else f"mad.lo.u32 %v{i}, %gid, {2 * i + 1}, {i};"
    yield "mov.u32 %v2, %lin;"
    for i in range(VARIABLES["w"]):
        yield f"mov.b64 %w{i}, {{%v{i}, %v{i + 1}}};"
    for i in range(VARIABLES["h"]):
        yield f"cvt.u16.u32 %h{i}, %v{2 * i + 1};"
    for i in range(VARIABLES["f"]):
        yield f"cvt.rn.f32.s32 %f{i}, %v{i + 1};" if i % 2 else f"ld.global.f32 %f{i}, [%u0+{4 * i}];"
    for i in range(VARIABLES["g"]):
        yield f"cvt.rn.f64.s32 %g{i}, %v{i + 3};"
    for i in range(VARIABLES["p"]):
        yield f"and.b32 %t0, %v{i + 1}, {i + 1}; setp.ne.u32 %p{i}, %t0, 0;"
    for name in ("%t0", "%t1", "%t2", "%t3"):
        yield f"mov.u32 {name}, 0;"
    yield "mov.u64 %u0, 0; setp.ne.u32 %q0, %t0, 0; setp.ne.u32 %q1, %t0, 0;"


def _store_state() -> Iterator[str]:
    """A thread's registers, to its part of `out`, which is aligned to 4 bytes only."""
    at = 0
    for kind, count in VARIABLES.items():
        for i in range(count):
            name = f"%{kind}{i}"
            if kind in "wg":
                yield f"mov.b64 {{%t0, %t1}}, {name};"
                yield f"st.global.b32 [%pout+{at * 4}], %t0;"
                yield f"st.global.b32 [%pout+{at * 4 + 4}], %t1;"
                at += 2
                continue
            if kind == "h":
                yield f"cvt.u32.u16 %t0, {name};"
            elif kind == "p":
                yield f"selp.u32 %t0, 1, 0, {name};"
            yield f"st.global.b32 [%pout+{at * 4}], {name if kind in 'vf' else '%t0'};"
            at += 1
    assert at == OUT_WORDS - 1, at


def _epilogue() -> Iterator[str]:
    """The threads that are left store their state, and share the shared accumulators among them."""
    yield from _store_state()
    yield "bar.sync 0;"
    yield "mov.u32 %t0, %ntid.x; mov.u32 %t1, %ntid.y; mul.lo.u32 %t0, %t0, %t1;"
    yield "mov.u32 %t1, %ntid.z; mul.lo.u32 %t1, %t0, %t1;"
    yield "mov.u32 %t0, %lin; mov.u32 %t2, 0;"
    yield "sum:"
    yield f"setp.ge.u32 %q0, %t0, {ACC_WORDS * len(ACC_OPERATIONS)}; @%q0 bra summed;"
    yield "shl.b32 %t3, %t0, 2; add.u32 %t3, %sacc, %t3; ld.shared.u32 %t3, [%t3];"
    yield "mad.lo.u32 %t2, %t2, 31, %t3; add.u32 %t0, %t0, %t1; bra sum;"
    yield f"summed: st.global.b32 [%pout+{(OUT_WORDS - 1) * 4}], %t2;"


def _statements(body) -> Iterator[str]:
    for item in body:
        yield from _statement(item)


def _statement(item) -> Iterator[str]:
    match item:
        case Line(texts, guard):
            for text in texts:
                yield text if not guard or text[0] in "{}." else guard + text
        case If(label, setup, predicate, then, other):
            yield from setup
            yield f"@!{predicate} bra L{label}_else;"
            yield from _statements(then)
            if other:
                yield f"bra L{label}_end;"
            yield f"L{label}_else:"
            if other:
                yield from _statements(other)
                yield f"L{label}_end:"
        case Loop(label, setup, body, leave, skip):
            yield from setup
            yield f"L{label}_top:"
            yield f"setp.eq.u32 %q0, %c{label}, 0;"
            yield f"@%q0 bra L{label}_end;"
            yield f"sub.u32 %c{label}, %c{label}, 1;"
            if leave:
                yield from leave[:-1]
                yield f"@{leave[-1]} bra L{label}_end;"
            yield from _statements(body[:-1])
            if skip:
                yield from skip[:-1]
                yield f"@{skip[-1]} bra L{label}_top;"
            yield from _statements(body[-1:])
            yield f"bra L{label}_top;"
            yield f"L{label}_end:"
        case Switch(label, selector, arms):
            names = [f"L{label}_arm{i}" for i in range(len(arms))]
            yield f"and.b32 %t0, {selector}, 3;"
            yield f"L{label}_table: .branchtargets {', '.join(names)};"
            yield f"brx.idx %t0, L{label}_table;"
            for i, (name, arm) in enumerate(zip(names, arms)):
                yield f"{name}:"
                yield from _statements(arm)
                if i % 2 == 0:
                    yield f"bra L{label}_end;"
            yield f"L{label}_end:"
        case Irreducible(label, setup, first, second):
            yield from setup[:-1]
            yield f"@{setup[-1]} bra L{label}_middle;"
            yield f"L{label}_top:"
            yield from _statements(first)
            yield f"L{label}_middle:"
            yield from _statements(second)
            yield f"setp.eq.u32 %q0, %c{label}, 0;"
            yield f"@%q0 bra L{label}_end;"
            yield f"sub.u32 %c{label}, %c{label}, 1;"
            yield f"bra L{label}_top;"
            yield f"L{label}_end:"
        case Exit(label, setup, predicate):
            yield from setup
            yield f"@!{predicate} bra L{label}_stay;"
            yield from _store_state()
            yield "ret;"
            yield f"L{label}_stay:"
        case _:
            raise AssertionError(item)


# ---------------------------------------------------------------- shrinking
def smaller(program: Program) -> Iterator[Program]:
    """Programs with one statement less, or one statement simpler, large cuts first."""
    for body in _smaller_bodies(program.body):
        yield replace(program, body=body)
    if len(program.grid) > 1 or program.grid[0] > 1:
        yield replace(program, grid=(1,))


def _smaller_bodies(body: tuple) -> Iterator[tuple]:
    size = len(body)
    while size:
        for at in range(0, len(body), size):
            yield body[:at] + body[at + size :]
        size //= 2
    for i, item in enumerate(body):
        for simpler in _simpler(item):
            yield body[:i] + simpler + body[i + 1 :]


def _simpler(item) -> Iterator[tuple]:
    match item:
        case Line(texts, guard) if guard:
            yield (Line(texts),)
        case If(label, setup, _, then, other):
            # Operations over the ballot of a branch make no sense outside it.
            if not any(f"%m{label}" in text for text in setup):
                yield (Line(setup), *then) if setup else then
            if other:
                yield (Line(setup), *other) if setup else other
            for inner in _smaller_bodies(then):
                yield (replace(item, then=inner),)
            for inner in _smaller_bodies(other):
                yield (replace(item, other=inner),)
        case Loop(_, _, body, leave, skip):
            yield body
            if leave:
                yield (replace(item, leave=()),)
            if skip:
                yield (replace(item, skip=()),)
            for inner in _smaller_bodies(body):
                yield (replace(item, body=inner),)
        case Switch(_, _, arms):
            for i, arm in enumerate(arms):
                yield arm
                for inner in _smaller_bodies(arm):
                    yield (replace(item, arms=arms[:i] + (inner,) + arms[i + 1 :]),)
        case Irreducible(_, _, first, second):
            yield first + second
            for inner in _smaller_bodies(first):
                yield (replace(item, first=inner),)
            for inner in _smaller_bodies(second):
                yield (replace(item, second=inner),)
