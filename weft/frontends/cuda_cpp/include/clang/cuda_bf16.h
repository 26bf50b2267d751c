// <cuda_bf16.h> for clang.
#pragma once
#pragma clang system_header
#include "weft_half.cuh"

// add, sub and mul of bf16 need compute capability 9.0; fma, which 8.0 has, gives the same bits.
#define __WEFT_SUMS(H, H2)                                                                                     \
    __WEFT__ H __hadd_rn(H a, H b) { return __hfma(a, __weft_make_##H(0x3f80), b); }                           \
    __WEFT__ H __hsub_rn(H a, H b) { return __hfma(b, __weft_make_##H(0xbf80), a); }                           \
    __WEFT__ H __hmul_rn(H a, H b) { return __hfma(a, b, __weft_make_##H(0x8000)); }                           \
    __WEFT__ H2 __hadd2_rn(H2 a, H2 b) { return __hfma2(a, __weft_make_##H2(0x3f803f80u), b); }                \
    __WEFT__ H2 __hsub2_rn(H2 a, H2 b) { return __hfma2(b, __weft_make_##H2(0xbf80bf80u), a); }                \
    __WEFT__ H2 __hmul2_rn(H2 a, H2 b) { return __hfma2(a, b, __weft_make_##H2(0x80008000u)); }
__WEFT_HALF_ALL(__nv_bfloat16, __nv_bfloat162, __nv_bfloat16_raw, __nv_bfloat162_raw, "bf16", __bfloat162float, __float2bfloat16_rn)
#undef __WEFT_SUMS
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

__WEFT__ float __bfloat162float(__nv_bfloat16 a) { return __uint_as_float((unsigned int)a.__x << 16); }
#define __WEFT_FROM_FLOAT(NAME, ROUND)                                      \
    __WEFT__ __nv_bfloat16 NAME(float v) {                                  \
        unsigned short r;                                                   \
        asm("cvt." ROUND ".bf16.f32 %0, %1;" : "=h"(r) : "f"(v));           \
        return __weft_make___nv_bfloat16(r);                                \
    }
__WEFT_FROM_FLOAT(__float2bfloat16_rn, "rn")
__WEFT_FROM_FLOAT(__float2bfloat16_rz, "rz")
#undef __WEFT_FROM_FLOAT
__WEFT__ __nv_bfloat16 __float2bfloat16(float v) { return __float2bfloat16_rn(v); }
__WEFT__ __nv_bfloat16 __double2bfloat16(double v) { return __nv_bfloat16(v); }
__WEFT__ __nv_bfloat162 __float2bfloat162_rn(float v) { return __nv_bfloat162(__float2bfloat16_rn(v), __float2bfloat16_rn(v)); }
__WEFT__ __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return __nv_bfloat162(__float2bfloat16_rn(a), __float2bfloat16_rn(b)); }
__WEFT__ __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
__WEFT__ float2 __bfloat1622float2(__nv_bfloat162 v) { return make_float2(__bfloat162float(v.x), __bfloat162float(v.y)); }
__WEFT__ __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
__WEFT__ __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
__WEFT__ float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
__WEFT__ float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
__WEFT__ __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 v) { return __nv_bfloat162(v, v); }
__WEFT__ __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat162(a, b); }
__WEFT__ __nv_bfloat162 make_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return __nv_bfloat162(a, b); }
__WEFT__ unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.__x; }
__WEFT__ short __bfloat16_as_short(__nv_bfloat16 a) { return (short)a.__x; }
__WEFT__ __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return __weft_make___nv_bfloat16(bits); }
__WEFT__ __nv_bfloat16 __short_as_bfloat16(short bits) { return __weft_make___nv_bfloat16((unsigned short)bits); }
__WEFT__ int __bfloat162int_rn(__nv_bfloat16 a) { return __float2int_rn(__bfloat162float(a)); }
__WEFT__ int __bfloat162int_rz(__nv_bfloat16 a) { return __float2int_rz(__bfloat162float(a)); }
__WEFT__ __nv_bfloat16 __int2bfloat16_rn(int v) { return __nv_bfloat16(v); }
