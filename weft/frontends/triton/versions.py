"""Which versions of Triton work: a version's text in, an error for one that does not."""

from __future__ import annotations

import re

from weft.errors import UnsupportedError

OLDEST = (3, 4)
TESTED = ("3.4", "3.5", "3.6", "3.9")
RANGE = "triton>=3.4"


def parse_version(text: str) -> tuple[int, int]:
    """(major, minor) of a version such as "3.4.0+git1234"."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def check_version(text: str) -> None:
    """Raises UnsupportedError for a Triton that is too old."""
    if parse_version(text) < OLDEST:
        raise UnsupportedError(
            f"Triton {text} is too old for Weft, which runs kernels of {RANGE} (tried with {', '.join(TESTED)}): "
            f'pip install "{RANGE}"'
        )
