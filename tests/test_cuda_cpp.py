"""The CUDA C++ front end: compilers found and missing, options, errors, names, the cache. No kernel runs here."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
from cuda_cases import FOLDER, has_compiler

from weft.errors import CompileError, NoSuchKernelError
from weft.frontends.cuda_cpp import compile_cuda, demangle, find_compiler
from weft.frontends.cuda_cpp import names as cpp_names
from weft.frontends.cuda_cpp.cache import PtxCache, cache_key
from weft.frontends.cuda_cpp.clang import find_clang
from weft.frontends.cuda_cpp.headers import include_fingerprint
from weft.frontends.cuda_cpp.nvrtc import Compilation, Nvrtc
from weft.frontends.cuda_cpp.toolkit import find_toolkit
from weft.ptx.parser import parse_module

SCALE = """
template <typename T> __global__ void scale(T *x, T factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= factor;
}
__device__ int counter;
"""
COPY = 'extern "C" __global__ void copy(int *x) { x[threadIdx.x] = N; }'


@pytest.fixture(params=["nvrtc", "clang"])
def compiler(request):
    if not has_compiler(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


# ---------------------------------------------------------------- compiling
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.cu")), ids=lambda path: path.stem)
def test_every_file_compiles_and_parses(path, compiler):
    text = path.read_text()
    if compiler == "clang" and re.search(r"#include <(cub/|cooperative_groups|cuda/|mma\.h)", text):
        pytest.skip("needs NVIDIA's headers")
    program = compile_cuda(path, compiler=compiler)
    module = parse_module(program.ptx, str(path))
    assert set(module.kernels) == set(program.entries)
    assert f'"{path}"' in program.ptx  # line tables name the user's file


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_90a", "sm_100", "sm_120"])
def test_architectures(arch, compiler):
    try:
        ptx = compile_cuda(COPY, compiler=compiler, arch=arch, defines={"N": 1}).ptx
    except CompileError as error:
        assert "does not know" in str(error)  # an older clang
        pytest.skip(str(error).splitlines()[0])
    assert f".target {arch}" in ptx


@pytest.mark.parametrize("arch", ["hopper", "90", "sm_"])
def test_bad_architecture(arch, compiler):
    with pytest.raises(CompileError, match="expected sm_NN"):
        compile_cuda(COPY, compiler=compiler, arch=arch)


def test_architecture_that_nvrtc_does_not_know():
    if not has_compiler("nvrtc"):
        pytest.skip("nvrtc is not installed")
    with pytest.raises(CompileError, match="does not compile for sm_20; it knows sm_"):
        compile_cuda(COPY, compiler="nvrtc", arch="sm_20")


def test_defines(compiler):
    for defines in ({"N": 41}, ["N=41"]):
        assert re.search(r"\b41\b", compile_cuda(COPY, compiler=compiler, defines=defines).ptx)
    assert re.search(r"\b1;", compile_cuda(COPY, compiler=compiler, defines={"N": True}).ptx)


def test_standards(compiler):
    source = 'extern "C" __global__ void k(int *x) { auto f = []<class T>(T v) { return v; }; *x = f(7); }'
    assert ".entry k" in compile_cuda(source, compiler=compiler, std="c++20").ptx
    with pytest.raises(CompileError):
        compile_cuda('extern "C" __global__ void k(int *x) { if constexpr (true) *x = y; }', compiler=compiler)


def test_line_information(compiler):
    source = 'extern "C" __global__ void k(int *x) {\n  x[0] = 1;\n  x[1] = x[2];\n}\n'
    named = compile_cuda(source, compiler=compiler, file_name="dir/mine.cu").ptx
    assert ".loc" in named
    assert "mine.cu" in named
    assert ".loc" not in compile_cuda(source, compiler=compiler, lineinfo=False).ptx
    lines = {i.location.line for i in parse_module(named).kernels["k"].body if getattr(i, "location", None)}
    assert {2, 3} <= lines


@pytest.mark.parametrize("fused", [True, False])
def test_contraction(compiler, fused):
    source = 'extern "C" __global__ void k(float *x) { x[0] = x[1] * x[2] + x[3]; }'
    ptx = compile_cuda(source, compiler=compiler, options=() if fused else ("--fmad=false",)).ptx
    assert ("fma.rn.f32" in ptx) == fused


def test_rounding_defaults(compiler):
    """nvcc's: denormals kept, division and square root rounded to nearest."""
    source = 'extern "C" __global__ void k(float *x) { x[0] = sqrtf(x[1]) / x[2] + x[3]; }'
    ptx = compile_cuda(source, compiler=compiler).ptx
    assert "sqrt.rn.f32" in ptx
    assert "div.rn.f32" in ptx
    assert ".ftz" not in ptx
    assert ".ftz" in compile_cuda(source, compiler=compiler, options=["--ftz=true"]).ptx


def test_headers(compiler, tmp_path):
    """Beside the source, and in include_dirs; the usual standard headers without any set-up."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "near.h").write_text("#define NEAR 3\n")
    (tmp_path / "sub" / "far.h").write_text("#define FAR 4\n")
    names = ("cstdint", "cmath", "cstdio", "cassert", "climits", "cfloat", "cstddef", "stdint.h", "math.h")
    standard = "".join(f"#include <{h}>\n" for h in (*names, "stdio.h", "stdlib.h", "string.h", "cuda_runtime.h"))
    path = tmp_path / "main.cu"
    path.write_text(
        standard + '#include "near.h"\n#include <far.h>\nextern "C" __global__ void k(uint64_t *x, float *y)'
        " { x[0] = NEAR + FAR + UINT64_C(1); y[0] = std::fabs(y[1]) + INFINITY + FLT_MAX + INT_MAX + float(M_PI); }\n"
    )
    assert ".entry k" in compile_cuda(path, compiler=compiler, include_dirs=[tmp_path / "sub"]).ptx
    with pytest.raises(CompileError, match=r"far\.h"):
        compile_cuda(path, compiler=compiler)


def test_cuda_headers():
    if not has_compiler("nvrtc"):
        pytest.skip("nvrtc is not installed")
    names = (
        "cuda_fp16.h",
        "cuda_bf16.h",
        "cuda_fp8.h",
        "mma.h",
        "cuda_pipeline.h",
        "cooperative_groups.h",
        "cooperative_groups/reduce.h",
        "cuda/std/cmath",
        "cuda/std/limits",
        "cuda/barrier",
        "cuda/pipeline",
        "cuda/atomic",
        "cub/cub.cuh",
        "type_traits",
        "algorithm",
        "limits",
    )
    source = "".join(f"#include <{name}>\n" for name in names) + 'extern "C" __global__ void k() {}'
    program = compile_cuda(source, compiler="nvrtc")
    assert program.entries == ("k",)
    assert program.log == ""


def test_warnings_are_kept(compiler):
    source = 'extern "C" __global__ void k(int *x) { int unused = 3; *x = 1; }'
    options = ["-Wall"] if compiler == "clang" else []
    assert "unused" in compile_cuda(source, compiler=compiler, options=options).log


# ---------------------------------------------------------------- mistakes
def test_error_names_the_users_file_and_line(compiler, tmp_path):
    path = tmp_path / "wrong.cu"
    path.write_text('extern "C" __global__ void k(int *x) {\n    x[0] = missing1;\n    x[1] = missing2;\n}\n')
    with pytest.raises(CompileError) as caught:
        compile_cuda(path, compiler=compiler)
    assert re.search(r"wrong\.cu[(:]2\b", caught.value.log)
    assert "missing1" in caught.value.log
    assert "refused" in str(caught.value)
    assert "(2 errors)" in str(caught.value)


def test_error_in_text(compiler):
    with pytest.raises(CompileError, match=r"mine\.cu[(:]2\b"):
        compile_cuda('\nextern "C" __global__ void k() { oops; }', compiler=compiler, file_name="mine.cu")


def test_missing_file():
    with pytest.raises(FileNotFoundError):
        compile_cuda(Path("no-such-file.cu"))


def test_bad_option(compiler):
    with pytest.raises(CompileError, match="no-such-option"):
        compile_cuda(COPY, compiler=compiler, options=["--no-such-option"])


def test_unknown_compiler():
    with pytest.raises(CompileError, match="found 'gcc', expected 'nvrtc', 'clang' or 'auto'"):
        find_compiler("gcc")


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ("nvrtc", r"pip install weft\[cuda\]"),
        ("clang", "apt-get install clang-16"),
        ("auto", r"pip install weft\[cuda\]"),
    ],
)
def test_nothing_installed(asked, advice, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr("weft.frontends.cuda_cpp.toolkit.INSTALLATION", tmp_path)
    with pytest.raises(CompileError, match=advice):
        find_compiler(asked, {"PATH": str(tmp_path)})


# ---------------------------------------------------------------- finding compilers
def make_library(folder: Path, version: str) -> None:
    folder.mkdir(parents=True)
    (folder / f"libnvrtc.so.{version}").touch()


def test_wheels_of_version_13(tmp_path):
    root = tmp_path / "nvidia" / "cu13"
    make_library(root / "lib", "13")
    for header in ("cuda_runtime.h", "crt/host_config.h", "cccl/cub/version.cuh"):
        (root / "include" / header).parent.mkdir(parents=True, exist_ok=True)
        (root / "include" / header).touch()
    found = find_toolkit({}, [str(tmp_path)])
    assert (found.library, found.version) == (root / "lib" / "libnvrtc.so.13", 13)
    assert found.include_dirs == (root / "include", root / "include" / "cccl")


def test_wheels_of_version_12(tmp_path):
    root = tmp_path / "nvidia"
    make_library(root / "cuda_nvrtc" / "lib", "12")
    for header in ("cuda_runtime/include/cuda_runtime.h", "cuda_runtime/include/crt/host_config.h",
                   "cuda_cccl/include/cub/version.cuh"):  # fmt: skip
        (root / header).parent.mkdir(parents=True, exist_ok=True)
        (root / header).touch()
    found = find_toolkit({}, [str(tmp_path)])
    assert found.version == 12
    assert found.include_dirs == (root / "cuda_runtime" / "include", root / "cuda_cccl" / "include")


def test_newest_wheel_wins_and_versions_are_not_mixed(tmp_path):
    root = tmp_path / "nvidia"
    make_library(root / "cuda_nvrtc" / "lib", "12")
    make_library(root / "cu13" / "lib", "13")
    for header in ("cu12/include/cuda_runtime.h", "cu13/include/cuda_runtime.h"):
        (root / header).parent.mkdir(parents=True, exist_ok=True)
        (root / header).touch()
    found = find_toolkit({}, [str(tmp_path)])
    assert found.version == 13
    assert found.include_dirs == (root / "cu13" / "include",)


def test_cuda_installation(tmp_path):
    make_library(tmp_path / "cuda" / "lib64", "13")
    found = find_toolkit({"CUDA_HOME": str(tmp_path / "cuda")}, [])
    assert found.library == tmp_path / "cuda" / "lib64" / "libnvrtc.so.13"


def make_clang(folder: Path, name: str, version: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Debian clang version {version} (1)'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_newest_clang_wins(tmp_path):
    make_clang(tmp_path, "clang", "15.0.1")
    make_clang(tmp_path, "clang-16", "16.0.6")
    make_clang(tmp_path, "clang-19", "19.1.7")
    assert find_clang({"PATH": str(tmp_path)}).version == "19.1.7"
    assert find_clang({"PATH": str(tmp_path), "WEFT_CLANG": "clang-16"}).name == "clang 16.0.6"
    with pytest.raises(CompileError, match="found clang 15.0.1, expected clang 16 or newer"):
        find_clang({"PATH": str(tmp_path), "WEFT_CLANG": "clang"})
    with pytest.raises(CompileError, match="found no clang"):
        find_clang({"PATH": str(tmp_path), "WEFT_CLANG": "nowhere"})


def test_old_clang_alone_does_not_count(tmp_path):
    make_clang(tmp_path, "clang", "14.0.0")
    assert find_clang({"PATH": str(tmp_path)}) is None


# ---------------------------------------------------------------- names
def test_name_expressions(compiler):
    expressions = ["scale<float>", "scale< unsigned int >", "&counter"]
    program = compile_cuda(SCALE, compiler=compiler, name_expressions=expressions)
    assert program.names["scale<float>"] == "_Z5scaleIfEvPT_S0_i"
    assert program.names["&counter"] == "counter"
    assert program.find("scale<float>") == "_Z5scaleIfEvPT_S0_i"
    assert program.find("scale<unsigned>") == program.find("scale<unsigned int>") == "_Z5scaleIjEvPT_S0_i"
    assert program.find("scale<float>(float *, float, int)") == "_Z5scaleIfEvPT_S0_i"
    assert "__weft" not in program.ptx
    with pytest.raises(NoSuchKernelError, match=r"ambiguous.*can mean scale<.*>\(.*scale<"):
        program.find("scale")
    with pytest.raises(NoSuchKernelError, match="no kernel 'scale<double>'.*name_expressions"):
        program.find("scale<double>")


def test_bad_name_expression(compiler):
    with pytest.raises(CompileError, match="nothing<int>"):
        compile_cuda(SCALE, compiler=compiler, name_expressions=["scale<float>", "nothing<int>"])


def test_plain_and_overloaded_kernels(compiler):
    source = """
    __global__ void one(int *x) { *x = 1; }
    __global__ void two(int *x) { *x = 2; }
    __global__ void two(float *x) { *x = 2; }
    namespace a { __global__ void three(int *x) { *x = 3; } }
    namespace { __global__ void four(int *x) { *x = 4; } }
    extern "C" __global__ void five(int *x) { *x = 5; }
    """
    program = compile_cuda(source, compiler=compiler, name_expressions=["four"])
    assert program.find("one") == "_Z3onePi"
    assert program.find("three") == program.find("a::three") == "_ZN1a5threeEPi"
    assert program.find("five") == "five"
    assert program.find("two(float*)") == "_Z3twoPf"
    assert "four" in program.find("four")
    with pytest.raises(NoSuchKernelError, match="ambiguous"):
        program.find("two")
    with pytest.raises(NoSuchKernelError, match="no kernel 'six'.*found: "):
        program.find("six")
    assert set(program.kernels) >= {"one", "two(int*)", "two(float*)", "a::three", "five"}


SYMBOLS = {
    "saxpy": "saxpy",
    "_Z5saxpyifPKfPf": "saxpy(int, float, float const*, float*)",
    "_Z5scaleIfEvPT_S0_i": "scale<float>(float*, float, int)",
    "_Z10window_sumIdLi5EEvPKT_PS0_i": "window_sum<double, 5>(double const*, double*, int)",
    "_ZN6shapes3mapINS_6SquareEEEvPKfPfi": "shapes::map<shapes::Square>(float const*, float*, int)",
    "_Z5orderILb1EEvPi": "order<true>(int*)",
    "_ZN12_GLOBAL__N_14fourEPi": "(anonymous namespace)::four(int*)",
    "_Z1fPFifE": "f(int (*)(float))",
    "_Z1fRA4_KiPA3_f": "f(int const (&) [4], float (*) [3])",
    "_Z1fIJifdEEvDpT_": "f<int, float, double>(int, float, double)",
    "_Z1gILj4ELc65ELln3EEvv": "g<4u, (char)65, -3l>()",
    "_Z3addN4cuda3std7complexIfEES2_": "add(cuda::std::complex<float>, cuda::std::complex<float>)",
    "_ZN1SC1Ei": "S::S(int)",
    "_ZN1SD2Ev": "S::~S()",
    "_ZNK1SclEi": "S::operator()(int)",
    "_Z1fPKvS0_": "f(void const*, void const*)",
    "_Z1kP6float4PDF16_": "k(float4*, _Float16*)",
    "_Z3fooIXadL_Z3barvEEEvv": "_Z3fooIXadL_Z3barvEEEvv",
    "_Zbroken": "_Zbroken",
    "_Z99short": "_Z99short",
}


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_demangling(symbol):
    assert demangle(symbol) == SYMBOLS[symbol]


def test_demangling_against_the_cpp_library(compiler):
    """Every kernel of tests/cuda, as libstdc++ decodes it."""
    path = ctypes.util.find_library("stdc++")
    if path is None:
        pytest.skip("no libstdc++ to compare with")
    library = ctypes.CDLL(path)
    library.__cxa_demangle.restype = ctypes.c_char_p
    names = ("scale<float>", "window_sum<double, 5>", "shapes::map<shapes::Negate>", "order<false>")
    program = compile_cuda(FOLDER / "templates.cu", compiler=compiler, name_expressions=names)
    for symbol in re.findall(r"_Z\w+", program.ptx):
        if not re.search(r"_param_\d+$", symbol):
            true = library.__cxa_demangle(symbol.encode(), None, None, None)
            if true is not None:
                plain = cpp_names.plain_name(true.decode())
                assert cpp_names.plain_name(demangle(symbol)) == plain.removeprefix("void ")


# ---------------------------------------------------------------- cache
def count_compilations(monkeypatch):
    calls = []
    for kind in {type(find_compiler(name)) for name in ("nvrtc", "clang") if has_compiler(name)}:
        original = kind.compile

        def counted(self, *arguments, original=original):
            calls.append(arguments[0])
            return original(self, *arguments)

        monkeypatch.setattr(kind, "compile", counted)
    return calls


def test_cache(compiler, tmp_path, monkeypatch):
    calls = count_compilations(monkeypatch)
    header = tmp_path / "value.h"
    header.write_text("#define N 1\n")
    path = tmp_path / "main.cu"
    path.write_text('#include "value.h"\n' + COPY)
    cache = tmp_path / "cache"

    def build(**options):
        return compile_cuda(path, compiler=compiler, cache_dir=cache, **options)

    first = build()
    assert build() == first
    assert len(calls) == 1
    header.write_text("#define N 2\n")
    assert build().ptx != first.ptx
    assert len(calls) == 2
    header.write_text("#define N 1\n")
    assert build() == first
    assert len(calls) == 2
    for count, options in enumerate(
        ({"arch": "sm_80"}, {"defines": {"X": 1}}, {"std": "c++20"}, {"lineinfo": False}), 3
    ):
        build(**options)
        assert len(calls) == count


def test_names_survive_the_cache(compiler, tmp_path):
    made = [
        compile_cuda(SCALE, compiler=compiler, name_expressions=["scale<int>"], cache_dir=tmp_path) for _ in range(2)
    ]
    assert made[0] == made[1]
    assert made[1].find("scale<int>") == "_Z5scaleIiEvPT_S0_i"


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "cut short"])
def test_damaged_entry(damage, tmp_path):
    cache, key = PtxCache(tmp_path), cache_key(["a", "b"])
    entry = Compilation("ptx text", {"f": "_Zf"}, "log")
    cache.put(key, entry)
    assert cache.get(key) == entry
    (path,) = (tmp_path / "ptx").iterdir()
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    assert cache.get(key) is None
    assert not path.exists()
    cache.put(key, entry)
    assert cache.get(key) == entry


def test_keys_do_not_run_together():
    assert cache_key(["ab", "c"]) != cache_key(["a", "bc"])


def test_fingerprint_follows_includes(tmp_path):
    (tmp_path / "a.h").write_text('#include "b.h"\n')
    (tmp_path / "b.h").write_text("int x;\n")
    source = "#if 0\n#  include <a.h>\n#endif\n"
    before = include_fingerprint(source, tmp_path, [tmp_path])
    (tmp_path / "b.h").write_text("int y;\n")
    assert include_fingerprint(source, tmp_path, [tmp_path]) != before
    assert include_fingerprint("#include HEADER\n", tmp_path, []) is None
    assert include_fingerprint("", tmp_path, [], ["-include", "x.h"]) is None


def test_unwritable_cache(tmp_path, compiler):
    from weft.errors import CacheError

    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CacheError, match="cannot"):
        compile_cuda(COPY, compiler=compiler, defines={"N": 1}, cache_dir=blocked)


def test_versions():
    if has_compiler("nvrtc"):
        tool = find_compiler("nvrtc")
        assert isinstance(tool, Nvrtc)
        assert tool.name.startswith("NVRTC 1")
        assert 90 in tool.archs
    if has_compiler("clang"):
        assert shutil.which(find_compiler("clang").path, path=os.environ["PATH"])
