"""Random generators of virtual GPUs: a device and a seed in, the CPU generator that draws its numbers out.

A CUDA generator is a torch.Generator whose device says cuda. As CUDA's own, its state is a seed and an offset, which
every operator that draws moves on; the numbers of an operator come from a CPU generator with a seed made of the two.
They are not the numbers that CUDA's Philox would give.
"""

from __future__ import annotations

import struct
from typing import Any

import torch

from weft.frontends.torch.gpus import find_gpu, gpus
from weft.frontends.torch.layout import CPU, CUDA, device_code, generator_at

_Base: Any = torch._C.Generator
_KEYS_CHANGE = (
    torch._C.DispatchKeySet(torch._C.DispatchKey.CPU).raw_repr()
    ^ torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA).raw_repr()
)


_STEP = 4  # what an operator adds to the offset; CUDA's offsets are multiples of it
_WORD = (1 << 64) - 1


class _Counter:
    """seed, offset: a CUDA generator's state. engine: the CPU generator that draws for it."""

    __slots__ = ("engine", "offset", "seed")

    def __init__(self, seed: int):
        self.engine, self.seed, self.offset = _Base(), seed, 0

    def draw(self) -> Any:
        """The engine, ready for one operator."""
        mixed = self.seed & _WORD
        if self.offset:
            # SplitMix64 (Steele, Lea, Flood 2014): neighbouring offsets give seeds that have nothing in common.
            mixed = (mixed + self.offset * 0x9E3779B97F4A7C15) & _WORD
            mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _WORD
            mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _WORD
            mixed ^= mixed >> 31
        _Base.manual_seed(self.engine, mixed)
        self.offset = (self.offset + _STEP) & _WORD
        return self.engine


_counters: dict[int, _Counter] = {}  # by the address of a CUDA generator


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
        # C++ hands generators on without the Python object, so the state is found by address.
        self._counter = _counters[self._cdata] = _Counter(_Base.initial_seed(self))
        return self

    def __del__(self) -> None:
        if "_counter" in self.__dict__:
            _counters.pop(self._cdata, None)

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def _host(self) -> Any:
        """The CPU generator from which the next operator draws."""
        return self._counter.draw()

    def manual_seed(self, seed: int) -> Generator:
        counter = self.__dict__.get("_counter")
        if counter is None:
            _Base.manual_seed(self, seed)
        else:
            # The CPU's generator says what is a seed.
            counter.seed = _Base.manual_seed(counter.engine, seed).initial_seed() & _WORD
            counter.offset = 0
        return self

    def seed(self) -> int:
        counter = self.__dict__.get("_counter")
        if counter is None:
            return _Base.seed(self)
        counter.seed, counter.offset = _Base.seed(counter.engine) & _WORD, 0
        return counter.seed

    def initial_seed(self) -> int:
        counter = self.__dict__.get("_counter")
        return _Base.initial_seed(self) if counter is None else counter.seed

    def get_state(self) -> torch.Tensor:
        """Of a CUDA generator: 16 bytes, the seed and the offset."""
        counter = self.__dict__.get("_counter")
        if counter is None:
            return _Base.get_state(self)
        return torch.frombuffer(bytearray(struct.pack("<QQ", counter.seed, counter.offset)), dtype=torch.uint8)

    def set_state(self, state: torch.Tensor) -> Generator:
        """Raises RuntimeError, as CUDA does, for a state that is not 16 bytes."""
        counter = self.__dict__.get("_counter")
        if counter is None:
            _Base.set_state(self, state)
            return self
        if state.dtype is not torch.uint8 or state.is_cuda:
            raise TypeError("RNG state must be a torch.ByteTensor")
        if state.numel() not in (8, 16):
            raise RuntimeError("RNG state is wrong size")
        words = struct.unpack(f"<{state.numel() // 8}Q", bytes(state.tolist()))
        counter.seed, counter.offset = words[0], words[1] if len(words) == 2 else 0
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
        """How far the operators so far have moved on, 4 for each."""
        counter = self.__dict__.get("_counter")
        return _Base.get_offset(self) if counter is None else counter.offset

    def set_offset(self, offset: int) -> Generator:
        counter = self.__dict__.get("_counter")
        if counter is None:
            _Base.set_offset(self, offset)
        elif offset % _STEP:
            raise RuntimeError("offset must be a multiple of 4")
        else:
            counter.offset = offset
        return self

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
    return _counters[generator._cdata].draw()


def make_default_generators() -> tuple[Generator, ...]:
    """One generator per GPU, seeded with PyTorch's default, in torch.cuda.default_generators' order."""
    for gpu in gpus:
        gpu.generator = Generator(torch.device("cuda", gpu.index))
        gpu.generator.manual_seed(_Base.initial_seed(torch.default_generator))
    return tuple(gpu.generator for gpu in gpus)


def is_cuda(generator: Any) -> bool:
    return generator.device.type == "cuda" and generator_at(generator._cdata).device & 0xFF == CUDA
