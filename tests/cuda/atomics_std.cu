// The C++ library on the device: cuda::atomic, cuda::std containers and algorithms.
#include <cuda/atomic>
#include <cuda/std/array>
#include <cuda/std/complex>
#include <cuda/std/tuple>

extern "C" __global__ void atomic_ref_sum(int n, const int *x, int *total, int *peak) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    cuda::atomic_ref<int, cuda::thread_scope_device> sum(*total), top(*peak);
    sum.fetch_add(x[i], cuda::memory_order_relaxed);
    top.fetch_max(x[i]);
}

extern "C" __global__ void atomic_handover(int *data, int *flag, int *out) {
    cuda::atomic_ref<int, cuda::thread_scope_device> ready(*flag);
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 1) {
        *data = 42;
        ready.store(1, cuda::memory_order_release);
    } else {
        while (ready.load(cuda::memory_order_acquire) == 0) {
        }
        *out = *data;
    }
}

extern "C" __global__ void complex_julia(int n, int limit, int *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    cuda::std::complex<float> z(-1.5f + 3.0f * i / n, 0.25f), c(-0.8f, 0.156f);
    int k = 0;
    while (k < limit && z.real() * z.real() + z.imag() * z.imag() < 16.0f) {
        z = z * z + c;
        k++;
    }
    out[i] = k;
}

extern "C" __global__ void tuples(const int *x, int *y) {
    auto pair = cuda::std::make_tuple(x[threadIdx.x], x[threadIdx.x] * 2.5f);
    cuda::std::array<int, 3> parts = {cuda::std::get<0>(pair), (int)cuda::std::get<1>(pair), 7};
    int sum = 0;
    for (int v : parts) sum += v;
    y[threadIdx.x] = sum;
}
