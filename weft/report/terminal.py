"""Plain data in, text on the terminal out: consoles, tables, sizes. Colours appear only on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 200  # columns of output that goes to a file or pipe


def make_console(*, stderr: bool = False) -> Console:
    """A console on standard output or error; without a terminal no colours and no wrapping at 80 columns."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    return console


def format_bytes(count: float) -> str:
    """Bytes with a decimal unit: 81,920,000,000 is "81.9 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_kib(count: int) -> str:
    """Bytes in binary units, as GPU data sheets give shared memory and caches: 49,152 is "48 KiB"."""
    if count % (1 << 20) == 0 and count:
        return f"{count >> 20:,} MiB"
    return f"{count >> 10:,} KiB" if count % 1024 == 0 else f"{count:,} bytes"


def print_table(console: Console, headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "",
                right: Sequence[str] = ()) -> None:  # fmt: skip
    """A table of texts; the columns named in `right` are aligned to the right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def print_pairs(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    console.print(table)


def print_json(value: object) -> None:
    """The value as indented JSON on standard output, for machines."""
    print(json.dumps(value, indent=2))
