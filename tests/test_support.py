"""Support functions against plain Python: memory access in every space, faults, atomics, match, host calls."""

import ctypes
import struct

import numpy as np
import pytest

from weft.codegen import abi
from weft.codegen.jit import Target, function_attributes, link_object, optimise_and_emit
from weft.codegen.support import support_functions, write_function

TARGETS = {"host": Target.host(), "avx2": Target.host("avx2")}
ALL = 0xFFFFFFFF
SHARED_BYTES = 4096
LOCAL_BYTES = 300
WARPS = 3
SHARED_WINDOW = 0x7100_0000_0000_0000
LOCAL_WINDOW = 0x7200_0000_0000_0000
HOST_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)


def aligned_bytes(size: int, align: int = 64) -> np.ndarray:
    """A zeroed byte array whose address is a multiple of `align`."""
    raw = np.zeros(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size]


class Bench:
    """One launch, worker and block memory, and a caller of support functions for one target."""

    def __init__(self, target: Target):
        self.target = target
        self.functions: dict[str, tuple] = {}
        self.launch, self.worker, self.slot = abi.Launch(), abi.Worker(), abi.Range()
        layout = abi.block_layout(WARPS, 64, SHARED_BYTES, LOCAL_BYTES)
        self.block = aligned_bytes(layout["stride"])
        self.shared = self.block[layout["shared"] : layout["shared"] + SHARED_BYTES]
        self.local_at = layout["local"]
        self.header = abi.BlockHeader.from_buffer(self.block)
        self.header.shared = self.shared.ctypes.data
        self.header.local = self.block.ctypes.data + self.local_at
        self.header.linear = 77
        self.scratch = np.zeros(65536, np.uint8)
        self.worker.launch = ctypes.addressof(self.launch)
        self.worker.scratch = self.scratch.ctypes.data
        self.launch.shared_bytes, self.launch.local_bytes = SHARED_BYTES, LOCAL_BYTES
        self.launch.shared_window, self.launch.local_window = SHARED_WINDOW, LOCAL_WINDOW
        # Three arrays with unreachable bytes between them.
        self.memory = aligned_bytes(1 << 15)
        self.parts = [(0, 4096), (8192, 1000), (16384, 8192)]
        base = self.memory.ctypes.data
        self.ranges = (abi.Range * 3)(*(abi.Range(base + start, size) for start, size in self.parts))
        self.launch.ranges, self.launch.range_count = ctypes.addressof(self.ranges), 3

    def address(self, offset: int) -> int:
        return self.memory.ctypes.data + offset

    def clear_fault(self) -> None:
        self.launch.stop = self.launch.fault_claimed = 0
        self.launch.fault = abi.Fault()
        self.slot = abi.Range()

    def call(self, name: str, *arguments, mask: int = ALL, site: int = 5, warp: int = 1):
        """Calls a support function; vectors are NumPy arrays, the common parameters are filled in."""
        if name not in self.functions:
            self.functions[name] = self._compile(name)
        entry, parameters, result, _ = self.functions[name]
        common = {
            "wk": ctypes.addressof(self.worker),
            "blk": self.block.ctypes.data,
            "w": warp,
            "mask": mask,
            "site": site,
            "slot": ctypes.addressof(self.slot),
        }
        given = iter(arguments)
        places = []
        for parameter in parameters:
            word = parameter.ref[1:]
            value = common[word] if word in common else next(given)
            if isinstance(value, np.ndarray):
                data = value.tobytes()
            else:
                data = int(value).to_bytes(16, "little", signed=value < 0)
            place = aligned_bytes(max(len(data), 16))
            place[: len(data)] = np.frombuffer(data, np.uint8)
            places.append(place)
        output = aligned_bytes(1024)
        array = (ctypes.c_void_p * (len(places) + 1))(*(place.ctypes.data for place in places), output.ctypes.data)
        entry(ctypes.addressof(array))
        return output if result != "void" else None

    def _compile(self, name: str) -> tuple:
        function = write_function(name, self.target)
        lines = ["define void @weft_run(ptr %a) {"]
        arguments = []
        for number, parameter in enumerate(function.parameters):
            lines.append(f"  %g{number} = getelementptr ptr, ptr %a, i64 {number}")
            lines.append(f"  %p{number} = load ptr, ptr %g{number}")
            lines.append(f"  %v{number} = load {parameter.type}, ptr %p{number}, align 16")
            arguments.append(f"{parameter.type} %v{number}")
        count = len(arguments)
        assign = "" if function.result == "void" else "%r = "
        lines.append(f"  {assign}call {function.result} @{name}({', '.join(arguments)})")
        if assign:
            lines.append(f"  %g{count} = getelementptr ptr, ptr %a, i64 {count}")
            lines.append(f"  %p{count} = load ptr, ptr %g{count}")
            lines.append(f"  store {function.result} %r, ptr %p{count}, align 16")
        text = "\n".join([*lines, "  ret void", "}", ""])
        text = text.replace("(ptr %a) {", f"(ptr %a) {function_attributes(self.target)} {{")
        code, _ = optimise_and_emit(support_functions({name}, self.target) + text, self.target, verify=True, name=name)
        address, handle = link_object(code)
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), function.parameters, function.result, handle

    # ---- plain Python views of memory

    def local_bytes_of(self, lane: int, offset: int, count: int, warp: int = 1) -> np.ndarray:
        """Indices into the block memory of bytes of a lane's local memory."""
        per_thread = (LOCAL_BYTES + 3) // 4 * 4
        o = np.arange(offset, offset + count)
        return self.local_at + warp * 32 * per_thread + o // 4 * 128 + lane * 4 + o % 4


@pytest.fixture(scope="module", params=list(TARGETS))
def bench(request) -> Bench:
    return Bench(TARGETS[request.param])


@pytest.fixture(autouse=True)
def no_fault(bench):
    bench.clear_fault()
    bench.launch.stop = 0
    yield


def random_masks(rng) -> list[int]:
    return [ALL, 0, 1, 1 << 31, int(rng.integers(0, 1 << 32)), int(rng.integers(0, 1 << 32))]


def generic_places(bench, rng, count: int, local: bool = True) -> list[tuple[str, int]]:
    """For every lane a space and an offset at which `count` bytes are legal and aligned."""
    places = []
    for _ in range(32):
        space = rng.choice(["global", "shared", "local"] if local else ["global", "shared"])
        if space == "global":
            start, size = bench.parts[rng.integers(3)]
            places.append((space, start + int(rng.integers(size // count)) * count))
        else:
            size = SHARED_BYTES if space == "shared" else LOCAL_BYTES
            places.append((space, int(rng.integers(size // count)) * count))
    return places


def generic_address(bench, place: tuple[str, int]) -> int:
    space, offset = place
    return {"global": bench.memory.ctypes.data, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW}[space] + offset


def view(bench, lane: int, place: tuple[str, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(array, indices) of the bytes behind a lane's place."""
    space, offset = place
    if space == "local":
        return bench.block, bench.local_bytes_of(lane, offset, count)
    return (bench.memory if space == "global" else bench.shared), np.arange(offset, offset + count)


@pytest.mark.parametrize("bits", [8, 16, 32, 64, 128, 256])
def test_generic_load_and_store(bench, bits):
    rng = np.random.default_rng(bits)
    count = bits // 8
    bench.memory[:] = rng.integers(0, 256, bench.memory.size)
    bench.shared[:] = rng.integers(0, 256, SHARED_BYTES)
    bench.block[bench.local_at :] = rng.integers(0, 256, bench.block.size - bench.local_at)
    for mask in random_masks(rng):
        places = generic_places(bench, rng, count)
        addresses = np.array([generic_address(bench, place) for place in places], np.uint64)
        got = bench.call(f"weft_load_i{bits}", addresses, mask=mask)[: 32 * count].reshape(32, count)
        for lane in range(32):
            array, at = view(bench, lane, places[lane], count)
            assert (got[lane] == (array[at] if mask >> lane & 1 else 0)).all()
        values = rng.integers(0, 256, (32, count)).astype(np.uint8)
        memory, block = bench.memory.copy(), bench.block.copy()
        shared_at = bench.shared.ctypes.data - bench.block.ctypes.data
        for lane in range(32):
            if mask >> lane & 1:
                space, offset = places[lane]
                array = memory if space == "global" else block
                at = view(bench, lane, places[lane], count)[1] + (shared_at if space == "shared" else 0)
                array[at] = values[lane]
        bench.call(f"weft_store_i{bits}", addresses, values, mask=mask)
        assert (bench.memory == memory).all() and (bench.block == block).all()
    assert bench.launch.stop == 0


@pytest.mark.parametrize("bits", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("space", ["shared", "local"])
def test_window_load_and_store(bench, bits, space):
    rng = np.random.default_rng(bits)
    count = bits // 8
    bench.block[256:] = rng.integers(0, 256, bench.block.size - 256)
    size = SHARED_BYTES if space == "shared" else LOCAL_BYTES
    for mask in random_masks(rng):
        offsets = (rng.permutation(size // count)[np.arange(32) % (size // count)] * count).astype(np.uint32)
        if space == "shared":
            offsets = (rng.permutation(size // count)[:32] * count).astype(np.uint32)
        got = bench.call(f"weft_load_{space}_i{bits}", offsets, mask=mask)[: 32 * count].reshape(32, count)
        values = rng.integers(0, 256, (32, count)).astype(np.uint8)
        for lane in range(32):
            array, at = view(bench, lane, (space, int(offsets[lane])), count)
            assert (got[lane] == (array[at] if mask >> lane & 1 else 0)).all()
        before = bench.block.copy()
        bench.call(f"weft_store_{space}_i{bits}", offsets, values, mask=mask)
        changed = np.zeros(bench.block.size, bool)
        for lane in range(32):
            if mask >> lane & 1:
                array, at = view(bench, lane, (space, int(offsets[lane])), count)
                assert (array[at] == values[lane]).all()
                changed[at + (array.ctypes.data - bench.block.ctypes.data)] = True
        assert (bench.block == before)[~changed].all()
    assert bench.launch.stop == 0


@pytest.mark.parametrize("bits", [8, 32, 64, 128, 256])
def test_uniform_load(bench, bits):
    count = bits // 8
    bench.memory[:] = np.random.default_rng(1).integers(0, 256, bench.memory.size)
    bench.shared[:] = bench.memory[:SHARED_BYTES][::-1]
    for place in (("global", 512), ("global", 16384 + 8192 - count), ("shared", 64)):
        address = generic_address(bench, place)
        array, at = view(bench, 0, place, count)
        got = bench.call(f"weft_load_uniform_i{bits}", address, mask=4)[:count]
        assert (got == array[at]).all()
        assert not bench.call(f"weft_load_uniform_i{bits}", address, mask=0)[:count].any()
    assert bench.launch.stop == 0


def fault_of(bench) -> tuple:
    fault = bench.launch.fault
    assert bench.launch.stop == 1 and bench.launch.fault_claimed == 1
    return abi.FaultKind(fault.kind), fault.lane, fault.address, fault.size


@pytest.mark.parametrize("name", ["load_i32", "store_i32", "load_uniform_i32", "atom_add_u_i32", "red_min_s_i32"])
@pytest.mark.parametrize("what", ["hole", "end", "null", "before", "after_shared", "local_end", "wrap", "crooked"])
def test_generic_faults(bench, name, what):
    bad = {
        "hole": bench.address(4096),
        "end": bench.address(8192 + 1000),
        "null": 0,
        "before": bench.address(-4),
        "after_shared": SHARED_WINDOW + SHARED_BYTES,
        "local_end": LOCAL_WINDOW + LOCAL_BYTES,
        "wrap": (1 << 64) - 4,
        "crooked": bench.address(514),
    }[what]
    kind = abi.FaultKind.MISALIGNED if what == "crooked" else abi.FaultKind.ADDRESS
    bench.memory[:] = 1
    addresses = np.array([bench.address(64 + 4 * lane) for lane in range(32)], np.uint64)
    addresses[9] = bad
    values = [] if "load" in name else [np.arange(32, dtype=np.uint32)]
    argument = bad if "uniform" in name else addresses
    mask = 1 << 9 | ALL << 9 & ALL if "uniform" in name else ALL
    output = bench.call(f"weft_{name}", argument, *values, mask=mask)
    assert fault_of(bench) == (kind, 9, bad, 4)
    fault = bench.launch.fault
    assert (fault.site, fault.warp, fault.block) == (5, 1, 77)
    if output is not None and "uniform" not in name:
        assert not output[36:128].any()
    # The same address in a lane that does not execute is nobody's business.
    bench.clear_fault()
    bench.call(f"weft_{name}", argument, *values, mask=0 if "uniform" in name else ALL ^ 1 << 9)
    assert bench.launch.stop == 0


@pytest.mark.parametrize("name", ["load_shared_i32", "store_local_i32", "atom_shared_add_u_i32", "red_shared_or_b_i32"])
@pytest.mark.parametrize("offset, kind", [(1 << 20, "ADDRESS"), (0xFFFFFFFC, "ADDRESS"), (2, "MISALIGNED")])
def test_window_faults(bench, name, offset, kind):
    offsets = np.arange(32, dtype=np.uint32) * 4
    offsets[30] = offset
    before = bench.block.copy()
    values = [] if "load" in name else [np.arange(32, dtype=np.uint32)]
    bench.call(f"weft_{name}", offsets, *values)
    assert fault_of(bench) == (abi.FaultKind[kind], 30, offset, 4)
    assert (bench.block == before).all()
    bench.clear_fault()
    bench.call(f"weft_{name}", offsets, *values, mask=ALL ^ 1 << 30)
    assert bench.launch.stop == 0


def test_range_ends_are_exact(bench):
    for offset, legal in ((8192 + 992, True), (8192 + 1000, False), (8192 - 8, False)):
        bench.clear_fault()
        bench.call("weft_load_uniform_i64", bench.address(offset))
        assert (bench.launch.stop == 0) == legal
    # A slot from an earlier launch that was zeroed never matches, not even address 0.
    bench.clear_fault()
    bench.call("weft_load_uniform_i8", 0)
    assert bench.launch.stop == 1


def test_local_memory_is_no_place_for_atomics(bench):
    addresses = np.full(32, LOCAL_WINDOW + 8, np.uint64)
    bench.call("weft_atom_add_u_i32", addresses, np.ones(32, np.uint32))
    assert fault_of(bench)[0] == abi.FaultKind.ADDRESS


# ---- atomics


def f32(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def flush(bits: int) -> int:
    return bits & 0x80000000 if bits & 0x7F800000 == 0 else bits


def add_f32(a: int, b: int, ftz: bool) -> int:
    if ftz:
        a, b = flush(a), flush(b)
    with np.errstate(all="ignore"):
        total = np.uint32(a).view(np.float32) + np.uint32(b).view(np.float32)
    if np.isnan(total):
        return 0x7FFFFFFF
    bits = int(total.view(np.uint32))
    return flush(bits) if ftz else bits


def half_value(bits: int, bf16: bool) -> float:
    if bf16:
        return f32(bits << 16)
    return float(np.uint16(bits).view(np.float16))


def half_bits(value: float, bf16: bool) -> int:
    """Nearest even, from an exact double (sums of two halves are exact in double)."""
    if value != value:
        return 0x7FFF
    if not bf16:
        with np.errstate(all="ignore"):
            return int(np.float64(value).astype(np.float16).view(np.uint16))
    # Candidates around the truncated pattern, compared exactly.
    with np.errstate(all="ignore"):
        whole = int(np.float32(value).view(np.uint32))
    sign, best = whole >> 31, None
    for pattern in range(max(0, (whole >> 16 & 0x7FFF) - 1), min(0x7F80, (whole >> 16 & 0x7FFF) + 1) + 1):
        number = 2.0**128 if pattern == 0x7F80 else f32(pattern << 16)
        key = (abs(number - abs(value)), pattern & 1)
        if best is None or key < best[0]:
            best = (key, pattern)
    return sign << 15 | best[1]


def half_order(bits: int) -> int:
    return bits ^ 0xFFFF if bits >> 15 else bits | 0x8000


def combine_half(op: str, a: int, b: int, bf16: bool) -> int:
    if op == "add":
        x, y = half_value(a, bf16), half_value(b, bf16)
        return half_bits(x + y, bf16)
    nan = 0x7F80 if bf16 else 0x7C00
    if a & 0x7FFF > nan:
        return 0x7FFF if b & 0x7FFF > nan else b
    if b & 0x7FFF > nan:
        return a
    return (max if op == "max" else min)((a, b), key=half_order)


def combine(op: str, kind: str, bits: int, shared: bool, old: int, b: int, c: int) -> int:
    mask = (1 << bits) - 1
    if kind == "f":
        if bits == 32:
            return add_f32(old, b, ftz=not shared)
        pack = struct.Struct("<d")
        x, y = (pack.unpack(v.to_bytes(8, "little"))[0] for v in (old, b))
        return int.from_bytes(pack.pack(x + y), "little")
    if kind in ("f16", "bf16"):
        return combine_half(op, old, b, kind == "bf16")
    if kind in ("f16x2", "bf16x2"):
        low = combine_half(op, old & 0xFFFF, b & 0xFFFF, kind == "bf16x2")
        return low | combine_half(op, old >> 16, b >> 16, kind == "bf16x2") << 16

    def signed(x: int) -> int:
        return x - (1 << bits) if kind == "s" and x >> (bits - 1) else x

    return {
        "add": lambda: old + b & mask,
        "and": lambda: old & b,
        "or": lambda: old | b,
        "xor": lambda: old ^ b,
        "exch": lambda: b,
        "cas": lambda: c if old == b else old,
        "min": lambda: min(old, b, key=signed),
        "max": lambda: max(old, b, key=signed),
        "inc": lambda: 0 if old >= b else old + 1,
        "dec": lambda: b if old == 0 or old > b else old - 1,
    }[op]()


ATOMICS = [
    *[(op, kind, bits) for op in ("add", "min", "max") for kind in "us" for bits in (32, 64)],
    *[(op, "b", bits) for op in ("and", "or", "xor", "exch") for bits in (32, 64)],
    *[(op, "u", 32) for op in ("inc", "dec")],
    *[("cas", "b", bits) for bits in (16, 32, 64, 128)],
    ("exch", "b", 128),
    ("add", "f", 32),
    ("add", "f", 64),
    *[(op, kind, 16) for op in ("add", "min", "max") for kind in ("f16", "bf16")],
    *[(op, kind, 32) for op in ("add", "min", "max") for kind in ("f16x2", "bf16x2")],
]


def atomic_operands(rng, op: str, kind: str, bits: int, count: int) -> list[int]:
    """Random patterns with the interesting ones mixed in; few distinct ones for cas, so that it succeeds."""
    if kind == "f" and bits == 64:
        return [int(x) for x in rng.standard_normal(count).view(np.uint64)]
    pool = [0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, 3, 7]
    if kind == "f":
        pool += [0x7F800000, 0xFF800000, 0x7FC12345, 0x00000001, 0x807FFFFF, 0x00800000, 0x80800001, 0x3F800000]
    if kind.startswith(("f16", "bf16")):
        halves = [0x7C00, 0xFC00, 0x7C01, 0x0001, 0x83FF, 0x7BFF, 0x7F80, 0x7F7F, 0x7FC1, 0x3C00, 0x3F80, 0x8000, 0]
        pool = [int(rng.choice(halves)) for _ in range(8)] if bits == 16 else [
            int(rng.choice(halves)) | int(rng.choice(halves)) << 16 for _ in range(8)
        ]  # fmt: skip
    if op == "cas":
        return [pool[i] for i in rng.integers(0, 3, count)]
    return [
        pool[rng.integers(len(pool))] if rng.integers(3) == 0 else int.from_bytes(rng.bytes(bits // 8), "little")
        for _ in range(count)
    ]


def packed(values: list[int], bits: int) -> np.ndarray:
    return np.frombuffer(b"".join(v.to_bytes(bits // 8, "little") for v in values), np.uint8).copy()


@pytest.mark.parametrize("style", ["atom", "red"])
@pytest.mark.parametrize("op, kind, bits", ATOMICS)
def test_atomics(bench, style, op, kind, bits):
    rng = np.random.default_rng(bits + len(op))
    count = bits // 8
    for round_ in range(14):
        explicit = round_ % 2 == 1
        mask = random_masks(rng)[(round_ // 2) % 6]
        places = generic_places(bench, rng, count, local=False)
        spread = round_ % 7
        if explicit:
            places = [("shared", int(rng.integers(SHARED_BYTES // count)) * count) for _ in range(32)]
        if spread in (1, 2):  # few addresses, many lanes on each
            places = [places[i] for i in rng.integers(0, 3, 32)]
        elif spread in (3, 4):  # one address for all
            places = [places[0]] * 32
        elif spread == 5 and not explicit:  # one array, the fast path
            places = [("global", int(rng.integers(512 // count)) * count) for _ in range(32)]
        initial = {place: atomic_operands(rng, op, kind, bits, 1)[0] for place in places}
        for place, value in initial.items():
            array, at = view(bench, 0, place, count)
            array[at] = packed([value], bits)
        b, c = atomic_operands(rng, op, kind, bits, 32), atomic_operands(rng, op, kind, bits, 32)
        current, olds = dict(initial), [0] * 32
        for lane in range(32):
            if mask >> lane & 1:
                place = places[lane]
                olds[lane] = current[place]
                current[place] = combine(op, kind, bits, place[0] == "shared", current[place],
                                         b[lane], c[lane])  # fmt: skip
        operands = [packed(b, bits)] + ([packed(c, bits)] if op == "cas" else [])
        if explicit:
            where = np.array([offset for _, offset in places], np.uint32)
            name = f"weft_{style}_shared_{op}_{kind}_i{bits}"
        else:
            where = np.array([generic_address(bench, place) for place in places], np.uint64)
            name = f"weft_{style}_{op}_{kind}_i{bits}"
        output = bench.call(name, where, *operands, mask=mask)
        assert bench.launch.stop == 0
        for place, value in current.items():
            array, at = view(bench, 0, place, count)
            found = int.from_bytes(array[at].tobytes(), "little")
            assert found == value, (name, hex(mask), place, hex(initial[place]), hex(found), hex(value))
        if style == "atom":
            got = [int.from_bytes(output[i * count : (i + 1) * count].tobytes(), "little") for i in range(32)]
            assert got == olds, name


def test_unknown_names_raise(bench):
    for name in ("weft_nothing", "weft_atom_min_f_i32", "weft_atom_add_f16_i32", "weft_atom_add_u_i128"):
        with pytest.raises(ValueError):
            support_functions({name}, bench.target)


# ---- the rest


@pytest.mark.parametrize("bits", [32, 64])
def test_match_any(bench, bits):
    rng = np.random.default_rng(3)
    for distinct in (1, 4, 40):
        for mask in random_masks(rng):
            values = rng.integers(0, distinct, 32).astype(f"u{bits // 8}") * np.array(0x0101_0101, f"u{bits // 8}")
            got = bench.call(f"weft_match_any_i{bits}", values, mask=mask)[:128].view(np.uint32)
            for lane in range(32):
                same = sum(1 << k for k in range(32) if mask >> k & 1 and values[k] == values[lane])
                assert got[lane] == (same if mask >> lane & 1 else 0)


def test_host_call(bench):
    seen = []

    def host(worker, block, kind, payload):
        head = (ctypes.c_int32 * 3).from_address(payload)
        arrays = np.frombuffer((ctypes.c_uint64 * 160).from_address(payload + 16), np.uint64).reshape(5, 32)
        seen.append((worker, block, kind, list(head), arrays.copy()))
        arrays[0] += np.uint64(1000)

    callback = HOST_CALL(host)
    bench.launch.host_call = ctypes.cast(callback, ctypes.c_void_p).value
    arguments = [np.arange(32, dtype=np.uint64) + np.uint64(100 * i) for i in range(5)]
    got = bench.call("weft_host_call", int(abi.HostCall.MALLOC), *arguments, mask=0x55)[:256].view(np.uint64)
    worker, block, kind, head, arrays = seen[0]
    assert (worker, block, kind) == (ctypes.addressof(bench.worker), bench.block.ctypes.data, abi.HostCall.MALLOC)
    assert head == [5, 1, 0x55]
    assert (arrays == np.array(arguments)).all()
    assert (got == arguments[0] + np.uint64(1000)).all()
