// Barriers, fences and the warp-wide functions. Inline assembly throughout: the same forms for every version of clang.
#pragma once
#pragma clang system_header

// ---------------------------------------------------------------- barriers and fences
__WEFT__ void __weft_barrier() { asm volatile("bar.sync 0;" ::: "memory"); }
// clang declares __syncthreads itself.
#if !__has_builtin(__syncthreads)
__WEFT__ void __syncthreads() { __weft_barrier(); }
#endif
__WEFT__ int __weft_barrier_popc(int p) {
    int r;
    asm volatile("{ .reg .pred q; setp.ne.s32 q, %1, 0; bar.red.popc.u32 %0, 0, q; }" : "=r"(r) : "r"(p) : "memory");
    return r;
}
#define __WEFT_BARRIER_REDUCE(NAME, OP)                                                                              \
    __WEFT__ int NAME(int p) {                                                                                       \
        int r;                                                                                                       \
        asm volatile("{ .reg .pred q, s; setp.ne.s32 q, %1, 0; bar.red." OP ".pred s, 0, q; selp.s32 %0, 1, 0, s; }" \
                     : "=r"(r) : "r"(p) : "memory");                                                                 \
        return r;                                                                                                    \
    }
__WEFT_BARRIER_REDUCE(__syncthreads_and, "and")
__WEFT_BARRIER_REDUCE(__syncthreads_or, "or")
#undef __WEFT_BARRIER_REDUCE
__WEFT__ int __syncthreads_count(int p) { return __weft_barrier_popc(p); }
__WEFT__ void __syncwarp(unsigned int mask = 0xffffffffu) { asm volatile("bar.warp.sync %0;" ::"r"(mask) : "memory"); }
__WEFT__ void __threadfence_block() { asm volatile("fence.acq_rel.cta;" ::: "memory"); }
__WEFT__ void __threadfence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__WEFT__ void __threadfence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// ---------------------------------------------------------------- votes
__WEFT__ unsigned int __activemask() {
    unsigned int r;
    asm volatile("activemask.b32 %0;" : "=r"(r)::"memory");
    return r;
}
__WEFT__ unsigned int __ballot_sync(unsigned int mask, int p) {
    unsigned int r;
    asm volatile("{ .reg .pred q; setp.ne.s32 q, %1, 0; vote.sync.ballot.b32 %0, q, %2; }" : "=r"(r) : "r"(p), "r"(mask) : "memory");
    return r;
}
#define __WEFT_VOTE(NAME, OP)                                                                                          \
    __WEFT__ int NAME(unsigned int mask, int p) {                                                                      \
        int r;                                                                                                         \
        asm volatile("{ .reg .pred q, s; setp.ne.s32 q, %1, 0; vote.sync." OP ".pred s, q, %2; selp.s32 %0, 1, 0, s; }" \
                     : "=r"(r) : "r"(p), "r"(mask) : "memory");                                                        \
        return r;                                                                                                      \
    }
__WEFT_VOTE(__any_sync, "any")
__WEFT_VOTE(__all_sync, "all")
__WEFT_VOTE(__uni_sync, "uni")
#undef __WEFT_VOTE

// ---------------------------------------------------------------- shuffles (widths 1 to 32, powers of two)
#define __WEFT_SHUFFLE(NAME, OP, LAST)                                                                                      \
    __WEFT__ unsigned int __weft_##NAME(unsigned int mask, unsigned int v, unsigned int lane, int width) {                  \
        unsigned int r, c = ((32u - (unsigned int)width) << 8) | LAST;                                                      \
        asm volatile("shfl.sync." OP ".b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(v), "r"(lane), "r"(c), "r"(mask) : "memory"); \
        return r;                                                                                                           \
    }                                                                                                                       \
    __WEFT__ int __##NAME(unsigned int mask, int v, unsigned int lane, int width = 32) {                                    \
        return (int)__weft_##NAME(mask, (unsigned int)v, lane, width);                                                      \
    }                                                                                                                       \
    __WEFT__ unsigned int __##NAME(unsigned int mask, unsigned int v, unsigned int lane, int width = 32) {                  \
        return __weft_##NAME(mask, v, lane, width);                                                                         \
    }                                                                                                                       \
    __WEFT__ float __##NAME(unsigned int mask, float v, unsigned int lane, int width = 32) {                                \
        return __uint_as_float(__weft_##NAME(mask, __float_as_uint(v), lane, width));                                       \
    }                                                                                                                       \
    __WEFT__ unsigned long long __##NAME(unsigned int mask, unsigned long long v, unsigned int lane, int width = 32) {      \
        unsigned long long low = __weft_##NAME(mask, (unsigned int)v, lane, width);                                         \
        unsigned long long high = __weft_##NAME(mask, (unsigned int)(v >> 32), lane, width);                                \
        return high << 32 | low;                                                                                            \
    }                                                                                                                       \
    __WEFT__ long long __##NAME(unsigned int mask, long long v, unsigned int lane, int width = 32) {                        \
        return (long long)__##NAME(mask, (unsigned long long)v, lane, width);                                               \
    }                                                                                                                       \
    __WEFT__ unsigned long __##NAME(unsigned int mask, unsigned long v, unsigned int lane, int width = 32) {                \
        return (unsigned long)__##NAME(mask, (unsigned long long)v, lane, width);                                           \
    }                                                                                                                       \
    __WEFT__ long __##NAME(unsigned int mask, long v, unsigned int lane, int width = 32) {                                  \
        return (long)__##NAME(mask, (unsigned long long)v, lane, width);                                                    \
    }                                                                                                                       \
    __WEFT__ double __##NAME(unsigned int mask, double v, unsigned int lane, int width = 32) {                              \
        return __longlong_as_double((long long)__##NAME(mask, (unsigned long long)__double_as_longlong(v), lane, width));   \
    }
__WEFT_SHUFFLE(shfl_sync, "idx", 31u)
__WEFT_SHUFFLE(shfl_up_sync, "up", 0u)
__WEFT_SHUFFLE(shfl_down_sync, "down", 31u)
__WEFT_SHUFFLE(shfl_xor_sync, "bfly", 31u)
#undef __WEFT_SHUFFLE

// ---------------------------------------------------------------- matching
__WEFT__ unsigned int __weft_match_any(unsigned int mask, unsigned int v) {
    unsigned int r;
    asm volatile("match.any.sync.b32 %0, %1, %2;" : "=r"(r) : "r"(v), "r"(mask) : "memory");
    return r;
}
__WEFT__ unsigned int __weft_match_any(unsigned int mask, unsigned long long v) {
    unsigned int r;
    asm volatile("match.any.sync.b64 %0, %1, %2;" : "=r"(r) : "l"(v), "r"(mask) : "memory");
    return r;
}
__WEFT__ unsigned int __weft_match_all(unsigned int mask, unsigned int v, int *equal) {
    unsigned int r;
    int p;
    asm volatile("{ .reg .pred q; match.all.sync.b32 %0|q, %2, %3; selp.s32 %1, 1, 0, q; }" : "=r"(r), "=r"(p) : "r"(v), "r"(mask) : "memory");
    *equal = p;
    return r;
}
__WEFT__ unsigned int __weft_match_all(unsigned int mask, unsigned long long v, int *equal) {
    unsigned int r;
    int p;
    asm volatile("{ .reg .pred q; match.all.sync.b64 %0|q, %2, %3; selp.s32 %1, 1, 0, q; }" : "=r"(r), "=r"(p) : "l"(v), "r"(mask) : "memory");
    *equal = p;
    return r;
}
#define __WEFT_MATCH(T, BITS)                                                                                                 \
    __WEFT__ unsigned int __match_any_sync(unsigned int mask, T v) { return __weft_match_any(mask, BITS); }                   \
    __WEFT__ unsigned int __match_all_sync(unsigned int mask, T v, int *equal) { return __weft_match_all(mask, BITS, equal); }
__WEFT_MATCH(int, (unsigned int)v)
__WEFT_MATCH(unsigned int, v)
__WEFT_MATCH(long, (unsigned long long)v)
__WEFT_MATCH(unsigned long, (unsigned long long)v)
__WEFT_MATCH(long long, (unsigned long long)v)
__WEFT_MATCH(unsigned long long, v)
__WEFT_MATCH(float, __float_as_uint(v))
__WEFT_MATCH(double, (unsigned long long)__double_as_longlong(v))
#undef __WEFT_MATCH

// ---------------------------------------------------------------- reductions (compute capability 8.0 and up)
#define __WEFT_REDUCE(NAME, OP, T)                                                                             \
    __WEFT__ T __reduce_##NAME##_sync(unsigned int mask, T v) {                                                \
        T r;                                                                                                   \
        asm volatile("redux.sync." OP " %0, %1, %2;" : "=r"(r) : "r"(v), "r"(mask) : "memory");                \
        return r;                                                                                              \
    }
__WEFT_REDUCE(add, "add.s32", int)
__WEFT_REDUCE(add, "add.u32", unsigned int)
__WEFT_REDUCE(min, "min.s32", int)
__WEFT_REDUCE(min, "min.u32", unsigned int)
__WEFT_REDUCE(max, "max.s32", int)
__WEFT_REDUCE(max, "max.u32", unsigned int)
__WEFT_REDUCE(and, "and.b32", unsigned int)
__WEFT_REDUCE(or, "or.b32", unsigned int)
__WEFT_REDUCE(xor, "xor.b32", unsigned int)
#undef __WEFT_REDUCE
