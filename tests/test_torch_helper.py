"""The compiled helper of the PyTorch front end: everything is the same with it and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from weft import settings
from weft.errors import UnsupportedError
from weft.frontends.torch.helper import build_helper, describe_helper, find_compiler, helper_path

pytest.importorskip("torch")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def helper() -> Path:
    """The helper, in the cache of this test run; about half a minute where it is not there yet."""
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    return build_helper()


def run_python(*words: str, helper: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"WEFT_TORCH_HELPER": str(int(helper)), "OMP_NUM_THREADS": "1"}
    own["WEFT_CACHE_DIR"] = str(settings.current().cache_dir)
    return subprocess.run(
        [sys.executable, *words], env=os.environ | own | environment, capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow
def test_results_memory_and_time_are_the_same_both_ways(helper: Path) -> None:
    sides = []
    for use in (False, True):
        done = run_python(str(HERE / "torch_both_ways.py"), helper=use)
        assert done.returncode == 0, done.stderr
        sides.append([json.loads(line) for line in done.stdout.splitlines()])
    python, compiled = sides
    assert [part[0] for part in python] == [part[0] for part in compiled] and len(python) == 9
    for one, other in zip(python, compiled):
        assert one == other, one[0]


@pytest.mark.slow
def test_the_tests_of_tensors_pass_with_the_helper(helper: Path) -> None:
    files = [str(HERE / "test_torch_tensors.py"), str(HERE / "test_torch_devices.py")]
    done = run_python("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files, helper=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_helper_computes_and_steps_aside_for_listeners(helper: Path) -> None:
    program = """
import weft
weft.install("h100")
import torch
from weft.frontends.torch import dispatch
from weft.frontends.torch.recording import off_the_timeline, recorder
a = torch.ones(4, 4, device="cuda")
(a * 3).tanh_()
written = {name for name, entry in dispatch.entries.items() if entry.source}
print(sorted(written & {"mul.Tensor", "tanh_"}))
heard = []
listener = lambda name, args, result, kwargs, stream, device: heard.append(name)
recorder.add(listener)
b = a * 3
recorder.remove(listener)
c = a * 3
print(heard, hasattr(b, "_weft"), hasattr(c, "_weft"), torch.equal(b, c))
timeline = weft.timeline.current()
count = timeline.record_count
with off_the_timeline():
    a + 1
print(timeline.record_count - count)
a + 1
print(timeline.record_count - count)
"""
    done = run_python("-c", program, helper=True)
    assert done.stdout.splitlines() == ["[]", "['mul.Tensor'] True False True", "0", "1"], done.stderr


def test_a_program_that_ends_after_a_backward_pass_ends_well() -> None:
    program = """
import threading
import weft
weft.install("h100")
import torch
w = torch.ones(4, 4, device="cuda", requires_grad=True)
seen = []
w.register_hook(lambda grad: seen.append(threading.get_ident()))
(w @ w).sum().backward()
print(seen == [threading.get_ident()], torch._C._is_multithreading_enabled())
"""
    for _ in range(2):
        done = run_python("-c", program, helper=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


def test_the_log_of_a_long_run_stays_small() -> None:
    program = """
import gc, tracemalloc
import weft
weft.install("h100")
import torch
a = torch.ones(4, device="cuda")
for _ in range(100):
    a.add_(1)
gc.collect()
timeline = weft.timeline.current()
count = timeline.record_count
tracemalloc.start()
for _ in range(20000):
    a.add_(1)
gc.collect()
print(timeline.record_count - count, tracemalloc.get_traced_memory()[0])
"""
    for use in (False, True):
        done = run_python("-c", program, helper=use)
        records, size = map(int, done.stdout.split())
        assert records == 20000 and size < 16 * records, done.stderr


def test_where_it_lies_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = settings.current()
    monkeypatch.setenv("CXX", "no-such-compiler")
    try:
        settings.configure(cache_dir=tmp_path)
        assert tmp_path in helper_path().parents and helper_path() == helper_path()
        assert describe_helper().endswith("weft helper build")
        with pytest.raises(UnsupportedError, match=r"C\+\+ compiler: apt-get install g\+\+"):
            build_helper()
        monkeypatch.setenv("CXX", "false")
        with pytest.raises(UnsupportedError, match="does not compile the helper"):
            build_helper()
        assert not list(tmp_path.rglob("*.so")) and not list(tmp_path.rglob("*.tmp"))
        helper_path().parent.mkdir(parents=True, exist_ok=True)
        helper_path().write_bytes(b"")
        assert describe_helper().endswith("programs use it")
        settings.configure(torch_helper=False)
        assert "WEFT_TORCH_HELPER=0" in describe_helper()
    finally:
        settings.configure(cache_dir=before.cache_dir, torch_helper=before.torch_helper)
