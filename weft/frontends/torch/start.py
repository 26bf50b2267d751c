"""The last steps of attaching, which need all of torch: kernels, twins, generators, the timeline."""

from __future__ import annotations

import torch

from weft import settings
from weft.frontends.torch import dispatch, patches, recording
from weft.frontends.torch.backward import run_in_calling_thread, start_engine
from weft.frontends.torch.bindings import initialise
from weft.frontends.torch.dry_start import after_start
from weft.frontends.torch.gpus import gpus, make_gpus
from weft.frontends.torch.helper import choose_operators, load_helper
from weft.frontends.torch.hooks import HooksState
from weft.frontends.torch.operators.storage import VIEWS
from weft.frontends.torch.registration import libraries, register_kernels
from weft.frontends.torch.tensors import guard_twins


def change_gpus() -> None:
    """Follows a change of the process's devices: other chips, or another number of them."""
    before = [gpu.device for gpu in gpus]
    if [gpu.device for gpu in make_gpus()] == before:
        return
    HooksState.device_count = len(gpus)
    dispatch.forget_kernels()
    torch.cuda._cached_device_count = None
    if torch.cuda.is_initialized():
        initialise()
    recording.connect(renew=True)


def start(late: bool = False) -> None:
    """Makes the imported torch's CUDA work. late: torch was imported before, and may have run a backward pass."""
    dispatch.forget_kernels()
    guard_twins()
    register_kernels()
    patches.apply_patches(libraries)
    run_in_calling_thread()
    helper = load_helper()
    if helper is not None:
        helper.install(choose_operators(dispatch.entries, VIEWS))
    if late:
        torch.cuda._lazy_call(start_engine)
    if settings.current().dry:
        after_start(libraries)
    recording.connect()
    assert torch.cuda._is_compiled()
