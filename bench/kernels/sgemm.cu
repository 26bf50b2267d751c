// C = A B, row-major, n a multiple of the tile.

// One output a thread, 32 x 32 tiles of A and B in shared memory; block (32, 32), grid (n / 32, n / 32).
extern "C" __global__ void sgemm_tile32(int n, const float *__restrict__ a, const float *__restrict__ b,
                                        float *__restrict__ c)
{
    __shared__ float a_tile[32][32];
    __shared__ float b_tile[32][32];
    int row = blockIdx.y * 32 + threadIdx.y;
    int column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    for (int start = 0; start < n; start += 32) {
        a_tile[threadIdx.y][threadIdx.x] = a[row * n + start + threadIdx.x];
        b_tile[threadIdx.y][threadIdx.x] = b[(start + threadIdx.y) * n + column];
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 32; ++k)
            sum += a_tile[threadIdx.y][k] * b_tile[k][threadIdx.x];
        __syncthreads();
    }
    c[row * n + column] = sum;
}

// 8 x 8 outputs a thread, 128 x 128 outputs a block, 8 deep; block (16, 16), grid (n / 128, n / 128).
// A thread's columns are two groups of four, 64 apart, so that its shared-memory reads are float4 without conflicts.
constexpr int EDGE = 128;
constexpr int DEPTH = 8;

extern "C" __global__ void __launch_bounds__(256) sgemm_8x8(int n, const float *__restrict__ a,
                                                            const float *__restrict__ b, float *__restrict__ c)
{
    __shared__ __align__(16) float a_tile[DEPTH][EDGE]; // transposed
    __shared__ __align__(16) float b_tile[DEPTH][EDGE];
    int tid = threadIdx.y * 16 + threadIdx.x;
    const float *a_block = a + blockIdx.y * EDGE * n;
    const float *b_block = b + blockIdx.x * EDGE;
    int a_row = tid / 2, a_column = tid % 2 * 4;
    int b_row = tid / 32, b_column = tid % 32 * 4;

    float sums[8][8] = {};
    for (int start = 0; start < n; start += DEPTH) {
        float4 a4 = *reinterpret_cast<const float4 *>(&a_block[a_row * n + start + a_column]);
        float4 b4 = *reinterpret_cast<const float4 *>(&b_block[(start + b_row) * n + b_column]);
        a_tile[a_column + 0][a_row] = a4.x;
        a_tile[a_column + 1][a_row] = a4.y;
        a_tile[a_column + 2][a_row] = a4.z;
        a_tile[a_column + 3][a_row] = a4.w;
        *reinterpret_cast<float4 *>(&b_tile[b_row][b_column]) = b4;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            float a_values[8], b_values[8];
            *reinterpret_cast<float4 *>(&a_values[0]) = *reinterpret_cast<float4 *>(&a_tile[k][threadIdx.y * 4]);
            *reinterpret_cast<float4 *>(&a_values[4]) = *reinterpret_cast<float4 *>(&a_tile[k][64 + threadIdx.y * 4]);
            *reinterpret_cast<float4 *>(&b_values[0]) = *reinterpret_cast<float4 *>(&b_tile[k][threadIdx.x * 4]);
            *reinterpret_cast<float4 *>(&b_values[4]) = *reinterpret_cast<float4 *>(&b_tile[k][64 + threadIdx.x * 4]);
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    sums[i][j] += a_values[i] * b_values[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        int row = blockIdx.y * EDGE + i / 4 * 64 + threadIdx.y * 4 + i % 4;
        float *out = &c[row * n + blockIdx.x * EDGE + threadIdx.x * 4];
        *reinterpret_cast<float4 *>(out) = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
        *reinterpret_cast<float4 *>(out + 64) = make_float4(sums[i][4], sums[i][5], sums[i][6], sums[i][7]);
    }
}
