// Matrices and vectors: gemm in three shapes, gemv, sparse products, factorisation.

extern "C" __global__ void sgemm_naive(int m, int n, int k, const float *a, const float *b, float *c) {
    int col = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= m || col >= n) return;
    float sum = 0.0f;
    for (int i = 0; i < k; i++) sum += a[row * k + i] * b[i * n + col];
    c[row * n + col] = sum;
}

extern "C" __global__ void sgemm_tiled(int m, int n, int k, const float *a, const float *b, float *c) {
    __shared__ float as[32][32], bs[32][32];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * 32 + ty, col = blockIdx.x * 32 + tx;
    float sum = 0.0f;
    for (int base = 0; base < k; base += 32) {
        as[ty][tx] = row < m && base + tx < k ? a[row * k + base + tx] : 0.0f;
        bs[ty][tx] = base + ty < k && col < n ? b[(base + ty) * n + col] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 32; i++) sum += as[ty][i] * bs[i][tx];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

// 64x64 tile of C per block of 64 threads, 8x8 outputs a thread. m, n multiples of 64, k of 8.
extern "C" __global__ void __launch_bounds__(64) sgemm_register(int m, int n, int k, float alpha, const float *__restrict__ a,
                                                               const float *__restrict__ b, float beta, float *__restrict__ c) {
    __shared__ float as[8][64], bs[8][64];
    int t = threadIdx.x, tx = t % 8, ty = t / 8;
    const float *a_tile = a + blockIdx.y * 64 * k, *b_tile = b + blockIdx.x * 64;
    float sums[8][8] = {};
    for (int base = 0; base < k; base += 8) {
        for (int i = 0; i < 8; i++) {
            as[i][t] = a_tile[t * k + base + i];
            bs[i][t] = b_tile[(base + i) * n + t];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float av[8], bv[8];
#pragma unroll
            for (int r = 0; r < 8; r++) {
                av[r] = as[i][ty * 8 + r];
                bv[r] = bs[i][tx * 8 + r];
            }
#pragma unroll
            for (int r = 0; r < 8; r++)
#pragma unroll
                for (int s = 0; s < 8; s++) sums[r][s] += av[r] * bv[s];
        }
        __syncthreads();
    }
    for (int r = 0; r < 8; r++)
        for (int s = 0; s < 8; s++) {
            float *out = c + (blockIdx.y * 64 + ty * 8 + r) * n + blockIdx.x * 64 + tx * 8 + s;
            *out = alpha * sums[r][s] + beta * *out;
        }
}

extern "C" __global__ void gemv_batched(int rows, int cols, const float *matrices, const float *vectors, float *out) {
    int batch = blockIdx.y, row = blockIdx.x * blockDim.x + threadIdx.x;
    extern __shared__ float vector[];
    for (int i = threadIdx.x; i < cols; i += blockDim.x) vector[i] = vectors[batch * cols + i];
    __syncthreads();
    if (row >= rows) return;
    const float *line = matrices + ((long long)batch * rows + row) * cols;
    float sum = 0.0f;
    for (int i = 0; i < cols; i++) sum = fmaf(line[i], vector[i], sum);
    out[batch * rows + row] = sum;
}

extern "C" __global__ void gemv_warp(int rows, int cols, const float *matrix, const float *vector, float *out) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int i = lane; i < cols; i += 32) sum += matrix[row * cols + i] * __ldg(&vector[i]);
    for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (lane == 0) out[row] = sum;
}

extern "C" __global__ void spmv_scalar(int rows, const int *start, const int *col, const float *value, const float *x, float *y) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int i = start[row]; i < start[row + 1]; i++) sum += value[i] * x[col[i]];
    y[row] = sum;
}

extern "C" __global__ void spmv_vector(int rows, const int *start, const int *col, const float *value, const float *x, float *y) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int i = start[row] + lane; i < start[row + 1]; i += 32) sum += value[i] * x[col[i]];
#pragma unroll
    for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, d);
    if (lane == 0) y[row] = sum;
}

extern "C" __global__ void coo_scatter(int count, const int *row, const int *col, const double *value, const double *x, double *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) atomicAdd(&y[row[i]], value[i] * x[col[i]]);
}

// LU factorisation of a small matrix per block, without pivoting.
extern "C" __global__ void lu_block(int n, double *matrices) {
    double *a = matrices + (size_t)blockIdx.x * n * n;
    for (int k = 0; k < n; k++) {
        __syncthreads();
        for (int i = k + 1 + threadIdx.x; i < n; i += blockDim.x) a[i * n + k] /= a[k * n + k];
        __syncthreads();
        for (int i = k + 1; i < n; i++)
            for (int j = k + 1 + threadIdx.x; j < n; j += blockDim.x) a[i * n + j] -= a[i * n + k] * a[k * n + j];
    }
}

// Levenshtein distance by anti-diagonals, one pair of strings per block.
extern "C" __global__ void edit_distance(int length, const char *left, const char *right, int *out) {
    extern __shared__ int rows[];
    const char *a = left + blockIdx.x * length, *b = right + blockIdx.x * length;
    int width = length + 1;
    int *current = rows, *previous = rows + width, *before = rows + 2 * width;
    for (int d = 0; d <= 2 * length; d++) {
        for (int i = threadIdx.x; i <= length; i += blockDim.x) {
            int j = d - i;
            if (j < 0 || j > length) continue;
            if (i == 0 || j == 0) {
                current[i] = i + j;
            } else {
                int change = before[i - 1] + (a[i - 1] != b[j - 1]);
                current[i] = min(change, min(previous[i - 1], previous[i]) + 1);
            }
        }
        __syncthreads();
        int *oldest = before;
        before = previous;
        previous = current;
        current = oldest;
    }
    if (threadIdx.x == 0) out[blockIdx.x] = previous[length];
}
