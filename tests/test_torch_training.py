"""Whole programs in PyTorch on a virtual GPU: what they compute and learn, against the CPU's results."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import weft  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def gpu() -> weft.Device:
    device = weft.install("h100", children=False)
    torch.backends.cudnn.allow_tf32 = False  # results are held against the CPU's, which has no TF32
    return device


class Block(nn.Module):
    """A transformer's block as nanoGPT has it."""

    def __init__(self, size: int = 32, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, size = x.shape
        parts = self.qkv(self.norm1(x)).split(size, 2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, size))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    def __init__(self, words: int = 40, size: int = 32):
        super().__init__()
        self.embed = nn.Embedding(words, size)
        self.blocks = nn.ModuleList(Block(size) for _ in range(2))
        self.head = nn.Linear(size, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.cpu() for parameter in model.parameters()]


def test_gradients_equal_the_cpus() -> None:
    torch.manual_seed(0)
    here = Gpt()
    there = copy.deepcopy(here).cuda()
    tokens = torch.randint(0, 40, (3, 9))
    losses = []
    for model, given in ((here, tokens), (there, tokens.cuda())):
        loss = F.cross_entropy(model(given[:, :-1]).flatten(0, 1), given[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for one, other in zip(gradients(here), gradients(there)):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gpt_learns_with_mixed_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Gpt().cuda()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
    scaler = torch.amp.GradScaler(enabled=dtype is torch.float16)
    tokens = torch.randint(0, 40, (4, 12), device="cuda")
    losses = []
    for _ in range(15):
        with torch.autocast("cuda", dtype=dtype):
            scores = model(tokens[:, :-1])
            assert scores.dtype is dtype
            loss = F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1, losses


def test_a_step_that_overflows_is_skipped() -> None:
    weight = nn.Parameter(torch.ones(2, device="cuda"))
    optimiser = torch.optim.SGD([weight], 0.1)
    scaler = torch.amp.GradScaler()
    scaler.scale((weight * float("inf")).sum()).backward()
    scaler.step(optimiser)
    scaler.update()
    assert weight.tolist() == [1, 1] and scaler.get_scale() == 32768


def test_convolutional_network_channels_last() -> None:
    torch.manual_seed(0)
    here = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    there = copy.deepcopy(here).to("cuda", memory_format=torch.channels_last)
    images, labels = torch.randn(4, 3, 12, 12), torch.tensor([0, 1, 2, 3])
    for model, device in ((here, "cpu"), (there, "cuda")):
        given = images.to(device).to(memory_format=torch.channels_last)
        F.cross_entropy(model(given), labels.to(device)).backward()
    for one, other in zip(gradients(here), gradients(there)):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
    assert there[0](images.cuda()).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(here[1].running_mean, there[1].running_mean.cpu())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind: type) -> None:
    torch.manual_seed(1)
    here = kind(5, 6, num_layers=2, bidirectional=True, batch_first=True)
    there = copy.deepcopy(here).cuda()
    there.flatten_parameters()
    data = torch.randn(3, 7, 5)
    for model, given in ((here, data), (there, data.cuda())):
        output, _ = model(given)
        output.square().sum().backward()
    torch.testing.assert_close(there(data.cuda())[0].cpu(), here(data)[0])
    for one, other in zip(gradients(here), gradients(there)):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    packed = nn.utils.rnn.pack_padded_sequence(data, [7, 5, 2], batch_first=True)
    padded = [
        nn.utils.rnn.pad_packed_sequence(model(one)[0], batch_first=True)[0]
        for model, one in ((here, packed), (there, packed.to("cuda")))
    ]
    torch.testing.assert_close(padded[1].cpu(), padded[0])


def test_dropout_between_recurrent_layers_is_the_devices() -> None:
    model = nn.LSTM(4, 4, num_layers=2, dropout=0.5).cuda()
    data = torch.randn(3, 2, 4, device="cuda")
    before = torch.get_rng_state()
    torch.cuda.manual_seed(3)
    one = model(data)[0]
    torch.cuda.manual_seed(3)
    assert torch.equal(one, model(data)[0]) and not torch.equal(one, model(data)[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_recurrent_cells(kind: type) -> None:
    here = kind(5, 6)
    there = copy.deepcopy(here).cuda()
    data = torch.randn(2, 5)
    for model, given in ((here, data), (there, data.cuda())):
        result = model(given)
        (result[0] if kind is nn.LSTMCell else result).square().sum().backward()
    for one, other in zip(gradients(here), gradients(there)):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- attention
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_attention(dtype: torch.dtype, mask: str) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 8, 16, dtype=dtype) for _ in range(3)]
    bias = {"bool": torch.ones(8, 8).tril().bool(), "float": torch.randn(8, 8, dtype=dtype)}.get(mask)
    results = []
    for device in ("cpu", "cuda"):
        given = [tensor.detach().to(device).requires_grad_() for tensor in inputs]
        moved = None if bias is None else bias.to(device)
        output = F.scaled_dot_product_attention(*given, moved, is_causal=mask == "causal")
        output.float().square().sum().backward()
        results.append([output.detach().cpu(), *(tensor.grad.cpu() for tensor in given)])
    loose = 2e-2 if dtype is torch.float16 else 1e-4
    for one, other in zip(*results):
        torch.testing.assert_close(other, one, rtol=loose, atol=loose)


def test_attention_with_grouped_heads_and_dropout() -> None:
    query = torch.randn(1, 4, 6, 8, device="cuda", dtype=torch.float16, requires_grad=True)
    key, value = (torch.randn(1, 2, 6, 8, device="cuda", dtype=torch.float16, requires_grad=True) for _ in range(2))
    output = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    wide = [tensor.detach().float().cpu().repeat_interleave(2, 1) for tensor in (key, value)]
    expected = F.scaled_dot_product_attention(query.detach().float().cpu(), *wide)
    torch.testing.assert_close(output.float().cpu(), expected, rtol=1e-2, atol=1e-2)
    output.sum().backward()
    assert key.grad.shape == key.shape
    torch.manual_seed(5)
    one = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5, enable_gqa=True)
    torch.manual_seed(5)
    other = F.scaled_dot_product_attention(query, key, value, dropout_p=0.5, enable_gqa=True)
    assert torch.equal(one, other)
    one.sum().backward()


def test_attention_backends_are_chosen_as_on_a_gpu() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q = torch.randn(1, 2, 4, 8, device="cuda")
    with sdpa_kernel(SDPBackend.MATH):
        F.scaled_dot_product_attention(q, q, q)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with pytest.raises(RuntimeError, match="No available kernel. Aborting execution."):
            F.scaled_dot_product_attention(q, q, q)  # flash takes no float32
        F.scaled_dot_product_attention(q.half(), q.half(), q.half())


# ---------------------------------------------------------------- operators that only CUDA has
def test_scaled_mm() -> None:
    one = torch.randn(16, 32).to(torch.float8_e4m3fn)
    other = torch.randn(24, 32).to(torch.float8_e4m3fn)
    scales = torch.tensor(0.5), torch.tensor(2.0)
    found = torch._scaled_mm(
        one.cuda(), other.cuda().t(), scales[0].cuda(), scales[1].cuda(), out_dtype=torch.bfloat16
    )  # fmt: skip
    torch.testing.assert_close(found.float().cpu(), one.float() @ other.float().t(), rtol=1e-2, atol=5e-2)
    by_row = torch._scaled_mm(
        one.cuda(), other.cuda().t(), torch.rand(16, 1).cuda(), torch.rand(1, 24).cuda(), out_dtype=torch.float32
    )
    assert by_row.shape == (16, 24)


def test_batch_norm_across_processes() -> None:
    aten = torch.ops.aten
    data = torch.randn(4, 3, 5, 5, device="cuda")
    mean, invstd = torch.batch_norm_stats(data, 1e-5)
    torch.testing.assert_close(mean, data.mean((0, 2, 3)))
    counts = torch.tensor([100.0, 100.0], device="cuda")
    both = torch.stack((mean, mean)), torch.stack((invstd, invstd))
    whole, inverse = aten.batch_norm_gather_stats_with_counts(data, *both, None, None, 0.1, 1e-5, counts)
    torch.testing.assert_close(whole, mean)
    normalised = aten.batch_norm_elemt(data, None, None, whole, inverse, 1e-5)
    torch.testing.assert_close(normalised, F.batch_norm(data, None, None, training=True), rtol=1e-4, atol=1e-4)


def test_rms_norm_and_its_gradient() -> None:
    data, weight = torch.randn(3, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    moved = [tensor.detach().cuda().requires_grad_() for tensor in (data, weight)]
    F.rms_norm(data, (8,), weight).square().sum().backward()
    F.rms_norm(moved[0], (8,), moved[1]).square().sum().backward()
    for one, other in zip((data, weight), moved):
        torch.testing.assert_close(other.grad.cpu(), one.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}], ids=str)
def test_optimisers_equal_the_cpus(options: dict) -> None:
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop):
        parameters = [nn.Parameter(torch.arange(1.0, 4)), nn.Parameter(torch.arange(1.0, 4).cuda())]
        try:
            optimisers = [kind([parameters[0]], lr=0.1), kind([parameters[1]], lr=0.1, **options)]
        except TypeError:
            continue  # this optimiser has no such option
        for _ in range(3):
            for parameter, optimiser in zip(parameters, optimisers):
                optimiser.zero_grad()
                parameter.square().sum().backward()
                optimiser.step()
        torch.testing.assert_close(parameters[1].data.cpu(), parameters[0].data, rtol=1e-5, atol=1e-6)


def test_ctc_grid_sample_and_sparse() -> None:
    scores = torch.randn(10, 2, 5, device="cuda").log_softmax(-1).requires_grad_()
    F.ctc_loss(scores, torch.randint(1, 5, (2, 3), device="cuda"), (10, 10), (3, 3)).backward()
    assert scores.grad.abs().sum() > 0
    image, grid = torch.randn(1, 1, 4, 4), torch.rand(1, 3, 3, 2)
    found = F.grid_sample(image.cuda(), grid.cuda(), align_corners=True)
    torch.testing.assert_close(found.cpu(), F.grid_sample(image, grid, align_corners=True))
    embedding = nn.Embedding(5, 3, sparse=True).cuda()
    embedding(torch.tensor([0, 1, 0], device="cuda")).sum().backward()
    assert embedding.weight.grad.is_sparse and embedding.weight.grad.to_dense()[0].tolist() == [2, 2, 2]
    torch.optim.SparseAdam(list(embedding.parameters())).step()
    for layout in (torch.sparse_coo, torch.sparse_csr):
        matrix = torch.eye(3).to_sparse(layout=layout)
        torch.testing.assert_close((matrix.cuda() @ torch.ones(3, 2, device="cuda")).cpu(), torch.ones(3, 2))


# ---------------------------------------------------------------- autograd and functions
def test_autograd_beyond_backward() -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(4, 3, device="cuda", requires_grad=True)
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.ReLU()).cuda()
    for reentrant in (False, True):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    with torch.autograd.graph.save_on_cpu(pin_memory=True):
        loss = (x * x).sum()
    loss.backward()
    double = torch.randn(3, device="cuda", dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: (t.exp() * t).sum(), double)
    assert torch.autograd.gradgradcheck(lambda t: (t**3).sum(), double)

    class Exponential(torch.autograd.Function):
        @staticmethod
        def forward(ctx, given):
            ctx.save_for_backward(given.exp())
            return given.exp()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0]

    x.grad = None
    Exponential.apply(x).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().exp())


def test_function_transforms() -> None:
    def loss(weight, data):
        return torch.sin(data @ weight).sum()

    weight, data = torch.randn(3, 3), torch.randn(5, 3)
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    found = per_sample(weight.cuda(), data.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), per_sample(weight, data))
    hessian = torch.func.hessian(lambda x: (x**3).sum())(data[0].cuda())
    torch.testing.assert_close(hessian.cpu(), torch.diag(6 * data[0]))


def test_exceptions_in_hooks_leave_everything_usable() -> None:
    x = torch.ones(2, device="cuda", requires_grad=True)

    def fail(_):
        raise ValueError("from a hook")

    handle = x.register_hook(fail)
    with pytest.raises(ValueError, match="from a hook"):
        (x * 2).sum().backward()
    handle.remove()
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_scripts_and_traces() -> None:
    @torch.jit.script
    def function(a, b):
        return torch.relu(a @ b) + 1

    a = torch.randn(2, 2, device="cuda")
    torch.testing.assert_close(function(a, a), torch.relu(a @ a) + 1)
    traced = torch.jit.trace(nn.Linear(2, 2).cuda(), a)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file, map_location="cuda")(a), traced(a))


def test_data_loader_with_workers_and_pinned_memory() -> None:
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.randn(16, 4), torch.arange(16))
    total = 0
    for features, labels in DataLoader(data, 4, pin_memory=True, num_workers=1):
        assert features.is_pinned() and not torch.randn(2).is_pinned()
        total += int(labels.to("cuda", non_blocking=True).sum())
    assert total == sum(range(16))


def test_custom_operators_of_the_program() -> None:
    @torch.library.custom_op("weft_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert twice(torch.ones(2, device="cuda")).tolist() == [2, 2]
