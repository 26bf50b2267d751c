"""The device's clock: order within and between streams, the host beside it, recording that costs next to nothing."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

import weft
from weft import timeline as timelines
from weft.chips import find_chip
from weft.errors import InvalidValueError
from weft.model.rates import constants
from weft.model.roofline import MODEL
from weft.model.work import KernelLaunch
from weft.timeline import Timeline

HOST = constants()["host"]
GAP = constants()["kernel"]["gap"]


class Tensor:
    """What the timeline asks of a tensor, without PyTorch."""

    def __init__(self, *shape: int, dtype: str = "float32"):
        self.shape, self.dtype = shape, dtype

    def stride(self) -> tuple[int, ...]:
        steps = []
        step = 1
        for side in reversed(self.shape):
            steps.append(step)
            step *= side
        return tuple(reversed(steps))


def kernel(seconds: float, name: str = "k") -> KernelLaunch:
    """A kernel that takes so long on an H100: it streams that much memory."""
    return KernelLaunch(name, 1000, 256, bytes_read=(seconds - constants()["kernel"]["floor"]) * 3.0e12)


MS = kernel(1e-3)


@pytest.fixture
def timeline() -> Timeline:
    return Timeline("h100", devices=2)


def test_kernels_of_a_stream_follow_each_other(timeline: Timeline) -> None:
    for _ in range(3):
        timeline.kernel(MS)
    first, second, third = timeline.spans()
    assert first.start == pytest.approx(HOST["compiled_launch"] + HOST["launch"] + HOST["latency"])
    assert first.seconds == pytest.approx(1e-3)
    assert second.start == pytest.approx(first.start + 1e-3 + GAP) and second.waited_for == "earlier work of its stream"
    assert third.start == pytest.approx(second.start + 1e-3 + GAP)
    assert timeline.clock.elapsed == pytest.approx(third.start + 1e-3)
    assert timeline.clock.busy == pytest.approx(3e-3)


def test_streams_overlap(timeline: Timeline) -> None:
    timeline.kernel(MS, stream=1)
    timeline.kernel(MS, stream=2)
    one, two = timeline.spans()
    assert two.start < one.start + 1e-4
    assert timeline.clock.elapsed < 1.1e-3


def test_events_order_streams(timeline: Timeline) -> None:
    timeline.kernel(MS, stream=1)
    timeline.record_event("done", stream=1)
    timeline.wait_event("done", stream=2)
    timeline.kernel(MS, stream=2)
    one, two = timeline.spans()
    assert two.start >= one.start + 1e-3
    assert timeline.clock.waits["an event"] > 0.9e-3


def test_stream_waits_for_stream(timeline: Timeline) -> None:
    timeline.kernel(MS, stream="copy")
    timeline.stream_wait(0, "copy")
    timeline.kernel(MS, stream=0)
    one, two = timeline.spans()
    assert two.start >= one.start + 1e-3


def test_elapsed_between_events(timeline: Timeline) -> None:
    timeline.record_event(1)
    for _ in range(5):
        timeline.kernel(MS)
    timeline.record_event(2)
    assert timeline.elapsed(1, 2) == pytest.approx(5.0, rel=0.01)
    timeline.kernel(MS)
    timeline.record_event(3)
    assert timeline.elapsed(2, 3) == pytest.approx(1.0, rel=0.01)
    with pytest.raises(InvalidValueError, match="the end event was not recorded"):
        timeline.elapsed(1, "never")


def test_many_tiny_operators_are_bound_by_launches(timeline: Timeline) -> None:
    x = Tensor(8, 8)
    for _ in range(100):
        timeline.operator("aten::add.Tensor", (x, x), x)
    clock = timeline.clock
    # Each takes the host 7.2 us and the device 1.5 us.
    assert clock.elapsed == pytest.approx(100 * (HOST["operator"] + HOST["launch"]), rel=0.05)
    assert clock.busy < 0.3 * clock.elapsed
    assert clock.waits["the host's launch"] > 0.6 * clock.elapsed


def test_the_host_runs_ahead_until_it_waits(timeline: Timeline) -> None:
    for _ in range(10):
        timeline.kernel(MS)
    assert timeline.clock.host_time < 2e-4
    timeline.synchronize()
    assert timeline.clock.host_time == pytest.approx(timeline.clock.elapsed)
    assert timeline.clock.host_time > 10e-3


def test_synchronize_waits_for_what_it_is_asked(timeline: Timeline) -> None:
    timeline.kernel(kernel(5e-3), stream=1)
    timeline.kernel(MS, stream=2)
    timeline.record_event("early", stream=2)
    timeline.synchronize(event="early")
    assert 1e-3 < timeline.clock.host_time < 2e-3
    timeline.synchronize(stream=1)
    assert timeline.clock.host_time > 5e-3


def test_item_makes_the_host_wait(timeline: Timeline) -> None:
    timeline.kernel(MS)
    timeline.operator("aten::_local_scalar_dense", (Tensor(),), 1.0)
    assert timeline.clock.host_time > 1e-3
    assert timeline.clock.counts.copies == 1 and timeline.clock.counts.bytes_only == {}


def test_copies_go_over_pcie(timeline: Timeline) -> None:
    timeline.copy("h2d", 10**9, pinned=True)
    timeline.copy("h2d", 10**9, pinned=False)
    pinned, pageable = timeline.spans()
    assert pinned.seconds == pytest.approx(1e9 / (128e9 / 2 * 0.8), rel=1e-3) and pinned.limiter == "PCIe"
    assert pageable.seconds == pytest.approx(1e9 / 6e9, rel=1e-3) and pageable.limiter == "pageable host memory"
    assert timeline.clock.host_time > 0.16, "the host takes part in pageable copies"
    with pytest.raises(InvalidValueError, match="kind of copy: found 'd2x'"):
        timeline.copy("d2x", 1)


def test_copy_between_devices_is_a_transfer(timeline: Timeline) -> None:
    torch = pytest.importorskip("torch")

    class Placed:
        """A tensor of PyTorch that says it is on a GPU."""

        def __init__(self, device: str):
            self.device, self.shape, self.dtype = torch.device(device), torch.Size((1000, 250)), torch.float32

        numel, element_size, stride = (lambda self: 250_000), (lambda self: 4), (lambda self: (250, 1))

    host, one, two = torch.empty(1000, 250), Placed("cuda:0"), Placed("cuda:1")
    timeline.operator("copy_", (one, host, False), one)
    timeline.operator("copy_", (host, two, True), host, None, 0, 1)
    timeline.operator("copy_", (two, one, False), two)
    timeline.operator("copy_", (one, one, False), one)
    kinds = [(span.name, span.device, span.limiter) for span in timeline.spans()]
    assert kinds[:3] == [("copy_h2d", 0, "pageable host memory"), ("copy_d2h", 1, "pageable host memory"),
                         ("copy_p2p", 0, "NVLink")]  # fmt: skip
    assert kinds[3][0] == "copy"
    work = [item for item in timeline.work if hasattr(item, "blocking")]
    assert [(item.nbytes, item.blocking) for item in work] == [(10**6, True), (10**6, False), (10**6, False)]


def test_copies_overlap_with_kernels_but_share_an_engine(timeline: Timeline) -> None:
    timeline.copy("h2d", 10**8, stream=1, pinned=True)
    timeline.copy("h2d", 10**8, stream=2, pinned=True)
    timeline.kernel(MS, stream=3)
    one, two, three = timeline.spans()
    assert two.start == pytest.approx(one.start + one.seconds) and two.waited_for == "the copy engine"
    assert three.start < one.start + 1e-4


def test_collective_starts_when_all_devices_are_ready(timeline: Timeline) -> None:
    timeline.kernel(kernel(3e-3), device=0)
    timeline.kernel(MS, device=1)
    timeline.collective("all_reduce", 1 << 20, 2, stream=0, device=[0, 1])
    one, _, first, second = timeline.spans()
    assert first.start == second.start >= one.start + 3e-3
    assert timeline.clock.families["collective"].kernels == 2


def test_overlap_of_communication_and_computation(timeline: Timeline) -> None:
    """As DDP does it: the reduction runs on its own stream beside the next layer."""
    for _ in range(4):
        timeline.kernel(MS, stream=0)
        timeline.record_event("grad", stream=0)
        timeline.wait_event("grad", stream="nccl")
        timeline.collective("all_reduce", 200 << 20, 8, stream="nccl")
    timeline.stream_wait(0, "nccl")
    clock = timeline.clock
    alone = 4 * 1e-3 + clock.families["collective"].seconds
    assert clock.elapsed < 0.7 * alone


def test_ranges_and_marks(timeline: Timeline) -> None:
    timeline.push_range("step")
    timeline.push_range("forward")
    timeline.kernel(MS)
    timeline.pop_range()
    timeline.kernel(MS)
    timeline.mark("half-time")
    timeline.pop_range()
    timeline.pop_range()  # one too many does nothing
    ranges = timeline.clock.ranges
    assert ranges["forward"].device_seconds == pytest.approx(1e-3)
    assert ranges["step"].device_seconds == pytest.approx(2e-3) and ranges["step"].count == 1
    assert [span.name for span in timeline.spans() if span.kind in ("range", "mark")] == [
        "forward",
        "half-time",
        "step",
    ]


def test_graph_costs_one_launch(timeline: Timeline) -> None:
    x = Tensor(8, 8)
    timeline.capture_begin()
    for _ in range(50):
        timeline.operator("aten::add.Tensor", (x, x), x, stream=7)
    graph = timeline.capture_end()
    assert timeline.record_count == 0, "what is captured does not run"
    for _ in range(3):
        timeline.launch_graph(graph, stream=1)
    timeline.record_event("end", stream=1)
    clock = timeline.clock
    assert clock.counts.kernels == 150
    assert clock.host_time == pytest.approx(3 * HOST["graph_launch"] + HOST["event"])
    one = MODEL.estimate(_add_profile(), find_chip("h100")).seconds
    assert clock.elapsed == pytest.approx(150 * (one + GAP), rel=0.1)
    with pytest.raises(InvalidValueError, match="no capture is under way"):
        timeline.capture_end()


def _add_profile():
    from weft.model.operators import profiles_of
    from weft.model.work import Call, describe_value

    x = describe_value(Tensor(8, 8))
    return profiles_of(Call("aten::add.Tensor", (x, x), (x,)))[0]


def test_the_same_log_on_other_chips(timeline: Timeline) -> None:
    for _ in range(10):
        timeline.kernel(kernel(1e-2))
    fast, slow = timeline.clock_of("h100").elapsed, timeline.clock_of("rtx3060").elapsed
    assert slow / fast == pytest.approx(3.0e12 / (360e9 * 0.89), rel=0.02)
    timeline.kernel(MS)
    assert timeline.clock_of("rtx3060").elapsed > slow


def test_tf32_switch_changes_the_price(timeline: Timeline) -> None:
    a = Tensor(4096, 4096)
    timeline.operator("aten::mm", (a, a), a)
    timeline.set_tf32(matmul=True)
    timeline.operator("aten::mm", (a, a), a)
    slow, fast = timeline.spans()
    assert slow.limiter == "FP32 pipe" and fast.limiter == "tensor cores (TF32)"
    assert slow.seconds > 4 * fast.seconds


def test_tf32_switch_is_asked_for(timeline: Timeline) -> None:
    a, allowed = Tensor(64, 64), [False]
    timeline.tf32_source = lambda: (allowed[0], False)
    timeline.operator("aten::mm", (a, a), a)
    allowed[0] = True
    timeline.operator("aten::mm", (a, a), a)
    assert [item.tf32_matmul for item in timeline.work] == [False, True]


def test_pricing_in_pieces_equals_pricing_at_once() -> None:
    whole, parts = Timeline("a100"), Timeline("a100")
    for timeline in (whole, parts):
        for step in range(50):
            timeline.operator(
                "aten::mm", (Tensor(64 * (step % 3 + 1), 64), Tensor(64, 64)), Tensor(64, 64), stream=step % 2
            )
            timeline.copy("d2h", 1000 * step, stream=step % 2)
            if timeline is parts:
                timeline.advance()
    assert parts.clock.elapsed == whole.clock.elapsed and parts.clock.joules == pytest.approx(whole.clock.joules)
    assert parts.clock.families == whole.clock.families


def test_long_logs_are_let_go(monkeypatch) -> None:
    monkeypatch.setattr(timelines, "KEPT_RECORDS", 100)
    timeline = Timeline("h100", compare=["t4"])
    x = Tensor(16)
    for _ in range(1000):
        timeline.operator("relu", (x,), x)
    assert timeline.record_count == 1000 and len(timeline._log) <= 101
    assert timeline.clock.counts.kernels == timeline.clock_of("t4").counts.kernels == 1000
    with pytest.raises(InvalidValueError, match="too long to be priced on l4"):
        timeline.clock_of("l4")


def test_recording_keeps_no_tensor_alive() -> None:
    torch = pytest.importorskip("torch")
    import weakref

    timeline = Timeline("h100")
    x = torch.empty(10)
    timeline.operator("relu", (x,), x, {"out": x})
    seen = weakref.ref(x)
    del x
    gc.collect()
    assert seen() is None


def test_recording_is_cheap() -> None:
    """Under 2 us for an operator that was seen before; with room for slow machines here."""
    torch = pytest.importorskip("torch")
    timeline = Timeline("h100")
    a, b, c = (torch.empty(4, 4, device="meta") for _ in range(3))
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(2000):
            timeline.operator("add.Tensor", (a, b), c, None, 0, 0)
        best = min(best, (time.perf_counter() - start) / 2000)
    assert best < 5e-6, f"{best * 1e6:.2f} us"


def test_shapes_and_dtypes_tell_calls_apart() -> None:
    timeline = Timeline("h100")
    for made in (Tensor(4, 4), Tensor(4, 5), Tensor(4, 4, dtype="float64"), Tensor(4, 4)):
        timeline.operator("relu", (made,), made)
    assert len(timeline.work) == 3 and timeline.record_count == 4
    # A scalar that changes every time (a step, a learning rate) makes no new entry.
    for step in range(10):
        timeline.operator("add.Scalar", (Tensor(4, 4), 0.1 * step), Tensor(4, 4))
    assert len(timeline.work) == 4
    lists = [Tensor(8), Tensor(9)]
    for step in range(10):
        timeline.operator("_foreach_addcdiv_.ScalarList", (lists, lists, lists, [0.1 * step, 0.2]), ())
    assert len(timeline.work) == 5
    # Integers do: a sum over rows is not one over columns, nor one in f64.
    for inputs, kwargs in (((Tensor(4, 4), [0]), {}), ((Tensor(4, 4), [1]), {}),
                           ((Tensor(4, 4), [1]), {"dtype": np.dtype("f8")})):  # fmt: skip
        timeline.operator("sum.dim_IntList", inputs, Tensor(4), kwargs)
    assert len(timeline.work) == 8


def test_results_tell_calls_apart_where_they_depend_on_data() -> None:
    timeline = Timeline("h100")
    for found in (3, 5, 3):
        timeline.operator("nonzero", (Tensor(100),), Tensor(found, 1, dtype="int64"))
    assert len(timeline.work) == 2


# ---------------------------------------------------------------- compiled kernels
SOURCE = r"""
extern "C" __global__ void saxpy(int n, float a, const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
extern "C" __global__ void product(int n, const float* a, const float* b, float* c) {
    int column = blockIdx.x * 16 + threadIdx.x, row = blockIdx.y * 16 + threadIdx.y;
    float sum = 0;
    for (int k = 0; k < n; k++) sum += a[row * n + k] * b[k * n + column];
    c[row * n + column] = sum;
}
"""


@pytest.fixture
def recorded():
    timeline = timelines.start("h100")
    yield timeline
    if timelines.current() is not None:
        timelines.stop()


def test_launches_report_themselves(recorded: Timeline) -> None:
    gpu = weft.Device("h100")
    kernels = gpu.compile(SOURCE)
    n = 1 << 20
    x, y = gpu.ones(n), gpu.zeros(n)
    for _ in range(3):
        kernels["saxpy"][n // 256, 256](n, 2.0, x, y)
    other = gpu.stream()
    kernels["saxpy"][n // 256, 256, other](n, 2.0, x, y)
    np.testing.assert_array_equal(y.numpy(), np.full(n, 8, np.float32))
    spans = recorded.spans()
    assert [span.name for span in spans] == ["saxpy"] * 4 and spans[3].stream is other
    launch = recorded.work[0].resolve()
    assert (launch.blocks, launch.threads) == (n // 256, 256)
    # x and y are read, y is written; a fused multiply-add per element.
    assert (launch.bytes_read, launch.bytes_written) == (8 * n, 4 * n)
    assert dict(launch.flops)["fp32"] == 2 * n
    assert recorded.clock.counts.rough == {"saxpy": 4}
    timelines.stop()
    kernels["saxpy"][1, 32](32, 1.0, x, y)
    assert recorded.record_count == 4, "nothing is recorded once it is stopped"


def test_loops_over_parameters_are_followed(recorded: Timeline) -> None:
    gpu = weft.Device("h100")
    n = 64
    a, b, c = gpu.ones((n, n)), gpu.ones((n, n)), gpu.zeros((n, n))
    gpu.compile(SOURCE)["product"][(n // 16, n // 16), (16, 16)](n, a, b, c)
    launch = recorded.work[0].resolve()
    assert dict(launch.flops)["fp32"] == 2 * n**3
    assert launch.bytes_read == 3 * 4 * n * n, "what is read again comes from a cache"


def test_launch_without_timeline_is_not_observed() -> None:
    from weft.runtime import launch

    assert timelines.current() is None and launch.observer is None


# ---------------------------------------------------------------- processes
def test_saved_and_loaded(tmp_path, timeline: Timeline) -> None:
    for _ in range(5):
        timeline.operator("aten::mm", (Tensor(64, 64), Tensor(64, 64)), Tensor(64, 64), stream="s")
    timeline.note_memory(0, 1000, 2000)
    timeline.save(tmp_path / "17.timeline")
    (loaded,) = timelines.load_timelines(tmp_path)
    assert loaded.clock.elapsed == timeline.clock.elapsed and loaded.peak_memory() == {0: (1000, 2000)}
    assert pickle.loads((tmp_path / "17.timeline").read_bytes())[0] == "h100"


CHILD = """
import sys
from weft import settings, timeline
settings.configure(report_dir=sys.argv[1])
from weft.model.work import KernelLaunch
t = timeline.start("a100")
t.kernel(KernelLaunch("child", 1, 32, bytes_read=1e9))
"""


def test_a_child_leaves_its_timeline(tmp_path) -> None:
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True)
    (loaded,) = timelines.load_timelines(tmp_path)
    assert loaded.chip.name == "a100-80gb" and [span.name for span in loaded.spans()] == ["child"]


def _forked(directory: str) -> None:
    timelines.current().kernel(kernel(2e-3, "forked"))


def test_a_forked_child_forgets_its_parents_work(tmp_path, recorded: Timeline) -> None:
    from weft import settings

    before = settings.current()
    try:
        recorded.kernel(MS)
        timelines.collect_from_children(str(tmp_path))
        child = multiprocessing.get_context("fork").Process(target=_forked, args=(str(tmp_path),))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        (loaded,) = timelines.load_timelines(tmp_path)
        assert [span.name for span in loaded.spans()] == ["forked"]
        assert [span.name for span in recorded.spans()] == ["k"]
    finally:
        settings.configure(report_dir=before.report_dir)
