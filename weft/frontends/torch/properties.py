"""What torch.cuda.get_device_properties tells: a chip of the catalogue in, PyTorch's object out."""

from __future__ import annotations

import uuid
from typing import Any

from weft.chips import Chip


class CudaDeviceProperties:
    """torch._C._CudaDeviceProperties. Memory in bytes, clocks in kHz, the bus in bits."""

    def __init__(self, chip: Chip, index: int):
        limits = chip.capability
        self.name = chip.full_name
        self.major, self.minor = limits.version
        self.total_memory = chip.memory_bytes
        self.multi_processor_count = chip.sm_count
        self.warp_size = limits.warp_size
        self.max_threads_per_multi_processor = limits.threads_per_sm
        self.max_threads_per_block = limits.max_threads_per_block
        self.regs_per_multiprocessor = limits.registers_per_sm
        self.shared_memory_per_block = limits.shared_per_block
        self.shared_memory_per_block_optin = limits.shared_per_block_optin
        self.shared_memory_per_multiprocessor = limits.shared_per_sm
        self.L2_cache_size = chip.l2_bytes or 0
        self.clock_rate = int((chip.boost_clock or 0) / 1e3)
        # Two transfers per clock of the memory.
        bus = chip.memory_bus_bits or 0
        self.memory_bus_width = bus
        self.memory_clock_rate = int(chip.memory_bandwidth * 8 / bus / 2 / 1e3) if bus else 0
        self.is_integrated = int(bool(chip.integrated))
        self.is_multi_gpu_board = 0
        self.gcnArchName = ""
        self.uuid = uuid.uuid5(uuid.NAMESPACE_DNS, f"{chip.name}.{index}.weft")
        self.pci_bus_id, self.pci_device_id, self.pci_domain_id = index + 1, 0, 0

    def __repr__(self) -> str:
        return (
            f"_CudaDeviceProperties(name='{self.name}', major={self.major}, minor={self.minor}, "
            f"total_memory={self.total_memory >> 20}MB, multi_processor_count={self.multi_processor_count}, "
            f"uuid={self.uuid}, pci_bus_id={self.pci_bus_id}, pci_device_id={self.pci_device_id}, "
            f"pci_domain_id={self.pci_domain_id}, L2_cache_size={self.L2_cache_size >> 20}MB)"
        )


def architectures(version: tuple[int, int]) -> list[str]:
    """What PyTorch says that it was built for: the chip's own architecture is always among it."""
    common = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    own = f"sm_{version[0]}{version[1]}"
    listed = common if own in common else sorted([*common, own], key=lambda arch: int(arch[3:]))
    return [*listed, "compute_120"]


def as_capability(properties: Any) -> tuple[int, int]:
    return properties.major, properties.minor
