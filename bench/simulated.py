"""Kernels for Numba's CUDA simulator, the counterparts of bench/kernels/*.cu; NUMBA_ENABLE_CUDASIM=1 must be set.

The simulator swaps the global name `cuda` of a kernel's module while it runs, so the kernels stand at module level.
"""

from numba import cuda, float32


@cuda.jit
def saxpy(n, a, x, y):
    i = cuda.grid(1)
    if i < n:
        y[i] = a * x[i] + y[i]


@cuda.jit
def block_sum(n, x, sums):
    partial = cuda.shared.array(256, float32)
    tid = cuda.threadIdx.x
    i = cuda.blockIdx.x * 512 + tid
    total = float32(0)
    if i < n:
        total = x[i]
    if i + 256 < n:
        total += x[i + 256]
    partial[tid] = total
    cuda.syncthreads()
    half = 128
    while half > 0:
        if tid < half:
            partial[tid] += partial[tid + half]
        cuda.syncthreads()
        half //= 2
    if tid == 0:
        sums[cuda.blockIdx.x] = partial[0]


@cuda.jit
def sgemm_tile32(n, a, b, c):
    a_tile = cuda.shared.array((32, 32), float32)
    b_tile = cuda.shared.array((32, 32), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, column = cuda.blockIdx.y * 32 + ty, cuda.blockIdx.x * 32 + tx
    total = float32(0)
    for start in range(0, n, 32):
        a_tile[ty, tx] = a[row, start + tx]
        b_tile[ty, tx] = b[start + ty, column]
        cuda.syncthreads()
        for k in range(32):
            total += a_tile[ty, k] * b_tile[k, tx]
        cuda.syncthreads()
    c[row, column] = total
