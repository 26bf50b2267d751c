// Matrix transposition: straight, through a shared tile, with padding against bank conflicts, in place.

extern "C" __global__ void transpose_naive(int rows, int cols, const float *x, float *y) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y * blockDim.y + threadIdx.y;
    if (r < rows && c < cols) y[c * rows + r] = x[r * cols + c];
}

template <int PAD> __device__ void transpose_tile(int rows, int cols, const float *x, float *y) {
    __shared__ float tile[32][32 + PAD];
    int c = blockIdx.x * 32 + threadIdx.x;
    for (int k = threadIdx.y; k < 32; k += 8) {
        int r = blockIdx.y * 32 + k;
        if (r < rows && c < cols) tile[k][threadIdx.x] = x[r * cols + c];
    }
    __syncthreads();
    int r = blockIdx.y * 32 + threadIdx.x;
    for (int k = threadIdx.y; k < 32; k += 8) {
        int column = blockIdx.x * 32 + k;
        if (r < rows && column < cols) y[column * rows + r] = tile[threadIdx.x][k];
    }
}

extern "C" __global__ void transpose_tiled(int rows, int cols, const float *x, float *y) {
    transpose_tile<0>(rows, cols, x, y);
}

extern "C" __global__ void transpose_padded(int rows, int cols, const float *x, float *y) {
    transpose_tile<1>(rows, cols, x, y);
}

extern "C" __global__ void transpose_in_place(int n, double *x) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y * blockDim.y + threadIdx.y;
    if (r >= n || c >= r) return;
    double swap = x[r * n + c];
    x[r * n + c] = x[c * n + r];
    x[c * n + r] = swap;
}

// A warp transposes a 32x32 tile of bytes with shuffles only.
extern "C" __global__ void transpose_shuffle(const int *x, int *y) {
    int lane = threadIdx.x;
    int row[32];
    for (int r = 0; r < 32; r++) row[r] = x[r * 32 + lane];
#pragma unroll
    for (int r = 0; r < 32; r++) {
        int column = 0;
#pragma unroll
        for (int k = 0; k < 32; k++) {
            int v = __shfl_sync(0xffffffffu, row[k], r);
            if (lane == k) column = v;
        }
        y[r * 32 + lane] = column;
    }
}
