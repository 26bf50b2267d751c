// Prefix sums: Hillis-Steele, Blelloch, warp shuffles, and decoupled look-back in one pass over many blocks.

extern "C" __global__ void scan_hillis_steele(const int *x, int *out) {
    extern __shared__ int buffers[];
    int t = threadIdx.x, n = blockDim.x, from = 0, to = n;
    buffers[t] = x[blockIdx.x * n + t];
    __syncthreads();
    for (int offset = 1; offset < n; offset *= 2) {
        buffers[to + t] = buffers[from + t] + (t >= offset ? buffers[from + t - offset] : 0);
        int swap = from;
        from = to;
        to = swap;
        __syncthreads();
    }
    out[blockIdx.x * n + t] = buffers[from + t];
}

// Exclusive, work-efficient; the block has half as many threads as elements.
extern "C" __global__ void scan_blelloch(const float *x, float *out) {
    __shared__ float tree[256];
    int t = threadIdx.x, offset = 1, base = blockIdx.x * 256;
    tree[2 * t] = x[base + 2 * t];
    tree[2 * t + 1] = x[base + 2 * t + 1];
    for (int d = 128; d > 0; d >>= 1) {
        __syncthreads();
        if (t < d) tree[offset * (2 * t + 2) - 1] += tree[offset * (2 * t + 1) - 1];
        offset *= 2;
    }
    if (t == 0) tree[255] = 0.0f;
    for (int d = 1; d < 256; d *= 2) {
        offset >>= 1;
        __syncthreads();
        if (t < d) {
            int a = offset * (2 * t + 1) - 1, b = offset * (2 * t + 2) - 1;
            float swap = tree[a];
            tree[a] = tree[b];
            tree[b] += swap;
        }
    }
    __syncthreads();
    out[base + 2 * t] = tree[2 * t];
    out[base + 2 * t + 1] = tree[2 * t + 1];
}

__device__ int block_scan(int v, int *sums) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int d = 1; d < 32; d <<= 1) {
        int other = __shfl_up_sync(0xffffffffu, v, d);
        if (lane >= d) v += other;
    }
    if (lane == 31) sums[warp] = v;
    __syncthreads();
    if (warp == 0) {
        int s = lane < (int)(blockDim.x >> 5) ? sums[lane] : 0;
        for (int d = 1; d < 32; d <<= 1) {
            int other = __shfl_up_sync(0xffffffffu, s, d);
            if (lane >= d) s += other;
        }
        sums[lane] = s;
    }
    __syncthreads();
    return warp ? v + sums[warp - 1] : v;
}

extern "C" __global__ void scan_shuffle(int n, const int *x, int *out) {
    __shared__ int sums[32];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int v = block_scan(i < n ? x[i] : 0, sums);
    if (i < n) out[i] = v;
}

// Single pass over the whole array. Blocks take tiles in order of arrival; each publishes its own sum (state 1), then
// walks back over its predecessors until one has published its inclusive prefix (state 2).
extern "C" __global__ void scan_lookback(int n, const int *x, int *out, volatile unsigned long long *status, int *ticket) {
    __shared__ int sums[32];
    __shared__ int tile, before;
    if (threadIdx.x == 0) tile = atomicAdd(ticket, 1);
    __syncthreads();
    int i = tile * blockDim.x + threadIdx.x;
    int v = block_scan(i < n ? x[i] : 0, sums);
    int total = sums[(blockDim.x >> 5) - 1];
    if (threadIdx.x == 0) {
        int prefix = 0;
        if (tile > 0) {
            status[tile] = (1ull << 32) | (unsigned)total;
            __threadfence();
            for (int p = tile - 1; p >= 0;) {
                unsigned long long seen = status[p];
                int state = (int)(seen >> 32);
                if (state == 0) continue;
                prefix += (int)(unsigned)seen;
                if (state == 2) break;
                p--;
            }
        }
        __threadfence();
        status[tile] = (2ull << 32) | (unsigned)(prefix + total);
        before = prefix;
    }
    __syncthreads();
    if (i < n) out[i] = v + before;
}
