// Sum of n floats: two elements a thread, shared memory down to one warp, shuffles within it, one result per block.
constexpr int BLOCK = 256;

extern "C" __global__ void block_sum(int n, const float *__restrict__ in, float *__restrict__ block_sums)
{
    __shared__ float partial[BLOCK];
    int i = blockIdx.x * (2 * BLOCK) + threadIdx.x;
    float sum = 0.0f;
    if (i < n)
        sum = in[i];
    if (i + BLOCK < n)
        sum += in[i + BLOCK];
    partial[threadIdx.x] = sum;
    __syncthreads();
#pragma unroll
    for (int half = BLOCK / 2; half >= 32; half /= 2) {
        if (threadIdx.x < half)
            partial[threadIdx.x] = sum = sum + partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x < 32) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2)
            sum += __shfl_down_sync(0xffffffffu, sum, step);
        if (threadIdx.x == 0)
            block_sums[blockIdx.x] = sum;
    }
}
