"""PTX on disk: a key in, what a compiler made for it out.

One file per entry: a line with the SHA-256 of the rest, then JSON. Entries are written to a temporary file and renamed,
so that a reader sees a whole entry or none; one that does not match its checksum is removed and built again. Safe
between threads and processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from weft.errors import CacheError
from weft.frontends.cuda_cpp.nvrtc import Compilation


def cache_key(parts: Sequence[str]) -> str:
    """A key from the texts that determine a compilation."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class PtxCache:
    """The folder `directory`/ptx, made when first written to."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory) / "ptx"

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.json"

    def get(self, key: str) -> Compilation | None:
        """The entry, or None when there is none or it is damaged (it is then removed)."""
        path = self._path(key)
        try:
            checksum, _, body = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error}") from error
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            path.unlink(missing_ok=True)
            return None
        entry = json.loads(body)
        return Compilation(entry["ptx"], entry["names"], entry["log"])

    def put(self, key: str, compilation: Compilation) -> None:
        """Writes an entry whole. Raises CacheError when the folder can't be written."""
        body = json.dumps({"ptx": compilation.ptx, "names": compilation.names, "log": compilation.log}).encode()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=key[:16], suffix=".tmp", dir=self.directory)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                os.replace(temporary, self._path(key))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise CacheError(f"cannot write to the cache folder {self.directory}: {error}") from error
