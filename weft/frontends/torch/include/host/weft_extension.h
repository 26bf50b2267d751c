// Included before every host source of an extension: what stands for nvcc's launches and for libcudart.
// weft_runtime.cpp has the definitions.
#pragma once
#include <cstddef>
#include <cuda_runtime.h>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#undef __maxnreg__
#define __maxnreg__(...)
#undef __block_size__
#define __block_size__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline
#undef __noinline__
#define __noinline__

// torch/headeronly/core/TensorAccessor.h has it for nvcc only.
namespace torch::headeronly {
template <typename T>
struct RestrictPtrTraits {
  typedef T* __restrict__ PtrType;
};
}  // namespace torch::headeronly
namespace at {
using torch::headeronly::RestrictPtrTraits;
}

// Namespaces of headers that are for the device alone, so that aliases of them can be made.
namespace cooperative_groups {}
namespace cub {}
namespace thrust {}
namespace nvcuda {
namespace wmma {}
}  // namespace nvcuda

namespace weft {
// The shape of the launch that the calling thread makes next.
void configure(dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t stream = nullptr);
// Runs the kernel whose stub owns `slot`; arguments point to its parameters. Throws Python's exception.
void launch(const char* slot, void** arguments);
cudaError_t set_attribute(const void* kernel, int attribute, int value);
cudaError_t get_attributes(cudaFuncAttributes* found, const void* kernel);
cudaError_t count_blocks(int* blocks, const void* kernel, int threads, size_t shared_bytes);
cudaError_t launch_function(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                            cudaStream_t stream, bool cooperative);
cudaError_t copy_symbol(const void* symbol, void* host, size_t bytes, size_t offset, bool to_device);
cudaError_t find_symbol(void** address, const void* symbol);
}  // namespace weft

// The templates that nvcc brings.
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return weft::set_attribute((const void*)kernel, attribute, value);
}
template <class... P>
cudaError_t cudaFuncSetCacheConfig(void (*)(P...), cudaFuncCache) { return cudaSuccess; }
template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, void (*kernel)(P...)) {
  return weft::get_attributes(found, (const void*)kernel);
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(P...), int threads,
                                                          size_t shared_bytes) {
  return weft::count_blocks(blocks, (const void*)kernel, threads, shared_bytes);
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void (*kernel)(P...), int threads,
                                                                   size_t shared_bytes, unsigned) {
  return weft::count_blocks(blocks, (const void*)kernel, threads, shared_bytes);
}
template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments, size_t shared_bytes = 0,
                             cudaStream_t stream = nullptr) {
  return weft::launch_function((const void*)kernel, grid, block, arguments, shared_bytes, stream, false);
}
template <class... P>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments,
                                        size_t shared_bytes = 0, cudaStream_t stream = nullptr) {
  return weft::launch_function((const void*)kernel, grid, block, arguments, shared_bytes, stream, true);
}
template <class T>
cudaError_t cudaMemcpyToSymbol(const T& symbol, const void* source, size_t bytes, size_t offset = 0,
                               cudaMemcpyKind = cudaMemcpyHostToDevice) {
  return weft::copy_symbol(&symbol, const_cast<void*>(source), bytes, offset, true);
}
template <class T>
cudaError_t cudaMemcpyToSymbolAsync(const T& symbol, const void* source, size_t bytes, size_t offset = 0,
                                    cudaMemcpyKind = cudaMemcpyHostToDevice, cudaStream_t = nullptr) {
  return weft::copy_symbol(&symbol, const_cast<void*>(source), bytes, offset, true);
}
template <class T>
cudaError_t cudaMemcpyFromSymbol(void* target, const T& symbol, size_t bytes, size_t offset = 0,
                                 cudaMemcpyKind = cudaMemcpyDeviceToHost) {
  return weft::copy_symbol(&symbol, target, bytes, offset, false);
}
template <class T>
cudaError_t cudaGetSymbolAddress(void** address, const T& symbol) { return weft::find_symbol(address, &symbol); }
