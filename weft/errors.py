"""Every exception that Weft raises on purpose.

A user's mistake raises one of these; a mistake of Weft's own is an `assert`. Each carries what is known of the
place (file, line) and of the mismatch (what was found, what was expected), and its text reads on one line:
`k.ptx:41: shl.b8: found type b8, expected one of b16, b32, b64`.
"""

from __future__ import annotations


class WeftError(Exception):
    """Base class of all errors that Weft raises on purpose."""


class SourceError(WeftError):
    """A mistake in PTX or CUDA source text.

    Attributes: file (str), line (int, 1-based, 0 when unknown), found (str), expected (str), message (str).
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0, found: str = "", expected: str = ""):
        self.message, self.file, self.line, self.found, self.expected = message, file, line, found, expected
        place = f"{file or '<ptx>'}:{line}: " if file or line else ""
        detail = ", ".join(
            part for part in (f"found {found}" if found else "", f"expected {expected}" if expected else "") if part
        )
        super().__init__(place + message + (f": {detail}" if detail else ""))


class PtxSyntaxError(SourceError):
    """PTX text that does not follow the grammar."""


class PtxError(SourceError):
    """PTX that parses but is not legal: an unknown symbol, a wrong type, a form that no instruction has."""


class UnsupportedError(SourceError):
    """Legal input that Weft does not run yet; the text says what and what to do about it."""


class CompileError(WeftError):
    """A CUDA C++ compiler refused the program. Attribute: log (str), the compiler's own text."""

    def __init__(self, message: str, log: str = ""):
        self.log = log
        super().__init__(f"{message}\n{log}".rstrip())


class CudaError(WeftError):
    """An error that the CUDA runtime would report.

    Attributes: code (int) and name (str) as in the CUDA runtime API (cudaErrorInvalidValue is 1).
    """

    code = 999
    name = "cudaErrorUnknown"

    def __init__(self, message: str):
        super().__init__(f"{self.name}: {message}")


class InvalidValueError(CudaError):
    """A bad argument to a device call (cudaErrorInvalidValue)."""

    code, name = 1, "cudaErrorInvalidValue"


class OutOfMemoryError(CudaError, MemoryError):
    """The device's capacity, or the host memory behind it, is used up (cudaErrorMemoryAllocation)."""

    code, name = 2, "cudaErrorMemoryAllocation"


class InvalidConfigurationError(CudaError):
    """A launch shape that the chip does not allow (cudaErrorInvalidConfiguration)."""

    code, name = 9, "cudaErrorInvalidConfiguration"


class InvalidSymbolError(CudaError, KeyError):
    """No such global or constant variable in the module (cudaErrorInvalidSymbol)."""

    code, name = 13, "cudaErrorInvalidSymbol"

    __str__ = Exception.__str__


class InvalidDevicePointerError(CudaError):
    """A pointer or array that is not live memory of this device (cudaErrorInvalidDevicePointer)."""

    code, name = 17, "cudaErrorInvalidDevicePointer"


class NoSuchKernelError(CudaError, KeyError):
    """No kernel of that name in the module (cudaErrorInvalidDeviceFunction)."""

    code, name = 98, "cudaErrorInvalidDeviceFunction"

    __str__ = Exception.__str__


class LaunchResourcesError(CudaError):
    """Too many registers, threads or bytes of shared memory for the chip (cudaErrorLaunchOutOfResources)."""

    code, name = 701, "cudaErrorLaunchOutOfResources"


class CooperativeLaunchError(CudaError):
    """More blocks than can be resident at once in a cooperative launch (cudaErrorCooperativeLaunchTooLarge)."""

    code, name = 720, "cudaErrorCooperativeLaunchTooLarge"


class InvalidClusterSizeError(CudaError):
    """A cluster of blocks that the chip or the kernel does not allow (cudaErrorInvalidClusterSize)."""

    code, name = 912, "cudaErrorInvalidClusterSize"


class KernelFault(CudaError):
    """A kernel stopped at a fault. The device works afterwards.

    Attributes: kernel (str), location (weft.isa.operands.SourceLocation or None), ptx_line (int), block, thread
    (each a tuple of three ints, or None), address (int or None).
    """

    code, name = 719, "cudaErrorLaunchFailure"

    def __init__(self, message: str, *, kernel: str = "", location=None, ptx_line: int = 0, block=None, thread=None,
                 address: int | None = None):
        self.kernel, self.location, self.ptx_line = kernel, location, ptx_line
        self.block, self.thread, self.address = block, thread, address
        where = [f"in kernel {kernel}"] if kernel else []
        if location is not None:
            where.append(f"at {location}")
        elif ptx_line:
            where.append(f"at PTX line {ptx_line}")
        if block is not None:
            where.append(f"block {tuple(block)}")
        if thread is not None:
            where.append(f"thread {tuple(thread)}")
        super().__init__(message + (", " + ", ".join(where) if where else ""))


class IllegalAddressError(KernelFault):
    """An access outside every live allocation (cudaErrorIllegalAddress)."""

    code, name = 700, "cudaErrorIllegalAddress"


class IllegalInstructionError(KernelFault):
    """Operands that an instruction does not allow, as a tensor map that is none (cudaErrorIllegalInstruction)."""

    code, name = 715, "cudaErrorIllegalInstruction"


class MisalignedAddressError(KernelFault):
    """An access at an address that is not a multiple of its size (cudaErrorMisalignedAddress)."""

    code, name = 716, "cudaErrorMisalignedAddress"


class DeviceAssertError(KernelFault):
    """A device-side assert failed (cudaErrorAssert)."""

    code, name = 710, "cudaErrorAssert"


class TrapError(KernelFault):
    """The kernel executed `trap` (cudaErrorLaunchFailure)."""


class StackOverflowError(KernelFault):
    """Recursion went deeper than the device's stack (cudaErrorHardwareStackError)."""

    code, name = 714, "cudaErrorHardwareStackError"


class LaunchTimeoutError(KernelFault):
    """The launch ran longer than its time limit (cudaErrorLaunchTimeout)."""

    code, name = 702, "cudaErrorLaunchTimeout"


class DeadlockError(KernelFault):
    """No warp of the launch can go on; the text lists where each waits."""


class DryRunError(WeftError, RuntimeError):
    """A dry run was asked for a value that only data could tell; the text names the operator and the program's line."""


class CacheError(WeftError):
    """The cache directory cannot be used."""
