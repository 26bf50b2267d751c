// Single-precision mathematical functions.
//
// Accuracy: within the maximum errors of the CUDA C++ Programming Guide's table, "Mathematical Functions". Where CUDA's
// compiler uses an approximate instruction (ex2, lg2, rsqrt, sin, cos), so do these. The polynomials are minimax fits
// (Remez exchange at 120 digits) of the function named beside them, the highest power first; constants that are split
// into a sum of floats are rounded values of the remainders.
#pragma once
#pragma clang system_header

template <class T> __attribute__((device)) T __weft_fma(T a, T b, T c);
template <> __attribute__((device, always_inline)) inline float __weft_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
template <> __attribute__((device, always_inline)) inline double __weft_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
template <class T> __WEFT__ T __weft_poly(T, T sum) { return sum; }
template <class T, class... Rest> __WEFT__ T __weft_poly(T x, T sum, T next, Rest... rest) {
    return __weft_poly(x, __weft_fma(sum, x, next), rest...);
}

// ---------------------------------------------------------------- instructions
#define __WEFT_UNARY(NAME, OP)                             \
    __WEFT__ float NAME(float x) {                         \
        float r;                                           \
        asm(OP " %0, %1;" : "=f"(r) : "f"(x));             \
        return r;                                          \
    }
#define __WEFT_BINARY(NAME, OP)                                        \
    __WEFT__ float NAME(float x, float y) {                            \
        float r;                                                       \
        asm(OP " %0, %1, %2;" : "=f"(r) : "f"(x), "f"(y));             \
        return r;                                                      \
    }
#define __WEFT_ROUNDINGS(KIND, NAME, BEFORE, AFTER) \
    KIND(NAME##_rn, BEFORE ".rn" AFTER)             \
    KIND(NAME##_rz, BEFORE ".rz" AFTER)             \
    KIND(NAME##_ru, BEFORE ".rp" AFTER)             \
    KIND(NAME##_rd, BEFORE ".rm" AFTER)
__WEFT_UNARY(__weft_ex2, "ex2.approx.f32")
__WEFT_UNARY(__weft_lg2, "lg2.approx.f32")
__WEFT_UNARY(rsqrtf, "rsqrt.approx.f32")
__WEFT_UNARY(__sinf, "sin.approx.f32")
__WEFT_UNARY(__cosf, "cos.approx.f32")
__WEFT_UNARY(__saturatef, "cvt.sat.f32.f32")
__WEFT_ROUNDINGS(__WEFT_BINARY, __fadd, "add", ".f32")
__WEFT_ROUNDINGS(__WEFT_BINARY, __fsub, "sub", ".f32")
__WEFT_ROUNDINGS(__WEFT_BINARY, __fmul, "mul", ".f32")
__WEFT_ROUNDINGS(__WEFT_BINARY, __fdiv, "div", ".f32")
__WEFT_ROUNDINGS(__WEFT_UNARY, __frcp, "rcp", ".f32")
__WEFT_ROUNDINGS(__WEFT_UNARY, __fsqrt, "sqrt", ".f32")
__WEFT_BINARY(__fdividef, "div.approx.f32")
#define __WEFT_TERNARY(NAME, OP)                                               \
    __WEFT__ float NAME(float x, float y, float z) {                           \
        float r;                                                               \
        asm(OP " %0, %1, %2, %3;" : "=f"(r) : "f"(x), "f"(y), "f"(z));         \
        return r;                                                              \
    }
__WEFT_ROUNDINGS(__WEFT_TERNARY, __fmaf, "fma", ".f32")
#undef __WEFT_TERNARY
#undef __WEFT_UNARY
#undef __WEFT_BINARY
__WEFT__ float __frsqrt_rn(float x) { return __frcp_rn(__fsqrt_rn(x)); }
__WEFT__ float __expf(float x) { return __weft_ex2(x * 0x1.715476p+0f); }
__WEFT__ float __exp10f(float x) { return __weft_ex2(x * 0x1.a934f0p+1f); }
__WEFT__ float __log2f(float x) { return __weft_lg2(x); }
__WEFT__ float __logf(float x) { return __weft_lg2(x) * 0x1.62e430p-1f; }
__WEFT__ float __log10f(float x) { return __weft_lg2(x) * 0x1.344136p-2f; }
__WEFT__ float __powf(float x, float y) { return __weft_ex2(y * __weft_lg2(x)); }
__WEFT__ float __tanf(float x) { return __fdividef(__sinf(x), __cosf(x)); }
__WEFT__ void __sincosf(float x, float *s, float *c) {
    *s = __sinf(x);
    *c = __cosf(x);
}
__WEFT__ float __tanhf(float x) {
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// ---------------------------------------------------------------- exact functions
__WEFT__ float fabsf(float x) { return __builtin_fabsf(x); }
__WEFT__ float sqrtf(float x) { return __fsqrt_rn(x); }
__WEFT__ float fmaf(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
__WEFT__ float floorf(float x) { return __builtin_floorf(x); }
__WEFT__ float ceilf(float x) { return __builtin_ceilf(x); }
__WEFT__ float truncf(float x) { return __builtin_truncf(x); }
__WEFT__ float rintf(float x) { return __builtin_rintf(x); }
__WEFT__ float nearbyintf(float x) { return __builtin_rintf(x); }
__WEFT__ float copysignf(float x, float y) {
    return __uint_as_float((__float_as_uint(x) & 0x7fffffffu) | (__float_as_uint(y) & 0x80000000u));
}
__WEFT__ float roundf(float x) {  // halves away from zero
    float t = truncf(x);
    return copysignf(fabsf(x - t) >= 0.5f ? t + copysignf(1.0f, x) : t, x);
}
__WEFT__ float fminf(float x, float y) { return __builtin_fminf(x, y); }
__WEFT__ float fmaxf(float x, float y) { return __builtin_fmaxf(x, y); }
__WEFT__ float fdimf(float x, float y) { return x <= y ? 0.0f : x - y; }
__WEFT__ float fdividef(float x, float y) { return x / y; }
__WEFT__ float nanf(const char *) { return __uint_as_float(0x7fffffffu); }
__WEFT__ long lrintf(float x) { return (long)__float2ll_rn(x); }
__WEFT__ long long llrintf(float x) { return __float2ll_rn(x); }
__WEFT__ long lroundf(float x) { return (long)__float2ll_rz(roundf(x)); }
__WEFT__ long long llroundf(float x) { return __float2ll_rz(roundf(x)); }
__WEFT__ float nextafterf(float x, float y) {
    if (x != x || y != y) return x + y;
    if (x == y) return y;
    if (x == 0.0f) return copysignf(0x1p-149f, y);
    int bits = __float_as_int(x);
    return __int_as_float((x < y) == (x > 0.0f) ? bits + 1 : bits - 1);
}
__WEFT__ float frexpf(float x, int *exponent) {
    int bits = __float_as_int(x), e = (bits >> 23) & 255;
    if (e == 255 || x == 0.0f) {
        *exponent = 0;
        return x + x;
    }
    int scale = 0;
    if (e == 0) {
        bits = __float_as_int(x * 0x1p25f);
        e = (bits >> 23) & 255;
        scale = 25;
    }
    *exponent = e - 126 - scale;
    return __int_as_float((bits & 0x807fffff) | 0x3f000000);
}
__WEFT__ float ldexpf(float x, int n) {
    if (x == 0.0f || !(fabsf(x) < __int_as_float(0x7f800000))) return x + x;
    int e;
    float m = frexpf(x, &e);  // in [1/2, 1): only the last product can round
    n = n > 1000 ? 1000 : n < -1000 ? -1000 : n;
    e += n;
    if (e > 128) return copysignf(__int_as_float(0x7f800000), x);
    if (e < -152) return copysignf(0.0f, x);
    return e > -125 ? m * 2.0f * __int_as_float((e - 1 + 127) << 23) : m * __int_as_float((e + 60 + 127) << 23) * 0x1p-60f;
}
__WEFT__ float scalbnf(float x, int n) { return ldexpf(x, n); }
__WEFT__ float scalblnf(float x, long n) { return ldexpf(x, n < -400 ? -400 : n > 400 ? 400 : (int)n); }
__WEFT__ int ilogbf(float x) {
    if (x == 0.0f || x != x) return -2147483647 - 1;
    if (fabsf(x) == __int_as_float(0x7f800000)) return 2147483647;
    int e;
    frexpf(x, &e);
    return e - 1;
}
__WEFT__ float logbf(float x) {
    if (x != x) return x + x;
    if (x == 0.0f) return __int_as_float(0xff800000);
    if (fabsf(x) == __int_as_float(0x7f800000)) return fabsf(x);
    return (float)ilogbf(x);
}
__WEFT__ float modff(float x, float *whole) {
    float t = truncf(x);
    *whole = t;
    return copysignf(fabsf(x) == __int_as_float(0x7f800000) ? 0.0f : x - t, x);
}
// |x| = q * |y| + r exactly, by long division on the significands; returns r and the low bits of q.
__WEFT_LONG__ float __weft_divide(float x, float y, unsigned int *quotient) {
    int ex, ey;
    float fx = frexpf(fabsf(x), &ex), fy = frexpf(fabsf(y), &ey);
    unsigned int mx = (unsigned int)(fx * 0x1p24f), my = (unsigned int)(fy * 0x1p24f), q = 0;
    if (ex < ey) {
        *quotient = 0;
        return fabsf(x);
    }
    for (int k = ex - ey; k >= 0; k--) {
        q <<= 1;
        if (mx >= my) {
            mx -= my;
            q |= 1;
        }
        if (k) mx <<= 1;
    }
    *quotient = q;
    int e = ey - 24;
    return e < -126 ? (float)mx * __int_as_float((e + 64 + 127) << 23) * 0x1p-64f : (float)mx * __int_as_float((e + 127) << 23);
}
__WEFT__ float fmodf(float x, float y) {
    if (x != x || y != y || y == 0.0f || fabsf(x) == __int_as_float(0x7f800000)) return (x * y) / (x * y);
    if (fabsf(y) == __int_as_float(0x7f800000) || x == 0.0f) return x;
    unsigned int q;
    return copysignf(__weft_divide(x, y, &q), x);
}
__WEFT__ float remquof(float x, float y, int *quotient) {
    *quotient = 0;
    if (x != x || y != y || y == 0.0f || fabsf(x) == __int_as_float(0x7f800000)) return (x * y) / (x * y);
    if (fabsf(y) == __int_as_float(0x7f800000) || x == 0.0f) return x;
    unsigned int q;
    float r = __weft_divide(x, y, &q), a = fabsf(y), rest = a - r;
    if (r > rest || (r == rest && (q & 1))) {
        r = -rest;
        q++;
    }
    *quotient = (x < 0) != (y < 0) ? -(int)(q & 0x7fffffffu) : (int)(q & 0x7fffffffu);
    return r == 0.0f ? copysignf(0.0f, x) : x < 0 ? -r : r;
}
__WEFT__ float remainderf(float x, float y) {
    int q;
    return remquof(x, y, &q);
}

// ---------------------------------------------------------------- exponentials
// 2^n * v for -300 < n < 300
__WEFT__ float __weft_scale(float v, int n) {
    int half = n >> 1;
    return v * __int_as_float((half + 127) << 23) * __int_as_float((n - half + 127) << 23);
}
// e^x * 2^bias, x limited to [-106, 96]
__WEFT__ float __weft_exp(float x, int bias) {
    x = x < -106.0f ? -106.0f : x > 96.0f ? 96.0f : x;
    float n = rintf(x * 0x1.715476p+0f);
    float f = fmaf(x, 0x1.4ae0c0p-26f, fmaf(x, 0x1.715476p+0f, -n));
    return __weft_scale(__weft_ex2(f), (int)n + bias);
}
__WEFT__ float expf(float x) { return x != x ? x + x : __weft_exp(x, 0); }
__WEFT__ float exp2f(float x) { return __weft_ex2(x); }
__WEFT__ float exp10f(float x) {
    if (x != x) return x + x;
    x = x < -46.0f ? -46.0f : x > 42.0f ? 42.0f : x;
    float n = rintf(x * 0x1.a934f0p+1f);
    float f = fmaf(x, 0x1.2f346ep-24f, fmaf(x, 0x1.a934f0p+1f, -n));
    return __weft_scale(__weft_ex2(f), (int)n);
}
__WEFT__ float expm1f(float x) {
    if (x != x || x == 0.0f) return x + x;
    if (x < -18.0f) return -1.0f;
    if (x > 89.0f) return __int_as_float(0x7f800000);
    float n = rintf(x * 0x1.715476p+0f);
    float r = fmaf(n, 0x1.05c610p-29f, fmaf(n, -0x1.62e430p-1f, x));
    // (e^r - 1 - r) / r^2 on [-ln2/2, ln2/2]
    float p = __weft_poly(r, 0x1.6d7c44p-10f, 0x1.121076p-7f, 0x1.5554b2p-5f, 0x1.5554d8p-3f, 0.5f);
    p = fmaf(p * r, r, r);
    float s = __int_as_float(((int)n + (n == 128.0f ? 126 : 127)) << 23);
    float y = fmaf(p, s, n == 128.0f ? s : s - 1.0f);
    return n == 0.0f ? p : n == 128.0f ? y + y : y;
}

// ---------------------------------------------------------------- logarithms
// x = 2^e * (1 + f), f in [-1/3, 1/3); q = log(1 + f) - f. x positive, finite.
__WEFT__ float __weft_log_parts(float x, float *f, float *q) {
    float e = 0.0f;
    if (x < 0x1p-126f) {
        x *= 0x1p23f;
        e = -23.0f;
    }
    int i = (__float_as_int(x) - 0x3f2aaaab) & (int)0xff800000;
    *f = __int_as_float(__float_as_int(x) - i) - 1.0f;
    // (log(1 + f) - f + f^2 / 2) / f^3
    float p = __weft_poly(*f, -0x1.04f43ap-3f, 0x1.13203ap-3f, -0x1.f4cc7ap-4f, 0x1.211d8ep-3f, -0x1.558a52p-3f, 0x1.99adb6p-3f,
                          -0x1.ffff74p-3f, 0x1.55554cp-2f);
    *q = fmaf(p, *f, -0.5f) * (*f * *f);
    return fmaf((float)i, 0x1p-23f, e);
}
__WEFT__ float __weft_log_special(float x) {  // x is zero, negative, infinite or NaN
    return x == 0.0f ? __int_as_float(0xff800000) : x > 0.0f ? x : x != x ? x + x : __int_as_float(0x7fffffff);
}
__WEFT__ float logf(float x) {
    if (!(x > 0.0f && x < __int_as_float(0x7f800000))) return __weft_log_special(x);
    float f, q, e = __weft_log_parts(x, &f, &q);
    return fmaf(e, 0x1.62e430p-1f, fmaf(e, -0x1.05c610p-29f, q) + f);
}
__WEFT__ float log2f(float x) {
    if (!(x > 0.0f && x < __int_as_float(0x7f800000))) return __weft_log_special(x);
    float f, q, e = __weft_log_parts(x, &f, &q);
    return e + fmaf(f, 0x1.715476p+0f, fmaf(q, 0x1.715476p+0f, f * 0x1.4ae0c0p-26f));
}
__WEFT__ float log10f(float x) {
    if (!(x > 0.0f && x < __int_as_float(0x7f800000))) return __weft_log_special(x);
    float f, q, e = __weft_log_parts(x, &f, &q);
    float r = fmaf(f, 0x1.bcb7b2p-2f, fmaf(q, 0x1.bcb7b2p-2f, f * -0x1.5b235ep-27f));
    return fmaf(e, 0x1.344136p-2f, fmaf(e, -0x1.ec10c0p-27f, r));
}
__WEFT__ float log1pf(float x) {
    if (x == 0.0f) return x;
    if (!(x > -1.0f && x < __int_as_float(0x7f800000))) return x == -1.0f ? __int_as_float(0xff800000) : __weft_log_special(x);
    if (x > 0x1p60f) return logf(x);
    int i = (__float_as_int(1.0f + x) - 0x3f2aaaab) & (int)0xff800000;
    float s = __int_as_float(0x3f800000 - i), f = fmaf(x, s, s - 1.0f), e = (float)i * 0x1p-23f;
    float p = __weft_poly(f, -0x1.04f43ap-3f, 0x1.13203ap-3f, -0x1.f4cc7ap-4f, 0x1.211d8ep-3f, -0x1.558a52p-3f, 0x1.99adb6p-3f,
                          -0x1.ffff74p-3f, 0x1.55554cp-2f);
    return fmaf(e, 0x1.62e430p-1f, fmaf(fmaf(p, f, -0.5f), f * f, f));
}

// ---------------------------------------------------------------- powers and roots
__WEFT__ float __weft_pow_positive(float x, float y) {  // x positive, finite, not 1
    float e = 0.0f;
    if (x < 0x1p-126f) {
        x *= 0x1p24f;
        e = -24.0f;
    }
    int i = (__float_as_int(x) - 0x3f3504f3) & (int)0xff800000;
    float m = __int_as_float(__float_as_int(x) - i);
    e = fmaf((float)i, 0x1p-23f, e);
    // log(m) = 2 artanh(s), s = (m - 1) / (m + 1), kept as a sum of two floats
    float f = m - 1.0f, d = m + 1.0f, d_low = m - (d - 1.0f), r = 1.0f / d;
    float s = f * r, s_low = fmaf(-s, d_low, fmaf(-s, d, f)) * r, z = s * s;
    float t = z * __weft_poly(z, 0x1.31e89cp-3f, 0x1.995e8cp-3f, 0x1.55557ap-2f);  // (artanh(s) - s) / s
    float high = 2.0f * s, low = 2.0f * fmaf(s, t, s_low);
    float a = high * 0x1.715476p+0f;
    float b = fmaf(high, 0x1.715476p+0f, -a) + fmaf(high, 0x1.4ae0c0p-26f, low * 0x1.715476p+0f);
    float sum = e + a;
    b += (e - sum) + a;
    float product = sum * y;
    if (product > 140.0f) return __int_as_float(0x7f800000);
    if (product < -160.0f) return 0.0f;
    float rest = fmaf(sum, y, -product) + b * y, n = rintf(product);
    return __weft_scale(__weft_ex2((product - n) + rest), (int)n);
}
__WEFT__ float powf(float x, float y) {
    const float infinity = __int_as_float(0x7f800000);
    if (x == 1.0f || y == 0.0f) return 1.0f;
    if (x != x || y != y) return x + y;
    float a = fabsf(x), b = fabsf(y);
    bool whole = b >= 0x1p24f || truncf(y) == y, odd = b < 0x1p24f && whole && ((int)b & 1);
    if (b == infinity) return a == 1.0f ? 1.0f : (a > 1.0f) == (y > 0.0f) ? infinity : 0.0f;
    if (a == 0.0f || a == infinity) {
        float r = (a == 0.0f) == (y > 0.0f) ? 0.0f : infinity;
        return odd ? copysignf(r, x) : r;
    }
    if (x < 0.0f && !whole) return __int_as_float(0x7fffffff);
    float r = a == 1.0f ? 1.0f : __weft_pow_positive(a, y);
    return x < 0.0f && odd ? -r : r;
}
__WEFT__ float powif(float x, int n) { return powf(x, (float)n); }
__WEFT__ float cbrtf(float x) {
    float a = fabsf(x);
    if (!(a > 0.0f && a < __int_as_float(0x7f800000))) return x + x;
    float scale = 1.0f;
    if (a < 0x1p-100f) {
        a *= 0x1p60f;
        scale = 0x1p-20f;
    }
    float y = __weft_ex2(__weft_lg2(a) * 0x1.555556p-2f), square = y * y;
    // one Newton step: y - (y^3 - a) / (3 y^2), with the residual rounded once
    float residual = fmaf(square, y, -a) + fmaf(y, y, -square) * y;
    return copysignf(fmaf(-residual, __fdividef(0x1.555556p-2f, square), y) * scale, x);
}
__WEFT__ float rcbrtf(float x) {
    float a = fabsf(x);
    if (!(a > 0.0f && a < __int_as_float(0x7f800000))) return 1.0f / x;
    float scale = 1.0f;
    if (a < 0x1p-100f) {
        a *= 0x1p60f;
        scale = 0x1p20f;
    }
    float y = __weft_ex2(__weft_lg2(a) * -0x1.555556p-2f), square = y * y, ay = a * y;
    float error = fmaf(-ay, square, 1.0f) - fmaf(a, y, -ay) * square - fmaf(y, y, -square) * ay;  // 1 - a y^3
    return copysignf(fmaf(y * error, 0x1.555556p-2f, y) * scale, x);
}
// a power of two that brings v near 1, from its exponent
__WEFT__ float __weft_norm_scale(float v) {
    int e = (__float_as_int(v) >> 23) & 255;
    e = e < 4 ? 4 : e > 250 ? 250 : e;
    return __int_as_float((254 - e) << 23);
}
__WEFT__ float hypotf(float x, float y) {
    const float infinity = __int_as_float(0x7f800000);
    float a = fabsf(x), b = fabsf(y), high = fmaxf(a, b), low = fminf(a, b);
    if (a == infinity || b == infinity) return infinity;
    if (!(high > 0.0f) || a != a || b != b) return a + b;
    float s = __weft_norm_scale(high);
    high *= s, low *= s;
    return sqrtf(fmaf(high, high, low * low)) / s;
}
__WEFT__ float norm3df(float x, float y, float z) { return hypotf(hypotf(x, y), z); }
__WEFT__ float norm4df(float x, float y, float z, float w) { return hypotf(hypotf(x, y), hypotf(z, w)); }
__WEFT__ float rhypotf(float x, float y) { return 1.0f / hypotf(x, y); }
__WEFT__ float rnorm3df(float x, float y, float z) { return 1.0f / norm3df(x, y, z); }
__WEFT__ float rnorm4df(float x, float y, float z, float w) { return 1.0f / norm4df(x, y, z, w); }

// ---------------------------------------------------------------- trigonometry
// 2/pi, 64 bits a word (used from bit 0 on by the double-precision reduction, too)
static __attribute__((device)) const unsigned long long __weft_two_over_pi[20] = {
    0xa2f9836e4e441529ull, 0xfc2757d1f534ddc0ull, 0xdb6295993c439041ull, 0xfe5163abdebbc561ull, 0xb7246e3a424dd2e0ull,
    0x06492eea09d1921cull, 0xfe1deb1cb129a73eull, 0xe88235f52ebb4484ull, 0xe99c7026b45f7e41ull, 0x3991d639835339f4ull,
    0x9c845f8bbdf9283bull, 0x1ff897ffde05980full, 0xef2f118b5a0a6d1full, 0x6d367ecf27cb09b7ull, 0x4f463f669e5fea2dull,
    0x7527bac7ebe5f17bull, 0x3d0739f78a5292eaull, 0x6bfb5fb11f8d5d08ull, 0x56033046fc7b6babull, 0xf0cfbc209af4361dull};
__WEFT__ unsigned int __weft_two_over_pi_word(int i) {  // 32 bits a word, a word of zeros first
    if (i == 0) return 0;
    unsigned long long pair = __weft_two_over_pi[(i - 1) >> 1];
    return (unsigned int)((i & 1) ? pair >> 32 : pair);
}
// Payne and Hanek: the fraction of x * 2/pi from the bits of 2/pi that matter, in integers. |x| >= 2^16.
__WEFT_LONG__ float __weft_reduce_large(float x, int *quadrant) {
    unsigned int bits = __float_as_uint(x), m = (bits << 8) | 0x80000000u;
    int skip = (int)((bits >> 23) & 255) - 128, word = skip >> 5, shift = skip & 31;
    unsigned int w0 = __weft_two_over_pi_word(word), w1 = __weft_two_over_pi_word(word + 1);
    unsigned int w2 = __weft_two_over_pi_word(word + 2), w3 = __weft_two_over_pi_word(word + 3);
    unsigned int a = __funnelshift_l(w1, w0, shift), b = __funnelshift_l(w2, w1, shift), c = __funnelshift_l(w3, w2, shift);
    unsigned long long middle = (unsigned long long)m * b + (((unsigned long long)m * c) >> 32);
    unsigned long long p = ((unsigned long long)(m * a) << 32) + middle;  // quadrant in the top two bits
    int q = (int)(p >> 62);
    long long fraction = (long long)(p << 2);
    q += fraction < 0;
    float r = (float)((double)fraction * 0x1.921fb54442d18p-64);
    *quadrant = bits >> 31 ? -q : q;
    return bits >> 31 ? -r : r;
}
// x = quadrant * pi/2 + result, result in [-pi/4, pi/4] or a little beyond
__WEFT__ float __weft_reduce(float x, int *quadrant) {
    if (fabsf(x) < 0x1p16f) {
        float j = rintf(x * 0x1.45f306p-1f);
        *quadrant = (int)j;
        if (j == 0.0f) return x;
        return fmaf(j, 0x1.ee59dap-50f, fmaf(j, 0x1.777a5cp-25f, fmaf(j, -0x1.921fb6p+0f, x)));
    }
    if (!(fabsf(x) < __int_as_float(0x7f800000))) {
        *quadrant = 0;
        return x * 0.0f;
    }
    return __weft_reduce_large(x, quadrant);
}
__WEFT__ float __weft_sin_poly(float r) {
    float z = r * r;
    return fmaf(r * z, __weft_poly(z, -0x1.98fd28p-13f, 0x1.11066ap-7f, -0x1.555544p-3f), r);
}
__WEFT__ float __weft_cos_poly(float r) {
    float z = r * r;
    return fmaf(z, fmaf(z, __weft_poly(z, 0x1.99ab60p-16f, -0x1.6c0b52p-10f, 0x1.555548p-5f), -0.5f), 1.0f);
}
__WEFT__ float __weft_sin_quadrant(float r, int q) {
    float v = q & 1 ? __weft_cos_poly(r) : __weft_sin_poly(r);
    return q & 2 ? -v : v;
}
__WEFT__ float sinf(float x) {
    if (x == 0.0f) return x;
    int q;
    float r = __weft_reduce(x, &q);
    return __weft_sin_quadrant(r, q);
}
__WEFT__ float cosf(float x) {
    int q;
    float r = __weft_reduce(x, &q);
    return __weft_sin_quadrant(r, q + 1);
}
__WEFT__ void sincosf(float x, float *s, float *c) {
    int q;
    float r = __weft_reduce(x, &q);
    *s = x == 0.0f ? x : __weft_sin_quadrant(r, q);
    *c = __weft_sin_quadrant(r, q + 1);
}
__WEFT__ float tanf(float x) {
    int q;
    float r = __weft_reduce(x, &q), z = r * r;
    float t = fmaf(r * z, __weft_poly(z, 0x1.4144d6p-7f, 0x1.3bf3aep-9f, 0x1.9784d4p-6f, 0x1.b4874ep-5f, 0x1.113592p-3f, 0x1.5554b8p-2f), r);
    return q & 1 ? -1.0f / t : t;
}
// x modulo 2, exactly, then pi times the distance to the nearest multiple of 1/2
__WEFT__ float __weft_reduce_pi(float x, int *quadrant) {
    x = fmaf(-2.0f, rintf(x * 0.5f), x);
    float j = rintf(x + x), f = fmaf(j, -0.5f, x);
    *quadrant = (int)j;
    return fmaf(f, 0x1.921fb6p+1f, f * -0x1.777a5cp-24f);
}
__WEFT__ float sinpif(float x) {
    if (!(fabsf(x) < __int_as_float(0x7f800000))) return x * 0.0f;
    if (truncf(x) == x) return copysignf(0.0f, x);
    int q;
    float r = __weft_reduce_pi(x, &q);
    return __weft_sin_quadrant(r, q);
}
__WEFT__ float cospif(float x) {
    if (!(fabsf(x) < __int_as_float(0x7f800000))) return x * 0.0f;
    int q;
    float r = __weft_reduce_pi(x, &q);
    return __weft_sin_quadrant(r, q + 1) + 0.0f;
}
__WEFT__ void sincospif(float x, float *s, float *c) {
    *s = sinpif(x);
    *c = cospif(x);
}
__WEFT__ float __weft_asin_poly(float x, float z) {  // asin(x), z = x^2 <= 0.3
    return fmaf(x * z, __weft_poly(z, 0x1.8f4d6ep-5f, 0x1.4ab0b0p-6f, 0x1.7b4a36p-5f, 0x1.32bb88p-4f, 0x1.5556a8p-3f), x);
}
__WEFT__ float asinf(float x) {
    float a = fabsf(x);
    if (a <= 0.5f) return __weft_asin_poly(x, x * x);
    float z = fmaf(-0.5f, a, 0.5f);
    return copysignf(fmaf(-2.0f, __weft_asin_poly(sqrtf(z), z), 0x1.921fb6p+0f), x);
}
__WEFT__ float acosf(float x) {
    float a = fabsf(x);
    if (a <= 0.5f) return 0x1.921fb6p+0f - (__weft_asin_poly(x, x * x) + 0x1.777a5cp-25f);
    float z = fmaf(-0.5f, a, 0.5f), r = 2.0f * __weft_asin_poly(sqrtf(z), z);
    return x > 0.0f || x != x ? r : 0x1.921fb6p+1f - (r + 0x1.777a5cp-24f);
}
__WEFT__ float __weft_atan_poly(float t) {  // |t| <= 1
    float z = t * t;
    return fmaf(t * z, __weft_poly(z, 0x1.7edc18p-9f, -0x1.0c3124p-6f, 0x1.62020ep-5f, -0x1.355884p-4f, 0x1.b4e204p-4f, -0x1.230af6p-3f,
                                   0x1.9978f6p-3f, -0x1.5554dcp-2f), t);
}
__WEFT__ float atanf(float x) {
    float a = fabsf(x);
    float r = a > 1.0f ? 0x1.921fb6p+0f - __weft_atan_poly(1.0f / a) : __weft_atan_poly(a);
    return copysignf(r, x);
}
__WEFT__ float atan2f(float y, float x) {
    float a = fabsf(x), b = fabsf(y);
    if (a != a || b != b) return a + b;
    float high = fmaxf(a, b), low = fminf(a, b);
    float t = low == high ? (low == 0.0f ? 0.0f : 1.0f) : low / high;
    float r = __weft_atan_poly(t);
    if (b > a) r = 0x1.921fb6p+0f - r;
    if (__float_as_int(x) < 0) r = 0x1.921fb6p+1f - r;
    return copysignf(r, y);
}

// ---------------------------------------------------------------- hyperbolic functions
__WEFT__ float sinhf(float x) {
    float a = fabsf(x), z = x * x;
    if (a < 1.0f) return fmaf(x * z, __weft_poly(z, 0x1.ab3c62p-13f, 0x1.10f77cp-7f, 0x1.555598p-3f), x);
    if (x != x) return x + x;
    float e = __weft_exp(a, -1);
    return copysignf(e - 0.25f / e, x);
}
__WEFT__ float coshf(float x) {
    if (x != x) return x + x;
    float e = __weft_exp(fabsf(x), -1);
    return e + 0.25f / e;
}
__WEFT__ float tanhf(float x) {
    float a = fabsf(x), z = x * x;
    if (x == 0.0f) return x;
    if (a < 0.55f) return fmaf(x * z, __weft_poly(z, -0x1.825866p-8f, 0x1.54b8aap-6f, -0x1.b898e0p-5f, 0x1.1109aep-3f, -0x1.55553ep-2f), x);
    if (x != x) return x + x;
    return copysignf(1.0f - 2.0f / (expf(a + a) + 1.0f), x);
}
__WEFT__ float asinhf(float x) {
    float a = fabsf(x);
    if (a < 0x1p-12f) return x;
    if (a > 0x1p30f) return copysignf(logf(a) + 0x1.62e430p-1f, x);
    return copysignf(log1pf(fmaf(a, a / (1.0f + sqrtf(fmaf(a, a, 1.0f))), a)), x);
}
__WEFT__ float acoshf(float x) {
    float t = x - 1.0f;
    if (t > 0x1p30f) return logf(x) + 0x1.62e430p-1f;
    return log1pf(t + sqrtf(fmaf(t, t, t + t)));
}
__WEFT__ float atanhf(float x) {
    float a = fabsf(x);
    if (a < 0x1p-12f) return x;
    return copysignf(0.5f * log1pf((a + a) / (1.0f - a)), x);
}

// ---------------------------------------------------------------- error functions
__WEFT__ float __weft_erf_poly(float x) {  // |x| <= 1
    return x * __weft_poly(x * x, 0x1.496ae8p-14f, -0x1.a3f742p-11f, 0x1.5405bap-8f, -0x1.b7f90ep-6f, 0x1.ce2cf8p-4f, -0x1.81273ep-2f,
                           0x1.20dd74p+0f);
}
__WEFT__ float __weft_erfc_tail(float a) {  // erfc(a), 0.4 <= a
    if (a > 10.06f) return 0.0f;
    // e^(a^2) erfc(a) (1 + 2a), in t = (a - 4) / (a + 4)
    float t = (a - 4.0f) / (a + 4.0f);
    float p = __weft_poly(t, 0x1.cfe306p-11f, 0x1.cc6488p-8f, -0x1.045402p-6f, 0x1.2a631ap-5f, -0x1.10f310p-4f, 0x1.8046b6p-4f, -0x1.9da880p-4f,
                          0x1.16e970p-4f, 0x1.f7e2cep-7f, -0x1.1df1a8p-3f, 0x1.3ba592p+0f);
    float square = a * a, r = p / fmaf(2.0f, a, 1.0f) * expf(-square);
    return fmaf(-fmaf(a, a, -square), r, r);
}
__WEFT__ float erff(float x) {
    float a = fabsf(x);
    if (!(a >= 1.0f)) return x != x ? x + x : __weft_erf_poly(x);
    return copysignf(1.0f - __weft_erfc_tail(a), x);
}
__WEFT__ float erfcf(float x) {
    if (x != x) return x + x;
    if (fabsf(x) < 0.5f) return 1.0f - __weft_erf_poly(x);
    return x > 0.0f ? __weft_erfc_tail(x) : 2.0f - __weft_erfc_tail(-x);
}
__WEFT__ float normcdff(float x) {
    if (x != x) return x + x;
    x = x < -14.5f ? -14.5f : x > 14.5f ? 14.5f : x;
    float t = -x * 0x1.6a09e6p-1f, low = fmaf(-x, 0x1.9fcef4p-27f, fmaf(-x, 0x1.6a09e6p-1f, -t)), r = erfcf(t);
    if (t > 1.0f) r = fmaf(-2.0f * t * low, r, r);
    return 0.5f * r;
}
