// Half precision and bfloat16: scalar, packed, conversions, atomics.
#include <cuda_fp16.h>
#include <cuda_bf16.h>

extern "C" __global__ void half_axpy(int n, __half a, const __half *x, __half *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __hfma(a, x[i], y[i]);
}

extern "C" __global__ void half2_arithmetic(int pairs, const __half2 *x, const __half2 *y, __half2 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs) return;
    __half2 sum = __hadd2(x[i], y[i]), product = __hmul2(x[i], y[i]);
    __half2 fused = __hfma2(x[i], y[i], sum);
    out[4 * i] = sum;
    out[4 * i + 1] = product;
    out[4 * i + 2] = fused;
    out[4 * i + 3] = __hsub2(fused, __floats2half2_rn(1.0f, -2.0f));
}

extern "C" __global__ void half_operators(int n, const __half *x, const __half *y, __half *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __half a = x[i], b = y[i];
    __half c = a * b + a - b;
    if (a > b) c = -c;
    if (c == a) c = __float2half(0.0f);
    out[i] = c / (b * b + __float2half(1.0f));
}

extern "C" __global__ void half_convert(int n, const float *x, unsigned short *bits, float *back, int *rounded) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    __half h = __float2half_rn(x[i]);
    bits[i] = __half_as_ushort(h);
    back[i] = __half2float(h);
    rounded[i] = __half2int_rn(h);
}

extern "C" __global__ void half_dot(int pairs, const __half2 *x, const __half2 *y, float *out) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
        float2 a = __half22float2(x[i]), b = __half22float2(y[i]);
        sum += a.x * b.x + a.y * b.y;
    }
    atomicAdd(out, sum);
}

extern "C" __global__ void half_extremes(int n, const __half *x, const __half *y, __half *low, __half *high, __half *magnitude) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    low[i] = __hmin(x[i], y[i]);
    high[i] = __hmax(x[i], y[i]);
    magnitude[i] = __habs(x[i]);
}

extern "C" __global__ void bfloat_axpy(int n, float a, const __nv_bfloat16 *x, __nv_bfloat16 *y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __float2bfloat16(a * __bfloat162float(x[i]) + __bfloat162float(y[i]));
}

extern "C" __global__ void bfloat_packed(int pairs, const __nv_bfloat162 *x, const __nv_bfloat162 *y, __nv_bfloat162 *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pairs) return;
    out[2 * i] = __hfma2(x[i], y[i], x[i]);
    out[2 * i + 1] = __hmul2(x[i], y[i]);
}

extern "C" __global__ void half_atomic(int n, const __half2 *x, __half2 *total) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(total, x[i]);
}
