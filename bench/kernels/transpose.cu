// out = transpose(in), n x n floats, n a multiple of 32: 32 x 32 tiles, block (32, 8), grid (n / 32, n / 32).
constexpr int TILE = 32;
constexpr int ROWS = 8;

extern "C" __global__ void transpose(int n, const float *__restrict__ in, float *__restrict__ out)
{
    __shared__ float tile[TILE][TILE + 1]; // the odd pitch keeps the banks of a column apart
    int x = blockIdx.x * TILE + threadIdx.x;
    int y = blockIdx.y * TILE + threadIdx.y;
#pragma unroll
    for (int j = 0; j < TILE; j += ROWS)
        tile[threadIdx.y + j][threadIdx.x] = in[(y + j) * n + x];
    __syncthreads();
    x = blockIdx.y * TILE + threadIdx.x;
    y = blockIdx.x * TILE + threadIdx.y;
#pragma unroll
    for (int j = 0; j < TILE; j += ROWS)
        out[(y + j) * n + x] = tile[threadIdx.x][threadIdx.y + j];
}
