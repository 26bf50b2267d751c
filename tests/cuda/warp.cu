// Warp-wide operations: votes, shuffles with width, matching, integer reductions, partial masks.

extern "C" __global__ void votes(const int *x, unsigned *ballot, int *any, int *all) {
    int v = x[threadIdx.x];
    ballot[threadIdx.x] = __ballot_sync(0xffffffffu, v > 0);
    any[threadIdx.x] = __any_sync(0xffffffffu, v > 5);
    all[threadIdx.x] = __all_sync(0xffffffffu, v > -5);
}

extern "C" __global__ void shuffles(const int *x, int *out) {
    int v = x[threadIdx.x], n = blockDim.x, t = threadIdx.x;
    out[t] = __shfl_sync(0xffffffffu, v, (t * 5) & 31);
    out[n + t] = __shfl_up_sync(0xffffffffu, v, 3, 16);
    out[2 * n + t] = __shfl_down_sync(0xffffffffu, v, 2, 8);
    out[3 * n + t] = __shfl_xor_sync(0xffffffffu, v, 5);
    out[4 * n + t] = __shfl_sync(0xffffffffu, v, 1, 4);
}

extern "C" __global__ void shuffle_wide(const double *x, double *out) {
    out[threadIdx.x] = __shfl_sync(0xffffffffu, x[threadIdx.x], 31 - (threadIdx.x & 31));
}

extern "C" __global__ void matches(const int *x, unsigned *any, unsigned *all, int *equal) {
    int same;
    any[threadIdx.x] = __match_any_sync(0xffffffffu, x[threadIdx.x]);
    all[threadIdx.x] = __match_all_sync(0xffffffffu, x[threadIdx.x] >> 8, &same);
    equal[threadIdx.x] = same;
}

extern "C" __global__ void reductions(const int *x, int *out) {
    int t = threadIdx.x, n = blockDim.x;
    out[t] = __reduce_add_sync(0xffffffffu, x[t]);
    out[n + t] = __reduce_min_sync(0xffffffffu, x[t]);
    out[2 * n + t] = __reduce_max_sync(0xffffffffu, x[t]);
    out[3 * n + t] = (int)__reduce_and_sync(0xffffffffu, (unsigned)x[t]);
    out[4 * n + t] = (int)__reduce_or_sync(0xffffffffu, (unsigned)x[t]);
    out[5 * n + t] = (int)__reduce_xor_sync(0xffffffffu, (unsigned)x[t]);
}

// Even and odd lanes take different sides, each with its own mask.
extern "C" __global__ void partial_masks(const int *x, int *out) {
    int t = threadIdx.x, v = x[t];
    if (t & 1) {
        v += __shfl_xor_sync(0xaaaaaaaau, v, 2);
        v = __popc(__ballot_sync(0xaaaaaaaau, v > 0));
    } else {
        v = __shfl_sync(0x55555555u, v, 4) * 2;
        v += __reduce_add_sync(0x55555555u, 1);
    }
    __syncwarp();
    out[t] = v;
}

extern "C" __global__ void active_masks(const int *x, unsigned *out) {
    int t = threadIdx.x;
    unsigned mask = 0;
    if (x[t] > 0) {
        mask = __activemask();
    }
    out[t] = x[t] > 0 ? (mask >> (t & 31)) & 1u : 7u;
}

// A bitonic sort of 32 keys by shuffles.
extern "C" __global__ void warp_sort(int *x) {
    int lane = threadIdx.x & 31, v = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int size = 2; size <= 32; size *= 2)
        for (int stride = size / 2; stride; stride /= 2) {
            int other = __shfl_xor_sync(0xffffffffu, v, stride);
            bool up = (lane & size) == 0, low = (lane & stride) == 0;
            v = up == low ? min(v, other) : max(v, other);
        }
    x[blockIdx.x * blockDim.x + threadIdx.x] = v;
}

extern "C" __global__ void shared_exchange(const int *x, int *y) {
    __shared__ int slots[64];
    int t = threadIdx.x;
    slots[t] = x[t];
    __syncwarp();
    int v = slots[t ^ 1];
    __syncwarp();
    slots[t ^ 1] = v * 2;
    __syncwarp();
    y[t] = slots[t];
}
