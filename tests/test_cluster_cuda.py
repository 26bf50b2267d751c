"""Clusters from CUDA C++: cooperative groups' this_cluster(), __cluster_dims__, distributed shared memory, against
NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cuda_cases import device, kernels

import weft
from weft.errors import InvalidClusterSizeError, InvalidConfigurationError, KernelFault


@pytest.fixture(scope="module")
def program() -> weft.Program:
    return kernels("clusters.cu", "nvrtc", arch="sm_90")


@pytest.mark.parametrize("cluster, grid, block", [(1, 3, 64), (2, 6, 100), (4, 8, 128), (8, 8, 96)])
def test_histogram(program, cluster: int, grid: int, block: int) -> None:
    bins = 240
    data = np.random.default_rng(cluster).integers(0, bins, 5000).astype(np.int32)
    out = device().zeros(bins, np.int32)
    each = bins // cluster
    program["histogram"][grid, block](
        device().array(data), len(data), each, out, cluster=cluster, shared_bytes=4 * each
    )
    assert np.array_equal(out.numpy(), np.bincount(data, minlength=bins))


@pytest.mark.parametrize("rows, columns", [(1, 1000), (7, 333), (64, 4096)])
def test_row_sums(program, rows: int, columns: int) -> None:
    x = np.random.default_rng(rows).integers(-8, 9, (rows, columns)).astype(np.float32)
    out = device().zeros(rows, np.float32)
    program["row_sums"][4 * rows, 128](device().array(x), columns, out)
    assert np.array_equal(out.numpy(), x.sum(1))


def test_row_sums_needs_whole_clusters(program) -> None:
    with pytest.raises(InvalidConfigurationError, match=r"a grid of \(6, 1, 1\) blocks is not made of whole clusters"):
        program["row_sums"][6, 128](device().zeros(4, np.float32), 1, device().zeros(4, np.float32))
    with pytest.raises(InvalidClusterSizeError, match="__cluster_dims__"):
        program["row_sums"][8, 128](device().zeros(4, np.float32), 1, device().zeros(4, np.float32), cluster=2)


@pytest.mark.parametrize("grid, cluster, block", [((8,), (4,), 64), ((6, 4), (3, 2), 33), ((4, 2), (2, 1), 256)])
def test_ring(program, grid, cluster, block: int) -> None:
    shape = (*grid, 1)[:2]
    blocks = shape[0] * shape[1]
    x = np.random.default_rng(block).integers(0, 1000, (blocks, block)).astype(np.int32)
    out = device().zeros((blocks, block), np.int32)
    program["ring"][grid, block](device().array(x), 5, out, cluster=cluster, shared_bytes=4 * block)
    extent = (*cluster, 1)[:2]
    size = extent[0] * extent[1]
    expected = np.zeros_like(x)
    for by, bx in itertools.product(range(0, shape[1], extent[1]), range(0, shape[0], extent[0])):
        members = [(by + r // extent[0]) * shape[0] + bx + r % extent[0] for r in range(size)]
        values = [x[m] for m in members]
        for _ in range(5):
            values = [values[(r - 1) % size] + (r - 1) % size for r in range(size)]
        for m, value in zip(members, values):
            expected[m] = value
    assert np.array_equal(out.numpy(), expected)


def test_shape(program) -> None:
    out = device().zeros((4 * 2 * 4, 10), np.int32)
    program["shape"][(4, 2, 4), 32](out, cluster=(2, 1, 4))
    found = out.numpy()
    for linear, (z, _, x) in enumerate(itertools.product(range(4), range(2), range(4))):
        assert found[linear].tolist() == [x % 2 + 2 * (z % 4), 8, x % 2, 0, z % 4, 2, 1, 4, 64, 0]


def test_a_block_that_leaves_early(program) -> None:
    with pytest.raises(
        KernelFault, match="block 1 of the cluster, which has exited; let no block exit before"
    ) as caught:
        program["early"][4, 64](device().zeros(4, np.int32), cluster=2)
    assert "clusters.cu" in str(caught.value.location)


def test_shared_tiles(program) -> None:
    n = 64
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (n, n)).astype(np.float32) for _ in range(2))
    c = device().zeros((n, n), np.float32)
    program["shared_tiles"][(n // 16, n // 16), (16, 16)](device().array(a), device().array(b), n, c)
    assert np.array_equal(c.numpy(), a @ b)


def test_seeds_do_not_change_results() -> None:
    program = kernels("clusters.cu", "nvrtc", arch="sm_90")
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-4, 5, (64, 64)).astype(np.float32) for _ in range(2))
    for seed in (1, 2, 3):
        c = device().zeros((64, 64), np.float32)
        program["shared_tiles"][(4, 4), (16, 16)](device().array(a), device().array(b), 64, c, seed=seed)
        assert np.array_equal(c.numpy(), a @ b)
