"""What goes wrong in PyTorch programs: the error that PyTorch raises on a GPU, and everything works on afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import weft  # noqa: E402
from weft import cli  # noqa: E402
from weft.errors import UnsupportedError  # noqa: E402
from weft.frontends.torch.versions import check_installed, check_version  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def gpu():
    return weft.install("h100", children=False)


def run(
    program: Path, text: str, *options: str, weft_run: bool = True, **environment: str
) -> subprocess.CompletedProcess:
    program.write_text(text)
    command = [sys.executable, "-m", "weft", "run", *options] if weft_run else [sys.executable]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*command, str(program)], capture_output=True, text=True, timeout=250, env=variables)


# ---------------------------------------------------------------- the wrong PyTorch
@pytest.mark.parametrize(("version", "text"), [
    ("2.9.1", r"PyTorch 2\.9\.1 was not tried with Weft's virtual GPUs, which need torch>=2\.13,<2\.14: pip install"),
    ("2.14.0+cpu", r"PyTorch 2\.14\.0\+cpu was not tried .* torch>=2\.13,<2\.14"),
    ("2.13.0+cu130", r"PyTorch 2\.13\.0\+cu130 is built for CUDA 13\.0; .* need the CPU build"),
])  # fmt: skip
def test_a_version_that_was_not_tried_is_refused_before_it_is_loaded(version: str, text: str, tmp_path: Path) -> None:
    package = tmp_path / "packages" / f"torch-{version}.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    program = (
        "import sys\n"
        "try: import torch\n"
        "except Exception as error: print(type(error).__name__, error, 'torch._C' in sys.modules)\n"
    )
    done = run(tmp_path / "program.py", program, PYTHONPATH=str(package.parent))
    assert done.stdout.startswith("UnsupportedError ") and done.stdout.endswith("False\n"), done.stdout + done.stderr
    with pytest.raises(UnsupportedError, match=text):
        raise UnsupportedError(done.stdout)


def test_a_version_is_judged_by_what_it_says() -> None:
    check_installed()
    for version in ("2.13.0", "2.13.1+cpu", "2.13.0a0+git1234567"):
        check_version(version)
    for version in ("2.12.9", "3.0.0", "1.13.0", "unknown"):
        with pytest.raises(UnsupportedError, match="torch>=2.13,<2.14"):
            check_version(version)


# ---------------------------------------------------------------- a real GPU
@pytest.fixture
def real_gpu(monkeypatch: pytest.MonkeyPatch):
    installation = sys.modules["weft.install"]  # weft.install is its function
    attached = []
    monkeypatch.delenv("WEFT_GPU", raising=False)
    monkeypatch.setattr(installation, "find_real_gpus", lambda: ["/dev/nvidia0"])
    monkeypatch.setattr(installation, "attach_front_ends", lambda **options: attached.append(options))
    monkeypatch.setattr("weft.settings.configure", lambda **options: None)
    return attached


def test_a_real_gpu_is_used(real_gpu: list, capsys: pytest.CaptureFixture) -> None:
    assert not cli.attach(count=2) and real_gpu == []
    assert "frameworks use the real GPU (/dev/nvidia0); --gpu NAME chooses a virtual one" in capsys.readouterr().err


def test_a_virtual_gpu_is_used_where_it_is_asked_for(real_gpu: list, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.attach(gpu="t4") and real_gpu == [{"gpu": "t4"}]
    monkeypatch.setenv("WEFT_GPU", "a10")
    assert cli.attach() and len(real_gpu) == 2


# ---------------------------------------------------------------- mixed devices
CPU = torch.ones(4, 4)
MIXED = {
    "pointwise": (lambda x: x + CPU, "found at least two devices, cuda:0 and cpu!"),
    "product": (
        lambda x: x @ CPU,
        r"got mat2 is on cpu, different from other tensors on cuda:0 \(when checking argument in "
        r"method wrapper_CUDA_mm\)",
    ),
    "linear": (lambda x: torch.nn.Linear(4, 4).cuda()(CPU), "got mat1 is on cpu.*wrapper_CUDA_addmm"),
    "embedding": (
        lambda x: torch.nn.Embedding(4, 2).cuda()(torch.zeros(1, dtype=torch.long)),
        "got index is on cpu.*method wrapper_CUDA__index_select",
    ),
    "loss": (
        lambda x: torch.nn.functional.cross_entropy(x, torch.zeros(4, dtype=torch.long)),
        "got target is on cpu.*wrapper_CUDA_nll_loss_forward",
    ),
    "convolution": (
        lambda x: torch.nn.Conv2d(1, 1, 1).cuda()(torch.ones(1, 1, 2, 2)),
        r"Input type \(torch.FloatTensor\) and weight type \(torch.cuda.FloatTensor\) should be the same",
    ),
    "index": (lambda x: CPU[torch.zeros(1, dtype=torch.long, device="cuda")], "indices should be either on cpu or on"),
    "where": (lambda x: torch.where(x > 0, x, CPU), "found at least two devices, cuda:0 and cpu!"),
    "out": (lambda x: torch.add(x, x, out=torch.empty(4, 4)), "found at least two devices, cuda:0 and cpu!"),
    "product out": (lambda x: torch.mm(x, x, out=torch.empty(4, 4)), "Expected all tensors to be on the same device"),
    "cat": (lambda x: torch.cat([x, CPU]), "got tensors is on cpu"),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices(name: str) -> None:
    call, text = MIXED[name]
    with pytest.raises(RuntimeError, match=text):
        call(torch.ones(4, 4, device="cuda"))


def test_cpu_scalars_may_meet_cuda_tensors() -> None:
    x = torch.ones(3, device="cuda")
    assert (x * torch.tensor(2.0)).tolist() == [2, 2, 2] and (torch.tensor(1) - x).tolist() == [0, 0, 0]
    assert torch.ones(3).copy_(x * 3).tolist() == [3, 3, 3]


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), __import__("numpy").asarray])
def test_no_way_to_numpy(convert) -> None:
    text = r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\) to copy the tensor to host memory"
    with pytest.raises(TypeError, match=text):
        convert(torch.ones(2, device="cuda"))


# ---------------------------------------------------------------- memory that is gone
def test_storages_that_were_freed_can_come_back() -> None:
    x = torch.arange(4096.0, device="cuda")
    before = torch.cuda.memory_allocated()
    x.untyped_storage().resize_(0)
    assert before - torch.cuda.memory_allocated() == 4 * 4096
    x.untyped_storage().resize_(4 * 4096)
    assert torch.cuda.memory_allocated() == before and x.fill_(2).sum().item() == 8192


def test_values_that_backward_freed() -> None:
    weight = torch.ones(3, device="cuda", requires_grad=True)
    loss = (weight**2).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        loss.backward()
    assert weight.grad.tolist() == [2, 2, 2]


def test_values_that_were_changed_before_backward() -> None:
    weight = torch.ones(2, device="cuda", requires_grad=True)
    hidden = weight.exp()
    loss = hidden.sum()
    hidden.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: \[torch.cuda.FloatTensor \[2\]\]"):
        loss.backward()


def test_graphs_that_were_reset() -> None:
    x = torch.ones(1 << 20, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
    graph.replay()
    kept = y.clone()
    graph.reset()
    with pytest.raises(RuntimeError, match="Called CUDAGraph::replay without a preceding successful capture"):
        graph.replay()
    assert kept[-1].item() == 2


def test_captures_that_fail_leave_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.ones(3, device="cuda")
            raise ZeroDivisionError
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.cuda.current_stream() == torch.cuda.default_stream() and torch.ones(2, device="cuda").sum().item() == 2


# ---------------------------------------------------------------- memory that is not enough
def test_training_goes_on_after_running_out_of_memory() -> None:
    torch.cuda.empty_cache()
    torch.manual_seed(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(6))).cuda()
    optimiser = torch.optim.Adam(model.parameters())

    def step(rows: int) -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = model(torch.ones(rows, 256, device="cuda")).square().mean()
        loss.backward()
        optimiser.step()
        return loss.item()

    losses = [step(64)]
    held = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / (80 << 30))
    failed = 0
    try:
        rows = 1 << 16
        while failed < 10:
            try:
                losses.append(step(rows))
                break
            except torch.cuda.OutOfMemoryError as error:
                assert "CUDA out of memory. Tried to allocate" in str(error) and "allowed; Of the allocated" in str(
                    error
                )
                failed, rows = failed + 1, rows // 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= failed < 10 and torch.cuda.memory_stats()["num_ooms"] >= failed
    losses.append(step(64))
    assert losses[-1] < losses[0] and torch._C._is_multithreading_enabled()
    optimiser.zero_grad(set_to_none=True)
    assert torch.cuda.memory_allocated() <= held


# ---------------------------------------------------------------- exceptions of the program's own
class Failure(Exception):
    pass


def fail(*args: object) -> None:
    raise Failure("in a hook")


@pytest.mark.parametrize("register", [
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook",
])  # fmt: skip
def test_exceptions_in_modules_hooks(register: str) -> None:
    module = torch.nn.Linear(2, 2).cuda()
    data = torch.ones(1, 2, device="cuda", requires_grad=True)
    handle = getattr(module, register)(fail)
    with pytest.raises(Failure, match="in a hook"):
        module(data).sum().backward()
    handle.remove()
    module.zero_grad()
    module(data).sum().backward()
    assert module.bias.grad.tolist() == [1, 1] and torch._C._is_multithreading_enabled()


def test_exceptions_in_tensors_hooks() -> None:
    weight = torch.ones(2, device="cuda", requires_grad=True)
    for register in (weight.register_hook, weight.register_post_accumulate_grad_hook):
        handle = register(fail)
        with pytest.raises(Failure):
            (weight * 2).sum().backward()
        handle.remove()
    weight.grad = None
    (weight * 2).sum().backward()
    assert weight.grad.tolist() == [2, 2]


def test_exceptions_in_hooks_of_saved_tensors() -> None:
    weight = torch.full((2,), 3.0, device="cuda", requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks
    with pytest.raises(Failure), hooks(fail, lambda kept: kept):
        weight * weight
    with hooks(lambda kept: kept, fail):
        loss = (weight * weight).sum()
    with pytest.raises(Failure):
        loss.backward()
    with torch.autograd.graph.save_on_cpu(pin_memory=True):
        loss = (weight * weight).sum()
    loss.backward()
    assert weight.grad.tolist() == [6, 6]


def test_exceptions_in_functions_of_ones_own() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            fail()

    with pytest.raises(Failure):
        Broken.apply(torch.ones(2, device="cuda", requires_grad=True)).sum().backward()
    weight = torch.ones(2, device="cuda", requires_grad=True)
    weight.sum().backward()
    assert weight.grad.tolist() == [1, 1]


# ---------------------------------------------------------------- a backward pass before Weft
LATE = """
import torch
weight = torch.ones(3, requires_grad=True)
(weight * 2).sum().backward()
import os, weft
weft.install("h100", children=False)
print(torch.cuda.is_initialized())
if os.fork() == 0:
    print(torch.ones(3, device="cuda").sum().item(), flush=True)
    os._exit(0)
os.wait()

@torch.jit.script
def train(x):
    loss = (x * 2).sum()
    loss.backward()  # C++ enters the engine here

weight = torch.ones(3, device="cuda", requires_grad=True)
(weight * 3).sum().backward()
train(weight)
print(weight.grad.tolist())
"""


def test_a_backward_pass_before_weft_was_installed(tmp_path: Path) -> None:
    done = run(tmp_path / "late.py", LATE, weft_run=False)
    assert done.stdout.splitlines() == ["False", "3.0", "[5.0, 5.0, 5.0]"], done.stdout + done.stderr


# ---------------------------------------------------------------- Ctrl-C
TRAINING = """
import os, torch
model = torch.nn.Linear(32, 32).cuda()
optimiser = torch.optim.SGD(model.parameters(), 0.1)

def step():
    optimiser.zero_grad()
    loss = model(torch.randn(8, 32, device="cuda")).square().mean()
    loss.backward()
    optimiser.step()
    return loss

step()
print("training", flush=True)
try:
    while True:
        step()
except KeyboardInterrupt:
    if "CAUGHT" not in os.environ:
        raise
    print(torch.isfinite(step()).item(), torch._C._is_multithreading_enabled(), flush=True)
"""


@pytest.mark.parametrize("caught", [False, True])
def test_interrupted_training(caught: bool, tmp_path: Path) -> None:
    program = tmp_path / "training.py"
    program.write_text(TRAINING)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"CAUGHT": "1"} if caught else {})
    process = subprocess.Popen([sys.executable, "-m", "weft", "run", str(program)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=variables)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "training\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        # Python drops an interrupt that arrives in a finaliser; a user presses again.
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert "weft: time" in errors and "predicted" in errors, errors
    assert (process.returncode, output) == ((0, "True True\n") if caught else (130, "")), errors


# ---------------------------------------------------------------- forked workers
WORKERS = """
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __init__(self, device):
        self.device = device

    def __len__(self):
        return 12

    def __getitem__(self, place):
        return torch.full((4,), float(place), device=self.device)

if __name__ == "__main__":
    torch.ones(1, device="cuda")
    total = 0
    for batch in DataLoader(Numbers("cpu"), batch_size=3, num_workers=2, pin_memory=True, persistent_workers=True):
        assert batch.is_pinned()
        total += batch.to("cuda", non_blocking=True).sum().item()
    print(total)
    try:
        list(DataLoader(Numbers("cuda"), batch_size=3, num_workers=1))
    except RuntimeError as error:
        print("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the "
              "'spawn' start method" in str(error))
    spawned = DataLoader(Numbers("cuda"), batch_size=6, num_workers=1, multiprocessing_context="spawn")
    print([(str(batch.device), batch.sum().item()) for batch in spawned])
"""


def test_workers_of_a_data_loader(tmp_path: Path) -> None:
    done = run(tmp_path / "workers.py", WORKERS, "--no-summary")
    wanted = ["264.0", "True", "[('cuda:0', 60.0), ('cuda:0', 204.0)]"]
    assert done.stdout.splitlines() == wanted, done.stdout + done.stderr
