"""What is installed and what will work: this machine in, a list of Findings out.

`examine` looks at Python, the processor, LLVM, the CUDA C++ compilers, the cache folder and the optional packages, and
runs one small kernel from PTX to its result. It installs nothing and changes nothing but the cache.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from weft.errors import WeftError
from weft.report.diagnosis import Finding
from weft.version import __version__

SAXPY_PTX = """
.version 7.0
.target sm_70
.address_size 64

.visible .entry saxpy(.param .u32 saxpy_n, .param .f32 saxpy_a, .param .u64 saxpy_x, .param .u64 saxpy_y)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<5>;
    .reg .b64 %rd<7>;

    ld.param.u32 %r1, [saxpy_n];
    ld.param.f32 %f1, [saxpy_a];
    ld.param.u64 %rd1, [saxpy_x];
    ld.param.u64 %rd2, [saxpy_y];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mul.wide.s32 %rd5, %r5, 4;
    add.s64 %rd3, %rd3, %rd5;
    add.s64 %rd4, %rd4, %rd5;
    ld.global.f32 %f2, [%rd3];
    ld.global.f32 %f3, [%rd4];
    fma.rn.f32 %f4, %f1, %f2, %f3;
    st.global.f32 [%rd4], %f4;
DONE:
    ret;
}
"""

# Vector extensions worth naming, in the words of /proc/cpuinfo.
VECTOR_FEATURES = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16",
                   "amx_tile", "amx_bf16", "asimd", "asimdhp", "sve", "sve2")  # fmt: skip

# Package, the extra that brings it, what it is for.
OPTIONAL_PACKAGES = (
    ("scikit-learn", "examples", "examples/digits_cuda.py"),
    ("matplotlib", "examples", "pictures of the examples"),
    ("pytest", "test", "the tests"),
    ("hypothesis", "test", "the tests"),
    ("torch", "bench", "benchmarks against PyTorch"),
    ("numba", "bench", "benchmarks against Numba's CUDA simulator"),
)


def find_python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def find_platform() -> Finding:
    detail = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if platform.system() != "Linux":
        return Finding("platform", "note", detail, "Weft is tested on Linux only")
    if platform.machine() not in ("x86_64", "aarch64"):
        return Finding("platform", "note", detail, "Weft is tested on x86-64 and made to work on AArch64")
    return Finding("platform", "ok", detail)


def read_cpuinfo() -> tuple[str, frozenset[str]]:
    """The processor's name and its feature words; empty where the system has no /proc/cpuinfo."""
    name, features = "", frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return name, features
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and not name:
            name = value.strip()
        elif key.strip() in ("flags", "Features") and not features:
            features = frozenset(value.split())
    return name, features


def find_processor() -> Finding:
    name, features = read_cpuinfo()
    present = [feature for feature in VECTOR_FEATURES if feature in features]
    detail = f"{name or platform.processor() or 'unknown'}; {' '.join(present) or 'vector extensions unknown'}"
    if platform.machine() == "x86_64" and features and "avx2" not in features:
        return Finding("processor", "note", detail, "without AVX2 kernels run, but several times slower")
    return Finding("processor", "ok", detail)


def find_threads() -> Finding:
    from weft import settings

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = settings.current().threads
    return Finding("threads", "ok", f"{threads} in use, {usable} cores usable (WEFT_THREADS or --threads sets it)")


def find_memory() -> Finding:
    """Host memory; on Linux only."""
    facts = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return Finding("memory", "note", "unknown: there is no /proc/meminfo")
    total, free = facts["MemTotal"], facts["MemAvailable"]
    detail = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    if free < 1e9:
        return Finding("memory", "note", detail, "device memory lives in host memory; less than 1 GB is left")
    return Finding("memory", "ok", detail)


def find_llvm() -> Finding:
    try:
        import llvmlite
        import llvmlite.binding as llvm
    except (ImportError, OSError) as error:
        return Finding("LLVM", "wrong", f"llvmlite cannot be loaded: {error}", "pip install llvmlite")
    version = ".".join(map(str, llvm.llvm_version_info))
    return Finding("LLVM", "ok", f"{version} (llvmlite {llvmlite.__version__})")


def find_nvrtc() -> Finding:
    from weft.frontends.cuda_cpp.nvrtc import load_nvrtc
    from weft.frontends.cuda_cpp.toolkit import find_toolkit

    advice = 'pip install "weft[cuda]" (NVIDIA\'s licence), or use clang'
    toolkit = find_toolkit(os.environ)
    if toolkit is None:
        return Finding("NVRTC", "note", "not installed", advice)
    try:
        nvrtc = load_nvrtc(toolkit)
    except WeftError as error:
        return Finding("NVRTC", "note", str(error), advice)
    archs = f"sm_{nvrtc.archs[0]} to sm_{nvrtc.archs[-1]}"
    return Finding("NVRTC", "ok", f"{nvrtc.name} for {archs} ({toolkit.library})")


# A header of each of NVIDIA's wheels, and the wheel.
HEADERS = (
    ("cuda_fp16.h", "nvidia-cuda-runtime"),
    ("cooperative_groups.h", "nvidia-cuda-runtime"),
    ("crt/host_config.h", "nvidia-cuda-crt"),
    ("cuda/std/atomic", "nvidia-cuda-cccl"),
    ("cub/version.cuh", "nvidia-cuda-cccl"),
)


def find_headers() -> Finding:
    from weft.frontends.cuda_cpp.toolkit import find_toolkit

    toolkit = find_toolkit(os.environ)
    folders = toolkit.include_dirs if toolkit else ()
    missing = {h: wheel for h, wheel in HEADERS if not any((folder / h).is_file() for folder in folders)}
    if not missing:
        return Finding("CUDA headers", "ok", ", ".join(header for header, _ in HEADERS))
    wheels = " ".join(dict.fromkeys(missing.values()))
    return Finding("CUDA headers", "note", f"not found: {', '.join(missing)}", f"pip install {wheels}")


def find_clang() -> Finding:
    from weft.frontends.cuda_cpp import clang

    try:
        found = clang.find_clang(os.environ)
    except WeftError as error:
        return Finding("clang", "note", str(error), "unset WEFT_CLANG or let it name a newer clang")
    if found is None:
        return Finding("clang", "note", f"none of version {clang.OLDEST} or newer", "apt-get install clang-16")
    return Finding("clang", "ok", f"{found.version} ({found.path})")


def find_cuda_compiler(found: list[Finding]) -> Finding:
    """Whether any of the two compilers is there, from the findings so far."""
    states = {finding.name: finding.state for finding in found}
    names = [name for name in ("NVRTC", "clang") if states.get(name) == "ok"]
    if names:
        return Finding("CUDA C++", "ok", f"gpu.compile works, with {' and '.join(names)}")
    advice = 'pip install "weft[cuda]", or apt-get install clang-16'
    return Finding("CUDA C++", "note", "gpu.compile does not work; gpu.load (PTX) does", advice)


def find_triton() -> Finding:
    """Whether the installed Triton is one that Weft runs. It is not imported: that takes a second."""
    from weft.frontends.triton.versions import RANGE, TESTED, check_version

    advice = 'pip install "weft[triton]"'
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return Finding("Triton", "note", f"not installed; Weft runs {RANGE}", advice)
    try:
        check_version(version)
    except WeftError as error:
        return Finding("Triton", "note", str(error), advice)
    return Finding("Triton", "ok", f"{version}, of {RANGE} (tried with {', '.join(TESTED)}): weft run, weft.install()")


def find_torch_helper() -> Finding:
    """Whether the PyTorch front end's compiled helper is there. torch is not imported."""
    from weft.frontends.torch.helper import describe_helper, find_compiler, helper_path

    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Finding("PyTorch helper", "ok", "not needed: PyTorch is not installed")
    if helper_path().exists():
        return Finding("PyTorch helper", "ok", describe_helper())
    compiler = find_compiler()
    advice = "weft helper build" if compiler else "apt-get install g++, then weft helper build"
    return Finding("PyTorch helper", "ok", "not built; programs run without it, with more time per operator", advice)


def find_extension_tools() -> Finding:
    """Whether torch.utils.cpp_extension can build extensions with .cu files: a C++ compiler, nm and ninja."""
    tools = (os.environ.get("CXX", "c++").split()[0], "nm", "ninja")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        detail = f"not found: {', '.join(missing)}; PyTorch's C++ extensions cannot be built"
        return Finding("C++ extensions", "note", detail, "apt-get install g++; pip install ninja")
    return Finding("C++ extensions", "ok", f"{', '.join(tools)}: torch.utils.cpp_extension.load works, with NVRTC")


def find_real_gpu() -> Finding:
    from weft.install import find_real_gpus

    found = find_real_gpus()
    if not found:
        return Finding("real GPU", "ok", "none; frameworks find the virtual one under weft run")
    return Finding("real GPU", "ok", f"{', '.join(found)}; frameworks use it unless --gpu names a virtual one")


def find_cache() -> Finding:
    from weft import settings

    directory = settings.current().cache_dir
    advice = "let WEFT_CACHE_DIR name a folder that can be written"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".new-"):
            pass
    except OSError as error:
        detail = f"{directory} cannot be written, so every program compiles anew: {error}"
        return Finding("cache", "note", detail, advice)
    free = shutil.disk_usage(directory).free
    detail = f"{directory}, {free / 1e9:.1f} GB free on its disk"
    if free < 1e8:
        return Finding("cache", "note", detail, advice)
    return Finding("cache", "ok", detail)


def find_packages() -> Iterator[Finding]:
    for package, extra, purpose in OPTIONAL_PACKAGES:
        try:
            yield Finding(package, "ok", f"{importlib.metadata.version(package)}, for {purpose}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "note", f"not installed; for {purpose}", f'pip install "weft[{extra}]"')


def run_saxpy() -> Finding:
    """Compiles and runs saxpy from PTX on 1,000 elements and compares every one with NumPy."""
    name = "test kernel"
    advice = "report this with the output of weft doctor --json"
    try:
        import numpy as np

        import weft

        start = time.perf_counter()
        gpu = weft.Device()
        x = np.linspace(-1.0, 1.0, 1000, dtype=np.float32)
        y = np.arange(1000, dtype=np.float32)
        device_x, device_y = gpu.array(x), gpu.array(y)
        gpu.load(SAXPY_PTX)["saxpy"][8, 128](1000, 2.0, device_x, device_y)
        found = device_y.numpy()
        seconds = time.perf_counter() - start
    except Exception as error:  # whatever it is, it is what the user wants to be told
        return Finding(name, "wrong", f"saxpy does not run: {type(error).__name__}: {error}", advice)
    wanted = (2.0 * x.astype(np.float64) + y).astype(np.float32)
    if not np.array_equal(found, wanted):
        detail = f"saxpy gives wrong results: {np.sum(found != wanted)} of {len(wanted)} elements differ"
        return Finding(name, "wrong", detail, advice)
    return Finding(name, "ok", f"saxpy from PTX gives the right {len(wanted)} results on a virtual {gpu.name} "
                   f"({seconds * 1e3:.0f} ms, measured)")  # fmt: skip


def examine() -> list[Finding]:
    """All findings, in the order in which the report shows them."""
    found = [Finding("Weft", "ok", f"{__version__} ({Path(__file__).parent})")]
    steps: tuple[Callable[[], Finding], ...] = (
        find_python, find_platform, find_processor, find_threads, find_memory, find_llvm, find_cache, find_nvrtc,
        find_headers, find_clang, find_triton, find_torch_helper, find_extension_tools,
        find_real_gpu,
    )  # fmt: skip
    found += [step() for step in steps]
    found.append(find_cuda_compiler(found))
    found += find_packages()
    found.append(run_saxpy())
    return found
