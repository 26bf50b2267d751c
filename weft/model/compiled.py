"""Launches of compiled kernels on the timeline: a launch in, what its Profile needs out, when somebody asks.

Recording keeps the shape, the parameters and the size of the arrays. Counts are worked out at the first pricing
(weft.model.counts), which is the only part that needs the instruction set. A better profile, from counters compiled
into the kernel, takes their place behind PendingLaunch.resolve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.errors import WeftError
from weft.model.work import KernelLaunch
from weft.types import Dim3


@dataclass(frozen=True)
class PendingLaunch:
    """A launch whose counts are worked out when somebody asks. kernel: a weft.runtime Kernel; parameters: the bytes of
    its parameter buffer; footprint: bytes of the arrays that it was given."""

    kernel: Any
    grid: Dim3
    block: Dim3
    shared_bytes: int
    registers: int
    parameters: bytes
    footprint: int

    def resolve(self) -> KernelLaunch:
        """The launch with its counts; without them where the kernel cannot be followed."""
        from weft.model.counts import count_launch

        name = self.kernel.name
        try:
            flops, instructions, read, written = count_launch(
                self.kernel.program.module, name, self.parameters, self.grid, self.block
            )
        except (WeftError, ValueError, KeyError, IndexError, AssertionError):
            flops, instructions, read, written = {}, 0.0, float(self.footprint), 0.0
        if self.footprint:
            read, written = min(read, float(self.footprint)), min(written, float(self.footprint))
        return KernelLaunch(
            name, self.grid.count, self.block.count, self.registers, self.shared_bytes, tuple(sorted(flops.items())),
            instructions, read, written,
        )  # fmt: skip


def describe_launch(launch: Any) -> PendingLaunch:
    """What to keep of a weft.runtime PreparedLaunch that just ran: its shape, the bytes of its parameters."""
    kernel, device = launch.kernel, launch.device
    size = kernel.packer.size
    parameters = bytes(device.parameter_view[:size])
    footprint, seen = 0, set()
    for param in kernel.params:
        if param.size != 8 or param.type.name in ("f64", "s64"):
            continue
        address = int.from_bytes(parameters[param.offset : param.offset + 8], "little")
        found = device.arena.find_live(address)
        if found is not None and found[0] not in seen:
            seen.add(found[0])
            footprint += found[1]
    shared = launch.compiled.static_shared_bytes + launch.shared_bytes
    return PendingLaunch(kernel, launch.grid, launch.block, shared, kernel.estimate_registers(launch.compiled),
                         parameters, footprint)  # fmt: skip


def scalar_parameters(launch: Any) -> bytes:
    """The bytes of a launch's parameters that are no pointers: launches that agree in them do the same work."""
    view, kernel = launch.device.parameter_view, launch.kernel
    parts = []
    for param in kernel.params:
        part = bytes(view[param.offset : param.offset + param.size])
        # A large 64-bit number is taken for a pointer: two launches on other arrays of equal shape are one entry.
        if param.size == 8 and int.from_bytes(part, "little") >> 32:
            continue
        parts.append(part)
    return b"".join(parts)
