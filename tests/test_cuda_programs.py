"""CUDA C++ kernels that take several launches, variables set from the host, output or faults."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.csgraph
from cuda_cases import csr, device, filled, has_compiler, int_zeros, ints, kernels, normal

from weft.errors import DeviceAssertError, IllegalAddressError, MisalignedAddressError, TrapError

BOTH = pytest.mark.parametrize("compiler", ["nvrtc", "clang"])


def graph(rng, vertices, most):
    """A symmetric graph without loops as CSR: starts, neighbours in order."""
    start, col, _ = csr(rng, vertices, vertices, most)
    matrix = scipy.sparse.csr_matrix((np.ones(len(col)), col, start), (vertices, vertices))
    matrix = ((matrix + matrix.T) > 0).tolil()
    matrix.setdiag(0)
    matrix = matrix.tocsr()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix


# ---------------------------------------------------------------- several launches
@BOTH
def test_radix_sort(compiler):
    program, gpu = kernels("sort.cu", compiler), device()
    keys = ints(np.random.default_rng(1), 0, 2**32, 3000, dtype=np.uint32)
    blocks = 12
    source, target, counts = gpu.array(keys), gpu.zeros(3000, np.uint32), gpu.zeros(16 * blocks, np.int32)
    for shift in range(0, 32, 4):
        program["radix_count"][blocks, 256](3000, source, shift, counts)
        program["radix_scan"][1, 256](16 * blocks, counts)
        program["radix_scatter"][blocks, 256](3000, source, target, shift, counts)
        source, target = target, source
    np.testing.assert_array_equal(source.numpy(), np.sort(keys))


@BOTH
def test_bitonic_sort_in_global_memory(compiler):
    step, gpu = kernels("sort.cu", compiler)["bitonic_step"], device()
    keys = ints(np.random.default_rng(2), -999, 999, 1024)
    data = gpu.array(keys)
    size = 2
    while size <= 1024:
        stride = size // 2
        while stride:
            step[8, 128](data, size, stride)
            stride //= 2
        size *= 2
    np.testing.assert_array_equal(data.numpy(), np.sort(keys))


@BOTH
def test_merge_sort(compiler):
    merge, gpu = kernels("sort.cu", compiler)["merge_pass"], device()
    keys = ints(np.random.default_rng(3), -999, 999, 777)
    source, target = gpu.array(keys), gpu.zeros(777, np.int32)
    width = 1
    while width < 777:
        merge[13, 32](777, source, target, width)
        source, target = target, source
        width *= 2
    np.testing.assert_array_equal(source.numpy(), np.sort(keys))


@BOTH
@pytest.mark.parametrize("frontier", [False, True], ids=["by level", "by frontier"])
def test_breadth_first_search(compiler, frontier):
    program, gpu = kernels("graph.cu", compiler), device()
    start, edge, matrix = graph(np.random.default_rng(4), 300, 3)
    begin = np.full(300, -1, np.int32)
    begin[0] = 0
    starts, edges, level = gpu.array(start), gpu.array(edge), gpu.array(begin)
    depth = 0
    if frontier:
        queue = gpu.array(np.zeros(300, np.int32))
        size = 1
        while size:
            following, count = gpu.zeros(300, np.int32), gpu.zeros(1, np.int32)
            program["bfs_frontier"][(size + 63) // 64, 64](starts, edges, level, depth, queue, size, following, count)
            queue, size, depth = following, int(count.numpy()[0]), depth + 1
    else:
        changed = True
        while changed:
            flag = gpu.zeros(1, np.int32)
            program["bfs_level"][5, 64](300, starts, edges, level, depth, flag)
            changed, depth = bool(flag.numpy()[0]), depth + 1
    distance = scipy.sparse.csgraph.dijkstra(matrix, unweighted=True, indices=0)
    np.testing.assert_array_equal(level.numpy(), np.where(np.isinf(distance), -1, distance))


@BOTH
def test_connected_components(compiler):
    program, gpu = kernels("graph.cu", compiler), device()
    start, edge, matrix = graph(np.random.default_rng(5), 200, 1)
    source = np.repeat(np.arange(200), np.diff(start)).astype(np.int32)
    parent = gpu.array(np.arange(200, dtype=np.int32))
    program["union_edges"][len(edge) // 64 + 1, 64](len(edge), gpu.array(source), gpu.array(edge), parent)
    program["flatten"][4, 64](200, parent)
    _, label = scipy.sparse.csgraph.connected_components(matrix)
    lowest = np.array([np.flatnonzero(label == label[v])[0] for v in range(200)])
    np.testing.assert_array_equal(parent.numpy(), lowest)


@BOTH
def test_page_rank(compiler):
    step, gpu = kernels("graph.cu", compiler)["page_rank"], device()
    start, edge, matrix = graph(np.random.default_rng(6), 150, 4)
    degree = np.maximum(np.diff(start), 1).astype(np.int32)
    rank, following = gpu.full(150, 1 / 150), gpu.zeros(150)
    true = np.full(150, 1 / 150)
    for _ in range(10):
        step[3, 64](150, gpu.array(start), gpu.array(edge), gpu.array(degree), rank, following)
        rank, following = following, rank
        true = 0.15 / 150 + 0.85 * (matrix @ (true / degree))
    np.testing.assert_allclose(rank.numpy(), true, rtol=1e-5)


@BOTH
def test_triangles(compiler):
    start, edge, matrix = graph(np.random.default_rng(7), 90, 12)
    count = device().zeros(1, np.uint64)
    kernels("graph.cu", compiler)["triangles"][2, 64](90, device().array(start), device().array(edge), count)
    dense = matrix.toarray().astype(int)
    assert count.numpy()[0] == np.trace(dense @ dense @ dense) // 6


@BOTH
def test_warp_compaction(compiler):
    """Which block comes first is not fixed: the kept elements, in any order."""
    x = ints(np.random.default_rng(8), -50, 50, 500)
    out, count = device().array(filled(-1, 500)), device().array(int_zeros(1))
    kernels("compaction.cu", compiler)["compact_warp"][4, 128](500, device().array(x), out, count)
    kept = x[x > 0]
    assert count.numpy()[0] == len(kept)
    np.testing.assert_array_equal(np.sort(out.numpy()[: len(kept)]), np.sort(kept))


def test_coalesced_groups():
    x = ints(np.random.default_rng(9), -50, 50, 500)
    count, order = device().array(int_zeros(1)), device().array(filled(-1, 500))
    kernels("reduce_groups.cu")["coalesced_count"][4, 128](500, device().array(x), 10, count, order)
    where = np.flatnonzero(x > 10)
    assert count.numpy()[0] == len(where)
    np.testing.assert_array_equal(np.sort(order.numpy()[: len(where)]), where)


@BOTH
def test_ticket_lock(compiler):
    gpu = device()
    following, serving, count = (gpu.array(int_zeros(1)) for _ in range(3))
    log = gpu.array(filled(-1, 20))
    kernels("locks.cu", compiler)["ticket_lock"][20, 32](following, serving, log, count)
    np.testing.assert_array_equal(np.sort(log.numpy()), np.arange(20))
    assert count.numpy()[0] == serving.numpy()[0] == 20


@BOTH
def test_hash_table(compiler):
    gpu = device()
    keys = ints(np.random.default_rng(10), 0, 400, 1000, dtype=np.uint32)
    slots, counts = gpu.full(1024, 0xFFFFFFFF, np.uint32), gpu.zeros(1024, np.uint32)
    kernels("locks.cu", compiler)["hash_insert"][8, 128](1000, gpu.array(keys), slots, counts, 1023)
    found = {int(k): int(c) for k, c in zip(slots.numpy(), counts.numpy()) if k != 0xFFFFFFFF}
    values, times = np.unique(keys, return_counts=True)
    assert found == dict(zip(values.tolist(), times.tolist()))


def test_grid_barrier_in_a_loop():
    gpu = device()
    a, b = gpu.array(normal(np.random.default_rng(11), 400)), gpu.zeros(400)
    x = a.numpy().astype(np.float32)
    kernels("grid.cu")["grid_sweeps"][5, 64](400, 9, a, b, cooperative=True)
    for _ in range(9):
        y = x.copy()
        y[1:-1] = np.float32(0.5) * (x[:-2] + x[2:])
        x = y
    np.testing.assert_allclose(b.numpy(), x, rtol=1e-6)


# ---------------------------------------------------------------- variables
@BOTH
def test_constants_from_the_host(compiler):
    program, gpu = kernels("memory.cu", compiler), device()
    table = ints(np.random.default_rng(12), -99, 99, 64)
    program.set_symbol("lookup", table)
    x = ints(np.random.default_rng(13), 0, 500, 200)
    y = gpu.zeros(200)
    program["use_constants"][2, 128](200, gpu.array(x), y)
    np.testing.assert_array_equal(y.numpy(), 2.5 * table[x & 63] + (x >> 3))


@BOTH
def test_filter_from_the_host(compiler):
    program, gpu = kernels("stencil.cu", compiler), device()
    taps = normal(np.random.default_rng(14), 9)
    program.set_symbol("taps", taps)
    x = normal(np.random.default_rng(15), 300)
    y = gpu.zeros(300)
    program["convolve_1d"][3, 128](300, gpu.array(x), y)
    np.testing.assert_allclose(y.numpy(), np.correlate(np.pad(x.astype(float), 4), taps), rtol=1e-4, atol=1e-5)


@BOTH
def test_globals(compiler):
    program, gpu = kernels("memory.cu", compiler), device()
    program.set_symbol("counter", 5)
    x = ints(np.random.default_rng(16), 0, 100, 200)
    y, out = gpu.zeros(200), gpu.zeros(1, np.int32)
    program["use_globals"][2, 128](200, gpu.array(x), y)
    np.testing.assert_array_equal(y.numpy(), (x & 15) ** 2)
    assert program.get_symbol("counter") == 5 + (x & 1).sum()
    program["read_published"][1, 32](out)
    assert out.numpy()[0] == program.get_symbol("counter")


# ---------------------------------------------------------------- C++ names
NAMES = (
    "scale<float>",
    "scale<int>",
    "window_sum<double, 5>",
    "shapes::map<shapes::Square>",
    "shapes::map<shapes::Negate>",
    "order<true>",
    "order<false>",
)


@BOTH
def test_templates(compiler):
    program, gpu = kernels("templates.cu", compiler, NAMES), device()
    x = gpu.array(np.arange(100, dtype=np.float32))
    program["scale<float>"][1, 128](x, 1.5, 100)
    np.testing.assert_array_equal(x.numpy(), np.arange(100) * 1.5)
    k = gpu.array(np.arange(100, dtype=np.int32))
    program["scale<int>"][1, 128](k, -3, 100)
    np.testing.assert_array_equal(k.numpy(), np.arange(100) * -3)
    d, out = np.random.default_rng(17).random(50), gpu.zeros(50, np.float64)
    program["window_sum<double,5>"][1, 64](gpu.array(d), out, 50)
    np.testing.assert_allclose(out.numpy(), sum(np.roll(d, -k) for k in range(5)), rtol=1e-14)
    y = gpu.zeros(100)
    program["shapes::map<shapes::Square>"][1, 128](x, y, 100)
    np.testing.assert_array_equal(y.numpy(), (np.arange(100) * 1.5) ** 2)
    program["map<shapes::Negate>"][1, 128](x, y, 100)
    np.testing.assert_array_equal(y.numpy(), np.arange(100) * -1.5)
    program["plain"][1, 100](k)
    np.testing.assert_array_equal(k.numpy(), np.arange(100) * -2)
    pairs = gpu.array(np.array([3, 1, 1, 2], np.int32))
    program["order<true>"][1, 2](pairs)
    np.testing.assert_array_equal(pairs.numpy(), [1, 3, 1, 2])


# ---------------------------------------------------------------- output and faults
@BOTH
def test_printf(compiler, capfd):
    kernels("output.cu", compiler)["print_hello"][2, 2](3)
    device().synchronize()
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == [
        "thread 0 of 3 says even, 0.000 and a at     0|0   |1099511627776",
        "thread 1 of 3 says odd, 0.500 and b at     1|1   |1099511627776",
        "thread 2 of 3 says even, 1.000 and c at     2|2   |1099511627776",
    ]


@BOTH
def test_printf_without_arguments(compiler, capfd):
    kernels("output.cu", compiler)["print_plain"][1, 3]()
    assert capfd.readouterr().out == "no arguments, 100%\n" * 3


@BOTH
def test_assert(compiler):
    program, gpu = kernels("output.cu", compiler), device()
    program["assert_positive"][1, 64](gpu.array(np.arange(1, 65, dtype=np.int32)))
    with pytest.raises(DeviceAssertError) as caught:
        program["assert_positive"][1, 64](gpu.array(np.arange(64, dtype=np.int32)))
    assert "x[i] > 0" in str(caught.value)
    assert "output.cu:16" in str(caught.value)
    assert tuple(caught.value.thread) == (0, 0, 0)


@BOTH
def test_trap(compiler):
    program = kernels("output.cu", compiler)
    program["trap_on"][2, 32](-1)
    with pytest.raises(TrapError) as caught:
        program["trap_on"][2, 32](37)
    assert tuple(caught.value.block) == (1, 0, 0)


@BOTH
def test_out_of_bounds(compiler):
    x = device().zeros(16, np.int32)
    with pytest.raises(IllegalAddressError) as caught:
        kernels("output.cu", compiler)["out_of_bounds"][1, 1](x, 1 << 40)
    assert caught.value.location.file.endswith("output.cu")
    assert caught.value.location.line == 24
    kernels("output.cu", compiler)["out_of_bounds"][1, 1](x, 3)
    assert x.numpy()[3] == 1


@BOTH
def test_misaligned(compiler):
    with pytest.raises(MisalignedAddressError) as caught:
        kernels("output.cu", compiler)["misaligned"][1, 1](device().zeros(16, np.uint8))
    assert caught.value.location.line == 28


@BOTH
def test_clocks(compiler):
    spent, stamp = device().array(np.full(32, -1)), device().zeros(1, np.uint64)
    before = time.time_ns()
    kernels("output.cu", compiler)["ticks"][1, 32](spent, stamp)
    assert (spent.numpy() >= 0).all()
    assert before <= stamp.numpy()[0] <= time.time_ns()


@BOTH
def test_division_by_zero(compiler):
    """CUDA leaves the result open; nothing may fault, and the other lanes are right."""
    gpu = device()
    a, b = np.arange(-32, 32, dtype=np.int32), np.tile(np.array([0, 3], np.int32), 32)
    out = [gpu.zeros(64, t) for t in (np.int32, np.int32, np.uint32, np.uint32)]
    kernels("integers.cu", compiler)["divide"][1, 64](64, gpu.array(a), gpu.array(b), *out)
    odd = np.arange(1, 64, 2)
    np.testing.assert_array_equal(out[0].numpy()[odd], (np.sign(a[odd]) * (abs(a[odd]) // 3)))
    np.testing.assert_array_equal(out[3].numpy()[odd], a[odd].view(np.uint32) % 3)


def test_every_kernel_of_the_folder_is_tested():
    """Each kernel in tests/cuda is in a table, or named in a test file."""
    import re
    from pathlib import Path

    from cuda_cases import FOLDER
    from test_cuda_kernels import CASES

    tested = {case.kernel for case in CASES}
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    missing = []
    for path in sorted(FOLDER.glob("*.cu")):
        if path.name == "mathematics.cu":
            continue
        for name in re.findall(r"__global__\s+void\s+(?:__\w+__\([^)]*\)\s*)*(\w+)\(", path.read_text()):
            if name not in tested and not re.search(rf"\b{name}\b", here):
                missing.append(f"{path.name}: {name}")
    assert not missing


def test_a_compiler_is_installed():
    assert has_compiler("auto")
