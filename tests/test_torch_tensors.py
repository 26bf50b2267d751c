"""CUDA tensors of PyTorch on virtual GPUs: values against the CPU, views and changes in place, errors as a GPU's."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

import weft  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def gpu() -> weft.Device:
    return weft.install("h100", children=False)


def cuda(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cuda")


# ---------------------------------------------------------------- tensors
def test_a_tensor_says_where_it_is() -> None:
    x = torch.randn(3, 4, device="cuda")
    assert x.is_cuda and x.device == torch.device("cuda", 0) and x.get_device() == 0
    assert x.untyped_storage().device == torch.device("cuda", 0)
    assert type(x) is torch.Tensor and x.cpu().device.type == "cpu"
    assert (x @ x.T).shape == (3, 3)


def test_numpy_refuses() -> None:
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\)"):
        torch.ones(2, device="cuda").numpy()


@pytest.mark.parametrize("dtype", [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2,
], ids=str)  # fmt: skip
def test_every_type_goes_there_and_back(dtype: torch.dtype) -> None:
    host = torch.arange(6).to(dtype).view(2, 3)
    there = host.to("cuda")
    assert there.dtype is dtype and there.stride() == host.stride()
    assert torch.equal(there.cpu().view(torch.uint8), host.view(torch.uint8))


def test_strides_are_kept() -> None:
    x = torch.randn(2, 3, 4, 5, device="cuda").to(memory_format=torch.channels_last)
    assert x.stride() == (60, 1, 15, 3) and (x + 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.randn(1, 10, device="cuda").t().stride() == (1, 10)
    assert torch.empty_strided((3, 4), (1, 5), device="cuda").stride() == (1, 5)


def test_views_share_memory() -> None:
    x = torch.zeros(4, 4, device="cuda")
    x + 1  # a twin exists now
    rows, turned, flat = x[1:3], x.t(), x.view(16)
    rows.fill_(3)
    turned[0].add_(1)
    assert flat.sum().item() == 28 and x[3, 0].item() == 1
    assert rows.data_ptr() == x.data_ptr() + 4 * 4
    assert flat._base is not None and flat._is_view()


def test_conjugates_and_negatives_are_views() -> None:
    host = torch.randn(3, dtype=torch.complex64)
    x = host.to("cuda")
    assert x.conj().is_conj() and torch.equal((x.conj() * 2).cpu(), host.conj() * 2)
    assert torch.equal(x.conj().imag.cpu() + 0, host.conj().imag + 0)
    assert torch.equal(torch.view_as_real(x).cpu(), torch.view_as_real(host))


# ---------------------------------------------------------------- changes in place
def test_data_is_replaced() -> None:
    x = cuda(1, 2, 3)
    x + 1
    x.data = torch.ones(2, device="cuda")
    assert (x + 1).tolist() == [2, 2]


def test_shapes_change_in_place() -> None:
    x = torch.arange(6.0, device="cuda").view(2, 3)
    x + 0
    x.t_()
    assert (x + 0).shape == (3, 2)
    x.unsqueeze_(0).squeeze_(0).transpose_(0, 1)
    assert (x * 1).tolist() == [[0, 1, 2], [3, 4, 5]]
    x.as_strided_((2,), (3,))
    assert (x * 1).tolist() == [0, 3]


def test_resize_keeps_what_was_there() -> None:
    x = torch.arange(6.0, device="cuda")
    x + 0
    x.resize_(2, 2)
    assert (x + 0).tolist() == [[0, 1], [2, 3]]
    x.resize_(4, 5)
    assert (x + 0).shape == (4, 5) and x.flatten()[:6].tolist() == [0, 1, 2, 3, 4, 5]


def test_set_shares_the_storage() -> None:
    x, y = torch.arange(4.0, device="cuda"), torch.zeros(2, device="cuda")
    y + 0
    y.set_(x)
    assert y.tolist() == x.tolist() and y.data_ptr() == x.data_ptr()
    y.set_(x.untyped_storage(), 1, (2,))
    assert (y + 0).tolist() == [1, 2]
    with pytest.raises(RuntimeError, match="to a storage on different device"):
        y.set_(torch.zeros(3))


def test_storages_shrink_and_grow() -> None:
    x = torch.randn(1 << 20, device="cuda")
    view = x[5:]
    x + 0, view + 0
    before = torch.cuda.memory_allocated()
    storage = x.untyped_storage()
    storage.resize_(0)
    assert torch.cuda.memory_allocated() == before - (4 << 20) and storage.nbytes() == 0
    storage.resize_(4 << 20)
    x.copy_(torch.arange(1 << 20))
    assert view[0].item() == 5 and torch.cuda.memory_allocated() == before
    storage.resize_(8 << 20)  # moves: no tensor on it may read the old memory
    x.fill_(7)
    assert view[0].item() == 7 and (view + 0)[3].item() == 7 and x[1000].item() == 7


def test_out_arguments() -> None:
    x, y = cuda(1, 2, 3), cuda(4, 5, 6)
    out = torch.empty(0, device="cuda")
    assert torch.add(x, y, out=out) is out and out.tolist() == [5, 7, 9]
    out = torch.empty(3, device="cuda")
    address = out.data_ptr()
    torch.mul(x, y, out=out)
    assert out.tolist() == [4, 10, 18] and out.data_ptr() == address
    values, places = torch.empty(0, device="cuda"), torch.empty(0, dtype=torch.int64, device="cuda")
    torch.max(torch.stack((x, y)), 0, out=(values, places))
    assert values.tolist() == [4, 5, 6] and places.tolist() == [1, 1, 1]


# ---------------------------------------------------------------- copies of objects
def test_deepcopy_and_pickle() -> None:
    x = torch.randn(3, device="cuda", requires_grad=True)
    x.detach() + 1
    for made in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), torch.nn.Parameter(x.detach()).data.clone()):
        assert made.is_cuda and made.data_ptr() != x.data_ptr() and torch.equal(made, x)
    model = torch.nn.Linear(3, 3).cuda()
    model(x)
    again = copy.deepcopy(model)
    with torch.no_grad():
        again.weight.zero_()
    assert model.weight.abs().sum() > 0 and again(x).shape == (3,)


def test_checkpoints_are_bit_equal() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)).cuda()
    model(torch.randn(5, 4, device="cuda")).sum().backward()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    for place, kind in ((None, "cuda"), ("cpu", "cpu"), ("cuda:0", "cuda")):
        file.seek(0)
        found = torch.load(file, map_location=place)
        for name, value in model.state_dict().items():
            assert found[name].device.type == kind and torch.equal(found[name].cpu(), value.cpu()), name


def test_dlpack_shares_memory() -> None:
    x = cuda(1, 2, 3)
    y = torch.from_dlpack(x)
    y[0] = 9
    assert x[0].item() == 9 and y.is_cuda and x.__cuda_array_interface__["data"][0] == x.data_ptr()


def test_old_types() -> None:
    x = torch.cuda.FloatTensor([1, 2])
    assert x.type() == "torch.cuda.FloatTensor" and isinstance(x, torch.cuda.FloatTensor)
    assert torch.cuda.LongTensor(2, 3).shape == (2, 3) and torch.ones(2).type(torch.cuda.HalfTensor).is_cuda


# ---------------------------------------------------------------- errors
def test_tensors_on_two_devices() -> None:
    there, here = torch.randn(2, 2, device="cuda"), torch.randn(2, 2)
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu!"):
        there + here
    with pytest.raises(RuntimeError, match="got mat2 is on cpu, different from other tensors on cuda:0 "
                                           r"\(when checking argument in method wrapper_CUDA_mm\)"):  # fmt: skip
        there @ here
    with pytest.raises(RuntimeError, match="got tensors is on cpu.*wrapper_CUDA_cat"):
        torch.cat((there, here))
    with pytest.raises(RuntimeError, match=r"Input type \(torch.FloatTensor\) and weight type \(torch.cuda"):
        torch.nn.Conv2d(1, 1, 1).cuda()(torch.randn(1, 1, 2, 2))
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        torch.ones(3)[torch.tensor([0], device="cuda")]
    assert (there * torch.tensor(2.0)).is_cuda and there[torch.tensor([0])].is_cuda  # scalars and indices may differ


def test_devices_that_are_not_there() -> None:
    for call in (lambda: torch.empty(2, device="cuda:3"), lambda: torch.cuda.set_device(5),
                 lambda: torch.zeros(2).to("cuda:1")):  # fmt: skip
        with pytest.raises(torch.AcceleratorError, match="CUDA error: invalid device ordinal"):
            call()


def test_modes_of_the_program_do_not_reach_kernels() -> None:
    with torch.device("cuda"):
        model = torch.nn.Linear(2, 2)
        assert model.weight.is_cuda and model(torch.randn(1, 2)).is_cuda
        assert torch.zeros(2, device="cpu").device.type == "cpu"
    with torch.inference_mode():
        x = torch.ones(3, device="cuda")
        assert x.is_inference() and (x + x).sum().item() == 6


def test_nothing_is_left_behind() -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    x = torch.randn(100, 100, device="cuda", requires_grad=True)
    loss = (x.view(-1)[5:] * 2).relu().sum()
    loss.backward()
    kept = x.detach().t()
    del x, loss
    assert torch.cuda.memory_allocated() == before + 40448  # the view holds the storage: 40,000 bytes, rounded
    del kept
    gc.collect()
    assert torch.cuda.memory_allocated() == before
