"""Where CUDA's arithmetic differs from the CPU's: TF32, float16 sums, autocast's lists, fp8, order of additions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch_opinfo import allow_switches  # noqa: E402

import weft  # noqa: E402

LOW = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> weft.Device:
    return weft.install("h100", children=False)


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """PyTorch's first settings, before and after each test."""

    def reset() -> None:
        allow_switches()  # another test may have imported the database
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_fp16_accumulation = False
        torch.use_deterministic_algorithms(False)

    reset()
    yield
    reset()


def round_to_tf32(values: torch.Tensor) -> torch.Tensor:
    """The nearest number with 10 bits of mantissa, ties away from zero, by NumPy's frexp."""
    mantissa, exponent = np.frexp(values.cpu().numpy().astype(np.float64))
    scaled = mantissa * 2.0**11
    return torch.from_numpy(np.ldexp(np.copysign(np.floor(np.abs(scaled) + 0.5), scaled), exponent - 11))


# ---------------------------------------------------------------- TF32
@contextmanager
def chip(name: str) -> Iterator[None]:
    weft.install(name, children=False)
    yield
    weft.install("h100", children=False)


def turn_on(how: str) -> None:
    if how == "allow_tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif how == "fp32_precision":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision(how)


@pytest.mark.parametrize("how", ["allow_tf32", "fp32_precision", "high", "medium"])
def test_tf32_products(how: str) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(17, 33, device="cuda"), torch.randn(33, 9, device="cuda")
    plain = a @ b
    exact = a.cpu().double() @ b.cpu().double()
    torch.testing.assert_close(plain.cpu().double(), exact, rtol=1e-5, atol=1e-5)
    turn_on(how)
    expected = round_to_tf32(a) @ round_to_tf32(b)
    bias, batch = torch.randn(9, device="cuda"), a.expand(3, 17, 33)
    for found, wanted in (
        (a @ b, expected), (torch.addmm(bias, a, b), expected + bias.cpu()), (torch.bmm(batch, b.expand(3, 33, 9))[1],
        expected), (F.linear(a, b.t(), bias), expected + bias.cpu()), (torch.einsum("ik,kj->ij", a, b), expected),
    ):  # fmt: skip
        torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-5, atol=1e-5)
    assert (a @ b - plain).abs().max() > 1e-4
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(a @ b, plain)


def test_tf32_error_is_the_one_that_pytorch_measured() -> None:
    """PyTorch's note on CUDA semantics: products of 10240 normal numbers have a mean size of 80.7277 and, over 1e8
    results, a largest error of 0.1747: 5.87 standard deviations of 0.0297. Cutting bits off would double it."""
    torch.manual_seed(0)
    a, b = torch.randn(128, 10240, device="cuda"), torch.randn(10240, 128, device="cuda")
    torch.backends.cuda.matmul.allow_tf32 = True
    exact = a.cpu().double() @ b.cpu().double()
    error = (a @ b).cpu().double() - exact
    assert exact.abs().mean() == pytest.approx(80.7277, rel=0.02)
    assert error.std() == pytest.approx(0.1747 / 5.87, rel=0.05)


def test_tf32_keeps_what_is_not_finite() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    odd = torch.tensor([0x7FFFFFFF, 0xFFFFFFFF - 2**32, 0x7F800000, 0x3F801000], dtype=torch.int64).int()
    values = odd.view(torch.float32).cuda().diag()
    found = (values @ torch.eye(4, device="cuda")).diag().cpu()
    assert found[:2].isnan().all() and found[2] == float("inf")
    assert found[3] == 1 + 2**-10  # the tie 1 + 2**-11 rounds away from zero


def test_tf32_reaches_gradients_and_double_precision_stays() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    a, b = torch.randn(8, 16, device="cuda"), torch.randn(16, 4, device="cuda")
    a.requires_grad_()
    weights = torch.randn(8, 4, device="cuda")
    (a @ b).backward(weights)
    expected = round_to_tf32(weights) @ round_to_tf32(b).t()
    torch.testing.assert_close(a.grad.cpu().double(), expected, rtol=1e-5, atol=1e-5)
    wide = torch.randn(4, 4, device="cuda", dtype=torch.float64)
    assert torch.equal((wide @ wide).cpu(), wide.cpu() @ wide.cpu())
    c = torch.randn(4, 4, device="cuda", dtype=torch.complex64)
    parts = torch.complex(round_to_tf32(c.real), round_to_tf32(c.imag))
    torch.testing.assert_close((c @ c).cpu().to(torch.complex128), parts @ parts, rtol=1e-5, atol=1e-5)


def test_convolutions_use_tf32_unless_told_otherwise() -> None:
    torch.manual_seed(0)
    data, weight, bias = torch.randn(2, 8, 9, 9), torch.randn(6, 8, 3, 3), torch.randn(6)
    rounded = F.conv2d(round_to_tf32(data), round_to_tf32(weight), bias.double())
    exact = F.conv2d(data.double(), weight.double(), bias.double())
    given = [tensor.cuda().requires_grad_() for tensor in (data, weight, bias)]
    found = F.conv2d(*given)
    torch.testing.assert_close(found.cpu().double(), rounded, rtol=1e-5, atol=1e-5)
    gradient = torch.randn(found.shape)
    found.backward(gradient.cuda())
    wide = round_to_tf32(data).requires_grad_(), round_to_tf32(weight).requires_grad_()
    F.conv2d(*wide).backward(round_to_tf32(gradient))
    for tensor, wanted in zip(given[:2], wide):
        torch.testing.assert_close(tensor.grad.cpu().double(), wanted.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given[2].grad.cpu(), gradient.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        torch.testing.assert_close(F.conv2d(*given).cpu().double(), exact, rtol=1e-5, atol=1e-5)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.testing.assert_close(F.conv2d(*given).cpu().double(), exact, rtol=1e-5, atol=1e-5)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    each = torch.randn(8, 1, 3, 3)  # PyTorch's own kernel for one channel per group multiplies in float32
    torch.testing.assert_close(
        F.conv2d(given[0], each.cuda(), groups=8).cpu(), F.conv2d(data, each, groups=8), rtol=1e-5, atol=1e-5
    )


def test_chips_before_ampere_have_no_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    a, weight = torch.randn(6, 6), torch.randn(6, 6, 1)
    with chip("t4"):
        assert torch.cuda.get_device_capability() == (7, 5)
        torch.testing.assert_close((a.cuda() @ a.cuda()).cpu(), a @ a)
        torch.testing.assert_close(F.conv1d(a.cuda(), weight.cuda()).cpu(), F.conv1d(a, weight))
    assert not torch.allclose((a.cuda() @ a.cuda()).cpu(), a @ a, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- sums of half numbers
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_half_products_are_summed_in_float32(dtype: torch.dtype) -> None:
    """5000 ones are more than either type can count in steps of one."""
    ones = torch.ones(1, 5000, device="cuda", dtype=dtype)
    rounded = torch.tensor(5000.0).to(dtype).item()
    assert (ones @ ones.t()).item() == rounded
    assert torch.dot(ones[0], ones[0]).item() == rounded and ones.sum().item() == rounded
    assert torch.mv(ones, ones[0]).item() == rounded
    assert torch.baddbmm(ones[:, :1].unsqueeze(0), ones.unsqueeze(0), ones.t().unsqueeze(0)).item() == torch.tensor(
        5001.0
    ).to(dtype)
    signal = ones.view(1, 50, 100)
    assert F.conv1d(signal, signal.view(1, 50, 100)).item() == rounded
    assert ones.cumsum(1)[0, -1].item() == rounded


def test_float16_sums_on_request() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 64, device="cuda").half(), torch.randn(64, 5, device="cuda").half()
    plain = a @ b
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    total = np.zeros((4, 5), np.float16)
    for start in range(0, 64, 16):
        step = a.cpu().numpy().astype(np.float32)[:, start : start + 16] @ b.cpu().numpy().astype(np.float32)[
            start : start + 16
        ]  # fmt: skip
        total = (total.astype(np.float32) + step).astype(np.float16)
    assert np.array_equal((a @ b).cpu().numpy(), total) and not torch.equal(a @ b, plain)
    large = torch.full((1, 1024), 200.0, device="cuda").half()
    signs = torch.ones(1024, 1, device="cuda").half()
    signs[512:] = -1
    assert (large @ signs).isinf().item()  # 102400 on the way
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    assert (large @ signs).item() == 0
    assert (a.bfloat16() @ b.bfloat16()).dtype is torch.bfloat16


def test_switches_for_reduced_precision_are_kept() -> None:
    """Split sums are added in float32 whatever they say: which products a library splits is not known."""
    matmul = torch.backends.cuda.matmul
    ones = torch.ones(1, 5000, device="cuda", dtype=torch.float16)
    for name in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        assert getattr(matmul, name)
        setattr(matmul, name, False)
        assert not getattr(matmul, name) and (ones @ ones.t()).item() == 5000
        setattr(matmul, name, True)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_gradients_of_half_parameters_are_summed_in_float32(dtype: torch.dtype) -> None:
    count = 4099
    rounded = torch.tensor(float(count)).to(dtype).item()
    embedding = torch.nn.Embedding(3, 2, device="cuda", dtype=dtype)
    embedding(torch.ones(count, dtype=torch.int64, device="cuda")).sum().backward()
    assert embedding.weight.grad.tolist() == [[0, 0], [rounded, rounded], [0, 0]]
    norm = torch.nn.LayerNorm(4, device="cuda", dtype=dtype)
    norm(torch.randn(count, 4, device="cuda", dtype=dtype)).sum().backward()
    assert norm.bias.grad.tolist() == [rounded] * 4
    table = torch.zeros(2, device="cuda", dtype=dtype)
    table.index_put_((torch.zeros(count, dtype=torch.int64, device="cuda"),), table.new_ones(()), accumulate=True)
    assert table.tolist() == [rounded, 0]
    rows = torch.zeros(2, device="cuda", dtype=dtype, requires_grad=True)
    rows[torch.ones(count, dtype=torch.int64, device="cuda")].sum().backward()
    assert rows.grad.tolist() == [0, rounded]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_layer_norm_of_half_numbers_keeps_float32_statistics(dtype: torch.dtype) -> None:
    data = torch.randn(5, 64, device="cuda", dtype=dtype) + 3
    output, mean, rstd = torch.native_layer_norm(data, (64,), None, None, 1e-5)
    wide = data.float()
    assert mean.dtype is rstd.dtype is torch.float32 and output.dtype is dtype
    torch.testing.assert_close(mean.view(5), wide.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rstd.view(5), (wide.var(1, unbiased=False) + 1e-5).rsqrt(), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- autocast
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast_lists_are_cudas(dtype: torch.dtype) -> None:
    x = torch.rand(4, 4, device="cuda") + 0.5
    half = x.to(dtype)
    with torch.autocast("cuda", dtype=dtype):
        lower = (
            x @ x, torch.addmm(x, x, x), F.linear(x, x), F.conv1d(x, x.unsqueeze(-1)), torch.baddbmm(x[None], x[None],
            x[None]), torch.einsum("ij,jk->ik", x, x), torch.nn.GRUCell(4, 4, device="cuda")(x, x), F.prelu(x, x[0]),
        )  # fmt: skip
        assert {result.dtype for result in lower} == {dtype}
        # The CPU's lists leave most of these in half precision.
        higher = (
            half.exp(), half.log(), half.pow(2), half.softmax(-1), F.layer_norm(half, (4,)), half.sum(), half.prod(),
            half.cumsum(0), half.norm(), F.mse_loss(half, half), F.cross_entropy(half, half), half.rsqrt(),
            F.cosine_similarity(half, half), torch.cdist(half, half), F.softplus(half), F.gelu(half).float(),
            F.group_norm(half, 2), half.acos(), half.sinh(), half.tan(), F.nll_loss(half, torch.arange(4).cuda()),
        )  # fmt: skip
        assert {result.dtype for result in higher} == {torch.float32}
        # Runs in the widest type of its arguments, not in the autocast type.
        assert torch.addcmul(x, half, half).dtype is torch.float32
        assert torch.cat((x, half)).dtype is torch.float32
        assert (x + x).dtype is torch.float32 and half.relu().dtype is dtype
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            F.binary_cross_entropy(half, half)
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype is torch.float32


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_softmax_of_half_numbers_into_float32(name: str, dtype: torch.dtype) -> None:
    """CUDA's kernel converts on the way, which the CPU's refuses."""
    data = torch.randn(3, 5, dtype=dtype)
    given = data.cuda().requires_grad_()
    found = getattr(torch, name)(given, -1, dtype=torch.float32)
    wide = data.float().requires_grad_()
    expected = getattr(torch, name)(wide, -1)
    weights = torch.randn(3, 5)
    found.backward(weights.cuda())
    expected.backward(weights)
    torch.testing.assert_close(found.cpu(), expected)
    assert given.grad.dtype is dtype
    torch.testing.assert_close(given.grad.cpu(), wide.grad.to(dtype), rtol=1e-2, atol=1e-3)


# ---------------------------------------------------------------- fp8
def test_conversions_to_fp8_saturate_as_pytorchs_own() -> None:
    """c10's conversion runs on both devices: e4m3 saturates at 448, e5m2 overflows to infinity; ties to even."""
    values = torch.tensor([448.0, 464.0, 479.0, 480.0, 1e5, -1e5, 17.0, 19.0, 2**-10, float("inf")], device="cuda")
    found = values.to(torch.float8_e4m3fn).float().tolist()
    assert found == [448, 448, 448, 448, 448, -448, 16, 20, 0, 448]
    assert torch.tensor([float("nan")], device="cuda").to(torch.float8_e4m3fn).float().isnan().all()
    values = torch.tensor([57344.0, 61439.0, 61440.0, 1e6, 9.0], device="cuda")
    assert values.to(torch.float8_e5m2).float().tolist() == [57344, 57344, float("inf"), float("inf"), 8]


def test_scaled_products_saturate_their_fp8_results() -> None:
    one = torch.full((16, 16), 32.0, device="cuda").to(torch.float8_e4m3fn)
    scale = torch.ones((), device="cuda")
    found = torch._scaled_mm(one, one.t(), scale, scale, out_dtype=torch.float8_e4m3fn)
    assert (found.float() == 448).all()
    halved = torch._scaled_mm(
        one, one.t(), scale, scale, scale_result=torch.tensor(2**-6, device="cuda"), out_dtype=torch.float8_e4m3fn
    )
    assert (halved.float() == 256).all()  # 16 * 32 * 32 / 64


# ---------------------------------------------------------------- the order of additions
def alerting() -> dict:
    x = torch.rand(1, 2, 8, 8, device="cuda", requires_grad=True)
    cube = torch.rand(1, 2, 4, 4, 4, device="cuda", requires_grad=True)
    flat = torch.rand(8, device="cuda")
    grid = torch.zeros(1, 3, 3, 2, device="cuda")
    return {
        "cumsum_cuda_kernel": lambda: flat.cumsum(0),
        "_bincount_cuda": lambda: torch.bincount(flat.long(), flat),
        "median CUDA with indices output": lambda: flat.median(0),
        "adaptive_avg_pool2d_backward_cuda": lambda: F.adaptive_avg_pool2d(x, 3).sum().backward(),
        "avg_pool3d_backward_cuda": lambda: F.avg_pool3d(cube, 2).sum().backward(),
        "grid_sampler_2d_backward_cuda": lambda: F.grid_sample(x, grid).sum().backward(),
        "reflection_pad2d_backward_cuda": lambda: F.pad(x, (1, 1, 1, 1), "reflect").sum().backward(),
        "nll_loss2d_forward_out_cuda_template": lambda: F.cross_entropy(x, torch.zeros(1, 8, 8).long().cuda()),
        "ctc_loss_backward_gpu": lambda: F.ctc_loss(
            torch.rand(5, 1, 3, device="cuda", requires_grad=True).log_softmax(-1), torch.ones(1, 2).long().cuda(),
            (5,), (2,),
        ).backward(),
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    "_bincount_cuda", "adaptive_avg_pool2d_backward_cuda", "avg_pool3d_backward_cuda", "ctc_loss_backward_gpu",
    "cumsum_cuda_kernel", "grid_sampler_2d_backward_cuda", "median CUDA with indices output",
    "nll_loss2d_forward_out_cuda_template", "reflection_pad2d_backward_cuda",
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Default grid_sample")
def test_deterministic_algorithms_refuse_what_a_gpu_adds_in_any_order(name: str) -> None:
    work = alerting()[name]
    work()
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError, match=f"^{name} does not have a deterministic implementation, but you set"):
        alerting()[name]()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match=f"^{name} does not have a deterministic implementation"):
        alerting()[name]()
    torch.use_deterministic_algorithms(False)
    alerting()[name]()


def test_deterministic_operators_go_on() -> None:
    torch.use_deterministic_algorithms(True)
    ones = torch.ones(3, 3, device="cuda")
    ones.scatter_add_(0, torch.zeros(3, 3, dtype=torch.int64, device="cuda"), ones.clone())
    assert ones[0].tolist() == [4, 4, 4]
    ones.index_add_(0, torch.zeros(3, dtype=torch.int64, device="cuda"), ones.clone())
    assert torch.arange(3, device="cuda").cumsum(0).tolist() == [0, 1, 3]
    assert torch.bincount(torch.zeros(3, dtype=torch.int64, device="cuda")).tolist() == [3]
    (ones @ ones).sum()
