"""What a CPU build says of itself elsewhere in torch's Python code, put right."""

from __future__ import annotations

import torch

from weft.frontends.torch.random import Generator


def apply_patches() -> None:
    torch.version.cuda = "13.0"
    torch.Generator = Generator
