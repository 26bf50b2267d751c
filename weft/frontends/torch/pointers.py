"""Raw addresses in kernels' parameters: which live CUDA storage an address belongs to.

Extensions written in C++ hand kernels bare pointers. A pointer is looked up among the storages that operators have made
since the first extension was loaded, then among all tensors that live; its whole storage becomes memory that kernels
may reach. An address that belongs to none stays unknown, and the kernel that uses it faults.
"""

from __future__ import annotations

import gc
import weakref
from bisect import bisect_right
from types import SimpleNamespace
from typing import Any

import torch

from weft.frontends.torch.operators import storage
from weft.frontends.torch.recording import recorder
from weft.frontends.torch.tensors import to_cuda, to_host
from weft.frontends.triton.tensors import ranges_of
from weft.runtime.memory import NO_DATA

_MIN_SWEEP = 4096  # entries at which dead ones are looked for
_NESTED_BYTES = 4096  # storages up to this size may hold pointers of their own (lists of tensors)


class LiveStorages:
    """CUDA storages by the address where they begin.

    Attributes: known: address -> (weak reference to the storage, shape and dtype of the tensor it was met with);
    strangers: words that were found in no storage.
    """

    def __init__(self) -> None:
        self.strangers: set[int] = set()
        self.known: dict[int, tuple[weakref.ref, tuple[int, ...], Any]] = {}
        self._sweep_at = _MIN_SWEEP
        self._listening = False

    def listen(self) -> None:
        """From now on the results of operators are noted, and what `empty` makes, of which no recorder hears."""
        if not self._listening:
            self._listening = True
            recorder.add(self._note)
            storage.to_cuda = self._make  # its functions ask for it by this name
            self.gather()

    def _make(self, host: Any, index: int) -> Any:
        made = to_cuda(host, index)
        self.add(made)
        return made

    def _note(self, name: str, args: tuple, result: Any, kwargs: dict, stream: int, device: int) -> None:
        if isinstance(result, torch.Tensor):
            self.add(result)
        elif isinstance(result, (list, tuple)):
            for value in result:
                if isinstance(value, torch.Tensor):
                    self.add(value)

    def add(self, tensor: Any) -> None:
        """Notes a tensor's storage."""
        if not tensor.is_cuda or tensor.layout is not torch.strided:
            return
        try:
            found = tensor.untyped_storage()
            address = found.data_ptr()
        except RuntimeError:  # of a compiler's tensor, or a wrapper around others
            return
        if address:
            self.known[address] = (weakref.ref(found), tuple(tensor.shape), tensor.dtype)
            if len(self.known) > self._sweep_at:
                self.known = {key: entry for key, entry in self.known.items() if entry[0]() is not None}
                self._sweep_at = max(_MIN_SWEEP, 2 * len(self.known))

    def gather(self) -> None:
        """Notes every CUDA tensor that Python's collector knows."""
        for found in gc.get_objects():
            if issubclass(type(found), torch.Tensor) and found.is_cuda:
                self.add(found)

    def find(self, address: int) -> tuple[Any, tuple[int, ...], Any] | None:
        """(storage, shape, dtype) of the live storage that holds the address."""
        entry = self.known.get(address)
        if entry is None:
            starts = sorted(self.known)
            place = bisect_right(starts, address) - 1
            if place < 0:
                return None
            entry = self.known[starts[place]]
        found = entry[0]()
        if found is None or not found.data_ptr() <= address < found.data_ptr() + found.nbytes():
            return None
        return found, entry[1], entry[2]


storages = LiveStorages()


def may_be_address(word: int) -> bool:
    """Whether a word can be an address of a program's memory (x86-64: 47 bits), or of a tensor in a dry run."""
    return 1 << 32 <= word < 1 << 47 or NO_DATA <= word < 2 * NO_DATA


def meet_addresses(device: Any, words: list[int], nested: bool = True) -> None:
    """Lets the kernels of a weft Device reach the storages that some 64-bit words point into; others are let be."""
    device.arena.collect()  # what died must not be taken for what lies there now
    ranges = device.arena.ranges
    unknown = [word for word in words if may_be_address(word) and ranges.find(word) is None]
    missed = [word for word in unknown if not _meet(device, word)]
    # Looking at everything that lives takes long: once for each word that is no pointer (two sizes look like one).
    if not storages.strangers.issuperset(missed):
        storages.gather()
        met = [word for word in missed if _meet(device, word)]
        if len(storages.strangers) > _MIN_SWEEP:
            storages.strangers.clear()
        storages.strangers.update(set(missed).difference(met))
    if nested:
        for word in words:
            found = storages.find(word) if word in storages.known else None
            if found is not None and found[0].nbytes() <= _NESTED_BYTES and found[2] in (torch.int64, torch.uint8):
                data = (
                    torch.empty(0, dtype=torch.uint8)
                    .set_(to_host(_bytes_of(found[0])).untyped_storage())
                    .numpy()
                    .tobytes()
                )
                inner = memoryview(data[: len(data) & ~7]).cast("Q").tolist()
                meet_addresses(device, inner, nested=False)


def storages_in(parameters: bytes) -> list[Any]:
    """The live storages that the 64-bit words of a parameter buffer point into."""
    words = memoryview(parameters)[: len(parameters) & ~7].cast("Q").tolist()
    found = [storages.find(word) for word in words if may_be_address(word)]
    return [entry[0] for entry in found if entry is not None]


def tensors_in(parameters: bytes) -> list[Any]:
    """The same as tensors of bytes, each over a whole storage."""
    return [_bytes_of(found) for found in storages_in(parameters)]


def launch_keeping(kept: list[Any], launch: Any, options: dict[str, Any], parameters: bytes) -> None:
    """A launch of a graph, which keeps the storages that its parameters point into."""
    assert kept is not None
    launch(parameters, **options)


def _bytes_of(found: Any) -> Any:
    return torch.empty(0, dtype=torch.uint8, device=found.device).set_(found)


def _meet(device: Any, address: int) -> bool:
    if address in storages.strangers and address not in storages.known:
        return False
    found = storages.find(address)
    if found is None:
        return False
    kept, shape, dtype = found
    ranges_of(device)._meet(SimpleNamespace(device=torch.device("cuda"), shape=shape, dtype=dtype), kept)
    return True
