"""`.file`, `.loc` and `.debug_str`. Enters: the PTX text and its `.loc` directives. Leaves: SourceLocations.

`.file` and `.section .debug_str` may stand behind the code that refers to them, so they are read first.
Source: PTX manual, "Debugging Directives".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from weft.isa.operands import SourceLocation

_FILE = re.compile(r'\.file\s+(\d{1,9})\s+"((?:[^"\\\n]|\\.)*)"', re.ASCII)
_STRINGS = re.compile(r"\.section\s+\.debug_str\s*\{([^{}]*)\}")
_STRING_ITEM = re.compile(r"([\w$.]+)\s*:|\.b8\s+([\d\s,]+)", re.ASCII)

LOC = re.compile(
    r"\.loc\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9})"
    r"(?:\s*,\s*function_name\s+([\w$.]+)(?:\s*\+\s*(\d{1,9}))?"
    r"\s*,\s*inlined_at\s+(\d{1,9})\s+(\d{1,9})\s+(\d{1,9}))?",
    re.ASCII,
)


def read_files(text: str) -> dict[int, str]:
    """The `.file` table: index -> path as written."""
    return {int(index): path for index, path in _FILE.findall(text)}


class DebugStrings:
    """The strings of `.section .debug_str`, looked up by label and byte offset."""

    def __init__(self, text: str):
        self._text = text
        self._bytes: bytes | None = None
        self._labels: dict[str, int] = {}

    def _read(self) -> bytes:
        data = bytearray()
        section = _STRINGS.search(self._text)
        for label, values in _STRING_ITEM.findall(section.group(1) if section else ""):
            if label:
                self._labels[label] = len(data)
                continue
            data.extend(int(value[-3:]) & 0xFF for value in values.replace(",", " ").split())
        return bytes(data)

    def get(self, label: str, offset: int = 0) -> str:
        """The zero-terminated string at `label` + `offset`; "" where there is none."""
        if self._bytes is None:
            self._bytes = self._read()
        if label not in self._labels:
            return ""
        start = self._labels[label] + offset
        stop = self._bytes.find(b"\0", start)
        return self._bytes[start : stop if stop >= 0 else None].decode("utf-8", "replace")


class SourceMap:
    """Turns `.loc` directives of one function, in order, into SourceLocations with their inlining chains."""

    def __init__(self, files: Mapping[int, str], strings: DebugStrings):
        self._files, self._strings = files, strings
        # A call site is named by file, line and column; the last `.loc` there gives the chain around it.
        self._places: dict[tuple[str, str, str], SourceLocation] = {}
        self._seen: dict[tuple, SourceLocation] = {}

    def start_function(self) -> None:
        """Forget the call sites of the function before."""
        self._places.clear()
        self._seen.clear()

    def locate(self, loc: re.Match) -> SourceLocation:
        """The place that a match of LOC names. An index without `.file` gives the file name `<file N>`."""
        file, line, column, label, offset, *site = loc.groups()
        place = (file, line, column)
        if label is None:
            location = self._places.get(place)
            if location is None or location.inlined_at is not None:
                location = self._make(place, "", None)
                self._places[place] = location
            return location
        caller = self._places.get(tuple(site))
        if caller is None:
            caller = self._make(tuple(site), "", None)
        key = (place, label, offset, id(caller))
        location = self._seen.get(key)
        if location is None:
            location = self._make(place, self._strings.get(label, int(offset or 0)), caller)
            self._seen[key] = location
        self._places[place] = location
        return location

    def _make(self, place: tuple, function: str, caller: SourceLocation | None) -> SourceLocation:
        index = int(place[0])
        file = self._files.get(index, f"<file {index}>")
        return SourceLocation(file, int(place[1]), int(place[2]), function, caller)
