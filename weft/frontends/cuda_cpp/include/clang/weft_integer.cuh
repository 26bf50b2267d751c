// Integer intrinsics, type conversions and reinterpretations, min, max and abs.
#pragma once
#pragma clang system_header

// ---------------------------------------------------------------- bits
__WEFT__ int __popc(unsigned int x) { return __builtin_popcount(x); }
__WEFT__ int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
__WEFT__ int __clz(int x) { return x ? __builtin_clz(x) : 32; }
__WEFT__ int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
__WEFT__ int __ffs(int x) { return x ? __builtin_ctz(x) + 1 : 0; }
__WEFT__ int __ffsll(long long x) { return x ? __builtin_ctzll(x) + 1 : 0; }
__WEFT__ unsigned int __brev(unsigned int x) { return __builtin_bitreverse32(x); }
__WEFT__ unsigned long long __brevll(unsigned long long x) { return __builtin_bitreverse64(x); }
__WEFT__ unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int s) {
    unsigned int r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(s & 0x7777u));
    return r;
}
#define __WEFT_SHIFT(NAME, OP)                                                                   \
    __WEFT__ unsigned int NAME(unsigned int low, unsigned int high, unsigned int n) {            \
        unsigned int r;                                                                          \
        asm(OP ".b32 %0, %1, %2, %3;" : "=r"(r) : "r"(low), "r"(high), "r"(n));                  \
        return r;                                                                                \
    }
__WEFT_SHIFT(__funnelshift_l, "shf.l.wrap")
__WEFT_SHIFT(__funnelshift_lc, "shf.l.clamp")
__WEFT_SHIFT(__funnelshift_r, "shf.r.wrap")
__WEFT_SHIFT(__funnelshift_rc, "shf.r.clamp")
#undef __WEFT_SHIFT
__WEFT__ int __fns(unsigned int mask, unsigned int base, int offset) {
    // position of the offset-th set bit from `base`, upwards for positive offsets
    int step = offset < 0 ? -1 : 1, left = offset < 0 ? -offset : offset;
    if (offset == 0) return (mask >> base) & 1 ? (int)base : -1;
    for (int p = (int)base; p >= 0 && p < 32; p += step)
        if (((mask >> p) & 1) && --left == 0) return p;
    return -1;
}

// ---------------------------------------------------------------- products and sums
__WEFT__ int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
__WEFT__ unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned int)(((unsigned long long)a * b) >> 32); }
__WEFT__ long long __mul64hi(long long a, long long b) { return (long long)(((__int128)a * b) >> 64); }
__WEFT__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
__WEFT__ int __mul24(int a, int b) {
    int r;
    asm("mul24.lo.s32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
__WEFT__ unsigned int __umul24(unsigned int a, unsigned int b) {
    unsigned int r;
    asm("mul24.lo.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
__WEFT__ unsigned int __sad(int a, int b, unsigned int c) {
    unsigned int r;
    asm("sad.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
__WEFT__ unsigned int __usad(unsigned int a, unsigned int b, unsigned int c) {
    unsigned int r;
    asm("sad.u32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
__WEFT__ int __hadd(int a, int b) { return (a & b) + ((a ^ b) >> 1); }
__WEFT__ int __rhadd(int a, int b) { return (a | b) - ((a ^ b) >> 1); }
__WEFT__ unsigned int __uhadd(unsigned int a, unsigned int b) { return (a & b) + ((a ^ b) >> 1); }
__WEFT__ unsigned int __urhadd(unsigned int a, unsigned int b) { return (a | b) - ((a ^ b) >> 1); }
#define __WEFT_DOT(NAME, OP, A, B, C)                                          \
    __WEFT__ C NAME(A a, B b, C c) {                                           \
        C r;                                                                   \
        asm(OP " %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));         \
        return r;                                                              \
    }
__WEFT_DOT(__dp4a, "dp4a.s32.s32", int, int, int)
__WEFT_DOT(__dp4a, "dp4a.u32.u32", unsigned int, unsigned int, unsigned int)
__WEFT_DOT(__dp2a_lo, "dp2a.lo.s32.s32", int, int, int)
__WEFT_DOT(__dp2a_lo, "dp2a.lo.u32.u32", unsigned int, unsigned int, unsigned int)
__WEFT_DOT(__dp2a_hi, "dp2a.hi.s32.s32", int, int, int)
__WEFT_DOT(__dp2a_hi, "dp2a.hi.u32.u32", unsigned int, unsigned int, unsigned int)
#undef __WEFT_DOT

// ---------------------------------------------------------------- packed bytes and shorts (CUDA Math API, "SIMD intrinsics")
// NAME##4 works on four bytes, NAME##2 on two shorts; `a` and `b` are the parts, widened to long.
#define __WEFT_PACKED(NAME, SIGN, RESULT)                                                             \
    __WEFT__ unsigned int NAME##4(unsigned int x, unsigned int y) {                                   \
        unsigned int r = 0;                                                                           \
        for (int i = 0; i < 32; i += 8) {                                                             \
            const long low = (SIGN) ? -128 : 0, high = (SIGN) ? 127 : 255, ones = 255;                \
            long a = (SIGN) ? (long)(signed char)(x >> i) : (long)(unsigned char)(x >> i);            \
            long b = (SIGN) ? (long)(signed char)(y >> i) : (long)(unsigned char)(y >> i);            \
            (void)low, (void)high, (void)ones;                                                        \
            r |= ((unsigned int)(RESULT) & 255u) << i;                                                \
        }                                                                                             \
        return r;                                                                                     \
    }                                                                                                 \
    __WEFT__ unsigned int NAME##2(unsigned int x, unsigned int y) {                                   \
        unsigned int r = 0;                                                                           \
        for (int i = 0; i < 32; i += 16) {                                                            \
            const long low = (SIGN) ? -32768 : 0, high = (SIGN) ? 32767 : 65535, ones = 65535;        \
            long a = (SIGN) ? (long)(short)(x >> i) : (long)(unsigned short)(x >> i);                 \
            long b = (SIGN) ? (long)(short)(y >> i) : (long)(unsigned short)(y >> i);                 \
            (void)low, (void)high, (void)ones;                                                        \
            r |= ((unsigned int)(RESULT) & 65535u) << i;                                              \
        }                                                                                             \
        return r;                                                                                     \
    }
#define __WEFT_CLAMP(v) ((v) < low ? low : (v) > high ? high : (v))
#define __WEFT_BOTH(SUFFIX, EXPRESSION)               \
    __WEFT_PACKED(__v##SUFFIX##s, 1, EXPRESSION)      \
    __WEFT_PACKED(__v##SUFFIX##u, 0, EXPRESSION)
__WEFT_PACKED(__vadd, 0, a + b)
__WEFT_PACKED(__vsub, 0, a - b)
__WEFT_PACKED(__vaddss, 1, __WEFT_CLAMP(a + b))
__WEFT_PACKED(__vaddus, 0, __WEFT_CLAMP(a + b))
__WEFT_PACKED(__vsubss, 1, __WEFT_CLAMP(a - b))
__WEFT_PACKED(__vsubus, 0, __WEFT_CLAMP(a - b))
__WEFT_PACKED(__vavgs, 1, (a + b + (a + b >= 0)) >> 1)
__WEFT_PACKED(__vavgu, 0, (a + b + 1) >> 1)
__WEFT_PACKED(__vhaddu, 0, (a + b) >> 1)
__WEFT_BOTH(absdiff, a > b ? a - b : b - a)
__WEFT_BOTH(min, a < b ? a : b)
__WEFT_BOTH(max, a > b ? a : b)
__WEFT_PACKED(__vcmpeq, 0, a == b ? ones : 0)
__WEFT_PACKED(__vcmpne, 0, a != b ? ones : 0)
__WEFT_BOTH(cmpgt, a > b ? ones : 0)
__WEFT_BOTH(cmpge, a >= b ? ones : 0)
__WEFT_BOTH(cmplt, a < b ? ones : 0)
__WEFT_BOTH(cmple, a <= b ? ones : 0)
__WEFT_PACKED(__vseteq, 0, a == b)
__WEFT_PACKED(__vsetne, 0, a != b)
__WEFT_BOTH(setgt, a > b)
__WEFT_BOTH(setge, a >= b)
__WEFT_BOTH(setlt, a < b)
__WEFT_BOTH(setle, a <= b)
#undef __WEFT_BOTH
#undef __WEFT_PACKED
#undef __WEFT_CLAMP
__WEFT__ unsigned int __vneg4(unsigned int x) { return __vsub4(0, x); }
__WEFT__ unsigned int __vneg2(unsigned int x) { return __vsub2(0, x); }
__WEFT__ unsigned int __vnegss4(unsigned int x) { return __vsubss4(0, x); }
__WEFT__ unsigned int __vnegss2(unsigned int x) { return __vsubss2(0, x); }
__WEFT__ unsigned int __vabs4(unsigned int x) { return __vmaxs4(x, __vneg4(x)); }
__WEFT__ unsigned int __vabs2(unsigned int x) { return __vmaxs2(x, __vneg2(x)); }
__WEFT__ unsigned int __vabsss4(unsigned int x) { return __vmaxs4(x, __vnegss4(x)); }
__WEFT__ unsigned int __vabsss2(unsigned int x) { return __vmaxs2(x, __vnegss2(x)); }
__WEFT__ unsigned int __vsadu4(unsigned int x, unsigned int y) {
    unsigned int d = __vabsdiffu4(x, y);
    return (d & 255) + (d >> 8 & 255) + (d >> 16 & 255) + (d >> 24);
}
__WEFT__ unsigned int __vsads4(unsigned int x, unsigned int y) {
    unsigned int d = __vabsdiffs4(x, y);
    return (d & 255) + (d >> 8 & 255) + (d >> 16 & 255) + (d >> 24);
}
__WEFT__ unsigned int __vsadu2(unsigned int x, unsigned int y) {
    unsigned int d = __vabsdiffu2(x, y);
    return (d & 65535) + (d >> 16);
}
__WEFT__ unsigned int __vsads2(unsigned int x, unsigned int y) {
    unsigned int d = __vabsdiffs2(x, y);
    return (d & 65535) + (d >> 16);
}

// ---------------------------------------------------------------- reinterpretation
__WEFT__ int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
__WEFT__ unsigned int __float_as_uint(float x) { return __builtin_bit_cast(unsigned int, x); }
__WEFT__ float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
__WEFT__ float __uint_as_float(unsigned int x) { return __builtin_bit_cast(float, x); }
__WEFT__ long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
__WEFT__ double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
__WEFT__ int __double2hiint(double x) { return (int)(__double_as_longlong(x) >> 32); }
__WEFT__ int __double2loint(double x) { return (int)__double_as_longlong(x); }
__WEFT__ double __hiloint2double(int high, int low) {
    return __longlong_as_double((long long)((unsigned long long)(unsigned int)high << 32 | (unsigned int)low));
}

// ---------------------------------------------------------------- conversions, one per rounding
#define __WEFT_CONVERT(NAME, TO, TOC, FROM, FROMC, OP)         \
    __WEFT__ TO NAME(FROM x) {                                 \
        TO r;                                                  \
        asm(OP " %0, %1;" : "=" TOC(r) : FROMC(x));            \
        return r;                                              \
    }
#define __WEFT_TO_INTEGER(FROM, FROMC, PTX, PREFIX)                                                       \
    __WEFT_ROUNDED(PREFIX##2int, int, "r", FROM, FROMC, "s32." PTX, i)                                    \
    __WEFT_ROUNDED(PREFIX##2uint, unsigned int, "r", FROM, FROMC, "u32." PTX, i)                          \
    __WEFT_ROUNDED(PREFIX##2ll, long long, "l", FROM, FROMC, "s64." PTX, i)                               \
    __WEFT_ROUNDED(PREFIX##2ull, unsigned long long, "l", FROM, FROMC, "u64." PTX, i)
#define __WEFT_ROUNDED(NAME, TO, TOC, FROM, FROMC, TYPES, I)                       \
    __WEFT_CONVERT(NAME##_rn, TO, TOC, FROM, FROMC, "cvt.rn" #I "." TYPES)         \
    __WEFT_CONVERT(NAME##_rz, TO, TOC, FROM, FROMC, "cvt.rz" #I "." TYPES)         \
    __WEFT_CONVERT(NAME##_ru, TO, TOC, FROM, FROMC, "cvt.rp" #I "." TYPES)         \
    __WEFT_CONVERT(NAME##_rd, TO, TOC, FROM, FROMC, "cvt.rm" #I "." TYPES)
__WEFT_TO_INTEGER(float, "f", "f32", __float)
__WEFT_TO_INTEGER(double, "d", "f64", __double)
__WEFT_ROUNDED(__int2float, float, "f", int, "r", "f32.s32", )
__WEFT_ROUNDED(__uint2float, float, "f", unsigned int, "r", "f32.u32", )
__WEFT_ROUNDED(__ll2float, float, "f", long long, "l", "f32.s64", )
__WEFT_ROUNDED(__ull2float, float, "f", unsigned long long, "l", "f32.u64", )
__WEFT_ROUNDED(__ll2double, double, "d", long long, "l", "f64.s64", )
__WEFT_ROUNDED(__ull2double, double, "d", unsigned long long, "l", "f64.u64", )
__WEFT_ROUNDED(__double2float, float, "f", double, "d", "f32.f64", )
#undef __WEFT_ROUNDED
#undef __WEFT_TO_INTEGER
#undef __WEFT_CONVERT
__WEFT__ double __int2double_rn(int x) { return x; }
__WEFT__ double __uint2double_rn(unsigned int x) { return x; }

// ---------------------------------------------------------------- min, max, abs
#define __WEFT_EXTREMES(T, A, B)                                                   \
    __WEFT__ T min(A a, B b) { return (T)a < (T)b ? (T)a : (T)b; }                 \
    __WEFT__ T max(A a, B b) { return (T)a > (T)b ? (T)a : (T)b; }
__WEFT_EXTREMES(int, int, int)
__WEFT_EXTREMES(unsigned int, unsigned int, unsigned int)
__WEFT_EXTREMES(unsigned int, int, unsigned int)
__WEFT_EXTREMES(unsigned int, unsigned int, int)
__WEFT_EXTREMES(long, long, long)
__WEFT_EXTREMES(unsigned long, unsigned long, unsigned long)
__WEFT_EXTREMES(unsigned long, long, unsigned long)
__WEFT_EXTREMES(unsigned long, unsigned long, long)
__WEFT_EXTREMES(long long, long long, long long)
__WEFT_EXTREMES(unsigned long long, unsigned long long, unsigned long long)
__WEFT_EXTREMES(unsigned long long, long long, unsigned long long)
__WEFT_EXTREMES(unsigned long long, unsigned long long, long long)
#undef __WEFT_EXTREMES
__WEFT__ unsigned int umin(unsigned int a, unsigned int b) { return a < b ? a : b; }
__WEFT__ unsigned int umax(unsigned int a, unsigned int b) { return a > b ? a : b; }
__WEFT__ long long llmin(long long a, long long b) { return a < b ? a : b; }
__WEFT__ long long llmax(long long a, long long b) { return a > b ? a : b; }
__WEFT__ unsigned long long ullmin(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
__WEFT__ unsigned long long ullmax(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
__WEFT__ int abs(int x) { return __builtin_abs(x); }
__WEFT__ long abs(long x) { return __builtin_labs(x); }
__WEFT__ long long abs(long long x) { return __builtin_llabs(x); }
__WEFT__ long labs(long x) { return __builtin_labs(x); }
__WEFT__ long long llabs(long long x) { return __builtin_llabs(x); }
