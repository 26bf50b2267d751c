// <cuda_fp16.h> for clang.
#pragma once
#pragma clang system_header
#include "weft_half.cuh"

// The sums and products that __WEFT_HALF_ALL builds its operators on.
#define __WEFT_SUMS(H, H2)                                      \
    __WEFT_HALF_BINARY(H, H2, __hadd_rn, __hadd2_rn, "add.rn", "f16") \
    __WEFT_HALF_BINARY(H, H2, __hsub_rn, __hsub2_rn, "sub.rn", "f16") \
    __WEFT_HALF_BINARY(H, H2, __hmul_rn, __hmul2_rn, "mul.rn", "f16")
__WEFT_HALF_ALL(__half, __half2, __half_raw, __half2_raw, "f16", __half2float, __float2half_rn)
#undef __WEFT_SUMS
typedef __half half;
typedef __half2 half2;

__WEFT__ float __half2float(__half a) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(a.__x));
    return r;
}
#define __WEFT_FROM_FLOAT(NAME, ROUND)                                      \
    __WEFT__ __half NAME(float v) {                                         \
        unsigned short r;                                                   \
        asm("cvt." ROUND ".f16.f32 %0, %1;" : "=h"(r) : "f"(v));            \
        return __weft_make___half(r);                                       \
    }
__WEFT_FROM_FLOAT(__float2half_rn, "rn")
__WEFT_FROM_FLOAT(__float2half_rz, "rz")
#undef __WEFT_FROM_FLOAT
__WEFT__ __half __float2half(float v) { return __float2half_rn(v); }
__WEFT__ __half __double2half(double v) { return __half(v); }
__WEFT__ __half2 __float2half2_rn(float v) { return __half2(__float2half_rn(v), __float2half_rn(v)); }
__WEFT__ __half2 __floats2half2_rn(float a, float b) { return __half2(__float2half_rn(a), __float2half_rn(b)); }
__WEFT__ __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
__WEFT__ float2 __half22float2(__half2 v) { return make_float2(__half2float(v.x), __half2float(v.y)); }
__WEFT__ __half __low2half(__half2 v) { return v.x; }
__WEFT__ __half __high2half(__half2 v) { return v.y; }
__WEFT__ float __low2float(__half2 v) { return __half2float(v.x); }
__WEFT__ float __high2float(__half2 v) { return __half2float(v.y); }
__WEFT__ __half2 __half2half2(__half v) { return __half2(v, v); }
__WEFT__ __half2 __halves2half2(__half a, __half b) { return __half2(a, b); }
__WEFT__ __half2 make_half2(__half a, __half b) { return __half2(a, b); }
__WEFT__ __half2 __low2half2(__half2 v) { return __half2(v.x, v.x); }
__WEFT__ __half2 __high2half2(__half2 v) { return __half2(v.y, v.y); }
__WEFT__ __half2 __lowhigh2highlow(__half2 v) { return __half2(v.y, v.x); }
__WEFT__ __half2 __lows2half2(__half2 a, __half2 b) { return __half2(a.x, b.x); }
__WEFT__ __half2 __highs2half2(__half2 a, __half2 b) { return __half2(a.y, b.y); }
__WEFT__ unsigned short __half_as_ushort(__half a) { return a.__x; }
__WEFT__ short __half_as_short(__half a) { return (short)a.__x; }
__WEFT__ __half __ushort_as_half(unsigned short bits) { return __weft_make___half(bits); }
__WEFT__ __half __short_as_half(short bits) { return __weft_make___half((unsigned short)bits); }
__WEFT__ int __half2int_rn(__half a) { return __float2int_rn(__half2float(a)); }
__WEFT__ int __half2int_rz(__half a) { return __float2int_rz(__half2float(a)); }
__WEFT__ int __half2int_rd(__half a) { return __float2int_rd(__half2float(a)); }
__WEFT__ int __half2int_ru(__half a) { return __float2int_ru(__half2float(a)); }
__WEFT__ unsigned int __half2uint_rn(__half a) { return __float2uint_rn(__half2float(a)); }
__WEFT__ unsigned int __half2uint_rz(__half a) { return __float2uint_rz(__half2float(a)); }
__WEFT__ __half __int2half_rn(int v) { return __half(v); }
__WEFT__ __half __uint2half_rn(unsigned int v) { return __half(v); }
