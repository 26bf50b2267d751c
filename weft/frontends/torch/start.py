"""The last steps of attaching, which need all of torch: kernels, twins, generators, the timeline."""

from __future__ import annotations

import torch

from weft.frontends.torch import dispatch, patches, recording
from weft.frontends.torch.gpus import gpus
from weft.frontends.torch.registration import register_kernels
from weft.frontends.torch.tensors import guard_twins


def start() -> None:
    """Makes the imported torch's CUDA work."""
    dispatch.namespace["allocate_0"] = gpus[0].allocator.allocate
    guard_twins()
    register_kernels()
    patches.apply_patches()
    recording.connect()
    assert torch.cuda._is_compiled()
