"""The doctor's findings in, a report on the terminal or JSON out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from weft.report.terminal import make_console, print_json

STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    state: "ok"; "note", where something optional is missing; "wrong", where Weft cannot work. advice: what to do about
    it, empty when nothing need be done.
    """

    name: str
    state: str
    detail: str
    advice: str = ""


def print_findings(found: Sequence[Finding], as_json: bool) -> None:
    """One line per finding, with advice below it where there is any, and the outcome in a last line."""
    works = all(finding.state != "wrong" for finding in found)
    if as_json:
        print_json({"works": works, "findings": [asdict(finding) for finding in found]})
        return
    console = make_console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for finding in found:
        detail = Text(finding.detail)
        if finding.advice:
            detail.append(f"\n-> {finding.advice}", style="yellow")
        table.add_row(Text(finding.state, style=STYLES[finding.state]), finding.name, detail)
    console.print(table)
    console.print("Kernels run on this machine." if works else "Kernels do not run on this machine: see what is wrong.")
