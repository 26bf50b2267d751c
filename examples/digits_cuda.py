"""Trains a small neural network on handwritten digits, every step of it a CUDA C++ kernel, on a virtual GPU.

    weft run examples/digits_cuda.py [--epochs N] [--gpu NAME] [--seed N] [--compiler NAME] [--out FILE] [--check]

In: the 1,797 images of 8 x 8 pixels that scikit-learn ships, a fifth of them held out for the test, and the kernels
in digits_cuda.cu. Out: the test accuracy, and a PNG with the learning curve and some test digits with what the
network made of them. `--check` compares one training step with the same mathematics in NumPy (float64) first, and
exits with status 1 where they differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import weft

KERNELS = Path(__file__).with_suffix(".cu")
TILE = 16  # as in digits_cuda.cu
LAYERS = (64, 128, 64, 10)
BATCH = 64
RATE = 2e-3
DECAY = 0.02
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Digits:
    """Images [n, 64] float32 in 0..1 and labels [n] int32, for training and for the test."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_split(seed: int) -> Digits:
    """The digits, a fifth of each class held out."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=seed
    )
    return Digits(train_x, train_y, test_x, test_y)


def initial_parameters(random: np.random.Generator) -> np.ndarray:
    """He's initial weights and zero biases of all layers, end to end in one float32 array."""
    parts = []
    for inputs, outputs in zip(LAYERS, LAYERS[1:]):
        parts.append(random.normal(0.0, np.sqrt(2.0 / inputs), inputs * outputs))
        parts.append(np.zeros(outputs))
    return np.concatenate(parts).astype(np.float32)


def split_layers(flat):
    """Views (weights, bias) of each layer in an array of all parameters, on the device or in NumPy."""
    layers = []
    start = 0
    for inputs, outputs in zip(LAYERS, LAYERS[1:]):
        middle = start + inputs * outputs
        layers.append((flat[start:middle], flat[middle : middle + outputs]))
        start = middle + outputs
    return layers


def tiles(columns: int, rows: int) -> tuple[int, int]:
    """The grid that covers a matrix with one block per tile."""
    return (columns + TILE - 1) // TILE, (rows + TILE - 1) // TILE


class Network:
    """The network's parameters, gradients and optimiser state in device memory, and the launches that train it."""

    def __init__(self, gpu: weft.Device, kernels, parameters: np.ndarray):
        self.gpu = gpu
        self.kernels = kernels
        self.parameters = gpu.array(parameters)
        self.gradients = gpu.zeros(parameters.size, np.float32)
        self.means = gpu.zeros(parameters.size, np.float32)
        self.squares = gpu.zeros(parameters.size, np.float32)
        self.layers = split_layers(self.parameters)
        self.layer_gradients = split_layers(self.gradients)
        self.steps = 0

    def forward(self, images, batch: int) -> list:
        """The activations of every layer: the input, two hidden ones, the logits."""
        activations = [images]
        for index, (weights, bias) in enumerate(self.layers):
            inputs, outputs = LAYERS[index], LAYERS[index + 1]
            y = self.gpu.empty((batch, outputs), np.float32)
            relu = int(index < len(self.layers) - 1)
            self.kernels["linear_forward"][tiles(outputs, batch), (TILE, TILE)](
                activations[-1], weights, bias, y, batch, inputs, outputs, relu
            )
            activations.append(y)
        return activations

    def loss(self, logits, labels, totals, batch: int):
        """Device arrays: the gradient of the mean loss by the logits, the predicted classes. Adds to `totals`."""
        gradient = self.gpu.empty((batch, LAYERS[-1]), np.float32)
        predictions = self.gpu.empty(batch, np.int32)
        warps = 4
        self.kernels["softmax_cross_entropy"][(batch + warps - 1) // warps, (32, warps)](
            logits, labels, gradient, predictions, totals, batch, LAYERS[-1]
        )
        return gradient, predictions

    def backward(self, activations: list, gradient, batch: int) -> None:
        """Fills `gradients` from the gradient by the logits."""
        for index in reversed(range(len(self.layers))):
            inputs, outputs = LAYERS[index], LAYERS[index + 1]
            x = activations[index]
            grad_weights, grad_bias = self.layer_gradients[index]
            self.kernels["linear_backward_weights"][tiles(outputs, inputs), (TILE, TILE)](
                x, gradient, grad_weights, grad_bias, batch, inputs, outputs
            )
            if index > 0:
                below = self.gpu.empty((batch, inputs), np.float32)
                self.kernels["linear_backward_input"][tiles(inputs, batch), (TILE, TILE)](
                    gradient, self.layers[index][0], x, below, batch, inputs, outputs
                )
                gradient = below

    def update(self) -> None:
        """One AdamW step over all parameters."""
        self.steps += 1
        count = self.parameters.size
        self.kernels["adamw"][(count + 255) // 256, 256](
            self.parameters, self.gradients, self.means, self.squares, count, RATE, DECAY, BETA1, BETA2, EPSILON,
            1.0 - BETA1**self.steps, 1.0 - BETA2**self.steps,
        )  # fmt: skip

    def train_batch(self, images, labels, totals, batch: int) -> None:
        """One step on a mini-batch in device memory."""
        activations = self.forward(images, batch)
        gradient, _ = self.loss(activations[-1], labels, totals, batch)
        self.backward(activations, gradient, batch)
        self.update()

    def evaluate(self, images, labels, count: int) -> tuple[float, float, np.ndarray]:
        """Mean loss, accuracy (0..1), predicted classes."""
        totals = self.gpu.zeros(2, np.float32)
        activations = self.forward(images, count)
        _, predictions = self.loss(activations[-1], labels, totals, count)
        loss_sum, hits = totals.numpy()
        return float(loss_sum) / count, float(hits) / count, predictions.numpy()


@dataclass(frozen=True)
class Curve:
    """One figure per epoch: mean training loss, training accuracy during the epoch, test accuracy after it."""

    losses: list[float]
    train_accuracies: list[float]
    test_accuracies: list[float]


def train(network: Network, digits: Digits, epochs: int, random: np.random.Generator, console: Console) -> Curve:
    """Trains for `epochs` passes over the training images, in a new order each time."""
    gpu = network.gpu
    images, labels = gpu.array(digits.train_images), gpu.array(digits.train_labels)
    test_images, test_labels = gpu.array(digits.test_images), gpu.array(digits.test_labels)
    count, features = digits.train_images.shape
    batch_images = gpu.empty((BATCH, features), np.float32)
    batch_labels = gpu.empty(BATCH, np.int32)
    curve = Curve([], [], [])
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs  {task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=epochs, state="")
        for epoch in range(epochs):
            order = gpu.array(random.permutation(count).astype(np.int32))
            totals = gpu.zeros(2, np.float32)
            for start in range(0, count, BATCH):
                batch = min(BATCH, count - start)
                network.kernels["gather_batch"][batch, 64](
                    images, labels, order[start : start + batch], batch_images, batch_labels, features
                )
                network.train_batch(batch_images, batch_labels, totals, batch)
            loss_sum, hits = totals.numpy()
            _, accuracy, _ = network.evaluate(test_images, test_labels, len(digits.test_labels))
            curve.losses.append(float(loss_sum) / count)
            curve.train_accuracies.append(float(hits) / count)
            curve.test_accuracies.append(accuracy)
            state = f"loss {curve.losses[-1]:.4f}  test accuracy {accuracy:.1%}"
            progress.update(task, advance=1, state=state)
            if not console.is_terminal and ((epoch + 1) % 10 == 0 or epoch + 1 == epochs):
                console.print(f"epoch {epoch + 1:3d} of {epochs}: {state}")
    return curve


def reference_step(parameters: np.ndarray, images: np.ndarray, labels: np.ndarray):
    """Loss sum, gradients and parameters after the first AdamW step, in float64 with NumPy alone."""
    flat = parameters.astype(np.float64)
    layers = [
        (weights.reshape(inputs, outputs), bias)
        for (weights, bias), inputs, outputs in zip(split_layers(flat), LAYERS, LAYERS[1:])
    ]
    activations = [images.astype(np.float64)]
    for index, (weights, bias) in enumerate(layers):
        y = activations[-1] @ weights + bias
        activations.append(np.maximum(y, 0.0) if index < len(layers) - 1 else y)
    shifted = activations[-1] - activations[-1].max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    loss_sum = -log_probabilities[rows, labels].sum()
    gradient = np.exp(log_probabilities)
    gradient[rows, labels] -= 1.0
    gradient /= len(labels)
    parts = []
    for index in reversed(range(len(layers))):
        parts.append(gradient.sum(axis=0))
        parts.append((activations[index].T @ gradient).ravel())
        if index > 0:
            gradient = (gradient @ layers[index][0].T) * (activations[index] > 0.0)
    gradients = np.concatenate(parts[::-1])
    # After one step the bias corrections cancel the betas: mean / correction is g, square / correction is g * g.
    updated = flat - RATE * (gradients / (np.abs(gradients) + EPSILON) + DECAY * flat)
    return loss_sum, gradients, updated


def check_step(gpu: weft.Device, kernels, digits: Digits, parameters: np.ndarray, console: Console) -> bool:
    """Whether one training step on the device agrees with NumPy; prints the largest differences."""
    batch = 53  # no multiple of the tile
    images, labels = digits.train_images[:batch], digits.train_labels[:batch]
    network = Network(gpu, kernels, parameters)
    totals = gpu.zeros(2, np.float32)
    network.train_batch(gpu.array(images), gpu.array(labels), totals, batch)
    loss_sum, gradients, updated = reference_step(parameters, images, labels)
    found_gradients = network.gradients.numpy()
    # Where a gradient is next to nothing AdamW's first step depends on its sign alone; leave those out.
    clear = np.abs(gradients) > 1e-6
    differences = {
        "loss": (abs(float(totals.numpy()[0]) - loss_sum) / loss_sum, 1e-5),
        "gradients": (float(np.abs(found_gradients - gradients).max() / np.abs(gradients).max()), 1e-5),
        "parameters": (float(np.abs(network.parameters.numpy() - updated)[clear].max()), 1e-5),
    }
    agreed = True
    for name, (difference, allowed) in differences.items():
        agreed = agreed and difference <= allowed
        verdict = "agrees" if difference <= allowed else "DIFFERS"
        console.print(f"check: {name} {verdict} with NumPy (difference {difference:.1e}, allowed {allowed:.0e})")
    return agreed


def draw(path: Path, curve: Curve, digits: Digits, predictions: np.ndarray) -> None:
    """Writes the PNG: the learning curve, and 24 test digits, the network's mistakes first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    accuracy_axis = left.subplots()
    epochs = range(1, len(curve.losses) + 1)
    accuracy_axis.plot(epochs, np.multiply(curve.train_accuracies, 100), label="training accuracy", color="tab:gray")
    accuracy_axis.plot(epochs, np.multiply(curve.test_accuracies, 100), label="test accuracy", color="tab:blue")
    accuracy_axis.set(xlabel="epoch", ylabel="accuracy (%)", title="Learning curve", ylim=(80, 100.5))
    loss_axis = accuracy_axis.twinx()
    loss_axis.plot(epochs, curve.losses, label="training loss", color="tab:orange")
    loss_axis.set(ylabel="loss (nats)", yscale="log")
    handles = accuracy_axis.get_lines() + loss_axis.get_lines()
    accuracy_axis.legend(handles=handles, loc="center right")

    wrong = np.flatnonzero(predictions != digits.test_labels)
    correct = np.flatnonzero(predictions == digits.test_labels)
    shown = np.concatenate([wrong[:12], correct])[:24]
    right.suptitle(f"Test digits: {len(wrong)} of {len(predictions)} wrong (red: predicted, true)")
    axes = right.subplots(3, 8).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(axes, shown):
        axis.imshow(digits.test_images[index].reshape(8, 8), cmap="gray_r", vmin=0.0, vmax=1.0)
        right_answer = predictions[index] == digits.test_labels[index]
        title = f"{predictions[index]}" if right_answer else f"{predictions[index]}, not {digits.test_labels[index]}"
        axis.set_title(title, color="black" if right_answer else "tab:red", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a digit classifier whose every step is a CUDA C++ kernel.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--gpu", default=None, help="a chip of `weft gpus`; the default is weft run's --gpu")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the initial weights and the order")
    parser.add_argument("--compiler", choices=("nvrtc", "clang"), default=None, help="the default is what is installed")
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="where the picture goes")
    parser.add_argument("--check", action="store_true", help="compare one step with NumPy before training")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    console = Console(highlight=False, soft_wrap=True)
    begin = time.perf_counter()
    digits = load_split(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    parameters = initial_parameters(random)

    gpu = weft.Device(arguments.gpu)
    kernels = gpu.compile(KERNELS, compiler=arguments.compiler)
    console.print(
        f"{len(digits.train_labels)} images to learn from, {len(digits.test_labels)} to be tested on; "
        f"{parameters.size} parameters; {gpu.name}"
    )
    if arguments.check and not check_step(gpu, kernels, digits, parameters, console):
        return 1
    network = Network(gpu, kernels, parameters)
    train_begin = time.perf_counter()
    curve = train(network, digits, arguments.epochs, random, console)
    train_seconds = time.perf_counter() - train_begin
    _, accuracy, predictions = network.evaluate(
        gpu.array(digits.test_images), gpu.array(digits.test_labels), len(digits.test_labels)
    )
    draw(arguments.out, curve, digits, predictions)
    seconds = time.perf_counter() - begin
    console.print(f"test accuracy  {accuracy:.1%} ({round(accuracy * len(predictions))} of {len(predictions)} images)")
    console.print(
        f"time           {train_seconds:.1f} s to train {network.steps} steps, {seconds:.1f} s in all (measured)"
    )
    console.print(f"picture        {os.fspath(arguments.out)}")
    console.print(f"ran as {gpu.name} on {gpu.threads} CPU threads; no GPU needed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
