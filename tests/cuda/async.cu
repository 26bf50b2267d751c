// Asynchronous copies: cuda::barrier, cuda::pipeline, the primitives of cuda_pipeline.h.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cuda_pipeline.h>
namespace cg = cooperative_groups;

extern "C" __global__ void barrier_copy(const int *x, int *y) {
    __shared__ alignas(16) int tile[128];
    __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
    auto block = cg::this_thread_block();
    if (block.thread_rank() == 0) init(&barrier, block.size());
    block.sync();
    cuda::memcpy_async(block, tile, x + blockIdx.x * 128, cuda::aligned_size_t<16>(sizeof(tile)), barrier);
    barrier.arrive_and_wait();
    y[blockIdx.x * 128 + threadIdx.x] = tile[127 - threadIdx.x] * 3;
}

// Arrival and wait apart: several phases of one barrier.
extern "C" __global__ void barrier_phases(int rounds, int *out) {
    __shared__ cuda::barrier<cuda::thread_scope_block> barrier;
    __shared__ int ring[64];
    if (threadIdx.x == 0) init(&barrier, blockDim.x);
    ring[threadIdx.x] = threadIdx.x;
    __syncthreads();
    for (int k = 0; k < rounds; k++) {
        int v = ring[(threadIdx.x + 1) % 64];
        auto token = barrier.arrive();
        barrier.wait(std::move(token));
        ring[threadIdx.x] = v;
        barrier.arrive_and_wait();
    }
    out[threadIdx.x] = ring[threadIdx.x];
}

extern "C" __global__ void pipeline_stages(int tiles, const float *x, float *out) {
    __shared__ alignas(16) float stages[2][64];
    __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
    auto block = cg::this_thread_block();
    auto pipe = cuda::make_pipeline(block, &state);
    float sum = 0.0f;
    for (int fetch = 0, compute = 0; compute < tiles; compute++) {
        for (; fetch < tiles && fetch < compute + 2; fetch++) {
            pipe.producer_acquire();
            cuda::memcpy_async(block, stages[fetch % 2], x + fetch * 64, cuda::aligned_size_t<16>(256), pipe);
            pipe.producer_commit();
        }
        pipe.consumer_wait();
        sum += stages[compute % 2][(threadIdx.x + compute) % 64];
        pipe.consumer_release();
    }
    out[threadIdx.x] = sum;
}

extern "C" __global__ void copy_primitives(int tiles, const float4 *x, float4 *y) {
    __shared__ float4 stages[3][32];
    int t = threadIdx.x;
    for (int s = 0; s < 2; s++) {
        if (s < tiles) __pipeline_memcpy_async(&stages[s][t], x + s * 32 + t, 16);
        __pipeline_commit();
    }
    for (int k = 0; k < tiles; k++) {
        if (k + 2 < tiles) __pipeline_memcpy_async(&stages[(k + 2) % 3][t], x + (k + 2) * 32 + t, 16);
        __pipeline_commit();
        __pipeline_wait_prior(2);
        __syncthreads();
        y[k * 32 + t] = stages[k % 3][31 - t];
        __syncthreads();
    }
}

extern "C" __global__ void group_copy(const int *x, int *y) {
    extern __shared__ int window[];
    auto block = cg::this_thread_block();
    cg::memcpy_async(block, window, x + blockIdx.x * blockDim.x, sizeof(int) * blockDim.x);
    cg::wait(block);
    y[blockIdx.x * blockDim.x + threadIdx.x] = window[(threadIdx.x + 1) % blockDim.x];
}
