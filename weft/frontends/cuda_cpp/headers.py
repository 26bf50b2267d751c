"""Which headers a program includes: source text in, a fingerprint of everything that it can include out.

A cached compilation is only good while its headers are what they were. Headers below the user's own folders are read
and hashed, following every #include without regard to #if, so the set is at least what the compiler sees. Folders that
belong to the compiler (NVIDIA's wheels, Weft's own headers) are stamped by sizes and modification times of what lies
directly in them, which change when a package is installed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

_INCLUDE = re.compile(
    rb"""^[ \t]*\#[ \t]*include(?:_next)?[ \t]*(?:<([^>\n]+)>|"([^"\n]+)"|([A-Za-z_]\w*))""", re.MULTILINE | re.VERBOSE
)


def include_fingerprint(source: str, folder: Path, include_dirs: Sequence[str | Path],
                        options: Sequence[str] = ()) -> str | None:  # fmt: skip
    """Hash of the user's headers that `source`, which lies in `folder`, reaches through `include_dirs`.

    None when it can't be known: an #include names a macro, or an option (-include FILE) brings in more.
    """
    if any(option.startswith(("-include", "--pre-include", "-imacros", "@", "--options-file")) for option in options):
        return None
    digest = hashlib.sha256()
    seen: set[Path] = set()
    pending: list[tuple[Path, bytes]] = [(folder, source.encode())]
    while pending:
        place, text = pending.pop()
        for angled, quoted, macro in _INCLUDE.findall(text.replace(b"\\\n", b"")):
            if macro:
                return None
            name = (angled or quoted).decode(errors="replace")
            searched = [Path(item) for item in include_dirs]
            if quoted:
                searched.insert(0, place)
            path = next((item / name for item in searched if (item / name).is_file()), None)
            if path is None:
                continue  # one of the compiler's own, or a mistake that the compiler will report
            path = path.resolve()
            if path in seen:
                continue
            seen.add(path)
            content = path.read_bytes()
            digest.update(f"{name}\0{path}\0{len(content)}\0".encode())
            digest.update(content)
            pending.append((path.parent, content))
    return digest.hexdigest()


def folder_stamp(folders: Sequence[str | Path]) -> str:
    """Path, size and modification time (ns) of each folder and of what lies directly in it."""
    lines = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            lines.append(f"{folder} absent")
            continue
        for path in (folder, *sorted(folder.iterdir())):
            status = path.stat()
            lines.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(lines)
