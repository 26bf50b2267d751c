// Histograms with global atomics, with a shared copy per block, and one bin range per warp lane.

extern "C" __global__ void histogram_global(int n, const unsigned char *x, unsigned *bins) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&bins[x[i]], 1u);
}

extern "C" __global__ void histogram_shared(int n, const unsigned char *x, unsigned *bins) {
    __shared__ unsigned local[256];
    for (int b = threadIdx.x; b < 256; b += blockDim.x) local[b] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) atomicAdd(&local[x[i]], 1u);
    __syncthreads();
    for (int b = threadIdx.x; b < 256; b += blockDim.x)
        if (local[b]) atomicAdd(&bins[b], local[b]);
}

// Lanes with the same key elect one to add for all of them.
extern "C" __global__ void histogram_match(int n, const unsigned char *x, unsigned *bins) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned peers = __match_any_sync(__activemask(), x[i] & 15);
    if ((threadIdx.x & 31) == __ffs(peers) - 1) atomicAdd(&bins[x[i] & 15], (unsigned)__popc(peers));
}

extern "C" __global__ void histogram_float(int n, const float *x, float low, float high, int count, unsigned long long *bins) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float scaled = (x[i] - low) / (high - low) * count;
    int bin = (int)floorf(scaled);
    bin = max(0, min(count - 1, bin));
    atomicAdd(&bins[bin], 1ull);
}
