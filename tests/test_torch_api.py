"""torch.cuda, torch.accelerator and torch.backends name by name: every public function does what it does on a GPU."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import weft  # noqa: E402

C, A = torch.cuda, torch.accelerator
importlib.import_module("torch.cuda.comm")


@pytest.fixture(scope="module", autouse=True)
def gpus():
    weft.install("h100", count=2, children=False)
    yield
    torch.cuda.set_device(0)
    weft.install("h100", children=False)


# ---------------------------------------------------------------- every name
# By module: name -> an expression that is true. A name that a GPU without a driver library refuses has the error.
TYPES = "BFloat16 Bool Byte Char Double Float Half Int Long Short".split()
NO_GDS = (RuntimeError, "is not supported on this platform", "C.gds.gds_register_buffer(four().untyped_storage())")
NO_ALLOCATOR = types.SimpleNamespace(allocator=lambda: None)
NO_PYNVML = (ModuleNotFoundError, "nvidia-ml-py")
CUDA = {f"{name}Tensor": f"C.{name}Tensor(2).is_cuda" for name in TYPES}
CUDA |= {f"{name}Storage": f"C.{name}Storage(2).device.type == 'cuda'" for name in [*TYPES, "ComplexDouble"]}
CUDA |= {
    "ComplexFloatStorage": "C.ComplexFloatStorage(3).nbytes() == 24",
    "CUDAGraph": "C.CUDAGraph(keep_graph=True) is not None",
    "CUDAPluggableAllocator": (OSError, "/nowhere.so", "C.CUDAPluggableAllocator('/nowhere.so', 'a', 'b')"),
    "CudaError": "str(C.CudaError(2)) == 'out of memory (2)'",
    "DeferredCudaCallError": "issubclass(C.DeferredCudaCallError, Exception)",
    "Event": "C.Event().query() and repr(C.Event()) == '<torch.cuda.Event uninitialized>'",
    "ExternalStream": "C.ExternalStream(0x77).cuda_stream == 0x77",
    "GreenContext": (RuntimeError, "not built with Green Context", "C.GreenContext.create(num_sms=16)"),
    "MemPool": "C.MemPool().id != C.MemPool().id",
    "Stream": "C.Stream(device=1).device == torch.device('cuda:1') and C.Stream.priority_range() == (0, -3)",
    "StreamContext": "C.StreamContext(C.Stream()).stream.query()",
    "caching_allocator_alloc": "C.caching_allocator_delete(C.caching_allocator_alloc(100, device=1)) is None",
    "caching_allocator_delete": (RuntimeError, "invalid device pointer", "C.caching_allocator_delete(1)"),
    "caching_allocator_disabled": "outside_allocator() == 0",
    "caching_allocator_enable": "C.caching_allocator_enable(True) is None",
    "can_device_access_peer": "C.can_device_access_peer(0, 1) and not C.can_device_access_peer(1, 1)",
    "change_current_allocator": (RuntimeError, "no allocator other than", "C.change_current_allocator(NO_ALLOCATOR)"),
    "check_error": (RuntimeError, "out of memory", "C.check_error(2)"),
    "cudaStatus": "C.cudaStatus.SUCCESS == 0",
    "cudart": "C.cudart().cudaMemGetInfo(1) == C.mem_get_info(1)",
    "current_blas_handle": "type(C.current_blas_handle()) is int",
    "current_solver_handle": "type(C.current_solver_handle()) is int",
    "current_device": "C.current_device() == 0",
    "current_stream": "C.current_stream(1).device.index == 1 and C.current_stream() == C.default_stream()",
    "default_generators": "[g.device.index for g in C.default_generators] == [0, 1]",
    "default_stream": "C.default_stream(1).cuda_stream == 0",
    "device": "inside(C.device(1)) == 1 and C.current_device() == 0",
    "device_count": "C.device_count() == 2",
    "device_of": "inside(C.device_of(torch.ones(1, device='cuda:1'))) == 1",
    "empty_cache": "C.empty_cache() is None",
    "get_allocator_backend": "C.get_allocator_backend() == 'native'",
    "get_arch_list": "'sm_90' in C.get_arch_list()",
    "get_device_capability": "C.get_device_capability('cuda:1') == (9, 0)",
    "get_device_name": "C.get_device_name(1) == 'NVIDIA H100 80GB HBM3'",
    "get_device_properties": "C.get_device_properties(1).total_memory == 80 << 30",
    "get_gencode_flags": "'compute=compute_90,code=sm_90' in C.get_gencode_flags()",
    "get_per_process_memory_fraction": "C.get_per_process_memory_fraction(1) == 1.0",
    "get_rng_state": "C.get_rng_state(1).dtype is torch.uint8",
    "get_rng_state_all": "len(C.get_rng_state_all()) == 2",
    "get_stream_from_external": "C.get_stream_from_external(0x55, 1).cuda_stream == 0x55",
    "get_sync_debug_mode": "C.get_sync_debug_mode() == 0",
    "graph": "callable(C.graph(C.CUDAGraph()).__enter__)",
    "graph_pool_handle": "C.graph_pool_handle() != C.graph_pool_handle()",
    "has_half": "C.has_half", "has_magma": "C.has_magma in (True, False)",
    "host_memory_stats": "C.host_memory_stats()['allocated_bytes.current'] == 0",
    "host_memory_stats_as_nested_dict": "'active_requests' in C.host_memory_stats_as_nested_dict()",
    "init": "C.init() is None and C.is_initialized()",
    "initial_seed": "[C.manual_seed(7), C.initial_seed()][1] == 7",
    "ipc_collect": "C.ipc_collect() is None",
    "is_available": "C.is_available()", "is_bf16_supported": "C.is_bf16_supported(including_emulation=False)",
    "is_current_stream_capturing": "not C.is_current_stream_capturing()", "is_initialized": "C.is_initialized()",
    "is_tf32_supported": "C.is_tf32_supported()",
    "list_gpu_processes": "'pynvml module not found' in C.list_gpu_processes()",
    "make_graphed_callables": "callable(C.make_graphed_callables)",
    "manual_seed": "C.manual_seed(3) is None", "manual_seed_all": "[C.manual_seed_all(4), C.initial_seed()][1] == 4",
    "max_memory_allocated": "C.max_memory_allocated(1) >= C.memory_allocated(1)",
    "max_memory_cached": "C.max_memory_cached() == C.max_memory_reserved()",
    "max_memory_reserved": "C.max_memory_reserved() >= C.memory_reserved()",
    "mem_get_info": "C.mem_get_info(1)[1] == 80 << 30",
    "memory_allocated": "C.memory_allocated() >= 0", "memory_cached": "C.memory_cached() == C.memory_reserved()",
    "memory_reserved": "C.memory_reserved() % (2 << 20) == 0",
    "memory_snapshot": "sum(s['total_size'] for s in C.memory_snapshot() if s['device'] == 0) == C.memory_reserved()",
    "memory_stats": "C.memory_stats()['allocated_bytes.all.current'] == C.memory_allocated()",
    "memory_stats_as_nested_dict": "C.memory_stats_as_nested_dict()['num_ooms'] >= 0",
    "memory_summary": "'device ID 1' in C.memory_summary(1, abbreviated=True)",
    "reset_accumulated_host_memory_stats": "C.reset_accumulated_host_memory_stats() is None",
    "reset_accumulated_memory_stats": "C.reset_accumulated_memory_stats() is None",
    "reset_max_memory_allocated": "[C.reset_max_memory_allocated(), peak()][1] == C.memory_allocated()",
    "reset_max_memory_cached": "[C.reset_max_memory_cached(), C.max_memory_reserved()][1] == C.memory_reserved()",
    "reset_peak_host_memory_stats": "C.reset_peak_host_memory_stats() is None",
    "reset_peak_memory_stats": "[C.reset_peak_memory_stats(), peak()][1] == C.memory_allocated()",
    "seed": "[C.seed(), C.initial_seed() != 7][1]", "seed_all": "C.seed_all() is None",
    "set_device": "[C.set_device(1), C.current_device(), C.set_device(0)][1] == 1",
    "set_per_process_memory_fraction": "fraction(0.25) == 0.25",
    "set_rng_state": "C.set_rng_state(C.get_rng_state(1), 1) is None",
    "set_rng_state_all": "C.set_rng_state_all(C.get_rng_state_all()) is None",
    "set_stream": "[C.set_stream(C.Stream()), C.current_stream().cuda_stream, back()][1] != 0",
    "set_sync_debug_mode": "C.set_sync_debug_mode('default') is None",
    "stream": "inside(C.stream(C.Stream(device=1))) == 1",
    "synchronize": "C.synchronize(1) is None",
    "use_mem_pool": "callable(C.use_mem_pool)",
}  # fmt: skip
CUDA |= {name: (*NO_PYNVML, f"C.{name}()") for name in (
    "clock_rate", "device_memory_used", "memory_usage", "power_draw", "temperature", "utilization"
)}  # fmt: skip
TUNABLE = {
    "enable": "[C.tunable.enable(True), C.tunable.is_enabled(), C.tunable.enable(False)][1]",
    "is_enabled": "not C.tunable.is_enabled()", "tuning_enable": "C.tunable.tuning_enable(True) is None",
    "tuning_is_enabled": "C.tunable.tuning_is_enabled()",
    "record_untuned_enable": "C.tunable.record_untuned_enable(False) is None",
    "record_untuned_is_enabled": "not C.tunable.record_untuned_is_enabled()",
    "set_max_tuning_duration": "[C.tunable.set_max_tuning_duration(30), C.tunable.get_max_tuning_duration()][1] == 30",
    "get_max_tuning_duration": "C.tunable.get_max_tuning_duration() == 30",
    "set_max_tuning_iterations": "C.tunable.set_max_tuning_iterations(100) is None",
    "get_max_tuning_iterations": "C.tunable.get_max_tuning_iterations() == 100",
    "set_filename": "[C.tunable.set_filename('a.csv', True), C.tunable.get_filename()][1] == 'a0.csv'",
    "get_filename": "C.tunable.get_filename().endswith('.csv')", "get_results": "C.tunable.get_results() == ()",
    "get_validators": "C.tunable.get_validators()[0][0] == 'PT_VERSION'",
    "read_file": "not C.tunable.read_file('/nowhere.csv')",
    "tune_gemm_in_file": (AssertionError, "", "C.tunable.tune_gemm_in_file('/nowhere.csv')"),
    "mgpu_tune_gemm_in_file": "callable(C.tunable.mgpu_tune_gemm_in_file)",
    "set_rotating_buffer_size": "C.tunable.set_rotating_buffer_size(-1) is None",
    "get_rotating_buffer_size": "C.tunable.get_rotating_buffer_size() == -1",
    "set_numerical_check_tolerances": "C.tunable.set_numerical_check_tolerances(True) is None",
}  # fmt: skip
ACCELERATOR = {
    "Graph": (RuntimeError, "captured on a non-default stream", "A.Graph().__enter__()"),
    "current_accelerator": "A.current_accelerator() == torch.device('cuda')",
    "current_device_idx": "A.current_device_idx() == 0", "current_device_index": "A.current_device_index() == 0",
    "get_device_capability": "torch.bfloat16 in A.get_device_capability(1)['supported_dtypes']",
    "current_stream": "A.current_stream(1).device.index == 1", "device_count": "A.device_count() == 2",
    "device_index": "inside(A.device_index(1)) == 1", "empty_cache": "A.empty_cache() is None",
    "empty_host_cache": "A.empty_host_cache() is None", "get_memory_info": "A.get_memory_info(1) == C.mem_get_info(1)",
    "is_available": "A.is_available()", "max_memory_allocated": "A.max_memory_allocated() == C.max_memory_allocated()",
    "max_memory_reserved": "A.max_memory_reserved() == C.max_memory_reserved()",
    "memory_allocated": "A.memory_allocated() == C.memory_allocated()",
    "memory_reserved": "A.memory_reserved(1) == C.memory_reserved(1)",
    "memory_stats": "A.memory_stats() == C.memory_stats()",
    "reset_accumulated_memory_stats": "A.reset_accumulated_memory_stats() is None",
    "reset_peak_memory_stats": "[A.reset_peak_memory_stats(), A.max_memory_allocated()][1] == A.memory_allocated()",
    "set_device_idx": "[A.set_device_idx(1), C.current_device(), A.set_device_idx(0)][1] == 1",
    "set_device_index": (torch.AcceleratorError, "invalid device ordinal", "A.set_device_index(7)"),
    "set_stream": "[A.set_stream(torch.Stream()), A.current_stream().stream_id, back()][1] != 0",
    "synchronize": "A.synchronize(1) is None",
}  # fmt: skip
BACKENDS = {
    "cuFFTPlanCacheAttrContextProp": "callable(B.cuFFTPlanCacheAttrContextProp)",
    "cuFFTPlanCache": "B.cuFFTPlanCache(1).max_size == 4096",
    "cuFFTPlanCacheManager": "B.cuFFTPlanCacheManager()[1].size == 0", "cuBLASModule": "callable(B.cuBLASModule)",
    "is_built": "B.is_built()", "matmul": "B.matmul.allow_tf32 is False",
    "preferred_linalg_library": "[B.preferred_linalg_library('cusolver'), B.preferred_linalg_library('default')][1]"
    " == torch._C._LinalgBackend.Default",
    "preferred_blas_library": "B.preferred_blas_library('cublaslt') == torch._C._BlasBackend.Cublaslt and "
    "B.preferred_blas_library('default') is not None",
    "cublas_workspace_size": "B.cublas_workspace_size() > 0",
    "cublaslt_workspace_size": "B.cublaslt_workspace_size() > 0",
    "blas_workspace_size": "B.blas_workspace_size() > 0",
    "preferred_rocm_fa_library": "B.preferred_rocm_fa_library() is not None",
    "is_ck_sdpa_available": "not B.is_ck_sdpa_available()",
    "cufft_plan_cache": "[setattr(B.cufft_plan_cache, 'max_size', 10), B.cufft_plan_cache.max_size, "
    "setattr(B.cufft_plan_cache, 'max_size', 4096), B.cufft_plan_cache.clear()][1] == 10",
    "SDPAParams": "B.SDPAParams(*heads(), None, 0.0, False, False).query.is_cuda",
    "fp16_bf16_reduction_math_sdp_allowed": "not B.fp16_bf16_reduction_math_sdp_allowed()",
    "allow_fp16_bf16_reduction_math_sdp": "B.allow_fp16_bf16_reduction_math_sdp(False) is None",
    "is_flash_attention_available": "B.is_flash_attention_available()",
    "can_use_flash_attention": "can('flash') and not can('flash', torch.float32)",
    "can_use_efficient_attention": "can('efficient') and can('efficient', torch.float32)",
    "can_use_cudnn_attention": "can('cudnn') and not can('cudnn', torch.float32)",
    "sdp_kernel": "callable(B.sdp_kernel)",
}  # fmt: skip
for _name in ("cudnn_sdp", "flash_sdp", "mem_efficient_sdp", "math_sdp"):
    _switch = f"{_name}_enabled"
    BACKENDS[_switch] = f"B.{_switch}()"
    BACKENDS[f"enable_{_name}"] = (
        f"[B.enable_{_name}(False), B.{_switch}(), B.enable_{_name}(True)][1] is False and B.{_switch}()"
    )
COMM = {
    "broadcast": "[t.get_device() for t in C.comm.broadcast(four(), [0, 1])] == [0, 1]",
    "broadcast_coalesced": "C.comm.broadcast_coalesced([four()], [0, 1])[1][0].tolist() == [0, 1, 2, 3]",
    "reduce_add": "C.comm.reduce_add([four(), four(1)]).tolist() == [0, 2, 4, 6]",
    "reduce_add_coalesced": "C.comm.reduce_add_coalesced([[four()], [four(1)]], 1)[0].get_device() == 1",
    "scatter": "[t.tolist() for t in C.comm.scatter(four(), [0, 1], [3, 1])] == [[0, 1, 2], [3]]",
    "gather": "C.comm.gather([four(), four(1)], destination=1).shape == (8,)",
}
NCCL = {
    "all_reduce": "[C.nccl.all_reduce(two := [four(), four(1)]), two[1].tolist()][1] == [0, 2, 4, 6]",
    "reduce": "[C.nccl.reduce([four(), four(1)], out := four()), out.tolist()][1] == [0, 2, 4, 6]",
    "broadcast": "[C.nccl.broadcast(two := [four(), four(1) * 0]), two[1].tolist()][1] == [0, 1, 2, 3]",
    "all_gather": "[C.nccl.all_gather([four(), four(1)], two := [four().repeat(2), four(1).repeat(2) * 0]), "
    "two[1].tolist()][1] == [0, 1, 2, 3] * 2",
    "reduce_scatter": "[C.nccl.reduce_scatter([four(), four(1)], two := [four()[:2], four(1)[:2]]), "
    "two[1].tolist()][1] == [4, 6]",
}
OTHERS = {
    "torch.cuda.amp": {
        "amp_definitely_not_available": "not C.amp.common.amp_definitely_not_available()",
        "autocast": "autocast_type(C.amp.autocast()) is torch.float16", "custom_bwd": "callable(C.amp.custom_bwd)",
        "custom_fwd": "callable(C.amp.custom_fwd)", "GradScaler": "C.amp.GradScaler().get_scale() == 65536",
    },
    "torch.cuda.nvtx": {
        "range_push": "[C.nvtx.range_push('a'), C.nvtx.range_pop()] == [0, 0]", "range_pop": "C.nvtx.range_pop() == -2",
        "range_start": "C.nvtx.range_start('r') > 0", "range_end": "C.nvtx.range_end(C.nvtx.range_start('r')) is None",
        "mark": "C.nvtx.mark('here') is None", "range": "C.nvtx.range('x {}', 1).__enter__() is None",
    },
    "torch.cuda.profiler": {
        "start": "C.profiler.start() is None", "stop": "C.profiler.stop() is None",
        "profile": "C.profiler.profile().__enter__() is None",
    },
    "torch.cuda.gds": {
        "gds_register_buffer": NO_GDS,
        "gds_deregister_buffer": NO_GDS,
        "GdsFile": "inspect.isclass(C.gds.GdsFile)",
    },
    "torch.backends.cusparselt": {
        "is_available": "not torch.backends.cusparselt.is_available()",
        "version": "torch.backends.cusparselt.version() is None",
        "get_max_alg_id": "torch.backends.cusparselt.get_max_alg_id() is None",
    },
}  # fmt: skip
MODULES = {
    "torch.cuda": CUDA, "torch.cuda.tunable": TUNABLE, "torch.accelerator": ACCELERATOR,
    "torch.backends.cuda": BACKENDS, "torch.cuda.comm": COMM, "torch.cuda.nccl": NCCL, **OTHERS,
}  # fmt: skip
SAME_NAMES = ("torch.cuda.memory", "torch.cuda.random", "torch.cuda.graphs")  # what torch.cuda has, too


def inside(context: object) -> int:
    with context:
        return C.current_device()


def back() -> None:
    C.set_stream(C.default_stream())


def peak() -> int:
    return C.max_memory_allocated()


def fraction(value: float) -> float:
    try:
        C.set_per_process_memory_fraction(value)
        return C.get_per_process_memory_fraction()
    finally:
        C.set_per_process_memory_fraction(1.0)


def outside_allocator() -> int:
    before = C.memory_allocated()
    with C.memory.caching_allocator_disabled():
        held = torch.ones(1000, device="cuda")
        taken = C.memory_allocated() - before
    return taken + int(held.sum().item()) - 1000


def four(index: int = 0) -> torch.Tensor:
    return torch.arange(4.0, device=f"cuda:{index}")


def heads(dtype: torch.dtype = torch.float16) -> list[torch.Tensor]:
    return [torch.ones(1, 2, 8, 64, device="cuda", dtype=dtype)] * 3


def can(backend: str, dtype: torch.dtype = torch.float16) -> bool:
    question = getattr(torch.backends.cuda, f"can_use_{backend}_attention")
    return question(torch.backends.cuda.SDPAParams(*heads(dtype), None, 0.0, False, False))


def autocast_type(context: object) -> torch.dtype:
    with context:
        return (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "name"), [(module, name) for module, table in MODULES.items() for name in table])
def test_each_name(module: str, name: str) -> None:
    entry = MODULES[module][name]
    names = globals() | {"B": torch.backends.cuda}
    if isinstance(entry, str):
        assert eval(entry, names), entry
    else:
        error, text, call = entry
        with pytest.raises(error, match=text):
            eval(call, names)


@pytest.mark.parametrize("module", [*MODULES, *SAME_NAMES])
def test_no_name_is_left_out(module: str) -> None:
    found = {name for name in importlib.import_module(module).__all__
             if not inspect.ismodule(getattr(importlib.import_module(module), name))}  # fmt: skip
    known = CUDA if module in SAME_NAMES else MODULES[module]
    assert found <= set(known), found - set(known)


def test_cudnn_says_what_it_is() -> None:
    cudnn = torch.backends.cudnn
    assert cudnn.version() == 91300 and cudnn.is_available() and cudnn.is_acceptable(four())
    assert not cudnn.is_acceptable(torch.ones(2)) and cudnn.allow_tf32 and not cudnn.benchmark
    with cudnn.flags(enabled=False, benchmark=True):
        assert cudnn.benchmark and not cudnn.enabled and not cudnn.is_acceptable(four())
    assert "CUDA Runtime 13.0" in torch.__config__.show() and "CuDNN 9.13.0" in torch.__config__.show()


# ---------------------------------------------------------------- devices that are not there
@pytest.mark.parametrize(("call", "error", "text"), [
    ("torch.ones(2, device='cuda:7')", torch.AcceleratorError, "CUDA error: invalid device ordinal"),
    ("four().to('cuda:7')", torch.AcceleratorError, "CUDA error: invalid device ordinal"),
    ("torch.ones(2).cuda(7)", torch.AcceleratorError, "CUDA error: invalid device ordinal"),
    ("torch.nn.Linear(2, 2).to('cuda:5')", torch.AcceleratorError, "CUDA error: invalid device ordinal"),
    ("torch.ones(2, device='cuda:-1')", RuntimeError, "Invalid device string: 'cuda:-1'"),
    ("C.get_device_properties(7)", AssertionError, "Invalid device id"),
    ("C.set_device(7)", torch.AcceleratorError, "CUDA error: invalid device ordinal"),
    ("C.memory_allocated(9)", RuntimeError, "Invalid device argument 9: did you call init?"),
    ("C.current_stream(9)", RuntimeError, r"Device index value 9 is out of index range \[0, 2\)"),
    ("C.get_device_name('cpu')", ValueError, "Expected a cuda device, but got: cpu"),
    ("C.Stream(priority=1)", RuntimeError, "stream priority to be less than or equal to 0, got 1"),
    ("C.set_per_process_memory_fraction(2.0)", ValueError, "Invalid fraction value: 2.0"),
])  # fmt: skip
def test_what_is_not_there(call: str, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        eval(call)
    assert C.current_device() == 0


# ---------------------------------------------------------------- memory
def test_a_pool_keeps_its_own_segments() -> None:
    pool = C.MemPool()
    with C.use_mem_pool(pool):
        inside_pool = torch.ones(1000, device="cuda")
    outside = torch.ones(1000, device="cuda")
    segments = pool.snapshot()
    assert len(segments) == 1 and segments[0]["total_size"] == 2 << 20 and segments[0]["segment_pool_id"] == pool.id
    assert segments[0]["allocated_size"] == 4096
    assert C.memory_allocated() >= 2 * 4096
    del inside_pool, outside


def test_history_of_memory() -> None:
    C.memory._record_memory_history(max_entries=10)
    try:
        torch.ones(100_000, device="cuda")
        (trace,) = C.memory._snapshot()["device_traces"][:1]
    finally:
        C.memory._record_memory_history(enabled=None)
    sizes = [(entry["action"], entry["size"]) for entry in trace if entry["action"] in ("alloc", "free_completed")]
    assert sizes == [("alloc", 400_000), ("free_completed", 400_000)]


def test_pinned_memory_reaches_the_device() -> None:
    host = torch.arange(1000.0).pin_memory()
    assert host.is_pinned() and torch.empty(3, pin_memory=True).is_pinned() and not torch.ones(1).is_pinned()
    stream = C.Stream()
    with C.stream(stream):
        device = host.to("cuda", non_blocking=True)
    stream.synchronize()
    assert device.sum().item() == 499_500
    with pytest.raises(RuntimeError, match="cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"):
        device.pin_memory()


# ---------------------------------------------------------------- streams, events, graphs
def test_streams_by_priority() -> None:
    assert [C.Stream(priority=priority).priority for priority in (0, -1, -3, -9)] == [0, -1, -3, -3]
    ids = {C.Stream(priority=-2).cuda_stream for _ in range(40)}
    assert len(ids) == 32, "PyTorch's pool has 32 streams of a priority"


def test_two_streams_overlap_on_the_devices_clock() -> None:
    matrix = torch.empty(1024, 1024, device="cuda")
    start, end = (C.Event(enable_timing=True) for _ in range(2))
    times = []
    for streams in ((C.Stream(),), (C.Stream(), C.Stream())):
        C.synchronize()
        start.record()
        for stream in streams:
            stream.wait_event(start)
        for number in range(4):
            with C.stream(streams[number % len(streams)]):
                matrix @ matrix
        for stream in streams:
            C.current_stream().wait_stream(stream)
        end.record()
        C.synchronize()
        times.append(start.elapsed_time(end))
    assert times[0] > 0 and times[1] <= times[0]


def test_graphed_callables_train_as_the_module_does() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)]
    module = torch.nn.Sequential(*layers).cuda()
    twin = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    twin.load_state_dict({name: value.cpu() for name, value in module.state_dict().items()})
    graphed = C.make_graphed_callables(module, (torch.randn(3, 4, device="cuda"),))
    for _ in range(2):
        data = torch.randn(3, 4)
        output, wanted = graphed(data.cuda()), twin(data)
        torch.testing.assert_close(output.cpu(), wanted)
        module.zero_grad()
        twin.zero_grad()
        output.sum().backward()
        wanted.sum().backward()
        for parameter, other in zip(module.parameters(), twin.parameters()):
            torch.testing.assert_close(parameter.grad.cpu(), other.grad)


def test_the_generic_graph() -> None:
    x = torch.ones(4, device="cuda")
    graph = A.Graph()
    with torch.Stream(), graph:
        y = x * 2
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [10] * 4
    graph.reset()
    with pytest.raises(RuntimeError, match="Called CUDAGraph::replay without a preceding successful capture"):
        graph.replay()
    with pytest.raises(RuntimeError, match="must be captured on a non-default stream"):
        C.CUDAGraph().capture_begin()


# ---------------------------------------------------------------- several processes
SHARING = """
import os, sys, torch
import torch.multiprocessing as mp

def work(received, answers):
    kept = []
    while (item := received.get()) is not None:
        if isinstance(item, torch.Tensor):
            item.add_(10)
            kept.append(item)
            answers.put((str(item.device), item.tolist(), torch.cuda.memory_allocated()))
        elif isinstance(item, torch.cuda.Event):
            item.synchronize()
            answers.put(item.query())
        else:
            with torch.no_grad():
                item.weight.fill_(7)
            answers.put([str(parameter.device) for parameter in item.parameters()])

if __name__ == "__main__":
    context = mp.get_context("spawn")
    received, answers = context.Queue(), context.Queue()
    child = context.Process(target=work, args=(received, answers))
    child.start()
    x = torch.arange(4.0, device="cuda:1")
    y = x.view(2, 2)
    double = x * 2
    for _ in range(2):
        received.put(x[1:])
        print(*answers.get(timeout=100))
    print(x.tolist(), y.tolist(), double.tolist(), torch.cuda.memory_allocated(1))
    received.put(torch.ones(3, device="cuda"))  # its sender lets go of it
    print(*answers.get(timeout=100))
    layer = torch.nn.Linear(2, 2).cuda().share_memory()
    received.put(layer)
    print(answers.get(timeout=100), layer.weight.tolist())
    event = torch.cuda.Event(interprocess=True)
    event.record()
    received.put(event)
    print(answers.get(timeout=100))
    received.put(None)
    child.join(100)
    del x, y, double, layer
    torch.cuda.ipc_collect()
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass  # the folder's own
    print(child.exitcode, sum("weft-cuda-memory" in link for link in links))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is shared through anonymous files")
def test_tensors_of_several_processes(tmp_path: Path) -> None:
    program = tmp_path / "sharing.py"
    program.write_text(SHARING)
    command = [sys.executable, "-m", "weft", "run", "--no-summary", "--gpus", "2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=dict(os.environ))
    assert done.stdout.splitlines() == [
        "cuda:1 [11.0, 12.0, 13.0] 0", "cuda:1 [21.0, 22.0, 23.0] 0",
        "[0.0, 21.0, 22.0, 23.0] [[0.0, 21.0], [22.0, 23.0]] [0.0, 2.0, 4.0, 6.0] 1024",
        "cuda:0 [11.0, 11.0, 11.0] 0", "['cuda:0', 'cuda:0'] [[7.0, 7.0], [7.0, 7.0]]", "True", "0 0",
    ], done.stdout + done.stderr  # fmt: skip
