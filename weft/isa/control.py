"""Control flow. Branches, calls and returns shape the control-flow graph: the lowering and the interpreter treat them
by their opcode, so most entries here are signatures. Sections: PTX ISA, "Control Flow Instructions"."""

from __future__ import annotations

from weft.isa.instruction import instruction


@instruction("bra{.uni} a", pipe="cbu", effects=("control",), section="9.7.12.3")
class Branch:
    """Jump to a label; under a guard, for the lanes where it holds."""


@instruction("brx.idx{.uni} a, b", operands={"a": "u32"}, pipe="cbu", effects=("control",), ptx="6.0", sm=30,
             section="9.7.12.4")  # fmt: skip
class BranchIndexed:
    """Jump to the a-th label of a .branchtargets list."""


@instruction("call{.uni} a", pipe="cbu", effects=("control",), section="9.7.12.5")
class Call:
    """Direct and indirect calls; the operand is a CallTarget."""


@instruction("ret{.uni}", pipe="cbu", effects=("control",), section="9.7.12.6")
class Return:
    """Leave the function; in a kernel, the thread ends."""


@instruction("exit", pipe="cbu", effects=("control",), section="9.7.12.7")
class Exit:
    """The thread ends."""


@instruction("trap", pipe="cbu", effects=("control",), section="9.7.19.4")
class Trap:
    """Stop the launch with an error."""


class _Nothing:
    @staticmethod
    def reference(t, m, ins):
        return None

    @staticmethod
    def emit(b, m, ins):
        return None


@instruction("brkpt", raw=True, pipe="cbu", section="9.7.19.1")
class Breakpoint(_Nothing):
    """Without a debugger: nothing."""


@instruction("nanosleep.u32 a", raw=True, pipe="cbu", effects=("spin",), ptx="6.3", sm=70, section="9.7.19.2")
class Nanosleep(_Nothing):
    """Any time from 0 to twice the given one is allowed; a loop around it gives way to other warps."""


@instruction("pmevent a", raw=True, pipe="cbu", section="9.7.19.3")
@instruction("pmevent.mask a", raw=True, pipe="cbu", ptx="3.0", sm=20, section="9.7.19.3")
class PerformanceEvent(_Nothing):
    """Accepted; no performance monitor listens."""


@instruction("griddepcontrol.action", action=("launch_dependents", "wait"), raw=True, pipe="cbu", ptx="7.8", sm=90,
             section="9.7.13.13")  # fmt: skip
class GridDependency(_Nothing):
    """A kernel starts when the one before it in its stream has finished, so there is nothing to wait for."""


@instruction("setmaxnreg.action.sync.aligned.u32 a", action=("inc", "dec"), raw=True, pipe="cbu", ptx="8.0", sm=90,
             section="9.7.19.5")  # fmt: skip
class SetMaxRegisters(_Nothing):
    """Moves registers between warps on the hardware; here each warp has all that it needs."""
