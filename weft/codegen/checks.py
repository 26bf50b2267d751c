"""What every memory access needs: masks, checks of addresses, and the way out of line where a check fails.

The check compares with the range (allocation) that the same access hit last, kept in a slot of the worker thread; a
miss goes out of line, where all ranges are searched lane by lane and a fault is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.codegen.builder import Builder
from weft.codegen.value import WARP_LANES, Value

WEIGHTS = ", !prof !0"
CONTEXT = "ptr %wk, ptr %blk, i32 %w"  # what every support function takes first


class Checks(Builder):
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

    def mask_word(self) -> str:
        """The running lanes as an i32."""
        return "-1" if self.mask is None else self.mask_bits(self.mask)

    def all_running(self) -> str:
        """i1: all 32 lanes run."""
        return self.t(f"icmp eq i32 {self.mask_word()}, -1")

    def _lane_mask(self, c: int) -> str:
        return self.mask[c] if self.mask is not None else self.vector_literal([1] * self.chunk, 1)

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

    def _slow_load(self, kind: str, address: Value, bits: int, count: int, slot: str = "") -> list[str]:
        """kind: "" (global and generic), "shared_" or "local_". One call for all components: a lane's access is
        checked, and faults, as a whole. Several components come back through memory."""
        if count == 1:
            name = self._call_support(f"weft_load_{kind}i{bits}")
            whole = self.t(f"call {lane_vector(bits)} {name}({self._slow_arguments(kind, address, '', slot)})")
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
            data = f"{lane_vector(bits)} {self.join_chunks(self.vec(values[0]), f'i{bits}')}"
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

    def _maybe(self, ok: str | None, fast, slow, types) -> list[str]:
        return fast() if ok is None else self.diamond(ok, fast, slow, types)


def lane_vector(bits: int) -> str:
    """The type of one `bits`-wide value per lane; beyond 64 bits a lane's 64-bit words lie side by side."""
    return f"<32 x i{bits}>" if bits <= 64 else f"<{32 * bits // 64} x i64>"
