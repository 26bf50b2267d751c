"""Real-time inference behind HTTP: requests are gathered into batches, and each has a deadline.

    weft run --gpu l4 examples/pytorch/serving.py [--requests N] [--deadline MS] [--most N] [--gather MS]

In: images of digits, sent by clients of this same program over HTTP. A batcher waits a little for company, then sends
what is there through the network as one batch. Out: the share of right answers; percentiles of latency as the clients
saw it (this machine's clock) and of the time of a request's batch on the device's clock; how many batches kept the
deadline on that clock; and the time of a batch, by size, on the CPU and on the GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sklearn.datasets import load_digits
from stopwatch import device_label, devices, print_comparison, seconds_per_step
from torch import nn
from torch.nn import functional as F


class Image(BaseModel):
    """64 pixels from 0 to 16, row by row."""

    pixels: list[float] = Field(min_length=64, max_length=64)


class Digit(BaseModel):
    """What the network saw, in which batch, and how long that batch took on the device (milliseconds)."""

    digit: int
    batch: int
    device_ms: float


@dataclass
class Batcher:
    """Gathers requests into batches of at most `most`, waiting `gather` seconds for company."""

    network: nn.Module
    device: torch.device
    most: int
    gather: float
    queue: asyncio.Queue = field(default_factory=asyncio.Queue)
    sizes: list[int] = field(default_factory=list)

    async def ask(self, pixels: list[float]) -> Digit:
        answer = asyncio.get_running_loop().create_future()
        await self.queue.put((pixels, answer))
        return await answer

    async def run(self) -> None:
        """Serves until cancelled."""
        while True:
            waiting = [await self.queue.get()]
            closes = time.monotonic() + self.gather
            while len(waiting) < self.most:
                try:
                    left = max(0.0, closes - time.monotonic())
                    waiting.append(await asyncio.wait_for(self.queue.get(), left))
                except TimeoutError:
                    break
            try:
                digits, milliseconds = self.infer([pixels for pixels, _ in waiting])
            except Exception as error:
                for _, answer in waiting:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            self.sizes.append(len(waiting))
            for (_, answer), digit in zip(waiting, digits):
                if not answer.done():
                    answer.set_result(Digit(digit=digit, batch=len(waiting), device_ms=milliseconds))

    def infer(self, images: list[list[float]]) -> tuple[list[int], float]:
        """The digits, and the milliseconds from upload to download on the device's clock."""
        batch = torch.tensor(images) / 8 - 1
        if self.device.type == "cpu":
            started = time.perf_counter()
            found = self.predict(batch)
            return found.tolist(), (time.perf_counter() - started) * 1e3
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        found = self.predict(batch.to(self.device, non_blocking=True))
        digits = found.cpu()
        last.record()
        last.synchronize()
        return digits.tolist(), first.elapsed_time(last)

    def predict(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.network(batch).argmax(1)


def make_network() -> nn.Module:
    """[n, 64] -> logits [n, 10]."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Four passes over the training images."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(4):
        for rows in torch.randperm(len(images), device=images.device).split(64):
            loss = F.cross_entropy(network(images[rows]), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    network.eval()


def make_app(batcher: Batcher) -> FastAPI:
    """POST /digit answers with a Digit; GET /health says that the server is up."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/digit")
    async def digit(image: Image) -> Digit:
        if not all(map(np.isfinite, image.pixels)):
            raise HTTPException(422, "pixels must be finite")
        return await batcher.ask(image.pixels)

    return app


async def serve_and_ask(batcher: Batcher, images: np.ndarray, requests: int, clients: int):
    """Starts the server on a free port, asks it from so many clients; (answers, latencies in seconds)."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(batcher), log_level="warning"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    answers: dict[int, Digit] = {}
    latencies: list[float] = []
    numbers = iter(range(requests))

    async def client(connection: httpx.AsyncClient) -> None:
        for number in numbers:
            body = {"pixels": images[number % len(images)].tolist()}
            started = time.perf_counter()
            reply = await connection.post("/digit", json=body)
            latencies.append(time.perf_counter() - started)
            answers[number] = Digit.model_validate(reply.raise_for_status().json())

    async with httpx.AsyncClient(base_url=url, timeout=60) as connection:
        while not server.started:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(client(connection) for _ in range(clients)))
    server.should_exit = True
    await serving
    return answers, latencies


def percentiles(values: list[float], unit: str) -> str:
    """The 50th, 90th and 99th percentile."""
    at = statistics.quantiles(values, n=100, method="inclusive")
    return "  ".join(f"p{p} {at[p - 1]:8.3f} {unit}" for p in (50, 90, 99))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--deadline", type=float, default=2.0, help="milliseconds for a batch on the device")
    parser.add_argument("--most", type=int, default=16, help="images in a batch, at most")
    parser.add_argument("--gather", type=float, default=5.0, help="milliseconds to wait for company")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = devices()[-1]
    pixels, labels = load_digits(return_X_y=True)
    network = make_network().to(device)
    images = torch.tensor(pixels / 8 - 1, dtype=torch.float32, device=device)
    train(network, images[:1400], torch.tensor(labels[:1400], device=device))
    batcher = Batcher(network, device, args.most, args.gather / 1e3)
    batcher.infer(pixels[:1].tolist())
    answers, latencies = asyncio.run(serve_and_ask(batcher, pixels[1400:], args.requests, args.clients))
    right = sum(answer.digit == labels[1400 + number % (len(labels) - 1400)] for number, answer in answers.items())
    kept = sum(answer.device_ms <= args.deadline for answer in answers.values())
    print(f"{len(answers)} requests in {len(batcher.sizes)} batches, {statistics.mean(batcher.sizes):.1f} images each")
    print(f"right answers       {right / len(answers):.2%}")
    print(f"latency at client   {percentiles([s * 1e3 for s in latencies], 'ms')}  (measured, with this machine's CPU)")
    print(f"batch on device     {percentiles([a.device_ms for a in answers.values()], 'ms')}  {device_label(device)}")
    print(f"deadline {args.deadline:g} ms on the device's clock kept by {kept / len(answers):.1%} of the requests")
    for size in (1, args.most, 16 * args.most):
        times = {}
        for d in devices():
            model, batch = network.to(d), torch.randn(size, 64, device=d)
            with torch.inference_mode():
                times[d] = seconds_per_step(lambda model=model, batch=batch: model(batch), d)
        print_comparison(f"a batch of {size}", times, size, "images")


if __name__ == "__main__":
    main()
