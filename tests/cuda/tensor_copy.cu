// Bulk and tensor copies through the library's own functions: tiles in, tiles out, sums into global memory.
#include <cuda.h>
#include <cuda/barrier>
#include <cuda/ptx>
namespace ptx = cuda::ptx;
using barrier = cuda::barrier<cuda::thread_scope_block>;

// Adds one to a tile of 32 x 32 numbers; what of it is outside of the tensor stays away. wait == 0 forgets the wait.
extern "C" __global__ void add_one(const __grid_constant__ CUtensorMap map, int x, int y, int wait) {
    __shared__ alignas(128) int tile[32][32];
    __shared__ barrier bar;
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i / 32][i % 32] = 1000;
    if (threadIdx.x == 0) {
        init(&bar, blockDim.x);
        ptx::fence_proxy_async(ptx::space_shared);
    }
    __syncthreads();
    int corner[2] = {x, y};
    barrier::arrival_token token;
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, &tile, &map, corner,
                                  cuda::device::barrier_native_handle(bar));
        token = cuda::device::barrier_arrive_tx(bar, 1, sizeof(tile));
    } else {
        token = bar.arrive();
    }
    if (wait) bar.wait(std::move(token));
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) tile[i / 32][i % 32] += 1;
    ptx::fence_proxy_async(ptx::space_shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::cp_async_bulk_tensor(ptx::space_global, ptx::space_shared, &map, corner, &tile);
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>());
    }
}

// Sums rows of 256 numbers over the blocks, with a reduction in global memory.
extern "C" __global__ void sum_rows(const float *x, float *y) {
    __shared__ alignas(16) float row[256];
    __shared__ barrier bar;
    if (threadIdx.x == 0) {
        init(&bar, blockDim.x);
        ptx::fence_proxy_async(ptx::space_shared);
    }
    __syncthreads();
    barrier::arrival_token token;
    if (threadIdx.x == 0) {
        cuda::memcpy_async(row, x + 256 * blockIdx.x, cuda::aligned_size_t<16>(sizeof(row)), bar);
    }
    token = bar.arrive();
    bar.wait(std::move(token));
    for (int i = threadIdx.x; i < 256; i += blockDim.x) row[i] *= 2.0f;
    ptx::fence_proxy_async(ptx::space_shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::cp_reduce_async_bulk(ptx::space_global, ptx::space_shared, ptx::op_add, y, row, sizeof(row));
        ptx::cp_async_bulk_commit_group();
        ptx::cp_async_bulk_wait_group(ptx::n32_t<0>());
    }
}

// A row of tiles through a ring of two stages: a producer warp, and consumers that give stages back.
extern "C" __global__ void ring(const __grid_constant__ CUtensorMap map, int tiles, long long *total) {
    __shared__ alignas(1024) int stage[2][16][32];
    __shared__ unsigned long long full[2], empty[2];
    __shared__ long long sum;
    if (threadIdx.x == 0) {
        sum = 0;
        for (int s = 0; s < 2; s++) {
            ptx::mbarrier_init(&full[s], 1);
            ptx::mbarrier_init(&empty[s], blockDim.x - 32);
        }
        ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        for (int k = 0; k < tiles && threadIdx.x == 0; k++) {
            int s = k % 2;
            if (k >= 2)
                while (!ptx::mbarrier_try_wait_parity(&empty[s], (k / 2 - 1) & 1)) {}
            ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &full[s], sizeof(stage[s]));
            int corner[2] = {32 * k, 16 * int(blockIdx.x)};
            ptx::cp_async_bulk_tensor(ptx::space_cluster, ptx::space_global, stage[s], &map, corner, &full[s]);
        }
    } else {
        long long mine = 0;
        for (int k = 0; k < tiles; k++) {
            int s = k % 2;
            while (!ptx::mbarrier_try_wait_parity(&full[s], (k / 2) & 1)) {}
            for (int i = threadIdx.x - 32; i < 512; i += blockDim.x - 32) mine += stage[s][i / 32][i % 32];
            ptx::mbarrier_arrive(&empty[s]);
        }
        atomicAdd(reinterpret_cast<unsigned long long *>(&sum), mine);
    }
    __syncthreads();
    if (threadIdx.x == 0) total[blockIdx.x] = sum;
}
