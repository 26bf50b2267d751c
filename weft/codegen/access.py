"""Support functions for memory access and faults, and the pieces that other support functions share.

A name and its numbers enter each writer, an IRFunction leaves. Signatures are in support.py.
"""

from __future__ import annotations

from weft.codegen import abi
from weft.codegen.irtext import IRFunction, Value, constant, vector_constant, vector_type
from weft.codegen.jit import Target, function_attributes

WIDTHS = (8, 16, 32, 64, 128, 256)
ADDRESSES = vector_type("i64")
OFFSETS = vector_type("i32")
CONTEXT = [("ptr", "wk"), ("ptr", "blk"), ("i32", "w")]


def lane_vector(bits: int) -> str:
    """The type V(N) of one `bits`-wide value per lane."""
    return vector_type(f"i{bits}") if bits <= 64 else vector_type("i64", 32 * bits // 64)


def lane_element(bits: int) -> str:
    """The type in which one lane's value is moved, U(N)."""
    return f"i{bits}" if bits <= 64 else vector_type("i64", bits // 64)


def begin(name: str, result: str, parameters: list[tuple[str, str]], target: Target, cold: bool = False) -> IRFunction:
    """A support function: never inlined, whatever its size, so that the kernel stays small."""
    attributes = function_attributes(target, cold) + ("" if cold else " noinline")
    return IRFunction(name, result, parameters, attributes=attributes)


def spill(f: IRFunction, vector: Value) -> Value:
    """Memory that holds a vector, for access to single lanes."""
    place = f.alloca(vector.type, align=64)
    f.store(vector, place, align=64)
    return place


def zeroed(f: IRFunction, type_: str) -> Value:
    """Memory for a vector, all zero."""
    place = f.alloca(type_, align=64)
    f.store(Value(type_, "zeroinitializer"), place, align=64)
    return place


def lane_bits(f: IRFunction, condition: Value) -> Value:
    """A vector of 32 conditions as a mask."""
    return f.bitcast(condition, "i32")


def report_fault(f: IRFunction, kind: Value | abi.FaultKind, lane: Value, address: Value, size: int) -> None:
    """Calls weft_fault for an access of the function that has the common parameters."""
    named = {value.ref: value for value in f.parameters}
    kind = constant("i32", int(kind)) if not isinstance(kind, Value) else kind
    f.call("void", "weft_fault", named["%wk"], named["%blk"], named["%w"], kind, named["%site"], lane,
           address, constant("i32", size))  # fmt: skip


# ---- faults and ranges


def write_fault(name: str, target: Target) -> IRFunction:
    parameters = [*CONTEXT, ("i32", "kind"), ("i32", "site"), ("i32", "lane"), ("i64", "addr"), ("i32", "size")]
    f = begin(name, "void", parameters, target, cold=True)
    worker, block, warp, kind, site, lane, address, size = f.parameters
    launch = f.field(worker, abi.Worker, "launch")
    claimed = f.field_address(launch, abi.Launch, "fault_claimed")
    _, first = f.cmpxchg(claimed, constant("i32", 0), constant("i32", 1), "seq_cst")
    with f.if_(first):
        fault = f.field_address(launch, abi.Launch, "fault")
        linear = f.field(block, abi.BlockHeader, "linear")
        for field, value in (("kind", kind), ("site", site), ("lane", lane), ("warp", warp), ("block", linear),
                             ("address", address), ("size", size)):  # fmt: skip
            f.set_field(fault, abi.Fault, field, value)
    f.set_field(launch, abi.Launch, "stop", 1, order="seq_cst")
    f.ret()
    return f


def inside(f: IRFunction, address: Value, base: Value, size: Value, count: Value | int) -> Value:
    """Whether [address, address + count) lies in [base, base + size); all of one integer type, no overflow."""
    slack = f.sub(count, 1) if isinstance(count, Value) else count - 1
    return f.icmp("ult", f.sub(address, base), f.usub_sat(size, slack))


def write_find_range(name: str, target: Target) -> IRFunction:
    parameters = [("ptr", "wk"), ("i64", "addr"), ("i64", "size"), ("ptr", "slot")]
    f = begin(name, "i1", parameters, target, cold=True)
    worker, address, count, slot = f.parameters
    launch = f.field(worker, abi.Worker, "launch")
    ranges = f.field(launch, abi.Launch, "ranges")
    low, high = f.variable(constant("i64", 0)), f.variable(f.field(launch, abi.Launch, "range_count"))
    with f.loop() as search:  # ranges below low begin at or before the address, those from high on after it
        search.break_if(f.icmp("sge", f.get(low), f.get(high)))
        middle = f.lshr(f.add(f.get(low), f.get(high)), 1)
        base = f.field(f.index(ranges, middle, 16), abi.Range, "base")
        with f.if_(f.icmp("ule", base, address)):
            f.set(low, f.add(middle, 1))
        with f.else_():
            f.set(high, middle)
    with f.if_(f.icmp("eq", f.get(low), 0)):
        f.ret(constant("i1", 0))
    found = f.index(ranges, f.sub(f.get(low), 1), 16)
    base, size = f.field(found, abi.Range, "base"), f.field(found, abi.Range, "size")
    hit = inside(f, address, base, size, count)
    with f.if_(hit):
        f.set_field(slot, abi.Range, "base", base)
        f.set_field(slot, abi.Range, "size", size)
    f.ret(hit)
    return f


def _local_base(f: IRFunction, launch: Value, block: Value, warp: Value) -> Value:
    """Where a warp's local memory begins."""
    per_thread = f.and_(f.add(f.field(launch, abi.Launch, "local_bytes"), 3), -4)
    offset = f.mul(f.zext(warp, "i64"), f.shl(f.zext(per_thread, "i64"), 5))
    return f.offset(f.field(block, abi.BlockHeader, "local"), offset)


def _local_word(f: IRFunction, base: Value, offset: Value, lane: Value) -> Value:
    """Address of byte `offset` (i64) of a lane's local memory: words of the lanes lie side by side."""
    row = f.shl(f.lshr(offset, 2), 7)
    column = f.add(f.shl(f.zext(lane, "i64"), 2), f.and_(offset, 3))
    return f.offset(base, f.add(row, column))


def write_resolve(name: str, target: Target) -> IRFunction:
    """Turns the addresses of an array into pointers, in place. Gives the mask of lanes that may go on, and in the
    upper half those in local memory (atomic = 0) or in shared memory, this block's or another's of its cluster
    (atomic = 1; local memory then faults)."""
    parameters = [*CONTEXT, ("ptr", "addresses"), ("i32", "mask"), ("i32", "site"), ("ptr", "slot"), ("i32", "size"),
                  ("i1", "atomic")]  # fmt: skip
    f = begin(name, "i64", parameters, target)
    worker, block, warp, addresses, mask, site, slot, size32, atomic = f.parameters
    size = f.zext(size32, "i64")
    launch = f.field(worker, abi.Worker, "launch")
    shared_window = f.field(launch, abi.Launch, "shared_window")
    shared_bytes = f.zext(f.field(launch, abi.Launch, "shared_bytes"), "i64")
    shared = f.field(block, abi.BlockHeader, "shared")
    special = f.variable(constant("i32", 0))
    with f.for_bits(mask) as lane:
        bit = f.shl(constant("i32", 1), lane)
        place = f.index(addresses, lane, 8)
        address = f.load("i64", place)
        base, length = f.field(slot, abi.Range, "base"), f.field(slot, abi.Range, "size")
        aligned = f.icmp("eq", f.and_(address, f.sub(size, 1)), 0)
        with f.if_(f.not_(f.and_(aligned, inside(f, address, base, length, size)))):
            # The lanes below this one may still go on; the fault stops the launch all the same.
            allowed = f.and_(mask, f.sub(bit, 1))
            with f.if_(f.not_(aligned), unlikely=True):
                kind = constant("i32", int(abi.FaultKind.MISALIGNED))
                f.call("void", "weft_fault", worker, block, warp, kind, site, lane, address, size32)
                f.ret(f.or_(f.zext(allowed, "i64"), f.shl(f.zext(f.get(special), "i64"), 32)))
            with f.if_(inside(f, address, shared_window, shared_bytes, size)):
                f.store(f.offset(shared, f.sub(address, shared_window)), place)
                with f.if_(atomic):
                    f.set(special, f.or_(f.get(special), bit))
            with f.else_():
                distance = f.sub(address, shared_window)
                with f.if_(f.icmp("ult", f.sub(distance, abi.CLUSTER_STRIDE), abi.CLUSTER_BYTES)):
                    there = f.call("ptr", "weft_cluster_pointer", worker, block, warp, distance, size, lane, site)
                    with f.if_(f.icmp("eq", there, 0), unlikely=True):
                        f.ret(f.or_(f.zext(allowed, "i64"), f.shl(f.zext(f.get(special), "i64"), 32)))
                    f.store(there, place)
                    with f.if_(atomic):
                        f.set(special, f.or_(f.get(special), bit))
                with f.else_():
                    with f.if_(f.not_(f.call("i1", "weft_find_range", worker, address, size, slot)), unlikely=True):
                        window = f.field(launch, abi.Launch, "local_window")
                        local_bytes = f.zext(f.field(launch, abi.Launch, "local_bytes"), "i64")
                        within = inside(f, address, window, local_bytes, size)
                        with f.if_(f.or_(f.not_(within), atomic), unlikely=True):
                            kind = constant("i32", int(abi.FaultKind.ADDRESS))
                            f.call("void", "weft_fault", worker, block, warp, kind, site, lane, address, size32)
                            f.ret(f.or_(f.zext(allowed, "i64"), f.shl(f.zext(f.get(special), "i64"), 32)))
                        start = _local_base(f, launch, block, warp)
                        f.store(_local_word(f, start, f.sub(address, window), lane), place)
                        f.set(special, f.or_(f.get(special), bit))
    f.ret(f.or_(f.zext(mask, "i64"), f.shl(f.zext(f.get(special), "i64"), 32)))
    return f


def resolve(f: IRFunction, addresses: Value, mask: Value, size: int, atomic: bool) -> tuple[Value, Value]:
    """Calls weft_resolve from a function with the common parameters: (lanes that may go on, special lanes)."""
    named = {value.ref: value for value in f.parameters}
    both = f.call("i64", "weft_resolve", named["%wk"], named["%blk"], named["%w"], addresses, mask, named["%site"],
                  named["%slot"], constant("i32", size), constant("i1", int(atomic)))  # fmt: skip
    return f.trunc(both, "i32"), f.trunc(f.lshr(both, 32), "i32")


# ---- generic memory


def _generic_parameters(bits: int, store: bool) -> list[tuple[str, str]]:
    value = [(lane_vector(bits), "value")] if store else []
    return [*CONTEXT, (ADDRESSES, "addr"), *value, ("i32", "mask"), ("i32", "site"), ("ptr", "slot")]


def _move_local(f: IRFunction, bits: int, word: Value, place: Value, store: bool) -> None:
    """Copies one lane's value between local memory (`word` points to its first byte) and a flat place."""
    element = f"i{min(bits, 32)}"
    for part in range(max(1, bits // 32)):
        there, here = f.offset(word, 128 * part), f.offset(place, 4 * part)
        source, destination = (here, there) if store else (there, here)
        f.store(f.load(element, source), destination)


def _move_generic(f: IRFunction, bits: int, addresses: Value, mask: Value, values: Value, store: bool) -> None:
    """Moves each lane's value between the array `values` and where its address leads."""
    pointers = spill(f, addresses)
    allowed, local = resolve(f, pointers, mask, bits // 8, atomic=False)
    element = lane_element(bits)
    with f.for_bits(allowed) as lane:
        pointer = f.load("ptr", f.index(pointers, lane, 8))
        place = f.index(values, lane, bits // 8)
        source, destination = (place, pointer) if store else (pointer, place)
        if bits <= 32:  # within one word, so local memory is like any other
            f.store(f.load(element, source), destination)
        else:
            in_local = f.icmp("ne", f.and_(f.lshr(local, lane), 1), 0)
            with f.if_(in_local, unlikely=True):
                _move_local(f, bits, pointer, place, store)
            with f.else_():
                f.store(f.load(element, source, align=bits // 8), destination, align=bits // 8)


def write_load(name: str, target: Target, bits: str) -> IRFunction:
    width = int(bits)
    f = begin(name, lane_vector(width), _generic_parameters(width, store=False), target)
    _, _, _, addresses, mask, _, _ = f.parameters
    values = zeroed(f, lane_vector(width))
    _move_generic(f, width, addresses, mask, values, store=False)
    f.ret(f.load(lane_vector(width), values, align=64))
    return f


def write_store(name: str, target: Target, bits: str) -> IRFunction:
    width = int(bits)
    f = begin(name, "void", _generic_parameters(width, store=True), target)
    _, _, _, addresses, value, mask, _, _ = f.parameters
    _move_generic(f, width, addresses, mask, spill(f, value), store=True)
    return f


def write_load_uniform(name: str, target: Target, bits: str) -> IRFunction:
    width = int(bits)
    element = lane_element(width)
    parameters = [*CONTEXT, ("i64", "addr"), ("i32", "mask"), ("i32", "site"), ("ptr", "slot")]
    f = begin(name, element, parameters, target)
    worker, block, _, address, mask, _, slot = f.parameters
    size = width // 8
    nothing = Value(element, "zeroinitializer" if width > 64 else "0")
    with f.if_(f.icmp("eq", mask, 0)):
        f.ret(nothing)
    launch = f.field(worker, abi.Worker, "launch")
    lane = f.cttz(mask)
    with f.if_(f.icmp("ne", f.and_(address, size - 1), 0), unlikely=True):
        report_fault(f, abi.FaultKind.MISALIGNED, lane, address, size)
        f.ret(nothing)
    pointer = f.variable(f.convert("inttoptr", address, "ptr"))
    base, length = f.field(slot, abi.Range, "base"), f.field(slot, abi.Range, "size")
    with f.if_(f.not_(inside(f, address, base, length, size))):
        window = f.field(launch, abi.Launch, "shared_window")
        shared_bytes = f.zext(f.field(launch, abi.Launch, "shared_bytes"), "i64")
        with f.if_(inside(f, address, window, shared_bytes, size)):
            f.set(pointer, f.offset(f.field(block, abi.BlockHeader, "shared"), f.sub(address, window)))
        with f.else_():
            count = constant("i64", size)
            distance = f.sub(address, window)
            with f.if_(f.icmp("ult", f.sub(distance, abi.CLUSTER_STRIDE), abi.CLUSTER_BYTES)):
                named = {value.ref: value for value in f.parameters}
                there = f.call("ptr", "weft_cluster_pointer", worker, block, named["%w"], distance, count, lane,
                               named["%site"])  # fmt: skip
                with f.if_(f.icmp("eq", there, 0), unlikely=True):
                    f.ret(nothing)
                f.set(pointer, there)
            with f.else_():
                with f.if_(f.not_(f.call("i1", "weft_find_range", worker, address, count, slot)), unlikely=True):
                    report_fault(f, abi.FaultKind.ADDRESS, lane, address, size)
                    f.ret(nothing)
    f.ret(f.load(element, f.get(pointer), align=size))
    return f


# ---- shared and local memory


def check_offsets(f: IRFunction, offsets: Value, mask: Value, limit: Value, size: int, failed: Value | None) -> None:
    """Returns `failed` (None: void) from the function when an executing lane's offset is misaligned or its
    [offset, offset + size) passes `limit` (i32)."""
    ends = f.splat(f.usub_sat(limit, size - 1))
    misaligned = f.icmp("ne", f.and_(offsets, size - 1), 0)
    bad = f.and_(lane_bits(f, f.or_(f.icmp("uge", offsets, ends), misaligned)), mask)
    with f.if_(f.icmp("ne", bad, 0), unlikely=True):
        lane = f.cttz(bad)
        offset = f.extract(offsets, lane)
        crooked = f.icmp("ne", f.and_(offset, size - 1), 0)
        misaligned_kind = constant("i32", int(abi.FaultKind.MISALIGNED))
        kind = f.select(crooked, misaligned_kind, constant("i32", int(abi.FaultKind.ADDRESS)))
        report_fault(f, kind, lane, f.zext(offset, "i64"), size)
        f.ret(failed)


def write_window(name: str, target: Target, bits: str, space: str, store: bool) -> IRFunction:
    width = int(bits)
    element, vector = lane_element(width), lane_vector(width)
    value = [(vector, "value")] if store else []
    parameters = [*CONTEXT, (OFFSETS, "offset"), *value, ("i32", "mask"), ("i32", "site")]
    f = begin(name, "void" if store else vector, parameters, target)
    worker, block, warp, offsets = f.parameters[:4]
    mask = f.parameters[-2]
    launch = f.field(worker, abi.Worker, "launch")
    limit = f.field(launch, abi.Launch, "shared_bytes" if space == "shared" else "local_bytes")
    check_offsets(f, offsets, mask, limit, width // 8, None if store else Value(vector, "zeroinitializer"))
    values = spill(f, f.parameters[4]) if store else zeroed(f, vector)
    places = spill(f, offsets)
    shared = space == "shared"
    base = f.field(block, abi.BlockHeader, "shared") if shared else _local_base(f, launch, block, warp)
    with f.for_bits(mask) as lane:
        offset = f.zext(f.load("i32", f.index(places, lane, 4)), "i64")
        place = f.index(values, lane, width // 8)
        if shared:
            there = f.offset(base, offset)
            source, destination = (place, there) if store else (there, place)
            f.store(f.load(element, source, align=width // 8), destination, align=width // 8)
        else:
            _move_local(f, width, _local_word(f, base, offset, lane), place, store)
    f.ret(None if store else f.load(vector, values, align=64))
    return f


# ---- copies from global to shared memory


def write_copy(name: str, target: Target, bytes_: str) -> IRFunction:
    """Each executing lane copies `count` of BYTES bytes from global memory to its shared offset; the rest is zero.

    Lanes whose count is whole are checked all at once where that succeeds, else one by one: source and offset must be
    multiples of BYTES. Where fewer bytes are asked for, only those are touched.
    """
    size = int(bytes_)
    parameters = [*CONTEXT, (ADDRESSES, "addr"), (OFFSETS, "offset"), (OFFSETS, "count"), ("i32", "mask"),
                  ("i32", "site"), ("ptr", "slot")]  # fmt: skip
    f = begin(name, "void", parameters, target)
    worker, block, _, addresses, offsets, counts, mask, site, slot = f.parameters
    launch = f.field(worker, abi.Worker, "launch")
    shared = f.field(block, abi.BlockHeader, "shared")
    check_offsets(f, offsets, mask, f.field(launch, abi.Launch, "shared_bytes"), size, None)
    sources, places, amounts = spill(f, addresses), spill(f, offsets), spill(f, counts)
    element = vector_type("i32", size // 4)

    def destination(lane: Value) -> Value:
        return f.offset(shared, f.zext(f.load("i32", f.index(places, lane, 4)), "i64"))

    base, length = f.field(slot, abi.Range, "base"), f.field(slot, abi.Range, "size")
    distance = f.sub(addresses, f.splat(base))
    ends = f.splat(f.usub_sat(length, size - 1))
    outside = f.or_(f.icmp("uge", distance, ends), f.icmp("ne", f.and_(addresses, size - 1), 0))
    partial = f.icmp("ult", counts, size)
    hard = f.or_(f.icmp("ne", lane_bits(f, f.or_(outside, partial)), 0), f.icmp("ne", mask, -1))
    with f.if_(f.not_(hard)):
        first_source, first_place = f.load("i64", sources), f.load("i32", places)
        steps = [vector_constant(t, [size * i for i in range(32)]) for t in ("i64", "i32")]
        scattered = f.or_(
            f.icmp("ne", addresses, f.add(f.splat(first_source), steps[0])),
            f.icmp("ne", offsets, f.add(f.splat(first_place), steps[1])),
        )
        with f.if_(f.icmp("eq", lane_bits(f, scattered), 0)):
            row = vector_type("i32", 8 * size)
            data = f.load(row, f.load("ptr", sources), align=4)
            f.store(data, destination(constant("i32", 0)), align=4)
            f.ret()
        # unrolled by four: the loads need not wait for one another
        with f.for_range(constant("i32", 0), 32, 4) as first:
            lanes = [f.add(first, i) for i in range(4)]
            loaded = [f.load(element, f.load("ptr", f.index(sources, lane, 8)), align=4) for lane in lanes]
            for lane, data in zip(lanes, loaded):
                f.store(data, destination(lane), align=4)
        f.ret()
    with f.for_bits(mask) as lane:
        count = f.load("i32", f.index(amounts, lane, 4))
        there = destination(lane)
        f.store(Value(element, "zeroinitializer"), there, align=4)
        address = f.load("i64", f.index(sources, lane, 8))
        whole = f.icmp("uge", count, size)
        with f.if_(f.icmp("ne", count, 0)):
            aligned = f.or_(f.not_(whole), f.icmp("eq", f.and_(address, size - 1), 0))
            with f.if_(f.not_(aligned), unlikely=True):
                report_fault(f, abi.FaultKind.MISALIGNED, lane, address, size)
                f.ret()
            wanted = f.zext(f.select(whole, constant("i32", size), count), "i64")
            known = inside(f, address, f.field(slot, abi.Range, "base"), f.field(slot, abi.Range, "size"), wanted)
            with f.if_(f.not_(known)):
                with f.if_(f.not_(f.call("i1", "weft_find_range", worker, address, wanted, slot)), unlikely=True):
                    report_fault(f, abi.FaultKind.ADDRESS, lane, address, size)
                    f.ret()
            here = f.convert("inttoptr", address, "ptr")
            with f.if_(whole):
                f.store(f.load(element, here, align=4), there, align=4)
            with f.else_():
                with f.for_range(f.const("i64", 0), wanted) as i:
                    f.store(f.load("i8", f.offset(here, i)), f.offset(there, i))
    return f


def write_fetch_ahead(name: str, target: Target) -> IRFunction:
    """Fetches what the lanes will want at the next turn of a loop, if they move on as they have since the last one.
    `last` holds the first lane's address of the last turn. Every fourth lane: four lanes share a line, mostly."""
    f = begin(name, "void", [(ADDRESSES, "addr"), ("ptr", "last")], target)
    addresses, last = f.parameters
    first = f.extract(addresses, 0)
    step = f.sub(first, f.load("i64", last))
    f.store(first, last)
    ahead = f.add(addresses, f.splat(step))
    for lane in range(0, 32, 4):
        pointer = f.convert("inttoptr", f.extract(ahead, lane), "ptr")
        f.intrinsic("void", "llvm.prefetch.p0", pointer, *(constant("i32", x) for x in (0, 2, 1)))
    return f


# ---- accesses of several components


def write_parts(name: str, target: Target, action: str, kind: str, count: str, bits: str) -> IRFunction:
    """`gather` and `scatter`: like weft_load_ and weft_store_ for a lane's `count` elements of `bits` bits, which are
    in memory component by component: 32 lanes of the first, then of the second."""
    parts, width = int(count), int(bits)
    total = parts * width
    scatter = action == "scatter"
    addresses = OFFSETS if kind else ADDRESSES
    parameters = [*CONTEXT, (addresses, "addr"), ("ptr", "data"), ("i32", "mask"), ("i32", "site")]
    if not kind:
        parameters.append(("ptr", "slot"))
    f = begin(name, "void", parameters, target)
    *context, data = f.parameters[:5]
    rest = f.parameters[5:]
    element = f"i{width}"

    if kind == "shared_":
        _move_parts(f, width, parts, scatter)
        return f

    def place(lane: Value, part: int) -> tuple[Value, Value]:
        """Where a component of a lane is: among the lanes of its own, among the components of the lane."""
        here = f.index(f.offset(data, part * 4 * width), lane, width // 8)
        return here, f.index(f.offset(flat, part * width // 8), lane, total // 8)

    if scatter:
        flat = f.alloca(lane_vector(total), align=64)
        with f.for_range(constant("i32", 0), 32) as lane:
            for part in range(parts):
                here, there = place(lane, part)
                f.store(f.load(element, here), there)
        f.call("void", f"weft_store_{kind}i{total}", *context, f.load(lane_vector(total), flat, align=64), *rest)
    else:
        flat = spill(f, f.call(lane_vector(total), f"weft_load_{kind}i{total}", *context, *rest))
        with f.for_range(constant("i32", 0), 32) as lane:
            for part in range(parts):
                there, here = place(lane, part)
                f.store(f.load(element, here), there)
    return f


def _move_parts(f: IRFunction, width: int, parts: int, store: bool) -> None:
    """The body of write_parts for shared memory, which kernels use where their addresses form no pattern."""
    worker, block, _, offsets, data, mask, _ = f.parameters
    size, element = width // 8, f"i{width}"
    launch = f.field(worker, abi.Worker, "launch")
    if not store:
        f.store(Value(vector_type(element, 32 * parts), "zeroinitializer"), data, align=64)
    check_offsets(f, offsets, mask, f.field(launch, abi.Launch, "shared_bytes"), size * parts, None)
    places = spill(f, offsets)
    shared = f.field(block, abi.BlockHeader, "shared")
    with f.for_bits(mask) as lane:
        there = f.offset(shared, f.zext(f.load("i32", f.index(places, lane, 4)), "i64"))
        here = f.index(data, lane, size)
        for part in range(parts):
            pair = f.offset(here, part * 32 * size), f.offset(there, part * size)
            source, destination = pair if store else pair[::-1]
            f.store(f.load(element, source, align=size), destination, align=size)
