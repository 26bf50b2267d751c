"""Which asynchronous copies, mbarrier operations and tensor map instructions exist: Weft's table against ptxas, over
all spellings that one might write."""

from __future__ import annotations

import itertools

import pytest
from test_acceptance import PTXAS, ask_ptxas, newest_version

from weft.errors import SourceError
from weft.ptx.check import check_module
from weft.ptx.parser import parse_module

pytestmark = pytest.mark.skipif(PTXAS is None, reason="no ptxas: pip install 'weft[acceptance]'")
TARGETS = ("sm_100a", "sm_90a", "sm_120a", "sm_103a")
SPACES = ("", ".shared", ".shared::cta", ".shared::cluster")
SCOPED = ("", ".relaxed", ".acquire", ".release", ".cta", ".cluster", ".gpu", ".relaxed.cta", ".acquire.cta",
          ".release.cta", ".acquire.cluster", ".release.cluster", ".relaxed.cluster", ".acq_rel.cta",
          ".relaxed.gpu")  # fmt: skip
HINTS = (("", ""), (".L2::cache_hint", ", %d7"))


def mbarrier_lines() -> list[str]:
    lines = []
    for space in SPACES:
        lines += [f"mbarrier.init{space}.b64 [%d0], %r0;", f"mbarrier.inval{space}.b64 [%d0];"]
        for scoped in SCOPED:
            for verb, state in itertools.product(("arrive", "arrive_drop"), ("%d1", "_")):
                head = f"mbarrier.{verb}{{}}{scoped}{space}.b64 {state}, [%d0]"
                for variant in ("", ".noComplete", ".expect_tx"):
                    lines += [f"{head.format(variant)};", f"{head.format(variant)}, %r0;"]
            for verb in ("expect_tx", "complete_tx"):
                lines.append(f"mbarrier.{verb}{scoped}{space}.b64 [%d0], %r0;")
            for verb, parity in itertools.product(("test_wait", "try_wait"), ("", ".parity")):
                operand = "%r1" if parity else "%d1"
                for hint in ("", ", %r2"):
                    lines.append(f"mbarrier.{verb}{parity}{scoped}{space}.b64 %p0, [%d0], {operand}{hint};")
        for noinc in ("", ".noinc"):
            lines.append(f"cp.async.mbarrier.arrive{noinc}{space}.b64 [%d0];")
    return [*lines, "mbarrier.pending_count.b64 %r0, %d0;"]


def small_copy_lines() -> list[str]:
    lines = ["cp.async.commit_group;", "cp.async.wait_group 2;", "cp.async.wait_all;", "cp.async.wait_group 0;"]
    for cop, space, size in itertools.product(("ca", "cg"), SPACES[1:], (4, 8, 16, 2, 32)):
        for (hint, policy), prefetch in itertools.product(HINTS, ("", ".L2::64B", ".L2::128B", ".L2::256B")):
            for extra in ("", ", %r3", ", %p0"):
                lines.append(f"cp.async.{cop}{space}.global{hint}{prefetch} [%d0], [%d1], {size}{extra}{policy};")
    return lines


OPERATIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")


def bulk_lines() -> list[str]:
    lines = []
    tx = ".mbarrier::complete_tx::bytes"
    for (hint, policy), space in itertools.product(HINTS, SPACES[1:]):
        for many, mask in (("", ""), (".multicast::cluster", ", %h0")):
            lines.append(f"cp.async.bulk{space}.global{tx}{many}{hint} [%d0], [%d1], %r0, [%d2]{mask}{policy};")
            lines.append(f"cp.async.bulk{space}.global.bulk_group{many}{hint} [%d0], [%d1], %r0{mask}{policy};")
        for masked, bytes_ in (("", ""), (".cp_mask", ", %h0")):
            lines.append(f"cp.async.bulk.global{space}.bulk_group{hint}{masked} [%d0], [%d1], %r0{policy}{bytes_};")
        for source in SPACES[1:]:
            lines.append(f"cp.async.bulk{space}{source}{tx}{hint} [%d0], [%d1], %r0, [%d2]{policy};")
    for hint, policy in HINTS:
        lines.append(f"cp.async.bulk.prefetch.L2.global{hint} [%d0], %r0{policy};")
    lines += ["cp.async.bulk.commit_group;", "cp.async.bulk.wait_group 3;", "cp.async.bulk.wait_group.read 0;"]
    types = ("b8", "b32", "b64", "u8", "u16", "u32", "s32", "u64", "s64", "f16", "bf16", "f32", "f64", "f16x2")
    for operation, type_, noftz in itertools.product(OPERATIONS, types, ("", ".noftz")):
        kind = f".{operation}{noftz}.{type_}"
        lines.append(f"cp.reduce.async.bulk.shared::cluster.shared::cta{tx}{kind} [%d0], [%d1], %r0, [%d2];")
        for hint, policy in HINTS:
            lines.append(f"cp.reduce.async.bulk.global.shared::cta.bulk_group{hint}{kind} [%d0], [%d1], %r0{policy};")
    for weak, space in itertools.product(("", ".weak"), SPACES):
        lines += [f"st.bulk{weak}{space} [%d0], %d1, 0;", f"st.bulk{weak}{space} [%d0], %d1, 1;"]
    return lines


def vector(count: int, letter: str = "r", first: int = 1) -> str:
    return "{" + ", ".join(f"%{letter}{first + i}" for i in range(count)) + "}"


LOADS = ("", ".tile", ".tile::gather4", ".im2col")
STORES = ("", ".tile", ".tile::scatter4", ".im2col_no_offs", ".im2col", ".tile::gather4")


def tensor_lines() -> list[str]:
    lines = []
    for n, mode, (hint, policy) in itertools.product(range(1, 6), dict.fromkeys(LOADS + STORES), HINTS):
        count = 5 if mode in (".tile::gather4", ".tile::scatter4") else n
        where = f"[%d1, {vector(count)}]"
        offsets = ", " + vector(n - 2, "h") if mode == ".im2col" and n > 2 else ""
        for space, (many, mask) in itertools.product(SPACES[1:], (("", ""), (".multicast::cluster", ", %h8"))):
            head = f"cp.async.bulk.tensor.{n}d{space}.global{mode}.mbarrier::complete_tx::bytes{many}{hint}"
            lines.append(f"{head} [%d0], {where}, [%d2]{offsets}{mask}{policy};")
        lines.append(f"cp.async.bulk.prefetch.tensor.{n}d.L2.global{mode}{hint} {where}{offsets}{policy};")
        for source in (".shared::cta", ".shared::cluster"):
            lines.append(f"cp.async.bulk.tensor.{n}d.global{source}{mode}.bulk_group{hint} {where}, [%d0]{policy};")
            for operation in OPERATIONS:
                head = f"cp.reduce.async.bulk.tensor.{n}d.global{source}.{operation}{mode}.bulk_group{hint}"
                lines.append(f"{head} {where}, [%d0]{policy};")
    return lines


def map_lines() -> list[str]:
    lines = []
    for space in ("", ".global", ".shared::cta", ".shared::cluster", ".const", ".param"):
        for field, type_ in itertools.product(
            ("global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype",
             "interleave_layout", "swizzle_mode", "swizzle_atomicity", "fill_mode"), ("b32", "b64"),
        ):  # fmt: skip
            value = "%d1" if type_ == "b64" else "%r1"
            for operands in (value, "1", f"1, {value}", f"2, {value}"):
                lines.append(f"tensormap.replace.tile.{field}{space}.b1024.{type_} [%d0], {operands};")
        lines.append(f"prefetch{space}.tensormap [%d0];")
    for scope in ("cta", "cluster", "gpu", "sys"):
        lines.append(
            f"tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.{scope}.sync.aligned [%d0], [%d1], 128;"
        )
        lines += [f"fence.proxy.tensormap::generic.release.{scope};",
                  f"fence.proxy.tensormap::generic.acquire.{scope} [%d0], 128;"]  # fmt: skip
    return lines


def accepted(line: str) -> bool:
    """Whether Weft has the form of a line."""
    text = (
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {\n.reg .pred %p<9>; .reg .b16 %h<9>;"
        f".reg .b32 %r<9>; .reg .b64 %d<9>;\n{line}\n}}\n"
    )
    try:
        check_module(parse_module(text))
    except SourceError:
        return False
    return True


@pytest.mark.parametrize("family", [mbarrier_lines, small_copy_lines, bulk_lines, tensor_lines, map_lines])
def test_every_form(family, tmp_path):
    lines = list(dict.fromkeys(family()))
    refused, reasons = set(lines), {}
    for target in TARGETS:
        pending = [line for line in lines if line in refused]
        if not pending:
            break
        wrong = ask_ptxas(pending, newest_version(), target, tmp_path)
        refused = {pending[i] for i in wrong}
        reasons.update({pending[i]: text for i, text in wrong.items()})
    problems = []
    for line in lines:
        if accepted(line) == (line in refused):
            who = "Weft" if line in refused else "ptxas"
            problems.append(f"{line} accepted by {who} alone {reasons.get(line, '')}")
    assert len(lines) > len(refused)
    assert not problems, f"{len(problems)} of {len(lines)}\n" + "\n".join(problems[:60])
