"""torch.profiler on virtual GPUs: the device's work beside the host's, tied to operators, in tables and traces."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function, schedule  # noqa: E402

import weft  # noqa: E402
from weft import timeline  # noqa: E402

INCREMENT = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry inc(.param .u64 x)
{
    .reg .b64 %a<3>;
    .reg .b32 %t;
    .reg .f32 %f;
    ld.param.u64 %a0, [x];
    mov.u32 %t, %tid.x;
    mul.wide.u32 %a1, %t, 4;
    add.s64 %a2, %a0, %a1;
    ld.global.f32 %f, [%a2];
    add.f32 %f, %f, 0f3F800000;
    st.global.f32 [%a2], %f;
    ret;
}
"""
BOTH = [ProfilerActivity.CPU, ProfilerActivity.CUDA]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> weft.Device:
    return weft.install("h100", children=False)


def device_events(profiled: Any) -> list[Any]:
    return [
        event for event in profiled.events() if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]


def busy_between(first: int) -> float:
    """Microseconds of device work of the records from number `first` on, from the timeline itself."""
    spans: list[Any] = []
    current = timeline.current()
    clock = current.clock.fork(spans.append)
    records = current.records_since(first)
    clock.advance(records, 0, len(records))
    return sum(span.seconds for span in spans if span.kind in ("kernel", "copy", "collective")) * 1e6


def test_the_device_is_an_activity() -> None:
    assert torch.profiler.supported_activities() == {ProfilerActivity.CPU, ProfilerActivity.CUDA}
    with profile() as profiled:
        torch.ones(3, device="cuda").sum()
    assert device_events(profiled)


def test_times_are_the_timelines_and_belong_to_operators() -> None:
    model, x = torch.nn.Linear(512, 512).cuda(), torch.randn(256, 512, device="cuda")
    first = timeline.current().record_count
    with profile(activities=BOTH) as profiled:
        model(x).relu().sum().backward()
    rows = {row.key: row for row in profiled.key_averages() if row.device_type == DeviceType.CPU}
    total = sum(event.device_time_total for event in device_events(profiled))
    assert total == pytest.approx(busy_between(first), rel=1e-6)
    assert total == pytest.approx(sum(row.self_device_time_total for row in rows.values()), rel=1e-6)
    assert rows["aten::addmm"].self_device_time_total > 0
    assert rows["aten::linear"].self_device_time_total == 0
    assert rows["aten::linear"].device_time_total == pytest.approx(rows["aten::addmm"].self_device_time_total)
    # Backward runs in the same profile: one product for the weight's gradient.
    assert rows["aten::mm"].count == 1 and rows["aten::mm"].self_device_time_total > 0
    # 2 * 256 * 512 * 512 operations at no more than the chip's rate for f32.
    least = 2 * 256 * 512 * 512 / 67e12 * 1e6
    assert least < rows["aten::addmm"].self_device_time_total < 1000 * least


def test_table_names_both_sides() -> None:
    with profile(activities=BOTH, record_shapes=True) as profiled:
        torch.randn(64, 64, device="cuda") @ torch.randn(64, 64, device="cuda")
    text = profiled.key_averages(group_by_input_shape=True).table(sort_by="self_cuda_time_total", row_limit=10)
    assert "Self CUDA" in text and "CUDA total" in text and "aten::mm" in text and "Self CUDA time total" in text
    assert "[[64, 64], [64, 64]]" in text


def test_copies_have_cudas_names() -> None:
    x = torch.ones(1000)
    with profile(activities=BOTH) as profiled:
        x.cuda().cpu()
    assert [event.name for event in device_events(profiled)] == ["Memcpy HtoD", "Memcpy DtoH"]


def test_annotations_span_their_kernels() -> None:
    x = torch.randn(100, device="cuda")
    with profile(activities=BOTH) as profiled:
        with record_function("outer"):
            x.sin()
            with record_function("inner"):
                x.cos()
        x.tan()
    marked = {
        event.name: event.time_range
        for event in profiled.events()
        if event.device_type == DeviceType.CUDA and event.is_user_annotation
    }
    kernels = [event.time_range for event in device_events(profiled)]
    assert set(marked) == {"outer", "inner"} and len(kernels) == 3
    assert (marked["inner"].start, marked["inner"].end) == (kernels[1].start, kernels[1].end)
    assert (marked["outer"].start, marked["outer"].end) == (kernels[0].start, kernels[1].end)
    row = next(row for row in profiled.key_averages() if row.key == "outer" and row.device_type == DeviceType.CPU)
    assert row.device_time_total == pytest.approx(sum(kernel.elapsed_us() for kernel in kernels[:2]))


def test_trace_has_streams_and_arrows(tmp_path: Path) -> None:
    x, stream = torch.randn(100, device="cuda"), torch.cuda.Stream()
    with profile(activities=BOTH) as profiled:
        x.sin()
        with torch.cuda.stream(stream):
            x.cos()
    path = tmp_path / "trace.json"
    profiled.export_chrome_trace(str(path))
    trace = json.loads(path.read_text())
    kernels = [event for event in trace["traceEvents"] if event.get("cat") == "kernel"]
    assert [(event["pid"], event["tid"]) for event in kernels] == [(0, 0), (0, stream.stream_id)]
    assert all(event["dur"] > 0 and event["args"]["basis"] for event in kernels)
    operators = {
        event["args"]["External id"]: event["name"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op"
    }
    assert [operators[event["args"]["External id"]] for event in kernels] == ["aten::sin", "aten::cos"]
    arrows = [event for event in trace["traceEvents"] if event.get("cat") == "ac2g"]
    assert sorted(event["ph"] for event in arrows) == ["f", "f", "s", "s"]
    assert "predicted" in trace["deviceProperties"][0]["name"] and "H100" in trace["deviceProperties"][0]["name"]


def test_compressed_trace(tmp_path: Path) -> None:
    with profile(activities=BOTH) as profiled:
        torch.ones(3, device="cuda")
    profiled.export_chrome_trace(str(tmp_path / "trace.json.gz"))
    with gzip.open(tmp_path / "trace.json.gz") as file:
        assert any(event.get("cat") == "kernel" for event in json.load(file)["traceEvents"])


def test_schedules_and_cycles() -> None:
    x, seen = torch.randn(100, device="cuda"), []

    def ready(profiled: Any) -> None:
        seen.append((profiled.step_num, len(device_events(profiled))))

    with profile(activities=BOTH, schedule=schedule(wait=1, warmup=1, active=2, repeat=2),
                 on_trace_ready=ready) as profiled:  # fmt: skip
        for _ in range(9):
            x.sin()
            profiled.step()
    assert seen == [(4, 2), (8, 2)]


def test_device_alone_and_the_older_interface() -> None:
    x = torch.randn(100, device="cuda")
    with profile(activities=[ProfilerActivity.CUDA]) as alone:
        x.sin()
    assert {event.device_type for event in alone.events()} == {DeviceType.CUDA}
    with torch.autograd.profiler.profile(use_device="cuda") as older:
        x.sin()
    row = next(row for row in older.key_averages() if row.key == "aten::sin")
    assert row.self_device_time_total > 0
    with profile(activities=[ProfilerActivity.CPU]) as host:
        x.sin()
    assert not device_events(host)


def test_collection_can_be_switched() -> None:
    x = torch.randn(100, device="cuda")
    with profile(activities=BOTH) as profiled:
        x.sin()
        profiled.toggle_collection_dynamic(False, [ProfilerActivity.CUDA])
        x.cos()
        profiled.toggle_collection_dynamic(True, [ProfilerActivity.CUDA])
        x.tan()
    assert len(device_events(profiled)) == 2


def test_graphs_and_kernels_of_ones_own() -> None:
    gpu = weft.virtual_device()
    kernel = gpu.load(INCREMENT)["inc"]
    x, graph = torch.zeros(32, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
        y += 1
    with profile(activities=BOTH) as profiled:
        kernel[1, 32](x)
        graph.replay()
    names = [event.name for event in device_events(profiled)]
    assert names[0] == "inc" and len(names) == 3


def test_emit_nvtx_puts_operators_on_the_timeline() -> None:
    x = torch.randn(2, 3, device="cuda")
    with torch.autograd.profiler.emit_nvtx(record_shapes=True):
        x.sin().sum()
    with torch.autograd.profiler.emit_nvtx(), torch.cuda.nvtx.range("mine"):
        x.cos()
    spans = timeline.current().spans()
    names = [span.name for span in spans if span.kind == "range"]
    assert names[-4:] == ["aten::sin, sizes = [[2, 3]]", "aten::sum, sizes = [[2, 3]]", "aten::cos", "mine"]
    before = len(spans)
    x.sin()
    assert len(timeline.current().spans()) == before + 1
