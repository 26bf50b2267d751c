// Stream compaction: by prefix sum, by warp-aggregated atomics, by partition.

extern "C" __global__ void compact_block(int n, const int *x, int *out, int *count) {
    __shared__ int sums[256];
    int t = threadIdx.x;
    int base = 0;
    for (int start = 0; start < n; start += 256) {
        int i = start + t;
        int keep = i < n && x[i] % 3 == 0;
        sums[t] = keep;
        __syncthreads();
        for (int d = 1; d < 256; d *= 2) {
            int add = t >= d ? sums[t - d] : 0;
            __syncthreads();
            sums[t] += add;
            __syncthreads();
        }
        if (keep) out[base + sums[t] - 1] = x[i];
        base += sums[255];
        __syncthreads();
    }
    if (t == 0) *count = base;
}

extern "C" __global__ void compact_warp(int n, const int *x, int *out, int *count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    bool keep = i < n && x[i] > 0;
    unsigned votes = __ballot_sync(0xffffffffu, keep);
    int base = 0;
    if (lane == 0 && votes) base = atomicAdd(count, __popc(votes));
    base = __shfl_sync(0xffffffffu, base, 0);
    if (keep) out[base + __popc(votes & ((1u << lane) - 1))] = x[i];
}

// Run-length encoding: heads of runs by comparison, positions by a given scan.
extern "C" __global__ void run_heads(int n, const int *x, const int *position, int *value, int *start) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    if (i == 0 || x[i] != x[i - 1]) {
        value[position[i] - 1] = x[i];
        start[position[i] - 1] = i;
    }
}
