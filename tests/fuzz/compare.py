"""Run a generated kernel on the reference and on the compiled engine, compare all memory, shrink what differs."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

import numpy as np

from weft.errors import WeftError
from weft.ptx.parser import parse_module
from weft.reference import ReferenceMemory, run_kernel

from .generator import (
    ACC_OPERATIONS,
    ACC_WORDS,
    INPUT_BYTES,
    INTERESTING,
    OUT_WORDS,
    SCRATCH_BYTES,
    Program,
    render,
    smaller,
)

STEP_LIMIT = 3_000_000
BUFFERS = ("input", "out", "scratch", "acc")


@dataclass(frozen=True)
class Outcome:
    """What one machine made of a program: the buffers' bytes, or the class of the error it raised."""

    buffers: dict[str, bytes]
    error: str = ""


def make_inputs(program: Program) -> dict[str, bytes]:
    """The buffers before the launch: integers and floats of all sizes, with edges."""
    rng = random.Random(program.seed ^ 0x5EED)
    words = []
    for _ in range(INPUT_BYTES // 4):
        choice = rng.random()
        if choice < 0.3:
            words.append(rng.choice(INTERESTING))
        elif choice < 0.6:
            words.append(struct.unpack("<I", struct.pack("<f", rng.uniform(-4, 4)))[0])
        elif choice < 0.8:
            words.append(rng.randrange(64))
        else:
            words.append(rng.getrandbits(32))
    scratch = rng.randbytes(program.threads * SCRATCH_BYTES)
    acc = rng.randbytes(4 * ACC_WORDS * len(ACC_OPERATIONS))
    return {"input": struct.pack(f"<{len(words)}I", *words), "out": bytes(program.threads * OUT_WORDS * 4),
            "scratch": scratch, "acc": acc}  # fmt: skip


def run_reference(program: Program, text: str) -> Outcome:
    """The reference's outcome. Raises WeftError subclasses for programs that it cannot run."""
    module = parse_module(text, "fuzz.ptx", check=True)
    memory = ReferenceMemory()
    inputs = make_inputs(program)
    addresses = {}
    for name, data in inputs.items():
        addresses[name] = memory.allocate(len(data))
        memory.write(addresses[name], data)
    params = [struct.pack("<Q", addresses[name]) for name in BUFFERS] + [struct.pack("<I", program.n)]
    run_kernel(module, "k", program.grid, program.block, params, memory, step_limit=STEP_LIMIT)
    return Outcome({name: memory.read(addresses[name], len(inputs[name])) for name in BUFFERS})


def run_engine(gpu, program: Program, text: str) -> Outcome:
    """The compiled engine's outcome on a weft.Device."""
    inputs = make_inputs(program)
    try:
        kernel = gpu.load(text, "fuzz.ptx")["k"]
        arrays = {name: gpu.array(np.frombuffer(data, np.uint8).copy()) for name, data in inputs.items()}
        kernel[program.grid, program.block](*(arrays[name] for name in BUFFERS), program.n)
        gpu.synchronize()
        return Outcome({name: arrays[name].numpy().tobytes() for name in BUFFERS})
    except Exception as error:
        return Outcome({}, f"{type(error).__name__}: {error}")


def difference(program: Program, expected: Outcome, found: Outcome) -> str:
    """Where two outcomes differ first; "" when they do not."""
    if found.error:
        return found.error
    for name in BUFFERS:
        a, b = (np.frombuffer(o.buffers[name], np.uint32) for o in (expected, found))
        wrong = np.nonzero(a != b)[0]
        if len(wrong):
            i = int(wrong[0])
            place = f"word {i}"
            if name == "out":
                place = f"thread {i // OUT_WORDS} word {i % OUT_WORDS}"
            return f"{name}, {place}: found {b[i]:#x}, expected {a[i]:#x} ({len(wrong)} words differ)"
    return ""


def check(gpu, program: Program) -> str | None:
    """ "" when both agree, a text when not, None when the reference cannot run the program."""
    text = render(program)
    try:
        expected = run_reference(program, text)
    except WeftError:
        return None
    return difference(program, expected, run_engine(gpu, program, text))


def shrink(gpu, program: Program, wrong: str, attempts: int = 400) -> tuple[Program, str]:
    """A smaller program that still differs, and how."""
    kind = wrong.partition(":")[0] if wrong.partition(":")[0].endswith("Error") else ""
    left = attempts
    found = True
    while found and left > 0:
        found = False
        for candidate in smaller(program):
            left -= 1
            if left <= 0:
                break
            now = check(gpu, candidate)
            if now and (not kind or now.startswith(kind)):
                program, wrong, found = candidate, now, True
                break
    return program, wrong
