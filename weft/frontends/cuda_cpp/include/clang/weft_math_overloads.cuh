// The C++ names: sin(float) beside sin(double), mixed min and max, classification, and integer arguments to double.
#pragma once
#pragma clang system_header

#define __WEFT_F1(NAME) \
    __WEFT__ float NAME(float x) { return NAME##f(x); }
#define __WEFT_F2(NAME) \
    __WEFT__ float NAME(float x, float y) { return NAME##f(x, y); }
// An integer argument means the double-precision function, as in <cmath>.
#define __WEFT_I1(NAME)                                            \
    __WEFT__ double NAME(int x) { return NAME((double)x); }        \
    __WEFT__ double NAME(unsigned int x) { return NAME((double)x); } \
    __WEFT__ double NAME(long x) { return NAME((double)x); }       \
    __WEFT__ double NAME(unsigned long x) { return NAME((double)x); } \
    __WEFT__ double NAME(long long x) { return NAME((double)x); }  \
    __WEFT__ double NAME(unsigned long long x) { return NAME((double)x); }
#define __WEFT_EACH(DO)                                                                                                           \
    DO(exp) DO(exp2) DO(exp10) DO(expm1) DO(log) DO(log2) DO(log10) DO(log1p) DO(sin) DO(cos) DO(tan) DO(sinpi) DO(cospi)         \
    DO(asin) DO(acos) DO(atan) DO(sinh) DO(cosh) DO(tanh) DO(asinh) DO(acosh) DO(atanh) DO(sqrt) DO(rsqrt) DO(cbrt) DO(rcbrt)     \
    DO(erf) DO(erfc) DO(erfinv) DO(erfcinv) DO(normcdf) DO(normcdfinv) DO(lgamma) DO(tgamma) DO(floor) DO(ceil) DO(trunc)         \
    DO(round) DO(rint) DO(nearbyint) DO(fabs) DO(logb)
__WEFT_EACH(__WEFT_F1)
__WEFT_EACH(__WEFT_I1)
__WEFT_F2(atan2)
__WEFT_F2(hypot)
__WEFT_F2(fmod)
__WEFT_F2(remainder)
__WEFT_F2(fmin)
__WEFT_F2(fmax)
__WEFT_F2(fdim)
__WEFT_F2(copysign)
__WEFT_F2(nextafter)
__WEFT_F2(pow)
__WEFT__ float pow(float x, int y) { return powf(x, (float)y); }
__WEFT__ double pow(double x, int y) { return pow(x, (double)y); }
__WEFT__ double pow(int x, int y) { return pow((double)x, (double)y); }
__WEFT__ double pow(int x, double y) { return pow((double)x, y); }
__WEFT__ double pow(float x, double y) { return pow((double)x, y); }
__WEFT__ double pow(double x, float y) { return pow(x, (double)y); }
__WEFT__ float fma(float x, float y, float z) { return fmaf(x, y, z); }
__WEFT__ float abs(float x) { return fabsf(x); }
__WEFT__ double abs(double x) { return fabs(x); }
__WEFT__ float ldexp(float x, int n) { return ldexpf(x, n); }
__WEFT__ float scalbn(float x, int n) { return scalbnf(x, n); }
__WEFT__ float frexp(float x, int *e) { return frexpf(x, e); }
__WEFT__ float modf(float x, float *whole) { return modff(x, whole); }
__WEFT__ int ilogb(float x) { return ilogbf(x); }
__WEFT__ long lrint(float x) { return lrintf(x); }
__WEFT__ long lround(float x) { return lroundf(x); }
__WEFT__ long long llrint(float x) { return llrintf(x); }
__WEFT__ long long llround(float x) { return llroundf(x); }
__WEFT__ void sincos(float x, float *s, float *c) { sincosf(x, s, c); }
__WEFT__ void sincospi(float x, float *s, float *c) { sincospif(x, s, c); }
#undef __WEFT_F1
#undef __WEFT_F2
#undef __WEFT_I1
#undef __WEFT_EACH

__WEFT__ float min(float x, float y) { return fminf(x, y); }
__WEFT__ float max(float x, float y) { return fmaxf(x, y); }
__WEFT__ double min(double x, double y) { return fmin(x, y); }
__WEFT__ double max(double x, double y) { return fmax(x, y); }
__WEFT__ double min(float x, double y) { return fmin((double)x, y); }
__WEFT__ double max(float x, double y) { return fmax((double)x, y); }
__WEFT__ double min(double x, float y) { return fmin(x, (double)y); }
__WEFT__ double max(double x, float y) { return fmax(x, (double)y); }

__WEFT__ bool isnan(float x) { return x != x; }
__WEFT__ bool isnan(double x) { return x != x; }
__WEFT__ bool isinf(float x) { return fabsf(x) == __int_as_float(0x7f800000); }
__WEFT__ bool isinf(double x) { return fabs(x) == __longlong_as_double(0x7ff0000000000000ll); }
__WEFT__ bool isfinite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }
__WEFT__ bool isfinite(double x) { return fabs(x) < __longlong_as_double(0x7ff0000000000000ll); }
__WEFT__ bool signbit(float x) { return __float_as_int(x) < 0; }
__WEFT__ bool signbit(double x) { return __double_as_longlong(x) < 0; }
__WEFT__ bool isnormal(float x) { return fabsf(x) >= 0x1p-126f && isfinite(x); }
__WEFT__ bool isnormal(double x) { return fabs(x) >= 0x1p-1022 && isfinite(x); }

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VAL __builtin_inf()
#define HUGE_VALF __builtin_inff()
#define M_E 2.7182818284590452354
#define M_LOG2E 1.4426950408889634074
#define M_LOG10E 0.43429448190325182765
#define M_LN2 0.69314718055994530942
#define M_LN10 2.30258509299404568402
#define M_PI 3.14159265358979323846
#define M_PI_2 1.57079632679489661923
#define M_PI_4 0.78539816339744830962
#define M_1_PI 0.31830988618379067154
#define M_2_PI 0.63661977236758134308
#define M_2_SQRTPI 1.12837916709551257390
#define M_SQRT2 1.41421356237309504880
#define M_SQRT1_2 0.70710678118654752440
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define LLONG_MAX 9223372036854775807ll
#define LLONG_MIN (-9223372036854775807ll - 1)
#define ULLONG_MAX 18446744073709551615ull
