"""Published PyTorch packages on the virtual GPU: what they compute and learn, against the same on the CPU.

    pip install "weft[ecosystem]" timm lightning peft
    python tools/nightly_torch.py [--gpu h100] [--group huggingface] [--only TEXT] [--light] [--list] [--json FILE]

A check is a model, an optimiser, a loop or a whole program; it needs no network: models come from configurations with
random weights, data are made in memory. Checks run one after the other in a child process, which is replaced when it
dies or takes too long. The table has a row for each; the exit status is 1 when one of them fails, and checks whose
packages are not installed are named and left out. Everything takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

# Group: the packages that its file imports.
GROUPS = {
    "huggingface": ("transformers",),
    "training": ("transformers", "accelerate"),
    "lightning": ("lightning", "torchmetrics"),
    "timm": ("timm", "torchvision"),
    "programs": ("transformers", "accelerate", "lightning"),
}
VERSIONS = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "peft", "lightning", "torchmetrics",
            "timm", "torchvision")  # fmt: skip
SECONDS = 900.0  # for one check


def missing_packages(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


# ---------------------------------------------------------------- the child
def serve(group: str, gpu: str) -> None:
    """Imports a group's checks, says their names, then runs those that are asked for on standard input, one a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the packages print is not for the table
    import weft

    weft.install(gpu)
    importlib.import_module("nightly_checks").declare_operators()
    warnings.simplefilter("ignore")
    checks = importlib.import_module(f"nightly_{group}").CHECKS.found
    listed = [
        {"name": check.name, "light": check.light, "missing": missing_packages(check.packages)}
        for check in checks.values()
    ]
    print(json.dumps(listed), file=answers)
    for line in sys.stdin:
        row: dict[str, Any] = {"state": "agrees"}
        start = time.perf_counter()
        try:
            row["detail"] = checks[line.rstrip("\n")].run()
        except Exception as error:
            row = {"state": "fails", "detail": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        row["seconds"] = round(time.perf_counter() - start, 2)
        print(json.dumps(row), file=answers)


# ---------------------------------------------------------------- the parent
class Child:
    """A process that runs the checks of one group."""

    def __init__(self, group: str, gpu: str, log: Any):
        self.group, self.gpu, self.log = group, gpu, log
        self.process: subprocess.Popen[str] | None = None
        self.answers: queue.Queue[str | None] = queue.Queue()

    def start(self) -> list[dict[str, Any]] | str:
        """Starts the process; the checks that it offers, or why there are none."""
        command = [sys.executable, __file__, "--serve", self.group, "--gpu", self.gpu]
        self.answers = answers = queue.Queue()
        self.process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line)
            answers.put(None)

        threading.Thread(target=read, daemon=True).start()
        return self._wait()

    def ask(self, name: str) -> dict[str, Any]:
        """One check's row."""
        if self.process is None and isinstance(problem := self.start(), str):
            return {"state": "fails", "detail": problem, "seconds": 0.0}
        start = time.perf_counter()
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        found = self._wait()
        if isinstance(found, str):
            return {"state": "fails", "detail": found, "seconds": round(time.perf_counter() - start, 2)}
        return found

    def _wait(self) -> Any:
        """What the process answers; a text when it does not, and then the process is gone."""
        try:
            line = self.answers.get(timeout=SECONDS)
        except queue.Empty:
            self.stop()
            return f"stopped after {SECONDS:.0f} s"
        if line is not None:
            return json.loads(line)
        assert self.process is not None
        code = self.process.wait()
        self.process = None
        return f"the process died with exit code {code}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run_group(group: str, options: argparse.Namespace, log: Any) -> list[dict[str, Any]]:
    """The rows of one group, printed as they come."""
    if missing := missing_packages(GROUPS[group]):
        print(f"{group}: left out, not installed: {', '.join(missing)}")
        return []
    child = Child(group, options.gpu, log)
    listed = child.start()
    if isinstance(listed, str):
        log.flush()
        print(f"{group}: cannot be loaded: {listed}")
        print("".join(Path(log.name).read_text().splitlines(keepends=True)[-15:]))
        return [{"group": group, "check": "import", "state": "fails", "detail": listed, "seconds": 0.0}]
    chosen = [found for found in listed if options.only in found["name"] and (found["light"] or not options.light)]
    rows = []
    print(f"{group}: {len(chosen)} checks")
    for found in chosen:
        if options.list:
            print(f"  {found['name']}")
            continue
        if found["missing"]:
            print(f"  {'left out':8} {found['name']:38} not installed: {', '.join(found['missing'])}")
            continue
        row = {"group": group, "check": found["name"], **child.ask(found["name"])}
        rows.append(row)
        shown = row["detail"].replace("\n", " ")[:200]
        print(f"  {row['state']:8} {row['check']:38} {row['seconds']:7.1f} s  {shown}", flush=True)
        if options.verbose and "trace" in row:
            print(row["trace"])
    child.stop()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="h100", help="chip (default: h100)")
    parser.add_argument("--group", choices=sorted(GROUPS), action="append", help="only this group")
    parser.add_argument("--only", default="", help="only checks whose name contains this")
    parser.add_argument("--light", action="store_true", help="only those that are part of every change's tests")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.gpu)
        return 0
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            print(f"{name} {importlib.metadata.version(name)}", end="  ")
    print()
    rows = []
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        for group in options.group or GROUPS:
            rows += run_group(group, options, log)
    failed = [row for row in rows if row["state"] != "agrees"]
    if not options.list:
        print(f"{len(rows) - len(failed)} of {len(rows)} checks agree, in {sum(row['seconds'] for row in rows):.0f} s")
    for row in failed:
        print(f"  {row['group']}: {row['check']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(bool(failed) or not (rows or options.list))


if __name__ == "__main__":
    sys.exit(main())
