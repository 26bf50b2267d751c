"""What `weft run` says at its end and `weft compare` prints: texts, JSON, traces; predicted and measured told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from weft.chips import find_chip
from weft.errors import InvalidValueError
from weft.model.work import KernelLaunch
from weft.report.comparison import choose_visible, compare, comparison_rows, find_chips
from weft.report.run import report_run, slowest
from weft.report.summary import (
    cost_of,
    fits,
    format_dollars,
    format_joules,
    format_seconds,
    summarize,
    summary_lines,
)
from weft.report.trace import HOST, trace_events, write_trace
from weft.timeline import Timeline

PROGRAM = """
import sys
import numpy as np
import weft

kernels = weft.Device().compile('''
extern "C" __global__ void twice(int n, float* x) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= 2;
}''')
gpu = kernels.device
x = gpu.ones(1 << 16)
for _ in range(5):
    kernels["twice"][256, 256](1 << 16, x)
print(gpu.chip.name, x.numpy()[0])
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
"""


@pytest.fixture
def timeline() -> Timeline:
    made = Timeline("h100")
    for _ in range(10):
        made.kernel(KernelLaunch("stream", 1320, 256, bytes_read=3.0e9))  # 1 ms each
    made.kernel(KernelLaunch("crunch", 1320, 256, flops=(("fp32", 67e12 * 0.85 * 1e-3),)))
    made.note_memory(0, 20 << 30, 30 << 30)
    return made


# ---------------------------------------------------------------- numbers and texts
@pytest.mark.parametrize(
    "seconds, text",
    [(1.234, "1.23 s"), (0.00123, "1.23 ms"), (4.56e-6, "4.56 us"), (5e-8, "0.05 us"), (4000, "4,000 s"),
     (0.9996, "1e+03 ms")],
)  # fmt: skip
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) in (text, "1,000 ms")


def test_joules_and_dollars() -> None:
    assert [format_joules(value) for value in (0.5, 12, 7200, 7.2e6)] == ["500 mJ", "12 J", "2 Wh", "2 kWh"]
    assert format_dollars(1.5) == "1.5 USD"


def test_summary_adds_up(timeline: Timeline) -> None:
    data = summarize(timeline, wall_seconds=3.0)
    predicted = data["predicted"]
    assert predicted["device_seconds"] == pytest.approx(11e-3, rel=0.01)
    assert sum(part["share"] for part in predicted["families"].values()) == pytest.approx(1.0)
    assert sum(predicted["limiters"].values()) == pytest.approx(1.0)
    assert predicted["limiters"]["memory bandwidth"] == pytest.approx(10 / 11, rel=0.01)
    assert predicted["cost_dollars"] == pytest.approx(predicted["elapsed_seconds"] * 2.69 / 3600)
    assert data["counted"]["peak_memory"][0]["allocated"] == 20 << 30 and data["counted"]["fits"] is True
    assert data["measured"]["wall_seconds_on_this_machine"] == 3.0
    assert json.loads(json.dumps(data)) is not None
    assert cost_of(timeline.clock, 2) == pytest.approx(2 * predicted["cost_dollars"])


def test_energy_is_power_times_time(timeline: Timeline) -> None:
    joules = summarize(timeline)["predicted"]["energy_joules"]
    # Ten milliseconds at 70 % and one at 100 % of what lies between 70 and 700 W.
    assert joules == pytest.approx(10e-3 * (70 + 0.7 * 630) + 1e-3 * 700, rel=0.02)


def test_summary_says_what_is_predicted_measured_assumed(timeline: Timeline) -> None:
    lines = dict(summary_lines(timeline, 3.0))
    assert "predicted" in lines["time"] and "3 s measured on this machine's CPU" in lines["time"]
    assert "virtual" in lines["device"] and "published, 2026" in lines["cost"] and "predicted" in lines["energy"]
    assert lines["by family"] == "compiled 100% of 11 kernels"
    assert lines["memory"].startswith("21.5 GB allocated at most, 25% of 85.9 GB")
    assert lines["rough"] == "kernels estimated roughly: stream (10), crunch (1)"


def test_launch_bound_program_is_told_so() -> None:
    made = Timeline("h100")
    for _ in range(100):
        made.kernel(KernelLaunch("tiny", 1, 32, bytes_read=100.0))
    assert "launch-bound" in dict(summary_lines(made))["time"]
    assert comparison_rows(made, [find_chip("h100")])[0][6] == "launches of the host"


def test_nothing_is_said_where_no_device_was_used() -> None:
    assert summary_lines(Timeline("h100")) == []


def test_bytes_only_operators_are_named() -> None:
    made = Timeline("h100")
    made.operator("mylib::odd", (), ())
    assert dict(summary_lines(made))["bytes only"] == "operators priced by their bytes alone: mylib::odd (1)"


def test_fits() -> None:
    assert fits(find_chip("h100"), {}) is None
    assert fits(find_chip("rtx3070"), {0: (7 << 30, 0), 1: (9 << 30, 0)}) is False


# ---------------------------------------------------------------- comparison
def test_rows_of_the_comparison(timeline: Timeline) -> None:
    chips = find_chips("h100, rtx4060,mi300x,h100")
    assert [chip.name for chip in chips] == ["h100", "rtx4060", "mi300x"]
    rows = comparison_rows(timeline, chips, 3.0)
    assert [row[0] for row in rows] == ["h100", "rtx4060", "mi300x", "this CPU"]
    assert rows[0][3] == "fits: 21.5 GB of 85.9 GB" and rows[1][3].startswith("does not fit: 21.5 GB of 8.59 GB")
    assert "11 compiled kernels would have to be ported" in rows[2][7]
    assert "(assumed)" in rows[1][5] and "assumed" not in rows[0][5]
    assert rows[3][1] == "3 s" and rows[3][7].startswith("measured")
    data = compare(timeline, chips, 3.0)
    assert [found["chip"]["name"] for found in data["chips"]] == ["h100", "rtx4060", "mi300x"]
    times = [found["predicted"]["elapsed_seconds"] for found in data["chips"]]
    assert times[1] > 5 * times[0]


def test_the_program_sees_the_roomiest_chip_that_runs_kernels() -> None:
    assert choose_visible(find_chips("rtx4060,mi300x,l40s")).name == "l40s"
    assert choose_visible(find_chips("tpu-v5e")).name == "h100"
    with pytest.raises(InvalidValueError, match="name at least one chip"):
        find_chips(" , ")
    with pytest.raises(InvalidValueError, match="did you mean rtx4090"):
        find_chips("rtx409")


def test_the_slowest_process_speaks_for_all(timeline: Timeline) -> None:
    longer = Timeline("h100")
    longer.kernel(KernelLaunch("long", 1, 32, bytes_read=3.0e12))
    assert slowest(Timeline("h100"), [timeline, longer]) is longer
    empty = Timeline("h100")
    assert slowest(empty, []) is empty


# ---------------------------------------------------------------- traces
def test_trace(tmp_path: Path, timeline: Timeline) -> None:
    timeline.push_range("phase")
    timeline.copy("h2d", 1 << 20, stream=5)
    timeline.mark("here")
    timeline.pop_range()
    path = tmp_path / "trace.json"
    count = write_trace(timeline, path)
    data = json.loads(path.read_text())
    assert len(data["traceEvents"]) == count and data["otherData"]["chip"] == "h100"
    complete = [event for event in data["traceEvents"] if event["ph"] == "X" and event["pid"] != HOST]
    assert len(complete) == 12
    assert complete[0]["dur"] == pytest.approx(1000, rel=0.01)
    names = {event["args"]["name"] for event in data["traceEvents"] if event["ph"] == "M"}
    assert {"stream 0", "stream 5", "host (virtual)", "device 0: NVIDIA H100 80GB HBM3 (predicted)"} <= names
    assert any(event["ph"] == "i" and event["name"] == "here" for event in data["traceEvents"])
    ends = {}
    for event in complete:
        lane = (event["pid"], event["tid"])
        assert event["ts"] >= ends.get(lane, 0) - 1e-6, "work of one stream does not overlap"
        ends[lane] = event["ts"] + event["dur"]
    assert list(trace_events([], timeline.chip))


# ---------------------------------------------------------------- the commands
def weft_command(tmp_path: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "weft", *(str(program) if word == "PROGRAM" else word for word in words)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done


def test_weft_run_ends_with_a_summary(tmp_path: Path) -> None:
    done = weft_command(tmp_path, "run", "--gpu", "a100", "--json", "out.json", "--trace", "out.trace", "PROGRAM", "3",
                        expect=3)  # fmt: skip
    assert done.stdout == "a100-80gb 32.0\n"
    lines = done.stderr.splitlines()
    assert lines[0] == "weft: device      NVIDIA A100-SXM4-80GB (virtual)" and all(
        line.startswith("weft: ") for line in lines
    )
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["chip"]["name"] == "a100-80gb" and data["counted"]["rough_estimates"] == {"twice": 5}
    assert json.loads((tmp_path / "out.trace").read_text())["traceEvents"]


def test_weft_run_can_be_quiet(tmp_path: Path) -> None:
    done = weft_command(tmp_path, "run", "--gpu", "a100", "--no-summary", "PROGRAM")
    assert (done.stdout, done.stderr) == ("a100-80gb 32.0\n", "")


def test_weft_run_says_at_once_that_a_file_cannot_be_written(tmp_path: Path) -> None:
    done = weft_command(tmp_path, "run", "--gpu", "a100", "--json", "no/such/folder.json", "PROGRAM", expect=1)
    assert done.stdout == "" and "cannot write no/such/folder.json" in done.stderr


def test_weft_compare(tmp_path: Path) -> None:
    done = weft_command(tmp_path, "compare", "--gpus", "rtx3060,l40s,tpu-v5p", "--json", "out.json", "PROGRAM")
    lines = done.stdout.splitlines()
    assert lines[0] == "l40s 32.0", "the program sees the chip with the most memory"
    assert [line.split()[0] for line in lines[3:7]] == ["rtx3060", "l40s", "tpu-v5p", "this"]
    assert "measured" in lines[6]
    assert len(json.loads((tmp_path / "out.json").read_text())["chips"]) == 3


def test_weft_compare_of_an_unknown_chip(tmp_path: Path) -> None:
    done = weft_command(tmp_path, "compare", "--gpus", "h100,warp9", "PROGRAM", expect=1)
    assert done.stdout == "" and "no chip 'warp9'" in done.stderr


def test_report_also_comes_after_an_exception(tmp_path: Path, capsys) -> None:
    with pytest.raises(ZeroDivisionError):
        with report_run(find_chip("h100")) as timeline:
            timeline.kernel(KernelLaunch("k", 1, 32, bytes_read=1e6))
            raise ZeroDivisionError
    assert "weft: time" in capsys.readouterr().err
