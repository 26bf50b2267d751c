"""A compiled Triton kernel, a grid and arguments in; a launch on the virtual GPU done.

Triton makes one Launcher per compiled kernel and calls it for every launch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from weft.frontends.devices import LaunchCapture
from weft.frontends.triton import scratch
from weft.frontends.triton.arguments import TritonArguments
from weft.frontends.triton.tensors import ranges_of
from weft.runtime.launch import PreparedLaunch
from weft.runtime.module import Kernel
from weft.types import Dim3

MAX_PREPARED = 256  # grids that a launcher remembers


class Launcher:
    """What Triton calls `launcher_cls`. src: Triton's ASTSource or IRSource; metadata: what its compiler found."""

    def __init__(self, src: Any, metadata: Any):
        signature = src.signature
        self.kinds = tuple(signature.values())
        self.names = tuple(str(name) for name in signature)
        self.descriptors = getattr(metadata, "tensordesc_meta", None)
        self.block = Dim3(32 * metadata.num_warps)
        self.shared_bytes = metadata.shared
        num_ctas = getattr(metadata, "num_ctas", 1)
        # Triton 3.4 and 3.5 give clusters a shape, later versions a length.
        shape = getattr(metadata, "cluster_dims", None) or (num_ctas, 1, 1)
        self.cluster = Dim3(*shape) if num_ctas > 1 else None
        self.cooperative = bool(getattr(metadata, "launch_cooperative_grid", False))
        self.global_scratch = _scratch_of(metadata, "global")
        self.profile_scratch = _scratch_of(metadata, "profile")
        self._needs_scratch = bool(self.global_scratch[0] or self.profile_scratch[0])
        self._function: Kernel | None = None
        self._arguments: TritonArguments | None = None
        self._prepared: dict[tuple[int, int, int], PreparedLaunch] = {}

    def __call__(self, grid_x: int, grid_y: int, grid_z: int, stream: Any, function: Kernel, kernel_metadata: Any,
                 launch_metadata: Any, enter_hook: Any, exit_hook: Any, *args: Any) -> None:  # fmt: skip
        """Runs the kernel and waits for it. An empty grid does nothing, as in Triton."""
        if enter_hook is not None:
            enter_hook(launch_metadata)
        launch = self._prepared.get((grid_x, grid_y, grid_z))
        if LaunchCapture.skip is not None and LaunchCapture.skip(function.name, args):
            launch = None
        elif launch is None or function is not self._function:
            launch = self._prepare(grid_x, grid_y, grid_z, function)
        if launch is not None:
            if self._needs_scratch:
                self._launch_with_scratch(launch, stream, args)
            else:
                launch(*args)
            if LaunchCapture.note is not None:
                again = partial(self, grid_x, grid_y, grid_z, stream, function, kernel_metadata, None, None, None)
                LaunchCapture.note(again, args)
        if exit_hook is not None:
            exit_hook(launch_metadata)

    def _prepare(self, grid_x: int, grid_y: int, grid_z: int, function: Kernel) -> PreparedLaunch | None:
        if grid_x * grid_y * grid_z <= 0:
            return None
        if function is not self._function:
            self._arguments = TritonArguments(
                function.name, function.params, self.kinds, self.names, self.descriptors, ranges_of(function.device)
            )
            function.packer = self._arguments  # type: ignore[assignment]
            self._function = function
            self._prepared.clear()
        if len(self._prepared) >= MAX_PREPARED:
            self._prepared.clear()
        x, y, z = self.cluster or (1, 1, 1)
        grid = Dim3(int(grid_x) * x, int(grid_y) * y, int(grid_z) * z)  # Triton counts clusters
        function.non_portable_cluster_size_allowed = x * y * z == 16
        made = function.prepared(grid, self.block, None, self.shared_bytes, self.cooperative, self.cluster)
        self._prepared[grid_x, grid_y, grid_z] = made
        return made

    def _launch_with_scratch(self, launch: PreparedLaunch, stream: Any, args: tuple) -> None:
        arguments, blocks = self._arguments, launch.grid.count
        assert arguments is not None
        with launch.device.lock:  # scratch is the arguments' until the launch has read it
            buffers = scratch.allocate(launch.device, blocks, self.global_scratch, self.profile_scratch, stream)
            arguments.scratch = tuple(map(arguments.ranges.address_of, buffers))  # type: ignore[assignment]
            launch(*args)


def _scratch_of(metadata: Any, name: str) -> tuple[int, int]:
    """(bytes per block, alignment) of the global or the profile scratch memory."""
    size = getattr(metadata, f"{name}_scratch_size", 0) or 0
    return size, getattr(metadata, f"{name}_scratch_align", 1) or 1
