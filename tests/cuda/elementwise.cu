// One thread per element: saxpy, grid-stride loops, activation functions, an optimiser step.

extern "C" __global__ void saxpy(int n, float a, const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

extern "C" __global__ void grid_stride(int n, float a, const float *x, float *y) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = a * x[i] + y[i];
}

extern "C" __global__ void saxpy_float4(int quads, float a, const float4 *x, float4 *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= quads) return;
    float4 u = x[i], v = y[i];
    y[i] = make_float4(a * u.x + v.x, a * u.y + v.y, a * u.z + v.z, a * u.w + v.w);
}

extern "C" __global__ void add_3d(int nx, int ny, int nz, const double *a, const double *b, double *c) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    int z = blockIdx.z * blockDim.z + threadIdx.z;
    if (x >= nx || y >= ny || z >= nz) return;
    size_t i = ((size_t)z * ny + y) * nx + x;
    c[i] = a[i] + b[i];
}

extern "C" __global__ void gelu(int n, const float *x, float *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    y[i] = 0.5f * v * (1.0f + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
}

extern "C" __global__ void gelu_backward(int n, const float *x, const float *dy, float *dx) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    float cdf = 0.5f * (1.0f + erff(v * 0.7071067811865476f));
    float pdf = 0.3989422804014327f * expf(-0.5f * v * v);
    dx[i] = dy[i] * (cdf + v * pdf);
}

extern "C" __global__ void silu_mul(int n, const float *gate, const float *up, float *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = gate[i] / (1.0f + __expf(-gate[i])) * up[i];
}

extern "C" __global__ void adamw(int n, float *p, const float *g, float *m, float *v, float rate, float beta1,
                                 float beta2, float eps, float decay, int step) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float grad = g[i];
    float mi = m[i] = beta1 * m[i] + (1.0f - beta1) * grad;
    float vi = v[i] = beta2 * v[i] + (1.0f - beta2) * grad * grad;
    float m_hat = mi / (1.0f - powf(beta1, (float)step));
    float v_hat = vi / (1.0f - powf(beta2, (float)step));
    p[i] -= rate * (m_hat / (sqrtf(v_hat) + eps) + decay * p[i]);
}

extern "C" __global__ void polynomial_double(int n, const double *x, double *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const double c[6] = {0.5, -1.25, 3.0, 0.125, -0.75, 2.0};
    double sum = 0;
    for (int k = 5; k >= 0; k--) sum = fma(sum, x[i], c[k]);
    y[i] = sum;
}
