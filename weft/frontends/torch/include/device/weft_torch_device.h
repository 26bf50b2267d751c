// What kernels use of PyTorch's headers, for NVRTC: half-precision and complex numbers, accessors, atomics, macros.
// Names, layouts and meanings are those of c10/util/{Half,BFloat16,complex}.h, ATen/core/TensorAccessor.h,
// ATen/OpMathType.h and ATen/cuda/{Atomic,DeviceUtils}.cuh of PyTorch 2.13.
#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <limits>
#include <type_traits>

#define C10_DEVICE __device__
#define C10_HOST __host__
#define C10_HOST_DEVICE __host__ __device__
#define GPU_LAMBDA
#define C10_ALWAYS_INLINE inline
#define C10_UNUSED
#define C10_RESTRICT __restrict__
#define C10_LIKELY(expr) (expr)
#define C10_UNLIKELY(expr) (expr)
#define C10_LAUNCH_BOUNDS_0 __launch_bounds__(256, 4)
#define C10_LAUNCH_BOUNDS_1(threads) __launch_bounds__(threads)
#define C10_LAUNCH_BOUNDS_2(threads, blocks) __launch_bounds__(threads, blocks)
#define C10_WARP_SIZE 32
#define CUDA_KERNEL_ASSERT(condition) assert(condition)
#define CUDA_KERNEL_ASSERT_MSG(condition, message) assert(condition)
#define CUDA_KERNEL_LOOP_TYPE(i, n, index_type) \
  for (index_type i = (index_type)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \
       i += (index_type)blockDim.x * gridDim.x)
#define CUDA_KERNEL_LOOP(i, n) CUDA_KERNEL_LOOP_TYPE(i, n, int)
#define TORCH_CHECK(...)
#define TORCH_INTERNAL_ASSERT(...)

using std::size_t;

namespace c10 {

#define WEFT_HD __host__ __device__ inline

#define WEFT_SMALL_FLOAT(Name, native, to_float, from_float, to_bits, from_bits_function)                  \
  struct alignas(2) Name {                                                                                  \
    unsigned short x;                                                                                       \
    struct from_bits_t {};                                                                                  \
    __host__ __device__ static constexpr from_bits_t from_bits() { return from_bits_t(); }                  \
    Name() = default;                                                                                       \
    __host__ __device__ constexpr Name(unsigned short bits, from_bits_t) : x(bits) {}                       \
    __host__ __device__ Name(float value) : x(to_bits(from_float(value))) {}                                \
    __host__ __device__ Name(const native& value) : x(to_bits(value)) {}                                    \
    __host__ __device__ operator float() const { return to_float(from_bits_function(x)); }                  \
    __host__ __device__ explicit operator native() const { return from_bits_function(x); }                  \
  };                                                                                                        \
  WEFT_HD Name operator-(const Name& a) { return Name((unsigned short)(a.x ^ 0x8000), Name::from_bits()); } \
  WEFT_ARITHMETIC(Name, +) WEFT_ARITHMETIC(Name, -) WEFT_ARITHMETIC(Name, *) WEFT_ARITHMETIC(Name, /)

#define WEFT_ARITHMETIC(Name, op)                                                                \
  WEFT_HD Name operator op(const Name& a, const Name& b) { return Name((float)a op (float)b); }  \
  WEFT_HD Name& operator op##=(Name& a, const Name& b) { return a = a op b; }                    \
  WEFT_HD float operator op(const Name& a, float b) { return (float)a op b; }                    \
  WEFT_HD float operator op(float a, const Name& b) { return a op (float)b; }                    \
  WEFT_HD float& operator op##=(float& a, const Name& b) { return a = a op (float)b; }           \
  WEFT_HD double operator op(const Name& a, double b) { return (double)(float)a op b; }          \
  WEFT_HD double operator op(double a, const Name& b) { return a op (double)(float)b; }          \
  WEFT_HD Name operator op(const Name& a, int b) { return a op Name((float)b); }                 \
  WEFT_HD Name operator op(int a, const Name& b) { return Name((float)a) op b; }                 \
  WEFT_HD Name operator op(const Name& a, int64_t b) { return a op Name((float)b); }             \
  WEFT_HD Name operator op(int64_t a, const Name& b) { return Name((float)a) op b; }

WEFT_SMALL_FLOAT(Half, __half, __half2float, __float2half, __half_as_ushort, __ushort_as_half)
WEFT_SMALL_FLOAT(BFloat16, __nv_bfloat16, __bfloat162float, __float2bfloat16, __bfloat16_as_ushort,
                 __ushort_as_bfloat16)

template <class T>
struct alignas(sizeof(T) * 2) complex {
  using value_type = T;
  T real_ = T(0);
  T imag_ = T(0);
  complex() = default;
  __host__ __device__ constexpr complex(const T& re, const T& im = T()) : real_(re), imag_(im) {}
  template <class U>
  __host__ __device__ explicit constexpr complex(const complex<U>& other) : real_(other.real_), imag_(other.imag_) {}
  __host__ __device__ constexpr T real() const { return real_; }
  __host__ __device__ constexpr T imag() const { return imag_; }
  __host__ __device__ complex& operator+=(const complex& o) { real_ += o.real_; imag_ += o.imag_; return *this; }
  __host__ __device__ complex& operator-=(const complex& o) { real_ -= o.real_; imag_ -= o.imag_; return *this; }
  __host__ __device__ complex& operator*=(const complex& o) {
    T re = real_ * o.real_ - imag_ * o.imag_;
    imag_ = real_ * o.imag_ + imag_ * o.real_;
    real_ = re;
    return *this;
  }
  __host__ __device__ complex& operator/=(const complex& o) {
    T norm = o.real_ * o.real_ + o.imag_ * o.imag_;
    T re = (real_ * o.real_ + imag_ * o.imag_) / norm;
    imag_ = (imag_ * o.real_ - real_ * o.imag_) / norm;
    real_ = re;
    return *this;
  }
};
template <class T> WEFT_HD complex<T> operator+(complex<T> a, const complex<T>& b) { return a += b; }
template <class T> WEFT_HD complex<T> operator-(complex<T> a, const complex<T>& b) { return a -= b; }
template <class T> WEFT_HD complex<T> operator*(complex<T> a, const complex<T>& b) { return a *= b; }
template <class T> WEFT_HD complex<T> operator/(complex<T> a, const complex<T>& b) { return a /= b; }
template <class T> WEFT_HD complex<T> operator*(complex<T> a, T b) { return complex<T>(a.real_ * b, a.imag_ * b); }
template <class T> WEFT_HD complex<T> operator*(T a, complex<T> b) { return b * a; }
template <class T> WEFT_HD complex<T> operator-(const complex<T>& a) { return complex<T>(-a.real_, -a.imag_); }
template <class T> WEFT_HD complex<T> conj(const complex<T>& a) { return complex<T>(a.real_, -a.imag_); }
template <class T> WEFT_HD bool operator==(const complex<T>& a, const complex<T>& b) {
  return a.real_ == b.real_ && a.imag_ == b.imag_;
}

}  // namespace c10

namespace cuda {
namespace std {
#define WEFT_LIMITS(Name, lowest_bits, max_bits, min_bits, epsilon_bits, infinity_bits, nan_bits)                    \
  template <>                                                                                                        \
  class numeric_limits<c10::Name> {                                                                                  \
   public:                                                                                                           \
    static constexpr bool is_specialized = true, is_signed = true, is_integer = false, has_infinity = true;          \
    __host__ __device__ static constexpr c10::Name lowest() { return {lowest_bits, c10::Name::from_bits()}; }        \
    __host__ __device__ static constexpr c10::Name max() { return {max_bits, c10::Name::from_bits()}; }              \
    __host__ __device__ static constexpr c10::Name min() { return {min_bits, c10::Name::from_bits()}; }              \
    __host__ __device__ static constexpr c10::Name epsilon() { return {epsilon_bits, c10::Name::from_bits()}; }      \
    __host__ __device__ static constexpr c10::Name infinity() { return {infinity_bits, c10::Name::from_bits()}; }    \
    __host__ __device__ static constexpr c10::Name quiet_NaN() { return {nan_bits, c10::Name::from_bits()}; }        \
  };
WEFT_LIMITS(Half, 0xFBFF, 0x7BFF, 0x0400, 0x1400, 0x7C00, 0x7E00)
WEFT_LIMITS(BFloat16, 0xFF7F, 0x7F7F, 0x0080, 0x3C00, 0x7F80, 0x7FC0)
}  // namespace std
}  // namespace cuda

namespace at {
using namespace c10;

template <class T> struct OpMathType { using type = T; };
template <> struct OpMathType<c10::Half> { using type = float; };
template <> struct OpMathType<c10::BFloat16> { using type = float; };
template <class T> using opmath_type = typename OpMathType<T>::type;
template <class T, bool is_cuda> struct AccumulateType { using type = T; };
template <bool is_cuda> struct AccumulateType<c10::Half, is_cuda> { using type = float; };
template <bool is_cuda> struct AccumulateType<c10::BFloat16, is_cuda> { using type = float; };
template <class T, bool is_cuda> using acc_type = typename AccumulateType<T, is_cuda>::type;

template <class T> struct DefaultPtrTraits { using PtrType = T*; };
template <class T> struct RestrictPtrTraits { using PtrType = T* __restrict__; };

template <class T, size_t N, template <class U> class PtrTraits = DefaultPtrTraits, class index_t = int64_t>
class TensorAccessorBase {
 public:
  using PtrType = typename PtrTraits<T>::PtrType;
  __host__ __device__ TensorAccessorBase(PtrType data, const index_t* sizes, const index_t* strides)
      : data_(data), sizes_(sizes), strides_(strides) {}
  __host__ __device__ index_t stride(index_t i) const { return strides_[i]; }
  __host__ __device__ index_t size(index_t i) const { return sizes_[i]; }
  __host__ __device__ PtrType data() { return data_; }
  __host__ __device__ const PtrType data() const { return data_; }

 protected:
  PtrType data_;
  const index_t* sizes_;
  const index_t* strides_;
};

template <class T, size_t N, template <class U> class PtrTraits = DefaultPtrTraits, class index_t = int64_t>
class TensorAccessor : public TensorAccessorBase<T, N, PtrTraits, index_t> {
 public:
  using TensorAccessorBase<T, N, PtrTraits, index_t>::TensorAccessorBase;
  __host__ __device__ TensorAccessor<T, N - 1, PtrTraits, index_t> operator[](index_t i) const {
    return TensorAccessor<T, N - 1, PtrTraits, index_t>(this->data_ + this->strides_[0] * i, this->sizes_ + 1,
                                                        this->strides_ + 1);
  }
};
template <class T, template <class U> class PtrTraits, class index_t>
class TensorAccessor<T, 1, PtrTraits, index_t> : public TensorAccessorBase<T, 1, PtrTraits, index_t> {
 public:
  using TensorAccessorBase<T, 1, PtrTraits, index_t>::TensorAccessorBase;
  __host__ __device__ T& operator[](index_t i) const { return this->data_[this->strides_[0] * i]; }
};

template <class T, size_t N, template <class U> class PtrTraits = DefaultPtrTraits, class index_t = int64_t>
class GenericPackedTensorAccessorBase {
 public:
  using PtrType = typename PtrTraits<T>::PtrType;
  __host__ __device__ index_t stride(index_t i) const { return strides_[i]; }
  __host__ __device__ index_t size(index_t i) const { return sizes_[i]; }
  __host__ __device__ PtrType data() { return data_; }
  __host__ __device__ const PtrType data() const { return data_; }

 protected:
  PtrType data_;
  index_t sizes_[N];
  index_t strides_[N];
};
template <class T, size_t N, template <class U> class PtrTraits = DefaultPtrTraits, class index_t = int64_t>
class GenericPackedTensorAccessor : public GenericPackedTensorAccessorBase<T, N, PtrTraits, index_t> {
 public:
  __device__ TensorAccessor<T, N - 1, PtrTraits, index_t> operator[](index_t i) const {
    return TensorAccessor<T, N - 1, PtrTraits, index_t>(const_cast<T*>(this->data_) + this->strides_[0] * i,
                                                        this->sizes_ + 1, this->strides_ + 1);
  }
};
template <class T, template <class U> class PtrTraits, class index_t>
class GenericPackedTensorAccessor<T, 1, PtrTraits, index_t>
    : public GenericPackedTensorAccessorBase<T, 1, PtrTraits, index_t> {
 public:
  __device__ T& operator[](index_t i) const { return const_cast<T*>(this->data_)[this->strides_[0] * i]; }
};
template <class T, size_t N, template <class U> class PtrTraits = DefaultPtrTraits>
using PackedTensorAccessor32 = GenericPackedTensorAccessor<T, N, PtrTraits, int32_t>;
template <class T, size_t N, template <class U> class PtrTraits = DefaultPtrTraits>
using PackedTensorAccessor64 = GenericPackedTensorAccessor<T, N, PtrTraits, int64_t>;
template <class T, size_t N, template <class U> class PtrTraits = DefaultPtrTraits, class index_t = int64_t>
using PackedTensorAccessor = GenericPackedTensorAccessor<T, N, PtrTraits, index_t>;

}  // namespace at

namespace torch {
using namespace at;
namespace headeronly {
using namespace at;
}
}  // namespace torch

// ATen/cuda/Atomic.cuh
__device__ inline float gpuAtomicAdd(float* address, float value) { return atomicAdd(address, value); }
__device__ inline double gpuAtomicAdd(double* address, double value) { return atomicAdd(address, value); }
__device__ inline int32_t gpuAtomicAdd(int32_t* address, int32_t value) { return atomicAdd(address, value); }
__device__ inline int64_t gpuAtomicAdd(int64_t* address, int64_t value) {
  return (int64_t)atomicAdd(reinterpret_cast<unsigned long long*>(address), (unsigned long long)value);
}
__device__ inline long gpuAtomicAdd(long* address, long value) {
  return (long)atomicAdd(reinterpret_cast<unsigned long long*>(address), (unsigned long long)value);
}
__device__ inline c10::Half gpuAtomicAdd(c10::Half* address, c10::Half value) {
  return c10::Half(atomicAdd(reinterpret_cast<__half*>(address), (__half)value));
}
__device__ inline c10::BFloat16 gpuAtomicAdd(c10::BFloat16* address, c10::BFloat16 value) {
  return c10::BFloat16(atomicAdd(reinterpret_cast<__nv_bfloat16*>(address), (__nv_bfloat16)value));
}
template <class T, class U> __device__ inline void gpuAtomicAddNoReturn(T* address, U value) {
  gpuAtomicAdd(address, (T)value);
}
__device__ inline c10::Half atomicAdd(c10::Half* address, c10::Half value) { return gpuAtomicAdd(address, value); }
__device__ inline c10::BFloat16 atomicAdd(c10::BFloat16* address, c10::BFloat16 value) {
  return gpuAtomicAdd(address, value);
}
__device__ inline int64_t atomicAdd(int64_t* address, int64_t value) { return gpuAtomicAdd(address, value); }
__device__ inline long atomicAdd(long* address, long value) { return gpuAtomicAdd(address, value); }

// ATen/cuda/DeviceUtils.cuh
template <class T> __device__ inline T WARP_SHFL(T v, int lane, int width = 32, unsigned mask = 0xffffffff) {
  return __shfl_sync(mask, v, lane, width);
}
template <class T> __device__ inline T WARP_SHFL_DOWN(T v, unsigned delta, int width = 32, unsigned mask = 0xffffffff) {
  return __shfl_down_sync(mask, v, delta, width);
}
template <class T> __device__ inline T WARP_SHFL_UP(T v, unsigned delta, int width = 32, unsigned mask = 0xffffffff) {
  return __shfl_up_sync(mask, v, delta, width);
}
template <class T> __device__ inline T WARP_SHFL_XOR(T v, int lanes, int width = 32, unsigned mask = 0xffffffff) {
  return __shfl_xor_sync(mask, v, lanes, width);
}
__device__ inline unsigned WARP_BALLOT(int predicate, unsigned mask = 0xffffffff) {
  return __ballot_sync(mask, predicate);
}

namespace at {
namespace cuda {
template <class T> __host__ __device__ inline T ATenCeilDiv(T a, T b) { return (a + b - 1) / b; }
}
template <class T> __host__ __device__ inline T ceil_div(T a, T b) { return (a + b - 1) / b; }
namespace native {
using at::opmath_type;
}
}  // namespace at
