// What an extension calls of the CUDA runtime, led to Weft's Python side (weft/frontends/torch/launches.py), which
// knows the device, its memory and its clock.
#include <Python.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>

#include "weft_extension.h"

namespace py = pybind11;

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};
thread_local Configuration next_launch;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

py::object side() { return py::module_::import("weft.frontends.torch.launches"); }

size_t number(const void* pointer) { return reinterpret_cast<size_t>(pointer); }

// Calls a function of the Python side, which answers with an error code; exceptions pass through.
template <class... A>
cudaError_t ask(const char* name, A... arguments) {
  py::gil_scoped_acquire lock;
  return keep(static_cast<cudaError_t>(side().attr(name)(arguments...).template cast<int>()));
}

// The same for functions that give a value through a pointer.
template <class T, class... A>
cudaError_t ask_value(T* value, const char* name, A... arguments) {
  py::gil_scoped_acquire lock;
  auto answer = side().attr(name)(arguments...).template cast<py::tuple>();
  auto error = static_cast<cudaError_t>(answer[0].template cast<int>());
  if (error == cudaSuccess) *value = (T)answer[1].template cast<long long>();
  return keep(error);
}

void run(const void* kernel, const Configuration& shape, void** arguments, bool cooperative) {
  py::gil_scoped_acquire lock;
  side().attr("launch")(number(kernel), py::make_tuple(shape.grid.x, shape.grid.y, shape.grid.z),
                        py::make_tuple(shape.block.x, shape.block.y, shape.block.z), shape.shared_bytes,
                        number(shape.stream), number(arguments), cooperative);
}

}  // namespace

namespace weft {

void configure(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
  next_launch = Configuration{grid, block, shared_bytes, stream};
}

void launch(const char* slot, void** arguments) { run(slot, next_launch, arguments, false); }

cudaError_t launch_function(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                            cudaStream_t stream, bool cooperative) {
  run(kernel, Configuration{grid, block, shared_bytes, stream}, arguments, cooperative);
  return cudaSuccess;
}

cudaError_t set_attribute(const void* kernel, int attribute, int value) {
  return ask("set_attribute", number(kernel), attribute, value);
}

cudaError_t get_attributes(cudaFuncAttributes* found, const void* kernel) {
  py::gil_scoped_acquire lock;
  auto known = side().attr("get_attributes")(number(kernel)).cast<py::dict>();
  std::memset(found, 0, sizeof *found);
  found->sharedSizeBytes = known["sharedSizeBytes"].cast<size_t>();
  found->localSizeBytes = known["localSizeBytes"].cast<size_t>();
  found->constSizeBytes = known["constSizeBytes"].cast<size_t>();
  found->maxThreadsPerBlock = known["maxThreadsPerBlock"].cast<int>();
  found->numRegs = known["numRegs"].cast<int>();
  found->ptxVersion = known["ptxVersion"].cast<int>();
  found->binaryVersion = known["binaryVersion"].cast<int>();
  found->maxDynamicSharedSizeBytes = known["maxDynamicSharedSizeBytes"].cast<int>();
  return cudaSuccess;
}

cudaError_t count_blocks(int* blocks, const void* kernel, int threads, size_t shared_bytes) {
  return ask_value(blocks, "count_blocks", number(kernel), threads, shared_bytes);
}

cudaError_t copy_symbol(const void* symbol, void* host, size_t bytes, size_t offset, bool to_device) {
  return ask("copy_symbol", number(symbol), number(host), bytes, offset, to_device);
}

cudaError_t find_symbol(void** address, const void* symbol) {
  size_t found = 0;
  auto error = ask_value(&found, "find_symbol_address", number(symbol));
  *address = reinterpret_cast<void*>(found);
  return error;
}

}  // namespace weft

#pragma GCC visibility push(hidden)
extern "C" {

cudaError_t cudaGetLastError() {
  auto error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotReady: return "device not ready";
    default: return "CUDA error";
  }
}

// Devices
cudaError_t cudaGetDevice(int* device) { return ask_value(device, "get_device"); }
cudaError_t cudaSetDevice(int device) { return ask("set_device", device); }
cudaError_t cudaGetDeviceCount(int* count) { return ask_value(count, "get_device_count"); }
cudaError_t cudaDeviceSynchronize() { return ask("synchronize_device"); }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return ask_value(value, "get_device_attribute", (int)attribute, device);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  py::gil_scoped_acquire lock;
  auto known = side().attr("get_device_properties")(device).cast<py::dict>();
  std::memset(properties, 0, sizeof *properties);
  auto text = known["name"].cast<std::string>();
  std::strncpy(properties->name, text.c_str(), sizeof properties->name - 1);
#define WEFT_FIELD(field, type) properties->field = known[#field].cast<type>();
  WEFT_FIELD(totalGlobalMem, size_t) WEFT_FIELD(sharedMemPerBlock, size_t) WEFT_FIELD(regsPerBlock, int)
  WEFT_FIELD(warpSize, int) WEFT_FIELD(maxThreadsPerBlock, int) WEFT_FIELD(totalConstMem, size_t)
  WEFT_FIELD(major, int) WEFT_FIELD(minor, int) WEFT_FIELD(multiProcessorCount, int)
  WEFT_FIELD(maxThreadsPerMultiProcessor, int) WEFT_FIELD(sharedMemPerMultiprocessor, size_t)
  WEFT_FIELD(regsPerMultiprocessor, int) WEFT_FIELD(sharedMemPerBlockOptin, size_t)
  WEFT_FIELD(reservedSharedMemPerBlock, size_t) WEFT_FIELD(maxBlocksPerMultiProcessor, int)
  WEFT_FIELD(l2CacheSize, int) WEFT_FIELD(memoryBusWidth, int)
#undef WEFT_FIELD
  auto threads = known["maxThreadsDim"].cast<py::tuple>(), grid = known["maxGridSize"].cast<py::tuple>();
  for (int axis = 0; axis < 3; axis++) {
    properties->maxThreadsDim[axis] = threads[axis].cast<int>();
    properties->maxGridSize[axis] = grid[axis].cast<int>();
  }
  properties->concurrentKernels = properties->unifiedAddressing = properties->cooperativeLaunch = 1;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  ask_value(free, "get_free_memory");
  return ask_value(total, "get_total_memory");
}

// Memory
cudaError_t cudaMalloc(void** pointer, size_t bytes) { return ask_value(pointer, "allocate", bytes); }
cudaError_t cudaFree(void* pointer) { return ask("release", number(pointer)); }
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return ask("copy", number(target), number(source), bytes, (int)kind, number(stream), false);
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
  return ask("copy", number(target), number(source), bytes, (int)kind, (size_t)0, true);
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  return ask("fill", number(target), value, bytes, number(stream));
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) { return cudaMemsetAsync(target, value, bytes, nullptr); }

// Streams and events
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return ask("synchronize_stream", number(stream)); }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  return ask_value(stream, "create_stream", priority);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return cudaStreamCreateWithPriority(stream, 0, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return ask("wait_event", number(stream), number(event));
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return ask_value(event, "create_event"); }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return ask("record_event", number(event), number(stream));
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return ask("synchronize_event", number(event)); }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  py::gil_scoped_acquire lock;
  *milliseconds = side().attr("elapsed_time")(number(start), number(end)).cast<float>();
  return cudaSuccess;
}

// Kernels by address
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  return weft::set_attribute(kernel, attribute, value);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void* kernel) {
  return weft::get_attributes(found, kernel);
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads, size_t bytes) {
  return weft::count_blocks(blocks, kernel, threads, bytes);
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t stream) {
  return weft::launch_function(kernel, grid, block, arguments, shared_bytes, stream, false);
}
cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                                        size_t shared_bytes, cudaStream_t stream) {
  return weft::launch_function(kernel, grid, block, arguments, shared_bytes, stream, true);
}

}  // extern "C"
#pragma GCC visibility pop
