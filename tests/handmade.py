"""Kernels whose machine code is written by hand, for tests of the launch path without the code generator.

`load_handmade(gpu, params, body)` gives a Kernel whose weft_run is the LLVM IR `body`, placed inside
`define void @weft_run(ptr %worker)`. The body sees `%worker`, `%launch` and `%params` (ptr), and the addresses of the
fields of abi.Launch, abi.Worker and abi.Fault as `%l.NAME`, `%w.NAME` and `%f.NAME`.
"""

from __future__ import annotations

from weft.codegen import abi
from weft.codegen.kernel import CompiledKernel, Site
from weft.types import Dim3

CLAIM = """
  br label %claim
claim:
  %block = atomicrmw add ptr %l.next_block, i64 1 monotonic
  %more = icmp slt i64 %block, %total
  br i1 %more, label %work, label %finish
finish:
  ret void
"""


def field_addresses(prefix: str, base: str, struct: type) -> list[str]:
    return [
        f"  %{prefix}.{name} = getelementptr i8, ptr %{base}, i64 {getattr(struct, name).offset}"
        for name, _ in struct._fields_
    ]


def handmade_ir(body: str, declarations: str = "") -> str:
    lines = [declarations, "define void @weft_run(ptr %worker) {"]
    lines += field_addresses("w", "worker", abi.Worker)
    lines.append("  %launch = load ptr, ptr %w.launch")
    lines += field_addresses("l", "launch", abi.Launch)
    lines += field_addresses("f", "l.fault", abi.Fault)
    lines += ["  %params = load ptr, ptr %l.params", "  %total = load i64, ptr %l.total_blocks", body, "}"]
    return "\n".join(lines)


def load_handmade(gpu, params: str, body: str, *, declarations: str = "", has_loops: bool = True,
                  may_spin: bool = False, has_barriers: bool = False, static_shared_bytes: int = 0,
                  local_bytes: int = 0, registers: int = 16, symbols: tuple[str, ...] = (),
                  variables: str = ""):  # fmt: skip
    """A Kernel named `k` with PTX parameters `params` whose code is `body`."""
    from weft.codegen.jit import Target, link_object, optimise_and_emit

    head = f".version 8.0\n.target sm_80\n.address_size 64\n{variables}\n"
    program = gpu.load(f"{head}.visible .entry k({params})\n{{\nret;\n}}\n", "k.ptx")
    code, _ = optimise_and_emit(handmade_ir(body, declarations), Target.host())
    entry, handle = link_object(code)

    def compiled_for(name: str, block: Dim3, small_grid: bool) -> CompiledKernel:
        return CompiledKernel(
            name=name, block=block, warps=(block.count + 31) // 32, frame_bytes=64,
            static_shared_bytes=static_shared_bytes, local_bytes=local_bytes, slot_count=4, symbols=symbols,
            sites=(Site(5, None, "ld.global.f32"), Site(6, None, "bar.sync")), has_barriers=has_barriers,
            may_spin=may_spin, registers=registers, has_loops=has_loops, entry=entry, handle=handle,
        )  # fmt: skip

    program.compiled_for = compiled_for
    return program["k"]


# Adds one to a counter per block.
COUNT = CLAIM + """
work:
  %counter = load ptr, ptr %params
  %old = atomicrmw add ptr %counter, i32 1 monotonic
  br label %claim
"""

# Never ends by itself, but stops when asked.
SPIN = """
  br label %spin
spin:
  %stop = load atomic i32, ptr %l.stop monotonic, align 4
  %stopped = icmp ne i32 %stop, 0
  br i1 %stopped, label %finish, label %spin
finish:
  ret void
"""

EMPTY = "  ret void"


def fault_body(kind: int, address: str, block: int = 0, warp: int = 0, lane: int = 0, size: int = 4) -> str:
    """Records a fault as compiled code does; `address` is an i64 in IR."""
    return f"""
  %claimed = cmpxchg ptr %l.fault_claimed, i32 0, i32 1 seq_cst seq_cst
  %first = extractvalue {{ i32, i1 }} %claimed, 1
  br i1 %first, label %report, label %done
report:
  store i32 {kind}, ptr %f.kind
  store i32 0, ptr %f.site
  store i32 {lane}, ptr %f.lane
  store i32 {warp}, ptr %f.warp
  store i64 {block}, ptr %f.block
  store i64 {address}, ptr %f.address
  store i32 {size}, ptr %f.size
  br label %done
done:
  store atomic i32 1, ptr %l.stop seq_cst, align 4
  ret void
"""
