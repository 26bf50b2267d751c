"""Our own versions of the well-known Triton exercises (tests/triton_kernels/*.py) on an A100 and an H100, against
PyTorch in float64, NumPy, and an independent Philox. Products of matrices are in test_triton_products.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from triton_kernels import atomics, elementwise, norm, order, random, reduce, scan, softmax  # noqa: E402

import weft  # noqa: E402
from weft.errors import DeviceAssertError  # noqa: E402

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
CHIPS = {"sm_80": "a100-80gb", "sm_90": "h100"}


@pytest.fixture(scope="module", params=CHIPS, autouse=True)
def arch(request) -> str:
    """The architecture that this test's kernels are compiled for, on a chip that has it."""
    weft.install(CHIPS[request.param], triton_arch="", children=False)
    return request.param


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> None:
    """Whatever ran before, and in whichever process."""
    torch.manual_seed(1)


def integers(dtype, n, low=-50, high=50):
    if not dtype.is_signed:
        low = 0
    return torch.randint(low, high, (n,)).to(dtype)


def name_of(dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------- elementwise
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=name_of)
def test_add(dtype) -> None:
    x, y = integers(dtype, 1003), integers(dtype, 1003)
    assert torch.equal(elementwise.add(x, y), x + y)


@pytest.mark.parametrize("warps", [1, 2, 8, 16, 32])
@pytest.mark.parametrize("n", [1, 97, 5000])
def test_add_with_any_number_of_warps(warps: int, n: int) -> None:
    x, y = torch.randn(n), torch.randn(n)
    assert torch.equal(elementwise.add(x, y, block=1024, num_warps=warps), x + y)


def test_views_of_any_stride() -> None:
    base = torch.randn(90, 130)
    views = {
        "rows": base[3:70, 5:105],
        "columns": base.T[5:72, 2:90],
        "steps": base[1::2, ::3],
        "turned": base.flip(0)[::5],
        "spread": base[7].expand(40, 130),
    }
    for name, view in views.items():
        rows, columns = view.shape
        assert torch.equal(elementwise.copy(view, torch.zeros(rows, columns)), view), name
        target = torch.zeros(2 * columns, 3 * rows)
        elementwise.copy(view, target[::2, 1::3].T)
        assert torch.equal(target[::2, 1::3].T, view), name
        assert target.count_nonzero() == view.count_nonzero(), name


def test_backward_strides() -> None:
    base = torch.randn(40, 60)
    out = torch.zeros(40, 60)
    last = base[39:, 59:]
    elementwise.copy_kernel[(2, 1)](last, out, 40, 60, -60, -1, 60, 1, TILE_M=32, TILE_N=64)
    assert torch.equal(out, base.flip(0, 1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.float32, torch.float16], ids=name_of)
def test_masks_and_where(dtype) -> None:
    n = 333
    x, y = integers(dtype, n), integers(dtype, n)
    at = torch.arange(n)
    b = torch.where(at % 3 != 0, y, torch.tensor(5, dtype=dtype))
    want = torch.where(x > 3, x, torch.where(b > x, b, x + b))
    want = torch.where((at // 64) % 2 == 1, -want, want)
    assert torch.equal(elementwise.select(x, y, 3), want)


CASTS = [
    (torch.float32, torch.float16), (torch.float32, torch.bfloat16), (torch.float64, torch.float32),
    (torch.float16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float64),
    (torch.int32, torch.float16), (torch.int64, torch.float32), (torch.uint8, torch.bfloat16),
    (torch.int32, torch.int8), (torch.int8, torch.int64), (torch.uint8, torch.int16),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), CASTS, ids=name_of)
def test_conversions(source, target) -> None:
    if source.is_floating_point:
        x = torch.cat([torch.randn(300) * 10.0**k for k in range(-8, 9)]).to(source)
        x = torch.cat([x, torch.tensor([0.0, -0.0, math.inf, -math.inf, 65504, 65519.9, 65520, 2**-25], dtype=source)])
    else:
        info = torch.iinfo(source)
        x = torch.randint(info.min, info.max, (999,), dtype=torch.int64).to(source)
    assert torch.equal(elementwise.cast(x, target), x.to(target))


@pytest.mark.parametrize("source", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("target", [torch.int32, torch.int64, torch.int16, torch.uint8], ids=name_of)
def test_truncation_to_integers(source, target) -> None:
    high = 250 if target == torch.uint8 else 30000
    x = (torch.rand(500, dtype=source) * 2 - int(target != torch.uint8)) * high / 2
    assert torch.equal(elementwise.cast(x, target), x.to(target))


def test_rounding_to_zero() -> None:
    x = torch.randn(1000) * 100
    want = (x.view(torch.int32) & -65536).view(torch.float32)
    assert torch.equal(elementwise.cast(x, torch.bfloat16, "rtz").float(), want)
    half = x.half()
    want = torch.where(half.float().abs() > x.abs(), (half.view(torch.int16) - 1).view(torch.float16), half)
    assert torch.equal(elementwise.cast(x, torch.float16, "rtz"), want)


@pytest.mark.parametrize("kind", [torch.float8_e5m2, torch.float8_e4m3fn], ids=name_of)
def test_fp8(kind, arch: str) -> None:
    if kind == torch.float8_e4m3fn and arch == "sm_80":
        pytest.skip("Triton has e4m3 from sm_89 on")
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(kind)
    for wide in (torch.float32, torch.float16, torch.bfloat16):
        got, want = elementwise.cast(codes, wide), codes.to(wide)
        if kind == torch.float8_e5m2 and wide == torch.bfloat16:
            # Triton shifts the bits into place, which makes numbers of infinity and NaN.
            got, want = got[want.isfinite()], want[want.isfinite()]
        assert torch.equal(got.nan_to_num(7e4), want.nan_to_num(7e4)), wide
    top = torch.finfo(kind).max
    x = torch.cat([torch.randn(800) * 2.0**k for k in range(-18, 12)] + [codes.float()]).nan_to_num(0.0, top, -top)
    x = x.clamp(-top, top)  # beyond, PyTorch's overflow differs from PTX's saturation
    middles = codes.float().nan_to_num(0.0, 0.0, 0.0).unique()
    x = torch.cat([x, (middles[1:] + middles[:-1]) / 2])  # ties
    assert torch.equal(elementwise.cast(x, kind).view(torch.uint8), x.to(kind).view(torch.uint8))


def test_fp8_saturates(arch: str) -> None:
    if arch == "sm_80":
        pytest.skip("a conversion instruction from sm_89 on")
    x = torch.tensor([1e9, -1e9, 460.0, math.inf, -math.inf])
    assert elementwise.cast(x, torch.float8_e4m3fn).float().tolist() == [448.0, -448.0, 448.0, 448.0, -448.0]


def test_bit_casts() -> None:
    x = torch.randn(100)
    assert torch.equal(elementwise.bits(x, torch.int32), x.view(torch.int32))
    h = torch.randn(100).half()
    assert torch.equal(elementwise.bits(h, torch.bfloat16).view(torch.int16), h.view(torch.int16))


# Name -> range of arguments, error in units of the last place (f32). Bounds: CUDA C++ programming guide, mathematical
# functions, and Triton's use of ex2.approx and lg2.approx; sin and cos of small arguments.
FUNCTIONS = {
    "exp": (-20, 20, 30), "exp2": (-30, 30, 4), "log": (0.01, 100, 40), "log2": (2, 100, 8), "sin": (-10, 10, None),
    "cos": (-10, 10, None), "sqrt": (0, 1e6, 2), "sqrt_rn": (0, 1e6, 0.5), "rsqrt": (1e-3, 1e6, 2), "erf": (-4, 4, 4),
    "floor": (-99, 99, 0), "ceil": (-99, 99, 0), "abs": (-99, 99, 0), "sigmoid": (-10, 10, 16), "tanh": (-5, 5, 4),
    "cbrt": (-99, 99, 2), "lgamma": (3, 50, 8), "rint": (-99, 99, 0),
}  # fmt: skip
ORACLES = {"rsqrt": torch.rsqrt, "sigmoid": torch.sigmoid, "cbrt": lambda x: x.sign() * x.abs() ** (1 / 3),
           "sqrt_rn": torch.sqrt, "rint": torch.round}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    low, high, bound = FUNCTIONS[name]
    x = torch.rand(1000) * (high - low) + low
    want = ORACLES.get(name, getattr(torch, name, None))(x.double())
    error = (elementwise.function(x, name).double() - want).abs()
    unit = torch.from_numpy(np.spacing(np.abs(want.float().numpy()))).double()
    if bound is None:
        assert error.max() < 2e-6
    else:
        assert (error / unit).max() <= bound


@pytest.mark.parametrize("name", ["exp", "log", "sin", "sqrt", "rsqrt", "erf", "tanh", "floor"])
def test_double_functions(name: str) -> None:
    low, high, _ = FUNCTIONS[name]
    x = torch.rand(500, dtype=torch.float64) * (high - low) + low
    want = ORACLES.get(name, getattr(torch, name, None))(x)
    torch.testing.assert_close(elementwise.function(x, name), want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.int16], ids=name_of)
@pytest.mark.parametrize("name", ["quotient", "remainder", "shift", "logic", "minimum"])
def test_integer_arithmetic(name: str, dtype) -> None:
    info = torch.iinfo(dtype)
    x = torch.randint(info.min // 2, info.max, (700,), dtype=torch.int64).to(dtype)
    y = torch.randint(1, min(1000, info.max), (700,)).to(dtype)
    if info.min < 0:
        y *= torch.where(torch.rand(700) < 0.5, -1, 1).to(dtype)
    a, b = x.numpy(), y.numpy()
    with np.errstate(over="ignore"):
        want = {
            "quotient": lambda: (np.trunc(a / b) if dtype != torch.int64 else _truncated(a, b)).astype(a.dtype),
            "remainder": lambda: np.fmod(a, b),
            "shift": lambda: (a << (b & 7)) ^ (a >> (b & 3)),
            "logic": lambda: (a & b) | (~a & (a ^ b)),
            "minimum": lambda: np.minimum(a, b) * a.dtype.type(3) - np.maximum(a, b),
        }[name]()
    assert np.array_equal(elementwise.integer(x, y, name).numpy(), want)


def _truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b)])


def test_high_halves() -> None:
    for dtype, bits in ((torch.int32, 32), (torch.int64, 64)):
        info = torch.iinfo(dtype)
        x, y = (torch.randint(info.min, info.max, (300,), dtype=dtype) for _ in range(2))
        got = elementwise.integer(x, y, "high")
        # umulhi takes its operands for unsigned numbers.
        mask = (1 << bits) - 1
        want = [((int(a) & mask) * (int(b) & mask)) >> bits for a, b in zip(x, y)]
        assert [int(v) & mask for v in got] == want


def test_three_dimensional_grid() -> None:
    got = elementwise.places((3, 4, 5)).numpy()
    z, y, x = np.meshgrid(range(5), range(4), range(3), indexing="ij")
    assert np.array_equal(got, np.stack([x, y, z, np.full_like(x, 30405)], axis=-1))


def collatz_steps(value: int) -> int:
    steps = 0
    while value > 1:
        value = value // 2 if value % 2 == 0 else 3 * value + 1
        steps += 1
    return steps


def test_while_loop() -> None:
    x = torch.arange(1, 300, dtype=torch.int32)
    assert elementwise.collatz(x).tolist() == [collatz_steps(i) for i in range(1, 300)]


def test_nested_loops() -> None:
    want = [sum(i * j for i in range(p, 20, 2) for j in range(i, 20, 3)) for p in range(5)]
    assert elementwise.triangle(20, 5).tolist() == want


def test_shapes() -> None:
    x = torch.arange(16 * 32, dtype=torch.float32).reshape(16, 32)
    even, odd = x.T[0::2], x.T[1::2]
    joined = torch.stack([odd, even], dim=-1).flatten()
    line = torch.stack([even.sum(1), odd.sum(1)], dim=-1).flatten()
    assert torch.equal(elementwise.shapes(x), torch.cat([joined, line, x.flip(1).flatten()]))


def test_device_print(capfd) -> None:
    elementwise.print_kernel[(2, 1, 1)](torch.arange(64, dtype=torch.int32) * 3, BLOCK=64, num_warps=1)
    lines = [line for line in capfd.readouterr().out.splitlines() if "value" in line]
    assert len(lines) == 128
    assert sum(line.endswith(" 63") for line in lines) == 2
    assert any(line.startswith("pid (1, 0, 0)") for line in lines)


def test_device_assert() -> None:
    x = torch.arange(32, dtype=torch.int32)
    out = torch.zeros_like(x)
    elementwise.assert_kernel[(1,)](x, out, 32, BLOCK=32, num_warps=1, debug=True)
    assert torch.equal(out, x)
    with pytest.raises(DeviceAssertError, match="value too large"):
        elementwise.assert_kernel[(1,)](x, out, 31, BLOCK=32, num_warps=1, debug=True)
    assert torch.equal(elementwise.add(x, x), x + x)


# ---------------------------------------------------------------- softmax
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("shape", [(5, 1), (7, 100), (3, 781), (2, 2048)], ids=str)
def test_softmax(dtype, shape) -> None:
    x = (torch.randn(shape) * 4).to(dtype)
    want = torch.softmax(x.double(), dim=1)
    got = softmax.softmax(x)
    torch.testing.assert_close(got.double(), want, rtol=EPSILON[dtype] / 2 + 4e-6, atol=1e-7)
    strided = torch.zeros(shape[0], shape[1] + 5, dtype=dtype)[:, 3 : 3 + shape[1]]
    strided.copy_(x)
    assert torch.equal(softmax.softmax(strided), got)


def test_softmax_of_infinities() -> None:
    x = torch.tensor([[1.0, -math.inf, 2.0, -math.inf], [-math.inf] * 3 + [0.0], [math.inf, 0, 0, 0]])
    got, want = softmax.softmax(x), torch.softmax(x, dim=1)
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_online_softmax(dtype) -> None:
    x = (torch.randn(13, 301) * 5).to(dtype)
    want = torch.softmax(x.double(), dim=1)
    torch.testing.assert_close(softmax.online_softmax(x).double(), want, rtol=EPSILON[dtype] / 2 + 5e-6, atol=1e-7)


# ---------------------------------------------------------------- random numbers
def philox(key: int, counters: np.ndarray, bits: int = 32) -> np.ndarray:
    """Philox4x32-10 or 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), written from the
    paper: rows of four words for counters of up to two words; the rest of the counter is 0. The key of 4x64 is one
    word."""
    mask = (1 << bits) - 1
    multipliers = (0xD2511F53, 0xCD9E8D57) if bits == 32 else (0xD2E7470EE14C6C93, 0xCA5A826395121157)
    weyl = (0x9E3779B9, 0xBB67AE85) if bits == 32 else (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
    rows = []
    for counter in counters:
        x = [int(counter) & mask, int(counter) >> bits, 0, 0]
        k = [key & mask, key >> bits]
        for _ in range(10):
            low, high = multipliers[0] * x[0], multipliers[1] * x[2]
            x = [high >> bits ^ x[1] ^ k[0], high & mask, low >> bits ^ x[3] ^ k[1], low & mask]
            k = [(k[i] + weyl[i]) & mask for i in (0, 1)]
        rows.append(x)
    return np.array(rows, dtype=np.uint32 if bits == 32 else np.uint64)


def uniform_numbers(words: np.ndarray) -> np.ndarray:
    """[0, 1) from signed words, as Triton makes them: negative ones mirrored, then scaled in f32."""
    signed = words.view(np.int32)
    return np.where(signed < 0, -signed - 1, signed).astype(np.float32) * np.float32(4.6566127342e-10)


def test_oracle_of_philox() -> None:
    # The known answer of Random123 for an all-zero key and counter.
    assert [hex(v) for v in philox(0, np.zeros(1))[0]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


@pytest.mark.parametrize("seed", [0, 12345, 2**33 + 7])
def test_random_bits(seed: int) -> None:
    assert np.array_equal(random.bits(seed, 300).numpy().view(np.uint32), philox(seed, np.arange(300)))


def test_random_bits_of_64_bit_counters() -> None:
    counters = 2**40 + 5 + np.arange(100)
    got = random.wide_bits(99, 2**40 + 5, 100).numpy().view(np.uint64)
    assert np.array_equal(got[:, 0] & np.uint64(0xFFFFFFFF), philox(99, counters)[:, 0])
    assert np.array_equal(got[:, 1:], philox(99, counters, 64))


def test_random_numbers() -> None:
    n = 5000
    words = philox(3, np.arange(n))
    uniform, normal = random.numbers(3, n)
    assert np.array_equal(uniform.numpy(), uniform_numbers(words[:, 0]))
    u1, u2 = (uniform_numbers(words[:, i]).astype(np.float64) for i in (0, 1))
    want = np.sqrt(-2 * np.log(np.maximum(1e-7, u1))) * np.cos(6.283185307179586 * u2)
    np.testing.assert_allclose(normal.numpy(), want, rtol=1e-4, atol=2e-5)
    assert abs(normal.mean().item()) < 0.05 and abs(normal.std().item() - 1) < 0.05


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_dropout(p: float) -> None:
    x = torch.randn(1001)
    kept = torch.from_numpy(uniform_numbers(philox(77, np.arange(1001))[:, 0]) > np.float32(p))
    got = random.dropout(x, p, 77)
    assert torch.equal(got != 0, kept)
    torch.testing.assert_close(got, torch.where(kept, x / (1 - p), 0.0), rtol=1e-6, atol=0)
    assert torch.equal(got, random.dropout(x, p, 77))


# ---------------------------------------------------------------- layer norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("shape", [(9, 256), (21, 155)], ids=str)
def test_layer_norm(dtype, shape) -> None:
    columns = shape[1]
    x = (torch.randn(shape) * 2 + 3).to(dtype)
    weight, bias, dy = torch.rand(columns).to(dtype), torch.randn(columns).to(dtype), torch.randn(shape).to(dtype)
    out, mean, rstd = norm.forward(x, weight, bias)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    want = torch.nn.functional.layer_norm(leaves[0], (columns,), leaves[1], leaves[2], 1e-5)
    bound = EPSILON[dtype] / 2 + 1e-5
    torch.testing.assert_close(out.double(), want.detach(), rtol=bound, atol=bound)
    torch.testing.assert_close(mean.double(), x.double().mean(1), rtol=1e-6, atol=1e-6)
    got = norm.backward(dy, x, weight, mean, rstd)
    want.backward(dy.double())
    for mine, leaf in zip(got, leaves):
        torch.testing.assert_close(mine.double(), leaf.grad, rtol=bound, atol=bound * leaf.grad.abs().max().item())


# ---------------------------------------------------------------- reductions
REDUCTIONS = {
    "sum": lambda x, axis: x.sum(axis), "max": lambda x, axis: x.amax(axis), "min": lambda x, axis: x.amin(axis),
    "argmax": lambda x, axis: x.max(axis).indices, "argmin": lambda x, axis: x.min(axis).indices,
    "product": lambda x, axis: x.prod(axis),
    "xor": lambda x, axis: torch.from_numpy(np.bitwise_xor.reduce(x.numpy(), axis=axis)),
    "or": lambda x, axis: torch.from_numpy(np.bitwise_or.reduce(x.numpy(), axis=axis)),
}  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, axis: int) -> None:
    dtype = torch.int32 if name in ("xor", "or", "argmin") else torch.float32
    # Few different values, so that many tie; the first place wins.
    x = integers(dtype, 61 * 45, -3, 4).reshape(61, 45)
    if name == "product":
        x = torch.where(torch.rand(61, 45) < 0.1, 2.0, torch.where(torch.rand(61, 45) < 0.5, -1.0, 1.0))
    want = REDUCTIONS[name](x, axis)
    if "arg" in name:
        want = first_place(x, axis, name)
    got = reduce.reduce(x, name, axis, torch.int32 if "arg" in name else None)
    assert torch.equal(got, want.to(got.dtype))
    assert torch.equal(reduce.reduce(x.T.contiguous().T, name, axis, got.dtype, num_warps=1), got)


def first_place(x, axis: int, name: str):
    function = np.argmax if name == "argmax" else np.argmin
    return torch.from_numpy(function(x.numpy(), axis=axis))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8], ids=name_of)
@pytest.mark.parametrize("name", ["sum", "max"])
def test_reductions_of_types(name: str, dtype) -> None:
    x = integers(dtype, 32 * 70, -2, 3).reshape(32, 70)
    want = REDUCTIONS[name](x, 1)
    assert torch.equal(reduce.reduce(x, name, 1, num_warps=2), want.to(dtype))


def test_moments() -> None:
    x = torch.randn(6, 500) * 3 + 100
    mean, variance = reduce.moments(x)
    torch.testing.assert_close(mean.double(), x.double().mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), x.double().var(1, correction=0), rtol=1e-5, atol=0)


def test_extremes() -> None:
    x = torch.randn(1000)
    x[[417, 800]] = 9.0
    assert reduce.extremes(x) == (9.0, 417)


def test_three_dimensional_block() -> None:
    x = integers(torch.float32, 4 * 8 * 16).reshape(4, 8, 16)
    middle = x.sum(1)
    want = torch.cat([middle.flatten(), middle.max()[None], middle.amin(1).sum()[None]])
    assert torch.equal(reduce.cube(x), want)


# ---------------------------------------------------------------- scans
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["sum", "product", "largest"])
def test_scan(name: str, axis: int, reverse: bool) -> None:
    x = integers(torch.int32, 32 * 64, -9, 9).reshape(32, 64)
    if name == "product":
        x = x.sign() + (x == 0).int()
    turned = x.flip(axis) if reverse else x
    want = {"sum": torch.cumsum, "product": torch.cumprod, "largest": lambda t, d: torch.cummax(t, d).values}[name]
    expected = want(turned, axis).to(torch.int32)
    got = scan.scan(x, name, axis, reverse)
    assert torch.equal(got, expected.flip(axis) if reverse else expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.int16], ids=name_of)
def test_scan_of_types(dtype) -> None:
    x = integers(dtype, 16 * 128, 0, 3).reshape(16, 128)
    assert torch.equal(scan.scan(x, "sum", 1, num_warps=2), x.cumsum(1).to(dtype))


def test_scan_over_blocks() -> None:
    x = torch.randn(1000)
    torch.testing.assert_close(scan.line(x), x.cumsum(0), rtol=1e-4, atol=1e-4)


def test_recurrence() -> None:
    a, b = torch.rand(64, 16) * 0.5 + 0.5, torch.randn(64, 16)
    want, h = [], torch.zeros(16, dtype=torch.float64)
    for t in range(64):
        h = a[t].double() * h + b[t].double()
        want.append(h)
    torch.testing.assert_close(scan.recurrence(a, b).double(), torch.stack(want), rtol=1e-5, atol=1e-5)


def test_chained_scan() -> None:
    x = torch.randint(-99, 99, (3001,), dtype=torch.int32)
    assert torch.equal(scan.chained(x), x.cumsum(0).to(torch.int32))


# ---------------------------------------------------------------- order
@pytest.mark.parametrize("descending", [False, True], ids=["up", "down"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float16, torch.int8], ids=name_of)
def test_sort(dtype, descending: bool) -> None:
    x = integers(dtype, 8 * 64, -120, 120).reshape(8, 64)
    assert torch.equal(order.sort(x, descending), x.sort(dim=1, descending=descending).values)


def test_sort_of_one_long_row() -> None:
    x = torch.randn(1, 512)
    assert torch.equal(order.sort(x, rows=1), x.sort(dim=1).values)


def test_argsort() -> None:
    x = torch.randint(0, 60000, (300,)).to(torch.uint16)
    x[10:20] = 5
    assert np.array_equal(order.argsort(x).numpy(), np.argsort(x.numpy(), kind="stable"))


def test_largest() -> None:
    x = torch.randn(4, 128)
    assert torch.equal(order.largest(x, 8), x.topk(8, dim=1).values)


@pytest.mark.parametrize("bins", [2, 64, 512])
@pytest.mark.parametrize("warps", [1, 4])
def test_histogram(bins: int, warps: int) -> None:
    x = (torch.rand(3000) ** 3 * bins).to(torch.int32)
    assert torch.equal(order.histogram(x, bins, num_warps=warps), torch.bincount(x, minlength=bins).to(torch.int32))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float16], ids=name_of)
def test_gather(axis: int, dtype) -> None:
    x = integers(dtype, 32 * 64).reshape(32, 64)
    shape = (64, 64) if axis == 0 else (32, 128)
    index = torch.randint(0, x.shape[axis], shape, dtype=torch.int32)
    assert torch.equal(order.gather(x, index, axis), torch.gather(x, axis, index.long()))


def test_rows_by_number() -> None:
    table = torch.randn(20, 37)
    index = torch.tensor([3, -1, 19, 0, 3], dtype=torch.int32)
    want = table[index.clamp(min=0).long()] * (index >= 0)[:, None]
    assert torch.equal(order.rows(table, index), want)


# ---------------------------------------------------------------- atomics
ATOMICS = {
    "add": [torch.int32, torch.int64, torch.float32, torch.float64, torch.float16, torch.bfloat16],
    "max": [torch.int32, torch.int64, torch.float32], "min": [torch.int32, torch.int64, torch.float32],
    "and": [torch.int32, torch.int64], "or": [torch.int32, torch.int64], "xor": [torch.int32, torch.int64],
}  # fmt: skip
UPDATES = {"add": np.add, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or,
           "xor": np.bitwise_xor}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"), [(n, t) for n, types in ATOMICS.items() for t in types], ids=lambda v: str(v).split(".")[-1]
)
def test_atomics(name: str, dtype) -> None:
    n = 500
    x, index = integers(dtype, n, -20, 20), torch.randint(0, 7, (n,), dtype=torch.int32)
    out = integers(dtype, 8)  # an even number: 16-bit additions may become compare-and-swap of whole words
    wide = dtype == torch.bfloat16  # NumPy has no bfloat16; the numbers are whole and small
    want = (out.float() if wide else out).numpy().copy()
    UPDATES[name].at(want, index.numpy(), (x.float() if wide else x).numpy())
    old = atomics.update(x, index, out, name)
    assert np.array_equal((out.float() if wide else out).numpy(), want)
    if name == "add" and dtype in (torch.int32, torch.int64):
        # What each addition found is the sum of those before it, in some order.
        for place in range(7):
            seen = old[index == place]
            assert len(seen.unique()) <= len(seen)
            following = (seen + x[index == place]).sort().values
            whole = torch.cat([seen, out[place : place + 1]]).sort().values
            assert set(following.tolist()) <= set(whole.tolist())


def test_exchange() -> None:
    x, index = torch.arange(1, 201, dtype=torch.int32), torch.randint(0, 3, (200,), dtype=torch.int32)
    out = torch.zeros(3, dtype=torch.int32)
    old = atomics.update(x, index, out, "xchg")
    # Every value is found once: by the next one that came, or at the end.
    assert sorted(old.tolist() + out.tolist()) == sorted([0] * 3 + x.tolist())


def test_compare_and_swap() -> None:
    x = torch.arange(128, dtype=torch.int32)
    expected = torch.where(torch.arange(128) % 3 == 0, x, -1).int()
    before = x.clone()
    old = atomics.swap(x, expected, torch.full_like(x, 7))
    assert torch.equal(old, before)
    assert torch.equal(x, torch.where(expected == before, 7, before))


def test_lock() -> None:
    count, log = atomics.lock(20, 5)
    assert count == 100
    assert torch.equal(torch.bincount(log), torch.full((20,), 5))


def test_last_program() -> None:
    x = torch.arange(1000, dtype=torch.int32)
    assert atomics.last(x) == x.sum().item()
