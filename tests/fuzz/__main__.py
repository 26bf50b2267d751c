"""`python -m tests.fuzz --seed S --count N`: fuzz N kernels from seed S on, shrink and keep what differs."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from .compare import check, shrink
from .generator import generate, render


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=100, help="number of kernels")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for what differs")
    parser.add_argument("--stop", type=int, default=5, help="stop after this many differences")
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args()
    # What an older engine compiled must not stand in for this one.
    os.environ["WEFT_CACHE_DIR"] = tempfile.mkdtemp(prefix="weft-fuzz-cache-")
    import weft

    gpu = weft.Device()
    valid = wrong = 0
    began = time.monotonic()
    for seed in range(options.seed, options.seed + options.count):
        program = generate(seed)
        result = check(gpu, program)
        if result is None:
            print(f"seed {seed}: the reference cannot run it")
            continue
        valid += 1
        if result:
            wrong += 1
            print(f"seed {seed}: {result}", flush=True)
            if not options.no_shrink:
                program, result = shrink(gpu, program, result)
            options.keep.mkdir(exist_ok=True)
            path = options.keep / f"seed{seed}.ptx"
            path.write_text(
                f"// grid {program.grid} block {program.block} n {program.n}\n// {result}\n{render(program)}"
            )
            print(f"  {path}: {result}", flush=True)
            if wrong >= options.stop:
                break
    took = time.monotonic() - began
    print(f"{valid} of {options.count} kernels valid, {wrong} differ, {took:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
