"""Backward passes in the thread that asks for them: autograd's entry in, the same entry without device threads out.

PyTorch's engine has a thread for each GPU, since a GPU's host thread mostly waits. Here the operators run on the host:
a thread of their own would pass Python's lock to and fro at every operator, start a second team of OpenMP threads, and
end in the middle of a release when the program is over, which aborts the process. The engine can do without
(torch.autograd.set_multithreading_enabled), thread by thread; every backward pass switches it off for itself.

C++ enters the engine without asking Python (TorchScript, extensions), and needs the threads: the engine starts them at
its first backward pass, for the devices that are there by then.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from weft.frontends.torch.hooks import start_device_threads
from weft.frontends.torch.tensors import to_cuda

_enabled = torch._C._is_multithreading_enabled
_enable = torch._C._set_multithreading_enabled


def start_engine() -> None:
    """Gives the engine its device threads where its first backward pass was over before there were devices.

    Raises UnsupportedError where that cannot be done.
    """
    run = torch.autograd.variable.Variable._execution_engine.run_backward
    before = _enabled()
    _enable(True)
    # The program may use its first GPU where gradients are off.
    with torch.inference_mode(False), torch.enable_grad():
        # A graph without work: empty tensors take no memory, and a view launches nothing.
        leaf, gradient = to_cuda(torch.empty(0), 0).requires_grad_(), to_cuda(torch.empty(0), 0)
        try:
            run((leaf.view(0),), (gradient,), False, False, (leaf,))
        except RuntimeError as error:
            if "device_ready_queues_" not in str(error):
                raise
            start_device_threads(torch)
            run((leaf.view(0),), (gradient,), False, False, (leaf,))
        finally:
            _enable(before)


def run_in_calling_thread() -> None:
    """Replaces the function through which torch.autograd enters the engine."""
    original = torch.autograd.graph._engine_run_backward

    @functools.wraps(original)
    def run_backward(*args: Any, **kwargs: Any) -> Any:
        if not _enabled():
            return original(*args, **kwargs)
        _enable(False)
        try:
            return original(*args, **kwargs)
        finally:
            _enable(True)

    torch.autograd.graph._engine_run_backward = run_backward
    torch.autograd._engine_run_backward = run_backward
