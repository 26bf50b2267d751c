// c10/cuda/CUDAGuard.h for virtual GPUs.
#pragma once
#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/cuda/CUDAStream.h>
namespace c10::cuda {
inline Device weft_checked(Device device) {
  TORCH_CHECK(device.is_cuda(), "Expected a CUDA device, but got ", device);
  return device;
}
struct CUDAGuard {
  explicit CUDAGuard(DeviceIndex index) : guard_(Device(DeviceType::CUDA, index)) {}
  explicit CUDAGuard(Device device) : guard_(weft_checked(device)) {}
  void set_device(Device device) { guard_.set_index(weft_checked(device).index()); }
  void reset_device(Device device) { guard_.set_index(weft_checked(device).index()); }
  void set_index(DeviceIndex index) { guard_.set_index(index); }
  Device original_device() const { return guard_.original_device(); }
  Device current_device() const { return guard_.current_device(); }

 private:
  DeviceGuard guard_;
};
struct OptionalCUDAGuard {
  OptionalCUDAGuard() = default;
  explicit OptionalCUDAGuard(std::optional<Device> device) { if (device) set_device(*device); }
  explicit OptionalCUDAGuard(std::optional<DeviceIndex> index) { if (index) set_index(*index); }
  void set_device(Device device) { guard_.reset_device(weft_checked(device)); }
  void set_index(DeviceIndex index) { guard_.reset_device(Device(DeviceType::CUDA, index)); }

 private:
  OptionalDeviceGuard guard_;
};
struct CUDAStreamGuard {
  explicit CUDAStreamGuard(Stream stream) : guard_(stream) {}
  explicit CUDAStreamGuard(CUDAStream stream) : guard_(stream.unwrap()) {}
  CUDAStream current_stream() const { return CUDAStream(guard_.current_stream()); }
  CUDAStream original_stream() const { return CUDAStream(guard_.original_stream()); }

 private:
  StreamGuard guard_;
};
}  // namespace c10::cuda
namespace at::cuda {
using c10::cuda::CUDAGuard;
using c10::cuda::CUDAStreamGuard;
using c10::cuda::OptionalCUDAGuard;
}  // namespace at::cuda
