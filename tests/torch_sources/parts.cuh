// Included by filters.cu: a macro for both sides, a functor, a kernel in a header.
#pragma once
#define HOST_DEVICE __host__ __device__ inline

namespace parts {
template <typename T>
HOST_DEVICE T square(T x) {
  return x * x;
}

struct Scale {
  float factor;
  __host__ __device__ explicit Scale(float f) : factor(f) {}
  template <typename T>
  __device__ T operator()(T x) const {
    return static_cast<T>(static_cast<float>(x) * factor);
  }
};

template <typename T, typename F>
__global__ void apply(const T* __restrict__ in, T* __restrict__ out, int n, const F f) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = f(in[i]);
}
}  // namespace parts
