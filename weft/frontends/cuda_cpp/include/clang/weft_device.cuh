// The CUDA language for clang, without NVIDIA's headers: included before every program that clang compiles.
//
// The parts, each a subject of its own:
//   weft_language.cuh   keywords, built-in variables, vector types, printf, assert, memory
//   weft_integer.cuh    integer intrinsics, conversions, min and max
//   weft_warp.cuh       barriers, fences, votes, shuffles, matching, warp reductions
//   weft_atomic.cuh     atomics
//   weft_math.cuh       single-precision functions, weft_math_double.cuh double-precision ones
//   weft_half.cuh       __half, __nv_bfloat16 and their pairs (only through <cuda_fp16.h>, <cuda_bf16.h>)
#pragma once
#pragma clang system_header
#include "weft_language.cuh"
#include "weft_integer.cuh"
#include "weft_warp.cuh"
#include "weft_atomic.cuh"
// The mathematical functions say themselves where to fuse. Afterwards the user's choice holds again.
#pragma clang fp contract(off)
#include "weft_math.cuh"
#include "weft_math_double.cuh"
#include "weft_math_overloads.cuh"
#define __WEFT_PRAGMA(x) _Pragma(#x)
#define __WEFT_SET_CONTRACT(mode) __WEFT_PRAGMA(clang fp contract(mode))
__WEFT_SET_CONTRACT(__WEFT_CONTRACT__)
#undef __WEFT_SET_CONTRACT
#undef __WEFT_PRAGMA
