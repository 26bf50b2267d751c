// CUDA's keywords, built-in variables, vector types, and the device side of the C library.
#pragma once
#pragma clang system_header
#include <stddef.h>

#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __constant__ __attribute__((constant))
#define __managed__ __attribute__((device))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define __forceinline__ inline __attribute__((always_inline))
#define __inline_hint__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __device_builtin__
#define __cudart_builtin__
#if __has_attribute(grid_constant)
#define __grid_constant__ __attribute__((grid_constant))
#else
#define __grid_constant__
#endif
#define CUDARTAPI
#define CUDART_VERSION 13000

#define __WEFT__ static __inline__ __attribute__((device, always_inline, unused))
// Not inlined by force: long functions that many kernels call in many places.
#define __WEFT_LONG__ static __inline__ __attribute__((device, unused))

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

// ---------------------------------------------------------------- vector types (CUDA C++ Programming Guide, alignment)
#define __WEFT_VECTOR(T, N, A1, A2, A4)                                                                       \
    struct N##1 {                                                                                             \
        T x;                                                                                                  \
    };                                                                                                        \
    struct __attribute__((aligned(A2))) N##2 {                                                                \
        T x, y;                                                                                               \
    };                                                                                                        \
    struct N##3 {                                                                                             \
        T x, y, z;                                                                                            \
    };                                                                                                        \
    struct __attribute__((aligned(A4))) N##4 {                                                                \
        T x, y, z, w;                                                                                         \
    };                                                                                                        \
    static __inline__ __attribute__((host, device)) N##1 make_##N##1(T x) { return N##1{x}; }                 \
    static __inline__ __attribute__((host, device)) N##2 make_##N##2(T x, T y) { return N##2{x, y}; }         \
    static __inline__ __attribute__((host, device)) N##3 make_##N##3(T x, T y, T z) { return N##3{x, y, z}; } \
    static __inline__ __attribute__((host, device)) N##4 make_##N##4(T x, T y, T z, T w) { return N##4{x, y, z, w}; }
__WEFT_VECTOR(signed char, char, 1, 2, 4)
__WEFT_VECTOR(unsigned char, uchar, 1, 2, 4)
__WEFT_VECTOR(short, short, 2, 4, 8)
__WEFT_VECTOR(unsigned short, ushort, 2, 4, 8)
__WEFT_VECTOR(int, int, 4, 8, 16)
__WEFT_VECTOR(unsigned int, uint, 4, 8, 16)
__WEFT_VECTOR(long, long, 8, 16, 16)
__WEFT_VECTOR(unsigned long, ulong, 8, 16, 16)
__WEFT_VECTOR(long long, longlong, 8, 16, 16)
__WEFT_VECTOR(unsigned long long, ulonglong, 8, 16, 16)
__WEFT_VECTOR(float, float, 4, 8, 16)
__WEFT_VECTOR(double, double, 8, 16, 16)
#undef __WEFT_VECTOR

struct dim3 {
    unsigned int x, y, z;
    __attribute__((host, device)) constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
    __attribute__((host, device)) constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    __attribute__((host, device)) constexpr operator uint3() const { return uint3{x, y, z}; }
};

// ---------------------------------------------------------------- built-in variables
#define __WEFT_READ(FIELD, REGISTER)                                       \
    __declspec(property(get = __weft_get_##FIELD)) unsigned int FIELD;     \
    static __inline__ __attribute__((device, always_inline)) unsigned int __weft_get_##FIELD() { return REGISTER(); }
#define __WEFT_INDEX(NAME, PREFIX)                                                                                     \
    struct __weft_##NAME##_t {                                                                                         \
        __WEFT_READ(x, PREFIX##_x)                                                                                     \
        __WEFT_READ(y, PREFIX##_y)                                                                                     \
        __WEFT_READ(z, PREFIX##_z)                                                                                     \
        __attribute__((device)) operator dim3() const { return dim3(x, y, z); }                                        \
        __attribute__((device)) operator uint3() const { return uint3{x, y, z}; }                                      \
    };                                                                                                                 \
    extern const __attribute__((device)) __attribute__((weak)) __weft_##NAME##_t NAME;
__WEFT_INDEX(threadIdx, __nvvm_read_ptx_sreg_tid)
__WEFT_INDEX(blockIdx, __nvvm_read_ptx_sreg_ctaid)
__WEFT_INDEX(blockDim, __nvvm_read_ptx_sreg_ntid)
__WEFT_INDEX(gridDim, __nvvm_read_ptx_sreg_nctaid)
#undef __WEFT_INDEX
#undef __WEFT_READ
static const __attribute__((device)) int warpSize = 32;

// ---------------------------------------------------------------- clocks and traps
__WEFT__ long long clock64() {
    long long t;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(t)::"memory");
    return t;
}
__WEFT__ int clock() {
    int t;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(t)::"memory");
    return t;
}
__WEFT__ unsigned long long __globaltimer() {
    unsigned long long t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
    return t;
}
__WEFT__ void __nanosleep(unsigned int ns) { asm volatile("nanosleep.u32 %0;" ::"r"(ns) : "memory"); }
__WEFT__ void __trap() { asm volatile("trap;"); }
__WEFT__ void __brkpt() { asm volatile("brkpt;"); }

// ---------------------------------------------------------------- C library
extern "C" {
__attribute__((device)) int printf(const char *, ...);
__attribute__((device)) void *malloc(size_t);
__attribute__((device)) void free(void *);
__attribute__((device, noreturn)) void __assertfail(const char *message, const char *file, unsigned int line,
                                                    const char *function, size_t char_size);
static __inline__ __attribute__((device, unused)) void *memcpy(void *to, const void *from, size_t n) {
    char *a = (char *)to;
    const char *b = (const char *)from;
    for (size_t i = 0; i < n; i++) a[i] = b[i];
    return to;
}
static __inline__ __attribute__((device, unused)) void *memmove(void *to, const void *from, size_t n) {
    char *a = (char *)to;
    const char *b = (const char *)from;
    if (a < b) {
        for (size_t i = 0; i < n; i++) a[i] = b[i];
    } else {
        for (size_t i = n; i > 0; i--) a[i - 1] = b[i - 1];
    }
    return to;
}
static __inline__ __attribute__((device, unused)) void *memset(void *to, int value, size_t n) {
    char *a = (char *)to;
    for (size_t i = 0; i < n; i++) a[i] = (char)value;
    return to;
}
static __inline__ __attribute__((device, unused)) int memcmp(const void *left, const void *right, size_t n) {
    const unsigned char *a = (const unsigned char *)left, *b = (const unsigned char *)right;
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
    return 0;
}
static __inline__ __attribute__((device, unused)) size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}
__attribute__((device, weak)) void __cxa_pure_virtual() { __trap(); }
}
#define memcpy(to, from, n) __builtin_memcpy(to, from, n)
#define memset(to, value, n) __builtin_memset(to, value, n)

#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition) \
    ((condition) ? (void)0 : __assertfail(#condition, __FILE__, __LINE__, __PRETTY_FUNCTION__, sizeof(char)))
#endif

__attribute__((device)) inline void *operator new(size_t n) { return malloc(n ? n : 1); }
__attribute__((device)) inline void *operator new[](size_t n) { return malloc(n ? n : 1); }
__attribute__((device)) inline void operator delete(void *p) noexcept { free(p); }
__attribute__((device)) inline void operator delete[](void *p) noexcept { free(p); }
__attribute__((device)) inline void operator delete(void *p, size_t) noexcept { free(p); }
__attribute__((device)) inline void operator delete[](void *p, size_t) noexcept { free(p); }
__attribute__((device)) inline void *operator new(size_t, void *p) noexcept { return p; }
__attribute__((device)) inline void *operator new[](size_t, void *p) noexcept { return p; }

// ---------------------------------------------------------------- address spaces
#define __WEFT_SPACE(NAME, SPACE)                                                                     \
    __WEFT__ unsigned int __is##NAME(const void *p) {                                                 \
        unsigned int r;                                                                               \
        asm("{ .reg .pred q; isspacep." #SPACE " q, %1; selp.u32 %0, 1, 0, q; }" : "=r"(r) : "l"(p)); \
        return r;                                                                                     \
    }                                                                                                 \
    __WEFT__ size_t __cvta_generic_to_##SPACE(const void *p) {                                        \
        size_t r;                                                                                     \
        asm("cvta.to." #SPACE ".u64 %0, %1;" : "=l"(r) : "l"(p));                                     \
        return r;                                                                                     \
    }                                                                                                 \
    __WEFT__ void *__cvta_##SPACE##_to_generic(size_t p) {                                            \
        void *r;                                                                                      \
        asm("cvta." #SPACE ".u64 %0, %1;" : "=l"(r) : "l"(p));                                        \
        return r;                                                                                     \
    }
__WEFT_SPACE(Global, global)
__WEFT_SPACE(Shared, shared)
__WEFT_SPACE(Local, local)
__WEFT_SPACE(Constant, const)
#undef __WEFT_SPACE

// ---------------------------------------------------------------- cached loads and stores
// The hints change nothing that a program can see; reads through the read-only path are plain loads.
template <class T> __WEFT__ T __ldg(const T *p) { return *p; }
template <class T> __WEFT__ T __ldca(const T *p) { return *p; }
template <class T> __WEFT__ T __ldcg(const T *p) { return *p; }
template <class T> __WEFT__ T __ldcs(const T *p) { return *p; }
template <class T> __WEFT__ T __ldlu(const T *p) { return *p; }
template <class T> __WEFT__ T __ldcv(const T *p) { return *(const volatile T *)p; }
template <class T> __WEFT__ void __stwb(T *p, T v) { *p = v; }
template <class T> __WEFT__ void __stcg(T *p, T v) { *p = v; }
template <class T> __WEFT__ void __stcs(T *p, T v) { *p = v; }
template <class T> __WEFT__ void __stwt(T *p, T v) { *p = v; }
