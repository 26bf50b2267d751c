// Matrix products with wgmma written by hand: a block of 128 threads computes 64 x 64 of C = A * B from tiles in shared
// memory, which it lays out itself in rows of 128 bytes with the 128-byte swizzle.
#include <cuda_fp16.h>

#define TILE 64  // rows and columns of C, and depth of a tile: 64 halves are 128 bytes

__device__ unsigned long long descriptor(const void *tile) {
    unsigned long long start = (unsigned)__cvta_generic_to_shared(tile);
    return (start & 0x3FFFF) >> 4 | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}

__device__ void multiply(float (&d)[32], unsigned long long a, unsigned long long b, int keep) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(keep));
}

// Row `row` of a tile begins at 128 * row; its 16-byte piece i lies at i xor row % 8.
__device__ void fetch(const half *from, int pitch, half *tile) {
    for (int i = threadIdx.x; i < TILE * 8; i += blockDim.x) {
        int row = i / 8, piece = i % 8;
        *(int4 *)(tile + row * 64 + (piece ^ row % 8) * 8) = *(const int4 *)(from + row * pitch + piece * 8);
    }
}

// a is m x k, b is n x k (its rows are the columns of B), c is m x n; all row after row.
extern "C" __global__ void __launch_bounds__(128) product(const half *a, const half *b, float *c, int n, int k) {
    __shared__ alignas(1024) half as[TILE * 64], bs[TILE * 64];
    float d[32];
    const half *a_rows = a + blockIdx.y * TILE * k, *b_rows = b + blockIdx.x * TILE * k;
    for (int i = 0; i < k; i += 64) {
        fetch(a_rows + i, k, as);
        fetch(b_rows + i, k, bs);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int j = 0; j < 4; j++) multiply(d, descriptor(as + 16 * j), descriptor(bs + 16 * j), i + j);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        __syncthreads();
    }
    int lane = threadIdx.x % 32;
    int row = blockIdx.y * TILE + threadIdx.x / 32 * 16 + lane / 4, column = blockIdx.x * TILE + lane % 4 * 2;
    for (int i = 0; i < 32; i++) c[(row + i % 4 / 2 * 8) * n + column + i / 4 * 8 + i % 2] = d[i];
}
