// n-body, Mandelbrot, Monte Carlo, k-means: loops whose trip counts or data differ between threads.

extern "C" __global__ void nbody(int n, const float4 *body, float3 *force, float soft) {
    __shared__ float4 tile[64];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float4 me = i < n ? body[i] : make_float4(0, 0, 0, 0);
    float3 a = make_float3(0.0f, 0.0f, 0.0f);
    for (int base = 0; base < n; base += 64) {
        int j = base + threadIdx.x;
        tile[threadIdx.x] = j < n ? body[j] : make_float4(0, 0, 0, 0);
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < 64; k++) {
            float dx = tile[k].x - me.x, dy = tile[k].y - me.y, dz = tile[k].z - me.z;
            float inverse = rsqrtf(dx * dx + dy * dy + dz * dz + soft);
            float s = tile[k].w * inverse * inverse * inverse;
            a.x += dx * s;
            a.y += dy * s;
            a.z += dz * s;
        }
        __syncthreads();
    }
    if (i < n) force[i] = a;
}

extern "C" __global__ void mandelbrot(int width, int height, int limit, int *out) {
    int px = blockIdx.x * blockDim.x + threadIdx.x, py = blockIdx.y * blockDim.y + threadIdx.y;
    if (px >= width || py >= height) return;
    double cx = -2.0 + 3.0 * px / width, cy = -1.5 + 3.0 * py / height, x = 0, y = 0;
    int count = 0;
    while (count < limit && x * x + y * y <= 4.0) {
        double next = __dadd_rn(__dsub_rn(__dmul_rn(x, x), __dmul_rn(y, y)), cx);
        y = __dadd_rn(__dmul_rn(2.0, __dmul_rn(x, y)), cy);
        x = next;
        count++;
    }
    out[py * width + px] = count;
}

__device__ unsigned xorshift(unsigned &state) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

extern "C" __global__ void monte_carlo_pi(int samples, unsigned seed, unsigned *inside) {
    unsigned state = seed + 7919u * (blockIdx.x * blockDim.x + threadIdx.x) + 1u;
    unsigned hits = 0;
    for (int k = 0; k < samples; k++) {
        unsigned long long x = xorshift(state) >> 8, y = xorshift(state) >> 8;
        if (x * x + y * y < (1ull << 48)) hits++;
    }
    for (int d = 16; d; d >>= 1) hits += __shfl_down_sync(0xffffffffu, hits, d);
    if (threadIdx.x % 32 == 0) atomicAdd(inside, hits);
}

// Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3").
extern "C" __global__ void philox(unsigned key0, unsigned key1, uint4 *out) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    uint4 c = make_uint4(i, 0, 0, 0);
    for (int round = 0; round < 10; round++) {
        unsigned low0 = 0xD2511F53u * c.x, high0 = __umulhi(0xD2511F53u, c.x);
        unsigned low1 = 0xCD9E8D57u * c.z, high1 = __umulhi(0xCD9E8D57u, c.z);
        c = make_uint4(high1 ^ c.y ^ key0, low1, high0 ^ c.w ^ key1, low0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    out[i] = c;
}

extern "C" __global__ void kmeans_assign(int n, int k, int dims, const float *points, const float *centres, int *label,
                                         float *sums, int *counts) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int best = 0;
    float nearest = 3.4e38f;
    for (int c = 0; c < k; c++) {
        float distance = 0.0f;
        for (int d = 0; d < dims; d++) {
            float difference = points[i * dims + d] - centres[c * dims + d];
            distance += difference * difference;
        }
        if (distance < nearest) {
            nearest = distance;
            best = c;
        }
    }
    label[i] = best;
    for (int d = 0; d < dims; d++) atomicAdd(&sums[best * dims + d], points[i * dims + d]);
    atomicAdd(&counts[best], 1);
}

// Radix-2 FFT of 256 points per block in shared memory.
extern "C" __global__ void fft_256(const float2 *in, float2 *out) {
    __shared__ float2 data[256];
    int t = threadIdx.x;
    for (int k = t; k < 256; k += blockDim.x) data[__brev(k) >> 24] = in[blockIdx.x * 256 + k];
    __syncthreads();
    for (int half = 1; half < 256; half *= 2) {
        int position = t % half, a = t / half * 2 * half + position, b = a + half;
        float sine, cosine;
        sincosf(-3.14159265358979f * position / half, &sine, &cosine);
        float2 u = data[a], v = data[b];
        float2 w = make_float2(v.x * cosine - v.y * sine, v.x * sine + v.y * cosine);
        data[a] = make_float2(u.x + w.x, u.y + w.y);
        data[b] = make_float2(u.x - w.x, u.y - w.y);
        __syncthreads();
    }
    for (int k = t; k < 256; k += blockDim.x) out[blockIdx.x * 256 + k] = data[k];
}

// Black-Scholes call prices.
extern "C" __global__ void black_scholes(int n, const float *spot, const float *strike, const float *years, float rate,
                                         float volatility, float *call) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float root = sqrtf(years[i]);
    float d1 = (logf(spot[i] / strike[i]) + (rate + 0.5f * volatility * volatility) * years[i]) / (volatility * root);
    float d2 = d1 - volatility * root;
    call[i] = spot[i] * normcdff(d1) - strike[i] * expf(-rate * years[i]) * normcdff(d2);
}
