// ATen/cuda/CUDAContextLight.h for virtual GPUs, without the handles of cuBLAS and cuSPARSE, which there are none of.
#pragma once
#include <ATen/cuda/Exceptions.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <array>
namespace at::cuda {
using c10::DeviceIndex;
inline int64_t getNumGPUs() { return c10::cuda::device_count(); }
inline bool is_available() { return c10::cuda::device_count() > 0; }
inline cudaDeviceProp* getDeviceProperties(DeviceIndex device) {
  static std::array<cudaDeviceProp, 16> properties;
  AT_CUDA_CHECK(cudaGetDeviceProperties(&properties.at(device), device));
  return &properties[device];
}
inline cudaDeviceProp* getCurrentDeviceProperties() { return getDeviceProperties(c10::cuda::current_device()); }
inline int warp_size() { return 32; }
}  // namespace at::cuda
