// ATen/cuda/CUDAEvent.h for virtual GPUs.
#pragma once
#include <ATen/cuda/CUDAContextLight.h>
namespace at::cuda {
struct CUDAEvent {
  CUDAEvent() { AT_CUDA_CHECK(cudaEventCreate(&event_)); }
  explicit CUDAEvent(unsigned) : CUDAEvent() {}
  void record() { record(getCurrentCUDAStream()); }
  void record(const CUDAStream& stream) { AT_CUDA_CHECK(cudaEventRecord(event_, stream)); recorded_ = true; }
  void block(const CUDAStream& stream) { if (recorded_) AT_CUDA_CHECK(cudaStreamWaitEvent(stream, event_, 0)); }
  void synchronize() const { AT_CUDA_CHECK(cudaEventSynchronize(event_)); }
  bool query() const { return true; }
  bool isCreated() const { return true; }
  cudaEvent_t event() const { return event_; }
  float elapsed_time(const CUDAEvent& other) const {
    float milliseconds = 0;
    AT_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, event_, other.event_));
    return milliseconds;
  }

 private:
  cudaEvent_t event_ = nullptr;
  bool recorded_ = false;
};
}  // namespace at::cuda
