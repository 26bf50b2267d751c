// c10/cuda/CUDAStream.h for virtual GPUs: a stream's handle is its id, and the default stream's is 0.
#pragma once
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/cuda/CUDAFunctions.h>
namespace c10::cuda {
class CUDAStream {
 public:
  enum Unchecked { UNCHECKED };
  explicit CUDAStream(Stream stream) : stream_(stream) {
    TORCH_CHECK(stream_.device_type() == DeviceType::CUDA);
  }
  explicit CUDAStream(Unchecked, Stream stream) : stream_(stream) {}
  bool operator==(const CUDAStream& other) const noexcept { return stream_ == other.stream_; }
  bool operator!=(const CUDAStream& other) const noexcept { return stream_ != other.stream_; }
  operator cudaStream_t() const { return stream(); }
  operator Stream() const { return stream_; }
  DeviceType device_type() const { return DeviceType::CUDA; }
  DeviceIndex device_index() const { return stream_.device_index(); }
  Device device() const { return Device(DeviceType::CUDA, device_index()); }
  StreamId id() const { return stream_.id(); }
  bool query() const { return true; }
  void synchronize() const { C10_CUDA_CHECK(cudaStreamSynchronize(stream())); }
  cudaStream_t stream() const { return reinterpret_cast<cudaStream_t>(stream_.id()); }
  Stream unwrap() const { return stream_; }

 private:
  Stream stream_;
};
inline impl::VirtualGuardImpl weft_guard() { return impl::VirtualGuardImpl(DeviceType::CUDA); }
inline Device weft_device(DeviceIndex index) {
  return Device(DeviceType::CUDA, index < 0 ? weft_guard().getDevice().index() : index);
}
inline CUDAStream getCurrentCUDAStream(DeviceIndex index = -1) {
  return CUDAStream(CUDAStream::UNCHECKED, weft_guard().getStream(weft_device(index)));
}
inline CUDAStream getDefaultCUDAStream(DeviceIndex index = -1) {
  return CUDAStream(CUDAStream::UNCHECKED, Stream(Stream::DEFAULT, weft_device(index)));
}
inline CUDAStream getStreamFromExternal(cudaStream_t stream, DeviceIndex index) {
  return CUDAStream(CUDAStream::UNCHECKED, Stream(Stream::UNSAFE, weft_device(index), (StreamId)stream));
}
inline CUDAStream getStreamFromPool(const bool high = false, DeviceIndex index = -1) {
  cudaStream_t stream = nullptr;
  C10_CUDA_CHECK(cudaStreamCreateWithPriority(&stream, 0, high ? -1 : 0));
  return getStreamFromExternal(stream, index);
}
inline void setCurrentCUDAStream(CUDAStream stream) { weft_guard().exchangeStream(stream.unwrap()); }
}  // namespace c10::cuda
namespace at::cuda {
using c10::cuda::CUDAStream;
using c10::cuda::getCurrentCUDAStream;
using c10::cuda::getDefaultCUDAStream;
using c10::cuda::getStreamFromExternal;
using c10::cuda::getStreamFromPool;
using c10::cuda::setCurrentCUDAStream;
}  // namespace at::cuda
