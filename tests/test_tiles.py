"""Groups of mma: what may be gathered, and that gathered multiplications give the bits of single ones."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

import weft
from weft import settings
from weft.analysis.flow import Op, make_op
from weft.analysis.tiles import Group, group_multiplies
from weft.codegen import tiles
from weft.codegen.jit import Target
from weft.codegen.microkernels import Kind
from weft.ptx.parser import parse_module

HEAD = ".version 8.7\n.target sm_89\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in) {\n"
F16 = Kind("f16", "f16", 16)


def registers(letter: str, tile: int, count: int) -> str:
    return "{" + ", ".join(f"%{letter}{tile * count + i}" for i in range(count)) + "}"


def multiply(d: int, a: int, b: int, c: int | None = None, kind: Kind = F16, into: str = "c") -> str:
    """mma on numbered tiles: D and C are tiles of the registers %c (D of `into`), A of %a, B of %b."""
    left, right, sums = 2 * kind.b_registers, kind.b_registers, kind.sum_registers
    source = registers("c", d if c is None else c, sums)
    name = f"m16n8k{kind.k}.row.col{'.satfinite' * kind.saturate}.{kind.sums}.{kind.a}.{kind.b}.{kind.sums}"
    return (
        f"mma.sync.aligned.{name} {registers(into, d, sums)}, {registers('a', a, left)}, {registers('b', b, right)}, "
        f"{source};"
    )


def ops_of(lines: list[str]) -> list[Op]:
    text = HEAD + ".reg .b32 %a<64>, %b<64>, %c<64>, %d<64>, %r<8>; .reg .pred %p;\n" + "\n".join(lines) + "\nret;\n}\n"
    body = parse_module(text).kernels["k"].body
    return [make_op(item, site, "test") for site, item in enumerate(body) if item.opcode != "ret"]


def shapes(lines: list[str]) -> list[int | str]:
    """The grouped instructions: a group as the number of its multiplications, others by their opcode."""
    found = group_multiplies(ops_of(lines), tiles.kind_of)
    return [len(item.items) if isinstance(item, Group) else item.opcode for item in found]


# ---------------------------------------------------------------- what is gathered
def test_neighbours_are_gathered() -> None:
    assert shapes([multiply(i, 0, i) for i in range(4)]) == [4]


def test_unrelated_instructions_go_first() -> None:
    assert shapes([multiply(0, 0, 0), "mov.b32 %r0, 1;", multiply(1, 0, 1)]) == ["mov", 2]


@pytest.mark.parametrize(
    "between",
    [
        "mov.b32 %a1, %r0;",  # writes A
        "mov.b32 %b0, %r0;",  # writes B
        "mov.b32 %c2, %r0;",  # writes an accumulator
        "mov.b32 %r0, %c3;",  # reads one
    ],
)
def test_dependent_instructions_part_groups(between: str) -> None:
    assert shapes([multiply(0, 0, 0), between, multiply(1, 0, 1)]) == [1, "mov", 1]


def test_a_guard_or_an_unknown_form_is_not_gathered() -> None:
    assert shapes(["@%p " + multiply(0, 0, 0), multiply(1, 0, 1)]) == ["mma", 1]
    double = "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%x0, %x1}, {%x2}, {%x3}, {%x0, %x1};"
    assert shapes([".reg .f64 %x<4>;", double]) == ["mma"]


def test_kinds_do_not_mix() -> None:
    assert shapes([multiply(0, 0, 0), multiply(1, 0, 0, kind=Kind("bf16", "bf16", 16))]) == [1, 1]


def test_a_result_as_an_operand_parts_groups() -> None:
    feeds = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%c4, %c5, %c6, %c7}, {%c0, %c1, %c2, %c3}, {%b0, %b1}, "
    assert shapes([multiply(0, 0, 0), feeds + "{%c4, %c5, %c6, %c7};"]) == [1, 1]


def test_overwritten_sums_part_groups() -> None:
    # the second writes what the first reads and keeps
    assert shapes([multiply(0, 0, 0, c=1, into="d"), multiply(1, 0, 1)]) == [1, 1]
    # the second starts anew where the first has written
    assert shapes([multiply(0, 0, 0), multiply(0, 0, 1, c=2)]) == [1, 1]
    # fragments that overlap without being the same
    odd = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%c2, %c3, %c4, %c5}, {%a0, %a1, %a2, %a3}, {%b0, %b1}, "
    assert shapes([multiply(0, 0, 0), odd + "{%c2, %c3, %c4, %c5};"]) == [1, 1]


def strips_of(lines: list[str], most: int) -> list[tuple[list[str], list[list[str]]]]:
    (group,) = group_multiplies(ops_of(lines), tiles.kind_of)
    return [([a[0] for a in s.a], [[x.d[0] for x in step] for step in s.steps]) for s in group.strips(most)]


def test_chains_become_steps() -> None:
    lines = [multiply(4 * m + n, 4 * k + m, 4 * k + n) for k in range(2) for m in range(2) for n in range(4)]
    first = ["%c0", "%c4", "%c8", "%c12"]
    second = ["%c16", "%c20", "%c24", "%c28"]
    assert strips_of(lines, 8) == [(["%a0", "%a16"], [first, first]), (["%a4", "%a20"], [second, second])]
    assert strips_of(lines, 4) == [
        (["%a0"], [first]), (["%a4"], [second]), (["%a16"], [first]), (["%a20"], [second])
    ]  # fmt: skip


# ---------------------------------------------------------------- the same bits
@pytest.fixture(autouse=True, scope="module", params=["host", "avx2"])
def target(request):
    """With all of the processor's vector instructions, and with those of AVX2 only."""
    before = settings.current().target
    if request.param == "avx2":
        settings.configure(target="avx2")
    device.cache_clear()
    yield request.param
    settings.configure(target=before)
    device.cache_clear()


@functools.cache
def device() -> weft.Device:
    return weft.Device("l4")


def run(lines: list[str], kind: Kind, a_tiles: int, b_tiles: int, sums: int, data: np.ndarray) -> np.ndarray:
    """A warp loads its fragments from `data` (words [registers, 32]), runs the lines, stores all accumulators."""
    counts = {"a": a_tiles * 2 * kind.b_registers, "b": b_tiles * kind.b_registers}
    counts |= dict.fromkeys("cd", kind.sum_registers * sums)
    text = [
        HEAD, *(f".reg .b32 %{letter}<{count}>;" for letter, count in counts.items()),
        ".reg .b32 %r<8>; .reg .b64 %at, %base; .reg .pred %p, %q;",
        "mov.u32 %r0, %tid.x; mul.wide.u32 %at, %r0, 4; ld.param.u64 %base, [in]; add.s64 %at, %at, %base;",
    ]  # fmt: skip
    names = [f"%{letter}{i}" for letter in "abc" for i in range(counts[letter])]
    text += [f"ld.global.b32 {name}, [%at+{128 * i}];" for i, name in enumerate(names)]
    text += [f"mov.b32 %d{i}, 0;" for i in range(counts["d"])]
    text += lines
    text.append("mul.wide.u32 %at, %r0, 4; ld.param.u64 %base, [out]; add.s64 %at, %at, %base;")
    stored = [f"%{letter}{i}" for letter in "cd" for i in range(counts[letter])]
    text += [f"st.global.b32 [%at+{128 * i}], {name};" for i, name in enumerate(stored)]
    out = device().zeros((len(stored), 32), np.uint32)
    device().load("\n".join([*text, "ret;\n}\n"]))["k"][1, 32](out, device().array(data[: len(names)].copy()))
    return out.numpy()


def fragments(type_: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Registers [count, 32] of random numbers; tf32 with bits below its mantissa."""
    numbers = rng.standard_normal((count, 32, 4)).astype(np.float32)
    if type_ in ("tf32", "f32"):
        return numbers.view(np.uint32)[..., 0].copy()
    if type_ == "f16":
        return numbers[..., :2].astype(np.float16).view(np.uint32)[..., 0]
    if type_ == "bf16":
        return np.ascontiguousarray(numbers[..., :2].view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)[..., 0]
    small = rng.integers(0, 0x70, (count, 32, 4)) | rng.integers(0, 2, (count, 32, 4)) << 7
    if type_ in ("s8", "u8"):
        small = rng.integers(0, 256, (count, 32, 4))
    elif type_ == "s32":
        return rng.integers(-(1 << 31), 1 << 31, (count, 32)).astype(np.int32).view(np.uint32)
    return small.astype(np.uint8).view(np.uint32)[..., 0]


def both_ways(monkeypatch, lines, kind, a_tiles, b_tiles, sums) -> np.ndarray:
    """Runs with groups and one by one: the same bits. Returns them."""
    rng = np.random.default_rng(kind.k)
    given = ((kind.a, 2 * a_tiles * kind.b_registers), (kind.b, b_tiles * kind.b_registers))
    data = np.concatenate([fragments(type_, n, rng) for type_, n in (*given, (kind.sums, kind.sum_registers * sums))])
    gathered = run(lines, kind, a_tiles, b_tiles, sums, data)
    with monkeypatch.context() as patch:
        patch.setattr(tiles, "kind_of", lambda op: None)
        single = run(["mov.b32 %r7, 1;", *lines], kind, a_tiles, b_tiles, sums, data)
    np.testing.assert_array_equal(gathered, single)
    assert (gathered != np.resize(data[-kind.sum_registers * sums :], gathered.shape)).mean() > 0.2, (
        "nothing was computed"
    )
    return gathered


FLOAT_KINDS = [Kind(t, t, k) for t, k in (("f16", 16), ("f16", 8), ("bf16", 16), ("bf16", 8), ("tf32", 8), ("tf32", 4))]
KINDS = [
    *FLOAT_KINDS, Kind("f16", "f16", 16, "f16"), Kind("f16", "f16", 8, "f16"),
    *(Kind(a, b, 32) for a, b in itertools.product(("e4m3", "e5m2"), repeat=2)), Kind("e4m3", "e5m2", 16, "f16"),
    *(Kind(a, b, 32, "s32") for a, b in itertools.product(("s8", "u8"), repeat=2)), Kind("s8", "s8", 16, "s32"),
    Kind("s8", "s8", 32, "s32", True), Kind("u8", "s8", 16, "s32", True),
]  # fmt: skip


def describe(kind: Kind) -> str:
    return f"{kind.sums}-{kind.a}-{kind.b}-k{kind.k}{'-sat' * kind.saturate}"


@pytest.mark.parametrize("kind", KINDS, ids=describe)
@pytest.mark.parametrize("rows, columns, steps", [(1, 1, 1), (2, 3, 1), (1, 8, 2), (2, 2, 3)])
def test_product(monkeypatch, kind: Kind, rows: int, columns: int, steps: int) -> None:
    """A product of tiles in the order in which Triton writes it; also against NumPy."""
    lines = [
        multiply(m * columns + n, s * rows + m, s * columns + n, kind=kind)
        for s, m, n in itertools.product(range(steps), range(rows), range(columns))
    ]
    if kind.fits(Target.host(settings.current().target)):
        assert shapes(lines) == [rows * columns * steps]
    both_ways(monkeypatch, lines, kind, rows * steps, columns * steps, rows * columns)


def test_product_against_numpy() -> None:
    """16 x 32 times 32 x 16 from matrices: fragments are made by hand here."""
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((16, 32), (32, 16)))
    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    words = []
    for s in range(2):
        for r in range(4):
            row, column = g + 8 * (r % 2), 16 * s + 8 * (r // 2) + 2 * t
            words.append(np.stack([a[row, column], a[row, column + 1]], 1))
    for s, n, r in itertools.product(range(2), range(2), range(2)):
        k, column = 16 * s + 8 * r + 2 * t, 8 * n + g
        words.append(np.stack([b[k, column], b[k + 1, column]], 1))
    data = np.stack(words).view(np.uint32)[..., 0]
    data = np.concatenate([data, np.zeros((8, 32), np.uint32)])
    lines = [multiply(n, s, 2 * s + n) for s in range(2) for n in range(2)]
    found = run(lines, F16, 2, 4, 2, data)[:8].view(np.float32)
    product = np.zeros((16, 16), np.float32)
    for n, r in itertools.product(range(2), range(4)):
        product[g + 8 * (r // 2), 8 * n + 2 * t + r % 2] = found[4 * n + r]
    np.testing.assert_allclose(product, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_sums_elsewhere(monkeypatch) -> None:
    """D is not C, as in code with one assignment to each register; C is read again."""
    lines = [multiply(n, 0, n, c=n, into="d") for n in range(4)]
    both_ways(monkeypatch, [*lines, *(multiply(n, 1, n) for n in range(4))], F16, 2, 4, 4)


def test_zero_sums(monkeypatch) -> None:
    """C is a constant, as at the start of a product."""
    lines = []
    for n in range(3):
        lines += [f"mov.b32 %c{4 * n + i}, 0;" for i in range(4)] + [multiply(n, 0, n)]
    assert shapes(lines)[-1] == 3
    both_ways(monkeypatch, lines, F16, 1, 3, 3)


def test_sums_read_and_written_between(monkeypatch) -> None:
    """Accumulators are scaled between products, and one register of a fragment is replaced."""
    scale = [f"mul.f32 %c{i}, %c{i}, 0f3F000000;" for i in range(8)]
    lines = [multiply(0, 0, 0), multiply(1, 0, 1), *scale, multiply(0, 1, 0), "mov.b32 %a0, %b3;", multiply(1, 0, 1)]
    both_ways(monkeypatch, lines, F16, 2, 2, 2)


def test_swapped_orders(monkeypatch) -> None:
    """The second step takes the same accumulators in another order; the third only some of them."""
    lines = [multiply(n, 0, n) for n in (0, 1, 2)] + [multiply(n, 1, n) for n in (2, 0, 1)] + [multiply(1, 2, 3)]
    both_ways(monkeypatch, lines, Kind("bf16", "bf16", 16), 3, 4, 3)


def test_accumulators_that_cannot_lie_together(monkeypatch) -> None:
    """A register belongs to two fragments at different places."""
    odd = "{%c2, %c3, %c4, %c5}"
    lines = [
        multiply(0, 0, 0), multiply(1, 0, 1),
        f"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {odd}, "
        f"{registers('a', 1, 4)}, {registers('b', 0, 2)}, {odd};",
        multiply(1, 1, 1), multiply(0, 1, 1),
    ]  # fmt: skip
    both_ways(monkeypatch, lines, F16, 2, 2, 2)


def test_in_a_loop_with_barriers(monkeypatch) -> None:
    """Accumulators live across suspensions; the loop's count is the same for all lanes."""
    lines = [
        "mov.u32 %r1, 0;", "again:", multiply(0, 0, 0), multiply(1, 0, 1), "bar.sync 0;", multiply(0, 1, 1),
        "add.u32 %r1, %r1, 1;", "setp.lt.u32 %p, %r1, 3;", "@%p bra again;",
    ]  # fmt: skip
    both_ways(monkeypatch, lines, F16, 2, 2, 2)


def test_after_divergent_code(monkeypatch) -> None:
    """Lanes part and meet again around the products."""
    lines = [
        "setp.lt.u32 %p, %r0, 7;", "@%p bra over;", "mul.f32 %c1, %c1, 0f40000000;", "over:", multiply(0, 0, 0),
        multiply(1, 0, 1), "@%p bra end;", "mul.f32 %c2, %c2, 0f40400000;", "end:", multiply(0, 0, 1),
    ]  # fmt: skip
    both_ways(monkeypatch, lines, F16, 1, 2, 2)


def test_more_steps_than_fit_the_columns(monkeypatch) -> None:
    """A long chain runs in several parts."""
    count = 40
    lines = [multiply(n, s % 2, 2 * (s % 3) + n) for s in range(count) for n in range(2)]
    assert tiles.COLUMN_BYTES // F16.column_bytes < 2 * count
    both_ways(monkeypatch, lines, F16, 2, 6, 2)


@pytest.mark.parametrize("kind", FLOAT_KINDS, ids=describe)
def test_special_numbers(monkeypatch, kind: Kind) -> None:
    """Infinities, NaNs, subnormals and zeros of both signs: the same values, NaNs at the same places."""
    rng = np.random.default_rng(11)
    special = {
        "f16": [0x7C00, 0xFC00, 0x7E00, 0x0001, 0x8001, 0x0000, 0x8000, 0x7BFF, 0x3C00],
        "bf16": [0x7F80, 0xFF80, 0x7FC0, 0x0001, 0x8001, 0x0000, 0x8000, 0x7F7F, 0x3F80],
        "tf32": [0x7F800000, 0xFF800000, 0x7FC00000, 0x00002000, 0x80002000, 0, 0x80000000, 0x7F7FE000, 0x3F800000],
    }[kind.a]
    parts = rng.choice(special, (64, 32, kind.per_register), p=[0.02] * 3 + [0.94 / 6] * 6)
    data = parts.astype(np.uint32 if kind.a == "tf32" else np.uint16).reshape(64, 32, -1).view(np.uint32)[..., 0]
    lines = [multiply(n, 0, n, kind=kind) for n in range(2)]
    gathered = run(lines, kind, 1, 2, 2, data).view(np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(tiles, "kind_of", lambda op: None)
        single = run(["mov.b32 %r7, 1;", *lines], kind, 1, 2, 2, data).view(np.float32)
    np.testing.assert_array_equal(gathered, single)
