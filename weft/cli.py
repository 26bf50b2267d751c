"""The command `weft`: words in, one of the package's functions called, an exit status out.

Exit status: 0 for success, 1 where the work failed, 2 for wrong usage, 130 after Ctrl-C. `weft run` ends as Python
would end the program: with its own exit status, or 1 and a traceback.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import click

from weft.errors import WeftError
from weft.version import __version__

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class WeftGroup(click.Group):
    """Reports Weft's own errors on one line, and Ctrl-C with status 130."""

    def main(self, *args, **kwargs):
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.exceptions.Exit as exit_:
            sys.exit(exit_.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("weft: interrupted", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output left; what Python would flush at exit goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except WeftError as error:
            click.echo(f"weft: {error}", err=True)
            sys.exit(1)


class RunCommand(click.Command):
    """A command whose own options end at the program's name: whatever follows is the program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        takes_value = {
            name
            for parameter in self.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for name in parameter.opts
        }
        index = 0
        while index < len(args) and args[index].startswith("-") and args[index] not in ("-", "--"):
            word = args[index]
            if word == "-m":
                index += 2
                break
            index += 2 if word in takes_value else 1
        if index < len(args) and args[index] != "--":
            args = [*args[:index], "--", *args[index:]]
        return super().parse_args(ctx, args)


@click.group(cls=WeftGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="weft")
def main() -> None:
    """Weft: a software GPU. Runs CUDA C++ and PTX kernels on the CPU."""


DRY = click.option("--dry", is_flag=True, help="PyTorch computes shapes, memory, time and cost, but no numbers: for "
                   "models that are too large for this machine.")  # fmt: skip
DRY_VALUE = click.option("--dry-value", type=float, metavar="NUMBER", help="What stands for numbers that a dry run "
                         "does not know (default: nan, or an error where there is none).")  # fmt: skip


@main.command(cls=RunCommand)
@click.option("--gpu", metavar="NAME", help="The default device's chip; see `weft gpus`.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (default: all cores, or WEFT_THREADS).")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Stop a launch that runs longer than this.")  # fmt: skip
@click.option("--deterministic", is_flag=True, help="Run blocks in order on one thread.")
@click.option("--seed", type=click.IntRange(min=1, max=2**32 - 1), help="Shuffle the order of blocks and warps.")
@click.option("--deferred-copies", is_flag=True, help="Make asynchronous copies only in the waits that a program must "
              "perform, so that a missing wait shows.")  # fmt: skip
@click.option("--triton-arch", metavar="ARCH", help="Let Triton compile for this architecture, as sm_80 (default: the "
              "chip's).")  # fmt: skip
@click.option("--gpus", "count", type=click.IntRange(min=1), default=1, metavar="COUNT", help="How many such GPUs "
              "there are (default: 1).")  # fmt: skip
@DRY
@DRY_VALUE
@click.option("--dry-limit", is_flag=True, help="End a dry run at the chip's capacity, with PyTorch's OutOfMemoryError "
              "(default: go on and report it).")  # fmt: skip
@click.option("--summary/--no-summary", default=True, help="Say at the end, on standard error, what the run would have "
              "cost on the chip (default: yes).")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False), metavar="FILE", help="Write all of the summary "
              "as JSON.")  # fmt: skip
@click.option("--trace", "trace_file", type=click.Path(dir_okay=False), metavar="FILE", help="Write what ran when as a "
              "trace for Perfetto or Chrome.")  # fmt: skip
@click.option("-m", "module", metavar="MODULE", help="Run a module, as `python -m` does; the rest are its arguments.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED, metavar="PROGRAM.py [ARGS]...")
def run(gpu: str | None, threads: int | None, time_limit: float | None, deterministic: bool, seed: int | None,
        deferred_copies: bool, triton_arch: str | None, count: int, dry: bool, dry_value: float | None, dry_limit: bool,
        summary: bool, json_file: str | None, trace_file: str | None, module: str | None,
        program: tuple[str, ...]) -> None:  # fmt: skip
    """Run a Python program on virtual GPUs.

    Triton and PyTorch find them instead of a GPU. On a machine with a real GPU it is used, unless --gpu (or WEFT_GPU)
    names a virtual one.

    Options come before the program; what follows its name is passed to it.
    """
    program = check_program(module, program)
    virtual = attach(gpu=gpu, threads=threads, time_limit=time_limit, deterministic=deterministic, seed=seed,
                     deferred_copies=deferred_copies, triton_arch=triton_arch, count=count, dry=dry,
                     dry_value=dry_value, dry_limit=dry_limit)  # fmt: skip
    if not virtual or not (summary or json_file or trace_file):
        sys.exit(run_program(module, list(program)))
    from weft import settings
    from weft.chips import find_chip
    from weft.report.run import report_run

    chip = find_chip(settings.current().gpu)
    tell = tell_children(count)
    with report_run(chip, count, summary=summary, json_file=json_file, trace_file=trace_file, tell=tell):
        status = run_program(module, list(program))
    sys.exit(status)


@main.command(cls=RunCommand)
@click.option("--gpus", "names", required=True, metavar="NAMES", help="The chips, separated by commas: "
              "h100,rtx4090,t4; see `weft gpus`.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), default=1, help="How many GPUs the program finds (default: 1).")
@DRY
@DRY_VALUE
@click.option("--json", "json_file", type=click.Path(dir_okay=False), metavar="FILE", help="Write everything as JSON.")
@click.option("-m", "module", metavar="MODULE", help="Run a module, as `python -m` does; the rest are its arguments.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED, metavar="PROGRAM.py [ARGS]...")
def compare(names: str, count: int, dry: bool, dry_value: float | None, json_file: str | None, module: str | None,
            program: tuple[str, ...]) -> None:  # fmt: skip
    """Run a Python program once and price it on several chips.

    The table says for each chip what the run would have taken: time, memory and whether it fits, energy, cost, and what
    limits it; this machine's measured time stands beside them. While it runs the program sees the chip with the most
    memory.
    """
    from weft.report.comparison import choose_visible, find_chips
    from weft.report.run import report_run

    program = check_program(module, program)
    chips = find_chips(names)
    visible = choose_visible(chips)
    attach(gpu=visible.name, count=count, dry=dry, dry_value=dry_value)
    with report_run(visible, count, chips=chips, json_file=json_file, tell=tell_children(count)):
        status = run_program(module, list(program))
    sys.exit(status)


def tell_children(count: int) -> Callable[[], None]:
    """A function that lets processes started later find the same devices, with the settings of the moment."""
    from weft.install import tell_children as tell

    return partial(tell, count)


def check_program(module: str | None, program: tuple[str, ...]) -> tuple[str, ...]:
    """The program and its arguments, a Python script on PATH (torchrun, accelerate) by its path.

    Raises UsageError where no program is named, or one that is no Python.
    """
    if module is None and not program:
        raise click.UsageError("name a program: weft run PROGRAM.py, or weft run -m MODULE")
    if module is None:
        program = (find_script(program[0]), *program[1:])
        refuse_cuda_source(program[0])
    return program


def find_script(name: str) -> str:
    """The path of an installed Python script for its bare name, of this interpreter first; else the name itself."""
    if os.path.exists(name) or os.path.dirname(name):
        return name
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is not None:
        with open(found, "rb") as file:
            first = file.readline(200)
        if first.startswith(b"#!") and b"python" in first:
            return found
    return name


def refuse_cuda_source(program: str) -> None:
    """Raises UsageError for a program that is no Python, saying what to do."""
    if not os.path.exists(program):
        raise click.UsageError(f"no such file: {program}")
    if program.endswith((".cu", ".cuh")):
        raise click.UsageError(
            f"{program}: CUDA programs with host code are not supported yet. Compile its kernels from a Python program "
            f'and run that: kernels = weft.Device().compile("{program}"), then kernels["name"][grid, block](...)'
        )
    if program.endswith(".ptx"):
        raise click.UsageError(
            f"{program}: PTX has no host code to run. Load it from a Python program and run that: "
            f'kernels = weft.Device().load(open("{program}").read()), then kernels["name"][grid, block](...)'
        )


def attach(**chosen) -> bool:
    """Makes the options that were given the process's settings and attaches the front ends, except where the machine
    has a real GPU and none was asked for: then the answer is False. Raises WeftError for an unknown chip."""
    from weft import settings
    from weft.install import attach_front_ends, find_real_gpus

    given = {name: value for name, value in chosen.items() if value is not None and value is not False}
    if "gpu" not in given and not os.environ.get("WEFT_GPU") and (found := find_real_gpus()):
        click.echo(f"weft: frameworks use the real GPU ({found[0]}); --gpu NAME chooses a virtual one", err=True)
        given.pop("count", None)
        settings.configure(**given)
        return False
    attach_front_ends(**given)
    return True


def run_program(module: str | None, arguments: Sequence[str]) -> int:
    """Runs a module, or the file arguments[0], as `__main__`, and returns the exit status 0, or 1 after an exception,
    whose traceback it prints without Weft's own frames. SystemExit and KeyboardInterrupt pass."""
    # Python puts the program's folder, or with -m the current one, in front of the search path.
    if module is None:
        sys.argv = list(arguments)
        if not os.path.isdir(arguments[0]):
            sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    else:
        sys.argv = [module, *arguments]
        sys.path.insert(0, os.getcwd())
    try:
        if module is None:
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        trace = program_frames(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return 1
    return 0


def program_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the program's first frame on."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        trace = trace.tb_next
    return trace


@main.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gpus(name: str | None, as_json: bool) -> None:
    """List the chips that a device can be, or everything about one."""
    from weft.report.catalogue import print_chips

    print_chips(name, as_json)


@main.group()
def cache() -> None:
    """The compiled kernels kept on disk."""


@cache.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cache_info(as_json: bool) -> None:
    """Show where the cache is, and how much is in it."""
    from weft.report.terminal import format_bytes, make_console, print_json, print_pairs

    directory, counts = survey_cache()
    total = sum(size for _, size in counts.values())
    if as_json:
        entries = {kind: {"entries": count, "bytes": size} for kind, (count, size) in counts.items()}
        print_json({"directory": str(directory), "bytes": total, **entries})
        return
    pairs = [("directory", str(directory))]
    pairs += [(kind, f"{count:,} entries, {format_bytes(size)}") for kind, (count, size) in counts.items()]
    print_pairs(make_console(), [*pairs, ("total", format_bytes(total))])


@cache.command("clear")
def cache_clear() -> None:
    """Remove all entries. Running programs rebuild what they need."""
    from weft.report.terminal import format_bytes

    directory, counts = survey_cache()
    for path in cache_files(directory):
        path.unlink(missing_ok=True)
    count = sum(count for count, _ in counts.values())
    size = sum(size for _, size in counts.values())
    click.echo(f"removed {count:,} entries ({format_bytes(size)}) from {directory}")


@cache.command("dir")
def cache_dir() -> None:
    """Print the cache's folder."""
    from weft import settings

    click.echo(settings.current().cache_dir)


# The files of the cache, by what they hold.
CACHE_PATTERNS = {
    "objects": "**/*.weftobj", "PTX": "**/ptx/*.json", "Triton": "triton/*/*", "helper": "helper/*/*.so",
    "unfinished": "**/*.tmp",
}  # fmt: skip


def cache_files(directory: Path) -> list[Path]:
    return [path for pattern in CACHE_PATTERNS.values() for path in directory.glob(pattern)]


def survey_cache() -> tuple[Path, dict[str, tuple[int, int]]]:
    """The cache's folder, and by kind the number of entries and their bytes."""
    from weft import settings

    directory = Path(settings.current().cache_dir)
    counts = {}
    for kind, pattern in CACHE_PATTERNS.items():
        sizes = []
        for path in directory.glob(pattern):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:  # another process removed it meanwhile
                continue
        if sizes or kind != "unfinished":
            counts[kind] = (len(sizes), sum(sizes))
    return directory, counts


@main.group()
def helper() -> None:
    """The compiled helper of the PyTorch front end. Without it everything works, with more time per operator."""


@helper.command("build")
def helper_build() -> None:
    """Compile the helper for this Python and this PyTorch into the cache. Takes half a minute and a C++ compiler."""
    from weft.frontends.torch.helper import build_helper

    click.echo(build_helper())


@helper.command("info")
def helper_info() -> None:
    """Show whether programs will use the helper, and why not."""
    from weft.frontends.torch.helper import describe_helper

    click.echo(describe_helper())


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Show what is installed, what will work, and what to install for the rest.

    Ends with status 1 where kernels cannot run.
    """
    from weft.doctor import examine
    from weft.report.diagnosis import print_findings

    found = examine()
    print_findings(found, as_json)
    if any(finding.state == "wrong" for finding in found):
        sys.exit(1)
