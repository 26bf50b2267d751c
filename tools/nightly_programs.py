"""Whole programs under `weft run`, as users start them: Trainer, accelerate and Lightning on one GPU and on two."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from functools import partial
from pathlib import Path

from nightly_checks import Checks, Help

CHECKS = Checks("transformers", "accelerate")
# What a program begins with where torchvision cannot be imported without help.
_HELP = "import nightly_checks; nightly_checks.declare_operators()\n"


def run_program(program: str, *before: str, gpus: int = 1, module: str = "") -> tuple[str, str]:
    """Standard output and error of a program under `weft run`; before: a launcher's words. Asserts that it succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.py")
        path.write_text((_HELP if Help.given else "") + textwrap.dedent(program))
        started = ["-m", module, *before, str(path)] if module else [str(path)]
        command = [sys.executable, "-m", "weft", "run", "--gpu", "a100", "--gpus", str(gpus), *started]
        paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path(__file__).parent))))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": paths}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "A100" in done.stderr and "weft: time" in done.stderr, done.stderr
    return done.stdout, done.stderr


def summary(error: str) -> str:
    """How long the run takes on the chip, of its summary."""
    found = re.search(r"weft: time +(.*?predicted)", error)
    assert found, error
    return found[1]


# ---------------------------------------------------------------- accelerate
_ACCELERATED = """
    import torch
    from accelerate import Accelerator
    accelerator = Accelerator(mixed_precision="bf16")
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    data = torch.utils.data.TensorDataset(torch.ones(32, 4))
    model, optimiser, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), 0.05), torch.utils.data.DataLoader(data, 4))
    for (batch,) in loader:
        loss = (model(batch) - 3).square().mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    total = accelerator.reduce(torch.ones(1, device=accelerator.device))
    print(f"rank {accelerator.process_index} of {accelerator.num_processes} on {accelerator.device.type}"
          f" {torch.cuda.current_device()} {total.item():g} {type(model).__name__}", flush=True)
    accelerator.end_training()
"""


def accelerated(processes: int, *options: str, kind: str = "") -> str:
    words = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "bf16",
             "--dynamo_backend", "no", *options]  # fmt: skip
    out, error = run_program(_ACCELERATED, *words, gpus=processes, module="accelerate.commands.launch")
    lines = sorted(line for line in out.splitlines() if line.startswith("rank"))
    assert len(lines) == processes, out
    for rank, line in enumerate(lines):
        assert line.startswith(f"rank {rank} of {processes} on cuda {rank} {processes} {kind}"), lines
    return summary(error)


CHECKS.add("accelerate launch")(partial(accelerated, 1, kind="Sequential"))
CHECKS.add("accelerate launch, 2 GPUs")(partial(accelerated, 2, "--multi_gpu", kind="DistributedDataParallel"))
CHECKS.add("accelerate launch, FSDP2")(
    partial(accelerated, 2, "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "SIZE_BASED_WRAP",
            "--fsdp_min_num_params", "10", kind="FSDP")
)  # fmt: skip

# ---------------------------------------------------------------- Trainer
_TRAINER = """
    import torch, transformers
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    class Sentences(torch.utils.data.Dataset):
        def __init__(self, count):
            self.words = torch.randint(3, 99, (count, 9), generator=torch.Generator().manual_seed(count))
        def __len__(self):
            return len(self.words)
        def __getitem__(self, place):
            return {"input_ids": self.words[place], "labels": int(self.words[place][0] > 50)}

    transformers.set_seed(1)
    model = BertForSequenceClassification(BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64))
    arguments = TrainingArguments("out", num_train_epochs=3, per_device_train_batch_size=8, learning_rate=3e-3,
                                  bf16=True, logging_steps=4, eval_strategy="epoch", report_to=[])
    trainer = Trainer(model, arguments, train_dataset=Sentences(128), eval_dataset=Sentences(32))
    trainer.train()
    first, last = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][::
        len([entry for entry in trainer.state.log_history if "loss" in entry]) - 1]
    print(f"rank {arguments.process_index} of {arguments.world_size}, {arguments.n_gpu} GPUs here, "
          f"{trainer.state.global_step} steps, {'better' if last < first else 'worse'}", flush=True)
"""


def trained(*lines: str, gpus: int = 1, module: str = "", words: tuple[str, ...] = ()) -> str:
    out, error = run_program(_TRAINER, *words, gpus=gpus, module=module)
    found = sorted(line for line in out.splitlines() if line.startswith("rank"))
    assert found == list(lines), (found, error[-2000:])
    assert "bytes only" not in error, error
    return summary(error)


CHECKS.add("Trainer program")(partial(trained, "rank 0 of 1, 1 GPUs here, 48 steps, better"))
CHECKS.add("Trainer program, DataParallel")(partial(trained, "rank 0 of 1, 2 GPUs here, 24 steps, better", gpus=2))
CHECKS.add("Trainer program, torchrun")(
    partial(
        trained, *(f"rank {rank} of 2, 1 GPUs here, 24 steps, better" for rank in range(2)), gpus=2,
        module="torch.distributed.run", words=("--nproc-per-node", "2", "--standalone"),
    )
)  # fmt: skip

# ---------------------------------------------------------------- Lightning
_LIGHTNING = """
    import lightning, torch

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 3)
        def training_step(self, batch, number):
            loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
            self.log("loss", loss, sync_dist=True)
            return loss
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)
        def on_train_end(self):
            trainer = self.trainer
            print(f"rank {trainer.global_rank} of {trainer.world_size}, {trainer.strategy.root_device}, "
                  f"{trainer.global_step} steps", flush=True)

    if __name__ == "__main__":
        torch.manual_seed(0)
        data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,)))
        trainer = lightning.Trainer(max_epochs=2, accelerator="gpu", devices=DEVICES, strategy="STRATEGY",
                                    precision="16-mixed", logger=False, enable_checkpointing=False,
                                    enable_progress_bar=False)
        trainer.fit(Model(), torch.utils.data.DataLoader(data, 8, shuffle=True))
"""


def lightened(devices: int, strategy: str) -> str:
    out, error = run_program(_LIGHTNING.replace("DEVICES", str(devices)).replace("STRATEGY", strategy), gpus=devices)
    found = sorted(line for line in out.splitlines() if line.startswith("rank"))
    steps = 16 // devices
    assert found == [f"rank {rank} of {devices}, cuda:{rank}, {steps} steps" for rank in range(devices)], (found, error)
    return summary(error)


CHECKS.add("Lightning program", "lightning")(partial(lightened, 1, "auto"))
CHECKS.add("Lightning program, DDP", "lightning")(partial(lightened, 2, "ddp"))
CHECKS.add("Lightning program, spawned DDP", "lightning")(partial(lightened, 2, "ddp_spawn"))
