"""Loads, stores and atomics of a warp: contiguous lanes as vector accesses, known patterns as loads and shuffles, the
rest as gathers; every address is checked against live memory before it is touched.

The check compares with the range (allocation) that the same access hit last, kept in a slot of the worker thread; a
miss goes out of line, where all ranges are searched lane by lane and a fault is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from weft.codegen.builder import Builder
from weft.codegen.value import WARP_LANES, Value, full_range, mask_of

MAX_RUNS = 4  # pieces that a known pattern may consist of before a gather is cheaper
_PLAIN_UPDATES = ("add", "and", "or", "xor")
PREFETCH_ROUNDS = 8
TURNS_AHEAD = 16
BLOCKS_AHEAD = 1
WIDE_WINDOW = 256  # bytes of a warp's access from which on it is worth fetching ahead outside loops
WEIGHTS = ", !prof !0"
CONTEXT = "ptr %wk, ptr %blk, i32 %w"  # what every support function takes first


class Access(Builder):
    """Memory operations. Subclass state: `mask` (predicate chunks of the running lanes, None for all), `site`."""

    mask: tuple[str, ...] | None
    site: int
    deferred = False  # asynchronous copies are made by the waits: see deferred.py
    uses_clusters = False

    def setup_access(self, has_scatter: bool) -> None:
        self.has_scatter = has_scatter
        self.has_mask_registers = has_scatter
        self.support: set[str] = set()
        self.slot_of: dict[object, int] = {}
        self.static_shared = 0
        self.has_local = False
        self.parameter_base = "%params.int"

    # ------------------------------------------------------------ masks
    def mask_word(self) -> str:
        """The running lanes as an i32."""
        return "-1" if self.mask is None else self.mask_bits(self.mask)

    def all_running(self) -> str:
        """i1: all 32 lanes run."""
        return self.t(f"icmp eq i32 {self.mask_word()}, -1")

    def _lane_mask(self, c: int) -> str:
        return self.mask[c] if self.mask is not None else self.vector_literal([1] * self.chunk, 1)

    # ------------------------------------------------------------ slots and checks
    def slot_pointer(self) -> str:
        index = self.slot_of.setdefault(self.site, len(self.slot_of))
        return self.t(f"getelementptr i8, ptr %slots, i64 {index * 16}")

    def _load_slot(self, slot: str) -> tuple[str, str]:
        base = self.t(f"load i64, ptr {slot}, align 8, !alias.scope !3")
        size = self.t(f"load i64, ptr {self.t(f'getelementptr i8, ptr {slot}, i64 8')}, align 8, !alias.scope !3")
        return base, size

    def _inside(self, distance: str, size: str, window: int, align: int, type_: str) -> str:
        """i1: [distance, distance + window) lies in [0, size) and distance is a multiple of align.

        Rotating the distance right by log2(align) makes a misaligned one larger than any size."""
        shift = align.bit_length() - 1
        if shift:
            self.declare(f"declare {type_} @llvm.fshr.{type_}({type_}, {type_}, {type_})")
            distance = self.t(
                f"call {type_} @llvm.fshr.{type_}({type_} {distance}, {type_} {distance}, {type_} {shift})"
            )
        extra = window - align
        if extra:
            enough = self.t(f"icmp ugt {type_} {size}, {extra}")
            left = self.t(f"sub {type_} {size}, {extra}")
            size = self.t(f"select i1 {enough}, {type_} {left}, {type_} 0")
        if shift:
            size = self.t(f"lshr {type_} {size}, {shift}")
        return self.t(f"icmp ult {type_} {distance}, {size}")

    def _check_global(self, address: str, window: int, align: int, slot: str) -> str:
        base, size = self._load_slot(slot)
        return self._inside(self.t(f"sub i64 {address}, {base}"), size, window, align, "i64")

    def _lanes_inside(self, chunks: Sequence[str], size: int, slot: str) -> str:
        """i1: every running lane's [address, address + size) is inside the slot and aligned to size."""
        base, length = self._load_slot(slot)
        origin = self.splat(base, "i64")
        distances = [self.t(f"sub {self.vtype(64)} {x}, {origin}") for x in chunks]
        return self._all_below(distances, length, size, 64)

    def _all_below(self, distances: Sequence[str], length: str, size: int, bits: int) -> str:
        vtype, ty, n = self.vtype(bits), f"i{bits}", self.chunk
        shift = size.bit_length() - 1
        limit = self.t(f"lshr {ty} {length}, {shift}") if shift else length
        bound = self.splat(limit, ty)
        outside = None
        for c, d in enumerate(distances):
            if shift:
                amount = self.vector_literal([shift] * n, bits)
                self.declare(f"declare {vtype} @llvm.fshr.v{n}{ty}({vtype}, {vtype}, {vtype})")
                d = self.t(f"call {vtype} @llvm.fshr.v{n}{ty}({vtype} {d}, {vtype} {d}, {vtype} {amount})")
            bad = self.t(f"icmp uge {vtype} {d}, {bound}")
            if self.mask is not None:
                bad = self.t(f"and <{n} x i1> {bad}, {self.mask[c]}")
            outside = bad if outside is None else self.t(f"or <{n} x i1> {outside}, {bad}")
        return self.t(f"icmp eq i{n} {self.t(f'bitcast <{n} x i1> {outside} to i{n}')}, 0")

    def _call_support(self, name: str) -> str:
        self.support.add(name)
        return "@" + name

    # ------------------------------------------------------------ diamonds
    def diamond(
        self, condition: str, fast: Callable[[], list[str]], slow: Callable[[], list[str]], types: Sequence[str],
        weighted: bool = True,
    ) -> list[str]:  # fmt: skip
        """`if condition: fast() else: slow()`; both give SSA names of `types`, merged by phis."""
        yes, no, end = self.new_label("fast"), self.new_label("slow"), self.new_label("join")
        self.e(f"br i1 {condition}, label %{yes}, label %{no}" + (WEIGHTS if weighted else ""))
        self.depth += 1
        self.label(yes)
        first = fast()
        first_label = self.current_label
        self.e(f"br label %{end}")
        self.label(no)
        second = slow()
        second_label = self.current_label
        self.e(f"br label %{end}")
        self.depth -= 1
        self.label(end)
        return [
            self.t(f"phi {ty} [ {a}, %{first_label} ], [ {b}, %{second_label} ]")
            for ty, a, b in zip(types, first, second)
        ]

    def after_slow_call(self) -> None:
        """Leave the warp if the call that was just made recorded a fault."""
        stop = self.t("load i32, ptr %stop.ptr, align 4")
        bad = self.t(f"icmp ne i32 {stop}, 0")
        onward = self.new_label("onward")
        self.e(f"br i1 {bad}, label %stopped, label %{onward}")
        self.label(onward)

    def _regroup_chunks(self, flat: Sequence[str], bits: int, count: int) -> list[Value]:
        n = self.chunks
        return [self.varying(flat[i * n : (i + 1) * n], bits) for i in range(count)]

    def _unknown(self, bits: int, count: int, uniform: bool) -> list[Value]:
        """What an access gives during analysis."""
        if uniform:
            return [self.scalar("%dry", bits) for _ in range(count)]
        return [self.varying(("%dry",) * self.chunks, bits) for _ in range(count)]

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

    def _offset(self, pointer: str, offset: int) -> str:
        return pointer if offset == 0 else self.t(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def _vector_add(self, whole: str, offset: int, bits: int) -> str:
        if offset == 0:
            return whole
        return self.t(f"add <32 x i{bits}> {whole}, {self.vector_literal([offset] * WARP_LANES, bits)}")

    def _chunk_add(self, chunk: str, offset: int) -> str:
        if offset == 0:
            return chunk
        return self.t(f"add {self.vtype(64)} {chunk}, {self.vector_literal([offset] * self.chunk, 64)}")

    def prefetch_ahead(self, base: str, window: int, store: bool = False) -> None:
        """In a loop that strides by the grid, fetch what this load will want PREFETCH_ROUNDS rounds later: each round
        is far from the last one, so the processor's own prefetchers see no pattern. Where warps take turns, what the
        warp TURNS_AHEAD turns later will want lies that much further on. Outside loops, a warp's wide access fetches
        what the same warp of a later block will want: blocks mostly follow each other at equal distances in memory,
        but the accesses of their warps are interleaved in pieces too short for the processor to see it."""
        if self.takes_turns():
            if not store:
                self._prefetch(self.t(f"add i64 {base}, {TURNS_AHEAD * window}"), window, 3)
            return
        slot = None if store else self.previous_address()
        rounds, locality = PREFETCH_ROUNDS, 3
        if slot is None:
            slot = self.previous_block_address() if window >= WIDE_WINDOW else None
            rounds, locality = BLOCKS_AHEAD, 2
        if slot is None:
            return
        before = self.t(f"load i64, ptr {slot}")
        self.e(f"store i64 {base}, ptr {slot}")
        step = self.t(f"sub i64 {base}, {before}")
        ahead = self.t(f"add i64 {base}, {self.t(f'mul i64 {step}, {rounds}')}")
        self._prefetch(ahead, window, locality)

    def previous_block_address(self) -> str | None:
        """Where this access keeps the address it had in the worker's last block, one for each warp; None in loops."""
        return None if self.in_loop() else self._last_address_pointer()

    def _last_address_pointer(self) -> str:
        """Memory of the worker thread for an address, one for each warp and access."""
        first = self.slot_of.get((self.site, "last"))
        if first is None:
            first = self.slot_of[(self.site, "last")] = len(self.slot_of)
            for i in range(1, (self.warps + 1) // 2):
                self.slot_of[(self.site, "last", i)] = len(self.slot_of)
        array = self.t(f"getelementptr i8, ptr %slots, i64 {first * 16}")
        return self.t(f"getelementptr i64, ptr {array}, i64 %w64")

    def _prefetch(self, address: str, window: int, locality: int) -> None:
        self.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        for offset in range(0, min(window, 512), 64):
            at = address if offset == 0 else self.t(f"add i64 {address}, {offset}")
            pointer = self.t(f"inttoptr i64 {at} to ptr")
            self.e(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {locality}, i32 1)")

    # ------------------------------------------------------------ out of line
    def _slow_load(self, kind: str, address: Value, bits: int, count: int, slot: str = "") -> list[str]:
        """kind: "" (global and generic), "shared_" or "local_". One call for all components: a lane's access is
        checked, and faults, as a whole. Several components come back through memory."""
        if count == 1:
            name = self._call_support(f"weft_load_{kind}i{bits}")
            whole = self.t(f"call {_lane_vector(bits)} {name}({self._slow_arguments(kind, address, '', slot)})")
            self.after_slow_call()
            return list(self.split_chunks(whole, f"i{bits}"))
        name = self._call_support(f"weft_gather_{kind}{count}_i{bits}")
        self.e(f"call void {name}({self._slow_arguments(kind, address, 'ptr %parts', slot)})")
        self.after_slow_call()
        return [self.t(f"load {self.vtype(bits)}, ptr {place}") for place in self._parts_places(bits, count)]

    def _slow_store(self, kind: str, address: Value, values: Sequence[Value], slot: str = "") -> list[str]:
        bits, count = values[0].bits, len(values)
        if count == 1:
            name = self._call_support(f"weft_store_{kind}i{bits}")
            data = f"{_lane_vector(bits)} {self.join_chunks(self.vec(values[0]), f'i{bits}')}"
        else:
            name = self._call_support(f"weft_scatter_{kind}{count}_i{bits}")
            chunks = [x for v in values for x in self.vec(v)]
            for x, place in zip(chunks, self._parts_places(bits, count)):
                self.e(f"store {self.vtype(bits)} {x}, ptr {place}")
            data = "ptr %parts"
        self.e(f"call void {name}({self._slow_arguments(kind, address, data, slot)})")
        self.after_slow_call()
        return []

    def _slow_arguments(self, kind: str, address: Value, data: str, slot: str) -> str:
        width = 32 if kind else 64
        addresses = f"<32 x i{width}> {self.join_chunks(self.vec(address), f'i{width}')}"
        parts = [CONTEXT, addresses, data, f"i32 {self.mask_word()}, i32 {self.site}", f"ptr {slot}" if slot else ""]
        return ", ".join(part for part in parts if part)

    def _parts_places(self, bits: int, count: int) -> list[str]:
        """Where the chunks of each component lie in memory."""
        size = self.chunk * bits // 8
        return [self._offset("%parts", i * size) for i in range(count * self.chunks)]

    # ------------------------------------------------------------ global memory: loads
    def _load_global(self, space: str, address: Value, bits: int, count: int) -> list[Value]:
        size = bits // 8
        if address.is_uniform and not (space == "generic" and self.has_local):
            return self._load_uniform(address, bits, count)
        offsets = self._pattern(address, size, count)
        if self.dry:
            return self._unknown(bits, count, False)
        slot = self.slot_pointer()
        types = [self.vtype(bits)] * (self.chunks * count)
        if offsets is None:
            return self._regroup_chunks(self._gather_global(address, bits, count, slot, types), bits, count)
        base, no_wrap = self._split_address(address)
        self.prefetch_ahead(base, int(offsets.max()) + size * count)
        ok = self._check_global(base, int(offsets.max()) + size * count, size * count, slot)
        if no_wrap is not None:
            ok = self.t(f"and i1 {ok}, {no_wrap}")

        def fast():
            return self._load_pattern(self.t(f"inttoptr i64 {base} to ptr"), offsets, size, count)

        flat = self.diamond(ok, fast, lambda: self._slow_load("", address, bits, count, slot), types)
        return self._regroup_chunks(flat, bits, count)

    def _load_uniform(self, address: Value, bits: int, count: int) -> list[Value]:
        if self.dry:
            return self._unknown(bits, count, True)
        size = bits // 8
        at = self.uval(address)
        slot = self.slot_pointer()
        ok = self._check_global(at, size * count, size * count, slot)

        def fast():
            return self._scalar_loads(self.t(f"inttoptr i64 {at} to ptr"), bits, count)

        def slow():
            total = bits * count
            name = self._call_support(f"weft_load_uniform_i{total}")
            type_ = f"i{total}" if total <= 64 else f"<{total // 64} x i64>"
            tail = f"i32 {self.mask_word()}, i32 {self.site}, ptr {slot}"
            whole = self.t(f"call {type_} {name}({CONTEXT}, i64 {at}, {tail})")
            self.after_slow_call()
            if count == 1:
                return [whole]
            parts = self.t(f"bitcast {type_} {whole} to <{count} x i{bits}>")
            return [self.t(f"extractelement <{count} x i{bits}> {parts}, i32 {i}") for i in range(count)]

        return [self.scalar(x, bits) for x in self.diamond(ok, fast, slow, [f"i{bits}"] * count)]

    def _scalar_loads(self, pointer: str, bits: int, count: int) -> list[str]:
        size = bits // 8
        return [
            self.t(f"load i{bits}, ptr {self._offset(pointer, i * size)}, align {size}, !noalias !3")
            for i in range(count)
        ]

    def _gather_global(self, address: Value, bits: int, count: int, slot: str, types) -> list[str]:
        """Unknown addresses: contiguous at run time, or a gather when every running lane is inside the slot."""
        size = bits // 8
        chunks = self.vec(address)
        inside = self._lanes_inside(chunks, size * count, slot)

        def slow():
            return self._slow_load("", address, bits, count, slot)

        def gather():
            if bits < 32:
                return slow()
            if bits * count == 128:
                return self._load_lanes(chunks, bits, count, slot)
            if bits * count == 64 and count == 2:
                return self._gather_pairs(chunks)
            return [
                self._gather(self._chunk_add(x, i * size), bits, self._lane_mask(c))
                for i in range(count)
                for c, x in enumerate(chunks)
            ]

        if count > 1:
            return self.diamond(inside, gather, slow, types)
        first = self.t(f"extractelement {self.vtype(64)} {chunks[0]}, i32 0")
        run = self._contiguous(chunks, first, size)
        if self.mask is not None:
            # contiguous in all lanes, running or not, and all of them inside: no mask needed
            whole = self._check_global(first, size * WARP_LANES, size, slot)
            run = self.t(f"and i1 {run}, {whole}")

        def unknown():
            return self.diamond(inside, gather, slow, types)

        return self.diamond(run, lambda: self._load_run(first, bits, slot, address), unknown, types, weighted=False)

    def _gather_pairs(self, chunks: Sequence[str]) -> list[str]:
        """Two 32-bit components: one 64-bit gather, then the halves apart."""
        n = self.chunk
        words = [
            self.t(f"bitcast {self.vtype(64)} {self._gather(x, 64, self._lane_mask(c))} to <{2 * n} x i32>")
            for c, x in enumerate(chunks)
        ]
        return [self.shuffle_constant(w, None, "i32", 2 * n, range(i, 2 * n, 2)) for i in (0, 1) for w in words]

    def _load_lanes(self, chunks: Sequence[str], bits: int, count: int, slot: str) -> list[str]:
        """16 bytes a lane from unrelated addresses: a vector load per lane and a transposition of 4 x 4 words, about
        three times as fast as four gathers. Lanes that do not run read the start of the slot's range."""
        n, vtype = self.chunk, self.vtype(64)
        pointers = []
        for c, x in enumerate(chunks):
            if self.mask is not None:
                base = self.splat(self._load_slot(slot)[0], "i64")
                x = self.t(f"select <{n} x i1> {self.mask[c]}, {vtype} {x}, {vtype} {base}")
            for i in range(n):
                pointers.append(self.t(f"inttoptr i64 {self.t(f'extractelement {vtype} {x}, i32 {i}')} to ptr"))
        return self._load_quads(pointers, bits)

    def _load_quads(self, pointers: Sequence[str], bits: int) -> list[str]:
        """16 bytes at each lane's pointer, as the chunks of four (or two, of 64 bits) components."""
        n, vtype = self.chunk, self.vtype(64)
        columns: list[list[str]] = [[] for _ in range(4)]
        for c in range(self.chunks):
            lanes = [
                self.t(f"load <4 x i32>, ptr {at}, align 16, !noalias !3") for at in pointers[c * n : (c + 1) * n]
            ]
            for column, part in zip(columns, self._transpose(lanes)):
                column.append(part)
        if bits == 32:
            return [part for column in columns for part in column]
        found = []
        for i in (0, 1):
            for low, high in zip(columns[2 * i], columns[2 * i + 1]):
                pairs = self.shuffle_constant(low, high, "i32", n, [k for j in range(n) for k in (j, n + j)])
                found.append(self.t(f"bitcast <{2 * n} x i32> {pairs} to {vtype}"))
        return found

    def _transpose(self, lanes: list[str]) -> list[str]:
        """Four vectors, the i-th with word i of every lane, from one <4 x i32> per lane."""
        n = len(lanes)
        rows = []
        for j in range(4):
            parts = lanes[j::4]  # lane j, 4 + j, 8 + j ... side by side, so that the rest stays within 128 bits
            width = 4
            while len(parts) > 1:
                parts = [
                    self.shuffle_constant(a, b, "i32", width, range(2 * width)) for a, b in zip(parts[::2], parts[1::2])
                ]
                width *= 2
            rows.append(parts[0])
        low, high, first, second = _quad_picks(n)
        halves = [[self.shuffle_constant(rows[a], rows[a + 1], "i32", n, pick) for a in (0, 2)] for pick in (low, high)]
        return [self.shuffle_constant(*pair, "i32", n, pick) for pair in halves for pick in (first, second)]

    def _load_run(self, first: str, bits: int, slot: str, address: Value) -> list[str]:
        """Contiguous lanes; without a mask the check is still to be made."""
        vtype, size = self.vtype(bits), bits // 8

        def fast():
            pointer = self.t(f"inttoptr i64 {first} to ptr")
            return [
                self.t(f"load {vtype}, ptr {self._offset(pointer, c * self.chunk * size)}, align {size}, !noalias !3")
                for c in range(self.chunks)
            ]

        if self.mask is not None:
            return fast()
        ok = self._check_global(first, size * WARP_LANES, size, slot)
        return self.diamond(ok, fast, lambda: self._slow_load("", address, bits, 1, slot), [vtype] * self.chunks)

    def _contiguous(self, chunks: Sequence[str], first: str, size: int) -> str:
        """i1: lane i is at first + i * size."""
        n, vtype = self.chunk, self.vtype(64)
        start = self.splat(first, "i64")
        differs = None
        for c, x in enumerate(chunks):
            steps = self.vector_literal([(c * n + i) * size for i in range(n)], 64)
            other = self.t(f"icmp ne {vtype} {self.t(f'add {vtype} {start}, {steps}')}, {x}")
            differs = other if differs is None else self.t(f"or <{n} x i1> {differs}, {other}")
        return self.t(f"icmp eq i{n} {self.t(f'bitcast <{n} x i1> {differs} to i{n}')}, 0")

    def _gather(self, addresses: str, bits: int, lanes: str) -> str:
        n, vtype = self.chunk, self.vtype(bits)
        pointers = self.t(f"inttoptr {self.vtype(64)} {addresses} to <{n} x ptr>")
        name = f"@llvm.masked.gather.v{n}i{bits}.v{n}p0"
        self.declare(f"declare {vtype} {name}(<{n} x ptr>, <{n} x i1>, {vtype})")
        return self.t(
            f"call {vtype} {name}(<{n} x ptr> align {bits // 8} {pointers}, <{n} x i1> {lanes}, "
            f"{vtype} zeroinitializer), !noalias !3"
        )

    def _scatter(self, addresses: str, data: str, bits: int, lanes: str) -> None:
        n, vtype = self.chunk, self.vtype(bits)
        pointers = self.t(f"inttoptr {self.vtype(64)} {addresses} to <{n} x ptr>")
        name = f"@llvm.masked.scatter.v{n}i{bits}.v{n}p0"
        self.declare(f"declare void {name}({vtype}, <{n} x ptr>, <{n} x i1>)")
        self.e(
            f"call void {name}({vtype} {data}, <{n} x ptr> align {bits // 8} {pointers}, <{n} x i1> {lanes}), "
            "!noalias !3"
        )

    # ------------------------------------------------------------ known patterns
    def _lane_offsets(self, address: Value) -> np.ndarray | None:
        """Byte offsets of the 32 lanes from the lowest address when they are the same for every warp."""
        if address.is_varying:
            return None
        total = np.zeros(WARP_LANES, np.int64)
        tables = [(address.table, 1)]
        if address.wide is not None:
            tables.append((address.wide.table, address.wide.scale))
        for table, scale in tables:
            if table is None:
                continue
            if not table.rows_alike:
                return None
            total = total + (table.array[0] - table.array[0, 0]) * scale
        return total - total.min()

    def _pattern(self, address: Value, size: int, count: int, storing: bool = False) -> np.ndarray | None:
        """Lane offsets that can be accessed without a gather; None otherwise."""
        offsets = self._lane_offsets(address)
        if offsets is None:
            return None
        memo = (offsets.tobytes(), size, count, storing)
        possible = self.pool.possible.get(memo)
        if possible is None:
            if storing:
                possible = self._store_plan(offsets, size, count) is not None
            else:
                was, self.dry = self.dry, True
                possible = all(x is not None for x in self._load_pattern("%dry", offsets, size, count))
                self.dry = was
            self.pool.possible[memo] = possible
        return offsets if possible else None

    def _split_address(self, address: Value) -> tuple[str, str | None]:
        """(lowest address of the warp, i1 "no lane wraps" or None) of an address with lane offsets."""
        bits = address.bits
        column = np.zeros(self.warps, np.int64)
        relative = np.zeros(WARP_LANES, np.int64)
        if address.table is not None:
            column = column + address.table.array[:, 0]
            relative = relative + (address.table.array[0] - address.table.array[0, 0])
        no_wrap = scaled = None
        if address.wide is not None:
            w = address.wide
            column = column + w.table.array[:, 0] * w.scale
            relative = relative + (w.table.array[0] - w.table.array[0, 0]) * w.scale
            index = self.t(f"{'sext' if w.signed else 'zext'} i32 {w.base} to i64")
            scaled = index if w.scale == 1 else self.t(f"mul i64 {index}, {w.scale}")
            low, high = full_range(32) if w.signed else (0, mask_of(32))
            above = self.t(f"icmp sge i64 {index}, {low - min(0, w.table.low)}")
            below = self.t(f"icmp sle i64 {index}, {high - max(0, w.table.high)}")
            no_wrap = self.t(f"and i1 {above}, {below}")
        name = self.row_scalar(column + int(relative.min()) + address.offset, bits)
        for term in (address.base, scaled):
            if term is not None:
                name = term if name == "0" else self.t(f"add i{bits} {term}, {name}")
        return name, no_wrap

    def _load_pattern(self, pointer: str, offsets: np.ndarray, size: int, count: int) -> list[str | None]:
        """Chunks of each component, or None in the place of one that needs a gather."""
        n = self.chunk
        return [
            self._load_offsets(pointer, offsets[c * n : (c + 1) * n] + i * size, size)
            for i in range(count)
            for c in range(self.chunks)
        ]

    def _load_offsets(self, pointer: str, offsets: np.ndarray, size: int) -> str | None:
        """A vector of elements at known byte offsets."""
        ty, n = f"i{size * 8}", len(offsets)
        low = int(offsets.min())

        def piece(offset: int, lanes: int) -> str:
            kind = ty if lanes == 1 else f"<{lanes} x {ty}>"
            return self.t(f"load {kind}, ptr {self._offset(pointer, offset)}, align {size}, !noalias !3")

        distance = offsets - low
        if not distance.any():
            return self.splat(piece(low, 1), ty, n)
        if (distance % size).any():
            return None
        index = distance // size
        span = int(index.max()) + 1
        if span == n and (index == np.arange(n)).all():
            return piece(low, n)
        for step in (2, 4, 8):
            if (index == np.arange(n) * step).all():
                return self._load_strided(pointer, low, size, step, n)
        if span <= max(2 * n, 64 // size):
            return self.shuffle_constant(piece(low, span), None, ty, span, index.tolist())
        return self._load_runs(piece, index, low, size, n)

    def _load_strided(self, pointer: str, low: int, size: int, step: int, n: int) -> str:
        """Every `step`-th element. All components of a vector access load the same whole vectors, which LLVM shares,
        and pick theirs by a tree of shuffles. `low` is below step * size: the first lane is at offset 0."""
        ty = f"i{size * 8}"
        span = step * size
        first = low // span * span
        phase = (low - first) // size
        parts = [
            self.t(f"load <{n} x {ty}>, ptr {self._offset(pointer, first + i * n * size)}, align {size}, !noalias !3")
            for i in range(step)
        ]
        while len(parts) > 1:
            parity = phase & 1
            phase >>= 1
            parts = [
                self.shuffle_constant(a, b, ty, n, range(parity, 2 * n, 2)) for a, b in zip(parts[::2], parts[1::2])
            ]
        return parts[0]

    def _load_runs(self, piece, index: np.ndarray, low: int, size: int, n: int) -> str | None:
        """Up to MAX_RUNS contiguous pieces, put together by shuffles."""
        ty = f"i{size * 8}"
        runs: list[list[int]] = []
        for x in np.unique(index):
            if runs and x == runs[-1][0] + runs[-1][1]:
                runs[-1][1] += 1
            else:
                runs.append([int(x), 1])
        if len(runs) > MAX_RUNS:
            return None
        width = 1 << (max(length for _, length in runs) - 1).bit_length()
        if width * len(runs) > 4 * n:
            return None
        where: dict[int, int] = {}
        parts = []
        for at, (start, length) in enumerate(runs):
            x = piece(low + start * size, length)
            if length == 1:
                x = self.t(f"insertelement <{width} x {ty}> poison, {ty} {x}, i32 0")
            elif length < width:
                x = self.shuffle_constant(x, None, ty, length, [min(i, length - 1) for i in range(width)])
            for i in range(length):
                where[start + i] = at * width + i
            parts.append(x)
        while len(parts) & (len(parts) - 1):
            parts.append(parts[-1])
        while len(parts) > 1:
            parts = [self.shuffle_constant(a, b, ty, width, range(2 * width)) for a, b in zip(parts[::2], parts[1::2])]
            width *= 2
        return self.shuffle_constant(parts[0], None, ty, width, [where[int(i)] for i in index])

    # ------------------------------------------------------------ global memory: stores
    def _store_plan(self, offsets: np.ndarray, size: int, count: int) -> list[tuple[int, list[int]]] | None:
        """Contiguous runs (byte offset, lanes in address order) of a store, or None when lanes collide or the runs
        are too many. For vectors of `count` elements the lanes must follow one another."""
        order = np.argsort(offsets, kind="stable")
        ordered = offsets[order]
        step = size * count
        gaps = np.diff(ordered)
        if (gaps < step).any():
            return None
        if count > 1:
            contiguous = (gaps == step).all() and (order == np.arange(WARP_LANES)).all()
            return [(0, list(range(WARP_LANES)))] if contiguous and count in (2, 4) else None
        runs: list[tuple[int, list[int]]] = []
        for lane, at in zip(order.tolist(), ordered.tolist()):
            if runs and at == runs[-1][0] + len(runs[-1][1]) * size:
                runs[-1][1].append(lane)
            else:
                runs.append((at, [lane]))
        return runs if len(runs) <= MAX_RUNS else None

    def _store_global(self, address: Value, values: Sequence[Value]) -> None:
        size, count = values[0].bits // 8, len(values)
        slot = self.slot_pointer()
        if address.is_uniform:
            at = self.uval(address)
            ok = self._check_global(at, size * count, size * count, slot)
            self.diamond(
                ok,
                lambda: self._store_last(self.t(f"inttoptr i64 {at} to ptr"), values),
                lambda: self._slow_store("", address, values, slot),
                [],
            )
            return
        offsets = self._pattern(address, size, count, storing=True)
        if offsets is None:
            self._scatter_global(address, values, slot)
            return
        base, no_wrap = self._split_address(address)
        self.prefetch_ahead(base, int(offsets.max()) + size * count, store=True)
        ok = self._check_global(base, int(offsets.max()) + size * count, size * count, slot)
        if no_wrap is not None:
            ok = self.t(f"and i1 {ok}, {no_wrap}")
        self._store_by_plan(
            ok, lambda: self.t(f"inttoptr i64 {base} to ptr"), offsets, values,
            lambda: self._slow_store("", address, values, slot),
        )  # fmt: skip

    def _store_by_plan(self, ok: str | None, pointer: Callable[[], str], offsets, values, slow) -> None:
        bits, count = values[0].bits, len(values)
        size = bits // 8
        plan = self._store_plan(offsets, size, count)
        everyone = list(range(WARP_LANES))
        whole = count == 1 and len(plan) == 1 and plan[0][1] == everyone
        for v in values:
            self.vec(v)
        if self.mask is not None and not whole:
            ok = self.t(f"and i1 {ok or 'true'}, {self.all_running()}")

        def fast():
            at = pointer()
            if whole:
                self._store_chunks(at, values[0])
            elif count > 1:
                self._store_interleaved(at, values)
            else:
                joined = self.join_chunks(self.vec(values[0]), f"i{bits}")
                for offset, lanes in plan:
                    part = joined
                    if lanes != everyone:
                        part = self.shuffle_constant(joined, None, f"i{bits}", WARP_LANES, lanes)
                    where = self._offset(at, offset)
                    self.e(f"store <{len(lanes)} x i{bits}> {part}, ptr {where}, align {size}, !noalias !3")
            return []

        self._maybe(ok, fast, slow, [])

    def _store_chunks(self, pointer: str, value: Value) -> None:
        if self.mask is None or self.has_mask_registers:
            self._store_masked(pointer, value)
            return
        # Masked stores without mask registers take tens of cycles; a warp with all its lanes does without them.
        mask = self.mask

        def whole() -> list[str]:
            self.mask = None
            self._store_masked(pointer, value)
            self.mask = mask
            return []

        def partly() -> list[str]:
            self._store_masked(pointer, value)
            return []

        self.diamond(self.all_running(), whole, partly, [])

    def _store_masked(self, pointer: str, value: Value) -> None:
        bits, n = value.bits, self.chunk
        for c, x in enumerate(self.vec(value)):
            self._store_vector(self._offset(pointer, c * n * bits // 8), x, bits, c)

    def _store_vector(self, where: str, x: str, bits: int, c: int) -> None:
        """One chunk at contiguous places, under the mask."""
        n, vtype = self.chunk, self.vtype(bits)
        if self.mask is None:
            self.e(f"store {vtype} {x}, ptr {where}, align {bits // 8}, !noalias !3")
            return
        name = f"@llvm.masked.store.v{n}i{bits}.p0"
        self.declare(f"declare void {name}({vtype}, ptr, <{n} x i1>)")
        self.e(f"call void {name}({vtype} {x}, ptr align {bits // 8} {where}, <{n} x i1> {self.mask[c]}), !noalias !3")

    def _store_interleaved(self, pointer: str, values: Sequence[Value]) -> None:
        """Lanes one after another, each with 2 or 4 elements."""
        bits, n = values[0].bits, self.chunk
        ty, size = f"i{bits}", bits // 8
        columns = [self.vec(v) for v in values]
        zipped = [x for i in range(n) for x in (i, n + i)]
        for c in range(self.chunks):
            pairs = [
                self.shuffle_constant(columns[i][c], columns[i + 1][c], ty, n, zipped) for i in range(0, len(values), 2)
            ]
            at = c * n * size * len(values)
            if len(values) == 2:
                self.e(f"store <{2 * n} x {ty}> {pairs[0]}, ptr {self._offset(pointer, at)}, align {size}, !noalias !3")
                continue
            for q in range(4):
                lanes = range(q * n // 4, (q + 1) * n // 4)
                picks = [x for i in lanes for x in (2 * i, 2 * i + 1, 2 * n + 2 * i, 2 * n + 2 * i + 1)]
                part = self.shuffle_constant(pairs[0], pairs[1], ty, 2 * n, picks)
                where = self._offset(pointer, at + q * n * size)
                self.e(f"store <{n} x {ty}> {part}, ptr {where}, align {size}, !noalias !3")

    def _store_last(self, pointer: str, values: Sequence[Value]) -> list[str]:
        """All lanes write one address: the last running lane's value stays."""
        last = None
        for i, v in enumerate(values):
            size = v.bits // 8
            if v.is_uniform:
                x = self.uval(v)
            else:
                whole = self.join_chunks(self.vec(v), f"i{v.bits}")
                if last is None:
                    last = self._last_lane()
                x = self.t(f"extractelement <32 x i{v.bits}> {whole}, i32 {last}")
            self.e(f"store i{v.bits} {x}, ptr {self._offset(pointer, i * size)}, align {size}, !noalias !3")
        return []

    def _last_lane(self) -> str:
        if self.mask is None:
            return "31"
        self.declare("declare i32 @llvm.ctlz.i32(i32, i1)")
        zeros = self.t(f"call i32 @llvm.ctlz.i32(i32 {self.mask_word()}, i1 false)")
        return self.t(f"sub i32 31, {zeros}")

    def _scatter_global(self, address: Value, values: Sequence[Value], slot: str) -> None:
        bits, count = values[0].bits, len(values)
        size = bits // 8
        chunks = self.vec(address)
        for v in values:
            self.vec(v)
        inside = self._lanes_inside(chunks, size * count, slot)

        def slow():
            return self._slow_store("", address, values, slot)

        def scatter():
            if bits >= 32 and bits * count == 128:
                return self._store_lanes(chunks, values)
            if bits < 32 or not self.has_scatter:
                return slow()
            for i, v in enumerate(values):
                for c, (x, data) in enumerate(zip(chunks, self.vec(v))):
                    self._scatter(self._chunk_add(x, i * size), data, bits, self._lane_mask(c))
            return []

        if count > 1:
            self.diamond(inside, scatter, slow, [])
            return
        first = self.t(f"extractelement {self.vtype(64)} {chunks[0]}, i32 0")
        whole = self._check_global(first, size * WARP_LANES, size, slot)
        run = self.t(f"and i1 {whole}, {self._contiguous(chunks, first, size)}")

        def contiguous():
            self._store_chunks(self.t(f"inttoptr i64 {first} to ptr"), values[0])
            return []

        self.diamond(run, contiguous, lambda: self.diamond(inside, scatter, slow, []), [], weighted=False)

    def _store_lanes(self, chunks: Sequence[str], values: Sequence[Value]) -> list[str]:
        """16 bytes a lane to unrelated addresses, all inside: a store for each lane. Lanes that do not run write to
        the warp's own memory."""
        n, vtype = self.chunk, self.vtype(64)
        pointers = []
        for c, x in enumerate(chunks):
            if self.mask is not None:
                elsewhere = self.splat(self.t("ptrtoint ptr %exchange to i64"), "i64")
                x = self.t(f"select <{n} x i1> {self.mask[c]}, {vtype} {x}, {vtype} {elsewhere}")
            for i in range(n):
                pointers.append(self.t(f"inttoptr i64 {self.t(f'extractelement {vtype} {x}, i32 {i}')} to ptr"))
        self._store_quads(pointers, values)
        return []

    # ------------------------------------------------------------ shared memory
    def _shared_window(self, address: Value, offsets: np.ndarray, size: int, align: int) -> tuple[str, str | None]:
        """(pointer, i1 "inside" or None when that is known) of lanes at `offsets` from the lowest shared address."""
        base, _ = self._split_address(address)
        if address.is_known:
            array = self.known_array(address)
            low, high = int(array.min()), int(array.max())
            if low >= 0 and high + size <= self.static_shared and not (array % align).any():
                return self._shared_pointer(base), None
        ok = self._inside(base, "%shared.bytes", int(offsets.max()) + size, align, "i32")
        return self._shared_pointer(base), ok

    def _shared_pointer(self, base: str) -> str:
        if base.lstrip("-").isdigit():
            return self.t(f"getelementptr i8, ptr %sh, i64 {base}")
        return self.t(f"getelementptr i8, ptr %sh, i64 {self.t(f'zext i32 {base} to i64')}")

    def _maybe(self, ok: str | None, fast, slow, types) -> list[str]:
        return fast() if ok is None else self.diamond(ok, fast, slow, types)

    def _shared_access(self, ok: str | None, address: Value, bytes_: int, fast, slow, types) -> list[str]:
        """Like `_maybe` for an access of `bytes_` a lane. Where all lanes run and `ok` says "all inside", the other
        case is a fault and gives nothing: one branch, and nothing to join."""
        if ok is None or self.mask is not None:
            return self._maybe(ok, fast, slow, types)
        self.require_shared(ok, address, bytes_)
        return fast()

    def require_shared(self, ok: str, address: Value, bytes_: int) -> None:
        """A fault where some lane's access of `bytes_` (a power of two) is not inside shared memory; all lanes run."""
        bad, fine = self.new_label("outside"), self.new_label("inside")
        self.e(f"br i1 {ok}, label %{fine}, label %{bad}, !prof !0")
        self.depth += 1
        self.label(bad)
        bits = 8 * bytes_
        name = self._call_support(f"weft_load_shared_i{bits}")
        addresses = self.join_chunks(self.vec(address), "i32")
        self.t(f"call {_lane_vector(bits)} {name}({CONTEXT}, <32 x i32> {addresses}, i32 -1, i32 {self.site})")
        self.e("br label %stopped")
        self.depth -= 1
        self.label(fine)

    def _load_shared(self, address: Value, bits: int, count: int) -> list[Value]:
        size = bits // 8
        if self.dry:
            return self._unknown(bits, count, address.is_uniform)

        def slow():
            return self._slow_load("shared_", address, bits, count)

        if address.is_uniform:
            pointer, ok = self._shared_window(address, np.zeros(1, np.int64), size * count, size * count)

            def first_lanes():
                flat = slow()
                if self.mask is None:
                    lane = "0"
                else:
                    self.declare("declare i32 @llvm.cttz.i32(i32, i1)")
                    lane = self.t(f"call i32 @llvm.cttz.i32(i32 {self.mask_word()}, i1 false)")
                found = []
                for i in range(count):
                    whole = self.join_chunks(flat[i * self.chunks : (i + 1) * self.chunks], f"i{bits}")
                    found.append(self.t(f"extractelement <32 x i{bits}> {whole}, i32 {lane}"))
                return found

            names = self._shared_access(
                ok, address, size * count, lambda: self._scalar_loads(pointer, bits, count), first_lanes,
                [f"i{bits}"] * count,
            )  # fmt: skip
            return [self.scalar(x, bits) for x in names]
        types = [self.vtype(bits)] * (self.chunks * count)
        offsets = self._lane_offsets(address)
        if offsets is None:
            return self._regroup_chunks(self._gather_shared(address, bits, count, types, slow), bits, count)
        pointer, ok = self._shared_window(address, offsets, size * count, size * count)
        if self._pattern(address, size, count) is not None:
            def fast():
                return self._load_pattern(pointer, offsets, size, count)
        else:
            def fast():
                return self._load_one_by_one(pointer, offsets, bits, count)

        flat = self._shared_access(ok, address, size * count, fast, slow, types)
        return self._regroup_chunks(flat, bits, count)

    def _load_one_by_one(self, pointer: str, offsets: np.ndarray, bits: int, count: int) -> list[str]:
        """Elements at known offsets that form no pattern (a column of a padded tile): one scalar load each."""
        n, size, ty = self.chunk, bits // 8, f"i{bits}"
        if bits * count == 128 and bits >= 32:
            return self._load_quads([self._offset(pointer, int(offset)) for offset in offsets], bits)
        found = []
        for i in range(count):
            for c in range(self.chunks):
                vector = "poison"
                for lane in range(n):
                    at = self._offset(pointer, int(offsets[c * n + lane]) + i * size)
                    x = self.t(f"load {ty}, ptr {at}, align {size}, !noalias !3")
                    vector = self.t(f"insertelement <{n} x {ty}> {vector}, {ty} {x}, i32 {lane}")
                found.append(vector)
        return found

    def _shared_addresses(self, chunk: str) -> str:
        wide = self.t(f"zext {self.vtype(32)} {chunk} to {self.vtype(64)}")
        return self.t(f"add {self.vtype(64)} {wide}, {self.splat('%shared.int', 'i64')}")

    def _gather_shared(self, address: Value, bits: int, count: int, types, slow) -> list[str]:
        size = bits // 8
        chunks = self.vec(address)
        if bits < 32 or count > 2:
            return slow()
        inside = self._all_below(chunks, "%shared.bytes", size * count, 32)

        def gather():
            return [
                self._gather(self._chunk_add(self._shared_addresses(x), i * size), bits, self._lane_mask(c))
                for i in range(count)
                for c, x in enumerate(chunks)
            ]

        return self.diamond(inside, gather, slow, types)

    def _store_shared(self, address: Value, values: Sequence[Value]) -> None:
        bits, count = values[0].bits, len(values)
        size = bits // 8

        def slow():
            return self._slow_store("shared_", address, values)

        if address.is_uniform:
            pointer, ok = self._shared_window(address, np.zeros(1, np.int64), size * count, size * count)
            self._shared_access(ok, address, size * count, lambda: self._store_last(pointer, values), slow, [])
            return
        offsets = self._pattern(address, size, count, storing=True)
        if offsets is not None:
            pointer, ok = self._shared_window(address, offsets, size * count, size * count)
            if ok is not None and self.mask is None:
                self.require_shared(ok, address, size * count)
                ok = None
            self._store_by_plan(ok, lambda: pointer, offsets, values, slow)
            return
        offsets = self._lane_offsets(address)
        if offsets is not None and bits >= 32 and (count == 1 or bits * count == 128):
            if len(set(offsets.tolist())) == WARP_LANES:
                self._store_one_by_one(address, offsets, values, slow)
                return
        if bits < 32 or not self.has_scatter or count > 1:
            # of several components, scalar stores are faster than scatters
            slow()
            return
        chunks = self.vec(address)
        self.vec(values[0])
        inside = self._all_below(chunks, "%shared.bytes", size, 32)

        def scatter():
            for c, (x, data) in enumerate(zip(chunks, self.vec(values[0]))):
                self._scatter(self._shared_addresses(x), data, bits, self._lane_mask(c))
            return []

        self.diamond(inside, scatter, slow, [])

    def _store_one_by_one(self, address: Value, offsets: np.ndarray, values: Sequence[Value], slow) -> None:
        """Elements, or 16 bytes a lane, at known offsets that form no pattern."""
        bits, size = values[0].bits, values[0].bits // 8 * len(values)
        pointer, ok = self._shared_window(address, offsets, size, size)
        for v in values:
            self.vec(v)
        if self.mask is not None:
            every = self.all_running()
            ok = every if ok is None else self.t(f"and i1 {ok}, {every}")

        def fast():
            places = [self._offset(pointer, int(offset)) for offset in offsets]
            if len(values) > 1:
                self._store_quads(places, values)
                return []
            chunks = self.vec(values[0])
            for lane, place in enumerate(places):
                chunk = chunks[lane // self.chunk]
                x = self.t(f"extractelement {self.vtype(bits)} {chunk}, i32 {lane % self.chunk}")
                self.e(f"store i{bits} {x}, ptr {place}, align {bits // 8}, !noalias !3")
            return []

        self._shared_access(ok, address, size, fast, slow, [])

    def _store_quads(self, pointers: Sequence[str], values: Sequence[Value]) -> None:
        """16 bytes a lane, in four components of 32 bits or two of 64, at each lane's pointer, in lane order."""
        n = self.chunk
        words = [w for v in values for w in self.unpack(v, v.bits // 32)] if values[0].bits == 64 else list(values)
        low, high, first, second = _quad_picks(n)
        for c, (x0, x1, x2, x3) in enumerate(zip(*(self.vec(w) for w in words))):
            columns = []
            for pick in (low, high):
                pair = [self.shuffle_constant(a, b, "i32", n, pick) for a, b in ((x0, x1), (x2, x3))]
                columns += [self.shuffle_constant(*pair, "i32", n, second_pick) for second_pick in (first, second)]
            for lane in range(n):
                at = lane // 4 * 4
                quad = self.shuffle_constant(columns[lane % 4], None, "i32", n, range(at, at + 4))
                self.e(f"store <4 x i32> {quad}, ptr {pointers[c * n + lane]}, align 16, !noalias !3")

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

    def mbarrier(self, space: str, address: Value, change, arrivals: Value | None, bytes_: Value | None) -> Value:
        """Lane after lane updates the mbarrier object (a 64-bit word of shared memory) at its address:
        new word = change(old word, arrivals, bytes). The old words."""
        if self.dry:
            return self.varying(("%dry",) * self.chunks, 64)
        if space == "generic":
            address = self.trunc(self.sub(address, self.window("shared")), 32)
        places = self.join_chunks(self.vec(self.resize(address, 32, False)), "i32")
        parts = [None if v is None else self.join_chunks(self.vec(v), "i64") for v in (arrivals, bytes_)]
        self.declare("declare i32 @llvm.cttz.i32(i32, i1)")
        head, body, good, end = (self.new_label(stem) for stem in ("lanes", "lane", "update", "updated"))
        mask = self.mask_word()
        start = self.current_label
        self.e(f"br label %{head}")
        self.depth += 1
        self.label(head)
        left, old, left_next, old_next = (f"%{stem}.{self.counter}" for stem in ("left", "old", "left.n", "old.n"))
        self.e(f"{left} = phi i32 [ {mask}, %{start} ], [ {left_next}, %{good} ]")
        self.e(f"{old} = phi <32 x i64> [ zeroinitializer, %{start} ], [ {old_next}, %{good} ]")
        self.e(f"br i1 {self.t(f'icmp eq i32 {left}, 0')}, label %{end}, label %{body}")
        self.label(body)
        lane = self.t(f"call i32 @llvm.cttz.i32(i32 {left}, i1 false)")
        place = self.t(f"extractelement <32 x i32> {places}, i32 {lane}")
        ok = self._inside(place, "%shared.bytes", 8, 8, "i32")
        wrong = self.new_label("outside")
        self.e(f"br i1 {ok}, label %{good}, label %{wrong}{WEIGHTS}")
        self.label(wrong)
        self.support.add("weft_fault")
        wide = self.t(f"zext i32 {place} to i64")
        self.e(f"call void @weft_fault({CONTEXT}, i32 1, i32 {self.site}, i32 {lane}, i64 {wide}, i32 8)")
        self.e("br label %stopped")
        self.label(good)
        pointer = self._shared_pointer(place)
        before = self.t(f"load i64, ptr {pointer}, align 8")
        values = [
            None if p is None else self.scalar(self.t(f"extractelement <32 x i64> {p}, i32 {lane}"), 64) for p in parts
        ]
        after = self.uval(change(self.scalar(before, 64), *values))
        self.e(f"store i64 {after}, ptr {pointer}, align 8")
        self.e(f"{old_next} = insertelement <32 x i64> {old}, i64 {before}, i32 {lane}")
        self.e(f"{left_next} = and i32 {left}, {self.t(f'sub i32 {left}, 1')}")
        self.e(f"br label %{head}")
        self.depth -= 1
        self.label(end)
        return self.varying(self.split_chunks(old, "i64"), 64)

    def fence(self) -> None:
        """Order memory accesses before and after, for other threads too."""
        self.e("fence seq_cst")

    def prefetch(self, space: str, address: Value) -> None:
        """Accepted and left out: a hint."""


def _quad_picks(n: int) -> tuple[list[int], ...]:
    """Shuffles of two vectors of n elements that turn four rows into four columns within each 128 bits: the lower and
    the upper pairs interleaved, then the first and the second halves side by side."""
    quads = range(0, n, 4)
    low = [k for q in quads for k in (q, n + q, q + 1, n + q + 1)]
    high = [k for q in quads for k in (q + 2, n + q + 2, q + 3, n + q + 3)]
    first = [k for q in quads for k in (q, q + 1, n + q, n + q + 1)]
    second = [k for q in quads for k in (q + 2, q + 3, n + q + 2, n + q + 3)]
    return low, high, first, second


def _lane_vector(bits: int) -> str:
    """The type of one `bits`-wide value per lane; beyond 64 bits a lane's 64-bit words lie side by side."""
    return f"<32 x i{bits}>" if bits <= 64 else f"<{32 * bits // 64} x i64>"
