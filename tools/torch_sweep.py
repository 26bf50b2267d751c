"""The whole of PyTorch's operator database on a virtual GPU: what agrees with the CPU, per data type.

    python tools/torch_sweep.py [--dtypes float32,bool] [--ops 'linalg.*'] [--samples 8] [--processes 2] [--json FILE]

Prints a table with a row per type, the failures without a reason, exceptions that pass again, and the operators that
the cost model prices by bytes alone. Ends with 1 where a type has less than 98 % of its operators, or a failure that
tests/torch_opinfo_exceptions.txt does not name, or an exception that passes. With the 8 samples of each operator and
type that are the default it takes about ten minutes on two cores; --samples 0 takes all.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "tests")]

NEEDED = 0.98
# Every exception shows within so many samples; with fewer its passing means nothing.
ENOUGH = 6


def sweep_part(options: argparse.Namespace) -> dict[str, Any]:
    """Every `parts`-th operator, as JSON: outcomes, and the ATen operators that ran with whether they are priced."""
    import weft

    weft.install(options.gpu)
    import torch
    import torch_opinfo as opinfo

    from weft.frontends.torch.recording import recorder
    from weft.model.operators import covered

    warnings.simplefilter("ignore")
    # Numbers are held against the CPU's, which has no TF32.
    torch.backends.cudnn.allow_tf32 = False
    part, parts = (int(number) for number in options.part.split("/"))
    ran: set[str] = set()
    if not options.with_helper:
        recorder.add(lambda name, args, result, kwargs, stream, device: ran.add(name))
    outcomes = []
    for place, op in enumerate(opinfo.operators()):
        if place % parts != part or not fnmatch.fnmatch(opinfo.name_of(op), options.ops):
            continue
        for dtype in opinfo.dtypes_of(op, tuple(options.dtypes.split(","))):
            found = opinfo.check_operator(op, dtype, options.samples or None)
            outcomes.append({
                "name": found.name, "dtype": dtype, "passed": dict(found.passed), "failures": found.failures,
                "refused": found.refused,
            })  # fmt: skip
            if found.failures and options.verbose:
                print(found.key, found.failures, file=sys.stderr, flush=True)
    ran.discard("_local_scalar_dense")  # .item(): the timeline has it as a copy to the host
    return {"outcomes": outcomes, "ran": {name: covered(name) for name in sorted(ran)}}


def run_parts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The parts, each in a process of its own."""
    given = ["--dtypes", options.dtypes, "--ops", options.ops, "--samples", str(options.samples), "--gpu", options.gpu]
    given += ["--verbose"] * options.verbose + ["--with-helper"] * options.with_helper
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{part}.json" for part in range(options.processes)]
        children = [
            subprocess.Popen(
                [sys.executable, __file__, *given, "--part", f"{part}/{options.processes}", "--into", file]
            )
            for part, file in enumerate(files)
        ]
        codes = [child.wait() for child in children]
        if any(codes):
            raise SystemExit(f"a part ended with {codes}")
        return [json.loads(file.read_text()) for file in files]


def report(outcomes: list[Any], ran: dict[str, bool], options: argparse.Namespace, seconds: float) -> int:
    """Prints the table; returns the exit status."""
    import torch_opinfo as opinfo

    exceptions = opinfo.read_exceptions()
    bad = 0
    print(f"{'type':10} {'operators':>9} {'pass':>6} {'share':>7}  samples: {', '.join(opinfo.ASPECTS)}")
    for dtype in [*options.dtypes.split(","), "all"]:
        these = [found for found in outcomes if dtype in (found.dtype, "all")]
        if not these:
            continue
        failed = sum(1 for found in these if found.failures)
        share = 1 - failed / len(these)
        totals = sum((found.passed for found in these), Counter())
        counts = ", ".join(str(totals[aspect]) for aspect in opinfo.ASPECTS)
        print(f"{dtype:10} {len(these):9} {len(these) - failed:6} {share:7.2%}  {counts}")
        if share < NEEDED:
            bad += 1
            print(f"  less than {NEEDED:.0%}")
    for found in outcomes:
        if found.failures and not found.is_excused(exceptions):
            bad += 1
            for aspect, text in found.failures.items():
                print(f"FAIL {found.key}:{aspect} {text[:300]}")
    known = set().union(*(found.keys() for found in outcomes if found.failures)) if outcomes else set()
    for key in exceptions:
        name, _, dtype = key.partition(":")
        swept = any(found.name == name and (not dtype or dtype.startswith(found.dtype)) for found in outcomes)
        if swept and key not in known and (options.samples == 0 or options.samples >= ENOUGH):
            bad += 1
            print(f"PASSES AGAIN {key}: take it out of {opinfo.EXCEPTIONS.name}")
    if options.with_helper:
        print(f"{seconds:.0f} s")
        return 1 if bad else 0
    unknown = [name for name, priced in ran.items() if not priced]
    print(f"{len(ran)} ATen operators ran, {len(ran) - len(unknown)} have a rule in the cost model")
    if unknown:
        print(f"priced by bytes: {', '.join(unknown)}")
    print(f"{seconds:.0f} s")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="float32,bfloat16,float16,int64,bool,complex64")
    parser.add_argument("--ops", default="*", help="a pattern of names")
    parser.add_argument("--samples", type=int, default=8, help="of each operator and type at most; 0 means all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--gpu", default="h100")
    parser.add_argument(
        "--with-helper", action="store_true",
        help="through the compiled helper, if it is built, which stands aside where operators are counted",
    )  # fmt: skip
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbose", action="store_true", help="prints failures as they come")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        options.into.write_text(json.dumps(sweep_part(options)))
        return 0
    import torch_opinfo as opinfo

    began = time.monotonic()
    parts = run_parts(options)
    outcomes = [
        opinfo.Outcome(row["name"], row["dtype"], Counter(row["passed"]), row["failures"], row["refused"])
        for part in parts for row in part["outcomes"]
    ]  # fmt: skip
    ran = {name: priced for part in parts for name, priced in part["ran"].items()}
    if options.json:
        options.json.write_text(json.dumps({"outcomes": [vars(found) for found in outcomes], "ran": ran}, indent=1))
    return report(outcomes, ran, options, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
