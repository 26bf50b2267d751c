// Atomics: relaxed, as CUDA's are. The _block and _system forms are the same operations with a wider scope, which is
// always allowed. Compiler builtins rather than assembly, so that clang sees which memory they touch.
#pragma once
#pragma clang system_header

#define __WEFT_EACH_SCOPE(T, NAME, PARAMETERS, ARGUMENTS)                       \
    __WEFT__ T NAME##_block PARAMETERS { return NAME ARGUMENTS; }               \
    __WEFT__ T NAME##_system PARAMETERS { return NAME ARGUMENTS; }
#define __WEFT_ATOMIC(T, NAME, RESULT)                                          \
    __WEFT__ T NAME(T *p, T v) { return RESULT; }                               \
    __WEFT_EACH_SCOPE(T, NAME, (T * p, T v), (p, v))
#define __WEFT_CAS(T)                                                                                  \
    __WEFT__ T atomicCAS(T *p, T expected, T v) {                                                      \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);       \
        return expected;                                                                               \
    }                                                                                                  \
    __WEFT_EACH_SCOPE(T, atomicCAS, (T * p, T expected, T v), (p, expected, v))
#define __WEFT_INTEGERS(T)                                                      \
    __WEFT_ATOMIC(T, atomicAdd, __atomic_fetch_add(p, v, __ATOMIC_RELAXED))     \
    __WEFT_ATOMIC(T, atomicSub, __atomic_fetch_sub(p, v, __ATOMIC_RELAXED))     \
    __WEFT_ATOMIC(T, atomicMin, __atomic_fetch_min(p, v, __ATOMIC_RELAXED))     \
    __WEFT_ATOMIC(T, atomicMax, __atomic_fetch_max(p, v, __ATOMIC_RELAXED))     \
    __WEFT_ATOMIC(T, atomicAnd, __atomic_fetch_and(p, v, __ATOMIC_RELAXED))     \
    __WEFT_ATOMIC(T, atomicOr, __atomic_fetch_or(p, v, __ATOMIC_RELAXED))       \
    __WEFT_ATOMIC(T, atomicXor, __atomic_fetch_xor(p, v, __ATOMIC_RELAXED))     \
    __WEFT_ATOMIC(T, atomicExch, __atomic_exchange_n(p, v, __ATOMIC_RELAXED))   \
    __WEFT_CAS(T)
__WEFT_INTEGERS(int)
__WEFT_INTEGERS(unsigned int)
__WEFT_INTEGERS(long long)
__WEFT_INTEGERS(unsigned long long)
__WEFT_CAS(unsigned short)
__WEFT_ATOMIC(unsigned int, atomicInc, __nvvm_atom_inc_gen_ui(p, v))
__WEFT_ATOMIC(unsigned int, atomicDec, __nvvm_atom_dec_gen_ui(p, v))
__WEFT_ATOMIC(float, atomicAdd, __nvvm_atom_add_gen_f(p, v))
__WEFT_ATOMIC(double, atomicAdd, __nvvm_atom_add_gen_d(p, v))
__WEFT_ATOMIC(float, atomicExch, __uint_as_float(__atomic_exchange_n((unsigned int *)p, __float_as_uint(v), __ATOMIC_RELAXED)))
#undef __WEFT_INTEGERS
#undef __WEFT_CAS
#undef __WEFT_ATOMIC
#undef __WEFT_EACH_SCOPE
