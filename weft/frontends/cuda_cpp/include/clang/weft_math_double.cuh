// Double-precision mathematical functions. Accuracy and provenance as in weft_math.cuh.
#pragma once
#pragma clang system_header

#define __WEFT_BINARY(NAME, OP)                                        \
    __WEFT__ double NAME(double x, double y) {                         \
        double r;                                                      \
        asm(OP " %0, %1, %2;" : "=d"(r) : "d"(x), "d"(y));             \
        return r;                                                      \
    }
#define __WEFT_UNARY(NAME, OP)                             \
    __WEFT__ double NAME(double x) {                       \
        double r;                                          \
        asm(OP " %0, %1;" : "=d"(r) : "d"(x));             \
        return r;                                          \
    }
#define __WEFT_TERNARY(NAME, OP)                                               \
    __WEFT__ double NAME(double x, double y, double z) {                       \
        double r;                                                              \
        asm(OP " %0, %1, %2, %3;" : "=d"(r) : "d"(x), "d"(y), "d"(z));         \
        return r;                                                              \
    }
__WEFT_ROUNDINGS(__WEFT_BINARY, __dadd, "add", ".f64")
__WEFT_ROUNDINGS(__WEFT_BINARY, __dsub, "sub", ".f64")
__WEFT_ROUNDINGS(__WEFT_BINARY, __dmul, "mul", ".f64")
__WEFT_ROUNDINGS(__WEFT_BINARY, __ddiv, "div", ".f64")
__WEFT_ROUNDINGS(__WEFT_UNARY, __drcp, "rcp", ".f64")
__WEFT_ROUNDINGS(__WEFT_UNARY, __dsqrt, "sqrt", ".f64")
__WEFT_ROUNDINGS(__WEFT_TERNARY, __fma, "fma", ".f64")
#undef __WEFT_BINARY
#undef __WEFT_UNARY
#undef __WEFT_TERNARY
#define __WEFT_INF __longlong_as_double(0x7ff0000000000000ll)
#define __WEFT_NAN __longlong_as_double((long long)0xfff8000000000000ull)

// ---------------------------------------------------------------- exact functions
__WEFT__ double fabs(double x) { return __builtin_fabs(x); }
__WEFT__ double sqrt(double x) { return __dsqrt_rn(x); }
__WEFT__ double rsqrt(double x) { return 1.0 / __dsqrt_rn(x); }
__WEFT__ double fma(double x, double y, double z) { return __builtin_fma(x, y, z); }
__WEFT__ double floor(double x) { return __builtin_floor(x); }
__WEFT__ double ceil(double x) { return __builtin_ceil(x); }
__WEFT__ double trunc(double x) { return __builtin_trunc(x); }
__WEFT__ double rint(double x) { return __builtin_rint(x); }
__WEFT__ double nearbyint(double x) { return __builtin_rint(x); }
__WEFT__ double copysign(double x, double y) {
    return __longlong_as_double((__double_as_longlong(x) & 0x7fffffffffffffffll) | (__double_as_longlong(y) & (long long)0x8000000000000000ull));
}
__WEFT__ double round(double x) {  // halves away from zero
    double t = trunc(x);
    return copysign(fabs(x - t) >= 0.5 ? t + copysign(1.0, x) : t, x);
}
__WEFT__ double fmin(double x, double y) { return __builtin_fmin(x, y); }
__WEFT__ double fmax(double x, double y) { return __builtin_fmax(x, y); }
__WEFT__ double fdim(double x, double y) { return x <= y ? 0.0 : x - y; }
__WEFT__ double nan(const char *) { return __WEFT_NAN; }
__WEFT__ long lrint(double x) { return (long)__double2ll_rn(x); }
__WEFT__ long long llrint(double x) { return __double2ll_rn(x); }
__WEFT__ long lround(double x) { return (long)__double2ll_rz(round(x)); }
__WEFT__ long long llround(double x) { return __double2ll_rz(round(x)); }
__WEFT__ double nextafter(double x, double y) {
    if (x != x || y != y) return x + y;
    if (x == y) return y;
    if (x == 0.0) return copysign(0x1p-1074, y);
    long long bits = __double_as_longlong(x);
    return __longlong_as_double((x < y) == (x > 0.0) ? bits + 1 : bits - 1);
}
__WEFT__ double frexp(double x, int *exponent) {
    long long bits = __double_as_longlong(x);
    int e = (int)(bits >> 52) & 2047, scale = 0;
    if (e == 2047 || x == 0.0) {
        *exponent = 0;
        return x + x;
    }
    if (e == 0) {
        bits = __double_as_longlong(x * 0x1p54);
        e = (int)(bits >> 52) & 2047;
        scale = 54;
    }
    *exponent = e - 1022 - scale;
    return __longlong_as_double((bits & (long long)0x800fffffffffffffull) | 0x3fe0000000000000ll);
}
__WEFT__ double __weft_power(int n) { return __longlong_as_double((long long)(n + 1023) << 52); }  // 2^n, normal
__WEFT__ double ldexp(double x, int n) {
    if (x == 0.0 || !(fabs(x) < __WEFT_INF)) return x + x;
    int e;
    double m = frexp(x, &e);  // in [1/2, 1): only the last product can round
    n = n > 5000 ? 5000 : n < -5000 ? -5000 : n;
    e += n;
    if (e > 1024) return copysign(__WEFT_INF, x);
    if (e < -1080) return copysign(0.0, x);
    return e > -1021 ? m * 2.0 * __weft_power(e - 1) : m * __weft_power(e + 200) * 0x1p-200;
}
__WEFT__ double scalbn(double x, int n) { return ldexp(x, n); }
__WEFT__ double scalbln(double x, long n) { return ldexp(x, n < -5000 ? -5000 : n > 5000 ? 5000 : (int)n); }
__WEFT__ int ilogb(double x) {
    if (x == 0.0 || x != x) return -2147483647 - 1;
    if (fabs(x) == __WEFT_INF) return 2147483647;
    int e;
    frexp(x, &e);
    return e - 1;
}
__WEFT__ double logb(double x) {
    if (x != x) return x + x;
    if (x == 0.0) return -__WEFT_INF;
    if (fabs(x) == __WEFT_INF) return fabs(x);
    return (double)ilogb(x);
}
__WEFT__ double modf(double x, double *whole) {
    double t = trunc(x);
    *whole = t;
    return copysign(fabs(x) == __WEFT_INF ? 0.0 : x - t, x);
}
__WEFT_LONG__ double __weft_divide(double x, double y, unsigned int *quotient) {
    int ex, ey;
    double fx = frexp(fabs(x), &ex), fy = frexp(fabs(y), &ey);
    unsigned long long mx = (unsigned long long)(fx * 0x1p53), my = (unsigned long long)(fy * 0x1p53);
    unsigned int q = 0;
    if (ex < ey) {
        *quotient = 0;
        return fabs(x);
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
    return ldexp((double)mx, ey - 53);
}
__WEFT__ double fmod(double x, double y) {
    if (x != x || y != y || y == 0.0 || fabs(x) == __WEFT_INF) return (x * y) / (x * y);
    if (fabs(y) == __WEFT_INF || x == 0.0) return x;
    unsigned int q;
    return copysign(__weft_divide(x, y, &q), x);
}
__WEFT__ double remquo(double x, double y, int *quotient) {
    *quotient = 0;
    if (x != x || y != y || y == 0.0 || fabs(x) == __WEFT_INF) return (x * y) / (x * y);
    if (fabs(y) == __WEFT_INF || x == 0.0) return x;
    unsigned int q;
    double r = __weft_divide(x, y, &q), a = fabs(y), rest = a - r;
    if (r > rest || (r == rest && (q & 1))) {
        r = -rest;
        q++;
    }
    *quotient = (x < 0) != (y < 0) ? -(int)(q & 0x7fffffffu) : (int)(q & 0x7fffffffu);
    return r == 0.0 ? copysign(0.0, x) : x < 0 ? -r : r;
}
__WEFT__ double remainder(double x, double y) {
    int q;
    return remquo(x, y, &q);
}

// ---------------------------------------------------------------- exponentials
__WEFT__ double __weft_scale(double v, int n) {  // v * 2^n, -2100 < n < 2040
    int half = n >> 1;
    return v * __weft_power(half) * __weft_power(n - half);
}
// e^(x + rest), |x| <= ln2/2
__WEFT__ double __weft_exp_poly(double x, double rest) {
    double r = x + rest, low = rest - (r - x);
    // (e^r - 1 - r) / r^2
    double p = __weft_poly(r, 0x1.af683e37b6ad6p-26, 0x1.2894f6ad6654bp-22, 0x1.71ddf3fba2996p-19, 0x1.a019b62079448p-16,
                           0x1.a01a01b104d90p-13, 0x1.6c16c1794e93cp-10, 0x1.111111110f5f5p-7, 0x1.5555555553b6bp-5,
                           0x1.5555555555558p-3, 0x1.0000000000001p-1);
    return 1.0 + (r + fma(p * r, r, low));
}
__WEFT__ double __weft_exp(double x, int bias) {  // e^x * 2^bias
    x = x < -750.0 ? -750.0 : x > 720.0 ? 720.0 : x;
    double n = rint(x * 0x1.71547652b82fep+0);
    double r = fma(n, -0x1.62e42fefa39efp-1, x);
    return __weft_scale(__weft_exp_poly(r, n * -0x1.abc9e3b39803fp-56), (int)n + bias);
}
__WEFT_LONG__ double exp(double x) { return x != x ? x + x : __weft_exp(x, 0); }
__WEFT_LONG__ double exp2(double x) {
    if (x != x) return x + x;
    x = x < -1080.0 ? -1080.0 : x > 1030.0 ? 1030.0 : x;
    double n = rint(x), f = x - n, r = f * 0x1.62e42fefa39efp-1;
    return __weft_scale(__weft_exp_poly(r, fma(f, 0x1.62e42fefa39efp-1, -r) + f * 0x1.abc9e3b39803fp-56), (int)n);
}
__WEFT_LONG__ double exp10(double x) {
    if (x != x) return x + x;
    x = x < -325.0 ? -325.0 : x > 310.0 ? 310.0 : x;
    double n = rint(x * 0x1.a934f0979a371p+1);
    double f = fma(n, -0x1.34413509f79ffp-2, x), low = n * 0x1.9dc1da994fd21p-59, r = f * 0x1.26bb1bbb55516p+1;
    double rest = fma(f, 0x1.26bb1bbb55516p+1, -r) + fma(f, -0x1.f48ad494ea3e9p-53, low * 0x1.26bb1bbb55516p+1);
    return __weft_scale(__weft_exp_poly(r, rest), (int)n);
}
__WEFT_LONG__ double expm1(double x) {
    if (x != x || x == 0.0) return x + x;
    if (x < -40.0) return -1.0;
    if (x > 710.0) return __WEFT_INF;
    double n = rint(x * 0x1.71547652b82fep+0);
    double r = fma(n, -0x1.abc9e3b39803fp-56, fma(n, -0x1.62e42fefa39efp-1, x));
    double p = __weft_poly(r, 0x1.1f8e130618daep-29, 0x1.af52933ff911ep-26, 0x1.27e4cb243461ap-22, 0x1.71ddffee85c27p-19,
                           0x1.a01a01adaf968p-16, 0x1.a01a01aca0399p-13, 0x1.6c16c16c14ff8p-10, 0x1.111111110ff88p-7,
                           0x1.5555555555558p-5, 0x1.5555555555557p-3, 0.5);
    p = fma(p * r, r, r);
    if (n == 0.0) return p;
    double s = __weft_power((int)n - (n == 1024.0));
    double y = fma(p, s, n == 1024.0 ? s : s - 1.0);
    return n == 1024.0 ? y + y : y;
}

// ---------------------------------------------------------------- logarithms
__WEFT__ double __weft_log_special(double x) {  // x is zero, negative, infinite or NaN
    return x == 0.0 ? -__WEFT_INF : x > 0.0 ? x : x != x ? x + x : __WEFT_NAN;
}
// log(1 + f) + e ln2, f in [sqrt(1/2) - 1, sqrt(2) - 1]: with s = f / (2 + f),
// log(1 + f) = f - (f^2/2 - s (f^2/2 + R)), R = 2 s^2 (artanh(s) - s) / s^3
__WEFT__ double __weft_log_reduced(double f, double e) {
    double s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
    double r = 2.0 * z * __weft_poly(z, 0x1.2f1485ed5399dp-4, 0x1.39a051078bec2p-4, 0x1.74664bff715c3p-4, 0x1.c71c51ce50986p-4,
                                     0x1.2492494233a77p-3, 0x1.999999997f979p-3, 0x1.5555555555593p-2);
    return fma(e, 0x1.62e42fefa39efp-1, f - (half - fma(s, half + r, e * 0x1.abc9e3b39803fp-56)));
}
// x = 2^e * m, m in [sqrt(1/2), sqrt(2)); x positive, finite
__WEFT__ double __weft_split(double x, double *e) {
    *e = 0.0;
    if (x < 0x1p-1022) {
        x *= 0x1p54;
        *e = -54.0;
    }
    long long i = (__double_as_longlong(x) - 0x3fe6a09e667f3bcdll) & (long long)0xfff0000000000000ull;
    *e += (double)(int)(i >> 52);
    return __longlong_as_double(__double_as_longlong(x) - i);
}
__WEFT_LONG__ double log(double x) {
    if (!(x > 0.0 && x < __WEFT_INF)) return __weft_log_special(x);
    double e, m = __weft_split(x, &e);
    return __weft_log_reduced(m - 1.0, e);
}
__WEFT_LONG__ double log1p(double x) {
    if (x == 0.0) return x;
    if (!(x > -1.0 && x < __WEFT_INF)) return x == -1.0 ? -__WEFT_INF : __weft_log_special(x);
    if (x > 0x1p200) return log(x);
    double e;
    __weft_split(1.0 + x, &e);
    double s = __weft_power(-(int)e);
    return __weft_log_reduced(fma(x, s, s - 1.0), e);
}
// log(m) as a sum of two doubles, relative error about 2^-66; m in [sqrt(1/2), sqrt(2))
__WEFT__ double __weft_log_pair(double m, double *low) {
    double f = m - 1.0, d = m + 1.0, d_low = m - (d - 1.0), r = 1.0 / d;
    double s = f * r, s_low = fma(-s, d_low, fma(-s, d, f)) * r;
    double z = s * s, z_low = fma(s, s, -z) + 2.0 * s * s_low;
    // (artanh(s) - s) / s = z/3 + z^2 Q(z); the first term as a pair
    double q = __weft_poly(z, 0x1.08b6ef7f84510p-4, 0x1.101390f2ea401p-4, 0x1.3b18e0e797ef4p-4, 0x1.745d09619878ep-4,
                           0x1.c71c71d8cc6f2p-4, 0x1.249249248e111p-3, 0x1.999999999999fp-3);
    double t = z * 0x1.5555555555555p-2;
    double t_low = fma(z, 0x1.5555555555555p-2, -t) + fma(z, 0x1.5555555555555p-56, z_low * 0x1.5555555555555p-2);
    double u = fma(z * z, q, t), u_low = (t - u) + z * z * q + t_low;
    double p = s * u, p_low = fma(s, u, -p) + fma(s, u_low, s_low * u);
    double high = s + p;
    *low = 2.0 * (((s - high) + p) + (s_low + p_low));
    return 2.0 * high;
}
// log(x) in a base whose conversion factor is a + a_low, one power of two being worth b + b_low
__WEFT__ double __weft_log_base(double x, double a, double a_low, double b, double b_low) {
    double e, low, m = __weft_split(x, &e), high = __weft_log_pair(m, &low);
    double p = high * a, p_low = fma(high, a, -p) + fma(high, a_low, low * a);
    double h = e * b, sum = h + p, rest = (fabs(h) >= fabs(p) ? (h - sum) + p : (p - sum) + h);
    return sum + (rest + p_low + (fma(e, b, -h) + e * b_low));
}
__WEFT_LONG__ double log2(double x) {
    if (!(x > 0.0 && x < __WEFT_INF)) return __weft_log_special(x);
    return __weft_log_base(x, 0x1.71547652b82fep+0, 0x1.777d0ffda0d24p-56, 1.0, 0.0);
}
__WEFT_LONG__ double log10(double x) {
    if (!(x > 0.0 && x < __WEFT_INF)) return __weft_log_special(x);
    return __weft_log_base(x, 0x1.bcb7b1526e50ep-2, 0x1.95355baaafad3p-57, 0x1.34413509f79ffp-2, -0x1.9dc1da994fd21p-59);
}

// ---------------------------------------------------------------- powers and roots
__WEFT_LONG__ double __weft_pow_positive(double x, double y) {  // x positive, finite, not 1
    double e, low, m = __weft_split(x, &e), high = __weft_log_pair(m, &low);
    double h = e * 0x1.62e42fefa39efp-1, h_low = fma(e, 0x1.62e42fefa39efp-1, -h) + e * 0x1.abc9e3b39803fp-56;
    double sum = h + high, rest = (e != 0.0 ? (h - sum) + high : 0.0) + (low + h_low);
    double product = sum * y;
    if (product > 720.0) return __WEFT_INF;
    if (product < -760.0) return 0.0;
    double p_low = fma(sum, y, -product) + rest * y, n = rint(product * 0x1.71547652b82fep+0);
    double r = fma(n, -0x1.62e42fefa39efp-1, product);
    return __weft_scale(__weft_exp_poly(r, fma(n, -0x1.abc9e3b39803fp-56, p_low)), (int)n);
}
__WEFT_LONG__ double pow(double x, double y) {
    if (x == 1.0 || y == 0.0) return 1.0;
    if (x != x || y != y) return x + y;
    double a = fabs(x), b = fabs(y);
    bool whole = b >= 0x1p53 || trunc(y) == y, odd = b < 0x1p53 && whole && ((long long)b & 1);
    if (b == __WEFT_INF) return a == 1.0 ? 1.0 : (a > 1.0) == (y > 0.0) ? __WEFT_INF : 0.0;
    if (a == 0.0 || a == __WEFT_INF) {
        double r = (a == 0.0) == (y > 0.0) ? 0.0 : __WEFT_INF;
        return odd ? copysign(r, x) : r;
    }
    if (x < 0.0 && !whole) return __WEFT_NAN;
    double r = a == 1.0 ? 1.0 : __weft_pow_positive(a, y);
    return x < 0.0 && odd ? -r : r;
}
__WEFT__ double powi(double x, int n) { return pow(x, (double)n); }
__WEFT_LONG__ double cbrt(double x) {
    if (x == 0.0 || !(fabs(x) < __WEFT_INF)) return x + x;
    int e;
    double m = frexp(fabs(x), &e);
    int third = (e + 3000) / 3 - 1000, left = e - 3 * third;  // e = 3 * third + left, left in 0..2
    m *= left == 2 ? 4.0 : left == 1 ? 2.0 : 1.0;
    double y = (double)__weft_ex2(__weft_lg2((float)m) * 0x1.555556p-2f);
    double cube = y * y * y;
    y = y * (cube + 2.0 * m) / (2.0 * cube + m);  // Halley
    double square = y * y, residual = fma(square, y, -m) + fma(y, y, -square) * y;
    y -= residual / (3.0 * square);
    return copysign(y * __weft_power(third), x);
}
__WEFT_LONG__ double rcbrt(double x) {
    if (x == 0.0 || !(fabs(x) < __WEFT_INF)) return 1.0 / x;
    int e;
    double m = frexp(fabs(x), &e);
    int third = (e + 3000) / 3 - 1000, left = e - 3 * third;
    m *= left == 2 ? 4.0 : left == 1 ? 2.0 : 1.0;
    double y = 1.0 / cbrt(m), square = y * y, my = m * y;
    double error = fma(-my, square, 1.0) - fma(m, y, -my) * square - fma(y, y, -square) * my;
    return copysign(fma(y * error, 0x1.5555555555555p-2, y) * __weft_power(-third), x);
}
__WEFT__ double __weft_norm_scale(double v) {
    int e = (int)(__double_as_longlong(v) >> 52) & 2047;
    e = e < 8 ? 8 : e > 2038 ? 2038 : e;
    return __longlong_as_double((long long)(2046 - e) << 52);
}
__WEFT_LONG__ double hypot(double x, double y) {
    double a = fabs(x), b = fabs(y);
    if (a == __WEFT_INF || b == __WEFT_INF) return __WEFT_INF;
    double high = fmax(a, b), low = fmin(a, b);
    if (!(high > 0.0) || a != a || b != b) return a + b;
    double s = __weft_norm_scale(high);
    high *= s, low *= s;
    double square = high * high, rest = fma(high, high, -square);
    return sqrt(square + fma(low, low, rest)) / s;
}
__WEFT__ double norm3d(double x, double y, double z) { return hypot(hypot(x, y), z); }
__WEFT__ double norm4d(double x, double y, double z, double w) { return hypot(hypot(x, y), hypot(z, w)); }
__WEFT__ double rhypot(double x, double y) { return 1.0 / hypot(x, y); }
__WEFT__ double rnorm3d(double x, double y, double z) { return 1.0 / norm3d(x, y, z); }
__WEFT__ double rnorm4d(double x, double y, double z, double w) { return 1.0 / norm4d(x, y, z, w); }

// ---------------------------------------------------------------- trigonometry
// Payne and Hanek in 64-bit words. |x| >= 2^20.
__WEFT_LONG__ double __weft_reduce_large(double x, int *quadrant) {
    unsigned long long bits = (unsigned long long)__double_as_longlong(x), m = (bits << 11) | 0x8000000000000000ull;
    // x = m * 2^(e - 64); bits of 2/pi of weight 2^(66 - e) and above only add multiples of 4
    int e = (int)((bits >> 52) & 2047) - 1022, skip = e - 66 + 64, word = skip >> 6, shift = skip & 63;
    unsigned long long w[4];
    for (int k = 0; k < 4; k++) w[k] = word + k == 0 ? 0 : __weft_two_over_pi[word + k - 1];
    unsigned long long a = shift ? w[0] << shift | w[1] >> (64 - shift) : w[0];
    unsigned long long b = shift ? w[1] << shift | w[2] >> (64 - shift) : w[1];
    unsigned long long c = shift ? w[2] << shift | w[3] >> (64 - shift) : w[2];
    unsigned __int128 middle = (unsigned __int128)m * b + (unsigned long long)(((unsigned __int128)m * c) >> 64);
    unsigned __int128 p = ((unsigned __int128)(m * a) << 64) + middle;
    int q = (int)(unsigned int)(p >> 126);
    p <<= 2;
    bool negative = (bool)(p >> 127);
    if (negative) {
        p = -p;
        q++;
    }
    unsigned long long high = (unsigned long long)(p >> 64), low = (unsigned long long)p;
    int zeros = high ? __clzll((long long)high) : 64 + (low ? __clzll((long long)low) : 0);
    p <<= zeros;
    high = (unsigned long long)(p >> 64);
    double r = (double)high * 0x1.921fb54442d18p+0 * __weft_power(-64 - zeros);
    if (zeros >= 128) r = 0.0;
    if (negative != (bool)(bits >> 63)) r = -r;
    *quadrant = bits >> 63 ? -q : q;
    return r;
}
__WEFT__ double __weft_reduce(double x, int *quadrant) {
    if (fabs(x) < 0x1p20) {
        double j = rint(x * 0x1.45f306dc9c883p-1);
        *quadrant = (int)j;
        if (j == 0.0) return x;
        return fma(j, 0x1.f1976b7ed8fbcp-110, fma(j, -0x1.1a62633145c07p-54, fma(j, -0x1.921fb54442d18p+0, x)));
    }
    if (!(fabs(x) < __WEFT_INF)) {
        *quadrant = 0;
        return x * 0.0;
    }
    return __weft_reduce_large(x, quadrant);
}
__WEFT__ double __weft_sin_poly(double r) {
    double z = r * r;
    return fma(r * z, __weft_poly(z, 0x1.5d6ac5902dac9p-33, -0x1.ae5ddbf0934d8p-26, 0x1.71de34c7f688ap-19, -0x1.a01a019b48456p-13,
                                  0x1.111111110f23ep-7, -0x1.5555555555545p-3), r);
}
__WEFT__ double __weft_cos_poly(double r) {
    double z = r * r;
    return fma(z, fma(z, __weft_poly(z, -0x1.8f7b81a4b8ac7p-37, 0x1.1ee98895c8583p-29, -0x1.27e4f776df32bp-22, 0x1.a01a019be4ce7p-16,
                                     -0x1.6c16c16c1493cp-10, 0x1.5555555555548p-5), -0.5), 1.0);
}
__WEFT__ double __weft_sin_quadrant(double r, int q) {
    double v = q & 1 ? __weft_cos_poly(r) : __weft_sin_poly(r);
    return q & 2 ? -v : v;
}
__WEFT_LONG__ double sin(double x) {
    if (x == 0.0) return x;
    int q;
    double r = __weft_reduce(x, &q);
    return __weft_sin_quadrant(r, q);
}
__WEFT_LONG__ double cos(double x) {
    int q;
    double r = __weft_reduce(x, &q);
    return __weft_sin_quadrant(r, q + 1);
}
__WEFT_LONG__ void sincos(double x, double *s, double *c) {
    int q;
    double r = __weft_reduce(x, &q);
    *s = x == 0.0 ? x : __weft_sin_quadrant(r, q);
    *c = __weft_sin_quadrant(r, q + 1);
}
__WEFT_LONG__ double tan(double x) {
    int q;
    double r = __weft_reduce(x, &q), z = r * r;
    double p = __weft_poly(z, 0x1.805e16f1be648p-16, -0x1.c10f09154cf6cp-15, 0x1.bb985031a5760p-14, -0x1.74cce9b6caebcp-15,
                           0x1.39a809ff6fb37p-13, 0x1.c4d8f227fc6e4p-13, 0x1.39273b0146a57p-11, 0x1.7d36eb68a1f1dp-10,
                           0x1.d6dc432ebb915p-9, 0x1.226dfc318fcebp-7, 0x1.664f4a76022b6p-6, 0x1.ba1ba1b00a2a3p-5,
                           0x1.111111111e2bfp-3, 0x1.5555555555497p-2);
    double t = fma(r * z, p, r);
    return q & 1 ? -1.0 / t : t;
}
__WEFT__ double __weft_reduce_pi(double x, int *quadrant) {
    x = fma(-2.0, rint(x * 0.5), x);
    double j = rint(x + x), f = fma(j, -0.5, x);
    *quadrant = (int)j;
    return fma(f, 0x1.921fb54442d18p+1, f * 0x1.1a62633145c07p-53);
}
__WEFT_LONG__ double sinpi(double x) {
    if (!(fabs(x) < __WEFT_INF)) return x * 0.0;
    if (trunc(x) == x) return copysign(0.0, x);
    int q;
    double r = __weft_reduce_pi(x, &q);
    return __weft_sin_quadrant(r, q);
}
__WEFT_LONG__ double cospi(double x) {
    if (!(fabs(x) < __WEFT_INF)) return x * 0.0;
    int q;
    double r = __weft_reduce_pi(x, &q);
    return __weft_sin_quadrant(r, q + 1) + 0.0;
}
__WEFT__ void sincospi(double x, double *s, double *c) {
    *s = sinpi(x);
    *c = cospi(x);
}
__WEFT__ double __weft_asin_poly(double x, double z) {
    return fma(x * z, __weft_poly(z, 0x1.18d7466cdd4e3p-5, -0x1.429fc8c80cb0ap-6, 0x1.643837c0ceb3fp-6, 0x1.76c2ad3db02aap-8,
                                  0x1.94e46dd2f8958p-7, 0x1.c60f2e57e3c29p-7, 0x1.1c77e9749d4b0p-6, 0x1.6e89294df061ap-6,
                                  0x1.f1c7349b6582cp-6, 0x1.6db6db28cd436p-5, 0x1.3333333395925p-4, 0x1.5555555555247p-3), x);
}
__WEFT_LONG__ double asin(double x) {
    double a = fabs(x);
    if (a <= 0.5) return __weft_asin_poly(x, x * x);
    double z = fma(-0.5, a, 0.5);
    return copysign(0x1.921fb54442d18p+0 - (2.0 * __weft_asin_poly(sqrt(z), z) - 0x1.1a62633145c07p-54), x);
}
__WEFT_LONG__ double acos(double x) {
    double a = fabs(x);
    if (a <= 0.5) return 0x1.921fb54442d18p+0 - (__weft_asin_poly(x, x * x) - 0x1.1a62633145c07p-54);
    double z = fma(-0.5, a, 0.5), r = 2.0 * __weft_asin_poly(sqrt(z), z);
    return x > 0.0 || x != x ? r : 0x1.921fb54442d18p+1 - (r - 0x1.1a62633145c07p-53);
}
__WEFT__ double __weft_atan_positive(double a) {  // a in [0, 1]
    bool upper = a > 0.41421356237309503;  // tan(pi/8)
    double t = upper ? (a - 1.0) / (a + 1.0) : a, z = t * t;
    double p = __weft_poly(z, -0x1.24756679746e3p-6, 0x1.37670288ba1b8p-5, -0x1.9ca7ade612ff6p-5, 0x1.df05d8e3fba36p-5,
                           -0x1.10eb1409bd755p-4, 0x1.3b110ad488a98p-4, -0x1.745cf81130a9dp-4, 0x1.c71c70df0f66ep-4,
                           -0x1.249249229b8c6p-3, 0x1.9999999995592p-3, -0x1.555555555553cp-2);
    double r = t * z * p;
    return upper ? 0x1.921fb54442d18p-1 + (t + (r + 0x1.1a62633145c07p-55)) : t + r;
}
__WEFT_LONG__ double atan(double x) {
    double a = fabs(x);
    double r = a > 1.0 ? 0x1.921fb54442d18p+0 - (__weft_atan_positive(1.0 / a) - 0x1.1a62633145c07p-54) : __weft_atan_positive(a);
    return copysign(r, x);
}
__WEFT_LONG__ double atan2(double y, double x) {
    double a = fabs(x), b = fabs(y);
    if (a != a || b != b) return a + b;
    double high = fmax(a, b), low = fmin(a, b);
    double r = __weft_atan_positive(low == high ? (low == 0.0 ? 0.0 : 1.0) : low / high);
    if (b > a) r = 0x1.921fb54442d18p+0 - (r - 0x1.1a62633145c07p-54);
    if (__double_as_longlong(x) < 0) r = 0x1.921fb54442d18p+1 - (r - 0x1.1a62633145c07p-53);
    return copysign(r, y);
}

// ---------------------------------------------------------------- hyperbolic functions
__WEFT_LONG__ double sinh(double x) {
    double a = fabs(x);
    if (x != x) return x + x;
    if (a < 1.0) {
        double t = expm1(a);
        return copysign(0.5 * (t + t / (t + 1.0)), x);
    }
    double e = __weft_exp(a, -1);
    return copysign(e - 0.25 / e, x);
}
__WEFT_LONG__ double cosh(double x) {
    if (x != x) return x + x;
    double e = __weft_exp(fabs(x), -1);
    return e + 0.25 / e;
}
__WEFT_LONG__ double tanh(double x) {
    double a = fabs(x);
    if (x != x || x == 0.0) return x + x;
    if (a > 22.0) return copysign(1.0, x);
    if (a < 0.55) {
        double z = x * x;
        double p = __weft_poly(z, 0x1.023aa450259a9p-17, -0x1.1875686eb2907p-15, 0x1.8bbd75a9ecb6fp-14, -0x1.f3f32ce1595e3p-13,
                               0x1.354536b4b38c7p-11, -0x1.7da22b60c1d3ep-10, 0x1.d6d3c38293abbp-9, -0x1.226e352fed351p-7,
                               0x1.664f488201e07p-6, -0x1.ba1ba1ba1a0b1p-5, 0x1.1111111111106p-3, -0x1.5555555555555p-2);
        return fma(x * z, p, x);
    }
    return copysign(1.0 - 2.0 / (exp(2.0 * a) + 1.0), x);
}
__WEFT_LONG__ double asinh(double x) {
    double a = fabs(x);
    if (a < 0x1p-27) return x;
    if (a > 0x1p60) return copysign(log(a) + 0x1.62e42fefa39efp-1, x);
    return copysign(log1p(fma(a, a / (1.0 + sqrt(fma(a, a, 1.0))), a)), x);
}
__WEFT_LONG__ double acosh(double x) {
    double t = x - 1.0;
    if (t > 0x1p60) return log(x) + 0x1.62e42fefa39efp-1;
    return log1p(t + sqrt(fma(t, t, t + t)));
}
__WEFT_LONG__ double atanh(double x) {
    double a = fabs(x);
    if (a < 0x1p-27) return x;
    return copysign(0.5 * log1p((a + a) / (1.0 - a)), x);
}

// ---------------------------------------------------------------- error functions
__WEFT__ double __weft_erf_poly(double x) {  // |x| <= 1
    return x * __weft_poly(x * x, -0x1.abaee4e6e63f7p-31, 0x1.d71b44bedae4ap-27, -0x1.5c072ef182debp-23, 0x1.b97fd53562848p-20,
                           -0x1.f4ca4d9448ed4p-17, 0x1.f9a2baab92b50p-14, -0x1.c02db03df5659p-11, 0x1.565bccf92c165p-8,
                           -0x1.b82ce311fa9c5p-6, 0x1.ce2f21a040d19p-4, -0x1.812746b0379bdp-2, 0x1.20dd750429b6dp+0);
}
__WEFT__ double __weft_erfc_tail(double a) {  // erfc(a), 0.4 <= a
    if (a > 27.3) return 0.0;
    double t = (a - 4.0) / (a + 4.0);
    double p = __weft_poly(t, 0x1.45bf59649d902p-30, 0x1.c07f85f07cf84p-30, -0x1.e42803f170bf7p-27, -0x1.2a6f375b76bb7p-26,
                           0x1.da57779cb11a4p-24, 0x1.3df5cf49e89f8p-24, -0x1.bb83bb58f1120p-21, 0x1.3bde1ecb821d3p-22,
                           0x1.7f361a01d7902p-18, -0x1.788db186eb227p-17, -0x1.995af8d1ae21ap-16, 0x1.3be06a9430c99p-13,
                           -0x1.a1df14cb5ed81p-13, -0x1.8d4a9c30c2007p-11, 0x1.49c6726d78fbfp-8, -0x1.09623882c22fdp-6,
                           0x1.3079edf6d9213p-5, -0x1.0fb06dfe54525p-4, 0x1.7fee004e0fc55p-4, -0x1.9ddb23c3e89f8p-4,
                           0x1.16ecefcfa54aep-4, 0x1.f7f5df66fd6e2p-7, -0x1.1df1ad154a28fp-3, 0x1.3ba5916e9fd7fp+0);
    double square = a * a, r = p / fma(2.0, a, 1.0) * exp(-square);
    return fma(-fma(a, a, -square), r, r);
}
__WEFT_LONG__ double erf(double x) {
    double a = fabs(x);
    if (!(a >= 1.0)) return x != x ? x + x : __weft_erf_poly(x);
    return copysign(1.0 - __weft_erfc_tail(a), x);
}
__WEFT_LONG__ double erfc(double x) {
    if (x != x) return x + x;
    if (fabs(x) < 0.5) return 1.0 - __weft_erf_poly(x);
    return x > 0.0 ? __weft_erfc_tail(x) : 2.0 - __weft_erfc_tail(-x);
}
__WEFT_LONG__ double normcdf(double x) {
    if (x != x) return x + x;
    x = x < -38.6 ? -38.6 : x > 38.6 ? 38.6 : x;
    double t = -x * 0x1.6a09e667f3bcdp-1, low = fma(-x, -0x1.bdd3413b26456p-55, fma(-x, 0x1.6a09e667f3bcdp-1, -t)), r = erfc(t);
    if (t > 1.0) r = fma(-2.0 * t * low, r, r);
    return 0.5 * r;
}
// y > 0 with erfc(y) = c, 0 < c <= 1: a first guess from the asymptotic form, then Halley's iteration on log erfc
__WEFT_LONG__ double __weft_erfcinv_positive(double c) {
    double w = -log(c * (2.0 - c)), y;
    if (c > 0.3) {  // Winitzki's form of the inverse of erf
        double b = 4.33 + 0.5 * -w;
        y = sqrt(sqrt(b * b + w * 6.8) - b);
    } else {
        double s = -log(c);
        y = sqrt(s - 0.5 * log(3.14159265358979 * s));
    }
    for (int k = 0; k < 4; k++) {
        double slope = 0x1.20dd750429b6dp+0 * exp(-y * y);  // -erfc'
        double step;
        if (c > 0.3) {
            step = (c < 0.999 ? erfc(y) - c : (1.0 - c) - erf(y)) / slope;
        } else {  // relative: log(erfc(y) / c) * erfc(y) / slope
            double value = erfc(y);
            step = log(value / c) * value / slope;
        }
        if (c > 0.3) {
            y += step / (1.0 + y * step);
        } else {
            y += step;
        }
    }
    return y;
}
__WEFT_LONG__ double erfcinv(double c) {
    if (!(c > 0.0 && c < 2.0)) return c == 0.0 ? __WEFT_INF : c == 2.0 ? -__WEFT_INF : __WEFT_NAN;
    return c <= 1.0 ? __weft_erfcinv_positive(c) : -__weft_erfcinv_positive(2.0 - c);
}
__WEFT_LONG__ double erfinv(double x) {
    double a = fabs(x);
    if (!(a < 1.0)) return a == 1.0 ? copysign(__WEFT_INF, x) : __WEFT_NAN;
    if (a < 1e-8) return x * 0x1.c5bf891b4ef6bp-1;
    if (a > 0.7) return copysign(__weft_erfcinv_positive(1.0 - a), x);
    double w = -log1p(-a * a), b = 4.33 - 0.5 * w, y = sqrt(sqrt(b * b + w * 6.8) - b);
    for (int k = 0; k < 3; k++) {
        double step = (a - erf(y)) / (0x1.20dd750429b6dp+0 * exp(-y * y));
        y += step / (1.0 - y * step);
    }
    return copysign(y, x);
}
__WEFT_LONG__ double normcdfinv(double p) { return -0x1.6a09e667f3bcdp+0 * erfcinv(2.0 * p); }

// ---------------------------------------------------------------- gamma
__WEFT__ double __weft_lgamma_2(double t) {  // lgamma(2 + t), t in [-1/2, 1]
    return t * __weft_poly(t, -0x1.c34d63d395d4ep-31, 0x1.a90eda97f99a8p-28, -0x1.788f4bd17bf66p-26, 0x1.befc10dd662bep-25,
                           -0x1.c23f94c673d08p-24, 0x1.c745df3fa2480p-23, -0x1.dfc58eb91316dp-22, 0x1.00235de8e6c54p-20,
                           -0x1.11c5dbe313ed2p-19, 0x1.259ec66d51b21p-18, -0x1.3cbc36034f559p-17, 0x1.580d70a1f141ap-16,
                           -0x1.78de5981a1783p-15, 0x1.a127b3b3738eap-14, -0x1.d3fd4c9fbcc74p-13, 0x1.0b36af8035b51p-11,
                           -0x1.38ac5c2b904dcp-10, 0x1.7add6eadc555dp-9, -0x1.e404fc2190411p-8, 0x1.51322ac7d83fcp-6,
                           -0x1.13e001a557604p-4, 0x1.4a34cc4a60fa6p-2, 0x1.b0ee6072093cep-2);
}
__WEFT__ double __weft_stirling(double x) {  // sum of B_2k / (2k (2k - 1) x^(2k - 1))
    double r = 1.0 / x, z = r * r;
    return r * __weft_poly(z, -3617.0 / 122400.0, 1.0 / 156.0, -691.0 / 360360.0, 1.0 / 1188.0, -1.0 / 1680.0, 1.0 / 1260.0, -1.0 / 360.0, 1.0 / 12.0);
}
__WEFT_LONG__ double __weft_lgamma_positive(double x) {
    if (x < 0.5) return __weft_lgamma_2(x) - log1p(x) - log(x);  // lgamma(2 + x) - log(x (1 + x))
    if (x < 1.5) return __weft_lgamma_2(x - 1.0) - log1p(x - 1.0);
    if (x <= 3.0) return __weft_lgamma_2(x - 2.0);
    if (x < 10.0) {
        double product = 1.0;
        while (x > 3.0) {
            x -= 1.0;
            product *= x;
        }
        return log(product) + __weft_lgamma_2(x - 2.0);
    }
    double l = log(x);
    return fma(x - 0.5, l, -x) + (0x1.d67f1c864beb5p-1 + __weft_stirling(x));
}
__WEFT_LONG__ double lgamma(double x) {
    if (!(fabs(x) < __WEFT_INF)) return fabs(x) + (x != x ? x : 0.0);
    if (x > 0.0) return x > 2.6e305 ? __WEFT_INF : __weft_lgamma_positive(x);
    if (trunc(x) == x) return __WEFT_INF;
    // reflection: log(pi / |x sin(pi x)|) - lgamma(-x)
    if (x > -1e-18) return -log(-x);
    return log(0x1.921fb54442d18p+1 / fabs(x * sinpi(x))) - __weft_lgamma_positive(-x);
}
__WEFT_LONG__ double __weft_tgamma_positive(double x) {
    if (x > 171.7) return __WEFT_INF;
    if (x < 10.0) {
        double product = 1.0;
        while (x >= 2.0) {
            x -= 1.0;
            product *= x;
        }
        double divisor = 1.0;
        if (x < 1.0) {
            divisor = x;
            x += 1.0;
        }
        double t = x - 1.0;  // gamma(1 + t), t in [0, 1]
        double g = __weft_poly(t, 0x1.829a5536aa0fap-13, -0x1.2bf6291ee9f40p-9, 0x1.bab14d0171c3ep-7, -0x1.9eebcd90971bbp-5,
                               0x1.16c5698733fbcp-3, -0x1.20140a157ee32p-2, 0x1.e159f499719e3p-2, -0x1.52f37c7e57396p-1,
                               0x1.a2404e1daab0fp-1, -0x1.d570ef98d9175p-1, 0x1.eff703aa0099ep-1, -0x1.faf7145bbcf23p-1,
                               0x1.fe881945aada3p-1, -0x1.ff425d5ef7d21p-1, 0x1.fefe1e1e9dee6p-1, -0x1.fdf2ce28926f0p-1,
                               0x1.fc7df0ce19c95p-1, -0x1.f6c80d28473a6p-1, 0x1.f6a51043b71d3p-1, -0x1.d0a118f2b1d13p-1,
                               0x1.fa658c23afc29p-1, -0x1.2788cfc6fb5f5p-1, 1.0);
        return g * product / divisor;
    }
    double half = pow(x, 0.5 * x - 0.25);
    return 0x1.40d931ff62706p+1 * half * exp(-x) * half * exp(__weft_stirling(x));
}
__WEFT_LONG__ double tgamma(double x) {
    if (x == 0.0) return copysign(__WEFT_INF, x);
    if (!(fabs(x) < __WEFT_INF)) return x > 0.0 ? x : __WEFT_NAN;
    if (x > 0.0) return __weft_tgamma_positive(x);
    if (trunc(x) == x) return __WEFT_NAN;
    if (x < -184.0) return copysign(0.0, sinpi(x));
    double a = -x, s = sinpi(a);  // gamma(x) = -pi / (a sin(pi a) gamma(a))
    double lower = a > 170.0 ? a - 20.0 : a, g = __weft_tgamma_positive(lower);
    double r = -0x1.921fb54442d18p+1 / (a * s * g);
    for (; lower < a; lower += 1.0) r /= lower;
    return r;
}
#undef __WEFT_INF
#undef __WEFT_NAN

// The single-precision functions whose double-precision form is the simplest way to their accuracy.
__WEFT__ float erfinvf(float x) { return (float)erfinv((double)x); }
__WEFT__ float erfcinvf(float x) { return (float)erfcinv((double)x); }
__WEFT__ float normcdfinvf(float x) { return (float)normcdfinv((double)x); }
__WEFT__ float lgammaf(float x) { return (float)lgamma((double)x); }
__WEFT__ float tgammaf(float x) { return (float)tgamma((double)x); }
#undef __WEFT_ROUNDINGS
