// Where data lives: dynamic shared memory, globals, constants, locals, parameters by value.
struct Particle {
    float3 position;
    float mass;
    short tag;
    double energy;
};

struct Large {
    int numbers[1500];  // 6,000 bytes: more than the 4 KB of older limits
};

extern "C" __global__ void dynamic_shared(int n, const float *x, float *y) {
    extern __shared__ float window[];
    double *tail = (double *)(window + blockDim.x);  // two arrays in one allocation
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    window[threadIdx.x] = i < n ? x[i] : 0.0f;
    tail[threadIdx.x] = 2.0 * window[threadIdx.x];
    __syncthreads();
    int other = blockDim.x - 1 - threadIdx.x;
    if (i < n) y[i] = window[other] + (float)tail[other];
}

extern "C" __global__ void struct_by_value(Particle p, int n, const Particle *others, float *force, double *energy) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float dx = others[i].position.x - p.position.x;
    float dy = others[i].position.y - p.position.y;
    float dz = others[i].position.z - p.position.z;
    force[i] = p.mass * others[i].mass / (dx * dx + dy * dy + dz * dz + 1.0f) + p.tag;
    energy[i] = p.energy + others[i].energy;
}

extern "C" __global__ void large_parameter(Large data, int offset, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < 1500) out[i] = data.numbers[(i * 7 + offset) % 1500];
}

__constant__ int lookup[64];
__constant__ struct {
    float scale;
    int shift;
} settings = {2.5f, 3};
__device__ int counter;
__device__ float table[16] = {0, 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225};
__device__ int *published;

extern "C" __global__ void use_constants(int n, const int *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = settings.scale * lookup[x[i] & 63] + (float)(x[i] >> settings.shift);
}

extern "C" __global__ void use_globals(int n, const int *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = table[x[i] & 15];
    if (x[i] & 1) atomicAdd(&counter, 1);
    if (i == 0) published = &counter;
}

extern "C" __global__ void read_published(int *out) {
    if (threadIdx.x == 0) *out = *published;
}

// An array indexed by a run-time value must live in local memory.
extern "C" __global__ void local_array(int n, const int *x, int *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int counts[10];
    for (int k = 0; k < 10; k++) counts[k] = 0;
    unsigned v = x[i];
    do {
        counts[v % 10]++;
        v /= 10;
    } while (v);
    int best = 0;
    for (int k = 1; k < 10; k++)
        if (counts[k] > counts[best]) best = k;
    y[i] = best * 100 + counts[best];
}

extern "C" __global__ void byte_local(const unsigned char *key, int length, const unsigned char *in, unsigned char *out, int count) {
    // RC4: a 256-byte state per thread, swapped at data-dependent places
    unsigned char state[256];
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    for (int i = 0; i < 256; i++) state[i] = (unsigned char)i;
    int j = 0;
    for (int i = 0; i < 256; i++) {
        j = (j + state[i] + key[t * length + i % length]) & 255;
        unsigned char swap = state[i];
        state[i] = state[j];
        state[j] = swap;
    }
    int a = 0, b = 0;
    for (int k = 0; k < count; k++) {
        a = (a + 1) & 255;
        b = (b + state[a]) & 255;
        unsigned char swap = state[a];
        state[a] = state[b];
        state[b] = swap;
        out[t * count + k] = in[t * count + k] ^ state[(state[a] + state[b]) & 255];
    }
}

// The same function reads global, shared and local memory through a generic pointer.
__device__ __noinline__ int total(const int *p, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += p[i];
    return sum;
}

extern "C" __global__ void generic_pointers(const int *x, int *out) {
    __shared__ int staged[32];
    int own[4];
    staged[threadIdx.x] = x[threadIdx.x] * 2;
    __syncthreads();
    for (int k = 0; k < 4; k++) own[k] = x[(threadIdx.x + k) & 31] * 3;
    const int *where = threadIdx.x % 3 == 0 ? x : threadIdx.x % 3 == 1 ? staged : own;
    out[threadIdx.x] = total(where, 4);
}

extern "C" __global__ void heap(int n, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int *mine = (int *)malloc((i % 7 + 1) * sizeof(int));
    if (!mine) {
        out[i] = -1;
        return;
    }
    for (int k = 0; k <= i % 7; k++) mine[k] = i + k;
    int sum = 0;
    for (int k = 0; k <= i % 7; k++) sum += mine[k];
    free(mine);
    out[i] = sum;
}

extern "C" __global__ void copy_bytes(char *to, const char *from, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i * 24 + 24 <= n) memcpy(to + i * 24, from + i * 24, 24);
}
