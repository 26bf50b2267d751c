"""C++ extensions with CUDA sources: cut in two, compiled by the C++ compiler and NVRTC, held against PyTorch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import weft  # noqa: E402
from weft.errors import CompileError, IllegalAddressError, UnsupportedError  # noqa: E402
from weft.frontends.cuda_cpp import compile_cuda  # noqa: E402
from weft.frontends.cuda_cpp.toolkit import find_toolkit  # noqa: E402
from weft.frontends.torch.cuda_sources import split_source  # noqa: E402

SOURCES = Path(__file__).parent / "torch_sources"
needs_nvrtc = pytest.mark.skipif(find_toolkit(os.environ) is None, reason="NVRTC is not installed")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("ninja") and find_toolkit(os.environ)),
    reason="extensions need a C++ compiler, ninja and NVRTC",
)


@pytest.fixture(scope="module", autouse=True)
def gpu() -> weft.Device:
    return weft.install("h100", children=False)


# ---------------------------------------------------------------- cutting sources in two
@pytest.mark.parametrize(("text", "host"), [
    ("k<<<1, 2>>>(x);", "(::weft::configure(1, 2), k(x));"),
    ("ns::k<float, 4><<<g, b, 16, s>>>(f(x), y);", "(::weft::configure(g, b, 16, s), ns::k<float, 4>(f(x), y));"),
    ("if (a) k<<<1, 2>>>(); else ::k<<<3, 4>>>();",
     "if (a) (::weft::configure(1, 2), k()); else (::weft::configure(3, 4), ::k());"),
    ("k<A<B<int>>><<<(a > b ? 1 : 2), dim3(1, 2)>>>(x);",
     "(::weft::configure((a > b ? 1 : 2), dim3(1, 2)), k<A<B<int>>>(x));"),
    ("D(t, [&] { k<scalar_t><<<1, 2>>>(x); });", "D(t, [&] { (::weft::configure(1, 2), k<scalar_t>(x)); });"),
    ("(*table[i])<<<1, 2>>>(x);", "(::weft::configure(1, 2), (*table[i])(x));"),
    ('auto s = "k<<<1, 2>>>(x)"; // k<<<1, 2>>>(x)', 'auto s = "k<<<1, 2>>>(x)"; // k<<<1, 2>>>(x)'),
])  # fmt: skip
def test_launches_become_calls(text: str, host: str) -> None:
    halves = split_source(f"void f() {{ {text}\n}}", "f.cu")
    assert halves.host == f"void f() {{ {host}\n}}"
    assert halves.device.strip() == ""


@pytest.mark.parametrize(("parameters", "names"), [
    ("", ()), ("void", ()), ("float* x, int n", ("x", "n")), ("const T* __restrict__ x, A<B, 2> a", ("x", "a")),
    ("float (*f)(float), int t[4]", ("f", "t")), ("Ts... xs", ("xs...",)),
    ("int, unsigned int n = 3", ("weft_parameter_0", "n")), ("unsigned int", ("weft_parameter_0",)),
    ("const at::Half*, ns::T", ("weft_parameter_0", "weft_parameter_1")),
])  # fmt: skip
def test_stubs_name_every_parameter(parameters: str, names: tuple[str, ...]) -> None:
    halves = split_source(f"__global__ void k({parameters}) {{ body(); }}", "f.cu")
    assert halves.kernels == {"k"}
    assert "{nullptr" + "".join(f", (void*)&{name}" for name in names) + "}" in halves.host
    assert "body" not in halves.host and "body();" in halves.device


def test_each_side_gets_its_own() -> None:
    text = (SOURCES / "filters.cu").read_text()
    halves = split_source(text, "filters.cu")
    assert halves.kernels == {"row_energy", "weigh", "where", "reduce", "add_to_each", "fail"}
    assert text.count("\n") == halves.host.count("\n") == halves.device.count("\n")
    assert "TORCH_LIBRARY" not in halves.device and "at::Tensor" not in halves.device
    assert "kThreads = 128" in halves.device and "__constant__ float weights[4];" in halves.device
    assert "__syncthreads" not in halves.host and "<<<" not in halves.host.replace('"<<<"', "")


@needs_nvrtc
def test_macros_that_stand_for_qualifiers() -> None:
    text = "#define HD __host__ __device__\n#define DEV __device__ inline\n"
    text += "HD int a() { return 1; }\nDEV int b() { return 2; }\n"
    text += "#define KERNEL(name) __global__ void name(int* x) { \\\n  x[0] = a(); }\nKERNEL(first)\n"
    text += "int c() { return 3; }\n"
    halves = split_source(text, "f.cu")
    assert "return 1" in halves.host and "return 2" not in halves.host and "return 3" in halves.host
    assert "return 1" in halves.device and "return 2" in halves.device and "return 3" not in halves.device
    assert "KERNEL(first)" in halves.device and "x[0]" not in halves.host
    assert "first" in compile_cuda(halves.device, compiler="nvrtc", options=["-default-device"]).kernels


def test_structs_members_and_device_lambdas() -> None:
    halves = split_source(
        "struct A { int n; __device__ explicit A(int m) : n{m} {} __device__ int get() const { return n; } };\n"
        "struct B { std::vector<at::Tensor> all; };\n__device__ int seen = 3;\n", "f.cu",
    )  # fmt: skip
    assert "__device__ explicit A(int m);" in halves.host and "get() const { __builtin_trap(); }" in halves.host
    assert "struct B" not in halves.device and "int seen = 3;" in halves.device


def test_device_wide_algorithms_are_refused() -> None:
    for call in ("thrust::sort(thrust::device, p, p + n);", "cub::DeviceReduce::Sum(t, b, p, q, n);"):
        with pytest.raises(UnsupportedError, match=r"f\.cu:2: .*::\w+ in host code"):
            split_source(f"void f(float* p, int n) {{\n  {call}\n}}", "f.cu")
    halves = split_source(
        "using Scan = cub::BlockScan<int, 64>;\n__device__ int f(cg::grid_group g) { return 1; }", "f.cu"
    )
    assert halves.host.strip() == "" and "BlockScan" in halves.device


def test_a_launch_of_no_kernel_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"f\.cu:2: found a launch"):
        split_source("void f() {\n  <<<1, 2>>>(x); }", "f.cu")


# ---------------------------------------------------------------- a built extension
@pytest.fixture(scope="module")
def filters(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from torch.utils.cpp_extension import load

    base = tmp_path_factory.getbasetemp()
    # Processes of one run share the build: PyTorch's lock lets one of them do it.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "weft_filters"
    folder.mkdir(exist_ok=True)
    with torch._subclasses.FakeTensorMode():
        shape_only = torch.empty(3, device="cuda")  # among the tensors that live, but without memory
    made = load("weft_test_filters", [str(SOURCES / "filters.cu")], build_directory=str(folder), extra_cflags=["-O0"])
    assert shape_only.device.type == "cuda"
    return made


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dispatch_by_type(filters: Any, dtype: torch.dtype) -> None:
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = x.double().clamp_min(0).square().sum(1).to(dtype)
    torch.testing.assert_close(filters.energy(x.cuda()).cpu(), want)
    torch.testing.assert_close(
        filters.energy(x.cuda().t()).cpu(), x.t().double().clamp_min(0).square().sum(1).to(dtype)
    )
    torch.testing.assert_close(torch.ops.weft_filters.energy(x.cuda()).cpu(), want)


@needs_compiler
@pytest.mark.slow
def test_functors_tables_grids_and_the_runtime(filters: Any) -> None:
    x = torch.randn(1000, device="cuda")
    torch.testing.assert_close(filters.scaled(x, 3.0), x * 3)
    torch.testing.assert_close(filters.scaled(x[10:50], 0.5), x[10:50] / 2)
    table = torch.tensor([1.0, 2.0, 4.0, 8.0])
    torch.testing.assert_close(filters.weighed(x, table.tolist()).cpu(), x.cpu() * table.repeat(250))
    places = filters.grid_places().cpu()
    assert places.tolist() == [[[100 * y + 10 * b + t for t in range(4)] for b in range(3)] for y in range(2)]
    torch.testing.assert_close(filters.reduced(x, True), x.max().view(1))
    torch.testing.assert_close(filters.reduced(x, False), 2 * x.sum().view(1), rtol=1e-4, atol=1e-4)
    lists = [torch.zeros(10, device="cuda") for _ in range(4)]
    filters.add_numbers(lists)
    assert [each.tolist() for each in lists] == [[float(k)] * 10 for k in range(4)]
    assert filters.own_stream(x) == pytest.approx(2 * x[0].item())
    chip = weft.find_chip("h100")
    assert filters.questions() == [1024, 2, chip.sm_count, chip.sm_count, 1]


@needs_compiler
@pytest.mark.slow
def test_kernels_are_on_the_streams_of_the_timeline(filters: Any) -> None:
    from weft import timeline

    x, stream = torch.randn(3, 4, device="cuda"), torch.cuda.Stream()
    filters.energy(x)
    with torch.cuda.stream(stream):
        filters.energy(x)
    spans = [span for span in timeline.current().spans() if "row_energy" in span.name]
    assert [span.stream for span in spans[-2:]] == [0, stream.stream_id]


@needs_compiler
@pytest.mark.slow
def test_graphs_replay_an_extensions_kernels(filters: Any) -> None:
    x = torch.arange(8.0, device="cuda")
    graph = torch.cuda.CUDAGraph()
    filled = torch.zeros(4, dtype=torch.uint8, device="cuda")
    with torch.cuda.graph(graph):
        y = filters.scaled(filters.scaled(x, 2.0), 0.5) + 1  # what is between has no other owner than the graph
        filters.fill_bytes(filled, 7)
    filled.zero_()
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [6.0] * 8
    assert filled.tolist() == [7] * 4
    assert x.tolist() == [5.0] * 8


@needs_compiler
@pytest.mark.slow
def test_errors_pass_through_the_extension(filters: Any) -> None:
    with pytest.raises(RuntimeError, match="x must be a CUDA tensor"):
        filters.energy(torch.randn(2, 2))
    with pytest.raises(torch.AcceleratorError, match="operation not permitted when stream is capturing"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            filters.own_stream(torch.ones(1, device="cuda"))
    with pytest.raises(IllegalAddressError, match=r"kernel _Z4failPf, at .*filters\.cu:\d+"):
        filters.broken()
    assert filters.scaled(torch.ones(2, device="cuda"), 4.0).tolist() == [4.0, 4.0]


# ---------------------------------------------------------------- what is outside
def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.cpp_extension import load

    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match=r"no C\+\+ compiler was found \(no-such-compiler\)"):
        load("weft_test_nothing", [str(SOURCES / "filters.cu")], build_directory=str(tmp_path))


def test_ahead_of_time_builds_are_refused() -> None:
    from torch.utils.cpp_extension import CUDAExtension

    with pytest.raises(UnsupportedError, match="load_inline"):
        CUDAExtension("x", ["x.cu"])
