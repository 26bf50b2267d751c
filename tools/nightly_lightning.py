"""Lightning and torchmetrics on the virtual GPU, against the same run on the CPU."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from nightly_checks import Checks, compare, on_gpu
from torch import nn

CHECKS = Checks("lightning", "torchmetrics")


class Classifier(lightning.LightningModule):
    """A small network for 3 classes of points; it logs loss and accuracy."""

    def __init__(self, width: int = 32):
        super().__init__()
        import torchmetrics

        self.save_hyperparameters()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.losses: list[float] = []
        self.kinds: set[torch.dtype] = set()

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.layers(points)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        points, labels = batch
        scores = self(points)
        self.kinds.add(scores.dtype)
        loss = nn.functional.cross_entropy(scores, labels)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        points, labels = batch
        self.accuracy(self(points), labels)
        self.log("accuracy", self.accuracy, on_epoch=True)

    def predict_step(self, batch: Any, number: int) -> torch.Tensor:
        return self(batch[0]).argmax(-1)

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(self.parameters(), 1e-2)
        return [optimiser], [torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4)]


def loader(seed: int, count: int = 96) -> Any:
    """Points around three centres."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    points = torch.randn(count, 8, generator=generator) + 2 * torch.eye(3, 8)[labels]
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(points, labels), 16)


def make_trainer(folder: str, accelerator: str, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_epochs": 4, "accelerator": accelerator, "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "gradient_clip_val": 1.0, "deterministic": True,
        **options,
    }  # fmt: skip
    return lightning.Trainer(**settings)


@contextlib.contextmanager
def quietly() -> Any:
    """Without advice about loaders, and notes about devices."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.use_deterministic_algorithms(deterministic)


def fit(tolerance: float, kind: torch.dtype = torch.float32, **options: Any) -> str:
    """fit, validate, predict and a checkpoint's way back, against fit on the CPU in float32."""
    with tempfile.TemporaryDirectory() as folder, quietly():
        here, there = Classifier(), Classifier()
        plain = {name: value for name, value in options.items() if name != "precision"}
        make_trainer(f"{folder}/cpu", "cpu", **plain).fit(here, loader(1), loader(2))
        keeper = ModelCheckpoint(dirpath=f"{folder}/kept", monitor="accuracy", mode="max")
        trainer = make_trainer(f"{folder}/gpu", "gpu", callbacks=[keeper], **options)
        assert trainer.strategy.root_device.type == "cuda"
        trainer.fit(there, loader(1), loader(2))
        assert there.kinds == {kind}, there.kinds
        worst = compare([torch.tensor(there.losses)], [torch.tensor(here.losses)], tolerance, "losses")
        accuracy = trainer.validate(there, loader(2), verbose=False)[0]["accuracy"]
        assert accuracy > 0.75, accuracy
        assert Path(keeper.best_model_path).is_file()
        again = Classifier.load_from_checkpoint(keeper.best_model_path, map_location="cuda")
        assert on_gpu(again)
        answers = torch.cat(trainer.predict(there, loader(2)))
        assert answers.shape == (96,)
    return f"{worst:.0e}, accuracy {accuracy:.2f}"


CHECKS.add("Lightning float32")(partial(fit, 1e-4))
CHECKS.add("Lightning 16-mixed")(partial(fit, 0.02, torch.float16, precision="16-mixed"))
CHECKS.add("Lightning bf16-mixed")(partial(fit, 0.02, torch.bfloat16, precision="bf16-mixed"))
CHECKS.add("Lightning bf16-true")(partial(fit, 0.1, torch.bfloat16, precision="bf16-true"))
CHECKS.add("Lightning accumulation")(partial(fit, 1e-4, accumulate_grad_batches=2, max_epochs=8))


@CHECKS.add("Lightning resume")
def resume() -> str:
    with tempfile.TemporaryDirectory() as folder, quietly():
        whole, part = Classifier(), Classifier()
        make_trainer(f"{folder}/whole", "gpu", precision="16-mixed").fit(whole, loader(1))
        first = make_trainer(f"{folder}/part", "gpu", precision="16-mixed", max_epochs=2)
        first.fit(part, loader(1))
        first.save_checkpoint(f"{folder}/half.ckpt")
        second = Classifier()
        make_trainer(f"{folder}/part", "gpu", precision="16-mixed").fit(
            second, loader(1), ckpt_path=f"{folder}/half.ckpt", weights_only=False
        )
        return f"{compare(second.parameters(), whole.parameters(), 2e-2, 'parameters'):.0e}"


@CHECKS.add("Lightning auto accelerator")
def automatic() -> str:
    with tempfile.TemporaryDirectory() as folder, quietly():
        trainer = make_trainer(folder, "auto")
        assert trainer.strategy.root_device == torch.device("cuda", 0), trainer.strategy.root_device
        return type(trainer.accelerator).__name__


@CHECKS.add("Lightning Fabric")
def fabric() -> str:
    with quietly():
        found = lightning.Fabric(accelerator="cuda", devices=1, precision="bf16-mixed")
        found.launch()
        model = Classifier()
        plain = Classifier()
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        model, optimiser = found.setup(model, optimiser)
        batches = found.setup_dataloaders(loader(1))
        losses = []
        for points, labels in batches:
            assert points.is_cuda
            loss = nn.functional.cross_entropy(model(points), labels)
            found.backward(loss)
            found.clip_gradients(model, optimiser, max_norm=1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        expected = []
        optimiser = torch.optim.SGD(plain.parameters(), 0.1)
        for points, labels in loader(1):
            loss = nn.functional.cross_entropy(plain(points), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            expected.append(loss.item())
    return f"{compare([torch.tensor(losses)], [torch.tensor(expected)], 0.02, 'losses'):.0e}"


@CHECKS.add("torchmetrics")
def metrics() -> str:
    """Metrics of several kinds, updated on the GPU and on the CPU."""
    import torchmetrics

    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(60, 3, generator=generator).softmax(-1), torch.randint(0, 3, (60,), generator=generator)
    values, targets = torch.randn(60, generator=generator), torch.randn(60, generator=generator)
    cases = {
        "Accuracy": (scores, labels), "F1Score": (scores, labels), "AUROC": (scores, labels),
        "ConfusionMatrix": (scores, labels), "CalibrationError": (scores, labels), "MatthewsCorrCoef": (scores, labels),
        "MeanSquaredError": (values, targets), "PearsonCorrCoef": (values, targets), "R2Score": (values, targets),
        "SpearmanCorrCoef": (values, targets),
    }  # fmt: skip
    worst = 0.0
    for name, inputs in cases.items():
        options = {"task": "multiclass", "num_classes": 3} if inputs[0] is scores else {}
        results = []
        for device in ("cpu", "cuda"):
            metric = getattr(torchmetrics, name)(**options).to(device)
            metric.update(*(value[:30].to(device) for value in inputs))
            metric.update(*(value[30:].to(device) for value in inputs))
            results.append(metric.compute())
        assert results[1].is_cuda, name
        worst = max(worst, compare(results[1:], results[:1], 1e-4, name))
    return f"{len(cases)} metrics, {worst:.0e}"
