"""The command line: what the user types, sees, and gets as exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from weft.version import __version__


def weft(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weft", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=120
    )


@pytest.fixture
def program(tmp_path: Path):
    """Writes a Python program and returns its path."""

    def write(text: str, name: str = "program.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def test_version() -> None:
    assert weft("--version").stdout.strip() == f"weft, version {__version__}"


def test_help_lists_the_commands() -> None:
    text = weft("--help").stdout
    for command in ("run", "gpus", "cache", "doctor"):
        assert f"  {command} " in text


# ---------------------------------------------------------------- weft run
def test_run_gives_the_program_its_arguments(program) -> None:
    path = program("import sys; print(__name__, sys.argv[1:])")
    done = weft("run", "--threads", "1", path, "--gpu", "mine", "-m", "x", "--", "-h", "--seed=0")
    assert done.stdout.strip() == "__main__ ['--gpu', 'mine', '-m', 'x', '--', '-h', '--seed=0']", done.stderr
    assert done.returncode == 0


def test_run_puts_the_programs_folder_first_on_the_path(program, tmp_path: Path) -> None:
    program("value = 7", "neighbour.py")
    path = program("import sys, neighbour; print(neighbour.value, sys.path[0], sys.argv[0])")
    assert weft("run", path, cwd=Path("/")).stdout.split() == ["7", str(tmp_path), path]


def test_run_module_with_arguments(program, tmp_path: Path) -> None:
    program("import sys; print(__name__, sys.argv[1:], __spec__.name)", "tool.py")
    done = weft("run", "--threads=1", "-m", "tool", "-q", "--gpu", "x", "--help", cwd=tmp_path)
    assert done.stdout.strip() == "__main__ ['-q', '--gpu', 'x', '--help'] tool", done.stderr


@pytest.mark.parametrize(
    ("text", "status"),
    [("import sys; sys.exit(3)", 3), ("raise SystemExit", 0), ("import sys; sys.exit('went wrong')", 1), ("1/0", 1)],
)
def test_run_ends_with_the_programs_status(program, text: str, status: int) -> None:
    assert weft("run", program(text)).returncode == status


def test_run_prints_the_programs_traceback_alone(program) -> None:
    path = program(
        """
        def divide(x):
            return 1 / x

        divide(0)
        """
    )
    errors = weft("run", path).stderr
    assert errors.startswith("Traceback (most recent call last):")
    assert errors.rstrip().endswith("ZeroDivisionError: division by zero")
    assert errors.count("File ") == 2, errors
    assert "cli.py" not in errors and "runpy" not in errors


def test_run_reports_a_syntax_error_as_python_does(program) -> None:
    path = program("x = = 1")
    done = weft("run", path)
    assert done.returncode == 1
    assert "SyntaxError" in done.stderr and path in done.stderr and "cli.py" not in done.stderr


def test_run_interrupted(program, tmp_path: Path) -> None:
    path = program(
        """
        import pathlib, time
        pathlib.Path(__file__).with_name("ready").touch()
        time.sleep(60)
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "weft", "run", path], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in errors


def test_run_refuses_cuda_programs_with_advice(program) -> None:
    done = weft("run", program("int main() {}", "main.cu"))
    assert done.returncode == 2
    assert "host code are not supported yet" in done.stderr and ".compile(" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run"], "name a program"),
        (["run", "absent.py"], "no such file: absent.py"),
        (["run", "--threads", "0", "x.py"], "--threads"),
        (["run", "--time-limit", "0", "x.py"], "--time-limit"),
        (["run", "--bogus", "x.py"], "--bogus"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], text: str) -> None:
    done = weft(*words)
    assert done.returncode == 2
    assert text in done.stderr


def test_run_unknown_module() -> None:
    done = weft("run", "-m", "no_such_module_anywhere")
    assert done.returncode == 1
    assert "No module named no_such_module_anywhere" in done.stderr


# ---------------------------------------------------------------- the other commands
def test_gpus_as_json_and_as_a_table_agree() -> None:
    chips = json.loads(weft("gpus", "--json").stdout)
    names = [chip["name"] for chip in chips]
    assert len(names) == len(set(names)) and {"h100", "a100"} <= {name.split("-")[0] for name in names}
    table = weft("gpus").stdout
    for name in names:
        assert name in table


def test_gpus_of_one_name() -> None:
    chip = json.loads(weft("gpus", "a100", "--json").stdout)
    assert chip["name"].startswith("a100")
    assert chip["name"] in weft("gpus", "a100").stdout


def test_gpus_unknown_name_says_what_there_is() -> None:
    done = weft("gpus", "h10")
    assert done.returncode == 1
    assert "h10" in done.stderr and "h100" in done.stderr and "Traceback" not in done.stderr


def test_cache_info_clear_dir(program, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert weft("cache", "dir", WEFT_CACHE_DIR=str(folder)).stdout.strip() == str(folder)
    path = program("from weft.doctor import run_saxpy; print(run_saxpy().state)")
    assert weft("run", path, WEFT_CACHE_DIR=str(folder)).stdout.strip() == "ok"
    info = json.loads(weft("cache", "info", "--json", WEFT_CACHE_DIR=str(folder)).stdout)
    assert info["objects"]["entries"] >= 1 and info["bytes"] > 0
    assert str(folder) in weft("cache", "info", WEFT_CACHE_DIR=str(folder)).stdout.replace("\n", "")
    assert "removed" in weft("cache", "clear", WEFT_CACHE_DIR=str(folder)).stdout
    info = json.loads(weft("cache", "info", "--json", WEFT_CACHE_DIR=str(folder)).stdout)
    assert info["bytes"] == 0 and info["objects"]["entries"] == 0


def test_cache_info_of_an_absent_folder_makes_none(tmp_path: Path) -> None:
    folder = tmp_path / "never"
    assert weft("cache", "info", WEFT_CACHE_DIR=str(folder)).returncode == 0
    assert not folder.exists()


def test_doctor() -> None:
    done = weft("doctor", "--json")
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert report["works"] and done.returncode == 0, report
    assert findings["test kernel"]["state"] == "ok"
    assert {"Python", "processor", "threads", "memory", "LLVM", "cache", "NVRTC", "clang"} <= set(findings)
    for finding in findings.values():
        assert finding["state"] == "ok" or finding["advice"] or finding["detail"]
    text = weft("doctor").stdout
    assert "Kernels run on this machine." in text and "\x1b" not in text


def test_doctor_names_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = weft("doctor", "--json", WEFT_CACHE_DIR=str(blocked / "cache"))
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["cache"]["state"] == "note" and "WEFT_CACHE_DIR" in findings["cache"]["advice"]
    assert findings["test kernel"]["state"] == "ok" and done.returncode == 0


# ---------------------------------------------------------------- settings reach the program
def test_run_options_become_settings(program) -> None:
    path = program(
        """
        import weft
        from weft import settings

        now = settings.current()
        print(weft.Device().chip.name, now.threads, now.time_limit, now.deterministic, now.seed)
        """
    )
    options = ["--gpu", "h100", "--threads", "1", "--time-limit", "2.5", "--deterministic"]
    done = weft("run", *options, path)
    name, *rest = done.stdout.split()
    assert name.startswith("h100") and rest == ["1", "2.5", "True", "0"], done.stdout + done.stderr


def test_run_unknown_chip(program) -> None:
    done = weft("run", "--gpu", "gtx9999", program("print('ran')"))
    assert done.returncode != 0 and "ran" not in done.stdout
    assert "gtx9999" in done.stderr and "Traceback" not in done.stderr
