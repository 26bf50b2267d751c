"""Real text that comes with Python: docstrings with the module they belong to, and the language reference's topics.

No network is used and nothing is shipped: what is read depends a little on the Python version.
"""

from __future__ import annotations

import importlib
import inspect
import re

import torch

# Subjects and the modules of the standard library that treat them.
SUBJECTS = {
    "networking": ("socket", "ssl", "http.client", "http.cookies", "ftplib", "smtplib", "imaplib", "urllib.request",
                   "urllib.parse", "socketserver", "xmlrpc.client", "ipaddress", "poplib", "http.server"),
    "numbers": ("decimal", "fractions", "statistics", "math", "cmath", "random", "numbers", "datetime", "calendar"),
    "files": ("pathlib", "shutil", "zipfile", "tarfile", "tempfile", "os", "io", "gzip", "bz2", "lzma", "glob",
              "fileinput", "mailbox"),
    "concurrency": ("asyncio", "threading", "queue", "concurrent.futures", "multiprocessing.pool", "asyncio.streams",
                    "asyncio.subprocess", "multiprocessing.managers", "asyncio.events", "subprocess", "sched"),
    "code": ("ast", "inspect", "dis", "tokenize", "importlib.abc", "pdb", "unittest.case", "unittest.mock", "doctest",
             "typing", "pkgutil", "traceback", "symtable", "pydoc"),
}  # fmt: skip


def load_sentences(least: int = 5, most: int = 32) -> list[tuple[list[str], int]]:
    """(words, subject) of the sentences in the docstrings of the modules above, each once, in a stable order."""
    found: dict[tuple[str, ...], int] = {}
    for subject, modules in enumerate(SUBJECTS.values()):
        for name in modules:
            for text in _docstrings(importlib.import_module(name)):
                for sentence in re.split(r"(?<=[.:!?])\s+|\n\s*\n", text):
                    words = re.findall(r"[a-z]+", sentence.lower())
                    if least <= len(words) <= most:
                        found.setdefault(tuple(words), subject)
    return [(list(words), subject) for words, subject in found.items()]


def _docstrings(module) -> list[str]:
    texts = [inspect.getdoc(module) or ""]
    for _, item in sorted(inspect.getmembers(module), key=lambda pair: pair[0]):
        if getattr(item, "__module__", "") != module.__name__:
            continue
        texts.append(inspect.getdoc(item) or "")
        if inspect.isclass(item):
            own = [value for _, value in sorted(vars(item).items()) if callable(value)]
            texts += [inspect.getdoc(value) or "" for value in own]
    return texts


def load_characters(most: int) -> str:
    """The first characters of the language reference's topics, as `help()` shows them."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))[:most]


class Vocabulary:
    """Words by number: 0 is padding, 1 a word that is not among the most frequent."""

    def __init__(self, sentences: list[list[str]], size: int):
        count: dict[str, int] = {}
        for words in sentences:
            for word in words:
                count[word] = count.get(word, 0) + 1
        kept = sorted(count, key=lambda word: (-count[word], word))[: size - 2]
        self.number = {word: i + 2 for i, word in enumerate(kept)}

    def __len__(self) -> int:
        return len(self.number) + 2

    def encode(self, sentences: list[list[str]], length: int) -> torch.Tensor:
        """int64 [sentences, length], padded with 0."""
        rows = torch.zeros(len(sentences), length, dtype=torch.int64)
        for row, words in zip(rows, sentences):
            numbers = [self.number.get(word, 1) for word in words[:length]]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows
