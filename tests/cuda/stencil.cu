// Stencils in one, two and three dimensions, and convolutions with the filter in constant memory.

extern "C" __global__ void stencil_1d(int n, const float *x, float *y) {
    __shared__ float tile[128 + 6];
    int i = blockIdx.x * 128 + threadIdx.x, t = threadIdx.x + 3;
    tile[t] = i < n ? x[i] : 0.0f;
    if (threadIdx.x < 3) {
        tile[t - 3] = i >= 3 && i - 3 < n ? x[i - 3] : 0.0f;
        tile[t + 128] = i + 128 < n ? x[i + 128] : 0.0f;
    }
    __syncthreads();
    float sum = 0.0f;
    for (int k = -3; k <= 3; k++) sum += tile[t + k];
    if (i < n) y[i] = sum;
}

extern "C" __global__ void heat_2d(int nx, int ny, float k, const float *u, float *v) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= nx || y >= ny) return;
    int i = y * nx + x;
    if (x == 0 || y == 0 || x == nx - 1 || y == ny - 1) {
        v[i] = u[i];
    } else {
        v[i] = u[i] + k * (u[i - 1] + u[i + 1] + u[i - nx] + u[i + nx] - 4.0f * u[i]);
    }
}

extern "C" __global__ void jacobi_3d(int n, const double *u, double *v) {
    int x = blockIdx.x * blockDim.x + threadIdx.x + 1;
    int y = blockIdx.y * blockDim.y + threadIdx.y + 1;
    int z = blockIdx.z * blockDim.z + threadIdx.z + 1;
    if (x >= n - 1 || y >= n - 1 || z >= n - 1) return;
    int plane = n * n, i = z * plane + y * n + x;
    v[i] = (u[i - 1] + u[i + 1] + u[i - n] + u[i + n] + u[i - plane] + u[i + plane]) / 6.0;
}

// Marches through z with the plane in shared memory and the neighbours above and below in registers.
extern "C" __global__ void stencil_3d_march(int nx, int ny, int nz, const float *u, float *v) {
    __shared__ float plane[10][18];
    int tx = threadIdx.x + 1, ty = threadIdx.y + 1;
    int x = blockIdx.x * 16 + tx, y = blockIdx.y * 8 + ty;
    int i = y * nx + x;
    bool inside = x < nx - 1 && y < ny - 1;
    float below = inside ? u[i] : 0.0f, here = inside ? u[i + nx * ny] : 0.0f;
    for (int z = 1; z < nz - 1; z++) {
        int j = i + z * nx * ny;
        float above = inside ? u[j + nx * ny] : 0.0f;
        __syncthreads();
        if (inside) {
            plane[ty][tx] = here;
            if (tx == 1) plane[ty][0] = u[j - 1];
            if (tx == 16 || x == nx - 2) plane[ty][tx + 1] = u[j + 1];
            if (ty == 1) plane[0][tx] = u[j - nx];
            if (ty == 8 || y == ny - 2) plane[ty + 1][tx] = u[j + nx];
        }
        __syncthreads();
        if (inside)
            v[j] = 0.4f * here + 0.1f * (below + above + plane[ty][tx - 1] + plane[ty][tx + 1] + plane[ty - 1][tx] + plane[ty + 1][tx]);
        below = here;
        here = above;
    }
}

__constant__ float taps[9];
__constant__ float filter[5][5] = {{1, 4, 6, 4, 1}, {4, 16, 24, 16, 4}, {6, 24, 36, 24, 6}, {4, 16, 24, 16, 4}, {1, 4, 6, 4, 1}};

extern "C" __global__ void convolve_1d(int n, const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0.0f;
    for (int k = 0; k < 9; k++) {
        int j = i + k - 4;
        if (j >= 0 && j < n) sum += taps[k] * x[j];
    }
    y[i] = sum;
}

extern "C" __global__ void convolve_2d(int width, int height, const float *x, float *y) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y * blockDim.y + threadIdx.y;
    if (c >= width || r >= height) return;
    float sum = 0.0f;
    for (int dr = -2; dr <= 2; dr++)
        for (int dc = -2; dc <= 2; dc++) {
            int rr = min(max(r + dr, 0), height - 1), cc = min(max(c + dc, 0), width - 1);
            sum += filter[dr + 2][dc + 2] * x[rr * width + cc];
        }
    y[r * width + c] = sum / 256.0f;
}

// A separable box filter on bytes with saturation, as image code has it.
extern "C" __global__ void sobel_u8(int width, int height, const unsigned char *image, unsigned char *edges) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y * blockDim.y + threadIdx.y;
    if (c >= width || r >= height) return;
    int out = 0;
    if (c > 0 && r > 0 && c < width - 1 && r < height - 1) {
        const unsigned char *p = image + r * width + c;
        int gx = p[-width + 1] + 2 * p[1] + p[width + 1] - p[-width - 1] - 2 * p[-1] - p[width - 1];
        int gy = p[width - 1] + 2 * p[width] + p[width + 1] - p[-width - 1] - 2 * p[-width] - p[-width + 1];
        out = min(255, abs(gx) + abs(gy));
    }
    edges[r * width + c] = (unsigned char)out;
}

extern "C" __global__ void life(int width, int height, const unsigned char *now, unsigned char *next) {
    int c = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y * blockDim.y + threadIdx.y;
    if (c >= width || r >= height) return;
    int alive = 0;
    for (int dr = -1; dr <= 1; dr++)
        for (int dc = -1; dc <= 1; dc++)
            if (dr || dc) alive += now[(r + dr + height) % height * width + (c + dc + width) % width];
    next[r * width + c] = alive == 3 || (alive == 2 && now[r * width + c]);
}
