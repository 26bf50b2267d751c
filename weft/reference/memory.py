"""Device memory of the reference: allocations with exact bounds, and the variables of modules in them."""

from __future__ import annotations

from bisect import bisect_right

from weft.errors import InvalidSymbolError, InvalidValueError
from weft.ptx.module import Module
from weft.reference.addresses import ALLOCATION_ALIGN, GUARD_BYTES, MEMORY_BASE, function_address


class ReferenceMemory:
    """Device memory with exact bounds: what lies between allocations faults."""

    def __init__(self) -> None:
        self._next = MEMORY_BASE
        self._bases: list[int] = []
        self._buffers: dict[int, bytearray] = {}
        self._modules: dict[int, tuple[Module, dict[str, int]]] = {}

    def allocate(self, size: int) -> int:
        """The address of `size` new bytes, zeroed, aligned to 256."""
        base = self._next
        self._next += -(-(size + GUARD_BYTES) // ALLOCATION_ALIGN) * ALLOCATION_ALIGN
        self._bases.append(base)
        self._buffers[base] = bytearray(size)
        return base

    def free(self, address: int) -> None:
        """Raises InvalidValueError for an address that `allocate` did not give."""
        if address not in self._buffers:
            raise InvalidValueError(f"{address:#x} was not allocated")
        del self._buffers[address]
        self._bases.remove(address)

    def find(self, address: int, size: int) -> tuple[bytearray, int] | None:
        """(buffer, offset) of an access, None where it is not inside one allocation."""
        at = bisect_right(self._bases, address) - 1
        if at < 0:
            return None
        base = self._bases[at]
        buffer = self._buffers[base]
        offset = address - base
        return (buffer, offset) if offset + size <= len(buffer) else None

    def read(self, address: int, size: int) -> bytes:
        """Bytes of one allocation. Raises InvalidValueError outside."""
        found = self.find(address, size)
        if found is None:
            raise InvalidValueError(f"{size} bytes at {address:#x} are not allocated")
        buffer, offset = found
        return bytes(buffer[offset : offset + size])

    def write(self, address: int, data: bytes) -> None:
        """Raises InvalidValueError outside one allocation."""
        found = self.find(address, len(data))
        if found is None:
            raise InvalidValueError(f"{len(data)} bytes at {address:#x} are not allocated")
        buffer, offset = found
        buffer[offset : offset + len(data)] = data

    def symbols(self, module: Module) -> dict[str, int]:
        """Addresses of a module's global and constant variables, placed and initialised on first use."""
        found = self._modules.get(id(module))
        if found is None:
            addresses = {}
            for variable in module.variables.values():
                if variable.space in ("global", "const"):
                    addresses[variable.name] = self.allocate(variable.size)
                    if variable.init is not None:
                        self.write(addresses[variable.name], variable.init)
            found = self._modules[id(module)] = (module, addresses)
            for variable in module.variables.values():
                for relocation in variable.relocations:
                    self._relocate(module, addresses, variable.name, relocation)
        return found[1]

    def _relocate(self, module: Module, addresses: dict[str, int], name: str, relocation) -> None:
        symbol = module.aliases.get(relocation.symbol, relocation.symbol)
        if symbol in addresses:
            value = addresses[symbol]
        elif symbol in module.functions:
            value = function_address(module, symbol)
        else:
            raise InvalidSymbolError(f"initialiser of {name}: no variable or function {symbol!r}")
        value = (value + relocation.addend) >> relocation.shift
        data = (value & ((1 << 8 * relocation.bytes) - 1)).to_bytes(relocation.bytes, "little")
        self.write(addresses[name] + relocation.offset, data)

    def address_of(self, module: Module, name: str) -> int:
        """Address of a module variable. Raises InvalidSymbolError for an unknown one."""
        addresses = self.symbols(module)
        if name not in addresses:
            raise InvalidSymbolError(f"no global or constant variable {name!r}")
        return addresses[name]
