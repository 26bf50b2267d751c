"""LLVM IR text enters; an object file, callable code and a disk cache of objects leave.

The stages are `optimise_and_emit` (IR to object code) and `link_object` (object code to addresses in this process).
llvmlite holds one lock around every call into LLVM, so all functions here may be called from any thread. Each
compilation has a context and a target machine of its own; all linked objects share one LLJIT, one library each.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm

from weft.errors import CacheError

# IR of kernels up to this size also goes through LLVM's function simplification (hoisting out of loops, value
# numbering), at 0.4 ms per KB. Beyond it that costs as much as all the rest and gains nothing: Triton's matmul (1.3 MB)
# and attention (2.1 MB) run as fast without.
SIMPLIFY_BYTES = 250_000

_WIDE_FEATURES = ("avx512", "avx10", "amx", "evex512", "egpr", "push2pop2", "ppx", "ndd", "ccmp", "nf", "zu", "cf")
ENTRY_POINT = "weft_run"


@cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    # The order of instructions is chosen in analysis/order.py. LLVM's machine scheduler undoes it in unrolled code and
    # spills: an 8 x 8 register-tile sgemm runs at 29 GFLOP/s with it and at 46 without.
    llvm.set_option("weft", "-enable-misched=false")
    # CodeGenPrepare sinks addresses and comparisons into blocks, at a cost quadratic in the uses of a pointer: two
    # thirds of code generation for attention in f32 (4 MB of IR: 3.7 s with it, 1.3 s without). No kernel of bench/ is
    # slower without.
    llvm.set_option("weft", "-disable-cgp")


@dataclass(frozen=True)
class Target:
    """What code is made for. `features` is LLVM's list (+name,-name), `vector_bits` the widest register used."""

    triple: str
    cpu: str
    features: str
    vector_bits: int

    @staticmethod
    def host(mask: str = "") -> Target:
        """The machine this runs on; mask "avx2" leaves out AVX-512 and everything newer. Raises ValueError for
        another mask."""
        if mask not in ("", "avx2"):
            raise ValueError(f"target mask must be '' or 'avx2', found {mask!r}")
        return _host_target(mask)

    @property
    def is_x86(self) -> bool:
        return self.triple.startswith(("x86_64", "i386", "i686"))

    def has(self, feature: str) -> bool:
        """Whether code may use the named feature (LLVM's name)."""
        return f"+{feature}" in self.features.split(",")


@cache
def _host_target(mask: str) -> Target:
    _initialise()
    triple = llvm.get_process_triple()
    features = llvm.get_host_cpu_features()
    if not triple.startswith("x86_64"):
        # NEON and SVE code alike work on 128-bit vectors: the width of SVE is not known when compiling.
        return Target(triple, llvm.get_host_cpu_name(), features.flatten(), 128)
    if mask == "avx2":
        features = {name: on for name, on in features.items() if not name.startswith(_WIDE_FEATURES)}
        cpu = "haswell" if features.get("avx2") else "x86-64"
    else:
        # The host's name only chooses scheduling and tuning here: every feature is given explicitly, because a
        # hypervisor may hide features that the name implies.
        cpu = llvm.get_host_cpu_name() or "x86-64"
        features = dict(features)
    bits = 512 if features.get("avx512f") and features.get("avx512bw") else 256 if features.get("avx2") else 128
    # 512-bit registers are used wherever they exist.
    extra = ["-prefer-256-bit"] if bits == 512 else []
    flat = ",".join([*(("+" if on else "-") + name for name, on in sorted(features.items())), *extra])
    return Target(triple, cpu, flat, bits)


def function_attributes(target: Target, cold: bool = False) -> str:
    """Attributes for every function definition: callers and callees must agree on the vector width, which is part
    of the calling convention. Cold functions are kept out of line and small."""
    words = ["nounwind"]
    if cold:
        words += ["cold", "noinline"]
    if target.is_x86:
        # Spill slots of 64-byte registers are unaligned without stackrealign.
        words.append('"stackrealign"')
        width = target.vector_bits
        words.append(f'"prefer-vector-width"="{width}" "min-legal-vector-width"="{width if width > 256 else 0}"')
    return " ".join(words)


def _create_machine(target: Target, level: int) -> llvm.TargetMachine:
    _initialise()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=level, reloc="pic", codemodel="default", jit=True
    )


_LIGHT_PASSES = (
    "add_always_inliner_pass",
    "add_sroa_pass",
    "add_simplify_cfg_pass",
    "add_instruction_combine_pass",
    "add_simplify_cfg_pass",
    "add_global_dead_code_eliminate_pass",
)
WARP_FUNCTION = "warp"
_WARP_CALLERS = ("weft_run_block", "weft_run")  # the first that a module has calls @warp


def _run_passes(module: llvm.ModuleRef, machine: llvm.TargetMachine, simplify: bool) -> None:
    """Inlines the warp function into the scheduler, its one caller, and cleans up; `simplify` adds more work on the
    kernel's own code. Support functions are written once and small: they get the light passes only."""
    # No vectorisers and no unrolling: the code generator has done the one and decided on the other.
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    builder = llvm.create_pass_builder(machine, options)
    for function in module.functions:
        if function.name == WARP_FUNCTION and not function.is_declaration:
            function.add_function_attribute("alwaysinline")
    passes = llvm.create_new_module_pass_manager()
    for name in _LIGHT_PASSES:
        getattr(passes, name)()
    passes.run(module, builder)
    if not simplify:
        return
    simplification = builder.getFunctionPassManager()
    defined = {function.name: function for function in module.functions if not function.is_declaration}
    caller = next((name for name in _WARP_CALLERS if name in defined), "")
    for name, function in defined.items():
        if name == caller or not name.startswith("weft_"):
            simplification.run(function, builder)


def optimise_and_emit(
    ir: str,
    target: Target,
    size_hint: int | None = None,
    *,
    verify: bool = False,
    dump: Path | None = None,
    name: str = "kernel",
) -> tuple[bytes, dict[str, float]]:
    """Compiles IR text to an object file.

    size_hint (bytes of IR, default the text's length) chooses the passes. `dump`, a directory, receives
    name.ll, name.opt.ll and name.s. Returns the object and the seconds spent by stage: parse, optimise, codegen.
    Malformed IR is a mistake of Weft's own: AssertionError with LLVM's text; `verify` also checks what the parser
    does not.
    """
    simplify = (len(ir) if size_hint is None else size_hint) <= SIMPLIFY_BYTES
    machine = _create_machine(target, 2 if simplify else 1)  # level 1 makes the same code of large kernels, 17 % sooner
    context = llvm.create_context()
    timings: dict[str, float] = {}
    started = time.perf_counter()
    if dump is not None:
        dump.mkdir(parents=True, exist_ok=True)
        (dump / f"{name}.ll").write_text(ir)
    module = None
    try:
        module = _parse(ir, context, name, verify)
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        timings["parse"], started = time.perf_counter() - started, time.perf_counter()
        _run_passes(module, machine, simplify)
        timings["optimise"], started = time.perf_counter() - started, time.perf_counter()
        if dump is not None:
            _dump_optimised(module, machine, context, dump / name)
            started = time.perf_counter()
        code = machine.emit_object(module)
        timings["codegen"] = time.perf_counter() - started
        return code, timings
    finally:
        # The module must go before its context, also when something interrupts the compilation.
        if module is not None:
            module.close()
        context.close()


def _parse(ir: str, context: llvm.ContextRef, name: str, verify: bool) -> llvm.ModuleRef:
    try:
        module = llvm.parse_assembly(ir, context)
        if verify:
            module.verify()
    except RuntimeError as error:
        raise AssertionError(f"invalid IR for {name}: {error}") from error
    return module


def _dump_optimised(module: llvm.ModuleRef, machine: llvm.TargetMachine, context: llvm.ContextRef, stem: Path) -> None:
    stem.with_suffix(".opt.ll").write_text(str(module))
    # Emitting changes the module, so the text is made from a copy.
    copy = llvm.parse_bitcode(module.as_bitcode(), context)
    stem.with_suffix(".s").write_text(machine.emit_assembly(copy))
    copy.close()


class LinkedCode:
    """Code in memory; it stays there as long as this object lives. `entry` is the address of the entry point."""

    def __init__(self, tracker: llvm.ResourceTracker, entry: int):
        self._tracker, self.entry = tracker, entry


_link_lock = threading.Lock()
_library_numbers = itertools.count()


@cache
def _linker() -> llvm.LLJIT:
    # Only links: code is made by optimise_and_emit, so the host's plain machine is enough.
    # JITLink, since it lays an object out in one piece: the older linker aborts when address space is so full that two
    # sections lie more than 2 GiB apart.
    return llvm.create_lljit_compiler(_create_machine(Target.host(), 2), use_jit_link=True)


def link_object(code: bytes, entry: str = ENTRY_POINT) -> tuple[int, LinkedCode]:
    """Loads an object file into this process: (address of `entry`, a handle that keeps it loaded).

    Symbols that the object lacks are sought in this process (libc and libm); a missing one raises CacheError, since
    only an object of another version or machine can lack one.
    """
    library = llvm.JITLibraryBuilder().add_object_img(code).add_current_process().export_symbol(entry)
    with _link_lock:
        try:
            tracker = library.link(_linker(), f"weft{next(_library_numbers)}")
        except RuntimeError as error:
            raise CacheError(f"object code cannot be linked: {error}") from error
    return tracker[entry], LinkedCode(tracker, tracker[entry])


class ObjectCache:
    """Object files on disk, one file per key: a header with a SHA-256 of the rest, the metadata, the object.

    Files are written whole under a temporary name and renamed, so that other threads and processes see all or
    nothing. A damaged entry counts as absent and is removed. Raises CacheError when the directory cannot be made or
    written.
    """

    _MAGIC = b"WEFTOBJ1"
    _HEADER = struct.Struct("<8s32sQQ")  # magic, SHA-256 of key, metadata and object, their lengths
    _SUFFIX = ".weftobj"

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"cannot make cache directory {self.directory}: {error}") from error

    def _path(self, key: str) -> Path:
        return self.directory / (hashlib.sha256(key.encode()).hexdigest()[:40] + self._SUFFIX)

    def _digest(self, key: str, meta: bytes, code: bytes) -> bytes:
        digest = hashlib.sha256(key.encode() + b"\0")
        digest.update(meta)
        digest.update(code)
        return digest.digest()

    def get(self, key: str) -> tuple[bytes, bytes] | None:
        """(metadata, object) stored under the key, or None."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error}") from error
        parts = self._decode(key, data)
        if parts is None:
            path.unlink(missing_ok=True)
        return parts

    def _decode(self, key: str, data: bytes) -> tuple[bytes, bytes] | None:
        size = self._HEADER.size
        if len(data) < size:
            return None
        magic, digest, meta_bytes, code_bytes = self._HEADER.unpack_from(data)
        if magic != self._MAGIC or len(data) != size + meta_bytes + code_bytes:
            return None
        meta, code = data[size : size + meta_bytes], data[size + meta_bytes :]
        return (meta, code) if self._digest(key, meta, code) == digest else None

    def put(self, key: str, meta: bytes, code: bytes) -> None:
        """Stores an entry, replacing one of the same key."""
        header = self._HEADER.pack(self._MAGIC, self._digest(key, meta, code), len(meta), len(code))
        try:
            number, temporary = tempfile.mkstemp(prefix=".new-", dir=self.directory)
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(header + meta + code)
                os.replace(temporary, self._path(key))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise CacheError(f"cannot write to cache directory {self.directory}: {error}") from error

    def entries(self) -> list[Path]:
        """The files of all entries."""
        return sorted(self.directory.glob("*" + self._SUFFIX))

    def size(self) -> int:
        """Bytes used by all entries."""
        total = 0
        for path in self.entries():
            try:
                total += path.stat().st_size
            except FileNotFoundError:  # another process removed it meanwhile
                continue
        return total

    def clear(self) -> None:
        """Removes all entries, and temporary files that a killed process left (older than an hour)."""
        for path in self.entries():
            path.unlink(missing_ok=True)
        for path in self.directory.glob(".new-*"):
            try:
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue
