"""Module + kernel name + block shape -> CompiledKernel, by way of the object cache.

The compiler proper is imported only when there is something to compile: it takes longer to load than a cached kernel.
"""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weft.codegen.jit import ObjectCache, Target, link_object, optimise_and_emit
from weft.codegen.kernel import CompiledKernel, Site
from weft.errors import NoSuchKernelError
from weft.ptx.module import Label, Module
from weft.types import Dim3
from weft.version import build_stamp

if TYPE_CHECKING:
    from weft.analysis.inline import FlatFunction
    from weft.codegen.lower import Lowering

# Local stack for recursive and indirect calls, per thread. CUDA's default (cudaLimitStackSize) is 1 KiB for all frames,
# with registers saved there too; ours keeps only parameters and local variables.
STACK_BYTES = 16 * 1024


# Blocks of a grid-stride kernel that take turns on one worker: saxpy with a grid of 128 runs at 27 GB/s with 64, at 35
# with 128 (plain saxpy: 50).
GANG = 128


@dataclass(frozen=True)
class CompileOptions:
    """What a kernel is compiled for.

    small_grid: grid.x * block.x stays below 2**31, so that a thread's index fits a signed 32-bit register.
    ptx_key: names the PTX in the cache; without it nothing is cached. dump: a directory for IR and assembly.
    deferred_copies: asynchronous copies are made by the waits (see codegen/deferred.py).
    """

    target: Target
    small_grid: bool = True
    cache: ObjectCache | None = None
    ptx_key: str = ""
    dump: Path | None = None
    deferred_copies: bool = False

    def key(self, name: str, block: Dim3) -> str:
        """The cache key: everything that the object depends on."""
        t = self.target
        parts = (
            build_stamp(),
            self.ptx_key,
            name,
            tuple(block),
            self.small_grid,
            self.deferred_copies,
            t.triple,
            t.cpu,
            t.features,
            t.vector_bits,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def compile_kernel(
    module: Module | Callable[[], Module], name: str, block: Dim3, options: CompileOptions
) -> CompiledKernel:
    """Compile an entry function for one block shape, or load it from the cache.

    `module` may be a function that parses: it is not called when the cache has the kernel. Raises PtxError and
    UnsupportedError for PTX that is wrong or not supported yet, NoSuchKernelError for an unknown name.
    """
    cached = options.cache is not None and bool(options.ptx_key)
    key = options.key(name, block) if cached else ""
    if cached:
        found = options.cache.get(key)
        if found is not None:
            return _link(pickle.loads(found[0]), found[1])
    started = time.perf_counter()
    if not isinstance(module, Module):
        module = module()
    parsed = time.perf_counter() - started
    kernel, code = _compile(module, name, block, options)
    kernel.timings["parse"] = parsed
    if cached:
        options.cache.put(key, pickle.dumps(kernel), code)
    return _link(kernel, code)


def _link(kernel: CompiledKernel, code: bytes) -> CompiledKernel:
    kernel.entry, kernel.handle = link_object(code)
    return kernel


def _compile(module: Module, name: str, block: Dim3, options: CompileOptions) -> tuple[CompiledKernel, bytes]:
    from weft.analysis.inline import flatten_function
    from weft.codegen.deferred import queue_ir, queue_of
    from weft.codegen.lower import METADATA
    from weft.codegen.schedule import scheduler_ir, scheduler_needs
    from weft.codegen.support import support_functions

    if name not in module.kernels:
        known = ", ".join(module.kernels) or "none"
        raise NoSuchKernelError(f"no kernel {name!r} in {module.file} (it has: {known})")
    started = time.perf_counter()
    flat = flatten_function(module, name)
    lowering = _lowering(module, flat, block, options, 0, None)
    lowered = lowering.run()
    sites = _sites(flat)
    texts = [lowered.text]
    done: set[str] = set()
    while left := [f for f in lowered.functions if f not in done]:
        for function in left:
            done.add(function)
            body = flatten_function(module, function)
            texts.append(_lowering(module, body, block, options, len(sites), lowering).run().text)
            sites += _sites(body)
    local_bytes = flat.local_bytes + (STACK_BYTES if done or lowered.allocates else 0)
    warps = (block.count + 31) // 32
    needed = lowered.support | scheduler_needs(lowered.kind)
    queue = queue_of(warps) if any(support.startswith("weft_late_") for support in needed) else (0, 0)
    ir = "".join([
        queue_ir(warps, lowered.frame_bytes) if queue[0] else "",
        support_functions(needed, options.target),
        "\n".join(sorted(lowered.declarations)) + "\n",
        *texts,
        METADATA,
        scheduler_ir(
            lowered.kind, warps, lowered.frame_bytes, options.target, threads=block.count,
            reductions=lowered.reductions, clusters=lowered.uses_clusters, queue=queue,
        ),
    ])  # fmt: skip
    emitted = time.perf_counter() - started
    code, timings = optimise_and_emit(ir, options.target, dump=options.dump, name=name)
    kernel = CompiledKernel(
        name=name, block=block, warps=warps, frame_bytes=lowered.frame_bytes,
        static_shared_bytes=flat.static_shared_bytes, local_bytes=local_bytes, slot_count=len(lowering.slot_of),
        symbols=tuple(lowering.symbol_index), sites=tuple(sites), has_barriers=lowered.kind != "plain",
        may_spin=lowered.may_spin, uses_clusters=lowered.uses_clusters,
        shared_names=tuple(sorted((at, shared) for shared, at in flat.shared_offsets.items())),
        registers=lowered.registers, has_loops=lowered.has_loops or bool(done),
        gang=GANG if lowered.kind == "ganged" else 1, queue_bytes=queue[0],
    )  # fmt: skip
    kernel.timings = {"emit": emitted, **timings}
    return kernel, code


def _lowering(module, flat: FlatFunction, block: Dim3, options: CompileOptions, first_site: int, caller) -> Lowering:
    from weft.analysis.flow import build_flow
    from weft.analysis.pairs import join_pairs
    from weft.codegen.lower import Lowering

    flat = join_pairs(flat)
    flow = build_flow(flat.body, module.file, flat.branch_targets, first_site, flat.registers)
    lowering = Lowering(module, flat, flow, block, options.target, options.small_grid, caller)
    lowering.deferred = options.deferred_copies
    return lowering


def _sites(flat: FlatFunction) -> list[Site]:
    return [
        Site(0, None, item.name) if isinstance(item, Label) else Site(item.line, item.location, item.name)
        for item in flat.body
    ]
