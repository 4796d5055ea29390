#include <cuda_runtime.h>

#include "ops/cuda_runtime.h"

namespace nibble {
namespace {

Status check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  return {error == cudaErrorMemoryAllocation ? Code::kOutOfMemory : Code::kCuda,
          std::string(what) + ": " + cuda_error_text(error)};
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::string cuda_error_text(int error) {
  const auto code = static_cast<cudaError_t>(error);
  return std::string(cudaGetErrorName(code)) + ": " + cudaGetErrorString(code);
}

CudaDevices cuda_devices() {
  CudaDevices found;
  int runtime = 0, driver = 0, count = 0;
  cudaRuntimeGetVersion(&runtime);
  found.state = "runtime " + version_text(runtime);
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    cudaGetLastError();  // the failure is reported here and must not surface at a later launch
    found.state += ", no usable GPU (" + cuda_error_text(error) + ")";
    return found;
  }
  cudaDriverGetVersion(&driver);
  found.state += ", driver " + version_text(driver);
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    Device device;
    device.backend = Backend::kCuda;
    device.name = properties.name;
    device.isas = 0;
    device.sm = 10 * properties.major + properties.minor;
    device.num_sms = properties.multiProcessorCount;
    device.shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
    device.l2_bytes = properties.l2CacheSize;
    int clock_khz = 0, bus_bits = 0;
    cudaDeviceGetAttribute(&clock_khz, cudaDevAttrMemoryClockRate, i);
    cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, i);
    device.read_gb_per_s = 2.0 * clock_khz * 1e3 * bus_bits / 8 * 1e-9;  // two transfers a clock
    device.index = i;
    found.devices.push_back(std::move(device));
  }
  return found;
}

Status use_gpu(int32_t index) { return check(cudaSetDevice(index), "cudaSetDevice"); }

Result<Buffer> copy_to_gpu(const void* data, int64_t bytes, int32_t index) {
  NIBBLE_RETURN_IF_ERROR(use_gpu(index));
  void* memory = nullptr;
  NIBBLE_RETURN_IF_ERROR(check(cudaMalloc(&memory, static_cast<size_t>(bytes)), "cudaMalloc"));
  // Freeing may come from a static destructor after the driver has gone; its error has no reader.
  std::shared_ptr<const void> owner(
      memory, [](const void* p) { static_cast<void>(cudaFree(const_cast<void*>(p))); });
  NIBBLE_RETURN_IF_ERROR(check(
      cudaMemcpy(memory, data, static_cast<size_t>(bytes), cudaMemcpyHostToDevice), "cudaMemcpy"));
  return Buffer::device_view(memory, bytes, std::move(owner));
}

}  // namespace nibble
