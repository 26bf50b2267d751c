"""The instruction table as a page: weft.isa.TABLE in, docs/coverage.md out.

    python tools/coverage_table.py            write docs/coverage.md
    python tools/coverage_table.py --check    say whether the file is up to date; exit status 1 where it is not
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import weft.isa  # noqa: F401  fills TABLE
from weft.isa.instruction import TABLE, Entry

PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"

HEAD = """\
# Instruction coverage

Made by `python tools/coverage_table.py` from the instruction table in `weft/isa`; do not edit.

{runs} forms of {opcodes} instructions run. {missing} more forms parse, and using one raises `UnsupportedError` with a
text that says what is missing. Anything else is refused as PTX that no instruction has, with its line.

Notation as in the PTX manual: `{{.x}}` may be left out, `.(a|b)` is one of several. PTX and sm are the versions that
brought the form. *Error* is the manual's bound for approximate forms; every other form is bit-exact.
"""


def write_form(entry: Entry) -> str:
    """The signature with every variable modifier written out: `shl.(b16|b32|b64) d, a, b`."""
    parts = [entry.opcode]
    for slot in entry.modifiers:
        text = f".{slot.choices[0]}" if len(slot.choices) == 1 else f".({'|'.join(slot.choices)})"
        parts.append(f"{{{text}}}" if slot.optional else text)
    operands = entry.signature.partition(" ")[2]
    return "".join(parts) + (f" {operands}" if operands else "")


def write_error(entry: Entry) -> str:
    bound = entry.tolerance
    if bound is None:
        return ""
    if callable(bound):
        return "depends on the form"
    words = [
        f"{bound.ulp:g} ulp" if bound.ulp else "",
        f"2^{_log2(bound.absolute)} absolute" if bound.absolute else "",
        f"2^{_log2(bound.relative)} relative" if bound.relative else "",
    ]
    return ", ".join(word for word in words if word)


def _log2(value: float) -> str:
    return f"{math.log2(value):.4g}"


def make_page() -> str:
    """The whole page, one table per instruction, in alphabetical order."""
    entries = [entry for rows in TABLE.values() for entry in rows]
    missing = [entry for entry in entries if entry.missing]
    running = [entry for entry in entries if not entry.missing]
    opcodes = {entry.opcode for entry in running}
    head = HEAD.format(runs=len(running), opcodes=len(opcodes), missing=len(missing))
    lines = [head, "| form | PTX | sm | pipe | error | section of the manual |", "|---|---|---|---|---|---|"]
    for opcode in sorted(opcodes):
        for entry in TABLE[opcode]:
            if not entry.missing:
                form = write_form(entry).replace("|", "\\|")
                version = "{}.{}".format(*entry.ptx)
                lines.append(
                    f"| `{form}` | {version} | {entry.sm} | {entry.pipe} | {write_error(entry)} | {entry.section} |"
                )
    if missing:
        lines += ["", "## Forms that parse but do not run yet", "", "| form | what is missing |", "|---|---|"]
        for entry in sorted(missing, key=lambda entry: entry.signature):
            form = write_form(entry).replace("|", "\\|")
            lines.append(f"| `{form}` | {entry.missing} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    page = make_page()
    if arguments == ["--check"]:
        fresh = PAGE.exists() and PAGE.read_text() == page
        print(f"{PAGE.name} is up to date" if fresh else f"{PAGE.name} is out of date: python tools/coverage_table.py")
        return 0 if fresh else 1
    if arguments:
        print(__doc__)
        return 2
    PAGE.write_text(page)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
