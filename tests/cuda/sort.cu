// Sorting: radix (three kernels a pass), bitonic (shared and global), merge, odd-even.

// ---- radix sort, 4 bits a pass: count digits per block, scan the counts, scatter stably
extern "C" __global__ void radix_count(int n, const unsigned *keys, int shift, int *counts) {
    __shared__ int local[16];
    if (threadIdx.x < 16) local[threadIdx.x] = 0;
    __syncthreads();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(&local[(keys[i] >> shift) & 15], 1);
    __syncthreads();
    if (threadIdx.x < 16) counts[threadIdx.x * gridDim.x + blockIdx.x] = local[threadIdx.x];
}

extern "C" __global__ void radix_scan(int n, int *counts) {
    __shared__ int chunk[256];
    int carry = 0;
    for (int base = 0; base < n; base += 256) {
        int i = base + threadIdx.x;
        int own = i < n ? counts[i] : 0;
        chunk[threadIdx.x] = own;
        __syncthreads();
        for (int d = 1; d < 256; d *= 2) {
            int add = threadIdx.x >= d ? chunk[threadIdx.x - d] : 0;
            __syncthreads();
            chunk[threadIdx.x] += add;
            __syncthreads();
        }
        if (i < n) counts[i] = carry + chunk[threadIdx.x] - own;
        carry += chunk[255];
        __syncthreads();
    }
}

extern "C" __global__ void radix_scatter(int n, const unsigned *in, unsigned *out, int shift, const int *offsets) {
    __shared__ unsigned char digits[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int digit = i < n ? (in[i] >> shift) & 15 : 255;
    digits[threadIdx.x] = digit;
    __syncthreads();
    if (i >= n) return;
    int rank = 0;
    for (unsigned k = 0; k < threadIdx.x; k++) rank += digits[k] == digit;
    out[offsets[digit * gridDim.x + blockIdx.x] + rank] = in[i];
}

// ---- bitonic
extern "C" __global__ void bitonic_shared(float *x) {
    extern __shared__ float tile[];
    unsigned t = threadIdx.x;
    float *data = x + blockIdx.x * blockDim.x;
    tile[t] = data[t];
    __syncthreads();
    for (unsigned size = 2; size <= blockDim.x; size *= 2) {
        for (unsigned stride = size / 2; stride > 0; stride /= 2) {
            unsigned other = t ^ stride;
            if (other > t) {
                bool up = (t & size) == 0;
                if ((tile[t] > tile[other]) == up) {
                    float swap = tile[t];
                    tile[t] = tile[other];
                    tile[other] = swap;
                }
            }
            __syncthreads();
        }
    }
    data[t] = tile[t];
}

extern "C" __global__ void bitonic_step(int *x, int size, int stride) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int other = i ^ stride;
    if (other <= i) return;
    int a = x[i], b = x[other];
    if ((a > b) == ((i & size) == 0)) {
        x[i] = b;
        x[other] = a;
    }
}

// ---- merge sort: each thread merges two runs of `width` elements
extern "C" __global__ void merge_pass(int n, const int *in, int *out, int width) {
    int start = (blockIdx.x * blockDim.x + threadIdx.x) * 2 * width;
    if (start >= n) return;
    int middle = min(start + width, n), end = min(start + 2 * width, n);
    int a = start, b = middle;
    for (int k = start; k < end; k++) {
        if (a < middle && (b >= end || in[a] <= in[b])) {
            out[k] = in[a++];
        } else {
            out[k] = in[b++];
        }
    }
}

// ---- merge path: each thread finds its share of the merged output by binary search
extern "C" __global__ void merge_path(const int *a, int na, const int *b, int nb, int *out, int per_thread) {
    int diagonal = min((int)(blockIdx.x * blockDim.x + threadIdx.x) * per_thread, na + nb);
    int low = max(0, diagonal - nb), high = min(diagonal, na);
    while (low < high) {
        int middle = (low + high) / 2;
        if (a[middle] <= b[diagonal - 1 - middle]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    int i = low, j = diagonal - low;
    for (int k = diagonal; k < min(diagonal + per_thread, na + nb); k++) {
        out[k] = j >= nb || (i < na && a[i] <= b[j]) ? a[i++] : b[j++];
    }
}

extern "C" __global__ void odd_even_sort(int n, short *x) {
    for (int phase = 0; phase < n; phase++) {
        int i = 2 * threadIdx.x + (phase & 1);
        if (i + 1 < n && x[i] > x[i + 1]) {
            short swap = x[i];
            x[i] = x[i + 1];
            x[i + 1] = swap;
        }
        __syncthreads();
    }
}

// Each thread sorts its own 16 keys in registers or local memory.
extern "C" __global__ void insertion_sort(int *x) {
    int keys[16];
    int *data = x + (blockIdx.x * blockDim.x + threadIdx.x) * 16;
    for (int k = 0; k < 16; k++) keys[k] = data[k];
    for (int k = 1; k < 16; k++) {
        int key = keys[k], j = k - 1;
        while (j >= 0 && keys[j] > key) {
            keys[j + 1] = keys[j];
            j--;
        }
        keys[j + 1] = key;
    }
    for (int k = 0; k < 16; k++) data[k] = keys[k];
}
