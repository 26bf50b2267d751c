// Sum of n floats: each warp adds up 32 * ITEMS neighbours, shuffles combine its lanes, shared memory combines the
// warps; one result per block.
constexpr int BLOCK = 256;
constexpr int ITEMS = 32;
constexpr int WARPS = BLOCK / 32;

__device__ float warp_sum(float value)
{
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
        value += __shfl_down_sync(0xffffffffu, value, step);
    return value;
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    block_sum(int n, const float *__restrict__ in, float *__restrict__ block_sums)
{
    __shared__ float partial[WARPS];
    int first = (blockIdx.x * WARPS + threadIdx.x / 32) * (32 * ITEMS);
    int i = first + threadIdx.x % 32;
    float sum = 0.0f;
    if (first + 32 * ITEMS <= n) {
#pragma unroll
        for (int k = 0; k < ITEMS; ++k)
            sum += in[i + k * 32];
    } else {
        for (; i < n; i += 32)
            sum += in[i];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = warp_sum(threadIdx.x < WARPS ? partial[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0)
            block_sums[blockIdx.x] = sum;
    }
}
