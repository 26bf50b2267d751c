// Sums and extremes of an array: through shared memory, warp shuffles and atomics.

extern "C" __global__ void reduce_shared(int n, const float *x, float *partial) {
    __shared__ float cache[256];
    unsigned t = threadIdx.x;
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    cache[t] = sum;
    __syncthreads();
    for (unsigned s = blockDim.x / 2; s > 0; s >>= 1) {
        if (t < s) cache[t] += cache[t + s];
        __syncthreads();
    }
    if (t == 0) partial[blockIdx.x] = cache[0];
}

// The interleaved form of many tutorials: `%` in the condition, divergent warps.
extern "C" __global__ void reduce_interleaved(const int *x, int *partial) {
    extern __shared__ int words[];
    unsigned t = threadIdx.x;
    words[t] = x[blockIdx.x * blockDim.x + t];
    __syncthreads();
    for (unsigned s = 1; s < blockDim.x; s *= 2) {
        if (t % (2 * s) == 0 && t + s < blockDim.x) words[t] += words[t + s];
        __syncthreads();
    }
    if (t == 0) partial[blockIdx.x] = words[0];
}

__device__ float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(0xffffffffu, v, offset);
    return v;
}

extern "C" __global__ void reduce_shuffle(int n, const float *x, float *total) {
    __shared__ float sums[32];
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    sum = warp_sum(sum);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = warp_sum(lane < (int)(blockDim.x / 32) ? sums[lane] : 0.0f);
        if (lane == 0) atomicAdd(total, sum);
    }
}

extern "C" __global__ void dot_xor(int n, const double *x, const double *y, double *out) {
    double sum = 0.0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i] * y[i];
    for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (threadIdx.x % 32 == 0) atomicAdd(out, sum);
}

extern "C" __global__ void arg_max(int n, const float *x, float *best, int *where) {
    __shared__ float values[128];
    __shared__ int places[128];
    int t = threadIdx.x;
    float value = -3.402823466e38f;
    int place = -1;
    for (int i = t; i < n; i += blockDim.x) {
        if (x[i] > value) {
            value = x[i];
            place = i;
        }
    }
    values[t] = value;
    places[t] = place;
    __syncthreads();
    for (int s = 64; s > 0; s /= 2) {
        if (t < s) {
            bool take = values[t + s] > values[t] || (values[t + s] == values[t] && places[t + s] < places[t]);
            if (take) {
                values[t] = values[t + s];
                places[t] = places[t + s];
            }
        }
        __syncthreads();
    }
    if (t == 0) {
        *best = values[0];
        *where = places[0];
    }
}

extern "C" __global__ void min_max_atomic(int n, const int *x, int *low, int *high) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicMin(low, x[i]);
    atomicMax(high, x[i]);
}

// The last block to finish adds up what the others left (threadfence idiom).
__device__ unsigned blocks_done = 0;

extern "C" __global__ void reduce_last_block(int n, const float *x, float *partial, float *total) {
    __shared__ float cache[128];
    __shared__ bool last;
    int t = threadIdx.x;
    float sum = 0.0f;
    for (int i = blockIdx.x * blockDim.x + t; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    cache[t] = sum;
    __syncthreads();
    for (int s = 64; s > 0; s /= 2) {
        if (t < s) cache[t] += cache[t + s];
        __syncthreads();
    }
    if (t == 0) {
        partial[blockIdx.x] = cache[0];
        __threadfence();
        last = atomicInc(&blocks_done, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && t == 0) {
        float all = 0.0f;
        for (unsigned b = 0; b < gridDim.x; b++) all += ((volatile float *)partial)[b];
        *total = all;
    }
}

extern "C" __global__ void block_votes(int n, const int *x, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int v = i < n ? x[i] : 1;
    int count = __syncthreads_count(v > 0);
    int all = __syncthreads_and(v > -5);
    int any = __syncthreads_or(v > 90);
    if (threadIdx.x == 0) {
        out[3 * blockIdx.x] = count;
        out[3 * blockIdx.x + 1] = all != 0;
        out[3 * blockIdx.x + 2] = any != 0;
    }
}
