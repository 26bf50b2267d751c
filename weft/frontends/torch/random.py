"""Random generators of virtual GPUs: a device and a seed in, the CPU generator that draws its numbers out.

A CUDA generator is a torch.Generator whose device says cuda; the numbers come from a CPU generator of its own, so that
each device has a sequence apart from the CPU's. They are not the numbers that CUDA's Philox would give.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.frontends.torch.gpus import find_gpu, gpus
from weft.frontends.torch.layout import CPU, CUDA, device_code, generator_at

_Base: Any = torch._C.Generator
_KEYS_CHANGE = (
    torch._C.DispatchKeySet(torch._C.DispatchKey.CPU).raw_repr()
    ^ torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA).raw_repr()
)


_hosts: dict[int, Any] = {}  # address of a CUDA generator -> the CPU generator that draws for it


class Generator(_Base):
    """torch.Generator, for the CPU and for virtual GPUs."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        device = torch.device(device)
        if device.type != "cuda":
            return _Base.__new__(cls, device)
        gpu = find_gpu(device.index)
        self = _Base.__new__(cls)
        fields = generator_at(self._cdata)
        assert fields.device & 0xFF == CPU, fields.device
        fields.device = device_code(gpu.index)
        fields.keys ^= _KEYS_CHANGE
        host = _Base()
        host.manual_seed(_Base.initial_seed(self))
        # C++ hands generators on without the Python object, so the host's is found by address.
        self._host = _hosts[self._cdata] = host
        return self

    def __del__(self) -> None:
        if "_host" in self.__dict__:
            _hosts.pop(self._cdata, None)

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def _source(self) -> Any:
        return self.__dict__.get("_host")

    def manual_seed(self, seed: int) -> Generator:
        _Base.manual_seed(self._source or self, seed)
        return self

    def seed(self) -> int:
        return _Base.seed(self._source or self)

    def initial_seed(self) -> int:
        return _Base.initial_seed(self._source or self)

    def get_state(self) -> torch.Tensor:
        return _Base.get_state(self._source or self)

    def set_state(self, state: torch.Tensor) -> Generator:
        _Base.set_state(self._source or self, state)
        return self

    def clone_state(self) -> Generator:
        copy = Generator(self.device)
        copy.set_state(self.get_state())
        return copy

    def graphsafe_get_state(self) -> Generator:
        return self.clone_state()

    def graphsafe_set_state(self, state: Generator) -> Generator:
        return self.set_state(state.get_state())

    def get_offset(self) -> int:
        """Numbers drawn since the seed, in the units of CUDA's generator; these have no such counter and say 0."""
        return 0

    def set_offset(self, offset: int) -> None:
        if self.device.type == "cuda" and offset == 0:
            self.manual_seed(self.initial_seed())
        else:
            _Base.set_offset(self, offset)

    def __reduce__(self) -> Any:
        return _restore_generator, (str(self.device), self.initial_seed(), self.get_state())


def _restore_generator(device: str, seed: int, state: torch.Tensor) -> Generator:
    generator = Generator(device)
    generator.manual_seed(seed)
    generator.set_state(state)
    return generator


def host_generator(generator: Any, index: int) -> Any:
    """The CPU generator that draws for an operator on a device.

    Raises RuntimeError, as CUDA does, for a CPU generator or one of another device.
    """
    if generator is None:
        return gpus[index].generator._host
    device = generator.device
    if device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{device.type}'")
    if device.index != index and len(gpus) > 1:
        raise RuntimeError(
            f"Expected a '{torch.device('cuda', index)}' generator device but found '{device}'"
        )
    return _hosts[generator._cdata]


def make_default_generators() -> tuple[Generator, ...]:
    """One generator per GPU, seeded with PyTorch's default, in torch.cuda.default_generators' order."""
    for gpu in gpus:
        gpu.generator = Generator(torch.device("cuda", gpu.index))
        gpu.generator.manual_seed(_Base.initial_seed(torch.default_generator))
    return tuple(gpu.generator for gpu in gpus)


def is_cuda(generator: Any) -> bool:
    return generator.device.type == "cuda" and generator_at(generator._cdata).device & 0xFF == CUDA
