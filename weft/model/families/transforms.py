"""Fourier transforms (cuFFT) and dense linear algebra (cuSOLVER, MAGMA)."""

from __future__ import annotations

import math

from weft.model.families.shapes import complex_factor, matrix_pipe, plain_pipe, reads, writes
from weft.model.operators import rule
from weft.model.profile import Profile
from weft.model.work import Call, Operand

# Points that one pass of a transform handles on the SM.
FFT_PASS = 4096
PANEL = 64  # columns of a panel in blocked factorisations

# Operations of a factorisation or solve of an n x n matrix, in units of n**3 (LAPACK Working Note 41, appendix C).
CUBIC = {
    "cholesky": 1 / 3, "linalg_cholesky_ex": 1 / 3, "cholesky_inverse": 2 / 3, "linalg_lu_factor_ex": 2 / 3,
    "linalg_lu": 2 / 3, "linalg_ldl_factor_ex": 1 / 3, "linalg_inv_ex": 2.0, "_linalg_det": 2 / 3,
    "_linalg_slogdet": 2 / 3, "geqrf": 4 / 3, "linalg_qr": 8 / 3, "linalg_householder_product": 4 / 3,
    "_linalg_svd": 22.0, "_linalg_eigh": 9.0, "_linalg_eigvals": 10.0, "linalg_eig": 25.0, "linalg_eigvals": 10.0,
    "linalg_lstsq": 4.0, "linalg_matrix_exp": 16.0, "linalg_pinv": 24.0,
}  # fmt: skip
# Those that reduce to a band or iterate: most of the work is matrix times vector, bound by memory.
TWO_SIDED = ("_linalg_svd", "_linalg_eigh", "_linalg_eigvals", "linalg_eig", "linalg_eigvals", "linalg_pinv")


@rule("fft", "_fft_c2c _fft_r2c _fft_c2r")
def price_fft(call: Call) -> list[Profile]:
    """_fft_c2c(x, dims, ...): 5 n log2(n) operations per complex line, half for real ones; one pass over memory for
    each 4,096 points of a line"""
    x, out = call.inputs[0], call.results()[0]
    larger = max(x, out, key=lambda operand: operand.count)
    real = "c2c" not in call.name
    found = []
    dims = call.inputs[1] if isinstance(call.inputs[1], tuple) else (call.inputs[1],)
    for dim in dims:
        n = max(2, larger.shape[dim])
        flops = 5.0 * larger.count * math.log2(n) * (0.5 if real else 1.0)
        passes = max(1, math.ceil(math.log2(n) / math.log2(FFT_PASS)))
        found.append(
            Profile("fft", "fft", ((plain_pipe(out.dtype), flops / passes),), x.nbytes, out.nbytes, passes,
                    access="stream" if dim in (-1, len(larger.shape) - 1) else "strided")
        )  # fmt: skip
    return found


def _register_cubic(name: str, factor: float) -> None:
    @rule("linalg", name, waits=name.endswith("_ex") or name in TWO_SIDED)
    def price_factorisation(call: Call) -> list[Profile]:
        """A blocked factorisation: panels one after another, products between them"""
        x = call.inputs[0]
        return factorise(x, factor, name in TWO_SIDED, reads(call), writes(call))


def factorise(x: Operand, factor: float, two_sided: bool, bytes_read: float, bytes_written: float) -> list[Profile]:
    """x[..., m, n]. Small matrices are batched into one kernel; large ones take a panel and an update for each PANEL
    columns. two_sided ones read the rest of the matrix for every column."""
    m, n = x.shape[-2], x.shape[-1]
    batch = math.prod(x.shape[:-2])
    small, large = min(m, n), max(m, n)
    flops = factor * batch * small * small * large * complex_factor(x.dtype)
    pipe = plain_pipe(x.dtype)
    if small <= PANEL:
        return [Profile("batched_factorisation", "linalg", ((pipe, flops),), bytes_read, bytes_written)]
    steps = math.ceil(small / PANEL)
    if two_sided:
        traffic = batch * small * large * x.itemsize / 2  # the trailing matrix, on average half
        return [
            Profile("reduction_step", "linalg", ((pipe, flops / small),), traffic, large * x.itemsize * batch, small),
        ]
    unit = matrix_pipe(x.dtype, False)
    panel = Profile("panel", "linalg", ((pipe, 0.1 * flops / steps),), batch * large * PANEL * x.itemsize,
                    batch * large * PANEL * x.itemsize, steps, blocks=max(batch, 1), threads=256)  # fmt: skip
    update = Profile("update", "linalg", ((unit, 0.9 * flops / steps),), bytes_read / 2 + 1, bytes_written / 2, steps)
    return [panel, update]


for _name, _factor in CUBIC.items():
    _register_cubic(_name, _factor)


@rule(
    "linalg",
    "linalg_solve_triangular triangular_solve cholesky_solve _cholesky_solve_helper linalg_lu_solve "
    "linalg_ldl_solve ormqr",
)
def price_solve(call: Call) -> list[Profile]:
    """n**2 operations per right-hand side for each triangle, in steps of a panel"""
    tensors = [operand for operand in call.tensors() if len(operand.shape) >= 2]
    matrix = max(tensors, key=lambda operand: operand.shape[-1] * operand.shape[-2])
    out = call.results()[0]
    n = matrix.shape[-1]
    triangles = 1 if "triangular" in call.name else 2
    flops = 1.0 * triangles * n * out.count * complex_factor(matrix.dtype)
    steps = max(1, n // 256)
    return [Profile("triangular_solve", "linalg", ((plain_pipe(matrix.dtype), flops / steps),), reads(call) / steps,
                    writes(call) / steps, steps)]  # fmt: skip


@rule("linalg", "_linalg_solve_ex", waits=True)
def price_linear_solve(call: Call) -> list[Profile]:
    """A factorisation and two triangular solves"""
    a, out = call.inputs[0], call.results()[0]
    n = a.shape[-1]
    solve = Profile("triangular_solve", "linalg", ((plain_pipe(a.dtype), 1.0 * n * out.count),), a.nbytes, out.nbytes,
                    2)  # fmt: skip
    return [*factorise(a, 2 / 3, False, a.nbytes, a.nbytes), solve]


@rule("linalg", "lu_unpack _linalg_check_errors")
def price_unpack(call: Call) -> Profile:
    """Triangles are copied out"""
    return Profile("lu_unpack", "linalg", (), reads(call), writes(call))
