"""Functions that compiled kernels call for what is rare, slow or long: names enter, LLVM IR text leaves.

`support_functions(needed, target)` writes the functions asked for and what they call, each once. All are internal and
out of line. Common parameters: `ptr wk` the Worker, `ptr blk` the block memory, `i32 w` the warp, `i32 mask` the lanes
that execute, `i32 site` the instruction, `ptr slot` the site's Range in Worker.slots (updated on a miss). Lanes outside
the mask are never touched and get 0. On a fault Launch.fault is filled by whoever comes first, Launch.stop is set, the
remaining lanes do nothing and get 0; the caller finds out by reading Launch.stop.

`V(N)` is one value per lane: <32 x iN> for N in 8 16 32 64; for N = 128, 256 it is <64 x i64>, <128 x i64> with the
N/64 words of a lane side by side (a vector of 128-bit integers would be taken apart by LLVM).

Memory (natural alignment N/8 is checked; generic: any live range, shared window, local window):
    V(N) weft_load_iN(wk, blk, w, <32 x i64> addr, mask, site, slot)            N in 8 16 32 64 128 256
    void weft_store_iN(wk, blk, w, <32 x i64> addr, V(N) value, mask, site, slot)
    U(N) weft_load_uniform_iN(wk, blk, w, i64 addr, mask, site, slot)           U(N) = iN, <2 x i64>, <4 x i64>
        Not for local memory, where one address means another word in every lane: such an address faults. A generic
        load of a kernel with local memory uses weft_load_iN. Nothing is read when mask is 0.
    V(N) weft_load_shared_iN(wk, blk, w, <32 x i32> offset, mask, site)
    void weft_store_shared_iN(wk, blk, w, <32 x i32> offset, V(N) value, mask, site)
    V(N) weft_load_local_iN(wk, blk, w, <32 x i32> offset, mask, site)
    void weft_store_local_iN(wk, blk, w, <32 x i32> offset, V(N) value, mask, site)
    void weft_gather_C_iN(wk, blk, w, <32 x i64> addr, ptr parts, mask, site, slot)     C elements of N bits a lane
    void weft_scatter_C_iN(same)     parts: 32 lanes of the first, then of the second ...; shared_ and local_ likewise
    i1 weft_find_range(wk, i64 addr, i64 size, slot)     binary search in Launch.ranges; a hit is copied to the slot

Atomics, written by weft.codegen.atomics (see there for operations and kinds):
    V(N) weft_atom_OP_KIND_iN(wk, blk, w, <32 x i64> addr, V(N) b, [V(N) c,] mask, site, slot)
    void weft_red_OP_KIND_iN(same)
    V(N) weft_atom_shared_OP_KIND_iN(wk, blk, w, <32 x i32> offset, V(N) b, [V(N) c,] mask, site)
    void weft_red_shared_OP_KIND_iN(same)

Clusters, written by weft.codegen.clustersupport (see there):
    weft_cluster_pointer, weft_cluster_arrive, weft_cluster_wait

Other:
    void weft_fetch_ahead(<32 x i64> addr, ptr last)
    i64 weft_nanoseconds(wk)
    void weft_copy_B(wk, blk, w, <32 x i64> addr, <32 x i32> offset, <32 x i32> count, mask, site, slot)    B in 4 8 16
        From global to shared memory, `count` of B bytes a lane (more count as B) and zeros behind them.
    void weft_fault(wk, blk, w, i32 kind, site, i32 lane, i64 addr, i32 size)
    <32 x i32> weft_match_any_iN(<32 x iN> value, mask)      N in 32 64; for each lane the lanes with an equal value
    <32 x i64> weft_host_call(wk, blk, w, i32 kind, site, mask, 5 x <32 x i64>)     layout in abi.HostCall
        Gives the first argument's array after the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial

from weft.codegen import abi
from weft.codegen.access import (
    ADDRESSES,
    CONTEXT,
    OFFSETS,
    WIDTHS,
    begin,
    lane_bits,
    spill,
    write_copy,
    write_fault,
    write_fetch_ahead,
    write_find_range,
    write_load,
    write_load_uniform,
    write_parts,
    write_resolve,
    write_store,
    write_window,
)
from weft.codegen.atomics import ATOMIC_NAME, write_atomic
from weft.codegen.bulk import BULK_WRITERS
from weft.codegen.clustersupport import CLUSTER_WRITERS
from weft.codegen.fragmentio import write_fragment
from weft.codegen.irtext import IRFunction, Value, constant, vector_type
from weft.codegen.jit import Target
from weft.codegen.microkernels import (
    COLUMNS_NAME,
    DOT_NAME,
    ROWS_NAME,
    STRIP_NAME,
    write_columns,
    write_dot,
    write_rows,
    write_strip,
)
from weft.codegen.multiply import PREFIX, write_multiply
from weft.codegen.warpgroup import WGMMA_WRITERS

_HOST_PAYLOAD_HEADER = 16  # site, warp, mask, pad


def _match_any(name: str, target: Target, bits: str) -> IRFunction:
    vector = vector_type(f"i{bits}")
    f = begin(name, OFFSETS, [(vector, "value"), ("i32", "mask")], target)
    value, mask = f.parameters
    values = spill(f, value)
    left, groups = f.variable(mask), f.variable(Value(OFFSETS, "zeroinitializer"))
    with f.loop() as search:
        search.break_if(f.icmp("eq", f.get(left), 0))
        lane = f.cttz(f.get(left))
        wanted = f.splat(f.load(f"i{bits}", f.index(values, lane, int(bits) // 8)))
        same = f.and_(lane_bits(f, f.icmp("eq", value, wanted)), mask)
        f.set(left, f.and_(f.get(left), f.not_(same)))
        f.set(groups, f.select(f.bitcast(same, vector_type("i1")), f.splat(same), f.get(groups)))
    f.ret(f.get(groups))
    return f


def _host_call(name: str, target: Target) -> IRFunction:
    arguments = [(ADDRESSES, f"a{i}") for i in range(5)]
    parameters = [*CONTEXT, ("i32", "kind"), ("i32", "site"), ("i32", "mask"), *arguments]
    f = begin(name, ADDRESSES, parameters, target, cold=True)
    worker, block, warp, kind, site, mask, *values = f.parameters
    launch = f.field(worker, abi.Worker, "launch")
    payload = f.field(worker, abi.Worker, "scratch")
    for position, word in enumerate((site, warp, mask, constant("i32", 0))):
        f.store(word, f.offset(payload, 4 * position))
    for position, value in enumerate(values):
        f.store(value, f.offset(payload, _HOST_PAYLOAD_HEADER + 256 * position), align=8)
    host = f.field(launch, abi.Launch, "host_call")
    f.call_pointer("void", host, worker, block, f.zext(kind, "i64"), payload)
    f.ret(f.load(ADDRESSES, f.offset(payload, _HOST_PAYLOAD_HEADER), align=8))
    return f


def _nanoseconds(name: str, target: Target) -> IRFunction:
    """The host's time of day, in nanoseconds since 1970."""
    f = begin(name, "i64", [("ptr", "wk")], target)
    (worker,) = f.parameters
    clock = f.field(f.field(worker, abi.Worker, "launch"), abi.Launch, "clock_gettime")
    now = f.alloca("[2 x i64]", align=8)
    f.call_pointer("i32", clock, constant("i32", 0), now)  # CLOCK_REALTIME
    seconds, rest = f.load("i64", now), f.load("i64", f.offset(now, 8))
    f.ret(f.add(f.mul(seconds, 1_000_000_000), rest))
    return f


_BITS = "(" + "|".join(map(str, WIDTHS)) + ")"
_WRITERS: list[tuple[re.Pattern, Callable[..., IRFunction]]] = [
    (re.compile("weft_fault"), write_fault),
    (re.compile("weft_find_range"), write_find_range),
    (re.compile("weft_resolve"), write_resolve),
    (re.compile(f"weft_load_i{_BITS}"), write_load),
    (re.compile(f"weft_store_i{_BITS}"), write_store),
    (re.compile(f"weft_load_uniform_i{_BITS}"), write_load_uniform),
    (re.compile(f"weft_load_shared_i{_BITS}"), partial(write_window, space="shared", store=False)),
    (re.compile(f"weft_store_shared_i{_BITS}"), partial(write_window, space="shared", store=True)),
    (re.compile(f"weft_load_local_i{_BITS}"), partial(write_window, space="local", store=False)),
    (re.compile(f"weft_store_local_i{_BITS}"), partial(write_window, space="local", store=True)),
    (re.compile("weft_copy_(4|8|16)"), write_copy),
    (re.compile("weft_fetch_ahead"), write_fetch_ahead),
    (re.compile(r"weft_(gather|scatter)_(shared_|local_|)(\d+)_i" + _BITS), write_parts),
    (ATOMIC_NAME, write_atomic),
    (re.compile("weft_match_any_i(32|64)"), _match_any),
    (re.compile("weft_host_call"), _host_call),
    (re.compile("weft_nanoseconds"), _nanoseconds),
    *WGMMA_WRITERS,
    *BULK_WRITERS,
    *CLUSTER_WRITERS,
    (re.compile(re.escape(PREFIX) + "(.+)"), write_multiply),
    (re.compile(r"weft_fragment_(load|store)\.(\w)\.(\w+)\.(.+)"), write_fragment),
    (re.compile(COLUMNS_NAME), write_columns),
    (re.compile(ROWS_NAME), write_rows),
    (re.compile(STRIP_NAME), write_strip),
    (re.compile(DOT_NAME), write_dot),
]


def write_function(name: str, target: Target) -> IRFunction:
    """One support function. Raises ValueError for a name that none has."""
    for pattern, writer in _WRITERS:
        match = pattern.fullmatch(name)
        if match:
            return writer(name, target, *match.groups())
    raise ValueError(f"no support function is called {name}")


def support_functions(needed: Iterable[str], target: Target) -> str:
    """IR text of the support functions in `needed` and of all that they call, in a stable order.

    Raises ValueError for a name that none has.
    """
    texts: dict[str, str] = {}
    waiting = sorted(set(needed), reverse=True)
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        function = write_function(name, target)
        texts[name] = function.text()
        waiting += sorted(function.callees - texts.keys(), reverse=True)
    return "".join(texts[name] for name in sorted(texts))
