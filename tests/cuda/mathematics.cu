// Every mathematical function over an array; the test holds each against its true value.
#define UNARY(name, call)                                                    \
    extern "C" __global__ void f_##name(int n, const float *in, float *out) { \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                       \
        if (i < n) {                                                         \
            float x = in[i];                                                 \
            out[i] = call;                                                   \
        }                                                                    \
    }                                                                        \
    extern "C" __global__ void d_##name(int n, const double *in, double *out) { \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                       \
        if (i < n) {                                                         \
            double x = in[i];                                                \
            out[i] = call;                                                   \
        }                                                                    \
    }
#define BINARY(name, call)                                                                          \
    extern "C" __global__ void f_##name(int n, const float *in, const float *in2, float *out) {      \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                                              \
        if (i < n) {                                                                                \
            float x = in[i], y = in2[i];                                                            \
            out[i] = call;                                                                          \
        }                                                                                           \
    }                                                                                               \
    extern "C" __global__ void d_##name(int n, const double *in, const double *in2, double *out) {   \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                                              \
        if (i < n) {                                                                                \
            double x = in[i], y = in2[i];                                                           \
            out[i] = call;                                                                          \
        }                                                                                           \
    }
#define FAST(name, call)                                                     \
    extern "C" __global__ void f_##name(int n, const float *in, float *out) { \
        int i = blockIdx.x * blockDim.x + threadIdx.x;                       \
        if (i < n) {                                                         \
            float x = in[i];                                                 \
            out[i] = call;                                                   \
        }                                                                    \
    }

UNARY(exp, exp(x))
UNARY(exp2, exp2(x))
UNARY(exp10, exp10(x))
UNARY(expm1, expm1(x))
UNARY(log, log(x))
UNARY(log2, log2(x))
UNARY(log10, log10(x))
UNARY(log1p, log1p(x))
UNARY(sin, sin(x))
UNARY(cos, cos(x))
UNARY(tan, tan(x))
UNARY(sinpi, sinpi(x))
UNARY(cospi, cospi(x))
UNARY(asin, asin(x))
UNARY(acos, acos(x))
UNARY(atan, atan(x))
UNARY(sinh, sinh(x))
UNARY(cosh, cosh(x))
UNARY(tanh, tanh(x))
UNARY(asinh, asinh(x))
UNARY(acosh, acosh(x))
UNARY(atanh, atanh(x))
UNARY(sqrt, sqrt(x))
UNARY(rsqrt, rsqrt(x))
UNARY(cbrt, cbrt(x))
UNARY(rcbrt, rcbrt(x))
UNARY(erf, erf(x))
UNARY(erfc, erfc(x))
UNARY(erfinv, erfinv(x))
UNARY(normcdf, normcdf(x))
UNARY(lgamma, lgamma(x))
UNARY(tgamma, tgamma(x))
UNARY(floor, floor(x))
UNARY(ceil, ceil(x))
UNARY(trunc, trunc(x))
UNARY(round, round(x))
UNARY(rint, rint(x))
UNARY(fabs, fabs(x))
UNARY(logb, logb(x))
BINARY(pow, pow(x, y))
BINARY(atan2, atan2(x, y))
BINARY(hypot, hypot(x, y))
BINARY(fmod, fmod(x, y))
BINARY(remainder, remainder(x, y))
BINARY(fmin, fmin(x, y))
BINARY(fmax, fmax(x, y))
BINARY(fdim, fdim(x, y))
BINARY(copysign, copysign(x, y))
BINARY(nextafter, nextafter(x, y))
BINARY(divide, x / y)
FAST(fast_exp, __expf(x))
FAST(fast_exp10, __exp10f(x))
FAST(fast_log, __logf(x))
FAST(fast_log2, __log2f(x))
FAST(fast_log10, __log10f(x))
FAST(fast_sin, __sinf(x))
FAST(fast_cos, __cosf(x))
FAST(fast_tan, __tanf(x))
FAST(saturate, __saturatef(x))
FAST(reciprocal, __frcp_rn(x))

extern "C" __global__ void rounding(int n, const float *x, const float *y, float *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[8 * i] = __fadd_rz(x[i], y[i]);
    out[8 * i + 1] = __fadd_ru(x[i], y[i]);
    out[8 * i + 2] = __fmul_rd(x[i], y[i]);
    out[8 * i + 3] = __fmul_rn(x[i], y[i]);
    out[8 * i + 4] = __fmaf_rn(x[i], y[i], x[i]);
    out[8 * i + 5] = __fdiv_rn(x[i], y[i]);
    out[8 * i + 6] = __fsqrt_rn(fabsf(x[i]));
    out[8 * i + 7] = __fsub_rn(x[i], y[i]);
}

extern "C" __global__ void pieces(int n, const double *x, double *fraction, int *exponent, double *whole, double *part, double *scaled, int *kind) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    fraction[i] = frexp(x[i], &exponent[i]);
    part[i] = modf(x[i], &whole[i]);
    scaled[i] = ldexp(x[i], i % 60 - 30);
    kind[i] = (isnan(x[i]) ? 1 : 0) + (isinf(x[i]) ? 2 : 0) + (signbit(x[i]) ? 4 : 0) + (isfinite(x[i]) ? 8 : 0);
}
