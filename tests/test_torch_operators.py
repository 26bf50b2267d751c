"""PyTorch's operators on a virtual GPU, held against the CPU's results: its own database, and what only CUDA has."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
import torch_opinfo as opinfo  # noqa: E402

import weft  # noqa: E402
from weft.frontends.torch.recording import recorder  # noqa: E402
from weft.model.operators import covered  # noqa: E402

PARTS = 16
# What .item() asks for: the timeline takes it for the copy to the host that it is.
PRICED_ELSEWHERE = {"_local_scalar_dense"}


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[weft.Device]:
    device = weft.install("h100", children=False)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # results are held against the CPU's, which has no TF32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield device
    torch.backends.cudnn.allow_tf32 = before


# ---------------------------------------------------------------- the database
@pytest.mark.parametrize("part", range(PARTS))
def test_database(part: int) -> None:
    """float32 in every aspect, and one more type in turn; tools/torch_sweep.py runs all types and samples."""
    exceptions = opinfo.read_exceptions()
    ran: set[str] = set()
    wrong, passed = {}, 0

    def listen(name: str, *rest: object) -> None:
        ran.add(name)

    recorder.add(listen)
    try:
        for place, op in enumerate(opinfo.operators()):
            if place % PARTS != part:
                continue
            names = opinfo.dtypes_of(op)
            other = opinfo.DTYPES[1 + place // PARTS % 5]
            for dtype in dict.fromkeys((*names[:1], other)):
                if dtype in names:
                    found = opinfo.check_operator(op, dtype, samples=2 if dtype == "float32" else 1)
                    passed += not found.failures
                    if found.failures and not found.is_excused(exceptions):
                        wrong[found.key] = found.failures
    finally:
        recorder.remove(listen)
    assert not wrong
    assert passed > 50
    assert {name for name in ran if not covered(name)} <= PRICED_ELSEWHERE


@pytest.mark.parametrize("entry", opinfo.read_exceptions())
def test_exceptions_are_exceptions(entry: str) -> None:
    """What is listed still fails; once it passes it must leave the list."""
    name, *rest = entry.split(":")
    (op,) = (op for op in opinfo.operators() if opinfo.name_of(op) == name)
    dtypes = rest[:1] or opinfo.dtypes_of(op)
    failures = [aspect for dtype in dtypes for aspect in opinfo.check_operator(op, dtype, samples=6).failures]
    assert failures and (len(rest) < 2 or rest[1] in failures)


# ---------------------------------------------------------------- coverage
def test_types_that_only_cuda_takes() -> None:
    """By the database; held against the CPU's results in a wider type."""
    wider = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.bool: torch.int64}
    wrong, checked = {}, 0
    for op in opinfo.operators():
        for text in opinfo.DTYPES:
            dtype = getattr(torch, text)
            if dtype in op.supported_dtypes("cpu") or dtype not in op.supported_dtypes("cuda"):
                continue
            opinfo.seed_everything()
            for _, sample in zip(range(3), op.sample_inputs("cuda", dtype)):
                given = [sample.input, sample.args, sample.kwargs]
                try:
                    found = op(given[0], *given[1], **given[2])
                    checked += 1
                except Exception as error:
                    wrong[opinfo.name_of(op), text] = str(error)
                    continue
                if dtype not in wider or op.name in opinfo.RANDOM or op.name.startswith(("fft.", "torch.")):
                    continue
                here = [widen(opinfo.move(value, "cpu"), dtype, wider[dtype]) for value in given]
                expected = op(here[0], *here[1], **here[2])
                for one, other in zip(opinfo.tensors_in(expected), opinfo.tensors_in(found)):
                    torch.testing.assert_close(
                        other.cpu(), one.to(other.dtype), rtol=6e-2, atol=6e-2, equal_nan=True, msg=op.name
                    )
    assert not wrong and checked > 20


def widen(value: object, narrow: torch.dtype, wide: torch.dtype) -> object:
    if isinstance(value, torch.Tensor):
        return value.to(wide) if value.dtype is narrow else value
    if isinstance(value, (list, tuple)):
        return type(value)(widen(entry, narrow, wide) for entry in value)
    if isinstance(value, dict):
        return {key: widen(entry, narrow, wide) for key, entry in value.items()}
    return wide if value is narrow else value


# Operators with a CUDA kernel in native_functions.yaml that have none here, and why.
MISSING = {
    "miopen": "AMD's library",
    "_cslt": "2:4 sparsity with cuSPARSELt",
    "sparse_semi_structured": "2:4 sparsity with CUTLASS",
    "_philox": "random numbers by key, which Inductor's code draws itself",
    "_triton_": "built only with Triton's ahead-of-time kernels",
    "depthwise": "what convolution calls inside",
    "flash_attention.quantized": "fp8 attention",
    "flash_attention_forward.quantized": "fp8 attention",
    "_no_dropout_inplace": "what flash attention calls inside",
    "_cudnn_attention": "what nested tensors' attention calls inside",
    "_fill_mem_eff_dropout_mask_": "a debugging aid",
    "_mixed_dtypes_linear": "CUTLASS on sm80 alone",
    "cudnn_affine_grid_generator_backward": "affine_grid does not call it",
    "cudnn_batch_norm.out": "nothing calls the out= form",
    "cudnn_convolution.out": "nothing calls the out= form",
    "batch_norm_elemt.out": "nothing calls the out= form",
    "silu_backward": "composed of other operators",
    "mish_backward": "composed of other operators",
}


def test_kernels_for_what_cuda_has() -> None:
    """PyTorch ships the list of its kernels: what has one for CUDA has one here, or stands in the table above."""
    import torchgen

    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text()
    keys: dict[str, set[str]] = {}
    delegates = {}
    for block in text.split("\n- func: ")[1:]:
        name = block.partition("(")[0]
        delegates[name] = re.search(r"structured_delegate: (\S+)", block)
        table = block.partition("  dispatch:\n")[2]
        keys[name] = {key for line in re.findall(r"^    (\w[\w, ]*):", table, re.M) for key in line.split(", ")}
    missing = []
    for name, found in keys.items():
        delegate = delegates[name]
        wanted = found | (keys[delegate[1]] if delegate else set())
        if "CUDA" in wanted and not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CUDA"):
            missing.append(name)
    assert [name for name in missing if not any(part in name for part in MISSING)] == []
    assert len(keys) > 2000 and all(any(part in name for name in missing) for part in MISSING)


def test_integers_are_refused_where_cuda_refuses_them() -> None:
    a = torch.ones(2, 2, dtype=torch.int64, device="cuda")
    for name, work in {
        "addmm_cuda": lambda: a @ a,
        "baddbmm_cuda": lambda: torch.bmm(a[None], a[None]),
        "dot": lambda: a[0] @ a[0],
        "addmv_impl_cuda": lambda: a @ a[0],
        "max_pool2d_with_indices_out_cuda_frame": lambda: F.max_pool2d(a[None], 2),
    }.items():
        with pytest.raises(NotImplementedError, match=f"\"{name}\" not implemented for 'Long'"):
            work()
    with pytest.raises(NotImplementedError, match="Could not run 'aten::histogram.bin_ct' .* the 'CUDA' backend"):
        torch.histogram(torch.ones(3, device="cuda"), 2)


def test_out_arguments_grow_and_overlap() -> None:
    short = torch.ones(2, device="cuda")
    torch.add(torch.ones(3, device="cuda"), 1, out=short)
    assert short.tolist() == [2, 2, 2]
    x = torch.arange(5.0, device="cuda")
    with pytest.raises(RuntimeError, match="some elements of the input tensor and the written-to tensor refer to a"):
        torch.add(x[:-1], 1, out=x[1:])
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor refers to a single memory"):
        torch.add(x[:1].expand(3), 1, out=x[:1].expand(3))
    torch.add(x, 1, out=x)
    assert x.tolist() == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------- attention
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k' / sqrt(d) + mask) v in float64, heads of k and v repeated."""
    k, v = (t.double().repeat_interleave(q.size(1) // t.size(1), 1) for t in (k, v))
    scores = q.double() @ k.transpose(-2, -1) / q.size(-1) ** 0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ v


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_every_backend(backend: str, causal: bool) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 16).half() for _ in range(3))
    mask = torch.full((9, 9), float("-inf")).triu(1) if causal else None
    given = [tensor.cuda().requires_grad_() for tensor in (q, k, v)]
    wide = [tensor.double().requires_grad_() for tensor in (q, k, v)]
    ran: list[str] = []
    recorder.add(listen := lambda name, *rest: ran.append(name))
    try:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            found = F.scaled_dot_product_attention(*given, is_causal=causal)
    finally:
        recorder.remove(listen)
    expected = attend(*wide, mask)
    word = {
        "FLASH_ATTENTION": "flash",
        "EFFICIENT_ATTENTION": "efficient",
        "CUDNN_ATTENTION": "cudnn",
        "MATH": "softmax",
    }
    assert any(word[backend] in name for name in ran), ran
    torch.testing.assert_close(found.double().cpu(), expected.detach(), rtol=1e-2, atol=2e-3)
    weights = torch.randn(2, 4, 9, 16).half()
    found.backward(weights.cuda())
    expected.backward(weights.double())
    for one, other in zip(wide, given):
        torch.testing.assert_close(other.grad.double().cpu(), one.grad, rtol=2e-2, atol=4e-3)


def test_attention_falls_back_in_order() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(1, 4, 5, 8, device="cuda", dtype=torch.bfloat16)
    grouped = torch.randn(1, 2, 5, 8, device="cuda", dtype=torch.bfloat16)
    wanted = attend(q.cpu(), grouped.cpu(), grouped.cpu(), None)
    for backends in ([SDPBackend.FLASH_ATTENTION], [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION]):
        with sdpa_kernel(backends):
            found = F.scaled_dot_product_attention(q, grouped, grouped, enable_gqa=True)
        torch.testing.assert_close(found.double().cpu(), wanted, rtol=2e-2, atol=2e-2)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), pytest.raises(RuntimeError, match="No available kernel"):
        F.scaled_dot_product_attention(q, grouped, grouped, enable_gqa=True)
    bias = torch.randn(1, 1, 5, 5, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    F.scaled_dot_product_attention(q, q, q, attn_mask=bias).sum().backward()  # efficient: flash takes no mask
    assert bias.grad.shape == bias.shape


def test_attention_drops_what_it_should() -> None:
    torch.manual_seed(0)
    q = torch.zeros(8, 8, 64, 16, device="cuda", dtype=torch.float16)
    found = F.scaled_dot_product_attention(q, q, torch.ones_like(q), dropout_p=0.25)
    # each of the 64 equal weights survives with 3/4 and is scaled by 4/3
    assert found.float().mean().item() == pytest.approx(1, abs=0.02)
    assert found[..., 0].float().var().item() == pytest.approx(0.25 / 0.75 / 64, rel=0.15)


# ---------------------------------------------------------------- products
E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("kinds", [(E4, E4), (E4, E5), (E5, E4)], ids=str)
def test_scaled_products(wide: torch.dtype, by_row: bool, kinds: tuple) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(16, 64), torch.randn(48, 64)
    scales = [t.abs().amax(1, keepdim=True) if by_row else t.abs().max() for t in (a, b)]
    low = [(t / scale * 200).to(kind) for t, scale, kind in zip((a, b), scales, kinds)]
    scales = [scale / 200 for scale in scales]
    bias = torch.randn(48, dtype=torch.bfloat16)
    found = torch._scaled_mm(
        low[0].cuda(), low[1].cuda().t(), scales[0].cuda(), scales[1].t().cuda(), out_dtype=wide,
        bias=bias.cuda() if wide is torch.bfloat16 else None,
    )  # fmt: skip
    expected = (low[0].double() * scales[0]) @ (low[1].double() * scales[1]).t()
    if wide is torch.bfloat16:
        expected = expected + bias.double()
    assert found.dtype is wide
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-2, atol=2e-2)


def test_public_forms_of_scaled_and_grouped_products() -> None:
    from torch.nn.functional import ScalingType

    torch.manual_seed(0)
    a, b = torch.randn(32, 64).to(E4), torch.randn(2, 48, 64).to(E4)
    one = torch.tensor(1.0, device="cuda")
    found = F.scaled_mm(
        a.cuda(), b[0].cuda().t(), one, ScalingType.TensorWise, one, ScalingType.TensorWise, output_dtype=torch.bfloat16
    )
    torch.testing.assert_close(found.double().cpu(), a.double() @ b[0].double().t(), rtol=1e-2, atol=1e-1)
    ends = torch.tensor([10, 32], dtype=torch.int32)
    expected = torch.cat((a[:10].double() @ b[0].double().t(), a[10:].double() @ b[1].double().t()))
    found = F.scaled_grouped_mm(
        a.cuda(), b.cuda().transpose(1, 2), torch.ones(32, device="cuda"), ScalingType.RowWise,
        torch.ones(2, 48, device="cuda"), ScalingType.RowWise, offs=ends.cuda(), output_dtype=torch.bfloat16,
    )  # fmt: skip
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-2, atol=1e-1)
    low = a.to(torch.bfloat16).cuda().requires_grad_(), b.to(torch.bfloat16).cuda().requires_grad_()
    found = F.grouped_mm(low[0], low[1].transpose(1, 2), offs=ends.cuda())
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-2, atol=1e-1)
    found.backward(torch.ones(32, 48, device="cuda", dtype=torch.bfloat16))
    torch.testing.assert_close(low[1].grad[0, 0].double().cpu(), a[:10].double().sum(0), rtol=2e-2, atol=5e-2)
    bytes_ = torch.randint(-128, 128, (32, 64), dtype=torch.int8), torch.randint(-128, 128, (64, 16), dtype=torch.int8)
    assert torch.equal(torch._int_mm(bytes_[0].cuda(), bytes_[1].cuda()).cpu(), bytes_[0].int() @ bytes_[1].int())


# ---------------------------------------------------------------- sparse layouts
LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr]


def sparse_matrix(layout: torch.layout) -> tuple[torch.Tensor, torch.Tensor]:
    """(dense, the same in a layout) on the CPU."""
    torch.manual_seed(0)
    dense = torch.randn(6, 4) * (torch.rand(6, 4) > 0.5)
    options = {"blocksize": (2, 1)} if layout is torch.sparse_bsr else {}
    return dense, dense.to_sparse(layout=layout, **options)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_sparse_products(layout: torch.layout) -> None:
    dense, matrix = sparse_matrix(layout)
    there, other = matrix.cuda(), torch.randn(4, 3)
    assert there.layout is layout and there.device.type == "cuda" and there.values().is_cuda
    torch.testing.assert_close(there.to_dense().cpu(), dense)
    torch.testing.assert_close(there.cpu().to_dense(), dense)
    for found, expected in (
        (there @ other.cuda(), dense @ other), (torch.sparse.mm(there, other.cuda()), dense @ other),
        (there @ other[:, 0].cuda(), dense @ other[:, 0]),
        (torch.addmm(torch.ones(6, 3).cuda(), there, other.cuda(), beta=2), 2 + dense @ other),
    ):  # fmt: skip
        torch.testing.assert_close(found.cpu(), expected)
    torch.testing.assert_close((there * 2).to_dense().cpu(), dense * 2)
    torch.testing.assert_close(torch.relu(there).to_dense().cpu(), dense.relu())
    assert "device='cuda:0'" in str(there)


def test_sparse_operators() -> None:
    dense, coo = sparse_matrix(torch.sparse_coo)
    csr = dense.to_sparse_csr()
    pattern = torch.sparse.sampled_addmm(csr.cuda(), torch.ones(6, 3).cuda(), torch.ones(3, 4).cuda())
    torch.testing.assert_close(pattern.to_dense().cpu(), dense + 3 * (dense != 0))
    for name in ("softmax", "log_softmax"):
        here, there = (getattr(torch.sparse, name)(matrix, 1).to_dense() for matrix in (coo, coo.cuda()))
        torch.testing.assert_close(there.cpu(), here)
    torch.testing.assert_close(torch.sparse.sum(coo.cuda(), 0).to_dense().cpu(), dense.sum(0))
    torch.testing.assert_close((csr.cuda() @ csr.t().to_sparse_csr().cuda()).to_dense().cpu(), dense @ dense.t())
    torch.testing.assert_close(torch.bmm(dense[None].to_sparse_csr().cuda(), torch.ones(1, 4, 2).cuda()).cpu(),
                               dense[None] @ torch.ones(1, 4, 2))  # fmt: skip
    twice = torch.sparse_coo_tensor([[0, 0, 1]], [1.0, 2.0, 3.0], (3,), device="cuda")
    assert not twice.is_coalesced() and twice.coalesce().values().tolist() == [3, 3]
    torch.testing.assert_close((coo.cuda() + coo.cuda()).to_dense().cpu(), dense * 2)
    for matrix in (coo, csr):
        grads = []
        for device in ("cpu", "cuda"):
            leaf = matrix.detach().to(device).clone().requires_grad_()
            other = torch.ones(4, 2, device=device, requires_grad=True)
            torch.sparse.mm(leaf, other).sum().backward()
            torch.testing.assert_close(other.grad.cpu(), dense.sum(0)[:, None].expand(4, 2))
            grads.append(leaf.grad)
        assert grads[0].layout is grads[1].layout is matrix.layout and grads[1].device.type == "cuda"
        torch.testing.assert_close(grads[1].to_dense().cpu(), grads[0].to_dense())
    block = dense.to_sparse_bsc((2, 1)).cuda()
    with pytest.raises(RuntimeError, match="computation on CUDA is not implemented for .* SparseBsc"):
        torch.sparse.mm(block, torch.ones(4, 2, device="cuda"))


# ---------------------------------------------------------------- nested tensors
def test_nested_tensors() -> None:
    parts = [torch.randn(2, 4), torch.randn(3, 4)]
    nested = torch.nested.nested_tensor(parts, device="cuda", requires_grad=True)
    assert nested.is_cuda and nested.cpu().unbind()[1].equal(parts[1])
    layer = torch.nn.Linear(4, 5).cuda()
    result = torch.softmax(layer(nested * 2).relu(), -1)
    for one, other in zip(parts, result.unbind()):
        expected = F.linear(one * 2, layer.weight.cpu(), layer.bias.cpu()).relu().softmax(-1)
        torch.testing.assert_close(other.detach().cpu(), expected.detach())
    padded = torch.nested.to_padded_tensor(result, -1.0)
    assert padded.shape == (2, 3, 5) and padded[0, 2].tolist() == [-1] * 5
    padded.sum().backward()
    assert nested.grad.is_nested and nested.grad.unbind()[1].shape == (3, 4) and layer.weight.grad is not None


def test_jagged_tensors_attend() -> None:
    parts = [torch.randn(3, 2, 8).half(), torch.randn(5, 2, 8).half()]
    leaf = torch.nested.nested_tensor(parts, device="cuda", layout=torch.jagged, requires_grad=True)
    heads = leaf.transpose(1, 2)
    found = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2)
    for one, other in zip(parts, found.unbind()):
        q = one.transpose(0, 1)[None]
        expected = attend(q, q, q, torch.full((len(one), len(one)), float("-inf")).triu(1))
        torch.testing.assert_close(other.detach().double().cpu(), expected[0].transpose(0, 1), rtol=1e-2, atol=5e-3)
    found.values().float().sum().backward()
    assert leaf.grad.values().shape == (8, 2, 8)
    torch.testing.assert_close(F.layer_norm(leaf, (8,)).values().float().mean(-1).cpu(), torch.zeros(8, 2),
                               atol=1e-3, rtol=0)  # fmt: skip


def test_the_encoders_fast_path_skips_padding() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2).eval()
    data, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    with torch.no_grad():
        here = encoder(data, src_key_padding_mask=padding)
        there = encoder.cuda()(data.cuda(), src_key_padding_mask=padding.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- others
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "Adagrad"])
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": True, "maximize": True}], ids=str)
def test_optimisers_in_one_launch(kind: str, options: dict) -> None:
    extra = {"SGD": {"momentum": 0.9, "nesterov": True}, "Adagrad": {"lr_decay": 0.01}}.get(kind, {"amsgrad": True})
    torch.manual_seed(0)
    start = [torch.randn(3, 5), torch.randn(7)]
    results = []
    for device, given in (("cpu", {"maximize": options.get("maximize", False)}), ("cuda", options)):
        leaves = [value.to(device, copy=True).requires_grad_() for value in start]
        optimiser = getattr(torch.optim, kind)(leaves, lr=0.1, weight_decay=0.01, **extra, **given)
        for _ in range(4):
            optimiser.zero_grad()
            sum(leaf.sin().sum() for leaf in leaves).backward()
            optimiser.step()
        results.append([leaf.detach().cpu() for leaf in leaves])
    for one, other in zip(*results):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_capturable_optimisers_keep_their_steps_on_the_device() -> None:
    leaf = torch.ones(3, device="cuda", requires_grad=True)
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Rprop):
        optimiser = kind([leaf], lr=0.1, capturable=True)
        leaf.square().sum().backward()
        optimiser.step()
        assert optimiser.state[leaf]["step"].is_cuda and optimiser.state[leaf]["step"].item() == 1


@pytest.mark.parametrize("name", """
    cholesky qr svd eigh eig lu lu_factor ldl_factor inv solve lstsq pinv det matrix_exp
""".split())  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_linear_algebra(name: str, dtype: torch.dtype) -> None:
    """Each factorisation multiplied out again."""
    torch.manual_seed(0)
    a = torch.randn(2, 4, 4, dtype=dtype, device="cuda")
    symmetric = a @ a.mH + 4 * torch.eye(4, device="cuda")
    b = torch.randn(2, 4, 3, dtype=dtype, device="cuda")
    unit = torch.eye(4, dtype=dtype, device="cuda").expand(2, 4, 4)
    linalg = torch.linalg
    if name == "cholesky":
        factor = linalg.cholesky(symmetric)
        pair = factor @ factor.mH, symmetric
        torch.testing.assert_close(torch.cholesky_solve(b, factor), linalg.solve(symmetric, b), rtol=1e-3, atol=1e-4)
    elif name == "qr":
        q, r = linalg.qr(a)
        pair = torch.cat((q @ r, q.mH @ q)), torch.cat((a, unit))
    elif name == "svd":
        u, s, v = linalg.svd(a)
        pair = (u * s.unsqueeze(-2)) @ v, a
    elif name == "eigh":
        values, vectors = linalg.eigh(symmetric)
        pair = symmetric @ vectors, vectors * values.unsqueeze(-2)
    elif name == "eig":
        values, vectors = linalg.eig(a)
        pair = a.to(vectors.dtype) @ vectors, vectors * values.unsqueeze(-2)
    elif name == "lu":
        p, lower, upper = linalg.lu(a)
        pair = p @ lower @ upper, a
    elif name == "lu_factor":
        factors, pivots = linalg.lu_factor(a)
        pair = a @ linalg.lu_solve(factors, pivots, b), b
    elif name == "ldl_factor":
        factors, pivots = linalg.ldl_factor(symmetric, hermitian=True)
        pair = symmetric @ linalg.ldl_solve(factors, pivots, b, hermitian=True), b
    elif name == "inv":
        pair = a @ linalg.inv(a), unit
    elif name == "solve":
        pair = a @ linalg.solve(a, b), b
    elif name == "lstsq":
        pair = a @ linalg.lstsq(a, b).solution, b
    elif name == "pinv":
        pair = a @ linalg.pinv(a) @ a, a
    elif name == "det":
        pair = linalg.det(symmetric), linalg.eigvalsh(symmetric).prod(-1).to(dtype)
    else:
        pair = linalg.matrix_exp(a) @ linalg.matrix_exp(-a), unit
    assert pair[0].is_cuda
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-3, atol=2e-3)


def test_singular_matrices_raise_as_linear_algebra_does() -> None:
    zeros = torch.zeros(3, 3, device="cuda")
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        torch.linalg.inv(zeros)
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        torch.linalg.cholesky(zeros)
    assert torch.linalg.inv_ex(zeros).info.item() > 0


def test_counts_and_places() -> None:
    x = torch.tensor([1, 2, 2, 5], device="cuda")
    assert torch.bincount(x, minlength=7).tolist() == [0, 1, 2, 0, 0, 1, 0]
    assert torch.bincount(x, torch.ones(4, device="cuda") / 2).tolist() == [0, 0.5, 1, 0, 0, 0.5]
    assert torch.histc(x.float(), 4, 1, 5).tolist() == [1, 2, 0, 1] and torch.histc(x, 4, 1, 5).tolist() == [1, 2, 0, 1]
    table = torch.zeros(3, device="cuda")
    table.index_put_((torch.tensor([0, 0, 2], device="cuda"),), torch.tensor([1.0, 2.0, 4.0], device="cuda"), True)
    assert table.tolist() == [3, 0, 4]
    points = torch.randn(5, 3), torch.randn(4, 3)
    for p in (1.0, 2.0, float("inf")):
        found = torch.cdist(points[0].cuda(), points[1].cuda(), p)
        expected = np.stack([[np.linalg.norm(a - b, p) for b in points[1].numpy()] for a in points[0].numpy()])
        torch.testing.assert_close(found.cpu(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(mode: str) -> None:
    table = torch.randn(6, 3)
    bags, starts = torch.tensor([1, 2, 4, 4, 5]), torch.tensor([0, 2, 2])
    leaf = table.cuda().requires_grad_()
    found = F.embedding_bag(bags.cuda(), leaf, starts.cuda(), mode=mode)
    groups = [table[[1, 2]], table[[]], table[[4, 4, 5]]]
    reduce = {"sum": lambda g: g.sum(0), "mean": lambda g: g.mean(0), "max": lambda g: g.amax(0)}[mode]
    expected = torch.stack([reduce(group) if len(group) else torch.zeros(3) for group in groups])
    torch.testing.assert_close(found.detach().cpu(), expected)
    found.sum().backward()
    assert leaf.grad[0].tolist() == [0, 0, 0] and leaf.grad.abs().sum() > 0
    if mode == "sum":
        assert leaf.grad[4].tolist() == [2, 2, 2]


@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_ctc_loss_under_cudnns_conditions(place: str) -> None:
    """Targets and lengths as int32 on the host are what cuDNN takes; the loss is the same either way."""
    torch.manual_seed(0)
    scores = torch.randn(12, 2, 5).log_softmax(-1)
    targets, lengths = torch.randint(1, 5, (6,), dtype=torch.int32), torch.tensor([3, 3], dtype=torch.int32)
    steps = torch.tensor([12, 12], dtype=torch.int32)
    here, there = scores.clone().requires_grad_(), scores.cuda().requires_grad_()
    expected = F.ctc_loss(here, targets, steps, lengths)
    found = F.ctc_loss(there, targets.to(place), steps.to(place), lengths.to(place))
    torch.testing.assert_close(found.cpu(), expected)
    expected.backward()
    found.backward()
    torch.testing.assert_close(there.grad.cpu(), here.grad)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_grids_are_sampled(mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    image, grid = torch.randn(2, 3, 5, 6).to(dtype), (torch.rand(2, 4, 4, 2) * 2.2 - 1.1).to(dtype)
    given = image.cuda().requires_grad_(), grid.cuda().requires_grad_()
    wide = image.float().requires_grad_(), grid.float().requires_grad_()
    found = F.grid_sample(*given, mode=mode, padding_mode="reflection", align_corners=False)
    expected = F.grid_sample(*wide, mode=mode, padding_mode="reflection", align_corners=False)
    loose = 1e-4 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(found.float().cpu(), expected, rtol=loose, atol=loose)
    if mode == "bilinear" and dtype is torch.float32:
        found.sum().backward()
        expected.sum().backward()
        for one, other in zip(wide, given):
            torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-3, atol=1e-3)


def test_half_transforms_are_powers_of_two() -> None:
    signal = torch.randn(4, 16)
    found = torch.fft.rfft(signal.half().cuda())
    assert found.dtype is torch.complex32
    torch.testing.assert_close(found.cpu().to(torch.complex64), torch.fft.rfft(signal), rtol=1e-2, atol=2e-2)
    back = torch.fft.irfft(found)
    assert back.dtype is torch.float16
    torch.testing.assert_close(back.float().cpu(), signal, rtol=1e-2, atol=1e-2)
    with pytest.raises(RuntimeError, match="cuFFT only supports dimensions whose sizes are powers of two"):
        torch.fft.fft(torch.randn(10, device="cuda").half())


def test_quantised_tensors_are_refused_and_imitations_work() -> None:
    with pytest.raises(NotImplementedError, match="quantised tensors cannot be moved to a virtual GPU"):
        torch.quantize_per_tensor(torch.randn(3, device="cuda"), 0.1, 0, torch.quint8)
    x = torch.tensor([0.04, 0.06, 30.0, -1.0], device="cuda", requires_grad=True)
    found = torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255)
    torch.testing.assert_close(found.detach().cpu(), torch.tensor([0.0, 0.1, 25.5, 0.0]))
    found.sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
