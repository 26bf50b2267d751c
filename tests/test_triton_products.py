"""Matrix products, attention and what is built from them (tests/triton_kernels/*.py) on an A100 and an H100, against
PyTorch in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from test_triton_kernels import EPSILON, arch, name_of, same_numbers_each_time  # noqa: E402, F401
from triton_kernels import attention, grouped, matmul, persistent, quantised, scaled  # noqa: E402

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
TF32 = 2.0**-10  # tensor cores cut f32 off after ten bits


def check_product(got, a, b, k_error: float = 2.0**-23, relative: float = 0.0) -> None:
    """`got` against a @ b: within k_error of the sum of the products' sizes (times the root of k, for sums in f32), and
    half a unit of got's type."""
    left, right = a.double(), b.double()
    want, size = left @ right, left.abs() @ right.abs()
    bound = size * (k_error * math.sqrt(a.shape[-1]) + relative) + want.abs() * EPSILON.get(got.dtype, 0) / 2
    # f16 results below its normal range have an absolute spacing.
    bound += 2.0**-25 if got.dtype == F16 else 1e-30
    error = (got.double() - want).abs()
    assert (error <= bound).all(), f"{(error / bound).max():.3g} times the bound"


def layout(x, order: str):
    """The same numbers, lying row by row, column by column, or with gaps."""
    if order == "columns":
        return x.T.contiguous().T
    if order == "gaps":
        wide = torch.full((x.shape[0] * 2, x.shape[1] * 3), 7, dtype=x.dtype)[::2, 1::3]
        wide.copy_(x)
        return wide
    return x


# ---------------------------------------------------------------- products
@pytest.mark.parametrize("orders", [("rows", "rows"), ("columns", "rows"), ("rows", "columns"), ("columns", "columns"),
                                    ("gaps", "gaps")], ids="-".join)  # fmt: skip
def test_matmul(orders) -> None:
    a, b = torch.randn(150, 77).to(F16), torch.randn(77, 130).to(F16)
    check_product(matmul.matmul(layout(a, orders[0]), layout(b, orders[1]), F16, leaky=False), a, b)


# inputs, sum, result, precision, and the relative error that the inputs' cut makes
TYPES = {
    "bf16": (BF16, F32, BF16, None, 0), "bf16-f32": (BF16, F32, F32, None, 0), "f16-f16": (F16, F16, F16, None, None),
    "tf32": (F32, F32, F32, "tf32", 2 * TF32), "tf32x3": (F32, F32, F32, "tf32x3", 2 * TF32**2),
    "ieee": (F32, F32, F32, "ieee", 0), "f64": (F64, F64, F64, "ieee", 0),
}  # fmt: skip


@pytest.mark.parametrize("types", TYPES)
def test_matmul_of_types(types: str) -> None:
    source, sum_type, result, precision, relative = TYPES[types]
    a, b = torch.randn(70, 90).to(source), torch.randn(90, 50).to(source)
    got = matmul.matmul(a, b, result, sum_type, precision, tile=(64, 32, 32))
    if relative is None:  # sums in f16 are rounded after every instruction
        torch.testing.assert_close(got.double(), a.double() @ b.double(), rtol=0.02, atol=0.05)
    elif types == "f64":
        torch.testing.assert_close(got, a @ b, rtol=1e-13, atol=1e-13)
    else:
        check_product(got, a, b, relative=relative)


def test_int8_matmul() -> None:
    a = torch.randint(-128, 128, (67, 100), dtype=torch.int8)
    b = torch.randint(-128, 128, (100, 75), dtype=torch.int8)
    assert torch.equal(matmul.matmul(a, b, sum_dtype=torch.int32, tile=(64, 64, 64)).long(), a.long() @ b.long())


@pytest.mark.parametrize("kind", [torch.float8_e5m2, torch.float8_e4m3fn], ids=name_of)
def test_fp8_matmul(kind, arch: str) -> None:  # noqa: F811
    if kind == torch.float8_e4m3fn and arch == "sm_80":
        pytest.skip("Triton has e4m3 from sm_89 on")
    a, b = torch.randn(64, 128).to(kind), torch.randn(128, 96).to(kind)
    got = matmul.matmul(a, layout(b.view(torch.uint8), "columns").view(kind), F32, tile=(64, 32, 64))
    # On sm_90 e4m3 and e5m2 are multiplied as they are; their sums keep fewer bits than f32 on hardware, not here.
    check_product(got, a.float(), b.float())


@pytest.mark.parametrize(("warps", "stages", "tile"), [
    (1, 1, (32, 32, 32)), (2, 2, (64, 16, 16)), (4, 3, (64, 128, 64)), (8, 4, (128, 128, 32)), (4, 4, (16, 64, 128)),
], ids=str)  # fmt: skip
def test_matmul_with_warps_and_stages(warps: int, stages: int, tile) -> None:
    a, b = torch.randn(190, 200).to(F16), torch.randn(200, 260).to(F16)
    got = matmul.matmul(a, b, F16, tile=tile, leaky=True, num_warps=warps, num_stages=stages)
    want = torch.nn.functional.leaky_relu(a.double() @ b.double(), 0.01)
    torch.testing.assert_close(got.double(), want, rtol=EPSILON[F16], atol=1e-3)


def test_matmul_over_a_cluster(arch: str) -> None:  # noqa: F811
    if arch == "sm_80":
        pytest.skip("clusters from sm_90 on")
    a, b = torch.randn(256, 96).to(F16), torch.randn(96, 256).to(F16)
    check_product(matmul.matmul(a, b, F32, tile=(128, 128, 32), num_ctas=2), a, b)


def test_infinities_and_nans_in_products() -> None:
    a, b = torch.ones(32, 32).to(F16), torch.ones(32, 32).to(F16)
    a[3, 5], a[7, 1], b[1, 9] = math.inf, math.nan, 0
    a[9, 0], b[0, 4] = math.inf, 0
    got = matmul.matmul(a, b, F32, tile=(32, 32, 32))
    want = a.float() @ b.float()
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(1e6), want.nan_to_num(1e6))


@pytest.mark.parametrize("dtype", [F16, F32], ids=name_of)
def test_batched_matmul(dtype) -> None:
    a, b = torch.randn(4, 32, 32).to(dtype), torch.randn(4, 32, 16).to(dtype)
    check_product(matmul.batched(a, b), a, b, relative=2 * TF32 if dtype == F32 else 0)


@pytest.mark.parametrize("dtype", [F32, F16], ids=name_of)
def test_split_matmul(dtype) -> None:
    a, b = torch.randn(40, 300).to(F16), torch.randn(300, 70).to(F16)
    got = matmul.split(a, b, 3, dtype)
    check_product(got, a, b, relative=0 if dtype == F32 else 2.0**-10)


def test_chain_of_products() -> None:
    a, b, c = (torch.randn(64, 64).to(BF16) for _ in range(3))
    want = (a.double() @ b.double()) @ c.double()
    torch.testing.assert_close(matmul.chain(a, b, c).double(), want, rtol=0.02, atol=0.6)


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [(1, 1, 1), (17, 33, 129), (128, 128, 128), (300, 65, 31)], ids=str)
@pytest.mark.parametrize("warps", [1, 2, 4, 8])
@pytest.mark.parametrize("types", TYPES)
def test_matmul_of_all_kinds(types: str, warps: int, sizes) -> None:
    source, sum_type, result, precision, relative = TYPES[types]
    m, n, k = sizes
    for tile, stages, orders in itertools.product(
        [(16, 16, 16), (64, 32, 64)], (1, 3), itertools.product(("rows", "columns"), repeat=2)
    ):
        a, b = torch.randn(m, k).to(source), torch.randn(k, n).to(source)
        got = matmul.matmul(layout(a, orders[0]), layout(b, orders[1]), result, sum_type, precision, tile=tile,
                            num_warps=warps, num_stages=stages)  # fmt: skip
        if relative is None:
            torch.testing.assert_close(got.double(), a.double() @ b.double(), rtol=0.02, atol=0.1)
        elif types == "f64":
            torch.testing.assert_close(got, a @ b, rtol=1e-12, atol=1e-12)
        else:
            check_product(got, a, b, relative=relative)


# ---------------------------------------------------------------- grouped and persistent
@pytest.mark.parametrize("dtype", [F16, BF16], ids=name_of)
def test_grouped_gemm(dtype) -> None:
    sizes = [(50, 70, 40), (1, 64, 64), (100, 33, 17), (64, 128, 96)]
    lefts = [torch.randn(m, k).to(dtype) for m, _, k in sizes]
    rights = [torch.randn(k, n).to(dtype) for _, n, k in sizes]
    for a, b, c in zip(lefts, rights, grouped.grouped(lefts, rights)):
        check_product(c, a, b)


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "turned"])
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=name_of)
def test_host_descriptors(dtype, turned: bool) -> None:
    a, b = torch.randn(100, 72).to(dtype), torch.randn(72, 136).to(dtype)
    got = persistent.host(a, b, turned=turned)
    check_product(got, a, b, relative=2 * TF32 if dtype == F32 else 0)


@pytest.mark.parametrize("options", [
    {"tile": (128, 128, 64), "num_warps": 8}, {"tile": (64, 32, 16), "num_warps": 2}, {"flatten": True},
    {"specialize": True}, {"specialize": True, "tile": (128, 128, 64), "num_warps": 8},
    {"num_stages": 1}, {"num_stages": 4},
], ids=str)  # fmt: skip
def test_host_descriptors_with(options) -> None:
    a, b = torch.randn(200, 160).to(F16), torch.randn(160, 192).to(F16)
    check_product(persistent.host(a, b, **options), a, b)


@pytest.mark.parametrize("dtype", [F16, torch.float8_e5m2], ids=name_of)
def test_device_descriptors(dtype) -> None:
    if dtype == F16:
        a, b = torch.randn(100, 72).to(dtype), torch.randn(72, 136).to(dtype)
        check_product(persistent.device(a, b), a, b)
    else:
        a, b = torch.randn(64, 64).to(dtype), torch.randn(64, 64).to(dtype)
        got = persistent.device(a, b)
        want = (a.float() @ b.float()).to(dtype)
        assert (got.float() - want.float()).abs().max() <= 0.25 * want.float().abs().max()
        assert (got.view(torch.uint8) != want.view(torch.uint8)).sum() < 20  # ties that f32 sums decide differently


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, F16, F32, torch.int32], ids=name_of)
def test_windows_beyond_the_edges(dtype) -> None:
    x = torch.randint(0, 100, (40, 48)).to(dtype)
    padded = torch.zeros(140, 148, dtype=dtype)
    padded[50:90, 50:98] = x
    for row, column in ((0, 0), (24, 32), (-5, -9), (39, 47), (40, 0), (-16, 3), (100, 100)):
        got = persistent.window(x, row, column, (16, 32))
        assert torch.equal(got, padded[50 + row :, 50 + column :][:16, :32]) or row >= 40, (row, column)
        if row >= 40:
            assert not got.any()


def test_padding_with_nan() -> None:
    x = torch.ones(20, 16)
    got = persistent.window(x, 12, 8, (16, 16), "nan")
    assert torch.equal(got[:8, :8], torch.ones(8, 8))
    assert got.isnan().sum() == 16 * 16 - 64


def test_additions_through_a_descriptor() -> None:
    x, out = torch.randn(12, 10, 16), torch.randn(12, 10, 16)
    want = out + 2 * x
    assert torch.equal(persistent.volume(x, out, 8, 16), want)


# ---------------------------------------------------------------- attention
SHAPES = {"square": (2, 128, 128, 64), "odd": (1, 83, 83, 32), "cached": (2, 40, 150, 16), "wide": (1, 64, 64, 128)}


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("shape", "dtype"), [("square", F16), ("odd", BF16), ("cached", F16), ("wide", BF16)],
                         ids=lambda v: v if isinstance(v, str) else name_of(v))  # fmt: skip
def test_attention(shape: str, dtype, causal: bool) -> None:
    check_attention(shape, dtype, causal)


def test_attention_in_f32() -> None:
    check_attention("odd", F32, True, tile=(32, 32))


@pytest.mark.parametrize("warps", [2, 8])
def test_attention_with_warps(warps: int) -> None:
    check_attention("square", F16, True, (64, 64), num_warps=warps, num_stages=warps // 2)


@pytest.mark.thorough
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=name_of)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_of_all_kinds(shape: str, dtype, causal: bool) -> None:
    for tile in ((16, 16), (64, 32), (128, 64)):
        if dtype != F32 or tile[0] < 128:
            for warps, stages in ((4, 1), (4, 3), (8, 2)):
                check_attention(shape, dtype, causal, tile, num_warps=warps, num_stages=stages)


def check_attention(shape: str, dtype, causal: bool, tile=(64, 32), **options) -> None:
    heads, queries, keys, d = SHAPES[shape]
    q, dout = (torch.randn(heads, queries, d).to(dtype) for _ in range(2))
    k, v = (torch.randn(heads, keys, d).to(dtype) for _ in range(2))
    out, logsumexp = attention.forward(q, k, v, causal, tile, **options)
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    scores = leaves[0] @ leaves[1].transpose(1, 2) * d**-0.5
    if causal:
        hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
        scores = scores.masked_fill(hidden, -math.inf)
    want = torch.softmax(scores, dim=2) @ leaves[2]
    # Probabilities are rounded to the type before they are multiplied; f32 is cut to tf32.
    unit = TF32 if dtype == F32 else EPSILON[dtype]
    torch.testing.assert_close(out.double(), want.detach(), rtol=2 * unit, atol=(8 if dtype == F32 else 4) * unit)
    expected = scores.logsumexp(dim=2).detach() / math.log(2)
    torch.testing.assert_close(logsumexp.double(), expected, rtol=1e-3 if dtype == F32 else 1e-5, atol=1e-3)
    want.backward(dout.double())
    gradients = attention.backward(q, k, v, out, dout, logsumexp, causal, **options)
    for name, mine, leaf in zip("qkv", gradients, leaves):
        error = (mine.double() - leaf.grad).norm() / leaf.grad.norm()
        assert error < 2 * unit, (name, error)
        worst = (mine.double() - leaf.grad).abs().max() / leaf.grad.abs().max()
        assert worst < 8 * unit, (name, worst)


# ---------------------------------------------------------------- quantised
def mx_numbers(format_: str, rows: int, columns: int):
    """(bytes as the kernel takes them, packed along columns; the numbers) of a matrix in a microscaling format."""
    if format_ == "e2m1":
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
        magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        numbers = magnitudes[(codes & 7).long()] * torch.where(codes >= 8, -1.0, 1.0)
        return codes[:, ::2] | codes[:, 1::2] << 4, numbers
    kind = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "bf16": BF16, "fp16": F16}[format_]
    x = torch.randn(rows, columns).to(kind)
    return x, x.float()


def mx_scales(rows: int, groups: int):
    """(exponent bytes, the scales) for groups of 32 numbers."""
    codes = torch.randint(120, 134, (rows, groups), dtype=torch.uint8)
    return codes, torch.exp2(codes.float() - 127).repeat_interleave(32, dim=1)


@pytest.mark.parametrize(("left", "right"), [
    ("e4m3", "e4m3"), ("e5m2", "e4m3"), ("e2m1", "e2m1"), ("e2m1", "e5m2"), ("bf16", "e2m1"), ("bf16", "e4m3"),
    ("fp16", "e2m1"),
], ids=str)  # fmt: skip
def test_scaled_matmul(left: str, right: str, arch: str) -> None:  # noqa: F811
    if "e4m3" in (left, right) and arch == "sm_80":
        pytest.skip("Triton has e4m3 from sm_89 on")
    m, n, k = 64, 64, 128
    a, a_numbers = mx_numbers(left, m, k)
    b, b_numbers = mx_numbers(right, n, k)
    a_scale, a_factors = mx_scales(m, k // 32)
    b_scale, b_factors = mx_scales(n, k // 32)
    if left in ("bf16", "fp16"):
        a_scale, a_factors = None, torch.ones(m, k)
    got = scaled.scaled(a, a_scale, left, b.T.contiguous(), b_scale, right)
    check_product(got, a_numbers * a_factors, (b_numbers * b_factors).T)


def test_int8_with_scales() -> None:
    a = torch.randint(-127, 128, (45, 130), dtype=torch.int8)
    b = torch.randint(-127, 128, (130, 70), dtype=torch.int8)
    a_scale, b_scale = torch.rand(45), torch.rand(70)
    want = (a.long() @ b.long()) * a_scale.double()[:, None] * b_scale.double()
    torch.testing.assert_close(quantised.int8(a, b, a_scale, b_scale).double(), want, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=name_of)
def test_int8_weights(dtype) -> None:
    a = torch.randn(33, 150).to(dtype)
    b = torch.randint(-127, 128, (150, 70), dtype=torch.int8)
    scale = torch.rand(70) / 64
    got = quantised.weight8(a, b, scale)
    want = (a.double() @ b.double()) * scale
    torch.testing.assert_close(got.double(), want, rtol=EPSILON[dtype], atol=1e-4)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=name_of)
def test_int4_weights(dtype) -> None:
    k, n, group = 256, 128, 64
    a = torch.randn(20, k).to(dtype)
    levels = np.random.default_rng(1).integers(0, 16, (k, n))
    words = np.zeros((k // 8, n), np.uint32)
    for i in range(8):
        words |= levels[i::8].astype(np.uint32) << np.uint32(4 * i)
    zero = torch.randint(0, 16, (k // group, n), dtype=torch.int32)
    scale = torch.rand(k // group, n)
    weight = (torch.from_numpy(levels) - zero.repeat_interleave(group, 0)) * scale.repeat_interleave(group, 0)
    got = quantised.weight4(a, torch.from_numpy(words.view(np.int32)), scale, zero, group)
    check_product(got, a, weight.to(dtype))
