"""Compiles emission rules with the vector builder alone, without PTX, lowering or runtime.

What enters: instances from form_harness (their guards are ignored). What leaves: mismatches with the references. This
is the narrowest test of the builder: a wrong result is the builder's or the rule's fault.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np
from form_harness import BLOCK, LANES, THREADS, Instance, reference_results, row_mismatches

from weft.codegen.builder import Builder
from weft.codegen.jit import Target, function_attributes, link_object, optimise_and_emit
from weft.types import Dim3


def _source(b: Builder, instance: Instance, index: int, inputs: list[list[int]]):
    scalar = instance.form.all_sources[index][1]
    column, kind = instance.columns[index], instance.kinds[index]
    if kind == "immediate" or instance.form.all_sources[index][0] in dict(instance.form.immediates):
        return b.const(column[0], scalar.bits)
    if kind == "lane":
        rows = np.array(column[:BLOCK], dtype=np.uint64).astype(np.int64).reshape(-1, LANES)
        return b.from_array(rows, scalar.bits)
    if kind == "offset" and scalar.kind != "pred":
        factor = instance.steps[index][0]
        steps = np.array([i * factor for i in range(BLOCK)], dtype=np.int64).reshape(-1, LANES)
        base = [(v - i % BLOCK * factor) & scalar.mask for i, v in enumerate(column)]
        return b.add(_load_uniform(b, base, scalar.bits, inputs), b.from_array(steps, scalar.bits))
    if kind == "uniform":
        return _load_uniform(b, column, scalar.bits, inputs)
    pointer = _slot(b, column, inputs)
    chunks = []
    for c in range(b.chunks):
        at = b.t(f"getelementptr i64, ptr {pointer}, i64 {c * b.chunk}")
        wide = b.t(f"load <{b.chunk} x i64>, ptr {at}, align 8")
        narrow = wide if scalar.bits == 64 else b.t(f"trunc <{b.chunk} x i64> {wide} to {b.vtype(scalar.bits)}")
        chunks.append(narrow)
    return b.varying(chunks, scalar.bits)


def _slot(b: Builder, column: list[int], inputs: list[list[int]]) -> str:
    inputs.append(column)
    return b.t(f"getelementptr i64, ptr %in, i64 {(len(inputs) - 1) * THREADS}")


def _load_uniform(b: Builder, column: list[int], bits: int, inputs: list[list[int]]):
    wide = b.t(f"load i64, ptr {_slot(b, column, inputs)}, align 8")
    return b.scalar(wide if bits == 64 else b.t(f"trunc i64 {wide} to i{bits}"), bits)


def check_on_builder(instances: Sequence[Instance], target: Target) -> list[str]:
    """Mismatches of compiled rules (at most four an instance)."""
    b = Builder(Dim3(BLOCK), target.vector_bits // 32)
    b.dry = False
    inputs: list[list[int]] = []
    results = 0
    for instance in instances:
        form = instance.form
        total = sum(not s.is_destination and not s.is_address for s in form.entry.operands)
        sources = [_source(b, instance, i, inputs) for i in range(len(form.all_sources))]
        plain, carry = (sources[:-1], sources[-1:]) if form.carry_in else (sources, [])
        found = form.entry.emit(b, form.match, *plain, *[None] * (total - len(form.sources)), *carry)
        values = found if isinstance(found, tuple) else (found,)
        for (name, scalar), value in zip(form.all_results, values):
            assert value.bits == scalar.bits, f"{form.name}: {name} has {value.bits} bits, expected {scalar.bits}"
            for c, chunk in enumerate(b.vec(value)):
                wide = chunk
                if scalar.bits < 64:
                    wide = b.t(f"zext {b.vtype(scalar.bits)} {chunk} to {b.vtype(64)}")
                at = b.t(f"getelementptr i64, ptr %out, i64 {results * THREADS + c * b.chunk}")
                b.e(f"store {b.vtype(64)} {wide}, ptr {at}, align 8")
            results += 1
    entry = "\n".join(
        [
            f"define void @forms(ptr %in, ptr %out, i32 %w) {function_attributes(target)} {{", "entry:",
            "  %w16 = trunc i32 %w to i16", "  %w64 = zext i32 %w to i64", *b.lines, "  ret void", "}",
        ]
    )  # fmt: skip
    ir = "\n".join([*b.global_lines, *sorted(b.declarations), entry, "!1 = !{}"])
    code, _ = optimise_and_emit(ir, target, verify=True)
    address, handle = link_object(code, "forms")
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(address)
    data = np.array([[v & 0xFFFFFFFFFFFFFFFF for v in row] for row in inputs], dtype=np.uint64)
    out = np.zeros((results, THREADS), dtype=np.uint64)
    for first in range(0, THREADS, LANES):
        function(data.ctypes.data + 8 * first, out.ctypes.data + 8 * first, first % BLOCK // LANES)
    del handle
    failures: list[str] = []
    at = 0
    for instance in instances:
        count = len(instance.form.all_results)
        rows = [tuple(int(v) for v in row) for row in out[at : at + count].T]
        at += count
        expected = reference_results(instance.form, instance.columns)
        wrong = row_mismatches(instance.form, instance.columns, rows, expected, instance.note)
        failures += itertools.islice(wrong, 4)
    return failures
