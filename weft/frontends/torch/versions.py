"""Which builds of PyTorch work: a version's text in, an error for one that does not.

The front end fills in what a CPU build lacks and reads fields of torch's C++ objects (layout.py, hooks.py), so it holds
for the versions it was tried with only.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from weft.errors import UnsupportedError

TESTED = ((2, 13),)
CUDA_VERSION = 13000  # the CUDA runtime that torch reports: major * 1000 + minor * 10
CUDNN_VERSION = 91300
RANGE = "torch>=2.13,<2.14"


def parse_version(text: str) -> tuple[int, int]:
    """(major, minor) of a version such as "2.13.0+cpu"; (0, 0) where there is none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def check_version(text: str, cuda: str | None = None) -> None:
    """Raises UnsupportedError for a PyTorch that was not tried, or one that was built for a real GPU.

    text: torch.__version__; cuda: torch.version.cuda, None for a CPU build.
    """
    if parse_version(text) not in TESTED:
        raise UnsupportedError(
            f"PyTorch {text} was not tried with Weft's virtual GPUs, which need {RANGE}: "
            f'pip install "{RANGE}" --index-url https://download.pytorch.org/whl/cpu'
        )
    if cuda is not None:
        raise UnsupportedError(
            f"PyTorch {text} is built for CUDA {cuda}; Weft's virtual GPUs need the CPU build ({RANGE}): "
            f'pip install "{RANGE}" --index-url https://download.pytorch.org/whl/cpu'
        )


def check_installed() -> None:
    """check_version for what the installed package says of itself; a torch without a package is checked when loaded."""
    try:
        text = version("torch")
    except PackageNotFoundError:
        return
    built_for = re.search(r"\+cu(\d+)(\d)$", text)
    check_version(text, f"{built_for[1]}.{built_for[2]}" if built_for else None)
