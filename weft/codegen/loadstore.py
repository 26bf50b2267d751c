"""Loads, stores and atomics of a warp, of every state space: what instruction rules call.

Contiguous lanes become vector accesses, known patterns loads and shuffles, the rest gathers (patterns.py, and one
module for each space); every address is checked against live memory before it is touched (checks.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.codegen.checks import CONTEXT
from weft.codegen.sharedmemory import SharedMemory
from weft.codegen.value import WARP_LANES, Value

_PLAIN_UPDATES = ("add", "and", "or", "xor")


class Access(SharedMemory):
    """Memory operations by state space."""

    # ------------------------------------------------------------ entry points
    def load(self, space: str, address: Value, bits: int, count: int = 1, volatile: bool = False) -> list[Value]:
        """`count` consecutive elements of `bits` bits per lane. A volatile load is made anew each time."""
        if volatile:
            self.e('fence syncscope("singlethread") seq_cst')
        space, address = self.leave_cluster_space(space, address)
        if bits > 64:
            step = bits // 64
            parts = self.load(space, address, 64, count * step, volatile)
            return [self.pack(parts[i * step : (i + 1) * step]) for i in range(count)]
        if space == "param" and address.is_uniform and address.base == self.parameter_base:
            return self._load_parameter(address, bits, count)
        if space == "shared":
            return self._load_shared(self.resize(address, 32, False), bits, count)
        if space == "local":
            return self._load_local(self.resize(address, 32, False), bits, count)
        return self._load_global(space, address, bits, count)

    def store(self, space: str, address: Value, values: Sequence[Value], volatile: bool = False) -> None:
        """Store one element per value at consecutive places."""
        space, address = self.leave_cluster_space(space, address)
        if values[0].bits > 64:
            parts = [part for v in values for part in self.unpack(v, v.bits // 64)]
            self.store(space, address, parts, volatile)
            return
        if self.dry:
            return
        if space == "shared":
            self._store_shared(self.resize(address, 32, False), values)
        elif space == "local":
            self._store_local(self.resize(address, 32, False), values)
        else:
            self._store_global(address, values)

    def leave_cluster_space(self, space: str, address: Value) -> tuple[str, Value]:
        """An address of the space shared::cluster ("cluster") as one that accesses know: a generic one, or a shared one
        where the kernel cannot know any other block's."""
        if space != "cluster":
            return space, address
        if not self.uses_clusters:
            return "shared", address
        return "generic", self.add(self.zext(self.resize(address, 32, False), 64), self.window("shared"))

    def _load_parameter(self, address: Value, bits: int, count: int) -> list[Value]:
        found = []
        for i in range(count):
            at = self.t(f"getelementptr i8, ptr %params, i64 {address.offset + i * bits // 8}")
            found.append(self.scalar(self.t(f"load i{bits}, ptr {at}, align {bits // 8}, !invariant.load !1"), bits))
        return found

    # ------------------------------------------------------------ local memory
    def _load_local(self, address: Value, bits: int, count: int) -> list[Value]:
        if self.dry:
            return self._unknown(bits, count, False)
        types = [self.vtype(bits)] * (self.chunks * count)
        if not (address.is_uniform and bits in (32, 64)):
            return self._regroup_chunks(self._slow_load("local_", address, bits, count), bits, count)
        at = self.uval(address)
        size = bits // 8
        ok = self._inside(at, "%local.bytes", size * count, size * count, "i32")

        def fast():
            pointer = self._local_pointer(at)
            return [
                self._load_local_words(pointer, i * size, c, bits) for i in range(count) for c in range(self.chunks)
            ]

        flat = self.diamond(ok, fast, lambda: self._slow_load("local_", address, bits, count), types)
        return self._regroup_chunks(flat, bits, count)

    def _local_pointer(self, at: str) -> str:
        if at.lstrip("-").isdigit():
            return self.t(f"getelementptr i8, ptr %loc, i64 {int(at) * WARP_LANES}")
        wide = self.t(f"zext i32 {at} to i64")
        return self.t(f"getelementptr i8, ptr %loc, i64 {self.t(f'shl i64 {wide}, 5')}")

    def _load_local_words(self, pointer: str, offset: int, c: int, bits: int) -> str:
        n = self.chunk
        words = []
        for h in range(bits // 32):
            where = self._offset(pointer, (offset + 4 * h) * WARP_LANES + c * n * 4)
            words.append(self.t(f"load {self.vtype(32)}, ptr {where}, align 4, !noalias !3"))
        if bits == 32:
            return words[0]
        pairs = self.shuffle_constant(words[0], words[1], "i32", n, [x for i in range(n) for x in (i, n + i)])
        return self.t(f"bitcast <{2 * n} x i32> {pairs} to {self.vtype(64)}")

    def _store_local(self, address: Value, values: Sequence[Value]) -> None:
        bits, count = values[0].bits, len(values)
        size = bits // 8
        if not (address.is_uniform and bits in (32, 64)):
            self._slow_store("local_", address, values)
            return
        at = self.uval(address)
        ok = self._inside(at, "%local.bytes", size * count, size * count, "i32")
        for v in values:
            self.vec(v)

        def fast():
            pointer = self._local_pointer(at)
            n = self.chunk
            for i, v in enumerate(values):
                for c, x in enumerate(self.vec(v)):
                    words = [x]
                    if bits == 64:
                        pairs = self.t(f"bitcast {self.vtype(64)} {x} to <{2 * n} x i32>")
                        words = [self.shuffle_constant(pairs, None, "i32", 2 * n, range(h, 2 * n, 2)) for h in (0, 1)]
                    for h, word in enumerate(words):
                        where = self._offset(pointer, (i * size + 4 * h) * WARP_LANES + c * n * 4)
                        self._store_vector(where, word, 32, c)
            return []

        self.diamond(ok, fast, lambda: self._slow_store("local_", address, values), [])

    # ------------------------------------------------------------ atomics
    def atomic(
        self, space: str, address: Value, op: str, kind: str, bits: int, operands: Sequence[Value], returns: bool = True
    ) -> Value | None:
        """A read-modify-write by every running lane in turn; the old values. `kind` is u, s, f, b, f16, f16x2, bf16
        or bf16x2; operands are the value, for cas the value compared with and the new one."""
        if self.dry:
            return self.varying(("%dry",) * self.chunks, bits) if returns else None
        space, address = self.leave_cluster_space(space, address)
        shared = space == "shared"
        if shared and not returns and bits == 32 and op in _PLAIN_UPDATES and address.is_varying:
            self._update_shared(address, op, kind, operands[0])
            return None
        return self._atomic_call(shared, address, op, kind, bits, operands, returns)

    def _update_shared(self, address: Value, op: str, kind: str, value: Value) -> None:
        """An integer update of shared memory by all lanes: a block runs on one thread, so plain instructions do, lane
        after lane. The offsets go through memory: 32 scalar loads are half the work of taking a vector apart."""
        chunks = self.vec(self.resize(address, 32, False))
        ok = self._all_below(chunks, "%shared.bytes", 4, 32)
        if self.mask is not None:
            ok = self.t(f"and i1 {ok}, {self.all_running()}")
        uniform = self.uval(value) if value.is_uniform else None
        data = None if uniform is not None else self.vec(value)

        def fast():
            vtype, n = self.vtype(32), self.chunk
            for c, x in enumerate(chunks):
                self.e(f"store volatile {vtype} {x}, ptr {self._offset('%exchange', 4 * n * c)}, align 64")
            for lane in range(WARP_LANES):
                at = self.t(f"load volatile i32, ptr {self._offset('%exchange', 4 * lane)}, align 4")
                pointer = self._shared_pointer(at)
                amount = uniform
                if amount is None:
                    amount = self.t(f"extractelement {vtype} {data[lane // n]}, i32 {lane % n}")
                old = self.t(f"load i32, ptr {pointer}, align 4, !noalias !3")
                new = self.t(f"{op} i32 {old}, {amount}")
                self.e(f"store i32 {new}, ptr {pointer}, align 4, !noalias !3")
            return []

        def slow():
            self._atomic_call(True, address, op, kind, 32, [value], False)
            return []

        self.diamond(ok, fast, slow, [])

    def _atomic_call(self, shared, address, op, kind, bits, operands, returns) -> Value | None:
        verb = "atom" if returns else "red"
        name = self._call_support(f"weft_{verb}_{'shared_' if shared else ''}{op}_{kind}_i{bits}")
        width = 32 if shared else 64
        addresses = self.join_chunks(self.vec(self.resize(address, width, False)), f"i{width}")
        data = ", ".join(f"<32 x i{bits}> {self.join_chunks(self.vec(v), f'i{bits}')}" for v in operands)
        tail = f"i32 {self.mask_word()}, i32 {self.site}"
        if not shared:
            tail += f", ptr {self.slot_pointer()}"
        arguments = f"{CONTEXT}, <32 x i{width}> {addresses}, {data}, {tail}"
        if not returns:
            self.e(f"call void {name}({arguments})")
            self.after_slow_call()
            return None
        whole = self.t(f"call <32 x i{bits}> {name}({arguments})")
        self.after_slow_call()
        return self.varying(self.split_chunks(whole, f"i{bits}"), bits)

    def copy_to_shared(self, destination: Value, source: Value, size: int, count: Value | None = None) -> None:
        """Each lane copies `size` bytes (4, 8 or 16) from global to shared memory: `count` of them (more count as
        `size`), and zeros for the rest. One call: kernels copy much and compute no addresses worth knowing there."""
        if self.dry:
            return
        wanted = self.const(size, 32) if count is None else count
        offsets = self._lane_offsets(source)
        if offsets is not None and not source.is_uniform:
            window = int(offsets.max()) + size
            if window <= 32 * size:
                self.prefetch_ahead(self._split_address(source)[0], window)
        parts = [
            f"<32 x i{v.bits}> {self.join_chunks(self.vec(v), f'i{v.bits}')}"
            for v in (self.resize(source, 64, False), self.resize(destination, 32, False), wanted)
        ]
        data = ", ".join(parts)
        if self.in_loop() and not self.is_function:
            fetch = self._call_support("weft_fetch_ahead")
            self.e(f"call void {fetch}({parts[0]}, ptr {self._last_address_pointer()})")
        name = self._call_support(f"weft_{'late_' * self.deferred}copy_{size}")
        tail = f"i32 {self.mask_word()}, i32 {self.site}, ptr {self.slot_pointer()}"
        self.e(f"call void {name}({CONTEXT}, {data}, {tail})")
        self.after_slow_call()

    def fence(self) -> None:
        """Order memory accesses before and after, for other threads too."""
        self.e("fence seq_cst")

    def prefetch(self, space: str, address: Value) -> None:
        """Accepted and left out: a hint."""
