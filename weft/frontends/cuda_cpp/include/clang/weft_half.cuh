// __half, __nv_bfloat16 and their pairs, with the operators and functions of cuda_fp16.h and cuda_bf16.h that kernels
// use. Arithmetic is PTX's: one rounding per operation, fused where the name says so.
#pragma once
#pragma clang system_header

#define __WEFT_HALF_TYPES(H, H2, RAW, RAW2)                                                                                \
    struct RAW {                                                                                                           \
        unsigned short x;                                                                                                  \
    };                                                                                                                     \
    struct __attribute__((aligned(4))) RAW2 {                                                                              \
        unsigned short x, y;                                                                                               \
    };                                                                                                                     \
    struct __attribute__((aligned(2))) H {                                                                                 \
        unsigned short __x;                                                                                                \
        H() = default;                                                                                                     \
        __attribute__((device)) H(RAW r) : __x(r.x) {}                                                                     \
        __attribute__((device)) inline H(float v);                                                                         \
        __attribute__((device)) inline H(double v);                                                                        \
        __attribute__((device)) inline H(int v);                                                                           \
        __attribute__((device)) inline H(unsigned int v);                                                                  \
        __attribute__((device)) inline H(short v);                                                                         \
        __attribute__((device)) inline H(unsigned short v);                                                                \
        __attribute__((device)) inline H(long long v);                                                                     \
        __attribute__((device)) inline H(unsigned long long v);                                                            \
        __attribute__((device)) inline operator float() const;                                                             \
        __attribute__((device)) explicit operator bool() const { return (__x & 0x7fff) != 0; }                             \
    };                                                                                                                     \
    struct __attribute__((aligned(4))) H2 {                                                                                \
        H x, y;                                                                                                            \
        H2() = default;                                                                                                    \
        __attribute__((device)) H2(H low, H high) : x(low), y(high) {}                                                     \
    };                                                                                                                     \
    __WEFT__ H __weft_make_##H(unsigned short bits) { return H(RAW{bits}); }                                               \
    __WEFT__ unsigned int __weft_bits(H2 v) { return (unsigned int)v.y.__x << 16 | v.x.__x; }                              \
    __WEFT__ H2 __weft_make_##H2(unsigned int bits) {                                                                      \
        return H2(__weft_make_##H((unsigned short)bits), __weft_make_##H((unsigned short)(bits >> 16)));                   \
    }

// Operations on one number (T: f16 or bf16) and on a pair (T2: f16x2 or bf16x2).
#define __WEFT_HALF_UNARY(H, H2, NAME, NAME2, OP, T)                                                    \
    __WEFT__ H NAME(H a) {                                                                              \
        unsigned short r;                                                                               \
        asm(OP "." T " %0, %1;" : "=h"(r) : "h"(a.__x));                                                \
        return __weft_make_##H(r);                                                                      \
    }                                                                                                   \
    __WEFT__ H2 NAME2(H2 a) {                                                                           \
        unsigned int r;                                                                                 \
        asm(OP "." T "x2 %0, %1;" : "=r"(r) : "r"(__weft_bits(a)));                                     \
        return __weft_make_##H2(r);                                                                     \
    }
#define __WEFT_HALF_BINARY(H, H2, NAME, NAME2, OP, T)                                                   \
    __WEFT__ H NAME(H a, H b) {                                                                         \
        unsigned short r;                                                                               \
        asm(OP "." T " %0, %1, %2;" : "=h"(r) : "h"(a.__x), "h"(b.__x));                                \
        return __weft_make_##H(r);                                                                      \
    }                                                                                                   \
    __WEFT__ H2 NAME2(H2 a, H2 b) {                                                                     \
        unsigned int r;                                                                                 \
        asm(OP "." T "x2 %0, %1, %2;" : "=r"(r) : "r"(__weft_bits(a)), "r"(__weft_bits(b)));            \
        return __weft_make_##H2(r);                                                                     \
    }
#define __WEFT_HALF_TERNARY(H, H2, NAME, NAME2, OP, T)                                                                      \
    __WEFT__ H NAME(H a, H b, H c) {                                                                                        \
        unsigned short r;                                                                                                   \
        asm(OP "." T " %0, %1, %2, %3;" : "=h"(r) : "h"(a.__x), "h"(b.__x), "h"(c.__x));                                    \
        return __weft_make_##H(r);                                                                                          \
    }                                                                                                                       \
    __WEFT__ H2 NAME2(H2 a, H2 b, H2 c) {                                                                                   \
        unsigned int r;                                                                                                     \
        asm(OP "." T "x2 %0, %1, %2, %3;" : "=r"(r) : "r"(__weft_bits(a)), "r"(__weft_bits(b)), "r"(__weft_bits(c)));       \
        return __weft_make_##H2(r);                                                                                         \
    }
#define __WEFT_HALF_COMPARE(H, H2, NAME, OP)                                                                            \
    __WEFT__ bool NAME(H a, H b) { return (float)a OP (float)b; }                                                       \
    __WEFT__ bool NAME##u(H a, H b) {                                                                                   \
        float x = (float)a, y = (float)b;                                                                               \
        return x != x || y != y || x OP y;                                                                              \
    }                                                                                                                   \
    __WEFT__ H2 NAME##2(H2 a, H2 b) { return H2(H(NAME(a.x, b.x) ? 1.0f : 0.0f), H(NAME(a.y, b.y) ? 1.0f : 0.0f)); }    \
    __WEFT__ bool operator OP(H a, H b) { return NAME(a, b); }
#define __WEFT_HALF_OPERATOR(H, H2, OP, NAME, NAME2)                              \
    __WEFT__ H operator OP(H a, H b) { return NAME(a, b); }                       \
    __WEFT__ H2 operator OP(H2 a, H2 b) { return NAME2(a, b); }                   \
    __WEFT__ H &operator OP##=(H &a, H b) { return a = NAME(a, b); }              \
    __WEFT__ H2 &operator OP##=(H2 &a, H2 b) { return a = NAME2(a, b); }
// Functions that go through single precision and round once.
#define __WEFT_HALF_FUNCTION(H, H2, NAME, FLOAT)                                                              \
    __WEFT__ H h##NAME(H a) { return H(FLOAT((float)a)); }                                                    \
    __WEFT__ H2 h2##NAME(H2 a) { return H2(H(FLOAT((float)a.x)), H(FLOAT((float)a.y))); }

#define __WEFT_HALF_ALL(H, H2, RAW, RAW2, T, TO_FLOAT, FROM_FLOAT)                                                     \
    __WEFT_HALF_TYPES(H, H2, RAW, RAW2)                                                                                \
    __WEFT__ float TO_FLOAT(H a);                                                                                      \
    __WEFT__ H FROM_FLOAT(float v);                                                                                    \
    __attribute__((device)) inline H::H(float v) { __x = FROM_FLOAT(v).__x; }                                                                  \
    /* Truncated with a sticky last bit, so that the second rounding is the only one. */                              \
    __attribute__((device)) inline H::H(double v) {                                                                    \
        float f = __double2float_rz(v);                                                                                \
        __x = H(__uint_as_float(__float_as_uint(f) | ((double)f != v && v == v))).__x;                                 \
    }                                                                                                                  \
    __attribute__((device)) inline H::H(int v) { __x = H((double)v).__x; }                                                                     \
    __attribute__((device)) inline H::H(unsigned int v) { __x = H((double)v).__x; }                                                            \
    __attribute__((device)) inline H::H(short v) { __x = H((float)v).__x; }                                                                    \
    __attribute__((device)) inline H::H(unsigned short v) { __x = H((float)v).__x; }                                                           \
    __attribute__((device)) inline H::H(long long v) { __x = H((double)v).__x; }                                                               \
    __attribute__((device)) inline H::H(unsigned long long v) { __x = H((double)v).__x; }                                                      \
    __attribute__((device)) inline H::operator float() const { return TO_FLOAT(*this); }                                                       \
    __WEFT_HALF_TERNARY(H, H2, __hfma, __hfma2, "fma.rn", T)                                                           \
    __WEFT_HALF_TERNARY(H, H2, __hfma_relu, __hfma2_relu, "fma.rn.relu", T)                                            \
    __WEFT_HALF_BINARY(H, H2, __hmin, __hmin2, "min", T)                                                               \
    __WEFT_HALF_BINARY(H, H2, __hmax, __hmax2, "max", T)                                                               \
    __WEFT_HALF_BINARY(H, H2, __hmin_nan, __hmin2_nan, "min.NaN", T)                                                   \
    __WEFT_HALF_BINARY(H, H2, __hmax_nan, __hmax2_nan, "max.NaN", T)                                                   \
    __WEFT_HALF_UNARY(H, H2, __habs, __habs2, "abs", T)                                                                \
    __WEFT_HALF_UNARY(H, H2, __hneg, __hneg2, "neg", T)                                                                \
    __WEFT_SUMS(H, H2)                                                                                                 \
    __WEFT__ H __hadd(H a, H b) { return __hadd_rn(a, b); }                                                            \
    __WEFT__ H __hsub(H a, H b) { return __hsub_rn(a, b); }                                                            \
    __WEFT__ H __hmul(H a, H b) { return __hmul_rn(a, b); }                                                            \
    __WEFT__ H __hdiv(H a, H b) { return H((float)a / (float)b); }                                                     \
    __WEFT__ H2 __hadd2(H2 a, H2 b) { return __hadd2_rn(a, b); }                                                       \
    __WEFT__ H2 __hsub2(H2 a, H2 b) { return __hsub2_rn(a, b); }                                                       \
    __WEFT__ H2 __hmul2(H2 a, H2 b) { return __hmul2_rn(a, b); }                                                       \
    __WEFT__ H2 __h2div(H2 a, H2 b) { return H2(__hdiv(a.x, b.x), __hdiv(a.y, b.y)); }                                 \
    __WEFT_HALF_COMPARE(H, H2, __heq, ==)                                                                              \
    __WEFT_HALF_COMPARE(H, H2, __hne, !=)                                                                              \
    __WEFT_HALF_COMPARE(H, H2, __hlt, <)                                                                               \
    __WEFT_HALF_COMPARE(H, H2, __hle, <=)                                                                              \
    __WEFT_HALF_COMPARE(H, H2, __hgt, >)                                                                               \
    __WEFT_HALF_COMPARE(H, H2, __hge, >=)                                                                              \
    __WEFT_HALF_OPERATOR(H, H2, +, __hadd, __hadd2)                                                                    \
    __WEFT_HALF_OPERATOR(H, H2, -, __hsub, __hsub2)                                                                    \
    __WEFT_HALF_OPERATOR(H, H2, *, __hmul, __hmul2)                                                                    \
    __WEFT_HALF_OPERATOR(H, H2, /, __hdiv, __h2div)                                                                    \
    __WEFT__ H operator-(H a) { return __hneg(a); }                                                                    \
    __WEFT__ H2 operator-(H2 a) { return __hneg2(a); }                                                                 \
    __WEFT__ bool __hisnan(H a) { return (float)a != (float)a; }                                                       \
    __WEFT__ int __hisinf(H a) { return isinf((float)a) ? ((float)a > 0 ? 1 : -1) : 0; }                               \
    __WEFT_HALF_FUNCTION(H, H2, exp, expf)                                                                             \
    __WEFT_HALF_FUNCTION(H, H2, exp2, exp2f)                                                                           \
    __WEFT_HALF_FUNCTION(H, H2, exp10, exp10f)                                                                         \
    __WEFT_HALF_FUNCTION(H, H2, log, logf)                                                                             \
    __WEFT_HALF_FUNCTION(H, H2, log2, log2f)                                                                           \
    __WEFT_HALF_FUNCTION(H, H2, log10, log10f)                                                                         \
    __WEFT_HALF_FUNCTION(H, H2, sin, sinf)                                                                             \
    __WEFT_HALF_FUNCTION(H, H2, cos, cosf)                                                                             \
    __WEFT_HALF_FUNCTION(H, H2, tanh, tanhf)                                                                           \
    __WEFT_HALF_FUNCTION(H, H2, sqrt, sqrtf)                                                                           \
    __WEFT_HALF_FUNCTION(H, H2, rsqrt, rsqrtf)                                                                         \
    __WEFT_HALF_FUNCTION(H, H2, rcp, __frcp_rn)                                                                        \
    __WEFT_HALF_FUNCTION(H, H2, floor, floorf)                                                                         \
    __WEFT_HALF_FUNCTION(H, H2, ceil, ceilf)                                                                           \
    __WEFT_HALF_FUNCTION(H, H2, trunc, truncf)                                                                         \
    __WEFT_HALF_FUNCTION(H, H2, rint, rintf)                                                                           \
    __WEFT_HALF_SHUFFLE(H, H2, __shfl_sync)                                                                            \
    __WEFT_HALF_SHUFFLE(H, H2, __shfl_up_sync)                                                                         \
    __WEFT_HALF_SHUFFLE(H, H2, __shfl_down_sync)                                                                       \
    __WEFT_HALF_SHUFFLE(H, H2, __shfl_xor_sync)                                                                        \
    __WEFT__ H atomicAdd(H *p, H v) {                                                                                  \
        unsigned short r;                                                                                              \
        asm volatile("atom.add.noftz." T " %0, [%1], %2;" : "=h"(r) : "l"(p), "h"(v.__x) : "memory");                  \
        return __weft_make_##H(r);                                                                                     \
    }                                                                                                                  \
    __WEFT__ H2 atomicAdd(H2 *p, H2 v) {                                                                               \
        unsigned int r;                                                                                                \
        asm volatile("atom.add.noftz." T "x2 %0, [%1], %2;" : "=r"(r) : "l"(p), "r"(__weft_bits(v)) : "memory");       \
        return __weft_make_##H2(r);                                                                                    \
    }
#define __WEFT_HALF_SHUFFLE(H, H2, NAME)                                                                        \
    __WEFT__ H NAME(unsigned int mask, H v, unsigned int lane, int width = 32) {                                \
        return __weft_make_##H((unsigned short)NAME(mask, (unsigned int)v.__x, lane, width));                   \
    }                                                                                                           \
    __WEFT__ H2 NAME(unsigned int mask, H2 v, unsigned int lane, int width = 32) {                              \
        return __weft_make_##H2(NAME(mask, __weft_bits(v), lane, width));                                       \
    }
