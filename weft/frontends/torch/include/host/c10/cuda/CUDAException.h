// c10/cuda/CUDAException.h for virtual GPUs. A kernel's fault is thrown by its launch, before these are asked.
#pragma once
#include <c10/macros/Macros.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>
#define C10_CUDA_CHECK(EXPR)                                                                    \
  do {                                                                                          \
    const cudaError_t weft_error = EXPR;                                                        \
    TORCH_CHECK(weft_error == cudaSuccess, "CUDA error: ", cudaGetErrorString(weft_error));     \
  } while (0)
#define C10_CUDA_CHECK_WARN(EXPR)                                                               \
  do {                                                                                          \
    const cudaError_t weft_error = EXPR;                                                        \
    if (weft_error != cudaSuccess) TORCH_WARN("CUDA warning: ", cudaGetErrorString(weft_error)); \
  } while (0)
#define C10_CUDA_ERROR_HANDLED(EXPR) EXPR
#define C10_CUDA_IGNORE_ERROR(EXPR) (void)(EXPR)
#define C10_CUDA_CLEAR_ERROR() (void)cudaGetLastError()
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
#define TORCH_DSA_KERNEL_LAUNCH(kernel, blocks, threads, shared_mem, stream, ...) \
  kernel<<<blocks, threads, shared_mem, stream>>>(__VA_ARGS__)
