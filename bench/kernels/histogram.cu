// Histogram of bytes into 256 bins: counts in shared memory, added to the result once per block. Four bytes a load.
constexpr int BINS = 256;

extern "C" __global__ void histogram(int words, const unsigned *__restrict__ in, unsigned *__restrict__ bins)
{
    __shared__ unsigned counts[BINS];
    for (int i = threadIdx.x; i < BINS; i += blockDim.x)
        counts[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < words; i += gridDim.x * blockDim.x) {
        unsigned word = in[i];
        atomicAdd(&counts[word & 255], 1);
        atomicAdd(&counts[word >> 8 & 255], 1);
        atomicAdd(&counts[word >> 16 & 255], 1);
        atomicAdd(&counts[word >> 24], 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BINS; i += blockDim.x)
        if (counts[i])
            atomicAdd(&bins[i], counts[i]);
}
