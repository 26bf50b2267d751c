"""Kernels and operators of a program's own on CUDA tensors: Weft's CUDA C++, Triton, torch.library, autograd."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from torch import Tensor  # noqa: E402

import weft  # noqa: E402
from weft import timeline  # noqa: E402
from weft.errors import IllegalAddressError, InvalidDevicePointerError  # noqa: E402
from weft.frontends.cuda_cpp.toolkit import find_toolkit  # noqa: E402

AXPY = """
template <class T> __global__ void axpy(T a, const T* x, T* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}
"""


@pytest.fixture(scope="module", autouse=True)
def gpu() -> weft.Device:
    return weft.install("h100", children=False)


needs_nvrtc = pytest.mark.skipif(find_toolkit(os.environ) is None, reason="NVRTC is not installed")


@pytest.fixture(scope="module")
def axpy(gpu: weft.Device) -> weft.Kernel:
    if find_toolkit(os.environ) is None:
        pytest.skip("NVRTC is not installed")
    return gpu.compile(AXPY, name_expressions=["axpy<float>"])["axpy"]


# ---------------------------------------------------------------- Weft's kernels on tensors
def test_tensors_are_arguments(axpy: weft.Kernel) -> None:
    x, y = torch.randn(1000, device="cuda"), torch.zeros(1000, device="cuda", requires_grad=True)
    axpy[8, 128](2.0, x, y.detach(), 1000)
    torch.testing.assert_close(y.detach().cpu(), 2 * x.cpu())
    axpy[1, 10](1.0, x[990:], y.detach()[:10], 10)
    torch.testing.assert_close(y.detach()[:10], 2 * x[:10] + x[990:])


def test_kernels_run_on_the_current_stream(axpy: weft.Kernel) -> None:
    x, stream = torch.zeros(32, device="cuda"), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        axpy[1, 32](1.0, x, x, 32)
    span = timeline.current().spans()[-1]
    assert (span.name, span.stream) == (axpy.name, stream.stream_id)


def test_graphs_capture_them(axpy: weft.Kernel) -> None:
    x, z = torch.randn(64, device="cuda"), torch.zeros(64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        w = z * 1
        axpy[1, 64](1.0, x, w, 64)
    z.fill_(3)
    graph.replay()
    torch.testing.assert_close(w, x + 3)


def test_wrong_memory_is_refused(axpy: weft.Kernel) -> None:
    x = torch.ones(1000, device="cuda")
    with pytest.raises(TypeError, match="which is in host memory"):
        axpy[1, 32](1.0, x.cpu(), x, 32)
    other = weft.Device("h100").load(axpy.program.ptx)["axpy"]
    with pytest.raises(InvalidDevicePointerError, match=r"the tensor is on cuda:0.*weft\.virtual_device\(0\)"):
        other[1, 32](1.0, x, x, 32)
    with pytest.raises(IllegalAddressError, match=r"0 bytes past the end of array of shape \(1000,\), torch.float32"):
        axpy[40, 128](1.0, x, x, 5000)
    x.fill_(1)
    axpy[1, 32](1.0, x, x, 32)
    assert x[0].item() == 2


# ---------------------------------------------------------------- exchange without copies
@pytest.mark.parametrize("convert", [
    lambda array: torch.as_tensor(array, device="cuda"), lambda array: torch.asarray(array),
    lambda array: torch.from_dlpack(array), lambda array: torch.utils.dlpack.from_dlpack(array),
])  # fmt: skip
def test_arrays_become_tensors(gpu: weft.Device, convert: Callable) -> None:
    array = gpu.array(np.arange(12, dtype=np.float32).reshape(3, 4))
    before = torch.cuda.memory_allocated()
    tensor = convert(array)
    assert tensor.device == torch.device("cuda", 0) and tensor.data_ptr() == array.ptr
    tensor.mul_(2)
    np.testing.assert_array_equal(array.numpy(), 2 * np.arange(12).reshape(3, 4))
    assert torch.cuda.memory_allocated() == before  # the memory is Weft's
    torch.testing.assert_close(convert(array.T).cpu(), torch.from_numpy(array.numpy().T.copy()))


def test_tensors_become_arrays(gpu: weft.Device) -> None:
    tensor = torch.arange(12.0, device="cuda").view(3, 4)
    array = gpu.from_dlpack(tensor.t())
    assert array.shape == (4, 3) and array.ptr == tensor.data_ptr()
    array[0, 1] = 50
    assert tensor[1, 0].item() == 50
    copied = gpu.array(tensor)
    tensor.zero_()
    assert copied.numpy().sum() == 66 - 4 + 50


def test_interface_and_capsules_of_others() -> None:
    class Owner:
        """What another library's array looks like."""

        def __init__(self, tensor: Tensor):
            self.tensor = tensor
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__

    tensor = torch.arange(6, dtype=torch.int32, device="cuda")
    seen = torch.as_tensor(Owner(tensor), device="cuda")
    assert seen.is_cuda and seen.data_ptr() == tensor.data_ptr()
    assert tensor.__dlpack_device__() == (2, 0)
    capsule = torch.utils.dlpack.to_dlpack(tensor)
    assert torch.utils.dlpack.from_dlpack(capsule).data_ptr() == tensor.data_ptr()


# ---------------------------------------------------------------- compiled by PyTorch at run time
@needs_nvrtc
def test_compile_kernel() -> None:
    source = "template <class T> __global__ void add(const T* a, const T* b, T* c, int n, float s)"
    source += " { int i = threadIdx.x + blockIdx.x * blockDim.x; if (i < n) c[i] = a[i] + s * b[i]; }"
    kernel = torch.cuda._compile_kernel(source, "add<float>")
    a, b = torch.randn(2, 1000, device="cuda")
    c = torch.empty_like(a)
    kernel(grid=(4, 1, 1), block=(256, 1, 1), args=[a, b, c, 1000, 2.0])
    torch.testing.assert_close(c, a + 2 * b)
    with pytest.raises(ValueError, match="must be CUDA tensors"):
        kernel(args=[a.cpu(), b, c, 1000, 2.0])
    with pytest.raises(RuntimeError, match='Kernel compilation failed(.|\n)*identifier "x" is undefined'):
        torch.cuda._compile_kernel("__global__ void f() { x; }", "f")
    with pytest.raises(RuntimeError, match="requires 60000 bytes of shared memory"):
        kernel(args=[a, b, c, 1, 2.0], shared_mem=60000)
    kernel.set_shared_memory_config(60000)
    kernel(args=[a, b, c, 1, 2.0], shared_mem=60000)
    with pytest.raises(RuntimeError, match="exceeds device limit"):
        kernel.set_shared_memory_config(1 << 20)


@needs_nvrtc
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.complex64])
def test_jiterator(dtype: torch.dtype) -> None:
    from torch.cuda.jiterator import _create_jit_fn

    function = _create_jit_fn("template <class T> T f(T x, T y, T alpha) { return -x + alpha * y; }", alpha=1.0)
    x, y = (torch.randn(3, 4) * 3).to(dtype), (torch.randn(4) * 3).to(dtype)
    torch.testing.assert_close(function(x.cuda(), y.cuda(), alpha=2).cpu(), -x + 2 * y)
    torch.testing.assert_close(function(x.cuda().t(), y[:3].cuda()).cpu(), -x.t() + y[:3])


@needs_nvrtc
def test_jiterator_with_two_results() -> None:
    from torch.cuda.jiterator import _create_multi_output_jit_fn

    code = "template <class T> void f(T x, T y, T& a, T& b) { a = x + y; b = x - y; }"
    x, y = torch.randn(5, device="cuda"), torch.arange(5, device="cuda")
    total, difference = _create_multi_output_jit_fn(code, num_outputs=2)(x, y)
    torch.testing.assert_close(total, x + y)
    torch.testing.assert_close(difference, x - y)


# ---------------------------------------------------------------- Triton
@triton.jit
def double_kernel(x, y, n, stride, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + index, tl.load(x + index * stride, mask=index < n) * 2, mask=index < n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_on_views_and_streams(dtype: torch.dtype) -> None:
    x = torch.arange(64, device="cuda").to(dtype)[3::2][:20]
    y, stream = torch.empty(20, device="cuda", dtype=dtype), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        double_kernel[(1,)](x, y, 20, x.stride(0), BLOCK=32)
    torch.testing.assert_close(y, x * 2)
    spans = [span for span in timeline.current().spans() if span.name == "double_kernel"]
    assert spans[-1].stream == stream.stream_id


def test_triton_operators() -> None:
    from torch.library import triton_op, wrap_triton

    @triton_op("weft_custom::double", mutates_args={})
    def double(x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        wrap_triton(double_kernel)[(triton.cdiv(x.numel(), 64),)](x, y, x.numel(), 1, BLOCK=64)
        return y

    double.register_autograd(lambda ctx, grad: double(grad), setup_context=lambda ctx, inputs, output: None)
    x = torch.randn(100, device="cuda", requires_grad=True)
    y = double(x)
    y.sum().backward()
    torch.testing.assert_close(y, x * 2)
    torch.testing.assert_close(x.grad, torch.full_like(x, 2))


# ---------------------------------------------------------------- torch.library, autograd, transforms
def test_custom_operators() -> None:
    @torch.library.custom_op("weft_custom::scale", mutates_args=())
    def scale(x: Tensor, k: float) -> Tensor:
        return x * k

    @scale.register_fake
    def _(x: Tensor, k: float) -> Tensor:
        return torch.empty_like(x)

    def keep(ctx, inputs, output) -> None:
        ctx.k = inputs[1]

    scale.register_autograd(lambda ctx, grad: (grad * ctx.k, None), setup_context=keep)
    x = torch.randn(4, device="cuda", requires_grad=True)
    found = torch.library.opcheck(scale, (x, 3.0))
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4
    scale(x, 3.0).sum().backward()
    assert x.grad.tolist() == [3.0] * 4


def test_operators_for_cuda_only() -> None:
    @torch.library.custom_op("weft_custom::increment", mutates_args={"x"}, device_types="cuda")
    def increment(x: Tensor) -> None:
        x.add_(1)

    x = torch.zeros(3, device="cuda")
    increment(x)
    assert x.tolist() == [1, 1, 1]
    with pytest.raises(NotImplementedError, match="with arguments from the 'CPU' backend"):
        increment(torch.zeros(3))
    library = torch.library.Library("weft_custom_two", "DEF")
    library.define("negate(Tensor x) -> Tensor")
    library.impl("negate", lambda x: -x, "CUDA")
    assert torch.ops.weft_custom_two.negate(x).tolist() == [-1, -1, -1]


def test_autograd_functions_under_autocast(axpy: weft.Kernel) -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
        def forward(ctx, x: Tensor) -> Tensor:
            assert x.dtype is torch.float32 and not torch.is_autocast_enabled("cuda")
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            result = torch.zeros_like(x)
            axpy[1, 32](2.0, x * grad, result, x.numel())  # a kernel of ours in the backward's thread
            return result

    x = torch.randn(3, device="cuda", dtype=torch.float16, requires_grad=True)
    with torch.autocast("cuda", dtype=torch.float16):
        Square.apply(x).sum().backward()
    torch.testing.assert_close(x.grad, (2 * x).detach())


def test_function_transforms() -> None:
    def loss(w: Tensor, x: Tensor) -> Tensor:
        return (x @ w).tanh().sum()

    w, xs = torch.randn(3, 2), torch.randn(5, 4, 3)
    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(w.cuda(), xs.cuda())
    torch.testing.assert_close(got.cpu(), torch.stack([torch.func.grad(loss)(w, x) for x in xs]))
    hessian = torch.func.hessian(lambda v: (v**3).sum())(w.cuda())
    torch.testing.assert_close(hessian.cpu().view(6, 6), torch.diag(6 * w.flatten()))
    _, tangent = torch.func.jvp(torch.exp, (w.cuda(),), (w.cuda(),))
    torch.testing.assert_close(tangent.cpu(), w.exp() * w)


def test_export_keeps_the_device() -> None:
    model, x = torch.nn.Linear(3, 2).cuda(), torch.randn(4, 3, device="cuda")
    program = torch.export.export(model, (x,))
    got = program.module()(x)
    assert got.is_cuda
    torch.testing.assert_close(got, model(x))
